"""Which cells are forged: by area, and as in the released code; the same in training and in evaluation."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dcl_face_forgery.configuration_dcl import DCLConfig
from dcl_face_forgery.prepared.cells import cell_masks, forged_cells


def random_masks(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Masks whose pixels are forged, with any weight, or not, at random."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randint(3, 256, (count, height, width), generator=generator)
    return (weights * torch.randint(2, weights.shape, generator=generator)).to(torch.uint8)


def ellipses(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    masks = np.zeros((count, 299, 299), np.uint8)
    for mask in masks:
        centre, axes = rng.integers(90, 210, 2).tolist(), rng.integers(30, 100, 2).tolist()
        cv2.ellipse(mask, centre, axes, float(rng.uniform(0, 180)), 0, 360, 255, -1)
    return masks


def test_cells_that_divide_the_mask_are_shares_of_forged_pixels():
    masks = random_masks(2, 60, 40)
    expected = F.avg_pool2d((masks > 0).float()[:, None], (10, 8))[:, 0]
    torch.testing.assert_close(cell_masks(masks, (6, 5)), expected)
    torch.testing.assert_close(cell_masks(masks / 255, (6, 5)), expected)


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    cells=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    seed=st.integers(0, 2**16),
)
def test_cells_conserve_the_forged_area_and_stay_in_range(height, width, cells, seed):
    masks = random_masks(2, height, width, seed)
    reduced = cell_masks(masks, cells)
    assert reduced.shape == (2, *cells)
    assert reduced.dtype == torch.float32
    forged = (masks > 0).float()
    torch.testing.assert_close(reduced.mean(dim=(1, 2)), forged.mean(dim=(1, 2)), atol=1e-5, rtol=0)
    assert reduced.min() >= 0
    assert reduced.max() <= 1
    everywhere = cell_masks(torch.full((1, height, width), 255, dtype=torch.uint8), cells)
    torch.testing.assert_close(everywhere, torch.ones_like(everywhere))


def test_a_forgery_beside_a_cell_does_not_count_in_it():
    masks = torch.zeros(1, 299, 299)
    masks[:, 60:, 60:] = 1  # the third of ten cells begins at 59.8
    reduced = cell_masks(masks, (10, 10))
    assert reduced[0, :2].max() < 1e-4
    assert reduced[0, :, :2].max() < 1e-4
    assert reduced[0, 2, 3].item() == pytest.approx(29.7 / 29.9, abs=1e-4)


def test_pixels_on_a_border_count_by_their_part():
    mask = np.zeros((1, 5, 5), np.uint8)
    mask[:, 2] = 255  # the middle row belongs half to each of two rows of cells of 2.5 pixels
    np.testing.assert_allclose(cell_masks(torch.from_numpy(mask), (2, 1))[0], [[0.2], [0.2]], atol=1e-6)


def test_a_faint_forgery_covers_what_a_full_one_covers():
    """Self-blended faces have masks of a quarter of the full weight, and soft edges."""
    full = torch.from_numpy(ellipses(20))
    expected = cell_masks(full, (10, 10))
    for weight in (64, 128, 3):
        assert torch.equal(cell_masks(full.minimum(torch.tensor(weight, dtype=torch.uint8)), (10, 10)), expected)
    assert not cell_masks(full.minimum(torch.tensor(2, dtype=torch.uint8)), (10, 10)).any()  # a hundredth of 255


@pytest.mark.parametrize("cells", [(10, 10), (7, 3)])
def test_the_released_rule_samples_around_the_centre_of_each_cell(cells):
    masks = random_masks(2, 299, 250)
    expected = np.zeros((2, *cells))
    for row in range(cells[0]):
        for column in range(cells[1]):
            y, x = (row + 0.5) * 299 / cells[0] - 0.5, (column + 0.5) * 250 / cells[1] - 0.5
            for down in (0, 1):
                for across in (0, 1):
                    share = (1 - abs(y - int(y) - down)) * (1 - abs(x - int(x) - across))
                    expected[:, row, column] += share * masks[:, int(y) + down, int(x) + across].numpy() / 255
    np.testing.assert_allclose(cell_masks(masks, cells, "released"), expected, atol=1e-4)


def test_the_default_rule_marks_about_as_many_cells_as_the_released_one():
    masks = torch.from_numpy(ellipses(200))
    by_area = cell_masks(masks, (10, 10)) > DCLConfig().mask_threshold
    released = cell_masks(masks, (10, 10), "released") > 0.01
    assert by_area.sum() == pytest.approx(int(released.sum()), rel=0.07)
    assert (by_area == released).float().mean() > 0.98


def test_a_cell_is_forged_by_the_rule_and_the_threshold_of_the_configuration():
    mask = np.zeros((20, 20), np.uint8)
    mask[:10, :6] = 255  # six tenths of the first of four cells, its centre among them
    mask[:10, 13:17] = 255  # four tenths of the second one, around its centre
    assert forged_cells(mask, (2, 2), DCLConfig()).tolist() == [True, False, False, False]
    assert forged_cells(mask, (2, 2), DCLConfig(mask_threshold=0.3)).tolist() == [True, True, False, False]
    released = DCLConfig(mask_rule="released", mask_threshold=0.01)
    assert forged_cells(mask, (2, 2), released).tolist() == [True, True, False, False]
    assert forged_cells(mask, (2, 2), SimpleNamespace()).tolist() == [True, False, False, False]  # another model


def test_autocast_does_not_change_the_shares():
    masks = random_masks(2, 30, 30)
    for rule in ("area", "released"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = cell_masks(masks, (5, 5), rule)
        assert torch.equal(mixed, cell_masks(masks, (5, 5), rule))
