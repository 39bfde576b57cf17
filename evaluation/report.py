"""Pictures of what an evaluation found."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors_dcl import InputError

try:  # numbers come without pictures
    from matplotlib.figure import Figure
except ImportError:
    Figure = None


def draw_robustness(robustness: Mapping[str, Any], path: Path) -> None:
    """Draw the AUC by type and level of perturbation as heat maps, and write them as PNG.

    Args:
        robustness: what `evaluate_robustness` returned.
        path: the file.

    Raises:
        InputError: if matplotlib is not installed.
    """
    if Figure is None:
        raise InputError("pictures need matplotlib: pip install 'dcl-face-forgery[report]'.")
    datasets, types = robustness["datasets"], list(robustness["types"])
    inches = 9.5, len(datasets) * (1.3 + 0.42 * len(types))
    figure = Figure(figsize=inches, dpi=120, layout="constrained")
    grid = figure.subplots(len(datasets), 2, squeeze=False, sharey=True)
    for axes_of_set, (dataset, results) in zip(grid, datasets.items(), strict=True):
        for axes, unit in zip(axes_of_set, ("frame", "video"), strict=True):
            clean = results["clean"][unit]
            areas = np.array(
                [
                    [clean["auc"], *(level[unit]["auc"] for level in result["levels"]), result["mean"][unit]]
                    for result in results["types"].values()
                ],
                float,  # of None, NaN, which stays white
            )
            # .5 is chance: what lies below is as bad, and colours are kept for what lies above.
            image = axes.imshow(areas, cmap="viridis", vmin=0.5, vmax=1.0, aspect="auto")
            for (row, column), area in np.ndenumerate(areas):
                text, ink = ("-", "black") if np.isnan(area) else (f"{area:.3f}", "black" if area > 0.8 else "white")
                axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=8)
            columns = ["clean", *map(str, range(1, areas.shape[1] - 1)), "mean"]
            axes.set_xticks(range(len(columns)), columns, fontsize=9)
            axes.set_yticks(range(len(types)), [name.replace("_", " ") for name in types], fontsize=9)
            axes.tick_params(length=0)
            for border in (0.5, areas.shape[1] - 1.5):  # the levels apart from what is beside them
                axes.axvline(border, color="white", linewidth=3)
            axes.set_title(f"{dataset}, {unit} AUC (n = {clean['n']:,})", fontsize=10)
            axes.set_xlabel("level", fontsize=9)
    figure.colorbar(image, ax=grid, label="AUC", fraction=0.03, extend="min")
    figure.savefig(path, format="png")


__all__ = ["draw_robustness"]
