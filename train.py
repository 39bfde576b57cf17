"""Train DCL: `python train.py -c configs/demo.yaml [--flags over the file]`; also `dcl-train`, and under `torchrun`.

A run that was killed goes on from its last complete checkpoint when the same command is given again; one that has
ended says so and does nothing.
"""

import json
import logging
import shutil
import sys
from collections.abc import Collection
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcl_face_forgery.errors_dcl import InputError, reason, report_input_errors

# Imported step by step: --help and wrong names need no torch.
if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import EvalPrediction

    from dcl_face_forgery.image_processing_dcl import DCLImageProcessor
    from dcl_face_forgery.modeling_dcl import DCLForPreTraining
    from dcl_face_forgery.training.arguments import TrainingRun
    from dcl_face_forgery.training.settings import ModelArguments
    from dcl_face_forgery.training.streaming import StreamedRows
    from dcl_face_forgery.training.trainer import DCLTrainer

logger = logging.getLogger("dcl_face_forgery.train")

RECORD, RESULTS = "run_settings.json", "all_results.json"


@report_input_errors
def main(argv: list[str] | None = None) -> None:
    """Parse the command line, train, and save the best checkpoint with its card into the output folder."""
    from dcl_face_forgery.training.arguments import parse_training_run

    run = parse_training_run(sys.argv[1:] if argv is None else argv)
    output_dir = Path(run.options.output_dir or "trainer_output")
    if output_dir.resolve() == Path(__file__).resolve().parent:
        raise InputError("output_dir is the folder of the code, which would be overwritten: choose another.")
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"the output folder {output_dir} is a file: choose another --output_dir.")
    if run.data.overwrite and run.options.resume_from_checkpoint:
        raise InputError("overwrite starts again, and resume_from_checkpoint goes on: pass one of them.")
    check_inputs(run)

    from transformers.utils.logging import disable_progress_bar

    from dcl_face_forgery.abstention_dcl import describe_abstention
    from dcl_face_forgery.decision_dcl import describe_calibration
    from dcl_face_forgery.prepared.dataset import fingerprint
    from dcl_face_forgery.training.streaming import StreamedRows

    disable_progress_bar()  # of reading and writing weights; training and evaluation keep theirs
    rows = load_data(run)
    train_rows, validation_rows = rows
    learned = train_rows.fingerprint() if isinstance(train_rows, StreamedRows) else fingerprint(train_rows)
    record = run.record() | {"data": [learned, fingerprint(validation_rows)]}
    finished, checkpoint = find_start(run, output_dir, record)
    if finished:
        print(f"{output_dir} holds this run, finished; pass --overwrite to train again.")
        return
    trainer = build_trainer(run, rows)
    claim_output_dir(run, output_dir, record)
    try:
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except Exception as error:
        if not type(error).__module__.startswith("wandb"):
            raise
        raise InputError(
            f"--report_to wandb cannot be followed ({reason(error)}): run `wandb login`, or set WANDB_MODE=offline."
        ) from error
    calibrate_checkpoint(trainer, run)
    if trainer.is_world_process_zero():
        print(describe_calibration(trainer.model.config.calibration))
        print(describe_abstention(trainer.model.config.familiarity))
    trainer.save_model()
    trainer.save_state()
    trainer.create_model_card()
    trainer.log_metrics("train", result.metrics)
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("all", result.metrics | metrics, combined=False)
    print(f"The checkpoint is in {output_dir}.")


def check_inputs(run: "TrainingRun") -> None:
    """Raise an `InputError` if a data set, a split or the checkpoint to start from is not there; nothing is loaded."""
    from dcl_face_forgery.hub_dcl import find_dcl_checkpoint
    from dcl_face_forgery.prepared.names import check_names, split_names

    data = run.data
    check_names(split_names(data.dataset), [data.train_split, data.validation_split], data.data_root)
    if run.model.model is not None:
        find_dcl_checkpoint(run.model.model)


def load_data(run: "TrainingRun") -> "tuple[Dataset | StreamedRows, Dataset]":
    """Load the rows to learn from and those that choose the checkpoint."""
    from dcl_face_forgery.prepared.names import split_names
    from dcl_face_forgery.training.pairs import load_rows

    data = run.data
    names, chosen = split_names(data.dataset), (data.data_root, data.methods)
    train_rows = load_rows(names, data.train_split, *chosen, streaming=data.streaming)
    # Validation sees every row every time, and with the whole set what is streamed would be downloaded.
    validation_rows = load_rows(names, data.validation_split, *chosen, split_alone=data.streaming)
    return train_rows, validation_rows


