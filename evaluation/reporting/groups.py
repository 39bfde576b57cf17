"""Compare the values of a column, such as groups of people: rows of the tables, and what is printed."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ...decision_dcl import LEVELS, OPERATING_POINTS
from .names import cell as escaped
from .names import shown

EQUAL_ERRORS = OPERATING_POINTS[0]
MEASURES = ("auc", "eer", "fpr", "tpr")
ALIKE = "largest gap between two groups (if its interval starts at 0, the groups may not differ)"


def group_rows(model: str, metrics: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the metrics of the groups of every data set, one row for each group and level.

    Args:
        model: name of the model.
        metrics: the content of `metrics.json`.

    Returns:
        Dictionaries with `model`, `data_set`, `column`, `group` and `level`; `frames` and `videos`, the group's
        numbers of each; `auc`, `eer`, `fpr` and `tpr` in [0, 1], with the ends of their 95 % intervals, such as
        `auc_low` and `auc_high`; `point`, the threshold for FPR and TPR: "eer" for that of the checkpoint, or ".5" if
        it has none; `reason`, if there is no AUC; and `warning`, for example about few families. Missing values are
        None.
    """
    rows = []
    for data_set, column, by_group in _grouped(metrics):
        for level in LEVELS:
            keys, point = _keys(by_group["gap"][level])
            for group, scores in by_group["groups"].items():
                found = scores[level]
                row = {"model": model, "data_set": data_set, "column": column, "group": group, "level": level}
                row |= {f"{kind}s": scores[kind]["n"] for kind in LEVELS}
                for measure, key in keys.items():
                    low, high = found.get("intervals", {}).get(key) or (None, None)
                    row |= {measure: found.get(key), f"{measure}_low": low, f"{measure}_high": high}
                rows.append(row | {"point": point} | {key: found.get(key) for key in ("reason", "warning")})
    return rows


