"""Shared code of the benchmarks: clips of a talking face, printing of results, and where they come from."""

import datetime
import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import cv2

from dcl_face_forgery.data_scripts.assets import fetch
from dcl_face_forgery.video_dcl import Video

WIDTH, HEIGHT, SECONDS, RATE = 640, 360, 10, 25


def write_clip(path: Path, index: int) -> Path:
    """Encode ten seconds of a talking face, H.264: the photographed frame to and fro, its edges blurred outwards."""
    with Video(fetch("talking_face")) as video:
        frames = [image for _, image in video.read(video.numbers)]
    frames = [*frames, *reversed(frames)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "23", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(SECONDS * RATE):
            image = frames[(number + 11 * index) % len(frames)]
            picture = cv2.resize(image, (HEIGHT * image.shape[1] // image.shape[0], HEIGHT))
            around = cv2.GaussianBlur(cv2.resize(image, (WIDTH, HEIGHT)), (0, 0), 12)
            left = (WIDTH - picture.shape[1]) // 2
            around[:, left : left + picture.shape[1]] = picture
            container.mux(stream.encode(av.VideoFrame.from_ndarray(around, format="rgb24")))
        container.mux(stream.encode())
    return path


def describe_run(command: str) -> dict[str, Any]:
    """Return what is kept with a result: `command`, `machine`, `date` (UTC) and `versions`."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "command": command,
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{cores} CPU cores",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {"torch": torch.__version__} | {name: version(name) for name in ("timm", "transformers")},
    }


def print_result(result: Mapping[str, Any], as_json: bool) -> None:
    """Print results as one JSON object, or one per line."""
    width = max(map(len, result))
    print(json.dumps(result) if as_json else "\n".join(f"{key:{width}} {value}" for key, value in result.items()))
