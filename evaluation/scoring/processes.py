"""One evaluation in several processes, started by `torchrun`: they synchronise, and stop together.

They exchange little data, so gloo suffices on every device. torch is imported late: tables of predictions do not need
it.
"""

import contextlib
import datetime
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ...errors_dcl import InputError

if TYPE_CHECKING:
    import torch.distributed as dist

_PATIENCE = datetime.timedelta(days=30)  # a process may wait for hours; a dead one is noticed at once
_STOP = "stop"  # store key that signals a failed process


class _Group:
    """State that the processes of one command share."""

    def __init__(self, store: "dist.Store", index: int, count: int):
        self.store = store
        self.index = index
        self.count = count
        self.ended = False
        """Whether all processes know of the failure of one."""


_group: _Group | None = None


def process_index() -> int:
    """Return the rank of this process, from 0."""
    return _group.index if _group else 0


def is_first_process() -> bool:
    """Whether this process writes and prints."""
    return process_index() == 0


def process_count() -> int:
    """Return the number of processes."""
    return _group.count if _group else 1


def meet(value: Any = None) -> list[Any]:
    """Wait for all processes and exchange a small value.

    Args:
        value: anything that can be pickled.

    Returns:
        The value of each process, in their order.

    Raises:
        InputError: on all processes, with the same message, if one of them raised it.
    """
    if _group is None:
        return [value]
    return _exchange(None, value)


def stop_is_wanted() -> bool:
    """Whether another process failed; this one should then stop and call `meet`, which raises the reason."""
    return _group is not None and _group.store.check([_STOP])


@contextlib.contextmanager
def first_process_ahead() -> Iterator[None]:
    """Let the first process run ahead, so that the others find the files that it downloads or copies."""
    if process_index() > 0:
        meet()
    yield
    if process_index() == 0:
        meet()
    # The others learn of an error of the first process here; their own errors are shared at the next `meet`.


def is_one_of_several() -> bool:
    """Whether `torchrun` started this process as one of several, which then join by `process_group`.

    A RANK without a WORLD_SIZE, as some schedulers set it, does not concern this command.
    """
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that `torchrun` started; only the first one prints.

    A `SystemExit` of one process, as for an `InputError`, ends all processes with the same status, and the first one
    prints the reason. Any other error ends its process, and `torchrun` ends the others.
    """
    import torch.distributed as dist

    global _group
    # The steps of `init_process_group` by hand, to keep the store: a busy process can poll it without synchronising.
    store, index, count = next(dist.rendezvous("env://", timeout=_PATIENCE))
    dist.init_process_group("gloo", store=store, rank=index, world_size=count, timeout=_PATIENCE)
    _group = _Group(dist.PrefixStore("dcl", store), index, count)
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
        dist.barrier()  # or `torchrun` would end the first process before it printed the reason
        sys.exit(1 if isinstance(code, str) else code)
    finally:
        _group = None
        dist.destroy_process_group()


def _exchange(trouble: str | int | None, value: Any) -> list[Any]:
    import torch.distributed as dist

    gathered: list[Any] = [None] * _group.count
    dist.all_gather_object(gathered, (trouble, value))
    for trouble, _ in gathered:
        if trouble is not None:
            _group.ended = True
            raise InputError(str(trouble).removeprefix("error: "))
    return [value for _, value in gathered]
