"""DCL: dual contrastive learning for general face forgery detection.

Three models share one backbone and one checkpoint format:

- `DCLModel`: image to feature map.
- `DCLForImageClassification`: feature map to real or fake, with the evidence of each cell.
- `DCLForPreTraining`: the same, with what the contrastive losses need: an embedding, its momentum copy, and the
  memory of hard keys.

Source: Sun et al., "Dual Contrastive Learning for General Face Forgery Detection", AAAI 2022, arXiv 2112.13522.

Long because transformers wants all networks of a checkpoint in one file, `ReferenceNetwork` with them.
"""

import copy
import difflib
import functools
import hashlib
import json
import os
import shutil
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
    # What is imported relatively anywhere in a file ships with it: so every checkpoint carries its pipeline.
    from .pipeline_dcl import FaceForgeryDetectionPipeline  # noqa: F401

logger = logging.get_logger(__name__)


@dataclass
class DCLImageClassifierOutput(ModelOutput):
    """Output of [`DCLForImageClassification`].

    Args:
        loss: scalar cross-entropy, when labels are given.
        logits: float32 (N, 2), real and fake.
        evidence: float32 (N, h, w), the share of each cell in the margin z_fake - z_real: its mean over the cells plus
            the difference of the two biases is the margin.
        embedding: float32 (N, C), the mean of the feature map over its cells, as a unit vector.
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
        evidence: float32 (N, h, w), the share of each cell in the margin z_fake - z_real.
        feature_map: (N, C, h, w), the backbone's map of the query view.
        embedding: float32 (N, C), its mean over the cells, as a unit vector; in evaluation only.
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
    """What a backbone gives for a square input: its feature map, and the modules that have no part in it."""

    channels: int
    height: int
    width: int
    unused: tuple[str, ...]


def create_backbone(config: DCLConfig) -> tuple[nn.Module, BackboneGeometry]:
    """Build the timm model of a configuration, with timm's own initialisation, less what comes after its map.

    A classifier, an attention pooling, and convolutions after the pooling (as in MobileNetV3) are dropped, so that the
    mean over cells and one linear layer are the whole head. Raises `InputError` if timm has no such model, it gives no
    spatial map, or it cannot take images of `image_size`.
    """
    arguments = backbone_arguments(config)
    geometry = _measure(config.backbone, json.dumps(arguments, sort_keys=True), config.image_size)
    backbone = timm.create_model(config.backbone, pretrained=False, **arguments)
    for name in geometry.unused:
        backbone.set_submodule(name, nn.Identity())
    if not next(backbone.parameters()).is_meta:
        for module in backbone.modules():
            module._is_hf_initialized = True  # else `post_init` draws all weights anew, from normal(0, 0.02)
    return backbone, geometry


def backbone_arguments(config: DCLConfig) -> dict[str, Any]:
    """Return the arguments of `timm.create_model`; raises `InputError` if timm has no such model."""
    arguments = {"num_classes": 0, **(config.backbone_kwargs or {})}
    try:
        if not timm.is_model(config.backbone):
            raise RuntimeError("unknown model")
        cfg = timm.get_pretrained_cfg(config.backbone)  # raises RuntimeError where only the tag is unknown
    except RuntimeError as error:
        known = [*timm.list_models(), *timm.list_models(pretrained=True)]
        close = difflib.get_close_matches(config.backbone, known, n=3)
        raise InputError(
            f"timm has no model {config.backbone!r}"
            + (f"; did you mean {' or '.join(close)}?" if close else ": `timm.list_models()` names those there are.")
        ) from error
    if cfg and cfg.fixed_input_size:
        arguments.setdefault("img_size", config.image_size)
    return arguments


@functools.cache
def _measure(name: str, arguments: str, image_size: int) -> BackboneGeometry:
    """Run a backbone once on the meta device, which computes nothing: its geometry, and what got no gradient."""
    try:
        with torch.device("meta"):
            backbone = timm.create_model(name, pretrained=False, **json.loads(arguments))
            features = feature_map(backbone, torch.empty(2, 3, image_size, image_size))
    except InputError:
        raise
    except Exception as error:  # whatever a timm model asserts about its arguments and its input
        raise InputError(
            f"the backbone {name!r} cannot take images of {image_size} px with {arguments} "
            f"({' '.join(str(error).split())}): "
            "choose another image_size or other backbone_kwargs."
        ) from error
    if features.shape[2:].numel() < 2:
        raise InputError(
            f"images of {image_size} px leave the backbone {name!r} a map of {features.shape[2]}x{features.shape[3]} "
            "cells, and nothing to contrast: choose a larger image_size."
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
    """Compute the spatial map (N, C, h, w) of a timm model from (N, 3, H, W), normalised cell by cell.

    Channels-last maps and token sequences with prefix tokens are understood. A norm that the model keeps for its
    pooled feature (ConvNeXt, some ViTs) is applied to each cell. Raises `InputError` if the model gives no spatial
    map.
    """
    features = backbone.forward_features(pixel_values)
    norm = getattr(backbone, "fc_norm", None) or getattr(getattr(backbone, "head", None), "norm", None)
    of_features = norm is not None and all(p.numel() == backbone.num_features for p in norm.parameters())
    if isinstance(features, torch.Tensor) and of_features:  # else it is the norm of a hidden layer of the head
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
        f"the backbone {type(backbone).__name__} has no spatial feature map (it gives {shape}): "
        "DCL contrasts regions of the face, choose a convolutional network or a plain vision transformer."
    )


def _token_grid(backbone: nn.Module, size: torch.Size) -> tuple[int, int] | None:
    embed = getattr(backbone, "patch_embed", None)
    if hasattr(embed, "dynamic_feat_size"):
        return tuple(embed.dynamic_feat_size(tuple(size)))
    return getattr(embed, "grid_size", None)


# ------------------------------------------------------------------------------------------------------ memory


class DCLMemory(nn.Module):
    """What the inter-instance loss remembers: two queues of hard keys and two class prototypes.

    All state is in persistent buffers, so a resumed run goes on with it. The first index is the class, real (0) or
    fake (1). A row is a negative only once it was written. The settings are those of `DCLConfig`; D is the length of a
    key.

    Buffers:
        queue: float (2, K, D), unit keys.
        pointer: int64 (2,), the next row to write.
        filled: int64 (2,), rows that were written.
        prototype: float (2, D), moving average of each class's keys.
    """

    def __init__(self, queue_size: int, dim: int, hard_samples: int, prototype_momentum: float):
        super().__init__()
        self.hard_samples = hard_samples
        self.prototype_momentum = prototype_momentum
        self.register_buffer("queue", torch.zeros(2, queue_size, dim))
        self.register_buffer("pointer", torch.zeros(2, dtype=torch.long))
        self.register_buffer("filled", torch.zeros(2, dtype=torch.long))
        self.register_buffer("prototype", torch.zeros(2, dim))

    @torch.no_grad()
    def update(self, keys: torch.Tensor, labels: torch.Tensor) -> None:
        """Move the prototypes, then choose the hard keys of the batch and enqueue them.

        Prototype of a class: P <- a P + (1 - a) mean of its keys. Hard keys of a class: the `hard_samples` closest in
        cosine to the other class's prototype, hardest first (Eq. 6 with a count in place of its threshold). A class
        that is not in the batch changes nothing, and neither does a key that is not finite. Nothing here waits for the
        device.

        Keys are unit (N, D), of the whole batch: over processes, gathered, so that all of them stay equal; labels are
        int64 (N,).
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
                self._enqueue(label, keys[order[: self.hard_samples]], member.sum().clamp(max=self.hard_samples))

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
    """Base of the DCL models: how they are initialised and loaded."""

    config: DCLConfig
    base_model_prefix = "dcl"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # every loss is a mean over the batch: the Trainer divides by the accumulation steps
    _no_split_modules = ()
    model_tags = ("face-forgery-detection", "deepfake-detection", "dual-contrastive-learning")

    def _set_gradient_checkpointing(self, enable: bool = True, *args, **kwargs):
        if enable and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.modules()):
            logger.warning(
                "activation checkpointing runs parts of the query encoder twice a step, and its batch normalisation "
                "moves the running statistics twice: leave it off, or use a backbone without batch normalisation."
            )
        for module in self.modules():
            if isinstance(module, DCLModel):
                module.backbone.set_grad_checkpointing(enable)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save the model with its code, its pipeline, the reference network of its abstention, and the face detector.

        The face detector is left out where its file is not on this machine. `kwargs` are those of the base class.
        """
        super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):
            self._copy_networks(save_directory)

    def _upload_modified_files(
        self, working_dir: str | os.PathLike, repo_id: str, files_timestamps: dict[str, float], **kwargs: Any
    ) -> Any:
        # `save_pretrained(push_to_hub=True)` uploads before it returns, and only what was written in between.
        self._copy_networks(working_dir)
        for file in (YUNET_FILE, REFERENCE_FILE):
            files_timestamps.pop(file, None)
        return super()._upload_modified_files(working_dir, repo_id, files_timestamps, **kwargs)

    def _copy_networks(self, folder: str | os.PathLike) -> None:
        for copy_file in (copy_yunet, copy_reference):
            copy_file(self.name_or_path, getattr(self.config, "_commit_hash", None), folder)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        for parameter in module.parameters(recurse=False):  # timm has more kinds than the base class knows
            init.normal_(parameter, std=0.02)
        super()._init_weights(module)
        if isinstance(module, DCLMemory):
            for buffer in module.buffers():
                buffer.zero_()  # those that were loaded too: counts without their rows would make zeros negatives
        elif hasattr(module, "init_non_persistent_buffers"):  # timm's; no checkpoint holds them
            module.init_non_persistent_buffers()


class DCLModel(DCLPreTrainedModel):
    """The backbone: image to feature map."""

    # A checkpoint of the whole method is loaded without its head and its momentum copy.
    _keys_to_ignore_on_load_unexpected = (r"^classifier\.", r"^embedding_head\.", r"^momentum_", r"^memory\.")

    def __init__(self, config: DCLConfig):
        super().__init__(config)
        self.backbone, self.geometry = create_backbone(config)
        self.post_init()

    def forward(self, pixel_values: torch.FloatTensor, **kwargs) -> BaseModelOutputWithPooling:
        """Map (N, 3, H, W) to `last_hidden_state` (N, C, h, w) and `pooler_output` (N, C), its mean over cells."""
        features = feature_map(self.backbone, pixel_values.to(self.dtype))
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=features.mean((2, 3)))


def unit_mean(features: torch.Tensor) -> torch.Tensor:
    """Return the mean of feature maps (N, C, h, w) over their cells, as float32 unit vectors (N, C)."""
    return F.normalize(features.float().mean((2, 3)), dim=1)


class DCLClassifier(nn.Module):
    """Mean over cells, dropout, linear: the head of DCL, in float32 whatever the precision around it."""

    def __init__(self, channels: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(channels, 2)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Classify feature maps (N, C, h, w).

        Returns:
            Logits, float32 (N, 2), and evidence, float32 (N, h, w): each cell's share of the margin, exact because the
            mean over cells and the linear layer commute (dropout aside).
        """
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            weight, bias = self.linear.weight.float(), self.linear.bias.float()
            logits = F.linear(self.dropout(features.mean((2, 3))), weight, bias)
            evidence = torch.einsum("nchw,c->nhw", features, weight[1] - weight[0])
        return logits, evidence


