"""Keys that verify and sign tokens, and data that is no such key."""

import json
from base64 import b64encode
from codecs import BOM_UTF8
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from chatd.access.keys import fingerprint, read_key_file, read_keys, read_signing_key
from chatd.config.values import BadValue
from tests.access.issuer import KINDS, SECRET, encoded, jwk, private_key, private_pem, public_pem
from tests.rows import rows

RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
OWN = {
    "RSA": RSA,
    "P-256": ("ES256",),
    "P-384": ("ES384",),
    "P-521": ("ES512",),
    "Ed25519": ("EdDSA",),
    "Ed448": ("EdDSA",),
}


def private_jwk() -> dict[str, Any]:
    number = private_key("P-256").private_numbers().private_value
    return jwk("P-256", kid="k7", d=encoded(number.to_bytes(32, "big")))


def public_der(kind: str) -> bytes:
    der: bytes = private_key(kind).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return der


def refusal(data: bytes) -> str:
    with pytest.raises(BadValue) as caught:
        read_keys(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@rows("kind", KINDS)
def test_a_key_in_pem_der_or_jwk_has_the_algorithms_of_its_kind(kind: str) -> None:
    for data, id in ((public_pem(kind), ""), (public_der(kind), ""), (json.dumps(jwk(kind, kid="k1")).encode(), "k1")):
        [key] = read_keys(data)
        assert (key.id, key.algorithms) == (id, OWN[kind])


def test_a_key_has_one_fingerprint_in_all_formats_and_no_other_has_it() -> None:
    fingerprints = {fingerprint(read_keys(SECRET)[0].material)}
    for kind in KINDS:
        formats = [public_pem(kind), public_der(kind), json.dumps(jwk(kind, kid="k1")).encode()]
        fingerprints |= {fingerprint(read_keys(data)[0].material) for data in formats}
    assert len(fingerprints) == len(KINDS) + 1


@rows(
    ("length", "algorithms"),
    [(32, ("HS256",)), (47, ("HS256",)), (48, ("HS256", "HS384")), (64, ("HS256", "HS384", "HS512"))],
)
def test_a_secret_is_for_hashes_no_longer_than_itself(length: int, algorithms: tuple[str, ...]) -> None:
    [key] = read_keys(b"x" * length)
    assert key.algorithms == algorithms
    assert key.material == b"x" * length


def test_the_line_end_is_no_part_of_a_secret() -> None:
    assert read_keys(SECRET + b"\r\n")[0].material == SECRET


def private(kind: str, encoding: Encoding, encryption: Any = NoEncryption()) -> bytes:  # noqa: B008 - a constant
    data: bytes = private_key(kind).private_bytes(encoding, PrivateFormat.PKCS8, encryption)
    return data


PUBLIC = {
    "a set of keys as a list": json.dumps([jwk("RSA")]).encode(),
    "a set of keys in UTF-16": json.dumps({"keys": [jwk("RSA")]}).encode("utf-16"),
    "PEM in UTF-16": public_pem("RSA").decode().encode("utf-16"),
    "another armour": b"---- BEGIN SSH2 PUBLIC KEY ----\nAAAAB3NzaC1yc2EAAAADAQABAAAB\n---- END SSH2 PUBLIC KEY ----\n",
    "where the keys are": b"https://id.example.org/realms/chat/protocol/openid-connect/certs\n",
    "a page that is not there": b"<!DOCTYPE html><title>404: there is no such page</title>\n",
    "several lines": b"keys:\n  - kty: RSA\n    n: 0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM7\n",
    "bytes": b"\x30\x82" + bytes(range(200)),
}


@rows("data", PUBLIC.values())
def test_data_that_may_be_public_is_no_secret(data: bytes) -> None:
    known = "neither a key nor a secret, which is one line of ASCII; create one with: openssl rand -base64 48"
    assert refusal(data) == known


@rows("secret", [b"\n" + bytes(range(0x80, 0x9E)) + b" ", b"-" * 4 + b"_" * 28, b"-" + b"Az_" * 16])
def test_random_bytes_and_url_safe_base64_are_secrets(secret: bytes) -> None:
    (key,) = read_keys(secret)
    assert key.material == read_signing_key(secret).material == secret


def test_a_key_in_base64_alone_is_no_secret() -> None:
    for kind in KINDS:
        assert refusal(b64encode(public_der(kind))) == "the key has no -----BEGIN and -----END lines"
    assert refusal(b64encode(private("P-256", Encoding.DER))) == "the key has no -----BEGIN and -----END lines"
    assert read_keys(b64encode(bytes(range(48))))[0].algorithms == ("HS256", "HS384", "HS512")


def test_a_byte_order_mark_is_no_part_of_a_key() -> None:
    for data in (json.dumps({"keys": [jwk("RSA")]}).encode(), public_pem("RSA")):
        assert read_keys(BOM_UTF8 + data)[0].algorithms == RSA
    assert read_keys(BOM_UTF8 + SECRET)[0].material == SECRET


def test_the_repr_of_a_key_does_not_show_it() -> None:
    assert SECRET.decode() not in repr(read_keys(SECRET)[0])


def test_keys_of_a_set_for_another_use_are_skipped() -> None:
    keys = [
        jwk("RSA", kid="one", alg="RS256", use="sig"),
        jwk("P-256", kid="two", key_ops=["verify"]),
        jwk("P-384", kid="not", use="enc"),
        jwk("P-384", kid="not", key_ops=["deriveKey"]),
        {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA", "kid": "not"},
        {"kty": "EC", "crv": "P-192", "x": "AA", "y": "AA", "kid": "not"},
        {"kty": "OKP", "crv": "X25519", "x": encoded(b"x" * 32), "kid": "not"},
        {"kty": "post-quantum", "kid": "not"},
        {"kty": ["oct"], "kid": "not"},
        {"kty": "EC", "crv": ["P-256"], "kid": "not"},
        {"kty": "oct", "k": encoded(SECRET), "kid": "three"},
        "no key",
        jwk("Ed25519", kid=None, key_ops=None),
        jwk("Ed448", kid=7, key_ops=7),
    ]
    read = read_keys(json.dumps({"keys": keys}).encode())
    assert [(key.id, key.algorithms) for key in read] == [
        *(("one", ("RS256",)), ("two", ("ES256",)), ("three", ("HS256", "HS384")), ("", ("EdDSA",)), ("", ("EdDSA",))),
    ]


SHORT = "a secret must have at least 32 bytes; create one with: openssl rand -base64 48"
NO_KEY = "the file contains no key that can verify tokens"
PRIVATE = "this is a private key; use its public key"
WEAK, DSA = rsa.generate_private_key(65537, 1024).public_key(), dsa.generate_private_key(1024).public_key()
OTHER_KIND = "the key must be RSA, EC (P-256, P-384, P-521), Ed25519 or Ed448"


@rows(
    ("data", "why"),
    [
        *((data, SHORT) for data in (b"", b"x" * 31, b"x" * 31 + b"\n\n")),
        (private_pem(), PRIVATE),
        (public_pem() + public_pem("RSA"), "more than one key; use one file per key, or a JWKS"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "not a public key in PEM format"),
        (b"a comment\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", "not a public key in PEM format"),
        (
            b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample somebody@somewhere",
            "this is an OpenSSH key; convert it with: ssh-keygen -e -m PKCS8",
        ),
        *((data, "not valid JSON") for data in (b"{", b"{" * 100_000)),
        *((data, NO_KEY) for data in (b"{}", b'{"keys": []}', b'{"keys": 1}')),
        (b'{"kty": "RSA"}', "the JWK of type RSA is invalid"),
        (b'{"kty": "oct", "k": "c2hvcnQ"}', "a secret must have at least 32 bytes"),
        (json.dumps(jwk("RSA", alg="HS256")).encode(), NO_KEY),
        (json.dumps({"keys": [private_jwk()]}).encode(), "the file contains a private key; use public keys only"),
        (private("RSA", Encoding.DER), PRIVATE),
        (private("RSA", Encoding.DER, BestAvailableEncryption(b"x")), PRIVATE),
        (WEAK.public_bytes(Encoding.PEM, PublicFormat.PKCS1), "an RSA key must have at least 2048 bits"),
        *(
            (public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), OTHER_KIND)
            for public_key in (ec.generate_private_key(ec.SECP256K1()).public_key(), DSA)
        ),
    ],
)
def test_a_bad_key_is_refused_with_one_line_that_does_not_repeat_it(data: bytes, why: str) -> None:
    assert refusal(data) == why


def test_an_error_names_the_key_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with pytest.raises(BadValue) as caught:
        read_key_file(str(path))
    assert str(caught.value) == f"--auth-key {path}: No such file or directory"
    path.write_bytes(b"short")
    with pytest.raises(BadValue) as caught:
        read_key_file(str(path))
    assert str(caught.value).startswith(f"--auth-key {path}: a secret must have at least")


# Signing keys


def test_a_private_key_or_jwk_signs() -> None:
    for kind in KINDS:
        assert read_signing_key(private_pem(kind)).algorithms == OWN[kind]
    assert read_signing_key(json.dumps(private_jwk()).encode()).id == "k7"


@rows(
    ("data", "why"),
    [
        (public_pem(), "not a private key"),
        (json.dumps(jwk("P-256")).encode(), "a signing JWK must be a private key or a secret"),
        (b"x" * 5, SHORT),
        (private("RSA", Encoding.PEM, BestAvailableEncryption(b"x")), "the key must not be encrypted"),
    ],
)
def test_a_key_that_cannot_sign_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(BadValue, match=f"^{why}"):
        read_signing_key(data)
