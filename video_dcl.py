"""Read the wanted frames of a video: by their number, in one pass, with one frame in memory at a time."""

import bisect
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
VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}
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
#: What the decoder allows of the pixels that are allowed: it pads frames to whole blocks.
_PADDED = 2


class Video:
    """A video file whose frames are numbered from 0 in the order in which they are shown.

    Opening it reads the packets once, without decoding: their times say how many frames there really are, whatever the
    header claims, and which of them a decoder can start from. Use it as a context manager.

    Args:
        path: the file.
        threads: of the decoder; 0 lets it choose.
        most_pixels: frames with more are refused, by the header if it says so, else before they are decoded or handed
            on; None: none are.

    Raises:
        InputError: if PyAV is missing, or the file cannot be read or holds no video, or its frames are too large.
    """

    def __init__(self, path: str | Path, threads: int = 0, most_pixels: int | None = None):
        if av is None:
            raise InputError("reading videos needs PyAV: pip install av.")
        self.path, self._most_pixels = Path(path), most_pixels
        try:
            self._container = av.open(str(path), metadata_errors="ignore", options=_OPTIONS)
        except _ERRORS as error:
            raise InputError(
                f"the video {path} cannot be opened ({_why(error)}): copy or download it again."
            ) from error
        try:
            if not self._container.streams.video:
                raise InputError(f"{path} holds no video: give a file that does.")
            self._stream = self._container.streams.video[0]
            if self._stream.codec_context is None:
                raise InputError(f"the video {path} is of a kind that cannot be decoded here: convert it to H.264.")
            self._stream.codec_context.thread_count = threads
            self._stream.codec_context.thread_type = "AUTO"
            if most_pixels is not None:
                self._check_size(*self.size)
                self._stream.codec_context.options = {"max_pixels": str(most_pixels * _PADDED)}
            self._read_packets()
            if not self._times:
                raise InputError(f"the video {path} holds no frame: copy or download it again.")
        except InputError:
            self.close()
            raise

    def _read_packets(self) -> None:
        packets = []
        try:
            for packet in self._container.demux(self._stream):
                if packet.size and not packet.is_discard:
                    packets.append((packet.pts, packet.dts, packet.is_keyframe))
        except _ERRORS:
            pass  # a file that breaks off has the frames before the break
        # AVI tells when frames are decoded, not when they are shown, and what PyAV then says of that is made up.
        self._only_decoding_times = self._stream.codec_context.has_b_frames and (
            self._container.format.name == "avi" or any(shown is None for shown, _, _ in packets)
        )
        times, starts = set(), set()
        for shown, decoded, is_start in packets:
            time = decoded if self._only_decoding_times or shown is None else shown
            if time is not None:
                times.add(time)
                if is_start and not self._only_decoding_times:  # else it is not known which frame it begins with
                    starts.add(time)
        self._times = sorted(times)
        self._starts = [bisect.bisect_left(self._times, time) for time in sorted(starts)]

    @property
    def numbers(self) -> range:
        """The numbers of the frames that are there."""
        return range(len(self._times))

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

    def read(self, numbers: Iterable[int], passed: bool = False) -> Iterator[tuple[int, np.ndarray | None]]:
        """Decode frames, in order.

        What lies between two wanted frames is decoded too, unless the decoder can start anew after it.

        Args:
            numbers: of the wanted frames, of `self.numbers`, in any order.
            passed: whether to yield the others that are decoded, too, so that the caller can end what takes too long.

        Yields:
            The number, and the frame turned upright: RGB, uint8 (height, width, 3), or None if it was only passed.

        Raises:
            InputError: at the first wanted frame that cannot be decoded; those before it were given.
        """
        at, decoded = -1, iter(())
        for wanted in sorted(set(numbers)):
            start = self._starts[max(0, bisect.bisect_right(self._starts, wanted) - 1)] if self._starts else 0
            if at < start:
                decoded = self._decode(start)
            frame = None
            try:
                while at < wanted or frame is None:
                    at, frame = next(decoded)
                    if passed and at < wanted:
                        yield at, None
            except StopIteration:
                raise InputError(
                    f"{self.path} gives no frame {wanted}: it breaks off after frame {at}, copy or download it again."
                ) from None
            except _ERRORS as error:
                raise InputError(
                    f"frame {wanted} of {self.path} cannot be decoded ({_why(error)}): copy or download it again."
                ) from error
            if at == wanted:
                self._check_size(frame.width, frame.height)  # the header may claim another one
                yield at, _upright(frame)
            else:
                raise InputError(f"{self.path} gives no frame {wanted}: copy or download it again.")

    def read_readable(
        self, numbers: Iterable[int], passed: bool = False
    ) -> Iterator[tuple[int, np.ndarray | InputError | None]]:
        """Decode frames, in order; one that cannot be decoded costs only itself.

        Args:
            numbers: of the wanted frames, of `self.numbers`, in any order.
            passed: as of `read`.

        Yields:
            The number, and the frame as `read` gives it, or why it cannot be had.
        """
        waiting = sorted(set(numbers))
        while waiting:
            try:
                for number, image in self.read(waiting, passed):
                    if image is not None:
                        waiting.remove(number)
                    yield number, image
            except InputError as error:  # the decoder may start anew after the damage
                yield waiting.pop(0), error

    def _decode(self, start: int) -> Iterator[tuple[int, "av.VideoFrame"]]:
        """Yield frames and their numbers, from a frame that a decoder can start from."""
        self._container.seek(self._times[start], stream=self._stream)
        index, delay = start - 1, None
        for frame in self._container.decode(self._stream):
            time = frame.dts if self._only_decoding_times or frame.pts is None else frame.pts
            if time is None:  # the last ones, after which no packet came
                index += 1
            else:
                index = bisect.bisect_left(self._times, time)
                if self._only_decoding_times:  # those of the packet with which the frame came out: all equally late
                    delay = index if delay is None else delay
                    index -= delay
            if index >= start:  # frames before it lean on others that were skipped
                yield index, frame

    def _check_size(self, width: int, height: int) -> None:
        if self._most_pixels is not None and width * height > self._most_pixels:
            raise InputError(
                f"the frames of {self.path} have {width}x{height} pixels, more than {self._most_pixels:,}: make them "
                "smaller, or raise most_pixels."
            )


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
