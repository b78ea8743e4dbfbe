"""A device for plain programs without an event loop: the same classes, under the same names, as `sealwire_client` has
for trio, with methods that wait where those are awaited.

    from sealwire_client.blocking import Device

    with Device.open("~/.myapp") as device:
        todos = device.vault("home").collection("todos", Todo, policy=latest())
        todos.put("t1", Todo("buy milk"))

The device lives in a thread of its own; all threads of the program may use it. Who is interrupted (KeyboardInterrupt)
cancels what it waits for.
"""

import queue
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
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
from sealwire_client.inviting import NewMember
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

Agree = Callable[[str, str], bool]
"""(code, name of the device that asks) -> does the other side show the same code? Asks a person."""


class _Caller:
    """A thread that waits for something in the device's."""

    def __init__(self) -> None:
        self._posted: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._has_ended = False

    def ended(self) -> None:
        """What it waits for has ended. May be called from any thread."""
        self._posted.put(None)

    def until_ended(self) -> None:
        """Wait, and do meanwhile what is asked of this thread. Raises what that raises where nobody waits for it."""
        while not self._has_ended:
            function = self._posted.get()
            if function is None:
                self._has_ended = True
            else:
                function()

    def wait(self, host: Host, call: Call[R]) -> R:
        """Wait for a call, and what came of it. Interrupted, it cancels the call, which has ended when this raises."""
        try:
            self.until_ended()
        except BaseException:
            host.cancel(call)
            while not self._has_ended:
                self._has_ended = self._posted.get() is None
            raise
        return call.result

    def tells(self, function: Callable[P, None]) -> Callable[P, None]:
        """A function for the device's thread that has this one called by the thread that waits here."""

        def tell(*args: P.args, **kwargs: P.kwargs) -> None:
            self._posted.put(partial(function, *args, **kwargs))

        return tell

    def asks(self, function: Callable[P, R]) -> Callable[P, Awaitable[R]]:
        """A function for the device's thread that has this one called by the thread that waits here, and waits for it.
        What it raises ends the call."""

        async def ask(*args: P.args, **kwargs: P.kwargs) -> R:
            token, answered = trio.lowlevel.current_trio_token(), trio.Event()
            answers: list[R] = []

            def answer() -> None:
                answers.append(function(*args, **kwargs))
                soon(token, answered.set)

            self._posted.put(answer)
            await answered.wait()
            return answers[0]

        return ask


def _call(host: Host, function: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs) -> R:
    """What a method of the device's own says, carried out in its thread."""
    caller = _Caller()
    return caller.wait(host, host.start(Call(partial(function, *args, **kwargs), caller.ended)))


@contextmanager
def _hosted(host: Host) -> Iterator[None]:
    """The device is open for the length of the block."""
    opening = _Caller()
    host.begin(opening.ended, lambda: None)
    try:
        opening.until_ended()
        host.check()
        yield
    finally:
        host.end()
        host.join()
    if host.failure is not None:
        raise host.failure


@as_on_trio(on_trio.Write)
class Write(Hosted[on_trio.Write]):
    """See `sealwire_client.Write`."""

    def durable(self, *, wait: bool = True) -> Standing:
        return _call(self._host, self._inner.durable, wait=wait)


@as_on_trio(on_trio.Transaction)
class Transaction(HostedTransaction):
    """See `sealwire_client.Transaction`."""

    @property
    def write(self) -> Write:
        return Write(self._host, self._inner.write)

    def durable(self, *, wait: bool = True) -> Standing:
        return _call(self._host, self._inner.durable, wait=wait)


class _Steps(Hosted[AsyncIterator[D]], Generic[D]):
    """What comes step by step. What comes while nobody waits any more, because of a interruption, comes with the next
    step."""

    def __init__(self, host: Host, inner: AsyncIterator[D]) -> None:
        super().__init__(host, inner)
        self._step: tuple[_Caller, Call[D]] | None = None

    def __iter__(self) -> Iterator[D]:
        return self

    def __next__(self) -> D:
        if self._step is None:
            caller = _Caller()
            self._step = caller, self._host.start(Call(self._inner.__anext__, caller.ended))
        caller, call = self._step
        caller.until_ended()
        self._step = None
        try:
            return call.result
        except StopAsyncIteration:
            raise StopIteration from None

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


