"""Calibration and operating points: what is recovered, what holds for any scores, and what is refused."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score

from dcl_face_forgery.configuration_dcl import DCLConfig
from dcl_face_forgery.decision_dcl import (
    calibrate,
    describe_calibration,
    expected_fpr,
    missing_calibration,
    slope_and_offset,
)
from dcl_face_forgery.evaluation.calibration import (
    RATES,
    fit_calibration,
    operating_points,
    rate_interval,
    reliability,
)
from dcl_face_forgery.evaluation.metrics.binary import binary_metrics
from dcl_face_forgery.evaluation.metrics.levels import video_scores
from dcl_face_forgery.evaluation.metrics.sorted_scores import FALSE_POSITIVE_RATES
from dcl_face_forgery.modeling_dcl import DCLForImageClassification

law = settings(max_examples=150, deadline=None, derandomize=True)


def table(labels, margins, videos=None, **columns):
    """Make a table of predictions; every frame is a video unless told otherwise."""
    names = [f"v{number}" for number in range(len(labels))] if videos is None else videos
    rows = {"dataset": "d", "video_id": names, "source_id": names, "label": labels, "logit": margins}
    return pd.DataFrame(rows | columns)


def simulated(n, fakes, temperature, seed=0):
    """Margins that are the log-odds of equally likely classes, times a temperature."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) < fakes).astype(int)
    return labels, temperature * 2 * (rng.standard_normal(n) + 2 * labels - 1)


@st.composite
def scored(draw, ties=True, least=2):
    """Labels of both classes, and margins of which some are equal."""
    labels = np.array(draw(st.lists(st.integers(0, 1), min_size=least, max_size=60)))
    assume(0 < labels.sum() < len(labels))
    values = st.integers(-4, 4).map(lambda value: value / 2) if ties else st.floats(-8, 8)
    return labels, np.array(draw(st.lists(values, min_size=len(labels), max_size=len(labels))), float)


# ---------------------------------------------------------------------------------------------------------- calibrate


def test_slope_and_offset_make_the_logit_and_nothing_is_lost_far_out():
    margins = np.array([[-800.0, -40], [0, 3]])
    platt = {"method": "platt", "slope": 0.5, "offset": -1.0}
    np.testing.assert_allclose(calibrate(margins, platt), expit(margins / 2 - 1), rtol=1e-14)
    for none in (None, {"method": "none", "reason": "too few"}):
        np.testing.assert_allclose(calibrate(margins, none), expit(margins), rtol=1e-14)
    assert 0 < calibrate(-700, None) < 1e-300
    assert np.isnan(calibrate(np.nan, None)) and calibrate(np.inf, None) == 1 and calibrate(-np.inf, None) == 0


def test_a_checkpoint_saved_with_a_temperature_keeps_its_scores():
    old = {"method": "temperature", "temperature": 2, "frame": {"thresholds": {"eer": 0.3}}}
    assert calibrate(3.0, old) == pytest.approx(expit(1.5)) and slope_and_offset(old) == (0.5, 0)
    assert DCLConfig(calibration=old).calibration == old
    found = expected_fpr(old, "frame", 0.3)
    assert found.pop("reason") == "the checkpoint does not store it" and set(found.values()) == {None}
    assert "There is no inconclusive range for faces (the checkpoint is too old" in describe_calibration(old)
    assert any("no inconclusive range" in clause for clause in missing_calibration(old))


def test_the_model_gives_calibrated_probabilities(config):
    logits = torch.tensor([[0.0, 3.0], [2.0, -1.0], [0.5, 0.5]], requires_grad=True)
    config.calibration = {"method": "platt", "slope": 1 / 3, "offset": 0.5}
    p_fake = DCLForImageClassification(config).p_fake(logits)
    assert p_fake.dtype == torch.float32 and p_fake.shape == (3,) and not p_fake.requires_grad
    assert p_fake.tolist() == pytest.approx(expit([1.5, -0.5, 0.5]))
    config.calibration = None
    plain = DCLForImageClassification(config).p_fake(logits)
    torch.testing.assert_close(plain, logits.softmax(1)[:, 1].detach())


