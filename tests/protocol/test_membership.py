"""The membership log: what is taken in, and everything that is not (S3)."""

from collections.abc import Callable

import pytest

from sealwire_protocol.errors import DecodeError, LocalMisuse
from sealwire_protocol.ids import Author, VaultId
from sealwire_protocol.limits import LINK_BYTES_MAX, MEMBERS_MAX, REPLACEMENTS_MAX
from sealwire_protocol.links import (
    FIRST_AUTHOR,
    LINK_CONTEXT,
    SEALED_BYTES_MAX,
    AddDevice,
    LinkError,
    LinkType,
    NewEpoch,
    ReplaceDevice,
    Role,
    decode_link,
    decode_links,
    encode_body,
    encode_links,
    encode_unsigned,
    link_hash,
    proved_by,
    vault_id_of,
)
from sealwire_protocol.membership import Membership, membership_of
from tests.protocol.examples import add_device, end, genesis, key_of, leave, move, new_epoch, replace_device, signer
from tests.support.link import verify

ADMIN, WRITER, READER, STRANGER = signer(1), signer(2), signer(3), signer(4)
FIRST = genesis(ADMIN)
VAULT = vault_id_of(FIRST)
SECOND = add_device(ADMIN, FIRST_AUTHOR, VAULT, 2, link_hash(FIRST), key_of(WRITER), Role.WRITER)


def log(*links: bytes) -> Membership:
    return membership_of(links, verify)


def state(membership: Membership) -> tuple[object, ...]:
    return tuple(repr(getattr(membership, name)) for name in Membership.__slots__)


def test_links_are_taken_in_one_after_the_other() -> None:
    membership = log(FIRST, SECOND)
    third = add_device(ADMIN, FIRST_AUTHOR, VAULT, 3, link_hash(SECOND), key_of(READER), Role.ADMIN)
    link = membership.apply(third, verify)
    assert link.seq == membership.head == 3 and membership.last_hash == link_hash(third)
    assert membership.vault == VAULT and (membership.epoch, membership.key_id) == (1, b"cccc")
    assert {a: m.role for a, m in membership.members.items()} == {1: Role.ADMIN, 2: Role.WRITER, 3: Role.ADMIN}
    assert (found := membership.by_device(key_of(WRITER))) is not None and found.author == 2
    assert membership.by_device(key_of(STRANGER)) is None
    assert repr(link) == "<Link ADD_DEVICE #3>"


def test_an_admin_who_was_added_may_add_others() -> None:
    second = add_device(ADMIN, FIRST_AUTHOR, VAULT, 2, link_hash(FIRST), key_of(READER), Role.ADMIN)
    third = add_device(READER, Author(2), VAULT, 3, link_hash(second), key_of(WRITER), Role.READER)
    assert log(FIRST, second, third).head == 3


def replaced(log: Membership, author: int, old: int, new: int) -> bytes:
    """The link that gives `author` the key number `new`, after this log."""
    return replace_device(signer(old), Author(author), VAULT, log.head + 1, log.last_hash, signer(new))


def test_a_device_of_any_role_takes_a_new_key_which_gets_its_role() -> None:
    membership = log(FIRST, SECOND)
    assert repr(membership.apply(replaced(membership, 2, 2, 7), verify)) == "<Link REPLACE_DEVICE #3>"
    membership.apply(replaced(membership, 1, 1, 8), verify)
    told = {author: (m.role, m.given, m.lineage) for author, m in membership.members.items()}
    assert told == {
        1: (Role.REPLACED, Role.ADMIN, 1),
        2: (Role.REPLACED, Role.WRITER, 2),
        3: (Role.WRITER, Role.WRITER, 2),
        4: (Role.ADMIN, Role.ADMIN, 1),
    }
    assert (found := membership.by_device(key_of(signer(7)))) is not None and found.author == 3
    third = add_device(signer(8), Author(4), VAULT, 5, membership.last_hash, key_of(READER), Role.READER)
    assert membership.apply(third, verify).seq == 5


def test_a_replaced_device_may_replace_itself_again_and_do_nothing_else() -> None:
    membership = log(FIRST, SECOND)
    membership.apply(replaced(membership, 1, 1, 7), verify)
    adds = add_device(ADMIN, FIRST_AUTHOR, VAULT, 4, membership.last_hash, key_of(READER), Role.READER)
    with pytest.raises(LinkError, match="no admin"):
        membership.apply(adds, verify)
    membership.apply(replaced(membership, 1, 1, 8), verify)
    assert [membership.members[Author(n)].role for n in (3, 4)] == [Role.ADMIN, Role.ADMIN]


