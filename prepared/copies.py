"""Find copies of an image in two splits: identical, recompressed, resized, or slightly cropped.

A perceptual hash of every face crop (256 bits: the signs of its lowest 16 x 16 DCT frequencies) finds candidates. The
two crops of a candidate are then aligned and correlated, which distinguishes a copy from another person in the same
pose. The figures behind `NEAR` and `SAME` are in docs/preparing.md.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ..errors_dcl import InputError, reason
from .dataset import decode_image, metadata
from .names import REAL

NEAR = 64  # of 256 bits: pairs of hashes that differ in at most so many are candidates
SAME = 0.97  # correlation from which two aligned crops count as one picture
HASHED_ON_THE_FLY = 5_000  # pictures of a split without stored hashes that a command computes before it starts
_SIDE, _FREQUENCIES, _BORDER = 64, 16, 6  # pixels of the small grey crop, frequencies each way, room to align
_FLAT = 2.0  # standard deviation of grey below which a crop shows nothing; any two such crops are alike
_MOST_COMPARISONS = (
    1_000_000_000  # of hashes, about ten seconds; in larger data sets, only every n-th frame is compared
)
_BLOCK = 4096  # hashes that are compared at a time with the same number of others
_TRIES = 4  # pairs of images that are compared for two families, the nearest first
_MOST_CHECKED = 5_000  # pairs over all families, about a minute
_ALIGNED = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-4)
_COLUMNS = ["label", "video_id", "source_id", "frame", "phash"]
logger = logging.getLogger(__name__)


def picture_hash(image: np.ndarray) -> str | None:
    """Return the perceptual hash of a face crop, RGB uint8: 64 hexadecimal digits; None if it shows nothing."""
    small = _small_grey(image)
    if small.std() < _FLAT:
        return None
    frequencies = cv2.dct(small)[:_FREQUENCIES, :_FREQUENCIES]
    frequencies[0, 0] = 0  # the brightness
    return np.packbits(frequencies > np.median(frequencies)).tobytes().hex()


def same_picture(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two face crops, float32 (64, 64) as `Pictures.grey` gives them, are copies of one picture."""
    one, other = (cv2.GaussianBlur(grey, (0, 0), 1) for grey in (one, other))
    inner = np.ascontiguousarray(one[_BORDER:-_BORDER, _BORDER:-_BORDER])
    affine = np.float32([[1, 0, _BORDER], [0, 1, _BORDER]])
    try:
        correlation, _ = cv2.findTransformECC(inner, other, affine, cv2.MOTION_AFFINE, _ALIGNED, None, 1)
    except cv2.error:  # no convergence: they have nothing in common
        return False
    return correlation >= SAME


def _small_grey(image: np.ndarray) -> np.ndarray:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)


@dataclass
class Pictures:
    """The face crops of a split: its name, its rows without images, and how to get the `image` cell of a row."""

    where: str
    table: pd.DataFrame
    cell: Callable[[int], dict[str, Any]]
    _greys: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    @classmethod
    def of_rows(cls, rows: Any, where: str) -> "Pictures":
        """Take the rows of a loaded or streamed split."""
        table = metadata(rows.select_columns([name for name in _COLUMNS if name in rows.column_names])).to_pandas()
        return cls(where, table, lambda row: rows[int(row)]["image"])

    @classmethod
    def of_files(cls, files: Sequence[str | Path], where: str) -> "Pictures":
        """Take the rows of the Parquet files of a split; images are read when they are needed."""
        tables, places = [], []
        for path in files:
            try:
                with pq.ParquetFile(path) as file:
                    names = [name for name in _COLUMNS if name in file.schema_arrow.names]
                    tables.append(file.read(columns=names).to_pandas())
                    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            except (OSError, pa.ArrowInvalid) as error:
                raise InputError(f"{path} cannot be read ({reason(error)}). Prepare or download it again.") from error
            if missing := [name for name in _COLUMNS if name not in (*names, "phash")]:
                raise InputError(f"{path} has no column {missing[0]!r}. Prepare it again.")
            places.extend((path, group, offset) for group, size in enumerate(sizes) for offset in range(size))

        @functools.lru_cache(maxsize=4)
        def images(path: str | Path, group: int) -> pa.ChunkedArray:
            with pq.ParquetFile(path) as file:
                return file.read_row_group(group, columns=["image"])["image"]

        def cell(row: int) -> dict[str, Any]:
            path, group, offset = places[row]
            return images(path, group)[offset].as_py()

        return cls(where, pd.concat(tables, ignore_index=True), cell)

    def sources(self) -> np.ndarray:
        """Return the rows to search: reals, and fakes of families without a real."""
        real = self.table.label.to_numpy() == REAL
        has_real = self.table.source_id.isin(self.table.source_id[real]).to_numpy()
        return np.flatnonzero(real | ~has_real)

    def name(self, row: int) -> str:
        """Return the name of a row in messages: its image file if there is one, else its clip and frame."""
        video, frame = self.table.video_id[row], self.table.frame[row]
        file = self.cell(row)["path"]
        if not file:
            return f"{video}, frame {frame}"
        path, name = PurePosixPath(video), PurePosixPath(file).name
        if path.name == PurePosixPath(file).stem:  # the file, or its folder, gave the clip its name
            return f"{video} ({name})"
        return str(path if path.name == name else path / name)

    def grey(self, row: int) -> np.ndarray:
        """Return a crop in the form that is compared: grey, float32 (64, 64)."""
        if row not in self._greys:
            self._greys[row] = _small_grey(decode_image(self.cell(row), f"{self.table.video_id[row]} ({self.where})"))
        return self._greys[row]

    def add_hashes(self, most: int | None = None) -> bool:
        """Compute missing hashes of `sources`, unless there are more than `most`; returns whether all exist now."""
        hashes = np.full(len(self.table), None, object)
        if "phash" in self.table:
            stored = self.table["phash"].notna().to_numpy()
            hashes[stored] = self.table["phash"].to_numpy(object)[stored]
        rows = np.array([row for row in self.sources() if hashes[row] is None], int)
        if most is not None and len(rows) > most:
            return False
        for row in tqdm(rows, f"hashes of {self.where}", unit="face", disable=len(rows) < 1000):
            try:
                hashes[row] = picture_hash(decode_image(self.cell(row), ""))
            except InputError:  # reported by whoever needs the image
                continue
        self.table["phash"] = hashes
        return True


