"""What is logged of a training: means of the loss terms, measures of the contrast, and pictures of the views.

The means are sums on the device, which only a log entry or a checkpoint reads, so that no step waits for the device.
"""

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import ExportableState

from ..modeling_dcl import DCLMemory
from ..prepared.names import CLASS_NAMES
from .distributed import world_size

Terms = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


class NonFiniteError(ArithmeticError):
    """The loss was not finite: the `term` that was not, the `step`, and the `rows` (int64) of its batch, if known."""

    def __init__(self, term: str, step: int, rows: torch.Tensor | None):
        super().__init__(f"{term} at step {step}")
        self.term, self.step, self.rows = term, step, rows


class LossMonitor(TrainerCallback, ExportableState):
    """Sums each term of the loss, and finds the first step at which one is not finite.

    The Trainer saves its state with each checkpoint, so that the first log entry of a resumed run covers as many steps
    as that of an uninterrupted one.
    """

    def __init__(self):
        self._names: list[str] = []
        self._sums: torch.Tensor | None = None  # float32 (terms, 2): sum and count of each
        self._first: torch.Tensor | None = None  # float32 (terms,): first step with a value that is not finite
        self._batches: list[tuple[int, torch.Tensor]] = []
        self._saved: dict[str, list[float]] = {}

    def add(self, terms: Terms, step: int, rows: torch.Tensor) -> None:
        """Add the terms of a batch.

        Args:
            terms: for each name the values, float (N,), and which of them count, bool or float (N,).
            step: the step that the batch belongs to, counted from 1.
            rows: int64 (N,), the rows of the data set in the batch.

        The term "loss" is what is trained on.
        """
        values = [value.detach().float() for value, _ in terms.values()]
        counted = [torch.where(valid > 0, value, 0) for value, (_, valid) in zip(values, terms.values(), strict=True)]
        sums = torch.stack(
            [torch.stack([v.sum(), valid.sum()]) for v, (_, valid) in zip(counted, terms.values(), strict=True)]
        )
        finite = sums[:, 0].isfinite()
        if self._sums is None:
            self._names = list(terms)
            saved = [self._saved.get(name, [0.0, 0.0]) for name in terms]
            self._sums = torch.tensor(saved, device=sums.device)
            self._first = torch.full((len(terms),), torch.inf, device=sums.device)
        self._sums = self._sums + sums
        self._first = torch.where(finite, self._first, self._first.clamp(max=step))
        self._batches.append((step, rows))

    def fold(self) -> dict[str, list[float]]:
        """Add up the sums of all processes, in the first one: {term: [sum, count]}; all processes must call it.

        Raises:
            NonFiniteError: in all processes, if the term "loss" was not finite in one of them.
        """
        if self._sums is None:
            return self._saved
        if world_size() > 1:
            dist.all_reduce(self._sums)
        sums = dict(zip(self._names, self._sums.tolist(), strict=True))
        # A term that has no weight yet may be anything: the loss decides.
        if "loss" in sums and not math.isfinite(sums["loss"][0]):
            if world_size() > 1:
                dist.all_reduce(self._first, op=dist.ReduceOp.MIN)
            first = dict(zip(self._names, self._first.tolist(), strict=True))
            step = int(first["loss"])
            parts = [name for name in self._names if name != "loss" and first[name] <= step]
            rows = [batch for number, batch in self._batches if number == step]
            raise NonFiniteError(", ".join(parts or ["loss"]), step, torch.cat(rows) if rows else None)
        if world_size() > 1 and dist.get_rank() > 0:
            self._sums = torch.zeros_like(self._sums)
        self._batches = self._batches[-1:]
        return sums

    def means(self) -> dict[str, float]:
        """Return the mean of each term since the last call over all processes, and start again; see `fold`."""
        sums = self.fold()
        self._sums, self._saved = None, {}
        return {name: total / count for name, (total, count) in sums.items() if count}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called by the Trainer on all processes; a resumed run starts from the sums of its checkpoint."""
        # A checkpoint of an older version has no entry, and the Trainer expects one.
        exported = state.stateful_callbacks.setdefault("LossMonitor", {}).get("attributes", {})
        resumed = state.global_step > 0 and state.is_world_process_zero
        self._sums, self._batches = None, []
        self._saved = exported.get("sums", {}) if resumed else {}

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called by the Trainer on all processes."""
        self._sums, self._batches, self._saved = None, [], {}

    def state(self) -> dict[str, Any]:
        """Return what the Trainer saves with a checkpoint; call `fold` before."""
        sums = {} if self._sums is None else dict(zip(self._names, self._sums.tolist(), strict=True))
        return {"args": {}, "attributes": {"sums": sums or self._saved}}


