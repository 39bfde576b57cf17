"""Draw the figure of the method: `python docs/method_figure.py` writes docs/method.png."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

INK, REAL, FAKE, PLAIN = "#22303c", "#2b7bba", "#c8452f", "#eef2f5"


def main() -> None:
    """Draw and save."""
    figure, axes = plt.subplots(figsize=(15.5, 7.6), dpi=100)
    axes.set(xlim=(0, 120), ylim=(-1, 59))
    axes.axis("off")

    box(axes, 1, 24, 16, 11, "face crop\nand forgery mask", "label: real 0, fake 1")
    box(
        axes,
        22,
        19,
        19,
        21,
        "data views",
        "random patch\nSRM residual\nframe shift\ncorresponding mix\n+ augmentation",
    )
    box(axes, 48, 40, 17, 9, "query encoder", "$f_q$, gradient")
    box(axes, 48, 10, 17, 9, "momentum encoder", "$f_k \\leftarrow m f_k + (1-m) f_q$")
    arrow(axes, (17, 29.5), (22, 29.5))
    arrow(axes, (41, 35), (48, 44.5), "query")
    arrow(axes, (41, 24), (48, 14.5), "key")
    arrow(axes, (56.5, 40), (56.5, 19), "moving average", style="dashed")

    cells(axes, 71, 39.5, 10)
    axes.text(76, 51, "feature map, forged cells marked", ha="center", fontsize=9, color=INK)
    arrow(axes, (65, 44.5), (71, 44.5))

    box(axes, 92, 49, 26, 8.5, "classifier: mean over cells, linear", "cross-entropy; evidence of each cell")
    box(axes, 92, 37, 26, 8.5, "Intra-ICL (Eqs. 7, 8)", "real cells alike, apart from forged ones")
    box(axes, 92, 22, 26, 11, "Inter-ICL (Eq. 3)", "query near its own key, far from hard\nkeys of the other class")
    arrow(axes, (81, 46.5), (92, 53))
    arrow(axes, (81, 43.5), (92, 41.5))
    arrow(axes, (81, 40), (92, 30), "embedding $q$")

    queue(axes, 71, 5.5, REAL, "queue of hard reals")
    queue(axes, 71, 0.6, FAKE, "queue of hard fakes")
    frame = Rectangle((70.2, -0.2), 27.6, 8.9, facecolor="none", edgecolor=INK, linewidth=0.8)
    axes.add_patch(frame)
    box(axes, 71, 11.2, 16, 8, "prototypes", "keys nearest to the other\nclass's prototype are hard")
    arrow(axes, (65, 13.5), (71, 15.2))
    arrow(axes, (65, 18.3), (92, 27), "key $k$")
    arrow(axes, (79, 11.2), (79, 8.7))
    axes.text(80, 9.9, "hard keys", ha="left", va="center", fontsize=8.5, color=INK)
    arrow(axes, (97.8, 4.3), (104, 22), "negatives, of the other class")

    figure.savefig(Path(__file__).with_name("method.png"), bbox_inches="tight", facecolor="white")


def box(axes: Axes, x: float, y: float, width: float, height: float, title: str, text: str) -> None:
    """Draw a rounded box with a title and a smaller text below it."""
    style = "round,pad=0,rounding_size=1.2"
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=PLAIN, edgecolor=INK, linewidth=1.2)
    )
    lines = text.count("\n") + 1
    top = y + height / 2 + 0.9 * lines + 0.2 + 0.9 * title.count("\n")
    axes.text(x + width / 2, top, title, ha="center", va="center", fontsize=9.5, weight="bold", color=INK)
    axes.text(
        x + width / 2,
        top - 1.3 - 0.9 * lines - 0.9 * title.count("\n"),
        text,
        ha="center",
        va="center",
        fontsize=8.5,
        color=INK,
    )


def arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    label: str = "",
    style: str = "solid",
) -> None:
    """Draw an arrow, labelled on its middle."""
    properties = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.2, "linestyle": style, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=end, xytext=start, arrowprops=properties)
    middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    if label:
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        axes.text(*middle, label, ha="center", va="center", fontsize=8.5, color=INK, bbox=paper)


def cells(axes: Axes, x: float, y: float, side: float) -> None:
    """Draw a 5x5 map with a forged region."""
    forged = np.zeros((5, 5), bool)
    forged[1:4, 1:3] = True
    step = side / 5
    for row, column in np.ndindex(5, 5):
        color = FAKE if forged[row, column] else REAL
        corner = (x + column * step, y + (4 - row) * step)
        axes.add_patch(Rectangle(corner, step, step, facecolor=color, alpha=0.75, edgecolor="white"))


def queue(axes: Axes, x: float, y: float, color: str, label: str) -> None:
    """Draw a queue as a row of keys."""
    for index in range(13):
        axes.add_patch(Rectangle((x + 2 * index, y), 2, 2.4, facecolor=color, alpha=0.75, edgecolor="white"))
    axes.text(x - 1, y + 1.2, label, ha="right", va="center", fontsize=8.5, color=INK)


if __name__ == "__main__":
    main()
