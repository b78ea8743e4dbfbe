import hashlib
import json
from typing import Any

import pytest
from nacl.bindings import crypto_aead_chacha20poly1305_ietf_decrypt, crypto_sign_open

from sealwire_client import cipher, statements
from sealwire_client.cipher import Secret
from sealwire_client.identity import DeviceIdentity
from sealwire_client.keyring import keys_from_log
from sealwire_client.sealing import Opener, Stream, StreamKeys
from sealwire_client.signing import Judge
from sealwire_protocol.ids import Author, DeviceKey, KeyId, StreamId, VaultId
from sealwire_protocol.links import Role
from sealwire_protocol.membership import Member, Membership, membership_of
from sealwire_protocol.segment import SIGNED, TOMBSTONE, read_record
from tests.protocol import make_vectors

RECORDS: dict[str, Any] = json.loads((make_vectors.FOLDER / "records.json").read_text("utf-8"))
LINKS: dict[str, Any] = json.loads((make_vectors.FOLDER / "links.json").read_text("utf-8"))
STATEMENTS: dict[str, Any] = json.loads((make_vectors.FOLDER / "statements.json").read_text("utf-8"))


def test_records_are_made_as_ever() -> None:
    assert make_vectors.records() == RECORDS


def test_links_are_made_as_ever() -> None:
    assert make_vectors.links() == LINKS


def test_statements_are_made_as_ever() -> None:
    assert make_vectors.states() == STATEMENTS


def test_the_files_are_as_the_generator_writes_them() -> None:
    assert make_vectors.as_text(STATEMENTS) == (make_vectors.FOLDER / "statements.json").read_text("utf-8")
    assert make_vectors.as_text(RECORDS) == (make_vectors.FOLDER / "records.json").read_text("utf-8")
    assert make_vectors.as_text(LINKS) == (make_vectors.FOLDER / "links.json").read_text("utf-8")


@pytest.mark.parametrize("vector", RECORDS["records"], ids=[v["name"] for v in RECORDS["records"]])
def test_a_record_follows_from_the_specification_alone(vector: dict[str, Any]) -> None:
    """With the standard library and one cipher, as another language would do it."""
    given = {name: bytes.fromhex(v) for name, v in vector.items() if isinstance(v, str) and name not in ("name", "key")}
    vault, stream = bytes.fromhex(RECORDS["vault"]), bytes.fromhex(RECORDS["stream"])
    epoch_key, hedge = bytes.fromhex(RECORDS["epoch_key"]), bytes.fromhex(RECORDS["hedge_key"])

    def blake(key: bytes, person: bytes, data: bytes, size: int) -> bytes:
        return hashlib.blake2b(data, key=key, person=person, digest_size=size).digest()

    key, value = vector["key"].encode(), given["value"]
    tag = blake(bytes.fromhex(RECORDS["tag_key"]), b"sw tag 1", stream + key, 16)
    record_key = blake(epoch_key, b"sw record key 1", vault + stream, 32)
    nonce_key = blake(epoch_key, b"sw nonce key 1", vault + stream, 32)
    context = b"\1" + vault + stream + vector["epoch"].to_bytes(2, "big") + given["key_id"]
    context += (
        bytes([vector["flags"]]) + vector["author"].to_bytes(4, "big") + vector["version"].to_bytes(8, "big") + tag
    )
    salt = blake(hedge, b"sw salt 1", given["random"] + context + given["padded"], 8)
    nonce = blake(nonce_key, b"sw nonce 1", context + salt, 12)
    body = read_record(given["encoded"], 0)[1].body
    padded = crypto_aead_chacha20poly1305_ietf_decrypt(body, context, nonce, record_key)

    size = bytes([len(key)]) if len(key) < 128 else bytes([len(key) & 127 | 128, len(key) >> 7])
    assert padded.rstrip(b"\0") == size + key + value + b"\x80"
    assert (given["tag"], given["context"], given["salt"], given["nonce"]) == (tag, context, salt, nonce)
    assert (given["padded"], given["record_key"], given["nonce_key"]) == (padded, record_key, nonce_key)