# ---------------------------------------------------------------------------------------------------------------- fits


@pytest.mark.parametrize("fakes", [10000, 1500, 18500])
@pytest.mark.parametrize(("temperature", "shift"), [(0.3, 1), (1.0, 0), (2.5, -4)])
def test_slope_and_offset_are_recovered_whatever_the_share_of_fakes(temperature, shift, fakes):
    labels, margins = simulated(20000, fakes, temperature)
    calibration = fit_calibration(table(labels, margins + shift))
    assert calibration["method"] == "platt"
    assert calibration["slope"] == pytest.approx(1 / temperature, rel=0.06)
    assert calibration["offset"] == pytest.approx(-shift / temperature, abs=0.1)
    assert calibration["frame"]["thresholds"]["eer"] == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_slope_follows_the_scale_of_the_margins(scale):
    labels, margins = simulated(600, 300, 1)
    one, other = (fit_calibration(table(labels, margins * by)) for by in (1, scale))
    assert other["slope"] * scale == pytest.approx(one["slope"], rel=1e-5)
    assert other["offset"] == pytest.approx(one["offset"], abs=1e-5)


def test_classes_that_a_threshold_separates_are_no_surer_than_the_videos_allow():
    labels = np.array([0] * 8 + [1] * 3)
    calibration = fit_calibration(table(labels, np.where(labels == 1, 7.0, -5.0)))
    p_fake = calibrate(np.array([-5.0, 7.0]), calibration)
    assert p_fake == pytest.approx([1 / 10, 4 / 5], abs=1e-5)  # Platt's targets, 1 / (n + 2) and (n + 1) / (n + 2)


def test_frames_of_a_video_that_are_there_twice_change_no_calibration():
    labels, margins = simulated(60, 30, 1)
    once = table(labels, margins, [f"v{number // 2}" for number in range(60)])
    often = pd.concat([once, *[once[once.video_id.isin(["v3", "v20"])]] * 5])
    one, other = (fit_calibration(rows) for rows in (once, often))
    assert slope_and_offset(one) == pytest.approx(slope_and_offset(other), rel=1e-5) and one["method"] == "platt"


