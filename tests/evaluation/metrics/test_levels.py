"""Metrics against scikit-learn, cases worked out by hand, and the laws they obey."""

import json
import math
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    log_loss,
    roc_auc_score,
    roc_curve,
)

from dcl_face_forgery.decision_dcl import Rule
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.evaluation.metrics.binary import binary_metrics
from dcl_face_forgery.evaluation.metrics.levels import (
    compare_models,
    deepfakebench_metrics,
    frame_and_video_metrics,
    video_scores,
)
from dcl_face_forgery.evaluation.metrics.localisation import CellCounts
from dcl_face_forgery.evaluation.metrics.sorted_scores import METRICS, RANKED, Ranking

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
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, scores >= 0.5), abs=1e-12)
    assert metrics["brier"] == pytest.approx(brier_score_loss(labels, scores), abs=1e-12)
    assert metrics["log_loss"] == pytest.approx(log_loss(labels, scores), abs=1e-9)


@law
@given(both_classes(), st.data())
def test_weighted_metrics_agree_with_scikit_learn(case, data):
    labels, scores = case
    families = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(labels), max_size=len(labels))))
    counts = np.array(data.draw(st.lists(st.integers(0, 3), min_size=4, max_size=4)))
    weights = counts[families]
    assume(weights[labels == 0].sum() and weights[labels == 1].sum())
    drawn = {name: value[1] for name, value in Ranking(labels, scores, families, 4).metrics(
        np.stack([np.zeros(4, int), counts])).items()}  # fmt: skip
    assert drawn["auc"] == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights), abs=1e-12)
    assert drawn["ap"] == pytest.approx(average_precision_score(labels, scores, sample_weight=weights), abs=1e-12)
    assert drawn["brier"] == pytest.approx(brier_score_loss(labels, scores, sample_weight=weights), abs=1e-12)
    assert drawn["log_loss"] == pytest.approx(log_loss(labels, scores, sample_weight=weights), abs=1e-9)
    called = scores >= 0.5
    assert drawn["accuracy"] == pytest.approx(accuracy_score(labels, called, sample_weight=weights), abs=1e-12)
    assert drawn["fpr"] == pytest.approx(np.average(called[labels == 0], weights=weights[labels == 0]), abs=1e-12)


@law
@given(both_classes(), st.data())
def test_a_weight_is_as_many_copies_of_the_row(case, data):
    labels, scores = case
    counts = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(labels), max_size=len(labels))))
    assume(counts[labels == 0].sum() and counts[labels == 1].sum())
    weighted = Ranking(labels, scores, np.arange(len(labels)), len(labels)).metrics(counts[None])
    copied = Ranking(np.repeat(labels, counts), np.repeat(scores, counts)).metrics()
    for name in METRICS:
        assert weighted[name][0] == pytest.approx(copied[name][0], abs=1e-12), name


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
    for name in ("auc", "eer", "ap", "accuracy", "balanced_accuracy", "fpr", "tpr", "log_loss", "brier"):
        assert often[name] == pytest.approx(once[name], abs=1e-12)
    once, often = (
        Ranking(*(np.repeat(column, count) for column in (labels, scores))).metrics() for count in (1, times)
    )
    for name in METRICS:  # those of which so few rows tell nothing, too
        assert often[name][0] == pytest.approx(once[name][0], abs=1e-12), name


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
    before, after = Ranking(labels, scores).metrics(), Ranking(labels, squashed).metrics()
    for name in ("tpr_at_fpr_0.05", "tpr_at_fpr_0.01", "tpr_at_fpr_0.001"):
        assert after[name] == before[name]


@pytest.mark.parametrize(("label", "name"), [(0, "real"), (1, "fake")])
def test_one_class_leaves_only_accuracy(label, name):
    metrics = binary_metrics(np.full(4, label), np.array([0.1, 0.2, 0.3, 0.9]), "frames")
    assert (metrics["auc"], metrics["eer"], metrics["ap"]) == (None, None, None)
    assert metrics["accuracy"] == (0.75 if label == 0 else 0.25)
    assert f"all 4 frames are {name}" in metrics["reason"]


