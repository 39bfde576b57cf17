"""From a checkpoint's margins to probabilities: the calibration that its configuration carries.

`DCLConfig.calibration` is fitted on the validation split at the end of training (`evaluation/calibration.py`). Real
and fake faces count alike in it, as in the batches of training: `p_fake` is the chance that a face is forged where
real and forged faces are equally likely. Where forgeries are rare, it is too high.
"""

import bisect
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from .checks_dcl import abridged, is_count, is_number

METHODS = ("platt", "temperature", "none")  # a temperature is read from checkpoints saved before, and fitted no more
LEVELS = ("frame", "video")
#: Where the error rates are equal, and at false positive rates of 5 and of 1 %.
OPERATING_POINTS = ("eer", "fpr_0.05", "fpr_0.01")
_CURVE = ("thresholds", "value", "low", "high")
UNITS = {"frame": "faces", "video": "videos"}  # what sentences call them


def slope_and_offset(calibration: Mapping[str, Any] | None) -> tuple[float, float]:
    """Return the line that turns a margin into the logit of `p_fake`.

    Args:
        calibration: `DCLConfig.calibration`.

    Returns:
        Slope, above 0, and offset; 1 and 0 where nothing was fitted.
    """
    method = "none" if calibration is None else calibration["method"]
    if method == "platt":
        return calibration["slope"], calibration["offset"]
    return (1 / calibration["temperature"] if method == "temperature" else 1.0), 0.0


def calibrate(margins: Any, calibration: Mapping[str, Any] | None) -> np.ndarray:
    """Turn margins into calibrated probabilities.

    Args:
        margins: floats of any shape, z_fake - z_real.
        calibration: `DCLConfig.calibration`; `None` gives the logistic function of the margin.

    Returns:
        `p_fake`, the logistic function of slope * margin + offset, float64 in [0, 1], of the same shape; NaN where the
        margin is.
    """
    slope, offset = slope_and_offset(calibration)
    logits = slope * np.asarray(margins, np.float64) + offset
    small = np.exp(-np.abs(logits))  # never overflows
    return np.where(logits < 0, small, 1.0) / (1.0 + small)


def expected_fpr(calibration: Mapping[str, Any] | None, level: str, threshold: float) -> dict[str, Any]:
    """Look up how many real faces or videos of the validation split score at or above a threshold.

    Args:
        calibration: `DCLConfig.calibration`.
        level: "frame" or "video".
        threshold: in [0, 1].

    Returns:
        `value`, the share in [0, 1], between two stored thresholds that of the lower one, so never too low; `low` and
        `high`, its 95 % interval for new people; and `reason`: why these three are None, else None.
    """
    curve = ((calibration or {}).get(level) or {}).get("fpr") or {"reason": "the checkpoint does not store it"}
    if "thresholds" not in curve:
        return {"value": None, "low": None, "high": None, "reason": curve["reason"]}
    place = bisect.bisect_right(curve["thresholds"], threshold) - 1
    return {**{name: curve[name][place] for name in _CURVE[1:]}, "reason": None}


def verdict_lines(points: Mapping[str, Any], operating_point: str | None = None) -> tuple[float, float] | None:
    """Return below which `p_fake` something is not flagged, and from which on it is.

    Args:
        points: of `DCLConfig.calibration`, its "frame" or "video".
        operating_point: a threshold that is there, which decides alone from where on something is flagged; None: the
            end of the inconclusive range does, or the threshold "eer" where that is higher.

    Returns:
        The ends of the inconclusive range; None where there is no such range.
    """
    at, band = points["thresholds"][operating_point or "eer"], points.get("band") or {}
    if band.get("low") is None:
        return None
    return min(at, band["low"]), (max(at, band["high"]) if operating_point is None else at)


