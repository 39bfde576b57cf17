"""Export a checkpoint to ONNX: a float32 graph that matches the model and, on request, an int8 graph.

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
except ImportError:  # evaluation does without
    onnx = quantization = None

logger = logging.getLogger(__name__)

INT8_MODEL, RECORD = "model_int8.onnx", "export.json"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CODE = Path(__file__).parents[1]
#: How far an output may be from the model's: of one whose values exceed 1, as a part of the largest.
TOLERANCE = 1e-4
PARITY_BATCHES = (1, 2, 7)
#: Images of each class that calibrate int8: half set the ranges of activations, half choose the method.
CALIBRATION_IMAGES = 128
METHODS = ("minmax", "percentile", "entropy")
PERCENTILE = 99.99
#: Convolutions next to the image that stay in float32: most of the error of int8 comes from them, little of the time.
FLOAT_CONVOLUTIONS = 6
BATCH_SIZE = 8
#: What int8 changes, as tables and messages call it.
CHANGES = {
    "auc_loss": "loss of frame AUC",
    "mean_shift": "mean shift of p_fake",
    "largest_shift": "largest shift of p_fake",
    "flips": "share of flipped verdicts",
}
#: How much int8 may change on held-out frames; above any limit, nothing is written without `force`. A shift of .03 on
#: average and .25 at most leaves a reader with the same answer.
LIMITS = {"auc_loss": 0.01, "mean_shift": 0.03, "largest_shift": 0.25, "flips": 0.05}
#: With fewer held-out frames of either class, a single frame can decide whether AUC and verdicts are within limits.
LEAST_FRAMES = 20
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
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"Export needs {', '.join(missing)}: pip install 'dcl-face-forgery[onnx]'.")


# ---------------------------------------------------------------------------------------------------- float32


def write_graph(model: DCLForImageClassification, path: Path) -> None:
    """Write the graph of a model, in float32 and on the CPU, for batches of any size.

    Raises `InputError` if the backbone cannot be exported, or the graph has more bytes than one file can hold.
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
    """Compare a graph with its model, in batches of 1, 2 and 7 of some images, float32 (N, 3, H, W), N at least 1.

    Returns of each output the largest difference; where the model's values exceed 1, as a part of the largest of them.
    Raises `InputError` if one is above `TOLERANCE`, or the model gives what is not finite.
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


def split_rows(data: PreparedSplit) -> tuple[list[int], list[int], list[int]]:
    """Split the rows of a data set for int8; families are not divided between calibration and measurement.

    Returns rows that set the ranges of activations and rows that choose the method, both from every second family, at
    most `CALIBRATION_IMAGES` of each class in all; and all rows of the other families, which measure the result.
    Raises `InputError` if there are too few families for both classes to be in every part.
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
                f"{data.where} has too few families with {name} frames for int8: some calibrate it and others measure "
                "it. Pass a --dataset with more, or leave out --int8."
            )
        count = min(len(calibrating), CALIBRATION_IMAGES)
        spread = calibrating[np.linspace(0, len(calibrating) - 1, count).astype(int)]
        setting.extend(spread[::2].tolist())
        choosing.extend(spread[1::2].tolist())
    return setting, choosing, np.flatnonzero(measuring).tolist()


