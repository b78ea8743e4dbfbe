"""Every setting of a relay: one frozen object, made once at the start; `sources.py` reads it."""

import base64
import binascii
import dataclasses
import ipaddress
import os
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from sealwire_protocol import limits
from sealwire_protocol.errors import LocalMisuse
from sealwire_protocol.login import normal_origin
from sealwire_protocol.registration import QUOTA_MAX
from sealwire_relay.forwarded import Network, Proxies, ProxyHeader, plain_network

KEEPING: Final = ("database_url", "retention_days", "cutoff_days")
"""The settings that say how long deletions are remembered."""

CLEANING: Final = (*KEEPING, "clean_seconds", "clean_share", "clean_idle_seconds", "clean_records_max")
"""The settings of a cleaner."""

LOGGING: Final = ("log_level", "log_format")
"""The settings of a process that logs."""

LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
LogFormat: TypeAlias = Literal["text", "json"]
RegistrationMode: TypeAlias = Literal["open", "token", "closed"]

TRUSTED_KEY_BYTES: Final = 32
"""A public key of Ed25519."""

OTHERS_MIN: Final = 2
"""Connections to Postgres that are not the writers': one for catching up, one for all else."""

SEVERAL: Final = {
    "origins": "--origin",
    "trusted_proxies": "--trusted-proxy",
    "registration_keys": "--registration-key",
}
"""Settings of several values, with the option by which they are given one at a time."""


class SettingsError(Exception):
    """A setting is unknown, malformed, out of range, or does not go with another one."""


