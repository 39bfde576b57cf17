"""Forgeries: subtle, deterministic, and with masks that tell exactly what was changed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dcl_face_forgery.data_scripts.assets import fetch
from dcl_face_forgery.faces_dcl import YuNet, crop_transform, cut, map_points
from dcl_face_forgery.prepared.blending import METHODS, Portrait, _blend, random_generator

SIZE = 128


def cut_portrait(detector, path, size=SIZE):
    image = np.asarray(Image.open(path).convert("RGB"))
    face = detector.detect(image)[0]
    transform = crop_transform(face, {"kind": "box", "margin": 1.3, "size": size})
    return Portrait(cut(image, transform, size), map_points(face.landmarks, transform))


@pytest.fixture(scope="module")
def detector():
    return YuNet(fetch("yunet"))


@pytest.fixture(scope="module")
def people(detector):
    """Two photographs of each of eight people."""
    return [
        [cut_portrait(detector, fetch("orl") / f"s{person}/{photo}.pgm") for photo in (1, 6)] for person in range(1, 9)
    ]


@pytest.fixture(scope="module")
def coloured(detector):
    return cut_portrait(detector, fetch("astronaut"), 200)


def forge(name, people, person, seed):
    target = people[person][0]
    partner = {None: None, "same": people[person][1], "other": people[(person + 1) % len(people)][0]}
    return target, METHODS[name].forge(target, partner[METHODS[name].partner], random_generator(seed, name))


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), person=st.integers(0, 7))
def test_outside_the_mask_every_byte_is_the_original(people, name, seed, person):
    target, forgery = forge(name, people, person, seed)
    assert forgery.image.dtype == forgery.mask.dtype == np.uint8
    assert forgery.image.shape == target.image.shape and forgery.mask.shape == target.image.shape[:2]
    untouched = forgery.mask == 0
    assert np.array_equal(forgery.image[untouched], target.image[untouched])
    assert untouched.any() and not untouched.all()
    assert (forgery.image != target.image).any()


def test_the_mask_is_the_share_of_the_forgery_in_each_pixel():
    weight = np.random.default_rng(0).random((9, 7)).astype(np.float32)
    forgery = _blend(np.zeros((9, 7, 3), np.uint8), np.full((9, 7, 3), 255, np.float32), weight)
    assert np.array_equal(forgery.mask, np.round(weight * 255).astype(np.uint8))
    assert all(np.array_equal(forgery.image[..., channel], forgery.mask) for channel in range(3))


@pytest.mark.parametrize("name", METHODS)
def test_a_seed_gives_one_forgery_and_another_seed_another(people, name):
    first, again, other = (forge(name, people, 0, seed)[1] for seed in (3, 3, 4))
    assert np.array_equal(first.image, again.image) and np.array_equal(first.mask, again.mask)
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("name", METHODS)
def test_the_forged_region_lies_on_the_face(people, name):
    """The mask's centre of mass is within the face, and mouth swaps are at the mouth."""
    for person in range(8):
        target, forgery = forge(name, people, person, 0)
        weight = forgery.mask / forgery.mask.sum()
        y, x = np.indices(weight.shape) + 0.5
        centre = np.array([(weight * x).sum(), (weight * y).sum()])
        inner = target.landmarks[3:].mean(axis=0) if name == "mouth_swap" else target.landmarks.mean(axis=0)
        assert np.linalg.norm(centre - inner) < (0.4 if name == "mouth_swap" else 0.9) * target.eye_distance


@pytest.mark.parametrize("name", METHODS)
def test_a_grey_photograph_stays_grey(people, name):
    image = forge(name, people, 2, 1)[1].image
    assert (np.ptp(image.astype(int), axis=2) <= 1).all()


