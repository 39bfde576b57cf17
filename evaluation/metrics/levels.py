"""Metrics of a table of predictions: frames, videos, manipulation methods, groups, and localisation.

An undefined metric is None; `"reason"` explains why, or `"NAME_reason"` for a single metric.
"""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import auc, roc_curve
from tqdm.auto import tqdm

from ...decision_dcl import FLAGGED, INCONCLUSIVE, NOT_FLAGGED, Rule
from ...errors_dcl import InputError
from ...prepared.names import FAKE, REAL
from .binary import binary_metrics, measure, problem, too_few, undefined
from .bootstrap import DRAWS, family_codes, intervals, paired_differences
from .groups import MOST_GROUPS, UNKNOWN, compare_groups
from .localisation import CellCounts, localisation_metrics
from .sorted_scores import Ranking

DEEPFAKEBENCH = ("video_auc_deepfakebench", "video_eer_deepfakebench")

logger = logging.getLogger(__name__)


def frame_and_video_metrics(
    predictions: pd.DataFrame,
    cells: Mapping[str, CellCounts] | None = None,
    *,
    thresholds: Mapping[str, Mapping[str, float | None]] | None = None,
    group_by: str | None = None,
    bootstrap: int = DRAWS,
    seed: int = 0,
    evidence_threshold: float | None = None,
    rules: Mapping[str, Rule] | None = None,
) -> dict[str, dict[str, Any]]:
    """Compute every metric of every data set in a table of predictions.

    Args:
        predictions: one row per frame, in any order, with the columns `dataset`, `method`, `video_id`, `label` (0
            real, 1 fake), `p_fake` (in [0, 1]) and, for the intervals, `source_id` (otherwise each video is a family).
            With `p_fake_raw`, the score before calibration, the frame metrics include `log_loss_raw`, `brier_raw` and
            `ece_raw`; and metrics that depend only on the order of scores (AUC, EER, AP, TPR at an FPR) are computed
            from it, see `rank_scores`.
        cells: for each data set, the cells for `localisation_metrics`.
        thresholds: under `"frame"` and `"video"`, the thresholds for `binary_metrics`. Choose them on other data.
        group_by: a column whose values are groups to compare, such as groups of people.
        bootstrap: number of bootstrap draws for the 95 % intervals; 0 for none.
        seed: seed of the draws.
        evidence_threshold: evidence from which a cell counts as forged. Choose it on other data.
        rules: under `"frame"` and `"video"`, the verdict rules of detection, for counting `verdicts`.

    Returns:
        `{dataset: {"frame": {...}, "video": {...}, "by_method": {method: {"frame": {...}, "video": {...}}},
        "localisation": {...}}}`, data sets and methods in alphabetical order. The inner dictionaries are those of
        `binary_metrics` and `localisation_metrics`, with those of `intervals`. `by_method` compares the fakes of each
        method with all reals of their data set. A video is a `video_id`, and its score is the mean `p_fake` of its
        frames; the video metrics include `video_auc_deepfakebench` and `video_eer_deepfakebench`, see
        `deepfakebench_metrics`.
        With `group_by` also `"by_group": {"column": ..., "groups": {value: {"frame": {...}, "video": {...}}},
        "gap": {"frame": {metric: {...}}, "video": {...}}}`: the metrics of each group, and the `largest_gap` between
        groups for which a metric is defined. Groups with a single class are excluded from the gaps of metrics that
        need both classes, and of accuracy, log loss, Brier score and ECE; `left_out` lists excluded groups. With fewer
        than two groups left, `value` is None, with a `reason`.

    Raises:
        InputError: if `group_by` is not a column, or has more than 100 values.
    """
    if group_by is not None and group_by not in predictions:
        raise InputError(
            f"The predictions have no column {group_by!r} to group by. Choose one of {', '.join(predictions.columns)}."
        )
    cells, thresholds = cells or {}, thresholds or {}
    metrics = {}
    for name, rows in predictions.groupby("dataset", sort=True):
        level = _Levels(rows, thresholds, bootstrap, seed, rules or {})
        is_real = (rows["label"] == REAL).to_numpy()
        methods = rows["method"].astype(object).fillna(UNKNOWN).to_numpy()
        names = sorted(set(methods[~is_real]))
        # Every method needs draws over all reals, so very many methods get no intervals.
        drawn = bootstrap > 0 and len(names) <= MOST_GROUPS
        with tqdm(total=1 + len(names), desc=f"{name}: metrics", unit=" sets", leave=False, delay=5) as progress:
            whole = level.metrics(np.ones(len(rows), bool))
            progress.update()
            by_method = {}
            for method in names:
                by_method[method] = level.metrics(is_real | (methods == method), drawn=drawn)
                progress.update()
        metrics[name] = {
            **whole,
            "by_method": by_method,
            "localisation": localisation_metrics(cells.get(name) or CellCounts(), evidence_threshold),
        }
        if "p_fake_raw" in rows:
            raw = binary_metrics(rows["label"].to_numpy(), rows["p_fake_raw"].to_numpy(float), "frames")
            for key in ("log_loss", "brier", "ece"):
                metrics[name]["frame"][f"{key}_raw"] = raw[key]
                if why := raw.get(f"{key}_reason", raw.get("reason") if raw[key] is None else None):
                    metrics[name]["frame"][f"{key}_raw_reason"] = why
        if group_by is not None:
            metrics[name]["by_group"] = compare_groups(rows, group_by, level, name)
    return metrics


