"""Draw results on images, frames and videos: boxes, labels, and the evidence of faces with a score."""

import bisect
import functools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .decision_dcl import ABSTAINED, FLAGGED, INCONCLUSIVE, NOT_FLAGGED, VERDICTS, reason_in_words
from .errors_dcl import InputError, reason, whole_file
from .video_dcl import Video, evenly_spaced

try:  # only needed to draw evidence or videos
    import cv2
except ImportError:
    cv2 = None

try:
    import av
except ImportError:
    av = None

_COLOURS = {FLAGGED: (201, 42, 42), INCONCLUSIVE: (196, 127, 0), NOT_FLAGGED: (24, 100, 171), ABSTAINED: (92, 99, 106)}
_WHITE, _INK = (255, 255, 255), (17, 17, 17)
_FORGED, _REAL = (123, 50, 148), (0, 133, 116)  # colours of the evidence, different from those of verdicts
_ROWS = 256  # blended at a time: as floats, a large image would take gigabytes
_FONT_SIZE, _SMALLEST_FONT, _PADDING = 13, 9, 2  # pixels in an image of up to 640
_TICKS = 10_000  # per second, at least: the time base of the written videos
_USUAL_RATE = 25  # for videos without a rate, such as those with one frame

Box = tuple[int, int, int, int]


@dataclass
class _Mark:
    """A face as it is drawn."""

    box: Sequence[float]
    verdict: str
    label: str
    short: str  # if there is no room for the label
    evidence: Any
    evidence_box: Sequence[Sequence[float]]


def annotate_picture(picture: np.ndarray, result: dict[str, Any], evidence: float) -> Image.Image:
    """Draw a result on a copy of its image.

    Args:
        picture: RGB, uint8 (height, width, 3).
        result: the result of this image.
        evidence: opacity of the evidence maps, in [0, 1].

    Returns:
        The annotated copy.

    Raises:
        InputError: if the size of the image differs from that in the result.
    """
    _check_size(picture, result, "image")
    faces = result["faces"]
    marks = []
    for face in faces:
        number = str(face["face"])
        label = _words(face)
        marks.append(
            _Mark(
                face["box"],
                face["verdict"],
                label if len(faces) == 1 else f"{number}: {label}",
                number,
                face.get("evidence"),
                face["evidence_box"],
            )
        )
    return _draw(picture, marks, evidence)


def annotate_frames(
    video: Video, result: dict[str, Any], frames: Collection[int] | None, evidence: float
) -> list[Image.Image]:
    """Draw a result on frames of its video.

    Args:
        video: the video.
        result: its result.
        frames: frame numbers; None for the `telling_frames` of each person.
        evidence: opacity of the evidence maps, in [0, 1].

    Returns:
        One image per frame, in ascending order, without duplicates.

    Raises:
        InputError: if a frame does not exist or cannot be read, or the result is of another video.
    """
    if frames is None:
        frames = [number for person in result["people"] for number in telling_frames(person)]
    wanted = list(dict.fromkeys(frames))
    for number in wanted:
        if number not in video.numbers:
            raise InputError(f"{video.path} has no frame {number}. Choose numbers from 0 to {len(video.numbers) - 1}.")
    track, drawn = _Track(video, result), {}
    for number, image in _frames(video, result, wanted):
        if isinstance(image, InputError):
            raise image
        drawn[number] = _draw(image, track.marks(number), evidence)
    return [drawn[number] for number in wanted]


def annotate_video(video: Video, result: dict[str, Any], output: str | Path, evidence: float) -> Path:
    """Draw a result on all frames of its video, and write them as an MP4 without sound (H.264, yuv420p).

    Frames keep their times. A frame that cannot be decoded is left out, and the one before it is shown longer. An
    existing file is replaced only when the new one is complete.

    Args:
        video: the video.
        result: its result.
        output: the path of the MP4.
        evidence: opacity of the evidence maps, in [0, 1].

    Returns:
        The path of the MP4.

    Raises:
        InputError: if the file cannot be written, no frame can be read, or the result is of another video.
    """
    output = Path(output)
    if output.suffix.lower() != ".mp4":
        raise InputError(f"{output} does not end in .mp4. Choose another name: annotated videos are MP4 files.")
    if not output.parent.is_dir():
        raise InputError(f"Folder {output.parent} for {output.name} not found. Create it.")
    if output.exists() and output.samefile(video.path):
        raise InputError(f"{output} is the input video. Choose another file for the output.")
    try:
        with whole_file(output) as partial:
            _encode(video, result, partial, evidence)
    except InputError:
        raise
    except (OSError, ValueError, av.FFmpegError) as error:  # PyAV's own are of several kinds
        raise InputError(f"{output} cannot be written ({reason(error)}). Choose another file.") from error
    return output