def test_no_scores_leave_nothing():
    metrics = binary_metrics(np.empty(0, int), np.empty(0), "videos")
    assert metrics == {**dict.fromkeys(METRICS), "n": 0, "reason": "there are no videos"}


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_leaves_nothing(broken):
    metrics = binary_metrics(np.array([0, 1, 1]), np.array([0.2, 0.9, broken]), "frames")
    assert [metrics[name] for name in ("auc", "eer", "ap", "accuracy", "n")] == [None, None, None, None, 3]
    assert metrics["reason"] == "the scores of 1 of 3 frames are not finite"


# ------------------------------------------------------------------------------------------- operating and calibration


def test_rates_at_half_by_hand():
    # Called fake: .9 F, .8 R, .5 F; not: .4 F, .2 R, .1 R.
    metrics = binary_metrics(np.array([1, 0, 1, 1, 0, 0]), np.array([0.9, 0.8, 0.5, 0.4, 0.2, 0.1]))
    assert metrics["tpr"] == pytest.approx(2 / 3)
    assert metrics["fpr"] == pytest.approx(1 / 3)
    assert metrics["balanced_accuracy"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert metrics["brier"] == pytest.approx((0.1**2 + 0.8**2 + 0.5**2 + 0.6**2 + 0.2**2 + 0.1**2) / 6)
    expected = -sum(map(math.log, (0.9, 0.2, 0.5, 0.4, 0.8, 0.9))) / 6
    assert metrics["log_loss"] == pytest.approx(expected)


def test_tpr_at_fpr_by_hand():
    # 100 reals at .00, .01, ..., .99. An FPR of 5 % allows five false alarms: .95 to .99. The threshold may lie
    # anywhere above the sixth, at .94.
    reals, fakes = np.arange(100) / 100, np.array([0.995, 0.95, 0.945, 0.3])
    labels = np.repeat([0, 1], [100, 4])
    metrics = binary_metrics(labels, np.concatenate([reals, fakes]))
    assert metrics["tpr_at_fpr_0.05"] == 3 / 4
    assert metrics["tpr_at_fpr_0.01"] is None
    assert metrics["tpr_at_fpr_0.01_reason"] == "100 real scores are too few: an FPR of 0.01 needs 500"
    tied = binary_metrics(labels, np.concatenate([reals, [0.995, 0.95, 0.94, 0.3]]))
    assert tied["tpr_at_fpr_0.05"] == 2 / 4  # a fake at .94 comes only with the sixth false alarm
    fewer = binary_metrics(labels[1:], np.concatenate([reals, fakes])[1:])
    assert fewer["tpr_at_fpr_0.05"] is None


@pytest.mark.parametrize(("rate", "least"), [("0.05", 100), ("0.01", 500), ("0.001", 5000)])
def test_tpr_at_fpr_is_the_best_point_of_the_curve_and_takes_five_false_alarms(rate, least):
    rng = np.random.default_rng(least)
    labels = np.repeat([0, 1], [least, 300])
    scores = np.round(rng.normal(labels * 1.5), 2)  # with ties
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    expected = true[false <= float(rate) + 1e-12].max()
    assert binary_metrics(labels, scores)[f"tpr_at_fpr_{rate}"] == pytest.approx(expected, abs=1e-12)
    assert binary_metrics(labels[1:], scores[1:])[f"tpr_at_fpr_{rate}"] is None


def test_calibration_error_by_hand():
    # Thirty scores, two a bin: c, of a fake, and c + .01, of a real. So a bin has the truth .5 and the mean c + .005.
    lows = np.arange(15) / 20
    scores = np.stack([lows, lows + 0.01], axis=1).ravel()
    labels = np.tile([1, 0], 15)
    expected = np.mean(np.abs(lows + 0.005 - 0.5))
    assert binary_metrics(labels, scores)["ece"] == pytest.approx(expected)


def test_calibration_error_does_not_split_a_tie():
    # One score for all: one bin, whose truth is 1/4, whatever the order of the rows.
    labels = np.repeat([1, 0], [5, 15])
    assert binary_metrics(labels, np.full(20, 0.4))["ece"] == pytest.approx(0.15)
    assert binary_metrics(labels[::-1], np.full(20, 0.4))["ece"] == pytest.approx(0.15)
    assert binary_metrics(labels[:14], np.full(14, 0.4))["ece"] is None


def test_calibrated_scores_have_a_small_error_and_squashed_ones_a_large_one():
    rng = np.random.default_rng(0)
    scores = rng.random(20000)
    labels = (rng.random(20000) < scores).astype(int)
    assert binary_metrics(labels, scores)["ece"] < 0.02
    assert binary_metrics(labels, 0.5 + (scores - 0.5) / 5)["ece"] == pytest.approx(0.2, abs=0.02)


def test_operating_points_by_hand():
    labels, scores = np.array([1, 1, 0, 0, 0]), np.array([0.9, 0.4, 0.35, 0.2, 0.1])
    thresholds = {"eer": 0.4, "strict": 0.95, "fpr_0.01": None}
    metrics = binary_metrics(labels, scores, thresholds=thresholds)
    assert metrics["accuracy"] == 4 / 5
    assert metrics["accuracy_at_threshold_eer"] == 1
    assert (metrics["tpr_at_threshold_strict"], metrics["fpr_at_threshold_strict"]) == (0, 0)
    assert metrics["balanced_accuracy_at_threshold_strict"] == 0.5
    assert metrics["accuracy_at_threshold_fpr_0.01"] is None
    assert metrics["accuracy_at_threshold_fpr_0.01_reason"] == "the threshold is unknown"
    assert metrics["thresholds"] == thresholds
    rows = table(*(("m", f"v{i}", label, score) for i, (label, score) in enumerate(zip(labels, scores, strict=True))))
    levels = frame_and_video_metrics(rows, thresholds={"video": {"eer": 0.4}}, bootstrap=0)["demo"]
    assert levels["video"]["accuracy_at_threshold_eer"] == 1
    assert "accuracy_at_threshold_eer" not in levels["frame"]


def test_verdicts_are_counted_by_class_for_frames_videos_and_methods():
    band = {"error_rate": 0.1, "low": 0.3, "high": 0.6}
    calibration = {"method": "none", "frame": {"thresholds": {"eer": 0.5}, "band": band}}
    rules = {level: Rule.of(calibration, level, None, None) for level in ("frame", "video")}
    rows = table(
        *(("real", "a", 0, p) for p in (0.1, 0.3, 0.6)),
        *(("swap", "b", 1, p) for p in (0.59, 0.6)),
        ("warp", "c", 1, 0.29),
    )
    levels = frame_and_video_metrics(rows, bootstrap=0, rules=rules)["demo"]
    assert levels["frame"]["verdicts"] == {
        "flagged_from": 0.6,
        "not_flagged_below": 0.3,
        "real": {"flagged": 1, "inconclusive": 1, "not_flagged": 1},
        "fake": {"flagged": 1, "inconclusive": 1, "not_flagged": 1},
    }
    assert levels["video"]["verdicts"]["fake"] == {"flagged": 1, "inconclusive": 0, "not_flagged": 1}  # from .5 on
    assert levels["by_method"]["warp"]["frame"]["verdicts"]["fake"]["not_flagged"] == 1
    assert "verdicts" not in frame_and_video_metrics(rows, bootstrap=0)["demo"]["frame"]


def test_only_reals_have_a_false_positive_rate_and_no_true_one():
    metrics = binary_metrics(np.zeros(4, int), np.array([0.1, 0.5, 0.7, 0.2]), "frames")
    assert metrics["fpr"] == 0.5
    assert [metrics[name] for name in ("tpr", "balanced_accuracy", "tpr_at_fpr_0.05")] == [None, None, None]
    assert metrics["reason"] == "all 4 frames are real, and both classes are needed"
    assert metrics["brier"] == pytest.approx((0.01 + 0.25 + 0.49 + 0.04) / 4)


def test_scores_that_are_no_probabilities_are_ranked_only():
    metrics = binary_metrics(np.tile([0, 1], 10), np.tile([-3.0, 2.0], 10))
    assert metrics["auc"] == 1
    assert [metrics[name] for name in ("log_loss", "brier", "ece")] == [None, None, None]
    assert metrics["brier_reason"] == "scores outside of [0, 1] are not probabilities"


def test_constant_scores_are_said_to_rank_nothing():
    metrics = binary_metrics(np.array([0, 1, 1]), np.full(3, 0.3), "videos")
    assert metrics["warning"] == "all 3 videos have the same score, 0.3."
    assert "warning" not in binary_metrics(np.array([0, 1, 1]), np.array([0.3, 0.3, 0.4]))


def test_a_wrong_certainty_is_finite():
    assert 30 < binary_metrics(np.array([0, 1]), np.array([1.0, 1.0]))["log_loss"] * 2 < 40


def test_one_video_gives_numbers_or_reasons_and_no_crash():
    metrics = frame_and_video_metrics(table(("real", "a", 0, 0.1), ("real", "a", 0, 0.7)))["demo"]
    assert metrics["video"]["reason"] == "all 1 videos are real, and both classes are needed"
    assert metrics["video"]["fpr"] == 0
    assert metrics["video"]["intervals"] == dict.fromkeys(metrics["video"]["intervals"])
    assert "single family" in metrics["video"]["interval_reasons"]["fpr"]
    assert metrics["video"]["video_auc_deepfakebench"] is None


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
    assert metrics["video"]["reason"] == "the scores of 1 of 2 videos are not finite"
    assert metrics["frame"]["reason"] == "the scores of 1 of 3 frames are not finite"


@pytest.mark.parametrize("temperature", [0.2, 1.0, 12.0])
def test_a_calibration_does_not_change_how_well_fakes_are_told_from_reals(temperature):
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 120)
    rows = pd.DataFrame({"dataset": "demo", "method": "swap", "label": labels, "frame": np.tile(range(4), 60)})
    rows["video_id"] = rows["source_id"] = [f"{row // 4}" for row in range(240)]
    rows["logit"] = rng.normal(3 * labels, 25)  # of many the logistic function is 1, to the last bit
    rows["p_fake_raw"] = 1 / (1 + np.exp(-rows.logit))
    rows["p_fake"] = 1 / (1 + np.exp(-rows.logit / temperature))
    found = frame_and_video_metrics(rows, bootstrap=50)["demo"]
    plain = frame_and_video_metrics(rows.assign(p_fake=rows.p_fake_raw), bootstrap=50)["demo"]
    assert found["frame"]["auc"] == pytest.approx(roc_auc_score(labels, rows.logit), abs=1e-12)
    videos = rows.groupby("video_id")[["label", "p_fake_raw", "p_fake"]].mean()
    assert found["video"]["auc"] == pytest.approx(roc_auc_score(videos.label, videos.p_fake_raw), abs=1e-12)
    assert found["video"]["brier"] == pytest.approx(((videos.p_fake - videos.label) ** 2).mean())
    for level in ("frame", "video"):
        for metric in RANKED:
            assert found[level][metric] == plain[level][metric]
            assert found[level]["intervals"].get(metric) == plain[level]["intervals"].get(metric)
    differences = compare_models(rows, rows.assign(p_fake=rows.p_fake_raw), bootstrap=20)["demo"]
    assert [differences[level]["auc"]["difference"] for level in ("frame", "video")] == [0, 0]


