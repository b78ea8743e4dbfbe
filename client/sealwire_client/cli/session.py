"""A device open for one command: its folder's lock, the vault that is meant, and waiting for the relay, bounded."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from typing import Any, Final

import trio

from sealwire_client.cli import config
from sealwire_client.cli.failures import FORGET, Failure, relay_missing, sentence
from sealwire_client.cli.output import Bar, say, visible
from sealwire_client.cli.place import Place
from sealwire_client.collection import Collection
from sealwire_client.device import Device
from sealwire_client.policies import latest, merge, strict
from sealwire_client.replica import ColumnsChangedError, Replica, ReplicaInUseError
from sealwire_client.status import State, Status
from sealwire_client.vault import Vault
from sealwire_protocol.ids import VaultId
from sealwire_protocol.links import Role

IN_USE_SECONDS_MAX: Final = 2.0
"""Another command on the same folder is usually done sooner; what takes longer is a `watch`, or an app."""

LOOK_SECONDS_MIN: Final = 0.01
LOOK_SECONDS_MAX: Final = 0.1
"""Between two looks at how far things have come; the last one is also how often a progress bar moves."""

LOOK_SHARE: Final = 4
"""A look may cost a fifth of the time: counting a long outbox keeps its writer from work."""

ID_DIGITS: Final = 8
"""Hex digits of a vault's id that are shown: enough to tell the vaults of one device apart."""

Entries = Collection[dict[str, Any]]


@asynccontextmanager
async def opened(
    place: Place, relay: str | None = None, patience_seconds: float = IN_USE_SECONDS_MAX, repairs: bool = True
) -> AsyncIterator[Device]:
    """The device of a place, made if there is none. Waits so long for another process to let go of it. `repairs`: of a
    damaged file, see `Device.open`."""
    patience = trio.current_time() + patience_seconds
    async with AsyncExitStack() as stack:
        while True:
            opening = Device.open(place.folder, relay=relay, passphrase=place.passphrase, repairs=repairs)
            try:
                device = await stack.enter_async_context(opening)
                break
            except ReplicaInUseError:
                if trio.current_time() > patience:
                    raise
            await trio.sleep(LOOK_SECONDS_MAX)
        for told in (device.repaired, device.incomplete):
            if told is not None:
                say(sentence(visible(str(told))))
        yield device


def move(place: Place, vault: VaultId, relay: str, token: bytes) -> bool:
    """Give a vault another relay, durably, if nothing of it has left this device yet, and the registration token for
    that (empty: none). True if it was given.

    The device must not be open. Raises ReplicaError.
    """
    with closing(Replica(place.folder)) as replica:
        return any(replica.vaults.move(held, relay, token) for held in replica.vaults.all() if held.id == vault)


def keep_token(place: Place, vault: VaultId, token: bytes) -> None:
    """Give a vault another registration token, durably, which its relay is shown from the next connection on. The
    device must not be open. Raises ReplicaError."""
    with closing(Replica(place.folder)) as replica:
        for held in replica.vaults.all():
            if held.id == vault:
                replica.vaults.keep_token(held.number, token)


def chosen(device: Device, place: Place, name: str | None) -> Vault:
    """The vault that is meant: the one named, else the folder's default, else the only one."""
    if not device.vaults and device.incomplete:
        raise Failure(device.incomplete, "no_vault")
    default = config.read(place.folder).vault
    if not device.vaults and default is not None:
        raise Failure(
            f"The device in {place.folder} does not hold its vault ({default[:ID_DIGITS]}) any more: its replica is"
            " gone, and what it had not sent is gone with it; run `sealwire invite` on another device of the vault, and"
            " `sealwire join` with that link here",
            "no_vault",
        )
    if not device.vaults:
        raise Failure(
            f"The device in {place.folder} holds no vault yet: make one with `sealwire init`, or `sealwire join` one",
            "no_vault",
        )
    name = name or default
    if name is None and len(device.vaults) == 1:
        return device.vaults[0]
    held = ", ".join(f"{vault.name} ({vault.id.hex()[:ID_DIGITS]})" for vault in device.vaults)
    if name is None:
        raise Failure(f"None of this device's vaults is the default: {held}; name one with --vault", "no_vault")
    try:
        return device.vault(name)
    except LookupError:
        raise Failure(
            f"{name!r} names not exactly one vault of this device, which are: {held}; give --vault a name, or the"
            " beginning of an id where a name is not enough",
            "no_vault",
        ) from None


POLICIES: Final = {"latest": latest, "merge": merge, "strict": strict}
"""What the command line can do about conflicts."""


async def entries(vault: Vault, name: str, wanted: str | None = None) -> Entries:
    """A collection of the command line: dicts. Its policy: the one `wanted`, else the one that it has here, else the
    latest wins."""
    policy = wanted or await vault.policy_of(name) or "latest"
    try:
        if policy in POLICIES:
            signed = await vault.is_signed(name)
            return await vault.collection(name, dict, policy=POLICIES[policy](), signed=signed)
        raise ColumnsChangedError(policy)
    except ColumnsChangedError as error:
        raise Failure(
            f"Collection {name} belongs to an app, which gives its values fields of their own; the command line leaves"
            " it alone: use the app",
            "replica",
        ) from error


