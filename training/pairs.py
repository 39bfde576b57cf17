"""From a prepared data set to batches: which frames form a sample, and which samples form a batch.

A sample is a query view and a key view of one face, made from its row and the partners of that row: another frame of
the same clip, the source frame of a forgery, or the same clip forged by another method.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, concatenate_datasets
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from ..errors_dcl import InputError
from ..prepared.dataset import (
    FEATURES,
    CorruptImageError,
    check_labels,
    decode_image,
    decode_mask,
    keys_of,
    load_prepared,
    metadata,
    name_row,
)
from ..prepared.names import CLASS_NAMES, FAKE, REAL
from .settings import AugmentationSettings, ViewSettings
from .streaming import StreamedRows, concatenate_rows, stream_prepared
from .views import draw_device_views, draw_pair_plan, draw_view, view_augmentation

logger = logging.getLogger(__name__)

NO_ROW = -1
MAX_CORRUPT_IN_A_ROW = 100
CHECKED_AT_ONCE = 256  # rows whose encoded images are in memory while they are checked


def load_rows(
    names: Sequence[str],
    split: str,
    data_root: str | None = None,
    methods: Sequence[str] | None = None,
    streaming: bool = False,
    split_alone: bool = False,
) -> Dataset | StreamedRows:
    """Load a split of one or several prepared data sets: all reals, and the fakes of `methods` (default: all).

    With `streaming`, images are read only when they are drawn; otherwise the same as `load_prepared`. Raises
    `InputError` if a set cannot be used, no set has one of the methods, or a class has no rows.
    """
    if streaming:
        rows = concatenate_rows([stream_prepared(name, split, data_root) for name in names])
    else:
        loaded = (load_prepared(name, split, data_root, split_alone) for name in names)
        rows = concatenate_datasets([_with_common_types(part) for part in loaded])
    where = f"{' and '.join(names)} ({split})"
    table = metadata(rows.select_columns(["label", "method"])).to_pandas()
    check_labels(table.label.to_numpy(), where)
    if methods is not None:
        there = sorted(table.method[table.label == FAKE].unique())
        missing = sorted(set(methods) - set(there))
        if missing:
            raise InputError(
                f"{where} has no fakes by {', '.join(missing)}. It has {', '.join(there) or 'no fakes at all'}."
            )
        kept = (table.label == REAL) | table.method.isin(methods)
        rows, table = rows.select(np.flatnonzero(kept)), table[kept]
    for label, name in enumerate(CLASS_NAMES):
        if not (table.label == label).any():
            raise InputError(f"{where} has no {name} faces. Training and validation need both classes.")
    return rows


class PairDataset(TorchDataset):
    """Query and key views of a prepared data set: random for each (epoch, row), and reproducible.

    Args:
        rows: a prepared data set, images encoded.
        image_size: side of the views in pixels.
        views: probabilities of the views.
        augmentation: the common augmentation.
        seed: a sample's random numbers depend on seed, epoch and row alone.
        skip_corrupt: replace a row that cannot be decoded by another one of its class and warn, instead of raising.
        keys: whether to make the key views. Without them, queries are the same.
    """

    def __init__(
        self,
        rows: Dataset | StreamedRows,
        image_size: int,
        views: ViewSettings | None = None,
        augmentation: AugmentationSettings | None = None,
        seed: int = 0,
        skip_corrupt: bool = False,
        keys: bool = True,
    ):
        self.rows = rows
        self.views = views or ViewSettings()
        self.augment = view_augmentation(self.views, augmentation or AugmentationSettings(), image_size)
        self.seed = seed
        self.skip_corrupt = skip_corrupt
        self.keys = keys
        table = keys_of(rows)
        self.labels = table.label.to_numpy()
        self.methods = table.method.to_numpy()
        self.source = _source_rows(table)
        self.same_video = _Groups(table.video_id)
        # A clip has the same name under every method: method/clip.
        clip = table.video_id.str.partition("/")[2].where(table.label == FAKE, table.video_id)
        self.same_frame = _Groups(pd.MultiIndex.from_arrays([table.source_id, clip, table.frame, table.label]))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def __getitem__(self, draw: tuple[int, int]) -> dict[str, Any]:
        """Make the sample of a draw (epoch, row) of the sampler.

        Returns:
            `pixel_values` and `key_pixel_values` uint8 (3, size, size), `mask` uint8 (size, size) of the query,
            `has_mask` bool, `labels`, `row` int64, the row of the query, and the draws for `apply_device_views`.
            Without keys, no entry begins with `key_`.

        Raises:
            CorruptImageError: if an image cannot be decoded and corrupt rows are not skipped.
        """
        epoch, row = draw
        rng = np.random.default_rng((self.seed, epoch, row))
        for _ in range(MAX_CORRUPT_IN_A_ROW):
            try:
                return self._sample(row, rng)
            except CorruptImageError as error:
                if not self.skip_corrupt:
                    raise
                logger.warning("Skipped: %s.", error.cause)
                row = int(rng.choice(np.flatnonzero(self.labels == self.labels[row])))
        raise InputError(f"{MAX_CORRUPT_IN_A_ROW} corrupt rows were drawn in succession. Prepare the set again.")

    def _sample(self, row: int, rng: np.random.Generator) -> dict[str, Any]:
        plan = draw_pair_plan(self.views, rng)
        key_row = row
        if plan.corresponding_pair and self.labels[row] == FAKE:
            others = self.same_frame.members(row)
            key_row = _choose(others[self.methods[others] != self.methods[row]], row, rng)
        elif plan.frame_shift:
            others = self.same_video.members(row)
            key_row = _choose(others[others != row], row, rng)
        cells = cache(self.rows.__getitem__)  # query and key often share a frame
        decode = cache(lambda row: _decode_image(cells(row), row))
        # A real is untouched, and of partners only the image is needed: masks are decoded for fakes alone.
        mask = _decode_mask(cells(row), row) if self.labels[row] == FAKE else None
        known = mask is not None or self.labels[row] == REAL

        def view(row: int, mask: np.ndarray | None, mix_ratio: float) -> tuple[np.ndarray, np.ndarray | None]:
            image = decode(row)
            mixed = mix_ratio < 1 and self.source[row] != NO_ROW
            source = decode(int(self.source[row])) if mixed else None
            return draw_view(image, mask, self.augment, rng, source, mix_ratio)

        query, mask = view(row, mask, plan.query_mix_ratio)
        sample = {
            "pixel_values": query.transpose(2, 0, 1),
            "mask": np.zeros(query.shape[:2], np.uint8) if mask is None else mask,
            "has_mask": np.asarray(known),
            "labels": np.asarray(self.labels[row]),
            "row": np.asarray(row, np.int64),
        }
        if self.keys:
            sample["key_pixel_values"] = view(key_row, None, plan.key_mix_ratio)[0].transpose(2, 0, 1)
        else:
            self.augment.skip(rng)
        draws = draw_device_views(self.views, rng)
        return sample | {name: draw for name, draw in draws.items() if self.keys or not name.startswith("key_")}


class FaceDataset(TorchDataset):
    """The faces of a prepared data set for validation, preprocessed by the image processor.

    With `skip_corrupt`, all images are decoded once at the start; rows with corrupt ones are left out with a warning.
    """

    def __init__(self, rows: Dataset, processor: Any, skip_corrupt: bool = False):
        if skip_corrupt:
            rows = rows.select(_readable(rows))
        self.rows = rows
        self.processor = processor
        table = keys_of(rows)
        self.labels = table.label.to_numpy()
        self.video_index = pd.factorize(table.video_id)[0]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Return `pixel_values` float32 (3, size, size), `labels`, and `video_index`, the number of the video."""
        image = _decode_image(self.rows[row], row)
        return {
            "pixel_values": self.processor(image, return_tensors="np")["pixel_values"][0],
            "labels": np.asarray(self.labels[row]),
            "video_index": np.asarray(self.video_index[row]),
        }


