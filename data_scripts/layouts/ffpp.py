"""FaceForensics++: 1,000 videos, forged by five methods, in three compressions; and DeepFakeDetection inside it.

```
R/original_sequences/youtube/{raw,c23,c40}/videos/071.mp4                      real
R/manipulated_sequences/<method>/{raw,c23,c40}/videos/071_054.mp4              fake: <target>_<source>
R/manipulated_sequences/<method>/masks/videos/071_054.mp4                      one set for all compressions
R/splits/{train,val,test}.json                                                 [["071", "054"], ...]
R/original_sequences/actors/c23/videos/24__outside_talking.mp4                                DeepFakeDetection
R/manipulated_sequences/DeepFakeDetection/c23/videos/24_23__outside_talking__YR5OVD4S.mp4
```

What the image tool writes (`c23/images/071/0000.png`) is read where there are no videos. The lists lie in `R/splits`,
in `R`, or in `R/dataset/splits`. Fakes 071_054 and 054_071 are in the split whose list has either pair.

The real that belongs to a fake is its target, the first of the two numbers. FaceShifter comes without masks.
DeepFakeDetection has no official split: it is a test set of its own.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors_dcl import InputError, abridged
from ...prepared.names import FAKE, REAL
from ..clips import Clip, Part, RawDataSet, group_families
from ..failures import Failures
from ..frames import DifferenceMask, Frames
from .listing import MISSING, NOT_LISTED, child, descend, list_media, read_json, root_folder

COMPRESSIONS = ("raw", "c23", "c40")
METHODS = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures", "FaceShifter")
DFD = "DeepFakeDetection"
MASKS = ("video", "difference", "none")
#: The splits, and the names of their lists.
SPLITS = {"train": "train", "validation": "val", "test": "test"}
_WITHOUT_MASKS = "FaceShifter"
_PUBLISHED_SPLITS = {"train": 720, "validation": 140, "test": 140}  # videos of each method, and reals
_PUBLISHED = {"youtube": 1000, **dict.fromkeys(METHODS, 1000), "actors": 363, DFD: 3068}
_DFD_NAME = re.compile(r"([^_]+)_[^_]+__(.+)__[^_]+")  # <target>_<source>__<scene>__<8 characters>


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this layout."""
    parser.add_argument("--compression", choices=COMPRESSIONS, default="c23", help="compression of the videos")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=(*METHODS, DFD),
        metavar="METHOD",
        help=f"of {', '.join(METHODS)} (default: all that exist), or only {DFD}",
    )
    parser.add_argument(
        "--masks",
        choices=MASKS,
        default="video",
        help="video: the mask videos; difference: if missing, the difference from the real; none: no masks",
    )
    parser.add_argument("--split", nargs="+", choices=SPLITS, default=list(SPLITS), help="splits to prepare")
    parser.add_argument(
        "--splits", help="folder of the lists train.json, val.json and test.json (default: found in the root)"
    )


def find(
    root: str | Path,
    compression: str = "c23",
    methods: Sequence[str] | None = None,
    masks: str = "video",
    split: Sequence[str] = tuple(SPLITS),
    splits: str | Path | None = None,
) -> RawDataSet:
    """Find the clips of each split; the arguments are the options of this layout.

    Raises `InputError` if folders or lists are missing without which there is nothing to prepare, or a list cannot be
    used.
    """
    root = root_folder(root, "original_sequences/ and manipulated_sequences/")
    if methods is not None and DFD in methods:
        return _find_dfd(root, compression, methods, masks, split)
    found = RawDataSet(f"ffpp_{compression}", {})
    tree = _Tree(root, compression, found)
    reals = tree.read("youtube", required=True)
    fakes = {method: tree.read(method, required=methods is not None) for method in methods or METHODS}
    fakes = {method: frames for method, frames in fakes.items() if frames}
    if not fakes:
        raise InputError(f"{tree.describe()}, but no fakes in {compression}. Pass another --compression or --root.")
    marked = {method: tree.masks(method, "youtube", masks) for method in fakes}
    lists = root if splits is None else root_folder(splits, "train.json, val.json and test.json")
    pairs = {name: _pairs(lists, SPLITS[name], found.failures) for name in SPLITS if name in split}
    _refuse_overlap(pairs)
    for name, members in pairs.items():
        clips: list[Clip] = []
        for real in sorted({real for pair in members for real in pair}):
            if real in reals:
                clips.append(tree.real("youtube", real, reals[real]))
            else:
                found.failures.add(tree.path("youtube", real), MISSING, f"in {SPLITS[name]}.json")
        for method, frames in fakes.items():
            for fake in sorted({f"{a}_{b}" for pair in members for a, b in (pair, pair[::-1])}):
                if fake in frames:
                    real = fake.partition("_")[0]
                    clips.append(tree.fake(method, fake, frames[fake], f"youtube/{real}", marked[method]))
                else:
                    found.failures.add(tree.path(method, fake), MISSING, f"in {SPLITS[name]}.json")
        found.splits[name] = group_families(clips)
        for method in ("youtube", *fakes):
            number = sum(clip.method == method for clip in clips)
            found.parts.append(Part(f"{name}, {method}", number, _PUBLISHED_SPLITS[name]))
    if len(pairs) == len(SPLITS):
        _report_rest(pairs, reals, fakes, found.failures)
    return found


