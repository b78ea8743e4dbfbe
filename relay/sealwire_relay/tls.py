"""TLS on the data port: the certificate, which may be renewed while the relay runs, and one socket's encryption.

The bytes are encrypted between a connection and its transport, by the standard library's sans-I/O `SSLObject`, and not
by the event loop: asyncio's TLS transports cannot begin behind a PROXY header, and cannot half-close, so that a peer
that still sends would never read the relay's last words.
"""

import asyncio
import contextlib
import logging
import os
import ssl
from pathlib import Path
from typing import Any, Final

from sealwire_protocol.errors import RemoteFault
from sealwire_relay.settings import Settings, SettingsError

LOOK_SECONDS: Final = 30.0
"""How often the files are looked at: how late a renewed certificate is taken up."""

_READ_BYTES: Final = 65_536
"""Decrypted at once; a record of TLS has at most 16 KiB."""

_log = logging.getLogger("sealwire.tls")


class Certificate:
    """The relay's certificate and private key, as their files have them. A member of the wheel."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Read both. Raises SettingsError, which says which of them is wrong and why."""
        self._certificate, self._key = certificate, key
        self._trouble: str | None = None
        self._seen = self._look()
        self.context = self._read()
        """What new connections are encrypted with; those that are open keep what they began with."""

    def on_time(self, now: float) -> float:
        """Take up files that have changed. Those that are wrong are told once, and the old ones are kept."""
        try:
            seen = self._look()
            if seen != self._seen or self._trouble is not None:
                self.context = self._read()
                self._seen, self._trouble = seen, None
                _log.info("The certificate was read again; new connections get it.")
        except SettingsError as error:
            # A certificate whose key is not written yet is one of these: the next look finds both.
            if str(error) != self._trouble:
                _log.error("The renewed certificate is not taken up, and the old one kept: %s", error)
            self._trouble = str(error)
        return now + LOOK_SECONDS

    def _look(self) -> list[tuple[int, int, int]]:
        """By what a file is told from the one that was there before: a renewal may replace a link, or keep the time."""
        found = [_status(file) for file in (self._certificate, self._key)]
        return [(status.st_mtime_ns, status.st_ino, status.st_size) for status in found]

    def _read(self) -> ssl.SSLContext:
        context = load(self._certificate, self._key)
        if (why := _fault(context, self._certificate)) is not None:
            _log.warning("Devices refuse the certificate in %s until it is renewed: %s.", self._certificate, why)
        return context


def certificate_of(settings: Settings) -> Certificate | None:
    """The certificate that the settings name, if they do. Raises SettingsError."""
    certificate, key = settings.tls_certificate_path, settings.tls_key_path
    return None if certificate is None or key is None else Certificate(certificate, key)


def load(certificate: Path, key: Path) -> ssl.SSLContext:
    """What connections are encrypted with. Raises SettingsError; an outdated one is taken."""
    for file in (certificate, key):
        _status(file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # RFC 5746 renegotiation costs the relay far more than the peer, and nobody needs it.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])

    def passphrase() -> str:
        raise SettingsError(f"The key in {key} has a passphrase, which nobody is there to type: save it without one.")

    try:
        context.load_cert_chain(certificate, key, passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            why = f"The key in {key} is not that of the certificate in {certificate}: name two that were made together."
        else:
            why = (
                f"{certificate} and {key} are no certificate and private key in PEM ({error.reason or error}): the "
                "first begins with -----BEGIN CERTIFICATE-----, the second with -----BEGIN PRIVATE KEY-----."
            )
        raise SettingsError(why) from error
    except OSError as error:  # it has gone since it was looked at
        raise SettingsError(f"{certificate} or {key} cannot be read: {error.strerror}.") from error
    return context


def _status(file: Path) -> os.stat_result:
    try:
        with file.open("rb") as opened:
            return os.fstat(opened.fileno())
    except OSError as error:
        raise SettingsError(f"{file}, which TLS needs, cannot be read: {error.strerror}.") from error


def _fault(context: ssl.SSLContext, certificate: Path) -> str | None:
    """Dial the certificate, in memory, as somebody who trusts it and nothing else: what there is to find fault with is
    mostly its days. The standard library reads no certificate but in a handshake."""
    dialling = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    dialling.check_hostname = False
    dialling.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        dialling.load_verify_locations(certificate)
    except OSError as error:  # the file is another one by now, which the next look finds
        return f"it cannot be read again, {error.strerror or error}"
    to_relay, to_device = ssl.MemoryBIO(), ssl.MemoryBIO()
    device = dialling.wrap_bio(to_device, to_relay)
    relay = context.wrap_bio(to_relay, to_device, server_side=True)
    try:
        for end in (device, relay, device):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except ssl.SSLError as error:
        return f"a trial failed, {error.reason or error}"
    return None


class TlsTransport(asyncio.Transport):
    """The transport below a connection, with TLS between: what is written is encrypted, `receive` decrypts.

    Once the peer has broken the rules of TLS, or before its handshake is done, what is written is thrown away.
    """

    def __init__(self, below: asyncio.Transport, context: ssl.SSLContext) -> None:
        super().__init__()
        self._below = below
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        self._shaken = self._broken = False

    def receive(self, data: bytes) -> bytes:
        """What the peer has said, by what came in from it; nothing while that is not whole. Raises RemoteFault."""
        self._in.write(data)
        clear: list[bytes] = []
        try:
            if not self._shaken:
                self._tls.do_handshake()
                self._shaken = True
            while piece := self._tls.read(_READ_BYTES):
                clear.append(piece)
            self._hang_up()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._send()  # the alert that says why
            self._broken = True
            raise RemoteFault(f"not TLS: {error.reason or error}") from error
        self._send()
        return b"".join(clear)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send it encrypted."""
        if not self._shaken or self._broken:
            return
        left = memoryview(data)
        try:
            while left:
                left = left[self._tls.write(left) :]
        except ssl.SSLError:
            self._broken = True
        self._send()

    def write_eof(self) -> None:
        """Say that nothing more comes, by TLS and by TCP. The peer may still send, and read what was written."""
        self._say_goodbye()
        self._below.write_eof()

    def _hang_up(self) -> None:
        """The peer has said that nothing more comes from it: as with TCP alone, that is the end."""
        self._say_goodbye()
        self._below.close()

    def _say_goodbye(self) -> None:
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        self._send()

    def _send(self) -> None:
        if self._out.pending:
            self._below.write(self._out.read())

    # --- what the encryption does not concern

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As the transport below."""
        return self._below.get_extra_info(name, default)

    def get_write_buffer_size(self) -> int:
        """Encrypted bytes that wait."""
        return self._below.get_write_buffer_size()

    def is_closing(self) -> bool:
        """As the transport below."""
        return self._below.is_closing()

    def is_reading(self) -> bool:
        """As the transport below."""
        return self._below.is_reading()

    def pause_reading(self) -> None:
        """As the transport below."""
        self._below.pause_reading()

    def resume_reading(self) -> None:
        """As the transport below."""
        self._below.resume_reading()

    def abort(self) -> None:
        """Cut the socket at once."""
        self._below.abort()
