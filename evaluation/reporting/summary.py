"""Printed summary of an evaluation, and differences between models."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ...decision_dcl import LEVELS
from ...errors_dcl import InputError
from ..metrics.levels import compare_models
from ..prediction_files import shared_rows
from .groups import groups_printed
from .names import was_seen
from .result_files import DIFFERENCES, complete_files
from .tables import Result

#: Names of splits used to train a model, or to select its checkpoint and thresholds.
USED = ("dev", "train", "training", "val", "valid", "validation")


def print_result(
    results: Sequence[Result],
    folders: Sequence[Path],
    splits: Collection[str],
    bootstrap: int,
    seed: int,
    cautions: Sequence[str] = (),
) -> None:
    """Print the last of the results, and its differences from the first.

    Args:
        results: the results so far, in the order of `folders`.
        folders: folders of the results.
        splits: known splits of the rows of the last result.
        bootstrap: number of bootstrap draws for the intervals of differences; 0 for no differences.
        seed: seed of the draws.
        cautions: further cautions about the numbers.
    """
    result, folder = results[-1], folders[len(results) - 1]
    print(f"\n{result.model}")
    print(summarize(result.metrics, result.seen_methods).to_string(index=False, na_rep="-", float_format="%.3f"))
    verdicts = verdict_rows(result.metrics)
    if verdicts:
        print("\nVerdicts on all rows, without abstention:")
        print(pd.DataFrame(verdicts).to_string(index=False))
    points = at_operating_points(result.metrics)
    if len(points):
        print("\nOperating points of the checkpoint, chosen on its validation split:")
        print(points.to_string(index=False, na_rep="-", float_format="%.3f"))
    if groups := groups_printed(result.metrics):
        print(f"\n{groups}\n")
    for dataset, levels in result.metrics.items():
        if why := levels["frame"].get("reason"):
            print(f"{dataset}: no AUC, since {why}{_rates(levels)}")
        elif why := levels["video"].get("reason"):
            print(f"{dataset}: no video AUC, since {why}")
        for level in LEVELS:
            if warning := levels[level].get("warning"):
                print(f"Caution ({dataset}, {level} level): {warning}")
    for caution in cautions:
        print(f"Caution: {caution}")
    for split in sorted(split for split in splits if split.lower() in USED):
        print(
            f"Caution: if the split {split!r} was used to train this model, or to select its checkpoint and "
            "thresholds, the scores are too high. Report scores on the test split."
        )
    if len(results) > 1 and bootstrap:
        write_differences(folders[0], folder, results[0].model, bootstrap, seed)
    print(f"Metrics, predictions and record of the run: {folder}")


def write_differences(first: Path, other: Path, first_name: str, bootstrap: int, seed: int) -> None:
    """Write `differences.json`, the metrics of a model minus those of the first on shared rows; print those of AUC.

    Without shared rows, the function prints the reason and writes nothing.

    Args:
        first: results folder of the first model.
        other: results folder of the other model, which gets the file.
        first_name: name of the first model.
        bootstrap: number of bootstrap draws for the intervals.
        seed: seed of the draws.
    """
    tables = [pd.read_parquet(folder / "predictions.parquet") for folder in (other, first)]
    try:
        shared = shared_rows(*tables)
    except InputError as error:  # both results are valid without a comparison
        print(f"No comparison with {first_name}: {error}")
        return
    rows = len(shared[0])
    if any(len(table) > rows for table in tables):
        print(f"Comparison with {first_name} on {rows} shared rows, of {len(tables[0])} and {len(tables[1])}")
    differences = compare_models(*shared, bootstrap, seed)
    text = json.dumps({"minus": first_name, "rows": rows, "differences": differences}, indent=2, allow_nan=False)
    with complete_files(other, [DIFFERENCES]) as paths:
        paths[DIFFERENCES].write_text(text + "\n", encoding="utf-8")
    for dataset, levels in differences.items():
        for level, found in levels.items():
            if interval := found.get("auc", {}).get("interval"):
                print(
                    f"Difference in {level} AUC on {dataset} from {first_name}: {found['auc']['difference']:+.3f} "
                    f"({interval[0]:+.3f} to {interval[1]:+.3f})"
                )


def summarize(metrics: dict[str, dict[str, Any]], seen_methods: Sequence[str] | None) -> pd.DataFrame:
    """Make the printed summary table.

    Args:
        metrics: the content of `metrics.json`.
        seen_methods: methods in the model's training data; None if not recorded.

    Returns:
        One row per data set and one for each of its methods: whether the model was trained on the method (a dash if
        unknown), frame AUC, frame EER and video AUC, with 95 % intervals of the AUCs if available.
    """
    rows = []
    for dataset, levels in metrics.items():
        for method, scores in [("all", levels), *levels["by_method"].items()]:
            seen = None if method == "all" else was_seen(method, seen_methods)
            rows.append(
                {
                    "dataset": dataset,
                    "method": method,
                    "trained on": {None: "-", True: "seen", False: "unseen"}[seen],
                    "frame AUC": scores["frame"]["auc"],
                    "frame 95 %": _text(scores["frame"]),
                    "frame EER": scores["frame"]["eer"],
                    "video AUC": scores["video"]["auc"],
                    "video 95 %": _text(scores["video"]),
                }
            )
    numbers = ["frame AUC", "frame EER", "video AUC"]
    table = pd.DataFrame(rows).astype(dict.fromkeys(numbers, float))
    return table.drop(columns=[name for name in ("frame 95 %", "video 95 %") if table[name].isna().all()])


def verdict_rows(metrics: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Make the table of the verdicts on reals and fakes.

    Args:
        metrics: the content of `metrics.json`.

    Returns:
        One row per data set, level and class, if the checkpoint gives verdicts: the numbers of flagged, inconclusive
        and not flagged, with percentages, as text.
    """
    rows = []
    for dataset, levels in metrics.items():
        for level in LEVELS:
            found = levels[level].get("verdicts", {})
            for truth in ("real", "fake"):
                counts = found.get(truth, {})
                if total := sum(counts.values()):
                    texts = {name.replace("_", " "): f"{n} ({n / total:.0%})" for name, n in counts.items()}
                    rows.append({"dataset": dataset, "level": level, "truth": truth, **texts})
    return rows


