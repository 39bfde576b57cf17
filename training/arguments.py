"""What a training run is told: by a YAML file, by flags over it, and what a finished or killed run was told before."""

import argparse
import difflib
import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, get_args, get_type_hints

import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser

from ..configuration_dcl import DCLConfig, why_refused
from ..errors_dcl import InputError, reason
from .augment import AugmentationSettings
from .trainer import DCLTrainingArguments
from .views import ViewSettings

#: Arguments of the Trainer that may change when a run is resumed: they do not touch what is learned.
FREE_ON_RESUME = (
    "output_dir",
    "overwrite",
    "skip_corrupt",
    "allow_copies",
    "config",
    "data_root",
    "resume_from_checkpoint",
    "disable_tqdm",
    "report_to",
    "run_name",
    "project",
    "log_level",
    "log_level_replica",
    "save_total_limit",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "dataloader_pin_memory",
    "push_to_hub",
    "ddp_backend",
)
FREE_PREFIXES = ("hub_", "logging_", "trackio_", "_")


@dataclass
class ModelArguments:
    """The model: a checkpoint to go on from, or a new one on pretrained weights; see `DCLConfig` for its settings."""

    model: str | None = field(
        default=None,
        metadata={"help": "Checkpoint to start from, a folder or Hub id; it keeps the settings below as it has them."},
    )
    backbone: str = field(default=DCLConfig.backbone, metadata={"help": "timm model with a spatial feature map."})
    backbone_kwargs: str | None = field(default=None, metadata={"help": "JSON: more arguments of timm.create_model."})
    backbone_weights: str = field(
        default="timm", metadata={"help": "Pretrained weights of a new model: timm (from the Hub), a file, or none."}
    )
    image_size: int = field(default=DCLConfig.image_size, metadata={"help": "Side of the input in pixels."})
    dropout: float = field(default=DCLConfig.dropout, metadata={"help": "Dropout before the classifier."})
    embedding: Literal["map", "pooled"] = field(
        default=DCLConfig.embedding,
        metadata={"help": "What Inter-ICL compares: the squeezed map, or pooled features."},
    )
    embedding_dim: int = field(default=DCLConfig.embedding_dim, metadata={"help": "Length of the pooled embedding."})
    queue_size: int = field(default=DCLConfig.queue_size, metadata={"help": "Rows of each queue of hard keys."})
    hard_samples: int = field(
        default=DCLConfig.hard_samples, metadata={"help": "Keys of each class that enter its queue at a step."}
    )
    momentum: float = field(default=DCLConfig.momentum, metadata={"help": "Momentum of the key encoder."})
    prototype_momentum: float = field(
        default=DCLConfig.prototype_momentum, metadata={"help": "Momentum of the class prototypes."}
    )
    temperature: float = field(default=DCLConfig.temperature, metadata={"help": "Temperature of all similarities."})
    self_pairs: bool = field(
        default=DCLConfig.self_pairs, metadata={"help": "Whether Intra-ICL pairs a cell with itself, as published."}
    )
    mask_threshold: float = field(
        default=DCLConfig.mask_threshold, metadata={"help": "Forged share above which a cell is forged."}
    )

    def config(self) -> DCLConfig:
        """Build the configuration of a new model.

        Raises:
            InputError: if a setting is of the wrong type or out of its range.
        """
        settings = {key: value for key, value in asdict(self).items() if key not in ("model", "backbone_weights")}
        if isinstance(self.backbone_kwargs, str):
            try:
                settings["backbone_kwargs"] = json.loads(self.backbone_kwargs)
            except json.JSONDecodeError as error:
                raise InputError(f"backbone_kwargs is no JSON object ({error}): {self.backbone_kwargs}") from error
        try:
            return DCLConfig(**settings)
        except StrictDataclassError as error:
            raise InputError(f"{why_refused(error)}.") from error

    def refuse_conflicts(self, config: DCLConfig, given: Collection[str]) -> None:
        """Check the settings against the configuration of the checkpoint to start from, which is what counts.

        Args:
            config: that of the checkpoint.
            given: the settings that the command line or the configuration file names.

        Raises:
            InputError: if one of them is not the checkpoint's own.
        """
        wanted = self.config()
        for item in fields(self):
            compared = item.name in given and item.name not in ("model", "backbone_weights")
            if compared and getattr(wanted, item.name) != getattr(config, item.name):
                raise InputError(
                    f"{item.name} is {getattr(wanted, item.name)!r}, and {getattr(config, item.name)!r} in the "
                    f"checkpoint {self.model!r}, which keeps its own settings: leave {item.name} out, or --model."
                )


@dataclass
class DataArguments:
    """The data: prepared data sets, and which of their rows are learned from."""

    dataset: list[str] = field(
        default_factory=list, metadata={"help": "Prepared data sets: names under data_root, folders or Hub ids."}
    )
    data_root: str | None = field(default=None, metadata={"help": "Folder in which names are looked up first."})
    train_split: str = field(default="train", metadata={"help": "Split to learn from."})
    validation_split: str = field(default="validation", metadata={"help": "Split that chooses the checkpoint."})
    methods: list[str] | None = field(
        default=None, metadata={"help": "Manipulation methods to learn and validate on; all by default."}
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read training images where they lie, in the folder or on the Hub, as they are drawn."},
    )
    skip_corrupt: bool = field(default=False, metadata={"help": "Skip images that cannot be decoded, with a warning."})
    allow_mixed_crops: bool = field(default=False, metadata={"help": "Accept faces that were cut in several ways."})
    allow_copies: bool = field(
        default=False,
        metadata={"help": "Train although training and validation split share pictures."},
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Start again where output_dir holds a run with other settings."}
    )


