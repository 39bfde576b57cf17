"""Measure size and time of face crop encodings: `python benchmarks/encodings.py --data data/demo --split test`.

The images of a prepared split are decoded, encoded with each option of `dcl-prepare --encoding`, and decoded again as
in training. The encodings alternate for each image. To measure the effect on AUC, prepare, train and evaluate the demo
with an encoding.
"""

import argparse
import json
import statistics
import time

from tqdm import tqdm

from dcl_face_forgery.prepared.dataset import decode_image, encode_image, load_prepared
from dcl_face_forgery.prepared.names import ENCODINGS


def main() -> None:
    """Parse the command line, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="folder of a losslessly encoded data set")
    parser.add_argument("--split", default="test")
    parser.add_argument("--images", type=int, default=200, help="number of images, evenly spaced over the split")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    result = measure(options)
    if options.json:
        print(json.dumps(result))
        return
    print("| Encoding | KB per face | encode (ms) | decode (ms) |\n|---|---|---|---|")
    for name, costs in result.items():
        print(f"| {name} | {costs['kilobytes']:.1f} | {costs['encode_ms']:.2f} | {costs['decode_ms']:.2f} |")


def measure(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the mean size and the median times per face of each encoding."""
    dataset = load_prepared(options.data, options.split)
    step = max(1, len(dataset) // options.images)
    cells = dataset.select(range(0, len(dataset), step))["image"]
    seconds: dict[str, dict[str, list[float]]] = {name: {"encode": [], "decode": []} for name in ENCODINGS}
    sizes: dict[str, list[int]] = {name: [] for name in ENCODINGS}
    for cell in tqdm(cells, unit="image", disable=options.json):
        image = decode_image(cell, "an image")
        for name in ENCODINGS:
            start = time.perf_counter()
            encoded = encode_image(image, name)
            middle = time.perf_counter()
            decode_image(encoded, "an image")
            seconds[name]["decode"].append(time.perf_counter() - middle)
            seconds[name]["encode"].append(middle - start)
            sizes[name].append(len(encoded["bytes"]))
    return {
        name: {
            "kilobytes": round(statistics.mean(sizes[name]) / 1e3, 2),
            **{f"{what}_ms": round(1e3 * statistics.median(times), 3) for what, times in seconds[name].items()},
        }
        for name in ENCODINGS
    }


if __name__ == "__main__":
    main()
