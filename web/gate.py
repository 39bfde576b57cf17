"""What stands between a client and Gradio: limits, the folder of uploads, and a middleware that checks each request.

Import this module before Gradio, which reads its environment variables when it is imported.
"""

import atexit
import ctypes
import json
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

UPLOADS = Path(tempfile.mkdtemp(prefix="dcl-app-")).resolve()
atexit.register(shutil.rmtree, UPLOADS, ignore_errors=True)
os.environ |= {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_TEMP_DIR": str(UPLOADS),
    "GRADIO_ANALYTICS_MAX_EVENTS": "100",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": "100",
}

MOST_PICTURE_BYTES = 20 << 20
MOST_UPLOAD_BYTES = 100 << 20
MOST_FOLDER_BYTES = 4 << 30  # of all uploads and answers together
MOST_JSON_BYTES = 64 << 10
MOST_PIXELS = 40_000_000  # of a picture or a frame, counted before it is decoded
MOST_SECONDS = 300  # of a video
MOST_FRAMES = 36_000  # of a video: 120 a second
MOST_MEMORY = 4 << 30  # bytes that all requests together may take, beside what the checkpoint takes
MOST_REQUEST_SECONDS = 120
MOST_WAITING = 24  # requests

logger = logging.getLogger("dcl_face_forgery.app")


def log_failure(what: str, error: BaseException | None) -> None:
    """Log that something failed, and where in the code, but nothing of what a user sent."""
    at = error.__traceback__ if error else None
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    place = "" if at is None else f" at {at.tb_frame.f_code.co_filename}:{at.tb_lineno}"
    logger.error("%s failed: %s%s", what, type(error).__name__, place)


# ------------------------------------------------------------------------------------------------------------ uploads


class Uploads:
    """The files that visitors upload and the answers that are written for them, and when they are deleted.

    A file stays while a request that names it waits or runs. The last upload and answer of an open page stay for
    `longest` seconds at most. Every other file is deleted `grace` seconds after it was written.

    Args:
        folder: where the files are.
        grace: seconds.
        longest: seconds.
    """

    def __init__(self, folder: Path, grace: float = 30, longest: float = 600):
        self.folder, self.grace, self.longest = folder, grace, longest
        self._coming = 0  # bytes on their way
        self._open: Counter[str] = Counter()  # pages, by the hash of their session
        self._waiting: list[tuple[Path, str | None, float]] = []  # file, session, since when
        self._held: dict[tuple[str, str], tuple[Path, Path, float]] = {}  # session, kind: upload, answer, since when
        self._kept: set[Path] = set()

    def owns(self, path: Any) -> bool:
        """Whether this is the path of a file in the folder."""
        try:
            resolved = Path(path).resolve(strict=True)
        except (OSError, TypeError, ValueError):
            return False
        return resolved.is_relative_to(self.folder) and resolved.is_file()

    def keep(self) -> None:
        """Never delete what is here now: the examples."""
        self._kept |= set(self._files())

    def use(self, path: str, session: str | None) -> None:
        """Note that a request names a file; raises `OSError` if it is gone."""
        os.utime(path)
        self._waiting.append((Path(path).resolve(), session, time.monotonic()))

    def done(self, path: Path, session: str | None, kind: str, answer: Path) -> None:
        """Note that a request is answered: its page, if it is open, holds on to the upload and the answer's folder."""
        entry = next((each for each in self._waiting if each[0] == path.resolve()), None)
        if entry is not None:
            self._waiting.remove(entry)
        with suppress(OSError):
            os.utime(path)
        if session is not None and self._open[session] > 0:
            self._held[session, kind] = (path.resolve(), answer, time.monotonic())

    def leave(self, session: Any) -> None:
        """Forget which requests of a session wait: they were cancelled."""
        self._waiting = [each for each in self._waiting if each[1] is None or each[1] != session]

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
                self._held = {key: held for key, held in self._held.items() if key[0] != session}
                self.leave(session)

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
            with suppress(FileNotFoundError):  # it was deleted in between
                taken += file.stat().st_size
        return taken + length <= MOST_FOLDER_BYTES

    def sweep(self) -> None:
        """Delete every file that nothing holds and that is older than the grace."""
        now = time.monotonic()
        longest_wait = MOST_WAITING * MOST_REQUEST_SECONDS
        self._waiting = [each for each in self._waiting if now - each[2] < longest_wait]
        held = {
            place for *places, since in list(self._held.values()) if now - since < self.longest for place in places
        }
        held |= self._kept | {each[0] for each in self._waiting}
        for file in self._files():
            with suppress(OSError):  # another upload of the same content came in between
                if not {file, file.parent} & held and time.time() - file.stat().st_mtime > self.grace:
                    file.unlink()
                    if file.parent != self.folder:
                        file.parent.rmdir()

    def sweep_for_ever(self, every: float = 5) -> None:
        """Sweep from now on, in a thread, every so many seconds."""

        def sweeping() -> None:
            while True:
                time.sleep(every)
                try:
                    self.sweep()
                except Exception as error:
                    log_failure("sweeping", error)

        threading.Thread(target=sweeping, daemon=True).start()

    def _files(self) -> list[Path]:
        # A folder that is deleted in between is passed over.
        return [Path(place, name) for place, _, names in os.walk(self.folder) for name in names]


