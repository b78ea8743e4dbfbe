import pickle

import pytest

from sealwire_client import cipher
from sealwire_client.cipher import Secret
from sealwire_client.identity import DeviceIdentity
from sealwire_client.keyring import (
    EpochKey,
    KeyringError,
    Names,
    NameTooLongError,
    NotAMemberError,
    VaultKeys,
    keys_from_log,
    to_adopt,
    unwrapped_beside,
    wrapped_beside,
)
from sealwire_client.linkmaking import add_device_link, new_epoch_link, new_vault, replace_device_link
from sealwire_client.sealing import Draft, Reason
from sealwire_protocol.errors import LocalMisuse
from sealwire_protocol.ids import MEMBERSHIP, Author
from sealwire_protocol.limits import ADOPTED_MAX, LINK_BYTES_MAX
from sealwire_protocol.links import (
    LINK_CONTEXT,
    AddDevice,
    LinkError,
    LinkType,
    NewEpoch,
    Role,
    decode_link,
    encode_unsigned,
)
from sealwire_protocol.membership import Membership

ADMIN, WRITER, STRANGER = (DeviceIdentity(Secret(bytes([n]) * 32)) for n in (1, 2, 3))


def vault() -> tuple[Membership, VaultKeys]:
    genesis, keys = new_vault(ADMIN, Names("laptop", "home"))
    membership = Membership()
    membership.apply(genesis, cipher.verify)
    return membership, keys


def add(membership: Membership, keys: VaultKeys, joiner: DeviceIdentity, role: Role = Role.WRITER) -> bytes:
    raw = add_device_link(ADMIN, membership, keys, joiner.device_key, joiner.box_key, role, "phone")
    membership.apply(raw, cipher.verify)
    return raw


def handed_over(membership: Membership, sealed_keys: bytes) -> None:
    """Add the writer with any sealed keys, signed by the admin: what only a faulty or hostile admin would do."""
    assert membership.vault is not None
    body = AddDevice(WRITER.device_key, WRITER.box_key, Role.WRITER, sealed_keys, b"")
    unsigned = encode_unsigned(
        LinkType.ADD_DEVICE, membership.head + 1, membership.vault, membership.last_hash, Author(1), body
    )
    membership.apply(unsigned + ADMIN.sign(LINK_CONTEXT + unsigned), cipher.verify)


def test_a_new_vault_needs_nothing_but_its_link() -> None:
    membership, keys = vault()
    again = keys_from_log(ADMIN, membership)
    assert again.vault == keys.vault == membership.vault
    assert again.current == keys.current
    assert again.current.key_id == membership.key_id
    assert again.stream_id("todos") == keys.stream_id("todos")


def test_every_vault_has_keys_of_its_own() -> None:
    (_, one), (_, two) = vault(), vault()
    assert one.vault != two.vault
    assert one.current.secret != two.current.secret
    assert one.stream_id("todos") != two.stream_id("todos")


def test_a_joiner_reads_what_was_written_before() -> None:
    membership, keys = vault()
    stream = keys.stream_id("todos")
    sealed = keys.sealer(stream, Author(1), ADMIN.hedge_key).seal_many([Draft("t1", b"milk", 1)])
    raw = add(membership, keys, WRITER)
    assert len(raw) <= LINK_BYTES_MAX
    joined = keys_from_log(WRITER, membership)
    assert joined.stream_id("todos") == stream
    opened, _ = joined.opener(stream).open_segment(sealed[0].encoded, 0)
    assert [(o.key, o.value) for o in opened] == [("t1", b"milk")]


def test_names_are_read_by_members_alone() -> None:
    membership, keys = vault()
    raw = add(membership, keys, WRITER)
    assert b"phone" not in raw
    joined = keys_from_log(WRITER, membership)
    assert [joined.names(m) for m in membership.members.values()] == [Names("laptop", "home"), Names("phone", "")]
    other = vault()[1]
    laptop, phone = membership.members.values()
    for wrong in (laptop._replace(sealed_name=phone.sealed_name), laptop._replace(sealed_name=b"")):
        with pytest.raises(KeyringError):
            keys.names(wrong)
    with pytest.raises(KeyringError):
        other.names(laptop)


