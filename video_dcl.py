"""Read the wanted frames of a video: by their number, in one pass, with one frame in memory at a time."""

import bisect
import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from .errors_dcl import InputError, reason

try:  # a checkpoint that is given images works without PyAV
    import av
except ImportError:
    av = None

_ERRORS = (OSError, ValueError, *([] if av is None else [av.FFmpegError]))  # PyAV's own are of several kinds

#: Suffixes of what is taken for a video.
VIDEO_SUFFIXES = {
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".vob"),
    *(".webm", ".wmv"),
}
#: Containers that are opened, by FFmpeg's names. Others, as playlists, lead to further files or into the network,
#: whatever the name of the file.
_CONTAINERS = (
    "mov",
    "matroska",
    "webm",
    "avi",
    "mpeg",
    "mpegts",
    "mpegvideo",
    "m4v",
    "h264",
    "hevc",
    "flv",
    "asf",
    "ogg",
)
_OPTIONS = {"format_whitelist": ",".join(_CONTAINERS), "protocol_whitelist": "file"}
#: Containers in which a frame is found again by its time, by FFmpeg's names.
_SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi")
#: What the decoder allows of the pixels that are allowed: it pads frames to whole blocks.
_PADDED, _MOST_OF_FFMPEG = 2, 2**31 - 1