@pytest.mark.parametrize("name", ["identity_swap", "lowres_swap", "mouth_swap"])
def test_a_swap_takes_on_the_target_s_brightness(people, name):
    """A partner that is darker by half leaves no dark patch."""
    target, partner = people[0][0], people[1][0]
    darker = Portrait(partner.image // 2, partner.landmarks)
    image, mask = METHODS[name].forge(target, darker, random_generator(0, name))
    inside = mask > 200
    before, after = target.image[inside].mean(), image[inside].mean()
    assert abs(after - before) < 10 < abs(darker.image[inside].mean() - before)


def test_a_swap_shows_the_other_person(people):
    """With the partner put in place, the middle of the forgery is nearer to the partner than to the target."""
    target, partner = people[0][0], Portrait(people[3][0].image, people[3][0].landmarks)
    image, mask = METHODS["identity_swap"].forge(target, partner, random_generator(5, "identity_swap"))
    same = METHODS["identity_swap"].forge(target, target, random_generator(5, "identity_swap")).image
    inside = mask > 200
    change = np.abs(image[inside].astype(float) - target.image[inside]).mean()
    assert change > 3 * np.abs(same[inside].astype(float) - target.image[inside]).mean()


def test_a_low_resolution_swap_has_less_detail_than_a_swap(people):
    def detail(image, mask):
        grey = image[..., 0].astype(float)
        edges = np.abs(np.diff(grey, axis=1, append=0)) + np.abs(np.diff(grey, axis=0, append=0))
        return edges[mask > 200].mean()

    for person in range(8):
        target, partner = people[person][0], people[(person + 1) % 8][0]
        swaps = [
            METHODS[name].forge(target, partner, random_generator(7)) for name in ("identity_swap", "lowres_swap")
        ]
        assert detail(*swaps[1]) < 0.9 * detail(*swaps[0])


@pytest.mark.parametrize("name", METHODS)
def test_a_larger_crop_gets_the_same_forgery(detector, name):
    """Lengths are in units of the face: the forgeries of one face in two sizes agree."""
    images, masks = [], []
    for size in (96, 288):
        portraits = [
            cut_portrait(detector, fetch("orl") / path, size) for path in ("s5/1.pgm", "s5/2.pgm", "s9/1.pgm")
        ]
        partner = {None: None, "same": portraits[1], "other": portraits[2]}[METHODS[name].partner]
        forgery = METHODS[name].forge(portraits[0], partner, random_generator(2, name))
        small = [Image.fromarray(array).resize((96, 96), Image.Resampling.BOX) for array in forgery]
        images.append(np.asarray(small[0], float))
        masks.append(np.asarray(small[1], float))
    assert np.abs(masks[1] - masks[0]).mean() < 0.03 * max(masks[0].max(), 1)
    if name == "lowres_swap":
        assert np.abs(images[1] - images[0])[masks[0] > 200].mean() < 2


@pytest.mark.parametrize("name", METHODS)
def test_colour_photographs_of_any_shape_can_be_forged(coloured, people, name):
    target = Portrait(coloured.image[:, :170], coloured.landmarks)
    image, mask = METHODS[name].forge(target, people[0][0] if METHODS[name].partner else None, random_generator(0))
    assert image.shape == target.image.shape
    assert np.array_equal(image[mask == 0], target.image[mask == 0]) and mask.any()


@pytest.mark.parametrize("name", METHODS)
def test_a_face_turned_away_or_outside_the_image_does_not_break_a_method(people, name):
    partner = people[1][0]
    for landmarks in (
        np.array([[60, 40], [62, 40], [70, 60], [61, 80], [62, 80]], float),  # from the side
        people[0][0].landmarks + 500,
        np.array([[60, 40], [40, 40], [50, 60], [60, 80], [40, 80]], float),  # mirrored
    ):
        target = Portrait(people[0][0].image, landmarks)
        image, mask = METHODS[name].forge(target, partner, random_generator(0))
        assert np.array_equal(image[mask == 0], target.image[mask == 0])


def test_random_generators_depend_on_the_key_alone():
    draws = [random_generator(0, "a", 1).random(), random_generator(0, "a", 1).random()]
    others = [random_generator(1, "a", 1), random_generator(0, "a", 2), random_generator(0, "b", 1)]
    assert draws[0] == draws[1] and draws[0] not in [generator.random() for generator in others]
