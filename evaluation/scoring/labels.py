"""Meaning of a classifier's classes, real or fake: from the words in their names, or from the user."""

import re
from collections.abc import Collection, Sequence

from ...errors_dcl import InputError
from ...prepared.names import FAKE, REAL

_WORDS_OF_REALS = """
real reals realism authentic genuine original originals human humans natural pristine bonafide legit legitimate live
unaltered unedited unmanipulated untampered untouched unmodified
"""
_WORDS_OF_FAKES = """
fake fakes faked deepfake deepfakes forged forgery forgeries manipulated manipulation manipulations tampered altered
edited doctored counterfeit inauthentic spoof spoofed ai aigc artificial generated gan gans diffusion synthetic
synthesized synthesised synthesis swapped faceswap faceswaps morphed morph cgi
"""
REAL_WORDS = frozenset(_WORDS_OF_REALS.split())
FAKE_WORDS = frozenset(_WORDS_OF_FAKES.split())
NEGATIONS = frozenset(["not", "non", "no", "un", "never", "without", "isnt"])
REVERSED = frozenset(["free"])  # negates the word before it, as in "manipulation free"
MOST_SHOWN = 6


def meaning_of(label: str) -> int | None:
    """Infer from the name of a class whether it means real or fake.

    Whole words count, with any case and separators: "0_real", "Fake Face", "AIGenerated". A negation inverts the next
    word: "not fake" is real.

    Args:
        label: the name.

    Returns:
        0 for real, 1 for fake; None if the name has words of neither or of both.
    """
    kinds, denied = set(), False
    for word in _words(label):
        if word in REVERSED:
            return None
        if word in NEGATIONS:
            if denied or kinds:  # "not not real", "real, not generated": do not guess
                return None
            denied = True
        elif word in REAL_WORDS | FAKE_WORDS:
            kinds.add(FAKE if (word in FAKE_WORDS) != denied else REAL)
    return kinds.pop() if len(kinds) == 1 else None


def _words(label: str) -> list[str]:
    words = []
    for word in re.findall(r"[A-Za-z]+", re.sub(r"n['\u2019]t\b", " not", label)):
        known = word.lower() in REAL_WORDS | FAKE_WORDS
        # Otherwise split at capitals: "FakeFace" and "AIGenerated" are two words each.
        parts = [word] if known else re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", word)
        words += [part.lower() for part in parts]
    return words


def classify_labels(labels: Sequence[str], name: str, fake_labels: Collection[str] = ()) -> list[int]:
    """Decide for every class of a model whether it means real or fake.

    Args:
        labels: the names of the classes; a single name for a model with one output.
        name: name of the model, for errors.
        fake_labels: names that mean fake. If the model has any of them, all its other classes mean real; otherwise the
            words in the names decide.

    Returns:
        0 (real) or 1 (fake) for each class.

    Raises:
        InputError: if a name is unknown or ambiguous, or all classes mean the same.
    """
    if any(label in fake_labels for label in labels):
        kinds = [FAKE if label in fake_labels else REAL for label in labels]
    else:
        kinds = [meaning_of(label) for label in labels]
    shown = ", ".join(map(repr, labels[:MOST_SHOWN]))
    shown += f" and {len(labels) - MOST_SHOWN} more" if len(labels) > MOST_SHOWN else ""
    if None in kinds:
        unknown = labels[kinds.index(None)]
        raise InputError(
            f"Labels of {name!r} ({shown}): cannot tell whether {unknown!r} means real or fake. List the labels that "
            "mean fake with --fake_labels; all others then mean real."
        )
    if len(labels) > 1 and len(set(kinds)) == 1:
        only = "fake" if kinds[0] == FAKE else "real"
        raise InputError(
            f"Labels of {name!r} ({shown}): all mean {only}. List exactly the labels that mean fake with "
            "--fake_labels, or choose another model if it has classes of one kind only."
        )
    return kinds
