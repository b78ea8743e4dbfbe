"""`vault members | head | remove | rotate`: who belongs to a vault, and under which key."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sealwire_client.cli import moving, options, parting
from sealwire_client.cli.failures import Failure, relay_missing, usage
from sealwire_client.cli.output import Output, compact, visible

if TYPE_CHECKING:
    from sealwire_client.cli.place import Place
    from sealwire_client.membering import VaultMember
    from sealwire_client.vault import Vault

KEY_DIGITS: Final = 8
"""So many digits of a device's key are shown, and are enough to name it."""


@click.group(short_help="Who belongs to a vault: list, remove; change the key; move, leave or delete it.")
def vault() -> None:
    """The devices that belong to a vault, the key that they share, and the relay that it is at."""


vault.add_command(moving.move)
vault.add_command(moving.follow)
for _command in (parting.leave, parting.delete, parting.forget):
    vault.add_command(_command)


@vault.command(short_help="List the devices that belong to the vault.")
@options.vault
@options.folder_and_json
def members(vault: str | None, folder: Path | None, as_json: bool) -> None:
    """List the devices that belong to the vault, a line for each: name, role, the beginning of its key.

    The answer is what this device knows, without asking the relay: `sealwire status` hears first what is new.
    """
    from sealwire_client.cli import place, running

    output, found = Output(as_json), place.existing(folder)
    running.run(lambda: _list(found, vault, output))


async def _list(place: Place, name: str | None, output: Output) -> None:
    from sealwire_client.cli import session

    async with session.opened(place) as device:
        found = session.chosen(device, place, name).members
    for member in found:
        if output.as_json:
            output.write(compact(_fields(member)))
        else:
            this = "\tthis device" if member.is_this else ""
            key = member.device.hex()[:KEY_DIGITS]
            output.write(f"{visible(member.name)}\t{member.role.name.lower()}\t{key}{this}")
    output.flush()


def _fields(member: VaultMember) -> dict[str, object]:
    role = member.role.name.lower()
    return {"name": member.name, "device": member.device.hex(), "role": role, "is_this": member.is_this}


@vault.command(short_help="Show eight words that two people can compare.")
@options.vault
@options.folder_and_json
def head(vault: str | None, folder: Path | None, as_json: bool) -> None:
    """Show how many links the vault's membership log has here, and eight words for all that they say.

    Read them out to somebody else of the vault, who does the same. If they are alike, both devices know the same
    members and keys, and the relay has not shown one of them anything else. While the numbers of links differ, one of
    the devices has yet to hear the newest: the answer is what this device knows, and `sealwire status` asks the relay.
    """
    from sealwire_client.cli import place, running

    output, found = Output(as_json), place.existing(folder)
    running.run(lambda: _head(found, vault, output))


async def _head(place: Place, name: str | None, output: Output) -> None:
    from sealwire_client.cli import session

    async with session.opened(place) as device:
        links, words = session.chosen(device, place, name).head
    output.answer({"links": links, "words": words}, f"{links:,} link{'' if links == 1 else 's'}: {words}")


@vault.command(short_help="Remove a device, and change the key.")
@click.argument("device")
@click.option("--yes", is_flag=True, help="Do not ask first.")
@options.vault
@options.wait(20, "Longest wait for the relay, which is told of it.")
@options.folder_and_json
def remove(device: str, yes: bool, vault: str | None, wait: float, folder: Path | None, as_json: bool) -> None:
    """Remove DEVICE, by its name or the beginning of its key, and change the vault's key.

    It reads nothing that is written from then on, and what it writes is refused. What it holds it keeps: nobody can
    take that back. Only an admin can do this, and not to its own device.
    """
    from sealwire_client.cli import place, running

    output, found = Output(as_json), place.existing(folder)
    if not yes and not sys.stdin.isatty():
        raise usage("A device that is removed is out until it is invited again, and nobody is there to ask: say --yes")

    async def removes(chosen: Vault) -> str:
        member = _named(chosen, device)
        if not yes and not click.confirm(f"Remove {member.name!r} from {chosen.name!r}?", err=True):
            raise Failure("Nobody was removed", "interrupted")
        await chosen.remove(member.device)
        return f"{member.name} was removed, and the vault has a new key"

    running.run(lambda: _change(found, vault, wait, output, removes))


def _named(vault: Vault, name: str) -> VaultMember:
    """The member with this name, or whose key begins so. Raises Failure if there is none, or several."""
    found = [each for each in vault.members if each.name == name]
    found = found or [each for each in vault.members if each.device.hex().startswith(name.lower())]
    if len(found) != 1:
        many = "No device" if not found else f"{len(found)} devices"
        raise Failure(
            f"{many} of the vault {'is' if len(found) < 2 else 'are'} called {name!r}; nobody was removed:"
            " `sealwire vault members` lists them, and the beginning of a key names one",
            "no_member",
        )
    return found[0]


@vault.command(short_help="Let go of what shows that the relay lies.")
@options.vault
@options.folder_and_json
def dismiss(vault: str | None, folder: Path | None, as_json: bool) -> None:
    """Let go of what shows that the relay tells its devices different things, as `sealwire status` lists it under
    `disputed`. Strict writes are made again then.

    Compare first what your devices show, and let `sealwire doctor` tell what differs. If the relay goes on, the next
    statement of another device brings it up again.
    """
    from sealwire_client.cli import place, running

    output, found = Output(as_json), place.existing(folder)
    running.run(lambda: _dismiss(found, vault, output))


async def _dismiss(place: Place, name: str | None, output: Output) -> None:
    from sealwire_client.cli import session

    async with session.opened(place) as device:
        count = await session.chosen(device, place, name).dismiss()
    output.answer({"dismissed": count}, f"{count:,} dismissed" if count else "nothing is disputed")


@vault.command(short_help="Change the vault's key.")
@options.vault
@options.wait(20, "Longest wait for the relay, which is told of it.")
@options.folder_and_json
def rotate(vault: str | None, wait: float, folder: Path | None, as_json: bool) -> None:
    """Change the vault's key: what is written from then on is sealed under the new one. Only an admin can do this."""
    from sealwire_client.cli import place, running

    output, found = Output(as_json), place.existing(folder)

    async def rotates(chosen: Vault) -> str:
        await chosen.rotate()
        return "the vault has a new key"

    running.run(lambda: _change(found, vault, wait, output, rotates))


async def _change(
    place: Place, name: str | None, wait: float, output: Output, change: Callable[[Vault], Awaitable[str]]
) -> None:
    import trio

    from sealwire_client.cli import session

    async with session.opened(place) as device:
        chosen = session.chosen(device, place, name)
        await session.reach_for(device, chosen, wait, "nothing was changed")
        told = None
        with trio.move_on_after(wait):
            told = await change(chosen)
        if told is None:
            why = session.why_not(await chosen.status(), chosen.origin, wait)
            raise relay_missing(f"It is not known whether that was done: {why}; look with `sealwire vault members`")
        output.answer({"members": len(chosen.members)}, told)
