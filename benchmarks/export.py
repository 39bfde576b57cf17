"""Time the classifier on the CPU with each runtime: `python benchmarks/export.py --json`.

PyTorch in eager float32; PyTorch under bf16 autocast; compiled PyTorch (`--compile`, which takes minutes); the ONNX
graph in float32 and in int8. All alternate in one process, so that a busy machine slows all of them equally. Results
are medians over turns, with the ratio to eager float32 within each turn. Weights and images are random, which does not
affect the time.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dcl_face_forgery.configuration_dcl import DCLConfig
from dcl_face_forgery.detection.onnx_export import ClassifierOutputs, write_graph, write_int8
from dcl_face_forgery.modeling_dcl import DCLForImageClassification
from dcl_face_forgery.onnx_dcl import OnnxClassifier

EAGER = "float32 eager"


def main() -> None:
    """Parse the command line, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--image_size", type=int, default=160)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=21, help="timed runs of each, after two warm-up runs")
    parser.add_argument("--compile", action="store_true", help="also time torch.compile")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    result = measure(options)
    if options.json:
        print(json.dumps(result))
        return
    print(
        f"{result['cpu']}, {options.threads} threads: {options.backbone} at {options.image_size} px, "
        f"batch {options.batch_size}"
    )
    for name, way in result["ways"].items():
        print(f"{name:16} {1000 * way['seconds']:8.1f} ms, {way['times_as_fast']:.2f} times as fast as eager")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time all runtimes in turns.

    Returns:
        The options, the name of the CPU, and for each runtime its median `seconds` per batch, and its speed-up over
        eager float32, `times_as_fast`: the median over turns, with minimum and maximum.
    """
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    ways = build(options)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.turns + 2):
        for name in ways if turn % 2 else reversed(ways):
            start = time.perf_counter()
            ways[name]()
            if turn > 1:
                times[name].append(time.perf_counter() - start)
    result: dict[str, Any] = {
        name: getattr(options, name) for name in ("backbone", "image_size", "batch_size", "threads")
    }
    result |= {"turns": options.turns, "cpu": cpu_name(), "ways": {}}
    for name, seconds in times.items():
        ratios = [eager / own for eager, own in zip(times[EAGER], seconds, strict=True)]
        result["ways"][name] = {
            "seconds": round(statistics.median(seconds), 5),
            "times_as_fast": round(statistics.median(ratios), 3),
            "least": round(min(ratios), 3),
            "largest": round(max(ratios), 3),
        }
    return result


def build(options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Return the runtimes, as functions that classify one batch of random images."""
    size = options.image_size
    model = DCLForImageClassification(DCLConfig(backbone=options.backbone, image_size=size)).eval()
    pixel_values = torch.rand(options.batch_size, 3, size, size) * 2 - 1
    with tempfile.TemporaryDirectory() as folder:  # a session keeps the graph in memory
        graph, int8_graph = Path(folder) / "model.onnx", Path(folder) / "model_int8.onnx"
        write_graph(model, graph)
        write_int8(graph, int8_graph, torch.rand(2, 3, size, size) * 2 - 1, "minmax")
        sessions = [OnnxClassifier(path, model.config, options.threads) for path in (graph, int8_graph)]

    @torch.inference_mode()
    def eager() -> None:
        model(pixel_values)

    @torch.inference_mode()
    def bf16() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            model(pixel_values)

    ways = {EAGER: eager, "bf16 autocast": bf16}
    if options.compile:
        torch.compiler.config.force_disable_caches = True  # avoid code compiled for another number of threads
        compiled = torch.compile(ClassifierOutputs(model))

        @torch.inference_mode()
        def run_compiled() -> None:
            compiled(pixel_values)

        ways["float32 compiled"] = run_compiled
    return ways | {"ONNX float32": lambda: sessions[0](pixel_values), "ONNX int8": lambda: sessions[1](pixel_values)}


def cpu_name() -> str:
    """Return the name of the CPU."""
    cpuinfo = Path("/proc/cpuinfo")  # on Linux, `platform` does not give the name
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
