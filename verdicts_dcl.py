"""From p_fake to a verdict and to words: of a face, of a person in a video, and of a picture or video as a whole.

A face is "forged" at or above the checkpoint's threshold for frames, a person at or above its threshold for videos, on
the mean of the calibrated `p_fake` of the frames that were judged; what is below is "not_called_forged", never "real".
The two thresholds can disagree, as when single frames of a person reach the one and their mean does not reach the
other: then the person's verdict holds. A picture has the verdict of its most suspicious face, a video that of its most
suspicious person; where nothing was judged it is "abstained".
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .abstention_dcl import Abstention

FORGED, NOT_CALLED_FORGED, ABSTAINED = "forged", "not_called_forged", "abstained"
VERDICTS = {FORGED: "Forged", NOT_CALLED_FORGED: "Not called forged", ABSTAINED: "No score"}
NO_THRESHOLD = 0.5  # where the checkpoint has none
_POINTS = {
    "eer": "equal error rates",
    "fpr_0.05": "a false positive rate of 5 %",
    "fpr_0.01": "a false positive rate of 1 %",
}
_FEWEST_FRAMES = 3  # of a person in a longer video: less may be a face where there is none
_RISE = 0.1  # of p_fake from one frame to the next that is worth a look


@dataclass(frozen=True)
class Threshold:
    """From where on something is called forged, and how sentences call that."""

    value: float
    point: str | None

    def verdict(self, p_fake: float) -> str:
        """Return "forged" from the threshold on, else "not_called_forged"."""
        return FORGED if p_fake >= self.value else NOT_CALLED_FORGED

    def sentence(self, who: str, number: str, p_fake: float, what: str) -> str:
        """Say in words what `verdict` says; `what` is what the threshold is for."""
        name = f"the checkpoint's threshold for {what} ({_POINTS.get(self.point)})"
        if self.point is None:
            name = f"a mere convention: the checkpoint brings no threshold for {what}, take it with caution"
        digits = 3
        while p_fake != self.value and f"{p_fake:.{digits}f}" == f"{self.value:.{digits}f}":
            digits += 1  # "0.500, below 0.500" would explain nothing
        is_, at = f"{number} is {p_fake:.{digits}f}", f"{self.value:.{digits}f}"
        if p_fake >= self.value:
            return f"{who} is called forged: {is_}, at or above {at}, {name}."
        return f"{who} is not called forged: {is_}, below {at}, {name}. That does not prove it real."


def abstain(record: dict[str, Any], who: str, abstention: Abstention) -> None:
    """Write into a face's record that it is not judged, and why."""
    why = abstention.sentence
    record |= {"reason": abstention.code, "sentence": f"{who} was not judged: {why[:1].lower()}{why[1:]}"}


def picture_result(result: dict[str, Any], threshold: Threshold) -> dict[str, Any]:
    """Complete the result of a picture, whose `faces` are judged, by its verdict at a threshold for frames."""
    faces = result.pop("faces")
    verdict, sentence = _together(faces, "face")
    if not faces:
        sentence = "No face was found, so nothing was judged."
    return {**result, **_ruling(verdict, sentence, threshold), "faces": faces}


def _ruling(verdict: str, sentence: str, threshold: Threshold) -> dict[str, Any]:
    return {
        "verdict": verdict,
        "sentence": sentence,
        "operating_point": threshold.point,
        "threshold": threshold.value,
    }


def _together(members: list[dict[str, Any]], kind: str) -> tuple[str, str]:
    """Return the verdict on a picture or video with these faces or people, and a sentence."""
    if len(members) == 1:
        return members[0]["verdict"], members[0]["sentence"]
    forged = [member for member in members if member["verdict"] == FORGED]
    judged = [member for member in members if member["verdict"] != ABSTAINED]
    plural = {"face": "faces", "person": "people"}[kind]
    if not judged:
        reasons = ", ".join(sorted({str(member["reason"]) for member in members}))
        return ABSTAINED, f"None of {len(members)} {plural} was judged ({reasons})."
    left = len(members) - len(judged)
    rest = f" {left} of {len(members)} {plural} {'was' if left == 1 else 'were'} not judged." if left else ""
    worst = max(judged, key=lambda member: member["p_fake"])
    if forged:
        are = "is" if len(forged) == 1 else "are"
        of = f"{len(forged)} of {len(judged)} {plural if len(judged) > 1 else kind}"
        return FORGED, f"{of} {are} called forged. {worst['sentence']}{rest}"
    if len(judged) == 1:
        return NOT_CALLED_FORGED, f"{worst['sentence']}{rest}"
    return NOT_CALLED_FORGED, f"None of {len(judged)} {plural} is called forged. {worst['sentence']}{rest}"


