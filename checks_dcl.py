"""What the values of a configuration are checked by, and how they are shown: it may have been edited by anyone."""

import math
from typing import Any


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


def abridged(value: Any) -> str:
    """Return a value as an error shows it: of a long one the beginning."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


__all__ = ["abridged", "is_count", "is_number"]
