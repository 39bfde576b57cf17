"""The files of an evaluation: their names, atomic replacement, and removal of outdated files."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors_dcl import InputError

#: Files of every results folder; the metrics come last, so if they exist, all do.
RESULT_FILES = ("predictions.parquet", "run.json", "metrics.json")
ROBUSTNESS_FILES = ("robustness.json", "robustness.csv", "robustness.md", "robustness.png")
TABLE_FILES = ("table.json", "table.csv", "table.md")
DIFFERENCES = "differences.json"
REPORT = "report.html"
PICTURES = "pictures"


@contextlib.contextmanager
def complete_files(folder: Path, names: Sequence[str]) -> Iterator[dict[str, Path]]:
    """Write files that replace earlier ones together, once all are complete.

    Args:
        folder: folder for the files; created if missing.
        names: file names.

    Yields:
        The path to write to for each name. A file that is not written replaces nothing.

    Raises:
        InputError: if a file cannot be written; earlier files then remain.
    """
    partial = {name: folder / f".{name}.partial" for name in names}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in partial.values():
            path.unlink(missing_ok=True)  # left by a killed run
        yield partial
        for name, path in partial.items():
            if path.exists():
                os.replace(path, folder / name)
    except OSError as error:
        raise InputError(
            f"Output folder {folder}: cannot be written ({error}). Choose another --output_dir."
        ) from error
    finally:
        if folder.is_dir():
            for path in partial.values():
                path.unlink(missing_ok=True)


def remove_what_is_of_another_run(folder: Path, run: Mapping[str, Any]) -> None:
    """Remove files derived from earlier results, which do not match the new ones in the same folder.

    Robustness results for the same weights and rows remain: they are still valid, and expensive to repeat.

    Args:
        folder: folder of the new results.
        run: the content of their `run.json`.

    Raises:
        InputError: if a file cannot be removed.
    """
    try:
        (folder / DIFFERENCES).unlink(missing_ok=True)
        if (folder / REPORT).exists():
            (folder / REPORT).unlink()
            remove_pictures(folder / PICTURES)
            with contextlib.suppress(OSError):  # missing, or has other files
                (folder / PICTURES).rmdir()
        if not _is_robustness_of(folder / ROBUSTNESS_FILES[0], run):
            for name in ROBUSTNESS_FILES:
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"Output folder {folder}: outdated files cannot be removed ({error}). Choose another --output_dir."
        ) from error


def remove_pictures(folder: Path) -> None:
    """Remove the pictures of a report and no other files."""
    for path in folder.glob("[0-9]*_*.webp"):
        path.unlink()


def _is_robustness_of(path: Path, run: Mapping[str, Any]) -> bool:
    try:
        robustness = json.loads(path.read_text(encoding="utf-8"))
        return all(is_of_run(robustness, run, name) for name in robustness["datasets"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing or invalid
        return False


def is_of_run(robustness: Mapping[str, Any], run: Mapping[str, Any], name: str) -> bool:
    """Whether the robustness results of a data set are for the weights and rows of this run.

    Args:
        robustness: the content of `robustness.json`.
        run: the content of `run.json`.
        name: name of the data set.
    """
    rows = run.get("datasets", {}).get(name, {}).get("fingerprint")
    same = robustness["datasets"][name].get("fingerprint") == rows
    return same and robustness.get("revision") == run.get("revision")


def files_of_results(folder: Path) -> list[Path]:
    """Return all files that an evaluation may write to, or remove from, a results folder."""
    return [folder / name for name in (*RESULT_FILES, *ROBUSTNESS_FILES, DIFFERENCES, REPORT)]
