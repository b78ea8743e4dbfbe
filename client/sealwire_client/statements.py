"""Statements: what a device says, signed, that it holds of a stream at a position, for others to compare.

    statement = format u8 = 1, vault 16, stream 8, author u32, term number u64, term id 8, seq u64, sum 32
    signed    = statement, then the author's Ed25519 signature of STATEMENT_CONTEXT ‖ statement

Each device keeps its newest one of each stream as an entry of a collection that no app can name.
"""

from dataclasses import dataclass
from struct import Struct
from typing import Final, NamedTuple

from sealwire_client import cipher
from sealwire_client.identity import DeviceIdentity
from sealwire_protocol.ids import SIGNATURE_BYTES, SUM_BYTES, Author, DeviceKey, Position, StreamId, Term, VaultId

STATEMENTS: Final = "_statements"
"""The collection of a vault's statements. Names of apps begin with a letter."""

STATEMENT_CONTEXT: Final = b"sealwire statement v1\0"

_FORMAT: Final = 1
_STATEMENT: Final = Struct(f">B16s8sIQ8sQ{SUM_BYTES}s")


class Statement(NamedTuple):
    """That a device, as this member of a vault, held this sum of a stream's live entries at a position."""

    vault: VaultId
    stream: StreamId
    author: Author
    at: Position
    sum: bytes

    def is_before(self, other: "Statement") -> bool:
        """True if it is of an earlier position of the same term: no device goes from the other one back to it."""
        return self.at.term == other.at.term and self.at.seq < other.at.seq

    def may_follow(self, former: "Statement") -> bool:
        """True if its maker, who has stated `former` last, may state this: later in the same term, or in another one of
        no lower number. After a restore a device may stand again in a term in which it had stated more before `former`;
        who has not heard that one would take it for a step back."""
        if self.at.term == former.at.term:
            return self.at.seq > former.at.seq
        return self.at.term.number >= former.at.term.number


@dataclass(frozen=True)
class Stated:
    """An entry of the collection: see `entry_of` for its key."""

    signed: bytes


def entry_of(lineage: Author, stream: StreamId) -> str:
    """The key under which the newest statement of a device of a stream stands, whatever keys the device has taken."""
    return f"{lineage}.{stream.hex()}"


def signed(identity: DeviceIdentity, statement: Statement) -> bytes:
    """A statement's bytes, signed by the device that makes it."""
    vault, stream, author, ((number, name), seq), total = statement
    raw = _STATEMENT.pack(_FORMAT, vault, stream, author, number, name, seq, total)
    return raw + identity.sign(STATEMENT_CONTEXT + raw)


def read(raw: bytes) -> Statement | None:
    """What is stated, whoever has signed it; None if it is no statement that this program knows."""
    if len(raw) != _STATEMENT.size + SIGNATURE_BYTES or raw[0] != _FORMAT:
        return None
    _, vault, stream, author, number, name, seq, total = _STATEMENT.unpack_from(raw)
    at = Position(Term(number, name), seq)
    return Statement(VaultId(vault), StreamId(stream), Author(author), at, total)


def is_signed_by(raw: bytes, device: DeviceKey) -> bool:
    """True if a device has signed these bytes as a statement."""
    return cipher.verify(device, STATEMENT_CONTEXT + raw[:-SIGNATURE_BYTES], raw[-SIGNATURE_BYTES:])