def telling_frames(person: dict[str, Any]) -> list[int]:
    """Return the numbers of the frames that show a person best.

    These are the frames of the moments, or, without a score, the frame with the largest face.
    """
    moments = [moment["frame"] for moment in person["moments"]]
    return moments or [max(person["frames"], key=lambda face: face["box"][2] - face["box"][0])["frame"]]


def _words(judged: dict[str, Any]) -> str:
    """Return the verdict on a face or person with its number, or why there is none."""
    if judged["p_fake"] is not None:
        return f"{VERDICTS[judged['verdict']]} {judged['p_fake']:.2f}"
    return f"{VERDICTS[ABSTAINED]}: {_why(judged)}"


def _why(judged: dict[str, Any]) -> str:
    return reason_in_words(judged["reason"])


# ------------------------------------------------------------------------------------------------------------- videos


def _check_size(image: np.ndarray, result: dict[str, Any], what: str) -> None:
    size = result["width"], result["height"]
    if image.shape[1::-1] != size:
        raise InputError(
            f"The {what} has {image.shape[1]}x{image.shape[0]} pixels, but the result is for {size[0]}x{size[1]}. "
            f"Pass the {what} that the result was made from."
        )


def _frames(
    video: Video, result: dict[str, Any], numbers: Collection[int]
) -> Iterator[tuple[int, np.ndarray | InputError]]:
    """Yield frames in ascending order at the size of the result, after checking that both belong together."""
    if not math.isclose(video.duration, result["duration"], rel_tol=1e-6, abs_tol=1e-6):
        raise InputError(
            f"{video.path} lasts {video.duration:.2f} s, but the result is for a video of {result['duration']:.2f} s. "
            "Pass the video that the result was made from."
        )
    for number, image in video.read_readable({0, *numbers}):
        if not isinstance(image, InputError):
            if number == 0:  # the size in the result is that of the first frame
                _check_size(image, result, "video")
            size = result["width"], result["height"]
            if image.shape[1::-1] != size:
                image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        if number in numbers:
            yield number, image


class _Track:
    """Positions of people in every frame of a video, interpolated between the analyzed frames."""

    def __init__(self, video: Video, result: dict[str, Any]):
        self._analyzed = evenly_spaced(len(video.numbers), result["frames_wanted"])
        self._people = [(person, {face["frame"]: face for face in person["frames"]}) for person in result["people"]]

    def marks(self, number: int) -> list[_Mark]:
        """Return the people in a frame: those found in the analyzed frames before and after it."""
        place = bisect.bisect_left(self._analyzed, number)
        if place == len(self._analyzed):  # a later frame of a video with one analyzed frame
            return []
        after = self._analyzed[place]
        before = after if after == number else self._analyzed[place - 1]
        share = (number - before) / (after - before) if after != before else 0.0
        return [
            self._mark(person, faces[before], faces[after], share)
            for person, faces in self._people
            if before in faces and after in faces
        ]

    def _mark(self, person: dict[str, Any], before: dict[str, Any], after: dict[str, Any], share: float) -> _Mark:
        def between(key: str) -> np.ndarray | None:
            first, last = before.get(key), after.get(key)
            if first is None or last is None:
                return None
            return (1 - share) * np.asarray(first) + share * np.asarray(last)

        judged = person["p_fake"] is not None
        lines = [_words(person)]
        if judged:  # the mean, and below it the score of this frame
            one = f"{before['p_fake']:.2f}" if before["p_fake"] is not None else _why(before)
            lines = [f"{lines[0]} on average", f"{before['time']:.2f} s: {one}"]
        number = str(person["person"])
        if len(self._people) > 1:
            lines[0] = f"{number}: {lines[0]}"
        return _Mark(
            between("box"),
            person["verdict"],
            "\n".join(lines),
            number,
            between("evidence") if judged else None,
            between("evidence_box"),
        )


