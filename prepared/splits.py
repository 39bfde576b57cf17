"""Load splits of prepared data sets for evaluation, and check that they can be evaluated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from ..errors_dcl import InputError
from .copies import Pictures, refuse_copies
from .dataset import CROP_FIELDS, check_labels, find_crop, fingerprint, load_prepared, metadata
from .names import find_folder, split_files


@dataclass
class PreparedSplit:
    """One split of a prepared data set, with the name for its results."""

    name: str
    source: str
    """The name, path or id that the user gave."""
    split: str
    dataset: Dataset
    fingerprint: str
    crop: dict[str, Any]
    """How its faces were cut; if in several ways, the most frequent one."""
    crop_is_mixed: bool

    @property
    def where(self) -> str:
        """The name of the split in error messages."""
        return f"{self.source} ({self.split})"


def load_splits(
    sources: Sequence[str], split: str, data_root: str | Path | None = None, allow_mixed_crops: bool = False
) -> list[PreparedSplit]:
    """Load data sets and check that they can be evaluated.

    The name of a data set is its name under `data_root`, its id on the Hub, or the last part of its path; if two paths
    have the same last part, the whole path. Raises `InputError` if a data set cannot be loaded, has rows without a
    label or duplicate frames, or has faces that were cut in several ways and `allow_mixed_crops` is not set.
    """
    sources = list(dict.fromkeys(sources))
    if not sources:
        raise InputError("No data set given. Pass --dataset with a name, a folder, or an id on the Hub.")
    names = [_short_name(source, data_root) for source in sources]
    sets = []
    for source, name in zip(sources, names, strict=True):
        dataset = load_prepared(source, split, data_root)
        where = f"{source} ({split})"
        table = metadata(dataset.select_columns(["label", "video_id", "frame"])).to_pandas()
        check_labels(table.label.to_numpy(), where)
        repeated = table[table.duplicated(["video_id", "frame"])]
        if len(repeated):
            video, frame = repeated.iloc[0][["video_id", "frame"]]
            raise InputError(
                f"{where} has duplicate rows: {len(repeated)} with the video and frame of another row (such as "
                f"{video!r}, frame {frame}). Give every clip its own video_id, and every compression its own data set."
            )
        try:
            crop, crop_is_mixed = find_crop(dataset, where), False
        except InputError:
            if not allow_mixed_crops:
                raise
            crop, crop_is_mixed = find_crop(dataset, where, allow_mixed=True), True
        unique = name if names.count(name) == 1 else source
        sets.append(PreparedSplit(unique, source, split, dataset, fingerprint(dataset), crop, crop_is_mixed))
    return sets


def refuse_copies_of_training(sets: Sequence[PreparedSplit], data_root: str | Path | None = None) -> None:
    """Raise an `InputError` if a local data set shares a picture with its own training or validation split."""
    for data in sets:
        folder = find_folder(data.source, data_root)
        if folder is None or data.split == "train":  # on the Hub, or the user asked for the training data
            continue
        held_out = Pictures.of_rows(data.dataset, data.split)
        for split, files in split_files(folder).items():
            if split in ("train", "validation") and split != data.split:
                refuse_copies(
                    Pictures.of_files(files, split),
                    held_out,
                    f"the scores on {data.where} would be too high. Remove one of each pair and prepare the data "
                    "again, or pass --allow_copies.",
                )


def crop_matches(data: Mapping[str, Any], model: Mapping[str, Any] | None) -> bool | None:
    """Whether faces were cut like those that a model was trained on; None if the model does not store how."""
    if model is None:
        return None
    return all(
        np.isclose(data[name], model.get(name), atol=1e-5)
        if name == "margin" and None not in (data[name], model.get(name))
        else data[name] == model.get(name)
        for name in CROP_FIELDS
    )


def _short_name(source: str, data_root: str | Path | None) -> str:
    if data_root is not None and (Path(data_root) / source).is_dir():
        return source
    return Path(source).resolve().name if Path(source).is_dir() else source
