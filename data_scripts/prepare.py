"""The command `dcl-prepare`: `demo`, `blend`, a layout of `LAYOUTS`, `check` or `assets` (each with --help)."""

import argparse
import inspect
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dcl_face_forgery.data_scripts.assets import ASSETS, DETECTORS, copy_to, fetch
from dcl_face_forgery.data_scripts.clips import FAMILIES_PER_SHARD, RawDataSet, check_shares
from dcl_face_forgery.data_scripts.failures import Failures
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
from dcl_face_forgery.data_scripts.photographs import MARGIN, SIZE, list_files
from dcl_face_forgery.errors_dcl import InputError, report_input_errors
from dcl_face_forgery.faces_dcl import CROP_KINDS
from dcl_face_forgery.media_dcl import PICTURE_SUFFIXES, count_skipped, say_skipped
from dcl_face_forgery.prepared.blending import METHODS
from dcl_face_forgery.prepared.names import DEFAULT_ENCODING, ENCODINGS, split_files

if TYPE_CHECKING:
    from dcl_face_forgery.data_scripts.shards import Report

#: The data set layouts, by the name of their command.
_LAYOUTS = (folder, ffpp, celeb_df, dfdc, dfdcp, deeperforensics, uadfv, wild_deepfake, deepfakebench)
LAYOUTS = {layout.__name__.rpartition(".")[2]: layout for layout in _LAYOUTS}
_LEAST = {  # of the options that are numbers
    **{"size": 32, "margin": 0.5, "variants": 1, "frames": 1},
    **{"num_proc": 1, "num_shards": 1, "families_per_shard": 1},
}
_SHOWN = 20  # skipped files that are listed
_INTERRUPTED = 130  # exit status, as in shells
_SOME_LEFT_OUT = 3  # exit status if some of a raw data set could not be prepared


def _path(text: str) -> str:
    if not text:  # an unset variable of the shell, which would mean the current folder
        raise argparse.ArgumentTypeError("the path is empty")
    return text


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults if there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
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
    options = _parser().parse_args(arguments)
    if options.command == "assets":
        for name in options.names or ASSETS:
            path = fetch(name)
            print(path if options.output is None else copy_to(options.output, path))
        return
    for option, least in _LEAST.items():
        value = getattr(options, option, None)
        if isinstance(value, int | float) and not least <= value <= 10_000:
            raise InputError(f"--{option} is {value}. Choose a value from {least} to 10000.")
    shares = getattr(options, "split_shares", None)
    if shares is not None:
        check_shares(shares)
        if options.split != "train":
            raise InputError("--split names one split, --split_shares makes several. Pass one of them.")
    commands = {"check": _check, "demo": _prepare_demo, "blend": _prepare_forgeries}
    try:
        status = commands.get(options.command, _prepare_raw)(options)
    except KeyboardInterrupt:
        print("Interrupted. Run the same command again to continue.", file=sys.stderr)
        status = _INTERRUPTED
    if status is not None:
        sys.exit(status)


def _find(options: argparse.Namespace, name: str) -> RawDataSet:
    return LAYOUTS[name].find(**_arguments_of(LAYOUTS[name].find, options))


