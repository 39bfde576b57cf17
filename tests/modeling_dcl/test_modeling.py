"""The models on every kind of backbone: exact evidence, gradients, space, saving, and loading what is damaged."""

import copy
import logging

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from dcl_face_forgery.configuration_dcl import DCLConfig
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.modeling_dcl import (
    DCLForImageClassification,
    DCLForPreTraining,
    DCLModel,
    backbone_arguments,
    create_backbone,
    feature_map,
)

TINY_SWIN = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
#: name: (timm model, its arguments, image size, cells to a side)
BACKBONES = {
    "efficientnet": ("test_efficientnet", None, 96, 3),
    "resnet": ("test_resnet", None, 96, 3),
    "vit, prefix tokens": ("test_vit", None, 96, 6),
    "vit, norm after pooling": ("test_vit", {"global_pool": "avg"}, 96, 6),
    "convnext, norm after pooling": ("test_convnext", None, 96, 3),
    "mobilenetv3, convolution after pooling": ("mobilenetv3_small_050", None, 96, 3),
    "mobilenetv4, convolution after pooling": ("mobilenetv4_conv_small_035", None, 96, 3),
    "swin, channels last": ("swin_tiny_patch4_window7_224", TINY_SWIN, 224, 7),
}


def make_config(kind, **settings):
    backbone, arguments, image_size, _ = BACKBONES[kind]
    settings = {"queue_size": 8, "hard_samples": 2, **settings}
    return DCLConfig(backbone=backbone, backbone_kwargs=arguments, image_size=image_size, **settings)


@pytest.fixture(scope="module", params=BACKBONES)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def any_model(kind):
    """A model of each kind, in evaluation, whose classifier has something to say; tests leave it as it is."""
    torch.manual_seed(0)
    model = DCLForPreTraining(make_config(kind)).eval()
    torch.nn.init.normal_(model.classifier.linear.weight)
    torch.nn.init.normal_(model.classifier.linear.bias)
    return model


@pytest.fixture(scope="module")
def images(any_model):
    size = any_model.config.image_size
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def saved(any_model, images, tmp_path_factory):
    """A checkpoint after some steps: its momentum encoder has its own weights, its memory holds keys."""
    any_model.train()
    with torch.no_grad():
        for parameter in any_model.dcl.parameters():
            parameter.mul_(1.01)
        any_model.momentum_update()
        keys = any_model(images, images.flip(0)).key
        any_model.memory.update(keys, torch.tensor([0, 1]))
    any_model.eval()
    folder = tmp_path_factory.mktemp("checkpoint")
    any_model.save_pretrained(folder)
    return folder


def outputs_of(model, images):
    with torch.no_grad():
        return model(images, images.flip(3))


# ------------------------------------------------------------------------------------------------- the feature map


def test_map_is_square_and_as_large_as_it_says(kind, any_model, images):
    cells = BACKBONES[kind][3]
    geometry = any_model.dcl.geometry
    assert (geometry.height, geometry.width) == (cells, cells)
    output = any_model.dcl(images)
    assert output.last_hidden_state.shape == (2, geometry.channels, cells, cells)
    torch.testing.assert_close(output.pooler_output, output.last_hidden_state.mean((2, 3)))
    assert any_model(images, images).query.shape == (2, cells * cells)


def test_papers_backbone_gives_1792_channels_of_10_by_10_cells():
    _, geometry = create_backbone(DCLConfig())
    assert (geometry.channels, geometry.height, geometry.width) == (1792, 10, 10)


CORNERS = ((0, 0), (0, -1), (-1, 0), (-1, -1))


def change_of_map(model, images, corner, side):
    """How much each cell changes, (N, h, w), when a square in a corner of the images turns white."""
    top, left = (images.shape[-1] - side if end else 0 for end in corner)
    changed = images.clone()
    changed[:, :, top : top + side, left : left + side] = 3.0
    with torch.no_grad():
        return (model.dcl(changed).last_hidden_state - model.dcl(images).last_hidden_state).norm(dim=1)


