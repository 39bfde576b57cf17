"""Your own folder: `real/` and `fake/` with videos or images, and optionally `masks/`.

```
R/real/001.mp4              R/fake/001.mp4  or  R/fake/<method>/001.mp4      videos
R/real/001/0000.png         R/fake/<method>/001/0000.png                     the images of a video, in its folder
R/real/person.png           R/fake/<method>/person.png                       single images
R/masks/<method>/001.mp4    R/masks/<method>/001/0000.png                    where `fake/` has the same path
```

With `--split_shares`, videos in one folder below `real/` stay together: give each person a folder.

A fake and a real clip belong together if they have the same name (here `001`). Either `R` or each of its folders
`train`, `validation` and `test` contains `real/` and `fake/`. Names are compared regardless of case and of the Unicode
form of accents.
"""

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ...errors_dcl import InputError
from ...prepared.names import FAKE, REAL
from ..clips import Clip, Part, RawDataSet, group_families
from ..frames import Frames, ImageFrames, VideoFrames
from .listing import child, folded, list_media, root_folder

#: The names under which the folder of a split is found.
SPLITS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}
_UNNAMED = "fake"  # the method of fakes that lie in no folder of their own


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this layout."""
    parser.add_argument("--split", default="train", help="name of the split, if there are no folders of splits")


def find(root: str | Path, split: str = "train") -> RawDataSet:
    """Find the clips of each split.

    Args:
        root: the folder.
        split: which split it is, where it has no folders of splits.

    Raises:
        InputError: if the folder is missing, or has not both reals and fakes.
    """
    root = root_folder(root, "real/ and fake/")
    found = RawDataSet(root.resolve().name, {})
    if child(root, "real") or child(root, "fake"):
        folders = {split: root}
    else:
        folders = {name: folder for name, names in SPLITS.items() if (folder := child(root, *names))}
        if not folders:
            raise InputError(
                f"{root} contains neither real/ and fake/ nor train/, validation/ or test/. Arrange it like this."
            )
    for name, folder in folders.items():
        clips = _clips(folder, found)
        found.splits[name] = group_families(clips)
        for label, side in ((REAL, "real"), (FAKE, "fake")):
            found.parts.append(Part(f"{name}, {side}", sum(clip.label == label for clip in clips)))
    return found


def _clips(root: Path, found: RawDataSet) -> list[Clip]:
    sides = {name: child(root, name) for name in ("real", "fake")}
    for name, folder in sides.items():
        if folder is None:
            raise InputError(f"{root} has no folder {name}/. Add it: DCL needs real and fake faces.")
    sides["masks"] = child(root, "masks", "mask")
    reals, fakes, masks = (
        list_media(folder, found.failures, name == "masks", found.skipped) for name, folder in sides.items()
    )
    for name, media in {"real": reals, "fake": fakes}.items():
        if not media:
            raise InputError(f"{sides[name]} contains no videos or images. Add some.")
    of_reals = _Names(reals, sides["real"])
    fakes, masks = (_single_images(media, of_reals) for media in (fakes, masks))
    of_masks = _Names(masks, sides["masks"])
    for key, frames in reals.items():
        folder = key.rpartition("/")[0] if isinstance(frames, VideoFrames) else ""
        found.groups[f"real/{key}"] = folded(folder or key)
    clips = {f"real/{key}": Clip(f"real/{key}", f"real/{key}", "real", REAL, frames) for key, frames in reals.items()}
    for key, frames in fakes.items():
        method, _, clip = key.rpartition("/")
        name = f"{method or _UNNAMED}/{clip}"
        if name in clips:
            raise InputError(f"Two clips of {root} would be named {name!r}. Rename one, or its folder.")
        real, mask = of_reals.find(clip), of_masks.find(key)
        source = name if real is None else f"real/{real}"
        if real is None:  # a folder between method and video is that of a person, as below real/
            found.groups[name] = folded(method.partition("/")[2] or clip)
        clips[name] = Clip(name, source, method or _UNNAMED, FAKE, frames, None if mask is None else masks[mask])
    return list(clips.values())


class _Names:
    """Names as they are written, found whatever their case and however their accents are written.

    Args:
        names: of clips.
        folder: where they lie, for errors.
    """

    def __init__(self, names: Iterable[str], folder: Path | None):
        self._folder = folder
        self._written: dict[str, list[str]] = {}
        for name in names:
            self._written.setdefault(folded(name), []).append(name)

    def find(self, name: str) -> str | None:
        """Return a name as it is written; None if it is not there.

        Raises:
            InputError: if there are several, and none is written like this.
        """
        written = self._written.get(folded(name), [])
        if len(written) > 1 and name not in written:
            raise InputError(
                f"{self._folder} contains {written[0]!r} and {written[1]!r}, and {name!r} may belong to either. "
                "Rename one of them."
            )
        return name if name in written else next(iter(written), None)


def _single_images(media: dict[str, Frames], reals: _Names) -> dict[str, Frames]:
    """Return the images that lie in the folder of a method itself as a clip each.

    A folder that is called as a real clip is no method: its images are the frames of a clip.
    """
    single: dict[str, Frames] = {}
    for key, frames in media.items():
        if isinstance(frames, ImageFrames) and "/" not in key and reals.find(key) is None:
            for path in frames.paths.values():
                name = f"{key}/{path.stem}" if path.parent.name == key else key
                single[name] = replace(frames, paths={0: path})
        else:
            single[key] = frames
    return single
