"""Training rows whose images are read while they are drawn, from Parquet files in a folder or on the Hub.

All columns but the images are read at the start, so class balance, partners and lengths are those of loaded rows.
Images are read one row group at a time. The sampler draws from `OPEN` row groups at once, so that a batch meets many
families, and assigns row groups to processes and to the workers of their data loaders. So many row groups do not fit
into memory: each process keeps those in use in temporary files.
"""

import contextlib
import hashlib
import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Image, concatenate_datasets
from datasets.table import table_cast
from torch.utils.data import Sampler

from ..errors_dcl import InputError, reason
from ..prepared.dataset import FEATURES, check_columns, explained_failure, find_files, fingerprint
from ..prepared.names import FAKE, REAL

logger = logging.getLogger(__name__)

IMAGES = ("image", "mask")
OPEN = 32  # row groups to draw from at a time: about as many as there are rows in a batch
CACHED = OPEN + 4  # row groups that a process keeps: some row groups stay in use a little longer than others
_READERS = 16  # threads that read file metadata


@dataclass(frozen=True, eq=False)
class Shard:
    """A Parquet file: its location, and its footer, to avoid reading it twice."""

    url: str
    footer: pq.FileMetaData


@dataclass(frozen=True)
class RowGroup:
    """One row group of a file."""

    shard: Shard
    index: int

    def read(self) -> pa.Table:
        """Read the images and the masks; raises `InputError` if they cannot be read."""
        try:
            # Opened each time, since a handle does not survive the fork of a data loader's worker.
            with _opened(self.shard.url, self.shard.footer) as file:
                names = [name for name in IMAGES if name in file.schema_arrow.names]
                table = file.read_row_group(self.index, columns=names)
        except Exception as error:  # each codec and transport raises its own class of error
            raise InputError(
                f"Row group {self.index} of {self.shard.url}: cannot be read ({reason(error)}). Check the file or the "
                "network, then run the same command again."
            ) from error
        return table_cast(table, Features(dict.fromkeys(names, Image(decode=False))).arrow_schema)

    def encoded_sizes(self) -> str:
        """Return the sizes of the image column chunks, for a fingerprint."""
        chunks = self.shard.footer.row_group(self.index)
        columns = [chunks.column(number) for number in range(chunks.num_columns)]
        sizes = [
            (column.path_in_schema, column.total_compressed_size, column.total_uncompressed_size)
            for column in columns
            if column.path_in_schema.partition(".")[0] in IMAGES
        ]
        return f"{chunks.num_rows}{sizes}"


