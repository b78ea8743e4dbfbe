"""Brings the membership log of this device and the relay's to one (R15).

A relay that was set back has lost links: whoever has them gives them back. If others were signed in their place
meanwhile, two ends of the log compete, and both sides judge alike which one stands: this device offers its own, or goes
over to the relay's. Those whom only the end that went had made members are added again, by an admin who knew of them,
and so are the keys of the epochs that it had begun: what was sealed under them can be opened by all then.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import trio

from sealwire_client import keyring, linkmaking
from sealwire_client.enrolment import enrolled
from sealwire_client.identity import DeviceIdentity
from sealwire_client.keyring import EpochKey, KeyringError, VaultKeys
from sealwire_client.link import Link, RelayRefusedError
from sealwire_client.memberlog import MemberLog, Rival
from sealwire_client.progress import Progress
from sealwire_client.replica import HeldVault, Replica, Runner, Unissued
from sealwire_client.sending import Sending
from sealwire_client.transport import TransportError
from sealwire_protocol.errors import Action, FaultCode, Outcome
from sealwire_protocol.ids import Author, DeviceKey
from sealwire_protocol.limits import SEGMENT_BYTES_MAX
from sealwire_protocol.links import Role, encode_links
from sealwire_protocol.membership import Member, Membership, verified_before
from sealwire_protocol.messages import NO_REQUEST, AppendLink, CreateVault, OfferLinks
from sealwire_protocol.suffixes import Suffix, suffix_of

_DIFFERS = frozenset({FaultCode.LINK_CONFLICT, FaultCode.BAD_LINK, FaultCode.NO_SUCH_VAULT})
"""How a relay refuses a link because another one stands in its place."""

_NOT_TAKEN_IN = frozenset({FaultCode.NOT_ALLOWED, FaultCode.QUOTA})
"""How a relay refuses a vault that it does not know."""

_ANOTHER_MEMBER: Final = "this device has become another member of the vault meanwhile"

_log = logging.getLogger("sealwire.sync")


class Agreeing:
    """One vault's way to one log. Used by the vault's task alone.

    `again` is called when the relay's log is to be listened to again; `moved` when the device is another member now.
    """

    def __init__(
        self,
        held: HeldVault,
        identity: DeviceIdentity,
        members: MemberLog,
        keys: VaultKeys,
        sending: Sending,
        writer: Runner[Replica],
        progress: Progress,
        again: Callable[[], None],
        moved: Callable[[HeldVault, DeviceIdentity], None],
    ) -> None:
        self._held, self._identity = held, identity
        self._members, self._keys, self._sending = members, keys, sending
        self._writer, self._progress, self._again, self._moved = writer, progress, again, moved
        self._given_back = False
        self._judged = self._issued_after = b""
        self._may_issue = True
        self.not_taken_in: str | None = None

    def online(self) -> None:
        """Try again what was refused on the last connection."""
        self.not_taken_in = None
        self._given_back, self._judged, self._issued_after, self._may_issue = False, b"", b"", True

    def become(self, held: HeldVault, identity: DeviceIdentity) -> None:
        """Be another member from now on."""
        self._held, self._identity = held, identity

    async def go_on(self, link: Link) -> bool:
        """Do what can be done now. True: the logs are not one yet, and nothing may be sent before."""
        members = self._members
        if not members.heard_all:
            return True
        if members.rival is not None:
            await self._judge(link, members.rival)
            return True
        own = members.membership.by_device(self._identity.device_key)
        if own is not None and members.membership.members[self._held.author].removed:
            await self._come_back(link, own.author)
            return True
        if members.is_longer:
            await self.give_back(link, members.told or 0)
        else:
            self._given_back, self._judged = False, b""  # should the relay lose links again
            if members.membership.relay in (None, self._held.origin):
                await self._issue_anew(link)
        return False

    async def give_back(self, link: Link, after: int) -> bool:
        """Give the relay the links behind the first `after`, which it never had, or has lost; once, until it tells of
        all. True: they stand there now. False: `not_taken_in` says why, if the relay does not want the vault."""
        if self._given_back:
            return False
        self._given_back = True
        try:
            await self._give_back(link, after)
        except RelayRefusedError as error:
            self._progress.passing = str(error)
            if error.fault.code in _NOT_TAKEN_IN:
                self.not_taken_in = str(error)
            _log.warning("the membership log was refused: %s", error)
            if error.fault.action is not Action.STOP:
                link.give_up(TransportError(f"the membership log could not be given back yet: {error}"))
            return False
        self._members.read_anew()
        return True

    async def _give_back(self, link: Link, after: int) -> None:
        vault, number, links = self._held.id, self._held.number, await self._members.links()
        token, receipt = await self._writer.run(lambda replica: replica.vaults.proofs(number))
        for place, raw in enumerate(links[after:], after):
            first = CreateVault(NO_REQUEST, raw, token, receipt)
            try:
                await link.request(AppendLink(NO_REQUEST, vault, raw) if place else first)
            except RelayRefusedError as error:
                if not place or after or error.fault.code not in _DIFFERS or not _can_offer(link, links[place:]):
                    raise
                # All before it stand there, so it is here that the logs part; the other may not know this device.
                await link.request(OfferLinks(NO_REQUEST, vault, place, encode_links(links[place:])))
                return

    async def _come_back(self, link: Link, author: Author) -> None:
        """This device was removed, and has been added again: it is another member now."""
        await self._sending.end_all(Outcome.STALE_NUMBER, _ANOTHER_MEMBER)  # it may have been taken before
        with trio.CancelScope(shield=True):  # what the replica has gone over to is used
            held = await self._writer.run(enrolled, self._held, author)
            if held is not None:
                _log.warning("vault %s: this device was removed, and is a member again: number %d", held.name, author)
                self._be(held, link)

    def _be(self, held: HeldVault, link: Link) -> None:
        self._moved(held, self._identity)
        link.dial_anew("this device is another member of the vault now")

    # --- two ends

    async def _judge(self, link: Link, rival: Rival) -> None:
        if self._judged == rival.membership.last_hash:
            return
        self._judged = rival.membership.last_hash
        own = (await self._members.links())[rival.base.head :]
        ours = suffix_of(rival.base, own, verified_before)
        theirs = suffix_of(rival.base, rival.links, verified_before)
        if ours.outranks(theirs):
            await self._offer(link, own, rival, distrusted=ours.removes_signers_of(theirs))
        elif ours.removes_signers_of(theirs):
            self._report(
                "the membership log that stands at the relay was signed by someone who was removed here, and has"
                " removed who did that: agree with the others in person on who belongs to the vault, and begin another"
            )
        elif theirs.membership.by_device(self._identity.device_key) is None:
            self._report(
                "this device is not in the membership log that stands at the relay, which had lost links: it is added"
                " again by an admin who knew of them, or else ask for an invite; what is unsent is kept here"
            )
        else:
            await self._go_over(link, rival, ours, theirs)

    async def _offer(self, link: Link, own: Sequence[bytes], rival: Rival, *, distrusted: bool) -> None:
        """Have the log that is held here stand at the relay. `distrusted`: the other one is by someone removed here."""
        if not _can_offer(link, own):
            self._report("the relay has another membership log, and cannot take this device's, which should stand")
            return
        try:
            await link.request(OfferLinks(NO_REQUEST, self._held.id, rival.base.head, encode_links(own)))
        except RelayRefusedError as error:
            self._report(f"the relay has another membership log than the one that should stand: {error}")
        else:
            _log.warning(
                "vault %s: %d links of the membership log that the relay had lost have taken the place of %d others",
                self._held.name,
                len(own),
                len(rival.links),
            )
            lost = self._lost(rival.base, rival.membership, self._members.membership)
            keys = [] if distrusted else self._keys_of(rival)
            await self._writer.run(_kept, self._held, self._keys, keys, lost)
            self._may_issue = True
        self._members.read_anew()
        self._again()

    async def _go_over(self, link: Link, rival: Rival, ours: Suffix, theirs: Suffix) -> None:
        """Hold the relay's log from now on, maybe as another member of it."""
        try:
            keys = keyring.keys_from_log(self._identity, theirs.membership)
        except KeyringError as error:
            self._report(f"the membership log that stands at the relay cannot be used: {error}")
            return
        author = keyring.member_of(self._identity, theirs.membership).author
        if author != self._held.author:
            # It was sealed as a member that this device is no more, whom the log that stands never had.
            await self._sending.end_all(Outcome.SEAL_AGAIN, _ANOTHER_MEMBER)
        lost = self._lost(rival.base, ours.membership, theirs.membership)
        beside = self._keys.beyond(keys)
        with trio.CancelScope(shield=True):  # what is held is used
            held = await self._writer.run(_gone_over, self._held, author, rival, lost, keys, beside)
            if held is None:
                return
            self._members.go_over(theirs.membership)
            self._may_issue = True
            _log.warning(
                "vault %s: %d links of the membership log have given way to %d others, since the relay had lost them; "
                "not members any more, until an admin adds them again: %s",
                held.name,
                ours.weight.links,
                theirs.weight.links,
                ", ".join(each.name or each.device.hex()[:8] for each in lost) or "nobody",
            )
            if author != self._held.author:
                self._be(held, link)
        self._again()

    def _keys_of(self, rival: Rival) -> list[EpochKey]:
        """The keys of a log that did not stand which this device lacks, as far as it was handed them."""
        try:
            return keyring.keys_from_log(self._identity, rival.membership).beyond(self._keys)
        except KeyringError:
            return []

    def _report(self, why: str) -> None:
        self._progress.lasting[""] = why
        _log.error("vault %s: %s", self._held.name, why)

    # --- what the end that went had made: members, and keys

    def _lost(self, base: Membership, gone: Membership, stands: Membership) -> list[Unissued]:
        """Whom this device is to add or to remove again (in the role REPLACED): nobody, if it is no admin."""
        own = stands.by_device(self._identity.device_key)
        if own is None or own.role is not Role.ADMIN:
            return []
        known, here = stands.members.values(), {member.device for member in gone.present()}
        there = {member.device for member in stands.present()} - {own.device}
        return [
            Unissued(
                member.device,
                member.box_key,
                Role.REPLACED if member.removed else member.role,
                keyring.name_of(self._keys, member),
                _times_parted(member.device, stands),
            )
            for member in gone.members.values()
            if (member.is_present and _is_new(member, known, base))
            or (member.removed and member.device in there - here)
        ]

    async def _issue_anew(self, link: Link) -> None:
        """Ask for the next link that is missing. It, or the one that came first, is delivered like every other."""
        membership = self._members.membership
        if membership.ended:
            return
        if not self._may_issue or self._issued_after == membership.last_hash or self._members.appending.locked():
            return
        if self._keys.current.key_id != membership.key_id:
            return  # they come first
        own = membership.by_device(self._identity.device_key)
        may = own is not None and own.role is Role.ADMIN
        missing = await self._missing(membership, may)
        adopts = may and keyring.to_adopt(membership, self._keys) is not None
        if not missing and not adopts:
            self._may_issue = False
            return
        self._issued_after = membership.last_hash
        try:
            raw = self._next(membership, *missing[:1])
            await link.request(AppendLink(NO_REQUEST, self._held.id, raw))
        except (KeyringError, RelayRefusedError) as error:
            if not isinstance(error, RelayRefusedError) or error.fault.code is not FaultCode.LINK_CONFLICT:
                _log.warning("vault %s: a link of an end that went could not be made anew: %s", self._held.name, error)

    async def _missing(self, membership: Membership, may: bool) -> list[Unissued]:
        """Whom this device is still to add or to remove again; the others are forgotten."""
        number = self._held.number
        waiting = await self._writer.run(lambda replica: replica.vaults.unissued(number))
        missing = [each for each in waiting if may and _is_missing(each, membership)]
        if done := [each for each in waiting if each not in missing]:
            await self._writer.run(lambda replica: replica.vaults.forget_unissued(number, done))
        return missing

    def _next(self, membership: Membership, each: Unissued | None = None) -> bytes:
        """The link that is missing: for one device, or for none."""
        keys = self._identity, membership, self._keys
        if each is not None and each.role is not Role.REPLACED:
            return linkmaking.add_device_link(*keys, each.device, each.box_key, each.role, each.name)
        removed = [] if each is None else [membership.members[_author(each, membership)].lineage]
        return linkmaking.new_epoch_link(*keys, removed, adopt=keyring.to_adopt(membership, self._keys) or ())


