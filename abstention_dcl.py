"""When a checkpoint gives a face no score: it is too small, turned too far, too blurred, or unlike what it has seen.

Size and pose have fixed limits. How blurred is too blurred, and how far is too far, belongs to a checkpoint:
`DCLConfig.familiarity` is fitted on the validation split at the end of training (`evaluation/familiarity.py`).
How far a face is from the validation faces is measured in the features of a fixed network
(`modeling_dcl.ReferenceNetwork`).
"""

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors_dcl import abridged, check_value, is_count, is_number

#: Long side of the smallest face that is judged, in pixels of the picture.
SMALLEST_FACE = 32
#: A crop is enlarged at most so many times: above, nearly all it shows was made by interpolation. A face cut at 380 px
#: with a margin of 1.3 then has at least 73 px.
MOST_ENLARGED = 4.0
#: Degrees to either side. At this yaw the nose tip stands beyond the eye that is turned away; training rotates faces
#: by up to 30 degrees.
LARGEST_YAW, LARGEST_ROLL = 60.0, 45.0
#: Largest share of the validation faces above the threshold of distance, and of those below that of sharpness.
REFUSED = 0.01

#: How `familiarity` names the features of `modeling_dcl.ReferenceNetwork`.
REFERENCE = "reference_network"

#: Share of a crop's side around its centre in which sharpness is measured: the inner face, not what is behind it.
_INNER = 0.6
_GREY = np.array([0.299, 0.587, 0.114], np.float32)
_ROUNDING = 1 / 12  # variance of what is lost by rounding to whole numbers
_LARGEST_STATISTICS = 4 << 20  # characters; a hostile configuration may hold anything


@dataclass(frozen=True)
class FaceQuality:
    """What can be measured of a face before any network sees it."""

    size_px: float
    """The long side of its box, in pixels of the picture."""
    enlargement: float
    """How many pixels of the crop one of the picture becomes, along a side; below 1, the crop is smaller."""
    sharpness: float
    """See `measure_sharpness`."""
    yaw: float | None
    """How far the head is turned, in degrees, positive towards the image's right; None without landmarks. Rough: it
    takes the nose to stand out by half the distance of the eyes."""
    roll: float | None
    """How far the face is tilted in the crop, in degrees, positive clockwise; None without landmarks."""


@dataclass(frozen=True)
class Abstention:
    """Why a face gets no score."""

    code: str
    """`"too_small"`, `"extreme_pose"`, `"too_blurred"`, `"unfamiliar"` or `"not_finite"`."""
    sentence: str
    """The same for people, with the numbers."""


NOT_FINITE = Abstention("not_finite", "The model gave no finite number for it: its weights may be damaged.")


def measure_face(crop: np.ndarray, face: Any, crop_transform: np.ndarray) -> FaceQuality:
    """Measure a `faces_dcl.Face` that was found in a picture and cut out, for `reason_to_abstain`.

    It takes the crop, uint8 RGB (S, S, 3), and the transform from the picture into it, (2, 3).
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
    """Return yaw and roll in degrees from eyes, nose tip and mouth corners, (5, 2), wherever they lie."""
    eyes, mouth = landmarks[:2].mean(0), landmarks[3:].mean(0)
    between = landmarks[1] - landmarks[0]
    roll = math.degrees(math.atan2(between[1], between[0]))
    apart = math.hypot(*between)
    down = mouth - eyes
    length = math.hypot(*down)
    if apart == 0 or length == 0:  # seen exactly from the side, or no face at all
        return 90.0, roll
    nose = landmarks[2] - eyes
    beside = (nose[0] * down[1] - nose[1] * down[0]) / length  # off the line from between the eyes to the mouth
    return math.degrees(math.atan2(2 * beside, apart)), roll


def measure_sharpness(crop: np.ndarray) -> float:
    """Measure how fine the detail of a face, uint8 RGB (S, S, 3), is, whatever its contrast and brightness.

    It is the energy of the Laplacian over that of the gradient, of the grey inner face: the mean square of spatial
    frequency, weighted by what there is of the gradient. What rounding to 8 bits adds to either is taken off: else the
    steps of a smooth surface would be the finest detail. From 0, for a surface without detail, to about 8, for a
    chequerboard; 5 for white noise.
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


# ------------------------------------------------------------------------------------------ what a checkpoint has seen


