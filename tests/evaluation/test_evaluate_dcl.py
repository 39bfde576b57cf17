"""The evaluation command, from its arguments to its files, and each bad input with its sentence."""

import contextlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset
from sklearn.metrics import roc_auc_score

from dcl_face_forgery import evaluate_dcl, hub_dcl
from dcl_face_forgery.configuration_dcl import DCLConfig
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.evaluate_dcl import main
from dcl_face_forgery.evaluation.evaluate_models import check_groups
from dcl_face_forgery.evaluation.metrics.binary import binary_metrics
from dcl_face_forgery.evaluation.metrics.levels import frame_and_video_metrics
from dcl_face_forgery.evaluation.reporting.summary import summarize
from dcl_face_forgery.evaluation.run import name_folders
from dcl_face_forgery.evaluation.scoring.checkpoints import find_checkpoint
from dcl_face_forgery.image_processing_dcl import DCLImageProcessor
from dcl_face_forgery.modeling_dcl import DCLForPreTraining
from dcl_face_forgery.prepared.dataset import FEATURES, encode_image
from dcl_face_forgery.prepared.splits import load_splits
from dcl_face_forgery.training.arguments import ModelArguments
from dcl_face_forgery.training.run import build_model

CROP = {"kind": "given", "margin": None, "size": 64, "detector": None}
METHODS = ("youtube", "swap", "warp")


def make_rows(seed=0):
    """Four clips, each real and by two methods, three frames a video."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((64, 64), np.uint8)
    mask[:32] = 255
    return [
        {
            "image": encode_image(rng.integers(0, 256, (64, 64, 3), np.uint8)),
            "mask": encode_image(mask * (method != "youtube")),
            "label": int(method != "youtube"),
            "method": method,
            "compression": None,
            "video_id": f"{method}/{clip:03}",
            "source_id": f"youtube/{clip:03}",
            "frame": frame,
            "landmarks": None,
            "crop": CROP,
            "dataset": "noise",
            "phash": None,
        }
        for clip in range(4)
        for method in METHODS
        for frame in range(3)
    ]


def write_set(folder, rows, features=FEATURES):
    folder.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=features).to_parquet(folder / "test.parquet")


def write_checkpoint(folder, seed):
    torch.manual_seed(seed)
    config = DCLConfig(
        backbone="test_efficientnet", image_size=64, queue_size=16, hard_samples=2, seen_methods=["swap"]
    )
    model = DCLForPreTraining(config)
    torch.nn.init.normal_(model.classifier.linear.weight, std=2)
    model.save_pretrained(folder)
    DCLImageProcessor(size={"height": 64, "width": 64}, crop=CROP).save_pretrained(folder)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """`data/noise`, `data/more`, and the checkpoints `a/final` and `b/final`."""
    folder = tmp_path_factory.mktemp("here")
    write_set(folder / "data/noise", make_rows())
    write_set(folder / "data/more", make_rows(seed=1))
    write_checkpoint(folder / "a/final", seed=0)
    write_checkpoint(folder / "b/final", seed=1)
    return folder


@pytest.fixture(autouse=True)
def _in_place(here, monkeypatch):
    monkeypatch.chdir(here)


def sentence_of(capsys, *arguments):
    """Run the command on input that it must refuse; return what it says."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    said = stop.value.code
    if said == 2:  # refused by the parser, which prints
        said = capsys.readouterr().err.strip().splitlines()[-1]
    assert isinstance(said, str)
    assert "\n" not in said
    return said


# ------------------------------------------------------------------------------------------------------ end to end


