"""A device for asyncio programs: the same classes, under the same names, as `sealwire_client` has for trio.

    from sealwire_client.aio import Device

    async with Device.open("~/.myapp") as device:
        todos = await device.vault("home").collection("todos", Todo, policy=latest())
        await todos.put("t1", Todo("buy milk"))

The device lives in a thread of its own. A task that is cancelled cancels what it waits for, as on trio. What does not
wait can be called from any thread; what waits, from tasks of the event loop that has opened the device.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Generic, ParamSpec, TypeVar, overload

import trio

import sealwire_client as on_trio
from sealwire_client.device import OpenWriter
from sealwire_client.differences import Difference
from sealwire_client.findings import Findings
from sealwire_client.hosted import (
    Hosted,
    HostedCollection,
    HostedCounters,
    HostedDevice,
    HostedInvite,
    HostedTransaction,
    HostedVault,
    as_on_trio,
)
from sealwire_client.hosting import Call, Host, soon
from sealwire_client.inviting import Agree, NewMember
from sealwire_client.joining import ShowCode
from sealwire_client.link import Dialler
from sealwire_client.policies import Policy
from sealwire_client.recovery import RecoveryWords
from sealwire_client.replica import Change, SharedReader, SqlValue, Writer
from sealwire_client.status import Status
from sealwire_client.transactions import entered
from sealwire_client.transport import dial
from sealwire_client.vault import StuckWrite
from sealwire_client.watching import Watched
from sealwire_client.writes import Standing
from sealwire_protocol.ids import DeviceKey
from sealwire_protocol.links import Role

__all__ = ["Changes", "Collection", "Counters", "Device", "Live", "PendingInvite", "Transaction", "Vault", "Write"]

T = TypeVar("T")
D = TypeVar("D")
R = TypeVar("R")
P = ParamSpec("P")


class _Caller:
    """A task that waits for something in the device's thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._woken = self._loop.create_future()
        self.has_ended = False
        """Seen from the event loop."""
        self._failure: BaseException | None = None

    def ended(self) -> None:
        """What it waits for has ended. May be called from any thread."""
        self.post(self._end)

    async def until_ended(self) -> None:
        """Wait. Raises what a function has raised that was told something. Cancelled: what is waited for goes on."""
        while not self.has_ended:
            if self._failure is not None:
                raise self._failure
            if self._woken.done():
                self._woken = self._loop.create_future()
            await self._woken

    async def wait(self, host: Host, call: Call[R]) -> R:
        """Wait for a call, and what came of it. Cancelled: so is the call, which has ended when this raises."""
        try:
            await self.until_ended()
        except BaseException:
            host.cancel(call)
            self._failure = None
            while not self.has_ended:
                try:
                    await self.until_ended()
                except asyncio.CancelledError:
                    pass  # it is cancelled, and this goes on being so below
            raise
        return call.result

    def tells(self, function: Callable[P, None]) -> Callable[P, None]:
        """A function for the device's thread that has this one called by the event loop, and does not wait."""

        def told(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                function(*args, **kwargs)
            except BaseException as error:
                self._failure = error
                self._wake()

        def tell(*args: P.args, **kwargs: P.kwargs) -> None:
            self.post(partial(told, *args, **kwargs))

        return tell

    def asks(self, function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        """A function for the device's thread that has this one awaited by the event loop, and waits for it."""

        async def ask(*args: P.args, **kwargs: P.kwargs) -> R:
            token, answered = trio.lowlevel.current_trio_token(), trio.Event()
            tasks: list[asyncio.Future[R]] = []

            def begin() -> None:
                tasks.append(asyncio.ensure_future(function(*args, **kwargs)))
                tasks[0].add_done_callback(lambda _: soon(token, answered.set))

            self.post(begin)
            try:
                await answered.wait()
            except trio.Cancelled:
                self.post(lambda: [task.cancel() for task in tasks])
                raise
            return tasks[0].result()

        return ask

    def post(self, function: Callable[[], object]) -> None:
        """Have a function called by the event loop. May be called from any thread."""
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            pass  # the loop was closed: nobody waits any more

    def _end(self) -> None:
        self.has_ended = True
        self._wake()

    def _wake(self) -> None:
        if not self._woken.done():
            self._woken.set_result(None)


async def _call(host: Host, function: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs) -> R:
    """What a method of the device's own says, carried out in its thread."""
    caller = _Caller()
    return await caller.wait(host, host.start(Call(partial(function, *args, **kwargs), caller.ended)))


class _Block:
    """The task that has opened a device, which is interrupted when the device fails, as a block of trio's is."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        self._inside = self._interrupted = False
        self.gone = _Caller()

    def enter(self) -> None:
        """The block begins."""
        self._inside = True

    async def left(self, host: Host, error: BaseException | None) -> None:
        """The block has ended, with an error or without: close the device, and raise what is to be raised. Not cut
        short by cancellation."""
        self._inside = False
        host.end()
        while not self.gone.has_ended or (self._interrupted and not isinstance(error, asyncio.CancelledError)):
            try:
                await self.gone.until_ended()
                await asyncio.sleep(0)  # a cancellation that was asked for comes now
                break
            except asyncio.CancelledError as cancelled:
                error = cancelled
        host.join()
        if self._interrupted and self._task.uncancel() <= self._cancelling:
            error = None if isinstance(error, asyncio.CancelledError) else error
        if error is not None:
            raise error
        if host.failure is not None:
            raise host.failure

    def ended(self) -> None:
        """The device is there no more. May be called from any thread."""
        self.gone.ended()
        self.gone.post(self._interrupt)

    def _interrupt(self) -> None:
        if self._inside:
            self._interrupted = True
            self._task.cancel()


@asynccontextmanager
async def _hosted(host: Host) -> AsyncIterator[None]:
    """The device is open for the length of the block."""
    opening, block = _Caller(), _Block()
    host.begin(opening.ended, block.ended)
    error: BaseException | None = None
    try:
        await opening.until_ended()
        host.check()
        block.enter()
        yield
    except BaseException as raised:
        error = raised
    await block.left(host, error)


@as_on_trio(on_trio.Write)
class Write(Hosted[on_trio.Write]):
    """See `sealwire_client.Write`."""

    async def durable(self, *, wait: bool = True) -> Standing:
        return await _call(self._host, self._inner.durable, wait=wait)


@as_on_trio(on_trio.Transaction)
class Transaction(HostedTransaction):
    """See `sealwire_client.Transaction`."""

    @property
    def write(self) -> Write:
        return Write(self._host, self._inner.write)

    async def durable(self, *, wait: bool = True) -> Standing:
        return await _call(self._host, self._inner.durable, wait=wait)


class _Steps(Hosted[AsyncIterator[D]], Generic[D]):
    """What comes step by step. What comes while nobody waits any more, because of a cancellation, comes with the next
    step."""

    def __init__(self, host: Host, inner: AsyncIterator[D]) -> None:
        super().__init__(host, inner)
        self._step: tuple[_Caller, Call[D]] | None = None

    def __aiter__(self) -> AsyncIterator[D]:
        return self

    async def __anext__(self) -> D:
        if self._step is None:
            caller = _Caller()
            self._step = caller, self._host.start(Call(self._inner.__anext__, caller.ended))
        caller, call = self._step
        await caller.until_ended()
        self._step = None
        return call.result

    def _close(self) -> None:
        if self._step is not None:
            self._host.cancel(self._step[1])


@as_on_trio(on_trio.Changes)
class Changes(_Steps[list[Change] | None]):
    """See `sealwire_client.Changes`."""


@as_on_trio(on_trio.Live)
class Live(_Steps[D]):
    """See `sealwire_client.Live`."""


@contextmanager
def _listening(host: Host, block: AbstractContextManager[on_trio.Changes]) -> Iterator[Changes]:
    changes = Changes(host, host.ask(block.__enter__))
    try:
        yield changes
    finally:
        changes._close()
        host.soon(lambda: block.__exit__(None, None, None))


@asynccontextmanager
async def _following(host: Host, block: AbstractAsyncContextManager[on_trio.Live[D]]) -> AsyncIterator[Live[D]]:
    try:
        live = Live(host, await _call(host, block.__aenter__))
        try:
            yield live
        finally:
            live._close()
    finally:
        host.leave(partial(block.__aexit__, GeneratorExit, GeneratorExit(), None))


@as_on_trio(on_trio.Collection)
class Collection(HostedCollection[T]):
    """See `sealwire_client.Collection`."""

    async def put(self, key: str, value: T) -> Write:
        return Write(self._host, await _call(self._host, self._inner.put, key, value))

    async def put_many(self, items: Mapping[str, T] | Iterable[tuple[str, T]]) -> int:
        return sum([await _call(self._host, self._inner.put_many, portion) for portion in self._portions(items)])

    async def delete(self, key: str) -> Write:
        return Write(self._host, await _call(self._host, self._inner.delete, key))

    @overload
    def watch(self, key: str) -> AbstractAsyncContextManager[Live[Watched[T]]]: ...

    @overload
    def watch(self, *, prefix: str = "") -> AbstractAsyncContextManager[Live[Watched[T]]]: ...

    def watch(self, key: str | None = None, *, prefix: str = "") -> AbstractAsyncContextManager[Live[Watched[T]]]:
        return _following(self._host, self._inner.watch(prefix=prefix) if key is None else self._inner.watch(key))

    def changes(self) -> AbstractContextManager[Changes]:
        return _listening(self._host, self._inner.changes())


@as_on_trio(on_trio.Counters)
class Counters(HostedCounters):
    """See `sealwire_client.Counters`."""

    async def add(self, key: str, amount: int = 1) -> Write:
        return Write(self._host, await _call(self._host, self._inner.add, key, amount))

    async def reset(self, key: str) -> Write:
        return Write(self._host, await _call(self._host, self._inner.reset, key))

    def watch(self, key: str | None = None, *, prefix: str = "") -> AbstractAsyncContextManager[Live[Watched[int]]]:
        return _following(self._host, self._inner.watch(key, prefix=prefix))

    def changes(self) -> AbstractContextManager[Changes]:
        return _listening(self._host, self._inner.changes())


@as_on_trio(on_trio.PendingInvite)
class PendingInvite(HostedInvite):
    """See `sealwire_client.inviting.PendingInvite`."""

    async def open(self) -> None:
        await _call(self._host, self._inner.open)

    async def joined(self, agree: Agree | None = None) -> NewMember:
        caller = _Caller()
        asks = None if agree is None else caller.asks(agree)
        return await caller.wait(self._host, self._host.start(Call(partial(self._inner.joined, asks), caller.ended)))


@as_on_trio(on_trio.Vault)
class Vault(HostedVault):
    """See `sealwire_client.Vault`."""

    async def collections(self) -> list[str]:
        return await _call(self._host, self._inner.collections)

    async def policy_of(self, collection: str) -> str | None:
        return await _call(self._host, self._inner.policy_of, collection)

    async def known(self) -> bool:
        return await _call(self._host, self._inner.known)

    async def register(self, token: str) -> None:
        await _call(self._host, self._inner.register, token)

    async def collection(self, name: str, kind: type[T], *, policy: Policy, signed: bool = False) -> Collection[T]:
        opened = await _call(self._host, self._inner.collection, name, kind, policy=policy, signed=signed)
        return Collection(self._host, opened)

    async def counters(self, name: str, *, signed: bool = False) -> Counters:
        return Counters(self._host, await _call(self._host, self._inner.counters, name, signed=signed))

    async def is_signed(self, collection: str) -> bool:
        return await _call(self._host, self._inner.is_signed, collection)

    def live(
        self, sql: str, values: Sequence[SqlValue] = (), *, key: str | Sequence[str] | None = None
    ) -> AbstractAsyncContextManager[Live[Difference]]:
        return _following(self._host, self._inner.live(sql, values, key=key))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        transaction = self._inner.begun()
        with entered(transaction):
            yield Transaction(self._host, transaction)
        await _call(self._host, self._inner.carry_out, transaction)

    async def stuck(self) -> list[StuckWrite]:
        return await _call(self._host, self._inner.stuck)

    async def retry(self, collection: str, key: str) -> bool:
        return await _call(self._host, self._inner.retry, collection, key)

    async def discard(self, collection: str, key: str) -> bool:
        return await _call(self._host, self._inner.discard, collection, key)

    async def synced(self) -> None:
        await _call(self._host, self._inner.synced)

    async def status(self) -> Status:
        return await _call(self._host, self._inner.status)

    async def dismiss(self) -> int:
        return await _call(self._host, self._inner.dismiss)

    async def remove(self, device: DeviceKey) -> None:
        await _call(self._host, self._inner.remove, device)

    async def rotate(self) -> None:
        await _call(self._host, self._inner.rotate)

    async def move(
        self, relay: str, *, token: str | None = None, without_old: bool = False, force: bool = False
    ) -> None:
        await _call(self._host, self._inner.move, relay, token=token, without_old=without_old, force=force)

    async def leave(self, *, discard: bool = False) -> None:
        await _call(self._host, self._inner.leave, discard=discard)

    async def delete(self) -> None:
        await _call(self._host, self._inner.delete)

    async def invite(
        self, *, seconds: int | None = None, role: Role = Role.WRITER, confirm: bool = False
    ) -> PendingInvite:
        pending = await _call(self._host, self._inner.invite, seconds=seconds, role=role, confirm=confirm)
        return PendingInvite(self._host, pending)

    async def recovery_words(self) -> RecoveryWords:
        return await _call(self._host, self._inner.recovery_words)


@as_on_trio(on_trio.Device)
class Device(HostedDevice):
    """See `sealwire_client.Device`."""

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
        host = Host(
            partial(
                on_trio.Device.open,
                folder,
                relay=relay,
                passphrase=passphrase,
                repairs=repairs,
                dialler=dialler,
                writer=writer,
                reader=SharedReader,
            )
        )
        async with _hosted(host):
            yield cls(host, host.device)

    @property
    def vaults(self) -> Sequence[Vault]:
        return [Vault(self._host, vault) for vault in self._host.ask(lambda: self._inner.vaults)]

    def vault(self, name: str) -> Vault:
        return Vault(self._host, self._host.ask(lambda: self._inner.vault(name)))

    async def another_vault(self) -> None:
        await _call(self._host, self._inner.another_vault)

    async def create_vault(self, name: str, *, device_name: str = "", token: str | None = None) -> Vault:
        made = await _call(self._host, self._inner.create_vault, name, device_name=device_name, token=token)
        return Vault(self._host, made)

    async def invite(
        self, *, seconds: int | None = None, role: Role = Role.ADMIN, confirm: bool = False
    ) -> PendingInvite:
        pending = await _call(self._host, self._inner.invite, seconds=seconds, role=role, confirm=confirm)
        return PendingInvite(self._host, pending)

    async def join(self, link: str, *, device_name: str = "", show_code: ShowCode | None = None) -> Vault:
        caller = _Caller()
        show = None if show_code is None else caller.tells(show_code)
        join = partial(self._inner.join, link, device_name=device_name, show_code=show)
        return Vault(self._host, await caller.wait(self._host, self._host.start(Call(join, caller.ended))))

    async def forget(self, vault: Vault, *, discard: bool = False, without_relay: bool = False) -> None:
        await _call(self._host, self._inner.forget, vault._inner, discard=discard, without_relay=without_relay)

    async def recover(self, words: str, *, device_name: str = "") -> Vault:
        return Vault(self._host, await _call(self._host, self._inner.recover, words, device_name=device_name))

    async def follow(self, vault: Vault, relay: str) -> None:
        await _call(self._host, self._inner.follow, vault._inner, relay)

    async def examine(self, *vaults: Vault, repair: bool = False, patience_seconds: float = 30.0) -> Findings:
        inner = [vault._inner for vault in vaults]
        return await _call(self._host, self._inner.examine, *inner, repair=repair, patience_seconds=patience_seconds)

    async def suspend(self) -> None:
        await _call(self._host, self._inner.suspend)