def _find_dfd(root: Path, compression: str, methods: Sequence[str], masks: str, split: Sequence[str]) -> RawDataSet:
    if len(methods) > 1:
        raise InputError(f"{DFD} is a separate test set. Pass only --methods {DFD}.")
    if "test" not in split:
        raise InputError(f"{DFD} has only the split test. Remove --split {' '.join(split)}.")
    found = RawDataSet(f"dfd_{compression}", {})
    tree = _Tree(root, compression, found)
    reals, fakes = (tree.read(name, required=True) for name in ("actors", DFD))
    marked = tree.masks(DFD, "actors", masks)
    clips = [tree.real("actors", real, frames) for real, frames in reals.items()]
    for fake, frames in fakes.items():
        if match := _DFD_NAME.fullmatch(fake):
            real = "__".join(match.groups())
            clips.append(tree.fake(DFD, fake, frames, f"actors/{real}", marked))
        else:
            found.failures.add(frames.where, "name is not <target>_<source>__<scene>__<8 characters>")
    found.splits["test"] = group_families(clips)
    return found


class _Tree:
    """The folders of one compression; parts and failures are added to what was found."""

    def __init__(self, root: Path, compression: str, found: RawDataSet):
        self._root, self._compression, self._found = root, compression, found
        self._media: dict[tuple[str, str], dict[str, Frames]] = {}

    def _origin(self, name: str) -> tuple[str, str]:
        return ("original_sequences" if name in ("youtube", "actors") else "manipulated_sequences"), name

    def path(self, name: str, clip: str) -> Path:
        """Return where a clip should lie."""
        return self._root.joinpath(*self._origin(name), self._compression, "videos", f"{clip}.mp4")

    def describe(self) -> str:
        """Return in words in which compressions there are reals."""
        return f"{self._root} contains youtube in {' and '.join(self._compressions('youtube'))}"

    def _compressions(self, name: str) -> list[str]:
        return [compression for compression in COMPRESSIONS if self._clips(name, compression)]

    def _clips(self, name: str, compression: str) -> dict[str, Frames]:
        if (name, compression) not in self._media:
            folder = descend(self._root, *self._origin(name), compression)
            self._media[name, compression] = _media(folder, self._found.failures)
        return self._media[name, compression]

    def read(self, name: str, required: bool) -> dict[str, Frames]:
        """Return the clips of an origin or method; raises `InputError` if there are none, and some are required."""
        media = self._clips(name, self._compression)
        self._found.parts.append(Part(name, len(media), _PUBLISHED[name]))
        if media:
            return media
        there = self._compressions(name)
        if required and there:
            raise InputError(
                f"{self._root} contains {name} in {' and '.join(there)}, not in {self._compression}. Download it, or "
                f"pass --compression {there[0]}."
            )
        if required:
            place = self.path(name, "*").parent
            raise InputError(f"{self._root} has no {name} ({place}). Download it, or pass another --root.")
        if there:
            self._found.failures.add(
                self._root.joinpath(*self._origin(name)), "other compression", " and ".join(there)
            )
        return media

    def masks(self, method: str, origin: str, masks: str) -> "_Masks":
        """Return the masks of a method, whose originals are of an origin."""
        if masks == "none":
            return _Masks({}, (), False)
        videos = _media(descend(self._root, *self._origin(method), "masks"), self._found.failures, masks=True)
        if method != _WITHOUT_MASKS:
            self._found.parts.append(Part(f"{method}, masks", len(videos), _PUBLISHED[method]))
            if not videos and masks == "video":
                folder = self._root.joinpath(*self._origin(method), "masks")
                self._found.failures.add(folder, "masks not found", "download them, or pass --masks difference")
        compared = []
        if masks == "difference":  # which says most in the best compression that there is
            for compression in COMPRESSIONS[: COMPRESSIONS.index(self._compression) + 1]:
                compared.append((self._clips(method, compression), self._clips(origin, compression)))
        return _Masks(videos, tuple(compared), bool(videos))

    def real(self, origin: str, clip: str, frames: Frames) -> Clip:
        """Return a real clip."""
        name = f"{origin}/{clip}"
        return Clip(name, name, origin, REAL, frames, compression=self._compression)

    def fake(self, method: str, clip: str, frames: Frames, source: str, masks: "_Masks") -> Clip:
        """Return a fake clip."""
        mask = masks.of(clip, source.partition("/")[2])
        if mask is None and masks.expected:
            self._found.failures.add(frames.where, "no mask")
        return Clip(f"{method}/{clip}", source, method, FAKE, frames, mask, compression=self._compression)


