"""Predictions against the model asked by hand, evidence against masks, and what is recorded of a run."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset

from dcl_face_forgery import hub_dcl
from dcl_face_forgery.abstention_dcl import measure_sharpness
from dcl_face_forgery.configuration_dcl import DCLConfig
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.evaluation.results import crop_matches, evaluate_checkpoint
from dcl_face_forgery.evaluation.scoring.checkpoints import Checkpoint, find_checkpoint
from dcl_face_forgery.evaluation.scoring.predictions import PREDICTIONS_SCHEMA, load_checkpoint, predict
from dcl_face_forgery.hub_dcl import MODEL_TYPE
from dcl_face_forgery.image_processing_dcl import DCLImageProcessor
from dcl_face_forgery.modeling_dcl import (
    DCLForImageClassification,
    DCLForPreTraining,
    DCLModel,
    ReferenceNetwork,
    find_reference,
)
from dcl_face_forgery.prepared.dataset import FEATURES, CorruptImageError, decode_image, encode_image
from dcl_face_forgery.prepared.splits import load_splits

CROP = {"kind": "box", "margin": 0.3, "size": 80, "detector": "yunet"}
CPU = torch.device("cpu")


def make_rows(seed=0):
    """Three reals and two methods with three fakes each, two frames a video; the masks of "warp" are not known."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((80, 80), np.uint8)
    mask[:27] = 255
    rows = []
    for clip in range(3):
        for method in ("youtube", "swap", "warp"):
            for frame in (0, 7):
                rows.append(
                    {
                        "image": encode_image(rng.integers(0, 256, (80, 80, 3), np.uint8)),
                        "mask": {"youtube": encode_image(mask * 0), "swap": encode_image(mask), "warp": None}[method],
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
                )
    return rows


def write_set(folder, rows, split="test"):
    folder.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=FEATURES).to_parquet(folder / f"{split}.parquet")
    return folder


def corrupt(row):
    return {**row, "image": {"bytes": row["image"]["bytes"][:40], "path": None}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint whose margins are spread over some units, for faces cut as in `make_rows`."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    config = DCLConfig(
        backbone="test_efficientnet", image_size=64, queue_size=16, hard_samples=2, seen_methods=["swap"]
    )
    model = DCLForPreTraining(config)
    torch.nn.init.normal_(model.classifier.linear.weight, std=2)
    model.save_pretrained(folder)
    DCLImageProcessor(size={"height": 64, "width": 64}, crop=CROP).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return load_checkpoint(find_checkpoint(str(folder)), CPU)


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    (data,) = load_splits([str(write_set(tmp_path_factory.mktemp("sets") / "noise", make_rows()))], "test")
    return data


def evaluate(loaded, sets, folder, **options):
    return evaluate_checkpoint(
        Checkpoint("some/model", folder, "abc123"), *loaded, sets, folder, {"seed": 5}, **options
    )


# -------------------------------------------------------------------------------------------------- predictions


def test_rows_are_scored_in_order_by_the_margin_of_the_model(loaded, noise):
    model, processor = loaded
    rows = pd.concat(batch.rows.to_pandas() for batch in predict(model, processor, noise, batch_size=5))
    expected = make_rows()
    assert rows["video_id"].tolist() == [row["video_id"] for row in expected]
    assert rows["source_id"].tolist() == [row["source_id"] for row in expected]
    assert rows["frame"].tolist() == [row["frame"] for row in expected]
    assert rows["label"].tolist() == [row["label"] for row in expected]
    assert set(rows["dataset"]) == {"noise"}
    assert set(rows["split"]) == {"test"}

    images = [decode_image(row["image"], "a row") for row in expected]
    with torch.no_grad():
        logits = model(processor(images, return_tensors="pt")["pixel_values"]).logits.numpy()
    np.testing.assert_allclose(rows["logit"], logits[:, 1] - logits[:, 0], atol=1e-4)
    np.testing.assert_allclose(rows["p_fake"], 1 / (1 + np.exp(-rows["logit"])), rtol=1e-12)
    assert rows["logit"].std() > 0.01  # else any order would pass


def test_the_batch_size_and_the_workers_do_not_change_the_scores(loaded, noise):
    def scores(**options):
        return pd.concat(batch.rows.to_pandas() for batch in predict(*loaded, noise, **options))["logit"].to_numpy()

    one = scores(batch_size=1)
    np.testing.assert_allclose(scores(batch_size=18), one, atol=1e-4)
    np.testing.assert_array_equal(scores(batch_size=1, num_workers=2), one)


