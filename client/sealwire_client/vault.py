"""A vault as an app uses it: collections, queries, its state of sync, and inviting devices."""

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from sealwire_client import invites, recovery
from sealwire_client.admitting import admit, is_admin
from sealwire_client.belonging import synced, until_may_sign
from sealwire_client.collection import Collection, make, tell
from sealwire_client.counters import Counters
from sealwire_client.counting import CounterSchema
from sealwire_client.differences import Difference
from sealwire_client.encoding import schema_of
from sealwire_client.invites import Request
from sealwire_client.inviting import PendingInvite, Syncs
from sealwire_client.keyring import KeyringError
from sealwire_client.link import RelayRefusedError
from sealwire_client.live import Live, LiveQueries
from sealwire_client.membering import VaultMember, begin_epoch, members_of
from sealwire_client.moving import move_vault
from sealwire_client.parting import end, leave
from sealwire_client.policies import Policy, counter
from sealwire_client.recovery import RecoveryWords
from sealwire_client.replica import (
    Change,
    Column,
    HeldVault,
    Reader,
    Replica,
    ReplicaMisuse,
    Rows,
    Runner,
    SqlValue,
    Touches,
    UnsentError,
    VaultGoneError,
)
from sealwire_client.replica import Collection as Held
from sealwire_client.schema import Schema
from sealwire_client.sealing import UNREAD_BY_ALL, summer
from sealwire_client.sending import explained
from sealwire_client.status import Status, VaultStatus
from sealwire_client.stream import waits_for_links
from sealwire_client.sync import VaultSync
from sealwire_client.transactions import Transaction, entered
from sealwire_client.wordlist import head_words
from sealwire_client.writes import Write
from sealwire_protocol.ids import DeviceKey, VaultId
from sealwire_protocol.links import Role
from sealwire_protocol.messages import NO_REQUEST, CreateVault
from sealwire_protocol.registration import token_bytes

T = TypeVar("T")

_log = logging.getLogger("sealwire.device")

INVITE_SECONDS: Final = 600
"""The life of an invite for one's own device: ten minutes."""

CONFIRMED_SECONDS: Final = 86_400
"""The life of an invite for somebody else's device: a day, to reach them."""


@dataclass(frozen=True, slots=True)
class StuckWrite:
    """A write that the relay refused for good, kept on this device."""

    collection: str
    key: str
    deletes: bool
    reason: str
    together: bool
    """It was part of a transaction, whose other writes are stuck with it."""


