"""A look at a replica that another process has open: vaults, collections and entries, read only.

It never checkpoints and takes no lock that a writer would wait for, so it cannot harm the file. It shows what was
durable when each call began. The other process may end meanwhile; what is read is then still whole.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from sealwire_client.replica.entries import Collection, Column, Table
from sealwire_client.replica.errors import ReplicaUnreadableError
from sealwire_client.replica.reading import Reader
from sealwire_client.replica.schema import APPLICATION_ID, SCHEMA_VERSION
from sealwire_client.replica.values import Encoder, Kept, Row
from sealwire_protocol.ids import StreamId
from sealwire_protocol.messages import StreamKind


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
            "SELECT c.id, v.id, stream, kind, policy, columns FROM _collection AS c JOIN _vault AS v ON v.id = c.vault"
            " WHERE v.vault = ? AND c.name = ?",
            (vault, name),
        ).fetchone()
        if found is None:
            return None
        number, held, stream, kind, policy, kept = found
        columns = tuple(Column(*column) for column in json.loads(kept))
        return Collection(
            number, held, name, StreamId(stream), StreamKind(kind), policy, columns, Table(number, columns), _NoValues()
        )


class _NoValues:
    """A glance reads rows alone."""

    def row_from_cbor(self, raw: bytes) -> tuple[Row | None, int]:
        raise AssertionError("a glance never decodes")

    def cbor_from_row(self, row: Row, kept: Kept = None) -> bytes:
        raise AssertionError("a glance never encodes")

    def carry(self, raw: bytes, before: bytes) -> bytes:
        raise AssertionError("a glance never edits")

    def defaults(self) -> Row:
        raise AssertionError("a glance never widens")

    def fits(self, forms: Sequence[str]) -> bool:
        raise AssertionError("a glance never rewrites")

    def encoder(self, forms: Sequence[str]) -> Encoder:
        raise AssertionError("a glance never rewrites")
