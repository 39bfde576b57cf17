"""One training run, from settings to the best checkpoint with calibration and card; a killed run can resume."""

import ctypes
import json
import logging
import shutil
import signal
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from datasets import Dataset, concatenate_datasets
from filelock import FileLock, Timeout
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from transformers import EvalPrediction, set_seed
from transformers.trainer_utils import TrainOutput
from transformers.utils.logging import disable_progress_bar, get_verbosity, set_verbosity, set_verbosity_error

from ..abstention_dcl import describe_abstention
from ..configuration_dcl import DCLConfig, why_refused
from ..decision_dcl import describe_calibration
from ..errors_dcl import InputError, reason, whole_file
from ..hub_dcl import find_dcl_checkpoint, hub_is_reachable
from ..image_processing_dcl import DCLImageProcessor
from ..modeling_dcl import DCLForPreTraining
from ..prepared.copies import Pictures, refuse_copies
from ..prepared.dataset import find_crop, fingerprint, keys_of
from ..prepared.names import FAKE, split_names
from ..prepared.splits import PreparedSplit
from .arguments import TrainingRun
from .backbone import load_backbone_weights
from .callbacks import INTERRUPTED, SIGNALS, STOPPED
from .card import RECORD
from .pairs import FaceDataset, PairDataset, load_rows
from .settings import ModelArguments
from .streaming import StreamedRows
from .trainer import DCLTrainer, last_complete_checkpoint

logger = logging.getLogger(__name__)

RESULTS = "all_results.json"

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # of malloc.h

Metrics = Callable[[EvalPrediction], dict[str, Any]]
Fit = Callable[..., tuple[dict[str, Any], dict[str, Any]]]


def train(run: TrainingRun, compute_metrics: Metrics, fit: Fit) -> None:
    """Train, and save the best checkpoint with its card into the output folder.

    Args:
        run: the settings.
        compute_metrics: scores the validation split, as for `Trainer`.
        fit: given (model, processor, validation data, batch size, workers, inconclusive error rate), returns
            `DCLConfig.calibration` and `DCLConfig.familiarity`.

    Raises:
        InputError: if a setting, the data, the checkpoint to start from or the output folder cannot be used.
    """
    output_dir = Path(run.training.output_dir)
    if run.training.device.type == "cpu":
        keep_freed_memory()
    disable_progress_bar()  # for reading and writing weights; training and evaluation keep theirs
    rows = load_data(run)
    train_rows, validation_rows = rows
    learned = train_rows.fingerprint() if isinstance(train_rows, StreamedRows) else fingerprint(train_rows)
    record = run.record() | {"data": [learned, fingerprint(validation_rows)]}
    lock, found = FileLock(output_dir / ".lock", blocking=False), output_dir.exists()
    try:
        finished, checkpoint = find_start(run, output_dir, record, lock)
        if finished:
            print(f"{output_dir} holds this run, and it is finished. Pass --overwrite to train again.")
            return
        trainer = build_trainer(run, compute_metrics, rows)
        claim_output_dir(run, output_dir, record)
        result = train_from(trainer, checkpoint)
        if trainer.stopped:
            if run.training.world_size > 1:
                for number in SIGNALS:  # the launcher sends them again once the first process has left
                    signal.signal(number, signal.SIG_IGN)
                dist.barrier()
            saved = last_complete_checkpoint(output_dir)
            print(
                f"Stopped by a signal; {saved} holds all of the training so far. The same command continues from it."
            )
            sys.exit(INTERRUPTED if trainer.signal == signal.SIGINT else STOPPED)
        calibrate_checkpoint(trainer, run, fit)
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
    finally:
        if lock.is_locked:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()
            if not found and not any(output_dir.iterdir()):  # the run was refused
                output_dir.rmdir()


