"""Read images out of tar files that nobody vouches for: regular members only, into memory, never to disk.

Listing reads no member, and reading goes to where a member lies. A tar file that gzip compressed cannot be entered in
the middle, so while it is listed, the state of the decompressor is kept every few megabytes: whatever the order in
which members are read, hardly anything is decompressed more than twice.
"""

import tarfile
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..errors_dcl import InputError, reason
from .frames import Frame, FrameReader, decode_crop

LARGEST_MEMBER = 8 << 20  # bytes; a PNG of 224x224 pixels has 150,000 at most
_LARGEST_HEADERS = 64 << 10  # bytes of headers before one member: names and attributes, hardly ever more than 2,000
#: PNG cannot be compressed again: what inflates to more than this is made to fill the memory. Headers and padding of
#: small images shrink, and so does the end of an archive.
_LARGEST_RATIO, _ALWAYS_ALLOWED = 8, 16 << 20
_GZIP, _GZIP_WINDOW = b"\x1f\x8b", 31
_READ, _STEP = 1 << 16, 1 << 18  # bytes read, and decompressed, at once
_MARK_EVERY = 4 << 20  # bytes between two states that are kept, 50 kB each


class Member(NamedTuple):
    """A member of an archive: what it is called, where its content lies, and why it is not read, if it is not."""

    name: str
    offset: int
    size: int
    refusal: str = ""


class Archive:
    """A tar file, compressed by gzip or not.

    Args:
        path: the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self._marks: list[_Mark] = []

    def __reduce__(self):
        return Archive, (self.path,)  # states of decompressors stay in their process

    @contextmanager
    def open(self) -> Iterator["_Content"]:
        """Open the content; raises `InputError` if the file cannot be opened."""
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise InputError(f"it cannot be opened ({error.strerror})") from error
        with file:
            compressed = file.read(len(_GZIP)) == _GZIP
            most = _ALWAYS_ALLOWED + _LARGEST_RATIO * self.path.stat().st_size
            yield _Inflated(file, self._marks, most) if compressed else _Plain(file)

    def members(self) -> Iterator[Member]:
        """Yield the members, but folders.

        Raises:
            InputError: where the archive is cut off, corrupt or a trap; what came before stands.
        """
        with self.open() as content:
            try:
                yield from _members(content)
            except InputError:
                raise
            except Exception as error:  # tarfile lets ValueError, OverflowError and others through
                raise InputError(f"it is no whole tar file ({reason(error)})") from error


def _members(content: "_Content") -> Iterator[Member]:
    content.allow(_LARGEST_HEADERS)
    with tarfile.TarFile(fileobj=content, encoding="utf-8", errors="replace") as tar:
        before = -1
        while (info := tar.next()) is not None:
            if info.offset <= before or info.size < 0:
                raise InputError("its headers lead back to where they come from")
            before = info.offset
            tar.members = []  # it would keep them all
            if not info.isdir():
                refusal = ""
                if not info.isreg() or info.issparse():
                    refusal = "a member is no regular file"
                elif info.size > LARGEST_MEMBER:
                    refusal = "a member is too large for the crop of a face"
                yield Member(info.name, info.offset_data, info.size, refusal)
            content.allow(_LARGEST_HEADERS)
        # tarfile stops at anything that is no header, as if the archive ended there.
        content.seek(tar.offset)
        if content.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise InputError("it is cut off, or damaged in the middle")
        content.finish()


class _Content:
    """What tarfile reads from; no header makes it read more than was allowed."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._allowed = 0

    def allow(self, size: int) -> None:
        self._allowed = size

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self._allowed:
            raise InputError(f"a header claims {size:,} bytes")
        self._allowed -= size
        return self._read(size)

    def member(self, member: Member) -> bytes:
        """Return the content of a member; raises `InputError` if it is not all there."""
        self.allow(member.size)
        self.seek(member.offset)
        content = self.read(member.size)
        if len(content) < member.size:
            raise InputError("the archive is cut off there")
        return content

    def finish(self) -> None:
        """Read to the end, if a checksum is there."""

    def tell(self) -> int:
        raise NotImplementedError

    def seek(self, position: int) -> None:
        raise NotImplementedError

    def _read(self, size: int) -> bytes:
        raise NotImplementedError


class _Plain(_Content):
    def __init__(self, file: BinaryIO):
        super().__init__(file)
        file.seek(0)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, position: int) -> None:
        self._file.seek(position)

    def _read(self, size: int) -> bytes:
        return self._file.read(size)


class _Mark(NamedTuple):
    made: int  # bytes decompressed before it
    taken: int  # bytes of the file that went into them
    inflater: "zlib._Decompress"


