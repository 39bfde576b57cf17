"""DeepfakeBench: face crops with masks and landmarks, as its preprocessing leaves them, and the JSON that names them.

```
R/FaceForensics++/manipulated_sequences/Deepfakes/c23/frames/071_054/000.png      R is its datasets/rgb
R/FaceForensics++/manipulated_sequences/Deepfakes/c23/masks/071_054/000.png       where there are masks
R/FaceForensics++/manipulated_sequences/Deepfakes/c23/landmarks/071_054/000.npy
R/Celeb-DF-v2/Celeb-real/frames/id1_0007/000.png
R/../../preprocessing/dataset_json/Celeb-DF-v2.json     or R/*.json, R/dataset_json/*.json
L/Celeb-DF-v2_lmdb/data.mdb                             the same files by name, in place of R
```

One JSON is one data set. A label whose name holds "real" is real. The paths of the JSON, written on any system, lead
to R by the name of the data set in them. A clip that several splits name is taken for the last of train, validation
and test. Frames are crops already.

Long because it reads files and LMDB, which no other layout does.
"""

import argparse
import io
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ...errors_dcl import InputError, abridged
from ...prepared.names import FAKE, REAL
from ..clips import Clip, Part, RawDataSet, group_families
from ..failures import Failures
from ..frames import FrameReader, Frames, ImageFrames, SingleReader, decode_crop, read_exact
from .listing import CONTRADICTED, MISSING, NO_NAME, names_in, read_json, root_folder

try:
    import lmdb
except ImportError:
    lmdb = None

logger = logging.getLogger(__name__)


#: The splits of a JSON, by the names they get here; a clip of several is taken for the last.
SPLITS = {"train": "train", "val": "validation", "test": "test"}
COMPRESSIONS = ("raw", "c23", "c40")
#: The method of each label of the published JSONs, called as the data sets call it; any other label is its own.
METHODS = {
    "FF-real": "youtube",
    "FF-DF": "Deepfakes",
    "FF-F2F": "Face2Face",
    "FF-FS": "FaceSwap",
    "FF-NT": "NeuralTextures",
    "FF-FH": "FaceShifter",
    "FF-SH": "FaceShifter",
    "DFD_real": "actors",
    "DFD_fake": "DeepFakeDetection",
    "CelebDFv1_real": "Celeb-real",
    "CelebDFv2_real": "Celeb-real",
    "CelebDFv1_fake": "Celeb-synthesis",
    "CelebDFv2_fake": "Celeb-synthesis",
    "DFDCP_Real": "original_videos",
    "DFDCP_FakeA": "method_A",
    "DFDCP_FakeB": "method_B",
    "DFDC_Real": "original",
    "DFDC_Fake": "DFDC",
    "DF_real": "source_videos",
    "DF_fake": "manipulated_videos",
    "UADFV_Real": "real",
    "UADFV_Fake": "fake",
}
_FACEFORENSICS = (r"(\d+)_\d+", r"youtube/\1")
#: What the name of a forged clip says about the real one: by label, the pattern of the one and the name of the other.
_SOURCES = {
    **dict.fromkeys(("FF-DF", "FF-F2F", "FF-FS", "FF-NT", "FF-FH", "FF-SH"), _FACEFORENSICS),
    "DFD_fake": (r"(\d+)_\d+__(.+)__[^_]+", r"actors/\1__\2"),
    **dict.fromkeys(("CelebDFv1_fake", "CelebDFv2_fake"), (r"(id\d+)_id\d+_(\d+)", r"Celeb-real/\1_\2")),
    "DF_fake": (r"(\d+)_\w+", r"youtube/\1"),
    "UADFV_Fake": (r"(.+)_fake", r"real/\1"),
}
_CELEB_REAL = r"id\d+_\d+"  # the other reals of Celeb-DF are of its folder YouTube-real
#: Below R, each data set lies in a folder of one of these names, or of the name its JSON gives it.
_DATA_SETS = {
    *("FaceForensics++", "Celeb-DF-v1", "Celeb-DF-v2", "DFDCP", "DFDC", "DeeperForensics-1.0", "UADFV", "DF40")
}
_RGB = ("datasets", "rgb")
#: Clips of a label and split, as the authors of the data sets count them.
_PUBLISHED = {
    **{
        (label, split): clips
        for label in ("FF-real", "FF-DF", "FF-F2F", "FF-FS", "FF-NT", "FF-FH", "FF-SH")
        for split, clips in (("train", 720), ("validation", 140), ("test", 140))
    },
    ("CelebDFv2_real", "test"): 178,
    ("CelebDFv2_fake", "test"): 340,
    ("DFD_real", "test"): 363,
    ("DFD_fake", "test"): 3068,
}
_LANDMARKS = 81  # of dlib's model; from them: the middles of the eyes' upper lids, nose tip, corners of the mouth
_FIVE = (37, 44, 30, 49, 55)
_LARGEST_VALUE = 8 << 20  # bytes of a file that is a crop, or landmarks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this layout."""
    parser.add_argument(
        "--json",
        help="the JSON of the data set, its name (Celeb-DF-v2), or a folder with one (default: searched in ROOT, "
        "ROOT/dataset_json and ROOT/../../preprocessing/dataset_json)",
    )
    parser.add_argument(
        "--compression", default="c23", help="for data sets with several compressions", choices=COMPRESSIONS
    )
    parser.add_argument("--lmdb", help="folder of LMDB environments (Celeb-DF-v2_lmdb, ...), read in place of files")
    parser.add_argument("--split", choices=SPLITS.values(), help="only this split (default: all)")


