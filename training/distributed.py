"""Sums, means and gathers over all processes, or over the only one."""

import torch
import torch.distributed as dist
import torch.nn.functional as F


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_processes(values: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """Mean of the valid values (N,) of all processes, scaled so that DDP averages its gradient correctly.

    DDP averages the gradients of the processes with equal weights, but the number of valid values, such as those of
    fakes with a mask, differs between processes. Each process therefore returns its own sum, divided by the count over
    all processes and multiplied by their number. The average over processes is then the mean over the whole batch, or
    0 if no process has a valid value.
    """
    if valid is None:
        valid = torch.ones_like(values, dtype=torch.bool)
    count = valid.sum().float()
    if world_size() > 1:
        dist.all_reduce(count)
    total = torch.where(valid, values, 0).sum()
    return total * world_size() / count.clamp(min=1)


@torch.no_grad()
def gather_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenate the rows (N, ...) of all processes in rank order; the numbers of rows may differ."""
    if world_size() == 1:
        return tensor
    length = torch.tensor([len(tensor)], device=tensor.device)
    lengths = [torch.zeros_like(length) for _ in range(world_size())]
    dist.all_gather(lengths, length)
    longest = max(int(n) for n in lengths)
    padded = F.pad(tensor, (0, 0) * (tensor.ndim - 1) + (0, longest - len(tensor))).contiguous()
    parts = [torch.zeros_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(n)] for part, n in zip(parts, lengths, strict=True)])
