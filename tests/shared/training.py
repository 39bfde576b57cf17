"""The trainer of a run, as `train.py` builds it, and the comparison of two runs."""

import json

import torch
from safetensors.torch import load_file

from dcl_face_forgery.evaluation.validation import validation_metrics
from dcl_face_forgery.training import run as module

TIMES = ("_runtime", "_per_second")


def build_trainer(run):
    return module.build_trainer(run, validation_metrics)


def history(output_dir):
    """Return what was logged, less what depends on the clock and the final summary."""
    log = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return [
        {name: value for name, value in entry.items() if not name.endswith(TIMES)}
        for entry in log
        if "train_loss" not in entry
    ]


def calibration_of(folder):
    return json.loads((folder / "config.json").read_text())["calibration"]


def familiarity_of(folder):
    return json.loads((folder / "config.json").read_text())["familiarity"]


def assert_same_run(one, other):
    weights, others = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert weights.keys() == others.keys() and "memory.queue" in weights
    for name, value in weights.items():
        assert torch.equal(value, others[name]), name
    assert history(one) == history(other)
    assert calibration_of(one) == calibration_of(other) is not None
    assert familiarity_of(one) == familiarity_of(other) is not None
