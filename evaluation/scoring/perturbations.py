"""Perturbations of pictures, such as blur, noise and recompression, each at five levels.

The first seven types are the distortions of DeeperForensics-1.0 (Jiang et al., CVPR 2020) with their published levels
(github.com/EndlessSora/DeeperForensics-1.0, `perturbation/`); `jpeg` and `resize` are ours. All are applied to the
face crop, before the image processor. The originals were applied to whole frames before faces were cut out, so the
numbers of the two are close but not the same. Sizes in pixels, such as that of the blur, are pixels of the crop.

Each type documents where the original is odd, and what we kept and changed. In general, the original truncates
fractions of pixel values and mostly does not clip; here values are rounded and clipped.
"""

import hashlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import av
import cv2
import numpy as np
from PIL import Image

from ...errors_dcl import InputError

cv2.setNumThreads(0)  # the images are small and the workers many: OpenCV's own threads would fight over the cores

BLOCKS_A_SIDE = 32  # the published block has 8 px, in the smallest frame that gets any, of 256 px
GREY = 128
# OpenCV's YCbCr: the grey of a colour is `LUMA @ rgb`, and a step of one in Y, Cb, Cr is a column of `TO_RGB`.
LUMA = np.array([0.299, 0.587, 0.114])
TO_RGB = np.array([[1.0, 0.0, 1.403], [1.0, -0.344, -0.714], [1.0, 1.773, 0.0]])


