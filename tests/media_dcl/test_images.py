"""Pictures are opened by what they are: right in every format, and refused where they are something else, too."""

import io
import pickle
import zipfile

import cv2
import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from dcl_face_forgery import media_dcl
from dcl_face_forgery.errors_dcl import InputError, PictureError
from dcl_face_forgery.media_dcl import (
    PICTURE_KINDS,
    PICTURE_SUFFIXES,
    UNFITTING,
    content_kind,
    open_picture,
    read_picture,
    read_values,
)

pillow_heif.register_heif_opener()  # so that pictures can be written, too

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8).repeat(8, 0).repeat(8, 1)


def encoded(kind, image=None, **options):
    buffer = io.BytesIO()
    (Image.fromarray(RGB) if image is None else image).save(buffer, kind, **options)
    return buffer.getvalue()


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
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}, 6),
        ("HEIF", {"quality": 98, "chroma": 444}, 12),
    ],
)
def test_each_format_is_opened_whatever_the_file_is_called(write, kind, options, tolerance):
    data = encoded(kind, **options)
    assert content_kind(data[:512]) == kind
    for name in ("a.jpg", "a.png", "a"):
        picture = read_picture(write(data, name))
        assert picture.dtype == np.uint8 and picture.shape == RGB.shape
        assert np.abs(picture.astype(int) - RGB).max() <= tolerance


UPRIGHT = cv2.resize(np.random.default_rng(1).integers(0, 256, (3, 4, 3), np.uint8), (64, 48))


def lying(orientation):
    """Return the picture as a camera stores it that was held so."""
    return Image.fromarray(UPRIGHT) if orientation == 1 else Image.fromarray(UPRIGHT).transpose(STORED[orientation])


STORED = {
    **{2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM},
    **{5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE},
    8: Image.Transpose.ROTATE_270,
}


def with_exif(kind, orientation, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind == "TIFF":
        return encoded(kind, lying(orientation), tiffinfo=exif, **options)
    return encoded(kind, lying(orientation), exif=exif.tobytes(), **options)


def with_xmp(kind, orientation, **options):
    packet = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
        f'tiff:Orientation="{orientation}"/></rdf:RDF></x:xmpmeta>'
    )
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", packet)
        options |= {"pnginfo": info}
    elif kind == "TIFF":
        options |= {"tiffinfo": {700: packet.encode()}}
    else:
        options |= {"xmp": packet.encode()}
    return encoded(kind, lying(orientation), **options)


CODED = {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "AVIF": {"quality": 95}}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", CODED)
@pytest.mark.parametrize("said", [with_exif, with_xmp])
def test_pictures_are_turned_once_as_exif_or_xmp_says(write, said, kind, orientation):
    data = said(kind, orientation, **CODED[kind])
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert np.abs(expected.astype(int) - UPRIGHT).mean() < 3, "the test shows nothing"
    path = write(data)
    given, loaded = Image.open(io.BytesIO(data)), Image.open(path)
    loaded.load()
    turned = Image.fromarray(read_picture(path))
    by_hand = ImageOps.exif_transpose(Image.open(path))
    for picture in (path, str(path), given, given, loaded, Image.open(path).convert("RGB"), turned, by_hand):
        assert np.array_equal(read_picture(picture), expected)
    assert np.array_equal(read_values(path, "a mask", "RGB"), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_heic_is_turned_once(write, orientation):
    path = write(with_exif("HEIF", orientation, quality=98, chroma=444), "IMG_1.HEIC")
    for picture in (path, Image.open(path)):
        assert np.abs(read_picture(picture).astype(int) - UPRIGHT).mean() < 4


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


@pytest.mark.parametrize(
    "other", [encoded("JPEG"), bytes(9) + b"\0\0\0\x18ftypmp42" + bytes(99), b"SEFH" + bytes(40) + b"SEFT"]
)
def test_what_cameras_append_is_let_be(write, other):
    """A second picture, a short film, a block of a maker's own."""
    data = encoded("JPEG", quality=98, subsampling=0)
    assert np.array_equal(read_picture(write(data + other)), read_picture(write(data)))


@pytest.mark.parametrize("prefix", [b"%PDF-1.4\n", archive(), b"<html>", b"\x00\x01"])
def test_what_has_something_else_before_it_is_refused(write, prefix):
    refused(
        write(prefix + encoded("JPEG")),
        "Pass an image: JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF, PBM, PGM, PPM, or HEIC with the extra `heif`",
    )


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG"),
        (b"\xef\xbb\xbf  <SVG onload=alert(1)>", "an SVG"),
        (b"<!DOCTYPE html><html></html>", "HTML or XML"),
        (b"%PDF-1.7", "a PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "a PostScript file"),
        (b"MZ\x90\0", "a program"),
        (b"\0\0\0\x18ftypisom", "a video"),
        (b"RIFF\0\0\0\0AVI LIST", "a video"),
        (b"hello, world", "not an image"),
    ],
)
def test_what_is_no_picture_is_called_by_what_it_is(write, data, what):
    refused(write(data), rf"is {what}\. Pass an image: JPEG, PNG, .*AVIF, PBM, .*HEIC")


