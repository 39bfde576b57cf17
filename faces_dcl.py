"""Find faces and cut them out: one way, for preparing training data and for detection.

Geometry is kept as one affine matrix from the photograph to the crop, so that images, masks and landmarks of a face
go through the same transform. Coordinates are continuous: pixel (0, 0) covers the square from (0, 0) to (1, 1).
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from huggingface_hub import hf_hub_download

from .checks_dcl import abridged, is_count, is_number
from .errors_dcl import InputError, reason
from .hub_dcl import hub_is_reachable

try:  # a checkpoint that is given ready-made crops works without OpenCV
    import cv2
except ImportError:
    cv2 = None
try:
    import face_detection
except ImportError:
    face_detection = None

logger = logging.getLogger(__name__)

YUNET_REPOSITORY = "opencv/face_detection_yunet"
YUNET_FILE = "face_detection_yunet_2023mar.onnx"
YUNET_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"

#: Where the five landmarks lie in an aligned crop of margin 1, as shares of its side: the usual ArcFace template.
ALIGNED_LANDMARKS = (
    np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])
    / 112
)
CROP_KINDS = ("box", "aligned5")
#: Of a crop, what a stranger's checkpoint may ask for: times the face box, and pixels along a side.
LARGEST_MARGIN, LARGEST_CROP = 8, 2048
#: Intersection over union of boxes above which a face goes on where one of the frame before was.
SAME_FACE = 0.1


@dataclass(frozen=True)
class Face:
    """One face of a photograph.

    Attributes:
        box: left, top, right, bottom in pixels; float32 array (4,); it may reach past the photograph.
        score: the detector's confidence in [0, 1].
        landmarks: the eye at the image's left, the other eye, nose tip, the mouth corner at the image's left, the
            other corner, as x, y in pixels; float32 array (5, 2), or None from a detector that gives none.
    """

    box: np.ndarray
    score: float
    landmarks: np.ndarray | None


class FaceDetector(Protocol):
    """What finds faces: it has a name, which is stored with each crop, and finds the faces of one photograph."""

    name: str

    def detect(self, image: np.ndarray) -> list[Face]:
        """Return the faces of an RGB photograph, uint8 (height, width, 3), the largest first."""
        ...


def cache_folder() -> Path:
    """Return the folder that keeps downloaded files: the environment variable `DCL_CACHE`, or `~/.cache/dcl`."""
    return Path(os.environ.get("DCL_CACHE") or "~/.cache/dcl").expanduser()


def find_yunet(ask_hub: bool = True) -> Path | None:
    """Return the YuNet model file: `DCL_YUNET` if set, else from the Hub, else from the cache folder, or None.

    Args:
        ask_hub: whether it may be downloaded; else only what was downloaded before is looked through.
    """
    if given := os.environ.get("DCL_YUNET"):
        return Path(given)
    try:
        local = not (ask_hub and hub_is_reachable())
        path = Path(hf_hub_download(YUNET_REPOSITORY, YUNET_FILE, local_files_only=local))
        if hashlib.sha256(path.read_bytes()).hexdigest() == YUNET_SHA256:
            return path
        logger.warning("the Hub has another %s than the one this was tested with: it is not used.", YUNET_FILE)
    except Exception as error:  # transport, server and cache errors have no common class
        logger.debug("%s was not to be had from the Hub: %s", YUNET_FILE, error)
    cached = cache_folder() / YUNET_FILE
    return cached if cached.is_file() else None


def yunet_of_checkpoint(name: str, revision: str | None = None, ask_hub: bool = True) -> Path | None:
    """Return the YuNet model file that came with a checkpoint, None if none did.

    Args:
        name: its folder, or its id on the Hub, as `PreTrainedModel.name_or_path` says it; it may be empty.
        revision: the commit on the Hub.
        ask_hub: whether it may be downloaded; else only what was downloaded before is looked through.
    """
    if not name or Path(name).is_dir():
        path = Path(name, YUNET_FILE)
        return path if name and path.is_file() else None
    try:
        local = not (ask_hub and hub_is_reachable())
        return Path(hf_hub_download(name, YUNET_FILE, revision=revision, local_files_only=local))
    except Exception as error:  # as above; and a folder that is gone is no name of a repository
        logger.debug("%s did not come with %s: %s", YUNET_FILE, name, error)
        return None


class YuNet:
    """The YuNet face detector (Wu et al., "YuNet: A Tiny Millisecond-level Face Detector", 2023), run by OpenCV.

    Args:
        model_file: the ONNX file; looked for by `find_yunet` when not given.

    Raises:
        InputError: if OpenCV or the file is missing, or the file is not the released one.
    """

    name = "yunet_2023mar"
    #: A photograph is scaled until its long side lies between these, in pixels: larger ones cost time, and small
    #: ones are found with more confidence when enlarged (on 92x112 px: 386 of 400 above .9 as they are, 400 enlarged).
    long_side = (320, 1024)
    score_threshold = 0.7
    nms_threshold = 0.3

    def __init__(self, model_file: str | Path | None = None):
        _require_opencv()
        path = model_file or find_yunet()
        if path is None:
            raise InputError(
                f"the face detector {YUNET_FILE} could be had neither from the Hub ({YUNET_REPOSITORY}) nor from "
                f"{cache_folder()}: put the file there, or set DCL_YUNET to its path."
            )
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise InputError(
                f"the face detector {path} cannot be read ({error.strerror}): give the path of {YUNET_FILE}."
            ) from error
        if hashlib.sha256(data).hexdigest() != YUNET_SHA256:
            raise InputError(
                f"the face detector {path} is not the released {YUNET_FILE} (its sha256 differs): download it again."
            )
        log = cv2.utils.logging
        level = log.setLogLevel(log.LOG_LEVEL_ERROR)  # OpenCV 5 warns about a target that nobody set
        self._network = cv2.FaceDetectorYN.create(
            "onnx",
            np.frombuffer(data, np.uint8),
            np.empty(0, np.uint8),
            (self.long_side[0],) * 2,
            self.score_threshold,
            self.nms_threshold,
        )
        log.setLogLevel(level)

    def detect(self, image: np.ndarray) -> list[Face]:
        """Find the faces of a photograph.

        Args:
            image: RGB, uint8 (height, width, 3).

        Returns:
            The faces, the one with the largest box first.
        """
        height, width = image.shape[:2]
        long_side = max(height, width)
        scale = float(np.clip(long_side, *self.long_side)) / long_side
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
        self._network.setInputSize(size)
        found = self._network.detect(cv2.cvtColor(resized, cv2.COLOR_RGB2BGR))[1]
        if found is None:
            return []
        ratio = np.array([width / size[0], height / size[1]], np.float32)
        faces = []
        for row in found.astype(np.float32):
            corner, extent = row[:2] * ratio, row[2:4] * ratio
            box = np.concatenate([corner, corner + extent])
            faces.append(Face(box, float(row[14]), row[4:14].reshape(5, 2) * ratio))
        return _largest_first(faces)


class DSFD:
    """The DSFD face detector (Li et al., "DSFD: Dual Shot Face Detector", 2019), with which the paper cut its faces.

    It gives boxes and no landmarks, and runs on a GPU if there is one. Its weights are downloaded by the package
    `face-detection` at first use, as a pickle from the address that it holds.

    Args:
        detector: what `face_detection.build_detector` returns; built if not given.

    Raises:
        InputError: if the package is missing, or the weights cannot be had.
    """

    name = "dsfd"
    score_threshold = 0.5
    nms_threshold = 0.3

    def __init__(self, detector: Any = None):
        if detector is None:
            if face_detection is None:
                raise InputError("the detector DSFD needs the package face-detection: pip install face-detection.")
            try:
                detector = face_detection.build_detector(
                    "DSFDDetector",
                    confidence_threshold=self.score_threshold,
                    nms_iou_threshold=self.nms_threshold,
                    max_resolution=YuNet.long_side[1],
                )
            except Exception as error:  # of the network, the file or the device
                raise InputError(
                    f"the weights of the face detector DSFD cannot be had ({reason(error)}): check the network, or "
                    "use YuNet."
                ) from error
        self._detector = detector

    def detect(self, image: np.ndarray) -> list[Face]:
        """Find the faces of a photograph.

        Args:
            image: RGB, uint8 (height, width, 3).

        Returns:
            The faces, the one with the largest box first.
        """
        found = np.asarray(self._detector.detect(image), np.float32).reshape(-1, 5)
        return _largest_first([Face(row[:4], float(row[4]), None) for row in found])


def _largest_first(faces: list[Face]) -> list[Face]:
    return sorted(faces, key=lambda face: -float(np.prod(face.box[2:] - face.box[:2])))


def crop_box(box: np.ndarray, margin: float) -> np.ndarray:
    """Return the square around a face box: the same centre, `margin` times its longer side.

    Args:
        box: left, top, right, bottom.
        margin: enlargement, 1 = none.

    Returns:
        left, top, right, bottom, float64 array (4,); it may reach past the image.
    """
    box = np.asarray(box, np.float64)
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]).max() * margin / 2
    return np.concatenate([centre - half, centre + half])


def crop_transform(face: Face, crop: dict[str, Any]) -> np.ndarray:
    """Return the affine transform that leads from a photograph into the crop of one of its faces.

    Args:
        face: box and landmarks in the photograph.
        crop: `kind` ("box": the square of `crop_box`; "aligned5": the similarity that takes the five landmarks nearest
            to their template), `margin`, and `size`, the side of the crop in pixels.

    Returns:
        float64 array (2, 3).

    Raises:
        InputError: if the kind of crop is unknown, or needs landmarks that the detector does not give.
    """
    size, margin = crop["size"], crop["margin"]
    if crop["kind"] == "box":
        left, top, right, _ = crop_box(face.box, margin)
        scale = size / (right - left)
        return np.array([[scale, 0, -left * scale], [0, scale, -top * scale]])
    if crop["kind"] == "aligned5":
        if face.landmarks is None:
            raise InputError("the crop 'aligned5' needs landmarks, and the detector gives none: use YuNet, or 'box'.")
        return fit_similarity(face.landmarks, ((ALIGNED_LANDMARKS - 0.5) / margin + 0.5) * size)
    raise InputError(f"faces cannot be cut by the crop kind {crop['kind']!r}: use one of {', '.join(CROP_KINDS)}.")


def fit_similarity(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the rotation, scale and shift (no reflection) that takes points nearest to targets in least squares.

    Args:
        points: at least two different ones, (n, 2).
        targets: where they should go, (n, 2).

    Returns:
        float64 array (2, 3).
    """
    # In complex numbers: target = a * point + b.
    source, target = (np.asarray(array, np.float64) @ np.array([1, 1j]) for array in (points, targets))
    centred = source - source.mean()
    a = np.vdot(centred, target - target.mean()) / np.vdot(centred, centred).real
    b = target.mean() - a * source.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def cut(image: np.ndarray, transform: np.ndarray, size: int) -> np.ndarray:
    """Cut a square crop out of an image or a mask.

    Where the crop is smaller than what it shows, pixels are averaged by area; where it is larger, images are enlarged
    by cubic and masks by linear interpolation. Past its edge an image goes on as its outermost pixels, and so does
    its mask.

    Args:
        image: uint8, RGB (height, width, 3) or a mask (height, width).
        transform: from the image to the crop, (2, 3).
        size: side of the crop in pixels.

    Returns:
        uint8 array (size, size, 3) or (size, size).
    """
    _require_opencv()
    shrink = 1 / np.sqrt(abs(np.linalg.det(transform[:, :2])))
    steps = max(1, int(np.ceil(shrink - 1e-6)))  # that many samples per crop pixel and axis, averaged below
    matrix = np.asarray(transform, np.float64) * steps
    matrix[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5  # OpenCV counts from the centre of the first pixel
    interpolation = cv2.INTER_CUBIC if steps == 1 and image.ndim == 3 else cv2.INTER_LINEAR
    sampled = cv2.warpAffine(
        image, matrix, (size * steps, size * steps), flags=interpolation, borderMode=cv2.BORDER_REPLICATE
    )
    return sampled if steps == 1 else cv2.resize(sampled, (size, size), interpolation=cv2.INTER_AREA)


def map_points(points: np.ndarray, transform: np.ndarray) -> np.ndarray:
    """Return points (n, 2) after an affine transform (2, 3), as float32."""
    return (np.asarray(points, np.float64) @ transform[:, :2].T + transform[:, 2]).astype(np.float32)


def copy_yunet(name: str, revision: str | None, folder: str | Path) -> None:
    """Copy the YuNet model file to a checkpoint that is saved, if it is the released one and on this machine.

    Args:
        name: folder or id of the checkpoint that it may have come with, see `yunet_of_checkpoint`.
        revision: the commit on the Hub.
        folder: where the checkpoint is saved.
    """
    target = Path(folder, YUNET_FILE)
    if target.exists():
        return
    source = yunet_of_checkpoint(name, revision, ask_hub=False) or find_yunet(ask_hub=False)
    if source is None or not source.is_file():  # DCL_YUNET may name what is not there
        logger.info("the face detector %s is not on this machine: the checkpoint goes without it.", YUNET_FILE)
    elif hashlib.sha256(source.read_bytes()).hexdigest() == YUNET_SHA256:
        shutil.copyfile(source, target)


def why_not_cut(crop: dict[str, Any] | None) -> str | None:
    """Return why the faces of pictures cannot be cut as a checkpoint learned them; None if they can.

    Args:
        crop: of its image processor.
    """
    if not crop or not isinstance(crop, Mapping) or crop.get("kind") == "given":
        return "it does not say how its faces were cut out of pictures"
    if crop.get("kind") not in CROP_KINDS:
        return f"its faces were cut in a way that is not known here, {abridged(crop.get('kind'))}"
    if crop.get("detector") != YuNet.name:
        return f"it learned faces found by {abridged(crop.get('detector'))}, and only {YuNet.name} finds them here"
    margin, size = crop.get("margin"), crop.get("size")
    if not (is_number(margin) and 0 < margin <= LARGEST_MARGIN):
        return f"the margin of its crops is {abridged(margin)} and not a number above 0, up to {LARGEST_MARGIN}"
    if not (is_count(size, least=1) and size <= LARGEST_CROP):
        return f"the size of its crops is {abridged(size)} and not a whole number from 1 to {LARGEST_CROP}"
    return None


def overlap(box: np.ndarray, other: np.ndarray) -> float:
    """Return the intersection over union of two boxes (left, top, right, bottom), in [0, 1]."""
    extent = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    shared = float(np.prod(np.maximum(extent, 0)))
    return shared / float(np.prod(box[2:] - box[:2]) + np.prod(other[2:] - other[:2]) - shared)


def go_on(boxes: Sequence[np.ndarray], last: Sequence[np.ndarray]) -> list[int | None]:
    """Link the faces of a frame to those seen last: those that overlap most first, each at most once.

    Args:
        boxes: of the faces of a frame, (4,) each.
        last: the boxes where faces were seen last.

    Returns:
        For each of `boxes` the place in `last` of the one that it goes on from, None if it overlaps none of those left
        by more than `SAME_FACE`.
    """
    pairs = [(overlap(box, other), i, j) for i, box in enumerate(boxes) for j, other in enumerate(last)]
    found: list[int | None] = [None] * len(boxes)
    for share, i, j in sorted(pairs, key=lambda pair: -pair[0]):
        if share > SAME_FACE and found[i] is None and j not in found:
            found[i] = j
    return found


def _require_opencv() -> None:
    if cv2 is None:
        raise InputError("finding and cutting faces needs OpenCV: pip install opencv-python-headless.")


__all__ = [
    "CROP_KINDS",
    "DSFD",
    "SAME_FACE",
    "Face",
    "FaceDetector",
    "YuNet",
    "cache_folder",
    "copy_yunet",
    "crop_box",
    "crop_transform",
    "cut",
    "find_yunet",
    "fit_similarity",
    "go_on",
    "map_points",
    "overlap",
    "why_not_cut",
    "yunet_of_checkpoint",
]
