"""The membership log: what is taken in, and everything that is not (S3)."""

from collections.abc import Callable

import pytest

from sealwire_protocol.errors import DecodeError, LocalMisuse
from sealwire_protocol.ids import Author, VaultId
from sealwire_protocol.limits import LINK_BYTES_MAX, REPLACEMENTS_MAX
from sealwire_protocol.membership import (
    FIRST_AUTHOR,
    LINK_CONTEXT,
    SEALED_BYTES_MAX,
    AddDevice,
    LinkError,
    LinkType,
    Membership,
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
from tests.protocol.examples import add_device, genesis, key_of, replace_device, signer
from tests.support.link import verify

ADMIN, WRITER, READER, STRANGER = signer(1), signer(2), signer(3), signer(4)
FIRST = genesis(ADMIN)
VAULT = vault_id_of(FIRST)
SECOND = add_device(ADMIN, FIRST_AUTHOR, VAULT, 2, link_hash(FIRST), key_of(WRITER), Role.WRITER)


def log(*links: bytes) -> Membership:
    membership = Membership()
    for raw in links:
        membership.apply(raw, verify)
    return membership


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
    "with a raised role": lambda: third_by(1, 1).replace(b"y" * 32 + b"\1", b"y" * 32 + b"\3"),
}


@pytest.mark.parametrize("make", REJECTED.values(), ids=REJECTED.keys())
def test_s3_a_link_that_nobody_may_append_is_rejected_and_leaves_the_log_as_it_was(make: Callable[[], bytes]) -> None:
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
def test_s3_a_log_begins_with_a_valid_genesis_link_or_not_at_all(raw: bytes) -> None:
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


@pytest.mark.parametrize("raw", (FIRST, SECOND, unproved(9, 9)))
def test_a_link_that_is_cut_off_or_goes_on_is_refused(raw: bytes) -> None:
    for end in range(len(raw)):
        with pytest.raises(LinkError):
            decode_link(raw[:end])
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
