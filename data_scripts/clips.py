"""What a layout finds in a raw data set: clips, the families they belong to, and what should be there and is not."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..errors_dcl import InputError
from .failures import Failures
from .frames import Frames

FAMILIES_PER_SHARD = 16  # where nothing else is asked for
SPLITS = ("train", "validation", "test")  # that shares are of, in this order


@dataclass(frozen=True)
class Clip:
    """A video of a data set, or the images of one.

    `name`, `<method>/<clip>`, is unique: the `video_id` of its rows; `source` that of the real clip it was made from,
    its own for a real, and where that is not known. Mask and landmarks, five points (5, 2) in pixels of crops, have
    the same frame numbers; None where they are not known, or, of the compression, where there is but one.
    """

    name: str
    source: str
    method: str
    label: int
    frames: Frames
    mask: Frames | None = None
    landmarks: Frames | None = None
    compression: str | None = None

    def files(self) -> list[Path]:
        """Return all files that its rows depend on."""
        parts = (self.frames, self.mask, self.landmarks)
        return [path for part in parts if part is not None for path in part.files()]


class Family(Protocol):
    """Clips that belong together, prepared as one: they stay in one row group."""

    def load(self, failures: Failures) -> Sequence[Clip]:
        """Return the clips, a real before those made from it; what cannot be had is added to the failures."""
        ...

    def files(self) -> list[Path]:
        """Return all files that the rows depend on."""
        ...


@dataclass(frozen=True)
class ClipFamily:
    """A family whose clips are known: a real clip, if it is there, and those made from it."""

    clips: tuple[Clip, ...]

    def load(self, failures: Failures) -> Sequence[Clip]:
        """Return the clips."""
        return self.clips

    def files(self) -> list[Path]:
        """Return all files that the rows depend on."""
        return [path for clip in self.clips for path in clip.files()]


@dataclass(frozen=True)
class Part:
    """A part of a data set: how many clips are there, and how many the authors say there are, if they do."""

    name: str
    found: int
    published: int | None = None


@dataclass
class RawDataSet:
    """A raw data set, as a layout finds it on disk.

    `failures` are what its lists name and is not there, or contradicts them; `skipped`, where every image and video of
    a folder is taken, counts the other files by suffix. If it is `cropped`, no face is looked for in its frames.
    `groups` name the person or folder that several families, by the name of their source, are of.
    """

    name: str
    splits: dict[str, list[Family]]
    parts: list[Part] = field(default_factory=list)
    failures: Failures = field(default_factory=Failures)
    skipped: Counter[str] = field(default_factory=Counter)
    cropped: bool = False
    groups: dict[str, str] = field(default_factory=dict)


def check_shares(shares: Sequence[float]) -> dict[str, float]:
    """Return the shares of train, validation and test as fractions of percentages; those of 0 are left out.

    Raises `InputError` if there are not two or three, one is below 0, or their sum is not 100.
    """
    total = sum(shares)
    if len(shares) not in (2, 3) or not all(0 <= share <= 100 for share in shares) or abs(total - 100) > 1e-6:
        raise InputError(
            f"--split_shares {' '.join(f'{share:g}' for share in shares)} (sum {total:g}): give two or three "
            "percentages that sum to 100, for train, validation and test, such as 80 10 10."
        )
    return {split: share / total for split, share in zip(SPLITS, shares, strict=False) if share}


def group_families(clips: Sequence[Clip]) -> list[Family]:
    """Put the clips of one split that share a source together, the real first, in the order of the first of each."""
    families: dict[str, list[Clip]] = {}
    for clip in clips:
        families.setdefault(clip.source, []).append(clip)
    return [
        ClipFamily(tuple(sorted(family, key=lambda clip: clip.name != clip.source))) for family in families.values()
    ]
