"""Pictures come out in the colours they are meant to show, whatever space they are stored in."""

import io
import struct
import zlib

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms

from dcl_face_forgery import media_dcl
from dcl_face_forgery.media_dcl import DAMAGED, OVERSIZED, UNFITTING, open_picture
from dcl_face_forgery.tests.shared.profiles import PROFILES, SPACES, grey_profile, inks_profile, matrix_profile


def light_of(values, exponent):
    values = values / 255
    return (
        np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        if exponent is None
        else values**exponent
    )


def values_of(light, exponent):
    light = light.clip(0, 1)
    coded = (
        np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
        if exponent is None
        else light ** (1 / exponent)
    )
    return np.round(coded * 255).astype(np.uint8)


def stored_in(name, pixels):
    """Return the values by which another colour space stores what `pixels` show in sRGB."""
    (from_columns, from_exponent), (columns, exponent) = SPACES["sRGB"], SPACES[name]
    seen = light_of(pixels, from_exponent) @ np.array(from_columns)
    return values_of(seen @ np.linalg.inv(columns), exponent)


@pytest.fixture(scope="module")
def scene():
    """As smooth and as coloured as a portrait: uint8 (96, 128, 3)."""
    coarse = np.random.default_rng(3).integers(20, 236, (6, 8, 3), np.uint8)
    grey = coarse.mean(axis=2, keepdims=True)
    muted = (0.6 * coarse + 0.4 * grey).astype(np.uint8)
    return np.asarray(Image.fromarray(muted).resize((128, 96), Image.Resampling.BICUBIC))


