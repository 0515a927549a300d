"""Keys that verify tokens: parsed from PEM, DER, JWK or a plain secret, each with its own algorithms.

The key alone decides its algorithms, never a token (RFC 8725, section 3.1). A token that names another algorithm, or
none, is not checked with that key. A public key is therefore never used as a secret.
"""

import json
import re
from base64 import b64decode
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey, Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
    load_der_public_key,
    load_pem_private_key,
    load_pem_public_key,
)
from cryptography.x509 import load_der_x509_certificate

from chatd.config.values import BadValue

LEAST_SECRET = 32
"""Bytes of a secret: as many as the shortest hash has (RFC 7518, section 3.2)."""
LEAST_RSA = 2048
"""Bits of an RSA key (RFC 7518, section 3.3)."""

_HMAC = {32: "HS256", 48: "HS384", 64: "HS512"}  # by the bytes of secret that each asks for
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_JWK_CURVES = {
    "EC": {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"},
    "OKP": {"Ed25519": "EdDSA", "Ed448": "EdDSA"},
}
_SECRET = re.compile(rb"(?!-----|----\s|.*://)[^\x00-\x20\x7f-\xff\"<\[{][\x20-\x7e]*")
"""A line of JSON, HTML, a URL, or a key in an unknown armour, any of which may be public."""

Material = Any
"""A key as PyJWT 2.15 accepts it: the bytes of a secret, or a class of ``cryptography``."""


@dataclass(frozen=True, slots=True, repr=False)
class Key:
    """One key, and what it is good for."""

    material: Material
    algorithms: tuple[str, ...]
    id: str = ""
    """The name that tokens may give it (``kid``)."""


def fingerprint(material: Material) -> str:
    """Return the SHA-256 of a secret or a public key: the same for one key, in whatever form its file has it."""
    if not isinstance(material, bytes):
        material = material.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return sha256(material).hexdigest()


def read_key_file(path: str) -> list[Key]:
    """Read the keys in a file. Raise BadValue, one line that names it."""
    try:
        with open(path, "rb") as file:
            return read_keys(file.read())
    except OSError as error:
        raise BadValue(f"--auth-key {path}: {error.strerror}") from error
    except BadValue as error:
        raise BadValue(f"--auth-key {path}: {error}") from error


def read_keys(data: bytes) -> list[Key]:
    """Parse a file of keys that verify tokens. Raise BadValue, which does not repeat the content.

    The file has a public key in PEM or DER, a JWK or a set of them (RFC 7517), or a secret: a line of at least 32
    characters, or as many random bytes.

    Content that may be anything else is refused as a secret, because it may be public.
    """
    text = data.removeprefix(BOM_UTF8).strip()
    if text.startswith(b"{"):
        return _read_jwks(_parse(text))
    material = _load_public(data, text)
    if material is None:
        material = _secret(data, text)
    return [Key(material, _algorithms(material))]


def read_signing_key(data: bytes) -> Key:
    """Read the key in a file with which tokens are signed: a private key, or the secret. Raise BadValue."""
    text = data.removeprefix(BOM_UTF8).strip()
    if text.startswith(b"{"):
        jwk = _parse(text)
        material = _from_jwk(jwk)
        if material is None or isinstance(material, _PUBLIC_KINDS):
            raise BadValue("a signing JWK must be a private key or a secret")
        return Key(material, _algorithms(material), _id(jwk))
    if _is_pem(text) or _is_der(data, load_der_private_key, None):
        try:
            material = load_pem_private_key(text, None) if _is_pem(text) else load_der_private_key(data, None)
        except TypeError as error:
            raise BadValue("the key must not be encrypted") from error
        except (ValueError, UnsupportedAlgorithm) as error:
            raise BadValue("not a private key") from error
    elif _is_der(data, load_der_public_key):
        raise BadValue("not a private key")
    else:
        material = _secret(data, text)
    return Key(material, _algorithms(material))


_PUBLIC_KINDS = (RSAPublicKey, EllipticCurvePublicKey, Ed25519PublicKey, Ed448PublicKey)
_PRIVATE_KINDS = (RSAPrivateKey, EllipticCurvePrivateKey, Ed25519PrivateKey, Ed448PrivateKey)


def _is_pem(text: bytes) -> bool:
    return b"-----BEGIN" in text


def _is_der(data: bytes, load: Any, *more: Any) -> bool:
    try:
        load(data, *more)
    except TypeError:  # encrypted
        return True
    except (ValueError, UnsupportedAlgorithm):
        return False
    return True


def _load_public(data: bytes, text: bytes) -> Material | None:
    """Return the public key that this is; None where it is no key of that kind. Raise BadValue."""
    if _is_pem(text):
        if b"PRIVATE KEY" in text:
            raise BadValue("this is a private key; use its public key")
        if text.count(b"-----BEGIN") > 1:
            raise BadValue("more than one key; use one file per key, or a JWKS")
        try:
            return load_pem_public_key(text)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise BadValue("not a public key in PEM format") from error
    if _is_der(data, load_der_private_key, None):
        raise BadValue("this is a private key; use its public key")
    return load_der_public_key(data) if _is_der(data, load_der_public_key) else None


def _secret(data: bytes, text: bytes) -> bytes:
    """Return a secret: a line of text without its end, or bytes unchanged. Raise BadValue."""
    if text.startswith((b"ssh-", b"ecdsa-", b"sk-")):
        raise BadValue("this is an OpenSSH key; convert it with: ssh-keygen -e -m PKCS8")
    random = _is_random(data)
    if len(data if random else text) < LEAST_SECRET:
        raise BadValue(f"a secret must have at least {LEAST_SECRET} bytes; create one with: openssl rand -base64 48")
    if random:
        return data
    if not _SECRET.fullmatch(text):
        raise BadValue(
            "neither a key nor a secret, which is one line of ASCII; create one with: openssl rand -base64 48"
        )
    if _is_bare(text):
        raise BadValue("the key has no -----BEGIN and -----END lines")
    return text


def _is_random(data: bytes) -> bool:
    """Return whether it is neither text, UTF-16 included, nor of a structure (ASN.1) that may be a certificate's."""
    try:
        data.decode()
    except UnicodeDecodeError:
        utf16 = data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) or data.count(0) * 4 > len(data)
        sequence = data.startswith(b"\x30") and data[1] & 0x80 == 0x80 and data[1] & 0x7F in (1, 2, 3)
        return not (utf16 or sequence)
    return False


