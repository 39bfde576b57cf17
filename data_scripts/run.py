"""One run of `dcl-prepare`: check its options, choose the work, do it, and print what was done.

Imports of `datasets` come late: errors about names must not wait for it.
"""

import inspect
import itertools
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors_dcl import InputError
from ..media_dcl import PICTURE_SUFFIXES, count_skipped, say_skipped
from ..prepared.names import split_files
from .assets import ASSETS, DETECTORS, copy_to, fetch
from .clips import RawDataSet, check_shares
from .failures import Failures
from .photographs import MARGIN, SIZE, list_files

if TYPE_CHECKING:
    from .extract import Extraction
    from .shards import Report

_LEAST = {  # of the options that are numbers
    **{"size": 32, "margin": 0.5, "variants": 1, "frames": 1},
    **{"num_proc": 1, "num_shards": 1, "families_per_shard": 1},
}
_MOST = 10_000
_SHOWN = 20  # failures, and pairs of images, that are listed
_SOME_LEFT_OUT = 3  # exit status if some of a raw data set could not be prepared


def run(options: Namespace, layout: ModuleType | None) -> int | None:
    """Do what the options ask for, and print the result.

    Args:
        options: arguments of `dcl-prepare`.
        layout: the module that finds the clips of the raw data set; None if there is none.

    Returns:
        The exit status of `check` and of raw data sets: 0, or 3 if something was left out or is missing; else None.

    Raises:
        InputError: if an option is invalid, or the work cannot be done.
    """
    if options.command == "assets":
        for name in options.names or ASSETS:
            path = fetch(name)
            print(path if options.output is None else copy_to(options.output, path))
        return None
    _check_options(options)
    if options.command == "check":
        return _check_prepared(options.root) if layout is None else _check_raw(_find(options, layout))
    if layout is not None:
        return _prepare_raw(options, layout)
    return _prepare_demo(options) if options.command == "demo" else _prepare_forgeries(options)


def _check_options(options: Namespace) -> None:
    for option, least in _LEAST.items():
        value = getattr(options, option, None)
        if isinstance(value, int | float) and not least <= value <= _MOST:
            raise InputError(f"--{option} is {value}. Choose a value from {least} to {_MOST}.")
    shares = getattr(options, "split_shares", None)
    if shares is not None:
        check_shares(shares)
        if options.split != "train":
            raise InputError("--split names one split, --split_shares makes several. Pass one of them.")


def _find(options: Namespace, layout: ModuleType) -> RawDataSet:
    return layout.find(**_arguments_of(layout.find, options))


def _arguments_of(function: Callable[..., Any], options: Namespace) -> dict[str, Any]:
    """Return the options that a function takes, by name."""
    return {name: value for name, value in vars(options).items() if name in inspect.signature(function).parameters}


def _check_raw(found: RawDataSet) -> int:
    """Print what a raw data set contains; return the exit status."""
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
    from .splitting import count_faces, describe_shared_pictures, pictures_of_splits

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


def _prepare_demo(options: Namespace) -> None:
    """Prepare the demo data set."""
    from .demo import prepare_demo

    _report(options.output, prepare_demo(**_arguments_of(prepare_demo, options)))


def _prepare_forgeries(options: Namespace) -> None:
    """Prepare forgeries made from photographs or prepared reals."""
    if not Path(options.source).is_dir():
        what = "is not a folder" if Path(options.source).exists() else "not found"
        raise InputError(f"--source {options.source} {what}. Pass a folder of photographs, or of a prepared data set.")
    from .forging import prepare_forgeries

    _report(options.output, prepare_forgeries(**_arguments_of(prepare_forgeries, options)))
    if not any(Path(options.source).glob("*.parquet")):
        _print_skipped(count_skipped(list_files(Path(options.source), Failures()), PICTURE_SUFFIXES), videos=False)


def _prepare_raw(options: Namespace, layout: ModuleType) -> int:
    """Prepare a raw data set; return the exit status."""
    _check_work(options)
    if options.push_to_hub:
        from .publishing import check_hub, push_prepared

        check_hub(options.push_to_hub)
    found = _find(options, layout)
    how = _extraction(options, found)
    from .shard_work import Execution, prepare_raw, prepare_shares

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
        from .splitting import refuse_shared_pictures

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


def _check_work(options: Namespace) -> None:
    if not 0 <= options.shard_index < options.num_shards:
        raise InputError(
            f"--shard_index is {options.shard_index}, but --num_shards is {options.num_shards}. Choose an index from "
            f"0 to {options.num_shards - 1}."
        )
    if options.overwrite and options.num_shards > 1:
        raise InputError("--overwrite would remove the shards of other jobs. Remove the old shards by hand.")
    if options.public and not options.push_to_hub:
        raise InputError("--public has no effect without --push_to_hub. Add --push_to_hub, or remove --public.")


def _extraction(options: Namespace, found: RawDataSet) -> "Extraction":
    """Return how faces are cut and encoded; data sets of face crops take no options for that."""
    given = {name: getattr(options, name) for name in ("size", "margin", "crop", "detector")}
    crop = detector = None
    if not found.cropped:
        crop = {"kind": options.crop or "box", "margin": options.margin or MARGIN, "size": options.size or SIZE}
        detector = options.detector or DETECTORS[0]
    elif named := [name for name, value in given.items() if value is not None]:
        raise InputError(f"The faces of {options.root} are already cropped. Remove --{named[0]}.")
    from .extract import Extraction

    return Extraction(options.name or found.name, options.frames, crop, detector, options.encoding)


def _report(output: str, reports: "Mapping[str, Report]", total: "Report | None" = None) -> None:
    if total is None:
        from .shards import Report

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
