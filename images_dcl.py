"""Open pictures by their content: upright, as RGB, and nothing that is also, or really, something else.

What a file is called does not decide what it is: its first bytes do. The number of pixels is known before any of them
is decoded. What cameras append to their pictures, such as a short film, is let be, since it is never looked at; a
script or an archive for which a picture is the disguise is not.
"""

import re
import struct
import warnings
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .errors_dcl import InputError, reason

MOST_PIXELS = 50_000_000
MOST_BYTES = 256 << 20  # of a file: no picture of that many pixels needs more
#: Suffixes by which pictures are found in a folder.
PICTURE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
#: Suffixes of pictures that are not read here; in a folder they are named, not passed over.
OTHER_PICTURE_SUFFIXES = {".avif", ".heic", ".heif", ".jp2", ".jxl"}
PICTURE_KINDS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

#: What files begin with that are mistaken for pictures, or passed off as them.
_OTHERS = (
    (rb"%PDF", "a PDF"),
    (rb"PK\x03\x04", "a ZIP archive"),
    (rb"\x1f\x8b", "a gzip archive"),
    (rb"MZ|\x7fELF", "a program"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript file"),
    (rb"8BPS", "a Photoshop file"),
    (rb"\0\0\0\x0cjP  ", "a JPEG 2000"),
    (rb"\0\0\0.ftyp(avif|avis)", "an AVIF"),
    (rb"\0\0\0.ftyp(heic|heix|mif1|msf1|hevc)", "a HEIC"),
)
_VIDEOS = (
    rb"....ftyp",
    rb"....(moov|mdat|wide|free|skip)",
    rb"\x1a\x45\xdf\xa3",
    rb"RIFF....AVI ",
    rb"\0\0\x01[\xb0-\xbf]",
    rb"(G.{187}){2}G|.{4}(G.{191}){2}G",  # MPEG-TS, also with a time before each packet
    rb"FLV\x01",
    rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF
    rb"OggS",
    rb"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02",  # MXF
    rb"\0{2,3}\x01([\x09\x27\x47\x67]|[\x40\x42\x46]\x01)",  # bare H.264 and HEVC
)
_MARKUP = re.compile(rb"(\xef\xbb\xbf)?\s*<(\?xml|!doctype|!--|[a-z])", re.IGNORECASE)
#: What browsers, interpreters and readers of documents look for, and how far from either end of a file. At least five
#: bytes of it are fixed: four stand by chance in one photograph of some thousands.
_FOREIGN = re.compile(
    rb"<script[\s/>]|<svg([\s/][^<>\x00\x80-\xff]{0,400})?[=>]|<html[\s/>]|<!doctype|<\?php\s|<iframe[\s/>]|"
    rb"%pdf-[12]\.|javascript:",
    re.IGNORECASE,
)
_ENDS = 65536


def content_kind(head: bytes) -> str:
    """Return what a file is by its first bytes.

    Args:
        head: the first 512 bytes of it, or all, if it has fewer.

    Returns:
        One of `PICTURE_KINDS`, "video", or in words what else it is, such as "a PDF".
    """
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if head[:2] == b"BM" and len(head) > 18 and struct.unpack("<I", head[14:18])[0] in (12, 40, 52, 56, 64, 108, 124):
        return "BMP"
    if re.match(rb"P[56]\s", head):
        return "PPM"
    if head[:4] in (b"II*\0", b"MM\0*"):
        return "TIFF"
    for pattern, name in _OTHERS:
        if re.match(pattern, head, re.DOTALL):
            return name
    if any(re.match(pattern, head, re.DOTALL) for pattern in _VIDEOS):
        return "video"
    if _MARKUP.match(head):
        return "an SVG" if re.search(rb"<svg", head, re.IGNORECASE) else "HTML or XML"
    return "no picture" if head.strip(b"\0") else "empty"


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
    """Return a picture upright, as RGB, uint8 (height, width, 3).

    Of an animation it is the first frame. 16 bits a channel are scaled to 8, palettes and CMYK are translated, and
    what is transparent is laid on white.

    Args:
        picture: the path of a JPEG, PNG, WebP, BMP, GIF, TIFF, PGM or PPM file, a `PIL.Image`, or a uint8 RGB array.
        most_pixels: a larger picture is refused before it is decoded.

    Raises:
        InputError: if it is too large, breaks off, is damaged, is something else as well, or is no picture.
    """
    if isinstance(picture, np.ndarray):
        return _checked_array(picture, most_pixels)
    if isinstance(picture, Image.Image):
        name = getattr(picture, "filename", "") or "the picture"
        _check_size(name, picture.size, most_pixels)
        return _decoded(name, picture)
    if not isinstance(picture, str | Path):
        raise InputError(
            f"an object of the type {type(picture).__name__} is no picture: give a path, a PIL image, or a uint8 RGB "
            "array (height, width, 3)."
        )
    path = Path(picture)
    data = _read(path)
    kind = content_kind(data[:512])
    if kind not in PICTURE_KINDS:
        kind = "a video" if kind == "video" else kind
        raise InputError(f"{path} is {kind}, whatever its name says: give a JPEG, PNG, WebP, BMP, GIF or TIFF.")
    if _is_something_else(data):
        raise InputError(f"{path} is a picture and a script or an archive at once: save the picture anew.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of damaged EXIF and of a limit that is another one here
            with Image.open(BytesIO(data), formats=[kind]) as image:
                _check_size(path, image.size, most_pixels)
                return _decoded(path, image)
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} has more than {most_pixels:,} pixels: make it smaller.") from error
    except InputError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and others, by the format
        raise InputError(f"the picture {path} cannot be opened ({_why(error)}): save it anew.") from error


def _checked_array(array: np.ndarray, most_pixels: int) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise InputError(
            f"an array of the shape {array.shape} and type {array.dtype} is no picture: give uint8 RGB (height, "
            "width, 3)."
        )
    _check_size("the picture", array.shape[1::-1], most_pixels)
    return np.ascontiguousarray(array)


def _check_size(name: str | Path, size: tuple[int, int], most_pixels: int) -> None:
    if size[0] * size[1] == 0:
        raise InputError(f"{name} has {size[0]}x{size[1]} pixels: give a picture that shows something.")
    if size[0] * size[1] > most_pixels:
        raise InputError(
            f"{name} has {size[0]}x{size[1]} pixels, more than {most_pixels:,}: make it smaller, or raise most_pixels."
        )


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise InputError(f"there is no file {path}: check its path.")
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise InputError(f"{path} has {size >> 20} MiB, too much for a picture: make it smaller.")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read ({reason(error)}): check its path and its permissions.") from error
    if not data:
        raise InputError(f"{path} is empty: copy or download it again.")
    return data


def _decoded(name: str | Path, image: Image.Image) -> np.ndarray:
    if image.mode == "F":
        raise InputError(
            f"the pixels of {name} are floating-point numbers, whose white is not known: save it in 8 bits."
        )
    try:
        image.load()
        try:
            image = ImageOps.exif_transpose(image)
        except Exception:  # what cannot be read of the EXIF turns nothing
            image = image.copy()
        return np.asarray(_to_rgb(image))
    except Exception as error:
        raise InputError(
            f"the picture {name} cannot be decoded ({_why(error)}): copy or download it again, or save it anew."
        ) from error


def _why(error: Exception) -> str:
    """Return why Pillow failed; what it says itself is about its own inner parts."""
    return "it breaks off" if "truncated" in str(error).lower() else "it is damaged"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip
        deep = np.asarray(image)
        grey = np.empty(deep.shape, np.uint8)
        clear = image.info.get("transparency")
        for row, values in enumerate(deep):  # one by one: a large picture would take gigabytes
            grey[row] = np.round(values.clip(0, 65535) / 257)
            if isinstance(clear, int):
                grey[row][values == clear] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _is_something_else(data: bytes) -> bool:
    """Whether another program would find an archive, a document or a script in a picture."""
    ends = data[:_ENDS] + b"\n" + data[-_ENDS:]
    # By itself, `is_zipfile` looks for four bytes, which stand in photographs by chance, too.
    is_archive = b"PK\x01\x02" in data and zipfile.is_zipfile(BytesIO(data))
    return is_archive or _FOREIGN.search(ends) is not None


__all__ = [
    "MOST_PIXELS",
    "OTHER_PICTURE_SUFFIXES",
    "PICTURE_KINDS",
    "PICTURE_SUFFIXES",
    "content_kind",
    "file_kind",
    "read_picture",
]
