"""What is there for those who run the relay, in memory."""

from collections.abc import Sequence

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
from sealwire_relay.store.kept import Memory


class MemoryAdministration(Memory, Administration):
    """The part of a MemoryStore that is no concern of devices."""

    async def vaults(self, after: VaultId | None, vaults_max: int) -> list[StoredVault]:
        """The next vaults."""
        kept = self._data().vaults
        names = [vault for vault in sorted(kept) if after is None or vault > after][:vaults_max]
        return [
            StoredVault(name, kept[name].bytes, kept[name].quota, len(kept[name].streams) - 1, kept[name].written)
            for name in names
        ]

    async def add_admin_token(self, name: str, hash_: bytes) -> bool:
        """Keep a token."""
        data = self._data()
        if name in data.admin_tokens or len(data.admin_tokens) >= ADMIN_TOKENS_MAX:
            return False
        data.admin_tokens[name] = AdminToken(name, hash_, self._clock(), None)
        return True

    async def revoke_admin_token(self, name: str) -> bool:
        """A token is of no use any more."""
        data = self._data()
        token = data.admin_tokens.get(name)
        if token is None or token.revoked is not None:
            return False
        data.admin_tokens[name] = token._replace(revoked=self._clock())
        return True

    async def admin_tokens(self) -> list[AdminToken]:
        """All tokens."""
        return sorted(self._data().admin_tokens.values())

    async def add_audit(self, asked: Sequence[Asked]) -> None:
        """Write down what was asked."""
        data = self._data()
        names = {token.hash: token.name for token in data.admin_tokens.values()}
        for at, token, *rest in map(fitting, asked):
            data.audit.append(Audited(at, names.get(token or b"", ""), *rest))
        del data.audit[:-AUDIT_ROWS_MAX]

    async def audit(self, rows_max: int) -> list[Audited]:
        """What was asked last."""
        return self._data().audit[::-1][:rows_max]
