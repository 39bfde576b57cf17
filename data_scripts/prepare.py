"""The command `dcl-prepare`: `demo`, `blend`, a layout of `LAYOUTS`, `check` or `assets` (each with --help)."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from dcl_face_forgery.data_scripts.assets import ASSETS, DETECTORS
from dcl_face_forgery.data_scripts.clips import FAMILIES_PER_SHARD
from dcl_face_forgery.data_scripts.layouts import (
    celeb_df,
    deeperforensics,
    deepfakebench,
    dfdc,
    dfdcp,
    ffpp,
    folder,
    uadfv,
    wild_deepfake,
)
from dcl_face_forgery.data_scripts.photographs import MARGIN, SIZE
from dcl_face_forgery.data_scripts.run import run
from dcl_face_forgery.errors_dcl import report_input_errors
from dcl_face_forgery.faces_dcl import CROP_KINDS
from dcl_face_forgery.prepared.blending import METHODS
from dcl_face_forgery.prepared.names import DEFAULT_ENCODING, ENCODINGS

#: The data set layouts, by the name of their command.
_LAYOUTS = (folder, ffpp, celeb_df, dfdc, dfdcp, deeperforensics, uadfv, wild_deepfake, deepfakebench)
LAYOUTS = {layout.__name__.rpartition(".")[2]: layout for layout in _LAYOUTS}
_INTERRUPTED = 130  # exit status, as in shells


def _path(text: str) -> str:
    if not text:  # an unset variable of the shell, which would mean the current folder
        raise argparse.ArgumentTypeError("the path is empty")
    return text


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults if there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def make_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    formatter = {"formatter_class": _Formatter}
    parser = argparse.ArgumentParser("dcl-prepare", description="Prepare data sets for training and evaluation.")
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser(
        "demo", help="prepare the demo data set: forgeries made from the ORL photographs", **formatter
    )
    demo.add_argument("--size", type=int, default=112, help="side of the face crops in pixels")

    blend = commands.add_parser("blend", help="make forgeries from your own real photographs", **formatter)
    blend.add_argument(
        "--source",
        type=_path,
        required=True,
        help="folder of photographs (one sub-folder per person), or a prepared data set",
    )
    blend.add_argument(
        "--methods",
        nargs="+",
        default=list(METHODS),
        choices=METHODS,
        metavar="METHOD",
        help="forgery methods, separated by spaces",
    )
    blend.add_argument("--variants", type=int, default=1, help="forgeries of each method per photograph")
    blend.add_argument("--split", default="train", help="split for the photographs")
    _add_shares(blend)
    blend.add_argument("--name", help="name of the data set made from photographs (default: name of the folder)")
    blend.add_argument("--size", type=int, help=f"side of the crops cut from photographs, in pixels (default: {SIZE})")
    blend.add_argument(
        "--margin", type=float, help=f"side of these crops over the longer side of the face (default: {MARGIN})"
    )

    check = commands.add_parser("check", help="list what a data set contains and what is missing")
    checked = check.add_subparsers(dest="layout", required=True, metavar="LAYOUT")
    prepared = checked.add_parser(
        "prepared", help="a prepared data set: its splits, and images that two of them share"
    )
    prepared.add_argument("--root", type=_path, required=True, help="folder of the prepared data set")
    for name, layout in LAYOUTS.items():
        about = layout.__doc__.splitlines()[0]
        _add_layout(checked.add_parser(name, help=about, **formatter), layout)
        raw = commands.add_parser(name, help=about, **formatter)
        _add_layout(raw, layout)
        if layout is folder:
            _add_shares(raw)
        _add_preparation(raw)

    for command in (demo, blend):
        command.add_argument("--seed", type=int, default=0, help="random seed")
        _add_output(command)

    assets = commands.add_parser(
        "assets", help="download photographs, face detector or weights, and print their paths"
    )
    assets.add_argument("--output", type=Path, help="folder for a copy of each")
    assets.add_argument(
        "names", nargs="*", metavar="NAME", help=f"assets to download, of {', '.join(ASSETS)} (default: all)"
    )
    return parser


def _add_layout(parser: argparse.ArgumentParser, layout: ModuleType) -> None:
    parser.add_argument("--root", type=_path, required=True, help="folder of the raw data set")
    if hasattr(layout, "add_arguments"):
        layout.add_arguments(parser)


def _add_shares(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--split_shares",
        type=float,
        nargs="+",
        metavar="PERCENT",
        help="split people (or videos, or loose files) into train, validation and test, such as 80 10 10, or 80 20",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=_path, required=True, help="folder of the prepared data set")
    parser.add_argument("--encoding", choices=ENCODINGS, default=DEFAULT_ENCODING, help="encoding of the face crops")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a data set that was prepared with other settings"
    )


def _add_preparation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", help="name of the data set (default: name of the layout or folder)")
    parser.add_argument("--frames", type=int, default=32, help="frames per clip at most, evenly spaced")
    faces = parser.add_argument_group("faces", "not for data sets that consist of face crops")
    faces.add_argument("--size", type=int, help=f"side of the face crops in pixels (default: {SIZE})")
    faces.add_argument(
        "--margin", type=float, help=f"side of the crop over the longer side of the face (default: {MARGIN})"
    )
    faces.add_argument(
        "--crop", choices=CROP_KINDS, help="box: upright square; aligned5: aligned by five landmarks (default: box)"
    )
    faces.add_argument("--detector", choices=DETECTORS, help=f"face detector (default: {DETECTORS[0]})")
    work = parser.add_argument_group("work", "options that do not change the rows")
    work.add_argument("--num_proc", type=int, default=1, help="processes on this machine, with one thread each")
    work.add_argument("--shard_index", type=int, default=0, help="number of this job, from 0 to --num_shards - 1")
    work.add_argument(
        "--num_shards", type=int, default=1, help="number of jobs, started separately, that share the work"
    )
    work.add_argument(
        "--ray", nargs="?", const="", metavar="ADDRESS", help="run on a Ray cluster; without ADDRESS, on a local one"
    )
    work.add_argument("--families_per_shard", type=int, default=FAMILIES_PER_SHARD, help="clip families per file")
    work.add_argument(
        "--retry_failed", action="store_true", help="prepare shards again in which something was skipped"
    )
    work.add_argument("--strict", action="store_true", help="stop at the first error instead of skipping files")
    hub = parser.add_argument_group("Hub")
    hub.add_argument("--push_to_hub", metavar="ID", help="upload the finished data set with a card to this repository")
    hub.add_argument(
        "--public", action="store_true", help="make the repository public (ask the owners of the data first)"
    )
    _add_output(parser)


@report_input_errors
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = make_parser().parse_args(arguments)
    name = options.layout if options.command == "check" else options.command
    try:
        status = run(options, LAYOUTS.get(name))
    except KeyboardInterrupt:
        print("Interrupted. Run the same command again to continue.", file=sys.stderr)
        status = _INTERRUPTED
    if status is not None:
        sys.exit(status)


if __name__ == "__main__":
    main()
