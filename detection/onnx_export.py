"""The work of `dcl-export`: write the float32 graph, quantize it to int8, and measure how far both are from the model.

Half of the families of the validation split calibrate int8; the other half measures how much it changes the scores.

Long because the graphs, what int8 changes, and the record of both are made and replaced as one.
"""

import contextlib
import copy
import importlib.metadata
import importlib.util
import io
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from transformers import BaseImageProcessor
from transformers.dynamic_module_utils import get_relative_import_files

from ..decision_dcl import Rule, calibrate
from ..errors_dcl import InputError, reason
from ..faces_dcl import YUNET_FILE, copy_yunet
from ..modeling_dcl import REFERENCE_FILE, DCLForImageClassification, copy_reference
from ..onnx_dcl import GRAPH, INPUT, OUTPUTS, OnnxClassifier
from ..prepared.dataset import decode_image, name_row
from ..prepared.names import FAKE, REAL
from ..prepared.splits import PreparedSplit, crop_matches

try:
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process
except ImportError:  # evaluation does not need ONNX
    onnx = quantization = None

logger = logging.getLogger(__name__)

INT8_MODEL, RECORD = "model_int8.onnx", "export.json"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CODE = Path(__file__).parents[1]
#: Largest difference of an output from the model's; relative to the largest value if that exceeds 1.
TOLERANCE = 1e-4
PARITY_BATCHES = (1, 2, 7)
#: Images of each class that calibrate int8: half for the activation ranges, half for the choice of method.
CALIBRATION_IMAGES = 128
METHODS = ("minmax", "percentile", "entropy")
PERCENTILE = 99.99
#: First convolutions that stay in float32: they cause most of the int8 error, but take little time.
FLOAT_CONVOLUTIONS = 6
BATCH_SIZE = 8
#: Effects of int8, and their names in tables and messages.
CHANGES = {
    "auc_loss": "loss of frame AUC",
    "mean_shift": "mean shift of p_fake",
    "largest_shift": "largest shift of p_fake",
    "flips": "share of changed verdicts",
}
#: Limits for int8 on held-out frames; beyond any of them, nothing is written without `force`. Within a shift of .03 on
#: average and .25 at most, a reader draws the same conclusion.
LIMITS = {"auc_loss": 0.01, "mean_shift": 0.03, "largest_shift": 0.25, "flips": 0.05}
#: With fewer held-out frames of a class, a single frame can decide the checks of AUC and verdicts.
LEAST_FRAMES = 20
MOST_BYTES = 2**31 - 1  # maximum size of a protobuf


class ClassifierOutputs(nn.Module):
    """The classifier with a tuple as its output, like the graph: logits, evidence, embedding."""

    def __init__(self, model: DCLForImageClassification):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs in the order of the graph."""
        outputs = self.model(pixel_values)
        return tuple(getattr(outputs, name) for name in OUTPUTS)


def check_packages() -> None:
    """Raise an `InputError` if a package for exporting and running graphs is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"Export needs {', '.join(missing)}: pip install 'dcl-face-forgery[onnx]'.")


# ---------------------------------------------------------------------------------------------------- float32


