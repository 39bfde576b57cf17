import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.image_processing_dcl import DCLImageProcessor
from dcl_face_forgery.training import augment as augment_module
from dcl_face_forgery.training.augment import Augmentation, corresponding_mix
from dcl_face_forgery.training.settings import AugmentationSettings

SIZES = [(380, 380), (112, 92), (300, 411)]
GEOMETRY = ("rotate_probability", "resized_crop_probability", "flip_probability")
PIXELS = ("cutout_probability", "gray_probability", "noise_probability", "color_probability", "blur_probability")


def only(*names: str, **values) -> AugmentationSettings:
    """Settings under which the named changes always happen, and no other."""
    chosen = AugmentationSettings.none()
    for name in names:
        setattr(chosen, name, 1.0)
    for name, value in values.items():
        setattr(chosen, name, value)
    return chosen


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """An image of smooth coloured structure with the full range of grey levels."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def augment(image, mask=None, chosen=None, size=299, seed=0):
    return Augmentation(chosen or AugmentationSettings(), size)(image, mask, np.random.default_rng(seed))


def fitted_map(view: np.ndarray, side: int) -> np.ndarray:
    """Where each pixel of the view came from, as a (2, 3) map, read from an image that holds its own coordinates."""
    size = len(view)
    rows, columns = np.mgrid[size // 3 : size - size // 3, size // 3 : size - size // 3]
    middle = view[rows, columns, :2].reshape(-1, 2) * (side / 255.0)
    places = np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5, np.ones(columns.size)], axis=1)
    return np.linalg.lstsq(places, middle, rcond=None)[0].T


def coordinates(side: int) -> np.ndarray:
    ramp = (np.arange(side) + 0.5) * (255.0 / side)
    columns, rows = np.meshgrid(ramp, ramp)
    return np.rint(np.stack([columns, rows, columns], axis=2)).astype(np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "size"), [(380, 380, 299), (112, 92, 128), (299, 299, 299), (440, 300, 299)]
)
def test_with_everything_off_it_is_a_bilinear_resize(height, width, size):
    image = photograph(height, width)
    view, mask = augment(image, image[..., 0], AugmentationSettings.none(), size)
    expected = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(view.astype(int), expected, atol=1)
    np.testing.assert_allclose(mask.astype(int), expected[..., 0], atol=1)


@pytest.mark.parametrize("height, width, size", [(380, 380, 224), (380, 380, 128), (300, 100, 128), (250, 97, 32)])
def test_a_shrunken_view_is_what_the_image_processor_makes_of_the_crop(height, width, size):
    """White noise: another filter would leave more or less of it."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    view, _ = Augmentation(AugmentationSettings.none(), size)(noise, None, np.random.default_rng(0))
    processor = DCLImageProcessor(size={"height": size, "width": size})
    pixel_values = processor(noise, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    assert np.abs((pixel_values + 1) * 127.5 - view).max() < 1.5


@pytest.mark.parametrize(("height", "width", "size"), [(380, 380, 299), (250, 411, 299), (112, 92, 128), (92, 92, 92)])
@pytest.mark.parametrize("flip", [False, True])
def test_a_view_of_the_whole_image_is_what_the_image_processor_makes_of_it(height, width, size, flip):
    """White noise and a difference of a grey level: a warp rounds its positions to a 32nd of a pixel."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    view, mask = augment(noise, noise[..., 0], only("flip_probability") if flip else only(), size)
    processor = DCLImageProcessor(size={"height": size, "width": size})
    expected = processor(noise, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    expected = (expected[:, ::-1] if flip else expected) * 127.5 + 127.5
    np.testing.assert_allclose(view, expected, atol=1)
    np.testing.assert_array_equal(mask, view[..., 0])


def test_fine_stripes_average_out_where_the_image_shrinks(monkeypatch):
    stripes = np.zeros((380, 380, 3), np.uint8)
    stripes[:, ::2] = 255
    chosen = only("rotate_probability", "resized_crop_probability", resized_crop_scale=[0.8, 1.0])
    contrasts = [augment(stripes, None, chosen, 100, seed)[0].std() for seed in range(6)]
    monkeypatch.setattr(augment_module, "MAX_BILINEAR_SHRINK", np.inf)
    aliased = [augment(stripes, None, chosen, 100, seed)[0].std() for seed in range(6)]
    assert max(contrasts) < 0.4 * min(aliased)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("size", [96, 299])
def test_the_mask_moves_by_the_very_map_of_the_image(height, width, size):
    mask = photograph(height, width)[..., 0]
    for seed in range(10):
        view, moved = augment(np.dstack([mask] * 3), mask, only(*GEOMETRY), size, seed)
        np.testing.assert_allclose(view[..., 1].astype(int), moved, atol=1)
        plain, _ = augment(np.dstack([mask] * 3), None, only(), size)
        assert np.abs(plain[..., 0].astype(int) - moved).mean() > 10


def test_a_flip_mirrors_left_and_right():
    image = photograph(380, 380)
    plain, _ = augment(image, chosen=only())
    flipped, _ = augment(image, chosen=only("flip_probability"))
    np.testing.assert_allclose(flipped[:, ::-1].astype(int), plain, atol=1)


def test_rotations_turn_about_the_centre_to_both_sides_within_the_limit():
    angles = []
    for seed in range(40):
        view, _ = augment(coordinates(380), chosen=only("rotate_probability", rotate_degrees=20), size=300, seed=seed)
        turn = fitted_map(view, 380)
        np.testing.assert_allclose(turn @ [150, 150, 1], [190, 190], atol=0.5)
        linear = turn[:, :2] * (300 / 380)
        np.testing.assert_allclose(linear @ linear.T, np.eye(2), atol=0.02)
        angles.append(np.degrees(np.arctan2(linear[1, 0], linear[0, 0])))
    assert -20.5 < min(angles) < -10
    assert 10 < max(angles) < 20.5


def test_crops_stay_inside_the_image_and_keep_to_area_and_ratio():
    areas = []
    for seed in range(40):
        view, _ = augment(coordinates(380), chosen=only("resized_crop_probability"), size=300, seed=seed)
        crop = fitted_map(view, 380)
        left, top = crop @ [0, 0, 1]
        right, bottom = crop @ [300, 300, 1]
        assert min(left, top) > -1
        assert max(right, bottom) < 381
        areas.append((right - left) * (bottom - top) / 380**2)
        assert 0.74 < (right - left) / (bottom - top) < 1.35
    assert 0.49 < min(areas) < 0.65
    assert 0.85 < max(areas) < 1.01


def test_beyond_its_border_the_image_is_mirrored():
    view, _ = augment(np.full((380, 380, 3), 90, np.uint8), chosen=only("rotate_probability"))
    assert (view == 90).all()


@pytest.mark.parametrize("name", [*PIXELS, "jpeg_probability"])
def test_changes_of_pixels_change_the_image_and_leave_the_mask_in_place(name):
    image = photograph(380, 380)
    plain, plain_mask = augment(image, image[..., 0], only())
    view, mask = augment(image, image[..., 0], only(name))
    assert view.shape == plain.shape
    assert view.dtype == np.uint8
    assert (view != plain).any()
    np.testing.assert_array_equal(mask, plain_mask)


def test_the_cutout_blackens_one_square_of_the_given_share():
    white = np.full((380, 380, 3), 255, np.uint8)
    sides = []
    for seed in range(30):
        view, _ = augment(white, chosen=only("cutout_probability"), seed=seed)
        rows, columns = np.nonzero((view == 0).all(axis=2))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert height * width == len(rows)
        assert (view == 0).sum() + (view == 255).sum() == view.size
        sides += [height, width]
    assert max(sides) == 25


def test_gray_has_no_colour():
    view, _ = augment(photograph(380, 380), chosen=only("gray_probability"))
    assert (view == view[..., :1]).all()


def test_noise_has_the_variance_of_the_original():
    middle = np.full((299, 299, 3), 128, np.uint8)
    variances = [augment(middle, chosen=only("noise_probability"), seed=seed)[0].var() for seed in range(12)]
    assert 9.5 < min(variances) < 25
    assert 35 < max(variances) < 51


def shift_main_colors(image: np.ndarray, seed: int) -> np.ndarray:
    return augment_module._draw_main_colors(np.random.default_rng(seed))(image)


def test_the_colours_of_a_grey_photograph_shift_along_grey_only():
    gray = np.dstack([photograph(112, 92)[..., 0]] * 3)
    views = [shift_main_colors(gray, seed) for seed in range(8)]
    assert all((view == view[..., :1]).all() for view in views)
    assert len({view.mean() for view in views}) > 3


def test_main_colours_shift_by_one_factor_times_the_variances_of_the_unit_range():
    """FancyPCA of the original's library, computed here from the singular values of the centred colours."""
    image = 64 + photograph(300, 300) // 128 * np.array([128, 100, 60], np.uint8)  # contrasts, and nothing is clipped
    colors = image[::4, ::4].reshape(-1, 3) / 255
    _, singular, axes = np.linalg.svd(colors - colors.mean(axis=0), full_matrices=False)
    variances = singular**2 / len(colors)
    for strength in (1.0, -1.0, 0.4):
        shifts = (augment_module._shift_main_colors(image, strength).astype(float) - image).reshape(-1, 3)
        assert np.ptp(shifts, axis=0).max() == 0  # every pixel moves by the same
        along = np.abs(shifts[0] @ axes.T) / 255
        np.testing.assert_allclose(along, abs(strength) * variances, atol=0.9 / 255)  # rounded to grey levels
        assert along.max() > 0.02
    draws = [augment_module._draw_main_colors(np.random.default_rng(seed)).keywords["strength"] for seed in range(400)]
    assert abs(np.mean(draws)) < 0.015 and 0.09 < np.std(draws) < 0.11


def test_all_three_changes_of_colour_are_drawn():
    red = np.full((8, 8, 3), (200, 40, 40), np.uint8)
    kinds = set()
    for seed in range(20):
        view, _ = augment(red, chosen=only("color_probability"), size=8, seed=seed)
        if (view == red).all():
            kinds.add("main colours")  # one colour has no axes to shift along
        else:
            kinds.add("brightness" if (view[..., 1] == view[..., 2]).all() else "hue")
    assert kinds == {"main colours", "brightness", "hue"}


def test_jpeg_keeps_the_order_of_the_channels_and_loses_more_at_low_quality():
    image = photograph(299, 299)
    errors = []
    for quality in (30, 95):
        view, _ = augment(image, chosen=only("jpeg_probability", jpeg_quality=[quality, quality]))
        errors.append(np.abs(view.astype(int) - image).mean(axis=(0, 1)))
    assert (errors[1] < errors[0]).all()
    assert errors[1].max() < 3


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_generator_alone_decides(height, width):
    image = photograph(height, width)
    image.flags.writeable = False  # as an array over Pillow's memory is
    everything = only(*GEOMETRY, *PIXELS, "jpeg_probability")
    first, first_mask = augment(image, image[..., 0], everything, seed=5)
    again, again_mask = augment(image, image[..., 0], everything, seed=5)
    other, _ = augment(image, image[..., 0], everything, seed=6)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first_mask, again_mask)
    assert (first != other).any()
    assert first.shape == (299, 299, 3)
    assert first_mask.shape == (299, 299)