def test_who_is_not_a_member_gets_no_keys() -> None:
    membership, _ = vault()
    with pytest.raises(NotAMemberError, match="ask a member for an invite"):
        keys_from_log(STRANGER, membership)
    with pytest.raises(NotAMemberError):
        keys_from_log(ADMIN, Membership())


def test_a_device_takes_new_keys_and_reads_and_is_called_as_before() -> None:
    membership, keys = vault()
    add(membership, keys, WRITER)
    for new in (STRANGER, DeviceIdentity.generate()):
        raw = replace_device_link(WRITER, new, membership, keys_from_log(WRITER, membership))
        assert membership.apply(raw, cipher.verify).seq == membership.head
        renewed = keys_from_log(new, membership)
        assert renewed.current == keys.current and renewed.stream_id("todos") == keys.stream_id("todos")
    assert [keys.names(m).device for m in membership.members.values()] == ["laptop", "phone", "phone", "phone"]
    with pytest.raises(KeyringError, match="make a new one"):
        add_device_link(WRITER, membership, keys, STRANGER.box_key, STRANGER.box_key, Role.WRITER, "")  # type: ignore[arg-type]


def test_keys_are_replaced_by_those_of_a_member_and_with_ones_that_are_none_s() -> None:
    membership, keys = vault()
    add(membership, keys, WRITER)
    with pytest.raises(NotAMemberError):
        replace_device_link(STRANGER, DeviceIdentity.generate(), membership, keys)
    for member in (ADMIN, WRITER):
        with pytest.raises(KeyringError, match="member of the vault already"):
            replace_device_link(WRITER, member, membership, keys)
    with pytest.raises(KeyringError, match="present keys"):
        replace_device_link(WRITER, STRANGER, membership, vault()[1])


def test_a_name_that_cannot_be_read_keeps_nobody_from_new_keys() -> None:
    membership, keys = vault()
    handed_over(membership, keys.sealed_for(WRITER.box_key, bytes(32)))
    membership.apply(replace_device_link(WRITER, STRANGER, membership, keys), cipher.verify)
    found = membership.by_device(STRANGER.device_key)
    assert found is not None and keys.names(found) == Names("", "")


def test_s04_a_key_that_the_log_did_not_commit_to_is_never_used() -> None:
    (_, other), (membership, keys) = vault(), vault()
    mixed = VaultKeys(keys.vault, keys._tag_key, [other.current])
    handed_over(membership, mixed.sealed_for(WRITER.box_key, bytes(32)))
    with pytest.raises(KeyringError, match=r"key of epoch 1 .* is not the vault's"):
        keys_from_log(WRITER, membership)


def test_s04_nor_a_tag_key_that_it_did_not_commit_to() -> None:
    membership, keys = vault()
    mixed = VaultKeys(keys.vault, Secret(bytes(32)), [keys.current])
    handed_over(membership, mixed.sealed_for(WRITER.box_key, bytes(32)))
    with pytest.raises(KeyringError, match="tag key"):
        keys_from_log(WRITER, membership)


def test_s04_nor_the_right_key_under_another_number() -> None:
    membership, keys = vault()
    moved = VaultKeys(keys.vault, keys._tag_key, [keys.current._replace(number=2)])
    handed_over(membership, moved.sealed_for(WRITER.box_key, bytes(32)))
    with pytest.raises(KeyringError, match="not the vault's"):
        keys_from_log(WRITER, membership)


def test_s04_a_wrong_key_under_the_right_number_opens_and_poisons_nothing() -> None:
    (_, keys), (_, other) = vault(), vault()
    wrong = VaultKeys(keys.vault, keys._tag_key, [other.current])
    stream = keys.stream_id("todos")
    sealed = wrong.sealer(stream, Author(1), ADMIN.hedge_key).seal_many([Draft("t1", b"milk", 1)])
    _, unopened = keys.opener(stream).open_segment(sealed[0].encoded, 0)
    assert [u.reason for u in unopened] == [Reason.NO_KEY]


