"""Read frames of a video by number as 8-bit SDR RGB, in one pass, with one frame in memory at a time.

Long because remote code should be few files. Its parts: the content of packets, known without decoding;
the colours of decoded frames; reading.
"""

import bisect
import functools
import itertools
import math
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from .errors_dcl import InputError, reason

#: Kinds of NAL units that go with the pictures of H.264 and HEVC: parameter sets, SEI messages, delimiters, filler.
_COMPANIONS = {"h264": range(6, 16), "hevc": range(32, 41)}
#: The shift and the mask that give the kind of a unit from its first byte.
_KIND = {"h264": (0, 31), "hevc": (1, 63)}
#: The byte of the configuration record (ISO/IEC 14496-15) that gives the size of the length field of a unit.
_LENGTH_FIELD = {"h264": 4, "hevc": 21}
_UNIT = re.compile(rb"\x00\x00\x01(.)", re.DOTALL)  # a start code, and the first byte of its unit
_MOST_UNITS = 64  # of a packet that are examined: a packet of megabytes may consist of tiny units
_IDR = 5  # the kind of an H.264 unit from which decoding can begin anew
_SHOWN_VP8 = 0x10  # in the first byte of a frame: RFC 6386, section 9.1


class PacketReader:
    """Determines what the packets of a decodable video track, an `av.VideoStream`, contain."""

    def __init__(self, stream: Any):
        self._codec = stream.codec_context.codec.canonical_name
        record, field = stream.codec_context.extradata or b"", _LENGTH_FIELD.get(self._codec, 0)
        # Without the record, start codes separate the units, and FFmpeg itself puts those of a picture together.
        self._length_size = (record[field] & 3) + 1 if field < len(record) and record[0] == 1 else 0
        self._may_lack_pictures = self._codec in _COMPANIONS and self._length_size > 0

    def holds_picture(self, packet: Any) -> bool:
        """Whether an `av.Packet` contains a picture that is shown; damaged packets count as such.

        Empty packets repeat the last picture. VP8 has pictures that are never shown, only used to predict others.
        Some recorders store the parameter sets and SEI messages of H.264 and HEVC in separate packets.
        """
        if not packet.size:
            return False
        if self._may_lack_pictures:
            return self._kind_of_picture(packet) is not None
        return self._codec != "vp8" or bool(memoryview(packet)[0] & _SHOWN_VP8)

    def is_clean_start(self, packet: Any) -> bool:
        """Whether a decoder can surely decode an `av.Packet` without the packets before it.

        A key frame of H.264 may be a recovery point, from which the picture is complete only some frames later.
        """
        return packet.is_keyframe and (self._codec != "h264" or self._kind_of_picture(packet) == _IDR)

    def _kind_of_picture(self, packet: Any) -> int | None:
        """Return the kind of the first NAL unit of a picture, None if there is none, -1 if it cannot be determined.

        This happens if lengths are wrong, or if too many other units come first.
        """
        companions, (shift, mask) = _COMPANIONS[self._codec], _KIND[self._codec]
        data, at = memoryview(packet), 0
        if not self._length_size:
            units = itertools.islice(_UNIT.finditer(data), _MOST_UNITS)
            kinds = (unit[1][0] >> shift & mask for unit in units)
            return next((kind for kind in kinds if kind not in companions), -1)
        for _ in range(_MOST_UNITS):
            if at + self._length_size >= len(data):
                return None if at == len(data) else -1
            kind = data[at + self._length_size] >> shift & mask
            if kind not in companions:
                return kind
            at += self._length_size + int.from_bytes(data[at : at + self._length_size])
        return -1


try:  # only videos need PyAV
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
    """Convert an `av.VideoFrame` to SDR with the primaries of BT.709, and scale it: RGB, uint8 (height, width, 3).

    HDR (PQ or HLG) is tone-mapped, BT.2020 and Display P3 are converted, and transparent parts become white. If the
    frame does not name its colour matrix, the usual one is assumed and set. `note` is called with a sentence for the
    user if colours were changed on purpose or may be wrong.
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
    """Return the side data of a frame by FFmpeg's names; empty if it has a kind that PyAV does not know."""
    try:
        return frame.side_data
    except ValueError:  # raised for kinds that PyAV does not list yet, such as Exif
        return {}


