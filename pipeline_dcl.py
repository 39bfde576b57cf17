"""The pipeline `face-forgery-detection`: finds the faces of images and videos and gives verdicts.

    detect = pipeline("face-forgery-detection", model=FOLDER_OR_ID, trust_remote_code=True)
    result = detect("photograph.jpg")
    detect.annotate("photograph.jpg", result)  # a PIL image; for a video, frames or an MP4
    detect.crops("photograph.jpg")  # the face crops that the model gets
    for event in detect.stream(["holiday/", "interview.mp4"]): ...

The checkpoint contains all settings: how faces are cut, the calibration, the thresholds, and the limits beyond which a
face gets no score.

`media_dcl.py` opens images and videos, `decision_dcl.py` decides verdicts, `drawing_dcl.py` draws them, and
`detect.to_json(result)` converts a result to plain JSON values.

Long because a transformers pipeline is one class, and remote code should be few files.
"""

import copy
import threading
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Pipeline, PreTrainedModel

from .abstention_dcl import (
    NOT_FINITE,
    FaceQuality,
    by_embedding,
    check_dimension,
    distances,
    measure_face,
    reason_to_abstain,
    smallest_face,
)
from .configuration_dcl import CUSTOM_PIPELINES
from .decision_dcl import (
    ABSTAINED,
    OPERATING_POINTS,
    Rule,
    abstain,
    calibrate,
    picture_result,
    slope_and_offset,
    to_json,
    video_result,
)
from .drawing_dcl import annotate_frames, annotate_picture, annotate_video
from .errors_dcl import InputError, is_count, is_number, reason
from .faces_dcl import YUNET_FILE, YUNETS, Face, crop_transform, cut, find_yunet, go_on, map_points, why_not_cut
from .hub_dcl import file_of_checkpoint, find_dcl_checkpoint
from .image_processing_dcl import DCLImageProcessor
from .media_dcl import MOST_PIXELS, each_of, file_kind, is_several, name_of, opened, read_picture
from .modeling_dcl import (
    REFERENCE_FEATURES,
    REFERENCE_FILE,
    DCLForImageClassification,
    ReferenceNetwork,
    find_reference,
)
from .onnx_dcl import GRAPH, OnnxClassifier
from .video_dcl import Video, evenly_spaced

try:  # drawing and finding faces need it, and report if it is missing
    import cv2
except ImportError:
    cv2 = None

BACKENDS = ("torch", "onnx")
_GAP = 3  # analyzed frames that a person may be missing
_PASSED = 32  # frames decoded on the way to a wanted one between two progress events, at which the caller can stop
#: Mean difference (of 255) of the thumbnails of two frames above which a new scene begins. Within the four seconds of
#: the talking face it is at most 22. Between images of two people it is 17 to 65; 4 of 66 pairs are below 25.
_CUT = 25.0