@law
@given(scored(), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing_to_the_last_bit(case, random):
    labels, margins = case
    rows = table(labels, margins, [f"{label}/{number % 5}" for number, label in enumerate(labels)])
    order = list(range(len(labels)))
    random.shuffle(order)
    assert fit_calibration(rows.iloc[order]) == fit_calibration(rows)


@law
@given(scored(ties=False), st.floats(0.05, 2), st.floats(-3, 3))
def test_a_calibration_changes_no_ranking(case, slope, offset):
    labels, margins = case
    margins = np.round(margins, 3)  # what is nearer than doubles near 1 can tell may become a tie
    p_fake = calibrate(margins, {"method": "platt", "slope": slope, "offset": offset})
    np.testing.assert_array_equal(
        np.sign(np.subtract.outer(p_fake, p_fake)), np.sign(np.subtract.outer(margins, margins))
    )
    assert roc_auc_score(labels, p_fake) == roc_auc_score(labels, margins)


@law
@given(scored())
def test_every_fit_is_a_configuration_that_rises_and_is_saved_as_it_is(case):
    labels, margins = case
    names = [f"{label}/{number % 4}" for number, label in enumerate(labels)]
    calibration = fit_calibration(table(labels, margins, names))
    assert DCLConfig(calibration=json.loads(json.dumps(calibration, allow_nan=False))).calibration == calibration
    p_fake = calibrate(np.sort(margins), calibration)
    assert np.all(np.diff(p_fake) >= 0) and p_fake[0] >= 0 and p_fake[-1] <= 1
    assert describe_calibration(calibration)


@pytest.mark.parametrize(
    ("labels", "margins", "reason"),
    [
        ([0, 0, 1, 1], [2, 1, -1, -2], "fakes do not have higher margins than reals"),
        ([0, 0, 1, 1], [1, -1, 1, -1], "fakes do not have higher margins than reals"),
        ([0, 0, 1, 1], [1, -1, 1, -1 + 1e-9], "fakes do not have higher margins than reals"),
        ([0, 1, 0, 1], [3, 3, 3, 3], "all 4 frames have the margin 3"),
        ([1, 1, 1], [1, 2, 3], "all 3 frames are fake"),
        ([0, 0, 0], [1, 2, 3], "all 3 frames are real"),
        ([0, 1, 1], [1, math.nan, 3], "the scores of 1 of 3 frames are not finite"),
    ],
)
def test_what_the_split_does_not_determine_is_no_number_but_a_reason(labels, margins, reason):
    calibration = fit_calibration(table(np.array(labels), np.array(margins, float)))
    assert calibration["method"] == "none" and reason in calibration["reason"]
    assert not {"slope", "offset"} & calibration.keys()
    assert calibrate(1.5, calibration) == expit(1.5)
    assert DCLConfig(calibration=calibration).calibration == calibration
    assert reason in describe_calibration(calibration)


# ------------------------------------------------------------------------------------- bands and false positive rates


def people(*scores_of_each):
    """Frames of people, whose reals have the first scores of each pair and whose fakes the second."""
    rows = [
        {"dataset": "d", "source_id": f"p{person}", "video_id": f"{label}/{person}", "label": label, "logit": score}
        for person, both in enumerate(scores_of_each)
        for label, scores in enumerate(both)
        for score in scores
    ]
    return pd.DataFrame(rows)


def test_a_band_computed_by_hand():
    # 19 people, of whom one real face in ten of two people scores high, and one fake in ten of two scores low.
    some = [([-2.0] * 9 + [1.5], [2.0] * 9 + [-1.5])] * 2
    rows = people(*some, *[([-2.0] * 10, [2.0] * 10)] * 17)
    calibration = fit_calibration(rows, 0.06)
    assert calibration["frame"]["band"]["error_rate"] == 0.06
    p_fake = calibrate(np.array([-2, -1.5, 1.5, 2]), calibration)
    # (.1 + .1 + 1) / 20 is the rate: both errors may stay. With a smaller rate, the range encloses them.
    assert calibration["frame"]["band"]["high"] == pytest.approx(p_fake[:2].mean())
    assert calibration["frame"]["band"]["low"] == pytest.approx(p_fake[2:].mean())
    strict = fit_calibration(rows, 0.059)["frame"]["band"]
    assert (strict["low"], strict["high"]) == pytest.approx((p_fake[:2].mean(), p_fake[2:].mean()))


def test_few_people_give_the_band_that_encloses_all_errors_and_the_rate_that_it_can_promise():
    rows = people(*[([-2.0, 0.5], [-0.5, 2.0])] * 4)
    calibration = fit_calibration(rows, 0.1)
    band, p_fake = calibration["frame"]["band"], calibrate(np.array([-2, -0.5, 0.5, 2]), calibration)
    assert band["error_rate"] == pytest.approx(1 / 5)
    assert (band["low"], band["high"]) == pytest.approx((p_fake[:2].mean(), p_fake[2:].mean()))
    alone = fit_calibration(people(([-2.0, 0.5], [-0.5, 2.0])))["frame"]["band"]
    assert alone["low"] is alone["high"] is None and "each class needs at least two families" in alone["reason"]
    unnamed = fit_calibration(rows.assign(source_id=None, video_id=None))["frame"]
    assert unnamed["band"]["low"] is None and "neither source_id nor video_id" in unnamed["fpr"]["reason"]
    assert unnamed["thresholds"]["eer"] is not None


def test_the_errors_of_new_people_stay_below_the_rate_of_the_band():
    rng, flagged, missed = np.random.default_rng(0), [], []
    for _ in range(150):
        # People differ by as much as their faces do.
        scores = rng.normal(size=(13, 2, 1)) + rng.normal(size=(13, 2, 8)) + np.array([-1.0, 1.0])[None, :, None]
        calibration = fit_calibration(people(*scores[:12]), 0.15)
        band, (reals, fakes) = calibration["frame"]["band"], calibrate(scores[12], calibration)
        flagged.append(np.mean(reals >= band["high"]))
        missed.append(np.mean(fakes < band["low"]))
    for rates in (flagged, missed):
        assert 0.02 < np.mean(rates) < 0.15 + 2 * np.std(rates) / math.sqrt(150)


def test_the_rate_at_a_threshold_is_that_of_the_next_lower_one_that_is_stored():
    labels, margins = simulated(200, 100, 1)
    calibration = fit_calibration(table(labels, margins))
    frame = calibration["frame"]
    reals = np.sort(calibrate(margins[labels == 0], calibration))
    for at in (
        frame["thresholds"]["eer"],
        frame["thresholds"]["fpr_0.05"],
        frame["band"]["low"],
        frame["band"]["high"],
    ):
        assert expected_fpr(calibration, "frame", at)["value"] == pytest.approx(np.mean(reals >= at))
    for at in np.random.default_rng(0).uniform(0, 1, 50):
        found = expected_fpr(calibration, "frame", at)
        assert np.mean(reals >= at) <= found["value"] + 1e-6 <= np.mean(reals >= np.floor(at * 100) / 100) + 2e-6
        assert found["low"] <= found["value"] <= found["high"] and found["reason"] is None
    assert expected_fpr(calibration, "frame", 0.999)["value"] == 0
    assert expected_fpr(calibration, "frame", 0.999)["high"] == pytest.approx(1 - 0.025 ** (1 / 100), abs=1e-6)


@pytest.mark.parametrize("families", [8, 40])
@pytest.mark.parametrize("first", [10, 500])
@pytest.mark.parametrize("alike", [0.05, 0.5])
def test_nineteen_of_twenty_intervals_hold_the_rate_however_alike_the_faces_of_a_person_are(families, alike, first):
    rng, rate, spread = np.random.default_rng(1), 0.2, (1 - alike) / alike
    held = []
    for _ in range(400):
        own, sizes = rng.beta(rate * spread, (1 - rate) * spread, families), np.full(families, 10)
        sizes[0] = first  # one person with many photographs says little about the next person
        low, high = rate_interval(rng.binomial(sizes, own), sizes)
        held.append(low <= rate <= high)
    assert np.mean(held) > 0.91  # 0.95 less what is lost with few families, and the noise of 400 draws


def test_the_interval_counts_families_where_faces_are_alike_and_faces_where_they_are_not():
    sizes = np.full(10, 10)
    assert rate_interval(np.zeros(10), sizes) == (0, pytest.approx(1 - 0.025 ** (1 / 10)))
    assert rate_interval(sizes, sizes) == (pytest.approx(0.025 ** (1 / 10)), 1)
    alike = rate_interval(np.array([10, 10, 10] + [0] * 7), sizes)
    assert alike == pytest.approx((0.0667, 0.6525), abs=1e-3)  # Clopper and Pearson's of 3 in 10
    even = rate_interval(np.full(10, 3), sizes)
    assert even == pytest.approx((0.2124, 0.3998), abs=1e-3)  # of 30 in 100


def test_videos_that_cannot_be_told_apart_leave_the_thresholds_of_frames():
    labels, margins = simulated(40, 20, 1)
    calibration = fit_calibration(table(labels, margins, ["one name"] * 40))
    assert calibration["frame"]["thresholds"]["eer"] is not None
    assert set(calibration["video"]["thresholds"].values()) == {None}
    assert "must name a single video" in calibration["video"]["reasons"]["eer"]
    assert DCLConfig(calibration=calibration).calibration == calibration


# ---------------------------------------------------------------------------------------------------- operating points


def test_the_rates_are_those_of_the_metrics():
    assert {f"tpr_at_{name}": one_in for name, one_in in RATES.items()}.items() <= FALSE_POSITIVE_RATES.items()


def test_thresholds_computed_by_hand():
    reals = np.arange(100) / 100  # 0, .01, ... .99
    p_fake = np.concatenate([reals, [0.943, 0.97, 0.995]])
    found = operating_points(np.array([0] * 100 + [1] * 3), p_fake, "frames")
    assert (found["reals"], found["fakes"]) == (100, 3)
    # The five reals from .95 on may be called fake; what comes below is the fake at .943.
    assert found["thresholds"]["fpr_0.05"] == pytest.approx((0.94 + 0.943) / 2)
    # Up from .943, 5 of 100 alarms and no miss (5 %); a real lower, 6 %; from .95 on, 5 % and 33 %.
    assert found["thresholds"]["eer"] == pytest.approx((0.94 + 0.943) / 2)
    assert found["thresholds"]["fpr_0.01"] is None
    assert found["reasons"] == {"fpr_0.01": "100 real frames are too few: an FPR of 0.01 needs 500"}


@law
@given(st.data())
def test_no_more_reals_are_called_fake_than_the_target_and_no_lower_threshold_would_do(data):
    n = data.draw(st.sampled_from([100, 119, 500, 640]))
    levels = data.draw(st.integers(1, 60))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    reals, fakes = rng.integers(0, levels, n) / levels, np.minimum(rng.integers(0, levels + 5, 40) / levels, 1)
    labels = np.repeat([0, 1], [n, 40])
    found = operating_points(labels, np.concatenate([reals, fakes]), "frames")
    for name, one_in in RATES.items():
        at = found["thresholds"][name]
        if at is None:
            assert n < 5 * one_in or (reals == max(reals.max(), fakes.max())).mean() > 1 / one_in
            continue
        assert np.sum(reals >= at) * one_in <= n
        lower = max(score for score in {*reals, *fakes} if score < at)
        assert np.sum(reals >= lower) * one_in > n
    tpr = binary_metrics(labels, np.concatenate([reals, fakes]))
    for name, at in found["thresholds"].items():
        if name != "eer" and at is not None:
            assert np.mean(fakes >= at) == pytest.approx(tpr[f"tpr_at_{name}"])


@law
@given(scored())
def test_no_threshold_is_nearer_to_equal_rates(case):
    labels, margins = case
    assume(len(set(margins)) > 1)
    p_fake = expit(margins)
    at = operating_points(labels, p_fake, "frames")["thresholds"]["eer"]

    def gap(threshold):
        called = p_fake >= threshold
        return abs(called[labels == 0].mean() - 1 + called[labels == 1].mean())

    assert gap(at) == pytest.approx(min(map(gap, [*p_fake, 2.0])), abs=1e-12)
    assert p_fake.min() < at < p_fake.max() and at not in p_fake


def test_neighbours_without_a_middle_are_still_told_apart():
    p_fake = np.array([0.5, 0.5, np.nextafter(0.5, 1), np.nextafter(0.5, 1)])
    at = operating_points(np.array([0, 0, 1, 1]), p_fake, "frames")["thresholds"]["eer"]
    assert (p_fake >= at).tolist() == [False, False, True, True]


def test_scores_that_are_all_the_same_and_reals_that_share_the_top_have_no_threshold():
    same = operating_points(np.array([0, 1] * 50), np.full(100, 0.7), "frames")
    assert set(same["thresholds"].values()) == {None}
    assert same["reasons"]["eer"] == "all 100 frames have the same score"
    top = operating_points(np.repeat([0, 1], [200, 20]), np.repeat([0.1, 1, 1], [150, 50, 20]), "videos")
    assert top["thresholds"]["fpr_0.05"] is None
    assert top["reasons"]["fpr_0.05"].startswith("50 of 200 real videos share the highest score")


def test_a_video_is_scored_by_the_mean_calibrated_p_fake_of_its_frames():
    labels, margins = simulated(400, 200, 3)
    rows = table(labels, margins, [f"v{number // 2}" for number in range(400)])
    calibration = fit_calibration(rows)
    rows["p_fake"] = expit(calibration["slope"] * rows["logit"] + calibration["offset"])
    videos = video_scores(rows)
    expected = operating_points(videos["label"].to_numpy(), videos["p_fake"].to_numpy(), "videos")
    assert calibration["video"].items() >= {**expected, "families": 200}.items()
    assert (calibration["video"]["reals"], calibration["frame"]["reals"]) == (100, 200)
    assert calibration["video"]["thresholds"]["fpr_0.05"] is not None
    assert calibration["video"]["thresholds"]["eer"] != calibration["frame"]["thresholds"]["eer"]
    assert expected_fpr(calibration, "video", calibration["video"]["thresholds"]["fpr_0.05"])["value"] == 0.05


# --------------------------------------------------------------------------------------------------------- reliability


@law
@given(scored(least=15))
def test_the_bins_of_the_diagram_are_those_of_the_ece(case):
    labels, margins = case
    p_fake = expit(margins)
    bins = reliability(labels, p_fake)
    assert sum(one["n"] for one in bins) == len(labels)
    assert sum(one["n"] * one["share_fake"] for one in bins) == pytest.approx(labels.sum())
    error = sum(one["n"] * abs(one["mean_p"] - one["share_fake"]) for one in bins) / len(labels)
    assert error == pytest.approx(binary_metrics(labels, p_fake)["ece"], abs=1e-12)
    assert [one["mean_p"] for one in bins] == sorted(one["mean_p"] for one in bins)
    assert all(one["low"] <= one["share_fake"] + 1e-12 and one["share_fake"] <= one["high"] + 1e-12 for one in bins)


def test_a_wilson_interval_computed_by_hand():
    labels = np.array([1] * 8 + [0] * 2)
    (one,) = reliability(labels, np.full(10, 0.6))
    z = 1.959963984540054
    middle, reach = (0.8 + z**2 / 20) / (1 + z**2 / 10), z * math.sqrt(0.016 + z**2 / 400) / (1 + z**2 / 10)
    assert one == pytest.approx(
        {"mean_p": 0.6, "share_fake": 0.8, "n": 10, "low": middle - reach, "high": middle + reach}
    )
    assert reliability(np.empty(0, int), np.empty(0)) == []


def test_balanced_bins_show_what_a_calibrated_p_fake_claims():
    labels, odds = simulated(40000, 36000, 1)
    plain, balanced = (reliability(labels, expit(odds), balanced) for balanced in (False, True))
    for one, other in zip(plain, balanced, strict=True):
        assert logit(one["share_fake"]) - logit(other["share_fake"]) == pytest.approx(math.log(9))
        assert other["low"] < other["share_fake"] < other["high"]
    middle = [one for one in balanced if 0.1 < one["mean_p"] < 0.9]
    assert len(middle) > 2
    for one in middle:
        assert one["share_fake"] == pytest.approx(one["mean_p"], abs=0.04)


# ----------------------------------------------------------------------------------------------------- configurations

PLATT = {"method": "platt", "slope": 0.5, "offset": -1.0}
TEMPERATURE = {"method": "temperature", "temperature": 1.5}
BAND = {"error_rate": 0.1, "low": 0.3, "high": 0.6}
CURVE = {"thresholds": [0.0, 0.4], "value": [1.0, 0.2], "low": [0.9, 0.1], "high": [1.0, 0.4]}


def points(**changes):
    frame = {"reals": 5, "fakes": 6, "families": 2, "thresholds": {"eer": 0.4}, "reasons": {}}
    return {**PLATT, "frame": frame | changes}


@pytest.mark.parametrize(
    ("calibration", "names"),
    [
        ({}, "method .*got None"),
        ({"method": "splines"}, "method .*got 'splines'"),
        ({"method": ["temperature"]}, "method"),
        ({"method": "isotonic", "margins": [0.0], "p_fake": [0.5]}, "no longer supported. Fit it again"),
        ({"method": "temperature"}, "temperature .* above 0, got None"),
        *(({**TEMPERATURE, "temperature": bad}, "above 0") for bad in (0, -1, math.nan, math.inf, "1.5", True)),
        *(({**PLATT, "slope": bad}, "slope .* above 0") for bad in (0, -1, math.nan, 10**400, "1.5", True, None)),
        *(({**PLATT, "offset": bad}, "offset .* finite number, got") for bad in (math.inf, 10**400, "1", [0], None)),
        *((points(band=bad), "band") for bad in (3, {}, {"reason": 1}, BAND | {"low": None}, BAND | {"high": 1.1})),
        (points(band=BAND | {"error_rate": "low"}), "band.error_rate"),
        (points(fpr=[0.1]), "fpr"),
        (points(fpr={}), "thresholds, or a reason"),
        (points(fpr=CURVE | {"thresholds": [0.1, 0.4]}), "must increase from 0"),
        (points(fpr=CURVE | {"thresholds": [0.0, 0.0]}), "must increase from 0"),
        (points(fpr=CURVE | {"thresholds": []}), "fpr.thresholds"),
        (points(fpr=CURVE | {"value": [0.2, 1.0]}), "must not increase"),
        (points(fpr=CURVE | {"value": [1.0]}), r"same length, got \[2, 1, 2, 2\]"),
        (points(fpr=CURVE | {"low": [0.9, 0.3]}), "between low and high"),
        (points(fpr=CURVE | {"high": [1.0, math.nan]}), "fpr.high"),
        (points(fpr=CURVE | {"high": 1}), "fpr.high"),
        ({**TEMPERATURE, "frame": 3}, "frame .* mapping"),
        (points(thresholds={"eer": 1.01}), r"frame.thresholds.eer must be in \[0, 1\], got 1.01"),
        (points(thresholds={"eer": math.nan}), "thresholds.eer"),
        (points(thresholds={"eer": "0.4"}), "thresholds.eer"),
        (points(thresholds=[0.4]), "thresholds"),
        (points(reasons={"eer": 1}), "reasons.eer"),
        ({**TEMPERATURE, "temperature": 10**400}, "temperature .* above 0, got 1000"),
        (points(thresholds={"fpr_0.001": 0.9}), "operating points .* among eer, fpr_0.05, fpr_0.01, got 'fpr_0.001'"),
        (points(reasons={"|": "why"}), "operating point"),
        (points(reals=-1), "frame.reals"),
        (points(fakes=2.5), "frame.fakes"),
        ({**TEMPERATURE, "evidence_threshold": math.inf}, "evidence_threshold"),
    ],
)
def test_a_configuration_that_cannot_be_followed_is_refused(tmp_path, calibration, names):
    with pytest.raises(StrictDataclassError, match=names):
        DCLConfig(calibration=calibration)
    DCLConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"calibration": calibration}))
    with pytest.raises(StrictDataclassError, match=names):
        DCLConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "calibration",
    [
        *(None, TEMPERATURE, PLATT, points(), points(thresholds={"fpr_0.01": None}), points(families=None)),
        points(band=BAND, fpr=CURVE),
        points(band={"error_rate": 0.1, "low": None, "high": None, "reason": "few"}, fpr={"reason": "few"}),
    ],
)
def test_a_calibration_survives_saving(tmp_path, calibration):
    DCLConfig(calibration=calibration).save_pretrained(tmp_path)
    assert DCLConfig.from_pretrained(tmp_path).calibration == calibration


def test_the_paragraph_names_the_numbers_their_counts_and_what_is_missing():
    labels, margins = simulated(400, 200, 2)
    calibration = fit_calibration(table(labels, margins + 1))
    text, frame = describe_calibration(calibration), calibration["frame"]
    for said in (
        f"{calibration['slope']:.3g} times the margin - {-calibration['offset']:.3g}.",
        "equally likely.",
        "p_fake of a frame, from 200 reals, 200 fakes, 400 families",
        f"{frame['thresholds']['eer']:.3f} (EER)",
        f"{frame['thresholds']['fpr_0.05']:.3f} (FPR 5 %)",
        "Not available for a frame: FPR 1 % (200 real frames are too few: an FPR of 0.01 needs 500).",
        f"flagged at or above {max(frame['thresholds']['eer'], frame['band']['high']):.3f}, inconclusive from",
        "Each error is expected for at most 10 % of the faces of new people.",
        "% of the real faces score at or above",
    ):
        assert said in text
    assert "Not calibrated" in describe_calibration(None) and not missing_calibration(calibration)
