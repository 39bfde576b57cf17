"""Train DCL: `python train.py -c configs/demo.yaml [--flags over the file]`; also `dcl-train`, and under `torchrun`.

To resume a run that was killed, give the same command again: training continues from the last complete checkpoint.
For a finished run, the command prints that it is finished and trains nothing. SIGTERM and SIGUSR1 save a checkpoint at
the end of the step, and end the command with status 143.
"""

import os
import sys
from pathlib import Path

from dcl_face_forgery.errors_dcl import InputError, report_input_errors


@report_input_errors
def main(argv: list[str] | None = None) -> None:
    """Parse the command line, train, and save the best checkpoint with its card into the output folder.

    Args:
        argv: command-line arguments; None reads `sys.argv`.
    """
    # Threads that wait must not spin for long. OpenMP reads this when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "100000")
    # Imports come late: --help and errors about names must not wait for torch.
    from dcl_face_forgery.hub_dcl import find_dcl_checkpoint
    from dcl_face_forgery.prepared.names import check_names, split_names
    from dcl_face_forgery.training.arguments import parse_training_run

    run = parse_training_run(sys.argv[1:] if argv is None else argv)
    output_dir = Path(run.options.output_dir or "trainer_output")
    if output_dir.resolve() == Path(__file__).resolve().parent:
        raise InputError(
            f"output_dir is the code folder ({output_dir}), which training would overwrite. Choose another."
        )
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"Output folder {output_dir} is a file. Choose another --output_dir.")
    data = run.data
    if data.overwrite and run.options.resume_from_checkpoint:
        raise InputError(
            "overwrite and resume_from_checkpoint exclude each other: one restarts, one resumes. Pass one."
        )
    check_names(split_names(data.dataset), [data.train_split, data.validation_split], data.data_root)
    if run.model.model is not None:
        find_dcl_checkpoint(run.model.model)

    from dcl_face_forgery.evaluation.validation import fit_on_validation, validation_metrics
    from dcl_face_forgery.training.run import train

    train(run, validation_metrics, fit_on_validation)


if __name__ == "__main__":
    main()