def test_skipping_a_view_draws_the_numbers_that_it_would_have_drawn():
    augmentation = Augmentation(AugmentationSettings(noise_probability=0.5, jpeg_probability=0.5), 48)
    for seed in range(40):
        made, skipped = np.random.default_rng(seed), np.random.default_rng(seed)
        augmentation(photograph(50, 40), None, made)
        augmentation.skip(skipped)
        assert made.bit_generator.state == skipped.bit_generator.state


def test_an_unknown_mask_stays_unknown_and_does_not_change_the_image():
    image = photograph(112, 92)
    with_mask, _ = augment(image, image[..., 0], seed=3)
    without, mask = augment(image, None, seed=3)
    assert mask is None
    np.testing.assert_array_equal(with_mask, without)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 500, 3), (700, 2, 3)])
def test_images_of_extreme_shape_are_accepted(shape):
    image = np.full(shape, 77, np.uint8)
    for seed in range(5):
        view, mask = augment(image, image[..., 0], only(*GEOMETRY), 32, seed)
        assert (view == 77).all()
        assert (mask == 77).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flip_probability", 1.5),
        ("noise_probability", float("nan")),
        ("rotate_probability", "often"),
        ("rotate_degrees", 200),
        ("cutout_side", -0.1),
        ("resized_crop_scale", [0.9, 0.5]),
        ("resized_crop_scale", [0.0, 1.0]),
        ("resized_crop_ratio", [1.0]),
        ("jpeg_quality", 60),
    ],
)
def test_a_setting_out_of_range_is_named(name, value):
    with pytest.raises(InputError, match=name):
        AugmentationSettings(**{name: value})


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(InputError, match="Mask: has 8x9 pixels, but its image has 9x9"):
        augment(np.zeros((9, 9, 3), np.uint8), np.zeros((9, 8), np.uint8))


@settings(deadline=None, max_examples=50)
@given(ratio=st.floats(0.01, 1.0), seed=st.integers(0, 1000))
def test_a_mix_blends_fake_and_source(ratio, seed):
    fake, source = photograph(20, 16, seed), photograph(20, 16, seed + 1)
    image = corresponding_mix(fake, source, ratio)
    np.testing.assert_allclose(image, ratio * fake + (1 - ratio) * source, atol=0.51)


def test_a_mix_of_the_fake_alone_is_the_fake():
    fake, source = photograph(20, 16), photograph(20, 16, 1)
    np.testing.assert_array_equal(corresponding_mix(fake, source, 1.0), fake)


def test_a_mix_needs_a_source_of_the_same_size():
    with pytest.raises(InputError, match="Source frame: has"):
        corresponding_mix(photograph(20, 16), photograph(20, 20), 0.5)
