"""A folder of one's own: `real/` and `fake/`, videos or images, and `masks/` where they are known.

```
R/real/001.mp4              R/fake/001.mp4  or  R/fake/<method>/001.mp4      videos
R/real/001/0000.png         R/fake/<method>/001/0000.png                     the images of a video, in its folder
R/masks/<method>/001.mp4    R/masks/<method>/001/0000.png                    where `fake/` has the same path
```

The clip of a fake and that of a real belong together where they have the same name (here `001`). `R` itself, or each
of its folders `train`, `validation` and `test`, holds `real/` and `fake/`. Upper and lower case are the same.
"""

from pathlib import Path

from ...dataset_dcl import FAKE, REAL
from ...errors_dcl import InputError
from ...video_dcl import VIDEO_SUFFIXES
from ..extract import Clip
from ..photographs import list_photographs

#: The names under which the folder of a split is found.
SPLITS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}
_UNNAMED = "fake"  # the method of fakes that lie in no folder of their own


def find_families(root: str | Path, split: str) -> dict[str, list[list[Clip]]]:
    """Find the clips of each split, those that belong together in one list, the real first.

    Args:
        root: the folder.
        split: which split it is, where it has no folders of splits.

    Raises:
        InputError: if the folder is missing, or has not both reals and fakes.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"there is no folder {root}: give one that holds real/ and fake/.")
    if _child(root, "real", "fake"):
        return {split: _families(root)}
    folders = {name: folder for name, names in SPLITS.items() if (folder := _child(root, *names))}
    if not folders:
        raise InputError(f"{root} holds neither real/ and fake/ nor train/, validation/ or test/: arrange it so.")
    return {name: _families(folder) for name, folder in folders.items()}


def _child(folder: Path, *names: str) -> Path | None:
    return next((path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.lower() in names), None)


def _families(root: Path) -> list[list[Clip]]:
    sides = {name: _child(root, name) for name in ("real", "fake")}
    for name, folder in sides.items():
        if folder is None:
            raise InputError(f"{root} has no folder {name}/: DCL needs real and fake faces.")
    reals, fakes = (_media(folder) for folder in sides.values())
    for name, media in zip(sides, (reals, fakes), strict=True):
        if not media:
            raise InputError(f"{sides[name]} holds no video and no image: put some there.")
    masks_folder = _child(root, "mask", "masks")
    masks = {key.lower(): frames for key, frames in (_media(masks_folder) if masks_folder else {}).items()}
    families: dict[str, list[Clip]] = {}
    for key, frames in reals.items():
        name = f"real/{key}"
        families[name] = [Clip(name, name, "real", REAL, frames)]
    names = set(families)
    for key, frames in fakes.items():
        method, _, clip = key.rpartition("/")
        name = f"{method or _UNNAMED}/{clip}"
        if name in names:
            raise InputError(f"two clips of {root} would be called {name!r}: rename one, or the folder it lies in.")
        names.add(name)
        source = f"real/{clip}" if f"real/{clip}" in families else name
        made = Clip(name, source, method or _UNNAMED, FAKE, frames, masks.get(key.lower()))
        families.setdefault(source, []).append(made)
    return list(families.values())


def _media(folder: Path) -> dict[str, Path | dict[int, Path]]:
    """Return videos, and images by frame number, by their path below the folder, less the suffix."""
    media: dict[str, Path | dict[int, Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file() and not path.name.startswith("."):
            key = path.relative_to(folder).with_suffix("").as_posix()
            if key in media:
                raise InputError(f"{folder} holds two videos called {key!r}: rename one of them.")
            media[key] = path
    for image in list_photographs(folder):
        loose = image.path.parent == folder
        key = image.path.relative_to(folder).with_suffix("").as_posix() if loose else image.video
        frames = media.setdefault(key, {})
        if isinstance(frames, dict):  # else a video of the same name, which says more
            frames[image.frame] = image.path
    return dict(sorted(media.items()))


__all__ = ["SPLITS", "find_families"]
