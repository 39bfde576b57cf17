"""Figures of an evaluation: one function for each, which returns a matplotlib Figure."""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtri

from ...errors_dcl import InputError
from ...prepared.names import FAKE
from ..metrics.curves import RATES, RocCurve

if TYPE_CHECKING:
    from .examples import Example

try:  # matplotlib is needed for figures only
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
except ImportError:
    Figure = None

# Colours for all kinds of colour vision (Okabe and Ito). Reals are blue and fakes vermilion in every figure.
REAL_COLOUR, FAKE_COLOUR = "#0072B2", "#D55E00"
LEVEL_STYLES = {"frame": {"color": "#222222"}, "video": {"color": "#009E73", "linestyle": "--"}}
METHOD_COLOURS = (FAKE_COLOUR, "#E69F00", "#CC79A7", "#009E73", "#222222", "#8C8C8C")
METHOD_MARKERS = "osD^vP"
STAGE_STYLES = {"before": {"color": "#8C8C8C", "marker": "s"}, "after": {"color": "#222222", "marker": "o"}}

DPI = 150
WIDTH = 4.6  # inches: 9 point text stays legible on a phone of 390 px
LONGEST_NAME = 28
LONGEST_OF_TWO = 18  # with another name beside it
LOWEST_RATE = 1e-3  # start of error rate axes; lower with more reals
SCORE_BINS = 20
ROWS_PER_SHEET = 6
REAL, FORGED = "real", "forged"


def check_matplotlib() -> None:
    """Raise an `InputError` if matplotlib is not installed."""
    if Figure is None:
        raise InputError("Figures need matplotlib: pip install 'dcl-face-forgery[report]'.")


def encode(figure: "Figure", photographs: bool = False) -> bytes:
    """Encode a figure as WebP, reproducibly; figures with photographs are lossy."""
    buffer = io.BytesIO()
    how = {"quality": 85} if photographs else {"lossless": True}
    with warnings.catch_warnings():  # names in other scripts become boxes; the page also has them as text
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")
        figure.savefig(buffer, format="webp", dpi=DPI, pil_kwargs=how)
    return buffer.getvalue()


def plain(name: str, longest: int = LONGEST_NAME) -> str:
    """Make a name from the data safe for matplotlib: one line, not too long, and never parsed as a formula."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(name)).split())
    if len(text) > longest:
        text = text[: longest - 1] + "…"
    return text.replace("$", r"\$")


def _new(height: float, width: float = WIDTH) -> "Figure":
    check_matplotlib()
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


# ------------------------------------------------------------------------------------------------------ curves


def draw_roc(curves: Mapping[str, RocCurve], logarithmic: bool = False) -> "Figure":
    """Draw ROC curves with their bands.

    Args:
        curves: result of `roc_curves`, by level.
        logarithmic: use a logarithmic FPR axis, to show the share of fakes flagged at low false alarm rates.
    """
    figure = _new(4.2)
    axes = figure.subplots()
    for level, curve in curves.items():
        style = LEVEL_STYLES[level]
        label = f"{level}s ({curve.reals:,} real, {curve.fakes:,} fake)"
        axes.plot(curve.fpr, curve.tpr, label=label, linewidth=1.6, **style)
        axes.fill_between(RATES, curve.low, curve.high, color=style["color"], alpha=0.18, linewidth=0)
    chance = np.geomspace(1e-6, 1, 200)
    axes.plot(chance, chance, color="#8C8C8C", linewidth=0.8, linestyle=":", label="chance")
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(_lowest(curves), 1)
    else:
        axes.set_xlim(-0.01, 1.01)
        axes.set_aspect("equal")
    axes.set_ylim(-0.01, 1.01)
    axes.set_xlabel("share of reals flagged (FPR)")
    axes.set_ylabel("share of fakes flagged (TPR)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left" if logarithmic else "lower right", framealpha=0.9)
    return figure


def draw_det(curves: Mapping[str, RocCurve]) -> "Figure":
    """Draw the curves as DET curves: miss rate against false alarm rate, both on normal deviate scales."""
    figure = _new(4.2)
    axes = figure.subplots()
    lowest = _lowest(curves)
    ends = ndtri(lowest), ndtri(0.99)

    def deviates(rates: np.ndarray) -> np.ndarray:
        return ndtri(np.clip(rates, lowest / 10, 1 - 1e-6))

    for level, curve in curves.items():
        style = LEVEL_STYLES[level]
        axes.plot(deviates(curve.fpr), deviates(1 - curve.tpr), label=f"{level}s", linewidth=1.6, **style)
        band = deviates(1 - curve.high), deviates(1 - curve.low)
        axes.fill_between(deviates(RATES), *band, color=style["color"], alpha=0.18, linewidth=0)
    axes.plot(ends, ends, color="#8C8C8C", linewidth=0.8, linestyle=":", label="equal error rate")
    rates = [rate for rate in (0.001, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95) if rate >= lowest]
    names = [f"{100 * rate:g}" for rate in rates]
    axes.set_xticks(ndtri(rates), names)
    axes.set_yticks(ndtri(rates), names)
    axes.set_xlim(ends)
    axes.set_ylim(ends)
    axes.set_aspect("equal")
    axes.set_xlabel("reals flagged (%)")
    axes.set_ylabel("fakes missed (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper right", framealpha=0.9)
    return figure


def _lowest(curves: Mapping[str, RocCurve]) -> float:
    """Return the start of a rate's axis: a power of ten that the number of reals can resolve, at most 1 %."""
    reals = max((curve.reals for curve in curves.values()), default=1)
    return min(max(10.0 ** math.floor(-math.log10(reals)), LOWEST_RATE), 0.01)


