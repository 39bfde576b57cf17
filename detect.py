"""Detect forged faces in pictures and videos, with calibrated probabilities and the reason for each missing score.

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
  0    all files were read
  1    failure: an argument, the checkpoint or an output cannot be used
  2    invalid command line
  3    some files could not be read; the others have results
  130  interrupted; with --json FILE, run the same command again to resume

--json FILE holds one JSON object per line: first the settings of the run, then one result for each file. If you run
the command again, it analyzes only files that are new or have changed. On standard output (-) there are only results.
Progress, errors and the final counts go to standard error.
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="dcl-detect",
        description=__doc__.splitlines()[0],
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", metavar="FILE_OR_FOLDER", help="pictures, videos, or folders of them")
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="checkpoint (folder or Hub id; default: %(default)s, from `make demo`)",
    )
    parser.add_argument("--json", metavar="FILE", help="write results as JSON lines; - is standard output")
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="write a table with one row per face or person; with --json FILE, of all results in that file",
    )
    parser.add_argument(
        "--annotate",
        type=Path,
        metavar="OUT",
        help="folder for annotated pictures; for videos, the highest-scoring frame of each person",
    )
    parser.add_argument(
        "--evidence", type=float, default=0.4, help="opacity of the evidence drawn by --annotate (default: 0.4)"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--operating_point",
        choices=("eer", "fpr_0.05", "fpr_0.01"),
        help="threshold of the checkpoint to use (default: eer, or 0.5 if the checkpoint has none)",
    )
    where.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="flag faces with at least this p_fake, between 0 and 1, instead of the checkpoint's thresholds",
    )
    parser.add_argument(
        "--num_frames", type=at_least(1), default=32, help="evenly spaced frames to analyze in a video (default: 32)"
    )
    parser.add_argument(
        "--most_pixels",
        type=at_least(1),
        default=MOST_PIXELS,
        help="reject larger pictures and frames without decoding them (default: %(default)s)",
    )
    parser.add_argument("--batch_size", type=at_least(1), help="faces in a batch (default: 16; 4 on a CPU)")
    parser.add_argument(
        "--backend", choices=("torch", "onnx"), default="torch", help="runtime for the checkpoint (default: torch)"
    )
    parser.add_argument(
        "--graph", metavar="NAME", help="graph for --backend onnx, such as model_int8.onnx (default: model.onnx)"
    )
    parser.add_argument("--device", help="such as cpu, cuda:1 or mps (default: the fastest available)")
    parser.add_argument(
        "--no_abstain", action="store_true", help="score faces even where the checkpoint would abstain"
    )
    parser.add_argument("--largest_only", action="store_true", help="analyze only the largest face of each picture")
    parser.add_argument(
        "--quiet",
        action="store_true",
        help="print only errors and the results of --json -, without progress and counts",
    )
    return parser


@report_input_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: command-line arguments; None reads `sys.argv`.
    """
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.evidence <= 1:
        parser.error(f"argument --evidence: must be in [0, 1], got {arguments.evidence:g}")
    if arguments.graph is not None and arguments.backend != "onnx":
        parser.error("argument --graph: needs --backend onnx")
    if arguments.threshold is not None and not 0 < arguments.threshold < 1:
        parser.error(f"argument --threshold: must be between 0 and 1, got {arguments.threshold:g}")
    # Imports come late: --help and errors about names must not wait for torch.
    from dcl_face_forgery.detection.inputs import check_files, check_operating_point
    from dcl_face_forgery.hub_dcl import find_dcl_checkpoint

    files, roots = check_files(arguments)
    folder = find_dcl_checkpoint(arguments.model, arguments.backend)
    if arguments.operating_point is not None:
        check_operating_point(folder, arguments.operating_point, files)
    try:
        from dcl_face_forgery.detection.run import detect

        counts = detect(arguments, files, roots)
    except KeyboardInterrupt:
        if arguments.json not in (None, "-"):
            print(
                f"Interrupted. Run the same command again to resume; finished results are in {arguments.json}.",
                file=sys.stderr,
            )
        sys.exit(130)
    except BrokenPipeError:  # the reader of the output closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    if counts["error"]:
        sys.exit(3)


if __name__ == "__main__":
    main()
