"""The training command: one run from flags to files, stopped and resumed, and each bad input with its sentence."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from dcl_face_forgery import evaluate_dcl, train
from dcl_face_forgery.abstention_dcl import distances
from dcl_face_forgery.configuration_dcl import DCLConfig
from dcl_face_forgery.decision_dcl import calibrate
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.evaluation.calibration import fit_calibration
from dcl_face_forgery.evaluation.scoring.checkpoints import find_checkpoint
from dcl_face_forgery.evaluation.scoring.predictions import load_checkpoint, predict
from dcl_face_forgery.evaluation.validation import validation_metrics
from dcl_face_forgery.faces_dcl import YUNET_FILE
from dcl_face_forgery.image_processing_dcl import DCLImageProcessor
from dcl_face_forgery.modeling_dcl import REFERENCE_FILE, DCLForPreTraining, ReferenceNetwork, find_reference
from dcl_face_forgery.prepared.splits import load_splits
from dcl_face_forgery.tests.shared.prepared_data import CROP, SHIPPED_CODE, make_rows, training_flags, write_split
from dcl_face_forgery.tests.shared.training import assert_same_run, build_trainer, calibration_of, familiarity_of
from dcl_face_forgery.training.arguments import parse_training_run
from dcl_face_forgery.training.settings import ModelArguments
from dcl_face_forgery.training.trainer import DCLTrainer, last_complete_checkpoint

REPOSITORY = Path(__file__).parents[2]


class StoppedError(Exception):
    """What stands for a killed process."""


def stop_after(monkeypatch, step):
    """Make the run break off inside the step after this one, as a killed process does: nothing is tidied up."""
    original = DCLTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == step:
            raise StoppedError
        return original(self, *args, **kwargs)

    monkeypatch.setattr(DCLTrainer, "training_step", training_step)


RUN = {"max_steps": 7, "image_size": 64}


@pytest.fixture(scope="module")
def finished(prepared, tmp_path_factory):
    """The folder of an uninterrupted run of 7 steps, 3 an epoch, saved after every second."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train.main(training_flags(prepared, folder, **RUN))
    return folder


# -------------------------------------------------------------------------------------------- what a run leaves behind


def test_a_run_leaves_a_checkpoint_a_card_its_settings_and_its_results(finished):
    names = {path.name for path in finished.iterdir() if path.is_file()}
    assert names - {YUNET_FILE} == SHIPPED_CODE | {
        REFERENCE_FILE,
        "README.md",
        "all_results.json",
        "config.json",
        "learning_curve.png",
        "model.safetensors",
        "preprocessor_config.json",
        "run_settings.json",
        "trainer_state.json",
        "training_args.json",
        "views.png",
    }
    results = json.loads((finished / "all_results.json").read_text())
    assert {"train_loss", "eval_auc", "eval_eer", "eval_accuracy", "eval_video_auc"} <= results.keys()
    config = json.loads((finished / "config.json").read_text())
    assert config["seen_methods"] == ["swap", "warp"]
    assert json.loads((finished / "preprocessor_config.json").read_text())["crop"] == CROP


def test_no_pickle_is_needed_to_load_a_checkpoint(finished, tmp_path):
    for folder in (finished, *finished.glob("checkpoint-*")):
        assert not list(folder.glob("*.bin"))
        copied = tmp_path / folder.name
        shutil.copytree(folder, copied, ignore=shutil.ignore_patterns("*.pt", "*.pth", "checkpoint-*"))
        images = torch.rand(2, 3, 64, 64)
        loaded = AutoModelForImageClassification.from_pretrained(copied, trust_remote_code=True)
        trained = DCLForPreTraining.from_pretrained(folder).eval()
        with torch.no_grad():
            assert torch.equal(loaded(images).logits, trained(images).logits)


def test_the_calibration_is_fitted_on_the_validation_split_alone(finished, prepared, tmp_path):
    data = tmp_path / "textures"
    shutil.copytree(prepared, data)
    rows = make_rows(range(6, 9))  # those of the validation split, every label wrong
    write_split(data, "test", [{**row, "label": 1 - row["label"]} for row in rows])
    train.main(training_flags(data, tmp_path / "run", **RUN))
    assert calibration_of(tmp_path / "run") == calibration_of(finished)

    # A test split of what the validation split was: an evaluation finds the same numbers there.
    write_split(tmp_path / "chosen", "test", [row for row in rows if row["method"] != "unseen"])
    folders = ["--model", finished, "--dataset", tmp_path / "chosen", "--output_dir", tmp_path / "out"]
    evaluate_dcl.main([*map(str, folders), "--device", "cpu", "--bootstrap", "0"])
    predictions = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    calibration, again = calibration_of(finished), fit_calibration(predictions)
    assert calibration["method"] == again["method"]
    assert (calibration["frame"]["reals"], calibration["video"]["reals"]) == (6, 3)
    p_fake = calibrate(predictions.logit, calibration)
    np.testing.assert_allclose(predictions.p_fake, p_fake, rtol=1e-12)
    at, (reals, fakes) = calibration["frame"]["thresholds"]["eer"], (p_fake[predictions.label == n] for n in (0, 1))
    gaps = [abs((reals >= threshold).mean() - (fakes < threshold).mean()) for threshold in (at, *p_fake)]
    assert gaps[0] == min(gaps)
    for level in ("frame", "video"):
        assert again[level]["thresholds"]["eer"] == pytest.approx(calibration[level]["thresholds"]["eer"], abs=1e-5)
        assert again[level]["reasons"] == calibration[level]["reasons"]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())["chosen"]
    frame = metrics["frame"]
    assert frame["thresholds"] == calibration["frame"]["thresholds"]
    assert frame["fpr_at_threshold_eer"] == (reals >= at).mean()


