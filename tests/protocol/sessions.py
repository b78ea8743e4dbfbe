"""Short ways to say what happens to a relay's session, and to look at what it does."""

from typing import TypeVar

from sealwire_protocol import codec
from sealwire_protocol.errors import CloseCode, Outcome
from sealwire_protocol.events import (
    Answer,
    Close,
    Do,
    PageRead,
    Received,
    RelayEffect,
    Send,
)
from sealwire_protocol.ids import Position, StreamId, Term, VaultId
from sealwire_protocol.limits import (
    Limits,
)
from sealwire_protocol.messages import (
    Message,
    Push,
    Pushed,
    StreamState,
    Subscribe,
)
from sealwire_protocol.relay_session import (
    Listener,
    RelaySession,
    RelayState,
)
from tests.protocol.examples import (
    STREAM,
    T1,
    relay_in,
    subscribed,
    wanted,
)
from tests.support.link import VAULT

M = TypeVar("M", bound=Message)


def receive(session: RelaySession, message: Message, now: float = 0.0) -> list[RelayEffect]:
    return session.handle(Received(codec.encode(message), now))


def sent(effects: list[RelayEffect], kind: type[M]) -> list[M]:
    """The messages of a kind among effects."""
    found = [codec.decode(effect.data) for effect in effects if isinstance(effect, Send)]
    return [message for message in found if isinstance(message, kind)]


def closed(effects: list[RelayEffect]) -> CloseCode:
    """The code of the Close that is the only effect."""
    [close] = effects
    assert isinstance(close, Close)
    return close.code


def subscribe(session: RelaySession, *states: StreamState, cursor: int = 0, term: Term = T1) -> list[RelayEffect]:
    """Subscribe at a cursor, and be answered with these states."""
    message = Subscribe(VAULT, tuple(wanted(state.stream, Position(T1, cursor)) for state in states))
    assert receive(session, message) == [Do(message)]
    return session.handle(Answer(subscribed(*states, term=term)))


def ready(*states: StreamState, cursor: int = 0, granted: Limits | None = None) -> RelaySession:
    session = relay_in(RelayState.READY, granted=granted)
    subscribe(session, *states, cursor=cursor)
    return session


def listener(session: RelaySession, stream: StreamId = STREAM) -> Listener:
    return session.listeners[VAULT, stream]


def push(batch: int, term: Term = T1, vault: VaultId = VAULT) -> Push:
    return Push(vault, term, batch, 0, ())


def pushed(batch: int) -> Answer:
    return Answer(Pushed(VAULT, batch, Outcome.DONE, (), ()))


def page(
    session: RelaySession, *lasts: int, head: int, size: int = 100, stream: StreamId = STREAM
) -> list[RelayEffect]:
    return session.handle(PageRead(VAULT, stream, tuple((last, bytes(size)) for last in lasts), head))
