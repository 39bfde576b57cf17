"""Load pretrained weights into the backbone: from timm, or from a file with one of several naming schemes."""

import re
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file

from ..configuration_dcl import DCLConfig
from ..errors_dcl import InputError, reason
from ..hub_dcl import hub_is_reachable
from ..modeling_dcl import DCLForPreTraining, backbone_arguments

#: Keys under which checkpoints nest their state dict, and prefixes that wrappers and trainers add to its names.
NESTED_UNDER = ("state_dict", "model", "state_dict_ema", "model_state_dict")
PREFIXES = ("model.", "backbone.", "encoder.", "dcl.backbone.", "encoder_q.encoder.")
WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")

# Names of efficientnet-pytorch: rules for the whole network, then for a block with and one without an expansion, in
# which the norms are numbered one higher.
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

    The source is `"timm"`, for the weights that timm lists for the backbone on the Hub, or a `.safetensors` or PyTorch
    file. Known prefixes and names in the file are rewritten; its tensors must then cover the whole backbone. Raises
    `InputError` if the weights cannot be fetched or read, or a tensor is missing or has another shape.
    """
    config, backbone = model.config, model.dcl.backbone
    weights = _fetch_from_timm(config) if source == "timm" else _read(Path(source))
    expected = backbone.state_dict()
    weights = _rename(weights, list(expected))
    missing = [name for name in expected if name not in weights and not name.endswith("num_batches_tracked")]
    if missing:
        raise InputError(
            f"Weights from {source}: they do not fit the backbone {config.backbone!r}; {len(missing)} of its "
            f"{len(expected)} tensors are missing ({', '.join(missing[:3])}, ...). Pass weights of this backbone."
        )
    wrong = [name for name in expected if name in weights and weights[name].shape != expected[name].shape]
    if wrong:
        raise InputError(
            f"Weights from {source}: they do not fit the backbone {config.backbone!r}; {wrong[0]} has the shape "
            f"{tuple(weights[wrong[0]].shape)}, not {tuple(expected[wrong[0]].shape)}. Pass weights of this backbone."
        )
    backbone.load_state_dict({name: weights[name] for name in expected if name in weights}, strict=False)
    model.synchronize_momentum_encoder()


def _fetch_from_timm(config: DCLConfig) -> dict[str, torch.Tensor]:
    online = hub_is_reachable()
    try:  # with the backbone's arguments: timm resizes position embeddings to the image size
        return timm.create_model(config.backbone, pretrained=True, **backbone_arguments(config)).state_dict()
    except Exception as error:  # no such weights, no network, no cache: each library has its own class of error
        raise InputError(
            f"Pretrained weights of {config.backbone!r}: cannot be fetched "
            f"({reason(error) if online else 'the Hub cannot be reached, and they are not in the local cache'}). "
            "Pass --backbone_weights PATH, or --backbone_weights none to start from random weights."
        ) from error


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise InputError(
            f"Weights file {path} not found. Pass --backbone_weights timm, none, or an existing file "
            "(`dcl-prepare assets efficientnet_lite0 --output data/assets` fetches the demo's weights)."
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)  # tensors only: a pickle can run any code
    except Exception as error:
        raise InputError(
            f"Weights file {path}: cannot be read as tensors. Pass a .safetensors file, or a PyTorch file with "
            "tensors only."
        ) from error
    for name in NESTED_UNDER:
        if isinstance(weights, dict) and isinstance(weights.get(name), dict):
            weights = weights[name]
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise InputError(f"Weights file {path}: does not hold a state dict. Pass a file with tensors by name.")
    return weights


def _rename(weights: dict[str, torch.Tensor], expected: list[str]) -> dict[str, torch.Tensor]:
    """Strip prefixes and rewrite names: of all combinations, use the one that finds most of the expected tensors."""
    weights = {WRAPPERS.sub("", name): value for name, value in weights.items()}
    candidates = [weights]
    for prefix in PREFIXES:
        stripped = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        candidates.append(stripped)
    candidates += [_timm_efficientnet_names(candidate, expected) for candidate in tuple(candidates)]
    return max(candidates, key=lambda candidate: sum(name in candidate for name in expected))


def _timm_efficientnet_names(weights: dict[str, torch.Tensor], expected: list[str]) -> dict[str, torch.Tensor]:
    """Rewrite the names of efficientnet-pytorch: it numbers blocks across all stages, timm within each stage."""
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