def test_a_key_and_all_that_descend_from_it_are_replaced_a_bounded_number_of_times() -> None:
    membership = log(FIRST, SECOND)
    for number in range(REPLACEMENTS_MAX):
        old = (2, 2) if number % 2 else (membership.head, 100 + number - 1) if number else (2, 2)
        membership.apply(replaced(membership, *old, 100 + number), verify)
    assert membership.replacements(Author(2)) == REPLACEMENTS_MAX
    for author, key in ((2, 2), (membership.head, 100 + REPLACEMENTS_MAX - 1)):
        with pytest.raises(LinkError, match="invite it again"):
            membership.apply(replaced(membership, author, key, 250), verify)
    assert membership.replacements(Author(1)) == 0
    membership.apply(replaced(membership, 1, 1, 251), verify)


def unproved(own: int, by: int, author: int = 2, vault: bytes = VAULT, previous: bytes = link_hash(SECOND)) -> bytes:
    """A link that gives the writer the key `own`, for which the key `by` has signed."""
    device = key_of(signer(own))
    proof = signer(by).sign(proved_by(VaultId(vault), previous, Author(author), device, b"z" * 32)).signature
    body = ReplaceDevice(device, b"z" * 32, proof, b"keys", b"name")
    unsigned = encode_unsigned(LinkType.REPLACE_DEVICE, 3, VAULT, link_hash(SECOND), Author(2), body)
    return unsigned + WRITER.sign(LINK_CONTEXT + unsigned).signature


def broken(raw: bytes) -> bytes:
    """The same link with one bit of its signature changed."""
    return raw[:-64] + bytes([raw[-64] ^ 1]) + raw[-63:]


def third_by(key_number: int, author: int, device: int = 9, role: Role = Role.READER) -> bytes:
    key = signer(key_number)
    return add_device(key, Author(author), VAULT, 3, link_hash(SECOND), key_of(signer(device)), role)


REJECTED: dict[str, Callable[[], bytes]] = {
    "by a stranger under an admin's index": lambda: third_by(4, 1),
    "by a stranger under an index of nobody": lambda: third_by(4, 7),
    "by a writer": lambda: third_by(2, 2, role=Role.ADMIN),
    "of a member": lambda: third_by(1, 1, device=2),
    "again": lambda: SECOND,
    "out of place": lambda: add_device(ADMIN, FIRST_AUTHOR, VAULT, 4, link_hash(SECOND), key_of(READER), Role.READER),
    "after another link": lambda: add_device(
        ADMIN, FIRST_AUTHOR, VAULT, 3, link_hash(FIRST), key_of(READER), Role.READER
    ),
    "of another vault": lambda: add_device(
        ADMIN, FIRST_AUTHOR, VaultId(b"W" * 16), 3, link_hash(SECOND), key_of(READER), Role.READER
    ),
    "with a genesis link": lambda: genesis(ADMIN),
    "with a broken signature": lambda: broken(third_by(1, 1)),
    "that replaces another's device": lambda: replace_device(ADMIN, Author(2), VAULT, 3, link_hash(SECOND), signer(9)),
    "by a stranger that replaces a device": lambda: replace_device(
        STRANGER, Author(7), VAULT, 3, link_hash(SECOND), signer(9)
    ),
    "that replaces a device by a member": lambda: replace_device(
        WRITER, Author(2), VAULT, 3, link_hash(SECOND), signer(1)
    ),
    "that replaces a device by itself": lambda: replace_device(
        WRITER, Author(2), VAULT, 3, link_hash(SECOND), signer(2)
    ),
    "with a new key that somebody else signed for": lambda: unproved(9, 2),
    "with a new key that signed for another's place": lambda: unproved(9, 9, author=1),
    "with a new key that signed for another log": lambda: unproved(9, 9, previous=link_hash(FIRST)),
    "with a new key that signed for another vault": lambda: unproved(9, 9, vault=b"W" * 16),
    "by which a stranger leaves": lambda: leave(STRANGER, Author(2), VAULT, 3, link_hash(SECOND)),
    "by which an admin makes another leave": lambda: leave(ADMIN, Author(2), VAULT, 3, link_hash(SECOND)),
    "by which a member makes an admin leave": lambda: leave(WRITER, Author(1), VAULT, 3, link_hash(SECOND)),
    "by which the only admin leaves": lambda: leave(ADMIN, FIRST_AUTHOR, VAULT, 3, link_hash(SECOND)),
    "by which a writer deletes the vault": lambda: end(WRITER, Author(2), VAULT, 3, link_hash(SECOND)),
    "by which a writer deletes the vault as an admin": lambda: end(WRITER, Author(1), VAULT, 3, link_hash(SECOND)),
    "by which a stranger deletes the vault": lambda: end(STRANGER, Author(7), VAULT, 3, link_hash(SECOND)),
    "by which another vault is deleted": lambda: end(ADMIN, FIRST_AUTHOR, VaultId(b"W" * 16), 3, link_hash(SECOND)),
    "with a raised role": lambda: third_by(1, 1).replace(b"y" * 32 + b"\1", b"y" * 32 + b"\3"),
}


