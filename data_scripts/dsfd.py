"""The DSFD face detector, to prepare data as the paper did."""

from typing import Any

import numpy as np

from ..errors_dcl import InputError, reason
from ..faces_dcl import Face, largest_first

try:
    import face_detection
except ImportError:
    face_detection = None


class DSFD:
    """The DSFD face detector (Li et al., "DSFD: Dual Shot Face Detector", 2019), with which the paper cut its faces.

    It gives boxes without landmarks, and runs on a GPU if there is one. The package `face-detection` downloads its
    weights at first use, as a pickle. Raises `InputError` if the package is missing or the download fails.
    """

    name = "dsfd"
    score_threshold = 0.5
    nms_threshold = 0.3

    def __init__(self, detector: Any = None):
        if detector is None:
            if face_detection is None:
                raise InputError(
                    "The detector DSFD needs the package face-detection. Install it with `pip install face-detection`."
                )
            try:
                detector = face_detection.build_detector(
                    "DSFDDetector",
                    confidence_threshold=self.score_threshold,
                    nms_iou_threshold=self.nms_threshold,
                    max_resolution=1024,
                )
            except Exception as error:  # of the network, the file or the device
                raise InputError(
                    f"The weights of the face detector DSFD cannot be loaded ({reason(error)}). Check the network, or "
                    "use YuNet."
                ) from error
        self._detector = detector

    def detect(self, image: np.ndarray, small_faces: bool = True) -> list[Face]:
        """Find the faces of RGB, uint8 (height, width, 3), the largest first; `small_faces` has no effect."""
        found = np.asarray(self._detector.detect(image), np.float32).reshape(-1, 5)
        return largest_first([Face(row[:4], float(row[4]), None) for row in found])
