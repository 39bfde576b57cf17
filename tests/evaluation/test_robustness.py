"""The evaluation on perturbed pictures, from the command to its files, against the model asked by hand."""

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from dcl_face_forgery.configuration_dcl import DCLConfig
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.evaluate_dcl import main
from dcl_face_forgery.evaluation.reporting import figures
from dcl_face_forgery.evaluation.reporting.figures import draw_robustness
from dcl_face_forgery.evaluation.robustness import robustness_tables
from dcl_face_forgery.evaluation.scoring.checkpoints import find_checkpoint
from dcl_face_forgery.evaluation.scoring.perturbations import Perturbation
from dcl_face_forgery.evaluation.scoring.predictions import load_checkpoint, predict
from dcl_face_forgery.image_processing_dcl import DCLImageProcessor
from dcl_face_forgery.modeling_dcl import DCLForPreTraining
from dcl_face_forgery.prepared.dataset import decode_image
from dcl_face_forgery.prepared.splits import load_splits
from dcl_face_forgery.tests.shared.prepared_data import CROP, make_rows, write_split

CPU = torch.device("cpu")
FILES = ["robustness.csv", "robustness.json", "robustness.md", "robustness.png"]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A `checkpoint` with scores that are spread, and `textures`: three reals, each forged by two methods."""
    folder = tmp_path_factory.mktemp("here")
    torch.manual_seed(0)
    config = DCLConfig(backbone="test_efficientnet", image_size=64, queue_size=16, hard_samples=2)
    model = DCLForPreTraining(config)
    torch.nn.init.normal_(model.classifier.linear.weight, std=2)
    model.save_pretrained(folder / "checkpoint")
    DCLImageProcessor(size={"height": 64, "width": 64}, crop=CROP).save_pretrained(folder / "checkpoint")
    write_split(folder / "textures", "test", rows_of_test())
    return folder


def rows_of_test():
    return make_rows(range(3), methods=("swap", "warp"))


def run(here, out, *options, dataset="textures"):
    arguments = ["--model", here / "checkpoint", "--dataset", here / dataset, "--output_dir", out, "--device", "cpu"]
    main([str(argument) for argument in (*arguments, *options)])


@pytest.fixture(scope="module")
def done(here, tmp_path_factory):
    """The results of two types and a family."""
    out = tmp_path_factory.mktemp("out")
    run(here, out, "--perturbations", "gaussian_noise", "block_wise", "jpeg", "--seed", "5")
    return out


def load(folder):
    return json.loads((folder / "robustness.json").read_text())


@pytest.mark.parametrize("cell", [("gaussian_noise", 4), ("block_wise", 5), ("jpeg", 5)])
def test_a_cell_is_what_the_model_says_of_perturbed_pictures(here, done, cell):
    name, level = cell
    model, processor = load_checkpoint(find_checkpoint(str(here / "checkpoint")), CPU)
    rows = rows_of_test()
    images = [
        Perturbation(name, level, seed=5)(decode_image(row["image"], "a row"), row["video_id"], row["frame"])
        for row in rows
    ]
    with torch.no_grad():
        logits = model(processor(images, return_tensors="pt")["pixel_values"]).logits
    scores = pd.DataFrame(rows)[["video_id", "label"]].assign(p=logits.softmax(1)[:, 1].numpy())
    results = load(done)["datasets"]["textures"]["types"][name]["levels"][level - 1]
    assert results["level"] == level
    assert results["frame"] == {"auc": pytest.approx(roc_auc_score(scores["label"], scores["p"])), "n": 18}
    videos = scores.groupby("video_id").mean()
    assert results["video"] == {"auc": pytest.approx(roc_auc_score(videos["label"], videos["p"])), "n": 9}


def test_the_record_has_the_clean_scores_beside_and_the_mean_of_each_type(done):
    robustness, metrics = load(done), json.loads((done / "metrics.json").read_text())["textures"]
    run_record = json.loads((done / "run.json").read_text())
    assert (robustness["model"], robustness["revision"]) == (run_record["model"], run_record["revision"])
    assert robustness["seed"] == 5
    assert {"av", "cv2", "PIL", "numpy", "torch"} <= robustness["versions"].keys()
    assert list(robustness["types"]) == ["gaussian_noise", "block_wise", "jpeg"]
    assert robustness["types"]["jpeg"] == {"parameter": "quality", "values": [95, 75, 50, 30, 10]}
    results = robustness["datasets"]["textures"]
    assert results["fingerprint"] == run_record["datasets"]["textures"]["fingerprint"]
    for unit in ("frame", "video"):
        assert results["clean"][unit] == {"auc": metrics[unit]["auc"], "n": metrics[unit]["n"]}
        for result in results["types"].values():
            areas = [level[unit]["auc"] for level in result["levels"]]
            assert result["mean"][unit] == pytest.approx(np.mean(areas))
    noise = [level["frame"]["auc"] for level in results["types"]["gaussian_noise"]["levels"]]
    assert len({*noise, results["clean"]["frame"]["auc"]}) > 3  # else the pictures might be the clean ones


def test_the_tables_say_what_the_record_says(done, capsys):
    robustness = load(done)["datasets"]["textures"]
    table = pd.read_csv(done / "robustness.csv")
    assert len(table) == 16
    assert table.iloc[0][["type", "level", "frame_n", "video_n"]].tolist() == ["clean", 0, 18, 9]
    for name, result in robustness["types"].items():
        cells = table[table["type"] == name]
        assert cells["level"].tolist() == [1, 2, 3, 4, 5]
        assert cells["video_auc"].tolist() == pytest.approx([level["video"]["auc"] for level in result["levels"]])
    noise = robustness["types"]["gaussian_noise"]
    numbers = [robustness["clean"]["frame"]["auc"], *(x["frame"]["auc"] for x in noise["levels"])]
    shown = " | ".join(f"{number:.3f}" for number in [*numbers, noise["mean"]["frame"]])
    expected = f"| gaussian_noise (variance 0.001, 0.002, 0.005, 0.01, 0.05) | {shown} |"
    assert expected in (done / "robustness.md").read_text()


def test_the_same_run_gives_the_same_files_and_nothing_else(here, done, tmp_path, capsys):
    run(here, tmp_path, "--perturbations", "gaussian_noise", "block_wise", "jpeg", "--seed", "5")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*FILES, "metrics.json", "predictions.parquet", "run.json", "table.csv", "table.json", "table.md"]
    )
    for name in FILES[:3]:
        assert (tmp_path / name).read_bytes() == (done / name).read_bytes()
    assert (done / "robustness.md").read_text() in capsys.readouterr().out


def test_without_the_option_there_is_no_robustness(here, tmp_path):
    run(here, tmp_path)
    assert not [path for path in tmp_path.iterdir() if "robustness" in path.name]


def test_a_robustness_stays_beside_results_of_the_same_weights_and_rows_only(here, done, tmp_path):
    shutil.copytree(done, tmp_path / "out")
    run(here, tmp_path / "out", "--bootstrap", "0")
    assert set(FILES) <= set(os.listdir(tmp_path / "out"))
    robustness = load(tmp_path / "out")
    (tmp_path / "out/robustness.json").write_text(json.dumps({**robustness, "revision": "another"}))
    run(here, tmp_path / "out", "--bootstrap", "0")
    assert not set(FILES) & set(os.listdir(tmp_path / "out"))
    shutil.copytree(done, tmp_path / "other")
    write_split(tmp_path / "textures", "test", make_rows(range(2)))
    run(here, tmp_path / "other", "--bootstrap", "0", dataset=tmp_path / "textures")
    assert not set(FILES) & set(os.listdir(tmp_path / "other"))


def test_hostile_names_stay_in_their_lines(done):
    robustness = load(done)
    hostile = {"a\n# b | <c>": robustness["datasets"]["textures"]}
    text = robustness_tables({**robustness, "datasets": hostile})
    assert "a # b \\| &lt;c&gt;: frame AUC by type and level of perturbation (18 frames)" in text
    assert "\n# b" not in text and "<c>" not in text


def test_neither_workers_nor_the_order_of_rows_change_a_perturbed_picture(here, tmp_path):
    model, processor = load_checkpoint(find_checkpoint(str(here / "checkpoint")), CPU)
    write_split(tmp_path / "reversed", "test", rows_of_test()[::-1])
    (data,) = load_splits([str(here / "textures")], "test")
    (turned,) = load_splits([str(tmp_path / "reversed")], "test")

    def logits(data, level=5, **options):
        change = Perturbation("gaussian_noise", level)
        batches = predict(model, processor, data, batch_size=1, change=change, **options)
        return pd.concat(batch.rows.to_pandas() for batch in batches)["logit"].to_numpy()

    alone = logits(data)
    np.testing.assert_array_equal(logits(data, num_workers=2), alone)
    np.testing.assert_array_equal(logits(turned)[::-1], alone)
    assert np.abs(logits(data, level=1) - alone).max() > 0.01


def test_rows_that_cannot_be_decoded_are_left_out_of_every_cell(here, tmp_path):
    rows = rows_of_test()
    rows[3] = {**rows[3], "image": {"bytes": rows[3]["image"]["bytes"][:40], "path": None}}
    write_split(tmp_path / "broken", "test", rows)
    run(here, tmp_path / "out", "--perturbations", "resize", "--skip_corrupt", dataset=tmp_path / "broken")
    results = load(tmp_path / "out")["datasets"]["broken"]
    assert {cell["frame"]["n"] for cell in (results["clean"], *results["types"]["resize"]["levels"])} == {17}


def test_reals_alone_give_no_number_but_the_reason(here, tmp_path):
    write_split(tmp_path / "reals", "test", make_rows(range(2), methods=()))
    run(here, tmp_path / "out", "--perturbations", "color_contrast", dataset=tmp_path / "reals")
    results = load(tmp_path / "out")["datasets"]["reals"]
    assert results["types"]["color_contrast"]["mean"] == {"frame": None, "video": None}
    assert "all 4 frames are real" in results["types"]["color_contrast"]["levels"][0]["frame"]["reason"]
    markdown = (tmp_path / "out/robustness.md").read_text()
    assert "| - | - | - | - | - | - | - |" in markdown
    assert "No AUC: all 4 frames are real" in markdown
    assert (tmp_path / "out/robustness.png").exists()


def test_an_unknown_name_is_refused_before_anything_is_written(here, tmp_path):
    with pytest.raises(SystemExit) as stop:
        run(here, tmp_path / "out", "--perturbations", "jpeg", "fog")
    assert stop.value.code.startswith("error: Unknown perturbation 'fog'. Choose from deeperforensics, all,")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------------ picture


def test_the_heat_map_has_a_row_a_type_in_the_colour_of_its_numbers(tmp_path):
    def result_of(area):
        cell = {unit: {"auc": area, "n": 8} for unit in ("frame", "video")}
        return {"levels": [cell] * 5, "mean": {"frame": area, "video": area}}

    types = {"jpeg": result_of(1.0), "resize": result_of(0.3), "color_contrast": result_of(None)}
    results = {"clean": types["color_contrast"]["levels"][0], "types": types}
    draw_robustness({"types": types, "datasets": {"set": results}}).savefig(tmp_path / "map.png")
    pixels = np.asarray(Image.open(tmp_path / "map.png").convert("RGB")).astype(int)

    def rows_of(color):
        return np.flatnonzero((np.abs(pixels - color).max(2) <= 1).mean(1) > 0.4)

    yellow, purple = rows_of((253, 231, 36)), rows_of((68, 1, 84))  # the ends of viridis
    assert len(yellow) > 30
    assert len(purple) == pytest.approx(len(yellow), rel=0.1)
    assert yellow.max() < purple.min() < pixels.shape[0] - 1.5 * len(yellow)  # the third row is white


def test_without_matplotlib_the_numbers_are_there_and_the_picture_is_missed(here, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(figures, "Figure", None)
    (tmp_path / "robustness.png").touch()  # of another run
    run(here, tmp_path, "--perturbations", "color_contrast")
    assert {"robustness.csv", "robustness.json", "robustness.md"} <= set(os.listdir(tmp_path))
    assert "robustness.png" not in os.listdir(tmp_path)
    assert "Figures need matplotlib: pip install" in caplog.text
    with pytest.raises(InputError, match=r"dcl-face-forgery\[report\]"):
        draw_robustness(load(tmp_path))
