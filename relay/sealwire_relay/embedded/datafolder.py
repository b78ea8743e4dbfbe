"""The data folder of the embedded Postgres: what lies where, and the checks before anything in it is touched.

    relay.lock       held by the relay and by every process of its Postgres
    layout           version of this layout, and Postgres' major version once the database files are complete
    postgres/        the database files (Postgres' own folder, 0700)
    postgres.new/    database files that initdb had not completed; removed at the next start
    postgres.log     what Postgres says; postgres.log.1 is what it said before
    socket/          the unix socket (0700), unless the path is too long for one
    binaries/        a copy of the programs, only where Postgres' user cannot reach the installed ones
    runtime          the path of a temporary folder in use for what could not be kept in here

The folder is 0700. Under root it is 0711 and stays root's, since Postgres' user has to pass through it: what root
writes lies where only root can write, and only `postgres/` and `socket/` belong to the other user.
"""

import contextlib
import os
import re
import shutil
import stat
from pathlib import Path

from sealwire_relay.embedded.account import Account, name_of
from sealwire_relay.embedded.errors import DataFolderError
from sealwire_relay.embedded.lock import FolderLock

LAYOUT = 1
_HEADER = "sealwire-relay data folder"
_NEW_LAYOUT = "layout.new"
# What a first start may leave behind before the layout is written, and what a file system puts there itself.
_BEFORE_LAYOUT = frozenset({"relay.lock", _NEW_LAYOUT, "lost+found"})

_DEAD = ("Z", "X")
"""States in /proc of a process that has ended and was not reaped yet."""