class Video:
    """A video file whose frames are numbered from 0 in the order in which they are shown.

    Opening it reads the packets once, without decoding: they say how many frames there really are, whatever the header
    claims, and which of them a decoder can start from. Use it as a context manager.

    Args:
        path: the file.
        threads: of the decoder; 0 lets it choose.
        most_pixels: frames with more are refused, by the header if it says so, else before they are decoded or handed
            on; None: none are.
        most_frames: a video with more is refused; None: none is.

    Raises:
        InputError: if PyAV is missing, or the file cannot be read or holds no video, or is too large.
    """

    def __init__(
        self, path: str | Path, threads: int = 0, most_pixels: int | None = None, most_frames: int | None = None
    ):
        if av is None:
            raise InputError("reading videos needs PyAV: pip install av.")
        self.path, self._most_pixels = Path(path), most_pixels
        self._container = self._open()
        try:
            if not self._container.streams.video:
                raise InputError(f"{path} holds no video: give a file that does.")
            self._stream = self._container.streams.video[0]
            if self._stream.codec_context is None:
                raise InputError(f"the video {path} is of a kind that cannot be decoded here: convert it to H.264.")
            self._check_size(*self.size)
            self._prepare(self._stream, threads)
            self._read_packets(most_frames)
            if not self._times:
                raise InputError(f"the video {path} holds no frame: copy or download it again.")
        except InputError:
            self.close()
            raise

    def _open(self) -> "av.container.InputContainer":
        try:
            return av.open(str(self.path), metadata_errors="ignore", options=_OPTIONS)
        except _ERRORS as error:
            raise InputError(
                f"the video {self.path} cannot be opened ({_why(error)}): copy or download it again."
            ) from error

    def _prepare(self, stream: "av.VideoStream", threads: int) -> None:
        stream.codec_context.thread_count = threads
        stream.codec_context.thread_type = "AUTO"
        if self._most_pixels is not None:
            most = min(self._most_pixels * _PADDED, _MOST_OF_FFMPEG)
            stream.codec_context.options = {"max_pixels": str(most)}

    def _read_packets(self, most_frames: int | None) -> None:
        shown: list[int | None] = []
        decoded: list[int | None] = []
        starts, there = [], 0
        try:
            for packet in self._container.demux(self._stream):
                there += bool(packet.size) or packet.dts is not None
                if not _holds_frame(packet):
                    continue
                if packet.is_keyframe:
                    starts.append(len(shown))
                shown.append(packet.pts)
                decoded.append(packet.dts)
                if most_frames is not None and len(shown) > most_frames:
                    raise InputError(
                        f"{self.path} has more than {most_frames:,} frames: cut it, or raise most_frames."
                    )
        except _ERRORS as error:
            if isinstance(error, InputError):
                raise
            # A file that breaks off has the frames before the break.
        self._lost = max(0, self._stream.frames - there)
        # AVI tells when frames are decoded, not when they are shown, and what PyAV says of that is made up.
        made_up = self._container.format.name == "avi" and self._stream.codec_context.has_b_frames
        self._shown_times = not made_up and None not in shown
        self._seekable = self._shown_times and self._container.format.name in _SEEKABLE
        if self._shown_times:
            self._times: list[float] = sorted(set(shown))
        elif None not in decoded:
            self._times = sorted(set(decoded))
        else:
            rate = self._stream.average_rate or self._stream.guessed_rate or 25
            self._times = [number / (rate * self._stream.time_base) for number in range(len(shown))]
        self._starts: list[int] = []
        if self._seekable:
            self._starts = sorted({bisect.bisect_left(self._times, shown[start]) for start in starts})

    @property
    def numbers(self) -> range:
        """The numbers of the frames that are there."""
        return range(len(self._times))

    @property
    def lost(self) -> int:
        """How many frames of those that its header announces are not there, as it breaks off."""
        return self._lost

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a frame in pixels as the header claims them, before it is turned upright."""
        return self._stream.codec_context.width, self._stream.codec_context.height

    @property
    def duration(self) -> float:
        """How long all frames are shown, in seconds; the last one as long as the others on average."""
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
        """Decode frames, in order.

        Args:
            numbers: of the wanted frames, of `self.numbers`, in any order.

        Yields:
            The number, and the frame turned upright: RGB, uint8 (height, width, 3).

        Raises:
            InputError: at the first wanted frame that cannot be decoded; those before it were given.
        """
        for number, image in self.read_readable(numbers):
            if isinstance(image, InputError):
                raise image
            yield number, image

    def read_readable(self, numbers: Iterable[int]) -> Iterator[tuple[int, np.ndarray | InputError]]:
        """Decode frames, in order; those that cannot be decoded cost no others.

        Args:
            numbers: of the wanted frames, of `self.numbers`, in any order.

        Yields:
            The number, and the frame as `read` gives it, or why it cannot be had.
        """
        return ((number, image) for number, image in self.walk(numbers) if image is not None)

    def walk(self, numbers: Iterable[int]) -> Iterator[tuple[int, np.ndarray | InputError | None]]:
        """Decode frames, in order, and tell of those that are passed, so that the caller can end what takes too long.

        What lies between two wanted frames is decoded too, unless the decoder can start anew after it.

        Args:
            numbers: of the wanted frames, of `self.numbers`, in any order.

        Yields:
            As `read_readable`, and for each other frame that was decoded its number and None.
        """
        at, frame, decoded = -1, None, iter(())
        failed: tuple[int, str] | None = None  # from where on nothing came, and why
        for wanted in sorted(set(numbers)):
            start = self._starts[max(0, bisect.bisect_right(self._starts, wanted) - 1)] if self._starts else 0
            if failed is None or failed[0] != start:
                if at < start or failed is not None:
                    at, frame, decoded = -1, None, self._decode_from(start) if self._seekable else self._decode_all()
                failed = None
                try:
                    while at < wanted or frame is None:
                        at, frame = next(decoded)
                        if at < wanted:
                            yield at, None
                except StopIteration:
                    failed = start, "gives no frame {wanted}: it breaks off" + (f" after frame {at}" * (at >= 0))
                except _ERRORS as error:
                    failed = start, f"cannot be decoded at frame {{wanted}} ({_why(error)})"
            if failed is not None:
                yield wanted, self._refusal(failed[1].format(wanted=wanted))
            elif at > wanted:
                yield wanted, self._refusal(f"gives no frame {wanted}")
            else:
                try:
                    self._check_size(frame.width, frame.height)  # the header may claim another one
                    image: np.ndarray | InputError = _upright(frame)
                except InputError as error:
                    image = error
                yield wanted, image

    def _refusal(self, what: str) -> InputError:
        return InputError(f"the video {self.path} {what}: copy or download it again.")

    def _decode_from(self, start: int) -> Iterator[tuple[int, "av.VideoFrame"]]:
        """Yield frames and their numbers, from a frame that a decoder can start from."""
        self._container.seek(self._times[start], stream=self._stream)
        index = start - 1
        for frame in self._container.decode(self._stream):
            index = index + 1 if frame.pts is None else bisect.bisect_left(self._times, frame.pts)
            if index >= start:  # frames before it lean on others that were skipped
                yield index, frame

    def _decode_all(self) -> Iterator[tuple[int, "av.VideoFrame"]]:
        """Yield all frames and their numbers, where seeking is not to be relied on, or no frame's time is known.

        A frame comes out of the decoder with some packet after its own, always as many later. After a packet that
        cannot be decoded nothing is given up to the next one that a decoder can start from.
        """
        with self._open() as container:
            stream = container.streams.video[0]
            self._prepare(stream, threads=1)  # more of them hold frames back, and tell of errors later
            number, delay, first, sound_from = -1, None, None, 0.0
            packets = filter(_holds_frame, container.demux(stream))
            for index, packet in enumerate(itertools.chain(packets, [None])):
                try:
                    frames = stream.codec_context.decode(packet)
                except _ERRORS:
                    sound_from = math.inf
                    continue
                if packet is not None and packet.is_keyframe:
                    first = index if first is None else first
                    sound_from = index if sound_from == math.inf else sound_from
                for frame in frames:
                    delay = index - (first or 0) if delay is None else delay
                    number = max(number + 1, index - delay)
                    if self._shown_times and frame.pts is not None:
                        number = bisect.bisect_left(self._times, frame.pts)
                    if number >= sound_from:
                        yield number, frame

    def _check_size(self, width: int, height: int) -> None:
        if self._most_pixels is not None and width * height > self._most_pixels:
            raise InputError(
                f"the frames of {self.path} have {width}x{height} pixels, more than {self._most_pixels:,}: make them "
                "smaller, or raise most_pixels."
            )


def _holds_frame(packet: "av.Packet") -> bool:
    """Whether a packet holds a frame that is shown: it may repeat the last one, or have been cut off by an editor."""
    return bool(packet.size) and not packet.is_discard


def _why(error: Exception) -> str:
    """Return why FFmpeg failed in words that say something to those who do not write decoders."""
    if av is not None and isinstance(error, av.InvalidDataError | av.ArgumentError):
        return "it is damaged, breaks off, or is something else"
    return reason(error)


def _upright(frame: "av.VideoFrame") -> np.ndarray:
    image = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90))) if frame.rotation else image


def evenly_spaced(length: int, number: int) -> list[int]:
    """Return so many frame numbers of a video, the first and the last among them; all of them if it has fewer.

    Args:
        length: frames of the video.
        number: frames wanted, at least 1.
    """
    return sorted(set(np.linspace(0, length - 1, min(number, length), dtype=int).tolist()))


__all__ = ["VIDEO_SUFFIXES", "Video", "evenly_spaced"]
