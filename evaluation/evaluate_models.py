"""Evaluate models in turn: score each on all data sets, and write and print the results."""

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import ClassLabel, Value

from ..decision_dcl import missing_calibration
from ..errors_dcl import InputError
from ..prepared.dataset import metadata
from ..prepared.names import split_names
from ..prepared.splits import PreparedSplit, load_splits, refuse_copies_of_training
from .metrics.groups import check_group_column
from .reporting.examples import look_at_results
from .reporting.report import check_report, write_report
from .reporting.summary import print_result
from .reporting.tables import Result
from .results import evaluate_checkpoint
from .robustness import evaluate_robustness, robustness_tables
from .scoring.checkpoints import Checkpoint
from .scoring.other_models import find_classes
from .scoring.parts import remove_work_folders
from .scoring.perturbations import find_types
from .scoring.predictions import calibration_of, load_checkpoint
from .scoring.processes import first_process_ahead, is_first_process


def evaluate_models(
    arguments: Namespace,
    checkpoints: Sequence[Checkpoint],
    folders: Sequence[Path],
    run: dict[str, Any],
    scoring: dict[str, Any],
) -> list[Result]:
    """Evaluate models on the data sets, and write and print the results.

    Args:
        arguments: arguments of `dcl-evaluate`.
        checkpoints: results of `find_checkpoint`.
        folders: folder for the results of each checkpoint.
        run: entries for the records.
        scoring: options of the metrics: `group_by`, `bootstrap` and `seed`.

    Raises:
        InputError: if data or a model cannot be evaluated, or a result cannot be written.
    """
    types = find_types(arguments.perturbations)
    sets = load_splits(
        split_names(arguments.dataset), arguments.split, arguments.data_root, arguments.allow_mixed_crops
    )
    if not arguments.allow_copies:
        refuse_copies_of_training(sets, arguments.data_root)
    if arguments.group_by is not None:
        check_groups(sets, arguments.group_by)
    if arguments.report:
        check_report()

    # Check all models before the first one runs for hours.
    with first_process_ahead():  # one process copies remote code, and all import the copy
        checkpoints = find_classes(checkpoints, arguments.fake_labels, arguments.trust_remote_code)
    device = find_device(arguments.device)
    batch_size, num_workers = arguments.batch_size, arguments.num_workers
    if batch_size is None:
        # Larger batches are slower on a CPU: malloc returns such large feature maps to the system every time.
        batch_size = 4 if device.type == "cpu" else 32
    if num_workers is None:
        cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        num_workers = 0 if device.type == "cpu" else max(1, min(8, cores))
    run = {"device": str(device), "batch_size": batch_size, **run}
    options = {"batch_size": batch_size, "num_workers": num_workers, "skip_corrupt": arguments.skip_corrupt}
    results: list[Result] = []
    for checkpoint, folder in zip(checkpoints, folders, strict=True):
        transformers.set_seed(arguments.seed)
        with first_process_ahead():  # as above, for the code of the model
            model, processor = load_checkpoint(checkpoint, device, arguments.trust_remote_code)
        record = {**run, **checkpoint.record()}
        metrics = evaluate_checkpoint(
            checkpoint, model, processor, sets, folder, record, keep_parts=True, **scoring, **options
        )
        results.append(Result(checkpoint.name, metrics, model.config.seen_methods))
        if is_first_process():
            cautions = missing_calibration(calibration_of(model)) if checkpoint.is_dcl else ()
            print_result(results, folders, [arguments.split], arguments.bootstrap, arguments.seed, cautions)
        if types:
            robustness = evaluate_robustness(
                checkpoint, model, processor, sets, metrics, folder, types, arguments.seed, keep_parts=True, **options
            )
            print(f"\n{robustness_tables(robustness)}\nRobustness tables: robustness.json, .csv and .md in {folder}")
        if arguments.report and is_first_process():
            looks = look_at_results(model, processor, sets, folder, batch_size, arguments.seed)
            print(f"Report: {write_report(folder, looks, arguments.bootstrap, arguments.seed)}")
    for folder in folders:  # at the end: an interrupted run then resumes without repeating finished models
        remove_work_folders(folder)
    return results


def check_groups(sets: Sequence[PreparedSplit], column: str) -> None:
    """Check before scoring that every data set can be grouped by a column; warn about a single group.

    Raises:
        InputError: if a data set lacks the column, or the column is not of a plain type, is empty, or has too many
            values.
    """
    for data in sets:
        features = data.dataset.features
        plain = [name for name, feature in features.items() if isinstance(feature, Value | ClassLabel)]
        if column not in plain:
            raise InputError(
                f"{data.where} has no column {column!r} to group by. Pass --group_by with one of {', '.join(plain)}."
            )
        values = metadata(data.dataset.select_columns([column])).to_pandas()[column]
        if isinstance(features[column], ClassLabel):
            values = values.map(dict(enumerate(features[column].names)))  # an unknown class is -1
        check_group_column(values, column, data.where)


def find_device(name: str | None) -> torch.device:
    """Return the device of that name, or the fastest available one; each process on a machine gets its own GPU.

    Raises:
        InputError: if this machine has no such device.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        torch.zeros(1, device=name).item()
    except Exception as error:  # RuntimeError, AssertionError or NotImplementedError, depending on the device
        available = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        available += ["mps"] if torch.backends.mps.is_available() else []
        raise InputError(f"Device {name!r} not found. Pass --device with one of {', '.join(available)}.") from error
    return torch.device(name)
