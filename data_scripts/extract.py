"""From clips to rows: decode frames, track one face through them, and cut it out with its mask."""

import errno
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..errors_dcl import InputError, chain, reason
from ..faces_dcl import SAME_FACE, Face, FaceDetector, crop_transform, cut, overlap
from ..prepared.copies import picture_hash
from ..prepared.dataset import encode_image
from ..prepared.names import DEFAULT_ENCODING, FAKE, REAL
from ..video_dcl import evenly_spaced
from .clips import Clip
from .failures import Failures
from .frames import Frame, FrameReader, Frames, ImageFrames, size_of
from .photographs import NO_FACE, face_row
from .shards import Report

#: Errors of the system, not of the file: a lost server, or too many open files.
_PASSING = {
    *(errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOTCONN),
    *(errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ECONNRESET),
}
_FORGED_ABOVE = 40  # of 255; masks from a video codec have blurred edges
_SAME_PLACE = 0.5  # intersection over union above which a forged face is cut like that in its source frame
_COMPARABLE = 0.5  # of the longest clip of a family; shorter clips count as truncated and do not limit the others


@dataclass(frozen=True)
class Extraction:
    """How faces are taken from clips: the settings of the rows.

    `frames` is the largest number per clip. `crop` has `kind`, `margin` and `size`, as in `faces_dcl.crop_transform`,
    and `detector` names the face detector. Both are None if the frames are crops already.
    """

    dataset: str
    frames: int = 32
    crop: dict[str, Any] | None = None
    detector: str | None = None
    encoding: str = DEFAULT_ENCODING


def family_rows(
    clips: Sequence[Clip], how: Extraction, detector: FaceDetector | None, report: Report
) -> Iterator[dict[str, Any]]:
    """Cut one face out of the frames of each clip of a family, the real clip first, and yield rows.

    All clips use the same frame numbers, evenly spaced over the frames that they share, and the same position, that of
    the real face, because training blends a forgery with its source frame. If the frames are crops, each clip uses its
    own frames, and `detector` is None. If a frame has several faces, the mask of the clip or of another clip of the
    family selects one, so that all show one person; otherwise the position in the previous frame does, or else the
    size. The report records the clips and frames that were read, and what was skipped.
    """
    failures = report.failures
    there: dict[str, Sequence[int]] = {}
    # Open one clip at a time: a 1080p decoder takes over 10 MB, and opening a clip twice only .3 % of its time.
    for clip in clips:
        with _noting(clip, failures), clip.frames.open() as reader:
            there[clip.name] = reader.numbers
    report.clips += len(there)
    guide = next((clip.mask for clip in clips if clip.mask is not None), None)
    wanted = _common_frames(list(there.values()), how.frames)
    places: dict[int, _Place] = {}
    for clip in (clip for clip in clips if clip.name in there):
        numbers = sorted(set(wanted) & set(there[clip.name]))
        given = how.crop is None  # the crops fix the frames, for each clip separately
        if len(numbers) < len(wanted) and not given:
            detail = f"{len(numbers)} of {len(wanted)}"
            failures.add(clip.frames.where, "frames are missing", detail)
        if given or len(numbers) < len(wanted) * _COMPARABLE:  # sampled differently, or truncated
            numbers = _evenly(there[clip.name], how.frames)
        with ExitStack() as stack:
            again = None
            with _noting(clip, failures):
                again = stack.enter_context(clip.frames.open())
            if again is not None:
                yield from _clip_rows(clip, again, numbers, guide, places, how, detector, report)


class _Place(NamedTuple):
    """The position of a face in an image of a given height and width."""

    face: Face
    size: tuple[int, int]

    def is_about(self, face: Face, image: np.ndarray) -> bool:
        """Whether a face is at this position in an image of the same size."""
        return self.size == image.shape[:2] and overlap(self.face.box, face.box) > _SAME_PLACE

    def scaled_to(self, image: np.ndarray) -> Face:
        """Return the face scaled to an image of another size."""
        (height, width), (new_height, new_width) = self.size, image.shape[:2]
        scale = np.float32([new_width / width, new_height / height])
        landmarks = None if self.face.landmarks is None else self.face.landmarks * scale
        return Face(self.face.box * np.tile(scale, 2), self.face.score, landmarks)


@contextmanager
def _noting(clip: Clip, failures: Failures) -> Iterator[None]:
    """Record that a clip cannot be opened; raises an `InputError` for system errors, which may be temporary."""
    try:
        yield
    except InputError as error:
        for cause in chain(error):
            if isinstance(cause, OSError) and cause.errno in _PASSING:
                raise InputError(
                    f"{clip.frames.where} cannot be read now ({cause.strerror}). Check the machine and its file "
                    "systems, then run the same command again. Finished work is kept."
                ) from error
        failures.add(clip.frames.where, "cannot be opened", reason(error))


def _common_frames(lengths: Sequence[Sequence[int]], number: int) -> list[int]:
    """Choose frame numbers over the shortest clip that is not truncated."""
    longest = max(map(len, lengths), default=0)
    comparable = (there for there in lengths if len(there) >= longest * _COMPARABLE)
    return _evenly(min(comparable, key=len, default=()), number)


def _evenly(numbers: Sequence[int], number: int) -> list[int]:
    return [numbers[place] for place in evenly_spaced(len(numbers), number)]


