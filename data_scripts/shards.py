"""Write a prepared data set: one Parquet file per split, whole families in a row group, done once and never half."""

import hashlib
import json
import logging
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..dataset_dcl import FEATURES, SPLIT_NAME
from ..errors_dcl import InputError

logger = logging.getLogger(__name__)

_ROWS_PER_GROUP = 256  # a row group is closed by the first family that reaches it
_RECORD = ".prepared.json"  # hidden, so that `load_dataset` on the folder does not take it for data


@dataclass
class Outcome:
    """What a preparation did.

    Attributes:
        rows: number of rows of each split.
        problems: what was left out, each with the reason.
        missing: the forgeries that were not made, counted by method and reason.
    """

    rows: dict[str, int] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    missing: Counter[str] = field(default_factory=Counter)


def state_of(root: Path, files: Iterable[Path]) -> str:
    """Return a hash of the paths, sizes and times of files below a folder: another one when any of them changed."""
    state = "".join(f"{path.relative_to(root)} {path.stat().st_size} {path.stat().st_mtime_ns}\n" for path in files)
    return hashlib.sha256(state.encode()).hexdigest()


def write_split(path: Path, families: Iterable[list[dict[str, Any]]]) -> int:
    """Write the rows of one split into a file.

    The file carries the features of `dataset_dcl.FEATURES`, so that `load_dataset` gives images and class labels.

    Args:
        path: where to, `<split>.parquet`.
        families: lists of rows with all columns of `FEATURES`, images encoded; a family stays in one row group.

    Returns:
        The number of rows.
    """
    schema = FEATURES.arrow_schema
    rows, waiting = 0, []
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for family in families:
            waiting.extend(family)
            if len(waiting) >= _ROWS_PER_GROUP:
                rows += _write_group(writer, waiting, schema)
                waiting = []
        rows += _write_group(writer, waiting, schema)
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
        splits: the splits that are going to be written.
        settings: what their content depends on; JSON values.
        overwrite: replace what was written with other settings.
        own: the settings in which the folder's other splits may differ from these.

    Raises:
        InputError: if a split's name cannot be one, the folder cannot be written, or it holds a split that was made
            otherwise (unless `overwrite`): one of `splits` with other settings, or another one that differs in more
            than `own`.
    """

    def __init__(
        self,
        path: str | Path,
        splits: Iterable[str],
        settings: dict[str, Any],
        overwrite: bool = False,
        own: Iterable[str] = (),
    ):
        self.path, self._settings = Path(path), json.loads(json.dumps(settings))
        splits, own = set(splits), set(own)
        for split in splits:
            if not re.fullmatch(SPLIT_NAME, split):
                raise InputError(
                    f"a split cannot be called {split!r}: use letters, digits and _ (train, validation, test)."
                )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.path).close()
        except OSError as error:
            raise InputError(
                f"the output folder {path} cannot be written ({error.strerror}): choose another --output."
            ) from error
        record = self._read()
        self._record: dict[str, dict[str, Any]] = {}
        self._replaced: list[Path] = []
        for file in sorted(self.path.glob("*.parquet")):
            entry, ignored = record.get(file.stem), set() if file.stem in splits else own
            if entry is not None and _without(entry["settings"], ignored) == _without(self._settings, ignored):
                self._record[file.stem] = entry
            elif overwrite:
                self._replaced.append(file)
            else:
                raise InputError(
                    f"{file} was prepared otherwise: choose another --output, or replace it with --overwrite."
                )

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            record = json.loads((self.path / _RECORD).read_text())
            return {split: entry for split, entry in record.items() if entry["rows"] and entry["settings"]}
        except (OSError, ValueError, AttributeError, TypeError, KeyError):
            return {}

    def done(self, split: str) -> int | None:
        """Return the number of rows of a split that is there with the same settings, else None."""
        return self._record[split]["rows"] if split in self._record else None

    def others(self, split: str) -> list[Path]:
        """Return the files of the splits that stay beside this one."""
        return [self.path / f"{other}.parquet" for other in self._record if other != split]

    def write(self, split: str, families: Iterable[list[dict[str, Any]]]) -> int:
        """Write a split and remember it; returns its number of rows.

        What it replaces goes when the new split is complete, all of it, so that no old split stays beside a new one.
        """
        target = self.path / f"{split}.parquet"
        with tempfile.TemporaryDirectory(prefix=".split-", dir=self.path) as temporary:
            whole = Path(temporary) / target.name
            rows = write_split(whole, families)
            for file in self._replaced:
                if file != target:
                    logger.warning("%s was prepared otherwise, and is removed.", file)
                file.unlink(missing_ok=True)
            target.unlink(missing_ok=True)
            self._replaced.clear()
            # The record first: nobody knows what a file without one is, and a record without its file does no harm.
            self._record[split] = {"rows": rows, "settings": self._settings}
            note = Path(temporary) / _RECORD
            note.write_text(json.dumps(self._record, indent=1))
            os.replace(note, self.path / _RECORD)
            os.replace(whole, target)
        return rows


def _without(settings: dict[str, Any], ignored: set[str]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in ignored}


__all__ = ["Outcome", "PreparedFolder", "state_of", "write_split"]
