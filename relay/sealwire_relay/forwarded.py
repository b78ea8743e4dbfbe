"""For whom a proxy connects: what trusted ones tell of it, by the PROXY protocol or in a header of the request.

Pure, and the only parser of it. Whoever connects directly could write the same bytes, so what stands here is asked only
for connections of trusted proxies; and of a list, to which each proxy appends, only the part that trusted ones wrote.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

from sealwire_protocol.errors import RemoteFault

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
ProxyHeader: TypeAlias = Literal["x-forwarded-for", "forwarded", "proxy-protocol"]

_V1: Final = b"PROXY "
_V1_BYTES_MAX: Final = 107
"""The longest line of version 1, its end included, as its specification says."""

_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
_V2_HEAD_BYTES: Final = 16
_V2_BODY_BYTES_MAX: Final = 2_048
"""Addresses take 36 bytes; the rest are notes of the proxy, such as names in certificates, which nothing here reads."""

_LOCAL, _PROXY = 0x20, 0x21
_UNSPECIFIED, _TCP4, _TCP6, _UNIX = 0x00, 0x11, 0x21, 0x31
_SIZES: Final = {_TCP4: (4, 12), _TCP6: (16, 36)}
"""Bytes of one address, and of both with their ports."""

_MAPPED_BITS: Final = 96
"""Of an IPv6 address: what stands before an IPv4 address that is written as one."""

_PORT_MAX: Final = 65_535


class Told(NamedTuple):
    """A PROXY header: for whom the proxy connects (None: for itself, or it does not say), and the header's bytes."""

    address: str | None
    size: int


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies that are trusted, and how they tell for whom they connect."""

    networks: tuple[Network, ...]
    header: ProxyHeader

    def trusts(self, address: str) -> bool:
        """Whether an address, as the socket has it or as a trusted proxy wrote it, is one of them."""
        if not self.networks:
            return False
        try:
            found = plain(address)
        except ValueError:
            return False
        return any(found in network for network in self.networks)

    def client(self, near: str, lines: Sequence[str]) -> str:
        """For whom the trusted proxy at `near` connects, by the values of its header, in order: from the right, the
        first that is no trusted proxy itself. Where they end, or one is kept secret, the last that is known.

        Raises RemoteFault if what a trusted proxy wrote is no address.
        """
        rest: str | None = ",".join(lines)
        while rest is not None and self.trusts(near):
            rest, last = _last(rest, ",")
            if self.header == "forwarded":
                last = _node(last)
            found = _address(last) if last else None
            if found is None:
                break
            near = found
        return near


def plain(address: str) -> Address:
    """An address without the zone of a link, and an IPv4 address that is written as an IPv6 one as what it is.

    Raises ValueError if it is none.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    return (found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None) or found


def plain_network(text: str) -> Network:
    """A network as `plain` has the addresses in it: one of IPv4 that is written as one of IPv6 is one of IPv4.

    Raises ValueError if it is none.
    """
    found = ipaddress.ip_network(text)
    first = found.network_address
    if isinstance(first, ipaddress.IPv6Address) and first.ipv4_mapped is not None:
        return ipaddress.ip_network((first.ipv4_mapped, found.prefixlen - _MAPPED_BITS))
    return found


def proxy_header(data: bytes) -> Told | None:
    """The PROXY header, of version 1 or 2, that a connection begins with; None: it is not all there yet.

    Raises RemoteFault as soon as it cannot become one.
    """
    if data[: len(_V2)] == _V2[: len(data)]:
        return _version_2(data)
    if data[: len(_V1)] == _V1[: len(data)]:
        return _version_1(data)
    raise RemoteFault("the connection does not begin with a PROXY header")


