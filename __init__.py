"""DCL: dual contrastive learning for face forgery detection.

The names below are imported when they are first used: `import dcl_face_forgery` itself imports no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration_dcl import DCLConfig
    from .image_processing_dcl import DCLImageProcessor
    from .modeling_dcl import DCLForImageClassification, DCLForPreTraining, DCLModel
    from .pipeline_dcl import FaceForgeryDetectionPipeline
    from .prepared.dataset import load_prepared
    from .training.trainer import DCLTrainer, DCLTrainingArguments

__version__ = "0.2.0.dev0"

_MODULES = {
    "DCLConfig": "configuration_dcl",
    "DCLForImageClassification": "modeling_dcl",
    "DCLForPreTraining": "modeling_dcl",
    "DCLImageProcessor": "image_processing_dcl",
    "DCLModel": "modeling_dcl",
    "DCLTrainer": "training.trainer",
    "DCLTrainingArguments": "training.trainer",
    "FaceForgeryDetectionPipeline": "pipeline_dcl",
    "load_prepared": "prepared.dataset",
}

__all__ = [
    "DCLConfig",
    "DCLForImageClassification",
    "DCLForPreTraining",
    "DCLImageProcessor",
    "DCLModel",
    "DCLTrainer",
    "DCLTrainingArguments",
    "FaceForgeryDetectionPipeline",
    "__version__",
    "load_prepared",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
