"""Fit the calibration and the operating points of a checkpoint on predictions for its validation split.

Everything here is chosen on the validation split and stored in the checkpoint. Test sets only see it applied.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import betaincinv, expit, stdtrit
from scipy.stats import binomtest

from ..decision_dcl import OPERATING_POINTS, calibrate
from ..prepared.names import FAKE, REAL
from .metrics.binary import binary_metrics
from .metrics.bootstrap import CONFIDENCE, family_codes
from .metrics.levels import video_scores
from .metrics.sorted_scores import Ranking

#: Operating points by false positive rate: the number of reals for each false alarm.
RATES = {"fpr_0.05": 20, "fpr_0.01": 100}
ERROR_RATE = 0.1  # of either kind, above which scores are inconclusive
FLATTEST = 1e-4  # slope, in units of the mean margin, below which every `p_fake` would be .5
_GRID = np.arange(101) / 100  # thresholds at which the false positive rate is stored


def fit_calibration(predictions: pd.DataFrame, error_rate: float = ERROR_RATE) -> dict[str, Any]:
    """Fit `DCLConfig.calibration` by Platt scaling (Platt, 1999).

    Reals and fakes have equal total weight, as in the balanced batches of training. So `p_fake` assumes that reals and
    fakes are equally likely, whatever their numbers in the split. Within a class, every video has equal weight: its
    frames are similar, and a long video says no more about a new one than a short video does. Platt's smoothed targets
    therefore count videos. They limit how close `p_fake` comes to 0 or 1, and keep the fit finite for separable
    classes. Thresholds count single frames or videos, as the metrics do.

    Args:
        predictions: rows of the validation split, in any order, with the columns `dataset`, `video_id`, `source_id`,
            `label` and `logit`, the margin.
        error_rate: see `_band`; in (0, .5).

    Returns:
        `{"method": "platt", "slope", "offset"}` for `calibrate`, with `"frame"` and `"video"`: `families`, the result
        of `operating_points`, `band` (see `_band`) and `fpr` (see `_false_positive_rates`). The score of a video is
        the mean calibrated `p_fake` of its frames. If the split does not determine a calibration, the method is
        `"none"`, with a `"reason"`, and the rest applies to the plain logistic function.
    """
    try:
        calibration: dict[str, Any] = {"method": "platt", **_fit_platt(*_weighted_margins(predictions))}
    except ValueError as error:
        calibration = {"method": "none", "reason": str(error)}
    frames = predictions.assign(p_fake=calibrate(predictions["logit"].to_numpy(float), calibration))
    try:
        frames["family"], _ = family_codes(predictions)
        why = None
    except ValueError as error:
        why = str(error)
    calibration["frame"] = _level(frames, "frames", error_rate, why)
    try:
        videos = pd.concat([video_scores(rows) for _, rows in frames.groupby("dataset")])
    except ValueError as error:
        reasons = dict.fromkeys(OPERATING_POINTS, str(error))
        calibration["video"] = {
            "thresholds": dict.fromkeys(OPERATING_POINTS),
            "reasons": reasons,
            **_without_families(error_rate, str(error)),
        }
    else:
        calibration["video"] = _level(videos, "videos", error_rate, why)
    return calibration


def _level(rows: pd.DataFrame, units: str, error_rate: float, why: str | None) -> dict[str, Any]:
    """Return the calibration's entries for frames or videos; `why` explains why families are unknown, if they are."""
    labels, p_fake = rows["label"].to_numpy(), rows["p_fake"].to_numpy()
    points = operating_points(labels, p_fake, units)
    families = rows["family"].to_numpy() if why is None else None
    found = {"families": None if families is None else len(set(families)), **points}
    if why := why or points["reasons"].get("eer"):
        return found | _without_families(error_rate, why)
    band = _band(labels, p_fake, families, error_rate)
    real = labels == REAL
    exact = [at for at in (*points["thresholds"].values(), band["low"], band["high"]) if at is not None]
    curve = _false_positive_rates(p_fake[real], families[real], exact)
    return found | {"band": band, "fpr": curve}


def _without_families(error_rate: float, why: str) -> dict[str, Any]:
    return {"band": {"error_rate": error_rate, "low": None, "high": None, "reason": why}, "fpr": {"reason": why}}


