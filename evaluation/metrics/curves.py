"""ROC curves of frames and videos, with confidence bands."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ...decision_dcl import LEVELS
from ...prepared.names import FAKE
from .bootstrap import DRAWS, family_codes, interval
from .levels import rank_scores, video_scores
from .sorted_scores import Ranking

#: Rates at which the band is computed: linearly spaced, and logarithmically spaced for low rates.
RATES = np.unique(np.concatenate([np.linspace(0, 1, 101), np.geomspace(1e-4, 1, 81)]))


@dataclass
class RocCurve:
    """The ROC curve of one level."""

    fpr: np.ndarray
    """False positive rates (k,), rising from 0 to 1: every point of the curve."""
    tpr: np.ndarray
    """True positive rates (k,) at these points."""
    low: np.ndarray
    """Lower end of the 95 % interval of the true positive rate at each of `RATES`, or NaN."""
    high: np.ndarray
    """Upper end."""
    reals: int
    fakes: int


def roc_curves(
    rows: pd.DataFrame, bootstrap: int = DRAWS, seed: int = 0
) -> tuple[dict[str, RocCurve], dict[str, str]]:
    """Compute the ROC curves of one data set.

    Args:
        rows: its predictions, as for `frame_and_video_metrics`.
        bootstrap: number of bootstrap draws for the bands; 0 for none.
        seed: seed of the draws, which are the same as for the intervals of the metrics.

    Returns:
        The curves by level, `"frame"` and `"video"`, and the reason for each missing level. The band is pointwise,
        made by `interval`. It has gaps where all fakes or none are found, and where the FPR is below one real.
    """
    curves, reasons = {}, {}
    for level in LEVELS:
        try:
            try:
                codes, count = family_codes(rows)
            except ValueError:  # without families: a curve without a band
                codes, count = np.zeros(len(rows), np.intp), 1
            table = rows.assign(family=codes)
            if level == "video":
                table = video_scores(table)
            curves[level] = _curve(table, count, bootstrap, seed, level)
        except ValueError as error:
            reasons[level] = str(error)
    return curves, reasons


def _curve(table: pd.DataFrame, family_count: int, bootstrap: int, seed: int, level: str) -> RocCurve:
    labels, scores = table["label"].to_numpy(), rank_scores(table)
    fakes = int(np.sum(labels == FAKE))
    reals = len(labels) - fakes
    if not (fakes and reals):
        raise ValueError(f"all {len(labels)} {level}s are {'fake' if fakes else 'real'}, and both classes are needed")
    if not np.isfinite(scores).all():
        raise ValueError(f"the scores of {int((~np.isfinite(scores)).sum())} {level}s are not finite")
    ranking = Ranking(labels, scores, table["family"].to_numpy(), family_count)
    fpr, tpr = ranking.roc()
    low, high = np.full(len(RATES), np.nan), np.full(len(RATES), np.nan)
    families = min(ranking.holders())
    if bootstrap and families > 1:
        draws = ranking.roc_draws(RATES, bootstrap, seed)
        for index, estimate in enumerate(np.interp(RATES, fpr, tpr)):
            ends, _ = interval("tpr", float(estimate), draws[:, index], families)
            if ends and RATES[index] >= 1 / reals:
                low[index], high[index] = ends
    return RocCurve(fpr, tpr, low, high, reals, fakes)