def test_the_evidence_threshold_is_the_best_on_the_validation_split(prepared, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    train.main(training_flags(prepared, run, max_steps=1, image_size=192))  # 6 x 6 cells
    folders = ["--model", run, "--dataset", prepared, "--split", "validation", "--output_dir", out]
    evaluate_dcl.main([*map(str, folders), "--device", "cpu", "--bootstrap", "0"])
    (metrics,) = json.loads((out / "metrics.json").read_text()).values()
    found, chosen = metrics["localisation"], calibration_of(run)["evidence_threshold"]
    assert found["evidence_threshold"] == chosen is not None
    model, processor = load_checkpoint(find_checkpoint(str(run)), torch.device("cpu"))
    (data,) = load_splits([str(prepared)], "validation")
    batches = list(predict(model, processor, data))
    evidence, forged = (np.concatenate([getattr(batch, name) for batch in batches]) for name in ("evidence", "forged"))
    best = max(((evidence >= at) & forged).sum() / ((evidence >= at) | forged).sum() for at in evidence)
    # Sums in another order may move a cell over the threshold.
    assert found["iou"] == pytest.approx(best, abs=0.01) and best > found["iou_all_forged"] + 0.01


def test_a_run_stores_what_it_has_seen_in_the_pass_that_calibrates(prepared, tmp_path, monkeypatch, finished):
    data, passes = tmp_path / "textures", []
    shutil.copytree(prepared, data)
    write_split(data, "validation", make_rows(range(6, 14), frames=5))

    def watched(*args, **kwargs):
        passes.append(kwargs)
        return predict(*args, **kwargs)

    monkeypatch.setattr("dcl_face_forgery.evaluation.validation.predict", watched)
    train.main(training_flags(data, tmp_path / "run", max_steps=1, image_size=64, dataloader_num_workers=1))
    assert len(passes) == 1
    found = familiarity_of(tmp_path / "run")
    assert (found["faces"], found["families"]) == (120, 8) and found["distance_threshold"] > 0
    model, processor = load_checkpoint(find_checkpoint(str(tmp_path / "run")), torch.device("cpu"))
    (rows,) = load_splits([str(data)], "validation")
    rows.dataset = rows.dataset.select([i for i, method in enumerate(rows.dataset["method"]) if method != "unseen"])
    batches = list(predict(model, processor, rows, reference=ReferenceNetwork(find_reference())))
    sharpness = np.concatenate([batch.sharpness for batch in batches])
    assert (sharpness < found["sharpness_threshold"]).mean() <= 0.01 and sharpness.min() > 0
    far = distances(np.concatenate([batch.features for batch in batches]), found)
    assert (far > found["distance_threshold"]).mean() <= 0.01
    assert "(120 faces of 8 families)" in (tmp_path / "run" / "README.md").read_text()
    # A split too small for it says so.
    assert "18 faces of 3 families are too few" in familiarity_of(finished)["reason"]
    assert "18 faces of 3 families are too few" in (finished / "README.md").read_text()


def test_nothing_but_the_end_of_a_run_is_calibrated(finished, prepared, tmp_path):
    assert calibration_of(finished) is not None
    assert (
        "Thresholds on the p_fake of a frame, from 6 reals, 12 fakes, 3 families"
        in (finished / "README.md").read_text()
    )
    for folder in finished.glob("checkpoint-*"):
        assert calibration_of(folder) is familiarity_of(folder) is None
    flags = training_flags(prepared, tmp_path / "run", **RUN, model=finished)
    trainer = build_trainer(parse_training_run(flags))
    assert trainer.model.config.calibration is trainer.model.config.familiarity is None
    train.main(training_flags(prepared, tmp_path / "none", max_steps=1, image_size=64, calibration="none"))
    assert calibration_of(tmp_path / "none") is familiarity_of(tmp_path / "none") is None
    assert "Not calibrated" in (tmp_path / "none" / "README.md").read_text()


def test_a_corrupt_image_at_the_calibration_leaves_the_trained_model(tmp_path):
    for split, videos in (("train", range(4)), ("validation", range(4, 6))):
        rows = make_rows(videos)
        if split == "validation":
            rows[5]["image"] = {"bytes": b"no image", "path": None}
            rows[6]["mask"] = {"bytes": b"no mask", "path": None}
        write_split(tmp_path / "data", split, rows)
    never = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    flags = training_flags(tmp_path / "data", tmp_path / "run", max_steps=1, image_size=64, **never)
    with pytest.raises(SystemExit, match=r"row 4 \(the first is 0\) of"):
        train.main(flags)
    assert (tmp_path / "run" / "model.safetensors").exists() and calibration_of(tmp_path / "run") is None
    train.main([*flags, "--skip_corrupt"])
    assert calibration_of(tmp_path / "run")["frame"]["reals"] == 4


def test_validation_looks_at_its_own_split_and_at_the_chosen_methods_only(tmp_path, prepared):
    data = tmp_path / "data"
    shutil.copytree(prepared, data)
    (data / "test.parquet").write_bytes(b"nobody may look at this")
    run = parse_training_run(training_flags(data, tmp_path / "run"))
    trainer = build_trainer(run)
    learned, chosen = trainer.train_dataset.rows, trainer.eval_dataset.rows
    for rows, split in ((learned, "train"), (chosen, "validation")):
        table = pq.read_table(data / f"{split}.parquet").to_pandas()
        expected = table[table.method != "unseen"]
        assert rows["video_id"] == list(expected.video_id) and set(rows["method"]) == {"original", "swap", "warp"}
    assert not set(learned["source_id"]) & set(chosen["source_id"])


def test_the_best_checkpoint_of_the_validation_is_what_is_kept(prepared, tmp_path, monkeypatch):
    scores, seen = [0.6, 0.9, 0.7], []

    def validation_metrics(prediction):
        auc = scores[len(seen)] if len(seen) < 3 else 0.9
        seen.append(auc)
        return {"auc": auc, "eer": 0.1, "accuracy": 0.5, "video_auc": 0.8}

    weights = []
    original = DCLTrainer._save_checkpoint

    def save_checkpoint(self, model, trial):
        weights.append({name: value.clone() for name, value in self.model.state_dict().items()})
        return original(self, model, trial)

    monkeypatch.setattr("dcl_face_forgery.evaluation.validation.validation_metrics", validation_metrics)
    monkeypatch.setattr(DCLTrainer, "_save_checkpoint", save_checkpoint)
    train.main(training_flags(prepared, tmp_path / "run", max_steps=6, image_size=64, learning_rate=0.01))
    kept = load_file(tmp_path / "run" / "model.safetensors")
    for name, value in kept.items():
        assert torch.equal(value, weights[1][name]), name
    assert any(not torch.equal(kept[name], weights[2][name]) for name in kept)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "| Frame AUC | 0.9000 |" in card and "Optimizer steps: 4." in card


# ------------------------------------------------------------------------------------------------- stopped and resumed


@pytest.mark.parametrize("step, workers", [(3, 0), pytest.param(5, 2, marks=pytest.mark.slow)])
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(finished, prepared, tmp_path, monkeypatch, step, workers):
    flags = training_flags(prepared, tmp_path / "run", **RUN, dataloader_num_workers=workers)
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(StoppedError):
            train.main(flags)
    assert not (tmp_path / "run" / "all_results.json").exists()
    train.main(flags)
    assert_same_run(finished, tmp_path / "run")


def test_a_run_that_was_stopped_before_its_first_checkpoint_starts_again(finished, prepared, tmp_path, monkeypatch):
    flags = training_flags(prepared, tmp_path / "run", **RUN)
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(StoppedError):
            train.main(flags)
    train.main(flags)
    assert_same_run(finished, tmp_path / "run")


@pytest.mark.parametrize("damage", ["no state", "half a state"])
def test_a_checkpoint_that_was_not_written_to_its_end_is_left_aside(finished, prepared, tmp_path, damage):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "all_results.json").unlink()
    (folder / "trainer_state.json").unlink()
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    state = last / "trainer_state.json"
    state.write_text(state.read_text()[:200]) if damage == "half a state" else state.unlink()
    (last / "model.safetensors").write_bytes(b"half a file")
    train.main(training_flags(prepared, folder, **RUN))
    assert_same_run(finished, folder)


