"""What a checkpoint abstains from: measures that mean what they say, one reason a face, and hostile configurations."""

import itertools
import json
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
from huggingface_hub.errors import StrictDataclassError

from dcl_face_forgery.abstention_dcl import (
    LARGEST_ROLL,
    LARGEST_YAW,
    MOST_ENLARGED,
    REFERENCE,
    SMALLEST_FACE,
    FaceQuality,
    by_embedding,
    check_dimension,
    check_familiarity,
    describe_abstention,
    distances,
    measure_face,
    measure_sharpness,
    pack,
    reason_to_abstain,
    smallest_face,
    unpack,
)
from dcl_face_forgery.configuration_dcl import DCLConfig
from dcl_face_forgery.faces_dcl import ALIGNED_LANDMARKS, Face, crop_transform, cut

GOOD = FaceQuality(size_px=90.0, enlargement=1.0, sharpness=1.5, yaw=5.0, roll=-3.0)
CENTRES = np.array([[0.5, 0, 0, 0], [-0.5, 0, 0, 0]])
STATISTICS = {
    "dimension": 4,
    "centres": pack(CENTRES),
    "directions": pack([[0, 1, 0, 0]]),
    "variances": [4.0],
    "rest": 0.25,
}
FAMILIARITY = {
    "faces": 200,
    "families": 8,
    "sharpness_threshold": 0.5,
    "distance_threshold": 2.0,
    "statistics": STATISTICS,
}


def texture(side=120, seed=0):
    """Return noise with detail of every size, as faces have: uint8 (side, side, 3)."""
    rng = np.random.default_rng(seed)
    sizes = (4, 10, 30, side)
    layers = [cv2.resize(rng.uniform(-1, 1, (n, n)), (side, side), interpolation=cv2.INTER_CUBIC) / n for n in sizes]
    grey = np.sum(layers, axis=0)
    grey = (128 + 60 * grey / np.abs(grey).max()).round().astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def blurred(image, sigma):
    return cv2.GaussianBlur(image, (0, 0), sigma)


def head(yaw=0.0, roll=0.0, size=100.0):
    """Project a head: eyes and mouth in a plane, the nose in front of it by half the distance of the eyes."""
    points = np.array([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0, 0.1, 0.5], [-0.35, 0.6, 0], [0.35, 0.6, 0]])
    angle, tilt = math.radians(yaw), math.radians(roll)
    turned = points[:, 0] * math.cos(angle) + points[:, 2] * math.sin(angle)
    flat = np.stack([turned, points[:, 1]], 1)
    rotation = np.array([[math.cos(tilt), math.sin(tilt)], [-math.sin(tilt), math.cos(tilt)]])
    landmarks = (flat @ rotation * size / 2 + 200).astype(np.float32)
    return Face(np.array([200 - size / 2, 200 - size / 2, 200 + size / 2, 200 + size / 2], np.float32), 0.9, landmarks)


def quality_of(face, crop):
    picture = np.zeros((400, 400, 3), np.uint8)
    transform = crop_transform(face, crop)
    return measure_face(cut(picture, transform, crop["size"]), face, transform)


# ------------------------------------------------------------------------------------------------------ measures


@pytest.mark.parametrize("contrast", [1, 0.5, 0.3])
def test_the_more_blurred_the_less_sharp_whatever_the_contrast(contrast):
    image = (texture() * contrast).astype(np.uint8)
    found = [measure_sharpness(image), *(measure_sharpness(blurred(image, sigma)) for sigma in (0.6, 1, 2))]
    assert all(before > after for before, after in itertools.pairwise(found))
    assert found[-1] < 0.15 * found[0]


def test_sharpness_depends_little_on_contrast_and_brightness():
    image = texture()
    for other in ((image * 0.5).astype(np.uint8), image + 40):
        assert measure_sharpness(other) == pytest.approx(measure_sharpness(image), rel=0.05)


def test_what_is_sharp_behind_a_blurred_face_does_not_count():
    image = texture()
    hidden = image.copy()
    hidden[20:100, 20:100] = blurred(image, 3)[20:100, 20:100]
    assert measure_sharpness(hidden) < 0.2 * measure_sharpness(image)


def test_surfaces_have_no_sharpness_and_the_ends_of_its_range_are_known():
    assert measure_sharpness(np.full((50, 50, 3), 90, np.uint8)) == 0
    ramp = np.linspace(100, 110, 120).round().astype(np.uint8)  # steps of one level, from rounding alone
    assert measure_sharpness(np.broadcast_to(ramp[:, None, None], (120, 120, 3))) == 0
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 1), np.uint8).repeat(3, axis=2)
    assert measure_sharpness(noise) == pytest.approx(5, abs=0.3)
    board = np.indices((60, 60)).sum(0)[..., None].repeat(3, axis=2) % 2 * 255
    assert measure_sharpness(board.astype(np.uint8)) == pytest.approx(8, abs=0.01)
    assert measure_sharpness(np.zeros((2, 2, 3), np.uint8)) == 0


