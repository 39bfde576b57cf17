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

from dcl.calibration_dcl import calibrate, describe_calibration
from dcl.configuration_dcl import DCLConfig
from dcl.evaluation.calibration import RATES, fit_calibration, operating_points, reliability
from dcl.evaluation.metrics import binary_metrics, video_scores
from dcl.evaluation.ranking import FALSE_POSITIVE_RATES
from dcl.modeling_dcl import DCLForImageClassification

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


def test_the_temperature_divides_the_margin_and_nothing_is_lost_far_out():
    margins = np.array([[-800.0, -40], [0, 3]])
    expected = expit(margins / 2)
    np.testing.assert_allclose(calibrate(margins, {"method": "temperature", "temperature": 2}), expected, rtol=1e-14)
    for none in (None, {"method": "none", "reason": "too few"}):
        np.testing.assert_allclose(calibrate(margins, none), expit(margins), rtol=1e-14)
    assert 0 < calibrate(-700, None) < 1e-300
    assert np.isnan(calibrate(np.nan, None)) and calibrate(np.inf, None) == 1 and calibrate(-np.inf, None) == 0


def test_an_isotonic_curve_is_linear_between_its_knots_and_flat_outside():
    curve = {"method": "isotonic", "margins": [-1, 1, 3], "p_fake": [0.1, 0.5, 0.9]}
    assert calibrate([-9, -1, 0, 1, 2, 3, 9], curve) == pytest.approx([0.1, 0.1, 0.3, 0.5, 0.7, 0.9, 0.9])


def test_the_model_gives_calibrated_probabilities(config):
    logits = torch.tensor([[0.0, 3.0], [2.0, -1.0], [0.5, 0.5]], requires_grad=True)
    config.calibration = {"method": "temperature", "temperature": 3}
    p_fake = DCLForImageClassification(config).p_fake(logits)
    assert p_fake.dtype == torch.float32 and p_fake.shape == (3,) and not p_fake.requires_grad
    assert p_fake.tolist() == pytest.approx(expit([1, -1, 0]))
    config.calibration = None
    plain = DCLForImageClassification(config).p_fake(logits)
    torch.testing.assert_close(plain, logits.softmax(1)[:, 1].detach())


# ---------------------------------------------------------------------------------------------------------------- fits


@pytest.mark.parametrize("fakes", [10000, 1500, 18500])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_the_temperature_is_recovered_whatever_the_share_of_fakes(temperature, fakes):
    labels, margins = simulated(20000, fakes, temperature)
    calibration = fit_calibration(table(labels, margins))
    assert calibration["method"] == "temperature"
    assert calibration["temperature"] == pytest.approx(temperature, rel=0.06)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_temperature_follows_the_scale_of_the_margins(scale):
    labels, margins = simulated(600, 300, 1)
    one, other = (fit_calibration(table(labels, margins * by))["temperature"] for by in (1, scale))
    assert other == pytest.approx(one * scale, rel=1e-5)


def test_an_isotonic_curve_finds_the_chance_behind_margins_of_any_shape():
    labels, odds = simulated(20000, 4000, 1)
    margins = np.sign(odds) * np.abs(odds) ** 3 + 2  # no temperature can undo that
    calibration = fit_calibration(table(labels, margins), "isotonic")
    p_fake = calibrate(margins, calibration)
    assert np.abs(p_fake - expit(odds)).mean() < 0.02
    assert len(calibration["margins"]) < 300
    assert calibration["p_fake"][0] >= 1 / 4002 and calibration["p_fake"][-1] <= 1 - 1 / 16002


def test_an_isotonic_curve_is_no_surer_than_the_counts_allow():
    labels = np.array([0] * 8 + [1] * 3)
    calibration = fit_calibration(table(labels, np.arange(11.0)), "isotonic")
    assert calibration["margins"] == [7, 8]
    assert calibration["p_fake"] == pytest.approx([1 / 5, 9 / 10])


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_frames_of_a_video_that_are_there_twice_change_no_calibration(method):
    labels, margins = simulated(60, 30, 1)
    once = table(labels, margins, [f"v{number // 2}" for number in range(60)])
    often = pd.concat([once, *[once[once.video_id.isin(["v3", "v20"])]] * 5])
    keys = ("temperature", "margins", "p_fake")
    one, other = (
        {key: calibration[key] for key in keys if key in calibration}
        for calibration in (fit_calibration(rows, method) for rows in (once, often))
    )
    assert one.keys() == other.keys() and len(one) > 0
    for key in one:
        assert other[key] == pytest.approx(one[key], rel=1e-6)


