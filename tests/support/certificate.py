"""A certificate and its key in a test, as an authority would make them, for this machine."""

import datetime
import ipaddress
import ssl
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

DAY = datetime.timedelta(days=1)


class Pair(NamedTuple):
    """The files of a certificate and its private key."""

    certificate: Path
    key: Path

    def trusting(self) -> ssl.SSLContext:
        """What a device that trusts it, and nothing else, dials with."""
        return ssl.create_default_context(cafile=self.certificate)

    def settings(self) -> dict[str, Any]:
        """What a relay is told of it."""
        return {"tls_certificate_path": self.certificate, "tls_key_path": self.key}


def make_pair(folder: Path, *, days: float = 30.0, passphrase: bytes | None = None) -> Pair:
    """Write both into a folder, over those that are there. Negative days: it has expired."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 100 * DAY)
        .not_valid_after(now + days * DAY)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    lock = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    pair = Pair(folder / "relay.crt", folder / "relay.key")
    pair.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pair.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock),
    )
    return pair
