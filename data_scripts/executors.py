"""Run tasks in this process, in several, or on a Ray cluster; the results are the same.

A task goes to another process. Its `run(step)` does the work, calls `step` after each part, and returns what it gave;
done again, it gives the same.
"""

import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_any
from typing import Any

from ..errors_dcl import InputError

_LOOK = 0.5  # seconds between two looks at the progress of other processes
_RAY_RETRIES = 3  # of a task whose machine was lost


def run_here(tasks: Sequence[Any], step: Callable[[int], None]) -> Iterator[Any]:
    """Run tasks one after the other; `step` gets the number of parts that were done since its last call."""
    for task in tasks:
        yield task.run(lambda: step(1))


def run_in_processes(tasks: Sequence[Any], step: Callable[[int], None], number: int) -> Iterator[Any]:
    """Run tasks as `run_here`, in several processes of this machine; results come as they are ready.

    Raises `InputError` if a process was killed, or of a task; the others end what they have begun.
    """
    context = multiprocessing.get_context("spawn")
    counter, seen = context.Value(ctypes.c_longlong), 0
    with ProcessPoolExecutor(number, context, _begin, (counter,)) as pool:
        pending = {pool.submit(_run, task) for task in tasks}
        try:
            while pending:
                done, pending = wait(pending, _LOOK, FIRST_COMPLETED)
                step(counter.value - seen)
                seen = counter.value
                for future in done:
                    yield future.result()
        except BrokenProcessPool as error:
            raise InputError(
                "a process was killed, for want of memory perhaps: give the same command again, with fewer --num_proc "
                "(what is done is kept)."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_counter: Any = None  # of this process, if it is one of several


def _begin(counter: Any) -> None:
    global _counter
    _counter = counter
    # At Ctrl-C a process ends; the pool would take the interruption for the result of a task, and begin the next one.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Nobody tells a process that the one which started it was killed; without this it would work on, unseen.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    wait_for_any([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _run(task: Any) -> Any:
    def step() -> None:
        with _counter.get_lock():
            _counter.value += 1

    return task.run(step)


def run_on_ray(tasks: Sequence[Any], step: Callable[[int], None], address: str | None, number: int) -> Iterator[Any]:
    """Run tasks on a Ray cluster; results come as they are ready, and a task whose machine is lost runs again.

    Without an address, a local cluster of so many processes is started, and ends with the tasks. Raises `InputError`
    if Ray is missing, or the cluster cannot be reached, or of a task.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("--ray needs Ray: pip install 'dcl-face-forgery[cluster]'.") from error
    local = {"num_cpus": number, "include_dashboard": False} if address is None else {}
    try:
        ray.init(address=address or "local", log_to_driver=False, configure_logging=False, **local)
    except Exception as error:  # of connection, version, or a machine that is too small
        raise InputError(
            f"the Ray cluster {address or '(local)'} cannot be used ({type(error).__name__}): check its address, or "
            "leave --ray away."
        ) from error
    try:
        remote = ray.remote(num_cpus=1, max_retries=_RAY_RETRIES)(_run_on_ray)
        pending = [remote.remote(task) for task in tasks]
        while pending:
            done, pending = ray.wait(pending)
            for reference in done:
                try:
                    parts, result = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, InputError):  # said once, without the worker's traceback
                        raise error.cause from None
                    raise
                except ray.exceptions.RayError as error:
                    raise InputError(
                        f"a task was lost {_RAY_RETRIES + 1} times ({type(error).__name__}), for want of memory "
                        "perhaps: give the same command again (what is done is kept)."
                    ) from error
                step(parts)
                yield result
    finally:
        ray.shutdown()


def _run_on_ray(task: Any) -> tuple[int, Any]:
    parts = 0

    def step() -> None:
        nonlocal parts
        parts += 1

    result = task.run(step)
    return parts, result
