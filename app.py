"""The app: pictures and videos in a browser, scored by a checkpoint, and nothing of them kept.

It imports nothing of this repository: model, processor and pipeline come with the checkpoint that the environment
variable `DCL_MODEL` names (a folder, or an id on the Hub). So this one file, beside `requirements.txt`, is a Space.

Sections: limits, uploads, the gate (what is let in), the detector, what is shown, requests, the page.
"""

import argparse
import atexit
import base64
import ctypes
import html
import io
import json
import logging
import mimetypes
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

# Gradio reads these when it is imported: no word home, a folder of our own, and no long list of past requests.
UPLOADS = Path(tempfile.mkdtemp(prefix="dcl-app-")).resolve()
atexit.register(shutil.rmtree, UPLOADS, ignore_errors=True)
os.environ |= {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_TEMP_DIR": str(UPLOADS),
    "GRADIO_ANALYTICS_MAX_EVENTS": "100",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": "100",
}

_PORT = os.environ.get("GRADIO_SERVER_PORT") or "7860"
if not (_PORT.isascii() and _PORT.isdigit() and 0 < int(_PORT) < 1 << 16):  # else Gradio fails in its own words
    sys.exit(f"error: GRADIO_SERVER_PORT is {_PORT}: choose a number from 1 to 65535.")
HERE = Path(__file__).resolve().parent


def find_model() -> str:
    """Return the folder or id that `DCL_MODEL` names; end the program in a sentence if there is no such checkpoint."""
    name = os.environ.get("DCL_MODEL") or str(HERE / "runs" / "demo")
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file() or not any(Path(name).glob("model*.safetensors")):
            sys.exit(
                f"error: {name} is not a checkpoint: it has no config.json or no weights (*.safetensors). Set "
                "DCL_MODEL to the folder of one, or to a model id on the Hub."
            )
        return name
    if name.count("/") != 1 or Path(name).is_absolute() or name.startswith("."):
        sys.exit(
            f"error: Model {name} not found. Create it with `make demo`, or set DCL_MODEL to the folder of a "
            "checkpoint or a model id on the Hub."
        )
    from huggingface_hub import model_info
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        model_info(name, timeout=5)
    except GatedRepoError:
        sys.exit(f"error: Model {name} is gated: accept its terms on the Hub, and log in with `hf auth login`.")
    except (RepositoryNotFoundError, HFValidationError):
        sys.exit(
            f"error: Model {name} not found: there is no such folder, and no public repository of that name on the "
            "Hub. Check DCL_MODEL, or log in with `hf auth login` if it is private."
        )
    except Exception:  # without the Hub, the local cache may have it
        logging.getLogger("dcl_face_forgery.app").warning(
            "The Hub cannot be reached: %s is looked for in the local cache.", name
        )
    return name


if __name__ == "__main__":  # before the imports, which take seconds
    argparse.ArgumentParser(
        description="Serve the page on this machine.",
        epilog="It is set by environment variables: DCL_MODEL, the folder of a checkpoint or a model id on the Hub "
        "(default: runs/demo, of `make demo`), and GRADIO_SERVER_PORT (default: 7860).",
    ).parse_args()
    MODEL = find_model()

import gradio as gr  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402

logger = logging.getLogger("dcl_face_forgery.app")
EXAMPLES = HERE / "examples"

# ------------------------------------------------------------------------------------------------------------- limits

MOST_PICTURE_BYTES = 20 << 20
MOST_UPLOAD_BYTES = 100 << 20
MOST_FOLDER_BYTES = 4 << 30  # of all uploads together
MOST_JSON_BYTES = 64 << 10
MOST_PIXELS = 40_000_000  # of a picture or a frame, counted before it is decoded
MOST_SECONDS = 300  # of a video
MOST_FRAMES = 36_000  # of a video: 120 a second
MOST_MEMORY = 4 << 30  # bytes that all requests together may take, beside what the checkpoint takes
NUM_FRAMES = (8, 16, 32)
MOST_REQUEST_SECONDS = 120
MOST_WAITING = 24  # requests; who comes when so many wait is told so at once
SHOWN_SIDE = 960  # pixels of a picture that is shown
SHOWN_FRAME_SIDE = 480

# ------------------------------------------------------------------------------------------------------------ uploads


class Uploads:
    """The files that were uploaded: who uses them, and when they go.

    A file stays while a request that names it waits or runs, and as long as it is the last one that an open page has
    used, ten minutes at most. Every other file goes `grace` seconds after it came, so that it can be asked about.

    Args:
        folder: where they are.
        grace: seconds.
        longest: seconds that an open page holds on to a file.
    """

    def __init__(self, folder: Path, grace: float = 30, longest: float = 600):
        self.folder, self.grace, self.longest = folder, grace, longest
        self._coming = 0  # bytes on their way
        self._open: Counter[str] = Counter()  # pages, by the hash of their session
        self._held: dict[str, tuple[Path, float]] = {}  # what an open page used last, and since when

    def owns(self, path: Any) -> bool:
        """Whether this is the path of an uploaded file that is still there."""
        try:
            resolved = Path(path).resolve(strict=True)
        except (OSError, TypeError, ValueError):
            return False
        return resolved.is_relative_to(self.folder) and resolved.is_file()

    def use(self, path: str, session: str | None) -> None:
        """Note that a session asks about a file; raises `OSError` if it is gone."""
        os.utime(path)
        if session is not None and self._open[session] > 0:
            self._held[session] = (Path(path).resolve(), time.monotonic())

    @contextmanager
    def page(self, session: str) -> Iterator[None]:
        """A page is open as long as this lasts."""
        self._open[session] += 1
        try:
            yield
        finally:
            self._open[session] -= 1
            if not self._open[session]:
                del self._open[session]
                self._held.pop(session, None)

    @contextmanager
    def coming(self, length: int) -> Iterator[None]:
        """An upload of so many bytes is on its way as long as this lasts."""
        self._coming += length
        try:
            yield
        finally:
            self._coming -= length

    def room(self, length: int) -> bool:
        """Whether there is room for one more upload of so many bytes."""
        taken = self._coming
        for file in self._files():
            with suppress(FileNotFoundError):  # it went in between
                taken += file.stat().st_size
        return taken + length <= MOST_FOLDER_BYTES

    def sweep(self, in_use: set[Path]) -> None:
        """Delete every file that nothing holds and that is older than the grace."""
        now = time.monotonic()
        held = {path for path, since in list(self._held.values()) if now - since < self.longest}
        for file in self._files():
            try:
                if file not in in_use | held and time.time() - file.stat().st_mtime > self.grace:
                    file.unlink()
                    if file.parent != self.folder:
                        file.parent.rmdir()
            except OSError:  # another upload of the same content came in between
                continue

    def _files(self) -> list[Path]:
        # A folder that goes in between is passed over.
        return [Path(place, name) for place, _, names in os.walk(self.folder) for name in names]