@pytest.mark.parametrize("yaw", [-70, -30, 0, 45, 65])
@pytest.mark.parametrize("roll", [-40, 0, 25])
def test_the_pose_of_a_head_is_found_from_its_landmarks(yaw, roll):
    quality = quality_of(head(yaw, roll), {"kind": "box", "margin": 1.3, "size": 112})
    assert quality.yaw == pytest.approx(yaw, abs=0.5) and quality.roll == pytest.approx(roll, abs=0.5)


def test_an_aligned_crop_takes_the_tilt_away():
    assert abs(quality_of(head(0, 60), {"kind": "aligned5", "margin": 1.0, "size": 112}).roll) < 1


def test_size_is_that_in_the_picture_and_enlargement_that_of_the_crop():
    quality = quality_of(head(size=50.0), {"kind": "box", "margin": 1.3, "size": 380})
    assert quality.size_px == pytest.approx(50) and quality.enlargement == pytest.approx(380 / 65)


def test_a_face_without_landmarks_has_no_pose_and_one_of_a_single_point_the_most_extreme():
    box = np.array([10, 10, 90, 90], np.float32)
    quality = measure_face(texture(), Face(box, 0.9, None), np.eye(2, 3))
    assert quality.yaw is None and quality.roll is None
    assert reason_to_abstain(quality, None, None) is None
    point = measure_face(texture(), Face(box, 0.9, np.full((5, 2), 50, np.float32)), np.eye(2, 3))
    assert reason_to_abstain(point, None, None).code == "extreme_pose"


def test_the_template_of_aligned_faces_looks_straight_ahead():
    face = Face(np.array([0, 0, 112, 112], np.float32), 1.0, (ALIGNED_LANDMARKS * 112).astype(np.float32))
    quality = measure_face(texture(), face, np.eye(2, 3))
    assert abs(quality.yaw) < 5 and abs(quality.roll) < 1


# ---------------------------------------------------------------------------------------------------- distances


def test_the_distance_is_that_of_mahalanobis_to_the_nearer_centre():
    points = np.random.default_rng(0).normal(size=(20, 4))
    covariance = np.diag([0.25, 4, 0.25, 0.25])
    expected = [
        min(math.sqrt((x - c) @ np.linalg.inv(covariance) @ (x - c) / 4) for c in CENTRES) for x in points
    ]  # fmt: skip
    np.testing.assert_allclose(distances(points, FAMILIARITY), expected, rtol=1e-9)


def test_where_nothing_was_fitted_no_distance_is_known():
    for nothing in (None, {"statistics": None, "reason": "too few"}):
        assert np.isnan(distances(np.zeros((3, 4)), nothing)).all() and len(distances(np.zeros((3, 4)), nothing)) == 3


def test_statistics_of_another_number_of_features_are_told():
    check_dimension(FAMILIARITY, 4)
    check_dimension(None, 5)
    with pytest.raises(ValueError, match="by 4 features, but the network gives 5"):
        check_dimension(FAMILIARITY, 5)


def test_distances_are_those_of_the_reference_network_unless_the_checkpoint_is_older():
    assert by_embedding(FAMILIARITY) and not by_embedding(changed(features=REFERENCE))
    assert not by_embedding(None) and not by_embedding({"statistics": None, "reason": "too few"})


def test_packing_keeps_what_float16_can():
    rows = np.random.default_rng(1).uniform(-1, 1, (3, 7))
    np.testing.assert_allclose(unpack(pack(rows), 7), rows, atol=3e-4)


# ------------------------------------------------------------------------------------------------------- reasons


@pytest.mark.parametrize(
    ("change", "distance", "code", "said"),
    [
        ({}, 1.0, None, None),
        ({"size_px": SMALLEST_FACE, "enlargement": MOST_ENLARGED, "yaw": LARGEST_YAW}, 2.0, None, None),
        ({"sharpness": 0.5, "roll": -LARGEST_ROLL}, None, None, None),
        ({"size_px": 31.0}, 1.0, "too_small", "31 pixels"),
        ({"enlargement": 5.8}, 1.0, "too_small", "enlarged 5.8 times"),
        ({"yaw": -75.0}, 1.0, "extreme_pose", "turned too far: by about 75 degrees"),
        ({"roll": 50.0}, 1.0, "extreme_pose", "tilted too far"),
        ({"yaw": math.nan}, 1.0, "extreme_pose", "turned"),
        ({"sharpness": 0.49}, 1.0, "too_blurred", "0.49, below the limit of 0.50"),
        ({"sharpness": math.nan}, 1.0, "too_blurred", "blurred"),
        ({}, 2.01, "unfamiliar", "2.01"),
        ({}, math.nan, "not_finite", "output is not finite"),
        ({"size_px": 10.0, "yaw": 80.0, "sharpness": 0.0}, 9.0, "too_small", "small"),
    ],
)
def test_a_face_is_refused_beyond_a_limit_with_its_reason(change, distance, code, said):
    abstention = reason_to_abstain(replace(GOOD, **change), distance, FAMILIARITY)
    assert (abstention and abstention.code) == code
    assert said is None or said in abstention.sentence


