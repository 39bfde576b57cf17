"""The output of a detection run: lines of JSON from which a killed run continues, a table, and drawings."""

import csv
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import filelock
import torch
from PIL import Image

from ..decision_dcl import ABSTAINED, VERDICTS
from ..drawing_dcl import telling_frames
from ..errors_dcl import InputError, reason, whole_file
from ..pipeline_dcl import FaceForgeryDetectionPipeline

_LONGEST_NAME = 255  # bytes in a file name
_COLUMNS = (
    *("name", "kind", "number", "verdict", "p_fake", "reason", "threshold", "operating_point"),
    *("band_low", "band_high", "expected_fpr", "expected_fpr_low", "expected_fpr_high"),
    *("left", "top", "right", "bottom", "judged", "seen", "highest_at", "sentence", "notes"),
)


def record_of(pipe: FaceForgeryDetectionPipeline, model: str, backend: str) -> dict[str, Any]:
    """Return the settings that affect the results, for the first line of a results file."""
    options = asdict(pipe.options)
    del options["batch_size"]  # affects only the last digits
    return {"kind": "run", "model": model, "fingerprint": fingerprint(pipe), "backend": backend, "options": options}


def fingerprint(pipe: FaceForgeryDetectionPipeline) -> str:
    """Return a hash of a checkpoint: weights or graph, configuration, and face crop."""
    digest = hashlib.sha256()
    if isinstance(pipe.model, torch.nn.Module):
        for name, tensor in pipe.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    else:
        digest.update(pipe.model.path.read_bytes())
    config = {key: getattr(pipe.model.config, key, None) for key in ("calibration", "familiarity")}
    processor = pipe.image_processor.to_dict()
    digest.update(json.dumps([config, processor], sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


class UnreadableError(InputError):
    """A file was analyzed but cannot be read again for its annotated picture."""


def stamp_of(name: str) -> dict[str, Any] | None:
    """Return path, size and time of a file, to detect changes; None if it cannot be accessed."""
    try:
        found = os.stat(name)
    except (OSError, ValueError):
        return None
    return {"path": os.path.abspath(name), "bytes": found.st_size, "modified_ns": found.st_mtime_ns}


@contextmanager
def _writing(name: object) -> Iterator[None]:
    """Turn errors of writing results into an `InputError`."""
    try:
        yield
    except BrokenPipeError:  # the reader closed standard output
        raise
    except OSError as error:
        raise InputError(
            f"{name} cannot be written ({reason(error)}). Fix this, or choose another file. Earlier results are kept."
        ) from error


class JsonLines:
    """A results file that grows by whole lines, or standard output ("-").

    The lines of a killed run are kept, except for an incomplete last line, and for input files that have changed or
    could not be read. `done` maps the absolute paths of input files with a line to their verdicts. Raises `InputError`
    if the file has other content or results with other settings, or if another run writes to it.
    """

    def __init__(self, name: str, record: dict[str, Any], files: Iterable[str]):
        self.done: dict[str, str] = {}
        self._files = {os.path.abspath(file) for file in files}
        self._name = name
        self._path = None if name == "-" else Path(name).resolve()  # resolve links
        self._lock = None
        if self._path is None:
            self._file: TextIO = sys.stdout
            return
        if self._path.exists() and not self._path.is_file():  # a pipe, or a device
            with _writing(name):
                self._file = self._path.open("w", encoding="utf-8")
            self.add(record)
            return
        self._lock = filelock.FileLock(self._path.with_name(f".{self._path.name}.lock"))
        with _writing(name):
            try:
                self._lock.acquire(timeout=0)
            except filelock.Timeout:
                raise InputError(
                    f"{name} is in use by another run. Wait until it ends, or choose another file."
                ) from None
            if self._path.exists() and self._path.stat().st_size > 0:
                self._take_up(json.loads(json.dumps(record)))
            self._file = self._path.open("a", encoding="utf-8")
        if not self._file.tell():
            self.add(record)

    def _take_up(self, record: dict[str, Any]) -> None:
        """Replace the file by one with its valid lines."""
        with whole_file(self._path) as new, self._path.open("rb") as file, new.open("wb") as kept:
            for number, line in enumerate(file):
                if not line.endswith(b"\n") and (number or json.dumps(record).encode().startswith(line)):
                    break
                if self._holds(line, number, record):
                    kept.write(line)

    def _holds(self, line: bytes, number: int, record: dict[str, Any]) -> bool:
        """Whether a line is valid: not if its input file has changed or could not be read."""
        try:
            entry = json.loads(line)
            kind, stamp, verdict = entry["kind"], entry.get("file"), entry.get("verdict")
            path = None if stamp is None else str(stamp["path"])
            if number and kind != "error" and verdict not in VERDICTS:
                raise ValueError(f"unknown verdict {verdict!r}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"Line {number + 1} of {self._name} is not a result of this command. Choose another file."
            ) from error
        if number == 0:
            if kind != "run" or _decisive(entry) != _decisive(record):
                raise InputError(self._difference(entry, record))
            return True
        if path is None or path in self._files:
            if kind == "error" or stamp is None or stamp != stamp_of(path):
                return False
            self.done[path] = verdict
        return True

    def _difference(self, before: dict[str, Any], record: dict[str, Any]) -> str:
        if before.get("kind") != "run":
            return f"{self._name} exists and does not hold results of this command. Choose another file."
        then, now = _decisive(before), _decisive(record)
        names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
        what = ", ".join(f"{name} was {then.get(name, 'unset')}, is {now.get(name, 'unset')}" for name in names)
        return f"The results in {self._name} were made with other settings ({what}). Choose another file."

    def results(self) -> Iterator[dict[str, Any]]:
        """Read the earlier results; a pipe has none."""
        if self._lock is not None:
            with self._path.open(encoding="utf-8") as file:
                next(file)
                for line in file:
                    yield json.loads(line)

    def add(self, result: dict[str, Any]) -> None:
        """Write a result as one line."""
        with _writing("standard output" if self._path is None else self._name):
            self._file.write(json.dumps(result, allow_nan=False) + "\n")
            self._file.flush()

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._path is not None:
            with _writing(self._name):
                self._file.close()
            if self._lock is not None:
                self._lock.release()


def _decisive(record: dict[str, Any]) -> dict[str, Any]:
    """Return the settings in a record that affect results; the path of the checkpoint does not.

    Options with the value None are omitted, since an older record may not have them.
    """
    options = record.get("options")
    found = {key: record.get(key) for key in ("fingerprint", "backend")} | (
        options if isinstance(options, dict) else {}
    )
    return {name: value for name, value in found.items() if value is not None}


class Table:
    """A CSV file of results, with one row per face or person, or one for a file without any; None writes no file.

    Raises `InputError` if the file cannot be written, or an existing file is not such a table.
    """

    def __init__(self, path: Path | None):
        self._path, self._file = path, None
        if path is None:
            return
        header = ",".join(_COLUMNS).encode()
        with _writing(path):
            if path.is_file():
                with path.open("rb") as file:
                    if (start := file.read(len(header))) and start != header:
                        raise InputError(f"{path} exists and is not a table of this command. Choose another file.")
            self._file = path.open("w", newline="", encoding="utf-8", errors="backslashreplace")
        self._rows = csv.DictWriter(self._file, _COLUMNS, restval="")
        self._rows.writeheader()

    def __enter__(self) -> "Table":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            with _writing(self._path):
                self._file.close()

    def add(self, result: dict[str, Any]) -> None:
        """Write the rows of a result."""
        if self._file is not None:
            with _writing(self._path):
                self._rows.writerows(rows_of(result))


def rows_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the table rows of a result in the form of `to_json`."""
    whole = {key: result.get(key) for key in ("name", "kind", "verdict", "sentence", "threshold", "operating_point")}
    for key, found, name in (
        *(("band", f"band_{end}", end) for end in ("low", "high")),
        *(("expected_fpr", f"expected_fpr{end}", end[1:] or "value") for end in ("", "_low", "_high")),
    ):
        whole[found] = result.get(key, {}).get(name)
    for key in ("name", "sentence"):  # the sentence of an error may begin with the name
        if (whole[key] or "").startswith(tuple("=+-@\t\r")):  # spreadsheets would run it as a formula
            whole[key] = f"'{whole[key]}"
    whole["notes"] = " ".join(result.get("notes", ()))
    rows = []
    for member in [*result.get("faces", ()), *result.get("people", ())]:
        row = {key: member.get(key) for key in ("verdict", "p_fake", "reason", "judged", "seen", "sentence")}
        row["number"] = member.get("face", member.get("person"))
        row |= dict(zip(("left", "top", "right", "bottom"), member.get("box", ()), strict=False))
        if member.get("moments"):
            row["highest_at"] = member["moments"][0]["time"]
        rows.append(row)
    return [{**whole, **row} for row in rows or [{}]]


def draw(pipe: FaceForgeryDetectionPipeline, result: dict[str, Any], target: Path, evidence: float) -> None:
    """Write the annotated picture, or for a video the most telling frame of each person, to a path plus an ending.

    Raises `UnreadableError` if the file cannot be read again, and `InputError` if the picture cannot be written.
    """
    if result["kind"] == "image":
        with _reading():
            drawn = pipe.annotate(result["name"], result, evidence=evidence)
        _save(drawn, drawing_of(target, ".faces.png"))
        return
    frames = {person["person"]: telling_frames(person)[0] for person in result["people"]}
    wanted = list(dict.fromkeys(frames.values()))
    with _reading():
        drawn = pipe.annotate(result["name"], result, frames=wanted, evidence=evidence)
    images = dict(zip(wanted, drawn, strict=True))
    for number, frame in frames.items():
        _save(images[frame], drawing_of(target, f".person{number}.frame{frame}.png"))


def counted(counts: Mapping[str, int]) -> str:
    """Return the number of files, and of each verdict and of errors, in one line."""
    number = sum(counts.values())
    words = {verdict: verdict.replace("_", " ") for verdict in VERDICTS}
    words |= {ABSTAINED: VERDICTS[ABSTAINED].lower(), "error": "unreadable"}
    said = [f"{counts[key]:,} {word}" for key, word in words.items() if counts.get(key)]
    return f"{number:,} file{'' if number == 1 else 's'}: {', '.join(said)}."


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise UnreadableError(str(error)) from error


def drawing_of(target: Path, ending: str) -> Path:
    """Return the path of an annotated picture, with a name shortened to the limit of file systems."""
    name = os.fsencode(target.name)
    if len(name) + len(ending) <= _LONGEST_NAME:
        return target.with_name(target.name + ending)
    digest = hashlib.sha256(name).hexdigest()[:12]  # distinguishes names with the same beginning
    start = name[: _LONGEST_NAME - len(ending) - len(digest) - 1].decode(errors="ignore")
    return target.with_name(f"{start}~{digest}{ending}")


def _save(image: Image.Image, path: Path) -> None:
    """Write a picture without metadata, completely or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            image.save(partial, "PNG")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({reason(error)}). Choose another --annotate folder.") from error
