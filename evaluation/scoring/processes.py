"""One evaluation by several processes, which `torchrun` starts: they meet, and end together.

They exchange a few words only, so that gloo serves on every device.
"""

import contextlib
import datetime
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist

from ...errors_dcl import InputError

_PATIENCE = datetime.timedelta(days=30)  # a process may have hours of work where another has none; a dead one is seen
_STOP = "stop"  # the key in the store that says that a process gave up


class _Group:
    """What the processes of one command share."""

    def __init__(self, store: dist.Store):
        self.store = store
        self.ended = False
        """Whether all have been told that one gave up."""


_group: _Group | None = None


def process_index() -> int:
    """Return which of the processes this one is, from 0."""
    return dist.get_rank() if _group else 0


def process_count() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if _group else 1


def meet(value: Any = None) -> list[Any]:
    """Wait for all processes and exchange a value, which must not be large.

    Args:
        value: anything that can be pickled.

    Returns:
        The value of each process, in their order.

    Raises:
        InputError: if one of them was given something that it could not use; on all with the same sentence.
    """
    if _group is None:
        return [value]
    return _exchange(None, value)


def stop_is_wanted() -> bool:
    """Whether another process gave up: there is no use in going on, `meet` will say why."""
    return _group is not None and _group.store.check([_STOP])


@contextlib.contextmanager
def first_process_ahead() -> Iterator[None]:
    """Let the other processes begin when the first is through, and find what it downloaded or copied."""
    if process_index() > 0:
        meet()
    yield
    if process_index() == 0:
        meet()
    # An error of the first, which the others are told here; theirs are told at the next meeting.


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that `torchrun` started; what this one prints is lost unless it is the first.

    A command that ends by `SystemExit` on one process, as for an `InputError`, ends with the same status on all, and
    the first prints why. Any other error ends its process, and `torchrun` the rest.
    """
    global _group
    # By hand what `init_process_group` does, for the store: a process that works can look there, but not meet.
    store, index, count = next(dist.rendezvous("env://", timeout=_PATIENCE))
    dist.init_process_group("gloo", store=store, rank=index, world_size=count, timeout=_PATIENCE)
    _group = _Group(dist.PrefixStore("dcl", store))
    try:
        with contextlib.ExitStack() as silence:
            if index > 0:
                nowhere = silence.enter_context(open(os.devnull, "w"))
                silence.enter_context(contextlib.redirect_stdout(nowhere))
                silence.enter_context(contextlib.redirect_stderr(nowhere))
            yield
        meet()
    except (SystemExit, InputError) as error:
        code = error.code if isinstance(error, SystemExit) else f"error: {error}"
        if not _group.ended:
            _group.store.set(_STOP, "1")
            with contextlib.suppress(InputError):
                _exchange(code, None)
        if index == 0 and isinstance(code, str):
            print(code, file=sys.stderr, flush=True)
        dist.barrier()  # a process that ends has `torchrun` end the others, the first before it spoke
        sys.exit(1 if isinstance(code, str) else code)
    finally:
        _group = None
        dist.destroy_process_group()


def _exchange(trouble: str | int | None, value: Any) -> list[Any]:
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (trouble, value))
    for trouble, _ in gathered:
        if trouble is not None:
            _group.ended = True
            raise InputError(str(trouble).removeprefix("error: "))
    return [value for _, value in gathered]
