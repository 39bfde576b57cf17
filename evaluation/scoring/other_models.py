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
#: Where transformers keeps how pictures become model input; timm keeps it in its config.json.
OF_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class UnknownTraining:
    """What `DCLConfig` tells of the training, and other configurations do not."""

    seen_methods: None = None
    calibration: None = None


@dataclass
class BinaryOutput:
    """What `BinaryClassifier` gives."""

    logits: torch.Tensor
    """float32 (N, 2), real and fake: their softmax is the sum of the probabilities of the classes of each kind."""
    evidence: None = None
    """Such a model does not tell where a forgery was seen."""


class BinaryClassifier(torch.nn.Module):
    """An image classifier of any number of classes, its classes gathered into real and fake."""

    def __init__(self, model: PreTrainedModel, kinds: Sequence[int], name: str):
        super().__init__()
        self.model, self.name = model, name
        self.classes = len(kinds)
        self.real, self.fake = ([index for index, kind in enumerate(kinds) if kind == of] for of in (REAL, FAKE))
        self.config = UnknownTraining()

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.model.device

    def forward(self, pixel_values: torch.Tensor) -> BinaryOutput:
        """Score pictures.

        Args:
            pixel_values: float32 (N, 3, height, width), made by its image processor.

        Raises:
            InputError: if the model takes no such pictures, or does not give one logit a class.
        """
        try:
            logits = self.model(pixel_values=pixel_values).logits.float()
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(
                f"{self.name!r} cannot score the pictures that its image processor makes ({reason(error)}): "
                "correct its preprocessor_config.json, or take another model."
            ) from error
        if logits.shape != (len(pixel_values), self.classes):
            raise InputError(
                f"{self.name!r} gives numbers of shape {tuple(logits.shape)} for {len(pixel_values)} pictures and "
                f"{self.classes} labels: only classifiers with one number a label can be evaluated."
            )
        if self.classes == 1:  # the log odds of its only class
            two = [torch.zeros_like(logits), logits]
            return BinaryOutput(torch.cat(two if self.fake else two[::-1], dim=1))
        return BinaryOutput(torch.stack([logits[:, of].logsumexp(1) for of in (self.real, self.fake)], dim=1))


class ArrayProcessor:
    """An image processor that is given arrays; the wrapped one gets RGB pictures, which all of them take."""

    crop = None  # how the faces were cut that the model learned from: it does not say

    def __init__(self, processor: BaseImageProcessor, name: str):
        self.processor, self.name = processor, name

    def __call__(self, images: Sequence[np.ndarray], return_tensors: str = "pt") -> dict[str, torch.Tensor]:
        """Make model input from uint8 RGB arrays (height, width, 3).

        Raises:
            InputError: if the image processor cannot.
        """
        try:
            pictures = [Image.fromarray(image) for image in images]
            return {"pixel_values": self.processor(pictures, return_tensors=return_tensors)["pixel_values"]}
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"the image processor of {self.name!r} makes no model input of the pictures ({reason(error)}): "
                "correct its preprocessor_config.json, or take another model."
            ) from error


