"""Two ends of one membership log: which of them stands (R15)."""

import pytest

from sealwire_protocol.ids import Author
from sealwire_protocol.links import FIRST_AUTHOR, LinkError, Role, link_hash, vault_id_of
from sealwire_protocol.membership import Membership, membership_of
from sealwire_protocol.suffixes import Suffix, common_links, suffix_of
from tests.protocol.examples import add_device, end, genesis, key_of, leave, new_epoch, replace_device, signer
from tests.support.link import verify

ADMIN, READER = signer(1), signer(2)
FIRST = genesis(ADMIN)
VAULT = vault_id_of(FIRST)
SECOND = add_device(ADMIN, FIRST_AUTHOR, VAULT, 2, link_hash(FIRST), key_of(READER), Role.READER)
LOG = [FIRST, SECOND]


def base() -> Membership:
    return membership_of(LOG, verify)


def added(*numbers: int, log: list[bytes] = LOG) -> list[bytes]:
    """Links of the admin that add these devices."""
    grown = list(log)
    for number in numbers:
        seq, previous = len(grown) + 1, link_hash(grown[-1])
        grown.append(add_device(ADMIN, FIRST_AUTHOR, VAULT, seq, previous, key_of(signer(number)), Role.WRITER))
    return grown[len(log) :]


def replaced(count: int) -> list[bytes]:
    """Links by which the reader takes one key after another."""
    grown, key, author = list(LOG), READER, Author(2)
    for number in range(count):
        new = signer(100 + number)
        grown.append(replace_device(key, author, VAULT, len(grown) + 1, link_hash(grown[-1]), new))
        key, author = new, Author(len(grown))
    return grown[len(LOG) :]


def suffix(links: list[bytes]) -> Suffix:
    return suffix_of(base(), links, verify)


def test_r15_the_longer_end_stands() -> None:
    assert suffix(added(5, 6)).weight > suffix(added(7)).weight > suffix([]).weight


def test_r15_of_two_of_one_length_that_with_the_smaller_hash_stands() -> None:
    ends = sorted((added(number) for number in range(5, 15)), key=lambda links: link_hash(links[-1]))
    assert [suffix(links).weight for links in ends] == sorted((suffix(x).weight for x in ends), reverse=True)


def test_r15_no_number_of_links_that_members_sign_for_themselves_outgrows_one_of_an_admin() -> None:
    assert suffix(replaced(9)).weight < suffix(added(5)).weight
    assert suffix(replaced(9)).weight > suffix(replaced(8)).weight


def test_r15_a_new_key_of_an_admin_counts_as_a_link_of_an_admin() -> None:
    grown = [*LOG, replace_device(ADMIN, FIRST_AUTHOR, VAULT, 3, link_hash(SECOND), signer(50))]
    assert suffix(grown[2:]).weight.by_admins == 1
    again = replace_device(ADMIN, FIRST_AUTHOR, VAULT, 4, link_hash(grown[-1]), signer(51))
    assert suffix([*grown[2:], again]).weight.by_admins == 2, "although the admin was replaced"


OTHER = signer(3)
TWO_ADMINS = [*LOG, add_device(ADMIN, FIRST_AUTHOR, VAULT, 3, link_hash(SECOND), key_of(OTHER), Role.ADMIN)]


def ending(*links: tuple[object, int, tuple[int, ...]]) -> Suffix:
    """An end of new epochs: of each who signs it, as which member, and whom it removes."""
    base, grown, members = membership_of(TWO_ADMINS, verify), list(TWO_ADMINS), 3
    for number, (key, author, removed) in enumerate(links, 2):
        members -= len(removed)
        where = VAULT, len(grown) + 1, link_hash(grown[-1])
        grown.append(new_epoch(key, Author(author), *where, members, removed, number))  # type: ignore[arg-type]
    return suffix_of(base, grown[3:], verify)


def test_r15_a_higher_epoch_outweighs_more_links() -> None:
    assert suffix([new_epoch(ADMIN, FIRST_AUTHOR, VAULT, 3, link_hash(SECOND), 2)]).outranks(suffix(added(6, 7, 8)))


def test_r15_s10_whoever_was_removed_cannot_undo_that_however_much_it_signs() -> None:
    removing = ending((ADMIN, 1, (3,)))
    signed = ending(*[(OTHER, 3, ())] * 9)
    assert signed.weight > removing.weight
    assert removing.outranks(signed)
    assert not signed.outranks(removing)
    assert removing.removes_signers_of(signed)


def test_r15_of_two_that_remove_each_other_the_weight_decides() -> None:
    one, other = ending((ADMIN, 1, (3,))), ending((OTHER, 3, (1,)), (OTHER, 3, ()))
    assert other.outranks(one)
    assert not one.outranks(other)
    assert one.removes_signers_of(other)
    assert other.removes_signers_of(one)


def deleting(key: object, author: int, removed: tuple[int, ...] = ()) -> Suffix:
    """An end by which a vault of two admins is deleted, by one who has removed others before."""
    base, grown = membership_of(TWO_ADMINS, verify), list(TWO_ADMINS)
    if removed:
        where = VAULT, 4, link_hash(grown[-1])
        grown.append(new_epoch(key, Author(author), *where, 3 - len(removed), removed))  # type: ignore[arg-type]
    grown.append(end(key, Author(author), VAULT, len(grown) + 1, link_hash(grown[-1])))  # type: ignore[arg-type]
    return suffix_of(base, grown[3:], verify)


def test_r15_a_vault_that_was_deleted_stays_so_whatever_others_have_signed_beside() -> None:
    ended, other = deleting(ADMIN, 1), ending((OTHER, 3, ()), (OTHER, 3, ()))
    assert other.weight > ended.weight
    assert ended.outranks(other)
    assert not other.outranks(ended)


def test_r15_s10_whoever_was_removed_deletes_nothing() -> None:
    removing = ending((ADMIN, 1, (3,)))
    for ended in (deleting(OTHER, 3), deleting(OTHER, 3, removed=(1,))):
        assert removing.outranks(ended)
        assert not ended.outranks(removing)


def test_r15_whoever_leaves_cannot_drop_so_what_others_have_signed() -> None:
    where = VAULT, len(TWO_ADMINS) + 1, link_hash(TWO_ADMINS[-1])
    base = membership_of(TWO_ADMINS, verify)
    left = suffix_of(base, [leave(OTHER, Author(3), *where)], verify)
    others = ending((OTHER, 3, ()), (ADMIN, 1, ()))
    assert not left.removes_signers_of(others)
    assert others.outranks(left)
    assert not left.outranks(others)


def test_r15_an_end_is_verified_and_leaves_the_log_that_it_is_of_as_it_was() -> None:
    known = base()
    assert suffix_of(known, added(5, 6), verify).membership.head == 4
    assert (known.head, len(known.members)) == (2, 2)
    for forged in (added(5)[0][:-1] + b"\0", added(5, 6)[1], SECOND):
        with pytest.raises(LinkError):
            suffix_of(known, [forged], verify)


def test_r15_where_two_logs_part() -> None:
    one, other = [*LOG, *added(5, 6)], [*LOG, *added(7)]
    assert common_links(one, other) == common_links(other, one) == 2
    assert common_links(one, LOG) == common_links(LOG, one) == 2
    assert common_links(one, one) == 4
    assert common_links(one, [genesis(READER)]) == 0
