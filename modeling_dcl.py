"""DCL: dual contrastive learning for general face forgery detection.

Three models share one backbone and one checkpoint format:

- `DCLModel`: the backbone; images to feature maps.
- `DCLForImageClassification`: adds the classifier (real or fake), with the evidence of each cell.
- `DCLForPreTraining`: adds what the contrastive losses need: an embedding, its momentum copy, and the memory of hard
  keys.

Source: Sun et al., "Dual Contrastive Learning for General Face Forgery Detection", AAAI 2022, arXiv 2112.13522.

Long because transformers needs all networks of a checkpoint in one file, including `ReferenceNetwork`.
"""

import copy
import difflib
import functools
import hashlib
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load
from timm.layers import Format
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, logging

from .configuration_dcl import DCLConfig
from .decision_dcl import calibrate
from .errors_dcl import InputError, reason
from .faces_dcl import YUNET_FILE, copy_yunet
from .hub_dcl import REFERENCE_FILE, file_of_checkpoint

if TYPE_CHECKING:
    # transformers saves the relative imports of a file with it, so this import adds the pipeline to each checkpoint.
    from .pipeline_dcl import FaceForgeryDetectionPipeline  # noqa: F401

logger = logging.get_logger(__name__)


@dataclass
class DCLImageClassifierOutput(ModelOutput):
    """Output of [`DCLForImageClassification`].

    Args:
        loss: scalar cross-entropy, when labels are given.
        logits: float32 (N, 2), real and fake.
        evidence: float32 (N, h, w), the contribution of each cell to the margin z_fake - z_real. The margin is its
            mean over the cells plus the difference of the two biases.
        embedding: float32 (N, C), the mean of the feature map over its cells, normalised to unit length.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    evidence: torch.FloatTensor | None = None
    embedding: torch.FloatTensor | None = None


@dataclass
class DCLForPreTrainingOutput(ModelOutput):
    """Output of [`DCLForPreTraining`].

    Args:
        logits: float32 (N, 2), real and fake, of the query view.
        evidence: float32 (N, h, w), the contribution of each cell to the margin z_fake - z_real; not in training mode.
        feature_map: (N, C, h, w), of the query view.
        embedding: float32 (N, C), its mean over the cells, normalised to unit length; not in training mode.
        query: float32 (N, D), unit embedding of the query view.
        key: float32 (N, D), unit embedding of the key view by the momentum encoder, without gradient.
    """

    logits: torch.FloatTensor | None = None
    evidence: torch.FloatTensor | None = None
    feature_map: torch.FloatTensor | None = None
    embedding: torch.FloatTensor | None = None
    query: torch.FloatTensor | None = None
    key: torch.FloatTensor | None = None


# ---------------------------------------------------------------------------------------------------- backbone


@dataclass(frozen=True)
class BackboneGeometry:
    """The shape of the feature map of a backbone for a square input, and the modules that do not contribute to it."""

    channels: int
    height: int
    width: int
    unused: tuple[str, ...]


def create_backbone(config: DCLConfig) -> tuple[nn.Module, BackboneGeometry]:
    """Build the timm model of a configuration, with timm's initialisation, without the layers after its feature map.

    A classifier, an attention pooling, and convolutions after the pooling (as in MobileNetV3) are removed, so the head
    consists only of the mean over cells and one linear layer.

    Args:
        config: `backbone`, `backbone_kwargs` and `image_size` are used.

    Returns:
        The backbone and the shape of its feature map.

    Raises:
        InputError: if timm has no such model, it has no spatial feature map, or it does not accept `image_size`.
    """
    arguments = backbone_arguments(config)
    geometry = _measure(config.backbone, json.dumps(arguments, sort_keys=True), config.image_size)
    backbone = timm.create_model(config.backbone, pretrained=False, **arguments)
    for name in geometry.unused:
        backbone.set_submodule(name, nn.Identity())
    if not next(backbone.parameters()).is_meta:
        for module in backbone.modules():
            module._is_hf_initialized = (
                True  # otherwise `post_init` would reinitialise all weights from normal(0, 0.02)
            )
    return backbone, geometry


def backbone_arguments(config: DCLConfig) -> dict[str, Any]:
    """Return the arguments of `timm.create_model`.

    Raises:
        InputError: if timm has no such model.
    """
    arguments = {"num_classes": 0, **(config.backbone_kwargs or {})}
    try:
        if not timm.is_model(config.backbone):
            raise RuntimeError("unknown model")
        cfg = timm.get_pretrained_cfg(config.backbone)  # raises RuntimeError if only the tag is unknown
    except RuntimeError as error:
        known = [*timm.list_models(), *timm.list_models(pretrained=True)]
        close = difflib.get_close_matches(config.backbone, known, n=3)
        raise InputError(
            f"Backbone {config.backbone!r} is not a timm model. "
            + (f"Did you mean {' or '.join(close)}?" if close else "Run `timm.list_models()` for the available ones.")
        ) from error
    if cfg and cfg.fixed_input_size:
        arguments.setdefault("img_size", config.image_size)
    return arguments


@functools.cache
def _measure(name: str, arguments: str, image_size: int) -> BackboneGeometry:
    """Run a backbone once on the meta device, without computation, for its geometry and unused modules."""
    try:
        with torch.device("meta"):
            backbone = timm.create_model(name, pretrained=False, **json.loads(arguments))
            features = feature_map(backbone, torch.empty(2, 3, image_size, image_size))
    except InputError:
        raise
    except Exception as error:  # timm models check their arguments and inputs in many ways
        raise InputError(
            f"Backbone {name!r} does not accept images of {image_size} px with {arguments} "
            f"({' '.join(str(error).split()).removesuffix('.')}). "
            "Choose another image_size or other backbone_kwargs."
        ) from error
    if features.shape[2:].numel() < 2:
        raise InputError(
            f"Backbone {name!r} has a feature map of {features.shape[2]}x{features.shape[3]} cells for images of "
            f"{image_size} px, too small for the contrast between cells. Choose a larger image_size."
        )
    features.sum().backward()
    unused, dropped = [], ()
    for path, module in backbone.named_modules():
        parameters = list(module.parameters())
        if path and parameters and all(p.grad is None for p in parameters) and not path.startswith(dropped):
            unused.append(path)
            dropped += (path + ".",)
    return BackboneGeometry(*features.shape[1:], unused=tuple(unused))


def feature_map(backbone: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """Compute the spatial feature map of a timm model.

    Channels-last maps and token sequences with prefix tokens are converted. If the model normalises its pooled feature
    (ConvNeXt, some ViTs), that norm is applied to each cell.

    Args:
        backbone: the timm model.
        pixel_values: (N, 3, H, W).

    Returns:
        (N, C, h, w).

    Raises:
        InputError: if the model has no spatial feature map.
    """
    features = backbone.forward_features(pixel_values)
    norm = getattr(backbone, "fc_norm", None) or getattr(getattr(backbone, "head", None), "norm", None)
    of_features = norm is not None and all(p.numel() == backbone.num_features for p in norm.parameters())
    if isinstance(features, torch.Tensor) and of_features:  # otherwise it belongs to a hidden layer of the head
        features = norm(features)
    if isinstance(features, torch.Tensor) and features.ndim == 4:
        nhwc = Format(getattr(backbone, "output_fmt", "NCHW")) == Format.NHWC
        return features.permute(0, 3, 1, 2) if nhwc else features
    grid = _token_grid(backbone, pixel_values.shape[-2:])
    if isinstance(features, torch.Tensor) and features.ndim == 3 and grid is not None:
        tokens = features[:, getattr(backbone, "num_prefix_tokens", 0) :]
        if tokens.shape[1] == grid[0] * grid[1]:
            return tokens.transpose(1, 2).unflatten(2, grid)
    shape = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
    raise InputError(
        f"Backbone {type(backbone).__name__} has no spatial feature map (it gives {shape}). DCL contrasts regions of "
        "the face: choose a convolutional network or a plain vision transformer."
    )


def _token_grid(backbone: nn.Module, size: torch.Size) -> tuple[int, int] | None:
    embed = getattr(backbone, "patch_embed", None)
    if hasattr(embed, "dynamic_feat_size"):
        return tuple(embed.dynamic_feat_size(tuple(size)))
    return getattr(embed, "grid_size", None)


# ------------------------------------------------------------------------------------------------------ memory


class DCLMemory(nn.Module):
    """The memory of the inter-instance loss: two queues of hard keys and two class prototypes.

    All state is in persistent buffers, so a resumed run continues with it. The first index is the class, real (0) or
    fake (1). Rows are used as negatives only after they were written.

    Args:
        queue_size: K, rows of each queue.
        dim: D, length of a key.
        hard_samples: keys of each class that enter its queue at every step.
        prototype_momentum: share of itself that a prototype keeps at a step, in [0, 1].
        hard_share: share of the keys of each class that enter its queue instead, in (0, 1]; None for `hard_samples`.

    Attributes:
        queue: float (2, K, D), unit keys.
        pointer: int64 (2,), the next row to write.
        filled: int64 (2,), the number of rows written.
        prototype: float (2, D), the moving average of the keys of each class.
    """

    def __init__(
        self, queue_size: int, dim: int, hard_samples: int, prototype_momentum: float, hard_share: float | None = None
    ):
        super().__init__()
        self.hard_samples = hard_samples
        self.hard_share = hard_share
        self.prototype_momentum = prototype_momentum
        self.register_buffer("queue", torch.zeros(2, queue_size, dim))
        self.register_buffer("pointer", torch.zeros(2, dtype=torch.long))
        self.register_buffer("filled", torch.zeros(2, dtype=torch.long))
        self.register_buffer("prototype", torch.zeros(2, dim))

    @torch.no_grad()
    def update(self, keys: torch.Tensor, labels: torch.Tensor) -> None:
        """Update the prototypes, then enqueue the hard keys of the batch.

        The prototype of a class is P <- a P + (1 - a) mean of its keys. Its hard keys are the `hard_samples` keys (or
        the `hard_share` of its keys) with the highest cosine similarity to the prototype of the other class, hardest
        first (Eq. 6 with a count instead of a threshold). A class without keys in the batch stays as it is, and keys
        that are not finite are ignored. No operation synchronises with the device.

        Args:
            keys: unit vectors (N, D) of the whole batch. With several processes, gather them first, so that all
                memories stay equal.
            labels: int64 (N,), 0 real, 1 fake.
        """
        with torch.autocast(keys.device.type, enabled=False):
            keys = keys.float()
            usable = keys.isfinite().all(1)
            keys = keys.masked_fill(~usable[:, None], 0)
            members = [usable & (labels == label) for label in (0, 1)]
            for label, member in enumerate(members):
                mean = (keys * member[:, None]).sum(0) / member.sum().clamp(min=1)
                moved = torch.lerp(mean, self.prototype[label].float(), self.prototype_momentum)
                self.prototype[label] = torch.where(
                    member.any(), moved.to(self.prototype.dtype), self.prototype[label]
                )
            for label, member in enumerate(members):
                hardness = keys @ F.normalize(self.prototype[1 - label].float(), dim=0)
                order = hardness.masked_fill(~member, -torch.inf).argsort(descending=True, stable=True)
                count = self.hard_count(member.sum())
                most = min(int(self.hard_count(torch.tensor(len(keys)))), self.queue.shape[1])
                self._enqueue(label, keys[order[:most]], count.clamp(max=most))

    def hard_count(self, members: torch.Tensor) -> torch.Tensor:
        """Return how many of the keys of a class, int64 (), enter its queue, int64 ()."""
        if self.hard_share is None:
            return members.clamp(max=self.hard_samples)
        return (members * self.hard_share).round().long().clamp(min=1).minimum(members)

    def _enqueue(self, label: int, keys: torch.Tensor, count: torch.Tensor) -> None:
        """Write the first `count` keys into the ring, in order."""
        size = self.queue.shape[1]
        offset = torch.arange(len(keys), device=keys.device)
        rows = (self.pointer[label] + offset) % size
        kept = torch.where((offset < count)[:, None], keys.to(self.queue.dtype), self.queue[label, rows])
        self.queue[label, rows] = kept
        self.pointer[label] = (self.pointer[label] + count) % size
        self.filled[label] = (self.filled[label] + count).clamp(max=size)


# ------------------------------------------------------------------------------------------------------ models


class DCLPreTrainedModel(PreTrainedModel):
    """Base class of the DCL models: initialisation, loading and saving."""

    config: DCLConfig
    base_model_prefix = "dcl"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # every loss is a mean over the batch: the Trainer divides by the accumulation steps
    _no_split_modules = ()
    model_tags = ("face-forgery-detection", "deepfake-detection", "dual-contrastive-learning")

    def _set_gradient_checkpointing(self, enable: bool = True, *args, **kwargs):
        # Not for the momentum encoder, which keeps no graph.
        for encoder in (self, getattr(self, "dcl", None)):
            if isinstance(encoder, DCLModel):
                encoder.checkpoint_gradients(enable)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save the model with its code, its pipeline, the reference network, and the face detector.

        The face detector is left out if its file is not on this machine.

        Args:
            save_directory: the folder.
            **kwargs: those of the base class.
        """
        super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):
            self._copy_networks(save_directory)

    def _upload_modified_files(
        self, working_dir: str | os.PathLike, repo_id: str, files_timestamps: dict[str, float], **kwargs: Any
    ) -> Any:
        # `save_pretrained(push_to_hub=True)` uploads before it returns, and only the files that it wrote.
        self._copy_networks(working_dir)
        for file in (YUNET_FILE, REFERENCE_FILE):
            files_timestamps.pop(file, None)
        return super()._upload_modified_files(working_dir, repo_id, files_timestamps, **kwargs)

    def _copy_networks(self, folder: str | os.PathLike) -> None:
        for copy_file in (copy_yunet, copy_reference):
            copy_file(self.name_or_path, getattr(self.config, "_commit_hash", None), folder)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        for parameter in module.parameters(recurse=False):  # timm has module types that the base class does not know
            init.normal_(parameter, std=0.02)
        super()._init_weights(module)
        if isinstance(module, DCLMemory):
            for buffer in module.buffers():
                buffer.zero_()  # also those that were loaded: counts without rows would turn zeros into negatives
        elif hasattr(module, "init_non_persistent_buffers"):  # timm's buffers that are not in checkpoints
            module.init_non_persistent_buffers()


