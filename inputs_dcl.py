"""What the pipeline takes: files, folders, addresses, bytes, arrays, tensors, and lists of them; which are videos."""

import http.client
import io
import os
import re
import sys
import tempfile
import threading
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image

from .content_dcl import PICTURE_KINDS, PICTURE_SUFFIXES, UNREAD_PICTURE_SUFFIXES, is_text
from .errors_dcl import InputError, reason
from .images_dcl import Picture, file_kind, open_picture
from .video_dcl import VIDEO_SUFFIXES

if TYPE_CHECKING:
    import torch

_BYTES = bytes | bytearray | memoryview
#: What can be iterated over, and is one input nevertheless.
_SINGLE = _BYTES | Image.Image | Mapping
#: Suffixes by which files are found in a folder.
_LOOKED_AT = PICTURE_SUFFIXES | UNREAD_PICTURE_SUFFIXES | VIDEO_SUFFIXES
#: Suffixes of videos that TypeScript and Go have, too.
_OF_CODE = {".mod", ".mts", ".ts"}
#: What systems keep in folders for themselves: lists, thumbnails, copies, and what was deleted.
_OF_SYSTEMS = {
    *("$recycle.bin", "__macosx", "desktop.ini", "lost+found", "recycler", "system volume information", "thumbs.db"),
    *("#recycle", "#snapshot", "@eadir", "@recently-snapshot", "@recycle", "@tmp"),  # of network drives
}
_KINDS_SHOWN = 5
_ADDRESS = re.compile(r"https?://", re.IGNORECASE)
_MOST_COPIED = 2 << 30  # bytes of a download, or of what has no path
_PATIENCE, _LONGEST_DOWNLOAD = 30.0, 600.0  # seconds without a byte of a download, and for all of it


def find_files(folder: str | Path) -> list[Path]:
    """Return the pictures and videos of a folder and its sub-folders by their suffixes, in the order of their paths.

    What is hidden or the system's own is left out, and links to folders are not followed. Pictures of kinds that are
    not read are among them, and a folder that cannot be listed stands for what is in it: what is not judged is named.

    Raises:
        InputError: if there are none.
    """
    found: list[Path] = []

    def keep(error: OSError) -> None:
        found.append(Path(error.filename))

    for place, folders, names in os.walk(folder, onerror=keep):
        folders[:] = sorted(name for name in folders if not is_of_system(name))
        found += [
            path
            for name in sorted(names)
            if not is_of_system(name) and is_looked_at(path := Path(place, name), _LOOKED_AT)
        ]
    if not found:
        raise _nothing_in(folder)
    return found


def skipped_files(folder: str | Path) -> Counter[str]:
    """Count by their suffixes the files of a folder and its sub-folders that `find_files` passes over.

    What is hidden or the system's own is not counted.

    Returns:
        How many there are of each suffix in lower case, such as ".txt", and of "" without a usual one.
    """
    skipped: Counter[str] = Counter()
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_of_system(name)]
        skipped += count_skipped((Path(place, name) for name in names), _LOOKED_AT)
    return skipped


def count_skipped(files: Iterable[Path], looked_at: Collection[str]) -> Counter[str]:
    """Count as `skipped_files` does the files whose suffixes are not among those that are `looked_at`."""
    suffixes = (
        path.suffix.lower() for path in files if not is_of_system(path.name) and not is_looked_at(path, looked_at)
    )
    return Counter(suffix if re.fullmatch(r"\.[a-z0-9_+-]{1,10}", suffix) else "" for suffix in suffixes)