class DCLForImageClassification(DCLPreTrainedModel):
    """Backbone and classifier: what detection needs, and nothing else."""

    _keys_to_ignore_on_load_unexpected = (r"^embedding_head\.", r"^momentum_", r"^memory\.")

    def __init__(self, config: DCLConfig):
        super().__init__(config)
        self.dcl = DCLModel(config)
        self.classifier = DCLClassifier(self.dcl.geometry.channels, config.dropout)
        self.post_init()

    def forward(
        self, pixel_values: torch.FloatTensor, labels: torch.LongTensor | None = None, **kwargs
    ) -> DCLImageClassifierOutput:
        """Tell real faces from forged ones, (N, 3, H, W); labels int64 (N,), 0 real, 1 fake, give a loss."""
        features = self.dcl(pixel_values).last_hidden_state
        logits, evidence = self.classifier(features)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return DCLImageClassifierOutput(loss=loss, logits=logits, evidence=evidence, embedding=unit_mean(features))

    def p_fake(self, logits: torch.Tensor) -> torch.Tensor:
        """Turn logits (N, 2) into calibrated probabilities, see `calibrate`: float32 (N,), on their device.

        It is the chance that a face is forged where real and forged ones are equally likely, without gradient.
        """
        exact = logits.detach().cpu().double()  # on the CPU: not every device has doubles
        margins = (exact[:, 1] - exact[:, 0]).numpy()
        return torch.from_numpy(calibrate(margins, self.config.calibration)).to(logits.device, torch.float32)


