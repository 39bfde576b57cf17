"""Open pictures by their content: upright, as sRGB, and nothing that is also, or really, something else.

What a file is called does not decide what it is: its first bytes do. The number of pixels is known before any of them
is decoded. What cameras append to their pictures, such as a short film, is let be, since it is never looked at; a
script or an archive for which a picture is the disguise is not.
"""

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, features

from .content_dcl import (
    PICTURE_KINDS,
    breaks_off,
    content_kind,
    is_something_else,
    is_unread_picture,
    with_end,
    without_oversized,
    without_text,
)
from .errors_dcl import InputError, PictureError, reason
from .pages_dcl import BoundedReader, choose_page, notes_on_frames, turn_to_page
from .picture_colour_dcl import OVERSIZED, named_space, srgb_pixels

MOST_PIXELS = 50_000_000
MOST_BYTES = 256 << 20  # of a file: no picture of that many pixels needs more
_AGAIN = "copy or download it again, or save it anew"
_OVERSIZED_TEXT = "The metadata is too large and was ignored."


@dataclass(frozen=True)
class Picture:
    """A picture that was read.

    Attributes:
        pixels: upright, sRGB, uint8 (height, width, 3); perhaps read-only.
        notes: short sentences on how they differ from what is in the file.
    """

    pixels: np.ndarray
    notes: tuple[str, ...] = ()


def file_kind(path: str | Path) -> str:
    """Return what a file is by its content, see `content_kind`.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return content_kind(file.read(512))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({reason(error)}): check its path and its permissions.") from error


def read_picture(picture: Any, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """Return the pixels of a picture, see `open_picture`."""
    return open_picture(picture, most_pixels).pixels


def open_picture(picture: Any, most_pixels: int = MOST_PIXELS) -> Picture:
    """Read a picture: upright by its EXIF or XMP, converted to sRGB, 8 bits a channel, what is transparent on white.

    Of an animation it is the first frame. Of a TIFF it is the first page that is no preview or mask of another.

    Args:
        picture: the path of a JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF, PBM, PGM or PPM file, or of a HEIC, if
            pillow-heif is installed; a `PIL.Image`; or an RGB array (height, width, 3), uint8 or floats in [0, 1].
        most_pixels: a larger picture is refused before it is decoded.

    Raises:
        PictureError: if it is too large, breaks off, is damaged, is something else as well, or is no picture.
    """
    if isinstance(picture, np.ndarray):
        return Picture(_checked_array(picture, most_pixels))
    if isinstance(picture, Image.Image):
        name = getattr(picture, "filename", "") or "the picture"
        _check_size(name, picture.size, most_pixels)
        with _explained(f"the picture {name} cannot be decoded", _AGAIN):
            return _decoded(name, picture)
    if not isinstance(picture, str | Path):
        raise PictureError(
            f"an object of the type {type(picture).__name__} is no picture: give a path, a PIL image, or an RGB array "
            "(height, width, 3)."
        )
    path = Path(picture)
    data = _read(path)
    _check_kind(data, path)
    if is_something_else(data):
        raise PictureError(
            f"{path} is a picture and a script or an archive at once: save the picture anew.",
            "it is a script or an archive as well",
        )
    return decode_picture(data, path, most_pixels)


def decode_picture(data: bytes, name: str | Path, most_pixels: int = MOST_PIXELS) -> Picture:
    """Read a picture as `open_picture` does out of what is in its file, which is not searched for other things.

    Args:
        data: all bytes of it.
        name: of the picture, for errors.
        most_pixels: a larger picture is refused before it is decoded.

    Raises:
        PictureError: as of `open_picture`.
    """
    image, notes = _opened(data, name, most_pixels)
    with image, _explained(f"the picture {name} cannot be decoded", _AGAIN):
        decoded = _decoded(name, image, named_space(data, image), owned=True)
        return Picture(decoded.pixels, (*decoded.notes, *notes, *notes_on_frames(image)))


def read_values(source: bytes | str | Path, name: str | Path, mode: str, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """Return the values that a picture holds, upright, whatever colours they are meant to show: those of a mask.

    Args:
        source: its path, or all bytes of its file.
        name: of the picture, for errors.
        mode: "L" or "RGB".
        most_pixels: a larger picture is refused before it is decoded.

    Returns:
        uint8 (height, width) or (height, width, 3), writable.

    Raises:
        PictureError: as of `open_picture`, or if it has more than 8 bits a channel.
    """
    image, _ = _opened(source if isinstance(source, bytes) else _read(Path(source)), name, most_pixels)
    with image, _explained(f"the picture {name} cannot be decoded", _AGAIN):
        if image.mode.startswith(("I", "F")):
            raise PictureError(
                f"the pixels of {name} are {image.mode}, not 8 bits a channel: save it in 8 bits.",
                f"its pixels are {image.mode}, not 8 bits a channel",
            )
        image.load()
        return np.array(_upright(image, owned=True).convert(mode))


def _checked_array(array: np.ndarray, most_pixels: int) -> np.ndarray:
    is_float = array.dtype.kind == "f"
    if not (is_float or array.dtype == np.uint8) or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise PictureError(
            f"an array of the shape {array.shape} and type {array.dtype} is no picture: give RGB (height, width, 3), "
            "uint8 or floats in [0, 1]."
        )
    _check_size("the picture", array.shape[1::-1], most_pixels)
    if is_float:
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise PictureError(
                f"the values of a floating-point picture range from {low:g} to {high:g}: scale them to [0, 1], "
                "or give uint8."
            )
        array = np.rint(array.astype(np.float32) * 255).astype(np.uint8)
    return np.ascontiguousarray(array)


def _check_size(name: str | Path, size: tuple[int, int], most_pixels: int) -> None:
    has = f"has {size[0]}x{size[1]} pixels"
    if size[0] * size[1] == 0:
        raise PictureError(f"{name} {has}: give a picture that shows something.", f"it {has}")
    if size[0] * size[1] > most_pixels:
        raise PictureError(
            f"{name} {has}, more than {most_pixels:,}: make it smaller, or raise most_pixels.",
            f"it {has}, more than {most_pixels:,}",
        )


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise PictureError(f"there is no file {path}: check its path.", "there is no such file")
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise PictureError(
                f"{path} has {size >> 20} MiB, too much for a picture: make it smaller.", f"it has {size >> 20} MiB"
            )
        data = path.read_bytes()
    except PictureError:
        raise
    except (OSError, ValueError) as error:
        raise PictureError(
            f"{path} cannot be read ({reason(error)}): check its path and its permissions.", reason(error)
        ) from error
    if not data:
        raise PictureError(f"{path} is empty: copy or download it again.", "it is empty")
    return data


def _check_kind(data: bytes, name: str | Path) -> str:
    """Return the kind of a picture; raise a `PictureError` if it is something else, or cannot be read here."""
    kind = content_kind(data[:512])
    if kind == "HEIF" and not _reads_heif():
        what, remedy = "a HEIC photo", "run `pip install pillow-heif`, or convert it to JPEG"
    elif kind == "AVIF" and not features.check("avif"):
        what, remedy = "an AVIF picture", "run `pip install --upgrade pillow`, or convert it to JPEG"
    elif kind in PICTURE_KINDS:
        return kind
    elif is_unread_picture(kind):
        what, remedy = kind, "convert it to JPEG"
    else:
        what = "a video" if kind == "video" else kind
        why = "it is no image" if kind == "no picture" else f"it is {what}"
        raise PictureError(f"{name} is {what}: give a JPEG, PNG, WebP, BMP, GIF or TIFF.", why)
    raise PictureError(f"{name} is {what}: {remedy}.", f"it is {what}: {remedy}")


@functools.cache
def _reads_heif() -> bool:
    """Whether HEIC can be read; from then on Pillow does, too."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
    return True


