"""What is there for those who run the relay: sizes of vaults, hashes of their tokens, and what was asked by whom."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final, NamedTuple

from sealwire_protocol.ids import VaultId

AUDIT_ROWS_MAX: Final = 10_000
"""What is remembered of what was asked: some 150 bytes each. Older ones go as new ones come."""

ADMIN_TOKENS_MAX: Final = 1_000
"""Tokens there ever were: each request with one is compared with all of them, some 0.1 ms."""

NAME_CHARACTERS_MAX: Final = 64
ADDRESS_CHARACTERS_MAX: Final = 64
ASKED_CHARACTERS_MAX: Final = 200
"""What is kept of texts that strangers choose; the rest is cut off."""


class AdminToken(NamedTuple):
    """A token by its name and its hash. Times are in seconds since 1970; `revoked` is None while it can be used."""

    name: str
    hash: bytes
    created: float
    revoked: float | None


class Asked(NamedTuple):
    """What somebody asked: when (seconds since 1970), showing which token (its hash; None: none), from which address,
    for what, and what came of it."""

    at: float
    token: bytes | None
    address: str
    asked: str
    verdict: str


class Audited(NamedTuple):
    """The same as it is told: `token` is its name, and empty if none was shown, or one that is not known."""

    at: float
    token: str
    address: str
    asked: str
    verdict: str


class StoredVault(NamedTuple):
    """A vault as those see it who run the relay."""

    vault: VaultId
    bytes: int
    """The segments of all its streams."""
    quota: int
    """Its own, 0 if it has none."""
    streams: int
    """Beside the membership log."""
    written: float | None
    """When something was stored last, in seconds since 1970; None if that was before it was noted."""


class Administration(ABC):
    """Vaults' sizes, tokens and audit. Every method is a whole transaction, durable when it returns, and raises
    StoreError."""

    @abstractmethod
    async def vaults(self, after: VaultId | None, vaults_max: int) -> list[StoredVault]:
        """The next vaults in the order of their ids, from the beginning or after the one that is named."""

    @abstractmethod
    async def add_admin_token(self, name: str, hash_: bytes) -> bool:
        """Keep a token. False: there is or was one of this name, or there are ADMIN_TOKENS_MAX."""

    @abstractmethod
    async def revoke_admin_token(self, name: str) -> bool:
        """A token is of no use from now on. False: it is not there, or was revoked before."""

    @abstractmethod
    async def admin_tokens(self) -> list[AdminToken]:
        """All there ever were, by name."""

    @abstractmethod
    async def add_audit(self, asked: Sequence[Asked]) -> None:
        """Write down what was asked, in order; of more than AUDIT_ROWS_MAX the oldest go."""

    @abstractmethod
    async def audit(self, rows_max: int) -> list[Audited]:
        """What was asked last, the newest first."""


def fitting(asked: Asked) -> Asked:
    """What is kept of it: as far as its texts fit, and can be printed."""
    address, what = (
        "".join(each if each.isprintable() else "?" for each in text[:size])
        for text, size in ((asked.address, ADDRESS_CHARACTERS_MAX), (asked.asked, ASKED_CHARACTERS_MAX))
    )
    return asked._replace(address=address, asked=what)
