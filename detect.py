"""Judge the faces of pictures and videos: whether they are called forged, how sure that is, and why.

python detect.py photograph.jpg interview.mp4
python detect.py holiday/ --json results.jsonl --csv results.csv --annotate drawn/
"""

import argparse
import csv
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from dcl.errors_dcl import InputError, reason, report_input_errors

if TYPE_CHECKING:
    from dcl.pipeline_dcl import FaceForgeryDetectionPipeline

EXIT_CODES = """exit status:
  0    everything was read; what was not judged says why
  1    nothing could be done: an argument, the checkpoint or an output cannot be used
  2    the command line is wrong
  3    some files could not be read; the others were judged
  130  interrupted; with --json FILE the same command goes on

--json FILE holds a JSON object a line: first what the results were made with, then one for each file. Given again, the
command judges the files that have no line yet. Standard output (-) has the lines of the files only.
"""
_LONGEST_NAME = 255  # bytes that file systems allow
_COLUMNS = (
    *("name", "kind", "number", "verdict", "p_fake", "reason", "threshold", "operating_point"),
    *("left", "top", "right", "bottom", "judged", "seen", "highest_at", "sentence"),
)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="dcl-detect",
        description=__doc__.splitlines()[0],
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", metavar="FILE_OR_FOLDER", help="pictures, videos, or folders of them")
    parser.add_argument(
        "--model", default="runs/demo", help="folder of a checkpoint, or its id on the Hub (default: runs/demo)"
    )
    parser.add_argument("--json", metavar="FILE", help="where the results go as JSON lines; - is standard output")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="where a table goes, a row a face or person")
    parser.add_argument(
        "--annotate",
        type=Path,
        metavar="OUT",
        help="folder for the pictures with what was found drawn in; of videos"
        " the most suspicious frame of each person",
    )
    parser.add_argument(
        "--evidence", type=float, default=0.4, help="opacity of the evidence drawn by --annotate (default: 0.4)"
    )
    parser.add_argument(
        "--operating_point",
        choices=("eer", "fpr_0.05", "fpr_0.01"),
        help="which of the checkpoint's thresholds decides (default: eer, or 0.5 where it has none)",
    )
    parser.add_argument("--num_frames", type=int, default=32, help="frames of a video, evenly spaced (default: 32)")
    parser.add_argument("--batch_size", type=int, help="faces at a time (default: 16, on a CPU 4)")
    parser.add_argument("--backend", choices=("torch", "onnx"), default="torch", help="what runs the checkpoint")
    parser.add_argument("--device", help="such as cpu, cuda:1 or mps (default: the fastest there is)")
    parser.add_argument(
        "--no_abstain", action="store_true", help="give a number also where the checkpoint would rather not"
    )
    parser.add_argument("--largest_only", action="store_true", help="look at the largest face of each picture only")
    return parser


