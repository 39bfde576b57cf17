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

cv2.setNumThreads(0)  # the workers already use all cores; OpenCV's threads would compete with them

BLOCKS_A_SIDE = 32  # as in the original: blocks of 8 px in a frame of 256 px
GREY = 128
# OpenCV's YCbCr: `LUMA @ rgb` is the grey value, and the columns of `TO_RGB` are unit steps in Y, Cb and Cr.
LUMA = np.array([0.299, 0.587, 0.114])
TO_RGB = np.array([[1.0, 0.0, 1.403], [1.0, -0.344, -0.714], [1.0, 1.773, 0.0]])


def _change_saturation(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Scale the distance of each colour from its grey.

    The original casts to uint8 without clipping. Factors of at most 1 move a colour towards its grey and cannot
    overflow, so only the rounding differs.
    """
    # In floating point, since OpenCV's integer transform is off by up to a quarter of a pixel value.
    changed = cv2.transform(image.astype(np.float32), factor * np.eye(3) + (1 - factor) * LUMA)
    return np.rint(changed).clip(0, 255).astype(np.uint8)


def _change_contrast(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Scale pixel values towards black instead of the mean; like the original, this darkens."""
    return cv2.convertScaleAbs(image, alpha=factor)


def _cover_blocks(image: np.ndarray, blocks: int, rng: np.random.Generator) -> np.ndarray:
    """Cover `blocks` of 32 x 32 equal parts of the image with grey.

    The original places `blocks * (shorter side // 256)` squares of 8 px at random: none below 256 px, a decreasing
    share of larger pictures, with overlaps, and never on the last row or column. At 256 px these are `blocks` squares
    of 1/1024 of the picture each. This version keeps that share for all sizes, and its blocks do not overlap.
    """
    height, width = image.shape[:2]
    rows, columns = min(BLOCKS_A_SIDE, height), min(BLOCKS_A_SIDE, width)
    count = round(blocks / BLOCKS_A_SIDE**2 * rows * columns)
    covered = np.zeros(rows * columns, bool)
    covered[rng.permutation(rows * columns)[:count]] = True  # a stronger level covers a superset of a weaker one
    place = np.ix_(np.arange(height) * rows // height, np.arange(width) * columns // width)
    image = image.copy()
    image[covered.reshape(rows, columns)[place]] = GREY
    return image


def _add_noise(image: np.ndarray, variance: float, rng: np.random.Generator) -> np.ndarray:
    """Add white Gaussian noise to Y, Cb and Cr.

    The original adds the noise after compressing Y into 219 of 255 values and Cb and Cr into 224, and expands them
    afterwards. The effective variance is 1.36 (Y) and 1.30 times the published one, and is kept for comparable levels.
    """
    deviations = 255 * math.sqrt(variance) * np.array([255 / 219, 255 / 224, 255 / 224])
    noise = cv2.transform(rng.standard_normal(image.shape, dtype=np.float32), TO_RGB * deviations)
    return cv2.add(image, noise, dtype=cv2.CV_8U)


def _blur(image: np.ndarray, kernel: int, rng: np.random.Generator) -> np.ndarray:
    """Blur with a Gaussian kernel of this size in pixels, with a standard deviation of a sixth of it."""
    return cv2.GaussianBlur(image, (kernel, kernel), kernel / 6)


def _pixelate(image: np.ndarray, divisor: int, rng: np.random.Generator) -> np.ndarray:
    """Scale down and up again, bilinear and without a low-pass; the original calls this JPEG compression."""
    height, width = image.shape[:2]
    small = cv2.resize(image, (max(1, width // divisor), max(1, height // divisor)))
    return cv2.resize(small, (width, height))


def _through_video(image: np.ndarray, crf: int, rng: np.random.Generator) -> np.ndarray:
    """Encode the crop as an H.264 video of a single frame at a constant rate factor, with x264's default settings.

    The original encodes whole videos. Rows are single crops without their clip, so this has the losses of a key frame
    (transform, quantisation, half the colour resolution) but not those of motion compensation.
    """
    height, width = image.shape[:2]
    # Blocks of 2 by 2 pixels share a colour, so sides must be even.
    even = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = even.shape[1], even.shape[0], "yuv420p"
    encoder.framerate, encoder.thread_count = 25, 1  # the workers already run in parallel
    encoder.options = {"crf": str(crf)}
    decoder = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    packets = [*encoder.encode(av.VideoFrame.from_ndarray(even, format="rgb24")), *encoder.encode(None)]
    (frame,) = [frame for packet in (*packets, None) for frame in decoder.decode(packet)]
    return np.ascontiguousarray(frame.to_ndarray(format="rgb24")[:height, :width])


def _through_jpeg(image: np.ndarray, quality: int, rng: np.random.Generator) -> np.ndarray:
    """Compress as JPEG with Pillow, with half the colour resolution (its default)."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as decoded:
        return np.array(decoded)


def _resize(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Scale down to a share of the side (area), and up again (bicubic), like an enlarged thumbnail."""
    height, width = image.shape[:2]
    size = max(1, round(width * share)), max(1, round(height * share))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


@dataclass(frozen=True)
class PerturbationType:
    """A type of perturbation, and the strengths of its levels."""

    apply: Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
    parameter: str
    """Meaning of the values."""
    values: tuple[float, ...]
    """Values from level 1, the weakest, to level 5."""


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
    """Perturbs the image of a row with one type and level, reproducibly.

    Random numbers depend on the seed, the type, and the row's `video_id` and `frame`, but not on its position in the
    data set or the process. The levels of a row differ in strength only: a stronger level amplifies the same noise,
    and adds to the same blocks.

    Args:
        type: a key of `TYPES`.
        level: one of `LEVELS`.
        seed: seed of the noise and of the positions of blocks.

    Raises:
        InputError: if the type or level does not exist.
    """

    type: str
    level: int
    seed: int = 0

    def __post_init__(self):
        if self.type not in TYPES:
            raise InputError(f"Unknown perturbation {self.type!r}. Choose from {', '.join(TYPES)}.")
        if self.level not in LEVELS:
            raise InputError(f"Level of {self.type}: is {self.level!r}. Choose a whole number from 1 to 5.")

    @property
    def value(self) -> float:
        """The strength of the level."""
        return TYPES[self.type].values[self.level - 1]

    def __call__(self, image: np.ndarray, video_id: str, frame: int) -> np.ndarray:
        """Return the perturbed image, uint8 (height, width, 3).

        Args:
            image: uint8 RGB array (height, width, 3), which stays unchanged.
            video_id: video of the row.
            frame: frame number of the row.

        Raises:
            InputError: if the image is not a uint8 RGB array.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(
                f"Image: is a {image.dtype} array of shape {image.shape}. Pass uint8 RGB (height, width, 3)."
            )
        name = f"{self.seed} {self.type} {frame} {video_id}"
        key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest())
        return TYPES[self.type].apply(image, self.value, np.random.default_rng(key))


def find_types(names: Sequence[str]) -> list[str]:
    """Return the distinct perturbation types of a command line.

    Args:
        names: keys of `FAMILIES` or of `TYPES`.

    Raises:
        InputError: if a name is unknown, or FFmpeg has no encoder for `video_compression`.
    """
    types: list[str] = []
    for name in names:
        if name not in FAMILIES and name not in TYPES:
            raise InputError(f"Unknown perturbation {name!r}. Choose from {', '.join([*FAMILIES, *TYPES])}.")
        types += FAMILIES.get(name, (name,))
    types = list(dict.fromkeys(types))
    if "video_compression" in types and "libx264" not in av.codecs_available:
        raise InputError(
            "video_compression needs the encoder libx264, which is missing from PyAV's FFmpeg. Install the wheel (pip "
            "install --force-reinstall av), or list the other types after --perturbations."
        )
    return types