def test_reference_features_and_sharpness_are_given_for_each_row_where_they_are_asked_for(loaded, noise):
    model, processor = loaded
    assert all(batch.features is batch.sharpness is None for batch in predict(model, processor, noise))
    reference = ReferenceNetwork(find_reference())
    batches = list(predict(model, processor, noise, batch_size=7, reference=reference))
    images = [decode_image(cell, "") for cell in noise.dataset["image"]]
    np.testing.assert_array_equal(
        np.concatenate([batch.sharpness for batch in batches]), [measure_sharpness(image) for image in images]
    )
    features = np.concatenate([batch.features for batch in batches])
    np.testing.assert_allclose(features, reference(images), atol=1e-4)


def test_cells_are_those_of_fakes_with_a_known_mask(loaded, noise):
    model, processor = loaded
    batches = list(predict(model, processor, noise, batch_size=7))
    evidence, forged = (np.concatenate([getattr(b, name) for b in batches]) for name in ("evidence", "forged"))
    swaps = [row for row in make_rows() if row["method"] == "swap"]
    with torch.no_grad():
        pixel_values = processor([decode_image(row["image"], "a row") for row in swaps], return_tensors="pt")[
            "pixel_values"
        ]
        expected = model(pixel_values).evidence
    np.testing.assert_allclose(evidence, expected.flatten(), atol=1e-4)
    # 27 of 80 rows of pixels are forged and each cell covers 40: the upper row of the 2 x 2 map.
    np.testing.assert_array_equal(forged.reshape(-1, 2, 2), np.tile([[[True, True], [False, False]]], (6, 1, 1)))


def test_cells_are_forged_by_the_rule_of_the_configuration(loaded, noise, monkeypatch):
    model, processor = loaded

    def forged():
        return np.concatenate([batch.forged for batch in predict(model, processor, noise)]).reshape(-1, 4)

    monkeypatch.setattr(model.config, "mask_threshold", 0.7)  # 27 of 40 rows are forged
    assert not forged().any()
    monkeypatch.setattr(model.config, "mask_rule", "released")  # at the centre of a cell, all are
    assert forged().all(axis=0).tolist() == [True, True, False, False]


def test_a_corrupt_image_is_named_by_its_row(loaded, tmp_path):
    rows = make_rows()
    rows[11] = corrupt(rows[11])
    (data,) = load_splits([str(write_set(tmp_path / "noise", rows))], "test")
    with pytest.raises(CorruptImageError, match=r"row 11 \(the first is 0\) of .*noise \(test\)"):
        list(predict(*loaded, data, batch_size=4))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_corrupt_rows_are_left_out_on_request(loaded, tmp_path, num_workers):
    rows = make_rows()
    for index in (4, 5, 6, 7, 11):  # 4 to 7 are a whole batch
        rows[index] = corrupt(rows[index])
    (data,) = load_splits([str(write_set(tmp_path / "noise", rows))], "test")
    batches = list(predict(*loaded, data, batch_size=4, num_workers=num_workers, skip_corrupt=True))
    assert [index for batch in batches for index in batch.corrupt] == [4, 5, 6, 7, 11]
    kept = [row["video_id"] for index, row in enumerate(rows) if index not in (4, 5, 6, 7, 11)]
    assert [video for batch in batches for video in batch.rows.to_pandas()["video_id"]] == kept


def test_a_corrupt_mask_counts_as_a_corrupt_row(loaded, tmp_path):
    rows = make_rows()
    rows[2] = {**rows[2], "mask": {"bytes": b"no picture", "path": None}}
    (data,) = load_splits([str(write_set(tmp_path / "noise", rows))], "test")
    with pytest.raises(CorruptImageError, match="The mask of row 2"):
        list(predict(*loaded, data))


# ------------------------------------------------------------------------------------------------------- results


def test_the_files_say_what_was_run(loaded, noise, tmp_path):
    metrics = evaluate(loaded, [noise], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "metrics.json",
        "predictions.parquet",
        "run.json",
    ]
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == metrics
    predictions = pd.read_parquet(tmp_path / "out/predictions.parquet")
    assert list(predictions.columns) == PREDICTIONS_SCHEMA.names
    assert len(predictions) == 18

    run = json.loads((tmp_path / "out/run.json").read_text())
    assert (run["model"], run["revision"], run["seed"]) == ("some/model", "abc123", 5)
    assert run["seen_methods"] == ["swap"]
    assert run["crop"] == CROP
    assert {"python", "torch", "transformers", "timm", "datasets", "dcl_face_forgery"} <= run["versions"].keys()
    record = run["datasets"]["noise"]
    assert record["crop"] == CROP
    assert record["crop_matches"] is True
    assert record["unseen_methods"] == ["warp"]
    assert record["frames_per_video"] == {"min": 2, "median": 2.0, "max": 2}
    assert (record["rows"], record["videos"]) == (18, 9)
    assert record["fingerprint"] == noise.fingerprint
    assert record["skipped_corrupt"] == {"count": 0, "rows": []}


