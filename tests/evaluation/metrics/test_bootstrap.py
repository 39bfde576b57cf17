"""Intervals by drawing families: that they cover the truth, what they depend on, and where they say nothing."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import ndtr, ndtri
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from dcl_face_forgery.evaluation.metrics.bootstrap import (
    family_codes,
    interval,
    intervals,
    largest_gap,
    paired_differences,
)
from dcl_face_forgery.evaluation.metrics.levels import frame_and_video_metrics
from dcl_face_forgery.evaluation.metrics.sorted_scores import CELLS_PER_BLOCK, METRICS, Ranking, draw_families


def simulate(rng, families, auc, fakes=4, shared=0.5):
    """Draw a real and some fakes of each family, whose scores share a part; `auc` is that of unrelated families."""
    kinds = np.repeat(np.arange(fakes + 1), families)
    codes = np.tile(np.arange(families), fakes + 1)
    common = rng.normal(size=families)[codes] * np.sqrt(shared)
    margin = common + rng.normal(size=len(codes)) * np.sqrt(1 - shared) + (kinds > 0) * np.sqrt(2) * ndtri(auc)
    return (kinds > 0).astype(int), ndtr(margin), codes


def table(labels, scores, codes):
    return pd.DataFrame(
        {
            "dataset": "demo",
            "method": np.where(labels == 1, "swap", "real"),
            "video_id": [f"v/{row}" for row in range(len(labels))],
            "source_id": [f"family/{code:03}" for code in codes],
            "label": labels,
            "p_fake": scores,
        }
    )


# --------------------------------------------------------------------------------------------------------- coverage


def covered(families, auc, cases, draws, fakes=4):
    rng = np.random.default_rng(20)
    hits = 0
    for case in range(cases):
        labels, scores, codes = simulate(rng, families, auc, fakes)
        ranking = Ranking(labels, scores, codes, families)
        estimate = ranking.metrics()["auc"][0]
        ends, _ = interval("auc", estimate, ranking.draws(draws, seed=case)["auc"], families)
        hits += ends is not None and ends[0] <= auc <= ends[1]
    return hits / cases


@pytest.mark.slow
def test_intervals_cover_the_truth_in_95_percent_of_a_thousand_cases():
    share = covered(families=60, auc=0.8, cases=1000, draws=400)
    print(f"covered {share:.3f}")
    assert 0.93 <= share <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(("families", "auc"), [(20, 0.8), (60, 0.97), (8, 0.8)])
def test_intervals_hold_where_families_are_few_or_the_auc_is_high(families, auc):
    share = covered(families, auc, cases=300, draws=300)
    print(f"covered {share:.3f}")
    assert 0.91 <= share <= 0.99  # percentiles of the draws cover .86 to .91 there


@pytest.mark.slow
def test_the_interval_of_a_gap_covers_it_though_the_groups_were_chosen_by_the_data():
    rng = np.random.default_rng(1)
    hits = 0
    for case in range(300):
        labels, scores, codes = simulate(rng, 90, 0.8)
        groups = codes % 3  # three groups alike: the true gap is nil
        rankings = [Ranking(labels[groups == g], scores[groups == g], codes[groups == g], 90) for g in range(3)]
        values = {g: ranking.metrics()["auc"][0] for g, ranking in enumerate(rankings)}
        gap = largest_gap(
            "auc", values, {g: ranking.draws(200, case)["auc"] for g, ranking in enumerate(rankings)}, 30
        )
        hits += gap["interval"][0] == 0
    print(f"covered {hits / 300:.3f}")
    assert 0.91 <= hits / 300 <= 0.99


def test_the_interval_is_about_as_wide_as_the_estimates_are_spread():
    rng = np.random.default_rng(0)
    estimates = []
    for _ in range(200):
        labels, scores, codes = simulate(rng, 60, 0.8)
        estimates.append(roc_auc_score(labels, scores))
    ranking = Ranking(labels, scores, codes, 60)
    ends, _ = interval("auc", 0.8, ranking.draws(300, 0)["auc"], 60)
    assert ends[1] - ends[0] == pytest.approx(2 * 2 * np.std(estimates), rel=0.25)


# ------------------------------------------------------------------------------------------------- what it depends on


def test_an_interval_by_hand():
    # Odds of 2 and 8, of which the logits have the standard deviation log(4) / sqrt(2); the estimate has odds of 4.
    reach = 4 ** (student.ppf(0.975, 9) / np.sqrt(2))
    ends, _ = interval("auc", 0.8, np.array([2 / 3, 8 / 9]), 10)
    assert ends == pytest.approx([4 / reach / (1 + 4 / reach), 4 * reach / (1 + 4 * reach)])
    # A draw of 1 counts as a tenth of the errors, .02: odds of 49.
    assert interval("auc", 0.8, np.array([2 / 3, 1]), 10) == interval("auc", 0.8, np.array([2 / 3, 0.98]), 10)
    # The log loss has no upper end: the scale is that of its logarithm.
    ends, _ = interval("log_loss", 2.0, np.array([1.0, 4.0]), 10)
    assert ends == pytest.approx([2 / reach, 2 * reach])


def test_a_draw_is_the_table_of_the_families_drawn():
    rng = np.random.default_rng(0)
    labels, scores, codes = simulate(rng, 12, 0.7)
    scores = np.round(scores, 1)  # with ties
    drawn = Ranking(labels, scores, codes, 12).draws(5, seed=4)
    for draw, counts in enumerate(np.concatenate(list(draw_families(12, 5, 4, block=2)))):
        rows = np.concatenate([np.flatnonzero(codes == family) for family in range(12) for _ in range(counts[family])])
        expected = Ranking(labels[rows], scores[rows]).metrics()
        for name in METRICS:
            assert drawn[name][draw] == pytest.approx(expected[name][0], abs=1e-12), name


def test_draws_depend_on_the_seed_alone():
    blocks = [np.concatenate(list(draw_families(7, 50, 3, block))) for block in (1, 13, 50)]
    assert (blocks[0] == blocks[1]).all() and (blocks[0] == blocks[2]).all()
    assert blocks[0].shape == (50, 7)
    assert (blocks[0].sum(axis=1) == 7).all()
    assert (blocks[0] != np.concatenate(list(draw_families(7, 50, 4, 50)))).any()


def test_large_and_small_blocks_give_the_same_draws(monkeypatch):
    labels, scores, codes = simulate(np.random.default_rng(0), 12, 0.7)
    ranking = Ranking(labels, scores, codes, 12)
    assert len(labels) * 30 < CELLS_PER_BLOCK
    together = ranking.draws(30, 0)
    monkeypatch.setattr("dcl_face_forgery.evaluation.metrics.sorted_scores.CELLS_PER_BLOCK", 1)
    alone = ranking.draws(30, 0)
    for name in METRICS:
        np.testing.assert_allclose(alone[name], together[name], rtol=0, atol=1e-12)


def flat(metrics):
    levels = metrics["demo"]
    return {(level, name): ends for level in ("frame", "video") for name, ends in levels[level]["intervals"].items()}


def test_copies_of_every_frame_leave_the_intervals():
    rows = table(*simulate(np.random.default_rng(0), 30, 0.8))
    once = frame_and_video_metrics(rows, bootstrap=100)
    often = frame_and_video_metrics(pd.concat([rows] * 9), bootstrap=100)
    for name, ends in flat(once).items():  # rows drawn singly would be three times as sure
        assert flat(often)[name] == pytest.approx(ends, abs=1e-9), name


def test_the_order_of_rows_and_the_names_of_videos_do_not_matter_and_the_seed_does():
    rows = table(*simulate(np.random.default_rng(0), 30, 0.8))
    first = frame_and_video_metrics(rows, bootstrap=50)
    assert frame_and_video_metrics(rows, bootstrap=50) == first
    moved = frame_and_video_metrics(rows.sample(frac=1, random_state=1), bootstrap=50)
    for name, ends in flat(first).items():
        assert flat(moved)[name] == (None if ends is None else pytest.approx(ends, abs=1e-9)), name
    assert flat(frame_and_video_metrics(rows, bootstrap=50, seed=1))["frame", "auc"] != flat(first)["frame", "auc"]


def test_families_bind_what_would_look_independent():
    # Twenty fakes of a family have all but the same score: as rows they are 600, as families 30.
    rng = np.random.default_rng(0)
    rows = table(*simulate(rng, 30, 0.8, fakes=20, shared=0.98))
    bound = frame_and_video_metrics(rows, bootstrap=200)["demo"]["frame"]
    loose = frame_and_video_metrics(rows.drop(columns="source_id"), bootstrap=200)["demo"]["frame"]
    assert (bound["families"], loose["families"]) == (30, 30)  # of the class that fewer have: the reals
    wide, narrow = (np.diff(found["intervals"]["tpr"])[0] for found in (bound, loose))
    assert wide > 3 * narrow


def test_every_metric_that_has_a_value_has_an_interval_but_the_ece():
    labels, scores, codes = simulate(np.random.default_rng(0), 500, 0.8)
    metrics = frame_and_video_metrics(table(labels, scores, codes), thresholds={"frame": {"eer": 0.6}}, bootstrap=100)[
        "demo"
    ]["frame"]
    names = {*METRICS, *(f"{name}_at_threshold_eer" for name in ("accuracy", "balanced_accuracy", "fpr", "tpr"))}
    assert set(metrics["intervals"]) == names - {"tpr_at_fpr_0.001"}
    assert metrics["intervals"].pop("ece") is None and "overestimates" in metrics["interval_reasons"].pop("ece")
    for name, (low, high) in metrics["intervals"].items():
        assert 0 < low < metrics[name] < high, name
        assert high < 1 or name == "log_loss"
    assert not metrics["interval_reasons"] and "warning" not in metrics


def test_the_draws_of_a_few_scores_of_many_families_are_made_in_small_blocks(monkeypatch):
    sizes = []
    metrics = Ranking.metrics
    monkeypatch.setattr(Ranking, "metrics", lambda self, counts: sizes.append(counts.size) or metrics(self, counts))
    Ranking(np.array([0, 1]), np.array([0.2, 0.8]), np.array([0, 1]), 50_000).draws(20, 0)
    assert max(sizes) <= CELLS_PER_BLOCK and sum(sizes) == 20 * 50_000


# ----------------------------------------------------------------------------------------- where there is none, or few


@pytest.mark.parametrize(("families", "warned"), [(19, True), (20, False)])
def test_few_families_are_warned_of_in_the_result(families, warned):
    metrics = frame_and_video_metrics(table(*simulate(np.random.default_rng(0), families, 0.8)), bootstrap=50)["demo"]
    for found in (metrics["frame"], metrics["video"], metrics["by_method"]["swap"]["frame"]):
        assert ("warning" in found) is warned
    if warned:
        assert (
            metrics["frame"]["warning"] == "Only 19 families have reals. With fewer than 20, intervals are unreliable."
        )


def test_the_families_that_count_are_those_of_the_rarer_class():
    labels, scores, codes = simulate(np.random.default_rng(0), 40, 0.8)
    keep = (labels == 1) | (codes < 6)
    found = frame_and_video_metrics(table(labels[keep], scores[keep], codes[keep]), bootstrap=200)["demo"]["frame"]
    assert found["families"] == 6
    assert "Only 6 families have reals" in found["warning"]


def test_a_perfect_score_is_not_called_sure():
    rows = table(*simulate(np.random.default_rng(0), 30, 0.8))
    perfect = frame_and_video_metrics(rows.assign(p_fake=rows.label * 0.8 + 0.1), bootstrap=50)["demo"]["frame"]
    assert perfect["auc"] == 1
    assert perfect["intervals"]["auc"] is None
    assert perfect["interval_reasons"]["auc"].startswith("it is the same in every draw")
    assert interval("auc", 1.0, np.array([0.9, 1, 1]), 30)[1].startswith("it is 1, the end of its range")


def test_a_class_that_few_families_have_leaves_too_few_draws():
    labels, scores, codes = simulate(np.random.default_rng(0), 30, 0.8)
    keep = (labels == 1) | (codes < 2)
    found = frame_and_video_metrics(table(labels[keep], scores[keep], codes[keep]), bootstrap=100)["demo"]["frame"]
    assert found["intervals"]["auc"] is None
    assert "of 100 draws of families" in found["interval_reasons"]["auc"]
    assert found["intervals"]["tpr"] is not None


def test_frames_of_no_family_have_no_interval():
    rows = table(*simulate(np.random.default_rng(0), 30, 0.8))
    rows.loc[3, ["video_id", "source_id"]] = None
    found = frame_and_video_metrics(rows, bootstrap=50)["demo"]["frame"]
    assert found["auc"] is not None
    assert found["intervals"] == {}
    assert found["interval_reasons"] == {"all": "1 of 150 frames have neither source_id nor video_id"}


def test_a_video_without_a_source_is_the_family_that_its_fakes_name():
    rows = pd.DataFrame({"video_id": ["real/a", "swap/a", "real/b"], "source_id": [None, "real/a", "real/b"]})
    codes, count = family_codes(rows)
    assert (codes.tolist(), count) == ([0, 0, 1], 2)


# ------------------------------------------------------------------------------------------------------------- pairs


def test_a_difference_is_that_of_the_metrics_and_the_better_model_is_told_apart():
    labels, scores, codes = simulate(np.random.default_rng(0), 60, 0.8)
    better = np.clip(scores + 0.1 * labels, 0, 1)
    found = paired_differences(*(Ranking(labels, each, codes, 60) for each in (better, scores)), draws=200)
    auc = found["auc"]
    assert auc["difference"] == pytest.approx(roc_auc_score(labels, better) - roc_auc_score(labels, scores))
    assert 0 < auc["interval"][0] < auc["difference"] < auc["interval"][1]
    back = paired_differences(*(Ranking(labels, each, codes, 60) for each in (scores, better)), draws=200)["auc"]
    assert back["interval"] == pytest.approx([-auc["interval"][1], -auc["interval"][0]])
    single = Ranking(labels, scores, codes, 60)
    alone, _ = interval("auc", single.metrics()["auc"][0], single.draws(200, 0)["auc"], 60)
    assert np.diff(auc["interval"]) < np.diff(alone) / 2


def test_a_metric_that_one_model_lacks_has_no_difference():
    labels, scores, codes = simulate(np.random.default_rng(0), 30, 0.8)
    found = paired_differences(*(Ranking(labels, each, codes, 30) for each in (scores, scores * 9)), draws=20)
    assert found["brier"] == {
        "difference": None, "interval": None, "reason": "it is undefined for one of the models",
    }  # fmt: skip
    assert found["auc"]["difference"] == 0


def test_a_gap_by_hand():
    # Errors of the draws: a -.1 .1, b .1 -.1: ranges .2 and .2, so the gap of .3 is told to .2, times t over z.
    estimates = {"a": 0.9, "b": 0.6}
    draws = {"a": np.array([0.8, 1.0]), "b": np.array([0.7, 0.5])}
    found = largest_gap("auc", estimates, draws, families=10)
    reach = 0.2 * student.ppf(0.975, 9) / ndtri(0.975)
    assert (found["highest"], found["lowest"]) == ("a", "b")
    assert found["value"] == pytest.approx(0.3)
    assert found["interval"] == pytest.approx([0.3 - reach, 0.3 + reach])
    assert "interval" not in largest_gap("auc", estimates)
    assert (
        largest_gap("auc", estimates, {"a": np.array([0.9, 0.9]), "b": np.array([0.6, 0.6])}, 10)["interval"] is None
    )
    assert "single family" in largest_gap("auc", estimates, draws, families=1)["reason"]


def test_groups_that_are_all_alike_have_no_highest():
    assert largest_gap("auc", {"a": 0.5, "b": 0.5}) == {"value": 0, "highest": None, "lowest": None}


@pytest.mark.parametrize(("name", "most"), [("auc", 1), ("fpr_at_threshold_eer", 1), ("log_loss", np.inf)])
def test_a_gap_is_no_larger_than_its_metric_can_be(name, most):
    # Errors of the draws: a -.2 .1, b .1 -.2: ranges .3 and .3.
    estimates = {"a": 0.9, "b": 0.2}
    draws = {"a": np.array([0.7, 1.0]), "b": np.array([0.3, 0.0])}
    low, high = largest_gap(name, estimates, draws, families=10)["interval"]
    reach = 0.3 * student.ppf(0.975, 9) / ndtri(0.975)
    assert low == pytest.approx(0.7 - reach)
    assert 0.7 + reach > 1 and high == pytest.approx(min(most, 0.7 + reach))


def test_intervals_belong_to_the_metrics_that_are_given():
    labels, scores, codes = simulate(np.random.default_rng(0), 30, 0.8)
    ranking = Ranking(labels, scores, codes, 30)
    found = intervals(ranking, {"auc": 0.8, "eer": None, "n": 150}, ranking.draws(50, 0))
    assert list(found["intervals"]) == ["auc"]