@report_input_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: its arguments; those of the process if None.
    """
    arguments = make_parser().parse_args(argv)
    if not 0 <= arguments.evidence <= 1:
        raise InputError(f"--evidence is {arguments.evidence:g}: choose it in [0, 1].")
    try:
        files, roots = find_inputs(arguments.files)
        check_outputs(arguments, roots)
    except OSError as error:  # a name that is too long, or lies where nothing may be looked up
        raise InputError(
            f"{error.filename} cannot be reached ({reason(error)}): check its path and its permissions."
        ) from error
    # Imported here: --help and wrong names need no torch.
    from dcl.pipeline_dcl import FaceForgeryDetectionPipeline

    pipe = FaceForgeryDetectionPipeline.from_pretrained(
        arguments.model,
        arguments.backend,
        arguments.device,
        num_frames=arguments.num_frames,
        batch_size=arguments.batch_size,
        operating_point=arguments.operating_point,
        abstain=not arguments.no_abstain,
        largest_only=arguments.largest_only,
    )
    try:
        failed = detect(pipe, files, roots, arguments)
    except KeyboardInterrupt:
        if arguments.json not in (None, "-"):
            print(f"interrupted: the same command goes on, what is done is in {arguments.json}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    if failed:
        print(f"{failed} of {len(files)} files could not be read.", file=sys.stderr)
        sys.exit(3)


def find_inputs(names: Sequence[str]) -> tuple[list[str], dict[str, Path]]:
    """Return the files that the arguments name, each once, and the folder to which the drawing of each is relative.

    Raises:
        InputError: if a name is of nothing, or a folder holds nothing to judge.
    """
    roots: dict[str, Path] = {}
    for name in names:
        path = Path(name)
        if not name:  # to a Path, the current folder
            raise InputError("one of the names of files and folders is empty: leave it out.")
        if path.is_dir():
            from dcl.pipeline_dcl import find_files  # imports torch: only where it is needed

            for file in find_files(path):
                roots.setdefault(str(file), path)
        elif path.is_file():
            roots.setdefault(str(path), path.parent)
        else:
            raise InputError(f"there is no file and no folder {name}: check its path.")
    return list(roots), roots


def check_outputs(arguments: argparse.Namespace, roots: dict[str, Path]) -> None:
    """Raise an `InputError` if an output would overwrite an input, or be judged by the next run."""
    outputs = [arguments.csv, None if arguments.json in (None, "-") else Path(arguments.json)]
    for path in outputs:
        if path is not None and path.exists() and any(path.samefile(name) for name in roots):
            raise InputError(f"{path} would be overwritten by the results: choose another file for them.")
        if path is not None and not path.parent.is_dir():
            raise InputError(f"there is no folder {path.parent} for {path.name}: make it.")
    if outputs[0] is not None and outputs[1] is not None and outputs[0].resolve() == outputs[1].resolve():
        raise InputError(f"--csv and --json are both {outputs[0]}: choose two files.")
    if arguments.annotate is not None:
        for name in arguments.files:
            if Path(name).is_dir() and arguments.annotate.resolve().is_relative_to(Path(name).resolve()):
                raise InputError(
                    f"the drawings in {arguments.annotate} would lie in {name}, among what is judged: choose a folder "
                    "outside of it."
                )
        targets: dict[Path, str] = {}
        for name, root in roots.items():
            other = targets.setdefault(Path(name).relative_to(root), name)
            if other != name:
                raise InputError(
                    f"the drawings of {other} and {name} would have one name: give one --annotate folder to each."
                )


def detect(
    pipe: "FaceForgeryDetectionPipeline", files: list[str], roots: dict[str, Path], arguments: argparse.Namespace
) -> int:
    """Judge files, write what was asked for, and return how many could not be read, now or before.

    Args:
        pipe: judges them.
        files: their paths.
        roots: the folder to which the drawing of each is relative.
        arguments: of the command line.
    """
    from tqdm.auto import tqdm

    from dcl.pipeline_dcl import result_of
    from dcl.verdicts_dcl import to_json

    lines = JsonLines(arguments.json, record_of(pipe, arguments)) if arguments.json is not None else None
    done = {} if lines is None else {name: failed for name, failed in lines.done.items() if name in roots}
    left = [name for name in files if name not in done]
    if done:
        print(f"{len(done)} of {len(files)} files were judged before: {arguments.json}", file=sys.stderr)
    failed = sum(done.values())
    with Table(arguments.csv) as table, tqdm(total=len(files), initial=len(done), unit=" files") as progress:
        if lines is not None and arguments.csv is not None:
            for result in lines.results():
                table.add(result)
        for event in pipe.stream(left) if left else ():
            if event["event"] == "progress":
                of = f"{_shown(Path(event['name']).name)}: {event['done']} of {event['total']} frames"
                progress.set_postfix_str(of, refresh=event["done"] % 10 == 0)
                continue
            result = result_of(event)
            name = result["name"]
            if arguments.annotate is not None and result["kind"] != "error":
                target = arguments.annotate / Path(name).relative_to(roots[name])
                draw(pipe, result, target, arguments.evidence)
            plain = to_json(result)
            table.add(plain)
            if lines is not None:
                lines.add(plain)
            if lines is None or result["kind"] == "error":
                where = sys.stderr if result["kind"] == "error" else sys.stdout
                sentence = result["sentence"] if name in result["sentence"] else f"{name}: {result['sentence']}"
                tqdm.write(_shown(sentence), file=where)
            failed += result["kind"] == "error"
            progress.set_postfix_str("", refresh=False)
            progress.update()
    if lines is not None:
        lines.close()
    return failed


def record_of(pipe: "FaceForgeryDetectionPipeline", arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the results depend on, beside the files: the first line of a file of results."""
    from dataclasses import asdict

    options = asdict(pipe.options)
    del options["batch_size"]  # changes the last digits only
    return {
        "kind": "run",
        "model": arguments.model,
        "fingerprint": fingerprint(pipe),
        "backend": arguments.backend,
        "options": options,
    }


