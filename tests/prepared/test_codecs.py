"""What data preparation writes is decoded by OpenCV, to the pixels of Pillow; all else is left to Pillow."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from dcl_face_forgery.data_scripts.assets import fetch
from dcl_face_forgery.media_dcl import decode_picture, read_values
from dcl_face_forgery.prepared import codecs
from dcl_face_forgery.prepared.codecs import decode_plain
from dcl_face_forgery.prepared.dataset import CorruptImageError, decode_image, decode_mask, encode_image
from dcl_face_forgery.prepared.names import ENCODINGS


@pytest.fixture(scope="module")
def photograph():
    """A photograph of 103 by 87 pixels, uint8 RGB."""
    with Image.open(fetch("astronaut")) as image:
        return np.array(image.convert("RGB").resize((87, 103)))


def saved(image, **how):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, **how)
    return buffer.getvalue()


def of_pillow(data):
    return decode_picture(data, "a file").pixels


def png_chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", ["photograph", "noise", "grey", "one pixel", "flat"])
def test_encoded_faces_are_decoded_to_the_same_pixels_as_by_pillow(photograph, encoding, kind):
    image = {
        "photograph": photograph,
        "noise": np.random.default_rng(0).integers(0, 256, (64, 51, 3), np.uint8),
        "grey": np.dstack([photograph[..., 0]] * 3),
        "one pixel": photograph[:1, :1],
        "flat": np.full((40, 30, 3), 77, np.uint8),
    }[kind]
    cell = encode_image(np.ascontiguousarray(image), encoding)
    pixels = decode_image(cell, "a row")
    np.testing.assert_array_equal(pixels, of_pillow(cell["bytes"]))
    assert pixels.flags.writeable and pixels.dtype == np.uint8
    assert (decode_plain(cell["bytes"]) is not None) == (encoding != "jpeg95")


def test_masks_are_decoded_to_the_same_values_as_by_pillow(photograph):
    for mask in (photograph[..., 1], np.zeros((40, 30), np.uint8), np.full((3, 4), 255, np.uint8)):
        cell = encode_image(np.ascontiguousarray(mask))
        values = decode_plain(cell["bytes"], grey=True)
        np.testing.assert_array_equal(values, read_values(cell["bytes"], "a mask", "L"))
        np.testing.assert_array_equal(decode_mask(cell, "a row"), mask)
        assert values.flags.writeable


def test_files_with_anything_that_changes_pixels_are_left_to_pillow(photograph):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    clear = np.dstack([photograph, photograph[..., 0]])
    indexed = np.array(Image.fromarray(photograph).quantize(16))
    files = {
        "a WebP with a profile": saved(photograph, format="WEBP", lossless=True, icc_profile=profile),
        "a WebP with a turn": saved(photograph, format="WEBP", lossless=True, exif=exif),
        "a transparent WebP": saved(clear, format="WEBP", lossless=True),
        "a lossy WebP": saved(photograph, format="WEBP", quality=80),
        "an animated WebP": saved(
            photograph, format="WEBP", lossless=True, save_all=True, append_images=[Image.fromarray(photograph[::-1])]
        ),
        "a PNG with a profile": saved(photograph, format="PNG", icc_profile=profile),
        "a PNG with a turn": saved(photograph, format="PNG", exif=exif),
        "a transparent PNG": saved(clear, format="PNG"),
        "a PNG of 16 bits": saved(photograph[..., 0].astype(np.uint16) * 256, format="PNG"),
        "a PNG of indices": saved(indexed, format="PNG"),
        "a JPEG": saved(photograph, format="JPEG"),
        "text": b"no image",
        "nothing": b"",
    }
    plain = saved(photograph, format="PNG")
    gamma = plain[:33] + png_chunk(b"gAMA", struct.pack(">I", 100000)) + plain[33:]
    files["a PNG with a gamma"] = gamma
    for name, data in files.items():
        assert decode_plain(data) is None, name
    assert (of_pillow(gamma) != of_pillow(plain)).any()
    grey = saved(photograph[..., 0], format="PNG")
    assert decode_plain(grey) is None and decode_plain(plain, grey=True) is None


@pytest.mark.parametrize("encoding", ["webp-lossless", "png"])
def test_damaged_files_are_never_decoded_otherwise_than_by_pillow(photograph, encoding):
    data = encode_image(photograph[:32, :32], encoding)["bytes"]
    rng = np.random.default_rng(0)
    broken = [data[:length] for length in range(0, len(data), 37)]
    broken += [data[:length] + bytes(len(data) - length) for length in range(20, len(data), 37)]
    for _ in range(150):
        flipped = bytearray(data)
        flipped[rng.integers(len(data))] ^= 1 << rng.integers(8)
        broken.append(bytes(flipped))
    for one in broken:
        pixels = decode_plain(one)
        if pixels is not None:
            np.testing.assert_array_equal(pixels, of_pillow(one))
    with pytest.raises(CorruptImageError, match="The image of row 3"):
        decode_image({"bytes": data[: len(data) // 2], "path": None}, "row 3")


def test_a_png_whose_pixels_end_early_is_corrupt(photograph):
    """Its chunks are whole, with right check sums; OpenCV fills what is missing, or says nothing."""
    rows = b"".join(b"\0" + row.tobytes() for row in photograph[:50])
    head = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 87, 103, 8, 2, 0, 0, 0))
    data = head + png_chunk(b"IDAT", zlib.compress(rows)[:-8]) + png_chunk(b"IEND", b"")
    with pytest.raises(CorruptImageError):
        decode_image({"bytes": data, "path": None}, "row 3")


def test_images_beyond_the_limit_of_pixels_are_left_to_pillow(photograph, monkeypatch):
    files = [encode_image(photograph, encoding)["bytes"] for encoding in ("webp-lossless", "png")]
    monkeypatch.setattr(codecs, "MOST_PIXELS", 103 * 87 - 1)
    assert [decode_plain(data) for data in files] == [None, None]