@dataclass(frozen=True)
class DetectionOptions:
    """Options of detection, for the pipeline or for a single call.

    Attributes:
        num_frames: frames of each video to analyze at most, evenly spaced.
        batch_size: faces per forward pass, from one or several files. None: 4 on a CPU, where larger batches are
            slower (their feature maps exceed what malloc keeps, so memory is paged in each time), otherwise 16.
        operating_point: the threshold of the checkpoint to use, a name of `OPERATING_POINTS`. None: "eer" if the
            checkpoint has it, otherwise 0.5; each sentence then says so.
        threshold: a number in (0, 1) that replaces the thresholds and the inconclusive range of the checkpoint, for
            faces and for people.
        abstain: whether faces that are too small, too blurred, turned too far, or unlike the training data get no
            score.
        allow_urls: whether http and https addresses are fetched.
        most_pixels: larger images and frames are rejected before they are decoded.
        most_seconds: longer videos are rejected; None: no limit.
        most_frames: videos with more frames are rejected; None: no limit.
        largest_only: whether to analyze only the largest face of each image or frame.

    Raises:
        InputError: if a value is out of range.
    """

    num_frames: int = 32
    batch_size: int | None = None
    operating_point: str | None = None
    threshold: float | None = None
    abstain: bool = True
    allow_urls: bool = False
    most_pixels: int = MOST_PIXELS
    most_seconds: float | None = None
    most_frames: int | None = None
    largest_only: bool = False

    def __post_init__(self):
        for name in ("num_frames", "batch_size", "most_pixels", "most_frames"):
            value = getattr(self, name)
            if not is_count(value, least=1) and not (name in ("batch_size", "most_frames") and value is None):
                raise InputError(f"{name} is {value!r}. Choose a whole number, at least 1.")
        if self.operating_point not in (None, *OPERATING_POINTS):
            raise InputError(
                f"operating_point is {self.operating_point!r}. Choose one of {', '.join(OPERATING_POINTS)}."
            )
        if self.threshold is not None and not (is_number(self.threshold) and 0 < self.threshold < 1):
            raise InputError(f"threshold is {self.threshold!r}. Choose a number between 0 and 1, or None.")
        if self.threshold is not None and self.operating_point is not None:
            raise InputError(
                f"threshold is {self.threshold!r} and operating_point is {self.operating_point!r}. Pass one of them."
            )
        if self.most_seconds is not None and not (is_number(self.most_seconds) and self.most_seconds > 0):
            raise InputError(f"most_seconds is {self.most_seconds!r}. Choose a number above 0, or None.")
        for name in ("abstain", "allow_urls", "largest_only"):
            if not isinstance(value := getattr(self, name), bool):
                raise InputError(f"{name} is {value!r}. Choose True or False.")

    def changed(self, changes: dict[str, Any]) -> "DetectionOptions":
        """Return these options with some changed.

        Raises:
            InputError: if there is no such option, or a value is out of range.
        """
        known = [each.name for each in fields(self)]
        for name in changes:
            if name not in known:
                raise InputError(f"Unknown option {name!r}. Choose from {', '.join(known)}.")
        for name, other in (("threshold", "operating_point"), ("operating_point", "threshold")):
            if changes.get(name) is not None and other not in changes:
                changes = {**changes, other: None}
        return replace(self, **changes)


@dataclass
class _Found:
    """A face that waits for the model."""

    record: dict[str, Any]
    who: str
    pixels: np.ndarray
    quality: FaceQuality
    subject: "_Subject"


@dataclass
class _Step:
    """Progress in reading an image or video, and the faces found since the last step."""

    done: int
    total: int | None  # None for an image
    faces: list[_Found] = field(default_factory=list)
    frame: int | None = None
    image: np.ndarray | None = None


@dataclass
class _Subject:
    """An image or video in the pipeline."""

    name: str | None
    rule: Rule | None = None  # for the verdict
    waiting: int = 0  # faces without a model output yet
    read: bool = False
    result: dict[str, Any] = field(default_factory=dict)
    people: "_People | None" = None
    error: str | None = None


@dataclass
class _Person:
    box: np.ndarray
    step: int  # when the face was last seen
    frames: list[dict[str, Any]] = field(default_factory=list)


class _People:
    """Links the faces in the frames of a video to people, by position within a scene."""

    def __init__(self):
        self.all: list[_Person] = []
        self._step = 0
        self._thumbnail: np.ndarray | None = None
        self._scene_began = 0

    def follow(self, image: np.ndarray, boxes: list[np.ndarray]) -> list[_Person]:
        """Return the person of each face of the next frame, given their boxes."""
        thumbnail = cv2.resize(image, (16, 9), interpolation=cv2.INTER_AREA).astype(np.float32)
        if self._thumbnail is not None and np.abs(thumbnail - self._thumbnail).mean() > _CUT:
            self._scene_began = self._step
        self._thumbnail = thumbnail
        there = [p for p in self.all if p.step >= max(self._scene_began, self._step - _GAP)]
        found = []
        for box, place in zip(boxes, go_on(boxes, [person.box for person in there]), strict=True):
            person = _Person(box, self._step) if place is None else there[place]
            person.box, person.step = box, self._step
            if place is None:
                self.all.append(person)
            found.append(person)
        self._step += 1
        return found


