"""Searching a folder's bytes for what must not be there."""

import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

CHUNK_BYTES: Final = 4 << 20
"""Read at once: bounds the memory, whatever the files' size."""

NAME_CHARS_MIN: Final = 12
"""A shorter name may occur by chance, or in the texts that Postgres brings."""

HITS_SHOWN_MAX: Final = 5

_RUN: Final = re.compile(rb"[A-Z0-9 -]{%d,}" % NAME_CHARS_MIN)


@dataclass(slots=True)
class Found:
    """What a search has seen and found."""

    files: int = 0
    bytes: int = 0
    hits: int = 0
    places: dict[str, Counter[str]] = field(default_factory=dict)
    """For what was found: in which files, and how often there."""

    def add(self, what: str, file: str) -> None:
        """Count a hit."""
        self.hits += 1
        self.places.setdefault(what, Counter())[file] += 1

    def told(self) -> str:
        """The first finds, for a message."""
        shown = list(self.places.items())[:HITS_SHOWN_MAX]
        return "; ".join(f"{what} in {', '.join(sorted(files)[:3])}" for what, files in shown)


class Needles:
    """What is looked for: any bytes, each with what it is; and names in capitals, of which there may be very many."""

    def __init__(self, needles: Mapping[str, bytes], names: Iterable[str] = ()) -> None:
        self._needles = dict(needles)
        self._by_beginning: dict[bytes, list[bytes]] = {}
        for name in {name.encode() for name in names if len(name) >= NAME_CHARS_MIN}:
            if not _RUN.fullmatch(name):
                raise ValueError(f"{name!r} is no name in capitals")
            self._by_beginning.setdefault(name[:NAME_CHARS_MIN], []).append(name)
        self.count = len(self._needles) + sum(map(len, self._by_beginning.values()))
        lengths = [len(needle) for needle in self._needles.values()]
        lengths += [len(name) for names in self._by_beginning.values() for name in names]
        self.longest = max(lengths, default=1)

    def within(self, data: bytes, after: int) -> Iterator[str]:
        """What occurs in `data` and ends after a place."""
        for what, needle in self._needles.items():
            at = data.find(needle)
            while at >= 0:
                if at + len(needle) > after:
                    yield what
                at = data.find(needle, at + 1)
        if self._by_beginning:
            for run in _RUN.finditer(data):
                yield from self._names_in(run[0], after - run.start())

    def _names_in(self, run: bytes, after: int) -> Iterator[str]:
        for at in range(len(run) - NAME_CHARS_MIN + 1):
            for name in self._by_beginning.get(run[at : at + NAME_CHARS_MIN], ()):
                if at + len(name) > after and run.startswith(name, at):
                    yield name.decode()


def search(folder: Path, needles: Needles, *, skip: frozenset[str] = frozenset(), chunk: int = CHUNK_BYTES) -> Found:
    """Look for the needles in every regular file below a folder, but those in its folders named in `skip`. Blocks.

    What lies across two chunks is found, and once. A file that goes away meanwhile is passed over.
    """
    found = Found()
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if relative.parts[0] in skip:
            continue
        try:
            if stat.S_ISREG(path.lstat().st_mode):
                _search_file(path, str(relative), needles, chunk, found)
        except FileNotFoundError:
            continue
    return found


def _search_file(path: Path, name: str, needles: Needles, chunk: int, found: Found) -> None:
    overlap = needles.longest - 1
    tail = b""
    with path.open("rb", buffering=0) as file:
        found.files += 1
        while read := file.read(chunk):
            found.bytes += len(read)
            data = tail + read
            for what in needles.within(data, len(tail)):
                found.add(what, name)
            tail = data[-overlap:] if overlap else b""
