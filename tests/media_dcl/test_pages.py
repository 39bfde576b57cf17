"""Of a file of several pictures it is the one that is meant, and the others are mentioned."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.media_dcl import BoundedReader

PREVIEW, PAGE, MASK = 1, 2, 4  # bits of the tag NewSubfileType


def page(value, size, **tags):
    return np.full((size[1], size[0], 3), value, np.uint8), tags


def tiff(*pages):
    """Return a TIFF of pages of one colour each, with tags."""
    buffer = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(buffer, new=True) as writer:
        for pixels, tags in pages:
            info = TiffImagePlugin.ImageFileDirectory_v2()
            for name, value in tags.items():
                info[{"new": 254, "old": 255, "sub": 330, "orientation": 274}[name]] = value
            Image.fromarray(pixels).save(writer, "TIFF", tiffinfo=info)
            writer.newFrame()
    return buffer.getvalue()


SMALL, LARGE = (32, 24), (160, 120)


@pytest.mark.parametrize(
    "pages",
    [
        [page(9, SMALL, new=PREVIEW), page(99, LARGE, new=0)],
        [page(9, SMALL, old=2), page(99, LARGE, old=1)],
        [page(9, SMALL), page(99, LARGE)],  # only its shape tells the preview
        [page(9, (33, 24)), page(99, LARGE)],
        [page(9, SMALL, new=PREVIEW), page(99, LARGE, new=PREVIEW)],  # of what, if not of the other
        [page(9, LARGE, new=MASK), page(99, LARGE)],
        [page(99, LARGE), page(9, SMALL, new=PREVIEW), page(8, (16, 12), new=PREVIEW)],
        [page(99, LARGE), page(9, SMALL), page(8, (16, 12))],
        [page(99, LARGE), page(9, LARGE, new=MASK)],
        [page(99, LARGE, new=PREVIEW)],  # there is nothing else that it could show
        [page(99, LARGE, sub=8)],
        [page(9, SMALL, new=PREVIEW, sub=8), page(99, LARGE)],
    ],
)
def test_the_full_picture_of_a_tiff_is_taken(opened, pages):
    picture = opened(tiff(*pages))
    assert picture.pixels.shape == (120, 160, 3) and (picture.pixels == 99).all() and picture.notes == ()


@pytest.mark.parametrize(
    ("pages", "number"),
    [
        ([page(99, LARGE), page(9, LARGE), page(8, LARGE)], 3),
        ([page(99, LARGE, new=PAGE), page(9, (320, 240), new=PAGE)], 2),
        ([page(99, LARGE, old=3), page(9, (320, 240), old=3)], 2),
        ([page(99, LARGE), page(9, (320, 220))], 2),  # another shape: no preview
        ([page(99, LARGE), page(9, (170, 128))], 2),
        ([page(7, SMALL), page(99, LARGE), page(9, (120, 160))], 2),
    ],
)
def test_of_a_scan_it_is_the_first_page_with_a_note(opened, pages, number):
    picture = opened(tiff(*pages))
    assert (picture.pixels == 99).all()
    assert picture.notes == (f"The file has {number} pages; only the first was analyzed.",)


@pytest.mark.parametrize("more", [[], [page(8, (16, 12), new=PREVIEW)]])
def test_previews_of_a_picture_that_is_kept_elsewhere_are_refused(opened, more):
    """As in the RAW photos of cameras, whose suffix says nothing to one who looks at the content."""
    with pytest.raises(InputError, match=r"contains only previews of an image, like a RAW photo\. Convert it to JPEG"):
        opened(tiff(page(9, SMALL, new=PREVIEW, sub=8), *more))


def test_the_chosen_page_is_turned_by_its_own_tags_and_has_its_own_profile(opened):
    left_black = np.full((120, 160, 3), 200, np.uint8)
    left_black[:, :80] = 0
    picture = opened(tiff(page(9, SMALL, new=PREVIEW), (left_black, {"orientation": 6})))
    assert picture.pixels.shape == (160, 120, 3) and not picture.pixels[:80].any() and picture.pixels[80:].all()
    buffer = io.BytesIO()
    preview, full = Image.fromarray(page(9, SMALL)[0]), Image.fromarray(page(99, LARGE)[0])
    preview.save(buffer, "TIFF", save_all=True, append_images=[full], icc_profile=b"damaged")
    assert opened(buffer.getvalue()).pixels.shape == (120, 160, 3)


def test_a_damaged_second_page_costs_the_first_nothing(opened):
    data = tiff(page(99, LARGE), page(9, LARGE))
    second = data.rindex(b"II*\0") if data.count(b"II*\0") > 1 else len(data) - 400
    for place in (second, len(data) - 100, len(data) - 10):
        picture = opened(data[:place])
        assert (picture.pixels == 99).all()


@pytest.mark.parametrize("number", [1, 2])
def test_a_tiff_that_breaks_off_before_its_next_page_is_read_with_a_note(opened, number):
    pages = [page(99, LARGE), page(9, LARGE), page(8, LARGE)]
    picture = opened(tiff(*pages)[: len(tiff(*pages[:number]))])
    assert (picture.pixels == 99).all()
    assert picture.notes == (
        f"The file is damaged or truncated after page {number}; only the first page was analyzed.",
    )


@pytest.mark.parametrize(("number", "said"), [(16, "16"), (17, "more than 16"), (40, "more than 16")])
def test_of_many_pages_some_are_looked_at(opened, number, said, monkeypatch):
    data, turned = tiff(*[page(99, SMALL)] * number), []
    seek = TiffImagePlugin.TiffImageFile.seek
    monkeypatch.setattr(
        TiffImagePlugin.TiffImageFile, "seek", lambda image, page: turned.append(page) or seek(image, page)
    )
    assert opened(data).notes == (f"The file has {said} pages; only the first was analyzed.",)
    assert len(turned) <= 18


def sharing(pages, entries, tags=1):
    """Return a TIFF whose pages have tags that all point to the same table."""
    data, pointer = bytearray(b"II*\0" + bytes(4 + 4 * entries)), 4
    for _ in range(pages):
        struct.pack_into("<I", data, pointer, len(data))
        fields = [(256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
        fields += [(273, 4, entries, 8), (277, 3, 1, 1), (278, 4, 1, 64), (279, 4, 1, 4096)]
        fields += [(40000 + number, 4, entries, 8) for number in range(tags - 1)]
        data += struct.pack("<H", len(fields)) + b"".join(struct.pack("<HHII", *field) for field in fields)
        pointer = len(data)
        data += bytes(4)
    return bytes(data)


def test_large_tables_that_pages_share_are_not_read_again_and_again(opened, monkeypatch):
    """A file of some megabytes whose pages took minutes to look at."""
    data, read = sharing(pages=16, entries=1_000_000), []
    original = BoundedReader.read

    def counted(reader, size=-1):
        part = original(reader, size)
        read.append(len(part))
        return part

    monkeypatch.setattr(BoundedReader, "read", counted)
    picture = opened(data)
    assert picture.pixels.shape == (64, 64, 3) and "after page 2;" in picture.notes[0]
    assert sum(read) < 2 * len(data) + (9 << 20)
    with pytest.raises(InputError, match="cannot be opened"):
        opened(sharing(pages=1, entries=1_000_000, tags=2000))
    assert sum(read) < 5 * len(data) + (18 << 20)


def test_small_tables_may_be_shared(opened):
    picture = opened(sharing(pages=3, entries=1000))
    assert picture.notes == ("The file has 3 pages; only the first was analyzed.",)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_of_an_animation_it_is_the_first_frame_with_a_note(opened, kind):
    frames = [Image.fromarray(np.full((32, 32, 3), value, np.uint8)) for value in (200, 10)]
    for more, notes in ((frames[1:], ("The image is animated; only its first frame was analyzed.",)), ([], ())):
        buffer = io.BytesIO()
        frames[0].save(buffer, kind, save_all=True, append_images=more)
        picture = opened(buffer.getvalue())
        assert np.abs(picture.pixels.astype(int) - 200).max() < 4 and picture.notes == notes


def test_the_second_picture_of_a_phones_jpeg_is_not_worth_a_note(opened):
    frames = [Image.fromarray(np.full((32, 32, 3), value, np.uint8)) for value in (200, 10)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "MPO", save_all=True, append_images=frames[1:])
    picture = opened(buffer.getvalue())
    assert (picture.pixels == 200).all() and picture.notes == ()
