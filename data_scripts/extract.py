"""From clips to rows: the wanted frames are decoded, one face is followed through them, and cut out with its mask."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..dataset_dcl import FAKE, REAL, encode_image
from ..errors_dcl import InputError
from ..faces_dcl import Face, FaceDetector, crop_transform, cut
from ..video_dcl import Video, evenly_spaced
from .assets import fetch_detector
from .photographs import face_row, read_photograph
from .shards import Outcome, PreparedFolder, state_of

_FORGED_ABOVE = 40  # of 255: a mask that went through a video codec is grey around what it marks
_SAME_FACE = 0.1  # intersection over union above which a face goes on where it was


@dataclass(frozen=True)
class Clip:
    """A video of a data set, or the images of one.

    Attributes:
        name: unique in the data set, `<method>/<clip>`: the `video_id` of its rows.
        source: the name of the real clip it was made from; its own for a real, and where that is not known.
        method: of the forgery, or the origin of a real.
        label: `REAL` or `FAKE`.
        frames: a video file, or image files by frame number.
        mask: the same of what was forged, by the same numbers; None where it is not known.
    """

    name: str
    source: str
    method: str
    label: int
    frames: Path | dict[int, Path]
    mask: Path | dict[int, Path] | None = None

    def files(self) -> list[Path]:
        """Return all files of frames and masks."""
        parts = [part for part in (self.frames, self.mask) if part is not None]
        return [path for part in parts for path in (part.values() if isinstance(part, dict) else [part])]


class Images:
    """Image files by frame number, read as `video_dcl.Video` is read."""

    def __init__(self, paths: dict[int, Path]):
        self._paths = paths
        self.numbers = sorted(paths)

    def read(self, numbers: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield number and image, RGB, uint8 (height, width, 3); raises `InputError` at the first that is corrupt."""
        for number in sorted(set(numbers)):
            try:
                yield number, read_photograph(self._paths[number])
            except InputError as error:
                raise InputError(f"{self._paths[number]} {error}") from error


def prepare_clips(
    splits: Mapping[str, Sequence[Sequence[Clip]]],
    root: str | Path,
    output: str | Path,
    crop: dict[str, Any],
    number: int,
    dataset: str,
    overwrite: bool = False,
) -> Outcome:
    """Prepare the clips of a raw data set: a file for each split, kept where it is there with the same settings.

    Args:
        splits: the families of each split, as a layout finds them.
        root: the folder in which all their files lie.
        output: folder of the prepared data set.
        crop: `kind`, `margin` and `size`, as `faces_dcl.crop_transform` takes them.
        number: frames of each clip, at most.
        dataset: name of the data set.
        overwrite: replace a data set that was prepared otherwise.

    Raises:
        InputError: if `output` cannot be written or holds another data set, or no face was found in a whole split.
    """
    clips = [clip for families in splits.values() for family in families for clip in family]
    files = sorted(path for clip in clips for path in clip.files())
    settings = {"source": state_of(Path(root), files), "crop": crop, "frames": number, "name": dataset}
    folder, outcome = PreparedFolder(output, splits, settings, overwrite, own=("source", "frames", "name")), Outcome()
    for split, families in splits.items():
        outcome.rows[split] = folder.done(split) or 0
        if outcome.rows[split]:
            continue
        rows = _rows_of_split(families, f"{root} ({split})", crop, number, dataset, outcome.problems)
        outcome.rows[split] = folder.write(split, rows)
    return outcome


