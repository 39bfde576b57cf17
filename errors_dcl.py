"""Errors that name the thing, its value and the remedy; checks of values that anyone may have edited; whole files."""

import argparse
import errno
import functools
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Errors of a disk on which nothing more can be written, and what is wrong with it.
_DISK = {
    errno.ENOSPC: "No space is left on the disk",
    errno.EDQUOT: "The quota is used up on the disk",
    errno.EFBIG: "A file grew larger than allowed on the disk",
    errno.EROFS: "Nothing can be written to the disk",
    errno.EIO: "Reading or writing failed on the disk",
}
_FULL = 16 << 20  # bytes free below which a disk is taken for the one that is full


class InputError(ValueError):
    """Something the user gave cannot be used; the message names it, its value, and what to do."""


class PictureError(InputError):
    """A picture cannot be read; `why` says what is wrong, for a report that names the picture already."""

    def __init__(self, sentence: str, why: str = ""):
        super().__init__(sentence)
        self.why = why


def reason(error: BaseException) -> str:
    """Return in one line why something failed: what the first exception of the chain says, without a full stop."""
    while error.__cause__ is not None:
        error = error.__cause__
    # Of the system's errors and FFmpeg's: all they say has a number, and a path that is named already.
    if why := getattr(error, "strerror", None):
        return why
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if line.endswith("..") else line.removesuffix(".")


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def disk_trouble(error: BaseException) -> str | None:
    """Return what is wrong with the disk, if an error, or one that led to it, is that of a disk; else None.

    Libraries wrap the system's error (datasets), put it into words (safetensors), or swallow it (torch.save).
    """
    for link in chain(error):
        number = getattr(link, "errno", None)
        if match := re.search(r"\(os error (\d+)\)|\[errno (\d+)\]", str(link)):
            number = int(match[1] or match[2])
        if number in _DISK:
            # Of a copy, the second file is the one that was written.
            path = getattr(link, "filename2", None) or getattr(link, "filename", None)
            return _DISK[number] + (f" that holds {path}" if path else "")
        if re.search(r"PytorchStreamWriter failed|unexpected pos \d+ vs|iostream error", str(link)):  # torch.save
            return "A file could not be written to the disk"
    return None


def _full_disk(arguments: Sequence[str]) -> str | None:
    """Return the path, of those that a command was given, whose disk is full; None if there is no such one."""
    words = [word for argument in map(str, arguments) for word in (argument, argument.partition("=")[2]) if word]
    for path in map(os.path.abspath, [*words, ".", tempfile.gettempdir(), os.path.expanduser("~")]):
        there = path if os.path.exists(path) else os.path.dirname(path)
        if os.path.exists(there) and shutil.disk_usage(there).free < _FULL:
            return path
    return None


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a hidden file beside a path, which takes its place at the end of the `with`, unless that raises."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".partial", delete=False) as file:
        partial = Path(file.name)
    try:
        yield partial
        partial.chmod(0o644)  # that of a temporary file is its owner's alone
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def at_least(least: int) -> Callable[[str], int]:
    """Return a type of `argparse`: whole numbers from `least` on; others end a command with exit status 2."""

    def whole_number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        return value

    whole_number.__name__ = "whole number"  # as argparse calls it
    return whole_number


def report_input_errors(main: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a command so that an `InputError`, or the error of a full disk, ends it with a sentence and exit status 1.

    Every other exception keeps its traceback: it is a defect of the program, not of the input.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except InputError as error:
            sentence = str(error).strip()
            if sentence.startswith("Caught "):  # a data loader's worker hands it on at the end of a traceback
                sentence = sentence.splitlines()[-1]
            sys.exit(f"error: {sentence.removeprefix(f'{type(error).__module__}.{type(error).__name__}: ')}")
        except Exception as error:
            if (trouble := disk_trouble(error)) is None:
                raise
            given = args[0] if args and args[0] is not None else sys.argv[1:]
            if " that holds " not in trouble and (path := _full_disk(given)) is not None:
                trouble += f" that holds {path}"
            sys.exit(
                f"error: {trouble}. Make room or choose another disk, then run the same command again: what is "
                "finished is kept."
            )

    return wrapped


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can be
        return False


def is_count(value: Any, least: int = 0) -> bool:
    """Whether a value of JSON is a whole number from `least` on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_value(fits: bool, what: str, wanted: str, value: Any) -> None:
    """Raise a `ValueError` unless a value of a configuration fits: `what` must be `wanted`, got the value."""
    if not fits:
        raise ValueError(f"{what} must {wanted}, got {abridged(value)}.")


def abridged(value: Any) -> str:
    """Return a value as an error shows it: of a long one the beginning."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
