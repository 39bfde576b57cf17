"""What the README says of the demo: its forgeries are not easy."""

from pathlib import Path
from statistics import mean

import pytest
import yaml

from dcl.benchmarks.demo_table import probe
from dcl.data_scripts.assets import fetch
from dcl.data_scripts.demo import prepare_demo

ROOT = Path(__file__).resolve().parents[1]
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
