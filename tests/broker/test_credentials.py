"""Passwords and certificates in files: what can be used, and what is said of what cannot."""

from pathlib import Path
from typing import Any

import pytest

from chatd.broker.credentials import check_credentials, password_of, sentinel_password, tls_options
from chatd.config.broker_url import BrokerAddress
from chatd.config.settings import Config
from chatd.config.values import BadValue
from tests.authority import Authority
from tests.rows import rows

TLS = BrokerAddress(host="broker", tls=True)
PLAIN = BrokerAddress(host="broker")
SENTINELS = BrokerAddress(sentinels=(("one", 26379),), service="chat")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def refused(addresses: list[BrokerAddress], **files: Any) -> str:
    with pytest.raises(BadValue) as caught:
        check_credentials(addresses, Config(**files))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_is_asked_for() -> None:
    check_credentials([], Config())
    check_credentials([TLS, PLAIN, SENTINELS], Config())
    assert password_of(PLAIN, Config()) is None
    assert password_of(BrokerAddress(password="secret"), Config()) == "secret"
    assert sentinel_password(Config()) is None


def test_files_that_fit_are_taken(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("chatd")
    (tmp_path / "password").write_text("gehëim\nand a remark\n")
    (tmp_path / "sentinel").write_text("other")
    config = Config(
        redis_tls_ca=authority.path,
        redis_tls_cert=certificate,
        redis_tls_key=key,
        redis_password_file=str(tmp_path / "password"),
        redis_sentinel_password_file=str(tmp_path / "sentinel"),
    )
    check_credentials([TLS, SENTINELS], config)
    assert password_of(TLS, config) == "gehëim"
    assert sentinel_password(config) == "other"


def test_a_chain_of_certificates_is_shown_whole(authority: Authority) -> None:
    certificate, key = authority.issue("chatd")
    with Path(certificate).open("ab") as file:
        file.write(Path(authority.path).read_bytes())
    config = Config(redis_tls_cert=certificate, redis_tls_key=key)
    check_credentials([TLS], config)
    assert tls_options("localhost", config) is not None


@rows(
    ("addresses", "options", "told"),
    [
        ([PLAIN], {"redis_tls_ca": "/x"}, "--redis-tls-ca is for rediss:// only"),
        ([PLAIN], {"redis_tls_cert": "/x", "redis_tls_key": "/x"}, "--redis-tls-cert is for rediss:// only"),
        ([], {"redis_tls_key": "/x"}, "--redis-tls-key is for rediss:// only"),
        ([TLS], {"redis_tls_cert": "/x"}, "--redis-tls-cert and --redis-tls-key go together"),
        ([TLS], {"redis_tls_key": "/x"}, "--redis-tls-cert and --redis-tls-key go together"),
        ([], {"redis_password_file": "/x"}, "--redis-password-file is for --redis only"),
        ([TLS], {"redis_sentinel_password_file": "/x"}, "--redis-sentinel-password-file is for redis+sentinel:// only"),
    ],
)
def test_an_option_that_means_nothing_is_said(
    addresses: list[BrokerAddress], options: dict[str, Any], told: str
) -> None:
    assert refused(addresses, **options) == told


def test_a_password_in_two_places_is_said_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("hunter2")
    said = refused([BrokerAddress(password="hunter3")], redis_password_file=str(tmp_path / "password"))
    assert said == "--redis-password-file and a password in --redis are one too many"


def test_a_file_that_is_not_there_is_said(tmp_path: Path, authority: Authority) -> None:
    gone = str(tmp_path / "gone")
    certificate, key = authority.issue("chatd")
    missing = ": No such file or directory"
    assert refused([TLS], redis_tls_ca=gone) == f"--redis-tls-ca {gone}{missing}"
    assert refused([TLS], redis_tls_cert=gone, redis_tls_key=key) == f"--redis-tls-cert {gone}{missing}"
    assert (
        refused([TLS], redis_tls_cert=certificate, redis_tls_key=gone)
        == f"--redis-tls-key {gone}: No such file or directory"
    )
    assert refused([TLS], redis_password_file=gone) == f"--redis-password-file {gone}: No such file or directory"
    told = f"--redis-sentinel-password-file {gone}: No such file or directory"
    assert refused([SENTINELS], redis_sentinel_password_file=gone) == told


def test_a_file_with_something_else_in_it_is_said(tmp_path: Path, authority: Authority) -> None:
    certificate, key = authority.issue("chatd")
    other, _ = authority.issue("other")
    _, locked = authority.issue("locked", password=b"secret")
    assert refused([TLS], redis_tls_ca=key) == f"--redis-tls-ca {key}: no certificate in PEM form"
    told = f"--redis-tls-key {certificate}: not a private key in PEM format"
    assert refused([TLS], redis_tls_cert=certificate, redis_tls_key=certificate) == told
    assert (
        refused([TLS], redis_tls_cert=other, redis_tls_key=key)
        == f"--redis-tls-key {key}: the key does not belong to the certificate"
    )
    told = f"--redis-tls-key {locked}: the key must not be encrypted"
    assert refused([TLS], redis_tls_cert=certificate, redis_tls_key=locked) == told


@pytest.mark.parametrize("content", [b"", b"\n", b"\nsecret\n", b"\xff"])
def test_a_password_file_without_a_password_is_said(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "password"
    path.write_bytes(content)
    told = f"--redis-password-file {path}: its first line is to be the password"
    assert refused([PLAIN], redis_password_file=str(path)) == told
