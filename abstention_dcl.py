"""When a face gets no score: if it is too small, turned too far, too blurred, or unlike the training data.

The limits of size and pose are fixed. The limits of sharpness and distance belong to the checkpoint:
`DCLConfig.familiarity` is fitted on the validation split after training (`evaluation/familiarity.py`). The distance of
a face from the validation faces is measured in the features of a fixed network (`modeling_dcl.ReferenceNetwork`).

Users also read sentences from `decision_dcl.py` (verdicts) and, in the app, from `web/answers.py`.
"""

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors_dcl import abridged, check_value, is_count, is_number

#: Long side of the smallest face that gets a score, in pixels of the image.
SMALLEST_FACE = 32
#: A crop is enlarged at most this many times: beyond, interpolation makes nearly everything in it. A face cut at 380
#: px with a margin of 1.3 then has at least 73 px.
MOST_ENLARGED = 4.0
#: Degrees to either side. At this yaw the nose tip is beyond the far eye. Training rotates faces by up to 30 degrees.
LARGEST_YAW, LARGEST_ROLL = 60.0, 45.0
#: Largest share of the validation faces above the distance threshold, and below the sharpness threshold.
REFUSED = 0.01

#: The name of the features of `modeling_dcl.ReferenceNetwork` in `familiarity`.
REFERENCE = "reference_network"

#: Central share of the side of a crop in which sharpness is measured: the inner face without the background.
_INNER = 0.6
_GREY = np.array([0.299, 0.587, 0.114], np.float32)
_ROUNDING = 1 / 12  # variance of the error of rounding to whole numbers
_LARGEST_STATISTICS = 4 << 20  # characters; a hostile configuration may contain anything


@dataclass(frozen=True)
class FaceQuality:
    """Measurements of a face that need no network."""

    size_px: float
    """The long side of its box, in pixels of the image."""
    enlargement: float
    """Pixels of the crop per pixel of the image, along a side; below 1, the crop is smaller."""
    sharpness: float
    """See `measure_sharpness`."""
    yaw: float | None
    """How far the head is turned, in degrees, positive towards the right of the image; None without landmarks. A rough
    estimate that assumes a nose half as long as the eyes are apart."""
    roll: float | None
    """How far the face is tilted in the crop, in degrees, positive clockwise; None without landmarks."""


@dataclass(frozen=True)
class Abstention:
    """Why a face gets no score."""

    code: str
    """`"too_small"`, `"extreme_pose"`, `"too_blurred"`, `"unfamiliar"` or `"not_finite"`."""
    sentence: str
    """The reason in words, with the numbers."""


NOT_FINITE = Abstention("not_finite", "The model output is not finite. The weights may be damaged.")


def measure_face(crop: np.ndarray, face: Any, crop_transform: np.ndarray) -> FaceQuality:
    """Measure a face for `reason_to_abstain`.

    Args:
        crop: its crop, uint8 RGB (S, S, 3).
        face: a `faces_dcl.Face` in the image.
        crop_transform: the affine transform from the image to the crop, (2, 3).

    Returns:
        Size, enlargement, sharpness, yaw and roll.
    """
    left, top, right, bottom = (float(edge) for edge in face.box)
    linear = np.asarray(crop_transform, np.float64)[:, :2]
    yaw, roll = (None, None) if face.landmarks is None else _pose(np.asarray(face.landmarks, np.float64) @ linear.T)
    return FaceQuality(
        size_px=max(right - left, bottom - top),
        enlargement=math.sqrt(abs(np.linalg.det(linear))),
        sharpness=measure_sharpness(crop),
        yaw=yaw,
        roll=roll,
    )


def _pose(landmarks: np.ndarray) -> tuple[float, float]:
    """Return yaw and roll in degrees from eyes, nose tip and mouth corners, (5, 2), in any position."""
    eyes, mouth = landmarks[:2].mean(0), landmarks[3:].mean(0)
    between = landmarks[1] - landmarks[0]
    roll = math.degrees(math.atan2(between[1], between[0]))
    apart = math.hypot(*between)
    down = mouth - eyes
    length = math.hypot(*down)
    if apart == 0 or length == 0:  # seen exactly from the side, or no face at all
        return 90.0, roll
    nose = landmarks[2] - eyes
    beside = (nose[0] * down[1] - nose[1] * down[0]) / length  # distance from the line between eyes and mouth
    return math.degrees(math.atan2(2 * beside, apart)), roll


