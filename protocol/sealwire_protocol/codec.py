"""The only parser of what comes from a socket: bytes to message, message to bytes.

Never raises anything but DecodeError on input, never allocates more than the input's size, and never recurses.
"""

from collections.abc import Callable
from typing import Annotated, Any, Final, get_origin, get_type_hints

from sealwire_protocol.errors import CloseCode, DecodeError
from sealwire_protocol.fields import Field
from sealwire_protocol.limits import FRAME_BYTES_MAX
from sealwire_protocol.messages import BY_TYPE, CRITICAL, Ack, Message, Push, Pushed
from sealwire_protocol.plain import lay_pushed, read_ack, read_push


def layout_of(kind: type[Message]) -> tuple[tuple[str, Field], ...]:
    """The fields of a message in wire order: (name, field)."""
    hints = get_type_hints(kind, include_extras=True)
    return tuple((name, hint.__metadata__[0]) for name, hint in hints.items() if get_origin(hint) is Annotated)


_LAYOUTS: Final[dict[int, tuple[tuple[str, Field], ...]]] = {
    type_byte: layout_of(kind) for type_byte, kind in BY_TYPE.items()
}


_PLAIN: Final[dict[int, Callable[[bytes], Message | None]]] = {Push.TYPE: read_push, Ack.TYPE: read_ack}


def encode(message: Message) -> bytes:
    """The bytes of a message. Raises LocalMisuse if a field does not fit its layout."""
    if type(message) is Pushed and (laid := lay_pushed(message)) is not None:
        return laid
    return encode_fields(message)


def encode_fields(message: Message) -> bytes:
    """The same for any message, field by field as its layout has them."""
    out = bytearray((message.TYPE,))
    for name, field in _LAYOUTS[message.TYPE]:
        field.write(out, getattr(message, name))
    return bytes(out)


def decode(data: bytes) -> Message | None:
    """The message in `data`, or None for an ancillary type that this version does not know. Raises DecodeError."""
    if not data:
        raise DecodeError("an empty message")
    if len(data) > FRAME_BYTES_MAX:
        raise DecodeError(f"a message of {len(data)} bytes is over the limit", CloseCode.TOO_LARGE)
    read_plain = _PLAIN.get(data[0])
    if read_plain is not None and (message := read_plain(data)) is not None:
        return message
    return decode_fields(data)


def decode_fields(data: bytes) -> Message | None:
    """The same for any message of at least its type, field by field as its layout has them."""
    kind = BY_TYPE.get(data[0])
    if kind is None:
        if data[0] >= CRITICAL:
            raise DecodeError(f"message type {data[0]:#04x} is not known; it may need a newer version")
        return None
    values: list[Any] = []
    at = 1
    for _, field in _LAYOUTS[data[0]]:
        value, at = field.read(data, at)
        values.append(value)
    return kind(*values)
