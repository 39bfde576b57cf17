"""Convert decoded video frames to 8-bit SDR RGB, whatever matrix, primaries or transfer curve they were coded with."""

import functools
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

try:  # a checkpoint that is given images works without PyAV
    import av
except ImportError:
    av = None

# Matrices, primaries and transfer curves have their numbers of ITU-T H.273, as in FFmpeg.
_RGB, _BT709, _UNSPECIFIED, _BT601, _BT2020, _CHROMA_DERIVED, _IPT_C2 = 0, 1, 2, 6, 9, 12, 15
_CONVERTIBLE = {_BT709, 4, 5, _BT601, 7, _BT2020}  # matrices that swscale knows, also those of FCC and SMPTE 240M
_DISPLAY_P3 = 12
_HDR = {16: "PQ", 18: "HLG"}

_WHITE = 203.0  # cd/m2 of diffuse white in HDR by ITU-R BT.2408; it becomes white in SDR
_PEAK, _MOST = 1000.0, 10000.0  # cd/m2 of HLG by ITU-R BT.2100, and of PQ that does not say; the most that PQ codes
#: Linear RGB of wider primaries to that of BT.709: of BT.2020 as in ITU-R BT.2087, and of Display P3.
_TO_BT709 = {
    _BT2020: np.float32([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]),
    _DISPLAY_P3: np.float32([[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]]),
}
_LUMINANCE = np.float32([0.2627, 0.6780, 0.0593])  # of BT.2020
_CODES = 1 << 16
_ROWS = 32  # are converted at a time: they fit into the processor's cache


def to_rgb(frame: Any, width: int, height: int, note: Callable[[str], None]) -> np.ndarray:
    """Convert a frame to SDR with the primaries of BT.709, and scale it.

    HDR (PQ or HLG) is tone-mapped, BT.2020 and Display P3 are converted, and transparent parts become white.

    Args:
        frame: an `av.VideoFrame`. If it does not say which matrix it was coded with, the usual one is written into it.
        width: of the result, in pixels.
        height: of the result, in pixels.
        note: called with a sentence for the user where colours were changed on purpose or may be wrong.

    Returns:
        RGB, uint8 (height, width, 3).
    """
    if frame.colorspace not in _CONVERTIBLE:
        frame.colorspace = _matrix(frame, note)
    how: dict[str, Any] = {"threads": 1}  # starting more takes longer than converting a frame
    if (width, height) != (frame.width, frame.height):
        how |= {"width": width, "height": height, "interpolation": "BICUBIC"}
    curve, primaries = _HDR.get(frame.color_trc), frame.color_primaries
    if curve is None and primaries not in _TO_BT709:
        if not _has_alpha(frame.format.name):
            return frame.to_ndarray(format="rgb24", **how)
        return _on_white(frame.to_ndarray(format="rgba", **how))
    codes = frame.to_ndarray(format="rgb48le", **how)
    if curve is None:
        return _to_sdr(codes, None, 1.0, _TO_BT709[primaries])
    note(f"Tone-mapped from HDR ({curve}) to SDR.")
    matrix = None if primaries == _BT709 else _TO_BT709.get(primaries, _TO_BT709[_BT2020])
    return _to_sdr(codes, curve, _PEAK if curve == "HLG" else _peak(frame), matrix)


def side_data(frame: Any) -> Mapping[str, Any]:
    """Return what goes with a frame beside its pixels, by FFmpeg's names; nothing if PyAV does not know all of it."""
    try:
        return frame.side_data
    except ValueError:  # raised for kinds that are newer than PyAV's list of them, such as Exif
        return {}


def _matrix(frame: Any, note: Callable[[str], None]) -> int:
    """Return the matrix to convert a frame with that names none, or one that swscale does not know."""
    if frame.format.is_rgb:
        return _RGB
    named, wide = frame.colorspace, frame.color_primaries == _BT2020
    if named == _IPT_C2 or (named == _UNSPECIFIED and "DOVI_RPU_BUFFER" in side_data(frame)):
        note("The video is Dolby Vision without a standard base layer; its colours may be wrong.")
    elif named not in (_RGB, _UNSPECIFIED, _CHROMA_DERIVED):
        note(f"The video's colour matrix (number {named} of ITU-T H.273) is not supported; its colours may be wrong.")
    if wide or frame.color_trc in _HDR:
        return _BT2020
    if named == _CHROMA_DERIVED and frame.color_primaries == _BT709:
        return _BT709
    # By size as mpv and libplacebo do: pl_color_system_guess_ycbcr.
    return _BT709 if frame.width >= 1280 or frame.height > 576 else _BT601


@functools.cache
def _has_alpha(pixel_format: str) -> bool:
    return any(component.is_alpha for component in av.VideoFormat(pixel_format).components)


