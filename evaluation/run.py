"""One evaluation from the command line: models and tables of predictions to metrics, tables and reports.

Imports come step by step: a wrong name is reported before pandas and torch are imported, and tables of predictions do
without torch.
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

if TYPE_CHECKING:
    from .scoring.checkpoints import Checkpoint


def evaluate(arguments: Namespace, command: str) -> None:
    """Evaluate what the arguments name; on each process, if there are several.

    Args:
        arguments: of `dcl-evaluate`.
        command: for the record of the run.

    Raises:
        InputError: if an input is not there or cannot be evaluated, or a result cannot be written.
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
        from .models import evaluate_models

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

            print(f"the report is {write_report(folder, None, arguments.bootstrap, arguments.seed)}")
    text = write_tables(results, arguments.output_dir, arguments.published)
    if arguments.published or len(results) > 1 or any(len(result.metrics) > 1 for result in results):
        print(f"\n{text}")
    print(f"the tables over all models and data sets are in {arguments.output_dir}: table.md, .csv, .json")


def process_count() -> int:
    """Return how many processes `torchrun` started for this command."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this process writes and prints; a RANK without a WORLD_SIZE is that of no process of this command."""
    return process_count() == 1 or int(os.environ.get("RANK", "0")) == 0


def _find_inputs(models: Sequence[str], arguments: Namespace) -> "list[Checkpoint]":
    """Find the checkpoints, and check that data sets and perturbations are there."""
    if not models:
        return []
    if arguments.perturbations:
        from .scoring.perturbations import find_types

        find_types(arguments.perturbations)
    check_names(split_names(arguments.dataset), [arguments.split], arguments.data_root)
    return [find_checkpoint(name) for name in models]


def _refuse_to_overwrite(tables: Sequence[str], folders: Sequence[Path], output_dir: Path) -> None:
    """Raise an `InputError` if a file that would be written, or removed, is one of the tables that are read."""
    written = [path for folder in folders for path in files_of_results(folder)]
    written += [output_dir / name for name in TABLE_FILES]
    for path in (path for path in written if path.exists()):
        for table in tables:
            if path.samefile(table):  # by whatever way they are named
                raise InputError(
                    f"the results would overwrite {table!r}, from which they are computed: choose another "
                    "--output_dir."
                )


def name_folders(models: Sequence[str], output_dir: Path) -> list[Path]:
    """Choose where the results of each model go.

    Args:
        models: different folders or ids.
        output_dir: where all results go.

    Returns:
        `output_dir` for a single model; for several, a folder in it each, named after the last part of the model's
        name, or after as many parts as it takes to tell the models apart.
    """
    if len(models) == 1:
        return [output_dir]
    paths = [Path(model).resolve() if Path(model).is_dir() else Path(model) for model in models]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["_".join(part.strip(os.sep) for part in path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return [output_dir / name for name in names]
    raise InputError(f"two of the models {', '.join(models)} are the same folder: give each once.")


def _name_tables(files: Sequence[str], models: Sequence[str]) -> list[str]:
    """Return what the folders of tables of predictions are named after: the files, without endings if that will do."""
    names = [os.path.splitext(name)[0] for name in files]
    return names if len({*names, *models}) == len(names) + len(models) else list(files)
