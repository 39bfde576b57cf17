"""ROC curves and their bands, against scikit-learn and against families drawn by hand."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_curve

from dcl_face_forgery.evaluation.metrics.bootstrap import interval
from dcl_face_forgery.evaluation.metrics.curves import RATES, roc_curves
from dcl_face_forgery.evaluation.metrics.sorted_scores import Ranking, draw_families


def make_rows(families=12, frames=2, seed=0):
    """Of each family a real and two fakes, some frames each; scores are rounded, so that there are ties."""
    rng = np.random.default_rng(seed)
    rows = []
    for family in range(families):
        for method in ("youtube", "swap", "warp"):
            for frame in range(frames):
                score = np.clip(rng.normal(0.35 + 0.3 * (method != "youtube"), 0.25), 0, 1)
                rows.append(
                    (method, f"{method}/{family}", f"youtube/{family}", frame, int(method != "youtube"), score)
                )
    table = pd.DataFrame(rows, columns=["method", "video_id", "source_id", "frame", "label", "p_fake"])
    return table.round({"p_fake": 2})


def test_every_point_of_the_curve_is_there():
    rows = make_rows()
    curves, reasons = roc_curves(rows, bootstrap=0)
    assert reasons == {}
    videos = rows.groupby("video_id").agg({"label": "first", "p_fake": "mean"})
    for level, table in (("frame", rows), ("video", videos)):
        fpr, tpr, _ = roc_curve(table["label"], table["p_fake"], drop_intermediate=False)
        np.testing.assert_allclose(curves[level].fpr, fpr)
        np.testing.assert_allclose(curves[level].tpr, tpr)
        assert np.isnan(curves[level].low).all()
    assert (curves["frame"].reals, curves["video"].fakes) == (24, 24)


def test_the_band_is_the_interval_of_the_families_that_are_drawn():
    rows = make_rows()
    curve = roc_curves(rows, bootstrap=40, seed=3)[0]["frame"]
    codes = pd.factorize(rows["source_id"], sort=True)[0]
    at = np.searchsorted(RATES, 0.3)
    draws = []
    for counts in np.concatenate(list(draw_families(12, 40, 3, 40)))[:, None]:
        copies = rows.loc[rows.index.repeat(counts[0][codes])]
        fpr, tpr, _ = roc_curve(copies["label"], copies["p_fake"], drop_intermediate=False)
        draws.append(np.interp(RATES[at], fpr, tpr))
    estimate = np.interp(RATES[at], curve.fpr, curve.tpr)
    expected, _ = interval("tpr", estimate, np.array(draws), 12)
    assert [curve.low[at], curve.high[at]] == pytest.approx(expected)
    defined = np.isfinite(curve.low)
    along = np.interp(RATES, curve.fpr, curve.tpr)
    assert (curve.low[defined] < along[defined]).all() and (along[defined] < curve.high[defined]).all()
    assert not defined[RATES < 1 / 24].any()
    assert not defined[-1]  # all are found there, in every draw


def test_draws_without_a_class_are_undefined():
    ranking = Ranking(np.array([0, 1]), np.array([0.2, 0.8]), np.array([0, 1]), 2)
    with np.errstate(all="raise"):
        draws = ranking.roc_draws(np.array([0.0, 1.0]), 50, 0)
    one_class = np.array([(counts == 0).any() for counts in np.concatenate(list(draw_families(2, 50, 0, 50)))])
    assert one_class.any() and not one_class.all()
    np.testing.assert_array_equal(np.isnan(draws).all(1), one_class)
    assert (draws[~one_class] == 1).all()


@pytest.mark.parametrize(("label", "kind"), [(0, "real"), (1, "fake")])
def test_one_class_gives_reasons_instead(label, kind):
    rows = make_rows().assign(label=label)
    curves, reasons = roc_curves(rows)
    assert curves == {}
    assert reasons == {
        "frame": f"all 72 frames are {kind}, and both classes are needed",
        "video": f"all 36 videos are {kind}, and both classes are needed",
    }


def test_frames_that_cannot_be_averaged_leave_the_curve_of_frames():
    mixed = make_rows().assign(video_id="one", source_id="one")
    curves, reasons = roc_curves(mixed, bootstrap=20)
    assert list(curves) == ["frame"]
    assert np.isnan(curves["frame"].low).all()  # a single family
    assert "has real and fake frames" in reasons["video"]
    unknown = make_rows().assign(video_id=None, source_id=None)
    curves, reasons = roc_curves(unknown, bootstrap=20)
    assert list(curves) == ["frame"] and "have no video_id" in reasons["video"]
    broken = make_rows()
    broken.loc[3, "p_fake"] = np.nan
    assert roc_curves(broken)[1]["frame"] == "the scores of 1 frames are not finite"
