"""Draw what was found of faces into their picture."""

from typing import Any

import numpy as np

from .errors_dcl import InputError
from .verdicts_dcl import ABSTAINED, FLAGGED, INCONCLUSIVE, NOT_FLAGGED, VERDICTS

try:  # only who draws needs OpenCV
    import cv2
except ImportError:
    cv2 = None

_COLOURS = {
    FLAGGED: (201, 42, 42),
    INCONCLUSIVE: (196, 127, 0),
    NOT_FLAGGED: (24, 100, 171),
    ABSTAINED: (92, 99, 106),
}
_WHITE, _INK = (255, 255, 255), (17, 17, 17)
_FORGED, _REAL = (123, 50, 148), (0, 133, 116)  # what evidence speaks for: other colours than those of verdicts
_FONT = cv2 and cv2.FONT_HERSHEY_SIMPLEX
_ROWS = 256  # blended at a time: as floats, a large picture would take gigabytes


def annotate(picture: np.ndarray, faces: list[dict[str, Any]], evidence: float = 0.0) -> np.ndarray:
    """Draw faces into a copy of their picture: boxes in the colour of the verdict, numbers, p_fake, and evidence.

    Args:
        picture: RGB, uint8 (height, width, 3).
        faces: of its result, or frames of people, whose number is then that of their `person`, if they have one.
        evidence: opacity of the maps in [0, 1]: purple cells push the score towards "forged", green ones towards
            "real", as a colour bar says.

    Returns:
        RGB, uint8 (height, width, 3).

    Raises:
        InputError: if the opacity is out of its range.
    """
    if not 0 <= evidence <= 1:
        raise InputError(f"the opacity of the evidence is {evidence}: choose it in [0, 1].")
    drawn = picture.copy()
    maps = [face for face in faces if evidence and face["evidence"] is not None]
    for face in maps:
        _blend_evidence(drawn, face["evidence"], face["evidence_box"], evidence)
    unit = max(1.0, max(picture.shape[:2]) / 640)
    thickness, scale = max(1, round(1.5 * unit)), 0.45 * unit
    for face in faces:
        colour = _COLOURS[face["verdict"]]
        left, top, right, bottom = (round(value) for value in face["box"])
        cv2.rectangle(drawn, (left, top), (right, bottom), colour, thickness)
        number = face.get("face", face.get("person"))
        label = "" if number is None else f"{number}: "
        label += VERDICTS[face["verdict"]]
        if face["p_fake"] is None:
            label += f" ({face['reason'].replace('_', ' ')})"
        else:  # a frame has the verdict of its person, and a score of its own
            label += f" {face['p_fake']:.2f}" if "face" in face else f" ({face['p_fake']:.2f} here)"
        (width, height), _ = cv2.getTextSize(label, _FONT, scale, thickness)
        x = int(np.clip(left, 0, max(0, picture.shape[1] - width - 4)))
        y = top - 4 if top > height + 8 else min(bottom + height + 4, picture.shape[0] - 4)
        cv2.rectangle(drawn, (x, y - height - 4), (x + width + 4, y + 4), colour, cv2.FILLED)
        ink = _INK if face["verdict"] == INCONCLUSIVE else _WHITE
        cv2.putText(drawn, label, (x + 2, y), _FONT, scale, ink, thickness, cv2.LINE_AA)
    if maps:
        _draw_legend(drawn, scale, thickness)
    return drawn


def _draw_legend(picture: np.ndarray, scale: float, thickness: int) -> None:
    """Draw at the lower edge of a picture what the colours of the evidence mean."""
    words = ("towards real", "towards forged")
    widths = [cv2.getTextSize(text, _FONT, scale, thickness)[0][0] for text in words]
    height, bar = round(30 * scale), round(120 * scale)
    strip = np.full((2 * height, sum(widths) + bar + 4 * height, 3), 255, np.uint8)
    strength = np.linspace(-1, 1, bar)[:, None]
    colours = np.where(strength > 0, _FORGED, _REAL)
    start = widths[0] + 2 * height
    strip[height // 2 : height // 2 + height, start : start + bar] = 255 + (colours - 255.0) * np.abs(strength)
    for text, x in zip(words, (height, start + bar + height), strict=True):
        cv2.putText(strip, text, (x, height + height // 3), _FONT, scale, _INK, thickness, cv2.LINE_AA)
    fit = min(1.0, picture.shape[1] / strip.shape[1], picture.shape[0] / strip.shape[0])
    size = (max(1, int(strip.shape[1] * fit)), max(1, int(strip.shape[0] * fit)))
    picture[-size[1] :, : size[0]] = cv2.resize(strip, size, interpolation=cv2.INTER_AREA)


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
    forged, real = np.float32(_FORGED), np.float32(_REAL)
    for start in range(0, len(region), _ROWS):
        rows = slice(start, start + _ROWS)
        strength = np.abs(np.tanh(spread[rows] / 2)) * opacity * inside[rows]  # |2 p - 1| of the logistic function
        colour = np.where(spread[rows, :, None] > 0, forged, real)
        region[rows] = np.round(region[rows] + (colour - region[rows]) * strength[..., None])


__all__ = ["annotate"]
