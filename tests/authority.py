"""A certificate authority of a test's own."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat


def self_signed(path: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None) -> Path:
    """Write a certificate for localhost that signs itself and its key into one file; return the path."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(secret + certificate.public_bytes(Encoding.PEM))
    return path


class Authority:
    """Signs certificates, and puts them into a folder."""

    def __init__(self, folder: Path, above: Authority | None = None) -> None:
        """Make its own, in ``ca.pem``; another authority signs that one, or it does itself."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "below" if above else "a test")])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.path = str(folder / "ca.pem")
        Path(self.path).write_bytes((above or self)._sign(self._name, self._key.public_key(), [], ca=True))

    def issue(self, name: str, *hosts: str, password: bytes = b"") -> tuple[str, str]:
        """Make a certificate for hosts, names or addresses; give the paths of it and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        paths = self.folder / f"{name}.pem", self.folder / f"{name}-key.pem"
        paths[0].write_bytes(self._sign(subject, key.public_key(), hosts))
        secret = BestAvailableEncryption(password) if password else NoEncryption()
        paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret))
        return str(paths[0]), str(paths[1])

    def server_options(self, port: int, *hosts: str) -> list[str]:
        """Give what makes a Redis server take TLS alone, of clients with a certificate of ours."""
        certificate, key = self.issue(f"server-{port}", *hosts)
        options = {"port": "0", "tls-port": str(port), "tls-cert-file": certificate, "tls-key-file": key}
        options |= {"tls-ca-cert-file": self.path, "tls-auth-clients": "yes", "bind": "127.0.0.1"}
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        hosts: tuple[str, ...] | list[str],
        *,
        ca: bool = False,
    ) -> bytes:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder(self._name, subject, key, x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        builder = self._identify(builder, key, ca=ca)
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName(list(map(_name, hosts))), critical=False)
        return builder.sign(self._key, SHA256()).public_bytes(Encoding.PEM)

    def _identify(
        self, builder: x509.CertificateBuilder, key: ec.EllipticCurvePublicKey, *, ca: bool
    ) -> x509.CertificateBuilder:
        """Add what RFC 5280 asks for beyond what OpenSSL does by itself: whose key signed, and what this one is for."""
        others = (
            *("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
            *("encipher_only", "decipher_only"),
        )
        usage = x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, **dict.fromkeys(others, False))
        signed_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        return builder.add_extension(signed_by, critical=False).add_extension(usage, critical=True)


class SparingAuthority(Authority):
    """One whose certificates have only what OpenSSL asks for."""

    def _identify(
        self, builder: x509.CertificateBuilder, key: ec.EllipticCurvePublicKey, *, ca: bool
    ) -> x509.CertificateBuilder:
        return builder


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
