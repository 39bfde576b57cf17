import contextlib

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.prepared.cells import cell_masks
from dcl_face_forgery.training.settings import AugmentationSettings, ViewSettings
from dcl_face_forgery.training.views import (
    SRM_KERNELS,
    PairPlan,
    apply_device_views,
    draw_device_views,
    draw_pair_plan,
    draw_patch_order,
    draw_view,
    normalize,
    shuffle_patches,
    srm_enhance,
    view_augmentation,
)

HALF = [0.5, 0.5, 0.5]


def random_images(count=2, channels=3, height=40, width=33, seed=0) -> torch.Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


def random_orders(count: int, grid: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([draw_patch_order(rng, grid, 1.0) for _ in range(count)]))


# --- SRM


def test_the_kernels_sum_to_zero():
    np.testing.assert_allclose(SRM_KERNELS.sum(axis=(1, 2)), 0, atol=1e-12)


def test_the_residual_is_each_kernel_over_the_sum_of_the_channels():
    images = random_images()
    total = images[0].sum(0).double().numpy()
    expected = np.stack([ndimage.correlate(total, kernel, mode="nearest") for kernel in SRM_KERNELS])
    enhanced = srm_enhance(images, torch.tensor([True, True]))
    np.testing.assert_allclose((enhanced - images)[0].numpy(), expected, atol=2e-6)


def test_only_the_chosen_images_gain_the_residual():
    images = random_images(3)
    enhanced = srm_enhance(images, torch.tensor([False, True, False]))
    assert torch.equal(enhanced[[0, 2]], images[[0, 2]])
    assert (enhanced[1] - images[1]).abs().max() > 0.1


def test_a_plain_area_has_no_residual_up_to_its_border():
    images = torch.full((1, 3, 20, 20), 0.7)
    torch.testing.assert_close(srm_enhance(images, torch.tensor([True])), images)


def test_adding_before_the_normalisation_equals_the_original_order():
    images, every = random_images(), torch.tensor([True, True])
    added_first = normalize(srm_enhance(images, every), HALF, HALF)
    normalized = normalize(images, HALF, HALF)
    torch.testing.assert_close(added_first, srm_enhance(normalized, every), atol=1e-5, rtol=0)
    # The original convolves the normalised image with zeros around it: the same inside its two border pixels.
    weight = torch.from_numpy(SRM_KERNELS).float()[:, None].repeat(1, 3, 1, 1)
    original = normalized + F.conv2d(normalized, weight, padding=2)
    inside = (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(added_first[inside], original[inside], atol=1e-5, rtol=0)


# --- Patches


def shuffled_by_hand(image: np.ndarray, order: np.ndarray, grid: int) -> np.ndarray:
    height, width = image.shape[1] // grid, image.shape[2] // grid
    result = image.copy()
    for place, patch in enumerate(order):
        (row, column), (from_row, from_column) = divmod(place, grid), divmod(int(patch), grid)
        result[:, row * height : (row + 1) * height, column * width : (column + 1) * width] = image[
            :, from_row * height : (from_row + 1) * height, from_column * width : (from_column + 1) * width
        ]
    return result


@settings(deadline=None, max_examples=60)
@given(
    grid=st.integers(1, 6),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**16),
)
def test_shuffling_patches(grid, height, width, channels, seed):
    images = random_images(3, channels, height, width, seed)
    order = random_orders(3, grid, seed)
    shuffled = shuffle_patches(images, order)
    for image, result, one in zip(images.numpy(), shuffled.numpy(), order.numpy(), strict=True):
        np.testing.assert_array_equal(result, shuffled_by_hand(image, one, grid))
    torch.testing.assert_close(shuffle_patches(shuffled, order.argsort(dim=1)), images, atol=0, rtol=0)
    identity = torch.arange(grid * grid).repeat(3, 1)
    assert torch.equal(shuffle_patches(images, identity), images)
    assert torch.equal(shuffled.flatten(1).sort(dim=1).values, images.flatten(1).sort(dim=1).values)
    rows, columns = height // grid * grid, width // grid * grid
    assert torch.equal(shuffled[..., rows:, :], images[..., rows:, :])
    assert torch.equal(shuffled[..., columns:], images[..., columns:])


