"""Run tasks in this process, in several processes, or on a Ray cluster, with the same results.

A task must be picklable. Its `run(step)` does the work, calls `step` after each part, and returns the result. Running
it again gives the same result.
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

_LOOK = 0.5  # seconds between two checks of the progress of other processes
_RAY_RETRIES = 3  # of a task that lost its machine


def run_here(tasks: Sequence[Any], step: Callable[[int], None]) -> Iterator[Any]:
    """Run tasks one after the other; `step` gets the number of finished parts since its last call."""
    for task in tasks:
        yield task.run(lambda: step(1))


def run_in_processes(tasks: Sequence[Any], step: Callable[[int], None], number: int) -> Iterator[Any]:
    """Run tasks in several processes on this machine, and yield results as they are ready; see `run_here`.

    Raises:
        InputError: if a process was killed, or a task raises one. Running tasks finish first.
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
                "A process was killed, perhaps because memory ran out. Run the same command again with fewer "
                "--num_proc. Finished work is kept."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_counter: Any = None  # of this process, if it is a worker


def _begin(counter: Any) -> None:
    global _counter
    _counter = counter
    # Ctrl-C must end the process: the pool would treat the interruption as a result and start the next task.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # A process does not notice that its parent was killed; without this it would continue to work.
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
    """Run tasks on a Ray cluster, and yield results as they are ready. A task that loses its machine runs again.

    Without an address, a local cluster of `number` processes is started for these tasks.

    Raises:
        InputError: if Ray is missing, the cluster cannot be reached, or a task raises one.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("--ray needs Ray. Install it with `pip install 'dcl-face-forgery[cluster]'`.") from error
    local = {"num_cpus": number, "include_dashboard": False} if address is None else {}
    try:
        ray.init(address=address or "local", log_to_driver=False, configure_logging=False, **local)
    except Exception as error:  # of the connection, the version, or a small machine
        raise InputError(
            f"The Ray cluster {address or '(local)'} cannot be used ({type(error).__name__}). Check its address, or "
            "remove --ray."
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
                    if isinstance(error.cause, InputError):  # reported once, without the traceback of the worker
                        raise error.cause from None
                    raise
                except ray.exceptions.RayError as error:
                    raise InputError(
                        f"A task was lost {_RAY_RETRIES + 1} times ({type(error).__name__}), perhaps because memory "
                        "ran out. Run the same command again. Finished work is kept."
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
