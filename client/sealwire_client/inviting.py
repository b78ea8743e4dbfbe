"""An invite that waits to be used, on the device that made it: the letters of who uses it, and the answers to them."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from sealwire_client import invites, qr
from sealwire_client.admitting import LeftOut, admit, admit_to_all, promise_of
from sealwire_client.identity import DeviceIdentity
from sealwire_client.invites import Approved, Invite, InviteError, Refused, Request, Revealed, Verdict
from sealwire_client.link import Link
from sealwire_client.sync import VaultSync
from sealwire_protocol.errors import LocalMisuse
from sealwire_protocol.ids import DeviceKey, VaultId
from sealwire_protocol.links import Role
from sealwire_protocol.messages import NO_REQUEST, AnswerJoin, Joined, Joining, OpenMailbox

LOOK_AGAIN_SECONDS: Final = 30.0
"""An inviter that hears nothing looks into the mailbox again so often: the joiner may have left its letter through
another relay process on the same database, of which nobody tells this connection."""


class InviteExpiredError(Exception):
    """Nobody used the invite in time."""


class InviteRefusedError(Exception):
    """The device was not let in: the codes were not the same, or what else the message says."""


Agree = Callable[[str, str], Awaitable[bool]]
"""(code, name of the device that asks) -> does the other side show the same code? Asks a person."""


Syncs = Callable[[], Sequence[VaultSync]]
"""The vaults of this device, as they are now."""


@dataclass(frozen=True, slots=True)
class NewMember:
    """A device that has joined. `vaults`: of which vaults it is a member; `left_out`: of which of this device's not."""

    device: DeviceKey
    name: str
    vaults: tuple[VaultId, ...]
    left_out: tuple[LeftOut, ...] = ()


class PendingInvite:
    """An invite that waits to be used, once. `syncs`: it is for all vaults of this device; None: for one alone."""

    def __init__(
        self,
        invite: Invite,
        seconds: int,
        role: Role,
        sync: VaultSync,
        identity: DeviceIdentity,
        link: Link,
        nonce: bytes = b"",
        syncs: Syncs | None = None,
    ) -> None:
        self._invite, self._role, self._nonce, self._syncs = invite, role, nonce, syncs
        self._sync, self._identity, self._link = sync, identity, link
        self._expires = trio.current_time() + seconds
        self._letter = trio.Event()
        self._sealed, self._revealed = b"", False
        self._parted = {each.held.id: each.membership.parted() for each in (sync, *(syncs() if syncs else ()))}

    @property
    def link(self) -> str:
        """The invite as text. Whoever has it may ask to join, once: show it to the invited person alone."""
        return self._invite.encode()

    def qr_lines(self) -> list[str]:
        """The link as a QR code for a terminal (`qr.lines`). As secret as the link."""
        return qr.lines(self.link)

    def qr_png(self) -> bytes:
        """The link as a QR code in a PNG file's bytes. As secret as the link."""
        return qr.png(self.link)

    async def open(self) -> None:
        """Open the mailbox at the relay, or open it again after a lost connection."""
        self._link.expect_mail(self._invite.mailbox, self._receive)
        left = max(1, int(self._expires - trio.current_time()))
        await self._link.request(OpenMailbox(NO_REQUEST, self._sync.held.id, self._invite.mailbox, left))

    def _receive(self, mail: Joining | Joined) -> None:
        if isinstance(mail, Joining):
            self._sealed = mail.sealed
            self._letter.set()

    async def joined(self, agree: Agree | None = None) -> NewMember:
        """Wait for the one request, approve it, and tell the joiner. Raises InviteExpiredError, RelayRefusedError.

        `agree` is for an invite with `confirm=True`, and only for that: it is asked once, with the code that the joiner
        shows as well, if it is the joiner. If it says no, InviteRefusedError is raised, and nobody was let in.
        """
        if (agree is not None) != bool(self._nonce):
            raise LocalMisuse("joined(agree) is for invites that were made with confirm=True, and those need it")
        try:
            with trio.fail_at(self._expires):
                while True:
                    await self._wait_for_letter()
                    try:
                        request = invites.open_request(self._invite, self._sealed)
                    except InviteError:
                        self._letter = trio.Event()
                        continue
                    if agree is not None and not self._is_member(request.device):
                        await self._compare(request, agree)
                    return await self._approve(request)
        except trio.TooSlowError:
            raise InviteExpiredError("nobody used the invite in time; make a new one") from None
        finally:
            self._link.expect_mail(self._invite.mailbox, None)

    async def _wait_for_letter(self) -> None:
        """Wait for the joiner's letter, across lost connections and several relay processes."""
        while not self._letter.is_set():
            with trio.move_on_after(LOOK_AGAIN_SECONDS):
                await self._link.wait_while_online(self._letter)
            if not self._letter.is_set():
                await self.open()

    def _is_member(self, device: DeviceKey) -> bool:
        """True if nothing is given to this device by letting it in, because it is in already."""
        return self._syncs is None and self._sync.membership.by_device(device) is not None

    async def _approve(self, request: Request) -> NewMember:
        vault = self._sync.held.id
        try:
            seq = int(await admit(request, self._role, self._sync, self._identity, self._parted[vault]))
        except InviteError as error:
            await self._answer(request, Refused(str(error)))
            raise InviteRefusedError(str(error)) from None
        if self._syncs is None:
            await self._answer(request, Approved(seq, await self._sync.members.hash_of_link(seq)))
            return NewMember(request.device, request.name, (vault,))
        syncs = [sync for sync in self._syncs() if sync.held.id != vault]
        session = self._link.session
        room = invites.OTHERS_BYTES_MAX_1 if session is None or session.version < 2 else invites.OTHERS_BYTES_MAX
        promised, left_out = await admit_to_all(request, self._role, syncs, room, self._parted)
        own = promise_of(self._sync)
        await self._answer(request, Approved(own.link_seq, own.link_hash, tuple(promised)))
        vaults = (vault, *(promise.vault for promise in promised))
        return NewMember(request.device, request.name, vaults, tuple(left_out))

    async def _compare(self, request: Request, agree: Agree) -> None:
        """Reveal the nonce, and have a person compare the codes. Raises InviteRefusedError."""
        if self._revealed:  # whoever knows the nonce can find a request with any code
            raise InviteRefusedError("this invite has been used; make a new one")
        self._revealed = True
        code = invites.short_code(self._invite, self._nonce, self._sealed)
        await self._answer(request, Revealed(self._nonce))
        if not await agree(code, request.name):
            await self._answer(request, Refused("the codes were not the same"))
            raise InviteRefusedError(
                "the device was not let in; if the other side showed another code, somebody else has the invite: make a"
                " new one, and hand it over in another way"
            )

    async def _answer(self, request: Request, answer: Verdict | Revealed) -> None:
        sealed = invites.seal_answer(self._invite, self._identity, request.device, answer)
        await self._link.request(AnswerJoin(NO_REQUEST, self._invite.mailbox, sealed))