def video_result(
    result: dict[str, Any], people: Sequence[list[dict[str, Any]]], threshold: Threshold
) -> dict[str, Any]:
    """Complete the result of a video.

    Args:
        result: `kind`, `name`, sizes, how many frames were wanted and read, and notes.
        people: of each person the records of the frames with it.
        threshold: for videos.

    Returns:
        The result with the verdict, and `people`.
    """
    # Who is seen longest comes first, then whose face is largest.
    ordered = sorted(people, key=lambda frames: (-len(frames), -_area(frames[0]["box"])))
    found = [
        _person_result(number, frames, result["frames_read"], threshold)
        for number, frames in enumerate(ordered, start=1)
    ]
    verdict, sentence = _together(found, "person")
    if not found:
        sentence = f"No face was found in {_frames(result['frames_read'])}, so nothing was judged."
    return {**result, **_ruling(verdict, sentence, threshold), "people": found}


def _area(box: list[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _frames(count: int) -> str:
    return f"{count} frame{'' if count == 1 else 's'}"


def _person_result(
    number: int, frames: list[dict[str, Any]], frames_read: int, threshold: Threshold
) -> dict[str, Any]:
    judged = [frame for frame in frames if frame["p_fake"] is not None]
    person = {"person": number, "p_fake": None, "verdict": ABSTAINED, "sentence": "", "reason": None}
    counts = {"judged": len(judged), "seen": len(frames)}
    who = f"Person {number}"
    if not judged:
        code = Counter(frame["reason"] for frame in frames).most_common(1)[0][0]
        why = next(frame["sentence"] for frame in frames if frame["reason"] == code)
        why = why.partition(" was not judged: ")[2]
        person |= {
            "reason": code,
            "sentence": f"{who} was not judged in any of {_frames(len(frames))}, mostly for this reason: {why}",
        }
    elif len(judged) < (fewest := min(_FEWEST_FRAMES, frames_read)):
        person |= {
            "reason": "too_brief",
            "sentence": f"{who} was not judged: only {_frames(len(judged))} of {frames_read} could be judged, and a "
            f"verdict takes {fewest}.",
        }
    else:
        p_fake = float(np.mean([frame["p_fake"] for frame in judged]))
        sentence = threshold.sentence(who, f"its mean p_fake over {_frames(len(judged))}", p_fake, "videos")
        highest = max(judged, key=lambda frame: frame["p_fake"])
        sentence += f" The highest is {highest['p_fake']:.3f} at {highest['time']:.2f} s."
        alone = sum(frame["verdict"] == FORGED for frame in judged)
        if p_fake < threshold.value and alone:
            reach = "frame reaches" if alone == 1 else "frames reach"
            sentence += f" Taken alone, {alone} {reach} the threshold for single faces."
        person |= {"p_fake": p_fake, "verdict": threshold.verdict(p_fake), "sentence": sentence}
    return {**person, **counts, "moments": _moments(judged) if person["p_fake"] is not None else [], "frames": frames}


def _moments(judged: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the moments of a person that are worth a look, the most suspicious first."""

    def moment(frame: dict[str, Any], why: str) -> dict[str, Any]:
        return {"time": frame["time"], "frame": frame["frame"], "p_fake": frame["p_fake"], "why": why}

    found = [moment(max(judged, key=lambda frame: frame["p_fake"]), "highest")]
    rises = [(after["p_fake"] - before["p_fake"], after) for before, after in itertools.pairwise(judged)]
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
    "FORGED",
    "NOT_CALLED_FORGED",
    "NO_THRESHOLD",
    "VERDICTS",
    "Threshold",
    "abstain",
    "picture_result",
    "to_json",
    "video_result",
]
