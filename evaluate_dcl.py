"""Evaluate checkpoints on prepared data sets: predictions, frame and video metrics, and a record of the run.

python evaluate_dcl.py --model runs/demo --dataset demo --data_root data --output_dir runs/demo/evaluation
python evaluate_dcl.py --predictions theirs.csv --output_dir results
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dcl_face_forgery.errors_dcl import InputError, at_least, report_input_errors

#: Arguments that do not apply to tables of predictions.
OF_MODELS = (
    *("dataset", "split", "data_root", "batch_size", "num_workers", "device", "skip_corrupt", "allow_mixed_crops"),
    "allow_copies",
    *("perturbations", "fake_labels", "trust_remote_code"),
)


def make_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(prog="dcl-evaluate", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--model",
        nargs="+",
        default=[],
        help="checkpoints (folders or Hub ids): of DCL, or any image classifier of transformers or timm",
    )
    parser.add_argument(
        "--dataset",
        nargs="+",
        default=[],
        help="prepared data sets: names under --data_root, folders, or Hub ids; 'a&b' means two of them",
    )
    parser.add_argument(
        "--predictions",
        nargs="+",
        default=[],
        metavar="FILE",
        help="tables of predictions from other software (.csv, .parquet, .json, .jsonl) with the columns dataset, "
        "method, video_id, label and p_fake; source_id and frame are optional",
    )
    parser.add_argument("--split", default="test", help="split to evaluate on (default: test)")
    parser.add_argument(
        "--output_dir",
        type=Path,
        required=True,
        help="folder for the results, with a subfolder for each of several models",
    )
    parser.add_argument("--data_root", type=Path, help="folder to search for data set names first")
    parser.add_argument("--batch_size", type=at_least(1), help="images in a batch (default: 32; 4 on a CPU)")
    parser.add_argument(
        "--num_workers",
        type=at_least(0),
        help="processes that decode images (default: 0 on a CPU; otherwise one per core, at most 8 per GPU)",
    )
    parser.add_argument("--device", help="such as cpu, cuda, cuda:1 or mps (default: the fastest available)")
    parser.add_argument(
        "--group_by",
        metavar="COLUMN",
        help="column whose values define groups to compare, such as groups of people; methods are always compared "
        "with all reals and need no --group_by",
    )
    parser.add_argument(
        "--bootstrap",
        type=at_least(0),
        default=1000,
        metavar="DRAWS",
        help="bootstrap draws of families (a real with all its fakes) for 95 %% intervals (default: 1000; 0: none)",
    )
    parser.add_argument(
        "--seed",
        type=at_least(0),
        default=0,
        help="seed of the bootstrap and of any randomness in a model (default: 0)",
    )
    parser.add_argument(
        "--skip_corrupt", action="store_true", help="skip images that cannot be decoded, and report their number"
    )
    parser.add_argument(
        "--allow_mixed_crops", action="store_true", help="accept a data set with several kinds of face crops"
    )
    parser.add_argument(
        "--allow_copies", action="store_true", help="accept a split that shares pictures with the training split"
    )
    parser.add_argument(
        "--perturbations",
        nargs="+",
        default=[],
        help="also measure robustness: deeperforensics, jpeg, resize, all, or single types such as gaussian_blur; "
        "each type scores the data sets five times, once per level",
    )
    parser.add_argument(
        "--fake_labels",
        nargs="+",
        default=[],
        metavar="NAME",
        help="labels that mean fake, for other models with unclear labels; all other labels mean real",
    )
    parser.add_argument("--published", action="store_true", help="add published numbers to the tables")
    parser.add_argument(
        "--report",
        action="store_true",
        help="write report.html with curves, scores and examples; it needs no other file and no network",
    )
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="run the model code saved with the checkpoint instead of this package's",
    )
    return parser


def refuse_what_makes_no_sense(arguments: argparse.Namespace) -> None:
    """Raise an `InputError` if there is nothing to evaluate, or an argument would have no effect."""
    if not arguments.model and not arguments.predictions:
        raise InputError("Nothing to evaluate. Pass --model with --dataset, or --predictions.")
    if arguments.model and not arguments.dataset:
        raise InputError("No data set given to run the models on. Pass --dataset.")
    if not arguments.model:
        for name in OF_MODELS:
            if getattr(arguments, name) != make_parser().get_default(name):
                raise InputError(
                    f"--{name} has no effect on tables of predictions, since no model runs. Leave it out, or pass "
                    "--model."
                )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command, alone or as one of the processes that `torchrun` starts.

    Args:
        argv: command-line arguments; None reads `sys.argv`.
    """
    from contextlib import nullcontext

    from dcl_face_forgery.evaluation.scoring.processes import is_one_of_several, process_group

    with process_group() if is_one_of_several() else nullcontext():
        _evaluate(argv)


@report_input_errors
def _evaluate(argv: Sequence[str] | None) -> None:
    from dcl_face_forgery.evaluation.run import evaluate

    arguments = make_parser().parse_args(argv)
    refuse_what_makes_no_sense(arguments)
    evaluate(arguments, shlex.join(["dcl-evaluate", *(sys.argv[1:] if argv is None else argv)]))


if __name__ == "__main__":
    main()