def find(
    root: str | Path,
    json: str | Path | None = None,
    compression: str = "c23",
    lmdb: str | Path | None = None,
    split: str | None = None,
) -> RawDataSet:
    """Find the clips that a JSON names; the arguments are the options of this layout.

    Raises `InputError` if there is no JSON or more than one, it is none of DeepfakeBench or lacks the compression,
    nothing that it names is there, or an environment cannot be opened.
    """
    root = root_folder(root, "the data sets that the JSON names")
    path = _choose_json(root, json)
    content = read_json(path, dict)
    if len(content) != 1 or not all(isinstance(value, dict) for value in content.values()):
        raise InputError(
            f"{path} is not a JSON of DeepfakeBench, which contains one data set by name. Pass another as --json."
        )
    ((name, labels),) = content.items()
    found = RawDataSet(name, {}, cropped=True)
    listed = _read_labels(path, labels, compression, found.failures)
    levels = {entry.compression for entry in listed}
    if levels - {None}:
        found.name = f"{name}_{compression}"
    wanted = [entry for entry in _one_split(path, listed) if split in (None, entry.split)]
    if not wanted:
        raise InputError(f"{path} lists no clips of the split {split}. Pass another --split.")
    store = _FileStore(root, name) if lmdb is None else _LmdbStore(Path(lmdb).absolute(), compression)
    clips = [(entry, clip) for entry in wanted if (clip := _clip(entry, name, store, found.failures))]
    if not clips:
        raise InputError(f"{store.where} contains none of the {len(wanted)} clips in {path}. {store.remedy}.")
    for part in SPLITS.values():
        if of_split := [clip for entry, clip in clips if entry.split == part]:
            found.splits[part] = group_families(of_split)
            for label in labels:
                number = sum(entry.split == part and entry.label == label for entry, _ in clips)
                found.parts.append(Part(f"{part}, {label}", number, _PUBLISHED.get((label, part))))
    return found


def _choose_json(root: Path, given: str | Path | None) -> Path:
    places = [root, root / "dataset_json", root.absolute().parent.parent / "preprocessing" / "dataset_json"]
    if given is not None and Path(given).is_file():
        return Path(given)
    if given is not None and Path(given).is_dir():
        places = [Path(given)]
    elif given is not None:
        for place in places:
            if (path := place / f"{str(given).removesuffix('.json')}.json").is_file():
                return path
        raise InputError(f"JSON {given} not found, nor in {_listed(places)}. Check the path.")
    for place in places:
        files = sorted(place.glob("*.json")) if place.is_dir() else []
        if len(files) > 1:
            raise InputError(
                f"{place} contains {len(files)} JSONs ({_listed([file.stem for file in files])}), each for one data "
                "set. Choose one with --json."
            )
        if files:
            return files[0]
    raise InputError(f"No JSON found in {_listed(places)}. Pass the one from DeepfakeBench's rearrange.py as --json.")


def _listed(things: list[Any]) -> str:
    return ", ".join(map(str, things))


