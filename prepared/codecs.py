"""Fast decoding of the images that data preparation writes: lossless WebP, and PNG, without anything about colours.

OpenCV decodes them in two thirds of Pillow's time, to the same pixels. Whatever else a file is or has, a profile, an
alpha channel, a turn, damage, is left to `media_dcl`, which knows what to make of it and what to say.
"""

import zlib

import cv2
import numpy as np

from ..media_dcl import MOST_PIXELS

_PNG = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB = 0, 2  # colour types of PNG


def decode_plain(data: bytes, grey: bool = False) -> np.ndarray | None:
    """Decode a plain file: a WebP with nothing but a lossless image, or a PNG of 8 bits a channel without metadata.

    Args:
        data: all bytes of the file.
        grey: whether a grey PNG is wanted, such as a mask, instead of a coloured image.

    Returns:
        uint8 (height, width, 3), RGB, or if `grey`, (height, width); writable. None if the file is not such a one, is
        damaged, or has more pixels than detection accepts.
    """
    size = _png_size(data, _GREY if grey else _RGB)
    if size is None and not grey:
        size = _webp_size(data)
    if size is None or size[0] * size[1] > MOST_PIXELS:
        return None
    try:
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        return None
    return values if values is not None and values.shape[:2] == size else None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Return height and width of a simple lossless WebP without transparency."""
    if data[:4] != b"RIFF" or data[8:16] != b"WEBPVP8L" or data[20:21] != b"\x2f":
        return None
    if int.from_bytes(data[4:8], "little") + 8 != len(data):
        return None
    header = int.from_bytes(data[21:25], "little")  # 14 bits each of width and height, less 1, and one of transparency
    if header >> 28 & 1:
        return None
    return (header >> 14 & 0x3FFF) + 1, (header & 0x3FFF) + 1


def _png_size(data: bytes, color: int) -> tuple[int, int] | None:
    """Return height and width of a PNG of this colour type that has the necessary chunks only, all of them whole."""
    if not data.startswith(_PNG + b"\0\0\0\x0dIHDR") or data[24:26] != bytes([8, color]):
        return None
    start = len(_PNG)
    while start < len(data):
        length, name = int.from_bytes(data[start : start + 4]), data[start + 4 : start + 8]
        end = start + 12 + length
        if name not in (b"IHDR", b"IDAT", b"IEND") or end > len(data):
            return None
        # OpenCV decodes some damaged files without a word.
        if zlib.crc32(memoryview(data)[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            return None
        if name == b"IEND":
            break
        start = end
    else:
        return None
    return (int.from_bytes(data[20:24]), int.from_bytes(data[16:20])) if end == len(data) else None
