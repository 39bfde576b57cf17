"""Write a prepared data set: Parquet shards of whole families, each written once and completely or not at all.

A shard is the unit of work. It is written under a hidden name and renamed when it is complete, and it contains the
record of how it was made and what was left out. A killed run can therefore continue, on one machine or on many, and
there is no other state that must be kept in step with the shards.
"""

import hashlib
import itertools
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import filelock
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features

from ..errors_dcl import InputError
from ..prepared.dataset import FEATURES
from ..prepared.names import SPLIT_NAME, split_files
from .failures import Failure, Failures

logger = logging.getLogger(__name__)

#: A row group ends with the first family that reaches this many rows or bytes. Only families of more bytes than the
#: larger number are divided. (Readers fail on groups of more than 2 GiB, and streaming reads them whole.)
_ROWS_PER_GROUP, _BYTES_PER_GROUP, _LARGEST_GROUP = 256, 64 << 20, 256 << 20
FORMAT = 2  # raised when code changes the rows of the same source and settings; `phash` came later and may be missing
STATE = "families"  # the setting of a single shard: the hash of its families and files
_RECORD = b"dcl.preparation"  # the key of a shard's record among the metadata of its file
_PATIENCE = 10.0  # seconds to wait for a dying process to release its shard


@dataclass
class Report:
    """Counts of a preparation: clips, frames, faces, failures, and (`missing`) forgeries that could not be made."""

    clips: int = 0
    frames: int = 0
    faces: int = 0
    failures: Failures = field(default_factory=Failures)
    missing: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Report") -> None:
        """Add another report."""
        self.clips += other.clips
        self.frames += other.frames
        self.faces += other.faces
        self.failures.extend(other.failures)
        self.missing.update(other.missing)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return self.counts() | {"failures": self.failures.to_json(), "missing": dict(self.missing)}

    def counts(self) -> dict[str, int]:
        """Return the numbers of clips, frames and faces."""
        return {"clips": self.clips, "frames": self.frames, "faces": self.faces}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Report":
        """Return a report from the values of `to_json`."""
        report = cls(values["clips"], values["frames"], values["faces"], missing=Counter(values["missing"]))
        report.failures.extend(Failure(**failure) for failure in values["failures"])
        return report


def state_of(root: Path, files: Iterable[Path]) -> str:
    """Return a hash of the paths, sizes and modification times of files below a folder."""
    digest = hashlib.sha256()
    for path in sorted(set(files)):
        try:
            state = path.stat()
        except OSError:  # a listed file is missing
            continue
        digest.update(f"{os.path.relpath(path, root)} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def shard_name(split: str, index: int, number: int) -> str:
    """Return the file name of a shard: of several, `<split>-00000-of-00045.parquet`; of one, `<split>.parquet`."""
    return f"{split}.parquet" if number == 1 else f"{split}-{index:05}-of-{number:05}.parquet"


def write_shard(
    path: Path,
    families: Iterable[list[dict[str, Any]]],
    settings: dict[str, Any],
    report: Report,
    before_rename: Callable[[], None] | None = None,
) -> Report:
    """Write a shard, unless another process wrote it in the meantime; returns the report of the existing shard.

    Families are lists of rows with all columns of `prepared.dataset.FEATURES` and encoded images. A family stays in
    one row group; if it is too large, the rows of each frame do. The report is filled while the families are consumed.
    `before_rename` is called when the shard is complete, before it gets its final name.

    Raises:
        InputError: if another process is writing the shard.
    """
    lock, partial = filelock.FileLock(_beside(path, "lock")), _beside(path, "partial")
    try:
        lock.acquire(timeout=_PATIENCE)
    except filelock.Timeout:
        raise InputError(
            f"{path} is being written by another process. Wait for it, or give each process its own --shard_index."
        ) from None
    try:
        there = read_record(path)
        if there is not None and there[0] == settings:
            return there[1]
        schema = _schema_beside(path)
        with partial.open("wb") as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
            report.faces = 0
            for rows in _row_groups(families):
                table = pa.Table.from_pylist([{name: row[name] for name in schema.names} for row in rows], schema)
                writer.write_table(table, row_group_size=len(rows))
                report.faces += len(rows)
            record = {"settings": settings, "report": report.to_json()}
            writer.add_key_value_metadata({_RECORD: json.dumps(record)})
            writer.close()
            file.flush()
            os.fsync(file.fileno())
        if before_rename is not None:
            before_rename()
        there = read_record(path)
        if there is not None and _without(there[0], {STATE}) != _without(settings, {STATE}):
            raise InputError(f"Another process wrote {path} with other settings. Give each process its own --output.")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
    return report


def _schema_beside(path: Path) -> pa.Schema:
    """Return the columns of a shard: those of its split, since `datasets` needs the same columns in all shards."""
    for other in path.parent.glob(f"{path.stem.partition('-')[0]}-*.parquet"):
        try:
            there = pq.read_schema(other).names
        except (OSError, pa.ArrowInvalid):
            continue
        if "phash" not in there:  # prepared before this column existed
            return Features({name: kind for name, kind in FEATURES.items() if name != "phash"}).arrow_schema
    return FEATURES.arrow_schema


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.stem}.{suffix}")  # hidden, so that `load_dataset` ignores it


def _row_groups(families: Iterable[list[dict[str, Any]]]) -> Iterator[list[dict[str, Any]]]:
    waiting: list[dict[str, Any]] = []
    size = 0
    for family in families:
        for part in _parts(family):
            waiting.extend(part)
            size += sum(map(bytes_of, part))
            if len(waiting) >= _ROWS_PER_GROUP or size >= _BYTES_PER_GROUP:
                yield waiting
                waiting, size = [], 0
    if waiting:
        yield waiting