@pytest.mark.parametrize("make", REJECTED.values(), ids=REJECTED.keys())
def test_s03_a_link_that_nobody_may_append_is_rejected_and_leaves_the_log_as_it_was(make: Callable[[], bytes]) -> None:
    membership = log(FIRST, SECOND)
    before = state(membership)
    with pytest.raises(LinkError):
        membership.apply(make(), verify)
    assert state(membership) == before


def genesis_as(seq: int = 1, vault: bytes = bytes(16), previous: bytes = bytes(32), by: int = 1) -> bytes:
    body = decode_link(FIRST).body
    unsigned = encode_unsigned(LinkType.GENESIS, seq, VaultId(vault), previous, Author(by), body)
    return unsigned + ADMIN.sign(LINK_CONTEXT + unsigned).signature


@pytest.mark.parametrize(
    "raw",
    [
        genesis(ADMIN, epoch=2),
        genesis_as(seq=2),
        genesis_as(vault=b"V" * 16),
        genesis_as(previous=b"p" * 32),
        genesis_as(by=2),
        broken(FIRST),
        SECOND,
        add_device(ADMIN, FIRST_AUTHOR, VaultId(bytes(16)), 1, bytes(32), key_of(WRITER), Role.ADMIN),
    ],
)
def test_s03_a_log_begins_with_a_valid_genesis_link_or_not_at_all(raw: bytes) -> None:
    membership = Membership()
    with pytest.raises(LinkError):
        membership.apply(raw, verify)
    assert membership.vault is None and membership.head == 0 and membership.members == {}


def test_a_signature_for_something_else_is_worth_nothing_here() -> None:
    unsigned = SECOND[:-64]
    with pytest.raises(LinkError, match="signature"):
        log(FIRST).apply(unsigned + ADMIN.sign(unsigned).signature, verify)


def test_the_name_of_a_vault_certifies_its_genesis_link() -> None:
    assert genesis_as() == FIRST and vault_id_of(genesis(WRITER)) != VAULT


@pytest.mark.parametrize("raw", (FIRST, SECOND, unproved(9, 9), end(ADMIN, FIRST_AUTHOR, VAULT, 3, b"p" * 32)))
def test_a_link_that_is_cut_off_or_goes_on_is_refused(raw: bytes) -> None:
    for size in range(len(raw)):
        with pytest.raises(LinkError):
            decode_link(raw[:size])
    for more in (b"\0", bytes(LINK_BYTES_MAX)):
        with pytest.raises(LinkError):
            decode_link(raw + more)


@pytest.mark.parametrize(("place", "byte"), [(0, 2), (1, 0), (1, 3), (1, 99)])
def test_a_link_of_an_unknown_version_or_type_is_refused(place: int, byte: int) -> None:
    raw = bytearray(FIRST)
    raw[place] = byte
    with pytest.raises(LinkError, match="newer version"):
        decode_link(bytes(raw))


def test_an_unknown_role_is_refused() -> None:
    for role in (0, 7):
        with pytest.raises(LinkError, match=f"role {role}"):
            decode_link(SECOND.replace(b"y" * 32 + b"\2", b"y" * 32 + bytes([role])))


def test_what_a_link_cannot_hold_is_our_mistake() -> None:
    body = AddDevice(key_of(WRITER), b"y" * 32, Role.READER, b"k", b"n")
    for wrong in (body._replace(sealed_keys=bytes(SEALED_BYTES_MAX + 1)), body._replace(box_key=b"y")):
        with pytest.raises(LocalMisuse):
            encode_body(wrong)