def draw_scores(
    reals: np.ndarray,
    fakes: Mapping[str, np.ndarray],
    thresholds: Mapping[str, float] | None = None,
    level: str = "frame",
) -> "Figure":
    """Draw histograms of scores: one row per method, its fakes upwards and the reals downwards.

    Args:
        reals: `p_fake` of the reals, (n,).
        fakes: `p_fake` of the fakes of each method.
        thresholds: operating points by name.
        level: "frame" or "video".
    """
    thresholds = thresholds or {}
    rows = fakes or {"reals": np.empty(0)}
    figure = _new(0.8 + 0.78 * len(rows))
    grid = figure.subplots(len(rows), 1, squeeze=False, sharex=True)[:, 0]
    edges = np.arange(SCORE_BINS + 1) / SCORE_BINS  # exact: with linspace, an edge can differ from 6 / 20 = .3
    below = _shares(reals, edges)
    lines = ("-", "--", "-.", ":")
    for axes, (method, scores) in zip(grid, rows.items(), strict=True):
        above = _shares(scores, edges)
        axes.bar(edges[:-1], above, np.diff(edges), align="edge", color=FAKE_COLOUR, edgecolor="white", linewidth=0.4)
        axes.bar(edges[:-1], -below, np.diff(edges), align="edge", color=REAL_COLOUR, edgecolor="white", linewidth=0.4)
        axes.axhline(0, color="#222222", linewidth=0.6)
        for index, value in enumerate(thresholds.values()):
            axes.axvline(value, color="#222222", linewidth=1, linestyle=lines[index % len(lines)])
        tallest = max(above.max(), below.max(), 1e-9) * 1.05
        axes.set_ylim(-tallest, tallest)
        axes.set_xlim(0, 1)
        axes.set_yticks([])
        if fakes:
            axes.set_title(f"{plain(method)} (n = {len(scores):,})", fontsize=8.5, loc="left", pad=2)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    grid[-1].set_xlabel(f"p_fake of a {level}", fontsize=9)
    handles = [Patch(color=FAKE_COLOUR, label="fakes, upwards"), Patch(color=REAL_COLOUR, label="reals, downwards")]
    for index, (name, value) in enumerate(thresholds.items()):
        label = f"{plain(name)}: {value:.3f}"
        handles += grid[0].plot([], [], color="#222222", linewidth=1, linestyle=lines[index % len(lines)], label=label)
    figure.legend(handles=handles, fontsize=8, ncols=2, loc="outside upper center", frameon=False)
    return figure