def _change_saturation(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Scale the distance of each colour from its grey.

    The original casts to uint8 without clipping. As factors of at most 1 lead from a colour straight to its grey,
    nothing overflows: only the rounding differs.
    """
    # In floating point: OpenCV's whole-number transform is off by up to a quarter of a pixel value.
    changed = cv2.transform(image.astype(np.float32), factor * np.eye(3) + (1 - factor) * LUMA)
    return np.rint(changed).clip(0, 255).astype(np.uint8)


def _change_contrast(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Scale pixel values towards black, not towards the mean: this darkens, as the original does."""
    return cv2.convertScaleAbs(image, alpha=factor)


def _cover_blocks(image: np.ndarray, blocks: int, rng: np.random.Generator) -> np.ndarray:
    """Cover `blocks` of 32 x 32 equal parts of the image with grey.

    The original throws `blocks * (shorter side // 256)` squares of 8 px at random places: none at all below 256 px,
    ever less of the picture above, overlapping, and never on the last row or column. At 256 px that is `blocks`
    squares of a 1024th of the picture each, which is kept for all sizes; no two here cover the same place, so the
    share is exact.
    """
    height, width = image.shape[:2]
    rows, columns = min(BLOCKS_A_SIDE, height), min(BLOCKS_A_SIDE, width)
    count = round(blocks / BLOCKS_A_SIDE**2 * rows * columns)
    covered = np.zeros(rows * columns, bool)
    covered[rng.permutation(rows * columns)[:count]] = True  # a stronger level covers what a weaker one does, and more
    place = np.ix_(np.arange(height) * rows // height, np.arange(width) * columns // width)
    image = image.copy()
    image[covered.reshape(rows, columns)[place]] = GREY
    return image


def _add_noise(image: np.ndarray, variance: float, rng: np.random.Generator) -> np.ndarray:
    """Add white Gaussian noise to Y, Cb and Cr.

    The original adds it after Y is squeezed into 219 of 255 values and Cb and Cr into 224, and stretches them again:
    the noise that arrives has 1.36 (Y) and 1.30 times the published variance. Kept, or levels would not compare.
    """
    deviations = 255 * math.sqrt(variance) * np.array([255 / 219, 255 / 224, 255 / 224])
    noise = cv2.transform(rng.standard_normal(image.shape, dtype=np.float32), TO_RGB * deviations)
    return cv2.add(image, noise, dtype=cv2.CV_8U)


def _blur(image: np.ndarray, kernel: int, rng: np.random.Generator) -> np.ndarray:
    """Blur with a Gaussian kernel of so many pixels, a standard deviation a sixth of it."""
    return cv2.GaussianBlur(image, (kernel, kernel), kernel / 6)


def _pixelate(image: np.ndarray, divisor: int, rng: np.random.Generator) -> np.ndarray:
    """Scale down and up again, bilinear and without a low-pass: what the original calls JPEG compression."""
    height, width = image.shape[:2]
    small = cv2.resize(image, (max(1, width // divisor), max(1, height // divisor)))
    return cv2.resize(small, (width, height))


def _through_video(image: np.ndarray, crf: int, rng: np.random.Generator) -> np.ndarray:
    """Encode the crop as the one frame of an H.264 video at a constant rate factor, x264's other settings at default.

    The original encodes whole videos. Rows are single crops, frames of a clip that is not there any more, so this has
    the loss of a key frame (transform, quantisation, half the colour resolution) and none of motion compensation.
    """
    height, width = image.shape[:2]
    # Two by two pixels share a colour: a side must be even.
    even = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = even.shape[1], even.shape[0], "yuv420p"
    encoder.framerate, encoder.thread_count = 25, 1  # the workers are the threads
    encoder.options = {"crf": str(crf)}
    decoder = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    packets = [*encoder.encode(av.VideoFrame.from_ndarray(even, format="rgb24")), *encoder.encode(None)]
    (frame,) = [frame for packet in (*packets, None) for frame in decoder.decode(packet)]
    return np.ascontiguousarray(frame.to_ndarray(format="rgb24")[:height, :width])


def _through_jpeg(image: np.ndarray, quality: int, rng: np.random.Generator) -> np.ndarray:
    """Encode and decode as JPEG, by Pillow, with half the colour resolution (its default)."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as decoded:
        return np.array(decoded)


def _resize(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Scale down to a share of the side, by area, and up again, bicubic: a thumbnail that is enlarged."""
    height, width = image.shape[:2]
    size = max(1, round(width * share)), max(1, round(height * share))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


@dataclass(frozen=True)
class PerturbationType:
    """One way of perturbing, and how strongly each level does it."""

    apply: Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
    parameter: str
    """What the values mean."""
    values: tuple[float, ...]
    """Of level 1, the weakest, to level 5."""


DEEPERFORENSICS = {
    "color_saturation": PerturbationType(_change_saturation, "factor", (0.4, 0.3, 0.2, 0.1, 0.0)),  # published as CS
    "color_contrast": PerturbationType(_change_contrast, "factor", (0.85, 0.725, 0.6, 0.475, 0.35)),  # CC
    "block_wise": PerturbationType(_cover_blocks, "blocks of 1024", (16, 32, 48, 64, 80)),  # BW
    "gaussian_noise": PerturbationType(_add_noise, "variance", (0.001, 0.002, 0.005, 0.01, 0.05)),  # GNC
    "gaussian_blur": PerturbationType(_blur, "kernel", (7, 9, 13, 17, 21)),  # GB
    "pixelation": PerturbationType(_pixelate, "divisor", (2, 3, 4, 5, 6)),  # JPEG
    "video_compression": PerturbationType(_through_video, "CRF", (30, 32, 35, 38, 40)),  # VC
}
TYPES = DEEPERFORENSICS | {
    "jpeg": PerturbationType(_through_jpeg, "quality", (95, 75, 50, 30, 10)),
    "resize": PerturbationType(_resize, "share of the side", (0.75, 0.5, 0.375, 0.25, 0.125)),
}
LEVELS = (1, 2, 3, 4, 5)
FAMILIES = {"deeperforensics": tuple(DEEPERFORENSICS), "all": tuple(TYPES)}


@dataclass(frozen=True)
class Perturbation:
    """Perturbs the image of a row by one type at one level: the same row always in the same way.

    What is random depends on the seed, the type, and the row's `video_id` and `frame`, on neither its place in the
    data set nor the process that reads it. The levels of one row differ by strength alone: a stronger one has the same
    noise, louder, and the same blocks, and more.

    Args:
        type: a key of `TYPES`.
        level: one of `LEVELS`.
        seed: another seed gives other noise and other places of blocks.

    Raises:
        InputError: if there is no such type or level.
    """

    type: str
    level: int
    seed: int = 0

    def __post_init__(self):
        if self.type not in TYPES:
            raise InputError(f"there is no perturbation {self.type!r}: choose from {', '.join(TYPES)}.")
        if self.level not in LEVELS:
            raise InputError(f"the level of {self.type} is {self.level!r}: set it to a whole number from 1 to 5.")

    @property
    def value(self) -> float:
        """The strength of the level."""
        return TYPES[self.type].values[self.level - 1]

    def __call__(self, image: np.ndarray, video_id: str, frame: int) -> np.ndarray:
        """Return the perturbed image, uint8 (height, width, 3).

        Args:
            image: uint8 RGB array (height, width, 3); it is not changed.
            video_id: with `frame`, which row it is.
            frame: its number.

        Raises:
            InputError: if the image is not a uint8 RGB array.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(
                f"the image is a {image.dtype} array of shape {image.shape}: give uint8 RGB (height, width, 3)."
            )
        name = f"{self.seed} {self.type} {frame} {video_id}"
        key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest())
        return TYPES[self.type].apply(image, self.value, np.random.default_rng(key))


def find_types(names: Sequence[str]) -> list[str]:
    """Return the perturbation types of a command line, each once.

    Args:
        names: keys of `FAMILIES` or of `TYPES`.

    Raises:
        InputError: if there is no such name, or FFmpeg lacks the encoder of `video_compression`.
    """
    types: list[str] = []
    for name in names:
        if name not in FAMILIES and name not in TYPES:
            raise InputError(f"there are no perturbations {name!r}: choose from {', '.join([*FAMILIES, *TYPES])}.")
        types += FAMILIES.get(name, (name,))
    types = list(dict.fromkeys(types))
    if "video_compression" in types and "libx264" not in av.codecs_available:
        raise InputError(
            "video_compression needs the encoder libx264, which the FFmpeg of PyAV lacks here: install the wheel "
            "(pip install --force-reinstall av), or name the other types after --perturbations."
        )
    return types
