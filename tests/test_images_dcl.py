"""Pictures are opened by what they are: right in every format, and refused where they are something else, too."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from dcl.errors_dcl import InputError
from dcl.images_dcl import PICTURE_KINDS, content_kind, read_picture

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8).repeat(8, 0).repeat(8, 1)


def encoded(kind, image=None, **options):
    buffer = io.BytesIO()
    (Image.fromarray(RGB) if image is None else image).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def write(tmp_path):
    def write(data, name="picture.jpg"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


def refused(path, sentence, **options):
    with pytest.raises(InputError, match=sentence) as caught:
        read_picture(path, **options)
    assert str(path) in str(caught.value) and str(caught.value).count("\n") == 0


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("JPEG", {"quality": 98, "subsampling": 0}, 6),
        ("JPEG", {"quality": 98, "subsampling": 0, "progressive": True}, 6),
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("BMP", {}, 0),
        ("PPM", {}, 0),
        ("TIFF", {}, 0),
        ("GIF", {}, 40),
    ],
)
def test_each_format_is_opened_whatever_the_file_is_called(write, kind, options, tolerance):
    data = encoded(kind, **options)
    assert content_kind(data[:512]) == kind
    for name in ("a.jpg", "a.png", "a"):
        picture = read_picture(write(data, name))
        assert picture.dtype == np.uint8 and picture.shape == RGB.shape
        assert np.abs(picture.astype(int) - RGB).max() <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(write, orientation):
    turns = {
        1: 0,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
    }
    turns |= {5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90}
    turns |= {7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270}
    lying = Image.fromarray(RGB)
    lying = lying if orientation == 1 else lying.transpose(turns[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded("PNG", lying, exif=exif)
    assert np.array_equal(read_picture(write(data)), RGB)
    assert np.array_equal(read_picture(Image.open(io.BytesIO(data))), RGB)


def test_exif_that_cannot_be_read_turns_nothing(write):
    assert np.array_equal(read_picture(write(encoded("PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))), RGB)


def test_16_bits_are_scaled_and_not_clipped(write):
    deep = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    picture = read_picture(write(encoded("PNG", Image.fromarray(deep))))
    assert np.array_equal(picture[..., 0], np.round(deep / 257)) and np.ptp(picture, axis=2).max() == 0


def test_palettes_grey_and_what_is_transparent(write):
    flat = Image.fromarray(RGB).quantize(16)
    assert np.array_equal(read_picture(write(encoded("PNG", flat))), np.asarray(flat.convert("RGB")))
    grey = Image.fromarray(RGB).convert("L")
    assert np.array_equal(read_picture(write(encoded("PNG", grey))), np.asarray(grey)[..., None].repeat(3, 2))
    clear = np.dstack([RGB, np.zeros(RGB.shape[:2], np.uint8)])
    clear[:10, :, 3] = 255
    picture = read_picture(write(encoded("PNG", Image.fromarray(clear))))
    assert np.array_equal(picture[:10], RGB[:10]) and (picture[10:] == 255).all()
    with_hole = encoded("PNG", flat, transparency=flat.getpixel((0, 0)))
    assert (read_picture(write(with_hole))[0, 0] == 255).all()


def test_what_is_transparent_of_16_bits_is_laid_on_white(write):
    deep = np.full((8, 8), 20_000, np.uint16)
    deep[2:4] = 7
    picture = read_picture(write(encoded("PNG", Image.fromarray(deep), transparency=7)))
    assert (picture[2:4] == 255).all() and (picture[4:] == round(20_000 / 257)).all()


def test_cmyk_has_the_colours_it_shows(write):
    colours = np.zeros((32, 64, 3), np.uint8)
    colours[:, :32], colours[:, 32:] = (220, 30, 40), (20, 90, 200)
    picture = read_picture(write(encoded("JPEG", Image.fromarray(colours).convert("CMYK"), quality=98)))
    assert np.abs(picture.astype(int) - colours).max() < 12


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_it_is_the_first_frame(write, kind):
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (200, 10)]
    data = encoded(
        kind, frames[0], save_all=True, append_images=frames[1:], **({"lossless": True} if kind[0] == "W" else {})
    )
    assert (read_picture(write(data)) == 200).all()


def archive():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.txt", "something else")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize(
    "other",
    [
        archive(),
        b"<html><ScRipt>1</script></html>",
        b"%PDF-1.7\n",
        b"<svg\n/onload = 1>",
        b"<SVG>",
        b"<?php 1",
        b"<svg data-x='1'>",
    ],
)
def test_what_is_something_else_too_is_refused(write, kind, other):
    refused(write(encoded(kind) + other), "is a picture and a script or an archive at once: save")


def test_a_script_in_the_description_of_a_picture_is_refused(write):
    refused(write(encoded("JPEG", comment=b"<script>alert(1)</script>")), "a script or an archive")


@pytest.mark.parametrize(
    "chance", [b"\xf3<sVg\x91\x02", b"\x00<HtMl\xe8", b"<script\xff", b"\x17PK\x05\x06" + bytes(range(40, 70))]
)
def test_what_stands_in_a_photograph_by_chance_is_let_be(write, chance):
    """Compressed pixels are as good as random, and three of ten thousand photographs hold four such letters."""
    assert np.array_equal(read_picture(write(encoded("PNG") + chance)), RGB)


@pytest.mark.parametrize(
    "other", [encoded("JPEG"), bytes(9) + b"\0\0\0\x18ftypmp42" + bytes(99), b"SEFH" + bytes(40) + b"SEFT"]
)
def test_what_cameras_append_is_let_be(write, other):
    """A second picture, a short film, a block of a maker's own."""
    data = encoded("JPEG", quality=98, subsampling=0)
    assert np.array_equal(read_picture(write(data + other)), read_picture(write(data)))