def measure_sharpness(crop: np.ndarray) -> float:
    """Measure how fine the detail of a face is, independently of contrast and brightness.

    Sharpness is the energy of the Laplacian divided by the energy of the gradient, in the grey inner face: the mean
    square of spatial frequency, weighted by the gradient. The contribution of rounding to 8 bits is subtracted from
    both; otherwise the steps of a smooth surface would count as the finest detail.

    Args:
        crop: uint8 RGB (S, S, 3).

    Returns:
        From 0 (no detail) to about 8 (a chequerboard); 5 for white noise.
    """
    height, width = crop.shape[:2]
    top, left = round(height * (1 - _INNER) / 2), round(width * (1 - _INNER) / 2)
    grey = crop[top : height - top, left : width - left].astype(np.float32) @ _GREY
    if min(grey.shape) < 3:
        return 0.0
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    across, along = grey[1:-1, 2:] - inner, grey[2:, 1:-1] - inner
    gradients = float(np.square(across).mean() + np.square(along).mean()) - 4 * _ROUNDING
    detail = float(np.square(laplacian).mean()) - 20 * _ROUNDING
    return detail / gradients if detail > 0 and gradients > 0 else 0.0


# -------------------------------------------------------------------------------------- distance from validation faces


def distances(features: Any, familiarity: Mapping[str, Any] | None) -> np.ndarray:
    """Compute the distances of faces from the validation faces of a checkpoint.

    This is the Mahalanobis distance of probabilistic PCA from the nearest centre, as a root mean square over all
    directions: each of the directions in which validation faces differ most has its own standard deviation, and all
    others share one.

    Args:
        features: floats (N, C) from `modeling_dcl.ReferenceNetwork`, or, for old checkpoints, their own `embedding`
            (see `by_embedding`).
        familiarity: the `DCLConfig.familiarity` of the checkpoint.

    Returns:
        float64 (N,). Compare it only with the `distance_threshold` of the same checkpoint: with fewer validation faces
        all distances are larger. NaN if nothing could be fitted or a feature is not finite.
    """
    features = np.asarray(features, np.float64)
    if familiarity is None or familiarity.get("statistics") is None:
        return np.full(len(features), np.nan)
    statistics = familiarity["statistics"]
    dimension, rest = statistics["dimension"], statistics["rest"]
    centres, directions = (unpack(statistics[name], dimension) for name in ("centres", "directions"))
    squares = []
    for centre in centres:
        deviation = features - centre
        along = deviation @ directions.T
        # Treat all directions as if they had the variance of the rest, then correct those with their own.
        weights = 1 / np.asarray(statistics["variances"], np.float64).reshape(-1) - 1 / rest
        squares.append(np.square(deviation).sum(1) / rest + np.square(along) @ weights)
    return np.sqrt(np.maximum(np.min(squares, axis=0), 0) / dimension)


def by_embedding(familiarity: Mapping[str, Any] | None) -> bool:
    """Whether a checkpoint measures distances in its own embeddings, as old checkpoints do."""
    statistics = (familiarity or {}).get("statistics")
    return statistics is not None and statistics.get("features") is None


def check_dimension(familiarity: Mapping[str, Any] | None, channels: int) -> None:
    """Check that the statistics of a configuration fit the number of features.

    Raises:
        ValueError: if they do not.
    """
    dimension = ((familiarity or {}).get("statistics") or {}).get("dimension", channels)
    if dimension != channels:
        raise ValueError(f"`familiarity` describes faces by {dimension} features, but the network gives {channels}.")


def reason_to_abstain(
    quality: FaceQuality, distance: float | None, familiarity: Mapping[str, Any] | None
) -> Abstention | None:
    """Return the first reason why a face should get no score, in the order size, pose, blur, distance.

    Args:
        quality: from `measure_face`.
        distance: from `distances`; None before the network has run.
        familiarity: the `DCLConfig.familiarity` of the checkpoint; without it, only size and pose are checked.

    Returns:
        The reason, or None if the face can get a score.
    """
    if quality.size_px < SMALLEST_FACE:
        return Abstention(
            "too_small",
            f"The face is too small: {int(quality.size_px)} pixels in the image, fewer than {SMALLEST_FACE}.",
        )
    if quality.enlargement > MOST_ENLARGED:
        return Abstention(
            "too_small",
            f"The face is too small: it has {quality.size_px:.0f} pixels and would be enlarged "
            f"{quality.enlargement:.1f} times. The limit is {MOST_ENLARGED:g} times.",
        )
    for angle, limit, how in ((quality.yaw, LARGEST_YAW, "turned"), (quality.roll, LARGEST_ROLL, "tilted")):
        if angle is not None and not abs(angle) <= limit:
            return Abstention(
                "extreme_pose",
                f"The face is {how} too far: by about {abs(angle):.0f} degrees. The limit is {limit:.0f}.",
            )
    familiarity = familiarity or {}
    sharpest = familiarity.get("sharpness_threshold")
    if sharpest is not None and not quality.sharpness >= sharpest:
        return Abstention(
            "too_blurred",
            f"The face is too blurred: its sharpness is {quality.sharpness:.2f}, below the limit of {sharpest:.2f} "
            "that the validation faces set.",
        )
    farthest = familiarity.get("distance_threshold")
    if distance is not None and not math.isfinite(distance) and farthest is not None:
        return NOT_FINITE
    if distance is not None and farthest is not None and not distance <= farthest:
        return Abstention(
            "unfamiliar",
            f"The face is unlike the training data: its distance is {distance:.2f}, above the limit of {farthest:.2f} "
            "that the validation faces set.",
        )
    return None


