"""Prepare a raw data set: assign its families to shards, and make these here, in several processes, or on Ray."""

import copy
import functools
import hashlib
import itertools
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import filelock
import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

from ..errors_dcl import InputError, whole_file
from ..faces_dcl import FaceDetector
from ..prepared.copies import Pictures
from ..prepared.names import split_files
from .assets import fetch_detector
from .clips import FAMILIES_PER_SHARD, ClipFamily, Family, RawDataSet, check_shares
from .executors import run_here, run_in_processes, run_on_ray
from .extract import Extraction, family_rows
from .failures import Failures
from .shards import FORMAT, STATE, PreparedFolder, Report, bytes_of, read_record, state_of, write_shard
from .splitting import Families, count_faces

STAGING_SPLIT = "all"
STAGING = ".families"  # folder of the intermediate shards for --split_shares
SUMMARY = ".preparation.json"  # hidden, so that `load_dataset` ignores it
_SAMPLED = 8  # families whose faces are sampled to estimate the size on disk
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Execution:
    """Where and how to do the work. None of this changes the rows.

    `job` counts from 0 and makes every `jobs`-th shard. Without an address, Ray runs on a local cluster. `strict`
    stops at the first error, `retry_failed` prepares shards again in which something was skipped, and `overwrite`
    replaces a data set that was prepared with other settings.
    """

    processes: int = 1
    job: int = 0
    jobs: int = 1
    ray: bool = False
    ray_address: str | None = None
    strict: bool = False
    retry_failed: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Shard:
    """A shard to make: a task of `executors`."""

    split: str
    path: Path
    families: tuple[Family, ...]
    how: Extraction
    settings: dict[str, Any]
    strict: bool

    def run(self, step: Callable[[], None]) -> tuple[str, Report]:
        """Make the shard on one thread, and call `step` after each family; returns its split and report."""
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)
        try:
            report = Report(failures=Failures(self.strict))
            return self.split, write_shard(self.path, self._rows(report, step), self.settings, report)
        finally:
            cv2.setNumThreads(threads)

    def _rows(self, report: Report, step: Callable[[], None]) -> Iterator[list[dict[str, Any]]]:
        detector = None if self.how.detector is None else _detector(self.how.detector)
        for family in self.families:
            yield list(family_rows(family.load(report.failures), self.how, detector, report))
            step()


@functools.cache
def _detector(name: str) -> FaceDetector:
    return fetch_detector(name)


@dataclass
class Preparation:
    """The result of `prepare_raw`, including earlier runs of the same work.

    Attributes:
        reports: by split.
        waiting: the number of `shards` that other jobs still have to make.
        total: the sum of all reports and of the failures of the layout.
        summary: the JSON file with this summary.
    """

    reports: dict[str, Report]
    shards: int
    waiting: int
    total: Report
    summary: Path

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return {
            "splits": {split: report.counts() for split, report in self.reports.items()},
            "shards": {"done": self.shards - self.waiting, "of": self.shards},
            **self.total.counts(),
            "failures_by_reason": self.total.failures.by_reason(),
            "failures": self.total.failures.to_json(),
        }


