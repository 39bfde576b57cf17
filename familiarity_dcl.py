"""A small fixed network that describes faces, so that a checkpoint can tell which ones are unlike its training data.

A detector's own features cannot: training keeps what separates real from forged faces and forgets the rest, and what
is left changes with every run. These features come from the first stages of EfficientNet-Lite0 as trained on ImageNet.
Nothing here is ever trained, so they are the same for every checkpoint.
"""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import nn

from .errors_dcl import InputError, reason
from .hub_dcl import REFERENCE_FILE, file_of_checkpoint

REFERENCE_SHA256 = "58deee5febaee7670e8778cfd78a12aac21370e7b5e5994543165679e7119910"
_SIZE = 112  # pixels; 160 tell little more of a face, and take twice as long
_STAGES = 3  # of the seven; the last two describe a face: 24 and 40 channels
#: Numbers that describe a face: mean and standard deviation of each channel.
REFERENCE_FEATURES = 2 * (24 + 40)


class ReferenceNetwork(nn.Module):
    """The first stages of EfficientNet-Lite0 (ImageNet weights, Apache-2.0), in float32.

    Args:
        path: its weights, see `find_reference`.

    Raises:
        InputError: if the file cannot be read, or is another one.
    """

    def __init__(self, path: Path):
        super().__init__()
        with torch.device("meta"):
            network = timm.create_model("tf_efficientnet_lite0")
        self.conv_stem, self.bn1, self.blocks = network.conv_stem, network.bn1, network.blocks[:_STAGES]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read ({reason(error)}): check its permissions.") from error
        if hashlib.sha256(content).hexdigest() != REFERENCE_SHA256:
            raise InputError(f"{path} is not the reference network that distances are measured by: download it again.")
        weights = load(content)
        floats = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
        self.load_state_dict(floats, assign=True)
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def forward(self, crops: Sequence[np.ndarray]) -> np.ndarray:
        """Describe face crops.

        Args:
            crops: uint8 RGB (S, S, 3), all of one size.

        Returns:
            float32 (N, `REFERENCE_FEATURES`): of the channels of stage 2 their means, then their standard deviations
            over the cells, and the same of stage 3.
        """
        x = torch.from_numpy(np.stack(crops)).to(self.conv_stem.weight.device).permute(0, 3, 1, 2).float()
        x = F.interpolate(x / 127.5 - 1, (_SIZE, _SIZE), mode="bilinear", antialias=True)
        x = self.bn1(self.conv_stem(x))
        features = []
        for number, stage in enumerate(self.blocks):
            x = stage(x)
            if number:
                features += [x.mean((2, 3)), x.std((2, 3))]
        return torch.cat(features, 1).cpu().numpy()


def copy_reference(name: str, revision: str | None, folder: str | Path) -> None:
    """Copy the weights of the reference network to a checkpoint that is saved.

    Args:
        name: folder or id of the checkpoint that they may have come with, see `find_reference`.
        revision: the commit on the Hub.
        folder: where the checkpoint is saved.
    """
    source, target = find_reference(name, revision, ask_hub=False), Path(folder, REFERENCE_FILE)
    if source is not None and not target.exists():
        shutil.copyfile(source, target)


def find_reference(name: str = "", revision: str | None = None, ask_hub: bool = True) -> Path | None:
    """Return the weights of the reference network: those that came with a checkpoint, else those of this package.

    Args:
        name: folder or id of the checkpoint, as `PreTrainedModel.name_or_path` says it; it may be empty.
        revision: its commit on the Hub.
        ask_hub: whether the file may be downloaded.

    Returns:
        Its path; None if there is none.
    """
    own = Path(__file__).with_name(REFERENCE_FILE)  # not there where the code came with a checkpoint
    return file_of_checkpoint(REFERENCE_FILE, name, revision, ask_hub) or (own if own.is_file() else None)


__all__ = ["REFERENCE_FEATURES", "REFERENCE_FILE", "ReferenceNetwork", "copy_reference", "find_reference"]