def _arguments_of(function: Callable[..., Any], options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that a function takes, by name."""
    return {name: value for name, value in vars(options).items() if name in inspect.signature(function).parameters}


def _check(options: argparse.Namespace) -> int:
    """Print what a data set contains; return the exit status."""
    if options.layout == "prepared":
        return _check_prepared(options.root)
    found = _find(options, options.layout)
    rows = [
        (part.name, f"{part.found:,}", "" if part.published is None else f"{part.published:,}") for part in found.parts
    ]
    rows += [(f"split {split}", f"{len(families):,} families", "") for split, families in found.splits.items()]
    _print_table([("part", "found", "published"), *rows])
    _print_failures(found.failures)
    _print_skipped(found.skipped)
    short = [part.name for part in found.parts if part.published is not None and part.found < part.published]
    if short:
        print(f"Fewer than published: {', '.join(short)}")
    return _SOME_LEFT_OUT if short or found.failures else 0


def _check_prepared(root: str) -> int:
    """Print the splits of a prepared data set and the images that they share; return the exit status."""
    if not split_files(Path(root)):
        raise InputError(f"Folder {root} contains no prepared data set (for example, no train.parquet). Check --root.")
    from dcl_face_forgery.data_scripts.splitting import count_faces, describe_shared_pictures, pictures_of_splits

    splits, rows = pictures_of_splits(root), []
    for pictures in splits:
        faces = count_faces(pictures.table.source_id, pictures.table.label)
        counts = [sum(column) for column in zip(*faces.values(), strict=True)]
        rows.append((pictures.where, *(f"{number:,}" for number in (*counts, len(faces)))))
    _print_table([("split", "real", "fake", "families"), *rows])
    shared = describe_shared_pictures(splits)
    for sentence in shared[:_SHOWN]:
        print(f"{sentence}.")
    if len(shared) > _SHOWN:
        print(f"... and {len(shared) - _SHOWN} more pairs")
    return _SOME_LEFT_OUT if shared else 0


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _prepare_demo(options: argparse.Namespace) -> None:
    """Prepare the demo data set."""
    from dcl_face_forgery.data_scripts.demo import (
        prepare_demo,  # like the others below, imports `datasets`: wrong names need not
    )

    _report(options.output, prepare_demo(**_arguments_of(prepare_demo, options)))


def _prepare_forgeries(options: argparse.Namespace) -> None:
    """Prepare forgeries made from photographs."""
    if not Path(options.source).is_dir():
        what = "is not a folder" if Path(options.source).exists() else "not found"
        raise InputError(f"--source {options.source} {what}. Pass a folder of photographs, or of a prepared data set.")
    from dcl_face_forgery.data_scripts.forging import prepare_forgeries

    _report(options.output, prepare_forgeries(**_arguments_of(prepare_forgeries, options)))
    if not any(Path(options.source).glob("*.parquet")):
        _print_skipped(count_skipped(list_files(Path(options.source), Failures()), PICTURE_SUFFIXES), videos=False)


def _prepare_raw(options: argparse.Namespace) -> int:
    """Prepare a raw data set; return the exit status."""
    if not 0 <= options.shard_index < options.num_shards:
        raise InputError(
            f"--shard_index is {options.shard_index}, but --num_shards is {options.num_shards}. Choose an index from "
            f"0 to {options.num_shards - 1}."
        )
    if options.overwrite and options.num_shards > 1:
        raise InputError("--overwrite would remove the shards of other jobs. Remove the old shards by hand.")
    if options.public and not options.push_to_hub:
        raise InputError("--public has no effect without --push_to_hub. Add --push_to_hub, or remove --public.")
    if options.push_to_hub:
        from dcl_face_forgery.data_scripts.publishing import check_hub, push_prepared

        check_hub(options.push_to_hub)
    found = _find(options, options.command)
    crop = detector = None
    given = {name: getattr(options, name) for name in ("size", "margin", "crop", "detector")}
    if not found.cropped:
        crop = {"kind": options.crop or "box", "margin": options.margin or MARGIN, "size": options.size or SIZE}
        detector = options.detector or DETECTORS[0]
    elif named := [name for name, value in given.items() if value is not None]:
        raise InputError(f"The faces of {options.root} are already cropped. Remove --{named[0]}.")
    from dcl_face_forgery.data_scripts.extract import Extraction
    from dcl_face_forgery.data_scripts.raw import Execution, prepare_raw, prepare_shares

    how = Extraction(options.name or found.name, options.frames, crop, detector, options.encoding)
    execution = Execution(
        processes=options.num_proc,
        job=options.shard_index,
        jobs=options.num_shards,
        ray=options.ray is not None,
        ray_address=options.ray or None,
        strict=options.strict,
        retry_failed=options.retry_failed,
        overwrite=options.overwrite,
    )
    where = options.root, options.output, how
    if getattr(options, "split_shares", None):
        preparation = prepare_shares(found, *where, options.split_shares, execution, options.families_per_shard)
    else:
        preparation = prepare_raw(found, *where, execution, options.families_per_shard)
    if options.command == "folder" and not preparation.waiting:  # published data sets keep their splits
        from dcl_face_forgery.data_scripts.splitting import refuse_shared_pictures

        refuse_shared_pictures(options.output)
    total = preparation.total
    _report(options.output, preparation.reports, total)
    _print_skipped(found.skipped)
    print(f"{total.clips:,} clips, {total.frames:,} frames, {total.faces:,} faces; details in {preparation.summary}")
    if preparation.waiting:
        print(f"{preparation.waiting} of {preparation.shards} shards remain for the other jobs")
    elif options.push_to_hub:
        left_out = total.failures.by_reason()
        print(push_prepared(options.output, options.push_to_hub, left_out, private=not options.public))
    return _SOME_LEFT_OUT if total.failures else 0


def _report(output: str, reports: "Mapping[str, Report]", total: "Report | None" = None) -> None:
    if total is None:
        from dcl_face_forgery.data_scripts.shards import Report

        total = Report()
        for report in reports.values():
            total.add(report)
    for split, report in reports.items():
        print(f"{output}: {split}, {report.faces} faces")
    _print_failures(total.failures)
    for reason, number in total.missing.items():
        print(f"Not made: {number} of {reason}")


def _print_skipped(skipped: Counter[str], videos: bool = True) -> None:
    if skipped:
        print(say_skipped(skipped, videos))


def _print_failures(failures: Failures) -> None:
    if failures:
        print("Skipped:")
        for reason, number in failures.by_reason().items():
            counts = [f"{count} {what if count > 1 else what[:-1]}" for what, count in number.items() if count]
            print(f"  {reason}: {', '.join(counts)}")
        print("Details:")
        for failure in itertools.islice(failures, _SHOWN):
            print(f"  {failure}")
        if len(failures) > _SHOWN:
            print(f"  ... and {len(failures) - _SHOWN} more")


if __name__ == "__main__":
    main()
