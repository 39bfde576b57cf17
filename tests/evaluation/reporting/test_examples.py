"""The second look at some rows: which they are, and what the model made of them."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from dcl_face_forgery.configuration_dcl import DCLConfig
from dcl_face_forgery.evaluation.reporting.examples import (
    MOST_METHODS,
    PARTS,
    Example,
    Looks,
    cell_similarities,
    choose_evenly,
    choose_examples,
    embed_in_plane,
    look_again,
    mean_similarities,
)
from dcl_face_forgery.evaluation.scoring.predictions import predict
from dcl_face_forgery.image_processing_dcl import DCLImageProcessor
from dcl_face_forgery.modeling_dcl import DCLForImageClassification, DCLForPreTraining
from dcl_face_forgery.prepared.cells import forged_cells
from dcl_face_forgery.prepared.dataset import decode_image, decode_mask
from dcl_face_forgery.prepared.splits import load_splits
from dcl_face_forgery.tests.shared.prepared_data import make_rows, write_split


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three reals, each forged by two methods, two frames a video; the masks of "warp" are not known."""
    folder = tmp_path_factory.mktemp("sets") / "textures"
    rows = [
        {**row, "mask": None} if row["method"] == "warp" else row
        for row in make_rows(range(3), methods=("swap", "warp"))
    ]
    write_split(folder, "test", rows)
    (data,) = load_splits([str(folder)], "test")
    return data


def make_model(seed=0, cls=DCLForImageClassification):
    torch.manual_seed(seed)
    model = cls(DCLConfig(backbone="test_efficientnet", image_size=96, queue_size=16, hard_samples=2))
    torch.nn.init.normal_(model.classifier.linear.weight, std=2)
    return model.eval()


PROCESSOR = DCLImageProcessor(size={"height": 96, "width": 96})


def predictions_of(model, data):
    return pd.concat(batch.rows.to_pandas() for batch in predict(model, PROCESSOR, data))


def table(scores, frames=1):
    """Rows of `{method: [p_fake, ...]}`; "real" is."""
    rows = [
        (method, f"{method}/{index // frames:03}", index % frames, int(method != "real"), score)
        for method, values in scores.items()
        for index, score in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=["method", "video_id", "frame", "label", "p_fake"])


# ------------------------------------------------------------------------------------------------------- which rows


def test_examples_are_the_medians_and_the_worst_of_either_kind():
    rows = table({"real": [0.1, 0.9, 0.2, 0.3], "swap": [0.9, 0.5, 0.7], "warp": [0.01, 0.8]}).sample(
        frac=1, random_state=0
    )
    chosen, left_out = choose_examples(rows)
    assert left_out == 0
    medians = chosen[chosen["why"] == "median"]
    assert dict(zip(medians["method"], medians["p_fake"], strict=True)) == {"real": 0.2, "swap": 0.7, "warp": 0.01}
    assert chosen[chosen["why"] == "lowest fake"]["p_fake"].tolist() == [0.01, 0.5, 0.7, 0.8, 0.9]
    assert chosen[chosen["why"] == "highest real"]["p_fake"].tolist() == [0.9, 0.3, 0.2, 0.1]
    assert (rows.loc[chosen.index, "p_fake"].to_numpy() == chosen["p_fake"]).all()


def test_the_worst_are_of_different_videos_and_six():
    rows = table({"swap": np.linspace(0, 1, 40), "real": [0.5]}, frames=4)
    worst = choose_examples(rows)[0].query("why == 'lowest fake'")
    assert worst["video_id"].is_unique
    assert worst["p_fake"].tolist() == pytest.approx([0, 4 / 39, 8 / 39, 12 / 39, 16 / 39, 20 / 39])


def test_of_too_many_methods_the_hardest_are_shown():
    chosen, left_out = choose_examples(table({f"m{number:02}": [1 - number / 100] for number in range(30)}))
    medians = chosen.query("why == 'median'")
    assert left_out == 30 - MOST_METHODS
    assert medians["method"].tolist() == [f"m{number:02}" for number in range(6, 30)]


