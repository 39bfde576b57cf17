"""The `Trainer` of DCL: computes the losses of two views, and updates the memory and the momentum encoder."""

import json
import logging
import math
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers import trainer as hf_trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, IntervalStrategy, SaveStrategy
from transformers.utils import PushInProgress

from ..errors_dcl import InputError
from ..modeling_dcl import DCLForPreTraining, DCLForPreTrainingOutput
from ..prepared.dataset import CorruptImageError
from ..prepared.names import FAKE, REAL
from .card import write_model_card
from .distributed import gather_rows, mean_over_processes
from .losses import inter_instance_loss, intra_instance_loss
from .pairs import BalancedSampler, PairDataset, collate
from .settings import TrainingSettings
from .streaming import RowGroupSampler, StreamedRows
from .views import apply_device_views, cell_masks

logger = logging.getLogger(__name__)

#: Files to upload: all that loading the model, its pipeline and the face detector needs. Pickles and optimizer state
#: are left out.
PUBLISHED_FILES = (
    *("config.json", "*.safetensors", "*.safetensors.index.json", "preprocessor_config.json"),
    *("*_dcl.py", "*.onnx"),
)
COMPONENTS = ("ce", "inter", "intra_fake", "intra_real")


@dataclass
class DCLTrainingArguments(TrainingSettings, TrainingArguments):
    """`TrainingArguments` with the weights and the schedule of DCL's losses.

    Raises:
        InputError: if a setting is out of range, or does not fit DCL or this machine.
    """

    def __post_init__(self):
        TrainingSettings.__post_init__(self)
        TrainingArguments.__post_init__(self)
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # useless without a GPU, and PyTorch warns about it
        if self.n_gpu > 1:
            raise InputError(
                f"One process sees {self.n_gpu} GPUs, but DCL's memory works with one GPU a process. Launch with "
                f"`torchrun --nproc_per_node {self.n_gpu} train.py ...`, or set CUDA_VISIBLE_DEVICES to one of them."
            )
        if self.fp16 and self.device.type == "cpu":
            raise InputError("fp16 has no effect on a CPU. Use bf16, or neither.")


class MomentumUpdate(TrainerCallback):
    """Updates the momentum encoder once per optimizer step, with or without gradient accumulation."""

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: DCLForPreTraining | None = None,
        **kwargs: Any,
    ) -> None:
        """Called by the Trainer with the unwrapped model."""
        model.momentum_update()


