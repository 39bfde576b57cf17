"""What happens beside the steps of a training: momentum updates, early stopping, and stopping by a signal."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..modeling_dcl import DCLForPreTraining
from .distributed import world_size

logger = logging.getLogger(__name__)

#: SIGTERM comes from schedulers, containers and `kill`; SIGUSR1 from SLURM ahead of a time limit.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
#: Exit status of a run that a signal stopped: 128 + SIGTERM, whichever of the two came, as the shell reports it.
STOPPED = 128 + signal.SIGTERM
INTERRUPTED = 128 + signal.SIGINT  # that of Ctrl-C


class MomentumUpdate(TrainerCallback):
    """Updates the momentum encoder once per optimizer step, with or without gradient accumulation."""

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: DCLForPreTraining | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Called by the Trainer with the unwrapped model."""
        skipped = getattr(optimizer, "step_was_skipped", False)  # by the scaler of fp16
        if args.contrastive_weight > 0 and not skipped:
            model.momentum_update()


class GivenLearningRate(TrainerCallback):
    """Makes a run that resumes with another learning rate use it, in place of that of the checkpoint."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: torch.optim.Optimizer | None = None,
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        **kwargs: Any,
    ) -> None:
        """Called by the Trainer once the state of the checkpoint is loaded."""
        schedule = lr_scheduler.state_dict()
        started_with = max(schedule.get("base_lrs", [0.0]))  # not all schedules have it
        if started_with in (0.0, args.learning_rate):
            return
        scale = args.learning_rate / started_with
        lr_scheduler.load_state_dict(
            schedule | {name: [rate * scale for rate in schedule[name]] for name in ("base_lrs", "_last_lr")}
        )
        for group in optimizer.param_groups:
            group["lr"] *= scale
            group["initial_lr"] *= scale


class StopEarly(TrainerCallback):
    """Ends training after `early_stopping_patience` validations in succession without a better metric.

    It counts in the log, so a resumed run stops where an uninterrupted one does.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called by the Trainer."""
        self.on_evaluate(args, state, control)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called by the Trainer."""
        metric = f"eval_{(args.metric_for_best_model or 'auc').removeprefix('eval_')}"
        scores = [entry[metric] for entry in state.log_history if metric in entry]
        best = scores.index((max if args.greater_is_better else min)(scores)) if scores else 0
        if len(scores) - 1 - best >= args.early_stopping_patience:
            control.should_training_stop = True


class StopOnSignal(TrainerCallback):
    """Ends training after the current step if SIGTERM or SIGUSR1 arrives, and saves a checkpoint of that step.

    Ctrl-C does the same; a second one ends the process at once.

    With several processes, the signal may reach some of them only, or in different steps. They agree, without waiting
    for a device, by adding up whether it came; the answer of one step is read at the end of the next.

    Attributes:
        stopped: whether a signal ended the training.
        received: the signal that came to this process, or None.
    """

    def __init__(self):
        self.stopped, self.received = False, None
        self._group = None
        self._asked: tuple[dist.Work, torch.Tensor] | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to the signals within the `with`; only the main thread of a process can."""
        self.stopped, self.received = False, None
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        earlier = {number: signal.signal(number, self._receive) for number in (*SIGNALS, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: Any) -> None:
        self.received = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            logger.warning("Stopping after this step. Press Ctrl-C again to stop at once.")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called by the Trainer on all processes."""
        self._asked = None
        if world_size() > 1 and self._group is None:
            self._group = dist.new_group(backend="gloo")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called by the Trainer on all processes."""
        if self._all_received():
            self.stopped = control.should_save = control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called by the Trainer after a stop, too, where the epoch is not over."""
        if self.stopped:
            control.should_evaluate = control.should_save = control.should_log = False

    def _all_received(self) -> bool:
        if world_size() == 1:
            return self.received is not None
        answer = False
        if self._asked is not None:
            work, total = self._asked
            work.wait()
            answer = bool(total)
        total = torch.tensor(int(self.received is not None))
        self._asked = dist.all_reduce(total, group=self._group, async_op=True), total
        return answer


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold the signals back within the `with`; processes that start in it get none until `outlive_signals`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def outlive_signals(worker: int = 0) -> None:
    """Make a worker of a data loader outlive signals that were sent to all processes, so that the step can end.

    For `DataLoader(worker_init_fn=...)`. Without it, the signals kill the workers, and the step with them. SIGTERM of
    the parent, which ends its workers by it, still counts.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, (*SIGNALS, signal.SIGINT))
    threading.Thread(target=_leave_when_told, args=(os.getppid(),), daemon=True).start()


def _leave_when_told(parent: int) -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != parent:
        pass
    os._exit(0)
