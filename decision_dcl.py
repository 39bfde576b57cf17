"""From margin to verdict: calibrated probabilities, thresholds, verdicts and their sentences.

`DCLConfig.calibration` is fitted on the validation split after training (`evaluation/calibration.py`). Real and forged
faces have the same weight: `p_fake` is the probability that a face is forged if both are equally likely. If forgeries
are rare, it is too high.

A face or person is "flagged" at or above one threshold, "not_flagged" below another, and "inconclusive" in between.
Faces in images use the thresholds for frames. A person in a video uses those for videos, applied to the mean `p_fake`
of the frames with a score; these frames get the verdict of the person. An image or video gets the verdict of its most
suspicious face or person, or "abstained" if nothing has a score.

Long because remote code should be few files, and calibration and verdicts belong together.
"""

import bisect
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors_dcl import InputError, check_value, is_count, is_number

if TYPE_CHECKING:
    from .abstention_dcl import Abstention

METHODS = ("platt", "temperature", "none")  # old checkpoints have a temperature; it is no longer fitted
LEVELS = ("frame", "video")
#: At equal error rates, and at false positive rates of 5 and 1 %.
OPERATING_POINTS = ("eer", "fpr_0.05", "fpr_0.01")
_CURVE = ("thresholds", "value", "low", "high")
#: Reasons for no score whose code is not plain English.
_REASONS = {
    "extreme_pose": "turned too far",
    "too_brief": "seen too briefly",
    "unfamiliar": "unlike the training data",
    "not_finite": "the model output is not finite",
}
UNITS = {"frame": "faces", "video": "videos"}  # what sentences call them


def slope_and_offset(calibration: Mapping[str, Any] | None) -> tuple[float, float]:
    """Return slope (above 0) and offset of the line from margin to logit of `p_fake`; 1 and 0 if not fitted."""
    method = "none" if calibration is None else calibration["method"]
    if method == "platt":
        return calibration["slope"], calibration["offset"]
    return (1 / calibration["temperature"] if method == "temperature" else 1.0), 0.0


def calibrate(margins: Any, calibration: Mapping[str, Any] | None) -> np.ndarray:
    """Turn margins into calibrated probabilities: sigmoid(slope * margin + offset).

    Args:
        margins: z_fake - z_real, floats of any shape.
        calibration: `DCLConfig.calibration`; None means slope 1 and offset 0.

    Returns:
        `p_fake`, float64 in [0, 1], of the same shape; NaN where the margin is NaN.
    """
    slope, offset = slope_and_offset(calibration)
    logits = slope * np.asarray(margins, np.float64) + offset
    small = np.exp(-np.abs(logits))  # never overflows
    return np.where(logits < 0, small, 1.0) / (1.0 + small)


def expected_fpr(calibration: Mapping[str, Any] | None, level: str, threshold: float) -> dict[str, Any]:
    """Look up which share of the real faces or videos of the validation split scores at or above a threshold.

    Args:
        calibration: `DCLConfig.calibration`.
        level: "frame" or "video".
        threshold: in [0, 1].

    Returns:
        `value`, the share in [0, 1] at the next lower stored threshold, so it is never too low; `low` and `high`, its
        95 % interval for new people; and `reason`, why these three are None, or None.
    """
    curve = ((calibration or {}).get(level) or {}).get("fpr") or {"reason": "the checkpoint does not store it"}
    if "thresholds" not in curve:
        return {"value": None, "low": None, "high": None, "reason": curve["reason"]}
    place = bisect.bisect_right(curve["thresholds"], threshold) - 1
    return {**{name: curve[name][place] for name in _CURVE[1:]}, "reason": None}