def _shares(scores: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.histogram(scores, edges)[0] / max(1, len(scores))


def draw_reliability(stages: Mapping[str, Sequence[Mapping[str, float]]], level: str = "frame") -> "Figure":
    """Draw the share of fakes against the mean score of each bin; probabilities lie on the diagonal.

    Args:
        stages: results of `reliability` under `"before"` and `"after"` calibration, or one of them.
        level: "frame" or "video".
    """
    figure = _new(4.5)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#8C8C8C", linewidth=0.8, linestyle=":", label="perfect calibration")
    for stage, bins in stages.items():
        mean, share, low, high = (
            np.array([bin_[name] for bin_ in bins]) for name in ("mean_p", "share_fake", "low", "high")
        )
        # Rounding may put the share slightly outside of its interval.
        reach = np.maximum([share - low, high - share], 0)
        label = f"{stage} calibration" if len(stages) > 1 else "scores"
        axes.errorbar(
            mean, share, reach, label=label, linewidth=1.2, markersize=4, elinewidth=0.8, **STAGE_STYLES[stage]
        )
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")
    axes.set_xlabel(f"mean p_fake of a bin ({level}s)")
    axes.set_ylabel("share of fakes in the bin")
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, ncols=2, loc="outside upper center", frameon=False)
    return figure


# -------------------------------------------------------------------------------------------------- robustness


def draw_robustness(robustness: Mapping[str, Any]) -> "Figure":
    """Draw the AUC by type and level of perturbation as heat maps.

    Args:
        robustness: result of `evaluate_robustness`.

    Raises:
        InputError: if matplotlib is not installed.
    """
    datasets, types = robustness["datasets"], list(robustness["types"])
    figure = _new(len(datasets) * (1.3 + 0.42 * len(types)), width=9.5)
    grid = figure.subplots(len(datasets), 2, squeeze=False, sharey=True)
    for axes_of_set, (dataset, results) in zip(grid, datasets.items(), strict=True):
        for axes, unit in zip(axes_of_set, ("frame", "video"), strict=True):
            image = _heat_map(axes, results, unit)
            axes.set_yticks(range(len(types)), [name.replace("_", " ") for name in types], fontsize=9)
            title = f"{plain(dataset)}, {unit} AUC (n = {results['clean'][unit]['n']:,})"
            axes.set_title(title, fontsize=10)
    figure.colorbar(image, ax=grid, label="AUC", fraction=0.03, extend="min")
    return figure


def draw_robustness_of(results: Mapping[str, Any], unit: str) -> "Figure":
    """Draw a single heat map, for a narrow page.

    Args:
        results: entry of one data set under `"datasets"` in the result of `evaluate_robustness`.
        unit: `"frame"` or `"video"`.
    """
    types = list(results["types"])
    figure = _new(1.3 + 0.36 * len(types))
    axes = figure.subplots()
    image = _heat_map(axes, results, unit)
    axes.set_yticks(range(len(types)), [name.replace("_", " ") for name in types], fontsize=8)
    figure.colorbar(image, ax=axes, label=f"{unit} AUC", location="top", aspect=40, extend="min")
    return figure


