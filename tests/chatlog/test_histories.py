"""Histories read from the real Valkey: in steps, behind passwords and TLS, and what becomes of it when that fails."""

import select
import socket
import ssl
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from chatd.chatlog.verify import Ledger, Unreadable, read_histories
from chatd.config.broker_url import BrokerAddress, broker_address
from chatd.config.settings import Config
from tests.broker.server import Client, Server
from tests.chatlog.streams import batch, keep, message


@pytest.fixture
def config() -> Config:
    return Config(redis_prefix=uuid.uuid4().hex, redis_connect_timeout=5)


@pytest.fixture
def client(valkey_url: str) -> Iterator[Client]:
    with Client(broker_address(valkey_url).path) as client:
        yield client


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def missing(address: BrokerAddress, config: Config) -> list[str]:
    """List all messages of the histories: to no log at all they are missing."""
    ledger = Ledger()
    read_histories(address, config, ledger)
    return sorted(str(each) for each in ledger.faults())


def test_all_histories_are_read_whatever_the_name_of_the_room(client: Client, valkey_url: str, config: Config) -> None:
    for room in ("ops", "a:b", "å👋", "007"):
        keep(client, config.redis_prefix, batch(1, message("x"), message("y"), room=room))
    keep(client, config.redis_prefix, batch(1, message("z"), room="a:b", epoch="e2"))
    assert missing(broker_address(valkey_url), config) == sorted(
        [f"missing: room {room}, epoch e1, offset 1, id x" for room in ("ops", "a:b", "å👋", "007")]
        + [f"missing: room {room}, epoch e1, offset 2, id y" for room in ("ops", "a:b", "å👋", "007")]
        + ["missing: room a:b, epoch e2, offset 1, id z"]
    )


def test_histories_are_read_to_their_end_in_steps(client: Client, valkey_url: str, config: Config) -> None:
    for number in range(25):
        keep(client, config.redis_prefix, batch(1, message("x"), room=f"r{number}"))
        keep(client, config.redis_prefix, batch(number + 1, message(f"i{number}"), epoch="long"))
    found = missing(broker_address(valkey_url), replace(config, verify_keys_per_scan=2, verify_batches_per_read=2))
    assert len(found) == 50
    assert len([each for each in found if "epoch long" in each]) == 25


def test_other_keys_and_other_prefixes_are_left_alone(client: Client, valkey_url: str, config: Config) -> None:
    client.ask("SET", f"{config.redis_prefix}:history:e1:ops", "no stream")
    keep(client, f"{config.redis_prefix}-other", batch(1, message("x")))
    assert missing(broker_address(valkey_url), config) == []


@pytest.mark.parametrize(
    "entry", [("b", "\xff no batch"), ("c", "no b"), ("b", b"e2 5 w 1\n\x90"), ("b", b"e1 5 w 1\n\xff")]
)
def test_what_is_no_batch_is_said_and_the_rest_is_read(
    client: Client, valkey_url: str, config: Config, entry: tuple[str, str | bytes]
) -> None:
    client.ask("XADD", f"{config.redis_prefix}:history:e1:ops", "5-0", *entry)
    keep(client, config.redis_prefix, batch(6, message("x")))
    lost, unreadable = missing(broker_address(valkey_url), config)
    assert lost == "missing: room ops, epoch e1, offset 6, id x"
    assert unreadable.startswith("unreadable: room ops, epoch e1, offset 5-0: ")


def test_a_user_a_password_and_a_database_let_it_in(server: Server, config: Config) -> None:
    server.start()
    server.ask("ACL", "SETUSER", "ann", "on", ">secret", "~*", "&*", "+@all")
    with Client(server.path) as client:
        client.ask("SELECT", 2)
        keep(client, config.redis_prefix, batch(1, message("x")))
    server.ask("ACL", "SETUSER", "default", "off")
    address = BrokerAddress(path=server.path, user="ann", password="secret", database=2)
    assert missing(address, config) == ["missing: room ops, epoch e1, offset 1, id x"]


def test_a_password_alone_lets_it_in(server: Server, config: Config) -> None:
    server.start("--requirepass", "secret")
    assert missing(BrokerAddress(path=server.path, password="secret"), config) == []


def test_a_wrong_password_is_said_and_never_shown(server: Server, config: Config) -> None:
    server.start("--requirepass", "secret")
    with pytest.raises(Unreadable, match=f"the broker unix://{server.path} can't be read: WRONGPASS") as raised:
        missing(BrokerAddress(path=server.path, password="guess"), config)
    assert "guess" not in str(raised.value)


def test_a_broker_that_is_not_there_is_said(tmp_path: Path, config: Config) -> None:
    with pytest.raises(Unreadable, match=r"the broker unix:///.+ can't be read: .*No such file"):
        missing(BrokerAddress(path=str(tmp_path / "broker.sock")), config)


def test_a_frozen_broker_is_said(server: Server, config: Config) -> None:
    server.start()
    server.freeze()
    with pytest.raises(Unreadable, match="can't be read: timed out"):
        missing(BrokerAddress(path=server.path), replace(config, redis_connect_timeout=0.1))


@contextmanager
def tls_before(path: str, certificate: Path) -> Iterator[int]:
    """Take one connection with TLS and pass it on to a unix socket; give the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            try:
                client = context.wrap_socket(listening.accept()[0], server_side=True)
            except OSError:  # it does not trust us
                return
            with client, socket.socket(socket.AF_UNIX) as broker:
                broker.connect(path)
                ends = {client: broker, broker: client}
                while True:
                    for source in select.select(list(ends), [], [])[0]:
                        if not (data := source.recv(65536)):
                            return
                        ends[source].sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            thread.join()


def test_a_certificate_that_is_trusted_is_accepted(
    client: Client, valkey_url: str, config: Config, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    keep(client, config.redis_prefix, batch(1, message("x")))
    with tls_before(broker_address(valkey_url).path, certificate) as port:
        found = missing(broker_address(f"rediss://localhost:{port}"), config)
    assert found == ["missing: room ops, epoch e1, offset 1, id x"]


def test_a_certificate_that_nobody_vouches_for_is_refused(valkey_url: str, config: Config, certificate: Path) -> None:
    with (
        tls_before(broker_address(valkey_url).path, certificate) as port,
        pytest.raises(Unreadable, match="certificate verify failed"),
    ):
        missing(broker_address(f"rediss://localhost:{port}"), config)
