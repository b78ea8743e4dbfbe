"""For how long tombstones stay, decided on what a store tells of a stream (R11). Pure.

A tombstone may go once it is compacted, older than any backup that may be restored, and known to every active device,
or older than the cutoff, after which devices are not waited for. How old a record is, marks tell: a mark is the head at
some time, so all that lies at or below it is at least as old.
"""

from typing import Final, NamedTuple

from sealwire_protocol.history import is_lost
from sealwire_protocol.links import Role
from sealwire_protocol.messages import StreamState
from sealwire_relay.settings import Settings
from sealwire_relay.store.cleaning import Mark, Reader, Tombstones

MARKS_EACH: Final = 30
"""Marks within the retention, and as many up to the cutoff: tombstones stay at most a thirtieth longer than they must,
and a stream's marks take up a kilobyte."""

DAY_SECONDS: Final = 86_400

MARK_SECONDS_MIN: Final = 1
"""Ages are kept in whole seconds."""


class Retention(NamedTuple):
    """The two settings, in seconds."""

    kept_seconds: float
    """Age of the oldest backup that may be restored: it cannot bring an entry back whose tombstone is gone."""
    cutoff_seconds: float
    """Silence after which a device is not waited for. Nothing is lost by it: such a device reconciles."""


def retention_of(settings: Settings) -> Retention:
    """As the settings have it."""
    return Retention(settings.retention_days * DAY_SECONDS, settings.cutoff_days * DAY_SECONDS)


class Heard(NamedTuple):
    """A device that is waited for."""

    reader: Reader
    known: int
    """Up to here it knows the stream. 0 if what it said is of a history that the relay has lost."""


def marked(found: Tombstones, retention: Retention) -> tuple[Mark, ...]:
    """The marks that a stream is to have now: a new one if it is time, and as few old ones as will do."""
    now = int(found.now)
    # After a clock that went wrong was put right: what it marked is known to be there now, and no more.
    marks = [mark._replace(at=min(mark.at, now)) for mark in found.marks]
    if not marks or (found.head > marks[-1].head and now - marks[-1].at >= _spacing(0, retention)):
        marks.append(Mark(found.head, now))
    answers = [_newest(marks, now, seconds) for seconds in retention]
    beyond_all = min(answers)
    kept: list[Mark] = []
    for place, mark in enumerate(marks):
        spaced = not kept or mark.at - kept[-1].at >= _spacing(now - mark.at, retention)
        if place >= beyond_all and (spaced or place in answers or place == len(marks) - 1):
            kept.append(mark)
    return tuple(kept)


def _spacing(age: float, retention: Retention) -> float:
    seconds = retention.kept_seconds if age <= retention.kept_seconds else retention.cutoff_seconds
    return max(seconds / MARKS_EACH, MARK_SECONDS_MIN)


def _newest(marks: list[Mark], now: int, seconds: float) -> int:
    """The place of the newest mark that is so old; -1 if none is."""
    return max((place for place, mark in enumerate(marks) if now - mark.at >= seconds), default=-1)


def older_than(found: Tombstones, seconds: float) -> int:
    """Up to here every record is at least so old."""
    if seconds <= 0:
        return found.head
    return max((mark.head for mark in found.marks if int(found.now) - mark.at >= seconds), default=0)


def active(found: Tombstones, retention: Retention) -> list[Heard]:
    """The devices that are waited for: members that have subscribed to the stream, and were seen within the cutoff."""
    state = StreamState(found.stream, found.kind, found.head, 0, found.floor, 0, 0, 0, found.terms)
    return [
        Heard(reader, 0 if is_lost(reader.position, state) else reader.position.seq)
        for reader in found.readers
        if reader.role is not Role.REPLACED and found.now - reader.seen < retention.cutoff_seconds
    ]


def may_go(found: Tombstones, retention: Retention) -> int:
    """Tombstones up to this seq may go."""
    known = min((heard.known for heard in active(found, retention)), default=found.head)
    if found.now - found.arrived < retention.cutoff_seconds:
        known = 0  # a device that was left behind by the move may come within the cutoff, and hold what is deleted here
    waited_for = max(known, older_than(found, retention.cutoff_seconds))
    return min(found.compacted, older_than(found, retention.kept_seconds), waited_for)
