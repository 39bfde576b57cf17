"""Open pictures by their content: upright, as RGB, and nothing that is also, or really, something else.

What a file is called does not decide what it is. Its first bytes say which format it has, the format says where the
picture ends, and behind that end nothing may follow; the number of pixels is known before any of them is decoded.
"""

import re
import struct
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .errors_dcl import InputError, reason

MOST_PIXELS = 50_000_000
MOST_BYTES = 256 << 20  # of a file: no picture of that many pixels needs more
#: Suffixes by which pictures are found in a folder.
PICTURE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".webp"}
PICTURE_KINDS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "WEBP")

#: What files begin with that are mistaken for pictures, or passed off as them.
_OTHERS = (
    (rb"%PDF", "a PDF"),
    (rb"PK\x03\x04", "a ZIP archive"),
    (rb"\x1f\x8b", "a gzip archive"),
    (rb"MZ|\x7fELF", "a program"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript file"),
    (rb"II\*\0|MM\0\*", "a TIFF"),
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
)
_MARKUP = re.compile(rb"(\xef\xbb\xbf)?\s*<(\?xml|!doctype|!--|[a-z])", re.IGNORECASE)
_JPEG_END_OF_SCAN = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")  # restarts and stuffed bytes belong to the scan
_PADDING = b"\0\n\r "


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
        picture: the path of a JPEG, PNG, WebP, BMP, GIF, PGM or PPM file, or a `PIL.Image`, or a uint8 RGB array.
        most_pixels: a larger picture is refused before it is decoded.

    Raises:
        InputError: if it is too large, breaks off, is damaged, has something behind its end, or is no picture.
    """
    if isinstance(picture, np.ndarray):
        return _checked_array(picture, most_pixels)
    if isinstance(picture, Image.Image):
        name = getattr(picture, "filename", "") or "the picture"
        _check_size(name, picture.size, most_pixels)
        return _decoded(name, picture)
    if not isinstance(picture, str | Path):
        raise InputError(
            f"a {type(picture).__name__} is no picture: give a path, a PIL image, or a uint8 RGB array (height, "
            "width, 3)."
        )
    path = Path(picture)
    data = _read(path)
    kind = content_kind(data[:512])
    if kind not in PICTURE_KINDS:
        kind = "a video" if kind == "video" else kind
        raise InputError(f"{path} is {kind}, whatever its name says: give a JPEG, PNG, WebP, BMP or GIF.")
    try:
        end = _ENDS[kind](data)
    except (struct.error, IndexError, ValueError):
        end = None
    if end is None or end > len(data):
        raise InputError(f"the picture {path} breaks off or is damaged: copy or download it again.")
    if data[end:].strip(_PADDING):
        raise InputError(
            f"{path} has {len(data) - end} bytes of something else behind the picture's end: save the "
            "picture anew, alone."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of damaged EXIF and of a limit that is another one here
            with Image.open(BytesIO(data), formats=[kind]) as image:
                _check_size(path, image.size, most_pixels)
                return _decoded(path, image)
    except Image.DecompressionBombError as error:
        raise InputError(f"the picture {path} has too many pixels ({error}): make it smaller.") from error
    except InputError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and others, by the format
        raise InputError(f"the picture {path} cannot be opened ({reason(error)}): save it anew.") from error


def _checked_array(array: np.ndarray, most_pixels: int) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise InputError(
            f"an array of the shape {array.shape} and type {array.dtype} is no picture: give uint8 RGB (height, "
            "width, 3)."
        )
    _check_size("the picture", array.shape[1::-1], most_pixels)
    return np.ascontiguousarray(array)


def _check_size(name: str | Path, size: tuple[int, int], most_pixels: int) -> None:
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
    try:
        image.load()
        try:
            image = ImageOps.exif_transpose(image)
        except Exception:  # what cannot be read of the EXIF turns nothing
            image = image.copy()
        return np.asarray(_to_rgb(image))
    except Exception as error:
        raise InputError(
            f"the picture {name} cannot be decoded ({reason(error)}): copy or download it again, or save it anew."
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip
        deep = np.asarray(image).astype(np.float64)
        return Image.fromarray(np.round(deep.clip(0, 65535) / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose white is not known")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


# ---------------------------------------------------------------------------------- where the picture ends, in bytes


def _jpeg_end(data: bytes) -> int | None:
    at = _one_jpeg_end(data, 0)
    # Cameras put smaller or brighter versions behind the picture, as JPEGs of their own.
    while at is not None:
        rest = len(data) - len(data[at:].lstrip(_PADDING))
        if data[rest : rest + 3] != b"\xff\xd8\xff":
            break
        at = _one_jpeg_end(data, rest)
    return at


def _one_jpeg_end(data: bytes, at: int) -> int | None:
    at += 2
    while at < len(data):
        if data[at] != 0xFF:
            return None
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        at += 1
        if marker == 0xD9:
            return at
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:
            continue
        at += struct.unpack(">H", data[at : at + 2])[0]
        if marker == 0xDA:
            found = _JPEG_END_OF_SCAN.search(data, at)
            if found is None:
                return None
            at = found.start()
    return None


def _png_end(data: bytes) -> int | None:
    at = 8
    while True:
        length, name = struct.unpack(">I4s", data[at : at + 8])
        at += 12 + length
        if name == b"IEND":
            return at


def _webp_end(data: bytes) -> int:
    length = struct.unpack("<I", data[4:8])[0]
    return 8 + length + length % 2 if 8 + length < len(data) else 8 + length


def _gif_end(data: bytes) -> int | None:
    def colours(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    def skip_blocks(at: int) -> int:
        while data[at]:
            at += 1 + data[at]
        return at + 1

    at = 13 + colours(data[10])
    while data[at] != 0x3B:
        if data[at] == 0x21:  # an extension
            at = skip_blocks(at + 2)
        elif data[at] == 0x2C:  # a frame
            at = skip_blocks(at + 11 + colours(data[at + 9]))
        else:
            return None
    return at + 1


def _bmp_end(data: bytes) -> int:
    declared, _, start, header = struct.unpack("<IIII", data[2:18])
    if header == 12:
        (width, height, _, bits), compression = struct.unpack("<HHHH", data[18:26]), 0
    else:
        width, height, _, bits, compression = struct.unpack("<iiHHI", data[18:34])
    packed = compression in (1, 2, 4, 5)  # of whose length only the header knows
    return declared if packed else start + (width * bits + 31) // 32 * 4 * abs(height)


def _ppm_end(data: bytes) -> int | None:
    header = re.match(rb"P([56])" + rb"(?:\s|#[^\n]*\n)+(\d{1,9})" * 3 + rb"\s", data)
    if header is None:
        return None
    kind, width, height, most = (int(group) for group in header.groups())
    end = header.end() + width * height * (3 if kind == 6 else 1) * (2 if most > 255 else 1)
    # The ends of lines in it, too, grew in files that were once moved as text, as some of old data sets.
    return len(data) if end < len(data) <= end + (end >> 7) else end


_ENDS = {"BMP": _bmp_end, "GIF": _gif_end, "JPEG": _jpeg_end, "PNG": _png_end, "PPM": _ppm_end, "WEBP": _webp_end}

__all__ = ["MOST_PIXELS", "PICTURE_KINDS", "PICTURE_SUFFIXES", "content_kind", "file_kind", "read_picture"]
