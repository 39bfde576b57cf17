"""Fit the limits of which faces get a score: how blurred, and how far from the validation faces, they may be."""

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from ..abstention_dcl import REFERENCE, REFUSED, distances, pack
from .metrics.bootstrap import family_codes

#: Directions in which faces differ most that get a variance of their own. Chosen on photographs that no table of ours
#: counts: with 30 of the 128, ten families are enough to refuse no more than 2 % of other people.
DIRECTIONS = 30
#: Of fewer faces, 1 % is not one; of fewer families, none is left to be held out from two.
FEWEST_FACES, FEWEST_FAMILIES = 100, 3
#: Families are held out in so many parts, or each alone where there are fewer.
FOLDS = 10
#: How sure it should be that no more than 1 % of the faces of other families are refused.
CONFIDENCE = 0.9
_BLURRED = 0.01  # what sharpness is counted from: below nothing is told apart, and 0 has no logarithm


def fit_familiarity(predictions: pd.DataFrame, features: np.ndarray, sharpness: np.ndarray) -> dict[str, Any]:
    """Fit what `DCLConfig.familiarity` holds.

    Distances are measured in families that the statistics were not fitted on (`FOLDS` parts), since that is what every
    face of a new person will be. A threshold is an approximate bound of its 1 % quantile, kept by new families with
    the `CONFIDENCE` that their spread tells: of few families, less than 1 % lies beyond it, and of many 1 %. Reals and
    fakes weigh the same in sum, as in the batches of training and in the calibration: else most of what is refused
    could be real.

    Args:
        predictions: rows of the validation split with the columns `video_id`, `source_id` and `label`.
        features: floats (n, C), what the reference network says of each row.
        sharpness: floats (n,), see `measure_sharpness`.

    Returns:
        `{"faces", "families", "sharpness_threshold", "distance_threshold", "statistics"}`. Where the split is too
        small the last three are None, and `"reason"` says so.
    """
    found: dict[str, Any] = {"faces": len(predictions), "families": None}
    nothing = {"sharpness_threshold": None, "distance_threshold": None, "statistics": None}
    try:
        families, found["families"] = family_codes(predictions)
        _refuse(found["faces"], found["families"])
    except ValueError as error:
        return found | nothing | {"reason": str(error)}
    labels = predictions["label"].to_numpy()
    weights = 1 / np.bincount(labels)[labels]
    weights /= weights.sum()
    features, held_out = features.astype(np.float64), np.empty(len(labels))
    folds = families % min(FOLDS, found["families"])
    for fold in np.unique(folds):
        inside = folds != fold
        statistics = _statistics(features[inside], weights[inside])
        held_out[~inside] = distances(features[~inside], {"statistics": statistics})
    bluntest = _threshold(1 / (sharpness + _BLURRED), weights, families)
    return found | {
        "sharpness_threshold": round(max(0.0, 1 / bluntest - _BLURRED), 6),
        "distance_threshold": _threshold(held_out, weights, families),
        "statistics": _statistics(features, weights),
    }


def _refuse(faces: int, families: int) -> None:
    """Raise a ValueError if there is too little to be fitted on."""
    if faces < FEWEST_FACES or families < FEWEST_FAMILIES:
        raise ValueError(
            f"{faces} faces of {families} families do not tell it: it takes {FEWEST_FACES} of {FEWEST_FAMILIES}"
        )


def _statistics(features: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """Fit mean and covariance of probabilistic PCA, rounded as the configuration holds it."""
    weights = weights / weights.sum()
    centre = weights @ features
    deviation = features - centre
    variances, directions = np.linalg.eigh((deviation.T * weights) @ deviation)  # in rising order
    smallest = 2.0**-20 / len(centre)  # what is less than this is the rounding of the centre
    return {
        "features": REFERENCE,
        "dimension": len(centre),
        "centres": pack(centre[None]),
        "directions": pack(directions.T[-DIRECTIONS:]),
        "variances": np.maximum(variances[-DIRECTIONS:], smallest).tolist(),
        "rest": max(float(variances[:-DIRECTIONS].mean()), smallest),
    }


def _threshold(values: np.ndarray, weights: np.ndarray, families: np.ndarray) -> float:
    """Return the value above which, with `CONFIDENCE`, lies no more than `REFUSED` of what new families weigh."""
    logarithms = np.log(values)
    own = [_upper_quantile(logarithms[families == one], weights[families == one]) for one in np.unique(families)]
    error = np.std(own, ddof=1) / np.sqrt(len(own))
    bound = _upper_quantile(logarithms, weights) + student.ppf(CONFIDENCE, len(own) - 1) * error
    return float(np.exp(bound))


def _upper_quantile(values: np.ndarray, weights: np.ndarray) -> float:
    """Return the smallest value above which lies no more than `REFUSED` of the weight."""
    order = np.argsort(values, kind="stable")
    above = 1 - np.cumsum(weights[order]) / weights.sum()
    return float(values[order][np.argmax(above <= REFUSED + 1e-9)])
