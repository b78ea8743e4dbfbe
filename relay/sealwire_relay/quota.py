"""How much more a vault may store, as far as one relay process knows (decision 0026). Pure.

What it stores is counted in its heads, which every relay on the database moves; nobody sums them up on the way of a
push. So a process counts on from what it read, and reads again before it refuses anything, and before it has used up
its share of what was left.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

from sealwire_relay.store.administration import StoredVault
from sealwire_relay.store.interface import Usage

RESERVE_SHARE: Final = 1 / 4
"""Beyond its quota a vault may store so much of it in tombstones, refills and what is sealed anew: a full one can be
emptied, a third of its smallest entries between two cleanings, be given back what the relay has lost, and go over to a
new key."""

RELAYS: Final = 8
"""Processes on one database that together never store more than a quota, save for what they commit at one moment: each
looks again before it has used up this part of what was left. More of them may, by as much as each has then."""


@dataclass(slots=True)
class Allowance:
    """What a vault may store (0: without limit), what it stored when that was read, and what was added here since."""

    quota: int
    stored: int
    added: int = 0

    @classmethod
    def of(cls, usage: Usage, default: int) -> "Allowance":
        """From what the store says; a vault without a quota of its own has the default."""
        return cls(usage.quota or default, usage.bytes)

    def doubtful(self, coming: int) -> bool:
        """Whether it must be read again before so many bytes are decided on. Always so before any are refused."""
        return bool(self.quota) and (self.added + coming) * RELAYS > self.quota - self.stored

    def takes(self, size: int, reserve: bool) -> bool:
        """Whether so many bytes may be added. `reserve`: they are of what may go into the reserve."""
        quota = self.quota
        room = quota + int(quota * RESERVE_SHARE) if reserve else quota
        return not quota or self.stored + self.added + size <= room


class ListedVault(NamedTuple):
    """What those who run a relay are told of a vault: numbers, and nothing of what is in it."""

    vault: str
    """Its id, in hex."""
    bytes: int
    quota: int
    """What it may store: its own quota, or the relay's; 0: no limit."""
    streams: int
    """Beside the membership log."""
    last_write: str | None
    """A time in UTC, as ISO 8601 has it; None: before it was noted."""


def listed(found: StoredVault, default: int) -> ListedVault:
    """A vault as it is told; one without a quota of its own has the default."""
    last = None if found.written is None else datetime.fromtimestamp(found.written, UTC).isoformat(timespec="seconds")
    return ListedVault(found.vault.hex(), found.bytes, found.quota or default, found.streams, last)