def _matrix(frame: Any, note: Callable[[str], None]) -> int:
    """Return the matrix for a frame that names none, or one that swscale does not support."""
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
    """Blend RGBA, uint8 (height, width, 4), onto white, as for images."""
    colour, alpha = image[..., :3], image[..., 3:].astype(np.uint16)
    if alpha.min() == 255:
        return np.ascontiguousarray(colour)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _peak(frame: Any) -> float:
    """Return the peak luminance of a PQ video in cd/m2, if the file gives it."""
    known, peak = side_data(frame), 0.0
    if "CONTENT_LIGHT_LEVEL" in known:
        peak = struct.unpack_from("=I", bytes(known["CONTENT_LIGHT_LEVEL"]))[0]
    if not peak and "MASTERING_DISPLAY_METADATA" in known:  # six and two fractions of colours, then least and most
        numerator, denominator = struct.unpack_from("=ii", bytes(known["MASTERING_DISPLAY_METADATA"]), 72)
        peak = numerator / denominator if denominator else 0.0
    return min(max(peak, _WHITE), _MOST) if peak else _PEAK


def _to_sdr(codes: np.ndarray, curve: str | None, peak: float, matrix: np.ndarray | None) -> np.ndarray:
    """Convert RGB codes, uint16 (height, width, 3), to SDR: uint8 (height, width, 3).

    The curve is "PQ", "HLG", or None for SDR, whose tones stay; `peak` cd/m2 become white; the matrix to the primaries
    of BT.709 is float32 (3, 3), None if they are those already.
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


_ERRORS = (OSError, ValueError, *([] if av is None else [av.FFmpegError]))  # PyAV's own are of several kinds
# From 19 on, PyAV itself tolerates titles and comments that are not UTF-8.
_TOLERANT = {"metadata_errors": "ignore"} if av is not None and int(av.__version__.split(".")[0]) < 19 else {}

#: Extensions of videos: those of `_CONTAINERS`, except those that are mostly used for audio.
VIDEO_SUFFIXES = {
    *(".3g2", ".3gp", ".3gpp", ".f4v", ".ismv", ".m4v", ".mj2", ".mov", ".mp4", ".qt"),
    *(".mk3d", ".mkv", ".webm"),
    *(".m1v", ".m2v", ".mpe", ".mpeg", ".mpg", ".mpv", ".vob"),
    *(".m2t", ".m2ts", ".mts", ".ts"),
    *(".divx", ".mod", ".tod"),  # AVI, MPEG and MPEG-TS of some devices
    *(".264", ".265", ".avc", ".h264", ".h265", ".hevc"),
    *(".asf", ".avi", ".dv", ".flv", ".mxf", ".ogm", ".ogv", ".wmv"),
}
#: Containers that are opened, by FFmpeg's names. Others, such as playlists, refer to further files or to the network,
#: whatever the name of the file.
_CONTAINERS = (
    *("mov", "matroska", "webm", "avi", "dv", "mpeg", "mpegts", "mpegvideo", "m4v", "h264", "hevc", "flv", "asf"),
    *("ogg", "mxf"),
)
_OPTIONS = {"format_whitelist": ",".join(_CONTAINERS), "protocol_whitelist": "file"}
#: Containers in which frames can be found by time, by FFmpeg's names.
_SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
#: Those that store decoding times instead of display times, and those that store no times.
_TIMED_BY_DECODING, _UNTIMED = ("avi", "asf", "mxf"), ("mpegvideo", "m4v", "h264", "hevc")
#: Those without a header: a recording may begin anywhere, and decoders report errors until they find parameter sets.
_HEADERLESS = ("mpegts", "mpeg", *_UNTIMED)
#: The pixels that the decoder may allocate, as a multiple of those allowed: it pads frames to whole blocks.
_PADDED, _MOST_OF_FFMPEG = 2, 2**31 - 1
#: Pixels this close to square are left as they are: encoders that round a size write such shapes.
_NEARLY_SQUARE = 0.01
_MOST_STRETCHED = 4  # a larger aspect ratio of a pixel is an error in the header
_TURN_TOLERANCE = 1 / 90  # of a quarter turn, as in FFmpeg
_DEFAULT_TRACK = 5_000_000  # pixels that FFmpeg adds to the size of the default track
_RECOVERY_POINTS = 2  # to go back at most to decode the frames after a recovery point
_HEAD, _SEGMENT = 1024, b"\x18\x53\x80\x67"  # bytes of a header that are read; the top element of a Matroska file
_LONGEST_LEAD = 300  # packets after the first key frame that are searched for the first decodable frame


@functools.cache
def _silence_pyav() -> None:
    """Stop PyAV from logging, once for all videos; a level that the caller sets afterwards is kept.

    A decoder thread with something to log waits for the interpreter, which waits for that thread when it frees the
    decoder: both may wait for ever. This is done at the first video instead of at import, because other packages
    (torchvision 0.24 is one) set a level when they are imported, and may be imported after this file.
    """
    av.logging.set_level(None)


class Video:
    """A video file whose frames are numbered from 0 in display order.

    If there are several video tracks, it reads the one that FFmpeg would choose; cover images do not count. Frames are
    returned as players show them: upright, with square pixels, in SDR colours.

    Opening the file reads all packets once, without decoding them. This gives the true number of frames, whatever the
    header claims, and the frames from which decoding can start. Use it as a context manager.

    Args:
        path: the file.
        threads: decoder threads; 0 lets the decoder choose.
        most_pixels: larger frames are rejected, by the header if possible, otherwise when they are decoded.
        most_frames: longer videos are rejected.

    Attributes:
        notes: sentences about changes to the frames and parts that were not used; complete after reading.

    Raises:
        InputError: if PyAV is missing, or if the file cannot be read, contains no video, or is too large.
    """

    def __init__(
        self, path: str | Path, threads: int = 0, most_pixels: int | None = None, most_frames: int | None = None
    ):
        if av is None:
            raise InputError("Reading videos needs PyAV. Install it with `pip install av`.")
        self.path, self._most_pixels = Path(path), most_pixels
        # Without a protocol FFmpeg would look for one in the name. The path is not normalised: after a link, ".." does
        # not lead back.
        self._address = f"file:{self.path.absolute()}"
        self.notes: list[str] = []
        self._sizes: list[tuple[int, int]] = []  # of the frames that were given, each once
        if os.path.isfile(path) and not os.path.getsize(path):
            raise InputError(f"Video {path} is empty. Copy or download it again.")
        self._container = self._open()
        try:
            self._stream = self._choose_stream()
            if self._stream.codec_context is None:
                raise InputError(f"Video {path} uses a codec that is not supported here. Convert it to H.264.")
            self._pixel_shape = self._plausible_pixel_shape()
            self._check_size(*self._claimed_size())
            self._packets = PacketReader(self._stream)
            self._read_packets(most_frames)
            # With several threads errors arrive some packets later; those of packets without a picture are ignored.
            self._prepare(self._stream, threads=threads if self._all_hold_pictures else 1)
            if not self._times:
                raise InputError(f"Video {path} contains no frames. Copy or download it again.")
        except InputError:
            self.close()
            raise

    def _open(self) -> "av.container.InputContainer":
        _silence_pyav()
        try:
            return av.open(self._address, options=_OPTIONS, **_TOLERANT)
        except _ERRORS as error:
            raise InputError(
                f"Video {self.path} cannot be opened ({_why(error)}). Copy or download it again."
            ) from error

    def _choose_stream(self) -> "av.VideoStream":
        """Return the video track that FFmpeg's command line would choose, preferring those that can be decoded.

        This is the largest track with frames; the default track gets a bonus.
        """
        still = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
        tracks = [stream for stream in self._container.streams.video if not stream.disposition & still]
        if not tracks:
            raise InputError(f"{self.path} contains no video track. Pass a video.")
        if len(tracks) > 1:
            filled = self._indices_with_frames([stream.index for stream in tracks])
            tracks = [stream for stream in tracks if stream.index in filled] or tracks[:1]

        def score(stream: "av.VideoStream") -> tuple[bool, int]:
            context = stream.codec_context
            area = context.width * context.height if context is not None else 0
            return context is not None, area + _DEFAULT_TRACK * bool(
                stream.disposition & av.stream.Disposition.default
            )

        chosen = max(tracks, key=score)
        if len(tracks) > 1:
            which = tracks.index(chosen) + 1
            self._note(f"The video has {len(tracks)} video tracks; only track {which} was analyzed.")
        return chosen

    def _indices_with_frames(self, indices: list[int]) -> set[int]:
        """Return which streams contain frames."""
        found: set[int] = set()
        with self._open() as container:
            try:
                for packet in container.demux([container.streams[index] for index in indices]):
                    if packet.size and not packet.is_discard:
                        found.add(packet.stream_index)
                    if len(found) == len(indices):
                        break
            except _ERRORS:
                pass  # use what comes before the damage
        return found

    def _plausible_pixel_shape(self) -> float:
        """Return the pixel aspect ratio (width to height), 1 if it is missing or implausible."""
        ratio = self._stream.sample_aspect_ratio  # the container's, else the codec's
        if not ratio or abs(ratio - 1) <= _NEARLY_SQUARE:
            return 1.0
        said = f"{ratio.numerator}:{ratio.denominator}"
        if not 1 / _MOST_STRETCHED <= ratio <= _MOST_STRETCHED:
            self._note(f"The pixel shape in the header ({said}) is implausible and was ignored.")
            return 1.0
        self._note(f"Pixels are not square ({said}); the frames were stretched to square pixels.")
        return float(ratio)

    def _claimed_size(self) -> tuple[int, int]:
        """Return the frame size by the header, with square pixels, before rotation."""
        return self._square(self._stream.codec_context.width, self._stream.codec_context.height)

    def _square(self, width: int, height: int) -> tuple[int, int]:
        """Return the size of a frame with square pixels. The shorter axis grows, to an even number for codecs."""
        if self._pixel_shape > 1:
            return 2 * round(width * self._pixel_shape / 2), height
        if self._pixel_shape < 1:
            return width, 2 * round(height / self._pixel_shape / 2)
        return width, height

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    def _prepare(self, stream: "av.VideoStream", threads: int) -> None:
        stream.codec_context.thread_count = threads
        stream.codec_context.thread_type = "AUTO"
        if self._most_pixels is not None:
            most = min(self._most_pixels * _PADDED, _MOST_OF_FFMPEG)
            stream.codec_context.options = {"max_pixels": str(most)}

    def _read_packets(self, most_frames: int | None) -> None:
        """Count the frames, and record when they are shown and which of them decoding can start from."""
        shown: list[int | None] = []
        decoded: list[int | None] = []
        starts = []
        self._opening: av.Packet | None = None  # the first with a picture, even if an editor cut it off
        self._all_hold_pictures = True
        try:
            for packet in self._container.demux(self._stream):
                if not self._packets.holds_picture(packet):
                    self._all_hold_pictures = self._all_hold_pictures and not packet.size
                    continue
                is_start = packet.is_keyframe
                if (is_start or self._opening is None) and packet.has_sidedata("encryption_info"):
                    raise InputError(f"Video {self.path} is encrypted. Pass an unprotected copy.")
                if self._opening is None:
                    self._opening = packet
                if packet.is_discard:
                    continue
                if is_start:
                    starts.append(len(shown))
                shown.append(packet.pts)
                decoded.append(packet.dts)
                if most_frames is not None and len(shown) > most_frames:
                    raise InputError(
                        f"{self.path} has more than {most_frames:,} frames. Cut it, or raise most_frames."
                    )
        except _ERRORS as error:
            if isinstance(error, InputError):
                raise
            # A truncated file has the frames before its end.
        self._number_frames(shown, decoded, starts)

    def _number_frames(self, shown: list[int | None], decoded: list[int | None], starts: list[int]) -> None:
        """Number the frames in the order in which they are shown.

        The arguments describe the packets with a frame, in the order of the file: their display times, their decoding
        times, and which of them are key frames.
        """
        # Some containers store decoding times, not display times; the display times that PyAV gives are made up.
        name = self._container.format.name
        made_up = name in _UNTIMED or (name in _TIMED_BY_DECODING and self._stream.codec_context.has_b_frames)
        in_order = _in_order(decoded, starts)
        self._shown_times = not made_up and in_order and None not in shown and len(set(shown)) == len(shown)
        self._seekable = self._shown_times and name in _SEEKABLE
        if self._shown_times:
            self._times: list[float] = sorted(shown)
        elif in_order and None not in decoded and len(set(decoded)) == len(decoded):
            self._times = sorted(decoded)
        else:
            # An unknown rate is None, or 0/1 from PyAV 19 on. PyAV rounds its own products.
            rate = Fraction(self._stream.average_rate or self._stream.guessed_rate or 25)
            self._times = [number / (rate * self._stream.time_base) for number in range(len(shown))]
        self._skipped = 0
        if shown:
            before_key = self._shown_times and self._times[0] < self._opening.pts
            self._first_seek = max(self._times[0], self._opening.pts) if self._shown_times else None
            if before_key or not self._packets.is_clean_start(self._opening):
                self._skip_what_is_not_shown(most_packets=min(starts, default=0) + _LONGEST_LEAD)
        self._starts = [0]  # frames that an editor cut off may come before it and be needed
        if self._seekable:
            self._starts = sorted({0, *(bisect.bisect_left(self._times, shown[start]) for start in starts)})

    def _skip_what_is_not_shown(self, most_packets: int) -> None:
        """Drop the frames before the first one that the decoder returns: they refer to frames that were cut off."""
        try:
            for number, frame in self._decode_all(most_packets):
                if frame is not None:
                    self._skipped = number
                    self._times = self._times[number:]
                if frame is not None or self._container.format.name not in _HEADERLESS:
                    return  # in a file with a header, an error means damage, and the frames keep their numbers
        except _ERRORS:
            pass  # reported when frames are read

    @property
    def numbers(self) -> range:
        """The numbers of all frames."""
        return range(len(self._times))

    @property
    def breaks_off(self) -> bool:
        """Whether it is an MP4, MOV, AVI, Matroska or WebM file that is shorter than its header says."""
        size = self.path.stat().st_size
        if self._container.format.name in ("avi", "matroska,webm"):
            with self.path.open("rb") as file:
                head = file.read(_HEAD)
            if self._container.format.name == "avi":
                return int.from_bytes(head[4:8], "little") + 8 > size
            return _end_of_matroska(head) > size
        return any(entry.pos + entry.size > size for entry in self._stream.index_entries)

    @property
    def duration(self) -> float:
        """The duration in seconds; the last frame counts as long as the others on average."""
        length = len(self._times)
        return self.time(length - 1) * length / (length - 1) if length > 1 else 0.0

    def time(self, number: int) -> float:
        """Return when a frame is shown, in seconds after the first one."""
        return float((self._times[number] - self._times[0]) * self._stream.time_base)

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def read(self, numbers: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Decode frames by number.

        Args:
            numbers: the wanted frames, in any order.

        Yields:
            Each number in ascending order, and its frame: upright, RGB, uint8 (height, width, 3).

        Raises:
            InputError: at the first frame that cannot be decoded.
        """
        for number, image in self.read_readable(numbers):
            if isinstance(image, InputError):
                raise image
            yield number, image

    def read_readable(self, numbers: Iterable[int]) -> Iterator[tuple[int, np.ndarray | InputError]]:
        """Decode frames as `read` does; for one that cannot be decoded, yield the `InputError` instead."""
        return ((number, image) for number, image in self.walk(numbers) if image is not None)

    def walk(self, numbers: Iterable[int]) -> Iterator[tuple[int, np.ndarray | InputError | None]]:
        """Decode as `read_readable` does, and also yield each other frame that is decoded on the way, with None.

        This lets the caller stop when it takes too long. Frames between two wanted ones are decoded unless decoding
        can restart after them.
        """
        at, frame, before, decoded = -1, None, (-1, None), iter(())
        failed: tuple[int, str] | None = None  # the start after which decoding failed, and why
        in_fields = False  # whether each of the two fields of a frame has its own packet, and so its own number
        for wanted in sorted(set(numbers)):
            start = self._starts[bisect.bisect_right(self._starts, wanted) - 1]
            if failed is None or failed[0] != start:
                if at < start or failed is not None:
                    at, frame, decoded = -1, None, self._decode_from(start) if self._seekable else self._decode_all()
                failed = None
                try:
                    while at < wanted:
                        before = at, frame
                        at, frame = next(decoded)
                        # In other videos, a skipped number means a lost frame.
                        in_fields = in_fields or (
                            at == before[0] + 2 and before[1] is not None and before[1].interlaced_frame
                        )
                        if at < wanted:
                            yield at, None
                except StopIteration:
                    if not (in_fields and at == wanted - 1 and frame is not None):
                        failed = start, "has no frame {wanted}: it is truncated" + (f" after frame {at}" * (at >= 0))
                except _ERRORS as error:
                    failed = start, f"cannot be decoded at frame {{wanted}} ({_why(error)})"
            # The second field of a frame shows the same as the first.
            shown = frame if at == wanted else before[1] if in_fields and before[0] == wanted - 1 else None
            if failed is not None:
                yield wanted, self._refusal(failed[1].format(wanted=wanted))
            elif shown is None:
                yield wanted, self._refusal(f"cannot be decoded at frame {wanted}")
            else:
                try:
                    image: np.ndarray | InputError = self._as_shown(shown)
                except InputError as error:
                    image = error
                except _ERRORS as error:
                    image = self._refusal(f"cannot be converted at frame {wanted} ({reason(error)})")
                yield wanted, image

    def _as_shown(self, frame: "av.VideoFrame") -> np.ndarray:
        width, height = self._square(frame.width, frame.height)
        self._check_size(width, height)  # the header may be wrong
        matrix = _display_matrix(frame)
        image = to_rgb(frame, width, height, self._note)
        if matrix is not None:
            turn = math.degrees(math.atan2(matrix[1], matrix[0])) / 90
            if abs(turn - round(turn)) > _TURN_TOLERANCE:
                self._note(
                    "The header asks for a rotation that is not a multiple of 90 degrees; the nearest one was used."
                )
            image = _upright(image, matrix)
        size = image.shape[1], image.shape[0]
        if size not in self._sizes:
            self._sizes.append(size)
            if len(self._sizes) == 2:
                before, after = ("x".join(map(str, known)) for known in self._sizes)
                self._note(f"The frame size changes from {before} to {after}; boxes refer to {before}.")
        return image

    def _refusal(self, what: str) -> InputError:
        return InputError(f"Video {self.path} {what}. Copy or download it again.")

    def _decode_from(self, start: int) -> Iterator[tuple[int, "av.VideoFrame | None"]]:
        """Yield frames and their numbers from a frame at which decoding can start.

        After a recovery point the decoder returns no frame until the picture is complete; it then starts earlier.
        """
        place = bisect.bisect_left(self._starts, start)
        *tries, last = self._starts[max(place - _RECOVERY_POINTS, 0) : place + 1][::-1]
        for begin in (*tries, last):
            frames = self._decode_after_seek(begin)
            for number, frame in frames:
                if number > start and begin != last:
                    break
                yield number, frame
                if number >= start:
                    yield from frames
                    return

    def _decode_after_seek(self, start: int) -> Iterator[tuple[int, "av.VideoFrame | None"]]:
        if not start and not self._opening.is_keyframe:  # seeking finds key frames only
            yield from self._decode_all()
            return
        self._container.seek(self._times[start] if start else self._first_seek, stream=self._stream)
        number = start - 1
        for _, frames in self._decode_packets(self._container, self._stream):
            if isinstance(frames, Exception):
                raise frames
            for frame in frames:
                number = self._number_of(frame, number + 1)
                yield number, frame if number >= start else None  # earlier ones depend on frames that were skipped

    def _decode_all(self, most_packets: float = math.inf) -> Iterator[tuple[int, "av.VideoFrame | None"]]:
        """Yield all frames and their numbers, for files in which seeking is unreliable or times are unknown.

        The decoder returns a frame a fixed number of packets after its own. After a packet that cannot be decoded,
        frames are None up to the next one that depends on no other.
        """
        with self._open() as container:
            stream = container.streams[self._stream.index]
            self._prepare(stream, threads=1)  # several threads delay frames and errors
            number, index, delay, first, sound = -1, -1, None, None, True
            for packet, frames in self._decode_packets(container, stream):
                if packet is None or (self._packets.holds_picture(packet) and not packet.is_discard):
                    index += 1
                if index > most_packets:
                    return
                if isinstance(frames, Exception):
                    sound = False
                    yield number, None
                    continue
                if first is None and packet is not None and packet.is_keyframe:
                    first = index
                for frame in frames:
                    delay = index - (first or 0) if delay is None else delay
                    number = self._number_of(frame, max(number + 1, index - delay - self._skipped))
                    sound = sound or frame.key_frame
                    yield number, frame if sound else None

    def _decode_packets(
        self, container: "av.container.InputContainer", stream: "av.VideoStream"
    ) -> Iterator[tuple["av.Packet | None", "list[av.VideoFrame] | Exception"]]:
        """Decode packet by packet, and yield each packet (None at the end) with the frames it returned, or the error.

        Empty packets are skipped. Decoders report packets without a picture as errors; those return no frames.
        """
        for packet in itertools.chain(container.demux(stream), [None]):
            if packet is None or packet.size:
                try:
                    frames: list[av.VideoFrame] | Exception = stream.codec_context.decode(packet)
                except _ERRORS as error:
                    frames = error if packet is None or self._packets.holds_picture(packet) else []
                yield packet, frames

    def _number_of(self, frame: "av.VideoFrame", else_number: int) -> int:
        """Return the number of a frame by its display time if a packet has the same time, else `else_number`."""
        if not self._shown_times or frame.pts is None:
            return else_number
        number = bisect.bisect_left(self._times, frame.pts)
        return number if number < len(self._times) and self._times[number] == frame.pts else else_number

    def _check_size(self, width: int, height: int) -> None:
        if self._most_pixels is not None and width * height > self._most_pixels:
            raise InputError(
                f"The frames of {self.path} have {width}x{height} pixels, more than {self._most_pixels:,}. Make them "
                "smaller, or raise most_pixels."
            )


