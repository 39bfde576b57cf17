"""Metrics of groups, such as groups of people: each by itself, and the largest gap between two of them."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ...errors_dcl import InputError
from .bootstrap import WITHOUT_INTERVAL, largest_gap
from .ranking import AT_THRESHOLDS, METRICS

logger = logging.getLogger(__name__)

MOST_GROUPS = 100  # whose values are compared; of more methods than that, none has intervals
UNKNOWN = "unknown"
#: Of one class these are another thing than of both: the accuracy on fakes alone is their TPR.
OF_BOTH_CLASSES = ("accuracy", "log_loss", "brier", "ece")


def group_names(values: pd.Series, column: str, where: str) -> np.ndarray:
    """Return the groups that the values of a column stand for, as text; "unknown" where there is none.

    Args:
        values: of each row.
        column: its name, for the error.
        where: of what, for the error.

    Raises:
        InputError: if they are more than 100.
    """
    names = values.astype(object).where(values.notna(), UNKNOWN).map(str).to_numpy()
    count = len(set(names))
    if count > MOST_GROUPS:
        raise InputError(
            f"the column {column!r} of {where} has {count} values: group by one with at most {MOST_GROUPS}."
        )
    return names


def check_group_column(values: pd.Series, column: str, where: str) -> None:
    """Check that a column has groups to compare; warn if it has a single one.

    Args:
        values: of each row.
        column: its name, for the error.
        where: of what, for the error.

    Raises:
        InputError: if no row has a value, or they are more than 100.
    """
    if values.isna().all():
        raise InputError(
            f"the column {column!r} of {where} is empty, there is no group to compare: group by a column with values, "
            "or leave --group_by out."
        )
    names = set(group_names(values, column, where))
    if len(names) == 1:
        logger.warning(
            "the column %r of %s has the value %r in every row: a gap takes two groups, and there is none.",
            column,
            where,
            *names,
        )


def compare_groups(rows: pd.DataFrame, column: str, level: Any, where: str) -> dict[str, Any]:
    """Compute the metrics of each group and the gaps between them.

    Args:
        rows: predictions of one data set.
        column: whose values are the groups.
        level: computes the metrics of some of the rows.
        where: names the data set in errors.

    Returns:
        What `frame_and_video_metrics` puts under `by_group`.
    """
    values = group_names(rows[column], column, where)
    groups, draws = {}, {}
    for group in sorted(set(values)):
        draws[group] = {}
        groups[group] = level.metrics(values == group, draws[group])
    gaps = {}
    for which in ("frame", "video"):
        points = [name for name, at in sorted((level.thresholds.get(which) or {}).items()) if at is not None]
        names = [f"{name}_at_threshold_{point}" for point in points for name in AT_THRESHOLDS]
        scores = {group: levels[which] for group, levels in groups.items()}
        drawn = {group: draws[group].get(which, {}) for group in groups}
        gaps[which] = {metric: _gap(metric, scores, drawn) for metric in (*METRICS, *names)}
    return {"column": column, "groups": groups, "gap": gaps}


def _gap(
    metric: str, groups: Mapping[str, Mapping[str, Any]], draws: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, Any]:
    """Compare the groups of one level by one metric."""
    if len(groups) == 1:
        return {"value": None, "reason": "there is one group only: a gap takes two"}
    takes_both = metric.split("_at_threshold_")[0] in OF_BOTH_CLASSES
    values = {
        group: scores[metric]
        for group, scores in groups.items()
        if scores.get(metric) is not None and not (takes_both and "reason" in scores)
    }
    left_out = [group for group in groups if group not in values]
    if len(values) < 2:
        first = groups[left_out[0]]
        why = first.get(f"{metric}_reason") or first.get("reason")
        reason = f"a gap takes two groups that define it, and {len(values)} of {len(groups)} do"
        return {"value": None, "reason": f"{reason}; of {left_out[0]}, {why}", "left_out": left_out}
    drawn = {} if metric in WITHOUT_INTERVAL else {g: draws[g][metric] for g in values if metric in draws[g]}
    families = min(groups[group].get("families", 0) for group in values)
    gap = largest_gap(metric, values, drawn if len(drawn) == len(values) else None, families)
    return gap | ({"left_out": left_out} if left_out else {})
