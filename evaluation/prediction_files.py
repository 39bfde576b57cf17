"""Read and check tables of predictions that were made elsewhere, and evaluate them like our own."""

import csv
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors_dcl import InputError, abridged, reason
from ..prepared.names import CLASS_NAMES, FAKE, REAL
from .metrics.bootstrap import DRAWS
from .metrics.groups import check_group_column
from .metrics.levels import frame_and_video_metrics
from .reporting.records import OF_METRICS, count_rows, versions
from .reporting.result_files import RESULT_FILES, complete_files, remove_what_is_of_another_run

logger = logging.getLogger(__name__)

SUFFIXES = (".csv", ".parquet", ".json", ".jsonl")
REQUIRED = ("dataset", "method", "video_id", "label", "p_fake")
#: Other spellings of labels, besides number and name.
_OTHER_LABELS = {"0.0": REAL, "false": REAL, "1.0": FAKE, "true": FAKE}
#: Columns to keep, in the order of `predictions.parquet`.
COLUMNS = (
    *("dataset", "split", "method", "video_id", "source_id", "frame", "label"),
    *("logit", "p_fake_raw", "p_fake"),
)
TEXTS = ("dataset", "split", "method", "video_id", "source_id")
KEYS = ["dataset", "video_id", "frame"]


@dataclass
class PredictionTable:
    """Validated predictions from other software."""

    name: str
    """The file name that the user gave."""
    revision: str
    """A hash of the file."""
    rows: pd.DataFrame
    """Its columns among `COLUMNS`, and the one to group by; one row per frame, in the order of the file."""


def read_predictions(name: str, group_by: str | None = None) -> PredictionTable:
    """Read and validate a table of predictions: CSV, Parquet, JSON (a list of objects) or JSON lines.

    Required columns are `dataset`, `method`, `video_id`, `label` (0, real or false; 1, fake or true) and `p_fake` (in
    [0, 1]). `source_id`, the real video that a fake was made from, defines the families for intervals. `frame` allows
    comparisons with other tables. `split` and `logit` are kept.

    Args:
        name: the file; its extension gives the format.
        group_by: another column to group metrics by.

    Raises:
        InputError: if the file cannot be read, has no rows, lacks a column or has an invalid value (the error names
            the first such row), or if the column to group by is empty in a data set or has too many values.
    """
    path = Path(name)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"Table of predictions {name!r}: unknown file extension. Pass one of {', '.join(SUFFIXES)}.")
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        table = _read(path)
    except pd.errors.EmptyDataError:
        table = pd.DataFrame()
    except (
        OSError,
        ValueError,
        RecursionError,
        csv.Error,
        pa.ArrowException,
    ) as error:  # of the disk and of each format
        raise InputError(
            f"Table of predictions {name!r}: cannot be read ({reason(error)}). Write it again as "
            f"{path.suffix.lower()[1:]}."
        ) from error
    if not len(table):
        raise InputError(f"Table of predictions {name!r}: has no rows. Write it again, one row per frame.")
    missing = [column for column in REQUIRED if column not in table]
    if missing:
        raise InputError(
            f"Table of predictions {name!r}: column {missing[0]!r} is missing (it has "
            f"{', '.join(map(str, table.columns))}). Write the columns {', '.join(REQUIRED)}."
        )
    if group_by is not None and group_by not in table:
        raise InputError(
            f"{name!r} has no column {group_by!r} to group by. Pass --group_by with one of "
            f"{', '.join(map(str, table.columns))}."
        )
    check = _Checks(table, name)
    rows = pd.DataFrame(index=table.index)
    for column in (column for column in COLUMNS if column in table):
        if column in TEXTS:
            rows[column] = check.texts(column, needed=column in ("dataset", "video_id"))
        elif column == "label":
            rows[column] = check.labels()
        elif column == "frame":
            if table[column].notna().any():
                rows[column] = check.frames()
        else:
            rows[column] = check.numbers(column, probability=column != "logit", needed=column == "p_fake")
    if group_by is not None:
        if group_by not in COLUMNS:
            rows[group_by] = check.texts(group_by)
        for dataset, part in rows.groupby("dataset"):
            check_group_column(part[group_by], group_by, f"{name} ({dataset})")
    if "frame" in rows and (repeated := rows.duplicated(KEYS).to_numpy()).any():
        at = int(np.argmax(repeated))
        video, frame = rows["video_id"].iloc[at], rows["frame"].iloc[at]
        raise InputError(
            f"{check.row(at)} repeats the video_id and frame of an earlier row ({video!r}, frame {frame}). Give every "
            "clip its own video_id, and every compression level its own data set."
        )
    return PredictionTable(name, f"sha256:{digest}", rows)


