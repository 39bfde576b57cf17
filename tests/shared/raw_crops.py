"""Builders of raw data sets whose frames are crops of faces: WildDeepfake and DeepfakeBench, small, of real faces."""

import functools
import gzip
import io
import json
import tarfile
from pathlib import Path

import cv2
import lmdb
import numpy as np
from PIL import Image

from dcl_face_forgery.data_scripts.assets import fetch, fetch_detector
from dcl_face_forgery.faces_dcl import crop_transform, cut, map_points

SIZE = 96
FRAMES = (0, 14, 29, 44)  # of each clip of DeepfakeBench: places evenly spaced over a video
PARTS = (37, 44, 30, 49, 55)  # of dlib's 81 landmarks, those that are the five


@functools.cache
def face(person, photo):
    """Cut the face of an ORL photograph: RGB, uint8 (SIZE, SIZE, 3), and its five landmarks, float32 (5, 2)."""
    image = np.asarray(Image.open(fetch("orl") / f"s{person}" / f"{photo}.pgm").convert("RGB"))
    found = _detector().detect(image)[0]
    transform = crop_transform(found, {"kind": "box", "margin": 1.3, "size": SIZE})
    return cut(image, transform, SIZE), map_points(found.landmarks, transform)


_detector = functools.cache(fetch_detector)


