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

#: Arguments that may change when a run resumes: they affect no step, though some decide which checkpoint is kept.
FREE_ON_RESUME = (
    *("output_dir", "overwrite", "skip_corrupt", "allow_copies", "config", "data_root", "resume_from_checkpoint"),
    *("disable_tqdm", "report_to", "run_name", "project", "log_level", "log_level_replica", "save_total_limit"),
    *("dataloader_num_workers", "dataloader_persistent_workers", "dataloader_prefetch_factor"),
    *("dataloader_pin_memory", "push_to_hub", "ddp_backend", "ddp_timeout", "per_device_eval_batch_size"),
    *("eval_accumulation_steps", "save_steps", "early_stopping_patience", "evaluate_momentum", "save_for_inference"),
    *("log_gradient_shares", "torch_compile", "torch_compile_backend", "torch_compile_mode"),
)
FREE_PREFIXES = ("hub_", "logging_", "trackio_", "_")


@dataclass(frozen=True)
class TrainingRun:
    """All settings of a training run."""

    model: ModelArguments
    data: DataArguments
    views: ViewSettings
    augmentation: AugmentationSettings
    options: TrainingSettings
    """The Trainer's arguments as given; `training` holds them as `DCLTrainingArguments`."""
    given: frozenset[str]
    """Names of the settings that the user gave, whatever their values."""

    @functools.cached_property
    def training(self) -> "DCLTrainingArguments":
        """The arguments of the Trainer; the first access imports torch and detects the devices.

        Raises `InputError` if a package is missing, or settings conflict with each other or with this machine.
        """
        try:
            from .trainer import DCLTrainingArguments

            named = {item.name for item in fields(self.options)} & self.given
            return DCLTrainingArguments(**{name: getattr(self.options, name) for name in named})
        except ImportError as error:  # the Trainer checks its dependencies when its arguments are built
            raise InputError(
                f"Training needs extra packages ({reason(error)}): pip install 'dcl-face-forgery[train]'."
            ) from error
        except InputError:
            raise
        except ValueError as error:  # conflicting settings of the Trainer
            raise InputError(" ".join(str(error).split())) from error

    def record(self) -> dict[str, Any]:
        """Return the settings that affect the trained weights, as plain values."""
        model = asdict(self.model)
        if self.model.model is not None:  # the checkpoint's own model settings apply where none was given
            model = {name: value for name, value in model.items() if name == "model" or name in self.given}
        # Published with the checkpoint: a folder counts by its name, and the data by their fingerprint.
        for name in ("model", "backbone_weights"):
            if (value := model.get(name)) and Path(value).exists():
                model[name] = "/".join(Path(value).absolute().parts[-2:])
        data = asdict(self.data)
        for name in ("dataset", "validation_dataset"):
            if data[name]:
                data[name] = [Path(value).name if Path(value).exists() else value for value in data[name]]
        named = model | data | asdict(self.views) | asdict(self.augmentation)
        named |= self.training.to_dict() | {"world_size": self.training.world_size}
        free = set(FREE_ON_RESUME)
        if self.data.streaming:  # each worker draws from its own row groups
            free.remove("dataloader_num_workers")
        return {
            key: value
            for key, value in json.loads(json.dumps(named, default=str)).items()
            if key not in free and not key.startswith(FREE_PREFIXES)
        }


def parse_training_run(argv: list[str]) -> TrainingRun:
    """Parse a command line in which `-c FILE` gives defaults and the other flags override them.

    A file can extend another one with `base: FILE`, a path relative to itself; its own values override the base.
    Raises `InputError` if a file is missing or not valid YAML, or a key, a flag or the type of a value is wrong.
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
    # YAML values become flags before the user's own, so both get the same conversion (1e-4 is a number) and checks.
    flags = [flag for key, value in settings.items() if value is not None for flag in _as_flags(key, value)]
    *parsed, unknown = parser.parse_args_into_dataclasses(
        [*flags, *rest], look_for_args_file=False, return_remaining_strings=True
    )
    if unknown:
        name = unknown[0].lstrip("-").partition("=")[0].replace("-", "_")
        raise InputError(f"Unknown argument {unknown[0]!r}. {_hint(name, hints)}")
    named = (flag[2:].partition("=")[0].replace("-", "_") for flag in [*flags, *rest] if flag.startswith("--"))
    given = frozenset(name if name in hints else name.removeprefix("no_") for name in named) | settings.keys()
    run = TrainingRun(*parsed[: len(groups)], given)  # the rest of `parsed` is `config`
    if run.model.hard_share is not None and {"hard_samples", "hard_share"} <= given:
        raise InputError(
            "hard_samples and hard_share exclude each other. Leave one out, or write `hard_share: null` in the file."
        )
    if run.options.adam_l2 and "optim" in given:
        raise InputError(f"optim is {str(run.options.optim)!r}, and adam_l2 is Adam. Leave one out.")
    if not run.data.dataset:
        raise InputError("No data set given. Pass --dataset with a name, a folder, or an id on the Hub.")
    return run


@functools.cache
def _trainer_options() -> type[TrainingSettings]:
    """Return `TrainingSettings` plus the fields of transformers' `TrainingArguments`, read from its source.

    Importing that class would import torch. A default that the source computes is None here. Only --help shows these
    defaults, since `TrainingRun` passes on only the settings that the user gave. Enumerations become choices.
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
            return getattr(builtins, name, str)  # a class from another file converts a string itself

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
    return f"Did you mean {close[0]!r}?" if close else "See `dcl-train --help`."


def _as_flags(key: str, value: Any) -> list[str]:
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}={json.dumps(value) if isinstance(value, dict) else value}"]


def _read_yaml(path: Path, hints: dict[str, Any], above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a YAML file and its bases; `above` lists the files that extend this one."""
    if path.resolve() in above:
        raise InputError(f"Configuration file {above[-1]}: its base {path} is based on it in turn. Remove one `base`.")
    if not path.is_file():
        raise InputError(f"Configuration file {path} not found. Check its path, or use one such as configs/demo.yaml.")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise InputError(
            f"Configuration file {path}: not valid YAML ({' '.join(str(error).split())}). Correct it."
        ) from error
    if not isinstance(values, dict):
        raise InputError(f"Configuration file {path}: holds a {type(values).__name__}. Write `key: value` lines.")
    based, base = "base" in values, values.pop("base", None)
    if based and not isinstance(base, str):
        raise InputError(f"Configuration file {path}: `base` is {base!r}. Name one file, or leave `base` out.")
    for key in values:
        if key not in hints:
            known = [*hints, "base"]
            raise InputError(f"Configuration file {path}: unknown key {key!r}. {_hint(str(key), known)}")
        if values[key] is None and type(None) not in get_args(hints[key]):
            raise InputError(f"Configuration file {path}: key {key!r} has no value. Give one, or leave the key out.")
    return (_read_yaml(path.parent / base, hints, (*above, path.resolve())) if based else {}) | values