def _weighted_margins(predictions: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray, Mapping[int, int]]:
    """Return margins, labels, weights that sum to 1 in each class, and the number of videos in each class.

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
    sizes = np.where(named, sizes, 1)  # a frame without a video counts as one
    order = np.lexsort((sizes, labels, margins))  # makes the sums independent of the order of rows, to the last bit
    margins, labels, weights = margins[order], labels[order], 1 / sizes[order]
    videos = {}
    for label in (REAL, FAKE):
        total = weights[labels == label].sum()
        weights[labels == label] /= total
        videos[label] = round(total)
    return margins, labels, weights, videos


def _fit_platt(
    margins: np.ndarray, labels: np.ndarray, weights: np.ndarray, videos: Mapping[int, int]
) -> dict[str, Any]:
    """Find the slope and offset that minimise the negative log-likelihood of the smoothed targets."""
    targets = np.where(labels == FAKE, (videos[FAKE] + 1) / (videos[FAKE] + 2), 1 / (videos[REAL] + 2))
    unit = weights @ np.abs(margins) / 2
    scaled = margins / unit

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        logits = line[0] * scaled + line[1]
        slack = weights * (expit(logits) - targets)
        return weights @ (np.logaddexp(0, logits) - targets * logits), np.array([slack @ scaled, slack.sum()])

    slope, offset = minimize(loss, [1.0, 0.0], jac=True, method="BFGS", options={"gtol": 1e-9}).x
    if slope < FLATTEST:
        raise ValueError("fakes do not have higher margins than reals")
    return {"slope": float(slope / unit), "offset": float(offset)}


def operating_points(labels: np.ndarray, p_fake: np.ndarray, units: str) -> dict[str, Any]:
    """Find the thresholds from which scores are flagged.

    Args:
        labels: integers (n,), 0 real, 1 fake.
        p_fake: floats (n,), higher is more likely fake.
        units: "frames" or "videos", for the reasons.

    Returns:
        `reals` and `fakes`, their numbers; `thresholds`: `eer`, where false alarm rate and miss rate are closest;
        `fpr_0.05` and `fpr_0.01`, the lowest thresholds that flag at most that share of the reals. Each threshold lies
        midway between two neighbouring scores and never splits a tie. It is None if it is undefined, or if there are
        fewer than 5/FPR reals; `reasons` explains why.
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
    alarms = len(reals) - np.searchsorted(reals, scores)  # with that score as the threshold
    misses = np.searchsorted(fakes, scores)
    unequal = np.abs(alarms * len(fakes) - misses * len(reals))  # difference of the rates, in whole numbers
    # Skip the first score, which flags everything. Of two equally near scores, the higher one gives fewer alarms.
    nearest = len(scores) - 1 - np.argmin(unequal[:0:-1])
    thresholds["eer"] = _midway(scores, nearest)
    for name, one_in in RATES.items():
        few_enough = np.flatnonzero(alarms * one_in <= len(reals))
        if why := metrics.get(f"tpr_at_{name}_reason"):
            found["reasons"][name] = why
        elif len(few_enough) == 0:
            found["reasons"][name] = (
                f"{alarms[-1]} of {len(reals)} real {units} share the highest score, so at an FPR of {1 / one_in:g} "
                "nothing would be flagged"
            )
        else:
            thresholds[name] = _midway(scores, few_enough[0])
    return found


def _midway(scores: np.ndarray, index: int) -> float:
    """Return the midpoint of a score and the next lower one, or the score if no double lies between."""
    middle = scores[index - 1] + (scores[index] - scores[index - 1]) / 2
    return float(middle if middle > scores[index - 1] else scores[index])


