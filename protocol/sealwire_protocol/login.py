"""What a device signs to log in, and how the name of a relay is written."""

from typing import Final
from urllib.parse import urlsplit

from sealwire_protocol.errors import LocalMisuse
from sealwire_protocol.ids import DeviceKey
from sealwire_protocol.limits import TEXT_BYTES_MAX

LOGIN_CONTEXT: Final = b"sealwire login v1\0"
_DEFAULT_PORTS: Final = {"ws": 80, "wss": 443}


def normal_origin(url: str) -> str:
    """`scheme://host[:port]` in lower case, default ports left out: the name both sides sign.

    Raises LocalMisuse on anything but a ws or wss address without a user, query or fragment.
    """
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError as error:
        raise _no_address(url) from error
    host = (parts.hostname or "").lower()
    if parts.scheme not in _DEFAULT_PORTS or "@" in parts.netloc or parts.query or parts.fragment:
        raise _no_address(url)
    if not host.isprintable() or not host or " " in host or len(url.encode()) > TEXT_BYTES_MAX:
        raise _no_address(url)
    name = f"[{host}]" if ":" in host else host
    return (
        f"{parts.scheme}://{name}"
        if port in (None, _DEFAULT_PORTS[parts.scheme])
        else f"{parts.scheme}://{name}:{port}"
    )


def _no_address(url: str) -> LocalMisuse:
    return LocalMisuse(f"{url[:200]!r} is not a relay's address; it looks like wss://relay.example.org")


def login_payload(
    versions: tuple[int, int, int], origin: str, device: DeviceKey, device_nonce: bytes, relay_nonce: bytes
) -> bytes:
    """The bytes that PROVE signs: context, versions (lowest and highest offered, and chosen), origin, device key
    and both nonces. The versions are in it, so that nobody can talk two new ends into an old version."""
    name = origin.encode()
    return b"".join(
        (
            LOGIN_CONTEXT,
            *(version.to_bytes(2, "big") for version in versions),
            len(name).to_bytes(2, "big"),
            name,
            device,
            device_nonce,
            relay_nonce,
        )
    )
