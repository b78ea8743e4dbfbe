"""What devices ask for of membership logs: a vault from its genesis link, a link at the end, another end (R15).

Whoever has links may present them, since the one that added it may be among those that a relay has lost. One that is no
member is told only that its links stand, else that there is no such vault.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from sealwire_protocol.errors import Action, FaultCode
from sealwire_protocol.events import Answer, Refuse
from sealwire_protocol.faults import no_such_vault
from sealwire_protocol.ids import MEMBERSHIP, Author, DeviceKey, VaultId
from sealwire_protocol.links import (
    End,
    Genesis,
    Leave,
    Link,
    LinkError,
    Move,
    NewEpoch,
    ReplaceDevice,
    Role,
    decode_link,
    decode_links,
    encode_links,
    vault_id_of,
)
from sealwire_protocol.membership import Membership, Verify, membership_of, verified_before
from sealwire_protocol.messages import AppendLink, CreateVault, Deliver, Done, OfferLinks
from sealwire_protocol.suffixes import Suffix, common_links, suffix_of
from sealwire_relay.fanout import Fanout
from sealwire_relay.ingest import Ingest
from sealwire_relay.logs import Logs
from sealwire_relay.losses import Losses
from sealwire_relay.registration import Admitted, Registration
from sealwire_relay.removals import Removals
from sealwire_relay.store.interface import (
    ENDED,
    LinkLog,
    MemberState,
    NewLink,
    OutcomeUnknownError,
    Store,
    TokenSpentError,
    VaultState,
)
from sealwire_relay.terms import Terms

ATTEMPTS_MAX: Final = 5
"""Times that links, or a vault's creation, are tried again because log or term changed meanwhile."""

RETRY_MS: Final = 1_000
"""When a device may ask again after that."""

LINKS_AT_A_STRETCH: Final = 32
"""Signatures of an offered end that are verified before others have their turn: 60 µs each, so some 2 ms."""


