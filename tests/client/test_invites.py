import base64
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealwire_client import cipher, invites
from sealwire_client.cipher import Secret
from sealwire_client.identity import DeviceIdentity
from sealwire_client.invites import (
    OTHERS_BYTES_MAX,
    Approved,
    Invite,
    InviteError,
    Promise,
    Refused,
    Request,
    new_invite,
    open_answer,
    open_request,
    parse,
    promise_bytes,
    seal_answer,
    seal_request,
)
from sealwire_protocol.ids import VaultId
from sealwire_protocol.limits import ANSWER_BYTES_MAX, MAILBOX_BYTES_MAX

INVITER, JOINER, OTHER = (DeviceIdentity(Secret(bytes([n]) * 32)) for n in (1, 2, 3))
VAULT = VaultId(b"v" * 16)
APPROVED = Approved(7, b"h" * 32)


def invite(origin: str = "wss://relay.example.org") -> Invite:
    return new_invite(origin, VAULT, 6, b"g" * 32, INVITER.device_key)


def text_of(raw: bytes) -> str:
    return "sealwire:" + base64.urlsafe_b64encode(raw).decode().rstrip("=")


@pytest.mark.parametrize("origin", ["wss://relay.example.org", "ws://127.0.0.1:7800", "wss://" + "a" * 249])
def test_an_invite_comes_back_from_its_text(origin: str) -> None:
    made = invite(origin)
    found = parse(made.encode())
    assert found == made
    assert found.secret == made.secret
    assert found.mailbox == made.mailbox


def test_line_breaks_and_spaces_of_a_mail_are_forgiven() -> None:
    made = invite()
    text = made.encode()
    assert parse(f"  {text[:30]}\n {text[30:90]}\r\n{text[90:]}\n") == made
    assert parse(text + "=") == made or len(text) % 4


@given(st.integers(0, 400))
def test_any_truncation_is_told_as_one(length: int) -> None:
    text = invite().encode()
    if length < len(text):
        with pytest.raises(InviteError, match="copy"):
            parse(text[:length])


@given(st.data())
def test_any_changed_character_is_noticed(data: st.DataObject) -> None:
    made = invite()
    text = made.encode()
    at = data.draw(st.integers(0, len(text) - 1))
    changed = text[:at] + data.draw(st.sampled_from("aZ09_-!é")) + text[at + 1 :]
    try:
        assert parse(changed) == made  # the last character holds bits that belong to no byte
    except InviteError:
        assert changed != text


@given(st.one_of(st.text(max_size=300), st.binary(max_size=300).map(text_of)))
def test_rubbish_is_an_invite_error(text: str) -> None:
    with pytest.raises(InviteError):
        parse(text)


def test_a_newer_format_asks_for_an_update() -> None:
    with pytest.raises(InviteError, match=r"format 5.*update"):
        parse(text_of(b"\5" + bytes(200)))


@pytest.mark.parametrize("origin", ["", "https://example.org", "wss://", "wss://a b", "wss://é", "wss://" + "a" * 250])
def test_an_origin_that_cannot_be_dialled_is_refused(origin: str) -> None:
    with pytest.raises(InviteError):
        invite(origin).encode()
    raw = invites._FIXED.pack(1, VAULT, 6, b"g" * 32, INVITER.device_key, bytes(32), len(origin.encode()))
    raw += origin.encode()
    with pytest.raises(InviteError, match="no relay"):
        parse(text_of(raw + invites._checksum(raw)))


def test_the_secret_shows_in_the_text_alone() -> None:
    made = invite()
    assert made.secret.reveal().hex() not in repr(made)
    assert repr(made.secret.reveal()) not in repr(made)
    assert made.secret.reveal().hex() not in made.mailbox.hex()


def test_two_invites_have_two_mailboxes() -> None:
    assert invite().mailbox != invite().mailbox


def test_a_request_tells_who_asks() -> None:
    made = invite()
    sealed = seal_request(made, JOINER, "Gerät")
    assert open_request(made, sealed) == Request(JOINER.device_key, JOINER.box_key, "Gerät")
    assert JOINER.device_key.hex() not in sealed.hex()


@pytest.mark.parametrize("answer", [APPROVED, Refused("it is not you"), Refused("")])
def test_an_answer_reaches_the_joiner(answer: Approved | Refused) -> None:
    made = invite()
    sealed = seal_answer(made, INVITER, JOINER.device_key, answer)
    assert open_answer(made, JOINER.device_key, sealed) == answer


def test_an_invite_into_all_vaults_says_so_in_its_text() -> None:
    for commitment in (b"", invites.committed(b"n" * 32)):
        made = replace(invite(), for_all=True, commitment=commitment)
        found = parse(made.encode())
        assert found == made and found.for_all and found.commitment == commitment
        assert found.encode()[:12] != replace(made, for_all=False).encode()[:12]


def test_an_answer_names_further_vaults_where_the_invite_says_so() -> None:
    made, plain = replace(invite(), for_all=True), invite()
    origins = ["wss://relay.example.org", "ws://127.0.0.1:7800", "wss://" + "a" * 249]
    others = tuple(Promise(VaultId(bytes([n]) * 16), origin, n, bytes([n]) * 32) for n, origin in enumerate(origins))
    for answer in (Approved(7, b"h" * 32, others), APPROVED):
        assert open_answer(made, JOINER.device_key, seal_answer(made, INVITER, JOINER.device_key, answer)) == answer
    with pytest.raises(InviteError, match="cannot name 3 further vaults"):
        seal_answer(plain, INVITER, JOINER.device_key, Approved(7, b"h" * 32, others))
    for one, other in ((made, plain), (plain, made)):
        other = replace(other, secret=one.secret)
        with pytest.raises(InviteError, match="does not belong to this invite"):
            open_answer(other, JOINER.device_key, seal_answer(one, INVITER, JOINER.device_key, APPROVED))


