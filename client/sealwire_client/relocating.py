"""A vault that is at another relay now: this device finishes at the one where it is, then goes over (R18)."""

import logging
from collections.abc import Callable, Mapping
from typing import Final

import trio

from sealwire_client.identity import DeviceIdentity
from sealwire_client.link import Link
from sealwire_client.memberlog import MemberLog
from sealwire_client.progress import Progress
from sealwire_client.replica import HeldVault, Replica, Runner
from sealwire_client.stream import StreamSync
from sealwire_client.transport import InsecureOriginError, TransportError, check_origin
from sealwire_protocol.ids import Author, StreamId
from sealwire_protocol.links import Move, decode_link

REFUSED_MAX: Final = 1
"""Batches that may be refused on one connection before the link is heard: it is on its way at most once."""

_log = logging.getLogger("sealwire.sync")


class Relocating:
    """One vault's way to the relay that its log names. `moved` is called when it has gone over, durably."""

    def __init__(
        self,
        held: HeldVault,
        identity: DeviceIdentity,
        members: MemberLog,
        streams: Mapping[StreamId, StreamSync],
        writer: Runner[Replica],
        progress: Progress,
        moved: Callable[[HeldVault, DeviceIdentity], None],
    ) -> None:
        self._held, self._identity, self._members, self._streams = held, identity, members, streams
        self._writer, self._progress, self._moved = writer, progress, moved
        self._refused = 0

    def become(self, held: HeldVault, identity: DeviceIdentity) -> None:
        """Be another member, or at another relay, from now on."""
        self._held, self._identity = held, identity

    def online(self) -> None:
        """A new connection."""
        self._refused = 0

    def refused(self, link: Link) -> None:
        """A batch was refused because the vault is elsewhere, of which the log here says nothing: the link is on its
        way, or withheld. Nothing is sealed before the log was heard again."""
        self._refused += 1
        if self._refused > REFUSED_MAX:
            link.give_up(
                TransportError("the relay says that the vault is at another relay, and does not show who moved it")
            )
        self._members.doubt()

    @property
    def to(self) -> str | None:
        """Where the vault is by its log; None: where this device is."""
        relay = self._members.membership.relay
        return None if relay in (None, self._held.origin) else relay

    async def go_on(self, origin: str) -> None:
        """Go over, if all is done here that can be."""
        try:
            check_origin(origin)
        except InsecureOriginError as error:
            self._progress.lasting[""] = f"the vault was moved to an address that is not gone to: {error}"
            return
        self._progress.passing = f"the vault is moving to {origin}: what is under way here is finished first"
        if all(_is_finished(stream) for stream in self._streams.values()):
            await self.go_over(origin, finished=True)

    async def go_over(self, origin: str, *, finished: bool) -> None:
        """Be at this relay from now on. `finished`: not if a batch waits for its verdict."""
        vault, held = self._held.number, self._held
        mover = _mover(await self._members.links())

        def gone(replica: Replica) -> HeldVault | None:
            with replica.transaction():
                if finished and replica.outbox.sent.unanswered(vault, 0, 1):
                    return None
                return replica.vaults.go_to(vault, origin, keeps_token=mover == held.author)

        with trio.CancelScope(shield=True):  # where the replica has gone is gone to
            there = await self._writer.run(gone)
            if there is not None:
                _log.warning("vault %s is at %s from now on", there.name, origin)
                self._members.read_anew()
                self._moved(there, self._identity)


def _is_finished(stream: StreamSync) -> bool:
    """True if all that the relay has of a collection was applied, or nothing more can be had of it there."""
    gone = stream.lost is not None and stream.told and not stream.exists
    return stream.caught_up or gone or bool(stream.misfit)


def _mover(links: list[bytes]) -> Author | None:
    """Who has moved the vault last."""
    for raw in reversed(links):
        link = decode_link(raw)
        if isinstance(link.body, Move):
            return link.signer
    return None