def _encode(video: Video, result: dict[str, Any], path: Path, evidence: float) -> None:
    """Write all frames of a video, annotated."""
    rate = Fraction(result["frame_rate"] or _USUAL_RATE).limit_denominator(1001) or Fraction(1, 1001)
    ticks = rate.numerator * math.ceil(_TICKS / rate.numerator)  # so that a frame of 1001/24000 s is a whole number
    track, stream, failure = _Track(video, result), None, None
    with av.open(f"file:{path.absolute()}", "w", format="mp4", options={"movflags": "faststart"}) as container:
        for number, image in _frames(video, result, video.numbers):
            if isinstance(image, InputError):
                failure = image
                continue
            marks = track.marks(number)
            image = np.asarray(_draw(image, marks, evidence)) if marks else image
            height, width = image.shape[:2]
            if stream is None:
                stream = container.add_stream("libx264", rate=rate, options={"crf": "20"})
                stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
                context = stream.codec_context
                context.time_base = Fraction(1, ticks)
                context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
                context.color_range = 1  # 16 to 235
            if width % 2 or height % 2:  # yuv420p stores colour for every second pixel
                image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
                format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
            )
            frame.time_base, frame.pts = Fraction(1, ticks), round(video.time(number) * ticks)
            frame.duration = round(ticks / rate)
            container.mux(stream.encode(frame))
        if stream is None:
            raise failure
        container.mux(stream.encode())


# ------------------------------------------------------------------------------------------------------------ drawing


def _draw(picture: np.ndarray, marks: list[_Mark], evidence: float) -> Image.Image:
    """Draw faces on a copy of their image, RGB, uint8 (height, width, 3)."""
    drawn = picture.copy()
    for mark in marks:
        if evidence and mark.evidence is not None:
            _blend_evidence(drawn, np.asarray(mark.evidence), mark.evidence_box, evidence)
    image = Image.fromarray(drawn)
    unit = max(1.0, max(image.size) / 640)
    taken: list[Box] = []
    if evidence and any(mark.evidence is not None for mark in marks):
        legend = _legend(image.size, unit)
        taken.append((0, image.height - legend.height, legend.width, image.height))
        image.paste(legend, taken[0][:2])
    pen = ImageDraw.Draw(image)
    boxes = [tuple(round(float(value)) for value in mark.box) for mark in marks]
    for mark, box in zip(marks, boxes, strict=True):
        pen.rectangle(box, outline=_COLOURS[mark.verdict], width=max(1, round(1.5 * unit)))
    for texts in ([(mark.label, mark.short) for mark in marks], [(mark.short,) for mark in marks]):
        labels = _labels(pen, texts, boxes, taken, unit)
        if len(labels) == len(marks):  # else try numbers alone, which need less room
            break
    for index, label in labels.items():
        verdict = marks[index].verdict
        left, top, right, bottom = label.place
        pen.rectangle((left, top, right - 1, bottom - 1), fill=_COLOURS[verdict])
        ink = _INK if verdict == INCONCLUSIVE else _WHITE
        pen.multiline_text(label.start, label.text, fill=ink, font=label.font, spacing=label.spacing)
    return image


@dataclass
class _Label:
    place: Box
    start: tuple[float, float]
    text: str
    font: ImageFont.FreeTypeFont
    spacing: int


