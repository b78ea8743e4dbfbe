"""A vault's new epochs, as they come to this device: it goes over to the new key, or learns that it was removed."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from sealwire_client import keyring
from sealwire_client.identity import DeviceIdentity
from sealwire_client.keyring import KeyringError, VaultKeys
from sealwire_client.link import Link
from sealwire_client.memberlog import MemberLog
from sealwire_client.progress import Progress
from sealwire_client.replica import Change, Collection, HeldVault, Replica, Runner
from sealwire_client.stream import StreamSync
from sealwire_client.transport import TransportError
from sealwire_protocol.ids import StreamId

STALE_MAX: Final = 3
"""Batches in a row that may be refused for an old epoch on one connection: two epochs begin at once, hardly four."""

WRONG_KEY: Final = (
    "the relay refuses what is sealed here, as if the vault had another key; what is unsent is kept: close this device"
    " and open it again, so that it reads its keys anew, and if that does not help, have it removed and invited again"
)

DELETED: Final = (
    "the vault was deleted by an admin of it; what this device holds can be read here until it is forgotten, and what"
    " is unsent is kept"
)

REMOVED: Final = "this device was removed from the vault; what it holds can be read here, and what is unsent is kept"

SHUT_OUT: Final = (
    "the relay has no such vault for this device: it was removed from it, or the relay has lost that it was let in;"
    " what it holds can be read here, and what is unsent is kept; ask an admin of the vault for an invite"
)
"""All that can be said to a device that was away when it was removed: to it the relay tells the same as to anybody."""

_log = logging.getLogger("sealwire.sync")


class Rekeying:
    """One vault's way from epoch to epoch. `renewed` gives what opens and seals a collection under the keys of now;
    `tell` learns what was opened late."""

    def __init__(
        self,
        held: HeldVault,
        identity: DeviceIdentity,
        members: MemberLog,
        keys: VaultKeys,
        streams: Mapping[StreamId, StreamSync],
        writer: Runner[Replica],
        progress: Progress,
        renewed: Callable[[Collection], StreamSync],
        tell: Callable[[Collection, Sequence[Change]], None],
    ) -> None:
        self._held, self._identity = held, identity
        self._members, self._keys, self._streams = members, keys, streams
        self._writer, self._progress, self._renewed, self._tell = writer, progress, renewed, tell
        self._stale = 0
        self._beside = set(keys.others)
        self._looked: dict[StreamId, bytes] = {}
        """After which link each collection's records were looked at again."""

    def become(self, held: HeldVault, identity: DeviceIdentity) -> None:
        """Be another member from now on."""
        self._held, self._identity = held, identity

    def online(self) -> None:
        """A new connection."""
        self._stale = 0

    @property
    def is_removed(self) -> bool:
        """True if the log says that this device was removed from the vault."""
        own = self._members.membership.members.get(self._held.author)
        return own is not None and own.removed

    @property
    def over(self) -> str | None:
        """Why the vault is none for this device any more, as the log says; None: it is."""
        if self._members.membership.ended:
            return DELETED
        return REMOVED if self.is_removed else None

    @property
    def is_present(self) -> bool:
        """True if the keys of the log's present epoch are here: else nothing may be sealed."""
        return self._keys.current.key_id == self._members.membership.key_id

    async def take_keys(self) -> bool:
        """Have the keys of the log's present epoch, if there is a new one. False: they are not to be had, and nothing
        may be sealed."""
        if self.over is not None:
            self._report(self.over)
            return False
        if self.is_present and self._beside == self._keys.others.keys():
            return True
        try:
            newer = keyring.keys_from_log(self._identity, self._members.membership)
        except KeyringError as error:
            self._report(f"what is new cannot be read, and nothing is sent: {error}")
            return False
        await self._writer.run(lambda _: self._rekey(newer))
        for stream in self._streams.values():
            self._tell(stream.collection, ())  # what waits can be sealed again
        return True

    def _report(self, why: str) -> None:
        if self._progress.lasting.get("") != why:
            _log.error("vault %s: %s", self._held.name, why)
        self._progress.lasting[""] = why

    def _rekey(self, newer: VaultKeys) -> None:
        """In the writer's thread, so that what is sealed there is of one epoch."""
        self._keys.take_in(newer)
        self._beside = set(self._keys.others)
        self._looked.clear()
        for stream in self._streams.values():
            stream.rekey(self._renewed(stream.collection))

    async def look_again(self) -> None:
        """Open what waits for a link, in each collection once for each end of the log: also what was set aside before
        this device went down, between that and the link."""
        log = self._members.membership.last_hash
        late = [x for name, x in self._streams.items() if x.waits_for_links and self._looked.get(name) != log]
        if not late:
            return
        self._looked.update({stream.collection.stream: log for stream in late})
        found = await self._writer.run(lambda replica: [(x.collection, x.look_again(replica)) for x in late])
        for collection, changes in found:
            if changes:
                self._tell(collection, changes)

    def refused(self, link: Link) -> None:
        """What was sealed under the present key here was refused for its epoch: nothing is sealed before the log was
        heard again. A relay that says so again and again does not keep this device busy."""
        self._stale += 1
        if self._stale > STALE_MAX:
            link.give_up(TransportError(WRONG_KEY))
        self._members.doubt()

    def accepted(self) -> None:
        """What was sealed under the present key was not refused for that."""
        self._stale = 0
