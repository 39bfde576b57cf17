"""Sums, means and gathers over all processes, or over the only one."""

from collections.abc import Mapping

import torch
import torch.distributed as dist


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def means_over_processes(terms: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Mean of the valid values of each term over all processes, scaled so that DDP averages its gradient correctly.

    DDP averages the gradients of the processes with equal weights, but the number of valid values, such as those of
    fakes with a mask, differs between processes. Each process therefore returns its own sum, divided by the count over
    all processes and multiplied by their number. The average over processes is then the mean over the whole batch, or
    0 if no process has a valid value.

    Args:
        terms: for each name the values, float (N,), and bool (N,), which of them are valid.

    Returns:
        A scalar for each name. One collective serves all terms.
    """
    counts = torch.stack([valid.sum() for _, valid in terms.values()]).float()
    if world_size() > 1:
        dist.all_reduce(counts)
    scales = world_size() / counts.clamp(min=1)
    return {
        name: torch.where(valid, values, 0).sum() * scale
        for (name, (values, valid)), scale in zip(terms.items(), scales, strict=True)
    }


@torch.no_grad()
def gather_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenate the rows (N, ...) of all processes in rank order; every process has the same number of rows."""
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def shuffle_over_processes(tensor: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Deal the rows of all processes out at random, as many to each as before (shuffle-BN of MoCo).

    Args:
        tensor: (N, ...), as many rows in every process.
        seed: the same in every process; it decides the order.

    Returns:
        (N, ...), the rows of this process after the shuffle, and int64 (N,), where its own rows are in the
        concatenation of all shuffled parts; see `unshuffle_over_processes`.
    """
    count, rank = len(tensor), dist.get_rank() if world_size() > 1 else 0
    order = torch.randperm(count * world_size(), generator=torch.Generator().manual_seed(seed))
    own = slice(rank * count, (rank + 1) * count)
    return gather_rows(tensor)[order[own].to(tensor.device)], order.argsort()[own].to(tensor.device)


def unshuffle_over_processes(tensor: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Return the rows (N, ...) that belong to this process, after `shuffle_over_processes`."""
    return gather_rows(tensor)[where]
