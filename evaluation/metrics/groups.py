"""Metrics of groups, such as groups of people: those of each group, and the largest gap between two groups."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ...errors_dcl import InputError
from .bootstrap import WITHOUT_INTERVAL, largest_gap
from .sorted_scores import AT_THRESHOLDS, METRICS

logger = logging.getLogger(__name__)

MOST_GROUPS = 100  # limit for comparisons; with more methods than this, methods have no intervals
UNKNOWN = "unknown"
#: Metrics with a different meaning for a single class: the accuracy on fakes alone is their TPR.
OF_BOTH_CLASSES = ("accuracy", "log_loss", "brier", "ece")


def group_names(values: pd.Series, column: str, where: str) -> np.ndarray:
    """Return the group of each row as text; "unknown" for a missing value.

    Args:
        values: the column's value of each row.
        column: its name, for the error.
        where: the data set or table, for the error.

    Raises:
        InputError: if there are more than 100 groups.
    """
    names = values.astype(object).where(values.notna(), UNKNOWN).map(str).to_numpy()
    count = len(set(names))
    if count > MOST_GROUPS:
        raise InputError(
            f"Column {column!r} of {where}: has {count} values. Group by a column with at most {MOST_GROUPS}."
        )
    return names


def check_group_column(values: pd.Series, column: str, where: str) -> None:
    """Check that a column has groups to compare; warn about a single group.

    Args:
        values: the column's value of each row.
        column: its name, for the error.
        where: the data set or table, for the error.

    Raises:
        InputError: if no row has a value, or there are more than 100 groups.
    """
    if values.isna().all():
        raise InputError(
            f"Column {column!r} of {where}: is empty. Group by a column with values, or leave --group_by out."
        )
    names = set(group_names(values, column, where))
    if len(names) == 1:
        logger.warning(
            "Column %r of %s: every row has the value %r. With a single group there is nothing to compare.",
            column,
            where,
            *names,
        )


def compare_groups(rows: pd.DataFrame, column: str, level: Any, where: str) -> dict[str, Any]:
    """Compute the metrics of each group and the gaps between them.

    Args:
        rows: predictions of one data set.
        column: column whose values are the groups.
        level: an object that computes the metrics of some of the rows.
        where: name of the data set in errors.

    Returns:
        The content of `by_group` in `frame_and_video_metrics`.
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
        return {"value": None, "reason": "there is only one group, and a gap needs two"}
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
        reason = f"a gap needs two groups with a value, and {len(values)} of {len(groups)} have one"
        return {"value": None, "reason": f"{reason} ({left_out[0]}: {why})", "left_out": left_out}
    drawn = {} if metric in WITHOUT_INTERVAL else {g: draws[g][metric] for g in values if metric in draws[g]}
    families = min(groups[group].get("families", 0) for group in values)
    gap = largest_gap(metric, values, drawn if len(drawn) == len(values) else None, families)
    return gap | ({"left_out": left_out} if left_out else {})
