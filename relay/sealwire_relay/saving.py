"""The work of `sealwire-relay backup` and `restore`: which database, which file, and what is told of it."""

import asyncio
import contextlib
import errno
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, TypeVar

from sealwire_relay.backupfile import (
    BackupFileError,
    BackupReader,
    BackupWriter,
    Header,
    not_written,
    read_through,
)
from sealwire_relay.borrowed import Relay, database
from sealwire_relay.ending import ExitCode, RelayError, asked_to_end, before, ending, told
from sealwire_relay.settings import Settings
from sealwire_relay.store.backup import Restored, back_up, restore

T = TypeVar("T")

STDOUT: Final = "-"
"""The name that stands for standard output."""

_NO_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What file systems say that know no second name for a file."""

_log = logging.getLogger("sealwire.backup")


class Backup(NamedTuple):
    """A whole backup: what it says of itself, its size, its rows by table, and its digest in hexadecimal."""

    header: Header
    bytes: int
    rows: dict[str, int]
    digest: str


async def save(settings: Settings, file: str, tell: Callable[[Backup], None]) -> ExitCode:
    """Back the database of the settings up to a new file, or to stdout, and tell of it. Raises RelayError.

    A file is there only once it is whole: written, durable, and read back. What is left of a process that was killed
    is a file of another name beside it.
    """

    async def work() -> Backup:
        if file == STDOUT:
            return await _to_stdout(settings)
        return await _to_file(settings, Path(file))

    return await _finished(work(), tell)


async def put_back(settings: Settings, file: str, replace: bool, tell: Callable[[Restored], None]) -> ExitCode:
    """Restore the database of the settings from a file, and tell of it. Raises RelayError; then nothing was changed."""

    async def work() -> Restored:
        with _opened(Path(file)) as opened:
            await _read_through(opened, file)
            opened.seek(0)
            async with database(settings, Relay.REFUSED, make=True) as dsn:
                return await restore(dsn, BackupReader(opened, file), replace)

    return await _finished(work(), tell)


async def check(file: str, tell: Callable[[Backup], None]) -> ExitCode:
    """Read a backup's file to its end, and tell of it. Raises RelayError if it is not whole."""

    async def work() -> Backup:
        with _opened(Path(file)) as opened:
            return await _read_through(opened, file)

    return await _finished(work(), tell)


async def _finished(work: Coroutine[Any, Any, T], tell: Callable[[T], None]) -> ExitCode:
    with asked_to_end() as asked, told():
        try:
            done = await before(asked, work)
        except BackupFileError as error:
            raise RelayError(str(error)) from error
        if done is None:
            return ending(asked.result(), before_ready=True)
        tell(done)
        return ExitCode.DONE


async def _to_stdout(settings: Settings) -> Backup:
    if sys.stdout.isatty():
        raise RelayError("A backup is not text, and stdout is a terminal: name a file, or send it to another program.")
    with _writing(os.dup(sys.stdout.fileno())) as file:
        return await _written(settings, file, "stdout")


async def _to_file(settings: Settings, path: Path) -> Backup:
    _refuse_existing(path)
    with _beside(path) as (opened, temporary):
        backup = await _written(settings, opened, str(path))
        _sync(opened, path)
        with _opened(temporary) as written:
            again = await _read_through(written, str(path))
        if again != backup:
            raise BackupFileError(f"What is read back from {path} is not what was written: use another disk.")
        _publish(temporary, path)
    return backup


async def _written(settings: Settings, file: BinaryIO, name: str) -> Backup:
    writer = BackupWriter(file, name)
    async with database(settings, Relay.WELCOME) as dsn:
        header, digest = await back_up(dsn, writer)
    return Backup(header, writer.bytes, writer.rows, digest.hex())


async def _read_through(file: BinaryIO, name: str) -> Backup:
    """Raises BackupFileError unless the file is whole. Can be cancelled between any two blocks."""
    reader = BackupReader(file, name)
    for _ in read_through(reader):
        await asyncio.sleep(0)
    digest = reader.finish()
    return Backup(reader.header, reader.bytes, reader.rows, digest.hex())


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A backup's file, for reading it more than once."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise BackupFileError(f"{path} cannot be read ({error.strerror or error}): name a backup's file.") from error
    with file:
        if not file.seekable():
            raise BackupFileError(f"{path} can be read only once: keep the backup in a file, and name that.")
        yield file


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file beside another, for this user only, which is gone afterwards."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".unfinished", dir=path.parent)
    except OSError as error:
        raise not_written(str(path), error) from error
    temporary = Path(name)
    try:
        with _writing(descriptor) as file:
            yield file, temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(descriptor: int) -> Iterator[BinaryIO]:
    """A file from its descriptor. What could not be written is told by the writer, and not again by closing."""
    file = os.fdopen(descriptor, "wb")
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):
            file.close()


def _sync(file: BinaryIO, path: Path) -> None:
    """Make it durable, and out of the cache, so that it is read back from the disk."""
    try:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        raise not_written(str(path), error) from error


def _publish(temporary: Path, path: Path) -> None:
    """Give the file its name, durably, without taking that name away from another file."""
    try:
        try:
            os.link(temporary, path)
        except FileExistsError:
            _refuse_existing(path)
            raise
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _refuse_existing(path)
            temporary.rename(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise not_written(str(path), error) from error


def _refuse_existing(path: Path) -> None:
    if path.is_symlink() or path.exists():
        raise RelayError(f"{path} is there already, and no backup is written over another: choose another name.")
