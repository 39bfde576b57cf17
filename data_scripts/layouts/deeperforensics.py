"""DeeperForensics-1.0: faces of paid actors put into videos of FaceForensics++, also with perturbations.

```
R/manipulated_videos/end_to_end/000_M101.mp4       fake: <video of FaceForensics++>_<actor>
R/manipulated_videos/end_to_end_level_1/...        the same with perturbations, and so on: variants
R/source_videos/M101/light_uniform/...mp4          real: the actors
R/lists/splits/{train,val,test}.txt                file names of forgeries, one a line
```

The videos that were forged are those of FaceForensics++ and not in here. With their root (`--reals`) they are the
reals, each in the split of the forgeries that were made from it. Without it the actors are the reals. The data set
splits only its forgeries, so actors are divided 7:1:2 in the order of their names.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ...errors_dcl import InputError
from ...prepared.names import FAKE, REAL
from ..clips import Clip, Part, RawDataSet, group_families
from ..failures import Failures
from ..frames import Frames
from .ffpp import COMPRESSIONS
from .listing import MISSING, Shelf, child, descend, list_clips, list_media, read_lines, root_folder

DEFAULT_VARIANT = "end_to_end"
#: The splits, the names of their lists, and how many forgeries of a variant each has.
SPLITS = {"train": ("train", 703), "validation": ("val", 96), "test": ("test", 201)}
_SHARES = {"train": 7, "validation": 1, "test": 2}  # of ten actors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this layout."""
    parser.add_argument(
        "--variants",
        nargs="+",
        default=[DEFAULT_VARIANT],
        metavar="VARIANT",
        help="folders of manipulated_videos/ to use",
    )
    parser.add_argument("--reals", help="root of FaceForensics++, whose videos become the reals (default: the actors)")
    parser.add_argument(
        "--compression", choices=COMPRESSIONS, default="c23", help="compression of the videos of --reals"
    )


def find(
    root: str | Path,
    variants: Sequence[str] = (DEFAULT_VARIANT,),
    reals: str | Path | None = None,
    compression: str = "c23",
) -> RawDataSet:
    """Find the clips of each split: of some variants, folders of `manipulated_videos`.

    The reals are those of FaceForensics++, if its root is given, in a compression, else the actors. Raises
    `InputError` if a list, a variant, or all reals are missing.
    """
    root = root_folder(root, "manipulated_videos/ and lists/")
    found = RawDataSet("deeperforensics", {})
    forged = {split: [] for split in SPLITS}
    for variant in variants:
        _read_variant(root, variant, forged, found)
    if reals is None:
        originals = _actors(root, found.failures)
    else:
        originals = _targets(root_folder(reals, "FaceForensics++"), compression, forged, found)
    for split, clips in forged.items():
        found.parts.append(Part(f"{split}, real", len(originals[split])))
        found.splits[split] = group_families([*originals[split], *clips])
    return found


def _read_variant(root: Path, variant: str, forged: dict[str, list[Clip]], found: RawDataSet) -> None:
    """Add the forgeries of a variant to those of their splits."""
    place = child(root, "manipulated_videos")
    videos = list_clips(child(place, variant), found.failures) if Path(variant).name == variant else {}
    if not videos:
        there = sorted(path.name for path in place.iterdir() if path.is_dir()) if place else []
        raise InputError(
            f"{root / 'manipulated_videos' / variant} contains no videos. Choose other --variants "
            f"({', '.join(there) or 'none found'}), or another --root."
        )
    shelf = Shelf(place / variant, videos, found.failures)
    splits: dict[str, str] = {}
    for split, (name, published) in SPLITS.items():
        path = descend(root, "lists", "splits", f"{name}.txt")
        if path is None:
            raise InputError(
                f"{root} has no lists/splits/{name}.txt, the list of that split. Copy lists/ from the download, or "
                "from github.com/EndlessSora/DeeperForensics-1.0."
            )
        number = 0
        for line in read_lines(path):
            taken = shelf.take(line, path)
            if taken is None:
                continue
            clip, frames = taken
            if clip in splits:
                found.failures.add(frames.where, "listed twice", f"kept in {splits[clip]}")
            else:
                splits[clip] = split
                target = f"youtube/{clip.partition('_')[0]}"
                forged[split].append(Clip(f"{variant}/{clip}", target, variant, FAKE, frames))
                number += 1
        found.parts.append(Part(f"{split}, {variant}", number, published))
    shelf.report_rest()


def _actors(root: Path, failures: Failures) -> dict[str, list[Clip]]:
    """Return the videos of the actors, a tenth of whom is validated, and two tenths tested."""
    videos: dict[str, list[tuple[str, Frames]]] = {}
    for key, frames in list_clips(child(root, "source_videos"), failures).items():
        videos.setdefault(key.partition("/")[0], []).append((key, frames))
    if not videos:
        raise InputError(
            f"{root} has no source_videos/, but DCL needs reals. Download them, or pass --reals with the root of "
            "FaceForensics++."
        )
    clips: dict[str, list[Clip]] = {split: [] for split in SPLITS}
    turns = [split for split, share in _SHARES.items() for _ in range(share)]
    for place, actor in enumerate(sorted(videos)):
        split = turns[place * len(turns) // len(videos)]
        for key, frames in videos[actor]:
            clips[split].append(Clip(f"source_videos/{key}", f"source_videos/{key}", "source_videos", REAL, frames))
    return clips


def _targets(root: Path, compression: str, forged: dict[str, list[Clip]], found: RawDataSet) -> dict[str, list[Clip]]:
    """Return the videos of FaceForensics++ that were forged, each in the first split that has a forgery of it."""
    folder = descend(root_folder(root, "original_sequences/"), "original_sequences", "youtube", compression)
    videos, images = (child(folder, name) for name in ("videos", "images"))
    media = list_media(videos, found.failures) or list_media(images, found.failures)
    if not media:
        raise InputError(
            f"{root}/original_sequences/youtube/{compression}/videos contains no videos. Pass --reals with the root "
            "of FaceForensics++, and an existing --compression."
        )
    clips: dict[str, list[Clip]] = {}
    seen: set[str] = set()
    for split, fakes in forged.items():
        targets = sorted({fake.source for fake in fakes} - seen)
        seen.update(targets)
        clips[split] = []
        for name in targets:
            clip = PurePosixPath(name).name
            if clip in media:
                # Without a compression, as the forgeries: else they would not be found to be made from it.
                clips[split].append(Clip(name, name, "youtube", REAL, media[clip]))
            else:
                found.failures.add(folder / "videos" / f"{clip}.mp4", MISSING, "a forgery was made from it")
    return clips
