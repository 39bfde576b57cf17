"""How bad input is reported: one sentence that names the thing and the remedy, and a non-zero exit status."""

import argparse
import functools
import sys
from collections.abc import Callable
from typing import Any


class InputError(ValueError):
    """Something the user gave cannot be used; the message names it, its value, and what to do."""


class PictureError(InputError):
    """A picture cannot be read.

    Args:
        sentence: names it, what is wrong with it, and what to do.
        why: what is wrong with it, for a report that names it already.
    """

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
    """Wrap a command so that an `InputError` ends it with one sentence on standard error and exit status 1.

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

    return wrapped


__all__ = ["InputError", "PictureError", "at_least", "reason", "report_input_errors"]