class DCLEmbeddingHead(nn.Module):
    """Feature map to the unit embedding that the inter-instance loss compares.

    `"map"` squeezes the channels to one by a 1x1 convolution and flattens the cells; `"pooled"` projects their mean.
    """

    def __init__(self, config: DCLConfig, geometry: BackboneGeometry):
        super().__init__()
        if config.embedding == "map":
            self.dim = geometry.height * geometry.width
            self.projection = nn.Conv2d(geometry.channels, 1, kernel_size=1)
        else:
            self.dim = config.embedding_dim
            self.projection = nn.Linear(geometry.channels, config.embedding_dim)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Embed feature maps (N, C, h, w) as float32 unit vectors (N, D)."""
        if isinstance(self.projection, nn.Conv2d):
            embedding = self.projection(features).flatten(1)
        else:
            embedding = self.projection(features.mean((2, 3)))
        return F.normalize(embedding.float(), dim=1)


class DCLForPreTraining(DCLPreTrainedModel):
    """The whole method: query encoder, classifier, momentum encoder and memory.

    The losses are not here: `DCLTrainer.compute_loss` takes them from what `forward` returns.
    """

    def __init__(self, config: DCLConfig):
        super().__init__(config)
        self.dcl = DCLModel(config)
        self.classifier = DCLClassifier(self.dcl.geometry.channels, config.dropout)
        self.embedding_head = DCLEmbeddingHead(config, self.dcl.geometry)
        self.momentum_dcl = copy.deepcopy(self.dcl)
        self.momentum_embedding_head = copy.deepcopy(self.embedding_head)
        self.memory = DCLMemory(
            config.queue_size, self.embedding_head.dim, config.hard_samples, config.prototype_momentum
        )
        # Every process computes the same memory from gathered keys: there is nothing for DDP to broadcast.
        self._ddp_params_and_buffers_to_ignore = [f"memory.{name}" for name, _ in self.memory.named_buffers()]
        self.post_init()
        self.train(self.training)

    def _branches(self) -> tuple[tuple[nn.Module, nn.Module], ...]:
        return (self.dcl, self.momentum_dcl), (self.embedding_head, self.momentum_embedding_head)

    def train(self, mode: bool = True) -> "DCLForPreTraining":
        """Set the mode; the momentum encoder never learns by gradient."""
        super().train(mode)
        for _, key in self._branches():
            key.requires_grad_(False)  # `from_pretrained` makes every parameter trainable and ends in `eval()`
        return self

    @torch.no_grad()
    def synchronize_momentum_encoder(self) -> None:
        """Copy the query encoder, its running statistics too, to the momentum encoder."""
        for query, key in self._branches():
            key.load_state_dict(query.state_dict())

    @torch.no_grad()
    def momentum_update(self) -> None:
        """Move the momentum encoder: theta_k <- m theta_k + (1 - m) theta_q, once per optimizer step.

        Parameters only: the running statistics of its normalisation layers follow the key views by themselves.
        """
        for query, key in self._branches():
            torch._foreach_lerp_(list(key.parameters()), list(query.parameters()), 1.0 - self.config.momentum)

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        """Where a checkpoint has no momentum encoder, start it from the query encoder."""
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
        """Encode the query view and the key view, (N, 3, H, W), of the same images.

        Without the key view there is neither query nor key, as in evaluation.
        """
        features = self.dcl(pixel_values).last_hidden_state
        logits, evidence = self.classifier(features)
        if key_pixel_values is None:
            return DCLForPreTrainingOutput(
                logits=logits, evidence=evidence, feature_map=features, embedding=unit_mean(features)
            )
        with torch.no_grad():
            key = self.momentum_embedding_head(self.momentum_dcl(key_pixel_values).last_hidden_state)
        return DCLForPreTrainingOutput(
            logits=logits, evidence=evidence, feature_map=features, query=self.embedding_head(features), key=key
        )


DCLModel.register_for_auto_class("AutoModel")
DCLForImageClassification.register_for_auto_class("AutoModelForImageClassification")
DCLForPreTraining.register_for_auto_class("AutoModelForPreTraining")


REFERENCE_SHA256 = "58deee5febaee7670e8778cfd78a12aac21370e7b5e5994543165679e7119910"
_SIZE = 112  # pixels; 160 tell little more of a face, and take twice as long
_STAGES = 3  # of the seven; the last two describe a face: 24 and 40 channels
#: Numbers that describe a face: mean and standard deviation of each channel.
REFERENCE_FEATURES = 2 * (24 + 40)


class ReferenceNetwork(nn.Module):
    """The first stages of EfficientNet-Lite0 (ImageNet weights, Apache-2.0), in float32: tells unfamiliar faces.

    A detector's own features cannot: training keeps what separates real from forged faces and forgets the rest, and
    what is left changes with every run. Nothing here is ever trained, so it is the same for every checkpoint. Raises
    `InputError` if the file of its weights, see `find_reference`, cannot be read, or is another one.
    """

    def __init__(self, path: Path):
        super().__init__()
        with torch.device("meta"):
            network = timm.create_model("tf_efficientnet_lite0")
        self.conv_stem, self.bn1, self.blocks = network.conv_stem, network.bn1, network.blocks[:_STAGES]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read ({reason(error)}): check its permissions.") from error
        if hashlib.sha256(content).hexdigest() != REFERENCE_SHA256:
            raise InputError(f"{path} is not the reference network that distances are measured by: download it again.")
        weights = load(content)
        floats = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
        self.load_state_dict(floats, assign=True)
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def forward(self, crops: Sequence[np.ndarray]) -> np.ndarray:
        """Describe face crops, uint8 RGB (S, S, 3), all of one size.

        Returns float32 (N, `REFERENCE_FEATURES`): of the channels of stage 2 their means, then their standard
        deviations over the cells, and the same of stage 3.
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
    """Copy the weights of the reference network, see `find_reference`, to the folder of a checkpoint that is saved."""
    source, target = find_reference(name, revision, ask_hub=False), Path(folder, REFERENCE_FILE)
    if source is not None and not target.exists():
        shutil.copyfile(source, target)


def find_reference(name: str = "", revision: str | None = None, ask_hub: bool = True) -> Path | None:
    """Return the weights of the reference network: those that came with a checkpoint, else the package's, or None.

    The checkpoint is given by its `name_or_path` and its commit, see `hub_dcl.file_of_checkpoint`.
    """
    own = Path(__file__).with_name(REFERENCE_FILE)  # not there where the code came with a checkpoint
    return file_of_checkpoint(REFERENCE_FILE, name, revision, ask_hub) or (own if own.is_file() else None)
