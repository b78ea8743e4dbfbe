"""For whom a proxy connects: what strangers write must never count, nor ever be more than a typed error (S19)."""

import ipaddress
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sealwire_protocol.errors import RemoteFault
from sealwire_relay.forwarded import Proxies, ProxyHeader, Told, plain, proxy_header

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
CLIENT = "198.51.100.7"
NEAR = "10.0.0.1"


def proxies(header: ProxyHeader, *networks: str) -> Proxies:
    return Proxies(tuple(map(ipaddress.ip_network, networks or ("10.0.0.0/8", "fd00::/8"))), header)


FOR = proxies("x-forwarded-for")
RFC = proxies("forwarded")


def version_2(command: int, family: int, body: bytes, size: int | None = None) -> bytes:
    return SIGNATURE + bytes((command, family)) + struct.pack(">H", len(body) if size is None else size) + body


def pair(source: str, target: str) -> bytes:
    ends = (ipaddress.ip_address(source), ipaddress.ip_address(target))
    return b"".join(end.packed for end in ends) + struct.pack(">HH", 4711, 443)


addresses = st.ip_addresses().map(lambda found: str(plain(str(found))))
strangers = addresses.filter(lambda address: not FOR.trusts(address))
rubbish = st.text(st.characters(max_codepoint=255), max_size=60)


# --- who is trusted


@pytest.mark.parametrize(
    ("address", "trusted"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("fd00::1%eth0", True),
        ("11.0.0.1", False),
        ("::ffff:11.0.0.1", False),
        ("2001:db8::1", False),
        ("", False),
        ("a socket", False),
    ],
)
def test_trusted_are_addresses_of_the_networks(address: str, trusted: bool) -> None:
    assert FOR.trusts(address) is trusted
    assert not Proxies((), "x-forwarded-for").trusts(address)


# --- headers


@pytest.mark.parametrize(
    ("lines", "client"),
    [
        ([CLIENT], CLIENT),
        ([f" {CLIENT} "], CLIENT),
        ([f"{CLIENT}:4711"], CLIENT),
        (["2001:db8::7"], "2001:db8::7"),
        (["[2001:db8::7]:4711"], "2001:db8::7"),
        (["::ffff:198.51.100.7"], CLIENT),
        ([f"{CLIENT}, 10.0.0.2, fd00::9"], CLIENT),
        ([CLIENT, "10.0.0.2"], CLIENT),
        (["192.0.2.1", CLIENT], CLIENT),
        ([f"rubbish, {CLIENT}"], CLIENT),
        ([f'"192.0.2.1, {CLIENT}'], CLIENT),
        (["10.0.0.2, 10.0.0.3"], "10.0.0.2"),
        (["unknown, 10.0.0.3"], "10.0.0.3"),
        (["unknown"], NEAR),
        ([""], NEAR),
        ([], NEAR),
    ],
)
def test_x_forwarded_for_is_read_from_the_right_as_far_as_trusted_proxies_wrote_it(
    lines: list[str], client: str
) -> None:
    assert FOR.client(NEAR, lines) == client


@pytest.mark.parametrize(
    ("lines", "client"),
    [
        ([f"for={CLIENT}"], CLIENT),
        ([f"by=10.0.0.1; For={CLIENT} ;proto=https"], CLIENT),
        ([f'for="{CLIENT}:4711"'], CLIENT),
        (['proto=https;for="[2001:db8::7]:4711"'], "2001:db8::7"),
        ([f'for=192.0.2.1, for={CLIENT};note="a,b", for=10.0.0.2'], CLIENT),
        ([f'for="192.0.2.1, for={CLIENT}'], CLIENT),
        (["for=192.0.2.1", f"for={CLIENT}"], CLIENT),
        (["for=_hidden, for=10.0.0.2"], "10.0.0.2"),
        (["for=unknown"], NEAR),
        (['for="unknown:4711"'], NEAR),
        (["for=Unknown"], NEAR),
        (['for="_hidden:4711"'], NEAR),
        ([f'host="a;for=192.0.2.1";for={CLIENT}'], CLIENT),
        ([f'host="a,for=192.0.2.1";for={CLIENT}'], CLIENT),
        ([f'for={CLIENT};host="a;for=192.0.2.1"'], CLIENT),
        ([f'for={CLIENT};host="a\\",for=192.0.2.1;note=\\""'], CLIENT),
        ([f'host="a\\\\";for={CLIENT};note="\\";for=192.0.2.1"'], CLIENT),
        (["proto=https"], NEAR),
    ],
)
def test_forwarded_is_read_in_the_same_way(lines: list[str], client: str) -> None:
    assert RFC.client(NEAR, lines) == client


@pytest.mark.parametrize("last", ["rubbish", "1.2.3", "1.2.3.4.5", "999.1.1.1:7", "a:b", "ü"])
def test_a_trusted_proxy_that_writes_no_address_is_at_fault(last: str) -> None:
    for each, written in ((FOR, f"{CLIENT}, {last}"), (RFC, f"for={CLIENT}, for={last}")):
        with pytest.raises(RemoteFault):
            each.client(NEAR, [written])


