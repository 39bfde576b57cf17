"""The data views of DCL: which frames make query and key, and what happens to a batch on the device.

Workers draw all random numbers, from the generator of one sample, and send them along, so that a sample is the same
whatever the batch, the worker or the process. Workers also choose and blend frames (frame shift, corresponding mix)
and apply the common augmentation. `apply_device_views` adds the frequency view (SRM), shuffles patches and normalises
the whole batch on the device.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .augment import Augmentation, corresponding_mix
from .settings import AugmentationSettings, ViewSettings

#: High-pass kernels of the steganalysis rich model (Fridrich and Kodovsky, 2012): output channel i is kernel i.
SRM_KERNELS = np.stack(
    [
        np.array([[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, -2, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]) / 2,
        np.array([[0, 0, 0, 0, 0], [0, -1, 2, -1, 0], [0, 2, -4, 2, 0], [0, -1, 2, -1, 0], [0, 0, 0, 0, 0]]) / 4,
        np.array([[-1, 2, -2, 2, -1], [2, -6, 8, -6, 2], [-2, 8, -12, 8, -2], [2, -6, 8, -6, 2], [-1, 2, -2, 2, -1]])
        / 12,
    ]
)
DEVICE_DRAWS = ("query_patch_order", "key_patch_order", "query_srm", "key_srm")


@dataclass(frozen=True)
class PairPlan:
    """The frames of a query and its key, if the data set has them.

    With a frame shift, the key comes from another frame of the query's clip. In a corresponding pair, the key of a
    fake comes from the same clip forged by another method. Mix ratios are the shares of the fake, in (0, 1]; 1 means
    no mix.
    """

    frame_shift: bool
    corresponding_pair: bool
    query_mix_ratio: float
    key_mix_ratio: float


def draw_pair_plan(settings: ViewSettings, rng: np.random.Generator) -> PairPlan:
    """Draw the frames of a query and its key; every sample consumes the same number of random draws."""
    ratios = [1.0, 1.0]
    frame_shift, corresponding_pair, *mixed = rng.random(4) < (
        settings.frame_shift_probability,
        settings.corresponding_pair_probability,
        settings.mix_probability,
        settings.mix_probability,
    )
    for view, ratio in enumerate(rng.uniform(*settings.mix_ratio, size=2)):
        if mixed[view]:
            ratios[view] = float(ratio)
    return PairPlan(bool(frame_shift), bool(corresponding_pair), *ratios)


def view_augmentation(settings: ViewSettings, augmentation: AugmentationSettings, image_size: int) -> Augmentation:
    """Return the augmentation of the views; without `settings.augment`, a plain resize to `image_size`."""
    return Augmentation(augmentation if settings.augment else AugmentationSettings.none(), image_size)


def draw_view(
    image: np.ndarray,
    mask: np.ndarray | None,
    augmentation: Augmentation,
    rng: np.random.Generator,
    source: np.ndarray | None = None,
    mix_ratio: float = 1.0,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Make one view of a frame, uint8 RGB (height, width, 3): corresponding mix, then the common augmentation.

    The mix needs `source`, the real frame of a fake, in the shape of `image`. Returns uint8 (size, size, 3) and (size,
    size), or None without a mask.
    """
    if source is not None:
        image = corresponding_mix(image, source, mix_ratio)
    return augmentation(image, mask, rng)


def draw_patch_order(rng: np.random.Generator, grid: int, probability: float) -> np.ndarray:
    """Draw the order of the patches: with this probability a uniformly random permutation, else the identity.

    The original draws from a table of 30 permutations and 10 identities, which exists only for a 3x3 grid. Returns
    int64 (grid * grid,): entry t is the patch that moves to position t, in row-major order.
    """
    shuffled = rng.random() < probability
    order = rng.permutation(grid * grid)
    return order if shuffled else np.arange(grid * grid)


