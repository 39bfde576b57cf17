"""Make forgeries from real faces, each with the exact mask of the changed region.

A method takes a portrait (a face crop with its five landmarks) and, if needed, a partner: another photograph of the
same person or of somebody else. It returns the forged image and the mask: the weight with which the forgery replaced
each pixel, times 255; or, if pixels were moved, how far, relative to the largest distance. Where the mask is 0, the
image is the original, byte for byte.

All lengths are in units of the face (the distance between the eyes, or the canonical face below), so that a method has
the same effect on crops of 100 and of 1000 pixels. Only the finest details, and their changes by self-blending, are on
the scale of single pixels.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import cv2
import numpy as np

from ..faces_dcl import ALIGNED_LANDMARKS, fit_similarity, map_points

# The canonical face: the aligned crop of margin 1, with side 1. Eyes at y = .46, mouth at y = .82, chin near 1.04.
_EYES, _MOUTH = ALIGNED_LANDMARKS[:2], ALIGNED_LANDMARKS[3:]
_LIPS = _MOUTH.mean(axis=0)
_EYE_DISTANCE = float(np.linalg.norm(_EYES[1] - _EYES[0]))
_FLAT = [0, 1, 3, 4]  # eyes and mouth lie nearly in one plane, the nose does not
_LANDMARKS_TO_AFFINE = np.linalg.pinv(np.hstack([ALIGNED_LANDMARKS[_FLAT], np.ones((4, 1))]))


@dataclass(frozen=True)
class Portrait:
    """A face crop, RGB uint8 (height, width, 3); eyes, nose tip, mouth corners as x, y in pixels, float (5, 2)."""

    image: np.ndarray
    landmarks: np.ndarray

    @cached_property
    def frame(self) -> np.ndarray:
        """The affine map (2, 3) from the canonical face to the image."""
        landmarks = np.asarray(self.landmarks, np.float64)
        affine = (_LANDMARKS_TO_AFFINE @ landmarks[_FLAT]).T
        similarity = fit_similarity(ALIGNED_LANDMARKS, landmarks)
        # For a face seen from the side, the affine map is nearly singular or mirrored: only rotate, scale and shift.
        flat = np.linalg.det(affine[:, :2]) < 0.3 * np.linalg.det(similarity[:, :2])
        return similarity if flat else affine

    @cached_property
    def eye_distance(self) -> float:
        """The distance between the eyes in pixels, as if the face were seen from the front; at least 2."""
        return max(2.0, _EYE_DISTANCE * float(np.sqrt(np.linalg.det(self.frame[:, :2]))))


class Forgery(NamedTuple):
    """A forged face crop, RGB uint8 (height, width, 3), and the weight of the forgery times 255 (height, width)."""

    image: np.ndarray
    mask: np.ndarray


class Method(NamedTuple):
    """A way to forge: what it does, and whose photograph it needs as a partner ("other", "same" or None)."""

    forge: Callable[[Portrait, Portrait | None, np.random.Generator], Forgery]
    partner: str | None


def self_blend(target: Portrait, partner: Portrait | None, rng: np.random.Generator) -> Forgery:
    """Blend a face with a slightly changed copy of itself (Shiohara & Yamasaki, "Self-Blended Images", CVPR 2022).

    The copy gets another colour, and another sharpness or resolution; it is shifted by up to 3 % and scaled by up to 5
    % before a random, elastically deformed part of the face is taken from it with a ratio of .25 to 1. The recipe's
    change of the original instead of the copy is left out: outside the mask the original stays as it is.
    """
    image = target.image
    source = _change_frequencies(_change_colour(image.astype(np.float32), rng), rng)
    height, width = image.shape[:2]
    scale = rng.uniform(0.95, 1 / 0.95)
    shift = rng.uniform((-0.03, -0.015), (0.03, 0.015)) * (width, height)
    centre = target.landmarks.mean(axis=0)
    affine = np.hstack([np.eye(2) * scale, (centre * (1 - scale) + shift)[:, None]])
    weight = _weight(_random_outline(rng), _compose(affine, target.frame), target, rng)
    ratio = rng.choice([0.25, 0.5, 0.75, 1, 1, 1])
    return _blend(image, _warp(source, affine, image.shape), weight * ratio)


def identity_swap(target: Portrait, partner: Portrait, rng: np.random.Generator) -> Forgery:
    """Put another person's face in the place of this one, aligned, with matched colour, light and detail."""
    donor = _align(partner, target)
    weight = _weight(_random_outline(rng), target.frame, target, rng)
    return _blend(target.image, _match(donor, target, weight, rng), weight)