def train_from(trainer: DCLTrainer, checkpoint: Path | None) -> TrainOutput:
    """Train, from a checkpoint or from the start; raises `InputError` if a tracker cannot start."""
    try:
        return trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except Exception as error:
        if not type(error).__module__.startswith("wandb"):
            raise
        raise InputError(
            f"--report_to wandb: cannot start ({reason(error)}). Run `wandb login`, or set WANDB_MODE=offline."
        ) from error


def keep_freed_memory() -> None:
    """Make malloc keep large blocks that are freed, for the next step; otherwise the system clears them every time.

    On a CPU, this makes a step up to three times as fast. It does nothing without the allocator of glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in (
            (_M_MMAP_THRESHOLD, 2**31 - 1),
            (_M_TRIM_THRESHOLD, 2**31 - 1),
            (_M_TOP_PAD, 1 << 29),
        ):
            mallopt(parameter, value)


def load_data(run: TrainingRun) -> tuple[Dataset | StreamedRows, Dataset]:
    """Load the training rows and the validation rows."""
    data = run.data
    names, root = split_names(data.dataset), data.data_root
    train_rows = load_rows(names, data.train_split, root, data.methods, streaming=data.streaming)
    others = split_names(data.validation_dataset or [])
    # Validation reads every row each time, so it is loaded, not streamed. Load this split alone: loading the whole
    # data set would download the training images.
    validation_rows = load_rows(
        others or names, data.validation_split, root, None if others else data.methods, split_alone=data.streaming
    )
    return train_rows, validation_rows


def refuse_other_run(output_dir: Path, record: dict[str, Any], free: Collection[str] = ()) -> None:
    """Raise an `InputError` if the folder holds a foreign model, or a run with other settings or data.

    `free` names settings that may differ.
    """
    if not (output_dir / RECORD).exists() and any(output_dir.glob("model*.safetensors")):
        raise InputError(
            f"{output_dir} holds a model from elsewhere. Choose another --output_dir, or pass --overwrite."
        )
    if not (output_dir / RESULTS).exists() and last_complete_checkpoint(output_dir) is None:
        return  # a run that saved nothing, perhaps stopped by a misspelt setting, leaves nothing to protect
    try:
        earlier = json.loads((output_dir / RECORD).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{output_dir} holds checkpoints of an unknown run. Choose another --output_dir.") from error
    changed = [key for key in record if key in earlier and earlier[key] != record[key] and key not in free]
    if changed:
        shown = "; ".join(f"{key} was {earlier[key]!r}, is {record[key]!r}" for key in changed[:3])
        shown += f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise InputError(
            f"{output_dir} holds a run with other settings ({shown}). Choose another --output_dir, or pass "
            "--overwrite."
        )


def find_start(run: TrainingRun, output_dir: Path, record: dict[str, Any], lock: FileLock) -> tuple[bool, Path | None]:
    """Decide where the run starts: the first process checks the folder, locks it, and informs the others.

    A learning rate other than that of the run is accepted with `resume_from_checkpoint`: it is the way on after a loss
    that was not finite.

    Returns:
        Whether the folder holds this run, finished; and the checkpoint to resume from, or None.

    Raises:
        InputError: if the folder holds another run, another process uses it, it cannot be written, or a process
            cannot find the checkpoint.
    """
    answer: list[Any] = [None, False, None]
    if run.training.process_index == 0:
        try:
            named = run.training.resume_from_checkpoint
            if not run.data.overwrite:
                refuse_other_run(output_dir, record, ("learning_rate",) if named else ())
                answer[1] = (output_dir / RESULTS).exists()
            if not answer[1]:
                acquire(lock, output_dir)
            if not run.data.overwrite:
                checkpoint = named or last_complete_checkpoint(output_dir)
                answer[2] = checkpoint and str(checkpoint)
        except InputError as error:
            answer[0] = str(error)
    if run.training.world_size > 1:
        dist.broadcast_object_list(answer, device=run.training.device)
    refusal, finished, checkpoint = answer
    if refusal is not None:
        raise InputError(refusal)
    if checkpoint is not None and not finished:
        state = Path(checkpoint) / "trainer_state.json"
        if not state.is_file():
            raise InputError(
                f"{checkpoint} is not a complete checkpoint: trainer_state.json is missing. Name another one. With "
                "several processes, all must see the same folder."
            )
        done, last = json.loads(state.read_text())["global_step"], run.training.max_steps
        if run.training.resume_from_checkpoint and 0 < last <= done:
            raise InputError(
                f"{checkpoint} has already been trained for {done} steps, and max_steps is {last}. Raise max_steps, "
                "or start a new run from its weights with --model."
            )
    return finished, None if checkpoint is None else Path(checkpoint)


def acquire(lock: FileLock, output_dir: Path) -> None:
    """Lock the output folder, and create it; the system frees the lock of a process that dies.

    Raises `InputError` if another process holds the lock, or the folder cannot be written.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"Another process is training in {output_dir}. Wait for it, or choose another --output_dir."
        ) from error
    except OSError as error:
        raise InputError(
            f"Output folder {output_dir}: cannot be written ({error.strerror}). Choose another --output_dir."
        ) from error


