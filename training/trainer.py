"""The `Trainer` of DCL: computes the losses of two views, and updates the memory and the momentum encoder.

Long because the methods of a `Trainer` share its state and belong to one class.
"""

import logging
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate.utils import set_seed
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, TrainOutput

from ..errors_dcl import InputError
from ..modeling_dcl import DCLForPreTraining, DCLForPreTrainingOutput
from ..prepared.cells import cell_masks
from ..prepared.dataset import CorruptImageError, keys_of
from ..prepared.names import FAKE, REAL
from .callbacks import GivenLearningRate, MomentumUpdate, StopEarly, StopOnSignal, outlive_signals, signals_held
from .distributed import (
    gather_rows,
    means_over_processes,
    shuffle_over_processes,
    unshuffle_over_processes,
    world_size,
)
from .losses import inter_instance_loss, intra_instance_loss
from .monitoring import LossMonitor, NonFiniteError, contrast_measures, draw_views, gradient_shares, send_picture
from .pairs import BalancedSampler, PairDataset, collate
from .publishing import PublishingTrainer, last_complete_checkpoint
from .streaming import RowGroupSampler, StreamedRows
from .trainer_arguments import DCLTrainingArguments
from .views import apply_device_views

logger = logging.getLogger(__name__)

COMPONENTS = ("ce", "inter", "intra_fake", "intra_real")


