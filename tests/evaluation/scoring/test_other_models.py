"""Classifiers that are not DCL's, of several architectures, saved as their authors save them, through the command."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BertConfig,
    ConvNextImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from dcl_face_forgery.configuration_dcl import DCLConfig
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.evaluate_dcl import main
from dcl_face_forgery.evaluation.scoring.checkpoints import find_checkpoint
from dcl_face_forgery.evaluation.scoring.other_models import find_classes, load_classifier
from dcl_face_forgery.evaluation.scoring.predictions import load_checkpoint, predict
from dcl_face_forgery.image_processing_dcl import DCLImageProcessor
from dcl_face_forgery.modeling_dcl import DCLForPreTraining
from dcl_face_forgery.prepared.dataset import decode_image
from dcl_face_forgery.prepared.splits import load_splits
from dcl_face_forgery.tests.shared.prepared_data import make_rows, write_split

CPU = torch.device("cpu")
PICTURE = {
    "input_size": [3, 64, 64],
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "interpolation": "bilinear",
    "crop_pct": 1.0,
}


def vit(**settings):
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return ViTConfig(**size, image_size=32, patch_size=8, **settings)


def save(folder, model, processor=None, std=2):
    """Save a classifier with margins of some units."""
    with torch.no_grad():
        for _ in range(20):  # batch norms that have never seen anything leave nothing of the differences
            model.train()(torch.rand(8, 3, *[getattr(model.config, "image_size", 64)] * 2))
        for name, parameter in model.named_parameters():
            if name.rsplit(".", 1)[0].endswith(("classifier", "classifier.1", "fc")):
                parameter.normal_(std=std)
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("others")
    torch.manual_seed(0)
    small = ViTImageProcessor(size={"height": 32, "width": 32})
    save(folder / "vit", ViTForImageClassification(vit(id2label={0: "Fake", 1: "Real"})), small)
    resnet = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8],
        depths=[1, 1],
        layer_type="basic",
        id2label={0: "artificial", 1: "real", 2: "deepfake"},
    )
    save(folder / "resnet", ResNetForImageClassification(resnet), ConvNextImageProcessor(size={"shortest_edge": 32}))
    swin = SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=4)
    swin.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    save(folder / "swin", SwinForImageClassification(swin), small)
    wrapped = TimmWrapperConfig(
        architecture="test_resnet", num_labels=2, id2label={0: "Realism", 1: "Deepfake"}, pretrained_cfg=PICTURE
    )
    save(folder / "timm", TimmWrapperForImageClassification(wrapped), std=400)
    write_split(folder / "textures", "test", make_rows(range(3), frames=1))
    return folder


@pytest.fixture(autouse=True)
def _in_place(here, monkeypatch):
    monkeypatch.chdir(here)


def evaluate(out, *models, options=()):
    main(["--model", *models, "--dataset", "textures", "--output_dir", str(out), "--device", "cpu", *options])


def sentence_of(out, *models, options=()):
    with pytest.raises(SystemExit) as stop:
        evaluate(out, *models, options=options)
    assert "\n" not in stop.value.code
    assert not out.exists()
    return stop.value.code


def probabilities(folder):
    """Score the rows as the model's authors would: PIL pictures, the Auto classes, softmax."""
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    images = [Image.fromarray(decode_image(row["image"], "a row")) for row in make_rows(range(3), frames=1)]
    with torch.no_grad():
        return model(processor(images, return_tensors="pt")["pixel_values"]).logits.double().softmax(1).numpy()


@pytest.mark.parametrize(
    ("name", "fake", "options"),
    [
        ("vit", [0], []),
        ("resnet", [0, 2], []),
        ("swin", [0], ["--fake_labels", "LABEL_0"]),
        ("timm", [1], []),
    ],
)
def test_p_fake_is_the_probability_of_the_classes_that_mean_fake(here, tmp_path, name, fake, options):
    evaluate(tmp_path / "out", name, options=options)
    rows = pd.read_parquet(tmp_path / "out/predictions.parquet")
    expected = probabilities(here / name)[:, fake].sum(1)
    np.testing.assert_allclose(rows["p_fake"], expected, atol=1e-5)
    np.testing.assert_allclose(rows["logit"], np.log(expected / (1 - expected)), atol=1e-3)
    assert 0.05 < rows["logit"].std() < 5  # else any order would pass
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())["textures"]
    assert metrics["localisation"]["auc"] is None
    assert "no fakes with a known mask" in metrics["localisation"]["reason"]
    run = json.loads((tmp_path / "out/run.json").read_text())
    labels = list(AutoModelForImageClassification.from_pretrained(here / name).config.id2label.values())
    assert run["labels"]["fake"] == [labels[index] for index in fake]
    assert run["crop"] is run["seen_methods"] is run["datasets"]["textures"]["crop_matches"] is None
    assert run["revision"].startswith("sha256:")