def test_the_longest_list_of_vaults_fits_into_an_answer() -> None:
    made, origin = replace(invite(), for_all=True), "wss://relay.example.org"
    most = OTHERS_BYTES_MAX // promise_bytes(origin)
    assert most > 190
    others = tuple(Promise(VaultId(n.to_bytes(16, "big")), origin, n, bytes(32)) for n in range(most + 1))
    sealed = seal_answer(made, INVITER, JOINER.device_key, Approved(7, b"h" * 32, others[:-1]))
    assert len(sealed) <= ANSWER_BYTES_MAX
    with pytest.raises(InviteError, match="cannot name"):
        seal_answer(made, INVITER, JOINER.device_key, Approved(7, b"h" * 32, others))


@pytest.mark.parametrize(
    "spoil", [lambda raw: raw[:-1], lambda raw: raw + b"x", lambda raw: raw[:53] + b"https://" + raw[61:]]
)
def test_a_list_of_vaults_that_is_spoilt_is_an_invite_error(
    spoil: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = replace(invite(), for_all=True)
    raw = spoil(invites._packed(Promise(VAULT, "wss://r.example", 1, bytes(32))))
    monkeypatch.setattr(invites, "_packed", lambda promise: raw)
    approved = Approved(7, b"h" * 32, (Promise(VAULT, "", 1, b""),))
    with pytest.raises(InviteError, match="list of vaults"):
        open_answer(made, JOINER.device_key, seal_answer(made, INVITER, JOINER.device_key, approved))


def test_the_longest_letters_fit_into_a_mailbox() -> None:
    made = invite()
    assert len(seal_request(made, JOINER, "x" * invites.NAME_BYTES_MAX)) <= MAILBOX_BYTES_MAX
    reason = Refused("x" * invites.REASON_BYTES_MAX)
    assert len(seal_answer(made, INVITER, JOINER.device_key, reason)) <= MAILBOX_BYTES_MAX
    with pytest.raises(InviteError, match="too long"):
        seal_request(made, JOINER, "x" * (invites.NAME_BYTES_MAX + 1))
    with pytest.raises(InviteError, match="too long"):
        seal_answer(made, INVITER, JOINER.device_key, Refused("x" * (invites.REASON_BYTES_MAX + 1)))


def test_letters_are_bound_to_invite_and_vault() -> None:
    made = invite()
    moved = Invite(made.origin, VaultId(b"w" * 16), made.head_seq, made.head_hash, made.inviter, made.secret)
    request = seal_request(made, JOINER, "phone")
    answer = seal_answer(made, INVITER, JOINER.device_key, APPROVED)
    for elsewhere in (moved, invite()):
        with pytest.raises(InviteError):
            open_request(elsewhere, request)
        with pytest.raises(InviteError):
            open_answer(elsewhere, JOINER.device_key, answer)
    with pytest.raises(InviteError):
        open_answer(made, OTHER.device_key, answer)
    with pytest.raises(InviteError):
        open_request(made, answer)
    with pytest.raises(InviteError):
        open_answer(made, JOINER.device_key, request)


def test_whoever_saw_the_invite_cannot_answer_in_the_inviters_place() -> None:
    made = invite()
    with pytest.raises(InviteError):
        seal_answer(made, OTHER, JOINER.device_key, APPROVED)
    claimed = Invite(made.origin, made.vault, made.head_seq, made.head_hash, OTHER.device_key, made.secret)
    forged = seal_answer(claimed, OTHER, JOINER.device_key, APPROVED)
    with pytest.raises(InviteError, match="not signed"):
        open_answer(made, JOINER.device_key, forged)


def test_nobody_asks_in_the_name_of_another_device() -> None:
    made = invite()
    bound = invites._bound(invites._REQUEST_CONTEXT, made)
    signature = OTHER.sign(bound + JOINER.device_key + OTHER.box_key)
    plain = invites._REQUEST.pack(1, JOINER.device_key, OTHER.box_key, signature)
    key = cipher.derive(made.secret, cipher.Purpose.MAILBOX_REQUEST)
    with pytest.raises(InviteError, match="not signed"):
        open_request(made, cipher.private_seal(key, plain, bound, bytes(32)))


@given(st.binary(max_size=1024))
def test_rubbish_in_the_mailbox_is_an_invite_error(sealed: bytes) -> None:
    made = invite()
    with pytest.raises(InviteError):
        open_request(made, sealed)
    with pytest.raises(InviteError):
        open_answer(made, JOINER.device_key, sealed)


@given(st.binary(max_size=300))
def test_rubbish_from_someone_who_has_the_secret_is_an_invite_error(plain: bytes) -> None:
    made = invite()
    for purpose, bound, open_ in (
        (cipher.Purpose.MAILBOX_REQUEST, invites._bound(invites._REQUEST_CONTEXT, made), open_request),
        (
            cipher.Purpose.MAILBOX_ANSWER,
            invites._bound(invites._ANSWER_CONTEXT, made) + JOINER.device_key,
            lambda i, s: open_answer(i, JOINER.device_key, s),
        ),
    ):
        sealed = cipher.private_seal(cipher.derive(made.secret, purpose), plain, bound, bytes(32))
        with pytest.raises(InviteError):
            open_(made, sealed)
