"""The messages that a relay has most of, laid out by hand: a PUSH of one group without conditions, its PUSHED, and an
ACK of one stream.

They are what `codec` would make of them field by field, at a fraction of the cost. None is returned of anything else,
which is the codec's to understand or to refuse.
"""

from struct import Struct
from typing import Final

from sealwire_protocol.ids import STREAM_ID_BYTES, TERM_ID_BYTES, VAULT_ID_BYTES, Position, StreamId, Term, VaultId
from sealwire_protocol.limits import SEGMENT_BYTES_MAX
from sealwire_protocol.messages import Ack, Acked, Group, Push, Pushed
from sealwire_protocol.segment import decode_varint, encode_varint

_VAULT_END: Final = 1 + VAULT_ID_BYTES
_TAIL: Final = Struct(f">BH{STREAM_ID_BYTES}sII")
"""What follows a PUSH's batch: flags, the number of groups, then a group's stream and the sizes of its two parts."""

_ACK_HEAD: Final = Struct(f">xIH{VAULT_ID_BYTES}s{STREAM_ID_BYTES}s")
"""What an ACK has up to the term of its first position: credit, the number of positions, vault and stream."""

_TYPE: Final = bytes((Pushed.TYPE,))
_SIZES: Final = (VAULT_ID_BYTES, STREAM_ID_BYTES, TERM_ID_BYTES)


def read_push(data: bytes) -> Push | None:
    """The PUSH in `data`, if it is whole and has one group without conditions. Raises DecodeError."""
    if len(data) < _VAULT_END + 1 + TERM_ID_BYTES:
        return None
    number, at = decode_varint(data, _VAULT_END)
    begin = at + TERM_ID_BYTES
    batch, after = decode_varint(data, begin)
    body = after + _TAIL.size
    if body > len(data):
        return None
    flags, groups, stream, conditions, size = _TAIL.unpack_from(data, after)
    if groups != 1 or conditions or size > SEGMENT_BYTES_MAX or body + size > len(data):
        return None
    group = Group(StreamId(stream), b"", data[body : body + size])
    return Push(VaultId(data[1:_VAULT_END]), Term(number, data[at:begin]), batch, flags, (group,))


def read_ack(data: bytes) -> Ack | None:
    """The ACK in `data`, if it has one position. Raises DecodeError."""
    if len(data) < _ACK_HEAD.size:
        return None
    credit, positions, vault, stream = _ACK_HEAD.unpack_from(data)
    if positions != 1:
        return None
    number, at = decode_varint(data, _ACK_HEAD.size)
    end = at + TERM_ID_BYTES
    seq, _ = decode_varint(data, end)
    return Ack(credit, (Acked(VaultId(vault), StreamId(stream), Position(Term(number, data[at:end]), seq)),))


def lay_pushed(message: Pushed) -> bytes | None:
    """The bytes of a PUSHED that tells of one group, and refuses nothing. Raises LocalMisuse."""
    if len(message.appended) != 1 or message.refused:
        return None
    stream, term, first, records = message.appended[0]
    if (len(message.vault), len(stream), len(term.id)) != _SIZES:
        return None
    return b"".join(
        (
            _TYPE,
            message.vault,
            encode_varint(message.batch),
            bytes((message.outcome, 0, 1)),
            stream,
            encode_varint(term.number),
            term.id,
            encode_varint(first),
            encode_varint(records),
            b"\0\0",
        )
    )