def verdict_lines(points: Mapping[str, Any], operating_point: str | None = None) -> tuple[float, float] | None:
    """Return the limits between "not flagged", "inconclusive" and "flagged"; None if there is no inconclusive range.

    Args:
        points: the "frame" or "video" entry of a calibration.
        operating_point: its threshold is the upper limit. None: the upper limit is the end of the inconclusive range,
            or the threshold "eer" if that is higher.

    Returns:
        The `p_fake` below which nothing is flagged, and the one from which everything is.
    """
    at, band = points["thresholds"][operating_point or "eer"], points.get("band") or {}
    if band.get("low") is None:
        return None
    return min(at, band["low"]), (max(at, band["high"]) if operating_point is None else at)


def check_calibration(calibration: Mapping[str, Any] | None) -> None:
    """Check `DCLConfig.calibration`, which may have been edited or come from an untrusted source.

    Raises:
        ValueError: if a value is missing, of the wrong type, or out of range.
    """
    if calibration is None:
        return
    method = calibration.get("method")
    if method == "isotonic":
        raise ValueError(
            "`calibration` has the method 'isotonic', which is no longer supported. Fit it again with "
            "`dcl_face_forgery.evaluation.calibration.fit_calibration`, or train again."
        )
    check_value(method in METHODS, "`calibration`: method", f"be one of {', '.join(METHODS)}", method)
    for name in {"platt": ("slope", "offset"), "temperature": ("temperature",), "none": ()}[method]:
        value, wanted = calibration.get(name), "a finite number" if name == "offset" else "a finite number above 0"
        check_value(
            is_number(value) and (name == "offset" or value > 0), f"`calibration`: {name}", f"be {wanted}", value
        )
    for level in LEVELS:
        _check_level(level, calibration.get(level, {}))
    evidence = calibration.get("evidence_threshold", 0)
    fits = evidence is None or is_number(evidence)
    check_value(fits, "`calibration`: evidence_threshold", "be a finite number", evidence)


def _check_level(level: str, points: Any) -> None:
    of = f"`calibration`: {level}"
    check_value(isinstance(points, Mapping), of, "be a mapping", points)
    for name in ("reals", "fakes", "families"):
        count = points.get(name, 0)
        check_value(count is None or is_count(count), f"{of}.{name}", "be a whole number, 0 or more", count)
    thresholds, reasons = points.get("thresholds", {}), points.get("reasons", {})
    band, curve = points.get("band"), points.get("fpr")
    for name, value in {"thresholds": thresholds, "reasons": reasons, "band": band, "fpr": curve}.items():
        fits = isinstance(value, Mapping) or (value is None and name in ("band", "fpr"))
        check_value(fits, f"{of}.{name}", "be a mapping", value)
    for name in (*thresholds, *reasons):
        known = ", ".join(OPERATING_POINTS)
        check_value(name in OPERATING_POINTS, f"the operating points of {of}", f"be among {known}", name)
    for name, at in thresholds.items():
        check_value(at is None or _is_probability(at), f"{of}.thresholds.{name}", "be in [0, 1]", at)
    for name, why in reasons.items():
        check_value(isinstance(why, str), f"{of}.reasons.{name}", "be a string", why)
    if band is not None and not (band.get("low") is band.get("high") is None and isinstance(band.get("reason"), str)):
        for name in ("error_rate", "low", "high"):
            at = band.get(name)
            check_value(_is_probability(at), f"{of}.band.{name}", "be in [0, 1]", at)
    if curve is not None and "thresholds" in curve:
        _check_curve(f"{of}.fpr", [curve.get(name) for name in _CURVE])
    elif curve is not None:
        fits = isinstance(curve.get("reason"), str)
        check_value(fits, f"{of}.fpr", "have thresholds, or a reason", dict(curve))


def _check_curve(where: str, columns: list[Any]) -> None:
    for name, values in zip(_CURVE, columns, strict=True):
        fits = isinstance(values, list) and values and all(map(_is_probability, values))
        check_value(fits, f"{where}.{name}", "be a list of numbers in [0, 1]", values)
    lengths = [len(values) for values in columns]
    check_value(len(set(lengths)) == 1, f"{where}: the lists", "have the same length", lengths)
    thresholds, values, low, high = columns
    rising = thresholds[0] == 0 and all(before < after for before, after in itertools.pairwise(thresholds))
    check_value(rising, f"{where}.thresholds", "increase from 0", thresholds)
    falling = all(before >= after for before, after in itertools.pairwise(values))
    check_value(falling, f"{where}.value", "not increase", values)
    between = all(a <= b <= c for a, b, c in zip(low, values, high, strict=True))
    check_value(between, f"{where}.value", "be between low and high", values)