uploads = Uploads(UPLOADS)

# ----------------------------------------------------------------------------------------------------------- the gate

_API = "/gradio_api"
_POSTS = re.compile(rf"{_API}/(upload|queue/join|cancel|reset|call/(v2/\w+|\w+)|run/(\w+))/?")
_CLOSED = re.compile(rf"(?is)(/monitoring|{_API}/(proxy=|stream/|deep_link|dev/|vibe|runs|run-history)).*")
_FILE = re.compile(rf"{_API}/file[=/](.*)", re.DOTALL)
_HEARTBEAT = re.compile(rf"{_API}/heartbeat/([\w-]+)")
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
        b"style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' blob:; "
        b"worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
        b"frame-ancestors 'self' https://huggingface.co https://*.hf.space",
    ),
)
_CLOSED_HERE = "This address is not available. Use the page, or the API that it describes."
_NO_ANSWER = "There is no such answer. Use the API that the page describes."


class _RefusalError(Exception):
    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


class Function(NamedTuple):
    """How a function of the page may be called: with how many values, and whether without the queue."""

    values: int
    direct: bool


class Gate:
    """An ASGI middleware that lets through what the page needs, and nothing that leads to other files or hosts.

    Gradio fetches any address that a client writes in place of an upload's path, before it calls a function of the
    app. Here every path must be that of an upload, addresses are taken out, and what was checked is passed on.
    """

    #: By number and by name in the API; `learn` fills it in.
    functions: ClassVar[dict[int | str, Function]] = {}

    def __init__(self, app: Any):
        self.app = app

    @classmethod
    def learn(cls, config: dict[str, Any]) -> None:
        """Learn which functions there are.

        Args:
            config: `Blocks.get_config_file()`.
        """
        for each in config["dependencies"]:
            function = Function(len(each["inputs"]), each["queue"] is False and bool(each["inputs"]))
            cls.functions |= dict.fromkeys((each["id"], each["api_name"]), function)

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
                log_failure("a request", error)
                if any(value.startswith(b"text/event-stream") for value in begun):
                    last = f"event: error\ndata: {json.dumps(_NO_ANSWER)}\n\n".encode()
                    await send({"type": "http.response.body", "body": last})
                elif not begun:
                    await refuse(_RefusalError(500, _NO_ANSWER))

    @staticmethod
    def _check_get(path: str) -> None:
        file = _FILE.fullmatch(path)
        if _CLOSED.fullmatch(path) or (file and not uploads.owns(file[1])):
            raise _RefusalError(403, _CLOSED_HERE)

    @staticmethod
    async def _checked_post(path: str, headers: dict[bytes, bytes], receive: Any) -> tuple[Any, int]:
        """Check a POST; return from where its body can be received, and how many bytes of an upload it has."""
        post = _POSTS.fullmatch(path)
        if post is None:
            raise _RefusalError(403, _CLOSED_HERE)
        length = headers.get(b"content-length", b"")
        if not length.isdigit() or b"transfer-encoding" in headers:  # which would count, and not the length
            raise _RefusalError(411, "The request does not state its length. Send a Content-Length.")
        if post[1] == "upload":
            if int(length) > MOST_UPLOAD_BYTES:
                raise _RefusalError(413, f"Files may have up to {MOST_UPLOAD_BYTES >> 20} MB. Choose a smaller one.")
            if not uploads.room(int(length)):
                raise _RefusalError(503, "The server has no room for more files. Try again in a minute.")
            return receive, int(length)
        if int(length) > MOST_JSON_BYTES:
            raise _RefusalError(413, "The request is too long. Upload the file, and send only its path.")
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        data = _checked_json(body)
        if post[3]:  # without the queue; "predict" leaves it to the body to name the function
            called = data.get("fn_index") if post[3] == "predict" else post[3]
            if type(called) not in (int, str) or not Gate.functions.get(called, Function(0, False)).direct:
                raise _RefusalError(403, _CLOSED_HERE)
            _check_values(data, called)
            if post[3] != "predict":
                data.pop("fn_index", None)
        elif post[1] == "queue/join":
            _check_values(data, data.get("fn_index"))
        elif post[1] == "cancel":
            uploads.leave(data.get("session_hash"))
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
        raise _RefusalError(400, "The request is no JSON. See the API that the page describes.") from None
    if not isinstance(data, dict):
        raise _RefusalError(400, "The request is no JSON object. See the API that the page describes.")
    session = data.get("session_hash")
    try:
        for path in paths:
            if not uploads.owns(path):
                raise FileNotFoundError(path)
            uploads.use(path, session if isinstance(session, str) else None)
    except OSError:
        raise _RefusalError(
            403, "This file is not here. Uploads are deleted soon after use. Choose it again."
        ) from None
    return rest


