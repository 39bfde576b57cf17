"""Errors with a remedy, checks of configuration values, and writing files atomically."""

import argparse
import errno
import functools
import math
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Disk errors, and their descriptions.
_DISK = {
    errno.ENOSPC: "No space is left on the disk",
    errno.EDQUOT: "The quota is exceeded on the disk",
    errno.EFBIG: "A file exceeds the size limit on the disk",
    errno.EROFS: "Nothing can be written to the disk",
    errno.EIO: "Reading or writing failed on the disk",
}
_FULL = 16 << 20  # free bytes below which a disk counts as full


class InputError(ValueError):
    """Invalid input; the message names the input, its value, and what to do."""


class PictureError(InputError):
    """An image cannot be read; `why` is the reason alone, for reports that already name the image."""

    def __init__(self, sentence: str, why: str = ""):
        super().__init__(sentence)
        self.why = why


def reason(error: BaseException) -> str:
    """Return in one line why something failed: the message of the first exception of the chain, without full stop."""
    while error.__cause__ is not None:
        error = error.__cause__
    # The full messages of the system and of FFmpeg repeat a number and the path.
    if why := getattr(error, "strerror", None):
        return why
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if line.endswith("..") else line.removesuffix(".")


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def disk_trouble(error: BaseException) -> str | None:
    """Return what is wrong with the disk if an error, or one of its causes, is a disk error; otherwise None.

    Libraries wrap the error of the system (datasets), turn it into text (safetensors), or hide it (torch.save).
    """
    for link in chain(error):
        number = getattr(link, "errno", None)
        if match := re.search(r"\(os error (\d+)\)|\[errno (\d+)\]", str(link)):
            number = int(match[1] or match[2])
        if number in _DISK:
            # In a copy, the second file is the one being written.
            path = getattr(link, "filename2", None) or getattr(link, "filename", None)
            return _DISK[number] + (f" that contains {path}" if path else "")
        if re.search(r"PytorchStreamWriter failed|unexpected pos \d+ vs|iostream error", str(link)):  # torch.save
            return "A file could not be written to the disk"
    return None


def _full_disk(arguments: Sequence[str]) -> str | None:
    """Return the first path in the arguments of a command whose disk is full; None if there is none."""
    words = [word for argument in map(str, arguments) for word in (argument, argument.partition("=")[2]) if word]
    for path in map(os.path.abspath, [*words, ".", tempfile.gettempdir(), os.path.expanduser("~")]):
        there = path if os.path.exists(path) else os.path.dirname(path)
        if os.path.exists(there) and shutil.disk_usage(there).free < _FULL:
            return path
    return None


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a hidden file beside a path that replaces it at the end of the `with`, unless an error is raised.

    The permissions of a file that is replaced are kept; a new file gets those that the umask leaves.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".partial", delete=False) as file:
        partial = Path(file.name)
    try:
        yield partial
        # Temporary files are private to their owner.
        partial.chmod(stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666 & ~_umask())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _umask() -> int:
    """Return the umask of this process, which Python can only read by setting it."""
    umask = os.umask(0o077)  # strict, for files that another thread makes meanwhile
    os.umask(umask)
    return umask


def at_least(least: int) -> Callable[[str], int]:
    """Return a type for `argparse`: whole numbers, at least `least`."""

    def whole_number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        return value

    whole_number.__name__ = "whole number"  # the name in errors of argparse
    return whole_number


def report_input_errors(main: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a command so that an `InputError` or a disk error ends it with one sentence and exit status 1.

    Every other exception keeps its traceback, since it is a bug.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except InputError as error:
            sentence = str(error).strip()
            if sentence.startswith("Caught "):  # from a data loader worker, at the end of a traceback
                sentence = sentence.splitlines()[-1]
            sys.exit(f"error: {sentence.removeprefix(f'{type(error).__module__}.{type(error).__name__}: ')}")
        except Exception as error:
            if (trouble := disk_trouble(error)) is None:
                raise
            given = args[0] if args and args[0] is not None else sys.argv[1:]
            if " that contains " not in trouble and (path := _full_disk(given)) is not None:
                trouble += f" that contains {path}"
            sys.exit(
                f"error: {trouble}. Free some space or choose another disk, then run the same command again. Finished "
                "work is kept."
            )

    return wrapped


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False


def is_count(value: Any, least: int = 0) -> bool:
    """Whether a JSON value is a whole number, at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_value(fits: bool, what: str, wanted: str, value: Any) -> None:
    """Raise a `ValueError` unless a configuration value fits: "`what` must `wanted`, got `value`."."""
    if not fits:
        raise ValueError(f"{what} must {wanted}, got {abridged(value)}.")


def abridged(value: Any) -> str:
    """Return a value for an error; long values are shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