class Secret:
    """A text that prints as nothing, wherever it is printed; `reveal` is the only way to it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, to be handed to what needs it and to nothing else."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


class About(NamedTuple):
    """What is known of a setting beside its type: what it is for, and the values that it may have."""

    text: str
    low: float | None = None
    high: float | None = None


def _setting(default: object, text: str, low: float | None = None, high: float | None = None) -> Any:
    return dataclasses.field(default=default, metadata=_about(text, low, high))


def _about(text: str, low: float | None = None, high: float | None = None) -> dict[str, About]:
    return {"about": About(text, low, high)}


def default_folder() -> Path:
    """Where `up` keeps its database: below XDG_DATA_HOME, or else below the home folder."""
    data = Path(os.environ.get("XDG_DATA_HOME", ""))
    # A relative path must be ignored, as the XDG specification says.
    return (data if data.is_absolute() else Path.home() / ".local" / "share") / "sealwire-relay"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of a relay. The last word of a name is its unit; a limit's text says what it buys.

    Raises SettingsError when a value is out of range or two of them do not go together.
    """

    host: str = _setting("127.0.0.1", "Address that the data port listens on; 0.0.0.0 or :: for every one.")
    port: int = _setting(7800, "The data port, which devices dial; 0 takes any that is free.", 0, 65_535)
    control_host: str = _setting(
        "127.0.0.1", "Address that the control port listens on; not meant for the open internet."
    )
    control_port: int = _setting(7801, "The control port: health and metrics; 0 takes any that is free.", 0, 65_535)
    origins: tuple[str, ...] = _setting(
        (),
        "Names under which devices dial this relay, such as wss://relay.example.org; a login counts for one name "
        "only. Needed unless the data port listens on loopback, where its ws:// names are the default.",
    )
    tls_certificate_path: Path | None = dataclasses.field(
        default=None,
        metadata=_about(
            "File with the certificate, and those up to a known authority, in PEM: the data port speaks TLS with it "
            "(wss). Without one it does not encrypt, and is for loopback, or for behind a proxy that does."
        ),
    )
    tls_key_path: Path | None = dataclasses.field(
        default=None,
        metadata=_about(
            "File with the certificate's private key in PEM, without a passphrase. Both are read again when renewed."
        ),
    )
    trusted_proxies: tuple[str, ...] = _setting(
        (),
        "Addresses, or networks such as 10.0.0.0/8, of the proxies before the data port: what they tell of whom they "
        "connect for is believed, and from nobody else.",
    )
    proxy_header: ProxyHeader = dataclasses.field(
        default="x-forwarded-for",
        metadata=_about(
            "How these proxies tell it: in a header of the request, `x-forwarded-for` or `forwarded`; or by the "
            "`proxy-protocol` (version 1 or 2), with which then every connection must begin, and come from one of them."
        ),
    )
    database_url: Secret | None = dataclasses.field(
        default=None,
        metadata=_about("The Postgres to store in, postgresql://user:password@host:port/name (not for `up`)."),
    )
    folder: Path = dataclasses.field(
        default_factory=default_folder,
        metadata=_about("Folder of the database that `up` starts; made if it is missing."),
    )
    registration: RegistrationMode = dataclasses.field(
        default="open",
        metadata=_about(
            "Who may make vaults here: `open`, whoever can dial the relay; `token`, who has a registration token; "
            "`closed`, nobody. Vaults that the relay has or had are not concerned."
        ),
    )
    registration_keys: tuple[str, ...] = _setting(
        (), "Public keys whose registration tokens are taken, as `sealwire-relay token keygen` prints them."
    )
    quota_bytes: int = _setting(
        10_737_418_240,
        "Bytes that a vault may store whose registration token does not say how many; 0: no limit. So one vault, or an "
        "app that writes without end, does not fill the disk.",
        0,
        QUOTA_MAX,
    )
    credit_bytes: int = _setting(
        limits.CREDIT_BYTES_DEFAULT,
        "Most bytes sent ahead to one device before it acknowledges: covers 100 ms at 20 MB/s.",
        limits.CREDIT_BYTES_MIN,
        67_108_864,
    )
    device_pushes_per_second_max: int = _setting(
        2_500,
        "Pushes that one device may make, in the long run; 0: no limit. Each costs some 40 microseconds, so one device "
        "that loops gets a tenth of a core; one that uploads all it has makes a few dozen, of thousands of records.",
        0,
        1_000_000,
    )
    device_bytes_per_second_max: int = _setting(
        67_108_864,
        "Record bytes that one device may push, in the long run; 0: no limit. More than a network brings, so that only "
        "one beside the relay meets it.",
        0,
        10_737_418_240,
    )
    vault_pushes_per_second_max: int = _setting(
        10_000,
        "Pushes that all devices of a vault may make together, in the long run; 0: no limit. Four that loop, so that "
        "the others of their vault are not refused for one.",
        0,
        1_000_000,
    )
    vault_bytes_per_second_max: int = _setting(
        134_217_728,
        "Record bytes that all devices of a vault may push together, in the long run; 0: no limit. Two devices at "
        "their limit.",
        0,
        10_737_418_240,
    )
    streams_per_vault_max: int = _setting(
        limits.STREAMS_PER_SESSION_MAX,
        "Streams, which are collections, of one vault: no device can listen to more, and each takes up some 300 bytes "
        "though nothing is in it.",
        1,
        limits.STREAMS_PER_SESSION_MAX,
    )
    ping_seconds: int = _setting(
        25, "Silence after which a connection is pinged: proxies cut idle sockets at 60 seconds.", 1, 3_600
    )
    idle_seconds: float = _setting(
        75.0, "Silence after which a connection is given up: three pings without an answer.", 1, 86_400
    )
    login_seconds: float = _setting(
        limits.LOGIN_SECONDS_MAX,
        "From accepting a socket to a valid login: who never logs in holds nothing for long.",
        0.1,
        limits.LOGIN_SECONDS_MAX,
    )
    connections_max: int = _setting(
        10_000,
        "Connections at once; each costs a socket and some 4 KiB of memory, with TLS some 20 more.",
        1,
        1_000_000,
    )
    connections_per_address_max: int = _setting(
        1_024,
        "Of these, from one address (IPv6: one network of 64 bits), logged in or not: leaves places to all others, and "
        "is more than share an address at home or at work. Not counted are this machine and trusted proxies.",
        1,
        1_000_000,
    )
    address_connections_per_second_max: int = _setting(
        100,
        "Connections that one address may begin, in the long run, counted in the same way; 0: no limit. With TLS each "
        "costs about a millisecond before anybody is known, so one address gets a tenth of a core; and all that share "
        "one are back in ten seconds.",
        0,
        1_000_000,
    )
    handshakes_max: int = _setting(
        256, "Connections that have not logged in yet, at once: strangers cannot crowd out devices.", 1, 1_000_000
    )
    handshakes_per_address_max: int = _setting(
        64,
        "Of these, from one address, counted in the same way.",
        1,
        1_000_000,
    )
    frame_bytes_max: int = _setting(
        limits.FRAME_BYTES_MAX,
        "Largest WebSocket message taken: what a device can make the relay hold unchecked.",
        limits.FRAME_BYTES_MIN,
        limits.FRAME_BYTES_MAX,
    )
    push_records_max: int = _setting(
        limits.PUSH_RECORDS_MAX,
        "Records that devices are to put into one push: bounds how long one can occupy a group commit. Batches of up "
        "to 4,096 that were sealed before this was made smaller are taken all the same.",
        1,
        limits.PUSH_RECORDS_MAX,
    )
    unsent_bytes_max: int = _setting(
        4_194_304,
        "Bytes waiting in one connection's socket buffer before it is cut off: it does not read.",
        1,
        268_435_456,
    )
    backlog: int = _setting(
        4_096, "Connections that the kernel holds until they are accepted: a fleet that returns at once.", 1, 65_535
    )
    commit_records_max: int = _setting(
        4_096,
        "Records in one group commit: some 5 ms of writing, so that nobody waits longer for a verdict or a core.",
        limits.PUSH_RECORDS_MAX,
        1_048_576,
    )
    commit_bytes_max: int = _setting(
        1_048_576,
        "Record bytes in one group commit: bounds the memory of one, and the time for which it keeps the disk.",
        limits.FRAME_BYTES_MAX,
        268_435_456,
    )
    writers: int = _setting(
        2,
        "Group commits at once, each of other vaults: while one waits for the disk, another is decided. Each takes one "
        "of the connections to Postgres for itself.",
        1,
        64,
    )
    waiting_bytes_max: int = _setting(
        67_108_864,
        "Memory of all pushes that wait for their commit. Beyond it, as when Postgres is slow or away, who pushes is "
        "not read from until half of it is answered.",
        limits.FRAME_BYTES_MAX,
        8_589_934_592,
    )
    waiting_bytes_per_connection_max: int = _setting(
        4_194_304,
        "The same for one connection: a few of the largest pushes, so that none fills the memory of all.",
        65_536,
        1_073_741_824,
    )
    read_pages_max: int = _setting(
        4, "Catch-up reads of the database at once: leaves connections of the pool to writers.", 1, 256
    )
    recent_bytes_max: int = _setting(
        67_108_864,
        "Memory for what was committed or read lately, of which one stream gets at most a quarter: devices that were "
        "away for a short time, or come back together, do not ask the database for it.",
        0,
        68_719_476_736,
    )
    pool_size: int = _setting(8, "Connections to Postgres, those of the writers among them.", 3, 512)
    sweep_seconds: float = _setting(
        5.0, "How often to look for what other relays on the same database have committed.", 0.05, 3_600
    )
    clean_seconds: float = _setting(
        60.0, "Pause between two looks of the cleaner; 0: none runs beside this relay.", 0, 86_400
    )
    clean_share: float = _setting(
        0.25,
        "Share of a stream's bytes that came after it was last cleaned, from which it is cleaned: bounds both what "
        "superseded records take up and how often the others are read.",
        0.01,
        1,
    )
    clean_idle_seconds: float = _setting(
        600.0, "Silence after which a stream is cleaned that has less than that.", 1, 2_592_000
    )
    clean_records_max: int = _setting(
        262_144,
        "Records that the cleaner takes on in one step, of some 300 bytes of memory each.",
        1_000,
        67_108_864,
    )
    retention_days: float = _setting(
        30.0,
        "Age of the oldest backup that may be restored. A deletion is remembered at least so long, so that no backup "
        "brings back what was deleted.",
        0,
        36_500,
    )
    cutoff_days: float = _setting(
        90.0,
        "Silence after which no deletion is remembered for the sake of a device; should it come back, its replica "
        "is compared with the relay's log.",
        0,
        36_500,
    )
    drain_seconds: float = _setting(
        10.0,
        "When stopping, the longest time for sending devices away, answering what they have pushed and closing their "
        "connections, before what is left is cut.",
        0,
        600,
    )
    drain_notice_seconds: float = _setting(
        0.0,
        "When stopping, how long devices are served on while `/readyz` fails: as long as load balancers take to "
        "notice.",
        0,
        600,
    )
    drain_return_seconds: float = _setting(
        2.0,
        "When stopping, how long devices are asked to stay away after the last of them has been sent away: as long as "
        "a relay takes to start again.",
        0,
        600,
    )
    log_level: LogLevel = dataclasses.field(
        default="info", metadata=_about("Least weight of what is logged, on stderr.")
    )
    log_format: LogFormat = dataclasses.field(
        default="text", metadata=_about("`text` for people, `json` for one object a line.")
    )

    def __post_init__(self) -> None:
        for field, about in fields():
            value = getattr(self, field.name)
            if isinstance(value, int | float):
                within(field.name, field.name, value, about)
        self.trusted_keys()
        self.proxies()
        _check_together(self)
        object.__setattr__(self, "origins", tuple(_origin(name) for name in self.origins))

    @property
    def scheme(self) -> str:
        """What the address of the data port begins with."""
        return "ws" if self.tls_certificate_path is None else "wss"

    def origins_at(self, port: int) -> frozenset[str]:
        """The names under which devices may dial, now that the data port is known: those set, or loopback's."""
        return frozenset(
            self.origins or (f"{self.scheme}://{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]"))
        )

    def trusted_keys(self) -> tuple[bytes, ...]:
        """The public keys whose registration tokens are taken."""
        return tuple(map(_trusted_key, self.registration_keys))

    def proxies(self) -> Proxies:
        """The proxies that are trusted, and how they tell for whom they connect."""
        return Proxies(tuple(map(_network, self.trusted_proxies)), self.proxy_header)