def _read(path: Path) -> pd.DataFrame:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        _check_widths(path)
        # As text: the video_id "007" is not 7, and the method "None" is not missing.
        return pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""], encoding="utf-8-sig")
    if suffix == ".parquet":
        _check_names(pq.read_schema(path).names)
        return pd.read_parquet(path)
    text = path.read_bytes().decode("utf-8-sig")
    if suffix == ".jsonl":  # strings may contain other line breaks of Python, such as U+2028
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    else:
        rows = json.loads(text) if text.strip() else []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("it is not a list of objects, one per row")
    return pd.DataFrame(rows, dtype=object)


def _check_names(names: Sequence[str]) -> None:
    """Raise a `ValueError` if two columns have the same name."""
    for name, times in Counter(names).items():
        if times > 1:
            raise ValueError(f"{times} columns have the name {name!r}")


def _check_widths(path: Path) -> None:
    """Raise a `ValueError` if a row and the header differ in length, or the header repeats a name.

    pandas would fill, shift, or cut such rows, and rename such columns.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        header = next((row for row in reader if row), [])
        _check_names(header)
        for row in reader:
            if row and len(row) != len(header):
                raise ValueError(f"line {reader.line_num} has {len(row)} fields, but the header has {len(header)}")


class _Checks:
    """Validates the columns of a table and converts them to the types of `predictions.parquet`."""

    def __init__(self, table: pd.DataFrame, name: str):
        self.table, self.name = table, name

    def row(self, index: int) -> str:
        """Return the name of a row in errors."""
        return f"Row {index + 1} of {self.name!r} (counted from 1)"

    def texts(self, column: str, needed: bool = False) -> pd.Series:
        values = self.table[column].astype(object)
        for at, value in enumerate(values):
            if pd.api.types.is_list_like(value):  # includes objects in JSON and nested values in Parquet
                raise InputError(f"{self.row(at)}: {column} is {_shown(value)}. Write a text or a number.")
        given = (values.notna() & (values != "")).to_numpy()
        if needed and not given.all():
            raise InputError(f"{self.row(int(np.argmin(given)))}: {column} is missing. Give every row one.")
        # Most formats store integers with missing values as floats: 7.0 is the video 7.
        texts = [
            (str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)) if known else None
            for value, known in zip(values, given, strict=True)
        ]
        return pd.Series(texts, index=values.index, dtype=object)

    def labels(self) -> np.ndarray:
        known = {str(index): index for index in range(len(CLASS_NAMES))} | {
            name: index for index, name in enumerate(CLASS_NAMES)
        }
        known |= _OTHER_LABELS
        texts = self.texts("label", needed=True).str.strip().str.lower()
        labels = texts.map(known)
        if labels.isna().any():
            at = int(np.argmax(labels.isna()))
            raise InputError(
                f"{self.row(at)}: label is {_shown(self.table['label'].iloc[at])}. Write 0 or real, 1 or fake."
            )
        return labels.to_numpy(np.int8)

    def frames(self) -> np.ndarray:
        numbers = _floats(self.table["frame"])
        whole = np.isfinite(numbers) & (numbers == np.round(numbers)) & (np.abs(numbers) < 2**31)
        if not whole.all():
            at = int(np.argmin(whole))
            raise InputError(
                f"{self.row(at)}: frame is {_shown(self.table['frame'].iloc[at])}. Give every row a whole number, "
                "or leave the column out."
            )
        return numbers.astype(np.int32)

    def numbers(self, column: str, probability: bool, needed: bool) -> np.ndarray:
        values = self.table[column]
        numbers = _floats(values)
        valid = (numbers >= 0) & (numbers <= 1) if probability else ~np.isnan(numbers)
        if not needed:
            valid |= values.isna().to_numpy()
        if not valid.all():
            at = int(np.argmin(valid))
            what = "the probability of fake, from 0 to 1" if probability else "a number, or leave the column out"
            raise InputError(f"{self.row(at)}: {column} is {_shown(values.iloc[at])}. Give {what}.")
        return numbers


def _floats(values: pd.Series) -> np.ndarray:
    """Return values as float64 (n,), with NaN for any value that is not a float."""
    try:
        return pd.to_numeric(values, errors="coerce").to_numpy(float, na_value=np.nan)
    except (OverflowError, TypeError, ValueError):  # integers with hundreds of digits, and lists
        return np.array([_float(value) for value in values], np.float64)


def _float(value: object) -> float:
    try:
        return float(value)
    except (OverflowError, TypeError, ValueError):
        return np.nan


def _shown(value: object) -> str:
    """Return a value for an error: a plain number instead of numpy's."""
    return abridged(value.tolist() if isinstance(value, np.generic | np.ndarray) else value)


