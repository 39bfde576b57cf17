"""Find checkpoints to evaluate or export, without loading them or importing torch."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors_dcl import InputError
from ...hub_dcl import FILES, MODEL_TYPE, REFERENCE_FILE, find_dcl_checkpoint, find_model, no_weights, read_settings
from ...prepared.names import CLASS_NAMES


@dataclass
class Checkpoint:
    """A checkpoint on disk, of DCL or another image classifier; its weights are not loaded yet."""

    name: str
    """The folder or id that the user gave."""
    folder: Path
    """The folder with its files."""
    revision: str
    """The commit on the Hub; for a folder, a hash of configuration and weights."""
    model_type: str = MODEL_TYPE
    """The content of its config.json."""
    classes: list[tuple[str, int]] | None = None
    """For a model other than DCL, the label of each class, and whether it means real (0) or fake (1)."""

    @property
    def is_dcl(self) -> bool:
        """Whether it is a DCL checkpoint."""
        return self.model_type == MODEL_TYPE

    def record(self) -> dict[str, Any]:
        """Return the classes for the record of a run."""
        if self.classes is None:
            return {}
        return {
            "labels": {
                name: [label for label, kind in self.classes if kind == index]
                for index, name in enumerate(CLASS_NAMES)
            }
        }


def find_checkpoint(name: str, only_dcl: bool = False) -> Checkpoint:
    """Find a checkpoint in a folder, or on the Hub, and then download its files into the local cache.

    Args:
        name: a folder, or a model id on the Hub.
        only_dcl: accept DCL checkpoints only.

    Raises:
        InputError: if it is not found, names no model type, is not a DCL checkpoint although `only_dcl` is set, or has
            no safetensors weights.
    """
    folder = find_dcl_checkpoint(name) if only_dcl else find_model(name, FILES["torch"])
    # The cache stores Hub snapshots under the name of their commit.
    checkpoint = Checkpoint(name, folder, _hash_of(folder) if folder == Path(name) else folder.name)
    if only_dcl:
        return checkpoint
    config = read_settings(folder, "config.json", name)
    # timm checkpoints have `pretrained_cfg` instead of `model_type`.
    checkpoint.model_type = config.get("model_type", "timm_wrapper" if "pretrained_cfg" in config else None)
    if checkpoint.model_type is None:
        raise InputError(
            f"Model {name!r} cannot be evaluated: its config.json names no model_type. Pass a checkpoint that "
            "transformers or timm saved."
        )
    if not any(path.name != REFERENCE_FILE for path in folder.glob("*.safetensors")):
        if checkpoint.is_dcl or any(folder.glob("model*.onnx")):
            raise no_weights(folder, name)
        raise InputError(
            f"Model {name!r} has no safetensors weights. Other formats are not opened, since unpickling runs the code "
            "in them. If you trust them, load and save the model once with transformers, and pass that folder."
        )
    return checkpoint


def _hash_of(folder: Path) -> str:
    """Hash all files that affect a checkpoint's scores, so that results can be traced to their weights."""
    digest = hashlib.sha256()
    for path in sorted(path for end in ("config.json", ".safetensors", ".py") for path in folder.glob(f"*{end}")):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{digest.hexdigest()}"
