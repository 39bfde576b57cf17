"""Robustness of a checkpoint to perturbed pictures: AUC by type and level, beside that of clean pictures."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm
from transformers import BaseImageProcessor, PreTrainedModel

from ..decision_dcl import LEVELS as UNITS
from ..errors_dcl import InputError
from ..prepared.splits import PreparedSplit
from .metrics.levels import frame_and_video_metrics
from .reporting.figures import draw_robustness
from .reporting.names import cell
from .reporting.records import OF_METRICS, OF_MODELS, OF_PICTURES, versions
from .reporting.result_files import ROBUSTNESS_FILES, complete_files
from .results import METRIC_COLUMNS, open_work_folder
from .scoring.checkpoints import Checkpoint
from .scoring.parts import remove_work_folders
from .scoring.perturbations import LEVELS, TYPES, Perturbation
from .scoring.processes import meet, process_index

logger = logging.getLogger(__name__)


def evaluate_robustness(
    checkpoint: Checkpoint,
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    sets: Sequence[PreparedSplit],
    clean: Mapping[str, Mapping[str, Any]],
    folder: Path,
    types: Sequence[str],
    seed: int = 0,
    batch_size: int = 32,
    num_workers: int = 0,
    skip_corrupt: bool = False,
    keep_parts: bool = False,
) -> dict[str, Any]:
    """Score data sets again for each type and level of perturbation, and write the results.

    `robustness.json` holds the returned dictionary, `robustness.csv` one row per cell, `robustness.md` the tables, and
    `robustness.png` the heat map. The old files remain until a run is complete. Predictions are made in parts, as in
    `evaluate_checkpoint`.

    Args:
        checkpoint: origin of the model, for the record.
        model: result of `load_checkpoint`.
        processor: its image processor.
        sets: result of `load_splits`.
        clean: result of `evaluate_checkpoint` for these sets.
        folder: existing folder for the files.
        types: result of `find_types`.
        seed: seed of the perturbations.
        batch_size: images in a batch.
        num_workers: processes that decode, perturb and resize.
        skip_corrupt: skip rows that cannot be decoded.
        keep_parts: as for `evaluate_checkpoint`.

    Returns:
        `{"model", "revision", "seed", "versions", "types", "datasets"}`; `types` has the meaning of each type's
        levels, and `datasets` is `{name: {"fingerprint", "clean": {"frame": {"auc", "n"}, "video": {...}}, "types":
        {type: {"levels": [{"level", "value", "frame": {...}, "video": {...}}, ...], "mean": {"frame", "video"}}}}}`.
        An undefined AUC is None, with a `reason`, and the mean of its type is then None, too.

    Raises:
        InputError: if a row cannot be decoded, or a file cannot be written.
    """
    datasets = {}
    cells = [(name, level) for name in types for level in LEVELS]
    with open_work_folder(folder, checkpoint, model, batch_size, seed) as work:
        for data in sets:
            results: dict[str, Any] = {name: {"levels": []} for name in types}
            for name, level in tqdm(cells, desc=f"{data.name}, perturbed", unit=" cells"):
                change = Perturbation(name, level, seed)
                parts = work.predict(model, processor, data, batch_size, num_workers, skip_corrupt, change=change)
                if process_index() == 0:
                    rows = parts.read(METRIC_COLUMNS).to_pandas()
                    scores = frame_and_video_metrics(rows, bootstrap=0)[data.name]
                    results[name]["levels"].append({"level": level, "value": change.value} | _areas(scores))
            if process_index() == 0:
                for result in results.values():
                    result["mean"] = {unit: _mean(result["levels"], unit) for unit in UNITS}
            datasets[data.name] = {
                "fingerprint": data.fingerprint,
                "clean": _areas(clean[data.name]),
                "types": results,
            }
        datasets = meet(datasets)[0]
    robustness = {
        "model": checkpoint.name,
        "revision": checkpoint.revision,
        "seed": seed,
        # Includes the libraries that encode and draw, since releases may differ slightly.
        "versions": versions(*OF_MODELS, *OF_METRICS, *OF_PICTURES),
        "types": {name: {"parameter": TYPES[name].parameter, "values": TYPES[name].values} for name in types},
        "datasets": datasets,
    }
    if process_index() == 0:
        _write(robustness, folder)
        if not keep_parts:
            remove_work_folders(folder)
    return robustness


def _areas(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        unit: {name: scores[unit][name] for name in ("auc", "n", "reason") if name in scores[unit]} for unit in UNITS
    }


def _mean(levels: Sequence[Mapping[str, Any]], unit: str) -> float | None:
    areas = [level[unit]["auc"] for level in levels]
    return None if None in areas else sum(areas) / len(areas)


def robustness_rows(robustness: Mapping[str, Any]) -> pd.DataFrame:
    """Return the result of `evaluate_robustness` as a table: one row per cell, clean pictures as level 0."""
    rows = []
    for dataset, results in robustness["datasets"].items():
        rows.append(_row(dataset, "clean", "", {"level": 0, "value": None} | results["clean"]))
        for name, result in results["types"].items():
            parameter = robustness["types"][name]["parameter"]
            rows += [_row(dataset, name, parameter, level) for level in result["levels"]]
    return pd.DataFrame(rows)


def _row(dataset: str, name: str, parameter: str, level: Mapping[str, Any]) -> dict[str, Any]:
    row = {"dataset": dataset, "type": name, "parameter": parameter, "level": level["level"], "value": level["value"]}
    return row | {f"{unit}_{number}": level[unit][number] for unit in UNITS for number in ("auc", "n")}


def robustness_tables(robustness: Mapping[str, Any]) -> str:
    """Return the result of `evaluate_robustness` as Markdown: frame and video AUC of each data set."""
    tables = []
    for dataset, results in robustness["datasets"].items():
        for unit in UNITS:
            clean = results["clean"][unit]
            lines = [
                f"{cell(dataset)}: {unit} AUC by type and level of perturbation ({clean['n']} {unit}s)\n",
                f"| type (level 1 to 5) | clean | {' | '.join(map(str, LEVELS))} | mean of 1 to 5 |",
                "|---" * (len(LEVELS) + 3) + "|",
            ]
            for name, result in results["types"].items():
                values = ", ".join(f"{level['value']:g}" for level in result["levels"])
                areas = [clean["auc"], *(level[unit]["auc"] for level in result["levels"]), result["mean"][unit]]
                shown = ["-" if area is None else f"{area:.3f}" for area in areas]
                label = cell(f"{name} ({robustness['types'][name]['parameter']} {values})")
                lines.append(f"| {label} | {' | '.join(shown)} |")
            if why := clean.get("reason"):
                lines.append(f"\nNo AUC: {why}.")
            tables.append("\n".join(lines) + "\n")
    return "\n".join(tables)


def _write(robustness: Mapping[str, Any], folder: Path) -> None:
    contents = {
        "robustness.json": json.dumps(robustness, indent=2, allow_nan=False) + "\n",
        "robustness.csv": robustness_rows(robustness).to_csv(index=False),
        "robustness.md": robustness_tables(robustness),
    }
    with complete_files(folder, ROBUSTNESS_FILES) as paths:
        for name, content in contents.items():
            paths[name].write_text(content, encoding="utf-8")
        try:
            draw_robustness(robustness).savefig(paths["robustness.png"], format="png")
        except InputError as error:  # hours of scores must not be lost for a picture of them
            logger.warning("there is no picture of the robustness: %s", error)
            (folder / "robustness.png").unlink(missing_ok=True)  # one of another run