def test_cells_lie_where_the_image_says(any_model, images):
    """Deep convolutions see all of a small image, so it is the centre of the change that must follow."""
    centres = []
    for corner in CORNERS:
        change = change_of_map(any_model, images, corner, images.shape[-1] // 3).mean(0)
        places = torch.linspace(-1, 1, len(change))
        centres.append(torch.stack([change.sum(1) @ places, change.sum(0) @ places]) / change.sum())
    for centre, (row, column) in zip(centres, CORNERS, strict=True):
        opposite_row, opposite_column = (centres[CORNERS.index(c)] for c in ((-1 - row, column), (row, -1 - column)))
        assert (centre[0] > opposite_row[0]) == (row == -1)
        assert (centre[1] > opposite_column[1]) == (column == -1)


@pytest.mark.parametrize(
    "kind", ["vit, prefix tokens", "vit, norm after pooling", "swin, channels last"], indirect=True
)
@pytest.mark.parametrize("corner", CORNERS)
def test_tokens_lie_where_the_image_says(any_model, images, corner):
    change = change_of_map(any_model, images, corner, images.shape[-1] // 6)
    cells = change.shape[1]
    assert change.flatten(1).argmax(1).tolist() == [(corner[0] % cells) * cells + corner[1] % cells] * 2


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_byobnet"])
def test_mean_of_cells_is_what_timm_pools(name):
    backbone, _ = create_backbone(DCLConfig(backbone=name, image_size=96))
    images = torch.randn(2, 3, 96, 96)
    pooled = timm.create_model(name, num_classes=0).eval()
    pooled.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(feature_map(backbone.eval(), images).mean((2, 3)), pooled(images))


def test_a_norm_after_pooling_is_applied_to_each_cell(images):
    backbone, _ = create_backbone(make_config("convnext, norm after pooling"))
    backbone.eval()
    torch.nn.init.normal_(backbone.head.norm.weight)
    raw, cells = backbone.forward_features(images[..., :96, :96]), feature_map(backbone, images[..., :96, :96])
    norm = backbone.head.norm
    for y, x in ((0, 0), (2, 1)):
        expected = F.layer_norm(raw[:, :, y, x], norm.weight.shape, norm.weight, norm.bias, norm.eps)
        torch.testing.assert_close(cells[:, :, y, x], expected)
    pooled = backbone.forward_head(raw, pre_logits=True)
    assert (cells.mean((2, 3)) - pooled).abs().max() > 0.01  # the norm of a mean is not the mean of norms


def test_token_norm_after_pooling_is_applied_to_each_cell(images):
    backbone, _ = create_backbone(make_config("vit, norm after pooling"))
    backbone.eval()
    torch.nn.init.normal_(backbone.fc_norm.weight)
    tokens = backbone.forward_features(images[..., :96, :96])[:, backbone.num_prefix_tokens :]
    cells = feature_map(backbone, images[..., :96, :96])
    torch.testing.assert_close(cells[:, :, 1, 2], backbone.fc_norm(tokens[:, 1 * 6 + 2]))


@pytest.mark.parametrize(
    ("name", "unused"), [("inception_next_atto", "head"), ("test_mambaout", "head.pre_logits"), ("caformer_s18", None)]
)
def test_only_the_norm_of_the_pooled_features_is_taken_from_a_head(name, unused):
    _, geometry = create_backbone(DCLConfig(backbone=name, image_size=64))
    assert geometry.unused == ((unused,) if unused else ())


@pytest.mark.parametrize(
    ("kind_", "dropped"),
    [
        ("mobilenetv3, convolution after pooling", {"conv_head"}),
        ("mobilenetv4, convolution after pooling", {"conv_head", "norm_head"}),
        ("efficientnet", set()),
        ("convnext, norm after pooling", set()),
    ],
)
def test_what_comes_after_the_map_is_dropped(kind_, dropped):
    backbone, geometry = create_backbone(make_config(kind_))
    assert set(geometry.unused) == dropped
    for name in dropped:
        assert not list(backbone.get_submodule(name).parameters())


# --------------------------------------------------------------------------------------------- evidence and heads


def test_evidence_is_the_exact_share_of_each_cell_in_the_margin(any_model, images):
    with torch.no_grad():
        output = any_model(images)
    bias = any_model.classifier.linear.bias
    margin = output.logits[:, 1] - output.logits[:, 0]
    assert output.evidence.shape == (2, *output.feature_map.shape[2:])
    assert margin.abs().min() > 1e-3
    torch.testing.assert_close(output.evidence.mean((1, 2)) + bias[1] - bias[0], margin, rtol=1e-5, atol=1e-5)


def test_both_classifiers_give_the_unit_mean_of_the_feature_map(any_model, images):
    with torch.no_grad():
        output = any_model(images)
        classifier = DCLForImageClassification(any_model.config).eval()
        classifier.load_state_dict(any_model.state_dict(), strict=False)
        expected = F.normalize(output.feature_map.mean((2, 3)), dim=1)
        torch.testing.assert_close(output.embedding, expected)
        torch.testing.assert_close(classifier(images).embedding, expected)
    assert output.embedding.dtype == torch.float32


def test_evidence_of_a_cell_is_what_the_margin_loses_without_it(model):
    features = torch.randn(1, model.dcl.geometry.channels, 3, 3)
    classifier = model.classifier.eval()
    without = features.clone()
    without[:, :, 2, 1] = 0
    margin, rest = (classifier(cells.mean((2, 3))).diff().squeeze() for cells in (features, without))
    torch.testing.assert_close(margin - rest, classifier.evidence(features)[0, 2, 1] / 9)


@pytest.mark.parametrize("embedding", ["map", "pooled"])
def test_heads_compute_in_float32_under_autocast(embedding):
    model = DCLForPreTraining(make_config("efficientnet", embedding=embedding)).eval()
    images = torch.randn(2, 3, 96, 96)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images, images)
    assert output.feature_map.dtype == torch.bfloat16
    # The same from the rounded feature map, without autocast: a head in bf16 would be off by 1e-3 and more.
    features = output.feature_map.float()
    expected = {
        "logits": model.classifier(features.mean((2, 3))),
        "evidence": model.classifier.evidence(features),
        "query": model.embedding_head(features),
        "key": model.embedding_head(features),
    }
    for name, value in expected.items():
        assert output[name].dtype == torch.float32
        torch.testing.assert_close(output[name], value, rtol=1e-6, atol=1e-6, msg=name)
    margin = output.logits.diff().squeeze(1) - model.classifier.linear.bias.diff()
    torch.testing.assert_close(output.evidence.mean((1, 2)), margin, rtol=1e-5, atol=1e-5)


def test_training_mode_leaves_out_what_no_loss_needs(model):
    images = torch.randn(2, 3, 96, 96)
    assert set(model.train()(images, images)) == {"logits", "feature_map", "query", "key"}
    assert set(model(images)) == {"logits", "feature_map"}
    assert set(model.eval()(images)) == {"logits", "feature_map", "evidence", "embedding"}


@pytest.mark.parametrize(("embedding", "dim"), [("map", 9), ("pooled", 32)])
def test_embeddings_are_unit_vectors_of_the_length_asked_for(embedding, dim):
    model = DCLForPreTraining(make_config("efficientnet", embedding=embedding, embedding_dim=32))
    output = outputs_of(model, torch.randn(2, 3, 96, 96))
    for vectors in (output.query, output.key):
        assert vectors.shape == (2, dim)
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    assert model.memory.queue.shape == (2, 8, dim)


def test_classification_gives_the_cross_entropy_of_labels(config):
    model = DCLForImageClassification(config).eval()
    labels = torch.tensor([0, 1])
    output = model(torch.randn(2, 3, 96, 96), labels=labels)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, labels))
    assert model(torch.randn(2, 3, 96, 96)).loss is None


