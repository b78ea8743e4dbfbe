"""How a relay is named, and what a login signs."""

import pytest

from sealwire_protocol.errors import LocalMisuse
from sealwire_protocol.ids import DeviceKey
from sealwire_protocol.login import LOGIN_CONTEXT, login_payload, normal_origin


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("wss://relay.example.org", "wss://relay.example.org"),
        (" WSS://Relay.Example.ORG/ \n", "wss://relay.example.org"),
        ("wss://relay.example.org:443", "wss://relay.example.org"),
        ("ws://localhost:80/", "ws://localhost"),
        ("ws://localhost:443", "ws://localhost:443"),
        ("wss://relay.example.org:7800/path/of/a/proxy", "wss://relay.example.org:7800"),
        ("ws://127.0.0.1:7800", "ws://127.0.0.1:7800"),
        ("ws://[::1]:7800", "ws://[::1]:7800"),
        ("wss://[2001:DB8::1]", "wss://[2001:db8::1]"),
        ("wss://relay.example.org:", "wss://relay.example.org"),
    ],
)
def test_an_address_has_one_normal_form(url: str, origin: str) -> None:
    assert normal_origin(url) == origin
    assert normal_origin(origin) == origin


@pytest.mark.parametrize(
    "url",
    [
        "",
        "relay.example.org",
        "relay.example.org:7800",
        "https://relay.example.org",
        "wss://",
        "wss://:7800",
        "wss://user@relay.example.org",
        "wss://:secret@relay.example.org",
        "wss://@relay.example.org",
        "wss://relay.example.org?x=1",
        "wss://relay.example.org#top",
        "wss://relay.example.org:99999",
        "wss://relay.example.org:port",
        "wss://[::1",
        "wss://relay example.org",
        "wss://relay\x00.example.org",
        "wss://" + "a" * 1_100,
    ],
)
def test_what_is_no_address_of_a_relay_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(LocalMisuse, match=r"looks like wss://relay\.example\.org"):
        normal_origin(url)


def test_a_login_signs_everything_that_was_agreed_on() -> None:
    device = DeviceKey(b"d" * 32)
    payload = login_payload((1, 2, 1), "ws://a", device, b"n" * 32, b"r" * 32)
    assert payload == (LOGIN_CONTEXT + b"\0\1\0\2\0\1" + b"\0\6ws://a" + b"d" * 32 + b"n" * 32 + b"r" * 32)
    others = {
        login_payload((1, 1, 1), "ws://a", device, b"n" * 32, b"r" * 32),
        login_payload((1, 2, 1), "ws://b", device, b"n" * 32, b"r" * 32),
        login_payload((1, 2, 1), "ws://a", DeviceKey(b"e" * 32), b"n" * 32, b"r" * 32),
        login_payload((1, 2, 1), "ws://a", device, b"m" * 32, b"r" * 32),
        login_payload((1, 2, 1), "ws://a", device, b"n" * 32, b"q" * 32),
    }
    assert len(others) == 5 and payload not in others
