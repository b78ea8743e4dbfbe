"""A vault as an app uses it: collections, queries, its state of sync, and inviting devices."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from sealwire_client import invites, keyring
from sealwire_client.collection import Collection, make, tell
from sealwire_client.counters import Counters
from sealwire_client.counting import CounterSchema
from sealwire_client.encoding import schema_of
from sealwire_client.identity import DeviceIdentity
from sealwire_client.invites import Invite, InviteError
from sealwire_client.link import Link, RelayRefusedError
from sealwire_client.nursery import open_nursery
from sealwire_client.policies import Policy, counter
from sealwire_client.replica import Change, Column, HeldVault, Reader, Replica, ReplicaMisuse, Rows, Runner, SqlValue
from sealwire_client.replica import Collection as Held
from sealwire_client.schema import Schema
from sealwire_client.sending import explained
from sealwire_client.status import Status, VaultStatus
from sealwire_client.sync import VaultSync
from sealwire_client.transactions import Transaction, entered
from sealwire_client.writes import Write
from sealwire_protocol.errors import FaultCode
from sealwire_protocol.ids import DeviceKey, VaultId
from sealwire_protocol.membership import Role
from sealwire_protocol.messages import NO_REQUEST, AnswerJoin, AppendLink, Joined, Joining, OpenMailbox

T = TypeVar("T")

INVITE_SECONDS: Final = 600
"""The life of an invite for one's own device: ten minutes."""

LOOK_AGAIN_SECONDS: Final = 30.0
"""An inviter that hears nothing looks into the mailbox again so often: the joiner may have left its letter through
another relay process on the same database, of which nobody tells this connection."""

LINK_ATTEMPTS_MAX: Final = 5
"""Times that a link is signed anew because another admin's came first."""


class InviteExpiredError(Exception):
    """Nobody used the invite in time."""


@dataclass(frozen=True, slots=True)
class StuckWrite:
    """A write that the relay refused for good, kept on this device."""

    collection: str
    key: str
    deletes: bool
    reason: str
    together: bool
    """It was part of a transaction, whose other writes are stuck with it."""


@dataclass(frozen=True, slots=True)
class NewMember:
    """A device that has joined."""

    device: DeviceKey
    name: str


