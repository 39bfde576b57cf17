"""Faces: found in every photograph, and cut out by one geometry for images, masks and landmarks."""

import hashlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dcl_face_forgery import faces_dcl
from dcl_face_forgery.abstention_dcl import measure_face, reason_to_abstain
from dcl_face_forgery.data_scripts import dsfd
from dcl_face_forgery.data_scripts.assets import fetch, fetch_detector
from dcl_face_forgery.data_scripts.dsfd import DSFD
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.faces_dcl import (
    ALIGNED_LANDMARKS,
    Face,
    SingleScaleYuNet,
    YuNet,
    crop_box,
    crop_transform,
    cut,
    find_yunet,
    fit_similarity,
    go_on,
    map_points,
    overlap,
)


@pytest.fixture(scope="module")
def detector():
    return YuNet(fetch("yunet"))


@pytest.fixture(scope="module")
def portrait():
    return np.asarray(Image.open(fetch("astronaut")).convert("RGB"))


def face_at(box, landmarks=None):
    if landmarks is None:
        landmarks = ALIGNED_LANDMARKS * 100
    return Face(np.asarray(box, np.float32), 1.0, np.asarray(landmarks, np.float32))


def test_every_orl_photograph_has_one_face_with_its_landmarks_in_order(detector):
    for path in sorted(fetch("orl").rglob("*.pgm")):
        faces = detector.detect(np.asarray(Image.open(path).convert("RGB")))
        assert len(faces) == 1, path
        left, right, nose, mouth_left, mouth_right = faces[0].landmarks
        assert left[0] < right[0] and mouth_left[0] < mouth_right[0], path
        assert max(left[1], right[1]) < nose[1] + 6 and nose[1] < max(mouth_left[1], mouth_right[1]), path


def scaled(picture, long_side):
    scale = long_side / max(picture.shape[:2])
    size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC), scale


