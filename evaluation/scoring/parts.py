"""Predictions in parts: ranges of rows, each scored by one process and written atomically.

A part is a Parquet file in a hidden folder inside the results folder. The name of the hidden folder is a hash of all
settings that affect the scores: a killed run finds its finished parts there; a run with other settings removes them.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm
from transformers import BaseImageProcessor, PreTrainedModel

from ...errors_dcl import InputError
from ...prepared.splits import PreparedSplit
from ..metrics.localisation import CellCounts
from .perturbations import Perturbation
from .predictions import PredictedBatch, batches_of, predict, predictions_schema
from .processes import meet, process_count, process_index, stop_is_wanted

ROWS_PER_PART = 512  # rounded up to whole batches
ROWS_PER_GROUP = 16384
_RECORD = b"dcl.part"  # metadata key for the other content of a part
_LOCK = "lock"
PATIENCE = 10.0  # seconds to wait for a dying run to release the folder


@dataclass
class PredictedParts:
    """The predictions of a data set, on disk."""

    paths: list[Path]
    """Files of the parts, in the order of the rows."""
    corrupt: list[int]
    """Rows skipped because they cannot be decoded."""
    cells: CellCounts
    """Cells of the fakes with a known mask."""

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Read some columns of all rows."""
        return pa.concat_tables(_read_rows(path, columns) for path in self.paths)

    def row_groups(self) -> Iterator[pa.Table]:
        """Read all columns, row group by row group of the joined file."""
        waiting: list[pa.Table] = []
        for path in self.paths:
            waiting.append(_read_rows(path))
            if sum(map(len, waiting)) >= ROWS_PER_GROUP:
                yield pa.concat_tables(waiting)
                waiting = []
        if waiting:
            yield pa.concat_tables(waiting)