uploads = Uploads(UPLOADS)


def sweep_for_ever(queue: Any, every: float = 5) -> None:
    """Delete what nothing holds, again and again: files, and answers that nobody came to fetch.

    Args:
        queue: Gradio's, which knows what waits and runs.
        every: seconds.
    """
    waiting_since: dict[str, float] = {}
    while True:
        time.sleep(every)
        try:
            events = list(queue.event_ids_to_events.values())
            uploads.sweep({Path(path) for event in events for path in _paths(getattr(event.data, "data", None))})
            alive = {event.session_hash for event in events}
            idle = [name for name in list(queue.pending_messages_per_session) if name not in alive]
            waiting_since = {name: waiting_since.get(name, time.monotonic()) for name in idle}
            for name, since in waiting_since.items():
                if time.monotonic() - since > 60:
                    queue.pending_messages_per_session.pop(name, None)
                    queue.pending_event_ids_session.pop(name, None)
        except Exception as error:
            _log("sweeping", error)


def _paths(value: Any) -> Iterator[Any]:
    """Yield what every "path" in JSON data says."""
    if isinstance(value, dict):
        if value.get("path") is not None:
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _paths(item)


# ----------------------------------------------------------------------------------------------------------- the gate

_API = "/gradio_api"
_POSTS = re.compile(rf"{_API}/(upload|queue/join|cancel|reset|call/(v2/\w+|\w+))/?")
_CLOSED = re.compile(rf"(?is)(/monitoring|{_API}/(proxy=|stream/|deep_link|dev/|vibe|runs|run-history)).*")
_FILE = re.compile(rf"{_API}/file[=/](.*)", re.DOTALL)
_HEARTBEAT = re.compile(rf"{_API}/heartbeat/([\w-]+)")
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; "
        b"base-uri 'self'; form-action 'self'; frame-ancestors 'self' https://huggingface.co https://*.hf.space",
    ),
)


_NO_ANSWER = "This has no answer: see the API that the page describes."


class _RefusalError(Exception):
    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