def write_graph(model: DCLForImageClassification, path: Path) -> None:
    """Write the graph of a float32 model on the CPU, for batches of any size.

    Raises `InputError` if the backbone cannot be exported, or the graph is too large for one file.
    """
    size = model.config.image_size
    model_bytes = sum(p.numel() * p.element_size() for p in (*model.parameters(), *model.buffers()))
    if model_bytes > MOST_BYTES:
        raise InputError(
            f"The model has {model_bytes / 2**30:.1f} GiB of weights, but an ONNX file holds at most 2 GiB. Choose a "
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
    except Exception as error:  # the exporter may fail on any part of a timm model
        raise InputError(
            f"Backbone {model.config.backbone!r}: cannot be exported to ONNX ({reason(error)}). Train another one."
        ) from error
    graph = program.model_proto
    remove_traces(graph)
    onnx.save_model(graph, path)


def remove_traces(model: "onnx.ModelProto") -> None:
    """Remove the exporter's notes on source code, which contain local paths."""
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
    """Compare a graph with its model on images, float32 (N, 3, H, W) with N at least 1, in batches of 1, 2 and 7.

    Returns the largest difference of each output, relative to the model's largest value if that exceeds 1. Raises
    `InputError` if a difference is above `TOLERANCE`, or an output of the model is not finite.
    """
    largest = dict.fromkeys(OUTPUTS, 0.0)
    for count in PARITY_BATCHES:
        batch = pixel_values[torch.arange(count) % len(pixel_values)]
        expected, actual = model(batch), graph(batch)
        for name in OUTPUTS:
            if not expected[name].isfinite().all():
                raise InputError(f"The {name} of the model are not finite. Train it again before exporting it.")
            scale = max(1.0, expected[name].abs().max().item())
            difference = (actual[name] - expected[name]).abs().max().item() / scale
            if not difference <= TOLERANCE:
                raise InputError(
                    f"The exported graph does not match the model: its {name} differ by {difference:.2g} in a batch "
                    f"of {count} (limit {TOLERANCE:g}). Nothing was written. Use the model without ONNX."
                )
            largest[name] = max(largest[name], difference)
    return largest


# ------------------------------------------------------------------------------------------------------- int8


def split_rows(data: PreparedSplit) -> tuple[list[int], list[int], list[int]]:
    """Split the rows of a data set for int8, without dividing families between calibration and measurement.

    Returns rows for the activation ranges and rows for the choice of method, both from every second family and at most
    `CALIBRATION_IMAGES` of each class in total; and all rows of the other families, for measurement. Raises
    `InputError` if there are too few families for both classes in every part.
    """
    rows = data.dataset.select_columns(["label", "video_id", "source_id"]).to_pandas()
    families, labels = rows["source_id"].fillna(rows["video_id"]).to_numpy(), rows["label"].to_numpy()
    fakes = rows.groupby(families)["label"].mean()
    held_out = [family for _, kind in fakes.groupby(np.ceil(fakes) + np.floor(fakes)) for family in kind.index[1::2]]
    measuring = np.isin(families, held_out)
    setting, choosing = [], []
    for label, name in ((REAL, "real"), (FAKE, "forged")):
        calibrating = np.flatnonzero((labels == label) & ~measuring)
        if len(calibrating) < 2 or not (measuring & (labels == label)).any():
            raise InputError(
                f"{data.where} has too few families with {name} frames for int8, which needs separate families for "
                "calibration and measurement. Pass a --dataset with more, or leave out --int8."
            )
        count = min(len(calibrating), CALIBRATION_IMAGES)
        spread = calibrating[np.linspace(0, len(calibrating) - 1, count).astype(int)]
        setting.extend(spread[::2].tolist())
        choosing.extend(spread[1::2].tolist())
    return setting, choosing, np.flatnonzero(measuring).tolist()


def read_pixels(data: PreparedSplit, processor: BaseImageProcessor, rows: Sequence[int]) -> torch.Tensor:
    """Decode and preprocess rows: float32 (N, 3, H, W)."""
    images = [decode_image(data.dataset[row]["image"], name_row(row, data.where)) for row in rows]
    return torch.cat([processor([image], return_tensors="pt")["pixel_values"] for image in images])


class _Images:
    """Yields single images to the calibration of ONNX Runtime, so that each pass needs little memory."""

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
    """Return the names of the nodes after the feature map: those that do not lead to all outputs."""
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
    """Quantize a graph to int8: weights to 7 bits per channel, activations to uint8.

    The first `FLOAT_CONVOLUTIONS` and the head after the feature map stay in float32.

    x86 CPUs without VNNI add pairs of uint8 x int8 products in 16 bits. Weights in [-64, 64] cannot overflow them (2 x
    255 x 64 = 32,640), while those in [-127, 127] can. With 7 bits, the graph gives the same results on every CPU.

    Images, float32 (N, 3, H, W), define the activation ranges by one of `METHODS`: minimum and maximum, the middle
    99.98 % of the values, or the range that loses the least information. Raises `InputError` if quantization fails.
    """
    extra: dict[str, Any] = {"CalibStridedMinMax": 1}  # one image at a time, for every method
    if method == "percentile":
        extra["CalibPercentile"] = PERCENTILE
    try:
        with _quiet(), tempfile.TemporaryDirectory(prefix="dcl-int8-") as folder:
            prepared = Path(folder) / GRAPH
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            graph = onnx.load(prepared)
            for number, node in enumerate(graph.graph.node):
                node.name = node.name or f"{node.op_type}_{number}"  # nodes are excluded by name
            onnx.save_model(graph, prepared)
            convolutions = [node.name for node in graph.graph.node if node.op_type == "Conv"]
            quantization.quantize_static(
                prepared,
                path,
                _Images(pixel_values),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,  # x86 kernels expect unsigned activations
                weight_type=quantization.QuantType.QInt8,
                reduce_range=True,
                nodes_to_exclude=convolutions[:FLOAT_CONVOLUTIONS] + head_nodes(graph),
                calibrate_method={
                    "minmax": quantization.CalibrationMethod.MinMax,
                    "percentile": quantization.CalibrationMethod.Percentile,
                    "entropy": quantization.CalibrationMethod.Entropy,
                }[method],
                extra_options=extra,
            )
    except Exception as error:
        raise InputError(f"The graph cannot be quantized to int8 ({reason(error)}). Leave out --int8.") from error


def margins_of(graph: OnnxClassifier, pixel_values: torch.Tensor) -> np.ndarray:
    """Return the margins z_fake - z_real of images, float64 (N,)."""
    logits = torch.cat([graph(batch).logits.double() for batch in pixel_values.split(BATCH_SIZE)])
    return (logits[:, FAKE] - logits[:, REAL]).numpy()


def correct_margins(path: Path, offset: float) -> None:
    """Subtract the mean quantization error from the margins of a graph; the evidence stays unchanged."""
    model = onnx.load(path)
    head = next(node for node in model.graph.node if "logits" in node.output)
    head.output[list(head.output).index("logits")] = "uncorrected_logits"
    correction = np.zeros(2, np.float32)
    correction[FAKE] = -offset
    model.graph.initializer.append(onnx.numpy_helper.from_array(correction, "correction"))
    model.graph.node.append(onnx.helper.make_node("Add", ["uncorrected_logits", "correction"], ["logits"]))
    onnx.save_model(model, path)


def quantize(
    graph: OnnxClassifier, path: Path, processor: BaseImageProcessor, data: PreparedSplit, force: bool = False
) -> dict[str, Any]:
    """Write the int8 graph whose margins best match those of the float32 graph, and measure the differences.

    Quantization shifts all margins by about the same amount, which the head subtracts. Methods are compared by the
    remaining error.

    Returns:
        `method`; `calibration_images` and `choosing_images`, numbers of images; the `margin_errors` of each method,
        standard deviations over the choosing images; the result of `compare_margins`; `limits`, those that could be
        checked; and `exceeded`.

    Raises:
        InputError: if a limit is exceeded and `force` is not set, or the graph cannot be quantized.
    """
    setting_rows, choosing_rows, measuring_rows = split_rows(data)
    setting, choosing = (read_pixels(data, processor, rows) for rows in (setting_rows, choosing_rows))
    exact = margins_of(graph, choosing)
    errors, offsets = {}, {}
    for method in METHODS:
        candidate = path.with_name(f".{method}.onnx")
        write_int8(graph.path, candidate, setting, method)
        differences = margins_of(OnnxClassifier(candidate, graph.config), choosing) - exact
        errors[method], offsets[method] = float(differences.std()), float(differences.mean())
        if errors[method] == min(errors.values()):
            candidate.replace(path)
        else:
            candidate.unlink()
    method = min(errors, key=errors.__getitem__)
    correct_margins(path, offsets[method])
    graphs = graph, OnnxClassifier(path, graph.config)
    batches = [measuring_rows[start : start + BATCH_SIZE] for start in range(0, len(measuring_rows), BATCH_SIZE)]
    pixels = (read_pixels(data, processor, batch) for batch in batches)
    before, after = np.concatenate([[margins_of(each, batch) for each in graphs] for batch in pixels], axis=1)
    labels = np.array(data.dataset.select(measuring_rows)["label"])
    changes = compare_margins(labels, before, after, graph.config.calibration)
    limits, exceeded = check_limits(changes)
    where = f"{changes['frames']} held-out frames of {data.where}"
    if len(limits) < len(LIMITS):
        logger.warning(
            "%s (%d real, %d forged) are too few to check AUC and verdicts of int8, which needs %d of each class. "
            "Pass a larger --dataset.",
            *(where, changes["reals"], changes["fakes"], LEAST_FRAMES),
        )
    if exceeded:
        found = ", ".join(f"{CHANGES[name]} {changes[name]:.3f} (limit {LIMITS[name]:g})" for name in exceeded)
        sentence = f"int8 changes the scores too much on {where}: {found}."
        if not force:
            raise InputError(
                f"{sentence} Nothing was written. Leave out --int8 and use {GRAPH}, or pass --force to write "
                f"{INT8_MODEL} anyway."
            )
        logger.warning("%s With --force, %s is written anyway.", sentence, INT8_MODEL)
    return {
        "method": method,
        "calibration_images": len(setting),
        "choosing_images": len(choosing),
        "margin_errors": errors,
        **changes,
        "limits": limits,
        "exceeded": exceeded,
    }


def compare_margins(
    labels: np.ndarray, before: np.ndarray, after: np.ndarray, calibration: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Measure the score differences of two graphs on the same frames, given labels and margins (n,).

    Verdicts follow the calibration's default rule for frames.

    Returns:
        `frames`, `reals` and `fakes`, their numbers; `auc_float32`, `auc_int8` and their difference `auc_loss`;
        `mean_shift` and `largest_shift` of the calibrated `p_fake`; `not_flagged_below` and `flagged_from`, the
        verdict thresholds; and `flips`, the share of frames with a changed verdict.
    """
    auc_before, auc_after = (float(roc_auc_score(labels, margins)) for margins in (before, after))
    rule = Rule.of(calibration, "frame", None, None)
    old, new = calibrate(before, calibration), calibrate(after, calibration)
    shift = np.abs(new - old)
    return {
        "frames": len(labels),
        "reals": int((labels == REAL).sum()),
        "fakes": int((labels == FAKE).sum()),
        "auc_float32": auc_before,
        "auc_int8": auc_after,
        "auc_loss": auc_before - auc_after,
        "mean_shift": float(shift.mean()),
        "largest_shift": float(shift.max()),
        "not_flagged_below": rule.not_flagged_below,
        "flagged_from": rule.flagged_from,
        "flips": float(
            np.mean([rule.verdict(one) != rule.verdict(other) for one, other in zip(old, new, strict=True)])
        ),
    }


def check_limits(changes: Mapping[str, Any]) -> tuple[dict[str, float], list[str]]:
    """Check the result of `compare_margins`: return the `LIMITS` that could be checked, and the exceeded ones.

    If a class has fewer than `LEAST_FRAMES` frames, AUC and flips cannot be checked.
    """
    enough = min(changes["reals"], changes["fakes"]) >= LEAST_FRAMES
    limits = {name: limit for name, limit in LIMITS.items() if enough or name not in ("auc_loss", "flips")}
    return limits, [name for name, limit in limits.items() if not changes[name] <= limit]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the progress messages and hints of the exporter and the quantizer."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# ------------------------------------------------------------------------------------------------- the folder


def check_output(folder: Path) -> None:
    """Raise an `InputError` if a folder holds files other than those of an export, since they would be lost."""
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir():
        raise InputError(f"{str(folder)!r} is a file. Choose a folder for --output.")
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        return
    files = {GRAPH, INT8_MODEL, RECORD, YUNET_FILE, REFERENCE_FILE}
    ours = files | {"config.json", "preprocessor_config.json", "__pycache__"}
    foreign = [name for name in names if name not in ours and not name.endswith("_dcl.py")]
    if foreign or RECORD not in names:
        raise InputError(
            f"{str(folder)!r} exists and holds files other than an export (such as {(foreign or names)[0]}). Choose "
            "another --output, or empty the folder."
        )


def export(
    name: str,
    model: DCLForImageClassification,
    processor: BaseImageProcessor,
    folder: Path,
    revision: str,
    data: PreparedSplit | None = None,
    int8: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Export a checkpoint, completely or not at all; returns the content of `export.json`.

    The model must be in float32, on the CPU and in evaluation mode; name and revision are for the record. An earlier
    export in the folder, see `check_output`, is replaced. Graph and model are compared on validation rows, or without
    `data` on random images. `int8` needs `data`, and `force` accepts differences beyond `LIMITS`. Raises `InputError`
    if the checkpoint cannot be exported, a graph differs too much from it, or the folder cannot be written.
    """
    if data is not None and crop_matches(data.crop, processor.crop) is False:
        logger.warning(
            "The face crops of %s differ from the training data of %s. The results may not hold for its own crops.",
            data.name,
            name,
        )
    target = folder.resolve()  # keep a link to a folder
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # left by a killed run
        partial.mkdir(parents=True)
        record = {"checkpoint": name, "revision": revision}
        _fill(partial, record, model, processor, data, int8, force)
        _replace(target, partial)
    except OSError as error:
        raise InputError(
            f"Output folder {str(folder)!r}: cannot be written ({error}). Choose another --output."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return record


def _replace(folder: Path, complete: Path) -> None:
    check_output(folder)  # again, since hours may have passed
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)  # left by a killed run
    if folder.exists():
        folder.replace(old)
    complete.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def _fill(
    folder: Path,
    record: dict[str, Any],
    model: DCLForImageClassification,
    processor: BaseImageProcessor,
    data: PreparedSplit | None,
    int8: bool,
    force: bool,
) -> None:
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
    record |= {
        "parity": {"on": on, "batch_sizes": list(PARITY_BATCHES), "largest_difference": differences},
        "int8": None,
    }
    if int8:
        record["int8"] = {"data": f"{data.name} ({data.split})", "fingerprint": data.fingerprint}
        record["int8"] |= quantize(graph, folder / INT8_MODEL, processor, data, force)
    record["bytes"] = {path.name: path.stat().st_size for path in sorted(folder.glob("model*.onnx"))}
    used = ("torch", "timm", "transformers", *PACKAGES)
    record["versions"] = {package: importlib.metadata.version(package) for package in used}
    write_code(folder)
    copy_yunet(model.name_or_path, None, folder)
    copy_reference(model.name_or_path, None, folder)
    config = copy.deepcopy(model.config)
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    (folder / RECORD).write_text(text, encoding="utf-8")


def write_code(folder: Path) -> None:
    """Copy the code of a checkpoint: the pipeline and its imports."""
    pipeline = CODE / "pipeline_dcl.py"
    for source in (pipeline, *map(Path, get_relative_import_files(pipeline))):
        shutil.copyfile(source, folder / source.name)
