"""Image processor of DCL: face crop to tensor."""

from typing import Any

import torch
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

#: Above this many pixels per output pixel a bilinear sample passes pixels over.
MAX_BILINEAR_SHRINK = 1.5


class DCLImageProcessorKwargs(ImagesKwargs, total=False):
    """Further settings of [`DCLImageProcessor`]: `crop`."""

    crop: dict[str, Any] | None


class DCLImageProcessor(TorchvisionBackend):
    r"""Make model input from face crops: square resize, [0, 1], mean and standard deviation 0.5 a channel.

    It works on crops, not on pictures with a face somewhere: `crop` says how the faces of the training data were cut,
    and whoever finds faces for this checkpoint must cut them in the same way.

    Args:
        size (`dict`, *optional*, defaults to `{"height": 299, "width": 299}`):
            The backbone's input in pixels.
        crop (`dict`, *optional*):
            `{"kind", "margin", "size", "detector"}`, how the training data was cut; `None` while it is not known.
    """

    valid_kwargs = DCLImageProcessorKwargs

    resample = PILImageResampling.BILINEAR
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.5, 0.5, 0.5)
    size = {"height": 299, "width": 299}  # noqa: RUF012 (the base class copies it)
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    crop = None

    def resize(
        self,
        image: torch.Tensor,
        size: SizeDict,
        resample: PILImageResampling | None = None,
        antialias: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Resize as training does: bilinear, with a prefilter only where more than 1.5 pixels would become one."""
        shrink = max(image.shape[-2] / size.height, image.shape[-1] / size.width)
        return super().resize(image, size, resample=resample, antialias=shrink > MAX_BILINEAR_SHRINK, **kwargs)


DCLImageProcessor.register_for_auto_class("AutoImageProcessor")

__all__ = ["MAX_BILINEAR_SHRINK", "DCLImageProcessor"]
