"""What the page shows of a result: sentences, drawings, frames, and the points of the plot."""

import html
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

SHOWN_SIDE, FRAME_SIDE, FACE_SIDE = 1600, 960, 256  # longest sides in pixels: of a picture, a frame, a face
EVIDENCE = 0.6  # opacity
NO_SCORE_AT = -0.06  # where the plot marks frames without a score

WORDS = {
    "flagged": "Flagged as forged",
    "inconclusive": "Inconclusive",
    "not_flagged": "Not flagged",
    "abstained": "No score",
}
MEANS = {
    "flagged": "The score p_fake is at or above the threshold.",
    "inconclusive": "The score p_fake lies in a range where both real and forged faces score. The model cannot tell.",
    "not_flagged": "The score p_fake is below the threshold.",
    "abstained": "The model gives no score rather than an unreliable one.",
}
DOES_NOT_MEAN = {
    "flagged": "It is no proof. Real pictures are flagged too, most often those of cameras, compression and people "
    "that were not in the training data. Do not accuse anyone because of it.",
    "inconclusive": "It does not mean half forged, and it is no reason for suspicion.",
    "not_flagged": "It does not mean real. Forgeries by methods that the model never saw often pass, and so does "
    "anything forged outside the face.",
    "abstained": "It does not mean real, and it does not mean forged.",
}
#: Why there is no score, and what to do next.
REASONS = {
    "no_face": (
        "no face was found",
        "Use a picture that shows a face from the front, upright, well lit and uncovered.",
    ),
    "too_small": (
        "too small",
        "Use a closer shot, or the original in full resolution. Enlarging this one does not help.",
    ),
    "extreme_pose": (
        "turned too far",
        "Use a shot in which the person looks towards the camera. If the picture lies on its side, rotate it.",
    ),
    "too_blurred": ("too blurred", "Use a sharper original, not a screenshot, thumbnail or forwarded copy."),
    "unfamiliar": (
        "unlike the training data",
        "Use a checkpoint that was trained on pictures like this one. This one cannot judge it.",
    ),
    "too_brief": ("seen too briefly", "Use a longer video, or analyze more frames."),
    "not_finite": ("not a finite number", "Tell whoever runs this page: the checkpoint may be damaged."),
}
#: The methods of `dcl-prepare demo` and `dcl-prepare blend`: a checkpoint that saw no others is a demonstration.
SIMPLE_METHODS = {"self_blend", "identity_swap", "lowres_swap", "local_warp", "mouth_swap"}

#: Of the plot's lines.
COLOURS = {
    **{f"Person {number}": colour for number, colour in enumerate(("#4f46e5", "#0f766e", "#9d174d"), start=1)},
    "Flagged from": "#c92a2a",
    "Threshold": "#c92a2a",
    "Not flagged below": "#1c7ed6",
    "No score": "#868e96",
}

Drawing = Callable[..., Image.Image]  # the pipeline's `annotate`


def introduce(config: Any, smallest_face: int) -> str:
    """Say what a checkpoint can judge, in Markdown.

    Args:
        config: the model's.
        smallest_face: the pipeline's.
    """
    seen = [str(name).replace("_", " ") for name in config.seen_methods or ()]
    learned = f"forgeries by {_listed(seen)}" if seen else "forgeries whose methods it does not name"
    text = (
        f"This checkpoint was trained on {learned}. It judges faces of at least "
        f"{smallest_face} pixels that look towards the camera; forgeries by other methods often pass."
    )
    if seen and set(config.seen_methods) <= SIMPLE_METHODS:
        text += " **It is a demonstration. Do not use it to judge real photographs or videos.**"
    return text


def small(picture: np.ndarray, side: int) -> Image.Image:
    """Return a picture, uint8 (height, width, 3), scaled down to a longest side in pixels."""
    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def draw(annotate: Drawing, picture: Image.Image, result: dict[str, Any], evidence: float) -> Image.Image:
    """Draw faces into a picture that was scaled down.

    Args:
        annotate: the pipeline's.
        picture: RGB.
        result: of the picture in its full size.
        evidence: opacity.
    """
    x, y = picture.width / result["width"], picture.height / result["height"]
    faces = []
    for face in result["faces"]:
        corners = (np.asarray(face["evidence_box"]) * (x, y)).tolist()
        faces.append({**face, "box": (np.asarray(face["box"]) * (x, y, x, y)).tolist(), "evidence_box": corners})
    scaled = {**result, "width": picture.width, "height": picture.height, "faces": faces}
    return annotate(np.asarray(picture), scaled, evidence=evidence)


