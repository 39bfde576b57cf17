"""Evaluate checkpoints on prepared data sets: predictions, metrics at frame and video level, and a record of the run.

python evaluate_dcl.py --model runs/demo --dataset demo --data_root data --output_dir runs/demo/evaluation
python evaluate_dcl.py --predictions theirs.csv --output_dir results
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcl_face_forgery.errors_dcl import InputError, at_least, report_input_errors

if TYPE_CHECKING:
    import torch

    from dcl_face_forgery.evaluation.reporting.tables import Result
    from dcl_face_forgery.evaluation.scoring.checkpoints import Checkpoint


#: What has no effect on tables of predictions.
OF_MODELS = (
    *("dataset", "split", "data_root", "batch_size", "num_workers", "device", "skip_corrupt", "allow_mixed_crops"),
    "allow_copies",
    *("perturbations", "fake_labels", "trust_remote_code"),
)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="dcl-evaluate", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model",
        nargs="+",
        default=[],
        help="folders of checkpoints, or model ids of the Hub: DCL's, or any image classifier of transformers or timm",
    )
    parser.add_argument(
        "--dataset",
        nargs="+",
        default=[],
        help="prepared data sets: names under --data_root, folders, or ids of the Hub; 'a&b' means two of them",
    )
    parser.add_argument(
        "--predictions",
        nargs="+",
        default=[],
        metavar="FILE",
        help="tables of predictions made elsewhere (.csv, .parquet, .json, .jsonl) with the columns dataset, method, "
        "video_id, label and p_fake; source_id and frame are made use of",
    )
    parser.add_argument("--split", default="test", help="split of every data set (default: test)")
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="where the results go; of several models, one folder each"
    )
    parser.add_argument("--data_root", type=Path, help="where names of data sets are looked up first")
    parser.add_argument("--batch_size", type=at_least(1), help="images at a time (default: 32, on a CPU 4)")
    parser.add_argument(
        "--num_workers",
        type=at_least(0),
        help="processes that decode images (default: none on a CPU, else one a core, at most 8 for each GPU)",
    )
    parser.add_argument("--device", help="such as cpu, cuda, cuda:1 or mps (default: the fastest there is)")
    parser.add_argument(
        "--group_by",
        metavar="COLUMN",
        help="column of the data sets, such as a group of people, whose values are compared; not needed for methods, "
        "each of which is set against all reals anyway",
    )
    parser.add_argument(
        "--bootstrap",
        type=at_least(0),
        default=1000,
        metavar="DRAWS",
        help="draws of families, a real with all its fakes, for the 95 %% intervals (default: 1000; 0: none)",
    )
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="for the draws, and whatever a model draws at random (default: 0)"
    )
    parser.add_argument(
        "--skip_corrupt", action="store_true", help="leave out images that cannot be decoded, and count them"
    )
    parser.add_argument(
        "--allow_mixed_crops", action="store_true", help="accept a data set whose faces were cut in several ways"
    )
    parser.add_argument(
        "--allow_copies", action="store_true", help="accept a split that shares pictures with the training split"
    )
    parser.add_argument(
        "--perturbations",
        nargs="+",
        default=[],
        help="how robust the model is, besides: deeperforensics, jpeg, resize, all, or single types such as "
        "gaussian_blur; each runs the data sets through five times, once a level",
    )
    parser.add_argument(
        "--fake_labels",
        nargs="+",
        default=[],
        metavar="NAME",
        help="labels that mean fake, of models that are not DCL's and whose labels do not say so; the rest is real",
    )
    parser.add_argument(
        "--published", action="store_true", help="put the numbers that papers print beside those of the tables"
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="draw curves, scores, examples and more into report.html, which needs no other file and no network",
    )
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="run the model code saved with the checkpoint instead of this package's",
    )
    return parser


def refuse_what_makes_no_sense(arguments: argparse.Namespace) -> None:
    """Raise an `InputError` if nothing is to be evaluated, or an argument would have no effect."""
    if not arguments.model and not arguments.predictions:
        raise InputError("Nothing to evaluate. Pass --model with --dataset, or --predictions.")
    if arguments.model and not arguments.dataset:
        raise InputError("No data set given to run the models on. Pass --dataset.")
    if not arguments.model:
        for name in OF_MODELS:
            if getattr(arguments, name) != make_parser().get_default(name):
                raise InputError(
                    f"--{name} is for models that are run here, and tables of predictions need none: leave it out, or "
                    "pass --model."
                )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command, alone or as one of the processes that `torchrun` starts.

    Args:
        argv: its arguments; those of the process if None.
    """
    if _process_count() == 1:
        evaluate(argv)
        return
    from dcl_face_forgery.evaluation.scoring.processes import process_group

    with process_group():
        evaluate(argv)


