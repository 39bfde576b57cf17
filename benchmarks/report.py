"""Keep results of the benchmarks, and make docs/benchmarks.md of them: `python benchmarks/report.py`.

`--run NAME` runs a benchmark on this machine and keeps its result as `benchmarks/results/NAME.json`, with its command,
the machine, the date and the versions. Rows of GPUs come from `benchmarks/results/gpu.json`, which `make gpu` writes.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dcl_face_forgery.benchmarks.harness import describe_run
from dcl_face_forgery.benchmarks.sweep import LABELS, line_of

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
PICTURE = ROOT / "docs" / "benchmarks_sweep.webp"
#: CPU time, because our machines have other work to do.
STEP = "benchmarks/train_step.py --cpu_time --steps 3"
#: The benchmarks that are kept, in the order of the page.
COMMANDS = {
    "train_step_float32": f"{STEP} --json",
    "train_step_channels_last": f"{STEP} --channels_last --json",
    "train_step_bf16": f"{STEP} --precision bf16 --channels_last --json",
    "released_float32": f"{STEP} --baseline released --channels_last --json",
    "released_bf16": f"{STEP} --baseline released --precision bf16 --channels_last --json",
    "classifier_float32": f"{STEP} --baseline classifier --channels_last --json",
    "sweep": "benchmarks/sweep.py --cpu_time --steps 2 --queue_sizes 1024 32768 131072 --batch_sizes 4 8 "
    "--cells 10 18 --json",
}
UNKNOWN = "not measured"


def main() -> None:
    """Parse the command line, run what is asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", nargs="+", choices=COMMANDS, default=[], metavar="NAME", help="run these first")
    for name in parser.parse_args().run:
        keep(name)
    PAGE.write_text(page(read_results()), encoding="utf-8")


def keep(name: str) -> None:
    """Run a benchmark and keep its result."""
    command = COMMANDS[name]
    printed = subprocess.run(
        [sys.executable, *shlex.split(command)], check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True
    ).stdout
    record = describe_run(f"python {command}") | {"result": json.loads(printed.splitlines()[-1])}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    if name == "sweep":
        command = [sys.executable, "benchmarks/sweep.py", "--plot", str(RESULTS / "sweep.json"), str(PICTURE)]
        subprocess.run(command, check=True, cwd=ROOT)


