"""A look at a replica that another process has open: vaults, collections and entries, read only.

It never checkpoints and takes no lock that a writer would wait for, so it cannot harm the file. It shows what was
durable when each call began. The other process may end meanwhile; what is read is then still whole.
"""

from pathlib import Path
from types import TracebackType
from typing import Self

from sealwire_client.replica.census import undecoded
from sealwire_client.replica.entries import Collection
from sealwire_client.replica.errors import ReplicaUnreadableError
from sealwire_client.replica.reading import Reader
from sealwire_client.replica.schema import APPLICATION_ID, SCHEMA_VERSION


class Glance:
    """A read-only view of a folder's replica, for the length of a `with` block, in the thread that made it."""

    def __init__(self, folder: Path) -> None:
        """Raises ReplicaUnreadableError if there is no replica of this version to be seen yet."""
        self.reader = Reader(folder)
        run = self.reader.connection.execute
        found = run("PRAGMA application_id").fetchone()[0], run("PRAGMA user_version").fetchone()[0]
        if found != (APPLICATION_ID, SCHEMA_VERSION):
            self.reader.close()
            raise ReplicaUnreadableError(
                f"{self.reader.path} is just being made, or brought up to date, by another process: nothing was read; "
                "try again in a moment."
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reader.close()

    def vaults(self) -> list[tuple[bytes, str]]:
        """The id and name of every vault, the oldest first."""
        return [
            (row[0], row[1]) for row in self.reader.connection.execute("SELECT vault, name FROM _vault ORDER BY id")
        ]

    def collection(self, vault: bytes, name: str) -> Collection | None:
        """A collection to read with `reader`, or None if this device has none of that name."""
        found = self.reader.connection.execute(
            "SELECT c.id, v.id, c.name, stream, kind, policy, columns, opened, signed FROM _collection AS c"
            " JOIN _vault AS v ON v.id = c.vault WHERE v.vault = ? AND c.name = ?",
            (vault, name),
        ).fetchone()
        return None if found is None else undecoded(*found)
