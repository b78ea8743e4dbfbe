"""Two membership logs of one vault that differ from some link on: which of their ends stands (R15).

It comes to that when a relay has lost links and an admin who had not heard of them signed others in their place. If one
end removes somebody who has signed the other one, it stands: whoever was removed cannot undo that by signing beside it.
Who leaves removes nobody so: else a member could drop all that came after a link of its own by leaving before it. Else
the end by which the vault is deleted stands; or, where each removes somebody who has signed the other one, the end by
which it is not: whoever may have been removed deletes nothing. Else the end with the higher epoch stands; of the same
one, the end with more links by admins; then the longer; then the one whose last link has the smaller hash. Links by
admins count first because others can sign links too, for keys of their own or to leave, and must not be able to outgrow
an admin's.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from sealwire_protocol.ids import Author
from sealwire_protocol.links import HASH_BYTES, NewEpoch, Role
from sealwire_protocol.membership import Membership, Verify

_LARGEST_HASH: Final = int.from_bytes(b"\xff" * HASH_BYTES, "big")


class Weight(NamedTuple):
    """What decides between two ends: of two, the greater one stands. `smallness` is that of the last link's hash."""

    epoch: int
    by_admins: int
    links: int
    smallness: int


class Suffix(NamedTuple):
    """The members after an end of a log, and what it weighs. Of those who were members where the ends part, by lineage:
    who signed it, and whom it has removed; not who has left."""

    membership: Membership
    weight: Weight
    signers: frozenset[Author]
    removed: frozenset[Author]

    def removes_signers_of(self, other: "Suffix") -> bool:
        """True if it removes someone who has signed the other end."""
        return bool(self.removed & other.signers)

    def outranks(self, other: "Suffix") -> bool:
        """True if this end stands, and not the other one."""
        one, another = self.removes_signers_of(other), other.removes_signers_of(self)
        if one != another:
            return one
        if self.membership.ended != other.membership.ended:
            return self.membership.ended is not one
        return self.weight > other.weight


def common_links(one: Sequence[bytes], other: Sequence[bytes]) -> int:
    """How many links two logs have in common, from the first on."""
    return next(
        (place for place, (left, right) in enumerate(zip(one, other, strict=False)) if left != right),
        min(len(one), len(other)),
    )


def suffix_of(base: Membership, links: Sequence[bytes], verify: Verify) -> Suffix:
    """What these links make of the log that `base` is of, which stays as it is. Raises LinkError."""
    grown, by_admins, signers, removed = base.copy(), 0, set[Author](), set[Author]()
    for raw in links:
        link = grown.apply(raw, verify)
        signer = grown.members[link.signer]
        by_admins += signer.given is Role.ADMIN
        signers.add(signer.lineage)
        removed.update(link.body.removed if isinstance(link.body, NewEpoch) else ())
    smallness = _LARGEST_HASH - int.from_bytes(grown.last_hash, "big")
    known = {member.lineage for member in base.members.values()}
    weight = Weight(grown.epoch, by_admins, len(links), smallness)
    return Suffix(grown, weight, frozenset(signers & known), frozenset(removed & known))
