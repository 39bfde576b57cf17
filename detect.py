"""Score the faces of pictures and videos: whether they are flagged as forged, how sure that is, and why.

python detect.py photograph.jpg interview.mp4
python detect.py holiday/ --json results.jsonl --csv results.csv --annotate drawn/
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from dcl_face_forgery.errors_dcl import InputError, at_least, reason, report_input_errors
from dcl_face_forgery.hub_dcl import DEFAULT_MODEL, find_dcl_checkpoint
from dcl_face_forgery.media_dcl import MOST_PIXELS

if TYPE_CHECKING:
    from dcl_face_forgery.pipeline_dcl import FaceForgeryDetectionPipeline

EXIT_CODES = """exit status:
  0    everything was read; what was not judged says why
  1    nothing could be done: an argument, the checkpoint or an output cannot be used
  2    the command line is wrong
  3    some files could not be read; the others were judged
  130  interrupted; with --json FILE the same command goes on

--json FILE holds a JSON object a line: first what the results were made with, then one for each file. Given again, the
command judges the files that have no line yet, or have changed since. Standard output (-) has the lines of the files
only. Everything else but the verdicts goes to standard error; its last line counts the files.
"""


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
        "--model",
        default=DEFAULT_MODEL,
        help="folder of a checkpoint, or its id on the Hub (default: %(default)s, of `make demo`)",
    )
    parser.add_argument("--json", metavar="FILE", help="where the results go as JSON lines; - is standard output")
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="where a table goes, a row a face or person, in place of the one before; with --json of all in it",
    )
    parser.add_argument(
        "--annotate",
        type=Path,
        metavar="OUT",
        help="folder for annotated pictures; of videos, the most suspicious frame of each person",
    )
    parser.add_argument(
        "--evidence", type=float, default=0.4, help="opacity of the evidence drawn by --annotate (default: 0.4)"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--operating_point",
        choices=("eer", "fpr_0.05", "fpr_0.01"),
        help="which of the checkpoint's thresholds decides (default: eer, or 0.5 where it has none)",
    )
    where.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="flag from this p_fake on, between 0 and 1, instead of using the checkpoint's thresholds",
    )
    parser.add_argument(
        "--num_frames", type=at_least(1), default=32, help="frames of a video, evenly spaced (default: 32)"
    )
    parser.add_argument(
        "--most_pixels",
        type=at_least(1),
        default=MOST_PIXELS,
        help="refuse larger pictures and frames before they are decoded (default: %(default)s)",
    )
    parser.add_argument("--batch_size", type=at_least(1), help="faces at a time (default: 16, on a CPU 4)")
    parser.add_argument("--backend", choices=("torch", "onnx"), default="torch", help="what runs the checkpoint")
    parser.add_argument(
        "--graph",
        metavar="NAME",
        help="what --backend onnx runs, such as model_int8.onnx (default: model.onnx)",
    )
    parser.add_argument("--device", help="such as cpu, cuda:1 or mps (default: the fastest there is)")
    parser.add_argument(
        "--no_abstain", action="store_true", help="give a number also where the checkpoint would rather not"
    )
    parser.add_argument("--largest_only", action="store_true", help="look at the largest face of each picture only")
    parser.add_argument(
        "--quiet",
        action="store_true",
        help="print errors only, and what --json - is asked for: no progress, no counts",
    )
    return parser


@report_input_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: its arguments; those of the process if None.
    """
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.evidence <= 1:
        parser.error(f"argument --evidence: must be in [0, 1], got {arguments.evidence:g}")
    if arguments.graph is not None and arguments.backend != "onnx":
        parser.error("argument --graph: is of --backend onnx")
    if arguments.threshold is not None and not 0 < arguments.threshold < 1:
        parser.error(f"argument --threshold: must be between 0 and 1, got {arguments.threshold:g}")
    try:
        files, roots = find_inputs(arguments.files)
        check_outputs(arguments, roots)
    except OSError as error:  # a name that is too long, or lies where nothing may be looked up
        raise InputError(
            f"{error.filename} cannot be reached ({reason(error)}): check its path and its permissions."
        ) from error
    find_dcl_checkpoint(arguments.model, arguments.backend)
    try:
        # Imported here: --help and wrong names need no torch.
        from dcl_face_forgery.detection.results import counted
        from dcl_face_forgery.media_dcl import say_skipped, skipped_files
        from dcl_face_forgery.onnx_dcl import GRAPH
        from dcl_face_forgery.pipeline_dcl import FaceForgeryDetectionPipeline

        pipe = FaceForgeryDetectionPipeline.from_pretrained(
            arguments.model,
            arguments.backend,
            arguments.device,
            arguments.graph or GRAPH,
            num_frames=arguments.num_frames,
            batch_size=arguments.batch_size,
            most_pixels=arguments.most_pixels,
            operating_point=arguments.operating_point,
            threshold=arguments.threshold,
            abstain=not arguments.no_abstain,
            largest_only=arguments.largest_only,
        )
        counts = detect(pipe, files, roots, arguments)
    except KeyboardInterrupt:
        if arguments.json not in (None, "-"):
            print(f"interrupted: the same command goes on, what is done is in {arguments.json}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    if not arguments.quiet:
        for folder in filter(os.path.isdir, arguments.files):
            if skipped := say_skipped(skipped_files(folder)):
                print(f"{_shown(folder)}: {skipped}", file=sys.stderr)
        print(counted(counts), file=sys.stderr)
    if counts["error"]:
        sys.exit(3)


def find_inputs(names: Sequence[str]) -> tuple[list[str], dict[str, Path]]:
    """Return the files that the arguments name, each once, and the folder to which the drawing of each is relative.

    Raises:
        InputError: if a name is of nothing, or a folder holds nothing to judge.
    """
    roots: dict[str, Path] = {}
    seen: set[str] = set()  # absolute paths: one file may be named in two ways
    for name in names:
        path = Path(name)
        if not name:  # to a Path, the current folder
            raise InputError("one of the names of files and folders is empty: leave it out.")
        if path.is_dir():
            from dcl_face_forgery.media_dcl import find_files

            found = {str(file): path for file in find_files(path)}
        elif path.is_file():
            found = {str(path): path.parent}
        else:
            raise InputError(f"File or folder {name} not found. Check its path.")
        for file, root in found.items():
            if (path_of_file := os.path.abspath(file)) not in seen:
                seen.add(path_of_file)
                roots[file] = root
    return list(roots), roots


def check_outputs(arguments: argparse.Namespace, roots: dict[str, Path]) -> None:
    """Raise an `InputError` if an output cannot be written, would overwrite an input, or be judged by the next run."""
    outputs = [arguments.csv, None if arguments.json in (None, "-") else Path(arguments.json)]
    for path in outputs:
        if path is not None and path.exists() and any(path.samefile(name) for name in roots):
            raise InputError(f"{path} would be overwritten by the results: choose another file for them.")
        if path is not None and not path.parent.is_dir():
            raise InputError(f"there is no folder {path.parent} for {path.name}: make it.")
        if path is not None and path.is_dir():
            raise InputError(f"{path} is a folder: give the name of a file in it.")
        if path is not None and not os.access(path if path.exists() else path.parent, os.W_OK):
            raise InputError(f"{path} cannot be written: check its permissions, or choose another file.")
    if outputs[0] is not None and outputs[1] is not None and outputs[0].resolve() == outputs[1].resolve():
        raise InputError(f"--csv and --json are both {outputs[0]}: choose two files.")
    if arguments.annotate is not None:
        place = next(path for path in (arguments.annotate, *arguments.annotate.absolute().parents) if path.exists())
        if not (place.is_dir() and os.access(place, os.W_OK)):
            raise InputError(f"no drawings can be written to {arguments.annotate}: choose another folder for them.")
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
) -> Counter[str]:
    """Judge files, write what was asked for, and count the verdicts, and what could not be read as "error".

    Args:
        pipe: judges them.
        files: their paths.
        roots: the folder to which the drawing of each is relative.
        arguments: of the command line.
    """
    from tqdm.auto import tqdm

    from dcl_face_forgery.decision_dcl import to_json
    from dcl_face_forgery.detection.results import JsonLines, Table, UnreadableError, draw, record_of, stamp_of
    from dcl_face_forgery.pipeline_dcl import result_of

    lines = None
    if arguments.json is not None:
        lines = JsonLines(arguments.json, record_of(pipe, arguments.model, arguments.backend), files)
    counts = Counter(lines.done.values() if lines is not None else ())
    left = [name for name in files if lines is None or os.path.abspath(name) not in lines.done]
    done = len(files) - len(left)
    if done and not arguments.quiet:
        drawn = "" if arguments.annotate is None else ", of which no drawing is made now"
        print(f"{done} of {len(files)} files were judged before{drawn}: {arguments.json}", file=sys.stderr)
    stamps: dict[str, dict | None] = {}

    def stamped() -> Iterator[str]:
        for name in left:
            stamps[name] = stamp_of(name)
            yield name

    with (
        lines or nullcontext(),
        Table(arguments.csv) as table,
        tqdm(total=len(files), initial=done, unit=" files", disable=arguments.quiet) as progress,
    ):
        if lines is not None and arguments.csv is not None:
            for result in lines.results():
                table.add(result)
        for event in pipe.stream(stamped()):
            if event["event"] == "progress":
                if event["total"] is not None:
                    of = f"{_shown(Path(event['name']).name)}: {event['done']} of {event['total']} frames"
                    progress.set_postfix_str(of, refresh=event["done"] % 10 == 0)
                continue
            result = result_of(event)
            name = result["name"]
            if arguments.annotate is not None and result["kind"] != "error":
                target = arguments.annotate / Path(name).relative_to(roots[name])
                try:
                    draw(pipe, result, target, arguments.evidence)
                except UnreadableError as error:  # it was changed or went in between
                    result = {"kind": "error", "name": name, "sentence": str(error)}
            plain = to_json(result) | {"file": stamps.pop(name)}
            table.add(plain)
            if lines is not None:
                lines.add(plain)
            if (lines is None and not arguments.quiet) or result["kind"] == "error":
                where = sys.stderr if result["kind"] == "error" else sys.stdout
                sentence = result["sentence"] if name in result["sentence"] else f"{name}: {result['sentence']}"
                tqdm.write(_shown(sentence), file=where)
                for note in result.get("notes", ()):
                    tqdm.write(f"  Note: {_shown(note)}", file=where)
            counts["error" if result["kind"] == "error" else result["verdict"]] += 1
            progress.set_postfix_str("", refresh=False)
            progress.update()
    return counts


def _shown(text: str) -> str:
    """Return a text as a terminal can show it, whatever a file in it is called."""
    return text if text.isprintable() else ascii(text)[1:-1]


if __name__ == "__main__":
    main()
