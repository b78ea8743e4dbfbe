"""A device: one installation with its own keys, its replica, and its vaults. The app's way in."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from sealwire_client import cipher, invites, keyring, keystore
from sealwire_client.doctor import Patient, examine
from sealwire_client.enrolment import Identities
from sealwire_client.findings import Findings
from sealwire_client.identity import DeviceIdentity
from sealwire_client.invites import Approved, Invite, InviteError
from sealwire_client.keystore import KeystoreError
from sealwire_client.link import Dialler, Link, RelayRefusedError
from sealwire_client.nursery import open_nursery
from sealwire_client.replica import (
    Change,
    HeldVault,
    NotAReplicaError,
    Replica,
    ReplicaCorruptError,
    Runner,
    Salvaged,
    Writer,
    holds_a_replica,
    repair,
)
from sealwire_client.replica import Collection as Held
from sealwire_client.sync import VaultSync
from sealwire_client.transport import check_origin, dial
from sealwire_client.vault import Vault
from sealwire_protocol.errors import FaultCode
from sealwire_protocol.events import Listen
from sealwire_protocol.ids import MEMBERSHIP, START, DeviceKey, Position, StreamId, VaultId
from sealwire_protocol.login import normal_origin
from sealwire_protocol.membership import FIRST_AUTHOR, LinkError, Membership, decode_links, link_hash, vault_id_of
from sealwire_protocol.messages import NO_REQUEST, Deliver, Fault, Join, Joined, Joining, Pushed, Subscribed, Wanted

_log = logging.getLogger("sealwire.device")

KEYSTORE_NAME: Final = "keystore.json"
"""The device's secret seed, beside the replica."""


OpenWriter = Callable[[Callable[[], Replica]], Awaitable[Runner[Replica]]]
"""Opens the replica in the thread that is to write it; raises what opening raises."""


ASK_AGAIN_SECONDS: Final = 30.0
"""A joiner that hears nothing asks again so often: so it learns that the invite has expired meanwhile."""


READ_ATTEMPTS_MAX: Final = 3
READ_AGAIN_SECONDS: Final = 1.0
"""A joiner that was let in asks for the log so often, and after so long. What is still refused then is lost."""


class NoRelayError(ValueError):
    """A vault needs to know its relay."""