# -------------------------------------------------------------------------------------------------------- gradients


def test_every_trainable_parameter_gets_a_gradient(kind):
    model = DCLForPreTraining(make_config(kind)).train()
    size = model.config.image_size
    output = model(torch.randn(2, 3, size, size), torch.randn(2, 3, size, size))
    (F.cross_entropy(output.logits, torch.tensor([0, 1])) + (output.query * output.key).sum()).backward()
    trainable = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, gradient in trainable.items() if gradient is None] == []
    assert all(gradient.isfinite().all() for gradient in trainable.values())
    assert {name.split(".")[0] for name in trainable} == {"dcl", "classifier", "embedding_head"}


def test_momentum_encoder_never_learns_by_gradient(model):
    key = [p for branch in (model.momentum_dcl, model.momentum_embedding_head) for p in branch.parameters()]
    assert not any(p.requires_grad for p in key)
    model.requires_grad_(True).train()
    assert not any(p.requires_grad for p in key)
    assert all(p.requires_grad for p in model.dcl.parameters())
    assert not model(torch.randn(2, 3, 96, 96), torch.randn(2, 3, 96, 96)).key.requires_grad


def test_activation_checkpointing_changes_memory_and_nothing_else():
    torch.manual_seed(0)
    model = DCLForImageClassification(make_config("vit, prefix tokens", dropout=0)).train()
    images, labels = torch.randn(2, 3, 96, 96), torch.tensor([0, 1])
    gradients = []
    for enable in (model.activation_checkpointing_disable, model.activation_checkpointing_enable):
        enable()
        model.zero_grad()
        model(images, labels=labels).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert model.dcl.backbone.grad_checkpointing
    torch.testing.assert_close(*gradients)
    model.activation_checkpointing_disable()
    assert not model.dcl.backbone.grad_checkpointing


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_resnet", "test_byobnet", "mobilenetv3_small_050"])
def test_activation_checkpointing_updates_running_statistics_as_one_pass_does(backbone):
    """What is computed again in the backward pass meets each batch twice."""
    plain = DCLForPreTraining(DCLConfig(backbone=backbone, image_size=64, queue_size=16, hard_samples=2, dropout=0))
    plain.train()
    models = [plain, copy.deepcopy(plain), copy.deepcopy(plain)]
    models[1].activation_checkpointing_enable()
    models[2].activation_checkpointing_enable()
    models[2].activation_checkpointing_disable()
    query, key = torch.rand(2, 4, 3, 64, 64)
    for model in models:
        for _ in range(2):
            output = model(query, key)
            (output.logits.sum() + output.query.sum()).backward()
    for model in models[1:]:
        for name, value in model.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-5, atol=1e-6)
        for parameter, expected in zip(model.parameters(), plain.parameters(), strict=True):
            assert (parameter.grad is None) == (expected.grad is None)
            assert parameter.grad is None or torch.allclose(parameter.grad, expected.grad, rtol=1e-4, atol=1e-6)
    assert not plain.momentum_dcl.backbone.grad_checkpointing


