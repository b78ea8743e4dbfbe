"""Tokens and audit on Postgres. The SQL is in `sql/queries/admin.sql`."""

from collections.abc import Sequence
from typing import Final

import asyncpg  # type: ignore[import-untyped]

from sealwire_protocol.ids import VaultId
from sealwire_relay.store.administration import (
    ADMIN_TOKENS_MAX,
    AUDIT_ROWS_MAX,
    Administration,
    AdminToken,
    Asked,
    Audited,
    StoredVault,
    fitting,
)
from sealwire_relay.store.interface import StoreError
from sealwire_relay.store.pools import Pools
from sealwire_relay.store.rows import Columns, Row

ATTEMPTS_MAX: Final = 10
"""Times that an entry is written again because another process took its number: each time one of them gets on."""


class PostgresAdministration(Pools, Administration):
    """The part of a PostgresStore that is no concern of devices."""

    async def vaults(self, after: VaultId | None, vaults_max: int) -> list[StoredVault]:
        """One statement, so one snapshot."""
        return [_stored_vault_of(row) for row in await self._rows("vaults", after, vaults_max)]

    async def add_admin_token(self, name: str, hash_: bytes) -> bool:
        """Two statements: the limit may be exceeded by those who make tokens at the same moment."""
        if len(await self._rows("admin_tokens")) >= ADMIN_TOKENS_MAX:
            return False
        return bool(await self._rows("add_admin_token", name, hash_))

    async def revoke_admin_token(self, name: str) -> bool:
        """One statement."""
        return bool(await self._rows("revoke_admin_token", name))

    async def admin_tokens(self) -> list[AdminToken]:
        """One statement."""
        return [
            AdminToken(
                row["name"],
                row["hash"],
                row["created"].timestamp(),
                row["revoked"].timestamp() if row["revoked"] else None,
            )
            for row in await self._rows("admin_tokens")
        ]

    async def add_audit(self, asked: Sequence[Asked]) -> None:
        """One statement, which fails as a whole where another process was faster."""
        columns = Columns(5)
        for each in asked:
            columns.add(*fitting(each))
        for attempt in range(ATTEMPTS_MAX):
            try:
                await self._rows("add_audit", *columns.arrays, AUDIT_ROWS_MAX)
                return
            except StoreError as error:
                overtaken = isinstance(error.__cause__, asyncpg.UniqueViolationError)
                if not overtaken or attempt == ATTEMPTS_MAX - 1:
                    raise

    async def audit(self, rows_max: int) -> list[Audited]:
        """One statement."""
        rows = await self._rows("audit", rows_max)
        return [Audited(r["at"].timestamp(), r["token"], r["address"], r["asked"], r["verdict"]) for r in rows]


def _stored_vault_of(row: Row) -> StoredVault:
    """A vault as who runs the relay sees it, from its columns."""
    written = row["written"].timestamp() if row["written"] else None
    return StoredVault(VaultId(row["vault_id"]), row["bytes"], row["quota"], row["streams"], written)
