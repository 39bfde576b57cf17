"""From a checkpoint's margins to probabilities: the calibration that its configuration carries.

`DCLConfig.calibration` is fitted on the validation split at the end of training (`evaluation/calibration.py`). Reals
and fakes count alike in it, as in the batches of training: `p_fake` is the chance that a face is forged where real and
forged faces are equally likely. Where forgeries are rare, it is too high.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from .checks_dcl import abridged, is_count, is_number

METHODS = ("temperature", "isotonic", "none")
LEVELS = ("frame", "video")
#: Where the error rates are equal, and at false positive rates of 5 and of 1 %.
OPERATING_POINTS = ("eer", "fpr_0.05", "fpr_0.01")


def calibrate(margins: Any, calibration: Mapping[str, Any] | None) -> np.ndarray:
    """Turn margins into calibrated probabilities.

    Args:
        margins: floats of any shape, z_fake - z_real.
        calibration: `DCLConfig.calibration`. By temperature, `p_fake` is the logistic function of the margin over the
            temperature; isotonic, it is linear between knots and flat outside of them; `None`, or where none could
            be fitted, it is the logistic function of the margin.

    Returns:
        `p_fake`, float64 in [0, 1], of the same shape; NaN where the margin is.
    """
    margins = np.asarray(margins, np.float64)
    method = "none" if calibration is None else calibration["method"]
    if method == "isotonic":
        return np.interp(margins, calibration["margins"], calibration["p_fake"])
    scaled = margins / calibration["temperature"] if method == "temperature" else margins
    small = np.exp(-np.abs(scaled))  # never overflows
    return np.where(scaled < 0, small, 1.0) / (1.0 + small)


def check_calibration(calibration: Mapping[str, Any] | None) -> None:
    """Check what a configuration says of its calibration: it may have been edited, or come from a stranger.

    Args:
        calibration: `DCLConfig.calibration`.

    Raises:
        ValueError: if it is none that `calibrate` can follow, or a threshold is no probability.
    """
    if calibration is None:
        return
    method = calibration.get("method")
    if method not in METHODS:
        raise ValueError(f"`calibration` has the method {method!r}: it must be one of {', '.join(METHODS)}.")
    if method == "temperature":
        temperature = calibration.get("temperature")
        if not (is_number(temperature) and temperature > 0):
            raise ValueError(
                f"the temperature of `calibration` must be a finite number above 0, got {abridged(temperature)}."
            )
    if method == "isotonic":
        _check_knots(calibration.get("margins"), calibration.get("p_fake"))
    for level in LEVELS:
        _check_level(level, calibration.get(level, {}))
    evidence = calibration.get("evidence_threshold")
    if evidence is not None and not is_number(evidence):
        raise ValueError(f"the evidence_threshold of `calibration` must be a finite number, got {abridged(evidence)}.")


def _check_knots(margins: Any, p_fake: Any) -> None:
    for name, knots in (("margins", margins), ("p_fake", p_fake)):
        if not isinstance(knots, list) or not knots or not all(map(is_number, knots)):
            raise ValueError(f"the {name} of `calibration` must be a list of finite numbers, got {abridged(knots)}.")
    if len(margins) != len(p_fake):
        raise ValueError(
            f"margins and p_fake of `calibration` must be equally many, got {len(margins)} and {len(p_fake)}."
        )
    for before, after in itertools.pairwise(margins):
        if not before < after:
            raise ValueError(f"the margins of `calibration` must rise, got {before} before {after}.")
    for before, after in itertools.pairwise(p_fake):
        if before > after:
            raise ValueError(f"the p_fake of `calibration` must not fall, got {before} before {after}.")
    if p_fake[0] < 0 or p_fake[-1] > 1:
        raise ValueError(f"the p_fake of `calibration` must be in [0, 1], got {p_fake[0]} to {p_fake[-1]}.")


def _check_level(level: str, points: Any) -> None:
    if not isinstance(points, Mapping):
        raise ValueError(f"the {level} of `calibration` must be a mapping, got {abridged(points)}.")
    for name in ("reals", "fakes", "families"):
        count = points.get(name)
        if count is not None and not is_count(count):
            raise ValueError(
                f"the number of {name} of `calibration` ({level}) must be 0 or more, got {abridged(count)}."
            )
    thresholds, reasons = points.get("thresholds", {}), points.get("reasons", {})
    for name, values in (("thresholds", thresholds), ("reasons", reasons)):
        if not isinstance(values, Mapping):
            raise ValueError(f"the {name} of `calibration` ({level}) must be a mapping, got {abridged(values)}.")
    for name in (*thresholds, *reasons):
        if name not in OPERATING_POINTS:
            raise ValueError(
                f"`calibration` ({level}) has the operating point {abridged(name)}: it can have "
                f"{', '.join(OPERATING_POINTS)}."
            )
    for name, at in thresholds.items():
        if at is not None and not (is_number(at) and 0 <= at <= 1):
            raise ValueError(f"the threshold {name} of `calibration` ({level}) must be in [0, 1], got {abridged(at)}.")
    for name, why in reasons.items():
        if not isinstance(why, str):
            raise ValueError(f"the reason for {name} of `calibration` ({level}) must be a text, got {abridged(why)}.")


def describe_calibration(calibration: Mapping[str, Any] | None) -> str:
    """Return in one paragraph how a checkpoint is calibrated, from where on it calls faces fake, and what is missing.

    Args:
        calibration: `DCLConfig.calibration`.
    """
    if calibration is None:
        return (
            "Not calibrated: p_fake is the logistic function of the margin, as far from a probability as it may be, "
            "and no operating point was chosen."
        )
    if calibration["method"] == "temperature":
        how = f"p_fake is the logistic function of the margin divided by {calibration['temperature']:.3g}"
    elif calibration["method"] == "isotonic":
        how = f"p_fake follows the margin through {len(calibration['margins'])} knots of an isotonic regression"
    else:
        how = f"p_fake is the logistic function of the margin as it is ({calibration.get('reason', 'not calibrated')})"
    sentences = [f"On the validation split, {how}; it reads as if reals and fakes were equally likely."]
    for level in LEVELS:
        points = calibration.get(level, {})
        thresholds = points.get("thresholds", {})
        known = [f"{at:.3f} ({_point(name)})" for name, at in thresholds.items() if at is not None]
        counts = ", ".join(
            f"{points[name]} {name}" for name in ("reals", "fakes", "families") if points.get(name) is not None
        )
        if known:
            sentences.append(f"Thresholds on the p_fake of a {level}, from {counts}: {', '.join(known)}.")
        missing: dict[str, list[str]] = {}
        for name, at in thresholds.items():
            if at is None:
                missing.setdefault(points.get("reasons", {}).get(name, "not known"), []).append(_point(name))
        if missing:
            why = ", ".join(f"{' and '.join(names)} ({reason})" for reason, names in missing.items())
            sentences.append(f"Not given for a {level}: {why}.")
    return " ".join(sentences)


def missing_calibration(calibration: Mapping[str, Any] | None) -> list[str]:
    """Return what a reader of a checkpoint's scores must know of what its calibration lacks, a clause each.

    Args:
        calibration: `DCLConfig.calibration`.
    """
    if calibration is None:
        return [
            "the checkpoint is not calibrated: p_fake is the logistic function of the margin, and no "
            "threshold is known but .5"
        ]
    lacking = []
    if calibration["method"] == "none":
        why = calibration.get("reason", "no reason is given")
        lacking.append(f"the checkpoint is not calibrated ({why}): p_fake is the logistic function of the margin")
    for level in LEVELS:
        points = calibration.get(level, {})
        if all(at is None for at in points.get("thresholds", {}).values()):
            why = next(iter(points.get("reasons", {}).values()), "none was stored")
            lacking.append(f"the checkpoint has no threshold for {level}s ({why}): only .5 can be used")
    return lacking


def _point(name: str) -> str:
    return f"FPR {100 * float(name[4:]):g} %" if name.startswith("fpr_") else name.upper()


__all__ = [
    "LEVELS",
    "METHODS",
    "OPERATING_POINTS",
    "calibrate",
    "check_calibration",
    "describe_calibration",
    "missing_calibration",
]
