"""Time the preparation of videos against bare decoding and detection: `python benchmarks/extract.py --json`.

`dcl-prepare` decodes frames, finds a face in each, tracks, crops and encodes it, and writes shards. The lower bound is
the time of the components alone: PyAV decodes the same frames, and YuNet detects faces in them, on one thread. Both
alternate in one process, on the same clips. Then one process and two processes alternate on more clips, enough to keep
two busy for a while.
"""

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import av
import cv2
import numpy as np

from dcl_face_forgery.benchmarks.harness import RATE, SECONDS, print_result, write_clip
from dcl_face_forgery.data_scripts.assets import fetch_detector
from dcl_face_forgery.data_scripts.clips import Clip, ClipFamily, RawDataSet
from dcl_face_forgery.data_scripts.extract import Extraction
from dcl_face_forgery.data_scripts.frames import VideoFrames
from dcl_face_forgery.data_scripts.photographs import MARGIN, SIZE
from dcl_face_forgery.data_scripts.shard_work import Execution, prepare_raw
from dcl_face_forgery.video_dcl import evenly_spaced


def main() -> None:
    """Parse the command line, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--clips", type=int, default=8, help="number of clips of ten seconds, timed against the lower bound"
    )
    parser.add_argument(
        "--copies", type=int, default=6, help="copies of these clips, for timing two processes against one"
    )
    parser.add_argument("--frames", type=int, default=32, help="frames of each clip")
    parser.add_argument("--turns", type=int, default=2, help="timed turns of each, after a warm-up turn")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
    print_result(result, options.json)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, float | int]:
    """Time all in turns, and return the median ratios within a turn."""
    clips = [write_clip(folder / f"{index:03}.mp4", index) for index in range(options.clips)]
    seconds: dict[str, list[float]] = {"whole": [], "floor": [], "one": [], "two": []}
    for turn in range(options.turns + 1):
        times = {"whole": prepare(clips, options.frames), "floor": floor(clips, options.frames)}
        if turn:
            for name, value in times.items():
                seconds[name].append(value)
    for _ in range(options.turns):
        seconds["one"].append(prepare(clips * options.copies, options.frames))
        seconds["two"].append(prepare(clips * options.copies, options.frames, processes=2))
    frames = len(clips) * options.frames
    over_floor = [whole / bare for whole, bare in zip(seconds["whole"], seconds["floor"], strict=True)]
    speedup = [one / two for one, two in zip(seconds["one"], seconds["two"], strict=True)]
    return {
        "clips": len(clips),
        "frames": frames,
        "frames_per_s": round(frames / statistics.median(seconds["whole"]), 1),
        "floor_frames_per_s": round(frames / statistics.median(seconds["floor"]), 1),
        "over_floor": round(statistics.median(over_floor), 3),
        "over_floor_min": round(min(over_floor), 3),
        "over_floor_max": round(max(over_floor), 3),
        "one_process_s": round(statistics.median(seconds["one"]), 2),
        "two_process_s": round(statistics.median(seconds["two"]), 2),
        "two_process_speedup": round(statistics.median(speedup), 3),
    }


def prepare(paths: Sequence[Path], frames: int, processes: int = 1) -> float:
    """Prepare clips as in `dcl-prepare`, each as its own family, and return the seconds."""
    clips = [Clip(f"real/{i}", f"real/{i}", "real", 0, VideoFrames(path)) for i, path in enumerate(paths)]
    found = RawDataSet("benchmark", {"test": [ClipFamily((clip,)) for clip in clips]})
    how = Extraction("benchmark", frames, {"kind": "box", "margin": MARGIN, "size": SIZE}, "yunet")
    with tempfile.TemporaryDirectory() as output, contextlib.redirect_stderr(io.StringIO()):
        start = time.perf_counter()
        done = prepare_raw(
            found, paths[0].parent, output, how, Execution(processes), families_per_shard=4, say=lambda sentence: None
        )
        seconds = time.perf_counter() - start
    if done.total.faces != len(paths) * frames:
        sys.exit(f"error: the detector found {done.total.faces} faces in {len(paths) * frames} frames.")
    return seconds


def floor(paths: Sequence[Path], frames: int) -> float:
    """Decode the same frames, detect faces in them, and return the seconds."""
    detector, threads = fetch_detector(), cv2.getNumThreads()
    cv2.setNumThreads(1)
    start = time.perf_counter()
    for path in paths:
        wanted = set(evenly_spaced(SECONDS * RATE, frames))
        with av.open(str(path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for number, frame in enumerate(container.decode(video=0)):
                if number in wanted:
                    image: np.ndarray = frame.to_ndarray(format="rgb24")
                    detector.detect(image)
    seconds = time.perf_counter() - start
    cv2.setNumThreads(threads)
    return seconds


if __name__ == "__main__":
    main()