def distances(features: Any, familiarity: Mapping[str, Any] | None) -> np.ndarray:
    """Tell how far faces are from those that a checkpoint was validated on.

    The root mean square over all directions of the deviation from the nearest centre, each direction in units of its
    standard deviation: its own along the directions in which validation faces differ most, one for all along the
    others (the Mahalanobis distance of probabilistic PCA).

    Args:
        features: floats (N, C), what `modeling_dcl.ReferenceNetwork` says of the faces; for a checkpoint that was
            saved before there was one, its own `embedding` (see `by_embedding`).
        familiarity: its `DCLConfig.familiarity`.

    Returns:
        float64 (N,), to be compared with `distance_threshold` of the same checkpoint alone: the fewer faces it was
        validated on, the larger all distances are. NaN where nothing could be fitted, or a feature is not finite.
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
        # As if all directions had the variance of the rest, and then those that are known to have another.
        weights = 1 / np.asarray(statistics["variances"], np.float64).reshape(-1) - 1 / rest
        squares.append(np.square(deviation).sum(1) / rest + np.square(along) @ weights)
    return np.sqrt(np.maximum(np.min(squares, axis=0), 0) / dimension)


def by_embedding(familiarity: Mapping[str, Any] | None) -> bool:
    """Whether the distances of a checkpoint are those of its own embeddings, as they were at first."""
    statistics = (familiarity or {}).get("statistics")
    return statistics is not None and statistics.get("features") is None


def check_dimension(familiarity: Mapping[str, Any] | None, channels: int) -> None:
    """Check that the statistics of a configuration are about as many features of a face as there will be.

    Raises `ValueError` if they are about another number.
    """
    dimension = ((familiarity or {}).get("statistics") or {}).get("dimension", channels)
    if dimension != channels:
        raise ValueError(f"`familiarity` describes faces by {dimension} features, and there are {channels}.")


def reason_to_abstain(
    quality: FaceQuality, distance: float | None, familiarity: Mapping[str, Any] | None
) -> Abstention | None:
    """Return the first reason, of size, pose, blur and distance, why a face should not be judged; None if it can be.

    The distance is None while no network has seen the face. Without `familiarity`, only size and pose are looked at.
    """
    if quality.size_px < SMALLEST_FACE:
        return Abstention(
            "too_small",
            f"The face is too small: {int(quality.size_px)} pixels in the picture, fewer than {SMALLEST_FACE}.",
        )
    if quality.enlargement > MOST_ENLARGED:
        return Abstention(
            "too_small",
            f"The face is too small: with {quality.size_px:.0f} pixels it would be enlarged "
            f"{quality.enlargement:.1f} times, and more than {MOST_ENLARGED:g} times leaves no traces of a forgery.",
        )
    for angle, limit, how in ((quality.yaw, LARGEST_YAW, "turned"), (quality.roll, LARGEST_ROLL, "tilted")):
        if angle is not None and not abs(angle) <= limit:
            return Abstention(
                "extreme_pose",
                f"The face is {how} too far: by about {abs(angle):.0f} degrees, and {limit:.0f} can be judged.",
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


# ------------------------------------------------------------------------------------------- what a configuration says


def pack(rows: np.ndarray) -> str:
    """Return numbers as text that a configuration can hold: base64 of their float16, little endian, row by row."""
    return base64.b64encode(np.ascontiguousarray(rows, "<f2").tobytes()).decode("ascii")


def unpack(text: str, dimension: int) -> np.ndarray:
    """Return what `pack` made of such rows, float64 (n, dimension); raises `ValueError` if it is something else."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("it is no base64") from error
    if len(data) % (2 * dimension):
        raise ValueError(f"its {len(data)} bytes are no rows of {dimension} float16 numbers")
    return np.frombuffer(data, "<f2").astype(np.float64).reshape(-1, dimension)


def check_familiarity(familiarity: Mapping[str, Any] | None) -> None:
    """Check `DCLConfig.familiarity`, which may have been edited, or come from a stranger.

    Raises `ValueError` if `distances` and `reason_to_abstain` cannot follow it.
    """
    if familiarity is None:
        return
    for name in ("faces", "families"):
        count = familiarity.get(name, 0)
        check_value(count is None or is_count(count), f"the number of {name} of `familiarity`", "be 0 or more", count)
    for name in ("sharpness_threshold", "distance_threshold"):
        at = familiarity.get(name, 0)
        fits = at is None or (is_number(at) and at >= 0)
        check_value(fits, f"the {name} of `familiarity`", "be a finite number from 0 on", at)
    why = familiarity.get("reason")
    check_value(why is None or isinstance(why, str), "the reason of `familiarity`", "be a text", why)
    statistics = familiarity.get("statistics")
    if statistics is not None:
        _check_statistics(statistics)
    elif familiarity.get("distance_threshold") is not None:
        raise ValueError("`familiarity` has a distance_threshold and no statistics from which distances are measured.")


def _check_statistics(statistics: Any) -> None:
    check_value(isinstance(statistics, Mapping), "the statistics of `familiarity`", "be a mapping", statistics)
    features, dimension = statistics.get("features"), statistics.get("dimension")
    if features not in (None, REFERENCE):
        raise ValueError(f"`familiarity` is about features that are not known here, {abridged(features)}.")
    fits = is_count(dimension, least=1)
    check_value(fits, "the dimension of `familiarity`", "be a whole number above 0", dimension)
    rows = {}
    for name in ("centres", "directions"):
        text = statistics.get(name)
        fits = isinstance(text, str) and len(text) <= _LARGEST_STATISTICS
        check_value(fits, f"the {name} of `familiarity`", "be a text of base64", text)
        try:
            rows[name] = unpack(text, dimension)
        except ValueError as error:
            raise ValueError(f"the {name} of `familiarity` cannot be read: {error}.") from error
        if not np.isfinite(rows[name]).all():
            raise ValueError(f"the {name} of `familiarity` must be finite numbers.")
    if not len(rows["centres"]):
        raise ValueError("`familiarity` has no centres: it takes one at least.")
    variances, rest = statistics.get("variances"), statistics.get("rest")
    fits = isinstance(variances, list) and all(is_number(value) and value > 0 for value in variances)
    check_value(fits, "the variances of `familiarity`", "be numbers above 0", variances)
    numbers = len(rows["directions"]), len(variances)
    check_value(len({*numbers}) == 1, "directions and variances of `familiarity`", "be equally many", numbers)
    check_value(is_number(rest) and rest > 0, "the rest of `familiarity`", "be a finite number above 0", rest)


def describe_abstention(familiarity: Mapping[str, Any] | None) -> str:
    """Return in words when a checkpoint of that `DCLConfig.familiarity` gives a face no score."""
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
