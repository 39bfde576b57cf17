"""Export a checkpoint to ONNX, check the graph against the model, and optionally quantize it to int8.

dcl-export --model runs/demo --output runs/demo-onnx
dcl-export --model runs/demo --output runs/demo-onnx --int8 --dataset demo --data_root data
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcl_face_forgery.errors_dcl import InputError, report_input_errors


def make_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(prog="dcl-export", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", required=True, help="DCL checkpoint (folder or Hub id)")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for the export; an earlier export is replaced"
    )
    parser.add_argument(
        "--int8", action="store_true", help="also write model_int8.onnx, and report how much its scores differ"
    )
    parser.add_argument(
        "--force", action="store_true", help="write model_int8.onnx even if its scores differ by more than the limits"
    )
    parser.add_argument(
        "--dataset",
        help="prepared data set whose validation split calibrates and checks int8: a name under --data_root, a "
        "folder, or a Hub id (default: random images, to check the float32 graph)",
    )
    parser.add_argument("--data_root", type=Path, help="folder to search for the data set name first")
    return parser


@report_input_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: command-line arguments; None reads `sys.argv`.
    """
    arguments = make_parser().parse_args(argv)
    if arguments.int8 and arguments.dataset is None:
        raise InputError("--int8 needs validation images for calibration. Pass --dataset, or leave out --int8.")
    if arguments.force and not arguments.int8:
        raise InputError("--force has no effect without --int8. Pass --int8, or leave out --force.")
    if arguments.data_root is not None and arguments.dataset is None:
        raise InputError("--data_root has no effect without --dataset. Pass --dataset, or leave out --data_root.")
    # Imports come late: --help and errors about names must not wait for torch.
    from dcl_face_forgery.evaluation.scoring.checkpoints import find_checkpoint

    checkpoint = find_checkpoint(arguments.model, only_dcl=True)
    data = None
    if arguments.dataset is not None:
        from dcl_face_forgery.prepared.names import check_names

        check_names([arguments.dataset], ["validation"], arguments.data_root)
        from dcl_face_forgery.prepared.splits import load_splits

        data = load_splits([arguments.dataset], "validation", arguments.data_root)[0]

    import torch

    from dcl_face_forgery.detection.onnx_export import check_output, check_packages, export
    from dcl_face_forgery.evaluation.scoring.predictions import load_checkpoint

    check_packages()
    check_output(arguments.output)
    model, processor = load_checkpoint(checkpoint, torch.device("cpu"))
    local = checkpoint.folder == Path(checkpoint.name)
    name = checkpoint.folder.name if local else checkpoint.name  # do not publish a local path
    where = arguments.output, checkpoint.revision
    print(describe(export(name, model, processor, *where, data, arguments.int8, arguments.force)))
    print(f"Export: {arguments.output}")


def describe(record: dict[str, Any]) -> str:
    """Return a summary of `export.json`: a few lines and, for int8, a table."""
    parity = record["parity"]
    differences = ", ".join(f"{name} {value:.1e}" for name, value in parity["largest_difference"].items())
    lines = [
        *(f"{name}: {size / 1e6:.1f} MB" for name, size in record["bytes"].items()),
        f"Largest difference from the model on {parity['on']}: {differences}",
    ]
    if int8 := record["int8"]:
        errors = ", ".join(f"{name} {error:.3g}" for name, error in int8["margin_errors"].items())
        lines += [
            f"int8 method: {int8['method']} ({int8['calibration_images']} calibration images), margin errors {errors}",
            f"float32 and int8 on {int8['frames']} held-out frames of {int8['data']}: frame AUC "
            f"{int8['auc_float32']:.4f} and {int8['auc_int8']:.4f}, verdict thresholds "
            f"{int8['not_flagged_below']:.3f} and {int8['flagged_from']:.3f}",
            _table(int8),
        ]
    return "\n".join(lines)


def _table(int8: dict[str, Any]) -> str:
    import pandas as pd

    from dcl_face_forgery.detection.onnx_export import CHANGES

    limits = int8["limits"]
    rows = [
        {
            "int8": title,
            "measured": f"{int8[name]:.4f}",
            "limit": f"{limits[name]:g}" if name in limits else "too few frames",
            "": "exceeded" if name in int8["exceeded"] else "",
        }
        for name, title in CHANGES.items()
    ]
    return pd.DataFrame(rows).to_string(index=False)


if __name__ == "__main__":
    main()
