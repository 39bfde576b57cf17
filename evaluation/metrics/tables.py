"""Metrics of a table of predictions: frames, videos, manipulation methods, groups, and where the forgery was seen.

A number that the data cannot give is None, and a `"reason"` beside it says why; of a single metric, `"NAME_reason"`.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import auc, roc_curve
from tqdm.auto import tqdm

from ...decision_dcl import FLAGGED, INCONCLUSIVE, NOT_FLAGGED, Rule
from ...errors_dcl import InputError
from ...prepared.names import CLASS_NAMES, FAKE, REAL
from .bootstrap import DRAWS, WITHOUT_INTERVAL, family_codes, intervals, largest_gap, paired_differences
from .localisation import CellCounts, localisation_metrics
from .ranking import AT_THRESHOLDS, BINS, FALSE_POSITIVE_RATES, METRICS, THRESHOLD, Ranking, equal_error_rate

REALS_PER_RATE = 5  # false alarms that the reals must allow at a false positive rate
MOST_GROUPS = 100  # whose values are compared; of more methods than that, none has intervals
DEEPFAKEBENCH = ("video_auc_deepfakebench", "video_eer_deepfakebench")
UNKNOWN = "unknown"
#: Of one class these are another thing than of both: the accuracy on fakes alone is their TPR.
OF_BOTH_CLASSES = ("accuracy", "log_loss", "brier", "ece")

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
        predictions: one row a frame, with the columns `dataset`, `method`, `video_id`, `label` (0 real, 1 fake),
            `p_fake` (in [0, 1]) and, for the intervals, `source_id` (else each video is a family). Their order does
            not matter. With `p_fake_raw`, that before calibration, log loss, Brier score and ECE of the frames are
            there for it, too: `log_loss_raw`, `brier_raw`, `ece_raw`; and what depends on the order of scores alone
            (AUC, EER, AP, TPR at an FPR) is computed from it, see `rank_scores`.
        cells: for each data set, what `localisation_metrics` takes.
        thresholds: under `"frame"` and `"video"`, what `binary_metrics` takes. Choose them on other data.
        group_by: a column, such as a group of people, whose values are compared.
        bootstrap: how often families are drawn for the 95 % intervals; 0 for none.
        seed: for the draws.
        evidence_threshold: from where on a cell counts as forged. Choose it on other data.
        rules: under `"frame"` and `"video"`, those by which detection gives verdicts; then `verdicts` counts these.

    Returns:
        `{dataset: {"frame": {...}, "video": {...}, "by_method": {method: {"frame": {...}, "video": {...}}},
        "localisation": {...}}}`, data sets and methods in alphabetical order. The inner dictionaries are those of
        `binary_metrics` and `localisation_metrics`, with what `intervals` adds. `by_method` sets the fakes of one
        method against all reals of their data set; only methods that have fakes are in it. A video is a `video_id`,
        scored by the mean `p_fake` over its frames; beside its metrics stand `video_auc_deepfakebench` and
        `video_eer_deepfakebench`, see `deepfakebench_metrics`.
        With `group_by` also `"by_group": {"column": ..., "groups": {value: {"frame": {...}, "video": {...}}},
        "gap": {"frame": {metric: {...}}, "video": {...}}}`: each group by itself, and what `largest_gap` finds between
        those that define a metric. Groups of one class are compared by nothing that takes both, nor by accuracy, log
        loss, Brier score and ECE; `left_out` lists the groups that a gap is not of. With fewer than two others, its
        `value` is None, and `reason` says why.

    Raises:
        InputError: if `group_by` is no column, or one of more than 100 values.
    """
    if group_by is not None and group_by not in predictions:
        raise InputError(
            f"the predictions have no column {group_by!r} to group by: take one of {', '.join(predictions.columns)}."
        )
    cells, thresholds = cells or {}, thresholds or {}
    metrics = {}
    for name, rows in predictions.groupby("dataset", sort=True):
        level = _Levels(rows, thresholds, bootstrap, seed, rules or {})
        is_real = (rows["label"] == REAL).to_numpy()
        methods = rows["method"].astype(object).fillna(UNKNOWN).to_numpy()
        names = sorted(set(methods[~is_real]))
        # Draws over the reals again for every method: of so many, the numbers alone.
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
            metrics[name]["by_group"] = _by_group(rows, group_by, level, name)
    return metrics


