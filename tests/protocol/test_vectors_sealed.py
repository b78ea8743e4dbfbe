import hashlib
import json
from typing import Any

import pytest
from nacl.bindings import crypto_aead_chacha20poly1305_ietf_decrypt

from sealwire_client import cipher
from sealwire_client.cipher import Secret
from sealwire_client.identity import DeviceIdentity
from sealwire_client.keyring import keys_from_log
from sealwire_client.sealing import Opener, Stream, StreamKeys
from sealwire_protocol.ids import KeyId, StreamId, VaultId
from sealwire_protocol.membership import Membership
from sealwire_protocol.segment import read_record
from tests.protocol import make_vectors

RECORDS: dict[str, Any] = json.loads((make_vectors.FOLDER / "records.json").read_text("utf-8"))
LINKS: dict[str, Any] = json.loads((make_vectors.FOLDER / "links.json").read_text("utf-8"))


def test_records_are_made_as_ever() -> None:
    assert make_vectors.records() == RECORDS


def test_links_are_made_as_ever() -> None:
    assert make_vectors.links() == LINKS


def test_the_files_are_as_the_generator_writes_them() -> None:
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


def test_the_log_gives_every_member_the_same_keys() -> None:
    membership = Membership()
    for raw in LINKS["links"]:
        membership.apply(bytes.fromhex(raw), cipher.verify)
    assert membership.vault == bytes.fromhex(LINKS["vault"])
    assert membership.last_hash.hex() == LINKS["last_hash"]
    for device in LINKS["devices"]:
        identity = DeviceIdentity(Secret(bytes.fromhex(device["seed"])))
        assert (identity.device_key.hex(), identity.box_key.hex()) == (device["device_key"], device["box_key"])
        keys = keys_from_log(identity, membership)
        assert keys.current.secret.reveal().hex() == LINKS["epoch_key"]
        assert {name: keys.stream_id(name).hex() for name in LINKS["streams"]} == LINKS["streams"]
        told = [make_vectors._member(m, keys) for m in membership.members.values()]
        assert told == LINKS["members"]
