"""Metrics against scikit-learn, cases worked out by hand, and the laws they obey."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score

from dcl.evaluation.metrics import binary_metrics, frame_and_video_metrics, localisation_metrics, video_scores

law = settings(max_examples=30, derandomize=True, deadline=None)
# Multiples of 1/16: 1 - p is exact, and a few levels make ties common.
levels = st.integers(0, 16).map(lambda level: level / 16)
scored = st.lists(st.tuples(st.integers(0, 1), levels), min_size=2, max_size=40)


def unzip(pairs):
    labels, scores = (np.array(column) for column in zip(*pairs, strict=True))
    return labels, scores.astype(float)


@st.composite
def both_classes(draw):
    labels, scores = unzip(draw(scored))
    assume(0 < labels.sum() < len(labels))
    return labels, scores


def table(*rows, dataset="demo"):
    columns = ["method", "video_id", "label", "p_fake"]
    return pd.DataFrame(rows, columns=columns).assign(dataset=dataset)


# -------------------------------------------------------------------------------------------------- one set of scores


def test_hand_computed_case():
    # Ranked: F .9, R .8, F .7, F .4, R .1. Pairs won by the fake: 2 + 1 + 1 of 6.
    metrics = binary_metrics(np.array([1, 0, 1, 1, 0]), np.array([0.9, 0.8, 0.7, 0.4, 0.1]))
    assert metrics["auc"] == pytest.approx(4 / 6)
    assert metrics["ap"] == pytest.approx((1 / 1 + 2 / 3 + 3 / 4) / 3)
    assert metrics["accuracy"] == pytest.approx(3 / 5)
    assert metrics["n"] == 5
    # ROC (0,0) (0,1/3) (1/2,1/3) (1/2,1) (1,1): FPR = 1 - TPR on the vertical piece at FPR 1/2.
    assert metrics["eer"] == pytest.approx(1 / 2)
    assert "reason" not in metrics


def test_eer_is_interpolated_on_a_slanted_piece_of_the_curve():
    # One tie of a real and two fakes: ROC (0,0) (0,1/3) (1/2,1) (1,1): 1/3 + 4/3 x = 1 - x at x = 2/7.
    metrics = binary_metrics(np.array([1, 1, 1, 0, 0]), np.array([0.9, 0.5, 0.5, 0.5, 0.1]))
    assert metrics["eer"] == pytest.approx(2 / 7)


def test_a_tie_counts_one_half():
    assert binary_metrics(np.array([0, 1]), np.array([0.5, 0.5]))["auc"] == 0.5
    constant = binary_metrics(np.array([0, 0, 1]), np.full(3, 0.3))
    assert (constant["auc"], constant["eer"], constant["ap"]) == pytest.approx((0.5, 0.5, 1 / 3))


def test_half_is_called_fake():
    assert binary_metrics(np.array([1, 1, 0]), np.array([0.5, 0.49, 0.5]))["accuracy"] == pytest.approx(1 / 3)


def test_perfect_and_inverted_scores():
    labels = np.array([0, 0, 1, 1])
    perfect, inverted = binary_metrics(labels, labels), binary_metrics(labels, 1 - labels)
    assert (perfect["auc"], perfect["eer"], perfect["accuracy"]) == (1, 0, 1)
    assert (inverted["auc"], inverted["eer"], inverted["accuracy"]) == (0, 1, 0)


@law
@given(both_classes())
def test_agrees_with_scikit_learn(case):
    labels, scores = case
    metrics = binary_metrics(labels, scores)
    assert metrics["auc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert metrics["ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(labels, scores >= 0.5), abs=1e-12)


@law
@given(both_classes())
def test_auc_is_the_share_of_pairs_that_the_fake_wins(case):
    labels, scores = case
    won = np.sign(scores[labels == 1][:, None] - scores[labels == 0][None, :]).mean() / 2 + 0.5
    assert binary_metrics(labels, scores)["auc"] == pytest.approx(won, abs=1e-12)


@law
@given(both_classes(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(case, random):
    labels, scores = case
    order = list(range(len(labels)))
    random.shuffle(order)
    assert binary_metrics(labels[order], scores[order]) == pytest.approx(binary_metrics(labels, scores), abs=1e-12)


@law
@given(both_classes())
def test_auc_of_the_opposite_scores_is_the_complement(case):
    labels, scores = case
    total = binary_metrics(labels, scores)["auc"] + binary_metrics(labels, 1 - scores)["auc"]
    assert total == pytest.approx(1, abs=1e-12)


@law
@given(both_classes(), st.integers(2, 4))
def test_duplicated_rows_leave_every_rate(case, times):
    labels, scores = case
    once, often = binary_metrics(labels, scores), binary_metrics(np.repeat(labels, times), np.repeat(scores, times))
    for name in ("auc", "eer", "ap", "accuracy"):
        assert often[name] == pytest.approx(once[name], abs=1e-12)


@law
@given(both_classes())
def test_eer_is_a_rate_and_symmetric_in_the_classes(case):
    labels, scores = case
    eer = binary_metrics(labels, scores)["eer"]
    assert 0 <= eer <= 1
    assert binary_metrics(1 - labels, 1 - scores)["eer"] == pytest.approx(eer, abs=1e-12)
    assert binary_metrics(labels, 1 - scores)["eer"] == pytest.approx(1 - eer, abs=1e-12)


@law
@given(both_classes())
def test_eer_is_where_the_joined_points_of_the_roc_cross_the_diagonal(case):
    labels, scores = case
    thresholds = np.concatenate([[np.inf], np.unique(scores)[::-1]])
    fpr = np.array([(scores[labels == 0] >= threshold).mean() for threshold in thresholds])
    tpr = np.array([(scores[labels == 1] >= threshold).mean() for threshold in thresholds])
    index = np.arange(len(thresholds))
    crossing = brentq(lambda t: np.interp(t, index, fpr) + np.interp(t, index, tpr) - 1, 0, index[-1], xtol=1e-14)
    assert binary_metrics(labels, scores)["eer"] == pytest.approx(np.interp(crossing, index, fpr), abs=1e-9)


@law
@given(both_classes())
def test_ranking_metrics_depend_on_the_order_of_scores_only(case):
    labels, scores = case
    squashed = 1 / (1 + np.exp(-5 * scores))
    for name in ("auc", "eer", "ap"):
        assert binary_metrics(labels, squashed)[name] == pytest.approx(binary_metrics(labels, scores)[name], abs=1e-12)


@pytest.mark.parametrize(("label", "name"), [(0, "real"), (1, "fake")])
def test_one_class_leaves_only_accuracy(label, name):
    metrics = binary_metrics(np.full(4, label), np.array([0.1, 0.2, 0.3, 0.9]), "frames")
    assert (metrics["auc"], metrics["eer"], metrics["ap"]) == (None, None, None)
    assert metrics["accuracy"] == (0.75 if label == 0 else 0.25)
    assert f"all 4 frames are {name}" in metrics["reason"]


def test_no_scores_leave_nothing():
    metrics = binary_metrics(np.empty(0, int), np.empty(0), "videos")
    assert metrics == {
        "auc": None, "eer": None, "ap": None, "accuracy": None, "n": 0, "reason": "there are no videos",
    }  # fmt: skip


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_leaves_nothing(broken):
    metrics = binary_metrics(np.array([0, 1, 1]), np.array([0.2, 0.9, broken]), "frames")
    assert [metrics[name] for name in ("auc", "eer", "ap", "accuracy", "n")] == [None, None, None, None, 3]
    assert metrics["reason"] == "1 of 3 frames have a score that is not finite"


# ---------------------------------------------------------------------------------------------------------- videos


def test_a_video_is_scored_by_the_mean_of_its_frames():
    rows = table(("real", "real/a", 0, 0.2), ("swap", "swap/a", 1, 0.4), ("real", "real/a", 0, 0.4))
    videos = video_scores(rows)
    assert videos.loc["real/a"].tolist() == pytest.approx([0, 0.3])
    assert videos.loc["swap/a"].tolist() == pytest.approx([1, 0.4])


def test_videos_of_two_methods_with_one_clip_name_stay_apart():
    rows = table(
        ("real", "real/000", 0, 0.3),
        ("swap", "swap/000", 1, 0.1),
        ("warp", "warp/000", 1, 0.9),
    )  # one "000" pooled over the methods would be a single video with all three frames
    metrics = frame_and_video_metrics(rows)["demo"]
    assert metrics["video"]["n"] == 3
    assert metrics["video"]["auc"] == 0.5
    assert metrics["by_method"]["swap"]["video"]["auc"] == 0
    assert metrics["by_method"]["warp"]["video"]["auc"] == 1


def test_video_and_frame_level_differ_where_frames_disagree():
    rows = table(
        ("real", "real/a", 0, 0.1),
        ("real", "real/a", 0, 0.8),
        ("swap", "swap/a", 1, 0.6),
        ("swap", "swap/a", 1, 0.7),
    )
    metrics = frame_and_video_metrics(rows)["demo"]
    assert metrics["frame"]["auc"] == 0.5
    assert metrics["video"]["auc"] == 1


@law
@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 1)), min_size=1), st.randoms(use_true_random=False))
def test_video_scores_do_not_depend_on_the_order_of_frames(frames, random):
    rows = table(*(("real", f"v{video}", 0, score) for video, score in frames))
    order = list(range(len(rows)))
    random.shuffle(order)
    pd.testing.assert_frame_equal(video_scores(rows.iloc[order]), video_scores(rows), check_exact=True)


def test_a_video_with_a_broken_frame_is_not_averaged_over_the_others():
    rows = table(("real", "real/a", 0, 0.1), ("swap", "swap/a", 1, math.nan), ("swap", "swap/a", 1, 0.9))
    metrics = frame_and_video_metrics(rows)["demo"]
    assert metrics["video"]["auc"] is None
    assert metrics["video"]["reason"] == "1 of 2 videos have a score that is not finite"
    assert metrics["frame"]["reason"] == "1 of 3 frames have a score that is not finite"


def test_a_video_of_both_classes_has_no_video_metrics():
    metrics = frame_and_video_metrics(table(("real", "000", 0, 0.1), ("swap", "000", 1, 0.9)))["demo"]
    assert metrics["frame"]["auc"] == 1
    assert metrics["video"]["auc"] is None
    assert "'000' has real and fake frames" in metrics["video"]["reason"]


def test_frames_without_a_video_have_no_video_metrics():
    metrics = frame_and_video_metrics(table(("real", None, 0, 0.1), ("swap", "swap/a", 1, 0.9)))["demo"]
    assert metrics["frame"]["auc"] == 1
    assert metrics["video"]["reason"] == "1 of 2 frames have no video_id"


# ------------------------------------------------------------------------------------------------- methods, data sets


def test_a_method_is_set_against_all_reals():
    rows = table(
        ("youtube", "youtube/a", 0, 0.5),
        ("actors", "actors/b", 0, 0.1),
        ("swap", "swap/a", 1, 0.4),
        ("warp", "warp/b", 1, 0.9),
    )
    by_method = frame_and_video_metrics(rows)["demo"]["by_method"]
    assert list(by_method) == ["swap", "warp"]
    assert by_method["swap"]["frame"]["n"] == by_method["warp"]["frame"]["n"] == 3
    assert by_method["swap"]["frame"]["auc"] == 0.5
    assert by_method["warp"]["frame"]["auc"] == 1


def test_data_sets_are_kept_apart():
    rows = pd.concat(
        [
            table(("real", "r", 0, 0.1), ("swap", "f", 1, 0.9)),
            table(("real", "r", 0, 0.9), ("swap", "f", 1, 0.1), dataset="other"),
        ]
    )
    metrics = frame_and_video_metrics(rows)
    assert list(metrics) == ["demo", "other"]
    assert (metrics["demo"]["video"]["auc"], metrics["other"]["video"]["auc"]) == (1, 0)


def test_a_set_of_reals_only_has_an_accuracy_and_no_methods():
    metrics = frame_and_video_metrics(table(("real", "a", 0, 0.1), ("real", "b", 0, 0.7)))["demo"]
    assert metrics["by_method"] == {}
    assert (metrics["frame"]["auc"], metrics["frame"]["accuracy"]) == (None, 0.5)


def test_fakes_without_a_method_are_called_unknown():
    metrics = frame_and_video_metrics(table(("real", "a", 0, 0.1), (None, "b", 1, 0.7)))["demo"]
    assert list(metrics["by_method"]) == ["unknown"]


def test_an_empty_table_has_no_data_sets():
    assert frame_and_video_metrics(table()) == {}


def test_the_form_is_that_of_the_file():
    rows = table(("real", "a", 0, 0.1), ("swap", "b", 1, 0.7))
    metrics = frame_and_video_metrics(rows, {"demo": (np.array([0.1, 0.9]), np.array([False, True]))})
    four = {"auc": 1.0, "eer": 0.0, "ap": 1.0, "accuracy": 1.0, "n": 2}
    both = {"frame": four, "video": four}
    assert metrics == {"demo": {**both, "by_method": {"swap": both}, "localisation": {"auc": 1.0}}}
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


# ------------------------------------------------------------------------------------------------------ localisation


def test_localisation_is_the_share_of_forged_cells_above_untouched_ones():
    evidence, forged = np.array([3.0, -1.0, 0.5, 2.0]), np.array([True, False, True, False])
    assert localisation_metrics(evidence, forged) == {"auc": 0.75}


@law
@given(both_classes(), st.floats(-3, 3).map(lambda shift: round(shift * 16) / 16))
def test_localisation_ignores_a_common_offset(case, shift):
    labels, evidence = case
    moved = localisation_metrics(evidence + shift, labels == 1)
    assert moved["auc"] == pytest.approx(localisation_metrics(evidence, labels == 1)["auc"], abs=1e-12)


def test_localisation_without_masks_or_contrast_is_null():
    unknown = localisation_metrics(np.empty(0), np.empty(0, bool))
    assert unknown == {"auc": None, "reason": "there are no cells of fakes with a known mask"}
    full = localisation_metrics(np.array([0.1, 0.2]), np.array([True, True]))
    assert full["auc"] is None
    assert "are forged" in full["reason"]
