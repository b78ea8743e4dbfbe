"""Folders that are refused, untouched."""

import os
from pathlib import Path

import pytest

from sealwire_relay.embedded import DataFolderError, EmbeddedPostgres
from tests.relay.embedded.support import contents
from tests.support.aio import asyncio_test

pytestmark = pytest.mark.embedded


async def refuses(folder: Path, words: str) -> None:
    before = contents(folder)
    with pytest.raises(DataFolderError, match=words) as caught:
        await EmbeddedPostgres(folder).start()
    assert contents(folder) == before
    assert str(caught.value).count("\n") == 0


@asyncio_test
async def test_a_folder_with_something_else(open_folder: Path) -> None:
    (open_folder / "thesis.txt").write_text("years of work")
    await refuses(open_folder, "holds something else")


@asyncio_test
async def test_another_layout_version(data_folder: Path) -> None:
    (data_folder / "layout").write_text("sealwire-relay data folder\nlayout 2\npostgres 18\n")
    await refuses(data_folder, "layout version 2 and this relay knows version 1")


@asyncio_test
async def test_a_layout_that_is_not_ours(data_folder: Path) -> None:
    (data_folder / "layout").write_text("qwerty")
    await refuses(data_folder, "not a relay's")


@asyncio_test
async def test_another_postgres(data_folder: Path) -> None:
    (data_folder / "postgres" / "PG_VERSION").write_text("17\n")
    (data_folder / "layout").write_text("sealwire-relay data folder\nlayout 1\npostgres 17\n")
    before = contents(data_folder / "postgres")
    with pytest.raises(DataFolderError, match="made by Postgres 17 and this relay brings Postgres 18"):
        await EmbeddedPostgres(data_folder).start()
    assert contents(data_folder / "postgres") == before


@asyncio_test
async def test_a_version_file_that_was_changed(data_folder: Path) -> None:
    (data_folder / "postgres" / "PG_VERSION").write_text("17\n")
    await refuses(data_folder, "PG_VERSION` says 17")


@asyncio_test
async def test_database_files_that_have_gone_are_not_replaced_by_empty_ones(data_folder: Path) -> None:
    (data_folder / "postgres").rename(data_folder.parent / "elsewhere")
    await refuses(data_folder, "lost its database files")


@asyncio_test
async def test_a_file_in_place_of_a_folder(open_folder: Path) -> None:
    (open_folder / "data").write_text("")
    await refuses(open_folder / "data", "is a file")


@asyncio_test
async def test_a_folder_that_cannot_be_made(open_folder: Path) -> None:
    (open_folder / "file").write_text("")
    with pytest.raises(DataFolderError, match="cannot be used"):
        await EmbeddedPostgres(open_folder / "file" / "data").start()


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder to another user needs root")
@asyncio_test
async def test_a_folder_of_another_user(data_folder: Path) -> None:
    os.chown(data_folder, 1, 1)
    await refuses(data_folder, "belongs to user daemon while the relay runs as root")


@pytest.mark.skipif(os.geteuid() != 0, reason="giving database files to root needs root")
@asyncio_test
async def test_database_files_of_root(data_folder: Path) -> None:
    os.chown(data_folder / "postgres", 0, 0)
    before = contents(data_folder / "postgres")
    with pytest.raises(DataFolderError, match="belong to root"):
        await EmbeddedPostgres(data_folder).start()
    assert contents(data_folder / "postgres") == before
