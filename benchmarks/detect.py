"""Time detection in videos against its bare components: `python benchmarks/detect.py --json`.

The pipeline opens a video, decodes the chosen frames, and finds, tracks, crops, measures and scores faces. The lower
bound is the time of the components alone: PyAV decodes the same frames, YuNet detects faces in them, and the model
runs on as many inputs in the same batches. Both alternate in one process, on the same clips of ten seconds. The shares
compare the components with the whole pipeline. `--cpu_time` measures CPU time on a single thread, for busy machines.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import torch

from dcl_face_forgery.benchmarks.harness import RATE, SECONDS, print_result, write_clip
from dcl_face_forgery.data_scripts.assets import fetch_detector
from dcl_face_forgery.pipeline_dcl import FaceForgeryDetectionPipeline
from dcl_face_forgery.video_dcl import evenly_spaced


def main() -> None:
    """Parse the command line, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="runs/demo", help="checkpoint folder (default: runs/demo)")
    parser.add_argument("--backend", choices=("torch", "onnx"), default="torch", help="runtime for the checkpoint")
    parser.add_argument("--clips", type=int, default=2, help="number of clips of ten seconds")
    parser.add_argument("--frames", type=int, default=32, help="frames of each clip")
    parser.add_argument("--batch_size", type=int, default=4, help="faces in a batch (default: 4)")
    parser.add_argument("--turns", type=int, default=5, help="timed turns of each, after a warm-up turn")
    parser.add_argument("--cpu_time", action="store_true", help="measure CPU time on a single thread")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
    print_result(result, options.json)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, float | int]:
    """Time both in turns, and return the median ratio within a turn."""
    if options.cpu_time:
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
    clips = [write_clip(folder / f"{index:03}.mp4", index) for index in range(options.clips)]
    pipe = FaceForgeryDetectionPipeline.from_pretrained(options.model, options.backend, abstain=False)
    seconds: dict[str, list[float]] = {"whole": [], "decode": [], "detection": [], "model": []}
    for turn in range(options.turns + 1):
        times = {"whole": whole(pipe, clips, options)} | floor(pipe, clips, options)
        if turn:
            for name, value in times.items():
                seconds[name].append(value)
    parts = ("decode", "detection", "model")
    ratios = [total / sum(seconds[part][turn] for part in parts) for turn, total in enumerate(seconds["whole"])]
    median = {name: statistics.median(values) for name, values in seconds.items()}
    faces = options.clips * options.frames
    return {
        "clips": options.clips,
        "faces": faces,
        "faces_per_s": round(faces / median["whole"], 1),
        "floor_faces_per_s": round(faces / sum(median[part] for part in parts), 1),
        "over_floor": round(statistics.median(ratios), 3),
        "over_floor_min": round(min(ratios), 3),
        "over_floor_max": round(max(ratios), 3),
        **{f"{part}_share": round(median[part] / median["whole"], 3) for part in parts},
    }


def _clock(options: argparse.Namespace) -> Callable[[], float]:
    return time.process_time if options.cpu_time else time.perf_counter


def whole(pipe: FaceForgeryDetectionPipeline, paths: Sequence[Path], options: argparse.Namespace) -> float:
    """Run the pipeline on the clips, and return the seconds."""
    clock = _clock(options)
    start = clock()
    results = pipe(list(paths), num_frames=options.frames, batch_size=options.batch_size)
    seconds = clock() - start
    found = sum(person["judged"] for result in results for person in result["people"])
    if found != len(paths) * options.frames:
        sys.exit(f"error: the detector found {found} faces in {len(paths) * options.frames} frames.")
    return seconds


def floor(pipe: FaceForgeryDetectionPipeline, paths: Sequence[Path], options: argparse.Namespace) -> dict[str, float]:
    """Decode the same frames, detect faces, run the model as often, and return the seconds of each."""
    detector, clock = fetch_detector(), _clock(options)
    seconds = {"decode": 0.0, "detection": 0.0, "model": 0.0}
    for path in paths:
        wanted, images = set(evenly_spaced(SECONDS * RATE, options.frames)), []
        start = clock()
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "AUTO"  # as in the pipeline
            for number, frame in enumerate(container.decode(video=0)):
                if number in wanted:
                    images.append(frame.to_ndarray(format="rgb24"))
        seconds["decode"] += clock() - start
        start = clock()
        for image in images:
            detector.detect(image)
        seconds["detection"] += clock() - start
    size = pipe.model.config.image_size
    faces = len(paths) * options.frames
    inputs = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (faces, 3, size, size)).astype(np.float32))
    start = clock()
    with torch.inference_mode():
        for batch in inputs.split(options.batch_size):
            pipe.model(batch.to(pipe.device))["logits"].cpu()
    seconds["model"] = clock() - start
    return seconds


if __name__ == "__main__":
    main()