def _is_new(member: Member, known: Iterable[Member], base: Membership) -> bool:
    """True if none of these has been the same device, but for one that was removed before this one was added: one of
    `base`, where the ends part. What the end that stands has added and removed by itself stays removed."""
    return not any(
        each.device == member.device
        and not (each.removed and each.author in base.members and each.author < member.author)
        for each in known
    )


def _author(each: Unissued, membership: Membership) -> Author:
    return next(member.author for member in membership.present() if member.device == each.device)


def _is_missing(each: Unissued, membership: Membership) -> bool:
    """True if a device is still to be added, or, in the role REPLACED, removed."""
    found = membership.by_device(each.device)
    if each.role is Role.REPLACED:
        return found is not None and found.is_present
    return found is None and _times_parted(each.device, membership) <= each.parted


def _times_parted(device: DeviceKey, membership: Membership) -> int:
    return sum(member.device == device and member.removed for member in membership.members.values())


def _can_offer(link: Link, links: Sequence[bytes]) -> bool:
    version = 0 if link.session is None else link.session.version
    return version >= OfferLinks.SINCE and len(encode_links(links)) <= SEGMENT_BYTES_MAX


def _kept(
    replica: Replica, held: HeldVault, keys: VaultKeys, beside: Sequence[EpochKey], lost: Sequence[Unissued]
) -> None:
    """The log that is held stands: keep what of another end is to be made again."""
    with replica.transaction():
        replica.vaults.add_unissued(held.number, lost)
        wrapped = keyring.wrapped_beside(keys, [*keys.others.values(), *beside])
        replica.vaults.keep_keys(held.number, keys.current.number, wrapped)
    keys.keep(beside)


def _gone_over(
    replica: Replica,
    before: HeldVault,
    author: Author,
    rival: Rival,
    lost: Sequence[Unissued],
    keys: VaultKeys,
    beside: Sequence[EpochKey],
) -> HeldVault | None:
    """Hold another log, as this member of it, with its keys and those beside them. None, and nothing done: a batch
    still waits for its verdict."""
    held = before
    with replica.transaction():
        if author != before.author:
            now = enrolled(replica, before, author)
            if now is None:
                return None
            held = now
        replica.vaults.replace_links(before.number, rival.base.head, rival.links)
        replica.vaults.add_unissued(before.number, lost)
        wrapped = keyring.wrapped_beside(keys, beside)
        replica.vaults.keep_keys(before.number, keys.current.number, wrapped)
    return held
