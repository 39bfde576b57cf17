"""The arguments of a training run: a YAML file, flags over it, and the record of an earlier run to resume."""

import argparse
import ast
import builtins
import difflib
import functools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser
from transformers.utils import logging

from ..errors_dcl import InputError, reason
from .settings import AugmentationSettings, DataArguments, ModelArguments, TrainingSettings, ViewSettings

if TYPE_CHECKING:
    from .trainer import DCLTrainingArguments

#: Arguments of the Trainer that may change when a run is resumed: they do not touch what is learned.
FREE_ON_RESUME = (
    *("output_dir", "overwrite", "skip_corrupt", "allow_copies", "config", "data_root", "resume_from_checkpoint"),
    *("disable_tqdm", "report_to", "run_name", "project", "log_level", "log_level_replica", "save_total_limit"),
    *("dataloader_num_workers", "dataloader_persistent_workers", "dataloader_prefetch_factor"),
    *("dataloader_pin_memory", "push_to_hub", "ddp_backend"),
)
FREE_PREFIXES = ("hub_", "logging_", "trackio_", "_")


@dataclass(frozen=True)
class TrainingRun:
    """Everything that a training run is told."""

    model: ModelArguments
    data: DataArguments
    views: ViewSettings
    augmentation: AugmentationSettings
    options: TrainingSettings
    """The arguments of the Trainer as they were given; `training` has them as the Trainer takes them."""
    given: frozenset[str]
    """The settings that were named, whatever their values."""

    @functools.cached_property
    def training(self) -> "DCLTrainingArguments":
        """The arguments of the Trainer; the first look at them imports torch, and asks for the devices.

        Raises `InputError` if a package is missing, or the settings do not go together, or not with this machine.
        """
        try:
            from .trainer import DCLTrainingArguments

            named = {item.name for item in fields(self.options)} & self.given
            return DCLTrainingArguments(**{name: getattr(self.options, name) for name in named})
        except ImportError as error:  # the Trainer looks for what it needs when its arguments are made
            raise InputError(
                f"Training needs extra packages ({reason(error)}): pip install 'dcl-face-forgery[train]'."
            ) from error
        except InputError:
            raise
        except ValueError as error:  # settings of the Trainer that do not go together
            raise InputError(" ".join(str(error).split())) from error

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

    A file may name another one, relative to itself, whose values are the defaults under its own: `base: FILE`. Raises
    `InputError` if the file is missing or no YAML, a key or flag is unknown, or a value is of the wrong type.
    """
    groups = (ModelArguments, DataArguments, ViewSettings, AugmentationSettings, _trainer_options())
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
    *parsed, unknown = parser.parse_args_into_dataclasses(
        [*flags, *rest], look_for_args_file=False, return_remaining_strings=True
    )
    if unknown:
        name = unknown[0].lstrip("-").partition("=")[0].replace("-", "_")
        raise InputError(f"Unknown argument {unknown[0]!r}: {_hint(name, hints)}")
    named = (flag[2:].partition("=")[0].replace("-", "_") for flag in [*flags, *rest] if flag.startswith("--"))
    given = frozenset(name if name in hints else name.removeprefix("no_") for name in named) | settings.keys()
    run = TrainingRun(*parsed[: len(groups)], given)  # what is left of `parsed` is `config`
    if not run.data.dataset:
        raise InputError("No data set given. Pass --dataset with a name, a folder, or an id on the Hub.")
    return run


@functools.cache
def _trainer_options() -> type[TrainingSettings]:
    """Return `TrainingSettings` over the fields of transformers' `TrainingArguments`, which are read from its source.

    To import that class is to import torch. Where the source computes a default, it is None here; it is for --help
    alone, as only what was given is handed on. The choices are the values of the enumerations.
    """
    folder = Path(find_spec("transformers").submodule_search_locations[0])
    sources = [folder / name for name in ("debug_utils.py", "trainer_utils.py", "training_args.py")]
    nodes = [node for path in sources for node in ast.parse(path.read_text(encoding="utf-8")).body]
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}

    class Names(dict):
        def __missing__(self, name: str) -> Any:
            if "ExplicitEnum" in (ast.unparse(base) for base in getattr(classes.get(name), "bases", ())):
                values = (_literal(item.value) for item in classes[name].body if isinstance(item, ast.Assign))
                return Literal[tuple(values)]
            return getattr(builtins, name, str)  # a class of another file is made of what was given

    levels = dict.fromkeys([*logging.get_log_levels_dict(), "passive"])
    names = Names(Any=Any, Literal=Literal, trainer_log_levels=levels)
    options = []
    for item in classes["TrainingArguments"].body:
        if isinstance(item, ast.AnnAssign):
            given = {keyword.arg: keyword.value for keyword in getattr(item.value, "keywords", ())}
            default = {"default": _literal(given.get("default"))}
            if "default_factory" in given:
                default = {"default_factory": list}
            hint = eval(ast.unparse(item.annotation), {}, names)
            metadata = eval(ast.unparse(given["metadata"]), {}, names) if "metadata" in given else {}
            options.append((item.target.id, hint, field(**default, metadata=metadata)))
    return dataclass(type("TrainingOptions", (TrainingSettings, make_dataclass("TrainerOptions", options)), {}))


def _literal(node: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(node)
    except (TypeError, ValueError):  # none, or computed
        return None


def _refuse(message: str) -> NoReturn:
    raise InputError(f"Wrong argument or configuration: {message}.")


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else "see `dcl-train --help`."


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
        raise InputError(f"Configuration file {path} not found. Check its path, or use one such as configs/demo.yaml.")
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
            raise InputError(f"Configuration file {path}: unknown key {key!r}, {_hint(str(key), known)}")
        if values[key] is None and type(None) not in get_args(hints[key]):
            raise InputError(f"the configuration file {path} gives no value for {key!r}: give one, or leave it out.")
    return (_read_yaml(path.parent / base, hints, (*above, path.resolve())) if based else {}) | values
