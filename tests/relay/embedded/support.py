"""What the tests of the embedded Postgres share."""

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]

from sealwire_relay.embedded import EmbeddedPostgres
from tests.relay.embedded import owner

GONE_S_MAX = 60


@contextlib.asynccontextmanager
async def running(folder: Path, report: Callable[[str], None] = lambda _: None) -> AsyncIterator[EmbeddedPostgres]:
    """A started Postgres, stopped at the end."""
    postgres = EmbeddedPostgres(folder, report=report)
    try:
        await postgres.start()
        yield postgres
    finally:
        await postgres.stop()


async def query(postgres: EmbeddedPostgres, *statements: str) -> object:
    """Run statements on a connection of their own; the first value of the last one."""
    connection = await asyncpg.connect(await postgres.start())
    try:
        for statement in statements[:-1]:
            await connection.execute(statement)
        return await connection.fetchval(statements[-1])
    finally:
        await connection.close()


class Owner:
    """Another process that has a Postgres of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def hears(self, word: str) -> dict[str, object]:
        """The next line that has this word; fails if the process ends without it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            words: dict[str, object] = json.loads(line)
            if word in words:
                return words
        raise AssertionError(f"the process ended without saying {word!r}")


@contextlib.contextmanager
def another_process(folder: Path) -> Iterator[Owner]:
    """Run `owner.py` on a folder; killed at the end."""
    command = [sys.executable, owner.__file__, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Owner(process)
        finally:
            process.kill()


def assert_gone(pid: int, within_s: float = GONE_S_MAX) -> None:
    """Wait, by the kernel's word, until a process that need not be our child has ended."""
    try:
        watch = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([watch], [], [], within_s)[0], f"process {pid} still runs after {within_s} s"
    finally:
        os.close(watch)


def contents(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything in a folder, modes and times included, to prove that nothing was touched."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            path.lstat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in (folder, *folder.rglob("*"))
    }