@pytest.mark.parametrize("prefix", [b"%PDF-1.4\n", archive(), b"<html>", b"\x00\x01"])
def test_what_has_something_else_before_it_is_refused(write, prefix):
    refused(write(prefix + encoded("JPEG")), "whatever its name says")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG"),
        (b"\xef\xbb\xbf  <SVG onload=alert(1)>", "an SVG"),
        (b"<!DOCTYPE html><html></html>", "HTML or XML"),
        (b"%PDF-1.7", "a PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "a PostScript file"),
        (b"MZ\x90\0", "a program"),
        (b"\0\0\0\x18ftypheic", "a HEIC"),
        (b"\0\0\0\x18ftypisom", "a video"),
        (b"RIFF\0\0\0\0AVI LIST", "a video"),
        (b"hello, world", "no picture"),
    ],
)
def test_what_is_no_picture_is_called_by_what_it_is(write, data, what):
    refused(write(data), f"is {what}, whatever its name says: give a JPEG, PNG, WebP, BMP, GIF or TIFF")


@pytest.mark.parametrize("kind", PICTURE_KINDS)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_what_breaks_off_is_refused(write, kind, share):
    data = encoded(kind)
    refused(write(data[: int(len(data) * share)]), "copy or download it again|save it anew")


@pytest.mark.parametrize("kind", PICTURE_KINDS)
def test_damage_never_ends_in_anything_but_a_picture_or_a_sentence(write, kind):
    data, rng = encoded(kind), np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(data)
        for place in rng.integers(2, len(data), 4):
            damaged[place] = rng.integers(256)
        try:
            assert read_picture(write(bytes(damaged)), 10**6).dtype == np.uint8
        except InputError as error:
            assert "\n" not in str(error)


def test_a_bomb_is_refused_before_it_is_decoded(write, monkeypatch):
    bomb, large, small = (encoded("PNG", Image.new("1", (side, side))) for side in (30000, 9000, 11))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    refused(write(bomb), "has more than 50,000,000 pixels")
    refused(write(large), "has 9000x9000 pixels, more than 50,000,000")
    refused(write(small), "more than 100: make it smaller, or raise most_pixels", most_pixels=100)


def test_files_that_are_not_there_empty_or_huge(write, tmp_path, monkeypatch):
    refused(tmp_path / "none.jpg", "there is no file")
    refused(tmp_path, "there is no file")
    refused(write(b""), "is empty")
    monkeypatch.setattr("dcl.images_dcl.MOST_BYTES", 10)
    refused(write(encoded("PNG")), "too much for a picture")


def test_arrays_and_other_objects():
    assert read_picture(RGB) is not None and np.array_equal(read_picture(RGB), RGB)
    for wrong in (RGB[..., 0], RGB.astype(float), RGB[:0], np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(InputError, match="is no picture: give uint8 RGB"):
            read_picture(wrong)
    with pytest.raises(InputError, match="more than 10"):
        read_picture(RGB, 10)
    with pytest.raises(InputError, match="an object of the type int is no picture"):
        read_picture(3)
    with pytest.raises(InputError, match="pixels of the picture are floating-point numbers"):
        read_picture(Image.fromarray(np.zeros((4, 4), np.float32)))