def _in_order(decoded: list[int | None], starts: list[int]) -> bool:
    """Whether decoding times never go back, as they do where recordings were joined.

    Only key frames are compared: between them, times that FFmpeg guessed may be out of order even in a valid file.
    """
    latest = list(itertools.accumulate((-math.inf if time is None else time for time in decoded), max))
    return all(decoded[start] is None or decoded[start] == latest[start] for start in starts)


def _end_of_matroska(head: bytes) -> int:
    """Return where the segment of a Matroska file ends by its header; 0 if unknown, as in live recordings."""
    _, _, rest = head.partition(_SEGMENT)
    if not rest or not rest[0]:
        return 0
    length = 9 - rest[0].bit_length()  # of the size, in bytes: one more than the leading zeros of the first
    unknown = (1 << 7 * length) - 1
    said = int.from_bytes(rest[:length]) & unknown
    return 0 if said == unknown else len(head) - len(rest) + length + said


def _why(error: Exception) -> str:
    """Return why FFmpeg failed, in words for users."""
    if av is not None and isinstance(error, av.InvalidDataError | av.ArgumentError):
        return "damaged, truncated, or not a video"
    return reason(error)


def _display_matrix(frame: "av.VideoFrame") -> tuple[float, float, float, float] | None:
    """Return the rotation and mirroring of a frame; None if there is none.

    With (a, b, c, d), the point (x, y) is shown at (a x + c y, b x + d y), up to a shift.
    """
    data = side_data(frame).get("DISPLAYMATRIX")
    if data is not None:
        values = np.frombuffer(data, np.int32)
        return tuple(float(values[place]) for place in (0, 1, 3, 4))
    if frame.rotation:  # if PyAV does not give the matrix
        turn = math.radians(frame.rotation)
        return math.cos(turn), -math.sin(turn), math.sin(turn), math.cos(turn)
    return None


def _upright(image: np.ndarray, matrix: tuple[float, float, float, float]) -> np.ndarray:
    a, b, c, d = matrix
    right, down = a, d
    if abs(b) + abs(c) > abs(a) + abs(d):  # the nearest quarter turn exchanges width and height
        image, right, down = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1])


def evenly_spaced(length: int, number: int) -> list[int]:
    """Return `number` evenly spaced frame numbers of a video with `length` frames, including first and last.

    Returns all of them if there are fewer.
    """
    return sorted(set(np.linspace(0, length - 1, min(number, length), dtype=int).tolist()))
