"""The app in a process of its own, which writes down every connection and program that it tries to open."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image

from dcl_face_forgery.data_scripts.assets import fetch_detector

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"

#: Written before the app's own hook can refuse anything.
_RECORDER = """
import os, runpy, sys
attempts = open(sys.argv[1], "a", buffering=1)
def record(event, arguments):
    if event in ("socket.sendto", "socket.sendmsg") and arguments[1] is None:  # answers to who has connected
        return
    if event.startswith(("socket.connect", "socket.send", "socket.getaddrinfo", "subprocess", "os.system", "os.exec",
                         "os.posix_spawn")):
        attempts.write(f"{event} {arguments[1:] if event == 'socket.connect' else arguments}\\n")
sys.addaudithook(record)
sys.argv = [sys.argv[2]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass
class Server:
    """A running app.

    Attributes:
        url: its address.
        output: the file of what it prints and logs.
        attempts: the file of what it tried to open.
        process: it.
    """

    url: str
    output: Path
    attempts: Path
    process: subprocess.Popen

    @property
    def uploads(self) -> Path:
        """The folder of its uploads."""
        (folder,) = self.output.parent.glob("dcl-app-*")
        return folder


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def serve(checkpoint: Path, folder: Path, **environment: str):
    """Yield a `Server` of a checkpoint; its files are written into a folder."""
    fetch_detector()
    port, output, attempts = free_port(), folder / "output.txt", folder / "attempts.txt"
    variables = {"DCL_MODEL": str(checkpoint), "GRADIO_SERVER_PORT": str(port), "TMPDIR": str(folder)}
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", _RECORDER, str(attempts), str(ROOT / "app.py")],
            env={**os.environ, **variables, **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 120
        while "The app is at" not in output.read_text():
            assert process.poll() is None and time.monotonic() < deadline, output.read_text()
            time.sleep(0.1)
        attempts.write_text("")  # what starting takes
        yield Server(f"http://127.0.0.1:{port}/", output, attempts, process)
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()


def write_video(path: Path, frames: int = 8, rate: int = 8, size: tuple[int, int] = (256, 256)) -> Path:
    """Write a video of the example portrait and return its path."""
    picture = Image.open(EXAMPLES / "portrait.jpg").resize(size)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            pixels = np.roll(np.asarray(picture), number % 8, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels))))
        container.mux(stream.encode())
    return path
