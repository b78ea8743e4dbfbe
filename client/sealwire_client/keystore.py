"""The file that makes a device the same device tomorrow: its seed, mode 0600, in a folder of mode 0700.

JSON, for people who must find out what is in it. Without a passphrase it holds the seed in clear; with one, the
seed sealed under a key that Argon2id makes of the passphrase. What Argon2id costs is written in the file, and is
never believed below the floor (a changed file could make guessing cheap) or above the ceiling (or hang us).

Creating is durable and atomic: when `create` returns, the file is on disk, whole; a file that is there is never
replaced, also when two processes create it at once.

A device whose folder was copied or restored takes new keys (`renew`). Its earlier ones stay in the file, beside the
present ones, until no vault needs them any more (`forget`). Both are durable and atomic as well.
"""

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

from sealwire_client import cipher
from sealwire_client.cipher import (
    INTERACTIVE,
    MODERATE,
    PASSPHRASE_SALT_BYTES,
    SENSITIVE,
    CipherError,
    Effort,
    Random,
    Secret,
)
from sealwire_client.identity import SEED_BYTES, DeviceIdentity
from sealwire_protocol.ids import DeviceKey

FORMAT: Final = 1
FORMAT_WITH_EARLIER: Final = 2
"""With earlier keys beside the present ones: a program that did not know them would leave its vaults' old keys out."""

FILE_BYTES_MAX: Final = 65_536
"""A keystore has a few hundred bytes for each of its keys, of which `sealwire_protocol` bounds the number
(REPLACEMENTS_MAX); a larger file is something else."""

EFFORT_FLOOR: Final = INTERACTIVE
EFFORT_CEILING: Final = SENSITIVE

_FILE_MODE: Final = 0o600
_FOLDER_MODE: Final = 0o700
_OTHERS: Final = 0o077
_CONTEXT: Final = b"sealwire keystore v1\0"


class KeystoreError(Exception):
    """The keystore cannot be used as it is."""


class KeystoreMissingError(KeystoreError):
    """There is no keystore at this place."""


class KeystoreExistsError(KeystoreError):
    """There is a keystore already; it was not touched."""


class PassphraseError(KeystoreError):
    """The passphrase is missing or wrong."""


_Fields = dict[str, Any]


def create(
    path: Path,
    passphrase: str | None = None,
    *,
    effort: Effort = MODERATE,
    random: Random = os.urandom,
) -> DeviceIdentity:
    """Make a new device, and keep it at `path`. Durable when it returns.

    Raises KeystoreExistsError, and leaves what is there, if a keystore exists; KeystoreError if the folder is open
    to others or the file cannot be written; PassphraseError for an empty passphrase.
    """
    identity = DeviceIdentity.generate(random)
    lock = None if passphrase is None else _Lock(passphrase, random(PASSPHRASE_SALT_BYTES), effort)
    content = _encoded([_fields(identity, lock, random)])
    with _folder(path, make=True) as folder:
        if _holds(folder, path.name):
            raise KeystoreExistsError(f"The keystore {path} exists already; it was left as it is. Open it instead.")
        try:
            _write(folder, path.name, content)
        except OSError as error:
            raise KeystoreError(
                f"The keystore {path} could not be written ({error.strerror}): no device was made; see to that and"
                " try again."
            ) from error
    return identity


def load(path: Path, passphrase: str | None = None) -> DeviceIdentity:
    """The device that is kept at `path`, with its present keys.

    Raises KeystoreMissingError if there is none, PassphraseError if it needs one or another, and KeystoreError if
    file or folder are open to others, belong to another user, or are damaged.
    """
    return load_all(path, passphrase)[0]


def load_all(path: Path, passphrase: str | None = None) -> list[DeviceIdentity]:
    """The device's present keys, and after them its earlier ones, the latest first. Raises what `load` does."""
    with _folder(path, make=False) as folder:
        return _opened(path, _parsed(path, _read(folder, path)), passphrase)[0]


def renew(path: Path, passphrase: str | None = None, *, random: Random = os.urandom) -> DeviceIdentity:
    """Give the device new keys, kept beside those that it has. Durable when it returns.

    Raises what `load` does, and leaves the keystore as it was.
    """
    with _folder(path, make=False) as folder:
        kept = _parsed(path, _read(folder, path))
        _, lock = _opened(path, kept, passphrase)
        identity = DeviceIdentity.generate(random)
        _replace(folder, path, [_fields(identity, lock, random), *kept])
    return identity


