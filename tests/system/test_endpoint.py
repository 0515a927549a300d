"""Dialling brokers: in the clear, and with TLS to a real Redis server that wants certificates of its clients."""

import os
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint, UNIXClientEndpoint
from twisted.internet.testing import MemoryReactorClock

from chatd.broker.connection import broker_endpoint
from chatd.chatlog.verify import Ledger, Unreadable, read_histories
from chatd.config.broker_url import BrokerAddress, broker_address
from chatd.config.settings import Config
from tests.authority import Authority, SparingAuthority
from tests.broker.listening import BusTestCase, messages
from tests.broker.server import Server, find_tls_server
from tests.system.daemon import free_port


def test_a_unix_socket_is_dialled_by_its_path() -> None:
    memory = MemoryReactorClock()
    endpoint = broker_endpoint(memory, broker_address("unix:///run/x.sock"), Config())
    assert isinstance(endpoint, UNIXClientEndpoint)


def test_a_host_is_dialled_by_its_name_and_port() -> None:
    endpoint = broker_endpoint(reactor, broker_address("redis://example.org:7000/2"), Config())
    assert isinstance(endpoint, HostnameEndpoint)
    assert "example.org" in repr(endpoint) and "7000" in repr(endpoint)


@pytest.mark.parametrize(("host", "kind"), [("192.0.2.7", TCP4ClientEndpoint), ("[2001:db8::7]", TCP6ClientEndpoint)])
def test_an_address_is_dialled_without_looking_for_others(host: str, kind: type[Any]) -> None:
    assert isinstance(broker_endpoint(reactor, broker_address(f"redis://{host}"), Config()), kind)


class TestTls(BusTestCase):
    """A server that takes nothing but TLS, from clients that have a certificate."""

    def setUp(self) -> None:
        super().setUp()
        self.authority = Authority(Path(self.mktemp()).absolute())
        self.other = Authority(Path(self.mktemp()).absolute())
        self.sparing = SparingAuthority(Path(self.mktemp()).absolute())
        certificate, key = self.authority.issue("chatd")
        self.files: dict[str, Any] = {
            "redis_tls_ca": self.authority.path,
            "redis_tls_cert": certificate,
            "redis_tls_key": key,
        }
        self.server = Server(program=find_tls_server())
        self.addCleanup(self.server.close)

    def run_server(self, *hosts: str) -> str:
        """Run it with a certificate for these hosts; give its URL."""
        port = free_port()
        self.server.start(*self.authority.server_options(port, *hosts))
        return f"rediss://localhost:{port}"

    async def test_with_certificates_that_both_trust_messages_go_through(self) -> None:
        url = self.run_server("localhost")
        bus, listener = await self.ready(url, "ops", **self.files)
        await bus.queues.publish("ops", messages("a"))
        await listener.until(lambda: listener.texts() == ["a"])
        ledger = Ledger()
        config = Config(redis_prefix=self.prefix, **self.files)
        await read_histories(reactor, broker_address(url), config, ledger)
        assert (ledger.rooms, ledger.messages) == (1, 1)

    async def test_what_the_daemon_accepts_verify_accepts_though_it_is_not_all_that_the_standard_asks_for(self) -> None:
        self.authority = self.sparing
        certificate, key = self.authority.issue("chatd")
        self.files = {"redis_tls_ca": self.authority.path, "redis_tls_cert": certificate, "redis_tls_key": key}
        await self.test_with_certificates_that_both_trust_messages_go_through()

    async def test_an_address_can_stand_in_the_certificate_in_place_of_a_name(self) -> None:
        url = self.run_server("127.0.0.1").replace("localhost", "127.0.0.1")
        await self.ready(url, "ops", **self.files)

    async def test_a_server_with_another_name_is_refused(self) -> None:
        bus, listener = self.make(self.run_server("elsewhere"), **self.files)
        await listener.until(lambda: self.away_or_look(bus, listener, "VerificationError"))

    async def test_a_server_that_others_vouch_for_is_refused(self) -> None:
        url, files = self.run_server("localhost"), {**self.files, "redis_tls_ca": self.other.path}
        bus, listener = self.make(url, **files)
        await listener.until(lambda: self.away_or_look(bus, listener, "certificate verify failed"))
        with pytest.raises(Unreadable, match="certificate verify failed"):
            await read_histories(reactor, broker_address(url), Config(**files), Ledger())

    async def test_a_server_that_asks_for_a_certificate_refuses_who_has_none(self) -> None:
        bus, listener = self.make(self.run_server("localhost"), redis_tls_ca=self.authority.path)
        await listener.until(lambda: self.away_or_look(bus, listener, "certificate required"))

    async def test_a_certificate_is_read_anew_at_each_dial(self) -> None:
        url = self.run_server("localhost")
        key = self.files["redis_tls_key"]
        os.rename(key, f"{key}.new")
        bus, listener = self.make(url, **self.files)
        await listener.until(lambda: self.away_or_look(bus, listener, "No such file"))
        os.rename(f"{key}.new", key)
        await listener.until(lambda: bus.queues.open)


class TestPassword(BusTestCase):
    """A password that stands in a file."""

    def setUp(self) -> None:
        super().setUp()
        self.path = Path(self.mktemp()).absolute()
        self.path.write_text("first\n")

    async def test_it_can_be_changed_while_chatd_runs(self) -> None:
        with Server() as server:
            server.start()
            server.ask("ACL", "SETUSER", "ann", "on", ">first", "~*", "&*", "+@all")
            address = BrokerAddress(path=server.path, user="ann")
            bus, listener = await self.ready(address, "ops", redis_password_file=str(self.path))
            server.ask("ACL", "SETUSER", "ann", "resetpass", ">second")
            server.ask("CLIENT", "KILL", "USER", "ann")
            await listener.until(lambda: self.away_or_look(bus, listener, "WRONGPASS"))
            self.path.write_text("second\n")
            await listener.until(lambda: bus.queues.open)
