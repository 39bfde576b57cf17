"""Pretrained weights for the backbone: from timm, or from a file in one of the names such files are found under."""

import re
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file

from ..configuration_dcl import DCLConfig
from ..errors_dcl import InputError, reason
from ..hub_dcl import hub_is_reachable
from ..modeling_dcl import DCLForPreTraining, backbone_arguments

#: Where checkpoints nest their state dict, and what wrappers and trainers put before the names in it.
NESTED_UNDER = ("state_dict", "model", "state_dict_ema", "model_state_dict")
PREFIXES = ("model.", "backbone.", "encoder.", "dcl.backbone.", "encoder_q.encoder.")
WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")

# Names of EfficientNets that are not timm's: the rules of the whole network, then of a block with and one without
# an expansion, whose norms are counted one further.
EFFICIENTNET_STEM = (
    (r"^_conv_stem\.", "conv_stem."),
    (r"^_bn0\.", "bn1."),
    (r"^_conv_head\.", "conv_head."),
    (r"^_bn1\.", "bn2."),
    (r"^_fc\.", "classifier."),
)
EXPANDED_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
}
PLAIN_BLOCK = EXPANDED_BLOCK | {"_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def load_backbone_weights(model: DCLForPreTraining, source: str) -> None:
    """Load pretrained weights into the query encoder of a fresh model, and copy them to the momentum encoder.

    The source is `"timm"`, the weights that timm names for the backbone, from the Hub; or a `.safetensors` or PyTorch
    file whose tensors, after well-known prefixes and names are rewritten, cover the whole backbone. Raises
    `InputError` if they cannot be fetched or read, or a tensor is missing or of another shape.
    """
    config, backbone = model.config, model.dcl.backbone
    weights = _fetch_from_timm(config) if source == "timm" else _read(Path(source))
    expected = backbone.state_dict()
    weights = _rename(weights, list(expected))
    missing = [name for name in expected if name not in weights and not name.endswith("num_batches_tracked")]
    if missing:
        raise InputError(
            f"the weights of {source} do not fit the backbone {config.backbone!r}: {len(missing)} of its "
            f"{len(expected)} tensors are not there ({', '.join(missing[:3])}, ...)."
        )
    wrong = [name for name in expected if name in weights and weights[name].shape != expected[name].shape]
    if wrong:
        raise InputError(
            f"the weights of {source} do not fit the backbone {config.backbone!r}: {wrong[0]} has the shape "
            f"{tuple(weights[wrong[0]].shape)}, not {tuple(expected[wrong[0]].shape)}."
        )
    backbone.load_state_dict({name: weights[name] for name in expected if name in weights}, strict=False)
    model.synchronize_momentum_encoder()


def _fetch_from_timm(config: DCLConfig) -> dict[str, torch.Tensor]:
    online = hub_is_reachable()
    try:  # with the arguments of the backbone: timm resizes position embeddings to its image size
        return timm.create_model(config.backbone, pretrained=True, **backbone_arguments(config)).state_dict()
    except Exception as error:  # no such weights, no network, no cache: each layer below has its own class
        raise InputError(
            f"the pretrained weights of {config.backbone!r} cannot be fetched "
            f"({reason(error) if online else 'the Hub cannot be reached, and they are not in the local cache'}): "
            "pass --backbone_weights PATH, or --backbone_weights none to start from random weights."
        ) from error


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise InputError(
            f"there is no weights file {path}: pass --backbone_weights timm, none, or a file that exists "
            "(`dcl-prepare assets efficientnet_lite0 --output data/assets` fetches those of the demo)."
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)  # tensors only: a pickle may hold any code
    except Exception as error:
        raise InputError(
            f"the weights file {path} cannot be read as tensors: give a .safetensors file, or a PyTorch file of "
            "tensors alone."
        ) from error
    for name in NESTED_UNDER:
        if isinstance(weights, dict) and isinstance(weights.get(name), dict):
            weights = weights[name]
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise InputError(f"the weights file {path} holds no table of tensors by name: give a state dict.")
    return weights


def _rename(weights: dict[str, torch.Tensor], expected: list[str]) -> dict[str, torch.Tensor]:
    """Strip the prefix and rewrite the names under which most of the expected tensors are found."""
    weights = {WRAPPERS.sub("", name): value for name, value in weights.items()}
    candidates = [weights]
    for prefix in PREFIXES:
        stripped = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        candidates.append(stripped)
    candidates += [_timm_efficientnet_names(candidate, expected) for candidate in tuple(candidates)]
    return max(candidates, key=lambda candidate: sum(name in candidate for name in expected))


def _timm_efficientnet_names(weights: dict[str, torch.Tensor], expected: list[str]) -> dict[str, torch.Tensor]:
    """Rewrite the names of efficientnet-pytorch: its blocks are counted through all stages, timm's within each."""
    blocks = dict(enumerate(dict.fromkeys(m[0] for name in expected if (m := re.match(r"blocks\.\d+\.\d+", name)))))
    expanded = {m[1] for name in weights if (m := re.match(r"_blocks\.(\d+)\._expand_conv\.", name))}
    renamed = {}
    for name, value in weights.items():
        if match := re.match(r"_blocks\.(\d+)\.(\w+?)\.(.+)", name):
            number, module, rest = match.groups()
            names = EXPANDED_BLOCK if number in expanded else PLAIN_BLOCK
            renamed[f"{blocks.get(int(number))}.{names.get(module, module)}.{rest}"] = value
        else:
            for pattern, replacement in EFFICIENTNET_STEM:
                name = re.sub(pattern, replacement, name)
            renamed[name] = value
    return renamed