def test_a_mask_moves_with_its_image():
    images, order = random_images(4, height=50, width=47), random_orders(4, 3)
    masks = (images[:, :1] > 0.5).to(torch.uint8)
    assert torch.equal(shuffle_patches(masks, order), (shuffle_patches(images, order)[:, :1] > 0.5).to(torch.uint8))


@pytest.mark.parametrize("grid", [1, 2, 3, 5])
def test_a_drawn_order_is_a_permutation_or_the_identity(grid):
    rng = np.random.default_rng(0)
    for probability in (0.0, 1.0):
        orders = [draw_patch_order(rng, grid, probability) for _ in range(20)]
        assert all(sorted(order) == list(range(grid * grid)) for order in orders)
        moved = any((order != np.arange(grid * grid)).any() for order in orders)
        assert moved == (probability == 1.0 and grid > 1)


def test_orders_are_shuffled_as_often_as_asked_and_every_patch_goes_everywhere():
    rng = np.random.default_rng(0)
    orders = np.stack([draw_patch_order(rng, 3, 0.75) for _ in range(4000)])
    moved = (orders != np.arange(9)).any(axis=1)
    assert abs(moved.mean() - 0.75) < 0.03
    counts = np.stack([np.bincount(place, minlength=9) for place in orders[moved].T]) / moved.sum()
    np.testing.assert_allclose(counts, 1 / 9, atol=0.03)


# --- Draws


def test_query_and_key_share_the_srm_draw_unless_told_otherwise():
    rng = np.random.default_rng(0)
    shared = [draw_device_views(ViewSettings(), rng) for _ in range(200)]
    assert all(views["query_srm"] == views["key_srm"] for views in shared)
    assert 70 < sum(bool(views["query_srm"]) for views in shared) < 130
    apart = [draw_device_views(ViewSettings(srm_shared=False), rng) for _ in range(200)]
    assert 70 < sum(bool(views["query_srm"] != views["key_srm"]) for views in apart) < 130


def test_the_key_keeps_its_patches_in_place_unless_told_otherwise():
    rng = np.random.default_rng(0)
    identity = np.arange(16)
    released = [draw_device_views(ViewSettings(random_patch_grid=4), rng) for _ in range(30)]
    assert all((views["key_patch_order"] == identity).all() for views in released)
    assert any((views["query_patch_order"] != identity).any() for views in released)
    both = ViewSettings(random_patch_grid=4, random_patch_probability=1.0, random_patch_on_key=True)
    views = draw_device_views(both, rng)
    assert (views["key_patch_order"] != identity).any()
    assert (views["key_patch_order"] != views["query_patch_order"]).any()


def test_plans_follow_their_probabilities():
    rng = np.random.default_rng(0)
    nothing = ViewSettings(frame_shift_probability=0, mix_probability=0)
    assert {draw_pair_plan(nothing, rng) for _ in range(20)} == {PairPlan(False, False, 1.0, 1.0)}
    everything = ViewSettings(
        frame_shift_probability=1, mix_probability=1, corresponding_pair_probability=1, mix_ratio=[0.3, 0.6]
    )
    plans = [draw_pair_plan(everything, rng) for _ in range(50)]
    assert all(plan.frame_shift and plan.corresponding_pair for plan in plans)
    ratios = np.array([[plan.query_mix_ratio, plan.key_mix_ratio] for plan in plans])
    assert 0.3 <= ratios.min() < 0.33
    assert 0.57 < ratios.max() <= 0.6
    assert (ratios[:, 0] != ratios[:, 1]).all()


