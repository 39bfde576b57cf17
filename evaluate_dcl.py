"""Evaluate checkpoints on prepared data sets: predictions, metrics at frame and video level, and a record of the run.

python evaluate_dcl.py --model runs/demo --dataset demo --data_root data --output_dir runs/demo/evaluation
python evaluate_dcl.py --predictions theirs.csv --output_dir results
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dcl_face_forgery.errors_dcl import InputError, at_least, report_input_errors

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
    from contextlib import nullcontext

    from dcl_face_forgery.evaluation.run import process_count

    processes = nullcontext
    if process_count() > 1:
        from dcl_face_forgery.evaluation.scoring.processes import process_group as processes

    with processes():
        _evaluate(argv)


@report_input_errors
def _evaluate(argv: Sequence[str] | None) -> None:
    from dcl_face_forgery.evaluation.run import evaluate

    arguments = make_parser().parse_args(argv)
    refuse_what_makes_no_sense(arguments)
    evaluate(arguments, shlex.join(["dcl-evaluate", *(sys.argv[1:] if argv is None else argv)]))


if __name__ == "__main__":
    main()
