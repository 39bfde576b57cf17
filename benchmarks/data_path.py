"""Time training samples against the bare decoding of their crops: `python benchmarks/data_path.py --json`.

A sample is what a worker of the data loader makes: it reads rows, decodes, blends and augments two views and a mask.
The lower bound reads and decodes the same images with OpenCV and resizes two of them. What is not decoding is also
compared with the transforms of the released code, written here anew: it augments two views and adds the residual,
shuffles patches and normalises in the worker, which DCL does on the device.

All alternate sample by sample, in CPU time of one thread. Crops have 380 pixels per side: photographs of faces (ORL),
enlarged, with the noise of a camera, so that their files are as large as those of sharp pictures. At last, one worker
and two alternate in wall time, which means something on a quiet machine only.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch starts its threads

import argparse
import itertools
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
from datasets import Dataset, Features
from torch.utils.data import DataLoader

from dcl_face_forgery.benchmarks.harness import print_result
from dcl_face_forgery.data_scripts.assets import fetch, fetch_detector
from dcl_face_forgery.data_scripts.failures import Failures
from dcl_face_forgery.data_scripts.forging import forge_families
from dcl_face_forgery.data_scripts.photographs import MARGIN, SIZE, Photograph, real_rows
from dcl_face_forgery.prepared.blending import METHODS
from dcl_face_forgery.prepared.dataset import FEATURES, decode_image, decode_mask, encode_image
from dcl_face_forgery.training import augment, pairs
from dcl_face_forgery.training.pairs import BalancedSampler, PairDataset, collate, load_rows
from dcl_face_forgery.training.views import SRM_KERNELS

IMAGE_SIZE = 299
NOISE = 0.85  # standard deviation in grey levels, which makes files of about 160 KB


def main() -> None:
    """Parse the command line, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--people", type=int, default=8, help="people in the data set, four photographs of each")
    parser.add_argument("--samples", type=int, default=100, help="samples of a turn")
    parser.add_argument("--turns", type=int, default=5, help="timed turns, after a warm-up turn")
    parser.add_argument("--no_workers", action="store_true", help="skip the comparison of one worker with two")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        kilobytes = write_data(Path(folder), options.people)
        print_result(measure(PairDataset(load_rows([folder], "train"), IMAGE_SIZE), kilobytes, options), options.json)


def write_data(folder: Path, people: int) -> float:
    """Write a split `train` of real faces and forgeries by every method, and return the mean size of a crop in KB."""
    photographs = [
        Photograph(fetch("orl") / f"s{person}" / f"{number}.pgm", f"s{person}", number)
        for person in range(1, people + 1)
        for number in range(1, 5)
    ]
    crop = {"kind": "box", "margin": MARGIN, "size": SIZE}
    rows, rng = [], np.random.default_rng(0)
    for row in real_rows(photographs, fetch_detector(), crop, "orl", Failures()):
        image = decode_image(row["image"], "a photograph")
        noise = rng.normal(0.0, NOISE, image.shape)
        rows.append(row | {"image": encode_image((image + noise).round().clip(0, 255).astype(np.uint8))})
    rows = list(itertools.chain(*forge_families(rows, list(METHODS), 1, 0, Counter())))
    Dataset.from_list(rows, features=Features(FEATURES)).to_parquet(folder / "train.parquet")
    return statistics.mean(len(row["image"]["bytes"]) for row in rows) / 1e3


def measure(dataset: PairDataset, kilobytes: float, options: argparse.Namespace) -> dict[str, float | int]:
    """Time all in turns; return medians over the turns, of times in ms a sample and of ratios within a turn."""
    ways: dict[str, list[float]] = {name: [] for name in ("sample", "floor", "undecoded", "released")}
    for turn in range(options.turns + 1):
        seconds = dict.fromkeys(ways, 0.0)
        for draw in draws_of(dataset, turn, options.samples):
            for name, job in jobs_of(dataset, draw).items():
                start = time.process_time()
                job()
                seconds[name] += time.process_time() - start
        if turn:
            for name, value in seconds.items():
                ways[name].append(1e3 * value / options.samples)
    used = [rows_of(dataset, draw) for draw in draws_of(dataset, 1, options.samples)]
    result: dict[str, float | int] = {
        "samples": options.samples,
        "kilobytes_of_a_crop": round(kilobytes, 1),
        "images_of_a_sample": round(statistics.mean(map(len, used)), 2),
        **{f"{name}_ms": round(statistics.median(times), 2) for name, times in ways.items()},
        **ratios("over_floor", ways["sample"], ways["floor"]),
        **ratios("undecoded_over_released", ways["undecoded"], ways["released"]),
    }
    if not options.no_workers:
        speeds = [[speed(dataset, workers, options.samples) for workers in (1, 2)] for _ in range(options.turns)]
        result["samples_per_s_of_one_worker"] = round(statistics.median(one for one, _ in speeds), 1)
        result |= ratios("two_workers_over_one", [two for _, two in speeds], [one for one, _ in speeds])
    return result


def ratios(name: str, values: list[float], others: list[float]) -> dict[str, float]:
    """Return the median, the smallest and the largest ratio of a turn."""
    found = [value / other for value, other in zip(values, others, strict=True)]
    return {
        name: round(statistics.median(found), 3),
        f"{name}_min": round(min(found), 3),
        f"{name}_max": round(max(found), 3),
    }


