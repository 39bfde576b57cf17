"""AUC, equal error rate and all other metrics of scores: sorted once, then weighted many times, as in a bootstrap."""

from collections.abc import Iterator, Mapping

import numpy as np

from ...prepared.names import FAKE

THRESHOLD = 0.5
#: TPR at a false positive rate: metric name, and number of reals for each false alarm.
FALSE_POSITIVE_RATES = {"tpr_at_fpr_0.05": 20, "tpr_at_fpr_0.01": 100, "tpr_at_fpr_0.001": 1000}
BINS = 15
#: Metrics that `Ranking.metrics` computes.
METRICS = (
    "auc",
    "eer",
    "ap",
    "accuracy",
    "balanced_accuracy",
    "fpr",
    "tpr",
    *FALSE_POSITIVE_RATES,
    "log_loss",
    "brier",
    "ece",
)
#: Metrics that depend only on the order of the scores.
RANKED = ("auc", "eer", "ap", *FALSE_POSITIVE_RATES)
#: Metrics that are also computed at every operating point.
AT_THRESHOLDS = ("accuracy", "balanced_accuracy", "fpr", "tpr")
CELLS_PER_BLOCK = 1 << 18  # draws times scores, to fit a core's cache


def equal_error_rate(false_positive_rate: np.ndarray, true_positive_rate: np.ndarray) -> float:
    """Find the equal error rate of a ROC curve, by linear interpolation between its points.

    Args:
        false_positive_rate: (k,), rising from 0 to 1.
        true_positive_rate: (k,), rising from 0 to 1.

    Returns:
        The false positive rate in [0, 1] at which it equals the miss rate, 1 - TPR.
    """
    return float(_equal_error_rates(false_positive_rate[None], true_positive_rate[None])[0])