def _clip_rows(
    clip: Clip,
    reader: FrameReader,
    numbers: Sequence[int],
    guide: Frames | None,
    places: dict[int, _Place],
    how: Extraction,
    detector: FaceDetector | None,
    report: Report,
) -> Iterator[dict[str, Any]]:
    last: _Place | None = None
    failures, where = report.failures, clip.frames.where
    with ExitStack() as stack:
        own = clip.mask if clip.label == FAKE else None
        masks = _companions(own, "mask", numbers, stack, failures)
        # Its failures are reported with the clip that it belongs to.
        guides = _companions(guide if own is None and how.crop else None, "mask", numbers, stack, Failures())
        points = _companions(clip.landmarks, "landmarks", numbers, stack, failures)
        frames = zip(reader.read(numbers), masks, guides, points, strict=True)
        for (number, image), mask, marked, landmarks in frames:
            report.frames += 1
            if isinstance(image, InputError):
                failures.add(where, "frames cannot be decoded", reason(image), number)
                continue
            mask = _checked_mask(clip, mask, image, number, failures)
            file = clip.frames.paths[number].name if isinstance(clip.frames, ImageFrames) else None
            columns = {
                "label": clip.label,
                "method": clip.method,
                "compression": clip.compression,
                "video_id": clip.name,
                "source_id": clip.source,
                "frame": number,
                "dataset": how.dataset,
            }
            if how.crop is None:
                if image.shape[0] != image.shape[1]:
                    failures.add(where, "the crop is not square", size_of(image), number)
                    continue
                yield _given_row(clip, image, mask, landmarks, how.encoding, file) | columns
                continue
            faces = detector.detect(image, small_faces=False)
            if not faces:
                failures.add(where, NO_FACE, frame=number)
                continue
            if mask is not None or (marked is not None and marked.shape != image.shape[:2]):
                marked = mask
            # The frame size may change within a clip.
            face = choose_face(faces, marked, None if last is None else last.scaled_to(image))
            last, size = _Place(face, image.shape[:2]), how.crop["size"]
            if clip.name == clip.source:
                places[number] = last
            place = places.get(number)
            same = place is not None and place.is_about(face, image)
            transform = crop_transform(place.face if same else face, how.crop)
            forged = _encoded_mask(clip, None if mask is None else cut(mask, transform, size), size)
            crop = {**how.crop, "detector": detector.name}
            yield face_row(image, face, transform, size, how.encoding, file, mask=forged, crop=crop, **columns)


def _given_row(
    clip: Clip,
    image: np.ndarray,
    mask: np.ndarray | None,
    landmarks: np.ndarray | None,
    encoding: str,
    file: str | None,
) -> dict[str, Any]:
    """Return the columns of a frame that is a face crop already."""
    return {
        "image": encode_image(image, encoding, file),
        "phash": picture_hash(image),
        "mask": _encoded_mask(clip, mask, len(image)),
        "landmarks": None if landmarks is None else landmarks.tolist(),
        "crop": {"kind": "given", "margin": None, "size": len(image), "detector": None},
    }


def _companions(
    frames: Frames | None, what: str, numbers: Sequence[int], stack: ExitStack, failures: Failures
) -> Iterator[np.ndarray | None]:
    """Yield the mask or landmarks of each frame, None if unknown; their errors do not skip a frame."""
    there: list[int] = []
    found: Iterator[tuple[int, Frame]] = iter(())
    if frames is not None:
        try:
            reader = stack.enter_context(frames.open())
            there = sorted(set(numbers) & set(reader.numbers))
            found = reader.read(there)
            if len(there) < len(numbers):
                detail = f"{len(there)} of {len(numbers)} found"
                failures.add(frames.where, f"{what} missing for some frames", detail)
        except InputError as error:
            failures.add(frames.where, f"{what} cannot be opened", reason(error))
    known = set(there)
    for number in numbers:
        value = next(found)[1] if number in known else None
        if isinstance(value, InputError):
            failures.add(frames.where, f"{what} cannot be decoded", reason(value), number)
            value = None
        elif value is not None and what == "mask":
            value = value.max(axis=2)
            if frames.lossy:
                value = np.where(value > _FORGED_ABOVE, 255, 0).astype(np.uint8)
            elif value.max() == 1:
                failures.add(frames.where, "mask values are 0 and 1, expected 0 and 255", frame=number)
                value = None
        yield value


def _checked_mask(
    clip: Clip, mask: np.ndarray | None, image: np.ndarray, number: int, failures: Failures
) -> np.ndarray | None:
    if mask is None or mask.shape == image.shape[:2]:
        return mask
    sizes = f"{size_of(mask)}, frame {size_of(image)}"
    failures.add(clip.mask.where, "mask and frame have different sizes", sizes, number)
    return None


def _encoded_mask(clip: Clip, mask: np.ndarray | None, size: int) -> dict[str, Any] | None:
    """Encode the mask of a crop: zero everywhere for a real, null if unknown."""
    if clip.label == REAL:
        mask = np.zeros((size, size), np.uint8)
    return None if mask is None else encode_image(mask)


def choose_face(faces: Sequence[Face], mask: np.ndarray | None = None, last: Face | None = None) -> Face:
    """Choose the main face of a frame.

    Args:
        faces: of the frame, the largest first.
        mask: uint8 (height, width), above 0 where the frame was forged.
        last: the face in the previous frame.

    Returns:
        The face with the most forged pixels if there is a mask; otherwise the one with the largest overlap with
        `last`; otherwise the largest.
    """
    if mask is not None and mask.any():
        return max(faces, key=lambda face: _mask_inside(face, mask))
    if last is not None:
        nearest = max(faces, key=lambda face: overlap(face.box, last.box))
        if overlap(nearest.box, last.box) > SAME_FACE:
            return nearest
    return faces[0]


def _mask_inside(face: Face, mask: np.ndarray) -> int:
    left, top, right, bottom = np.maximum(np.round(face.box), 0).astype(int)
    return int(mask[top:bottom, left:right].sum(dtype=np.int64))