def test_one_model_leaves_its_files_in_the_output_folder(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--model", "a/final", "--dataset", "data/noise", "--output_dir", str(out), "--device", "cpu"]
    main(arguments)
    predictions = pd.read_parquet(out / "predictions.parquet")
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["noise"]["frame"]["auc"] == pytest.approx(
        roc_auc_score(predictions["label"], predictions["p_fake"])
    )
    again = frame_and_video_metrics(predictions)["noise"]
    assert {**metrics["noise"], "localisation": None} == {**again, "localisation": None}
    assert metrics["noise"]["frame"]["n"] == 36
    assert metrics["noise"]["video"]["n"] == 12
    assert metrics["noise"]["by_method"]["warp"]["frame"]["n"] == 24
    assert 0 < metrics["noise"]["localisation"]["auc"] < 1
    run = json.loads((out / "run.json").read_text())
    assert run["command"].split()[1:] == arguments
    assert (run["device"], run["seed"], run["batch_size"]) == ("cpu", 0, 4)

    printed = capsys.readouterr().out
    rows = {line.split()[1]: line.split() for line in printed.splitlines() if line.strip().startswith("noise")}
    assert list(rows) == ["all", "swap", "warp"]
    assert (rows["swap"][2], rows["warp"][2]) == ("seen", "unseen")
    assert rows["all"][3] == f"{metrics['noise']['frame']['auc']:.3f}"
    assert str(out) in printed


def test_the_calibration_of_the_checkpoint_is_used_and_recorded(here, tmp_path, capsys):
    arguments = ["--dataset", "data/noise", "--device", "cpu", "--bootstrap", "0", "--model"]
    main([*arguments, "a/final", "--output_dir", str(tmp_path / "plain")])
    plain = pd.read_parquet(tmp_path / "plain/predictions.parquet")
    assert plain["p_fake"].equals(plain["p_fake_raw"])
    printed = capsys.readouterr().out
    assert "Caution: the checkpoint is not calibrated: p_fake is" in printed and "Operating points" not in printed
    assert json.loads((tmp_path / "plain/run.json").read_text())["calibration"] is None
    assert "thresholds" not in json.loads((tmp_path / "plain/metrics.json").read_text())["noise"]["frame"]

    at = float(np.quantile(1 / (1 + np.exp(-plain["logit"] / 4)), 0.3))
    video = {"reals": 9, "fakes": 9, "families": 9, "thresholds": {"eer": 0.5, "fpr_0.01": None}, "reasons": {}}
    video["band"] = {"error_rate": 0.1, "low": 0.5, "high": 0.5}
    frame = {"thresholds": {"eer": at}, "band": {"error_rate": 0.1, "low": at - 0.1, "high": at + 0.1}}
    calibration = {"method": "platt", "slope": 0.25, "offset": 0.0, "frame": frame, "video": video}
    shutil.copytree(here / "a/final", tmp_path / "calibrated")
    config = json.loads((tmp_path / "calibrated/config.json").read_text())
    (tmp_path / "calibrated/config.json").write_text(json.dumps(config | {"calibration": calibration}))
    for name, options in (("out", []), ("remote", ["--trust_remote_code"])):
        out = tmp_path / name
        main([*arguments, str(tmp_path / "calibrated"), "--output_dir", str(out), *options])
        rows = pd.read_parquet(out / "predictions.parquet")
        assert rows["p_fake_raw"].equals(plain["p_fake_raw"])
        np.testing.assert_allclose(rows["p_fake"], 1 / (1 + np.exp(-rows["logit"] / 4)), rtol=1e-12)
        metrics = json.loads((out / "metrics.json").read_text())["noise"]
        frame = metrics["frame"]
        assert (frame["thresholds"], metrics["video"]["thresholds"]) == ({"eer": at}, video["thresholds"])
        fakes = rows["p_fake"][rows["label"] == 1]
        assert frame["verdicts"]["fake"] == {
            "flagged": (fakes >= at + 0.1).sum(),
            "inconclusive": ((fakes >= at - 0.1) & (fakes < at + 0.1)).sum(),
            "not_flagged": (fakes < at - 0.1).sum(),
        }
        assert metrics["video"]["verdicts"]["real"]["inconclusive"] == 0
        assert frame["tpr_at_threshold_eer"] == (rows["p_fake"][rows["label"] == 1] >= at).mean()
        raw = binary_metrics(plain["label"].to_numpy(), plain["p_fake"].to_numpy())
        assert [frame[f"{key}_raw"] for key in ("log_loss", "brier", "ece")] == [
            raw["log_loss"],
            raw["brier"],
            raw["ece"],
        ]
        assert frame["log_loss"] != raw["log_loss"] and frame["auc"] == raw["auc"]
        assert json.loads((out / "run.json").read_text())["calibration"] == calibration
        printed = capsys.readouterr().out
        assert "Caution: the checkpoint" not in printed
        flagged = frame["verdicts"]["fake"]["flagged"]
        assert f"{flagged} ({flagged / len(fakes):.0%})" in printed
        lines = [line.split() for line in printed.splitlines() if " eer " in line or "fpr_" in line]
        assert [line[:4] for line in lines] == [
            ["noise", "frame", "eer", f"{at:.3f}"],
            ["noise", "video", "eer", "0.500"],
        ]
        assert lines[0][4:] == [f"{frame[f'{key}_at_threshold_eer']:.3f}" for key in ("accuracy", "fpr", "tpr")]


def test_a_calibration_that_cannot_be_followed_is_refused(here, tmp_path, capsys):
    shutil.copytree(here / "a/final", tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    for calibration, why in (
        (
            {"method": "temperature", "temperature": 0},
            "`calibration`: temperature must be a finite number above 0, got 0",
        ),
        (
            {"method": "isotonic", "margins": [0.0], "p_fake": [0.5]},
            "`calibration` has the method 'isotonic', which is no longer supported. Fit it again with "
            "`dcl_face_forgery.evaluation.calibration.fit_calibration`, or train again",
        ),
        (3, "Field 'calibration' expected a dict, got int"),
    ):
        (tmp_path / "model/config.json").write_text(json.dumps(config | {"calibration": calibration}))
        said = refused_model(capsys, tmp_path, tmp_path / "model")
        assert said.endswith(f"/model': is invalid ({why}). Correct it, or download it again.")
        assert "error: config.json of" in said


def test_two_runs_give_the_same_files(tmp_path):
    for out in ("one", "two"):
        main(["--model", "a/final", "--dataset", "data/noise", "--output_dir", str(tmp_path / out), "--device", "cpu"])
    for name in ("metrics.json", "predictions.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_classes_are_found_by_one_process_ahead_of_the_others(tmp_path, monkeypatch):
    """Finding them may copy remote code to where all processes import it from."""
    ahead, found = [], []

    @contextlib.contextmanager
    def first_process_ahead():
        ahead.append(True)
        yield
        ahead.pop()

    def find_classes(checkpoints, *options):
        found.append(bool(ahead))
        return checkpoints

    monkeypatch.setattr("dcl_face_forgery.evaluation.evaluate_models.first_process_ahead", first_process_ahead)
    monkeypatch.setattr("dcl_face_forgery.evaluation.evaluate_models.find_classes", find_classes)
    main(["--model", "a/final", "--dataset", "data/noise", "--output_dir", str(tmp_path), "--bootstrap", "0"])
    assert found == [True]


def test_methods_without_a_name_of_their_own_are_not_called_unseen(tmp_path):
    rows = [{**row, "method": {"warp": "fake"}.get(row["method"], row["method"])} for row in make_rows()]
    write_set(tmp_path / "set", [{**row, "method": "blend"} if row["frame"] == 2 else row for row in rows])
    main(["--model", "a/final", "--dataset", str(tmp_path / "set"), "--output_dir", str(tmp_path), "--bootstrap", "0"])
    assert json.loads((tmp_path / "run.json").read_text())["datasets"]["set"]["unseen_methods"] == ["blend"]


def test_the_record_tells_a_retrained_checkpoint_from_the_first(here):
    first, again, other = (find_checkpoint(str(here / name)).revision for name in ("a/final", "a/final", "b/final"))
    assert first.startswith("sha256:") and first == again != other


def test_models_of_one_name_get_folders_of_their_own(tmp_path):
    arguments = ["--model", "a/final", "b/final", "--data_root", "data", "--dataset", "noise&more", "--device", "cpu"]
    main([*arguments, "--output_dir", str(tmp_path)])
    tables = ["table.csv", "table.json", "table.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_final", "b_final", *tables]
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("a_final", "b_final"))
    assert set(first) == set(second) == {"noise", "more"}
    assert first != second
    assert json.loads((tmp_path / "b_final/run.json").read_text())["model"] == "b/final"


def test_folders_are_named_by_as_many_parts_as_it_takes():
    out = Path("out")
    assert name_folders(["a/final"], out) == [out]
    assert name_folders(["a/x", "a/y"], out) == [out / "x", out / "y"]
    assert name_folders(["r/1/final", "r/2/final", "else"], out) == [out / "1_final", out / "2_final", out / "else"]


def test_the_table_marks_nothing_where_the_model_does_not_say_and_shows_what_is_missing():
    rows = pd.DataFrame(
        [("real", "a", 0, 0.1), ("real", "b", 0, 0.2)], columns=["method", "video_id", "label", "p_fake"]
    )
    reals = summarize(frame_and_video_metrics(rows.assign(dataset="noise")), None)
    assert reals.to_dict("records")[0]["trained on"] == "-"
    assert np.isnan(reals["frame AUC"]).all()


def test_the_script_runs_from_the_checkout_and_helps_quickly():
    script = Path(evaluate_dcl.__file__)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert time.perf_counter() - start < 3  # an import of torch alone takes about that
    assert "--skip_corrupt" in done.stdout


# ----------------------------------------------------------------------------------------- intervals, groups, pairs


def test_the_table_shows_the_intervals_and_says_that_families_are_few(tmp_path, capsys):
    arguments = ["--model", "a/final", "--dataset", "data/noise", "--device", "cpu"]
    main([*arguments, "--output_dir", str(tmp_path / "with"), "--bootstrap", "60", "--seed", "3"])
    printed = capsys.readouterr().out
    metrics = json.loads((tmp_path / "with/metrics.json").read_text())["noise"]
    low, high = metrics["frame"]["intervals"]["auc"]
    assert low < metrics["frame"]["auc"] < high
    assert f"{low:.3f}-{high:.3f}" in printed
    assert "Caution (noise, frame level): Only 4 families have reals" in printed
    predictions = pd.read_parquet(tmp_path / "with/predictions.parquet")
    again = frame_and_video_metrics(predictions, bootstrap=60, seed=3)["noise"]
    assert again["frame"] == metrics["frame"]

    main([*arguments, "--output_dir", str(tmp_path / "without"), "--bootstrap", "0"])
    assert "95 %" not in capsys.readouterr().out
    assert "intervals" not in json.loads((tmp_path / "without/metrics.json").read_text())["noise"]["frame"]


def test_any_column_of_the_data_set_can_be_grouped_by(tmp_path):
    features = FEATURES.copy()
    features["people"] = ClassLabel(names=["young", "old"])
    rows = [{**row, "people": int(row["video_id"][-1]) % 2} for row in make_rows()]
    rows[0]["people"] = None
    write_set(tmp_path / "set", rows, features)
    arguments = ["--model", "a/final", "--dataset", str(tmp_path / "set"), "--device", "cpu", "--bootstrap", "20"]
    for column, groups in (("people", ["old", "unknown", "young"]), ("source_id", 4)):
        main([*arguments, "--output_dir", str(tmp_path / column), "--group_by", column])
        found = json.loads((tmp_path / column / "metrics.json").read_text())["set"]["by_group"]
        assert found["column"] == column
        assert list(found["groups"]) == groups or len(found["groups"]) == groups
    predictions = pd.read_parquet(tmp_path / "people/predictions.parquet")
    assert predictions.columns[-1] == "people"
    assert predictions["people"].isna().tolist() == [True] + [False] * 35
    assert predictions["people"][1:].tolist() == [("young", "old")[row["people"]] for row in rows[1:]]
    gap = json.loads((tmp_path / "people/metrics.json").read_text())["set"]["by_group"]["gap"]["video"]["auc"]
    assert {gap["highest"], gap["lowest"]} == {"young", "old"}  # the frame of nobody has one class


def test_several_models_are_compared_with_the_first(tmp_path, capsys):
    arguments = ["--model", "a/final", "b/final", "--dataset", "data/noise", "--device", "cpu", "--bootstrap", "50"]
    main([*arguments, "--output_dir", str(tmp_path)])
    assert not (tmp_path / "a_final/differences.json").exists()
    found = json.loads((tmp_path / "b_final/differences.json").read_text())
    assert found["minus"] == "a/final"
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("b_final", "a_final"))
    for level in ("frame", "video"):
        difference = found["differences"]["noise"][level]["auc"]["difference"]
        assert difference == pytest.approx(one["noise"][level]["auc"] - two["noise"][level]["auc"], abs=1e-12)
    assert "Difference in frame AUC on noise from a/final: " in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------- bad input


def refused_dataset(capsys, tmp_path, name, *options):
    out = tmp_path / "out"
    said = sentence_of(
        capsys, "--model", "a/final", "--dataset", name, "--output_dir", out, "--device", "cpu", *options
    )
    assert not list(tmp_path.glob("out/*"))
    return said


def test_a_missing_data_set(capsys, tmp_path):
    assert "Data set 'nowhere' not found: looked for the folder nowhere." in refused_dataset(
        capsys, tmp_path, "nowhere"
    )


def test_no_data_set(capsys, tmp_path):
    assert "No data set given" in refused_dataset(capsys, tmp_path, "&")


def test_a_missing_split(capsys, tmp_path):
    said = refused_dataset(capsys, tmp_path, "data/noise", "--split", "validation")
    assert "has no split 'validation'" in said
    assert "it has test" in said


def test_an_empty_data_set(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    pq.write_table(FEATURES.arrow_schema.empty_table(), tmp_path / "empty/test.parquet")  # datasets 5.1 cannot
    assert "is empty" in refused_dataset(capsys, tmp_path, tmp_path / "empty")


def test_a_missing_column(capsys, tmp_path):
    features = FEATURES.copy()
    del features["video_id"]
    rows = [{name: value for name, value in row.items() if name != "video_id"} for row in make_rows()]
    write_set(tmp_path / "set", rows, features)
    assert "has no column 'video_id'" in refused_dataset(capsys, tmp_path, tmp_path / "set")


def test_a_column_of_the_wrong_kind(capsys, tmp_path):
    features = FEATURES.copy()
    features["frame"] = features["method"]
    write_set(tmp_path / "set", [{**row, "frame": "first"} for row in make_rows()], features)
    assert "the column 'frame'" in refused_dataset(capsys, tmp_path, tmp_path / "set")


def test_mixed_crops(capsys, tmp_path):
    rows = make_rows()
    rows[3] = {**rows[3], "crop": {**CROP, "kind": "box"}}
    write_set(tmp_path / "set", rows)
    assert "--allow_mixed_crops" in refused_dataset(capsys, tmp_path, tmp_path / "set")
    out = tmp_path / "allowed"
    arguments = ["--model", "a/final", "--dataset", str(tmp_path / "set"), "--output_dir", str(out)]
    main([*arguments, "--device", "cpu", "--allow_mixed_crops"])
    assert json.loads((out / "run.json").read_text())["datasets"]["set"]["crop_is_mixed"] is True


def test_a_corrupt_image_is_named_or_skipped(capsys, tmp_path):
    rows = make_rows()
    rows[20] = {**rows[20], "image": {"bytes": rows[20]["image"]["bytes"][:30], "path": None}}
    write_set(tmp_path / "set", rows)
    said = refused_dataset(capsys, tmp_path, tmp_path / "set")
    assert "row 20 (the first is 0) of" in said
    assert "--skip_corrupt" in said
    out = tmp_path / "skipped"
    arguments = ["--model", "a/final", "--dataset", str(tmp_path / "set"), "--output_dir", str(out)]
    main([*arguments, "--device", "cpu", "--skip_corrupt"])
    record = json.loads((out / "run.json").read_text())["datasets"]["set"]
    assert record["skipped_corrupt"] == {"count": 1, "rows": [20]}


def refused_model(capsys, tmp_path, model):
    return sentence_of(capsys, "--model", model, "--dataset", "data/noise", "--output_dir", tmp_path / "out")


def test_a_missing_checkpoint(capsys, tmp_path):
    assert "Model './nowhere' not found: there is no such folder" in refused_model(capsys, tmp_path, "./nowhere")


def test_a_folder_without_a_checkpoint(capsys, tmp_path):
    assert "has no config.json" in refused_model(capsys, tmp_path, tmp_path)


def test_a_checkpoint_of_another_model_is_none_to_train_on(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(InputError, match=r"the model type in its config\.json is 'vit', not 'dcl'"):
        build_model(ModelArguments(model=str(tmp_path)))


def test_a_configuration_without_a_model_type(capsys, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert "its config.json names no model_type" in refused_model(capsys, tmp_path, tmp_path)


@pytest.mark.parametrize(("content", "sentence"), [("{", "cannot be read"), ("[]", "is not a JSON object")])
def test_a_broken_configuration(capsys, tmp_path, content, sentence):
    (tmp_path / "config.json").write_text(content)
    assert sentence in refused_model(capsys, tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [("model.safetensors", "has no weights"), ("preprocessor_config.json", "cannot be loaded")],
)
def test_a_checkpoint_that_lacks_a_file(capsys, tmp_path, missing, sentence):
    shutil.copytree("a/final", tmp_path / "model")
    (tmp_path / "model" / missing).unlink()
    assert sentence in refused_model(capsys, tmp_path, tmp_path / "model")


def test_cut_off_weights(capsys, tmp_path):
    shutil.copytree("a/final", tmp_path / "model")
    weights = tmp_path / "model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "cannot be loaded" in refused_model(capsys, tmp_path, tmp_path / "model")


def test_a_hub_that_cannot_be_reached(capsys, tmp_path, monkeypatch):
    def swallow(*args, **kwargs):
        raise TimeoutError("timed out")

    monkeypatch.setattr(hub_dcl.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.create_connection", swallow)
    hub_dcl.hub_is_reachable.cache_clear()
    start = time.perf_counter()
    said = refused_model(capsys, tmp_path, "nobody/nothing")
    assert time.perf_counter() - start < 15
    assert "Model 'nobody/nothing' not found" in said
    assert "the Hub cannot be reached" in said
    hub_dcl.hub_is_reachable.cache_clear()


@pytest.mark.parametrize("device", ["cuda:77", "abacus", "meta"])
def test_a_device_that_is_not_there(capsys, tmp_path, device):
    said = refused_dataset(capsys, tmp_path, "data/noise", "--device", device)
    assert f"Device {device!r} not found." in said
    assert "cpu" in said


def test_numbers_out_of_range(capsys, tmp_path):
    assert "must be at least 1, got 0" in refused_dataset(capsys, tmp_path, "data/noise", "--batch_size", "0")
    assert "must be at least 0, got -1" in refused_dataset(capsys, tmp_path, "data/noise", "--num_workers", "-1")


def test_one_model_twice_under_two_names(capsys, tmp_path):
    said = sentence_of(
        capsys, "--model", "a/final", "./a/final", "--dataset", "data/noise", "--output_dir", tmp_path / "out"
    )
    assert "the same folder" in said


@pytest.mark.parametrize("column", ["tone", "image", "crop", "landmarks"])
def test_a_column_that_cannot_group(capsys, tmp_path, column):
    said = refused_dataset(capsys, tmp_path, "data/noise", "--group_by", column)
    assert f"data/noise (test) has no column {column!r} to group by. Pass --group_by with one of label, method" in said


def test_a_column_without_a_value(capsys, tmp_path):
    said = refused_dataset(capsys, tmp_path, "data/noise", "--group_by", "compression")
    assert "Column 'compression' of data/noise (test): is empty. Group by a column with values" in said
    features = FEATURES.copy()
    features["people"] = ClassLabel(names=["young", "old"])
    write_set(tmp_path / "set", [{**row, "people": None} for row in make_rows()], features)
    said = refused_dataset(capsys, tmp_path, tmp_path / "set", "--group_by", "people")
    assert "Column 'people' of" in said and "is empty" in said


def test_a_column_of_a_single_value_is_warned_of(tmp_path, caplog):
    features = FEATURES.copy()
    features["people"] = ClassLabel(names=["young", "old"])
    write_set(tmp_path / "set", [{**row, "people": 1} for row in make_rows()], features)
    sets = load_splits([str(tmp_path / "set")], "test", None)
    check_groups(sets, "method")
    assert not caplog.records
    check_groups(sets, "people")
    assert "(test): every row has the value 'old'. With a single group there is nothing to compare." in caplog.text


def test_a_column_of_too_many_values(capsys, tmp_path):
    rows = [{**row, "frame": frame} for frame, row in enumerate(make_rows() * 3)]
    write_set(tmp_path / "set", rows)
    said = refused_dataset(capsys, tmp_path, tmp_path / "set", "--group_by", "frame")
    assert "has 108 values. Group by a column with at most 100" in said


def test_fewer_draws_than_none(capsys, tmp_path):
    assert "must be at least 0, got -1" in refused_dataset(capsys, tmp_path, "data/noise", "--bootstrap", "-1")