def read_results(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Read all results by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def page(results: Mapping[str, dict[str, Any]]) -> str:
    """Write the page in Markdown."""
    gpu = results.get("gpu", {})
    parts = {name: gpu | part for name, part in gpu.get("parts", {}).items() if "result" in part}
    bare_rows = ["train_step_float32", "train_step_bf16", "train_step_fp16"]
    released_rows = ["released_float32", "released_bf16"]
    sections = [
        INTRODUCTION,
        "## Training step\n",
        BARE,
        step_table(results, COMMANDS, parts, bare_rows, "bare", "bare backbone"),
        RELEASED,
        step_table(results, COMMANDS, parts, released_rows, "released", "released code"),
        CLASSIFIER,
        step_table(results, COMMANDS, parts, ["classifier_float32"], "classifier", "plain classifier"),
        "## Queue size, batch and cells\n",
        SWEEP,
        *sweep_tables(results.get("sweep"), parts.get("sweep")),
        "## On a GPU\n",
        gpu_summary(gpu),
        "## Where the figures come from\n",
        sources(results),
    ]
    return "\n".join(sections)


INTRODUCTION = """# Benchmarks

This page is made by `python benchmarks/report.py` from the files in `benchmarks/results/`. Two steps or programs that
are compared alternate in one process, because our machines had other work to do, and ratios are those within a turn:
the median, and in brackets the smallest and the largest.
"""
BARE = """A step of DCL is all that the Trainer does with a batch that is loaded: views, both encoders, losses, memory,
backward pass, gradient norm, optimizer and momentum update. The bare backbone does the same passes over both encoders
and has the same optimizer, and nothing else.
"""
CLASSIFIER = """
With cross-entropy alone (`contrastive_weight` 0), a step encodes no key and updates no memory.
"""
RELEASED = """
The step of the code that was released with the paper is re-created from its description: contiguous float32, Adam
without fused kernels, contrastive losses in a loop over images.
"""
SWEEP = """One of the three changes at a time, from 32,768 keys in each queue, a batch of 8 and 10x10 cells.
"""


def step_table(
    results: Mapping[str, dict[str, Any]],
    names: Iterable[str],
    parts: Mapping[str, dict[str, Any]],
    gpu_names: Iterable[str],
    baseline: str,
    title: str,
) -> str:
    """Make the table of the steps that were timed against a baseline; a GPU row without a result says so."""
    rows = [
        f"| | DCL step | {title} | DCL / {title} | peak memory of DCL | of the other |",
        "|---|---|---|---|---|---|",
    ]
    over = f"dcl_over_{baseline}"
    kept = [results[name] for name in names if over in results.get(name, {}).get("result", {})]
    for record in kept + [parts.get(name) for name in gpu_names]:
        if record is None:
            continue
        r = record["result"]
        setting = (
            f"{record['machine']}: {r['backbone']}, {r['image_size']} px, batch {r['batch_size']}, {r['precision']}"
        )
        setting += ", channels_last" if r["channels_last"] else ""
        setting += ", CPU time of one thread" if r["cpu_time"] else ""
        ratio = f"{r[over]:.3f} ({r[f'{over}_min']:.3f} to {r[f'{over}_max']:.3f})"
        times = f"{r['dcl_s']:.3f} s | {r[f'{baseline}_s']:.3f} s"
        memory = f"{r['dcl_peak_gib']:.2f} GiB | {r[f'{baseline}_peak_gib']:.2f} GiB"
        rows.append(f"| {setting} | {times} | {ratio} | {memory} |")
    if not any(name in parts for name in gpu_names):
        rows.append("| a GPU" + f" | {UNKNOWN}" * 5 + " |")
    return "\n".join(rows) + "\n"


def sweep_tables(*records: Mapping[str, Any] | None) -> list[str]:
    """Make the tables of the sweeps on a CPU and on a GPU."""
    found = []
    for record, kind in zip(records, ("a CPU", "a GPU"), strict=True):
        if record is None:
            found.append(f"On {kind}: {UNKNOWN}.\n")
            continue
        result = record["result"]
        rows = [
            f"On {record['machine']}, {result['backbone']}, {result['precision']}"
            + (", CPU time of one thread" if result["cpu_time"] else "")
            + ":\n",
            "| | | DCL step | bare backbone | DCL / bare | peak memory of DCL | of the bare backbone |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, label in LABELS.items():
            for r in line_of(result["rows"], name):
                ratio = f"{r['dcl_over_bare']:.3f} ({r['dcl_over_bare_min']:.3f} to {r['dcl_over_bare_max']:.3f})"
                times, memory = (f"{r[f'dcl_{x}']:.2f} {y} | {r[f'bare_{x}']:.2f} {y}" for x, y in UNITS)
                rows.append(f"| {label} | {r[name]:,} | {times} | {ratio} | {memory} |")
        found.append("\n".join(rows) + "\n")
    if PICTURE.exists() and records[0] is not None:
        found.insert(1, f"![Seconds and peak memory against queue size, batch and cells, on a CPU]({PICTURE.name})\n")
    return found


UNITS = (("s", "s"), ("peak_gib", "GiB"))


def gpu_summary(gpu: Mapping[str, Any]) -> str:
    """Say what `make gpu` found."""
    if not gpu:
        return "`make gpu` runs the GPU tests and fills the GPU rows above, in less than ten minutes. Not run yet.\n"
    rows = [f"`make gpu` on {gpu['machine']}:\n", "| part | outcome | seconds |", "|---|---|---|"]
    rows += [f"| {name} | {part['status']} | {part['seconds']} |" for name, part in gpu["parts"].items()]
    return "\n".join(rows) + "\n"


def sources(results: Mapping[str, dict[str, Any]]) -> str:
    """List the file, command, machine, date and versions of each result."""
    rows = ["| file | command | machine | date | versions |", "|---|---|---|---|---|"]
    for name, record in results.items():
        versions = ", ".join(f"{package} {version}" for package, version in record["versions"].items())
        file = f"`benchmarks/results/{name}.json`"
        rows.append(f"| {file} | `{record['command']}` | {record['machine']} | {record['date']} | {versions} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