def claim_output_dir(run: TrainingRun, output_dir: Path, record: dict[str, Any]) -> None:
    """Record the settings of the run in its folder, and remove the run that it replaces."""
    with run.training.main_process_first(local=False, desc="output folder"):
        if run.training.process_index != 0:
            return
        if run.data.overwrite:
            for leftover in (*output_dir.glob("checkpoint-*"), output_dir / RESULTS):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        with whole_file(output_dir / RECORD) as path:
            path.write_text(json.dumps(record, indent=2, sort_keys=True))


def build_trainer(
    run: TrainingRun, compute_metrics: Metrics, rows: tuple[Dataset | StreamedRows, Dataset] | None = None
) -> DCLTrainer:
    """Build model, processor, data sets and trainer of a run.

    Args:
        run: its settings.
        compute_metrics: scores the validation split, as for `Trainer`.
        rows: the result of `load_data`; None loads the data.

    Raises:
        InputError: if a setting, the data or the checkpoint to start from cannot be used.
    """
    data, args = run.data, run.training
    train_rows, validation_rows = rows or load_data(run)
    if args.push_to_hub and not hub_is_reachable():
        raise InputError("push_to_hub: the Hub cannot be reached. Train without push_to_hub, and push later.")
    shared = set(keys_of(train_rows).source_id) & set(keys_of(validation_rows).source_id)
    if shared:
        logger.warning(
            "%d source videos (such as %s) are in both %s and %s: the validation scores will be too high.",
            *(len(shared), min(shared), data.train_split, data.validation_split),
        )
    if not data.allow_copies and (data.train_split != data.validation_split or data.validation_dataset):
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
        logger.warning(
            "The checkpoint was trained on faces cropped as %s; this data set has %s.", processor.crop, crop
        )
    processor.crop = crop
    size = model.config.image_size
    keys = args.contrastive_weight > 0
    train_set = PairDataset(train_rows, size, run.views, run.augmentation, args.seed, data.skip_corrupt, keys)
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
            compute_metrics=compute_metrics,
        )
    except (HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled) as error:
        name = args.hub_model_id or Path(args.output_dir).name
        raise InputError(
            f"Repository {name!r}: cannot be created on the Hub ({reason(error)}). Log in with `hf auth login`, or "
            "leave push_to_hub out."
        ) from error
    except (RuntimeError, ValueError) as error:
        # The messages for a tracker that is not installed, and for an unknown one.
        if "requires" not in str(error) and "is not supported, only" not in str(error):
            raise
        raise InputError(f"--report_to {' '.join(args.report_to)}: cannot be used. {error}") from error
    if every := trainer.space_evaluations(run.given):
        logger.warning(
            "Evaluating and saving every %d steps, because epochs are short. Set eval_strategy to change this.", every
        )
    return trainer


