"""TLS: certificates and private keys read from PEM files, and how the listeners of ssl: endpoints use them."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from twisted.internet import endpoints
from twisted.internet.ssl import AcceptableCiphers, CertificateOptions

from chatd.config.listen import split_endpoint
from chatd.config.values import BadValue

T = TypeVar("T")

TLS_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""The ciphers of TLS 1.2: authenticated, with forward secrecy. TLS 1.3 has no others."""


def read_certificates(path: str) -> list[x509.Certificate]:
    """Return all certificates of a file, in their order. Raise OSError, or BadValue that does not name the file."""
    with open(path, "rb") as file:
        data = file.read()
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise BadValue("no certificate in PEM form") from error


def read_key(path: str, certificate: x509.Certificate) -> Any:
    """Return the private key of a certificate. Raise OSError, or BadValue that does not name the file."""
    with open(path, "rb") as file:
        data = file.read()
    try:
        key = load_pem_private_key(data, None)
    except TypeError as error:
        raise BadValue("the key must not be encrypted") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadValue("not a private key in PEM format") from error
    if key.public_key() != certificate.public_key():
        raise BadValue("the key does not belong to the certificate")
    return key


def read_identity(endpoint: str) -> dict[str, Any]:
    """Return the certificates and the key of an ssl: endpoint for CertificateOptions; nothing for other endpoints.

    Twisted's own (26.10) sends the first certificate of ``certKey`` alone. A file as certbot makes it has the whole
    chain, which is needed by clients that do not know the issuer. ``extraCertChain`` is sent behind it. Raise OSError,
    BadValue or, for a string that cannot be parsed, ValueError or TypeError.
    """
    _, kind, positional, named = split_endpoint(endpoint)
    if kind != "ssl":
        return {}
    files = inspect.signature(endpoints._parseSSL).bind(None, *positional, **named).arguments
    key = files.get("privateKey", "server.pem")
    paths = [files.get("certKey", key), *([files["extraCertChain"]] if "extraCertChain" in files else [])]
    own, *chain = dict.fromkeys(found for path in paths for found in _naming(path, read_certificates))
    return {"certificate": own, "extraCertChain": chain, "privateKey": _naming(key, partial(read_key, certificate=own))}


def _naming(path: str, read: Callable[[str], T]) -> T:
    """Read a file, and put its name into the BadValue if it cannot be used. Raise OSError or BadValue."""
    try:
        return read(path)
    except BadValue as error:
        raise BadValue(f"{path!r}: {error}") from error


def server_options(options: Any, endpoint: str) -> Any:
    """Return the TLS options of an endpoint, with its whole chain and with forward secrecy.

    Without forward secrecy, a stolen key could decrypt recorded connections.
    """
    if not isinstance(options, CertificateOptions):
        return options
    shown = {name: getattr(options, name) for name in ("certificate", "extraCertChain", "privateKey")}
    return CertificateOptions(
        **(shown | read_identity(endpoint)),
        dhParameters=options.dhParameters,
        acceptableCiphers=AcceptableCiphers.fromOpenSSLCipherString(TLS_CIPHERS),
    )