# ------------------------------------------------------------------------------------------------------- configuration


def pack(rows: np.ndarray) -> str:
    """Encode numbers for a configuration: base64 of float16, little endian, row by row."""
    return base64.b64encode(np.ascontiguousarray(rows, "<f2").tobytes()).decode("ascii")


def unpack(text: str, dimension: int) -> np.ndarray:
    """Decode what `pack` encoded: float64 (n, dimension); raises `ValueError` if the text is invalid."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("it is not base64") from error
    if len(data) % (2 * dimension):
        raise ValueError(f"its {len(data)} bytes are not rows of {dimension} float16 numbers")
    return np.frombuffer(data, "<f2").astype(np.float64).reshape(-1, dimension)


def check_familiarity(familiarity: Mapping[str, Any] | None) -> None:
    """Check `DCLConfig.familiarity`, which may have been edited or come from an untrusted source.

    Raises:
        ValueError: if a value is missing, of the wrong type, or out of range.
    """
    if familiarity is None:
        return
    for name in ("faces", "families"):
        count = familiarity.get(name, 0)
        check_value(count is None or is_count(count), f"`familiarity`: {name}", "be a whole number, 0 or more", count)
    for name in ("sharpness_threshold", "distance_threshold"):
        at = familiarity.get(name, 0)
        fits = at is None or (is_number(at) and at >= 0)
        check_value(fits, f"`familiarity`: {name}", "be a finite number, at least 0", at)
    why = familiarity.get("reason")
    check_value(why is None or isinstance(why, str), "`familiarity`: reason", "be a string", why)
    statistics = familiarity.get("statistics")
    if statistics is not None:
        _check_statistics(statistics)
    elif familiarity.get("distance_threshold") is not None:
        raise ValueError("`familiarity` has a distance_threshold but no statistics.")


def _check_statistics(statistics: Any) -> None:
    check_value(isinstance(statistics, Mapping), "`familiarity`: statistics", "be a mapping", statistics)
    features, dimension = statistics.get("features"), statistics.get("dimension")
    if features not in (None, REFERENCE):
        raise ValueError(f"`familiarity` uses unknown features, {abridged(features)}.")
    fits = is_count(dimension, least=1)
    check_value(fits, "`familiarity`: dimension", "be a whole number above 0", dimension)
    rows = {}
    for name in ("centres", "directions"):
        text = statistics.get(name)
        fits = isinstance(text, str) and len(text) <= _LARGEST_STATISTICS
        check_value(fits, f"`familiarity`: {name}", "be a base64 string", text)
        try:
            rows[name] = unpack(text, dimension)
        except ValueError as error:
            raise ValueError(f"`familiarity`: {name} cannot be read: {error}.") from error
        if not np.isfinite(rows[name]).all():
            raise ValueError(f"`familiarity`: {name} must be finite numbers.")
    if not len(rows["centres"]):
        raise ValueError("`familiarity` has no centres; it needs at least one.")
    variances, rest = statistics.get("variances"), statistics.get("rest")
    fits = isinstance(variances, list) and all(is_number(value) and value > 0 for value in variances)
    check_value(fits, "`familiarity`: variances", "be numbers above 0", variances)
    numbers = len(rows["directions"]), len(variances)
    check_value(len({*numbers}) == 1, "`familiarity`: the numbers of directions and variances", "be equal", numbers)
    check_value(is_number(rest) and rest > 0, "`familiarity`: rest", "be a finite number above 0", rest)


def smallest_face(crop: Mapping[str, Any]) -> int:
    """Return the long side in pixels of the smallest face that gets a score, if faces are cut by this `crop`."""
    return max(SMALLEST_FACE, round(crop["size"] / crop["margin"] / MOST_ENLARGED))


def describe_abstention(familiarity: Mapping[str, Any] | None) -> str:
    """Describe in words when a checkpoint with this `DCLConfig.familiarity` gives a face no score."""
    fixed = (
        f"A face gets no score if it is smaller than {SMALLEST_FACE} pixels, enlarged more than {MOST_ENLARGED:g} "
        f"times, turned by more than about {LARGEST_YAW:.0f} degrees, or tilted by more than {LARGEST_ROLL:.0f}"
    )
    familiarity = familiarity or {}
    if familiarity.get("sharpness_threshold") is None and familiarity.get("distance_threshold") is None:
        why = familiarity.get("reason", "nothing was fitted on a validation split")
        return f"{fixed}. There is no limit for blurred or unfamiliar faces ({why})."
    of = [f"{familiarity[name]} {name}" for name in ("faces", "families") if familiarity.get(name) is not None]
    data = f"the validation data{' (' + ' of '.join(of) + ')' if of else ''}"
    return f"{fixed}; or if it is more blurred than {100 * (1 - REFUSED):g} % of {data}, or unlike them."