def gap_rows(model: str, metrics: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the largest gaps between the groups of every data set, one row for each level and measure.

    Args:
        model: name of the model.
        metrics: the content of `metrics.json`.

    Returns:
        Dictionaries with `model`, `data_set`, `column`, `level`, `measure` and `point` as in `group_rows`; `gap`, in
        [0, 1], with the ends of its 95 % interval `gap_low` and `gap_high`; `highest` and `lowest`, the groups with
        these values; `left_out`, groups for which the measure is undefined; and `reason`, if there is no gap or no
        interval. Missing values are None.
    """
    rows = []
    for data_set, column, by_group in _grouped(metrics):
        for level in LEVELS:
            keys, point = _keys(by_group["gap"][level])
            for measure, key in keys.items():
                found = by_group["gap"][level][key]
                low, high = found.get("interval") or (None, None)
                row = {"model": model, "data_set": data_set, "column": column, "level": level, "measure": measure}
                row |= {"point": point, "gap": found["value"], "gap_low": low, "gap_high": high}
                row |= {key: found.get(key) for key in ("highest", "lowest")}
                rows.append({**row, "left_out": found.get("left_out", []), "reason": found.get("reason")})
    return rows


def groups_printed(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the printed summary of the groups: for each data set and level, a table of groups and one of gaps.

    Args:
        metrics: the content of `metrics.json`.

    Returns:
        Text without a final line break; empty if there are no groups.
    """
    rows, gaps = group_rows("", metrics), gap_rows("", metrics)
    parts = []
    for (data_set, column, level), chosen in _tables(rows).items():
        table = [
            {
                "group": shown(row["group"]),
                "frames": row["frames"],
                "videos": row["videos"],
                **{_name(row, measure): _number(row, measure, 1, 3) for measure in MEASURES},
            }
            for row in chosen
        ]
        lines = [f"{shown(data_set)} by {shown(column)}, {level} level:", _aligned(table)]
        between = _tables(gaps)[data_set, column, level]
        table = [
            {
                "gap of": _name(row, row["measure"]),
                "gap": _number(row, "gap", 1, 3),
                **{end: "-" if row[end] is None else shown(row[end]) for end in ("highest", "lowest")},
            }
            for row in between
            if row["gap"] is not None
        ]
        if table:
            lines += [f"{ALIKE}:", _aligned(table)]
        parts.append("\n".join([*lines, *_sentences(chosen, between)]))
    return "\n\n".join(parts)


def groups_text(rows: Sequence[Mapping[str, Any]], gaps: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the groups as sections of Markdown, in percent.

    Args:
        rows: results of `group_rows` for all models.
        gaps: results of `gap_rows` for all models.

    Returns:
        For each data set and level, a section with the groups and one with their gaps.
    """
    parts = []
    for (data_set, column, level), chosen in _tables(rows).items():
        where = f"of {escaped(data_set)} by {escaped(column)}, {level} level"
        lines = [["model", "group", "frames", "videos", "AUC", "EER", "FPR", "TPR", "FPR and TPR at"]]
        for row in chosen:
            numbers = [_number(row, measure, 100, 1) for measure in MEASURES]
            names = [escaped(row[key]) for key in ("model", "group", "frames", "videos")]
            lines.append([*names, *numbers, row["point"]])
        parts.append(f"## Groups {where}\n\n{_markdown(lines)}")
        between = _tables(gaps)[data_set, column, level]
        lines = [["model", "gap of", "gap", "highest", "lowest"]]
        for row in between:
            names = ["-" if row[key] is None else escaped(row[key]) for key in ("highest", "lowest")]
            lines.append([escaped(row["model"]), _name(row, row["measure"]), _number(row, "gap", 100, 1), *names])
        notes = []
        for model in dict.fromkeys(row["model"] for row in between):
            of_model = ([row for row in both if row["model"] == model] for both in (chosen, between))
            own = _sentences(*of_model)
            notes += [f"- {escaped(model)}: {escaped(sentence)}" for sentence in own]
        text = f"{ALIKE[0].upper()}{ALIKE[1:]}.\n\n{_markdown(lines)}" + "".join(f"\n{note}" for note in notes)
        parts.append(f"## Gaps between the groups {where}\n\n{text}" + ("\n" if notes else ""))
    return parts


def _grouped(metrics: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, Mapping[str, Any]]]:
    found = [(data_set, levels["by_group"]) for data_set, levels in metrics.items() if "by_group" in levels]
    return [(data_set, by_group["column"], by_group) for data_set, by_group in found]


def _keys(gaps: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """Return the metric names of the measures of a level, and the threshold for FPR and TPR."""
    is_known = f"fpr_at_threshold_{EQUAL_ERRORS}" in gaps
    suffix = f"_at_threshold_{EQUAL_ERRORS}" if is_known else ""
    keys = {measure: measure + (suffix if measure in ("fpr", "tpr") else "") for measure in MEASURES}
    return keys, EQUAL_ERRORS if is_known else ".5"


def _tables(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str], list[Mapping[str, Any]]]:
    tables: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        tables.setdefault((row["data_set"], row["column"], row["level"]), []).append(row)
    return tables


def _name(row: Mapping[str, Any], measure: str) -> str:
    return measure.upper() + (f" at {row['point']}" if measure in ("fpr", "tpr") else "")


def _number(row: Mapping[str, Any], key: str, scale: int, digits: int) -> str:
    if row[key] is None:
        return "-"
    text = f"{scale * row[key]:.{digits}f}"
    if row[f"{key}_low"] is not None:
        text += f" ({scale * row[f'{key}_low']:.{digits}f} to {scale * row[f'{key}_high']:.{digits}f})"
    return text


def _sentences(rows: Sequence[Mapping[str, Any]], gaps: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return cautions about groups, and the reasons for missing gaps and intervals."""
    warned: dict[str, list[str]] = {}
    for row in rows:
        if row["warning"]:
            warned.setdefault(row["warning"], []).append(row["group"])
    found: dict[str, list[str]] = {}
    for row in gaps:
        if row["reason"]:
            what = "No gap" if row["gap"] is None else "No interval for the gap"
            said = f"{what} of {{}}: {row['reason']}"
        elif row["left_out"]:
            said = f"The gap of {{}} excludes groups for which it is undefined: {', '.join(row['left_out'])}"
        else:
            continue
        found.setdefault(said, []).append(_name(row, row["measure"]))
    cautions = [f"Caution ({', '.join(names)}): {warning}" for warning, names in warned.items()]
    return [*map(shown, cautions), *(shown(said.replace("{}", ", ".join(names), 1)) for said, names in found.items())]


def _aligned(table: Sequence[Mapping[str, Any]]) -> str:
    return pd.DataFrame(table).to_string(index=False)


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    text = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([text[0], "|---" * len(lines[0]) + "|", *text[1:]]) + "\n"