@law
@given(scored(), st.sampled_from(["temperature", "isotonic"]), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing_to_the_last_bit(case, method, random):
    labels, margins = case
    rows = table(labels, margins, [f"{label}/{number % 5}" for number, label in enumerate(labels)])
    order = list(range(len(labels)))
    random.shuffle(order)
    assert fit_calibration(rows.iloc[order], method) == fit_calibration(rows, method)


@law
@given(scored(ties=False), st.floats(0.05, 20))
def test_a_temperature_changes_no_ranking(case, temperature):
    labels, margins = case
    margins = np.round(margins, 3)  # what is nearer than doubles near 1 can tell may become a tie
    p_fake = calibrate(margins, {"method": "temperature", "temperature": max(temperature, 0.5)})
    np.testing.assert_array_equal(
        np.sign(np.subtract.outer(p_fake, p_fake)), np.sign(np.subtract.outer(margins, margins))
    )
    assert roc_auc_score(labels, p_fake) == roc_auc_score(labels, margins)


@law
@given(scored(), st.sampled_from(["temperature", "isotonic"]))
def test_every_fit_is_a_configuration_that_rises_and_is_saved_as_it_is(case, method):
    labels, margins = case
    calibration = fit_calibration(table(labels, margins), method)
    assert DCLConfig(calibration=json.loads(json.dumps(calibration, allow_nan=False))).calibration == calibration
    p_fake = calibrate(np.sort(margins), calibration)
    assert np.all(np.diff(p_fake) >= 0) and p_fake[0] >= 0 and p_fake[-1] <= 1
    assert describe_calibration(calibration)


@pytest.mark.parametrize(
    ("labels", "margins", "method", "reason"),
    [
        ([0, 0, 1, 1], [-2, -1, 1, 2], "temperature", "the sign of the margin tells the frames apart"),
        ([0, 0, 1, 1], [-2, -1, -1e-12, 2], "temperature", "the sign of the margin tells the frames apart"),
        ([0, 0, 1, 1], [2, 1, -1, -2], "temperature", "on average, the margins of fakes are no higher"),
        ([0, 0, 1, 1], [1, -1, 1, -1], "temperature", "on average, the margins of fakes are no higher"),
        ([0, 0, 1, 1], [1, -1, 1, -1 + 1e-9], "temperature", "hardly higher"),
        ([0, 0, 1, 1], [2, 1, -1, -2], "isotonic", "the share of fakes does not rise with the margin"),
        ([0, 1, 0, 1], [3, 3, 3, 3], "temperature", "all 4 frames have the margin 3"),
        ([0, 1, 0, 1], [3, 3, 3, 3], "isotonic", "all 4 frames have the margin 3"),
        ([1, 1, 1], [1, 2, 3], "temperature", "all 3 frames are fake"),
        ([0, 0, 0], [1, 2, 3], "isotonic", "all 3 frames are real"),
        ([0, 1, 1], [1, math.nan, 3], "temperature", "1 of 3 frames have a score that is not finite"),
    ],
)
def test_what_the_split_does_not_determine_is_no_number_but_a_reason(labels, margins, method, reason):
    calibration = fit_calibration(table(np.array(labels), np.array(margins, float)), method)
    assert calibration["method"] == "none" and reason in calibration["reason"]
    assert not {"temperature", "margins", "p_fake"} & calibration.keys()
    assert calibrate(1.5, calibration) == expit(1.5)
    assert DCLConfig(calibration=calibration).calibration == calibration
    assert reason in describe_calibration(calibration)


def test_videos_that_cannot_be_told_apart_leave_the_thresholds_of_frames():
    labels, margins = simulated(40, 20, 1)
    calibration = fit_calibration(table(labels, margins, ["one name"] * 40))
    assert calibration["frame"]["thresholds"]["eer"] is not None
    assert set(calibration["video"]["thresholds"].values()) == {None}
    assert "must name one video" in calibration["video"]["reasons"]["eer"]
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
    assert found["reasons"] == {"fpr_0.01": "100 real frames do not tell it: an FPR of 0.01 takes 500"}


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
    rows["p_fake"] = expit(rows["logit"] / calibration["temperature"])
    videos = video_scores(rows)
    expected = operating_points(videos["label"].to_numpy(), videos["p_fake"].to_numpy(), "videos")
    assert calibration["video"] == {**expected, "families": 200}
    assert (calibration["video"]["reals"], calibration["frame"]["reals"]) == (100, 200)
    assert calibration["video"]["thresholds"]["fpr_0.05"] is not None
    assert calibration["video"]["thresholds"]["eer"] != calibration["frame"]["thresholds"]["eer"]


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

KNOTS = {"method": "isotonic", "margins": [-1.0, 2.0], "p_fake": [0.2, 0.8]}
TEMPERATURE = {"method": "temperature", "temperature": 1.5}


def points(**changes):
    frame = {"reals": 5, "fakes": 6, "families": 2, "thresholds": {"eer": 0.4}, "reasons": {}}
    return {**TEMPERATURE, "frame": frame | changes}


@pytest.mark.parametrize(
    ("calibration", "names"),
    [
        ({}, "method None"),
        ({"method": "platt"}, "method 'platt'"),
        ({"method": ["temperature"]}, "method"),
        ({"method": "temperature"}, "temperature .* above 0, got None"),
        *(({**TEMPERATURE, "temperature": bad}, "above 0") for bad in (0, -1, math.nan, math.inf, "1.5", True)),
        ({**KNOTS, "margins": [2.0, -1.0]}, "must rise, got 2.0 before -1.0"),
        ({**KNOTS, "margins": [2.0, 2.0]}, "must rise"),
        ({**KNOTS, "margins": [1.0]}, "equally many, got 1 and 2"),
        ({**KNOTS, "margins": []}, "list of finite numbers"),
        ({**KNOTS, "margins": [-1.0, math.nan]}, "list of finite numbers"),
        ({**KNOTS, "margins": "ab"}, "list of finite numbers"),
        ({**KNOTS, "p_fake": [0.8, 0.2]}, "must not fall"),
        ({**KNOTS, "p_fake": [0.2, 1.2]}, r"in \[0, 1\]"),
        ({**KNOTS, "p_fake": None}, "list of finite numbers"),
        ({**TEMPERATURE, "frame": 3}, "frame .* mapping"),
        (points(thresholds={"eer": 1.01}), r"threshold eer .*frame.* in \[0, 1\], got 1.01"),
        (points(thresholds={"eer": math.nan}), "threshold eer"),
        (points(thresholds={"eer": "0.4"}), "threshold eer"),
        (points(thresholds=[0.4]), "thresholds"),
        (points(reasons={"eer": 1}), "reason for eer"),
        ({**TEMPERATURE, "temperature": 10**400}, "temperature .* above 0, got 1000"),
        ({**KNOTS, "margins": [0, 10**400]}, "list of finite numbers"),
        (points(thresholds={"fpr_0.001": 0.9}), "operating point 'fpr_0.001': it can have eer, fpr_0.05, fpr_0.01"),
        (points(reasons={"|": "why"}), "operating point"),
        (points(reals=-1), "number of reals"),
        (points(fakes=2.5), "number of fakes"),
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
    "calibration", [None, TEMPERATURE, KNOTS, points(), points(thresholds={"fpr_0.01": None}), points(families=None)]
)
def test_a_calibration_survives_saving(tmp_path, calibration):
    DCLConfig(calibration=calibration).save_pretrained(tmp_path)
    assert DCLConfig.from_pretrained(tmp_path).calibration == calibration


def test_the_paragraph_names_the_numbers_their_counts_and_what_is_missing():
    labels, margins = simulated(400, 200, 2)
    calibration = fit_calibration(table(labels, margins))
    text = describe_calibration(calibration)
    for said in (
        f"divided by {calibration['temperature']:.3g}",
        "as if reals and fakes were equally likely",
        "p_fake of a frame, from 200 reals, 200 fakes, 400 families",
        f"{calibration['frame']['thresholds']['eer']:.3f} (EER)",
        f"{calibration['frame']['thresholds']['fpr_0.05']:.3f} (FPR 5 %)",
        "Not given for a frame: FPR 1 % (200 real frames do not tell it: an FPR of 0.01 takes 500).",
    ):
        assert said in text
    assert "Not calibrated" in describe_calibration(None)
