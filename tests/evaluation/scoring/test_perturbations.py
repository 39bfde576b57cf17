"""Each perturbation against its definition, on real faces and on whatever hypothesis finds."""

import itertools
import pickle
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.nn.functional import interpolate

from dcl_face_forgery.data_scripts.assets import fetch
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.evaluation.scoring import perturbations
from dcl_face_forgery.evaluation.scoring.perturbations import (
    DEEPERFORENSICS,
    FAMILIES,
    LEVELS,
    TYPES,
    Perturbation,
    find_types,
)
from dcl_face_forgery.video_dcl import Video

RANDOM = ("block_wise", "gaussian_noise")
#: Those of which a stronger level cannot change any pixel less than a weaker one does.
POINTWISE = ("color_saturation", "color_contrast", "block_wise", "gaussian_noise")
images = arrays(np.uint8, st.tuples(st.integers(1, 70), st.integers(1, 70), st.just(3)))


@pytest.fixture(scope="module")
def face():
    """A face in colour, 112 px, uncompressed but for its video."""
    with Video(fetch("talking_face")) as video:
        ((_, frame),) = video.read([40])
    return np.ascontiguousarray(frame[16:128, 40:152])


def perturb(image, name, level, video_id="original/000", frame=0, seed=0):
    return Perturbation(name, level, seed)(image, video_id, frame)


def change_of(perturbed, image):
    return np.abs(perturbed.astype(int) - image)


# --------------------------------------------------------------------------------------------------------- all types


@pytest.mark.parametrize("name", TYPES)
def test_a_face_changes_more_with_every_level(face, name):
    for side in (64, 112, 380):
        image = cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA if side < 112 else cv2.INTER_CUBIC)
        changes = [change_of(perturb(image, name, level), image).mean() for level in LEVELS]
        assert changes[0] > 0.2
        assert all(weaker < stronger for weaker, stronger in itertools.pairwise(changes)), (side, changes)


@pytest.mark.parametrize("name", TYPES)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(image=images, level=st.sampled_from(LEVELS))
def test_every_image_keeps_its_shape_and_is_left_as_it_was(name, image, level):
    before = image.copy()
    perturbed = perturb(image, name, level)
    assert (perturbed.shape, perturbed.dtype) == (image.shape, np.uint8)
    assert not np.shares_memory(perturbed, image)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("name", POINTWISE)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(image=images)
def test_no_pixel_changes_less_at_a_stronger_level(name, image):
    changes = [change_of(perturb(image, name, level), image) for level in LEVELS]
    for weaker, stronger in itertools.pairwise(changes):
        assert (weaker <= stronger).all()


@pytest.mark.parametrize("name", ["color_saturation", "gaussian_blur", "pixelation", "resize"])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(height=st.integers(1, 70), width=st.integers(1, 70), grey=st.integers(0, 255), level=st.sampled_from(LEVELS))
def test_an_even_grey_stays_as_it_is(name, height, width, grey, level):
    image = np.full((height, width, 3), grey, np.uint8)
    np.testing.assert_array_equal(perturb(image, name, level), image)


@pytest.mark.parametrize("name", TYPES)
def test_a_row_is_always_perturbed_in_the_same_way(face, name):
    first = perturb(face, name, 3)
    np.testing.assert_array_equal(perturb(face, name, 3), first)
    other_rows = [
        perturb(face, name, 3, frame=1),
        perturb(face, name, 3, video_id="original/001"),
        perturb(face, name, 3, seed=1),
    ]
    for other in other_rows:
        assert (other == first).all() == (name not in RANDOM)


@pytest.mark.parametrize("name", RANDOM)
def test_another_process_draws_the_same(face, name, tmp_path):
    np.save(tmp_path / "face.npy", face)
    (tmp_path / "it.pickle").write_bytes(pickle.dumps(Perturbation(name, 5, seed=3)))
    script = (
        "import pickle, numpy as np, sys; from pathlib import Path; folder = Path(sys.argv[1])\n"
        "it = pickle.loads((folder / 'it.pickle').read_bytes())\n"
        "np.save(folder / 'out.npy', it(np.load(folder / 'face.npy'), 'swap/007', 12))"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path], check=True, timeout=60)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), Perturbation(name, 5, 3)(face, "swap/007", 12))


# ---------------------------------------------------------------------------------------------------- DeeperForensics


