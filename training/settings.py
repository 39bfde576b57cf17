"""What a training run can be told, group by group: names, types, defaults and ranges.

No torch is imported here: a wrong name or value is reported at once.
"""

import json
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from ..errors_dcl import InputError

if TYPE_CHECKING:
    from ..configuration_dcl import DCLConfig

#: The validation metrics that can choose a checkpoint, and whether more is better.
VALIDATION_METRICS = {"auc": True, "eer": False, "accuracy": True, "video_auc": True, "loss": False}


def check_number(name: str, value: Any, low: float, high: float = math.inf) -> None:
    """Raise `InputError` unless the setting `name` is a finite number from `low` to `high`."""
    if not isinstance(value, (int, float)) or not (low <= value <= high and value < math.inf):
        span = f"{low:g} or more" if high == math.inf else f"from {low:g} to {high:.10g}"
        raise InputError(f"{name} is {value!r}: choose a number, {span}.")


def check_interval(name: str, value: Any, low: float, high: float) -> None:
    """Raise `InputError` unless the setting `name` is two numbers from `low` to `high`, the smaller first."""
    numbers = isinstance(value, (list, tuple)) and all(isinstance(end, (int, float)) for end in value)
    if not (numbers and len(value) == 2 and low <= value[0] <= value[1] <= high):
        raise InputError(f"{name} is {value!r}: choose two numbers from {low:g} to {high:g}, the smaller first.")


def check_probabilities(settings: Any) -> None:
    """Raise `InputError` unless every field of a settings dataclass that is named a probability is one."""
    for item in fields(settings):
        if item.name.endswith("_probability"):
            check_number(item.name, getattr(settings, item.name), 0.0, 1.0)


