"""DFDC, the Deepfake Detection Challenge: 50 parts for training, and folders for validation and test.

```
R/dfdc_train_part_0/metadata.json    {"awnfpubqmo.mp4": {"label": "FAKE", "original": "lnhkjhyhvw.mp4"},
R/dfdc_train_part_0/awnfpubqmo.mp4    "lnhkjhyhvw.mp4": {"label": "REAL"}}
R/validation/labels.csv              filename,label: 1 is fake
R/test/labels.csv                    or metadata.json: {"aalscayrfi.mp4": {"is_fake": 0}}
R/train_sample_videos/metadata.json  Kaggle's sample, as a part; its test_videos have no labels
```

The parts lie in `R` or in `R/train`; where there are none, Kaggle's sample is taken, or `R` itself if it is a part. By
the protocol `official` they are the training data; by `parts` the validation and test data are parts of them, too: 35
to 39, and 40 to 49. Where a fake comes from is said in the parts alone.
"""

import argparse
import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors_dcl import InputError, reason
from ...prepared.names import CLASS_NAMES, FAKE, REAL
from ...video_dcl import VIDEO_SUFFIXES
from ..clips import Clip, Part, RawDataSet, group_families
from .listing import NO_LABEL, Shelf, child, list_clips, plain_name, read_json, read_lines, root_folder

PROTOCOLS = ("official", "parts")
REALS, FAKES = "original", "DFDC"  # the set does not tell its methods apart
_VALIDATION_PARTS, _TEST_PARTS = range(35, 40), range(40, 50)
_PART = re.compile(r"dfdc_train_part_0*(\d+)", re.IGNORECASE)
_PUBLISHED = {"train": 119_154, "validation": 4_000, "test": 5_000}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this layout."""
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="official",
        help="official: train from the parts, validation and test from their folders; parts: all from the parts, "
        "0-34, 35-39 and 40-49",
    )


def find(root: str | Path, protocol: str = "official") -> RawDataSet:
    """Find the clips of each split, by a protocol of `PROTOCOLS`.

    The root holds the parts, `validation` and `test`, or Kaggle's sample, or is one part. Raises `InputError` if there
    are no folders with a list that can be read.
    """
    root = root_folder(root, "dfdc_train_part_0/ and so on, train_sample_videos/, validation/ or test/")
    found = RawDataSet("dfdc", {})
    folders = dict(_folders(root, protocol))
    part = None if "train" in folders.values() else _single_part(root)
    if part is not None:
        folders[part] = part.name.lower() if part.name.lower() in ("validation", "test") else _split_of(part, protocol)
    clips: dict[str, list[Clip]] = {}
    names: set[str] = set()
    readable = False
    for folder, split in folders.items():
        try:
            path, entries = _read_list(folder)
        except InputError as error:
            found.failures.add(folder, "list cannot be read", reason(error))
            continue
        readable = True
        for clip in _clips(folder, path, entries, found):
            if clip.name in names:
                found.failures.add(clip.frames.where, "another clip has the same name")
            else:
                names.add(clip.name)
                clips.setdefault(split, []).append(clip)
    if not readable:
        why = next((f" ({failure})" for failure in found.failures), "")
        raise InputError(
            f"{root} contains no part of DFDC for the protocol {protocol}{why}. Pass the folder that contains "
            "dfdc_train_part_0/ and so on, one such part, train_sample_videos/, or test/ with its labels.csv or "
            "metadata.json."
        )
    for split in ("train", "validation", "test"):
        if split in clips:
            found.splits[split] = group_families(clips[split])
        there = clips.get(split, [])
        whole = protocol == "official" and part is None
        found.parts.append(Part(split, len(there), _PUBLISHED[split] if whole else None))
        for label, side in enumerate(CLASS_NAMES):
            found.parts.append(Part(f"{split}, {side}", sum(clip.label == label for clip in there)))
    return found


def _folders(root: Path, protocol: str) -> Iterator[tuple[Path, str]]:
    """Yield folders of videos, and the split that each belongs to."""
    parts = {}
    for place in (root, child(root, "train")):
        for folder in place.iterdir() if place is not None and place.is_dir() else ():
            if (match := _PART.fullmatch(folder.name)) and folder.is_dir():
                parts[int(match[1])] = folder
    for _, folder in sorted(parts.items()):
        yield folder, _split_of(folder, protocol)
    if protocol == "official":
        for split in ("validation", "test"):
            if folder := child(root, split):
                yield folder, split


def _split_of(part: Path, protocol: str) -> str:
    match = _PART.fullmatch(part.name)
    if protocol == "official" or not match:
        return "train"
    return "validation" if int(match[1]) in _VALIDATION_PARTS else "test" if int(match[1]) in _TEST_PARTS else "train"


def _single_part(root: Path) -> Path | None:
    """Return a folder that is one part, whatever its name: Kaggle's sample, or the root itself."""
    sample = child(root, "train_sample_videos")
    if sample is not None and child(sample, "metadata.json"):
        return sample
    has_clips = any(path.suffix.lower() in VIDEO_SUFFIXES for path in root.iterdir())
    return root if has_clips and child(root, "metadata.json") else None


def _read_list(folder: Path) -> tuple[Path, Mapping[Any, Any]]:
    """Return the list of a folder, and what it says of each video, as metadata.json has it."""
    if path := child(folder, "metadata.json"):
        return path, read_json(path, dict)
    path = child(folder, "labels.csv")
    if path is None:
        raise InputError(f"{folder} has neither metadata.json nor labels.csv. Copy it from the download.")
    table = csv.DictReader(read_lines(path))
    try:
        if not {"filename", "label"} <= set(table.fieldnames or ()):
            raise InputError(f"{path} has no columns filename and label. Copy it from the download.")
        return path, {row["filename"]: {"label": row["label"]} for row in table}
    except csv.Error as error:
        raise InputError(f"{path} cannot be read ({error}). Copy it from the download.") from error


def _clips(folder: Path, path: Path, entries: Mapping[Any, Any], found: RawDataSet) -> Iterator[Clip]:
    shelf = Shelf(folder, list_clips(folder, found.failures), found.failures)
    for name, entry in entries.items():
        taken = shelf.take(name, path)
        if taken is None:
            continue
        clip, frames = taken
        label = _label(entry)
        if label is None:
            found.failures.add(frames.where, NO_LABEL)
        elif label == REAL:
            yield Clip(f"{REALS}/{clip}", f"{REALS}/{clip}", REALS, REAL, frames)
        else:
            original = plain_name(entry.get("original"))
            yield Clip(
                f"{FAKES}/{clip}", f"{REALS}/{original}" if original else f"{FAKES}/{clip}", FAKES, FAKE, frames
            )
    shelf.report_rest()


def _label(entry: object) -> int | None:
    if not isinstance(entry, dict):
        return None
    said = str(entry.get("is_fake", entry.get("label"))).strip().lower()
    return {"0": REAL, "real": REAL, "1": FAKE, "fake": FAKE}.get(said)