@pytest.mark.parametrize("vector", RECORDS["records"], ids=[v["name"] for v in RECORDS["records"]])
def test_a_record_opens(vector: dict[str, Any]) -> None:
    stream = Stream(
        VaultId(bytes.fromhex(RECORDS["vault"])),
        StreamId(bytes.fromhex(RECORDS["stream"])),
        Secret(bytes.fromhex(RECORDS["tag_key"])),
    )
    keys = StreamKeys(
        vector["epoch"],
        KeyId(bytes.fromhex(vector["key_id"])),
        Secret(bytes.fromhex(vector["record_key"])),
        Secret(bytes.fromhex(vector["nonce_key"])),
    )
    opened, unopened = Opener(stream, [keys]).open_segment(bytes.fromhex(vector["encoded"]), 41)
    assert not unopened
    (one,) = opened
    assert (one.seq, one.key, one.value.hex(), one.flags) == (42, vector["key"], vector["value"], vector["flags"])
    assert (one.tag.hex(), one.rank.hex()) == (vector["tag"], vector["rank"])


@pytest.mark.parametrize("vector", RECORDS["signed"], ids=[v["name"] for v in RECORDS["signed"]])
def test_a_signature_follows_from_the_specification_alone(vector: dict[str, Any]) -> None:
    stream, tag, key = bytes.fromhex(RECORDS["stream"]), bytes.fromhex(vector["tag"]), vector["key"].encode()
    subject = bytes.fromhex(RECORDS["vault"]) + stream + tag + vector["version"].to_bytes(8, "big")
    subject += vector["author"].to_bytes(4, "big")
    proof, value = bytes.fromhex(vector["proof"]), bytes.fromhex(vector["value"])
    assert vector["flags"] == (SIGNED if value else SIGNED | TOMBSTONE)
    signed = b"sealwire signed record v1\0" + subject + bytes((vector["flags"], len(key))) + key + value
    assert signed.hex() == vector["signed"]
    crypto_sign_open(proof[1:65] + signed, bytes.fromhex(vector["author_key"]))
    if vector["voucher"] is None:
        assert proof[0] == 1 and len(proof) == 65
    else:
        vouched = b"sealwire vouched record v1\0" + subject + vector["epoch"].to_bytes(2, "big") + proof[1:65]
        assert vouched.hex() == vector["vouched"]
        assert proof[0] == 2 and proof[65:69] == vector["voucher"].to_bytes(4, "big") and len(proof) == 133
        crypto_sign_open(proof[69:] + vouched, bytes.fromhex(vector["voucher_key"]))
    padded = bytes.fromhex(vector["padded"]).rstrip(b"\0")
    assert padded == bytes((len(key),)) + key + proof + value + b"\x80"


@pytest.mark.parametrize("vector", RECORDS["signed"], ids=[v["name"] for v in RECORDS["signed"]])
def test_a_signed_record_opens(vector: dict[str, Any]) -> None:
    keys = {name: bytes.fromhex(vector[name]) for name in ("key_id", "record_key", "nonce_key", "author_key")}
    vault, name, tag_key = (bytes.fromhex(RECORDS[name]) for name in ("vault", "stream", "tag_key"))
    stream = Stream(VaultId(vault), StreamId(name), Secret(tag_key))
    membership, author = Membership(), Author(vector["author"])
    removed = vector["voucher"] is not None
    membership.members[author] = member(author, keys["author_key"], removed)
    if removed:
        membership.members[Author(vector["voucher"])] = member(vector["voucher"], bytes.fromhex(vector["voucher_key"]))
    of_epoch = StreamKeys(vector["epoch"], KeyId(keys["key_id"]), Secret(keys["record_key"]), Secret(keys["nonce_key"]))
    opener = Opener(stream, [of_epoch], Judge(stream, lambda: membership))
    ((one,), unopened) = opener.open_segment(bytes.fromhex(vector["encoded"]), 41)
    assert not unopened
    assert (one.key, one.value.hex()) == (vector["key"], vector["proof"] + vector["value"])


def member(author: Author, key: bytes, removed: bool = False) -> Member:
    """A writer."""
    return Member(author, DeviceKey(key), bytes(32), Role.WRITER, Role.WRITER, author, b"", b"", removed)


