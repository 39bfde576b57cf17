"""Run a checkpoint over the rows of a prepared data set: scores, and the evidence for them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import ClassLabel
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    BaseImageProcessor,
    PreTrainedModel,
)

from ...abstention_dcl import measure_sharpness
from ...configuration_dcl import DCLConfig, why_refused
from ...decision_dcl import calibrate
from ...errors_dcl import InputError, reason
from ...image_processing_dcl import DCLImageProcessor
from ...modeling_dcl import DCLForImageClassification, ReferenceNetwork
from ...prepared.cells import forged_cells
from ...prepared.dataset import CorruptImageError, decode_image, decode_mask, name_row
from ...prepared.names import FAKE, REAL
from ...prepared.splits import PreparedSplit
from .checkpoints import Checkpoint
from .other_models import ArrayProcessor, BinaryClassifier, load_classifier

#: Columns of `predictions.parquet`, one row per frame in the order of the data set: `logit` is the margin
#: z_fake - z_real, `p_fake_raw` its logistic function, and `p_fake` the probability calibrated by the checkpoint.
PREDICTIONS_SCHEMA = pa.schema(
    {
        "dataset": pa.string(),
        "split": pa.string(),
        "method": pa.string(),
        "video_id": pa.string(),
        "source_id": pa.string(),
        "frame": pa.int32(),
        "label": pa.int8(),
        "logit": pa.float64(),
        "p_fake_raw": pa.float64(),
        "p_fake": pa.float64(),
    }
)


def load_checkpoint(
    checkpoint: Checkpoint, device: torch.device, trust_remote_code: bool = False
) -> tuple[PreTrainedModel | BinaryClassifier, BaseImageProcessor | ArrayProcessor]:
    """Load the classifier of a checkpoint in float32, and its image processor.

    Args:
        checkpoint: result of `find_checkpoint`; other models than DCL go to `load_classifier`.
        device: device for the model.
        trust_remote_code: run the code saved with the checkpoint instead of this package's.

    Returns:
        The model, in evaluation mode, and the processor.

    Raises:
        InputError: if a file is missing or unreadable, or a weight of the model is missing.
    """
    if not checkpoint.is_dcl:
        return load_classifier(checkpoint, device, trust_remote_code)
    model_class = AutoModelForImageClassification if trust_remote_code else DCLForImageClassification
    config_class = AutoConfig if trust_remote_code else DCLConfig
    processor_class = AutoImageProcessor if trust_remote_code else DCLImageProcessor
    options = {"trust_remote_code": True} if trust_remote_code else {}
    try:
        config = config_class.from_pretrained(checkpoint.folder, **options)
    except Exception as error:  # invalid values; `find_checkpoint` already read the JSON
        raise InputError(
            f"config.json of {checkpoint.name!r}: is invalid ({why_refused(error)}). Correct it, or download it again."
        ) from error
    try:
        processor = processor_class.from_pretrained(checkpoint.folder, **options)
        model, loading = model_class.from_pretrained(
            checkpoint.folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # files, configurations and remote code raise many classes
        raise InputError(
            f"Checkpoint {checkpoint.name!r}: cannot be loaded ({reason(error)}). Copy or download it again."
        ) from error
    if loading["missing_keys"]:  # transformers initialised them at random
        missing = sorted(loading["missing_keys"])
        raise InputError(
            f"Checkpoint {checkpoint.name!r}: {len(missing)} weights of the classifier are missing (such as "
            f"{missing[0]}). Pass one saved by DCLForPreTraining or DCLForImageClassification."
        )
    return model.to(device).eval(), processor


# -------------------------------------------------------------------------------------------------- predictions


@dataclass
class PredictedBatch:
    """The predictions for one batch of rows."""

    rows: pa.Table
    """`PREDICTIONS_SCHEMA`, and the column to group by, if any."""
    evidence: np.ndarray
    """float32 (c,), all cells of the fakes with a known mask."""
    forged: np.ndarray
    """bool (c,), whether each cell is forged by the `mask_rule` and the `mask_threshold` of the configuration."""
    corrupt: list[int]
    """Rows skipped because they cannot be decoded."""
    features: np.ndarray | None = None
    """float32 (n, C), features of each row by the reference network, if given."""
    sharpness: np.ndarray | None = None
    """float64 (n,), `measure_sharpness` of each row, if a reference network is given."""


class _DecodedRows(torch.utils.data.Dataset):
    """Rows with decoded image and mask, and an optional change of the image; the error for a corrupt row."""

    def __init__(
        self,
        data: PreparedSplit,
        change: Callable[[np.ndarray, str, int], np.ndarray] | None,
        reference: ReferenceNetwork | None,
    ):
        self.data = data
        self.change = change
        self.reference = reference

    def __len__(self) -> int:
        return len(self.data.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.data.dataset[index]
        where = name_row(index, self.data.where)
        try:
            row["image"] = decode_image(row["image"], where)
            row["mask"] = decode_mask(row.get("mask"), where) if row["label"] == FAKE else None
        except CorruptImageError as error:  # returned, since a worker would bury it in a traceback
            return {"index": index, "error": error}
        if self.change is not None:
            row["image"] = self.change(row["image"], row["video_id"], row["frame"])
        if self.reference is not None:
            row["features"] = self.reference([row["image"]])[0]
            row["sharpness"] = measure_sharpness(row["image"])
        return row


class _Collate:
    """Turns rows into pixel values, in the worker that decoded them."""

    def __init__(self, processor: BaseImageProcessor | ArrayProcessor):
        self.processor = processor

    def __call__(self, rows: list[dict[str, Any]]) -> tuple[list, torch.Tensor | None, list]:
        corrupt = [row for row in rows if "error" in row]
        rows = [row for row in rows if "error" not in row]
        if not rows:
            return rows, None, corrupt
        pixel_values = self.processor([row.pop("image") for row in rows], return_tensors="pt")["pixel_values"]
        return rows, pixel_values, corrupt


@torch.inference_mode()
def predict(
    model: PreTrainedModel | BinaryClassifier,
    processor: BaseImageProcessor | ArrayProcessor,
    data: PreparedSplit,
    batch_size: int = 32,
    num_workers: int = 0,
    skip_corrupt: bool = False,
    group_by: str | None = None,
    change: Callable[[np.ndarray, str, int], np.ndarray] | None = None,
    batches: Sequence[Sequence[int]] | None = None,
    reference: ReferenceNetwork | None = None,
) -> Iterator[PredictedBatch]:
    """Score the rows of a data set, in its order.

    Args:
        model: a classifier on its device; its output has `logits` (N, 2) and `evidence` (N, h, w) or None.
        processor: its image processor.
        data: the rows.
        batch_size: images in a batch; only one batch is in memory.
        num_workers: processes that decode and resize.
        skip_corrupt: skip rows that cannot be decoded.
        group_by: another column of the data set to keep, as text.
        change: a function of the image (uint8 RGB), `video_id` and `frame` of a row, such as a `Perturbation`, that
            returns the image for the processor. It runs in the processes that decode.
        batches: the rows of each batch; None divides all rows by `batch_size`.
        reference: a network for `features`; if given, `sharpness` is returned, too.

    Yields:
        One result per batch.

    Raises:
        CorruptImageError: at the first row that cannot be decoded, unless `skip_corrupt`.
    """
    schema = predictions_schema(group_by)
    calibration = calibration_of(model)
    decoded = _DecodedRows(data, change, reference)
    if batches is None:
        batches = batches_of(len(decoded), batch_size)
    loader = DataLoader(decoded, batch_sampler=batches, num_workers=num_workers, collate_fn=_Collate(processor))
    for rows, pixel_values, corrupt in loader:
        if corrupt and not skip_corrupt:
            raise corrupt[0]["error"]
        evidence, forged = [np.empty(0, np.float32)], [np.empty(0, bool)]
        margins = torch.empty(0, dtype=torch.float64)
        if rows:
            outputs = model(pixel_values.to(model.device))
            logits = outputs.logits.double().cpu()
            margins = logits[:, FAKE] - logits[:, REAL]
            unshown = outputs.evidence is None or change is not None  # changed images need scores only
            shown = [None] * len(rows) if unshown else outputs.evidence.float().cpu().numpy()
            for row, cells in zip(rows, shown, strict=True):
                if cells is not None and row["mask"] is not None:
                    evidence.append(cells.ravel())
                    forged.append(forged_cells(row["mask"], cells.shape, model.config))
        columns = {name: [row[name] for row in rows] for name in ("method", "video_id", "source_id", "frame", "label")}
        columns |= {"dataset": [data.name] * len(rows), "split": [data.split] * len(rows)}
        columns |= {"logit": margins.numpy(), "p_fake_raw": calibrate(margins, None)}
        columns["p_fake"] = calibrate(margins, calibration)
        if group_by not in (None, *columns):
            feature = data.dataset.features[group_by]
            names = dict(enumerate(feature.names)) if isinstance(feature, ClassLabel) else None
            values = [row[group_by] for row in rows]
            # An unknown class is -1.
            columns[group_by] = [
                None if value is None else str(value) if names is None else names.get(value) for value in values
            ]
        yield PredictedBatch(
            pa.table({name: columns[name] for name in schema.names}, schema=schema),
            np.concatenate(evidence),
            np.concatenate(forged),
            [row["index"] for row in corrupt],
            None if reference is None else np.array([row["features"] for row in rows], np.float32),
            None if reference is None else np.array([row["sharpness"] for row in rows], np.float64),
        )


def calibration_of(model: PreTrainedModel | BinaryClassifier) -> dict[str, Any] | None:
    """Return the calibration of a model; None if it has none, as with code from before calibration existed."""
    return getattr(model.config, "calibration", None)


def batches_of(stop: int, batch_size: int, start: int = 0) -> list[range]:
    """Divide the rows from `start` to `stop` into batches."""
    return [range(first, min(first + batch_size, stop)) for first in range(start, stop, batch_size)]


def predictions_schema(group_by: str | None = None) -> pa.Schema:
    """Return the columns of `predictions.parquet`, with the one to group metrics by."""
    if group_by in (None, *PREDICTIONS_SCHEMA.names):
        return PREDICTIONS_SCHEMA
    return PREDICTIONS_SCHEMA.append(pa.field(group_by, pa.string()))
