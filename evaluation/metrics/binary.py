"""Metrics of one set of labels and scores: how well the scores tell fake from real.

A number that the data cannot give is None, and `"reason"` says why; of a single metric, `"NAME_reason"`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...prepared.names import CLASS_NAMES, FAKE, REAL
from .ranking import AT_THRESHOLDS, BINS, FALSE_POSITIVE_RATES, METRICS, Ranking

REALS_PER_RATE = 5  # false alarms that the reals must allow at a false positive rate


def binary_metrics(
    labels: np.ndarray,
    p_fake: np.ndarray,
    units: str = "scores",
    classes: Sequence[str] = CLASS_NAMES,
    thresholds: Mapping[str, float | None] | None = None,
) -> dict[str, Any]:
    """Compute how well scores tell fake from real.

    Args:
        labels: integers (n,), 0 real, 1 fake.
        p_fake: floats (n,), higher is more likely fake.
        units: what is counted, for the reason.
        classes: what label 0 and label 1 are called, for the reason.
        thresholds: names of operating points and where they are, chosen on other data; None where that was not
            possible.

    Returns:
        `auc`, area under the ROC curve: the chance that a fake scores above a real, a tie counting one half; `eer`,
        see `equal_error_rate`; `ap`, average precision with fake as the positive class; `accuracy`, the share of
        correct answers where .5 and above counts as fake; `balanced_accuracy`, that of reals and that of fakes
        averaged; `fpr` and `tpr`, the shares of reals and of fakes at .5 and above; `tpr_at_fpr_0.05`,
        `tpr_at_fpr_0.01` and `tpr_at_fpr_0.001`, the largest share of fakes found at a threshold that calls no more
        than that share of the reals fake; `log_loss` (natural, probabilities cut at the precision of a double);
        `brier`, the mean squared error; `ece`, the expected calibration error over 15 bins of equally many scores, a
        tie going into one bin; all but the log loss in [0, 1]; and the count `n`.
        For each of `thresholds` also `accuracy_at_threshold_NAME`, and so on with balanced accuracy, FPR and TPR; and
        `thresholds` as given.
        With one class only, what compares the two is not defined; without a score, or with one that is not finite,
        nothing is: then `reason` says why. TPR at an FPR takes 5/FPR reals, the ECE 15 scores, and it, log loss and
        Brier score take scores in [0, 1]: where that fails, `NAME_reason` says so. What is not defined is None. Of
        scores that are all the same, `warning` says that they rank nothing.
    """
    return measure(np.asarray(labels), np.asarray(p_fake, float), units, classes, thresholds)[0]


def problem(labels: np.ndarray, p_fake: np.ndarray, units: str, classes: Sequence[str] | None = None) -> str | None:
    """Say why nothing can be measured; with `classes`, why the two cannot be compared."""
    n = len(labels)
    if n == 0:
        return f"there are no {units}"
    broken = int(np.sum(~np.isfinite(p_fake)))
    if broken:
        return f"{broken} of {n} {units} have a score that is not finite"
    fakes = int(np.sum(labels == FAKE))
    if classes is not None and fakes in (0, n):
        return f"all {n} {units} are {classes[FAKE if fakes else REAL]}: it takes both kinds"
    return None


def too_few(labels: np.ndarray, p_fake: np.ndarray, units: str) -> dict[str, str]:
    """Say of which metrics there is too little data, or of another kind, and why."""
    reals = int(np.sum(labels != FAKE))
    reasons = {
        name: f"{reals} real {units} do not tell it: an FPR of {1 / one_in:g} takes {REALS_PER_RATE * one_in}"
        for name, one_in in FALSE_POSITIVE_RATES.items()
        if reals < REALS_PER_RATE * one_in
    }
    if p_fake.min() < 0 or p_fake.max() > 1:
        reasons |= dict.fromkeys(("log_loss", "brier", "ece"), "scores outside of [0, 1] are no probabilities")
    elif len(labels) < BINS:
        reasons["ece"] = f"{len(labels)} {units} do not fill {BINS} bins"
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
    """Compute `binary_metrics`, and return with them the ranking that they came from, if there is one."""
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
    if reason:  # of the single metrics, this is why
        reasons = {name: why for name, why in reasons.items() if name not in FALSE_POSITIVE_RATES}
    metrics: dict[str, Any] = {
        name: value if np.isfinite(value) and name not in reasons else None for name, value in values.items()
    }
    for name in [name for name in thresholds if name not in known]:
        for key in AT_THRESHOLDS:
            metrics[f"{key}_at_threshold_{name}"] = None
            reasons[f"{key}_at_threshold_{name}"] = "the threshold is not known"
    metrics["n"] = n
    if thresholds:
        metrics["thresholds"] = thresholds
    if reason:
        metrics["reason"] = reason
    metrics |= {f"{name}_reason": why for name, why in reasons.items()}
    if n > 1 and p_fake.min() == p_fake.max():
        metrics["warning"] = f"all {n} {units} have the score {p_fake[0]:g}: they rank nothing."
    return metrics, ranking


def undefined(n: int, reason: str) -> dict[str, Any]:
    """Return the metrics of `n` scores of which none is defined, with the reason."""
    return {**dict.fromkeys(METRICS), "n": n, "reason": reason}
