"""Tiny prepared data sets out of synthetic faces, for tests that need one on disk."""

from pathlib import Path

import cv2
import numpy as np
from datasets import Dataset, Features

from dcl_face_forgery.prepared.copies import picture_hash
from dcl_face_forgery.prepared.dataset import FEATURES, encode_image
from dcl_face_forgery.prepared.names import FAKE, REAL

SIZE = 64
CROP = {"kind": "box", "margin": 0.3, "size": SIZE, "detector": "none"}
#: The code that ships with every checkpoint.
SHIPPED_CODE = {
    *("abstention_dcl.py", "configuration_dcl.py", "decision_dcl.py", "drawing_dcl.py", "errors_dcl.py"),
    *("faces_dcl.py", "hub_dcl.py", "image_processing_dcl.py", "media_dcl.py", "modeling_dcl.py", "onnx_dcl.py"),
    *("pipeline_dcl.py", "video_dcl.py"),
}
METHODS = ("swap", "warp", "unseen")  # how forged faces differ from real ones: one colour channel each


def make_face(video: int, frame: int) -> np.ndarray:
    """Return a smooth texture, much the same in every frame of a video: uint8 (SIZE, SIZE, 3)."""
    coarse = np.random.default_rng((7, video)).integers(60, 196, (6, 6, 3), np.uint8)
    noise = np.random.default_rng((8, video, frame)).integers(-8, 9, (SIZE, SIZE, 3))
    face = cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    return (face + noise).clip(0, 255).astype(np.uint8)


def forge(face: np.ndarray, method: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Brighten one channel of a rectangle, and return the image with its mask."""
    top, left = np.random.default_rng((9, seed)).integers(8, 24, 2)
    place = slice(top, top + 28), slice(left, left + 28)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[place] = 255
    forged = face.astype(int)
    forged[(*place, METHODS.index(method))] += 50
    return forged.clip(0, 255).astype(np.uint8), mask


def make_row(image: np.ndarray, mask: np.ndarray | None, label: int, method: str, clip: str, source: str, frame: int):
    """Return one row; `clip` and `source` are names without the method."""
    return {
        "image": encode_image(image),
        "mask": None if mask is None else encode_image(mask),
        "label": label,
        "method": method,
        "compression": None,
        "video_id": f"{method}/{clip}",
        "source_id": f"original/{source}",
        "frame": frame,
        "landmarks": None,
        "crop": CROP,
        "dataset": "textures",
        "phash": picture_hash(image),
    }


def make_rows(videos: range, frames: int = 2, methods: tuple[str, ...] = METHODS) -> list[dict]:
    """Return the rows of some videos: each real, and forged by every method."""
    rows = []
    for video in videos:
        for frame in range(frames):
            face = make_face(video, frame)
            real_mask = np.zeros((SIZE, SIZE), np.uint8)
            rows.append(make_row(face, real_mask, REAL, "original", f"{video:03}", f"{video:03}", frame))
            for method in methods:
                image, mask = forge(face, method, video)
                rows.append(make_row(image, mask, FAKE, method, f"{video:03}", f"{video:03}", frame))
    return rows


def write_split(folder: Path, split: str, rows: list[dict]) -> None:
    """Write one split of a prepared data set, with the columns that its rows have."""
    folder.mkdir(parents=True, exist_ok=True)
    features = Features({name: FEATURES[name] for name in FEATURES if name in rows[0]})
    Dataset.from_list(rows, features=features).to_parquet(folder / f"{split}.parquet")


def write_prepared(folder: Path) -> Path:
    """Write a data set with a train and a validation split of disjoint videos, and return its folder."""
    write_split(folder, "train", make_rows(range(6)))
    write_split(folder, "validation", make_rows(range(6, 9)))
    return folder


def training_flags(dataset: Path, output_dir: Path, **settings) -> list[str]:
    """Return the command line of a short training run on a tiny network.

    Settings replace or add flags; `None` removes one.
    """
    flags = {
        "dataset": dataset,
        "output_dir": output_dir,
        "methods": ["swap", "warp"],
        "backbone": "test_efficientnet",
        "backbone_weights": "none",
        "image_size": 96,
        "queue_size": 16,
        "hard_samples": 2,
        "momentum": 0.9,
        "per_device_train_batch_size": 8,
        "max_steps": 3,
        "contrastive_warmup_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "logging_steps": 1,
        "dataloader_num_workers": 0,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    command = []
    for name, value in (flags | settings).items():
        if value is None:
            continue
        command += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return command