BRANDS = {
    "HEIF": ("heic", "heix", "hevc", "hevx", "heim", "heis", "hevm", "hevs", "mif1", "msf1"),
    "AVIF": ("avif", "avis"),
    "video": ("isom", "mp42", "qt  ", "M4V ", "hvc1"),
}


@pytest.mark.parametrize(("kind", "brand"), [(kind, brand) for kind, brands in BRANDS.items() for brand in brands])
def test_a_brand_tells_pictures_from_videos(kind, brand):
    assert content_kind(b"\0\0\0\x18ftyp" + brand.encode() + b"\0\0\0\0mif1heic" + bytes(99)) == kind


def test_the_brand_of_the_container_alone_leaves_it_to_the_others():
    assert content_kind(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf" + bytes(99)) == "AVIF"
    assert content_kind(b"\0\0\0\x18ftypmif1\0\0\0\0mif1heicavif" + bytes(99)) == "HEIF", "beyond the box"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\xff\x0a\xfa\x1f", "a JPEG XL image"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image"),
        (b"\xff\x4f\xff\x51\0", "a JPEG 2000 image"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1", "a Canon RAW photo"),
        (b"II*\0\x10\0\0\0CR\x02\0", "a Canon RAW photo"),
        (b"FUJIFILMCCD-RAW 0201", "a Fujifilm RAW photo"),
        (b"IIU\0\x18\0\0\0", "a RAW photo"),
        (b"IIRO\x08\0\0\0", "a RAW photo"),
    ],
)
def test_a_picture_that_is_not_read_is_named_with_the_remedy(write, data, what):
    refused(write(data), rf"is {what}\. Convert it to JPEG\.")


def test_a_heic_without_its_reader_is_refused_with_the_remedy(write, monkeypatch):
    path = write(encoded("HEIF"), "x.heic")
    assert open_picture(path).notes == ()
    monkeypatch.setattr(media_dcl, "_reads_heif", lambda: False)
    refused(path, r"x.heic is a HEIC photo\. Run `pip install pillow-heif`, or convert it to JPEG\.")
    monkeypatch.setattr("PIL.features.check", lambda feature: False)
    refused(write(encoded("AVIF"), "x.avif"), r"is an AVIF image\. Run `pip install --upgrade pillow`, or convert")


def test_a_heic_of_several_pictures_gives_its_main_one_with_a_note(write):
    frames = [Image.fromarray(np.full((64, 64, 3), value, np.uint8)) for value in (10, 200, 10)]
    data = encoded("HEIF", frames[0], save_all=True, append_images=frames[1:], primary_index=1)
    picture = open_picture(write(data))
    assert np.abs(picture.pixels.astype(int) - 200).max() < 4
    assert picture.notes == ("The file has 3 images; only the main one was analyzed.",)


def test_a_heic_of_10_bits_is_read_in_8(write):
    deep = np.linspace(0, 65535, 64, dtype=np.uint16)[None, :, None].repeat(64, 0).repeat(3, 2)
    heif = pillow_heif.from_bytes("RGB;16", (64, 64), deep.tobytes())
    buffer = io.BytesIO()
    heif.save(buffer, quality=95, chroma=444)
    assert np.abs(read_picture(write(buffer.getvalue())) - deep / 257).max() < 6


def test_the_profile_of_a_heic_is_looked_at(write):
    image = Image.fromarray(np.full((64, 64, 3), (200, 120, 90), np.uint8))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()  # of other pixels
    picture = open_picture(write(encoded("HEIF", image, quality=98, chroma=444, icc_profile=profile)))
    assert picture.notes == (UNFITTING,) and np.abs(picture.pixels.astype(int) - np.asarray(image)).max() < 4


