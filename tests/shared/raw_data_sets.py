"""The raw data sets of the field in small, as they lie on disk: real faces, forgeries of them, H.264, lists and all.

The people are those of the ORL photographs, whom a slow move of the camera turns into clips, and the talking face.
What was really forged is kept outside of the trees, so that tests can compare.
"""

import functools
import hashlib
import itertools
import json
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np

from dcl_face_forgery.data_scripts.assets import fetch, fetch_detector
from dcl_face_forgery.media_dcl import read_picture
from dcl_face_forgery.prepared.blending import METHODS, Portrait, random_generator
from dcl_face_forgery.video_dcl import Video, evenly_spaced

TALKING = 0  # the person who talks; the others, from 1 to 40, are photographs
FRAMES = 12
_HEIGHT, _WIDTH = 216, 264
_FORGED_ABOVE = 40  # of 255: less than that weight of a forgery is not seen


def encode_sizes(path: Path, images: Sequence[np.ndarray]) -> Path:
    """Write a video at 25 frames a second whose frames may change their size, as in calls over a poor line."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx", rate=25)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt, number = "yuv420p", 0
        for (height, width), group in itertools.groupby(images, key=lambda image: image.shape[:2]):
            encoder = av.CodecContext.create("libvpx", "w")
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
            encoder.time_base = Fraction(1, 25)
            encoder.options = {"deadline": "realtime", "crf": "4", "b": "2M", "lag-in-frames": "0"}
            for frame in [*(av.VideoFrame.from_ndarray(image, format="rgb24") for image in group), None]:
                for packet in encoder.encode(frame):
                    packet.pts = packet.dts = number
                    packet.time_base, packet.stream = Fraction(1, 25), stream
                    container.mux(packet)
                    number += 1
    return path


def encode(path: Path, frames: Sequence[np.ndarray], crf: int = 23) -> None:
    """Write frames, RGB or grey, as an H.264 video; `crf` is that of FaceForensics++: 23 for c23, 40 for c40."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Where its index comes first, a file that breaks off can be read up to the break.
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        options = {"crf": str(crf), "preset": "veryfast", "threads": "1"}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for image in frames:
            kind = "gray" if image.ndim == 2 else "rgb24"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format=kind)))
        container.mux(stream.encode())


