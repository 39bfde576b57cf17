"""Prepare data sets: `dcl-prepare demo`, `blend`, `folder` or `assets` (each with --help)."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dcl.data_scripts.assets import ASSETS, copy_to, fetch
from dcl.data_scripts.blending import METHODS
from dcl.data_scripts.demo import prepare_demo
from dcl.data_scripts.extract import prepare_clips
from dcl.data_scripts.forging import prepare_forgeries
from dcl.data_scripts.layouts.folder import find_families
from dcl.data_scripts.photographs import MARGIN, SIZE
from dcl.data_scripts.shards import Outcome
from dcl.errors_dcl import InputError, report_input_errors
from dcl.faces_dcl import CROP_KINDS

_SHOWN = 20  # so many of those that were left out are named
_SOME_LEFT_OUT = 3  # exit status of a raw data set of which not all could be prepared


def _path(text: str) -> str:
    if not text:  # an unset variable of the shell, which would mean the current folder
        raise argparse.ArgumentTypeError("the path is empty")
    return text


def _parser() -> argparse.ArgumentParser:
    formatter = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter}
    parser = argparse.ArgumentParser("dcl-prepare", description="Prepare data sets for training and evaluation.")
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser("demo", help="the demo data set: forgeries made from the ORL photographs", **formatter)
    demo.add_argument("--output", type=_path, required=True, help="folder of the prepared data set")
    demo.add_argument("--size", type=int, default=112, help="side of the face crops in pixels")

    blend = commands.add_parser("blend", help="forgeries made from your own real photographs", **formatter)
    blend.add_argument(
        "--source",
        type=_path,
        required=True,
        help="folder of photographs (a sub-folder = one person), or a prepared data set",
    )
    blend.add_argument("--output", type=_path, required=True, help="folder of the prepared data set")
    blend.add_argument(
        "--methods",
        nargs="+",
        default=list(METHODS),
        choices=METHODS,
        metavar="METHOD",
        help="of these, separated by spaces",
    )
    blend.add_argument("--variants", type=int, default=1, help="forgeries of each method per photograph")
    blend.add_argument("--split", default="train", help="which split photographs become")
    blend.add_argument("--name", help="name of the data set that photographs become (else that of the folder)")
    blend.add_argument("--size", type=int, help="side of the crops cut from photographs, in pixels (else 380)")
    blend.add_argument("--margin", type=float, help="side of these crops over the longer side of the face (else 1.3)")

    raw = commands.add_parser("folder", help="your own videos or images, in real/ and fake/", **formatter)
    raw.add_argument(
        "--root", type=_path, required=True, help="folder that holds real/ and fake/, or train/, validation/, test/"
    )
    raw.add_argument("--output", type=_path, required=True, help="folder of the prepared data set")
    raw.add_argument("--split", default="train", help="which split it is, if it has no folders of splits")
    raw.add_argument("--name", help="name of the data set (else that of the folder)")
    raw.add_argument("--frames", type=int, default=32, help="frames of each video at most, evenly spaced")
    raw.add_argument("--size", type=int, default=SIZE, help="side of the face crops in pixels")
    raw.add_argument("--margin", type=float, default=MARGIN, help="side of the crops over the longer side of the face")
    raw.add_argument("--crop", choices=CROP_KINDS, default="box", help="upright square, or aligned on five landmarks")

    for command in (demo, blend):
        command.add_argument("--seed", type=int, default=0, help="of everything random")
    for command in (demo, blend, raw):
        command.add_argument("--overwrite", action="store_true", help="replace a data set that was prepared otherwise")

    assets = commands.add_parser("assets", help="fetch photographs, face detector or weights, and print their paths")
    assets.add_argument("--output", type=Path, help="folder that gets a copy of each")
    assets.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ASSETS)} (else all)")
    return parser


@report_input_errors
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = _parser().parse_args(arguments)
    if options.command == "assets":
        for name in options.names or ASSETS:
            path = fetch(name)
            print(path if options.output is None else copy_to(options.output, path))
        return
    for option, least in (("size", 32), ("margin", 0.5), ("variants", 1), ("frames", 1)):
        value = getattr(options, option, None)
        if value is not None and not least <= value <= 10_000:
            raise InputError(f"--{option} {value} cannot be used: give a value from {least} to 10000.")
    if options.command == "demo":
        outcome = prepare_demo(options.output, options.seed, options.size, options.overwrite)
    elif options.command == "folder":
        outcome = prepare_clips(
            find_families(options.root, options.split),
            options.root,
            options.output,
            {"kind": options.crop, "margin": options.margin, "size": options.size},
            options.frames,
            options.name or Path(options.root).resolve().name,
            options.overwrite,
        )
    else:
        outcome = prepare_forgeries(
            options.source,
            options.output,
            options.methods,
            options.variants,
            options.seed,
            options.size,
            options.margin,
            options.split,
            options.name,
            options.overwrite,
        )
    _report(outcome, options.output)
    if options.command == "folder" and outcome.problems:
        sys.exit(_SOME_LEFT_OUT)


def _report(outcome: Outcome, output: str) -> None:
    for split, rows in outcome.rows.items():
        print(f"{output}: {split}, {rows} faces")
    if outcome.problems:
        print(f"left out: {len(outcome.problems)}")
        for place, reason in list(outcome.problems.items())[:_SHOWN]:
            print(f"  {place}: {reason}")
        if len(outcome.problems) > _SHOWN:
            print(f"  and {len(outcome.problems) - _SHOWN} more")
    for reason, number in outcome.missing.items():
        print(f"not made: {number} of {reason}")


if __name__ == "__main__":
    main()