@contextmanager
def _following(host: Host, block: AbstractAsyncContextManager[on_trio.Live[D]]) -> Iterator[Live[D]]:
    try:
        live = Live(host, _call(host, block.__aenter__))
        try:
            yield live
        finally:
            live._close()
    finally:
        host.leave(partial(block.__aexit__, GeneratorExit, GeneratorExit(), None))


@as_on_trio(on_trio.Collection)
class Collection(HostedCollection[T]):
    """See `sealwire_client.Collection`."""

    def put(self, key: str, value: T) -> Write:
        return Write(self._host, _call(self._host, self._inner.put, key, value))

    def put_many(self, items: Mapping[str, T] | Iterable[tuple[str, T]]) -> int:
        return sum(_call(self._host, self._inner.put_many, portion) for portion in self._portions(items))

    def delete(self, key: str) -> Write:
        return Write(self._host, _call(self._host, self._inner.delete, key))

    @overload
    def watch(self, key: str) -> AbstractContextManager[Live[Watched[T]]]: ...

    @overload
    def watch(self, *, prefix: str = "") -> AbstractContextManager[Live[Watched[T]]]: ...

    def watch(self, key: str | None = None, *, prefix: str = "") -> AbstractContextManager[Live[Watched[T]]]:
        return _following(self._host, self._inner.watch(prefix=prefix) if key is None else self._inner.watch(key))

    def changes(self) -> AbstractContextManager[Changes]:
        return _listening(self._host, self._inner.changes())


@as_on_trio(on_trio.Counters)
class Counters(HostedCounters):
    """See `sealwire_client.Counters`."""

    def add(self, key: str, amount: int = 1) -> Write:
        return Write(self._host, _call(self._host, self._inner.add, key, amount))

    def reset(self, key: str) -> Write:
        return Write(self._host, _call(self._host, self._inner.reset, key))

    def watch(self, key: str | None = None, *, prefix: str = "") -> AbstractContextManager[Live[Watched[int]]]:
        return _following(self._host, self._inner.watch(key, prefix=prefix))

    def changes(self) -> AbstractContextManager[Changes]:
        return _listening(self._host, self._inner.changes())


@as_on_trio(on_trio.PendingInvite)
class PendingInvite(HostedInvite):
    """See `sealwire_client.inviting.PendingInvite`."""

    def open(self) -> None:
        _call(self._host, self._inner.open)

    def joined(self, agree: Agree | None = None) -> NewMember:
        caller = _Caller()
        asks = None if agree is None else caller.asks(agree)
        return caller.wait(self._host, self._host.start(Call(partial(self._inner.joined, asks), caller.ended)))


