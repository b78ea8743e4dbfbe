"""The write-ahead log of a replica whose file is damaged: transactions that SQLite would not read any more.

SQLite reads a log up to the first frame whose checksum does not hold, and takes all after it for never written. After
a crash that is right: only the last transaction can be torn, for each is on the disk before the next begins. Frames of
two or more transactions behind such a frame were durable once, and are damage. Each frame's checksum continues the one
that the frame before it states, so the good ones behind a bad one can still be told from it.

https://sqlite.org/fileformat2.html#walformat
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import BinaryIO, Final, NamedTuple

PAGE_BYTES: Final = 4_096
"""SQLite's page size if nothing else is told."""

TORN_COMMITS_MAX: Final = 1
"""Transactions that a crash can leave behind a frame that was not written."""

HEADER_BYTES: Final = 100
MAGIC: Final = b"SQLite format 3\0"

_LOG_HEADER: Final = Struct(">IIIIIIII")
_FRAME: Final = Struct(">IIIIII")
_LOG_MAGIC: Final = 0x377F0682
"""Its last bit says that checksums are of big-endian words."""


class Frame(NamedTuple):
    """One page in the log. `commits`: it ends a transaction. `whole`: its checksum holds (None: not looked at)."""

    page: int
    commits: bool
    at: int
    whole: bool | None


class WriteAheadLog:
    """A log beside a database file, as it lies on the disk."""

    def __init__(self, file: BinaryIO) -> None:
        """Reads the header alone."""
        self._file = file
        header = file.read(_LOG_HEADER.size).ljust(_LOG_HEADER.size, b"\0")
        magic, _, page_bytes, _, *self._salts, one, two = _LOG_HEADER.unpack(header)
        big = magic & 1 if magic & ~1 == _LOG_MAGIC else sys.byteorder == "big"
        self._order = ">" if big else "<"
        self._sum = one, two
        self.sound = magic & ~1 == _LOG_MAGIC and self._checksum((0, 0), header[:24]) == self._sum
        self.page_bytes: int = page_bytes if self.sound else PAGE_BYTES

    def commits_beyond(self, frames: int) -> int:
        """How many transactions of the log end behind its first so many frames."""
        beyond = _LOG_HEADER.size + frames * (_FRAME.size + self.page_bytes)
        return sum(frame.commits for frame in self.frames(checked=False) if frame.at > beyond)

    def frames(self, checked: bool = True) -> Iterator[Frame]:
        """The frames of the log's present run, in order. Unchecked ones cost next to nothing."""
        size, at, before = _FRAME.size + self.page_bytes, _LOG_HEADER.size, self._sum
        salts = self._salts if self.sound else None
        strange: list[Frame] = []
        while True:
            self._file.seek(at)
            raw = self._file.read(size if checked else _FRAME.size)
            if len(raw) < (size if checked else _FRAME.size):
                return
            page, pages, salt, pepper, one, two = _FRAME.unpack_from(raw)
            salts = salts or [salt, pepper]
            if [salt, pepper] != salts:  # of an earlier run; or damaged, if one of this run comes after it
                strange.append(Frame(0, False, at + _FRAME.size, False))
            else:
                yield from strange
                strange.clear()
                whole = self._checksum(before, raw[:8] + raw[_FRAME.size :]) == (one, two) if checked else None
                yield Frame(page, pages > 0, at + _FRAME.size, whole)
            before = one, two
            at += size

    def _checksum(self, before: tuple[int, int], data: bytes) -> tuple[int, int]:
        one, two = before
        words = iter(Struct(f"{self._order}{len(data) // 4}I").unpack(data))
        for first, second in zip(words, words, strict=True):
            one = (one + first + two) & 0xFFFFFFFF
            two = (two + second + one) & 0xFFFFFFFF
        return one, two


def lost_commits(log: Path) -> int:
    """How many transactions of a log SQLite would not read; all but TORN_COMMITS_MAX were durable. Reads and sums all
    of it: a second for some 20 MB."""
    if not log.exists():
        return 0
    with log.open("rb") as file:
        found = WriteAheadLog(file)
        frames = list(found.frames())
    first = next((number for number, frame in enumerate(frames) if not (found.sound and frame.whole)), len(frames))
    return sum(frame.commits for frame in frames[first:])


def rebuild(path: Path, log: Path, to: Path, header: bytes) -> None:
    """Make a copy of a database file that SQLite reads without its log: every good page of the log is in it, and a
    sound header (`header`: of another file of the same kind) on top. What was damaged in it still is."""
    shutil.copyfile(path, to)
    with to.open("r+b") as copy:
        page_bytes = PAGE_BYTES
        if log.exists():
            with log.open("rb") as file:
                page_bytes = _apply(file, copy)
        pages = max(1, copy.seek(0, 2) // page_bytes)
        copy.seek(0)
        found = copy.read(HEADER_BYTES)
        sound = found.startswith(MAGIC) and int.from_bytes(found[16:18], "big") == page_bytes
        fixed = bytearray(found if sound else header)
        fixed[18:20] = b"\x01\x01"  # without a log
        fixed[28:32] = pages.to_bytes(4, "big")
        fixed[92:96] = fixed[24:28]  # the number of pages is good
        if not sound:
            fixed[32:40] = bytes(8)  # no page is free
            fixed[60:64] = bytes(4)  # of which schema it is, its tables tell
        copy.seek(0)
        copy.write(fixed)
        copy.truncate(pages * page_bytes)


def _apply(file: BinaryIO, copy: BinaryIO) -> int:
    """Write the good pages of finished transactions. Returns the size of a page."""
    log = WriteAheadLog(file)
    frames = list(log.frames())
    ends = [number for number, frame in enumerate(frames) if frame.commits]
    for frame in frames[: ends[-1] + 1] if ends else []:
        if frame.whole and frame.page:
            file.seek(frame.at)
            copy.seek((frame.page - 1) * log.page_bytes)
            copy.write(file.read(log.page_bytes))
    return log.page_bytes
