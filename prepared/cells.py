"""Which cells of a feature map are forged, by the mask of a face: for the losses of training and for evaluation.

Masks hold the weight of the forgery at each pixel, which is small where it is blended in softly or faintly. What
counts is where it is, not how much: a pixel is forged if its weight is more than `FORGED_PIXEL`.
"""

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

FORGED_PIXEL = 0.01  # of full weight; the released code takes its samples of the mask by the same threshold
MASK_RULE, MASK_THRESHOLD = "area", 0.5  # for models without these settings

MaskRule = Literal["area", "released"]


def cell_masks(masks: torch.Tensor, cells: tuple[int, int], rule: MaskRule = MASK_RULE) -> torch.Tensor:
    """Return the forged share of each cell of the feature map.

    With the rule `"area"`, it is the exact share of the cell's area that forged pixels cover. A pixel on the border of
    two cells counts in each by its overlap; so a forgery beside a cell never counts in it. With `"released"`, it is
    the mask resized bilinearly without antialiasing, as in the released code: the weight of the two by two pixels
    around the cell's centre, whatever the rest of the cell is.

    Args:
        masks: (N, H, W), uint8 in [0, 255] or float in [0, 1].
        cells: rows and columns of the feature map.
        rule: `"area"` or `"released"`.

    Returns:
        float32 (N, rows, columns) in [0, 1].
    """
    masks = masks.float() / 255.0 if masks.dtype == torch.uint8 else masks.float()
    with torch.autocast(masks.device.type, enabled=False):
        if rule == "released":
            return F.interpolate(masks[:, None], cells, mode="bilinear", align_corners=False)[:, 0]
        rows, columns = (
            _overlaps(size, count, masks.device) for size, count in zip(masks.shape[1:], cells, strict=True)
        )
        return (rows @ (masks > FORGED_PIXEL).float() @ columns.T).clamp(0.0, 1.0)


def forged_cells(mask: np.ndarray, cells: tuple[int, int], config: Any) -> np.ndarray:
    """Return which cells of a feature map are forged, by the rule and the threshold that a model was trained with.

    Args:
        mask: uint8 (height, width), the weight of the forgery times 255.
        cells: rows and columns of the feature map.
        config: the model's configuration, with `mask_rule` and `mask_threshold`, or without.

    Returns:
        bool (rows * columns,), in row-major order.
    """
    rule, threshold = getattr(config, "mask_rule", MASK_RULE), getattr(config, "mask_threshold", MASK_THRESHOLD)
    shares = cell_masks(torch.from_numpy(mask)[None], tuple(cells), rule)
    return (shares.flatten() > threshold).numpy()


def _overlaps(size: int, cells: int, device: torch.device) -> torch.Tensor:
    """Return float32 (cells, size): the share of each pixel in each of the equal parts of a line."""
    edges = torch.arange(cells + 1, dtype=torch.float32, device=device) * (size / cells)
    pixels = torch.arange(size, dtype=torch.float32, device=device)
    overlaps = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    return overlaps.clamp(min=0.0) * (cells / size)
