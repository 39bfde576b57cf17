"""The export: graphs that match their model, limits on what int8 may change, and all-or-nothing output."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoImageProcessor

from dcl_face_forgery.configuration_dcl import DCLConfig
from dcl_face_forgery.data_scripts.assets import fetch
from dcl_face_forgery.detection import export as door
from dcl_face_forgery.detection import onnx_export
from dcl_face_forgery.detection.onnx_export import (
    LIMITS,
    TOLERANCE,
    check_output,
    head_nodes,
    measure_parity,
    write_graph,
)
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.faces_dcl import YUNET_FILE
from dcl_face_forgery.image_processing_dcl import DCLImageProcessor
from dcl_face_forgery.modeling_dcl import REFERENCE_FILE, DCLForImageClassification
from dcl_face_forgery.onnx_dcl import OUTPUTS, OnnxClassifier
from dcl_face_forgery.prepared.splits import load_splits
from dcl_face_forgery.tests.shared.prepared_data import CROP, SHIPPED_CODE, make_rows, write_split

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
    monkeypatch.setattr(onnx_export, "write_graph", lambda model, path: shutil.copy(graph, path))


@pytest.fixture(scope="module")
def exported(checkpoint, graph, prepared, tmp_path_factory):
    """What the command wrote with int8; by the two faster methods."""
    output = tmp_path_factory.mktemp("exports") / "deep" / "tiny-onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "METHODS", ("minmax", "percentile"))
        patch.setattr(onnx_export, "write_graph", lambda model, path: shutil.copy(graph, path))
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
        pytest.param("swin_tiny_patch4_window7_224", SIZE, SWIN, marks=pytest.mark.slow),
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
    assert b".py" not in content and str(Path(onnx_export.__file__).parents[1]).encode() not in content
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
    with pytest.raises(InputError, match=r"'test_resnet': cannot be exported to ONNX \(aten::strange is not known\)"):
        write_graph(make_model(), tmp_path / "model.onnx")


def test_weights_that_one_file_cannot_hold_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "MOST_BYTES", 1000)
    with pytest.raises(InputError, match="GiB of weights, but an ONNX file holds at most 2 GiB"):
        write_graph(make_model(), tmp_path / "model.onnx")


# --------------------------------------------------------------------------------------------------------------- int8


def test_int8_is_smaller_and_close_and_the_change_is_measured(exported, checkpoint, prepared):
    folder = exported
    record = json.loads((folder / "export.json").read_text())
    int8 = record["int8"]
    names = {path.name for path in folder.iterdir()} - {YUNET_FILE}  # which is there if it is on this machine
    assert names == FOLDER | SHIPPED_CODE | {"model_int8.onnx"}
    assert record["bytes"]["model_int8.onnx"] < 0.7 * record["bytes"]["model.onnx"]
    assert (int8["frames"], int8["reals"], int8["fakes"]) == (8, 2, 6)
    assert int8["calibration_images"] + int8["choosing_images"] == 16
    assert int8["method"] == min(int8["margin_errors"], key=int8["margin_errors"].get)

    data = load_splits([str(prepared)], "validation")[0]
    measured = onnx_export.split_rows(data)[2]
    images = onnx_export.read_pixels(data, DCLImageProcessor.from_pretrained(checkpoint), measured)
    exact, quantized = (OnnxClassifier.from_pretrained(folder, name) for name in record["bytes"])
    before, after = exact(images), quantized(images)
    shift = (exact.p_fake(before.logits) - quantized.p_fake(after.logits)).abs()
    assert 0 < int8["mean_shift"] == pytest.approx(shift.mean().item(), abs=1e-6)
    assert int8["largest_shift"] == pytest.approx(shift.max().item(), abs=1e-6)
    assert torch.nn.functional.cosine_similarity(before.embedding, after.embedding).min() > 0.98
    types = {node.op_type for node in onnx.load(folder / "model_int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= types


def test_int8_weights_cannot_overflow_on_a_cpu_without_vnni(exported):
    """Such CPUs add two products of uint8 and int8 in 16 bits."""
    weights = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(exported / "model_int8.onnx").graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8
    ]
    largest = max(abs(values.astype(int)).max() for values in weights)
    assert largest == 64 and 2 * 255 * largest < 2**15


def test_the_convolutions_next_to_the_image_stay_in_floats(exported):
    graph = onnx.load(exported / "model_int8.onnx").graph
    quantized = {output for node in graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    weights = [node.input[1] in quantized for node in graph.node if node.op_type == "Conv"]
    kept = onnx_export.FLOAT_CONVOLUTIONS
    assert len(weights) > kept and not any(weights[:kept]) and all(weights[kept:])


def test_int8_moves_no_margin_on_average_over_the_images_that_choose(exported, checkpoint, prepared):
    data = load_splits([str(prepared)], "validation")[0]
    choosing = onnx_export.split_rows(data)[1]
    images = onnx_export.read_pixels(data, DCLImageProcessor.from_pretrained(checkpoint), choosing)
    exact, quantized = (
        onnx_export.margins_of(OnnxClassifier.from_pretrained(exported, name), images)
        for name in ("model.onnx", "model_int8.onnx")
    )
    difference = quantized - exact
    assert abs(difference.mean()) < 1e-6 < difference.std()


def test_the_printed_table_shows_what_int8_changes_and_what_was_not_checked(exported):
    record = json.loads((exported / "export.json").read_text())
    printed = door.describe(record)
    int8 = record["int8"]
    assert "model.onnx: 1.5 MB" in printed and "model_int8.onnx: 0.5 MB" in printed
    assert f"{int8['auc_float32']:.4f} and {int8['auc_int8']:.4f}" in printed
    for name, line in zip(onnx_export.CHANGES, printed.splitlines()[-4:], strict=True):
        assert onnx_export.CHANGES[name] in line and f"{int8[name]:.4f}" in line
        assert ("too few frames" in line) == (name in ("auc_loss", "flips")) == (name not in int8["limits"])


@pytest.fixture
def fragile(checkpoint, graph, prepared, tmp_path_factory):
    """A checkpoint whose `p_fake` spans its margins, and a graph of it that floats compute as before and int8 cannot.

    Between the first two convolutions one channel is 1,024 times as large: int8 rounds the others to nothing.
    """
    folder = tmp_path_factory.mktemp("fragile") / "checkpoint"
    shutil.copytree(checkpoint, folder)
    model, processor = make_model(), DCLImageProcessor.from_pretrained(checkpoint)
    data = load_splits([str(prepared)], "validation")[0]
    margins = onnx_export.margins_of(
        model.eval().requires_grad_(False), onnx_export.read_pixels(data, processor, range(24))
    )
    low, high = float(margins.min()), float(margins.max())
    slope = 8 / (high - low)  # p_fake goes from .02 to .98
    model.config.calibration = {"method": "platt", "slope": slope, "offset": -slope * (low + high) / 2}
    model.config.save_pretrained(folder)

    rescaled = onnx.load(graph)
    for tensor in rescaled.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).copy()
        if "backbone.conv1.0." in tensor.name:
            values[0] *= 1024
        elif tensor.name.endswith("backbone.conv1.3.weight"):
            values[:, 0] /= 1024
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    path = folder.with_name("model.onnx")
    onnx.save_model(rescaled, path)
    return folder, path


def test_int8_that_moves_scores_too_far_is_refused_unless_forced(
    fragile, prepared, tmp_path, monkeypatch, caplog, capsys
):
    folder, graph = fragile
    monkeypatch.setattr(onnx_export, "METHODS", ("minmax",))
    monkeypatch.setattr(onnx_export, "FLOAT_CONVOLUTIONS", 0)
    monkeypatch.setattr(onnx_export, "write_graph", lambda model, path: shutil.copy(graph, path))
    flags = ["--model", folder, "--output", tmp_path / "out", "--int8", "--dataset", prepared]
    with pytest.raises(SystemExit) as refused:
        run(*flags)
    sentence = str(refused.value)
    assert sentence.startswith("error: int8 changes the scores too much on 8 held-out frames of ")
    assert "mean shift of p_fake 0." in sentence and f"(limit {LIMITS['mean_shift']:g})" in sentence
    assert "Nothing was written" in sentence and "--force" in sentence
    assert not list(tmp_path.iterdir())
    run(*flags, "--force")
    assert (
        "int8 changes the scores too much" in caplog.text and "With --force, model_int8.onnx is written" in caplog.text
    )
    int8 = json.loads((tmp_path / "out" / "export.json").read_text())["int8"]
    assert int8["mean_shift"] > LIMITS["mean_shift"] and "mean_shift" in int8["exceeded"]
    assert "exceeded" in capsys.readouterr().out
    assert (tmp_path / "out" / "model_int8.onnx").is_file()


def test_changes_are_those_of_the_calibrated_scores_and_of_the_default_verdicts():
    labels, before, after = np.array([0, 0, 1, 1]), np.array([-2, -1, 0.1, 3]), np.array([-2, -0.5, -0.1, 3])
    changes = onnx_export.compare_margins(labels, before, after, None)
    shifts = abs(1 / (1 + np.exp(-before)) - 1 / (1 + np.exp(-after)))
    assert changes["mean_shift"] == pytest.approx(shifts.mean())
    assert changes["largest_shift"] == pytest.approx(shifts[1])
    assert (changes["reals"], changes["fakes"], changes["auc_loss"]) == (2, 2, 0)
    assert changes["not_flagged_below"] == changes["flagged_from"] == 0.5 and changes["flips"] == 0.25
    calibration = {"method": "none", "frame": {"thresholds": {"eer": 0.3}}}  # between .269 and .378
    assert onnx_export.compare_margins(labels, before, after, calibration)["flips"] == 0.25
    # .269 becomes .378, and .525 becomes .475: both change sides of an end of the inconclusive range.
    calibration["frame"]["band"] = {"error_rate": 0.1, "low": 0.3, "high": 0.5}
    assert onnx_export.compare_margins(labels, before, after, calibration)["flips"] == 0.5
    assert onnx_export.compare_margins(labels, before, np.array([-2.0, 3, 2, 1]), None)["auc_loss"] == 0.5
    sharper = {"method": "platt", "slope": 2.0, "offset": -1.0}
    assert onnx_export.compare_margins(labels, before, after, sharper)["largest_shift"] == pytest.approx(
        1 / (1 + np.exp(0.8)) - 1 / (1 + np.exp(1.2))
    )


@pytest.mark.parametrize("name", LIMITS)
def test_every_limit_is_checked_where_there_are_enough_frames(name):
    changes = dict(LIMITS, reals=20, fakes=20)
    assert onnx_export.check_limits(changes) == (LIMITS, [])
    changes[name] += 0.001
    assert onnx_export.check_limits(changes)[1] == [name]
    assert onnx_export.check_limits(changes | {name: float("nan")})[1] == [name]
    few = onnx_export.check_limits(changes | {"reals": 19})
    assert set(few[0]) == {"mean_shift", "largest_shift"} and few[1] == ([name] if name in few[0] else [])


def test_families_that_measure_int8_do_not_calibrate_it(prepared, tmp_path):
    write_split(tmp_path / "more", "validation", make_rows(range(5)))
    for source, families in ((prepared, (2, 1)), (tmp_path / "more", (3, 2))):
        data = load_splits([str(source)], "validation")[0]
        labels, names = np.array(data.dataset["label"]), np.array(data.dataset["source_id"])
        setting, choosing, measuring = map(np.array, onnx_export.split_rows(data))
        assert sorted([*setting, *choosing, *measuring]) == list(range(len(labels)))
        assert {0, 1} == set(labels[setting]) == set(labels[choosing]) == set(labels[measuring])
        calibrating = set(names[setting]) | set(names[choosing])
        assert (len(calibrating), len(set(names[measuring]))) == families
        assert not calibrating & set(names[measuring])


def test_no_more_images_calibrate_int8_than_it_takes(prepared, monkeypatch):
    monkeypatch.setattr(onnx_export, "CALIBRATION_IMAGES", 2)
    setting, choosing, measuring = onnx_export.split_rows(load_splits([str(prepared)], "validation")[0])
    assert (len(setting), len(choosing), len(measuring)) == (2, 2, 8)


@pytest.mark.parametrize(("videos", "methods", "name"), [(1, ("swap",), "real"), (2, (), "forged")])
def test_int8_takes_two_families_of_each_class(tmp_path, videos, methods, name):
    write_split(tmp_path / "few", "validation", make_rows(range(videos), methods=methods))
    data = load_splits([str(tmp_path / "few")], "validation")[0]
    with pytest.raises(InputError, match=f"too few families with {name} frames for int8"):
        onnx_export.split_rows(data)


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
    with pytest.raises(SystemExit, match=r"such as notes\.txt"):
        run("--model", checkpoint, "--output", output)
    assert (output / "notes.txt").read_text() == "mine"


def test_folders_with_anything_else_and_files_are_refused(checkpoint, tmp_path):
    with pytest.raises(InputError, match="holds files other than an export"):
        check_output(checkpoint)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        check_output(tmp_path / "file")
    check_output(tmp_path / "not there")


def test_an_export_that_fails_leaves_what_was_there(checkpoint, known_graph, tmp_path, monkeypatch):
    output = tmp_path / "out"
    run("--model", checkpoint, "--output", output)
    before = (output / "export.json").read_bytes()
    monkeypatch.setattr(onnx_export, "TOLERANCE", -1.0)
    with pytest.raises(SystemExit, match="does not match the model"):
        run("--model", checkpoint, "--output", output)
    assert (output / "export.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_cannot_be_written_to_gets_a_sentence(checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"cannot be written.*Choose another --output"):
        run("--model", checkpoint, "--output", tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--int8"], "Pass --dataset"),
        (["--data_root", "data"], "has no effect without --dataset"),
        (["--force"], "Pass --int8"),
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
    monkeypatch.setattr(onnx_export, "PACKAGES", ("onnx", "no_such_package", "nor_this"))
    with pytest.raises(InputError, match=r"Export needs no_such_package, nor_this: pip install .*\[onnx\]"):
        onnx_export.check_packages()


@pytest.mark.slow
def test_the_command_tries_every_way_to_quantize(checkpoint, prepared, tmp_path):
    flags = ["--model", str(checkpoint), "--output", str(tmp_path / "out"), "--int8", "--dataset", str(prepared)]
    done = subprocess.run(
        [sys.executable, "-m", "dcl_face_forgery.detection.export", *flags], check=True, capture_output=True, text=True
    )
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert set(record["int8"]["margin_errors"]) == {"minmax", "percentile", "entropy"}
    assert done.stdout == f"{door.describe(record)}\nExport: {tmp_path / 'out'}\n"
