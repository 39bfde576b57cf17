"""Common augmentation of a face crop and its forgery mask: uint8 arrays, in the data loader's workers.

Rotation, crop, resize and flip are composed into one affine map, so that every pixel is interpolated once, and image
and mask are warped by the same matrix. Changes of pixel values come after it, on the smaller image.
"""

import math
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
from PIL import Image

from ..errors_dcl import InputError
from ..image_processing_dcl import MAX_BILINEAR_SHRINK
from .settings import AugmentationSettings

cv2.setNumThreads(0)  # the workers already use all cores; OpenCV's threads would compete with them

# The original training used the default strengths of its augmentation library.
NOISE_VARIANCE = (10.0, 50.0)  # grey levels squared
BRIGHTNESS_SHIFT = 0.2  # share of the range of grey levels
CONTRAST_CHANGE = 0.2  # share of the pixel's value
HUE_SHIFT, SATURATION_SHIFT, VALUE_SHIFT = 20.0, 30.0, 20.0  # in OpenCV's units: 0-180, 0-255, 0-255
PCA_STRENGTH = 0.1  # standard deviation of the factor of the variances, for values in [0, 1]

LEVELS = np.arange(256.0)[:, None]

Change = Callable[[np.ndarray], np.ndarray]


class Augmentation:
    """Turns a face crop and its mask into a random view with sides of `image_size` pixels."""

    def __init__(self, settings: AugmentationSettings, image_size: int):
        self.settings = settings
        self.image_size = image_size

    def __call__(
        self, image: np.ndarray, mask: np.ndarray | None, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the augmented image and the mask moved with it, uint8 (size, size, 3) and (size, size).

        Args:
            image: uint8 RGB array (height, width, 3), of any size.
            mask: uint8 array (height, width), the forged share of each pixel times 255; None where unknown. The
                cutout blackens the image but leaves the mask: a covered forgery still counts as forged.
            rng: the only source of randomness.

        Raises:
            InputError: if mask and image differ in height or width.
        """
        _check_size("mask", mask, image)
        height, width = image.shape[:2]
        matrix, changes = self._draw_geometry(width, height, rng), self._draw_changes(rng)
        image, mask = warp(image, mask, matrix, self.image_size)
        for change in changes:
            image = change(image)
        return image, mask

    def skip(self, rng: np.random.Generator) -> None:
        """Draw the random numbers of a view that is not needed, so that later draws are the same without it."""
        self._draw_geometry(1, 1, rng)
        self._draw_changes(rng)

    def _draw_geometry(self, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
        settings, size = self.settings, self.image_size
        angle, left, top, crop_width, crop_height = 0.0, 0.0, 0.0, float(width), float(height)
        if rng.random() < settings.rotate_probability:
            angle = math.radians(rng.uniform(-settings.rotate_degrees, settings.rotate_degrees))
        if rng.random() < settings.resized_crop_probability:
            area = rng.uniform(*settings.resized_crop_scale) * width * height
            ratio = math.exp(rng.uniform(*map(math.log, settings.resized_crop_ratio)))
            crop_width, crop_height = min(width, math.sqrt(area * ratio)), min(height, math.sqrt(area / ratio))
            left, top = rng.uniform(0, width - crop_width), rng.uniform(0, height - crop_height)
        crop = np.array([[crop_width / size, 0, left], [0, crop_height / size, top], [0, 0, 1]])
        if rng.random() < settings.flip_probability:
            crop = crop @ np.array([[-1, 0, size], [0, 1, 0], [0, 0, 1]])
        # The view is a crop of the rotated image, so from view to source the crop comes first.
        cosine, sine = math.cos(angle), math.sin(angle)
        rotation = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
        return _shift(width / 2, height / 2) @ rotation @ _shift(-width / 2, -height / 2) @ crop

    def _draw_changes(self, rng: np.random.Generator) -> list[Change]:
        """Draw the changes of pixel values, in their order; each may overwrite the image that it gets."""
        settings, size = self.settings, self.image_size
        changes: list[Change] = []
        if rng.random() < settings.cutout_probability:
            side = round(settings.cutout_side * size)
            top, left = rng.integers(size, size=2) - side // 2
            changes.append(partial(_cut_out, top=top, left=left, side=side))
        if rng.random() < settings.gray_probability:
            changes.append(_remove_color)
        if rng.random() < settings.noise_probability:
            deviation = np.float32(math.sqrt(rng.uniform(*NOISE_VARIANCE)))
            noise = rng.standard_normal((size, size, 3), dtype=np.float32) * deviation
            changes.append(partial(cv2.add, noise, dtype=cv2.CV_8U))
        if rng.random() < settings.color_probability:
            draws = (_draw_brightness_and_contrast, _draw_main_colors, _draw_hue_and_saturation)
            changes.append(draws[rng.integers(len(draws))](rng))
        if rng.random() < settings.blur_probability:
            changes.append(partial(cv2.GaussianBlur, ksize=(3, 3), sigmaX=0))
        if rng.random() < settings.jpeg_probability:
            changes.append(partial(_through_jpeg, quality=round(rng.uniform(*settings.jpeg_quality))))
        return changes


def warp(
    image: np.ndarray, mask: np.ndarray | None, matrix: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Warp an image and its mask into a square view by an affine map.

    The matrix (3, 3) maps view to source coordinates, in pixels from the outer corner: the centre of the first pixel
    is (0.5, 0.5). Sampling is bilinear, and the source is mirrored beyond its border. The image is uint8 RGB (height,
    width, 3), the mask uint8 (height, width) or None; so are the results, with sides of `size`, writable.
    """
    height, width = image.shape[:2]
    (across, skew, left), (lean, down, top) = matrix[:2].tolist()
    origin = width if across < 0 else 0  # of a mirrored view
    whole = np.abs((abs(across) * size - width, down * size - height, skew, lean, left - origin, top)).max() < 1e-6
    if whole:
        resized = (None if values is None else _resize(values, size) for values in (image, mask))
        image, mask = resized if across > 0 else (None if one is None else cv2.flip(one, 1) for one in resized)
        return image, mask
    # Source columns and rows per pixel of the view. Above the limit, a low-pass filter first reduces the source to the
    # resolution of the view; otherwise fine structures, and the traces of a forgery with them, would alias.
    shrink = np.maximum(np.hypot(matrix[:2, 0], matrix[:2, 1]), 1.0)
    if shrink.max() > MAX_BILINEAR_SHRINK:
        reduced_width, reduced_height = max(1, round(width / shrink[0])), max(1, round(height / shrink[1]))
        image = _smooth_resize(image, reduced_width, reduced_height)
        mask = None if mask is None else _smooth_resize(mask, reduced_width, reduced_height)
        matrix = np.diag([reduced_width / width, reduced_height / height, 1.0]) @ matrix
    matrix = _shift(-0.5, -0.5) @ matrix @ _shift(0.5, 0.5)  # OpenCV counts from the centre of the first pixel
    layers = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)  # it warps four channels in half the time of three
    if mask is not None:
        cv2.insertChannel(mask, layers, 3)
    # BORDER_REFLECT mirrors at the image's edge, which repeats the last pixel as a resize does. BORDER_REFLECT_101
    # mirrors at the last pixel's centre, and this shows along the rim of an enlarged image.
    layers = cv2.warpAffine(
        layers, matrix[:2], (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT
    )
    return cv2.cvtColor(layers, cv2.COLOR_RGBA2RGB), None if mask is None else cv2.extractChannel(layers, 3)


def _resize(values: np.ndarray, size: int) -> np.ndarray:
    """Resize a whole image or mask to a square, as the image processor does; OpenCV 4 warps less exactly."""
    if max(values.shape[:2]) > size * MAX_BILINEAR_SHRINK:
        return _smooth_resize(values, size, size)
    return cv2.resize(values, (size, size), interpolation=cv2.INTER_LINEAR_EXACT)


def _smooth_resize(values: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize by Pillow's filter, which the image processor uses, too: training and inference are equally sharp."""
    return np.array(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR))


def corresponding_mix(fake: np.ndarray, source: np.ndarray, ratio: float) -> np.ndarray:
    """Blend a fake with its real source frame: the forgery becomes fainter, its region and the label stay.

    The ratio is the share of the fake, in (0, 1]; the paper names this view but gives no distribution of the ratio.
    Images are uint8 RGB (height, width, 3), cropped at the same place; so is the blend. The mask stays that of the
    fake, since a fainter forgery covers the same pixels. Raises `InputError` if the sizes differ.
    """
    _check_size("source frame", source, fake)
    return cv2.addWeighted(fake, ratio, source, 1.0 - ratio, 0.0)


def _check_size(name: str, values: np.ndarray | None, image: np.ndarray) -> None:
    if values is not None and values.shape[:2] != image.shape[:2]:
        (height, width), (wanted_height, wanted_width) = values.shape[:2], image.shape[:2]
        raise InputError(
            f"{name.capitalize()}: has {width}x{height} pixels, but its image has {wanted_width}x{wanted_height}. "
            "Crop image, mask and source frame to one size."
        )


def _shift(right: float, down: float) -> np.ndarray:
    return np.array([[1.0, 0.0, right], [0.0, 1.0, down], [0.0, 0.0, 1.0]])


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Map the values through a lookup table, (256, 1) for all channels or (256, channels)."""
    return cv2.LUT(image, np.rint(table).clip(0, 255).astype(np.uint8)[None])


def _cut_out(image: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    image[max(top, 0) : top + side, max(left, 0) : left + side] = 0
    return image


def _remove_color(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def _draw_brightness_and_contrast(rng: np.random.Generator) -> Change:
    gain = 1.0 + rng.uniform(-CONTRAST_CHANGE, CONTRAST_CHANGE)
    table = gain * LEVELS + 255.0 * rng.uniform(-BRIGHTNESS_SHIFT, BRIGHTNESS_SHIFT)
    return partial(_look_up, table=table)


def _draw_main_colors(rng: np.random.Generator) -> Change:
    return partial(_shift_main_colors, strength=rng.normal(0.0, PCA_STRENGTH))


def _shift_main_colors(image: np.ndarray, strength: float) -> np.ndarray:
    """Shift all colours along the principal axes of the image's own colours (PCA colour augmentation of AlexNet).

    The shift is `strength` times the sum of the axes, each scaled by its variance, for colours in [0, 1].
    """
    colors = image[::4, ::4].reshape(-1, 3) / np.float32(255.0)  # a 16th of the pixels gives the same axes
    colors -= colors.mean(axis=0)
    variances, axes = np.linalg.eigh((colors.T @ colors / len(colors)).astype(np.float64))
    return cv2.add(image, (*np.rint(255.0 * strength * (axes @ variances.clip(0.0))), 0.0))


def _draw_hue_and_saturation(rng: np.random.Generator) -> Change:
    limits = np.array([HUE_SHIFT, SATURATION_SHIFT, VALUE_SHIFT])
    table = LEVELS + np.rint(rng.uniform(-limits, limits))
    table[:, 0] %= 180.0
    return partial(_shift_hue_and_saturation, table=table)


def _shift_hue_and_saturation(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(_look_up(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), table), cv2.COLOR_HSV2RGB)


def _through_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    # OpenCV's codec expects BGR; in RGB order, chroma subsampling would treat red as blue.
    encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