class DCLModel(DCLPreTrainedModel):
    """The backbone without a head: images to feature maps."""

    # From a checkpoint of the whole method, head and momentum copy are not loaded.
    _keys_to_ignore_on_load_unexpected = (r"^classifier\.", r"^embedding_head\.", r"^momentum_", r"^memory\.")

    def __init__(self, config: DCLConfig):
        super().__init__(config)
        self.backbone, self.geometry = create_backbone(config)
        self._norms_at_half: frozenset[str] = frozenset()
        self.post_init()

    def forward(self, pixel_values: torch.FloatTensor, pool: bool = True, **kwargs) -> BaseModelOutputWithPooling:
        """Compute feature maps.

        Args:
            pixel_values: (N, 3, H, W), from the image processor.
            pool: whether to compute `pooler_output`.
            **kwargs: ignored.

        Returns:
            `last_hidden_state` (N, C, h, w) and `pooler_output` (N, C), its mean over the cells.
        """
        features = feature_map(self.backbone, pixel_values.to(self.dtype))
        pooled = features.mean((2, 3)) if pool else None
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=pooled)

    def checkpoint_gradients(self, enable: bool = True) -> None:
        """Compute parts of the forward pass again in the backward pass, instead of keeping them, or stop doing so.

        Batch normalisation in these parts sees each batch twice. Its momentum is lowered so that the two updates of
        its running statistics equal one.

        Args:
            enable: whether to do so.

        Raises:
            InputError: if timm cannot do this for the backbone.
        """
        try:
            self.backbone.set_grad_checkpointing(enable)
        except (AssertionError, AttributeError) as error:
            raise InputError(
                f"Backbone {self.config.backbone!r} cannot recompute its features. Leave gradient_checkpointing out."
            ) from error
        config = self.config
        twice = _norms_run_twice(
            config.backbone, json.dumps(backbone_arguments(config), sort_keys=True), config.image_size
        )
        for name in twice & (self._norms_at_half ^ (twice if enable else frozenset())):
            norm = self.backbone.get_submodule(name)
            kept = 1 - norm.momentum  # of the running statistics, at one update: kept'^2 = kept
            norm.momentum = 1 - (math.sqrt(kept) if enable else kept**2)
        self._norms_at_half = twice if enable else frozenset()