class Gate:
    """What stands before Gradio: it lets in what the page needs, and nothing that leads to other files or hosts.

    Gradio fetches any address that a client writes in the place of an uploaded file's path, before a function of the
    app is called. Here every path must be that of an upload; what was checked is what is passed on.
    """

    #: How many values each function takes, by its number and its name in the API; the page fills it in.
    values: ClassVar[dict[int | str, int]] = {}

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Serve one request, as ASGI wants it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        begun: list[bytes] = []  # the headers of the answer

        async def send_with_headers(message: dict) -> None:
            if message["type"] == "http.response.start":
                begun.extend(value for _, value in message.get("headers", []))
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        async def refuse(refusal: _RefusalError) -> None:
            body = json.dumps({"detail": str(refusal)}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send_with_headers({"type": "http.response.start", "status": refusal.status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

        path, length = scope["path"].removeprefix(scope.get("root_path", "")), 0
        try:
            if scope["method"] == "POST":
                receive, length = await self._checked_post(path, dict(scope["headers"]), receive)
            else:
                self._check_get(path)
        except _RefusalError as refusal:
            await refuse(refusal)
            return
        heartbeat = _HEARTBEAT.fullmatch(path)
        with uploads.page(heartbeat[1]) if heartbeat else uploads.coming(length):
            try:
                await self.app(scope, receive, send_with_headers)
            except Exception as error:
                _log("a request", error)
                if any(value.startswith(b"text/event-stream") for value in begun):
                    last = f"event: error\ndata: {json.dumps(_NO_ANSWER)}\n\n".encode()
                    await send({"type": "http.response.body", "body": last})
                elif not begun:
                    await refuse(_RefusalError(500, _NO_ANSWER))

    @staticmethod
    def _check_get(path: str) -> None:
        file = _FILE.fullmatch(path)
        if _CLOSED.fullmatch(path) or (file and not uploads.owns(file[1])):
            raise _RefusalError(403, "This address is not open here: use the page, or the API that it describes.")

    @staticmethod
    async def _checked_post(path: str, headers: dict[bytes, bytes], receive: Any) -> tuple[Any, int]:
        """Check a POST; return from where its body can be received, and how many bytes of an upload that is."""
        post = _POSTS.fullmatch(path)
        if post is None:
            raise _RefusalError(403, "This address is not open here: use the page, or the API that it describes.")
        length = headers.get(b"content-length", b"")
        if not length.isdigit() or b"transfer-encoding" in headers:  # which would count, and not the length
            raise _RefusalError(411, "The request does not say how long it is: send a Content-Length.")
        if post[1] == "upload":
            if int(length) > MOST_UPLOAD_BYTES:
                raise _RefusalError(413, f"Files may have up to {MOST_UPLOAD_BYTES >> 20} MB: choose a smaller one.")
            if not uploads.room(int(length)):
                raise _RefusalError(503, "There are too many files here at the moment: try again in a minute.")
            return receive, int(length)
        if int(length) > MOST_JSON_BYTES:
            raise _RefusalError(413, "The request is too long: upload the file, and send no more than its path.")
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        data = _checked_json(body)
        if post[1] == "queue/join":
            _check_values(data, data.get("fn_index"))
        elif post[2] and not post[2].startswith("v2/"):  # which takes values by their names
            _check_values(data, post[2])
        first = iter([{"type": "http.request", "body": json.dumps(data).encode(), "more_body": False}])

        async def receive_checked() -> dict:
            return next(first, None) or await receive()

        return receive_checked, 0


def _checked_json(body: bytes) -> dict:
    """Return a request's JSON with the paths of uploads, and no others, and no address in it."""
    try:
        data = json.loads(body)
        paths, rest = list(_paths(data)), _without_addresses(data)
    except (ValueError, RecursionError):
        raise _RefusalError(400, "The request is no JSON: see the API that the page describes.") from None
    if not isinstance(data, dict):
        raise _RefusalError(400, "The request is no JSON object: see the API that the page describes.")
    session = data.get("session_hash")
    try:
        for path in paths:
            if not uploads.owns(path):
                raise FileNotFoundError(path)
            uploads.use(path, session if isinstance(session, str) else None)
    except OSError:
        raise _RefusalError(
            403, "This file is not here (any more): uploads are deleted soon after their use. Choose it again."
        ) from None
    return rest


def _check_values(data: dict, function: Any) -> None:
    """Refuse a call of what is no function, given by its number or name, or with another number of values."""
    wanted = Gate.values.get(function) if type(function) in (int, str) else None
    if wanted is None:
        raise _RefusalError(400, "There is no such function here: see the API that the page describes.")
    values = data.get("data")
    if not (isinstance(values, list) and len(values) == wanted):
        raise _RefusalError(400, f"The request takes a list of {wanted} values: see the API that the page describes.")


def _without_addresses(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_addresses(item) for name, item in value.items() if name != "url"}
    return [_without_addresses(item) for item in value] if isinstance(value, list) else value


class FileData(gr.FileData):
    """What a client says of an upload; another value is refused in words."""

    @classmethod
    def model_validate(cls, value: Any, **how: Any) -> "FileData":
        """Check a value of a request, as Gradio wants it."""
        try:
            return super().model_validate(value, **how)
        except ValueError:
            raise gr.Error(
                "This is no uploaded file: upload one, and send what the API describes.", print_exception=False
            ) from None


def upload_input(**settings: Any) -> gr.File:
    """Return a file input that hands on the path of an upload as it is: no copy, no fetch, no look at its name."""
    file = gr.File(**settings)

    async def as_it_is(path: Any) -> Any:
        return path

    # (A class of our own would have Gradio write a stub of it beside this file.)
    file.async_move_resource_to_block_cache = as_it_is
    file.data_model = FileData
    file.preprocess = lambda payload: None if payload is None else Path(payload.path)
    return file


def as_given(choice: Any) -> Any:
    """Let a choice hand on whatever it is given: what is not to be chosen is refused in words of our own."""
    choice.preprocess = lambda payload: payload
    return choice


_SEALED = {"socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"}
_SENT = {"socket.sendto", "socket.sendmsg"}  # without an address, answers on a connection that was let in


def seal() -> None:
    """From now on no Python code of this process opens a connection or starts a program, whoever asks for it.

    What libraries do below Python is not seen here: FFmpeg is told elsewhere to open files only.
    """

    def refuse(event: str, arguments: tuple) -> None:
        if event in _SEALED or (event in _SENT and arguments[1] is not None):
            raise PermissionError(f"{event} is closed while requests are served.")

    sys.addaudithook(refuse)


# ------------------------------------------------------------------------------------------------------- the detector

#: What `dcl-prepare demo` and `dcl-prepare blend` forge by: who has seen nothing else is a demonstration.
_SIMPLE_METHODS = {"self_blend", "identity_swap", "lowres_swap", "local_warp", "mouth_swap"}


class Detector:
    """A checkpoint's pipeline, one request at a time, and what its code offers beside it.

    Args:
        name: folder or id of the checkpoint.
    """

    def __init__(self, name: str):
        cuda = torch.cuda.is_available()
        self.pipe = transformers.pipeline(
            "face-forgery-detection", model=name, trust_remote_code=True, device=0 if cuda else -1
        )
        if not hasattr(self.pipe, "crops"):
            sys.exit(
                f"error: the code in {name} is of an older version, whose results this app cannot show. Bring it up "
                "to date: `DCLForImageClassification.from_pretrained(DIR).save_pretrained(DIR)`."
            )
        self.device = torch.cuda.get_device_name(0) if cuda else "CPU"
        self.InputError, self.read_picture = self.pipe.InputError, self.pipe.read_picture
        self.file_kind, self.to_json = self.pipe.file_kind, self.pipe.to_json
        self._one = threading.Lock()  # a request that was cancelled may still be in its last step

    @property
    def is_demonstration(self) -> bool:
        """Whether the checkpoint saw simple forgeries only."""
        seen = self.pipe.model.config.seen_methods
        return bool(seen) and set(seen) <= _SIMPLE_METHODS

    def operating_points(self, level: str) -> list[str]:
        """Return the names of the thresholds that a "frame", or a "video" and its frames, can be judged by."""
        calibration = self.pipe.model.config.calibration or {}
        there = [calibration.get(each, {}).get("thresholds", {}) for each in dict.fromkeys(("frame", level))]
        return [name for name in there[-1] if all(thresholds.get(name) is not None for thresholds in there)]

    def events(self, item: Any, **options: Any) -> Iterator[dict[str, Any]]:
        """Yield what `stream` of the pipeline yields, and end what takes too long.

        The model's time is shared step by step: a picture waits for a frame of another one's video, not for all.
        """
        started = time.monotonic()
        limits = {"most_pixels": MOST_PIXELS, "most_seconds": MOST_SECONDS, "most_frames": MOST_FRAMES}
        with closing(self.pipe.stream(item, **limits, **options)) as events:
            while True:
                with self._one:
                    event = next(events, None)
                if event is None:
                    return
                if event["event"] == "progress" and time.monotonic() - started > MOST_REQUEST_SECONDS:
                    raise self.InputError(
                        f"This took longer than {MOST_REQUEST_SECONDS} s: choose fewer frames, or a smaller file."
                    )
                yield event


# ------------------------------------------------------------------------------------------------------ what is shown

WORDS = {
    "flagged": "Flagged as forged",
    "inconclusive": "Inconclusive",
    "not_flagged": "Not flagged",
    "abstained": "No score",
}
MEANS = {
    "flagged": "The score p_fake is at or above the threshold.",
    "inconclusive": "The score p_fake lies in a range where real and forged faces both score. The model cannot tell.",
    "not_flagged": "The score p_fake is below the threshold.",
    "abstained": "The model gives no score: there is no face, or it is too small, too blurred, turned too far away, "
    "or unlike the training data. The sentence above says which.",
}
DOES_NOT_MEAN = {
    "flagged": "It is no proof. Real pictures are flagged too, most often those of cameras, compression and people "
    "that were not in the training data. Accuse nobody because of it.",
    "inconclusive": "It does not mean half forged, and it is no reason for suspicion.",
    "not_flagged": "It does not mean real. Forgeries by methods that the model never saw often pass, and so does "
    "whatever was forged outside of the face.",
    "abstained": "It does not mean real, and it does not mean forged. A larger or sharper picture may get a score.",
}
_FORGED, _REAL = (123, 50, 148), (0, 133, 116)  # of evidence; verdicts have other colours


def _escape(text: Any) -> str:
    return html.escape(str(text), quote=True)


def _data_url(picture: np.ndarray, side: int, **how: Any) -> str:
    """Return a picture as an address that holds it, scaled down to a side, and without a word about its origin."""
    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, **how)
    return f"data:image/{how['format'].lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _evidence_image(face: dict[str, Any]) -> str:
    """Return the map of evidence as an SVG image that covers the crop: purple for a forgery, green against it."""
    if face["evidence"] is None:
        return ""
    rows, columns = face["evidence"].shape
    smooth = Image.fromarray(face["evidence"].astype(np.float32)).resize((columns * 8, rows * 8), Image.BILINEAR)
    values = np.asarray(smooth)
    pixels = np.empty((*values.shape, 4), np.uint8)
    pixels[..., :3] = np.where(values[..., None] > 0, _FORGED, _REAL)
    pixels[..., 3] = np.round(np.abs(np.tanh(values / 2)) * 255)
    (x, y), (right_x, right_y), _, (down_x, down_y) = face["evidence_box"]
    matrix = (right_x - x, right_y - y, down_x - x, down_y - y, x, y)
    return (
        f'<image class="dcl-evidence" href="{_data_url(pixels, 512, format="PNG")}" width="1" height="1" '
        f'preserveAspectRatio="none" transform="matrix({" ".join(f"{number:.4f}" for number in matrix)})"/>'
    )


@dataclass(frozen=True)
class Shown:
    """A picture as it is shown: scaled down, and small enough to keep until the answer is there.

    Attributes:
        url: an address that holds it.
        width: of the picture itself, in pixels.
        height: of the picture itself, in pixels.
    """

    url: str
    width: int
    height: int

    @classmethod
    def of(cls, picture: np.ndarray, side: int) -> "Shown":
        """Scale a picture, RGB, uint8 (height, width, 3), down to its longest side in pixels."""
        return cls(_data_url(picture, side, format="WEBP", quality=80), picture.shape[1], picture.shape[0])


def _marked_picture(picture: Shown, faces: list[tuple[int, dict[str, Any]]], caption: str) -> str:
    """Return a picture with its faces boxed, named and overlaid with evidence.

    Args:
        picture: what is shown.
        faces: number and record of each; a frame has the verdict of its person, and a score of its own.
        caption: what a screen reader says.
    """
    width, height = picture.width, picture.height
    marks, tags = "", ""
    for number, face in faces:
        left, top, right, bottom = face["box"]
        marks += _evidence_image(face)
        marks += (
            f'<rect class="dcl-box {face["verdict"]}" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
            f'height="{bottom - top:.1f}"/>'
        )
        value = ""
        if face["p_fake"] is not None:  # a frame has the verdict of its person, and a score of its own
            value = f" {face['p_fake']:.3f}" if "face" in face else f" ({face['p_fake']:.3f} here)"
        place = f"left:{100 * min(max(left / width, 0), 0.8):.2f}%;top:{100 * min(max(top / height, 0.06), 1):.2f}%"
        tags += (
            f'<span class="dcl-tag {face["verdict"]}" style="{place}">{number}: {WORDS[face["verdict"]]}{value}</span>'
        )
    return (
        f'<div class="dcl-picture" role="img" aria-label="{_escape(caption)}" style="max-width:{width * 4}px">'
        f'<img alt="" src="{picture.url}" width="{width}" height="{height}">'
        f'<svg aria-hidden="true" viewBox="0 0 {width} {height}" preserveAspectRatio="none">{marks}</svg>{tags}</div>'
    )


def _page(result: dict[str, Any], body: str, evidence: bool) -> str:
    """Return what is shown of a result: the verdict, its pictures, and what it means."""
    verdict, rate, means = result["verdict"], result["expected_fpr"], MEANS[result["verdict"]]
    if verdict == "flagged" and rate["value"] is not None:
        means += (
            f" In the validation data, at most {100 * rate['value']:.2g} % of the real ones score this high. For new "
            f"people, {100 * rate['low']:.1f} to {100 * rate['high']:.1f} % are plausible (95 % interval)."
        )
    notes = "".join(f'<p class="dcl-small">{_escape(note)}</p>' for note in result.get("notes", ()))
    slider = (
        '<label class="dcl-slider">Evidence shown over the faces'
        '<input type="range" min="0" max="100" value="60" data-evidence></label>'
        '<p class="dcl-small dcl-scale">towards real <i></i> towards forged</p>'
        '<p class="dcl-small">Each area pushes p_fake one way or the other; stronger colour, stronger influence.</p>'
    )
    return (
        f'<section class="dcl" aria-label="Result"><div class="dcl-verdict {verdict}" role="status">'
        f"<h2>{WORDS[verdict]}</h2><p>{_escape(result['sentence'])}</p>{notes}</div>{body}"
        f"{slider if evidence else ''}"
        f'<div class="dcl-means"><div><h3>What this means</h3><p>{means}</p></div>'
        f"<div><h3>What it does not mean</h3><p>{DOES_NOT_MEAN[verdict]}</p></div></div></section>"
    )


def show_picture(picture: np.ndarray, result: dict[str, Any]) -> str:
    """Return the page about a picture.

    Args:
        picture: RGB, uint8 (height, width, 3).
        result: the pipeline's.
    """
    faces = [(face["face"], face) for face in result["faces"]]
    body = _marked_picture(Shown.of(picture, SHOWN_SIDE), faces, f"The picture. {result['sentence']}")
    if len(faces) > 1:
        items = "".join(f"<li>{_escape(face['sentence'])}</li>" for _, face in faces)
        body += f'<ol class="dcl-list">{items}</ol>'
    return _page(result, body, any(face["evidence"] is not None for _, face in faces))


def show_video(result: dict[str, Any], frames: dict[int, Shown]) -> str:
    """Return the page about a video.

    Args:
        result: the pipeline's.
        frames: what its frames show, by their numbers.
    """
    faces: dict[int, list[tuple[int, dict[str, Any]]]] = {}
    for person in result["people"]:
        for face in person["frames"]:
            faces.setdefault(face["frame"], []).append((person["person"], face))
    numbers = sorted(faces)
    places = {number: place for place, number in enumerate(numbers)}
    first = min((moment["frame"] for person in result["people"] for moment in person["moments"][:1]), default=None)
    start = places.get(first, 0)
    figures = ""
    for number in numbers:
        words = f"{faces[number][0][1]['time']:.2f} s. " + " ".join(
            f"Person {person}: {WORDS[face['verdict']]}"
            + (f" (p_fake {face['p_fake']:.3f} in this frame)." if face["p_fake"] is not None else ".")
            for person, face in faces[number]
        )
        figures += (
            f'<figure data-frame="{places[number]}" data-words="{_escape(words)}"'
            f"{'' if places[number] == start else ' hidden'}>"
            f"{_marked_picture(frames[number], faces[number], words)}"
            f"<figcaption>{words}</figcaption></figure>"
        )
    people = ""
    for person in result["people"]:
        moments = {moment["frame"]: moment for moment in reversed(person["moments"])}  # of two in one frame, the first
        jumps = "".join(
            f'<button type="button" data-jump="{places[frame]}">'
            f"{moment['why'].capitalize()} of person {person['person']}: {moment['time']:.2f} s</button>"
            for frame, moment in sorted(moments.items())
        )
        sentence = _escape(person["sentence"]) if len(result["people"]) > 1 else ""  # of one it stands above
        people += f"<li>{sentence}{jumps}</li>" if sentence or jumps else ""
    body = ""
    if figures:
        body = (
            f'<div class="dcl-frames">{figures}</div>{_timeline(result, places)}'
            f'<label class="dcl-slider">Frame<input type="range" min="0" max="{len(numbers) - 1}" value="{start}" '
            f'step="1" data-scrub></label><ul class="dcl-list">{people}</ul>'
        )
    return _page(result, body, any(person["p_fake"] is not None for person in result["people"]))


def _timeline(result: dict[str, Any], places: dict[int, int]) -> str:
    """Return a chart of p_fake over time, a line a person, whose points lead to their frames."""
    width, height, edge, below = 600, 170, 12, 20
    floor = height - edge - below  # where p_fake is 0; frames without a score stand below it
    duration = max([result["duration"] or 0, *(face["time"] for p in result["people"] for face in p["frames"]), 1e-6])

    def at(face: dict[str, Any]) -> tuple[float, float]:
        y = floor + below if face["p_fake"] is None else floor - face["p_fake"] * (floor - edge)
        return edge + face["time"] / duration * (width - 2 * edge), y

    drawn = ""
    for person in result["people"]:
        scored = [face for face in person["frames"] if face["p_fake"] is not None]
        dash = ("", "6 4", "2 3")[(person["person"] - 1) % 3]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, scored))
        drawn += f'<polyline class="dcl-line" stroke-dasharray="{dash}" points="{line}"/>'
        for face in person["frames"]:
            x, y = at(face)
            drawn += (
                f'<circle class="dcl-point {face["verdict"]}" data-jump="{places[face["frame"]]}" cx="{x:.1f}" '
                f'cy="{y:.1f}" r="5"><title>{face["time"]:.2f} s</title></circle>'
            )
    # Where the verdict changes: one line, or those at both ends of the inconclusive range.
    ends = [result["threshold"]] if result["band"]["low"] is None else [result["band"]["low"], result["band"]["high"]]
    lines = "".join(
        f'<line class="dcl-threshold" x1="{edge}" x2="{width - edge}" y1="{y:.1f}" y2="{y:.1f}"/>'
        for y in (floor - at * (floor - edge) for at in dict.fromkeys(ends))
    )
    words = f"p_fake of each frame over {duration:.1f} seconds, from 0 at the bottom to 1 at the top"
    at = " and ".join(f"{value:.2f}" for value in dict.fromkeys(ends))
    return (
        f'<figure class="dcl-chart"><svg role="img" aria-label="{words}" viewBox="0 0 {width} {height}">'
        f'<path class="dcl-axis" d="M{edge} {edge}V{floor}H{width - edge}"/>'
        f'{lines}<line class="dcl-cursor" y1="0" y2="{height}"/>{drawn}</svg>'
        f"<figcaption>{words}. Dashed: {at}, where the verdict on the mean changes. Select a point to see its frame. "
        "Points below the axis have no score.</figcaption></figure>"
    )


