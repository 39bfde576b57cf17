"""What the classes of a classifier mean, real or fake: told by the words in their names, or by the user."""

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
REVERSED = frozenset(["free"])  # what comes before it is denied, as in "manipulation free"
MOST_SHOWN = 6


def meaning_of(label: str) -> int | None:
    """Read whether a class is that of reals or of fakes from its name.

    Whole words count, whatever their case and what stands between them: "0_real", "Fake Face", "AIGenerated". A
    negation turns round what follows it: "not fake" is real.

    Args:
        label: the name.

    Returns:
        0 for real, 1 for fake; None where the words say nothing, or both.
    """
    kinds, denied = set(), False
    for word in _words(label):
        if word in REVERSED:
            return None
        if word in NEGATIONS:
            if denied or kinds:  # "not not real", "real, not generated": no name to guess at
                return None
            denied = True
        elif word in REAL_WORDS | FAKE_WORDS:
            kinds.add(FAKE if (word in FAKE_WORDS) != denied else REAL)
    return kinds.pop() if len(kinds) == 1 else None


def _words(label: str) -> list[str]:
    words = []
    for word in re.findall(r"[A-Za-z]+", re.sub(r"n['\u2019]t\b", " not", label)):
        known = word.lower() in REAL_WORDS | FAKE_WORDS
        # Else "FakeFace" is two words, and so is "AIGenerated".
        parts = [word] if known else re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", word)
        words += [part.lower() for part in parts]
    return words


def classify_labels(labels: Sequence[str], name: str, fake_labels: Collection[str] = ()) -> list[int]:
    """Decide of every class of a model whether it is one of reals or of fakes.

    Args:
        labels: the names of the classes; a single one for a model that gives one number.
        name: what the model is called.
        fake_labels: names that mean fake. If the model has any of them, all its other classes are real; if not, the
            words in the names decide.

    Returns:
        0 for real or 1 for fake, of each class.

    Raises:
        InputError: if a name is unknown or ambiguous, or all classes are of one kind.
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
            f"the labels of {name!r} ({shown}) do not tell real from fake, as {unknown!r} is neither by its words: "
            "name those that mean fake by --fake_labels, and the rest is real."
        )
    if len(labels) > 1 and len(set(kinds)) == 1:
        only = "fake" if kinds[0] == FAKE else "real"
        raise InputError(
            f"the labels of {name!r} ({shown}) all mean {only}: name by --fake_labels those, and only those, that "
            "mean fake, or take another model if it has no class for the other kind."
        )
    return kinds
