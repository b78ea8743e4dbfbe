"""`put`, `delete`, `get` and `ls`: entries of a collection, written and read on this device."""

from __future__ import annotations

import os
from contextlib import aclosing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sealwire_client.cli import options, values
from sealwire_client.cli.failures import FORGET, Failure, relay_missing, usage
from sealwire_client.cli.output import Bar, Output, compact, visible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sealwire_client.cli.looking import Source
    from sealwire_client.cli.place import Place
    from sealwire_client.cli.session import Entries
    from sealwire_client.status import Status
    from sealwire_client.vault import Vault

PAGE_ENTRIES: Final = 1_000
"""Entries of one table on a terminal, and between two looks whether somebody pressed Ctrl-C."""

fresh_option = click.option(
    "--fresh", is_flag=True, help="Catch up with the relay first; fail if that does not succeed."
)


@click.command(short_help="Save a value at a key of a collection, or many.")
@click.argument("collection")
@click.argument("key", required=False)
@click.argument("value", nargs=-1)
@click.option("--text", is_flag=True, help="VALUE is text, also if it looks like JSON.")
@click.option(
    "--file",
    "source",
    metavar="FILE",
    help='Put many entries: each line of FILE (- for stdin) is {"key": …, "value": …}.',
)
@click.option(
    "--policy",
    type=click.Choice(["latest", "merge", "strict"]),
    help="What becomes of two edits of one entry, for a collection that is new; else the one it has, else latest.",
)
@options.vault
@options.wait(5, "Longest wait for the relay's confirmation while nothing moves; 0: do not wait.")
@options.folder_and_json
def put(
    collection: str,
    key: str | None,
    value: tuple[str, ...],
    text: bool,
    source: str | None,
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
    if source is not None:
        if key is not None or text:
            raise usage("--file brings keys and values with it; leave out KEY, VALUE and --text")
        fd = _open(source)
        found = place.existing(folder)
        running.run(lambda: _put_lines(found, vault, collection, policy, fd, wait, output))
        return
    if key is None or not value:
        raise usage("A KEY and a VALUE are needed, or --file with many of them; nothing was saved")
    entry = values.checked(key, "KEY"), values.typed(value, text)
    found = place.existing(folder)
    running.run(lambda: _put(found, vault, collection, policy, entry, wait, output))


def _open(source: str) -> int:
    if source == "-":
        return 0
    try:
        return os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise usage(f"{source} cannot be read ({error.strerror}); nothing was saved") from None


async def _put(
    place: Place,
    name: str | None,
    collection: str,
    policy: str | None,
    entry: tuple[str, values.Value],
    wait: float,
    output: Output,
) -> None:
    from sealwire_client.cli import session

    async with session.opened(place) as device:
        vault = session.chosen(device, place, name)
        entries = await session.writable(device, vault, collection, policy, wait)
        stuck = (await vault.status()).stuck
        await entries.put(*entry)
        status = await _sent(vault, wait, output)
        fields = {"collection": collection, "key": entry[0], "saved": True}
        _tell_saved(fields, "saved", status, stuck, vault, wait, output)


async def _put_lines(
    place: Place, name: str | None, collection: str, policy: str | None, fd: int, wait: float, output: Output
) -> None:
    from sealwire_client.cli import session
    from sealwire_client.cli.lines import batches

    async with session.opened(place) as device:
        vault = session.chosen(device, place, name)
        entries = await session.writable(device, vault, collection, policy, wait)
        stuck, count = (await vault.status()).stuck, 0
        with Bar("Saving", output) as bar:
            async with aclosing(batches(fd)) as read:
                async for batch in read:
                    count += await _put_batch(entries, batch)
                    bar.update(count, None)
        status = await _sent(vault, wait, output)
        fields = {"collection": collection, "saved": count}
        _tell_saved(
            fields, f"{count:,} {'entry' if count == 1 else 'entries'} saved", status, stuck, vault, wait, output
        )


async def _put_batch(entries: Entries, batch: list[tuple[int, bytes]]) -> int:
    """Put lines, in one transaction; of a batch with a wrong line those before it. Raises Failure, which names it."""
    lines: list[values.Line] = []
    wrong: Failure | None = None
    for number, raw in batch:
        try:
            line = values.parsed(number, raw)
        except Failure as failure:
            wrong = failure
            break
        if line is not None:
            lines.append(line)
    at = 0

    def pairs() -> Iterator[tuple[str, values.Value]]:
        nonlocal at
        for line in lines:
            yield line.key, line.value
            at += 1

    try:
        count = await entries.put_many(pairs())
    except ValueError as error:  # a value that cannot be kept
        await entries.put_many([(line.key, line.value) for line in lines[:at]])
        raise values.wrong_line(lines[at].number, str(error)) from error
    if wrong is not None:
        raise wrong
    return count


async def _sent(vault: Vault, wait: float, output: Output) -> Status:
    from sealwire_client.cli import session

    with Bar("Sending", output) as bar:
        return await session.until(vault, session.all_sent, wait, bar)


def _tell_saved(
    fields: dict[str, object], what: str, status: Status, stuck: int, vault: Vault, wait: float, output: Output
) -> None:
    """Say what became of an edit, plainly. Raises Failure if the relay refused something for good."""
    from sealwire_client.cli import session

    refused = status.stuck - stuck
    sent = status.pending == 0 and refused <= 0
    why = None if sent else session.why_not(status, vault.origin, wait).rstrip(".")
    text = f"{what} on this device; {session.fate(status, refused)}"
    output.answer({**fields, "sent": sent, "pending": status.pending, "why": why}, text)
    if refused > 0:
        writes = "1 write" if refused == 1 else f"{refused:,} writes"
        raise relay_missing(
            f"The relay refused {writes} for good, kept on this device: {why} (`sealwire stuck retry --all`)"
        )
    if vault.is_known is False or vault.over is not None:
        output.say(f"Not sent: {why}; or {FORGET}")
    elif not sent:
        output.say(f"Not sent yet: {why}. The next put, delete, watch or status that reaches the relay sends it")


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
    from sealwire_client.cli import session

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
        status = await _sent(vault, wait, output)
        fields = {"collection": collection, "key": key, "deleted": True}
        _tell_saved(fields, "deleted", status, stuck, vault, wait, output)


@click.command(short_help="Print the value at a key of a collection.")
@click.argument("collection")
@click.argument("key")
@fresh_option
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
@fresh_option
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
    output.say(f"{count:,} {'entry' if count == 1 else 'entries'}")