class StreamedRows:
    """The rows of a prepared data set, with the interface of a `datasets.Dataset`; images are read on access.

    The other columns (`cells`) are held in memory. Each process keeps the encoded images of the last `CACHED` row
    groups that it used in temporary files. Integers (rows,) give the row group of each row and its position there.
    """

    def __init__(
        self, cells: Dataset, groups: list[RowGroup], group: np.ndarray, offset: np.ndarray, images: Sequence[str]
    ):
        self.cells = cells
        self.groups = groups
        self.group = group
        self.offset = offset
        self.images = tuple(images)
        self._recent: OrderedDict[int, _KeptImages] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.cells)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Return the cells of a row, with images as `{"bytes", "path"}`."""
        kept, offset = self._read(int(self.group[row])), int(self.offset[row])
        return self.cells[int(row)] | {name: kept.get(name, offset) for name in self.images}

    def __getstate__(self) -> dict[str, Any]:
        """Drop the images: each process reads its own."""
        return self.__dict__ | {"_recent": OrderedDict()}

    @property
    def column_names(self) -> list[str]:
        """The names of all columns."""
        return [*self.images, *self.cells.column_names]

    def select_columns(self, names: Sequence[str]) -> Dataset:
        """Return some of the columns, without images."""
        return self.cells.select_columns(names)

    def select(self, rows: Sequence[int] | np.ndarray) -> "StreamedRows":
        """Return some of the rows, in that order."""
        rows = np.asarray(rows, int)
        return StreamedRows(self.cells.select(rows), self.groups, self.group[rows], self.offset[rows], self.images)

    def fingerprint(self) -> str:
        """Return a hash of all columns but the images; for these, of the sizes of their column chunks.

        The hash does not change if an edited image keeps its encoded and compressed size.
        """
        digest = hashlib.sha256(fingerprint(self.cells).encode())
        for number in np.unique(self.group):
            digest.update(self.groups[number].encoded_sizes().encode())
        return digest.hexdigest()[:16]

    def _read(self, number: int) -> "_KeptImages":
        if number in self._recent:
            self._recent.move_to_end(number)
        else:
            while len(self._recent) >= CACHED:  # before reading the next one, so that the limit always holds
                self._recent.popitem(last=False)
            self._recent[number] = _KeptImages(self.groups[number].read())
        return self._recent[number]


class _KeptImages:
    """The encoded images of a row group in a temporary file, which has no name and vanishes with this object."""

    def __init__(self, table: pa.Table):
        self._cells = {}
        try:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - open as long as this object exists
            for name in table.column_names:
                self._cells[name] = [self._write(cell.as_py()) for cell in table.column(name)]
        except OSError as error:
            raise InputError(
                f"Streamed images cannot be kept in {tempfile.gettempdir()} ({reason(error)}). Free some space there, "
                "or set the environment variable TMPDIR to another folder."
            ) from error

    def get(self, name: str, offset: int) -> dict[str, Any] | None:
        """Return an image as `{"bytes", "path"}`; None if it is missing."""
        cell = self._cells[name][offset] if name in self._cells else None
        if cell is None or cell["bytes"] is None:
            return cell
        # Workers may share the file of the process that they were forked from, but not a position in it.
        return cell | {"bytes": os.pread(self._file.fileno(), *cell["bytes"])}

    def _write(self, cell: dict[str, Any] | None) -> dict[str, Any] | None:
        """Write an image; returns its cell with the size and the position of the bytes in their place."""
        if cell is None or cell["bytes"] is None:
            return cell
        start = self._file.tell()
        self._file.write(cell["bytes"])
        return cell | {"bytes": (len(cell["bytes"]), start)}


def concatenate_rows(parts: Sequence[StreamedRows]) -> StreamedRows:
    """Concatenate the rows of several data sets, as `concatenate_datasets` does."""
    starts = np.cumsum([0, *(len(part.groups) for part in parts)])
    return StreamedRows(
        concatenate_datasets([part.cells for part in parts]),
        [group for part in parts for group in part.groups],
        np.concatenate([part.group + start for part, start in zip(parts, starts[:-1], strict=True)]),
        np.concatenate([part.offset for part in parts]),
        [name for name in IMAGES if any(name in part.images for part in parts)],
    )


def stream_prepared(name: str, split: str, data_root: str | Path | None = None) -> StreamedRows:
    """Open one split of a prepared data set as `load_prepared` does, and check its columns; no image is read.

    Returns the rows without landmarks; the other columns have the types of `FEATURES`.
    """
    where = f"{name} ({split})"
    with explained_failure(name, split, data_root), ThreadPoolExecutor(_READERS) as pool:
        opened = list(pool.map(_read_footer, find_files(name, split, data_root)))
        opened = [(shard, schema) for shard, schema in opened if shard.footer.num_rows]
        if not opened:
            raise InputError(f"the data set {where} is empty: it has no rows.")
        shards, features = [shard for shard, _ in opened], Features.from_arrow_schema(opened[0][1])
        names = [name for name in FEATURES if name in features and name not in (*IMAGES, "landmarks")]
        # As in `datasets`, the first file defines the columns.
        schema = Features({name: features[name] for name in names}).arrow_schema
        tables = [table_cast(table, schema) for table in pool.map(partial(_read_columns, names=names), shards)]
        table = pa.concat_tables(tables)
        kept = check_columns(
            features,
            lambda column: _empty_images(shards) if column == "image" else table.column(column).null_count,
            where,
        )
        kinds = Features({name: FEATURES[name] for name in names if name in kept})
        table = table_cast(table.select(list(kinds)), kinds.arrow_schema)
    groups = [RowGroup(shard, index) for shard in shards for index in range(shard.footer.num_row_groups)]
    sizes = [group.shard.footer.row_group(group.index).num_rows for group in groups]
    return StreamedRows(
        Dataset(table),
        groups,
        np.repeat(np.arange(len(groups)), sizes),
        np.concatenate([np.arange(size) for size in sizes]),
        [name for name in IMAGES if name in kept],
    )


@contextlib.contextmanager
def _opened(url: str, footer: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
    if "://" not in url:
        with pq.ParquetFile(url, metadata=footer) as file:
            yield file
        return
    system, path = fsspec.core.url_to_fs(url)
    # No read-ahead, since images lie between the wanted columns. Instead, adjacent chunks are read in one request.
    with system.open(path, "rb", cache_type="none") as source, pq.ParquetFile(source, metadata=footer) as file:
        yield file


def _read_footer(url: str) -> tuple[Shard, pa.Schema]:
    with _opened(url) as file:
        return Shard(url, file.metadata), file.schema_arrow


def _read_columns(shard: Shard, names: Sequence[str]) -> pa.Table:
    with _opened(shard.url, shard.footer) as file:
        return file.read(columns=[name for name in names if name in file.schema_arrow.names])


def _empty_images(shards: Sequence[Shard]) -> int:
    """Return a lower bound on the number of images with neither bytes nor a path, from the footers' counts."""
    empty = 0
    for shard in shards:
        for number in range(shard.footer.num_row_groups):
            chunks = shard.footer.row_group(number)
            columns = [chunks.column(index) for index in range(chunks.num_columns)]
            counts = [
                column.statistics.null_count
                for column in columns
                if column.path_in_schema.partition(".")[0] == "image"
                and column.statistics is not None
                and column.statistics.has_null_count
            ]
            if len(counts) == 2:
                empty += max(0, sum(counts) - chunks.num_rows)
    return empty


