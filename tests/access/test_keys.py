"""Keys by which tokens are known, and what is no such key."""

import json
from base64 import b64encode
from codecs import BOM_UTF8
from collections.abc import Callable
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


def refusal(data: bytes) -> str:
    with pytest.raises(BadValue) as caught:
        read_keys(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@rows("kind", KINDS)
def test_a_public_key_has_the_algorithms_of_its_kind(kind: str) -> None:
    [key] = read_keys(public_pem(kind))
    assert key.algorithms == OWN[kind]


def test_a_key_has_one_fingerprint_in_all_its_forms_and_no_other_has_it() -> None:
    prints = set()
    for kind in KINDS:
        der = private_key(kind).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        forms = [public_pem(kind), der, json.dumps(jwk(kind, kid="k1")).encode()]
        (one,) = {fingerprint(read_keys(form)[0].material) for form in forms}
        prints.add(one)
    prints.add(fingerprint(read_keys(SECRET)[0].material))
    assert len(prints) == len(KINDS) + 1


@rows("kind", KINDS)
def test_a_public_key_in_der_is_no_secret(kind: str) -> None:
    der = private_key(kind).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    [key] = read_keys(der)
    assert key.algorithms == OWN[kind]


@rows(
    ("length", "algorithms"),
    [(32, ("HS256",)), (47, ("HS256",)), (48, ("HS256", "HS384")), (64, ("HS256", "HS384", "HS512"))],
)
def test_a_secret_is_for_hashes_no_longer_than_itself(length: int, algorithms: tuple[str, ...]) -> None:
    [key] = read_keys(b"x" * length)
    assert key.algorithms == algorithms
    assert key.material == b"x" * length


def test_the_end_of_its_line_is_no_part_of_a_secret() -> None:
    assert read_keys(SECRET + b"\r\n")[0].material == SECRET


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
def test_what_may_be_public_is_no_secret(data: bytes) -> None:
    known = "no key that is known here, nor a secret, which is a line of ASCII: openssl rand -base64 48"
    assert refusal(data) == known


@rows("secret", [b"\n" + bytes(range(0x80, 0x9E)) + b" ", b"-" * 4 + b"_" * 28, b"-" + b"Az_" * 16])
def test_random_bytes_are_a_secret_as_they_are_and_so_is_what_urls_may_hold(secret: bytes) -> None:
    (key,) = read_keys(secret)
    assert key.material == read_signing_key(secret).material == secret


def test_a_key_in_base64_alone_is_no_secret() -> None:
    for kind in KINDS:
        der = private_key(kind).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        assert refusal(b64encode(der)) == "a key without the lines around it (-----BEGIN …)"
    private = private_key("P-256").private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    assert refusal(b64encode(private)) == "a key without the lines around it (-----BEGIN …)"
    assert read_keys(b64encode(bytes(range(48))))[0].algorithms == ("HS256", "HS384", "HS512")


def test_a_mark_of_byte_order_is_no_part_of_a_key() -> None:
    for data in (json.dumps({"keys": [jwk("RSA")]}).encode(), public_pem("RSA")):
        assert read_keys(BOM_UTF8 + data)[0].algorithms == RSA
    assert read_keys(BOM_UTF8 + SECRET)[0].material == SECRET


def test_no_key_shows_itself() -> None:
    assert SECRET.decode() not in repr(read_keys(SECRET)[0])


@rows("kind", KINDS)
def test_a_jwk_is_read(kind: str) -> None:
    [key] = read_keys(json.dumps(jwk(kind, kid="k1")).encode())
    assert (key.id, key.algorithms) == ("k1", OWN[kind])


def test_a_set_of_keys_is_read_and_what_is_for_something_else_is_passed_over() -> None:
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
        ("one", ("RS256",)),
        ("two", ("ES256",)),
        ("three", ("HS256", "HS384")),
        ("", ("EdDSA",)),
        ("", ("EdDSA",)),
    ]


