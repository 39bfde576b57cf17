"""Find faces and cut them out, in the same way for training data and for detection.

One affine matrix maps the photograph to the crop, so that images, masks and landmarks of a face go through the same
transform. Coordinates are continuous: pixel (0, 0) covers the square from (0, 0) to (1, 1).
"""

import hashlib
import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from huggingface_hub import hf_hub_download

from .abstention_dcl import SMALLEST_FACE
from .errors_dcl import InputError, abridged, is_count, is_number
from .hub_dcl import file_of_checkpoint, hub_is_reachable

try:  # a checkpoint that is given ready-made crops works without OpenCV
    import cv2
except ImportError:
    cv2 = None

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
#: Photographs are scaled to long sides of 320, 640, 1024 and 2048 px. Between these shares of the long side, a face
#: passes from the next larger size to this one: a size decides on faces of some 25 to 300 px.
_HANDOVER = {320: (260 / 640, 360 / 640), 640: (20 / 640, 32 / 640), 1024: (20 / 1024, 32 / 1024)}
#: Intersection over union of two candidates above which they vote for one box, and above which only one is a face.
_SAME_PLACE, _SUPPRESSED = 0.4, 0.3
#: Of 400 photographs at several sizes, the scores of faces on their side reach .85, those of upside-down ones .914.
_SURELY_UPRIGHT, _SURELY_NOT_SIDEWAYS = 0.92, 0.88
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

    def detect(self, image: np.ndarray, small_faces: bool = True) -> list[Face]:
        """Return the faces of an RGB photograph, uint8 (height, width, 3), the largest first; see `YuNet.detect`."""
        ...


def cache_folder() -> Path:
    """Return the folder that keeps downloaded files: the environment variable `DCL_CACHE`, or `~/.cache/dcl`."""
    return Path(os.environ.get("DCL_CACHE") or "~/.cache/dcl").expanduser()


def find_yunet(ask_hub: bool = True) -> Path | None:
    """Return the YuNet model file: `DCL_YUNET` if set, else from the Hub or its cache, else from ours, or None."""
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