@contextmanager
def _explained(what: str, remedy: str) -> Iterator[None]:
    """Raise whatever Pillow raises as a `PictureError`: what it says itself is about its own inner parts."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of damaged EXIF and of a limit that is another one here
            yield
    except InputError:
        raise
    except Exception as error:  # OSError, SyntaxError, ValueError, struct.error and others, by the format
        why = "it breaks off" if "truncated" in str(error).lower() else "it is damaged"
        raise PictureError(f"{what} ({why}): {remedy}.", why) from error


def _opened(data: bytes, name: str | Path, most_pixels: int) -> tuple[Image.Image, list[str]]:
    """Open a picture at the page or frame that is to be decoded, and return notes on what that passes over."""
    kind, notes = _check_kind(data, name), []
    remedy = "convert it to JPEG if it is a RAW photo, else save it anew" if kind == "TIFF" else "save it anew"
    with _explained(f"the picture {name} cannot be opened", remedy):
        if kind == "PNG":
            data, oversized = without_oversized(without_text(data))  # which Pillow refuses
            notes += [OVERSIZED] if b"iCCP" in oversized else []
            notes += [_OVERSIZED_TEXT] if oversized - {b"iCCP"} else []
        source = BoundedReader(data) if kind == "TIFF" else BytesIO(with_end(kind, data))
        try:
            image = Image.open(source, formats=[kind])  # other formats start programs
        except Image.DecompressionBombError as error:
            what = f"has more than {most_pixels:,} pixels"
            raise PictureError(f"{name} {what}: make it smaller.", f"it {what}") from error
        if isinstance(source, BoundedReader):
            number, passed_over = choose_page(image, name)
            notes += passed_over
            source.lift()
            if image.is_animated:  # a damaged page that was looked at may have left traces
                image = Image.open(BytesIO(data), formats=[kind])
                turn_to_page(image, number)
        _check_size(name, image.size, most_pixels)
    with _explained(f"the picture {name} cannot be decoded", _AGAIN):
        if breaks_off(kind, data, lambda version: Image.open(BytesIO(version), formats=[kind]).tobytes()):
            raise OSError("the picture is truncated")
    return image, notes


def _decoded(
    name: str | Path, image: Image.Image, cicp: tuple[int, int] | None = None, owned: bool = False
) -> Picture:
    if image.mode == "F":
        raise PictureError(
            f"the pixels of {name} are floating-point numbers, whose white is not known: save it in 8 bits.",
            "its pixels are floating-point numbers",
        )
    image.load()
    if image.format == "BMP" and image.mode == "RGBA" and image.getextrema()[3] == (0, 0):
        image = image.convert("RGB")  # its writer left the fourth byte alone
    pixels, notes = srgb_pixels(_upright(image, owned), cicp)
    return Picture(pixels, tuple(notes))


def _upright(image: Image.Image, owned: bool) -> Image.Image:
    """Turn a loaded image as its EXIF or XMP says; in place if it is `owned`, since a second one takes memory."""
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return ImageOps.exif_transpose(image, in_place=owned) or image
    except Exception:  # what cannot be read of the EXIF turns nothing
        pass
    return image


__all__ = [
    "MOST_PIXELS",
    "Picture",
    "decode_picture",
    "file_kind",
    "open_picture",
    "read_picture",
    "read_values",
]