@rows(
    ("data", "why"),
    [
        (b"", "a secret has at least 32 bytes: openssl rand -base64 48"),
        (b"x" * 31, "a secret has at least 32 bytes: openssl rand -base64 48"),
        (b"x" * 31 + b"\n\n", "a secret has at least 32 bytes: openssl rand -base64 48"),
        (private_pem(), "that is a private key; the server needs the public one only"),
        (public_pem() + public_pem("RSA"), "one key a file; several are several files, or a set of keys (JWKS)"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "no public key in PEM form"),
        (b"a comment\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", "no public key in PEM form"),
        (
            b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample somebody@somewhere",
            "a key of OpenSSH; write it as PEM: ssh-keygen -e -m PKCS8",
        ),
        (b"{", "no JSON, though it begins like it"),
        (b"{" * 100_000, "no JSON, though it begins like it"),
        (b"{}", "there is no key in it with which tokens can be checked"),
        (b'{"keys": []}', "there is no key in it with which tokens can be checked"),
        (b'{"keys": 1}', "there is no key in it with which tokens can be checked"),
        (b'{"kty": "RSA"}', "a JWK of kind RSA that can't be read"),
        (b'{"kty": "oct", "k": "c2hvcnQ"}', "a secret has at least 32 bytes"),
        (
            json.dumps(jwk("RSA", alg="HS256")).encode(),
            "there is no key in it with which tokens can be checked",
        ),
        (
            json.dumps({"keys": [private_jwk()]}).encode(),
            "there is a private key among them; the server needs the public ones only",
        ),
    ],
)
def test_what_is_no_key_is_told_in_a_line_that_repeats_nothing_of_it(data: bytes, why: str) -> None:
    assert refusal(data) == why


def test_a_private_key_in_der_is_no_secret() -> None:
    der = private_key("RSA").private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    assert refusal(der) == "that is a private key; the server needs the public one only"
    locked = private_key("RSA").private_bytes(Encoding.DER, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    assert refusal(locked) == "that is a private key; the server needs the public one only"


def test_a_weak_key_is_refused() -> None:
    weak = rsa.generate_private_key(65537, 1024).public_key()
    assert refusal(weak.public_bytes(Encoding.PEM, PublicFormat.PKCS1)) == "an RSA key has at least 2048 bits"


@rows("make", [lambda: ec.generate_private_key(ec.SECP256K1()), lambda: dsa.generate_private_key(1024)])
def test_a_key_of_another_kind_is_refused(make: Callable[[], Any]) -> None:
    public = make().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert refusal(public) == "the key is to be RSA, EC (P-256, P-384, P-521), Ed25519 or Ed448"


def test_a_file_is_named_where_it_can_not_be_used(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with pytest.raises(BadValue) as caught:
        read_key_file(str(path))
    assert str(caught.value) == f"--auth-key {path}: No such file or directory"
    path.write_bytes(b"short")
    with pytest.raises(BadValue) as caught:
        read_key_file(str(path))
    assert str(caught.value).startswith(f"--auth-key {path}: a secret has at least")


# To sign


@rows("kind", KINDS)
def test_a_private_key_signs(kind: str) -> None:
    assert read_signing_key(private_pem(kind)).algorithms == OWN[kind]


def test_a_private_jwk_signs_under_its_name() -> None:
    assert read_signing_key(json.dumps(private_jwk()).encode()).id == "k7"


@rows(
    ("data", "why"),
    [
        (public_pem(), "no private key"),
        (json.dumps(jwk("P-256")).encode(), "a JWK with which tokens are signed is a private key, or a secret"),
        (b"x" * 5, "a secret has at least 32 bytes: openssl rand -base64 48"),
    ],
)
def test_what_does_not_sign_is_told(data: bytes, why: str) -> None:
    with pytest.raises(BadValue) as caught:
        read_signing_key(data)
    assert str(caught.value) == why


def test_a_locked_key_does_not_sign() -> None:
    locked = private_key("RSA").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    with pytest.raises(BadValue, match="the key must not be encrypted"):
        read_signing_key(locked)
