"""What a file is by its content: its kind, whether it is something else besides, and where a PNG or JPEG ends.

Names decide nothing here, and nothing is decoded.
"""

import hashlib
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO

PICTURE_KINDS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
#: Suffixes by which pictures are found in a folder: those that Pillow and pillow-heif have for these kinds.
PICTURE_SUFFIXES = {
    *(".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".heic", ".heics", ".heif", ".heifs", ".hif", ".jfif"),
    *(".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
}
#: Suffixes of RAW photos and other pictures that cannot be read; a folder's are named and not passed over.
UNREAD_PICTURE_SUFFIXES = {
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".kdc", ".mef", ".mos"),
    *(".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
    *(".j2k", ".jp2", ".jpf", ".jpx", ".jxl"),
}

_HEIF_BRANDS = (b"heic", b"heim", b"heis", b"heix", b"hevc", b"hevm", b"hevs", b"hevx", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
_UNREAD_PICTURES = (
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (rb"\0\0\0\x0cJXL |\xff\x0a", "a JPEG XL picture"),
    (rb"....ftyp(avci|avcs|j2ki|j2is|jpeg|jpgs|miaf|mif2|mif3|vvic|vvis)", "a HEIF picture of a rare kind"),
    (rb"....ftypcrx |II\*\0....CR\x02", "a Canon RAW photo"),
    (rb"FUJIFILMCCD-RAW", "a Fujifilm RAW photo"),
    (rb"II[RU][OS\0]|MMOR|FOVb|\0MRM", "a RAW photo"),  # of Olympus, Panasonic, Sigma and Minolta
)
#: What files begin with that are mistaken for pictures, or passed off as them.
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

# Which pictures are refused because they are something else as well:
# - An archive, which programs open from its end; a PHP script, which runs wherever it stands; a PDF, whose header
#   readers look for. No place in a picture excuses these.
# - A web page or an SVG. Browsers go by the first bytes, which are those of a picture, so it runs only where somebody
#   serves the file as a page. In a comment or behind the picture it has no other purpose. In the text of a PNG and in
#   Content Credentials it has one, and is let be: image generators store prompts there, and signers their icons.
# At least five bytes of each pattern are fixed: four stand by chance in one photograph of some thousands.
_RUNS_ANYWHERE = re.compile(rb"<\?php\s|%pdf-[12]\.", re.IGNORECASE)
_PAGE = re.compile(
    rb"<script[\s/>]|<svg([\s/][^<>\x00\x80-\xff]{0,400})?[=>]|<html[\s/>]|<!doctype|<iframe[\s/>]|javascript:",
    re.IGNORECASE,
)
#: What all of that begins with: looked for first, since it takes a hundredth of the time.
_FOREIGN_STARTS = (b"<script", b"<svg", b"<html", b"<!doctype", b"<?php", b"<iframe", b"%pdf-", b"javascript:")
_ENDS = 65536  # bytes at either end of a file in which they are looked for
#: Text of a PNG that is kept: it may say how the picture is turned.
_ORIENTATION = (b"XML:com.adobe.xmp\0", b"Raw profile type ")
_MOST_UNPACKED = 1 << 20  # bytes in one chunk of a PNG: Pillow refuses more
_MOST_PACKED_CHUNKS = 16  # of a PNG, which needs one or two

_FILLING = 512  # zeros at the end of a file from which on a part may be missing that was never written
_JPEG_END = b"\xff\xd9"
_JPEG_RESTARTS = tuple(bytes([0xFF, 0xD0 + number]) for number in range(8))
#: Other markers of a JPEG, none of which stands among the pixels.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]", re.DOTALL)
_MOST_MARKERS = 10_000  # of 64 KB each, before and between the scans


def content_kind(head: bytes) -> str:
    """Return what a file is by its first bytes.

    Args:
        head: the first 512 bytes of it, or all, if it has fewer.

    Returns:
        One of `PICTURE_KINDS`, "video", or in words what else it is, such as "a PDF".
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


def is_unread_picture(kind: str) -> bool:
    """Whether a kind that `content_kind` returned is of a picture that cannot be read."""
    return any(kind == name for _, name in _UNREAD_PICTURES)


def is_text(head: bytes) -> bool:
    """Whether a file whose first bytes these are holds text: UTF-8, and no control characters but white space."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else a character that goes on behind them
            return False
        text = head[: error.start].decode()
    return bool(text) and all(each.isprintable() or each.isspace() for each in text.removeprefix("\ufeff"))


def is_something_else(data: bytes) -> bool:
    """Whether another program would find an archive, a document or a script in a picture."""
    ends = _ends(data)
    lower = ends.lower()
    if any(start in lower for start in _FOREIGN_STARTS) and (
        _RUNS_ANYWHERE.search(ends) or (_PAGE.search(ends) and _PAGE.search(_ends(_without_notes(data))))
    ):
        return True
    # By itself, `is_zipfile` looks for four bytes, which stand in photographs by chance, too.
    return b"PK\x01\x02" in data and zipfile.is_zipfile(BytesIO(data))


def _ends(data: bytes) -> bytes:
    return data[:_ENDS] + b"\n" + data[-_ENDS:]


def _without_notes(data: bytes) -> bytes:
    """Return a picture without the text of a PNG and without Content Credentials, which are boxes of JUMBF."""
    if content_kind(data[:512]) == "PNG":
        data = without_text(data)
    kept, at = [], 0
    for box in re.finditer(rb"jumb....jumd", data, re.DOTALL):
        start = box.start() - 4
        end = start + int.from_bytes(data[start : start + 4])
        if at <= start and end <= len(data):  # else it lies in another one, or is none
            kept.append(data[at:start])
            at = end
    return b"".join((*kept, data[at:]))


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the names of the chunks of a PNG, where each begins, and where it ends."""
    start, name = 8, b""
    while start + 8 <= len(data) and name != b"IEND":
        name, end = data[start + 4 : start + 8], start + 12 + int.from_bytes(data[start : start + 4])
        yield name, start, end
        start = end


def _without_chunks(data: bytes, is_dropped: Callable[[bytes, int, int], bool]) -> bytes:
    """Return a PNG without some chunks, given a function of what `png_chunks` yields."""
    kept, at = [], 0
    for name, start, end in png_chunks(data):
        if is_dropped(name, start, end):
            kept.append(data[at:start])
            at = end
    return b"".join((*kept, data[at:])) if kept else data


def without_text(data: bytes) -> bytes:
    """Return a PNG without text, but what may say how the picture is turned."""

    def is_dropped(name: bytes, start: int, end: int) -> bool:
        return name in (b"tEXt", b"zTXt", b"iTXt") and not data.startswith(_ORIENTATION, start + 8)

    return _without_chunks(data, is_dropped)


def without_oversized(data: bytes) -> tuple[bytes, set[bytes]]:
    """Return a PNG without the profiles and text that unpack to more than 1 MiB, and the names of their chunks."""
    names, packed = set(), 0

    def is_dropped(name: bytes, start: int, end: int) -> bool:
        nonlocal packed
        if name not in (b"iCCP", b"zTXt", b"iTXt"):
            return False
        packed += 1
        if packed <= _MOST_PACKED_CHUNKS and not _is_oversized(name, data[start + 8 : end - 4]):
            return False
        names.add(name)
        return True

    return _without_chunks(data, is_dropped), names


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


def with_end(kind: str, data: bytes) -> bytes:
    """Return a picture of a kind with its end marker, if it is a JPEG that lacks it, as those of some cameras do."""
    return data + _JPEG_END if kind == "JPEG" and not _has_jpeg_end(data) else data


def breaks_off(kind: str, data: bytes, decode: Callable[[bytes], bytes]) -> bool:
    """Whether a part of a picture is missing at its end, which decoders would fill with grey.

    Where the end is not there, or zeros are in its place, other bytes are put there: if nothing is missing, they
    change no pixel. In a WebP and where pixels are not compressed, zeros may be right, and are let be.

    Args:
        kind: of the picture, see `content_kind`.
        data: what is in its file.
        decode: returns the pixels of another version of it.
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
    """Yield the markers of a JPEG up to its end, and where what belongs to each begins."""
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
    """Whether a JPEG reaches into its last part: it is not progressive, and no restart among its pixels is missing."""
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


__all__ = [
    "PICTURE_KINDS",
    "PICTURE_SUFFIXES",
    "UNREAD_PICTURE_SUFFIXES",
    "breaks_off",
    "content_kind",
    "is_something_else",
    "is_text",
    "is_unread_picture",
    "png_chunks",
    "with_end",
    "without_oversized",
    "without_text",
]
