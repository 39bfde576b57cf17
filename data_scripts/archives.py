"""Read images from untrusted tar files: only regular members, into memory, never to disk.

A compressed archive is read in order. Its stream stays open between two clips: clips that are stored one after the
other, as in published archives, are read in a single pass after the one that lists them.
"""

import gzip
import math
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors_dcl import InputError, reason
from .frames import Frame, FrameReader, decode_crop

LARGEST_MEMBER = 8 << 20  # bytes; a PNG of 224x224 pixels has 150,000 at most
_LARGEST_HEADERS = 64 << 10  # bytes of headers before one member: names and attributes, hardly ever more than 2,000
#: PNG hardly shrinks when it is compressed again, so an archive that inflates to more than this is an attack on the
#: memory. Some is always allowed, since headers, padding and the end of an archive do shrink.
_LARGEST_RATIO, _ALWAYS_ALLOWED = 8, 16 << 20
_STEP = 1 << 18  # bytes read at once


class Member(NamedTuple):
    """A member of an archive: its name, the place of its content, and the reason if it is not read."""

    name: str
    offset: int
    size: int
    refusal: str = ""


class Archive:
    """A tar file, with or without gzip compression."""

    def __init__(self, path: Path):
        self.path = path
        self._content: _Content | None = None

    def __reduce__(self):
        return Archive, (self.path,)  # an open file stays in its process

    def open(self) -> "_Content":
        """Return the content, at the position of the last read; raises `InputError` if the file cannot be opened."""
        if self._content is None or self._content.is_broken:
            self._content = _Content(self.path)
        return self._content

    def members(self) -> Iterator[Member]:
        """Yield the members, except folders.

        Raises:
            InputError: if the archive is truncated, corrupt or malicious; members before that point have been yielded.
        """
        try:
            yield from _members(self.open())
        except InputError:
            raise
        except Exception as error:  # tarfile lets ValueError, OverflowError and others through
            raise InputError(f"not a complete tar file ({reason(error)})") from error
        finally:
            self._content = None  # closed until frames are read


def _members(content: "_Content") -> Iterator[Member]:
    content.seek(0)
    content.allow(_LARGEST_HEADERS)
    with tarfile.TarFile(fileobj=content, encoding="utf-8", errors="replace") as tar:
        before = -1
        while (info := tar.next()) is not None:
            if info.offset <= before or info.size < 0:
                raise InputError("its headers form a loop")
            before = info.offset
            tar.members = []  # TarFile would keep all of them
            if not info.isdir():
                refusal = ""
                if not info.isreg() or info.issparse():
                    refusal = "a member is not a regular file"
                elif info.size > LARGEST_MEMBER:
                    refusal = "a member is too large for a face crop"
                yield Member(info.name, info.offset_data, info.size, refusal)
            content.allow(_LARGEST_HEADERS)
        # tarfile treats anything that is not a header as the end of the archive.
        content.seek(tar.offset)
        if content.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise InputError("it is truncated or damaged")
        content.read_to_end()


class _Content:
    """The file object for tarfile. Whatever headers claim, it limits the bytes that are read and inflated."""

    def __init__(self, path: Path):
        self.is_broken = False
        self._allowed, self._most = 0, math.inf
        try:
            self._file = path.open("rb")
            if self._file.peek(2)[:2] == b"\x1f\x8b":
                self._most = _ALWAYS_ALLOWED + _LARGEST_RATIO * path.stat().st_size
                self._file = gzip.GzipFile(fileobj=self._file)
        except OSError as error:
            raise InputError(f"it cannot be opened ({error.strerror})") from error
        self.tell = self._file.tell

    def allow(self, size: int) -> None:
        self._allowed = size

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError, zlib.error) as error:
            self.is_broken = True
            raise InputError(
                "it is truncated" if isinstance(error, EOFError) else f"it is corrupt ({reason(error)})"
            ) from error

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self._allowed:
            raise InputError(f"a header claims {size:,} bytes")
        self._allowed -= size
        with self._reading():
            return self._file.read(size)

    def seek(self, position: int) -> None:
        if position > self._most:
            raise InputError(f"it inflates to more than {self._most:,} bytes, too much for images")
        with self._reading():
            self._file.seek(position)

    def read_to_end(self) -> None:
        """Read the rest of a compressed archive, which checks its checksum."""
        while self._most < math.inf:
            self.allow(_STEP)
            if not self.read(_STEP):
                return
            self.seek(self.tell())

    def member(self, member: Member) -> bytes:
        """Return the content of a member; raises `InputError` if it is incomplete."""
        self.allow(member.size)
        self.seek(member.offset)
        content = self.read(member.size)
        if len(content) < member.size:
            raise InputError("the archive is truncated")
        return content


@dataclass(frozen=True)
class ArchivedFrames:
    """Images in an archive, by frame number, and the name of their clip for reports."""

    archive: Archive
    name: str
    members: Mapping[int, Member]
    lossy = False

    @property
    def where(self) -> str:
        """The path of the archive, and the clip in it."""
        return f"{self.archive.path}: {self.name}"

    def files(self) -> list[Path]:
        """Return the archive."""
        return [self.archive.path]

    def open(self) -> AbstractContextManager[FrameReader]:
        """Return the reader; the archive is opened when frames are read, since all its clips share one open file."""
        return nullcontext(_MemberReader(self.archive, self.members))


class _MemberReader:
    def __init__(self, archive: Archive, members: Mapping[int, Member]):
        self._archive, self._members = archive, members
        self.numbers = sorted(members)

    def read(self, numbers: Iterable[int]) -> Iterator[tuple[int, Frame]]:
        found: dict[int, bytes | InputError] = {}
        for number in sorted(set(numbers), key=lambda number: self._members[number].offset):
            try:
                found[number] = self._archive.open().member(self._members[number])
            except InputError as error:
                found[number] = error
        for number in sorted(found):
            encoded = found.pop(number)
            try:
                yield number, encoded if isinstance(encoded, InputError) else decode_crop(encoded)
            except InputError as error:
                yield number, InputError(f"{self._members[number].name!r}: {error}")