class Ranking:
    """Scores of reals and fakes, sorted once.

    Args:
        labels: integers (n,), 0 real, 1 fake; at least one.
        p_fake: floats (n,), finite, higher is more likely fake.
        families: integers (n,) in [0, `family_count`), the scores that are weighted together; None for one family.
        family_count: number of families, including those without a score here.
        thresholds: operating points by name, in addition to .5; scores at or above count as fake.
        ranks: floats (n,), finite, other scores for the `RANKED` metrics, such as those before calibration, which must
            not affect how well a detector ranks.

    Attributes:
        names: the metrics: `METRICS`, and accuracy, balanced accuracy, FPR and TPR at every operating point, such as
            `accuracy_at_threshold_NAME`.
        are_probabilities: whether all scores are in [0, 1]; otherwise log loss, Brier score and ECE are NaN.
    """

    def __init__(
        self,
        labels: np.ndarray,
        p_fake: np.ndarray,
        families: np.ndarray | None = None,
        family_count: int = 1,
        thresholds: Mapping[str, float] | None = None,
        ranks: np.ndarray | None = None,
    ):
        self.by_rank: Ranking | None = None
        if ranks is not None and not _are_ordered_alike(np.asarray(ranks, float), np.asarray(p_fake, float)):
            self.by_rank = Ranking(labels, ranks, families, family_count)
        order = np.argsort(-p_fake, kind="stable")
        fake, scores = np.asarray(labels)[order] == FAKE, np.asarray(p_fake, float)[order]
        codes = np.zeros(len(scores), np.intp) if families is None else np.asarray(families, np.intp)[order]
        self.family_count = family_count
        self.scores = scores
        # Index of each score's weight; the index past the last family has a weight of zero.
        self.if_fake = np.where(fake, codes, family_count)
        self.if_real = np.where(fake, family_count, codes)
        ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # a tie is one point of the curve
        self.ends = None if len(ends) == len(scores) else ends
        self.are_probabilities = bool(scores[0] <= 1 and scores[-1] >= 0)

        self.points = {"": THRESHOLD} | {f"_at_threshold_{name}": at for name, at in (thresholds or {}).items()}
        self.names = (*METRICS, *(name + point for point in list(self.points)[1:] for name in AT_THRESHOLDS))
        sums = [fake, ~fake]
        for threshold in self.points.values():
            called = scores >= threshold
            sums += [fake & called, ~fake & called]
        if self.are_probabilities:
            # Clip at the precision of a double, so that a single wrong 0 or 1 does not make the loss infinite.
            margin = np.finfo(float).eps
            sums.append(-np.log(np.clip(np.where(fake, scores, 1 - scores), margin, 1)))
            sums.append((scores - fake) ** 2)
        self.sums = np.stack([np.bincount(codes, column, family_count) for column in sums], axis=1)

    def holders(self) -> tuple[int, int]:
        """Return the number of families with reals, and the number with fakes."""
        return int(np.count_nonzero(self.sums[:, 1])), int(np.count_nonzero(self.sums[:, 0]))

    def is_like(self, other: "Ranking") -> bool:
        """Whether another ranking has the same scores for the same classes and families."""
        if (self.by_rank is None) != (other.by_rank is None):
            return False
        if self.by_rank is not None and not self.by_rank.is_like(other.by_rank):
            return False
        return all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in ("scores", "if_fake", "if_real")
        )

    def metrics(self, counts: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Compute all metrics.

        Args:
            counts: integers (b, families), the multiplicity of each family in b draws; None for one each.

        Returns:
            For each of `names`, floats (b,); NaN where undefined.
        """
        counts = np.ones((1, self.family_count)) if counts is None else np.asarray(counts, float)
        found = self._metrics(counts)
        if self.by_rank is not None:
            by_rank = self.by_rank._metrics(counts)
            found |= {name: by_rank[name] for name in RANKED}
        return found

    def _metrics(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        fakes, reals, *sums = (counts @ self.sums).T
        calls, losses = sums[: 2 * len(self.points)], sums[2 * len(self.points) :]
        total = fakes + reals
        weights = self._weights(counts)
        steps, curve = self._curve(weights)
        nan = np.full(len(counts), np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):  # a draw without reals, or without fakes
            found = {
                "auc": _area(steps, curve),
                "ap": _average_precision(steps, curve),
                "log_loss": losses[0] / total if losses else nan,
                "brier": losses[1] / total if losses else nan,
            }
            for point, hits, alarms in zip(self.points, calls[::2], calls[1::2], strict=True):
                fpr, tpr = alarms / reals, hits / fakes
                found["accuracy" + point] = (hits + reals - alarms) / total
                found["balanced_accuracy" + point] = (tpr + 1 - fpr) / 2
                found["fpr" + point], found["tpr" + point] = fpr, tpr
            found["eer"] = _equal_error_rates(*curve)
            false, true = curve
            for name, one_in in FALSE_POSITIVE_RATES.items():  # the curve is not interpolated here
                last = _positions(false, np.floor(reals / one_in)[:, None], "right") - 1
                found[name] = np.where(reals > 0, np.take_along_axis(true, last, axis=1)[:, 0] / fakes, np.nan)
            if losses:  # mean distance of score and truth over bins
                _, truth, sums = self._bins(weights, curve)
                found["ece"] = np.abs(truth - sums).sum(axis=1) / total
            else:
                found["ece"] = nan
        return {name: found[name] for name in self.names}

    def _weights(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the multiplicity of each score as a real and as a fake, floats (b, n)."""
        padded = np.concatenate([counts, np.zeros((len(counts), 1))], axis=1)
        return np.take(padded, self.if_real, axis=1), np.take(padded, self.if_fake, axis=1)

    def _curve(
        self, weights: tuple[np.ndarray, np.ndarray]
    ) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Count reals and fakes at each score, (b, k), and at or above it, (b, k + 1) from zero."""
        curve = []
        for weight in weights:
            sums = np.zeros((len(weight), len(self.scores) + 1))
            np.cumsum(weight, axis=1, out=sums[:, 1:])
            curve.append(sums if self.ends is None else sums[:, np.append(0, self.ends + 1)])
        steps = weights if self.ends is None else [np.diff(sums) for sums in curve]
        return (steps[0], steps[1]), (curve[0], curve[1])

    def bins(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Divide the scores into the bins of the ECE: `BINS` bins of equal size, as far as ties allow.

        Returns:
            For each bin, from the highest scores to the lowest: the number of scores, the number of fakes, and the sum
            of the scores; floats (`BINS`,). A bin can be empty.
        """
        weights = self._weights(np.ones((1, self.family_count)))
        counts, fakes, sums = self._bins(weights, self._curve(weights)[1])
        return counts[0], fakes[0], sums[0]

    def _bins(
        self, weights: tuple[np.ndarray, np.ndarray], curve: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the result of `bins` for each draw, (b, `BINS`).

        Ties are never split, so the result does not depend on the order of rows: a tie goes to the bin of its middle.
        """
        rows, n = weights[0].shape
        passed = curve[0] + curve[1]
        total = passed[:, -1:]
        middles = BINS * (passed[:, 1:] + passed[:, :-1])  # doubled: integers avoid rounding at bin edges
        inner = _positions(middles, 2 * total * np.arange(1, BINS), "left")
        edges = np.pad(inner, ((0, 0), (1, 1)), constant_values=((0, 0), (0, middles.shape[1])))
        fakes, counts = (np.diff(np.take_along_axis(sums, edges, axis=1)) for sums in (curve[1], passed))
        at = edges if self.ends is None else np.append(0, self.ends + 1)[edges]
        masses = np.zeros(rows * n + 1)  # one more, as the start of an empty last bin
        np.add(*weights, out=masses[:-1].reshape(rows, n))
        masses[:-1].reshape(rows, n)[:] *= self.scores
        starts = at[:, :-1] + np.arange(rows)[:, None] * n
        sums = np.add.reduceat(masses, starts.ravel()).reshape(starts.shape)
        sums[at[:, 1:] == at[:, :-1]] = 0  # for an empty bin, `reduceat` returns the next element
        return counts, fakes, sums

    def draws(self, draws: int, seed: int) -> dict[str, np.ndarray]:
        """Compute all metrics of families drawn with replacement.

        Args:
            draws: number of draws, each of as many families as there are.
            seed: the same seed and number of families give the same draws, for any scores.

        Returns:
            For each of `names`, floats (draws,); NaN where undefined.
        """
        block = max(1, min(draws, CELLS_PER_BLOCK // max(len(self.scores), self.family_count)))
        parts = [self.metrics(counts) for counts in draw_families(self.family_count, draws, seed, block)]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.names}

    def roc(self) -> tuple[np.ndarray, np.ndarray]:
        """Return false and true positive rates of the ROC curve, from (0, 0) to (1, 1); needs both classes."""
        false, true = self._curve(self._weights(np.ones((1, self.family_count))))[1]
        return false[0] / false[0, -1], true[0] / true[0, -1]

    def roc_draws(self, rates: np.ndarray, draws: int, seed: int) -> np.ndarray:
        """Interpolate the ROC curve linearly, over families drawn with replacement.

        Args:
            rates: false positive rates (k,).
            draws: number of draws.
            seed: seed of the draws, as for the method `draws`.

        Returns:
            The true positive rates at these, floats (draws, k); NaN where a class is missing.
        """
        found = np.full((draws, len(rates)), np.nan)
        block = max(1, min(draws, CELLS_PER_BLOCK // max(len(self.scores), self.family_count)))
        row = 0
        for counts in draw_families(self.family_count, draws, seed, block):
            for false, true in zip(*self._curve(self._weights(counts))[1], strict=True):
                if false[-1] and true[-1]:
                    found[row] = np.interp(rates, false / false[-1], true / true[-1])
                row += 1
        return found


def _are_ordered_alike(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two columns have the same order, including ties."""
    order = np.argsort(first, kind="stable")
    return np.array_equal(np.diff(first[order]) > 0, np.diff(second[order]) > 0) and bool(
        np.all(np.diff(second[order]) >= 0)
    )


def draw_families(family_count: int, draws: int, seed: int, block: int) -> Iterator[np.ndarray]:
    """Draw families with replacement, as many as there are.

    Args:
        family_count: number of families.
        draws: number of draws.
        seed: decides the draws, together with `family_count` but not with `block`.
        block: number of draws at a time.

    Yields:
        Integers (at most `block`, families): the multiplicity of each family.
    """
    generator = np.random.default_rng(seed)
    for start in range(0, draws, block):
        rows = min(block, draws - start)
        picked = generator.integers(family_count, size=(rows, family_count))
        picked += np.arange(rows)[:, None] * family_count
        yield np.bincount(picked.ravel(), minlength=rows * family_count).reshape(rows, family_count)


def _positions(rows: np.ndarray, targets: np.ndarray, side: str) -> np.ndarray:
    """Search sorted integer rows (b, k) for their targets (b, t), in a single call."""
    span = rows[:, -1].max() - rows[:, 0].min() + 2 * np.abs(targets).max() + 1
    shift = (np.arange(len(rows)) * span)[:, None]
    found = np.searchsorted((rows + shift if len(rows) > 1 else rows).ravel(), (targets + shift).ravel(), side)
    return np.clip(found.reshape(targets.shape) - np.arange(len(rows))[:, None] * rows.shape[1], 0, rows.shape[1])


def _equal_error_rates(false: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return the equal error rate of each curve of counts (or of rates) (b, k); NaN where a class is missing."""
    false_end, true_end = false[:, -1:], true[:, -1:]
    excess = false * true_end + true * false_end - false_end * true_end  # ascends and crosses zero
    after = np.maximum(_positions(excess, np.zeros((len(excess), 1)), "left"), 1)
    above, below = (np.take_along_axis(excess, at, axis=1) for at in (after, after - 1))
    end, start = (np.take_along_axis(false, at, axis=1) for at in (after, after - 1))
    share = -below / (above - below)
    return ((start + share * (end - start)) / false_end)[:, 0]


def _area(steps: tuple[np.ndarray, np.ndarray], curve: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return the area under each curve of counts, (b,), with ties counting one half."""
    (real, fake), (false, true) = steps, curve
    won = np.einsum("bk,bk->b", real, true[:, 1:]) - np.einsum("bk,bk->b", real, fake) / 2
    return won / (false[:, -1] * true[:, -1])


def _average_precision(steps: tuple[np.ndarray, np.ndarray], curve: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    (_, fake), (false, true) = steps, curve
    alarms = false[:, 1:] + true[:, 1:]
    # A draw may lack the highest scores: no alarms and no gain there, whatever the precision.
    precision = np.divide(true[:, 1:], np.maximum(alarms, 1, out=alarms), out=alarms)
    average = np.einsum("bk,bk->b", fake, precision) / true[:, -1]
    return np.where(false[:, -1] > 0, average, np.nan)
