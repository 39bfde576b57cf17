"""95 % intervals of metrics by a bootstrap over families: a real video with all its fakes.

Frames of one video, and a real video and the fakes made from it, are not independent observations. Drawing rows would
give intervals that are far too narrow.

An interval is symmetric on the logit scale (on the logarithmic scale for the log loss): the standard deviation of the
draws there, times the quantile of Student's t for the number of families. It stays in the range of the metric, and its
coverage is better than that of percentiles of the draws, above all with few families or near the end of the range.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtrit

from .sorted_scores import Ranking

CONFIDENCE = 0.95
FEW_FAMILIES = 20
DRAWS = 1000
FARTHEST = 10  # draws are clipped to this factor of the estimate, and of its distance to 1
USABLE = 0.95  # the share of draws that must define a metric
#: Metrics without an interval, and the reason. Even a perfectly calibrated model has an ECE above 0 in any sample, and
#: a larger one in bootstrap draws; their spread reflects the sample size.
WITHOUT_INTERVAL = {"ece": "a sample overestimates the ECE, and bootstrap draws overestimate it again"}


def family_codes(rows: pd.DataFrame) -> tuple[np.ndarray, int]:
    """Number the families of a table of predictions.

    Args:
        rows: predictions of one data set; for a row without a `source_id`, its `video_id` names the family.

    Returns:
        Integers (n,), and the number of families.

    Raises:
        ValueError: if a row has neither.
    """
    names = rows["video_id"]
    if "source_id" in rows:
        names = rows["source_id"].where(rows["source_id"].notna(), names)
    codes, families = pd.factorize(names, sort=True)  # sorted, so that the draws do not depend on the order of rows
    missing = int((codes < 0).sum())
    if missing:
        raise ValueError(f"{missing} of {len(rows)} frames have neither source_id nor video_id")
    return codes, len(families)


def interval(
    name: str, estimate: float, draws: np.ndarray, families: int
) -> tuple[list[float], None] | tuple[None, str]:
    """Compute the 95 % interval of a metric.

    Args:
        name: its name, which decides the scale.
        estimate: its value on the data, within its range.
        draws: floats (b,), its values over the draws, NaN where undefined.
        families: number of families behind it.

    Returns:
        The lower and upper end, and None; or None, and the reason for no interval.
    """
    reason = WITHOUT_INTERVAL.get(name) or _spread(draws, families)[1]
    if reason:
        return None, reason
    on_log_scale = name == "log_loss"
    if estimate <= 0 or (estimate >= 1 and not on_log_scale):
        return None, f"it is {estimate:g}, the end of its range, where the bootstrap gives no interval"
    # A draw may lie at the end of the range, where the scale is infinite.
    top = estimate * FARTHEST if on_log_scale else 1 - (1 - estimate) / FARTHEST
    draws = np.clip(draws, estimate / FARTHEST, top)
    spread, _ = _spread(np.log(draws if on_log_scale else draws / (1 - draws)), families)
    reach = np.exp(_quantile(families) * spread)
    if on_log_scale:
        return [float(estimate / reach), float(estimate * reach)], None
    odds = estimate / (1 - estimate)
    return [float(1 / (1 + reach / odds)), float(1 - 1 / (1 + odds * reach))], None


def _quantile(families: int) -> float:
    """Return the half-width of a 95 % interval, in standard deviations."""
    return float(stdtrit(families - 1, (1 + CONFIDENCE) / 2))


def _spread(draws: np.ndarray, families: int) -> tuple[float, str | None]:
    if families < 2:
        return 0.0, "it rests on a single family, and at least two are needed"
    defined = draws[np.isfinite(draws)]
    if len(defined) < max(2, USABLE * len(draws)):
        return 0.0, f"it is defined in only {len(defined)} of {len(draws)} draws of families"
    spread = float(np.std(defined, ddof=1))
    if spread <= 1e-12:  # rounding: sums of equal terms in another order
        return 0.0, "it is the same in every draw of families"
    return spread, None


def intervals(
    ranking: Ranking, estimates: Mapping[str, float | None], draws: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Compute the 95 % intervals of the metrics of one set of scores.

    Args:
        ranking: the scores, with their families.
        estimates: its metrics; those that are None, or that the ranking does not have, get no interval.
        draws: `ranking.draws(...)`.

    Returns:
        `families`, the number of families with scores of a class, for the class with fewer; `intervals`, `{metric:
        [low, high]}`, or None; `interval_reasons`, the reasons for each None; and a `warning` if families are few.
    """
    holders = dict(zip(("reals", "fakes"), ranking.holders(), strict=True))
    present = {kind: count for kind, count in holders.items() if count}
    rarer = min(present, key=present.__getitem__)
    families = present[rarer]
    found: dict[str, Any] = {"families": families, "intervals": {}}
    reasons = {}
    for name in ranking.names:
        if estimates.get(name) is not None:
            found["intervals"][name], why = interval(name, estimates[name], draws[name], families)
            if why:
                reasons[name] = why
    if reasons:
        found["interval_reasons"] = reasons
    if families < FEW_FAMILIES:
        have = "family has" if families == 1 else "families have"
        found["warning"] = f"Only {families} {have} {rarer}. With fewer than {FEW_FAMILIES}, intervals are unreliable."
    return found


