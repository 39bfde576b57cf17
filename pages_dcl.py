"""Choose the page of a TIFF that is the picture, and say what else a file of pictures holds.

Cameras, scanners and editors put a small preview before the picture, or masks after it. Tags or shapes
tell which they are.
"""

from pathlib import Path

from PIL import Image

from .errors_dcl import PictureError

_MOST_PAGES = 1000  # that are looked at
_PREVIEW = 1.5  # a page is a preview of another that has so many times its width and height
_SUB_IFDS, _NEW_SUBFILE, _OLD_SUBFILE, _ICC = 330, 254, 255, 34675  # tags of TIFF


def turn_to_page(image: Image.Image, name: str | Path) -> list[str]:
    """Turn a TIFF to its first page that is no preview or mask of another, and return a note if there are more."""
    refusal = PictureError(
        f"{name} holds only previews of a picture, such as those of a RAW photo: convert it to JPEG.",
        "it holds only previews",
    )
    if not image.is_animated:
        if _role(image) == "part" and _SUB_IFDS in image.tag_v2:  # where the picture itself is
            raise refusal
        return []
    pages: list[tuple[int, tuple[int, int], str]] = []
    for number in range(_MOST_PAGES):
        try:
            image.seek(number)
        except Exception:  # there are no more, or they are damaged
            break
        if (role := _role(image)) != "part":
            pages.append((number, image.size, role))
    if not pages:
        raise refusal
    whole = [
        (number, size)
        for number, size, role in pages
        if role == "page" or not any(_is_preview(size, other) for _, other, _ in pages)
    ]
    image.seek(whole[0][0])
    if _ICC not in image.tag_v2:
        image.info.pop("icc_profile", None)  # of another page
    return [f"The file has {len(whole)} pages; only the first was analyzed."] if len(whole) > 1 else []


def _role(image: Image.Image) -> str:
    """Return what a TIFF says of its page: "part" of another, such as a preview or mask, a "page", or nothing."""
    new, old = (image.tag_v2.get(tag) or 0 for tag in (_NEW_SUBFILE, _OLD_SUBFILE))
    if new & 0b101 or old == 2:
        return "part"
    return "page" if new & 0b10 or old == 3 else ""


def _is_preview(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether a page of a size may be another one made smaller: it has the same shape, up to a pixel."""
    (width, height), (full_width, full_height) = size, other
    same_shape = abs(width * full_height - height * full_width) <= max(full_width, full_height)
    return same_shape and full_width >= _PREVIEW * width and full_height >= _PREVIEW * height


def notes_on_frames(image: Image.Image) -> list[str]:
    """Return a note if there are more frames; of a file that was decoded, since looking for them may turn to them."""
    try:
        if image.format in ("TIFF", "MPO") or not getattr(image, "is_animated", False):  # TIFF: see `turn_to_page`
            return []
        if image.format == "HEIF":
            return [f"The file has {image.n_frames} pictures; only the main one was analyzed."]
        return ["The picture is animated; only its first frame was analyzed."]
    except Exception:  # the second frame is damaged
        return []


__all__ = ["notes_on_frames", "turn_to_page"]