def test_a_backbone_that_cannot_recompute_is_named():
    model = DCLForPreTraining(DCLConfig(backbone="dla46_c", image_size=64, queue_size=16, hard_samples=2))
    with pytest.raises(InputError, match=r"'dla46_c' cannot recompute its features. Leave gradient_checkpointing out"):
        model.activation_checkpointing_enable()


# ------------------------------------------------------------------------------------------------- momentum encoder


def parameters_of(*modules):
    return torch.cat([p.detach().flatten() for module in modules for p in module.parameters()])


def test_a_fresh_momentum_encoder_equals_the_query_encoder(model):
    for name, value in model.dcl.state_dict().items():
        assert torch.equal(model.momentum_dcl.state_dict()[name], value), name
    for name, value in model.embedding_head.state_dict().items():
        assert torch.equal(model.momentum_embedding_head.state_dict()[name], value), name
    model.eval()
    images = torch.randn(2, 3, 96, 96)
    output = model(images, images)
    assert torch.equal(output.query, output.key)


@pytest.mark.parametrize("momentum", [0, 0.25, 0.999, 1])
def test_momentum_update_is_the_moving_average(momentum):
    model = DCLForPreTraining(make_config("efficientnet", momentum=momentum))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    query = parameters_of(model.dcl, model.embedding_head)
    key = parameters_of(model.momentum_dcl, model.momentum_embedding_head)
    model.momentum_update()
    moved = parameters_of(model.momentum_dcl, model.momentum_embedding_head)
    torch.testing.assert_close(moved, momentum * key + (1 - momentum) * query, rtol=1e-5, atol=1e-6)
    assert torch.equal(parameters_of(model.dcl, model.embedding_head), query)