def prepare_raw(
    found: RawDataSet,
    root: str | Path,
    output: str | Path,
    how: Extraction,
    execution: Execution | None = None,
    families_per_shard: int = FAMILIES_PER_SHARD,
    say: Callable[[str], None] = print,
) -> Preparation:
    """Prepare the clips that a layout found; existing shards with the same settings are kept.

    The families of a split are assigned to shards in a fixed random order, so every shard is a fair sample.

    Args:
        found: from the `find` of a layout.
        root: folder of the raw data set.
        output: folder of the prepared data set.
        how: settings of the rows.
        execution: where and how to do the work.
        families_per_shard: families in each shard at most.
        say: gets a sentence on the expected size before the work begins.

    Returns:
        What was prepared and what was skipped.

    Raises:
        InputError: if there is nothing to prepare, `output` cannot be written or contains another data set, no face
            was found in a whole split, or at the first failure if `execution` is strict.
    """
    execution = execution or Execution()
    Failures(execution.strict).extend(found.failures)
    splits = _families_of(found, root)
    settings = asdict(how) | {"families_per_shard": families_per_shard, "format": FORMAT}
    shards = {split: -(-len(families) // families_per_shard) for split, families in splits.items()}
    own = ("frames", "dataset", "families_per_shard", "split_shares")
    folder = PreparedFolder(output, dict.fromkeys(splits, settings), shards, execution.overwrite, own)
    reports: dict[str, Report] = {split: Report() for split in splits}
    here, others = [], []
    turns = itertools.cycle(range(execution.jobs))
    for split, families in splits.items():
        for index, members in enumerate(_deal(families, families_per_shard)):
            path = folder.file(split, index)
            if next(turns) != execution.job:
                others.append((split, path))
                continue
            state = _state_of_families(Path(root), members)
            done = folder.done(split, index, state)
            if done is not None and not (execution.retry_failed and done.failures):
                reports[split].add(done)
                continue
            if done is not None:
                path.unlink()  # otherwise it would count as one that another process made
            elif folder.is_there(split, index):
                logger.warning("%s is prepared again because its source has changed.", path)
            here.append(Shard(split, path.resolve(), members, how, settings | {STATE: state}, execution.strict))
    if here:
        say(_announce(here, how, folder.path))
        folder.discard_replaced()
        for split, report in _run(here, execution):
            reports[split].add(report)
    # Include the shards that other jobs made in the meantime.
    records = [(split, read_record(path)) for split, path in others]
    for split, record in records:
        if record is not None:
            reports[split].add(record[1])
    waiting = sum(record is None for _, record in records)
    total = Report()
    total.failures.extend(found.failures)
    for split, report in reports.items():
        if not report.faces and not waiting:
            if not others:  # with several jobs, none removes the files of another
                for index in range(shards[split]):
                    folder.file(split, index).unlink(missing_ok=True)
            first = next(iter(report.failures), "its clips contain no frames")
            raise InputError(f"No face was found in {root} ({split}; {first}). Use videos or images that show faces.")
        total.add(report)
    preparation = Preparation(reports, sum(shards.values()), waiting, total, folder.path / SUMMARY)
    _write_summary(preparation)
    return preparation


def prepare_shares(
    found: RawDataSet,
    root: str | Path,
    output: str | Path,
    how: Extraction,
    shares: Sequence[float],
    execution: Execution | None = None,
    families_per_shard: int = FAMILIES_PER_SHARD,
    say: Callable[[str], None] = print,
) -> Preparation:
    """Prepare clips of one split, and divide them by family into train, validation and test.

    All families are first prepared in a hidden folder of the output: the split needs their numbers of faces, and which
    of them share an image. While the splits are written, the faces take twice their space.

    Args:
        found: from the `find` of a layout; only one split.
        root: folder of the raw data set.
        output: folder of the prepared data set.
        how: settings of the rows.
        shares: percentages of train, validation and test, see `clips.check_shares`.
        execution: where and how to do the work.
        families_per_shard: families in each shard at most.
        say: gets sentences on the expected size.

    Returns:
        What was prepared and what was skipped.

    Raises:
        InputError: as in `prepare_raw`, and if there are too few families, or several splits.
    """
    execution, fractions = execution or Execution(), check_shares(shares)
    splits = _families_of(found, root)
    if len(splits) > 1:
        raise InputError(f"{root} is already split into {', '.join(splits)}. Remove --split_shares.")
    families = next(iter(splits.values()))
    state = _state_of_families(Path(root), families)
    settings = asdict(how) | {"families_per_shard": families_per_shard, "format": FORMAT, "split_shares": [*shares]}
    shards = {name: -(-int(len(families) * share) // families_per_shard) or 1 for name, share in fractions.items()}
    own = ("frames", "dataset", "families_per_shard")
    folder = PreparedFolder(output, dict.fromkeys(fractions, settings), shards, execution.overwrite, own)
    places = [(split, index) for split, number in shards.items() for index in range(number)]

    def finished() -> Preparation | None:
        records = [(split, read_record(folder.file(split, index))) for split, index in places]
        if not all(record is not None and record[0] == settings | {STATE: state} for _, record in records):
            return None
        reports, total = {split: Report() for split in fractions}, Report()
        for split, (_, report) in records:
            reports[split].add(report)
            total.add(report)
        return Preparation(reports, len(places), 0, total, folder.path / SUMMARY)

    staging, done = folder.path / STAGING, finished()
    if done is not None and not (execution.retry_failed and done.total.failures):
        shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed at the end
        return done

    def announce(text: str) -> None:
        say(text.replace(str(staging), str(output)))
        say(f"{output}: faces are first cropped, then split. Until then they take twice their space.")

    pooled = replace(found, splits={STAGING_SPLIT: families})
    prepared = prepare_raw(pooled, root, staging, how, execution, families_per_shard, announce)
    if prepared.waiting:
        return prepared
    lock = filelock.FileLock(folder.path / ".shares.lock")
    with lock:
        if staging.exists():  # otherwise another job finished first
            folder.discard_replaced()
            for split, index in places:  # from another state of the source, with another split
                record = read_record(folder.file(split, index))
                if record is not None and (done is not None or record[0] != settings | {STATE: state}):
                    folder.file(split, index).unlink()
            _divide(found, root, staging, folder, fractions, settings | {STATE: state}, prepared.total, say)
            _write_summary(finished())
            shutil.rmtree(staging)
        Path(lock.lock_file).unlink(missing_ok=True)
    return finished()


def _divide(
    found: RawDataSet,
    root: str | Path,
    staging: Path,
    folder: PreparedFolder,
    shares: dict[str, float],
    settings: dict[str, Any],
    total: Report,
    say: Callable[[str], None],
) -> None:
    """Write the splits from the shards of all families; the first shard stores the report of all."""
    files = split_files(staging)[STAGING_SPLIT]
    pictures = Pictures.of_files(files, str(root))
    families = Families(count_faces(pictures.table.source_id, pictures.table.label))
    families.join_groups(found.groups)
    for note in families.join_copies(pictures):
        say(note)
    chosen = families.deal(shares, str(root))
    report = total
    for split in shares:
        mine = [family for family, where in chosen.items() if where == split]
        for index, members in enumerate(np.array_split(np.array(mine, object), folder.shards[split])):
            rows = _rows_of(files, set(members))
            write_shard(folder.file(split, index).resolve(), rows, settings, copy.deepcopy(report))
            report = Report()


def _rows_of(files: Sequence[Path], families: set[str]) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of each of these families in file order."""
    for path in files:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                sources = file.read_row_group(group, columns=["source_id"])["source_id"].to_pylist()
                if families.isdisjoint(sources):
                    continue
                table = file.read_row_group(group)
                for family, rows in itertools.groupby(enumerate(sources), key=lambda item: item[1]):
                    if family in families:
                        yield table.take([index for index, _ in rows]).to_pylist()


def _families_of(found: RawDataSet, root: str | Path) -> dict[str, list[Family]]:
    splits = {split: families for split, families in found.splits.items() if families}
    if not splits:
        raise InputError(f"{root} contains no clips to prepare. Run `dcl-prepare check` to list its content.")
    return splits


def _deal(families: Sequence[Family], number: int) -> Iterator[tuple[Family, ...]]:
    """Yield the families of each shard; the assignment is random but always the same."""
    dealt = np.random.default_rng(0).permutation(len(families))
    for start in range(0, len(families), number):
        yield tuple(families[place] for place in sorted(dealt[start : start + number]))


def _state_of_families(root: Path, families: Sequence[Family]) -> str:
    """Return a hash of the clips and files that rows depend on, independent of the location of the root."""
    said = "".join(repr(family) for family in families).replace(str(root.absolute()), "")
    files = state_of(root, (path for family in families for path in family.files()))
    return hashlib.sha256(f"{said}{files}".encode()).hexdigest()


def _run(shards: Sequence[Shard], execution: Execution) -> Iterator[tuple[str, Report]]:
    number = sum(len(shard.families) for shard in shards)
    with tqdm(total=number, unit="family") as bar:
        if execution.ray:
            yield from run_on_ray(shards, bar.update, execution.ray_address, execution.processes)
        elif execution.processes > 1 and len(shards) > 1:
            yield from run_in_processes(shards, bar.update, min(execution.processes, len(shards)))
        else:
            yield from run_here(shards, bar.update)


def _announce(shards: Sequence[Shard], how: Extraction, output: Path) -> str:
    """Return a sentence on the disk space that the shards will need, estimated from sample faces."""
    families = [family for shard in shards for family in shard.families]
    known = [family for family in families if isinstance(family, ClipFamily)]
    free = shutil.disk_usage(output).free
    if len(known) < len(families):  # archives of crops have unknown content before they are read
        need = sum(path.stat().st_size for family in families for path in family.files() if path.exists())
        faces = "as the archives that are read"
    else:
        number = how.frames * sum(len(family.clips) for family in known)
        size = _bytes_of_a_face(known, how)
        if not size:
            return f"{output}: the size of {number:,} faces is unknown, since a sample contained no face."
        need, faces = number * size, f"for {number:,} faces at most"
    short = "" if need < free else "; too little: free some space, and run the same command again"
    return f"{output}: about {_gigabytes(need)} {faces}, and {_gigabytes(free)} are free{short}."


def _bytes_of_a_face(families: Sequence[ClipFamily], how: Extraction) -> float:
    detector = None if how.detector is None else _detector(how.detector)
    sizes = []
    for place in np.linspace(0, len(families) - 1, min(_SAMPLED, len(families)), dtype=int):
        for row in family_rows(families[place].clips[:2], replace(how, frames=2), detector, Report()):
            sizes.append(bytes_of(row))
    return float(np.mean(sizes)) if sizes else 0.0


def _gigabytes(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"


def _write_summary(preparation: Preparation) -> None:
    with whole_file(preparation.summary) as partial:
        partial.write_text(json.dumps(preparation.to_json(), indent=1))
