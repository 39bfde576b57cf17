"""Counts of rows and versions of libraries, for the record of a run."""

import importlib.metadata
import platform
from typing import Any

import pandas as pd

OF_METRICS = ("numpy", "pandas", "scipy", "sklearn")
OF_MODELS = ("torch", "transformers", "timm", "datasets")
OF_PICTURES = ("av", "cv2", "numpy", "PIL", "torchvision")
_PACKAGES = {
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "dcl_face_forgery": "dcl-face-forgery",
}


def versions(*libraries: str) -> dict[str, str | None]:
    """Return the versions of Python, of this package and of some libraries, without importing them.

    Args:
        libraries: import names.

    Returns:
        The version of each; None if it is not installed, as this package when run from a path.
    """
    return {"python": platform.python_version()} | {name: _version(name) for name in (*libraries, "dcl_face_forgery")}


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(_PACKAGES.get(library, library))
    except importlib.metadata.PackageNotFoundError:
        return None


def count_rows(rows: pd.DataFrame) -> dict[str, Any]:
    """Count the rows and videos of one data set.

    Args:
        rows: predictions with the column `video_id`.

    Returns:
        `rows`, `videos`, and the minimum, median and maximum of `frames_per_video`.
    """
    frames = rows.groupby("video_id").size()
    return {
        "rows": len(rows),
        "videos": len(frames),
        "frames_per_video": {"min": int(frames.min()), "median": float(frames.median()), "max": int(frames.max())},
    }
