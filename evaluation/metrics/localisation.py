"""How well the evidence finds the forged region, from counts of forged and untouched cells by their evidence.

Single cells are never kept: the counts take the same memory whatever the number of images, and the counts of the parts
of a data set add up to those of the whole.
"""

import base64
import zlib
from typing import Any

import numpy as np

#: Evidence is binned by the top bits of its float32: sign, exponent, and the first 11 bits of the mantissa. Values in
#: a bin therefore differ by less than 1 in 2048.
BITS = 20
_DROPPED = 32 - BITS
_SIGN = np.uint32(1 << 31)


class CellCounts:
    """Histograms of the evidence of untouched and forged cells, over 2^20 ascending bins.

    Attributes:
        counts: int64 (2, 2^20), untouched cells and forged ones.
        not_finite: number of cells whose evidence is not finite; they are in no bin.
    """

    def __init__(self):
        self.counts = np.zeros((2, 1 << BITS), np.int64)  # pages that are never written take no memory
        self.not_finite = 0

    def add(self, evidence: np.ndarray, forged: np.ndarray) -> "CellCounts":
        """Count cells.

        Args:
            evidence: floats (c,), taken as float32.
            forged: booleans (c,), whether the mask covers the cell.

        Returns:
            The same object.
        """
        evidence, forged = np.asarray(evidence, np.float32), np.asarray(forged, bool)
        finite = np.isfinite(evidence)
        self.not_finite += int(np.count_nonzero(~finite))
        np.add.at(self.counts, (forged[finite].astype(np.intp), bins_of(evidence[finite])), 1)
        return self

    def merge(self, other: "CellCounts") -> "CellCounts":
        """Add the counts of other cells, and return this object."""
        self.counts += other.counts
        self.not_finite += other.not_finite
        return self

    def to_text(self) -> str:
        """Encode the bins that are not empty as ASCII, in a few bytes each."""
        parts = [np.array([self.not_finite], "<i8")]
        for counts in self.counts:
            filled = np.flatnonzero(counts)
            parts += [np.array([len(filled)], "<i8"), np.diff(filled, prepend=0), counts[filled]]
        # Most of the 8 bytes of these small numbers are zero, and zlib compresses them.
        return base64.b85encode(zlib.compress(b"".join(part.astype("<i8").tobytes() for part in parts))).decode()

    def merge_text(self, text: str) -> "CellCounts":
        """Add the counts from a text of `to_text`, and return this object.

        Raises:
            ValueError: if the text is not from `to_text`.
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
            raise ValueError(f"not valid counts of cells ({error})") from error
        return self

    def problem(self) -> str | None:
        """Return why these cells cannot measure localisation; None if they can."""
        untouched, forged = map(int, self.counts.sum(axis=1))
        n = untouched + forged + self.not_finite
        if n == 0:
            return "there are no fakes with a known mask"
        if self.not_finite:
            return f"the evidence of {self.not_finite} of {n} cells of fakes with a known mask is not finite"
        if 0 in (untouched, forged):
            kind = "untouched" if forged == 0 else "forged"
            return f"all {n} cells of fakes with a known mask are {kind}, and both kinds are needed"
        return None

    def overlap(self, first_bin: int | np.ndarray) -> float | np.ndarray:
        """Return the intersection over union of forged cells and cells in `first_bin` or above, over all images."""
        untouched, forged = (np.append(np.cumsum(counts[::-1])[::-1], 0) for counts in self.counts)
        return forged[first_bin] / (forged[0] + untouched[first_bin])


def bins_of(evidence: np.ndarray) -> np.ndarray:
    """Return the bin of each value: from finite float32 to intp in [0, 2^20), monotonic in the evidence."""
    bits = (np.asarray(evidence, np.float32) + np.float32(0)).view(np.uint32)  # adding zero turns -0 into 0
    # Read as unsigned integers, the bits of positive floats ascend, and those of negative floats descend.
    ordered = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return (ordered >> _DROPPED).astype(np.intp)


def lowest_of(number: int) -> float:
    """Return the lowest evidence of a bin."""
    ordered = np.uint32(number << _DROPPED)
    return float((ordered ^ _SIGN if ordered & _SIGN else ~ordered).view(np.float32))


def localisation_metrics(cells: CellCounts, evidence_threshold: float | None = None) -> dict[str, Any]:
    """Compute how well evidence localises the forged region.

    Args:
        cells: cells of all fakes with a known mask, pooled: evidence must be comparable between images, and images
            with more cells count more. Cells of reals are excluded, since they would reward classifying images.
        evidence_threshold: evidence from which a cell counts as forged, chosen on other data; see
            `best_iou_threshold`.

    Returns:
        `auc`, the probability that a forged cell has more evidence than an untouched one, with ties counting one half.
        Values in the same bin count as ties, so the exact AUC may differ by up to `auc_error`, half the share of such
        pairs. `iou`, the intersection over union of forged cells and cells at or above the threshold, over all images.
        `evidence_threshold` as given; `iou` includes its whole bin, whose lowest value is less than 1/2048 below.
        `iou_all_forged`, the IoU of marking every cell as forged, as a baseline.
        Undefined metrics are None: without cells, with a single kind of cell, or with evidence that is not finite,
        there is a `reason`; without a threshold, an `iou_reason`.
    """
    metrics: dict[str, Any] = dict.fromkeys(("auc", "auc_error", "iou", "iou_all_forged"))
    metrics["evidence_threshold"] = evidence_threshold
    if reason := cells.problem():
        return {**metrics, "reason": reason}
    untouched, forged = cells.counts.astype(float)  # products of counts can exceed 64 bits
    pairs, tied = untouched.sum() * forged.sum(), untouched @ forged
    won = (np.cumsum(untouched) - untouched) @ forged
    metrics |= {
        "auc": float((won + tied / 2) / pairs),
        "auc_error": float(tied / 2 / pairs),
        "iou_all_forged": float(cells.overlap(0)),
    }
    if evidence_threshold is None:
        metrics["iou_reason"] = "the checkpoint has no evidence_threshold, which training fits on validation data"
    else:
        metrics["iou"] = float(cells.overlap(bins_of(np.float32(evidence_threshold))))
    return metrics


def best_iou_threshold(cells: CellCounts) -> float | None:
    """Find the evidence threshold with the highest IoU.

    Args:
        cells: cells of the fakes of a validation split with a known mask.

    Returns:
        The lowest value of a bin, so that its IoU is exact for float32; the highest of equally good ones. None where
        `localisation_metrics` gives a `reason`.
    """
    if cells.problem():
        return None
    candidates = np.flatnonzero(cells.counts.any(axis=0))[::-1]
    return lowest_of(int(candidates[np.argmax(cells.overlap(candidates))]))
