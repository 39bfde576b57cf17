"""Train DCL: `python train.py -c configs/demo.yaml [--flags over the file]`; also `dcl-train`, and under `torchrun`.

A run that was killed goes on from its last complete checkpoint when the same command is given again; one that has
ended says so and does nothing.
"""

import sys
from pathlib import Path

from dcl_face_forgery.errors_dcl import InputError, report_input_errors


@report_input_errors
def main(argv: list[str] | None = None) -> None:
    """Parse the command line, train, and save the best checkpoint with its card into the output folder.

    Args:
        argv: the arguments; those of the process if None.
    """
    # Imported step by step: --help and wrong names need no torch.
    from dcl_face_forgery.hub_dcl import find_dcl_checkpoint
    from dcl_face_forgery.prepared.names import check_names, split_names
    from dcl_face_forgery.training.arguments import parse_training_run

    run = parse_training_run(sys.argv[1:] if argv is None else argv)
    output_dir = Path(run.options.output_dir or "trainer_output")
    if output_dir.resolve() == Path(__file__).resolve().parent:
        raise InputError("output_dir is the folder of the code, which would be overwritten: choose another.")
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"the output folder {output_dir} is a file: choose another --output_dir.")
    data = run.data
    if data.overwrite and run.options.resume_from_checkpoint:
        raise InputError("overwrite starts again, and resume_from_checkpoint goes on: pass one of them.")
    check_names(split_names(data.dataset), [data.train_split, data.validation_split], data.data_root)
    if run.model.model is not None:
        find_dcl_checkpoint(run.model.model)

    from dcl_face_forgery.evaluation.validation import fit_on_validation, validation_metrics
    from dcl_face_forgery.training.run import train

    train(run, validation_metrics, fit_on_validation)


if __name__ == "__main__":
    main()