def encoded(pixels, kind="PNG", **options):
    buffer = io.BytesIO()
    (Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def difference(first, second):
    return np.abs(first.astype(int) - second).mean()


# ------------------------------------------------------------------------------------------------------------- colours


@pytest.mark.parametrize("name", [name for name in SPACES if name != "sRGB"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF"])
def test_a_picture_looks_the_same_in_every_colour_space(opened, scene, name, kind):
    options = {"JPEG": {"quality": 98, "subsampling": 0}, "AVIF": {"quality": 98}, "WEBP": {"lossless": True}}
    stored = stored_in(name, scene)
    assert difference(stored, scene) > 4, "the test shows nothing"
    picture = opened(encoded(stored, kind, icc_profile=PROFILES[name], **options.get(kind, {})))
    assert difference(picture.pixels, scene) < 2
    assert picture.notes == (f"Converted from {name} to sRGB.",)


@pytest.mark.parametrize(
    "profile", [PROFILES["sRGB"], ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()]
)
def test_a_picture_in_srgb_keeps_its_pixels_bit_by_bit(opened, scene, profile):
    picture = opened(encoded(scene, icc_profile=profile))
    assert np.array_equal(picture.pixels, scene) and picture.notes == ()
    grey = Image.fromarray(scene).convert("L")
    assert np.array_equal(opened(encoded(grey, icc_profile=profile)).pixels, np.asarray(grey.convert("RGB")))


def test_an_opened_picture_is_converted_as_its_file_is(opened, scene):
    data = encoded(stored_in("Display P3", scene), icc_profile=PROFILES["Display P3"])
    image = Image.open(io.BytesIO(data))
    assert np.array_equal(open_picture(image).pixels, opened(data).pixels)
    assert np.array_equal(np.asarray(image), stored_in("Display P3", scene)), "the image itself was converted"


def test_grey_pictures_have_profiles_of_grey_or_of_colours(opened, scene):
    grey = np.asarray(Image.fromarray(scene).convert("L"))
    linear = np.round(light_of(grey, None) * 255).astype(np.uint8)
    for data in (
        encoded(linear, icc_profile=grey_profile(1.0)),
        encoded(np.round(light_of(grey, None) * 65535).astype(np.uint16), icc_profile=grey_profile(1.0)),
        encoded(linear, icc_profile=matrix_profile(SPACES["sRGB"][0], 1.0, "linear")),
    ):
        picture = opened(data)
        assert difference(picture.pixels, grey[..., None]) < 2 and len(picture.notes) == 1
    same = opened(encoded(grey, icc_profile=grey_profile(None)))
    assert np.array_equal(same.pixels[..., 0], grey) and same.notes == ()


def test_what_is_transparent_stays_so_until_it_is_laid_on_white(opened, scene):
    alpha = np.linspace(0, 255, 128).astype(np.uint8)[None].repeat(96, 0)
    shown = np.asarray(
        Image.alpha_composite(Image.new("RGBA", (128, 96), "white"), Image.fromarray(np.dstack([scene, alpha])))
    )[..., :3]
    stored = np.dstack([stored_in("Adobe RGB (1998)", scene), alpha])
    picture = opened(encoded(stored, icc_profile=PROFILES["Adobe RGB (1998)"]))
    assert difference(picture.pixels, shown) < 2
    assert (picture.pixels[:, 0] == 255).all()
    flat = Image.fromarray(stored[..., :3]).quantize(64)
    exact = open_picture(flat.convert("RGB")).pixels
    flat.info["icc_profile"] = PROFILES["Adobe RGB (1998)"]
    assert difference(open_picture(flat).pixels, exact) > 2


def test_inks_have_the_colours_that_their_profile_says(opened):
    inks = Image.new("CMYK", (40, 20))
    inks.paste((255, 0, 0, 0), (20, 0, 40, 20))
    for kind in ("TIFF", "JPEG"):
        plain = opened(encoded(inks, kind)).pixels
        picture = opened(encoded(inks, kind, icc_profile=inks_profile()))
        assert picture.notes and picture.pixels[10, 5].min() > 250
        red, green, blue = picture.pixels[10, 35].astype(int)
        assert red > green + 60 and red > blue + 60 and plain[10, 35, 0] < 60


def test_large_pictures_are_converted_in_strips_to_the_same_pixels(monkeypatch, scene):
    clear = np.dstack([scene, np.linspace(0, 255, 128).astype(np.uint8)[None].repeat(96, 0)])
    deep = Image.fromarray(scene[..., 0].astype(np.uint16) * 200)
    pictures = [Image.fromarray(scene), Image.fromarray(scene).convert("CMYK"), Image.fromarray(clear), deep]
    pictures += [Image.fromarray(scene).quantize(20), Image.fromarray(scene).convert("1")]
    pictures.append(Image.open(io.BytesIO(encoded(scene, icc_profile=PROFILES["ProPhoto RGB"]))))
    whole = [open_picture(picture).pixels for picture in pictures]
    monkeypatch.setattr(media_dcl, "_STRIP", 1000)
    for picture, expected in zip(pictures, whole, strict=True):
        assert np.array_equal(open_picture(picture).pixels, expected), picture.mode


# -------------------------------------------------------------------------------------------------------- bad profiles


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
@pytest.mark.parametrize("profile", [b"no profile", PROFILES["sRGB"][:200], bytes(500)])
def test_a_damaged_profile_is_ignored_with_a_note(opened, scene, kind, profile):
    picture, plain = (opened(encoded(scene, kind, icc_profile=each)) for each in (profile, None))
    assert np.array_equal(picture.pixels, plain.pixels)
    assert picture.notes == (DAMAGED,) and plain.notes == ()


def test_a_profile_of_other_pixels_is_ignored_with_a_note(opened, scene):
    for image, profile in (
        (scene, grey_profile(1.0)),
        (scene, inks_profile()),
        (scene[..., 0], inks_profile()),
        (Image.fromarray(scene).convert("CMYK"), PROFILES["Display P3"]),
    ):
        picture, plain = (opened(encoded(image, "TIFF", icc_profile=each)) for each in (profile, None))
        assert np.array_equal(picture.pixels, plain.pixels) and picture.notes == (UNFITTING,)


@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_a_huge_profile_is_ignored_with_a_note(opened, scene, kind):
    picture = opened(encoded(scene, kind, icc_profile=PROFILES["Display P3"] + bytes(5 << 20)))
    assert np.array_equal(picture.pixels, scene) and picture.notes == (OVERSIZED,)


def test_damage_to_a_profile_never_ends_in_an_error(opened, scene):
    rng = np.random.default_rng(0)
    for _ in range(100):
        profile = bytearray(PROFILES["ProPhoto RGB"])
        for place in rng.integers(0, len(profile), 3):
            profile[place] = rng.integers(256)
        picture = opened(encoded(scene[:4, :4], "TIFF", icc_profile=bytes(profile)))
        assert picture.pixels.shape == (4, 4, 3)
        assert all(note.isprintable() and len(note) < 100 for note in picture.notes)


# ----------------------------------------------------------------------------------- colour spaces that are no profile


def with_chunks(png, **chunks):
    """Return a PNG with further chunks after its header."""
    made = b""
    for name, data in chunks.items():
        body = name.encode() + data
        made += struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
    return png[:33] + made + png[33:]


def gamma(value):
    return struct.pack(">I", round(value * 100_000))


def primaries(*values):
    return struct.pack(">8I", *(round(value * 100_000) for value in values))


SRGB = primaries(0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
ADOBE = primaries(0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
P3 = primaries(0.3127, 0.3290, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)


@pytest.mark.parametrize(
    ("name", "chunks"),
    [
        ("Display P3", {"cICP": bytes([12, 13, 0, 1])}),
        ("Display P3", {"cHRM": P3}),
        ("Display P3", {"gAMA": gamma(1 / 2.2), "cHRM": P3}),
    ],
)
def test_the_colour_space_that_a_png_names_is_converted(opened, scene, name, chunks):
    picture = opened(with_chunks(encoded(stored_in(name, scene)), **chunks))
    assert difference(picture.pixels, scene) < 2 and len(picture.notes) == 1


def test_the_gamma_of_a_png_is_converted(opened, scene):
    stored = np.round(light_of(scene, None) * 255).astype(np.uint8)
    picture = opened(with_chunks(encoded(stored), gAMA=gamma(1.0)))
    assert difference(picture.pixels, scene) < 2
    assert picture.notes == ("Converted from the gamma and primaries of its file to sRGB.",)


@pytest.mark.parametrize(
    "chunks",
    [
        {"gAMA": gamma(0.45455)},
        {"gAMA": gamma(0.45455), "cHRM": SRGB},
        {"sRGB": b"\0", "gAMA": gamma(0.45455), "cHRM": ADOBE},  # the first says it
        {"cICP": bytes([1, 13, 0, 1])},
        {"cICP": bytes([2, 2, 0, 1])},
        {"gAMA": gamma(0)},
    ],
)
def test_a_png_that_names_srgb_keeps_its_pixels_bit_by_bit(opened, scene, chunks):
    picture = opened(with_chunks(encoded(scene), **chunks))
    assert np.array_equal(picture.pixels, scene) and picture.notes == ()


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_the_colour_space_that_an_avif_or_heic_names_is_converted(opened, scene, kind):
    pillow_heif.register_heif_opener()
    options = {"quality": 98, "subsampling": "4:4:4"} if kind == "AVIF" else {"quality": 98, "chroma": 444}
    plain = encoded(stored_in("Display P3", scene), kind, **options)
    at = plain.index(b"colrnclx") + 8
    for number, transfer, notes in (
        (12, 13, ("Converted from Display P3 to sRGB.",)),
        (1, 13, ()),
        (2, 2, ()),
        (9, 18, ("The image is HDR (HLG) and was read without tone mapping; its colours may be off.",)),
    ):
        data = plain[:at] + struct.pack(">2H", number, transfer) + plain[at + 4 :]
        picture = opened(data)
        assert picture.notes == notes
        assert difference(picture.pixels, scene if number == 12 else stored_in("Display P3", scene)) < 3


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_a_png_in_hdr_is_read_with_a_note(opened, scene, transfer, name):
    picture = opened(with_chunks(encoded(scene), cICP=bytes([9, transfer, 0, 1])))
    assert np.array_equal(picture.pixels, scene)
    assert picture.notes == (f"The image is HDR ({name}) and was read without tone mapping; its colours may be off.",)


def test_primaries_that_cannot_be_are_ignored_with_a_note(opened, scene):
    for values in ((0,) * 8, (0.3127, 0.3290) * 4, (21474,) * 8):
        picture = opened(with_chunks(encoded(scene), cHRM=primaries(*values)))
        assert np.array_equal(picture.pixels, scene) and picture.notes == (DAMAGED,)