@pytest.mark.parametrize("change", ["nothing", "copy", "type", "loading", "parameters", "modules"])
def test_momentum_update_follows_changes_of_the_model(model, tmp_path, change):
    model.momentum_update()
    if change == "copy":
        model = copy.deepcopy(model)
    elif change == "type":
        model = model.to(torch.float64)
    elif change == "loading":
        model.save_pretrained(tmp_path)
        model = DCLForPreTraining.from_pretrained(tmp_path)
    elif change == "parameters":
        for head in (model.embedding_head, model.momentum_embedding_head):
            head.projection.weight = torch.nn.Parameter(head.projection.weight.detach().clone())
        model.train()
    elif change == "modules":
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    with torch.no_grad():
        for parameter in (*model.dcl.parameters(), *model.embedding_head.parameters()):
            parameter.add_(1)
    query = parameters_of(model.dcl, model.embedding_head)
    key = parameters_of(model.momentum_dcl, model.momentum_embedding_head)
    model.momentum_update()
    moved = parameters_of(model.momentum_dcl, model.momentum_embedding_head)
    torch.testing.assert_close(moved, torch.lerp(key, query, 1 - model.config.momentum))
    assert not torch.equal(moved, key)


def test_training_mode_reaches_modules_that_were_set_apart(model):
    model.train()
    model.dcl.backbone.bn1.eval()
    model.momentum_dcl.requires_grad_(True)
    model.train()
    assert all(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.momentum_dcl.parameters())


def test_a_mode_that_is_set_already_is_not_set_again(model, monkeypatch):
    model.train()
    monkeypatch.setattr(torch.nn.Module, "train", lambda *_: pytest.fail("set all modules again"))
    assert model.train() is model


def test_each_view_moves_the_statistics_of_its_own_encoder(model):
    def statistics(module):
        return torch.cat([b.flatten() for name, b in module.named_buffers() if "running" in name])

    model.train()
    query, key = statistics(model.dcl), statistics(model.momentum_dcl)
    model(torch.randn(2, 3, 96, 96))
    assert not torch.equal(statistics(model.dcl), query)
    assert torch.equal(statistics(model.momentum_dcl), key)
    query = statistics(model.dcl)
    model.momentum_update()
    assert torch.equal(statistics(model.momentum_dcl), key)
    with torch.no_grad():
        model.momentum_dcl(torch.randn(2, 3, 96, 96))
    assert torch.equal(statistics(model.dcl), query)
    assert not torch.equal(statistics(model.momentum_dcl), key)


def test_processes_do_not_broadcast_the_memory(model):
    ignored = set(model._ddp_params_and_buffers_to_ignore)
    assert ignored == {name for name, _ in model.named_buffers() if name.startswith("memory.")}
    assert len(ignored) == 4


# ------------------------------------------------------------------------------------------------ initialisation


def test_the_initialisation_of_timm_is_kept():
    torch.manual_seed(3)
    expected = timm.create_model("test_efficientnet", num_classes=0).state_dict()
    torch.manual_seed(3)
    model = DCLForPreTraining(make_config("efficientnet"))
    for name, value in expected.items():
        assert torch.equal(model.dcl.backbone.state_dict()[name], value), name


def test_a_model_can_be_built_without_memory_for_it(config):
    with torch.device("meta"):
        model = DCLForPreTraining(config)
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    assert model.memory.queue.shape == (2, 16, 9)


