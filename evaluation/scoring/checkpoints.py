"""Find the checkpoints that shall be evaluated or exported; nothing of them is loaded, and no torch imported."""

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
    """As the user gave it."""
    folder: Path
    """Where its files are."""
    revision: str
    """The commit, if it came from the Hub; of a folder, a hash of configuration and weights."""
    model_type: str = MODEL_TYPE
    """What its config.json says."""
    classes: list[tuple[str, int]] | None = None
    """Of a model that is not DCL's, the label of each class and whether it is one of reals (0) or of fakes (1)."""

    @property
    def is_dcl(self) -> bool:
        """Whether it is one of DCL."""
        return self.model_type == MODEL_TYPE

    def record(self) -> dict[str, Any]:
        """Return what the record of a run says of the classes."""
        if self.classes is None:
            return {}
        return {
            "labels": {
                name: [label for label, kind in self.classes if kind == index]
                for index, name in enumerate(CLASS_NAMES)
            }
        }


def find_checkpoint(name: str, only_dcl: bool = False) -> Checkpoint:
    """Find a checkpoint in a folder, else on the Hub, whose files are then fetched into the local cache.

    Args:
        name: a folder, or a model id on the Hub.
        only_dcl: accept no other kind of model.

    Raises:
        InputError: if it is neither, names no model type, is not one of DCL where that was asked for, or has no
            weights as safetensors.
    """
    folder = find_dcl_checkpoint(name) if only_dcl else find_model(name, FILES["torch"])
    # Snapshots of the Hub are kept under the name of their commit.
    checkpoint = Checkpoint(name, folder, _hash_of(folder) if folder == Path(name) else folder.name)
    if only_dcl:
        return checkpoint
    config = read_settings(folder, "config.json", name)
    # Checkpoints of timm are known by what they have instead.
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
            f"Model {name!r} has no weights as safetensors. Other formats are not opened, since unpickling runs the "
            "code in them: if you trust them, load and save them once by transformers, and pass that folder."
        )
    return checkpoint


def _hash_of(folder: Path) -> str:
    """Hash what decides a checkpoint's answers, so that scores tell of which weights they are."""
    digest = hashlib.sha256()
    for path in sorted(path for end in ("config.json", ".safetensors", ".py") for path in folder.glob(f"*{end}")):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{digest.hexdigest()}"
