"""The export: graphs that answer as their model does, what int8 costs, and folders that are whole or untouched."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoImageProcessor

from dcl import export as door
from dcl.configuration_dcl import DCLConfig
from dcl.data_scripts.assets import fetch
from dcl.errors_dcl import InputError
from dcl.evaluation import exporting
from dcl.evaluation.exporting import TOLERANCE, check_output, head_nodes, measure_parity, write_graph
from dcl.evaluation.inputs import load_evaluation_sets
from dcl.faces_dcl import YUNET_FILE
from dcl.familiarity_dcl import REFERENCE_FILE
from dcl.image_processing_dcl import DCLImageProcessor
from dcl.modeling_dcl import DCLForImageClassification
from dcl.onnx_dcl import OUTPUTS, OnnxClassifier
from dcl.tests.prepared_data import CROP, SHIPPED_CODE, make_rows, write_split

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

SIZE = 96
FOLDER = {"config.json", "export.json", "model.onnx", "preprocessor_config.json", REFERENCE_FILE}


def make_model(backbone="test_resnet", image_size=SIZE, **arguments):
    torch.manual_seed(0)
    config = DCLConfig(backbone=backbone, image_size=image_size, backbone_kwargs=arguments or None)
    model = DCLForImageClassification(config).eval()
    for module in model.modules():  # as after training: statistics that are not those of the constructor
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    model = make_model()
    model.config.calibration = {"method": "temperature", "temperature": 1.5}
    model.save_pretrained(folder)
    DCLImageProcessor(size={"height": SIZE, "width": SIZE}, crop=CROP).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """What was exported of `make_model()`."""
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    write_graph(make_model(), path)
    return path


@pytest.fixture
def known_graph(graph, monkeypatch):
    """Spares a test the export of the model whose graph is there."""
    monkeypatch.setattr(exporting, "write_graph", lambda model, path: shutil.copy(graph, path))


@pytest.fixture(scope="module")
def exported(checkpoint, graph, prepared, tmp_path_factory):
    """What the command wrote with int8; by the two faster methods."""
    output = tmp_path_factory.mktemp("exports") / "deep" / "tiny-onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "METHODS", ("minmax", "percentile"))
        patch.setattr(exporting, "write_graph", lambda model, path: shutil.copy(graph, path))
        run("--model", checkpoint, "--output", output, "--int8", "--dataset", prepared)
    return output


def run(*flags):
    door.main([str(flag) for flag in flags])


# ------------------------------------------------------------------------------------------------------------- parity


SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}


def assert_same_answers(model, graph):
    size = model.config.image_size
    classifier = OnnxClassifier(graph, model.config, threads=1)
    for count in (1, 2, 7):
        pixel_values = torch.rand(count, 3, size, size) * 2 - 1
        with torch.inference_mode():
            expected = model(pixel_values)
        actual = classifier(pixel_values)
        for output in OUTPUTS:
            torch.testing.assert_close(actual[output], expected[output], atol=1e-4, rtol=0)
        torch.testing.assert_close(actual.embedding.norm(dim=1), torch.ones(count))
        torch.testing.assert_close(classifier.p_fake(actual.logits), model.p_fake(expected.logits), atol=1e-4, rtol=0)


def test_the_graph_answers_as_the_model_does_in_batches_of_any_size(graph):
    assert_same_answers(make_model(), graph)


@pytest.mark.parametrize(
    ("backbone", "size", "arguments"),
    [
        ("test_vit", SIZE, {}),
        ("swin_tiny_patch4_window7_224", SIZE, SWIN),
        pytest.param("test_efficientnet", 160, {}, marks=pytest.mark.slow),
        pytest.param("test_convnext", SIZE, {}, marks=pytest.mark.slow),
        pytest.param("test_nfnet", SIZE, {}, marks=pytest.mark.slow),
        pytest.param("test_mambaout", SIZE, {}, marks=pytest.mark.slow),
    ],
)
def test_backbones_of_other_kinds_are_exported_too(backbone, size, arguments, tmp_path):
    model = make_model(backbone, size, **arguments)
    write_graph(model, tmp_path / "model.onnx")
    assert_same_answers(model, tmp_path / "model.onnx")


def test_a_graph_that_answers_otherwise_is_refused(graph):
    model = make_model()
    classifier = OnnxClassifier(graph, model.config)
    images = torch.rand(3, 3, SIZE, SIZE)
    differences = measure_parity(model, classifier, images)
    assert set(differences) == set(OUTPUTS) and max(differences.values()) <= TOLERANCE
    with torch.no_grad():
        model.classifier.linear.bias[1] += 10 * TOLERANCE
    with pytest.raises(InputError, match=r"its logits differ by .* in a batch of 1"):
        measure_parity(model, classifier, images)
    with torch.no_grad():
        model.classifier.linear.bias[1] = torch.nan
    with pytest.raises(InputError, match="logits of the model are not finite"):
        measure_parity(model, classifier, images)


def test_the_graph_tells_nothing_of_the_machine_it_was_made_on(graph):
    content = graph.read_bytes()
    assert b".py" not in content and str(Path(exporting.__file__).parents[1]).encode() not in content
    onnx.checker.check_model(graph, full_check=True)
    assert not any(tensor.external_data for tensor in onnx.load(graph).graph.initializer)


def test_the_head_is_what_comes_after_the_map(graph):
    model = onnx.load(graph)
    kinds = {node.name: node.op_type for node in model.graph.node}
    head = head_nodes(model)
    assert {kinds[name] for name in head} >= {"Gemm", "Einsum"}
    assert "Conv" in kinds.values() and not {"Conv", "Relu"} & {kinds[name] for name in head}


def test_a_backbone_that_cannot_be_exported_gets_a_sentence(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("aten::strange is not known")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(InputError, match=r"'test_resnet' cannot be exported to ONNX \(aten::strange is not known\)"):
        write_graph(make_model(), tmp_path / "model.onnx")


def test_weights_that_one_file_cannot_hold_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "MOST_BYTES", 1000)
    with pytest.raises(InputError, match="GiB of weights"):
        write_graph(make_model(), tmp_path / "model.onnx")


# --------------------------------------------------------------------------------------------------------------- int8


def test_int8_is_smaller_and_close_and_its_cost_is_measured(exported, checkpoint, prepared):
    folder = exported
    record = json.loads((folder / "export.json").read_text())
    int8 = record["int8"]
    names = {path.name for path in folder.iterdir()} - {YUNET_FILE}  # which is there if it is on this machine
    assert names == FOLDER | SHIPPED_CODE | {"model_int8.onnx"}
    assert record["bytes"]["model_int8.onnx"] < 0.7 * record["bytes"]["model.onnx"]
    assert int8["frames"] == 24 and int8["calibration_images"] + int8["choosing_images"] == 24
    assert int8["method"] == min(int8["margin_errors"], key=int8["margin_errors"].get)
    assert int8["auc_cost"] == pytest.approx(int8["auc_float32"] - int8["auc_int8"])
    printed = door.describe(record)
    assert f"{int8['auc_float32']:.4f} in float32" in printed and f"{int8['auc_int8']:.4f} in int8" in printed
    assert "model.onnx: 1.5 MB" in printed and "model_int8.onnx: 0.4 MB" in printed

    data = load_evaluation_sets([str(prepared)], "validation")[0]
    images = exporting.read_pixels(data, DCLImageProcessor.from_pretrained(checkpoint), range(24))
    exact, quantised = (OnnxClassifier.from_pretrained(folder, name)(images) for name in record["bytes"])
    assert not torch.equal(exact.logits, quantised.logits)
    spread = exact.logits.std(0).max()
    assert (exact.logits - quantised.logits).abs().mean() < spread
    assert torch.nn.functional.cosine_similarity(exact.embedding, quantised.embedding).min() > 0.98
    types = {node.op_type for node in onnx.load(folder / "model_int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= types


def test_rows_that_set_ranges_and_rows_that_choose_are_others_of_both_classes(prepared):
    data = load_evaluation_sets([str(prepared)], "validation")[0]
    labels = np.array(data.dataset["label"])
    for count in (4, 128):
        setting, choosing = exporting.choose_rows(data, count)
        assert not set(setting) & set(choosing) and len(set(setting)) == len(setting)
        assert {0, 1} == set(labels[setting]) == set(labels[choosing])
    assert len(exporting.choose_rows(data, 4)[0]) == 4


def test_int8_takes_both_classes(tmp_path):
    write_split(tmp_path / "reals", "validation", make_rows(range(2), methods=()))
    data = load_evaluation_sets([str(tmp_path / "reals")], "validation")[0]
    with pytest.raises(InputError, match="has 0 fake rows"):
        exporting.choose_rows(data, 128)


# --------------------------------------------------------------------------------------------------------- the folder


def test_what_is_exported_loads_without_this_package(exported, checkpoint):
    folder = exported
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert config.calibration == {"method": "temperature", "temperature": 1.5} and config.image_size == SIZE
    assert AutoImageProcessor.from_pretrained(folder, trust_remote_code=True).crop == CROP
    record = json.loads((folder / "export.json").read_text())
    assert record["checkpoint"] == checkpoint.name
    assert record["revision"].startswith("sha256:") and record["versions"]["onnxruntime"]


def test_an_export_is_replaced_and_nothing_else_is(checkpoint, known_graph, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DCL_YUNET", str(fetch("yunet")))  # the face detector comes along
    output = tmp_path / "out"
    output.mkdir()  # empty
    for stale in ("", "model_int8.onnx"):
        if stale:
            (output / stale).write_text("of another time")
        run("--model", checkpoint, "--output", output)
        assert {path.name for path in output.iterdir()} == FOLDER | SHIPPED_CODE | {YUNET_FILE}
    assert "on random images" in capsys.readouterr().out
    (tmp_path / "link").symlink_to(output)
    run("--model", checkpoint, "--output", tmp_path / "link")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "link"} and (tmp_path / "link").is_symlink()
    (output / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match=r"it has notes\.txt"):
        run("--model", checkpoint, "--output", output)
    assert (output / "notes.txt").read_text() == "mine"


def test_folders_with_anything_else_and_files_are_refused(checkpoint, tmp_path):
    with pytest.raises(InputError, match="no export alone"):
        check_output(checkpoint)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        check_output(tmp_path / "file")
    check_output(tmp_path / "not there")


def test_an_export_that_fails_leaves_what_was_there(checkpoint, known_graph, tmp_path, monkeypatch):
    output = tmp_path / "out"
    run("--model", checkpoint, "--output", output)
    before = (output / "export.json").read_bytes()
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with pytest.raises(SystemExit, match="does not answer as the model does"):
        run("--model", checkpoint, "--output", output)
    assert (output / "export.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_cannot_be_written_to_gets_a_sentence(checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="nothing can be written"):
        run("--model", checkpoint, "--output", tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--int8"], "pass --dataset"),
        (["--data_root", "data"], "none was named"),
        (["--dataset", "nowhere"], "nowhere"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(checkpoint, tmp_path, flags, sentence):
    with pytest.raises(SystemExit, match=sentence):
        run("--model", checkpoint, "--output", tmp_path / "out", *flags)


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SystemExit, match="nowhere' not found"):
        run("--model", tmp_path / "nowhere", "--output", tmp_path / "out")


def test_packages_that_are_missing_are_named(monkeypatch):
    monkeypatch.setattr(exporting, "versions", lambda *names: dict.fromkeys(names) | {"python": "3", "dcl": None})
    with pytest.raises(InputError, match="pip install onnx onnxscript onnxruntime"):
        exporting.check_packages()


@pytest.mark.slow
def test_the_command_tries_every_way_to_quantise(checkpoint, prepared, tmp_path):
    flags = ["--model", str(checkpoint), "--output", str(tmp_path / "out"), "--int8", "--dataset", str(prepared)]
    done = subprocess.run([sys.executable, "-m", "dcl.export", *flags], check=True, capture_output=True, text=True)
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert set(record["int8"]["margin_errors"]) == {"minmax", "percentile", "entropy"}
    assert done.stdout == f"{door.describe(record)}\nthe export is in {tmp_path / 'out'}\n"
