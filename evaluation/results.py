"""Evaluate checkpoints: predictions of data sets, their metrics, and a record of the run."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import BaseImageProcessor, PreTrainedModel

from ..decision_dcl import LEVELS, Rule
from ..errors_dcl import InputError
from ..prepared.splits import PreparedSplit, crop_matches
from .metrics.bootstrap import DRAWS
from .metrics.levels import frame_and_video_metrics
from .reporting.names import was_seen
from .reporting.records import OF_METRICS, OF_MODELS, OF_PICTURES, count_rows, versions
from .reporting.result_files import RESULT_FILES, complete_files, remove_what_is_of_another_run
from .scoring.checkpoints import Checkpoint
from .scoring.other_models import ArrayProcessor, BinaryClassifier
from .scoring.parts import PredictedParts, WorkFolder, remove_work_folders
from .scoring.predictions import calibration_of, predictions_schema
from .scoring.processes import meet, process_count, process_index

logger = logging.getLogger(__name__)

#: Columns of `predictions.parquet` that the metrics need.
METRIC_COLUMNS = ("dataset", "method", "video_id", "source_id", "label", "logit", "p_fake_raw", "p_fake")


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    model: PreTrainedModel | BinaryClassifier,
    processor: BaseImageProcessor | ArrayProcessor,
    sets: Sequence[PreparedSplit],
    folder: Path,
    run: Mapping[str, Any],
    batch_size: int = 32,
    num_workers: int = 0,
    skip_corrupt: bool = False,
    group_by: str | None = None,
    bootstrap: int = DRAWS,
    seed: int = 0,
    keep_parts: bool = False,
) -> dict[str, dict[str, Any]]:
    """Score data sets with a checkpoint and write `predictions.parquet`, `metrics.json` and `run.json`.

    Predictions are made in parts, see `WorkFolder`, so a killed run can resume, and the processes of `torchrun` share
    the work. New files replace the old ones together, once all are complete; if the run dies, the old files remain.
    Outdated files derived from earlier results are removed, see `remove_what_is_of_another_run`.

    Args:
        checkpoint: origin of the model, for `run.json`.
        model: result of `load_checkpoint`.
        processor: its image processor.
        sets: result of `load_splits`.
        folder: folder for the files; created if missing.
        run: further entries for `run.json`.
        batch_size: images in a batch.
        num_workers: processes that decode and resize.
        skip_corrupt: skip rows that cannot be decoded, and count them.
        group_by: a column of the data sets to group metrics by; it is kept in the predictions.
        bootstrap: number of bootstrap draws for the intervals; 0 for none.
        seed: seed of the draws.
        keep_parts: keep the parts in the folder, so that an interruption of later work loses nothing; the caller must
            then call `remove_work_folders`.

    Returns:
        The content of `metrics.json`, see `frame_and_video_metrics`; on every process.

    Raises:
        InputError: if a row cannot be decoded (with `skip_corrupt`: if no row of a data set can), or `folder` cannot
            be written.
    """
    for data in sets:
        _warn_of_crop(data, processor.crop, checkpoint)
    with open_work_folder(folder, checkpoint, model, batch_size, seed) as work:
        predicted = [
            work.predict(model, processor, data, batch_size, num_workers, skip_corrupt, group_by) for data in sets
        ]
        metrics = {}
        if process_index() == 0:
            config = model.config
            calibration = calibration_of(model)
            known = calibration or {}
            rules = {level: Rule.of(calibration, level, None, None) for level in LEVELS if calibration is not None}
            thresholds = {level: known.get(level, {}).get("thresholds", {}) for level in LEVELS}
            columns = [*METRIC_COLUMNS, *({group_by} - {None, *METRIC_COLUMNS})]
            records = {}
            for data, parts in zip(sets, predicted, strict=True):
                if parts.corrupt:
                    logger.warning("Skipped %d of %d images of %s.", len(parts.corrupt), len(data.dataset), data.where)
                rows = parts.read(columns).to_pandas()
                metrics |= frame_and_video_metrics(
                    rows,
                    {data.name: parts.cells},
                    thresholds=thresholds,
                    group_by=group_by,
                    bootstrap=bootstrap,
                    seed=seed,
                    evidence_threshold=known.get("evidence_threshold"),
                    rules=rules,
                )
                methods = metrics[data.name]["by_method"]
                records[data.name] = _record_of(data, parts, rows, methods, processor.crop, config.seen_methods)
            metrics = dict(sorted(metrics.items()))
            record = {
                "model": checkpoint.name,
                "revision": checkpoint.revision,
                "crop": processor.crop,
                "seen_methods": config.seen_methods,
                "calibration": calibration,
                "datasets": records,
                "versions": versions(*OF_MODELS, *OF_METRICS),
                "processes": process_count(),
                **run,
            }
            _write_results(folder, predicted, predictions_schema(group_by), record, metrics)
        metrics = meet(metrics)[0]
    if not keep_parts:
        remove_work_folders(folder)
    return metrics


def open_work_folder(
    folder: Path,
    checkpoint: Checkpoint,
    model: PreTrainedModel | BinaryClassifier,
    batch_size: int,
    seed: int,
) -> WorkFolder:
    """Return the work folder for the predictions of a checkpoint until its results are complete.

    Args:
        folder: folder for the results; created if missing.
        checkpoint: origin of the model.
        model: result of `load_checkpoint`.
        batch_size: images in a batch.
        seed: seed of any randomness in the model.

    Raises:
        InputError: if the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"Output folder {folder}: cannot be written ({error}). Choose another --output_dir."
        ) from error
    # Includes the libraries that decode, resize and perturb, since releases may differ slightly.
    settings = {
        "revision": checkpoint.revision,
        "code": type(model).__module__,  # from this package or from the checkpoint
        **checkpoint.record(),
        "device": model.device.type,
        "batch_size": batch_size,
        "seed": seed,
        "versions": versions(*OF_MODELS, *OF_PICTURES),
    }
    return WorkFolder(folder, settings)


