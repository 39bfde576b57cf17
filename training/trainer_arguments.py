"""The arguments of the `Trainer` of DCL."""

import logging
import os
from dataclasses import dataclass

from transformers import TrainingArguments

from ..errors_dcl import InputError
from .settings import TrainingSettings

logger = logging.getLogger(__name__)

_LOADERS = 8  # processes that load data for a GPU, where there are as many cores


@dataclass
class DCLTrainingArguments(TrainingSettings, TrainingArguments):
    """`TrainingArguments` with the weights and the schedule of DCL's losses.

    Raises:
        InputError: if a setting is out of range, or does not fit DCL or this machine.
    """

    def __post_init__(self):
        TrainingSettings.__post_init__(self)
        chosen = self.dataloader_num_workers < 0
        self.dataloader_num_workers = max(0, self.dataloader_num_workers)
        TrainingArguments.__post_init__(self)
        if self.channels_last is None:
            self.channels_last = self.device.type == "cpu" and not self.bf16
        if chosen:
            own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            cores = own // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
            self.dataloader_num_workers = min(cores - 1, 1 if self.device.type == "cpu" else _LOADERS)
        elif self.dataloader_num_workers == 0 and self.device.type != "cpu":
            logger.warning(
                "dataloader_num_workers is 0, so the GPU waits while images are decoded. Leave dataloader_num_workers "
                "out, or give several."
            )
        if not self.accelerator_config.even_batches:
            raise InputError(
                "accelerator_config: even_batches is false, but all processes need equal batches. Omit it."
            )
        if self.batch_norm == "sync" and self.world_size > 1 and self.device.type == "cpu":
            raise InputError("batch_norm is 'sync', which needs GPUs. Choose local, shuffle or frozen.")
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # useless without a GPU, and PyTorch warns about it
        if self.n_gpu > 1:
            raise InputError(
                f"One process sees {self.n_gpu} GPUs, but DCL's memory works with one GPU a process. Launch with "
                f"`torchrun --nproc_per_node {self.n_gpu} train.py ...`, or set CUDA_VISIBLE_DEVICES to one of them."
            )
        if self.fp16 and self.device.type == "cpu":
            raise InputError("fp16 has no effect on a CPU. Use bf16, or neither.")