def _labels(
    pen: ImageDraw.ImageDraw, texts: list[tuple[str, ...]], boxes: list[Box], taken: list[Box], unit: float
) -> dict[int, _Label]:
    """Place the labels of boxes, by box number: the first text of each for which there is room."""
    labels: dict[int, _Label] = {}
    padding = round(_PADDING * unit)
    for index, box in enumerate(boxes):
        for text in texts[index]:
            text, font = _fitted(text, pen.im.size[0] - 2 * padding, unit)
            left, top, right, bottom = pen.multiline_textbbox((0, 0), text, font=font, spacing=padding)
            size = math.ceil(right - left) + 2 * padding, math.ceil(bottom - top) + 2 * padding
            others = [*taken, *(label.place for label in labels.values())]
            place = _free_place(size, box, pen.im.size, others, boxes)
            if place is not None:
                start = place[0] + padding - left, place[1] + padding - top
                labels[index] = _Label(place, start, text, font, padding)
                break
    return labels


def _fitted(text: str, width: int, unit: float) -> tuple[str, ImageFont.FreeTypeFont]:
    """Fit a text into a width by a smaller font, or else by more lines; return text and font."""
    for size in range(round(_FONT_SIZE * unit), round(_SMALLEST_FONT * unit) - 1, -1):
        font = _font(size)
        if all(font.getlength(line) <= width for line in text.split("\n")):
            return text, font
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines), font


_font = functools.cache(ImageFont.load_default)


def _free_place(
    size: tuple[int, int], box: Box, picture: tuple[int, int], taken: list[Box], boxes: list[Box]
) -> Box | None:
    """Place a label inside the image, over no other label, and over as little of the faces as possible."""
    width, height = size
    if width > picture[0] or height > picture[1]:
        return None
    left, top, right, bottom = box
    places = []
    for x, y in (
        *product((left, right - width), (top - height, bottom)),  # above and below
        *product((right, left - width), (top, bottom - height)),  # beside
        *product((left, right - width), (top, bottom - height)),  # inside
    ):
        x, y = min(max(x, 0), picture[0] - width), min(max(y, 0), picture[1] - height)
        place = x, y, x + width, y + height
        if not any(_shared(place, other) for other in taken):
            places.append(place)
    return min(places, key=lambda place: sum(_shared(place, other) for other in boxes), default=None)


def _shared(one: Box, other: Box) -> int:
    """Return how many pixels two rectangles share."""
    width, height = (min(one[axis + 2], other[axis + 2]) - max(one[axis], other[axis]) for axis in (0, 1))
    return max(width, 0) * max(height, 0)


def _legend(size: tuple[int, int], unit: float) -> Image.Image:
    """Draw the legend of the evidence colours, no larger than an image of this size (width, height)."""
    words, font = ("towards real", "towards forged"), _font(round(_FONT_SIZE * unit))
    height, bar = round(1.2 * _FONT_SIZE * unit), round(4 * _FONT_SIZE * unit)
    widths = [math.ceil(font.getlength(text)) for text in words]
    strength = np.linspace(-1, 1, bar)[:, None]
    colours = np.where(strength > 0, _FORGED, _REAL)
    ramp = np.round(255 + (colours - 255.0) * np.abs(strength)).astype(np.uint8)
    legend = Image.new("RGB", (sum(widths) + bar + 2 * height, 2 * height), (255, 255, 255))
    start = widths[0] + height
    legend.paste(Image.fromarray(np.broadcast_to(ramp, (height, bar, 3)).copy()), (start, height // 2))
    pen = ImageDraw.Draw(legend)
    for text, x in zip(words, (height // 2, start + bar + height // 2), strict=True):
        pen.text((x, height), text, fill=_INK, font=font, anchor="lm")
    legend.thumbnail(size)
    return legend


def _blend_evidence(picture: np.ndarray, evidence: np.ndarray, corners: list[list[float]], opacity: float) -> None:
    """Blend an evidence map into an image, at the place of its crop."""
    points = np.array(corners)
    height, width = picture.shape[:2]
    left, top = np.floor(points.min(0)).clip(0, (width, height)).astype(int)
    right, bottom = np.ceil(points.max(0)).clip(0, (width, height)).astype(int)
    if right <= left or bottom <= top:
        return
    rows, columns = evidence.shape
    # From the cells to the region; OpenCV counts from the centre of the first cell.
    matrix = cv2.getAffineTransform(
        np.array([[0, 0], [columns, 0], [0, rows]], np.float32), (points[[0, 1, 3]] - (left, top)).astype(np.float32)
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