class WorkFolder:
    """The work folder of a run, `.predictions-<hash>` in its results folder.

    As a context manager, it creates and locks the folder, and removes those of runs with other settings; all
    processes of a run enter it together.

    Args:
        results: existing folder for the results.
        settings: all settings that affect the scores, except the rows; JSON values.
    """

    def __init__(self, results: Path, settings: Mapping[str, Any]):
        self.results = results
        self.path = results / f".predictions-{_hash(settings)}"
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> "WorkFolder":
        with self.stack:
            if process_index() == 0:
                with _explained(self.results):
                    self.path.mkdir(exist_ok=True)
                    self.stack.enter_context(_locked(self.path))
                    for other in _work_folders(self.results):
                        if other != self.path:
                            _remove(other)
            meet()
            self.stack = self.stack.pop_all()
        return self

    def __exit__(self, *failure: object) -> None:
        if process_index() == 0 and not any(self.path.glob("*/part-*")):  # nothing to resume from
            shutil.rmtree(self.path, ignore_errors=True)
        self.stack.close()

    def predict(
        self,
        model: PreTrainedModel,
        processor: BaseImageProcessor,
        data: PreparedSplit,
        batch_size: int = 32,
        num_workers: int = 0,
        skip_corrupt: bool = False,
        group_by: str | None = None,
        change: Perturbation | None = None,
    ) -> PredictedParts:
        """Score the missing parts of a data set, divided among the processes.

        Process r of N scores the missing parts r, r + N, and so on. A batch never crosses parts, so neither the number
        of processes nor an interruption changes its images.

        Args:
            model: as for `predict`.
            processor: as for `predict`.
            data: as for `predict`.
            batch_size: as for `predict`.
            num_workers: as for `predict`.
            skip_corrupt: as for `predict`.
            group_by: as for `predict`.
            change: as for `predict`.

        Returns:
            All parts; only the first process knows their content.

        Raises:
            InputError: if a row cannot be decoded (with `skip_corrupt`: if no row can), or a part cannot be written.
        """
        name = data.name if change is None else f"{data.name}, {change.type} {change.level}"
        rows = len(data.dataset)
        rows_per_part = -(-ROWS_PER_PART // batch_size) * batch_size
        starts = range(0, rows, rows_per_part)
        what = {"data": [data.name, data.split, data.fingerprint], "rows": rows_per_part, "group_by": group_by}
        folder = self.path / _hash(what | {"change": change and asdict(change)})
        paths = [folder / f"part-{number:06}.parquet" for number in range(len(starts))]
        batches = {
            path: batches_of(min(start + rows_per_part, rows), batch_size, start)
            for path, start in zip(paths, starts, strict=True)
        }

        left: list[int] = []
        if process_index() == 0:  # the first process checks and informs the others
            with _explained(self.results):
                folder.mkdir(exist_ok=True)
            records = [_read_record(path) for path in paths]
            # A part without corrupt rows is valid with and without skip_corrupt.
            left = [
                number
                for number, record in enumerate(records)
                if record is None or (record["corrupt"] and not skip_corrupt)
            ]
            if len(left) < len(paths):
                tqdm.write(f"{name}: {len(paths) - len(left)} of {len(paths)} parts already scored.")
        mine = [paths[number] for number in meet(left)[0][process_index() :: process_count()]]
        results = predict(
            *(model, processor, data, batch_size, num_workers, skip_corrupt, group_by, change),
            batches=[batch for path in mine for batch in batches[path]],
        )
        share = "" if process_count() == 1 else f" (process 1 of {process_count()})"
        with (
            contextlib.closing(results),
            tqdm(
                total=sum(len(batch) for path in mine for batch in batches[path]),
                desc=f"{name}{share}",
                unit=" frames",
                leave=change is None,
                disable=not mine,
            ) as progress,
        ):
            for path in mine:
                part: list[PredictedBatch] = []
                for batch in batches[path]:
                    if stop_is_wanted():
                        meet()
                    part.append(next(results))
                    progress.update(len(batch))
                with _explained(self.results):
                    _write_part(path, part, predictions_schema(group_by))
        meet()
        return _joined(paths, data) if process_index() == 0 else PredictedParts(paths, [], CellCounts())


def _joined(paths: list[Path], data: PreparedSplit) -> PredictedParts:
    parts = PredictedParts(paths, [], CellCounts())
    for path in paths:
        record = _read_record(path)
        if record is None:
            raise InputError(f"{path} not found. All processes must share one --output_dir.")
        parts.corrupt += record["corrupt"]
        parts.cells.merge_text(record["cells"])
    if len(parts.corrupt) == len(data.dataset):
        raise InputError(
            f"{data.where}: none of the {len(parts.corrupt)} images can be decoded. Prepare the set again."
        )
    return parts


def remove_work_folders(results: Path) -> None:
    """Remove the work folders, once the results in their folder are complete."""
    if process_index() == 0:
        for path in _work_folders(results):
            _remove(path)


def _hash(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _work_folders(results: Path) -> list[Path]:
    """Return the folders with the name of a work folder and no foreign content."""
    found = [path for path in results.glob(".predictions-*") if re.fullmatch(r"\.predictions-[0-9a-f]{16}", path.name)]
    return [
        path
        for path in found
        if path.is_dir() and all(re.fullmatch(rf"[0-9a-f]{{16}}|{_LOCK}", item.name) for item in path.iterdir())
    ]


def _remove(path: Path) -> None:
    with _locked(path):
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = filelock.FileLock(path / _LOCK)
    try:
        lock.acquire(timeout=PATIENCE)
    except filelock.Timeout:
        raise InputError(
            f"{path} is in use by another run. Wait until it ends, or choose another --output_dir."
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _explained(results: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"Output folder {results}: cannot be written ({error}). Choose another --output_dir."
        ) from error


def _write_part(path: Path, batches: Sequence[PredictedBatch], schema: pa.Schema) -> None:
    cells = CellCounts()
    for batch in batches:
        cells.add(batch.evidence, batch.forged)
    record = {"corrupt": [row for batch in batches for row in batch.corrupt], "cells": cells.to_text()}
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
            writer.write_table(pa.concat_tables(batch.rows for batch in batches))
            writer.add_key_value_metadata({_RECORD: json.dumps(record)})
            writer.close()
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _read_rows(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    with pq.ParquetFile(path) as file:  # `read_table` would derive columns from the folder name
        return file.read(columns and list(columns))


def _read_record(path: Path) -> dict[str, Any] | None:
    """Return the content of a part other than its rows; None if it is missing or incomplete."""
    try:
        return json.loads(pq.read_metadata(path).metadata[_RECORD])
    except (OSError, pa.ArrowInvalid, ValueError, KeyError, TypeError):
        return None
