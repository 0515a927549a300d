"""Histories read from the real Valkey: in steps, behind passwords, and what becomes of it when that fails."""

import uuid
from dataclasses import replace

import pytest
from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from chatd.chatlog.verify import Ledger, Unreadable, read_histories
from chatd.config.broker_url import BrokerAddress, broker_address
from chatd.config.settings import Config
from tests.broker.server import Client, Server
from tests.chatlog.streams import batch, keep, message


async def missing(address: BrokerAddress, config: Config) -> list[str]:
    """List all messages of the histories: to no log at all they are missing."""
    ledger = Ledger()
    await read_histories(reactor, address, config, ledger)
    return sorted(str(fault) for fault in ledger.faults())


@pytest.mark.usefixtures("broker")
class TestHistories(TestCase):
    """The histories of a broker that other tests use as well."""

    timeout = 20
    valkey_url: str

    def setUp(self) -> None:
        self.config = Config(redis_prefix=uuid.uuid4().hex, redis_connect_timeout=5)
        self.address = broker_address(self.valkey_url)
        self.client = self.enterContext(Client(self.address.path))

    async def test_all_histories_are_read_whatever_the_name_of_the_room(self) -> None:
        for room in ("ops", "a:b", "å👋", "007"):
            keep(self.client, self.config.redis_prefix, batch(1, message("x"), message("y"), room=room))
        keep(self.client, self.config.redis_prefix, batch(1, message("z"), room="a:b", epoch="e2"))
        assert await missing(self.address, self.config) == sorted(
            [f"missing: room {room}, epoch e1, offset 1, id x" for room in ("ops", "a:b", "å👋", "007")]
            + [f"missing: room {room}, epoch e1, offset 2, id y" for room in ("ops", "a:b", "å👋", "007")]
            + ["missing: room a:b, epoch e2, offset 1, id z"]
        )

    async def test_histories_are_read_to_their_end_in_steps(self) -> None:
        for number in range(25):
            keep(self.client, self.config.redis_prefix, batch(1, message("x"), room=f"r{number}"))
            keep(self.client, self.config.redis_prefix, batch(number + 1, message(f"i{number}"), epoch="long"))
        found = await missing(self.address, replace(self.config, verify_keys_per_scan=2, verify_batches_per_read=2))
        assert len(found) == 50
        assert len([fault for fault in found if "epoch long" in fault]) == 25

    async def test_other_keys_and_other_prefixes_are_left_alone(self) -> None:
        self.client.ask("SET", f"{self.config.redis_prefix}:history:e1:ops", "no stream")
        keep(self.client, f"{self.config.redis_prefix}-other", batch(1, message("x")))
        assert await missing(self.address, self.config) == []

    async def test_what_is_no_batch_is_said_and_the_rest_is_read(self) -> None:
        entries = {"b": ("\xff no batch", b"e2 5 w 1\n\x90", b"e1 5 w 1\n\xff"), "c": ("no b",)}
        for field, value in [(field, value) for field, values in entries.items() for value in values]:
            self.client.ask("XADD", f"{self.config.redis_prefix}:history:e1:ops", "5-0", field, value)
            keep(self.client, self.config.redis_prefix, batch(6, message("x")))
            lost, unreadable = await missing(self.address, self.config)
            assert lost == "missing: room ops, epoch e1, offset 6, id x"
            assert unreadable.startswith("unreadable: room ops, epoch e1, offset 5-0: ")
            self.client.ask("DEL", f"{self.config.redis_prefix}:history:e1:ops")


class TestLogin(TestCase):
    """A broker of its own, which asks for more."""

    timeout = 20

    def setUp(self) -> None:
        self.config = Config(redis_prefix=uuid.uuid4().hex, redis_connect_timeout=5)
        self.server = Server()
        self.addCleanup(self.server.close)

    async def test_a_user_a_password_and_a_database_let_it_in(self) -> None:
        self.server.start()
        self.server.ask("ACL", "SETUSER", "ann", "on", ">secret", "~*", "&*", "+@all")
        with Client(self.server.path) as client:
            client.ask("SELECT", 2)
            keep(client, self.config.redis_prefix, batch(1, message("x")))
        self.server.ask("ACL", "SETUSER", "default", "off")
        address = BrokerAddress(path=self.server.path, user="ann", password="secret", database=2)
        assert await missing(address, self.config) == ["missing: room ops, epoch e1, offset 1, id x"]

    async def test_a_password_alone_lets_it_in(self) -> None:
        self.server.start("--requirepass", "secret")
        assert await missing(BrokerAddress(path=self.server.path, password="secret"), self.config) == []

    async def test_a_wrong_password_is_said_and_never_shown(self) -> None:
        self.server.start("--requirepass", "secret")
        with pytest.raises(
            Unreadable, match=f"the broker unix://{self.server.path} can't be read: WRONGPASS"
        ) as raised:
            await missing(BrokerAddress(path=self.server.path, password="guess"), self.config)
        assert "guess" not in str(raised.value)

    async def test_a_broker_that_is_not_there_is_said(self) -> None:
        with pytest.raises(Unreadable, match=r"the broker unix://.+ can't be read: .*No such file"):
            await missing(BrokerAddress(path=self.mktemp()), self.config)

    async def test_a_frozen_broker_is_said(self) -> None:
        self.server.start()
        self.server.freeze()
        with pytest.raises(Unreadable, match=r"can't be read: no answer within 0\.1 s"):
            await missing(BrokerAddress(path=self.server.path), replace(self.config, redis_connect_timeout=0.1))
