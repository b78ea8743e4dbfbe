"""Who belongs to a vault: the membership log, verified alike by the relay and by every device."""

from collections.abc import Callable, Iterable
from copy import copy
from typing import Final, NamedTuple

from sealwire_protocol.ids import KEY_ID_BYTES, Author, DeviceKey, KeyId, VaultId
from sealwire_protocol.limits import MEMBERS_MAX, REPLACEMENTS_MAX
from sealwire_protocol.links import (
    FIRST_AUTHOR,
    FIRST_EPOCH,
    HASH_BYTES,
    SHARE_BYTES,
    AddDevice,
    Adding,
    Adopted,
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
    proved_by,
    vault_id_of,
)

Verify = Callable[[bytes, bytes, bytes], bool]
"""(Ed25519 public key, message, signature) -> is it valid. Passed in: this package has no cipher of its own."""


EPOCH_LAST: Final = 65_535
"""The last epoch that there is: a u16 tells it. A vault whose key is changed every day lasts 179 years."""


class Member(NamedTuple):
    """A device in the log. `author` is the index of the link that added it.

    `given`: the role that it was added with, which outlasts its replacement. `lineage`: the member from which it
    descends by replacements, which an admin has added (or which began the vault); its own author if there were none.
    `removed`: it is none any more; what it has written says so still.
    """

    author: Author
    device: DeviceKey
    box_key: bytes
    role: Role
    given: Role
    lineage: Author
    sealed_keys: bytes
    sealed_name: bytes
    removed: bool = False

    @property
    def is_present(self) -> bool:
        """True if it is neither removed nor replaced: keys of new epochs are handed to it."""
        return not self.removed and self.role is not Role.REPLACED


class EpochStart(NamedTuple):
    """How an epoch began: the link that began it, who signed that, and who got a share of its key, in order."""

    seq: int
    signer: Author
    link: NewEpoch
    receivers: tuple[Author, ...]


