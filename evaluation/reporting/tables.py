"""Tables over data sets, methods and models, as papers print them, with published numbers on request.

`table.json` and `table.csv` have one row for every model, data set, method and level. `table.md` has three kinds of
tables: models by data sets, models by the methods of a data set, and models on methods that they were not trained on
while they were trained on others of the same data set. Groups and their gaps have lists of their own in `table.json`
and sections in `table.md`. `table.csv` does not have them, because they divide the same rows in another way.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ...decision_dcl import LEVELS
from .groups import gap_rows, group_rows, groups_text
from .names import cell as escaped
from .names import how_much_was_seen
from .result_files import TABLE_FILES, complete_files

PUBLISHED = Path(__file__).with_name("published.json")
MEASURES = ("auc", "eer", "accuracy", "fpr")
ALL = "all"
MARKS = {"seen": " *", "partly": " (*)", "unseen": "", None: ""}
#: Patterns for the data sets of the published tables; they match names in lower case, letters and digits only.
NAMES = {
    "FF++": r"(ff|ffpp|faceforensics|faceforensicspp)(c23|hq)?",
    "FF++ (c40)": r"(ff|ffpp|faceforensics|faceforensicspp)(c40|lq)",
    "DFD": r"(dfd|deepfakedetection)(c23|hq)?",
    "DFDC": r"dfdc",
    "DFDC-P": r"dfdc(p|preview)",
    "WildDeepfake": r"wilddeepfakes?|wdf",
    "Celeb-DF": r"(celebdf|cdf)(v2)?",
    "DiffSwap": r"diffswap",
}


@dataclass
class Result:
    """The metrics of one model, or of one table of predictions."""

    model: str
    metrics: Mapping[str, Mapping[str, Any]]
    """The content of `metrics.json`."""
    seen_methods: Sequence[str] | None = None
    """Methods in the model's training data; None if unknown."""