def _parts(family: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Divide a family that is too large, keeping the rows of each frame together."""
    if sum(map(bytes_of, family)) <= _LARGEST_GROUP:
        yield family
        return
    part: list[dict[str, Any]] = []
    for _, rows in itertools.groupby(sorted(family, key=lambda row: row["frame"]), key=lambda row: row["frame"]):
        part.extend(rows)
        if sum(map(bytes_of, part)) >= _LARGEST_GROUP // 2:
            yield part
            part = []
    if part:
        yield part


def bytes_of(row: dict[str, Any]) -> int:
    """Return the size of the encoded images of a row in bytes."""
    return sum(len(row[name]["bytes"]) for name in ("image", "mask") if row[name] is not None)


def read_record(path: Path) -> tuple[dict[str, Any], Report] | None:
    """Return the settings and the report of a shard; None if it has none."""
    try:
        record = json.loads((pq.read_metadata(path).metadata or {})[_RECORD])
        return record["settings"], Report.from_json(record["report"])
    except (OSError, pa.ArrowInvalid, ValueError, KeyError, TypeError):
        return None


class PreparedFolder:
    """An output folder whose shards store their settings. It is created if it does not exist.

    Args:
        path: the folder.
        settings: the settings of each split to write, as JSON values.
        shards: the number of shards of each split; one by default.
        overwrite: replace splits that were written with other settings.
        own: the settings in which the other splits of the folder may differ.

    Raises:
        InputError: if the name of a split is invalid, the folder cannot be written, or a split has other settings.
    """

    def __init__(
        self,
        path: str | Path,
        settings: Mapping[str, dict[str, Any]],
        shards: Mapping[str, int] | None = None,
        overwrite: bool = False,
        own: Iterable[str] = (),
    ):
        self.path = Path(path)
        self.settings: dict[str, dict[str, Any]] = json.loads(json.dumps(settings))
        self.shards = dict(shards or dict.fromkeys(settings, 1))
        for split in settings:
            if not re.fullmatch(SPLIT_NAME, split):
                raise InputError(
                    f"Invalid split name {split!r}. Use letters, digits and _ (such as train, validation, test)."
                )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            writable = self.path / ".writable"
            writable.touch()
            writable.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(
                f"Output folder {path} cannot be written ({error.strerror}). Choose another --output."
            ) from error
        self._kept: dict[Path, tuple[dict[str, Any], Report]] = {}
        self._replaced: list[Path] = []
        self._planned = {
            split: {shard_name(split, index, number) for index in range(number)}
            for split, number in self.shards.items()
        }
        for split, files in split_files(self.path).items():
            for file in files:
                self._look_at(split, file, set(own), overwrite)

    def _look_at(self, split: str, file: Path, own: set[str], overwrite: bool) -> None:
        record = read_record(file)
        ignored = {STATE} if split in self.settings else own | {STATE}
        # Every split has the same settings, except those in `own`.
        ours = self.settings.get(split, next(iter(self.settings.values())))
        fits = record is not None and _without(record[0], ignored) == _without(ours, ignored)
        if split in self.settings:
            fits = fits and file.name in self._planned[split]
        if fits:
            self._kept[file] = record
        elif overwrite:
            self._replaced.append(file)
        else:
            _refuse(file, record, ours, ignored)

    def file(self, split: str, index: int = 0) -> Path:
        """Return the path of a shard."""
        return self.path / shard_name(split, index, self.shards[split])

    def done(self, split: str, index: int = 0, state: str | None = None) -> Report | None:
        """Return the report of an existing shard with the same settings and `STATE`, else None."""
        if not self.is_there(split, index):
            return None
        settings, report = self._kept[self.file(split, index)]
        return report if settings.get(STATE) == state else None

    def is_there(self, split: str, index: int) -> bool:
        """Whether a shard exists with the same settings and any `STATE`."""
        return self.file(split, index) in self._kept

    def others(self, split: str) -> list[Path]:
        """Return the files of the other splits that stay in the folder."""
        return [file for file in self._kept if file.name not in self._planned.get(split, ())]

    def discard_replaced(self) -> None:
        """Remove everything that `overwrite` replaces, so that no old split remains."""
        for file in self._replaced:
            logger.warning("%s was prepared with other settings and is removed.", file)
            file.unlink(missing_ok=True)
        self._replaced.clear()

    def write(self, split: str, families: Iterable[list[dict[str, Any]]], report: Report) -> Report:
        """Write a split of one shard, see `write_shard`; the files it replaces are removed when it is complete."""
        file = self.file(split)
        report = write_shard(file, families, self.settings[split], report, self.discard_replaced)
        self._kept[file] = self.settings[split], report
        return report


def _refuse(
    file: Path, record: tuple[dict[str, Any], Report] | None, ours: dict[str, Any], ignored: set[str]
) -> NoReturn:
    if record is None:
        raise InputError(f"{file} is damaged or was not made by dcl-prepare. Remove it, or pass --overwrite.")
    theirs = record[0]
    names = sorted(name for name in {*theirs, *ours} - ignored if theirs.get(name) != ours.get(name))
    shown = "; ".join(f"{name} was {theirs.get(name)}, is {ours.get(name)}" for name in names[:3])
    raise InputError(
        f"{file} was prepared with other settings ({shown or 'another number of shards'}). Choose another --output, "
        "or replace it with --overwrite."
    )


def _without(settings: dict[str, Any], ignored: set[str]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in ignored}