def test_a_run_stopped_after_its_last_step_takes_no_further_step(finished, prepared, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "all_results.json").unlink()
    (folder / "model.safetensors").unlink()
    train.main(training_flags(prepared, folder, **RUN))
    assert_same_run(finished, folder)
    assert (folder / "all_results.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 3, 4])
def test_resuming_with_accumulation_and_epochs(prepared, tmp_path, monkeypatch, step):
    settings = {
        "max_steps": -1,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,  # 6 batches an epoch: the last step of each has 2
        "contrastive_warmup_steps": -1,
        "contrastive_warmup_epochs": 1,
        "lr_step_epochs": 1,
        "save_steps": 1,
        "eval_steps": 1,
        "save_total_limit": 2,
    }
    train.main(training_flags(prepared, tmp_path / "whole", **settings))
    flags = training_flags(prepared, tmp_path / "run", **settings)
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(StoppedError):
            train.main(flags)
    train.main(flags)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_finished_run_says_so_and_does_nothing(finished, prepared, capsys, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    monkeypatch.setattr("dcl_face_forgery.training.run.build_trainer", lambda *_: pytest.fail("it trains again"))
    train.main(training_flags(prepared, finished, **RUN))
    assert "finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_other_settings_are_not_mixed_into_a_run(finished, prepared, tmp_path):
    before = (finished / "run_settings.json").read_bytes()
    for changed in ({"temperature": 0.5}, {"seed": 1}, {"methods": ["swap"]}, {"srm_probability": 0.1}):
        with pytest.raises(SystemExit) as error:
            train.main(training_flags(prepared, finished, **RUN, **changed))
        assert next(iter(changed)) in str(error.value) and "--overwrite" in str(error.value)
    assert (finished / "run_settings.json").read_bytes() == before


def test_overwrite_starts_again(finished, prepared, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    train.main([*training_flags(prepared, folder, **{**RUN, "max_steps": 2}), "--overwrite"])
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-2"}
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 2
    assert json.loads((folder / "run_settings.json").read_text())["max_steps"] == 2


def test_a_command_that_failed_does_not_stand_in_the_way_of_the_right_one(prepared, tmp_path):
    with pytest.raises(SystemExit):
        train.main(training_flags(tmp_path / "misspelt", tmp_path / "run"))
    train.main(training_flags(prepared, tmp_path / "run", max_steps=1, image_size=64))
    assert (tmp_path / "run" / "all_results.json").exists()


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_weights(prepared, tmp_path):
    settings = {"max_steps": 12, "save_steps": 3, "eval_steps": 3, "dataloader_num_workers": 2}
    train.main(training_flags(prepared, tmp_path / "whole", **settings))
    folder = tmp_path / "run"
    command = [sys.executable, str(REPOSITORY / "train.py"), *training_flags(prepared, folder, **settings)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (folder / "checkpoint-6").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "all_results.json").exists()
    subprocess.run(command, check=True, capture_output=True)
    assert_same_run(tmp_path / "whole", folder)


# ----------------------------------------------------------------------------------------------- further ways to run


def test_training_goes_on_from_a_checkpoint(finished, prepared, tmp_path):
    run = parse_training_run(training_flags(prepared, tmp_path / "run", **RUN, model=finished))
    model = build_trainer(run).model
    for name, value in load_file(finished / "model.safetensors").items():
        assert torch.equal(model.state_dict()[name], value), name


def test_settings_that_are_given_replace_those_of_the_checkpoint_to_start_from(finished, prepared, tmp_path, caplog):
    flags = ["--dataset", str(prepared), "--output_dir", str(tmp_path / "run"), "--model", str(finished)]
    given = {"temperature": 0.5, "momentum": 0.5, "dropout": 0.4, "hard_samples": 1, "mask_threshold": 0.3}
    for name, value in given.items():
        flags += [f"--{name}", str(value)]
    run = parse_training_run([*flags, "--no_self_pairs", "--use_cpu"])
    model = build_trainer(run).model
    assert {name: getattr(model.config, name) for name in given} == given and not model.config.self_pairs
    assert model.classifier.dropout.p == 0.4 and model.memory.hard_samples == 1
    assert model.config.image_size == 64 and model.config.queue_size == 16  # the checkpoint's own
    for name, value in load_file(finished / "model.safetensors").items():
        assert torch.equal(model.state_dict()[name], value), name
    assert "starts" not in caplog.text
    record = run.record()
    assert record["temperature"] == 0.5 and "image_size" not in record


@pytest.mark.parametrize("changed", [{"queue_size": 32}, pytest.param({"image_size": 96}, marks=pytest.mark.slow)])
def test_a_memory_of_another_shape_starts_empty_and_says_so(finished, prepared, tmp_path, caplog, capsys, changed):
    run = parse_training_run(
        training_flags(prepared, tmp_path / "run", **{**RUN, "queue_size": 16, **changed}, model=finished)
    )
    model, processor = build_trainer(run).model, build_trainer(run).processing_class
    assert caplog.messages.count("The memory starts empty: the checkpoint has none of this shape.") == 2
    assert "MISMATCH" not in capsys.readouterr().err
    assert model.memory.filled.tolist() == [0, 0] and not model.memory.prototype.any()
    saved = load_file(finished / "model.safetensors")
    for name, value in model.state_dict().items():
        assert name.startswith("memory.") or torch.equal(value, saved[name]), name
    assert processor.size["height"] == model.config.image_size
    train.main(training_flags(prepared, tmp_path / "run", **{**RUN, **changed, "max_steps": 1}, model=finished))


@pytest.mark.parametrize(
    "flag, named", [("--embedding=pooled", "embedding is 'pooled'"), ("--backbone=test_vit", "backbone is")]
)
def test_settings_that_fix_shapes_are_those_of_the_checkpoint(finished, prepared, tmp_path, flag, named):
    flags = ["--dataset", str(prepared), "--output_dir", str(tmp_path / "run"), "--model", str(finished)]
    with pytest.raises(InputError, match=rf"{named}.*and its weights fit nothing else. Leave \w+ out"):
        build_trainer(parse_training_run([*flags, flag]))


def test_a_count_of_hard_samples_replaces_the_share_of_a_checkpoint(tmp_path):
    share = DCLConfig(backbone="test_efficientnet", image_size=64, queue_size=65536, hard_share=0.5)
    arguments = ModelArguments(model="a checkpoint", hard_samples=40000)
    config = arguments.apply_to(share, {"hard_samples"})
    assert (config.hard_samples, config.hard_share, config.queue_size) == (40000, None, 65536)
    assert arguments.apply_to(share, ()).hard_share == 0.5


def test_a_size_that_the_weights_do_not_fit_is_refused(prepared, tmp_path):
    vit = DCLForPreTraining(DCLConfig(backbone="test_vit", image_size=64, queue_size=16, hard_samples=2))
    vit.save_pretrained(tmp_path / "vit")
    DCLImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "vit")
    flags = ["--dataset", str(prepared), "--output_dir", str(tmp_path / "run"), "--model", str(tmp_path / "vit")]
    with pytest.raises(InputError, match=r"do not fit image_size 96 \(such as .*pos_embed\). Leave image_size out"):
        build_trainer(parse_training_run([*flags, "--image_size=96"]))


def test_a_checkpoint_for_inference_has_half_the_weights_and_can_be_trained_further(prepared, tmp_path, caplog):
    train.main(training_flags(prepared, tmp_path / "run", **RUN, save_for_inference=True))
    kept, whole = (
        load_file(tmp_path / "run" / "model.safetensors"),
        load_file(tmp_path / "run" / "checkpoint-6" / "model.safetensors"),
    )
    assert {name.partition(".")[0] for name in kept} == {"dcl", "classifier"}
    assert {"momentum_dcl.backbone.conv_stem.weight", "memory.queue"} <= whole.keys()
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run", trust_remote_code=True)
    assert torch.equal(model.classifier.linear.weight, kept["classifier.linear.weight"])
    train.main(training_flags(prepared, tmp_path / "more", max_steps=1, image_size=64, model=tmp_path / "run"))
    assert "The embedding head starts anew" in caplog.text and "The memory starts empty" in caplog.text


def test_another_data_set_can_select_the_checkpoint(prepared, tmp_path):
    other = tmp_path / "other"
    write_split(other, "validation", make_rows(range(20, 24)))
    flags = training_flags(prepared, tmp_path / "run", **RUN, validation_dataset=other)
    trainer = build_trainer(parse_training_run(flags))
    assert set(trainer.eval_dataset.rows["method"]) == {
        "original",
        "swap",
        "warp",
        "unseen",
    }  # --methods is of training
    assert set(trainer.train_dataset.rows["method"]) == {"original", "swap", "warp"}
    train.main(flags)
    assert calibration_of(tmp_path / "run")["frame"]["reals"] == 8
    assert json.loads((tmp_path / "run" / "run_settings.json").read_text())["validation_dataset"] == ["other"]


def test_the_momentum_encoder_is_validated_beside_the_query_encoder(prepared, tmp_path):
    trainer = build_trainer(parse_training_run(training_flags(prepared, tmp_path, **RUN, evaluate_momentum=True)))
    trainer.train()
    metrics = trainer.evaluate()
    assert {"eval_auc", "eval_momentum_auc", "eval_momentum_loss"} <= metrics.keys()
    assert metrics["eval_loss"] != metrics["eval_momentum_loss"]
    model = trainer.model
    model.dcl, model.momentum_dcl = model.momentum_dcl, model.dcl
    assert trainer.evaluate()["eval_loss"] == metrics["eval_momentum_loss"]


def test_calibration_is_fitted_in_float32_after_a_training_in_bfloat16(prepared, tmp_path, monkeypatch):
    seen = []

    def fit(model, processor, data, *rest):
        crops = torch.rand(2, 3, 64, 64)
        with torch.no_grad():
            seen.append(
                (model.eval()(crops).logits, DCLForPreTraining.from_pretrained(tmp_path / "run").eval()(crops).logits)
            )
        return {"method": "none", "reason": "a test"}, None

    monkeypatch.setattr("dcl_face_forgery.evaluation.validation.fit_on_validation", fit)
    train.main(training_flags(prepared, tmp_path / "run", **RUN, bf16=True))
    ((fitted, loaded),) = seen
    assert torch.equal(fitted, loaded)


def test_a_model_in_half_precision_is_not_trained(prepared, tmp_path):
    run = parse_training_run(training_flags(prepared, tmp_path, **RUN))
    trainer = build_trainer(run)
    with pytest.raises(InputError, match=r"parameters of type torch.bfloat16, .*dtype=torch.float32"):
        DCLTrainer(model=trainer.model.bfloat16(), args=run.training, eval_dataset=trainer.eval_dataset)


def test_synchronised_batch_norm_keeps_the_activations_of_timm(prepared, tmp_path, monkeypatch):
    trainer = build_trainer(parse_training_run(training_flags(prepared, tmp_path, **RUN)))
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before = trainer.model.eval()(images).feature_map
        trainer.args.batch_norm = "sync"
        monkeypatch.setattr(type(trainer.args), "world_size", 2)
        trainer._prepare_model(trainer.model)
        assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in trainer.model.modules())
        torch.testing.assert_close(trainer.model.eval()(images).feature_map, before)


def test_a_count_of_hard_samples_is_warned_of_with_several_processes(prepared, tmp_path, monkeypatch, caplog):
    run = parse_training_run(training_flags(prepared, tmp_path, **{**RUN, "hard_samples": 5}))
    monkeypatch.setattr(type(run.training), "world_size", 4)
    build_trainer(run)
    assert "hard_samples is 5 for the batch of all 4 processes together" in caplog.text


@pytest.mark.parametrize("precision", [pytest.param({}, marks=pytest.mark.slow), {"bf16": True}])
def test_gradient_shares_are_logged_when_asked_for(prepared, tmp_path, precision):
    flags = training_flags(prepared, tmp_path, **RUN, **precision, log_gradient_shares=True)
    trainer = build_trainer(parse_training_run(flags))
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "gradient_share_ce" in entry]
    assert [entry["step"] for entry in entries] == [2, 3, 4, 5, 6, 7]  # none in the warm-up
    for entry in entries:
        shares = [entry[f"gradient_share_{name}"] for name in ("ce", "inter", "intra_fake", "intra_real")]
        assert sum(shares) == pytest.approx(1) and all(0 <= share <= 1 for share in shares)
        assert shares[1] > 0.1 > shares[3]  # the real term has the smallest weight by far


