"""WildDeepfake: archives of face crops from the internet, or an index of such crops.

```
R/deepfake_in_the_wild/real_train/<N>.tar.gz     members <N>/real/<sequence>/<frame>.png, or R is that folder itself;
                       real_test/<N>.tar.gz      folders with a blank or an underscore, archives compressed or not
                       fake_train/<N>.tar.gz
                       fake_test/<N>.tar.gz

R/train/real.pickle   R/train/fake.pickle        lists of image paths below R/train, as torch.save or pickle wrote them
R/test/real.pickle    R/test/fake.pickle
```

The label is that of the folder, or of the list. A sequence, the unit of video-level figures, is one clip; those of an
archive come from one video, so they are one family. Frames are crops already. No archive is unpacked and no pickle is
run: members are read into memory, and of a pickle nothing but strings. There are no masks.
"""

import pickletools
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ...errors_dcl import InputError, abridged, reason
from ...prepared.names import FAKE, REAL
from ..archives import Archive, ArchivedFrames, Member
from ..clips import Clip, Part, RawDataSet, group_families
from ..failures import Failures
from ..frames import ImageFrames
from ..photographs import list_files
from .listing import MISSING, child, names_in, plain_name, root_folder

VIDEOS = 707  # as published

_FOLDER = "deepfake_in_the_wild"
_LABELS = {"real": REAL, "fake": FAKE}
_SPLITS = ("train", "test")
_ARCHIVE = re.compile(r"(.+?)\.(?:tar\.gz|tgz|tar)", re.IGNORECASE)
_MEMBER = re.compile(r"(?:\./)?[^/]+/(real|fake)/([^/\\]+)/[^/\\]*?(\d{1,9})\.png", re.IGNORECASE)
_NAMED = 3  # so many members are named with each reason for which some are left out
_LARGEST_LIST = 1 << 28  # bytes; the paths of all its 1.2 million images take 50 million
#: Of the operations of a pickle, those that make a list of strings. None of them imports or calls anything.
_HARMLESS = {
    *("PROTO", "FRAME", "EMPTY_LIST", "LIST", "MARK", "APPEND", "APPENDS", "STOP"),
    *("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"),
    *("GET", "BINGET", "LONG_BINGET"),  # a string once more
}
_STRINGS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}


def find(root: str | Path) -> RawDataSet:
    """Find the archives of each split, or the sequences that lists name; raises `InputError` if there are none."""
    root = root_folder(root, f"{_FOLDER}/ or the lists train/real.pickle, ...")
    found = RawDataSet("WildDeepfake", {}, cropped=True)
    folders = _folders(root)
    if folders:
        _find_archives(folders, found)
        found.parts.append(Part("videos", sum(map(len, found.splits.values())), VIDEOS))
    else:
        _find_listed(root, found)
    if not any(found.splits.values()):
        raise InputError(
            f"{root} contains neither archives (real_train/1.tar.gz, ...) nor lists (train/real.pickle, ...). Pass "
            f"the folder that does, or {_FOLDER} in it."
        )
    return found


def _plain(name: str) -> str:
    return re.sub(r"[ -]", "_", name.lower())


def _folders(root: Path) -> dict[tuple[str, str], Path]:
    """Return the folders of archives by split and label."""
    inner = next((path for path in sorted(root.iterdir()) if path.is_dir() and _plain(path.name) == _FOLDER), root)
    named = {_plain(path.name): path for path in sorted(inner.iterdir()) if path.is_dir()}
    return {
        (split, label): named[f"{label}_{split}"]
        for split in _SPLITS
        for label in _LABELS
        if f"{label}_{split}" in named
    }


def _find_archives(folders: dict[tuple[str, str], Path], found: RawDataSet) -> None:
    for (split, label), folder in folders.items():
        archives: dict[str, Path] = {}
        for path in list_files(folder, found.failures):
            if match := _ARCHIVE.fullmatch(path.name):
                if match[1] in archives:
                    found.failures.add(path, "another archive has the same name", archives[match[1]].name)
                archives.setdefault(match[1], path)
        found.splits.setdefault(split, []).extend(
            ArchiveFamily(path, split, label, name)
            for name, path in sorted(archives.items(), key=lambda item: (len(item[0]), item[0]))
        )
        found.parts.append(Part(f"{split}, {label}", len(archives)))


