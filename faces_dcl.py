"""Find faces and cut them out, in the same way for training data and for detection.

One affine matrix maps the photograph to the crop, so images, masks and landmarks of a face go through the same
transform. Coordinates are continuous: pixel (0, 0) covers the square from (0, 0) to (1, 1).

Long because remote code should be few files. Its parts: detection, poses and boxes, crops.
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

try:  # models work on ready-made crops without OpenCV
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
#: The largest crop that an untrusted checkpoint may ask for: times the face box, and pixels along a side.
LARGEST_MARGIN, LARGEST_CROP = 8, 2048
#: Photographs are scaled to long sides of 320, 640, 1024 and 2048 px. A face whose share of the long side lies between
#: these values is blended from the next larger size to this one. Each size is responsible for faces of 25 to 300 px.
_HANDOVER = {320: (260 / 640, 360 / 640), 640: (20 / 640, 32 / 640), 1024: (20 / 1024, 32 / 1024)}
#: Intersection over union of two candidates above which they vote for one box, and above which one is dropped.
_SAME_PLACE, _SUPPRESSED = 0.4, 0.3
#: In 400 photographs at several sizes, sideways faces score up to .85, upside-down faces up to .914.
_SURELY_UPRIGHT, _SURELY_NOT_SIDEWAYS = 0.92, 0.88
#: Intersection over union above which a face continues one of the previous frame.
SAME_FACE = 0.1


@dataclass(frozen=True)
class Face:
    """One face of a photograph.

    Attributes:
        box: left, top, right, bottom in pixels; float32 array (4,); it may reach past the photograph.
        score: the detector's confidence in [0, 1].
        landmarks: x, y in pixels of the eye on the left of the image, the other eye, the nose tip, the mouth corner on
            the left, and the other corner; float32 array (5, 2), or None if the detector gives none.
    """

    box: np.ndarray
    score: float
    landmarks: np.ndarray | None


class FaceDetector(Protocol):
    """A face detector. Its name is stored with each crop."""

    name: str

    def detect(self, image: np.ndarray, small_faces: bool = True) -> list[Face]:
        """Return the faces of an RGB photograph, uint8 (height, width, 3), the largest first; see `YuNet.detect`."""
        ...


def cache_folder() -> Path:
    """Return the folder for downloaded files: the environment variable `DCL_CACHE`, or `~/.cache/dcl`."""
    return Path(os.environ.get("DCL_CACHE") or "~/.cache/dcl").expanduser()


def find_yunet(ask_hub: bool = True) -> Path | None:
    """Find the YuNet model file: `DCL_YUNET` if set, else from the Hub or its cache, else from `cache_folder`.

    Args:
        ask_hub: whether to download it if necessary.

    Returns:
        The path, or None if there is no such file.
    """
    if given := os.environ.get("DCL_YUNET"):
        return Path(given)
    try:
        local = not (ask_hub and hub_is_reachable())
        path = Path(hf_hub_download(YUNET_REPOSITORY, YUNET_FILE, local_files_only=local))
        if hashlib.sha256(path.read_bytes()).hexdigest() == YUNET_SHA256:
            return path
        logger.warning("The %s on the Hub differs from the tested version and is not used.", YUNET_FILE)
    except Exception as error:  # transport, server and cache errors have no common class
        logger.debug("%s could not be downloaded from the Hub: %s", YUNET_FILE, error)
    cached = cache_folder() / YUNET_FILE
    return cached if cached.is_file() else None


class YuNet:
    """The YuNet face detector (Wu et al., "YuNet: A Tiny Millisecond-level Face Detector", 2023), run by OpenCV.

    A single pass of YuNet misplaces the boxes of faces over some 350 px and misses faces over 550 px, and its boxes
    change by up to 10 % of their side with the size of the photograph. So this class scales every photograph to the
    same sizes, weights each size by the share of the photograph that a face fills, and averages all candidates for a
    box instead of taking the one with the highest score. A photograph then gives the same boxes at any stored size.

    YuNet also finds sideways and upside-down faces, but labels their landmarks as if they were upright. Faces with a
    lower score are therefore examined again in up to four orientations. Box and landmarks come from the orientation
    with the highest score; a doubtful face that is not found again is dropped.

    Args:
        model_file: the path of the ONNX file; None: that of `find_yunet`.

    Raises:
        InputError: if OpenCV or the file is missing, or the file is not the released one.
    """

    name = "yunet_2023mar_multiscale"
    score_threshold = 0.7
    nms_threshold = 1.0  # no suppression: candidates vote

    def __init__(self, model_file: str | Path | None = None):
        _require_opencv()
        path = model_file or find_yunet()
        if path is None:
            raise InputError(
                f"Face detector {YUNET_FILE} not found on the Hub ({YUNET_REPOSITORY}) or in {cache_folder()}. Put "
                "the file there, or set DCL_YUNET to its path."
            )
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise InputError(
                f"Face detector {path} cannot be read ({error.strerror}). Set DCL_YUNET to the path of {YUNET_FILE}."
            ) from error
        if hashlib.sha256(data).hexdigest() != YUNET_SHA256:
            raise InputError(
                f"Face detector {path} is not the released {YUNET_FILE} (its SHA-256 differs). Download it again."
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
        """Find the faces of a photograph.

        Args:
            image: RGB, uint8 (height, width, 3).
            small_faces: whether to scale photographs over 1024 px to 2048 px as well. This finds faces that fill less
                than 3 % of the long side, and takes four times as long. It is off for videos.

        Returns:
            The faces, the one with the largest box first.
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
        """Return the long sides, in pixels, to which to scale a photograph, in ascending order."""
        long_side, short_side = max(image.shape[:2]), min(image.shape[:2])
        sides = [320] if short_side > _HANDOVER[320][1] * long_side else []
        sides.append(640)
        if long_side > 640:
            sides.append(1024)
        if long_side > 1024 and small_faces:
            sides.append(2048)
        return sides

    def _find(self, image: np.ndarray, ratio: np.ndarray) -> np.ndarray:
        """Run the network on RGB, uint8 (height, width, 3); `ratio` is pixels (x, y) of the photograph per pixel.

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
        """Merge the candidates, by the side to which the image was scaled, into one row per face."""
        sides = np.repeat(list(found), [len(rows) for rows in found.values()])
        rows = np.concatenate(list(found.values()))
        shares = (rows[:, 2:4] - rows[:, :2]).max(1) / long_side
        trust, taken = np.empty(len(rows)), np.zeros(len(rows))  # by the previous sides
        for side in found:
            start, end = _HANDOVER[side] if side != max(found) else (-1, 0)
            own = np.clip((shares - start) / (end - start), 0, 1)
            trust[sides == side] = ((1 - taken) * own)[sides == side]
            taken = np.maximum(taken, own)
        trust[sides == 640] = np.maximum(trust[sides == 640], 1e-3)  # if another side missed the face
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
        """Find a face, a row of `_find`, again in several orientations, and map the best one back to the photograph.

        Returns None if a doubtful face is not found again. The image is the scaled photograph.
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
    """YuNet at one size, for older checkpoints and prepared data that name this detector.

    Photographs are scaled until their long side lies in [320, 1024] px. Most faces over 550 px are missed.
    """

    name = "yunet_2023mar"
    nms_threshold = 0.3

    def _sides(self, image: np.ndarray, small_faces: bool) -> list[int]:
        return [int(np.clip(max(image.shape[:2]), 320, 1024))]

    def _chosen(self, found: dict[int, np.ndarray], long_side: int) -> list[np.ndarray]:
        (rows,) = found.values()
        return list(rows)


