"""The image processor: what it takes, and that it shows a face as training does."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

from dcl_face_forgery.image_processing_dcl import DCLImageProcessor
from dcl_face_forgery.media_dcl import read_picture
from dcl_face_forgery.tests.shared.profiles import SPACES, matrix_profile
from dcl_face_forgery.training.augment import Augmentation
from dcl_face_forgery.training.settings import AugmentationSettings

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


#: Of values that are proportional to light.
LINEAR = matrix_profile(SPACES["sRGB"][0], 1.0, "linear sRGB")


def hard_pictures(noise):
    """Yield pictures that Pillow's own conversion to RGB shows wrong, or not as detection does."""
    deep = noise[..., 0].astype(np.uint16) * 200
    yield "16 bits", Image.fromarray(deep), {}
    yield "16 bits, with a transparent value", Image.fromarray(deep), {"transparency": 400}
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        yield f"orientation {orientation}", Image.fromarray(noise[:40]), {"exif": exif.tobytes()}
    yield "a profile", Image.fromarray(noise), {"icc_profile": LINEAR}
    yield "grey with a profile", Image.fromarray(noise[..., 0]), {"icc_profile": LINEAR}
    yield "a damaged profile", Image.fromarray(noise), {"icc_profile": b"no"}
    yield "LA", Image.fromarray(noise[..., :2]), {}
    yield "RGBA with a profile", Image.fromarray(np.dstack([noise, noise[..., 0]])), {"icc_profile": LINEAR}
    yield "palette", Image.fromarray(noise).quantize(30), {"transparency": 3}


def test_pil_images_and_paths_are_read_as_detection_reads_them(noise, tmp_path):
    processor = processor_for(32)
    for kind, image, options in hard_pictures(noise):
        path = tmp_path / "picture.png"
        image.save(path, **options)
        expected = process(processor, read_picture(path).copy())
        for given in (Image.open(path), [Image.open(path)], str(path), [str(path)], path, [path]):
            assert torch.equal(process(processor, given), expected), kind


def test_ink_is_read_as_detection_reads_it(noise, tmp_path):
    path = tmp_path / "picture.tif"
    Image.fromarray(noise).convert("CMYK").save(path)
    expected = process(processor_for(32), read_picture(path).copy())
    assert torch.equal(process(processor_for(32), Image.open(path)), expected)
    assert torch.equal(process(processor_for(32), str(path)), expected)


def test_a_picture_that_was_turned_and_converted_already_is_let_be(noise, tmp_path):
    """As `pipeline("image-classification")` does before the processor gets it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "picture.png"
    Image.fromarray(noise[:40]).save(path, exif=exif, icc_profile=LINEAR)
    loaded = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    assert torch.equal(process(processor_for(32), loaded), process(processor_for(32), read_picture(path).copy()))
    srgb = ImageCms.profileToProfile(
        Image.open(path), io.BytesIO(LINEAR), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert np.array_equal(read_picture(srgb), np.asarray(srgb))


def test_arrays_of_16_bits_are_scaled(noise):
    processor, deep = processor_for(32), noise.astype(np.uint16) * 257
    expected = process(processor, noise)
    assert torch.equal(process(processor, deep), expected)
    assert torch.equal(process(processor, torch.from_numpy(deep).permute(2, 0, 1)), expected)
    grey = process(processor, noise[..., 0])
    assert grey.shape == (1, 3, 32, 32)
    for value in (deep[..., 0], deep[..., :1], [deep[..., 0]], deep[None, ..., 0]):
        assert torch.equal(process(processor, value), grey)


@pytest.mark.parametrize("dtype", [">u2", "<u2", "<i4", ">i4", "<u4"])
def test_arrays_of_16_bits_are_scaled_whatever_type_holds_them(noise, dtype):
    deep = (noise.astype(np.uint16) * 257).astype(dtype)
    assert torch.equal(process(processor_for(32), deep), process(processor_for(32), noise))
    assert torch.equal(process(processor_for(32), deep[..., 0]), process(processor_for(32), noise[..., 0]))


def test_arrays_that_pillow_makes_of_16_bits_are_read_as_detection_reads_them(noise, tmp_path):
    deep = noise[..., 0].astype(">u2") * 200
    pgm, tiff = tmp_path / "deep.pgm", tmp_path / "deep.tif"
    pgm.write_bytes(b"P5 64 64 65535\n" + deep.astype(">u2").tobytes())
    Image.frombytes("I;16B", (64, 64), deep.astype(">u2").tobytes()).save(tiff)
    for path, dtype in ((pgm, np.dtype(np.int32)), (tiff, np.dtype(">u2"))):
        array = np.asarray(Image.open(path))
        assert array.dtype == dtype
        expected = process(processor_for(32), read_picture(path).copy())
        assert torch.equal(process(processor_for(32), array), expected)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_to_nothing_is_refused_by_the_base_class(kind, tmp_path):
    with pytest.raises(ValueError, match="Incorrect image source"):
        process(processor_for(32), kind(tmp_path / "none.png"))


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