def _record_of(
    data: PreparedSplit,
    parts: PredictedParts,
    rows: pd.DataFrame,
    methods: Sequence[str],
    crop: Mapping[str, Any] | None,
    seen_methods: Sequence[str] | None,
) -> dict[str, Any]:
    """Return the entry of a data set in `run.json`."""
    return {
        **count_rows(rows),
        "source": data.source,
        "split": data.split,
        "fingerprint": data.fingerprint,
        "rows": len(data.dataset),  # including skipped ones
        "skipped_corrupt": {"count": len(parts.corrupt), "rows": parts.corrupt},
        "crop": data.crop,
        "crop_is_mixed": data.crop_is_mixed,
        "crop_matches": not data.crop_is_mixed and crop_matches(data.crop, crop),
        "unseen_methods": None
        if seen_methods is None
        else [method for method in methods if was_seen(method, seen_methods) is False],
    }


def _write_results(
    folder: Path,
    predicted: Sequence[PredictedParts],
    schema: pa.Schema,
    record: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> None:
    with complete_files(folder, RESULT_FILES) as paths:
        with pq.ParquetWriter(paths["predictions.parquet"], schema) as writer:
            for parts in predicted:
                for rows in parts.row_groups():
                    writer.write_table(rows)
        for name, content in (("run.json", record), ("metrics.json", metrics)):
            paths[name].write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    remove_what_is_of_another_run(folder, record)


def _warn_of_crop(data: PreparedSplit, crop: dict[str, Any] | None, checkpoint: Checkpoint) -> None:
    if crop is None:
        logger.warning(
            "%s does not record the face crop of its training data, so the crop of %s may not match.",
            checkpoint.name,
            data.name,
        )
    elif data.crop_is_mixed or not crop_matches(data.crop, crop):
        logger.warning(
            "The face crops of %s differ from the training data of %s (%s%s, not %s). Expect worse scores.",
            data.name,
            checkpoint.name,
            "several crops, mostly " if data.crop_is_mixed else "",
            data.crop,
            crop,
        )
