"""Calibration and operating points of a checkpoint, found on predictions for a split that it was not trained on.

Everything here is chosen on the validation split and carried by the checkpoint; a test set only ever sees it applied.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest
from sklearn.isotonic import IsotonicRegression

from ..calibration_dcl import OPERATING_POINTS, calibrate
from ..prepared_dcl import FAKE, REAL
from .bootstrap import CONFIDENCE, family_codes
from .metrics import binary_metrics, video_scores
from .ranking import Ranking

#: Operating points by their false positive rate: how many reals there are to one false alarm.
RATES = {"fpr_0.05": 20, "fpr_0.01": 100}
#: Where a temperature is looked for, in mean margins. Below, all but a few margins next to 0 are certainties that
#: doubles hardly tell from one another; above, `p_fake` is .5 for all.
NARROWEST, WIDEST = 1 / 30, 1e4


def fit_calibration(predictions: pd.DataFrame, method: str = "temperature") -> dict[str, Any]:
    """Fit what `DCLConfig.calibration` holds.

    Reals and fakes weigh the same in sum, as in the balanced batches of training, so that `p_fake` reads "if reals and
    fakes are equally likely" however many there are of each. Within a class every video weighs the same: its frames
    are much alike, and a long video tells no more of the next one than a short one does. Thresholds count frames, or
    videos, one by one, as the metrics do that use them.

    Args:
        predictions: rows of the validation split with the columns `dataset`, `video_id`, `source_id`, `label` and
            `logit`, the margin. Their order does not matter.
        method: `"temperature"`, one number by which margins are divided, so that no ranking changes; or
            `"isotonic"`, a rising curve of any shape, for validation splits of many videos: where it is flat,
            scores become equal.

    Returns:
        `{"method", ...}` as `calibrate` takes it, with `"frame"` and `"video"`, see `operating_points`; a video is
        scored by the mean calibrated `p_fake` of its frames. Where the split does not determine a calibration, the
        method is `"none"`, with a `"reason"`; operating points are then those of the plain logistic function.
    """
    labels = predictions["label"].to_numpy()
    fit = {"temperature": _fit_temperature, "isotonic": _fit_isotonic}[method]
    try:
        calibration = {"method": method, **fit(*_weighted_margins(predictions))}
    except ValueError as error:
        calibration = {"method": "none", "reason": str(error)}
    frames = predictions.assign(p_fake=calibrate(predictions["logit"].to_numpy(float), calibration))
    try:
        families = family_codes(predictions)[1]
    except ValueError:
        families = None
    calibration["frame"] = {"families": families, **operating_points(labels, frames["p_fake"].to_numpy(), "frames")}
    try:
        videos = pd.concat([video_scores(rows) for _, rows in frames.groupby("dataset")])
    except ValueError as error:
        calibration["video"] = {
            "thresholds": dict.fromkeys(OPERATING_POINTS),
            "reasons": dict.fromkeys(OPERATING_POINTS, str(error)),
        }
    else:
        points = operating_points(videos["label"].to_numpy(), videos["p_fake"].to_numpy(), "videos")
        calibration["video"] = {"families": families, **points}
    return calibration


def _weighted_margins(predictions: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray, Mapping[int, int]]:
    """Return margins, labels, weights that sum to 1 in either class, and how many videos each class has.

    Raises:
        ValueError: if a class is missing, or margins are not finite or all the same.
    """
    labels, margins = predictions["label"].to_numpy(), predictions["logit"].to_numpy(float)
    if reason := binary_metrics(labels, margins, "frames").get("reason"):
        raise ValueError(reason)
    if margins.min() == margins.max():
        raise ValueError(f"all {len(margins)} frames have the margin {margins[0]:g}")
    named = predictions["video_id"].notna().to_numpy()
    sizes = predictions.groupby(["dataset", "video_id"], dropna=False)["label"].transform("size").to_numpy()
    sizes = np.where(named, sizes, 1)  # a frame of no video stands for itself
    order = np.lexsort((sizes, labels, margins))  # sums must not depend on the order of the rows, to the last bit
    margins, labels, weights = margins[order], labels[order], 1 / sizes[order]
    videos = {}
    for label in (REAL, FAKE):
        total = weights[labels == label].sum()
        weights[labels == label] /= total
        videos[label] = round(total)
    return margins, labels, weights, videos


def _fit_temperature(
    margins: np.ndarray, labels: np.ndarray, weights: np.ndarray, videos: Mapping[int, int]
) -> dict[str, Any]:
    """Find the temperature with the least negative log-likelihood (Guo et al., 2017, arXiv 1706.04599)."""
    signed = np.where(labels == FAKE, margins, -margins)
    separated = "the sign of the margin tells the frames apart, which ever smaller temperatures explain ever better"
    if signed.min() >= 0:
        raise ValueError(separated)
    if weights @ signed <= 0:
        raise ValueError("on average, the margins of fakes are no higher than those of reals")

    def loss(log_temperature: float) -> float:
        return weights @ np.logaddexp(0, -signed / np.exp(log_temperature))

    mean = weights @ np.abs(margins) / 2
    lowest, highest = np.log(mean * NARROWEST), np.log(mean * WIDEST)
    found = minimize_scalar(loss, bounds=(lowest, highest), method="bounded", options={"xatol": 1e-8}).x
    if found < lowest + 1e-3:
        raise ValueError(separated)
    if found > highest - 1e-3:
        raise ValueError("the margins of fakes are hardly higher than those of reals")
    return {"temperature": float(np.exp(found))}


def _fit_isotonic(
    margins: np.ndarray, labels: np.ndarray, weights: np.ndarray, videos: Mapping[int, int]
) -> dict[str, Any]:
    """Fit a rising step curve, and keep the knots where it bends.

    Where no fake was seen, that is no proof that there is none: `p_fake` stays above 1 / (fakes + 2), by the rule of
    succession for the videos that there are, and as far below 1 for reals.
    """
    curve = IsotonicRegression(y_min=1 / (videos[FAKE] + 2), y_max=1 - 1 / (videos[REAL] + 2))
    curve.fit(margins, labels == FAKE, sample_weight=weights)
    knots, p_fake = curve.X_thresholds_, curve.y_thresholds_  # without those inside of a flat part
    kept = np.diff(p_fake, prepend=p_fake[0]) + np.diff(p_fake, append=p_fake[-1]) > 0  # nor at its outer ends
    if not kept.any():
        raise ValueError("the share of fakes does not rise with the margin")
    return {"margins": knots[kept].tolist(), "p_fake": p_fake[kept].tolist()}


def operating_points(labels: np.ndarray, p_fake: np.ndarray, units: str) -> dict[str, Any]:
    """Find from which score on to call something fake.

    Args:
        labels: integers (n,), 0 real, 1 fake.
        p_fake: floats (n,), higher is more likely fake.
        units: what is counted, for the reasons.

    Returns:
        `reals` and `fakes`, how many there are; `thresholds`: `eer`, where the shares of false alarms and of misses
        are closest; `fpr_0.05` and `fpr_0.01`, the lowest at which no more than that share of the reals is called
        fake. Each lies midway between two neighbouring scores, which a tie never straddles. None where it is not
        defined, or where the reals are fewer than 5/FPR; `reasons` then says why.
    """
    reals, fakes = (np.sort(p_fake[labels == label]) for label in (REAL, FAKE))
    thresholds: dict[str, float | None] = dict.fromkeys(OPERATING_POINTS)
    found = {"reals": len(reals), "fakes": len(fakes), "thresholds": thresholds, "reasons": {}}
    metrics = binary_metrics(labels, p_fake, units)
    scores = np.unique(p_fake)
    reason = metrics.get("reason") or (f"all {len(p_fake)} {units} have the same score" if len(scores) == 1 else None)
    if reason:
        found["reasons"] = dict.fromkeys(OPERATING_POINTS, reason)
        return found
    alarms = len(reals) - np.searchsorted(reals, scores)  # where the threshold is that score
    misses = np.searchsorted(fakes, scores)
    unequal = np.abs(alarms * len(fakes) - misses * len(reals))  # of the rates, in whole numbers
    # The first score calls everything fake and is never nearest; of two that are, the higher one gives fewer alarms.
    nearest = len(scores) - 1 - np.argmin(unequal[:0:-1])
    thresholds["eer"] = _midway(scores, nearest)
    for name, one_in in RATES.items():
        few_enough = np.flatnonzero(alarms * one_in <= len(reals))
        if why := metrics.get(f"tpr_at_{name}_reason"):
            found["reasons"][name] = why
        elif len(few_enough) == 0:
            found["reasons"][name] = (
                f"{alarms[-1]} of {len(reals)} real {units} share the highest score: an FPR of {1 / one_in:g} would "
                "call nothing fake"
            )
        else:
            thresholds[name] = _midway(scores, few_enough[0])
    return found


def _midway(scores: np.ndarray, index: int) -> float:
    """Return the middle between a score and the next lower one; where doubles have none, the score."""
    middle = scores[index - 1] + (scores[index] - scores[index - 1]) / 2
    return float(middle if middle > scores[index - 1] else scores[index])


def reliability(labels: np.ndarray, p_fake: np.ndarray, balanced: bool = False) -> list[dict[str, float]]:
    """Compute the numbers of a reliability diagram, over the bins of `ece`: equally many scores, ties kept together.

    Args:
        labels: integers (n,), 0 real, 1 fake.
        p_fake: floats (n,) in [0, 1]; give those before and those after calibration for a curve of each.
        balanced: the share of fakes as it would be were reals and fakes equally many, which is what a calibrated
            `p_fake` claims; otherwise it moves with the make-up of the data set. Both classes must be there.

    Returns:
        Of each bin, from the lowest scores to the highest: `mean_p`, the mean score; `share_fake`, with `low` and
        `high`, its 95 % Wilson interval; and `n`, how many scores it has. Frames of one video are no independent
        observations: of frames, the interval is too narrow.
    """
    if len(labels) == 0:
        return []
    odds = np.sum(labels == REAL) / np.sum(labels == FAKE) if balanced else 1.0
    bins = []
    for n, fakes, total in zip(*(column[::-1] for column in Ranking(labels, p_fake).bins()), strict=True):
        if n == 0:
            continue
        ends = binomtest(int(fakes), int(n)).proportion_ci(CONFIDENCE, method="wilson")
        share, low, high = (
            float(value * odds / (value * odds + 1 - value)) for value in (fakes / n, ends.low, ends.high)
        )
        bins.append({"mean_p": float(total / n), "share_fake": share, "n": int(n), "low": low, "high": high})
    return bins


__all__ = ["fit_calibration", "operating_points", "reliability"]
