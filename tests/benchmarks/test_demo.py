"""What the README says of the demo: frozen features do not find the forgeries, DCL does, on people it never saw."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest
import yaml

from dcl_face_forgery.benchmarks.demo_table import probe
from dcl_face_forgery.data_scripts.assets import fetch
from dcl_face_forgery.data_scripts.demo import prepare_demo

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    prepare_demo(folder / "demo")
    return folder


def test_a_linear_probe_of_imagenet_features_does_not_find_the_forgeries(data_root):
    settings = SETTINGS | {"data_root": str(data_root), "backbone_weights": str(fetch("efficientnet_lite0"))}
    scores = probe(settings)
    assert len(scores) == 5
    assert mean(scores[method] for method in SETTINGS["methods"]) < 0.80


def test_dcl_finds_the_forgeries_it_was_trained_on_in_people_it_never_saw(data_root, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    run, evaluation, weights = tmp_path / "run", tmp_path / "evaluation", fetch("efficientnet_lite0")
    train = f"train.py -c configs/demo.yaml --backbone_weights {weights} --output_dir {run}"
    evaluate = f"evaluate_dcl.py --model {run} --dataset demo --output_dir {evaluation}"
    for command in (train, evaluate):
        arguments = [*command.split(), "--data_root", str(data_root)]
        subprocess.run([sys.executable, *arguments], check=True, env=environment, cwd=ROOT)
    metrics = json.loads((evaluation / "metrics.json").read_text())["demo"]["by_method"]
    assert mean(metrics[method]["frame"]["auc"] for method in SETTINGS["methods"]) >= 0.85
