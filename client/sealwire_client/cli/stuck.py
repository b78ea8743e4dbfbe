"""`stuck list | retry | discard`: writes that the relay refused for good, which stay on this device until then."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sealwire_client.cli import options, values
from sealwire_client.cli.failures import Failure, relay_missing, usage
from sealwire_client.cli.output import Bar, Output, compact, visible

if TYPE_CHECKING:
    from sealwire_client.cli.place import Place
    from sealwire_client.vault import StuckWrite, Vault


@click.group(short_help="List, retry or discard writes that the relay refused for good.")
def stuck() -> None:
    """Writes that the relay refused for good. They stay on this device, and hold up no others."""


@stuck.command(name="list", short_help="List them, and why they were refused.")
@options.vault
@options.folder_and_json
def list_stuck(vault: str | None, folder: Path | None, as_json: bool) -> None:
    """List the stuck writes, a line for each: collection, key, what it does, why it was refused.

    What a stuck write has put is what `get` shows on this device.
    """
    from sealwire_client.cli import place, running

    output, found = Output(as_json), place.existing(folder)
    running.run(lambda: _list(found, vault, output))


async def _list(place: Place, name: str | None, output: Output) -> None:
    from sealwire_client.cli import session

    async with session.opened(place) as device:
        writes = await session.chosen(device, place, name).stuck()
    for write in writes:
        if output.as_json:
            output.write(compact(_fields(write)))
        else:
            what = ("delete" if write.deletes else "put") + (" in a transaction" if write.together else "")
            output.write(f"{visible(write.collection)}\t{visible(write.key)}\t{what}\t{visible(write.reason)}")
    output.flush()
    if not writes:
        output.say("nothing is stuck")


def _fields(write: StuckWrite) -> dict[str, object]:
    return {
        "collection": write.collection,
        "key": write.key,
        "deletes": write.deletes,
        "together": write.together,
        "reason": write.reason,
    }


@stuck.command(short_help="Send them again.")
@click.argument("collection", required=False)
@click.argument("key", required=False)
@click.option("--all", "every", is_flag=True, help="All stuck writes of the vault.")
@options.vault
@options.wait(5, "Longest wait for the relay's confirmation while nothing moves; 0: do not wait.")
@options.folder_and_json
def retry(
    collection: str | None,
    key: str | None,
    every: bool,
    vault: str | None,
    wait: float,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Send the stuck write of KEY in COLLECTION again, with all of its transaction; or --all of them."""
    from sealwire_client.cli import place, running

    if every == (collection is not None) or (key is None) != (collection is None):
        raise usage("A COLLECTION and a KEY are needed, or --all alone; nothing was tried")
    wanted = None if collection is None or key is None else (collection, values.checked(key, "KEY"))
    output, found = Output(as_json), place.existing(folder)
    running.run(lambda: _retry(found, vault, wanted, wait, output))


async def _retry(place: Place, name: str | None, wanted: tuple[str, str] | None, wait: float, output: Output) -> None:
    from sealwire_client.cli import session

    async with session.opened(place) as device:
        vault = session.chosen(device, place, name)
        before = await vault.stuck()
        names = [(write.collection, write.key) for write in before]
        if wanted is not None and wanted not in names:
            raise _none(*wanted)
        known = await session.open_known(vault)
        for one in [one for one in names if one[0] in known] if wanted is None else [wanted]:
            await session.entries(vault, one[0])  # an app's collections are left to it
            await vault.retry(*one)
        tried = len(before) - len(await vault.stuck())
        with Bar("Sending", output) as bar:
            status = await session.until(vault, session.all_sent, wait, bar)
        left = status.stuck
        again = left - (len(before) - tried)
        why = session.why_not(status, vault.origin, wait).rstrip(".") if status.pending or left else None
        output.answer(
            {"retried": tried, "stuck": left, "pending": status.pending, "why": why},
            f"{tried:,} tried again; {session.fate(status, again)}",
        )
        if again > 0:
            raise relay_missing(f"The relay refused again; {left:,} writes stay on this device: {why}")


@stuck.command(short_help="Give one up for good.")
@click.argument("collection")
@click.argument("key")
@click.option("--yes", is_flag=True, help="Do not ask.")
@options.vault
@options.folder_and_json
def discard(collection: str, key: str, yes: bool, vault: str | None, folder: Path | None, as_json: bool) -> None:
    """Give up the stuck write of KEY in COLLECTION for good, with all of its transaction.

    The entry shows again what all devices have agreed on.
    """
    from sealwire_client.cli import place, running

    output, wanted = Output(as_json), values.checked(key, "KEY")
    if not yes and not output.is_terminal:
        raise usage("What is discarded is gone for good: say --yes where nobody can be asked")
    found = place.existing(folder)
    running.run(lambda: _discard(found, vault, collection, wanted, yes, output))


async def _discard(place: Place, name: str | None, collection: str, key: str, yes: bool, output: Output) -> None:
    from sealwire_client.cli import session

    async with session.opened(place) as device:
        vault = session.chosen(device, place, name)
        await session.open_known(vault)
        write = await _stuck_write(vault, collection, key)
        what = "with all of its transaction" if write.together else "which nothing else holds"
        if not yes and not click.confirm(f"Discard the write of {visible(key)} in {collection}, {what}?", err=True):
            raise Failure("Nothing was discarded", "interrupted")
        await session.entries(vault, collection)
        await vault.discard(collection, key)
        shown = (await session.entries(vault, collection)).get(key)
        output.answer(
            {"collection": collection, "key": key, "discarded": True, "value": shown},
            f"discarded; {visible(key)} "
            + ("is not there now" if shown is None else f"shows {values.on_one_line(shown)} now"),
        )


async def _stuck_write(vault: Vault, collection: str, key: str) -> StuckWrite:
    for write in await vault.stuck():
        if (write.collection, write.key) == (collection, key):
            return write
    raise _none(collection, key)


def _none(collection: str, key: str) -> Failure:
    return Failure(
        f"No write of {visible(key)!r} in collection {collection} is stuck on this device; `sealwire stuck list` shows"
        " which are",
        "no_entry",
    )