def test_segments_of_stream_0_hold_links() -> None:
    segment = encode_links([FIRST, SECOND])
    assert decode_links(segment) == [FIRST, SECOND] and decode_links(b"") == []
    for wrong in (segment[:-1], b"\1" + segment[1:], b"\0\0\0", b"\0\xff\xff"):
        with pytest.raises(DecodeError):
            decode_links(wrong)


# --- epochs


def after(*, shares: int, removed: tuple[int, ...] = (), epoch: int = 2, by: int = 1) -> bytes:
    """An epoch that begins with the third link; of two members."""
    key = ADMIN if by == 1 else WRITER
    return new_epoch(key, Author(by), VAULT, 3, link_hash(SECOND), shares, removed, epoch)


def test_an_epoch_begins_and_hands_its_key_to_each_member() -> None:
    membership = log(FIRST, SECOND)
    link = membership.apply(after(shares=2), verify)
    assert isinstance(link.body, NewEpoch)
    assert (membership.epoch, membership.key_id, membership.head) == (2, b"\2\2\2\2", 3)
    assert membership.commitment(1) == b"c" * 32
    assert membership.commitment(2) == b"\2" * 32
    assert membership.commitment(3) is None
    assert membership.epochs[2].receivers == (1, 2)
    assert membership.share(2, Author(2)) == bytes(32)
    assert membership.share(2, Author(3)) is None
    assert membership.share(1, Author(1)) is None


def test_whoever_was_removed_signs_nothing_any_more_and_may_be_added_again() -> None:
    membership = log(FIRST, SECOND)
    membership.apply(after(shares=1, removed=(2,)), verify)
    assert membership.by_device(key_of(WRITER)) is None
    assert [member.author for member in membership.present()] == [1]
    last = membership.last_hash
    with pytest.raises(LinkError, match="no member"):
        membership.apply(replace_device(WRITER, Author(2), VAULT, 4, last, signer(9)), verify)
    membership.apply(add_device(ADMIN, FIRST_AUTHOR, VAULT, 4, last, key_of(WRITER), Role.READER), verify)
    found = membership.by_device(key_of(WRITER))
    assert found is not None
    assert (found.author, found.role) == (4, Role.READER)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (after(shares=2, by=2), "no admin"),
        (after(shares=2, epoch=3), "does not follow"),
        (after(shares=2, epoch=1), "does not follow"),
        (after(shares=1), "each member"),
        (after(shares=3), "each member"),
        (after(shares=2, removed=(2,)), "each member"),
        (after(shares=1, removed=(1,)), "who signed"),
        (after(shares=2, removed=(9,)), "no member"),
        (after(shares=1, removed=(2, 2)), "order"),
        (after(shares=0, removed=(2, 1)), "order"),
    ],
)
def test_an_epoch_that_is_not_a_right_one_is_refused(wrong: bytes, why: str) -> None:
    membership = log(FIRST, SECOND)
    before = state(membership)
    with pytest.raises(LinkError, match=why):
        membership.apply(wrong, verify)
    assert state(membership) == before


def test_a_copy_of_the_members_grows_apart() -> None:
    membership = log(FIRST, SECOND)
    other = membership.copy()
    other.apply(after(shares=1, removed=(2,)), verify)
    assert (membership.epoch, membership.epochs) == (1, {})
    assert not membership.members[Author(2)].removed


def test_an_epoch_of_the_most_members_fits_into_a_link() -> None:
    raw = new_epoch(ADMIN, FIRST_AUTHOR, VAULT, 3, link_hash(SECOND), MEMBERS_MAX)
    assert decode_links(encode_links([raw])) == [raw]
    assert len(decode_link(raw).body.shares) == 32 * MEMBERS_MAX  # type: ignore[union-attr]
    with pytest.raises(LocalMisuse, match="at most 2,000 members"):
        new_epoch(ADMIN, FIRST_AUTHOR, VAULT, 3, link_hash(SECOND), MEMBERS_MAX + 1)


# --- parting


def test_whoever_leaves_is_a_member_no_more_with_all_of_its_keys() -> None:
    membership = log(FIRST, SECOND)
    membership.apply(replaced(membership, 2, 2, 7), verify)
    assert not membership.owes_epoch
    membership.apply(leave(signer(7), Author(3), VAULT, 4, membership.last_hash), verify)
    assert [member.author for member in membership.members.values() if member.removed] == [2, 3]
    assert (membership.epoch, membership.owes_epoch) == (1, True), "who has left still has the key"
    for author, key in ((2, WRITER), (3, signer(7))):
        with pytest.raises(LinkError, match="no member"):
            membership.apply(replace_device(key, Author(author), VAULT, 5, membership.last_hash, signer(9)), verify)
    membership.apply(new_epoch(ADMIN, FIRST_AUTHOR, VAULT, 5, membership.last_hash, 1), verify)
    assert not membership.owes_epoch
    membership.apply(
        add_device(ADMIN, FIRST_AUTHOR, VAULT, 6, membership.last_hash, key_of(signer(7)), Role.READER), verify
    )
    assert [member.author for member in membership.present()] == [1, 6], "it may come back"