class DCLTrainer(Trainer):
    """Trains a `DCLForPreTraining` on a `PairDataset` and validates it on a `FaceDataset`.

    Besides the total loss, the log has its unweighted components, averaged over processes: `loss_ce`, `loss_inter`,
    `loss_intra_fake`, `loss_intra_real`; and their weights in the last step: `weight_ce`, `weight_inter`,
    `weight_intra_fake`, `weight_intra_real`.

    Args:
        *args: passed to `Trainer`.
        **kwargs: passed to `Trainer`; `processing_class` is the `DCLImageProcessor`.
    """

    EVALUATIONS, FEWEST_STEPS = 10, 50  # with short epochs: evaluations in a run, and steps between them at least

    loss_is_scaled_for_ga = False  # each loss is a batch mean, so the Trainer divides by the accumulation steps

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("data_collator", collate)
        super().__init__(*args, **kwargs)
        self.add_callback(MomentumUpdate)
        self._components: torch.Tensor | None = None
        self._last_contrastive_weight = 0.0
        self._memory_format = torch.channels_last if self.args.channels_last else torch.contiguous_format
        self.model.to(memory_format=self._memory_format)

    def space_evaluations(self, given: Collection[str] = ()) -> int | None:
        """Evaluate and save every few steps if epochs are so short that evaluation would outlast training.

        Args:
            given: names of the settings that the user gave. A given strategy is kept; given steps without a strategy
                set it.

        Returns:
            The number of steps between two evaluations if it was chosen here, else None.

        Raises:
            InputError: if the best checkpoint is wanted and `save_steps` is not a multiple of `eval_steps`.
        """
        args = self.args
        epochs = (args.eval_strategy, args.save_strategy) == (IntervalStrategy.EPOCH, SaveStrategy.EPOCH)
        if not epochs or not {"eval_strategy", "save_strategy"}.isdisjoint(given):
            return None
        named = [getattr(args, name) for name in ("eval_steps", "save_steps") if name in given]
        if not named:
            epoch = self._steps_in_epoch()
            steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * epoch)
            every = min(self.FEWEST_STEPS, math.ceil(steps / self.EVALUATIONS))
            if epoch >= every:
                return None
        elif args.load_best_model_at_end and not math.isclose(times := named[-1] / named[0], round(times)):
            raise InputError(
                f"save_steps is {named[-1]:g}, not a multiple of eval_steps ({named[0]:g}). Choose a multiple, so "
                "that the best checkpoint is saved."
            )
        args.eval_strategy, args.save_strategy = IntervalStrategy.STEPS, SaveStrategy.STEPS
        args.eval_steps, args.save_steps = (named[0], named[-1]) if named else (every, every)
        return None if named else every

    def _steps_in_epoch(self) -> int:
        args = self.args
        batches = math.ceil(len(self._get_train_sampler()) / (args.train_batch_size * args.world_size))
        return math.ceil(batches / args.gradient_accumulation_steps)

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        try:
            return super()._evaluate(*args, **kwargs)
        except CorruptImageError:  # validation precedes saving: save now, or the training is lost
            if self.args.world_size == 1:
                self._save_checkpoint(self.model, trial=None)
            raise

    # ------------------------------------------------------------------------------------------------ data and losses

    def _get_train_sampler(self, train_dataset: PairDataset | None = None) -> BalancedSampler | RowGroupSampler:
        dataset, args = self.train_dataset if train_dataset is None else train_dataset, self.args
        if not isinstance(dataset.rows, StreamedRows):
            return BalancedSampler(dataset.labels, seed=args.seed)
        sharing = args.accelerator_config
        readers = 1 if sharing.dispatch_batches else args.world_size  # otherwise the first process reads for all
        batch_size = self._train_batch_size // (readers if sharing.split_batches else 1)
        workers = max(1, args.dataloader_num_workers)
        return RowGroupSampler(dataset.labels, dataset.rows.group, batch_size, readers, workers, args.seed)

    def contrastive_weight(self) -> float:
        """Return the weight of the contrastive losses at this step, 1 - a."""
        if self.args.contrastive_warmup_steps >= 0:
            warm = self.state.global_step >= self.args.contrastive_warmup_steps
        else:
            warm = (self.state.epoch or 0.0) >= self.args.contrastive_warmup_epochs
        return self.args.contrastive_weight if warm else 0.0

    def was_contrastive(self) -> bool:
        """Whether the contrastive losses have a weight now, or get one after the warm-up."""
        return self.args.contrastive_weight > 0 and (self.is_in_train or self.contrastive_weight() > 0)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, DCLForPreTrainingOutput]:
        """Compute the loss of a batch and, in training, update the memory.

        Args:
            model: the model, wrapped or not.
            inputs: a batch of `PairDataset` in training; in evaluation one of `FaceDataset`, whose loss is the
                cross-entropy.
            return_outputs: whether to return the model's outputs, too.
            num_items_in_batch: ignored, since every loss is a mean.
        """
        if not model.training:
            outputs = model(inputs["pixel_values"].contiguous(memory_format=self._memory_format))
            loss = F.cross_entropy(outputs.logits, inputs["labels"])
            return (loss, outputs) if return_outputs else loss
        processor, labels = self.processing_class, inputs["labels"]
        views = apply_device_views(inputs, processor.image_mean, processor.image_std)
        query, key = (
            views[name].contiguous(memory_format=self._memory_format) for name in ("pixel_values", "key_pixel_values")
        )
        outputs = model(query, key)
        memory = self.accelerator.unwrap_model(model).memory
        memory.update(gather_rows(outputs.key), gather_rows(labels))  # before the loss, as in the released code
        loss = self._total_loss(outputs, labels, views["mask"], inputs["has_mask"])
        return (loss, outputs) if return_outputs else loss

    def _total_loss(
        self, outputs: DCLForPreTrainingOutput, labels: torch.Tensor, mask: torch.Tensor, has_mask: torch.Tensor
    ) -> torch.Tensor:
        args, weight = self.args, self.contrastive_weight()
        everywhere = torch.ones_like(labels, dtype=torch.bool)
        terms = {"ce": (F.cross_entropy(outputs.logits, labels, reduction="none"), everywhere)}
        # While their weight is 0, the contrastive terms are computed for the log, without a graph: a term that is not
        # yet finite cannot reach the gradient.
        with torch.set_grad_enabled(weight > 0):
            terms |= self._contrastive_terms(outputs, labels, mask, has_mask)
        self._record(terms)
        self._last_contrastive_weight = weight
        means = {name: mean_over_processes(values, valid) for name, (values, valid) in terms.items()}
        if weight > 0:
            intra = means["intra_fake"] + args.intra_real_weight * means["intra_real"]
            return (1 - weight) * means["ce"] + weight * (means["inter"] + args.intra_weight * intra)
        # Every parameter gets a gradient at every step, even if it is 0; otherwise DDP would wait for it.
        head = self.accelerator.unwrap_model(self.model).embedding_head
        return means["ce"] + 0.0 * sum(parameter.sum() for parameter in head.parameters())

    def _contrastive_terms(
        self, outputs: DCLForPreTrainingOutput, labels: torch.Tensor, mask: torch.Tensor, has_mask: torch.Tensor
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        config, features = self.model.config, outputs.feature_map
        memory = self.accelerator.unwrap_model(self.model).memory
        forged_share = cell_masks(mask, features.shape[-2:])
        intra, has_both_parts = intra_instance_loss(
            features, labels, forged_share, config.temperature, config.mask_threshold, config.self_pairs
        )
        inter = inter_instance_loss(
            outputs.query, outputs.key, labels, memory.queue, memory.filled, config.temperature
        )
        return {
            "inter": (inter, torch.ones_like(has_both_parts)),
            "intra_fake": (intra, has_both_parts & has_mask & (labels == FAKE)),
            "intra_real": (intra, labels == REAL),
        }

    # ------------------------------------------------------------------------------------------------------- the log

    def _record(self, terms: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Add the (sum, count) of each component, without synchronising with the device."""
        sums = torch.stack(
            [torch.stack([torch.where(valid, v.detach(), 0).sum(), valid.sum()]) for v, valid in terms.values()]
        )
        self._components = sums if self._components is None else self._components + sums

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and add the components of the training loss since the last log entry."""
        if "loss" in logs and self._components is not None:
            # One reduction of fixed size, so that all processes join it, even without a fake with a mask.
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(self._components)
            for name, (total, count) in zip(COMPONENTS, self._components.tolist(), strict=True):
                if count:
                    logs[f"loss_{name}"] = total / count
            weight = self._last_contrastive_weight
            intra = weight * self.args.intra_weight
            weights = (1 - weight, weight, intra, intra * self.args.intra_real_weight)
            logs |= {f"weight_{name}": value for name, value in zip(COMPONENTS, weights, strict=True)}
            self._components = None
        super().log(logs, start_time)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """Build the learning rate schedule: the Trainer's, or the one for `lr_step_epochs`."""
        args = self.args
        steps_in_epoch = self._steps_in_epoch()
        warmup = args.contrastive_warmup_steps
        warmup = warmup if warmup >= 0 else args.contrastive_warmup_epochs * steps_in_epoch
        if args.contrastive_weight > 0 and warmup >= num_training_steps:
            logger.warning(
                "The contrastive losses have no effect: their warm-up lasts %g of %d steps. Shorten it with "
                "contrastive_warmup_steps, or train longer.",
                warmup,
                num_training_steps,
            )
        if args.lr_step_epochs > 0 and self.lr_scheduler is None:
            steps = max(1, round(args.lr_step_epochs * steps_in_epoch))
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda step: 0.1 ** (step // steps))
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def _run_epoch(self, *, epoch: int, train_dataloader: DataLoader, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            return  # resumed after the last step within an epoch, where the Trainer would add a step
        # When several processes resume within an epoch, the Trainer's own call does not reach the sampler.
        batches = train_dataloader.batch_sampler
        while hasattr(batches, "batch_sampler"):
            batches = batches.batch_sampler
        batches.sampler.set_epoch(epoch)
        super()._run_epoch(epoch=epoch, train_dataloader=train_dataloader, **kwargs)

    # ----------------------------------------------------------------------------------- checkpoints, card and Hub

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            (folder / "training_args.bin").unlink(missing_ok=True)  # an unused pickle
            (folder / "training_args.json").write_text(self.args.to_json_string())

    def create_model_card(self, model_name: str | None = None, **kwargs: Any) -> None:
        """Write the model card, README.md: usage, training, validation scores and limitations."""
        if self.is_world_process_zero():
            repository = model_name or self.hub_model_id or self.args.hub_model_id
            folder = self.args.output_dir
            write_model_card(self, repository or Path(folder).name, repository or folder, self.was_contrastive())

    def push_to_hub(self, commit_message: str | None = "End of training", blocking: bool = True, **kwargs: Any) -> Any:
        """Publish the model, its code, its processor and its card.

        Args:
            commit_message: the message of the commit.
            blocking: wait for the upload.
            **kwargs: `token` and `private`, for a new repository.

        Returns:
            The commit, or its future; None on all processes but the first.
        """
        if self.hub_model_id is None:
            self.init_hf_repo(token=kwargs.get("token"), private=kwargs.get("private"))
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        return self._upload(commit_message, run_as_future=not blocking, token=kwargs.get("token"))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # The Trainer's own version omits the code that `auto_map` refers to, and adds a pickle.
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if not self.args.hub_always_push and self.push_in_progress is not None and not self.push_in_progress.is_done():
            return
        for pattern in PUBLISHED_FILES:
            for source in Path(checkpoint_folder).glob(pattern):
                shutil.copy(source, self.args.output_dir)
        job = self._upload(f"Training in progress, step {self.state.global_step}", run_as_future=True)
        if self.push_in_progress is None or self.push_in_progress.is_done():
            self.push_in_progress = PushInProgress([])
        self.push_in_progress.jobs.append(job)

    def _upload(self, commit_message: str | None, run_as_future: bool, token: str | None = None) -> Any:
        self.create_model_card()
        return hf_trainer.hf_api().upload_folder(
            repo_id=self.hub_model_id,
            folder_path=self.args.output_dir,
            allow_patterns=[*PUBLISHED_FILES, "README.md"],
            ignore_patterns=["*/*"],  # not the checkpoint folders, since `*` matches slashes, too
            commit_message=commit_message,
            token=token or self.args.hub_token,
            revision=self.args.hub_revision,
            run_as_future=run_as_future,
        )


def last_complete_checkpoint(output_dir: str | Path) -> Path | None:
    """Return the latest complete checkpoint: one with a trainer state, which is written last."""
    found = {}
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        try:
            found[json.loads((folder / "trainer_state.json").read_text())["global_step"]] = folder
        except (OSError, ValueError, KeyError):
            continue
    return found[max(found)] if found else None
