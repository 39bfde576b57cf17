"""Run the GPU tests and all benchmarks of a GPU in under ten minutes: `python benchmarks/gpu.py`.

Each part has a time limit; one that fails or takes too long is recorded, and the others go on. The result is
`benchmarks/results/gpu.json`, from which `benchmarks/report.py` fills the GPU rows of docs/benchmarks.md. On a machine
without a GPU, nothing happens.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from dcl_face_forgery.benchmarks.harness import describe_run

ROOT = Path(__file__).resolve().parents[1]
STEP = ("benchmarks/train_step.py", "--json", "--batch_size", "32", "--steps", "20")
SWEEP = ("benchmarks/sweep.py", "--json", "--backbone", "tf_efficientnet_b4", "--precision", "bf16")
#: By name: arguments of Python, and the time limit in seconds.
PARTS = {
    "tests": (("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests/gpu"), 150),
    "train_step_float32": (STEP, 60),
    "train_step_bf16": ((*STEP, "--precision", "bf16", "--channels_last"), 60),
    "train_step_fp16": ((*STEP, "--precision", "fp16", "--channels_last"), 60),
    "released_float32": ((*STEP, "--baseline", "released"), 60),
    "released_bf16": ((*STEP, "--baseline", "released", "--precision", "bf16", "--channels_last"), 60),
    "sweep": (SWEEP, 240),
    "detect": (("benchmarks/detect.py", "--json"), 60),
}
TOTAL = 570  # seconds for all parts


def main() -> None:
    """Parse the command line, run all parts, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="run these only")
    parser.add_argument("--output", default=ROOT / "benchmarks" / "results" / "gpu.json", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("PyTorch sees no GPU on this machine, so nothing was measured.")
        return
    record = describe_run("python benchmarks/gpu.py") | {"parts": {}}
    end = time.monotonic() + TOTAL
    for name in options.parts:
        arguments, limit = PARTS[name]
        record["parts"][name] = run_part(arguments, min(limit, end - time.monotonic()))
        print(f"{name}: {record['parts'][name]['status']}, {record['parts'][name]['seconds']} s", flush=True)
        options.output.write_text(json.dumps(record, indent=1) + "\n")  # what is there survives an abort


def run_part(arguments: Sequence[str], limit: float) -> dict[str, object]:
    """Run Python with these arguments in the root of the repository, for at most `limit` seconds.

    Returns:
        `command`, `seconds`, `status` ("passed", "failed", "timed out" or "no time left"), and `result`, the JSON
        object that it printed, or `output`, the end of what it printed.
    """
    part: dict[str, object] = {"command": " ".join(("python", *arguments)), "seconds": 0.0}
    if limit <= 1:
        return part | {"status": "no time left"}
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # so that what it starts ends with it
    )
    try:
        output, errors = process.communicate(timeout=limit)
        status = "failed" if process.returncode else "passed"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        status = "timed out"
    part |= {"seconds": round(time.monotonic() - start, 1), "status": status}
    last = (output.splitlines() or [""])[-1]
    if status == "passed" and last.startswith("{"):
        return part | {"result": json.loads(last)}
    return part | {"output": (output + errors)[-2000:]}


if __name__ == "__main__":
    main()