def test_that_the_crops_are_unknown_is_said_in_one_sentence(tmp_path, caplog):
    evaluate(tmp_path, "vit")
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("dcl_face_forgery.")]
    assert said.startswith("vit does not record the face crop of its training data")


def test_several_models_are_compared_and_perturbed(tmp_path, capsys):
    options = ["--perturbations", "jpeg", "--bootstrap", "20", "--batch_size", "12"]
    evaluate(tmp_path, "vit", "timm", options=options)
    assert json.loads((tmp_path / "timm/differences.json").read_text())["minus"] == "vit"
    assert len(json.loads((tmp_path / "timm/robustness.json").read_text())["datasets"]["textures"]["types"]) == 1
    assert "| timm | ? |" in capsys.readouterr().out


def test_workers_and_batches_do_not_change_the_scores(here):
    (data,) = load_splits(["textures"], "test")
    loaded = load_checkpoint(find_checkpoint("resnet"), CPU)

    def scores(**options):
        return pd.concat(batch.rows.to_pandas() for batch in predict(*loaded, data, **options))["logit"]

    np.testing.assert_allclose(scores(batch_size=7, num_workers=1), scores(batch_size=1), atol=1e-5)


def test_it_runs_in_float32_whatever_it_was_saved_in(here, tmp_path):
    AutoModelForImageClassification.from_pretrained(here / "vit", dtype=torch.float16).save_pretrained(tmp_path)
    shutil.copy(here / "vit/preprocessor_config.json", tmp_path)
    model, _ = load_checkpoint(find_checkpoint(str(tmp_path)), CPU)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training
    assert not model.model.training


def test_a_checkpoint_as_timm_saves_it(here, tmp_path):
    torch.manual_seed(1)
    network = timm.create_model("test_resnet", num_classes=2)
    network.pretrained_cfg |= PICTURE | {"num_classes": 2}
    timm.models.save_for_hf(network, tmp_path, {"label_names": ["fake", "real"]}, safe_serialization=True)
    assert "model_type" not in json.loads((tmp_path / "config.json").read_text())
    model, processor = load_checkpoint(find_checkpoint(str(tmp_path)), CPU)
    assert model.fake == [0]
    images = [np.full((50, 50, 3), grey, np.uint8) for grey in (0, 90)]
    pixels = processor(images)["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).logits, network.eval()(pixels).flip(1))


# ------------------------------------------------------------------------------------------------------ other heads


@pytest.mark.parametrize(("label", "sign"), [("fake", 1), ("Real", -1)])
def test_a_single_number_is_the_logit_of_its_class(here, tmp_path, label, sign):
    torch.manual_seed(0)
    save(
        tmp_path, ViTForImageClassification(vit(id2label={0: label})), ViTImageProcessor.from_pretrained(here / "vit")
    )
    model, processor = load_checkpoint(find_checkpoint(str(tmp_path)), CPU)
    pixels = processor([np.full((40, 40, 3), 80, np.uint8)])["pixel_values"]
    with torch.no_grad():
        two, one = model(pixels).logits, model.model(pixels).logits
    torch.testing.assert_close((two[:, 1] - two[:, 0]).sigmoid(), (sign * one[:, 0]).sigmoid())
    assert abs(one.item()) > 0.1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"id2label": {0: "LABEL_0"}}, "whether 'LABEL_0' means real or fake"),
        ({"id2label": {0: "fake"}, "problem_type": "regression"}, "is a regression model"),
        (
            {"id2label": {0: "real", 1: "fake"}, "problem_type": "multi_label_classification"},
            "do not exclude each other",
        ),
        ({"id2label": {1: "real", 2: "fake"}}, "are numbered [1, 2], not from 0 on"),
        ({"num_labels": 3}, "('LABEL_0', 'LABEL_1', 'LABEL_2')"),
    ],
)
def test_heads_that_give_no_probability_are_refused(tmp_path, settings, said):
    ViTForImageClassification(vit(**settings)).save_pretrained(tmp_path / "model")
    assert said in sentence_of(tmp_path / "out", str(tmp_path / "model"))


# --------------------------------------------------------------------------------------------------------- bad input


def test_labels_are_checked_before_any_model_runs(tmp_path):
    assert "Labels of 'swin' ('LABEL_0', 'LABEL_1'): cannot tell" in sentence_of(tmp_path / "out", "vit", "swin")


def test_a_fake_label_that_no_model_has(tmp_path):
    said = sentence_of(tmp_path / "out", "vit", "swin", options=["--fake_labels", "LABEL_0", "LABEL_2"])
    assert "no model has the label 'LABEL_2'" in said
    assert "'Fake', 'LABEL_0', 'LABEL_1', 'Real'" in said


