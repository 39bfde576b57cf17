"""Common augmentation of a face crop and its forgery mask: uint8 arrays, in the workers of the data loader.

Rotation, crop, resize and flip are composed into one affine map, so that every pixel is interpolated once and the mask
follows the image by the very same matrix. What changes pixels but moves nothing comes after it, on the small image.
"""

import math

import cv2
import numpy as np
from PIL import Image

from ..errors_dcl import InputError
from ..image_processing_dcl import MAX_BILINEAR_SHRINK
from .settings import AugmentationSettings

cv2.setNumThreads(0)  # the images are small and the workers many: OpenCV's own threads would fight over the cores

# Strengths that the original training left at the defaults of its augmentation library.
NOISE_VARIANCE = (10.0, 50.0)  # grey levels squared
BRIGHTNESS_SHIFT = 0.2  # share of the range of grey levels
CONTRAST_CHANGE = 0.2  # share of the pixel's value
HUE_SHIFT, SATURATION_SHIFT, VALUE_SHIFT = 20.0, 30.0, 20.0  # in OpenCV's units: 0-180, 0-255, 0-255
PCA_STRENGTH = 0.1  # standard deviations of the image's own colours


class Augmentation:
    """Turns a face crop and its mask into a view of `image_size` pixels, by draws of a given random generator."""

    def __init__(self, settings: AugmentationSettings, image_size: int):
        self.settings = settings
        self.image_size = image_size

    def __call__(
        self, image: np.ndarray, mask: np.ndarray | None, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the augmented image and the mask moved with it, uint8 (size, size, 3) and (size, size).

        Args:
            image: uint8 RGB array (height, width, 3), of any size.
            mask: uint8 array (height, width), the forged share of each pixel in 255ths; None where unknown. A place
                that is blackened by the cutout stays marked as forged: it is where the forgery lies, seen or not.
            rng: the only source of randomness.

        Raises:
            InputError: if the mask has not the height and width of the image.
        """
        _check_size("mask", mask, image)
        height, width = image.shape[:2]
        matrix = self._draw_geometry(width, height, rng)
        image = warp(image, matrix, self.image_size)
        return self._draw_pixels(image, rng), None if mask is None else warp(mask, matrix, self.image_size)

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

    def _draw_pixels(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        settings = self.settings
        if rng.random() < settings.cutout_probability:
            side = round(settings.cutout_side * self.image_size)
            top, left = rng.integers(self.image_size, size=2) - side // 2
            image[max(top, 0) : top + side, max(left, 0) : left + side] = 0
        if rng.random() < settings.gray_probability:
            image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        if rng.random() < settings.noise_probability:
            deviation = np.float32(math.sqrt(rng.uniform(*NOISE_VARIANCE)))
            noise = rng.standard_normal(image.shape, dtype=np.float32) * deviation
            image = cv2.add(image, noise, dtype=cv2.CV_8U)
        if rng.random() < settings.color_probability:
            changes = (_change_brightness_and_contrast, _change_main_colors, _change_hue_and_saturation)
            image = changes[rng.integers(len(changes))](image, rng)
        if rng.random() < settings.blur_probability:
            image = cv2.GaussianBlur(image, (3, 3), 0)
        if rng.random() < settings.jpeg_probability:
            image = _through_jpeg(image, round(rng.uniform(*settings.jpeg_quality)))
        return image


def warp(values: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """Sample an image or a mask, uint8, at the places an affine map sends the pixels of a square view to.

    The matrix (3, 3) leads from view to source, in pixels counted from the outer corner, in which the centre of the
    first pixel is (0.5, 0.5). Bilinear; beyond its border the source is mirrored.
    """
    # Source columns and rows per pixel of the view. Beyond the limit the source is first reduced to the resolution of
    # the view by a low-pass, or thin structures would alias, and forged traces with them.
    shrink = np.maximum(np.hypot(matrix[:2, 0], matrix[:2, 1]), 1.0)
    if shrink.max() > MAX_BILINEAR_SHRINK:
        height, width = values.shape[:2]
        reduced_width, reduced_height = max(1, round(width / shrink[0])), max(1, round(height / shrink[1]))
        # Pillow's filter is that of the image processor: a model must see the same sharpness in training and after it.
        reduced = Image.fromarray(values).resize((reduced_width, reduced_height), Image.Resampling.BILINEAR)
        values = np.asarray(reduced)
        matrix = np.diag([reduced_width / width, reduced_height / height, 1.0]) @ matrix
    matrix = _shift(-0.5, -0.5) @ matrix @ _shift(0.5, 0.5)  # OpenCV counts from the centre of the first pixel
    # BORDER_REFLECT mirrors about the image's edge, hence repeats the last pixel within its half width as a resize
    # does; BORDER_REFLECT_101 mirrors about the last pixel's centre, which shows along the rim of an enlarged image.
    return cv2.warpAffine(
        values, matrix[:2], (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT
    )


def corresponding_mix(
    fake: np.ndarray, source: np.ndarray, mask: np.ndarray | None, ratio: float
) -> tuple[np.ndarray, np.ndarray | None]:
    """Blend a fake with the frame of the real video it was made from: a fainter forgery, which stays a fake.

    The paper names this view and no distribution of the ratio, the share of the fake in (0, 1]. Images are uint8 RGB
    (height, width, 3), cut at the same place; the mask (height, width) is scaled by the ratio, rounded up: what was
    marked as forged stays marked. Raises `InputError` if the sizes differ.
    """
    _check_size("source frame", source, fake)
    _check_size("mask", mask, fake)
    image = cv2.addWeighted(fake, ratio, source, 1.0 - ratio, 0.0)
    return image, None if mask is None else np.ceil(mask * ratio).astype(np.uint8)


def _check_size(name: str, values: np.ndarray | None, image: np.ndarray) -> None:
    if values is not None and values.shape[:2] != image.shape[:2]:
        (height, width), (wanted_height, wanted_width) = values.shape[:2], image.shape[:2]
        raise InputError(
            f"the {name} has {width}x{height} pixels, and its image {wanted_width}x{wanted_height}: cut image, mask "
            "and source frame in one size."
        )


def _shift(right: float, down: float) -> np.ndarray:
    return np.array([[1.0, 0.0, right], [0.0, 1.0, down], [0.0, 0.0, 1.0]])


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Replace each value of each channel by its entry in a table (256, channels)."""
    return cv2.LUT(image, np.rint(table).clip(0, 255).astype(np.uint8)[None])


def _levels() -> np.ndarray:
    return np.tile(np.arange(256.0)[:, None], 3)


def _change_brightness_and_contrast(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    gain = 1.0 + rng.uniform(-CONTRAST_CHANGE, CONTRAST_CHANGE)
    return _look_up(image, gain * _levels() + 255.0 * rng.uniform(-BRIGHTNESS_SHIFT, BRIGHTNESS_SHIFT))


def _change_main_colors(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shift all colours along the principal axes of the image's own colours (PCA colour augmentation of AlexNet)."""
    colors = image[::4, ::4].reshape(-1, 3).astype(np.float64)  # a 16th of the pixels gives the same axes
    colors -= colors.mean(axis=0)
    variances, axes = np.linalg.eigh(colors.T @ colors / len(colors))
    steps = rng.normal(0.0, PCA_STRENGTH, 3) * np.sqrt(variances.clip(0.0))
    return _look_up(image, _levels() + axes @ steps)


def _change_hue_and_saturation(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    limits = np.array([HUE_SHIFT, SATURATION_SHIFT, VALUE_SHIFT])
    table = _levels() + np.rint(rng.uniform(-limits, limits))
    table[:, 0] %= 180.0
    return cv2.cvtColor(_look_up(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), table), cv2.COLOR_HSV2RGB)


def _through_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    # OpenCV's codec takes blue first; in the wrong order red would lose its detail instead of blue.
    encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
