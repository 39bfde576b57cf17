"""Give the pixels of an opened picture as sRGB in 8 bits: the colours that a browser would show.

An embedded ICC profile is converted to sRGB, as are a PNG's gamma and primaries and the colour space that a PNG, AVIF
or HEIC names by number. Conversion is relative colorimetric with black-point compensation. For the profiles of cameras
and displays, which are a matrix and three curves, all intents are the same; for those of printers, this one keeps the
colours that both spaces have, such as skin, and fits the shadows in.
"""

import functools
import re
import struct
from collections.abc import Sequence
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

from .content_dcl import png_chunks

MOST_PROFILE_BYTES = 4 << 20  # the largest, of printers, have 3 MB
_STRIP = 1 << 22  # pixels that are converted at once: intermediate images of a large picture would take gigabytes
_BOXES = 65536  # bytes in which an AVIF or HEIC describes itself
_SAME = 2  # of 255: the sRGB profiles in use differ by no more from each other

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
UNFITTING = "The colour profile does not fit the picture and was ignored."


class _Conversion(NamedTuple):
    """From the pixels of a `mode` ("RGB", "L" or "CMYK") to sRGB, and what the space that they are in is called."""

    mode: str
    transform: ImageCms.ImageCmsTransform
    name: str
    is_srgb: bool


def srgb_pixels(image: Image.Image, cicp: tuple[int, int] | None = None) -> tuple[np.ndarray, list[str]]:
    """Return the pixels of a picture as sRGB, and notes on its colours.

    16 bits per channel are scaled to 8, and what is transparent is laid on white.

    Args:
        image: loaded; it stays as it is.
        cicp: the numbers of the primaries and transfer function that its file names, which come before a profile.

    Returns:
        uint8 (height, width, 3), perhaps read-only, and short sentences.
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
    """Return what a PNG, AVIF or HEIC names its colour space by: the numbers of its primaries and transfer function.

    Args:
        data: what is in the file.
        image: opened from it.

    Returns:
        The numbers, by ITU-T H.273; None where there are none, or a profile says more.
    """
    if image.format == "PNG":
        for name, start, end in png_chunks(data):
            if name == b"cICP" and end - start == 16:
                return data[start + 8], data[start + 9]
    elif image.format in ("AVIF", "HEIF") and "icc_profile" not in image.info:
        box = re.search(rb"colrnclx(..)(..)", data[:_BOXES], re.DOTALL)
        if box:
            return int.from_bytes(box[1]), int.from_bytes(box[2])
    return None


def to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scale values of 0 to 65535 to uint8; what is outside of that is clipped."""
    return np.round(values.clip(0, 65535) / 257).astype(np.uint8)


def _find_conversion(image: Image.Image, cicp: tuple[int, int] | None) -> tuple[_Conversion | None, list[str]]:
    """Return how a picture becomes sRGB, None where it is already, and notes."""
    info = image.info
    try:
        if cicp is not None:
            primaries, transfer = cicp
            if transfer in _HDR:
                return None, [
                    f"The picture is HDR ({_HDR[transfer]}) and was read without tone mapping; its colours may be off."
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
    """Return the conversion from an ICC profile to sRGB, None if it is of no pixels.

    Raises:
        Exception: of some kind, if the profile is damaged.
    """
    opened = ImageCms.ImageCmsProfile(BytesIO(profile))
    mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(opened.profile.xcolor_space.strip())
    if mode is None:  # such as a list of named colours
        return None
    transform = ImageCms.buildTransform(
        opened,
        _srgb_profile(),
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
def _srgb_profile() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@functools.cache
def _sample(mode: str) -> Image.Image:
    """Return an image of all greys and, if it has colours, of 216 of them."""
    grey = np.arange(256, dtype=np.uint8)[None]
    if mode == "L":
        return Image.fromarray(grey)
    colours = np.stack(np.meshgrid(*[np.arange(0, 256, 51, np.uint8)] * 3), axis=-1).reshape(1, -1, 3)
    return Image.fromarray(np.concatenate([grey[..., None].repeat(3, 2), colours], axis=1))


def _profile_of(chromaticity: Sequence[float], exponent: float | None) -> bytes:
    """Return an ICC profile of a matrix and a curve.

    Args:
        chromaticity: x and y of white, red, green and blue.
        exponent: of the curve from stored values to light; None for that of sRGB.
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


__all__ = [
    "DAMAGED",
    "MOST_PROFILE_BYTES",
    "OVERSIZED",
    "UNFITTING",
    "named_space",
    "srgb_pixels",
    "to_8_bits",
]
