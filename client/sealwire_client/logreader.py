"""A vault's membership log, read by a device that does not hold the vault."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import trio

from sealwire_client.invites import InviteError
from sealwire_client.link import Link
from sealwire_protocol.errors import FaultCode
from sealwire_protocol.events import Listen
from sealwire_protocol.ids import MEMBERSHIP, START, Position, StreamId, VaultId
from sealwire_protocol.links import LinkError, decode_links
from sealwire_protocol.messages import Deliver, Fault, Pushed, Subscribed, Wanted

READ_ATTEMPTS_MAX: Final = 3
READ_AGAIN_SECONDS: Final = 1.0
"""A joiner that was let in asks for the log so often, and after so long. What is still refused then is lost."""


@contextmanager
def reading(vault: VaultId, link: Link) -> Iterator["LogReader"]:
    """A reader of this vault's log. The connection does nothing else for the vault meanwhile."""
    reader = LogReader(vault, link)
    link.follow(vault, reader)
    try:
        yield reader
    finally:
        link.unfollow(vault)


class LogReader:
    """Reads a vault's membership log from the relay, before this device holds the vault. A `Follower`."""

    def __init__(self, vault: VaultId, link: Link) -> None:
        self._vault, self._link = vault, link
        self._links: list[bytes] = []
        self._head: int | None = None
        self._refused = False
        self._moved = trio.Event()

    async def read(self) -> list[bytes] | None:
        """The whole log, or None if the relay says that this device is no member."""
        await self._wait(lambda: self._refused or (self._head is not None and len(self._links) >= self._head))
        return None if self._refused else self._links

    async def read_until(self, seq: int) -> list[bytes]:
        """The log at least up to a link, by which this device is a member. Raises InviteError if it is none now."""
        for _ in range(READ_ATTEMPTS_MAX):  # the first refusal may be of a time before that link
            self._refused = False
            self.online()
            await self._wait(lambda: self._refused or len(self._links) >= seq)
            if len(self._links) >= seq:
                return self._links
            await trio.sleep(READ_AGAIN_SECONDS)
        raise InviteError(
            "this device was let in by this invite, and is no member now: it has left since, or was removed, or the"
            " relay has lost that it was let in; ask for a new invite"
        )

    async def _wait(self, reached: Callable[[], bool]) -> None:
        while not reached():
            await self._moved.wait()

    def _stir(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    def online(self) -> None:
        """Subscribe from the beginning."""
        if self._link.session is not None:
            self._link.handle(Listen(self._vault, (Wanted(MEMBERSHIP, START, START),)))

    def offline(self) -> None:
        """The next connection subscribes again."""

    def subscribed(self, message: Subscribed) -> None:
        """How long the log is."""
        self._head = next((state.head for state in message.streams if state.stream == MEMBERSHIP), None)
        self._stir()

    async def apply(self, delivers: Sequence[Deliver]) -> list[tuple[StreamId, Position]]:
        """Gather links; they are verified once all are here."""
        for deliver in delivers:
            try:
                links = decode_links(deliver.segment)
            except LinkError:
                links = []
            self._links[deliver.prev :] = links
        self._stir()
        return [(MEMBERSHIP, Position(deliver.term, deliver.last)) for deliver in delivers[-1:]]

    def pushed(self, message: Pushed) -> None:
        """Nothing was pushed."""

    def fault(self, message: Fault) -> None:
        """Not a member (yet)."""
        if message.code is FaultCode.NO_SUCH_VAULT:
            self._refused = True
            self._stir()

    def history_lost(self, stream: StreamId, reason: str) -> None:
        """An empty reader stands at the beginning of every history."""