@as_on_trio(on_trio.Vault)
class Vault(HostedVault):
    """See `sealwire_client.Vault`."""

    def collections(self) -> list[str]:
        return _call(self._host, self._inner.collections)

    def policy_of(self, collection: str) -> str | None:
        return _call(self._host, self._inner.policy_of, collection)

    def known(self) -> bool:
        return _call(self._host, self._inner.known)

    def register(self, token: str) -> None:
        _call(self._host, self._inner.register, token)

    def collection(self, name: str, kind: type[T], *, policy: Policy, signed: bool = False) -> Collection[T]:
        opened = _call(self._host, self._inner.collection, name, kind, policy=policy, signed=signed)
        return Collection(self._host, opened)

    def counters(self, name: str, *, signed: bool = False) -> Counters:
        return Counters(self._host, _call(self._host, self._inner.counters, name, signed=signed))

    def is_signed(self, collection: str) -> bool:
        return _call(self._host, self._inner.is_signed, collection)

    def live(
        self, sql: str, values: Sequence[SqlValue] = (), *, key: str | Sequence[str] | None = None
    ) -> AbstractContextManager[Live[Difference]]:
        return _following(self._host, self._inner.live(sql, values, key=key))

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        transaction = self._inner.begun()
        with entered(transaction):
            yield Transaction(self._host, transaction)
        _call(self._host, self._inner.carry_out, transaction)

    def stuck(self) -> list[StuckWrite]:
        return _call(self._host, self._inner.stuck)

    def retry(self, collection: str, key: str) -> bool:
        return _call(self._host, self._inner.retry, collection, key)

    def discard(self, collection: str, key: str) -> bool:
        return _call(self._host, self._inner.discard, collection, key)

    def synced(self) -> None:
        _call(self._host, self._inner.synced)

    def status(self) -> Status:
        return _call(self._host, self._inner.status)

    def dismiss(self) -> int:
        return _call(self._host, self._inner.dismiss)

    def remove(self, device: DeviceKey) -> None:
        _call(self._host, self._inner.remove, device)

    def rotate(self) -> None:
        _call(self._host, self._inner.rotate)

    def move(self, relay: str, *, token: str | None = None, without_old: bool = False, force: bool = False) -> None:
        _call(self._host, self._inner.move, relay, token=token, without_old=without_old, force=force)

    def leave(self, *, discard: bool = False) -> None:
        _call(self._host, self._inner.leave, discard=discard)

    def delete(self) -> None:
        _call(self._host, self._inner.delete)

    def invite(self, *, seconds: int | None = None, role: Role = Role.WRITER, confirm: bool = False) -> PendingInvite:
        pending = _call(self._host, self._inner.invite, seconds=seconds, role=role, confirm=confirm)
        return PendingInvite(self._host, pending)

    def recovery_words(self) -> RecoveryWords:
        return _call(self._host, self._inner.recovery_words)


@as_on_trio(on_trio.Device)
class Device(HostedDevice):
    """See `sealwire_client.Device`."""

    @classmethod
    @contextmanager
    def open(
        cls,
        folder: str | Path,
        *,
        relay: str | None = None,
        passphrase: str | None = None,
        repairs: bool = True,
        dialler: Dialler = dial,
        writer: OpenWriter = Writer.open,
    ) -> "Iterator[Device]":
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
        with _hosted(host):
            yield cls(host, host.device)

    @property
    def vaults(self) -> Sequence[Vault]:
        return [Vault(self._host, vault) for vault in self._host.ask(lambda: self._inner.vaults)]

    def vault(self, name: str) -> Vault:
        return Vault(self._host, self._host.ask(lambda: self._inner.vault(name)))

    def another_vault(self) -> None:
        _call(self._host, self._inner.another_vault)

    def create_vault(self, name: str, *, device_name: str = "", token: str | None = None) -> Vault:
        made = _call(self._host, self._inner.create_vault, name, device_name=device_name, token=token)
        return Vault(self._host, made)

    def invite(self, *, seconds: int | None = None, role: Role = Role.ADMIN, confirm: bool = False) -> PendingInvite:
        pending = _call(self._host, self._inner.invite, seconds=seconds, role=role, confirm=confirm)
        return PendingInvite(self._host, pending)

    def join(self, link: str, *, device_name: str = "", show_code: ShowCode | None = None) -> Vault:
        caller = _Caller()
        show = None if show_code is None else caller.tells(show_code)
        join = partial(self._inner.join, link, device_name=device_name, show_code=show)
        return Vault(self._host, caller.wait(self._host, self._host.start(Call(join, caller.ended))))

    def forget(self, vault: Vault, *, discard: bool = False, without_relay: bool = False) -> None:
        _call(self._host, self._inner.forget, vault._inner, discard=discard, without_relay=without_relay)

    def recover(self, words: str, *, device_name: str = "") -> Vault:
        return Vault(self._host, _call(self._host, self._inner.recover, words, device_name=device_name))

    def follow(self, vault: Vault, relay: str) -> None:
        _call(self._host, self._inner.follow, vault._inner, relay)

    def examine(self, *vaults: Vault, repair: bool = False, patience_seconds: float = 30.0) -> Findings:
        inner = [vault._inner for vault in vaults]
        return _call(self._host, self._inner.examine, *inner, repair=repair, patience_seconds=patience_seconds)

    def suspend(self) -> None:
        _call(self._host, self._inner.suspend)
