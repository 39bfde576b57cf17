"""What stands between a client and Gradio: limits, and a middleware that checks each request.

Import this module before Gradio, which reads its environment variables when it is imported.
"""

import ctypes
import json
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from web.uploads import Use, log_failure, uploads

MOST_PICTURE_BYTES = 20 << 20
MOST_UPLOAD_BYTES = 100 << 20
MOST_JSON_BYTES = 64 << 10
MOST_PIXELS = 40_000_000  # of a picture or a frame, counted before it is decoded
MOST_SECONDS = 300  # of a video
MOST_FRAMES = 36_000  # of a video: 120 a second
MOST_MEMORY = 4 << 30  # bytes that all requests together may take, beside what the checkpoint takes
MOST_REQUEST_SECONDS = 120
MOST_WAITING = 24  # requests

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
        b"img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self' blob:; "
        b"object-src 'none'; base-uri 'self'; form-action 'self'; "
        b"frame-ancestors 'self' https://huggingface.co https://*.hf.space",
    ),
)
_CLOSED_HERE = "This address is not available. Use the page, or the API that it describes."
_NO_ANSWER = "No such answer. Use the API that the page describes."
_NOT_HERE = "This file is not here. Uploads are deleted soon after use. Choose it again."


class _RefusalError(Exception):
    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


class Function(NamedTuple):
    """How a function of the page may be called: with how many values, and whether without the queue."""

    values: int
    direct: bool


class Post(NamedTuple):
    """A POST that was checked.

    Attributes:
        receive: what Gradio receives it from.
        length: bytes of an upload.
        paths: of the uploads that it names.
        session: of its page or program.
        queued: whether it is answered later: Gradio's answer has the id of an event.
        cancels: the id of the event that it cancels.
    """

    receive: Any
    length: int = 0
    paths: Sequence[str] = ()
    session: str | None = None
    queued: bool = False
    cancels: str | None = None


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
        post, uses, status, answer = Post(receive), [], 0, b""

        async def send_with_headers(message: dict) -> None:
            nonlocal status, answer
            if message["type"] == "http.response.start":
                status = message["status"]
                begun.extend(value for _, value in message.get("headers", []))
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            elif uses and post.queued:  # before the client can cancel it
                answer += message.get("body", b"")
                with suppress(ValueError, TypeError, KeyError):
                    uploads.queued(uses, json.loads(answer)["event_id"])
            await send(message)

        async def refuse(refusal: _RefusalError) -> None:
            body = json.dumps({"detail": str(refusal)}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send_with_headers({"type": "http.response.start", "status": refusal.status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

        path = scope["path"].removeprefix(scope.get("root_path", ""))
        try:
            if scope["method"] == "POST":
                post = await self._checked_post(path, dict(scope["headers"]), receive)
                uses = _use(post)
            else:
                self._check_get(path)
        except _RefusalError as refusal:
            await refuse(refusal)
            return
        heartbeat = _HEARTBEAT.fullmatch(path)
        with uploads.page(heartbeat[1]) if heartbeat else uploads.coming(post.length):
            try:
                await self.app(scope, post.receive, send_with_headers)
            except Exception as error:
                log_failure("a request", error)
                if any(value.startswith(b"text/event-stream") for value in begun):
                    last = f"event: error\ndata: {json.dumps(_NO_ANSWER)}\n\n".encode()
                    await send({"type": "http.response.body", "body": last})
                elif not begun:
                    await refuse(_RefusalError(500, _NO_ANSWER))
            finally:
                accepted = 200 <= status < 300
                if uses and not (accepted and post.queued):  # turned away, or answered already
                    uploads.forget(uses)
                if accepted and post.cancels is not None:
                    uploads.cancel(post.cancels)

    @staticmethod
    def _check_get(path: str) -> None:
        file = _FILE.fullmatch(path)
        if _CLOSED.fullmatch(path) or (file and not uploads.owns(file[1])):
            raise _RefusalError(403, _CLOSED_HERE)

    @staticmethod
    async def _checked_post(path: str, headers: dict[bytes, bytes], receive: Any) -> Post:
        """Check a POST and return what is to be known of it."""
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
            return Post(receive, int(length))
        if int(length) > MOST_JSON_BYTES:
            raise _RefusalError(413, "The request is too long. Upload the file, and send only its path.")
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        data, paths = _checked_json(body)
        queued, cancels = False, None
        if post[3]:  # without the queue; "predict" leaves it to the body to name the function
            called = data.get("fn_index") if post[3] == "predict" else post[3]
            if type(called) not in (int, str) or not Gate.functions.get(called, Function(0, False)).direct:
                raise _RefusalError(403, _CLOSED_HERE)
            _check_values(data, called)
            if post[3] != "predict":
                data.pop("fn_index", None)
        elif post[1] == "queue/join" or post[2]:
            if not (post[2] or "").startswith("v2/"):  # which takes values by their names
                _check_values(data, post[2] or data.get("fn_index"))
            queued = True
            if data.get("session_hash") is None:  # Gradio would choose one only when the request is queued
                data["session_hash"] = secrets.token_urlsafe(16)
        elif post[1] == "cancel":
            cancels = data.get("event_id")
        first = iter([{"type": "http.request", "body": json.dumps(data).encode(), "more_body": False}])

        async def receive_checked() -> dict:
            return next(first, None) or await receive()

        return Post(receive_checked, 0, paths, data.get("session_hash"), queued, cancels)


def _checked_json(body: bytes) -> tuple[dict, list[str]]:
    """Return a request's JSON, with no address in it, and the paths in it, which are of uploads and no others."""
    try:
        data = json.loads(body)
        paths, rest = list(_paths(data)), _without_addresses(data)
    except (ValueError, RecursionError):
        raise _RefusalError(400, "The request is not JSON. See the API that the page describes.") from None
    if not isinstance(data, dict):
        raise _RefusalError(400, "The request is not a JSON object. See the API that the page describes.")
    if not all(map(uploads.owns, paths)):
        raise _RefusalError(403, _NOT_HERE)
    return rest, paths


def _use(post: Post) -> list[Use]:
    try:
        return uploads.use(post.paths, post.session)
    except OSError:  # it was deleted in between
        raise _RefusalError(403, _NOT_HERE) from None


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
