"""Image processor of DCL: face crop to tensor."""

import os
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

from .media_dcl import read_picture, to_8_bits

#: Above this many pixels per output pixel, bilinear sampling would skip pixels.
MAX_BILINEAR_SHRINK = 1.5


class DCLImageProcessorKwargs(ImagesKwargs, total=False):
    """Further settings of [`DCLImageProcessor`]: `crop`."""

    crop: dict[str, Any] | None


class DCLImageProcessor(TorchvisionBackend):
    r"""Turn face crops into model input: resize to a square, scale to [0, 1], normalise with mean and std 0.5.

    It expects face crops, not whole images. `crop` says how the faces of the training data were cut; cut new faces in
    the same way.

    PIL images and paths are read as in detection: upright, in sRGB, and 16 bits per channel scaled to 8. Arrays of 16-
    or 32-bit integers, which Pillow makes of 16-bit images, are scaled as well. `pipeline("image-classification")`
    opens paths itself and turns 16-bit grey images white before this processor gets them: pass
    `np.asarray(PIL.Image.open(path))` instead.

    Args:
        size (`dict`, *optional*, defaults to `{"height": 299, "width": 299}`):
            Input size of the backbone in pixels.
        crop (`dict`, *optional*):
            `{"kind", "margin", "size", "detector"}`, how the training data was cut; `None` if unknown.
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

    def fetch_images(self, images: Any) -> Any:
        """Read paths, and add a channel axis to grey arrays; the base class handles everything else."""
        if isinstance(images, os.PathLike):
            images = os.fspath(images)
        if isinstance(images, str) and os.path.isfile(images):
            return Image.fromarray(read_picture(images))
        if isinstance(images, np.ndarray) and images.ndim == 2:
            return images[..., None]
        return super().fetch_images(images)

    def process_image(self, image: Any, do_convert_rgb: bool | None = None, **kwargs: Any) -> torch.Tensor:
        """Convert a PIL image, an array or a tensor to a tensor (channels, height, width)."""
        if isinstance(image, Image.Image) and do_convert_rgb:
            image = Image.fromarray(read_picture(image))
        elif isinstance(image, np.ndarray) and image.dtype.kind in "iu" and image.dtype.itemsize in (2, 4):
            image = to_8_bits(image)
        elif isinstance(image, torch.Tensor) and image.dtype == torch.uint16:
            image = torch.from_numpy(to_8_bits(image.cpu().numpy()))
        return super().process_image(image, do_convert_rgb=do_convert_rgb, **kwargs)

    def resize(
        self,
        image: torch.Tensor,
        size: SizeDict,
        resample: PILImageResampling | None = None,
        antialias: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Resize as in training: bilinear, with antialiasing only when shrinking more than 1.5 times."""
        shrink = max(image.shape[-2] / size.height, image.shape[-1] / size.width)
        return super().resize(image, size, resample=resample, antialias=shrink > MAX_BILINEAR_SHRINK, **kwargs)


DCLImageProcessor.register_for_auto_class("AutoImageProcessor")