def on_canvas(picture, share):
    """Put a picture into a grey one of 4:3, whose height it fills to a share."""
    height = round(len(picture) / share)
    canvas = np.full((height, height * 4 // 3, 3), 110, np.uint8)
    top, left = (height - len(picture)) // 2, height // 3
    canvas[top : top + len(picture), left : left + picture.shape[1]] = picture
    return canvas


@pytest.fixture(scope="module")
def people():
    """Photographs of ten people, of which the face fills 84 % of the height."""
    return [np.asarray(Image.open(path).convert("RGB")) for path in sorted(fetch("orl").rglob("1.pgm"))[::4]]


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
def test_a_picture_has_the_same_box_at_every_stored_size(detector, people, share):
    for person in people[:3]:
        picture = on_canvas(person, share)
        expected = detector.detect(scaled(picture, 1024)[0])[0].box / (1024 / max(picture.shape[:2]))
        side = (expected[2:] - expected[:2]).max()
        for long_side in (128, 256, 512, 800, 4000):
            stored, scale = scaled(picture, long_side)
            if side * scale < 45:  # where 3 % of the face is about a pixel
                continue
            (face,) = detector.detect(stored)
            assert np.abs(face.box / scale - expected).max() < 0.03 * side, long_side


@pytest.mark.parametrize("long_side", [92, 512, 1024, 2000])
def test_a_face_that_fills_the_picture_is_found_at_every_size(detector, people, long_side):
    for person in people[:5]:
        stored, scale = scaled(person, long_side)
        (face,) = detector.detect(stored)
        top, bottom = face.box[[1, 3]] / scale
        assert top < 40 and bottom > 85 and bottom - top < 112


@pytest.mark.parametrize(("size", "least"), [((640, 360), 0.9), ((1920, 1080), 0.5), ((4000, 3000), 0)])
def test_small_faces_in_large_pictures_are_found(detector, people, size, least):
    """No fewer than at one size; in still pictures over 1024 px, those that only 2048 px show, too."""
    picture, places = np.full((size[1], size[0], 3), 110, np.uint8), []
    side = max(38, size[0] // 48)
    for index, person in enumerate(people):
        left, top = size[0] * (index % 5) // 5 + side, size[1] * (index // 5) // 2 + side
        picture[top : top + side, left : left + side * 92 // 112] = cv2.resize(
            person, (side * 92 // 112, side), interpolation=cv2.INTER_AREA
        )
        places.append((left + side * 46 / 112, top + side / 2))

    def found(faces):
        centres = np.array([(face.box[:2] + face.box[2:]) / 2 for face in faces]).reshape(-1, 2)
        return sum(bool((np.abs(centres - place) < side / 2).all(1).any()) for place in places) / len(places)

    in_stills = found(detector.detect(picture))
    in_frames = found(detector.detect(picture, small_faces=False))
    assert in_stills >= in_frames >= found(SingleScaleYuNet(fetch("yunet")).detect(picture))
    assert in_stills >= max(least, 0.8)


@pytest.mark.parametrize("inset", [120, 180, 250])
def test_a_face_within_the_box_of_another_one_costs_neither(detector, people, inset):
    """A picture in a picture, or a face on glass."""
    picture = scaled(people[0], 640)[0].copy()
    height, width = inset, inset * 92 // 112
    left, top = 230, 330
    picture[top : top + height, left : left + width] = cv2.resize(people[3], (width, height))
    assert len(detector.detect(picture)) == 2


def test_pictures_without_a_face_show_no_more_than_at_one_size(detector):
    single = SingleScaleYuNet(fetch("yunet"))
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(fetch("faceless").iterdir())]
    assert sum(len(detector.detect(each)) for each in pictures) <= sum(len(single.detect(each)) for each in pictures)


def roll(face):
    right = face.landmarks[1] - face.landmarks[0]
    return np.degrees(np.arctan2(right[1], right[0]))


@pytest.mark.parametrize(("kind", "step"), [(YuNet, 1), (SingleScaleYuNet, 3)])
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_turned_face_has_the_landmarks_of_an_upright_one_and_gets_no_score(kind, step, quarters):
    """All faces of the demo's test split that are found at all."""
    detector, overlaps = kind(fetch("yunet")), []
    paths = [path for person in range(33, 41) for path in sorted((fetch("orl") / f"s{person}").iterdir())][::step]
    for path in paths:
        picture = scaled(np.asarray(Image.open(path).convert("RGB")), 320)[0]
        (upright,) = detector.detect(picture)
        turned = np.ascontiguousarray(np.rot90(picture, quarters))
        for face in detector.detect(turned):
            assert abs((roll(face) - roll(upright) + 90 * quarters + 180) % 360 - 180) < 20, path
            overlaps.append(overlap(face.box, turned_box(upright.box, quarters, picture.shape)))
            transform = crop_transform(face, {"kind": "box", "margin": 1.3, "size": 112})
            quality = measure_face(cut(turned, transform, 112), face, transform)
            assert reason_to_abstain(quality, None, None).code == "extreme_pose", path
    assert len(overlaps) >= len(paths) // 6 and np.median(overlaps) > 0.8


def turned_box(box, quarters, shape):
    height, width = shape[:2]
    points = box.reshape(2, 2)
    for _ in range(quarters):
        points = np.stack([points[:, 1], width - points[:, 0]], axis=1)
        height, width = width, height
    return np.concatenate([points.min(0), points.max(0)])


def test_the_single_scale_detector_finds_what_it_always_did(portrait):
    """Checkpoints that name it were trained on these boxes."""
    (face,) = SingleScaleYuNet(fetch("yunet")).detect(portrait)
    assert np.allclose(face.box, [178.17, 62.91, 268.07, 176.24], atol=0.1)


def test_the_largest_face_comes_first(detector, portrait):
    wide = np.zeros((512, 768, 3), np.uint8)
    wide[:256, :256] = np.asarray(Image.fromarray(portrait).resize((256, 256)))
    wide[:, 256:] = portrait
    first, second = detector.detect(wide)
    assert first.box[0] > 256 > second.box[2]
    assert np.prod(first.box[2:] - first.box[:2]) > np.prod(second.box[2:] - second.box[:2])


def test_a_picture_without_a_face_gives_none(detector):
    assert detector.detect(np.full((90, 300, 3), 127, np.uint8)) == []


@given(st.floats(-50, 50), st.floats(-50, 50), st.floats(1, 200), st.floats(1, 200), st.floats(0.5, 3))
def test_crop_box_is_the_centred_square_of_the_longer_side(left, top, width, height, margin):
    box = crop_box(np.array([left, top, left + width, top + height]), margin)
    sides = box[2:] - box[:2]
    assert np.allclose(sides, max(width, height) * margin)
    assert np.allclose((box[:2] + box[2:]) / 2, (left + width / 2, top + height / 2))


def test_a_box_crop_of_its_own_size_is_the_image_itself():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    transform = crop_transform(face_at((10, 5, 30, 25)), {"kind": "box", "margin": 1.5, "size": 30})
    assert np.array_equal(cut(image, transform, 30), image[0:30, 5:35])


def test_shrinking_averages_by_area():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    transform = crop_transform(face_at((0, 0, 64, 64)), {"kind": "box", "margin": 1, "size": 16})
    blocks = image.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
    assert np.abs(cut(image, transform, 16) - blocks).max() <= 0.5


def test_enlarging_a_mask_makes_no_value_outside_its_own():
    mask = np.zeros((20, 20), np.uint8)
    mask[8:12, 8:12] = 200
    transform = crop_transform(face_at((0, 0, 20, 20)), {"kind": "box", "margin": 1, "size": 77})
    enlarged = cut(mask, transform, 77)
    assert enlarged.shape == (77, 77) and enlarged.max() == 200
    assert not enlarged[:25].any() and not enlarged[:, 52:].any()


@pytest.mark.parametrize("kind", ["box", "aligned5"])
@pytest.mark.parametrize("size", [48, 200])
def test_image_mask_and_landmarks_of_a_crop_stay_together(kind, size):
    """A mask drawn at a landmark, cut from the photograph, lies at the landmark mapped into the crop."""
    rng = np.random.default_rng(1)
    landmarks = (ALIGNED_LANDMARKS - 0.5) @ np.array([[0.97, 0.24], [-0.24, 0.97]]) * 90 + (80, 95)
    face = face_at((40, 30, 125, 150), landmarks + rng.normal(0, 1, (5, 2)))
    transform = crop_transform(face, {"kind": kind, "margin": 1.3, "size": size})
    for point, expected in zip(face.landmarks, map_points(face.landmarks, transform), strict=True):
        y, x = np.indices((200, 180)) + 0.5
        mask = np.where(np.hypot(x - point[0], y - point[1]) < 6, 255, 0).astype(np.uint8)
        image = np.repeat(mask[..., None], 3, axis=2)
        for crop in (cut(mask, transform, size), cut(image, transform, size)[..., 0]):
            weight = crop.astype(float) / crop.sum()
            y, x = np.indices(crop.shape) + 0.5
            assert np.hypot((weight * x).sum() - expected[0], (weight * y).sum() - expected[1]) < 0.3


def test_an_aligned_crop_brings_the_landmarks_to_their_template():
    angle = np.deg2rad(25)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    landmarks = ALIGNED_LANDMARKS @ rotation * 70 + (300, 20)
    transform = crop_transform(face_at((0, 0, 1, 1), landmarks), {"kind": "aligned5", "margin": 1.3, "size": 256})
    # The targets of a 256 px crop of margin 1.3, worked out from the 112 px template.
    expected = [(96.87, 120.43), (158.83, 120.09), (128.04, 155.67), (102.59, 191.94), (153.90, 191.66)]
    assert np.allclose(map_points(landmarks, transform), expected, atol=0.02)


@given(st.floats(0.2, 5), st.floats(-3, 3), st.floats(-100, 100), st.floats(-100, 100))
def test_fit_similarity_finds_the_similarity_that_was_there(scale, angle, x, y):
    expected = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]]) * scale
    expected[:, 2] = x, y
    points = ALIGNED_LANDMARKS * 100
    targets = points @ expected[:, :2].T + expected[:, 2]
    assert np.allclose(fit_similarity(points, targets), expected, atol=1e-6)


