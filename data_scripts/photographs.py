"""Turn a folder of photographs into the real rows of a prepared data set."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors_dcl import InputError, PictureError, reason
from ..faces_dcl import Face, FaceDetector, crop_transform, cut, map_points
from ..media_dcl import PICTURE_SUFFIXES, UNREAD_PICTURE_SUFFIXES, is_looked_at, is_of_system, read_picture
from ..prepared.names import DEFAULT_ENCODING, REAL
from ..video_dcl import VIDEO_SUFFIXES
from .failures import Failures

SIZE, MARGIN = 380, 1.3  # defaults of crops
#: Reasons of failures.
NO_FACE, CORRUPT = "no face found", "cannot be decoded"
NOT_LISTED, NO_FILE = "folder cannot be listed", "broken link, or not a regular file"
_MOST_PIXELS = 178_956_970  # the limit of Pillow; cameras have more pixels than the limit of detection


class Photograph(NamedTuple):
    """A file, the video (or person) that it belongs to, and its frame number there."""

    path: Path
    video: str
    frame: int


def find_photographs(folder: str | Path, failures: Failures | None = None) -> list[Photograph]:
    """List the photographs of a folder: each sub-folder is one person or video, and so is each loose file.

    The frame number is the number at the end of the file name, if all files of the sub-folder have a different one;
    otherwise it is the position in the order of names. Photographs of one video are listed together. Unreadable files
    are added to the failures; without `failures`, they raise an `InputError`, as does a folder without photographs.
    """
    failures = Failures(strict=True) if failures is None else failures
    photographs = list_photographs(Path(folder), list_files(Path(folder), failures))
    if not photographs:
        raise InputError(
            f"Folder {folder} contains no photographs ({', '.join(sorted(PICTURE_SUFFIXES))}). Check the path."
        )
    return photographs


def list_photographs(root: Path, files: Iterable[Path]) -> list[Photograph]:
    """Return the photographs among the files of a folder as `find_photographs` does; there may be none."""

    def natural(path: Path) -> list[Any]:
        parts = re.split(r"(\d+)", path.relative_to(root).as_posix())
        return [int(part) if part.isdecimal() else part for part in parts]

    videos: dict[str, list[Path]] = {}
    for path in sorted(files, key=natural):
        if path.suffix.lower() in PICTURE_SUFFIXES:
            relative = path.relative_to(root)
            video = relative.as_posix() if path.parent == root else relative.parent.as_posix()
            videos.setdefault(video, []).append(path)
    return [
        Photograph(path, video, frame)
        for video, paths in videos.items()
        for path, frame in zip(paths, _frames(paths), strict=True)
    ]


def list_files(folder: Path | None, failures: Failures) -> Iterator[Path]:
    """Yield the files below a folder, if there is one, in the order of their paths; linked folders are followed.

    Hidden and system files are skipped. Folders that cannot be listed, and images and videos that are broken links or
    not regular files, are added to the failures. Raises `InputError` if a name is not UTF-8.
    """
    yield from _files_below(folder, failures, ()) if folder is not None and folder.is_dir() else ()


def _files_below(folder: Path, failures: Failures, above: tuple[Path, ...]) -> Iterator[Path]:
    here = folder.resolve()
    if here in above:  # a link that leads back
        return
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        failures.add(folder, NOT_LISTED, reason(error))
        return
    for name in names:
        if is_of_system(name):
            continue
        path = folder / name
        if not name.isascii():
            try:
                name.encode()
            except UnicodeEncodeError as error:
                raise InputError(f"The name of {str(path)!r} is not UTF-8. Rename it.") from error
        if os.path.isdir(path):
            yield from _files_below(path, failures, (*above, here))
        elif os.path.isfile(path):
            yield path
        elif is_looked_at(path, PICTURE_SUFFIXES | UNREAD_PICTURE_SUFFIXES | VIDEO_SUFFIXES):
            failures.add(path, NO_FILE)


def _frames(paths: list[Path]) -> list[int]:
    numbers = [int(match.group()) for path in paths if (match := re.search(r"\d{1,9}$", path.stem))]
    return numbers if len(set(numbers)) == len(paths) else list(range(len(paths)))


def read_photograph(path: Path) -> np.ndarray:
    """Read an image file as detection does: uint8 (height, width, 3); raises an `InputError` with the reason."""
    try:
        return read_picture(path, _MOST_PIXELS)
    except PictureError as error:
        raise InputError(error.why) from error


def real_rows(
    photographs: Iterable[Photograph],
    detector: FaceDetector,
    crop: dict[str, Any],
    name: str,
    failures: Failures,
    encoding: str = DEFAULT_ENCODING,
) -> Iterator[dict[str, Any]]:
    """Cut the largest face out of each photograph: rows of a prepared data set, without mask.

    The name of the data set is the `method` of the reals and the first part of the video names. Skipped photographs
    are added to the failures.
    """
    for path, video, frame in photographs:
        try:
            image = read_photograph(path)
        except InputError as error:
            failures.add(path, CORRUPT, str(error))
            continue
        faces = detector.detect(image)
        if not faces:
            failures.add(path, NO_FACE)
            continue
        yield face_row(
            image,
            faces[0],
            crop_transform(faces[0], crop),
            crop["size"],
            encoding,
            path.name,
            mask=None,
            label=REAL,
            method=name,
            video_id=f"{name}/{video}",
            source_id=f"{name}/{video}",
            frame=frame,
            crop={**crop, "detector": detector.name},
            dataset=name,
        )


def face_row(
    image: np.ndarray, face: Face, transform: np.ndarray, size: int, encoding: str, file: str | None, /, **columns: Any
) -> dict[str, Any]:
    """Cut a face out of a photograph, RGB, uint8 (height, width, 3), and make it a row of a prepared data set.

    The transform (2, 3) maps the photograph to the crop, which is `size` pixels wide; `file` is the name of the image
    file, or None for a frame of a video. Other columns (`prepared.dataset.FEATURES`) are given by name.
    """
    # Imported here because they import `datasets` and pandas, which are not needed to list files.
    from ..prepared.copies import picture_hash
    from ..prepared.dataset import encode_image

    crop = cut(image, transform, size)
    return {
        "image": encode_image(crop, encoding, file),
        "phash": picture_hash(crop),
        "landmarks": None if face.landmarks is None else map_points(face.landmarks, transform).tolist(),
        "compression": None,
        **columns,
    }