def _is_probability(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def describe_calibration(calibration: Mapping[str, Any] | None) -> str:
    """Describe in one paragraph the calibration of a checkpoint, its thresholds, and what is missing."""
    if calibration is None:
        return (
            "Not calibrated: p_fake is the logistic function of the margin. It may be far from a probability, and "
            "there are no operating points."
        )
    if calibration["method"] == "none":
        how = f"p_fake is the logistic function of the margin as it is ({calibration.get('reason', 'not calibrated')})"
    else:
        slope, offset = slope_and_offset(calibration)
        how = f"p_fake is the logistic function of {slope:.3g} times the margin {'+-'[offset < 0]} {abs(offset):.3g}"
    sentences = [
        f"Calibrated on the validation split: {how}. It is the probability of a forgery if real and forged faces are "
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
    """Return sentences on the thresholds, the inconclusive range, and how often real faces or videos are flagged."""
    points, units = calibration[level], UNITS[level]
    at, band = points["thresholds"].get("eer"), points.get("band") or {}
    if at is None:
        return []
    if (lines := verdict_lines(points)) is None:
        why = band.get("reason", "the checkpoint is too old to have one")
        line, said = at, [f"There is no inconclusive range for {units} ({why})."]
    else:
        low, line = lines
        said = [f"By default, {units} are flagged at or above {line:.3f}"]
        said[0] += f", inconclusive from {low:.3f}, and not flagged below." if low < line else ", otherwise not."
        said.append(
            f"Each error is expected for at most {100 * band['error_rate']:.3g} % of the {units} of new people."
        )
    found = expected_fpr(calibration, level, line)
    if found["value"] is not None:
        ends = f"95 % interval for new people {100 * found['low']:.1f} to {100 * found['high']:.1f} %"
        said.append(f"{100 * found['value']:.3g} % of the real {units} score at or above {line:.3f} ({ends}).")
    return said


def missing_calibration(calibration: Mapping[str, Any] | None) -> list[str]:
    """Return what is missing in the calibration of a checkpoint, one clause each."""
    if calibration is None:
        return [
            "the checkpoint is not calibrated: p_fake is the logistic function of the margin, and the only "
            "threshold is 0.5"
        ]
    lacking = []
    if calibration["method"] == "none":
        why = calibration.get("reason", "no reason is given")
        lacking.append(f"the checkpoint is not calibrated ({why}): p_fake is the logistic function of the margin")
    for level in LEVELS:
        points = calibration.get(level, {})
        if all(at is None for at in points.get("thresholds", {}).values()):
            why = next(iter(points.get("reasons", {}).values()), "none was stored")
            lacking.append(f"the checkpoint has no threshold for {level}s ({why}): only 0.5 can be used")
        elif (points.get("band") or {}).get("low") is None:
            why = (points.get("band") or {}).get("reason", "none was stored")
            lacking.append(
                f"the checkpoint has no inconclusive range for {level}s ({why}): only its threshold is used"
            )
    return lacking


def _point(name: str) -> str:
    return f"FPR {100 * float(name[4:]):g} %" if name.startswith("fpr_") else name.upper()


FLAGGED, INCONCLUSIVE, NOT_FLAGGED, ABSTAINED = "flagged", "inconclusive", "not_flagged", "abstained"
VERDICTS = {
    FLAGGED: "Flagged as forged",
    INCONCLUSIVE: "Inconclusive",
    NOT_FLAGGED: "Not flagged",
    ABSTAINED: "No score",
}
_NO_THRESHOLD = 0.5  # where the checkpoint has none
_FEWEST_FRAMES = 3  # of a person in a longer video; fewer may be a false detection
_RISE = 0.1  # of p_fake from one frame to the next that is worth reporting


@dataclass(frozen=True)
class Rule:
    """The thresholds of the verdicts on faces, or on people in videos.

    Attributes:
        threshold: in [0, 1].
        operating_point: the name of that threshold in the checkpoint; None if the caller gave it or there is none.
        band: `p_fake` is inconclusive from `low` and flagged from `high`. Both are None, with a `reason`, if only the
            threshold decides.
        expected_fpr: from the function `expected_fpr`, at the value from which `p_fake` is flagged.
        units: "faces" or "videos", for sentences.
        note: a sentence on a default threshold, or "".
    """

    threshold: float
    operating_point: str | None
    band: dict[str, Any]
    expected_fpr: dict[str, Any]
    units: str
    note: str = ""

    @classmethod
    def of(
        cls, calibration: Mapping[str, Any] | None, level: str, operating_point: str | None, threshold: float | None
    ) -> "Rule":
        """Return the rule of a checkpoint, or of a given threshold.

        Args:
            calibration: `DCLConfig.calibration`.
            level: "frame" or "video".
            operating_point: the threshold to use. None: the end of the inconclusive range, or "eer" if that is higher
                or there is no range, or else 0.5.
            threshold: in (0, 1), instead of those of the checkpoint. There is no inconclusive range then.

        Raises:
            InputError: if the checkpoint has no such operating point.
        """
        points = (calibration or {}).get(level, {})
        point, units = operating_point or "eer", UNITS[level]
        at = points.get("thresholds", {}).get(point)
        lines, note = None, ""
        why = (points.get("band") or {}).get("reason", "the checkpoint stores no inconclusive range")
        if threshold is not None:
            at, point, why = threshold, None, "a threshold was given"
        elif at is not None:
            lines = verdict_lines(points, operating_point)
        elif operating_point is None:
            at, point = _NO_THRESHOLD, None
            why = f"the checkpoint has no threshold for {units}"
            note = f" The checkpoint has no threshold for {units}, so {at} is used."
        else:
            there = [name for name, at in points.get("thresholds", {}).items() if at is not None]
            remedy = f"Choose {' or '.join(there)}, or omit" if there else "Omit"
            why = points.get("reasons", {}).get(point, "not calibrated")
            raise InputError(
                f"The checkpoint has no threshold {point} for a {level} ({why}). {remedy} operating_point."
            )
        low, high = lines or (None, None)
        band = {"low": low, "high": high, "reason": why if lines is None else None}
        return cls(
            float(at), point, band, expected_fpr(calibration, level, at if lines is None else high), units, note
        )

    @property
    def flagged_from(self) -> float:
        """The `p_fake` at or above which a face or person is flagged."""
        return self.threshold if self.band["high"] is None else self.band["high"]

    @property
    def not_flagged_below(self) -> float:
        """The `p_fake` below which a face or person is not flagged."""
        return self.threshold if self.band["low"] is None else self.band["low"]

    def verdict(self, p_fake: float) -> str:
        """Return "flagged", "inconclusive" or "not_flagged"."""
        if p_fake >= self.flagged_from:
            return FLAGGED
        return NOT_FLAGGED if p_fake < self.not_flagged_below else INCONCLUSIVE

    def sentence(self, who: str, number: str, p_fake: float) -> str:
        """Return the verdict as a sentence; `number` names what is compared with the thresholds."""
        high, low = self.flagged_from, self.not_flagged_below
        digits = 3
        while digits < 9 and any(p_fake != at and f"{p_fake:.{digits}f}" == f"{at:.{digits}f}" for at in (low, high)):
            digits += 1  # avoid "0.500, below 0.500"
        is_, low, high = f"{number} is {p_fake:.{digits}f}", f"{low:.{digits}f}", f"{high:.{digits}f}"
        said = {
            FLAGGED: f"is flagged as forged: {is_}, at or above the threshold of {high}{self._share()}.",
            INCONCLUSIVE: f"is inconclusive: {is_}, between {low} and {high}. "
            f"Real and forged {self.units} both score in this range.",
            NOT_FLAGGED: f"is not flagged: {is_}, below {low}. That does not prove that it is real.",
        }
        return f"{who} {said[self.verdict(p_fake)]}{self.note}"

    def _share(self) -> str:
        share = self.expected_fpr["value"]
        if share is None:
            return ""
        if share == 0:
            return f" (no real {self.units[:-1]} in the validation data scores this high)"
        return f" (at most {100 * share:.2g} % of real {self.units} in the validation data score this high)"

    def record(self) -> dict[str, Any]:
        """Return the rule as fields of a result."""
        return {
            "threshold": self.flagged_from,
            "operating_point": self.operating_point if self.flagged_from == self.threshold else None,
            "band": self.band,
            "expected_fpr": self.expected_fpr,
        }


def abstain(record: dict[str, Any], who: str, abstention: "Abstention") -> None:
    """Write into the record of a face that it has no score, and why."""
    why = abstention.sentence
    record |= {"reason": abstention.code, "sentence": f"No score for {_inside(who)}: {_inside(why)}"}


def _inside(sentence: str) -> str:
    """Return a sentence with its first letter in lower case."""
    return f"{sentence[:1].lower()}{sentence[1:]}"


def picture_result(result: dict[str, Any], rule: Rule) -> dict[str, Any]:
    """Add verdicts to the result of an image, whose `faces` have a `p_fake` or a reason for none."""
    faces = result.pop("faces")
    for face in faces:
        if face["p_fake"] is not None:
            sentence = rule.sentence(f"Face {face['face']}", "p_fake", face["p_fake"])
            face |= {"verdict": rule.verdict(face["p_fake"]), "sentence": sentence}
    verdict, sentence = _together(faces, "face", "faces")
    if not faces:
        sentence = "No score: no face was found."
    return {**result, "verdict": verdict, "sentence": sentence, **rule.record(), "faces": faces}


def reason_in_words(code: str) -> str:
    """Return the code of a reason for no score in a few words."""
    return _REASONS.get(code, code.replace("_", " "))


def _together(members: list[dict[str, Any]], one: str, several: str) -> tuple[str, str]:
    """Return the verdict on an image or video with these faces or people, and a sentence."""
    if len(members) == 1:
        return members[0]["verdict"], members[0]["sentence"]
    scored = [member for member in members if member["verdict"] != ABSTAINED]
    if not scored:
        reasons = ", ".join(sorted({reason_in_words(member["reason"]) for member in members}))
        return ABSTAINED, f"None of {len(members)} {several} has a score ({reasons})."
    left = len(members) - len(scored)
    rest = f" {left} of {len(members)} {several} {'has' if left == 1 else 'have'} no score." if left else ""
    worst = max(scored, key=lambda member: member["p_fake"])
    verdict = worst["verdict"]
    if len(scored) == 1:
        return verdict, f"{worst['sentence']}{rest}"
    alike = sum(member["verdict"] == verdict for member in scored)
    are = "is" if alike == 1 else "are"
    counts = {
        FLAGGED: f"{alike} of {len(scored)} {several} {are} flagged as forged.",
        INCONCLUSIVE: f"{alike} of {len(scored)} {several} {are} inconclusive, and none is flagged.",
        NOT_FLAGGED: f"None of {len(scored)} {several} is flagged.",
    }
    return verdict, f"{counts[verdict]} {worst['sentence']}{rest}"


def video_result(result: dict[str, Any], people: Sequence[list[dict[str, Any]]], rule: Rule) -> dict[str, Any]:
    """Add verdicts and `people` to the result of a video, given the frame records of each person."""
    # People who are seen longest come first, then those with the largest face.
    ordered = sorted(people, key=lambda frames: (-len(frames), -_area(frames[0]["box"])))
    found = [
        _person_result(number, frames, result["frames_read"], rule) for number, frames in enumerate(ordered, start=1)
    ]
    verdict, sentence = _together(found, "person", "people")
    if not found:
        sentence = f"No score: no face was found in {_frames(result['frames_read'])}."
    return {**result, "verdict": verdict, "sentence": sentence, **rule.record(), "people": found}


def _area(box: list[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _frames(count: int) -> str:
    return f"{count} frame{'' if count == 1 else 's'}"


def _person_result(number: int, frames: list[dict[str, Any]], frames_read: int, rule: Rule) -> dict[str, Any]:
    scored = [frame for frame in frames if frame["p_fake"] is not None]
    person = {"person": number, "p_fake": None, "verdict": ABSTAINED, "sentence": "", "reason": None}
    counts = {"judged": len(scored), "seen": len(frames)}
    if not scored:
        code = Counter(frame["reason"] for frame in frames).most_common(1)[0][0]
        why = next(frame["sentence"] for frame in frames if frame["reason"] == code).partition(": ")[2]
        sentence = f"No score for person {number} in any of {_frames(len(frames))}, mostly for this reason: {why}"
        person |= {"reason": code, "sentence": sentence}
    elif len(scored) < (fewest := min(_FEWEST_FRAMES, frames_read)):
        few = f"only {_frames(len(scored))} of {frames_read} {'has' if len(scored) == 1 else 'have'} a score"
        sentence = f"No score for person {number}: {few}, and a verdict needs {fewest}."
        person |= {"reason": "too_brief", "sentence": sentence}
        for frame in scored:
            frame |= {
                "p_fake": None,
                "p_fake_raw": None,
                "evidence": None,
                "reason": "too_brief",
                "sentence": sentence,
            }
        scored = []
    else:
        p_fake = float(np.mean([frame["p_fake"] for frame in scored]))
        verdict = rule.verdict(p_fake)
        sentence = rule.sentence(f"Person {number}", f"the mean p_fake of {_frames(len(scored))}", p_fake)
        highest = max(scored, key=lambda frame: frame["p_fake"])
        sentence += f" The highest is {highest['p_fake']:.3f} at {highest['time']:.2f} s."
        alone = sum(frame["p_fake"] >= rule.flagged_from for frame in scored)
        if verdict != FLAGGED and alone:
            score, own = ("scores", "its own") if alone == 1 else ("score", "their own")
            line = f"the threshold of {rule.flagged_from:.3f}"
            sentence += f" {alone} of {_frames(len(scored))} {score} at or above {line} on {own}."
        for frame in scored:
            frame |= {"verdict": verdict, "sentence": f"p_fake is {frame['p_fake']:.3f} at {frame['time']:.2f} s."}
        person |= {"p_fake": p_fake, "verdict": verdict, "sentence": sentence}
    return {**person, **counts, "moments": _moments(scored) if scored else [], "frames": frames}


def _moments(scored: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the notable moments of a person, the most suspicious first."""

    def moment(frame: dict[str, Any], why: str) -> dict[str, Any]:
        return {"time": frame["time"], "frame": frame["frame"], "p_fake": frame["p_fake"], "why": why}

    found = [moment(max(scored, key=lambda frame: frame["p_fake"]), "highest")]
    rises = [(after["p_fake"] - before["p_fake"], after) for before, after in itertools.pairwise(scored)]
    if rises:
        rise, frame = max(rises, key=lambda pair: pair[0])
        if rise >= _RISE:
            found.append(moment(frame, "rise"))
    return found


def to_json(result: dict[str, Any], evidence: bool = False) -> dict[str, Any]:
    """Return a result as plain JSON values.

    Args:
        result: of the pipeline.
        evidence: whether to keep the evidence maps, as nested lists.

    Returns:
        Dictionaries, lists, strings, numbers, booleans and None.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items() if evidence or name != "evidence"}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return value.tolist() if isinstance(value, np.ndarray) else value

    return plain(result)
