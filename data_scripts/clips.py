"""The content of a raw data set: clips, their families, and missing files."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..errors_dcl import InputError
from .failures import Failures
from .frames import Frames

FAMILIES_PER_SHARD = 16  # the default
SPLITS = ("train", "validation", "test")  # in the order of --split_shares


@dataclass(frozen=True)
class Clip:
    """A video of a data set, or the images of one.

    `name`, `<method>/<clip>`, is unique and becomes the `video_id` of its rows. `source` is the name of the real clip
    it was made from, or its own name for a real or if that is unknown. Mask and landmarks, five points (5, 2) in
    pixels of crops, have the same frame numbers, or are None if unknown. The compression is None if there is only one.
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
        """Return all files that the rows depend on."""
        parts = (self.frames, self.mask, self.landmarks)
        return [path for part in parts if part is not None for path in part.files()]


class Family(Protocol):
    """Clips that belong together and stay in one row group."""

    def load(self, failures: Failures) -> Sequence[Clip]:
        """Return the clips, a real before those made from it; errors are added to the failures."""
        ...

    def files(self) -> list[Path]:
        """Return all files that the rows depend on."""
        ...


@dataclass(frozen=True)
class ClipFamily:
    """A family of known clips: a real clip, if available, and those made from it."""

    clips: tuple[Clip, ...]

    def load(self, failures: Failures) -> Sequence[Clip]:
        """Return the clips."""
        return self.clips

    def files(self) -> list[Path]:
        """Return all files that the rows depend on."""
        return [path for clip in self.clips for path in clip.files()]


@dataclass(frozen=True)
class Part:
    """A part of a data set: the numbers of clips found and, if known, published."""

    name: str
    found: int
    published: int | None = None


@dataclass
class RawDataSet:
    """A raw data set that a layout found on disk.

    `failures` are files that contradict the lists or are missing. `skipped` counts other files by extension, for
    layouts that take every image and video. If `cropped`, the frames are face crops. `groups` give the person or
    folder of families, by the name of their source.
    """

    name: str
    splits: dict[str, list[Family]]
    parts: list[Part] = field(default_factory=list)
    failures: Failures = field(default_factory=Failures)
    skipped: Counter[str] = field(default_factory=Counter)
    cropped: bool = False
    groups: dict[str, str] = field(default_factory=dict)


def check_shares(shares: Sequence[float]) -> dict[str, float]:
    """Convert percentages of train, validation and test to fractions; shares of 0 are left out.

    Raises:
        InputError: if there are not two or three, one is below 0, or their sum is not 100.
    """
    total = sum(shares)
    if len(shares) not in (2, 3) or not all(0 <= share <= 100 for share in shares) or abs(total - 100) > 1e-6:
        raise InputError(
            f"--split_shares {' '.join(f'{share:g}' for share in shares)} (sum {total:g}) is invalid. Pass two or "
            "three percentages that sum to 100, for train, validation and test, such as 80 10 10."
        )
    return {split: share / total for split, share in zip(SPLITS, shares, strict=False) if share}


def group_families(clips: Sequence[Clip]) -> list[Family]:
    """Group the clips of one split by source, the real first, in the order of the first clip of each."""
    families: dict[str, list[Clip]] = {}
    for clip in clips:
        families.setdefault(clip.source, []).append(clip)
    return [
        ClipFamily(tuple(sorted(family, key=lambda clip: clip.name != clip.source))) for family in families.values()
    ]
