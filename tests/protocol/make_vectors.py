"""Golden vectors of records, membership links and statements, with their keys and plaintexts: JSON, bytes in hex.

`python -m tests.protocol.make_vectors` writes them anew. They change only when the format does; the tests
compare them with what the code makes today.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from sealwire_client import cipher, signing, statements
from sealwire_client.cipher import KEY_BYTES, Random, Secret
from sealwire_client.identity import DeviceIdentity
from sealwire_client.keyring import EpochKey, Names, VaultKeys, epoch_commitment, keys_from_log
from sealwire_client.linkmaking import (
    add_device_link,
    end_link,
    leave_link,
    move_link,
    new_epoch_link,
    new_vault,
    replace_device_link,
)
from sealwire_client.sealing import CONTEXT_OWN, Draft, SealedRecord, Sealer, Stream, pad, stream_keys, summer, tag_of
from sealwire_protocol.ids import KEY_ID_BYTES, SUM_BYTES, Author, KeyId, Position, StreamId, Term, VaultId
from sealwire_protocol.links import Role
from sealwire_protocol.membership import Member, Membership
from sealwire_protocol.segment import TOMBSTONE, read_record

FOLDER = Path(__file__).resolve().parents[2] / "protocol" / "vectors"


def counted(label: str) -> Random:
    """Bytes that look random and are the same every time."""
    drawn = 0

    def random(size: int) -> bytes:
        nonlocal drawn
        drawn += 1
        return hashlib.shake_128(f"{label} {drawn}".encode()).digest(size)

    return random


VAULT = VaultId(bytes(range(16)))
STREAM = StreamId(bytes(range(16, 24)))
TAG_KEY = Secret(bytes(range(32, 64)))
EPOCH_KEY = Secret(bytes(range(64, 96)))
SEED = Secret(bytes(range(96, 128)))

RECORDS: list[tuple[str, int, int, Draft]] = [
    ("small", 1, 1, Draft("t1", b"buy milk", 1)),
    ("empty key and value", 1, 1, Draft("", b"", 2)),
    ("tombstone", 1, 3, Draft("t1", b"", 3, TOMBSTONE)),
    ("text beyond ASCII", 1, 1, Draft("ключ-鍵", "значение".encode(), 4)),
    ("a value that ends like padding", 1, 1, Draft("p", b"\x80\0\0", 5)),
    ("fifteen bytes, one unit", 1, 1, Draft("k" * 4, b"v" * 10, 6)),
    ("sixteen bytes, two units", 1, 1, Draft("k" * 4, b"v" * 11, 7)),
    ("key of 128 bytes", 1, 1, Draft("k" * 128, b"v", 8)),
    ("Padmé", 1, 1, Draft("large", b"x" * 700, 9)),
    ("wide by its version", 1, 1, Draft("w", b"v", 2**32)),
    ("wide by its author", 1, 256, Draft("w", b"v", 10)),
    ("wide by its epoch", 256, 1, Draft("w", b"v", 11)),
    ("wide by its size", 1, 1, Draft("w", b"y" * 4096, 12)),
]


def _record(name: str, epoch: int, author: int, draft: Draft) -> dict[str, Any]:
    identity, key_id = DeviceIdentity(SEED), KeyId(epoch.to_bytes(4, "big"))
    stream = Stream(VAULT, STREAM, TAG_KEY)
    keys = stream_keys(EPOCH_KEY, epoch, key_id, VAULT, STREAM)
    random = counted(name)(16)
    sealer = Sealer(stream, keys, Author(author), identity.hedge_key, lambda _: random)
    sealed: SealedRecord = sealer.seal_many([draft])[0]
    record = read_record(sealed.encoded, 0)[1]
    own = CONTEXT_OWN.pack(draft.flags, author, draft.version, sealed.tag)
    common = b"\1" + VAULT + STREAM + epoch.to_bytes(2, "big") + key_id
    nonce = cipher.keyed_hash(keys.nonce_key, cipher.Purpose.NONCE, common + own + record.salt, 12)
    return {
        "name": name,
        "key": draft.key,
        "value": draft.value.hex(),
        "version": draft.version,
        "flags": draft.flags,
        "author": author,
        "epoch": epoch,
        "key_id": key_id.hex(),
        "random": random.hex(),
        "record_key": keys.record_key.reveal().hex(),
        "nonce_key": keys.nonce_key.reveal().hex(),
        "tag": sealed.tag.hex(),
        "padded": pad(draft.key.encode(), draft.value).hex(),
        "context": (common + own).hex(),
        "salt": record.salt.hex(),
        "nonce": nonce.hex(),
        "rank": sealed.rank.hex(),
        "encoded": sealed.encoded.hex(),
    }


SIGNED_RECORDS: list[tuple[str, int, bool, Draft]] = [
    ("signed by its author", 1, False, Draft("t1", b"buy milk", 14)),
    ("signed tombstone", 1, False, Draft("t1", b"", 15, TOMBSTONE)),
    ("signed, of a removed author, vouched for", 2, True, Draft("t1", b"buy milk", 14)),
]
AUTHOR, VOUCHER = Author(3), Author(1)
VOUCHER_SEED = Secret(bytes(range(128, 160)))


def _signed_record(name: str, epoch: int, vouched: bool, draft: Draft) -> dict[str, Any]:
    """A record of a signed collection, with what was signed."""
    author, voucher = DeviceIdentity(SEED), DeviceIdentity(VOUCHER_SEED)
    stream = Stream(VAULT, STREAM, TAG_KEY)
    subject = signing.Subject(VAULT, STREAM, tag_of(stream, draft.key), draft.version, AUTHOR)
    (signed,) = signing.Signer(stream, AUTHOR, author.sign).signed([draft])
    proof, value = signing.parted(signed.value)
    signature = signing.read_proof(proof).signature
    if vouched:
        proof = signing.countersign(voucher.sign, VOUCHER, subject, epoch, proof)
    found = _record(name, epoch, AUTHOR, signed._replace(value=proof + value))
    return {
        **found,
        "value": draft.value.hex(),
        "author_key": author.device_key.hex(),
        "signed": signing.signed_part(subject, signed.flags, draft.key.encode(), draft.value).hex(),
        "voucher": VOUCHER if vouched else None,
        "voucher_key": voucher.device_key.hex() if vouched else None,
        "vouched": signing.vouched_part(subject, epoch, signature).hex() if vouched else None,
        "proof": proof.hex(),
    }


def records() -> dict[str, Any]:
    """Sealed records, with everything that leads to their bytes."""
    return {
        "vault": VAULT.hex(),
        "stream": STREAM.hex(),
        "tag_key": TAG_KEY.reveal().hex(),
        "epoch_key": EPOCH_KEY.reveal().hex(),
        "device_seed": SEED.reveal().hex(),
        "hedge_key": DeviceIdentity(SEED).hedge_key.reveal().hex(),
        "records": [_record(*given) for given in RECORDS],
        "signed": [_signed_record(*given) for given in SIGNED_RECORDS],
    }


def _device(seed: Secret) -> dict[str, str]:
    identity = DeviceIdentity(seed)
    return {
        "seed": seed.reveal().hex(),
        "device_key": identity.device_key.hex(),
        "box_key": identity.box_key.hex(),
        "hedge_key": identity.hedge_key.reveal().hex(),
    }


def links() -> dict[str, Any]:
    """A membership log of five links: a vault, a writer, a reader, and two new keys of the writer, whose folder was
    copied."""
    seeds = [Secret(bytes([n]) * 32) for n in (1, 2, 3, 4, 5)]
    admin, writer, reader, *new = map(DeviceIdentity, seeds)
    genesis, keys = new_vault(admin, Names("laptop", "home"), counted("genesis"))
    membership = Membership()
    log = [genesis]
    membership.apply(genesis, cipher.verify)
    for joiner, role, name in ((writer, Role.WRITER, "phone"), (reader, Role.READER, "Gerät")):
        random = counted(name)
        log.append(add_device_link(admin, membership, keys, joiner.device_key, joiner.box_key, role, name, random))
        membership.apply(log[-1], cipher.verify)
    for number, identity in enumerate(new):
        log.append(replace_device_link(writer, identity, membership, keys, counted(f"copy {number}")))
        membership.apply(log[-1], cipher.verify)
    five = {
        "devices": [_device(seed) for seed in seeds],
        "vault": keys.vault.hex(),
        "epoch": keys.current.number,
        "key_id": keys.current.key_id.hex(),
        "epoch_key": keys.current.secret.reveal().hex(),
        "streams": _streams(keys),
        "signed_streams": _signed_streams(keys),
        "links": [raw.hex() for raw in log],
        "last_hash": membership.last_hash.hex(),
        "members": [_member(m, keys) for m in membership.members.values()],
    }
    return {**five, "epochs": _epochs(admin, membership, keys), "parting": _parting(admin, new[1], membership)}


def _parting(admin: DeviceIdentity, writer: DeviceIdentity, membership: Membership) -> dict[str, Any]:
    """What follows after that: the writer leaves, and the vault is deleted."""
    log = [leave_link(writer, membership)]
    membership.apply(log[-1], cipher.verify)
    log.append(end_link(admin, membership))
    membership.apply(log[-1], cipher.verify)
    return {
        "links": [raw.hex() for raw in log],
        "last_hash": membership.last_hash.hex(),
        "removed": [member.author for member in membership.members.values() if member.removed],
    }


def _epochs(admin: DeviceIdentity, membership: Membership, keys: VaultKeys) -> dict[str, Any]:
    """What follows: the reader is removed, the key is changed once more and another end's handed on with it, the reader
    is added again, and the vault moves to another relay."""
    reader, log, other = membership.members[Author(3)], [], Secret(counted("other")(KEY_BYTES))
    beside = EpochKey(2, KeyId(epoch_commitment(other, 2)[:KEY_ID_BYTES]), other)
    for number, (removed, adopt) in enumerate((([reader.author], []), ([], [beside]))):
        log.append(new_epoch_link(admin, membership, keys, removed, counted(f"epoch {number}"), adopt))
        membership.apply(log[-1], cipher.verify)
        keys = keys_from_log(admin, membership)
    random = counted("again")
    log.append(add_device_link(admin, membership, keys, reader.device, reader.box_key, Role.READER, "again", random))
    membership.apply(log[-1], cipher.verify)
    log.append(move_link(admin, membership, keys, "wss://relay.example.org:8443"))
    membership.apply(log[-1], cipher.verify)
    return {
        "links": [raw.hex() for raw in log],
        "last_hash": membership.last_hash.hex(),
        "epoch_keys": {str(number): epoch.secret.reveal().hex() for number, epoch in keys.epochs.items()},
        "key_ids": {str(number): epoch.key_id.hex() for number, epoch in keys.epochs.items()},
        "other_keys": [[key.number, key.key_id.hex(), key.secret.reveal().hex()] for key in keys.others.values()],
        "relay": membership.relay,
        "removed": [member.author for member in membership.members.values() if member.removed],
    }


def _member(member: Member, keys: VaultKeys) -> dict[str, Any]:
    return {
        "author": member.author,
        "role": int(member.role),
        "given": int(member.given),
        "lineage": member.lineage,
        "device_key": member.device.hex(),
        "name": keys.names(member).device,
    }


def _streams(keys: VaultKeys) -> dict[str, str]:
    return {name: keys.stream_id(name).hex() for name in ("todos", "", "Größe")}


def _signed_streams(keys: VaultKeys) -> dict[str, str]:
    return {name: keys.stream_id(name, signed=True).hex() for name in ("todos", "", "Größe")}


SUMMED = ("empty key and value", "text beyond ASCII", "Padmé", "wide by its version")
STATED: list[tuple[str, int, Position, bool]] = [
    ("a stream with entries", 3, Position(Term(7, b"the term"), 42), True),
    ("a stream without any", 1, Position(Term(1, bytes(8)), 1), False),
    ("great numbers", 2**32 - 1, Position(Term(2**63 - 1, b"\xff" * 8), 2**63 - 1), True),
]


def states() -> dict[str, Any]:
    """Statements, with the sum that each states, and what leads to that."""
    identity, stream = DeviceIdentity(SEED), Stream(VAULT, STREAM, TAG_KEY)
    sum_of, found = summer(stream), [_record(*given) for given in RECORDS if given[0] in SUMMED]
    entries = [(record["key"], bytes.fromhex(record["rank"])) for record in found]
    parts = [sum_of([entry]) for entry in entries]
    total = sum_of(entries) % 2 ** (8 * SUM_BYTES)

    def made(name: str, author: int, at: Position, whole: bool) -> dict[str, Any]:
        held = (total if whole else 0).to_bytes(SUM_BYTES, "big")
        raw = statements.signed(identity, statements.Statement(VAULT, STREAM, Author(author), at, held))
        return {
            "name": name,
            "author": author,
            "term": [at.term.number, at.term.id.hex()],
            "seq": at.seq,
            "sum": held.hex(),
            "entry": statements.entry_of(Author(author), STREAM),
            "signed": raw.hex(),
        }

    return {
        "vault": VAULT.hex(),
        "stream": STREAM.hex(),
        "tag_key": TAG_KEY.reveal().hex(),
        "device_seed": SEED.reveal().hex(),
        "device_key": identity.device_key.hex(),
        "entries": [
            {"key": key, "rank": rank.hex(), "part": part.to_bytes(SUM_BYTES, "big").hex()}
            for (key, rank), part in zip(entries, parts, strict=True)
        ],
        "statements": [made(*given) for given in STATED],
    }


def as_text(vectors: dict[str, Any]) -> str:
    """How vectors stand in their file."""
    return json.dumps(vectors, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "records.json").write_text(as_text(records()), encoding="utf-8")
    (FOLDER / "links.json").write_text(as_text(links()), encoding="utf-8")
    (FOLDER / "statements.json").write_text(as_text(states()), encoding="utf-8")