def _check_values(data: dict, function: Any) -> None:
    """Refuse a call of an unknown function, given by its number or name, or with another number of values."""
    wanted = Gate.functions.get(function) if type(function) in (int, str) else None
    if wanted is None:
        raise _RefusalError(400, "There is no such function. See the API that the page describes.")
    values = data.get("data")
    if not (isinstance(values, list) and len(values) == wanted.values):
        raise _RefusalError(
            400, f"The request takes a list of {wanted.values} values. See the API that the page describes."
        )


def _paths(value: Any) -> Iterator[Any]:
    """Yield what every "path" in JSON data says."""
    if isinstance(value, dict):
        if value.get("path") is not None:
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _paths(item)


def _without_addresses(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_addresses(item) for name, item in value.items() if name != "url"}
    return [_without_addresses(item) for item in value] if isinstance(value, list) else value


# ------------------------------------------------------------------------------------------------------------- memory


def return_memory() -> None:
    """Have malloc give back what large pictures took, and not keep a heap for each of Gradio's threads."""
    with suppress(OSError, AttributeError):  # where the C library is another one
        for parameter, value in ((-8, 2), (-3, 32 << 20), (-1, 64 << 20)):  # arenas, mmap and trim thresholds
            ctypes.CDLL(None).mallopt(parameter, value)


def limit_memory() -> None:
    """Let no file take the memory of the machine: libraries believe what a file announces of itself."""
    with suppress(ImportError, OSError, ValueError):  # where the system is another one
        import resource

        taken = re.search(r"VmData:\s*(\d+) kB", Path("/proc/self/status").read_text())
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, ((int(taken[1]) << 10) + MOST_MEMORY, hard))