def _process_count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _is_first_process() -> bool:
    """Whether this process writes and prints; a RANK without a WORLD_SIZE is that of no process of this command."""
    return _process_count() == 1 or int(os.environ.get("RANK", "0")) == 0


@report_input_errors
def evaluate(argv: Sequence[str] | None = None) -> None:
    """Evaluate what the arguments name; on each process, if there are several.

    Args:
        argv: the arguments; those of the process if None.
    """
    arguments = make_parser().parse_args(argv)
    refuse_what_makes_no_sense(arguments)
    # Imported step by step: --help needs nothing, a wrong name is reported before pandas and torch are imported, and
    # tables of predictions do without torch.
    for name in arguments.predictions:
        if not Path(name).exists():
            raise InputError(f"Table of predictions {name!r} not found. Check its path.")
    models = list(dict.fromkeys(arguments.model))
    checkpoints = find_inputs(models, arguments)
    from dcl_face_forgery.evaluation.prediction_files import evaluate_predictions, read_predictions
    from dcl_face_forgery.evaluation.reporting.summary import print_result
    from dcl_face_forgery.evaluation.reporting.tables import Result, write_tables

    tables = [read_predictions(name, arguments.group_by) for name in dict.fromkeys(arguments.predictions)]
    run = {
        "seed": arguments.seed,
        "command": shlex.join(["dcl-evaluate", *(sys.argv[1:] if argv is None else argv)]),
    }
    scoring = {"group_by": arguments.group_by, "bootstrap": arguments.bootstrap, "seed": arguments.seed}
    folders = name_folders([*models, *name_tables([table.name for table in tables], models)], arguments.output_dir)
    refuse_to_overwrite([table.name for table in tables], folders, arguments.output_dir)
    results = run_models(arguments, checkpoints, folders[: len(models)], run, scoring) if models else []
    if not _is_first_process():
        return
    for table, folder in zip(tables, folders[len(models) :], strict=True):
        metrics = evaluate_predictions(table, folder, run, **scoring)
        results.append(Result(table.name, metrics))
        splits = set(table.rows["split"].dropna()) if "split" in table.rows else ()
        print_result(results, folders, splits, arguments.bootstrap, arguments.seed)
        if arguments.report:
            from dcl_face_forgery.evaluation.reporting.report import write_report

            print(f"the report is {write_report(folder, None, arguments.bootstrap, arguments.seed)}")
    text = write_tables(results, arguments.output_dir, arguments.published)
    if arguments.published or len(results) > 1 or any(len(result.metrics) > 1 for result in results):
        print(f"\n{text}")
    print(f"the tables over all models and data sets are in {arguments.output_dir}: table.md, .csv, .json")


def find_inputs(models: Sequence[str], arguments: argparse.Namespace) -> "list[Checkpoint]":
    """Find the checkpoints, and check that the data sets and the perturbations of the command line are there.

    Raises:
        InputError: if one is not.
    """
    if not models:
        return []
    from dcl_face_forgery.evaluation.scoring.checkpoints import find_checkpoint
    from dcl_face_forgery.prepared.names import check_names, split_names

    if arguments.perturbations:
        from dcl_face_forgery.evaluation.scoring.perturbations import find_types

        find_types(arguments.perturbations)
    check_names(split_names(arguments.dataset), [arguments.split], arguments.data_root)
    return [find_checkpoint(name) for name in models]


def refuse_to_overwrite(tables: Sequence[str], folders: Sequence[Path], output_dir: Path) -> None:
    """Raise an `InputError` if a file that would be written, or removed, is one of the tables that are read.

    Args:
        tables: files of predictions, which are there.
        folders: where the results go.
        output_dir: where the tables over all of them go.
    """
    from dcl_face_forgery.evaluation.reporting.result_files import TABLE_FILES, files_of_results

    written = [path for folder in folders for path in files_of_results(folder)]
    written += [output_dir / name for name in TABLE_FILES]
    for path in (path for path in written if path.exists()):
        for table in tables:
            if path.samefile(table):  # by whatever way they are named
                raise InputError(
                    f"the results would overwrite {table!r}, from which they are computed: choose another "
                    "--output_dir."
                )