class Links:
    """Carries out what is asked of membership logs against the store, and tells those whom it concerns.

    `is_here` knows the names of this relay."""

    def __init__(
        self,
        store: Store,
        fanout: Fanout,
        ingest: Ingest,
        terms: Terms,
        losses: Losses,
        registration: Registration,
        removals: Removals,
        verify: Verify,
        is_here: Callable[[str], bool],
    ) -> None:
        self._store, self._fanout, self._ingest = store, fanout, ingest
        self._terms, self._losses, self._registration, self._verify = terms, losses, registration, verify
        self._removals, self._is_here = removals, is_here
        self._parted: set[VaultId] = set()
        self._logs = Logs(store)

    # --- a vault

    async def create(self, message: CreateVault) -> Answer | Refuse:
        """A relay that has lost the vault gets it back from any member; who makes one must be admitted (0018). A vault
        that is there already was made by whoever presents it, as far as anybody can tell. Raises LinkError, StoreError.
        """
        membership = Membership()
        link = membership.apply(message.link, self._verify)
        if not isinstance(link.body, Genesis):
            raise LinkError("a vault is created by its genesis link")
        vault = vault_id_of(message.link)
        member = MemberState(link.signer, link.body.device, Role.ADMIN)
        state = _state(membership)
        new = NewLink(link.seq, link.raw, member)
        admitted = await self._registration.admit(vault, message)
        for _ in range(ATTEMPTS_MAX):
            if isinstance(admitted, Admitted):
                try:
                    term = await self._terms.now()
                    if await self._store.create_vault(vault, state, new, term, *admitted):
                        return Answer(Done(message.request))
                except TokenSpentError:
                    admitted = self._registration.without(message)
            if (await self._store.links(vault)).links[:1] == (message.link,):
                return await self._registration.enlarge(vault, message) or Answer(Done(message.request))
            if not isinstance(admitted, Admitted):
                return admitted
            await self._terms.refresh()
        return _too_fast(message)

    # --- one link

    async def append(self, device: DeviceKey, message: AppendLink) -> Answer | Refuse:
        """After a loss several devices present the same. Raises LinkError to members, and StoreError."""
        for _ in range(ATTEMPTS_MAX):
            answer = await self._try_link(device, message)
            if answer is not None:
                return answer
            await self._terms.refresh()
        return _append_conflict(message)

    async def moved_to(self, vault: VaultId) -> str | None:
        """The other relay at which the vault is, by its log; None: it is at this one. Raises StoreError."""
        log = await self._logs.now(vault)
        return log.membership.relay if log is not None and self._is_away(log.membership) else None

    async def _try_link(self, device: DeviceKey, message: AppendLink) -> Answer | Refuse | None:
        """None: the log or the relay's term has changed meanwhile; look again."""
        strange = no_such_vault(message.vault, request=message.request)
        is_member = await self._store.subscription(message.vault, device, []) is not None
        log = await self._logs.now(message.vault)
        if log is None:
            return strange
        try:
            place = decode_link(message.link).seq
            if 0 < place <= log.membership.head:
                if await self._stands(message.vault, place, message.link):
                    return Answer(Done(message.request))
                return _append_conflict(message) if is_member else strange
            membership = log.membership.copy()
            was_away = self._is_away(membership)
            link = membership.apply(message.link, self._verify)
        except LinkError:
            if is_member:
                raise
            return strange
        is_away = self._is_away(membership)
        new = _new_link(membership, link, is_away)._replace(there=log.term)
        return await self._append(message, new, comes_back=was_away and not is_away)

    async def _stands(self, vault: VaultId, place: int, link: bytes) -> bool:
        """Whether this very link stands there in a log."""
        page = await self._store.read(vault, MEMBERSHIP, place - 1, 1)
        return page is not None and bool(page.segments) and decode_links(page.segments[0].body)[:1] == [link]

    def _is_away(self, membership: Membership) -> bool:
        """Whether a vault with this log is at another relay."""
        return membership.relay is not None and not self._is_here(membership.relay)

    async def _append(self, message: AppendLink, new: NewLink, comes_back: bool) -> Answer | Refuse | None:
        """Append a verified link, and send it to those who listen. None: a condition did not hold."""
        term = await self._store.append_link(message.vault, new, await self._terms.now())
        if term is None:
            return None
        if comes_back:
            await self._changed(message.vault)
            return Answer(Done(message.request))
        self._ingest.forget(message.vault)
        body = encode_links([new.raw])
        self._fanout.offer(
            message.vault,
            MEMBERSHIP,
            Deliver(message.vault, MEMBERSHIP, term, 0, 0, 0, 0, new.seq - 1, new.seq, body),
        )
        if new.removed:
            self._parted.add(message.vault)
        return Answer(Done(message.request))

    async def answered(self, vault: VaultId) -> None:
        """A request about this vault's log was answered: whom it has removed is told so, itself maybe among them."""
        if vault in self._parted:
            self._parted.discard(vault)
            await self._removals.changed(vault)

    # --- another end

    async def offer(self, device: DeviceKey, message: OfferLinks) -> Answer | Refuse:
        """Put an end into the place of another that it outranks. Raises LinkError to members, and StoreError."""
        for _ in range(ATTEMPTS_MAX):
            answer = await self._try_offer(device, message)
            if answer is not None:
                return answer
            await self._terms.refresh()
        return _too_fast(message)

    async def _try_offer(self, device: DeviceKey, message: OfferLinks) -> Answer | Refuse | None:
        """None: the log or the relay's term has changed meanwhile; look again."""
        strange = no_such_vault(message.vault, request=message.request)
        is_member = await self._store.subscription(message.vault, device, []) is not None
        log = await self._store.links(message.vault)
        if not log.links:
            return strange
        try:
            offered = decode_links(message.links)
            if not offered or not 0 < message.after <= len(log.links):
                raise LinkError("no links are offered, or for a place that the log does not have")
            same = common_links(log.links[message.after :], offered)
            if same == len(offered):
                return Answer(Done(message.request))
            if membership_of(log.links, verified_before).ended:
                return _offer_conflict(message) if is_member else strange
            after = message.after + same
            base = membership_of(log.links[:after], verified_before)
            coming = await self._verified(base, offered[same:])
        except LinkError:
            if is_member:
                raise
            return strange
        if not coming.outranks(suffix_of(base, log.links[after:], verified_before)):
            return _offer_conflict(message) if is_member else strange
        if not await self._replace(message.vault, log, after, offered[same:], coming.membership):
            return None
        return Answer(Done(message.request))

    async def _verified(self, base: Membership, links: Sequence[bytes]) -> Suffix:
        """What these links make of a log, once all of them are verified. Raises LinkError."""
        grown = base.copy()
        for place, raw in enumerate(links, 1):
            grown.apply(raw, self._verify)
            if place % LINKS_AT_A_STRETCH == 0:
                await asyncio.sleep(0)
        return suffix_of(base, links, verified_before)

    async def _replace(
        self, vault: VaultId, there: LinkLog, after: int, links: Sequence[bytes], membership: Membership
    ) -> bool:
        """Replace the end of a log; whoever listens to it here subscribes again. False: a condition did not hold."""
        members = [
            MemberState(each.author, each.device, each.role) for each in membership.members.values() if not each.removed
        ]
        state = _state(membership, self._is_away(membership))
        term = await self._terms.now()
        try:
            replaced = await self._store.replace_links(vault, there, after, links, members, state, term)
        except OutcomeUnknownError:
            await self._changed(vault)
            raise
        if replaced:
            await self._changed(vault)
            self._losses.replaced(vault, there.links[after:], links)
        return replaced

    async def _changed(self, vault: VaultId) -> None:
        """Whoever listens subscribes again: the log ends otherwise, or the vault has come back to this relay."""
        self._ingest.forget(vault)
        self._fanout.emptied(vault)
        await self._removals.changed(vault)


