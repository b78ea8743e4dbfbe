import pickle
import traceback

import pytest

from sealwire_client import cipher
from sealwire_client.cipher import CipherError, Secret
from sealwire_client.identity import DeviceIdentity

SEED = Secret(b"canary seed canary seed canary!!")


def test_a_seed_is_a_device() -> None:
    one, same, other = DeviceIdentity(SEED), DeviceIdentity(SEED), DeviceIdentity(Secret(bytes(32)))
    assert (one.device_key, one.box_key, one.hedge_key) == (same.device_key, same.box_key, same.hedge_key)
    assert one.device_key != other.device_key
    assert one.box_key != other.box_key
    assert one.hedge_key != other.hedge_key


def test_a_new_device_draws_its_seed() -> None:
    assert DeviceIdentity.generate(lambda size: bytes(size)).device_key == DeviceIdentity(Secret(bytes(32))).device_key
    assert DeviceIdentity.generate().device_key != DeviceIdentity.generate().device_key


def test_it_signs_and_opens_what_was_sealed_to_it() -> None:
    device = DeviceIdentity(SEED)
    assert cipher.verify(device.device_key, b"message", device.sign(b"message"))
    assert device.open_sealed(cipher.box_seal(b"keys", device.box_key, bytes(32))) == b"keys"
    with pytest.raises(CipherError):
        DeviceIdentity(Secret(bytes(32))).open_sealed(cipher.box_seal(b"keys", device.box_key, bytes(32)))


def test_a_seed_of_another_size_is_refused() -> None:
    with pytest.raises(CipherError, match="32 bytes"):
        DeviceIdentity(Secret(b"short"))


def test_s22_nothing_of_a_device_shows_in_a_traceback_with_its_locals() -> None:
    device = DeviceIdentity(SEED)
    with pytest.raises(CipherError) as caught:
        device.open_sealed(bytes(100))
    told = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    text = "".join(told.format()) + repr(device)
    assert "canary" not in text
    assert device.seed.reveal().hex() not in text
    with pytest.raises(TypeError):
        pickle.dumps(device)