class _Inflated(_Content):
    def __init__(self, file: BinaryIO, marks: list[_Mark], most: int):
        super().__init__(file)
        self._marks, self._most = marks, most
        if not marks:
            marks.append(_Mark(0, 0, zlib.decompressobj(_GZIP_WINDOW)))
        self._go_back(marks[0])

    def _go_back(self, mark: _Mark) -> None:
        self._file.seek(mark.taken)
        self._made, self._inflater = mark.made, mark.inflater.copy()
        self._waiting = b""  # read from the file, not yet decompressed
        self._ahead = memoryview(b"")  # decompressed, not yet given out
        self._broken: InputError | None = None  # raised when all that came before is given out

    def tell(self) -> int:
        return self._made - len(self._ahead)

    def seek(self, position: int) -> None:
        mark = self._marks[bisect_right(self._marks, position, key=lambda mark: mark.made) - 1]
        if position < self.tell() or self._made < mark.made:
            self._go_back(mark)
        while (left := position - self.tell()) > 0 and (self._ahead or self._inflate()):
            self._ahead = self._ahead[left:]

    def _read(self, size: int) -> bytes:
        parts = []
        while size and (self._ahead or self._inflate()):
            parts.append(self._ahead[:size])
            self._ahead = self._ahead[size:]
            size -= len(parts[-1])
        return b"".join(parts)

    def finish(self) -> None:
        self._ahead = memoryview(b"")
        while self._inflate():
            self._ahead = memoryview(b"")

    def _inflate(self) -> bool:
        """Decompress some more, or return that there is no more."""
        while not self._ahead:
            if self._broken is not None:
                raise self._broken
            if self._inflater.eof:
                self._waiting = (self._waiting + self._file.read(_READ)).lstrip(b"\0")
                if not self._waiting.startswith(_GZIP):  # gzip, too, passes over what follows
                    return False
                self._inflater = zlib.decompressobj(_GZIP_WINDOW)
            elif self._made >= self._marks[-1].made + _MARK_EVERY:
                taken = self._file.tell() - len(self._waiting)
                self._marks.append(_Mark(self._made, taken, self._inflater.copy()))
            given = self._waiting or self._file.read(_READ)
            before = self._inflater.copy()
            try:
                made = self._inflater.decompress(given, _STEP)
            except zlib.error as error:
                self._broken = InputError(f"it is corrupt ({error})")
                self._ahead = memoryview(_until_error(before, given))
                self._made += len(self._ahead)
                continue
            if not given and not made and not self._inflater.eof:
                raise InputError("it is cut off")
            self._waiting = self._inflater.unused_data if self._inflater.eof else self._inflater.unconsumed_tail
            self._made += len(made)
            self._ahead = memoryview(made)
            if self._made > self._most:
                raise InputError(f"it inflates to more than {self._most:,} bytes, which images do not")
        return True


def _until_error(inflater: "zlib._Decompress", given: bytes) -> bytes:
    """Decompress what there is before the error; zlib gives nothing of a piece with an error in it."""
    made = []
    try:
        for place in range(len(given)):
            made.append(inflater.decompress(given[place : place + 1]))
    except zlib.error:
        pass
    return b"".join(made)


@dataclass(frozen=True)
class ArchivedFrames:
    """Images in an archive, by frame number.

    Attributes:
        archive: the archive.
        name: of the clip in it, for reports.
        members: the images.
    """

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
        """Return the reader; the archive is opened when frames are wanted, since all clips of one are open at once."""
        return nullcontext(_MemberReader(self.archive, self.members))


class _MemberReader:
    def __init__(self, archive: Archive, members: Mapping[int, Member]):
        self._archive, self._members = archive, members
        self.numbers = sorted(members)

    def read(self, numbers: Iterable[int]) -> Iterator[tuple[int, Frame]]:
        found = self._fetch({number: self._members[number] for number in numbers})
        for number in sorted(found):
            encoded = found.pop(number)
            try:
                yield number, encoded if isinstance(encoded, InputError) else decode_crop(encoded)
            except InputError as error:
                yield number, InputError(f"{self._members[number].name!r}: {error}")

    def _fetch(self, members: Mapping[int, Member]) -> dict[int, bytes | InputError]:
        """Return what is encoded in members, read in the order in which they lie, which need not be their own."""
        found: dict[int, bytes | InputError] = {}
        try:
            with self._archive.open() as content:
                for number in sorted(members, key=lambda number: members[number].offset):
                    try:
                        found[number] = content.member(members[number])
                    except InputError as error:
                        found[number] = error
        except InputError as error:  # it has gone since it was listed
            found = dict.fromkeys(members, error)
        return found
