"""The settings of a training run, group by group: names, types, defaults and ranges.

This module does not import torch, so that a wrong name or value is reported at once.

Long because every setting is declared here once, with its help and its range.
"""

import json
import math
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from ..errors_dcl import InputError

if TYPE_CHECKING:
    from ..configuration_dcl import DCLConfig

#: Validation metrics that can select the best checkpoint, and whether higher is better.
VALIDATION_METRICS = {"auc": True, "eer": False, "accuracy": True, "video_auc": True, "loss": False}


#: Model settings that a checkpoint to start from decides, since they fix the shapes of its weights.
FIXED_BY_CHECKPOINT = ("backbone", "backbone_kwargs", "embedding", "embedding_dim")

#: Arguments of the Trainer that DCL cannot follow: the value that is accepted, and the reason for it.
REFUSED_OPTIONS = {
    "label_smoothing_factor": (0, "DCL's losses ignore it"),
    "data_seed": (None, "samples and their order depend on `seed`"),
    "fsdp": (None, "the momentum encoder and the memory must be whole on every GPU. Use torchrun alone"),
    "deepspeed": (None, "the momentum encoder and the memory must be whole on every GPU. Use torchrun alone"),
    "parallelism_config": (None, "the momentum encoder and the memory must be whole on every GPU. Use torchrun alone"),
    "neftune_noise_alpha": (None, "images have no token embeddings"),
    "use_liger_kernel": (False, "it has no kernels for timm models"),
    "auto_find_batch_size": (False, "the memory depends on the batch size"),
    "train_sampling_strategy": ("random", "batches alternate real and fake faces"),
    "dataloader_in_order": (True, "a resumed run must see the same batches"),
    "ignore_data_skip": (False, "a resumed run must see the same batches"),
    "restore_callback_states_from_checkpoint": (False, "DCL restores what it needs by itself"),
    "enable_jit_checkpoint": (False, "DCL saves a checkpoint on SIGTERM and SIGUSR1 anyway"),
}


def check_number(name: str, value: Any, low: float, high: float = math.inf) -> None:
    """Raise `InputError` unless the setting `name` is a finite number from `low` to `high`."""
    if not isinstance(value, (int, float)) or not (low <= value <= high and value < math.inf):
        span = f"{low:g} or more" if high == math.inf else f"from {low:g} to {high:.10g}"
        raise InputError(f"{name} is {value!r}. Choose a number, {span}.")


def check_interval(name: str, value: Any, low: float, high: float) -> None:
    """Raise `InputError` unless the setting `name` is two numbers from `low` to `high`, the smaller first."""
    numbers = isinstance(value, (list, tuple)) and all(isinstance(end, (int, float)) for end in value)
    if not (numbers and len(value) == 2 and low <= value[0] <= value[1] <= high):
        raise InputError(f"{name} is {value!r}. Choose two numbers from {low:g} to {high:g}, the smaller first.")


def check_probabilities(settings: Any) -> None:
    """Raise `InputError` unless every field with "probability" in its name is from 0 to 1."""
    for item in fields(settings):
        if item.name.endswith("_probability"):
            check_number(item.name, getattr(settings, item.name), 0.0, 1.0)