@pytest.mark.parametrize(
    "sealed",
    [
        b"",
        cipher.box_seal(bytes(67), STRANGER.box_key, bytes(32)),
        cipher.box_seal(bytes(67), WRITER.box_key, bytes(32)),
        cipher.box_seal(b"\1" * 66, WRITER.box_key, bytes(32)),
    ],
)
def test_sealed_keys_that_are_none_are_refused(sealed: bytes) -> None:
    membership, _ = vault()
    handed_over(membership, sealed)
    with pytest.raises(KeyringError):
        keys_from_log(WRITER, membership)


def test_only_an_admin_adds_devices() -> None:
    membership, keys = vault()
    add(membership, keys, WRITER)
    for identity in (WRITER, STRANGER):
        with pytest.raises(KeyringError):
            add_device_link(identity, membership, keys, STRANGER.device_key, STRANGER.box_key, Role.READER, "x")
    with pytest.raises(KeyringError, match="already"):
        add_device_link(ADMIN, membership, keys, WRITER.device_key, WRITER.box_key, Role.READER, "x")
    with pytest.raises(KeyringError, match="nothing can be sealed"):
        add_device_link(ADMIN, membership, keys, STRANGER.device_key, bytes(32), Role.READER, "x")
    with pytest.raises(KeyringError, match="present keys"):
        add_device_link(ADMIN, membership, vault()[1], STRANGER.device_key, STRANGER.box_key, Role.READER, "x")


def test_s03_a_link_signed_by_a_stranger_is_rejected() -> None:
    membership, keys = vault()
    raw = add_device_link(ADMIN, membership, keys, WRITER.device_key, WRITER.box_key, Role.WRITER, "phone")
    with pytest.raises(LinkError):
        membership.apply(raw[:-64] + STRANGER.sign(LINK_CONTEXT + raw[:-64]), cipher.verify)
    membership.apply(raw, cipher.verify)


def test_long_names_are_refused() -> None:
    with pytest.raises(NameTooLongError, match="128 at most"):
        new_vault(ADMIN, Names("x" * 129, "home"))
    new_vault(ADMIN, Names("x" * 128, "y" * 128))


def test_a_collection_never_becomes_stream_0(monkeypatch: pytest.MonkeyPatch) -> None:
    _, keys = vault()
    usual, hashed = cipher.keyed_hash, list[bytes]()

    def unlucky(key: Secret, purpose: cipher.Purpose, data: bytes, size: int) -> bytes:
        hashed.append(data)
        return bytes(MEMBERSHIP) if len(hashed) == 1 else usual(key, purpose, data, size)

    monkeypatch.setattr(cipher, "keyed_hash", unlucky)
    assert keys.stream_id("todos") != MEMBERSHIP
    assert hashed == [b"streamtodos", b"streamtodos\0"]


def test_a_key_that_is_not_known_is_an_error() -> None:
    _, keys = vault()
    with pytest.raises(KeyringError, match="epoch 7"):
        keys.named(7, keys.current.key_id)


# --- epochs


def began(membership: Membership, *removed: int) -> VaultKeys:
    """The vault's keys after another epoch, begun by the admin."""
    keys = keys_from_log(ADMIN, membership)
    lineages = [Author(author) for author in removed]
    membership.apply(new_epoch_link(ADMIN, membership, keys, lineages), cipher.verify)
    return keys_from_log(ADMIN, membership)


def test_a_new_epoch_is_read_by_all_who_are_members_then_and_so_is_what_came_before() -> None:
    membership, keys = vault()
    add(membership, keys, WRITER)
    first = keys.current
    began(membership)
    second = began(membership).current
    for device in (ADMIN, WRITER):
        found = keys_from_log(device, membership)
        assert found.current == second
        assert found.epochs[1] == first
        assert sorted(found.epochs) == [1, 2, 3]
        assert found.current.key_id == membership.key_id
        assert found.stream_id("todos") == keys.stream_id("todos")


def test_whoever_joins_later_reads_the_epochs_before() -> None:
    membership, keys = vault()
    first, later = keys.current, began(membership)
    add(membership, later, WRITER)
    found = keys_from_log(WRITER, membership)
    assert found.epochs == {1: first, 2: later.current}
    third = began(membership).current
    assert keys_from_log(WRITER, membership).epochs[3] == third


