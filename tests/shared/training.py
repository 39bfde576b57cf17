"""The trainer of a run, as `train.py` builds it."""

from dcl_face_forgery.evaluation.validation import validation_metrics
from dcl_face_forgery.training import run as module


def build_trainer(run):
    return module.build_trainer(run, validation_metrics)