class Vault:
    """What is shared under one key hierarchy by a set of devices. Got from `Device`."""

    def __init__(
        self,
        held: HeldVault,
        sync: VaultSync,
        writer: Runner[Replica],
        folder: Path,
    ) -> None:
        self._held, self._sync, self._writer = held, sync, writer
        self._reader = Reader(folder)
        self._status = VaultStatus(sync, writer)
        self._collections: dict[str, Collection[Any]] = {}
        self._kinds: dict[str, tuple[type, Policy]] = {}

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
        """The address of its relay."""
        return self._held.origin

    async def collections(self) -> list[str]:
        """The names of its collections that hold something on this device, or did, in order."""
        return await self._writer.run(lambda replica: replica.vaults.collections(self._held.number))

    async def policy_of(self, collection: str) -> str | None:
        """The name of the policy that a collection was opened with last on this device; None if it never was."""
        return await self._writer.run(lambda replica: replica.vaults.policy_of(self._held.number, collection))

    async def known(self) -> None:
        """Wait until the relay has the vault, and has told this device of all members."""
        await self._sync.until(lambda sync: sync.knows_members)

    async def collection(self, name: str, kind: type[T], *, policy: Policy) -> Collection[T]:
        """Open a collection, or make it: `kind` is a dataclass, or `dict` for values without types.

        Raises EncodingError for a type that cannot be kept, ColumnsChangedError for one that contradicts what is
        here, ReplicaMisuse if it is open already with another type or policy. From now on the collection is kept in
        step with the relay.
        """
        return await self._open(name, kind, policy, schema_of(kind))

    async def counters(self, name: str) -> Counters:
        """Open a collection of counters, or make it. Raises as `collection` does."""
        return Counters(await self._open(name, int, counter(), CounterSchema()))

    async def _open(self, name: str, kind: type[T], policy: Policy, schema: Schema[T]) -> Collection[T]:
        if name in self._collections:
            return self._again(name, kind, policy)
        if not isinstance(policy, Policy):
            raise ReplicaMisuse(
                f"policy is what latest(), merge() or strict() return (with parentheses), not {policy!r}"
            )
        resolve = policy.resolver(schema)
        columns = [Column(*column) for column in schema.columns]
        stream = self._sync.keys.stream_id(name)

        def open_it(replica: Replica) -> Held:
            return replica.entries.open(
                self._held.number,
                name,
                stream,
                policy.kind,
                policy.name,
                columns,
                schema,
            )

        held = await self._writer.run(open_it)
        if name in self._collections:  # another task has opened it meanwhile
            return self._again(name, kind, policy)
        self._reader.show(held)
        opened = Collection(held, schema, policy, resolve, self._writer, self._reader, self._sync)
        self._collections[name], self._kinds[name] = opened, (kind, policy)
        self._sync.add(held, resolve)
        return opened

    def _again(self, name: str, kind: type[T], policy: Policy) -> Collection[T]:
        opened_with, opened_under = self._kinds[name]
        if opened_with is not kind or opened_under != policy:
            raise ReplicaMisuse(
                f"collection {name} is open already, with {opened_with.__name__} and policy {opened_under.name}; "
                "open it with the same ones"
            )
        return self._collections[name]

    def select(self, sql: str, values: Sequence[SqlValue] = ()) -> Rows:
        """Run a SELECT over the opened collections, by their names; columns are `key` and the fields.

        Local, and blocks this thread as long as it takes. Raises QueryError.
        """
        return self._reader.select(sql, values)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction[Collection[Any]]]:
        """Edits of this vault's collections in the block are made together at its end: durable here in one commit,
        pushed as one, all or none. An exception that leaves the block makes none of them.

        Where a strict collection takes part, the end of the block waits for the relay, and each edit is made on
        condition that its entry is still what the block has read with `get`; what it has only read is not held.

        Raises TransactionError (too large for one push, within another transaction, another vault's collection), and
        OfflineError, ConflictError or StrictError as a strict `put` does.
        """
        transaction: Transaction[Collection[Any]] = Transaction(self._sync)
        with entered(transaction):
            yield transaction
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
        return await self._sync.retry(self._opened(collection), key)

    async def discard(self, collection: str, key: str) -> bool:
        """Give up a stuck write for good: the entry shows again what the log says. False if there is none.

        Raises ReplicaMisuse if the collection is not open."""
        return await self._sync.discard(self._opened(collection), key)

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

    async def leave(self) -> None:
        """Keep for the next run what this one knows. Durable when it returns. Before the connection ends."""
        await self._status.close()

    def close(self) -> None:
        """Let go of the file."""
        self._reader.close()

    # --- the state of sync

    async def synced(self) -> None:
        """Wait until everything edited before is confirmed by the relay, and everything known is applied here.

        Waits for the relay as long as it takes, and for collections that are open. What the relay has refused for
        good is not waited for: see `status().stuck`.
        """
        await self._sync.synced()

    async def status(self) -> Status:
        """How things stand now: with the relay, and with the other devices."""
        return await self._status.look()

    async def keep_status(self) -> None:
        """Note when everything is in step, for `status`, until cancelled. For `Device`."""
        await self._status.run()

    # --- inviting

    async def invite(self, *, seconds: int = INVITE_SECONDS, role: Role = Role.WRITER) -> "PendingInvite":
        """Open an invite for one device. Needs the relay: waits for it. Raises RelayRefusedError, KeyringError.

        Show `invite.link` to whoever is invited, alone, and await `invite.joined()`, which approves by itself.
        """
        await self._sync.until(lambda sync: sync.may_sign)
        membership = self._sync.membership
        invite = invites.new_invite(
            self._held.origin, self.id, membership.head, membership.last_hash, self._sync.identity.device_key
        )
        pending = PendingInvite(invite, seconds, role, self._sync, self._sync.identity, self._sync.link)
        await pending.open()
        return pending