def draws_of(dataset: PairDataset, epoch: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield the first draws of an epoch, real and fake in turn, in the order of training."""
    sampler = BalancedSampler(dataset.labels)
    sampler.set_epoch(epoch)
    draws = list(sampler)
    return itertools.islice(itertools.cycle(draws), count)


def jobs_of(dataset: PairDataset, draw: tuple[int, int]) -> dict[str, Callable[[], Any]]:
    """Return what is timed of one draw, by name."""
    used = rows_of(dataset, draw)
    table = dataset.rows.data
    images, masks = {}, {}
    for row in used:
        cells = dataset.rows[row]
        images[row] = decode_image(cells["image"], "a row")
        masks[row] = decode_mask(cells["mask"], "a row")
    first, last = images[used[0]], images[used[-1]]

    def floor() -> None:
        for number, row in enumerate(used):
            data = table.column("image")[row]["bytes"].as_py()
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
            if number == 0 or row == used[-1]:
                cv2.resize(image, (IMAGE_SIZE, IMAGE_SIZE))
        if len(used) == 1:
            cv2.resize(first, (IMAGE_SIZE, IMAGE_SIZE))

    def undecoded() -> None:
        decoders = pairs._decode_image, pairs._decode_mask
        pairs._decode_image, pairs._decode_mask = lambda cells, row: images[row], lambda cells, row: masks[row]
        try:
            dataset[draw]
        finally:
            pairs._decode_image, pairs._decode_mask = decoders

    rng = np.random.default_rng(draw)
    return {
        "sample": lambda: dataset[draw],
        "floor": floor,
        "undecoded": undecoded,
        "released": lambda: released_transforms(first, last, masks[used[0]], rng),
    }


def rows_of(dataset: PairDataset, draw: tuple[int, int]) -> list[int]:
    """Return the rows whose images a sample decodes, the query's first."""
    with mock.patch.object(pairs, "_decode_image", wraps=pairs._decode_image) as decode:
        dataset[draw]
    return [call.args[1] for call in decode.call_args_list]


def speed(dataset: PairDataset, workers: int, samples: int) -> float:
    """Return the samples per second of a data loader, without the start of its workers."""
    batch_size, first = 4, 2 * workers  # what is ready before the clock starts
    draws = list(draws_of(dataset, 0, 2 * samples + first * batch_size))
    batches = iter(DataLoader(dataset, batch_size, sampler=draws, num_workers=workers, collate_fn=collate))
    for _ in range(first):
        next(batches)
    start = time.perf_counter()
    count = sum(len(batch["labels"]) for batch in batches)
    return count / (time.perf_counter() - start)


# ----------------------------------------------------------------------------------------- what the released code does


def released_transforms(image: np.ndarray, key: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> None:
    """Do what the worker of the released code does with decoded images.

    Images are uint8 RGB (height, width, 3), the mask uint8 (height, width). Its changes of colour are those of this
    package, which are faster than its library's; the comparison is in its favour.
    """
    if rng.random() < 0.5:
        image, key, mask = (cv2.flip(values, 1) for values in (image, key, mask))
    mask = cv2.threshold(mask, 40, 255, cv2.THRESH_BINARY)[1]
    mask = cv2.resize(mask, (IMAGE_SIZE, IMAGE_SIZE)).astype(np.float32) / 255
    views = []
    for one in (image, key):
        view = released_view(one, rng).astype(np.float32)
        views.append(np.ascontiguousarray(((view / 255 - 0.5) / 0.5).transpose(2, 0, 1)))
    if rng.random() < 0.5:
        for view in views:
            total = view.sum(axis=0)
            for channel, kernel in enumerate(SRM_KERNELS):
                view[channel] += cv2.filter2D(total, -1, kernel, borderType=cv2.BORDER_CONSTANT)
    tile = IMAGE_SIZE // 3
    order = rng.permutation(9) if rng.random() < 0.75 else np.arange(9)
    for values in (views[0], mask[None]):
        shuffled = values.copy()
        for place, patch in enumerate(order):
            (row, column), (from_row, from_column) = divmod(place, 3), divmod(int(patch), 3)
            shuffled[:, row * tile : (row + 1) * tile, column * tile : (column + 1) * tile] = values[
                :, from_row * tile : (from_row + 1) * tile, from_column * tile : (from_column + 1) * tile
            ]
    cv2.resize(mask, (10, 10))


def released_view(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Augment one view as the released code does: each change makes a new image, at the size that it then has."""
    height, width = image.shape[:2]
    if rng.random() < 0.5:
        rotation = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-30, 30), 1.0)
        image = cv2.warpAffine(image, rotation, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    if rng.random() < 0.1:
        top, left = rng.integers(0, height - 25), rng.integers(0, width - 25)
        image = image.copy()
        image[top : top + 25, left : left + 25] = 0
    if rng.random() < 0.5:
        area, ratio = rng.uniform(0.5, 1.0) * height * width, np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        across, down = min(width, round(np.sqrt(area * ratio))), min(height, round(np.sqrt(area / ratio)))
        left, top = rng.integers(0, width - across + 1), rng.integers(0, height - down + 1)
        image = cv2.resize(image[top : top + down, left : left + across], (256, 256))
    image = cv2.resize(image, (IMAGE_SIZE, IMAGE_SIZE))
    if rng.random() < 0.5:
        image = cv2.flip(image, 1)
    if rng.random() < 0.1:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if rng.random() < 0.1:
        noise = rng.normal(0.0, np.sqrt(rng.uniform(10.0, 50.0)), image.shape)
        image = (image + noise).clip(0, 255).astype(np.uint8)
    if rng.random() < 0.7:
        draws = (augment._draw_brightness_and_contrast, augment._draw_main_colors, augment._draw_hue_and_saturation)
        image = draws[rng.integers(3)](rng)(image)
    if rng.random() < 0.05:
        image = cv2.GaussianBlur(image, (3, 3), 0)
    if rng.random() < 0.5:
        image = cv2.flip(image, 1)
    return image


if __name__ == "__main__":
    main()
