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
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="dcl-export", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a checkpoint of DCL, or its model id on the Hub")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for the export; one made before is replaced"
    )
    parser.add_argument(
        "--int8", action="store_true", help="also write model_int8.onnx, and print how far it moves the scores"
    )
    parser.add_argument(
        "--force", action="store_true", help="write model_int8.onnx even if it moves the scores beyond the limits"
    )
    parser.add_argument(
        "--dataset",
        help="prepared data set whose validation split calibrates and measures int8: a name under --data_root, a "
        "folder, or an id of the Hub (without it, random images check the float32 graph)",
    )
    parser.add_argument("--data_root", type=Path, help="where the name of the data set is looked up first")
    return parser


@report_input_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: its arguments; those of the process if None.
    """
    arguments = make_parser().parse_args(argv)
    if arguments.int8 and arguments.dataset is None:
        raise InputError("int8 is calibrated and measured on validation images: pass --dataset, or leave out --int8.")
    if arguments.force and not arguments.int8:
        raise InputError("--force overrides the limits of int8: pass --int8, too, or leave it out.")
    if arguments.data_root is not None and arguments.dataset is None:
        raise InputError("--data_root is where a data set is looked up, and none was named: pass --dataset.")
    # Imported step by step: --help needs nothing, and a wrong name is reported before torch is imported.
    from dcl_face_forgery.evaluation.scoring.checkpoints import find_checkpoint

    checkpoint = find_checkpoint(arguments.model, only_dcl=True)
    data = None
    if arguments.dataset is not None:
        from dcl_face_forgery.prepared.names import check_names

        check_names([arguments.dataset], ["validation"], arguments.data_root)
        from dcl_face_forgery.prepared.splits import load_splits

        data = load_splits([arguments.dataset], "validation", arguments.data_root)[0]

    import torch

    from dcl_face_forgery.detection.exporting import check_output, check_packages, export
    from dcl_face_forgery.evaluation.scoring.predictions import load_checkpoint

    check_packages()
    check_output(arguments.output)
    model, processor = load_checkpoint(checkpoint, torch.device("cpu"))
    local = checkpoint.folder == Path(checkpoint.name)
    name = checkpoint.folder.name if local else checkpoint.name  # no path of this machine goes along
    where = arguments.output, checkpoint.revision
    print(describe(export(name, model, processor, *where, data, arguments.int8, arguments.force)))
    print(f"the export is in {arguments.output}")


def describe(record: dict[str, Any]) -> str:
    """Return what an `export.json` says, in a few lines and, for int8, a table."""
    parity = record["parity"]
    differences = ", ".join(f"{name} {value:.1e}" for name, value in parity["largest_difference"].items())
    lines = [
        *(f"{name}: {size / 1e6:.1f} MB" for name, size in record["bytes"].items()),
        f"largest difference from the model on {parity['on']}: {differences}",
    ]
    if int8 := record["int8"]:
        errors = ", ".join(f"{name} {error:.3g}" for name, error in int8["margin_errors"].items())
        lines += [
            f"int8 by {int8['method']} on {int8['calibration_images']} images; error of the margin: {errors}",
            f"float32 to int8 on {int8['frames']} held-out frames of {int8['data']}: frame AUC "
            f"{int8['auc_float32']:.4f} to {int8['auc_int8']:.4f}, verdicts change at "
            f"{int8['not_flagged_below']:.3f} and {int8['flagged_from']:.3f}",
            _table(int8),
        ]
    return "\n".join(lines)


def _table(int8: dict[str, Any]) -> str:
    import pandas as pd

    from dcl_face_forgery.detection.exporting import CHANGES

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
