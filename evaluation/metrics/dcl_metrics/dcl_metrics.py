"""The metrics of this package as a module for the `evaluate` library.

    metric = evaluate.load("path/to/evaluation/metrics/dcl_metrics")
    metric.compute(predictions=p_fake, references=labels, video_ids=video_ids, source_ids=source_ids)

The path is this folder, in a checkout or in the installed package; nothing is downloaded.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import pandas as pd

from dcl_face_forgery.evaluation.metrics.binary import binary_metrics
from dcl_face_forgery.evaluation.metrics.levels import frame_and_video_metrics

DESCRIPTION = """\
How well scores separate forged from real faces: AUC, EER, average precision, accuracy, balanced accuracy, TPR at low
FPR, log loss, Brier score and calibration error, at frame and video level and by method, with 95 % intervals from
a bootstrap over families (a real with all its fakes).
"""
INPUTS = """
Args:
    predictions: floats (n,) in [0, 1], the probability of fake for each frame.
    references: integers (n,), 0 real, 1 fake.
    video_ids: the video of each frame. Required for the video level, for methods and for intervals.
    source_ids: the family of each frame: the real video that a fake was made from, or a real's own video. Without
        them, every video is its own family.
    methods: the manipulation method of each frame.
    bootstrap: number of bootstrap draws for the intervals; 0 for none.
    seed: seed of the draws.

Returns:
    Without `video_ids`, the result of `binary_metrics`; with them, `frame`, `video` and
    `by_method` of `frame_and_video_metrics`. Undefined metrics are None, with a reason.
"""
CITATION = """\
@inproceedings{sun2022dual,
  title={Dual Contrastive Learning for General Face Forgery Detection},
  author={Sun, Ke and Yao, Taiping and Chen, Shen and Ding, Shouhong and Li, Jilin and Ji, Rongrong},
  booktitle={Proceedings of the AAAI Conference on Artificial Intelligence},
  year={2022}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS)
class DCLMetrics(evaluate.Metric):
    """`binary_metrics` and `frame_and_video_metrics` with the interface of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int8")}
            ),
        )

    def _compute(
        self,
        predictions: Sequence[float],
        references: Sequence[int],
        video_ids: Sequence[str] | None = None,
        source_ids: Sequence[str] | None = None,
        methods: Sequence[str] | None = None,
        bootstrap: int = 1000,
        seed: int = 0,
    ) -> dict[str, Any]:
        if video_ids is None:
            return binary_metrics(references, predictions, "frames")
        rows = pd.DataFrame({"label": references, "p_fake": predictions, "video_id": video_ids, "dataset": "all"})
        rows["source_id"] = video_ids if source_ids is None else source_ids
        rows["method"] = None if methods is None else methods
        found = frame_and_video_metrics(rows, bootstrap=bootstrap, seed=seed)["all"]
        return {name: found[name] for name in ("frame", "video", "by_method")}