@dataclass
class ModelArguments:
    """The model: a checkpoint to start from, or a new one with pretrained weights.

    Settings and defaults repeat those of `DCLConfig`, since reading that class would import torch.
    """

    model: str | None = field(
        default=None,
        metadata={"help": "Checkpoint to start from (folder or Hub id), with its own model settings."},
    )
    backbone: str = field(
        default="tf_efficientnet_b4.ns_jft_in1k", metadata={"help": "timm model with a spatial feature map."}
    )
    backbone_kwargs: str | None = field(
        default=None, metadata={"help": "More arguments for timm.create_model, as JSON."}
    )
    backbone_weights: str = field(
        default="timm", metadata={"help": "Pretrained weights for a new model: timm (from the Hub), a file, or none."}
    )
    image_size: int = field(default=299, metadata={"help": "Side of the model input in pixels."})
    dropout: float = field(default=0.2, metadata={"help": "Dropout before the classifier."})
    embedding: Literal["map", "pooled"] = field(
        default="map", metadata={"help": "Features that Inter-ICL compares: the squeezed map, or pooled features."}
    )
    embedding_dim: int = field(default=128, metadata={"help": "Length of the pooled embedding."})
    queue_size: int = field(default=32768, metadata={"help": "Length of each queue of hard keys."})
    hard_samples: int = field(default=5, metadata={"help": "Keys of each class that enter its queue at each step."})
    hard_share: float | None = field(
        default=None,
        metadata={
            "help": "Share of each class's keys that enter its queue at each step, in place of hard_samples: the "
            "queue then fills at the same rate with any batch size and number of processes."
        },
    )
    momentum: float = field(default=0.999, metadata={"help": "Momentum of the key encoder."})
    prototype_momentum: float = field(default=0.9, metadata={"help": "Momentum of the class prototypes."})
    temperature: float = field(default=0.07, metadata={"help": "Temperature of all similarities."})
    self_pairs: bool = field(
        default=True, metadata={"help": "Whether Intra-ICL pairs a cell with itself, as published."}
    )
    mask_rule: Literal["area", "released"] = field(
        default="area",
        metadata={"help": "Forged share of a cell: of its area, or around its centre as in the released code."},
    )
    mask_threshold: float = field(
        default=0.5, metadata={"help": "Forged share above which a cell counts as forged; the released code has 0.01."}
    )

    def config(self) -> "DCLConfig":
        """Build the configuration of a new model; raises `InputError` if a setting cannot be used."""
        from ..configuration_dcl import DCLConfig

        return self._checked(lambda settings: DCLConfig(**settings), self._settings())

    def apply_to(self, config: "DCLConfig", given: Collection[str]) -> "DCLConfig":
        """Return the configuration of the checkpoint to start from with the given settings in place of its own.

        Args:
            config: the checkpoint's configuration.
            given: names of the settings of the command line and the configuration file.

        Raises:
            InputError: if a given setting would change the shape of the networks, or cannot be used.
        """
        changed = {name: value for name, value in self._settings().items() if name in given}
        changed = {name: value for name, value in changed.items() if value != getattr(config, name)}
        for name in FIXED_BY_CHECKPOINT:
            if name in changed:
                raise InputError(
                    f"{name} is {changed[name]!r}, but the checkpoint {self.model!r} has {getattr(config, name)!r}, "
                    f"and its weights fit nothing else. Leave {name} out, or --model."
                )
        if "hard_samples" in given:
            changed["hard_share"] = self.hard_share
        return self._checked(type(config).from_dict, config.to_dict() | changed)

    def _settings(self) -> dict[str, Any]:
        settings = {key: value for key, value in asdict(self).items() if key not in ("model", "backbone_weights")}
        if isinstance(self.backbone_kwargs, str):
            try:
                settings["backbone_kwargs"] = json.loads(self.backbone_kwargs)
            except json.JSONDecodeError as error:
                raise InputError(f"backbone_kwargs is not a JSON object ({error}): {self.backbone_kwargs}") from error
        return settings

    @staticmethod
    def _checked(build: Callable[..., "DCLConfig"], settings: dict[str, Any]) -> "DCLConfig":
        from huggingface_hub.errors import StrictDataclassError

        from ..configuration_dcl import why_refused

        try:
            return build(settings)
        except StrictDataclassError as error:
            raise InputError(f"{why_refused(error)}.") from error