def is_of_system(name: str) -> bool:
    """Whether a file or folder is hidden or the system's own by its name, so that nobody means it."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def is_looked_at(path: Path, suffixes: Collection[str]) -> bool:
    """Whether a file of a folder has one of some suffixes, and is no source code that has it by chance."""
    return path.suffix.lower() in suffixes and not _is_code(path)


def _is_code(path: Path) -> bool:
    if path.suffix.lower() not in _OF_CODE or not os.path.isfile(path):  # opening a pipe would wait for its writer
        return False
    try:
        with path.open("rb") as file:
            return is_text(file.read(512))
    except OSError:  # said where it is read
        return False


def say_skipped(skipped: Counter[str], videos: bool = True) -> str:
    """Return a sentence or two on the files that were passed over, an empty text if there were none.

    Args:
        skipped: as `skipped_files` counts them.
        videos: whether videos are looked at.
    """
    unread = Counter({suffix: skipped[suffix] for suffix in UNREAD_PICTURE_SUFFIXES & skipped.keys()})
    others = skipped - unread
    sentences = []
    if number := others.total():
        one, several = (
            ("file that is neither an image nor a video", "files that are neither images nor videos")
            if videos
            else ("file that is not an image", "files that are not images")
        )
        sentences.append(f"Skipped {number:,} {one if number == 1 else several}: {_shown(others)}.")
    if number := unread.total():
        what, them = ("image in a format", "it") if number == 1 else ("images in formats", "them")
        sentences.append(
            f"Skipped {number:,} {what} not supported here: {_shown(unread)}. Convert {them} to JPEG first."
        )
    return " ".join(sentences)


def _shown(skipped: Counter[str]) -> str:
    kinds = skipped.most_common(_KINDS_SHOWN)
    shown = [f"{count} {suffix or 'without extension'}" for suffix, count in kinds]
    if rest := skipped.total() - sum(count for _, count in kinds):
        shown.append(f"{rest} others")
    return ", ".join(shown)


def _nothing_in(folder: str | Path) -> InputError:
    return InputError(f"{folder} holds no picture and no video: give a folder that does.")


def is_several(inputs: Any) -> bool:
    """Whether this is a folder, a list or a stack, and not one picture or video."""
    if isinstance(inputs, str | Path):
        return not is_address(inputs) and os.path.isdir(inputs)
    if isinstance(inputs, np.ndarray) or _is_tensor(inputs):
        return inputs.ndim == 4
    return isinstance(inputs, Iterable) and not isinstance(inputs, _SINGLE) and not _is_file_object(inputs)


def _is_tensor(item: Any) -> bool:
    torch = sys.modules.get("torch")  # who has a tensor has imported it, and others need not wait for it
    return torch is not None and isinstance(item, torch.Tensor)


def _is_file_object(item: Any) -> bool:
    return hasattr(item, "read")  # those of `tempfile` are no `io.IOBase`


def is_address(item: Any) -> bool:
    """Whether this is an http or https address."""
    return isinstance(item, str) and _ADDRESS.match(item) is not None


def each_of(inputs: Any) -> Iterator[Any]:
    """Yield the single inputs of a folder, a list or a stack; in a list there may be folders."""
    for item in find_files(inputs) if isinstance(inputs, str | Path) else inputs:
        if not isinstance(item, str | Path) or not is_several(item):
            yield item
            continue
        try:
            files = find_files(item)
        except InputError:  # said where an input is looked at, so that it costs the others nothing
            files = [item]
        yield from files


def name_of(item: Any) -> str | None:
    """Return how results call an input, None if it has no name."""
    if isinstance(item, str | Path):
        return str(item)
    if _is_file_object(item):
        name = getattr(item, "name", None)  # of an unnamed temporary file, a number
        return name if isinstance(name, str) else None
    return str(getattr(item, "name_or_path", None) or getattr(item, "filename", None) or "") or None


@contextmanager
def opened(item: Any, most_pixels: int, allow_urls: bool = False) -> Iterator[Path | Picture]:
    """Open one input: a video as the path of its file, which is there inside the `with`; all else as a picture.

    Args:
        item: the path of a picture or video, its address, its encoded bytes, or a binary file object, which is read
            from its beginning; a `PIL.Image`; an array (height, width, 3) or a tensor (3, height, width), RGB, uint8
            or floats in [0, 1].
        most_pixels: a larger picture is refused before it is decoded.
        allow_urls: whether addresses are fetched.

    Raises:
        InputError: if it cannot be read, or is neither a picture nor a video.
    """
    with ExitStack() as stack:
        if is_address(item):
            if not allow_urls:
                raise InputError(f"{item} is an address: pass allow_urls=True to have it fetched.")
            item = stack.enter_context(downloaded(item))
        elif isinstance(item, _BYTES) or _is_file_object(item):
            item = stack.enter_context(_copied(item))
        elif _is_tensor(item):
            item = _array_of(item)
        yield Path(item) if is_video(item) else open_picture(item, most_pixels)


def _array_of(tensor: "torch.Tensor") -> np.ndarray:
    """Return a tensor (3, height, width) as an array (height, width, 3)."""
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise InputError(
            f"a tensor of the shape {tuple(tensor.shape)} is no image: give RGB as torchvision does, (3, height, "
            "width), or a stack (N, 3, height, width)."
        )
    if tensor.is_floating_point():
        tensor = tensor.float()  # NumPy has no bfloat16
    return tensor.detach().cpu().permute(1, 2, 0).numpy()


def is_video(item: Any) -> bool:
    """Whether an input is the path of a video, by what is in it.

    Raises:
        InputError: if nothing can be read there, or its name says that it is another thing.
    """
    if not isinstance(item, str | Path):
        return False
    path = Path(item)
    if not str(item):  # to a Path, the current folder
        raise InputError("the name of the file is empty: give its path.")
    try:
        if path.is_dir():
            try:
                os.scandir(item).close()
            except OSError as error:
                raise InputError(f"the folder {path} cannot be listed: check its permissions.") from error
            raise _nothing_in(path)
        if not path.is_file():
            if os.path.exists(item):
                raise InputError(f"{path} is no regular file: copy what it gives into one.")
            raise InputError(f"there is no file {path}: check its path.")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({reason(error)}): check its path and its permissions.") from error
    kind, suffix = file_kind(path), path.suffix.lower()
    if _is_code(path):
        raise InputError(f"{path} is no video, it holds text: give a video or a picture.")
    if kind == "video" and suffix in PICTURE_SUFFIXES:
        raise InputError(f"{path} is a video under the name of a picture: give it the name of what it is.")
    if kind in PICTURE_KINDS and suffix in VIDEO_SUFFIXES:
        raise InputError(f"{path} is a picture under the name of a video: give it the name of what it is.")
    return kind == "video" or (kind in ("no picture", "empty") and suffix in VIDEO_SUFFIXES)


@contextmanager
def downloaded(address: str) -> Iterator[Path]:
    """Fetch an address into a file that is there inside of the `with`, where errors name the address instead.

    Raises:
        InputError: if it cannot be fetched, is too large, or takes too long.
    """
    with _temporary_file(address, address.split("?")[0].split("#")[0]) as path:
        with path.open("wb") as file:
            _download(address, file)
        yield path


@contextmanager
def _temporary_file(name: str, path: str) -> Iterator[Path]:
    """Give a path in a folder that goes with the `with`; errors name the input instead, and the suffix is its own."""
    suffix = Path(path).suffix.lower()
    with tempfile.TemporaryDirectory(prefix="dcl-") as folder:
        place = Path(folder, f"file{suffix if suffix in PICTURE_SUFFIXES | VIDEO_SUFFIXES else ''}")
        try:
            yield place
        except InputError as error:
            raise InputError(str(error).replace(str(place), name)) from error


@contextmanager
def _copied(source: Any) -> Iterator[Path]:
    """Copy bytes or a binary file object into a temporary file: FFmpeg reads paths, and what holds for files holds."""
    if isinstance(source, _BYTES):
        name, source = "<bytes>", io.BytesIO(source)
    else:
        name = name_of(source) or "<file>"
    with _temporary_file(name, name) as path:
        try:
            if hasattr(source, "seekable") and source.seekable():
                source.seek(0)  # as Pillow does: what was just written, or read by an earlier call, ends here
            with path.open("wb") as file:
                while part := source.read(1 << 20):
                    if isinstance(part, str):
                        raise InputError(f"{name} is open as text: open it in binary mode, 'rb'.")
                    file.write(part)
                    if file.tell() > _MOST_COPIED:
                        raise InputError(f"{name} has more than {_MOST_COPIED >> 30} GiB: give a smaller file.")
        except InputError:
            raise
        except Exception as error:  # of whatever kind of file object it is, or of the disk
            raise InputError(
                f"{name} cannot be copied into {path.parent.parent} ({reason(error)}): give its path, or free some "
                "space."
            ) from error
        yield path


def _download(address: str, file: BinaryIO) -> None:
    """Fetch an address, with a bound for all of it: the timeout of a connection begins anew with every byte."""
    failures: list[Exception] = []

    def fetch() -> None:
        try:
            _fetch(address, file)
        except Exception as error:  # raised below
            failures.append(error)

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    thread.join(_LONGEST_DOWNLOAD)
    if thread.is_alive():  # its next write fails, as the file will be closed
        raise InputError(
            f"{address} has not come within {_LONGEST_DOWNLOAD:g} s: fetch it by other means, and give the file."
        )
    if failures:
        error = failures[0]
        if isinstance(error, InputError):
            raise error
        if isinstance(error, http.client.IncompleteRead):
            why = "it broke off"
        else:
            why = getattr(error, "reason", error)  # of a URLError, a text or what lies beneath
            why = reason(why) if isinstance(why, Exception) else why
        raise InputError(f"{address} cannot be fetched ({why}): check it and the network.") from error


def _fetch(address: str, file: BinaryIO) -> None:
    opener = urllib.request.OpenerDirector()  # the usual one follows redirections to FTP, too
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    quoted = urllib.parse.quote(address, safe="%/:?#[]@!$&'()*+,;=~")
    with opener.open(quoted, timeout=_PATIENCE) as answer:
        while part := answer.read1(1 << 16):
            file.write(part)
            if file.tell() > _MOST_COPIED:
                raise InputError(f"{address} has more than {_MOST_COPIED >> 30} GiB: give a smaller file.")
        if answer.length:  # of what the server said there would be, what did not come
            raise http.client.IncompleteRead(b"", answer.length)


__all__ = [
    "count_skipped",
    "each_of",
    "find_files",
    "is_address",
    "is_looked_at",
    "is_of_system",
    "is_several",
    "is_video",
    "name_of",
    "opened",
    "say_skipped",
    "skipped_files",
]