def test_draws_depend_on_the_generator_only_and_the_next_sample_on_no_setting_of_the_plan():
    for chosen in (ViewSettings(), ViewSettings(mix_probability=0, frame_shift_probability=1)):
        rng, again = np.random.default_rng(7), np.random.default_rng(7)
        assert draw_pair_plan(chosen, rng) == draw_pair_plan(chosen, again)
        first, second = draw_device_views(ViewSettings(), rng), draw_device_views(ViewSettings(), again)
        assert all(np.array_equal(first[name], second[name]) for name in first)
    rng, other = np.random.default_rng(7), np.random.default_rng(7)
    draw_pair_plan(ViewSettings(), rng)
    draw_pair_plan(ViewSettings(mix_probability=0), other)
    assert rng.random() == other.random()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("srm_probability", -0.1),
        ("mix_probability", 2),
        ("mix_ratio", [0.0, 1.0]),
        ("mix_ratio", [0.8, 0.2]),
        ("random_patch_grid", 0),
        ("random_patch_grid", 2.5),
    ],
)
def test_a_setting_out_of_range_is_named(name, value):
    with pytest.raises(InputError, match=name):
        ViewSettings(**{name: value})


# --- The batch on the device


def make_batch(count=4, size=48, seed=0, chosen=None) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    draws = [draw_device_views(chosen or ViewSettings(random_patch_on_key=True), rng) for _ in range(count)]
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixel_values": torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8),
        "key_pixel_values": torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8),
        "mask": torch.randint(256, (count, size, size), generator=generator, dtype=torch.uint8),
        "labels": torch.arange(count) % 2,
        **{name: torch.from_numpy(np.stack([draw[name] for draw in draws])) for name in draws[0]},
    }


def test_a_batch_becomes_the_input_of_the_model():
    batch = make_batch()
    before = {name: value.clone() for name, value in batch.items()}
    views = apply_device_views(batch, HALF, [0.25, 0.5, 1.0])
    assert set(views) == {"pixel_values", "key_pixel_values", "mask", "labels"}
    assert views["labels"] is batch["labels"]
    assert all(torch.equal(batch[name], before[name]) for name in batch)
    for view, name in (("query", "pixel_values"), ("key", "key_pixel_values")):
        images = srm_enhance(batch[name] / 255.0, batch[f"{view}_srm"])
        expected = (shuffle_patches(images, batch[f"{view}_patch_order"]) - 0.5) / torch.tensor([0.25, 0.5, 1.0]).view(
            3, 1, 1
        )
        torch.testing.assert_close(views[name], expected)
    assert torch.equal(views["mask"], shuffle_patches(batch["mask"][:, None], batch["query_patch_order"])[:, 0])


def test_without_masks_the_images_are_the_same():
    batch = make_batch()
    views = apply_device_views({**batch, "mask": None}, HALF, HALF)
    assert views["mask"] is None
    del batch["mask"]
    assert torch.equal(views["pixel_values"], apply_device_views(batch, HALF, HALF)["pixel_values"])


def test_no_view_asks_a_device_for_a_value(monkeypatch):
    """Tensors on `meta` have none: `nonzero` and `item` fail there, as does whatever else would wait for a GPU."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # which `meta` does not have
    batch = {name: value.to("meta") for name, value in make_batch().items()}
    assert apply_device_views(batch, HALF, HALF)["pixel_values"].shape == (4, 3, 48, 48)
    assert cell_masks(batch["mask"], (5, 5)).shape == (4, 5, 5)


def test_without_keys_the_queries_are_the_same():
    batch = make_batch()
    alone = {name: value for name, value in batch.items() if not name.startswith("key_")}
    expected, views = apply_device_views(batch, HALF, HALF), apply_device_views(alone, HALF, HALF)
    assert expected.keys() - views.keys() == {"key_pixel_values"}
    assert all(torch.equal(views[name], expected[name]) for name in views)


def test_a_sample_looks_the_same_alone_and_in_a_batch():
    batch = make_batch()
    together = apply_device_views(batch, HALF, HALF)
    alone = apply_device_views({name: value[2:3] for name, value in batch.items()}, HALF, HALF)
    assert all(torch.equal(alone[name], together[name][2:3]) for name in alone)


def test_autocast_does_not_change_the_views():
    batch = make_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = apply_device_views(batch, HALF, HALF)
    plain = apply_device_views(batch, HALF, HALF)
    assert all(torch.equal(mixed[name], plain[name]) for name in plain)


# --- Image and mask through everything


def forgery(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A dark textured source, a fake that is far brighter inside a lopsided shape, and the mask of that shape."""
    rng = np.random.default_rng(seed)
    texture = cv2.GaussianBlur(rng.normal(size=(height, width, 3)), (0, 0), 5)
    source = np.clip(45 + 12 * texture / texture.std(), 0, 255)
    shape = np.zeros((height, width), np.uint8)
    center = (int(width * rng.uniform(0.3, 0.4)), int(height * rng.uniform(0.35, 0.45)))
    cv2.ellipse(shape, center, (int(width * 0.2), int(height * 0.28)), 20, 0, 360, 255, -1)
    cv2.rectangle(shape, center, (int(width * 0.8), int(height * 0.55)), 255, -1)
    mask = cv2.GaussianBlur(shape, (5, 5), 0)
    fake = source + 160.0 * (mask[..., None] / 255.0)
    return np.rint(fake.clip(0, 255)).astype(np.uint8), np.rint(source).astype(np.uint8), mask