class FaceForgeryDetectionPipeline(Pipeline):
    """Finds the faces of images and videos, and gives each a verdict, a calibrated probability and an evidence map.

    `pipeline("face-forgery-detection", model=FOLDER_OR_ID, trust_remote_code=True)` runs the code in the checkpoint;
    `from_pretrained` runs the code of this package. Call the pipeline to detect, `stream` for progress, `annotate` to
    draw a result, and `crops` for the face crops.

    Args:
        model: a `DCLForImageClassification` or an `OnnxClassifier`.
        *args: as for `Pipeline`.
        backend: "torch", or "onnx" to run a graph in the same folder on the CPU instead of the weights.
        graph: the file name of the graph, such as `model_int8.onnx`.
        **kwargs: as for `Pipeline`, including `image_processor`, and fields of `DetectionOptions`.

    Attributes:
        options: the default options of calls. `image_processor.crop` says how faces are cut.

    Raises:
        InputError: if an option is invalid, the face detector is missing, or the checkpoint does not say how to cut
            faces or contains statistics that do not fit its features.
    """

    # Users who have only the code of the checkpoint get these with the pipeline.
    InputError = InputError
    file_kind, read_picture, to_json = staticmethod(file_kind), staticmethod(read_picture), staticmethod(to_json)

    _load_processor = False
    _load_image_processor = True
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(
        self,
        model: PreTrainedModel | OnnxClassifier,
        *args: Any,
        backend: str = "torch",
        graph: str = GRAPH,
        **kwargs: Any,
    ):
        known = {each.name for each in fields(DetectionOptions)}
        self.options = DetectionOptions(**{name: kwargs.pop(name) for name in known & kwargs.keys()})
        if backend not in BACKENDS:
            raise InputError(f"backend is {backend!r}. Choose one of {', '.join(BACKENDS)}.")
        if graph != GRAPH and backend != "onnx":
            raise InputError(f"graph is {graph!r}, but the backend is {backend}. Choose the backend onnx.")
        if backend == "onnx" and isinstance(model, PreTrainedModel):
            model = OnnxClassifier.from_pretrained(
                model.name_or_path, graph, revision=getattr(model.config, "_commit_hash", None)
            )
        if not isinstance(model, PreTrainedModel):
            kwargs["device"] = "cpu"
        # `pipeline()` replaces names by classes, which cannot be saved in config.json.
        others = getattr(model.config, "custom_pipelines", None) or {}
        model.config.custom_pipelines = {**others, **copy.deepcopy(CUSTOM_PIPELINES)}
        super().__init__(model, *args, **kwargs)
        if isinstance(model, PreTrainedModel):
            model.eval()
        self._crop = self._checked_crop()
        self._reference = self._load_reference()
        found = file_of_checkpoint(YUNET_FILE, *_origin(model))
        self._detector = YUNETS[self._crop["detector"]](found or find_yunet())
        self._detecting = threading.Lock()  # YuNet stores the image size

    @classmethod
    def from_pretrained(
        cls, name: str | Path, backend: str = "torch", device: str | None = None, graph: str = GRAPH, **options: Any
    ) -> "FaceForgeryDetectionPipeline":
        """Load a checkpoint, or an export of `dcl-export`, with the code of this package.

        Args:
            name: the folder, or the id on the Hub.
            backend: "torch" runs the weights, "onnx" a graph.
            device: such as cpu, cuda:1 or mps; None: the fastest available.
            graph: the file name of the graph, such as `model_int8.onnx`.
            **options: fields of `DetectionOptions`.

        Returns:
            The pipeline.

        Raises:
            InputError: if there is no such checkpoint or device, or an option is invalid.
        """
        name = str(name)
        if backend not in BACKENDS:
            raise InputError(f"backend is {backend!r}. Choose one of {', '.join(BACKENDS)}.")
        find_dcl_checkpoint(name, backend)
        if device is not None:
            try:
                torch.zeros(1, device=device).item()
            except Exception as error:  # RuntimeError, AssertionError or others, by the kind of device
                raise InputError(f"Device {device!r} is not available. Choose another one, such as cpu.") from error
        try:
            processor = DCLImageProcessor.from_pretrained(name)
            model = (
                OnnxClassifier.from_pretrained(name, graph)
                if backend == "onnx"
                else DCLForImageClassification.from_pretrained(name)
            )
        except InputError:
            raise
        except Exception as error:  # of reading the files, or of their content
            raise InputError(
                f"Model {name!r} cannot be loaded ({reason(error)}). Copy or download the checkpoint again."
            ) from error
        return cls(model, backend=backend, graph=graph, image_processor=processor, task=TASK, device=device, **options)

    @property
    def smallest_face(self) -> int:
        """Long side in pixels of the smallest face that gets a score."""
        return smallest_face(self.image_processor.crop)

    @property
    def _name(self) -> str:
        """The name of the checkpoint in errors."""
        return name_of(self.model) or "the checkpoint"

    def _checked_crop(self) -> dict[str, Any]:
        """Return how to cut faces, after checking that the image processor gives valid model input."""
        crop = getattr(self.image_processor, "crop", None)
        if why := why_not_cut(crop):
            raise InputError(
                f"Faces cannot be cut for {self._name}: {why}. Use pipeline('image-classification') on face crops, or "
                "train on data that dcl-prepare cut with YuNet."
            )
        size = self.model.config.image_size
        try:
            made = self.preprocess([np.zeros((crop["size"], crop["size"], 3), np.uint8)])["pixel_values"]
            fits = tuple(made.shape) == (1, 3, size, size) and bool(torch.isfinite(made).all())
        except Exception as error:  # settings can cause any error
            raise InputError(
                f"The preprocessor_config.json of {self._name} is invalid ({reason(error)}). Save it again."
            ) from error
        if not fits:
            raise InputError(
                f"The preprocessor_config.json of {self._name} gives input of shape {tuple(made.shape)}, but "
                f"the model takes finite numbers of shape (1, 3, {size}, {size}). Use the file saved with the model."
            )
        return dict(crop)

    def _load_reference(self) -> ReferenceNetwork | None:
        """Return the network whose features measure distances; None if there are no statistics or of embeddings."""
        channels = REFERENCE_FEATURES
        if embedding := by_embedding(self._familiarity):
            channels = (
                self.model.dcl.geometry.channels if isinstance(self.model, PreTrainedModel) else self.model.channels
            )
        try:
            check_dimension(self._familiarity, channels)
        except ValueError as error:
            raise InputError(
                f"The config.json of {self._name} is of another model: {error} Download the checkpoint again."
            ) from error
        if embedding or (self._familiarity or {}).get("statistics") is None:
            return None
        path = find_reference(*_origin(self.model))
        if path is None:
            raise InputError(
                f"{self._name} has no {REFERENCE_FILE}, which detects faces unlike the training data. Download the "
                "checkpoint again, with all its files."
            )
        return ReferenceNetwork(path).to(self.device)

    # ------------------------------------------------------------------------------------------------ public methods

    def __call__(self, inputs: Any, **options: Any) -> dict[str, Any] | list[dict[str, Any]]:
        """Detect forged faces in an image or video, or in several.

        Args:
            inputs: the path of an image, video or folder; an http or https address, with `allow_urls`; the bytes of an
                image or video file, or a file object opened in binary mode, which is read from the beginning; a
                `PIL.Image`; an RGB array (height, width, 3) or tensor (3, height, width), uint8 or floats in [0, 1];
                a stack of those, (N, height, width, 3) or (N, 3, height, width); or a list of any of these.
            **options: fields of `DetectionOptions` to change for this call.

        Returns:
            For one image, `{"kind": "image", "name", "width", "height", "notes", "verdict", "sentence", "threshold",
            "operating_point", "band", "expected_fpr", "faces"}`. The verdict is "flagged" (at or above the threshold),
            "inconclusive" (within the band), "not_flagged", or "abstained"; see `Rule`. Each face has `"box"` (left,
            top, right, bottom in pixels), `"p_fake"` in [0, 1] or None, `"verdict"`, `"sentence"`, `"reason"` if
            it has no score, and `"evidence"`, float32 (h, w), the contribution of each cell to the logit of `p_fake`.

            For one video, `"people"` instead of `"faces"`. Each person has a verdict, the mean `"p_fake"`,
            `"moments"`, and `"frames"`, which are records like those of faces.

            For a folder, list or stack, a list with one result per input, in order. Inputs that cannot be read give
            `{"kind": "error", "name", "sentence"}`.

        Raises:
            InputError: if an option is invalid, or a single input cannot be read.
        """
        several = is_several(inputs)
        results = [result for event in self.stream(inputs, **options) if (result := result_of(event)) is not None]
        return results if several else results[0]

    def stream(self, inputs: Any, **options: Any) -> Iterator[dict[str, Any]]:
        """Detect as a call does, and yield progress and results as they come.

        Closing the iterator frees all resources.

        Args:
            inputs: as for `__call__`. A list may be any iterable; it is read as needed.
            **options: as for `__call__`.

        Yields:
            `{"event": "progress", "name", "done", "total", "frame", "image"}` after each frame of a video, with its
            number and pixels (RGB, uint8 (height, width, 3), upright). Frame and image are None if a frame could not
            be read, and for events in between: on the way to the next frame, or while the faces of an image, whose
            total is None, are analyzed. For each input, in order, `{"event": "result", "result"}` or, in a list or
            folder, `{"event": "error", "name", "sentence"}`.

        Raises:
            InputError: if an option is invalid, or a single input cannot be read, or is a video and the checkpoint has
                no such threshold for videos.
        """
        chosen = self.options.changed(options)
        if chosen.batch_size is None:
            chosen = replace(chosen, batch_size=4 if self.device.type == "cpu" else 16)
        rule = self._rule("frame", chosen)
        several = is_several(inputs)
        return self._stream(each_of(inputs) if several else iter([inputs]), several, rule, chosen)

    def annotate(
        self,
        inputs: Any,
        result: dict[str, Any],
        output: str | Path | None = None,
        *,
        frames: Collection[int] | None = None,
        evidence: float = 0.4,
        **options: Any,
    ) -> Image.Image | list[Image.Image] | Path:
        """Draw a result on a copy of its image or video: boxes, verdicts, and the evidence of faces with a score.

        In an annotated video, boxes and evidence are interpolated between analyzed frames if the person is found in
        both. The output has no sound.

        Args:
            inputs: the image or video of the result, in any form that a call takes.
            result: from this pipeline, or read from its JSON, which has evidence only if `to_json` kept it.
            output: for a video, the path of an MP4 for all frames, annotated.
            frames: for a video, the numbers of the frames to draw; None: the moments of each person.
            evidence: opacity of the evidence in [0, 1]; 0 draws none.
            **options: `most_pixels` and `allow_urls` of `DetectionOptions`, if they differ from the defaults.

        Returns:
            For an image, the annotated copy. For a video, a list of frames: those of `frames`, or the moments of each
            person (without a score, the frame with the largest face). With `output`, its path.

        Raises:
            InputError: if an argument is invalid, the input cannot be read or does not belong to the result, or the
                output cannot be written.
        """
        if others := options.keys() - {"most_pixels", "allow_urls"}:
            raise InputError(f"annotate has no option {min(others)!r}. Pass only most_pixels and allow_urls.")
        if output is not None and frames is not None:
            raise InputError("output writes all frames of the video. Pass either frames or output.")
        chosen = self.options.changed(options)
        if not (is_number(evidence) and 0 <= evidence <= 1):
            raise InputError(f"evidence is {evidence!r}. Choose an opacity in [0, 1].")
        kind = result.get("kind") if isinstance(result, Mapping) else None
        if is_several(inputs) or kind not in ("image", "video"):
            what = "of a file that could not be read" if kind == "error" else f"a {type(result).__name__}"
            raise InputError(
                "annotate takes one image or video. Call it for each input and its result."
                if is_several(inputs)
                else f"The result is {what}. Pass the result of the pipeline for this image or video."
            )
        with opened(inputs, chosen.most_pixels, chosen.allow_urls) as found:
            is_film = isinstance(found, Path)
            if is_film != (kind == "video"):
                names = {True: "a video", False: "an image"}
                raise InputError(
                    f"The result is of {names[not is_film]}, but the input is {names[is_film]}. Pass its own result."
                )
            if not is_film:
                if output is not None or frames is not None:
                    raise InputError("output and frames are only for videos. Save the returned image with its save().")
                return annotate_picture(found.pixels, result, evidence)
            with Video(found, most_pixels=chosen.most_pixels) as video:
                if output is None:
                    return annotate_frames(video, result, frames, evidence)
                return annotate_video(video, result, output, evidence)

    def crops(self, inputs: Any, **options: Any) -> list[Image.Image] | list[list[Image.Image]]:
        """Cut out the faces of an image or video as the image processor of the checkpoint takes them.

        Processor and model give each crop the same `p_fake_raw`, and `model.p_fake` the same `p_fake`, as a call.
        Faces without a score are included.

        Args:
            inputs: one image or video, in any form that a call takes.
            **options: as for a call.

        Returns:
            RGB PIL images of the size of the training crops, also valid for `pipeline("image-classification")`. For an
            image, one for each of `result["faces"]`; for a video, a list for each of `result["people"]`, with one for
            each of its `frames`.

        Raises:
            InputError: if an option is invalid, or the input cannot be read.
        """
        if is_several(inputs):
            raise InputError("crops takes one image or video. Call it for each input.")
        chosen = self.options.changed({**options, "abstain": False})
        subject = _Subject(name_of(inputs), self._rule("frame", chosen))
        steps = self._look(inputs, subject, chosen)
        cut_out = {id(face.record): Image.fromarray(face.pixels) for step in steps for face in step.faces}
        result = _event(subject)["result"]
        if result["kind"] == "image":
            return [cut_out[id(face)] for face in result["faces"]]
        return [[cut_out[id(face)] for face in person["frames"]] for person in result["people"]]

    # -------------------------------------------------------------------------------------------------- inputs in turn

    def _stream(
        self, inputs: Iterator[Any], several: bool, rule: Rule, options: DetectionOptions
    ) -> Iterator[dict[str, Any]]:
        subjects: deque[_Subject] = deque()
        faces: list[_Found] = []  # of the last subjects, less than a batch
        for item in inputs:
            subject = _Subject(name_of(item), rule)
            subjects.append(subject)
            try:
                for step in self._look(item, subject, options):
                    subject.waiting += len(step.faces)
                    faces += step.faces
                    while len(faces) >= options.batch_size:
                        self._judge(faces[: options.batch_size], options)
                        del faces[: options.batch_size]
                        if len(faces) >= options.batch_size:
                            yield _progress(subject, step, seen=False)
                    if step.total is not None:
                        yield _progress(subject, step)
            except InputError as error:
                if not several:
                    raise
                subject.error = str(error)
                subject.waiting = 0
                faces = [face for face in faces if face.subject is not subject]
            subject.read = True
            if len(subjects) > options.batch_size:  # images without a face wait behind one with a face
                self._judge(faces, options)
                faces = []
            while subjects and subjects[0].read and not subjects[0].waiting:
                yield _event(subjects.popleft())
        self._judge(faces, options)
        for subject in subjects:
            yield _event(subject)

    def _look(self, item: Any, subject: _Subject, options: DetectionOptions) -> Iterator[_Step]:
        """Read one input, and yield the faces as they are found."""
        with opened(item, options.most_pixels, options.allow_urls) as found:
            if isinstance(found, Path):
                yield from self._look_at_video(found, subject, options)
                return
            image = found.pixels
            subject.result = {
                "kind": "image",
                "name": subject.name,
                "width": image.shape[1],
                "height": image.shape[0],
                "notes": list(found.notes),
            }
            faces = self._detect(image, options)
            subject.result["faces"] = [{"face": number} for number in range(1, len(faces) + 1)]
            prepared = [
                self._prepared(image, face, record, f"Face {record['face']}", subject, options)
                for face, record in zip(faces, subject.result["faces"], strict=True)
            ]
            yield _Step(0, None, [face for face in prepared if face is not None])

    def _look_at_video(self, path: Path, subject: _Subject, options: DetectionOptions) -> Iterator[_Step]:
        subject.rule = self._rule("video", options)  # raises if the checkpoint has no such threshold for videos
        with Video(path, most_pixels=options.most_pixels, most_frames=options.most_frames) as video:
            if options.most_seconds is not None and video.duration > options.most_seconds:
                raise InputError(
                    f"{path} lasts {video.duration:.1f} s, more than {options.most_seconds:g} s. Cut it, or raise "
                    "most_seconds."
                )
            numbers = evenly_spaced(len(video.numbers), options.num_frames)
            subject.people, step, passed, frames_read, error = _People(), _Step(0, len(numbers)), 0, 0, None
            width = height = 0  # of the first frame; the size may change later
            for number, image in video.walk(numbers):
                if image is None:
                    passed += 1
                    if passed % _PASSED == 0:
                        yield _Step(step.done, step.total)
                    continue
                step = _Step(step.done + 1, step.total)
                if isinstance(image, InputError):
                    error = image
                else:
                    frames_read += 1
                    if frames_read == 1:
                        height, width = image.shape[:2]
                    scale = np.float32([width / image.shape[1], height / image.shape[0]])
                    faces, found = self._detect(image, options, small_faces=False), []
                    boxes = [face.box * np.tile(scale, 2) for face in faces]
                    for face, person in zip(faces, subject.people.follow(image, boxes), strict=True):
                        record = {"frame": number, "time": video.time(number)}
                        person.frames.append(record)
                        who = f"The face at {record['time']:.2f} s"
                        found.append(self._prepared(image, face, record, who, subject, options, scale))
                    step.faces = [face for face in found if face is not None]
                    step.frame, step.image = number, _resized(image, (width, height))
                yield step
            if not frames_read:
                raise error
            notes = list(video.notes)
            if video.breaks_off:
                notes.append("The video is truncated; only the readable part was analyzed.")
            if frames_read < len(numbers):
                notes.append(f"Only {frames_read} of {len(numbers)} frames could be read.")
            subject.result = {
                "kind": "video",
                "name": subject.name,
                "width": width,
                "height": height,
                "duration": video.duration,
                "frame_rate": len(video.numbers) / video.duration if video.duration else None,
                "frames_wanted": len(numbers),
                "frames_read": frames_read,
                "notes": notes,
            }

    def _detect(self, image: np.ndarray, options: DetectionOptions, small_faces: bool = True) -> list[Face]:
        with self._detecting:
            faces = self._detector.detect(image, small_faces)
        return faces[:1] if options.largest_only else faces

    def _prepared(
        self,
        image: np.ndarray,
        face: Face,
        record: dict[str, Any],
        who: str,
        subject: _Subject,
        options: DetectionOptions,
        scale: np.ndarray | float = 1.0,
    ) -> _Found | None:
        """Cut out a face and fill its record; returns None if it gets no score.

        The coordinates in the record are those in the image times `scale` (x, y).
        """
        size = self._crop["size"]
        transform = crop_transform(face, self._crop)
        back = np.linalg.inv(np.vstack([transform, [0, 0, 1]]))[:2]
        corners = np.array([[0, 0], [size, 0], [size, size], [0, size]])
        record |= {
            "box": (face.box.reshape(2, 2) * scale).reshape(4).tolist(),
            "detection_score": float(face.score),
            "p_fake": None,
            "p_fake_raw": None,
            "verdict": ABSTAINED,
            "sentence": "",
            "reason": None,
            "evidence": None,
            "evidence_box": (map_points(corners, back) * scale).tolist(),
        }
        pixels = cut(image, transform, size)
        quality = measure_face(pixels, face, transform)
        if options.abstain:  # reasons that need no model
            abstention = reason_to_abstain(quality, None, self._familiarity)
            if abstention is not None:
                abstain(record, who, abstention)
                return None
        return _Found(record, who, pixels, quality, subject)

    @property
    def _familiarity(self) -> dict[str, Any] | None:
        return getattr(self.model.config, "familiarity", None)

    def _judge(self, faces: list[_Found], options: DetectionOptions) -> None:
        """Run the model on faces, and write its output into their records."""
        if not faces:
            return
        crops = [face.pixels for face in faces]
        judged = self.postprocess(self.forward(self.preprocess(crops)))
        familiarity = self._familiarity
        far: Any = [None] * len(faces)
        if options.abstain and familiarity is not None:
            features = judged["embedding"] if self._reference is None else self._reference(crops)
            far = distances(features, familiarity)
        for index, face in enumerate(faces):
            face.subject.waiting -= 1
            if options.abstain:
                distance = None if far[index] is None else float(far[index])
                abstention = reason_to_abstain(face.quality, distance, familiarity)
                if abstention is not None:
                    abstain(face.record, face.who, abstention)
                    continue
            p_fake = float(judged["p_fake"][index])
            if not np.isfinite(p_fake):
                abstain(face.record, face.who, NOT_FINITE)
                continue
            face.record |= {
                "p_fake": p_fake,
                "p_fake_raw": float(judged["p_fake_raw"][index]),
                "evidence": judged["evidence"][index],
            }

    def _rule(self, level: str, options: DetectionOptions) -> Rule:
        return Rule.of(self.model.config.calibration, level, options.operating_point, options.threshold)

    # ------------------------------------------------------------------------------------------- steps of a `Pipeline`

    def _sanitize_parameters(self, **parameters: Any) -> tuple[dict, dict, dict]:
        if parameters:
            DetectionOptions().changed(parameters)
        return {}, {}, {}

    def preprocess(self, crops: list[np.ndarray]) -> dict[str, torch.Tensor]:
        """Convert face crops, uint8 (size, size, 3), to one batch of model input."""
        return {
            "pixel_values": self.image_processor(crops, return_tensors="pt", disable_grouping=False)["pixel_values"]
        }

    def _forward(self, inputs: dict[str, torch.Tensor]) -> Any:
        return self.model(inputs["pixel_values"])

    def postprocess(self, outputs: Any) -> dict[str, np.ndarray]:
        """Convert model output to arrays: `p_fake` and `p_fake_raw` (N,), `evidence` (N, h, w), `embedding`.

        The evidence is the contribution of each cell to the logit of `p_fake`; the logit is its mean over the cells.
        """
        logits, shares = outputs["logits"].double().numpy(), outputs["evidence"].double().numpy()
        margins = logits[:, 1] - logits[:, 0]
        slope, offset = slope_and_offset(self.model.config.calibration)
        shares += (margins - shares.mean((1, 2)))[:, None, None]  # add the biases, which the model leaves out
        return {
            "p_fake": self.model.p_fake(outputs["logits"]).numpy(),
            "p_fake_raw": calibrate(margins, None),
            "evidence": (slope * shares + offset).astype(np.float32),
            "embedding": outputs["embedding"].float().numpy(),
        }


