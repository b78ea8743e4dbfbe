"""Reading a collection for `get`, `ls` and `export`: from the replica, also while another process has it open.

A collection that this device has never seen, as after `join`, is fetched first; one that it holds is shown as it is
unless freshness is asked for.
"""

from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol

from sealwire_client.cli import config, session
from sealwire_client.cli.failures import Failure, relay_missing
from sealwire_client.cli.output import Bar, Output
from sealwire_client.cli.place import Place
from sealwire_client.cli.values import Value
from sealwire_client.encoding import schema_of
from sealwire_client.replica import Collection, ReplicaInUseError
from sealwire_client.replica.glance import Glance
from sealwire_client.vault import Vault


class Source(Protocol):
    """Where entries are read from."""

    def get(self, key: str) -> Value | None:
        """The value of a key."""

    def items(self, prefix: str = "") -> Iterator[tuple[str, Value]]:
        """Keys and values in the order of the keys."""

    def __len__(self) -> int:
        """How many entries there are."""

    def newer(self) -> list[str]:
        """The keys of entries that only a newer app can read."""


async def look(
    place: Place,
    vault: str | None,
    name: str,
    fresh: bool,
    wait: float,
    output: Output,
    show: Callable[[Source], Awaitable[None]],
) -> None:
    """Let `show` read a collection. Raises Failure if there is none of that name, or it is not fresh."""
    try:
        async with session.opened(place, patience_seconds=session.IN_USE_SECONDS_MAX if fresh else 0) as device:
            chosen = session.chosen(device, place, vault)
            known = name in await chosen.collections()
            collection = await session.entries(chosen, name)
            if fresh or not known:
                await _catch_up(chosen, name, known, wait, output)
            await show(collection)
    except ReplicaInUseError as error:
        if fresh:
            raise
        with Glance(place.folder) as glance:
            await show(_Glanced(glance, _glimpsed(glance, place, vault, name, error)))


async def _catch_up(vault: Vault, name: str, known: bool, wait: float, output: Output) -> None:
    with Bar(f"Fetching {name}", output) as bar:
        status = await session.until(vault, session.in_step, wait, bar)
    if not session.in_step(status):
        why = session.why_not(status, vault.origin, wait).rstrip(".")
        if known:
            raise relay_missing(
                f"Collection {name} could not be brought up to date: {why}; without --fresh the answer is what this"
                " device holds"
            )
        raise relay_missing(f"Collection {name} is not on this device yet, and the relay could not be asked: {why}")
    held = await vault.collections()
    if name not in held:
        raise _missing(name, vault.name, held)


def _missing(name: str, vault: str, held: list[str]) -> Failure:
    return Failure(
        f"There is no collection {name} in vault {vault}; on this device it has: {', '.join(held) or 'none'}",
        "no_collection",
    )


class _Glanced:
    """A collection in a replica that another process has open."""

    def __init__(self, glance: Glance, held: Collection) -> None:
        self._glance, self._held, self._schema = glance, held, schema_of(dict)

    def get(self, key: str) -> Value | None:
        row = self._glance.reader.get(self._held, key)
        return None if row is None else self._schema.from_row(row)

    def items(self, prefix: str = "") -> Iterator[tuple[str, Value]]:
        for key, row in self._glance.reader.items(self._held, prefix):
            yield key, self._schema.from_row(row)

    def __len__(self) -> int:
        return self._glance.reader.count(self._held)

    def newer(self) -> list[str]:
        return self._glance.reader.newer(self._held)


def _glimpsed(glance: Glance, place: Place, wanted: str | None, name: str, in_use: ReplicaInUseError) -> Collection:
    wanted = wanted or config.read(place.folder).vault
    vaults = [
        (vault, called)
        for vault, called in glance.vaults()
        if wanted is None or called == wanted or vault.hex().startswith(wanted.lower())
    ]
    if len(vaults) != 1:
        raise Failure(
            f"There is not exactly one vault {wanted or ''!r} on this device; name one with --vault", "no_vault"
        )
    held = glance.collection(vaults[0][0], name)
    if held is None:
        raise Failure(f"Collection {name} is not on this device yet. {in_use}", "no_collection") from in_use
    if [column[:2] for column in held.columns] != [("value", "TEXT")]:
        raise Failure(f"Collection {name} belongs to an app: the command line leaves it alone; use the app", "replica")
    return held
