"""The frames of a clip: videos, images, and masks computed from two videos.

A `Frames` is a small description that can be sent to other processes. Opening it gives a `FrameReader`, which returns
each frame or the reason why it cannot be read, so one bad frame does not affect the others.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from ..errors_dcl import InputError, PictureError
from ..media_dcl import decode_picture, read_values
from ..video_dcl import Video
from .photographs import read_photograph

Frame = np.ndarray | InputError  # an image, or the error
_CROP_PIXELS = 4096**2  # of crops from other sources; larger ones could exhaust the memory


class FrameReader(Protocol):
    """Open frames, and the numbers of the available ones, ascending."""

    numbers: Sequence[int]

    def read(self, numbers: Iterable[int]) -> Iterator[tuple[int, Frame]]:
        """Yield each number, ascending, and its frame, RGB, uint8 (height, width, 3), or the error."""
        ...


class Frames(Protocol):
    """Where frames are stored: `where` is the name for reports, `lossy` whether a codec blurred masks."""

    where: str
    lossy: bool

    def open(self) -> AbstractContextManager[FrameReader]:
        """Open them for reading; raises `InputError` if nothing can be read."""
        ...

    def files(self) -> list[Path]:
        """Return the files that they depend on."""
        ...


@dataclass(frozen=True)
class VideoFrames:
    """The frames of a video file."""

    path: Path
    lossy = True

    @property
    def where(self) -> str:
        """The path."""
        return str(self.path)

    def files(self) -> list[Path]:
        """Return the file."""
        return [self.path]

    @contextmanager
    def open(self) -> Iterator[FrameReader]:
        """Open the video."""
        with Video(self.path, threads=1) as video:
            yield _VideoReader(video)


class _VideoReader:
    def __init__(self, video: Video):
        self.numbers = video.numbers
        self.read = video.read_readable


@dataclass(frozen=True)
class ImageFrames:
    """Image files of a clip by frame number; `exact` reads stored values without colour conversion, for masks."""

    paths: Mapping[int, Path]
    exact: bool = field(default=False, repr=False)  # `repr` names what rows depend on
    lossy = False

    @property
    def where(self) -> str:
        """The path of the folder, or of the one image."""
        first = next(iter(self.paths.values()))
        return str(first if len(self.paths) == 1 else first.parent)

    def files(self) -> list[Path]:
        """Return all of them."""
        return list(self.paths.values())

    def open(self) -> AbstractContextManager[FrameReader]:
        """Return the reader; each file is opened when it is read."""
        read = read_exact if self.exact else read_photograph
        return nullcontext(SingleReader(self.paths, lambda number: read(self.paths[number])))


class SingleReader:
    """Frames that are loaded one by one; errors have the names of the files."""

    def __init__(self, names: Mapping[int, Path | str], load: Callable[[int], np.ndarray]):
        self._names, self._load = names, load
        self.numbers = sorted(names)

    def read(self, numbers: Iterable[int]) -> Iterator[tuple[int, Frame]]:
        """Yield each number, ascending, and its frame or the error."""
        for number in sorted(set(numbers)):
            try:
                yield number, self._load(number)
            except InputError as error:
                yield number, InputError(f"{Path(self._names[number]).name}: {error}")


def decode_crop(encoded: bytes | memoryview) -> np.ndarray:
    """Decode a face crop: RGB, uint8 (height, width, 3); raises an `InputError` with the reason."""
    try:
        return decode_picture(bytes(encoded), "the crop", _CROP_PIXELS).pixels
    except PictureError as error:
        raise InputError(error.why) from error


def read_exact(source: Path | bytes | memoryview) -> np.ndarray:
    """Read the stored values of a mask, from its path or content: uint8 (height, width, 3).

    Raises an `InputError` with the reason if it cannot be read, or is too large for a mask.
    """
    try:
        return read_values(source if isinstance(source, Path) else bytes(source), "the mask", "RGB")
    except PictureError as error:
        raise InputError(error.why) from error


@dataclass(frozen=True)
class DifferenceMask:
    """A mask computed from the difference between a forgery and the clip it was made from.

    Coding noise is small everywhere and larger where there is more detail, while a forgery changes an area. So the
    difference is smoothed and compared with a threshold that grows with local detail, and a morphological opening
    removes the remaining noise.
    """

    forged: Frames
    original: Frames
    lossy = False

    @property
    def where(self) -> str:
        """The forgery's."""
        return self.forged.where

    def files(self) -> list[Path]:
        """Return the files of both."""
        return [*self.forged.files(), *self.original.files()]

    @contextmanager
    def open(self) -> Iterator[FrameReader]:
        """Open both."""
        with self.forged.open() as forged, self.original.open() as original:
            yield _DifferenceReader(forged, original)


class _DifferenceReader:
    # Measured on talking heads (face sides of 60 to 130 pixels) forged in five ways, as the mean intersection over
    # union with what was forged: coded at crf 1 .80, at crf 23 (c23) .80 (whole faces .87, parts .71 to .78), at
    # crf 40 (c40) .31, where coding changes as much as forging. Of a real coded at crf 23 and 25, .2 % is marked.
    threshold = 3.0  # of 255, where the image is flat
    detail_factor = 0.4  # growth of the threshold with detail
    detail_sigma = 2.0  # pixels; detail is what this blur removes
    sigma = 4.0  # pixels, of the smoothing of difference and detail
    opening = 9  # pixels, side of the smallest patch that is kept, and of the largest gap that is closed

    def __init__(self, forged: FrameReader, original: FrameReader):
        self._forged, self._original = forged, original
        self.numbers = sorted(set(forged.numbers) & set(original.numbers))

    def read(self, numbers: Iterable[int]) -> Iterator[tuple[int, Frame]]:
        wanted = sorted(set(numbers))
        for (number, forged), (_, original) in zip(
            self._forged.read(wanted), self._original.read(wanted), strict=True
        ):
            if isinstance(forged, InputError) or isinstance(original, InputError):
                yield number, forged if isinstance(forged, InputError) else original
            elif forged.shape != original.shape:
                yield number, InputError(f"the forgery is {size_of(forged)}, but its original {size_of(original)}")
            else:
                yield number, self._mask(forged, original)

    def _mask(self, forged: np.ndarray, original: np.ndarray) -> np.ndarray:
        difference = self._smoothed(cv2.absdiff(forged, original).astype(np.float32).mean(axis=2))
        grey = cv2.cvtColor(original, cv2.COLOR_RGB2GRAY).astype(np.float32)
        detail = self._smoothed(np.abs(grey - cv2.GaussianBlur(grey, (0, 0), self.detail_sigma)))
        mask = np.where(difference > self.threshold + self.detail_factor * detail, 255, 0).astype(np.uint8)
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (self.opening, self.opening))
        mask = cv2.morphologyEx(cv2.morphologyEx(mask, cv2.MORPH_OPEN, kernel), cv2.MORPH_CLOSE, kernel)
        return np.repeat(mask[..., None], 3, axis=2)

    def _smoothed(self, image: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(image, (0, 0), self.sigma)


def size_of(image: np.ndarray) -> str:
    """Return width and height of an image or mask for reports."""
    return f"{image.shape[1]}x{image.shape[0]}"
