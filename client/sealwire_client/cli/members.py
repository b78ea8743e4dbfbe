"""`init`, `invite` and `join`: making a device and its vault, and bringing devices together."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sealwire_client.cli import options
from sealwire_client.cli.failures import Failure, relay_missing, usage
from sealwire_client.cli.output import Output, visible

if TYPE_CHECKING:
    from sealwire_client.cli.picture import Shown
    from sealwire_client.cli.place import Place
    from sealwire_client.device import Device
    from sealwire_client.inviting import NewMember, PendingInvite
    from sealwire_client.vault import Vault

INVITE_SECONDS: Final = 600
INVITE_SECONDS_MAX: Final = 86_400
"""What a relay keeps a mailbox for at most."""

NAME_CHARACTERS_MAX: Final = 32
"""A device's own name, when it is taken from the machine's."""


def default_name() -> str:
    """What a device is called that nobody has named: the machine's name."""
    return socket.gethostname().split(".")[0][:NAME_CHARACTERS_MAX]


@click.command(short_help="Make this device, and a vault.")
@click.option(
    "--relay", required=True, envvar="SEALWIRE_RELAY", metavar="URL", help="The relay, as in wss://relay.example.org."
)
@click.option("--vault", default="home", show_default=True, metavar="NAME", help="What to call the vault.")
@click.option("--name", metavar="DEVICE", help="What to call this device; else the name of this machine.")
@click.option(
    "--token", envvar="SEALWIRE_TOKEN", metavar="TOKEN", help="A registration token, for relays that ask for one."
)
@options.passphrase
@options.wait(5, "Longest wait for the relay; 0: do not wait.")
@options.folder_and_json
def init(
    relay: str,
    vault: str,
    name: str | None,
    token: str | None,
    protect: bool,
    wait: float,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Make this device, with keys of its own, and a vault of which it is the first member.

    Works without the relay too, which is then told of the vault later. In a folder that has a device already it
    makes a further vault. If the vault is there already and nothing of it has left this device yet, it gets this
    relay: so a wrong address is corrected. So is a token: the vault that is there gets this one.
    """
    from sealwire_client.cli import place, running
    from sealwire_client.transport import check_origin
    from sealwire_protocol.login import normal_origin
    from sealwire_protocol.registration import token_bytes

    origin = normal_origin(relay)
    check_origin(origin)
    if token is not None:
        token_bytes(token)
    output, found = Output(as_json), place.new(folder, protect)
    running.run(lambda: _init(found, origin, vault, name or default_name(), token, wait, output))


async def _init(
    place: Place, relay: str, name: str, device_name: str, token: str | None, wait: float, output: Output
) -> None:
    from sealwire_client.cli import session
    from sealwire_protocol.registration import token_bytes

    async with session.opened(place, relay) as device:
        held = next((vault for vault in device.vaults if vault.name == name), None)
        if held is None:
            vault = await device.create_vault(name, device_name=device_name, token=token)
            keep_default(place, device, vault)
            made = f"Vault {name} is made on device {device_name}"
            await _tell_made(made, place, device, vault, wait, output)
            return
    shown = b"" if token is None else token_bytes(token)
    if held.origin == relay and token is not None:
        made = f"Vault {name} has this token from now on"
        session.keep_token(place, held.id, shown)
    elif held.origin != relay and session.move(place, held.id, relay, shown):
        made = f"Vault {name} has the relay {relay} from now on, not {held.origin}"
    else:
        raise Failure(
            f"The device in {place.folder} holds a vault {name!r} already, with the relay {held.origin}: nothing was"
            " changed; go on with `sealwire status`, or name another vault with --vault",
            "exists",
        )
    async with session.opened(place, relay) as device:
        vault = device.vault(held.id.hex())
        keep_default(place, device, vault)
        if await _tell_made(made, place, device, vault, wait, output) and token is not None and held.origin == relay:
            await vault.register(token)  # a relay that knows the vault lets it store what the token allows


async def _tell_made(made: str, place: Place, device: Device, vault: Vault, wait: float, output: Output) -> bool:
    """Say what was made, and whether the relay knows of it. True: it does."""
    from sealwire_client.cli import config
    from sealwire_client.link import LinkState

    why = await _why_unknown(vault, wait, output)
    fields = {"folder": str(place.folder), "device": device.key.hex(), "vault": vault.name, "id": vault.id.hex()}
    online = device.link(vault.origin).state is LinkState.ONLINE
    failed = "The relay has not taken it in" if online else "The relay was not reached"
    rest = "The relay has it." if why is None else f"{failed}: {why}."
    output.answer(
        {**fields, "relay": vault.origin, "relay_reached": why is None, "why": why},
        visible(f"{made}, in {place.folder}. {rest}"),
    )
    if why is not None:
        output.say(
            "Everything on this device works meanwhile, and the relay is told by the next command that reaches it."
            f" If {vault.origin} is the wrong address, say the same again with the right one; so with a --token"
        )
    if config.read(place.folder).vault != vault.id.hex():
        output.say(f"The folder's default stays another vault; name this one with --vault {vault.name}")
    return why is None


async def _why_unknown(vault: Vault, wait: float, output: Output) -> str | None:
    """Wait until the relay has the vault, no longer than makes sense. Why it does not; None: it does."""
    from sealwire_client.cli import session
    from sealwire_client.cli.output import Bar
    from sealwire_client.status import State, Status

    def known(status: Status) -> bool:
        return not session.failed(status) and status.state not in (State.CONNECTING, State.CATCHING_UP)

    with Bar("Telling the relay", output) as bar:
        status = await session.until(vault, known, wait, bar)
    return None if known(status) else session.why_not(status, vault.origin, wait).rstrip(".")


def keep_default(place: Place, device: Device, vault: Vault) -> None:
    """The first vault of a folder is what commands mean when none is named, for as long as it is there."""
    from sealwire_client.cli import config

    default = config.read(place.folder).vault
    stays = device.incomplete is not None or any(held.id.hex() == default for held in device.vaults)
    if not stays or default == vault.id.hex():
        config.write(place.folder, config.Config(vault.origin, vault.id.hex()))


@click.command(short_help="Invite one more device, and wait for it.")
@click.option(
    "--seconds",
    type=click.IntRange(1, INVITE_SECONDS_MAX),
    help="How long the invite can be used: 600 if not said, with --confirm a day.",
)
@click.option(
    "--confirm", is_flag=True, help="For somebody else's device: you both see a code, and you say if it is the same."
)
@click.option(
    "--role",
    type=click.Choice(["reader", "writer", "admin"]),
    help="What the invited device may do: read; read and write (if not said); or also invite and remove devices (with"
    " --all-vaults, if not said).",
)
@click.option(
    "--all-vaults", is_flag=True, help="For a device of your own: one approval lets it into all vaults that are yours."
)
@click.option("--qr", "as_qr", is_flag=True, help="Show the link as a QR code too, on stderr.")
@click.option(
    "--png",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the link as a QR code into FILE too, a PNG that only you can read.",
)
@click.option("--overwrite", is_flag=True, help="FILE of --png may be replaced.")
@options.vault
@options.wait(20, "Longest wait for the relay, which keeps the invite's mailbox.")
@options.folder_and_json
def invite(
    seconds: int | None,
    confirm: bool,
    role: str | None,
    all_vaults: bool,
    as_qr: bool,
    png: Path | None,
    overwrite: bool,
    vault: str | None,
    wait: float,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Print an invite for one more device, wait until it is used, and approve that device.

    The link is a secret until then, and so is its QR code: show it to the invited person alone. It works once. Ctrl-C
    takes it back. With --confirm the device is let in when you have compared its code with its owner, by telephone or
    side by side, and answered y.

    With --all-vaults the device comes into every vault in which this one is an admin.
    """
    from sealwire_client.cli import picture, place, running

    if all_vaults and vault is not None:
        raise usage("Either --all-vaults or one --vault: name one of them; no invite was made")
    shown = picture.asked(as_qr, png, overwrite)
    output, found = Output(as_json), place.existing(folder)
    lasts = seconds or (INVITE_SECONDS_MAX if confirm else INVITE_SECONDS)
    role = role or ("admin" if all_vaults else "writer")
    running.run(lambda: _invite(found, vault, lasts, confirm, role, all_vaults, shown, wait, output))


async def _invite(
    place: Place,
    name: str | None,
    seconds: int,
    confirm: bool,
    role: str,
    all_vaults: bool,
    shown: Shown,
    wait: float,
    output: Output,
) -> None:
    import trio

    from sealwire_client.cli import session
    from sealwire_protocol.links import Role

    async with session.opened(place) as device:
        vault = device.vaults[0] if all_vaults and device.vaults else session.chosen(device, place, name)
        if not all_vaults:
            then = "an invite needs the relay, so none was made; try again later"
            await session.reach_for(device, vault, wait, then)
        pending: PendingInvite | None = None
        with trio.move_on_after(wait):
            invites = device if all_vaults else vault
            pending = await invites.invite(seconds=seconds, role=Role[role.upper()], confirm=confirm)
        if pending is None:
            status = await vault.status()
            why = session.why_not(status, vault.origin, wait)
            raise relay_missing(f"The relay opened no mailbox for an invite: {why}; none was made; try again later")
        shown.write(pending)
        output.answer({"link": pending.link, "seconds": seconds, "role": role}, pending.link)
        output.say(f"On the other device, within {_told(seconds)}: sealwire join LINK. This command waits for it")

        async def agree(code: str, name: str) -> bool:
            output.answer({"asks": {"name": name, "code": code}}, f"{visible(name)} asks to join, with the code {code}")
            if os.isatty(0):
                import termios

                termios.tcflush(0, termios.TCIFLUSH)  # what was typed before the question is no answer to it
            output.say("Does its owner see the same code? y lets the device in, anything else refuses it")
            said = await trio.to_thread.run_sync(first_line, 0, abandon_on_cancel=True)
            return said.strip().lower() in (b"y", b"yes")

        member = await pending.joined(agree if confirm else None)
        _tell_joined(device, member, output)


def _tell_joined(device: Device, member: NewMember, output: Output) -> None:
    """Say who has joined which vaults, and which not."""
    names = [device.vault(vault.hex()).name for vault in member.vaults]
    left_out = [{"vault": each.name, "id": each.vault.hex(), "why": each.why} for each in member.left_out]
    fields = {"device": member.device.hex(), "name": member.name, "vaults": names, "left_out": left_out}
    who = visible(member.name) or member.device.hex()[:16]
    told = f"{who} has joined {visible(', '.join(names))}."
    output.answer({"joined": fields}, told)
    for each in member.left_out:
        output.say(f"It was not let into {visible(each.name)}: {each.why}")


ANSWER_BYTES_MAX: Final = 1_024
"""A yes or no."""


def first_line(fd: int) -> bytes:
    """The first line that somebody types, or a pipe brings, in however many pieces; what came, if no more does."""
    said = b""
    while b"\n" not in said and len(said) < ANSWER_BYTES_MAX and (piece := os.read(fd, ANSWER_BYTES_MAX)):
        said += piece
    return said.split(b"\n")[0]


def _told(seconds: int) -> str:
    if seconds >= 7_200:
        return f"{seconds // 3_600} hours"
    return f"{seconds // 60} minutes" if seconds >= 120 else f"{seconds} seconds"


@click.command(short_help="Join the vault of an invite.")
@click.argument("link")
@click.option("--name", metavar="DEVICE", help="What to call this device; else the name of this machine.")
@options.passphrase
@options.wait(20, "Longest wait for the relay, and then for the inviting device.")
@options.folder_and_json
def join(link: str, name: str | None, protect: bool, wait: float, folder: Path | None, as_json: bool) -> None:
    """Join the vault of an invite, while `sealwire invite` waits on the other device.

    Makes this device first if the folder has none. LINK can be seen by other users of this machine while the command
    runs; with - it is read from stdin.
    """
    import sys

    from sealwire_client import invites
    from sealwire_client.cli import place, running
    from sealwire_client.transport import check_origin

    text = sys.stdin.read(LINK_CHARACTERS_MAX) if link == "-" else link
    check_origin(invites.parse(text).origin)
    output, found = Output(as_json), place.new(folder, protect)
    running.run(lambda: _join(found, text, name or default_name(), wait, output))


COMPARE_SECONDS_MAX: Final = 600.0
"""Two people who have begun to compare a code are done with it sooner."""

LINK_CHARACTERS_MAX: Final = 4_096
"""An invite has some 250 characters."""


async def _join(place: Place, link: str, device_name: str, wait: float, output: Output) -> None:
    import trio

    from sealwire_client import invites
    from sealwire_client.cli import session

    invite = invites.parse(link)
    async with session.opened(place) as device:
        held = any(vault.id == invite.vault for vault in device.vaults)
        if not held:
            await session.reach(device, invite.origin, wait, "joining needs the relay; run the same again later")
        vault: Vault | None = None
        with trio.move_on_after(wait) as waiting:

            def show(code: str) -> None:
                waiting.deadline = trio.current_time() + COMPARE_SECONDS_MAX
                output.answer({"code": code}, f"Your code is {code}")
                output.say("Compare it with whoever invited you; if it is the same, they let this device in")

            vault = await device.join(link, device_name=device_name, show_code=show)
        if vault is None:
            raise relay_missing(
                f"The inviting device did not answer within {wait:g} s: see that `sealwire invite` is still running"
                " there and online, and run the same again"
            )
        keep_default(place, device, vault)
        fields = {"folder": str(place.folder), "device": device.key.hex(), "vault": vault.name, "id": vault.id.hex()}
        told = f"Device {device_name} has joined vault {vault.name}"
        if held:
            told = f"This device holds vault {vault.name} already"
        others = {"vaults": await _all_come(device, wait), "awaited": len(device.awaited)} if invite.for_all else {}
        output.answer(
            {**fields, "relay": vault.origin, "held_before": held, **others},
            visible(f"{told}, in {place.folder}."),
        )
        if invite.for_all:
            _tell_vaults(device, output)


async def _all_come(device: Device, wait: float) -> list[str]:
    """Wait for the vaults that this device was let into, as long as they keep coming; the names of all it holds."""
    import trio

    while device.awaited:
        with trio.move_on_after(wait) as waiting:
            await device.another_vault()
        if waiting.cancelled_caught:
            break
    return [vault.name for vault in device.vaults]


def _tell_vaults(device: Device, output: Output) -> None:
    """Say which vaults a device holds that was let into several, and which it does not hold yet."""
    output.say(f"It holds {visible(', '.join(vault.name for vault in device.vaults))} now")
    for promise, why in device.awaited.items():
        why = why or f"{promise.origin} did not send it yet"
        output.say(f"One more vault comes by itself, while any command runs that reaches its relay: {why}")