def _on_white(image: np.ndarray) -> np.ndarray:
    """Lay RGBA, uint8 (height, width, 4), on white, as pictures are."""
    colour, alpha = image[..., :3], image[..., 3:].astype(np.uint16)
    if alpha.min() == 255:
        return np.ascontiguousarray(colour)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _peak(frame: Any) -> float:
    """Return how bright a PQ video gets, in cd/m2, as far as it says so."""
    known, peak = side_data(frame), 0.0
    if "CONTENT_LIGHT_LEVEL" in known:
        peak = struct.unpack_from("=I", bytes(known["CONTENT_LIGHT_LEVEL"]))[0]
    if not peak and "MASTERING_DISPLAY_METADATA" in known:  # six and two fractions of colours, then least and most
        numerator, denominator = struct.unpack_from("=ii", bytes(known["MASTERING_DISPLAY_METADATA"]), 72)
        peak = numerator / denominator if denominator else 0.0
    return min(max(peak, _WHITE), _MOST) if peak else _PEAK


def _to_sdr(codes: np.ndarray, curve: str | None, peak: float, matrix: np.ndarray | None) -> np.ndarray:
    """Convert RGB codes to SDR.

    Args:
        codes: uint16 (height, width, 3).
        curve: "PQ", "HLG", or None for SDR, whose tones stay.
        peak: cd/m2 that become white.
        matrix: to the primaries of BT.709, float32 (3, 3); None if they are those already.

    Returns:
        RGB, uint8 (height, width, 3).
    """
    to_light, to_code = _light(curve), _display()
    gain = None if curve is None else _tone_gain(peak)
    image = np.empty(codes.shape, np.uint8)
    for row in range(0, len(codes), _ROWS):
        light = to_light[codes[row : row + _ROWS]]  # 1 is SDR white
        if curve == "HLG":  # light of the scene to light of the display
            light *= ((light @ _LUMINANCE) ** 0.2 * np.float32(_PEAK / _WHITE))[..., None]
        if gain is not None:
            brightest = np.maximum(np.maximum(light[..., 0], light[..., 1]), light[..., 2])
            light *= gain[_index(np.sqrt(brightest * np.float32(_WHITE / peak)))][..., None]
        if matrix is not None:
            light = light @ matrix.T
        image[row : row + _ROWS] = to_code[_index(light)]
    return image


def _index(values: np.ndarray) -> np.ndarray:
    """Return places in a table over [0, 1]; the values are used up."""
    np.clip(values, 0, 1, out=values)
    values *= _CODES - 1
    values += np.float32(0.5)
    return values.astype(np.uint16)


@functools.cache
def _light(curve: str | None) -> np.ndarray:
    """Return the light for each code, float32 (65536,): of the scene for HLG, else in units of SDR white."""
    code = np.linspace(0, 1, _CODES)
    if curve == "PQ":
        light = _from_pq(code) / _WHITE
    elif curve == "HLG":  # ITU-R BT.2100
        a = 0.17883277
        b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
        light = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    else:  # sRGB, IEC 61966-2-1
        light = np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)
    return light.astype(np.float32)


@functools.cache
def _display() -> np.ndarray:
    """Return the 8-bit sRGB code for 65536 amounts of light from black to white."""
    light = np.linspace(0, 1, _CODES)
    code = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(code * 255).astype(np.uint8)


@functools.lru_cache(maxsize=8)
def _tone_gain(peak: float) -> np.ndarray:
    """Return the factor that takes HDR to SDR, float32 (65536,), over the root of light as a share of the peak.

    The curve is that of ITU-R BT.2390-9, section 5.4.1: what is dark stays as it is, highlights are compressed. All
    three colours get the factor of the brightest, so that hues stay.
    """
    light = np.linspace(0, 1, _CODES) ** 2 * peak
    top = _to_pq(peak)
    white = _to_pq(_WHITE) / top
    knee = 1.5 * white - 0.5
    code = _to_pq(light) / top
    t = np.maximum(code - knee, 0) / max(1 - knee, 1e-9)
    bent = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * white
    mapped = _from_pq(np.where(code < knee, code, bent) * top)
    return np.divide(mapped, light, out=np.ones(_CODES), where=light > 0).astype(np.float32)


# SMPTE ST 2084.
_M1, _M2, _C1, _C2, _C3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128


def _from_pq(code: np.ndarray) -> np.ndarray:
    root = code ** (1 / _M2)
    return _MOST * (np.maximum(root - _C1, 0) / (_C2 - _C3 * root)) ** (1 / _M1)


def _to_pq(light: np.ndarray | float) -> np.ndarray:
    root = (light / _MOST) ** _M1
    return ((_C1 + _C2 * root) / (1 + _C3 * root)) ** _M2


__all__ = ["side_data", "to_rgb"]
