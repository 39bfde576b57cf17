"""Whether a model was trained on what it is tested on, as far as the names of manipulation methods tell."""

from collections.abc import Collection, Iterable

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


__all__ = ["GENERIC", "how_much_was_seen", "is_generic", "was_seen"]