def read_pixels(data: PreparedSplit, processor: BaseImageProcessor, rows: Sequence[int]) -> torch.Tensor:
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
    """Quantize a graph to int8: weights to 7 bits per channel, activations to uint8.

    The first `FLOAT_CONVOLUTIONS` and the head after the feature map stay in float32.

    x86 CPUs without VNNI add pairs of uint8 x int8 products in 16 bits. Weights in [-64, 64] cannot overflow them (2 x
    255 x 64 = 32,640), those in [-127, 127] can. The graph therefore gives the same answers on every CPU.

    Images, float32 (N, 3, H, W), set the ranges of activations by one of `METHODS`: the least and largest values, the
    middle 99.98 % of them, or the range that loses the least information. Raises `InputError` if this fails.
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
            convolutions = [node.name for node in graph.graph.node if node.op_type == "Conv"]
            quantization.quantize_static(
                prepared,
                path,
                _Images(pixel_values),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,  # on x86 the kernels are for unsigned activations
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
        raise InputError(f"the graph cannot be quantized to int8 ({reason(error)}): leave out --int8.") from error


def margins_of(graph: OnnxClassifier, pixel_values: torch.Tensor) -> np.ndarray:
    """Return the margins z_fake - z_real of images, float64 (N,)."""
    logits = torch.cat([graph(batch).logits.double() for batch in pixel_values.split(BATCH_SIZE)])
    return (logits[:, FAKE] - logits[:, REAL]).numpy()


def correct_margins(path: Path, offset: float) -> None:
    """Subtract from the margins of a graph what quantization adds to them on average; the evidence stays as it is."""
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
    """Write the int8 graph whose margins follow those of the float32 graph best, and measure what it changes.

    Quantization moves all margins by much the same amount, which is subtracted in the head. Methods are compared by
    what is left.

    Returns:
        `method`; `calibration_images` and `choosing_images`; the `margin_errors` of each method, standard deviations
        over the images that choose; what `compare_margins` returns; `limits`, those that could be checked; and
        `exceeded`.

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
            "%s (%d real, %d forged) are too few to check AUC and verdicts in int8, which takes %d of each class: "
            "pass a larger --dataset.",
            *(where, changes["reals"], changes["fakes"], LEAST_FRAMES),
        )
    if exceeded:
        found = ", ".join(f"{CHANGES[name]} {changes[name]:.3f} (limit {LIMITS[name]:g})" for name in exceeded)
        sentence = f"int8 changes the scores too much on {where}: {found}."
        if not force:
            raise InputError(
                f"{sentence} Nothing was written. Leave out --int8 and use {GRAPH}, or pass --force to write "
                f"{INT8_MODEL} all the same."
            )
        logger.warning("%s --force writes %s all the same.", sentence, INT8_MODEL)
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
    """Measure how far the scores of the same frames differ between two graphs, given labels and margins (n,).

    The default rule for frames of the calibration gives the verdicts.

    Returns:
        `frames`, `reals` and `fakes`, how many were measured; `auc_float32`, `auc_int8` and `auc_loss`, the
        difference; `mean_shift` and `largest_shift` of the calibrated `p_fake`; `not_flagged_below` and
        `flagged_from`, where verdicts change; and `flips`, the share of frames with another verdict.
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
    """Check what `compare_margins` returned: return those of `LIMITS` that could be checked, and the exceeded ones.

    Those of AUC and flips cannot where a class has fewer than `LEAST_FRAMES` frames.
    """
    enough = min(changes["reals"], changes["fakes"]) >= LEAST_FRAMES
    limits = {name: limit for name, limit in LIMITS.items() if enough or name not in ("auc_loss", "flips")}
    return limits, [name for name, limit in limits.items() if not changes[name] <= limit]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what the exporter and the quantizer print of their progress and of what they may do better."""
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
    name: str,
    model: DCLForImageClassification,
    processor: BaseImageProcessor,
    folder: Path,
    revision: str,
    data: PreparedSplit | None = None,
    int8: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Export a checkpoint, whole or not at all; returns the content of `export.json`.

    The model is in float32, on the CPU, in evaluation mode; name and revision are for the record. An export that is in
    the folder, see `check_output`, is replaced. Graph and model are compared on rows of the validation split, or
    without `data` on random images; `int8` takes `data`, and `force` accepts what exceeds `LIMITS`. Raises
    `InputError` if the checkpoint cannot be exported, a graph differs too much from it, or nothing can be written.
    """
    if data is not None and crop_matches(data.crop, processor.crop) is False:
        logger.warning(
            "the faces of %s were cut otherwise than %s learned them: what is measured on them holds of such faces.",
            data.name,
            name,
        )
    target = folder.resolve()  # a link to a folder stays one
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        partial.mkdir(parents=True)
        record = {"checkpoint": name, "revision": revision}
        _fill(partial, record, model, processor, data, int8, force)
        _replace(target, partial)
    except OSError as error:
        raise InputError(f"nothing can be written to {str(folder)!r} ({error}): choose another --output.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return record


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
    """Copy the code that ships with a checkpoint: the pipeline, and all that it imports."""
    pipeline = CODE / "pipeline_dcl.py"
    for source in (pipeline, *map(Path, get_relative_import_files(pipeline))):
        shutil.copyfile(source, folder / source.name)
