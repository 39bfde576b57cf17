"""Configuration of DCL."""

import copy
import math
import re
import sys
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .abstention_dcl import check_familiarity
from .decision_dcl import check_calibration
from .errors_dcl import check_value, reason

#: Arguments of `timm.create_model` that make it read or download files.
_LOADS = re.compile("pretrained.*|checkpoint_path|cache_dir|model_name")
#: The custom pipeline that `transformers.pipeline` finds in a checkpoint.
CUSTOM_PIPELINES = {
    "face-forgery-detection": {
        "impl": "pipeline_dcl.FaceForgeryDetectionPipeline",
        "pt": ["AutoModelForImageClassification"],
        "type": "image",
    }
}


@strict
class DCLConfig(PreTrainedConfig):
    r"""Configuration of [`DCLModel`], [`DCLForImageClassification`] and [`DCLForPreTraining`].

    The defaults are those of the paper (Sun et al., "Dual Contrastive Learning for General Face Forgery
    Detection", AAAI 2022) and its released code. Class 0 is real, class 1 is fake.

    Args:
        backbone (`str`, *optional*, defaults to `"tf_efficientnet_b4.ns_jft_in1k"`):
            Name of a timm model with a spatial feature map. The constructor never downloads weights.
        backbone_kwargs (`dict`, *optional*):
            Further keyword arguments of `timm.create_model`; those that load files are not allowed.
        image_size (`int`, *optional*, defaults to 299):
            Side of the square input in pixels.
        dropout (`float`, *optional*, defaults to 0.2):
            Probability of dropping a pooled feature before the classifier, in [0, 1).
        embedding (`str`, *optional*, defaults to `"map"`):
            The embedding of the inter-instance loss. `"map"`: the feature map reduced to one channel and flattened, as
            in the paper; its length depends on the image size. `"pooled"`: the mean over cells and a linear layer to
            `embedding_dim`.
        embedding_dim (`int`, *optional*, defaults to 128):
            Length of the `"pooled"` embedding; the `"map"` embedding has one entry per cell.
        queue_size (`int`, *optional*, defaults to 32768):
            Rows of each of the two queues of hard keys.
        hard_samples (`int`, *optional*, defaults to 5):
            Keys of each class that enter its queue at every step, counted over the batch of all processes.
        hard_share (`float`, *optional*):
            Share of each class's keys that enter its queue at every step, in (0, 1], rounded; it replaces
            `hard_samples`. The queue then fills at the same rate with any batch size and number of processes.
        momentum (`float`, *optional*, defaults to 0.999):
            Momentum of the momentum encoder at each optimizer step, in [0, 1].
        prototype_momentum (`float`, *optional*, defaults to 0.9):
            Momentum of the class prototypes at each step, in [0, 1].
        temperature (`float`, *optional*, defaults to 0.07):
            Divisor of every cosine similarity in the losses, above 0.
        self_pairs (`bool`, *optional*, defaults to `True`):
            Whether the intra-instance loss includes the pairs of a cell with itself, as published. They make
            up most of its numerator; without them the loss has a stronger signal.
        mask_rule (`str`, *optional*, defaults to `"area"`):
            What the forged share of a cell of the feature map is. `"area"`: the share of its area that the forgery
            covers, however faint. `"released"`: the mask around its centre, sampled as in the released code.
        mask_threshold (`float`, *optional*, defaults to 0.5):
            Forged share above which a cell counts as forged, in [0, 1). The released code has 0.01 with its own rule.
        seen_methods (`list[str]`, *optional*):
            Manipulation methods that the checkpoint was trained on; set by training.
        calibration (`dict`, *optional*):
            Calibration and thresholds, fitted on the validation split after training; see `calibrate`. `{"method":
            "platt", "slope": ..., "offset": ...}` or, if nothing could be fitted, `{"method": "none", "reason": ...}`;
            older checkpoints have `{"method": "temperature", "temperature": ...}`. The entries `"frame"` and `"video"`
            contain the counts `"reals"`, `"fakes"` and `"families"`; `"thresholds"` (`{name: p_fake or None}`) and
            `"reasons"` (`{name: why there is none}`); `"band"` (`{"error_rate", "low", "high"}`, or both ends None
            with a `"reason"`), the inconclusive scores; and `"fpr"` (lists `"thresholds"`, `"value"`, `"low"` and
            `"high"`, or a `"reason"`), the share of reals at or above a threshold with its 95 % interval.
            `"evidence_threshold"` is the evidence at or above which a cell counts as forged.
        familiarity (`dict`, *optional*):
            Limits for faces without a score, fitted on the validation split after training; see `distances` and
            `reason_to_abstain`. `{"faces", "families", "sharpness_threshold", "distance_threshold", "statistics"}`: at
            most 1 % of the validation faces are blurrier than `"sharpness_threshold"`, and at most 1 % lie beyond
            `"distance_threshold"`. The statistics describe the features of these faces in a fixed network
            (`ReferenceNetwork`): `{"features", "dimension", "centres", "directions", "variances", "rest"}`, that is
            their mean and the directions in which faces differ most, as base64 of float16, with the variances along
            these directions and along each of the others. Without `"features"`, they describe the embeddings of the
            checkpoint. If the split is too small, the thresholds and the statistics are `None`, with a `"reason"`.

    Example:
    ```python
    >>> from dcl_face_forgery.configuration_dcl import DCLConfig
    >>> config = DCLConfig(backbone="test_efficientnet", image_size=64, queue_size=256)
    >>> config.id2label
    {0: 'real', 1: 'fake'}

    ```
    """

    model_type = "dcl"
    keys_to_ignore_at_inference = ["evidence", "feature_map", "embedding", "query", "key"]  # noqa: RUF012 (transformers adds lists to it)

    backbone: str = "tf_efficientnet_b4.ns_jft_in1k"
    backbone_kwargs: dict[str, Any] | None = None
    image_size: int = 299
    dropout: float | int = 0.2
    embedding: Literal["map", "pooled"] = "map"
    embedding_dim: int = 128
    queue_size: int = 32768
    hard_samples: int = 5
    hard_share: float | int | None = None
    momentum: float | int = 0.999
    prototype_momentum: float | int = 0.9
    temperature: float | int = 0.07
    self_pairs: bool = True
    mask_rule: Literal["area", "released"] = "area"
    mask_threshold: float | int = 0.5
    seen_methods: list[str] | None = None
    calibration: dict[str, Any] | None = None
    familiarity: dict[str, Any] | None = None

    def __post_init__(self, **kwargs):
        if self.id2label is None and kwargs.get("num_labels") in (None, 2):
            self.id2label = {0: "real", 1: "fake"}
        super().__post_init__(**kwargs)
        self.label2id = {name: label for label, name in self.id2label.items()}
        # All classes can load one checkpoint, whichever class saved it.
        self.auto_map = {
            "AutoModel": "modeling_dcl.DCLModel",
            "AutoModelForImageClassification": "modeling_dcl.DCLForImageClassification",
            "AutoModelForPreTraining": "modeling_dcl.DCLForPreTraining",
            **(getattr(self, "auto_map", None) or {}),
        }
        self.custom_pipelines = {**(getattr(self, "custom_pipelines", None) or {}), **copy.deepcopy(CUSTOM_PIPELINES)}

    def validate_architecture(self) -> None:
        """Check that every number is in its range and that the two classes are real and fake."""
        super().validate_architecture()
        ranges = {
            **dict.fromkeys(
                ("image_size", "embedding_dim", "queue_size", "hard_samples"), (1, math.inf, "at least 1")
            ),
            **dict.fromkeys(("momentum", "prototype_momentum"), (0, 1, "in [0, 1]")),
            **dict.fromkeys(("dropout", "mask_threshold"), (0, math.nextafter(1, 0), "in [0, 1)")),
            "temperature": (math.nextafter(0, 1), sys.float_info.max, "above 0 and finite"),
        }
        for name, (low, high, wanted) in ranges.items():
            check_value(low <= getattr(self, name) <= high, f"`{name}`", f"be {wanted}", getattr(self, name))
        if self.hard_share is not None:
            check_value(0 < self.hard_share <= 1, "`hard_share`", "be in (0, 1]", self.hard_share)
        if self.hard_samples > self.queue_size:
            raise ValueError(
                f"`queue_size` ({self.queue_size}) must be at least `hard_samples` ({self.hard_samples}). "
                "Enlarge the queue or choose fewer hard samples."
            )
        loading = sorted(name for name in self.backbone_kwargs or {} if _LOADS.match(name))
        if loading:  # configurations are not trusted, and weight files can contain programs
            raise ValueError(f"`backbone_kwargs` must not load files, got {', '.join(loading)}.")
        check_calibration(self.calibration)
        check_familiarity(self.familiarity)
        if dict(self.id2label) != {0: "real", 1: "fake"}:
            raise ValueError(f"The classes of DCL are 0 (real) and 1 (fake), got `id2label` {dict(self.id2label)}.")


def why_refused(error: Exception) -> str:
    """Return in one line why a configuration is invalid, from the error that creating or loading it raised."""
    line = reason(error)
    return line.rpartition("Errors: ")[2].split(";")[0] if "doesn't match any type in" in line else line


DCLConfig.register_for_auto_class()