def _rows_of_split(
    families: Sequence[Sequence[Clip]],
    where: str,
    crop: dict[str, Any],
    number: int,
    dataset: str,
    problems: dict[str, str],
) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of each family, and raise an `InputError` at the end if there were none."""
    detector, found = fetch_detector(), False
    for family in tqdm(families, where, unit="family"):
        rows = list(family_rows(family, detector, crop, number, dataset, problems))
        found = found or bool(rows)
        yield rows
    if not found:
        place, why = next(iter(problems.items()))
        raise InputError(f"no face was found in {where} ({place}: {why}): give videos or images that show faces.")


def family_rows(
    family: Sequence[Clip],
    detector: FaceDetector,
    crop: dict[str, Any],
    number: int,
    dataset: str,
    problems: dict[str, str],
) -> Iterator[dict[str, Any]]:
    """Cut one face out of the wanted frames of the clips of a family.

    All clips give the frames of the same numbers, evenly spaced over the first clip that can be read. In a frame with
    several faces it is the one that the mask marks, else the one where the face of the frame before was, else the
    largest.

    Args:
        family: a real clip and the clips made from it, the real first.
        detector: finds the faces.
        crop: `kind`, `margin` and `size`, as `faces_dcl.crop_transform` takes them.
        number: frames of each clip, at most.
        dataset: the `dataset` column.
        problems: gets what was left out, by place, with the reason.

    Yields:
        Rows of a prepared data set.
    """
    wanted: list[int] = []
    for clip in family:
        try:
            with _open(clip.frames) as frames:
                wanted = wanted or [frames.numbers[place] for place in evenly_spaced(len(frames.numbers), number)]
                there = sorted(set(wanted) & set(frames.numbers))
                if len(there) < len(wanted):
                    problems[f"{clip.name} (length)"] = f"it has {len(there)} of the {len(wanted)} wanted frames"
                yield from _clip_rows(clip, frames, there, detector, crop, dataset, problems)
        except InputError as error:
            problems[clip.name] = str(error)


def _clip_rows(
    clip: Clip,
    frames: Video | Images,
    wanted: Sequence[int],
    detector: FaceDetector,
    crop: dict[str, Any],
    dataset: str,
    problems: dict[str, str],
) -> Iterator[dict[str, Any]]:
    last: Face | None = None
    with ExitStack() as stack:
        masks = _masks(clip, wanted, stack, problems)
        for frame, image in frames.read(wanted):
            mask = next(masks, None)
            if mask is not None and mask.shape != image.shape[:2]:
                problems[f"{clip.name}, mask of frame {frame}"] = (
                    f"it is {mask.shape[1]}x{mask.shape[0]}, and the frame {image.shape[1]}x{image.shape[0]}"
                )
                mask = None
            faces = detector.detect(image)
            if not faces:
                problems[f"{clip.name}, frame {frame}"] = "no face was found"
                continue
            last = choose_face(faces, mask, last)
            if clip.label == REAL:
                forged = np.zeros((crop["size"],) * 2, np.uint8)
            else:
                forged = None if mask is None else cut(mask, crop_transform(last, crop), crop["size"])
            yield face_row(
                image,
                last,
                crop,
                mask=None if forged is None else encode_image(forged),
                label=clip.label,
                method=clip.method,
                video_id=clip.name,
                source_id=clip.source,
                frame=frame,
                crop={**crop, "detector": detector.name},
                dataset=dataset,
            )


def _masks(
    clip: Clip, wanted: Sequence[int], stack: ExitStack, problems: dict[str, str]
) -> Iterator[np.ndarray | None]:
    """Yield the mask of each wanted frame, None where there is none; what is wrong with a mask costs no frame."""
    if clip.mask is None or clip.label != FAKE:
        return
    try:
        masks = stack.enter_context(_open(clip.mask))
        there = sorted(set(wanted) & set(masks.numbers))
        if len(there) < len(wanted):
            problems[f"{clip.name} (mask)"] = f"the mask has {len(there)} of the {len(wanted)} wanted frames"
        pending = masks.read(there)
        for number in wanted:
            if number not in there:
                yield None
                continue
            _, image = next(pending)
            mask = image.max(axis=2)
            yield np.where(mask > _FORGED_ABOVE, 255, 0).astype(np.uint8) if isinstance(masks, Video) else mask
    except InputError as error:
        problems[f"{clip.name} (mask)"] = str(error)


def _open(frames: Path | dict[int, Path]) -> AbstractContextManager[Video | Images]:
    return nullcontext(Images(frames)) if isinstance(frames, dict) else Video(frames, threads=1)


def choose_face(faces: Sequence[Face], mask: np.ndarray | None = None, last: Face | None = None) -> Face:
    """Choose the face that a clip is about.

    Args:
        faces: of a frame, the largest first; at least one.
        mask: uint8 (height, width), above 0 where the frame was forged: the face with most of it is taken.
        last: the face of the frame before: without a mask, the one that overlaps it most goes on.
    """
    if mask is not None and mask.any():
        return max(faces, key=lambda face: _mask_inside(face, mask))
    if last is not None:
        nearest = max(faces, key=lambda face: _overlap(face.box, last.box))
        if _overlap(nearest.box, last.box) > _SAME_FACE:
            return nearest
    return faces[0]


def _mask_inside(face: Face, mask: np.ndarray) -> int:
    left, top, right, bottom = np.maximum(np.round(face.box), 0).astype(int)
    return int(mask[top:bottom, left:right].sum(dtype=np.int64))


def _overlap(box: np.ndarray, other: np.ndarray) -> float:
    """Return the intersection over union of two boxes."""
    extent = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    shared = float(np.prod(np.maximum(extent, 0)))
    return shared / float(np.prod(box[2:] - box[:2]) + np.prod(other[2:] - other[:2]) - shared)


__all__ = ["Clip", "Images", "choose_face", "family_rows", "prepare_clips"]