class Device:
    """One device of one person. Use `async with Device.open(folder) as device`."""

    def __init__(
        self,
        folder: Path,
        relay: str | None,
        identities: Identities,
        writer: Runner[Replica],
        dialler: Dialler,
        nursery: trio.Nursery,
    ) -> None:
        self.folder = folder
        self.repaired: Salvaged | None = None
        """What became of the replica if it was found damaged when this device was opened; None: it was not."""
        self._relay, self._identities, self._writer = relay, identities, writer
        self._dial, self._nursery = dialler, nursery
        self._links: dict[tuple[str, DeviceKey], Link] = {}
        self._syncs: dict[VaultId, VaultSync] = {}
        self._vaults: dict[VaultId, Vault] = {}
        self._joins: dict[VaultId, trio.Lock] = {}
        self._fetching: dict[VaultId, str] = {}

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        folder: str | Path,
        *,
        relay: str | None = None,
        passphrase: str | None = None,
        repairs: bool = True,
        dialler: Dialler = dial,
        writer: OpenWriter = Writer.open,
    ) -> "AsyncIterator[Device]":
        """The device that lives in `folder` (made, with fresh keys, if there is none), online for the block's length.

        `relay` is where new vaults go; vaults that are here know theirs. Everything but the relay's work goes on
        without it. `dialler` and `writer` are for tests (`sealwire_client.testing`).

        A damaged replica is put aside and replaced by one that holds what only this device had, as far as it can be
        read (`repaired` tells); `repairs` False: ReplicaCorruptError is raised instead. That is raised in the block,
        too, if damage is met there: nothing is written any more then, and the next one who opens the device repairs it.

        Raises KeystoreError, ReplicaError (in use, not a replica, too new, damaged), InsecureOriginError,
        LocalMisuse for what is no address.
        """
        path = _folder(folder)
        if relay is not None:
            relay = normal_origin(relay)
            check_origin(relay)
        identities: list[DeviceIdentity] = []
        salvaged: list[Salvaged] = []

        def opens() -> Replica:
            ours = (path / KEYSTORE_NAME).exists()
            identities.extend(keystore.load_or_create(path / KEYSTORE_NAME, passphrase))
            try:
                return Replica(path)
            except ReplicaCorruptError:
                if not repairs:
                    raise
            except NotAReplicaError:
                if not (repairs and ours and holds_a_replica(path)):
                    raise
            salvaged.append(repair(path))
            return Replica(path)

        def renew() -> DeviceIdentity:
            return keystore.renew(path / KEYSTORE_NAME, passphrase)

        runner = await writer(opens)
        try:
            async with open_nursery() as nursery:
                device = cls(path, relay, Identities(identities, renew), runner, dialler, nursery)
                device.repaired = salvaged[0] if salvaged else None
                try:
                    for held, links in await runner.run(_held_vaults):
                        await device._hold(held, links)
                    await device._forget_keys()
                    yield device
                finally:
                    with trio.CancelScope(shield=True):
                        for vault in device._vaults.values():
                            await vault.leave()
                    nursery.cancel_scope.cancel()
                    for vault in device._vaults.values():
                        vault.close()
        except BaseExceptionGroup as group:  # several tasks have met the same damage
            damage = group.subgroup(ReplicaCorruptError)
            if damage is None:
                raise
            raise ReplicaCorruptError(*_first(damage).args) from group
        finally:
            await runner.aclose()

    @property
    def key(self) -> DeviceKey:
        """The device's public name. It takes another one when its folder was copied or restored."""
        return self._identities.present.device_key

    @property
    def vaults(self) -> Sequence[Vault]:
        """The vaults that this device holds, the oldest first."""
        return list(self._vaults.values())

    def vault(self, name: str) -> Vault:
        """A vault by its name, or by the beginning of its id in hex. Raises LookupError."""
        found = [vault for vault in self._vaults.values() if name in (vault.name, vault.id.hex())]
        found = found or [vault for vault in self._vaults.values() if vault.id.hex().startswith(name.lower())]
        if len(found) != 1:
            known = ", ".join(vault.name for vault in self._vaults.values()) or "none"
            why = "no vault" if not found else "more than one vault"
            fetched = f"; {self.incomplete}" if self.incomplete else ""
            raise LookupError(f"there is {why} {name!r} on this device; its vaults: {known}{fetched}")
        return found[0]

    @property
    def incomplete(self) -> str | None:
        """Which vaults are not among `vaults` yet, and why: a sentence, after a repair; None: all are there."""
        if not self._fetching:
            return None
        names = ", ".join(self._fetching.values())
        return f"the members of {names} could not be read here, and are fetched from the relay first: go online"

    async def create_vault(self, name: str, *, device_name: str = "") -> Vault:
        """Make a vault of which this device is the first member. Works offline; the relay learns of it when it can.

        Raises NoRelayError, NameTooLongError.
        """
        if self._relay is None:
            raise NoRelayError("a new vault needs a relay: open the device with relay='wss://…'")
        raw, keys = keyring.new_vault(self._identities.present, keyring.Names(device_name, name))
        origin = self._relay
        await trio.lowlevel.checkpoint_if_cancelled()

        def hold(replica: Replica) -> HeldVault:
            with replica.transaction():
                held = replica.vaults.add(keys.vault, name, origin, FIRST_AUTHOR)
                replica.vaults.add_links(held.number, 1, [raw])
            return held

        with trio.CancelScope(shield=True):  # what is held is followed
            self._follow(await self._writer.run(hold), _verified([raw]))
        return self._vaults[keys.vault]

    async def join(self, link: str, *, device_name: str = "") -> Vault:
        """Join the vault of an invite; waits until its inviter has approved. A repeat goes on where it stopped.

        Raises InviteError (malformed, used, expired, refused, or an older vault than promised), InsecureOriginError.
        """
        invite = invites.parse(link)
        check_origin(invite.origin)
        lock = self._joins.setdefault(invite.vault, trio.Lock())
        async with lock:  # two joins at once would take each other's answers
            if invite.vault not in self._vaults:
                await self._join(invite, device_name)
        return self._vaults[invite.vault]

    async def _join(self, invite: Invite, device_name: str) -> None:
        identity = self._identities.present
        relay = self._link_of(invite.origin, identity)
        reader = _LogReader(invite.vault, relay)
        relay.follow(invite.vault, reader)
        try:
            links = await reader.read()
            if links is None:
                approved = await self._ask_to_join(relay, identity, invite, device_name)
                links = await reader.read_until(approved.link_seq)
                if list(map(link_hash, links[approved.link_seq - 1 : approved.link_seq])) != [approved.link_hash]:
                    raise InviteError("the relay shows another membership log than the inviter's; it was not joined")
        finally:
            relay.unfollow(invite.vault)
            self._retire(relay, identity)
        _check_promise(invite, links)
        try:
            membership = _verified(links)
        except LinkError as error:
            raise InviteError(f"the vault's membership log does not verify ({error}); it was not joined") from error
        member = membership.by_device(identity.device_key)
        if member is None:
            raise InviteError("the membership log does not name this device, although the inviter approved; try again")
        name = keyring.keys_from_log(identity, membership).names(membership.members[FIRST_AUTHOR]).vault

        def hold(replica: Replica) -> HeldVault:
            with replica.transaction():
                held = replica.vaults.add(invite.vault, name, invite.origin, member.author)
                replica.vaults.add_links(held.number, 1, list(links))
            return held

        with trio.CancelScope(shield=True):  # what is held is followed
            self._follow(await self._writer.run(hold), membership)

    async def _ask_to_join(self, relay: Link, identity: DeviceIdentity, invite: Invite, name: str) -> Approved:
        answered = trio.Event()
        letters: list[bytes] = []

        def receive(mail: Joining | Joined) -> None:
            if isinstance(mail, Joined):
                letters.append(mail.sealed)
                answered.set()

        sealed = invites.seal_request(invite, identity, name)
        relay.expect_mail(invite.mailbox, receive)
        try:
            while not answered.is_set():
                await relay.request(Join(NO_REQUEST, invite.mailbox, sealed))
                with trio.move_on_after(ASK_AGAIN_SECONDS):
                    await relay.wait_while_online(answered)
        except RelayRefusedError as error:
            raise InviteError(str(error)) from error
        finally:
            relay.expect_mail(invite.mailbox, None)
        answer = invites.open_answer(invite, identity.device_key, letters[-1])
        if not isinstance(answer, Approved):
            raise InviteError(f"the inviter refused: {answer.reason}")
        return answer

    def link(self, origin: str) -> Link:
        """The connection to a relay, kept up from the first call on: its state, and why it is not up."""
        known = [self._links.get((origin, identity.device_key)) for identity in self._identities]
        return next((link for link in known if link is not None), None) or self._link_of(
            origin, self._identities.present
        )

    async def examine(self, *vaults: Vault, repair: bool = False, patience_seconds: float = 30.0) -> Findings:
        """Am I in sync? Compares what is here, in these vaults or all, with what their relays have, by fingerprints;
        only what differs travels. Everything else goes on meanwhile, but for the check of the replica's file.

        Waits until all is sent and fetched, or the work left has not become less for `patience_seconds`. What is only
        on its way is no difference. `repair`: a collection that differs is made to hold what the relay has (R13), and
        looked at again; what was not sent is kept. Collections that nobody has opened in this process can be compared,
        and not repaired.

        Raises ReplicaCorruptError if the file is damaged: open the device again then, which repairs that. Cancelled, it
        has changed nothing, or mended collections as a whole.
        """
        patients = [Patient(vault, self._syncs[vault.id]) for vault in vaults or self.vaults]
        return await examine(patients, self._writer, self.incomplete, repair, patience_seconds)

    # --- inside

    def _link_of(self, origin: str, identity: DeviceIdentity) -> Link:
        name = origin, identity.device_key
        link = self._links.get(name)
        if link is None:
            link = self._links[name] = Link(origin, identity, self._dial)
            self._nursery.start_soon(link.run)
        return link

    def _retire(self, link: Link, identity: DeviceIdentity) -> None:
        """Give up a connection under earlier keys that nobody needs any more."""
        if identity is not self._identities.present and link.idle:
            link.stop()
            self._links = {name: kept for name, kept in self._links.items() if kept is not link}

    async def _renew_keys(self, used: DeviceIdentity) -> None:
        """Take new keys, or those that another vault has led to already, and go over to them in all vaults."""
        try:
            present = await self._identities.renew(used, self._writer)
        except KeystoreError as error:
            for sync in self._syncs.values():
                sync.keep_keys(str(error))
            return
        for sync in self._syncs.values():
            sync.enrol(present)

    async def _forget_keys(self) -> None:
        """Take earlier keys out of the keystore that none of the vaults knows this device by any more."""
        used = {sync.identity.device_key for sync in self._syncs.values()}
        earlier = [identity.device_key for identity in self._identities][1:]
        if not used.issuperset(earlier):
            path = self.folder / KEYSTORE_NAME
            await self._writer.run(lambda replica: keystore.forget(path, used))

    async def _hold(self, held: HeldVault, links: Sequence[bytes]) -> None:
        """Follow a vault that the replica has. Where its links are damaged, the relay is asked for them first."""
        membership, good = _longest(links)
        if good < len(links):
            await self._writer.run(lambda replica: replica.vaults.cut_links(held.number, good))
        if held.author in membership.members:
            self._follow(held, membership)
            return
        self._fetching[held.id] = held.name
        _log.warning("%s", self.incomplete)
        self._nursery.start_soon(self._fetch_links, held, links[:good])

    async def _fetch_links(self, held: HeldVault, good: Sequence[bytes]) -> None:
        """Read a vault's membership log from its relay, and follow it then."""
        for identity in self._identities:
            relay = self._link_of(held.origin, identity)
            reader = _LogReader(held.id, relay)
            relay.follow(held.id, reader)
            try:
                links = await reader.read() or []
            finally:
                relay.unfollow(held.id)
                self._retire(relay, identity)
            membership, verified = _longest(links)
            of_it = links and vault_id_of(links[0]) == held.id and list(links[: len(good)]) == list(good)
            if not of_it or verified < len(links) or held.author not in membership.members:
                continue

            def add(replica: Replica, links: Sequence[bytes] = links) -> None:
                replica.vaults.add_links(held.number, len(good) + 1, list(links[len(good) :]))

            with trio.CancelScope(shield=True):  # what is held is followed
                await self._writer.run(add)
                del self._fetching[held.id]
                self._follow(held, membership)
            return
        _log.error("the relay does not know this device in vault %s: ask another device for an invite", held.name)

    def _follow(self, held: HeldVault, membership: Membership) -> Vault:
        identity = self._identities.of(membership.members[held.author].device)
        link = self._link_of(held.origin, identity)

        def told(collection: Held, changes: Sequence[Change] | None) -> None:
            vault.told(collection, changes)

        def watched(collection: Held) -> bool:
            return vault.watched(collection)

        def renew() -> None:
            self._nursery.start_soon(self._renew_keys, sync.identity)

        def move(held: HeldVault, identity: DeviceIdentity) -> None:
            left, under = sync.link, sync.identity
            link = self._link_of(held.origin, identity)
            left.unfollow(held.id)
            sync.become(held, identity, link)
            link.follow(held.id, sync)
            self._retire(left, under)

        sync = VaultSync(held, membership, identity, self._writer, link, told, watched, renew, move)
        sync.enrol(self._identities.present)
        vault = Vault(held, sync, self._writer, self.folder)
        self._vaults[held.id], self._syncs[held.id] = vault, sync
        link.follow(held.id, sync)
        self._nursery.start_soon(sync.run)
        self._nursery.start_soon(vault.keep_status)
        return vault

    def wake(self) -> None:
        """Try to reach the relays at once: the app came to the front, or the network changed."""
        for link in self._links.values():
            link.wake()


