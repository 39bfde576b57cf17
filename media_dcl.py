"""Open images, and identify files by their content, whatever their extension.

The first bytes give the file type. The header gives the number of pixels before any of them is decoded. Images are
returned upright, as 8-bit sRGB: ICC profiles, the gamma of a PNG and CICP colour spaces are converted (relative
colorimetric with black-point compensation). In a TIFF, previews and masks are skipped.

Long because remote code should be few files. Its parts: file types, pages of a TIFF, colours, opening,
and the inputs of the pipeline.
"""

import functools
import hashlib
import http.client
import io
import math
import os
import re
import struct
import sys
import tempfile
import threading
import urllib.parse
import urllib.request
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, features

from .errors_dcl import InputError, PictureError, reason
from .video_dcl import VIDEO_SUFFIXES

if TYPE_CHECKING:
    import torch

PICTURE_KINDS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
#: Extensions of the images that are found in a folder: those that Pillow and pillow-heif use for these kinds.
PICTURE_SUFFIXES = {
    *(".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".heic", ".heics", ".heif", ".heifs", ".hif", ".jfif"),
    *(".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
}
#: Extensions of RAW photos and other unsupported images. In a folder they are reported, not skipped silently.
UNREAD_PICTURE_SUFFIXES = {
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".kdc", ".mef", ".mos"),
    *(".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
    *(".j2k", ".jp2", ".jpf", ".jpx", ".jxl"),
}

_HEIF_BRANDS = (b"heic", b"heim", b"heis", b"heix", b"hevc", b"hevm", b"hevs", b"hevx", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
_UNREAD_PICTURES = (
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (rb"\0\0\0\x0cJXL |\xff\x0a", "a JPEG XL image"),
    (rb"....ftyp(avci|avcs|j2ki|j2is|jpeg|jpgs|miaf|mif2|mif3|vvic|vvis)", "a HEIF image of a rare kind"),
    (rb"....ftypcrx |II\*\0....CR\x02", "a Canon RAW photo"),
    (rb"FUJIFILMCCD-RAW", "a Fujifilm RAW photo"),
    (rb"II[RU][OS\0]|MMOR|FOVb|\0MRM", "a RAW photo"),  # of Olympus, Panasonic, Sigma and Minolta
)
#: First bytes of files that are mistaken for images, or disguised as images.
_OTHERS = (
    (rb"%PDF", "a PDF"),
    (rb"PK\x03\x04", "a ZIP archive"),
    (rb"\x1f\x8b", "a gzip archive"),
    (rb"MZ|\x7fELF", "a program"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript file"),
    (rb"8BPS", "a Photoshop file"),
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

#: Text chunks of a PNG that are kept, because they may give the orientation.
_ORIENTATION = (b"XML:com.adobe.xmp\0", b"Raw profile type ")
_MOST_UNPACKED = 1 << 20  # bytes in one chunk of a PNG; Pillow refuses more
_MOST_PACKED_CHUNKS = 16  # of a PNG, which needs one or two

_FILLING = 512  # this many zeros at the end of a file may stand for a part that was never written
_JPEG_END = b"\xff\xd9"
_JPEG_RESTARTS = tuple(bytes([0xFF, 0xD0 + number]) for number in range(8))
#: Other markers of a JPEG, none of which stands among the pixels.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]", re.DOTALL)
_MOST_MARKERS = 10_000  # of 64 KB each, before and between the scans


def content_kind(head: bytes) -> str:
    """Identify a file by its first 512 bytes.

    Returns:
        One of `PICTURE_KINDS`, "video", "empty", "no picture" if the type is not known, or a description such as
        "a PDF".
    """
    for pattern, name in _UNREAD_PICTURES:
        if re.match(pattern, head, re.DOTALL):
            return name
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
    if re.match(rb"P[1-6f]\s", head):
        return "PPM"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):  # with a plus: BigTIFF
        return "TIFF"
    if head[4:8] == b"ftyp" and (kind := _kind_by_brand(head)):
        return kind
    for pattern, name in _OTHERS:
        if re.match(pattern, head, re.DOTALL):
            return name
    if any(re.match(pattern, head, re.DOTALL) for pattern in _VIDEOS):
        return "video"
    if _MARKUP.match(head):
        return "an SVG" if re.search(rb"<svg", head, re.IGNORECASE) else "HTML or XML"
    return "no picture" if head.strip(b"\0") else "empty"


def _kind_by_brand(head: bytes) -> str | None:
    """Return the kind of a picture in an ISO base media file; None if it is a video."""
    brand, others = head[8:12], head[16 : int.from_bytes(head[:4])]
    is_general = brand in (b"mif1", b"msf1")  # the container alone: the other brands say what is in it
    if brand in _AVIF_BRANDS or (is_general and any(others[at : at + 4] in _AVIF_BRANDS for at in range(0, 64, 4))):
        return "AVIF"
    return "HEIF" if brand in _HEIF_BRANDS else None


def is_text(head: bytes) -> bool:
    """Whether these first bytes are text: UTF-8 without control characters other than white space."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else a character that goes on behind them
            return False
        text = head[: error.start].decode()
    return bool(text) and all(each.isprintable() or each.isspace() for each in text.removeprefix("\ufeff"))


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the names of the chunks of a PNG, where each begins, and where it ends."""
    start, name = 8, b""
    while start + 8 <= len(data) and name != b"IEND":
        name, end = data[start + 4 : start + 8], start + 12 + int.from_bytes(data[start : start + 4])
        yield name, start, end
        start = end


def _without_burdens(data: bytes) -> tuple[bytes, set[bytes]]:
    """Remove the chunks that Pillow refuses from a PNG; also return the names of the oversized ones.

    Text is removed unless it may give the orientation. Profiles and text that unpack to more than 1 MiB are oversized.
    """
    oversized, packed = set(), 0
    kept, at = [], 0
    for name, start, end in _png_chunks(data):
        drop = name in (b"tEXt", b"zTXt", b"iTXt") and not data.startswith(_ORIENTATION, start + 8)
        if not drop and name in (b"iCCP", b"zTXt", b"iTXt"):
            packed += 1
            drop = packed > _MOST_PACKED_CHUNKS or _is_oversized(name, data[start + 8 : end - 4])
            oversized |= {name} if drop else set()
        if drop:
            kept.append(data[at:start])
            at = end
    return (b"".join((*kept, data[at:])) if kept else data), oversized


def _is_oversized(name: bytes, chunk: bytes) -> bool:
    _, _, rest = chunk.partition(b"\0")
    packed = rest[1:]  # behind the method
    if name == b"iTXt":
        if rest[:1] == b"\0":  # not compressed
            return False
        packed = rest[2:].split(b"\0", 2)[-1]
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(packed, _MOST_UNPACKED)
    except zlib.error:  # damaged, which Pillow passes over
        return False
    return bool(unpacker.unconsumed_tail)


def breaks_off(kind: str, data: bytes, decode: Callable[[bytes], bytes]) -> bool:
    """Whether the end of an image is missing; decoders would fill the gap with grey.

    If the end is absent or consists of zeros, it is replaced by other bytes: if nothing is missing, no pixel changes.
    `decode` returns the pixels of such a version. A WebP or an uncompressed image may rightly end in zeros, so these
    are not tested.
    """
    if kind not in ("AVIF", "GIF", "HEIF", "JPEG", "PNG") or (kind == "JPEG" and _has_jpeg_end(data)):
        return False
    there = data[: len(data.rstrip(b"\0")) + 64]  # some of the zeros may belong to what is there
    missing = len(data) - len(there)
    if kind == "JPEG":
        if not _may_be_whole(data):
            return True
        there = data if missing < _FILLING else there
        versions = (there + filling * 64 + _JPEG_END for filling in (b"\0", b"\x5a", b"\xa5"))
    elif missing >= _FILLING:
        versions = (data, there + b"\x5a" * missing)
    else:
        return False
    # Digests, since the pixels of one version may take hundreds of megabytes.
    digests = (hashlib.blake2b(decode(version)).digest() for version in versions)
    first = next(digests)
    return any(other != first for other in digests)


def _jpeg_markers(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the markers of a JPEG up to its end, each with the position of its content."""
    at = 2
    for _ in range(_MOST_MARKERS):
        match = _JPEG_MARKER.search(data, at)
        if match is None:
            return
        yield match[0][1], match.end()
        if match[0] == _JPEG_END:
            return
        at = match.end() + int.from_bytes(data[match.end() : match.end() + 2])


def _has_jpeg_end(data: bytes) -> bool:
    return any(marker == _JPEG_END[1] for marker, _ in _jpeg_markers(data))


def _may_be_whole(jpeg: bytes) -> bool:
    """Whether a JPEG may be complete: it has one scan, and no restart marker is missing."""
    blocks = interval = scan = 0
    for marker, at in _jpeg_markers(jpeg):
        if marker in (0xC0, 0xC1) and len(jpeg) > at + 8:
            height, width, components = struct.unpack(">HHB", jpeg[at + 3 : at + 8])
            factors = jpeg[at + 9 : at + 8 + 3 * components : 3] if components > 1 else b"\x11"
            across, down = (8 * max(factor >> shift & 15 for factor in factors) or 8 for shift in (4, 0))
            blocks = -(-width // across) * -(-height // down)
        elif marker == 0xDD:
            interval = int.from_bytes(jpeg[at + 2 : at + 4])
        elif marker == 0xDA:
            if scan:
                return False
            scan = at
    if not scan or not blocks:
        return False
    return not interval or sum(jpeg.count(each, scan) for each in _JPEG_RESTARTS) >= (blocks - 1) // interval


_MOST_PAGES = 16  # that are examined
_SHARED = 8 << 20  # bytes that several pages may read, such as a profile
_PREVIEW = 1.5  # a page is a preview of another that has so many times its width and height
_SUB_IFDS, _NEW_SUBFILE, _OLD_SUBFILE, _ICC = 330, 254, 255, 34675  # tags of TIFF


class BoundedReader(BytesIO):
    """A TIFF in memory that raises a ValueError once more bytes are read than its pages can contain.

    If many pages or tags point to one large table, a small file would take minutes to open.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left: float = 2 * len(data) + _SHARED  # Pillow reads the tags of a page twice

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as `BytesIO` does, but raise a ValueError once too much was read."""
        part = super().read(size)
        self._left -= len(part)
        if self._left < 0:
            raise ValueError("many of its pages or tags point to the same data")
        return part

    def lift(self) -> None:
        """Remove the limit, so that the pixels can be decoded."""
        self._left = math.inf


def choose_page(image: Image.Image, name: str | Path) -> tuple[int, list[str]]:
    """Find the first page of a TIFF that is not a preview or mask of another page.

    Returns its number, from 0, and a note if there are more pages or some are unreadable. Raises `PictureError` if the
    file contains only previews, as some RAW photos do. A multi-page image cannot be used afterwards.
    """
    pages: list[tuple[int, tuple[int, int], str]] = []
    has_parts = is_damaged = False
    for number in range(_MOST_PAGES + 1 if image.is_animated else 1):
        try:
            image.seek(number)
        except EOFError:  # there are no more
            break
        except Exception:
            is_damaged = True
            break
        pages.append((number, image.size, _role(image)))
        has_parts |= _SUB_IFDS in image.tag_v2
    full = [page for page in pages if page[2] not in ("mask", "preview")]
    if not full and has_parts:  # the full image is in one of the parts
        raise PictureError(
            f"{name} contains only previews of an image, like a RAW photo. Convert it to JPEG.",
            "it contains only previews of an image",
        )
    # If all pages are marked as previews, the largest one is the image itself.
    full = full or [page for page in pages if page[2] != "mask"] or pages
    whole = [
        number
        for number, size, role in full
        if role == "page" or not any(_is_preview(size, other) for _, other, _ in full)
    ]
    notes = []
    if is_damaged:
        notes = [f"The file is damaged or truncated after page {len(pages)}; only the first page was analyzed."]
    elif len(pages) > _MOST_PAGES:
        notes = [f"The file has more than {_MOST_PAGES} pages; only the first was analyzed."]
    elif len(whole) > 1:
        notes = [f"The file has {len(whole)} pages; only the first was analyzed."]
    return whole[0], notes


def _role(image: Image.Image) -> str:
    """Return how a TIFF marks its current page: "mask", "preview", "page" (of a document), or "" if it does not."""
    new, old = (image.tag_v2.get(tag) or 0 for tag in (_NEW_SUBFILE, _OLD_SUBFILE))
    if new & 0b100:
        return "mask"
    if new & 0b001 or old == 2:
        return "preview"
    return "page" if new & 0b010 or old == 3 else ""


def _is_preview(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether a page may be a smaller copy of another: it has the same aspect ratio, up to a pixel."""
    (width, height), (full_width, full_height) = size, other
    same_shape = abs(width * full_height - height * full_width) <= max(full_width, full_height)
    return same_shape and full_width >= _PREVIEW * width and full_height >= _PREVIEW * height


def notes_on_frames(image: Image.Image) -> list[str]:
    """Return a note if there are more frames. Call it after decoding: counting may change the current frame."""
    try:
        if image.format in ("TIFF", "MPO") or not getattr(image, "is_animated", False):  # TIFF: see `choose_page`
            return []
        if image.format == "HEIF":
            return [f"The file has {image.n_frames} images; only the main one was analyzed."]
        return ["The image is animated; only its first frame was analyzed."]
    except Exception:  # the second frame is damaged
        return []


MOST_PROFILE_BYTES = 4 << 20  # the largest profiles, those of printers, have 3 MB
_STRIP = 1 << 22  # pixels converted at once: intermediate copies of a large image would take gigabytes
_BOXES = 65536  # bytes at the start of an AVIF or HEIC that contain its metadata
_SAME = 2  # of 255; common sRGB profiles differ by no more than this

#: By the numbers of ITU-T H.273: name, then x and y of white, red, green and blue.
_D65 = (0.3127, 0.3290)
_PRIMARIES = {
    9: ("BT.2020", (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046)),
    11: ("DCI-P3", (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)),
    12: ("Display P3", (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)),
}
_SRGB_PRIMARIES = (*_D65, 0.640, 0.330, 0.300, 0.600, 0.150, 0.060)
_HDR = {16: "PQ", 18: "HLG"}
_LINEAR = 8
_PNG_GAMMA, _GAMMA_TOLERANCE = 1 / 2.2, 0.01  # by which PNGs say that they are sRGB

_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D50 = np.array([0.9642, 1.0, 0.8249])

DAMAGED = "The colour profile is damaged and was ignored."
OVERSIZED = "The colour profile is too large and was ignored."
UNFITTING = "The colour profile does not fit the image and was ignored."


class _Conversion(NamedTuple):
    """The conversion of pixels of a `mode` ("RGB", "L" or "CMYK") to sRGB, and the name of their colour space."""

    mode: str
    transform: ImageCms.ImageCmsTransform
    name: str
    is_srgb: bool


def srgb_pixels(image: Image.Image, cicp: tuple[int, int] | None = None) -> tuple[np.ndarray, list[str]]:
    """Convert a loaded image to sRGB.

    16 bits per channel are scaled to 8, and transparent areas become white.

    Args:
        image: a loaded image.
        cicp: the numbers of its primaries and transfer function (ITU-T H.273), if the file gives them. They take
            precedence over a profile.

    Returns:
        The pixels, uint8 (height, width, 3), possibly read-only, and notes on the conversion.
    """
    conversion, notes = _find_conversion(image, cicp)
    width, height = image.size
    if width * height <= _STRIP:
        return np.asarray(_rgb(image, conversion)), notes
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        pixels[top : top + rows] = np.asarray(_rgb(strip, conversion))
    return pixels, notes


def named_space(data: bytes, image: Image.Image) -> tuple[int, int] | None:
    """Return the numbers (ITU-T H.273) of the primaries and transfer function that a PNG, AVIF or HEIC gives.

    Returns None if there are none, or if a profile is more precise.
    """
    if image.format == "PNG":
        for name, start, end in _png_chunks(data):
            if name == b"cICP" and end - start == 16:
                return data[start + 8], data[start + 9]
    elif image.format in ("AVIF", "HEIF") and "icc_profile" not in image.info:
        box = re.search(rb"colrnclx(..)(..)", data[:_BOXES], re.DOTALL)
        if box:
            return int.from_bytes(box[1]), int.from_bytes(box[2])
    return None


def to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scale values from [0, 65535] to uint8; values outside are clipped."""
    return np.round(values.clip(0, 65535) / 257).astype(np.uint8)


def _find_conversion(image: Image.Image, cicp: tuple[int, int] | None) -> tuple[_Conversion | None, list[str]]:
    """Return the conversion of an image to sRGB, None if it is sRGB already, and notes."""
    info = image.info
    try:
        if cicp is not None:
            primaries, transfer = cicp
            if transfer in _HDR:
                return None, [
                    f"The image is HDR ({_HDR[transfer]}) and was read without tone mapping; its colours may be off."
                ]
            name, chromaticity = _PRIMARIES.get(primaries, ("linear sRGB", _SRGB_PRIMARIES))
            if primaries not in _PRIMARIES and transfer != _LINEAR:
                return None, []
            conversion = _conversion(_profile_of(chromaticity, 1.0 if transfer == _LINEAR else None), name)
        elif "icc_profile" in info:
            profile = info["icc_profile"]
            if profile is None:  # Pillow's for one that it could not unpack
                return None, [DAMAGED]
            if not profile:
                return None, []
            if len(profile) > MOST_PROFILE_BYTES:
                return None, [OVERSIZED]
            conversion = _conversion(bytes(profile))
        elif ("gamma" in info or "chromaticity" in info) and "srgb" not in info:
            gamma = info.get("gamma") or _PNG_GAMMA
            exponent = None if abs(gamma - _PNG_GAMMA) < _GAMMA_TOLERANCE else 1 / gamma
            chromaticity = tuple(info.get("chromaticity", _SRGB_PRIMARIES))
            conversion = _conversion(_profile_of(chromaticity, exponent), "the gamma and primaries of its file")
        else:
            return None, []
    except Exception:  # PyCMSError, ArithmeticError, struct.error and others, by what is wrong
        return None, [DAMAGED]
    if conversion is not None and conversion.is_srgb:
        return None, []
    if conversion is None or conversion.mode not in _modes_of_profiles(image.mode):
        return None, [UNFITTING]
    return conversion, [f"Converted from {conversion.name} to sRGB."]


def _modes_of_profiles(mode: str) -> tuple[str, ...]:
    if mode == "CMYK":
        return ("CMYK",)
    return ("L", "RGB") if mode in ("1", "L", "LA") or mode.startswith("I") else ("RGB",)


@functools.lru_cache(maxsize=8)
def _conversion(profile: bytes, name: str | None = None) -> _Conversion | None:
    """Return the conversion from an ICC profile to sRGB, None if the profile is not for pixels; raises if damaged."""
    opened = ImageCms.ImageCmsProfile(BytesIO(profile))
    mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(opened.profile.xcolor_space.strip())
    if mode is None:  # such as a list of named colours
        return None
    transform = ImageCms.buildTransform(
        opened,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if name is None:
        said = "".join(each if each.isprintable() else " " for each in ImageCms.getProfileDescription(opened))
        name = " ".join(said.split())[:60] or "the colour space of its profile"
    is_srgb = False
    if mode != "CMYK":
        sample = _sample(mode)
        difference = np.asarray(transform.apply(sample)).astype(int) - np.asarray(sample.convert("RGB"))
        is_srgb = bool(np.abs(difference).max() <= _SAME)
    return _Conversion(mode, transform, name, is_srgb)


@functools.cache
def _sample(mode: str) -> Image.Image:
    """Return an image of all greys and, unless it is grey, 216 colours."""
    grey = np.arange(256, dtype=np.uint8)[None]
    if mode == "L":
        return Image.fromarray(grey)
    colours = np.stack(np.meshgrid(*[np.arange(0, 256, 51, np.uint8)] * 3), axis=-1).reshape(1, -1, 3)
    return Image.fromarray(np.concatenate([grey[..., None].repeat(3, 2), colours], axis=1))


def _profile_of(chromaticity: Sequence[float], exponent: float | None) -> bytes:
    """Return a matrix-and-curve ICC profile.

    It takes x and y of white, red, green and blue, and the exponent of the transfer curve; None means the curve of
    sRGB.
    """
    with np.errstate(all="raise"):
        x, y = np.array(chromaticity, float).reshape(4, 2).T
        white, *primaries = np.stack([x / y, np.ones(4), (1 - x - y) / y], axis=1)
        columns = np.transpose(primaries)
        columns = columns * np.linalg.solve(columns, white)
        adaption = np.linalg.inv(_BRADFORD) @ np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white)) @ _BRADFORD
        values = np.linspace(0, 1, 1024)
        if exponent is None:
            light = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        else:
            light = np.exp(exponent * np.log(values.clip(1e-6)))
            light[0] = 0
    curve = struct.pack(">4s4xI1024H", b"curv", 1024, *np.round(light * 65535).astype(int))
    parts = {
        name + b"XYZ": struct.pack(">4s4x3i", b"XYZ ", *np.round(column * 65536).astype(int))
        for name, column in zip((b"r", b"g", b"b"), (adaption @ columns).T, strict=True)
    }
    table, body = [], b""
    start = 128 + 4 + 12 * 6
    for name, data in parts.items():
        table.append((name, start + len(body), len(data)))
        body += data
    table += [(name, start + len(body), len(curve)) for name in (b"rTRC", b"gTRC", b"bTRC")]
    body += curve
    header = struct.pack(
        ">I4xI4s4s4s12x4s28x3I48x",
        start + len(body),
        0x02400000,
        b"mntr",
        b"RGB ",
        b"XYZ ",
        b"acsp",
        63190,
        65536,
        54061,
    )
    return header + struct.pack(">I", 6) + b"".join(struct.pack(">4sII", *entry) for entry in table) + body


def _rgb(image: Image.Image, conversion: _Conversion | None) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip
        image = _grey_of_16_bits(image)
    if not image.has_transparency_data:
        return _opaque_rgb(image, conversion)
    clear = image.convert("RGBA")
    if conversion is not None:
        alpha = clear.getchannel("A")
        clear = _opaque_rgb(clear if conversion.mode == "RGB" else image, conversion)
        clear.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), clear).convert("RGB")


def _opaque_rgb(image: Image.Image, conversion: _Conversion | None) -> Image.Image:
    mode = "RGB" if conversion is None else conversion.mode
    image = image if image.mode == mode else image.convert(mode)
    return image if conversion is None else conversion.transform.apply(image)


def _grey_of_16_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    grey = Image.fromarray(to_8_bits(values))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


MOST_PIXELS = 50_000_000
MOST_BYTES = 256 << 20  # of a file; no image of that many pixels needs more
_AGAIN = "Copy or download it again, or save it again as JPEG or PNG"
_OVERSIZED_TEXT = "The metadata is too large and was ignored."
#: The formats that are read, for errors.
_READ = "JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF, PBM, PGM, PPM, or HEIC with the extra `heif`"


@dataclass(frozen=True)
class Picture:
    """A decoded image.

    Attributes:
        pixels: upright, sRGB, uint8 (height, width, 3), possibly read-only.
        notes: short sentences on conversions, and on parts of the file that were not used.
    """

    pixels: np.ndarray
    notes: tuple[str, ...] = ()


def file_kind(path: str | Path) -> str:
    """Identify a file by its content, see `content_kind`.

    Raises:
        InputError: if the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return content_kind(file.read(512))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({reason(error)}). Check its path and permissions.") from error


def read_picture(picture: Any, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """Return the pixels of an image, uint8 (height, width, 3); see `open_picture`."""
    return open_picture(picture, most_pixels).pixels


def open_picture(picture: Any, most_pixels: int = MOST_PIXELS) -> Picture:
    """Read an image: upright by its EXIF or XMP, converted to 8-bit sRGB, with transparent areas white.

    Animations give their first frame. A TIFF gives its first page that is not a preview or mask of another.

    Args:
        picture: the path of a JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF, PBM, PGM or PPM file, or of a HEIC file if
            pillow-heif is installed; a `PIL.Image`; or an RGB array (height, width, 3), uint8 or floats in [0, 1].
        most_pixels: larger images are rejected before they are decoded.

    Returns:
        The pixels, uint8 (height, width, 3), and notes.

    Raises:
        PictureError: if the input is too large, truncated, damaged, or not an image.
    """
    if isinstance(picture, np.ndarray):
        return Picture(_checked_array(picture, most_pixels))
    if isinstance(picture, Image.Image):
        name = getattr(picture, "filename", "") or "<image>"
        _check_size(name, picture.size, most_pixels)
        with _explained(f"Image {name} cannot be decoded", _AGAIN):
            return _decoded(name, picture)
    if not isinstance(picture, str | Path):
        raise PictureError(
            f"An object of type {type(picture).__name__} is not an image. Pass a path, a PIL image, or an RGB array "
            "(height, width, 3)."
        )
    return decode_picture(_read(Path(picture)), picture, most_pixels)


def decode_picture(data: bytes, name: str | Path, most_pixels: int = MOST_PIXELS) -> Picture:
    """Read an image as `open_picture` does, from the bytes of its file; `name` is for errors."""
    image, notes = _opened(data, name, most_pixels)
    with image, _explained(f"Image {name} cannot be decoded", _AGAIN):
        decoded = _decoded(name, image, named_space(data, image), owned=True)
        return Picture(decoded.pixels, (*decoded.notes, *notes, *notes_on_frames(image)))


def read_values(source: bytes | str | Path, name: str | Path, mode: str, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """Read the stored values of an image, such as a mask, upright and without colour conversion.

    Args:
        source: the path, or all bytes of the file.
        name: the name of the image in errors.
        mode: "L" or "RGB".
        most_pixels: larger images are rejected before they are decoded.

    Returns:
        uint8 (height, width) or (height, width, 3), writable.

    Raises:
        PictureError: as in `open_picture`, or if there are more than 8 bits per channel.
    """
    image, _ = _opened(source if isinstance(source, bytes) else _read(Path(source)), name, most_pixels)
    with image, _explained(f"Image {name} cannot be decoded", _AGAIN):
        if image.mode.startswith(("I", "F")):
            raise PictureError(
                f"The pixels of {name} are {image.mode}, not 8 bits per channel. Save it with 8 bits.",
                f"its pixels are {image.mode}, not 8 bits per channel",
            )
        image.load()
        return np.array(_upright(image, owned=True).convert(mode))


def _checked_array(array: np.ndarray, most_pixels: int) -> np.ndarray:
    is_float = array.dtype.kind == "f"
    if not (is_float or array.dtype == np.uint8) or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise PictureError(
            f"An array of shape {array.shape} and type {array.dtype} is not an image. Pass RGB (height, width, 3), "
            "uint8 or floats in [0, 1]."
        )
    _check_size("<image>", array.shape[1::-1], most_pixels)
    if is_float:
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise PictureError(
                f"The values of a floating-point image range from {low:g} to {high:g}. Scale them to [0, 1], "
                "or pass uint8."
            )
        array = np.rint(array.astype(np.float32) * 255).astype(np.uint8)
    return np.ascontiguousarray(array)


def _check_size(name: str | Path, size: tuple[int, int], most_pixels: int) -> None:
    has = f"has {size[0]}x{size[1]} pixels"
    if size[0] * size[1] == 0:
        raise PictureError(f"{name} {has}. Pass an image that is not empty.", f"it {has}")
    if size[0] * size[1] > most_pixels:
        raise PictureError(
            f"{name} {has}, more than {most_pixels:,}. Make it smaller, or raise most_pixels.",
            f"it {has}, more than {most_pixels:,}",
        )


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise PictureError(f"File {path} not found. Check the path.", "file not found")
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise PictureError(
                f"{path} has {size >> 20} MiB, too much for an image. Make it smaller.", f"it has {size >> 20} MiB"
            )
        data = path.read_bytes()
    except PictureError:
        raise
    except (OSError, ValueError) as error:
        raise PictureError(
            f"{path} cannot be read ({reason(error)}). Check its path and permissions.", reason(error)
        ) from error
    if not data:
        raise PictureError(f"{path} is empty. Copy or download it again.", "it is empty")
    return data


def _check_kind(data: bytes, name: str | Path) -> str:
    """Return the kind of an image; raise a `PictureError` if it is not an image, or not supported here."""
    kind = content_kind(data[:512])
    if kind == "HEIF" and not _reads_heif():
        what, remedy = "a HEIC photo", "Run `pip install pillow-heif`, or convert it to JPEG"
    elif kind == "AVIF" and not features.check("avif"):
        what, remedy = "an AVIF image", "Run `pip install --upgrade pillow`, or convert it to JPEG"
    elif kind in PICTURE_KINDS:
        return kind
    elif any(kind == name for _, name in _UNREAD_PICTURES):
        what, remedy = kind, "Convert it to JPEG"
    else:
        what = {"video": "a video", "no picture": "not an image"}.get(kind, kind)
        raise PictureError(f"{name} is {what}. Pass an image: {_READ}.", f"it is {what}")
    raise PictureError(f"{name} is {what}. {remedy}.", f"it is {what}; {remedy[0].lower()}{remedy[1:]}")


@functools.cache
def _reads_heif() -> bool:
    """Whether HEIC can be read; if so, register it with Pillow."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
    return True


@contextmanager
def _explained(what: str, remedy: str) -> Iterator[None]:
    """Turn every error of Pillow into a `PictureError`: its own messages are about its internals."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of damaged EXIF and of a limit that is another one here
            yield
    except InputError:
        raise
    except Exception as error:  # OSError, SyntaxError, ValueError, struct.error and others, by the format
        why = "it is truncated" if "truncated" in str(error).lower() else "it is damaged"
        raise PictureError(f"{what} ({why}). {remedy}.", why) from error


def _opened(data: bytes, name: str | Path, most_pixels: int) -> tuple[Image.Image, list[str]]:
    """Open an image at the page or frame to decode, and return notes on the parts that are skipped."""
    kind, notes = _check_kind(data, name), []
    remedy = "Convert it to JPEG" if kind == "TIFF" else "Save it again as JPEG or PNG"
    with _explained(f"Image {name} cannot be opened", remedy):
        if kind == "PNG":
            data, oversized = _without_burdens(data)
            notes += [OVERSIZED] if b"iCCP" in oversized else []
            notes += [_OVERSIZED_TEXT] if oversized - {b"iCCP"} else []
        end = _JPEG_END if kind == "JPEG" and not _has_jpeg_end(data) else b""  # some cameras leave it out
        source = BoundedReader(data) if kind == "TIFF" else BytesIO(data + end)
        try:
            image = Image.open(source, formats=[kind])  # other formats start programs
        except Image.DecompressionBombError as error:
            what = f"has more than {most_pixels:,} pixels"
            raise PictureError(f"{name} {what}. Make it smaller.", f"it {what}") from error
        if isinstance(source, BoundedReader):
            number, passed_over = choose_page(image, name)
            notes += passed_over
            source.lift()
            if image.is_animated:  # reading a damaged page may have changed its state
                image = Image.open(BytesIO(data), formats=[kind])
                image.seek(number)
                if _ICC not in image.tag_v2:
                    image.info.pop("icc_profile", None)  # of the first page
        _check_size(name, image.size, most_pixels)
    with _explained(f"Image {name} cannot be decoded", _AGAIN):
        if breaks_off(kind, data, lambda version: Image.open(BytesIO(version), formats=[kind]).tobytes()):
            raise OSError("the image is truncated")
    return image, notes


def _decoded(
    name: str | Path, image: Image.Image, cicp: tuple[int, int] | None = None, owned: bool = False
) -> Picture:
    if image.mode == "F":
        raise PictureError(
            f"The pixels of {name} are floating-point numbers without a known white. Save it with 8 bits.",
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
    except Exception:  # unreadable EXIF: leave the image as it is
        pass
    return image


_BYTES = bytes | bytearray | memoryview
#: Types that are iterable but are one input.
_SINGLE = _BYTES | Image.Image | Mapping
#: Extensions of the files that are found in a folder.
_LOOKED_AT = PICTURE_SUFFIXES | UNREAD_PICTURE_SUFFIXES | VIDEO_SUFFIXES
#: Extensions of videos that TypeScript and Go use, too.
_OF_CODE = {".mod", ".mts", ".ts"}
#: Names of files and folders that systems create: lists, thumbnails, snapshots, and deleted files.
_OF_SYSTEMS = {
    *("$recycle.bin", "__macosx", "desktop.ini", "lost+found", "recycler", "system volume information", "thumbs.db"),
    *("#recycle", "#snapshot", "@eadir", "@recently-snapshot", "@recycle", "@tmp"),  # of network drives
}
_KINDS_SHOWN = 5
_ADDRESS = re.compile(r"https?://", re.IGNORECASE)
_MOST_COPIED = 2 << 30  # bytes of a download, or of an input without a path
_PATIENCE, _LONGEST_DOWNLOAD = 30.0, 600.0  # seconds without a byte of a download, and for all of it


def find_files(folder: str | Path) -> list[Path]:
    """Find the images and videos of a folder and its sub-folders by their extensions.

    Hidden and system files are skipped, and links to folders are not followed. Images of unsupported formats and
    folders that cannot be listed are included, so that the results report them.

    Args:
        folder: the folder.

    Returns:
        The paths, sorted.

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
    """Count the files of a folder that `find_files` skips, by their lower-case extension ("" if it has no usual one).

    Hidden and system files are not counted.
    """
    skipped: Counter[str] = Counter()
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_of_system(name)]
        skipped += count_skipped((Path(place, name) for name in names), _LOOKED_AT)
    return skipped


def count_skipped(files: Iterable[Path], looked_at: Collection[str]) -> Counter[str]:
    """Count the files whose extension is not in `looked_at`, as `skipped_files` does."""
    suffixes = (
        path.suffix.lower() for path in files if not is_of_system(path.name) and not is_looked_at(path, looked_at)
    )
    return Counter(suffix if re.fullmatch(r"\.[a-z0-9_+-]{1,10}", suffix) else "" for suffix in suffixes)


def is_of_system(name: str) -> bool:
    """Whether the name is that of a hidden or system file or folder."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def is_looked_at(path: Path, suffixes: Collection[str]) -> bool:
    """Whether a file has one of these extensions and is not source code that happens to share it."""
    return path.suffix.lower() in suffixes and not _is_code(path)


def _is_code(path: Path) -> bool:
    if path.suffix.lower() not in _OF_CODE or not os.path.isfile(path):  # opening a pipe would wait for its writer
        return False
    try:
        with path.open("rb") as file:
            return is_text(file.read(512))
    except OSError:  # reported when the file is read
        return False


def say_skipped(skipped: Counter[str], videos: bool = True) -> str:
    """Return a sentence or two on the files that `skipped_files` counted, "" if there were none."""
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
    return InputError(f"Folder {folder} contains no images or videos. Check the path.")


def is_several(inputs: Any) -> bool:
    """Whether this is a folder, a list or a stack, not a single image or video."""
    if isinstance(inputs, str | Path):
        return not is_address(inputs) and os.path.isdir(inputs)
    if isinstance(inputs, np.ndarray) or _is_tensor(inputs):
        return inputs.ndim == 4
    return isinstance(inputs, Iterable) and not isinstance(inputs, _SINGLE) and not _is_file_object(inputs)


def _is_tensor(item: Any) -> bool:
    torch = sys.modules.get("torch")  # whoever has a tensor has imported it; others need not wait for the import
    return torch is not None and isinstance(item, torch.Tensor)


def _is_file_object(item: Any) -> bool:
    return hasattr(item, "read")  # the files of `tempfile` are not `io.IOBase`


def is_address(item: Any) -> bool:
    """Whether this is an http or https address."""
    return isinstance(item, str) and _ADDRESS.match(item) is not None


def each_of(inputs: Any) -> Iterator[Any]:
    """Yield the single inputs of a folder, a list or a stack; a list may contain folders."""
    for item in find_files(inputs) if isinstance(inputs, str | Path) else inputs:
        if not isinstance(item, str | Path) or not is_several(item):
            yield item
            continue
        try:
            files = find_files(item)
        except InputError:  # reported when this input is opened, so that the others are still analyzed
            files = [item]
        yield from files


def name_of(item: Any) -> str | None:
    """Return the name of an input in results, None if it has none."""
    if isinstance(item, str | Path):
        return str(item)
    if _is_file_object(item):
        name = getattr(item, "name", None)  # of an unnamed temporary file, a number
        return name if isinstance(name, str) else None
    return str(getattr(item, "name_or_path", None) or getattr(item, "filename", None) or "") or None


@contextmanager
def opened(item: Any, most_pixels: int, allow_urls: bool = False) -> Iterator[Path | Picture]:
    """Open one input: a video as the path of a file that exists inside the `with`, anything else as an image.

    Args:
        item: the path of an image or video; its http or https address; its encoded bytes, or a binary file object,
            which is read from the beginning; a `PIL.Image`; or an array (height, width, 3) or tensor (3, height,
            width), RGB, uint8 or floats in [0, 1].
        most_pixels: larger images are rejected before they are decoded.
        allow_urls: whether addresses are fetched.

    Yields:
        The path of a video, or an image.

    Raises:
        InputError: if the input cannot be read, or is neither an image nor a video.
    """
    with ExitStack() as stack:
        if is_address(item):
            if not allow_urls:
                raise InputError(f"{item} is a URL. Pass allow_urls=True to fetch it.")
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
            f"A tensor of shape {tuple(tensor.shape)} is not an image. Pass RGB (3, height, width), or a stack "
            "(N, 3, height, width)."
        )
    if tensor.is_floating_point():
        tensor = tensor.float()  # NumPy has no bfloat16
    return tensor.detach().cpu().permute(1, 2, 0).numpy()


def is_video(item: Any) -> bool:
    """Whether an input is the path of a video, judged by the content of the file.

    Raises:
        InputError: if the file cannot be read, or its extension contradicts its content.
    """
    if not isinstance(item, str | Path):
        return False
    path = Path(item)
    if not str(item):  # to a Path, the current folder
        raise InputError("The path is empty. Pass the path of a file.")
    try:
        if path.is_dir():
            try:
                os.scandir(item).close()
            except OSError as error:
                raise InputError(f"Folder {path} cannot be listed. Check its permissions.") from error
            raise _nothing_in(path)
        if not path.is_file():
            if os.path.exists(item):
                raise InputError(f"{path} is not a regular file. Copy its content to one.")
            raise InputError(f"File {path} not found. Check the path.")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({reason(error)}). Check its path and permissions.") from error
    kind, suffix = file_kind(path), path.suffix.lower()
    if _is_code(path):
        raise InputError(f"{path} is a text file with a video extension. Pass an image or a video.")
    if kind == "video" and suffix in PICTURE_SUFFIXES:
        raise InputError(f"{path} is a video with an image extension. Rename it, for example to .mp4.")
    if kind in PICTURE_KINDS and suffix in VIDEO_SUFFIXES:
        raise InputError(f"{path} is an image with a video extension. Rename it, for example to .{kind.lower()}.")
    return kind == "video" or (kind in ("no picture", "empty") and suffix in VIDEO_SUFFIXES)


@contextmanager
def downloaded(address: str) -> Iterator[Path]:
    """Download an address to a file that exists inside the `with`; errors name the address, not the file.

    Raises:
        InputError: if it cannot be fetched, is too large, or takes too long.
    """
    with _temporary_file(address, address.split("?")[0].split("#")[0]) as path:
        with path.open("wb") as file:
            _download(address, file)
        yield path


@contextmanager
def _temporary_file(name: str, path: str) -> Iterator[Path]:
    """Give a path in a temporary folder with the extension of the input; errors name the input, not the path."""
    suffix = Path(path).suffix.lower()
    with tempfile.TemporaryDirectory(prefix="dcl-") as folder:
        place = Path(folder, f"file{suffix if suffix in PICTURE_SUFFIXES | VIDEO_SUFFIXES else ''}")
        try:
            yield place
        except InputError as error:
            raise InputError(str(error).replace(str(place), name)) from error


@contextmanager
def _copied(source: Any) -> Iterator[Path]:
    """Copy bytes or a binary file object to a temporary file: FFmpeg reads paths, and the same checks apply."""
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
                        raise InputError(f"{name} is open in text mode. Open it in binary mode ('rb').")
                    file.write(part)
                    if file.tell() > _MOST_COPIED:
                        raise InputError(f"{name} has more than {_MOST_COPIED >> 30} GiB. Pass a smaller file.")
        except InputError:
            raise
        except Exception as error:  # of whatever kind of file object it is, or of the disk
            raise InputError(
                f"{name} cannot be copied to {path.parent.parent} ({reason(error)}). Pass its path instead, or free "
                "some space."
            ) from error
        yield path


def _download(address: str, file: BinaryIO) -> None:
    """Fetch an address within a total time limit: the timeout of a connection restarts with every byte."""
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
            f"{address} could not be downloaded within {_LONGEST_DOWNLOAD:g} s. Download it by other means, and pass "
            "the file."
        )
    if failures:
        error = failures[0]
        if isinstance(error, InputError):
            raise error
        if isinstance(error, http.client.IncompleteRead):
            why = "the connection was interrupted"
        else:
            why = getattr(error, "reason", error)  # of a URLError, a text or what lies beneath
            why = reason(why) if isinstance(why, Exception) else why
        raise InputError(f"{address} cannot be fetched ({why}). Check the address and the network.") from error


def _fetch(address: str, file: BinaryIO) -> None:
    opener = urllib.request.OpenerDirector()  # the default one also follows redirects to FTP
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
                raise InputError(f"{address} has more than {_MOST_COPIED >> 30} GiB. Pass a smaller file.")
        if answer.length:  # bytes that the server announced and did not send
            raise http.client.IncompleteRead(b"", answer.length)