def forget(path: Path, needed: Collection[DeviceKey]) -> None:
    """Take out the earlier keys that no vault needs any more. Durable when it returns. Raises what `load` does."""
    with _folder(path, make=False) as folder:
        present, *earlier = _parsed(path, _read(folder, path))
        left = [fields for fields in earlier if bytes.fromhex(fields["device"]) in needed]
        if len(left) < len(earlier):
            _replace(folder, path, [present, *left])


def load_or_create(path: Path, passphrase: str | None = None, *, effort: Effort = MODERATE) -> list[DeviceIdentity]:
    """All keys of the device at `path`, as `load_all` gives them; made if there is none. Of processes that do so at
    once, all get the same device."""
    try:
        return load_all(path, passphrase)
    except KeystoreMissingError:
        with contextlib.suppress(KeystoreExistsError):
            return [create(path, passphrase, effort=effort)]
    return load_all(path, passphrase)


def _damaged(path: Path) -> KeystoreError:
    return KeystoreError(
        f"The keystore {path} is damaged: this device cannot be recovered from it; restore the file from a backup, or"
        " move it away and join again as a new device."
    )


class _Lock:
    """A passphrase, stretched: what seals the seeds of a keystore. Raises PassphraseError, KeystoreError."""

    def __init__(self, passphrase: str, salt: bytes, effort: Effort) -> None:
        if not passphrase:
            raise PassphraseError("The passphrase is empty: give one, or none at all.")
        _check_effort(effort)
        self.salt, self.effort = salt, effort
        self.key = cipher.stretch(passphrase, salt, effort)

    def context(self, device: bytes) -> bytes:
        """What a sealed seed is bound to."""
        costs = self.effort.passes.to_bytes(4, "big") + self.effort.memory_bytes.to_bytes(8, "big")
        return _CONTEXT + device + self.salt + costs


def _fields(identity: DeviceIdentity, lock: _Lock | None, random: Random) -> _Fields:
    """One device's keys as they stand in the file."""
    fields: _Fields = {"device": identity.device_key.hex()}
    if lock is None:
        return fields | {"seed": identity.seed.reveal().hex()}
    context = lock.context(identity.device_key)
    sealed = cipher.private_seal(lock.key, identity.seed.reveal(), context, random(SEED_BYTES))
    passes, memory = lock.effort
    fields["argon2id"] = {"passes": passes, "memory_bytes": memory, "salt": lock.salt.hex()}
    return fields | {"sealed_seed": sealed.hex()}


def _encoded(kept: list[_Fields]) -> bytes:
    """The file's content: the present keys, and the earlier ones inside."""
    present, *earlier = kept
    fields: _Fields = {"sealwire_keystore": FORMAT_WITH_EARLIER if earlier else FORMAT, **present}
    return json.dumps(fields | ({"earlier": earlier} if earlier else {}), indent=1).encode()