def test_past_the_edge_the_outermost_pixels_go_on():
    image = np.random.default_rng(0).integers(0, 256, (10, 10, 3), np.uint8)
    transform = crop_transform(face_at((-10, -10, 20, 20)), {"kind": "box", "margin": 1, "size": 30})
    assert np.array_equal(cut(image, transform, 30), np.pad(image, ((10, 10), (10, 10), (0, 0)), "edge"))


def test_a_model_file_that_is_given_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("DCL_YUNET", str(tmp_path / "mine.onnx"))
    assert find_yunet() == tmp_path / "mine.onnx"
    with pytest.raises(InputError, match="cannot be read"):
        YuNet()
    (tmp_path / "mine.onnx").write_bytes(b"another network")
    with pytest.raises(InputError, match="SHA-256 differs"):
        YuNet()


def test_the_hub_is_asked_only_where_it_can_be_reached(tmp_path, monkeypatch):
    asked = []

    def download(repository, file, local_files_only):
        asked.append((repository, file, local_files_only))
        if local_files_only:
            raise FileNotFoundError
        return str(tmp_path / "hub.onnx")

    monkeypatch.delenv("DCL_YUNET", raising=False)
    monkeypatch.setenv("DCL_CACHE", str(tmp_path))
    monkeypatch.setattr(faces_dcl, "hf_hub_download", download)
    monkeypatch.setattr(faces_dcl, "hub_is_reachable", lambda: True)
    (tmp_path / "hub.onnx").write_bytes(b"another network")
    assert find_yunet() is None, "the Hub has changed the file"
    monkeypatch.setattr(faces_dcl, "YUNET_SHA256", hashlib.sha256(b"another network").hexdigest())
    assert find_yunet() == tmp_path / "hub.onnx"
    monkeypatch.setattr(faces_dcl, "hub_is_reachable", lambda: False)
    assert find_yunet() is None
    with pytest.raises(InputError, match="DCL_YUNET"):
        YuNet()
    (tmp_path / faces_dcl.YUNET_FILE).write_bytes(b"")
    assert find_yunet() == tmp_path / faces_dcl.YUNET_FILE
    assert [call[2] for call in asked] == [False, False, True, True, True]


