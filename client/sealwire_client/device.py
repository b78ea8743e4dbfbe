"""A device: one installation with its own keys, its replica, and its vaults. The app's way in."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

import trio

from sealwire_client import cipher, invites, joining, keyring, keystore, linkmaking, moving, recovery
from sealwire_client.admitting import is_admin
from sealwire_client.awaiting import Awaiting
from sealwire_client.belonging import added_again
from sealwire_client.connections import Connections
from sealwire_client.doctor import Patient, examine
from sealwire_client.enrolment import Identities
from sealwire_client.findings import Findings
from sealwire_client.identity import DeviceIdentity
from sealwire_client.invites import Invite, InviteError, Promise
from sealwire_client.inviting import PendingInvite
from sealwire_client.joining import ShowCode
from sealwire_client.kept import Kept
from sealwire_client.keyring import KeyringError
from sealwire_client.keystore import KeystoreError
from sealwire_client.link import Dialler, Link
from sealwire_client.logreader import reading
from sealwire_client.nursery import open_nursery
from sealwire_client.recovering import admitted_by
from sealwire_client.replica import (
    Change,
    HeldVault,
    NotAReplicaError,
    Reader,
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
from sealwire_protocol.ids import DeviceKey, VaultId
from sealwire_protocol.links import FIRST_AUTHOR, LinkError, Role, vault_id_of
from sealwire_protocol.login import normal_origin
from sealwire_protocol.membership import Membership, membership_of
from sealwire_protocol.registration import token_bytes

_log = logging.getLogger("sealwire.device")

KEYSTORE_NAME: Final = "keystore.json"
"""The device's secret seed, beside the replica."""


OpenWriter = Callable[[Callable[[], Replica]], Awaitable[Runner[Replica]]]
"""Opens the replica in the thread that is to write it; raises what opening raises."""