def test_localisation_is_null_without_masks(loaded, tmp_path):
    rows = [row for row in make_rows() if row["method"] != "swap"]
    (data,) = load_splits([str(write_set(tmp_path / "noise", rows))], "test")
    metrics = evaluate(loaded, [data], tmp_path / "out")["noise"]
    assert metrics["localisation"]["auc"] is None
    assert metrics["frame"]["auc"] is not None


def test_several_sets_share_a_table_and_keep_their_metrics_apart(loaded, noise, tmp_path):
    alone = evaluate(loaded, [noise], tmp_path / "alone")
    (other,) = load_splits([str(write_set(tmp_path / "other", make_rows(seed=1)))], "test")
    both = evaluate(loaded, [noise, other], tmp_path / "both")
    assert both["noise"] == alone["noise"]
    assert both["other"] != alone["noise"]
    assert (
        pd.read_parquet(tmp_path / "both/predictions.parquet")["dataset"].tolist() == ["noise"] * 18 + ["other"] * 18
    )


def test_a_run_that_dies_leaves_what_was_there(loaded, noise, tmp_path):
    evaluate(loaded, [noise], tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    rows = make_rows()
    rows[-1] = corrupt(rows[-1])
    (data,) = load_splits([str(write_set(tmp_path / "broken", rows))], "test")
    with pytest.raises(InputError):
        evaluate(loaded, [data], tmp_path / "out", batch_size=2)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_skipped_rows_are_counted_and_named(loaded, tmp_path):
    rows = make_rows()
    rows[3], rows[8] = corrupt(rows[3]), corrupt(rows[8])
    (data,) = load_splits([str(write_set(tmp_path / "noise", rows))], "test")
    metrics = evaluate(loaded, [data], tmp_path / "out", skip_corrupt=True)
    record = json.loads((tmp_path / "out/run.json").read_text())["datasets"]["noise"]
    assert record["skipped_corrupt"] == {"count": 2, "rows": [3, 8]}
    assert record["frames_per_video"] == {"min": 1, "median": 2.0, "max": 2}
    assert metrics["noise"]["frame"]["n"] == 16


def test_a_set_without_a_readable_image_is_refused(loaded, tmp_path):
    rows = [corrupt(row) for row in make_rows()]
    (data,) = load_splits([str(write_set(tmp_path / "noise", rows))], "test")
    with pytest.raises(InputError, match="none of the 18 images"):
        evaluate(loaded, [data], tmp_path / "out", skip_corrupt=True)


def test_a_folder_that_cannot_be_written_is_refused(loaded, noise, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"Output folder .*file.*: cannot be written"):
        evaluate(loaded, [noise], tmp_path / "file" / "out")


# --------------------------------------------------------------------------------------------------------- crops


def test_another_crop_is_evaluated_with_a_warning_and_a_note(loaded, tmp_path, caplog):
    rows = [{**row, "crop": {**CROP, "kind": "aligned5"}} for row in make_rows()]
    (data,) = load_splits([str(write_set(tmp_path / "noise", rows))], "test")
    evaluate(loaded, [data], tmp_path / "out")
    record = json.loads((tmp_path / "out/run.json").read_text())["datasets"]["noise"]
    assert record["crop_matches"] is False
    assert record["crop"]["kind"] == "aligned5"
    assert "The face crops of noise differ from the training data of some/model" in caplog.text


def test_mixed_crops_never_match(loaded, tmp_path):
    rows = make_rows()
    rows[0] = {**rows[0], "crop": {**CROP, "margin": 0.5}}
    write_set(tmp_path / "noise", rows)
    with pytest.raises(InputError, match="cut in 2 ways"):
        load_splits([str(tmp_path / "noise")], "test")
    (data,) = load_splits([str(tmp_path / "noise")], "test", allow_mixed_crops=True)
    evaluate(loaded, [data], tmp_path / "out")
    record = json.loads((tmp_path / "out/run.json").read_text())["datasets"]["noise"]
    assert (record["crop"], record["crop_is_mixed"], record["crop_matches"]) == (CROP, True, False)


@pytest.mark.parametrize(
    ("change", "matches"),
    [
        ({}, True),
        ({"margin": float(np.float32(0.3))}, True),
        ({"margin": 0.31}, False),
        ({"margin": None}, False),
        ({"size": 256}, False),
        ({"detector": None}, False),
    ],
)
def test_crops_match_if_every_field_does(change, matches):
    assert crop_matches({**CROP, **change}, CROP) is matches


def test_a_model_that_does_not_say_its_crop_matches_nothing(loaded, noise, tmp_path, caplog):
    model, _ = loaded
    evaluate((model, DCLImageProcessor(size={"height": 64, "width": 64})), [noise], tmp_path / "out")
    record = json.loads((tmp_path / "out/run.json").read_text())["datasets"]["noise"]
    assert record["crop_matches"] is None
    assert "does not record the face crop of its training data" in caplog.text


# --------------------------------------------------------------------------------------------------- checkpoints


def test_the_model_type_is_that_of_the_configuration():
    assert DCLConfig.model_type == MODEL_TYPE


def test_a_half_precision_checkpoint_is_run_in_single(folder, tmp_path):
    DCLForImageClassification.from_pretrained(folder).half().save_pretrained(tmp_path)
    DCLImageProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    model, _ = load_checkpoint(find_checkpoint(str(tmp_path)), CPU)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training


def test_a_checkpoint_without_a_classifier_is_refused(folder, tmp_path):
    DCLModel.from_pretrained(folder).save_pretrained(tmp_path)
    DCLImageProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"\d+ weights of the classifier are missing"):
        load_checkpoint(find_checkpoint(str(tmp_path)), CPU)


