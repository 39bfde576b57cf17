"""ROC curves of frames and videos, with confidence bands."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ...decision_dcl import LEVELS
from ...prepared.names import FAKE
from .bootstrap import DRAWS, family_codes, interval
from .levels import rank_scores, video_scores
from .ranking import Ranking

#: Where the band is computed: evenly, and evenly by the logarithm for what is read at low rates.
RATES = np.unique(np.concatenate([np.linspace(0, 1, 101), np.geomspace(1e-4, 1, 81)]))


@dataclass
class RocCurve:
    """The curve of one level."""

    fpr: np.ndarray
    """False positive rates (k,), rising from 0 to 1: every point of the curve."""
    tpr: np.ndarray
    """True positive rates (k,) there."""
    low: np.ndarray
    """Lower end of the 95 % interval of the true positive rate at each of `RATES`; NaN where there is none."""
    high: np.ndarray
    """Upper end."""
    reals: int
    fakes: int


def roc_curves(
    rows: pd.DataFrame, bootstrap: int = DRAWS, seed: int = 0
) -> tuple[dict[str, RocCurve], dict[str, str]]:
    """Compute the ROC curves of one data set.

    Args:
        rows: its predictions, as `frame_and_video_metrics` takes them.
        bootstrap: how often families are drawn for the bands; 0 for none.
        seed: for the draws: the band rests on the same ones as the intervals of the metrics.

    Returns:
        The curves by level, `"frame"` and `"video"`, and why there is none of a level that is missing. The band is
        pointwise, of the kind that `interval` gives: there is none where all or no fakes are found, nor below the
        share that a single real is.
    """
    curves, reasons = {}, {}
    for level in LEVELS:
        try:
            try:
                codes, count = family_codes(rows)
            except ValueError:  # the curve is there without families
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
        raise ValueError(f"all {len(labels)} {level}s are {'fake' if fakes else 'real'}: it takes both kinds")
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} {level}s have a score that is not finite")
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
