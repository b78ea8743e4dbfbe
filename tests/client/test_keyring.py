import pickle

import pytest

from sealwire_client import cipher
from sealwire_client.cipher import Secret
from sealwire_client.identity import DeviceIdentity
from sealwire_client.keyring import (
    KeyringError,
    Names,
    NameTooLongError,
    NotAMemberError,
    VaultKeys,
    add_device_link,
    keys_from_log,
    new_vault,
    replace_device_link,
)
from sealwire_client.sealing import Draft, Reason
from sealwire_protocol.ids import MEMBERSHIP, Author
from sealwire_protocol.limits import LINK_BYTES_MAX
from sealwire_protocol.membership import LINK_CONTEXT, AddDevice, LinkError, LinkType, Membership, Role, encode_unsigned

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
    _, other = vault()
    membership, _ = vault()
    handed_over(membership, other.sealed_for(WRITER.box_key, bytes(32)))
    with pytest.raises(KeyringError, match="not the vault's"):
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


def test_an_epoch_that_is_not_known_is_an_error() -> None:
    _, keys = vault()
    with pytest.raises(KeyringError, match="epoch 7"):
        keys.sealer(keys.stream_id("todos"), Author(1), ADMIN.hedge_key, epoch=7)


def test_s22_vault_keys_do_not_show_or_copy_themselves() -> None:
    _, keys = vault()
    shown = repr(keys) + repr(keys.current) + repr(keys.stream(keys.stream_id("todos")))
    assert keys.current.secret.reveal().hex() not in shown
    assert repr(keys.current.secret.reveal()) not in shown
    with pytest.raises(TypeError):
        pickle.dumps(keys)
