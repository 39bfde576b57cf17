"""Find what shall be evaluated, before anything slow is imported: a wrong name is reported at once."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Value

from ..dataset_dcl import (
    CLASS_NAMES,
    check_labels,
    find_crop,
    find_folder,
    fingerprint,
    load_prepared,
    metadata,
    split_files,
)
from ..duplicates_dcl import Pictures, refuse_copies
from ..errors_dcl import InputError
from ..hub_dcl import fetch_model, may_be_repository
from .metrics import check_group_column

MODEL_TYPE = "dcl"  # that of DCLConfig, whose module takes seconds to import


@dataclass
class Checkpoint:
    """A checkpoint on disk, of DCL or another image classifier; its weights are not loaded yet."""

    name: str
    """As the user gave it."""
    folder: Path
    """Where its files are."""
    revision: str
    """The commit, if it came from the Hub; of a folder, a hash of configuration and weights."""
    model_type: str = MODEL_TYPE
    """What its config.json says."""
    classes: list[tuple[str, int]] | None = None
    """Of a model that is not DCL's, the label of each class and whether it is one of reals (0) or of fakes (1)."""

    @property
    def is_dcl(self) -> bool:
        """Whether it is one of DCL."""
        return self.model_type == MODEL_TYPE

    def record(self) -> dict[str, Any]:
        """Return what the record of a run says of the classes."""
        if self.classes is None:
            return {}
        return {
            "labels": {
                name: [label for label, kind in self.classes if kind == index]
                for index, name in enumerate(CLASS_NAMES)
            }
        }


def find_checkpoint(name: str, only_dcl: bool = False) -> Checkpoint:
    """Find a checkpoint in a folder, else on the Hub, whose files are then fetched into the local cache.

    Args:
        name: a folder, or a model id on the Hub.
        only_dcl: accept no other kind of model.

    Raises:
        InputError: if it is neither, names no model type, is not one of DCL where that was asked for, or is another
            without weights as safetensors.
    """
    if Path(name).is_dir():
        checkpoint = Checkpoint(name, Path(name), _hash_of(Path(name)))
    elif not may_be_repository(name):
        raise InputError(
            f"there is no checkpoint {name!r}: it is not a folder; train one, or pass a model id of the Hub."
        )
    else:
        folder = fetch_model(name, ["*.json", "*.safetensors", "*.py"])
        checkpoint = Checkpoint(name, folder, folder.name)  # snapshots are kept under the name of their commit
    try:
        config = json.loads((checkpoint.folder / "config.json").read_text(encoding="utf-8"))
        # Checkpoints of timm are known by what they have instead.
        checkpoint.model_type = config.get("model_type", "timm_wrapper" if "pretrained_cfg" in config else None)
    except FileNotFoundError:
        raise InputError(f"{name!r} is not a checkpoint: it has no config.json; pass the folder that has.") from None
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"the config.json of {name!r} cannot be read ({error}): save the checkpoint again."
        ) from error
    if only_dcl and not checkpoint.is_dcl:
        raise InputError(
            f"{name!r} is not a checkpoint of DCL: the model type in its config.json is {checkpoint.model_type!r}, "
            f"not {MODEL_TYPE!r}."
        )
    if checkpoint.model_type is None:
        raise InputError(
            f"{name!r} is not a checkpoint that can be evaluated: its config.json names no model_type; pass one that "
            "transformers or timm saved."
        )
    weights = any(checkpoint.folder.glob("*.safetensors"))
    if not weights and any(checkpoint.folder.glob("model*.onnx")):
        raise InputError(
            f"{name!r} holds a graph and no weights: pass the checkpoint that was exported; what the graph costs is "
            "in its export.json."
        )
    if not weights and not checkpoint.is_dcl:
        raise InputError(
            f"{name!r} has no weights as safetensors, and no others are opened, since to unpickle them is to run what "
            "they hold: if you trust them, load and save them once by transformers, and pass that folder."
        )
    return checkpoint