def calibrate_checkpoint(trainer: DCLTrainer, run: TrainingRun, fit: Fit) -> None:
    """Fit calibration and familiarity of the trained model on the validation split and store them in its config.

    The first process scores the split and sends the results to the others. The model is saved beforehand, so that a
    failure here cannot lose it.

    Args:
        trainer: after training.
        run: its settings.
        fit: as for `train`.
    """
    args = trainer.args
    trainer.save_model(_internal_call=True)
    if args.calibration == "none":
        return
    answer: list[dict[str, Any] | None] = [None, None]
    # In float32, as the checkpoint will be used: without the autocast that training wraps around `forward`.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False, keep_torch_compile=False)
    if args.process_index == 0:
        source, split = " and ".join(run.data.validation_dataset or run.data.dataset), run.data.validation_split
        rows, processor = trainer.eval_dataset.rows, trainer.processing_class
        data = PreparedSplit(
            source, source, split, rows, fingerprint(rows), processor.crop, run.data.allow_mixed_crops
        )
        workers, rate = args.dataloader_num_workers, args.inconclusive_error_rate
        answer[:] = fit(model, processor, data, args.per_device_eval_batch_size, workers, rate)
    if args.world_size > 1:  # scoring may exceed the time limit of the training's process group
        patient = dist.new_group(backend="gloo", timeout=timedelta(days=30))
        dist.broadcast_object_list(answer, group=patient)
        dist.destroy_process_group(patient)
    trainer.model.config.calibration, trainer.model.config.familiarity = answer


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the warnings of transformers within the `with`."""
    level = get_verbosity()
    set_verbosity_error()
    try:
        yield
    finally:
        set_verbosity(level)


def build_model(arguments: ModelArguments, given: Collection[str] = ()) -> tuple[DCLForPreTraining, DCLImageProcessor]:
    """Load the checkpoint to start from, or build a new model with pretrained weights; with its processor."""
    if arguments.model is None:
        model = DCLForPreTraining(arguments.config())
        if arguments.backbone_weights != "none":
            load_backbone_weights(model, arguments.backbone_weights)
        size = model.config.image_size
        return model, DCLImageProcessor(size={"height": size, "width": size})
    folder = find_dcl_checkpoint(arguments.model)
    try:
        processor = DCLImageProcessor.from_pretrained(folder)
        config = arguments.apply_to(DCLConfig.from_pretrained(folder), given)
        with _quiet():  # what was not loaded is said below
            model, loading = DCLForPreTraining.from_pretrained(
                folder, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except InputError:
        raise
    except Exception as error:  # file formats and configurations raise many classes of error
        raise InputError(
            f"Checkpoint {arguments.model!r}: cannot be loaded ({why_refused(error)}). Copy or download it again."
        ) from error
    mismatched = {name for name, *_ in loading["mismatched_keys"]}
    if misfits := sorted(name for name in mismatched if not name.startswith("memory.")):
        raise InputError(
            f"Checkpoint {arguments.model!r}: its weights do not fit image_size {config.image_size} (such as "
            f"{misfits[0]}). Leave image_size out."
        )
    processor.size = {"height": config.image_size, "width": config.image_size}
    model.config.calibration = model.config.familiarity = None  # outdated once the weights change
    missing = sorted(name for name in loading["missing_keys"] if name.startswith(("dcl.", "classifier.")))
    if missing:
        raise InputError(
            f"Checkpoint {arguments.model!r}: {len(missing)} weights of backbone and classifier are missing (such as "
            f"{missing[0]}). Pass a complete checkpoint."
        )
    fresh = {name.partition(".")[0] for name in mismatched.union(loading["missing_keys"])}
    if "memory" in fresh:
        logger.warning("The memory starts empty: the checkpoint has none of this shape.")
    if "embedding_head" in fresh:
        logger.warning("The embedding head starts anew: the checkpoint has none.")
    return model, processor