def fingerprint(pipe: "FaceForgeryDetectionPipeline") -> str:
    """Return a hash of all that a checkpoint brings: weights or graph, configuration, and how faces are cut."""
    import torch

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


class JsonLines:
    """A file of results that grows by whole lines, or standard output.

    What a killed run left is kept: a last line without an end is dropped, the others are not done again.

    Args:
        name: of the file; "-" is standard output.
        record: what the results depend on.

    Attributes:
        done: by the names of files that have a line, whether they could not be read.

    Raises:
        InputError: if the file holds something else, or results that were made with something else.
    """

    def __init__(self, name: str, record: dict[str, Any]):
        self.done: dict[str, bool] = {}
        self._path = None if name == "-" else Path(name)
        if self._path is None:
            self._file: TextIO = sys.stdout
            return
        try:
            there = self._path.exists() and self._path.stat().st_size > 0
            if there:
                self._take_up(record)
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{name} cannot be written ({reason(error)}): choose another file.") from error
        if not self._path.stat().st_size:
            self.add(record)

    def _take_up(self, record: dict[str, Any]) -> None:
        whole = 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    break
                try:
                    entry = json.loads(line)
                    kind, name = entry["kind"], entry.get("name")
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise InputError(
                        f"line {number + 1} of {self._path} is no result of this command: choose another file."
                    ) from error
                if number == 0 and (kind != "run" or _decisive(entry) != _decisive(json.loads(json.dumps(record)))):
                    raise InputError(self._difference(entry, record))
                if number > 0:
                    self.done[str(name)] = kind == "error"
                whole += len(line)
        os.truncate(self._path, whole)

    def _difference(self, before: dict[str, Any], record: dict[str, Any]) -> str:
        if before.get("kind") != "run":
            return f"{self._path} is there and holds no results of this command: choose another file."
        then, now = _decisive(before), _decisive(record)
        names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
        what = ", ".join(f"{name} {then.get(name)!r} and not {now.get(name)!r}" for name in names)
        return f"the results in {self._path} were made with {what}: choose another file."

    def results(self) -> Iterator[dict[str, Any]]:
        """Read the results that were there before."""
        if self._path is not None:
            with self._path.open(encoding="utf-8") as file:
                next(file)
                for line in file:
                    yield json.loads(line)

    def add(self, result: dict[str, Any]) -> None:
        """Write a result as one line."""
        self._file.write(json.dumps(result, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._path is not None:
            self._file.close()


def _decisive(record: dict[str, Any]) -> dict[str, Any]:
    """Return of a record what results depend on: not by which path the checkpoint was found."""
    return {key: record.get(key) for key in ("fingerprint", "backend")} | dict(record.get("options") or {})


def _shown(text: str) -> str:
    """Return a text as a terminal can show it, whatever a file in it is called."""
    return text if text.isprintable() else ascii(text)[1:-1]


class Table:
    """A CSV file of results, a row a face or person, or one for a file without any.

    Args:
        path: of the file, written anew; None: nothing is written.
    """

    def __init__(self, path: Path | None):
        self._file = None
        if path is not None:
            try:
                self._file = path.open("w", newline="", encoding="utf-8", errors="backslashreplace")
            except OSError as error:
                raise InputError(f"{path} cannot be written ({reason(error)}): choose another file.") from error
            self._rows = csv.DictWriter(self._file, _COLUMNS, restval="")
            self._rows.writeheader()

    def __enter__(self) -> "Table":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, result: dict[str, Any]) -> None:
        """Write the rows of a result."""
        if self._file is not None:
            self._rows.writerows(rows_of(result))


def rows_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a table that say what a result says.

    Args:
        result: as `verdicts_dcl.to_json` gives it.
    """
    whole = {key: result.get(key) for key in ("name", "kind", "verdict", "sentence", "threshold", "operating_point")}
    for key in ("name", "sentence"):  # that of an error may begin with the name
        if (whole[key] or "").startswith(tuple("=+-@\t\r")):  # spreadsheets would run it
            whole[key] = f"'{whole[key]}"
    rows = []
    for member in [*result.get("faces", ()), *result.get("people", ())]:
        row = {key: member.get(key) for key in ("verdict", "p_fake", "reason", "judged", "seen", "sentence")}
        row["number"] = member.get("face", member.get("person"))
        row |= dict(zip(("left", "top", "right", "bottom"), member.get("box", ()), strict=False))
        if member.get("moments"):
            row["highest_at"] = member["moments"][0]["time"]
        rows.append(row)
    return [{**whole, **row} for row in rows or [{}]]


def draw(pipe: "FaceForgeryDetectionPipeline", result: dict[str, Any], target: Path, evidence: float) -> None:
    """Draw what was found in a picture, or in the most suspicious frame of each person of a video.

    Args:
        pipe: reads frames again.
        result: of a file.
        target: the path of the drawing, to which an ending is added.
        evidence: opacity of the evidence.

    Raises:
        InputError: if nothing can be written there.
    """
    from dcl.drawing_dcl import annotate
    from dcl.images_dcl import read_picture

    if result["kind"] == "image":
        picture = read_picture(result["name"], pipe.options.most_pixels)
        _save(annotate(picture, result["faces"], evidence), drawing_of(target, ".faces.png"))
        return
    wanted: dict[int, int] = {}
    for person in result["people"]:
        if person["moments"]:
            wanted[person["person"]] = person["moments"][0]["frame"]
    images = dict(pipe.read_frames(result["name"], set(wanted.values()))) if wanted else {}
    for number, frame in wanted.items():
        faces = [
            face | {"person": person["person"]}
            for person in result["people"]
            for face in person["frames"]
            if face["frame"] == frame
        ]
        drawn = annotate(images[frame], faces, evidence)
        _save(drawn, drawing_of(target, f".person{number}.frame{frame}.png"))


def drawing_of(target: Path, ending: str) -> Path:
    """Return the path of a drawing: the target's with an ending, cut where file systems would refuse so long a name.

    Args:
        target: the path to which the ending is added.
        ending: of ASCII characters.
    """
    name = os.fsencode(target.name)
    if len(name) + len(ending) <= _LONGEST_NAME:
        return target.with_name(target.name + ending)
    digest = hashlib.sha256(name).hexdigest()[:12]  # tells names apart that begin alike
    start = name[: _LONGEST_NAME - len(ending) - len(digest) - 1].decode(errors="ignore")
    return target.with_name(f"{start}~{digest}{ending}")


def _save(image: Any, path: Path) -> None:
    """Write pixels and nothing else, whole or not at all."""
    from PIL import Image

    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".partial", delete=False) as file:
            partial = Path(file.name)
            Image.fromarray(image).save(file, "PNG")
        partial.chmod(0o644)
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({reason(error)}): choose another --annotate folder.") from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