def two_ends() -> tuple[Membership, VaultKeys, EpochKey]:
    """A vault whose admin has begun the second epoch, after another end of the log had done so that gave way: members
    and keys of the one that stands, and the key of the other."""
    membership, keys = vault()
    add(membership, keys, WRITER)
    other = began(membership.copy()).current
    standing = began(membership)
    standing.keep([other])
    return membership, standing, other


def test_a_key_of_an_end_that_gave_way_is_handed_on_to_all() -> None:
    membership, keys, other = two_ends()
    assert (keys.current.number, keys.named(2, other.key_id)) == (2, other)
    adopt = to_adopt(membership, keys)
    assert adopt == [other]
    membership.apply(new_epoch_link(ADMIN, membership, keys, adopt=adopt), cipher.verify)
    began(membership)
    add(membership, keys_from_log(ADMIN, membership), STRANGER)
    stream = keys.stream_id("todos")
    sealed = keys.sealer(stream, Author(1), ADMIN.hedge_key, key=other).seal_many([Draft("t1", b"milk", 1)])
    for device in (ADMIN, WRITER, STRANGER):
        found = keys_from_log(device, membership)
        assert list(found.others.values()) == [other]
        assert found.opener(stream).open_segment(sealed[0].encoded, 0).opened[0].value == b"milk"
        assert to_adopt(membership, found) is None
        assert not found.beyond(found)


def test_a_key_of_a_later_epoch_than_the_log_has_is_adopted_once_it_has_it() -> None:
    membership, keys = vault()
    longer = membership.copy()
    began(longer)
    other = began(longer).current
    keys.keep([other])
    assert to_adopt(membership, keys) == [], "an epoch comes first"
    keys.take_in(began(membership))
    assert to_adopt(membership, keys) == []
    keys.take_in(began(membership))
    assert (to_adopt(membership, keys), keys.current.number, other.number) == ([other], 3, 3)


def test_s04_a_key_that_is_not_the_one_it_was_adopted_for_is_passed_over() -> None:
    _, keys, other = two_ends()
    (adopted,) = wrapped_beside(keys, [other])
    assert unwrapped_beside(keys, [(2, adopted)]) == [other]
    assert unwrapped_beside(keys, [(9, adopted)]) == [], "wrapped under a key that is not here"
    assert unwrapped_beside(keys, [(1, adopted)]) == [], "wrapped under another"
    under = cipher.derive(keys.current.secret, cipher.Purpose.EPOCH_WRAP)
    context = keys.vault + (2).to_bytes(2, "big") + adopted.commitment
    for secret in (bytes(32), bytes(48), b""):
        wrong = adopted._replace(wrapped=cipher.private_seal(under, secret, context, bytes(32)))
        assert unwrapped_beside(keys, [(2, wrong)]) == []


@pytest.mark.parametrize(
    ("adopted", "why"),
    [
        ([2, 2], "that the log has"),
        ([0], "that the log has"),
        ([3], "not before its own"),
        ([1], "not before its own"),
    ],
    ids=["twice", "the log's own", "its own epoch", "the first"],
)
def test_a_link_adopts_no_key_that_records_could_take_for_another(adopted: list[int], why: str) -> None:
    membership, keys, other = two_ends()
    own = keys.epochs[2]
    beside = [other._replace(number=number) if number else own for number in adopted]
    with pytest.raises(LinkError, match=why):
        membership.apply(new_epoch_link(ADMIN, membership, keys, adopt=beside), cipher.verify)
    assert membership.epoch == 2


def test_a_link_adopts_a_bounded_number_of_keys() -> None:
    membership, keys, _ = two_ends()
    many = [began(membership.copy()).current._replace(number=2) for _ in range(ADOPTED_MAX + 1)]
    with pytest.raises(LocalMisuse):
        new_epoch_link(ADMIN, membership, keys, adopt=many)
    raw = new_epoch_link(ADMIN, membership, keys, adopt=many[1:])
    at = raw.index(bytes([ADOPTED_MAX]) + b"\0\2")
    for cut in (b"", bytes([ADOPTED_MAX + 1]), bytes([200])):
        with pytest.raises(LinkError):
            decode_link(raw[:at] + cut + raw[at + 1 :] if cut else raw[: at + 40])