@dataclass(frozen=True)
class _Entry:
    """A clip as the JSON names it."""

    name: str
    label: str
    split: str
    compression: str | None
    frames: list[str] = field(repr=False)

    @property
    def is_real(self) -> bool:
        return "real" in self.label.lower()

    @property
    def method(self) -> str:
        method = METHODS.get(self.label, self.label)
        return "YouTube-real" if method == "Celeb-real" and not re.fullmatch(_CELEB_REAL, self.name) else method

    @property
    def video(self) -> str:
        return f"{self.method}/{self.name}"

    @property
    def source(self) -> str:
        pattern, real = _SOURCES.get(self.label, ("", ""))
        match = re.fullmatch(pattern, self.name)
        return match.expand(real) if match and real else self.video


def _read_labels(path: Path, labels: dict[str, Any], compression: str, failures: Failures) -> list[_Entry]:
    entries, levels = [], set()
    for label, splits in labels.items():
        for split, clips in (splits if isinstance(splits, dict) else {}).items():
            where = f"{path}: {label}, {split}"
            if split not in SPLITS:
                failures.add(where, "not a split", f"splits are {', '.join(SPLITS)}")
            elif not isinstance(clips, dict) or "frames" in clips:
                failures.add(where, "the split does not contain clips by name")
            elif clips and set(clips) <= set(COMPRESSIONS):
                levels.update(level for level in clips if clips[level])
                entries += _read_clips(where, clips.get(compression), label, split, compression, failures)
            else:
                entries += _read_clips(where, clips, label, split, None, failures)
    if not entries:
        remedy = f"Choose --compression from {', '.join(sorted(levels))}" if levels else "Pass another as --json"
        of_level = f" of the compression {compression}" if levels else ""
        raise InputError(f"{path} lists no clips{of_level}. {remedy}.")
    return entries


def _read_clips(
    where: str, clips: Any, label: str, split: str, compression: str | None, failures: Failures
) -> Iterator[_Entry]:
    for name, clip in (clips if isinstance(clips, dict) else {}).items():
        frames = clip.get("frames") if isinstance(clip, dict) else None
        if not f"{label}{name}".isprintable() or not name:  # it would be a value of rows
            failures.add(f"{where}, {abridged(name)}", NO_NAME)
            continue
        if not isinstance(frames, list) or not all(isinstance(frame, str) for frame in frames):
            failures.add(f"{where}, {name}", "no list of frames in the JSON")
            continue
        entry = _Entry(name, label, SPLITS[split], compression, frames)
        other = str(clip.get("label", label))
        if ("real" in other.lower()) != entry.is_real:
            failures.add(f"{where}, {name}", CONTRADICTED, f"labelled {abridged(other)} under {label}")
        elif not frames:
            failures.add(f"{where}, {name}", "no frames")
        else:
            yield entry


def _one_split(path: Path, entries: list[_Entry]) -> list[_Entry]:
    """Return the entries of different clips, each in one split: the last of several, which is the test of most."""
    order = list(SPLITS.values())
    chosen: dict[str, _Entry] = {}
    several = set()
    for entry in sorted(entries, key=lambda entry: order.index(entry.split)):
        if entry.video in chosen:
            several.add(entry.video)
        chosen[entry.video] = entry
    if several:
        logger.warning(
            "%s: %d of %d clips are in several splits (%s, ...). Each counts for the last of %s.",
            *(path, len(several), len(chosen), min(several), ", ".join(order)),
        )
    return [chosen[entry.video] for entry in entries if chosen[entry.video] is entry]


def _clip(entry: _Entry, data_set: str, store: "_FileStore | _LmdbStore", failures: Failures) -> Clip | None:
    """Look for the frames of a clip and for what lies beside them, or name what is missing and return None."""
    paths: dict[int, PurePosixPath] = {}
    where = f"{entry.label}, {entry.split}, {entry.name}"
    for frame in entry.frames:
        path = _below_root(frame, data_set)
        number = re.search(r"\d{1,9}$", path.stem) if path else None
        if number is None:
            failures.add(where, NO_NAME, abridged(frame))
        else:
            paths[int(number[0])] = path
    there = store.look_up(dict(sorted(paths.items())))
    missing = sorted(set(paths) - set(there))
    for number in missing:
        failures.add(where, MISSING, f"{store.where}: {paths[missing[0]].parent}", number)
    if not there:
        return None
    masks, points = (_beside(paths, there, kind, store) for kind in ("masks", "landmarks"))
    return Clip(
        name=entry.video,
        source=entry.source,
        method=entry.method,
        label=REAL if entry.is_real else FAKE,
        frames=store.frames(there, "images"),
        mask=masks,
        landmarks=points,
        compression=entry.compression,
    )