@pytest.mark.parametrize("kind", ["real", "swap"])
def test_one_class_and_broken_scores_give_what_there_is(kind):
    chosen, _ = choose_examples(table({kind: [0.3, np.nan]}))
    assert chosen["p_fake"].tolist() == [0.3, 0.3]


def test_rows_are_chosen_evenly_by_method_and_video_whatever_their_order():
    rows = table({"real": [0.1] * 80, "swap": [0.9] * 80, "warp": [0.5] * 6}, frames=4)
    chosen = choose_evenly(rows, 30)
    assert chosen["method"].value_counts().to_dict() == {"real": 12, "swap": 12, "warp": 6}
    assert chosen.query("method == 'real'")["video_id"].is_unique  # of 20 videos
    shuffled = choose_evenly(rows.sample(frac=1, random_state=1), 30)
    assert sorted(shuffled.index) == sorted(chosen.index)
    few = choose_evenly(rows, 15).query("method == 'real'")["video_id"]
    assert few.str[-3:].astype(int).max() >= 12  # not only the first videos
    assert len(choose_evenly(rows, 1000)) == len(rows)


# ------------------------------------------------------------------------------------------------- what is looked at


def test_what_is_seen_is_what_the_model_says_when_asked_by_hand(data):
    model = make_model()
    predictions = predictions_of(model, data)
    looks = look_again(model, PROCESSOR, data, predictions.sample(frac=1, random_state=0), batch_size=4)
    assert {example.method for example in looks.examples} == {"original", "swap", "warp"}
    for example in looks.examples:
        (row,) = [r for r in data.dataset if (r["video_id"], r["frame"]) == (example.video_id, example.frame)]
        image = decode_image(row["image"], "a row")
        np.testing.assert_array_equal(example.image, image)
        pixel_values = PROCESSOR([image], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            outputs, features = model(pixel_values), model.dcl(pixel_values).last_hidden_state
        assert example.p_fake == pytest.approx(float(outputs.logits.softmax(1)[0, 1]), abs=1e-5)
        np.testing.assert_allclose(example.evidence, outputs.evidence[0], atol=1e-4)
        cells = features[0].flatten(1)
        cosine = torch.nn.functional.cosine_similarity(cells[:, 0], cells[:, 4], dim=0)
        assert example.grid == (3, 3)
        assert example.similarities[0, 4] == pytest.approx(float(cosine), abs=1e-5)
        if example.method == "swap":
            mask = decode_mask(row["mask"], "a row")
            np.testing.assert_array_equal(example.mask, mask)
            np.testing.assert_array_equal(example.forged, forged_cells(mask, (3, 3), model.config))
        else:
            assert example.mask is None
            assert example.forged is None if example.method == "warp" else not example.forged.any()
    assert looks.points.shape == (18, 2)
    assert sorted(looks.methods) == sorted(predictions["method"])
    means = {row["method"]: row for row in looks.similarity}
    assert list(means) == ["original", "swap", "warp"]
    assert means["original"]["forged_forged"] is None and means["original"]["n"] == 6
    assert [means["warp"][part] for part in PARTS] == [None] * 3
    assert None not in [means["swap"][part] for part in PARTS]


def test_a_cell_is_not_compared_with_itself(data):
    model = make_model()
    model.config.mask_threshold = 0.01  # several of nine cells are forged
    predictions = predictions_of(model, data).query("method == 'swap'").head(1)
    looks = look_again(model, PROCESSOR, data, predictions)
    example = looks.examples[0]
    inside, outside = np.flatnonzero(example.forged), np.flatnonzero(~example.forged)
    assert len(inside) > 1 and len(outside) > 1
    (means,) = looks.similarity
    for part, (one, other) in zip(PARTS, ((outside, outside), (inside, inside), (outside, inside)), strict=True):
        pairs = [example.similarities[i, j] for i in one for j in other if i != j]
        assert means[part] == pytest.approx(np.mean(pairs), abs=1e-5)


def test_a_second_run_sees_the_same(data):
    model = make_model()
    predictions = predictions_of(model, data)
    first, second = (look_again(model, PROCESSOR, data, predictions, batch_size=size) for size in (4, 4))
    np.testing.assert_array_equal(first.points, second.points)
    assert first.similarity == second.similarity


def test_rows_that_were_skipped_are_not_looked_for(data):
    model = make_model()
    predictions = predictions_of(model, data).iloc[1:]
    looks = look_again(model, PROCESSOR, data, predictions, most=4)
    assert len(looks.methods) == 4


def test_a_feature_map_in_the_output_is_taken(data):
    model = make_model(cls=DCLForPreTraining)
    looks = look_again(model, PROCESSOR, data, predictions_of(model, data))
    assert looks.examples[0].grid == (3, 3)


class Plain(torch.nn.Module):
    """A classifier of another kind: no evidence, no map."""

    device, config = torch.device("cpu"), SimpleNamespace()

    def forward(self, pixel_values):
        return SimpleNamespace(logits=pixel_values.mean((2, 3))[:, :2])


def test_a_model_without_evidence_and_map_gives_pictures_and_masks_alone(data):
    predictions = predictions_of(make_model(), data)
    looks = look_again(Plain(), PROCESSOR, data, predictions)
    assert len(looks.examples) > 6
    assert looks.limit is None and looks.points is None and looks.similarity == []
    assert all(example.evidence is None and example.similarities is None for example in looks.examples)
    assert any(example.mask is not None for example in looks.examples)


# ---------------------------------------------------------------------------------------------------------- numbers


def test_similarities_of_cells_are_cosines():
    features = np.array([[[1, 0], [-2, 1]], [[0, 3], [0, 1]]], np.float32)  # (C, h, w)
    expected = [
        [1, 0, -1, 0.5**0.5],
        [0, 1, 0, 0.5**0.5],
        [-1, 0, 1, -(0.5**0.5)],
        [0.5**0.5, 0.5**0.5, -(0.5**0.5), 1],
    ]
    np.testing.assert_allclose(cell_similarities(features), expected, atol=1e-6)


def test_means_are_over_the_faces_that_have_a_part():
    nan = float("nan")
    blocks = [dict(zip(PARTS, values, strict=True)) for values in ((0.2, nan, nan), (0.4, 0.6, 0.1), (nan, 0.8, nan))]
    found = mean_similarities(["orl", "swap", "swap"], [0, 1, 1], blocks)
    assert [row["method"] for row in found] == ["orl", "swap"]
    assert found[0] == {
        "method": "orl", "label": 0, "n": 1, "real_real": 0.2, "forged_forged": None, "real_forged": None,
    }  # fmt: skip
    assert found[1]["forged_forged"] == pytest.approx(0.7)
    assert found[1]["real_forged"] == 0.1
    assert mean_similarities([], [], []) == []


def test_clusters_stay_together_in_the_plane_and_too_little_is_not_embedded():
    rng = np.random.default_rng(0)
    vectors = np.concatenate([rng.normal(center, 0.01, (20, 5)) for center in (0, 1)])
    points = embed_in_plane(vectors)
    np.testing.assert_array_equal(points, embed_in_plane(vectors))
    apart = np.linalg.norm(points[:20].mean(0) - points[20:].mean(0))
    assert apart > 2 * np.linalg.norm(points[:20] - points[:20].mean(0), axis=1).mean()
    assert embed_in_plane(vectors[:9]) is None
    assert embed_in_plane(np.ones((30, 4))) is None
    assert embed_in_plane(np.full((30, 4), np.nan)) is None


def test_all_sheets_share_the_scale_of_the_evidence():
    image = np.zeros((4, 4, 3), np.uint8)
    examples = [
        Example("median", "m", 1, "v", 0, 0.5, image, evidence=np.full((10, 10), value, np.float32))
        for value in (1, -3)
    ]
    assert Looks(examples).limit == pytest.approx(3)
    assert Looks([]).limit is None
    assert Looks([Example("median", "m", 1, "v", 0, 0.5, image, evidence=np.zeros((2, 2)))]).limit is None