def cut_faces(picture: np.ndarray, faces: list[dict[str, Any]]) -> list[tuple[Image.Image, str]]:
    """Return each face of a picture with its surroundings, and a caption."""
    cut = []
    for face in faces:
        left, top, right, bottom = face["box"]
        x, y, half = (left + right) / 2, (top + bottom) / 2, 0.75 * max(right - left, bottom - top)
        rows, columns = (
            slice(max(0, int(y - half)), int(y + half) + 1),
            slice(max(0, int(x - half)), int(x + half) + 1),
        )
        cut.append((small(np.ascontiguousarray(picture[rows, columns]), FACE_SIDE), f"{face['face']}: {_score(face)}"))
    return cut


def draw_frames(
    annotate: Drawing, frames: dict[int, Image.Image], result: dict[str, Any]
) -> list[tuple[float, Image.Image, str]]:
    """Return the frames with faces, each with its time, annotated, with a caption.

    The picture names the verdict on each person and the mean score; the caption has the scores of this frame.
    """
    faces: dict[int, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for person in result["people"]:
        for face in person["frames"]:
            faces.setdefault(face["frame"], []).append((person, face))
    drawn = []
    for number in sorted(faces):
        shown = [
            {**face, "face": person["person"], "p_fake": None if face["p_fake"] is None else person["p_fake"]}
            for person, face in faces[number]
        ]
        image = draw(annotate, frames[number], {**result, "kind": "image", "faces": shown}, EVIDENCE * 2 / 3)
        time = faces[number][0][1]["time"]
        scores = ", ".join(f"person {person['person']}: {_score(face)}" for person, face in faces[number])
        drawn.append((time, image, f"{time:.2f} s, {scores}"))
    return drawn


def plot_points(result: dict[str, Any]) -> pd.DataFrame:
    """Return p_fake over time as rows of `time`, `p_fake` and `series`.

    Each person is a series, with a gap where a frame has no score. Those frames are short marks below the axis. A
    threshold, or each end of the inconclusive range, is a level line.
    """
    times = [face["time"] for person in result["people"] for face in person["frames"]]
    end = max([result["duration"] or 0, *times, 1e-6])
    rows: list[tuple[float, float | None, str]] = []
    for person in result["people"]:
        name = f"Person {person['person']}"
        scored = [face["p_fake"] is not None for face in person["frames"]]
        for place, face in enumerate(person["frames"]):
            if not scored[place]:
                rows.append((face["time"], None, name))
                rows += _mark(face["time"], NO_SCORE_AT, end, "No score")
            elif not any(scored[max(0, place - 1) : place] + scored[place + 1 : place + 2]):  # alone
                rows += _mark(face["time"], face["p_fake"], end, name)
            else:
                rows.append((face["time"], face["p_fake"], name))
    for name, level in _levels(result).items():
        rows += [(0.0, level, name), (end, level, name)]
    return pd.DataFrame(rows, columns=["time", "p_fake", "series"])


def _mark(time: float, value: float, end: float, name: str) -> list[tuple[float, float | None, str]]:
    left, right = max(0.0, time - end / 150), min(end, time + end / 150)
    return [(left, value, name), (right, value, name), (right, None, name)]


def _levels(result: dict[str, Any]) -> dict[str, float]:
    low, high = result["band"]["low"], result["band"]["high"]
    if low is None or low == high:
        return {"Threshold": result["threshold"] if high is None else high}
    return {"Flagged from": high, "Not flagged below": low}


def nearest(times: list[float], span: Any) -> int:
    """Return the place of the time that is nearest to the middle of a span, whatever a client sends as one."""
    try:
        middle = sum(float(end) for end in span) / len(span)
    except (TypeError, ValueError, ZeroDivisionError):
        return 0
    return min(range(len(times)), key=lambda place: abs(times[place] - middle), default=0)


# ---------------------------------------------------------------------------------------------------------- sentences


def show_verdict(result: dict[str, Any]) -> str:
    """Return the verdict as HTML: its sentence, a bar, the faces in groups, and what it means."""
    verdict, rate, means = result["verdict"], result["expected_fpr"], MEANS[result["verdict"]]
    one, members = ("face", result["faces"]) if result["kind"] == "image" else ("person", result["people"])
    if verdict == "flagged" and rate["value"] is not None:
        means += (
            f" In the validation data, at most {100 * rate['value']:.2g} % of the real ones score this high. For new "
            f"people, {100 * rate['low']:.1f} to {100 * rate['high']:.1f} % are plausible (95 % interval)."
        )
    scores = [member["p_fake"] for member in members if member["p_fake"] is not None]
    bar = _bar(max(scores), result) if scores else ""
    sentences = group(members, one) if len(members) > 1 else []
    groups = (
        "".join(f"<li>{_escape(each)}</li>" for each in sentences)
        if verdict == "abstained" or len(sentences) > 1
        else ""
    )
    reasons = dict.fromkeys(member["reason"] for member in members if member["reason"]) if members else ["no_face"]
    advice = "".join(f"<li>{_escape(REASONS[reason][1])}</li>" for reason in reasons if reason in REASONS)
    notes = "".join(f"<p>{_escape(note)}</p>" for note in result.get("notes", ()))
    times = ""
    if result["kind"] == "video":
        frames = sorted({face["time"] for person in members for face in person["frames"]})
        times = f' data-times="{frames}" data-end="{max([result["duration"] or 0, *frames])}"'
    return (
        f'<section class="dcl" aria-label="Result"{times}>'
        f'<div class="dcl-verdict {verdict}" role="status">'
        f"<h2>{WORDS[verdict]}</h2><p>{_escape(result['sentence'])}</p>{bar}{notes}</div>"
        f"{f'<ul>{groups}</ul>' if groups else ''}"
        f"{f'<h3>To get a score</h3><ul>{advice}</ul>' if advice else ''}"
        f'<div class="dcl-means"><div><h3>What this means</h3><p>{means}</p></div>'
        f"<div><h3>What it does not mean</h3><p>{DOES_NOT_MEAN[verdict]}</p></div></div></section>"
    )


def show_moments(people: list[dict[str, Any]]) -> str:
    """Return a button for each moment worth a look, by person; it leads to the frame."""
    rows = ""
    for person in people:
        buttons = "".join(
            f'<button type="button" data-moment="{moment["time"]}">'
            f"{moment['why'].capitalize()}: {moment['p_fake']:.3f} at {moment['time']:.2f} s</button>"
            for moment in person["moments"]
        )
        rows += f"<li>Person {person['person']} {buttons}</li>" if buttons else ""
    return f'<ul class="dcl dcl-moments" aria-label="Moments">{rows}</ul>' if rows else ""


def group(members: list[dict[str, Any]], one: str) -> list[str]:
    """Return a sentence for each verdict or reason that faces or people have in common.

    Args:
        members: `faces` or `people` of a result.
        one: "face" or "person".
    """
    groups: dict[tuple[str, Any], list[dict[str, Any]]] = {}
    for member in members:
        groups.setdefault((member["verdict"], member["reason"]), []).append(member)
    sentences = []
    for (verdict, reason), alike in groups.items():
        who = f"{one if len(alike) == 1 else {'face': 'faces', 'person': 'people'}[one]}"
        who = f"{who.capitalize()} {_listed([str(member[one]) for member in alike])}"
        scores = sorted(member["p_fake"] for member in alike if member["p_fake"] is not None)
        if not scores:
            sentences.append(f"{who}: no score, {REASONS.get(reason, (str(reason),))[0]}.")
        else:
            span = f"{scores[0]:.3f}" + (f" to {scores[-1]:.3f}" if len(scores) > 1 else "")
            sentences.append(f"{who}: {WORDS[verdict].lower()}, p_fake {span}.")
    return sentences


def show_cancelled() -> str:
    """Return the page after a request was cancelled."""
    return '<p class="dcl" role="status">Cancelled.</p>'


def show_progress(done: int, total: int | None) -> str:
    """Return the page while a video is read, or a picture, which has no total."""
    words = "Analyzing the picture" if total is None else f"Analyzing the video: {done} of {total} frames"
    how_far = "" if total is None else f' max="{total}" value="{done}"'
    return f'<section class="dcl" role="status"><label>{words}<progress{how_far}></progress></label></section>'


def show_refusal(sentence: str) -> str:
    """Return the page about a file that was refused."""
    if sentence.partition(" ")[0].isalpha():  # and no name of a file
        sentence = sentence[:1].upper() + sentence[1:]
    return (
        '<section class="dcl" aria-label="Result"><div class="dcl-verdict abstained" role="alert">'
        f"<h2>Could not analyze</h2><p>{_escape(sentence)}</p></div></section>"
    )


def show_start(kind: str) -> str:
    """Return the page before there is a file."""
    return f'<p class="dcl">Choose a {kind}, or take an example. The answer appears here.</p>'


def _bar(p_fake: float, result: dict[str, Any]) -> str:
    levels = _levels(result)
    said = ", ".join(f"{name.lower()} {level:.3f}" for name, level in levels.items())
    low, high = min(levels.values()), max(levels.values())
    return (
        f'<div class="dcl-bar" role="img" aria-label="Score {p_fake:.3f} on a scale from 0 to 1; {said}.">'
        f'<i class="dcl-band" style="left:{100 * low:.2f}%;right:{100 * (1 - high):.2f}%"></i>'
        f'<i class="dcl-score" style="width:{100 * p_fake:.2f}%"></i></div>'
        f'<p class="dcl-scale" aria-hidden="true"><span>0</span><span>p_fake {p_fake:.3f}; {said}</span><span>1</span>'
        "</p>"
    )


def _score(member: dict[str, Any]) -> str:
    if member["p_fake"] is None:
        return REASONS.get(member["reason"], (str(member["reason"]),))[0]
    return f"{member['p_fake']:.3f}"


def _listed(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _escape(text: Any) -> str:
    return html.escape(str(text), quote=True)