@dataclass(frozen=True)
class ArchiveFamily:
    """The sequences of one archive, which is read only when they are wanted.

    The split is part of their names: archives are counted from 1 in each folder. The label is "real" or "fake".
    """

    path: Path
    split: str
    label: str
    name: str

    def files(self) -> list[Path]:
        """Return the archive."""
        return [self.path]

    def load(self, failures: Failures) -> Sequence[Clip]:
        """List the archive; what it holds beside images, and where it breaks off, is added to the failures."""
        archive, sequences, refused = Archive(self.path), {}, {}
        source = f"{self.label}/{self.split}/{self.name}"
        try:
            for member in archive.members():
                refusal = self._add(member, sequences)
                if refusal:
                    refused.setdefault(refusal, []).append(member.name)
        except InputError as error:
            failures.add(self.path, "archive cannot be read completely", str(error))
            if sequences:
                self._drop_cut(archive, sequences)
        for refusal, names in refused.items():
            more = len(names) - _NAMED
            detail = ", ".join(repr(name[:100]) for name in names[:_NAMED])
            failures.add(self.path, refusal, detail + (f" and {more} more" if more > 0 else ""))
        if not sequences:
            failures.add(self.path, "no image of a sequence")
        return [
            Clip(
                name=f"{source}/{sequence}",
                source=source,
                method=self.label,
                label=_LABELS[self.label],
                frames=ArchivedFrames(archive, sequence, members),
            )
            for sequence, members in sequences.items()
        ]

    def _add(self, member: Member, sequences: dict[str, dict[int, Member]]) -> str:
        """Put a member into its sequence, or return why not."""
        if PurePosixPath(member.name).name.startswith("."):  # of file managers
            return ""
        match = _MEMBER.fullmatch(member.name)
        if member.refusal:
            return member.refusal
        if match is None or match[2] in (".", "..") or not match[2].isprintable():
            return "the name of a member is not <N>/<real or fake>/<sequence>/<frame>.png"
        if match[1].lower() != self.label:
            return "the label of a member differs from that of the folder"
        members = sequences.setdefault(match[2], {})
        if int(match[3]) in members:
            return "duplicate frame"
        members[int(match[3])] = member
        return ""

    def _drop_cut(self, archive: Archive, sequences: dict[str, dict[int, Member]]) -> None:
        """Drop the last member, unless it is whole."""
        last = max((members[frame].offset, name, frame) for name, members in sequences.items() for frame in members)
        _, name, frame = last
        try:
            archive.open().member(sequences[name][frame])
        except InputError:
            del sequences[name][frame]
            if not sequences[name]:
                del sequences[name]


def _find_listed(root: Path, found: RawDataSet) -> None:
    for split in _SPLITS:
        folder = child(root, split)
        lists = {label: child(folder, f"{label}.pickle") for label in _LABELS}
        clips: list[Clip] = []
        for label, path in lists.items():
            if path is not None:
                clips += (of_label := list(_listed_clips(folder, path, label, split, found.failures)))
                found.parts.append(Part(f"{split}, {label}", len(of_label)))
        if clips:
            found.splits[split] = group_families(clips)


def _listed_clips(folder: Path, path: Path, label: str, split: str, failures: Failures) -> Iterator[Clip]:
    """Yield a clip for each folder of images that a list names."""
    sequences: dict[PurePosixPath, dict[int, str]] = {}
    for listed in read_list(path):
        name = plain_name(listed)
        number = re.search(r"\d{1,9}$", PurePosixPath(name).stem) if name else None
        if number is None:
            failures.add(f"{path}, {abridged(listed)}", "not a numbered image below the folder of the list")
        else:
            sequences.setdefault(PurePosixPath(name).parent, {})[int(number[0])] = PurePosixPath(name).name
    for sequence, images in sequences.items():
        names = names_in(folder / sequence)
        there = {frame: folder / sequence / image for frame, image in images.items() if image in names}
        for frame in sorted(set(images) - set(there)):
            failures.add(folder / sequence, MISSING, path.name, frame)
        if there:
            name = f"{label}/{split}/{sequence}"
            # Sequences of one video lie in one folder, <N>/<label>/<sequence>.
            parts = [part for part in sequence.parts[:-1] if part.lower() not in _LABELS]
            source = "/".join([label, split, *parts]) if parts else name
            yield Clip(name, source, label, _LABELS[label], ImageFrames(there))


def read_list(path: Path) -> list[str]:
    """Read a list of strings that `torch.save` or `pickle.dump` wrote, each once, without running the pickle.

    Raises `InputError` if it is something else, or too large.
    """
    try:
        if zipfile.is_zipfile(path):  # by torch.save
            with zipfile.ZipFile(path) as archive:
                inner = next((name for name in archive.namelist() if name.split("/")[-1] == "data.pkl"), "data.pkl")
                with archive.open(inner) as file:
                    pickled = file.read(_LARGEST_LIST + 1)
        else:
            with path.open("rb") as file:
                pickled = file.read(_LARGEST_LIST + 1)
        if len(pickled) > _LARGEST_LIST:
            raise ValueError(f"more than {_LARGEST_LIST:,} bytes")
        return list(dict.fromkeys(_strings(pickled)))
    except Exception as error:  # zipfile and pickletools have a dozen classes of error for damaged files
        raise InputError(
            f"{path} cannot be read as a list of image paths ({reason(error)}). Write it again with torch.save."
        ) from error


def _strings(pickled: bytes) -> Iterator[str]:
    """Yield the strings of a pickled list."""
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name in _STRINGS:
            yield argument
        elif operation.name not in _HARMLESS:
            raise ValueError(f"it contains more than strings: the operation {operation.name}")