class _LogReader:
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
        """The log at least up to a link, by which this device is a member. Raises InviteError if that was lost."""
        for _ in range(READ_ATTEMPTS_MAX):  # the first refusal may be of a time before that link
            self._refused = False
            self.online()
            await self._wait(lambda: self._refused or len(self._links) >= seq)
            if len(self._links) >= seq:
                return self._links
            await trio.sleep(READ_AGAIN_SECONDS)
        raise InviteError("the relay has lost that this device was let in; ask for a new invite")

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


def _folder(folder: str | Path) -> Path:
    return Path(folder).expanduser()


def _held_vaults(replica: Replica) -> list[tuple[HeldVault, list[bytes]]]:
    return [(held, replica.vaults.links(held.number)) for held in replica.vaults.all()]


def _verified(links: Sequence[bytes]) -> Membership:
    """The membership log of these links. Raises LinkError if they do not verify."""
    membership = Membership()
    for raw in links:
        membership.apply(raw, cipher.verify)
    return membership


def _longest(links: Sequence[bytes]) -> tuple[Membership, int]:
    """The membership log that the first links make, as many of them as verify."""
    membership = Membership()
    for count, raw in enumerate(links):
        try:
            membership.apply(raw, cipher.verify)
        except LinkError as error:
            _log.error("a membership link that was kept here does not verify: %s", error)
            return membership, count
    return membership, len(links)


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _check_promise(invite: Invite, links: Sequence[bytes]) -> None:
    """The log must be the invited vault's, and contain the log that the inviter held (S7)."""
    if not links or vault_id_of(links[0]) != invite.vault:
        raise InviteError("the relay shows another vault than the invite names; it was not joined")
    if len(links) < invite.head_seq or link_hash(links[invite.head_seq - 1]) != invite.head_hash:
        raise InviteError("the relay shows an older or another membership log than the inviter's; it was not joined")