OpenReader = Callable[[Path], Reader]
"""Opens the replica of a folder for reading, in the device's thread; whoever reads by it must be allowed to."""


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
        reader: OpenReader = Reader,
    ) -> None:
        self.folder = folder
        self.repaired: Salvaged | None = None
        """What became of the replica if it was found damaged when this device was opened; None: it was not."""
        self._relay, self._identities, self._writer = relay, identities, writer
        self._nursery, self._open_reader = nursery, reader
        self._connections = Connections(relay, identities, dialler, nursery)
        self._syncs: dict[VaultId, VaultSync] = {}
        self._kept: dict[VaultId, Kept] = {}
        self._vaults: dict[VaultId, Vault] = {}
        self._joins: dict[VaultId, trio.Lock] = {}
        self._fetching: dict[VaultId, str] = {}
        self._awaiting = Awaiting(writer, nursery, self._fetch)

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
        reader: OpenReader = Reader,
    ) -> "AsyncIterator[Device]":
        """The device that lives in `folder` (made, with fresh keys, if there is none), online for the block's length.

        `relay` is where new vaults go; vaults that are here know theirs. Everything but the relay's work goes on
        without it. `dialler` and `writer` are for tests (`sealwire_client.testing`), `reader` is for hosts.

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
                device = cls(path, relay, Identities(identities, renew), runner, dialler, nursery, reader)
                device.repaired = salvaged[0] if salvaged else None
                try:
                    await device._resume()
                    yield device
                finally:
                    with trio.CancelScope(shield=True):
                        for vault in device.vaults:  # more may come meanwhile
                            await vault.remember()
                        nursery.cancel_scope.cancel()
                        for vault in device.vaults:
                            await vault.close()
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

    @property
    def awaited(self) -> dict[Promise, str | None]:
        """The vaults that this device was let into by an invite and does not hold yet: each with its relay, and why the
        last attempt to fetch it has failed (None: it is on its way). They come by themselves; a month later they are
        not asked for any longer."""
        return self._awaiting.vaults

    async def another_vault(self) -> None:
        """Wait until a vault less is awaited than now; return at once if none is."""
        await self._awaiting.another()

    async def create_vault(self, name: str, *, device_name: str = "", token: str | None = None) -> Vault:
        """Make a vault of which this device is the first member. Works offline; the relay learns of it when it can.

        `token` is a registration token, for relays that ask for one; it is kept with the vault. What the relay says to
        it shows in `vault.status()`, and `vault.register` gives it another one.

        Raises NoRelayError, NameTooLongError, LocalMisuse for a text that is no token.
        """
        shown = b"" if token is None else token_bytes(token)
        if self._relay is None:
            raise NoRelayError("a new vault needs a relay: open the device with relay='wss://…'")
        raw, keys = linkmaking.new_vault(self._identities.present, keyring.Names(device_name, name))
        origin = self._relay
        await trio.lowlevel.checkpoint_if_cancelled()

        def hold(replica: Replica) -> HeldVault:
            with replica.transaction():
                held = replica.vaults.add(keys.vault, name, origin, FIRST_AUTHOR, shown)
                replica.vaults.add_links(held.number, 1, [raw])
            return held

        with trio.CancelScope(shield=True):  # what is held is followed
            self._follow(await self._writer.run(hold), membership_of([raw], cipher.verify))
        return self._vaults[keys.vault]

    async def invite(
        self, *, seconds: int | None = None, role: Role = Role.ADMIN, confirm: bool = False
    ) -> PendingInvite:
        """Open an invite for another device of this person: one approval lets it into every vault in which this device
        is an admin, in this role; as an admin it can invite the next one. Otherwise as `Vault.invite`.

        The result of its `joined` tells of which vaults the device is a member now, and which were left out: others',
        where this device is no admin, and those whose relay did not answer. To make such an invite again for the same
        device lets it into what is missing.

        Waits for the relay of any of these vaults, which passes on the letters. Raises RelayRefusedError, KeyringError
        if this device is an admin nowhere.
        """
        mine = [vault for vault in self.vaults if vault.over is None and is_admin(self._syncs[vault.id])]
        if not mine:
            raise KeyringError("this device is an admin in none of its vaults; invite on a device that is one")

        async def known(vault: Vault) -> None:
            if await vault.known():
                looking.cancel_scope.cancel()

        async with open_nursery() as looking:
            for vault in mine:
                looking.start_soon(known, vault)
        carrier = next((vault for vault in mine if vault.is_known), None)
        if carrier is None:
            raise KeyringError("no relay knows this device in its vaults any more; join them again by an invite")
        return await carrier.open_invite(seconds, role, confirm, lambda: list(self._syncs.values()))

    async def join(self, link: str, *, device_name: str = "", show_code: ShowCode | None = None) -> Vault:
        """Join the vault of an invite; waits until its inviter has approved. A repeat goes on where it stopped.

        By an invite into all vaults of a person (`Device.invite`) one of them is returned, and the others come by
        themselves from then on, also after a restart: see `awaited`.

        `show_code` is given the six digits of an invite from somebody else, which the inviter sees as well: show them,
        and have the two people compare them, by telephone or side by side. An invite with `confirm=True` needs it.

        Raises InviteError (malformed, used, expired, refused, or an older vault than promised), InsecureOriginError.
        """
        invite = invites.parse(link)
        check_origin(invite.origin)
        if invite.commitment and show_code is None:
            raise InviteError("this invite wants a code to be compared, and nobody would see it here: pass show_code")
        lock = self._joins.setdefault(invite.vault, trio.Lock())
        async with lock:  # two joins at once would take each other's answers
            await self._join(invite, device_name, show_code)
        await self._awaiting.came(invite.vault)
        return self._vaults[invite.vault]

    async def _join(self, invite: Invite, device_name: str, show_code: ShowCode | None) -> None:
        """Be let into the vault of an invite; by one into all vaults of a person, begin to fetch them."""
        identity = self._identities.present
        with self._connections.used(invite.origin, identity) as relay:
            if invite.for_all:
                approved = await joining.ask(relay, identity, invite, device_name, show_code)
                carrier = Promise(invite.vault, invite.origin, approved.link_seq, approved.link_hash)
                promises = [promise for promise in (carrier, *approved.others) if promise.vault not in self._vaults]
                for promise in promises:
                    check_origin(promise.origin)
                await self._awaiting.expect(promises)
                for promise in approved.others:
                    if promise.vault in self._syncs:
                        self._syncs[promise.vault].ask_again()
                if invite.vault in self._vaults:
                    await self._come_back(carrier)
            elif invite.vault in self._vaults:
                sync = self._syncs[invite.vault]
                with trio.move_on_after(joining.KNOCK_SECONDS_MAX):  # a member goes on without its relay
                    await sync.until(lambda sync: sync.knows_members or sync.is_refused)
                    if not sync.is_refused:
                        await joining.knock(relay, identity, invite, device_name)
                if sync.is_refused:
                    there = self._connections.to(invite.origin, sync.identity)
                    approved = await joining.ask(there, sync.identity, invite, device_name, show_code)
                    with suppress(moving.MoveError):  # it may be another name of the same relay
                        await moving.follow(sync, invite.origin)
                    await self._come_back(Promise(invite.vault, invite.origin, *approved[:2]))
            else:
                self._awaiting.stop(invite.vault)
                log = await joining.enter(relay, identity, invite, device_name, show_code)
                await self._begin(invite.origin, identity, *log)

    async def _come_back(self, promise: Promise) -> None:
        """Be a member again of a vault that is held here, and from which this device was removed."""
        sync = self._syncs[promise.vault]
        await added_again(sync, promise.link_seq)
        joining.check_promise(await sync.members.links(), promise.link_seq, promise.link_hash)

    async def _fetch(self, promise: Promise) -> None:
        """Hold a vault into which this device was let."""
        async with self._joins.setdefault(promise.vault, trio.Lock()):
            if promise.vault not in self._vaults:
                identity = self._identities.present
                with self._connections.used(promise.origin, identity) as relay:
                    log = await joining.fetch(relay, identity, promise)
                await self._begin(promise.origin, identity, *log)

    async def forget(self, vault: Vault, *, discard: bool = False, without_relay: bool = False) -> None:
        """Delete all that this device holds of a vault that is over for it (`vault.over`), or whose relay knows neither
        the device in it nor wants it made.

        `without_relay`: also of one whose relay does not answer, as where that is gone for good. Nobody is told: the
        device stays a member for the others, and for the relay should it come back, until an admin removes it.

        Durable when it returns. Raises UnsentError if writes were not sent, unless `discard` says that these are to be
        lost, and KeyringError for a vault that the device belongs to as far as it has heard.
        """
        alone = without_relay and vault.is_known is None
        if not alone and vault.over is None and not self._syncs[vault.id].is_strange:
            raise KeyringError(
                f"this device belongs to vault {vault.name}, as far as it has heard from the relay: leave it instead,"
                " so that the others know; if the relay is gone for good, forget it without the relay"
            )
        if not discard:  # who is refused goes on as it was
            await vault.check_sent()
        await self._part_with(vault.id, discard)

    async def recover(self, words: str, *, device_name: str = "") -> Vault:
        """Become an admin of the vault that 24 recovery words name, at the relay that this device was opened with.

        The words are used for this alone, and kept nowhere. Waits for the relay. A repeat goes on where it stopped.

        Raises RecoveryError (which says which word is wrong), NoRelayError, RelayRefusedError, KeyringError.
        """
        paper = recovery.parse(words)
        if self._relay is None:
            raise NoRelayError("recovery needs to know the vault's relay: open the device with relay='wss://…'")
        origin, identity = self._relay, self._identities.present
        lock = self._joins.setdefault(paper.vault, trio.Lock())
        async with lock:
            if paper.vault not in self._vaults:
                with self._connections.used(origin, paper.identity) as relay:
                    links = await admitted_by(paper, relay, identity, device_name)
                await self._begin(origin, identity, membership_of(links, cipher.verify), links)
        return self._vaults[paper.vault]

    async def _begin(
        self, origin: str, identity: DeviceIdentity, membership: Membership, links: Sequence[bytes]
    ) -> None:
        """Hold a vault from now on, as this member of it, and follow it. Durable when it returns."""
        member, keys = keyring.member_of(identity, membership), keyring.keys_from_log(identity, membership)
        name = keys.names(membership.members[FIRST_AUTHOR]).vault

        def hold(replica: Replica) -> HeldVault:
            with replica.transaction():
                held = replica.vaults.add(keys.vault, name, origin, member.author)
                replica.vaults.add_links(held.number, 1, list(links))
            return held

        with trio.CancelScope(shield=True):  # what is held is followed
            self._follow(await self._writer.run(hold), membership)
        self._awaiting.arrived(keys.vault)

    async def follow(self, vault: Vault, relay: str) -> None:
        """Go over to a relay to which an admin has moved a vault, where the former one cannot tell this device of it.

        Waits for the new relay, and believes it only with a membership log that says so; nothing is sent before. What
        is unsent is kept, and sent there. Raises MoveError, InsecureOriginError, LocalMisuse for what is no address.
        """
        await moving.follow(self._syncs[vault.id], relay)

    def link(self, origin: str) -> Link:
        """The connection to a relay, kept up from the first call on: its state, and why it is not up."""
        return self._connections.known(origin) or self._connections.to(origin, self._identities.present)

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

    async def _resume(self) -> None:
        """Go on where the last run stopped."""
        for held, links in await self._writer.run(_held_vaults):
            await self._hold(held, links)
        for vault in self.vaults:
            self._nursery.start_soon(vault.go_on_leaving)
        await self._awaiting.go_on()
        await self._forget_keys()

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
            with self._connections.used(held.origin, identity) as relay:
                with reading(held.id, relay) as reader:
                    links = await reader.read() or []
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
        link = self._connections.to(held.origin, identity)

        def told(collection: Held, changes: Sequence[Change] | None) -> None:
            vault.told(collection, changes)

        def watched(collection: Held) -> bool:
            return vault.watched(collection)

        def renew() -> None:
            self._nursery.start_soon(self._renew_keys, sync.identity)

        def move(held: HeldVault, identity: DeviceIdentity) -> None:
            left, under = sync.link, sync.identity
            link = self._connections.to(held.origin, identity)
            left.unfollow(held.id)
            sync.become(held, identity, link)
            link.follow(held.id, sync)
            self._connections.retire(left, under)
            if left.origin != held.origin:
                self._connections.let_go(left)

        def another_relay(origin: str) -> AbstractContextManager[Link]:
            return self._connections.visited(origin, sync.identity)

        sync = VaultSync(held, membership, identity, self._writer, link, told, watched, renew, move, another_relay)
        sync.enrol(self._identities.present)
        reader = self._open_reader(self.folder)
        forget = partial(self._part_with, held.id)
        vault = Vault(held, sync, self._writer, self.folder, forget, reader)
        self._vaults[held.id], self._syncs[held.id], self._kept[held.id] = vault, sync, Kept(vault, sync)
        self._kept[held.id].start(self._nursery)
        return vault

    async def _part_with(self, name: VaultId, discard: bool) -> None:
        """Hold a vault no more. Raises UnsentError, and holds it on."""
        kept = self._kept.pop(name, None)
        if kept is None:
            return
        with trio.CancelScope(shield=True):  # what is not held is not followed
            await kept.stop()
            try:
                number = kept.sync.held.number
                await self._writer.run(lambda replica: replica.parting.forget(number, discard=discard))
            except BaseException:
                self._kept[name] = kept
                kept.start(self._nursery)
                raise
            del self._vaults[name], self._syncs[name]
            await kept.vault.gone()
            self._connections.end(kept.sync.link)  # the relay may have, for good, as it listened to nothing else
            await self._forget_keys()

    def wake(self) -> None:
        """Reach the relays afresh, at once: the app came to the front. Nothing happens while it is suspended."""
        self._connections.wake()

    def network_changed(self) -> None:
        """The network may be another one than before: a hint, to be given as often as the host hears of it.

        Connections must answer now; those that do not within three seconds are made anew, at once, and so are those
        that are not up. Nothing happens while the device is suspended."""
        self._connections.network_changed()

    async def suspend(self) -> None:
        """The app goes to the background: say goodbye to the relays, and let no timer run for them until `resume`.

        Reading and writing go on, and what is unsent stays. Strict writes raise OfflineError, if they were not sent.
        When it returns, the connections are closed and what was edited before is durable: the process may be stopped.
        That takes a few seconds at most. Cancelled: suspended all the same. Again: it does nothing.
        """
        await self._connections.suspend()
        await self._writer.run(lambda _: None)  # what was edited before is behind this

    def resume(self) -> None:
        """The app is back: connect to the relays at once. Does nothing if the device is not suspended."""
        self._connections.resume()


def _folder(folder: str | Path) -> Path:
    return Path(folder).expanduser()


def _held_vaults(replica: Replica) -> list[tuple[HeldVault, list[bytes]]]:
    return [(held, replica.vaults.links(held.number)) for held in replica.vaults.all()]


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
