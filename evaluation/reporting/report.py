"""The report of an evaluation: one HTML file with all its pictures, which needs no other file and no network."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ...decision_dcl import LEVELS
from ...errors_dcl import InputError
from ...prepared.names import FAKE
from ..metrics.bootstrap import DRAWS
from .examples import PARTS, Looks
from .figures import check_matplotlib
from .names import is_generic, shown, was_seen
from .report_pictures import (
    Picture,
    curves_of,
    embeddings_of,
    examples_of,
    number_text,
    reliability_of,
    robustness_of,
    scores_of,
    similarities_of,
)
from .result_files import PICTURES, REPORT, complete_files, is_of_run, remove_pictures
from .summary import verdict_rows

try:
    import jinja2
except ImportError:
    jinja2 = None

TEMPLATES = Path(__file__).parent / "templates"
METRIC_NAMES = {
    "auc": "AUC",
    "eer": "EER",
    "ap": "average precision",
    "accuracy": "accuracy at .5",
    "balanced_accuracy": "balanced accuracy at .5",
    "fpr": "FPR at .5",
    "tpr": "TPR at .5",
    "tpr_at_fpr_0.05": "TPR at an FPR of 5 %",
    "tpr_at_fpr_0.01": "TPR at an FPR of 1 %",
    "tpr_at_fpr_0.001": "TPR at an FPR of 0.1 %",
    "log_loss": "log loss",
    "brier": "Brier score",
    "ece": "ECE",
}
COMPARED = ("auc", "eer", "accuracy", "fpr", "tpr")  # metrics compared between groups and models
LONGEST_LIST = 20  # in the record, where thousands of skipped rows would hide the rest


def check_report() -> None:
    """Raise an `InputError` if a library that the report needs is not installed."""
    check_matplotlib()
    if jinja2 is None:
        raise InputError("The report needs jinja2: pip install 'dcl-face-forgery[report]'.")


def write_report(
    folder: Path, looks: Mapping[str, Looks] | None = None, bootstrap: int = DRAWS, seed: int = 0
) -> Path:
    """Write `report.html` and its `pictures` from the results in a folder, without scoring again.

    The same results give the same bytes.

    Args:
        folder: folder with `predictions.parquet`, `metrics.json` and `run.json`; `robustness.json` and
            `differences.json` are included if present.
        looks: results of `look_again` by data set; without them, the report omits the pictures that need the model.
        bootstrap: number of bootstrap draws for the bands of the curves; 0 for none.
        seed: seed of the draws.

    Returns:
        The path of the report.

    Raises:
        InputError: if matplotlib or jinja2 is not installed, or a file cannot be read or written.
    """
    check_report()
    try:
        predictions = pd.read_parquet(folder / "predictions.parquet")
        metrics, run = (_read(folder / name) for name in ("metrics.json", "run.json"))
        robustness, differences = (
            _read(folder / name) if (folder / name).exists() else {}
            for name in ("robustness.json", "differences.json")
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} has no complete results ({error}). Evaluate again.") from error
    pictures: list[Picture] = []
    sets = []
    for number, (name, levels) in enumerate(metrics.items(), start=1):
        rows = predictions[predictions["dataset"] == name].reset_index(drop=True)
        robust = robustness.get("datasets", {}).get(name)
        if robust and not is_of_run(robustness, run, name):
            robust = None
        difference = differences.get("differences", {}).get(name)
        content = _data_set(name, levels, rows, run, (looks or {}).get(name), robust, bootstrap, seed)
        content |= {"anchor": f"data-{number}", "differences": difference and _differences(difference)}
        sets.append(content)
        for picture in content["pictures"]:
            picture.name = f"{number}_{_slug(name)}_{picture.name}.webp"
            pictures.append(picture)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES, encoding="utf-8"),
        autoescape=True,  # names of models, data sets, methods and groups are arbitrary text
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown, "number": number_text}
    text = environment.get_template(REPORT).render(
        model=run.get("model", folder.name),
        sets=sets,
        seen_methods=run.get("seen_methods"),
        others_are_new=not any(map(is_generic, run.get("seen_methods") or ())),
        minus=differences.get("minus"),
        looked=bool(looks),
        bootstrap=bootstrap,
        record=json.dumps(_shortened(run), indent=2),
        any_intervals=any("intervals" in levels[level] for levels in metrics.values() for level in LEVELS),
    )
    _write(folder, text, pictures)
    return folder / REPORT


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(folder: Path, text: str, pictures: Sequence[Picture]) -> None:
    with complete_files(folder, [REPORT]) as paths:
        (folder / PICTURES).mkdir(exist_ok=True)
        remove_pictures(folder / PICTURES)  # of another run
        for picture in pictures:
            (folder / PICTURES / picture.name).write_bytes(picture.content)
        paths[REPORT].write_text(text, encoding="utf-8")


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "_", name)[:40].strip("_") or "set"


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shortened(inner) for key, inner in value.items()}
    if isinstance(value, list) and len(value) > LONGEST_LIST:
        return [*map(_shortened, value[:LONGEST_LIST]), f"and {len(value) - LONGEST_LIST} more"]
    return [_shortened(inner) for inner in value] if isinstance(value, list) else value


# ---------------------------------------------------------------------------------------------------- a data set


def _data_set(
    name: str,
    levels: Mapping[str, Any],
    rows: pd.DataFrame,
    run: Mapping[str, Any],
    looks: Looks | None,
    robustness: Mapping[str, Any] | None,
    bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """Return the template variables of one data set."""
    record = run.get("datasets", {}).get(name, {})
    sections: dict[str, Any] = {
        "name": name,
        "headline": _headline(levels),
        "counts": _counts(rows),
        "warnings": _warnings(levels, record),
        "verdicts": verdict_rows({name: levels}),
        "metrics": _metric_rows(levels),
        "operating_points": _operating_points(levels),
        "methods": _method_rows(levels, run.get("seen_methods")),
        "localisation": levels.get("localisation", {}),
        "groups": _groups(levels.get("by_group")),
        "similarity": looks.similarity if looks else [],
        "parts": PARTS,
        "left_out_methods": looks.left_out_methods if looks else 0,
        "video_ids": _video_ids(looks),
    }
    drawn = {
        "curves": curves_of(name, levels, rows, bootstrap, seed),
        "scores": scores_of(name, levels, rows),
        "reliability": reliability_of(name, rows),
        "robustness": robustness_of(name, robustness),
        "examples": examples_of(name, looks),
        "embeddings": embeddings_of(name, looks),
        "similarities": similarities_of(name, looks),
    }
    sections |= drawn
    sections["pictures"] = [picture for part in drawn.values() for picture in part["pictures"]]
    return sections


def _counts(rows: pd.DataFrame) -> dict[str, int]:
    fake = rows["label"] == FAKE
    return {
        "frames": len(rows),
        "videos": int(rows["video_id"].nunique()),
        "real_frames": int((~fake).sum()),
        "fake_frames": int(fake.sum()),
        "methods": int(rows["method"][fake].nunique()),
    }


def _warnings(levels: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    found = []
    for level in LEVELS:
        if why := levels[level].get("reason"):
            found.append(f"{level.capitalize()} level: there is no AUC, since {why}.")
        if warning := levels[level].get("warning"):
            found.append(f"{level.capitalize()} level: {warning}")
    if record.get("crop_is_mixed"):
        found.append("The data set has several kinds of face crops. Their scores are not comparable with each other.")
    elif record.get("crop_matches") is False:
        found.append("The face crops differ from the model's training data. Expect worse scores.")
    elif "crop_matches" in record and record["crop_matches"] is None:
        found.append("The model does not record the face crop of its training data. The crops here may differ.")
    if skipped := record.get("skipped_corrupt", {}).get("count"):
        found.append(f"{skipped:,} images could not be decoded and were skipped.")
    if unseen := record.get("unseen_methods"):
        found.append(f"The model was not trained on {', '.join(unseen)}. Expect worse scores on these methods.")
    by_group = levels.get("by_group")
    for level in LEVELS if by_group else ():
        for metric, gap in by_group["gap"][level].items():
            if metric in COMPARED and gap.get("interval") and gap["interval"][0] > 0:
                found.append(
                    f"{level.capitalize()} level: {METRIC_NAMES[metric]} differs between the groups of "
                    f"{by_group['column']} by {gap['value']:.3f} ({gap['highest']} above {gap['lowest']}). Chance "
                    "alone does not explain this gap."
                )
    return found


def _cell(scores: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Return a number with its interval, and the reason if either is missing."""
    value = scores.get(metric)
    interval = scores.get("intervals", {}).get(metric)
    reason = None
    if value is None:
        reason = scores.get(f"{metric}_reason") or scores.get("reason")
    elif not interval:
        reasons = scores.get("interval_reasons", {})
        why = reasons.get(metric) or reasons.get("all")
        reason = why and f"no interval: {why}"
    return {"value": value, "interval": interval, "reason": reason}


