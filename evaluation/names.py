"""Names that someone wrote, of models, data sets, methods and groups: made fit to be shown."""

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


__all__ = ["cell", "shown"]