def paired_differences(one: Ranking, other: Ranking, draws: int = DRAWS, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Compare two models on the same rows, with the same families in every draw.

    Args:
        one: the scores of one model, with their families.
        other: the scores of the other model for the same rows.
        draws: number of bootstrap draws.
        seed: seed of the draws.

    Returns:
        For each metric of `Ranking`: `difference`, the value of `one` minus that of `other`; and `interval`, a
        symmetric 95 % interval `[low, high]`, or None with a `reason`. For two models with the same scores the
        interval is [0, 0].
    """
    support = min(count for count in one.holders() if count)
    values, other_values = one.metrics(), other.metrics()
    drawn, other_drawn = one.draws(draws, seed), other.draws(draws, seed)
    found: dict[str, dict[str, Any]] = {}
    for name in one.names:
        difference = float(values[name][0] - other_values[name][0])
        if not np.isfinite(difference):
            found[name] = {"difference": None, "interval": None, "reason": "it is undefined for one of the models"}
            continue
        paired = drawn[name] - other_drawn[name]
        if not paired.any() and one.is_like(other):
            found[name] = {"difference": 0.0, "interval": [0.0, 0.0]}
            continue
        spread, why = _spread(paired, support)
        why = WITHOUT_INTERVAL.get(name) or why
        found[name] = {"difference": difference, "interval": None}
        if why:
            found[name]["reason"] = why
        else:
            reach = _quantile(support) * spread
            found[name]["interval"] = [difference - reach, difference + reach]
    return found


def largest_gap(
    name: str, estimates: Mapping[str, float], draws: Mapping[str, np.ndarray] | None = None, families: int = 0
) -> dict[str, Any]:
    """Compute the largest gap between two groups.

    The largest of several gaps is large by chance alone. As in Tukey's test, the interval accounts for this: its
    half-width is the 95 % quantile of the largest gap between the groups' errors over the draws. With few families it
    is wider, by the ratio of the quantiles of Student's t and the normal distribution.

    Args:
        name: the metric, which decides the upper limit of a gap.
        estimates: `{group: value}`, at least two.
        draws: `{group: (b,)}`, the values over the same draws; None for no interval.
        families: number of families in the group with the fewest.

    Returns:
        `value`, `highest` and `lowest` (groups; None if all have the same value), and, with `draws`, the 95 %
        `interval`, in [0, 1], or in [0, inf) for the log loss. If its lower end is 0, the groups may not differ. It is
        None, with a `reason`, if the draws do not give one.
    """
    highest, lowest = (choose(estimates, key=estimates.__getitem__) for choose in (max, min))
    found: dict[str, Any] = {"value": estimates[highest] - estimates[lowest], "highest": highest, "lowest": lowest}
    if highest == lowest:  # all have the same value
        found |= {"highest": None, "lowest": None}
    if draws is None:
        return found
    errors = np.stack([draws[group] - value for group, value in estimates.items()])
    errors = errors[:, np.isfinite(errors).all(axis=0)]
    count = len(next(iter(draws.values())))
    found["interval"] = None
    if families < 2:
        found["reason"] = "a group rests on a single family, and at least two are needed"
    elif errors.shape[1] < max(2, USABLE * count):
        found["reason"] = f"only {errors.shape[1]} of {count} draws of families define it in every group"
    elif np.ptp(errors) <= 1e-12:
        found["reason"] = "it is the same in every draw of families"
    else:
        wider = _quantile(families) / float(ndtri((1 + CONFIDENCE) / 2))
        reach = wider * float(np.quantile(np.ptp(errors, axis=0), CONFIDENCE))
        most = np.inf if name == "log_loss" else 1.0
        found["interval"] = [max(0.0, found["value"] - reach), min(most, found["value"] + reach)]
    return found
