"""Certificates for servers of a test, by an authority of its own."""

from __future__ import annotations

import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

_DAY = datetime.timedelta(days=1)


class Tls(NamedTuple):
    """Files in PEM."""

    ca_file: Path
    certificate: Path
    key: Path

    @property
    def options(self) -> tuple[str, ...]:
        """Of a Redis, which asks its clients for no certificate."""
        return (
            *("--tls-cert-file", str(self.certificate), "--tls-key-file", str(self.key)),
            *("--tls-ca-cert-file", str(self.ca_file), "--tls-auth-clients", "no"),
            *("--tls-replication", "yes"),
        )


def certify(folder: Path, name: str) -> Tls:
    """A new authority, and a certificate by it for one name or address."""
    folder.mkdir(parents=True)
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority of a test")])
    now = datetime.datetime.now(datetime.UTC)

    def signed(builder: x509.CertificateBuilder) -> bytes:
        dated = builder.issuer_name(issuer).not_valid_before(now - _DAY).not_valid_after(now + _DAY)
        return (
            dated.serial_number(x509.random_serial_number()).sign(authority, hashes.SHA256()).public_bytes(Encoding.PEM)
        )

    try:
        named: x509.GeneralName = x509.IPAddress(ip_address(name))
    except ValueError:
        named = x509.DNSName(name)
    made = Tls(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    is_ca = x509.BasicConstraints(ca=True, path_length=None)
    builder = x509.CertificateBuilder().subject_name(issuer).public_key(authority.public_key())
    made.ca_file.write_bytes(signed(builder.add_extension(is_ca, critical=True)))
    builder = x509.CertificateBuilder().subject_name(x509.Name([])).public_key(key.public_key())
    made.certificate.write_bytes(signed(builder.add_extension(x509.SubjectAlternativeName([named]), critical=True)))
    made.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return made
