"""Export a checkpoint to ONNX: a graph that answers as the model does, in 32-bit floats and, if wished, in int8.

What is chosen for int8 is chosen on the validation split, and so is what it costs measured.
"""

import contextlib
import copy
import io
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from transformers import BaseImageProcessor
from transformers.dynamic_module_utils import get_relative_import_files

from ..dataset_dcl import decode_image, name_row
from ..errors_dcl import InputError, reason
from ..faces_dcl import YUNET_FILE, copy_yunet
from ..familiarity_dcl import REFERENCE_FILE, copy_reference
from ..modeling_dcl import DCLForImageClassification
from ..onnx_dcl import GRAPH, INPUT, OUTPUTS, OnnxClassifier
from ..prepared_dcl import FAKE, REAL
from .checkpoints import Checkpoint
from .inputs import EvaluationSet
from .metrics import binary_metrics, rank_scores
from .predictions import predict
from .records import versions
from .results import crop_matches

try:
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process
except ImportError:  # evaluation does without
    onnx = quantization = None

logger = logging.getLogger(__name__)

INT8_MODEL, RECORD = "model_int8.onnx", "export.json"
PACKAGE = Path(__file__).parents[1]
#: How far an output may be from the model's: of one whose values exceed 1, as a part of the largest.
TOLERANCE = 1e-4
PARITY_BATCHES = (1, 2, 7)
#: Images that set the ranges of int8, and as many others that choose among the ways to set them.
CALIBRATION_IMAGES = 128
METHODS = ("minmax", "percentile", "entropy")
PERCENTILE = 99.99
BATCH_SIZE = 8
MOST_BYTES = 2**31 - 1  # a protobuf holds no more