class _Levels:
    """The rows of one data set, their families numbered once: every subset of them sees the same draws."""

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
        """Compute the metrics of both levels of some rows; put the draws of each level into `draws`, if given."""
        rows = self.rows if chosen.all() else self.rows[chosen]
        levels = {"frame": self._level(rows, "frame", draws, drawn)}
        try:
            videos = video_scores(rows)
        except ValueError as error:
            levels["video"] = _undefined(rows["video_id"].nunique(), str(error))
        else:
            levels["video"] = self._level(videos, "video", draws, drawn)
        return {**levels, "video": {**levels["video"], **deepfakebench_metrics(rows)}}

    def _level(
        self, rows: pd.DataFrame, level: str, draws: dict[str, dict[str, np.ndarray]] | None, drawn: bool
    ) -> dict[str, Any]:
        labels, p_fake = rows["label"].to_numpy(), rows["p_fake"].to_numpy(float)
        metrics, ranking = _measure(
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
            if why := self.no_families or (None if drawn else f"of more than {MOST_GROUPS} methods, none has any"):
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
        rule: what gives them.

    Returns:
        `flagged_from` and `not_flagged_below`, scores in [0, 1]; and of `real` and `fake` how many are `flagged`,
        `inconclusive` and `not_flagged`.
    """
    found: dict[str, Any] = {"flagged_from": rule.flagged_from, "not_flagged_below": rule.not_flagged_below}
    for label, name in ((REAL, "real"), (FAKE, "fake")):
        scores = p_fake[labels == label]
        flagged, passed = int(np.sum(scores >= rule.flagged_from)), int(np.sum(scores < rule.not_flagged_below))
        found[name] = {FLAGGED: flagged, INCONCLUSIVE: len(scores) - flagged - passed, NOT_FLAGGED: passed}
    return found


def group_names(values: pd.Series, column: str, where: str) -> np.ndarray:
    """Return the groups that the values of a column stand for, as text; "unknown" where there is none.

    Args:
        values: of each row.
        column: its name, for the error.
        where: of what, for the error.

    Raises:
        InputError: if they are more than 100.
    """
    names = values.astype(object).where(values.notna(), UNKNOWN).map(str).to_numpy()
    count = len(set(names))
    if count > MOST_GROUPS:
        raise InputError(
            f"the column {column!r} of {where} has {count} values: group by one with at most {MOST_GROUPS}."
        )
    return names


def check_group_column(values: pd.Series, column: str, where: str) -> None:
    """Check that a column has groups to compare; warn if it has a single one.

    Args:
        values: of each row.
        column: its name, for the error.
        where: of what, for the error.

    Raises:
        InputError: if no row has a value, or they are more than 100.
    """
    if values.isna().all():
        raise InputError(
            f"the column {column!r} of {where} is empty, there is no group to compare: group by a column with values, "
            "or leave --group_by out."
        )
    names = set(group_names(values, column, where))
    if len(names) == 1:
        logger.warning(
            "the column %r of %s has the value %r in every row: a gap takes two groups, and there is none.",
            column,
            where,
            *names,
        )


def _by_group(rows: pd.DataFrame, column: str, level: _Levels, where: str) -> dict[str, Any]:
    values = group_names(rows[column], column, where)
    groups, draws = {}, {}
    for group in sorted(set(values)):
        draws[group] = {}
        groups[group] = level.metrics(values == group, draws[group])
    gaps = {}
    for which in ("frame", "video"):
        points = [name for name, at in sorted((level.thresholds.get(which) or {}).items()) if at is not None]
        names = [f"{name}_at_threshold_{point}" for point in points for name in AT_THRESHOLDS]
        scores = {group: levels[which] for group, levels in groups.items()}
        drawn = {group: draws[group].get(which, {}) for group in groups}
        gaps[which] = {metric: _gap(metric, scores, drawn) for metric in (*METRICS, *names)}
    return {"column": column, "groups": groups, "gap": gaps}


def _gap(
    metric: str, groups: Mapping[str, Mapping[str, Any]], draws: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, Any]:
    """Compare the groups of one level by one metric."""
    if len(groups) == 1:
        return {"value": None, "reason": "there is one group only: a gap takes two"}
    takes_both = metric.split("_at_threshold_")[0] in OF_BOTH_CLASSES
    values = {
        group: scores[metric]
        for group, scores in groups.items()
        if scores.get(metric) is not None and not (takes_both and "reason" in scores)
    }
    left_out = [group for group in groups if group not in values]
    if len(values) < 2:
        first = groups[left_out[0]]
        why = first.get(f"{metric}_reason") or first.get("reason")
        reason = f"a gap takes two groups that define it, and {len(values)} of {len(groups)} do"
        return {"value": None, "reason": f"{reason}; of {left_out[0]}, {why}", "left_out": left_out}
    drawn = {} if metric in WITHOUT_INTERVAL else {g: draws[g][metric] for g in values if metric in draws[g]}
    families = min(groups[group].get("families", 0) for group in values)
    gap = largest_gap(metric, values, drawn if len(drawn) == len(values) else None, families)
    return gap | ({"left_out": left_out} if left_out else {})


def compare_models(
    first: pd.DataFrame, second: pd.DataFrame, bootstrap: int = DRAWS, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Compute by how much the metrics of two models differ on the same rows, and how sure that is.

    Args:
        first: predictions of one model, as `frame_and_video_metrics` takes them, with the column `frame`.
        second: those of the other; the order of rows may differ.
        bootstrap: how often families are drawn.
        seed: for the draws.

    Returns:
        `{dataset: {"frame": {metric: {...}}, "video": {metric: {...}}}}`, first minus second, see
        `paired_differences`; a level that is not defined is `{"reason": ...}`.

    Raises:
        InputError: if the tables do not hold the same rows.
    """
    keys = ["dataset", "video_id", "frame"]
    first, second = (table.sort_values(keys, ignore_index=True) for table in (first, second))
    if not first[[*keys, "label"]].equals(second[[*keys, "label"]].astype(first[[*keys, "label"]].dtypes)):
        raise InputError(
            f"the models were not run on the same rows ({len(first)} and {len(second)}): evaluate both on the same "
            "data sets, with or without --skip_corrupt alike."
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
                        if reason := _problem(table["label"].to_numpy(), scores, f"{level}s"):
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
            for metric, reason in _too_few(labels, tables[0]["p_fake"].to_numpy(float), f"{level}s").items():
                found[metric] = {"difference": None, "interval": None, "reason": reason}
            differences[name][level] = found
    return differences


def rank_scores(rows: pd.DataFrame) -> np.ndarray:
    """Return what frames or videos are ranked by, floats (n,).

    A calibration says what a score means and must not decide which detector tells more fakes from reals: frames are
    ranked by their margin, and videos by the mean of `p_fake_raw`, where they are known. Otherwise by `p_fake`.

    Args:
        rows: predictions, one row a frame; or what `video_scores` returned.
    """
    names = [name for name in ("logit", "p_fake_raw") if name in rows]
    return rows[names[0] if "p_fake_raw" in names else "p_fake"].to_numpy(float)


def video_scores(rows: pd.DataFrame) -> pd.DataFrame:
    """Average the frames of each video.

    Args:
        rows: predictions of one data set, one row a frame.

    Returns:
        One row a video, indexed by `video_id` in alphabetical order, with `label` and the mean `p_fake`, which is
        NaN where that of a frame is; with that of `p_fake_raw`, and with `family`, the lowest of its frames, if they
        have them.

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
        raise ValueError(f"the video_id {mixed[0]!r} has real and fake frames: it must name one video")
    videos = pd.DataFrame({"label": np.where(fakes > 0, FAKE, REAL)}, index=pd.Index(names, name="video_id"))
    for column in ("p_fake", "p_fake_raw"):
        if column in rows:
            videos[column] = _sums(codes, rows[column].to_numpy(float)) / frames
    if "family" in rows:
        families = np.full(len(names), np.iinfo(np.intp).max)
        np.minimum.at(families, codes, rows["family"].to_numpy())
        videos["family"] = families
    return videos


def _sums(codes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Sum scores by code, in their order: the same ones in another order give the same sum, to the last bit."""
    order = np.lexsort((scores, codes))
    return np.bincount(codes[order], scores[order])


def deepfakebench_metrics(rows: pd.DataFrame) -> dict[str, Any]:
    """Compute video-level AUC and EER as DeepfakeBench does, for comparison with its tables.

    There a video is whatever frames lie in folders of one name: the last part of `video_id`. So the fakes of one clip
    by several methods are averaged into one, and a real of that name with them. It is called fake if all its frames
    are (the mean label is cut to a whole number). The EER is the FPR of the point of the curve where it is nearest to
    the miss rate.

    Args:
        rows: predictions of one data set, one row a frame.

    Returns:
        `video_auc_deepfakebench` and `video_eer_deepfakebench`; None where not every frame has a video and a finite
        score, or where there are only videos of one kind.
    """
    p_fake = rows["p_fake_raw" if "p_fake_raw" in rows else "p_fake"].to_numpy(float)
    if len(rows) == 0 or rows["video_id"].isna().any() or not np.isfinite(p_fake).all():
        return dict.fromkeys(DEEPFAKEBENCH)
    videos, names = pd.factorize(rows["video_id"])
    folders, _ = pd.factorize(pd.Series([str(name).replace("\\", "/").rsplit("/", 1)[-1] for name in names]))
    codes = folders[videos]
    frames = np.bincount(codes)
    scores = _sums(codes, p_fake) / frames
    labels = np.bincount(codes, rows["label"].to_numpy() == FAKE) == frames
    if labels.all() or not labels.any():
        return dict.fromkeys(DEEPFAKEBENCH)
    false_positive_rate, true_positive_rate, _ = roc_curve(labels, scores)
    nearest = np.argmin(np.abs(1 - true_positive_rate - false_positive_rate))
    values = auc(false_positive_rate, true_positive_rate), false_positive_rate[nearest]
    return dict(zip(DEEPFAKEBENCH, map(float, values), strict=True))


def binary_metrics(
    labels: np.ndarray,
    p_fake: np.ndarray,
    units: str = "scores",
    classes: Sequence[str] = CLASS_NAMES,
    thresholds: Mapping[str, float | None] | None = None,
) -> dict[str, Any]:
    """Compute how well scores tell fake from real.

    Args:
        labels: integers (n,), 0 real, 1 fake.
        p_fake: floats (n,), higher is more likely fake.
        units: what is counted, for the reason.
        classes: what label 0 and label 1 are called, for the reason.
        thresholds: names of operating points and where they are, chosen on other data; None where that was not
            possible.

    Returns:
        `auc`, area under the ROC curve: the chance that a fake scores above a real, a tie counting one half; `eer`,
        see `equal_error_rate`; `ap`, average precision with fake as the positive class; `accuracy`, the share of
        correct answers where .5 and above counts as fake; `balanced_accuracy`, that of reals and that of fakes
        averaged; `fpr` and `tpr`, the shares of reals and of fakes at .5 and above; `tpr_at_fpr_0.05`,
        `tpr_at_fpr_0.01` and `tpr_at_fpr_0.001`, the largest share of fakes found at a threshold that calls no more
        than that share of the reals fake; `log_loss` (natural, probabilities cut at the precision of a double);
        `brier`, the mean squared error; `ece`, the expected calibration error over 15 bins of equally many scores, a
        tie going into one bin; all but the log loss in [0, 1]; and the count `n`.
        For each of `thresholds` also `accuracy_at_threshold_NAME`, and so on with balanced accuracy, FPR and TPR; and
        `thresholds` as given.
        With one class only, what compares the two is not defined; without a score, or with one that is not finite,
        nothing is: then `reason` says why. TPR at an FPR takes 5/FPR reals, the ECE 15 scores, and it, log loss and
        Brier score take scores in [0, 1]: where that fails, `NAME_reason` says so. What is not defined is None. Of
        scores that are all the same, `warning` says that they rank nothing.
    """
    return _measure(np.asarray(labels), np.asarray(p_fake, float), units, classes, thresholds)[0]


def _problem(labels: np.ndarray, p_fake: np.ndarray, units: str, classes: Sequence[str] | None = None) -> str | None:
    """Say why nothing can be measured; with `classes`, why the two cannot be compared."""
    n = len(labels)
    if n == 0:
        return f"there are no {units}"
    broken = int(np.sum(~np.isfinite(p_fake)))
    if broken:
        return f"{broken} of {n} {units} have a score that is not finite"
    fakes = int(np.sum(labels == FAKE))
    if classes is not None and fakes in (0, n):
        return f"all {n} {units} are {classes[FAKE if fakes else REAL]}: it takes both kinds"
    return None


def _too_few(labels: np.ndarray, p_fake: np.ndarray, units: str) -> dict[str, str]:
    """Say of which metrics there is too little data, or of another kind, and why."""
    reals = int(np.sum(labels != FAKE))
    reasons = {
        name: f"{reals} real {units} do not tell it: an FPR of {1 / one_in:g} takes {REALS_PER_RATE * one_in}"
        for name, one_in in FALSE_POSITIVE_RATES.items()
        if reals < REALS_PER_RATE * one_in
    }
    if p_fake.min() < 0 or p_fake.max() > 1:
        reasons |= dict.fromkeys(("log_loss", "brier", "ece"), "scores outside of [0, 1] are no probabilities")
    elif len(labels) < BINS:
        reasons["ece"] = f"{len(labels)} {units} do not fill {BINS} bins"
    return reasons


def _measure(
    labels: np.ndarray,
    p_fake: np.ndarray,
    units: str,
    classes: Sequence[str] = CLASS_NAMES,
    thresholds: Mapping[str, float | None] | None = None,
    families: np.ndarray | None = None,
    family_count: int = 1,
    ranks: np.ndarray | None = None,
) -> tuple[dict[str, Any], Ranking | None]:
    """Compute `binary_metrics`, and return with them the ranking that they came from, if there is one."""
    n = len(labels)
    for scores in (p_fake,) if ranks is None else (p_fake, ranks):
        if reason := _problem(labels, scores, units):
            return _undefined(n, reason), None
    thresholds = dict(sorted((thresholds or {}).items()))
    known = {name: at for name, at in thresholds.items() if at is not None}
    ranking = Ranking(labels, p_fake, families, family_count, known, ranks)
    values = {name: float(value[0]) for name, value in ranking.metrics().items()}
    reasons = _too_few(labels, p_fake, units)
    reason = _problem(labels, p_fake, units, classes)
    if reason:  # of the single metrics, this is why
        reasons = {name: why for name, why in reasons.items() if name not in FALSE_POSITIVE_RATES}
    metrics: dict[str, Any] = {
        name: value if np.isfinite(value) and name not in reasons else None for name, value in values.items()
    }
    for name in [name for name in thresholds if name not in known]:
        for key in AT_THRESHOLDS:
            metrics[f"{key}_at_threshold_{name}"] = None
            reasons[f"{key}_at_threshold_{name}"] = "the threshold is not known"
    metrics["n"] = n
    if thresholds:
        metrics["thresholds"] = thresholds
    if reason:
        metrics["reason"] = reason
    metrics |= {f"{name}_reason": why for name, why in reasons.items()}
    if n > 1 and p_fake.min() == p_fake.max():
        metrics["warning"] = f"all {n} {units} have the score {p_fake[0]:g}: they rank nothing."
    return metrics, ranking


def _undefined(n: int, reason: str) -> dict[str, Any]:
    return {**dict.fromkeys(METRICS), "n": n, "reason": reason}


__all__ = [
    "METRICS",
    "THRESHOLD",
    "binary_metrics",
    "check_group_column",
    "compare_models",
    "count_verdicts",
    "deepfakebench_metrics",
    "equal_error_rate",
    "frame_and_video_metrics",
    "rank_scores",
    "video_scores",
]
