"""Names of models, data sets and methods: made safe to show, and compared with what a model was trained on."""

from collections.abc import Collection, Iterable
from typing import Any

_ESCAPED = {"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {mark: f"\\{mark}" for mark in "\\|`*[]"}


def shown(text: Any) -> str:
    """Return text from the data without what is not printed: control characters, marks that turn the direction."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def cell(text: Any) -> str:
    """Return text from the data for a cell or a line of Markdown, where it is text and nothing else.

    Args:
        text: whatever it is.

    Returns:
        One line: white space collapsed, and what Markdown or HTML would act upon escaped.
    """
    return " ".join(shown(text).split()).translate(str.maketrans(_ESCAPED))


#: What fakes are called, in lower case, where nobody knows the method: such a name means another one in each data set.
GENERIC = frozenset({"fake", "fakes", "forged", "manipulated", "unknown"})


def is_generic(method: str) -> bool:
    """Whether a name is no method's own, so that two data sets may have it and no method in common."""
    return method.strip().lower() in GENERIC


def was_seen(method: str, seen_methods: Collection[str] | None) -> bool | None:
    """Whether a model was trained on a method.

    Args:
        method: its name.
        seen_methods: those that the model was trained on; None if it does not say.

    Returns:
        None where that is not known: of a method whose name is generic; and of one that is not among `seen_methods`
        if a name there is generic, since it may be meant by that.
    """
    if seen_methods is None or is_generic(method):
        return None
    if method in seen_methods:
        return True
    return None if any(map(is_generic, seen_methods)) else False


def how_much_was_seen(methods: Iterable[str], seen_methods: Collection[str] | None) -> str | None:
    """Whether a model was trained on some methods.

    Args:
        methods: their names.
        seen_methods: as of `was_seen`.

    Returns:
        "seen", "unseen", or "partly" if some were and some were not; None where that is not known.
    """
    answers = {was_seen(method, seen_methods) for method in methods}
    if {True, False} <= answers:
        return "partly"
    return {frozenset([True]): "seen", frozenset([False]): "unseen"}.get(frozenset(answers))
