"""Failures of a preparation: one line per file and reason, collected while the work continues."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors_dcl import InputError

_FRAMES_SHOWN = 8


@dataclass
class Failure:
    """A skipped file, or skipped frames of it.

    Reasons are the same for all failures of a kind, so that they can be counted. Details differ.
    """

    path: str
    reason: str
    detail: str = ""
    frames: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.frames[:_FRAMES_SHOWN]))
        more = len(self.frames) - _FRAMES_SHOWN
        frames = f"frame{'s' * (len(self.frames) > 1)} {shown}{f' and {more} more' if more > 0 else ''}"
        notes = "; ".join(note for note in (self.detail, frames if self.frames else "") if note)
        return f"{self.path}: {self.reason}" + (f" ({notes})" if notes else "")


class Failures:
    """Failures in order; those of the frames of one file with one reason are merged.

    If it is strict, the first one is raised as an `InputError`.
    """

    def __init__(self, strict: bool = False):
        self._strict = strict
        self._failures: dict[tuple[str, str], Failure] = {}

    def __len__(self) -> int:
        return len(self._failures)

    def __iter__(self) -> Iterator[Failure]:
        return iter(self._failures.values())

    def add(self, path: object, reason: str, detail: str = "", frame: int | None = None) -> None:
        """Add a failure, of a frame or of the whole file."""
        failure = self._failures.setdefault((str(path), reason), Failure(str(path), reason, detail))
        if frame is not None:
            failure.frames.append(frame)
        if self._strict:
            raise InputError(f"{failure}. Fix it, or remove --strict to skip it.")

    def extend(self, failures: Iterable[Failure]) -> None:
        """Add several failures."""
        for failure in failures:
            for frame in failure.frames or [None]:
                self.add(failure.path, failure.reason, failure.detail, frame)

    def by_reason(self) -> dict[str, dict[str, int]]:
        """Count the files and, if it is about frames, the frames of each reason."""
        counts: dict[str, dict[str, int]] = {}
        for failure in self:
            of_reason = counts.setdefault(failure.reason, {"files": 0, "frames": 0})
            of_reason["files"] += 1
            of_reason["frames"] += len(failure.frames)
        return dict(sorted(counts.items(), key=lambda item: -item[1]["files"]))

    def to_json(self) -> list[dict[str, Any]]:
        """Return the failures as JSON values."""
        return [asdict(failure) for failure in self]