# ------------------------------------------------------------------------------------------------ saving and loading


def test_loads_exactly_as_it_was_saved(any_model, images, saved):
    loaded = DCLForPreTraining.from_pretrained(saved)
    state, expected = loaded.state_dict(), any_model.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name
    assert any_model.memory.filled.tolist() == [1, 1]
    assert not torch.equal(parameters_of(any_model.dcl), parameters_of(any_model.momentum_dcl))
    actual, expected = outputs_of(loaded, images), outputs_of(any_model, images)
    for name in ("logits", "evidence", "feature_map", "query", "key"):
        torch.testing.assert_close(actual[name], expected[name], rtol=0, atol=1e-6)
    assert {name.split(".")[0] for name, p in loaded.named_parameters() if not p.requires_grad} == {
        "momentum_dcl",
        "momentum_embedding_head",
    }


def load_in_silence(cls, folder, caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        loaded, report = cls.from_pretrained(folder, output_loading_info=True)
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.records == []
    assert not any(report.values())
    return loaded


def test_classification_loads_a_training_checkpoint_in_silence(any_model, images, saved, caplog):
    loaded = load_in_silence(DCLForImageClassification, saved, caplog)
    with torch.no_grad():
        actual, expected = loaded(images), any_model(images)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(actual.evidence, expected.evidence, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["efficientnet"], indirect=True)
def test_backbone_alone_loads_a_training_checkpoint_in_silence(any_model, images, saved, caplog):
    loaded = load_in_silence(DCLModel, saved, caplog)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images).last_hidden_state, any_model(images).feature_map, rtol=0, atol=1e-6)


def test_training_goes_on_from_an_inference_checkpoint(config, tmp_path):
    inference = DCLForImageClassification(config)
    inference.save_pretrained(tmp_path)
    model = DCLForPreTraining.from_pretrained(tmp_path)
    assert torch.equal(parameters_of(model.dcl), parameters_of(inference.dcl))
    assert torch.equal(parameters_of(model.momentum_dcl), parameters_of(model.dcl))
    assert torch.equal(parameters_of(model.momentum_embedding_head), parameters_of(model.embedding_head))
    assert model.memory.filled.tolist() == [0, 0]


def test_a_face_detector_that_is_not_where_it_was_said_to_be_stops_no_saving(model, tmp_path, monkeypatch):
    monkeypatch.setenv("DCL_YUNET", str(tmp_path / "nowhere.onnx"))
    model.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert not list((tmp_path / "model").glob("*.onnx"))


def test_weights_are_saved_without_a_pickle(saved):
    names = {path.name for path in saved.iterdir()}
    assert {"config.json", "model.safetensors", "configuration_dcl.py", "modeling_dcl.py"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]


def load_without(saved, folder, *lost, **settings):
    """Load a checkpoint from which the tensors with these prefixes were taken out."""
    weights = load_file(saved / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith(lost)}
    assert len(kept) < len(weights)
    (folder / "config.json").write_text((saved / "config.json").read_text())
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    # What is not initialised is whatever the memory held before: make sure that this shows.
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        return DCLForPreTraining.from_pretrained(folder, **settings)
    finally:
        torch.use_deterministic_algorithms(False)


def assert_all_finite(model):
    for name, tensor in model.state_dict().items():
        assert tensor.isfinite().all(), name


def test_any_lost_tensor_is_initialised(kind, saved, images, tmp_path):
    model = load_without(saved, tmp_path, "dcl.", "classifier.", "embedding_head.")
    assert_all_finite(model)
    assert outputs_of(model, images).logits.isfinite().all()


@pytest.mark.parametrize("kind", ["efficientnet"], indirect=True)
def test_a_lost_momentum_encoder_starts_from_the_query_encoder(any_model, saved, tmp_path):
    model = load_without(saved, tmp_path, "momentum_")
    assert torch.equal(parameters_of(model.dcl), parameters_of(any_model.dcl))
    for name, value in model.dcl.state_dict().items():
        assert torch.equal(model.momentum_dcl.state_dict()[name], value), name
    assert not any(p.requires_grad for p in model.momentum_dcl.parameters())