class DCLTrainer(PublishingTrainer):
    """Trains a `DCLForPreTraining` on a `PairDataset` and validates it on a `FaceDataset`.

    Besides the total loss, the log has its unweighted components, averaged over processes: `loss_ce`, `loss_inter`,
    `loss_intra_fake`, `loss_intra_real`; their weights in the last step: `weight_ce`, `weight_inter`,
    `weight_intra_fake`, `weight_intra_real`; `usable_masks`, the share of fakes whose mask Intra-ICL could use; and
    the measures of `contrast_measures` for the last batch. Without contrastive losses (`contrastive_weight` 0), there
    is no key encoder, no memory and no second view to pay for.

    On SIGTERM or SIGUSR1, training saves a checkpoint at the end of the step and returns; `stopped` tells so.

    Args:
        *args: passed to `Trainer`.
        **kwargs: passed to `Trainer`; `processing_class` is the `DCLImageProcessor`.

    Raises:
        InputError: if the model has parameters that are not float32.
    """

    EVALUATIONS, FEWEST_STEPS = 10, 50  # with short epochs: evaluations in a run, and steps between them at least

    loss_is_scaled_for_ga = False  # each loss is a batch mean, so the Trainer divides by the accumulation steps

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("data_collator", collate)
        super().__init__(*args, **kwargs)
        self._monitor, self._signals = LossMonitor(), StopOnSignal()
        for callback in (MomentumUpdate, GivenLearningRate, self._monitor, self._signals):
            self.add_callback(callback)
        if self.args.early_stopping_patience is not None:
            self.add_callback(StopEarly)
        self.current_gradient_accumulation_steps = 1  # set anew by the Trainer at every step
        self._views_shown = False
        self._last_contrastive_weight = 0.0
        self._last_contrast: tuple[torch.Tensor, ...] | None = None
        self._last_gradient_shares: dict[str, float] = {}
        self._memory_format = torch.channels_last if self.args.channels_last else torch.contiguous_format
        self._prepare_model(self.model)
        if self.args.world_size > 1 and self.args.contrastive_weight > 0:
            config, default = self.model.config, type(self.model.config)().hard_samples
            if config.hard_share is None and config.hard_samples == default:
                logger.warning(
                    "hard_samples is %d for the batch of all %d processes together, so the queues fill more slowly "
                    "than with one. Set hard_share to keep the rate; 0.3125 is 5 of a class's 16 in a batch of 32.",
                    *(default, self.args.world_size),
                )

    def _prepare_model(self, model: DCLForPreTraining) -> None:
        kinds = {parameter.dtype for parameter in model.parameters()} - {torch.float32}
        if kinds:
            raise InputError(
                f"The model has parameters of type {kinds.pop()}, in which a momentum encoder hardly moves. Load it "
                "with dtype=torch.float32; bf16 and fp16 of the training arguments compute in half precision."
            )
        if self.args.batch_norm == "sync" and self.args.world_size > 1:
            convert_sync_batchnorm(model)
        if self.args.log_gradient_shares:
            # Autocast hands a copy of the feature map on, which the loss does not depend on.
            model.dcl.register_forward_hook(lambda *call: setattr(self, "_features", call[-1].last_hidden_state))
        self._batch_norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        model.to(memory_format=self._memory_format)

    def call_model_init(self, trial: Any = None) -> DCLForPreTraining:
        """Build the model of a trial of `hyperparameter_search`."""
        model = super().call_model_init(trial)
        if hasattr(self, "_memory_format"):  # the constructor prepares the first one
            self._prepare_model(model)
        return model

    @property
    def stopped(self) -> bool:
        """Whether a signal ended the last training, or came in its last validation; all processes agree on it."""
        late = world_size() == 1 and self._signals.received is not None
        return self._signals.stopped or late

    @property
    def signal(self) -> int | None:
        """The signal that came to this process during the last training, or None."""
        return self._signals.received

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as `Trainer.train` does.

        Raises:
            InputError: if a loss or a weight is not finite; nothing of it is saved.
        """
        if self.args.world_size > 1:
            set_seed(self.args.seed, device_specific=True)  # or every process would drop the same features
        with self._signals.listening():
            return super().train(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """Return the loader of training batches, whose workers outlive the signals that end a run."""
        loader = super().get_train_dataloader()
        # The Trainer's own function would seed generators that no sample draws from.
        loader.worker_init_fn = outlive_signals
        return loader

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Return the batches of a step. The first call of an epoch starts the workers of the loader."""
        with signals_held():
            return super().get_batch_samples(*args, **kwargs)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return the loader of validation batches, whose workers outlive the signals that end a run."""
        loader = super().get_eval_dataloader(eval_dataset)
        loader.worker_init_fn = outlive_signals
        return loader

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
        whole = math.floor if args.dataloader_drop_last else math.ceil
        batches = whole(len(self._get_train_sampler()) / (args.train_batch_size * args.world_size))
        return math.ceil(batches / args.gradient_accumulation_steps)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Validate as `Trainer.evaluate` does; with `evaluate_momentum`, validate the momentum encoder, too."""
        if self.is_in_train:
            self._require_finite()
        # A signal counts at the end of a step only, and must not reach workers while they start.
        with signals_held() if self.is_in_train else nullcontext():
            return self._evaluate_encoders(eval_dataset, ignore_keys, metric_key_prefix)

    def _evaluate_encoders(
        self, eval_dataset: Any, ignore_keys: list[str] | None, metric_key_prefix: str
    ) -> dict[str, float]:
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self.args.evaluate_momentum:
            model = self.accelerator.unwrap_model(self.model)
            model.dcl, model.momentum_dcl = model.momentum_dcl, model.dcl
            try:
                metrics |= super().evaluate(eval_dataset, ignore_keys, f"{metric_key_prefix}_momentum")
            finally:
                model.dcl, model.momentum_dcl = model.momentum_dcl, model.dcl
        return metrics

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
        if self.args.batch_norm == "frozen":
            for module in self._batch_norms:
                module.eval()
        processor, labels = self.processing_class, inputs["labels"]
        views = apply_device_views(inputs, processor.image_mean, processor.image_std)
        query = views["pixel_values"].contiguous(memory_format=self._memory_format)
        if not self._views_shown:
            self._show_views(query, views.get("key_pixel_values"), views["mask"])
        if self.args.contrastive_weight == 0:
            outputs = model(query)
        else:
            outputs = self._encode_pair(model, query, views["key_pixel_values"], labels)
        loss = self._total_loss(outputs, labels, views["mask"], inputs["has_mask"], inputs["row"])
        return (loss, outputs) if return_outputs else loss

    def _encode_pair(
        self, model: nn.Module, query: torch.Tensor, key: torch.Tensor, labels: torch.Tensor
    ) -> DCLForPreTrainingOutput:
        """Encode both views and update the memory."""
        shuffled = self.args.batch_norm == "shuffle" and world_size() > 1
        if shuffled:
            key, where = shuffle_over_processes(key, self.args.seed + self.state.global_step)
        outputs = model(query, key.contiguous(memory_format=self._memory_format))
        if shuffled:
            outputs.key = unshuffle_over_processes(outputs.key, where)
        gathered = gather_rows(torch.cat([outputs.key, labels[:, None].float()], dim=1))
        memory, keys, classes = self.accelerator.unwrap_model(model).memory, gathered[:, :-1], gathered[:, -1].long()
        memory.update(keys, classes)  # before the loss, as in the released code
        entered = memory.hard_count(torch.stack([(classes == label).sum() for label in (REAL, FAKE)]))
        self._last_contrast = outputs.query.detach(), outputs.key, labels, entered
        return outputs

    def _total_loss(
        self,
        outputs: DCLForPreTrainingOutput,
        labels: torch.Tensor,
        mask: torch.Tensor,
        has_mask: torch.Tensor,
        rows: torch.Tensor,
    ) -> torch.Tensor:
        args, weight = self.args, self.contrastive_weight()
        everywhere = torch.ones_like(labels, dtype=torch.bool)
        terms = {"ce": (F.cross_entropy(outputs.logits, labels, reduction="none"), everywhere)}
        if args.contrastive_weight > 0:
            # While their weight is 0, the contrastive terms are computed for the log, without a graph: a term that is
            # not yet finite cannot reach the gradient.
            with torch.set_grad_enabled(weight > 0):
                terms |= self._contrastive_terms(outputs, labels, mask, has_mask)
        self._last_contrastive_weight = weight
        means = means_over_processes(terms)
        if weight > 0:
            weighted = {name: factor * means[name] for name, factor in self._weights(weight).items()}
            loss = sum(weighted.values())
            if args.log_gradient_shares and self._logs_this_step():
                self._last_gradient_shares = gradient_shares(weighted, self._features)
        else:
            # Every parameter gets a gradient at every step, even if it is 0; otherwise DDP would wait for it.
            head = self.accelerator.unwrap_model(self.model).embedding_head
            loss = means["ce"] + 0.0 * sum(parameter.sum() for parameter in head.parameters())
        self._watch(terms, loss, labels, rows)
        return loss

    def _weights(self, weight: float) -> dict[str, float]:
        """Return the weight of each component of the loss, given that of the contrastive losses (Eq. 10)."""
        intra = weight * self.args.intra_weight
        return dict(zip(COMPONENTS, (1 - weight, weight, intra, intra * self.args.intra_real_weight), strict=True))

    def _logs_this_step(self) -> bool:
        steps = self.state.logging_steps
        return bool(steps) and (self.state.global_step + 1) % steps == 0 and self.accelerator.sync_gradients

    def _contrastive_terms(
        self, outputs: DCLForPreTrainingOutput, labels: torch.Tensor, mask: torch.Tensor, has_mask: torch.Tensor
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        config, features = self.model.config, outputs.feature_map
        memory = self.accelerator.unwrap_model(self.model).memory
        forged_share = cell_masks(mask, features.shape[-2:], config.mask_rule)
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

    def _show_views(self, query: torch.Tensor, key: torch.Tensor | None, mask: torch.Tensor) -> None:
        """Write the views of the first batch into `views.png`, and show them in the trackers."""
        self._views_shown = True
        if self.is_in_train and self.is_world_process_zero():
            mean, std = (
                torch.tensor(values, device=query.device)[:, None, None]
                for values in (self.processing_class.image_mean, self.processing_class.image_std)
            )
            picture = draw_views(query * std + mean, None if key is None else key * std + mean, mask)
            picture.save(Path(self.args.output_dir, "views.png"))
            send_picture(picture, "views", self.args.report_to, self.callback_handler.callbacks)

    def _watch(
        self,
        terms: dict[str, tuple[torch.Tensor, torch.Tensor]],
        loss: torch.Tensor,
        labels: torch.Tensor,
        rows: torch.Tensor,
    ) -> None:
        """Add a batch to the means of the log, without waiting for the device."""
        share = torch.full((1,), 1 / self.current_gradient_accumulation_steps, device=loss.device)
        watched = {f"loss_{name}": term for name, term in terms.items()} | {
            "loss": (loss.detach()[None] * share, share)
        }
        if "intra_fake" in terms:
            watched["usable_masks"] = terms["intra_fake"][1].float(), labels == FAKE
        self._monitor.add(watched, self.state.global_step + 1, rows)

    @contextmanager
    def _finite(self) -> Iterator[None]:
        """Turn a term of the loss that is not finite into a sentence with its step, its videos and the way on."""
        try:
            yield
        except NonFiniteError as error:
            rows = [] if error.rows is None else error.rows.cpu()
            names = list(keys_of(self.train_dataset.rows).video_id.to_numpy()[rows])
            if world_size() > 1:
                parts: list[Any] = [None] * world_size()
                dist.all_gather_object(parts, names)
                names = [name for part in parts for name in part]
            shown = ", ".join(dict.fromkeys(names)) or "not recorded"
            raise InputError(
                f"Not finite at step {error.step}: {error.term} (videos of the batch: {shown}). {self._way_on()}"
            ) from error

    def _way_on(self) -> str:
        last = last_complete_checkpoint(self.args.output_dir)
        rate = f"--learning_rate {self.args.learning_rate / 10:g}"
        if last is None:
            return f"Nothing was saved. Train again with a lower learning rate, such as {rate}."
        return (
            f"Nothing was saved since {last.name}. Go on from there with a lower learning rate: add "
            f"--resume_from_checkpoint {last} {rate}. If its weights have diverged already, start again: --overwrite."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and add the means since the last log entry and the measures of the last batch.

        Raises:
            InputError: if a term of the loss was not finite.
        """
        if "loss" in logs:
            with self._finite():
                logs |= self._monitor.means()
            logs |= {f"weight_{name}": value for name, value in self._weights(self._last_contrastive_weight).items()}
            if self._last_contrast is not None:
                *batch, entered = self._last_contrast
                query, key, labels = map(gather_rows, batch)
                memory = self.accelerator.unwrap_model(self.model).memory
                logs |= contrast_measures(query, key, labels, memory, entered)
            logs |= {f"gradient_share_{name}": share for name, share in self._last_gradient_shares.items()}
            self._last_gradient_shares = {}
        super().log(logs, start_time)

    # ----------------------------------------------------------------------------------------- optimizer and schedule

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the parameters with weight decay: all of them with `adam_l2`, otherwise the Trainer's choice."""
        return (
            [name for name, _ in model.named_parameters()]
            if self.args.adam_l2
            else super().get_decay_parameter_names(model)
        )

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: DCLTrainingArguments, model: nn.Module | None = None) -> tuple[Any, Any]:
        """Return Adam with L2 if `adam_l2` is set, otherwise the Trainer's optimizer."""
        if not args.adam_l2:
            return Trainer.get_optimizer_cls_and_kwargs(args, model)
        betas = (args.adam_beta1, args.adam_beta2)
        return torch.optim.Adam, {"lr": args.learning_rate, "betas": betas, "eps": args.adam_epsilon, "fused": True}

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
            steps, rise = (
                max(1, round(args.lr_step_epochs * steps_in_epoch)),
                args.get_warmup_steps(num_training_steps),
            )
            self.lr_scheduler = LambdaLR(
                optimizer or self.optimizer,
                lambda step: (step / rise if step < rise else 1.0) * 0.1 ** (step // steps),
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        if self._signals.stopped:  # keep the checkpoint of this step, also beside a better one
            self.state.best_model_checkpoint = None
        return super()._finalize_training(*args, **kwargs)

    def _run_epoch(self, *, epoch: int, train_dataloader: DataLoader, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            return  # resumed after the last step, where the Trainer would add one
        # When several processes resume within an epoch, the Trainer's own call does not reach the sampler.
        batches = train_dataloader.batch_sampler
        while hasattr(batches, "batch_sampler"):
            batches = batches.batch_sampler
        batches.sampler.set_epoch(epoch)
        super()._run_epoch(epoch=epoch, train_dataloader=train_dataloader, **kwargs)

    # ----------------------------------------------------------------------------------- checkpoints, card and Hub

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as `Trainer.save_model` does; all processes must call it.

        Raises:
            InputError: if a term of the loss or a weight is not finite; then nothing is written.
        """
        self._require_finite()
        if self.args.contrastive_weight == 0:
            # Cross-entropy alone leaves it behind.
            self.accelerator.unwrap_model(self.model).synchronize_momentum_encoder()
        super().save_model(output_dir, _internal_call)

    def _require_finite(self) -> None:
        """Raise an `InputError` if a term of the loss since the last log entry, or a weight, is not finite."""
        with self._finite():
            self._monitor.fold()
        model = self.accelerator.unwrap_model(self.model)
        for name, value in model.state_dict().items():
            if not value.isfinite().all():
                raise InputError(
                    f"The weights {name} are not finite after step {self.state.global_step}. {self._way_on()}"
                )
