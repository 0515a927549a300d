"""Keys by which tokens are known: read from PEM, DER, JWK or a plain secret, each with the algorithms that are its own.

What a key may be used for follows from the key alone, never from a token (RFC 8725, section 3.1): a token that names
another algorithm, or none, is not looked at with it. So no public key is ever taken for a secret.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey, Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    load_der_private_key,
    load_der_public_key,
    load_pem_private_key,
    load_pem_public_key,
)

from chatd.config import BadValue

LEAST_SECRET = 32
"""Bytes of a secret: as many as the shortest hash gives (RFC 7518, section 3.2)."""
LEAST_RSA = 2048
"""Bits of an RSA key (RFC 7518, section 3.3)."""

_HMAC = {32: "HS256", 48: "HS384", 64: "HS512"}  # by the bytes of secret that each asks for
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_PUBLIC = {"oct": None, "RSA": RSAPublicKey, "EC": EllipticCurvePublicKey, "OKP": (Ed25519PublicKey, Ed448PublicKey)}

Material = Any
"""A key as PyJWT 2.15 takes it: a secret's bytes, or one of the classes of ``cryptography``."""


@dataclass(frozen=True, slots=True, repr=False)
class Key:
    """One key, and what it is good for."""

    material: Material
    algorithms: tuple[str, ...]
    id: str = ""
    """What tokens may name it by (``kid``)."""


def read_key_file(path: str) -> list[Key]:
    """Read the keys in a file. Raises BadValue, one line that names it."""
    try:
        with open(path, "rb") as file:
            return read_keys(file.read())
    except OSError as error:
        raise BadValue(f"--auth-key {path}: {error.strerror}") from error
    except BadValue as error:
        raise BadValue(f"--auth-key {path}: {error}") from error


def read_keys(data: bytes) -> list[Key]:
    """Read the keys in a file with which tokens are checked. Raises BadValue, which does not repeat what stands there.

    A public key in PEM or DER, a JWK or a set of them (RFC 7517), or a secret of at least 32 bytes.
    """
    text = data.strip()
    if text.startswith(b"{"):
        return _read_jwks(_parse(text))
    material = _load_public(data, text)
    if material is None:
        material = _secret(text)
    return [Key(material, _algorithms(material))]


def read_signing_key(data: bytes) -> Key:
    """Read the key in a file with which tokens are signed: a private key, or the secret. Raises BadValue."""
    text = data.strip()
    if text.startswith(b"{"):
        jwk = _parse(text)
        material = _from_jwk(jwk)
        if material is None or isinstance(material, tuple(each for each in _PUBLIC_KINDS)):
            raise BadValue("a JWK with which tokens are signed is a private key, or a secret")
        return Key(material, _algorithms(material), _id(jwk))
    if _is_pem(text) or _is_der(data, load_der_private_key, None):
        try:
            material = load_pem_private_key(text, None) if _is_pem(text) else load_der_private_key(data, None)
        except TypeError as error:
            raise BadValue("the key must not be encrypted") from error
        except (ValueError, UnsupportedAlgorithm) as error:
            raise BadValue("no private key") from error
    elif _is_der(data, load_der_public_key):
        raise BadValue("no private key")
    else:
        material = _secret(text)
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
    """Give the public key that this is; None where it is no key of that kind. Raises BadValue."""
    if _is_pem(text):
        if b"PRIVATE KEY" in text:
            raise BadValue("that is a private key; the server needs the public one only")
        try:
            return load_pem_public_key(text)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise BadValue("no public key in PEM form") from error
    if _is_der(data, load_der_private_key, None):
        raise BadValue("that is a private key; the server needs the public one only")
    return load_der_public_key(data) if _is_der(data, load_der_public_key) else None


def _secret(text: bytes) -> bytes:
    if text.startswith((b"ssh-", b"ecdsa-", b"sk-")):
        raise BadValue("a key of OpenSSH; write it as PEM: ssh-keygen -e -m PKCS8")
    if len(text) < LEAST_SECRET:
        raise BadValue(f"a secret has at least {LEAST_SECRET} bytes: openssl rand -base64 48")
    return text


def _algorithms(material: Material) -> tuple[str, ...]:
    """Say which algorithms are a key's own. Raises BadValue."""
    if isinstance(material, bytes):
        return tuple(name for least, name in _HMAC.items() if len(material) >= least)
    if isinstance(material, RSAPublicKey | RSAPrivateKey):
        if material.key_size < LEAST_RSA:
            raise BadValue(f"an RSA key has at least {LEAST_RSA} bits")
        return _RSA
    if isinstance(material, EllipticCurvePublicKey | EllipticCurvePrivateKey) and material.curve.name in _CURVES:
        return (_CURVES[material.curve.name],)
    if isinstance(material, Ed25519PublicKey | Ed448PublicKey | Ed25519PrivateKey | Ed448PrivateKey):
        return ("EdDSA",)
    raise BadValue("the key is to be RSA, EC (P-256, P-384, P-521), Ed25519 or Ed448")


# JSON Web Keys


def _parse(text: bytes) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadValue("no JSON, though it begins like it") from error
    return found


def _read_jwks(found: dict[str, Any]) -> list[Key]:
    """Read a set of keys, or one; those that are for something else are passed over."""
    listed = found.get("keys", [found])
    keys = []
    for jwk in listed if isinstance(listed, list) else []:
        if isinstance(jwk, dict) and jwk.get("use", "sig") == "sig" and "verify" in jwk.get("key_ops", ["verify"]):
            material = _from_jwk(jwk)
            if isinstance(material, _PRIVATE_KINDS):
                raise BadValue("there is a private key among them; the server needs the public ones only")
            if material is not None:
                keys.append(Key(material, _narrowed(_algorithms(material), jwk), _id(jwk)))
    usable = [key for key in keys if key.algorithms]
    if not usable:
        raise BadValue("there is no key in it with which tokens can be checked")
    return usable


def _from_jwk(jwk: dict[str, Any]) -> Material | None:
    """Give the key that a JWK is; None where it is of a kind that we don't know. Raises BadValue."""
    kind = jwk.get("kty")
    if kind not in _PUBLIC or (kind == "EC" and jwk.get("crv") == "secp256k1"):
        return None
    try:
        # the algorithm names a class of PyJWT's that reads keys of this kind: which one of its kind does not matter
        read = jwt.get_algorithm_by_name({"oct": "HS256", "RSA": "RS256", "EC": _curve(jwk), "OKP": "EdDSA"}[kind])
        material = read.from_jwk(jwk)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadValue(f"a JWK of kind {kind} that can't be read") from error
    if isinstance(material, bytes) and len(material) < LEAST_SECRET:
        raise BadValue(f"a secret has at least {LEAST_SECRET} bytes")
    return material


def _curve(jwk: dict[str, Any]) -> str:
    return {"P-384": "ES384", "P-521": "ES512"}.get(str(jwk.get("crv")), "ES256")


def _narrowed(algorithms: Sequence[str], jwk: dict[str, Any]) -> tuple[str, ...]:
    """Keep the one algorithm that a JWK is for, where it says so (RFC 7517, section 4.4)."""
    return tuple(each for each in algorithms if each == jwk.get("alg", each))


def _id(jwk: dict[str, Any]) -> str:
    return str(jwk.get("kid", ""))
