"""Prepared data sets: their columns, loading, and checks of their content.

Prepared sets are Parquet files named after their split (`train.parquet`, `test-00000-of-00004.parquet`), in a folder
or in a data set repository on the Hub. One row is one face crop. Training and evaluation read them with this module.
"""

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, Image, List, Value, load_dataset, load_dataset_builder
from PIL import Image as PILImage

from ..errors_dcl import InputError, PictureError, disk_trouble, reason
from ..hub_dcl import hub_is_reachable
from ..media_dcl import decode_picture, read_picture, read_values
from .codecs import decode_plain
from .names import CLASS_NAMES, DEFAULT_ENCODING, ENCODINGS, FAKE, REAL, files_of_split, find_folder, split_files

CROP_FIELDS = {
    "kind": Value("string"),
    "margin": Value("float32"),
    "size": Value("int32"),
    "detector": Value("string"),
}

#: The columns of a prepared data set. `mask` is null where the forged region is unknown and zero everywhere for a
#: real; `source_id` is the `video_id` of the real video a fake was made from (its own for a real): the family; `phash`
#: finds copies (`copies.picture_hash`). The `path` of an image is the name of the image file that it was cut from;
#: null for a frame of a video.
FEATURES = Features(
    {
        "image": Image(),
        "mask": Image(),
        "label": ClassLabel(names=CLASS_NAMES),
        "method": Value("string"),
        "compression": Value("string"),
        "video_id": Value("string"),
        "source_id": Value("string"),
        "frame": Value("int32"),
        "landmarks": List(List(Value("float32"))),
        "crop": CROP_FIELDS,
        "dataset": Value("string"),
        "phash": Value("string"),
    }
)
OPTIONAL_COLUMNS = {"mask", "compression", "landmarks", "phash"}
TAIL = 64  # bytes of an encoded image that a fingerprint looks at


class CorruptImageError(InputError):
    """An image of a prepared data set cannot be decoded; `cause` is the message without the remedy.

    A data loader worker passes the error on as one text.
    """

    def __init__(self, cause: str, remedy: str | None = None):
        super().__init__(cause if remedy is None else f"{cause}. {remedy}.")
        self.cause = cause


def load_prepared(name: str, split: str, data_root: str | Path | None = None, split_alone: bool = False) -> Dataset:
    """Load one split of a prepared data set, its columns checked, its images still encoded.

    Args:
        name: a folder under `data_root`, else a path, else the id of a data set on the Hub.
        split: `"train"`, `"validation"`, `"test"`, or any other file name stem of the folder.
        data_root: where names are looked up first.
        split_alone: for a data set on the Hub, download only this split. The Hub must then be reachable, since
            `datasets` caches only whole data sets under their name.

    Returns:
        The columns of `FEATURES`; `image` and `mask` are cells, see `decode_image` and `decode_mask`.

    Raises:
        InputError: if the set or the split is missing, empty or unreadable, or a column is missing or of another type.
    """
    with explained_failure(name, split, data_root):
        if split_alone or find_folder(name, data_root) is not None:
            # Never the default split name: the cache key would not tell two splits of one folder apart.
            files = {split: find_files(name, split, data_root)}
            dataset = load_dataset("parquet", data_files=files, split=split)
        else:
            hub_is_reachable()
            dataset = load_dataset(name, split=split)
    return _with_checked_columns(dataset, f"{name} ({split})")