def evaluate_predictions(
    table: PredictionTable,
    folder: Path,
    run: Mapping[str, Any],
    group_by: str | None = None,
    bootstrap: int = DRAWS,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Compute the metrics of a table of predictions; write `predictions.parquet`, `metrics.json` and `run.json`.

    The files replace earlier ones together, once all are complete. Outdated files derived from earlier results are
    removed.

    Args:
        table: result of `read_predictions`.
        folder: folder for the files; created if missing.
        run: further entries for `run.json`.
        group_by: a column to group metrics by.
        bootstrap: number of bootstrap draws for the intervals; 0 for none.
        seed: seed of the draws.

    Returns:
        The content of `metrics.json`, see `frame_and_video_metrics`.

    Raises:
        InputError: if `folder` cannot be written.
    """
    if "source_id" not in table.rows and bootstrap:
        logger.warning(
            "%s has no column source_id, so every video counts as its own family. Intervals are too narrow if several "
            "fakes share a real source video.",
            table.name,
        )
    metrics = frame_and_video_metrics(table.rows, group_by=group_by, bootstrap=bootstrap, seed=seed)
    record = {
        "model": table.name,
        "revision": table.revision,
        "datasets": {name: count_rows(rows) for name, rows in table.rows.groupby("dataset")},
        "versions": versions(*OF_METRICS),
        **run,
    }
    with complete_files(folder, RESULT_FILES) as paths:
        table.rows.to_parquet(paths["predictions.parquet"], index=False)
        for name, content in (("run.json", record), ("metrics.json", metrics)):
            paths[name].write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    remove_what_is_of_another_run(folder, record)
    return metrics


def shared_rows(first: pd.DataFrame, second: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the shared rows of two tables of predictions, for `compare_models`.

    A row without a `source_id` in one table gets that of the other.

    Args:
        first: predictions with the columns of `frame_and_video_metrics`.
        second: predictions of another model.

    Returns:
        The rows of both tables with the same data set, video and frame, in the same order.

    Raises:
        InputError: if a table has no frame numbers, or the tables share no rows or disagree on a label.
    """
    for table in (first, second):
        if "frame" not in table or table["frame"].isna().any():
            raise InputError("One of the tables has no frame numbers. Add a column frame to compare them.")
    first, second = (table.assign(frame=table["frame"].astype(np.int64)).set_index(KEYS) for table in (first, second))
    shared = first.index.intersection(second.index).sort_values()
    if not len(shared):
        raise InputError("The tables share no rows. Use the same names of data sets, videos and frames in both.")
    first, second = first.loc[shared], second.loc[shared]
    differ = (first["label"].to_numpy() != second["label"].to_numpy()).nonzero()[0]
    if len(differ):
        dataset, video, frame = shared[differ[0]]
        raise InputError(
            f"The tables disagree on the label of {len(differ)} rows (such as frame {frame} of {video!r} of "
            f"{dataset}). Correct the labels."
        )
    pair = first, second
    empty = pd.Series(None, index=shared, dtype=object)
    sources = [table["source_id"].astype(object) if "source_id" in table else empty for table in pair]
    known = sources[0].where(sources[0].notna(), sources[1])
    return tuple(table.assign(source_id=known).reset_index() for table in pair)
