"""Celeb-DF, version 1 or 2: interviews with celebrities, and one method of forgery.

```
R/Celeb-real/id1_0007.mp4             real
R/YouTube-real/00170.mp4              real
R/Celeb-synthesis/id1_id0_0007.mp4    fake: the face of id0 in the video id1_0007
R/List_of_testing_videos.txt          "1 YouTube-real/00170.mp4": 1 is REAL and 0 is FAKE
```

The list's digits mean the opposite of the classes here and everywhere else. So the label comes from the folder, and a
line that says otherwise is reported. The videos of the list are the test split, all others train. People are not kept
apart: id1 is in both.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from ...errors_dcl import InputError, abridged
from ...prepared.names import CLASS_NAMES, FAKE, REAL
from ..clips import Clip, Part, RawDataSet, group_families
from ..frames import Frames
from .listing import CONTRADICTED, NO_LABEL, Shelf, child, list_clips, read_lines, root_folder

LIST = "List_of_testing_videos.txt"
_LABELS = {"Celeb-real": REAL, "YouTube-real": REAL, "Celeb-synthesis": FAKE}
_DIGITS = {"1": REAL, "0": FAKE}
#: How many videos each version has, by folders.
_PUBLISHED = {
    1: {("Celeb-real", "YouTube-real"): 408, ("Celeb-synthesis",): 795},
    2: {("Celeb-real",): 590, ("YouTube-real",): 300, ("Celeb-synthesis",): 5639},
}
_PUBLISHED_TEST = {2: {"real": 178, "fake": 340}}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this layout."""
    parser.add_argument("--version", type=int, choices=_PUBLISHED, default=2, help="version of the data set")


def find(root: str | Path, version: int = 2) -> RawDataSet:
    """Find the clips of the list, and all others; raises `InputError` if the list, reals or fakes are missing."""
    root = root_folder(root, f"{', '.join(_LABELS)} and {LIST}")
    found = RawDataSet(f"celeb_df_v{version}", {})
    media = {name: list_clips(child(root, name), found.failures) for name in _LABELS}
    for label, side in enumerate(CLASS_NAMES):
        folders = [name for name in _LABELS if _LABELS[name] == label]
        if not any(media[name] for name in folders):
            raise InputError(f"{root} has no {side} videos ({', '.join(folders)}). Download them, or check --root.")
    for folders, number in _PUBLISHED[version].items():
        found.parts.append(Part(" and ".join(folders), sum(len(media[name]) for name in folders), number))
    clips = {f"{folder}/{name}": frames for folder in _LABELS for name, frames in media[folder].items()}
    listed, tested = _read_list(root, clips, found)
    test = [_clip(name, clips[name]) for name in tested]
    train = [_clip(name, frames) for name, frames in clips.items() if name not in listed]
    found.splits = {"train": group_families(train), "test": group_families(test)}
    for label, side in enumerate(CLASS_NAMES):
        published = _PUBLISHED_TEST.get(version, {}).get(side)
        found.parts.append(Part(f"test, {side}", sum(clip.label == label for clip in test), published))
    return found


def _read_list(root: Path, clips: Mapping[str, Frames], found: RawDataSet) -> tuple[set[str], list[str]]:
    """Return which clips the list names, and which of these its digit agrees with, in its order."""
    path = child(root, LIST)
    if path is None:
        raise InputError(f"{root} has no {LIST}, which lists the test videos. Copy it from the download.")
    shelf = Shelf(root, clips, found.failures)
    listed: list[str] = []
    tested: list[str] = []
    for line in read_lines(path):
        digit, _, name = line.rpartition(" ")
        taken = shelf.take(name, path)
        if taken is None:
            continue
        listed.append(taken[0])
        label, said = _LABELS[taken[0].partition("/")[0]], _DIGITS.get(digit.strip())
        if said == label:
            tested.append(taken[0])
        elif said is None:
            found.failures.add(taken[1].where, NO_LABEL, f"{LIST} has {abridged(line)}")
        else:
            found.failures.add(taken[1].where, CONTRADICTED, f"{LIST} has {digit}, which means {CLASS_NAMES[said]}")
    if not listed:
        raise InputError(f"{path} lists no video of {root}. Download it again, or check --root.")
    return set(listed), list(dict.fromkeys(tested))


def _clip(name: str, frames: Frames) -> Clip:
    method, _, clip = name.partition("/")
    label, source = _LABELS[method], name
    parts = clip.split("_")
    if label == FAKE and len(parts) == 3:
        source = f"Celeb-real/{parts[0]}_{parts[2]}"
    return Clip(name, source, method, label, frames)
