"""Metrics of one set of labels and scores: how well the scores separate fake from real.

An undefined metric is None; `"reason"` explains why, or `"NAME_reason"` for a single metric.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...prepared.names import CLASS_NAMES, FAKE, REAL
from .sorted_scores import AT_THRESHOLDS, BINS, FALSE_POSITIVE_RATES, METRICS, Ranking

REALS_PER_RATE = 5  # least number of false alarms that a false positive rate must allow


def binary_metrics(
    labels: np.ndarray,
    p_fake: np.ndarray,
    units: str = "scores",
    classes: Sequence[str] = CLASS_NAMES,
    thresholds: Mapping[str, float | None] | None = None,
) -> dict[str, Any]:
    """Compute how well scores separate fake from real.

    Args:
        labels: integers (n,), 0 real, 1 fake.
        p_fake: floats (n,), higher is more likely fake.
        units: "frames" or "videos", for reasons.
        classes: names of label 0 and label 1, for reasons.
        thresholds: operating points by name, chosen on other data; None for a point without a threshold.

    Returns:
        `auc`, area under the ROC curve: the probability that a fake scores above a real, with ties counting one half;
        `eer`, see `equal_error_rate` in `sorted_scores.py`; `ap`, average precision with fake as the positive class;
        `accuracy`, with .5 and above predicted as fake; `balanced_accuracy`, the mean of the accuracies on reals and
        on fakes; `fpr` and `tpr`, the shares of reals and of fakes at .5 and above; `tpr_at_fpr_0.05`,
        `tpr_at_fpr_0.01` and `tpr_at_fpr_0.001`, the largest share of fakes flagged at a threshold that flags at most
        that share of the reals; `log_loss` (natural, with probabilities clipped at the precision of a double);
        `brier`, the mean squared error; `ece`, the expected calibration error over 15 bins with equal numbers of
        scores, without splitting ties; and the count `n`. All but the log loss are in [0, 1].
        For each of `thresholds` also `accuracy_at_threshold_NAME`, and likewise balanced accuracy, FPR and TPR; and
        `thresholds` as given.
        Undefined metrics are None. With a single class, metrics that compare the classes are undefined; without
        scores, or with a score that is not finite, all are: `reason` explains why. TPR at an FPR needs 5/FPR reals and
        the ECE 15 scores; ECE, log loss and Brier score need scores in [0, 1]: otherwise `NAME_reason` explains why.
        If all scores are the same, there is a `warning`.
    """
    return measure(np.asarray(labels), np.asarray(p_fake, float), units, classes, thresholds)[0]


def problem(labels: np.ndarray, p_fake: np.ndarray, units: str, classes: Sequence[str] | None = None) -> str | None:
    """Return why no metric is defined, or, with `classes`, why the classes cannot be compared; None if they are."""
    n = len(labels)
    if n == 0:
        return f"there are no {units}"
    broken = int(np.sum(~np.isfinite(p_fake)))
    if broken:
        return f"the scores of {broken} of {n} {units} are not finite"
    fakes = int(np.sum(labels == FAKE))
    if classes is not None and fakes in (0, n):
        return f"all {n} {units} are {classes[FAKE if fakes else REAL]}, and both classes are needed"
    return None


def too_few(labels: np.ndarray, p_fake: np.ndarray, units: str) -> dict[str, str]:
    """Return the metrics with too little or unsuitable data, and the reasons."""
    reals = int(np.sum(labels != FAKE))
    reasons = {
        name: f"{reals} real {units} are too few: an FPR of {1 / one_in:g} needs {REALS_PER_RATE * one_in}"
        for name, one_in in FALSE_POSITIVE_RATES.items()
        if reals < REALS_PER_RATE * one_in
    }
    if p_fake.min() < 0 or p_fake.max() > 1:
        reasons |= dict.fromkeys(("log_loss", "brier", "ece"), "scores outside of [0, 1] are not probabilities")
    elif len(labels) < BINS:
        reasons["ece"] = f"{len(labels)} {units} are too few for {BINS} bins"
    return reasons


def measure(
    labels: np.ndarray,
    p_fake: np.ndarray,
    units: str,
    classes: Sequence[str] = CLASS_NAMES,
    thresholds: Mapping[str, float | None] | None = None,
    families: np.ndarray | None = None,
    family_count: int = 1,
    ranks: np.ndarray | None = None,
) -> tuple[dict[str, Any], Ranking | None]:
    """Compute `binary_metrics`, and return them with their ranking, or None if there is none."""
    n = len(labels)
    for scores in (p_fake,) if ranks is None else (p_fake, ranks):
        if reason := problem(labels, scores, units):
            return undefined(n, reason), None
    thresholds = dict(sorted((thresholds or {}).items()))
    known = {name: at for name, at in thresholds.items() if at is not None}
    ranking = Ranking(labels, p_fake, families, family_count, known, ranks)
    values = {name: float(value[0]) for name, value in ranking.metrics().items()}
    reasons = too_few(labels, p_fake, units)
    reason = problem(labels, p_fake, units, classes)
    if reason:  # this reason replaces those of single metrics
        reasons = {name: why for name, why in reasons.items() if name not in FALSE_POSITIVE_RATES}
    metrics: dict[str, Any] = {
        name: value if np.isfinite(value) and name not in reasons else None for name, value in values.items()
    }
    for name in [name for name in thresholds if name not in known]:
        for key in AT_THRESHOLDS:
            metrics[f"{key}_at_threshold_{name}"] = None
            reasons[f"{key}_at_threshold_{name}"] = "the threshold is unknown"
    metrics["n"] = n
    if thresholds:
        metrics["thresholds"] = thresholds
    if reason:
        metrics["reason"] = reason
    metrics |= {f"{name}_reason": why for name, why in reasons.items()}
    if n > 1 and p_fake.min() == p_fake.max():
        metrics["warning"] = f"all {n} {units} have the same score, {p_fake[0]:g}."
    return metrics, ranking


def undefined(n: int, reason: str) -> dict[str, Any]:
    """Return undefined metrics of `n` scores, with the reason."""
    return {**dict.fromkeys(METRICS), "n": n, "reason": reason}