class PendingInvite:
    """An invite that waits to be used, once."""

    def __init__(
        self, invite: Invite, seconds: int, role: Role, sync: VaultSync, identity: DeviceIdentity, link: Link
    ) -> None:
        self._invite, self._seconds, self._role = invite, seconds, role
        self._sync, self._identity, self._link = sync, identity, link
        self._expires = trio.current_time() + seconds
        self._letter = trio.Event()
        self._sealed = b""

    @property
    def link(self) -> str:
        """The invite as text. Whoever has it may ask to join, once: show it to the invited person alone."""
        return self._invite.encode()

    async def open(self) -> None:
        """Open the mailbox at the relay, or open it again after a lost connection."""
        self._link.expect_mail(self._invite.mailbox, self._receive)
        left = max(1, int(self._expires - trio.current_time()))
        await self._link.request(OpenMailbox(NO_REQUEST, self._sync.held.id, self._invite.mailbox, left))

    def _receive(self, mail: Joining | Joined) -> None:
        if isinstance(mail, Joining):
            self._sealed = mail.sealed
            self._letter.set()

    async def joined(self) -> NewMember:
        """Wait for the one request, approve it, and tell the joiner. Raises InviteExpiredError, RelayRefusedError."""
        try:
            with trio.fail_at(self._expires):
                while True:
                    await self._wait_for_letter()
                    try:
                        request = invites.open_request(self._invite, self._sealed)
                    except InviteError:
                        self._letter = trio.Event()
                        continue
                    return await self._approve(request)
        except trio.TooSlowError:
            raise InviteExpiredError("nobody used the invite in time; make a new one") from None
        finally:
            self._link.expect_mail(self._invite.mailbox, None)

    async def _wait_for_letter(self) -> None:
        """Wait for the joiner's letter, across lost connections and several relay processes."""
        while not self._letter.is_set():
            with trio.move_on_after(LOOK_AGAIN_SECONDS):
                await self._link.wait_while_online(self._letter)
            if not self._letter.is_set():
                await self.open()

    async def _approve(self, request: invites.Request) -> NewMember:
        sync = self._sync
        for _ in range(LINK_ATTEMPTS_MAX):
            member = sync.membership.by_device(request.device)
            if member is not None:
                seq = int(member.author)
                approved = invites.Approved(seq, await sync.members.hash_of_link(seq))
                sealed = invites.seal_answer(self._invite, self._identity, request.device, approved)
                await self._link.request(AnswerJoin(NO_REQUEST, self._invite.mailbox, sealed))
                return NewMember(request.device, request.name)
            async with sync.members.appending:
                await self._append(request)
        raise InviteError("other devices keep changing the vault's members; try again")

    async def _append(self, request: invites.Request) -> None:
        """Ask for the next link, until there is one, whosever it is. It is not asked for any longer then: a relay that
        is set back afterwards would take it in the place of the one that is known."""
        sync, head = self._sync, self._sync.membership.head
        if sync.membership.by_device(request.device) is not None:
            return
        raw = keyring.add_device_link(
            self._identity, sync.membership, sync.keys, request.device, request.box_key, self._role, request.name
        )

        async def ask() -> None:
            try:
                await self._link.request(AppendLink(NO_REQUEST, sync.held.id, raw))
            except RelayRefusedError as error:
                if error.fault.code is not FaultCode.LINK_CONFLICT:
                    raise

        async with open_nursery() as asking:
            asking.start_soon(ask)
            await sync.grown_beyond(head)
            asking.cancel_scope.cancel()
