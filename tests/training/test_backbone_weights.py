"""Pretrained backbone weights: the names they are found under, and files that are not what they should be."""

import pickle
import re

import pytest
import timm
import torch
from safetensors.torch import save_file

from dcl_face_forgery.configuration_dcl import DCLConfig
from dcl_face_forgery.data_scripts.assets import fetch
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.modeling_dcl import DCLForPreTraining
from dcl_face_forgery.training import backbone as backbone_module
from dcl_face_forgery.training.backbone import load_backbone_weights


@pytest.fixture(scope="module")
def weights():
    """Another initialisation of the test backbone, classifier included, as timm writes it."""
    torch.manual_seed(1)
    return timm.create_model("test_efficientnet", num_classes=1000).state_dict()


def assert_loaded(model, weights):
    """Query and momentum encoder hold these weights, bit by bit."""
    for encoder in (model.dcl, model.momentum_dcl):
        for name, value in encoder.backbone.state_dict().items():
            assert torch.equal(value, weights[name]), name


# ---------------------------------------------------------------------------------------------------- names


def with_prefix(prefix):
    return lambda weights: {prefix + name: value for name, value in weights.items()}


def momentum_contrast_checkpoint(weights):
    """Names as of the code released with the paper: two encoders, heads, queues; the query's is the one to load."""
    other = {name: torch.zeros_like(value) for name, value in weights.items()}
    return {
        "real_queue": torch.zeros(25, 8),
        "real_queue_ptr_hard": torch.zeros(1, dtype=torch.long),
        **with_prefix("encoder_k.encoder.")(other),
        **with_prefix("encoder_q.encoder.")(weights),
        "encoder_q.feature_squeeze.weight": torch.zeros(1, 256, 1, 1),
        "encoder_q.fc.weight": torch.zeros(2, 256),
    }


FORMS = {
    "timm": dict,
    "no counts of batches": lambda w: {name: v for name, v in w.items() if not name.endswith("num_batches_tracked")},
    "DataParallel": with_prefix("module."),
    "compiled DataParallel": with_prefix("module._orig_mod."),
    "backbone of a trainer": with_prefix("module.backbone."),
    "ours": with_prefix("dcl.backbone."),
    "ours, with the momentum encoder": lambda w: {
        **with_prefix("momentum_dcl.backbone.")({name: torch.zeros_like(v) for name, v in w.items()}),
        **with_prefix("dcl.backbone.")(w),
    },
    "momentum contrast": momentum_contrast_checkpoint,
    "momentum contrast, DataParallel": lambda w: with_prefix("module.")(momentum_contrast_checkpoint(w)),
    "nested": lambda w: {"epoch": 3, "state_dict": dict(w), "optimizer": {"lr": 0.1}},
    "nested, DataParallel": lambda w: {"model": with_prefix("module.")(w)},
}


@pytest.mark.parametrize("form", FORMS)
def test_well_known_forms_are_loaded(model, weights, tmp_path, form):
    path = tmp_path / "weights.pth"
    torch.save(FORMS[form](weights), path)
    # The test backbone is as fresh as its momentum copy, so what was there before must go from both.
    load_backbone_weights(model, str(path))
    state = model.dcl.backbone.state_dict()
    assert_loaded(model, {**{name: state[name] for name in state if name.endswith("num_batches_tracked")}, **weights})


def test_safetensors_are_loaded(model, weights, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(weights, path)
    load_backbone_weights(model, str(path))
    assert_loaded(model, weights)


def efficientnet_pytorch_names(state):
    """Write a timm EfficientNet under the names of efficientnet-pytorch, by the position of each tensor."""
    stem = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    blocks = list(dict.fromkeys(match[0] for name in state if (match := re.match(r"blocks\.\d+\.\d+", name))))
    plain = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    expanded = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
    expanded |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}
    excitation = {"se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand"}
    renamed = {}
    for name, value in state.items():
        if match := re.match(r"(blocks\.\d+\.\d+)\.(se\.\w+|\w+)\.(\w+)", name):
            names = (expanded if f"{match[1]}.conv_pwl.weight" in state else plain) | excitation
            renamed[f"_blocks.{blocks.index(match[1])}.{names[match[2]]}.{match[3]}"] = value
        else:
            module, rest = name.split(".", 1)
            renamed[f"{stem[module]}.{rest}"] = value
    return renamed


@pytest.mark.parametrize("prefix", ["", "module."])
def test_names_of_efficientnet_pytorch_are_rewritten(tmp_path, prefix):
    """B0 has blocks with and without an expansion, both with squeeze and excitation."""
    torch.manual_seed(1)
    weights = timm.create_model("efficientnet_b0", num_classes=10).state_dict()
    foreign = with_prefix(prefix)(efficientnet_pytorch_names(weights))
    assert not set(foreign) & set(weights)
    torch.save(foreign, tmp_path / "weights.pth")
    model = DCLForPreTraining(DCLConfig(backbone="efficientnet_b0", image_size=64, queue_size=8))
    load_backbone_weights(model, str(tmp_path / "weights.pth"))
    assert_loaded(model, weights)