def _encoded(frames: Sequence[np.ndarray], crf: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        encode(path, frames, crf)
        return path.read_bytes()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@functools.cache
def person_frames(person: int, number: int = FRAMES) -> tuple[np.ndarray, ...]:
    """Return frames of a person: RGB, uint8 (216, 264, 3); `TALKING`, or the number of an ORL person."""
    if person == TALKING:
        with Video(fetch("talking_face")) as video:
            images = [image for _, image in video.read(evenly_spaced(len(video.numbers), number))]
        return tuple(cv2.resize(image, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_CUBIC) for image in images)
    rng = np.random.default_rng(person)
    tint = np.sort(rng.uniform(0.75, 1, 3))[::-1]  # the photographs are grey
    photographs = [read_picture(fetch("orl") / f"s{person}" / f"{photo}.pgm")[..., 0] for photo in (1, 2)]
    frames = []
    for frame in range(number):
        photograph = photographs[2 * frame // number]
        scale = (0.96 + 0.08 * frame / number) * _HEIGHT / photograph.shape[0]
        shift = (_WIDTH / 2 - 46 * scale + 12 * np.sin(frame / 3), -0.02 * _HEIGHT * frame / number)
        affine = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
        image = cv2.warpAffine(
            photograph, affine, (_WIDTH, _HEIGHT), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
        )
        noisy = image[..., None] * tint + rng.normal(0, 2, (_HEIGHT, _WIDTH, 1))
        frames.append(noisy.clip(0, 255).astype(np.uint8))
    return tuple(frames)


def forge_frames(
    frames: Sequence[np.ndarray], seed: int, method: str = "self_blend", donor: Sequence[np.ndarray] | None = None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Forge the frames of a clip, all alike.

    Args:
        frames: of one face each, RGB, uint8 (height, width, 3).
        seed: of the forgery.
        method: a key of `blending.METHODS`.
        donor: frames of the partner, if the method needs one.

    Returns:
        The forged frames, and which of their pixels are forged: 0 or 255, uint8 (height, width).
    """
    forged, masks = [], []
    for image, other in zip(frames, donor or [None] * len(frames), strict=True):
        partner = None if other is None else _portrait(other)
        forgery = METHODS[method].forge(_portrait(image), partner, random_generator(seed))
        forged.append(forgery.image)
        masks.append(np.where(forgery.mask > _FORGED_ABOVE, 255, 0).astype(np.uint8))
    return forged, masks


_landmarks: dict[bytes, np.ndarray] = {}  # looking for the faces is what takes long


def _portrait(image: np.ndarray) -> Portrait:
    key = hashlib.sha256(image.tobytes()).digest()
    if key not in _landmarks:
        _landmarks[key] = _detector().detect(image)[0].landmarks
    return Portrait(image, _landmarks[key])


@functools.cache
def _detector():
    return fetch_detector()


class RawSet(NamedTuple):
    """A raw data set on disk.

    Attributes:
        root: of its tree.
        forged: by the names of fakes, which pixels of each frame were really forged: 0 or 255, (height, width).
    """

    root: Path
    forged: dict[str, Sequence[np.ndarray]]


#: How the methods of the field are played.
_PLAYED = {
    "Deepfakes": "lowres_swap",
    "Face2Face": "local_warp",
    "FaceSwap": "identity_swap",
    "NeuralTextures": "mouth_swap",
    "FaceShifter": "identity_swap",
    "DeepFakeDetection": "lowres_swap",
}
_CRF = {"raw": 1, "c23": 23, "c40": 40}


@functools.cache
def _real(person: int, crf: int) -> bytes:
    return _encoded(person_frames(person), crf)


@functools.cache
def _forgery(person: int, donor: int, played: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    frames = person_frames(person)
    partner = {None: None, "same": frames[::-1], "other": person_frames(donor)}[METHODS[played].partner]
    return forge_frames(frames, donor, played, partner)


@functools.cache
def _fake(person: int, donor: int, played: str, crf: int) -> bytes:
    return _encoded(_forgery(person, donor, played)[0], crf)


def _put_real(path: Path, person: int, crf: int = 23) -> None:
    _write(path, _real(person, crf))


def _put_fake(path: Path, person: int, donor: int, played: str, crf: int = 23) -> Sequence[np.ndarray]:
    _write(path, _fake(person, donor, played, crf))
    return _forgery(person, donor, played)[1]


def _put_json(path: Path, value: object) -> None:
    _write(path, json.dumps(value).encode())


FFPP_PAIRS = {"train": [["071", "054"]], "val": [["720", "672"]], "test": [["953", "974"]]}
FFPP_PEOPLE = {"071": TALKING, "054": 2, "720": 3, "672": 7, "953": 5, "974": 6}


def write_ffpp(
    root: Path,
    methods: Sequence[str] = ("Deepfakes", "FaceShifter"),
    compressions: Sequence[str] = ("c23",),
) -> RawSet:
    """Write FaceForensics++ with a pair of videos in each split."""
    forged = {}
    for split, pairs in FFPP_PAIRS.items():
        _put_json(root / "splits" / f"{split}.json", pairs)
    for compression in compressions:
        crf = _CRF[compression]
        for name, person in FFPP_PEOPLE.items():
            _put_real(root / "original_sequences" / "youtube" / compression / "videos" / f"{name}.mp4", person, crf)
        for method in methods:
            for pair in (pair for pairs in FFPP_PAIRS.values() for pair in pairs):
                for target, source in (pair, pair[::-1]):
                    folder, name = root / "manipulated_sequences" / method, f"{target}_{source}"
                    path = folder / compression / "videos" / f"{name}.mp4"
                    masks = _put_fake(path, FFPP_PEOPLE[target], FFPP_PEOPLE[source], _PLAYED[method], crf)
                    forged[f"{method}/{name}"] = masks
                    if method != "FaceShifter":
                        encode(folder / "masks" / "videos" / f"{name}.mp4", masks)
    return RawSet(root, forged)


def write_dfd(root: Path) -> RawSet:
    """Write DeepFakeDetection, as it lies in FaceForensics++: two actors, forged with each other's face."""
    forged = {}
    for target, source, scene, code in (
        ("24", "23", "outside_talking_still_laughing", "YR5OVD4S"),
        ("23", "24", "kitchen_pan", "8DTEGQ54"),
    ):
        path = root / "original_sequences" / "actors" / "c23" / "videos" / f"{target}__{scene}.mp4"
        _put_real(path, int(target))
        name, folder = f"{target}_{source}__{scene}__{code}", root / "manipulated_sequences" / "DeepFakeDetection"
        path = folder / "c23" / "videos" / f"{name}.mp4"
        masks = _put_fake(path, int(target), int(source), _PLAYED["DeepFakeDetection"])
        encode(folder / "masks" / "videos" / f"{name}.mp4", masks)
        forged[f"DeepFakeDetection/{name}"] = masks
    return RawSet(root, forged)


def write_celeb_df(root: Path) -> RawSet:
    """Write Celeb-DF: five people; the original of one tested fake is training data."""
    for name, person in {"id0_0000": 2, "id1_0000": 3, "id1_0007": 3, "id2_0001": 5}.items():
        _put_real(root / "Celeb-real" / f"{name}.mp4", person)
    for name, person in {"00000": 6, "00170": 7}.items():
        _put_real(root / "YouTube-real" / f"{name}.mp4", person)
    forged = {}
    for name, (person, donor) in {
        "id0_id1_0000": (2, 3),
        "id1_id0_0000": (3, 2),
        "id1_id0_0007": (3, 2),
        "id2_id1_0001": (5, 3),
    }.items():
        path = root / "Celeb-synthesis" / f"{name}.mp4"
        forged[f"Celeb-synthesis/{name}"] = _put_fake(path, person, donor, "lowres_swap")
    lines = ["1 YouTube-real/00170.mp4", "1 Celeb-real/id1_0007.mp4"]
    lines += ["0 Celeb-synthesis/id1_id0_0007.mp4", "0 Celeb-synthesis/id2_id1_0001.mp4"]
    _write(root / "List_of_testing_videos.txt", "".join(f"{line}\n" for line in lines).encode())
    return RawSet(root, forged)


def write_dfdc(root: Path) -> RawSet:
    """Write DFDC: three parts, one of them with a fake whose original lies in another, validation and test."""
    forged = {}

    def fake(path: Path, person: int, donor: int) -> None:
        forged[f"DFDC/{path.stem}"] = _put_fake(path, person, donor, "lowres_swap")

    parts = {
        0: [("lnhkjhyhvw", 2, "awnfpubqmo", 3), ("xugmhbetrw", 3, None, 0)],
        35: [("xnyyuyfmpv", 5, "qeumxirsme", 2)],
        40: [("bddjdhzfze", 6, "aqrsylrzgi", 3)],
    }
    for part, families in parts.items():
        folder, entries = root / f"dfdc_train_part_{part}", {}
        for original, person, name, donor in families:
            _put_real(folder / f"{original}.mp4", person)
            entries[f"{original}.mp4"] = {"label": "REAL", "split": "train", "original": None}
            if name is not None:
                fake(folder / f"{name}.mp4", person, donor)
                entries[f"{name}.mp4"] = {"label": "FAKE", "split": "train", "original": f"{original}.mp4"}
        if part == 35:
            fake(folder / "aaqaifqrwn.mp4", 3, 2)
            entries["aaqaifqrwn.mp4"] = {"label": "FAKE", "split": "train", "original": "xugmhbetrw.mp4"}
        _put_json(folder / "metadata.json", entries)
    _put_real(root / "validation" / "afoovlsmtx.mp4", 7)
    fake(root / "validation" / "agrmhtjdlk.mp4", 7, 2)
    _write(root / "validation" / "labels.csv", b"filename,label\nafoovlsmtx.mp4,0\nagrmhtjdlk.mp4,1\n")
    _put_real(root / "test" / "aalscayrfi.mp4", 8)
    fake(root / "test" / "abarnvbtwb.mp4", 8, 3)
    changed = {"augmentations": {"augmenter": {"name": "blur"}}}
    entries = {"aalscayrfi.mp4": {"augmentations": {}, "is_fake": 0}, "abarnvbtwb.mp4": {**changed, "is_fake": 1}}
    _put_json(root / "test" / "metadata.json", entries)
    return RawSet(root, forged)


def write_dfdcp(root: Path) -> RawSet:
    """Write DFDCP: three people; of the fakes some name the video that they were made from."""
    forged, entries = {}, {}
    people = {"1003254": 2, "643049": 3, "1255229": 5}
    for person, number in people.items():
        name = f"original_videos/{person}/{person}_A_001.mp4"
        _put_real(root / name, number)
        split = "test" if person == "643049" else "train"
        entries[name] = {"label": "real", "set": split, "target_id": int(person), "swapped_id": None}
        entries[name]["augmentations"] = []
    for method, swapped, target, named in (
        ("method_A", "1255229", "1003254", False),
        ("method_B", "1255229", "1003254", True),
        ("method_A", "1003254", "643049", True),
    ):
        stem = f"{swapped}_{target}_A_001"
        name, original = f"{method}/{target}/{target}_A/{stem}.mp4", f"original_videos/{target}/{target}_A_001.mp4"
        played = {"method_A": "lowres_swap", "method_B": "identity_swap"}[method]
        forged[f"{method}/{stem}"] = _put_fake(root / name, people[target], people[swapped], played)
        entries[name] = {
            "label": "fake",
            "set": "test" if target == "643049" else "train",
            "target_id": int(target),
            "swapped_id": int(swapped),
            **({"source_video": original} if named else {}),
            "augmentations": [],
        }
    _put_json(root / "dataset.json", entries)
    return RawSet(root, forged)


def write_deeperforensics(root: Path) -> RawSet:
    """Write DeeperForensics: in each split a forgery of a video of `write_ffpp`, in two variants; ten actors."""
    forged = {}
    actors = [f"M{number}" for number in range(101, 106)] + [f"W{number}" for number in range(101, 106)]
    for place, actor in enumerate(actors):
        _put_real(root / "source_videos" / actor / "light_uniform" / "neutral_camera_front.mp4", 2 + place)
    for split, target, actor in (("train", "071", "M101"), ("val", "720", "W102"), ("test", "953", "M103")):
        name, donor = f"{target}_{actor}", 2 + actors.index(actor)
        for variant, crf in (("end_to_end", 23), ("end_to_end_level_1", 34)):
            path = root / "manipulated_videos" / variant / f"{name}.mp4"
            forged[f"{variant}/{name}"] = _put_fake(path, FFPP_PEOPLE[target], donor, "identity_swap", crf)
        _write(root / "lists" / "splits" / f"{split}.txt", f"{name}.mp4\n".encode())
    return RawSet(root, forged)


def write_uadfv(root: Path) -> RawSet:
    """Write UADFV: two people, and a forgery of each."""
    forged = {}
    for name, (person, donor) in {"0000": (2, 3), "0001": (3, 2)}.items():
        _put_real(root / "real" / f"{name}.mp4", person)
        path = root / "fake" / f"{name}_fake.mp4"
        forged[f"fake/{name}_fake"] = _put_fake(path, person, donor, "lowres_swap")
    return RawSet(root, forged)


WRITERS = {
    "ffpp": write_ffpp,
    "celeb_df": write_celeb_df,
    "dfdc": write_dfdc,
    "dfdcp": write_dfdcp,
    "deeperforensics": write_deeperforensics,
    "uadfv": write_uadfv,
}