def fields() -> Iterator[tuple["dataclasses.Field[Any]", About]]:
    """Every setting with what is known of it, in order."""
    for field in dataclasses.fields(Settings):
        yield field, field.metadata["about"]


def choices(name: str) -> tuple[str, ...]:
    """The values that a setting may have, if they are few; else nothing."""
    kind = KINDS[name]
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def option(name: str) -> str:
    """The command-line option of a setting. Of those that have several values, each is given by itself."""
    return SEVERAL.get(name) or "--" + name.replace("_", "-")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


KINDS: Final[dict[str, Any]] = typing.get_type_hints(Settings)
"""The type of each setting."""


def within(name: str, source: str, value: float, about: About) -> None:
    """Raises SettingsError if a number, found in `source`, is none that a setting may have."""
    # Written so that "not a number" fails too.
    if not ((about.low is None or value >= about.low) and (about.high is None or value <= about.high)):
        raise SettingsError(f"{source} is {value}; it is {span(name, about)}.")


def span(name: str, about: About) -> str:
    """Which numbers a setting may have, in words."""
    return f"a {'whole ' if KINDS[name] is int else ''}number from {about.low} to {about.high}"


def _origin(name: str) -> str:
    try:
        return normal_origin(name)
    except LocalMisuse as error:
        raise SettingsError(f"An origin is wrong: {error}.") from error


