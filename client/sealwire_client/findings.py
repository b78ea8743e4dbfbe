"""What a doctor has found, in figures and in words that say what it means and what to do."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from sealwire_client.replica import Counts
from sealwire_client.status import Disputed, State
from sealwire_protocol.ids import VaultId


class Verdict(StrEnum):
    """Am I in sync? Of several the one that stands first here counts."""

    DIFFERS = "differs"
    """The two sides do not hold the same, though everything that was to come has come; or the file is damaged."""
    UNKNOWN = "unknown"
    """They could not be compared."""
    WAITING = "waiting"
    """They agree as far as they go: something is still to be sent or fetched."""
    IN_SYNC = "in_sync"
    """They hold the same."""


_ORDER = tuple(Verdict)


class Where(StrEnum):
    """On which side a key has what the other side lacks."""

    HERE = "here"
    RELAY = "relay"
    BOTH = "both"
    """Each side has another version."""


class DifferingKey(NamedTuple):
    """An entry in which the two sides differ. `key` None: its record cannot be opened."""

    key: str | None
    where: Where


@dataclass(frozen=True, slots=True)
class Side:
    """All that one side holds of a collection's log, at a position. Of the relay also what it has forgotten."""

    records: int
    """Entries and deletions."""
    fingerprint: str
    """Of all of them together, in hex: two sides with the same one hold the same."""
    at: int
    floor: int = 0
    """Deletions up to here are forgotten."""


@dataclass(frozen=True, slots=True)
class Difference:
    """In how many entries the two sides differ, and the first part of the log in which they do."""

    here: int
    """Entries and deletions that the device has, and the relay has nothing of."""
    relay: int
    """Those that the relay has, and the device has nothing of."""
    both: int
    """Those of which each side has another version."""
    prefix: str
    """The first differing range: how the tags in it begin, in hex. Empty: all of them."""
    prefix_here: int
    prefix_relay: int
    """How many entries and deletions either side has in that range."""
    keys: tuple[DifferingKey, ...]
    """The first differing entries, in the order of their tags."""

    @property
    def count(self) -> int:
        """All differing entries."""
        return self.here + self.relay + self.both

    def __str__(self) -> str:
        parts = [
            (self.relay, "at the relay and not here"),
            (self.here, "here and not at the relay"),
            (self.both, "another version here than at the relay"),
        ]
        return ", ".join(f"{_entries(count)} {where}" for count, where in parts if count)


@dataclass(frozen=True, slots=True)
class CollectionFindings:
    """How one collection stands."""

    name: str
    verdict: Verdict
    counts: Counts
    here: Side
    relay: Side | None
    """None: it could not be asked."""
    behind: int
    """Records of the relay that have not come yet."""
    opened: bool
    """False: nobody has opened it in this process, so that nothing of it is sent or fetched just now."""
    difference: Difference | None = None
    repaired: Difference | None = None
    """In what it differed before it was repaired; None: it was not."""
    why: str | None = None
    """Why it could not be compared, or repaired."""

    def __str__(self) -> str:
        return "; ".join(self._words())

    def _words(self) -> Iterator[str]:
        if self.repaired is not None:
            yield f"it was compared and brought together with the relay, from which it had differed ({self.repaired})"
        match self.verdict:
            case Verdict.IN_SYNC:
                yield "in sync: this device and the relay hold the same"
            case Verdict.WAITING:
                yield "in sync as far as it goes"
            case Verdict.UNKNOWN:
                yield f"it cannot be told whether it is in sync: {self.why}"
            case Verdict.DIFFERS if self.difference is None:
                yield f"not in sync: {self.why}"
            case Verdict.DIFFERS:
                yield f"not in sync: {self.difference}"
                yield from self._what_to_do(self.difference)
        yield from self._beside()

    def _what_to_do(self, difference: Difference) -> Iterator[str]:
        if self.why is not None:
            yield f"it was not repaired: {self.why}"
            return
        yield "a repair makes this device have what the relay has, and keeps what was not sent yet"
        if difference.here:
            yield (
                "what is here alone, though all devices should have it, is dropped by that as deleted: whoever wants to"
                " keep it puts it once more first"
            )

    def _beside(self) -> Iterator[str]:
        counts = self.counts
        if self.behind:
            yield f"records still to come from the relay: {self.behind:,}" + (
                "" if self.opened else "; they are fetched when its app opens it"
            )
        if counts.unsent + counts.answered:
            yield f"writes that wait to be sent, confirmed or delivered: {counts.unsent + counts.answered:,}"
        if counts.stuck:
            yield f"writes refused for good, on this device alone until they are retried or discarded: {counts.stuck:,}"
        if counts.unreadable:
            yield f"records that could not be opened, and are kept: {counts.unreadable:,}"


@dataclass(frozen=True, slots=True)
class VaultFindings:
    """How one vault stands."""

    name: str
    id: VaultId
    origin: str
    state: State
    why: str | None
    """What was wrong last, in a sentence."""
    collections: tuple[CollectionFindings, ...]
    disputed: tuple[Disputed, ...] = ()
    """What shows that the relay lies to its devices: see `Status`."""

    @property
    def verdict(self) -> Verdict:
        """The worst of its collections, and at most what its state says. What is disputed differs."""
        own = Verdict.WAITING
        if self.disputed:
            own = Verdict.DIFFERS
        elif self.state is State.SYNCED:
            own = Verdict.IN_SYNC
        elif self.state in (State.OFFLINE, State.CONNECTING, State.REFUSED):
            own = Verdict.UNKNOWN
        return _first([own, *(found.verdict for found in self.collections)])


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found on a device. Its replica's file is sound."""

    vaults: tuple[VaultFindings, ...]
    incomplete: str | None = None
    """Which vaults could not be looked at, and why."""

    @property
    def verdict(self) -> Verdict:
        """The worst of all."""
        own = Verdict.IN_SYNC if self.incomplete is None else Verdict.UNKNOWN
        return _first([own, *(found.verdict for found in self.vaults)])


def _first(verdicts: list[Verdict]) -> Verdict:
    return min(verdicts, key=_ORDER.index)


def _entries(count: int) -> str:
    return f"{count:,} {'entry' if count == 1 else 'entries'}"
