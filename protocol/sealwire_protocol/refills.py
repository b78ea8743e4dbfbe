"""Records that a relay has lost and a device gives back (R14): what a refill states of each, and what becomes of it.

A refill is a PUSH of the very bytes once received. In the place of conditions it says of each record, in open streams
and guarded ones alike, the position at which it was held; see `conditions` for the bytes. A record is lost if the relay
does not know that position any more. In an open stream it is appended then, and the rank decides as ever. In a
guarded one it silently replaces what stood there before the loss, or was given back as well, if it is greater; whoever
wrote there since did so without knowing it, and that is a conflict.
"""

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

from sealwire_protocol.conditions import Current, Judged
from sealwire_protocol.errors import DecodeError
from sealwire_protocol.history import is_lost, loss_before
from sealwire_protocol.ids import Tag
from sealwire_protocol.lines import Line, compared_at, decode_held, is_of_one_line
from sealwire_protocol.messages import StreamKind, StreamState
from sealwire_protocol.segment import FLAGS_KNOWN, TOMBSTONE, WALK_RECORDS, Survey, read_record


class Returned(NamedTuple):
    """One record of a refill: all that its judgement needs, and its bytes, `[begin, end)` of the group's."""

    tag: Tag
    version: int
    epoch: int
    salt: bytes
    tombstone: bool
    line: Line
    begin: int
    end: int


def surveying_refill(data: bytes) -> Generator[None, None, Survey]:
    """Walk a refilled group: all records fresh (no skips), of any authors and keys. Raises DecodeError.

    `author` and `epoch` are the greatest in it, and `key_id` is that of the greatest epoch; empty if that has several,
    as where two ends of the membership log each began it (R15). Pauses as `surveying` does.
    """
    at, count, top, lowest, author, epoch, key_id, end = 0, 0, 0, 1 << 64, 0, 0, b"", len(data)
    flags = FLAGS_KNOWN
    while at < end:
        skip, record, at = read_record(data, at)
        if skip:
            raise DecodeError("a pushed record skips a place")
        if not record.author:
            raise DecodeError("a record names no author")
        if record.epoch > epoch or not count:
            epoch, key_id = record.epoch, record.key_id
        elif record.epoch == epoch and record.key_id != key_id:
            key_id = b""
        count += 1
        if not count % WALK_RECORDS:
            yield
        top, lowest, author = max(top, record.version), min(lowest, record.version), max(author, record.author)
        flags &= record.flags
    if not count:
        raise DecodeError("a pushed group is empty")
    return Survey(count, top, lowest, author, epoch, key_id, flags)


def read_returned(held: bytes, records: bytes, count: int) -> list[Returned]:
    """The records of a refilled group that has so many, each of another tag, as a replica has them. Raises DecodeError.

    `held`: the group's conditions, which say in a refill where the records were held.
    """
    returned, at = [], 0
    for line in decode_held(held, count):
        _, record, end = read_record(records, at)
        tombstone = bool(record.flags & TOMBSTONE)
        returned.append(Returned(record.tag, record.version, record.epoch, record.salt, tombstone, line, at, end))
        at = end
    if len({one.tag for one in returned}) < count:
        raise DecodeError("a group of a refill has two records of one tag")
    return returned


def is_outdated(held: bytes, state: StreamState) -> bool:
    """True if the relay has lost more since the device compared itself with it: what is given back stood together with
    records that are not given back, because the relay had them then, and has them no more. `held` as above."""
    return is_lost(compared_at(held), state)


def judge_returned(
    returned: Sequence[Returned],
    body: bytes,
    head: int,
    state: StreamState,
    held: Callable[[Tag], Current | None],
) -> Judged:
    """Judge a refilled group that is appended at `head`.

    `state`: the stream as its history is known, by which positions are judged. `held`: what it holds if it is guarded.
    """
    holding: dict[Tag, Current] = {}
    refused: dict[int, int] = {}
    superseded: dict[int, int] = {}
    top, seq = 0, head
    for place, one in enumerate(returned):
        if not is_lost(one.line[0], state):
            superseded[place] = 0
            continue
        current = held(one.tag) if state.kind is StreamKind.GUARDED else None
        if current is not None:
            equal = (one.version, one.salt) == (current.version, current.salt)
            with_it = bool(current.line) and is_of_one_line(one.line, current.line)
            if not equal and not with_it and current.seq > loss_before(one.line, state):
                refused[place] = current.seq
                continue
            if equal or one.version <= current.version:
                superseded[place] = current.seq
                continue
        seq += 1
        top = max(top, one.version)
        if state.kind is StreamKind.GUARDED:
            holding[one.tag] = Current(one.version, one.salt, one.tombstone, seq, one.line, one.epoch)
    if refused or superseded:
        stays = [one for place, one in enumerate(returned) if place not in refused and place not in superseded]
        body = b"".join([body[one.begin : one.end] for one in stays])
    return Judged(seq - head, top, body, holding, refused, superseded)
