"""What could not be prepared: one line for each thing and reason, collected while the rest goes on."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors_dcl import InputError

_FRAMES_SHOWN = 8


@dataclass
class Failure:
    """Something that was left out: a file, or of it the frames of some numbers.

    Reasons are the same for all of a kind, so that they can be counted; details differ from case to case.
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
    """Failures in the order in which they came, those of the frames of one file and reason in one.

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
            raise InputError(f"{failure}: mend it, or leave --strict away, and it is reported at the end.")

    def extend(self, failures: Iterable[Failure]) -> None:
        """Add failures as they are."""
        for failure in failures:
            for frame in failure.frames or [None]:
                self.add(failure.path, failure.reason, failure.detail, frame)

    def by_reason(self) -> dict[str, dict[str, int]]:
        """Return of each reason how many files it concerns, and how many frames of them where it is about frames."""
        counts: dict[str, dict[str, int]] = {}
        for failure in self:
            of_reason = counts.setdefault(failure.reason, {"files": 0, "frames": 0})
            of_reason["files"] += 1
            of_reason["frames"] += len(failure.frames)
        return dict(sorted(counts.items(), key=lambda item: -item[1]["files"]))

    def to_json(self) -> list[dict[str, Any]]:
        """Return them as plain values."""
        return [asdict(failure) for failure in self]