class Membership:
    """The members of one vault after a prefix of its log. Grows by `apply` alone. `epochs`: how all but the first
    began. `ended`: the vault was deleted, and its log goes on no more. `relay`: where the last MOVE says that the vault
    is, and `moved_at` the seq of that link; None and 0: it was never moved."""

    __slots__ = (
        "_left",
        "ended",
        "epoch",
        "epochs",
        "genesis",
        "head",
        "key_id",
        "last_hash",
        "members",
        "moved_at",
        "relay",
        "vault",
    )

    def __init__(self) -> None:
        self.vault: VaultId | None = None
        self.genesis: Genesis | None = None
        self.head = 0
        self.last_hash = bytes(HASH_BYTES)
        self.epoch = 0
        self.key_id = KeyId(bytes(KEY_ID_BYTES))
        self.members: dict[Author, Member] = {}
        self.epochs: dict[int, EpochStart] = {}
        self.ended = False
        self._left = 0
        self.relay: str | None = None
        self.moved_at = 0

    def copy(self) -> "Membership":
        """The same members, to grow apart from these."""
        other = copy(self)
        other.members, other.epochs = dict(self.members), dict(self.epochs)
        return other

    def by_device(self, device: DeviceKey) -> Member | None:
        """The member that logs in with this key, or None. One that was removed is none."""
        return next((m for m in self.members.values() if m.device == device and not m.removed), None)

    def parted(self) -> frozenset[DeviceKey]:
        """Devices that left, or were removed, whether or not they are members again."""
        return frozenset(member.device for member in self.members.values() if member.removed)

    def present(self) -> list[Member]:
        """Those who are members now, in ascending order of author."""
        return [member for member in self.members.values() if member.is_present]

    @property
    def owes_epoch(self) -> bool:
        """True if somebody has left who still has the present key: an admin is to begin an epoch."""
        start = self.epochs.get(self.epoch)
        return not self.ended and self._left > (0 if start is None else start.seq)

    def may_leave(self, member: Member) -> bool:
        """True if an admin is left when this member has left."""
        return any(each.role is Role.ADMIN and each.lineage != member.lineage for each in self.present())

    def commitment(self, epoch: int) -> bytes | None:
        """What the log says of an epoch's key; None: there is no such epoch."""
        if epoch == FIRST_EPOCH:
            return None if self.genesis is None else self.genesis.commitment
        start = self.epochs.get(epoch)
        return None if start is None else start.link.commitment

    def knows_key(self, epoch: int, key_id: KeyId) -> bool:
        """True if the log has a key that records name so."""
        return (self.commitment(epoch) or b"")[:KEY_ID_BYTES] == key_id or (epoch, key_id) in self.adopted

    @property
    def adopted(self) -> dict[tuple[int, KeyId], tuple[int, Adopted]]:
        """Keys of other ends of the log, by epoch and key id, each with the epoch under whose key it is wrapped."""
        return {
            (each.epoch, each.key_id): (number, each)
            for number, start in self.epochs.items()
            for each in start.link.adopted
        }

    def share(self, epoch: int, author: Author) -> bytes | None:
        """A member's share of the key of an epoch after the first; None: it got none."""
        start = self.epochs.get(epoch)
        if start is None or author not in start.receivers:
            return None
        at = start.receivers.index(author) * SHARE_BYTES
        return start.link.shares[at : at + SHARE_BYTES]

    def apply(self, raw: bytes, verify: Verify) -> Link:
        """Verify the next link and take it in. Raises LinkError, and stays as it was, if anything is wrong."""
        link = decode_link(raw)
        if link.seq != self.head + 1 or link.previous != self.last_hash:
            raise LinkError(f"link {link.seq} does not follow link {self.head} of this log")
        if isinstance(link.body, Genesis):
            self._check_genesis(link, link.body, verify)
        else:
            self._check_signed(link, link.body, verify)
        self._take_in(link)
        return link

    def _check_genesis(self, link: Link, body: Genesis, verify: Verify) -> None:
        if self.head or link.signer != FIRST_AUTHOR or any(link.vault):
            raise LinkError("a genesis link stands anywhere but first")
        if body.epoch != FIRST_EPOCH:
            raise LinkError("a vault's first epoch is 1")
        if not verify(body.device, link.signed_part, link.signature):
            raise LinkError("the genesis link's signature is not valid")

    def _check_signed(
        self, link: Link, body: AddDevice | ReplaceDevice | NewEpoch | Leave | End | Move, verify: Verify
    ) -> None:
        signer = self.members.get(link.signer)
        if not self.head or link.vault != self.vault:
            raise LinkError("a link belongs to another vault")
        if self.ended:
            raise LinkError("the vault was deleted: nothing follows that in its log")
        by_admin = isinstance(body, AddDevice | NewEpoch | End | Move)
        if signer is None or signer.removed or (by_admin and signer.role < Role.ADMIN):
            raise LinkError("a link is signed by someone who is no admin of this vault, or no member")
        if isinstance(body, NewEpoch):
            self._check_epoch(body, signer)
        elif isinstance(body, Leave | End):
            self._check_parting(body, signer)
        elif not isinstance(body, Move) and self.by_device(body.device) is not None:
            raise LinkError("the device is a member already")
        elif isinstance(body, AddDevice) and len(self.present()) >= MEMBERS_MAX:
            raise LinkError(f"a vault has at most {MEMBERS_MAX:,} members")
        if not verify(signer.device, link.signed_part, link.signature):
            raise LinkError("a link's signature is not valid")
        if isinstance(body, ReplaceDevice):
            if self.replacements(signer.lineage) >= REPLACEMENTS_MAX:
                raise LinkError(
                    f"the device has been replaced {REPLACEMENTS_MAX} times, which is as often as it may be; an admin"
                    " must invite it again"
                )
            proved = proved_by(link.vault, link.previous, link.signer, body.device, body.box_key)
            if not verify(body.device, proved, body.proof):
                raise LinkError("a new key was not signed for by its owner")

    def _check_epoch(self, body: NewEpoch, signer: Member) -> None:
        if body.epoch != self.epoch + 1 or body.epoch > EPOCH_LAST:
            raise LinkError(f"epoch {body.epoch} does not follow epoch {self.epoch}")
        if list(body.removed) != sorted(set(body.removed)):
            raise LinkError("those whom a link removes are not in order")
        lineages = {member.lineage for member in self.members.values() if not member.removed}
        if not lineages.issuperset(body.removed):
            raise LinkError("a link removes someone who is no member")
        if signer.lineage in body.removed:
            raise LinkError("a link removes the one who signed it")
        self._check_adopted(body)
        if len(body.shares) != SHARE_BYTES * len(self._receivers(body)):
            raise LinkError("a link does not hand its key to each member")

    def _check_adopted(self, body: NewEpoch) -> None:
        """Records tell keys by epoch and key id alone, so no two have the same; of present epochs there is one."""
        names = {(each.epoch, each.key_id) for each in body.adopted}
        if any(not FIRST_EPOCH < each.epoch < body.epoch for each in body.adopted):
            raise LinkError("a link adopts a key of an epoch that is not before its own")
        if len(names) < len(body.adopted) or any(self.knows_key(*name) for name in names):
            raise LinkError("a link adopts a key that the log has")

    def _check_parting(self, body: Leave | End, signer: Member) -> None:
        if not signer.is_present:
            raise LinkError("a device that has taken new keys leaves a vault, or deletes it, with those alone")
        if isinstance(body, Leave) and not self.may_leave(signer):
            raise LinkError("the only admin of a vault leaves it")

    def _receivers(self, body: NewEpoch) -> tuple[Author, ...]:
        return tuple(member.author for member in self.present() if member.lineage not in body.removed)

    def replacements(self, lineage: Author) -> int:
        """How many keys have taken the place of this member's first one, or of one that had."""
        return sum(member.lineage == lineage for member in self.members.values()) - 1

    def _take_in(self, link: Link) -> None:
        self.head, self.last_hash = link.seq, link.hash
        match link.body:
            case NewEpoch() as body:
                self._begin(link.seq, link.signer, body)
            case Leave():
                self._left = link.seq
                self._remove(self.members[link.signer].lineage)
            case End():
                self.ended = True
            case Move(origin):
                self.relay, self.moved_at = origin, link.seq
            case body:
                self._add(link, body)

    def _add(self, link: Link, body: Adding) -> None:
        author = lineage = Author(link.seq)
        if isinstance(body, Genesis):
            self.vault, self.genesis, self.epoch = vault_id_of(link.raw), body, body.epoch
            self.key_id = KeyId(body.commitment[:KEY_ID_BYTES])
            role = Role.ADMIN
        elif isinstance(body, ReplaceDevice):
            signer = self.members[link.signer]
            role, lineage = signer.given, signer.lineage
            self.members[link.signer] = signer._replace(role=Role.REPLACED)
        else:
            role = body.role
        self.members[author] = Member(
            author, body.device, body.box_key, role, role, lineage, body.sealed_keys, body.sealed_name
        )

    def _begin(self, seq: int, signer: Author, body: NewEpoch) -> None:
        self.epoch, self.key_id = body.epoch, KeyId(body.commitment[:KEY_ID_BYTES])
        self.epochs[body.epoch] = EpochStart(seq, signer, body, self._receivers(body))
        self._remove(*body.removed)

    def _remove(self, *lineages: Author) -> None:
        for author, member in self.members.items():
            if member.lineage in lineages:
                self.members[author] = member._replace(removed=True)


def membership_of(links: Iterable[bytes], verify: Verify) -> Membership:
    """What these links make of an empty log. Raises LinkError, at the first that does not belong there."""
    membership = Membership()
    for raw in links:
        membership.apply(raw, verify)
    return membership


def verified_before(key: bytes, message: bytes, signature: bytes) -> bool:
    """A `Verify` for links whose signatures were checked when they were taken in: 60 µs each, which would add up."""
    return True
