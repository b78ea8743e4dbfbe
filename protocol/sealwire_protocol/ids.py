"""Names of things: identifiers, terms and positions. Every one is opaque to the relay save where said."""

from typing import Final, NamedTuple, NewType

VaultId = NewType("VaultId", bytes)
"""16 bytes: BLAKE2b-128 of the vault's genesis link, so a vault id certifies its own first link."""

StreamId = NewType("StreamId", bytes)
"""8 bytes: keyed hash of a collection's name. Eight zero bytes name stream 0, the membership log."""

Tag = NewType("Tag", bytes)
"""16 bytes: keyed hash of an entry's key within its stream."""

DeviceKey = NewType("DeviceKey", bytes)
"""32 bytes: a device's Ed25519 public key, the name under which it logs in."""

Author = NewType("Author", int)
"""Index (u32) into the membership log: the seq in stream 0 of the link that added the device."""

KeyId = NewType("KeyId", bytes)
"""4 bytes: the first bytes of the commitment to an epoch's key."""

MailboxId = NewType("MailboxId", bytes)
"""16 bytes: hash of an invite's one-time secret."""

VAULT_ID_BYTES: Final = 16
STREAM_ID_BYTES: Final = 8
TAG_BYTES: Final = 16
DEVICE_KEY_BYTES: Final = 32
KEY_ID_BYTES: Final = 4
MAILBOX_ID_BYTES: Final = 16
TERM_ID_BYTES: Final = 8
NONCE_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
SUM_BYTES: Final = 32

MEMBERSHIP: Final = StreamId(bytes(STREAM_ID_BYTES))
"""Stream 0: the membership log of a vault."""


class Term(NamedTuple):
    """One uninterrupted history of a relay's database: a counter and a random id (RULES: R7)."""

    number: int
    id: bytes


NO_TERM: Final = Term(0, bytes(TERM_ID_BYTES))
"""The term of an empty replica and of a stream in which nothing was ever written."""


class Position(NamedTuple):
    """Where a replica stands in a stream: all records up to `seq` of that term's history are applied."""

    term: Term
    seq: int


START: Final = Position(NO_TERM, 0)
"""The position of an empty replica; it is known in every term."""


class TermStart(NamedTuple):
    """`start` is the stream's head when its first record under `term` was appended."""

    term: Term
    start: int