def test_weights_that_would_be_unpickled_are_not_opened(here, tmp_path):
    """The pickle makes a file when it is opened by whatever means."""

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    shutil.copytree(here / "vit", tmp_path / "model")
    (tmp_path / "model/model.safetensors").unlink()
    torch.save(Trap(), tmp_path / "model/pytorch_model.bin")
    said = sentence_of(tmp_path / "out", str(tmp_path / "model"))
    assert "has no safetensors weights" in said
    assert "load and save the model once" in said
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("kind", ["vit", "dcl"])
def test_safetensors_of_something_else_do_not_open_a_pickle_beside_them(here, tmp_path, kind):
    if kind == "dcl":
        DCLForPreTraining(DCLConfig(backbone="test_efficientnet", image_size=64, queue_size=16)).save_pretrained(
            tmp_path
        )
        DCLImageProcessor().save_pretrained(tmp_path)
    else:
        shutil.copytree(here / "vit", tmp_path, dirs_exist_ok=True)
    load_checkpoint(find_checkpoint(str(tmp_path)), CPU)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")  # which would do
    (tmp_path / "model.safetensors").unlink()
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_checkpoint(find_checkpoint(str(tmp_path)), CPU)


def test_code_of_its_own_runs_with_leave_only(here, tmp_path):
    code = """
from transformers import ViTConfig, ViTForImageClassification
class MineConfig(ViTConfig):
    model_type = "mine"
class MineForImageClassification(ViTForImageClassification):
    config_class = MineConfig
"""
    shutil.copytree(here / "vit", tmp_path / "model")
    (tmp_path / "model/modeling_mine.py").write_text(code)
    path = tmp_path / "model/config.json"
    names = {"AutoConfig": "MineConfig", "AutoModelForImageClassification": "MineForImageClassification"}
    auto_map = {auto: f"modeling_mine.{name}" for auto, name in names.items()}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "mine", "auto_map": auto_map}))
    said = sentence_of(tmp_path / "out", str(tmp_path / "model"))
    assert "needs the code saved with it" in said
    assert "--trust_remote_code" in said
    evaluate(tmp_path / "out", str(tmp_path / "model"), options=["--trust_remote_code"])
    evaluate(tmp_path / "plain", "vit")
    own, plain = (pd.read_parquet(tmp_path / name / "predictions.parquet") for name in ("out", "plain"))
    np.testing.assert_allclose(own["p_fake"], plain["p_fake"], atol=1e-6)


@pytest.mark.parametrize("model_type", ["bert", "no_such_type"])
def test_what_is_no_image_classifier(tmp_path, model_type):
    BertConfig(id2label={0: "real", 1: "fake"}).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": model_type}))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    said = {"bert": "is not an image classifier", "no_such_type": "cannot be loaded"}[model_type]
    with pytest.raises(InputError, match=said):
        find_classes([find_checkpoint(str(tmp_path))])


def test_a_backbone_without_its_classifier(here, tmp_path):
    shutil.copytree(here / "vit", tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if "classifier" not in name},
        tmp_path / "model/model.safetensors",
        {"format": "pt"},
    )
    said = sentence_of(tmp_path / "out", str(tmp_path / "model"))
    assert "2 weights of the classifier are missing (such as classifier.bias)" in said


def test_a_checkpoint_without_an_image_processor(here, tmp_path):
    shutil.copytree(here / "vit", tmp_path / "model")
    (tmp_path / "model/preprocessor_config.json").unlink()
    said = sentence_of(tmp_path / "out", str(tmp_path / "model"))
    assert "has no preprocessor_config.json, which defines the preprocessing. Copy it" in said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"size": {"height": 48, "width": 48}}, "cannot score the output of its own image processor"),
        ({"do_resize": False}, "cannot score the output of its own image processor"),
    ],
)
def test_a_processor_that_does_not_fit_the_model(here, tmp_path, settings, said):
    shutil.copytree(here / "vit", tmp_path / "model")
    path = tmp_path / "model/preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    model, processor = load_classifier(find_checkpoint(str(tmp_path / "model")), CPU)
    with pytest.raises(InputError, match=said):
        model(processor([np.zeros((40, 40, 3), np.uint8)])["pixel_values"])


def test_pictures_that_a_processor_cannot_bring_together(here, tmp_path):
    shutil.copytree(here / "vit", tmp_path / "model")
    path = tmp_path / "model/preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_resize": False}))
    _, processor = load_classifier(find_checkpoint(str(tmp_path / "model")), CPU)
    with pytest.raises(InputError, match="cannot preprocess the pictures"):
        processor([np.zeros((40, 40, 3), np.uint8), np.zeros((48, 48, 3), np.uint8)])
