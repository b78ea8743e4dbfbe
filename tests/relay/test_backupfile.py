"""The file of a backup: what was written is read, and what was not written is found out, wherever it is."""

import errno
import io
import json
from typing import Any

import pytest

from sealwire_relay.backupfile import (
    BLOCK_BYTES_MAX,
    MAGIC,
    BackupFileError,
    BackupReader,
    BackupWriter,
    Contents,
    Header,
    Table,
)

STREAM = Table("stream", ("vault_id", "head"), ("uuid", "bigint"))
EMPTY = Table("guard", ("tag",), ("uuid",))
SEGMENT = Table("segment", ("body",), ("bytea",))
HEADER = Header(
    "2026-01-02T03:04:05+00:00", "0.1.0", "18.1", 5, 0, "00ff" * 4, Contents(7, 1, 2, 30), (EMPTY, SEGMENT, STREAM)
)
ROWS = {"guard": (0, b""), "segment": (3, bytes(range(256)) * 10), "stream": (2, b"two")}


def written() -> bytes:
    """A small backup."""
    file = io.BytesIO()
    writer = BackupWriter(file, "it")
    writer.begin(HEADER)
    for table in HEADER.tables:
        rows, data = ROWS[table.name]
        writer.table(table.name)
        writer.data(data)
        writer.end_table(table.name, rows)
    digest = writer.finish()
    assert file.getvalue().endswith(digest)
    assert writer.bytes == len(file.getvalue())
    return file.getvalue()


def read(data: bytes) -> tuple[Header, dict[str, tuple[int, bytes]]]:
    """All that a file says."""
    reader = BackupReader(io.BytesIO(data), "it")
    parts = {table.name: b"".join(reader.table(table)) for table in reader.header.tables}
    assert reader.finish() == data[-32:]
    assert reader.bytes == len(data)
    return reader.header, {name: (reader.rows[name], part) for name, part in parts.items()}


def test_what_was_written_is_read() -> None:
    assert read(written()) == (HEADER, ROWS)


def test_data_of_any_size_is_cut_into_blocks_that_can_be_held() -> None:
    file = io.BytesIO()
    writer = BackupWriter(file, "it")
    writer.begin(HEADER._replace(tables=(SEGMENT,)))
    writer.table("segment")
    data = bytes(2 * BLOCK_BYTES_MAX + 5)
    writer.data(data)
    writer.end_table("segment", 1)
    writer.finish()
    reader = BackupReader(io.BytesIO(file.getvalue()), "it")
    assert [len(part) for part in reader.table(SEGMENT)] == [BLOCK_BYTES_MAX, BLOCK_BYTES_MAX, 5]


def test_every_cut_is_found() -> None:
    whole = written()
    for size in range(len(whole)):
        with pytest.raises(BackupFileError, match=r"ends in the middle"):
            read(whole[:size])


def test_every_flipped_bit_is_found() -> None:
    whole = written()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(BackupFileError, match=r"damaged|ends in the middle|not a backup|newer Sealwire"):
            read(bytes(damaged))


def test_what_follows_the_end_is_found() -> None:
    with pytest.raises(BackupFileError, match="damaged"):
        read(written() + b"\0")


def test_another_file_is_no_backup() -> None:
    with pytest.raises(BackupFileError, match=r"it is not a backup.*name the file"):
        read(b"-- PostgreSQL database dump\n\n" + bytes(100))


@pytest.mark.parametrize(
    "change",
    [
        {"contents": None},
        {"tables": [{"name": "a", "columns": ["x"], "types": []}]},
        {"tables": [{"name": "a", "columns": [], "types": []}] * 2},
        {"migrated_pre": "many"},
    ],
)
def test_a_header_that_says_nonsense_is_damage(change: dict[str, object]) -> None:
    with pytest.raises(BackupFileError, match="damaged"):
        read(_with_header(change))


def test_a_later_form_is_refused_in_words() -> None:
    with pytest.raises(BackupFileError, match=r"newer Sealwire \(9.0.0\).*use that version"):
        read(_with_header({"format": 2, "sealwire": "9.0.0"}))


def _with_header(change: dict[str, object]) -> bytes:
    whole = written()
    at = len(MAGIC) + 5
    size = int.from_bytes(whole[at - 4 : at], "big")
    header = json.dumps({**json.loads(whole[at : at + size]), **change}).encode()
    return whole[: at - 4] + len(header).to_bytes(4, "big") + header


class FullDisk(io.RawIOBase):
    """A file on a disk with so much room."""

    def __init__(self, room: int) -> None:
        self._room = room

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self._room -= size
        if self._room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return size


@pytest.mark.parametrize("room", [0, 100, 2_000])
def test_a_full_disk_is_told(room: int) -> None:
    writer = BackupWriter(io.BufferedWriter(FullDisk(room), 64), "the file")
    with pytest.raises(BackupFileError, match=r"cannot be written to the file \(No space left on device\): make room"):
        _write_all(writer)


def _write_all(writer: BackupWriter) -> None:
    writer.begin(HEADER)
    for table in HEADER.tables:
        writer.table(table.name)
        writer.data(ROWS[table.name][1])
        writer.end_table(table.name, 1)
    writer.finish()
