"""The pictures of the report, each with an alternative text, or the reason for its absence."""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ...decision_dcl import LEVELS
from ...prepared.names import FAKE
from ..calibration import reliability
from ..metrics.curves import roc_curves
from ..metrics.groups import UNKNOWN
from ..metrics.levels import video_scores
from ..metrics.sorted_scores import BINS
from .examples import Looks
from .figures import (
    ROWS_PER_SHEET,
    draw_det,
    draw_embeddings,
    draw_examples,
    draw_reliability,
    draw_robustness_of,
    draw_roc,
    draw_scores,
    draw_similarities,
    encode,
)

NOT_LOOKED = "Not drawn, since this needs the model. Evaluate with --report."
WHYS = {
    "median": "Median: the frame with the median score of each method",
    "lowest fake": "Worst misses: the fakes with the lowest scores",
    "highest real": "Worst false alarms: the reals with the highest scores",
}


@dataclass
class Picture:
    """A picture of the report."""

    name: str
    """Name of its file."""
    alt: str
    content: bytes
    """WebP."""

    @property
    def source(self) -> str:
        """Return the picture as a data URL for an `img`."""
        return "data:image/webp;base64," + base64.b64encode(self.content).decode("ascii")


def number_text(value: float | None) -> str:
    """Return a number with three decimals, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def lacking(reason: str) -> dict[str, Any]:
    """Return the placeholder for missing pictures."""
    return {"pictures": [], "reason": reason}


def curves_of(name: str, levels: Mapping[str, Any], rows: pd.DataFrame, bootstrap: int, seed: int) -> dict[str, Any]:
    """Draw ROC and DET curves of a data set."""
    curves, reasons = roc_curves(rows, bootstrap, seed)
    missing = "; ".join(f"{level} level: {why}" for level, why in reasons.items())
    if not curves:
        return lacking(f"No curves ({missing}).")
    areas = ", ".join(f"{level} AUC {number_text(levels[level]['auc'])}" for level in curves)
    draw: dict[str, Callable[[], Any]] = {
        "roc": lambda: draw_roc(curves),
        "roc_low": lambda: draw_roc(curves, logarithmic=True),
        "det": lambda: draw_det(curves),
    }
    alts = {
        "roc": f"ROC curves of {name}: {areas}.",
        "roc_low": f"ROC curves of {name} with the false positive rate on a logarithmic scale: {areas}.",
        "det": f"DET curves of {name}, misses against false alarms: "
        + ", ".join(f"{level} EER {number_text(levels[level]['eer'])}" for level in curves)
        + ".",
    }
    pictures = [Picture(key, alts[key], encode(make())) for key, make in draw.items()]
    return {"pictures": pictures, "reason": f"Some curves are missing ({missing})." if missing else None}


def scores_of(name: str, levels: Mapping[str, Any], rows: pd.DataFrame) -> dict[str, Any]:
    """Draw histograms of the scores of each method."""
    pictures, reasons = [], []
    methods = rows.assign(method=rows["method"].astype(object).fillna(UNKNOWN))
    for level in LEVELS:
        try:
            by_method = _scores_by_method(methods, level)
        except ValueError as error:
            reasons.append(f"{level} level: {error}")
            continue
        reals = by_method.pop(None, np.empty(0))
        known = {key: at for key, at in (levels[level].get("thresholds") or {}).items() if at is not None}
        medians = [f"{method} {np.median(scores):.3f}" for method, scores in by_method.items() if len(scores)]
        medians += [f"reals {np.median(reals):.3f}"] if len(reals) else []
        alt = f"Histograms of the scores of {level}s of {name} by method. Median p_fake: {', '.join(medians)}."
        pictures.append(Picture(f"scores_{level}", alt, encode(draw_scores(reals, by_method, known, level))))
    return {"pictures": pictures, "reason": f"Some diagrams are missing ({'; '.join(reasons)})." if reasons else None}


def _scores_by_method(rows: pd.DataFrame, level: str) -> dict[str | None, np.ndarray]:
    """Return the finite scores of frames or videos of each method; those of all reals under None."""
    groups = {None: rows[rows["label"] != FAKE]}
    groups |= dict(list(rows[rows["label"] == FAKE].groupby("method", sort=True)))
    if level == "video":
        video_scores(rows)  # checks all rows: the groups would split a video with both classes
        groups = {name: video_scores(group) for name, group in groups.items() if len(group)}
    scores = {name: group["p_fake"].to_numpy(float) for name, group in groups.items()}
    return {name: values[np.isfinite(values)] for name, values in scores.items()}


def reliability_of(name: str, rows: pd.DataFrame) -> dict[str, Any]:
    """Draw reliability diagrams, before and after calibration."""
    stages = {"before": "p_fake_raw", "after": "p_fake"}
    if "p_fake_raw" not in rows or rows["p_fake_raw"].equals(rows["p_fake"]):
        del stages["before"]
    pictures, reasons = [], []
    for level in LEVELS:
        try:
            tables = {stage: rows.assign(p_fake=rows[column]) for stage, column in stages.items()}
            if level == "video":
                tables = {stage: video_scores(table) for stage, table in tables.items()}
            for table in tables.values():
                values = table["p_fake"].to_numpy(float)
                if len(values) < BINS:
                    raise ValueError(f"{len(values)} {level}s are too few for {BINS} bins")
                if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
                    raise ValueError("some scores are outside of [0, 1]")
        except ValueError as error:
            reasons.append(f"{level} level: {error}")
            continue
        bins = {stage: reliability(table["label"], table["p_fake"]) for stage, table in tables.items()}
        worst = max(bins["after"], key=lambda bin_: abs(bin_["mean_p"] - bin_["share_fake"]))
        alt = (
            f"Reliability diagram of {level}s of {name}, {' and '.join(stages)} calibration. The largest "
            f"deviation is in the bin with mean p_fake {worst['mean_p']:.2f}, with a share of fakes of "
            f"{worst['share_fake']:.2f}."
            if len(stages) > 1
            else f"Reliability diagram of {level}s of {name}. The largest deviation is in the bin with mean p_fake "
            f"{worst['mean_p']:.2f}, with a share of fakes of {worst['share_fake']:.2f}."
        )
        pictures.append(Picture(f"reliability_{level}", alt, encode(draw_reliability(bins, level))))
    reason = f"Some diagrams are missing ({'; '.join(reasons)})." if reasons else None
    return {"pictures": pictures, "reason": reason, "calibrated": len(stages) > 1}


def robustness_of(name: str, results: Mapping[str, Any] | None) -> dict[str, Any]:
    """Draw the AUC on perturbed pictures."""
    if results is None:
        return lacking("Not measured for these weights and data. Evaluate with --perturbations.")
    pictures = []
    for unit in LEVELS:
        means = [f"{kind} {number_text(result['mean'][unit])}" for kind, result in results["types"].items()]
        clean = number_text(results["clean"][unit]["auc"])
        alt = f"Heat map of the {unit} AUC of {name} on perturbed pictures. Clean {clean}; means: {', '.join(means)}."
        pictures.append(Picture(f"robustness_{unit}", alt, encode(draw_robustness_of(results, unit))))
    return {"pictures": pictures, "reason": None}


def _sheets(examples: Sequence[Any]) -> list[Sequence[Any]]:
    return [examples[start : start + ROWS_PER_SHEET] for start in range(0, len(examples), ROWS_PER_SHEET)]


def examples_of(name: str, looks: Looks | None) -> dict[str, Any]:
    """Draw the sheets of examples."""
    if looks is None:
        return lacking(NOT_LOOKED) | {"kinds": []}
    kinds, pictures = [], []
    for why, title in WHYS.items():
        chosen = [example for example in looks.examples if example.why == why]
        sheets = []
        for number, part in enumerate(_sheets(chosen), start=1):
            rows = "; ".join(f"{example.method} with p_fake {example.p_fake:.3f}" for example in part)
            alt = f"Sheet of examples of {name}, each with picture, mask and evidence. {title}: {rows}."
            content = encode(draw_examples(part, looks.limit), photographs=True)
            sheets.append(Picture(f"examples_{why.replace(' ', '_')}_{number}", alt, content))
        pictures += sheets
        if sheets:
            kinds.append({"title": title, "pictures": sheets})
    return {"pictures": pictures, "reason": None, "kinds": kinds}


def embeddings_of(name: str, looks: Looks | None) -> dict[str, Any]:
    """Draw the t-SNE of the embeddings."""
    if looks is None:
        return lacking(NOT_LOOKED)
    if looks.points is None:
        return lacking("Not drawn: no feature map, fewer than ten frames, or identical embeddings.")
    alt = f"t-SNE of the embeddings of {len(looks.points):,} frames of {name}, coloured by method."
    figure = draw_embeddings(looks.points, looks.methods, looks.labels)
    return {"pictures": [Picture("tsne", alt, encode(figure))], "reason": None}


def similarities_of(name: str, looks: Looks | None) -> dict[str, Any]:
    """Draw the similarities between the cells of a face."""
    if looks is None:
        return lacking(NOT_LOOKED)
    chosen = [example for example in looks.examples if example.why == "median" and example.similarities is not None]
    if not chosen:
        return lacking("Not drawn: the model has no feature map.")
    lowest = min(float(example.similarities.min()) for example in chosen)
    lowest = np.floor(min(lowest, 0.9) * 10) / 10
    pictures = []
    for number, part in enumerate(_sheets(chosen), start=1):
        methods = ", ".join(example.method for example in part)
        alt = f"Cosine similarities between the cells of one face's feature map, of {name}: {methods}."
        content = encode(draw_similarities(part, lowest), photographs=True)
        pictures.append(Picture(f"similarities_{number}", alt, content))
    return {"pictures": pictures, "reason": None}