@dataclass
class DataArguments:
    """The data: prepared data sets, and the rows to use."""

    dataset: list[str] = field(
        default_factory=list, metadata={"help": "Prepared data sets: names under data_root, folders or Hub ids."}
    )
    data_root: str | None = field(default=None, metadata={"help": "Folder to search for data set names first."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_dataset: list[str] | None = field(
        default=None,
        metadata={
            "help": "Prepared data sets to select the best checkpoint on and to calibrate with, all methods (default: "
            "those of --dataset, the methods of --methods)."
        },
    )
    validation_split: str = field(default="validation", metadata={"help": "Split to select the best checkpoint on."})
    methods: list[str] | None = field(
        default=None, metadata={"help": "Manipulation methods to train and validate on (default: all)."}
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read training images on demand, from the folder or the Hub, instead of loading them."},
    )
    skip_corrupt: bool = field(default=False, metadata={"help": "Skip images that cannot be decoded, with a warning."})
    allow_mixed_crops: bool = field(
        default=False, metadata={"help": "Accept a data set with several kinds of face crops."}
    )
    allow_copies: bool = field(
        default=False, metadata={"help": "Train even if the training and validation splits share pictures."}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Restart, even if output_dir holds a finished or different run."}
    )


@dataclass
class ViewSettings:
    """Probabilities of the views of DCL; the defaults follow the released code for the views that it has."""

    augment: bool = field(
        default=True, metadata={"help": "Apply the common augmentation; otherwise images are only resized."}
    )
    random_patch_probability: float = field(
        default=0.75, metadata={"help": "Share of the views with shuffled patches (RandomPatch)."}
    )
    random_patch_grid: int = field(default=3, metadata={"help": "Patches along each side."})
    random_patch_on_key: bool = field(
        default=False, metadata={"help": "Shuffle the patches of the key, too, in a different order."}
    )
    srm_probability: float = field(
        default=0.5, metadata={"help": "Share of the views with an added SRM high-pass residual."}
    )
    srm_shared: bool = field(default=True, metadata={"help": "Add the residual to both query and key, or to neither."})
    frame_shift_probability: float = field(
        default=0.5, metadata={"help": "Share of the keys taken from another frame of the same clip."}
    )
    mix_probability: float = field(
        default=0.5,
        metadata={"help": "Share of the views of fakes blended with their source frame (corresponding mix)."},
    )
    mix_ratio: list[float] = field(
        default_factory=lambda: [0.3, 1.0],
        metadata={
            "help": "Smallest and largest share of the fake in the blend. The paper gives none; this is our choice."
        },
    )
    corresponding_pair_probability: float = field(
        default=0.0, metadata={"help": "Share of the keys of fakes taken from the same clip forged by another method."}
    )

    def __post_init__(self):
        check_probabilities(self)
        check_interval("mix_ratio", self.mix_ratio, 0.01, 1)
        if not isinstance(self.random_patch_grid, int) or self.random_patch_grid < 1:
            raise InputError(f"random_patch_grid is {self.random_patch_grid!r}. Choose a whole number, 1 or more.")


@dataclass
class AugmentationSettings:
    """Probabilities and strengths of the common augmentation; the defaults are those of the original training."""

    rotate_probability: float = field(default=0.5, metadata={"help": "Share of the views rotated about their centre."})
    rotate_degrees: float = field(default=30.0, metadata={"help": "Largest rotation in degrees, in either direction."})
    resized_crop_probability: float = field(
        default=0.5, metadata={"help": "Share of the views cropped at random and resized."}
    )
    resized_crop_scale: list[float] = field(
        default_factory=lambda: [0.5, 1.0], metadata={"help": "Smallest and largest area of that crop, as a share."}
    )
    resized_crop_ratio: list[float] = field(
        default_factory=lambda: [0.75, 4 / 3], metadata={"help": "Smallest and largest width / height of that crop."}
    )
    flip_probability: float = field(default=0.5, metadata={"help": "Share of the views flipped horizontally."})
    cutout_probability: float = field(
        default=0.1, metadata={"help": "Share of the views with a black square (cutout)."}
    )
    cutout_side: float = field(
        default=25 / 299, metadata={"help": "Side of that square, as a share of the image's side."}
    )
    gray_probability: float = field(default=0.1, metadata={"help": "Share of the views converted to grey."})
    noise_probability: float = field(default=0.1, metadata={"help": "Share of the views with Gaussian noise."})
    color_probability: float = field(
        default=0.7,
        metadata={"help": "Share of the views with a change of brightness and contrast, of main colours, or of hue."},
    )
    blur_probability: float = field(default=0.05, metadata={"help": "Share of the views blurred by a 3x3 Gaussian."})
    jpeg_probability: float = field(
        default=0.0, metadata={"help": "Share of the views compressed as JPEG; the paper has none."}
    )
    jpeg_quality: list[int] = field(
        default_factory=lambda: [40, 100], metadata={"help": "Smallest and largest JPEG quality."}
    )

    def __post_init__(self):
        check_probabilities(self)
        check_number("rotate_degrees", self.rotate_degrees, 0, 180)
        check_number("cutout_side", self.cutout_side, 0, 1)
        check_interval("resized_crop_scale", self.resized_crop_scale, 0.01, 1)
        check_interval("resized_crop_ratio", self.resized_crop_ratio, 0.1, 10)
        check_interval("jpeg_quality", self.jpeg_quality, 1, 100)

    @classmethod
    def none(cls) -> "AugmentationSettings":
        """Return settings that only resize."""
        return cls(**{item.name: 0.0 for item in fields(cls) if item.name.endswith("_probability")})


@dataclass
class TrainingSettings:
    """What DCL adds to transformers' `TrainingArguments`, and new defaults, which follow the paper's code.

    A mixin for their class or for its fields alone. It also checks their fields: `InputError` if one is out of range
    or does not fit DCL.

    The loss is `a * ce + (1 - a) * (inter + intra_weight * (intra_fake + intra_real_weight * intra_real))` with `a` 1
    during the warm-up and `1 - contrastive_weight` after it (Eq. 10). With gradient accumulation, every micro-batch
    updates the memory and every optimizer step the momentum encoder, so it is not equivalent to one large batch.
    """

    contrastive_weight: float = field(
        default=0.5,
        metadata={"help": "Weight of the contrastive losses after the warm-up (1 - a); 0: cross-entropy alone."},
    )
    intra_weight: float = field(default=0.1, metadata={"help": "Weight of Intra-ICL relative to Inter-ICL."})
    intra_real_weight: float = field(default=0.01, metadata={"help": "Weight of the real term within Intra-ICL."})
    contrastive_warmup_epochs: float = field(
        default=2.0, metadata={"help": "Warm-up: epochs of cross-entropy alone, in which the memory fills."}
    )
    contrastive_warmup_steps: int = field(
        default=-1, metadata={"help": "Warm-up in optimizer steps; if 0 or more, it overrides the epochs."}
    )
    lr_step_epochs: float = field(
        default=0.0,
        metadata={
            "help": "Multiply the learning rate by 0.1 after every N epochs, after the linear warm-up of "
            "warmup_steps; overrides lr_scheduler_type."
        },
    )
    adam_l2: bool = field(
        default=False,
        metadata={
            "help": "Use Adam, with weight_decay added to the gradient of every parameter (L2) as in the released "
            "code, in place of optim."
        },
    )
    batch_norm: Literal["local", "sync", "shuffle", "frozen"] = field(
        default="local",
        metadata={
            "help": "Batch statistics with several processes: of each process (local), of all (sync, on GPUs), or of "
            "each with the key views shuffled over all (shuffle, as in the released code). frozen: the running "
            "statistics of the weights at the start, with one process, too."
        },
    )
    calibration: Literal["platt", "none"] = field(
        default="platt",
        metadata={
            "help": "Calibration to fit on the validation split after training. With none, the limits for abstention "
            "are not fitted either."
        },
    )
    inconclusive_error_rate: float = field(
        default=0.1,
        metadata={
            "help": "Scores are inconclusive where a threshold would flag more than this share of new reals, and miss "
            "more than this share of new fakes; in (0, .5)."
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "Stop after this many validations in succession without a better metric (default: never)."},
    )
    evaluate_momentum: bool = field(
        default=False,
        metadata={"help": "Validate the momentum encoder, too, and log its metrics as eval_momentum_*."},
    )
    save_for_inference: bool = field(
        default=False,
        metadata={
            "help": "Leave momentum encoder and memory out of the final checkpoint: half the size, and no embeddings "
            "of training faces in it. The intermediate checkpoints keep them."
        },
    )
    log_gradient_shares: bool = field(
        default=False,
        metadata={
            "help": "Log the share of each term of the loss in the gradient at the feature map; costs a few backward "
            "passes at each log entry."
        },
    )
    channels_last: bool | None = field(
        default=None,
        metadata={"help": "Use the channels_last memory format (default: on a CPU in float32, where it is faster)."},
    )
    learning_rate: float = field(default=2e-4, metadata={"help": "Initial learning rate."})
    weight_decay: float = field(default=1e-5, metadata={"help": "Decoupled weight decay."})
    per_device_train_batch_size: int = field(
        default=32, metadata={"help": "Training batch size of each device, in faces."}
    )
    per_device_eval_batch_size: int = field(
        default=64, metadata={"help": "Evaluation batch size of each device, in faces."}
    )
    num_train_epochs: float = field(default=30.0, metadata={"help": "Epochs, unless max_steps is given."})
    eval_strategy: Literal["no", "steps", "epoch"] = field(default="epoch", metadata={"help": "When to validate."})
    save_strategy: Literal["no", "steps", "epoch", "best"] = field(default="epoch", metadata={"help": "When to save."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep, including the best one."})
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "Load the checkpoint with the best validation metric after training."}
    )
    metric_for_best_model: str | None = field(
        default="auc", metadata={"help": "Validation metric that selects the best checkpoint."}
    )
    greater_is_better: bool | None = field(
        default=None, metadata={"help": "Do not set: follows from metric_for_best_model."}
    )
    logging_steps: float = field(default=20, metadata={"help": "Steps between two log entries."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Do not set: a loss that is not finite ends the run."}
    )
    dataloader_num_workers: int = field(
        default=-1,
        metadata={"help": "Processes that load data for each device; -1: up to 8 for a GPU, 1 for a CPU."},
    )
    report_to: list[str] | None = field(
        default_factory=lambda: ["none"], metadata={"help": "Trackers: trackio, wandb, tensorboard, all, or none."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Do not set: samples are not columns."})
    label_names: list[str] | None = field(
        default_factory=lambda: ["labels", "video_index"],
        metadata={"help": "Inputs that the metrics need besides logits."},
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Do not set: every parameter gets a gradient at every step."}
    )

    def __post_init__(self):
        for name, *span in (
            ("contrastive_weight", 0, 1),
            *((name, 0) for name in ("intra_weight", "intra_real_weight", "contrastive_warmup_epochs")),
            *(("lr_step_epochs", 0), ("learning_rate", 0), ("seed", 0, 2**32 - 1), ("gradient_accumulation_steps", 1)),
            *(("per_device_train_batch_size", 1), ("per_device_eval_batch_size", 1), ("dataloader_num_workers", -1)),
        ):
            check_number(name, getattr(self, name), *span)
        if self.calibration not in ("platt", "none"):
            raise InputError(f"calibration is {self.calibration!r}. Choose from platt, none.")
        if not 0 < self.inconclusive_error_rate < 0.5:
            raise InputError(f"inconclusive_error_rate is {self.inconclusive_error_rate}. Choose a number in (0, .5).")
        metric = (self.metric_for_best_model or "auc").removeprefix("eval_")
        if metric not in VALIDATION_METRICS:
            raise InputError(f"metric_for_best_model is {metric!r}. Choose from {', '.join(VALIDATION_METRICS)}.")
        if self.greater_is_better not in (None, VALIDATION_METRICS[metric]):
            raise InputError(
                f"greater_is_better is {self.greater_is_better}, but the best {metric} is the "
                f"{'largest' if VALIDATION_METRICS[metric] else 'smallest'}. Leave greater_is_better out."
            )
        self.greater_is_better = VALIDATION_METRICS[metric]
        if self.early_stopping_patience is not None:
            check_number("early_stopping_patience", self.early_stopping_patience, 1)
            if self.eval_strategy == "no":
                raise InputError("early_stopping_patience counts validations, and eval_strategy is 'no'. Change one.")
        if self.save_for_inference and self.push_to_hub and str(self.hub_strategy) not in ("end", "HubStrategy.END"):
            raise InputError(
                "save_for_inference leaves embeddings of training faces out of the last checkpoint, but hub_strategy "
                "'every_save' publishes the others, too. Add --hub_strategy end."
            )
        if self.log_gradient_shares and self.torch_compile:
            raise InputError("log_gradient_shares cannot see into a compiled network. Leave out it or torch_compile.")
        if self.evaluate_momentum and self.contrastive_weight == 0:
            raise InputError("evaluate_momentum needs a momentum encoder, and contrastive_weight is 0. Change one.")
        for name, (accepted, why) in REFUSED_OPTIONS.items():
            if (value := getattr(self, name)) not in (accepted, None):
                raise InputError(f"{name} is {value!r}, but {why}. Leave {name} out.")
        if self.hub_strategy in ("checkpoint", "all_checkpoints"):
            raise InputError(
                f"hub_strategy {str(self.hub_strategy)!r} would publish the optimizer's pickles. "
                "Use 'every_save' or 'end'."
            )