class ClassifierOutputs(nn.Module):
    """The classifier with a tuple for an output, as a graph has it: logits, evidence, embedding."""

    def __init__(self, model: DCLForImageClassification):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs that a graph has, in its order."""
        outputs = self.model(pixel_values)
        return tuple(getattr(outputs, name) for name in OUTPUTS)


def check_packages() -> None:
    """Raise an `InputError` if what exports and runs graphs is not installed."""
    missing = [name for name, there in versions("onnx", "onnxscript", "onnxruntime").items() if there is None]
    missing = [name for name in missing if name != "dcl"]
    if missing:
        raise InputError(f"the export needs {', '.join(missing)}: `pip install {' '.join(missing)}`.")


# ---------------------------------------------------------------------------------------------------- float32


def write_graph(model: DCLForImageClassification, path: Path) -> None:
    """Write the graph of a model, for batches of any size.

    Args:
        model: in float32, on the CPU.
        path: where it goes.

    Raises:
        InputError: if the backbone cannot be exported, or the graph has more bytes than one file can hold.
    """
    size = model.config.image_size
    model_bytes = sum(p.numel() * p.element_size() for p in (*model.parameters(), *model.buffers()))
    if model_bytes > MOST_BYTES:
        raise InputError(
            f"the model has {model_bytes / 2**30:.1f} GiB of weights, and an ONNX file holds no more than 2: choose a "
            "smaller backbone."
        )
    try:
        with _quiet():
            program = torch.onnx.export(
                ClassifierOutputs(model).eval(),
                (torch.zeros(2, 3, size, size),),
                dynamo=True,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_shapes=({0: "batch"},),
                verbose=False,
            )
    except Exception as error:  # whatever in a timm model the exporter does not understand
        raise InputError(
            f"the backbone {model.config.backbone!r} cannot be exported to ONNX ({reason(error)}): train another one."
        ) from error
    graph = program.model_proto
    remove_traces(graph)
    onnx.save_model(graph, path)


def remove_traces(model: "onnx.ModelProto") -> None:
    """Remove what the exporter notes of the code it came through: paths on this machine, which nothing needs."""
    for part in (model, model.graph, *model.functions):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for part in (
        *(model.graph.node, model.graph.input, model.graph.output, model.graph.value_info, model.graph.initializer),
        *(function.node for function in model.functions),
    ):
        for entry in part:
            entry.ClearField("metadata_props")
            entry.ClearField("doc_string")


@torch.inference_mode()
def measure_parity(
    model: DCLForImageClassification, graph: OnnxClassifier, pixel_values: torch.Tensor
) -> dict[str, float]:
    """Compare a graph with its model, in batches of 1, 2 and 7 images.

    Args:
        model: in evaluation mode.
        graph: what was exported of it.
        pixel_values: float32 (N, 3, H, W), N at least 1; repeated where they are fewer than 7.

    Returns:
        Of each output, the largest difference; where the model's values exceed 1, as a part of the largest of them.

    Raises:
        InputError: if a difference is above `TOLERANCE`, or the model gives what is not finite.
    """
    largest = dict.fromkeys(OUTPUTS, 0.0)
    for count in PARITY_BATCHES:
        batch = pixel_values[torch.arange(count) % len(pixel_values)]
        expected, actual = model(batch), graph(batch)
        for name in OUTPUTS:
            if not expected[name].isfinite().all():
                raise InputError(
                    f"the {name} of the model are not finite numbers: train it again before exporting it."
                )
            scale = max(1.0, expected[name].abs().max().item())
            difference = (actual[name] - expected[name]).abs().max().item() / scale
            if not difference <= TOLERANCE:
                raise InputError(
                    f"the exported graph does not answer as the model does: its {name} differ by {difference:.2g} in "
                    f"a batch of {count}, and {TOLERANCE:g} is allowed; nothing was written. Use the model as it is."
                )
            largest[name] = max(largest[name], difference)
    return largest


# ------------------------------------------------------------------------------------------------------- int8


def choose_rows(data: EvaluationSet, count: int) -> tuple[list[int], list[int]]:
    """Choose rows that set the ranges of int8, and others that choose among ways: of each, reals and fakes alike.

    Args:
        data: the validation split.
        count: rows of each kind, fewer where the split has not so many.

    Raises:
        InputError: if a class has less than two rows.
    """
    labels = np.asarray(data.dataset["label"])
    chosen: tuple[list[int], list[int]] = ([], [])
    for label, name in ((REAL, "real"), (FAKE, "fake")):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            raise InputError(
                f"{data.where} has {len(rows)} {name} rows, and int8 takes at least 2 of each class to be calibrated: "
                "pass a data set with more, or leave out --int8."
            )
        spread = rows[np.linspace(0, len(rows) - 1, min(len(rows), count)).astype(int)]
        for part, start in zip(chosen, (0, 1), strict=True):
            part.extend(spread[start::2].tolist())
    return chosen


def read_pixels(data: EvaluationSet, processor: BaseImageProcessor, rows: Sequence[int]) -> torch.Tensor:
    """Decode rows and make model input of them, float32 (N, 3, H, W)."""
    images = [decode_image(data.dataset[row]["image"], name_row(row, data.where)) for row in rows]
    return torch.cat([processor([image], return_tensors="pt")["pixel_values"] for image in images])


class _Images:
    """Images one by one, as the calibration of ONNX Runtime asks for them: what a pass leaves in memory is small."""

    def __init__(self, pixel_values: torch.Tensor):
        self.pixel_values = pixel_values
        self.set_range(0, len(pixel_values))

    def __len__(self) -> int:
        return len(self.pixel_values)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._rows = iter(range(start_index, end_index))

    def get_next(self) -> dict[str, np.ndarray] | None:
        row = next(self._rows, None)
        return None if row is None else {INPUT: self.pixel_values[row : row + 1].numpy()}


def head_nodes(model: "onnx.ModelProto") -> list[str]:
    """Return the names of the nodes after the feature map, those that are not on the way to all outputs."""
    producers = {output: node for node in model.graph.node for output in node.output}
    ways = []
    for output in OUTPUTS:
        way, open_ = set(), [output]
        while open_:
            node = producers.get(open_.pop())
            if node is not None and node.name not in way:
                way.add(node.name)
                open_.extend(node.input)
        ways.append(way)
    return [node.name for node in model.graph.node if not all(node.name in way for way in ways)]


def write_int8(source: Path, path: Path, pixel_values: torch.Tensor, method: str) -> None:
    """Quantise a graph: weights to int8 for each channel, activations to uint8; the head after the map stays float.

    Args:
        source: the graph in floats.
        path: where the graph in int8 goes.
        pixel_values: float32 (N, 3, H, W), whose activations set the ranges.
        method: how; of `METHODS`: the least and largest values, the middle 99.98 % of them, or the range that loses
            the least information.

    Raises:
        InputError: if ONNX Runtime cannot quantise the graph.
    """
    extra: dict[str, Any] = {"CalibStridedMinMax": 1}  # one image at a time, whatever the method
    if method == "percentile":
        extra["CalibPercentile"] = PERCENTILE
    try:
        with _quiet(), tempfile.TemporaryDirectory(prefix="dcl-int8-") as folder:
            prepared = Path(folder) / GRAPH
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            graph = onnx.load(prepared)
            for number, node in enumerate(graph.graph.node):
                node.name = node.name or f"{node.op_type}_{number}"  # what is left out is left out by name
            onnx.save_model(graph, prepared)
            quantization.quantize_static(
                prepared,
                path,
                _Images(pixel_values),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,  # on x86 the kernels are for unsigned activations
                weight_type=quantization.QuantType.QInt8,
                nodes_to_exclude=head_nodes(graph),
                calibrate_method={
                    "minmax": quantization.CalibrationMethod.MinMax,
                    "percentile": quantization.CalibrationMethod.Percentile,
                    "entropy": quantization.CalibrationMethod.Entropy,
                }[method],
                extra_options=extra,
            )
    except Exception as error:
        raise InputError(f"the graph cannot be quantised to int8 ({reason(error)}): leave out --int8.") from error


def margins_of(graph: OnnxClassifier, pixel_values: torch.Tensor) -> np.ndarray:
    """Return the margins z_fake - z_real of images, float64 (N,)."""
    logits = torch.cat([graph(batch).logits.double() for batch in pixel_values.split(BATCH_SIZE)])
    return (logits[:, FAKE] - logits[:, REAL]).numpy()


def quantise(graph: OnnxClassifier, path: Path, processor: BaseImageProcessor, data: EvaluationSet) -> dict[str, Any]:
    """Write the graph in int8 whose margins are closest to those in floats, and measure what it costs.

    Args:
        graph: in floats.
        path: where the graph in int8 goes.
        processor: of the checkpoint.
        data: its validation split.

    Returns:
        `method`; `calibration_images` and `choosing_images`; of each method the `margin_errors`, root mean squares
        over the images that choose; `frames`, `auc_float32`, `auc_int8` and `auc_cost` over the whole split; and the
        mean and the largest change of the calibrated `p_fake`.
    """
    setting, choosing = (read_pixels(data, processor, rows) for rows in choose_rows(data, CALIBRATION_IMAGES))
    exact = margins_of(graph, choosing)
    errors = {}
    for method in METHODS:
        candidate = path.with_name(f".{method}.onnx")
        write_int8(graph.path, candidate, setting, method)
        margins = margins_of(OnnxClassifier(candidate, graph.config), choosing)
        errors[method] = float(np.sqrt(np.mean((margins - exact) ** 2)))
        if errors[method] == min(errors.values()):
            candidate.replace(path)
        else:
            candidate.unlink()
    before = _scored(graph, processor, data)
    after = _scored(OnnxClassifier(path, graph.config), processor, data)
    aucs = {}
    for name, rows in (("float32", before), ("int8", after)):
        metrics = binary_metrics(rows["label"].to_numpy(), rank_scores(rows), "frames")
        if metrics["auc"] is None:
            raise InputError(f"the cost of int8 cannot be measured on {data.where}: {metrics['reason']}.")
        aucs[name] = metrics["auc"]
    change = np.abs(after["p_fake"].to_numpy() - before["p_fake"].to_numpy())
    return {
        "method": min(errors, key=errors.__getitem__),
        "calibration_images": len(setting),
        "choosing_images": len(choosing),
        "margin_errors": errors,
        "frames": len(before),
        "auc_float32": aucs["float32"],
        "auc_int8": aucs["int8"],
        "auc_cost": aucs["float32"] - aucs["int8"],
        "p_fake_change": {"mean": float(change.mean()), "largest": float(change.max())},
    }


def _scored(graph: OnnxClassifier, processor: BaseImageProcessor, data: EvaluationSet) -> Any:
    return pa.concat_tables(batch.rows for batch in predict(graph, processor, data, BATCH_SIZE)).to_pandas()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what the exporter and the quantiser print of their progress and of what they may do better."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# ------------------------------------------------------------------------------------------------- the folder


@dataclass
class Export:
    """What was exported."""

    folder: Path
    record: dict[str, Any]
    """The content of `export.json`."""


def check_output(folder: Path) -> None:
    """Raise an `InputError` if a folder holds anything that an export does not write, which would be lost."""
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir():
        raise InputError(f"{str(folder)!r} is a file: choose a folder for --output.")
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        return
    files = {GRAPH, INT8_MODEL, RECORD, YUNET_FILE, REFERENCE_FILE}
    ours = files | {"config.json", "preprocessor_config.json", "__pycache__"}
    foreign = [name for name in names if name not in ours and not name.endswith("_dcl.py")]
    if foreign or RECORD not in names:
        raise InputError(
            f"{str(folder)!r} is there and is no export alone (it has {(foreign or names)[0]}): choose another "
            "--output, or empty it."
        )


def export(
    checkpoint: Checkpoint,
    model: DCLForImageClassification,
    processor: BaseImageProcessor,
    folder: Path,
    data: EvaluationSet | None = None,
    int8: bool = False,
) -> Export:
    """Export a checkpoint, whole or not at all.

    Args:
        checkpoint: what `find_checkpoint` found.
        model: loaded from it, in float32, on the CPU, in evaluation mode.
        processor: loaded from it.
        folder: what `check_output` lets pass; an export that is there is replaced.
        data: the validation split, on whose rows graph and model are compared; without it, on random images.
        int8: quantise, too; takes `data`.

    Returns:
        The folder and its record. In it are `model.onnx` (and `model_int8.onnx`), `config.json`,
        `preprocessor_config.json`, the code that runs them, and `export.json`.

    Raises:
        InputError: if the checkpoint cannot be exported, the graph answers otherwise, or nothing can be written.
    """
    check_packages()
    check_output(folder)
    if data is not None and crop_matches(data.crop, processor.crop) is False:
        logger.warning(
            "the faces of %s were cut otherwise than %s learned them: what is measured on them holds of such faces.",
            data.name,
            checkpoint.name,
        )
    target = folder.resolve()  # a link to a folder stays one
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        partial.mkdir(parents=True)
        record = _fill(partial, checkpoint, model, processor, data, int8)
        _replace(target, partial)
    except OSError as error:
        raise InputError(f"nothing can be written to {str(folder)!r} ({error}): choose another --output.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Export(folder, record)


def _replace(folder: Path, complete: Path) -> None:
    check_output(folder)  # hours may have passed
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)  # of a run that was killed
    if folder.exists():
        folder.replace(old)
    complete.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def _fill(
    folder: Path,
    checkpoint: Checkpoint,
    model: DCLForImageClassification,
    processor: BaseImageProcessor,
    data: EvaluationSet | None,
    int8: bool,
) -> dict[str, Any]:
    write_graph(model, folder / GRAPH)
    graph = OnnxClassifier(folder / GRAPH, model.config)
    if data is None:
        size = model.config.image_size
        generator = torch.Generator().manual_seed(0)
        pixel_values, on = torch.rand(max(PARITY_BATCHES), 3, size, size, generator=generator) * 2 - 1, "random images"
    else:
        rows = np.linspace(0, len(data.dataset) - 1, max(PARITY_BATCHES)).astype(int).tolist()
        pixel_values, on = read_pixels(data, processor, rows), f"{data.name} ({data.split})"
    differences = measure_parity(model, graph, pixel_values)
    record: dict[str, Any] = {
        "checkpoint": Path(checkpoint.name).name if checkpoint.folder == Path(checkpoint.name) else checkpoint.name,
        "revision": checkpoint.revision,
        "parity": {"on": on, "batch_sizes": list(PARITY_BATCHES), "largest_difference": differences},
        "int8": None,
    }
    if int8:
        record["int8"] = {"data": f"{data.name} ({data.split})", "fingerprint": data.fingerprint}
        record["int8"] |= quantise(graph, folder / INT8_MODEL, processor, data)
    record["bytes"] = {path.name: path.stat().st_size for path in sorted(folder.glob("model*.onnx"))}
    record["versions"] = versions("torch", "timm", "transformers", "onnx", "onnxscript", "onnxruntime")
    write_code(folder)
    copy_yunet(str(checkpoint.folder), None, folder)
    copy_reference(str(checkpoint.folder), None, folder)
    config = copy.deepcopy(model.config)
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    (folder / RECORD).write_text(text, encoding="utf-8")
    return record


def write_code(folder: Path) -> None:
    """Copy the code that ships with a checkpoint: the pipeline, and all that it imports."""
    pipeline = PACKAGE / "pipeline_dcl.py"
    for source in (pipeline, *map(Path, get_relative_import_files(pipeline))):
        shutil.copyfile(source, folder / source.name)


__all__ = [
    "INT8_MODEL",
    "RECORD",
    "TOLERANCE",
    "ClassifierOutputs",
    "Export",
    "check_output",
    "check_packages",
    "export",
    "head_nodes",
    "measure_parity",
    "write_graph",
    "write_int8",
]
