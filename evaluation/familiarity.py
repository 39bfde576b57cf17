"""What a checkpoint has seen, and from where on a face is unlike it: fitted on the validation split."""

from typing import Any

import numpy as np
import pandas as pd
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


def fit_familiarity(predictions: pd.DataFrame, embeddings: np.ndarray, sharpness: np.ndarray) -> dict[str, Any]:
    """Fit what `DCLConfig.familiarity` holds.

    The threshold of distance is found on families that the statistics were not fitted on (`FOLDS` parts), since that
    is what every face of a new person will be. Reals and fakes weigh the same in sum, as in the batches of training
    and in the calibration: else most of what is refused could be real.

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
    return found | {
        "sharpness_threshold": -_upper_quantile(-np.asarray(sharpness, np.float64), weights),
        "distance_threshold": _upper_quantile(held_out, weights),
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
    # Where all faces are the same, every other one is far away.
    smallest = 1e-12
    return {
        "dimension": dimension,
        "centres": pack(centres),
        "directions": pack(directions),
        "variances": [max(float(value), smallest) for value in variances],
        "rest": max((total - float(variances.sum())) / (dimension - kept), smallest),
    }


def _upper_quantile(values: np.ndarray, weights: np.ndarray) -> float:
    """Return the smallest value above which lies no more than `REFUSED` of the weight."""
    order = np.argsort(values, kind="stable")
    above = 1 - np.cumsum(weights[order])
    return float(values[order][np.argmax(above <= REFUSED + 1e-9)])


__all__ = ["fit_familiarity"]
