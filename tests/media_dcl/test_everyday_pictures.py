"""Pictures that people reported to other projects, made anew: each is read as it is meant, or refused by its name."""

import io
import struct
import zlib

import numpy as np
import pillow_heif
import pytest
from PIL import Image, TiffImagePlugin
from PIL.PngImagePlugin import PngInfo

from dcl_face_forgery import media_dcl
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.media_dcl import OVERSIZED, content_kind, is_video, open_picture, read_picture, read_values
from dcl_face_forgery.tests.shared.profiles import PROFILES

pillow_heif.register_heif_opener()  # so that pictures can be written, too

coarse = np.random.default_rng(5).integers(0, 256, (12, 16, 3), np.uint8)
PORTRAIT = Image.fromarray(coarse).resize((256, 192), Image.Resampling.BICUBIC)
PIXELS = np.asarray(PORTRAIT)


def encoded(kind, image=PORTRAIT, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def refused(path, sentence):
    with pytest.raises(InputError, match=sentence):
        read_picture(path)


# What a file is


@pytest.mark.parametrize(
    ("brand", "what"),
    [
        *((brand, "a HEIF image of a rare kind") for brand in ("mif2", "miaf", "avci", "avcs", "jpeg", "vvic")),
        ("crx ", "a Canon RAW photo"),
    ],
)
def test_a_still_picture_in_the_container_of_videos_is_no_video(write, brand, what):
    """google/magika#1233."""
    path = write(b"\0\0\0\x18ftyp" + brand.encode() + b"\0\0\0\0mif1heic" + bytes(200), "a.heic")
    assert not is_video(path)
    refused(path, rf"is {what}\. Convert it to JPEG")


def test_a_bigtiff_is_a_tiff(write):
    """python-pillow/Pillow#4513 and #6097: scanners and Photoshop write them."""
    for first, data in ((b"II+\0", encoded("TIFF", big_tiff=True)), (b"II*\0", encoded("TIFF"))):
        assert data[:4] == first and content_kind(data[:512]) == "TIFF"
        assert np.array_equal(read_picture(write(data)), PIXELS)
    assert content_kind(b"MM\0+\0\x08\0\0") == "TIFF"


def test_a_tiff_of_raw_pixels_is_named_as_a_raw_photo(write):
    """codez/ImportPhotoFolders#2: phones keep the pixels of the sensor as the first picture of a DNG."""
    tags = {262: 32803, 50706: b"\1\4\0\0"}
    refused(
        write(encoded("TIFF", PORTRAIT.convert("L"), tiffinfo=tags), "a.dng"),
        r"cannot be opened .*\. Convert it to JPEG\.",
    )


# Pixels as they are meant


def bitmap(header, alpha):
    """Return a 32-bit BMP whose fourth bytes are said to be alpha."""
    pixels = np.dstack([PIXELS[::-1, :, ::-1], alpha[::-1]]).tobytes()
    fields = struct.pack("<IiiHHIIiiII", header, 256, 192, 1, 32, 3, len(pixels), 2835, 2835, 0, 0)
    fields = (fields + struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs").ljust(header, b"\0")
    start = 14 + len(fields)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + fields + pixels


@pytest.mark.parametrize("header", [108, 124])
def test_a_bitmap_whose_alpha_was_never_set_is_opaque(write, header):
    """SixLabors/ImageSharp#581, image-rs/image#539, bgrabitmap/lazpaint#189."""
    alpha = np.zeros(PIXELS.shape[:2], np.uint8)
    path = write(bitmap(header, alpha))
    assert np.array_equal(read_picture(path), PIXELS) and np.array_equal(read_picture(Image.open(path)), PIXELS)
    alpha[:5] = 255
    picture = read_picture(write(bitmap(header, alpha)))
    assert np.array_equal(picture[:5], PIXELS[:5]) and (picture[5:] == 255).all()


@pytest.mark.parametrize(
    ("mode", "compression"), [("1", "group4"), ("1", "group3"), ("1", "raw"), ("L", "tiff_lzw"), ("L", "raw")]
)
def test_a_fax_that_counts_from_white_is_no_negative(write, mode, compression):
    """python-pillow/Pillow#5655, image-rs/image-tiff#297."""
    image = PORTRAIT.convert(mode)
    data = encoded("TIFF", image, compression=compression, tiffinfo={262: 0})
    assert Image.open(io.BytesIO(data)).tag_v2[262] == 0
    assert np.array_equal(read_picture(write(data)), np.asarray(image.convert("RGB")))


def test_of_a_portrait_with_its_depth_it_is_the_photograph(write):
    """python-pillow/Pillow#1138, scanny/python-pptx#787."""
    depth = PORTRAIT.convert("L").resize((64, 48))
    picture = read_picture(write(encoded("MPO", save_all=True, append_images=[depth], quality=95)))
    assert np.abs(picture.astype(int) - PIXELS).mean() < 3


def test_a_gif_smaller_than_its_canvas_lies_on_white(write):
    """ageitgey/face_recognition#1069: the first frame of an animation need not fill it."""
    data = bytearray(encoded("GIF", PORTRAIT.quantize(200, dither=Image.Dither.NONE)))
    inside = read_picture(write(bytes(data))).copy()
    data[6:10] = struct.pack("<2H", 300, 260)
    at = data.index(b"\x2c\0\0\0\0\0\1\xc0\0")  # of the frame
    data[at + 1 : at + 5] = struct.pack("<2H", 20, 30)
    palette_end = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    data[palette_end:palette_end] = b"\x21\xf9\4\1\0\0\xff\0"  # value 255 is transparent
    picture = read_picture(write(bytes(data)))
    assert picture.shape == (260, 300, 3) and np.array_equal(picture[30:222, 20:276], inside)
    assert (picture[:30] == 255).all() and (picture[:, 276:] == 255).all()


# Text in pictures

ICON = b'<svg xmlns="http://www.w3.org/2000/svg" width="24" height="24"><path d="M0 0h24v24z"/></svg>'
NOTE = b"<html><body><script>steps = 20</script></body></html>"


def box(kind, content):
    return struct.pack(">I", len(content) + 8) + kind + content


def credentials(content):
    """Return Content Credentials: JUMBF boxes, one in the other."""
    description = box(b"jumd", b"c2pa\0\x11\0\x10\x80\0\0\xaa\0\x38\x9b\x71\x03c2pa\0")
    inner = box(b"jumb", description + box(b"bidb", content))
    return box(b"jumb", description + inner + box(b"free", bytes(100_000)))


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def signed(kind, content):
    """Return a picture with Content Credentials where its format has them."""
    boxes = credentials(content)
    if kind == "JPEG":
        data, step = encoded(kind, quality=95), 60_000
        parts = [boxes[:step], *(boxes[:8] + boxes[at : at + step] for at in range(step, len(boxes), step))]
        segments = [b"JP\0\1" + struct.pack(">I", number) + part for number, part in enumerate(parts, 1)]
        return (
            data[:2] + b"".join(b"\xff\xeb" + struct.pack(">H", len(each) + 2) + each for each in segments) + data[2:]
        )
    if kind == "PNG":
        data = encoded(kind)
        return data[:33] + chunk(b"caBX", boxes) + data[33:]
    if kind == "WEBP":
        data = encoded(kind, lossless=True, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0")
        data += b"C2PA" + struct.pack("<I", len(boxes)) + boxes + b"\0" * (len(boxes) % 2)
        return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    if kind == "TIFF":
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[52545] = boxes
        tags.tagtype[52545] = 7
        return encoded(kind, tiffinfo=tags)
    uuid = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
    return encoded(kind) + box(b"uuid", uuid + b"\0\0\0\0manifest\0" + bytes(8) + boxes)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_the_icon_in_content_credentials_is_let_be(write, kind):
    """contentauth/verify-site#336, contentauth/c2pa-rs#1209."""
    data = signed(kind, ICON)
    assert ICON in data and read_picture(write(data)).shape == PIXELS.shape


@pytest.mark.parametrize("name", [b"tEXt", b"iTXt"])
@pytest.mark.parametrize("place", ["before", "after"])
def test_what_an_image_generator_was_asked_for_is_let_be(write, name, place):
    """Comfy-Org/ComfyUI keeps its workflow in the text of a PNG, in which users write notes in HTML."""
    data = encoded("PNG")
    at = 33 if place == "before" else len(data) - 12

    def with_text(text):
        return data[:at] + chunk(name, b"workflow\0" + b"\0\0\0\0" * (name == b"iTXt") + text) + data[at:]

    assert np.array_equal(read_picture(write(with_text(NOTE))), PIXELS)


@pytest.mark.parametrize("kind", ["zTXt", "iTXt"])
@pytest.mark.parametrize("after", [False, True])
def test_long_text_in_a_png_is_let_be(write, kind, after):
    """python-pillow/Pillow#8363 and #2445: more than a megabyte of text, as editors and image generators write it."""
    info = PngInfo()
    add = info.add_text if kind == "zTXt" else info.add_itxt
    add("workflow", "x" * 2_000_000, zip=True)
    if after:
        info.chunks = [(*each[:2], True) for each in info.chunks]
    assert np.array_equal(read_picture(write(encoded("PNG", pnginfo=info))), PIXELS)


def test_a_png_with_long_text_is_turned_as_its_xmp_says(write):
    info = PngInfo()
    info.add_text("workflow", "x" * 2_000_000, zip=True)
    info.add_itxt(
        "XML:com.adobe.xmp",
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="3"/></rdf:RDF></x:xmpmeta>',
    )
    assert np.array_equal(read_picture(write(encoded("PNG", pnginfo=info))), PIXELS[::-1, ::-1])


OVERSIZED_TEXT = "The metadata is too large and was ignored."


def oversized(name):
    long = zlib.compress(b"<rdf:li>1</rdf:li>" * 100_000)
    return {
        b"iTXt": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + long),
        b"zTXt": chunk(b"zTXt", b"Raw profile type xmp\0\0" + long),
        b"iCCP": chunk(b"iCCP", b"profile\0\0" + long),
    }[name]


@pytest.mark.parametrize(
    ("names", "notes"),
    [
        ([b"iTXt"], {OVERSIZED_TEXT}),
        ([b"zTXt"], {OVERSIZED_TEXT}),
        ([b"iCCP"], {OVERSIZED}),
        ([b"iCCP", b"iTXt"], {OVERSIZED, OVERSIZED_TEXT}),
    ],
)
def test_what_is_too_large_in_a_png_is_dropped_with_a_note_on_it_alone(write, names, notes):
    data = encoded("PNG")
    chunks = b"".join(map(oversized, names))
    assert set(open_picture(write(data[:33] + chunks + data[33:])).notes) == notes
    picture = open_picture(write(data[:33] + chunks + data[33:] + bytes(5000)))
    assert np.array_equal(picture.pixels, PIXELS) and set(picture.notes) == notes
    if b"iCCP" not in names:  # which stands before the pixels
        picture = open_picture(write(data[:-12] + chunks + data[-12:]))
        assert np.array_equal(picture.pixels, PIXELS) and set(picture.notes) == notes


def test_a_profile_is_kept_where_the_text_is_too_large(write):
    data = encoded("PNG", icc_profile=PROFILES["Display P3"])
    picture, plain = (open_picture(write(data[:33] + more + data[33:])) for more in (oversized(b"iTXt"), b""))
    assert np.array_equal(picture.pixels, plain.pixels) and picture.notes == (*plain.notes, OVERSIZED_TEXT)


def test_of_thousands_of_packed_texts_in_a_png_few_are_unpacked(write, monkeypatch):
    data, unpacked = encoded("PNG"), []
    original = media_dcl._is_oversized
    monkeypatch.setattr(media_dcl, "_is_oversized", lambda *args: unpacked.append(args) or original(*args))
    text = chunk(b"zTXt", b"Raw profile type xmp\0\0" + zlib.compress(bytes(1000)))
    picture = open_picture(write(data[:33] + text * 3000 + data[33:]))
    assert np.array_equal(picture.pixels, PIXELS) and len(unpacked) == 16 and picture.notes == (OVERSIZED_TEXT,)


# Missing ends


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"subsampling": 0, "optimize": True}])
@pytest.mark.parametrize("behind", [b"", bytes(100), bytes(9000)])
def test_a_jpeg_that_lacks_its_end_marker_only_is_read(write, options, behind):
    """python-pillow/Pillow#4414, rroller/dahua#658: snapshots of cameras."""
    for image in (PORTRAIT, PORTRAIT.convert("L"), Image.new("RGB", (333, 222), (128, 128, 128))):
        data = encoded("JPEG", image, quality=95, **options)
        path = write(data[:-2] + behind)
        assert np.array_equal(read_picture(path), read_picture(write(data, "whole.jpg")))
        assert np.array_equal(read_values(path, "a mask", "L"), read_values(data, "a mask", "L"))


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"progressive": True}])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_jpeg_of_which_a_part_never_came_is_refused(write, options, share):
    """python-pillow/Pillow#123: a download that reserved its space, or a rescued memory card."""
    data = encoded("JPEG", quality=95, **options)
    there = data[: int(len(data) * share)]
    for part in (there, there + bytes(len(data) - len(there)), there + bytes(len(data))):
        refused(write(part), "truncated")