#: The face detectors by the name in the `crop` of a checkpoint.
YUNETS = {each.name: each for each in (YuNet, SingleScaleYuNet)}


def _view(image: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale a photograph to a long side; also return its pixels (x, y) per pixel of the result."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    scaled = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    return scaled, np.array([width / size[0], height / size[1]], np.float32)


def _is_part(face: np.ndarray, other: np.ndarray) -> bool:
    """Whether the centre of one box lies in the other."""
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

    Args:
        box: left, top, right, bottom in pixels, (4,).
        margin: side of the square over the longer side of the box.

    Returns:
        left, top, right, bottom, float64 (4,); may reach past the image.
    """
    box = np.asarray(box, np.float64)
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]).max() * margin / 2
    return np.concatenate([centre - half, centre + half])


def crop_transform(face: Face, crop: dict[str, Any]) -> np.ndarray:
    """Return the affine transform from a photograph to the crop of one of its faces.

    Args:
        face: the face in the photograph.
        crop: `kind` ("box": the square of `crop_box`; "aligned5": the similarity that best aligns the five landmarks
            with their template), `margin`, and `size`, the side of the crop in pixels.

    Returns:
        float64 (2, 3).

    Raises:
        InputError: if "aligned5" is asked for and the face has no landmarks.
    """
    size, margin = crop["size"], crop["margin"]
    if crop["kind"] == "box":
        left, top, right, _ = crop_box(face.box, margin)
        scale = size / (right - left)
        return np.array([[scale, 0, -left * scale], [0, scale, -top * scale]])
    if face.landmarks is None:
        raise InputError(
            "The crop 'aligned5' needs landmarks, which this detector does not give. Use YuNet, or 'box'."
        )
    return fit_similarity(face.landmarks, ((ALIGNED_LANDMARKS - 0.5) / margin + 0.5) * size)


def fit_similarity(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Fit a similarity transform (rotation, scale and shift, no reflection) by least squares.

    Args:
        points: (n, 2), at least two of them different.
        targets: (n, 2).

    Returns:
        The transform from points to targets, float64 (2, 3).
    """
    # In complex numbers: target = a * point + b.
    source, target = (np.asarray(array, np.float64) @ np.array([1, 1j]) for array in (points, targets))
    centred = source - source.mean()
    a = np.vdot(centred, target - target.mean()) / np.vdot(centred, centred).real
    b = target.mean() - a * source.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def cut(image: np.ndarray, transform: np.ndarray, size: int) -> np.ndarray:
    """Cut a square crop out of an image or a mask.

    Shrinking averages pixels by area. Enlarging uses cubic interpolation for images and linear for masks. Beyond the
    edge, the outermost pixels are repeated.

    Args:
        image: an image, uint8 (height, width, 3), or a mask, uint8 (height, width).
        transform: the affine transform from the image to the crop, (2, 3).
        size: the side of the crop in pixels.

    Returns:
        The crop, uint8 (size, size, 3) or (size, size).
    """
    _require_opencv()
    shrink = 1 / np.sqrt(abs(np.linalg.det(transform[:, :2])))
    steps = max(1, int(np.ceil(shrink - 1e-6)))  # samples per crop pixel and axis, averaged below
    matrix = np.asarray(transform, np.float64) * steps
    matrix[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5  # OpenCV counts from the centre of the first pixel
    interpolation = cv2.INTER_CUBIC if steps == 1 and image.ndim == 3 else cv2.INTER_LINEAR
    sampled = cv2.warpAffine(
        image, matrix, (size * steps, size * steps), flags=interpolation, borderMode=cv2.BORDER_REPLICATE
    )
    return sampled if steps == 1 else cv2.resize(sampled, (size, size), interpolation=cv2.INTER_AREA)


def map_points(points: np.ndarray, transform: np.ndarray) -> np.ndarray:
    """Apply an affine transform (2, 3) to points (n, 2); returns float32 (n, 2)."""
    return (np.asarray(points, np.float64) @ transform[:, :2].T + transform[:, 2]).astype(np.float32)


def copy_yunet(name: str, revision: str | None, folder: str | Path) -> None:
    """Copy the YuNet model file to the folder of a checkpoint, if the released file is on this machine."""
    target = Path(folder, YUNET_FILE)
    if target.exists():
        return
    source = file_of_checkpoint(YUNET_FILE, name, revision, ask_hub=False) or find_yunet(ask_hub=False)
    if source is None or not source.is_file():  # DCL_YUNET may name a missing file
        logger.info("Face detector %s is not on this machine. The checkpoint does not include it.", YUNET_FILE)
    elif hashlib.sha256(source.read_bytes()).hexdigest() == YUNET_SHA256:
        shutil.copyfile(source, target)


def why_not_cut(crop: dict[str, Any] | None) -> str | None:
    """Return why faces cannot be cut as the `crop` of an image processor says; None if they can."""
    if not crop or not isinstance(crop, Mapping) or crop.get("kind") == "given":
        return "it does not say how faces were cut out of images"
    if crop.get("kind") not in CROP_KINDS:
        return f"its crops are of an unknown kind, {abridged(crop.get('kind'))}"
    if crop.get("detector") not in YUNETS:
        known = " or ".join(YUNETS)
        return f"its faces were found by {abridged(crop.get('detector'))}, but only {known} is available"
    margin, size = crop.get("margin"), crop.get("size")
    if not (is_number(margin) and 0 < margin <= LARGEST_MARGIN):
        return f"the margin of its crops is {abridged(margin)}, not a number above 0 and up to {LARGEST_MARGIN}"
    if not (is_count(size, least=1) and size <= LARGEST_CROP):
        return f"the size of its crops is {abridged(size)}, not a whole number from 1 to {LARGEST_CROP}"
    return None


def overlap(box: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the intersection over union of boxes.

    Args:
        box: left, top, right, bottom, (..., 4).
        other: the same.

    Returns:
        floats (...) in [0, 1].
    """
    extent = np.minimum(box[..., 2:], other[..., 2:]) - np.maximum(box[..., :2], other[..., :2])
    shared = np.maximum(extent, 0).prod(-1)
    return shared / ((box[..., 2:] - box[..., :2]).prod(-1) + (other[..., 2:] - other[..., :2]).prod(-1) - shared)


def go_on(boxes: Sequence[np.ndarray], last: Sequence[np.ndarray]) -> list[int | None]:
    """Link the face boxes of a frame to earlier ones: the largest overlap first, each box at most once.

    Args:
        boxes: of the frame, each (4,).
        last: the earlier boxes, each (4,).

    Returns:
        For each box the index in `last` of the box that it continues, or None if none overlaps by more than
        `SAME_FACE`.
    """
    pairs = [(overlap(box, other), i, j) for i, box in enumerate(boxes) for j, other in enumerate(last)]
    found: list[int | None] = [None] * len(boxes)
    for share, i, j in sorted(pairs, key=lambda pair: -pair[0]):
        if share > SAME_FACE and found[i] is None and j not in found:
            found[i] = j
    return found


def _require_opencv() -> None:
    if cv2 is None:
        raise InputError(
            "Finding and cutting faces needs OpenCV. Install it with `pip install opencv-python-headless`."
        )