@pytest.fixture(scope="module")
def lite0():
    model = DCLForPreTraining(DCLConfig(backbone="tf_efficientnet_lite0", image_size=128, queue_size=8))
    try:
        load_backbone_weights(model, str(fetch("efficientnet_lite0")))
    except InputError as error:
        if "cannot be downloaded" in str(error):
            pytest.skip(str(error))
        raise
    return model.eval()


def test_every_norm_of_efficientnet_lite0_meets_what_it_was_trained_on(lite0):
    """The means that a norm has stored are those it sees; of a wrong order of names it sees others by far."""
    deviations = {}

    def compare(norm, inputs):
        mean = inputs[0].mean((0, 2, 3))
        deviations[norm] = ((mean - norm.running_mean) / norm.running_var.sqrt()).abs().median().item()

    norms = [module for module in lite0.dcl.backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(compare) for norm in norms]
    images = torch.nn.functional.interpolate(torch.randn(4, 3, 16, 16), 128, mode="bilinear").clamp(-1, 1)
    with torch.no_grad():
        lite0.dcl(images)
    for hook in hooks:
        hook.remove()
    assert len(deviations) == 49
    assert max(deviations.values()) < 2


def test_both_encoders_hold_the_weights_of_efficientnet_lite0(lite0):
    assert_loaded(lite0, lite0.dcl.backbone.state_dict())
    assert torch.load(fetch("efficientnet_lite0"), weights_only=True)["_conv_stem.weight"].equal(
        lite0.momentum_dcl.backbone.conv_stem.weight
    )


# ------------------------------------------------------------------------------------------------------- from timm


def test_weights_of_timm_are_asked_for_in_the_shape_of_the_backbone(monkeypatch):
    """A transformer at another image size has another number of position embeddings, which timm can resize."""
    asked = {}
    original = timm.create_model

    def create_model(name, pretrained=False, **arguments):
        asked.update(arguments, pretrained=pretrained, name=name)
        return original(name, pretrained=False, **arguments)

    model = DCLForPreTraining(DCLConfig(backbone="test_vit", image_size=96, queue_size=8))
    monkeypatch.setattr(backbone_module.timm, "create_model", create_model)
    load_backbone_weights(model, "timm")
    assert asked == {"name": "test_vit", "pretrained": True, "num_classes": 0, "img_size": 96}
    assert torch.equal(model.dcl.backbone.pos_embed, model.momentum_dcl.backbone.pos_embed)


def test_weights_of_timm_that_cannot_be_fetched_are_one_sentence(model):
    with pytest.raises(
        InputError, match=r"'test_efficientnet': cannot be fetched \(.+\)\. Pass --backbone_weights PATH"
    ):
        load_backbone_weights(model, "timm")


# -------------------------------------------------------------------------------------------------------- bad files


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_refused(model, path, match):
    before = state_of(model)
    with pytest.raises(InputError, match=match) as error:
        load_backbone_weights(model, str(path))
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_missing_file(model, tmp_path):
    assert_refused(
        model, tmp_path / "no.pth", r"Weights file .*no\.pth not found\. Pass --backbone_weights timm, none"
    )


def test_weights_of_another_backbone(model, tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "resnet.pth")
    assert_refused(model, tmp_path / "resnet.pth", r"do not fit the backbone 'test_efficientnet'; \d+ of its \d+ tens")


def test_a_tensor_that_is_missing(model, weights, tmp_path):
    partial = {name: value for name, value in weights.items() if name != "bn1.running_var"}
    torch.save(partial, tmp_path / "partial.pth")
    assert_refused(model, tmp_path / "partial.pth", r"1 of its \d+ tensors are missing \(bn1.running_var")


def test_a_tensor_of_another_shape(model, weights, tmp_path):
    torch.save(weights | {"conv_stem.weight": torch.zeros(3, 3)}, tmp_path / "wide.pth")
    assert_refused(model, tmp_path / "wide.pth", r"conv_stem\.weight has the shape \(3, 3\), not \(")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all"])
def test_a_file_that_holds_no_weights(model, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert_refused(model, tmp_path / name, "cannot be read as tensors. Pass a .safetensors file")


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"state_dict": {"a": "text"}}, torch.zeros(3)])
def test_a_file_that_holds_something_else(model, tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    assert_refused(model, tmp_path / "other.pth", "does not hold a state dict. Pass a file with tensors by name")


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
def test_code_in_a_pickle_is_not_run(model, tmp_path, save):
    save({"conv_stem.weight": Payload(tmp_path / "was_run")}, tmp_path / "weights.pth")
    assert_refused(model, tmp_path / "weights.pth", "cannot be read")
    assert not (tmp_path / "was_run").exists()
