"""Write a prepared data set: Parquet shards of whole families, each done once and never half.

A shard is the unit of work. It is written under a hidden name and renamed when it is whole; inside it lies the record
of how it was made and what was left out. So a killed run goes on where it was, on one machine or on many, and nothing
beside the shards has to be kept in step with them.
"""

import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import pyarrow as pa
import pyarrow.parquet as pq

from ..dataset_dcl import FEATURES, SPLIT_NAME, split_files
from ..errors_dcl import InputError
from .failures import Failure, Failures

logger = logging.getLogger(__name__)

_ROWS_PER_GROUP = 256  # a row group is closed by the first family that reaches it
_RECORD = b"dcl.preparation"  # the key of a shard's record among the metadata of its file
_PATIENCE = 10.0  # seconds that a process which is dying has to let go of its shard


@dataclass
class Report:
    """What a preparation did, of a shard or of all.

    Attributes:
        clips: that were opened.
        frames: that were read.
        faces: rows that were written.
        failures: what was left out.
        missing: the forgeries that were not made, counted by method and reason.
    """

    clips: int = 0
    frames: int = 0
    faces: int = 0
    failures: Failures = field(default_factory=Failures)
    missing: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Report") -> None:
        """Add what another one did."""
        self.clips += other.clips
        self.frames += other.frames
        self.faces += other.faces
        self.failures.extend(other.failures)
        self.missing.update(other.missing)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        counts = {"clips": self.clips, "frames": self.frames, "faces": self.faces}
        return counts | {"failures": self.failures.to_json(), "missing": dict(self.missing)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Report":
        """Return the report that `to_json` gave."""
        report = cls(values["clips"], values["frames"], values["faces"], missing=Counter(values["missing"]))
        report.failures.extend(Failure(**failure) for failure in values["failures"])
        return report


def state_of(root: Path, files: Iterable[Path]) -> str:
    """Return a hash of the paths, sizes and times of files below a folder: another one when any of them changed."""
    digest = hashlib.sha256()
    for path in sorted(set(files)):
        try:
            state = path.stat()
        except OSError:  # a listed file that is not there
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
    """Write a shard, unless another process did so in the meantime.

    Args:
        path: where to.
        families: lists of rows with all columns of `dataset_dcl.FEATURES`, images encoded; a family stays in one row
            group.
        settings: what the content depends on; JSON values.
        report: filled while `families` is consumed; its number of faces is set here.
        before_rename: called when the shard is whole, and not at its place yet.

    Returns:
        The report of the shard that is there now.

    Raises:
        InputError: if another process is writing it.
    """
    lock, partial = filelock.FileLock(_beside(path, "lock")), _beside(path, "partial")
    try:
        lock.acquire(timeout=_PATIENCE)
    except filelock.Timeout:
        raise InputError(
            f"{path} is being written by another process: let it end, or give each process its own --shard_index."
        ) from None
    try:
        there = read_record(path)
        if there is not None and there[0] == settings:
            return there[1]
        schema = FEATURES.arrow_schema
        with partial.open("wb") as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
            report.faces, waiting = 0, []
            for family in families:
                waiting.extend(family)
                if len(waiting) >= _ROWS_PER_GROUP:
                    report.faces += _write_group(writer, waiting, schema)
                    waiting = []
            report.faces += _write_group(writer, waiting, schema)
            record = {"settings": settings, "report": report.to_json()}
            writer.add_key_value_metadata({_RECORD: json.dumps(record)})
            writer.close()
            file.flush()
            os.fsync(file.fileno())
        if before_rename is not None:
            before_rename()
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
    return report


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.stem}.{suffix}")  # hidden, so that `load_dataset` on the folder passes it over


def _write_group(writer: pq.ParquetWriter, rows: list[dict[str, Any]], schema: pa.Schema) -> int:
    if rows:
        table = pa.Table.from_pylist([{name: row[name] for name in schema.names} for row in rows], schema)
        writer.write_table(table, row_group_size=len(rows))
    return len(rows)


def read_record(path: Path) -> tuple[dict[str, Any], Report] | None:
    """Return with which settings a shard was written, and what was left out; None if this does not say."""
    try:
        record = json.loads((pq.read_metadata(path).metadata or {})[_RECORD])
        return record["settings"], Report.from_json(record["report"])
    except (OSError, pa.ArrowInvalid, ValueError, KeyError, TypeError):
        return None


class PreparedFolder:
    """An output folder, whose shards remember with which settings they were written.

    Args:
        path: the folder; made if it is not there.
        settings: of each split that is going to be written, what its content depends on; JSON values.
        shards: how many each of them becomes; one if not given.
        overwrite: replace what was written with other settings.
        own: the settings in which the folder's other splits may differ from these.

    Raises:
        InputError: if a split's name cannot be one, the folder cannot be written, or it holds a split that was made
            otherwise (unless `overwrite`): one of these with other settings, or another one that differs in more than
            `own`.
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
                    f"a split cannot be called {split!r}: use letters, digits and _ (train, validation, test)."
                )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            writable = self.path / ".writable"
            writable.touch()
            writable.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(
                f"the output folder {path} cannot be written ({error.strerror}): choose another --output."
            ) from error
        self._kept: dict[Path, Report] = {}
        self._others: dict[str, list[Path]] = {}
        self._replaced: list[Path] = []
        for split, files in split_files(self.path).items():
            for file in files:
                self._look_at(split, file, set(own), overwrite)

    def _look_at(self, split: str, file: Path, own: set[str], overwrite: bool) -> None:
        record = read_record(file)
        if split in self.settings:
            planned = {self.file(split, index) for index in range(self.shards[split])}
            fits = record is not None and file in planned and record[0] == self.settings[split]
        else:
            ours = _without(next(iter(self.settings.values())), own)
            fits = record is not None and _without(record[0], own) == ours
            if fits:
                self._others.setdefault(split, []).append(file)
        if fits:
            self._kept[file] = record[1]
        elif overwrite:
            self._replaced.append(file)
        else:
            raise InputError(
                f"{file} was prepared otherwise: choose another --output, or replace it with --overwrite."
            )

    def file(self, split: str, index: int = 0) -> Path:
        """Return the path of a shard."""
        return self.path / shard_name(split, index, self.shards[split])

    def done(self, split: str, index: int = 0) -> Report | None:
        """Return the report of a shard that was there with the same settings, else None."""
        return self._kept.get(self.file(split, index))

    def others(self, split: str) -> list[Path]:
        """Return the files of the splits that stay beside this one."""
        ours = [file for other in self.settings if other != split for file in self._files(other) if file in self._kept]
        return ours + [file for files in self._others.values() for file in files]

    def _files(self, split: str) -> list[Path]:
        return [self.file(split, index) for index in range(self.shards[split])]

    def discard_replaced(self) -> None:
        """Remove what `overwrite` gave leave to replace, all of it, so that no old split stays beside a new one."""
        for file in self._replaced:
            logger.warning("%s was prepared otherwise, and is removed.", file)
            file.unlink(missing_ok=True)
        self._replaced.clear()

    def write(self, split: str, families: Iterable[list[dict[str, Any]]], report: Report) -> Report:
        """Write a split of one shard, as `write_shard` does; what it replaces goes when it is whole."""
        file = self.file(split)
        self._kept[file] = write_shard(file, families, self.settings[split], report, self.discard_replaced)
        return self._kept[file]


def _without(settings: dict[str, Any], ignored: set[str]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in ignored}


__all__ = ["PreparedFolder", "Report", "read_record", "shard_name", "state_of", "write_shard"]