def _is_bare(text: bytes) -> bool:
    """Return whether it is a key, as many services show theirs: in base64 and nothing else."""
    try:
        der = b64decode(text, validate=True)
    except ValueError:
        return False
    return (
        _is_der(der, load_der_public_key)
        or _is_der(der, load_der_private_key, None)
        or _is_der(der, load_der_x509_certificate)
    )


def _algorithms(material: Material) -> tuple[str, ...]:
    """Return the algorithms of a key. Raise BadValue."""
    if isinstance(material, bytes):
        return tuple(name for least, name in _HMAC.items() if len(material) >= least)
    if isinstance(material, RSAPublicKey | RSAPrivateKey):
        if material.key_size < LEAST_RSA:
            raise BadValue(f"an RSA key must have at least {LEAST_RSA} bits")
        return _RSA
    if isinstance(material, EllipticCurvePublicKey | EllipticCurvePrivateKey) and material.curve.name in _CURVES:
        return (_CURVES[material.curve.name],)
    if isinstance(material, Ed25519PublicKey | Ed448PublicKey | Ed25519PrivateKey | Ed448PrivateKey):
        return ("EdDSA",)
    raise BadValue("the key must be RSA, EC (P-256, P-384, P-521), Ed25519 or Ed448")


# JSON Web Keys


def _parse(text: bytes) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadValue("not valid JSON") from error
    return found


def _read_jwks(found: dict[str, Any]) -> list[Key]:
    """Read a set of keys, or one; those that are for something else are passed over."""
    listed = found.get("keys", [found])
    keys = []
    for jwk in listed if isinstance(listed, list) else []:
        if isinstance(jwk, dict) and _verifies(jwk):
            material = _from_jwk(jwk)
            if isinstance(material, _PRIVATE_KINDS):
                raise BadValue("the file contains a private key; use public keys only")
            if material is not None:
                keys.append(Key(material, _narrowed(_algorithms(material), jwk), _id(jwk)))
    usable = [key for key in keys if key.algorithms]
    if not usable:
        raise BadValue("the file contains no key that can verify tokens")
    return usable


def _verifies(jwk: dict[str, Any]) -> bool:
    """Return whether a JWK is for signatures (RFC 7517, sections 4.2 and 4.3)."""
    operations = jwk.get("key_ops")
    return jwk.get("use", "sig") == "sig" and (not isinstance(operations, list) or "verify" in operations)


def _from_jwk(jwk: dict[str, Any]) -> Material | None:
    """Return the key that a JWK is; None where it is of a kind that we don't know. Raise BadValue."""
    kind, curve = str(jwk.get("kty")), str(jwk.get("crv"))
    # the algorithm names a class of PyJWT's that reads keys of this kind: which one of its kind does not matter
    algorithm = {"oct": "HS256", "RSA": "RS256"}.get(kind) or _JWK_CURVES.get(kind, {}).get(curve)
    if algorithm is None:
        return None
    try:
        material = jwt.get_algorithm_by_name(algorithm).from_jwk(jwk)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadValue(f"the JWK of type {kind} is invalid") from error
    if isinstance(material, bytes) and len(material) < LEAST_SECRET:
        raise BadValue(f"a secret must have at least {LEAST_SECRET} bytes")
    return material


def _narrowed(algorithms: Sequence[str], jwk: dict[str, Any]) -> tuple[str, ...]:
    """Return only the algorithm that a JWK names, if it names one (RFC 7517, section 4.4)."""
    return tuple(algorithm for algorithm in algorithms if algorithm == jwk.get("alg", algorithm))


def _id(jwk: dict[str, Any]) -> str:
    name = jwk.get("kid")
    return name if isinstance(name, str) else ""