def test_an_admin_leaves_only_while_there_is_another_one() -> None:
    alone = log(FIRST)
    with pytest.raises(LinkError, match="only admin"):
        alone.apply(leave(ADMIN, FIRST_AUTHOR, VAULT, 2, alone.last_hash), verify)
    membership = log(FIRST, SECOND)
    membership.apply(replaced(membership, 1, 1, 8), verify)
    with pytest.raises(LinkError, match="only admin"):
        membership.apply(leave(signer(8), Author(3), VAULT, 4, membership.last_hash), verify)
    third = add_device(signer(8), Author(3), VAULT, 4, membership.last_hash, key_of(READER), Role.ADMIN)
    membership.apply(third, verify)
    with pytest.raises(LinkError, match="new keys"):
        membership.apply(leave(ADMIN, FIRST_AUTHOR, VAULT, 5, membership.last_hash), verify)
    membership.apply(leave(signer(8), Author(3), VAULT, 5, membership.last_hash), verify)
    assert [member.author for member in membership.present()] == [2, 4]


def test_nothing_follows_the_end_of_a_vault() -> None:
    membership = log(FIRST, SECOND)
    assert not membership.ended
    link = membership.apply(end(ADMIN, FIRST_AUTHOR, VAULT, 3, link_hash(SECOND)), verify)
    assert (repr(link), membership.ended, membership.owes_epoch) == ("<Link END #3>", True, False)
    before = state(membership)
    for raw in (
        end(ADMIN, FIRST_AUTHOR, VAULT, 4, membership.last_hash),
        leave(WRITER, Author(2), VAULT, 4, membership.last_hash),
        new_epoch(ADMIN, FIRST_AUTHOR, VAULT, 4, membership.last_hash, 2),
        add_device(ADMIN, FIRST_AUTHOR, VAULT, 4, membership.last_hash, key_of(READER), Role.READER),
        replaced(membership, 2, 2, 9),
    ):
        with pytest.raises(LinkError, match="was deleted"):
            membership.apply(raw, verify)
    assert state(membership) == before


# --- another relay


def moved(origin: str, by: int = 1) -> bytes:
    """A move that is the third link; of two members."""
    return move(ADMIN if by == 1 else WRITER, Author(by), VAULT, 3, link_hash(SECOND), origin)


def test_a_vault_is_where_the_last_move_says() -> None:
    membership = log(FIRST, SECOND)
    assert not membership.relay
    membership.apply(moved("wss://new.example.org"), verify)
    assert [membership.relay, membership.head, len(membership.members)] == ["wss://new.example.org", 3, 2]
    before = membership.copy()
    membership.apply(move(ADMIN, FIRST_AUTHOR, VAULT, 4, membership.last_hash, "wss://old.example.org:8443"), verify)
    assert [membership.relay, before.relay] == ["wss://old.example.org:8443", "wss://new.example.org"]


def test_s03_nobody_but_an_admin_moves_a_vault() -> None:
    membership = log(FIRST, SECOND)
    before = state(membership)
    forged = moved("wss://evil.example.org")
    for wrong in (moved("wss://evil.example.org", by=2), forged[:-1] + bytes([forged[-1] ^ 1])):
        with pytest.raises(LinkError):
            membership.apply(wrong, verify)
    assert (state(membership), membership.relay) == (before, None)


@pytest.mark.parametrize(
    "body",
    [b"", b"\0", b"\0\0", b"\0\4wss:", b"\0\x07wss://R", b"\0\x0bwss://r:443", b"\0\1\xff", b"\x04\1" + b"a" * 1025],
)
def test_an_address_that_is_none_or_not_in_its_normal_form_is_refused(body: bytes) -> None:
    good = moved("wss://r")
    fixed = good[: -64 - len(b"\0\x07wss://r") - 2]
    with pytest.raises(LinkError):
        decode_link(fixed + len(body).to_bytes(2, "big") + body + good[-64:])
