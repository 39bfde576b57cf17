"""What the command says of an evaluation in the end, and by how much models differ."""

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

#: What the split is called on which checkpoints and thresholds are chosen.
#: Splits that train a model, or choose its checkpoint and thresholds.
USED = ("dev", "train", "training", "val", "valid", "validation")


def print_result(
    results: Sequence[Result],
    folders: Sequence[Path],
    splits: Collection[str],
    bootstrap: int,
    seed: int,
    cautions: Sequence[str] = (),
) -> None:
    """Print what the last of some results is, and by how much it differs from the first.

    Args:
        results: those that there are, in the order of `folders`.
        folders: where the results go.
        splits: which splits the rows of the last one are of, as far as that is known.
        bootstrap: how often families are drawn for the intervals of differences; 0 for no differences.
        seed: for the draws.
        cautions: what else a reader of the numbers must know.
    """
    result, folder = results[-1], folders[len(results) - 1]
    print(f"\n{result.model}")
    print(summarize(result.metrics, result.seen_methods).to_string(index=False, na_rep="-", float_format="%.3f"))
    verdicts = verdict_rows(result.metrics)
    if verdicts:
        print("\nverdicts of all rows, without abstention:")
        print(pd.DataFrame(verdicts).to_string(index=False))
    points = at_operating_points(result.metrics)
    if len(points):
        print("\nat the operating points of the checkpoint, chosen on its validation split:")
        print(points.to_string(index=False, na_rep="-", float_format="%.3f"))
    if groups := groups_printed(result.metrics):
        print(f"\n{groups}\n")
    for dataset, levels in result.metrics.items():
        if why := levels["frame"].get("reason"):
            print(f"{dataset} gives no AUC: {why}{_rates(levels)}")
        elif why := levels["video"].get("reason"):
            print(f"{dataset} gives no AUC of videos: {why}")
        for level in LEVELS:
            if warning := levels[level].get("warning"):
                print(f"caution, {dataset}, {level} level: {warning}")
    for caution in cautions:
        print(f"caution: {caution}")
    for split in sorted(split for split in splits if split.lower() in USED):
        print(
            f"caution: if this model was trained on the split {split!r}, or its checkpoint and thresholds were chosen "
            "on it, the scores are too good: report those of the test split"
        )
    if len(results) > 1 and bootstrap:
        write_differences(folders[0], folder, results[0].model, bootstrap, seed)
    print(f"metrics, predictions and the record of the run are in {folder}")


def write_differences(first: Path, other: Path, first_name: str, bootstrap: int, seed: int) -> None:
    """Write `differences.json`: by how much a model differs from the first one on the same rows; print the AUC's.

    Where tables were made elsewhere, the same rows are those that both have; without any, that is said instead.

    Args:
        first: the results of the first model.
        other: those of the other; there the file goes.
        first_name: what the first model is called.
        bootstrap: how often families are drawn for the intervals.
        seed: for the draws.
    """
    tables = [pd.read_parquet(folder / "predictions.parquet") for folder in (other, first)]
    try:
        shared = shared_rows(*tables)
    except InputError as error:  # the results of the two stand without it
        print(f"nothing is compared with {first_name}: {error}")
        return
    rows = len(shared[0])
    if any(len(table) > rows for table in tables):
        print(
            f"compared with {first_name} on the {rows} rows that both have, of {len(tables[0])} and {len(tables[1])}"
        )
    differences = compare_models(*shared, bootstrap, seed)
    text = json.dumps({"minus": first_name, "rows": rows, "differences": differences}, indent=2, allow_nan=False)
    with complete_files(other, [DIFFERENCES]) as paths:
        paths[DIFFERENCES].write_text(text + "\n", encoding="utf-8")
    for dataset, levels in differences.items():
        for level, found in levels.items():
            if interval := found.get("auc", {}).get("interval"):
                print(
                    f"{level} AUC on {dataset}, minus that of {first_name}: {found['auc']['difference']:+.3f} "
                    f"({interval[0]:+.3f} to {interval[1]:+.3f})"
                )


def summarize(metrics: dict[str, dict[str, Any]], seen_methods: Sequence[str] | None) -> pd.DataFrame:
    """Make the table that is printed in the end.

    Args:
        metrics: the content of `metrics.json`.
        seen_methods: the methods that the model was trained on; None if it does not say.

    Returns:
        One row a data set and one for each of its methods: whether the model was trained on the method, a dash where
        that is not known, and AUC and EER at frame and AUC at video level, each AUC with its 95 % interval if there
        are any.
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
        One row a data set, level and class, of the checkpoints that give verdicts: how many are flagged, inconclusive
        and not flagged, with their shares in percent, as text.
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
    """Make the table of how often the checkpoint is right at its own thresholds.

    Args:
        metrics: the content of `metrics.json`.

    Returns:
        One row a data set, level and threshold that is known.
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
    """Say what there is without both kinds: how many of the reals, or of the fakes, are flagged."""
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
