"""One evaluation from the command line: from models and tables of predictions to metrics, tables and reports.

Imports come late: errors about names must not wait for pandas and torch, and tables of predictions do not need torch.
"""

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors_dcl import InputError
from ..prepared.names import check_names, split_names
from .reporting.result_files import TABLE_FILES, files_of_results
from .scoring.checkpoints import find_checkpoint
from .scoring.processes import is_first_process

if TYPE_CHECKING:
    from .scoring.checkpoints import Checkpoint


def evaluate(arguments: Namespace, command: str) -> None:
    """Evaluate the given models and tables of predictions; every process calls this.

    Args:
        arguments: arguments of `dcl-evaluate`.
        command: the command line, for the record of the run.

    Raises:
        InputError: if an input is missing or cannot be evaluated, or a result cannot be written.
    """
    for name in arguments.predictions:
        if not Path(name).exists():
            raise InputError(f"Table of predictions {name!r} not found. Check its path.")
    models = list(dict.fromkeys(arguments.model))
    checkpoints = _find_inputs(models, arguments)

    from .prediction_files import evaluate_predictions, read_predictions
    from .reporting.summary import print_result
    from .reporting.tables import Result, write_tables

    tables = [read_predictions(name, arguments.group_by) for name in dict.fromkeys(arguments.predictions)]
    run = {"seed": arguments.seed, "command": command}
    scoring = {"group_by": arguments.group_by, "bootstrap": arguments.bootstrap, "seed": arguments.seed}
    names = [table.name for table in tables]
    folders = name_folders([*models, *_name_tables(names, models)], arguments.output_dir)
    _refuse_to_overwrite(names, folders, arguments.output_dir)
    results: list[Result] = []
    if models:
        from .evaluate_models import evaluate_models

        results += evaluate_models(arguments, checkpoints, folders[: len(models)], run, scoring)
    if not is_first_process():
        return
    for table, folder in zip(tables, folders[len(models) :], strict=True):
        metrics = evaluate_predictions(table, folder, run, **scoring)
        results.append(Result(table.name, metrics))
        splits = set(table.rows["split"].dropna()) if "split" in table.rows else ()
        print_result(results, folders, splits, arguments.bootstrap, arguments.seed)
        if arguments.report:
            from .reporting.report import write_report

            print(f"Report: {write_report(folder, None, arguments.bootstrap, arguments.seed)}")
    text = write_tables(results, arguments.output_dir, arguments.published)
    if arguments.published or len(results) > 1 or any(len(result.metrics) > 1 for result in results):
        print(f"\n{text}")
    print(f"Tables over all models and data sets: table.md, .csv and .json in {arguments.output_dir}")


def _find_inputs(models: Sequence[str], arguments: Namespace) -> "list[Checkpoint]":
    """Find the checkpoints, and check that data sets and perturbations exist."""
    if not models:
        return []
    if arguments.perturbations:
        from .scoring.perturbations import find_types

        find_types(arguments.perturbations)
    check_names(split_names(arguments.dataset), [arguments.split], arguments.data_root)
    return [find_checkpoint(name) for name in models]


def _refuse_to_overwrite(tables: Sequence[str], folders: Sequence[Path], output_dir: Path) -> None:
    """Raise an `InputError` if the results would overwrite or remove one of the input tables."""
    written = [path for folder in folders for path in files_of_results(folder)]
    written += [output_dir / name for name in TABLE_FILES]
    for path in (path for path in written if path.exists()):
        for table in tables:
            if path.samefile(table):  # whatever the spelling of their paths
                raise InputError(f"The results would overwrite their input {table!r}. Choose another --output_dir.")


def name_folders(models: Sequence[str], output_dir: Path) -> list[Path]:
    """Choose the folder for the results of each model.

    Args:
        models: distinct folders or ids.
        output_dir: folder for all results.

    Returns:
        `output_dir` for a single model. For several models, subfolders named after the last part of each model's name,
        or after as many parts as make the names unique.
    """
    if len(models) == 1:
        return [output_dir]
    paths = [Path(model).resolve() if Path(model).is_dir() else Path(model) for model in models]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["_".join(part.strip(os.sep) for part in path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return [output_dir / name for name in names]
    raise InputError(f"Two of the models {', '.join(models)} are the same folder. Pass each model once.")


def _name_tables(files: Sequence[str], models: Sequence[str]) -> list[str]:
    """Return names for the folders of tables of predictions: the files, without extensions if these are unique."""
    names = [os.path.splitext(name)[0] for name in files]
    return names if len({*names, *models}) == len(names) + len(models) else list(files)
