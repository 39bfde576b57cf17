"""Helpers of layouts: find sub-folders regardless of case, list videos by name, and read lists."""

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ...errors_dcl import InputError, abridged, reason
from ...media_dcl import PICTURE_SUFFIXES, count_skipped, is_looked_at
from ...video_dcl import VIDEO_SUFFIXES
from ..failures import Failures
from ..frames import Frames, ImageFrames, VideoFrames
from ..photographs import list_files, list_photographs

#: Reasons that layouts have in common.
MISSING = "listed, but not found"
NOT_LISTED = "not listed"
CONTRADICTED = "folder and list contradict each other"
NO_NAME = "not a file name below the root"
NO_LABEL = "no label (real or fake)"


def root_folder(root: str | Path, holds: str) -> Path:
    """Return the root of a data set as a path; `holds` says what it should hold.

    Raises `InputError` if it is not a folder, or cannot be listed.
    """
    if not os.path.isdir(root):
        raise InputError(f"Folder {root} not found. Pass one that contains {holds}.")
    try:
        os.scandir(root).close()
    except OSError as error:
        raise InputError(f"Folder {root} cannot be listed ({reason(error)}). Check its permissions.") from error
    return Path(root).absolute()  # other machines have another current folder


def child(folder: Path | None, *names: str) -> Path | None:
    """Return the file or folder of one of these names, whatever its case; None if there is none, or no folder."""
    if folder is None:
        return None
    there = names_in(folder)
    wanted = {folded(name) for name in names}
    found = [name for name in names if name in there] or sorted(name for name in there if folded(name) in wanted)
    return folder / found[0] if found else None


def descend(folder: Path | None, *names: str) -> Path | None:
    """Return what is reached through these names, one below the other, whatever their case; None if one is missing."""
    for name in names:
        folder = child(folder, name)
    return folder


def names_in(folder: Path) -> frozenset[str]:
    """Return the names in a folder, none where it cannot be listed: asked once, not for each of its files."""
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()


def folded(name: str) -> str:
    """Return a name as it is compared: systems keep accents as one character or two, and the case or not."""
    return unicodedata.normalize("NFC", name.casefold())


def list_clips(folder: Path | None, failures: Failures) -> dict[str, Frames]:
    """Return the videos below a folder, or below its folder `videos` if it has one, by their path less the suffix.

    Raises `InputError` if two have one name.
    """
    folder = child(folder, "videos") or folder
    return _videos(folder, list_files(folder, failures))


def _videos(folder: Path | None, files: Iterable[Path]) -> dict[str, Frames]:
    videos: dict[str, Frames] = {}
    for path in files:
        if is_looked_at(path, VIDEO_SUFFIXES):
            key = path.relative_to(folder).with_suffix("").as_posix()
            if key in videos:
                raise InputError(f"{folder} contains two videos named {key!r}. Rename one of them.")
            videos[key] = VideoFrames(path)
    return videos


def list_media(
    folder: Path | None, failures: Failures, masks: bool = False, skipped: Counter[str] | None = None
) -> dict[str, Frames]:
    """Return videos, and the images of a folder as one video, by their path below the folder, less the suffix.

    An image that lies in no folder of its own is a video of one frame, number 0. `skipped` gets the files that are
    neither, counted by their suffixes. Raises `InputError` if two videos, or two images, have one name.
    """
    if folder is None:
        return {}
    files = list(list_files(folder, failures))
    if skipped is not None:
        skipped.update(count_skipped(files, PICTURE_SUFFIXES | VIDEO_SUFFIXES))
    media = _videos(folder, files)
    images: dict[str, dict[int, Path]] = {}
    for path, video, number in list_photographs(folder, files):
        if path.parent == folder:
            video, number = path.stem, 0
        frames = images.setdefault(video, {})
        if number in frames:
            raise InputError(f"{path} and {frames[number].name} have the same name. Rename one of them.")
        frames[number] = path
    for key, paths in images.items():
        media.setdefault(key, ImageFrames(paths, masks))  # a video of the same name says more
    return dict(sorted(media.items()))


def plain_name(value: object) -> str | None:
    """Return a name out of a list as a path with slashes, less the suffix of a video; None if it is not below a root.

    Lists that were made on Windows have backslashes.
    """
    if not isinstance(value, str) or not value.isprintable():
        return None
    path = PurePosixPath(value.strip().replace("\\", "/"))
    if not path.name or path.is_absolute() or ".." in path.parts or path.parts[0].endswith(":"):
        return None
    return str(path.with_suffix("") if path.suffix.lower() in VIDEO_SUFFIXES else path)


class Shelf:
    """The clips that are there, by the names that lists give them, whatever their case.

    A list is never followed to a file: what it names is looked up among the files that were found. What it names and
    is not there, and the other way round, is added to the failures.
    """

    def __init__(self, folder: Path, clips: Mapping[str, Frames], failures: Failures):
        self._folder, self._failures = folder, failures
        self._clips = {folded(name): (name, frames) for name, frames in clips.items()}
        self._taken: set[str] = set()

    def take(self, value: object, source: Path) -> tuple[str, Frames] | None:
        """Return the clip that a list names, with its name as it is on disk, or add a failure."""
        name = plain_name(value)
        if name is None:
            self._failures.add(f"{source}, {abridged(value)}", NO_NAME)
            return None
        self._taken.add(folded(name))
        found = self._clips.get(folded(name))
        if found is None:
            self._failures.add(self._folder / name, MISSING, source.name)
        return found

    def report_rest(self, detail: str = "") -> None:
        """Add the clips that no list named to the failures."""
        for key, (_, frames) in self._clips.items():
            if key not in self._taken:
                self._failures.add(frames.where, NOT_LISTED, detail)


def read_lines(path: Path) -> list[str]:
    """Return the stripped lines of a text file that are not empty; raises `InputError` if it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({reason(error)}). Copy or download it again.") from error
    return [line.strip() for line in lines if line.strip()]


def read_json(path: Path, kind: type) -> Any:
    """Read a JSON file that holds a `dict` or a `list`; raises `InputError` if it cannot be read, or holds another."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({reason(error)}). Copy or download it again.") from error
    if not isinstance(value, kind):
        raise InputError(
            f"{path} contains a {type(value).__name__}, not a {kind.__name__}. Copy or download it again."
        )
    return value