def swap(target, source):
    """Blend one face into another; returns the forgery and its mask, both uint8 (SIZE, SIZE, 3), the mask 0 or 255."""
    mask = cv2.ellipse(np.zeros((SIZE, SIZE, 3), np.uint8), (48, 52), (22, 30), 0, 0, 360, (255,) * 3, -1)
    return np.where(mask > 0, source, target), mask


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def pack(members, compressed=True):
    """Make an archive of members: bytes by name, `TarInfo` without content, or pairs of both."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member in members.items() if isinstance(members, dict) else members:
            info, content = member if isinstance(member, tuple) else (member, b"")
            if isinstance(info, str):
                info = tarfile.TarInfo(info)
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), 1) if compressed else buffer.getvalue()


def sequence(archive, label, name, person, frames=(1, 2, 3, 4)):
    """Return the members of a sequence: the photographs of a person, numbered."""
    other = face(person + 20, 1)[0]
    images = [face(person, place + 1)[0] for place in range(len(frames))]
    images = images if label == "real" else [swap(image, other)[0] for image in images]
    return {f"{archive}/{label}/{name}/{frame}.png": png(image) for frame, image in zip(frames, images, strict=True)}


def write_wild_deepfake(root, folder="{label}_{split}"):
    """Write six archives below `root/deepfake_in_the_wild`, one of them of two sequences, one not compressed."""
    archives = {
        ("train", "real", "1"): sequence("1", "real", "0", 1) | sequence("1", "real", "12", 1, (57, 58, 59)),
        ("train", "real", "10"): sequence("10", "real", "3", 2),
        ("train", "fake", "2"): sequence("2", "fake", "0", 3),
        ("train", "fake", "3"): sequence("3", "fake", "0", 4),
        ("test", "real", "1"): sequence("1", "real", "0", 5),
        ("test", "fake", "7"): sequence("7", "fake", "0", 6),
    }
    for (split, label, name), members in archives.items():
        path = Path(root) / "deepfake_in_the_wild" / folder.format(label=label, split=split) / f"{name}.tar.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pack(members, compressed=name != "10"))
    return root


def landmarks(five, integers):
    """Return 81 landmarks, of which five are given: integers (81, 2) of a type, as dlib finds them."""
    points = np.random.default_rng(0).integers(0, SIZE, (81, 2))
    points[list(PARTS)] = np.round(five)
    return points.astype(integers)


def write_clip(rgb, folder, person, source=None, masks=True, integers=np.int64, frames=FRAMES):
    """Write frames, landmarks and masks of a clip of DeepfakeBench.

    Args:
        rgb: its `datasets/rgb`.
        folder: of the frames, with `frames` in it.
        person: whose photographs they are.
        source: the person whose face is swapped in; nobody if not given.
        masks: whether there are masks of it.
        integers: type of the landmarks.
        frames: their numbers.

    Returns:
        The paths of the frames below `rgb`.
    """
    for place, frame in enumerate(frames):
        image, five = face(person, place + 1)
        files = {"landmarks": landmarks(five, integers)}
        if source is not None:
            image, mask = swap(image, face(source, place + 1)[0])
            files |= {"masks": mask} if masks else {}
        files["frames"] = image
        for kind, content in files.items():
            path = rgb / folder.replace("/frames/", f"/{kind}/") / f"{frame:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "landmarks":
                np.save(path.with_suffix(".npy"), content)
            else:
                path.write_bytes(png(content))
    return [f"{folder}/{frame:03}.png" for frame in frames]


#: How the JSONs that people share write the path of a frame, by who wrote them.
STYLES = {
    "published": lambda path, rgb: path.replace("/", "\\"),
    "mixed": lambda path, rgb: "/deepfakebench/datasets/rgb\\" + path.replace("/", "\\"),
    "windows": lambda path, rgb: "T:\\Study Material\\frames\\datasets\\rgb\\" + path.replace("/", "\\"),
    "posix": lambda path, rgb: f"/home/someone/datasets/rgb/{path}",
    "nested": lambda path, rgb: f"/data/DFDC/rgb/{path}",
    "relative": lambda path, rgb: f"./datasets/rgb/{path}",
    "here": lambda path, rgb: str(rgb / path),
}


def write_json(path, data_set, clips, rgb, style="published", compression=None):
    """Write a JSON of DeepfakeBench of (label, split, name, paths of frames), and return what it holds."""
    content = {}
    for label, split, name, frames in clips:
        place = content.setdefault(label, {"train": {}, "val": {}, "test": {}})[split]
        if compression:
            place = place.setdefault(compression, {})
        place[name] = {"label": label, "frames": [STYLES[style](frame, rgb) for frame in frames]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({data_set: content}))
    return {data_set: content}


def write_faceforensics(home, style="published", integers=np.int64, compression="c23", name="FaceForensics++"):
    """Write part of FaceForensics++ below `home/datasets/rgb`, and its JSON below `home/preprocessing`.

    Two methods with masks and FaceShifter without; a real without a fake; a clip of three frames; a test fake whose
    real is absent.
    """
    rgb, clips = home / "datasets" / "rgb", []
    originals, forged = "FaceForensics++/original_sequences/youtube", "FaceForensics++/manipulated_sequences"
    for split, video, person in (("train", "071", 1), ("train", "054", 2), ("val", "720", 3), ("test", "953", 4)):
        frames = write_clip(rgb, f"{originals}/{compression}/frames/{video}", person, integers=integers)
        clips.append(("FF-real", split, video, frames))
    for label, method, split, video, persons, numbers in (
        ("FF-DF", "Deepfakes", "train", "071_054", (1, 2), FRAMES),
        ("FF-DF", "Deepfakes", "val", "720_672", (3, 5), FRAMES),
        ("FF-DF", "Deepfakes", "test", "974_953", (6, 4), FRAMES),
        ("FF-NT", "NeuralTextures", "train", "071_054", (1, 2), (0, 13, 27)),
        ("FF-FH", "FaceShifter", "train", "071_054", (1, 2), FRAMES),
    ):
        folder = f"{forged}/{method}/{compression}/frames/{video}"
        frames = write_clip(rgb, folder, *persons, masks=label != "FF-FH", integers=integers, frames=numbers)
        clips.append((label, split, video, frames))
    path = home / "preprocessing" / "dataset_json" / f"{name}.json"
    write_json(path, name, clips, rgb, style, compression)
    return rgb


def write_celeb_df(home, style="published"):
    """Write part of Celeb-DF-v2, its JSON as the preprocessing leaves it: test clips in the training split, too."""
    rgb = home / "datasets" / "rgb"
    youtube = write_clip(rgb, "Celeb-DF-v2/YouTube-real/frames/00000", 7, integers=np.int32)
    real = write_clip(rgb, "Celeb-DF-v2/Celeb-real/frames/id1_0007", 8, integers=np.int32)
    forged = write_clip(rgb, "Celeb-DF-v2/Celeb-synthesis/frames/id1_id0_0007", 8, 9, masks=False, integers=np.int32)
    clips = [
        ("CelebDFv2_real", "train", "00000", youtube),
        ("CelebDFv2_real", "train", "id1_0007", real),
        ("CelebDFv2_real", "test", "id1_0007", real),
        ("CelebDFv2_fake", "test", "id1_id0_0007", forged),
    ]
    write_json(home / "preprocessing" / "dataset_json" / "Celeb-DF-v2.json", "Celeb-DF-v2", clips, rgb, style)
    return rgb


def write_lmdb(folder, rgb, data_set, windows):
    """Write the files of a data set into an environment, as DeepfakeBench does on Windows or on other systems."""
    environment = lmdb.open(str(folder / f"{data_set}_lmdb"), map_size=64 << 20)
    with environment.begin(write=True) as transaction:
        for path in sorted((rgb / data_set).rglob("*.*")):
            key = path.relative_to(rgb / data_set).as_posix()
            key = f"{data_set}\\" + (key.replace("/", "\\") if windows else key)
            value = np.load(path).tobytes() if path.suffix == ".npy" else path.read_bytes()
            transaction.put(key.encode(), value)
    environment.close()
    return folder