@pytest.fixture(scope="module")
def saved_efficientnet(tmp_path_factory):
    model = DCLForPreTraining(make_config("efficientnet"))
    for _ in range(5):
        model.memory.update(F.normalize(torch.randn(4, 9), dim=1), torch.tensor([0, 1, 0, 1]))
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("lost", ["memory.", "memory.queue", "memory.filled", "memory.prototype"])
def test_a_memory_of_which_a_part_is_lost_starts_over(saved_efficientnet, tmp_path, lost):
    # Counts without their rows would make rows of zeros negatives.
    model = load_without(saved_efficientnet, tmp_path, lost)
    assert all((buffer == 0).all() for buffer in model.memory.buffers())


def test_another_queue_size_starts_over_with_an_empty_memory(saved_efficientnet):
    model = DCLForPreTraining.from_pretrained(saved_efficientnet, queue_size=4, ignore_mismatched_sizes=True)
    assert model.memory.queue.shape == (2, 4, 9)
    assert all((buffer == 0).all() for buffer in model.memory.buffers())


@pytest.mark.parametrize("kind", ["efficientnet", "vit, prefix tokens"], indirect=True)
def test_half_precision_loads_and_runs_on_float32_images(any_model, images, saved):
    model = DCLForPreTraining.from_pretrained(saved, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert torch.equal(model.memory.filled, any_model.memory.filled)
    output, expected = outputs_of(model, images), outputs_of(any_model, images)
    assert output.logits.dtype == output.evidence.dtype == torch.float32
    assert (output.feature_map - expected.feature_map).norm() < 0.1 * expected.feature_map.norm()
    model.memory.update(output.key, torch.tensor([0, 1]))
    model.momentum_update()
    assert_all_finite(model)


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "size", "gives"),
    [("mixer_s32_224", 224, r"\(2, 49, 512\)"), ("crossvit_tiny_240", 240, "list"), ("pit_ti_224", 224, r"\(2, 1, 2")],
)
def test_a_backbone_without_a_spatial_map_is_refused(name, size, gives):
    with pytest.raises(InputError, match=f"has no spatial feature map .it gives {gives}.*choose"):
        create_backbone(DCLConfig(backbone=name, image_size=size))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tf_efficientnet_b44", "Did you mean tf_efficientnet_b4"),
        ("efficientnet-b4", "Did you mean efficientnet_b4"),
        ("tf_efficientnet_b4.ns_jft", r"Did you mean tf_efficientnet_b4\.ns_jft_in1k"),
        ("?", r"timm\.list_models"),
    ],
)
def test_an_unknown_backbone_is_refused_with_a_suggestion(name, hint):
    with pytest.raises(InputError, match=hint) as error:
        create_backbone(DCLConfig(backbone=name))
    assert repr(name) in str(error.value)


@pytest.mark.parametrize(
    ("name", "size"), [("test_vit", 97), ("test_vit", 8), ("test_efficientnet", 8), ("test_resnet", 32), ("vgg11", 16)]
)
def test_an_image_size_that_the_backbone_cannot_take_is_refused(name, size):
    with pytest.raises(InputError, match=rf"{size} px.*Choose .*image_size"):
        create_backbone(DCLConfig(backbone=name, image_size=size))


def test_arguments_that_the_backbone_does_not_know_are_refused():
    config = DCLConfig(backbone="test_resnet", image_size=96, backbone_kwargs={"depth": 3})
    with pytest.raises(InputError, match=r"depth.*other backbone_kwargs"):
        create_backbone(config)


def test_a_transformer_is_built_for_the_image_size_asked_for():
    assert backbone_arguments(DCLConfig(backbone="test_vit", image_size=96))["img_size"] == 96
    assert "img_size" not in backbone_arguments(DCLConfig(backbone="test_resnet", image_size=96))