def test_trusted_code_of_the_checkpoint_runs_instead_of_the_package(folder, tmp_path):
    DCLForImageClassification.from_pretrained(folder).save_pretrained(tmp_path)
    DCLImageProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    checkpoint = find_checkpoint(str(tmp_path))
    model, processor = load_checkpoint(checkpoint, CPU, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules.")
    assert processor.crop == CROP
    assert type(load_checkpoint(checkpoint, CPU)[0]) is DCLForImageClassification


def test_an_export_is_no_checkpoint_that_can_be_evaluated(folder, tmp_path):
    shutil.copy(folder / "config.json", tmp_path)
    (tmp_path / "model_int8.onnx").write_bytes(b"")
    with pytest.raises(InputError, match="is an ONNX export without weights"):
        find_checkpoint(str(tmp_path))


def test_a_model_of_the_hub_is_recorded_with_its_commit(folder, tmp_path, monkeypatch):
    commit = tmp_path / "0123456789abcdef0123456789abcdef01234567"
    commit.symlink_to(folder)
    asked = []
    monkeypatch.setattr(hub_dcl, "hub_is_reachable", lambda: True)
    monkeypatch.setattr(hub_dcl, "snapshot_download", lambda name, **options: asked.append(name) or str(commit))
    checkpoint = find_checkpoint("someone/dcl")
    assert asked == ["someone/dcl"]
    assert checkpoint == Checkpoint("someone/dcl", commit, commit.name)


# ----------------------------------------------------------------------------------------------------- data sets


def test_data_sets_are_called_by_name_or_by_the_end_of_their_path(tmp_path):
    for name in ("a/noise", "b/noise", "b/other"):
        write_set(tmp_path / name, make_rows())

    def names(*sources, data_root=None):
        return [data.name for data in load_splits(sources, "test", data_root)]

    assert names("noise", "other", data_root=tmp_path / "b") == ["noise", "other"]
    assert names(str(tmp_path / "a/noise"), str(tmp_path / "b/other")) == ["noise", "other"]
    both = [str(tmp_path / "a/noise"), str(tmp_path / "b/noise")]
    assert names(*both) == both
    assert names(both[0], both[0]) == ["noise"]


def test_rows_without_a_label_are_refused(tmp_path):
    rows = make_rows()
    rows[4] = {**rows[4], "label": -1}
    write_set(tmp_path / "noise", rows)
    with pytest.raises(
        InputError, match=r"noise \(test\) has rows without a label: 1 \(such as row 4; the first is 0\)"
    ):
        load_splits([str(tmp_path / "noise")], "test")


def test_rows_of_two_compressions_are_not_taken_for_one_video(tmp_path):
    rows = [{**row, "compression": compression} for compression in ("c23", "c40") for row in make_rows()]
    write_set(tmp_path / "noise", rows)
    with pytest.raises(
        InputError, match=r"noise \(test\) has duplicate rows: 18 with the video and frame of another row"
    ):
        load_splits([str(tmp_path / "noise")], "test")


def test_rows_without_a_video_are_refused(tmp_path):
    rows = make_rows()
    rows[4] = {**rows[4], "video_id": None}
    write_set(tmp_path / "noise", rows)
    with pytest.raises(InputError, match="the column 'video_id' has rows without a value"):
        load_splits([str(tmp_path / "noise")], "test")