def lowres_swap(target: Portrait, partner: Portrait, rng: np.random.Generator) -> Forgery:
    """Swap the identity with a face of low resolution, like the output of a small auto-encoder."""
    donor = _align(partner, target)
    weight = _weight(_random_outline(rng), target.frame, target, rng)
    matched = _match(donor, target, weight, rng)
    eye_distance = rng.uniform(9, 18)  # in pixels of the small image
    return _blend(target.image, _through_small_image(matched, min(1, eye_distance / target.eye_distance)), weight)


def local_warp(target: Portrait, partner: Portrait | None, rng: np.random.Generator) -> Forgery:
    """Change the expression by smooth local displacement of mouth, eyes or brows, as a re-enactment does.

    Every displacement has a bounded support, and the mask is the largest of their profiles: above 0 exactly where
    something was displaced.
    """
    image = target.image
    canonical = _canonical_grid(target.frame, image.shape)
    chosen = rng.permutation(len(_EXPRESSIONS))[: rng.integers(2, 4)]
    strength = rng.uniform(0.6, 1.0) * rng.choice([-1, 1])
    displacement, weight = np.zeros_like(canonical), np.zeros(image.shape[:2], np.float32)
    for centre, radius, direction in (move for index in chosen for move in _EXPRESSIONS[index]):
        x, y = ((canonical[..., axis] - np.float32(centre[axis])) / np.float32(radius[axis]) for axis in (0, 1))
        profile = np.square(np.maximum(0, 1 - x * x - y * y))
        displacement += profile[..., None] * (np.asarray(direction, np.float32) * np.float32(strength))
        weight = np.maximum(weight, profile)
    pixels = displacement @ target.frame[:, :2].T.astype(np.float32)
    y, x = np.indices(image.shape[:2], dtype=np.float32)
    warped = cv2.remap(image, x - pixels[..., 0], y - pixels[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    mask = np.ceil(weight * 255).astype(np.uint8)
    return Forgery(np.where(mask[..., None] > 0, warped, image), mask)


def mouth_swap(target: Portrait, partner: Portrait, rng: np.random.Generator) -> Forgery:
    """Replace the mouth by that of another photograph of the same person, warped into place and blended."""
    outline = _ellipse(_LIPS + np.array([0, 0.01]), rng.uniform((0.2, 0.12), (0.27, 0.17)))
    weight = _weight(outline, target.frame, target, rng)
    return _blend(target.image, _match(_align(partner, target), target, weight, rng), weight)


#: The forgery methods by the name that a data set's `method` column gives them.
METHODS = {
    "self_blend": Method(self_blend, None),
    "identity_swap": Method(identity_swap, "other"),
    "lowres_swap": Method(lowres_swap, "other"),
    "local_warp": Method(local_warp, None),
    "mouth_swap": Method(mouth_swap, "same"),
}


def _ellipse(centre: Sequence[float], radii: Sequence[float]) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.asarray(centre) + np.stack([np.cos(angle), np.sin(angle)], axis=1) * radii


# Parts of the canonical face that are forged together, as the hulls of landmarks are in the recipes.
_OUTLINES = (
    _ellipse((0.5, 0.58), (0.33, 0.45)),  # the face with its forehead
    _ellipse((0.5, 0.68), (0.32, 0.36)),  # from the brows to the chin
    _ellipse((0.5, 0.63), (0.25, 0.3)),  # brows, eyes, nose and mouth
    _ellipse((0.5, 0.48), (0.3, 0.16)),  # the band of the eyes
    _ellipse((0.5, 0.8), (0.25, 0.22)),  # nose and mouth
)

# Displacements in the canonical face: centre, radii, and by how much the centre moves at most.
_EXPRESSIONS = (
    (  # mouth corners out and up (or in and down)
        (_MOUTH[0], (0.16, 0.14), (-0.035, -0.035)),
        (_MOUTH[1], (0.16, 0.14), (0.035, -0.035)),
    ),
    (  # lips apart (or together)
        (_LIPS - np.array([0, 0.06]), (0.2, 0.11), (0.0, -0.025)),
        (_LIPS + np.array([0, 0.08]), (0.22, 0.16), (0.0, 0.04)),
    ),
    (  # brows up (or down)
        *((eye - np.array([0, 0.1]), (0.18, 0.12), (0.0, -0.035)) for eye in _EYES),
    ),
    (  # eyelids apart (or together)
        *((eye - np.array([0, 0.035]), (0.12, 0.07), (0.0, -0.02)) for eye in _EYES),
        *((eye + np.array([0, 0.035]), (0.12, 0.07), (0.0, 0.015)) for eye in _EYES),
    ),
    (  # the mouth to one side
        (_LIPS, (0.26, 0.18), (0.04, 0.0)),
    ),
)


def _random_outline(rng: np.random.Generator) -> np.ndarray:
    return _OUTLINES[rng.integers(len(_OUTLINES))]


def _compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Return the affine (2, 3) that does `inner`, then `outer`."""
    return outer @ np.vstack([inner, [0, 0, 1]])


def _canonical_grid(frame: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the canonical coordinates of each pixel's centre, float32 (height, width, 2)."""
    inverse = cv2.invertAffineTransform(frame).astype(np.float32)
    y, x = np.indices(shape[:2], dtype=np.float32) + np.float32(0.5)
    return np.stack([x, y], axis=2) @ inverse[:, :2].T + inverse[:, 2]


def _warp(image: np.ndarray, affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    matrix = affine.copy()
    matrix[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5  # OpenCV counts from the centre of the first pixel
    size = (shape[1], shape[0])
    return cv2.warpAffine(image, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def _align(partner: Portrait, target: Portrait) -> np.ndarray:
    """Return the partner's face in the place of the target's, float32 (height, width, 3)."""
    affine = _compose(target.frame, cv2.invertAffineTransform(partner.frame))
    return _warp(partner.image, affine, target.image.shape).astype(np.float32)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blur with a Gaussian; a wide one on a smaller image, so that large faces do not take much longer."""
    step = int(sigma // 3)
    if step < 2:
        return cv2.GaussianBlur(image, (0, 0), max(sigma, 1e-3), borderType=cv2.BORDER_REPLICATE)
    height, width = image.shape[:2]
    size = (max(1, width // step), max(1, height // step))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma / step, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def _weight(outline: np.ndarray, frame: np.ndarray, target: Portrait, rng: np.random.Generator) -> np.ndarray:
    """Draw how strongly each pixel is replaced: an outline that is randomly deformed, shrunk and softened.

    The outline is a polygon (n, 2) in the canonical face, and the frame (2, 3) maps it to the image. Returns float32
    (height, width) in [0, 1]; the largest value is 1 unless the outline lies outside the image.
    """
    centre = outline.mean(axis=0)
    outline = centre + (outline - centre) * rng.uniform(0.85, 1.1, 2) + rng.normal(0, 0.015, 2)
    filled = np.zeros(target.image.shape[:2], np.uint8)
    points = np.round((map_points(outline, frame) - 0.5) * 16).astype(np.int32)  # in sixteenths of a pixel
    cv2.fillPoly(filled, [points], 255, cv2.LINE_AA, shift=4)
    # The elastic deformation: a random displacement at each knot of a grid, smooth between them.
    reach = target.eye_distance
    knots = rng.uniform(-1, 1, (8, 8, 2)).astype(np.float32) * np.float32(rng.uniform(0.02, 0.12) * reach)
    field = cv2.resize(knots, filled.shape[::-1], interpolation=cv2.INTER_CUBIC)
    y, x = np.indices(filled.shape, dtype=np.float32)
    region = cv2.remap(filled, x + field[..., 0], y + field[..., 1], cv2.INTER_LINEAR).astype(np.float32) / 255
    inner = (_blur(region, rng.uniform(0.03, 0.12) * reach) > 0.8).astype(np.float32)
    weight = _blur(inner if inner.any() else region, rng.uniform(0.04, 0.16) * reach)
    return weight / max(float(weight.max()), 1e-6)


def _blend(image: np.ndarray, source: np.ndarray, weight: np.ndarray) -> Forgery:
    # The weight is rounded before it is used, so that the mask is exact.
    mask = np.round(weight * 255).astype(np.uint8)
    share = mask[..., None].astype(np.float32) / 255
    forged = share * np.clip(source, 0, 255) + (1 - share) * image
    return Forgery(np.round(forged).astype(np.uint8), mask)


def _colourfulness(image: np.ndarray) -> float:
    """Return how colourful an image is: 0 for a grey photograph, 1 for an ordinary coloured one."""
    return float(min(1.0, np.ptp(image, axis=2).mean() / 15))


def _change_colour(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shift the channels by up to 20 (one time in three) and change brightness and contrast by up to a tenth."""
    colour = _colourfulness(image)
    if rng.random() < 0.3:
        # A grey photograph stays grey: a tint would give the forgery away.
        image = image + (1 - colour) * rng.uniform(-20, 20) + colour * rng.uniform(-20, 20, 3).astype(np.float32)
    brightness, contrast = rng.uniform(-0.1, 0.1, 2)
    return np.clip(image * (1 + contrast) + 255 * brightness, 0, 255).astype(np.float32)


def _change_frequencies(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lower the resolution by 2 or 4, or sharpen."""
    if rng.random() < 0.5:
        return _through_small_image(image, 1 / rng.choice([2, 4]))
    sharpened = image + rng.uniform(0.8, 2.0) * (image - _blur(image, 1.0))
    return np.clip(sharpened, 0, 255)


def _through_small_image(image: np.ndarray, scale: float) -> np.ndarray:
    height, width = image.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def _match(donor: np.ndarray, target: Portrait, weight: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give a donor the colour, light and amount of detail of the target in the weighted region."""
    image = target.image.astype(np.float32)
    inside = (weight >= 0.5).astype(np.uint8)
    (mean, spread), (wanted_mean, wanted_spread) = (_statistics(pixels, inside) for pixels in (donor, image))
    donor = (donor - mean) * np.clip(wanted_spread / np.maximum(spread, 1), 0.6, 1.6) + wanted_mean
    # Light: what varies slowly over the face comes from the target.
    sigma = rng.uniform(0.3, 0.6) * target.eye_distance
    donor += _blur(image - donor, sigma)
    donor += wanted_mean - _statistics(donor, inside)[0]
    # Detail: as much of the finest structure as the target has.
    fine = donor - _blur(donor, 1.0)
    amount, wanted = (_statistics(part, inside)[1].mean() for part in (fine, image - _blur(image, 1.0)))
    return donor + fine * (np.clip(wanted / max(amount, 1e-3), 0.5, 2.0) - 1)


def _statistics(pixels: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each channel inside a region, float32 (3,) each."""
    mean, deviation = cv2.meanStdDev(pixels, mask=inside)
    return mean[:, 0].astype(np.float32), deviation[:, 0].astype(np.float32)


def random_generator(seed: int, *key: str | int) -> np.random.Generator:
    """Return the random generator of a seed and a key, which does not depend on earlier draws."""
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))
