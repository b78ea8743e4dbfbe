"""`put`, `delete`, `get` and `ls`: entries of a collection, written and read on this device."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sealwire_client.cli import options, values
from sealwire_client.cli.failures import Failure
from sealwire_client.cli.output import Output, compact, visible

if TYPE_CHECKING:
    from sealwire_client.cli.looking import Source
    from sealwire_client.cli.place import Place

PAGE_ENTRIES: Final = 1_000
"""Entries of one table on a terminal, and between two looks whether somebody pressed Ctrl-C."""


@click.command(short_help="Save a value at a key of a collection.")
@click.argument("collection")
@click.argument("key")
@click.argument("value", nargs=-1, required=True)
@click.option("--text", is_flag=True, help="VALUE is text, also if it looks like JSON.")
@options.policy
@options.vault
@options.wait(5, "Longest wait for the relay's confirmation while nothing moves; 0: do not wait.")
@options.folder_and_json
def put(
    collection: str,
    key: str,
    value: tuple[str, ...],
    text: bool,
    policy: str | None,
    vault: str | None,
    wait: float,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Put VALUE at KEY of COLLECTION: a JSON object, or any other text. Several words are one text.

    It is saved on this device at once, with the relay or without, and sent when the relay is reachable.
    """
    from sealwire_client.cli import place, running

    output = Output(as_json)
    entry = values.checked(key, "KEY"), values.typed(value, text)
    found = place.existing(folder)
    running.run(lambda: _put(found, vault, collection, policy, entry, wait, output))


async def _put(
    place: Place,
    name: str | None,
    collection: str,
    policy: str | None,
    entry: tuple[str, values.Value],
    wait: float,
    output: Output,
) -> None:
    from sealwire_client.cli import saving, session

    async with session.opened(place) as device:
        vault = session.chosen(device, place, name)
        entries = await session.writable(device, vault, collection, policy, wait)
        stuck = (await vault.status()).stuck
        await entries.put(*entry)
        status = await saving.until_sent(vault, wait, output)
        fields = {"collection": collection, "key": entry[0], "saved": True}
        saving.tell(fields, "saved", status, stuck, vault, wait, output)


@click.command(short_help="Delete an entry of a collection.")
@click.argument("collection")
@click.argument("key")
@options.vault
@options.wait(5, "Longest wait for the relay's confirmation while nothing moves; 0: do not wait.")
@options.folder_and_json
def delete(collection: str, key: str, vault: str | None, wait: float, folder: Path | None, as_json: bool) -> None:
    """Delete the entry at KEY of COLLECTION, on all devices.

    It is gone on this device at once, with the relay or without, and elsewhere once the relay has been reached.
    """
    from sealwire_client.cli import place, running

    output, wanted = Output(as_json), values.checked(key, "KEY")
    found = place.existing(folder)
    running.run(lambda: _delete(found, vault, collection, wanted, wait, output))


async def _delete(place: Place, name: str | None, collection: str, key: str, wait: float, output: Output) -> None:
    from sealwire_client.cli import saving, session

    async with session.opened(place) as device:
        vault = session.chosen(device, place, name)
        if collection not in await session.open_known(vault):
            raise Failure(
                f"Collection {collection} is not on this device, so nothing was deleted; `sealwire ls {collection}`"
                " fetches it if another device has it",
                "no_collection",
            )
        entries = await session.writable(device, vault, collection, None, wait)
        if key not in entries:
            raise Failure(
                f"There is no entry {visible(key)!r} in collection {collection} on this device: nothing was deleted",
                "no_entry",
            )
        stuck = (await vault.status()).stuck
        await entries.delete(key)
        status = await saving.until_sent(vault, wait, output)
        fields = {"collection": collection, "key": key, "deleted": True}
        saving.tell(fields, "deleted", status, stuck, vault, wait, output)


@click.command(short_help="Print the value at a key of a collection.")
@click.argument("collection")
@click.argument("key")
@options.fresh
@options.vault
@options.wait(5, "Longest wait while nothing moves, where the relay is needed.")
@options.folder_and_json
def get(
    collection: str, key: str, fresh: bool, vault: str | None, wait: float, folder: Path | None, as_json: bool
) -> None:
    """Print the value at KEY of COLLECTION, as this device holds it.

    Text is printed as it was put, anything else as JSON.
    """
    from sealwire_client.cli import looking, place, running

    output, wanted = Output(as_json), values.checked(key, "KEY")

    async def show(source: Source) -> None:
        value = source.get(wanted)
        if value is None:
            raise Failure(f"There is no entry {visible(key)!r} in collection {collection}", "no_entry")
        fields = {"collection": collection, "key": key, "value": value}
        output.answer(fields, values.in_full(value, output.is_terminal))

    found = place.existing(folder)
    running.run(lambda: looking.look(found, vault, collection, fresh, wait, output, show))


@click.command(short_help="List the entries of a collection.")
@click.argument("collection")
@click.argument("prefix", default="")
@options.fresh
@options.vault
@options.wait(5, "Longest wait while nothing moves, where the relay is needed.")
@options.folder_and_json
def ls(
    collection: str, prefix: str, fresh: bool, vault: str | None, wait: float, folder: Path | None, as_json: bool
) -> None:
    """List the entries of COLLECTION, as this device holds them, or those whose keys begin with PREFIX.

    On a terminal a table; elsewhere a line for each: key, tab, value.
    """
    from sealwire_client.cli import looking, place, running

    output, start = Output(as_json), values.checked(prefix, "PREFIX")
    found = place.existing(folder)
    running.run(
        lambda: looking.look(found, vault, collection, fresh, wait, output, lambda it: _list(it, start, output))
    )


async def _list(source: Source, prefix: str, output: Output) -> None:
    import trio

    if output.is_terminal:
        await _table(source, prefix, output)
        return
    for count, (key, value) in enumerate(source.items(prefix), 1):
        if output.as_json:
            output.write(compact({"key": key, "value": value}))
        else:
            output.write(f"{visible(key)}\t{values.on_one_line(value)}")
        if count % PAGE_ENTRIES == 0:
            await trio.lowlevel.checkpoint()
    output.flush()


async def _table(source: Source, prefix: str, output: Output) -> None:
    import trio
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, count, entries = Console(), 0, iter(source.items(prefix))
    while True:
        page = [(visible(key), values.on_one_line(value)) for key, value in islice(entries, PAGE_ENTRIES)]
        if page:
            table = Table(box=None, show_header=count == 0, pad_edge=False)
            table.add_column("key", no_wrap=True, style="bold")
            table.add_column("value", no_wrap=True)
            for key, value in page:
                table.add_row(Text(key), Text(value))
            console.print(table)
        count += len(page)
        await trio.lowlevel.checkpoint()
        if len(page) < PAGE_ENTRIES:
            break
    output.say(values.counted(count))
