"""The metrics as a module of the library `evaluate`, loaded from its folder, without a network."""

from pathlib import Path

import evaluate
import numpy as np
import pandas as pd
import pytest

from dcl_face_forgery.evaluation.metrics.binary import binary_metrics
from dcl_face_forgery.evaluation.metrics.levels import frame_and_video_metrics
from dcl_face_forgery.evaluation.metrics.sorted_scores import METRICS

FOLDER = Path(__file__).parents[3] / "evaluation/metrics/dcl_metrics"


@pytest.fixture
def metric(tmp_path):
    return evaluate.load(str(FOLDER), cache_dir=str(tmp_path))


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    frames = [(method, clip, frame) for clip in range(20) for method in ("real", "swap") for frame in range(3)]
    return pd.DataFrame(
        {
            "dataset": "all",
            "method": [method for method, _, _ in frames],
            "video_id": [f"{method}/{clip}" for method, clip, _ in frames],
            "source_id": [f"real/{clip}" for _, clip, _ in frames],
            "label": [int(method == "swap") for method, _, _ in frames],
            "p_fake": rng.random(len(frames)),
        }
    )


def test_scores_alone_give_the_binary_metrics(metric, rows):
    found = metric.compute(predictions=rows.p_fake, references=rows.label)
    assert found == binary_metrics(rows.label, rows.p_fake, "frames")
    assert found.keys() >= set(METRICS)


def test_videos_and_families_give_both_levels_with_intervals(metric, rows):
    found = metric.compute(
        predictions=rows.p_fake,
        references=rows.label,
        video_ids=rows.video_id,
        source_ids=rows.source_id,
        methods=rows.method,
        bootstrap=50,
    )
    expected = frame_and_video_metrics(rows, bootstrap=50)["all"]
    assert found == {name: expected[name] for name in ("frame", "video", "by_method")}
    assert found["video"]["n"] == 40
    assert found["frame"]["intervals"]["auc"] is not None


def test_batches_give_the_same_as_all_at_once(metric, rows):
    for start in range(0, len(rows), 50):
        part = rows.iloc[start : start + 50]
        metric.add_batch(predictions=part.p_fake.tolist(), references=part.label.tolist())
    found = metric.compute(video_ids=rows.video_id.tolist(), bootstrap=0)
    assert found["video"]["auc"] == frame_and_video_metrics(rows, bootstrap=0)["all"]["video"]["auc"]


def test_it_describes_itself(metric):
    assert metric.name == "dcl_metrics"
    assert "EER" in metric.description
    assert "source_ids" in metric.inputs_description
