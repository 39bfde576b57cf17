"""The demo data set: forgeries made from the ORL photographs; its splits share no people."""

from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..prepared.blending import METHODS, random_generator
from ..prepared.names import DEFAULT_ENCODING
from .assets import fetch, fetch_detector
from .failures import Failures
from .forging import forge_families
from .photographs import MARGIN, find_photographs, real_rows
from .shards import FORMAT, PreparedFolder, Report

#: People of each split, and how many forgeries of each method are made from each of their photographs.
SPLITS = {"train": (22, 5), "validation": (10, 1), "test": (8, 1)}


def prepare_demo(
    output: str | Path, seed: int = 0, size: int = 112, overwrite: bool = False, encoding: str = DEFAULT_ENCODING
) -> dict[str, Report]:
    """Prepare the demo data set: 400 photographs of 40 people, and forgeries of them by every method.

    Existing splits with the same settings are kept. The seed draws the people of each split and the forgeries; the
    same seed gives the same files, byte for byte. Crops have `size` pixels per side. Returns a report for each split.
    Raises `InputError` if the photographs or the face detector are not available, or `output` contains another data
    set.
    """
    settings = {
        **{"demo": SPLITS, "methods": list(METHODS), "margin": MARGIN, "seed": seed, "size": size},
        "encoding": encoding,
        "format": FORMAT,
    }
    folder = PreparedFolder(output, dict.fromkeys(SPLITS, settings), overwrite=overwrite)
    reports = {split: report for split in SPLITS if (report := folder.done(split))}
    if len(reports) < len(SPLITS):
        failures = Failures()
        reals = _cut_by_person(size, encoding, failures)
        people = random_generator(seed, "people").permutation(sorted(reals))
        start = 0
        for split, (number, variants) in SPLITS.items():
            chosen = [str(person) for person in people[start : start + number]]
            start += number
            if split not in reports:
                rows, report = [row for person in chosen for row in reals[person]], Report(failures=failures)
                families = forge_families(rows, list(METHODS), variants, seed, report.missing, encoding)
                reports[split] = folder.write(split, tqdm(families, split, total=number, unit="person"), report)
    return reports


def _cut_by_person(size: int, encoding: str, failures: Failures) -> dict[str, list[dict[str, Any]]]:
    photographs = find_photographs(fetch("orl"))
    crop = {"kind": "box", "margin": MARGIN, "size": size}
    people: dict[str, list[dict[str, Any]]] = {}
    for row in real_rows(tqdm(photographs, "faces", unit="photo"), fetch_detector(), crop, "orl", failures, encoding):
        people.setdefault(row["source_id"], []).append(row)
    return people