@dataclass
class ModelArguments:
    """The model: a checkpoint to go on from, or a new one on pretrained weights.

    The settings and their defaults are those of `DCLConfig`, which cannot be read without importing torch.
    """

    model: str | None = field(
        default=None,
        metadata={"help": "Checkpoint to start from, a folder or Hub id; it keeps the settings below as it has them."},
    )
    backbone: str = field(
        default="tf_efficientnet_b4.ns_jft_in1k", metadata={"help": "timm model with a spatial feature map."}
    )
    backbone_kwargs: str | None = field(default=None, metadata={"help": "JSON: more arguments of timm.create_model."})
    backbone_weights: str = field(
        default="timm", metadata={"help": "Pretrained weights of a new model: timm (from the Hub), a file, or none."}
    )
    image_size: int = field(default=299, metadata={"help": "Side of the input in pixels."})
    dropout: float = field(default=0.2, metadata={"help": "Dropout before the classifier."})
    embedding: Literal["map", "pooled"] = field(
        default="map", metadata={"help": "What Inter-ICL compares: the squeezed map, or pooled features."}
    )
    embedding_dim: int = field(default=128, metadata={"help": "Length of the pooled embedding."})
    queue_size: int = field(default=32768, metadata={"help": "Rows of each queue of hard keys."})
    hard_samples: int = field(default=5, metadata={"help": "Keys of each class that enter its queue at a step."})
    momentum: float = field(default=0.999, metadata={"help": "Momentum of the key encoder."})
    prototype_momentum: float = field(default=0.9, metadata={"help": "Momentum of the class prototypes."})
    temperature: float = field(default=0.07, metadata={"help": "Temperature of all similarities."})
    self_pairs: bool = field(
        default=True, metadata={"help": "Whether Intra-ICL pairs a cell with itself, as published."}
    )
    mask_threshold: float = field(default=0.01, metadata={"help": "Forged share above which a cell is forged."})

    def config(self) -> "DCLConfig":
        """Build the configuration of a new model; raises `InputError` if a setting cannot be used."""
        from huggingface_hub.errors import StrictDataclassError

        from ..configuration_dcl import DCLConfig, why_refused

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

    def refuse_conflicts(self, config: "DCLConfig", given: Collection[str]) -> None:
        """Raise an `InputError` if a setting that was given is not that of the checkpoint to start from, which counts.

        `given` are the settings that the command line or the configuration file names.
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
        default=False, metadata={"help": "Train even if the training and validation splits share pictures."}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Start again where output_dir holds a run with other settings."}
    )


@dataclass
class ViewSettings:
    """How often each view of DCL is taken; the defaults are the released ones where the released code has the view."""

    augment: bool = field(
        default=True, metadata={"help": "Apply the common augmentation; without it images are only resized."}
    )
    random_patch_probability: float = field(
        default=0.75, metadata={"help": "Share of the views whose patches are shuffled (RandomPatch)."}
    )
    random_patch_grid: int = field(default=3, metadata={"help": "Patches along each side."})
    random_patch_on_key: bool = field(
        default=False, metadata={"help": "Shuffle the patches of the key too, in an order of its own."}
    )
    srm_probability: float = field(
        default=0.5, metadata={"help": "Share of the views with the SRM high-pass residual added."}
    )
    srm_shared: bool = field(default=True, metadata={"help": "Query and key both have the residual or both have not."})
    frame_shift_probability: float = field(
        default=0.5, metadata={"help": "Share of the keys taken from another frame of the same clip."}
    )
    mix_probability: float = field(
        default=0.5,
        metadata={"help": "Share of the views of fakes that are blended with their source frame (corresponding mix)."},
    )
    mix_ratio: list[float] = field(
        default_factory=lambda: [0.3, 1.0],
        metadata={
            "help": "Smallest and largest share of the fake in the blend; our choice, the paper's is not known."
        },
    )
    corresponding_pair_probability: float = field(
        default=0.0, metadata={"help": "Share of the keys of fakes taken from the same clip forged by another method."}
    )

    def __post_init__(self):
        check_probabilities(self)
        check_interval("mix_ratio", self.mix_ratio, 0.01, 1)
        if not isinstance(self.random_patch_grid, int) or self.random_patch_grid < 1:
            raise InputError(f"random_patch_grid is {self.random_patch_grid!r}: choose a whole number, 1 or more.")


@dataclass
class AugmentationSettings:
    """How often and how strongly images are augmented; the defaults are those of the original DCL training."""

    rotate_probability: float = field(
        default=0.5, metadata={"help": "Share of the views that are rotated about their centre."}
    )
    rotate_degrees: float = field(default=30.0, metadata={"help": "Largest rotation, to either side."})
    resized_crop_probability: float = field(
        default=0.5, metadata={"help": "Share of the views that show only a part of the crop, enlarged."}
    )
    resized_crop_scale: list[float] = field(
        default_factory=lambda: [0.5, 1.0], metadata={"help": "Smallest and largest area of that part, as a share."}
    )
    resized_crop_ratio: list[float] = field(
        default_factory=lambda: [0.75, 4 / 3], metadata={"help": "Smallest and largest width / height of that part."}
    )
    flip_probability: float = field(
        default=0.5, metadata={"help": "Share of the views that are mirrored left to right."}
    )
    cutout_probability: float = field(
        default=0.1, metadata={"help": "Share of the views in which a square is blackened."}
    )
    cutout_side: float = field(
        default=25 / 299, metadata={"help": "Side of that square, as a share of the image's side."}
    )
    gray_probability: float = field(default=0.1, metadata={"help": "Share of the views without colour."})
    noise_probability: float = field(default=0.1, metadata={"help": "Share of the views with Gaussian noise."})
    color_probability: float = field(
        default=0.7,
        metadata={"help": "Share of the views with one change: of brightness and contrast, main colours, or hue."},
    )
    blur_probability: float = field(default=0.05, metadata={"help": "Share of the views smoothed by a 3x3 Gaussian."})
    jpeg_probability: float = field(
        default=0.0, metadata={"help": "Share of the views that pass through JPEG; the paper has none."}
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
        """Return settings under which an image is resized and nothing else."""
        return cls(**{item.name: 0.0 for item in fields(cls) if item.name.endswith("_probability")})


@dataclass
class TrainingSettings:
    """What DCL adds to the `TrainingArguments` of transformers, and what it sets otherwise; as in the paper's code.

    It is mixed into their class, or into their fields alone, which it checks, too: `InputError` if one is out of its
    range, or does not go with DCL.

    The loss is `a * ce + (1 - a) * (inter + intra_weight * (intra_fake + intra_real_weight * intra_real))` with `a` 1
    during the warm-up and `1 - contrastive_weight` after it (Eq. 10). With gradient accumulation, the memory moves at
    every micro-batch and the momentum encoder at every optimizer step: this is not the same as one large batch.
    """

    contrastive_weight: float = field(
        default=0.5,
        metadata={"help": "Weight of the contrastive losses after the warm-up, 1 - a; 0 is plain cross-entropy."},
    )
    intra_weight: float = field(default=0.1, metadata={"help": "Weight of Intra-ICL beside Inter-ICL."})
    intra_real_weight: float = field(default=0.01, metadata={"help": "Weight of the real term within Intra-ICL."})
    contrastive_warmup_epochs: float = field(
        default=2.0, metadata={"help": "Epochs of cross-entropy alone, while momentum encoder and memory fill."}
    )
    contrastive_warmup_steps: int = field(
        default=-1, metadata={"help": "The same in optimizer steps; at least 0, it replaces the epochs."}
    )
    lr_step_epochs: float = field(
        default=0.0,
        metadata={"help": "Multiply the learning rate by 0.1 every so many epochs, instead of lr_scheduler_type."},
    )
    calibration: Literal["platt", "none"] = field(
        default="platt",
        metadata={
            "help": "How probabilities are made of margins, fitted on the validation split at the end, as is what the "
            "checkpoint abstains from; none: fit neither."
        },
    )
    inconclusive_error_rate: float = field(
        default=0.1,
        metadata={
            "help": "Scores are inconclusive where more than this share of new real faces would be flagged, and more "
            "than this share of new fakes missed; in (0, .5)."
        },
    )
    channels_last: bool = field(
        default=False, metadata={"help": "Memory format of images and weights; often faster on GPUs, measure it."}
    )
    learning_rate: float = field(default=2e-4, metadata={"help": "Initial learning rate."})
    weight_decay: float = field(default=1e-5, metadata={"help": "Decoupled weight decay."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Faces in a batch of each device."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Faces in an evaluation batch."})
    num_train_epochs: float = field(default=30.0, metadata={"help": "Epochs, unless max_steps is given."})
    eval_strategy: Literal["no", "steps", "epoch"] = field(default="epoch", metadata={"help": "When to validate."})
    save_strategy: Literal["no", "steps", "epoch", "best"] = field(default="epoch", metadata={"help": "When to save."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep, the best one among them."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the best validated checkpoint."})
    metric_for_best_model: str | None = field(default="auc", metadata={"help": "What the best checkpoint is best in."})
    greater_is_better: bool | None = field(
        default=None, metadata={"help": "Leave it: whether more is better follows from the metric."}
    )
    logging_steps: float = field(default=20, metadata={"help": "Steps between two lines of the log."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Leave it: samples are made, not columns."})
    label_names: list[str] | None = field(
        default_factory=lambda: ["labels", "video_index"], metadata={"help": "What metrics are given beside logits."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Leave it: every parameter has a gradient at every step."}
    )

    def __post_init__(self):
        for name, *span in (
            ("contrastive_weight", 0, 1),
            *((name, 0) for name in ("intra_weight", "intra_real_weight", "contrastive_warmup_epochs")),
            *(("lr_step_epochs", 0), ("learning_rate", 0), ("seed", 0, 2**32 - 1), ("gradient_accumulation_steps", 1)),
            *(("per_device_train_batch_size", 1), ("per_device_eval_batch_size", 1)),
        ):
            check_number(name, getattr(self, name), *span)
        if self.calibration not in ("platt", "none"):
            raise InputError(f"calibration is {self.calibration!r}: choose from platt, none.")
        if not 0 < self.inconclusive_error_rate < 0.5:
            raise InputError(f"inconclusive_error_rate is {self.inconclusive_error_rate}: choose it in (0, .5).")
        metric = (self.metric_for_best_model or "auc").removeprefix("eval_")
        if metric not in VALIDATION_METRICS:
            raise InputError(f"metric_for_best_model is {metric!r}: choose from {', '.join(VALIDATION_METRICS)}.")
        if self.greater_is_better not in (None, VALIDATION_METRICS[metric]):
            raise InputError(
                f"greater_is_better is {self.greater_is_better}, and of {metric} the best is the "
                f"{'largest' if VALIDATION_METRICS[metric] else 'smallest'}: leave it out."
            )
        self.greater_is_better = VALIDATION_METRICS[metric]
        if self.label_smoothing_factor:
            raise InputError(
                f"label_smoothing_factor is {self.label_smoothing_factor}, and DCL's losses take none: leave it out."
            )
        if self.data_seed is not None:
            raise InputError(f"data_seed is {self.data_seed}: samples and their order follow `seed`, leave it out.")
        if self.lr_step_epochs > 0 and self.warmup_steps > 0:
            raise InputError(
                f"lr_step_epochs ({self.lr_step_epochs:g}) has no warm-up: leave warmup_steps out, or lr_step_epochs."
            )
        if self.hub_strategy in ("checkpoint", "all_checkpoints"):
            raise InputError(
                f"hub_strategy {str(self.hub_strategy)!r} would publish the optimizer's pickles: "
                "use 'every_save' or 'end'."
            )
