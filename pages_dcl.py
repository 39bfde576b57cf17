"""Choose the page of a TIFF that is the picture, and say what else a file of pictures holds.

Cameras, scanners and editors put a small preview before the picture, or masks after it. Tags or shapes
tell which they are.
"""

import math
from io import BytesIO
from pathlib import Path

from PIL import Image

from .errors_dcl import PictureError

_MOST_PAGES = 16  # that are told apart
_SHARED = 8 << 20  # bytes that pages may read in common, such as a profile
_PREVIEW = 1.5  # a page is a preview of another that has so many times its width and height
_SUB_IFDS, _NEW_SUBFILE, _OLD_SUBFILE, _ICC = 330, 254, 255, 34675  # tags of TIFF


class BoundedReader(BytesIO):
    """A TIFF in memory whose reading ends in a ValueError once more was read than its pages can hold.

    Many pages or tags may point to one large table, so that a small file takes minutes to open.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left: float = 2 * len(data) + _SHARED  # Pillow reads the tags of a page twice

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as `BytesIO` does, but raise a ValueError once too much was read."""
        part = super().read(size)
        self._left -= len(part)
        if self._left < 0:
            raise ValueError("its pages or tags share large tables")
        return part

    def lift(self) -> None:
        """Let everything be read from now on, as decoding does."""
        self._left = math.inf


def choose_page(image: Image.Image, name: str | Path) -> tuple[int, list[str]]:
    """Find the first page of a TIFF that is no preview or mask of another.

    Args:
        image: opened and not yet loaded; where it has several pages, it cannot be used afterwards.
        name: of the picture, for errors.

    Returns:
        The number of the page, from 0, and a note if there are more of them, or they cannot be read.

    Raises:
        PictureError: if the picture itself is in no page, as that of a RAW photo.
    """
    pages: list[tuple[int, tuple[int, int], str]] = []
    has_parts = is_damaged = False
    for number in range(_MOST_PAGES + 1 if image.is_animated else 1):
        try:
            image.seek(number)
        except EOFError:  # there are no more
            break
        except Exception:
            is_damaged = True
            break
        pages.append((number, image.size, _role(image)))
        has_parts |= _SUB_IFDS in image.tag_v2
    full = [page for page in pages if page[2] not in ("mask", "preview")]
    if not full and has_parts:  # where the picture is of which these are previews
        raise PictureError(
            f"{name} holds only previews of a picture, as RAW photos do: convert it to JPEG.",
            "it holds only previews of a picture",
        )
    # Of pages that are all called previews, the largest is none: there is no other that it could be one of.
    full = full or [page for page in pages if page[2] != "mask"] or pages
    whole = [
        number
        for number, size, role in full
        if role == "page" or not any(_is_preview(size, other) for _, other, _ in full)
    ]
    notes = []
    if is_damaged:
        notes = [f"The file is damaged or truncated after page {len(pages)}; only the first page was analyzed."]
    elif len(pages) > _MOST_PAGES:
        notes = [f"The file has more than {_MOST_PAGES} pages; only the first was analyzed."]
    elif len(whole) > 1:
        notes = [f"The file has {len(whole)} pages; only the first was analyzed."]
    return whole[0], notes


def turn_to_page(image: Image.Image, number: int) -> None:
    """Turn a TIFF that was just opened to a page."""
    image.seek(number)
    if _ICC not in image.tag_v2:
        image.info.pop("icc_profile", None)  # of the first page


def _role(image: Image.Image) -> str:
    """Return what a TIFF says of its page: "mask" or "preview" of another, "page" of a document, or nothing."""
    new, old = (image.tag_v2.get(tag) or 0 for tag in (_NEW_SUBFILE, _OLD_SUBFILE))
    if new & 0b100:
        return "mask"
    if new & 0b001 or old == 2:
        return "preview"
    return "page" if new & 0b010 or old == 3 else ""


def _is_preview(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether a page of a size may be another one made smaller: it has the same shape, up to a pixel."""
    (width, height), (full_width, full_height) = size, other
    same_shape = abs(width * full_height - height * full_width) <= max(full_width, full_height)
    return same_shape and full_width >= _PREVIEW * width and full_height >= _PREVIEW * height


def notes_on_frames(image: Image.Image) -> list[str]:
    """Return a note if there are more frames; of a file that was decoded, since looking for them may turn to them."""
    try:
        if image.format in ("TIFF", "MPO") or not getattr(image, "is_animated", False):  # TIFF: see `choose_page`
            return []
        if image.format == "HEIF":
            return [f"The file has {image.n_frames} pictures; only the main one was analyzed."]
        return ["The picture is animated; only its first frame was analyzed."]
    except Exception:  # the second frame is damaged
        return []


__all__ = ["BoundedReader", "choose_page", "notes_on_frames", "turn_to_page"]
