"""`status`: how this device stands to its relay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sealwire_client.cli import options
from sealwire_client.cli.failures import ExitCode
from sealwire_client.cli.output import Bar, Output, visible

if TYPE_CHECKING:
    from sealwire_client.cli.place import Place
    from sealwire_client.status import Disputed, Status


@click.command(short_help="Send and fetch, and tell how this device stands.")
@options.vault
@options.wait(5, "Longest wait for the vault to come into step while nothing moves; 0: tell how it is now.")
@options.folder_and_json
def status(vault: str | None, wait: float, folder: Path | None, as_json: bool) -> ExitCode:
    """Send what waits, fetch what is new, and tell how this device stands to its relay.

    Exit code 0 if it is in step with it, 3 if not.
    """
    from sealwire_client.cli import place, running

    output, found = Output(as_json), place.existing(folder)
    return running.run(lambda: _status(found, vault, wait, output))


async def _status(place: Place, name: str | None, wait: float, output: Output) -> ExitCode:
    from sealwire_client.cli import session
    from sealwire_client.status import State

    async with session.opened(place) as device:
        vault = session.chosen(device, place, name)
        collections = await session.open_known(vault)
        with Bar("Coming into step", output) as bar:
            found = await session.until(vault, session.in_step, wait, bar)
        if found.state is State.CONNECTING and wait:  # this command ends before the connection is given up
            found = replace(found, last_error=session.why_not(found, vault.origin, wait))
        fields = {
            "state": found.state,
            "vault": vault.name,
            "id": vault.id.hex(),
            "relay": vault.origin,
            "device": device.key.hex(),
            "folder": str(place.folder),
            "collections": collections,
            "pending": found.pending,
            "behind": found.behind,
            "stuck": found.stuck,
            "unreadable": found.unreadable,
            "members": found.members,
            "last_synced": _milliseconds(found.last_synced),
            "last_error": found.last_error,
            "disputed": [disputed_fields(each) for each in found.disputed],
            "devices": [
                {"name": one.name, "key": one.key.hex(), "this": one.is_this, "heard": _milliseconds(one.last_heard)}
                for one in found.devices
            ],
        }
    output.answer(fields, "\n".join(_lines(fields, found)))
    return ExitCode.DONE if session.in_step(found) else ExitCode.RELAY


def _lines(fields: Mapping[str, object], found: Status) -> Iterator[str]:
    """The answer for people."""
    for name, value in fields.items():
        if name == "last_synced":
            yield f"{name:12}{_when(found.last_synced)}"
        elif name == "devices":
            for one in found.devices:
                told = "this one" if one.is_this else f"last heard {_when(one.last_heard)}"
                yield f"{'device':12}{visible(one.name or one.key.hex())}: {told}"
        elif name == "disputed":
            for dispute in found.disputed:
                yield f"{'disputed':12}{visible(str(dispute))}"
            if found.disputed:
                yield f"{'':12}the relay shows its devices different histories, or has dropped a record: no strict"
                yield f"{'':12}write is made until you have looked, and said `sealwire vault dismiss`"
        else:
            yield f"{name:12}{_shown(name, value)}"


def disputed_fields(dispute: Disputed) -> dict[str, object]:
    """What programs are told of a dispute."""
    return {
        "collection": dispute.collection,
        "device": dispute.device,
        "key": dispute.key.hex(),
        "seq": dispute.seq,
        "back": dispute.back,
        "since": _milliseconds(dispute.since),
        "held": dispute.held.hex(),
        "theirs": dispute.theirs.hex(),
    }


def _milliseconds(at: datetime | None) -> int | None:
    return None if at is None else round(at.timestamp() * 1000)


def _when(at: datetime | None) -> str:
    return "never" if at is None else at.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


_MEANING = {
    "pending": "writes not yet confirmed by the relay",
    "behind": "records at the relay, not yet here",
    "stuck": "writes that the relay refused for good, kept here",
    "unreadable": "records that could not be opened, kept here",
    "members": "devices",
}


def _shown(name: str, value: object) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "none"
    if value is None:
        return "none"
    meaning = _MEANING.get(name)
    return f"{value:<10,} {meaning}" if meaning and isinstance(value, int) else visible(str(value))