def result_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return the results, one row for each model, data set, method and level.

    Returns:
        Dictionaries with `model`; `trained_on`, its training methods; `data_set`; `method`, or "all" for all fakes;
        `level`; `seen`, whether the model was trained on the tested methods: "seen", "partly" or "unseen", see
        `was_seen`; `auc`, `eer`, `accuracy` and `fpr` (the last two at .5) in [0, 1], with the ends of their 95 %
        intervals, such as `auc_low` and `auc_high`; `n`; `reason`, if there is no AUC; and `published` False, without
        `source` and `published_as`. Unknown and missing values are None.
    """
    rows = []
    for result in results:
        for data_set, levels in result.metrics.items():
            methods = list(levels["by_method"])
            for method, scores in [(ALL, levels), *levels["by_method"].items()]:
                tested = methods if method == ALL else [method]
                rows += [
                    {
                        "model": result.model,
                        "trained_on": None if result.seen_methods is None else list(result.seen_methods),
                        "data_set": data_set,
                        "method": method,
                        "level": level,
                        "seen": how_much_was_seen(tested, result.seen_methods),
                        **_numbers(scores[level]),
                        "n": scores[level]["n"],
                        "reason": scores[level].get("reason"),
                        "published": False,
                        "source": None,
                        "published_as": None,
                    }
                    for level in LEVELS
                ]
    return rows


def _numbers(scores: Mapping[str, Any]) -> dict[str, float | None]:
    numbers = {}
    for measure in MEASURES:
        low, high = scores.get("intervals", {}).get(measure) or (None, None)
        numbers |= {measure: scores.get(measure), f"{measure}_low": low, f"{measure}_high": high}
    return numbers


def published_rows(kind: str, data_sets: Mapping[str, Iterable[str]] | None = None) -> list[dict[str, Any]]:
    """Return published numbers in the form of `result_rows`.

    Args:
        kind: the published table: "across_data_sets", "across_methods" or "trained_on_others".
        data_sets: the evaluated data sets, and the methods of each. If the name of one matches a published data set,
            the rows use its names of data set and methods; if several match, each gets its own rows.

    Returns:
        Rows with `published` True, the `source`, `published_as`, the published name of the data set, and the level
        "frame", or None if the source does not state it. Data sets without a match keep their published names.
    """
    content = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    table, sources = content[kind], content["sources"]
    rows = []
    for row in table["rows"]:
        for name, method, cell, trained_on, seen in _cells(kind, table, row):
            known = find_published(name, data_sets or {}) or {name: []}
            for data_set, methods in known.items():
                spelled = {own.lower(): own for own in methods}
                percents = {measure: cell.get(measure) for measure in MEASURES}
                rows.append(
                    {
                        "model": row["model"],
                        "trained_on": [spelled.get(other.lower(), other) for other in trained_on],
                        "data_set": data_set,
                        "method": spelled.get(method.lower(), method),
                        "level": None if row["source"] in content["levels_not_known"] else "frame",
                        "seen": seen,
                        **_numbers({key: value and round(value / 100, 6) for key, value in percents.items()}),
                        "n": None,
                        "reason": None,
                        "published": True,
                        "source": sources[row["source"]],
                        "published_as": name,
                    }
                )
    return rows


def _cells(kind: str, table: Mapping[str, Any], row: Mapping[str, Any]) -> Iterable[tuple]:
    """Yield data set, method, numbers, training methods, and "seen" or "unseen" for each cell of a row."""
    for name, cell in row["cells"].items():
        if kind == "across_data_sets":
            yield name, ALL, cell, table["trained_on"], "seen" if name in table["seen"] else "unseen"
        elif kind == "across_methods":
            yield table["data_set"], name, cell, row["trained_on"], "seen" if name in row["trained_on"] else "unseen"
        else:
            for method, numbers in cell.items():
                yield name, method, numbers, [other for other in table["methods"] if other != method], "unseen"


def find_published(name: str, data_sets: Mapping[str, Iterable[str]]) -> dict[str, Iterable[str]]:
    """Return the data sets whose names match a data set of the published tables."""
    return {
        own: methods
        for own, methods in data_sets.items()
        if re.fullmatch(NAMES[name], re.sub(r"[^a-z0-9]", "", own.rstrip("/").rsplit("/", 1)[-1].lower()))
    }


def write_tables(results: Sequence[Result], folder: Path, published: bool = False) -> str:
    """Write `table.json`, `table.csv` and `table.md`.

    Args:
        results: results of all models, in display order.
        folder: folder for the files; created if missing.
        published: add the published numbers.

    Returns:
        The text to print: `table.md`, with published numbers only for the evaluated data sets and methods.

    Raises:
        InputError: if a file cannot be written.
    """
    own = result_rows(results)
    across = [row for row in own if row["method"] == ALL]
    by_method = [row for row in own if row["method"] != ALL]
    beside: dict[str, list[dict[str, Any]]] = {"across_data_sets": [], "across_methods": [], "trained_on_others": []}
    notes = []
    if published:
        data_sets: dict[str, set[str]] = {}
        for row in own:
            data_sets.setdefault(row["data_set"], set()).add(row["method"])
        beside = {kind: published_rows(kind, data_sets) for kind in beside}
        notes = json.loads(PUBLISHED.read_text(encoding="utf-8"))["notes"]
    rows = own + [row for kind in beside.values() for row in kind]
    groups = [row for result in results for row in group_rows(result.model, result.metrics)]
    gaps = [row for result in results for row in gap_rows(result.model, result.metrics)]
    text = tables_text(across, by_method, beside, notes, groups_text(groups, gaps))
    flat = pd.DataFrame(rows)
    flat["trained_on"] = [None if methods is None else ", ".join(methods) for methods in flat["trained_on"]]
    content = {"rows": rows, "groups": groups, "gaps": gaps, "notes": notes}
    contents = {
        "table.json": json.dumps(content, indent=2, allow_nan=False) + "\n",
        "table.csv": flat.to_csv(index=False),
        "table.md": text,
    }
    with complete_files(folder, TABLE_FILES) as paths:
        for name, content in contents.items():
            paths[name].write_text(content, encoding="utf-8")
    measured = {(row["data_set"], row["method"]) for row in own}
    near = {
        kind: [row for row in rows if (row["data_set"], row["method"]) in measured] for kind, rows in beside.items()
    }
    printed = tables_text(across, by_method, near, notes, groups_text(groups, gaps))
    if published and not any(near.values()):
        names = ", ".join(escaped(name) for name in data_sets)
        printed += f"\nThere are no published numbers for {names}. See table.md for all published numbers.\n"
    return printed


def tables_text(
    across: Sequence[Mapping[str, Any]],
    by_method: Sequence[Mapping[str, Any]],
    beside: Mapping[str, Sequence[Mapping[str, Any]]],
    notes: Sequence[str] = (),
    groups: Sequence[str] = (),
) -> str:
    """Return the wide tables as Markdown.

    Args:
        across: rows for all fakes of a data set.
        by_method: rows for single methods.
        beside: published rows by kind of table.
        notes: notes on the published rows.
        groups: sections on groups.
    """
    sources = list(dict.fromkeys(row["source"] for rows in beside.values() for row in rows))
    parts = [
        "All numbers are percentages. AUCs have 95 % intervals in brackets, if available. * marks data that the model "
        "was trained on, and (*) data of which it was trained on some methods only: these numbers do not measure "
        'generalisation. If the training data of a model is unknown ("?"), nothing is marked.\n'
    ]
    for level in LEVELS:
        rows = [row for row in [*across, *beside["across_data_sets"]] if row["level"] == level]
        parts.append(f"## Across data sets, {level} level: AUC / EER\n\n{_wide(rows, sources, _data_set, _auc_eer)}")
    frames = [row for row in [*by_method, *beside["across_methods"]] if row["level"] == "frame"]
    for data_set in dict.fromkeys(row["data_set"] for row in frames):
        rows = [row for row in frames if row["data_set"] == data_set]
        if len({row["method"] for row in rows}) > 1:
            title = f"## Across the methods of {escaped(data_set)}, frame level: AUC against all reals"
            parts.append(f"{title}\n\n{_wide(rows, sources, _method, _auc)}")
    rows = [row for row in by_method if row["level"] == "frame" and _is_trained_on_others(row, by_method)]
    rows += beside["trained_on_others"]
    if rows:
        title = "## Trained on other methods, tested on one, frame level: accuracy at .5 / AUC"
        parts.append(f"{title}\n\n{_wide(rows, sources, _data_set_and_method, _accuracy_auc)}")
    parts += groups
    if sources:
        listed = [f"- [{number}] {source}" for number, source in enumerate(sources, 1)]
        parts.append("## Published numbers\n\n" + "\n".join([*listed, "", *(f"- {note}" for note in notes)]) + "\n")
    return "\n".join(parts)


def _is_trained_on_others(row: Mapping[str, Any], by_method: Sequence[Mapping[str, Any]]) -> bool:
    return row["seen"] == "unseen" and any(
        other["seen"] == "seen" and (other["model"], other["data_set"]) == (row["model"], row["data_set"])
        for other in by_method
    )


def _wide(
    rows: Sequence[Mapping[str, Any]],
    sources: Sequence[str],
    column: Callable[[Mapping[str, Any]], str],
    cell: Callable[[Mapping[str, Any]], str],
) -> str:
    """Format rows as a Markdown table: one line per model and training data, published ones last."""
    columns = list(dict.fromkeys(column(row) for row in rows))
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        lines.setdefault(_line(row, sources), {})[column(row)] = cell(row)
    table = [["model", "trained on", *columns]]
    table += [[*line, *(cells.get(name, "-") for name in columns)] for line, cells in lines.items()]
    text = ["| " + " | ".join(values) + " |" for values in table]
    return "\n".join([text[0], "|---" * len(table[0]) + "|", *text[1:]]) + "\n"


def _line(row: Mapping[str, Any], sources: Sequence[str]) -> tuple[str, str]:
    model = escaped(row["model"])
    if row["published"]:
        model += f" (published) [{sources.index(row['source']) + 1}]"
    if row["trained_on"] is None:
        return model, "?"
    if row["published"] and len(row["trained_on"]) > 1:  # different ones in each column
        return model, "the other methods"
    return model, escaped(", ".join(row["trained_on"])) or "nothing"


def _data_set(row: Mapping[str, Any]) -> str:
    return escaped(row["data_set"])


def _method(row: Mapping[str, Any]) -> str:
    return escaped(row["method"])


def _data_set_and_method(row: Mapping[str, Any]) -> str:
    return escaped(f"{row['data_set']}: {row['method']}")


def _percent(row: Mapping[str, Any], measure: str, with_interval: bool = False) -> str:
    if row[measure] is None:
        return "-"
    text = f"{100 * row[measure]:.2f}"
    if with_interval and row[f"{measure}_low"] is not None:
        text += f" ({100 * row[f'{measure}_low']:.1f} to {100 * row[f'{measure}_high']:.1f})"
    return text


def _auc(row: Mapping[str, Any]) -> str:
    return _percent(row, "auc", True) + MARKS[row["seen"]]


def _auc_eer(row: Mapping[str, Any]) -> str:
    return f"{_percent(row, 'auc', True)} / {_percent(row, 'eer')}{MARKS[row['seen']]}"


def _accuracy_auc(row: Mapping[str, Any]) -> str:
    return f"{_percent(row, 'accuracy')} / {_percent(row, 'auc', True)}"