@contextlib.contextmanager
def explained_failure(name: str, split: str, data_root: str | Path | None) -> Iterator[None]:
    """Turn any error in loading a split into an `InputError` that names the split."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # each builder, codec and transport has its own class of error
        if disk_trouble(error) is not None:  # of the cache
            raise
        remedy = (
            "There is no such folder, either. Check the path, or the id and the network"
            if find_folder(name, data_root) is None
            else "Prepare or download it again"
        )
        raise InputError(
            f"Data set {name!r}: the split {split!r} cannot be loaded ({reason(error)}). {remedy}."
        ) from error


def find_files(name: str, split: str, data_root: str | Path | None = None) -> list[str]:
    """Return the Parquet files of a split, in order: paths, or addresses (`hf://...`) of files on the Hub.

    Raises `InputError` if there is no such set or split, a shard of it is missing, or a local file is no Parquet file.
    """
    folder = find_folder(name, data_root)
    if folder is None:
        return files_of_split(_hub_files(name), split, name)
    files = [str(path) for path in files_of_split(split_files(folder), split, folder)]
    files = [path for path in files if _count_rows(path)]  # the columns of a file without rows may have no type
    if not files:  # the error of `datasets` would not say so
        raise InputError(f"Data set {folder} ({split}) is empty. Prepare or download it again.")
    return files


def _hub_files(name: str) -> dict[str, list[str]]:
    """Return the files that `datasets` would load from a data set on the Hub, at its current commit."""
    hub_is_reachable()
    files = load_dataset_builder(name).config.data_files
    if files is None:
        raise InputError(
            f"Data set {name!r} cannot be listed because the Hub cannot be reached. Train without --streaming."
        )
    other = [path for paths in files.values() for path in paths if not path.endswith(".parquet")]
    if other:
        raise InputError(
            f"Data set {name!r} is not a prepared one: it contains {other[0]}. Choose one with Parquet files."
        )
    return {str(split): list(paths) for split, paths in files.items()}


def _count_rows(path: str) -> int:
    try:
        return pq.read_metadata(path).num_rows
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{path} is not a complete Parquet file ({reason(error)}). Prepare or download it again."
        ) from error


def _with_checked_columns(dataset: Dataset, where: str) -> Dataset:
    if len(dataset) == 0:
        raise InputError(f"Data set {where} is empty. Prepare or download it again.")
    kept = check_columns(dataset.features, lambda column: dataset.data.column(column).null_count, where)
    dataset = dataset.remove_columns([name for name in OPTIONAL_COLUMNS - set(kept) if name in dataset.column_names])
    for column in ("image", "mask"):
        if column in dataset.column_names:
            dataset = dataset.cast_column(column, Image(decode=False))
    return dataset


def check_columns(features: Features, null_count: Callable[[str], int], where: str) -> list[str]:
    """Return the columns of `FEATURES` that a data set has, without optional ones that are empty.

    `null_count` returns how many rows of a column have no value. Raises `InputError` if a column is missing, is of
    another type, or has rows without a value.
    """
    kept = []
    for column, expected in FEATURES.items():
        if column not in features:
            if column not in OPTIONAL_COLUMNS:
                raise InputError(
                    f"Data set {where} has no column {column!r}. A prepared data set has {', '.join(FEATURES)}."
                )
            continue
        actual = features[column]
        if column in OPTIONAL_COLUMNS and _is_null(actual):  # an empty column counts as missing
            continue
        if not _same_kind(actual, expected):
            raise InputError(
                f"Data set {where}: the column {column!r} is {actual}, not {expected}. "
                f"Cast it (`dataset.cast_column({column!r}, ...)`) or prepare the set again."
            )
        if column not in OPTIONAL_COLUMNS and null_count(column):
            raise InputError(f"Data set {where}: the column {column!r} has rows without a value. Fill them.")
        kept.append(column)
    return kept


def _same_kind(actual: Any, expected: Any) -> bool:
    if isinstance(expected, Image):
        return isinstance(actual, Image)
    if isinstance(expected, ClassLabel):
        return isinstance(actual, ClassLabel) and actual.names == expected.names
    if isinstance(expected, dict):
        return isinstance(actual, dict) and all(
            key in actual and (_is_null(actual[key]) or _same_kind(actual[key], value))  # null: unknown in all rows
            for key, value in expected.items()
        )
    if isinstance(expected, List):
        return getattr(actual, "feature", None) is not None
    if not isinstance(actual, Value):
        return False
    kinds = (
        pa.types.is_integer,
        pa.types.is_floating,
        lambda type_: pa.types.is_string(type_) or pa.types.is_large_string(type_),
    )
    return any(kind(actual.pa_type) and kind(expected.pa_type) for kind in kinds)


def _is_null(feature: Any) -> bool:
    """Whether a column holds nothing but nulls, as a writer without a schema leaves it."""
    return isinstance(feature, Value) and feature.dtype == "null"


def metadata(dataset: Dataset) -> pa.Table:
    """Return every column but the images, as one table in row order."""
    columns = [name for name in dataset.column_names if name not in ("image", "mask")]
    return dataset.select_columns(columns).with_format("arrow")[:]


def keys_of(rows: Any) -> pd.DataFrame:
    """Return the columns that identify rows; names of videos also contain the data set and the compression."""
    names = ["label", "method", "video_id", "source_id", "frame", "crop", "dataset", "compression"]
    table = metadata(rows.select_columns([name for name in names if name in rows.column_names])).to_pandas()
    for name in {"dataset", "compression"} & set(table):
        for column in ("video_id", "source_id"):
            table[column] = table[column] + "@" + table[name].fillna("").astype(str)
    return table


def name_row(index: int, where: str) -> str:
    """Return the name of a row in errors, counted from 0."""
    return f"row {index} (the first is 0) of {where}"


def check_labels(labels: np.ndarray, where: str) -> None:
    """Raise an `InputError` if a row of a data set has no label, since no row may be left out silently."""
    unlabelled = np.flatnonzero((labels != REAL) & (labels != FAKE))  # `datasets` writes -1
    if len(unlabelled):
        raise InputError(
            f"{where} has rows without a label: {len(unlabelled)} (such as row {unlabelled[0]}; the first is 0). "
            "Label or remove them."
        )


def find_crop(dataset: Dataset, where: str, allow_mixed: bool = False) -> dict[str, Any]:
    """Return how the faces of a data set were cut: `{"kind", "margin", "size", "detector"}`.

    Raises `InputError` if the rows were cut in different ways. With `allow_mixed`, returns the most frequent one.
    """
    crops = metadata(dataset.select_columns(["crop"])).column("crop").combine_chunks()
    counts = pa.table({name: pc.struct_field(crops, name) for name in CROP_FIELDS}).group_by(list(CROP_FIELDS))
    kinds = counts.aggregate([([], "count_all")]).sort_by([("count_all", "descending")]).to_pylist()
    for kind in kinds:
        if kind["margin"] is not None:
            kind["margin"] = round(kind["margin"], 6)  # stored as float32
    if len(kinds) > 1 and not allow_mixed:
        shown = "; ".join(
            f"{ {name: kind[name] for name in CROP_FIELDS} } in {kind['count_all']} rows" for kind in kinds
        )
        raise InputError(
            f"The faces of {where} were cut in {len(kinds)} ways ({shown}). Prepare them in one way, "
            "or pass --allow_mixed_crops."
        )
    return {name: kinds[0][name] for name in CROP_FIELDS}


def fingerprint(dataset: Dataset) -> str:
    """Return a hash of all columns of the rows; of encoded images and masks, it covers the length and the last bytes.

    An encoded image ends in a checksum (PNG) or in entropy-coded data, whose bits depend on everything before them, so
    hardly any change of an image keeps both its length and its end. Even for large data sets this takes only seconds.
    """
    digest = hashlib.sha256()
    for batch in dataset.with_format("arrow").iter(batch_size=1000):
        table = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
        for name in sorted(table.column_names):
            column = table.column(name).combine_chunks()
            if name in ("image", "mask"):
                encoded = pc.struct_field(column, "bytes")
                digest.update(f"{name}{pc.binary_length(encoded).to_pylist()}".encode())
                if encoded.null_count:  # an image file beside the data set, of which the path is stored
                    digest.update(f"{pc.struct_field(column, 'path').to_pylist()}".encode())
                column = pc.binary_slice(encoded, -TAIL, None)
            digest.update(f"{name}{column.to_pylist()}".encode())
    return digest.hexdigest()[:16]


def decode_image(cell: dict[str, Any], row: str) -> np.ndarray:
    """Decode an `image` cell, `{"bytes", "path"}`, as detection reads images: upright, in sRGB, 8 bits per channel.

    Returns uint8 (height, width, 3), writable as PyTorch needs it. Raises `CorruptImageError`, which names the row.
    """
    plain = None if cell["bytes"] is None else decode_plain(cell["bytes"])
    if plain is not None:
        return plain
    with _decoding(cell, f"The image of {row}") as (source, name):
        pixels = decode_picture(source, name).pixels if isinstance(source, bytes) else read_picture(source)
        return np.require(pixels, requirements="W")


def decode_mask(cell: dict[str, Any] | None, row: str) -> np.ndarray | None:
    """Decode a `mask` cell to the forged share of each pixel: uint8 array (height, width), or None if unknown.

    The stored values are returned without colour conversion, turned upright if the EXIF data of the mask say so.
    """
    if cell is None:
        return None
    mask = None if cell["bytes"] is None else decode_plain(cell["bytes"], grey=True)
    if mask is None:
        with _decoding(cell, f"The mask of {row}") as (source, name):
            mask = read_values(source, name, "L")
    if mask.max(initial=0) == 1:  # a weight of 1/255 would change no pixel
        raise CorruptImageError(
            f"The mask of {row} contains 0 and 1, but 255 must mean forged",
            "Multiply it by 255, or pass --skip_corrupt to skip such rows",
        )
    return mask


@contextlib.contextmanager
def _decoding(cell: dict[str, Any], what: str) -> Iterator[tuple[bytes | str, str]]:
    """Yield the bytes or the path of a cell, and its name, and turn errors into a `CorruptImageError`."""
    try:
        yield (cell["path"] or "" if cell["bytes"] is None else cell["bytes"]), what
    except PictureError as error:
        why = error.why if cell["bytes"] is not None else f"{cell['path']}: {error.why}"
        raise CorruptImageError(
            f"{what} cannot be decoded ({why})", "Fix the row, or pass --skip_corrupt to skip such rows"
        ) from error


def encode_image(image: np.ndarray, encoding: str = DEFAULT_ENCODING, name: str | None = None) -> dict[str, Any]:
    """Encode an image, RGB uint8 (height, width, 3), or a mask, uint8 (height, width), as a cell; masks without loss.

    The encoding is a key of `ENCODINGS`. The name is that of the image file that it was cut from, if there is one.
    """
    buffer = io.BytesIO()
    how = ENCODINGS[encoding] if image.ndim == 3 else ENCODINGS["png"]
    PILImage.fromarray(image).save(buffer, **how)
    return {"bytes": buffer.getvalue(), "path": name}
