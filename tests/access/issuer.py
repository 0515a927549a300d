"""The issuer of tokens in tests: keys of every kind, and tokens signed with them."""

import json
from base64 import urlsafe_b64encode
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

NOW = 1_790_000_000
SECRET = b"a secret that is as long as it must be: 64 bytes, and some more"
ALGORITHMS = {"RSA": "RS256", "P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}
CURVES = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
KINDS = ("RSA", "P-256", "P-384", "P-521", "Ed25519", "Ed448")


@cache
def private_key(kind: str) -> Any:
    """Make a key of a kind, once."""
    if kind == "RSA":
        return rsa.generate_private_key(65537, 2048)
    if kind.startswith("P-"):
        return ec.generate_private_key(CURVES[kind])
    return ed25519.Ed25519PrivateKey.generate() if kind == "Ed25519" else ed448.Ed448PrivateKey.generate()


def private_pem(kind: str = "Ed25519") -> bytes:
    """Return a private key as a PEM file."""
    pem: bytes = private_key(kind).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem


def public_pem(kind: str = "Ed25519") -> bytes:
    """Return the public key that belongs to it."""
    pem: bytes = private_key(kind).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


def jwk(kind: str, **more: Any) -> dict[str, Any]:
    """Return the public key as a JWK."""
    algorithm = jwt.get_algorithm_by_name(ALGORITHMS.get(kind, "EdDSA"))
    made: dict[str, Any] = algorithm.to_jwk(private_key(kind).public_key(), as_dict=True)
    return made | more


def token(kind: str = "Ed25519", algorithm: str = "", headers: dict[str, Any] | None = None, **claims: Any) -> str:
    """Sign claims with a private key, or with the secret (``HS256``)."""
    if kind.startswith("HS"):
        return jwt.encode(claims, SECRET, kind, headers)
    return jwt.encode(claims, private_key(kind), algorithm or ALGORITHMS.get(kind, "EdDSA"), headers)


def signed(claims: dict[str, Any] | bytes, **headers: Any) -> str:
    """Return a token with claims or headers that the library for tokens would not sign."""
    payload = encoded(claims) if isinstance(claims, bytes) else part(claims)
    text = f"{part({'alg': 'EdDSA'} | headers)}.{payload}"
    return f"{text}.{encoded(private_key('Ed25519').sign(text.encode()))}"


def part(value: object) -> str:
    """Return a part of a token that is JSON."""
    return encoded(json.dumps(value).encode())


def encoded(data: bytes) -> str:
    """Return a part of a token."""
    return urlsafe_b64encode(data).decode().rstrip("=")
