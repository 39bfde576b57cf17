"""Count forged cells by both mask rules: `python benchmarks/forged_cells.py --data data/demo`.

The default threshold of the rule "area" is the round number with which it marks about as many cells as the released
code's rule at .01. Both are counted on random ellipses and on the masks of each method of a prepared split.
"""

import argparse
import json
from collections.abc import Sequence

import cv2
import numpy as np
import torch

from dcl_face_forgery.prepared.cells import cell_masks
from dcl_face_forgery.prepared.dataset import decode_mask, load_prepared
from dcl_face_forgery.prepared.names import FAKE

SIZE, CELLS = 299, (10, 10)
RELEASED_THRESHOLD = 0.01
THRESHOLDS = (0.5, 0.45, 0.4, 0.3, 0.1, 0.01)


def main() -> None:
    """Parse the command line, count, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="folder of a prepared data set with masks")
    parser.add_argument("--split", default="train")
    parser.add_argument("--masks", type=int, default=500, help="ellipses, and the first masks of each method")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    result = {"ellipses": count(ellipses(options.masks))}
    dataset = load_prepared(options.data, options.split)
    methods = np.array(dataset["method"])
    fakes = np.array(dataset["label"]) == FAKE
    for method in sorted(set(methods[fakes])):
        chosen = np.flatnonzero(fakes & (methods == method))[: options.masks]
        found = (decode_mask(cell, "a row") for cell in dataset.select(chosen)["mask"])
        masks = [cv2.resize(mask, (SIZE, SIZE)) for mask in found if mask is not None]
        if masks:
            result[method] = count(masks)
    if options.json:
        print(json.dumps(result))
        return
    print("| | released | " + " | ".join(f"area {threshold}" for threshold in THRESHOLDS) + " |")
    print("|---" * (len(THRESHOLDS) + 2) + "|")
    for name, counts in result.items():
        print(f"| {name} | " + " | ".join(map(str, counts.values())) + " |")


def ellipses(count: int) -> list[np.ndarray]:
    """Draw filled ellipses at random, uint8 (299, 299), always the same ones."""
    rng, masks = np.random.default_rng(0), []
    for _ in range(count):
        mask = np.zeros((SIZE, SIZE), np.uint8)
        centre, axes, angle = rng.uniform(90, 210, 2), rng.uniform(30, 100, 2), rng.uniform(0, 180)
        cv2.ellipse(mask, [int(at) for at in centre], [int(axis) for axis in axes], angle, 0, 360, 255, -1)
        masks.append(mask)
    return masks


def count(masks: Sequence[np.ndarray]) -> dict[str, float]:
    """Return the mean number of forged cells of a mask by each rule and threshold."""
    stacked = torch.from_numpy(np.stack(masks))
    released = cell_masks(stacked, CELLS, "released") > RELEASED_THRESHOLD
    shares = cell_masks(stacked, CELLS)
    counts = {"released": released} | {f"area {threshold}": shares > threshold for threshold in THRESHOLDS}
    return {name: round(float(forged.sum() / len(stacked)), 1) for name, forged in counts.items()}


if __name__ == "__main__":
    main()