def _parsed(path: Path, content: bytes) -> list[_Fields]:
    """The present keys and the earlier ones, as they stand in the file, each with its format."""
    try:
        fields = json.loads(content)
        known = fields.pop("sealwire_keystore")
        kept = [fields, *fields.pop("earlier", ())]
        for each in kept:
            bytes.fromhex(each["device"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise _damaged(path) from None
    if known not in (FORMAT, FORMAT_WITH_EARLIER):
        raise KeystoreError(
            f"The keystore {path} is of format {known!r}, which this version does not know; update this program."
        )
    return kept


def _opened(path: Path, kept: list[_Fields], passphrase: str | None) -> tuple[list[DeviceIdentity], _Lock | None]:
    """The keys themselves, and what sealed the present ones."""
    locks: dict[str, _Lock] = {}
    identities = [_identity(path, fields, passphrase, locks) for fields in kept]
    for identity, fields in zip(identities, kept, strict=True):
        if identity.device_key.hex() != fields["device"]:
            raise _damaged(path)
    return identities, next(iter(locks.values()), None)


def _identity(path: Path, fields: _Fields, passphrase: str | None, locks: dict[str, _Lock]) -> DeviceIdentity:
    try:
        if "sealed_seed" not in fields:
            return DeviceIdentity(Secret(bytes.fromhex(fields["seed"])))
        costs = fields["argon2id"]
        effort, salt = Effort(int(costs["passes"]), int(costs["memory_bytes"])), bytes.fromhex(costs["salt"])
        sealed, device = bytes.fromhex(fields["sealed_seed"]), bytes.fromhex(fields["device"])
        if len(salt) != PASSPHRASE_SALT_BYTES:
            raise ValueError
    except (ValueError, LookupError, TypeError, CipherError):
        raise _damaged(path) from None
    if passphrase is None:
        raise PassphraseError(f"The keystore {path} is locked; give its passphrase.")
    lock = locks.get(repr(costs)) or locks.setdefault(repr(costs), _Lock(passphrase, salt, effort))
    try:
        return DeviceIdentity(Secret(cipher.private_open(lock.key, sealed, lock.context(device))))
    except CipherError:
        raise PassphraseError(f"The passphrase does not open the keystore {path}; try again.") from None


def _check_effort(effort: Effort) -> None:
    low, high = EFFORT_FLOOR, EFFORT_CEILING
    passes, memory = effort
    if not (low.passes <= passes <= high.passes and low.memory_bytes <= memory <= high.memory_bytes):
        raise KeystoreError(
            f"A keystore's passphrase would cost {passes} passes over {memory:,} bytes to try, which is"
            " not between Argon2id's interactive and sensitive settings; the file may have been tampered with."
        )


@contextlib.contextmanager
def _folder(path: Path, *, make: bool) -> Iterator[int]:
    """The checked folder of a keystore, locked against other processes that use keystores in it."""
    parent = path.parent
    try:
        if make:
            parent.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        folder = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not make:
            raise _missing(path) from None
        raise KeystoreError(
            f"The folder {parent} cannot be used for a keystore ({error.strerror}): see to that, or choose another"
            " folder for the device."
        ) from error
    try:
        found = os.fstat(folder)
        if found.st_mode & _OTHERS and os.listdir(folder) and not _holds(folder, path.name):
            # Nobody is told to close a system's folder, or the one that all of it stands in, to everybody else.
            raise KeystoreError(
                f"The folder {parent} is open to other users, and what it holds is no device: choose another folder"
                " for the device; one that is missing is made."
            )
        _check_private(found, parent, "folder", _FOLDER_MODE)
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(folder)


def _holds(folder: int, name: str) -> bool:
    return os.access(name, os.F_OK, dir_fd=folder, follow_symlinks=False)


def _missing(path: Path) -> KeystoreMissingError:
    return KeystoreMissingError(f"There is no keystore at {path}; make a device first.")


def _check_private(found: os.stat_result, path: Path, what: str, mode: int) -> None:
    if found.st_uid != os.geteuid():
        raise KeystoreError(
            f"The {what} {path} belongs to another user, who could read or change this device's keys: run as that user,"
            " or use a folder of your own."
        )
    if stat.S_IMODE(found.st_mode) & _OTHERS:
        raise KeystoreError(
            f"The {what} {path} is open to other users (mode {stat.S_IMODE(found.st_mode):04o}), who could read or"
            f" change this device's keys: run `chmod {mode:o} {path}` and try again."
        )


def _read(folder: int, path: Path) -> bytes:
    try:
        file = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
    except FileNotFoundError:
        raise _missing(path) from None
    except OSError as error:
        raise KeystoreError(f"The keystore {path} cannot be opened ({error.strerror}).") from error
    try:
        found = os.fstat(file)
        _check_private(found, path, "keystore", _FILE_MODE)
        if not stat.S_ISREG(found.st_mode) or found.st_size > FILE_BYTES_MAX:
            raise _damaged(path)
        return os.read(file, FILE_BYTES_MAX)
    finally:
        os.close(file)


def _replace(folder: int, path: Path, kept: list[_Fields]) -> None:
    """Put another content in the keystore's place, under the folder's lock."""
    content = _encoded(kept)
    if len(content) > FILE_BYTES_MAX:
        raise KeystoreError(f"The keystore {path} has no room for more keys; join the vaults again as a new device.")
    try:
        _write(folder, path.name, content)
    except OSError as error:
        raise KeystoreError(
            f"The keystore {path} could not be written ({error.strerror}): the device keeps the keys that it has; see"
            " to that and open it again."
        ) from error


def _write(folder: int, name: str, content: bytes) -> None:
    """Write, under the folder's lock, so that the file is either whole or not there."""
    draft = f".{name}.{os.getpid()}.new"
    file = os.open(
        draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, _FILE_MODE, dir_fd=folder
    )
    try:
        with os.fdopen(file, "wb") as out:
            os.fchmod(file, _FILE_MODE)
            out.write(content)
            out.flush()
            os.fsync(file)
        os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft, dir_fd=folder)
        raise
    os.fsync(folder)
