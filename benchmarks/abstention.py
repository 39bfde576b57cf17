"""Count what a checkpoint abstains from: `python benchmarks/abstention.py --model runs/demo --data_root data --json`.

Clean faces of the test split, which it should judge; the same blurred; pictures without a face, a cartoon, and a video
of another kind than it has seen. Crops of a prepared data set tell nothing of the size of the face in its photograph:
there, only pose, sharpness and distance are looked at. Photographs and videos go through the face detector.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from dcl.abstention_dcl import distances, measure_face, reason_to_abstain
from dcl.data_scripts.assets import fetch, fetch_detector
from dcl.dataset_dcl import decode_image, name_row
from dcl.errors_dcl import InputError, report_input_errors
from dcl.evaluation.checkpoints import find_checkpoint
from dcl.evaluation.inputs import load_evaluation_sets
from dcl.evaluation.predictions import load_checkpoint
from dcl.faces_dcl import Face, crop_transform, cut
from dcl.images_dcl import read_picture
from dcl.prepared_dcl import REAL
from dcl.video_dcl import Video, evenly_spaced

REASONS = ("no_face", "too_small", "extreme_pose", "too_blurred", "unfamiliar")
BLURS = (1, 2, 4)  # standard deviations in pixels of the crop
BATCH = 32


@report_input_errors
def main() -> None:
    """Parse the command line, count, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="runs/demo", help="folder of a checkpoint, or its id on the Hub")
    parser.add_argument("--dataset", default="demo", help="prepared data set with the clean faces")
    parser.add_argument("--split", default="test")
    parser.add_argument("--data_root", type=Path, default=Path("data"))
    parser.add_argument("--frames", type=int, default=30, help="of each video, evenly spaced")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    table = measure(options)
    print(json.dumps(table, indent=2) if options.json else as_markdown(table))


def measure(options: argparse.Namespace) -> dict[str, dict[str, int]]:
    """Return, by kind of picture, how many there are and how many of them the checkpoint abstains from, by reason."""
    judge = Judge(options.model)
    (data,) = load_evaluation_sets([options.dataset], options.split, options.data_root)
    rows = [data.dataset[index] for index in range(len(data.dataset))]
    seen = set(judge.model.config.seen_methods or [])
    clean: dict[str, list[tuple[np.ndarray, Face]]] = {
        "real": [],
        "fake, seen methods": [],
        "fake, unseen methods": [],
    }
    for index, row in enumerate(rows):
        kind = "real" if row["label"] == REAL else f"fake, {'seen' if row['method'] in seen else 'unseen'} methods"
        clean[kind].append(face_of_crop(row, name_row(index, data.where)))
    table = {f"clean held-out crops, {kind}": judge.crops(crops) for kind, crops in clean.items() if crops}
    for sigma in BLURS:
        for kind in ("real", "fake, seen methods"):
            blurred = [(cv2.GaussianBlur(crop, (0, 0), sigma), face) for crop, face in clean[kind]]
            table[f"the same, {kind}, blurred by {sigma} px"] = judge.crops(blurred)
    people = {row["source_id"].rpartition("/")[2] for row in rows}
    photographs = [path for path in sorted(fetch("orl").glob("*/*.pgm")) if path.parent.name in people]
    if options.dataset == "demo":
        table["photographs of the same people, through the detector"] = judge.pictures(map(read_picture, photographs))
    faceless = sorted(fetch("faceless").iterdir())
    table["pictures without a face, through the detector"] = judge.pictures(map(read_picture, faceless))
    for kind, name in (
        ("frames of a cartoon", "cartoon"),
        ("frames of a colour video of another man", "talking_face"),
    ):
        table[f"{kind}, through the detector"] = judge.pictures(frames_of(fetch(name), options.frames))
    return table


class Judge:
    """A checkpoint, and what it abstains from."""

    def __init__(self, name: str):
        self.model, self.processor = load_checkpoint(find_checkpoint(name, only_dcl=True), torch.device("cpu"))
        self.familiarity = self.model.config.familiarity
        if self.familiarity is None:
            raise InputError(f"the checkpoint {name!r} has no familiarity: train it again without --calibration none.")
        self.detector = fetch_detector()

    @torch.inference_mode()
    def reasons(self, found: list[tuple[np.ndarray, Any]]) -> Iterator[str | None]:
        """Yield the reason to abstain from each crop, given with its `FaceQuality`; None where it is judged."""
        for start in range(0, len(found), BATCH):
            batch = found[start : start + BATCH]
            pixel_values = self.processor([crop for crop, _ in batch], return_tensors="pt")["pixel_values"]
            far = distances(self.model(pixel_values).embedding.numpy(), self.familiarity)
            for (_, quality), distance in zip(batch, far, strict=True):
                abstention = reason_to_abstain(quality, float(distance), self.familiarity)
                yield None if abstention is None else abstention.code

    def crops(self, faces: list[tuple[np.ndarray, Face]]) -> dict[str, int]:
        """Count the reasons over ready-made crops, each with its face in coordinates of the crop."""
        found = [(crop, measure_face(crop, face, np.eye(2, 3))) for crop, face in faces]
        return counted(self.reasons(found))

    def pictures(self, pictures: Iterable[np.ndarray]) -> dict[str, int]:
        """Count the reasons over pictures, in each of which the largest face is judged."""
        found, missing, crop = [], [], self.processor.crop
        for picture in pictures:
            faces = self.detector.detect(picture)
            if not faces:
                missing.append("no_face")
                continue
            transform = crop_transform(faces[0], crop)
            face = cut(picture, transform, crop["size"])
            found.append((face, measure_face(face, faces[0], transform)))
        return counted([*missing, *self.reasons(found)])


def face_of_crop(row: dict[str, Any], where: str) -> tuple[np.ndarray, Face]:
    """Return the crop of a prepared row, and the face in it: all of the crop, with its landmarks if they are known."""
    crop = decode_image(row["image"], where)
    landmarks = None if row["landmarks"] is None else np.asarray(row["landmarks"], np.float32)
    return crop, Face(np.array([0, 0, *crop.shape[1::-1]], np.float32), 1.0, landmarks)


def counted(reasons: Iterable[str | None]) -> dict[str, int]:
    """Count pictures, abstentions, and each reason."""
    counts = Counter(reasons)
    pictures = sum(counts.values())
    return {"pictures": pictures, "abstained": pictures - counts[None]} | {name: counts[name] for name in REASONS}


def frames_of(path: Path, number: int) -> Iterator[np.ndarray]:
    """Yield frames of a video as uint8 RGB."""
    with Video(path) as video:
        for _, frame in video.read(evenly_spaced(len(video.numbers), number)):
            yield frame


def as_markdown(table: dict[str, dict[str, int]]) -> str:
    """Lay out the counts as a table of Markdown."""
    titles = ["abstained", *(name.replace("_", " ") for name in REASONS)]
    lines = [f"| | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for kind, counts in table.items():
        cells = [f"{counts['abstained']} of {counts['pictures']}", *(str(counts[name]) for name in REASONS)]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