TASK = next(iter(CUSTOM_PIPELINES))

# ------------------------------------------------------------------------------------------------------- checkpoints


def _origin(model: Any) -> tuple[str, str | None]:
    """Return the folder or repository of a model, and its commit."""
    if isinstance(model, PreTrainedModel):
        return model.name_or_path, getattr(model.config, "_commit_hash", None)
    return str(model.path.parent), None


# ------------------------------------------------------------------------------------------------------------ results


def _progress(subject: _Subject, step: _Step, seen: bool = True) -> dict[str, Any]:
    return {
        "event": "progress",
        "name": subject.name,
        "done": step.done,
        "total": step.total,
        "frame": step.frame if seen else None,
        "image": step.image if seen else None,
    }


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return an image, RGB, uint8 (height, width, 3), at a size (width, height)."""
    return image if image.shape[1::-1] == size else cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _event(subject: _Subject) -> dict[str, Any]:
    if subject.error is not None:
        return {"event": "error", "name": subject.name, "sentence": subject.error}
    result = subject.result
    if result["kind"] == "image":
        return {"event": "result", "result": picture_result(result, subject.rule)}
    people = [person.frames for person in subject.people.all]
    return {"event": "result", "result": video_result(result, people, subject.rule)}


def result_of(event: dict[str, Any]) -> dict[str, Any] | None:
    """Return the result in an event of `stream`; None for progress. Errors give a result of kind "error"."""
    if event["event"] == "error":
        return {"kind": "error", "name": event["name"], "sentence": event["sentence"]}
    return event.get("result")