def _new_link(membership: Membership, link: Link, is_away: bool) -> NewLink:
    """What the last link of a log did to its members, and to the vault."""
    state = _state(membership, is_away)
    if isinstance(link.body, NewEpoch | Leave | End):
        lineages = _removed_by(link, link.body, membership)
        gone = tuple(each.author for each in membership.members.values() if each.lineage in lineages)
        return NewLink(link.seq, link.raw, None, None, state, gone)
    if isinstance(link.body, Move):
        return NewLink(link.seq, link.raw, None, None, state, arrives=not is_away)
    added = membership.members[Author(link.seq)]
    replaced = link.signer if isinstance(link.body, ReplaceDevice) else None
    return NewLink(link.seq, link.raw, MemberState(added.author, added.device, added.role), replaced)


def _removed_by(link: Link, body: NewEpoch | Leave | End, membership: Membership) -> tuple[Author, ...]:
    """The lineages that a link has removed."""
    if isinstance(body, NewEpoch):
        return body.removed
    return (membership.members[link.signer].lineage,) if isinstance(body, Leave) else ()


def _state(membership: Membership, is_away: bool = False) -> VaultState:
    return ENDED if membership.ended else VaultState(membership.epoch, membership.key_id, is_away)


def _append_conflict(message: AppendLink) -> Refuse:
    why = "another link was appended meanwhile; read the membership log and sign anew"
    return Refuse(FaultCode.LINK_CONFLICT, Action.RETRY, why, message.request, message.vault)


def _offer_conflict(message: OfferLinks) -> Refuse:
    why = "the links that stand there outrank these; read the membership log"
    return Refuse(FaultCode.LINK_CONFLICT, Action.RETRY, why, message.request, message.vault)


def _too_fast(message: CreateVault | OfferLinks) -> Refuse:
    why = "the relay's history changes too fast just now; try again"
    return Refuse(FaultCode.OVERLOADED, Action.RETRY, why, message.request, retry_ms=RETRY_MS)