def test_s11_who_was_removed_gets_no_key_of_the_epoch_that_removed_it() -> None:
    membership, keys = vault()
    add(membership, keys, WRITER)
    began(membership, 2)
    with pytest.raises(NotAMemberError):
        keys_from_log(WRITER, membership)
    start = membership.epochs[2]
    assert start.receivers == (1,)
    assert membership.share(2, Author(2)) is None
    assert [member.removed for member in membership.members.values()] == [False, True]
    with pytest.raises(KeyringError, match="no member"):
        new_epoch_link(ADMIN, membership, keys_from_log(ADMIN, membership), [Author(2)])


def test_who_was_removed_may_be_added_again_as_another_member() -> None:
    membership, keys = vault()
    add(membership, keys, WRITER)
    add(membership, began(membership, 2), WRITER)
    assert keys_from_log(WRITER, membership).epochs.keys() == {1, 2}
    found = membership.by_device(WRITER.device_key)
    assert found is not None
    assert found.author == 4


def test_a_device_is_removed_with_all_keys_that_it_has_taken() -> None:
    membership, keys = vault()
    add(membership, keys, WRITER)
    taken = replace_device_link(WRITER, STRANGER, membership, keys_from_log(WRITER, membership))
    membership.apply(taken, cipher.verify)
    began(membership, 2)
    for device in (WRITER, STRANGER):
        with pytest.raises(NotAMemberError):
            keys_from_log(device, membership)
        with pytest.raises(KeyringError):
            replace_device_link(device, DeviceIdentity.generate(), membership, keys)


def test_an_admin_cannot_remove_itself_and_nobody_else_anyone() -> None:
    membership, keys = vault()
    add(membership, keys, WRITER)
    with pytest.raises(KeyringError, match="cannot remove itself"):
        new_epoch_link(ADMIN, membership, keys, [Author(1)])
    with pytest.raises(KeyringError, match="may not"):
        new_epoch_link(WRITER, membership, keys_from_log(WRITER, membership))
    began(membership)
    with pytest.raises(KeyringError, match="present keys"):
        new_epoch_link(ADMIN, membership, keys)


def test_s04_a_share_that_does_not_match_the_commitment_is_never_used() -> None:
    membership, keys = vault()
    add(membership, keys, WRITER)
    raw = new_epoch_link(ADMIN, membership, keys)
    body = decode_link(raw).body
    assert isinstance(body, NewEpoch)
    wrong = body._replace(shares=body.shares[:32] + body.shares[:32])
    unsigned = encode_unsigned(LinkType.NEW_EPOCH, 3, keys.vault, membership.last_hash, Author(1), wrong)
    membership.apply(unsigned + ADMIN.sign(LINK_CONTEXT + unsigned), cipher.verify)
    assert keys_from_log(ADMIN, membership).current.number == 2
    with pytest.raises(KeyringError, match="not the vault's"):
        keys_from_log(WRITER, membership)


def test_a_member_whose_key_is_no_key_keeps_nobody_from_a_new_epoch() -> None:
    membership, keys = vault()
    handed = keys.sealed_for(WRITER.box_key, bytes(32))
    body = AddDevice(WRITER.device_key, bytes(32), Role.WRITER, handed, b"")
    unsigned = encode_unsigned(LinkType.ADD_DEVICE, 2, keys.vault, membership.last_hash, Author(1), body)
    membership.apply(unsigned + ADMIN.sign(LINK_CONTEXT + unsigned), cipher.verify)
    assert began(membership).current.number == 2


def test_s22_vault_keys_do_not_show_or_copy_themselves() -> None:
    _, keys = vault()
    shown = repr(keys) + repr(keys.current) + repr(keys.stream(keys.stream_id("todos")))
    assert keys.current.secret.reveal().hex() not in shown
    assert repr(keys.current.secret.reveal()) not in shown
    with pytest.raises(TypeError):
        pickle.dumps(keys)