def _version_1(data: bytes) -> Told | None:
    end = data.find(b"\r\n", 0, _V1_BYTES_MAX)
    if end < 0:
        if len(data) >= _V1_BYTES_MAX:
            raise RemoteFault("a PROXY header of version 1 has no end")
        return None
    size = end + 2
    words = data[len(_V1) : end].split(b" ")
    if words[0] == b"UNKNOWN":
        return Told(None, size)
    if len(words) != 5 or words[0] not in (b"TCP4", b"TCP6"):
        raise RemoteFault("a PROXY header of version 1 is malformed")
    kind, *ends = words
    version = int(kind[3:])
    addresses = [_written(word, version) for word in ends[:2]]
    for port in ends[2:]:
        if not (port.isdigit() and len(port) <= 5 and int(port) <= _PORT_MAX):
            raise RemoteFault("a PROXY header of version 1 has a port that is none")
    return Told(addresses[0], size)


def _written(word: bytes, version: int) -> str:
    try:
        found = ipaddress.ip_address(word.decode("ascii"))
    except ValueError as error:
        raise RemoteFault("a PROXY header of version 1 has an address that is none") from error
    if found.version != version or b"%" in word:
        raise RemoteFault("a PROXY header of version 1 has an address of another kind than it says")
    return str(plain(str(found)))


def _version_2(data: bytes) -> Told | None:
    if len(data) < _V2_HEAD_BYTES:
        return None
    command, family = data[12], data[13]
    body = int.from_bytes(data[14:16], "big")
    size = _V2_HEAD_BYTES + body
    if command not in (_LOCAL, _PROXY):
        raise RemoteFault("a PROXY header is of another version than 1 and 2, or has an unknown command")
    if body > _V2_BODY_BYTES_MAX:
        raise RemoteFault(f"a PROXY header has more than {_V2_BODY_BYTES_MAX} bytes")
    if command == _PROXY and family not in (_UNSPECIFIED, _UNIX, *_SIZES):
        raise RemoteFault("a PROXY header is of a connection that is none of TCP")
    if len(data) < size:
        return None
    if command == _LOCAL or family not in _SIZES:
        return Told(None, size)
    length, least = _SIZES[family]
    if body < least:
        raise RemoteFault("a PROXY header is shorter than the addresses that it says to have")
    source = ipaddress.ip_address(data[_V2_HEAD_BYTES : _V2_HEAD_BYTES + length])
    return Told(str(plain(str(source))), size)


def _last(text: str, mark: str) -> tuple[str | None, str]:
    """What stands before the last mark that is not quoted (None: there is none), and what after it. It is looked for
    from the right, where proxies that are trusted have written: quotes that a stranger left open change nothing."""
    quoted = False
    for place in range(len(text) - 1, -1, -1):
        if text[place] == '"' and not _is_escaped(text, place):
            quoted = not quoted
        elif text[place] == mark and not quoted:
            return text[:place], text[place + 1 :].strip()
    return None, text.strip()


def _is_escaped(text: str, place: int) -> bool:
    """Whether an odd number of backslashes stands before it."""
    first = place
    while first and text[first - 1] == "\\":
        first -= 1
    return (place - first) % 2 == 1


def _node(element: str) -> str:
    """What an element of `Forwarded` (RFC 7239) says of `for`: an address, or nothing."""
    rest: str | None = element
    while rest is not None:
        # Quotes count here too: in `host="a;for=192.0.2.1"` a proxy passes on what a stranger has asked for.
        rest, pair = _last(rest, ";")
        name, _, value = pair.partition("=")
        if name.strip().lower() == "for":
            value = value.strip()
            return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value
    return ""


def _address(node: str) -> str | None:
    """An address, with or without a port; None: the proxy does not say. Raises RemoteFault if it is none of these."""
    if node.startswith("["):
        node = node[1:].partition("]")[0]
    elif node.count(":") == 1:
        node = node.partition(":")[0]
    if node.lower() == "unknown" or node.startswith("_"):
        return None
    try:
        return str(plain(node))
    except ValueError as error:
        raise RemoteFault("a proxy does not say properly for whom it connects") from error