class DataFolder:
    """The paths of one data folder and what is done with them. All methods block; none is safe without the lock,
    save `check` and `create`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.lock = FolderLock(self.path / "relay.lock")
        self.cluster = self.path / "postgres"
        self.unfinished_cluster = self.path / "postgres.new"
        self.log = self.path / "postgres.log"
        self.socket = self.path / "socket"
        self.binaries = self.path / "binaries"
        self._layout = self.path / "layout"
        self._runtime = self.path / "runtime"

    def check(self) -> None:
        """Raise DataFolderError unless the folder is ours, or absent, or empty; touches nothing."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return
        except (NotADirectoryError, PermissionError) as error:
            raise self._refusal(f"cannot be used ({error.strerror}); mend that") from error
        if not stat.S_ISDIR(status.st_mode):
            raise self._refusal("is a file; move it away")
        if status.st_uid != os.geteuid():
            raise self._refusal(
                f"belongs to user {name_of(status.st_uid)} while the relay runs as {name_of(os.geteuid())}; "
                "run it as the owner"
            )
        if not os.access(self.path, os.R_OK | os.W_OK | os.X_OK):
            raise self._refusal("is not writable; make it writable")
        if self._layout.exists():
            self.major()
        elif (self.cluster / "PG_VERSION").exists():
            raise self._refusal(
                "has database files and no file `layout`, which says of what version they are; put that back, as from "
                "a backup of the folder"
            )
        elif set(os.listdir(self.path)) - _BEFORE_LAYOUT or status.st_mode & stat.S_ISVTX:
            raise self._refusal("holds something else; nothing in it was touched; empty it")

    def create(self) -> None:
        """Make the folder if it is absent. Raises DataFolderError if that is not possible."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise self._refusal(f"cannot be created ({error.strerror}); create it for the relay's user") from error
        _sync(self.path.parent)

    def prepare(self, account: Account) -> None:
        """Set the folder's own mode, write the layout of a new one, and remove what an interrupted start left."""
        self.path.chmod(0o711 if account.dropped else 0o700)
        if not self._layout.exists():
            self._write_layout(None)
        self.remove_runtime()
        self.remove_unfinished_cluster()

    def major(self) -> int | None:
        """Postgres' major version of the database files; None if they have not been created yet.

        Raises DataFolderError if the folder, or what lies in it, is of a version that this relay does not know.
        """
        lines = self._layout.read_text(errors="replace").splitlines()
        found = re.fullmatch(r"layout (\d+)", lines[1]) if len(lines) > 1 and lines[0] == _HEADER else None
        if found is None:
            raise self._refusal("has a file `layout` that is not a relay's; put the right one back")
        if int(found[1]) != LAYOUT:
            raise self._refusal(
                f"has layout version {found[1]} and this relay knows version {LAYOUT}; use the relay that made it"
            )
        completed = len(lines) > 2
        if not self.cluster.exists():
            if completed:
                raise self._refusal("has lost its database files, `postgres/`; put them back from a backup")
            return None
        try:
            major = int((self.cluster / "PG_VERSION").read_text())
        except (OSError, ValueError) as error:
            raise self._refusal("has no readable `postgres/PG_VERSION`; put it back from a backup") from error
        if completed and lines[2] != f"postgres {major}":
            raise self._refusal(
                f"was made with {lines[2]} but its `postgres/PG_VERSION` says {major}; put it back from a backup"
            )
        return major

    def check_major(self, brought: int) -> None:
        """Raise DataFolderError if the database files are of another major version than the binaries."""
        major = self.major()
        if major is not None and major != brought:
            raise self._refusal(
                f"was made by Postgres {major} and this relay brings Postgres {brought}; start it with the relay "
                "version that made it, dump the database there (pg_dump) and restore the dump into a new folder"
            )

    def owner(self) -> os.stat_result | None:
        """The status of the database files' folder, None if there is none."""
        try:
            return self.cluster.lstat()
        except FileNotFoundError:
            return None

    def make_for(self, account: Account, path: Path) -> None:
        """Make an empty 0700 folder inside this one that belongs to Postgres' user, in place of what was there."""
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700)
        if account.dropped:
            os.chown(path, account.uid, account.gid)

    def complete_cluster(self, major: int) -> None:
        """Make the database files that initdb has written, and synced, the ones in use. Durable on return."""
        if self.unfinished_cluster.exists():
            _sync(self.unfinished_cluster)
            self.unfinished_cluster.rename(self.cluster)
            _sync(self.path)
        self._write_layout(major)

    def remove_unfinished_cluster(self) -> None:
        """Remove what an interrupted or failed initdb has left."""
        shutil.rmtree(self.unfinished_cluster, ignore_errors=True)

    def remove_stale_pid_file(self) -> None:
        """Remove a dead Postgres' `postmaster.pid` if its number still, or again, belongs to a process.

        Postgres would take that process for a living Postgres and refuse to start. It may be the dead one itself,
        which its new parent has not reaped yet; or a stranger: in containers, where the same few numbers are given
        out again, this is common. The lock proves that no process of ours is left; a Postgres that somebody started
        by hand is recognised by its name and its folder, and left to Postgres' own check.
        """
        path = self.cluster / "postmaster.pid"
        try:
            pid = int(path.read_text().splitlines()[0])
            # `pid (name) state …`
            _, _, described = Path(f"/proc/{abs(pid)}/stat").read_text(errors="replace").partition("(")
        except (OSError, ValueError, IndexError):
            return
        name, _, rest = described.rpartition(")")
        if name != "postgres" or rest.split()[0] in _DEAD or not self._may_be_folder_of(abs(pid)):
            path.unlink()

    def _may_be_folder_of(self, pid: int) -> bool:
        """Whether a process stands in the database files, as every Postgres does in its own; True if none can tell."""
        try:
            return Path(f"/proc/{pid}/cwd").samefile(self.cluster)
        except PermissionError:
            return True
        except OSError:
            return False  # it has ended meanwhile

    def socket_in_use(self) -> Path:
        """The folder of the socket that the running Postgres has made: in here, or in its temporary folder."""
        runtime = self._noted_runtime()
        outside = runtime / self.socket.name if runtime is not None else self.socket
        return outside if any(outside.glob(".s.PGSQL.*")) else self.socket

    def remember_runtime(self, folder: Path) -> None:
        """Note a temporary folder, so that the next start removes it if this one cannot."""
        self._runtime.write_text(f"{folder}\n")

    def remove_runtime(self) -> None:
        """Remove the temporary folder that was noted, if any."""
        if (folder := self._noted_runtime()) is not None:
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._runtime.unlink()

    def _noted_runtime(self) -> Path | None:
        try:
            folder = Path(self._runtime.read_text().strip())
        except OSError:
            return None
        return folder if folder.is_absolute() and folder.name.startswith("sealwire-") else None

    def _write_layout(self, major: int | None) -> None:
        new = self.path / _NEW_LAYOUT
        with new.open("w") as file:
            file.write(f"{_HEADER}\nlayout {LAYOUT}\n" + (f"postgres {major}\n" if major is not None else ""))
            file.flush()
            os.fsync(file.fileno())
        new.rename(self._layout)
        _sync(self.path)

    def _refusal(self, what: str) -> DataFolderError:
        return DataFolderError(f"The data folder {self.path} {what}, or choose another data folder.")


def _sync(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