def check_calibration(calibration: Mapping[str, Any] | None) -> None:
    """Check what a configuration says of its calibration: it may have been edited, or come from a stranger.

    Args:
        calibration: `DCLConfig.calibration`.

    Raises:
        ValueError: if `calibrate` cannot follow it, or a threshold is not a probability.
    """
    if calibration is None:
        return
    method = calibration.get("method")
    if method == "isotonic":
        raise ValueError(
            "`calibration` has the method 'isotonic', which is no longer supported: fit it again by "
            "`dcl.evaluation.calibration.fit_calibration`, or train again."
        )
    if method not in METHODS:
        raise ValueError(f"`calibration` has the method {abridged(method)}: it must be one of {', '.join(METHODS)}.")
    for name in {"platt": ("slope", "offset"), "temperature": ("temperature",), "none": ()}[method]:
        value = calibration.get(name)
        if not is_number(value) or (name != "offset" and value <= 0):
            above = "" if name == "offset" else " above 0"
            raise ValueError(f"the {name} of `calibration` must be a finite number{above}, got {abridged(value)}.")
    for level in LEVELS:
        _check_level(level, calibration.get(level, {}))
    evidence = calibration.get("evidence_threshold")
    if evidence is not None and not is_number(evidence):
        raise ValueError(f"the evidence_threshold of `calibration` must be a finite number, got {abridged(evidence)}.")


def _check_level(level: str, points: Any) -> None:
    _check_mapping(f"the {level}", points)
    for name in ("reals", "fakes", "families"):
        count = points.get(name)
        if count is not None and not is_count(count):
            raise ValueError(
                f"the number of {name} of `calibration` ({level}) must be 0 or more, got {abridged(count)}."
            )
    thresholds, reasons = points.get("thresholds", {}), points.get("reasons", {})
    for name, values in (("thresholds", thresholds), ("reasons", reasons)):
        _check_mapping(f"the {name} ({level})", values)
    for name in (*thresholds, *reasons):
        if name not in OPERATING_POINTS:
            raise ValueError(
                f"`calibration` ({level}) has the operating point {abridged(name)}: it can have "
                f"{', '.join(OPERATING_POINTS)}."
            )
    for name, at in thresholds.items():
        if at is not None and not _is_probability(at):
            raise ValueError(f"the threshold {name} of `calibration` ({level}) must be in [0, 1], got {abridged(at)}.")
    for name, why in reasons.items():
        if not isinstance(why, str):
            raise ValueError(f"the reason for {name} of `calibration` ({level}) must be a text, got {abridged(why)}.")
    if points.get("band") is not None:
        _check_band(level, points["band"])
    if points.get("fpr") is not None:
        _check_curve(level, points["fpr"])


def _check_mapping(what: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} of `calibration` must be a mapping, got {abridged(value)}.")


def _check_band(level: str, band: Any) -> None:
    _check_mapping(f"the band ({level})", band)
    ends = [band.get(name) for name in ("low", "high")]
    if ends == [None, None] and isinstance(band.get("reason"), str):
        return
    for name in ("error_rate", "low", "high"):
        if not _is_probability(band.get(name)):
            raise ValueError(
                f"the {name} of the band of `calibration` ({level}) must be in [0, 1], got {abridged(band.get(name))}."
            )


def _check_curve(level: str, curve: Any) -> None:
    where = f"the fpr of `calibration` ({level})"
    _check_mapping(f"the fpr ({level})", curve)
    if "thresholds" not in curve:
        if not isinstance(curve.get("reason"), str):
            raise ValueError(f"{where} must have thresholds, or a text as reason, got {abridged(dict(curve))}.")
        return
    columns = [curve.get(name) for name in _CURVE]
    for name, values in zip(_CURVE, columns, strict=True):
        if not isinstance(values, list) or not values or not all(map(_is_probability, values)):
            raise ValueError(f"the {name} of {where} must be a list of numbers in [0, 1], got {abridged(values)}.")
    if len({len(values) for values in columns}) > 1:
        raise ValueError(f"the lists of {where} must have one length, got {', '.join(map(str, map(len, columns)))}.")
    thresholds, values, low, high = columns
    if thresholds[0] != 0 or any(before >= after for before, after in itertools.pairwise(thresholds)):
        raise ValueError(f"the thresholds of {where} must rise from 0, got {abridged(thresholds)}.")
    if any(before < after for before, after in itertools.pairwise(values)):
        raise ValueError(f"the value of {where} must not rise, got {abridged(values)}.")
    if not all(a <= b <= c for a, b, c in zip(low, values, high, strict=True)):
        raise ValueError(f"the value of {where} must lie between low and high, got {abridged(values)}.")


