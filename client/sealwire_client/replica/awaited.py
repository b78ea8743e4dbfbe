"""Vaults that this device was let into and does not hold yet: what an inviter's answer has promised of them."""

import time
from collections.abc import Iterable
from typing import Final

from sealwire_client.replica.database import Database
from sealwire_protocol.ids import VaultId

AWAITED_MS_MAX: Final = 30 * 86_400_000
"""A vault that has not come in a month, because its relay has gone or the device was removed there again, is not asked
for any longer: 30 days, by this device's clock."""


Awaited = tuple[VaultId, str, int, bytes]
"""A vault, its relay, and a link of its membership log that must be found there: its seq and its hash."""


class AwaitedVaults:
    """Each method is one transaction. `Vaults.add` ends waiting for the vault that it holds from then on."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, vaults: Iterable[Awaited]) -> None:
        """Wait for these vaults, if they are not held; what was promised last counts."""
        now = int(time.time() * 1000)
        with self._database.transaction() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO _awaited (vault, origin, link_seq, link_hash, at)"
                " SELECT ?1, ?2, ?3, ?4, ?5 WHERE NOT EXISTS (SELECT 1 FROM _vault WHERE vault = ?1)",
                [(*each, now) for each in vaults],
            )

    def all(self) -> list[Awaited]:
        """Those that are still to come; what was promised too long ago is forgotten."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM _awaited WHERE at < ?", (int(time.time() * 1000) - AWAITED_MS_MAX,))
            found = connection.execute("SELECT vault, origin, link_seq, link_hash FROM _awaited ORDER BY at, vault")
            return list(found)
