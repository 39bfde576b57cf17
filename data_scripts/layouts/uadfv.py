"""UADFV: 49 videos, and a forgery of each.

```
R/real/0000.mp4         real
R/fake/0000_fake.mp4    fake
```

There is no official split: all clips form the test split.
"""

from pathlib import Path

from ...errors_dcl import InputError
from ...prepared.names import FAKE, REAL
from ..clips import Clip, Part, RawDataSet, group_families
from .listing import child, list_clips, root_folder

_PUBLISHED = 49
_SUFFIX = "_fake"


def find(root: str | Path) -> RawDataSet:
    """Find the clips; raises `InputError` if `real` or `fake` is missing or contains no videos."""
    root = root_folder(root, "real/ and fake/")
    found = RawDataSet("uadfv", {})
    clips: list[Clip] = []
    for label, side in ((REAL, "real"), (FAKE, "fake")):
        videos = list_clips(child(root, side), found.failures)
        if not videos:
            raise InputError(f"{root / side} contains no videos. Download them, or pass another --root.")
        found.parts.append(Part(side, len(videos), _PUBLISHED))
        for clip, frames in videos.items():
            clips.append(Clip(f"{side}/{clip}", f"real/{clip.removesuffix(_SUFFIX)}", side, label, frames))
    found.splits["test"] = group_families(clips)
    return found
