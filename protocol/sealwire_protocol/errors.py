"""Two families of error: `LocalMisuse` is our own mistake, `RemoteFault` is the peer's. And the wire's codes."""

from enum import IntEnum
from typing import Final


class ProtocolError(Exception):
    """Anything this package raises on purpose."""


class LocalMisuse(ProtocolError):
    """The caller did something that the present state does not allow. A bug on this side."""


class RemoteFault(ProtocolError):
    """The peer sent something that the protocol does not allow; the connection ends with `code`."""

    def __init__(self, message: str, code: "CloseCode | None" = None) -> None:
        super().__init__(message)
        self.code = CloseCode.PROTOCOL_ERROR if code is None else code


class DecodeError(RemoteFault):
    """Bytes that are not a message, a segment, a record or a link of this protocol."""


class CloseCode(IntEnum):
    """WebSocket close codes. 4000-4099: come back, with jitter. 4100-4199: do not come back unchanged."""

    NORMAL = 1000
    GOING_AWAY = 1001
    RESTARTING = 1012
    OVERLOADED = 4000
    TOO_SLOW = 4001
    RELAY_FAULT = 4002
    IDLE = 4003
    PROTOCOL_ERROR = 4100
    VERSION_UNSUPPORTED = 4101
    LOGIN_REFUSED = 4102
    WRONG_ORIGIN = 4103
    TOO_LARGE = 4104
    REMOVED = 4105


_DO_NOT_COME_BACK: Final = range(4100, 4200)


def may_come_back(code: int) -> bool:
    """True unless the code says that the same connection, tried again, must fail again."""
    return code not in _DO_NOT_COME_BACK


class FaultCode(IntEnum):
    """What a FAULT is about. A closed set: an unknown code is treated as `INTERNAL`."""

    INTERNAL = 1
    OVERLOADED = 2
    NO_SUCH_VAULT = 3
    NOT_SUBSCRIBED = 4
    TERM_CHANGED = 5
    BAD_LINK = 6
    LINK_CONFLICT = 7
    STREAM_KIND = 8
    NO_SUCH_MAILBOX = 9
    MAILBOX_USED = 10
    NOT_ALLOWED = 11
    TOO_LARGE = 12
    UNSUPPORTED = 13
    BATCH_GAP = 14
    QUOTA = 15
    STALE_PIN = 16
    VAULT_DELETED = 17
    MOVED = 18


class Action(IntEnum):
    """What the receiver of a FAULT should do."""

    RETRY = 1
    RESUBSCRIBE = 2
    STOP = 3


class Outcome(IntEnum):
    """The verdict on a whole push. Every one of them has used up the batch number."""

    DONE = 0
    """Records were judged one by one; those not listed as refused are committed."""
    EPOCH_STALE = 1
    """The vault's keys have changed: seal again in the present epoch, under a new number."""
    NOT_A_WRITER = 2
    """The device may not write here (a reader, or removed)."""
    SEAL_AGAIN = 3
    """A version was at or below `purged`: seal again above it, under a new number. Of a refill: the relay has lost that
    with which it was compared; compare again."""
    CLONED = 4
    """The number was used before with other contents: two devices share one identity."""
    STALE_NUMBER = 5
    """The number lies below the kept outcomes; it was not executed now."""
    MALFORMED = 6
    """A record broke a rule that an honest device keeps (author, version step, size)."""
    QUOTA = 7
    """The vault is full."""
    MOVED = 8
    """The vault is at another relay: seal again there, under a new number. Nothing is kept of the batch here."""


class Refusal(IntEnum):
    """Why one record of a push was refused; the winner comes along."""

    CONFLICT = 1
    """Guarded stream: the record named as replaced is not the current one."""
    ATOMIC = 2
    """Another record of the same atomic push was refused."""
    SUPERSEDED = 3
    """A refill of what a greater record has replaced, or of what is held already: nothing is lost, nothing was done."""