def _heat_map(axes: Any, results: Mapping[str, Any], unit: str) -> Any:
    clean = results["clean"][unit]
    areas = np.array(
        [
            [clean["auc"], *(level[unit]["auc"] for level in result["levels"]), result["mean"][unit]]
            for result in results["types"].values()
        ],
        float,  # None becomes NaN, which stays white
    )
    # .5 is chance level: the colour scale covers only values above it.
    image = axes.imshow(areas, cmap="viridis", vmin=0.5, vmax=1.0, aspect="auto")
    for (row, column), area in np.ndenumerate(areas):
        text, ink = ("-", "black") if np.isnan(area) else (f"{area:.3f}", "black" if area > 0.8 else "white")
        axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=8)
    columns = ["clean", *map(str, range(1, areas.shape[1] - 1)), "mean"]
    axes.set_xticks(range(len(columns)), columns, fontsize=9)
    axes.tick_params(length=0)
    for border in (0.5, areas.shape[1] - 1.5):  # separate the levels from the other columns
        axes.axvline(border, color="white", linewidth=3)
    axes.set_xlabel("level", fontsize=9)
    return image


# -------------------------------------------------------------------------------------------------- embeddings


def draw_embeddings(points: np.ndarray, methods: Sequence[str], labels: np.ndarray) -> "Figure":
    """Draw a scatter plot of embedded frames, coloured by method.

    Args:
        points: floats (n, 2).
        methods: method of each point.
        labels: integers (n,), 0 real, 1 fake.
    """
    methods, labels = np.asarray(methods, object), np.asarray(labels)
    forged = sorted(set(methods[labels == FAKE]))
    columns = 2 if max(map(len, forged), default=0) <= LONGEST_OF_TWO else 1
    figure = _new(4.2 + 0.17 * math.ceil((len(forged) + 1) / columns))
    axes = figure.subplots()
    groups = [("real", labels != FAKE, REAL_COLOUR, "o")]
    for index, method in enumerate(forged):
        colour = METHOD_COLOURS[index % len(METHOD_COLOURS)]
        marker = METHOD_MARKERS[index // len(METHOD_COLOURS) % len(METHOD_MARKERS)]
        groups.append((method, (labels == FAKE) & (methods == method), colour, marker))
    handles = [
        axes.scatter(*points[chosen].T, s=16, c=colour, marker=marker, alpha=0.75, linewidths=0)
        for _, chosen, colour, marker in groups
    ]
    names = [f" {plain(name)} ({int(chosen.sum()):,})" for name, chosen, _, _ in groups]  # matplotlib omits "_x"
    figure.legend(handles, names, fontsize=8, ncols=columns, loc="outside lower center", frameon=False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    return figure


# ---------------------------------------------------------------------------------------------------- examples


def evidence_colours() -> "LinearSegmentedColormap":
    """Return the colours of evidence: blue for real, vermilion for fake, white for neither."""
    return LinearSegmentedColormap.from_list("evidence", [REAL_COLOUR, "white", FAKE_COLOUR])


def draw_examples(examples: Sequence["Example"], limit: float | None) -> "Figure":
    """Draw frames in rows: picture, mask, and the evidence over the picture.

    Args:
        examples: at most `ROWS_PER_SHEET`.
        limit: evidence drawn in full colour, the same for all sheets; None if the model has no evidence.
    """
    figure = _new(0.25 + 1.66 * len(examples) + (0.45 if limit else 0))
    grid = figure.subplots(len(examples), 3, squeeze=False)
    colours = evidence_colours()
    for row, (axes_of_row, example) in enumerate(zip(grid, examples, strict=True)):
        height, width = example.image.shape[:2]
        place = {"extent": (0, width, height, 0)}
        picture, mask, overlay = axes_of_row
        picture.imshow(example.image, **place)
        if example.mask is not None:
            mask.imshow(example.mask, cmap="gray", vmin=0, vmax=255, **place)
        else:
            _say(mask, "unknown" if example.label == FAKE else "none (real)")
        if example.evidence is not None and limit:
            overlay.imshow(example.image.mean(2), cmap="gray", vmin=0, vmax=255, **place)
            strength = np.clip(example.evidence / limit, -1, 1)
            layer = colours((strength + 1) / 2)
            layer[..., 3] = 0.85 * np.abs(strength)  # neutral evidence leaves the picture unchanged
            overlay.imshow(layer, interpolation="nearest", **place)
        else:
            _say(overlay, "not available")
        kind = "fake" if example.label == FAKE else "real"
        title = f"p_fake {example.p_fake:.3f}, {kind}: {plain(example.method)}"
        colour = FAKE_COLOUR if example.label == FAKE else REAL_COLOUR
        picture.set_title(title, fontsize=9, loc="left", color=colour, pad=3)
        for axes, name in zip(axes_of_row, ("picture", "mask", "evidence"), strict=True):
            _frame(axes)
            if row == len(examples) - 1:
                axes.set_xlabel(name, fontsize=8)
    if limit:
        scale = _scale(colours, -limit, limit)
        bar = figure.colorbar(scale, ax=grid, location="bottom", extend="both", aspect=40, fraction=0.03, pad=0.01)
        bar.set_label("evidence of a cell: for real (-) or for fake (+)", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    return figure


def draw_similarities(examples: Sequence["Example"], lowest: float) -> "Figure":
    """Draw the similarities between the cells of each face's feature map.

    Each row has the picture with the border of its mask; the mean cosine similarity of each cell to the others; and
    the similarities of all pairs, with the cells of the real part before those of the forged part, if known.

    Args:
        examples: at most `ROWS_PER_SHEET`, with `similarities`.
        lowest: start of the colour scale, the same for all sheets.
    """
    figure = _new(0.25 + 1.66 * len(examples) + 0.45)
    grid = figure.subplots(len(examples), 3, squeeze=False)
    for row, (axes_of_row, example) in enumerate(zip(grid, examples, strict=True)):
        height, width = example.image.shape[:2]
        picture, means, pairs = axes_of_row
        picture.imshow(example.image, extent=(0, width, height, 0))
        if example.mask is not None and 0 < (example.mask > 0).mean() < 1:
            border = example.mask > 0
            at = np.arange(width) + 0.5, np.arange(height) + 0.5
            picture.contour(*at, border, levels=[0.5], colors=[FAKE_COLOUR], linewidths=1)
        sims = example.similarities
        count = len(sims)
        others = (sims.sum(1) - np.diag(sims)) / max(1, count - 1)
        options = {"cmap": "cividis", "vmin": lowest, "vmax": 1}
        means.imshow(others.reshape(example.grid), extent=(0, width, height, 0), **options)
        order, forged = example.cells_by_part()
        pairs.imshow(sims[np.ix_(order, order)], **options)
        border = count - forged
        if 0 < forged < count:
            for line in (pairs.axhline, pairs.axvline):
                line(border - 0.5, color="white", linewidth=1.2)
            ticks = [(border - 1) / 2, border + (forged - 1) / 2]
            pairs.set_yticks(ticks, [REAL, FORGED], fontsize=7.5, rotation=90, va="center")
        kind = "fake" if example.label == FAKE else "real"
        colour = FAKE_COLOUR if example.label == FAKE else REAL_COLOUR
        picture.set_title(f"{kind}: {plain(example.method)}", fontsize=9, loc="left", color=colour, pad=3)
        for axes, name in zip(axes_of_row, ("picture", "mean similarity", "all pairs of cells"), strict=True):
            _frame(axes, keep_y=axes is pairs and 0 < forged < count)
            if row == len(examples) - 1:
                axes.set_xlabel(name, fontsize=8)
    bar = figure.colorbar(_scale("cividis", lowest, 1), ax=grid, location="bottom", aspect=40, fraction=0.03, pad=0.01)
    bar.set_label("cosine similarity", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def _scale(colours: Any, low: float, high: float) -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(low, high), colours)


def _say(axes: Any, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=8, color="#555555", transform=axes.transAxes)
    axes.set_aspect("equal")
    axes.set_box_aspect(1)


def _frame(axes: Any, keep_y: bool = False) -> None:
    axes.set_xticks([])
    if not keep_y:
        axes.set_yticks([])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_color("#BBBBBB")
