"""Time the training step against queue size, batch and cells: `python benchmarks/sweep.py --json`.

One of the three changes at a time, from 32,768 keys, a batch of 8 and 10x10 cells; the bare passes over the backbone
are timed beside each. `--plot RESULT PICTURE` draws a result that `benchmarks/report.py` has kept.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dcl_face_forgery.benchmarks.harness import print_result

TIMED = Path(__file__).with_name("train_step.py")
KEPT = ("dcl_s", "bare_s", "dcl_over_bare", "dcl_over_bare_min", "dcl_over_bare_max", "dcl_peak_gib", "bare_peak_gib")
LABELS = {"queue_size": "keys in each queue", "batch_size": "images in a batch", "cells": "cells along a side"}


def main() -> None:
    """Parse the command line, measure or draw, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="tf_efficientnet_lite0", help="one whose cells have 32 pixels a side")
    parser.add_argument("--precision", choices=("float32", "bf16", "fp16"), default="float32")
    parser.add_argument("--queue_sizes", type=int, nargs="+", default=[1024, 8192, 32768, 131072])
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--cells", type=int, nargs="+", default=[10, 14, 18, 24], help="cells along a side")
    parser.add_argument("--cpu_time", action="store_true", help="measure CPU time on a single thread")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each, after a warm-up step")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--plot", nargs=2, metavar=("RESULT", "PICTURE"), help="draw a kept result, and exit")
    options = parser.parse_args()
    if options.plot:
        result, picture = options.plot
        plot(json.loads(Path(result).read_text())["result"]["rows"], picture)
        return
    print_result(measure(options), options.json)


def measure(options: argparse.Namespace) -> dict[str, str | list[dict[str, float | int]]]:
    """Time each point in a process of its own."""
    usual = {"queue_size": 32768, "batch_size": 8, "cells": 10}
    values = {"queue_size": options.queue_sizes, "batch_size": options.batch_sizes, "cells": options.cells}
    points = [usual | {name: value} for name in values for value in values[name]]
    points = list({tuple(point.values()): point for point in points}.values())  # the usual one is in all three
    rows = []
    for point in points:
        command = [sys.executable, str(TIMED), "--json", "--backbone", options.backbone]
        command += ["--precision", options.precision, "--steps", str(options.steps)]
        command += ["--image_size", str(32 * point["cells"]), "--batch_size", str(point["batch_size"])]
        command += ["--queue_size", str(point["queue_size"])]
        command += ["--cpu_time"] if options.cpu_time else []
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        result = json.loads(printed.splitlines()[-1])
        rows.append(point | {name: result[name] for name in KEPT})
    return {"backbone": options.backbone, "precision": options.precision, "cpu_time": options.cpu_time, "rows": rows}


def line_of(rows: Sequence[dict[str, float | int]], name: str) -> list[dict[str, float | int]]:
    """Return the rows along one of the three, in ascending order: the others have their most frequent value."""
    others = [other for other in LABELS if other != name]
    usual = {other: max((row[other] for row in rows), key=[row[other] for row in rows].count) for other in others}
    return sorted((row for row in rows if all(row[o] == usual[o] for o in others)), key=lambda row: row[name])


def plot(rows: Sequence[dict[str, float | int]], picture: str) -> None:
    """Draw seconds (above) and peak memory (below) of both steps against each of the three."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots(2, len(LABELS), sharex="col", sharey="row")
    for column, (name, label) in enumerate(LABELS.items()):
        line = line_of(rows, name)
        for row, (quantity, unit) in enumerate((("s", "seconds"), ("peak_gib", "peak GiB"))):
            for step, style in (("dcl", "o-"), ("bare", "s--")):
                values = [point[f"{step}_{quantity}"] for point in line]
                axes[row, column].plot([point[name] for point in line], values, style, label=step)
            axes[row, column].set(xscale="linear" if name == "cells" else "log", ylim=(0, None))
            axes[row, 0].set_ylabel(unit)
        ticks = [point[name] for point in line]
        axes[1, column].set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=8)
        axes[1, column].minorticks_off()
        axes[1, column].set_xlabel(label)
    axes[0, 0].legend(["DCL step", "bare backbone"])
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main()