def _below_root(path: str, data_set: str) -> PurePosixPath | None:
    """Return where a path of the JSON lies below the root, whatever wrote it; None if it leads elsewhere."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
    if ".." in parts or not parts or not path.isprintable():
        return None
    starts = [place for place, part in enumerate(parts[:-1]) if part in _DATA_SETS]
    if not starts:  # a data set that the benchmark does not know
        starts = [place + 2 for place in range(len(parts)) if tuple(parts[place : place + 2]) == _RGB]
    if not starts:  # the name of a JSON may be that of a folder further down, so it comes last
        starts = [place for place, part in enumerate(parts[:-1]) if part == data_set]
    if not starts and (path[0] in "/\\" or ":" in parts[0]):
        return None
    return PurePosixPath(*parts[starts[-1] if starts else 0 :])


def _beside(
    paths: Mapping[int, PurePosixPath], there: Mapping[int, Any], kind: str, store: "_FileStore | _LmdbStore"
) -> Frames | None:
    """Look for the masks or landmarks of the frames that are there."""
    beside = {number: _replace_folder(paths[number], kind) for number in there}
    found = store.look_up({number: path for number, path in beside.items() if path is not None})
    return store.frames(found, kind) if found else None


def _replace_folder(path: PurePosixPath, kind: str) -> PurePosixPath | None:
    """Return the path with the last folder called `frames` replaced; None if there is none."""
    folders = list(path.parts[:-1])
    if "frames" not in folders:
        return None
    folders[len(folders) - 1 - folders[::-1].index("frames")] = kind
    return PurePosixPath(*folders, path.stem + (".npy" if kind == "landmarks" else path.suffix))


class _FileStore:
    """The files below the root; `look_up` returns those that are there, for `frames`."""

    remedy = "Pass the folder of the data sets (DeepfakeBench's datasets/rgb), or --lmdb"

    def __init__(self, root: Path, data_set: str):
        inside = root.absolute().name in _DATA_SETS | {data_set}
        self._root, self.where = (root.absolute().parent if inside else root), str(root)
        self._folder, self._names = PurePosixPath(), frozenset()

    def look_up(self, paths: Mapping[int, PurePosixPath]) -> dict[int, Path]:
        found = {}
        for number, path in paths.items():
            if path.parent != self._folder:  # listed once: a file's own question takes long over a network
                folder = self._root / path.parent
                self._folder, self._names = path.parent, names_in(folder)
            if path.name in self._names:
                found[number] = self._root / path
        return found

    def frames(self, found: dict[int, Path], kind: str) -> Frames:
        return PointFiles(found) if kind == "landmarks" else ImageFrames(found, exact=kind == "masks")


@dataclass(frozen=True)
class PointFiles(ImageFrames):
    """Landmarks in files of NumPy, by frame number; as frames they are five points, float32 (5, 2)."""

    def open(self) -> AbstractContextManager[FrameReader]:
        """Return the reader; each file is opened when it is wanted."""
        return nullcontext(SingleReader(self.paths, lambda number: _read_points(self.paths[number])))


def _read_points(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_VALUE)
        return _five(np.load(io.BytesIO(content), allow_pickle=False))
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise InputError(str(error)) from error


def _five(points: np.ndarray) -> np.ndarray:
    """Return the eyes, the nose tip and the corners of the mouth, float32 (5, 2), of 81 landmarks (81, 2)."""
    if not isinstance(points, np.ndarray) or points.shape != (_LANDMARKS, 2) or points.dtype.kind not in "iuf":
        raise InputError(f"it does not contain {_LANDMARKS} landmarks")
    five = points[list(_FIVE)].astype(np.float32)
    if not np.isfinite(five).all():
        raise InputError("a landmark is not a number")
    return five


class _LmdbStore:
    """Environments in place of files, each file an environment and its key in it."""

    remedy = "Pass the environment from DeepfakeBench's dataset2lmdb, or remove --lmdb to read files"

    def __init__(self, folder: Path, compression: str):
        if lmdb is None:
            raise InputError(
                "LMDB environments need the package lmdb. Install it with `pip install 'dcl-face-forgery[lmdb]'`."
            )
        self._folder, self.where = root_folder(folder, "LMDB environments (Celeb-DF-v2_lmdb, ...)"), str(folder)
        self._compression = compression

    def look_up(self, paths: Mapping[int, PurePosixPath]) -> dict[int, tuple[Path, str]]:
        found = {}
        if paths:
            environment = self._environment(next(iter(paths.values())).parts[0])
            with _transaction(environment) as transaction:
                for number, path in paths.items():
                    there = (key for key in _keys(path) if transaction.get(key.encode()) is not None)
                    if (key := next(there, None)) is not None:
                        found[number] = environment, key
        return found

    def _environment(self, data_set: str) -> Path:
        if (self._folder / "data.mdb").is_file():
            return self._folder
        names = [f"{data_set}_{self._compression}_lmdb", f"{data_set}_lmdb"]
        for name in names:
            if (self._folder / name / "data.mdb").is_file():
                return self._folder / name
        raise InputError(f"LMDB environment {self._folder / names[-1]} not found. {self.remedy}.")

    def frames(self, found: dict[int, tuple[Path, str]], kind: str) -> Frames:
        decode = {"images": decode_crop, "masks": read_exact, "landmarks": _points_of_length}[kind]
        environments, keys = zip(*found.values(), strict=True)
        return LmdbFrames(environments[0], dict(zip(found, keys, strict=True)), decode)


def _keys(path: PurePosixPath) -> tuple[str, str]:
    """Return the keys of a file, as Windows and as other systems write them."""
    return "\\".join(path.parts), path.parts[0] + "\\" + "/".join(path.parts[1:])


@dataclass(frozen=True)
class LmdbFrames:
    """Values of an LMDB environment, by frame number, and what makes an image, or points, of a value."""

    environment: Path
    keys: Mapping[int, str]
    decode: Callable[[memoryview], np.ndarray] = field(repr=False)  # `repr` names what rows depend on
    lossy = False

    @property
    def where(self) -> str:
        """The path of the environment, and the folder in it."""
        return f"{self.environment}: {_split(next(iter(self.keys.values())))[0]}"

    def files(self) -> list[Path]:
        """Return the file of the environment."""
        return [self.environment / "data.mdb"]

    @contextmanager
    def open(self) -> Iterator[FrameReader]:
        """Open the environment."""
        with _transaction(self.environment) as transaction:
            names = {number: _split(key)[1] for number, key in self.keys.items()}
            yield SingleReader(names, lambda number: self._read(transaction, self.keys[number]))

    def _read(self, transaction: Any, key: str) -> np.ndarray:
        value = transaction.get(key.encode())
        if value is None:
            raise InputError("it no longer exists")
        if len(value) > _LARGEST_VALUE:
            raise InputError(f"it has {len(value):,} bytes, too many for a face crop")
        return self.decode(value)


def _split(key: str) -> tuple[str, str]:
    """Return the folder and the file that a key names."""
    folder, _, name = key.replace("\\", "/").rpartition("/")
    return folder, name


def _points_of_length(value: memoryview) -> np.ndarray:
    """Decode landmarks without a header, in which only their length tells the integers of 8 bytes from those of 4."""
    widths = {np.dtype(kind).itemsize * _LANDMARKS * 2: kind for kind in ("<i8", "<i4")}
    if len(value) not in widths:
        raise InputError(f"it has {len(value)} bytes, not {_LANDMARKS} landmarks")
    return _five(np.frombuffer(value, widths[len(value)]).reshape(_LANDMARKS, 2))


_open: dict[Path, tuple[Any, int]] = {}  # environments that are open, and how often: a process may open one but once


@contextmanager
def _transaction(folder: Path) -> Iterator[Any]:
    """Open an environment for reading, and close it after the last that uses it, before a process is forked."""
    try:
        environment, users = _open.get(folder) or (lmdb.open(str(folder), readonly=True, lock=False, create=False), 0)
    except lmdb.Error as error:
        raise InputError(f"LMDB environment {folder} cannot be opened ({error}). Copy it again.") from error
    _open[folder] = environment, users + 1
    try:
        with environment.begin(buffers=True) as transaction:
            yield transaction
    except lmdb.Error as error:
        raise InputError(f"LMDB environment {folder} is damaged ({error}). Copy it again.") from error
    finally:
        users = _open.pop(folder)[1] - 1
        if users:
            _open[folder] = environment, users
        else:
            environment.close()