@functools.cache
def _norms_run_twice(name: str, arguments: str, image_size: int) -> frozenset[str]:
    """Return the batch normalisation layers that gradient checkpointing runs twice, counted on the meta device."""
    counts = Counter()
    with torch.device("meta"):
        backbone = timm.create_model(name, pretrained=False, **json.loads(arguments)).train()
        backbone.set_grad_checkpointing(True)
        for path, module in backbone.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.register_forward_pre_hook(lambda *_, path=path: counts.update([path]))  # may not return
        feature_map(backbone, torch.empty(2, 3, image_size, image_size)).sum().backward()
    return frozenset(path for path, count in counts.items() if count == 2)


class DCLClassifier(nn.Module):
    """The head of DCL: dropout and a linear layer over the mean of the cells, always in float32."""

    def __init__(self, channels: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(channels, 2)

    def forward(self, mean: torch.Tensor) -> torch.Tensor:
        """Turn means of feature maps over their cells, (N, C), into logits, float32 (N, 2)."""
        with torch.autocast(mean.device.type, enabled=False):
            return F.linear(self.dropout(mean.float()), self.linear.weight.float(), self.linear.bias.float())

    def evidence(self, features: torch.Tensor) -> torch.Tensor:
        """Compute the contribution of each cell of feature maps (N, C, h, w) to the margin, float32 (N, h, w).

        It is exact, apart from dropout, because the mean over cells and the linear layer commute.
        """
        with torch.autocast(features.device.type, enabled=False):
            weight = self.linear.weight.float()
            return torch.einsum("nchw,c->nhw", features.float(), weight[1] - weight[0])


class DCLForImageClassification(DCLPreTrainedModel):
    """Backbone and classifier, for detection."""

    _keys_to_ignore_on_load_unexpected = (r"^embedding_head\.", r"^momentum_", r"^memory\.")

    def __init__(self, config: DCLConfig):
        super().__init__(config)
        self.dcl = DCLModel(config)
        self.classifier = DCLClassifier(self.dcl.geometry.channels, config.dropout)
        self.post_init()

    def forward(
        self, pixel_values: torch.FloatTensor, labels: torch.LongTensor | None = None, **kwargs
    ) -> DCLImageClassifierOutput:
        """Classify face crops as real or fake.

        Args:
            pixel_values: (N, 3, H, W), from the image processor.
            labels: int64 (N,), 0 real, 1 fake.
            **kwargs: ignored.

        Returns:
            Logits, evidence and embedding, and the cross-entropy if labels are given.
        """
        features = self.dcl(pixel_values, pool=False).last_hidden_state.float()
        mean = features.mean((2, 3))
        logits = self.classifier(mean)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        evidence, embedding = self.classifier.evidence(features), F.normalize(mean, dim=1)
        return DCLImageClassifierOutput(loss=loss, logits=logits, evidence=evidence, embedding=embedding)

    def p_fake(self, logits: torch.Tensor) -> torch.Tensor:
        """Turn logits into calibrated probabilities, see `calibrate`.

        Args:
            logits: (N, 2), on any device.

        Returns:
            The probability that each face is forged if real and forged faces are equally likely: float32 (N,), on the
            device of the logits, without gradient.
        """
        exact = logits.detach().cpu().double()  # on the CPU, since not every device supports float64
        margins = (exact[:, 1] - exact[:, 0]).numpy()
        return torch.from_numpy(calibrate(margins, self.config.calibration)).to(logits.device, torch.float32)


class DCLEmbeddingHead(nn.Module):
    """Feature map to the unit embedding of the inter-instance loss, always in float32.

    `"map"` reduces the channels to one by a 1x1 convolution and flattens the cells; `"pooled"` projects their mean.
    """

    def __init__(self, config: DCLConfig, geometry: BackboneGeometry):
        super().__init__()
        if config.embedding == "map":
            self.dim = geometry.height * geometry.width
            self.projection = nn.Conv2d(geometry.channels, 1, kernel_size=1)
        else:
            self.dim = config.embedding_dim
            self.projection = nn.Linear(geometry.channels, config.embedding_dim)

    def forward(self, features: torch.Tensor, mean: torch.Tensor | None = None) -> torch.Tensor:
        """Embed feature maps.

        Args:
            features: (N, C, h, w).
            mean: (N, C), their mean over the cells, if the caller has it.

        Returns:
            Unit vectors, float32 (N, D).
        """
        with torch.autocast(features.device.type, enabled=False):
            weight, bias = self.projection.weight.float(), self.projection.bias.float()
            if isinstance(self.projection, nn.Conv2d):
                embedding = F.conv2d(features.float(), weight, bias).flatten(1)
            else:
                mean = features.float().mean((2, 3)) if mean is None else mean
                embedding = F.linear(mean.float(), weight, bias)
            return F.normalize(embedding, dim=1)


def _modules_of(module: nn.Module) -> list[nn.Module]:
    """Return a module and all modules in it, without the names that make `modules()` slow."""
    found, seen = [module], {module}
    for parent in found:  # grows on the way
        for child in parent._modules.values():
            if child is not None and child not in seen:
                found.append(child)
                seen.add(child)
    return found


def _parameters_of(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a module, in the same order for modules of the same structure."""
    found = [p for part in _modules_of(module) for p in part._parameters.values() if p is not None]
    return list({id(p): p for p in found}.values())


class DCLForPreTraining(DCLPreTrainedModel):
    """The whole method: query encoder, classifier, momentum encoder and memory.

    `DCLTrainer.compute_loss` computes the losses from the output of `forward`.
    """

    def __init__(self, config: DCLConfig):
        super().__init__(config)
        self.dcl = DCLModel(config)
        self.classifier = DCLClassifier(self.dcl.geometry.channels, config.dropout)
        self.embedding_head = DCLEmbeddingHead(config, self.dcl.geometry)
        self.momentum_dcl = copy.deepcopy(self.dcl)
        self.momentum_embedding_head = copy.deepcopy(self.embedding_head)
        self.memory = DCLMemory(
            *(config.queue_size, self.embedding_head.dim, config.hard_samples),
            *(config.prototype_momentum, config.hard_share),
        )
        # Every process computes the same memory from gathered keys, so DDP has nothing to broadcast.
        self._ddp_params_and_buffers_to_ignore = [f"memory.{name}" for name, _ in self.memory.named_buffers()]
        self.post_init()
        self.train(self.training)

    def _branches(self) -> tuple[tuple[nn.Module, nn.Module], ...]:
        return (self.dcl, self.momentum_dcl), (self.embedding_head, self.momentum_embedding_head)

    def train(self, mode: bool = True) -> "DCLForPreTraining":
        """Set the mode. The momentum encoder never gets gradients."""
        # The Trainer calls this at every step, so do nothing where there is nothing to do.
        if any(module.training != mode for module in _modules_of(self)):
            super().train(mode)
        for _, key in self._branches():
            for parameter in _parameters_of(key):
                if parameter.requires_grad:  # `from_pretrained` makes all trainable, then calls `eval()`
                    parameter.requires_grad_(False)
        return self

    @torch.no_grad()
    def synchronize_momentum_encoder(self) -> None:
        """Copy the query encoder to the momentum encoder, including running statistics."""
        for query, key in self._branches():
            key.load_state_dict(query.state_dict())

    @torch.no_grad()
    def momentum_update(self) -> None:
        """Update the momentum encoder, once per optimizer step: theta_k <- m theta_k + (1 - m) theta_q.

        This applies to parameters only. The running statistics of its normalisation layers come from the key views.
        """
        for query, key in self._branches():
            torch._foreach_lerp_(_parameters_of(key), _parameters_of(query), 1.0 - self.config.momentum)

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        """If a checkpoint has no momentum encoder, initialise it from the query encoder."""
        # transformers calls this at the end of `post_init` (missing_keys is None) and of `from_pretrained`.
        super().tie_weights(missing_keys=missing_keys, recompute_mapping=recompute_mapping)
        if next(self.parameters()).is_meta:
            return
        lost = {name for name in missing_keys or () if name.startswith("momentum_")}
        if missing_keys is None or lost:
            self.synchronize_momentum_encoder()
        if missing_keys is not None:
            missing_keys -= lost

    def forward(
        self, pixel_values: torch.FloatTensor, key_pixel_values: torch.FloatTensor | None = None, **kwargs
    ) -> DCLForPreTrainingOutput:
        """Encode two views of the same images.

        Args:
            pixel_values: the query view, (N, 3, H, W).
            key_pixel_values: the key view, (N, 3, H, W), if wanted.
            **kwargs: ignored.

        Returns:
            Logits and feature map of the query view; in evaluation mode also evidence and embedding; with a key view
            also query and key.
        """
        features = self.dcl(pixel_values, pool=False).last_hidden_state
        cells = features.float()
        mean = cells.mean((2, 3))
        outputs = {"logits": self.classifier(mean), "feature_map": features}
        if not self.training:
            outputs |= {"evidence": self.classifier.evidence(cells), "embedding": F.normalize(mean, dim=1)}
        if key_pixel_values is not None:
            outputs["query"] = self.embedding_head(cells, mean)
            with torch.no_grad():
                keys = self.momentum_dcl(key_pixel_values, pool=False).last_hidden_state
                outputs["key"] = self.momentum_embedding_head(keys)
        return DCLForPreTrainingOutput(**outputs)


DCLModel.register_for_auto_class("AutoModel")
DCLForImageClassification.register_for_auto_class("AutoModelForImageClassification")
DCLForPreTraining.register_for_auto_class("AutoModelForPreTraining")


REFERENCE_SHA256 = "58deee5febaee7670e8778cfd78a12aac21370e7b5e5994543165679e7119910"
_SIZE = 112  # pixels; 160 take twice as long and add little
_STAGES = 3  # of seven; the last two of these, with 24 and 40 channels, give the features
#: Features of a face: mean and standard deviation of each channel.
REFERENCE_FEATURES = 2 * (24 + 40)


class ReferenceNetwork(nn.Module):
    """A fixed network that detects unfamiliar faces: the first stages of EfficientNet-Lite0, in float32.

    The weights are those trained on ImageNet (Apache-2.0). The features of the detector itself are not suited:
    training keeps only what separates real from forged faces, and this changes with every run. This network is never
    trained, so it is the same for every checkpoint.

    Args:
        path: the weights, see `find_reference`.

    Raises:
        InputError: if the file cannot be read, or is not the released one.
    """

    def __init__(self, path: Path):
        super().__init__()
        with torch.device("meta"):
            network = timm.create_model("tf_efficientnet_lite0")
        self.conv_stem, self.bn1, self.blocks = network.conv_stem, network.bn1, network.blocks[:_STAGES]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read ({reason(error)}). Check its permissions.") from error
        if hashlib.sha256(content).hexdigest() != REFERENCE_SHA256:
            raise InputError(f"{path} is not the released reference network (its SHA-256 differs). Download it again.")
        weights = load(content)
        floats = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
        self.load_state_dict(floats, assign=True)
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def forward(self, crops: Sequence[np.ndarray]) -> np.ndarray:
        """Compute features of face crops.

        Args:
            crops: N crops, uint8 RGB (S, S, 3), all of one size.

        Returns:
            float32 (N, `REFERENCE_FEATURES`): the means and then the standard deviations of the channels of stage 2
            over the cells, followed by those of stage 3.
        """
        x = torch.from_numpy(np.stack(crops)).to(self.conv_stem.weight.device).permute(0, 3, 1, 2).float()
        x = F.interpolate(x / 127.5 - 1, (_SIZE, _SIZE), mode="bilinear", antialias=True)
        x = self.bn1(self.conv_stem(x))
        features = []
        for number, stage in enumerate(self.blocks):
            x = stage(x)
            if number:
                features += [x.mean((2, 3)), x.std((2, 3))]
        return torch.cat(features, 1).cpu().numpy()


def copy_reference(name: str, revision: str | None, folder: str | Path) -> None:
    """Copy the weights of the reference network, see `find_reference`, to the folder of a checkpoint."""
    source, target = find_reference(name, revision, ask_hub=False), Path(folder, REFERENCE_FILE)
    if source is not None and not target.exists():
        shutil.copyfile(source, target)


def find_reference(name: str = "", revision: str | None = None, ask_hub: bool = True) -> Path | None:
    """Find the weights of the reference network: those of a checkpoint, else those of the package.

    Args:
        name: the `name_or_path` of the checkpoint.
        revision: its commit.
        ask_hub: whether to download the file if necessary.

    Returns:
        The path, or None if there is no such file.
    """
    own = Path(__file__).with_name(REFERENCE_FILE)  # absent if this code came with a checkpoint
    return file_of_checkpoint(REFERENCE_FILE, name, revision, ask_hub) or (own if own.is_file() else None)
