"""`sealwire-relay compact`: files as small as they can be, while nobody is served, and nothing lost."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealwire_relay import compacting
from sealwire_relay.ending import ExitCode, RelayError
from sealwire_relay.store.migrate import Phase, migrate
from sealwire_relay.store.postgres import PostgresStore
from sealwire_relay.store.repack import repacking
from sealwire_relay.store.segments import StoredSegment
from tests.relay.logs import make_log, record
from tests.relay.test_beside import ANNA, ENTRIES, LISTED, VERSIONS, push_versions
from tests.support.aio import asyncio_test
from tests.support.device import Device
from tests.support.postgres import Server, binaries_of, server
from tests.support.program import Program, failed, relay

MIB = 1 << 20


@pytest.mark.embedded
@asyncio_test
async def test_a_folder_is_compacted_once_its_relay_has_ended(open_folder: Path) -> None:
    folder = open_folder / "data"
    with relay(folder, "--clean-seconds", "0") as program:
        told = program.ready()
        async with await Device.open(int(told["data"].rpartition(":")[2]), ANNA) as anna:
            vault = await push_versions(anna)
        code, said = failed("compact", "--folder", str(folder))
        assert (code, f"process id {told['pid']}" in said) == (3, True)
        url = f"postgresql://sealwire@/sealwire?host={folder}/socket"
        code, said = failed("compact", SEALWIRE_DATABASE_URL=url)
        assert (code, "A relay is connected to this database" in said) == (3, True)
        assert program.end(signal.SIGTERM) == 0
    code, output, errors = Program("compact", "--folder", str(folder), "--json").finished()
    assert code == 0, errors
    done = json.loads(output)
    assert (done["records"], done["unfinished"]) == (ENTRIES * (VERSIONS - 1), 0)
    assert 0 < done["bytes_left"] <= done["bytes"]
    assert "that are free are needed meanwhile" in errors
    again = Program("compact", "--folder", str(folder)).finished()
    assert again[1] == (
        f"Compacted: {done['bytes_left']:,} bytes before, {done['bytes_left']:,} now; 0 superseded records left out.\n"
    )
    with relay(folder, "--clean-seconds", "0") as program:
        async with await Device.open(int(program.ready()["data"].rpartition(":")[2]), ANNA) as anna:
            await anna.subscribe(vault, LISTED)
            await anna.has(LISTED, ENTRIES)


@pytest.mark.embedded
def test_a_folder_without_a_database_is_refused_and_none_is_made(open_folder: Path) -> None:
    code, said = failed("compact", "--folder", str(open_folder / "data"))
    assert (code, "There is no database in" in said) == (1, True)
    assert not (open_folder / "data").exists()


@pytest.fixture
def postgres() -> Iterator[Server]:
    with server(binaries_of("embedded")) as made:
        yield made


@pytest.mark.embedded
@asyncio_test
async def test_free_room_is_given_back_and_what_is_needed_meanwhile_is_told(postgres: Server) -> None:
    await migrate(postgres.dsn(), lambda line: None, Phase.PRE)
    store = PostgresStore(postgres.dsn())
    await store.open()
    log = await make_log(store)
    for first in range(0, 20_000, 1_000):
        await log.append([record(entry, 1) for entry in range(first, first + 1_000)])
    term = await store.current_term()
    whole = await log.segments()
    for segment in whole:
        kept = StoredSegment(segment.prev, segment.last, b"")
        assert await store.swap(log.vault.id, log.vault.stream, (segment,), kept, segment.last, term)
    await store.close()
    async with repacking(postgres.dsn()) as tables:
        size, need = await tables.size(), await tables.need()
        written = {table.name: table async for table in tables.each()}
        assert size > need / 2 > MIB
        assert written["segment"].bytes > MIB > 10 * written["segment"].bytes_left
        assert await tables.size() < size / 4


def test_too_little_room_is_told_before_anything_is_written_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100 * MIB))
    compacting._check_room(100 * MIB - compacting.SPARE_BYTES, tmp_path)
    compacting._check_room(1_000 * MIB, None)
    with pytest.raises(RelayError, match="104,857,600 are free") as raised:
        compacting._check_room(100 * MIB - compacting.SPARE_BYTES + 1, tmp_path)
    assert raised.value.code == ExitCode.DATABASE
