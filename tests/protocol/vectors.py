"""What is behind `protocol/vectors/messages.json`, `conditions.json` and `ranges.json`, and how JSON holds it.

In JSON an integer is a number, bytes are lowercase hexadecimal, a text is a string, a member of a closed set is
its number, a term is [number, id], and a row or a list is an array.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import fields as fields_of
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, TypeVar

from sealwire_protocol.codec import encode
from sealwire_protocol.conditions import NOTHING, Condition, Names, encode_condition
from sealwire_protocol.errors import Action, FaultCode, Outcome, Refusal
from sealwire_protocol.ids import (
    NO_TERM,
    START,
    DeviceKey,
    KeyId,
    MailboxId,
    Position,
    StreamId,
    Tag,
    Term,
    TermStart,
    VaultId,
)
from sealwire_protocol.limits import Limits
from sealwire_protocol.lines import LostTerm, encode_held, line_of
from sealwire_protocol.messages import (
    ATOMIC,
    BY_TYPE,
    Ack,
    Acked,
    AnswerJoin,
    Appended,
    AppendLink,
    Branch,
    Challenge,
    CreateStream,
    CreateVault,
    Deliver,
    Done,
    Fault,
    Fetch,
    Fetched,
    Group,
    Hello,
    Item,
    Join,
    Joined,
    Joining,
    Message,
    OfferLinks,
    OpenMailbox,
    Prefix,
    Prove,
    Push,
    Pushed,
    Ranges,
    Reconcile,
    Records,
    Refused,
    StreamKind,
    StreamState,
    Subscribe,
    Subscribed,
    Summary,
    Wanted,
    Welcome,
)
from sealwire_protocol.reconcile import Gathering, fingerprint, pack_item
from sealwire_protocol.segment import TOMBSTONE, Rank

FOLDER: Final = Path(__file__).resolve().parents[2] / "protocol" / "vectors"
VECTORS: Final = FOLDER / "messages.json"
CONDITIONS: Final = FOLDER / "conditions.json"
RANGES: Final = FOLDER / "ranges.json"

M = TypeVar("M", bound=Message)


def run(first: int, count: int) -> bytes:
    """Bytes that count up, so that a swapped or shifted field shows."""
    return bytes((first + n) % 256 for n in range(count))


VAULT: Final = VaultId(run(0x10, 16))
STREAM: Final = StreamId(run(0x30, 8))
OTHER: Final = StreamId(run(0x40, 8))
DEVICE: Final = DeviceKey(run(0x50, 32))
MAILBOX: Final = MailboxId(run(0x80, 16))
KEY_ID: Final = KeyId(run(0x90, 4))
TERM: Final = Term(300, run(0xA0, 8))
OLD: Final = Term(7, run(0xB0, 8))
WIDE: Final = (1 << 63) - 1
DEEPEST: Final = Prefix(32, run(0xF0, 16))
ZERO_VAULT: Final = VaultId(bytes(16))
ZERO_STREAM: Final = StreamId(bytes(8))
ZERO_MAILBOX: Final = MailboxId(bytes(16))

MINIMAL: Final[tuple[Message, ...]] = (
    Hello(1, 1, DeviceKey(bytes(32)), bytes(32), ""),
    Challenge(1, bytes(32)),
    Prove("", bytes(64)),
    Welcome(0, 0, 0, 0, 0, 0, 0),
    CreateVault(1, b""),
    CreateStream(1, ZERO_VAULT, ZERO_STREAM, StreamKind.OPEN),
    AppendLink(1, ZERO_VAULT, b""),
    OfferLinks(1, ZERO_VAULT, 0, b""),
    Subscribe(ZERO_VAULT, ()),
    Subscribed(ZERO_VAULT, NO_TERM, 0, KeyId(bytes(4)), 0, ()),
    Deliver(ZERO_VAULT, ZERO_STREAM, NO_TERM, 0, 0, 0, 0, 0, 1, b""),
    Ack(0, ()),
    Push(ZERO_VAULT, NO_TERM, 0, 0, ()),
    Pushed(ZERO_VAULT, 0, Outcome.DONE, (), ()),
    OpenMailbox(1, ZERO_VAULT, ZERO_MAILBOX, 0),
    Join(1, ZERO_MAILBOX, b""),
    Joining(ZERO_MAILBOX, b""),
    AnswerJoin(1, ZERO_MAILBOX, b""),
    Joined(ZERO_MAILBOX, b""),
    Done(0),
    Fault(0, ZERO_VAULT, FaultCode.INTERNAL, Action.RETRY, 0, ""),
    Reconcile(1, ZERO_VAULT, ZERO_STREAM, START, ()),
    Ranges(1, ZERO_VAULT, ZERO_STREAM, START, Summary(0, bytes(16)), 0, 0, 0, 0, 0, (), ()),
    Fetch(1, ZERO_VAULT, ZERO_STREAM, START, ()),
    Records(1, ZERO_VAULT, ZERO_STREAM, 0, 0, ()),
)

FULL: Final[tuple[Message, ...]] = (
    Hello(1, 0x0203, DEVICE, run(0x70, 32), "sealwire-client/0.1.0 (Zürich)"),
    Challenge(0x0102, run(0xC0, 32)),
    Prove("wss://relay.example.org:7800", run(0, 64)),
    Welcome(2_097_152, 1_048_576, 262_144, 65_600, 4_096, 8, 25),
    CreateVault(0x01020304, run(1, 40), run(0x20, 110), run(0x60, 16)),
    CreateStream(2, VAULT, STREAM, StreamKind.GUARDED),
    AppendLink(3, VAULT, run(2, 40)),
    OfferLinks(4, VAULT, 0x01020304, run(3, 40)),
    Subscribe(
        VAULT, (Wanted(STREAM, Position(TERM, 70_000), Position(OLD, 128)), Wanted(OTHER, START, Position(TERM, 1)))
    ),
    Subscribed(
        VAULT,
        TERM,
        0x0102,
        KEY_ID,
        300,
        (
            StreamState(
                STREAM, StreamKind.OPEN, 70_000, 1 << 40, 11, 12, 13, 14, (TermStart(OLD, 0), TermStart(TERM, 200))
            ),
            StreamState(OTHER, StreamKind.ABSENT, 0, 0, 0, 0, 0, 0, ()),
        ),
        run(0x60, 16),
    ),
    Deliver(VAULT, STREAM, TERM, 1, 127, 128, 16_383, 16_384, WIDE, run(3, 70)),
    Ack(0x00010203, (Acked(VAULT, STREAM, Position(TERM, 70_000)), Acked(VAULT, OTHER, Position(OLD, 1)))),
    Push(VAULT, TERM, 129, ATOMIC, (Group(STREAM, b"", run(4, 60)), Group(OTHER, run(5, 10), run(6, 54)))),
    Pushed(
        VAULT,
        129,
        Outcome.DONE,
        (Appended(STREAM, TERM, 70_001, 3), Appended(OTHER, OLD, 1, 0)),
        (Refused(1, 0x0102, Refusal.CONFLICT, 300, run(7, 54)), Refused(1, 2, Refusal.ATOMIC, 0, b"")),
    ),
    OpenMailbox(4, VAULT, MAILBOX, 86_400),
    Join(5, MAILBOX, run(8, 33)),
    Joining(MAILBOX, run(9, 33)),
    AnswerJoin(6, MAILBOX, run(10, 33)),
    Joined(MAILBOX, run(11, 33)),
    Done(0xFFFFFFFF),
    Fault(7, VAULT, FaultCode.TERM_CHANGED, Action.RESUBSCRIBE, 1_500, "the relay's history has a new term — 再"),
    Reconcile(
        8, VAULT, STREAM, Position(TERM, 70_000), (Prefix(0, bytes(16)), Prefix(3, b"\xab\xc0" + bytes(14)), DEEPEST)
    ),
    Ranges(
        9,
        VAULT,
        STREAM,
        Position(TERM, 70_000),
        Summary(300, run(0xE0, 16)),
        1 << 40,
        11,
        12,
        13,
        14,
        (TermStart(OLD, 0), TermStart(TERM, 200)),
        (
            Branch(tuple(Summary(n * 100 + 1, run(n, 16)) for n in range(16)), ()),
            Branch((), (Item(Tag(run(12, 16)), run(13, 22), 16_384, 1), Item(Tag(run(14, 16)), run(15, 22), 1, 2))),
            Branch((), ()),
        ),
    ),
    Fetch(10, VAULT, STREAM, Position(TERM, 70_000), (1, 127, 128, WIDE)),
    Records(11, VAULT, STREAM, 70_000, 3, (Fetched(1, run(16, 69)), Fetched(128, run(17, 69)))),
)


def full_message(kind: type[M]) -> M:
    """The vector of a message in which every field says something."""
    return next(message for message in FULL if isinstance(message, kind))


def to_json(value: object) -> Any:
    """A field's value as JSON holds it."""
    if isinstance(value, IntEnum):
        return int(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [to_json(part) for part in value]
    return value


def plain(message: Message, convert: Callable[[object], Any] = to_json) -> dict[str, Any]:
    """A message's fields by name, in wire order."""
    return {field.name: convert(getattr(message, field.name)) for field in fields_of(message)}  # type: ignore[arg-type]


def generate() -> str:
    """The file of vectors, byte for byte."""
    assert {type(m) for m in MINIMAL} == {type(m) for m in FULL} == set(BY_TYPE.values())
    assert len(Limits()) == len(fields_of(Welcome))
    vectors = [
        {
            "message": type(message).__name__,
            "case": case,
            "type": f"0x{message.TYPE:02x}",
            "fields": plain(message),
            "hex": encode(message).hex(),
        }
        for minimal, full in zip(MINIMAL, FULL, strict=True)
        for case, message in (("minimal", minimal), ("full", full))
    ]
    return json.dumps({"format": 1, "vectors": vectors}, indent=1, ensure_ascii=False) + "\n"


SALT: Final = run(0xD0, 8)

VALID: Final[tuple[tuple[Condition, ...], ...]] = (
    (NOTHING,),
    (Condition(Names.ENTRY, 1, SALT),),
    (Condition(Names.TOMBSTONE, 127, SALT),),
    (Condition(Names.ENTRY, 128, SALT), NOTHING, Condition(Names.TOMBSTONE, WIDE, bytes(8))),
)

INVALID: Final[tuple[tuple[str, int, bytes], ...]] = (
    ("one too few", 2, b"\0"),
    ("one too many", 1, b"\0\0"),
    ("none at all", 1, b""),
    ("names what is not known", 1, b"\3"),
    ("ends within a salt", 1, b"\1\1" + SALT[:7]),
    ("ends within a version", 1, b"\1\x80"),
    ("a version longer than it need be", 1, b"\1\x81\0" + SALT),
    ("a version above the last", 1, b"\1" + b"\xff" * 9 + b"\1" + SALT),
)


VALID_HELD: Final[tuple[tuple[tuple[Position, ...], dict[Term, LostTerm], Position], ...]] = (
    ((Position(TERM, 1),), {}, START),
    ((Position(OLD, 128), Position(Term(WIDE, run(0xA0, 8)), WIDE), START), {}, START),
    (
        (Position(TERM, 9), Position(TERM, 5), Position(OLD, 3), Position(TERM, 700)),
        {TERM: LostTerm(OLD, 6), OLD: LostTerm(Term(1, run(0xC0, 8)), 4)},
        START,
    ),
    ((Position(TERM, 9),), {TERM: LostTerm(OLD, 6)}, Position(OLD, 6)),
    ((Position(TERM, 9),), {TERM: LostTerm(OLD, 6)}, Position(Term(9, run(0xC0, 8)), 130)),
)

_A_TERM: Final = b"\7" + run(0xB0, 8)

INVALID_HELD: Final[tuple[tuple[str, int, bytes], ...]] = (
    ("one too few", 2, encode_held([Position(OLD, 1)], {})),
    ("one too many", 1, encode_held([Position(OLD, 1)] * 2, {})),
    ("none at all", 1, b""),
    ("no term", 1, b"\0\1\1"),
    ("ends within a term's id", 1, b"\1" + _A_TERM[:-1]),
    ("ends before its seq", 1, b"\1" + _A_TERM + b"\0\0\1"),
    ("a seq longer than it need be", 1, b"\1" + _A_TERM + b"\0\0\1\x81\0"),
    ("a term's number above the last", 1, b"\1" + b"\xff" * 9 + b"\1" + run(0xB0, 8) + b"\0\0\1\1"),
    ("in a term that is not told", 1, b"\1" + _A_TERM + b"\0\0\2\1"),
    ("in the place 0", 1, b"\1" + _A_TERM + b"\0\0\0\1"),
    ("after a term that is not told", 1, b"\1" + _A_TERM + b"\2\1\1\5"),
    ("a term told twice", 1, b"\2" + (_A_TERM + b"\1\1") * 2 + b"\1\5"),
    ("compared twice", 1, b"\2" + _A_TERM + b"\0\1" + b"\6" + run(0xB0, 8) + b"\0\1\1\5"),
    ("more terms than there may be", 1, b"\x81\2" + _A_TERM + b"\0\0"),
)


def generate_conditions() -> str:
    """The file of conditions, byte for byte."""
    valid = [
        {"conditions": to_json(conditions), "hex": b"".join(map(encode_condition, conditions)).hex()}
        for conditions in VALID
    ]
    invalid = [{"case": case, "count": count, "hex": data.hex()} for case, count, data in INVALID]
    valid_held = [
        {
            "positions": to_json(held),
            "before": to_json(tuple((term, *how) for term, how in terms.items())),
            "compared": to_json(compared),
            "lines": to_json(tuple(line_of(position, terms) for position in held)),
            "hex": encode_held(held, terms, compared).hex(),
        }
        for held, terms, compared in VALID_HELD
    ]
    invalid_held = [{"case": case, "count": count, "hex": data.hex()} for case, count, data in INVALID_HELD]
    file = {
        "format": 1,
        "valid": valid,
        "invalid": invalid,
        "valid_held": valid_held,
        "invalid_held": invalid_held,
    }
    return json.dumps(file, indent=1) + "\n"


ALIKE: Final = run(0xAB, 15)
ITEMS: Final[tuple[Item, ...]] = tuple(
    sorted(
        Item(Tag(tag), Rank(n + 1, 1 + n % 3, 1 + n % 5, run(n, 8)).pack(), n + 1, TOMBSTONE if n % 7 == 0 else 0)
        for n, tag in enumerate(
            [hashlib.sha256(bytes((n,))).digest()[:16] for n in range(40)] + [ALIKE + bytes((n,)) for n in range(10)]
        )
    )
)
"""Tags as hashes are, and ten that differ in their last half-byte alone."""

PREFIXES: Final[tuple[Prefix, ...]] = (
    Prefix(0, bytes(16)),
    Prefix(1, b"\xa0" + bytes(15)),
    Prefix(1, b"\xe0" + bytes(15)),
    Prefix(2, b"\x01" + bytes(15)),
    Prefix(2, b"\x02" + bytes(15)),
    Prefix(5, ALIKE[:2] + bytes((ALIKE[2] & 0xF0,)) + bytes(13)),
    Prefix(30, ALIKE + b"\0"),
    Prefix(31, ALIKE + b"\0"),
    Prefix(32, ALIKE + b"\7"),
    Prefix(32, ALIKE + b"\x0a"),
)


def generate_ranges() -> str:
    """The file of ranges, byte for byte."""
    gathering = Gathering()
    gathering.add(pack_item(*item) for item in ITEMS)
    tree = gathering.build()
    file = {
        "format": 1,
        "items": to_json(ITEMS),
        "fingerprints": [fingerprint(item.tag + item.rank).to_bytes(16, "big").hex() for item in ITEMS],
        "total": to_json(tree.total),
        "ranges": [{"prefix": to_json(prefix), "branch": to_json(tree.branch(prefix))} for prefix in PREFIXES],
    }
    return json.dumps(file, indent=1) + "\n"