class Vault:
    """What is shared under one key hierarchy by a set of devices. Got from `Device`."""

    def __init__(
        self,
        held: HeldVault,
        sync: VaultSync,
        writer: Runner[Replica],
        folder: Path,
        forget: Callable[[bool], Awaitable[None]],
        reader: Reader,
    ) -> None:
        self._forget = forget
        self._held, self._sync, self._writer = held, sync, writer
        self._reader = reader
        self._live = LiveQueries(folder, writer, reader)
        self._status = VaultStatus(sync, writer)
        self._collections: dict[str, Collection[Any]] = {}
        self._kinds: dict[str, tuple[type, Policy]] = {}
        self._leaving = trio.Lock()

    @property
    def id(self) -> VaultId:
        """The vault's id: a hash of its first membership link."""
        return self._held.id

    @property
    def name(self) -> str:
        """What its creator called it."""
        return self._held.name

    @property
    def origin(self) -> str:
        """The address of its relay. It changes when the vault moves."""
        return self._sync.held.origin

    async def collections(self) -> list[str]:
        """The names of its collections that hold something on this device, or did, in order."""
        return await self._writer.run(lambda replica: replica.vaults.collections(self._held.number))

    async def policy_of(self, collection: str) -> str | None:
        """The name of the policy that a collection was opened with last on this device; None if it never was."""
        return await self._writer.run(lambda replica: replica.vaults.policy_of(self._held.number, collection))

    @property
    def is_known(self) -> bool | None:
        """True once the relay has told this device of all members, on this connection; False if it said that it has no
        such vault for this device (`Device.forget` takes that for an answer). None: it has said neither."""
        return True if self._sync.knows_members else False if self._sync.is_strange else None

    async def known(self) -> bool:
        """Wait until the relay has the vault, and has told this device of all members. False: it says that it has no
        such vault for this device, or the vault is over (`over`)."""
        await self._sync.until(lambda sync: self.is_known is not None or self.over is not None)
        return self.is_known is True and self.over is None

    async def register(self, token: str) -> None:
        """Show the relay another registration token, which is durable when this returns.

        A relay that does not know the vault is shown it from the next connection on, which is made at once; what it
        says shows in `status()`. One that knows it is shown it now, so that the vault may store as much as the token
        allows; writes that are stuck are retried by hand. Raises LocalMisuse for a text that is no token, and
        RelayRefusedError for one that would do and is used up.
        """
        shown, number = token_bytes(token), self._held.number
        await self._writer.run(lambda replica: replica.vaults.keep_token(number, shown))
        if not self._sync.knows_members:
            self._sync.link.dial_anew("the relay is to be shown another registration token")
            return
        genesis = (await self._sync.members.links())[0]
        await self._sync.link.request(CreateVault(NO_REQUEST, genesis, shown))

    async def collection(self, name: str, kind: type[T], *, policy: Policy, signed: bool = False) -> Collection[T]:
        """Open a collection, or make it: `kind` is a dataclass, or `dict` for values without types.

        `signed`: its entries are signed by their authors, and none is taken in that is not by a member who may write,
        whatever the relay does. Every device must open it so: one of the same name that is not is another collection.

        Raises EncodingError for a type that cannot be kept, ColumnsChangedError for one that contradicts what is
        here, NoSearchError for one that cannot be searched here, ReplicaMisuse if it is open already with another type
        or policy, or is signed here and was not to be, or the reverse. From now on the collection is kept in step with
        the relay.
        """
        return await self._open(name, kind, policy, schema_of(kind), signed)

    async def counters(self, name: str, *, signed: bool = False) -> Counters:
        """Open a collection of counters, or make it. Raises as `collection` does."""
        return Counters(await self._open(name, int, counter(), CounterSchema(), signed))

    async def is_signed(self, collection: str) -> bool:
        """True if this device has a collection of that name whose entries are signed."""
        return await self._writer.run(lambda replica: replica.vaults.is_signed(self._held.number, collection))

    async def _open(self, name: str, kind: type[T], policy: Policy, schema: Schema[T], signed: bool) -> Collection[T]:
        self._sync.check_here()
        if name in self._collections:
            return self._again(name, kind, policy, signed)
        if not isinstance(policy, Policy):
            raise ReplicaMisuse(
                f"policy is what latest(), merge() or strict() return (with parentheses), not {policy!r}"
            )
        if name.startswith("_"):
            raise ReplicaMisuse(f"{name!r} cannot name a collection: begin with a letter")
        resolve, declared = policy.resolver(schema), schema.declared
        columns = [Column(*column) for column in schema.columns]
        stream = self._sync.keys.stream_id(name, signed)

        sum_of = summer(self._sync.keys.stream(stream))

        def open_it(replica: Replica) -> tuple[Held, bool, Touches]:
            with replica.transaction():
                of = self._held.number, name, stream, policy.kind, policy.name
                held = replica.entries.open(*of, columns, schema, signed, declared)
                replica.keep_sum(held, sum_of, [reason.value for reason in UNREAD_BY_ALL])
                return held, waits_for_links(replica, held), replica.database.touches

        held, waits, touches = await self._writer.run(open_it)
        if name in self._collections:  # another task has opened it meanwhile
            return self._again(name, kind, policy, signed)
        self._reader.show(held)
        self._live.show(held, touches)
        opened = Collection(held, schema, policy, resolve, self._writer, self._reader, self._sync, self._live)
        self._collections[name], self._kinds[name] = opened, (kind, policy)
        self._sync.add(held, resolve, waits)
        return opened

    def _again(self, name: str, kind: type[T], policy: Policy, signed: bool) -> Collection[T]:
        opened, (opened_with, opened_under) = self._collections[name], self._kinds[name]
        if opened_with is not kind or opened_under != policy or opened.held.signed != signed:
            raise ReplicaMisuse(
                f"collection {name} is open already, with {opened_with.__name__}, policy {opened_under.name} and"
                f" signed={opened.held.signed}; open it with the same ones"
            )
        return opened

    def select(self, sql: str, values: Sequence[SqlValue] = ()) -> Rows:
        """Run a SELECT over the opened collections, by their names; columns are `key` and the fields. What is
        `searchable` in `items` is found in `items_search`, by `items_search MATCH ?`, with its `key` and `rank`.

        Local, and blocks this thread as long as it takes. Raises QueryError.
        """
        return self._reader.select(sql, values)

    def live(
        self, sql: str, values: Sequence[SqlValue] = (), *, key: str | Sequence[str] | None = None
    ) -> AbstractAsyncContextManager[Live[Difference]]:
        """While the block lasts: `async for difference in live` gives first the whole result of a SELECT, as `select`
        takes it, then what became of it since, whenever there is something: rows inserted, updated, deleted, and moved
        where the query has an ORDER BY.

        A row is known by the columns in `key`, or by the one called `key`, or else by all of them. Only commits that
        touch a collection it reads, from here or other devices, make the query run again; it runs in a thread, and
        waits neither for the writer nor for the network. Commits in between are told together, and a reader that is
        slow gets the newest state. What depends on more than collections (the time, chance) is looked at then only.

        Raises QueryError at the beginning of the block if the SQL is wrong, does more than read, or gives two rows one
        key; ReplicaClosedError, VaultGoneError. When the device is closed or the vault goes, iteration ends.
        """
        return self._live.open(sql, values, key, lambda difference: difference)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction[Collection[Any]]]:
        """Edits of this vault's collections in the block are made together at its end: durable here in one commit,
        pushed as one, all or none. An exception that leaves the block makes none of them.

        Where a strict collection takes part, the end of the block waits for the relay, and each edit is made on
        condition that its entry is still what the block has read with `get`; what it has only read is not held.

        Raises TransactionError (too large for one push, within another transaction, another vault's collection), and
        OfflineError, ConflictError or StrictError as a strict `put` does.
        """
        transaction = self.begun()
        with entered(transaction):
            yield transaction
        await self.carry_out(transaction)

    def begun(self) -> Transaction[Collection[Any]]:
        """A transaction without edits. For `transaction`, wherever its block runs."""
        return Transaction(self._sync)

    async def carry_out(self, transaction: Transaction[Collection[Any]]) -> None:
        """Make the edits of a transaction whose block has ended. For `transaction`, wherever its block ran."""
        parts = transaction.parts
        if transaction.strict:
            await self._sync.strict(transaction.strict_writes())
            transaction.made(Write(self._sync, ()))
            return
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.CancelScope(shield=True):  # what is made is told and sent
            together = sum(len(edits) for _, edits in parts) > 1
            made = await self._writer.run(make, parts, together=together, seen=transaction.seen)
        tell(made)
        self._sync.edited()
        transaction.made(Write(self._sync, made.marks))

    async def stuck(self) -> list[StuckWrite]:
        """Writes that the relay refused for good, by collection and key. They are kept, and shown by their collections
        (strict ones apart), until they are tried again, replaced by another write of the key, or discarded."""
        found = await self._writer.run(lambda replica: replica.outbox.aside.of_vault(self._held.number))
        return [
            StuckWrite(name, stuck.key, stuck.value is None, explained(stuck.reason), stuck.together)
            for name, stuck in found
        ]

    async def retry(self, collection: str, key: str) -> bool:
        """Send a stuck write again, with all of its transaction. False if there is none. Raises ReplicaMisuse if the
        collection is not open, or if the write was strict: its app must look and decide anew."""
        return await self._sync.aside.retry(self._opened(collection), key)

    async def discard(self, collection: str, key: str) -> bool:
        """Give up a stuck write for good: the entry shows again what the log says. False if there is none.

        Raises ReplicaMisuse if the collection is not open."""
        return await self._sync.aside.discard(self._opened(collection), key)

    def _opened(self, collection: str) -> Held:
        if collection not in self._collections:
            raise ReplicaMisuse(f"collection {collection} is not open: open it first, so that its values can be read")
        return self._collections[collection].held

    def told(self, held: Held, changes: Sequence[Change] | None) -> None:
        """Pass on what a delivery changed."""
        collection = self._collections.get(held.name)
        if collection is not None:
            collection.tell(changes)

    def watched(self, held: Held) -> bool:
        """True if anybody listens to changes of a collection. May be asked from any thread."""
        collection = self._collections.get(held.name)
        return collection is not None and collection.watched

    async def remember(self) -> None:
        """Keep for the next run what this one knows. Durable when it returns. Before the connection ends."""
        await self._status.close()

    async def close(self) -> None:
        """Let go of the file. Live queries end."""
        self._reader.close()
        await self._live.close()

    async def gone(self) -> None:
        """The vault is not on this device any more: who listens is told so, and who reads."""
        for collection in self._collections.values():
            collection.end()
        self._reader.close(gone=True)
        await self._live.close()

    # --- the state of sync

    async def synced(self) -> None:
        """Wait until everything edited before is confirmed by the relay, and everything known is applied here.

        Waits for the relay as long as it takes, and for collections that are open; `status().last_error` tells why it
        takes long. What the relay has refused for good is not waited for: see `status().stuck`.

        Raises VaultOverError if the vault is over for this device (`over`), also if it comes to that meanwhile, and
        VaultGoneError once it is not on this device any more.
        """
        await synced(self._sync)

    async def status(self) -> Status:
        """How things stand now: with the relay, and with the other devices."""
        return await self._status.look()

    async def dismiss(self) -> int:
        """Let go of what shows that the relay lies (`status().disputed`), now that somebody has looked into it: strict
        writes are made again. It stays in the replica, and comes up anew with the next statement that differs.
        Returns how many disputes there were.
        """
        return await self._writer.run(lambda replica: replica.disputes.dismiss(self._held.number))

    async def keep_status(self) -> None:
        """Note when everything is in step, for `status`, until cancelled. For `Device`."""
        await self._status.run()

    # --- members

    @property
    def members(self) -> tuple[VaultMember, ...]:
        """The devices that belong to the vault, as far as this one has heard."""
        return members_of(self._sync)

    @property
    def head(self) -> tuple[int, str]:
        """How many links the vault's membership log has here, and eight words for all that they say. Two people whose
        devices show the same have been shown the same members and keys, whatever their relay is up to."""
        log = self._sync.membership
        return log.head, head_words(self.id, log.head, log.last_hash)

    async def remove(self, device: DeviceKey) -> None:
        """Remove a device, and change the vault's key: it reads nothing that is written from then on, and what it
        writes is refused. What it holds it keeps. Needs the relay: waits for it. Raises RelayRefusedError, KeyringError
        if this device is no admin (VaultOverError: the vault is over for it), or the other no member."""
        await begin_epoch(self._sync, device)

    async def rotate(self) -> None:
        """Change the vault's key. Needs the relay: waits for it. Raises RelayRefusedError, KeyringError if this device
        is no admin (VaultOverError: the vault is over for it)."""
        await begin_epoch(self._sync)

    async def move(
        self, relay: str, *, token: str | None = None, without_old: bool = False, force: bool = False
    ) -> None:
        """Move the vault to another relay, to which all of its devices follow as soon as they hear of it. What each
        holds goes there from the devices; nothing needs to be copied between relays. Returns when the new relay has the
        vault's members, and this device is there; the entries follow.

        Needs both relays: waits for them as long as it takes; `status().last_error` names the one that is not there.
        The new one is asked first whether it takes the vault in, with a registration `token` if it wants one. Cancelled
        before it has answered, nothing was moved; later, that is left open. `without_old`: the present relay is gone
        for good; other devices must be told by hand then, see `Device.follow`. `force`: although collections are not
        open here, so that this device may lack what was written to them last.

        Raises MoveError (the vault is there already, collections are not open, another admin moved it first),
        RelayRefusedError, KeyringError if this device is no admin (VaultOverError: the vault is over for it),
        InsecureOriginError, LocalMisuse for what is no address or no token.
        """
        shown = b"" if token is None else token_bytes(token)
        await move_vault(self._sync, self._writer, relay, shown, without_old=without_old, force=force)

    # --- parting

    @property
    def over(self) -> str | None:
        """Why this vault is none for this device any more, in a sentence: it was deleted, or the device was removed.
        What it holds can still be read, until `device.forget(vault)`. None: it belongs to it, as far as is known."""
        return self._sync.over

    async def leave(self, *, discard: bool = False) -> None:
        """Be a member no more, and delete all that this device holds of the vault. Admins change the key then, so that
        it reads nothing that is written later; what the others have of it they keep.

        Needs the relay: waits for it. From when the relay is asked on, it goes on with the next run if this one is
        cancelled or ends; asked for once more, it returns when the vault is gone. Raises UnsentError if writes are not
        sent, unless `discard` says that these are to be lost; KeyringError if no admin would be left (make another
        device one, or delete the vault), RelayRefusedError.
        """
        async with self._leaving:
            if not self._sync.gone:
                await leave(self._sync, self._writer, discard=discard)
                await self._forget(discard)

    async def go_on_leaving(self) -> None:
        """Do what an earlier run has begun, if it has begun to leave. For `Device`."""
        leaving = await self._writer.run(lambda replica: replica.parting.intended(self._held.number))
        if leaving is None:
            return
        try:
            await self.leave(discard=leaving.discard)
        except VaultGoneError:
            pass  # it was forgotten meanwhile
        except (UnsentError, KeyringError, RelayRefusedError) as error:
            _log.error("vault %s was to be left, and was not: %s", self._held.name, error)

    async def delete(self) -> None:
        """Delete the vault for all of its devices: the relay keeps nothing that was written in it, and takes nothing
        more. Each device, this one too, keeps what it holds until `device.forget(vault)`. It cannot be undone.

        Needs the relay: waits for it. Raises KeyringError if this device is no admin, RelayRefusedError.
        """
        await end(self._sync)

    async def check_sent(self) -> None:
        """Raises UnsentError if writes of this vault are on this device alone. For `Device`."""
        await self._writer.run(lambda replica: replica.parting.check_sent(self._held.number))

    # --- inviting

    async def invite(
        self, *, seconds: int | None = None, role: Role = Role.WRITER, confirm: bool = False
    ) -> PendingInvite:
        """Open an invite for one device. Needs the relay: waits for it. Raises RelayRefusedError, KeyringError if this
        device is no admin (VaultOverError: the vault is over for it).

        Show `invite.link` to whoever is invited, alone, and await `invite.joined()`, which approves by itself. It lasts
        ten minutes. `confirm` is for a device of somebody else: two people compare a code (`invite.joined(agree)`), and
        it lasts a day.
        """
        return await self.open_invite(seconds, role, confirm)

    async def open_invite(
        self, seconds: int | None, role: Role, confirm: bool, syncs: Syncs | None = None
    ) -> PendingInvite:
        """Open an invite: into this vault, or through it into those of `syncs` as well. For `Device`."""
        await self._may_add_devices()
        membership, identity = self._sync.membership, self._sync.identity
        nonce = os.urandom(invites.NONCE_BYTES) if confirm else b""
        invite = invites.new_invite(
            self.origin,
            self.id,
            membership.head,
            membership.last_hash,
            identity.device_key,
            invites.committed(nonce) if confirm else b"",
            for_all=syncs is not None,
        )
        if seconds is None:
            seconds = CONFIRMED_SECONDS if confirm else INVITE_SECONDS
        pending = PendingInvite(invite, seconds, role, self._sync, identity, self._sync.link, nonce, syncs)
        await pending.open()
        return pending

    async def recovery_words(self) -> RecoveryWords:
        """Make a device on paper: 24 words, by which `Device.recover` becomes an admin here on an empty machine.

        They are a member from now on, named "recovery words", and are kept nowhere: show `reveal()` to their owner.
        Earlier ones stay good until they are removed. Needs the relay: waits for it. Raises RelayRefusedError,
        KeyringError if this device is no admin.
        """
        await self._may_add_devices()
        words = recovery.new_words(self.id)
        paper = Request(words.identity.device_key, words.identity.box_key, recovery.NAME)
        await admit(paper, Role.ADMIN, self._sync, self._sync.identity)
        return words

    async def _may_add_devices(self) -> None:
        """Wait until the members are known. Raises KeyringError if this device is no admin among them."""
        await until_may_sign(self._sync)
        if not is_admin(self._sync):
            raise KeyringError("this device may not add devices to the vault; do it on a device that is an admin")