@torch.no_grad()
def contrast_measures(
    query: torch.Tensor, key: torch.Tensor, labels: torch.Tensor, memory: DCLMemory, entered: torch.Tensor
) -> dict[str, float]:
    """Measure the contrast of a batch.

    Args:
        query: (N, D) unit embeddings of the query views.
        key: (N, D) unit embeddings of the key views.
        labels: int64 (N,), 0 real, 1 fake.
        memory: the memory, after this batch.
        entered: int64 (2,), how many keys of each class entered its queue with this batch.

    Returns:
        By name:

        - `similarity_positive`: mean cosine of query and own key;
        - `similarity_hardest_negative`: mean over the batch of the largest cosine of a query and a key of the
          other class's queue; missing while a queue is empty;
        - `uniformity`: log of the mean of `exp(-2 (q_i - q_j)^2)` over pairs of different images, at most 0; lower is
          more uniform (Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and
          Uniformity on the Hypersphere", 2020). Their alignment is 2 - 2 `similarity_positive`;
        - `prototype_cosine`: cosine of the two prototypes;
        - `queue_filled_real`, `queue_filled_fake`: written share of each queue;
        - `queue_age_real`, `queue_age_fake`: batches since the oldest key of each queue was written, if every batch
          adds as many keys as this one; missing if this one adds none.
    """
    query, key, queue = query.float(), key.float(), memory.queue.float()
    filled, size = memory.filled, queue.shape[1]
    measures = {"similarity_positive": (query * key).sum(1).mean()}
    if filled.all():
        unwritten = torch.arange(size, device=query.device) >= filled[:, None]
        hardest = torch.stack([(query @ queue[label].T).masked_fill(unwritten[label], -1).amax(1) for label in (0, 1)])
        measures["similarity_hardest_negative"] = hardest.take_along_dim((1 - labels)[None], 0).mean()
    if len(query) > 1:
        distances = torch.pdist(query).square()
        measures["uniformity"] = torch.logsumexp(-2 * distances, 0) - math.log(len(distances))
    measures["prototype_cosine"] = F.cosine_similarity(*memory.prototype.float(), dim=0)
    for label, name in enumerate(CLASS_NAMES):
        measures[f"queue_filled_{name}"] = filled[label] / size
        if entered[label]:
            measures[f"queue_age_{name}"] = filled[label] / entered[label]
    return {name: value.item() for name, value in measures.items()}


def gradient_shares(terms: Mapping[str, torch.Tensor], features: torch.Tensor) -> dict[str, float]:
    """Return the share of each weighted term of a loss in the gradient at the feature map.

    Args:
        terms: weighted scalars of one graph that contains `features`.
        features: (N, C, h, w) feature map.

    Returns:
        For each term the norm of its gradient, divided by the sum of the norms of all terms.
    """
    norms = {}
    for name, term in terms.items():
        (gradient,) = torch.autograd.grad(term, features, retain_graph=True)
        norms[name] = gradient.float().norm().item()
    total = sum(norms.values()) or 1.0
    return {name: norm / total for name, norm in norms.items()}


def draw_views(query: torch.Tensor, key: torch.Tensor | None, mask: torch.Tensor, count: int = 8) -> Image.Image:
    """Draw the views of a batch: a column for each face, with its query, its key and the mask of the query.

    Args:
        query: (N, 3, H, W) float, values in [0, 1] as far as they are shown.
        key: as `query`, or None.
        mask: uint8 (N, H, W), the forged share of each pixel of the query times 255.
        count: faces to draw at most.
    """
    rows = [query, *([] if key is None else [key]), mask[:, None].expand(-1, 3, -1, -1) / 255]
    tiles = torch.stack([row[:count].float().cpu().clamp(0, 1) for row in rows])
    picture = tiles.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    return Image.fromarray((picture * 255).round().to(torch.uint8).numpy())


def send_picture(
    picture: Image.Image, name: str, trackers: Sequence[str], callbacks: Sequence[TrainerCallback]
) -> None:
    """Show a picture in the trackers that take one: TensorBoard, wandb and trackio."""
    if "tensorboard" in trackers:
        for callback in callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_image(name, np.asarray(picture), dataformats="HWC")
    for tracker in {"wandb", "trackio"} & set(trackers):
        module = importlib.import_module(tracker)
        module.log({name: module.Image(picture if tracker == "wandb" else np.asarray(picture))})
