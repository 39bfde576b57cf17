"""Which faces are unlike the validation data: fitted on held-out families, for both classes alike, or a reason."""

import json

import numpy as np
import pandas as pd
import pytest

from dcl_face_forgery.abstention_dcl import check_familiarity, distances
from dcl_face_forgery.evaluation import familiarity as module
from dcl_face_forgery.evaluation.familiarity import FEWEST_FACES, fit_familiarity
from dcl_face_forgery.modeling_dcl import REFERENCE_FEATURES


def simulated(families, fakes=1, frames=5, dimension=REFERENCE_FEATURES, spread=0.35, seed=0):
    """Features of families: each person apart, his frames and their forgeries about him."""
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(99).normal(size=(2, dimension))  # the same whatever the people
    rows, features, sharpness = [], [], []
    for family in range(families):
        person, blur = spread * rng.normal(size=dimension), 0.2 * rng.normal()
        for method in range(fakes + 1):
            label = int(method > 0)
            for _ in range(frames):
                rows.append({"video_id": f"{method}/{seed}-{family}", "source_id": f"{seed}-{family}", "label": label})
                features.append(means[label] + person + 0.3 * rng.normal(size=dimension))
                sharpness.append(np.exp(blur + 0.2 * rng.normal()))
    features = np.array(features, np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return pd.DataFrame(rows), features, np.array(sharpness)


def test_faces_of_new_people_are_refused_as_seldom_as_promised():
    found = fit_familiarity(*simulated(60))
    check_familiarity(found)
    _, features, sharpness = simulated(400, seed=1)
    assert (distances(features, found) > found["distance_threshold"]).mean() < 0.02
    assert (sharpness < found["sharpness_threshold"]).mean() < 0.02


def test_few_families_get_thresholds_that_new_people_still_keep():
    refused = []
    for seed in range(12):
        found = fit_familiarity(*simulated(4, frames=15, seed=seed))
        _, features, sharpness = simulated(100, seed=100 + seed)
        far = distances(features, found) > found["distance_threshold"]
        refused.append((far.mean(), (sharpness < found["sharpness_threshold"]).mean()))
    assert np.mean(refused, axis=0)[0] < 0.02 and np.mean(refused, axis=0)[1] < 0.05


def test_what_is_unlike_all_that_was_seen_lies_beyond_the_threshold():
    found = fit_familiarity(*simulated(30))
    strangers = np.random.default_rng(5).normal(size=(50, REFERENCE_FEATURES))
    strangers /= np.linalg.norm(strangers, axis=1, keepdims=True)
    assert (distances(strangers, found) > found["distance_threshold"]).all()


def test_of_many_families_at_most_one_percent_lies_beyond_and_not_much_less():
    rows, features, sharpness = simulated(300)
    found = fit_familiarity(rows, features, sharpness)
    assert 0.004 < (sharpness < found["sharpness_threshold"]).mean() <= 0.01
    strangers = simulated(300, seed=1)[1]
    assert 0.002 < (distances(strangers, found) > found["distance_threshold"]).mean() <= 0.015


def test_reals_are_not_refused_more_because_fakes_are_many():
    rows, features, sharpness = simulated(40, fakes=9)
    reals = (rows.label == 0).to_numpy()
    sharpness[reals] *= 0.5  # were every face to weigh the same, nearly all that is refused would be real
    found = fit_familiarity(rows, features, sharpness)
    assert (sharpness[reals] < found["sharpness_threshold"]).mean() <= 0.02


def test_neither_the_order_of_rows_nor_the_names_of_people_matter():
    rows, features, sharpness = simulated(12, frames=6)
    order = np.random.default_rng(3).permutation(len(rows))
    found = fit_familiarity(rows, features, sharpness)
    again = fit_familiarity(rows.iloc[order].reset_index(drop=True), features[order], sharpness[order])
    assert found["sharpness_threshold"] == pytest.approx(again["sharpness_threshold"], rel=1e-9)
    assert found["distance_threshold"] == pytest.approx(again["distance_threshold"], rel=1e-3)
    assert fit_familiarity(rows, features, sharpness) == found


def test_the_distance_is_judged_on_families_that_were_held_out(monkeypatch):
    rows, features, sharpness = simulated(5, frames=10)
    fitted = []
    original = module._statistics

    def watched(part, weights):
        fitted.append({tuple(row) for row in part})
        return original(part, weights)

    monkeypatch.setattr(module, "_statistics", watched)
    fit_familiarity(rows, features, sharpness)
    *folds, last = fitted
    assert len(folds) == 5 and len(last) == len(rows)
    families = [{tuple(row) for row in features[rows.source_id == name]} for name in rows.source_id.unique()]
    for family in families:
        assert sum(not family & fold for fold in folds) == 1
        assert all(family <= fold or not family & fold for fold in folds)


@pytest.mark.parametrize("families, frames", [(2, 60), (10, 4)])
def test_too_small_a_split_gives_a_reason_and_no_threshold(families, frames):
    found = fit_familiarity(*simulated(families, frames=frames))
    check_familiarity(found)
    assert found["statistics"] is found["sharpness_threshold"] is found["distance_threshold"] is None
    assert f"{2 * families * frames} faces of {families} families are too few" in found["reason"]
    assert (found["faces"], found["families"]) == (2 * families * frames, families)


def test_a_split_of_unknown_families_gives_a_reason():
    rows, features, sharpness = simulated(10, frames=10)
    found = fit_familiarity(rows.assign(video_id=None, source_id=None), features, sharpness)
    assert "neither source_id nor video_id" in found["reason"] and found["statistics"] is None


def test_where_no_validation_face_has_detail_none_is_refused_for_that():
    rows, features, sharpness = simulated(10, frames=FEWEST_FACES // 20)  # the fewest that can be fitted
    assert fit_familiarity(rows, features, np.zeros_like(sharpness))["sharpness_threshold"] == 0


def test_the_statistics_fit_into_a_configuration():
    assert len(json.dumps(fit_familiarity(*simulated(4, frames=20)))) < 15_000