class TrainingRun(NamedTuple):
    """Everything that a training run is told."""

    model: ModelArguments
    data: DataArguments
    views: ViewSettings
    augmentation: AugmentationSettings
    training: DCLTrainingArguments
    given: frozenset[str]
    """The settings that were named, whatever their values."""

    def record(self) -> dict[str, Any]:
        """Return the settings that decide what is learned, as plain values."""
        model = asdict(self.model)
        if self.model.model is not None:  # the checkpoint has settings of its own
            model = {"model": self.model.model}
        named = model | asdict(self.data) | asdict(self.views) | asdict(self.augmentation)
        named |= self.training.to_dict() | {"world_size": self.training.world_size}
        free = set(FREE_ON_RESUME)
        if self.data.streaming:  # each worker draws from row groups of its own
            free.remove("dataloader_num_workers")
        return {
            key: value
            for key, value in json.loads(json.dumps(named, default=str)).items()
            if key not in free and not key.startswith(FREE_PREFIXES)
        }


def parse_training_run(argv: list[str]) -> TrainingRun:
    """Read a command line in which `-c FILE` gives defaults that the other flags override.

    A file may name another one, relative to itself, whose values are the defaults under its own: `base: FILE`.

    Raises:
        InputError: if the file is missing or no YAML, a key or flag is unknown, or a value is of the wrong type.
    """
    groups = (ModelArguments, DataArguments, ViewSettings, AugmentationSettings, DCLTrainingArguments)
    hints = {name: hint for group in groups for name, hint in get_type_hints(group).items()}
    config_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config_parser.add_argument("-c", "--config", type=Path, help="YAML file of defaults; flags override it.")
    config, rest = config_parser.parse_known_args(argv)
    parser = HfArgumentParser(
        groups,
        prog="train.py",
        parents=[config_parser],
        description="Train DCL on prepared data sets.",
        allow_abbrev=False,
    )
    parser.error = _refuse
    settings = {} if config.config is None else _read_yaml(config.config, hints)
    parser.set_defaults(**{key: None for key, value in settings.items() if value is None})
    # As flags before the others, settings are converted and checked as these are: 1e-4 is a number, `a` a list of one.
    flags = [flag for key, value in settings.items() if value is not None for flag in _as_flags(key, value)]
    try:
        *parsed, unknown = parser.parse_args_into_dataclasses(
            [*flags, *rest], look_for_args_file=False, return_remaining_strings=True
        )
    except InputError:
        raise
    except ImportError as error:  # the Trainer looks for what it needs when its arguments are made
        raise InputError(
            f"training needs packages that are missing ({reason(error)}): pip install '.[train]'."
        ) from error
    except ValueError as error:  # settings of the Trainer that do not go together
        raise InputError(" ".join(str(error).split())) from error
    if unknown:
        name = unknown[0].lstrip("-").partition("=")[0].replace("-", "_")
        raise InputError(f"there is no argument {unknown[0]!r}: {_hint(name, hints)}")
    named = (flag[2:].partition("=")[0].replace("-", "_") for flag in [*flags, *rest] if flag.startswith("--"))
    given = frozenset(name if name in hints else name.removeprefix("no_") for name in named)
    run = TrainingRun(*parsed[: len(groups)], given)  # what is left of `parsed` is `config`
    if not run.data.dataset:
        raise InputError("no data set was named: pass --dataset with a name, a folder, or a Hub id.")
    return run


def _refuse(message: str) -> NoReturn:
    raise InputError(f"the command line or the configuration file cannot be used: {message}.")


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else "`train.py --help` names those there are."


def _as_flags(key: str, value: Any) -> list[str]:
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}={json.dumps(value) if isinstance(value, dict) else value}"]


def _read_yaml(path: Path, hints: dict[str, Any], above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a file over the one that it is based on; `above` are those that are based on it."""
    if path.resolve() in above:
        raise InputError(
            f"the configuration file {above[-1]} is based on {path}, which is based on it: take `base` out."
        )
    if not path.is_file():
        raise InputError(f"there is no configuration file {path}: name one, such as configs/demo.yaml.")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise InputError(f"the configuration file {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"the configuration file {path} holds a {type(values).__name__}, not `key: value` lines.")
    based, base = "base" in values, values.pop("base", None)
    if based and not isinstance(base, str):
        raise InputError(f"the configuration file {path} is based on {base!r}: name one file, or leave `base` out.")
    for key in values:
        if key not in hints:
            known = [*hints, "base"]
            raise InputError(f"the configuration file {path} has an unknown key {key!r}: {_hint(str(key), known)}")
        if values[key] is None and type(None) not in get_args(hints[key]):
            raise InputError(f"the configuration file {path} gives no value for {key!r}: give one, or leave it out.")
    return (_read_yaml(path.parent / base, hints, (*above, path.resolve())) if based else {}) | values