class RowGroupSampler(Sampler):
    """Alternates real and fake rows, drawn from `OPEN` row groups at a time; readers do not share row groups.

    The row groups are divided into lanes of neighbours, one for each worker of each process, as `accelerate` and the
    data loader distribute batches: batch b goes to process b % processes, and there to worker (b // processes) %
    workers. With too few row groups, several workers share a lane. In each epoch, a lane shuffles its row groups and
    passes over them once: each is open for a while, `OPEN` at a time, and its rows are spread evenly over that while.
    All lanes give the same number of batches. An epoch is as long as that of `BalancedSampler`, up to half a batch for
    each lane; a lane draws rows twice, or leaves some out, to keep that length. The order depends on the seed, the
    epoch and the number of lanes.

    Raises:
        InputError: if there are too few row groups to give each process both classes.
    """

    def __init__(
        self,
        labels: np.ndarray,
        groups: np.ndarray,
        batch_size: int,
        processes: int = 1,
        workers: int = 1,
        seed: int = 0,
    ):
        self.batch_size, self.processes, self.seed, self.epoch = batch_size, processes, seed, 0
        numbers, self.group = np.unique(groups, return_inverse=True)
        rows = [np.flatnonzero(labels == label) for label in (REAL, FAKE)]
        counts = np.stack([np.bincount(self.group[part], minlength=len(numbers)) for part in rows], axis=1)
        # The number of lanes divides the number of workers, so that each worker has one lane.
        for lanes in (lanes for lanes in range(workers, 0, -1) if workers % lanes == 0):
            self.lanes = _deal_out(counts, processes * lanes)
            if all(counts[lane].sum(0).all() for lane in self.lanes):
                break
        else:
            raise InputError(
                f"{len(numbers)} row groups are too few to stream: each of {processes} processes needs real and fake "
                "faces from its own row groups. Train with fewer processes, or without --streaming."
            )
        #: For each lane, its real rows and its fake rows.
        self.members = [[part[np.isin(self.group[part], lane)] for part in rows] for lane in self.lanes]
        draws = 2 * counts.sum(0).min()
        self.batches_of_lane = max(1, round(draws / (batch_size * len(self.lanes))))
        fewest = min(map(len, self.lanes))
        if fewest < OPEN // 2 and len(self.lanes) > processes:
            logger.warning(
                "Some workers draw from %d row groups only, so their batches may show few people. Use fewer workers "
                "(--dataloader_num_workers): each then has more row groups.",
                fewest,
            )

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch to draw next."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of draws in an epoch: whole batches, equally many for each lane."""
        return self.batches_of_lane * self.batch_size * len(self.lanes)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Iterate over (epoch, row)."""
        epoch = self.epoch
        batches = [self._rows_of_epoch(lane).reshape(-1, self.batch_size) for lane in range(len(self.lanes))]
        lanes_of_process = len(self.lanes) // self.processes
        for batch in range(self.batches_of_lane * len(self.lanes)):
            turn, process = divmod(batch, self.processes)
            turn, lane = divmod(turn, lanes_of_process)
            for row in batches[process * lanes_of_process + lane][turn]:
                yield epoch, int(row)

    def _rows_of_epoch(self, lane: int) -> np.ndarray:
        """Return the rows that a lane draws in this epoch, real and fake by turns."""
        rng = np.random.default_rng((self.seed, self.epoch, lane))
        first, number = self.lanes[lane][0], len(self.lanes[lane])
        size = self.batches_of_lane * self.batch_size
        classes = [np.resize(rng.permutation(rows), -(-size // 2)) for rows in self.members[lane]]
        counts = [np.bincount(self.group[rows] - first, minlength=number) for rows in classes]
        place = _mixed_order(counts[REAL] - counts[FAKE], rng).argsort()
        for label, count in enumerate(counts):
            rows = classes[label][np.argsort(self.group[classes[label]], kind="stable")]
            group = self.group[rows] - first
            # Each row gets a time. The times of a group are equally far apart, from a random start, so that rows that
            # follow each other come from different groups.
            turn = np.arange(len(rows)) - (count.cumsum() - count)[group]
            time = (turn + rng.random(number)[group]) / count[group]
            if number > OPEN:
                # A group is open `OPEN` / 2 times before and after its place. What falls outside the epoch is
                # reflected, so that an epoch begins and ends with half as many open groups instead of one.
                time = np.abs(place[group] + 0.5 + (time - 0.5) * OPEN)
                time = number - np.abs(number - time)
            classes[label] = rows[np.argsort(time, kind="stable")]
        return np.stack(classes, axis=1).ravel()[:size]


def _mixed_order(surplus: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random order of row groups in which reals and fakes keep pace.

    `surplus` says how many more reals than fakes are drawn from each; its sum is 0, and every partial sum stays close.
    Otherwise, the pairs of a real and a fake would come from groups ever further apart, too many to keep.
    """
    groups = rng.permutation(len(surplus))
    fakes, reals = groups[surplus[groups] < 0].tolist(), groups[surplus[groups] >= 0].tolist()
    order, total = [], 0
    while fakes or reals:
        order.append((fakes or reals).pop() if total > 0 else (reals or fakes).pop())
        total += surplus[order[-1]]
    return np.array(order)


def _deal_out(counts: np.ndarray, lanes: int) -> list[np.ndarray]:
    """Split row groups, by counts (groups, 2), into runs with similar numbers of rows of the smaller class."""
    weight = counts[:, counts.sum(0).argmin()]
    middle = np.cumsum(weight) - weight / 2
    numbers = np.arange(lanes)
    starts = np.searchsorted(middle, weight.sum() * numbers / lanes)
    # At least one each.
    starts = np.clip(np.maximum.accumulate(starts - numbers), 0, max(0, len(counts) - lanes)) + numbers
    return np.split(np.arange(len(counts)), np.minimum(starts[1:], len(counts)))