def test_every_suffix_of_the_formats_is_looked_at():
    Image.init()
    suffixes = {
        suffix for suffix, kind in Image.registered_extensions().items() if kind in (*PICTURE_KINDS, "MPO", "DIB")
    }
    assert suffixes <= PICTURE_SUFFIXES and {".jfif", ".jpe", ".apng", ".pnm", ".heic"} <= suffixes


@pytest.mark.parametrize("kind", PICTURE_KINDS)
def test_what_was_not_looked_for_is_not_opened_by_another_reader(write, kind, monkeypatch):
    """Other formats of Pillow start programs, or read other files."""
    asked = []
    original = Image.open
    monkeypatch.setattr(
        Image, "open", lambda *args, formats: asked.append(formats) or original(*args, formats=formats)
    )
    read_picture(write(encoded(kind)))
    assert asked == [[kind]]


def test_the_values_of_a_mask_are_as_they_are_stored(write):
    mask = np.zeros((6, 8, 4), np.uint8)
    mask[:3] = 255  # what is not forged is transparent, and black below
    for mode in ("L", "RGB"):
        values = read_values(encoded("PNG", Image.fromarray(mask)), "m", mode)
        assert (values[:3] == 255).all() and not values[3:].any() and values.flags.writeable
    with pytest.raises(PictureError, match=r"pixels of m are I;16, not 8 bits per channel") as caught:
        read_values(encoded("PNG", Image.fromarray(np.zeros((4, 4), np.uint16))), "m", "L")
    assert caught.value.why == "its pixels are I;16, not 8 bits per channel"


def test_pbm_and_plain_pnm_are_read_and_floats_are_named(write):
    assert (read_picture(write(b"P1\n2 2\n0 1\n1 0\n")) == [[[255], [0]], [[0], [255]]]).all()
    assert (read_picture(write(b"P3\n1 1\n255\n1 2 3\n")) == (1, 2, 3)).all()
    refused(write(encoded("PPM", Image.fromarray(np.zeros((4, 4), np.float32)))), "are floating-point numbers")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "it is empty"),
        (b"no image", "it is not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "it is a PostScript file"),
        (encoded("PNG")[:300], "it is truncated"),
        (encoded("PNG")[:30] + bytes(99), "it is damaged"),
        (encoded("PNG", Image.new("1", (9000, 9000))), "it has 9000x9000 pixels, more than 50,000,000"),
    ],
)
def test_a_report_can_say_why_in_a_few_words(write, data, why):
    with pytest.raises(PictureError) as caught:
        read_picture(write(data))
    assert caught.value.why == why and caught.value.why == pickle.loads(pickle.dumps(caught.value)).why


@pytest.mark.parametrize("kind", PICTURE_KINDS)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_what_breaks_off_is_refused(write, kind, share):
    data = encoded(kind)
    refused(write(data[: int(len(data) * share)]), "Copy or download it again|Save it again as JPEG or PNG")


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
    refused(write(small), "more than 100. Make it smaller, or raise most_pixels", most_pixels=100)


def test_files_that_are_not_there_empty_or_huge(write, tmp_path, monkeypatch):
    refused(tmp_path / "none.jpg", "File .* not found")
    refused(tmp_path, "not found. Check the path")
    refused(write(b""), "is empty")
    monkeypatch.setattr("dcl_face_forgery.media_dcl.MOST_BYTES", 10)
    refused(write(encoded("PNG")), "too much for an image")


def test_arrays_and_other_objects():
    assert read_picture(RGB) is not None and np.array_equal(read_picture(RGB), RGB)
    for wrong in (RGB[..., 0], RGB.astype(int), RGB[:0], np.zeros((4, 4, 4), np.uint8), RGB[..., 0] / 255):
        with pytest.raises(InputError, match=r"is not an image\. Pass RGB \(height, width, 3\), uint8 or floats in"):
            read_picture(wrong)
    for kind in (np.float16, np.float32, np.float64):
        assert np.array_equal(read_picture((RGB / 255).astype(kind)), RGB)
    for wrong, extent in (
        (RGB.astype(float), "0 to 249"),
        (RGB / 255 - 1, r"-1 to -0\.0\d+"),
        (RGB * np.nan, "nan to nan"),
    ):
        with pytest.raises(InputError, match=rf"range from {extent}\. Scale them to"):
            read_picture(wrong)
    with pytest.raises(InputError, match="more than 10"):
        read_picture(RGB, 10)
    with pytest.raises(InputError, match="An object of type int is not an image"):
        read_picture(3)
    with pytest.raises(InputError, match="pixels of <image> are floating-point numbers"):
        read_picture(Image.fromarray(np.zeros((4, 4), np.float32)))