@dataclass(frozen=True)
class _Masks:
    """The masks of a method: `videos` by the names of clips, and whether each clip should have one.

    `compared` are fakes and reals whose difference is a mask where there is no video, the best compression first.
    """

    videos: Mapping[str, Frames]
    compared: tuple[tuple[Mapping[str, Frames], Mapping[str, Frames]], ...]
    expected: bool

    def of(self, fake: str, real: str) -> Frames | None:
        """Return the mask of a clip."""
        if fake in self.videos:
            return self.videos[fake]
        both = ((fakes[fake], reals[real]) for fakes, reals in self.compared if fake in fakes and real in reals)
        return next((DifferenceMask(*frames) for frames in both), None)


def _media(folder: Path | None, failures: Failures, masks: bool = False) -> dict[str, Frames]:
    """Return the clips of a folder by name: its videos, or where there are none, its images."""
    return list_media(child(folder, "videos"), failures, masks) or list_media(child(folder, "images"), failures, masks)


def _pairs(folder: Path, name: str, failures: Failures) -> list[tuple[str, str]]:
    """Return the pairs of numbers that a list holds."""
    places = (child(folder, "splits"), folder, descend(folder, "dataset", "splits"))
    path = next((path for place in places if (path := child(place, f"{name}.json"))), None)
    if path is None:
        raise InputError(
            f"{folder} has no {name}.json, the list of that split. Copy train.json, val.json and test.json from "
            f"dataset/splits of github.com/ondyari/FaceForensics to {folder / 'splits'}, or pass their folder as "
            "--splits."
        )
    pairs = []
    for index, entry in enumerate(read_json(path, list)):
        if (
            isinstance(entry, list)
            and len(entry) == 2
            and all(isinstance(video, str) and re.fullmatch(r"\w+", video) for video in entry)
        ):
            pairs.append((entry[0], entry[1]))
        else:
            failures.add(f"{path}, entry {index}", "not a pair of video names", abridged(entry))
    if not pairs:
        raise InputError(f"{path} contains no pairs of video names. Download it again.")
    return pairs


def _refuse_overlap(pairs: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    splits: dict[str, str] = {}
    for split, members in pairs.items():
        for name in sorted({name for pair in members for name in pair}):
            if splits.setdefault(name, split) != split:
                raise InputError(f"The lists put video {name} in {splits[name]} and in {split}. Download them again.")


def _report_rest(
    pairs: Mapping[str, Sequence[tuple[str, str]]],
    reals: Mapping[str, Frames],
    fakes: Mapping[str, Mapping[str, Frames]],
    failures: Failures,
) -> None:
    members = [pair for split in pairs.values() for pair in split]
    listed = {name for a, b in members for name in (a, b, f"{a}_{b}", f"{b}_{a}")}
    for clips in (reals, *fakes.values()):
        for name, frames in clips.items():
            if name not in listed:
                failures.add(frames.where, NOT_LISTED)