def show_progress(done: int, total: int | None) -> str:
    """Return the page while a video is read, or a picture, which has no total."""
    words = "Looking at the picture" if total is None else f"Looking at the video: {done} of {total} frames"
    how_far = "" if total is None else f' max="{total}" value="{done}"'
    return f'<section class="dcl" role="status"><label>{words}<progress{how_far}></progress></label></section>'


def show_refusal(sentence: str) -> str:
    """Return the page about a file that was refused."""
    return (
        '<section class="dcl"><div class="dcl-verdict abstained" role="alert"><h2>Could not analyze</h2>'
        f"<p>{_escape(sentence)}</p></div></section>"
    )


CSS = """
.dcl { --evidence: .6; --red: #c92a2a; --amber: #b87700; --blue: #1864ab; --grey: #5c636a; --verdict: var(--grey);
  font-size: 1rem; }
.dcl .flagged { --verdict: var(--red); } .dcl .inconclusive { --verdict: var(--amber); }
.dcl .not_flagged { --verdict: var(--blue); } .dcl .abstained { --verdict: var(--grey); }
.dcl h2, .dcl h3 { margin: 0; font-size: 1.05rem; } .dcl p { margin: .25rem 0; }
.dcl-verdict { border-left: .5rem solid var(--verdict); padding: .5rem .9rem; margin-bottom: .8rem;
  background: var(--background-fill-secondary); border-radius: 4px; }
.dcl-picture { position: relative; line-height: 0; margin: 0 auto; }
.dcl-picture img { width: 100%; height: auto; border-radius: 4px; }
.dcl-picture svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: hidden; }
.dcl-evidence { opacity: var(--evidence); }
.dcl-box { fill: none; stroke: var(--verdict); stroke-width: 3px; vector-effect: non-scaling-stroke; }
.dcl-box.abstained { stroke-dasharray: 6 4; }
.dcl-tag { position: absolute; transform: translateY(-100%); padding: 0 .4em; background: #5c636a;
  color: #fff; font-size: .8rem; line-height: 1.4rem; border-radius: 3px 3px 0 0; white-space: nowrap; }
.dcl-tag.flagged { background: #c92a2a; } .dcl-tag.not_flagged { background: #1864ab; }
.dcl-tag.inconclusive { background: #c47f00; color: #111; }
.dcl-scale i { display: inline-block; width: 9rem; height: .8rem; margin: 0 .4rem; vertical-align: middle;
  background: linear-gradient(90deg, rgb(0, 133, 116), #fff, rgb(123, 50, 148)); border-radius: 2px; }
.dcl-slider { display: flex; flex-wrap: wrap; gap: .2rem .8rem; align-items: center; margin: .7rem 0 .2rem; }
.dcl-slider input { flex: 1 1 12rem; min-height: 2rem; accent-color: var(--color-accent); }
.dcl-small, .dcl figcaption { font-size: .9rem; color: var(--body-text-color); }
.dcl-frames figure { margin: 0; } .dcl-frames figcaption { margin-top: .3rem; min-height: 2.8em; }
.dcl-chart { margin: .6rem 0 0; } .dcl-chart svg { width: 100%; height: auto; }
.dcl-axis, .dcl-line, .dcl-cursor, .dcl-threshold { fill: none; stroke: var(--body-text-color); stroke-width: 1.5px; }
.dcl-line { stroke-width: 2px; } .dcl-cursor { stroke: var(--color-accent); stroke-width: 3px; opacity: .7; }
.dcl-threshold { stroke-dasharray: 8 5; } .dcl-point { cursor: pointer; fill: var(--verdict); }
.dcl-list { margin: .6rem 0; padding: 0; list-style: none; } .dcl-list li { margin: .4rem 0; }
.dcl button { margin: .2rem .5rem .2rem 0; padding: .3rem .7rem; min-height: 2rem; border-radius: 4px;
  border: 1px solid var(--border-color-primary); background: var(--button-secondary-background-fill);
  color: var(--button-secondary-text-color); }
.dcl :focus-visible { outline: 3px solid var(--color-accent); outline-offset: 2px; }
.dcl-means { display: flex; flex-wrap: wrap; gap: .8rem; margin-top: 1rem; }
.dcl-means > div { flex: 1 1 15rem; background: var(--background-fill-secondary); padding: .6rem .9rem;
  border-radius: 4px; }
.dcl progress { width: 100%; height: 1rem; accent-color: var(--color-accent); }
.dark .dcl { --red: #e03131; --amber: #c47f00; --blue: #1c7ed6; --grey: #868e96; }
"""

