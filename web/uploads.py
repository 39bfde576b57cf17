"""The files that visitors upload, the answers that are written for them, and when all of them are deleted.

Import this module before Gradio, which reads its environment variables when it is imported.
"""

import atexit
import logging
import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UPLOADS = Path(tempfile.mkdtemp(prefix="dcl-app-")).resolve()
atexit.register(shutil.rmtree, UPLOADS, ignore_errors=True)
os.environ |= {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_TEMP_DIR": str(UPLOADS),
    "GRADIO_ANALYTICS_MAX_EVENTS": "100",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": "100",
}

MOST_FOLDER_BYTES = 4 << 30  # of all uploads and answers together

logger = logging.getLogger("dcl_face_forgery.app")


def log_failure(what: str, error: BaseException | None) -> None:
    """Log that something failed, and where in the code, but nothing of what a user sent."""
    at = error.__traceback__ if error else None
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    place = "" if at is None else f" at {at.tb_frame.f_code.co_filename}:{at.tb_lineno}"
    logger.error("%s failed: %s%s", what, type(error).__name__, place)


@dataclass(eq=False)
class Use:
    """A file that a request names, from when it is let through until it is answered.

    Attributes:
        path: of the file.
        session: of the request.
        since: when it came, of the monotonic clock.
        event: Gradio's id of the request, once it is queued.
    """

    path: Path
    session: str | None
    since: float
    event: str | None = None


class Uploads:
    """The files that visitors upload and the answers that are written for them, and when they are deleted.

    A file stays while a request that names it waits or runs. The last upload and answer of a page stay while it is
    open. Both last for `longest` seconds at most. Every other file is deleted `grace` seconds after it was written.
    Methods may be called from any thread.

    Args:
        folder: where the files are.
        grace: seconds.
        longest: seconds.
    """

    def __init__(self, folder: Path, grace: float = 30, longest: float = 600):
        self.folder, self.grace, self.longest = folder, grace, longest
        self._lock = threading.Lock()  # of everything below
        self._coming = 0  # bytes on their way
        self._open: Counter[str] = Counter()  # pages, by the hash of their session
        self._waiting: list[Use] = []
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
        with self._lock:
            self._kept |= set(self._files())

    def use(self, paths: Iterable[str], session: str | None) -> list[Use]:
        """Note that a request names files; return what `queued` and `forget` take.

        Raises:
            OSError: if one of the files is gone.
        """
        with self._lock:
            uses = []
            for path in paths:
                os.utime(path)
                uses.append(Use(Path(path).resolve(), session, time.monotonic()))
            self._waiting += uses
        return uses

    def queued(self, uses: Iterable[Use], event: str) -> None:
        """Note under which id Gradio queued the request that names files."""
        with self._lock:
            for use in uses:
                use.event = event

    def forget(self, uses: Sequence[Use]) -> None:
        """Note that the request that named files will not be answered."""
        with self._lock:
            self._waiting = [use for use in self._waiting if use not in uses]

    def cancel(self, event: str) -> None:
        """Note that a request was cancelled, by Gradio's id of it."""
        with self._lock:
            self._waiting = [use for use in self._waiting if use.event != event]

    def done(self, path: Path, session: str | None, kind: str, answer: Path) -> None:
        """Note that a request is answered: its page, if it is open, holds on to the upload and the answer's folder."""
        path = path.resolve()
        with self._lock:
            # Of several requests of a session that name the same file, the first is answered first.
            use = next((use for use in self._waiting if (use.session, use.path) == (session, path)), None)
            if use is not None:
                self._waiting.remove(use)
            with suppress(OSError):
                os.utime(path)
            if session is not None and self._open[session] > 0:
                self._held[session, kind] = (path, answer, time.monotonic())

    @contextmanager
    def page(self, session: str) -> Iterator[None]:
        """A page is open as long as this lasts."""
        with self._lock:
            self._open[session] += 1
        try:
            yield
        finally:
            with self._lock:
                self._open[session] -= 1
                if not self._open[session]:
                    del self._open[session]
                    self._held = {key: held for key, held in self._held.items() if key[0] != session}
                    self._waiting = [use for use in self._waiting if use.session != session]

    def is_open(self, session: str) -> bool:
        """Whether a page of a session is open."""
        with self._lock:
            return self._open[session] > 0

    @contextmanager
    def coming(self, length: int) -> Iterator[None]:
        """An upload of so many bytes is on its way as long as this lasts."""
        with self._lock:
            self._coming += length
        try:
            yield
        finally:
            with self._lock:
                self._coming -= length

    def room(self, length: int) -> bool:
        """Whether there is room for one more upload of so many bytes."""
        with self._lock:
            taken = self._coming
        for file in self._files():
            with suppress(FileNotFoundError):  # it was deleted in between
                taken += file.stat().st_size
        return taken + length <= MOST_FOLDER_BYTES

    def sweep(self) -> None:
        """Delete every file that nothing holds and that is older than the grace."""
        now = time.monotonic()
        with self._lock:
            self._waiting = [use for use in self._waiting if now - use.since < self.longest]
            self._held = {key: held for key, held in self._held.items() if now - held[2] < self.longest}
            stay = self._kept | {use.path for use in self._waiting}
            stay |= {place for *places, _ in self._held.values() for place in places}
            for file in self._files():
                with suppress(OSError):  # another upload of the same content came in between
                    if not {file, file.parent} & stay and time.time() - file.stat().st_mtime > self.grace:
                        file.unlink()
                        if file.parent != self.folder:
                            file.parent.rmdir()

    def _files(self) -> list[Path]:
        # A folder that is deleted in between is passed over.
        return [Path(place, name) for place, _, names in os.walk(self.folder) for name in names]


uploads = Uploads(UPLOADS)


class Memory:
    """What Gradio remembers of visitors, who have no part in it once their page is closed.

    These are answers that nobody fetched, and the last values of a page's components.

    Args:
        blocks: the page, once it is served.
    """

    def __init__(self, blocks: Any):
        self._queue, self._states = blocks._queue, blocks.app.state_holder
        self._idle: dict[str, tuple[frozenset[str], float]] = {}  # session: requests, since when nothing happened

    def sweep(self) -> None:
        """Forget each session without an open page in which no request was waiting or running for the grace."""
        messages, events = self._queue.pending_messages_per_session, self._queue.pending_event_ids_session
        states, used = self._states.session_data, self._states.time_last_used
        now = time.monotonic()
        busy = {event.session_hash for event in list(self._queue.event_ids_to_events.values())}
        idle = {}
        for session in {*list(messages), *list(events), *list(states)} - busy:
            if uploads.is_open(session):
                continue
            requests = frozenset(events.get(session, ()))
            before = self._idle.get(session)
            idle[session] = before if before and before[0] == requests else (requests, now)
            if now - idle[session][1] >= uploads.grace:
                del idle[session]
                for each in (messages, events, states, used):
                    each.pop(session, None)
        self._idle = idle


def sweep_for_ever(blocks: Any, every: float = 5) -> None:
    """Delete what nothing holds, in a thread, every so many seconds from now on.

    Args:
        blocks: the page, once it is served.
        every: seconds.
    """
    sweeps = (uploads.sweep, Memory(blocks).sweep)

    def sweeping() -> None:
        while True:
            time.sleep(every)
            for sweep in sweeps:
                try:
                    sweep()
                except Exception as error:
                    log_failure("sweeping", error)

    threading.Thread(target=sweeping, daemon=True).start()
