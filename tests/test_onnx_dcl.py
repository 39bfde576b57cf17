"""Graphs run by ONNX Runtime: called as the model is, and refused where they are something else."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from dcl_face_forgery import hub_dcl, onnx_dcl
from dcl_face_forgery.configuration_dcl import DCLConfig
from dcl_face_forgery.decision_dcl import calibrate
from dcl_face_forgery.detection.onnx_export import write_code
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.hub_dcl import REFERENCE_FILE
from dcl_face_forgery.onnx_dcl import OnnxClassifier

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SIZE, CHANNELS = 96, 4
CALIBRATION = {"method": "temperature", "temperature": 2.0}


def value(name, shape, kind=onnx.TensorProto.FLOAT):
    return onnx.helper.make_tensor_value_info(name, kind, shape)


def make_graph(inputs=None, outputs=None, weights=None):
    """A graph that pools the channels, with the input and the outputs of an export unless told otherwise."""
    node = onnx.helper.make_node
    nodes = [
        node("AveragePool", ["pixel_values"], ["map"], kernel_shape=[32, 32], strides=[32, 32]),
        node("ReduceMean", ["map", "cells"], ["pooled"], keepdims=0),
        node("MatMul", ["pooled", "weights"], ["logits"]),
        node("ReduceMean", ["map", "channels"], ["evidence"], keepdims=0),
        node("LpNormalization", ["pooled"], ["embedding"], axis=1, p=2),
    ]
    if weights is None:
        weights = onnx.numpy_helper.from_array(np.array([[1, 0], [0, 2], [1, 1]], np.float32), "weights")
    constants = [
        onnx.numpy_helper.from_array(np.array([2, 3]), "cells"),
        onnx.numpy_helper.from_array(np.array([1]), "channels"),
        weights,
    ]
    inputs = [value("pixel_values", ["n", 3, SIZE, SIZE])] if inputs is None else inputs
    if outputs is None:
        outputs = [value("logits", ["n", 2]), value("evidence", ["n", 3, 3]), value("embedding", ["n", 3])]
    graph = onnx.helper.make_graph(nodes, "graph", inputs, outputs, constants)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture
def folder(tmp_path):
    onnx.save_model(make_graph(), tmp_path / "model.onnx")
    DCLConfig(backbone="test_efficientnet", image_size=SIZE, calibration=CALIBRATION).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("count", [1, 3])
def test_a_graph_is_called_as_the_model_is(folder, count):
    classifier = OnnxClassifier.from_pretrained(folder, threads=1)
    pixel_values = torch.randn(count, 3, SIZE, SIZE)
    outputs = classifier(pixel_values)
    pooled = pixel_values.mean((2, 3))
    torch.testing.assert_close(outputs.logits, pooled @ torch.tensor([[1.0, 0], [0, 2], [1, 1]]), atol=1e-5, rtol=0)
    assert outputs.evidence.shape == (count, 3, 3) and outputs.evidence.dtype == torch.float32
    torch.testing.assert_close(outputs.embedding.norm(dim=1), torch.ones(count))
    margins = (outputs.logits[:, 1] - outputs.logits[:, 0]).double().numpy()
    np.testing.assert_allclose(classifier.p_fake(outputs.logits), calibrate(margins, CALIBRATION), atol=1e-6)
    assert classifier.device.type == "cpu" and classifier.config.calibration == CALIBRATION


def test_arrays_and_other_precisions_are_taken_too(folder):
    classifier = OnnxClassifier.from_pretrained(str(folder))
    pixel_values = np.random.default_rng(0).standard_normal((2, 3, SIZE, SIZE))
    exact = classifier(pixel_values).logits
    torch.testing.assert_close(classifier(torch.from_numpy(pixel_values).float()).logits, exact)
    assert not classifier(torch.from_numpy(pixel_values).requires_grad_()).logits.requires_grad


@pytest.mark.parametrize("shape", [(3, SIZE, SIZE), (0, 3, SIZE, SIZE), (1, 3, 64, 64), (1, 1, SIZE, SIZE)])
def test_images_of_another_shape_are_refused(folder, shape):
    with pytest.raises(InputError, match=rf"\(N, 3, {SIZE}, {SIZE}\).* got .*image processor"):
        OnnxClassifier.from_pretrained(folder)(torch.zeros(shape))


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_threads_are_a_whole_number(folder, threads):
    with pytest.raises(InputError, match=rf"threads is {threads!r}\. Choose a whole number"):
        OnnxClassifier.from_pretrained(folder, threads=threads)


def test_without_onnxruntime_one_sentence_says_how_to_install_it(folder, monkeypatch):
    monkeypatch.setattr(onnx_dcl, "onnxruntime", None)
    with pytest.raises(InputError, match="pip install onnxruntime"):
        OnnxClassifier.from_pretrained(folder)


@pytest.mark.parametrize("file", ["../model.onnx", "/model.onnx", "model.pt", "sub/model.onnx"])
def test_only_names_of_graphs_are_opened(folder, file):
    with pytest.raises(InputError, match="not the file name of a graph"):
        OnnxClassifier.from_pretrained(folder, file=file)


def test_a_file_that_is_not_there_is_named_with_one_that_is(folder):
    with pytest.raises(InputError, match=r"Graph model_int8\.onnx not found .*\. Choose model\.onnx"):
        OnnxClassifier.from_pretrained(folder, file="model_int8.onnx")


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"<html>", b"version https://git-lfs.github.com/spec/v1\n"])
def test_what_is_no_graph_is_refused(folder, content):
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(InputError, match=r"cannot run .*model\.onnx.*Export the checkpoint again"):
        OnnxClassifier.from_pretrained(folder)


@pytest.mark.parametrize("text", ["", "[]", json.dumps({"model_type": "dcl", "backbone": 3})])
def test_a_broken_configuration_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        OnnxClassifier.from_pretrained(folder)


@pytest.mark.parametrize(
    "inputs",
    [
        [value("pixel_values", [2, 3, SIZE, SIZE])],
        [value("pixel_values", ["n", 3, 2 * SIZE, 2 * SIZE])],
        [value("pixel_values", ["n", 3, SIZE, SIZE]), value("more", [1])],
    ],
    ids=["fixed batch", "other size", "two inputs"],
)
def test_a_graph_with_another_input_is_refused(folder, inputs):
    onnx.save_model(make_graph(inputs), folder / "model.onnx")
    with pytest.raises(InputError, match="its input is pixel_values"):
        OnnxClassifier.from_pretrained(folder)


def test_a_graph_with_other_outputs_is_refused(folder):
    outputs = [value("logits", ["n", 2]), value("evidence", ["n", 3, 3])]
    onnx.save_model(make_graph(outputs=outputs), folder / "model.onnx")
    with pytest.raises(InputError, match="its outputs are logits"):
        OnnxClassifier.from_pretrained(folder)


def test_a_graph_of_another_number_of_classes_is_refused(folder):
    three = onnx.numpy_helper.from_array(np.ones((3, 3), np.float32), "weights")
    outputs = [value("logits", ["n", "k"]), value("evidence", ["n", 3, 3]), value("embedding", ["n", 3])]
    onnx.save_model(make_graph(outputs=outputs, weights=three), folder / "model.onnx")
    with pytest.raises(InputError, match="its outputs are logits"):
        OnnxClassifier.from_pretrained(folder)


@pytest.mark.parametrize("where", ["absolute", "parent", "link"])
def test_a_graph_reads_no_file_outside_of_its_folder(folder, tmp_path_factory, where):
    outside = tmp_path_factory.mktemp("outside") / "secret.bin"
    outside.write_bytes(np.ones((3, 2), np.float32).tobytes())
    location = {"absolute": str(outside), "parent": f"../{outside.parent.name}/secret.bin", "link": "link.bin"}[where]
    (folder / "link.bin").symlink_to(outside)
    shutil.copy(outside, folder / "own.bin")
    weights = onnx.TensorProto(name="weights", data_type=onnx.TensorProto.FLOAT, dims=[3, 2], data_location=1)
    entry = weights.external_data.add(key="location", value="own.bin")
    (folder / "model.onnx").write_bytes(make_graph(weights=weights).SerializeToString())
    OnnxClassifier.from_pretrained(folder)
    entry.value = location
    assert (folder / location).read_bytes() == outside.read_bytes()
    (folder / "model.onnx").write_bytes(make_graph(weights=weights).SerializeToString())
    with pytest.raises(InputError, match="cannot run"):
        OnnxClassifier.from_pretrained(folder)


def test_what_is_neither_folder_nor_id_is_refused():
    for name in ("no-such-folder", "/no/such/folder", "./nowhere"):
        with pytest.raises(InputError, match="not found: there is no such folder"):
            OnnxClassifier.from_pretrained(name)


def test_an_id_of_the_hub_fetches_the_graph_with_what_runs_it_alone(folder, monkeypatch):
    asked = {}
    monkeypatch.setattr(hub_dcl, "hub_is_reachable", lambda: True)
    monkeypatch.setattr(hub_dcl, "snapshot_download", lambda name, **options: asked.update(options) or str(folder))
    OnnxClassifier.from_pretrained("someone/faces", revision="v1")
    assert asked == {
        "revision": "v1",
        "allow_patterns": ["config.json", "model.onnx", REFERENCE_FILE],
        "ignore_patterns": ["*/*"],
    }


def test_an_id_that_the_hub_does_not_have_is_named():
    with pytest.raises(InputError, match=r"'someone/faces'.*cannot be reached"):
        OnnxClassifier.from_pretrained("someone/faces")


def test_the_code_in_the_folder_loads_as_remote_code(folder):
    write_code(folder)
    remote = get_class_from_dynamic_module("onnx_dcl.OnnxClassifier", str(folder))
    assert remote is not OnnxClassifier and sys.modules[remote.__module__].__file__ != onnx_dcl.__file__
    pixel_values = torch.randn(2, 3, SIZE, SIZE)
    expected = OnnxClassifier.from_pretrained(folder)(pixel_values).logits
    torch.testing.assert_close(remote.from_pretrained(folder)(pixel_values).logits, expected)