def _band(labels: np.ndarray, p_fake: np.ndarray, families: np.ndarray, error_rate: float) -> dict[str, Any]:
    """Find the range of inconclusive scores, in which too many reals and too many fakes lie.

    People differ, so an error rate over the validation faces says little about new people if those faces come from few
    families. The band holds for faces of new families instead: for m exchangeable families with error rates s_1 ...
    s_m, the expected error rate of a new family is at most (s_1 + ... + s_m + 1) / (m + 1) (Lee, Barber and Willett,
    2023, arXiv 2306.06342). If this bound exceeds `error_rate` even without errors, the band covers all errors of the
    split, and the returned rate is the one it can promise: 1 / (m + 1), or .2 for 4 families. The bound ignores that
    the checkpoint and its calibration were chosen on the same split.

    Args:
        labels: integers (n,), 0 real, 1 fake, with both classes.
        p_fake: floats (n,) in [0, 1], not all the same.
        families: integers (n,).
        error_rate: the largest expected share of new reals at or above `high`, and of new fakes below `low`.

    Returns:
        `error_rate`, the rate that holds for both classes; `high`, the lowest threshold that keeps it for reals; and
        `low`, the highest that keeps it for fakes. Scores from `low` to `high` are inconclusive; if `low` is above
        `high`, none are. Both are None, with a `reason`, if a class has a single family.
    """
    scores = np.unique(p_fake)
    middles = scores[:-1] + np.diff(scores) / 2
    edges = np.concatenate(
        [scores[:1], np.where(middles > scores[:-1], middles, scores[1:]), [np.nextafter(scores[-1], 2)]]
    )
    errors, counts = {}, {}
    for label in (REAL, FAKE):
        own = np.sort(p_fake[labels == label])
        _, codes, sizes = np.unique(families[labels == label], return_inverse=True, return_counts=True)
        shares = (1 / sizes[codes])[np.argsort(p_fake[labels == label])]  # each family adds up to 1
        below = np.concatenate([[0], np.cumsum(shares)])[np.searchsorted(own, edges)]
        counts[label] = len(sizes)
        errors[label] = below if label == FAKE else len(sizes) - below
    fewest = min(counts.values())
    held = {label: max(error_rate, 1 / (count + 1)) for label, count in counts.items()}
    found = {"error_rate": max(held.values()), "low": None, "high": None}
    if fewest == 1:
        return {
            **found,
            "error_rate": error_rate,
            "reason": "each class needs at least two families",
        }
    kept = {label: (errors[label] + 1) / (counts[label] + 1) <= held[label] + 1e-9 for label in errors}
    low, high = edges[kept[FAKE]][-1], edges[kept[REAL]][0]
    if high > 1:
        return {**found, "reason": "real faces score 1"}
    return {**found, "low": float(low), "high": float(high)}


def _false_positive_rates(p_fake: np.ndarray, families: np.ndarray, exact: list[float]) -> dict[str, list[float]]:
    """Return the share of reals at or above each threshold, with 95 % intervals.

    Args:
        p_fake: floats (n,) of the reals.
        families: integers (n,).
        exact: thresholds to include besides those of the grid.

    Returns:
        `thresholds`, rising from 0, without those at which the rate does not change; and their `value`, `low` and
        `high`.
    """
    thresholds = np.union1d(_GRID, exact)
    codes = np.unique(families, return_inverse=True)[1]
    sizes = np.bincount(codes)
    curve: dict[str, list[float]] = {"thresholds": [], "value": [], "low": [], "high": []}
    before = None
    for threshold in thresholds:
        alarms = np.bincount(codes, p_fake >= threshold)
        if before is not None and np.array_equal(alarms, before):
            continue
        before = alarms
        low, high = rate_interval(alarms, sizes)
        point = (threshold, round(np.mean(alarms / sizes), 6), round(low, 6), round(high, 6))
        for name, value in zip(curve, point, strict=True):
            curve[name].append(float(value))
    return curve


def rate_interval(alarms: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of a rate over families with similar members.

    The rate is the mean over families with equal weights, since a person with many photographs says no more about the
    next person than one with few. The interval is that of Korn and Graubard (1998): Clopper and Pearson's with the
    effective sample size, the number of independent observations with the same variance. It is at least the number of
    families, and equals it if all members or none are counted.

    Args:
        alarms: floats (m,), the number of counted members in each family.
        sizes: integers (m,), the number of members in each family.
    """
    families, total, shares = len(sizes), sizes.sum(), alarms / sizes
    rate = float(shares.mean())
    effective = float(families)
    if 0 < rate < 1 and families > 1:
        variance = shares.var(ddof=1) / families
        upper = (1 + CONFIDENCE) / 2
        degrees = (stdtrit(total - 1, upper) / stdtrit(families - 1, upper)) ** 2
        most = rate * (1 - rate) / variance * degrees if variance > 0 else np.inf
        effective = float(np.clip(most, families, total))
    hits, tail = rate * effective, (1 - CONFIDENCE) / 2
    low = 0.0 if rate == 0 else betaincinv(hits, effective - hits + 1, tail)
    high = 1.0 if rate == 1 else betaincinv(hits + 1, effective - hits, 1 - tail)
    return float(low), float(high)


def reliability(labels: np.ndarray, p_fake: np.ndarray, balanced: bool = False) -> list[dict[str, float]]:
    """Compute the numbers of a reliability diagram, over the bins of `ece`: equally many scores, ties kept together.

    Args:
        labels: integers (n,), 0 real, 1 fake.
        p_fake: floats (n,) in [0, 1], before or after calibration.
        balanced: reweight the share of fakes to equal numbers of reals and fakes, as a calibrated `p_fake` assumes;
            otherwise it depends on the proportions of the data set. Needs both classes.

    Returns:
        For each bin, from the lowest scores to the highest: `mean_p`, the mean score; `share_fake`, with its 95 %
        Wilson interval `low` and `high`; and `n`, the number of scores. For frames the interval is too narrow, since
        frames of one video are not independent.
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