SCRIPT = """
const show = (place) => {
  const scrub = element.querySelector('[data-scrub]');
  for (const figure of element.querySelectorAll('[data-frame]')) {
    figure.hidden = Number(figure.dataset.frame) !== place;
    if (!figure.hidden && scrub) scrub.setAttribute('aria-valuetext', figure.dataset.words);
  }
  if (scrub) scrub.value = place;
  const point = element.querySelector(`circle[data-jump="${place}"]`);
  const cursor = element.querySelector('.dcl-cursor');
  if (point && cursor) for (const end of ['x1', 'x2']) cursor.setAttribute(end, point.getAttribute('cx'));
};
element.addEventListener('input', (event) => {
  if (event.target.matches('[data-scrub]')) show(Number(event.target.value));
  if (event.target.matches('[data-evidence]'))
    event.target.closest('.dcl').style.setProperty('--evidence', event.target.value / 100);
});
element.addEventListener('click', (event) => {
  const jump = event.target.closest('[data-jump]');
  if (jump) show(Number(jump.dataset.jump));
});
watch('value', () => {
  const scrub = element.querySelector('[data-scrub]');
  if (scrub) show(Number(scrub.value));
});
"""

# ----------------------------------------------------------------------------------------------------------- requests


def _log(what: str, error: BaseException) -> None:
    """Log that something failed, and where in the code, but nothing of what a user sent."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    place = "" if at is None else f" at {at.tb_frame.f_code.co_filename}:{at.tb_lineno}"
    logger.error("%s failed: %s%s", what, type(error).__name__, place)


def _where(operating_point: Any, threshold: Any) -> dict[str, Any]:
    """Return where verdicts change: at a threshold if there is one, else at an operating point, else by default."""
    if threshold:  # an empty number field sends 0
        return {"threshold": threshold}
    return {} if operating_point == "default" else {"operating_point": operating_point}


class Requests:
    """What the page and the API ask for; every failure is a sentence, and no file is named in a log.

    Args:
        detector: who answers.
    """

    def __init__(self, detector: Detector):
        self.detector = detector

    def detect_image(
        self, file: Path | None, operating_point: str | None = None, threshold: float | None = None
    ) -> Iterator[tuple[Any, Any]]:
        """Score each face of a picture, and say whether it is flagged as forged, and which areas led to that.

        Args:
            file: a JPEG, PNG, WebP, BMP or GIF, up to 20 MB and 40 million pixels.
            operating_point: which of the checkpoint's thresholds decides.
            threshold: a number between 0 and 1 that decides in place of the checkpoint's thresholds.

        Returns:
            The result as a page in HTML, and as JSON: the verdict ("flagged", "inconclusive", "not_flagged" or
            "abstained") with its sentence, the thresholds, the share of real faces that reach them (`expected_fpr`),
            and for each face its box, p_fake (calibrated, 0 to 1), verdict and evidence.
        """
        yield from self._answer(self._look_at_picture, file, _where(operating_point, threshold))

    def detect_video(
        self,
        file: Path | None,
        num_frames: int = 16,
        operating_point: str | None = None,
        threshold: float | None = None,
    ) -> Iterator[tuple[Any, Any]]:
        """Score each person in a video, and say whether they are flagged as forged, and when and where that was seen.

        Args:
            file: an MP4, MOV, WebM, MKV or AVI, up to 100 MB and 300 seconds.
            num_frames: how many frames are looked at, evenly spaced: 8, 16 or 32.
            operating_point: which of the checkpoint's thresholds decides.
            threshold: a number between 0 and 1 that decides in place of the checkpoint's thresholds.

        Returns:
            The result as a page in HTML, and as JSON: the verdict ("flagged", "inconclusive", "not_flagged" or
            "abstained") with its sentence, the thresholds, the share of real videos that reach them (`expected_fpr`),
            and for each person the mean p_fake, the moments worth a look, and every frame with its box.
        """
        yield from self._answer(self._look_at_video, file, _where(operating_point, threshold), num_frames)

    def _answer(self, look: Any, file: Path | None, *options: Any) -> Iterator[tuple[Any, Any]]:
        try:
            if file is None:
                raise self.detector.InputError("There is no file yet: choose one, or take an example.")
            if not file.is_file():
                raise self.detector.InputError("This upload was deleted, as all are soon after use: choose it again.")
            yield from look(file, *options)
            return
        except self.detector.InputError as error:
            # The user knows the file by its name only, and cannot change the limits.
            sentence = re.sub(r", or raise most_\w+", "", str(error).replace(str(file), file.name if file else ""))
        except Exception as error:
            _log("a request", error)
            sentence = "Something failed here, and it is not known why. Try another file."
        yield show_refusal(sentence), None
        raise gr.Error(sentence, title="Could not analyze", print_exception=False)

    def _check_kind(self, file: Path, wanted: str) -> None:
        """Refuse a file whose content is not what is wanted, or not what its name says."""
        found = self.detector.file_kind(file)
        found = found if found == "video" else "picture" if found.isupper() else found
        if wanted == "picture" and found == "video":
            raise self.detector.InputError(f"{file} is a video: use the tab Video.")
        if wanted == "video" and found == "picture":
            raise self.detector.InputError(f"{file} is a picture: use the tab Picture.")
        if wanted == "video" and found != "video":
            what = "no video" if found == "no picture" else found
            raise self.detector.InputError(f"{file} is {what}: give a video, such as an MP4, MOV, WebM, MKV or AVI.")
        named = (mimetypes.guess_type(file.name)[0] or "").partition("/")[0].replace("image", "picture")
        if {found, named} == {"picture", "video"}:
            raise self.detector.InputError(f"{file} is a {found}, but its name is that of a {named}: rename it.")

    def _look_at_picture(self, file: Path, where: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
        self._check_kind(file, "picture")
        if file.stat().st_size > MOST_PICTURE_BYTES:
            raise self.detector.InputError(f"{file} has more than {MOST_PICTURE_BYTES >> 20} MB: make it smaller.")
        picture = self.detector.read_picture(file, MOST_PIXELS)
        # The pipeline reads the file itself: only then it can note what was converted or left out.
        for event in self.detector.events(file, **where):
            if event["event"] == "progress":
                yield show_progress(event["done"], event["total"]), gr.skip()
            else:
                result = {**event["result"], "name": file.name}
                yield show_picture(picture, result), self.detector.to_json(result, evidence=True)

    def _look_at_video(self, file: Path, where: dict[str, Any], num_frames: Any) -> Iterator[tuple[Any, Any]]:
        if str(num_frames) not in map(str, NUM_FRAMES):
            raise self.detector.InputError(f"num_frames is {num_frames!r}: choose one of {NUM_FRAMES}.")
        self._check_kind(file, "video")
        frames: dict[int, Shown] = {}
        for event in self.detector.events(file, num_frames=int(num_frames), **where):
            if event["event"] == "progress":
                if event["image"] is not None:
                    frames[event["frame"]] = Shown.of(event["image"], SHOWN_FRAME_SIDE)
                yield show_progress(event["done"], event["total"]), gr.skip()
            else:
                result = {**event["result"], "name": file.name}
                yield show_video(result, frames), self.detector.to_json(result)


# ----------------------------------------------------------------------------------------------------------- the page

POINTS = {
    "default": "the default, with an inconclusive range",
    "eer": "equal error rates",
    "fpr_0.05": "at most 5 % of real ones flagged",
    "fpr_0.01": "at most 1 % of real ones flagged",
}
DEMONSTRATION = (
    "**This is a demonstration.** Its checkpoint was trained on a few photographs forged by simple methods. "
    "It is not fit to judge any picture of the world."
)
PRIVACY = (
    f"Files go after use, within a minute of the end of your visit, and are never logged. Limits: pictures of "
    f"{MOST_PICTURE_BYTES >> 20} MB and {MOST_PIXELS // 1_000_000} million pixels, videos of "
    f"{MOST_UPLOAD_BYTES >> 20} MB and {MOST_SECONDS // 60} minutes, {MOST_REQUEST_SECONDS // 60} minutes of work, "
    f"{MOST_WAITING} waiting."
)


def build(detector: Detector) -> gr.Blocks:
    """Return the page."""
    requests = Requests(detector)
    with gr.Blocks(title="Face forgery detection (DCL)", analytics_enabled=False) as demo:
        gr.Markdown(
            "# Face forgery detection\nFinds the faces in a picture or video, flags those that look forged, and shows "
            "how sure the model is and which areas led to that."
            + (f"\n\n{DEMONSTRATION}" if detector.is_demonstration else "")
        )
        with gr.Tabs():
            _tab("Picture", "image", requests.detect_image, [], detector.operating_points("frame"))
            frames = as_given(gr.Radio(NUM_FRAMES, value=16, label="Frames to look at", render=False))
            _tab("Video", "video", requests.detect_video, [frames], detector.operating_points("video"))
        gr.Markdown(f"{PRIVACY} Runs on: {detector.device}.")
    for function in demo.get_config_file()["dependencies"]:
        Gate.values |= dict.fromkeys((function["id"], function["api_name"]), len(function["inputs"]))
    return demo.queue(max_size=MOST_WAITING, default_concurrency_limit=1, api_open=False)


def _tab(name: str, kind: str, detect: Any, options: list[Any], points: list[str]) -> None:
    """Lay out one tab: a file and options at the left, the answer at the right."""
    # A line for each kind, first come first: what is ahead of a request then takes about as long as itself.
    work = {"concurrency_id": kind, "concurrency_limit": 1, "show_progress": "minimal"}
    with gr.Tab(name), gr.Row():
        with gr.Column(scale=2, min_width=300):
            file = upload_input(label=f"{name} to look at", file_types=[kind], height=140, elem_id=f"{kind}-file")
            for option in options:
                option.render()
            point = as_given(
                gr.Radio(
                    [(POINTS[each], each) for each in ("default", *points)],
                    value="default",
                    label="Threshold",
                    visible=bool(points),
                )
            )
            own = as_given(gr.Number(label="Your own threshold (above 0 and below 1; 0 for none)", step=0.01))
            with gr.Row():
                start = gr.Button(f"Look at the {name.lower()}", variant="primary", min_width=120)
                cancel = gr.Button("Cancel", min_width=80)
            examples = [
                (path, gr.Button(f"Example: {path.stem.replace('_', ' ')}", size="md", min_width=120))
                for path in sorted(EXAMPLES.glob("*"))
                if (mimetypes.guess_type(path)[0] or "").startswith(kind)
            ]
        with gr.Column(scale=3, min_width=320):
            page = gr.HTML(
                f'<p class="dcl">Choose a {name.lower()}, or take an example.</p>',
                label="Page",
                js_on_load=SCRIPT,
                elem_id=f"{kind}-result",
            )
            with gr.Accordion("Numbers (JSON)", open=False):
                numbers = gr.JSON(label="Numbers", show_label=False)
    options = [*options, point, own]
    inputs, outputs = [file, *options], [page, numbers]
    runs = [start.click(detect, inputs, outputs, api_name=f"detect_{kind}", **work)]
    runs.append(file.upload(detect, inputs, outputs, api_visibility="private", **work))
    for path, button in examples:
        runs.append(button.click(partial(detect, path), options, outputs, api_visibility="private", **work))
    cancel.click(None, cancels=runs)


def _return_memory() -> None:
    """Have malloc give back what large pictures took, and not keep a heap for each of Gradio's threads."""
    with suppress(OSError, AttributeError):  # where the C library is another one
        for parameter, value in ((-8, 2), (-3, 32 << 20), (-1, 64 << 20)):  # arenas, mmap and trim thresholds
            ctypes.CDLL(None).mallopt(parameter, value)


