"""By whom an entry of a signed collection is: its author's signature, and who vouches for it once the author is gone.

    sealed value = proof, value                             in the place of the value, within the seal
    proof        = kind u8, signature 64                    kind 1: by the author alone
                 | kind u8, signature 64, voucher u32, countersignature 64                      kind 2: vouched for
    signed       = "sealwire signed record v1\\0", vault 16, stream 8, tag 16, version u64, author u32, flags u8,
                   plaintext without the proof
    vouched      = "sealwire vouched record v1\\0", vault 16, stream 8, tag 16, version u64, author u32, epoch u16,
                   signature 64

The seal says that a member made a record, this says which one. Neither epoch nor salt is signed, so that anybody can
seal the record again in a later epoch. Whoever does that after its author was removed vouches for it: that this member
held it before. Without that, those who see it first would not know whether it was made before the removal or after it,
by someone who still has the old key and a relay that takes what it should refuse.
"""

from collections.abc import Callable, Iterable
from struct import Struct
from typing import Final, NamedTuple

from sealwire_client import cipher
from sealwire_client.sealing import Draft, Reason, Stream, tag_of
from sealwire_protocol.ids import SIGNATURE_BYTES, Author, StreamId, Tag, VaultId
from sealwire_protocol.links import Role
from sealwire_protocol.membership import Membership
from sealwire_protocol.segment import PROOF_BYTES, PROOF_BYTES_MAX, SIGNED, TOMBSTONE, Record, encode_varint

CONTEXT: Final = b"sealwire signed record v1\0"
VOUCHED_CONTEXT: Final = b"sealwire vouched record v1\0"

_SUBJECT: Final = Struct(">16s8s16sQI")
_ALONE: Final = Struct(f">B{SIGNATURE_BYTES}s")
_VOUCHED: Final = Struct(f">B{SIGNATURE_BYTES}sI{SIGNATURE_BYTES}s")
_EPOCH: Final = Struct(">H")
_KIND_ALONE: Final = 1
_KIND_VOUCHED: Final = 2
_SIZES: Final = {_KIND_ALONE: PROOF_BYTES, _KIND_VOUCHED: PROOF_BYTES_MAX}

Sign = Callable[[bytes], bytes]
"""The Ed25519 signature of a message by this device."""


class Subject(NamedTuple):
    """Which record a signature is of, epoch and salt apart."""

    vault: VaultId
    stream: StreamId
    tag: Tag
    version: int
    author: Author


class Proof(NamedTuple):
    """Who stands for a record. `voucher` None: its author alone."""

    signature: bytes
    voucher: Author | None = None
    countersignature: bytes = b""


def signed_part(subject: Subject, flags: int, key: bytes, value: bytes) -> bytes:
    """What an author signs."""
    return CONTEXT + _SUBJECT.pack(*subject) + bytes((flags,)) + encode_varint(len(key)) + key + value


def vouched_part(subject: Subject, epoch: int, signature: bytes) -> bytes:
    """What a member signs that has sealed another's record again, in this epoch."""
    return VOUCHED_CONTEXT + _SUBJECT.pack(*subject) + _EPOCH.pack(epoch) + signature


def sign(by: Sign, subject: Subject, flags: int, key: bytes, value: bytes) -> bytes:
    """The proof of a record that its author makes."""
    return encode_proof(Proof(by(signed_part(subject, flags, key, value))))


def countersign(by: Sign, voucher: Author, subject: Subject, epoch: int, proof: bytes) -> bytes:
    """The proof of a record that `voucher` has held, found right, and seals again in this epoch."""
    signature = read_proof(proof).signature
    return encode_proof(Proof(signature, voucher, by(vouched_part(subject, epoch, signature))))


def encode_proof(proof: Proof) -> bytes:
    """As it stands before the value."""
    if proof.voucher is None:
        return _ALONE.pack(_KIND_ALONE, proof.signature)
    return _VOUCHED.pack(_KIND_VOUCHED, proof.signature, proof.voucher, proof.countersignature)


def read_proof(proof: bytes) -> Proof:
    """The inverse of `encode_proof`."""
    if proof[0] == _KIND_ALONE:
        return Proof(_ALONE.unpack(proof)[1])
    _, signature, voucher, countersignature = _VOUCHED.unpack(proof)
    return Proof(signature, Author(voucher), countersignature)


def parted(sealed: bytes) -> tuple[bytes, bytes]:
    """(proof, value) of what was sealed in a signed record, which must have been judged."""
    size = _SIZES[sealed[0]]
    return sealed[:size], sealed[size:]


def stands(proof: bytes, author: Author, members: Membership) -> bool:
    """True if a record with this proof, which was found right, is taken by who sees it first now: its author is a
    member still, or its voucher is."""
    present = {who for who, member in members.members.items() if not member.removed}
    return author in present or read_proof(proof).voucher in present


class Signer(NamedTuple):
    """Signs the entries of one collection, in the name of one member."""

    stream: Stream
    author: Author
    by: Sign

    def signed(self, drafts: Iterable[Draft]) -> list[Draft]:
        """Drafts with the proof before their values, ready to be sealed: 30 µs each, nearly all for the signature."""
        return [self._signed(draft) for draft in drafts]

    def _signed(self, draft: Draft) -> Draft:
        flags = draft.flags | SIGNED
        subject = Subject(self.stream.vault, self.stream.id, tag_of(self.stream, draft.key), draft.version, self.author)
        proof = sign(self.by, subject, flags, draft.key.encode(), draft.value)
        return Draft(draft.key, proof + draft.value, draft.version, flags)


class Judge:
    """Says whether records of one signed collection are by whom they say, and whether that member may write, by the
    membership log as this device has it at the moment."""

    def __init__(self, stream: Stream, members: Callable[[], Membership]) -> None:
        self._stream, self._members = stream, members

    def __call__(self, record: Record, key: bytes, sealed: bytes) -> Reason | None:
        """Why a record is not taken in that has this inside its seal; None: it is. It was found at the tag of its key.

        AUTHOR_REMOVED does not count for what this device has held before.
        """
        size = _SIZES.get(sealed[0]) if sealed else None
        if size is None:
            return Reason.UNKNOWN_KIND
        if len(sealed) < size or (record.flags & TOMBSTONE and len(sealed) > size):
            return Reason.MALFORMED
        proof = read_proof(sealed[:size])
        members = self._members().members
        author = members.get(record.author)
        if author is None:
            return Reason.UNKNOWN_AUTHOR
        if author.given < Role.WRITER:
            return Reason.NOT_A_WRITER
        subject = Subject(self._stream.vault, self._stream.id, record.tag, record.version, record.author)
        if not cipher.verify(author.device, signed_part(subject, record.flags, key, sealed[size:]), proof.signature):
            return Reason.BAD_SIGNATURE
        if not author.removed:
            return None
        if proof.voucher is None:
            return Reason.AUTHOR_REMOVED
        voucher = members.get(proof.voucher)
        if voucher is None:
            return Reason.UNKNOWN_AUTHOR
        vouched = vouched_part(subject, record.epoch, proof.signature)
        stands = voucher.given >= Role.WRITER and not voucher.removed
        if stands and cipher.verify(voucher.device, vouched, proof.countersignature):
            return None
        return Reason.AUTHOR_REMOVED
