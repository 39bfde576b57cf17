"""Score the faces of pictures and videos: whether they are flagged as forged, how sure that is, and why.

python detect.py photograph.jpg interview.mp4
python detect.py holiday/ --json results.jsonl --csv results.csv --annotate drawn/
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dcl_face_forgery.errors_dcl import at_least, report_input_errors
from dcl_face_forgery.hub_dcl import DEFAULT_MODEL
from dcl_face_forgery.media_dcl import MOST_PIXELS

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
        "--graph", metavar="NAME", help="what --backend onnx runs, such as model_int8.onnx (default: model.onnx)"
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
    # Imported step by step: --help and wrong names need no torch.
    from dcl_face_forgery.detection.inputs import check_files
    from dcl_face_forgery.hub_dcl import find_dcl_checkpoint

    files, roots = check_files(arguments)
    find_dcl_checkpoint(arguments.model, arguments.backend)
    try:
        from dcl_face_forgery.detection.run import detect

        counts = detect(arguments, files, roots)
    except KeyboardInterrupt:
        if arguments.json not in (None, "-"):
            print(f"interrupted: the same command goes on, what is done is in {arguments.json}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    if counts["error"]:
        sys.exit(3)


if __name__ == "__main__":
    main()
