"""Fit the limits of which faces get a score: how blurred, and how far from the validation faces, they may be."""

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from ..abstention_dcl import REFERENCE, REFUSED, distances, pack
from .metrics.bootstrap import family_codes

#: Principal directions with their own variance. Chosen on photographs that are not in our tables: with 30 of the 128
#: directions, ten families suffice to refuse at most 2 % of other people.
DIRECTIONS = 30
#: Below 100 faces, 1 % is less than one face. Below 3 families, holding one out leaves fewer than two to fit on.
FEWEST_FACES, FEWEST_FAMILIES = 100, 3
#: Number of folds of families to hold out; with fewer families, each is its own fold.
FOLDS = 10
#: Confidence that at most 1 % of the faces of other families are refused.
CONFIDENCE = 0.9
_BLURRED = 0.01  # added to sharpness before the logarithm: smaller differences do not matter


def fit_familiarity(predictions: pd.DataFrame, features: np.ndarray, sharpness: np.ndarray) -> dict[str, Any]:
    """Fit `DCLConfig.familiarity`.

    Distances are cross-validated over families (`FOLDS` folds), since every new person is a new family. Each threshold
    is a 90 % confidence bound (`CONFIDENCE`) on the quantile that refuses 1 %, estimated from the spread between
    families. With few families the bound is loose and fewer than 1 % are refused; with many it approaches 1 %. Reals
    and fakes have equal total weight, as in training and calibration; otherwise most refused faces could be real.

    Args:
        predictions: rows of the validation split with the columns `video_id`, `source_id` and `label`.
        features: floats (n, C), reference features of each row.
        sharpness: floats (n,), see `measure_sharpness`.

    Returns:
        `{"faces", "families", "sharpness_threshold", "distance_threshold", "statistics"}`. If the split is too small,
        the last three are None, with a `"reason"`.
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
    """Raise a ValueError if there is too little data to fit."""
    if faces < FEWEST_FACES or families < FEWEST_FAMILIES:
        raise ValueError(
            f"{faces} faces of {families} families are too few: {FEWEST_FACES} of {FEWEST_FAMILIES} are needed"
        )


def _statistics(features: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """Fit mean and covariance of probabilistic PCA, with the rounding of the configuration."""
    weights = weights / weights.sum()
    centre = weights @ features
    deviation = features - centre
    variances, directions = np.linalg.eigh((deviation.T * weights) @ deviation)  # in ascending order
    smallest = 2.0**-20 / len(centre)  # smaller variances are rounding errors of the centre
    return {
        "features": REFERENCE,
        "dimension": len(centre),
        "centres": pack(centre[None]),
        "directions": pack(directions.T[-DIRECTIONS:]),
        "variances": np.maximum(variances[-DIRECTIONS:], smallest).tolist(),
        "rest": max(float(variances[:-DIRECTIONS].mean()), smallest),
    }


def _threshold(values: np.ndarray, weights: np.ndarray, families: np.ndarray) -> float:
    """Return the value that, with `CONFIDENCE`, at most `REFUSED` of the weight of new families exceeds."""
    logarithms = np.log(values)
    own = [_upper_quantile(logarithms[families == one], weights[families == one]) for one in np.unique(families)]
    error = np.std(own, ddof=1) / np.sqrt(len(own))
    bound = _upper_quantile(logarithms, weights) + student.ppf(CONFIDENCE, len(own) - 1) * error
    return float(np.exp(bound))


def _upper_quantile(values: np.ndarray, weights: np.ndarray) -> float:
    """Return the smallest value that at most `REFUSED` of the weight exceeds."""
    order = np.argsort(values, kind="stable")
    above = 1 - np.cumsum(weights[order]) / weights.sum()
    return float(values[order][np.argmax(above <= REFUSED + 1e-9)])