def test_a_jpeg_that_breaks_off_between_two_restarts_is_refused(write):
    data = encoded("JPEG", quality=95, restart_marker_rows=1)
    for number in range(4):
        refused(write(data[: data.index(bytes([0xFF, 0xD0 + number]))]), "truncated")


def test_a_jpeg_of_many_scans_is_searched_for_restarts_once(write):
    """A small file that asked for a search to its end from each of its scans."""
    searched = []

    class Counted(bytes):
        def count(self, *args):
            searched.append(args)
            return super().count(*args)

    data = encoded("JPEG", Image.new("RGB", (64, 64)), restart_marker_rows=1)
    at = data.index(b"\xff\xda")
    scan = data[at : at + 2 + int.from_bytes(data[at + 2 : at + 4])]
    many = data[:at] + scan * 400 + bytes(9000) + b"\x55"
    assert not media_dcl._may_be_whole(Counted(many)) and not searched
    refused(write(many), "truncated")
    assert media_dcl._may_be_whole(Counted(data[:-2])) and len(searched) == 8


def test_versions_of_a_picture_are_compared_up_to_the_first_difference():
    data = encoded("JPEG", PORTRAIT)[:-2]
    for shown, decoded in (([b"a", b"b", b"a"], 2), ([b"a", b"a", b"b"], 3), ([b"a", b"a", b"a"], 3)):
        left = iter(shown)
        breaks = media_dcl.breaks_off("JPEG", data, lambda version, left=left: next(left))
        assert breaks == (len(set(shown)) > 1) and len(list(left)) == 3 - decoded


@pytest.mark.parametrize("kind", ["AVIF", "GIF", "HEIF", "PNG"])
def test_zeros_in_the_place_of_a_part_are_told_from_zeros_behind_a_picture(write, kind):
    data = encoded(kind)
    assert np.array_equal(read_picture(write(data + bytes(5000))), read_picture(write(data, "whole")))
    for share in (0.5, 0.9):
        there = int(len(data) * share)
        refused(write(data[:there] + bytes(len(data) - there + 5000)), "truncated|damaged")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "BMP", "PPM", "TIFF"])
def test_a_black_picture_is_not_taken_for_a_missing_one(write, kind):
    for colour in ("black", "white"):
        image = Image.new("RGB", (700, 500), colour)
        options = {"optimize": True} if kind == "JPEG" else {}
        picture = read_picture(write(encoded(kind, image, **options)))
        assert np.abs(picture.astype(int) - np.asarray(image)).max() <= 2