@pytest.mark.slow
@pytest.mark.parametrize("backbone, size", [("test_efficientnet", 96), ("test_vit", 64), ("test_convnext", 96)])
def test_compilation_sees_each_network_whole(backbone, size):
    model = DCLForPreTraining(DCLConfig(backbone=backbone, image_size=size, queue_size=16, hard_samples=2)).train()
    images = torch.randn(4, 3, size, size)
    seen = torch._dynamo.explain(model)(images, images)
    assert (seen.graph_count, seen.graph_break_count) == (1, 0), seen.break_reasons
    torch._dynamo.reset()


@pytest.mark.slow
def test_a_compiled_training_learns_and_saves_the_same(finished, prepared, tmp_path):
    flags = training_flags(prepared, tmp_path / "run", **RUN, torch_compile=True, torch_compile_backend="eager")
    train.main(flags)
    assert_same_run(finished, tmp_path / "run")
    assert not any("_orig_mod" in name for name in load_file(tmp_path / "run" / "checkpoint-6" / "model.safetensors"))


def test_the_learning_curve_of_60_steps_is_as_it_was(prepared, tmp_path):
    """A change of the views, the losses, the memory, the schedule or the sampling moves it: see that it is meant."""
    settings = {"max_steps": 60, "image_size": 64, "logging_steps": 10, "eval_steps": 60, "save_steps": 60}
    trainer = build_trainer(parse_training_run(training_flags(prepared, tmp_path, **settings, learning_rate=1e-3)))
    trainer.train()
    logged = ("step", "loss", "weight", "queue")
    curve = [
        {name: value for name, value in entry.items() if name.startswith(logged)}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    expected = json.loads((REPOSITORY / "tests" / "fixtures" / "learning_curve.json").read_text())
    assert len(curve) == len(expected) == 6
    for entry, wanted in zip(curve, expected, strict=True):
        assert entry == pytest.approx(wanted, rel=0.15, abs=0.05)  # OpenCV 4 warps less exactly than 5


@pytest.mark.slow
def test_hyperparameters_can_be_searched(prepared, tmp_path):
    pytest.importorskip("optuna")
    run = parse_training_run(training_flags(prepared, tmp_path, **RUN))
    built = build_trainer(run)
    config = built.model.config
    trainer = DCLTrainer(
        model_init=lambda trial: DCLForPreTraining(config),
        args=run.training,
        train_dataset=built.train_dataset,
        eval_dataset=built.eval_dataset,
        processing_class=built.processing_class,
        compute_metrics=validation_metrics,
    )
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-3, log=True)},
        compute_objective=lambda metrics: metrics["eval_auc"],
        direction="maximize",
        n_trials=2,
    )
    assert 1e-5 <= best.hyperparameters["learning_rate"] <= 1e-3
    assert {path.name for path in tmp_path.glob("run-*")} == {"run-0", "run-1"}


