"""Fit calibration, thresholds and familiarity on the validation split at the end of training.

Also the metrics of that split that select the checkpoint during training.
"""

from typing import Any

import numpy as np
import pandas as pd
from transformers import BaseImageProcessor, EvalPrediction, PreTrainedModel

from ..errors_dcl import InputError
from ..modeling_dcl import ReferenceNetwork, find_reference
from ..prepared.dataset import keys_of
from ..prepared.splits import PreparedSplit
from .calibration import fit_calibration
from .familiarity import fit_familiarity
from .metrics.binary import binary_metrics
from .metrics.levels import video_scores
from .metrics.localisation import CellCounts, best_iou_threshold
from .scoring.predictions import predict


def validation_metrics(prediction: EvalPrediction) -> dict[str, Any]:
    """Compute the metrics of the validation split, at frame and video level.

    Args:
        prediction: logits (N, 2), with the labels (N,) and the number of each frame's video (N,) as label_ids.
    """
    labels, videos = prediction.label_ids
    logits = np.asarray(prediction.predictions, np.float64)
    rows = pd.DataFrame({"video_id": videos, "label": labels, "p_fake": 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))})
    frame = binary_metrics(rows.label.to_numpy(), rows.p_fake.to_numpy(), "frames")
    if frame["auc"] is None:
        raise InputError(f"The checkpoint cannot be validated ({frame['reason']}). Lower the learning rate.")
    per_video = video_scores(rows)
    video = binary_metrics(per_video.label.to_numpy(), per_video.p_fake.to_numpy(), "videos")
    return {"auc": frame["auc"], "eer": frame["eer"], "accuracy": frame["accuracy"], "video_auc": video["auc"]}


def fit_on_validation(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    data: PreparedSplit,
    batch_size: int,
    num_workers: int,
    inconclusive_error_rate: float,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fit calibration, thresholds and limits of familiarity on a trained model's scores for the validation split.

    Args:
        model: the model, on its device.
        processor: its image processor.
        data: the validation split.
        batch_size: images in a batch.
        num_workers: processes that decode and resize.
        inconclusive_error_rate: `error_rate` of `fit_calibration`.

    Returns:
        `DCLConfig.calibration` and `DCLConfig.familiarity`.
    """
    tables, features, sharpness, cells = [], [], [], CellCounts()
    reference = ReferenceNetwork(find_reference())
    for batch in predict(model.eval(), processor, data, batch_size, num_workers, reference=reference):
        tables.append(batch.rows.to_pandas())
        features.append(batch.features)
        sharpness.append(batch.sharpness)
        cells.add(batch.evidence, batch.forged)
    predictions, keys = pd.concat(tables, ignore_index=True), keys_of(data.dataset)
    predictions[["video_id", "source_id"]] = keys[["video_id", "source_id"]]  # unique across data sets
    calibration = fit_calibration(predictions, inconclusive_error_rate)
    calibration["evidence_threshold"] = best_iou_threshold(cells)
    return calibration, fit_familiarity(predictions, np.concatenate(features), np.concatenate(sharpness))
