"""Count abstentions by kind of picture: `python benchmarks/abstention.py --model runs/demo --data_root data`.

Clean faces of the test split should get a score. Blurred or enlarged faces, pictures without a face, a cartoon and, if
the training data is grey, colour photographs and videos should not. Prepared crops do not record the size of the face
in its photograph, so for them only pose, sharpness and distance count. Pictures and videos go through the whole
pipeline. With several checkpoints, such as those of several seeds, numbers become ranges.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.stats import binomtest

from dcl_face_forgery.abstention_dcl import distances, measure_face, reason_to_abstain
from dcl_face_forgery.data_scripts.assets import fetch
from dcl_face_forgery.errors_dcl import InputError, report_input_errors
from dcl_face_forgery.faces_dcl import Face
from dcl_face_forgery.media_dcl import find_files, is_video, read_picture
from dcl_face_forgery.modeling_dcl import ReferenceNetwork, find_reference
from dcl_face_forgery.pipeline_dcl import FaceForgeryDetectionPipeline
from dcl_face_forgery.prepared.dataset import decode_image, name_row
from dcl_face_forgery.prepared.names import REAL
from dcl_face_forgery.prepared.splits import load_splits
from dcl_face_forgery.video_dcl import Video, evenly_spaced

REASONS = ("no_face", "too_small", "extreme_pose", "too_blurred", "unfamiliar")
BLURS = (1, 2, 4)  # standard deviations in pixels of the crop
SMALL = 20  # pixels
#: Unmanipulated colour photographs of people, from several packages.
EVERYDAY = ("astronaut", "hopper", "adminlte", "ultralytics")
CLEAN, COLOUR = "clean held-out crops", "colour"
LARGEST_SHARE = 0.05  # of clean faces without a score, and of unfamiliar colour faces with one


@report_input_errors
def main() -> None:
    """Parse the command line, count, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", nargs="+", default=["runs/demo"], help="checkpoints (folders or Hub ids)")
    parser.add_argument("--dataset", default="demo", help="prepared data set with the clean faces")
    parser.add_argument("--split", default="test")
    parser.add_argument("--data_root", type=Path, default=Path("data"))
    parser.add_argument("--frames", type=int, default=30, help="evenly spaced frames of each video")
    parser.add_argument("--pictures", nargs="*", type=Path, default=[], help="folders with more colour pictures")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument(
        "--check",
        action="store_true",
        help="exit with status 1 if over 5 %% of clean faces get no score, or over 5 %% of colour faces get one",
    )
    options = parser.parse_args()
    tables = {name: measure(name, options) for name in options.model}
    print(json.dumps(tables, indent=2) if options.json else as_markdown(list(tables.values())))
    if options.check and (broken := [line for name, table in tables.items() for line in broken_promises(name, table)]):
        print(*broken, sep="\n", file=sys.stderr)
        sys.exit(1)


def measure(name: str, options: argparse.Namespace) -> dict[str, dict[str, int]]:
    """Return the numbers of faces and of abstentions by reason, for each kind of picture."""
    judge = Judge(name)
    (data,) = load_splits([options.dataset], options.split, options.data_root)
    rows = [data.dataset[index] for index in range(len(data.dataset))]
    seen = set(judge.pipe.model.config.seen_methods or [])
    clean: dict[str, list[tuple[np.ndarray, Face]]] = {
        "real": [],
        "fake, seen methods": [],
        "fake, unseen methods": [],
    }
    for index, row in enumerate(rows):
        kind = "real" if row["label"] == REAL else f"fake, {'seen' if row['method'] in seen else 'unseen'} methods"
        clean.setdefault(kind, []).append(face_of_crop(row, name_row(index, data.where)))
    table = {f"{CLEAN}, {kind}": judge.crops(clean[kind]) for kind in sorted(clean, reverse=True)}
    for sigma in BLURS:
        for kind in ("real", "fake, seen methods"):
            blurred = [(cv2.GaussianBlur(crop, (0, 0), sigma), face) for crop, face in clean[kind]]
            table[f"the same, {kind}, blurred by {sigma} px"] = judge.crops(blurred)
    small = [(enlarged(crop, SMALL), face) for crop, face in clean["real"]]
    table[f"the same, real, enlarged from {SMALL} px"] = judge.crops(small)
    people = {row["source_id"].rpartition("/")[2] for row in rows}
    photographs = [path for path in sorted(fetch("orl").glob("*/*.pgm")) if path.parent.name in people]
    if options.dataset == "demo":
        table["photographs of the same people"] = judge.pictures(map(read_picture, photographs))
    table["pictures without a face"] = judge.pictures(map(read_picture, sorted(fetch("faceless").iterdir())))
    table["frames of a cartoon"] = judge.pictures(frames_of(fetch("cartoon"), options.frames))
    table[f"{COLOUR} video of a talking face"] = judge.pictures(frames_of(fetch("talking_face"), options.frames))
    everyday = [read_picture(path) for name in EVERYDAY for path in pictures_of(fetch(name))]
    table[f"{COLOUR} photographs of people"] = judge.pictures(everyday)
    table["the same in grey"] = judge.pictures(map(in_grey, everyday))
    for folder in options.pictures:
        files = find_files(folder)
        pictures = [read_picture(path) for path in files if not is_video(path)]
        table[f"{COLOUR} photographs in {folder.name}"] = judge.pictures(pictures)
        for path in filter(is_video, files):
            table[f"{COLOUR} video {path.name}"] = judge.pictures(frames_of(path, options.frames))
    return table


