"""What a checkpoint has seen, and from where on a face is unlike it: fitted on the validation split."""

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student
from sklearn.utils.extmath import randomized_svd

from ..abstention_dcl import REFUSED, distances, pack
from .bootstrap import family_codes

#: Directions in which faces differ most that get a variance of their own. More describe the people of the validation
#: split instead of faces: those of others are then farther away, and the threshold with them.
DIRECTIONS = 4
#: Of fewer faces, 1 % is not one; of fewer families, none is left to be held out from two.
FEWEST_FACES, FEWEST_FAMILIES = 100, 3
#: Families are held out in so many parts, or each alone where there are fewer.
FOLDS = 10
#: How sure it should be that no more than 1 % of the faces of other families are refused. On the demo's four
#: validation families, each held out from the other three, the quantile itself refuses 4 % as blurred, the bound none.
CONFIDENCE = 0.9
_BLURRED = 0.01  # what sharpness is counted from: below nothing is told apart, and 0 has no logarithm


def fit_familiarity(predictions: pd.DataFrame, embeddings: np.ndarray, sharpness: np.ndarray) -> dict[str, Any]:
    """Fit what `DCLConfig.familiarity` holds.

    Distances are measured in families that the statistics were not fitted on (`FOLDS` parts), since that is what every
    face of a new person will be. A threshold is the bound of its 1 % quantile that new families keep with a
    `CONFIDENCE` that their spread tells: of few families, less than 1 % lies beyond it, and of many 1 %. Reals and
    fakes weigh the same in sum, as in the batches of training and in the calibration: else most of what is refused
    could be real.

    Args:
        predictions: rows of the validation split with the columns `video_id`, `source_id` and `label`.
        embeddings: floats (n, C), the unit embedding of each row.
        sharpness: floats (n,), see `measure_sharpness`.

    Returns:
        `{"faces", "families", "sharpness_threshold", "distance_threshold", "statistics"}`. Where the split is too
        small the last three are None, and `"reason"` says so.
    """
    found: dict[str, Any] = {"faces": len(predictions), "families": None}
    nothing = {"sharpness_threshold": None, "distance_threshold": None, "statistics": None}
    try:
        families, found["families"] = family_codes(predictions)
        _refuse(found["faces"], found["families"], embeddings)
    except ValueError as error:
        return found | nothing | {"reason": str(error)}
    labels = predictions["label"].to_numpy()
    weights = 1 / np.bincount(labels)[labels]
    weights /= weights.sum()
    held_out = np.empty(len(labels))
    folds = families % min(FOLDS, found["families"])
    for fold in np.unique(folds):
        inside = folds != fold
        statistics = _statistics(embeddings[inside], labels[inside], weights[inside])
        held_out[~inside] = distances(embeddings[~inside], {"statistics": statistics})
    bluntest = _threshold(1 / (sharpness + _BLURRED), weights, families)
    return found | {
        "sharpness_threshold": round(max(0.0, 1 / bluntest - _BLURRED), 6),
        "distance_threshold": _threshold(held_out, weights, families),
        "statistics": _statistics(embeddings, labels, weights),
    }


def _refuse(faces: int, families: int, embeddings: np.ndarray) -> None:
    """Raise a ValueError if there is too little to be fitted on."""
    if faces < FEWEST_FACES or families < FEWEST_FAMILIES:
        raise ValueError(
            f"{faces} faces of {families} families do not tell it: it takes {FEWEST_FACES} of {FEWEST_FAMILIES}"
        )
    if not np.isfinite(embeddings).all():
        raise ValueError("the embeddings are not finite")
    if np.ptp(embeddings, axis=0).max() < 1e-6:
        raise ValueError("the embeddings of all faces are the same")


def _statistics(embeddings: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """Fit class means and a shared covariance of probabilistic PCA, rounded as the configuration holds it."""
    present = np.unique(labels)
    centres = np.stack([embeddings[labels == label].mean(0) for label in present])
    # Of rows that weigh as much: their mean squares are the variances.
    deviation = embeddings - centres[np.searchsorted(present, labels)]
    deviation *= np.sqrt(weights / weights.sum())[:, None]
    dimension, total = embeddings.shape[1], float(np.square(deviation).sum())
    kept = min(DIRECTIONS, dimension - 1)
    _, singular, directions = randomized_svd(deviation, kept, random_state=0)
    variances = np.square(singular.astype(np.float64))
    smallest = 2.0**-20 / dimension  # what is less than this is the rounding of the centres
    return {
        "dimension": dimension,
        "centres": pack(centres),
        "directions": pack(directions),
        "variances": [max(float(value), smallest) for value in variances],
        "rest": max((total - float(variances.sum())) / (dimension - kept), smallest),
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


__all__ = ["fit_familiarity"]
