"""Names and places of prepared data sets, found without opening them.

Neither torch nor `datasets` is imported here, so that a wrong name is reported at once. `dataset.py` reads the rows.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors_dcl import InputError
from ..hub_dcl import check_dataset, may_be_repository

REAL, FAKE = 0, 1
CLASS_NAMES = ["real", "fake"]
SPLIT_NAME = r"\w+(?:\.\w+)*"  # the names that `datasets` accepts
#: The encodings of images, as options of Pillow. WebP with the least effort is 14 times faster than its default at
#: 380 px, and its files are a seventh larger. JPEG erases some of the traces that a detector looks for.
ENCODINGS: dict[str, dict[str, Any]] = {
    "webp-lossless": {"format": "WEBP", "lossless": True, "quality": 0, "method": 0},
    "png": {"format": "PNG"},
    "jpeg95": {"format": "JPEG", "quality": 95},
}
DEFAULT_ENCODING = "webp-lossless"


def split_names(names: Sequence[str]) -> list[str]:
    """Return the data set names of a command line, where `"a&b"` means two of them."""
    return [part.strip() for name in names for part in name.split("&") if part.strip()]


def check_names(names: Iterable[str], splits: Iterable[str], data_root: str | Path | None = None) -> None:
    """Raise an `InputError` if a prepared data set does not exist or lacks one of the splits.

    A name is a folder under `data_root`, else a path, else the id of a data set on the Hub. The splits of a data set
    on the Hub are not checked.
    """
    for name in names:
        folder = find_folder(name, data_root)
        if folder is None:
            check_dataset(name)
            continue
        for split in splits:
            files_of_split(split_files(folder), split, folder)


def find_folder(name: str, data_root: str | Path | None) -> Path | None:
    """Return the folder of a prepared data set; None if there is none, but the name may be an id on the Hub.

    Raises `InputError` if the name is neither.
    """
    candidates = [Path(data_root) / name] if data_root is not None else []
    candidates.append(Path(name))
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    if not may_be_repository(name):
        looked = " and ".join(map(str, candidates))
        raise InputError(
            f"Data set {name!r} not found: looked for the folder{'s' if len(candidates) > 1 else ''} {looked}. Create "
            "it with `dcl-prepare`."
        )
    return None


def split_files(folder: Path) -> dict[str, list[Path]]:
    """Return the Parquet files of each split of a prepared folder: `<split>.parquet`, or `<split>-*-of-*.parquet`."""
    splits: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.parquet")):
        if match := re.fullmatch(rf"({SPLIT_NAME})(-\d+-of-\d+)?", path.stem):
            splits.setdefault(match[1], []).append(path)
    return splits


def files_of_split(splits: dict[str, list[Any]], split: str, where: str | Path) -> list[Any]:
    """Return the files of one split; raises `InputError` if there is no such split, or a shard of it is missing."""
    if split not in splits:
        raise InputError(
            f"Data set {where} has no split {split!r}: "
            + (
                f"it has {', '.join(splits)}."
                if splits
                else "it contains no Parquet files. Create it with `dcl-prepare`."
            )
        )
    shards: dict[int, set[int]] = {}
    for path in splits[split]:
        if match := re.search(r"-(\d+)-of-(\d+)\.parquet$", str(path)):
            shards.setdefault(int(match[2]), set()).add(int(match[1]))
    if len(shards) + any(not re.search(r"-\d+-of-\d+\.parquet$", str(path)) for path in splits[split]) > 1:
        names = ", ".join(sorted(str(path).rpartition("/")[2] for path in splits[split])[:3])
        raise InputError(
            f"Data set {where}: the split {split!r} has files of several preparations (such as {names}). Keep "
            "those of one, and remove the others."
        )
    for total, there in shards.items():
        if len(there) < total:
            raise InputError(
                f"Data set {where}: the split {split!r} is incomplete ({len(there)} of {total} shards). Run "
                "`dcl-prepare` again to finish it."
            )
    return splits[split]