def refuse_other_run(output_dir: Path, record: dict[str, Any]) -> None:
    """Raise an `InputError` if the folder holds a model, or checkpoints of a run with other settings or data."""
    from dcl_face_forgery.training.trainer import last_complete_checkpoint

    if not (output_dir / RECORD).exists() and any(output_dir.glob("model*.safetensors")):
        raise InputError(
            f"{output_dir} holds a model that no run here wrote: choose another --output_dir, or pass --overwrite."
        )
    if not (output_dir / RESULTS).exists() and last_complete_checkpoint(output_dir) is None:
        return  # a run that saved nothing, stopped by a misspelt setting perhaps, has nothing to be mixed with
    try:
        earlier = json.loads((output_dir / RECORD).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{output_dir} holds checkpoints of an unknown run: choose another --output_dir.") from error
    changed = [key for key in record if key in earlier and earlier[key] != record[key]]
    if changed:
        shown = "; ".join(f"{key} was {earlier[key]!r}, is {record[key]!r}" for key in changed[:3])
        raise InputError(
            f"{output_dir} holds a run with other settings ({shown}): choose another --output_dir or pass --overwrite."
        )


def find_start(run: "TrainingRun", output_dir: Path, record: dict[str, Any]) -> tuple[bool, Path | None]:
    """Decide where the run begins, the same for every process: the first one looks, and tells the others.

    Returns:
        Whether the folder holds this run, finished; and the checkpoint to go on from, if there is one.

    Raises:
        InputError: if the folder holds another run, or a process does not find the checkpoint.
    """
    from dcl_face_forgery.training.trainer import last_complete_checkpoint

    answer: list[Any] = [None, False, None]
    if run.training.process_index == 0:
        try:
            if not run.data.overwrite:
                refuse_other_run(output_dir, record)
                checkpoint = run.training.resume_from_checkpoint or last_complete_checkpoint(output_dir)
                answer[1:] = (output_dir / RESULTS).exists(), checkpoint and str(checkpoint)
        except InputError as error:
            answer[0] = str(error)
    if run.training.world_size > 1:
        import torch.distributed as dist

        dist.broadcast_object_list(answer, device=run.training.device)
    refusal, finished, checkpoint = answer
    if refusal is not None:
        raise InputError(refusal)
    if checkpoint is not None and not finished:
        state = Path(checkpoint) / "trainer_state.json"
        if not state.is_file():
            raise InputError(
                f"{checkpoint} is no complete checkpoint to resume from, it has no trainer_state.json here: "
                "name another, and let all processes share the folder."
            )
        done, last = json.loads(state.read_text())["global_step"], run.training.max_steps
        if run.training.resume_from_checkpoint and 0 < last <= done:
            raise InputError(
                f"{checkpoint} was trained for {done} steps, and max_steps is {last}: nothing is left to train; start "
                "from its weights by --model, or raise max_steps."
            )
    return finished, None if checkpoint is None else Path(checkpoint)


def claim_output_dir(run: "TrainingRun", output_dir: Path, record: dict[str, Any]) -> None:
    """Record the settings of the run in its folder, and remove the run that it overwrites."""
    with run.training.main_process_first(local=False, desc="output folder"):
        if run.training.process_index != 0:
            return
        if run.data.overwrite:
            for leftover in (*output_dir.glob("checkpoint-*"), output_dir / RESULTS):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            (output_dir / RECORD).write_text(json.dumps(record, indent=2, sort_keys=True))
        except OSError as error:
            raise InputError(
                f"the output folder {output_dir} cannot be written ({error.strerror}): choose another."
            ) from error


def build_trainer(run: "TrainingRun", rows: "tuple[Dataset | StreamedRows, Dataset] | None" = None) -> "DCLTrainer":
    """Build model, processor, data sets and trainer of a run; its rows are loaded if they are not given."""
    from datasets import concatenate_datasets
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
    from transformers import set_seed

    from dcl_face_forgery.hub_dcl import hub_is_reachable
    from dcl_face_forgery.prepared.copies import Pictures, refuse_copies
    from dcl_face_forgery.prepared.dataset import find_crop
    from dcl_face_forgery.prepared.names import FAKE
    from dcl_face_forgery.training.pairs import FaceDataset, PairDataset, keys_of
    from dcl_face_forgery.training.trainer import DCLTrainer

    data, args = run.data, run.training
    train_rows, validation_rows = rows or load_data(run)
    if args.push_to_hub and not hub_is_reachable():
        raise InputError("push_to_hub was asked for, and the Hub cannot be reached: train without it, and push later.")
    shared = set(keys_of(train_rows).source_id) & set(keys_of(validation_rows).source_id)
    if shared:
        logger.warning(
            "%d source videos (as %s) are in both %s and %s: the validation scores will be too good to be true.",
            *(len(shared), min(shared), data.train_split, data.validation_split),
        )
    if not data.allow_copies and data.train_split != data.validation_split:
        refuse_copies(
            Pictures.of_rows(train_rows, data.train_split),
            Pictures.of_rows(validation_rows, data.validation_split),
            "the validation scores would be too high. Remove one of each pair and prepare the data again, or pass "
            "--allow_copies.",
        )
    crops = concatenate_datasets([rows.select_columns(["crop"]) for rows in (train_rows, validation_rows)])
    crop = find_crop(crops, " and ".join(data.dataset), data.allow_mixed_crops)
    set_seed(args.seed)
    model, processor = build_model(run.model, run.given)
    if processor.crop not in (None, crop):
        logger.warning("The checkpoint learned faces cut as %s; it goes on with %s.", processor.crop, crop)
    processor.crop = crop
    size = model.config.image_size
    train_set = PairDataset(train_rows, size, run.views, run.augmentation, args.seed, data.skip_corrupt)
    seen = {str(method) for method in train_set.methods[train_set.labels == FAKE]}
    model.config.seen_methods = sorted(seen.union(model.config.seen_methods or []))
    validation_set = FaceDataset(validation_rows, processor, data.skip_corrupt)
    try:
        trainer = DCLTrainer(
            model=model,
            args=args,
            train_dataset=train_set,
            eval_dataset=validation_set,
            processing_class=processor,
            compute_metrics=validation_metrics,
        )
    except (HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled) as error:
        name = args.hub_model_id or Path(args.output_dir).name
        raise InputError(
            f"the repository {name!r} cannot be made on the Hub ({reason(error)}): log in by `hf auth login`, or "
            "leave push_to_hub out."
        ) from error
    except (RuntimeError, ValueError) as error:
        # What is said of a tracker that is not installed, and of one that is not known.
        if "requires" not in str(error) and "is not supported, only" not in str(error):
            raise
        raise InputError(f"--report_to {' '.join(args.report_to)} cannot be followed: {error}") from error
    if every := trainer.space_evaluations(run.given):
        logger.warning(
            "Evaluating and saving every %d steps, since an epoch is shorter: set eval_strategy to change it.", every
        )
    return trainer


def calibrate_checkpoint(trainer: "DCLTrainer", run: "TrainingRun") -> None:
    """Fit calibration and familiarity of the trained model on the validation split, for its configuration.

    The first process scores the split, as an evaluation would, and tells the others. The model is saved before: it
    must not be lost if that fails.
    """
    args = trainer.args
    trainer.save_model(_internal_call=True)
    if args.calibration == "none":
        return
    answer: list[dict[str, Any] | None] = [None, None]
    if args.process_index == 0:
        answer[:] = fit_on_validation(trainer, run)
    if args.world_size > 1:  # it may take longer than the training's own group of processes would wait
        import torch.distributed as dist

        patient = dist.new_group(backend="gloo", timeout=timedelta(days=30))
        dist.broadcast_object_list(answer, group=patient)
        dist.destroy_process_group(patient)
    trainer.model.config.calibration, trainer.model.config.familiarity = answer


def fit_on_validation(trainer: "DCLTrainer", run: "TrainingRun") -> tuple[dict[str, Any], dict[str, Any]]:
    """Return calibration and familiarity of the trained model, fitted on what it says of the validation split."""
    import numpy as np
    import pandas as pd

    from dcl_face_forgery.evaluation.calibration import fit_calibration
    from dcl_face_forgery.evaluation.familiarity import fit_familiarity
    from dcl_face_forgery.evaluation.metrics.localisation import CellCounts, best_iou_threshold
    from dcl_face_forgery.evaluation.scoring.predictions import predict
    from dcl_face_forgery.evaluation.scoring.sets import EvaluationSet
    from dcl_face_forgery.modeling_dcl import ReferenceNetwork, find_reference
    from dcl_face_forgery.prepared.dataset import fingerprint
    from dcl_face_forgery.training.pairs import keys_of

    args, rows = trainer.args, trainer.eval_dataset.rows
    source, split = " and ".join(run.data.dataset), run.data.validation_split
    crop = trainer.processing_class.crop
    data = EvaluationSet(source, source, split, rows, fingerprint(rows), crop, run.data.allow_mixed_crops)
    tables, features, sharpness, cells = [], [], [], CellCounts()
    batches = predict(
        trainer.model.eval(),
        trainer.processing_class,
        data,
        args.per_device_eval_batch_size,
        args.dataloader_num_workers,
        reference=ReferenceNetwork(find_reference()),
    )
    for batch in batches:
        tables.append(batch.rows.to_pandas())
        features.append(batch.features)
        sharpness.append(batch.sharpness)
        cells.add(batch.evidence, batch.forged)
    predictions, keys = pd.concat(tables, ignore_index=True), keys_of(rows)
    predictions[["video_id", "source_id"]] = keys[["video_id", "source_id"]]  # apart from namesakes in other sets
    calibration = fit_calibration(predictions, args.inconclusive_error_rate)
    calibration["evidence_threshold"] = best_iou_threshold(cells)
    return calibration, fit_familiarity(predictions, np.concatenate(features), np.concatenate(sharpness))


def build_model(
    arguments: "ModelArguments", given: Collection[str] = ()
) -> "tuple[DCLForPreTraining, DCLImageProcessor]":
    """Load the checkpoint a run starts from, or build a new model on pretrained weights, and its processor."""
    import torch

    from dcl_face_forgery.configuration_dcl import why_refused
    from dcl_face_forgery.hub_dcl import find_dcl_checkpoint
    from dcl_face_forgery.image_processing_dcl import DCLImageProcessor
    from dcl_face_forgery.modeling_dcl import DCLForPreTraining
    from dcl_face_forgery.training.backbone import load_backbone_weights

    if arguments.model is None:
        model = DCLForPreTraining(arguments.config())
        if arguments.backbone_weights != "none":
            load_backbone_weights(model, arguments.backbone_weights)
        size = model.config.image_size
        return model, DCLImageProcessor(size={"height": size, "width": size})
    folder = find_dcl_checkpoint(arguments.model)
    try:
        processor = DCLImageProcessor.from_pretrained(folder)
        model, loading = DCLForPreTraining.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # of the file formats, or of the configuration
        raise InputError(
            f"the checkpoint {arguments.model!r} cannot be loaded ({why_refused(error)}): copy or download it again."
        ) from error
    arguments.refuse_conflicts(model.config, given)
    model.config.calibration = model.config.familiarity = None  # of other weights, soon
    missing = sorted(name for name in loading["missing_keys"] if name.startswith(("dcl.", "classifier.")))
    if missing:
        raise InputError(
            f"the checkpoint {arguments.model!r} lacks {len(missing)} weights of backbone and classifier "
            f"(as {missing[0]}): pass one that was saved whole."
        )
    return model, processor


def validation_metrics(prediction: "EvalPrediction") -> dict[str, Any]:
    """Score the validation split, frame and video level.

    Args:
        prediction: logits (N, 2), and as label_ids the labels (N,) and the number of each frame's video (N,).
    """
    import numpy as np
    import pandas as pd

    from dcl_face_forgery.evaluation.metrics.tables import binary_metrics, video_scores

    labels, videos = prediction.label_ids
    logits = np.asarray(prediction.predictions, np.float64)
    rows = pd.DataFrame({"video_id": videos, "label": labels, "p_fake": 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))})
    frame = binary_metrics(rows.label.to_numpy(), rows.p_fake.to_numpy(), "frames")
    if frame["auc"] is None:
        raise InputError(f"the checkpoint cannot be validated ({frame['reason']}): lower the learning rate.")
    per_video = video_scores(rows)
    video = binary_metrics(per_video.label.to_numpy(), per_video.p_fake.to_numpy(), "videos")
    return {"auc": frame["auc"], "eer": frame["eer"], "accuracy": frame["accuracy"], "video_auc": video["auc"]}


if __name__ == "__main__":
    main()