def everything_on(size: int):
    often = dict.fromkeys(("rotate_probability", "resized_crop_probability", "flip_probability"), 1.0)
    some = {f"{name}_probability": 0.5 for name in ("cutout", "gray", "noise", "color", "blur", "jpeg")}
    chosen = ViewSettings(
        random_patch_probability=1.0,
        random_patch_on_key=True,
        srm_probability=0.6,
        srm_shared=False,
        mix_probability=1.0,
    )
    return chosen, view_augmentation(chosen, AugmentationSettings(**often, **some), size)


def views_of_forgeries(height: int, width: int, size: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The images (N, 3, size, size) in grey levels and masks that come out at the end of everything."""
    chosen, augmentation = everything_on(size)
    rows = []
    for seed in range(count):
        fake, source, mask = forgery(height, width, seed)
        rng = np.random.default_rng([0, 0, seed])
        plan = draw_pair_plan(chosen, rng)
        image, mask = draw_view(fake, mask, augmentation, rng, source, plan.query_mix_ratio)
        key, _ = draw_view(fake, None, augmentation, rng, source, plan.key_mix_ratio)
        pixels = {"pixel_values": image.transpose(2, 0, 1), "key_pixel_values": key.transpose(2, 0, 1), "mask": mask}
        rows.append(pixels | draw_device_views(chosen, rng))
    batch = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
    views = apply_device_views(batch, HALF, HALF)
    return (views["pixel_values"] * 0.5 + 0.5) * 255.0, views["mask"]


def mask_seen(image: torch.Tensor) -> np.ndarray:
    """The shape that stands out from the pixels, by Otsu's threshold."""
    gray = image.mean(dim=0).clamp(0, 255).round().to(torch.uint8).numpy()
    return cv2.threshold(cv2.medianBlur(gray, 5), 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1].astype(bool)


def overlap(seen: np.ndarray, mask: np.ndarray) -> float:
    marked = mask > mask.max() / 2
    return (seen & marked).sum() / (seen | marked).sum()


@pytest.mark.parametrize(("height", "width", "size"), [(380, 380, 299), (112, 92, 128)])
def test_image_and_mask_stay_aligned_through_all_views(height, width, size):
    images, masks = views_of_forgeries(height, width, size, 24)
    seen = [mask_seen(image) for image in images]

    def overlaps(moved: torch.Tensor) -> list[float]:
        return [overlap(one, mask) for one, mask in zip(seen, moved.numpy(), strict=True)]

    bar = 0.9
    assert min(overlaps(masks)) > bar
    misaligned = {  # each of these must be seen, in every single image
        "mirrored": masks.flip(-1),
        "upside down": masks.flip(-2),
        "patches elsewhere": shuffle_patches(masks[:, None], random_orders(24, 3))[:, 0],
        "of another sample": masks.roll(1, 0),
        "a thirtieth of the side off": masks.roll(size // 30, -1),
    }
    assert {name for name, moved in misaligned.items() if max(overlaps(moved)) > bar} == set()
