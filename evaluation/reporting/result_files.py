"""The files of an evaluation: what they are called, how they take their places, and which must go when others come."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors_dcl import InputError

#: In every folder of results; the metrics come last, so that where they are the others are, too.
RESULT_FILES = ("predictions.parquet", "run.json", "metrics.json")
ROBUSTNESS_FILES = ("robustness.json", "robustness.csv", "robustness.md", "robustness.png")
TABLE_FILES = ("table.json", "table.csv", "table.md")
DIFFERENCES = "differences.json"
REPORT = "report.html"
PICTURES = "pictures"


@contextlib.contextmanager
def complete_files(folder: Path, names: Sequence[str]) -> Iterator[dict[str, Path]]:
    """Let files be written, which take their places once all are complete.

    Args:
        folder: where they go; made if it is not there.
        names: what they are called.

    Yields:
        Of each name, the path to write to. One that is not written to takes no place.

    Raises:
        InputError: if one cannot be written; those that were there before are then as they were.
    """
    partial = {name: folder / f".{name}.partial" for name in names}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in partial.values():
            path.unlink(missing_ok=True)  # of a run that was killed
        yield partial
        for name, path in partial.items():
            if path.exists():
                os.replace(path, folder / name)
    except OSError as error:
        raise InputError(f"nothing can be written to {folder} ({error}): choose another --output_dir.") from error
    finally:
        if folder.is_dir():
            for path in partial.values():
                path.unlink(missing_ok=True)


def remove_what_is_of_another_run(folder: Path, run: Mapping[str, Any]) -> None:
    """Remove what stands beside new results and was made from others: it would be taken for theirs.

    A robustness of the same weights on the same rows stays: it is expensive, and holds of these results, too.

    Args:
        folder: where the new results are.
        run: the content of their `run.json`.

    Raises:
        InputError: if something cannot be removed.
    """
    try:
        (folder / DIFFERENCES).unlink(missing_ok=True)
        if (folder / REPORT).exists():
            (folder / REPORT).unlink()
            remove_pictures(folder / PICTURES)
            with contextlib.suppress(OSError):  # it is not there, or holds something else
                (folder / PICTURES).rmdir()
        if not _is_robustness_of(folder / ROBUSTNESS_FILES[0], run):
            for name in ROBUSTNESS_FILES:
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"what another run left in {folder} cannot be removed ({error}): choose another --output_dir."
        ) from error


def remove_pictures(folder: Path) -> None:
    """Remove the pictures of a report; no other file."""
    for path in folder.glob("[0-9]*_*.webp"):
        path.unlink()


def _is_robustness_of(path: Path, run: Mapping[str, Any]) -> bool:
    try:
        robustness = json.loads(path.read_text(encoding="utf-8"))
        return all(is_of_run(robustness, run, name) for name in robustness["datasets"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or one that nobody can read
        return False


def is_of_run(robustness: Mapping[str, Any], run: Mapping[str, Any], name: str) -> bool:
    """Whether the robustness on a data set is that of the weights and the rows of a run, not of another.

    Args:
        robustness: the content of `robustness.json`.
        run: the content of `run.json`.
        name: of the data set.
    """
    rows = run.get("datasets", {}).get(name, {}).get("fingerprint")
    same = robustness["datasets"][name].get("fingerprint") == rows
    return same and robustness.get("revision") == run.get("revision")


def files_of_results(folder: Path) -> list[Path]:
    """Return every single file that an evaluation writes into a folder of results, or may remove there."""
    return [folder / name for name in (*RESULT_FILES, *ROBUSTNESS_FILES, DIFFERENCES, REPORT)]
