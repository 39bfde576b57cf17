"""Names of models, data sets and methods: safe display, and comparison with the training methods."""

from collections.abc import Collection, Iterable
from typing import Any

_ESCAPED = {"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {mark: f"\\{mark}" for mark in "\\|`*[]"}


def shown(text: Any) -> str:
    """Return text from the data without characters that do not print, such as control and direction marks."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def cell(text: Any) -> str:
    """Return text from the data as literal text for a cell or a line of Markdown.

    Args:
        text: any value.

    Returns:
        One line, with collapsed white space, and with Markdown and HTML syntax escaped.
    """
    return " ".join(shown(text).split()).translate(str.maketrans(_ESCAPED))


#: Generic names, in lower case, for fakes by an unknown method; they mean a different method in each data set.
GENERIC = frozenset({"fake", "fakes", "forged", "manipulated", "unknown"})


def is_generic(method: str) -> bool:
    """Whether a name is generic, so that two data sets may use it for different methods."""
    return method.strip().lower() in GENERIC


def was_seen(method: str, seen_methods: Collection[str] | None) -> bool | None:
    """Whether a model was trained on a method.

    Args:
        method: name of the method.
        seen_methods: methods in the model's training data; None if not recorded.

    Returns:
        None if unknown: for a generic name, and for a method that is not among `seen_methods` if these contain a
        generic name, which may stand for it.
    """
    if seen_methods is None or is_generic(method):
        return None
    if method in seen_methods:
        return True
    return None if any(map(is_generic, seen_methods)) else False


def how_much_was_seen(methods: Iterable[str], seen_methods: Collection[str] | None) -> str | None:
    """Whether a model was trained on some methods.

    Args:
        methods: names of the methods.
        seen_methods: as for `was_seen`.

    Returns:
        "seen", "unseen", or "partly" if only some were seen; None if unknown.
    """
    answers = {was_seen(method, seen_methods) for method in methods}
    if {True, False} <= answers:
        return "partly"
    return {frozenset([True]): "seen", frozenset([False]): "unseen"}.get(frozenset(answers))