def _limit_memory() -> None:
    """Let no file take the memory of the machine: libraries believe what it announces of itself."""
    with suppress(ImportError, OSError, ValueError):  # where the system is another one
        import resource

        taken = re.search(r"VmData:\s*(\d+) kB", Path("/proc/self/status").read_text())
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, ((int(taken[1]) << 10) + MOST_MEMORY, hard))


def main(name: str) -> None:
    """Serve the page until it is stopped.

    Args:
        name: folder or id of the checkpoint.
    """
    _return_memory()
    logging.basicConfig(level=logging.WARNING)
    tempfile.tempdir = str(UPLOADS)  # for uploads on their way, too
    # Gradio prints what fails outside of our functions with what the client sent in it.
    traceback.print_exc = lambda *_, **__: _log("a request", sys.exc_info()[1])
    try:
        detector = Detector(name)
    except Exception as error:  # of the Hub, of the files, or a checkpoint without the pipeline
        why = (str(error).strip().splitlines() or [type(error).__name__])[0].removesuffix(".")
        sys.exit(f"error: Model {name} cannot be loaded ({why}). Set DCL_MODEL to a DCL checkpoint.")
    demo = build(detector)
    threading.Thread(target=sweep_for_ever, args=[demo._queue], daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # the uploads are removed at exit
    try:
        demo.launch(
            # That one, or none, if it was asked for: what stands before the app knows no other.
            server_port=int(_PORT) if "GRADIO_SERVER_PORT" in os.environ else None,
            app_kwargs={"middleware": [Middleware(Gate)], "docs_url": None, "redoc_url": None},
            css=CSS,
            theme=gr.themes.Default(primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            max_file_size=MOST_UPLOAD_BYTES,
            max_threads=8,
            state_session_capacity=200,
            run_history=False,
            footer_links=["api"],
            ssr_mode=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError:
        sys.exit(f"error: the port {_PORT} cannot be opened: set GRADIO_SERVER_PORT to a free one.")
    seal()
    if not torch.cuda.is_available():  # whose driver reserves more than it takes
        _limit_memory()
    print(f"The app is at {demo.local_url}", flush=True)
    demo.block_thread()


if __name__ == "__main__":
    main(MODEL)
