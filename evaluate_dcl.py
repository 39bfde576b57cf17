"""Evaluate checkpoints on prepared data sets: predictions, metrics at frame and video level, and a record of the run.

python evaluate_dcl.py --model runs/demo --dataset demo --data_root data --output_dir runs/demo/evaluation
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcl.errors_dcl import InputError, report_input_errors

if TYPE_CHECKING:
    import pandas as pd
    import torch


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="dcl-evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", required=True, help="folders of checkpoints, or model ids of the Hub")
    parser.add_argument(
        "--dataset",
        nargs="+",
        required=True,
        help="prepared data sets: names under --data_root, folders, or ids of the Hub; 'a&b' means two of them",
    )
    parser.add_argument("--split", default="test", help="split of every data set (default: test)")
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="where the results go; of several models, one folder each"
    )
    parser.add_argument("--data_root", type=Path, help="where names of data sets are looked up first")
    parser.add_argument("--batch_size", type=_at_least(1), help="images at a time (default: 32, on a CPU 4)")
    parser.add_argument(
        "--num_workers",
        type=_at_least(0),
        help="processes that decode images (default: none on a CPU, else one a core, at most 8)",
    )
    parser.add_argument("--device", help="such as cpu, cuda, cuda:1 or mps (default: the fastest there is)")
    parser.add_argument(
        "--group_by",
        metavar="COLUMN",
        help="column of the data sets, such as a group of people, whose values are compared",
    )
    parser.add_argument(
        "--bootstrap",
        type=_at_least(0),
        default=1000,
        metavar="DRAWS",
        help="draws of families, a real with all its fakes, for the 95 %% intervals (default: 1000; 0: none)",
    )
    parser.add_argument(
        "--seed", type=_at_least(0), default=0, help="for the draws, and whatever a model draws at random (default: 0)"
    )
    parser.add_argument(
        "--skip_corrupt", action="store_true", help="leave out images that cannot be decoded, and count them"
    )
    parser.add_argument(
        "--allow_mixed_crops", action="store_true", help="accept a data set whose faces were cut in several ways"
    )
    parser.add_argument(
        "--perturbations",
        nargs="+",
        default=[],
        help="how robust the model is, besides: deeperforensics, jpeg, resize, all, or single types such as "
        "gaussian_blur; each runs the data sets through five times, once a level",
    )
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="run the model code saved with the checkpoint instead of this package's",
    )
    return parser


def _at_least(least: int) -> Any:
    def whole_number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        return value

    return whole_number


@report_input_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: its arguments; those of the process if None.
    """
    arguments = make_parser().parse_args(argv)
    # Imported step by step: --help needs nothing, and a wrong name is reported before torch is imported.
    from dcl.dataset_dcl import split_names
    from dcl.evaluation.inputs import check_groups, find_checkpoint, load_evaluation_sets
    from dcl.evaluation.perturbations import find_types

    types = find_types(arguments.perturbations)
    checkpoints = [find_checkpoint(name) for name in dict.fromkeys(arguments.model)]
    folders = name_folders([checkpoint.name for checkpoint in checkpoints], arguments.output_dir)
    sets = load_evaluation_sets(
        split_names(arguments.dataset), arguments.split, arguments.data_root, arguments.allow_mixed_crops
    )
    if arguments.group_by is not None:
        check_groups(sets, arguments.group_by)

    import transformers

    from dcl.evaluation.predictions import evaluate_checkpoint, load_checkpoint

    device = find_device(arguments.device)
    batch_size, num_workers = arguments.batch_size, arguments.num_workers
    if batch_size is None:
        # On a CPU larger ones are slower: their feature maps exceed what malloc keeps, and each is paged in anew.
        batch_size = 4 if device.type == "cpu" else 32
    if num_workers is None:
        num_workers = 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)
    run = {
        "device": str(device),
        "batch_size": batch_size,
        "seed": arguments.seed,
        "command": shlex.join(["dcl-evaluate", *(sys.argv[1:] if argv is None else argv)]),
    }
    options = {"batch_size": batch_size, "num_workers": num_workers, "skip_corrupt": arguments.skip_corrupt}
    for checkpoint, folder in zip(checkpoints, folders, strict=True):
        transformers.set_seed(arguments.seed)
        model, processor = load_checkpoint(checkpoint, device, arguments.trust_remote_code)
        metrics = evaluate_checkpoint(
            checkpoint,
            model,
            processor,
            sets,
            folder,
            run,
            group_by=arguments.group_by,
            bootstrap=arguments.bootstrap,
            seed=arguments.seed,
            **options,
        )
        print(f"\n{checkpoint.name}")
        print(summarize(metrics, model.config.seen_methods).to_string(index=False, na_rep="-", float_format="%.3f"))
        for dataset, levels in metrics.items():
            if why := levels["frame"].get("reason"):
                print(f"{dataset} gives no AUC: {why}")
            for level in ("frame", "video"):
                if warning := levels[level].get("warning"):
                    print(f"caution, {dataset}, {level} level: {warning}")
        if folder != folders[0] and arguments.bootstrap:
            write_differences(folders[0], folder, checkpoints[0].name, arguments.bootstrap, arguments.seed)
        print(f"metrics, predictions and the record of the run are in {folder}")
        if types:
            from dcl.evaluation.robustness import evaluate_robustness, robustness_tables

            robustness = evaluate_robustness(
                checkpoint, model, processor, sets, metrics, folder, types, arguments.seed, **options
            )
            print(f"\n{robustness_tables(robustness)}\nthese tables are in {folder}, too: robustness.json, .csv, .md")


