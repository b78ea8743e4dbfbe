"""What the façades for asyncio programs and for plain ones have in common: whatever does not wait.

An object here stands for one that lives in the device's thread. Entries are read in the calling thread; everything else
is asked of the device's own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from sealwire_client import collection, counters, device, inviting, transactions, vault
from sealwire_client.collection import EDITS_TOGETHER_MAX, FOUND_MAX
from sealwire_client.conditions import KEY
from sealwire_client.hosting import Host
from sealwire_client.invites import Promise
from sealwire_client.membering import VaultMember
from sealwire_client.replica import Rows, Salvaged, SqlValue
from sealwire_client.transactions import current
from sealwire_protocol.ids import DeviceKey, VaultId

T = TypeVar("T")
C = TypeVar("C", bound=type)
Inner = TypeVar("Inner")


def as_on_trio(original: type) -> Callable[[C], C]:
    """For a class of a façade: its methods and properties promise what those of the original do."""

    def described(facade: C) -> C:
        for name, member in vars(original).items():
            mine = getattr(facade, name, None)
            mine = getattr(mine, "__func__", mine)
            if not name.startswith("_") and mine is not None and not mine.__doc__:
                mine.__doc__ = member.__doc__
        return facade

    return described


class Hosted(Generic[Inner]):
    """Stands for an object of a device that lives in a thread of its own. Equal to what stands for the same one."""

    def __init__(self, host: Host, inner: Inner) -> None:
        self._host, self._inner = host, inner

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._inner is self._inner

    def __hash__(self) -> int:
        return hash((type(self), id(self._inner)))


class HostedDevice(Hosted[device.Device]):
    """A device, apart from what waits."""

    @property
    def folder(self) -> Path:
        """Where it lives."""
        return self._inner.folder

    @property
    def repaired(self) -> Salvaged | None:
        """What became of the replica if it was found damaged when this device was opened; None: it was not."""
        return self._inner.repaired

    @property
    def key(self) -> DeviceKey:
        return self._host.ask(lambda: self._inner.key)

    @property
    def incomplete(self) -> str | None:
        return self._host.ask(lambda: self._inner.incomplete)

    @property
    def awaited(self) -> dict[Promise, str | None]:
        return self._host.ask(lambda: dict(self._inner.awaited))

    def wake(self) -> None:
        self._host.ask(self._inner.wake)

    def network_changed(self) -> None:
        self._host.ask(self._inner.network_changed)

    def resume(self) -> None:
        self._host.ask(self._inner.resume)


class HostedVault(Hosted[vault.Vault]):
    """A vault, apart from what waits."""

    @property
    def id(self) -> VaultId:
        return self._inner.id

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def origin(self) -> str:
        return self._inner.origin

    @property
    def is_known(self) -> bool | None:
        return self._host.ask(lambda: self._inner.is_known)

    @property
    def over(self) -> str | None:
        return self._host.ask(lambda: self._inner.over)

    @property
    def members(self) -> tuple[VaultMember, ...]:
        return self._host.ask(lambda: self._inner.members)

    @property
    def head(self) -> tuple[int, str]:
        return self._host.ask(lambda: self._inner.head)

    def select(self, sql: str, values: Sequence[SqlValue] = ()) -> Rows:
        return self._inner.select(sql, values)


class HostedCollection(Hosted[collection.Collection[T]]):
    """A collection, apart from what waits."""

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def is_strict(self) -> bool:
        return self._inner.is_strict

    def get(self, key: str) -> T | None:
        return self._inner.get(key)

    def items(self, prefix: str = "") -> Iterator[tuple[str, T]]:
        return self._inner.items(prefix)

    def where(self, *, order_by: str = KEY, limit: int | None = None, **conditions: Any) -> Iterator[tuple[str, T]]:
        return self._inner.where(order_by=order_by, limit=limit, **conditions)

    def search(self, text: str, *, limit: int = FOUND_MAX) -> list[tuple[str, T]]:
        return self._inner.search(text, limit=limit)

    def newer(self) -> list[str]:
        return self._inner.newer()

    def __len__(self) -> int:
        return len(self._inner)

    def __contains__(self, key: object) -> bool:
        return key in self._inner

    def _portions(self, items: Mapping[str, T] | Iterable[tuple[str, T]]) -> Iterator[list[tuple[str, T]]]:
        """What one call of `put_many` makes of them: taken from the iterable by the calling thread, whose it may be."""
        pairs = iter(items.items() if isinstance(items, Mapping) else items)
        at_once = None if self.is_strict or current() is not None else EDITS_TOGETHER_MAX
        while portion := list(islice(pairs, at_once)):
            yield portion


class HostedCounters(Hosted[counters.Counters]):
    """Counters, apart from what waits."""

    @property
    def name(self) -> str:
        return self._inner.name

    def get(self, key: str) -> int:
        return self._inner.get(key)

    def mine(self, key: str) -> int:
        return self._inner.mine(key)

    def items(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        return self._inner.items(prefix)

    def __len__(self) -> int:
        return len(self._inner)

    def __contains__(self, key: object) -> bool:
        return key in self._inner


class HostedTransaction(Hosted[transactions.Transaction[Any]]):
    """A transaction, apart from what waits."""

    @property
    def is_open(self) -> bool:
        return self._inner.is_open


class HostedInvite(Hosted[inviting.PendingInvite]):
    """An invite that waits to be used, apart from what waits for it."""

    @property
    def link(self) -> str:
        return self._inner.link

    def qr_lines(self) -> list[str]:
        return self._inner.qr_lines()

    def qr_png(self) -> bytes:
        return self._inner.qr_png()