class BalancedSampler(Sampler):
    """Alternates real and fake rows, so that every batch of an even size is balanced.

    An epoch draws every row of the smaller class once, and the same number of rows of the larger class. The next epoch
    continues there: no row repeats before all are drawn. The order depends on seed and epoch alone.
    """

    def __init__(self, labels: np.ndarray, seed: int = 0):
        self.members = [np.flatnonzero(labels == label) for label in (REAL, FAKE)]
        self.size = min(len(member) for member in self.members)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch to draw next."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of draws in an epoch."""
        return 2 * self.size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Iterate over (epoch, row)."""
        for pair in zip(*(self._rows_of_epoch(label) for label in (REAL, FAKE)), strict=True):
            for row in pair:
                yield self.epoch, int(row)

    def _rows_of_epoch(self, label: int) -> np.ndarray:
        """Return the epoch's slice of an endless sequence of permutations of the class."""
        members = self.members[label]
        start = self.epoch * self.size
        first, last = start // len(members), (start + self.size - 1) // len(members)
        permutations = [
            members[np.random.default_rng((self.seed, label, turn)).permutation(len(members))]
            for turn in range(first, last + 1)
        ]
        offset = start - first * len(members)
        return np.concatenate(permutations)[offset : offset + self.size]


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack the arrays of samples into tensors."""
    return {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in samples[0]}


def _decode_image(cells: dict[str, Any], row: int) -> np.ndarray:
    return decode_image(cells["image"], _name(cells, row))


def _decode_mask(cells: dict[str, Any], row: int) -> np.ndarray | None:
    return decode_mask(cells.get("mask"), _name(cells, row))


def _name(cells: dict[str, Any], row: int) -> str:
    return f"{name_row(row, cells['dataset'])} ({cells['video_id']}, frame {cells['frame']})"


def _readable(rows: Dataset) -> list[int]:
    """Return the rows whose images and masks can be decoded, by threads on all cores, and warn of the others."""
    readable = []
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:  # the filters that the threads set end here
        for start in range(0, len(rows), CHECKED_AT_ONCE):
            numbers = range(start, min(start + CHECKED_AT_ONCE, len(rows)))
            cells = [rows[row] for row in numbers]  # in one thread, since streamed rows share a cache
            for row, error in zip(numbers, pool.map(_corruption, cells, numbers), strict=True):
                if error is None:
                    readable.append(row)
                else:
                    logger.warning("Skipped: %s.", error.cause)
    return readable


def _corruption(cells: dict[str, Any], row: int) -> CorruptImageError | None:
    try:
        _decode_image(cells, row)
        _decode_mask(cells, row)  # the calibration needs it
    except CorruptImageError as error:
        return error
    return None


def _with_common_types(rows: Dataset) -> Dataset:
    """Cast the columns to the types of `FEATURES`, so that sets can be concatenated; the images stay as they are."""
    rows = rows.select_columns([name for name in FEATURES if name in rows.column_names and name != "landmarks"])
    for name, feature in rows.features.items():
        if name not in ("image", "mask") and feature != FEATURES[name]:
            column = rows.data.column(name).combine_chunks().cast(FEATURES.arrow_schema.field(name).type)
            rows = rows.remove_columns(name).add_column(name, column, feature=FEATURES[name])
    return rows


def _choose(rows: np.ndarray, fallback: int, rng: np.random.Generator) -> int:
    return int(rng.choice(rows)) if len(rows) else fallback


def _source_rows(table: pd.DataFrame) -> np.ndarray:
    """Return for each fake the row of its real source frame with the same crop, or `NO_ROW`."""
    table = table.assign(crop=table.crop.astype(str))
    reals = table[table.label == REAL].reset_index().drop_duplicates(["video_id", "frame"])
    found = table.merge(
        reals[["video_id", "frame", "crop", "index"]],
        left_on=["source_id", "frame", "crop"],
        right_on=["video_id", "frame", "crop"],
        how="left",
    )["index"]
    return found.where((table.label == FAKE).to_numpy()).fillna(NO_ROW).to_numpy(int)


class _Groups:
    """Groups of rows that share a value; a row finds its group."""

    def __init__(self, values: pd.Series | pd.MultiIndex):
        self.group = pd.factorize(values)[0]
        self.order = np.argsort(self.group, kind="stable")
        self.starts = np.searchsorted(self.group[self.order], np.arange(self.group.max() + 2))

    def members(self, row: int) -> np.ndarray:
        group = self.group[row]
        return self.order[self.starts[group] : self.starts[group + 1]]