def draw_device_views(settings: ViewSettings, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw the inputs of `apply_device_views` for one sample: patch orders int64 (grid * grid,), SRM flags bool ()."""
    grid, probability = settings.random_patch_grid, settings.random_patch_probability
    query_srm, key_srm = rng.random(2) < settings.srm_probability
    return {
        "query_patch_order": draw_patch_order(rng, grid, probability),
        "key_patch_order": draw_patch_order(rng, grid, probability if settings.random_patch_on_key else 0.0),
        "query_srm": np.asarray(query_srm),
        "key_srm": np.asarray(query_srm if settings.srm_shared else key_srm),
    }


def apply_device_views(
    batch: Mapping[str, Any], image_mean: Sequence[float], image_std: Sequence[float]
) -> dict[str, Any]:
    """Turn a batch of the data loader into model input: add the SRM residual, shuffle patches and normalise.

    Args:
        batch: tensors on one device, for N samples: `pixel_values` and, if keys are needed, `key_pixel_values` uint8
            (N, 3, H, W), the stacked draws of `draw_device_views`, `mask` uint8 (N, H, W) or None, and anything else.
        image_mean: mean of each channel for values in [0, 1].
        image_std: standard deviation of each channel.

    Returns:
        `pixel_values` and `key_pixel_values`, where given, float32, the mask with the query's patch order, and the
        rest of the batch unchanged, without the draws.
    """
    views = {name: value for name, value in batch.items() if name not in DEVICE_DRAWS}
    for view, name in (("query", "pixel_values"), ("key", "key_pixel_values")):
        if name not in batch:
            continue
        # The residual comes first: after a shuffle, the seams between patches would be its strongest edges.
        images = srm_enhance(_to_unit_range(batch[name]), batch[f"{view}_srm"])
        views[name] = normalize(shuffle_patches(images, batch[f"{view}_patch_order"]), image_mean, image_std)
    if batch.get("mask") is not None:
        views["mask"] = shuffle_patches(batch["mask"].unsqueeze(1), batch["query_patch_order"]).squeeze(1)
    return views


def srm_enhance(images: torch.Tensor, apply: torch.Tensor) -> torch.Tensor:
    """Add the high-pass residual to images: channel i gains kernel i over the sum of red, green and blue.

    The residual is neither truncated nor clipped. The kernels sum to zero, so adding it here and then normalising by
    0.5 and 0.5 equals adding it to the normalised image, as the original does. Images are float32 (N, 3, H, W) in
    [0, 1]; `apply`, bool (N,), selects the images.
    """
    if images.device.type == "cpu":
        chosen = apply.nonzero().squeeze(1)  # the residual is the most expensive view, so compute it for these only
        return images.index_copy(0, chosen, _add_residual(images[chosen]))
    # To know which are chosen, the host would wait for the device.
    return torch.where(apply[:, None, None, None], _add_residual(images), images)


def _add_residual(images: torch.Tensor) -> torch.Tensor:
    height, width = images.shape[-2:]
    # Border pixels are repeated: zeros would add an edge that the image does not have, and break the equality with
    # the original order.
    total = F.pad(images.sum(dim=1, keepdim=True), (2, 2, 2, 2), mode="replicate").squeeze(1)
    enhanced = images.clone()
    # Shifted additions, since autocast and TF32 would round a convolution more coarsely than a grey level.
    for channel, row, column in np.argwhere(SRM_KERNELS):
        shifted = total[:, row : row + height, column : column + width]
        enhanced[:, channel].add_(shifted, alpha=float(SRM_KERNELS[channel, row, column]))
    return enhanced


def shuffle_patches(images: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Rearrange the patches of images or masks (N, C, H, W) of any type (RandomPatch).

    Patch `order[n, t]`, int64 (N, grid * grid), of image n moves to position t, in row-major order. Patches have H //
    grid rows and W // grid columns; leftover rows at the bottom and columns at the right stay in place.
    """
    count, channels, height, width = images.shape
    grid = math.isqrt(order.shape[1])
    rows, columns = height // grid, width // grid
    whole = (slice(None), slice(None), slice(grid * rows), slice(grid * columns))
    patches = images[whole].reshape(count, channels, grid, rows, grid, columns).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    patches = patches[torch.arange(count, device=images.device)[:, None], order].unflatten(1, (grid, grid))
    shuffled = images.clone()
    shuffled[whole] = patches.permute(0, 3, 1, 4, 2, 5).reshape(count, channels, grid * rows, grid * columns)
    return shuffled


def normalize(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Return `(images - mean) / std` per channel, float32; uint8 images (N, 3, H, W) are scaled to [0, 1] first."""
    images = _to_unit_range(images)
    # Filled on the device: the host would wait for a copy.
    mean, std = (torch.stack([images.new_full((1, 1), value) for value in values]) for values in (mean, std))
    return (images - mean) / std


def _to_unit_range(values: torch.Tensor) -> torch.Tensor:
    return values.float() / 255.0 if values.dtype == torch.uint8 else values.float()