class _Levels:
    """The rows of one data set with numbered families, so that all its subsets share the same draws."""

    def __init__(
        self,
        rows: pd.DataFrame,
        thresholds: Mapping[str, Mapping[str, float | None]],
        bootstrap: int,
        seed: int,
        rules: Mapping[str, Rule],
    ):
        self.thresholds, self.bootstrap, self.seed, self.rules = thresholds, bootstrap, seed, rules
        self.no_families = None
        try:
            codes, self.family_count = family_codes(rows)
        except ValueError as error:
            codes, self.family_count, self.no_families = np.zeros(len(rows), np.intp), 1, str(error)
        self.rows = rows.assign(family=codes)

    def metrics(
        self, chosen: np.ndarray, draws: dict[str, dict[str, np.ndarray]] | None = None, drawn: bool = True
    ) -> dict[str, Any]:
        """Compute the metrics of some rows at both levels; store the draws of each level in `draws`, if given."""
        rows = self.rows if chosen.all() else self.rows[chosen]
        levels = {"frame": self._level(rows, "frame", draws, drawn)}
        try:
            videos = video_scores(rows)
        except ValueError as error:
            levels["video"] = undefined(rows["video_id"].nunique(), str(error))
        else:
            levels["video"] = self._level(videos, "video", draws, drawn)
        return {**levels, "video": {**levels["video"], **deepfakebench_metrics(rows)}}

    def _level(
        self, rows: pd.DataFrame, level: str, draws: dict[str, dict[str, np.ndarray]] | None, drawn: bool
    ) -> dict[str, Any]:
        labels, p_fake = rows["label"].to_numpy(), rows["p_fake"].to_numpy(float)
        metrics, ranking = measure(
            labels,
            p_fake,
            f"{level}s",
            thresholds=self.thresholds.get(level),
            families=rows["family"].to_numpy(),
            family_count=self.family_count,
            ranks=rank_scores(rows),
        )
        if level in self.rules and ranking is not None:
            metrics["verdicts"] = count_verdicts(labels, p_fake, self.rules[level])
        if self.bootstrap and ranking is not None:
            if why := self.no_families or (None if drawn else f"with over {MOST_GROUPS} methods, none has intervals"):
                metrics["intervals"], metrics["interval_reasons"] = {}, {"all": why}
                return metrics
            values = ranking.draws(self.bootstrap, self.seed)
            if draws is not None:
                draws[level] = values
            found = intervals(ranking, metrics, values)
            if warning := " ".join(part["warning"] for part in (metrics, found) if "warning" in part):
                found["warning"] = warning
            metrics |= found
        return metrics


