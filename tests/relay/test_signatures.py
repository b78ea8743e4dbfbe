from nacl.signing import SigningKey

from sealwire_relay.signatures import verify

SIGNER = SigningKey(bytes(range(32)))
KEY = bytes(SIGNER.verify_key)
MESSAGE = b"message"
SIGNATURE = SIGNER.sign(MESSAGE).signature

ORDER = 2**252 + 27742317777372353535851937790883648493
"""Of the group: a signature whose number is beyond it is another one that says the same."""


def test_a_signature_counts_for_its_key_and_message_only() -> None:
    assert verify(KEY, MESSAGE, SIGNATURE)
    assert verify(KEY, b"", SIGNER.sign(b"").signature)
    assert not verify(KEY, b"other", SIGNATURE)
    assert not verify(bytes(SigningKey(bytes(32)).verify_key), MESSAGE, SIGNATURE)


def test_every_changed_byte_makes_it_void() -> None:
    for place in range(64):
        changed = bytearray(SIGNATURE)
        changed[place] ^= 1
        assert not verify(KEY, MESSAGE, bytes(changed))


def test_other_lengths_are_void() -> None:
    for key, signature in ((b"", SIGNATURE), (KEY[:31], SIGNATURE), (KEY + b"x", SIGNATURE), (KEY, b"")):
        assert not verify(key, MESSAGE, signature)
    # A byte moved from the message to the signature must not be put together again.
    assert not verify(KEY, MESSAGE[1:], SIGNATURE + MESSAGE[:1])


def test_malleable_signatures_and_low_order_keys_are_void() -> None:
    number = int.from_bytes(SIGNATURE[32:], "little") + ORDER
    assert not verify(KEY, MESSAGE, SIGNATURE[:32] + number.to_bytes(32, "little"))
    identity = b"\1" + bytes(31)
    assert not verify(identity, MESSAGE, identity + bytes(32))
