"""Tiny checkpoints for tests that detect: real faces are cut for them, and their answers mean nothing."""

from pathlib import Path

import torch

from dcl_face_forgery.configuration_dcl import DCLConfig
from dcl_face_forgery.image_processing_dcl import DCLImageProcessor
from dcl_face_forgery.modeling_dcl import DCLForImageClassification

CROP = {"kind": "box", "margin": 1.3, "size": 112, "detector": "yunet_2023mar_multiscale"}
CALIBRATION = {
    "method": "platt",
    "slope": 0.5,
    "offset": 0.25,
    "frame": {
        "thresholds": {"eer": 0.4, "fpr_0.05": None},
        "reasons": {"fpr_0.05": "40 real frames do not tell it"},
        "band": {"error_rate": 0.1, "low": 0.3, "high": 0.6},
        "fpr": {
            "thresholds": [0.0, 0.3, 0.4, 0.6],
            "value": [1.0, 0.5, 0.3, 0.075],
            "low": [0.8, 0.3, 0.1, 0.01],
            "high": [1.0, 0.7, 0.5, 0.2],
        },
    },
    "video": {
        "thresholds": {"eer": 0.45},
        "band": {"error_rate": 0.1, "low": 0.35, "high": 0.55},
        "fpr": {"thresholds": [0.0, 0.55], "value": [1.0, 0.0], "low": [0.7, 0.0], "high": [1.0, 0.3]},
    },
}


def save_checkpoint(folder: Path, crop: dict | None = CROP, calibration: dict | None = CALIBRATION) -> Path:
    """Save a tiny classifier with random weights, the same each time, and its processor; return the folder."""
    torch.manual_seed(0)
    config = DCLConfig(backbone="test_efficientnet", image_size=96, queue_size=16, calibration=calibration)
    model = DCLForImageClassification(config).eval()
    torch.nn.init.normal_(model.classifier.linear.weight)
    model.save_pretrained(folder)
    DCLImageProcessor(size={"height": 96, "width": 96}, crop=crop).save_pretrained(folder)
    return folder