def test_there_are_the_seven_types_with_the_published_levels():
    assert [kind.values for kind in DEEPERFORENSICS.values()] == [
        (0.4, 0.3, 0.2, 0.1, 0.0),
        (0.85, 0.725, 0.6, 0.475, 0.35),
        (16, 32, 48, 64, 80),
        (0.001, 0.002, 0.005, 0.01, 0.05),
        (7, 9, 13, 17, 21),
        (2, 3, 4, 5, 6),
        (30, 32, 35, 38, 40),
    ]
    assert all(len(kind.values) == len(LEVELS) for kind in TYPES.values())


def test_saturation_scales_the_chroma_and_keeps_the_luma(face):
    before = cv2.cvtColor(face, cv2.COLOR_RGB2YCrCb).astype(float)
    for level in LEVELS:
        after = cv2.cvtColor(perturb(face, "color_saturation", level), cv2.COLOR_RGB2YCrCb).astype(float)
        factor = TYPES["color_saturation"].values[level - 1]
        np.testing.assert_allclose(after[..., 0], before[..., 0], atol=1.5)
        np.testing.assert_allclose(after[..., 1:], 128 + factor * (before[..., 1:] - 128), atol=2)
    assert np.ptp(perturb(face, "color_saturation", 5), axis=2).max() == 0


@pytest.mark.parametrize("level", LEVELS)
def test_contrast_scales_towards_black(face, level):
    expected = face * TYPES["color_contrast"].values[level - 1]
    np.testing.assert_allclose(perturb(face, "color_contrast", level), expected, atol=0.5 + 1e-6)


@pytest.mark.parametrize("level", LEVELS)
def test_grey_blocks_cover_their_share_of_a_small_crop(level):
    image = np.zeros((64, 64, 3), np.uint8)
    covered = perturb(image, "block_wise", level) == 128
    assert covered[..., 0].mean() == (16, 32, 48, 64, 80)[level - 1] / 1024
    assert (covered == covered[..., :1]).all()
    blocks = covered[..., 0].reshape(32, 2, 32, 2)  # of 2 x 2 pixels
    assert (blocks == blocks[:, :1, :, :1]).all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(height=st.integers(32, 500), width=st.integers(32, 500), level=st.sampled_from(LEVELS))