def test_faces_go_on_where_they_overlap_most_each_once():
    def box(left, side=10):
        return np.array([left, 0, left + side, side], np.float32)

    assert overlap(box(0), box(5)) == pytest.approx(1 / 3) and overlap(box(0), box(20)) == 0
    assert go_on([box(0), box(100)], [box(101), box(1)]) == [1, 0]
    assert go_on([box(0), box(2)], [box(2)]) == [None, 0], "the one that overlaps more goes on"
    assert go_on([box(0)], [box(9.5)]) == [None]
    assert go_on([], [box(0)]) == [] and go_on([box(0)], []) == [None]


def test_without_opencv_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(faces_dcl, "cv2", None)
    with pytest.raises(InputError, match="pip install opencv-python-headless"):
        YuNet()


class StandIn:
    """What the package `face-detection` builds, without its weights: rows of left, top, right, bottom, score."""

    def __init__(self, rows=((10, 10, 30, 40, 0.6), (20, 30, 80, 95, 0.9))):
        self.rows, self.seen = np.array(rows, np.float32), []

    def detect(self, image):
        self.seen.append(image)
        return self.rows


def test_dsfd_gives_boxes_and_no_landmarks():
    stand_in = StandIn()
    image = np.zeros((100, 100, 3), np.uint8)
    faces = DSFD(stand_in).detect(image)
    assert stand_in.seen[0] is image  # RGB, as it wants it
    assert [face.box.tolist() for face in faces] == [[20, 30, 80, 95], [10, 10, 30, 40]]
    assert faces[0].score == pytest.approx(0.9) and faces[0].landmarks is None
    assert DSFD(StandIn(np.zeros((0, 5)))).detect(image) == []
    with pytest.raises(InputError, match="needs landmarks"):
        crop_transform(faces[0], {"kind": "aligned5", "margin": 1.3, "size": 64})


def test_dsfd_is_built_by_its_package_which_may_be_missing_or_without_weights(monkeypatch):
    built = []
    package = SimpleNamespace(build_detector=lambda name, **options: built.append((name, options)) or StandIn())
    monkeypatch.setattr(dsfd, "face_detection", package)
    assert len(fetch_detector("dsfd").detect(np.zeros((9, 9, 3), np.uint8))) == 2
    ((name, options),) = built
    assert name == "DSFDDetector" and options["max_resolution"] == 1024
    monkeypatch.setattr(package, "build_detector", lambda name, **options: 1 / 0)
    with pytest.raises(InputError, match=r"weights of the face detector DSFD cannot be loaded \(division by zero\)"):
        fetch_detector("dsfd")
    monkeypatch.setattr(dsfd, "face_detection", None)
    with pytest.raises(InputError, match="pip install face-detection"):
        fetch_detector("dsfd")