class YuNet:
    """The YuNet face detector (Wu et al., "YuNet: A Tiny Millisecond-level Face Detector", 2023), run by OpenCV.

    On its own, YuNet misplaces the boxes of faces over some 350 px and misses faces over 550 px, and its boxes change
    by up to 10 % of their side with the size at which it sees a photograph. So every photograph is scaled to the same
    sizes, the share of the photograph that a face fills decides how much each size counts, and a box is the mean of
    all candidates instead of the one with the highest score. The same photograph then gives the same boxes, whatever
    size it is stored in.

    YuNet also finds faces that lie on their side or upside down, and names their landmarks as if they were upright. A
    face whose score is low enough for that is looked at closely, in up to four orientations: box and landmarks come
    from the one with the highest score, and a doubtful face that is not found again is dropped.

    Raises `InputError` if OpenCV or the ONNX file (else that of `find_yunet`) is missing, or it is not the released
    one.
    """

    name = "yunet_2023mar_multiscale"
    score_threshold = 0.7
    nms_threshold = 1.0  # the network suppresses nothing: its candidates vote

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
            (640, 640),
            self.score_threshold,
            self.nms_threshold,
        )
        log.setLogLevel(level)

    def detect(self, image: np.ndarray, small_faces: bool = True) -> list[Face]:
        """Find the faces of a photograph, RGB, uint8 (height, width, 3), the one with the largest box first.

        With `small_faces`, one over 1024 px is also scaled to 2048 px, where faces are found that fill less than 3 %
        of its long side. This takes four times as long; frames of videos do without it.
        """
        views = {side: _view(image, side) for side in self._sides(image, small_faces)}
        found = {side: self._find(*view) for side, view in views.items()}
        finest = views[max(views)]
        faces = [
            self._upright(row, *finest) if (row[2:4] - row[:2]).max() >= SMALLEST_FACE else row
            for row in self._chosen(found, max(image.shape[:2]))
        ]
        return largest_first(
            [Face(row[:4], float(row[14]), row[4:14].reshape(5, 2)) for row in faces if row is not None]
        )

    def _sides(self, image: np.ndarray, small_faces: bool) -> list[int]:
        """Return the long sides, in pixels, to which a photograph is scaled, in ascending order."""
        long_side, short_side = max(image.shape[:2]), min(image.shape[:2])
        sides = [320] if short_side > _HANDOVER[320][1] * long_side else []
        sides.append(640)
        if long_side > 640:
            sides.append(1024)
        if long_side > 1024 and small_faces:
            sides.append(2048)
        return sides

    def _find(self, image: np.ndarray, ratio: np.ndarray) -> np.ndarray:
        """Run the network on RGB, uint8 (height, width, 3); `ratio` are pixels (x, y) of the photograph for one of it.

        Returns float32 (candidates, 15): left, top, right, bottom and five landmarks in the photograph, and the score.
        """
        self._network.setInputSize(image.shape[1::-1])
        found = self._network.detect(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
        if found is None:
            return np.empty((0, 15), np.float32)
        found = found.astype(np.float32)
        found[:, 2:4] += found[:, :2]
        found[:, :14] *= np.tile(ratio, 7)
        return found

    def _chosen(self, found: dict[int, np.ndarray], long_side: int) -> list[np.ndarray]:
        """Make one face, a row of `_find`, of all candidates for it, by the side to which the image was scaled."""
        sides = np.repeat(list(found), [len(rows) for rows in found.values()])
        rows = np.concatenate(list(found.values()))
        shares = (rows[:, 2:4] - rows[:, :2]).max(1) / long_side
        trust, taken = np.empty(len(rows)), np.zeros(len(rows))  # by the sides before
        for side in found:
            start, end = _HANDOVER[side] if side != max(found) else (-1, 0)
            own = np.clip((shares - start) / (end - start), 0, 1)
            trust[sides == side] = ((1 - taken) * own)[sides == side]
            taken = np.maximum(taken, own)
        trust[sides == 640] = np.maximum(trust[sides == 640], 1e-3)  # another side may have missed the face
        votes = trust * (rows[:, 14] - self.score_threshold + 1e-3)
        faces, leaders, left = [], [], trust > 0
        for leader in np.argsort(-trust * rows[:, 14]):
            if not left[leader]:
                continue
            shared = overlap(rows[:, :4], rows[leader, :4])
            same = left & (shared > _SAME_PLACE)
            left &= shared <= _SUPPRESSED
            others = [other for other in leaders if sides[other] != sides[leader]]
            if trust[leader] > 0.5 or not any(_is_part(rows[leader], rows[other]) for other in others):
                leaders.append(leader)
                faces.append(np.average(rows[same], axis=0, weights=votes[same]).astype(np.float32))
                faces[-1][14] = rows[leader, 14]
        return faces

    def _upright(self, face: np.ndarray, image: np.ndarray, ratio: np.ndarray) -> np.ndarray | None:
        """Return a face, a row of `_find`, as it is found with its head upright, mapped back to where it is.

        None if a doubtful face is not found again when it is looked at closely. The image is the scaled photograph.
        """
        if face[14] >= _SURELY_UPRIGHT:
            return face
        doubtful = face[14] < _SURELY_NOT_SIDEWAYS
        side, orientations = (128, (1, 2, 3)) if doubtful else (96, (2,))
        box = face[:4] / np.tile(ratio, 2)
        width = math.ceil(2 * (box[2:] - box[:2]).max())
        centre = (box[:2] + box[2:]) / 2
        patch = cv2.getRectSubPix(image, (width, width), centre - 0.5)  # OpenCV counts from the centre of a pixel
        crop = cv2.resize(patch, (side, side), interpolation=cv2.INTER_AREA if width > side else cv2.INTER_CUBIC)
        turned = [(self._central_face(np.rot90(crop, quarters)), quarters) for quarters in orientations]
        turned = [(row, quarters) for row, quarters in turned if row is not None]
        upright = self._central_face(crop) if turned or doubtful else None
        if not turned:
            return None if doubtful and upright is None else face
        best, quarters = max(turned, key=lambda each: each[0][14])
        if upright is not None and upright[14] >= best[14]:
            return face
        scale, (left, top) = width / side, centre - width / 2
        back = np.array([[scale, 0, left], [0, scale, top], [0, 0, 1]])
        for _ in range(quarters):
            back = back @ [[0, -1, side], [1, 0, 0], [0, 0, 1]]
        points = map_points(best[:14].reshape(7, 2), back[:2] * ratio[:, None])
        return np.concatenate([points[:2].min(0), points[:2].max(0), points[2:].reshape(10), best[14:]])

    def _central_face(self, crop: np.ndarray) -> np.ndarray | None:
        """Return the candidate with the highest score in the middle of a crop, as a row of `_find`."""
        rows = self._find(np.ascontiguousarray(crop), np.ones(2, np.float32))
        rows = rows[np.abs(rows[:, :2] + rows[:, 2:4] - len(crop)).max(1) < len(crop) / 2]
        return rows[rows[:, 14].argmax()] if len(rows) else None


class SingleScaleYuNet(YuNet):
    """YuNet at one size: how faces were found for the checkpoints and prepared data that name this detector.

    Photographs are scaled until their long side lies in [320, 1024] px. Most faces over 550 px are missed.
    """

    name = "yunet_2023mar"
    nms_threshold = 0.3

    def _sides(self, image: np.ndarray, small_faces: bool) -> list[int]:
        return [int(np.clip(max(image.shape[:2]), 320, 1024))]

    def _chosen(self, found: dict[int, np.ndarray], long_side: int) -> list[np.ndarray]:
        (rows,) = found.values()
        return list(rows)


#: The face detectors with which faces can be found for a checkpoint, by the name that its `crop` holds.
YUNETS = {each.name: each for each in (YuNet, SingleScaleYuNet)}


def _view(image: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale a photograph to a long side; also return how many of its pixels (x, y) make one of the result."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    scaled = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    return scaled, np.array([width / size[0], height / size[1]], np.float32)


def _is_part(face: np.ndarray, other: np.ndarray) -> bool:
    """Whether the centre of one box lies in the other one."""
    for box, around in ((face, other), (other, face)):
        centre = (box[:2] + box[2:4]) / 2
        if ((around[:2] < centre) & (centre < around[2:4])).all():
            return True
    return False


def largest_first(faces: list[Face]) -> list[Face]:
    """Return faces in descending order of the area of their boxes."""
    return sorted(faces, key=lambda face: -float(np.prod(face.box[2:] - face.box[:2])))


def crop_box(box: np.ndarray, margin: float) -> np.ndarray:
    """Return the square around a face box: the same centre, `margin` times its longer side.

    Both are left, top, right, bottom; the square, float64 (4,), may reach past the image.
    """
    box = np.asarray(box, np.float64)
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]).max() * margin / 2
    return np.concatenate([centre - half, centre + half])