def test_grey_blocks_cover_their_share_of_any_crop(height, width, level):
    covered = (perturb(np.zeros((height, width, 3), np.uint8), "block_wise", level)[..., 0] == 128).sum()
    blocks = TYPES["block_wise"].values[level - 1]
    # Where a side is no multiple of 32, blocks differ by a pixel.
    assert blocks * (height // 32) * (width // 32) <= covered <= blocks * -(-height // 32) * -(-width // 32)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(height=st.integers(1, 31), width=st.integers(1, 31), level=st.sampled_from(LEVELS))
def test_in_a_tiny_crop_a_grey_block_is_a_pixel(height, width, level):
    covered = (perturb(np.zeros((height, width, 3), np.uint8), "block_wise", level)[..., 0] == 128).sum()
    assert abs(covered - TYPES["block_wise"].values[level - 1] / 1024 * height * width) <= 0.5


def test_grey_blocks_reach_every_place():
    image = np.zeros((64, 64, 3), np.uint8)
    covered = [perturb(image, "block_wise", 5, frame=frame)[..., 0] == 128 for frame in range(150)]
    assert np.any(covered, axis=0).all()


@pytest.mark.parametrize("level", [1, 2])  # louder noise is clipped, even about the middle
def test_noise_has_the_strength_that_the_published_formula_gives(level):
    image = np.full((200, 200, 3), 128, np.uint8)
    luma, red, blue = cv2.split(cv2.cvtColor(perturb(image, "gaussian_noise", level), cv2.COLOR_RGB2YCrCb) - 128.0)
    sigma = 255 * np.sqrt(TYPES["gaussian_noise"].values[level - 1])
    for channel, expected in ((luma, sigma * 255 / 219), (red, sigma * 255 / 224), (blue, sigma * 255 / 224)):
        assert abs(channel.mean()) < 0.3
        assert channel.std() == pytest.approx(expected, rel=0.03)
    assert np.abs(np.corrcoef([luma.ravel(), red.ravel(), blue.ravel()]) - np.eye(3)).max() < 0.03


def test_noise_is_clipped_and_does_not_wrap():
    dark, light = (np.full((64, 64, 3), value, np.uint8) for value in (0, 255))
    assert np.median(perturb(dark, "gaussian_noise", 5)) < 10
    assert np.median(perturb(light, "gaussian_noise", 5)) > 245


@pytest.mark.parametrize("level", LEVELS)
def test_blur_has_the_published_kernel(level):
    image = np.zeros((65, 65, 3), np.uint8)
    image[:, 32:] = 255
    edge = perturb(image, "gaussian_blur", level)[32, :, 0].astype(float) / 255
    kernel = TYPES["gaussian_blur"].values[level - 1]
    assert np.flatnonzero((edge > 0) & (edge < 1)).size <= kernel
    spread = np.diff(edge)  # the kernel itself
    places = np.arange(64)
    centre = np.average(places, weights=spread)
    # Cut off at three standard deviations, and rounded to 255ths.
    assert np.sqrt(np.average((places - centre) ** 2, weights=spread)) == pytest.approx(kernel / 6, rel=0.05)


def test_pixelation_is_no_jpeg_but_a_loss_of_resolution(face):
    for level, divisor in zip(LEVELS, (2, 3, 4, 5, 6), strict=True):
        small = cv2.resize(face, (112 // divisor, 112 // divisor), interpolation=cv2.INTER_LINEAR)
        expected = cv2.resize(small, (112, 112), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(perturb(face, "pixelation", level), expected)


def test_video_compression_keeps_colours_and_place(face):
    """A wrong colour matrix, or a frame moved by the padding, would show as a bias."""
    image = face[:111, :109]  # odd sides
    perturbed = perturb(image, "video_compression", 1)
    assert np.abs(perturbed.mean((0, 1)) - image.mean((0, 1))).max() < 2.5
    (right, down), _ = cv2.phaseCorrelate(*(part.mean(2) for part in (image, perturbed)))
    assert max(abs(right), abs(down)) < 0.3


# --------------------------------------------------------------------------------------------------- JPEG and resizing


@pytest.mark.parametrize("level", LEVELS)
def test_jpeg_is_that_of_another_codec(face, level):
    quality = TYPES["jpeg"].values[level - 1]
    encoded = cv2.imencode(".jpg", face[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    expected = cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_allclose(perturb(face, "jpeg", level), expected, atol=2)


def test_resizing_takes_the_mean_over_areas_and_enlarges_it_bicubically(face):
    image = cv2.resize(face, (96, 96), interpolation=cv2.INTER_CUBIC)
    fine = image.repeat(3, 0).repeat(3, 1).astype(float)  # so that areas are whole pixels for every share
    for level, side in zip(LEVELS, (72, 48, 36, 24, 12), strict=True):
        small = fine.reshape(side, 288 // side, side, 288 // side, 3).mean((1, 3))
        channels = torch.from_numpy(small.round()).permute(2, 0, 1)[None]
        expected = interpolate(channels, (96, 96), mode="bicubic")[0].permute(1, 2, 0).clip(0, 255).numpy()
        np.testing.assert_allclose(perturb(image, "resize", level), expected, atol=2)


# -------------------------------------------------------------------------------------------------------------- names


def test_families_and_types_are_found_once_each():
    assert find_types([]) == []
    assert find_types(["deeperforensics"]) == list(FAMILIES["deeperforensics"]) == list(TYPES)[:7]
    assert find_types(["jpeg", "gaussian_blur", "jpeg"]) == ["jpeg", "gaussian_blur"]
    assert sorted(find_types(["resize", "all"])) == sorted(TYPES)


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match=r"Unknown perturbation 'jpg'. Choose from deeperforensics, all, color"):
        find_types(["jpeg", "jpg"])
    with pytest.raises(InputError, match="Unknown perturbation 'all'"):
        Perturbation("all", 1)
    with pytest.raises(InputError, match="Level of jpeg: is 6"):
        Perturbation("jpeg", 6)


def test_a_ffmpeg_without_the_encoder_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setattr(perturbations.av, "codecs_available", {"h264"})
    assert find_types(["jpeg"]) == ["jpeg"]
    with pytest.raises(InputError, match="needs the encoder libx264"):
        find_types(["deeperforensics"])


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8)])
def test_what_is_no_rgb_image_is_refused(image):
    with pytest.raises(InputError, match="Pass uint8 RGB"):
        perturb(image, "jpeg", 1)