def write_differences(first: Path, other: Path, first_name: str, bootstrap: int, seed: int) -> None:
    """Write `differences.json`: by how much a model differs from the first one on the same rows; print the AUC's.

    Args:
        first: the results of the first model.
        other: those of the other; there the file goes.
        first_name: what the first model is called.
        bootstrap: how often families are drawn for the intervals.
        seed: for the draws.
    """
    import pandas as pd

    from dcl.evaluation.metrics import compare_models

    tables = [pd.read_parquet(folder / "predictions.parquet") for folder in (other, first)]
    differences = compare_models(*tables, bootstrap, seed)
    text = json.dumps({"minus": first_name, "differences": differences}, indent=2, allow_nan=False)
    (other / "differences.json").write_text(text + "\n", encoding="utf-8")
    for dataset, levels in differences.items():
        for level, found in levels.items():
            if interval := found.get("auc", {}).get("interval"):
                print(
                    f"{level} AUC on {dataset}, minus that of {first_name}: {found['auc']['difference']:+.3f} "
                    f"({interval[0]:+.3f} to {interval[1]:+.3f})"
                )


def find_device(name: str | None) -> "torch.device":
    """Return the device of that name, or the fastest one there is.

    Raises:
        InputError: if this machine has no such device.
    """
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
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


def summarize(metrics: dict[str, dict[str, Any]], seen_methods: Sequence[str] | None) -> "pd.DataFrame":
    """Make the table that is printed in the end.

    Args:
        metrics: the content of `metrics.json`.
        seen_methods: the methods that the model was trained on; None if it does not say.

    Returns:
        One row a data set and one for each of its methods: whether the model was trained on the method, and AUC and
        EER at frame and AUC at video level, each AUC with its 95 % interval if there are any.
    """
    import pandas as pd

    rows = []
    for dataset, levels in metrics.items():
        for method, scores in [("all", levels), *levels["by_method"].items()]:
            seen = "-"
            if method != "all" and seen_methods is not None:
                seen = "seen" if method in seen_methods else "unseen"
            rows.append(
                {
                    "dataset": dataset,
                    "method": method,
                    "trained on": seen,
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


def _text(scores: dict[str, Any]) -> str | None:
    ends = scores.get("intervals", {}).get("auc")
    return None if ends is None else "{:.3f}-{:.3f}".format(*ends)


if __name__ == "__main__":
    main()
