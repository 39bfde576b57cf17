"""The image processor: what it takes, and that it shows a face as training does."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dcl.image_processing_dcl import DCLImageProcessor
from dcl.training.augment import Augmentation, AugmentationSettings

CROP = {"kind": "box", "margin": 0.3, "size": 64, "detector": "yunet"}


def processor_for(size, **settings):
    return DCLImageProcessor(size={"height": size, "width": size}, **settings)


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.fixture
def face():
    """As smooth as a photograph, 380 px."""
    coarse = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    return cv2.resize(coarse, (380, 380), interpolation=cv2.INTER_CUBIC)


def process(processor, images):
    return processor(images, return_tensors="pt").pixel_values


def grey_levels(pixel_values):
    return (pixel_values.permute(1, 2, 0).numpy() + 1) * 127.5


def test_default_is_the_papers_input(face):
    pixel_values = process(DCLImageProcessor(), face)
    assert pixel_values.shape == (1, 3, 299, 299)
    assert pixel_values.dtype == torch.float32


def test_black_and_white_are_the_ends_of_the_range():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:4] = 255
    pixel_values = process(processor_for(8), image)[0]
    assert torch.equal(pixel_values[:, :4], torch.ones(3, 4, 8))
    assert torch.equal(pixel_values[:, 4:], -torch.ones(3, 4, 8))


def test_channels_stay_in_their_order(noise):
    pixel_values = process(processor_for(64), noise)[0]
    np.testing.assert_allclose(grey_levels(pixel_values), noise, atol=1e-4)


@pytest.mark.parametrize("size", [43, 64, 96, 200])
def test_agrees_with_training_where_little_is_lost(noise, size):
    """White noise, the hardest image there is, up to 1.5 pixels to one."""
    training, _ = Augmentation(AugmentationSettings.none(), size)(noise, None, np.random.default_rng(0))
    difference = np.abs(grey_levels(process(processor_for(size), noise)[0]) - training)
    assert difference.max() <= 1 + 1e-4
    assert difference.mean() < 0.3


@pytest.mark.parametrize(("size", "mean", "largest"), [(299, 0.2, 1), (224, 0.5, 3), (128, 0.3, 2), (96, 0.5, 3)])
def test_agrees_with_training_on_a_face(face, size, mean, largest):
    training, _ = Augmentation(AugmentationSettings.none(), size)(face, None, np.random.default_rng(0))
    difference = np.abs(grey_levels(process(processor_for(size), face)[0]) - training)
    assert difference.mean() < mean
    assert difference.max() <= largest + 1e-4


def test_shrinking_does_not_alias():
    """Stripes too thin for the output become grey, not other stripes."""
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    values = grey_levels(process(processor_for(96), stripes)[0])
    assert np.abs(values - 127.5).max() < 20


def test_every_kind_of_image_is_taken(noise):
    expected = process(processor_for(32), noise)
    image = Image.fromarray(noise)
    kinds = {
        "RGB": image,
        "opaque RGBA": image.convert("RGBA"),
        "CHW array": noise.transpose(2, 0, 1),
        "tensor": torch.from_numpy(noise).permute(2, 0, 1),
        "list": [image],
        "batch": noise[None],
    }
    for kind, value in kinds.items():
        assert torch.equal(process(processor_for(32), value), expected), kind


def test_grey_images_become_three_equal_channels(noise):
    grey = noise[..., 0]
    expected = process(processor_for(32), np.repeat(grey[..., None], 3, axis=2))
    for value in (Image.fromarray(grey), grey[..., None]):
        assert torch.equal(process(processor_for(32), value), expected)


def test_a_batch_is_its_images_one_by_one(noise, face):
    processor = processor_for(48)
    together = process(processor, [Image.fromarray(noise), Image.fromarray(face), Image.fromarray(noise[:40])])
    alone = [process(processor, Image.fromarray(image)) for image in (noise, face, noise[:40])]
    assert together.shape == (3, 3, 48, 48)
    assert torch.equal(together, torch.cat(alone))


def test_the_crop_of_the_training_data_survives_saving(noise, tmp_path):
    processor = processor_for(48, crop=CROP)
    processor.save_pretrained(tmp_path)
    loaded = DCLImageProcessor.from_pretrained(tmp_path)
    assert loaded.crop == CROP
    assert (loaded.size.height, loaded.size.width) == (48, 48)
    assert torch.equal(process(loaded, noise), process(processor, noise))
    assert (tmp_path / "image_processing_dcl.py").is_file()


def test_a_crop_that_is_not_known_is_none(tmp_path):
    processor_for(48).save_pretrained(tmp_path)
    assert DCLImageProcessor.from_pretrained(tmp_path).crop is None