def crop_transform(face: Face, crop: dict[str, Any]) -> np.ndarray:
    """Return the affine transform, float64 (2, 3), that leads from a photograph into the crop of one of its faces.

    The crop has `kind` ("box": the square of `crop_box`; "aligned5": the similarity that takes the five landmarks
    nearest to their template), `margin`, and `size`, its side in pixels. Raises `InputError` if landmarks are needed
    and not given.
    """
    size, margin = crop["size"], crop["margin"]
    if crop["kind"] == "box":
        left, top, right, _ = crop_box(face.box, margin)
        scale = size / (right - left)
        return np.array([[scale, 0, -left * scale], [0, scale, -top * scale]])
    if face.landmarks is None:
        raise InputError("the crop 'aligned5' needs landmarks, and the detector gives none: use YuNet, or 'box'.")
    return fit_similarity(face.landmarks, ((ALIGNED_LANDMARKS - 0.5) / margin + 0.5) * size)


def fit_similarity(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the rotation, scale and shift (no reflection), float64 (2, 3), that takes points nearest to targets.

    In least squares; both are (n, 2), and at least two points differ.
    """
    # In complex numbers: target = a * point + b.
    source, target = (np.asarray(array, np.float64) @ np.array([1, 1j]) for array in (points, targets))
    centred = source - source.mean()
    a = np.vdot(centred, target - target.mean()) / np.vdot(centred, centred).real
    b = target.mean() - a * source.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def cut(image: np.ndarray, transform: np.ndarray, size: int) -> np.ndarray:
    """Cut a square crop, `size` pixels wide, out of an image, uint8 (height, width, 3), or a mask (height, width).

    Where the crop is smaller than what it shows, pixels are averaged by area; where it is larger, images are enlarged
    by cubic and masks by linear interpolation. Past its edge an image goes on as its outermost pixels, and so does its
    mask. The transform, (2, 3), leads from the image to the crop.
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
    """Copy the YuNet model file to a checkpoint that is saved, if it is the released one and on this machine."""
    target = Path(folder, YUNET_FILE)
    if target.exists():
        return
    source = file_of_checkpoint(YUNET_FILE, name, revision, ask_hub=False) or find_yunet(ask_hub=False)
    if source is None or not source.is_file():  # DCL_YUNET may name what is not there
        logger.info("the face detector %s is not on this machine: the checkpoint goes without it.", YUNET_FILE)
    elif hashlib.sha256(source.read_bytes()).hexdigest() == YUNET_SHA256:
        shutil.copyfile(source, target)


def why_not_cut(crop: dict[str, Any] | None) -> str | None:
    """Return why faces cannot be cut by the `crop` of a checkpoint's image processor; None if they can."""
    if not crop or not isinstance(crop, Mapping) or crop.get("kind") == "given":
        return "it does not say how its faces were cut out of pictures"
    if crop.get("kind") not in CROP_KINDS:
        return f"its faces were cut in a way that is not known here, {abridged(crop.get('kind'))}"
    if crop.get("detector") not in YUNETS:
        known = " or ".join(YUNETS)
        return f"it learned faces found by {abridged(crop.get('detector'))}, and only {known} finds them here"
    margin, size = crop.get("margin"), crop.get("size")
    if not (is_number(margin) and 0 < margin <= LARGEST_MARGIN):
        return f"the margin of its crops is {abridged(margin)} and not a number above 0, up to {LARGEST_MARGIN}"
    if not (is_count(size, least=1) and size <= LARGEST_CROP):
        return f"the size of its crops is {abridged(size)} and not a whole number from 1 to {LARGEST_CROP}"
    return None


def overlap(box: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the intersection over union of boxes (..., 4) of left, top, right, bottom: floats (...) in [0, 1]."""
    extent = np.minimum(box[..., 2:], other[..., 2:]) - np.maximum(box[..., :2], other[..., :2])
    shared = np.maximum(extent, 0).prod(-1)
    return shared / ((box[..., 2:] - box[..., :2]).prod(-1) + (other[..., 2:] - other[..., :2]).prod(-1) - shared)


def go_on(boxes: Sequence[np.ndarray], last: Sequence[np.ndarray]) -> list[int | None]:
    """Link the boxes (4,) of a frame's faces to those seen last: those that overlap most first, each at most once.

    Returns for each the place in `last` of the one that it goes on from, None if it overlaps none of those left by
    more than `SAME_FACE`.
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
