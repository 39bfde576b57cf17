"""Metrics of a table of predictions: frames, videos, manipulation methods, and where the forgery was seen.

A number that the data cannot give is None, and a `"reason"` beside it says why.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import auc, average_precision_score, roc_curve

from ..dataset_dcl import CLASS_NAMES, FAKE, REAL

THRESHOLD = 0.5


def frame_and_video_metrics(
    predictions: pd.DataFrame, cells: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None
) -> dict[str, dict[str, Any]]:
    """Compute every metric of every data set in a table of predictions.

    Args:
        predictions: one row a frame, with the columns `dataset`, `method`, `video_id`, `label` (0 real, 1 fake) and
            `p_fake` (in [0, 1]). Their order does not matter.
        cells: for each data set, what `localisation_metrics` takes.

    Returns:
        `{dataset: {"frame": {...}, "video": {...}, "by_method": {method: {"frame": {...}, "video": {...}}},
        "localisation": {...}}}`, data sets and methods in alphabetical order. The inner dictionaries are those of
        `binary_metrics` and `localisation_metrics`. `by_method` sets the fakes of one method against all reals of
        their data set; only methods that have fakes are in it. A video is a `video_id`, scored by the mean `p_fake`
        over its frames.
    """
    cells = cells or {}
    empty = np.empty(0, np.float32), np.empty(0, bool)
    metrics = {}
    for name, rows in predictions.groupby("dataset", sort=True):
        is_real = rows["label"] == REAL
        methods = rows["method"].fillna("unknown")
        metrics[name] = {
            **_both_levels(rows),
            "by_method": {
                method: _both_levels(rows[is_real | (methods == method)]) for method in sorted(set(methods[~is_real]))
            },
            "localisation": localisation_metrics(*cells.get(name, empty)),
        }
    return metrics


def _both_levels(rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    frame = binary_metrics(rows["label"].to_numpy(), rows["p_fake"].to_numpy(), "frames")
    try:
        videos = video_scores(rows)
    except ValueError as error:
        count = rows["video_id"].nunique()
        return {"frame": frame, "video": _undefined(count, str(error))}
    return {"frame": frame, "video": binary_metrics(videos["label"].to_numpy(), videos["p_fake"].to_numpy(), "videos")}


def video_scores(rows: pd.DataFrame) -> pd.DataFrame:
    """Average the frames of each video.

    Args:
        rows: predictions of one data set, one row a frame.

    Returns:
        One row a video, indexed by `video_id` in alphabetical order, with `label` and the mean `p_fake`, which is
        NaN where that of a frame is.

    Raises:
        ValueError: if a frame has no `video_id`, or one video has frames of both classes.
    """
    missing = int(rows["video_id"].isna().sum())
    if missing:
        raise ValueError(f"{missing} of {len(rows)} frames have no video_id")
    codes, names = pd.factorize(rows["video_id"], sort=True)
    p_fake = rows["p_fake"].to_numpy(float)
    # Summed in the order of the scores: the same frames in another order give the same mean, to the last bit.
    order = np.lexsort((p_fake, codes))
    sums, frames = np.bincount(codes[order], p_fake[order]), np.bincount(codes)
    fakes = np.bincount(codes, rows["label"].to_numpy() == FAKE)
    mixed = names[(fakes > 0) & (fakes < frames)]
    if len(mixed):
        raise ValueError(f"the video_id {mixed[0]!r} has real and fake frames: it must name one video")
    return pd.DataFrame(
        {"label": np.where(fakes > 0, FAKE, REAL), "p_fake": sums / frames}, index=pd.Index(names, name="video_id")
    )


def binary_metrics(
    labels: np.ndarray, p_fake: np.ndarray, units: str = "scores", classes: Sequence[str] = CLASS_NAMES
) -> dict[str, Any]:
    """Compute how well scores tell fake from real.

    Args:
        labels: integers (n,), 0 real, 1 fake.
        p_fake: floats (n,), higher is more likely fake.
        units: what is counted, for the reason.
        classes: what label 0 and label 1 are called, for the reason.

    Returns:
        `auc`, area under the ROC curve: the chance that a fake scores above a real, a tie counting one half; `eer`,
        see `equal_error_rate`; `ap`, average precision with fake as the positive class; `accuracy`, the share of
        correct answers where .5 and above is called fake; all in [0, 1]; and the count `n`. With one class only,
        nothing but accuracy is defined; without a score, or with one that is not finite, nothing is. What is not
        defined is None, and `reason` says why.
    """
    labels, p_fake = np.asarray(labels), np.asarray(p_fake, float)
    n = len(labels)
    if n == 0:
        return _undefined(0, f"there are no {units}")
    broken = int(np.sum(~np.isfinite(p_fake)))
    if broken:
        return _undefined(n, f"{broken} of {n} {units} have a score that is not finite")
    accuracy = float(np.mean((p_fake >= THRESHOLD) == (labels == FAKE)))
    fakes = int(np.sum(labels == FAKE))
    if fakes in (0, n):
        only = classes[FAKE if fakes else REAL]
        return {**_undefined(n, f"all {n} {units} are {only}: it takes both kinds"), "accuracy": accuracy}
    false_positive_rate, true_positive_rate, _ = roc_curve(labels, p_fake, pos_label=FAKE)
    return {
        "auc": float(auc(false_positive_rate, true_positive_rate)),
        "eer": equal_error_rate(false_positive_rate, true_positive_rate),
        "ap": float(average_precision_score(labels, p_fake, pos_label=FAKE)),
        "accuracy": accuracy,
        "n": n,
    }


def _undefined(n: int, reason: str) -> dict[str, Any]:
    return {"auc": None, "eer": None, "ap": None, "accuracy": None, "n": n, "reason": reason}


def equal_error_rate(false_positive_rate: np.ndarray, true_positive_rate: np.ndarray) -> float:
    """Find where a ROC curve, its points joined by straight lines, has as many false alarms as misses.

    Args:
        false_positive_rate: (k,), rising from 0 to 1.
        true_positive_rate: (k,), rising from 0 to 1.

    Returns:
        The false positive rate, equal to the miss rate, at the crossing with FPR = 1 - TPR; in [0, 1].
    """
    excess = false_positive_rate + true_positive_rate - 1  # rises from -1 to 1, strictly: each point moves one of them
    after = int(np.argmax(excess >= 0))
    share = -excess[after - 1] / (excess[after] - excess[after - 1])
    start, end = false_positive_rate[after - 1], false_positive_rate[after]
    return float(start + share * (end - start))


def localisation_metrics(evidence: np.ndarray, forged: np.ndarray) -> dict[str, Any]:
    """Compute how well evidence points at the forged region.

    Args:
        evidence: floats (c,), one a cell: the cells of all fakes whose mask is known, pooled, so that evidence must be
            comparable between images and an image counts by its cells. Cells of reals are not among them: they would
            reward telling images apart.
        forged: booleans (c,), whether the cell is forged.

    Returns:
        `auc`, the chance that a forged cell has more evidence than an untouched one, a tie counting one half. None,
        with a `reason`, where there is no cell, only one kind of cell, or evidence that is not finite.
    """
    metrics = binary_metrics(forged, evidence, "cells of fakes with a known mask", ("untouched", "forged"))
    return {name: metrics[name] for name in ("auc", "reason") if name in metrics}


__all__ = [
    "binary_metrics",
    "equal_error_rate",
    "frame_and_video_metrics",
    "localisation_metrics",
    "video_scores",
]