def find_classes(
    checkpoints: Sequence[Checkpoint], fake_labels: Collection[str] = (), trust_remote_code: bool = False
) -> list[Checkpoint]:
    """Find out of every checkpoint that is not DCL's which of its classes mean fake; no weights are loaded for it.

    Args:
        checkpoints: what `find_checkpoint` found.
        fake_labels: names of classes that mean fake, see `classify_labels`.
        trust_remote_code: run configurations whose code was saved with the checkpoint.

    Returns:
        The same, with `classes`; those of DCL as they are.

    Raises:
        InputError: if a checkpoint is no image classifier with classes of both kinds, needs code of its own without
            leave, or no checkpoint has one of `fake_labels`.
    """
    labels = {}
    for checkpoint in checkpoints:
        if not checkpoint.is_dcl:
            labels[checkpoint.name] = _labels(_load_config(checkpoint, trust_remote_code), checkpoint.name)
    for label in fake_labels:
        if not any(label in own for own in labels.values()):
            others = sorted({repr(known) for own in labels.values() for known in own})[:10]
            have = f"they have {', '.join(others)}" if others else "those of DCL are real and fake, without being told"
            raise InputError(f"no model has the label {label!r} of --fake_labels: {have}; leave it out or correct it.")
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
            f"{name!r} is no image classifier: transformers has none for the model type {config.model_type!r}; pass "
            f"one that {AUTO_CLASS} loads."
        )
    labels = [str(config.id2label[index]) for index in sorted(config.id2label)]
    if sorted(config.id2label) != list(range(len(labels))):
        raise InputError(
            f"the labels of {name!r} are numbered {sorted(config.id2label)}, not from 0 on: correct id2label in its "
            "config.json."
        )
    # A loss of one's own leaves the type open, and then a single number is a logit. That of transformers sets it.
    if config.problem_type == "regression":
        raise InputError(f"{name!r} was trained for a regression and gives no probability: pass a classifier.")
    if config.problem_type == "multi_label_classification" and len(labels) > 1:
        raise InputError(
            f"the {len(labels)} labels of {name!r} do not exclude each other (problem_type is "
            "'multi_label_classification'), so that there is no one probability of fake: pass a classifier whose do."
        )
    return labels


def _load_config(checkpoint: Checkpoint, trust_remote_code: bool) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # of the file, of the configuration, of remote code
        raise _not_loaded(checkpoint, error) from error
    if checkpoint.model_type == "timm_wrapper" and config.model_args:
        # timm writes it there, too, when a model is made with it, and transformers would pass it on twice.
        config.model_args = {name: value for name, value in config.model_args.items() if name != "num_classes"}
    return config


def _not_loaded(checkpoint: Checkpoint, error: Exception) -> InputError:
    if "trust_remote_code" in str(error):
        return InputError(
            f"{checkpoint.name!r} needs the code that was saved with it: read that code, and pass --trust_remote_code "
            "if you trust it."
        )
    return InputError(
        f"the checkpoint {checkpoint.name!r} cannot be loaded ({reason(error)}): copy or download it again, or pass "
        "one that this release of transformers knows."
    )


def load_classifier(
    checkpoint: Checkpoint, device: torch.device, trust_remote_code: bool = False
) -> tuple[BinaryClassifier, ArrayProcessor]:
    """Load an image classifier that is not DCL's in float32, and its image processor.

    Args:
        checkpoint: what `find_classes` returned; without `classes`, the words in its labels decide.
        device: where the model shall run.
        trust_remote_code: run the code that was saved with the checkpoint.

    Returns:
        The model, in evaluation mode, and the processor.

    Raises:
        InputError: if a file is missing or unreadable, or does not hold every weight of the model.
    """
    if checkpoint.classes is None:
        (checkpoint,) = find_classes([checkpoint], (), trust_remote_code)
    config = _load_config(checkpoint, trust_remote_code)
    has_processor = any((checkpoint.folder / name).is_file() for name in OF_PROCESSORS)
    if not has_processor and checkpoint.model_type != "timm_wrapper":
        raise InputError(
            f"{checkpoint.name!r} has no {OF_PROCESSORS[0]}, which says how pictures become its input: copy it from "
            "where the model comes from, or save the image processor beside the model."
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
    except Exception as error:  # of the file formats, of the configuration, of remote code
        raise _not_loaded(checkpoint, error) from error
    if loading["missing_keys"]:  # they were drawn at random
        missing = sorted(loading["missing_keys"])
        raise InputError(
            f"the checkpoint {checkpoint.name!r} lacks {len(missing)} weights of the classifier (as {missing[0]}): "
            "pass one that was trained and saved as a classifier."
        )
    kinds = [kind for _, kind in checkpoint.classes]
    classifier = BinaryClassifier(model, kinds, checkpoint.name).to(device).eval()
    return classifier, ArrayProcessor(processor, checkpoint.name)