class Judge:
    """A checkpoint, and counts of its abstentions."""

    def __init__(self, name: str):
        self.pipe = FaceForgeryDetectionPipeline.from_pretrained(name, device="cpu")
        self.familiarity = self.pipe.model.config.familiarity
        if self.familiarity is None:
            raise InputError(
                f"Checkpoint {name!r}: has no limits of familiarity. Train it again without --calibration none."
            )
        self.reference = ReferenceNetwork(find_reference(name))

    def crops(self, faces: list[tuple[np.ndarray, Face]]) -> dict[str, int]:
        """Count the reasons over prepared crops, each with its face in coordinates of the crop."""
        reasons = []
        for crop, face in faces:
            quality = measure_face(crop, face, np.eye(2, 3))
            distance = float(distances(self.reference([crop]), self.familiarity)[0])
            abstention = reason_to_abstain(quality, distance, self.familiarity)
            reasons.append(None if abstention is None else abstention.code)
        return counted(reasons)

    def pictures(self, pictures: Iterable[np.ndarray]) -> dict[str, int]:
        """Count the reasons over all faces of pictures; a picture without a face counts as one."""
        reasons: list[str | None] = []
        for picture in pictures:
            faces = self.pipe(picture)["faces"]
            reasons += [face["reason"] for face in faces] or ["no_face"]
        return counted(reasons)


def face_of_crop(row: dict[str, Any], where: str) -> tuple[np.ndarray, Face]:
    """Return the crop of a prepared row and its face: the whole crop, with landmarks if known."""
    crop = decode_image(row["image"], where)
    landmarks = None if row["landmarks"] is None else np.asarray(row["landmarks"], np.float32)
    return crop, Face(np.array([0, 0, *crop.shape[1::-1]], np.float32), 1.0, landmarks)


def enlarged(crop: np.ndarray, side: int) -> np.ndarray:
    """Return a crop at the resolution of a smaller side, by shrinking and enlarging it."""
    small = cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, crop.shape[1::-1], interpolation=cv2.INTER_CUBIC)


def in_grey(picture: np.ndarray) -> np.ndarray:
    """Return an RGB picture in grey."""
    return cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def counted(reasons: Iterable[str | None]) -> dict[str, int]:
    """Count faces, abstentions, and reasons."""
    counts = Counter(reasons)
    faces = sum(counts.values())
    return {"faces": faces, "abstained": faces - counts[None]} | {name: counts[name] for name in REASONS}


def pictures_of(path: Path) -> list[Path]:
    """Return the pictures of an asset."""
    return sorted(path.iterdir()) if path.is_dir() else [path]


def frames_of(path: str | Path, number: int) -> Iterator[np.ndarray]:
    """Yield frames of a video as uint8 RGB."""
    with Video(path) as video:
        for _, frame in video.read(evenly_spaced(len(video.numbers), number)):
            yield frame


def broken_promises(name: str, table: dict[str, dict[str, int]]) -> Iterator[str]:
    """Yield a sentence for clean faces without a score, and colour faces with one, above `LARGEST_SHARE`."""
    clean = [counts for kind, counts in table.items() if kind.startswith(CLEAN)]
    faces, refused = (sum(counts[column] for counts in clean) for column in ("faces", "abstained"))
    if refused > LARGEST_SHARE * faces:
        yield f"{name} gives no score to {refused} of {faces} clean faces like its training data."
    for kind, counts in table.items():
        scored = counts["faces"] - counts["abstained"]
        if kind.startswith(COLOUR) and scored > LARGEST_SHARE * counts["faces"]:
            yield f"{name} scores {scored} of {counts['faces']} faces unlike its training data ({kind})."


def as_markdown(tables: list[dict[str, dict[str, int]]]) -> str:
    """Format the counts as a Markdown table, with ranges over several checkpoints."""
    titles = ["no score", "95 % interval", *(name.replace("_", " ") for name in REASONS)]
    lines = [f"| | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for kind, first in tables[0].items():
        share = binomtest(first["abstained"], first["faces"]).proportion_ci(method="wilson")
        cells = [
            f"{ranged(table[kind]['abstained'] for table in tables)} of {first['faces']}",
            f"{100 * share.low:.0f} to {100 * share.high:.0f} %",
            *(ranged(table[kind][name] for table in tables) for name in REASONS),
        ]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ranged(counts: Iterable[int]) -> str:
    """Return a count, or the range of several counts."""
    least, *_, most = sorted([*counts] * 2)
    return str(least) if least == most else f"{least} to {most}"


if __name__ == "__main__":
    main()