def find_copies(one: Pictures, other: Pictures | None = None) -> list[tuple[int, int]]:
    """Find rows that show the same picture: one pair for every two families that share a picture, in row order.

    With a single split, which must have hashes, it compares the families within this split.
    """
    within = other is None
    other = one if within else other
    first, second = _hashed(one, other)
    candidates = pd.concat([_equal(one, other), *_near(one, first, other, second)], ignore_index=True)
    candidates["a"] = one.table.source_id.to_numpy()[candidates.row]
    candidates["b"] = other.table.source_id.to_numpy()[candidates.other]
    if within:
        candidates = candidates[(candidates.row < candidates.other) & (candidates.a != candidates.b)]
    candidates = candidates.drop_duplicates(["row", "other"]).sort_values(["distance", "row", "other"])
    candidates = candidates.groupby(["a", "b"], sort=False).head(_TRIES)
    if len(candidates) > _MOST_CHECKED:
        logger.warning(
            "Of %d images that look alike, only the nearest %d were compared.", len(candidates), _MOST_CHECKED
        )
    pairs: dict[tuple[str, str], tuple[int, int]] = {}
    for row, match, *families in candidates[["row", "other", "a", "b"]].head(_MOST_CHECKED).itertuples(index=False):
        try:
            if tuple(families) not in pairs and same_picture(one.grey(row), other.grey(match)):
                pairs[tuple(families)] = int(row), int(match)
        except InputError:  # an image that cannot be decoded is reported where it is needed
            continue
    return sorted(pairs.values())


def _hashed(one: Pictures, other: Pictures) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of `sources` with a hash; only every n-th if there are too many to compare all pairs."""
    rows = [part.sources()[part.table.phash.notna().to_numpy()[part.sources()]] for part in (one, other)]
    step = max(1, int(np.ceil(np.sqrt(len(rows[0]) * len(rows[1]) / _MOST_COMPARISONS))))
    return rows[0][::step], rows[1][::step]


def _equal(one: Pictures, other: Pictures) -> pd.DataFrame:
    """Return the pairs of rows with equal hashes, including fakes; one for each hash and family."""
    tables = []
    for name, part in (("row", one), ("other", other)):
        table = part.table[["phash", "source_id"]].assign(**{name: np.arange(len(part.table))}).dropna()
        tables.append(table.drop_duplicates(["phash", "source_id"])[["phash", name]])
    return pd.merge(*tables, on="phash")[["row", "other"]].assign(distance=0)


def _near(one: Pictures, first: np.ndarray, other: Pictures, second: np.ndarray) -> Iterator[pd.DataFrame]:
    """Yield the pairs of rows whose hashes differ in at most `NEAR` bits."""
    if not len(first) or not len(second):
        return
    left, right = _signs(one.table.phash.to_numpy()[first]), _signs(other.table.phash.to_numpy()[second])
    bits = left.shape[1]
    for top in range(0, len(first), _BLOCK):
        for start in range(0, len(second), _BLOCK):
            agreement = left[top : top + _BLOCK] @ right[start : start + _BLOCK].T  # bits - 2 * distance
            row, match = np.nonzero(agreement >= bits - 2 * NEAR)
            yield pd.DataFrame(
                {
                    "row": first[row + top],
                    "other": second[match + start],
                    "distance": ((bits - agreement[row, match]) / 2).astype(int),
                }
            )


def _signs(hashes: np.ndarray) -> np.ndarray:
    """Return the bits of hashes as -1 and 1, float32 (hashes, 256), for a matrix product."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(len(hashes), -1), axis=1)
    return bits.astype(np.float32) * 2 - 1


def describe_copy(one: Pictures, row: int, other: Pictures, match: int) -> str:
    """Return a sentence, without a full stop, that says that two rows show one picture."""
    return f"{one.name(row)} ({one.where}) and {other.name(match)} ({other.where}) are the same image"


def refuse_copies(one: Pictures, other: Pictures, remedy: str, most: int | None = HASHED_ON_THE_FLY) -> None:
    """Raise an `InputError` if two splits share a picture; it names the first pair and ends with the remedy.

    If a split lacks more than `most` hashes, nothing is compared, and a warning says so.
    """
    for part in (one, other):
        if not part.add_hashes(most):
            logger.warning(
                "Did not search %s and %s for copies of one image: %s has %d faces and no stored hashes. "
                "Run `dcl-prepare check prepared` to compute them.",
                *(one.where, other.where, part.where, len(part.sources())),
            )
            return
    pairs = find_copies(one, other)
    if pairs:
        more = f" ({len(pairs) - 1} more pairs)" if len(pairs) > 2 else " (1 more pair)" if len(pairs) == 2 else ""
        raise InputError(
            f"{describe_copy(one, pairs[0][0], other, pairs[0][1])}, or nearly{more}. {remedy[0].upper()}{remedy[1:]}"
        )