def check_not_over(vault: Vault, so: str = "nothing was done") -> None:
    """Raises Failure if a vault is over for this device, as far as it has heard."""
    if vault.over is not None:
        raise Failure(f"{vault.over}; {so}; {FORGET}", "no_vault")


async def writable(device: Device, vault: Vault, name: str, policy: str | None, seconds: float) -> Entries:
    """A collection to be written to, with everything else that waits on its way. If it is strict, its relay is waited
    for. Raises Failure, also if the vault is over for this device, or it may only read: nothing would ever be sent."""
    check_not_over(vault, "nothing was written")
    if any(member.is_this and member.role is Role.READER for member in vault.members):
        raise Failure(
            f"This device may only read vault {vault.name}, so nothing was written: ask an admin of it to remove this"
            " device and to invite it again as a writer",
            "membership",
        )
    found = await entries(vault, name, policy)
    await open_known(vault)
    if found.is_strict:
        await reach(device, vault.origin, seconds, f"collection {name} is strict, so nothing was written")
    return found


async def open_known(vault: Vault) -> list[str]:
    """Open every collection that holds something here, so that all of what waits is sent. Returns their names; those
    that belong to an app are left to it."""
    names = []
    for name in await vault.collections():
        with suppress(Failure):
            await entries(vault, name)
            names.append(name)
    return names


Reached = Callable[[Status], bool]


def in_step(status: Status) -> bool:
    """Everything sent, everything received."""
    return status.state is State.SYNCED


def all_sent(status: Status) -> bool:
    """Everything sent, and confirmed by the relay."""
    return status.pending == 0


def failed(status: Status) -> bool:
    """The relay was tried, and is not there for us."""
    return status.state in (State.REFUSED, State.OFFLINE)


async def until(vault: Vault, reached: Reached, seconds: float, bar: Bar) -> Status:
    """Wait until a vault's status satisfies a condition, and return it; the last one, if it does not come to that.

    Given up once the relay cannot be reached, or nothing has moved for `seconds`: as long as something moves, it
    may take its time.
    """
    moved, last, most = trio.current_time(), (-1, -1), 0
    pause = LOOK_SECONDS_MIN
    while True:
        began = trio.current_time()
        status = await vault.status()
        now = trio.current_time()
        left = status.pending + status.behind
        most = max(most, left)
        if reached(status):
            return status
        if (status.pending, status.behind) != last:
            moved, last = now, (status.pending, status.behind)
        if failed(status) or now - moved >= seconds:
            return status
        if most:
            bar.update(most - left, most)
        pause = min(pause * 1.5, LOOK_SECONDS_MAX)
        await trio.sleep(max(pause, LOOK_SHARE * (now - began)))


def why_not(status: Status, origin: str, seconds: float) -> str:
    """Why a vault is not in step with its relay, in words that can follow a colon."""
    if not seconds:
        return "the relay was not waited for"
    if status.last_error:
        return status.last_error
    if status.state is State.CONNECTING:
        return f"{origin} did not answer within {seconds:g} s"
    return f"the relay did not confirm it within {seconds:g} s"


def fate(status: Status, refused: int) -> str:
    """What became of writes, plainly; `refused`: how many of them the relay refused for good."""
    if refused > 0:
        return "refused by the relay"
    if not status.pending:
        return "sent"
    if status.state is State.REFUSED:
        return "not sent, since the relay refuses this device"
    return "will be sent when the relay is reachable"


async def reach(device: Device, origin: str, seconds: float, then: str) -> None:
    """Wait until a relay has let this device in. Raises Failure after `seconds`, or at once if it refuses for good.

    `then` is what to do next.
    """
    from sealwire_client.link import LinkState

    link = device.link(origin)
    with trio.move_on_after(seconds):
        await link.until(lambda link: link.state in (LinkState.ONLINE, LinkState.REFUSED))
    if link.state is LinkState.ONLINE:
        return
    told = link.last_error or f"{origin} did not answer within {seconds:g} s"
    raise relay_missing(f"{told}; {then}")


async def reach_for(device: Device, vault: Vault, seconds: float, then: str) -> None:
    """Wait until a vault's relay has let this device in, and has told it of the members. Raises Failure as `reach`
    does, and if the vault is over for this device, or its relay says that it knows no such vault for it."""
    check_not_over(vault)
    await reach(device, vault.origin, seconds, then)
    with trio.move_on_after(seconds):
        await vault.known()
    check_not_over(vault)
    if not vault.is_known:
        why = why_not(await vault.status(), vault.origin, seconds)
        if vault.is_known is None:
            raise relay_missing(f"{why}; {then}")
        raise Failure(f"{why}; or {FORGET}", "no_vault")