def at_operating_points(metrics: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """Make the table of accuracy, FPR and TPR at the checkpoint's own thresholds.

    Args:
        metrics: the content of `metrics.json`.

    Returns:
        One row per data set, level and known threshold.
    """
    rows = []
    for dataset, levels in metrics.items():
        for level in LEVELS:
            scores = levels[level]
            for name, at in scores.get("thresholds", {}).items():
                if at is not None:
                    row = {"dataset": dataset, "level": level, "point": name, "flagged from p_fake": at}
                    shown = {"accuracy": "accuracy", "fpr": "FPR", "tpr": "TPR"}
                    rows.append(row | {shown[key]: scores[f"{key}_at_threshold_{name}"] for key in shown})
    return pd.DataFrame(rows).astype(dict.fromkeys(("accuracy", "FPR", "TPR"), float) if rows else {})


def _rates(levels: dict[str, Any]) -> str:
    """Return FPR or TPR as text, for data with a single class."""
    found = [
        f"{rate.upper()} {levels[level][rate]:.3f} ({levels[level]['n']} {level}s)"
        for rate in ("fpr", "tpr")
        for level in LEVELS
        if levels[level].get(rate) is not None
    ]
    return f"; at .5, {', '.join(found)}" if found else ""


def _text(scores: dict[str, Any]) -> str | None:
    ends = scores.get("intervals", {}).get("auc")
    return None if ends is None else "{:.3f}-{:.3f}".format(*ends)
