"""From p_fake to a verdict and to words: of a face, of a person in a video, and of a picture or video as a whole.

A face or person is "flagged" from one threshold on, "not_flagged" below another one, and "inconclusive" in between.
Faces of pictures are judged by the checkpoint's thresholds for frames. A person in a video is judged by those for
videos, on the mean `p_fake` of the frames with a score; these frames carry the person's verdict. A picture or video
has the verdict of its most suspicious face or person, and "abstained" where nothing has a score.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .abstention_dcl import Abstention
from .calibration_dcl import UNITS, expected_fpr, verdict_lines
from .errors_dcl import InputError

FLAGGED, INCONCLUSIVE, NOT_FLAGGED, ABSTAINED = "flagged", "inconclusive", "not_flagged", "abstained"
VERDICTS = {
    FLAGGED: "Flagged as forged",
    INCONCLUSIVE: "Inconclusive",
    NOT_FLAGGED: "Not flagged",
    ABSTAINED: "No score",
}
_NO_THRESHOLD = 0.5  # where the checkpoint has none
_FEWEST_FRAMES = 3  # of a person in a longer video: less may be a face where there is none
_RISE = 0.1  # of p_fake from one frame to the next that is worth a look


@dataclass(frozen=True)
class Rule:
    """Where the verdicts on faces, or on people in videos, change.

    Attributes:
        threshold: in [0, 1].
        operating_point: which of the checkpoint's thresholds that is; None if it was given, or there is none.
        band: `low` and `high`, from where on `p_fake` is inconclusive and from where on it is flagged; None for both,
            with a `reason`, where the threshold alone decides.
        expected_fpr: see `calibration_dcl.expected_fpr`, at the threshold from which on it is flagged.
        units: what sentences call the real ones of the validation split.
        note: what they say of a threshold that is the checkpoint's no more than the user's.
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
        """Find the rule of a checkpoint, or of a threshold.

        Args:
            calibration: `DCLConfig.calibration`.
            level: "frame" or "video".
            operating_point: from its threshold on something is flagged; None: from the end of the inconclusive range
                on, or from "eer" on where that is higher or there is no range, or else from .5.
            threshold: in (0, 1), in place of the checkpoint's; there is no inconclusive range then.

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
            remedy = f"choose {' or '.join(there)}, or leave" if there else "leave"
            why = points.get("reasons", {}).get(point, "it was not calibrated for it")
            raise InputError(
                f"the checkpoint has no threshold {point} for a {level} ({why}): {remedy} operating_point out."
            )
        low, high = lines or (None, None)
        band = {"low": low, "high": high, "reason": why if lines is None else None}
        return cls(
            float(at), point, band, expected_fpr(calibration, level, at if lines is None else high), units, note
        )

    @property
    def flagged_from(self) -> float:
        """From which `p_fake` on something is flagged."""
        return self.threshold if self.band["high"] is None else self.band["high"]

    @property
    def not_flagged_below(self) -> float:
        """Below which `p_fake` it is not flagged."""
        return self.threshold if self.band["low"] is None else self.band["low"]

    def verdict(self, p_fake: float) -> str:
        """Return "flagged", "inconclusive" or "not_flagged"."""
        if p_fake >= self.flagged_from:
            return FLAGGED
        return NOT_FLAGGED if p_fake < self.not_flagged_below else INCONCLUSIVE

    def sentence(self, who: str, number: str, p_fake: float) -> str:
        """Say in words what `verdict` says; `number` is what is compared with the thresholds."""
        high, low = self.flagged_from, self.not_flagged_below
        digits = 3
        while digits < 9 and any(p_fake != at and f"{p_fake:.{digits}f}" == f"{at:.{digits}f}" for at in (low, high)):
            digits += 1  # "0.500, below 0.500" would explain nothing
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
        """Return what a result says of it."""
        return {
            "threshold": self.flagged_from,
            "operating_point": self.operating_point if self.flagged_from == self.threshold else None,
            "band": self.band,
            "expected_fpr": self.expected_fpr,
        }


def abstain(record: dict[str, Any], who: str, abstention: Abstention) -> None:
    """Write into a face's record that it has no score, and why."""
    why = abstention.sentence
    record |= {"reason": abstention.code, "sentence": f"No score for {_inside(who)}: {_inside(why)}"}


def _inside(sentence: str) -> str:
    """Return how something begins inside of a sentence."""
    return f"{sentence[:1].lower()}{sentence[1:]}"


def picture_result(result: dict[str, Any], rule: Rule) -> dict[str, Any]:
    """Complete the result of a picture, whose `faces` have a `p_fake` or say why not, by verdicts."""
    faces = result.pop("faces")
    for face in faces:
        if face["p_fake"] is not None:
            sentence = rule.sentence(f"Face {face['face']}", "p_fake", face["p_fake"])
            face |= {"verdict": rule.verdict(face["p_fake"]), "sentence": sentence}
    verdict, sentence = _together(faces, "face", "faces")
    if not faces:
        sentence = "No score: no face was found."
    return {**result, "verdict": verdict, "sentence": sentence, **rule.record(), "faces": faces}


def _together(members: list[dict[str, Any]], one: str, several: str) -> tuple[str, str]:
    """Return the verdict on a picture or video with these faces or people, and a sentence."""
    if len(members) == 1:
        return members[0]["verdict"], members[0]["sentence"]
    scored = [member for member in members if member["verdict"] != ABSTAINED]
    if not scored:
        reasons = ", ".join(sorted({str(member["reason"]) for member in members}))
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
    """Complete the result of a video.

    Args:
        result: `kind`, `name`, sizes, how many frames were wanted and read, and notes.
        people: of each person the records of the frames with it.
        rule: for videos.

    Returns:
        The result with the verdict, and `people`.
    """
    # Who is seen longest comes first, then whose face is largest.
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
        few = f"only {_frames(len(scored))} of {frames_read} {'has' if len(scored) == 1 else 'have'} one"
        sentence = f"No score for person {number}: {few}, and a verdict takes {fewest}."
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
            frame |= {
                "verdict": verdict,
                "sentence": f"p_fake is {frame['p_fake']:.3f} at {frame['time']:.2f} s.",
            }
        person |= {"p_fake": p_fake, "verdict": verdict, "sentence": sentence}
    return {**person, **counts, "moments": _moments(scored) if scored else [], "frames": frames}


def _moments(scored: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the moments of a person that are worth a look, the most suspicious first."""

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
        result: of a picture, a video, or an error.
        evidence: whether the maps of evidence are put in, as nested lists; else they are left out.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items() if evidence or name != "evidence"}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return value.tolist() if isinstance(value, np.ndarray) else value

    return plain(result)


__all__ = [
    "ABSTAINED",
    "FLAGGED",
    "INCONCLUSIVE",
    "NOT_FLAGGED",
    "VERDICTS",
    "Rule",
    "abstain",
    "picture_result",
    "to_json",
    "video_result",
]