def test_without_familiarity_only_size_and_pose_count():
    bad = replace(GOOD, sharpness=0.0)
    for nothing in (None, {"faces": 9, "families": 2, "sharpness_threshold": None, "reason": "few"}):
        assert reason_to_abstain(bad, 99.0, nothing) is None
        assert reason_to_abstain(replace(bad, size_px=8.0), None, nothing).code == "too_small"


# ------------------------------------------------------------------------------------------------ configurations


def changed(**statistics):
    return {**FAMILIARITY, "statistics": {**STATISTICS, **statistics}}


@pytest.mark.parametrize(
    ("familiarity", "names"),
    [
        ({**FAMILIARITY, "faces": -1}, "`familiarity`: faces"),
        ({**FAMILIARITY, "families": 2.5}, "`familiarity`: families"),
        ({**FAMILIARITY, "sharpness_threshold": math.nan}, "sharpness_threshold"),
        ({**FAMILIARITY, "sharpness_threshold": "0.5"}, "sharpness_threshold"),
        ({**FAMILIARITY, "distance_threshold": -1.0}, "distance_threshold"),
        ({**FAMILIARITY, "distance_threshold": 10**400}, "distance_threshold"),
        ({**FAMILIARITY, "distance_threshold": True}, "distance_threshold"),
        ({**FAMILIARITY, "reason": 3}, "reason"),
        ({**FAMILIARITY, "statistics": None}, "no statistics"),
        ({**FAMILIARITY, "statistics": [1]}, "statistics .* mapping"),
        (changed(features="pixels"), "unknown features, 'pixels'"),
        (changed(dimension=0), "dimension"),
        (changed(dimension=4.0), "dimension"),
        (changed(dimension=3), "32 bytes|16 bytes"),
        (changed(centres="%%%"), "centres .* not base64"),
        (changed(centres="é"), "centres"),
        (changed(centres=""), "no centres"),
        (changed(centres=7), "centres .* string"),
        (changed(centres=pack([[np.inf, 0, 0, 0]])), "centres .* finite"),
        (changed(centres="A" * (5 << 20)), "centres .* base64 string"),
        (changed(directions=pack([[np.nan] * 4])), "directions .* finite"),
        (changed(variances=[1.0, 2.0]), r"must be equal, got \(1, 2\)"),
        (changed(variances=[0.0]), "variances"),
        (changed(variances="1"), "variances"),
        (changed(rest=0), "rest"),
        (changed(rest=math.inf), "rest"),
    ],
)
def test_a_configuration_that_cannot_be_followed_is_refused(tmp_path, familiarity, names):
    with pytest.raises(StrictDataclassError, match=names):
        DCLConfig(familiarity=familiarity)
    DCLConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"familiarity": familiarity}))
    with pytest.raises(StrictDataclassError, match=names):
        DCLConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "familiarity",
    [
        None,
        FAMILIARITY,
        {"faces": 3, "families": None, "statistics": None, "reason": "x"},
        changed(variances=[1]),
        changed(features=REFERENCE),
    ],
)
def test_a_familiarity_survives_saving_and_is_described(tmp_path, familiarity):
    check_familiarity(familiarity)
    DCLConfig(familiarity=familiarity).save_pretrained(tmp_path)
    assert DCLConfig.from_pretrained(tmp_path).familiarity == familiarity
    assert describe_abstention(familiarity).startswith("A face gets no score if it is smaller than 32 pixels")


def test_the_sentence_names_what_was_fitted_on_what_or_why_it_was_not():
    assert "99 % of the validation data (200 faces of 8 families)" in describe_abstention(FAMILIARITY)
    assert "blurred or unfamiliar faces (too few)" in describe_abstention({"statistics": None, "reason": "too few"})
    assert "unfamiliar faces (nothing was fitted" in describe_abstention(None)


@pytest.mark.parametrize(("size", "margin", "smallest"), [(380, 1.3, 73), (224, 1.3, 43), (112, 1.3, 32)])
def test_the_smallest_face_is_not_enlarged_too_much_and_never_tiny(size, margin, smallest):
    assert smallest_face({"size": size, "margin": margin}) == smallest
