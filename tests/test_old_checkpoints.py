"""A checkpoint of version 0.1, when the package was imported as `dcl`, still loads and answers as it did.

`fixtures/checkpoint_0_1.zip` is a `DCLForPreTraining` that the code of that version saved (commit 21a39d3), with its
code files, a calibration and what tells unfamiliar faces. The face detector and the reference network are the same
files as today's and are added here. `expected.json` holds what that code answered.
"""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from dcl_face_forgery.data_scripts.assets import fetch
from dcl_face_forgery.faces_dcl import YUNET_FILE
from dcl_face_forgery.hub_dcl import REFERENCE_FILE
from dcl_face_forgery.image_processing_dcl import DCLImageProcessor
from dcl_face_forgery.modeling_dcl import DCLForImageClassification, DCLForPreTraining
from dcl_face_forgery.pipeline_dcl import FaceForgeryDetectionPipeline

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
ARCHIVE = Path(__file__).parent / "fixtures" / "checkpoint_0_1.zip"

#: The checkpoint's own code does the work: neither package can be imported.
PROGRAM = """
import json, sys
sys.modules["dcl_face_forgery"] = sys.modules["dcl"] = None
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoModelForPreTraining, pipeline

folder, *pictures = sys.argv[1:]
trust = {"trust_remote_code": True}
ramp = (torch.arange(2 * 3 * 96 * 96) % 251).reshape(2, 3, 96, 96) / 125 - 1
found = {}
for loader in (AutoModelForImageClassification, AutoModelForPreTraining):
    model = loader.from_pretrained(folder, **trust)
    with torch.no_grad():
        found[loader.__name__] = model(ramp).logits.tolist()
found["crop"] = AutoImageProcessor.from_pretrained(folder, **trust).crop
detect = pipeline("face-forgery-detection", model=folder, **trust)
found["results"] = [detect.to_json(detect(picture)) for picture in pictures]
print(json.dumps(found))
"""


#: From version 19 on, PyAV no longer takes `metadata_errors`.
PYAV_19 = """
import av
av.__version__, opened = "19.0.0", av.open
def open_as_19(file, mode=None, *, options=None, **others):
    if others:
        raise TypeError(f"open() got an unexpected keyword argument {min(others)!r}")
    return opened(file, mode, options=options)
av.open = open_as_19
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("old") / "checkpoint"
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
    shutil.copy(fetch("yunet"), folder / YUNET_FILE)
    shutil.copy(ROOT / REFERENCE_FILE, folder)
    return folder


@pytest.fixture(scope="module")
def expected(checkpoint):
    return json.loads((checkpoint / "expected.json").read_text())


@pytest.fixture(scope="module")
def ramp():
    return (torch.arange(2 * 3 * 96 * 96) % 251).reshape(2, 3, 96, 96) / 125 - 1


def check_results(results, expected):
    for result, then in zip(results, expected["results"].values(), strict=True):
        assert result["verdict"] == then["verdict"]
        for face, face_then in zip(result["faces"], then["faces"], strict=True):
            assert face["verdict"] == face_then["verdict"]
            assert face["p_fake"] == pytest.approx(face_then["p_fake"], abs=1e-4)
            assert face["box"] == pytest.approx(face_then["box"], abs=0.01)


def test_auto_classes_load_it_with_its_own_code(checkpoint, expected):
    pictures = [str(EXAMPLES / name) for name in expected["results"]]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(checkpoint), *pictures],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=checkpoint.parent,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for loader in ("AutoModelForImageClassification", "AutoModelForPreTraining"):
        torch.testing.assert_close(torch.tensor(found[loader]), torch.tensor(expected["logits"]), rtol=0, atol=1e-5)
    assert found["crop"]["detector"] == "yunet_2023mar_multiscale"
    check_results(found["results"], expected)


@pytest.mark.parametrize("kind", [DCLForImageClassification, DCLForPreTraining])
def test_this_package_loads_it(checkpoint, expected, ramp, kind):
    model, loading = kind.from_pretrained(checkpoint, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["mismatched_keys"]
    with torch.no_grad():
        outputs = model.eval()(ramp)
    torch.testing.assert_close(outputs.logits, torch.tensor(expected["logits"]), rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs.evidence, torch.tensor(expected["evidence"]), rtol=0, atol=1e-5)
    assert model.config.calibration["method"] == "platt" and model.config.familiarity["statistics"]
    if kind is DCLForPreTraining:
        assert model.memory.filled.tolist() == expected["queue_filled"]


def test_detection_answers_as_it_did(checkpoint, expected):
    detect = FaceForgeryDetectionPipeline.from_pretrained(checkpoint)
    check_results([detect.to_json(detect(EXAMPLES / name)) for name in expected["results"]], expected)


@pytest.mark.slow
def test_its_own_code_reads_videos_with_pyav_19_only_when_it_is_saved_again(checkpoint, tmp_path):
    folder = tmp_path / "runs" / "demo"
    shutil.copytree(checkpoint, folder)
    video = str(EXAMPLES / "portrait_forged_from_2_s.mp4")

    def run():
        command = [sys.executable, "-c", PYAV_19 + PROGRAM, str(folder), video]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)

    old = run()
    assert old.returncode and "metadata_errors" in old.stderr
    page = (ROOT / "docs" / "detection.md").read_text()
    block = page.partition("Save it again to update its code:")[2].partition("```python")[2].partition("```")[0]
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    new = run()
    assert new.returncode == 0, new.stderr
    (result,) = json.loads(new.stdout.splitlines()[-1])["results"]
    assert result["kind"] == "video" and result["people"]


def test_saved_again_it_brings_the_code_of_today(checkpoint, expected, ramp, tmp_path):
    DCLForImageClassification.from_pretrained(checkpoint).save_pretrained(tmp_path)
    DCLImageProcessor.from_pretrained(checkpoint).save_pretrained(tmp_path)
    assert (tmp_path / "decision_dcl.py").is_file() and not (tmp_path / "verdicts_dcl.py").exists()
    with torch.no_grad():
        logits = DCLForImageClassification.from_pretrained(tmp_path).eval()(ramp).logits
    torch.testing.assert_close(logits, torch.tensor(expected["logits"]), rtol=0, atol=1e-5)
