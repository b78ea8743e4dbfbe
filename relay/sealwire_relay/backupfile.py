"""The file of a backup: what lies where, written and read as a stream (decision 0015). No database is needed here.

    magic      16 bytes, "sealwire backup" and a zero
    blocks     each: kind (1 byte), length of its content (4 bytes, big-endian, at most BLOCK_BYTES_MAX), content
        H      the header, once, first: a JSON object in UTF-8, see `Header`
        T      a table begins: its number in the header's list (2 bytes, big-endian); they come in that order, all
        D      the next part of the table's rows, in Postgres' binary COPY format of the columns that the header names
        E      the table ends: how many rows it has (8 bytes, big-endian)
        Z      the end, once, last: BLAKE2b of everything before this content (32 bytes, person "sealwire.backup")

The digest finds damage. It is no proof of who made the file: whoever can write it can compute it.
"""

import hashlib
import json
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, Final, NamedTuple

MAGIC: Final = b"sealwire backup\0"
FORMAT: Final = 1
DIGEST_BYTES: Final = 32

BLOCK_BYTES_MAX: Final = 1 << 20
"""Content of one block, in bytes: bounds the memory of whoever reads a file, whatever it says of its lengths."""

_BLOCK: Final = struct.Struct(">cI")
_NUMBER: Final = struct.Struct(">H")
_ROWS: Final = struct.Struct(">Q")
_HEADER, _TABLE, _DATA, _TABLE_END, _END = b"H", b"T", b"D", b"E", b"Z"


class BackupFileError(Exception):
    """A backup's file cannot be written, or is not a whole one. The message is a sentence with the file's name."""


class Contents(NamedTuple):
    """What a database holds, in a few numbers: the current term's number, and the sum of the heads of all streams."""

    term: int
    vaults: int
    streams: int
    heads: int


class Table(NamedTuple):
    """A table with the names and SQL types of its columns, in the order in which its rows have them."""

    name: str
    columns: tuple[str, ...]
    types: tuple[str, ...]


class Header(NamedTuple):
    """What a backup says of itself. `made` is the time of its snapshot (ISO 8601, UTC); `sealwire` and `postgres` are
    the versions that made it; `migrated_pre` and `migrated_post` its schema's; `term_id` is hexadecimal."""

    made: str
    sealwire: str
    postgres: str
    migrated_pre: int
    migrated_post: int
    term_id: str
    contents: Contents
    tables: tuple[Table, ...]


