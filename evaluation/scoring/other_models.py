"""Adapt image classifiers of other authors: two logits, and an image processor that takes arrays."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)

from ...errors_dcl import InputError, reason
from ...prepared.names import FAKE, REAL
from .checkpoints import Checkpoint
from .labels import classify_labels

AUTO_CLASS = "AutoModelForImageClassification"
#: Preprocessing files of transformers; timm stores preprocessing in its config.json.
OF_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class UnknownTraining:
    """The training fields of `DCLConfig`, which other configurations do not have."""

    seen_methods: None = None
    calibration: None = None


@dataclass
class BinaryOutput:
    """The output of `BinaryClassifier`."""

    logits: torch.Tensor
    """float32 (N, 2), real and fake: their softmax sums the probabilities of the classes of each kind."""
    evidence: None = None
    """Always None: such a model does not localise forgeries."""


class BinaryClassifier(torch.nn.Module):
    """An image classifier with any number of classes, merged into real and fake."""

    def __init__(self, model: PreTrainedModel, kinds: Sequence[int], name: str):
        super().__init__()
        self.model, self.name = model, name
        self.classes = len(kinds)
        self.real, self.fake = ([index for index, kind in enumerate(kinds) if kind == of] for of in (REAL, FAKE))
        self.config = UnknownTraining()

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.device

    def forward(self, pixel_values: torch.Tensor) -> BinaryOutput:
        """Score pictures.

        Args:
            pixel_values: float32 (N, 3, height, width), from its image processor.

        Raises:
            InputError: if the model cannot process such input, or does not return one logit per class.
        """
        try:
            logits = self.model(pixel_values=pixel_values).logits.float()
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(
                f"{self.name!r} cannot score the output of its own image processor ({reason(error)}). "
                "Correct its preprocessor_config.json, or choose another model."
            ) from error
        if logits.shape != (len(pixel_values), self.classes):
            raise InputError(
                f"{self.name!r} returns logits of shape {tuple(logits.shape)} for {len(pixel_values)} pictures and "
                f"{self.classes} labels. Pass a classifier with one logit per label."
            )
        if self.classes == 1:  # the log odds of the only class
            two = [torch.zeros_like(logits), logits]
            return BinaryOutput(torch.cat(two if self.fake else two[::-1], dim=1))
        return BinaryOutput(torch.stack([logits[:, of].logsumexp(1) for of in (self.real, self.fake)], dim=1))


class ArrayProcessor:
    """An image processor for arrays; the wrapped one gets RGB pictures, which all of them accept."""

    crop = None  # the face crop of the training data is unknown

    def __init__(self, processor: BaseImageProcessor, name: str):
        self.processor, self.name = processor, name

    def __call__(self, images: Sequence[np.ndarray], return_tensors: str = "pt") -> dict[str, torch.Tensor]:
        """Preprocess uint8 RGB arrays (height, width, 3).

        Raises:
            InputError: if the image processor fails.
        """
        try:
            pictures = [Image.fromarray(image) for image in images]
            return {"pixel_values": self.processor(pictures, return_tensors=return_tensors)["pixel_values"]}
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"Image processor of {self.name!r}: cannot preprocess the pictures ({reason(error)}). "
                "Correct its preprocessor_config.json, or choose another model."
            ) from error


def find_classes(
    checkpoints: Sequence[Checkpoint], fake_labels: Collection[str] = (), trust_remote_code: bool = False
) -> list[Checkpoint]:
    """Find the classes that mean fake for every checkpoint other than DCL, without loading weights.

    Args:
        checkpoints: results of `find_checkpoint`.
        fake_labels: names of classes that mean fake, see `classify_labels`.
        trust_remote_code: allow configurations to run code saved with the checkpoint.

    Returns:
        The checkpoints with `classes`; DCL checkpoints are unchanged.

    Raises:
        InputError: if a checkpoint is not an image classifier with real and fake classes, needs its own code without
            `trust_remote_code`, or no checkpoint has one of `fake_labels`.
    """
    labels = {}
    for checkpoint in checkpoints:
        if not checkpoint.is_dcl:
            labels[checkpoint.name] = _labels(_load_config(checkpoint, trust_remote_code), checkpoint.name)
    for label in fake_labels:
        if not any(label in own for own in labels.values()):
            others = sorted({repr(known) for own in labels.values() for known in own})[:10]
            have = f"the models have {', '.join(others)}" if others else "DCL models do not need it"
            raise InputError(f"--fake_labels: no model has the label {label!r} ({have}). Correct it, or leave it out.")
    found = []
    for checkpoint in checkpoints:
        if own := labels.get(checkpoint.name):
            kinds = classify_labels(own, checkpoint.name, fake_labels)
            checkpoint = replace(checkpoint, classes=list(zip(own, kinds, strict=True)))
        found.append(checkpoint)
    return found


def _labels(config: PreTrainedConfig, name: str) -> list[str]:
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING and AUTO_CLASS not in (
        getattr(config, "auto_map", None) or {}
    ):
        raise InputError(
            f"{name!r} is not an image classifier: transformers has none for the model type {config.model_type!r}. "
            f"Pass a model that {AUTO_CLASS} can load."
        )
    labels = [str(config.id2label[index]) for index in sorted(config.id2label)]
    if sorted(config.id2label) != list(range(len(labels))):
        raise InputError(
            f"the labels of {name!r} are numbered {sorted(config.id2label)}, not from 0 on: correct id2label in its "
            "config.json."
        )
    # With a custom loss, problem_type is unset, and a single output is a logit. transformers' own loss sets it.
    if config.problem_type == "regression":
        raise InputError(f"{name!r} is a regression model and gives no probability. Pass a classifier.")
    if config.problem_type == "multi_label_classification" and len(labels) > 1:
        raise InputError(
            f"{name!r} is a multi-label classifier (problem_type is 'multi_label_classification'): its {len(labels)} "
            "labels do not exclude each other and give no single probability. Pass a single-label classifier."
        )
    return labels


def _load_config(checkpoint: Checkpoint, trust_remote_code: bool) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # files, configurations and remote code raise many classes
        raise _not_loaded(checkpoint, error) from error
    if checkpoint.model_type == "timm_wrapper" and config.model_args:
        # timm also stores it there when it creates a model, and transformers would pass it twice.
        config.model_args = {name: value for name, value in config.model_args.items() if name != "num_classes"}
    return config


def _not_loaded(checkpoint: Checkpoint, error: Exception) -> InputError:
    if "trust_remote_code" in str(error):
        return InputError(
            f"{checkpoint.name!r} needs the code saved with it. Read that code, and pass --trust_remote_code if you "
            "trust it."
        )
    return InputError(
        f"Checkpoint {checkpoint.name!r}: cannot be loaded ({reason(error)}). Copy or download it again, or pass one "
        "that this release of transformers supports."
    )


def load_classifier(
    checkpoint: Checkpoint, device: torch.device, trust_remote_code: bool = False
) -> tuple[BinaryClassifier, ArrayProcessor]:
    """Load an image classifier other than DCL in float32, and its image processor.

    Args:
        checkpoint: result of `find_classes`; without `classes`, the words in its labels decide.
        device: device for the model.
        trust_remote_code: run the code saved with the checkpoint.

    Returns:
        The model, in evaluation mode, and the processor.

    Raises:
        InputError: if a file is missing or unreadable, or a weight of the model is missing.
    """
    if checkpoint.classes is None:
        (checkpoint,) = find_classes([checkpoint], (), trust_remote_code)
    config = _load_config(checkpoint, trust_remote_code)
    has_processor = any((checkpoint.folder / name).is_file() for name in OF_PROCESSORS)
    if not has_processor and checkpoint.model_type != "timm_wrapper":
        raise InputError(
            f"{checkpoint.name!r} has no {OF_PROCESSORS[0]}, which defines the preprocessing. Copy it from the "
            "original model, or save the image processor beside the model."
        )
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    try:
        processor = AutoImageProcessor.from_pretrained(checkpoint.folder, **options)
        model, loading = AutoModelForImageClassification.from_pretrained(
            checkpoint.folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # files, configurations and remote code raise many classes
        raise _not_loaded(checkpoint, error) from error
    if loading["missing_keys"]:  # transformers initialised them at random
        missing = sorted(loading["missing_keys"])
        raise InputError(
            f"Checkpoint {checkpoint.name!r}: {len(missing)} weights of the classifier are missing (such as "
            f"{missing[0]}). Pass one that was trained and saved as a classifier."
        )
    kinds = [kind for _, kind in checkpoint.classes]
    classifier = BinaryClassifier(model, kinds, checkpoint.name).to(device).eval()
    return classifier, ArrayProcessor(processor, checkpoint.name)
