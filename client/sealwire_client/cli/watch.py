"""`watch`: changes of a collection as they come, from this device and all others."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sealwire_client.cli import options, values
from sealwire_client.cli.output import Output, abandon_stdout, compact, visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sealwire_client.cli.place import Place
    from sealwire_client.cli.session import Entries
    from sealwire_client.device import Device
    from sealwire_client.link import Link
    from sealwire_client.replica import Change
    from sealwire_client.vault import Vault


@click.command(short_help="Print what changes in a collection, as it comes.")
@click.argument("collection")
@options.vault
@options.folder_and_json
def watch(collection: str, vault: str | None, folder: Path | None, as_json: bool) -> None:
    """Print what changes in COLLECTION, as it comes, until Ctrl-C. What waits to be sent is sent meanwhile.

    First comes what has changed since this device was last in step. `get` and `ls` may be used at the same time.
    """
    from sealwire_client.cli import place, running

    output, found = Output(as_json), place.existing(folder)
    running.run(lambda: _watch(found, vault, collection, output))


async def _watch(place: Place, name: str | None, collection: str, output: Output) -> None:
    from sealwire_client.cli import session
    from sealwire_client.nursery import open_nursery

    async with session.opened(place) as device:
        vault = session.chosen(device, place, name)
        entries = await session.entries(vault, collection)
        await session.open_known(vault)
        async with open_nursery() as nursery:
            nursery.start_soon(_tell_link, device, vault, output)
            nursery.start_soon(_until_unread)
            with entries.changes() as changes:
                async for changed in changes:
                    _print(collection, entries, changed, output)


def _print(name: str, entries: Entries, changed: Sequence[Change] | None, output: Output) -> None:
    now = time.time()
    at, clock = int(now * 1000), time.strftime("%H:%M:%S", time.localtime(now))
    if changed is None:
        fields = {"at": at, "collection": name, "kind": "many"}
        output.answer(fields, f"{clock}  many      more changed at once than is named: see `sealwire ls {name}`")
        return
    for key, kind in changed:
        value = entries.get(key)
        fields = {"at": at, "collection": name, "key": key, "kind": kind.value, "value": value}
        shown = "" if value is None else values.on_one_line(value)
        output.write(compact(fields) if output.as_json else f"{clock}  {kind.value:8}  {visible(key)}  {shown}")
    output.flush()


async def _tell_link(device: Device, vault: Vault, output: Output) -> None:
    """Say when the relay is reached and when it is lost."""
    link, told = device.link(vault.origin), ""
    while True:
        await link.until(lambda link, told=told: _news(link) not in ("", told))  # type: ignore[misc]
        told = _news(link)
        output.say(told)


def _news(link: Link) -> str:
    """What is worth telling of a connection, if anything."""
    from sealwire_client.link import LinkState

    return f"Connected to {link.origin}" if link.state is LinkState.ONLINE else link.last_error or ""


async def _until_unread() -> None:
    """End the watch when the reading end of the pipe behind stdout is closed, also if nothing more is to be printed."""
    import trio

    from sealwire_client.cli.failures import OutputClosed

    kind = os.fstat(1).st_mode
    if stat.S_ISFIFO(kind):
        # A pipe's writing end never becomes readable; that it breaks wakes whoever waits for that.
        await trio.lowlevel.wait_readable(1)
        abandon_stdout()
        raise OutputClosed