def _is_probability(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def describe_calibration(calibration: Mapping[str, Any] | None) -> str:
    """Return in one paragraph how a checkpoint is calibrated, where its verdicts change, and what is missing.

    Args:
        calibration: `DCLConfig.calibration`.
    """
    if calibration is None:
        return (
            "Not calibrated: p_fake is the logistic function of the margin. It need not be near a probability, and "
            "there is no operating point."
        )
    if calibration["method"] == "none":
        how = f"p_fake is the logistic function of the margin as it is ({calibration.get('reason', 'not calibrated')})"
    else:
        slope, offset = slope_and_offset(calibration)
        how = f"p_fake is the logistic function of {slope:.3g} times the margin {'+-'[offset < 0]} {abs(offset):.3g}"
    sentences = [
        f"Calibrated on the validation split: {how}. It is the chance of a forgery where real and forged faces are "
        "equally likely."
    ]
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
            sentences.append(f"Not available for a {level}: {why}.")
        sentences += _verdicts(calibration, level) if known else []
    return " ".join(sentences)


def _verdicts(calibration: Mapping[str, Any], level: str) -> list[str]:
    """Say from where on something is flagged, where it is inconclusive, and how often real ones are flagged."""
    points, units = calibration[level], UNITS[level]
    at, band = points["thresholds"].get("eer"), points.get("band") or {}
    if at is None:
        return []
    if (lines := verdict_lines(points)) is None:
        why = band.get("reason", "the checkpoint was saved before there was one")
        line, said = at, [f"There is no inconclusive range for {units} ({why})."]
    else:
        low, line = lines
        said = [f"By default {units} are flagged from {line:.3f} on"]
        said[0] += f", inconclusive from {low:.3f} on, and not flagged below." if low < line else ", and else not."
        said.append(
            f"Either error is expected for at most {100 * band['error_rate']:.3g} % of the {units} of new people."
        )
    found = expected_fpr(calibration, level, line)
    if found["value"] is not None:
        ends = f"95 % interval for new people {100 * found['low']:.1f} to {100 * found['high']:.1f} %"
        said.append(f"{100 * found['value']:.3g} % of the real {units} score at or above {line:.3f} ({ends}).")
    return said


def missing_calibration(calibration: Mapping[str, Any] | None) -> list[str]:
    """Return what the calibration of a checkpoint lacks, a clause each, for whoever reads its scores.

    Args:
        calibration: `DCLConfig.calibration`.
    """
    if calibration is None:
        return [
            "the checkpoint is not calibrated: p_fake is the logistic function of the margin, and the only "
            "threshold is .5"
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
        elif (points.get("band") or {}).get("low") is None:
            why = (points.get("band") or {}).get("reason", "none was stored")
            lacking.append(
                f"the checkpoint has no inconclusive range for {level}s ({why}): its threshold alone decides"
            )
    return lacking


def _point(name: str) -> str:
    return f"FPR {100 * float(name[4:]):g} %" if name.startswith("fpr_") else name.upper()


__all__ = [
    "LEVELS",
    "METHODS",
    "OPERATING_POINTS",
    "UNITS",
    "calibrate",
    "check_calibration",
    "describe_calibration",
    "expected_fpr",
    "missing_calibration",
    "slope_and_offset",
    "verdict_lines",
]