def _hash_of(folder: Path) -> str:
    """Hash what decides a checkpoint's answers, so that scores tell of which weights they are."""
    digest = hashlib.sha256()
    for path in sorted(path for end in ("config.json", ".safetensors", ".py") for path in folder.glob(f"*{end}")):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{digest.hexdigest()}"


@dataclass
class EvaluationSet:
    """One split of a prepared data set, under the name that its results get."""

    name: str
    source: str
    """The name, path or id that the user gave."""
    split: str
    dataset: Dataset
    fingerprint: str
    crop: dict[str, Any]
    """How its faces were cut: where in several ways, the most frequent."""
    crop_is_mixed: bool

    @property
    def where(self) -> str:
        """How errors call it."""
        return f"{self.source} ({self.split})"


def load_evaluation_sets(
    sources: Sequence[str], split: str, data_root: str | Path | None = None, allow_mixed_crops: bool = False
) -> list[EvaluationSet]:
    """Load data sets and check that they can be evaluated.

    Each is called by its name under `data_root`, its id on the Hub, or the last part of its path; where two paths end
    alike, by the whole path.

    Args:
        sources: names under `data_root`, paths, or ids of data sets on the Hub.
        split: which split of each.
        data_root: where names are looked up first.
        allow_mixed_crops: accept a data set whose faces were cut in several ways.

    Raises:
        InputError: if one cannot be loaded, has rows without a label or frames that are there twice, or mixes crops
            without leave.
    """
    sources = list(dict.fromkeys(sources))
    if not sources:
        raise InputError("no data set was named: pass --dataset with a name, a folder, or an id of the Hub.")
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
                f"{len(repeated)} rows of {where} have the video and frame of another row (as {video!r}, frame "
                f"{frame}): give every clip a video_id of its own, and every compression a data set."
            )
        try:
            crop, crop_is_mixed = find_crop(dataset, where), False
        except InputError:
            if not allow_mixed_crops:
                raise
            crop, crop_is_mixed = find_crop(dataset, where, allow_mixed=True), True
        unique = name if names.count(name) == 1 else source
        sets.append(EvaluationSet(unique, source, split, dataset, fingerprint(dataset), crop, crop_is_mixed))
    return sets


def refuse_copies_of_training(sets: Sequence[EvaluationSet], data_root: str | Path | None = None) -> None:
    """Check that no data set on this machine shares a picture with its own splits for training and validation.

    Raises:
        InputError: if one does; it names the first pair.
    """
    for data in sets:
        folder = find_folder(data.source, data_root)
        if folder is None or data.split == "train":  # on the Hub; or asked for as it is
            continue
        held_out = Pictures.of_rows(data.dataset, data.split)
        for split, files in split_files(folder).items():
            if split in ("train", "validation") and split != data.split:
                refuse_copies(
                    Pictures.of_files(files, split),
                    held_out,
                    f"the scores on {data.where} would be too good. Take one of each out and prepare the data again, "
                    "or pass --allow_copies.",
                )


def check_groups(sets: Sequence[EvaluationSet], column: str) -> None:
    """Check that every data set can be divided by a column, before anything is scored; warn of a single group.

    Raises:
        InputError: if one has no such column, or it is no plain one, or has no value, or more than there can be
            groups.
    """
    for data in sets:
        features = data.dataset.features
        plain = [name for name, feature in features.items() if isinstance(feature, Value | ClassLabel)]
        if column not in plain:
            raise InputError(
                f"{data.where} cannot be grouped by {column!r}: pass --group_by with one of {', '.join(plain)}."
            )
        values = metadata(data.dataset.select_columns([column])).to_pandas()[column]
        if isinstance(features[column], ClassLabel):
            values = values.map(dict(enumerate(features[column].names)))  # a class that is not known is -1
        check_group_column(values, column, data.where)


def _short_name(source: str, data_root: str | Path | None) -> str:
    if data_root is not None and (Path(data_root) / source).is_dir():
        return source
    return Path(source).resolve().name if Path(source).is_dir() else source


__all__ = [
    "Checkpoint",
    "EvaluationSet",
    "check_groups",
    "find_checkpoint",
    "load_evaluation_sets",
    "refuse_copies_of_training",
]
