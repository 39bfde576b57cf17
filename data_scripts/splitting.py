"""Split a source into train, validation and test by family; families that share an image stay together."""

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from ..errors_dcl import InputError
from ..prepared.copies import Pictures, describe_copy, find_copies, refuse_copies
from ..prepared.names import CLASS_NAMES, FAKE, REAL, split_files
from .clips import SPLITS

#: The end of the error if two splits share an image.
KEPT_APART = "splits must not share images. Remove one of each pair, or let `--split_shares` split all images."
_SWAPPED = 300  # number of families up to which all pairs are tried for swaps


class Families:
    """The families of a source, with their real and fake faces, merged where they belong together."""

    def __init__(self, faces: Mapping[str, tuple[int, int]]):
        self._faces = faces
        self._parent = {family: family for family in faces}

    def join(self, family: str, other: str) -> None:
        """Merge two families."""
        one, two = sorted((self._root(family), self._root(other)))
        self._parent[two] = one

    def join_groups(self, groups: Mapping[str, Hashable]) -> None:
        """Merge the families of each group; `groups` gives the group of each family."""
        first: dict[Hashable, str] = {}
        for family in self._faces:
            if family in groups:
                self.join(first.setdefault(groups[family], family), family)

    def join_copies(self, pictures: Pictures) -> list[str]:
        """Merge the families that share an image; returns a sentence about each pair."""
        notes = []
        for row, match in find_copies(pictures):
            families = [str(pictures.table.source_id[index]) for index in (row, match)]
            if self._root(families[0]) != self._root(families[1]):
                names = sorted((pictures.name(row), pictures.name(match)))
                notes.append(f"{' and '.join(names)} are the same or nearly the same image and stay in one split.")
            self.join(*families)
        return notes

    def _root(self, family: str) -> str:
        while self._parent[family] != family:
            self._parent[family] = self._parent[self._parent[family]]
            family = self._parent[family]
        return family

    def deal(self, shares: Mapping[str, float], where: str, seed: int = 0) -> dict[str, str]:
        """Choose a split for each family so that real and fake faces are as close as possible to the fractions.

        The choice depends on the families, their sizes and the seed, not on their order.

        Raises:
            InputError: if there are too few families to give each split one, with both classes if there are both.
        """
        counts: dict[str, np.ndarray] = {}
        for family, faces in self._faces.items():
            root = self._root(family)
            counts[root] = counts.get(root, np.zeros(2)) + faces
        self._refuse_too_few(counts, len(shares), where)

        def order(root: str) -> tuple:
            # Families with both classes first, since no others can replace them; then the largest.
            tie = hashlib.sha256(f"{seed} {root}".encode()).hexdigest()
            return -np.count_nonzero(counts[root]), -counts[root].sum(), tie

        roots = sorted(counts, key=order)
        splits = _deal([counts[root] for root in roots], list(shares.values()))
        chosen = {root: list(shares)[split] for root, split in zip(roots, splits, strict=True)}
        return {family: chosen[self._root(family)] for family in self._faces}

    def _refuse_too_few(self, counts: Mapping[str, np.ndarray], needed: int, where: str) -> None:
        for label, name in enumerate(CLASS_NAMES):
            there = sum(count[label] > 0 for count in counts.values())
            if 0 < there < needed:
                one = f"{there} famil{'y' if there == 1 else 'ies'} with {name} faces"
                raise InputError(
                    f"{where} has {one}, but {needed} splits need at least {needed}. Add people or videos, or pass "
                    "--split_shares with fewer splits. (A family is a person's folder, a video or a loose file; "
                    "families that share an image count as one.)"
                )


def _deal(counts: Sequence[np.ndarray], shares: Sequence[float]) -> list[int]:
    """Return the split of each family: a greedy assignment, improved by moves and swaps.

    The error is the sum over splits and classes of (faces - wanted)^2 / wanted; counts are real and fake faces (2,).
    """
    faces = np.array(counts, float)
    targets = np.outer(shares, faces.sum(0))  # (splits, 2)
    weights, excess = 1 / np.maximum(targets, 1), -targets
    held = np.zeros(targets.shape, int)  # families with each class in each split
    left = np.count_nonzero(faces, axis=0)  # families with each class that are not assigned yet
    splits = np.zeros(len(faces), int)

    def move(family: int, to: int, sign: int = 1) -> None:
        excess[to] += sign * faces[family]
        held[to] += sign * (faces[family] > 0)

    for family, count in enumerate(faces):
        cost = ((2 * excess + count) * count * weights).sum(1)
        lacking = held == 0
        # If only as many families of a class are left as splits without it, each must go to such a split.
        short = (count > 0) & (left <= lacking.sum(0))
        cost[lacking[:, short].sum(1) < lacking[:, short].sum(1).max()] = np.inf
        splits[family] = cost.argmin()
        move(family, splits[family])
        left -= count > 0
    for _ in range(2 * len(faces)):
        needed = ((held[splits] < 2) & (faces > 0)).any(1)  # its split would have none left
        leaving = ((faces - 2 * excess[splits]) * faces * weights[splits]).sum(1)
        entering = ((2 * excess + faces[:, None]) * faces[:, None] * weights).sum(2)
        change = np.where(
            needed[:, None] | (splits[:, None] == np.arange(len(shares))), 0, leaving[:, None] + entering
        )
        family, to = np.unravel_index(change.argmin(), change.shape)
        other, best = None, change[family, to]
        if len(faces) <= _SWAPPED:
            kind = (faces > 0) @ [1, 2]
            come = faces[None] - faces[:, None]  # the change in the split of the first after a swap with the second
            change = ((2 * excess[splits][:, None] + come) * come * weights[splits][:, None]).sum(2)
            change += ((-2 * excess[splits][None] + come) * come * weights[splits][None]).sum(2)
            change[(splits[:, None] == splits) | (kind[:, None] != kind)] = 0
            if change.min() < best:
                family, other = np.unravel_index(change.argmin(), change.shape)
                best, to = change[family, other], splits[other]
        if best > -1e-9:
            break
        for member, target in ((family, to), *([] if other is None else [(other, splits[family])])):
            move(member, splits[member], -1)
            move(member, target)
        if other is not None:
            splits[other] = splits[family]
        splits[family] = to
    return splits.tolist()


def count_faces(families: Iterable[str], labels: Iterable[int]) -> dict[str, tuple[int, int]]:
    """Count the real and fake faces of each family, given the family and label of every row."""
    counts = Counter(zip(families, labels, strict=True))
    return {family: (counts[family, REAL], counts[family, FAKE]) for family in dict.fromkeys(key[0] for key in counts)}


def pictures_of_splits(folder: str | Path) -> list[Pictures]:
    """Return the images of each split of a prepared folder, in the order train, validation, test, others."""
    splits = split_files(Path(folder))
    order = sorted(splits, key=lambda split: (SPLITS.index(split) if split in SPLITS else len(SPLITS), split))
    return [Pictures.of_files(splits[split], split) for split in order]


def refuse_shared_pictures(folder: str | Path) -> None:
    """Raise an `InputError` if two splits of a prepared folder share an image."""
    for one, other in combinations(pictures_of_splits(folder), 2):
        refuse_copies(one, other, KEPT_APART)


def describe_shared_pictures(splits: Sequence[Pictures]) -> list[str]:
    """Return a sentence, without full stop, on each image that two splits share; missing hashes are computed."""
    for pictures in splits:
        pictures.add_hashes()
    return [
        describe_copy(one, row, other, match)
        for one, other in combinations(splits, 2)
        for row, match in find_copies(one, other)
    ]
