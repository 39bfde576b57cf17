"""Write a prepared data set: one Parquet file per split, whole families in a row group, done once and never half."""

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..dataset_dcl import FEATURES
from ..errors_dcl import InputError

_ROWS_PER_GROUP = 256  # a row group is closed by the first family that reaches it
_RECORD = ".prepared.json"  # hidden, so that `load_dataset` on the folder does not take it for data


def write_split(path: Path, families: Iterable[list[dict[str, Any]]]) -> int:
    """Write the rows of one split; the file appears under its name when it is whole.

    The file carries the features of `dataset_dcl.FEATURES`, so that `load_dataset` gives images and class labels.

    Args:
        path: where to, `<split>.parquet`.
        families: lists of rows with all columns of `FEATURES`, images encoded; a family stays in one row group.

    Returns:
        The number of rows.
    """
    schema = FEATURES.arrow_schema
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    rows, waiting = 0, []
    try:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for family in families:
                waiting.extend(family)
                if len(waiting) >= _ROWS_PER_GROUP:
                    rows += _write_group(writer, waiting, schema)
                    waiting = []
            rows += _write_group(writer, waiting, schema)
        os.chmod(temporary, 0o644)  # mkstemp gives it to its owner alone
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return rows


def _write_group(writer: pq.ParquetWriter, rows: list[dict[str, Any]], schema: pa.Schema) -> int:
    if rows:
        table = pa.Table.from_pylist([{name: row[name] for name in schema.names} for row in rows], schema)
        writer.write_table(table, row_group_size=len(rows))
    return len(rows)


class PreparedFolder:
    """An output folder that remembers with which settings each of its splits was written.

    Args:
        path: the folder; made if it is not there.
        settings: what the content depends on; JSON values.
        overwrite: replace a data set that was written with other settings.

    Raises:
        InputError: if the folder cannot be made, or holds a data set written with other settings (unless `overwrite`).
    """

    def __init__(self, path: str | Path, settings: dict[str, Any], overwrite: bool = False):
        self.path, self._settings = Path(path), json.loads(json.dumps(settings))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"the output folder {path} cannot be made ({error.strerror}): choose another --output."
            ) from error
        record = self._read()
        self._splits: dict[str, int] = record["splits"] if record and record["settings"] == self._settings else {}
        others = [] if self._splits else list(self.path.glob("*.parquet"))
        if others and not overwrite:
            raise InputError(
                f"{path} holds a data set that was prepared otherwise: choose another --output, "
                "or replace it with --overwrite."
            )
        for other in others:  # all of them, so that no split of the old set stays beside the new one
            other.unlink()

    def _read(self) -> dict[str, Any] | None:
        try:
            record = json.loads((self.path / _RECORD).read_text())
            return record if {"settings", "splits"} <= record.keys() else None
        except (OSError, ValueError, AttributeError):
            return None

    def done(self, split: str) -> int | None:
        """Return the number of rows of a split that is there with the same settings, else None."""
        return self._splits.get(split) if (self.path / f"{split}.parquet").is_file() else None

    def write(self, split: str, families: Iterable[list[dict[str, Any]]]) -> int:
        """Write a split and remember it; returns its number of rows."""
        self._splits[split] = write_split(self.path / f"{split}.parquet", families)
        record = self.path / f"{_RECORD}.tmp"
        record.write_text(json.dumps({"settings": self._settings, "splits": self._splits}, indent=1))
        os.replace(record, self.path / _RECORD)
        return self._splits[split]


__all__ = ["PreparedFolder", "write_split"]
