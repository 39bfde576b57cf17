"""DFDCP, the preview of the Deepfake Detection Challenge: two methods, and a list of everything.

```
R/dataset.json                                                     what is real or fake, train or test
R/original_videos/643049/643049_A_001.mp4                          real: <person>_<letter>_<number>
R/method_A/1003254/1003254_A/1255229_1003254_A_001.mp4             fake: <swapped person>_<name of the target>
```

`R` may be the folder above, which holds `dfdc_preview_set`. There is no validation split.
"""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ...errors_dcl import InputError
from ...prepared.names import CLASS_NAMES, FAKE, REAL
from ..clips import Clip, Part, RawDataSet, group_families
from ..frames import Frames
from .listing import CONTRADICTED, NO_LABEL, Shelf, child, descend, list_clips, plain_name, read_json, root_folder

LIST = "dataset.json"
_LABELS = {"original_videos": REAL, "method_A": FAKE, "method_B": FAKE}
_SPLITS = ("train", "test")


def find(root: str | Path) -> RawDataSet:
    """Find the clips of each split; raises `InputError` if the list cannot be read, or names nothing that is there."""
    root = root_folder(root, f"{LIST}, original_videos/, method_A/ and method_B/")
    path = child(root, LIST) or descend(root, "dfdc_preview_set", LIST)
    if path is None:
        raise InputError(f"{root} has no {LIST}, which contains the labels. Copy it from the download.")
    found = RawDataSet("dfdcp", {})
    media = {
        f"{name}/{clip}": frames
        for name in _LABELS
        for clip, frames in list_clips(child(path.parent, name), found.failures).items()
    }
    shelf = Shelf(path.parent, media, found.failures)
    taken: dict[str, tuple[str, Frames, dict[str, Any]]] = {}
    for name, entry in read_json(path, dict).items():
        clip = shelf.take(name, path)
        if clip is None:
            continue
        if (split := _split(clip, entry, found)) is None:
            continue
        method, stem = clip[0].partition("/")[0], PurePosixPath(clip[0]).name
        if f"{method}/{stem}" in taken:
            found.failures.add(clip[1].where, "another clip has the same name")
        else:
            taken[f"{method}/{stem}"] = split, clip[1], entry
    shelf.report_rest()
    if not taken:
        raise InputError(f"{path} lists no existing video with a label and a set. Pass the path of the download.")
    for split in _SPLITS:
        clips = [_clip(name, frames, entry, taken) for name, (where, frames, entry) in taken.items() if where == split]
        found.splits[split] = group_families(clips)
        for label, side in enumerate(CLASS_NAMES):
            found.parts.append(Part(f"{split}, {side}", sum(clip.label == label for clip in clips)))
    return found


def _split(clip: tuple[str, Frames], entry: object, found: RawDataSet) -> str | None:
    """Return the split of a clip, or None with a failure, if its entry does not give one or not its label."""
    name, frames = clip
    if not isinstance(entry, dict) or entry.get("label") not in CLASS_NAMES:
        found.failures.add(frames.where, NO_LABEL)
    elif CLASS_NAMES.index(entry["label"]) != _LABELS[name.partition("/")[0]]:
        found.failures.add(frames.where, CONTRADICTED, f"{LIST} has {entry['label']}")
    elif entry.get("set") not in _SPLITS:
        found.failures.add(frames.where, "no split (train or test)")
    else:
        return entry["set"]
    return None


def _clip(name: str, frames: Frames, entry: Mapping[str, Any], known: Mapping[str, Any]) -> Clip:
    method, _, clip = name.partition("/")
    source = name
    if _LABELS[method] == FAKE:
        original = plain_name(entry.get("source_video"))
        said = f"original_videos/{PurePosixPath(original).name}" if original else None
        named = f"original_videos/{clip.partition('_')[2]}"  # without the person whose face was put in
        source = said or (named if named in known else name)
    return Clip(name, source, method, _LABELS[method], frames)
