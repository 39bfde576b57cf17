"""How well the evidence finds the forged region, from counts of forged and untouched cells by their evidence.

Single cells are never kept: the counts take the same memory whatever the number of images, and the counts of the parts
of a data set add up to those of the whole.
"""

import base64
import zlib
from typing import Any

import numpy as np

#: Evidence is sorted by the top bits of its float32: the sign, the exponent, and the first 11 bits behind the point,
#: so that the values of one bin differ by less than 1 in 2048.
BITS = 20
_DROPPED = 32 - BITS
_SIGN = np.uint32(1 << 31)


class CellCounts:
    """How many untouched and forged cells have evidence in each of 2^20 bins, which rise with it.

    Attributes:
        counts: int64 (2, 2^20), untouched cells and forged ones.
        not_finite: cells without a finite number, which are in no bin.
    """

    def __init__(self):
        self.counts = np.zeros((2, 1 << BITS), np.int64)  # untouched pages of it take no memory
        self.not_finite = 0

    def add(self, evidence: np.ndarray, forged: np.ndarray) -> "CellCounts":
        """Count cells.

        Args:
            evidence: floats (c,), taken as float32.
            forged: booleans (c,), whether the mask covers the cell.

        Returns:
            These counts.
        """
        evidence, forged = np.asarray(evidence, np.float32), np.asarray(forged, bool)
        finite = np.isfinite(evidence)
        self.not_finite += int(np.count_nonzero(~finite))
        np.add.at(self.counts, (forged[finite].astype(np.intp), bins_of(evidence[finite])), 1)
        return self

    def merge(self, other: "CellCounts") -> "CellCounts":
        """Add the counts of other cells, and return these."""
        self.counts += other.counts
        self.not_finite += other.not_finite
        return self

    def to_text(self) -> str:
        """Write the bins that are not empty as ASCII: a few bytes a bin."""
        parts = [np.array([self.not_finite], "<i8")]
        for counts in self.counts:
            filled = np.flatnonzero(counts)
            parts += [np.array([len(filled)], "<i8"), np.diff(filled, prepend=0), counts[filled]]
        # Of a number apart from the others, most bytes are zero.
        return base64.b85encode(zlib.compress(b"".join(part.astype("<i8").tobytes() for part in parts))).decode()

    def merge_text(self, text: str) -> "CellCounts":
        """Add the counts that `to_text` wrote, and return these.

        Raises:
            ValueError: if it did not write that.
        """
        try:
            numbers = np.frombuffer(zlib.decompress(base64.b85decode(text)), "<i8")
            self.not_finite += int(numbers[0])
            numbers = numbers[1:]
            for counts in self.counts:
                filled = int(numbers[0])
                counts[np.cumsum(numbers[1 : 1 + filled])] += numbers[1 + filled : 1 + 2 * filled]
                numbers = numbers[1 + 2 * filled :]
        except (zlib.error, IndexError) as error:
            raise ValueError(f"these are no counts of cells ({error})") from error
        return self

    def problem(self) -> str | None:
        """Say why evidence cannot be judged by these cells; None if it can."""
        untouched, forged = map(int, self.counts.sum(axis=1))
        n = untouched + forged + self.not_finite
        if n == 0:
            return "there are no cells of fakes with a known mask"
        if self.not_finite:
            return f"{self.not_finite} of {n} cells of fakes with a known mask have a score that is not finite"
        if 0 in (untouched, forged):
            kind = "untouched" if forged == 0 else "forged"
            return f"all {n} cells of fakes with a known mask are {kind}: it takes both kinds"
        return None

    def overlap(self, first_bin: int | np.ndarray) -> float | np.ndarray:
        """Return the intersection over union of forged cells and those in `first_bin` or above, over all images."""
        untouched, forged = (np.append(np.cumsum(counts[::-1])[::-1], 0) for counts in self.counts)
        return forged[first_bin] / (forged[0] + untouched[first_bin])


def bins_of(evidence: np.ndarray) -> np.ndarray:
    """Return the bin of each value: float32, finite, to intp in [0, 2^20), never falling where evidence rises."""
    bits = (np.asarray(evidence, np.float32) + np.float32(0)).view(np.uint32)  # a sum of zeros is no negative zero
    # As unsigned numbers positive floats rise with their bits, and negative ones fall.
    ordered = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return (ordered >> _DROPPED).astype(np.intp)


def lowest_of(number: int) -> float:
    """Return the lowest evidence of a bin."""
    ordered = np.uint32(number << _DROPPED)
    return float((ordered ^ _SIGN if ordered & _SIGN else ~ordered).view(np.float32))


def localisation_metrics(cells: CellCounts, evidence_threshold: float | None = None) -> dict[str, Any]:
    """Compute how well evidence points at the forged region.

    Args:
        cells: of all fakes whose mask is known, pooled, so that evidence must be comparable between images and an
            image counts by its cells. Cells of reals are not among them: they would reward telling images apart.
        evidence_threshold: from there on a cell counts as forged, see `best_iou_threshold`; chosen on other data.

    Returns:
        `auc`, the chance that a forged cell has more evidence than an untouched one, a tie counting one half. Values
        of one bin count as tied: `auc_error` is how far the exact AUC can be from it, half the share of such pairs.
        `iou`, the intersection over union of the cells that are forged and those that count as such, over all images;
        `evidence_threshold` as given, `iou` counting all of its bin, whose lowest value is less than 1/2048 below;
        and `iou_all_forged`, what counting every cell as forged would get, the share of forged cells: an IoU is as
        good as it is above that.
        What is not defined is None: where there is no cell, only one kind of cell, or evidence that is not finite,
        a `reason` says so; without a threshold, `iou_reason`.
    """
    metrics: dict[str, Any] = dict.fromkeys(("auc", "auc_error", "iou", "iou_all_forged"))
    metrics["evidence_threshold"] = evidence_threshold
    if reason := cells.problem():
        return {**metrics, "reason": reason}
    untouched, forged = cells.counts.astype(float)  # products of counts exceed 64 bits
    pairs, tied = untouched.sum() * forged.sum(), untouched @ forged
    won = (np.cumsum(untouched) - untouched) @ forged
    metrics |= {
        "auc": float((won + tied / 2) / pairs),
        "auc_error": float(tied / 2 / pairs),
        "iou_all_forged": float(cells.overlap(0)),
    }
    if evidence_threshold is None:
        metrics["iou_reason"] = "the checkpoint has no evidence_threshold, which training chooses on validation data"
    else:
        metrics["iou"] = float(cells.overlap(bins_of(np.float32(evidence_threshold))))
    return metrics


def best_iou_threshold(cells: CellCounts) -> float | None:
    """Find from which evidence on cells are to count as forged, such that they overlap best with those that are.

    Args:
        cells: of the fakes of a validation split whose mask is known.

    Returns:
        The lowest value of a bin, so that the IoU from there on is exact for float32; of equally good ones the
        highest. None where `localisation_metrics` gives a `reason`.
    """
    if cells.problem():
        return None
    candidates = np.flatnonzero(cells.counts.any(axis=0))[::-1]
    return lowest_of(int(candidates[np.argmax(cells.overlap(candidates))]))
