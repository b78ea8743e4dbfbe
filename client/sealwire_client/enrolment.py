"""New keys for a device whose identity was used without it: its folder was copied, or restored from a backup (R16).

Nothing is lost on the way, and every step is durable before the next: the new keys are kept beside the old ones; what
was sealed under the old ones gets its verdict; the membership log says that the new keys take their place; the replica
goes over to them, vault by vault. A device that was ended in between goes on where it stopped.
"""

import logging
from collections.abc import Callable, Iterator, Sequence

import trio

from sealwire_client import linkmaking, tallies
from sealwire_client.identity import DeviceIdentity
from sealwire_client.keyring import KeyringError, VaultKeys
from sealwire_client.link import Link, RelayRefusedError
from sealwire_client.replica import HeldVault, Replica, Runner
from sealwire_protocol.errors import FaultCode
from sealwire_protocol.ids import Author, DeviceKey
from sealwire_protocol.links import Role
from sealwire_protocol.membership import Membership
from sealwire_protocol.messages import NO_REQUEST, AppendLink

_log = logging.getLogger("sealwire.enrolment")


class Identities:
    """A device's keys: the present ones, and the earlier ones that some of its vaults still know it by.

    `make` makes new ones durable, in the writer's thread, and raises what `keystore.renew` does.
    """

    def __init__(self, found: Sequence[DeviceIdentity], make: Callable[[], DeviceIdentity]) -> None:
        self._found, self._make = list(found), make
        self._renewing = trio.Lock()

    @property
    def present(self) -> DeviceIdentity:
        """Under which the device joins and makes vaults."""
        return self._found[0]

    def __iter__(self) -> Iterator[DeviceIdentity]:
        return iter(tuple(self._found))

    def of(self, device: DeviceKey) -> DeviceIdentity:
        """The keys with this name; the present ones if they are not here."""
        return next((identity for identity in self._found if identity.device_key == device), self.present)

    async def renew(self, used: DeviceIdentity, writer: Runner[Replica]) -> DeviceIdentity:
        """The keys that take the place of those `used`: newer ones that are here, or new ones. Raises KeystoreError."""
        async with self._renewing:
            if self.present is used:
                with trio.CancelScope(shield=True):  # what is durable is known
                    self._found.insert(0, await writer.run(lambda replica: self._make()))
        return self.present


class Enrolment:
    """One vault's way to new keys. Used by the vault's task alone, but for `offer`.

    `ask` is called when new ones are needed: `offer` is to be called with them, once they are durable. `move` is called
    when the replica has gone over to them.
    """

    def __init__(
        self,
        held: HeldVault,
        identity: DeviceIdentity,
        writer: Runner[Replica],
        ask: Callable[[], None],
        move: Callable[[HeldVault, DeviceIdentity], None],
    ) -> None:
        self._held, self._identity, self._writer = held, identity, writer
        self._ask, self._move = ask, move
        self._next: DeviceIdentity | None = None
        self._asked = False
        self._appended_after = b""
        self.why: str | None = None
        """What tells that the device's identity was used without it; None: nothing does."""
        self.refused: str | None = None
        """Why the new keys cannot take the old ones' place; None: nothing is known against it."""

    def offer(self, identity: DeviceIdentity) -> None:
        """Take these keys, which are durable, if they are not the ones in use."""
        if identity is not self._identity:
            self._next = identity

    def notice(self, why: str) -> None:
        """The device's identity was used without it."""
        if self.why is None:
            self.why = why
            _log.warning("%s; it takes new keys, and nothing is lost", why)

    def refuse(self, why: str) -> None:
        """The keys cannot be replaced now."""
        self.refused = f"this device cannot take new keys ({why}); what is unsent is kept here"
        _log.error("%s", self.refused)

    def online(self) -> None:
        """Try again what was refused on the last connection."""
        self._asked, self._appended_after, self.refused = False, b"", None

    def become(self, held: HeldVault) -> None:
        """The device is another member now, under the same keys."""
        self._held = held

    async def go_on(self, membership: Membership, keys: VaultKeys, link: Link, ready: bool) -> bool:
        """Do what can be done now. True: the device is on its way to new keys, and must not seal under the old ones.

        `ready`: all members are known, and what became of all that was sent, as far as it can be.
        """
        if membership.members[self._held.author].role is Role.REPLACED:
            self.notice("a copy of this device's folder has taken new keys")
        if self._next is None:
            if self.why is not None and not self._asked:
                self._asked = True
                self._ask()
            return self.why is not None
        if not ready or await self._writer.run(_waits_for_verdicts, self._held.number):
            return True
        member = membership.by_device(self._next.device_key)
        if member is not None:
            await self._go_over(self._next, member.author)
        elif membership.last_hash != self._appended_after and self.refused is None:
            await self._append(self._next, membership, keys, link)
        return True

    async def _append(self, new: DeviceIdentity, membership: Membership, keys: VaultKeys, link: Link) -> None:
        """Ask for the next link. It, or the one that came first, is delivered like every other."""
        try:
            raw = linkmaking.replace_device_link(self._identity, new, membership, keys)
            self._appended_after = membership.last_hash
            await link.request(AppendLink(NO_REQUEST, self._held.id, raw))
        except (KeyringError, RelayRefusedError) as error:
            if not isinstance(error, RelayRefusedError) or error.fault.code is not FaultCode.LINK_CONFLICT:
                self.refuse(str(error))

    async def _go_over(self, new: DeviceIdentity, author: Author) -> None:
        with trio.CancelScope(shield=True):  # what the replica has gone over to is used
            held = await self._writer.run(enrolled, self._held, author)
        if held is not None:
            self._held, self._identity, self._next, self.why = held, new, None, None
            _log.warning("vault %s: this device is member %d now, with new keys", held.name, author)
            self._move(held, new)


def enrolled(replica: Replica, before: HeldVault, author: Author) -> HeldVault | None:
    """Be another member from now on. None, and nothing changed, while a batch of the former one has no verdict."""
    with replica.transaction():
        held = replica.vaults.enrol(before.number, author)
        if held is not None:
            tallies.move(replica, before.number, before.author, author)
    return held


def _waits_for_verdicts(replica: Replica, vault: int) -> bool:
    return bool(replica.outbox.sent.unanswered(vault, 0, 1))
