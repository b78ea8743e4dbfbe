"""Records that are sealed anew under the present epoch's key (R5, R6): what a reseal states, and what becomes of it.

After a vault's key was changed, whoever holds an entry seals its value again, keeping version and author, so that the
old key is of no use any more. Nobody decides anything by that, so it must change nothing for anybody: it must neither
win over an edit nor bring back what was deleted. In the place of conditions a group of a reseal has,

    in an open stream:     term number varint, id 8, seq varint
    in a guarded stream:   for each record: salt 8

In an open stream the rank decides, and a later edit has a greater version. But of a deletion that was forgotten nothing
is left to lose against: so the group says up to which seq the device had applied the stream, under which of the relay's
terms, when it sealed. What was forgotten since is not brought back. In a guarded stream it names the record that it
replaces, which has its own version.
"""

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

from sealwire_protocol.conditions import Current, Judged
from sealwire_protocol.errors import DecodeError
from sealwire_protocol.fields import POSITION
from sealwire_protocol.history import term_at
from sealwire_protocol.ids import Position, Tag
from sealwire_protocol.messages import REFILL, RESEAL, StreamState
from sealwire_protocol.refills import surveying_refill
from sealwire_protocol.segment import SALT_BYTES, TOMBSTONE, Survey, finished, read_record, surveying


class Resealed(NamedTuple):
    """One record of a reseal in a guarded stream: all that its judgement needs, and its bytes, `[begin, end)` of the
    group's. `replaces`: the salt of the record that it replaces."""

    tag: Tag
    version: int
    epoch: int
    salt: bytes
    tombstone: bool
    replaces: bytes
    begin: int
    end: int


def survey_of(flags: int, records: bytes) -> Survey:
    """What `surveying_of` finds. Raises DecodeError."""
    return finished(surveying_of(flags, records))


def surveying_of(flags: int, records: bytes) -> Generator[None, None, Survey]:
    """Walk a group of a push with these flags, with pauses. Raises DecodeError."""
    return surveying_refill(records) if flags & REFILL else surveying(records, any_author=bool(flags & RESEAL))


def encode_applied(applied: Position) -> bytes:
    """What a group to an open stream says: what was applied of it, under the term that the relay has now."""
    out = bytearray()
    POSITION.write(out, applied)
    return bytes(out)


def decode_applied(data: bytes) -> Position:
    """The inverse of `encode_applied`. Raises DecodeError."""
    applied: Position
    applied, at = POSITION.read(data, 0)
    if at != len(data):
        raise DecodeError("a reseal says more than where its stream stood")
    return applied


def read_resealed(replaced: bytes, records: bytes, count: int) -> list[Resealed]:
    """The records of a group to a guarded stream that has so many, each of another tag. Raises DecodeError.

    `replaced`: the group's conditions, which are the salts of what it replaces.
    """
    if len(replaced) != SALT_BYTES * count:
        raise DecodeError("a reseal does not name the record that each of its own replaces")
    resealed, at = [], 0
    for place in range(count):
        _, record, end = read_record(records, at)
        salt = replaced[SALT_BYTES * place : SALT_BYTES * (place + 1)]
        tombstone = bool(record.flags & TOMBSTONE)
        resealed.append(Resealed(record.tag, record.version, record.epoch, record.salt, tombstone, salt, at, end))
        at = end
    if len({one.tag for one in resealed}) < count:
        raise DecodeError("a group of a reseal has two records of one tag")
    return resealed


def judge_resealed(
    resealed: Sequence[Resealed], body: bytes, head: int, state: StreamState, held: Callable[[Tag], Current | None]
) -> Judged:
    """Judge a group that is appended to a guarded stream at `head`; `held`: what that holds before.

    Accepted is what replaces the very record that it names, by one of the same version and a higher epoch: of a tag of
    which nothing is held, nothing is. What it takes the place of in the log it does in a history too (R14): `state`
    tells in which term that stood.
    """
    holding: dict[Tag, Current] = {}
    refused: dict[int, int] = {}
    top, seq = 0, head
    for place, one in enumerate(resealed):
        current = held(one.tag)
        if current is None or not _replaces(one, current):
            refused[place] = 0 if current is None else current.seq
            continue
        seq += 1
        top = max(top, one.version)
        line = current.line or (Position(term_at(state.terms, current.seq), current.seq),)
        holding[one.tag] = Current(one.version, one.salt, one.tombstone, seq, line, one.epoch)
    if refused:
        body = b"".join([body[one.begin : one.end] for at, one in enumerate(resealed) if at not in refused])
    return Judged(seq - head, top, body, holding, refused)


def _replaces(one: Resealed, current: Current) -> bool:
    same = (one.version, one.replaces, one.tombstone) == (current.version, current.salt, current.tombstone)
    return same and one.epoch > current.epoch
