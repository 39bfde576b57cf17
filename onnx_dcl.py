"""The classifier of a checkpoint as an ONNX graph in ONNX Runtime, with the interface of the model."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from .configuration_dcl import DCLConfig
from .errors_dcl import InputError, is_count, reason
from .faces_dcl import YUNET_FILE
from .hub_dcl import REFERENCE_FILE, find_model
from .modeling_dcl import DCLForImageClassification, DCLImageClassifierOutput

try:
    import onnxruntime
except ImportError:  # only needed to run graphs
    onnxruntime = None

GRAPH = "model.onnx"
INPUT = "pixel_values"
#: The outputs of the graph and their numbers of dimensions; the first is the batch.
OUTPUTS = {"logits": 2, "evidence": 3, "embedding": 2}
FLOAT = "tensor(float)"


class OnnxClassifier:
    """A classifier that was exported to ONNX, running on the CPU.

    Args:
        path: the graph. Its input is `pixel_values`, float32 (N, 3, H, W). Its outputs are `logits` (N, 2), `evidence`
            (N, h, w) and `embedding` (N, C), float32, for any N.
        config: of the checkpoint; its calibration also applies to the graph.
        threads: threads per call; None: all cores.

    Attributes:
        config: as given.
        channels: length of an embedding.
        device: the CPU.

    Raises:
        InputError: if ONNX Runtime is not installed or cannot read the graph, the graph is of another model, or the
            number of threads is not a whole number from 1.
    """

    device = torch.device("cpu")
    p_fake = DCLForImageClassification.p_fake  # needs only the configuration

    def __init__(self, path: str | Path, config: DCLConfig, threads: int | None = None):
        if onnxruntime is None:
            raise InputError("ONNX graphs need ONNX Runtime. Install it with `pip install onnxruntime`.")
        if threads is not None and not is_count(threads, least=1):
            raise InputError(f"threads is {threads!r}. Choose a whole number from 1, or None for all cores.")
        self.config = config
        self.path = Path(path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised and need not be printed
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            # Loaded by path, so that ONNX Runtime accepts external tensors only from the same folder.
            self._session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has a class for each of its status codes
            raise InputError(
                f"ONNX Runtime cannot run {str(self.path)!r} ({reason(error)}). Export the checkpoint again."
            ) from error
        self._check_graph()

    @classmethod
    def from_pretrained(
        cls, name: str | Path, file: str = GRAPH, threads: int | None = None, revision: str | None = None
    ) -> "OnnxClassifier":
        """Load an export of `dcl-export`.

        Args:
            name: the folder, or a model id on the Hub.
            file: the file name of the graph, such as `model_int8.onnx`.
            threads: threads per call; None: all cores.
            revision: the branch, tag or commit on the Hub.

        Returns:
            The classifier.

        Raises:
            InputError: if there is no such folder, model or file, or the graph cannot be run.
        """
        if Path(file).name != file or not file.endswith(".onnx"):
            raise InputError(
                f"{str(file)!r} is not the file name of a graph. Pass one such as model.onnx, without a folder."
            )
        folder = find_model(str(name), ["config.json", file, REFERENCE_FILE], revision)
        if not (folder / file).is_file():
            there = sorted(path.name for path in folder.glob("*.onnx") if path.name != YUNET_FILE)
            remedy = f"Choose {there[0]}" if there else "Export it to another folder with dcl-export, and pass that"
            raise InputError(f"Graph {file} not found in {str(name)!r}. {remedy}.")
        try:
            config = DCLConfig.from_pretrained(folder)
        except Exception as error:  # of reading the file, or of its content
            raise InputError(
                f"The config.json of {str(name)!r} cannot be read ({reason(error)}). Export the checkpoint again."
            ) from error
        return cls(folder / file, config, threads)

    def _check_graph(self) -> None:
        """Raise an `InputError` if inputs and outputs differ from those of the model."""
        inputs = {node.name: (node.type, node.shape) for node in self._session.get_inputs()}
        outputs = {node.name: (node.type, node.shape) for node in self._session.get_outputs()}
        size = self.config.image_size
        type_, shape = inputs.get(INPUT, (None, ()))
        fits = list(inputs) == [INPUT] and type_ == FLOAT and len(shape) == 4
        if not fits or isinstance(shape[0], int) or list(shape[1:]) != [3, size, size]:
            raise InputError(
                f"{str(self.path)!r} is not a graph of this checkpoint: its input is {_shown(inputs)}, not "
                f"{INPUT} (batch, 3, {size}, {size}) of float32. Export the checkpoint again."
            )
        kinds = {name: (type_, len(shape)) for name, (type_, shape) in outputs.items()}
        classes, self.channels = (outputs.get(name, (None, [None]))[1][-1] for name in ("logits", "embedding"))
        fits = kinds == {name: (FLOAT, dims) for name, dims in OUTPUTS.items()}
        if not fits or classes != 2 or not isinstance(self.channels, int):
            raise InputError(
                f"{str(self.path)!r} is not a graph of this checkpoint: its outputs are {_shown(outputs)}, not "
                f"{', '.join(OUTPUTS)} of float32. Export the checkpoint again."
            )

    def __call__(self, pixel_values: torch.Tensor | np.ndarray) -> DCLImageClassifierOutput:
        """Classify face crops as real or fake.

        Args:
            pixel_values: (N, 3, H, W), from the image processor.

        Returns:
            `logits` (N, 2), `evidence` (N, h, w) and `embedding` (N, C), float32 tensors on the CPU.

        Raises:
            InputError: if the shape is wrong, or the graph fails.
        """
        pixel_values = torch.as_tensor(pixel_values).detach().to("cpu", torch.float32).contiguous()
        size = self.config.image_size
        if pixel_values.ndim != 4 or not len(pixel_values) or tuple(pixel_values.shape[1:]) != (3, size, size):
            raise InputError(
                f"The graph takes images of shape (N, 3, {size}, {size}), N at least 1, got "
                f"{tuple(pixel_values.shape)}. Make them with the image processor of the checkpoint."
            )
        try:
            values = self._session.run(list(OUTPUTS), {INPUT: pixel_values.numpy()})
        except Exception as error:
            raise InputError(
                f"{str(self.path)!r} fails on {len(pixel_values)} images ({reason(error)}). Export the checkpoint "
                "again."
            ) from error
        return DCLImageClassifierOutput(**dict(zip(OUTPUTS, map(torch.from_numpy, values), strict=True)))


def _shown(nodes: dict[str, tuple[str, list[Any]]]) -> str:
    text = ", ".join(f"{name} {tuple(shape)} of {type_}" for name, (type_, shape) in nodes.items())
    return text if len(text) <= 200 else f"{text[:197]}..."
