"""Files that a command writes: there as a whole under their name, or not at all."""

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sealwire_client.cli.failures import Failure


def check(path: Path, overwrite: bool) -> None:
    """Whether a file can be written there, asked before anything is done for it. Raises Failure and OSError."""
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
    if not path.exists():
        return
    if not overwrite:
        raise _there(path)
    if not stat.S_ISREG(path.stat().st_mode):
        raise Failure(f"{path} is no file that could be replaced: nothing was done; name another one", "exists")


@contextmanager
def whole(path: Path, overwrite: bool) -> Iterator[BinaryIO]:
    """A file to write for the length of a `with` block, readable by its owner alone.

    It gets its name when the block ends, and is on the disk then; if the block fails, also by cancellation, or the
    process dies, what was there under the name stays as it was. Raises Failure as `check` does, and OSError.
    """
    check(path, overwrite)
    path = Path(os.path.realpath(path))
    number, name = tempfile.mkstemp(".new", ".sealwire-", path.parent)
    try:
        with os.fdopen(number, "wb") as out:
            yield out
            out.flush()
            os.fsync(number)
        if overwrite:
            os.replace(name, path)
        else:
            os.link(name, path)
        _settle(path.parent)
    except FileExistsError:
        raise _there(path) from None
    finally:
        Path(name).unlink(missing_ok=True)


def _settle(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _there(path: Path) -> Failure:
    return Failure(f"{path} is there already, and was left as it is: name another file, or say --overwrite", "exists")