def _network(text: str) -> Network:
    try:
        return plain_network(text)
    except ValueError as error:
        raise SettingsError(
            f"{text!r} is no address or network of proxies ({error}); it looks like 192.0.2.1, 10.0.0.0/8 or fd00::/8."
        ) from error


def _trusted_key(text: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != TRUSTED_KEY_BYTES:
        raise SettingsError(
            f"{text!r} is no public key for registration tokens: copy the line that `sealwire-relay token keygen` "
            "prints."
        )
    return key


def _check_together(settings: Settings) -> None:
    if settings.registration == "token" and not settings.registration_keys:
        raise SettingsError(
            "registration is `token`, but no key is trusted, so that no vault could ever be made: make one with "
            "`sealwire-relay token keygen`, and name its public part with --registration-key."
        )
    if not settings.origins and not is_loopback(settings.host):
        raise SettingsError(
            f"The data port is to listen on {settings.host}, but no origin is set: name the address that devices "
            "dial, as in --origin wss://relay.example.org, since a login counts for one name only."
        )
    if (settings.tls_certificate_path is None) != (settings.tls_key_path is None):
        raise SettingsError(
            "A certificate is of no use without its private key, nor the key without it: set both of "
            "--tls-certificate-path and --tls-key-path, or neither."
        )
    if settings.proxy_header == "proxy-protocol" and not settings.trusted_proxies:
        raise SettingsError(
            "proxy_header is `proxy-protocol`, but no proxy is trusted, so that nobody could ever connect: name those "
            "before the data port with --trusted-proxy."
        )
    if settings.idle_seconds <= settings.ping_seconds:
        raise SettingsError(
            f"idle_seconds is {settings.idle_seconds}, which must be more than ping_seconds ({settings.ping_seconds}): "
            "else connections end before they are pinged."
        )
    needed = settings.credit_bytes + settings.frame_bytes_max
    if settings.unsent_bytes_max < needed:
        raise SettingsError(
            f"unsent_bytes_max is {settings.unsent_bytes_max}, which must be at least credit_bytes + frame_bytes_max "
            f"({needed}): else a device that uses its credit is cut off."
        )
    spare = settings.pool_size - settings.writers
    if spare < OTHERS_MIN:
        raise SettingsError(
            f"writers is {settings.writers}, which must be at most pool_size - {OTHERS_MIN} "
            f"({settings.pool_size - OTHERS_MIN}): each keeps a connection to Postgres for itself, and those who catch "
            "up need one, and those who log in another."
        )
    if settings.read_pages_max >= spare:
        raise SettingsError(
            f"read_pages_max is {settings.read_pages_max}, which must be less than pool_size - writers "
            f"({spare}): else catching up keeps every connection from those that log in."
        )
