"""From an upload to what there is to show of it: the checkpoint's pipeline, and the functions of the API."""

import json
import mimetypes
import re
import secrets
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import torch
import transformers

from web import answers, gate
from web.uploads import UPLOADS, log_failure, uploads

NUM_FRAMES = (8, 16, 32)


class Detector:
    """A checkpoint's pipeline, one request at a time, and what its code offers beside it.

    Args:
        name: folder or id of the checkpoint.
    """

    def __init__(self, name: str):
        cuda = torch.cuda.is_available()
        self.pipe = transformers.pipeline(
            "face-forgery-detection", model=name, trust_remote_code=True, device=0 if cuda else -1
        )
        if not hasattr(self.pipe, "smallest_face"):
            sys.exit(
                f"error: the code in {name} is of an older version, whose results this app cannot show. Bring it up "
                "to date: `DCLForImageClassification.from_pretrained(DIR).save_pretrained(DIR)`."
            )
        self.device = torch.cuda.get_device_name(0) if cuda else "CPU"
        self.InputError = self.pipe.InputError
        self._one = threading.Lock()  # a request that was cancelled may still be in its last step

    def operating_points(self, level: str) -> list[str]:
        """Return the names of the thresholds that a "frame", or a "video" and its frames, can be judged by."""
        calibration = self.pipe.model.config.calibration or {}
        there = [calibration.get(each, {}).get("thresholds", {}) for each in dict.fromkeys(("frame", level))]
        return [name for name in there[-1] if all(thresholds.get(name) is not None for thresholds in there)]

    def events(self, item: Any, **options: Any) -> Iterator[dict[str, Any]]:
        """Yield what `stream` of the pipeline yields, and end what takes too long.

        The model's time is shared step by step: a picture waits for a frame of another one's video, not for all.
        """
        started = time.monotonic()
        limits = {
            "most_pixels": gate.MOST_PIXELS,
            "most_seconds": gate.MOST_SECONDS,
            "most_frames": gate.MOST_FRAMES,
        }
        with closing(self.pipe.stream(item, **limits, **options)) as events:
            while True:
                with self._one:
                    event = next(events, None)
                if event is None:
                    return
                if event["event"] == "progress" and time.monotonic() - started > gate.MOST_REQUEST_SECONDS:
                    raise self.InputError(
                        f"This took longer than {gate.MOST_REQUEST_SECONDS} s: choose fewer frames, or a smaller file."
                    )
                yield event


# ----------------------------------------------------------------------------------------------------------- requests


def options_of(operating_point: Any, threshold: Any) -> dict[str, Any]:
    """Return where verdicts change: at a threshold if there is one, else at an operating point, else by default."""
    if threshold:  # an empty number field sends 0
        return {"threshold": threshold}
    return {} if operating_point in ("default", None) else {"operating_point": operating_point}


@dataclass
class Answer:
    """What there is to show of a result; pictures are paths of files.

    Attributes:
        result: the pipeline's.
        numbers: the same as plain JSON values.
        file: the same as a file.
        gallery: faces, or frames, each with a caption.
        annotated: the picture, or the frame with the highest score, with its faces drawn; None without a frame.
        layers: the picture with evidence and without; None without a score, and of a video.
        times: of the frames, in seconds.
    """

    result: dict[str, Any]
    numbers: dict[str, Any]
    file: str
    gallery: list[tuple[str, str]]
    annotated: str | None = None
    layers: tuple[str, str] | None = None
    times: Sequence[float] = ()


