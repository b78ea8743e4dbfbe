"""What can be wrong with a replica. Every message says what happened, what it means and what to do next."""

import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Final


class ReplicaError(Exception):
    """Base of everything that a replica raises on purpose."""


class NotAReplicaError(ReplicaError):
    """The file is not SQLite, or is some other application's. It was not touched."""


class ReplicaTooNewError(ReplicaError):
    """The file was written by a newer Sealwire."""


class ReplicaInUseError(ReplicaError):
    """Another process has the replica open."""

    def __init__(self, message: str, pid: int | None) -> None:
        super().__init__(message)
        self.pid = pid


class ReplicaCorruptError(ReplicaError):
    """The file is damaged. Nothing was deleted. A device that is opened next makes a new one of what can be saved."""


class ReplicaFullError(ReplicaError):
    """The disk is full. The transaction was rolled back, or the replica not opened; it can go on once there is room."""


class ReplicaUnreadableError(ReplicaError):
    """The operating system refused to read, write or lock the file."""


class ReplicaClosedError(ReplicaError):
    """The replica was closed; nothing was done."""


class ColumnsChangedError(ReplicaError):
    """A collection was opened with a field that its number does not stand for: of another type, or of another name
    without saying the number. Nothing was changed."""


class NoSearchError(ReplicaError):
    """A collection is searched, or was on this device, and the SQLite of this Python cannot do it."""

    def __init__(self, collection: str) -> None:
        super().__init__(
            f"Collection {collection} has fields that are searched, and the SQLite of this Python was built without"
            " FTS5, so it was not opened: use a Python whose SQLite has it, as those of python.org do."
        )


class NeedsNewerAppError(ReplicaError):
    """A value cannot be read by this app, because a newer one wrote it. It is kept, and neither read nor replaced.

    Attributes: key, collection (its name).
    """

    def __init__(self, key: str, collection: str) -> None:
        super().__init__(
            f"The value of {key!a} in {collection} was written by a newer app, and this one cannot read it: it is kept"
            " as it is; update this app to see or change it."
        )
        self.key, self.collection = key, collection


class GapError(ReplicaError):
    """A delivery begins after the cursor: applying it would skip records. Subscribe again at the cursor."""


class ReplicaMisuse(ReplicaError):
    """The caller did something that the present state does not allow. A bug on this side."""


class UnsentError(Exception):
    """A vault is to go from this device, and so many writes of it are nowhere else: nothing was deleted."""

    def __init__(self, count: int) -> None:
        writes, them = ("write", "it is") if count == 1 else ("writes", "they are")
        super().__init__(
            f"{count:,} {writes} of the vault would be lost with it, for {them} on this device alone: sync first, look"
            " at what is stuck, or say that what is unsent is to be discarded"
        )
        self.count = count


class VaultGoneError(Exception):
    """The vault is not on this device any more: it was left, or forgotten."""

    def __init__(self) -> None:
        super().__init__("the vault is not on this device any more: nothing was done; join it again by an invite")


class QueryError(ReplicaError):
    """An app's own SQL was refused: wrong, or not reading only."""


DAMAGE_NAME: Final = "replica.damaged"
"""The sign beside a replica that was found to be damaged."""

_FULL: Final = 13
_INDEX_TOO_SHORT: Final = 4_874
"""An extended code, SQLITE_IOERR_SHMSIZE: the index of the log could not grow, which nothing but a full disk does."""
_CORRUPT: Final = 11
_NOT_A_DATABASE: Final = 26
READ_ONLY: Final = 8
_OF_THE_SYSTEM: Final = {
    3: "permission",
    5: "a lock",
    6: "a lock",
    READ_ONLY: "permission",
    10: "its disk",
    14: "its folder",
}
"""SQLite's primary result codes, https://sqlite.org/rescode.html."""


def code_of(error: Exception) -> int:
    """SQLite's primary result code of an error; 0 if it did not come from SQLite."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


OPENING: Final = "the replica could not be opened, and nothing of it is lost"
READING: Final = "this could not be read, and nothing is lost"
CHANGING: Final = "what was to be written now was not saved, everything before it was"
"""What a full disk means for who met it. CHANGING is told of an edit as well as of what sending and fetching note."""


def is_full(error: BaseException) -> bool:
    """True if an error of SQLite says that the disk has no room left."""
    if not isinstance(error, sqlite3.Error):
        return False
    return code_of(error) == _FULL or getattr(error, "sqlite_errorcode", None) == _INDEX_TOO_SHORT


def full(path: Path, meaning: str) -> ReplicaFullError:
    """The error that says that the disk is full, and what that means."""
    return ReplicaFullError(f"The disk that holds {path} is full: {meaning}; make room and try again.")


def explained(error: sqlite3.Error, path: Path, meaning: str = CHANGING) -> ReplicaError | None:
    """The replica error that an error of SQLite means, or None if it is a bug or an app's wrong SQL. `meaning`: what it
    does if the disk is full."""
    code = code_of(error)
    if is_full(error):
        return full(path, meaning)
    if code in (_CORRUPT, _NOT_A_DATABASE):
        return corrupt(path, str(error))
    if code in _OF_THE_SYSTEM:
        return ReplicaUnreadableError(
            f"{path} could not be used because of {_OF_THE_SYSTEM[code]} ({error}): nothing was changed; see to that "
            "and try again."
        )
    return None


def corrupt(path: Path, found: str) -> ReplicaCorruptError:
    """The error that says that a replica is damaged, and what to do. Leaves a sign beside the file, so that whoever
    opens it next looks at the whole of it."""
    with suppress(OSError):
        path.with_name(DAMAGE_NAME).write_text(f"{found}\n")
    return ReplicaCorruptError(
        f"The replica {path} is damaged ({found}); nothing was deleted: open the device again, and it makes a new one"
        " of what can be saved, keeps the damaged files, and fetches the rest from the relay."
    )


def damage_suspected(path: Path) -> bool:
    """True if the replica was found to be damaged, and not looked at as a whole since."""
    return path.with_name(DAMAGE_NAME).exists()


def forget_damage(path: Path) -> None:
    """The replica has been looked at, or replaced."""
    path.with_name(DAMAGE_NAME).unlink(missing_ok=True)
