"""`doctor`: whether what this device holds is what its relays hold."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sealwire_client.cli import options
from sealwire_client.cli.output import Output, visible
from sealwire_client.cli.status import disputed_fields

if TYPE_CHECKING:
    from sealwire_client.cli.place import Place
    from sealwire_client.findings import CollectionFindings, Difference, Findings, Side, VaultFindings

SAY_AFTER_SECONDS: Final = 1.0
"""What is done sooner needs no remark."""

KEY_CHARACTERS_MAX: Final = 80
"""So much of a key is shown to people."""

CODES: Final = {"in_sync": 0, "differs": 1, "waiting": 1, "unknown": 2}
"""Exit codes by verdict: as programs that compare files give them."""

_SUMMARY: Final = {
    "in_sync": "in sync",
    "differs": "not in sync; `sealwire doctor --repair` repairs what can be repaired here",
    "waiting": "not in sync yet: something is on its way; look again, with a longer --wait",
    "unknown": "it cannot be told whether this device is in sync",
}
_WHERE: Final = {"here": "only here", "relay": "only at the relay", "both": "another version on either side"}


@click.command(short_help="Compare this device with its relays, and repair it.")
@click.option("--repair", is_flag=True, help="Repair a damaged file, and make what differs be as the relay has it.")
@click.option("--vault", metavar="NAME", help="One vault, by its name or the beginning of its id; else all.")
@options.wait(30, "Longest wait for this device to come into step while the work left does not become less.")
@options.folder_and_json
def doctor(repair: bool, vault: str | None, wait: float, folder: Path | None, as_json: bool) -> int:
    """Am I in sync? Checks the replica's file, brings this device into step with its relays, and compares every
    collection with what its relay has, by counts and fingerprints. What differs is named.

    Exit code 0 if everything is in sync, 1 if something differs, is damaged or has not come yet, 2 if it cannot be
    told (the relay was not reached, or is too old).
    """
    from sealwire_client.cli import place, running

    output, found = Output(as_json), place.existing(folder)
    return running.run(lambda: _doctor(found, vault, repair, wait, output))


async def _doctor(place: Place, name: str | None, repair: bool, wait: float, output: Output) -> int:
    from sealwire_client.replica import NotAReplicaError, ReplicaCorruptError, holds_a_replica

    try:
        return await _examine(place, name, repair, wait, output)
    except ReplicaCorruptError as error:
        if not repair:
            return _damaged(str(error), output)
    except NotAReplicaError:
        if repair or not holds_a_replica(place.folder):
            raise
        return _damaged(f"the header of the replica in {place.folder} is damaged; nothing was changed", output)
    return await _examine(place, name, repair, wait, output)  # the damage was met after the device was opened


def _damaged(why: str, output: Output) -> int:
    told = f"{why} `sealwire doctor --repair` does so, and so does any other command."
    fields: dict[str, Any] = {"verdict": "differs", "damaged": why, "repaired": None, "incomplete": None, "vaults": []}
    output.answer(fields, f"{'file':12}{visible(told)}")
    return CODES["differs"]


async def _examine(place: Place, name: str | None, repair: bool, wait: float, output: Output) -> int:
    from sealwire_client.cli import session

    async with session.opened(place, repairs=repair) as device:
        vaults = [session.chosen(device, place, name)] if name or not device.vaults else device.vaults
        for vault in vaults:
            await session.open_known(vault)
        async with _patience(wait, output):
            findings = await device.examine(*vaults, repair=repair, patience_seconds=wait)
        repaired = None if device.repaired is None else str(device.repaired)
    fields = {
        "verdict": findings.verdict,
        "damaged": None,
        "repaired": repaired,
        "incomplete": findings.incomplete,
        "vaults": [_vault(found) for found in findings.vaults],
    }
    output.answer(fields, "\n".join(_lines(findings, repaired)))
    return CODES[findings.verdict]


@asynccontextmanager
async def _patience(wait: float, output: Output) -> AsyncIterator[None]:
    """Say what is done if it takes its time."""
    import trio

    async def remark() -> None:
        await trio.sleep(SAY_AFTER_SECONDS)
        output.say(
            "This device is brought into step first, as long as it comes nearer to that"
            f" (else {wait:g} s), and is then compared"
        )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(remark)
        yield
        nursery.cancel_scope.cancel()


# --- for programs


def _vault(found: VaultFindings) -> dict[str, Any]:
    return {
        "vault": found.name,
        "id": found.id.hex(),
        "relay": found.origin,
        "state": found.state,
        "verdict": found.verdict,
        "why": found.why,
        "disputed": [disputed_fields(each) for each in found.disputed],
        "collections": [_collection(each) for each in found.collections],
    }


def _collection(found: CollectionFindings) -> dict[str, Any]:
    counts = found.counts
    return {
        "collection": found.name,
        "verdict": found.verdict,
        "told": str(found),
        "entries": counts.entries,
        "deletions": counts.deletions,
        "unsent": counts.unsent + counts.answered,
        "stuck": counts.stuck,
        "unreadable": counts.unreadable,
        "behind": found.behind,
        "opened": found.opened,
        "here": {"records": found.here.records, "fingerprint": found.here.fingerprint, "at": found.here.at},
        "relay": None if found.relay is None else asdict(found.relay),
        "difference": _difference(found.difference),
        "repaired": _difference(found.repaired),
    }


def _difference(found: Difference | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {**asdict(found), "keys": [each._asdict() for each in found.keys]}


# --- for people


def _lines(findings: Findings, repaired: str | None) -> Iterator[str]:
    yield f"{'file':12}{'sound' if repaired is None else visible(repaired)}"
    if findings.incomplete is not None:
        yield f"{'incomplete':12}{visible(findings.incomplete)}"
    for vault in findings.vaults:
        yield f"{'vault':12}{visible(vault.name)} ({vault.id.hex()[:8]}) at {vault.origin}: {vault.state}"
        if vault.why is not None:
            yield f"{'':12}{visible(vault.why)}"
        for dispute in vault.disputed:
            yield f"{'  disputed':12}{visible(str(dispute))}"
        for found in vault.collections:
            yield from _of_collection(found)
    yield f"{'verdict':12}{_SUMMARY[findings.verdict]}"


def _of_collection(found: CollectionFindings) -> Iterator[str]:
    counts = found.counts
    yield f"{found.name:12}{visible(str(found))}"
    yield f"{'  shown':12}{counts.entries:,} entries; deletions remembered: {counts.deletions:,}"
    yield f"{'  here':12}{_side(found.here)}"
    if found.relay is not None:
        forgotten = f"; deletions up to position {found.relay.floor:,} are forgotten" if found.relay.floor else ""
        yield f"{'  relay':12}{_side(found.relay)}{forgotten}"
    if found.difference is not None:
        yield from _of_difference(found.difference)


def _side(side: Side) -> str:
    return f"fingerprint {side.fingerprint} of {side.records:,} entries and deletions, at position {side.at:,}"


def _of_difference(difference: Difference) -> Iterator[str]:
    which = f"tags that begin with {difference.prefix}" if difference.prefix else "all tags"
    yield (
        f"{'  differs':12}first in the range of {which}: {difference.prefix_here:,} here,"
        f" {difference.prefix_relay:,} at the relay"
    )
    for key, where in difference.keys:
        shown = "(a record that cannot be opened)" if key is None else visible(key[:KEY_CHARACTERS_MAX])
        yield f"{'':12}{shown}: {_WHERE[where]}"
    if difference.count > len(difference.keys):
        yield f"{'':12}and {difference.count - len(difference.keys):,} more"
