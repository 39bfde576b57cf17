"""What a detection run leaves: lines of JSON that a killed run goes on from, a table, and drawings."""

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

_LONGEST_NAME = 255  # bytes that file systems allow
_COLUMNS = (
    *("name", "kind", "number", "verdict", "p_fake", "reason", "threshold", "operating_point"),
    *("band_low", "band_high", "expected_fpr", "expected_fpr_low", "expected_fpr_high"),
    *("left", "top", "right", "bottom", "judged", "seen", "highest_at", "sentence", "notes"),
)


def record_of(pipe: FaceForgeryDetectionPipeline, model: str, backend: str) -> dict[str, Any]:
    """Return what the results depend on, beside the files: the first line of a file of results."""
    options = asdict(pipe.options)
    del options["batch_size"]  # changes the last digits only
    return {"kind": "run", "model": model, "fingerprint": fingerprint(pipe), "backend": backend, "options": options}


def fingerprint(pipe: FaceForgeryDetectionPipeline) -> str:
    """Return a hash of all that a checkpoint brings: weights or graph, configuration, and how faces are cut."""
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
    """A file that was judged cannot be read again."""


def stamp_of(name: str) -> dict[str, Any] | None:
    """Return by what it is told that a file is the same as before; None if it cannot be looked at."""
    try:
        found = os.stat(name)
    except (OSError, ValueError):
        return None
    return {"path": os.path.abspath(name), "bytes": found.st_size, "modified_ns": found.st_mtime_ns}


@contextmanager
def _writing(name: object) -> Iterator[None]:
    """Say in a sentence that results cannot be written."""
    try:
        yield
    except BrokenPipeError:  # of standard output: whoever read it has seen enough
        raise
    except OSError as error:
        raise InputError(
            f"{name} cannot be written ({reason(error)}): mend that, or choose another file; what is there stays."
        ) from error


class JsonLines:
    """A file of results that grows by whole lines, or standard output ("-").

    What a killed run left is kept: a last line without an end is dropped, the others are not done again, unless their
    file is one of those to judge, and has changed or could not be read. `done` has the absolute paths of the files to
    judge that have a line, each with its verdict. Raises `InputError` if the file holds something else, or results
    that were made with something else, or another run writes to it.
    """

    def __init__(self, name: str, record: dict[str, Any], files: Iterable[str]):
        self.done: dict[str, str] = {}
        self._files = {os.path.abspath(file) for file in files}
        self._name = name
        self._path = None if name == "-" else Path(name).resolve()  # of a link, what it leads to
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
                raise InputError(f"another run writes to {name}: wait for its end, or choose another file.") from None
            if self._path.exists() and self._path.stat().st_size > 0:
                self._take_up(json.loads(json.dumps(record)))
            self._file = self._path.open("a", encoding="utf-8")
        if not self._file.tell():
            self.add(record)

    def _take_up(self, record: dict[str, Any]) -> None:
        """Keep the lines that still hold, in a new file that takes the place of the old one."""
        with whole_file(self._path) as new, self._path.open("rb") as file, new.open("wb") as kept:
            for number, line in enumerate(file):
                if not line.endswith(b"\n") and (number or json.dumps(record).encode().startswith(line)):
                    break
                if self._holds(line, number, record):
                    kept.write(line)

    def _holds(self, line: bytes, number: int, record: dict[str, Any]) -> bool:
        """Whether a line is kept, which is not for a file to judge that has changed, or could not be read."""
        try:
            entry = json.loads(line)
            kind, stamp, verdict = entry["kind"], entry.get("file"), entry.get("verdict")
            path = None if stamp is None else str(stamp["path"])
            if number and kind != "error" and verdict not in VERDICTS:
                raise ValueError(f"an unknown verdict {verdict!r}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"line {number + 1} of {self._name} is no result of this command: choose another file."
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
            return f"{self._name} is there and holds no results of this command: choose another file."
        then, now = _decisive(before), _decisive(record)
        names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
        what = ", ".join(f"{name} {then.get(name)!r} and not {now.get(name)!r}" for name in names)
        return f"the results in {self._name} were made with {what}: choose another file."

    def results(self) -> Iterator[dict[str, Any]]:
        """Read the results that were there before; a pipe has none."""
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
    """Return of a record what results depend on: not by which path the checkpoint was found.

    Options that are None are left out: an older record may not have them.
    """
    options = record.get("options")
    found = {key: record.get(key) for key in ("fingerprint", "backend")} | (
        options if isinstance(options, dict) else {}
    )
    return {name: value for name, value in found.items() if value is not None}


class Table:
    """A CSV file of results, a row a face or person, or one for a file without any; without a path, there is none.

    Raises `InputError` if the file cannot be written, or is something else than such a table.
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
                        raise InputError(f"{path} is there and is no table of this command: choose another file.")
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
    """Return the rows of a table that say what a result, as `to_json` gives it, says."""
    whole = {key: result.get(key) for key in ("name", "kind", "verdict", "sentence", "threshold", "operating_point")}
    for key, found, name in (
        *(("band", f"band_{end}", end) for end in ("low", "high")),
        *(("expected_fpr", f"expected_fpr{end}", end[1:] or "value") for end in ("", "_low", "_high")),
    ):
        whole[found] = result.get(key, {}).get(name)
    for key in ("name", "sentence"):  # that of an error may begin with the name
        if (whole[key] or "").startswith(tuple("=+-@\t\r")):  # spreadsheets would run it
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
    """Write the annotated picture, or of a video the most telling frame of each person, to a path and an ending.

    Raises `UnreadableError` if the file cannot be read again, and `InputError` if nothing can be written there.
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
    """Return in one line how many files there are, and of which verdicts, or of the kind "error"."""
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
    """Return the path with an ending of a drawing, cut where file systems would refuse so long a name."""
    name = os.fsencode(target.name)
    if len(name) + len(ending) <= _LONGEST_NAME:
        return target.with_name(target.name + ending)
    digest = hashlib.sha256(name).hexdigest()[:12]  # tells names apart that begin alike
    start = name[: _LONGEST_NAME - len(ending) - len(digest) - 1].decode(errors="ignore")
    return target.with_name(f"{start}~{digest}{ending}")


def _save(image: Image.Image, path: Path) -> None:
    """Write pixels and nothing else, whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            image.save(partial, "PNG")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({reason(error)}): choose another --annotate folder.") from error
