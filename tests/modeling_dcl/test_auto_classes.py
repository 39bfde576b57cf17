"""A checkpoint is used through the Auto classes alone, where this package is not installed."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from dcl_face_forgery.faces_dcl import YUNET_FILE
from dcl_face_forgery.image_processing_dcl import DCLImageProcessor

CROP = {"kind": "box", "margin": 0.3, "size": 96, "detector": "yunet"}
CALIBRATION = {"method": "temperature", "temperature": 2.5, "frame": {"thresholds": {"eer": 0.4}, "reasons": {}}}

#: What a user runs; `dcl` cannot be imported, as if it were not installed.
PROGRAM = """
import json, sys
sys.modules["dcl_face_forgery"] = None
import numpy as np
import torch
from PIL import Image
from transformers import (AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification,
                          AutoModelForPreTraining, pipeline)

folder, again, picture = sys.argv[1:]
trust = {"trust_remote_code": True}
image = Image.open(picture)
processor = AutoImageProcessor.from_pretrained(folder, **trust)
pixel_values = processor(image, return_tensors="pt").pixel_values
found = {"config": AutoConfig.from_pretrained(folder, **trust).to_dict(), "crop": processor.crop}

def remember(name, folder):
    classifier = AutoModelForImageClassification.from_pretrained(folder, **trust)
    training = AutoModelForPreTraining.from_pretrained(folder, **trust)
    backbone = AutoModel.from_pretrained(folder, **trust)
    with torch.no_grad():
        output = classifier(pixel_values)
        found[name] = {
            "logits": output.logits.tolist(),
            "evidence": output.evidence.tolist(),
            "p_fake": classifier.p_fake(output.logits).tolist(),
            "training logits": training(pixel_values).logits.tolist(),
            "features": backbone(pixel_values).last_hidden_state.mean().item(),
            "filled": training.memory.filled.tolist(),
            "frozen": not any(p.requires_grad for p in training.momentum_dcl.parameters()),
            "modules": sorted({type(m).__module__.split(".")[0] for m in (classifier, training, backbone)}),
        }
    return classifier, training

classifier, training = remember("loaded", folder)
training.save_pretrained(again)
processor.save_pretrained(again)
remember("saved again", again)
detect = pipeline("image-classification", model=folder, **trust)
found["pipeline"] = detect(image)
found["batch"] = detect([image] * 3, batch_size=2)
grey = np.asarray(image.convert("L"))
found["16 bits"], found["8 bits"] = detect(grey.astype(np.uint16) * 257), detect(Image.fromarray(grey))
found["pipeline of objects"] = pipeline("image-classification", model=classifier, image_processor=processor)(image)
found["own"] = [name for name in sys.modules if name.startswith("dcl_face_forgery.")]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from dcl_face_forgery.configuration_dcl import DCLConfig
    from dcl_face_forgery.modeling_dcl import DCLForPreTraining

    torch.manual_seed(0)
    config = DCLConfig(backbone="test_efficientnet", image_size=96, queue_size=16, seen_methods=["swap"])
    config.calibration = CALIBRATION
    model = DCLForPreTraining(config)
    torch.nn.init.normal_(model.classifier.linear.weight)
    model.memory.update(torch.nn.functional.normalize(torch.randn(4, 9), dim=1), torch.tensor([0, 1, 1, 1]))
    folder = tmp_path_factory.mktemp("hub") / "my-model.v1"  # a name that is no Python identifier
    model.save_pretrained(folder)
    DCLImageProcessor(size={"height": 96, "width": 96}, crop=CROP).save_pretrained(folder)
    return model.eval(), folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "face.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def found(checkpoint, picture, tmp_path_factory):
    """What the program finds, in one process of its own: importing transformers is most of its time."""
    again = tmp_path_factory.mktemp("again")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(checkpoint[1]), str(again), str(picture)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=again,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) | {"folder again": again, "stderr": done.stderr}


@pytest.fixture(scope="module")
def expected(checkpoint, picture):
    model, folder = checkpoint
    image = DCLImageProcessor.from_pretrained(folder)(Image.open(picture), return_tensors="pt")
    with torch.no_grad():
        return model(image.pixel_values)


@pytest.mark.parametrize("name", ["loaded", "saved again"])
def test_every_class_gives_what_the_model_gave(found, expected, name):
    result = found[name]
    torch.testing.assert_close(torch.tensor(result["logits"]), expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.tensor(result["training logits"]), expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.tensor(result["evidence"]), expected.evidence, rtol=0, atol=1e-5)
    margins = expected.logits[:, 1] - expected.logits[:, 0]
    torch.testing.assert_close(torch.tensor(result["p_fake"]), (margins / 2.5).sigmoid(), rtol=0, atol=1e-5)
    assert result["features"] == pytest.approx(expected.feature_map.mean().item(), abs=1e-5)
    assert result["filled"] == [1, 3]
    assert result["frozen"]


def test_the_code_is_that_of_the_checkpoint(found):
    assert found["own"] == []
    assert found["loaded"]["modules"] == ["transformers_modules"]


def test_settings_come_with_the_checkpoint(found):
    assert found["config"]["model_type"] == "dcl"
    assert found["config"]["id2label"] == {"0": "real", "1": "fake"}
    assert found["config"]["seen_methods"] == ["swap"]
    assert found["config"]["calibration"] == CALIBRATION
    assert found["crop"] == CROP


def test_the_pipeline_names_real_and_fake(found, expected):
    fake = expected.logits.softmax(1)[0, 1].item()
    for verdict in (found["pipeline"], *found["batch"], found["pipeline of objects"]):
        scores = {entry["label"]: entry["score"] for entry in verdict}
        assert scores == pytest.approx({"real": 1 - fake, "fake": fake}, abs=1e-5)


def test_the_pipeline_scales_arrays_of_16_bits(found):
    assert found["16 bits"] == found["8 bits"]


def test_loading_says_nothing_of_lost_weights(found):
    for complaint in ("MISSING", "UNEXPECTED", "MISMATCH", "newly initialized", "not used"):
        assert complaint not in found["stderr"]


def test_no_file_is_a_pickle(checkpoint, found):
    for folder in (checkpoint[1], found["folder again"]):
        names = {path.name for path in folder.iterdir()}
        assert {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_dcl.py"} <= names
        suffixes = {path.suffix for path in folder.iterdir() if path.is_file() and path.name != YUNET_FILE}
        assert suffixes == {".json", ".safetensors", ".py"}
