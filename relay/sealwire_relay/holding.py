"""The work of `sealwire-relay holds`: says what keeps the tombstones that are there, stream by stream."""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from sealwire_relay.database import address_of
from sealwire_relay.ending import ExitCode, told
from sealwire_relay.retention import DAY_SECONDS, Retention, active, older_than, retention_of
from sealwire_relay.settings import Settings
from sealwire_relay.store.cleaning import Tombstones
from sealwire_relay.store.postgres import PostgresStore

STREAMS_AT_ONCE: Final = 500
"""Streams asked for in one query."""


class Holder(NamedTuple):
    """A device that holds back tombstones which else might go."""

    author: int
    """Its number in the vault."""
    device: str
    """Its public key, in hex."""
    known: int
    """Up to this seq it knows the stream, as far as the relay can tell."""
    seen: str
    """When it was heard from last: a time in UTC, as ISO 8601 has it."""
    why: str


class Held(NamedTuple):
    """The tombstones of a stream, and why they are there. Names are in hex."""

    vault: str
    stream: str
    tombstones: int
    oldest: int
    """There is none below this seq."""
    compacted: int
    """Of what lies above this, tombstones are not counted yet."""
    floor: int
    """Up to here they are gone."""
    old_enough: int
    """Up to here they are older than any backup."""
    why: str
    holders: tuple[Holder, ...]
    """The devices that are waited for, the one that is furthest behind first."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**self._asdict(), "holders": [holder._asdict() for holder in self.holders]}


async def holds(settings: Settings, tell: Callable[[Held], None]) -> ExitCode:
    """Tell of every stream that has tombstones, and end. Raises RelayError."""
    with told():
        store = PostgresStore(address_of(settings), append_connections=1, other_connections=1)
        await store.open()
        try:
            async for found in _streams(store):
                tell(held(found, retention_of(settings)))
        finally:
            await store.close()
    return ExitCode.DONE


async def _streams(store: PostgresStore) -> AsyncIterator[Tombstones]:
    after = None
    while page := await store.tombstones(after, STREAMS_AT_ONCE):
        for found in page:
            yield found
        after = page[-1].vault, page[-1].stream


def held(found: Tombstones, retention: Retention) -> Held:
    """Why a stream's tombstones are there."""
    old = min(found.compacted, older_than(found, retention.kept_seconds))
    beyond = older_than(found, retention.cutoff_seconds)
    holders = [
        Holder(
            heard.reader.author,
            heard.reader.device.hex(),
            heard.known,
            _time(heard.reader.seen),
            _why_waited_for(heard.known, heard.reader.position.seq, heard.reader.seen, retention),
        )
        for heard in sorted(active(found, retention), key=lambda heard: heard.known)
        if max(heard.known, beyond) < old
    ]
    if found.oldest > old:
        why = f"none is known to be older than the retention of {_days(retention.kept_seconds)}"
    elif found.now - found.arrived < retention.cutoff_seconds and found.oldest > beyond:
        until = _time(found.arrived + retention.cutoff_seconds)
        why = f"the vault was moved here, and devices that were left behind may come until {until}"
    elif holders and found.oldest > max(holders[0].known, beyond):
        why = "a device that is waited for does not know the oldest yet"
    else:
        why = "the cleaner drops the oldest at one of its next looks"
    names = found.vault.hex(), found.stream.hex()
    return Held(*names, found.number, found.oldest, found.compacted, found.floor, old, why, tuple(holders))


def _why_waited_for(known: int, said: int, seen: float, retention: Retention) -> str:
    until = f"it is waited for until {_time(seen + retention.cutoff_seconds)} unless it is heard from"
    if said > known:
        return f"it stands at {said} of a history that the relay has lost, and has yet to reconcile; {until}"
    return f"it has acknowledged the stream up to {known}; {until}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _days(seconds: float) -> str:
    days = seconds / DAY_SECONDS
    return f"{days:g} day{'' if days == 1 else 's'}"