def test_starting_again_and_going_on_exclude_each_other(finished, prepared, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    checkpoint = next((tmp_path / "run").glob("checkpoint-*"))
    flags = training_flags(prepared, tmp_path / "run", **RUN, resume_from_checkpoint=checkpoint)
    with pytest.raises(SystemExit, match=r"exclude each other.*Pass one"):
        train.main([*flags, "--overwrite"])
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["trackio", "wandb"])
def test_trackers_are_followed_without_a_network(prepared, tmp_path, monkeypatch, tracker):
    pytest.importorskip(tracker)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    train.main(training_flags(prepared, tmp_path / "run", max_steps=2, image_size=64, report_to=tracker))
    assert (tmp_path / "run" / "all_results.json").exists()


def test_rows_without_a_label_are_refused_before_training(tmp_path):
    rows = make_rows(range(4))
    rows[3]["label"] = -1
    for split in ("train", "validation"):
        write_split(tmp_path / "data", split, rows)
    with pytest.raises(SystemExit, match=r"has rows without a label: 1 \(such as row 3; the first is 0\)"):
        train.main(training_flags(tmp_path / "data", tmp_path / "run"))


def test_tensorboard_files_are_written_without_a_network(prepared, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    train.main(training_flags(prepared, tmp_path / "run", max_steps=2, image_size=64, report_to="tensorboard"))
    files = list(tmp_path.rglob("events.out.tfevents*"))
    tags = {tag for file in files for tag in EventAccumulator(str(file)).Reload().Tags()["scalars"]}
    assert tags >= {"train/loss", "train/loss_ce", "train/loss_inter", "train/weight_inter", "eval/auc"}


def test_corrupt_images_end_the_run_or_are_skipped(tmp_path):
    for split, videos in (("train", range(4)), ("validation", range(4, 6))):
        rows = make_rows(videos)
        rows[5]["image"] = {"bytes": b"no image", "path": None}
        write_split(tmp_path / "data", split, rows)
    settings = {"max_steps": 3, "image_size": 64, "methods": ["swap", "warp", "unseen"]}
    for workers in (0, 1):
        with pytest.raises(SystemExit) as error:
            train.main(training_flags(tmp_path / "data", tmp_path / "a", **settings, dataloader_num_workers=workers))
        sentence = str(error.value)
        assert "row 5" in sentence and "--skip_corrupt" in sentence and "\n" not in sentence
        assert sentence.startswith("error: The image of")
    train.main([*training_flags(tmp_path / "data", tmp_path / "b", **settings), "--skip_corrupt"])
    assert (tmp_path / "b" / "all_results.json").exists()


# ----------------------------------------------------------------------------------------------------------- bad input


def a_set(tmp_path, change=lambda row, number: None, drop=None):
    for split, videos in (("train", range(2)), ("validation", range(2, 4))):
        rows = make_rows(videos)
        for number, row in enumerate(rows):
            change(row, number)
        write_split(tmp_path / "data", split, rows)
        path = tmp_path / "data" / f"{split}.parquet"
        if drop:
            pq.write_table(pq.read_table(path).drop_columns([drop]), path)
    return tmp_path / "data"


def cut_wider(row, number):
    if number == 1:
        row["crop"] = {**CROP, "margin": 0.5}


@pytest.mark.parametrize(
    "data, settings, names",
    [
        (lambda tmp: tmp / "nowhere", {}, ["nowhere"]),
        (lambda tmp: (tmp / "void").mkdir() or tmp / "void", {}, ["void", "train"]),
        (lambda tmp: a_set(tmp, drop="video_id"), {}, ["video_id", "data"]),
        (lambda tmp: a_set(tmp, cut_wider), {}, ["2 ways", "--allow_mixed_crops"]),
        (a_set, {"methods": ["swap", "puppet"]}, ["puppet", "swap, unseen, warp"]),
        (a_set, {"validation_split": "val"}, ["'val'", "train, validation"]),
        (a_set, {"backbone": "test_efficientnett"}, ["test_efficientnett", "test_efficientnet"]),
        (a_set, {"backbone_weights": "timm"}, ["test_efficientnet", "--backbone_weights"]),
        (a_set, {"backbone_weights": "w.pth"}, ["w.pth"]),
        (a_set, {"model": "no/checkpoint/here"}, ["no/checkpoint/here"]),
        (a_set, {"queue_size": 4, "hard_samples": 5}, ["queue_size", "4", "5"]),
        (a_set, {"image_size": 8}, ["8 px", "image_size"]),
        (a_set, {"backbone": "test_vit", "image_size": 100}, ["test_vit", "100"]),
        (a_set, {"output_dir": REPOSITORY}, ["output_dir"]),
        (a_set, {"output_dir": REPOSITORY / "README.md"}, ["README.md is a file"]),
        (a_set, {"report_to": "bogus"}, ["--report_to bogus", "trackio"]),
        (a_set, {"colour": 3}, ["colour"]),
    ],
)
def test_bad_input_ends_with_one_sentence_and_a_status(tmp_path, monkeypatch, data, settings, names):
    monkeypatch.chdir(tmp_path)
    dataset = data(tmp_path)
    with pytest.raises(SystemExit) as error:
        train.main(training_flags(dataset, **{"output_dir": tmp_path / "run", **settings}))
    sentence = str(error.value.code)
    assert sentence.startswith("error: ") and "\n" not in sentence.strip()
    for name in names:
        assert name in sentence
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_faces_cut_otherwise_for_validation_are_refused(tmp_path):
    write_split(tmp_path / "data", "train", make_rows(range(2)))
    rows = make_rows(range(2, 4))
    for row in rows:
        row["crop"] = {**CROP, "kind": "aligned5"}
    write_split(tmp_path / "data", "validation", rows)
    with pytest.raises(SystemExit, match="2 ways"):
        train.main(training_flags(tmp_path / "data", tmp_path / "run"))


def test_mixed_crops_are_accepted_when_asked_for_and_the_usual_one_is_recorded(tmp_path):
    flags = training_flags(a_set(tmp_path, cut_wider), tmp_path / "run")
    run = parse_training_run([*flags, "--allow_mixed_crops"])
    assert build_trainer(run).processing_class.crop == CROP


def test_scores_that_are_equal_are_validated(prepared):
    prediction = type("Prediction", (), {})()
    prediction.predictions = np.zeros((4, 2), np.float32)
    prediction.label_ids = np.array([0, 0, 1, 1]), np.array([0, 1, 2, 2])
    assert validation_metrics(prediction)["auc"] == 0.5


@pytest.mark.slow
def test_the_command_prints_its_error_and_ends_with_a_status(tmp_path):
    command = [sys.executable, str(REPOSITORY / "train.py"), "--dataset", str(tmp_path / "none"), "--use_cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: Data set")
    assert "Traceback" not in done.stderr


def test_resuming_from_what_is_no_checkpoint_is_refused(prepared, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main([*training_flags(prepared, tmp_path / "run", **RUN), "--resume_from_checkpoint", str(tmp_path)])
    assert "is not a complete checkpoint: trainer_state.json is missing" in str(stop.value)


def test_resuming_past_the_last_step_is_refused(finished, prepared, tmp_path):
    flags = training_flags(prepared, tmp_path / "run", **(RUN | {"max_steps": 2}))
    with pytest.raises(SystemExit) as stop:
        train.main([*flags, "--resume_from_checkpoint", str(finished / "checkpoint-6")])
    assert "has already been trained for 6 steps, and max_steps is 2" in str(stop.value)


def test_a_model_that_no_run_wrote_is_not_overwritten(finished, prepared, tmp_path):
    (tmp_path / "model").mkdir()
    shutil.copy(finished / "model.safetensors", tmp_path / "model")
    with pytest.raises(SystemExit) as stop:
        train.main(training_flags(prepared, tmp_path / "model", **RUN))
    assert "holds a model from elsewhere. Choose another --output_dir" in str(stop.value)


def test_what_was_trained_is_saved_before_a_corrupt_validation_image_ends_the_run(tmp_path):
    for split, videos in (("train", range(4)), ("validation", range(4, 6))):
        rows = make_rows(videos)
        if split == "validation":
            rows[5]["image"] = {"bytes": b"no image", "path": None}
        write_split(tmp_path / "data", split, rows)
    settings = {"max_steps": 3, "image_size": 64, "eval_strategy": "steps", "save_strategy": "steps"}
    flags = training_flags(tmp_path / "data", tmp_path / "run", **settings, eval_steps=2, save_steps=2)
    with pytest.raises(SystemExit) as stop:
        train.main(flags)
    assert "it is not an image" in str(stop.value) and "row 4" in str(stop.value)  # of those by the chosen methods
    assert last_complete_checkpoint(tmp_path / "run").name == "checkpoint-2"
    train.main([*flags, "--skip_corrupt"])
    assert json.loads((tmp_path / "run" / "trainer_state.json").read_text())["global_step"] == 3


def test_a_tracker_that_is_not_installed_is_named(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_tensorboard_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        train.main(training_flags(prepared, tmp_path / "run", **(RUN | {"report_to": "tensorboard"})))
    assert "--report_to tensorboard: cannot be used" in str(stop.value)


# ------------------------------------------------------------------------------------------------ when it is evaluated


def spacing(prepared, tmp_path, given=(), **settings):
    """Return when a run of 6 videos, 3 steps an epoch, evaluates and saves, if it is told no more than this."""
    flags = training_flags(prepared, tmp_path / "run", image_size=64, max_steps=-1, **settings)
    places = [flags.index(f"--{name}") for name in ("eval_strategy", "eval_steps", "save_strategy", "save_steps")]
    flags = [flag for place, flag in enumerate(flags) if place not in {*places, *(place + 1 for place in places)}]
    args = build_trainer(parse_training_run([*flags, *given])).args
    return args.eval_strategy, args.eval_steps, args.save_strategy, args.save_steps


@pytest.mark.parametrize(("epochs", "every"), [(30, 9), (400, 50)])
def test_short_epochs_are_evaluated_every_few_steps(prepared, tmp_path, caplog, epochs, every):
    """A tenth of the run, and 50 steps at most: one of 45 faces would else be evaluated after each step."""
    assert spacing(prepared, tmp_path, num_train_epochs=epochs) == ("steps", every, "steps", every)
    assert f"Evaluating and saving every {every} steps" in caplog.text


def test_epochs_that_are_long_enough_are_evaluated_as_before(prepared, tmp_path):
    assert spacing(prepared, tmp_path, num_train_epochs=10)[::2] == ("epoch", "epoch")


def test_what_the_user_says_of_evaluation_wins(prepared, tmp_path):
    both = ["--eval_strategy", "epoch", "--save_strategy", "epoch"]
    assert spacing(prepared, tmp_path, both)[::2] == ("epoch", "epoch")
    assert spacing(prepared, tmp_path, ["--eval_steps", "7"]) == ("steps", 7, "steps", 7)
    assert spacing(prepared, tmp_path, ["--eval_steps", "7", "--save_steps", "14"]) == ("steps", 7, "steps", 14)
    with pytest.raises(InputError, match=r"save_steps is 10, not a multiple of eval_steps \(7\)"):
        spacing(prepared, tmp_path, ["--eval_steps", "7", "--save_steps", "10"])