class BackupWriter:
    """Writes one backup to `file`, which may be a pipe; `name` is what messages call it.

    In this order: `begin`, then `table`, `data` as often as there is some, `end_table` for each table of the header,
    then `finish`. Each raises BackupFileError if the file cannot be written.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self._digest = _new_digest()
        self._tables: dict[str, int] = {}
        self.bytes = 0
        self.rows: dict[str, int] = {}

    def begin(self, header: Header) -> None:
        """Write the header."""
        self._write(MAGIC)
        self._block(_HEADER, _encode_header(header))
        self._tables = {table.name: number for number, table in enumerate(header.tables)}

    def table(self, name: str) -> None:
        """Begin a table."""
        self._block(_TABLE, _NUMBER.pack(self._tables[name]))

    def data(self, data: bytes) -> None:
        """The next part of its rows, of any size."""
        view = memoryview(data)
        for at in range(0, len(view), BLOCK_BYTES_MAX):
            self._block(_DATA, view[at : at + BLOCK_BYTES_MAX])

    def end_table(self, name: str, rows: int) -> None:
        """The table is complete."""
        self._block(_TABLE_END, _ROWS.pack(rows))
        self.rows[name] = rows

    def finish(self) -> bytes:
        """End the file and hand it to the system (durable it is after fsync only). Returns the digest."""
        self._write(_BLOCK.pack(_END, DIGEST_BYTES))
        digest = self._digest.digest()
        self._write(digest)
        try:
            self._file.flush()
        except OSError as error:
            raise not_written(self._name, error) from error
        return digest

    def _block(self, kind: bytes, content: bytes | memoryview) -> None:
        self._write(_BLOCK.pack(kind, len(content)))
        self._write(content)

    def _write(self, data: bytes | memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise not_written(self._name, error) from error
        self._digest.update(data)
        self.bytes += len(data)


class BackupReader:
    """Reads one backup from `file`; `name` is what messages call it.

    `header` is there at once. Then `table` is exhausted for each table of the header, in order, and `finish` called:
    nothing that was read may be relied on before that returned. Each raises BackupFileError.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self._digest = _new_digest()
        self.bytes = 0
        self.rows: dict[str, int] = {}
        if self._read(len(MAGIC)) != MAGIC:
            raise BackupFileError(
                f"{name} is not a backup of a Sealwire relay: name the file that `backup` has written."
            )
        self.header = self._decode_header(self._expect(_HEADER))

    def table(self, table: Table) -> Iterator[bytes]:
        """The parts of a table's rows; once they are exhausted, `rows` has their number."""
        number = self.header.tables.index(table)
        if self._expect(_TABLE) != _NUMBER.pack(number):
            raise self._damaged()
        while True:
            kind, content = self._block()
            if kind != _DATA:
                break
            yield content
        if kind != _TABLE_END or len(content) != _ROWS.size:
            raise self._damaged()
        (self.rows[table.name],) = _ROWS.unpack(content)

    def finish(self) -> bytes:
        """Check the digest, and that nothing follows; returns it."""
        head = self._read(_BLOCK.size)
        computed = self._digest.digest()
        if head != _BLOCK.pack(_END, DIGEST_BYTES) or self._read(DIGEST_BYTES) != computed or self._some(1):
            raise self._damaged()
        return computed

    def _expect(self, wanted: bytes) -> bytes:
        kind, content = self._block()
        if kind != wanted:
            raise self._damaged()
        return content

    def _block(self) -> tuple[bytes, bytes]:
        kind, length = _BLOCK.unpack(self._read(_BLOCK.size))
        if length > BLOCK_BYTES_MAX:
            raise self._damaged()
        return kind, self._read(length)

    def _read(self, size: int) -> bytes:
        data = self._some(size)
        if len(data) < size:
            raise BackupFileError(
                f"{self._name} ends in the middle: it was not written or copied to its end; use another copy."
            )
        self._digest.update(data)
        return data

    def _some(self, size: int) -> bytes:
        try:
            data = self._file.read(size)
        except OSError as error:
            raise BackupFileError(
                f"{self._name} cannot be read ({error.strerror or error}): mend that, or use another copy."
            ) from error
        self.bytes += len(data)
        return data

    def _decode_header(self, content: bytes) -> Header:
        try:
            told = json.loads(content)
            if told["format"] > FORMAT:
                raise BackupFileError(
                    f"{self._name} was made by a newer Sealwire ({told['sealwire']}), in a form unknown to this one: "
                    "use that version, or a later one."
                )
            return _header_of(told)
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged() from error

    def _damaged(self) -> BackupFileError:
        return BackupFileError(f"{self._name} is damaged: what it holds is not what was written; use another copy.")


def read_through(reader: BackupReader) -> Iterator[None]:
    """Read all tables and drop their rows, giving control back after each block. Raises BackupFileError."""
    for table in reader.header.tables:
        for _ in reader.table(table):
            yield


def not_written(name: str, error: OSError) -> BackupFileError:
    """What to raise when a backup's file, or its name, cannot be written."""
    return BackupFileError(
        f"The backup cannot be written to {name} ({error.strerror or error}): make room or mend that, or choose "
        "another place."
    )


def _new_digest() -> "hashlib.blake2b":
    return hashlib.blake2b(digest_size=DIGEST_BYTES, person=b"sealwire.backup")


def _encode_header(header: Header) -> bytes:
    told = {"format": FORMAT, **header._asdict(), "contents": header.contents._asdict()}
    return json.dumps({**told, "tables": [table._asdict() for table in header.tables]}).encode()


def _header_of(told: dict[str, Any]) -> Header:
    """Raises ValueError, KeyError or TypeError for what is no header."""
    contents = Contents(**{name: int(told["contents"][name]) for name in Contents._fields})
    tables = tuple(Table(str(t["name"]), _texts(t["columns"]), _texts(t["types"])) for t in told["tables"])
    if any(len(table.columns) != len(table.types) for table in tables) or len({t.name for t in tables}) < len(tables):
        raise ValueError
    made, sealwire, postgres, term_id = (str(told[name]) for name in ("made", "sealwire", "postgres", "term_id"))
    migrated = int(told["migrated_pre"]), int(told["migrated_post"])
    return Header(made, sealwire, postgres, *migrated, term_id, contents, tables)


def _texts(told: list[Any]) -> tuple[str, ...]:
    return tuple(map(str, told))
