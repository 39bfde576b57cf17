"""Counts of cells against the cells themselves: areas under the curve, overlaps, and how they are kept."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import jaccard_score, roc_auc_score

from dcl_face_forgery.evaluation.metrics.localisation import (
    BITS,
    CellCounts,
    best_iou_threshold,
    bins_of,
    localisation_metrics,
    lowest_of,
)

law = settings(max_examples=100, deadline=None, derandomize=True)
evidences = arrays(np.float32, st.integers(2, 40), elements=st.floats(-100, 100, width=32))


def draw_cells(seed, n=20_000, scale=3.0, shift=0.0):
    """Evidence that tells forged cells somewhat, as that of a network does."""
    rng = np.random.default_rng(seed)
    forged = rng.random(n) < 0.2
    return (rng.normal(size=n) * scale + 2 * forged + shift).astype(np.float32), forged


def test_localisation_is_the_share_of_forged_cells_above_untouched_ones():
    evidence, forged = np.array([3.0, -1.0, 0.5, 2.0]), np.array([True, False, True, False])
    assert localisation_metrics(CellCounts().add(evidence, forged))["auc"] == 0.75
    ties = localisation_metrics(CellCounts().add(np.array([1.0, 1.0, 0.0, -0.0]), forged))
    assert (ties["auc"], ties["auc_error"]) == (0.5, 0.25)  # zero is zero, whatever its sign


@law
@given(evidences, st.data())
def test_bins_rise_with_evidence_and_are_narrow(evidence, data):
    ordered = np.sort(evidence)
    bins = bins_of(ordered)
    assert (np.diff(bins) >= 0).all()
    assert bins.min() >= 0 and bins.max() < 1 << BITS
    lowest = np.array([lowest_of(int(number)) for number in bins])
    np.testing.assert_array_equal(bins_of(lowest), bins)
    assert (lowest <= ordered).all()
    tiny = np.finfo(np.float32).tiny
    assert (ordered - lowest <= np.maximum(np.maximum(abs(ordered), abs(lowest)), tiny) / 2048).all()


@pytest.mark.parametrize(("scale", "shift"), [(3.0, 0.0), (0.01, 0.0), (1e6, 0.0), (3.0, -50.0), (0.01, 5.0)])
def test_the_area_is_as_near_to_the_exact_one_as_it_says(scale, shift):
    evidence, forged = draw_cells(0, scale=scale, shift=shift)
    metrics = localisation_metrics(CellCounts().add(evidence, forged))
    error = abs(metrics["auc"] - roc_auc_score(forged, evidence))
    assert error <= metrics["auc_error"] + 1e-12
    assert metrics["auc_error"] < (2e-4 if shift == 0 else 2e-2)
    if shift == 0:
        assert error < 2e-6


@law
@given(evidences, st.data())
def test_small_sets_agree_with_scikit_learn(evidence, data):
    forged = data.draw(arrays(bool, len(evidence)))
    forged[:2] = True, False
    evidence = np.round(evidence * 4) / 4  # no two values of one bin
    threshold = data.draw(st.integers(-400, 400)) / 4
    metrics = localisation_metrics(CellCounts().add(evidence, forged), threshold)
    assert metrics["auc"] == pytest.approx(roc_auc_score(forged, evidence), abs=1e-12)
    assert metrics["iou"] == pytest.approx(jaccard_score(forged, evidence >= threshold), abs=1e-12)
    assert metrics["iou_all_forged"] == pytest.approx(jaccard_score(forged, np.ones_like(forged)), abs=1e-12)
    assert metrics["evidence_threshold"] == threshold


@pytest.mark.parametrize("seed", range(3))
def test_the_threshold_is_the_best_there_is_and_its_overlap_is_exact(seed):
    evidence, forged = draw_cells(seed, n=400)
    cells = CellCounts().add(evidence, forged)
    threshold = best_iou_threshold(cells)
    exact = {float(value): jaccard_score(forged, evidence >= value) for value in evidence}
    found = jaccard_score(forged, evidence >= np.float32(threshold))
    assert found == pytest.approx(max(exact.values()), abs=1e-12)
    assert localisation_metrics(cells, threshold)["iou"] == pytest.approx(found, abs=1e-12)
    assert found > localisation_metrics(cells)["iou_all_forged"]


def test_counts_of_parts_add_up_to_those_of_the_whole():
    evidence, forged = draw_cells(0)
    evidence[5], evidence[15_000] = np.nan, np.inf
    whole, texts, merged = CellCounts().add(evidence, forged), CellCounts(), CellCounts()
    for part in np.array_split(np.arange(len(evidence)), 7):
        counts = CellCounts().add(evidence[part], forged[part])
        merged.merge(counts)
        texts.merge_text(counts.to_text())
    for counts in (texts, merged):
        np.testing.assert_array_equal(counts.counts, whole.counts)
        assert counts.not_finite == 2
    assert whole.counts.sum() == len(evidence) - 2


def test_the_text_of_a_part_is_small_and_a_broken_one_is_told():
    text = CellCounts().add(*draw_cells(0, n=50_000)).to_text()  # 500 fakes with 10 x 10 cells
    assert len(text) < 50_000
    with pytest.raises(ValueError, match="not valid counts of cells"):
        CellCounts().merge_text(text[:-40])


def test_localisation_without_masks_or_contrast_or_numbers_is_null():
    unknown = localisation_metrics(CellCounts(), 0.5)
    assert unknown == {
        **dict.fromkeys(("auc", "auc_error", "iou", "iou_all_forged")),
        "evidence_threshold": 0.5,
        "reason": "there are no fakes with a known mask",
    }
    full = CellCounts().add(np.array([0.1, 0.2]), np.array([True, True]))
    assert "all 2 cells of fakes with a known mask are forged" in localisation_metrics(full)["reason"]
    broken = CellCounts().add(np.array([0.1, np.nan]), np.array([True, False]))
    assert (
        "the evidence of 1 of 2 cells of fakes with a known mask is not finite"
        in (localisation_metrics(broken)["reason"])
    )
    assert [best_iou_threshold(cells) for cells in (CellCounts(), full, broken)] == [None] * 3


def test_without_a_threshold_there_is_no_overlap_but_the_reason():
    metrics = localisation_metrics(CellCounts().add(*draw_cells(0)))
    assert metrics["iou"] is None
    assert "no evidence_threshold" in metrics["iou_reason"]
    assert 0.15 < metrics["iou_all_forged"] < 0.25