def test_of_very_many_methods_none_has_intervals():
    methods = [f"method {number}" for number in range(101)]
    rows = pd.DataFrame({"method": ["youtube"] * 101 + methods, "label": [0] * 101 + [1] * 101})
    rows["p_fake"], rows["dataset"] = np.linspace(0.1, 0.9, 202), "demo"
    rows["source_id"] = [f"{row % 101}" for row in range(202)]
    rows["video_id"] = rows.method + rows.source_id
    found = frame_and_video_metrics(rows, bootstrap=5)["demo"]
    assert found["frame"]["intervals"]["brier"] is not None
    assert found["by_method"]["method 7"]["frame"]["intervals"] == {}
    assert "100 methods" in found["by_method"]["method 7"]["frame"]["interval_reasons"]["all"]


def test_raw_scores_that_are_broken_have_a_reason():
    rows = pd.DataFrame({"method": "a", "label": [0, 1], "p_fake": [0.1, 0.9], "video_id": ["r", "f"], "dataset": "d"})
    found = frame_and_video_metrics(rows.assign(p_fake_raw=[0.1, np.nan]), bootstrap=0)["d"]["frame"]
    assert found["brier_raw"] is None and "not finite" in found["brier_raw_reason"]


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
    cells = {"demo": CellCounts().add(np.array([0.1, 0.9]), np.array([False, True]))}
    metrics = frame_and_video_metrics(rows, cells, bootstrap=0, evidence_threshold=0.05)
    few = {f"tpr_at_fpr_{rate}": (None, count) for rate, count in ((0.05, 100), (0.01, 500), (0.001, 5000))}

    def level(units):
        return {
            **{"auc": 1.0, "eer": 0.0, "ap": 1.0, "accuracy": 1.0, "balanced_accuracy": 1.0, "fpr": 0.0, "tpr": 1.0},
            **{"log_loss": pytest.approx(-(math.log(0.9) + math.log(0.7)) / 2), "brier": pytest.approx(0.05)},
            **dict.fromkeys([*few, "ece"]),
            "ece_reason": f"2 {units} are too few for 15 bins",
            **{
                f"{name}_reason": f"1 real {units} are too few: an FPR of {name[11:]} needs {count}"
                for name, (_, count) in few.items()
            },
            "n": 2,
        }

    pooled = {"video_auc_deepfakebench": 1.0, "video_eer_deepfakebench": 0.0}
    both = {"frame": level("frames"), "video": level("videos") | pooled}
    localisation = {"auc": 1.0, "auc_error": 0.0, "iou": 0.5, "iou_all_forged": 0.5, "evidence_threshold": 0.05}
    assert metrics == {"demo": {**both, "by_method": {"swap": both}, "localisation": localisation}}
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    drawn = frame_and_video_metrics(rows, cells)
    assert json.loads(json.dumps(drawn, allow_nan=False)) == drawn
    assert drawn["demo"]["frame"].items() >= metrics["demo"]["frame"].items()  # keys are added, none is changed
    assert drawn["demo"]["frame"].keys() - metrics["demo"]["frame"].keys() == {
        "families", "intervals", "interval_reasons", "warning",
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------- deepfakebench


def test_deepfakebench_averages_the_methods_of_one_clip():
    rows = table(
        ("real", "real/000", 0, 0.3),
        ("real", "real/001", 0, 0.6),
        ("swap", "swap/000_001", 1, 0.1),
        ("warp", "warp/000_001", 1, 0.9),  # pooled: .5, between the reals
    )
    video = frame_and_video_metrics(rows, bootstrap=0)["demo"]["video"]
    assert video["auc"] == pytest.approx((0 + 0 + 1 + 1) / 4)
    assert video["n"] == 4
    assert video["video_auc_deepfakebench"] == 0.5
    # Curve: (0, 0) (1/2, 0) (1/2, 1) (1, 1): misses less false alarms are 1, 1/2, -1/2, -1: the first of the nearest.
    assert video["video_eer_deepfakebench"] == 0.5


def test_deepfakebench_calls_a_folder_fake_if_all_of_it_is():
    # "000": three fakes and a real, mean label .75, cut to 0: real with the score .8. "001": fake, .7.
    rows = table(
        ("real", "real/000", 0, 0.5),
        ("swap", "swap\\000", 1, 0.9),
        ("swap", "swap\\000", 1, 0.9),
        ("warp", "warp/000", 1, 0.9),
        ("swap", "swap/001", 1, 0.7),
    )
    assert deepfakebench_metrics(rows) == {"video_auc_deepfakebench": 0.0, "video_eer_deepfakebench": 1.0}


def test_deepfakebench_is_the_right_one_where_no_two_videos_share_a_name():
    rng = np.random.default_rng(0)
    rows = table(*(("m", f"m/{video:03}", video % 2, rng.random()) for video in range(40) for _ in range(3)))
    video = frame_and_video_metrics(rows, bootstrap=0)["demo"]["video"]
    assert video["video_auc_deepfakebench"] == pytest.approx(video["auc"], abs=1e-12)


# ----------------------------------------------------------------------------------------------------------- groups


def grouped():
    """Two groups of people of 30 families each: in "b" the scores are noise."""
    rng = np.random.default_rng(3)
    rows = []
    for clip in range(60):
        for method in ("real", "swap", "warp"):
            shift = 0.3 * (method != "real") * (clip % 2 == 0)
            score = np.clip(0.3 + shift + 0.15 * rng.normal(), 0, 1)
            rows.append((method, f"{method}/{clip}", int(method != "real"), score, f"real/{clip}", "ab"[clip % 2]))
    columns = ["method", "video_id", "label", "p_fake", "source_id", "people"]
    return pd.DataFrame(rows, columns=columns).assign(dataset="demo", frame=0)


def test_groups_are_measured_alone_and_their_gap_has_an_interval():
    rows = grouped()
    found = frame_and_video_metrics(rows, group_by="people")["demo"]["by_group"]
    assert found["column"] == "people"
    for group in "ab":
        alone = frame_and_video_metrics(rows[rows.people == group], bootstrap=0)["demo"]
        assert found["groups"][group]["frame"]["auc"] == alone["frame"]["auc"]
        assert found["groups"][group]["video"]["eer"] == alone["video"]["eer"]
    gap = found["gap"]["video"]["auc"]
    values = [found["groups"][group]["video"]["auc"] for group in "ab"]
    assert gap["value"] == values[0] - values[1]
    assert (gap["highest"], gap["lowest"]) == ("a", "b")
    assert 0 < gap["interval"][0] < gap["value"] < gap["interval"][1]
    assert found["gap"]["frame"]["fpr"]["interval"][0] == 0  # the reals of both groups are alike


def test_groups_without_a_name_or_of_one_class_are_kept():
    rows = grouped()
    rows["people"] = [None if people == "b" else people for people in rows["people"]]
    found = frame_and_video_metrics(rows, group_by="people", bootstrap=0)["demo"]["by_group"]
    assert list(found["groups"]) == ["a", "unknown"]
    assert "interval" not in found["gap"]["frame"]["auc"]


@pytest.mark.parametrize("bootstrap", [0, 50])
def test_groups_of_one_class_are_not_compared_by_what_takes_both(bootstrap):
    thresholds = {"frame": {"eer": 0.4, "fpr_0.01": None}}
    options = {"bootstrap": bootstrap, "thresholds": thresholds}
    found = frame_and_video_metrics(grouped(), group_by="method", **options)["demo"]["by_group"]
    assert list(found["groups"]) == ["real", "swap", "warp"]
    assert found["groups"]["real"]["frame"]["accuracy"] is not None
    gaps = found["gap"]["frame"]
    for metric in ("auc", "eer", "ap", "accuracy", "balanced_accuracy", "log_loss", "brier", "ece"):
        assert gaps[metric]["value"] is None and "interval" not in gaps[metric]
        assert gaps[metric]["reason"].startswith(
            "a gap needs two groups with a value, and 0 of 3 have one (real: all "
        )
    assert "0 of 3 have one" in gaps["accuracy_at_threshold_eer"]["reason"]
    assert "1 of 3 have one (swap: all 60 frames are fake" in gaps["fpr"]["reason"]
    assert "accuracy_at_threshold_fpr_0.01" not in gaps
    for metric in ("tpr", "tpr_at_threshold_eer"):  # of fakes alone
        rates = [found["groups"][method]["frame"][metric] for method in ("swap", "warp")]
        assert gaps[metric]["value"] == abs(rates[0] - rates[1])
        assert gaps[metric]["left_out"] == ["real"]
        assert ("interval" in gaps[metric]) == (bootstrap > 0)


def test_a_gap_leaves_out_the_group_that_has_one_class():
    rows = grouped()
    rows.loc[(rows.people == "b") & (rows.label == 1) & (rows.index < 90), "people"] = "c"
    gaps = frame_and_video_metrics(rows, group_by="people", bootstrap=0)["demo"]["by_group"]["gap"]["video"]
    for metric in ("auc", "accuracy", "log_loss"):
        assert gaps[metric]["left_out"] == ["c"]
        assert {gaps[metric]["highest"], gaps[metric]["lowest"]} == {"a", "b"}
    assert "left_out" not in gaps["tpr"]


def test_a_single_group_has_no_gap():
    gaps = frame_and_video_metrics(grouped(), group_by="dataset", bootstrap=0)["demo"]["by_group"]["gap"]
    for level in ("frame", "video"):
        assert gaps[level]["auc"] == {"value": None, "reason": "there is only one group, and a gap needs two"}


def test_a_column_that_is_not_there_or_never_the_same_is_refused():
    with pytest.raises(InputError, match=r"have no column 'tone' to group by. Choose one of method, video_id"):
        frame_and_video_metrics(grouped(), group_by="tone")
    with pytest.raises(InputError, match=r"'video_id' of demo: has 180 values. Group by a column with at most 100"):
        frame_and_video_metrics(grouped(), group_by="video_id")


# ------------------------------------------------------------------------------------------------------- two models


def test_two_models_are_compared_on_the_same_rows_in_any_order():
    rows = grouped()
    rng = np.random.default_rng(0)
    other = rows.assign(p_fake=np.clip(rows.p_fake + 0.05 * rng.normal(size=len(rows)), 0, 1))
    found = compare_models(rows, other.sample(frac=1, random_state=0), bootstrap=200)["demo"]
    for level in ("frame", "video"):
        one, two = (frame_and_video_metrics(table, bootstrap=0)["demo"][level]["auc"] for table in (rows, other))
        auc = found[level]["auc"]
        assert auc["difference"] == pytest.approx(one - two, abs=1e-12)
        assert auc["interval"][0] < auc["difference"] < auc["interval"][1]
    alone = frame_and_video_metrics(rows, bootstrap=200)["demo"]["frame"]["intervals"]["auc"]
    assert np.diff(found["frame"]["auc"]["interval"]) < np.diff(alone)  # what the pair shares is not counted
    assert found["frame"]["tpr_at_fpr_0.05"]["difference"] is None
    same = compare_models(rows, rows, bootstrap=50)["demo"]["video"]["auc"]
    assert same == {"difference": 0.0, "interval": [0.0, 0.0]}


def test_two_models_on_other_rows_are_refused():
    rows = grouped()
    for other in (rows.iloc[1:], rows.assign(frame=1), rows.assign(label=1 - rows.label)):
        with pytest.raises(InputError, match=r"evaluated on different rows \(180 and 1[78]\d\)"):
            compare_models(rows, other, bootstrap=10)


def test_a_broken_score_leaves_no_difference():
    rows = grouped()
    broken = rows.assign(p_fake=rows.p_fake.where(rows.index != 5))
    reason = compare_models(rows, broken, bootstrap=10)["demo"]["frame"]["reason"]
    assert reason == "the scores of 1 of 180 frames are not finite"


# ------------------------------------------------------------------------------------------------------------- size


@pytest.mark.slow
def test_a_million_frames_take_seconds():
    families, frames = 1000, 200
    rng = np.random.default_rng(0)
    video = np.repeat(np.arange(families * 5), frames)
    family, kind = video // 5, video % 5
    methods = np.array(["real", "a", "b", "c", "d"], object)
    names = np.array([f"{methods[index % 5]}/{index // 5}" for index in range(families * 5)], object)
    margin = rng.normal(size=len(video)) + rng.normal(size=families)[family] + 1.5 * (kind > 0)
    rows = pd.DataFrame(
        {
            "dataset": "demo",
            "method": methods[kind],
            "video_id": names[video],
            "source_id": names[family * 5],
            "label": (kind > 0).astype(int),
            "p_fake": 1 / (1 + np.exp(-margin)),
        }
    )
    start = time.process_time()
    metrics = frame_and_video_metrics(rows, bootstrap=0)["demo"]
    assert time.process_time() - start < 20
    assert metrics["frame"]["n"] == 1_000_000
    assert metrics["frame"]["auc"] == pytest.approx(roc_auc_score(rows.label, rows.p_fake), abs=1e-9)
    assert metrics["frame"]["ap"] == pytest.approx(average_precision_score(rows.label, rows.p_fake), abs=1e-9)