def count_verdicts(labels: np.ndarray, p_fake: np.ndarray, rule: Rule) -> dict[str, Any]:
    """Count the verdicts on frames or videos.

    Args:
        labels: integers (n,), 0 real, 1 fake.
        p_fake: floats (n,), finite.
        rule: the verdict rule.

    Returns:
        `flagged_from` and `not_flagged_below`, scores in [0, 1]; and under `real` and `fake`, the numbers of
        `flagged`, `inconclusive` and `not_flagged`.
    """
    found: dict[str, Any] = {"flagged_from": rule.flagged_from, "not_flagged_below": rule.not_flagged_below}
    for label, name in ((REAL, "real"), (FAKE, "fake")):
        scores = p_fake[labels == label]
        flagged, passed = int(np.sum(scores >= rule.flagged_from)), int(np.sum(scores < rule.not_flagged_below))
        found[name] = {FLAGGED: flagged, INCONCLUSIVE: len(scores) - flagged - passed, NOT_FLAGGED: passed}
    return found


def compare_models(
    first: pd.DataFrame, second: pd.DataFrame, bootstrap: int = DRAWS, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Compute the differences between the metrics of two models on the same rows, with intervals.

    Args:
        first: predictions of one model, as for `frame_and_video_metrics`, with the column `frame`.
        second: predictions of the other model; the order of rows may differ.
        bootstrap: number of bootstrap draws.
        seed: seed of the draws.

    Returns:
        `{dataset: {"frame": {metric: {...}}, "video": {metric: {...}}}}`, first minus second, see
        `paired_differences`; an undefined level is `{"reason": ...}`.

    Raises:
        InputError: if the tables do not hold the same rows.
    """
    keys = ["dataset", "video_id", "frame"]
    first, second = (table.sort_values(keys, ignore_index=True) for table in (first, second))
    if not first[[*keys, "label"]].equals(second[[*keys, "label"]].astype(first[[*keys, "label"]].dtypes)):
        raise InputError(
            f"The models were evaluated on different rows ({len(first)} and {len(second)}). Use the same data sets "
            "and the same --skip_corrupt for both."
        )
    differences: dict[str, dict[str, Any]] = {}
    for name, rows in first.groupby("dataset", sort=True):
        pair = rows, second.loc[rows.index]
        differences[name] = {}
        for level in ("frame", "video"):
            try:
                codes, count = family_codes(rows)
                tables = [table.assign(family=codes) for table in pair]
                if level == "video":
                    tables = [video_scores(table) for table in tables]
                for table in tables:
                    for scores in (table["p_fake"].to_numpy(float), rank_scores(table)):
                        if reason := problem(table["label"].to_numpy(), scores, f"{level}s"):
                            raise ValueError(reason)
            except ValueError as error:
                differences[name][level] = {"reason": str(error)}
                continue
            labels, families = tables[0]["label"].to_numpy(), tables[0]["family"].to_numpy()
            rankings = [
                Ranking(labels, table["p_fake"].to_numpy(float), families, count, ranks=rank_scores(table))
                for table in tables
            ]
            found = paired_differences(*rankings, bootstrap, seed)
            for metric, reason in too_few(labels, tables[0]["p_fake"].to_numpy(float), f"{level}s").items():
                found[metric] = {"difference": None, "interval": None, "reason": reason}
            differences[name][level] = found
    return differences


def rank_scores(rows: pd.DataFrame) -> np.ndarray:
    """Return the scores that rank frames or videos, floats (n,).

    A calibration gives scores a meaning and must not decide which detector ranks better. Frames are therefore ranked
    by margin and videos by the mean of `p_fake_raw`, if available; otherwise by `p_fake`.

    Args:
        rows: predictions, one row per frame; or the result of `video_scores`.
    """
    names = [name for name in ("logit", "p_fake_raw") if name in rows]
    return rows[names[0] if "p_fake_raw" in names else "p_fake"].to_numpy(float)


def video_scores(rows: pd.DataFrame) -> pd.DataFrame:
    """Average the frames of each video.

    Args:
        rows: predictions of one data set, one row per frame.

    Returns:
        One row per video, indexed by `video_id` in alphabetical order, with `label` and the mean `p_fake` (NaN if any
        frame's is NaN); and, if the rows have these columns, the mean `p_fake_raw`, and `family`, the lowest of the
        frames.

    Raises:
        ValueError: if a frame has no `video_id`, or one video has frames of both classes.
    """
    missing = int(rows["video_id"].isna().sum())
    if missing:
        raise ValueError(f"{missing} of {len(rows)} frames have no video_id")
    codes, names = pd.factorize(rows["video_id"], sort=True)
    frames = np.bincount(codes)
    fakes = np.bincount(codes, rows["label"].to_numpy() == FAKE)
    mixed = names[(fakes > 0) & (fakes < frames)]
    if len(mixed):
        raise ValueError(f"the video_id {mixed[0]!r} has real and fake frames, but must name a single video")
    videos = pd.DataFrame({"label": np.where(fakes > 0, FAKE, REAL)}, index=pd.Index(names, name="video_id"))
    for column in ("p_fake", "p_fake_raw"):
        if column in rows:
            videos[column] = sums(codes, rows[column].to_numpy(float)) / frames
    if "family" in rows:
        families = np.full(len(names), np.iinfo(np.intp).max)
        np.minimum.at(families, codes, rows["family"].to_numpy())
        videos["family"] = families
    return videos


def sums(codes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Sum sorted scores by code, so that the sums do not depend on the order of rows, to the last bit."""
    order = np.lexsort((scores, codes))
    return np.bincount(codes[order], scores[order])


def deepfakebench_metrics(rows: pd.DataFrame) -> dict[str, Any]:
    """Compute video-level AUC and EER as DeepfakeBench does, for comparison with its tables.

    DeepfakeBench groups frames into videos by folder name, the last part of `video_id`. It thus averages the fakes of
    one clip by several methods, together with a real of that name. Such a video is labelled fake only if all its
    frames are fake (the mean label is truncated to an integer). The EER is the FPR at the point of the ROC curve where
    FPR and miss rate are closest.

    Args:
        rows: predictions of one data set, one row per frame.

    Returns:
        `video_auc_deepfakebench` and `video_eer_deepfakebench`; None if a frame has no video or no finite score, or if
        all videos are of one class.
    """
    p_fake = rows["p_fake_raw" if "p_fake_raw" in rows else "p_fake"].to_numpy(float)
    if len(rows) == 0 or rows["video_id"].isna().any() or not np.isfinite(p_fake).all():
        return dict.fromkeys(DEEPFAKEBENCH)
    videos, names = pd.factorize(rows["video_id"])
    folders, _ = pd.factorize(pd.Series([str(name).replace("\\", "/").rsplit("/", 1)[-1] for name in names]))
    codes = folders[videos]
    frames = np.bincount(codes)
    scores = sums(codes, p_fake) / frames
    labels = np.bincount(codes, rows["label"].to_numpy() == FAKE) == frames
    if labels.all() or not labels.any():
        return dict.fromkeys(DEEPFAKEBENCH)
    false_positive_rate, true_positive_rate, _ = roc_curve(labels, scores)
    nearest = np.argmin(np.abs(1 - true_positive_rate - false_positive_rate))
    values = auc(false_positive_rate, true_positive_rate), false_positive_rate[nearest]
    return dict(zip(DEEPFAKEBENCH, map(float, values), strict=True))