@given(rubbish, strangers)
@example('"', "192.0.2.1")
@example('for="\\', "192.0.2.1")
def test_what_a_stranger_writes_before_the_proxy_does_changes_nothing(written: str, stranger: str) -> None:
    assert FOR.client(NEAR, [f"{written}, {stranger}"]) == stranger
    assert FOR.client(NEAR, [written, stranger]) == stranger
    assert RFC.client(
        NEAR, [f'{written}, for="[{stranger}]:1"' if ":" in stranger else f"{written},for={stranger}"]
    ) == (stranger)


@given(st.lists(rubbish, max_size=5))
def test_any_header_gives_an_address_or_a_typed_error(lines: list[str]) -> None:
    for each in (FOR, RFC):
        try:
            assert plain(each.client(NEAR, lines)).version in (4, 6)
        except RemoteFault:
            pass


def test_a_long_header_costs_no_more_than_its_length() -> None:
    assert FOR.client(NEAR, ["," * 100_000 + '"' * 100_001 + "," + CLIENT]) == CLIENT
    assert FOR.client(NEAR, ["10.0.0.1," * 1_000 + "10.0.0.9"]) == "10.0.0.1"


# --- the PROXY protocol


@pytest.mark.parametrize(
    ("header", "address"),
    [
        (b"PROXY TCP4 198.51.100.7 203.0.113.1 4711 443\r\n", CLIENT),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\n", "2001:db8::7"),
        (b"PROXY TCP6 ::ffff:198.51.100.7 ::1 4711 443\r\n", CLIENT),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN ffff:f...f ffff:f...f 65535 65535\r\n", None),
        (version_2(0x21, 0x11, pair(CLIENT, "203.0.113.1")), CLIENT),
        (version_2(0x21, 0x11, pair(CLIENT, "203.0.113.1") + b"\x04\x00\x03abc"), CLIENT),
        (version_2(0x21, 0x21, pair("2001:db8::7", "2001:db8::1")), "2001:db8::7"),
        (version_2(0x21, 0x00, b""), None),
        (version_2(0x21, 0x31, bytes(216)), None),
        (version_2(0x20, 0x00, b""), None),
        (version_2(0x20, 0x11, pair(CLIENT, "203.0.113.1")), None),
    ],
)
def test_a_proxy_header_is_read_whole_and_what_follows_is_left(header: bytes, address: str | None) -> None:
    assert proxy_header(header) == Told(address, len(header))
    assert proxy_header(header + b"GET / HTTP/1.1\r\n") == Told(address, len(header))
    assert all(proxy_header(header[:end]) is None for end in range(len(header)))


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01",
        b"proxy TCP4",
        b"PROXY  TCP4 198.51.100.7 203.0.113.1 4711 443\r\n",
        b"PROXY TCP4 198.51.100.7 203.0.113.1 4711\r\n",
        b"PROXY TCP4 198.51.100.7 203.0.113.1 4711 65536\r\n",
        b"PROXY TCP4 198.51.100.7 203.0.113.1 -1 443\r\n",
        b"PROXY TCP4 2001:db8::7 2001:db8::1 4711 443\r\n",
        b"PROXY TCP6 198.51.100.7 203.0.113.1 4711 443\r\n",
        b"PROXY TCP6 fe80::1%1 2001:db8::1 4711 443\r\n",
        b"PROXY TCP4 198.51.100.x 203.0.113.1 4711 443\r\n",
        b"PROXY TCP4 198.51.100.\xb2 203.0.113.1 4711 443\r\n",
        b"PROXY UDP4 198.51.100.7 203.0.113.1 4711 443\r\n",
        b"PROXY \r\n",
        b"PROXY UNKNOWN " + b"x" * 100,
        version_2(0x11, 0x11, pair(CLIENT, NEAR)),
        version_2(0x22, 0x11, pair(CLIENT, NEAR)),
        version_2(0x21, 0x12, pair(CLIENT, NEAR)),
        version_2(0x21, 0x77, b""),
        version_2(0x21, 0x11, b"", size=65_535),
        version_2(0x21, 0x11, pair(CLIENT, NEAR)[:-1]),
        version_2(0x21, 0x21, pair(CLIENT, NEAR)),
    ],
)
def test_what_cannot_become_a_proxy_header_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteFault):
        proxy_header(data)


@given(st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11"]), st.binary(max_size=300))
def test_s19_any_beginning_is_a_header_or_waited_for_or_a_typed_error(begin: bytes, data: bytes) -> None:
    try:
        told = proxy_header(begin + data)
    except RemoteFault:
        return
    if told is None:
        assert len(begin + data) < 16 + 2_048
    else:
        assert told.size <= len(begin + data)
        assert told.address is None or str(plain(told.address)) == told.address


@given(addresses, addresses, st.binary(max_size=50))
def test_what_a_proxy_says_of_an_address_is_understood_in_both_versions(source: str, target: str, rest: bytes) -> None:
    kinds = {ipaddress.ip_address(source).version, ipaddress.ip_address(target).version}
    if len(kinds) > 1:
        target = source
    version = ipaddress.ip_address(source).version
    line = f"PROXY TCP{version} {source} {target} 1 2\r\n".encode()
    assert proxy_header(line + rest) == Told(source, len(line))
    block = version_2(0x21, 0x11 if version == 4 else 0x21, pair(source, target))
    assert proxy_header(block + rest) == Told(source, len(block))