def test_the_log_gives_every_member_the_same_keys() -> None:
    membership = membership_of(map(bytes.fromhex, LINKS["links"]), cipher.verify)
    assert membership.vault == bytes.fromhex(LINKS["vault"])
    assert membership.last_hash.hex() == LINKS["last_hash"]
    for device in LINKS["devices"]:
        identity = DeviceIdentity(Secret(bytes.fromhex(device["seed"])))
        assert (identity.device_key.hex(), identity.box_key.hex()) == (device["device_key"], device["box_key"])
        keys = keys_from_log(identity, membership)
        assert keys.current.secret.reveal().hex() == LINKS["epoch_key"]
        assert {name: keys.stream_id(name).hex() for name in LINKS["streams"]} == LINKS["streams"]
        signed = LINKS["signed_streams"]
        assert {name: keys.stream_id(name, signed=True).hex() for name in signed} == signed
        told = [make_vectors._member(m, keys) for m in membership.members.values()]
        assert told == LINKS["members"]


def test_members_leave_and_a_vault_is_deleted_as_ever() -> None:
    parting = LINKS["parting"]
    membership = membership_of(map(bytes.fromhex, (*LINKS["links"], *LINKS["epochs"]["links"])), cipher.verify)
    told = [(membership.owes_epoch, membership.ended)]
    for raw in parting["links"]:
        membership.apply(bytes.fromhex(raw), cipher.verify)
        told.append((membership.owes_epoch, membership.ended))
    assert told == [(False, False), (True, False), (False, True)]
    assert membership.last_hash.hex() == parting["last_hash"]
    assert [member.author for member in membership.members.values() if member.removed] == parting["removed"]
    assert parting["removed"] == [2, 3, 4, 5], "the writer's first keys too"


def test_epochs_are_begun_and_read_as_ever() -> None:
    membership, epochs = Membership(), LINKS["epochs"]
    for raw in (*LINKS["links"], *epochs["links"]):
        membership.apply(bytes.fromhex(raw), cipher.verify)
    assert membership.last_hash.hex() == epochs["last_hash"]
    assert [member.author for member in membership.members.values() if member.removed] == epochs["removed"] == [3]
    assert membership.relay == epochs["relay"] == "wss://relay.example.org:8443"
    devices = [DeviceIdentity(Secret(bytes.fromhex(device["seed"]))) for device in LINKS["devices"]]
    for device in devices:
        member = membership.by_device(device.device_key)
        assert member is not None
        if not member.is_present:
            continue  # the writer's first key, which two others have taken the place of
        keys = keys_from_log(device, membership)
        found, others = keys.epochs.values(), keys.others.values()
        assert {str(epoch.number): epoch.secret.reveal().hex() for epoch in found} == epochs["epoch_keys"]
        assert {str(epoch.number): epoch.key_id.hex() for epoch in found} == epochs["key_ids"]
        assert [[key.number, key.key_id.hex(), key.secret.reveal().hex()] for key in others] == epochs["other_keys"]
        assert len(others) == 1


@pytest.mark.parametrize("vector", STATEMENTS["statements"], ids=[v["name"] for v in STATEMENTS["statements"]])
def test_a_statement_follows_from_the_specification_alone(vector: dict[str, Any]) -> None:
    """With the standard library and the verification of one signature, as another language would do it."""
    stream, key = bytes.fromhex(STATEMENTS["stream"]), bytes.fromhex(STATEMENTS["tag_key"])
    total = 0
    for entry in STATEMENTS["entries"]:
        data = stream + bytes.fromhex(entry["rank"]) + entry["key"].encode()
        part = hashlib.blake2b(data, key=key, person=b"sw sum 1", digest_size=32).digest()
        assert part.hex() == entry["part"]
        total = (total + int.from_bytes(part, "big")) % 2**256
    assert int(vector["sum"], 16) in (total, 0)
    number, name = vector["term"]
    raw = b"\1" + bytes.fromhex(STATEMENTS["vault"]) + stream + vector["author"].to_bytes(4, "big")
    raw += number.to_bytes(8, "big") + bytes.fromhex(name) + vector["seq"].to_bytes(8, "big")
    raw += bytes.fromhex(vector["sum"])
    signed, device = bytes.fromhex(vector["signed"]), bytes.fromhex(STATEMENTS["device_key"])
    assert (signed[:-64], vector["entry"]) == (raw, f"{vector['author']}.{stream.hex()}")
    context = b"sealwire statement v1\0"
    assert crypto_sign_open(signed[-64:] + context + raw, device) == context + raw
    read = statements.read(signed)
    assert read is not None and (read.at.seq, read.sum.hex()) == (vector["seq"], vector["sum"])
    assert statements.is_signed_by(signed, DeviceKey(device))
    assert statements.read(b"\2" + signed[1:]) is None and statements.read(signed + b"\0") is None