def run_models(
    arguments: argparse.Namespace,
    checkpoints: "Sequence[Checkpoint]",
    folders: Sequence[Path],
    run: dict[str, Any],
    scoring: dict[str, Any],
) -> "list[Result]":
    """Run models over the data sets, and write and print what comes of each.

    Args:
        arguments: of the command line.
        checkpoints: what `find_inputs` found.
        folders: where the results of each go.
        run: what the records shall say.
        scoring: how metrics are computed: `group_by`, `bootstrap` and `seed`.
    """
    from dcl_face_forgery.decision_dcl import missing_calibration
    from dcl_face_forgery.evaluation.reporting.summary import print_result
    from dcl_face_forgery.evaluation.reporting.tables import Result
    from dcl_face_forgery.evaluation.scoring.perturbations import find_types
    from dcl_face_forgery.evaluation.scoring.sets import check_groups, load_evaluation_sets, refuse_copies_of_training
    from dcl_face_forgery.prepared.names import split_names

    types = find_types(arguments.perturbations)
    sets = load_evaluation_sets(
        split_names(arguments.dataset), arguments.split, arguments.data_root, arguments.allow_mixed_crops
    )
    if not arguments.allow_copies:
        refuse_copies_of_training(sets, arguments.data_root)
    if arguments.group_by is not None:
        check_groups(sets, arguments.group_by)
    if arguments.report:
        from dcl_face_forgery.evaluation.reporting.report import check_report

        check_report()

    import transformers

    from dcl_face_forgery.evaluation.results import evaluate_checkpoint
    from dcl_face_forgery.evaluation.scoring.other_models import find_classes
    from dcl_face_forgery.evaluation.scoring.parts import remove_work_folders
    from dcl_face_forgery.evaluation.scoring.predictions import calibration_of, load_checkpoint
    from dcl_face_forgery.evaluation.scoring.processes import first_process_ahead

    # Of all models before the first runs for hours.
    with first_process_ahead():  # remote code is copied to where all import it from
        checkpoints = find_classes(checkpoints, arguments.fake_labels, arguments.trust_remote_code)
    device = find_device(arguments.device)
    batch_size, num_workers = arguments.batch_size, arguments.num_workers
    if batch_size is None:
        # On a CPU larger ones are slower: their feature maps exceed what malloc keeps, and each is paged in anew.
        batch_size = 4 if device.type == "cpu" else 32
    if num_workers is None:
        cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        num_workers = 0 if device.type == "cpu" else max(1, min(8, cores))
    run = {"device": str(device), "batch_size": batch_size, **run}
    options = {"batch_size": batch_size, "num_workers": num_workers, "skip_corrupt": arguments.skip_corrupt}
    results: list[Result] = []
    for checkpoint, folder in zip(checkpoints, folders, strict=True):
        transformers.set_seed(arguments.seed)
        with first_process_ahead():  # as above: the code of the model is another file
            model, processor = load_checkpoint(checkpoint, device, arguments.trust_remote_code)
        record = {**run, **checkpoint.record()}
        metrics = evaluate_checkpoint(
            checkpoint, model, processor, sets, folder, record, keep_parts=True, **scoring, **options
        )
        results.append(Result(checkpoint.name, metrics, model.config.seen_methods))
        if _is_first_process():
            cautions = missing_calibration(calibration_of(model)) if checkpoint.is_dcl else ()
            print_result(results, folders, [arguments.split], arguments.bootstrap, arguments.seed, cautions)
        if types:
            from dcl_face_forgery.evaluation.robustness import evaluate_robustness, robustness_tables

            robustness = evaluate_robustness(
                checkpoint, model, processor, sets, metrics, folder, types, arguments.seed, keep_parts=True, **options
            )
            print(f"\n{robustness_tables(robustness)}\nthese tables are in {folder}, too: robustness.json, .csv, .md")
        if arguments.report and _is_first_process():
            from dcl_face_forgery.evaluation.reporting.examples import look_at_results
            from dcl_face_forgery.evaluation.reporting.report import write_report

            looks = look_at_results(model, processor, sets, folder, batch_size, arguments.seed)
            print(f"the report is {write_report(folder, looks, arguments.bootstrap, arguments.seed)}")
    for folder in folders:  # not before: what is complete of one model is not done again if another is interrupted
        remove_work_folders(folder)
    return results


def find_device(name: str | None) -> "torch.device":
    """Return the device of that name, or the fastest one there is; each process of a machine has a GPU of its own.

    Raises:
        InputError: if this machine has no such device.
    """
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        torch.zeros(1, device=name).item()
    except Exception as error:  # RuntimeError, AssertionError or NotImplementedError, by the kind of device
        available = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        available += ["mps"] if torch.backends.mps.is_available() else []
        raise InputError(f"there is no device {name!r} here; --device can be {', '.join(available)}.") from error
    return torch.device(name)


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


def name_tables(files: Sequence[str], models: Sequence[str]) -> list[str]:
    """Return what the folders of tables of predictions are named after: the files, without endings if that will do."""
    names = [os.path.splitext(name)[0] for name in files]
    return names if len({*names, *models}) == len(names) + len(models) else list(files)


if __name__ == "__main__":
    main()
