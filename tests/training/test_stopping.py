"""Runs that end early: by a signal, a loss that is not finite, early stopping, a full disk, or a second process."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from dcl_face_forgery import train
from dcl_face_forgery.tests.shared.prepared_data import training_flags
from dcl_face_forgery.tests.shared.training import assert_same_run, build_trainer
from dcl_face_forgery.training.arguments import parse_training_run
from dcl_face_forgery.training.trainer import DCLTrainer

REPOSITORY = Path(__file__).parents[2]
RUN = {"max_steps": 7, "image_size": 64}


@pytest.fixture(scope="module")
def finished(prepared, tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train.main(training_flags(prepared, folder, **RUN))
    return folder


def signal_in_step(monkeypatch, step, number):
    original = DCLTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == step:
            os.kill(os.getpid(), number)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(DCLTrainer, "training_step", training_step)


def assert_continues(finished, flags, folder, step):
    assert not (folder / "all_results.json").exists()
    state = json.loads((folder / f"checkpoint-{step}" / "trainer_state.json").read_text())
    assert state["global_step"] == step
    train.main(flags)
    assert_same_run(finished, folder)


@pytest.mark.parametrize(
    "number, workers",
    [
        (signal.SIGTERM, 0),
        pytest.param(signal.SIGINT, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, 2, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_at_the_end_of_the_step_and_the_same_command_goes_on_to_the_same_weights(
    finished, prepared, tmp_path, monkeypatch, capsys, number, workers
):
    flags = training_flags(prepared, tmp_path / "run", **RUN, dataloader_num_workers=workers)
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        signal_in_step(patch, 4, number)
        with pytest.raises(SystemExit) as error:
            train.main(flags)
    assert error.value.code == (130 if number == signal.SIGINT else 143) and signal.getsignal(number) is before
    assert "checkpoint-5" in capsys.readouterr().out
    assert_continues(finished, flags, tmp_path / "run", 5)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_all_processes_of_a_run_ends_it_with_status_143(prepared, tmp_path, number):
    """As a scheduler sends it: to the workers of the data loader, too."""
    settings = {"max_steps": 4000, "save_steps": 1000, "eval_steps": 1000, "dataloader_num_workers": 2}
    folder = tmp_path / "run"
    command = [sys.executable, str(REPOSITORY / "train.py"), *training_flags(prepared, folder, **settings)]
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for line in process.stdout:  # one line a step
        if "'loss'" in line:
            break
    time.sleep(1)
    os.killpg(process.pid, number)
    sent = time.monotonic()
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 143, output[-2000:]
    assert time.monotonic() - sent < 20  # a container gets 10 to 30 seconds, and this machine may be busy
    saved = list(folder.glob("checkpoint-*/trainer_state.json"))
    assert len(saved) == 1 and "The same command continues" in output
    assert not (folder / "all_results.json").exists()


def test_a_signal_inside_an_epoch_validates_nothing_that_the_whole_run_does_not(prepared, tmp_path, monkeypatch):
    settings = {
        "max_steps": -1,
        "num_train_epochs": 3,
        "image_size": 64,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
    }
    train.main(training_flags(prepared, tmp_path / "whole", **settings))
    flags = training_flags(prepared, tmp_path / "run", **settings)
    with monkeypatch.context() as patch:
        signal_in_step(patch, 4, signal.SIGTERM)
        with pytest.raises(SystemExit):
            train.main(flags)
    log = json.loads((tmp_path / "run" / "checkpoint-5" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "eval_auc" in entry] == [3]
    train.main(flags)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_the_checkpoint_of_a_signal_is_kept_beside_the_only_one_that_is_wanted(
    prepared, tmp_path, monkeypatch, capsys
):
    scores = iter([0.9, 0.6, 0.6, 0.6])
    monkeypatch.setattr(
        "dcl_face_forgery.evaluation.validation.validation_metrics",
        lambda prediction: {"auc": next(scores), "eer": 0.1, "accuracy": 0.5, "video_auc": 0.8},
    )
    signal_in_step(monkeypatch, 4, signal.SIGTERM)
    with pytest.raises(SystemExit):
        train.main(training_flags(prepared, tmp_path / "run", **RUN, save_total_limit=1))
    assert (tmp_path / "run" / "checkpoint-5" / "trainer_state.json").exists()
    assert "checkpoint-5 holds all of the training" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------- losses that are not finite


def break_step(monkeypatch, step):
    """Make the weights of the classifier infinite before a step, as a learning rate that is too high does."""
    original = DCLTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step + 1 == step:
            self.model.classifier.linear.weight.data.fill_(torch.inf)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(DCLTrainer, "training_step", training_step)


def assert_finite_checkpoints(folder):
    for path in folder.rglob("model.safetensors"):
        assert all(value.isfinite().all() for value in load_file(path).values()), path


def test_a_loss_that_is_not_finite_ends_the_run_before_anything_is_saved_and_names_the_way_on(
    prepared, tmp_path, monkeypatch
):
    flags = training_flags(prepared, tmp_path / "run", **RUN, logging_steps=3)
    with monkeypatch.context() as patch:
        break_step(patch, 4)
        with pytest.raises(SystemExit) as error:
            train.main(flags)
    sentence = error.value.code
    assert "Not finite at step 4: loss_ce" in sentence and "\n" not in sentence
    videos = re.search(r"videos of the batch: ([^)]*)\)", sentence)[1].split(", ")
    assert 2 < len(videos) <= 8 and any("/" in name for name in videos)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    assert_finite_checkpoints(tmp_path / "run")
    way_on = re.search(r"add (--resume_from_checkpoint \S+) (--learning_rate \S+)\. If", sentence)
    assert way_on[1].endswith("checkpoint-2")
    train.main([*flags, *way_on[1].split(), *way_on[2].split()])
    assert_finite_checkpoints(tmp_path / "run")
    log = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    after = [entry["learning_rate"] for entry in log if "loss" in entry and entry["step"] > 2]
    assert after == pytest.approx([2e-5 * 5 / 7, 2e-5 * 2 / 7])  # a tenth of the default, on its way to 0


def test_weights_that_are_not_finite_are_never_saved(prepared, tmp_path, monkeypatch):
    """The loss of the last step was finite, and its update was not."""
    trainer = build_trainer(parse_training_run(training_flags(prepared, tmp_path / "run", **RUN)))
    trainer.model.memory.queue[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"The weights memory.queue are not finite after step 0. Nothing was saved"):
        trainer.save_model()
    assert not list((tmp_path / "run").glob("*.safetensors"))


# ------------------------------------------------------------------------------------------------------- the log


@pytest.mark.slow
def test_the_first_log_entry_of_a_resumed_run_covers_all_steps_since_the_last_one(prepared, tmp_path, monkeypatch):
    settings = {**RUN, "logging_steps": 3, "save_steps": 2, "eval_steps": 2}
    train.main(training_flags(prepared, tmp_path / "whole", **settings))
    flags = training_flags(prepared, tmp_path / "run", **settings)
    with monkeypatch.context() as patch:
        signal_in_step(patch, 3, signal.SIGTERM)  # in the fourth step, one after the first log entry
        with pytest.raises(SystemExit):
            train.main(flags)
    train.main(flags)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


# ------------------------------------------------------------------------------------------------ one run, one folder


def test_a_folder_in_use_is_refused_and_a_lock_that_is_left_behind_is_not(finished, prepared, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    flags = training_flags(prepared, folder, **RUN)
    with FileLock(folder / ".lock"), pytest.raises(SystemExit, match=r"Another process is training in .*run\. Wait"):
        train.main(flags)
    assert [path.name for path in folder.iterdir() if path.name != ".lock"] == []
    (folder / ".lock").touch()
    train.main(flags)
    assert_same_run(finished, folder)
    assert not (folder / ".lock").exists()


# --------------------------------------------------------------------------------------------------- early stopping


def test_early_stopping_counts_validations_without_a_better_metric_and_a_resumed_run_stops_there_too(
    prepared, tmp_path, monkeypatch
):
    scores = iter([0.6, 0.9, 0.7, 0.8, 0.95, 0.95])

    def validation_metrics(prediction):
        return {"auc": next(scores), "eer": 0.1, "accuracy": 0.5, "video_auc": 0.8}

    monkeypatch.setattr("dcl_face_forgery.evaluation.validation.validation_metrics", validation_metrics)
    settings = {"max_steps": 12, "image_size": 64, "early_stopping_patience": 2, "calibration": "none"}
    flags = training_flags(prepared, tmp_path / "run", **settings)
    train.main(flags)
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["global_step"] == 8 and state["best_global_step"] == 4
    (tmp_path / "run" / "all_results.json").unlink()  # as if it had been killed after its last step
    train.main(flags)
    assert json.loads((tmp_path / "run" / "trainer_state.json").read_text())["global_step"] == 8