class Requests:
    """Answers to the page and the API; every failure is a sentence, and no file is named in a log.

    Args:
        detector: the checkpoint's.
    """

    def __init__(self, detector: Detector):
        self.detector = detector

    def detect_image(
        self,
        file: gr.FileData,
        operating_point: str | None = "default",
        threshold: float | None = None,
        request: gr.Request = None,
    ) -> tuple[gr.FileData, dict]:  # of what it yields, as Gradio wants it
        """Score each face of a picture, say whether it is flagged as forged, and show which areas led to that.

        Args:
            file: a JPEG, PNG, WebP, BMP or GIF, up to 20 MB and 40 million pixels.
            operating_point: which of the checkpoint's thresholds decides; "default" has an inconclusive range.
            threshold: a number between 0 and 1 that decides in place of the checkpoint's thresholds.
            request: Gradio's.

        Returns:
            The annotated picture, and the result: the verdict ("flagged", "inconclusive", "not_flagged" or
            "abstained") with its sentence, the thresholds, the share of real faces that reach them (`expected_fpr`),
            and for each face its box, p_fake (calibrated, 0 to 1), verdict and evidence.
        """
        yield from self._for_programs("image", file, options_of(operating_point, threshold), request)

    def detect_video(
        self,
        file: gr.FileData,
        num_frames: int = 16,
        operating_point: str | None = "default",
        threshold: float | None = None,
        request: gr.Request = None,
    ) -> tuple[gr.FileData, dict]:
        """Score each person in a video, say whether they are flagged as forged, and show when and where.

        Args:
            file: an MP4, MOV, WebM, MKV or AVI, up to 100 MB and 300 seconds.
            num_frames: how many frames are analyzed, evenly spaced: 8, 16 or 32.
            operating_point: which of the checkpoint's thresholds decides; "default" has an inconclusive range.
            threshold: a number between 0 and 1 that decides in place of the checkpoint's thresholds.
            request: Gradio's.

        Returns:
            The annotated frame with the highest score, and the result: the verdict ("flagged", "inconclusive",
            "not_flagged" or "abstained") with its sentence, the thresholds, the share of real videos that reach them
            (`expected_fpr`), and for each person the mean p_fake, the moments worth a look, and every frame.
        """
        options = {"num_frames": num_frames, **options_of(operating_point, threshold)}
        yield from self._for_programs("video", file, options, request)

    def _for_programs(self, kind: str, *asked: Any) -> Iterator[tuple[Any, Any]]:
        for step in self.answer(kind, *asked):
            if isinstance(step, Answer):
                yield step.annotated and gr.FileData(path=step.annotated).model_dump(), step.numbers
            elif isinstance(step, str):
                raise gr.Error(step, title="Could not analyze", print_exception=False)
            else:
                yield None, None

    def answer(
        self, kind: str, file: Any, options: dict[str, Any], request: gr.Request | None
    ) -> Iterator[Answer | str | tuple[int, int | None]]:
        """Yield progress, as what is done of how many frames, and at last an answer, or a sentence that refuses.

        Args:
            kind: "image" or "video".
            file: what a client sent as its upload.
            options: of the pipeline's `stream`.
            request: Gradio's.
        """
        path = Path(file["path"]) if isinstance(file, dict) and isinstance(file.get("path"), str) else None
        folder = UPLOADS / f"answer-{secrets.token_urlsafe(16)}"
        try:
            if file is None:
                raise self.detector.InputError("There is no file yet: choose one, or take an example.")
            if path is None:
                raise self.detector.InputError("Not an uploaded file: upload one, and send what the API describes.")
            if not uploads.owns(path):
                raise self.detector.InputError("This upload was deleted, as all are soon after use: choose it again.")
            yield from (self._picture if kind == "image" else self._video)(path, folder, **options)
        except self.detector.InputError as error:
            # The user knows the file by its name only, and cannot change the limits.
            yield re.sub(r", or raise most_\w+", "", str(error).replace(str(path), path.name if path else ""))
        except Exception as error:
            log_failure("a request", error)
            yield "The analysis failed for an unknown reason. Try another file."
        finally:
            if path is not None:
                uploads.done(path, getattr(request, "session_hash", None), kind, folder)

    def _picture(self, file: Path, folder: Path, **where: Any) -> Iterator[Any]:
        self._check_kind(file, "picture")
        if file.stat().st_size > gate.MOST_PICTURE_BYTES:
            raise self.detector.InputError(
                f"{file} has more than {gate.MOST_PICTURE_BYTES >> 20} MB: make it smaller."
            )
        pipe = self.detector.pipe
        picture = pipe.read_picture(file, gate.MOST_PIXELS)
        # The pipeline reads the file itself: only then it can note what was converted or left out.
        for event in self.detector.events(file, **where):
            if event["event"] == "progress":
                yield event["done"], event["total"]
                continue
            result = {**event["result"], "name": file.name}
            shown = answers.small(picture, answers.SHOWN_SIDE)
            save, annotate = partial(_save, folder), pipe.annotate
            layers = None
            if any(face["p_fake"] is not None for face in result["faces"]):
                evidence = answers.draw(annotate, shown, result, answers.EVIDENCE)
                layers = save("evidence", evidence), save("picture", shown)
            yield Answer(
                result,
                numbers := pipe.to_json(result, evidence=True),
                _save_json(folder, numbers),
                [
                    (save(f"face_{number}", face), caption)
                    for number, (face, caption) in enumerate(answers.cut_faces(picture, result["faces"]), start=1)
                ],
                save("annotated", answers.draw(annotate, shown, result, 0)),
                layers,
            )

    def _video(self, file: Path, folder: Path, num_frames: Any, **where: Any) -> Iterator[Any]:
        if str(num_frames) not in map(str, NUM_FRAMES):
            raise self.detector.InputError(f"num_frames is {num_frames!r}: choose one of {NUM_FRAMES}.")
        self._check_kind(file, "video")
        pipe, frames = self.detector.pipe, {}
        for event in self.detector.events(file, num_frames=int(num_frames), **where):
            if event["event"] == "progress":
                if event["image"] is not None:
                    frames[event["frame"]] = answers.small(event["image"], answers.FRAME_SIDE)
                yield event["done"], event["total"]
                continue
            result = {**event["result"], "name": file.name}
            drawn = answers.draw_frames(pipe.annotate, frames, result)
            times = [time for time, _, _ in drawn]
            moments = [moment for person in result["people"] for moment in person["moments"][:1]]
            highest = max(moments, key=lambda moment: moment["p_fake"], default={"time": 0})["time"]
            start = answers.nearest(times, [highest])
            gallery = [(_save(folder, f"frame_{time:.2f}_s", image), caption) for time, image, caption in drawn]
            numbers = pipe.to_json(result)
            annotated = gallery[start][0] if gallery else None
            yield Answer(result, numbers, _save_json(folder, numbers), gallery, annotated, None, times)

    def _check_kind(self, file: Path, wanted: str) -> None:
        """Refuse a file whose content is not what is wanted, or not what its name says."""
        found = self.detector.pipe.file_kind(file)
        found = found if found == "video" else "picture" if found.isupper() else found
        if wanted == "picture" and found == "video":
            raise self.detector.InputError(f"{file} is a video: open it in the Video tab.")
        if wanted == "video" and found == "picture":
            raise self.detector.InputError(f"{file} is a picture: open it in the Picture tab.")
        if wanted == "video" and found != "video":
            what = "no video" if found == "no picture" else found
            raise self.detector.InputError(f"{file} is {what}: choose a video, such as an MP4, MOV, WebM, MKV or AVI.")
        named = (mimetypes.guess_type(file.name)[0] or "").partition("/")[0].replace("image", "picture")
        if {found, named} == {"picture", "video"}:
            raise self.detector.InputError(f"{file} is a {found}, but its name is that of a {named}: rename it.")


def _save(folder: Path, name: str, image: Any) -> str:
    """Write a picture without metadata, and return its path."""
    folder.mkdir(exist_ok=True)
    image.save(path := folder / f"{name}.webp", quality=88, method=2)
    return str(path)


def _save_json(folder: Path, numbers: dict[str, Any]) -> str:
    folder.mkdir(exist_ok=True)
    (path := folder / "result.json").write_text(json.dumps(numbers, indent=1))
    return str(path)
