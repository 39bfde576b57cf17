"""Draw what was found of faces into their picture."""

from typing import Any

import numpy as np

from .errors_dcl import InputError
from .verdicts_dcl import ABSTAINED, FORGED, NOT_CALLED_FORGED

try:  # only who draws needs OpenCV
    import cv2
except ImportError:
    cv2 = None

_COLOURS = {FORGED: (214, 40, 40), NOT_CALLED_FORGED: (29, 107, 196), ABSTAINED: (110, 110, 110)}
_ROWS = 256  # blended at a time: as floats, a large picture would take gigabytes
_WORDS = {FORGED: "forged", NOT_CALLED_FORGED: "not called forged", ABSTAINED: "not judged"}


def annotate(picture: np.ndarray, faces: list[dict[str, Any]], evidence: float = 0.0) -> np.ndarray:
    """Draw faces into a copy of their picture: boxes, numbers, p_fake, and where the evidence was seen.

    Args:
        picture: RGB, uint8 (height, width, 3).
        faces: of its result, or frames of people, whose number is then that of their `person`, if they have one.
        evidence: opacity of the maps in [0, 1]: red is what speaks for a forgery, blue what speaks against it.

    Returns:
        RGB, uint8 (height, width, 3).

    Raises:
        InputError: if the opacity is out of its range.
    """
    if not 0 <= evidence <= 1:
        raise InputError(f"the opacity of the evidence is {evidence}: choose it in [0, 1].")
    drawn = picture.copy()
    for face in faces:
        if evidence and face["evidence"] is not None:
            _blend_evidence(drawn, face["evidence"], face["evidence_box"], evidence)
    unit = max(1.0, max(picture.shape[:2]) / 640)
    thickness, scale = max(1, round(1.5 * unit)), 0.45 * unit
    for face in faces:
        colour = _COLOURS[face["verdict"]]
        left, top, right, bottom = (round(value) for value in face["box"])
        cv2.rectangle(drawn, (left, top), (right, bottom), colour, thickness)
        number = face.get("face", face.get("person"))
        label = "" if number is None else f"{number}: "
        label += _WORDS[face["verdict"]]
        label += f" {face['p_fake']:.2f}" if face["p_fake"] is not None else f" ({face['reason']})"
        (width, height), _ = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
        x = int(np.clip(left, 0, max(0, picture.shape[1] - width - 4)))
        y = top - 4 if top > height + 8 else min(bottom + height + 4, picture.shape[0] - 4)
        cv2.rectangle(drawn, (x, y - height - 4), (x + width + 4, y + 4), colour, cv2.FILLED)
        cv2.putText(drawn, label, (x + 2, y), cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), thickness, cv2.LINE_AA)
    return drawn


def _blend_evidence(picture: np.ndarray, evidence: np.ndarray, corners: list[list[float]], opacity: float) -> None:
    """Blend a map of evidence into a picture, at the place of its crop."""
    points = np.array(corners)
    height, width = picture.shape[:2]
    left, top = np.floor(points.min(0)).clip(0, (width, height)).astype(int)
    right, bottom = np.ceil(points.max(0)).clip(0, (width, height)).astype(int)
    if right <= left or bottom <= top:
        return
    rows, columns = evidence.shape
    # From the cells to the region; OpenCV counts from the centre of the first one.
    matrix = cv2.getAffineTransform(
        np.array([[0, 0], [columns, 0], [0, rows]], np.float32),
        (points[[0, 1, 3]] - (left, top)).astype(np.float32),
    )
    matrix[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    size = (int(right - left), int(bottom - top))
    spread = cv2.warpAffine(
        evidence.astype(np.float32), matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    inside = np.zeros(size[::-1], np.uint8)
    cv2.fillConvexPoly(inside, np.round(points - (left, top)).astype(np.int32), 1)
    region = picture[top:bottom, left:right]
    forged, passed = (np.array(_COLOURS[verdict], np.float32) for verdict in (FORGED, NOT_CALLED_FORGED))
    for start in range(0, len(region), _ROWS):
        rows = slice(start, start + _ROWS)
        strength = np.abs(np.tanh(spread[rows] / 2)) * opacity * inside[rows]  # |2 p - 1| of the logistic function
        colour = np.where(spread[rows, :, None] > 0, forged, passed)
        region[rows] = np.round(region[rows] + (colour - region[rows]) * strength[..., None])


__all__ = ["annotate"]