def _headline(levels: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the headline numbers: AUC, and the rates at the equal-error threshold."""
    tiles = [{"name": f"{level.capitalize()} AUC", **_cell(levels[level], "auc")} for level in LEVELS]
    for level in LEVELS:
        chosen = "_at_threshold_eer" if (levels[level].get("thresholds") or {}).get("eer") is not None else ""
        where = "the equal-error threshold" if chosen else "0.5"
        for metric, name in (("fpr", "Reals flagged"), ("tpr", "Fakes flagged")):
            tiles.append({"name": f"{name} at {where}, {level}s", **_cell(levels[level], metric + chosen)})
    return tiles


def _metric_rows(levels: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = [
        {"name": label, **{level: _cell(levels[level], key) for level in LEVELS}}
        for key, label in METRIC_NAMES.items()
    ]
    for key, label in (("auc", "video AUC as in DeepfakeBench"), ("eer", "video EER as in DeepfakeBench")):
        value = levels["video"].get(f"video_{key}_deepfakebench")
        if value is not None:
            empty = {"value": None, "interval": None, "reason": None}
            rows.append({"name": label, "frame": empty, "video": {**empty, "value": value}})
    return rows


def _operating_points(levels: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for level in LEVELS:
        for name, at in (levels[level].get("thresholds") or {}).items():
            cells = {
                metric: _cell(levels[level], f"{metric}_at_threshold_{name}")
                for metric in ("fpr", "tpr", "balanced_accuracy", "accuracy")
            }
            rows.append({"name": name, "level": level, "at": at, **cells})
    return rows


def _method_rows(levels: Mapping[str, Any], seen_methods: Sequence[str] | None) -> list[dict[str, Any]]:
    rows = []
    for method, scores in levels["by_method"].items():
        seen = {None: "unknown", True: "seen", False: "unseen"}[was_seen(method, seen_methods)]
        rows.append(
            {
                "method": method,
                "seen": seen,
                "n": {level: scores[level]["n"] for level in LEVELS},
                **{level: {metric: _cell(scores[level], metric) for metric in ("auc", "eer")} for level in LEVELS},
                "tpr": _cell(scores["frame"], "tpr_at_fpr_0.05"),
            }
        )
    return rows


def _groups(by_group: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if by_group is None:
        return None
    rows = [
        {
            "group": group,
            "n": scores["frame"]["n"],
            **{level: {metric: _cell(scores[level], metric) for metric in COMPARED} for level in LEVELS},
        }
        for group, scores in by_group["groups"].items()
    ]
    gaps = [
        {"level": level, "name": METRIC_NAMES[metric], **by_group["gap"][level][metric]}
        for level in LEVELS
        for metric in COMPARED
        if metric in by_group["gap"][level]
    ]
    return {"column": by_group["column"], "rows": rows, "gaps": gaps}


def _differences(levels: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for level, found in levels.items():
        if "reason" in found:
            rows.append({"level": level, "name": "all", "difference": None, "interval": None, **found})
        else:
            rows += [
                {"level": level, "name": METRIC_NAMES[metric], "reason": None, **found[metric]}
                for metric in COMPARED
                if metric in found
            ]
    return rows


def _video_ids(looks: Looks | None) -> list[dict[str, Any]]:
    """Return the frames of the example sheets, as text."""
    if looks is None:
        return []
    return [
        {
            "why": example.why,
            "kind": "fake" if example.label == FAKE else "real",
            "method": example.method,
            "video_id": example.video_id,
            "frame": example.frame,
            "p_fake": example.p_fake,
        }
        for example in looks.examples
    ]


# ------------------------------------------------------------------------------------------------------ pictures
