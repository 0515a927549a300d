"""The bus through outages: a broker that is frozen, killed, full, locked or not who it says it is."""

from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, gatherResults
from twisted.internet.endpoints import SSL4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import deferLater

from chatd.config import BrokerAddress
from chatd.room.bus import Bus
from chatd.room.outbox import NotPublished
from tests.room.listening import FAST, BusTestCase, Ears, messages
from tests.room.server import Client, Server


class TestOutages(BusTestCase):
    """With a server of their own, that can be frozen, killed and told to refuse."""

    def setUp(self) -> None:
        super().setUp()
        self.server = Server()
        self.addCleanup(self.server.close)
        self.url = f"unix://{self.server.path}"

    async def away(self, bus: Bus, ears: Ears) -> None:
        await ears.until(lambda: bus.away)

    async def test_a_broker_that_is_not_there_at_start_is_waited_for(self) -> None:
        bus, ears = self.make(self.url)
        subscribed = bus.subscribe("ops")
        published = bus.publish("ops", messages("early"))
        assert (bus.open, bus.away) == (False, "not connected yet")
        self.server.start()
        await subscribed
        assert (await published).first == 1
        await ears.until(lambda: ears.texts() == ["early"])
        assert bus.open

    async def test_a_broker_that_stays_away_at_start_is_said_once(self) -> None:
        bus, ears = self.make(self.url)
        await ears.until(lambda: self.said_or_look(ears))
        assert "No such file" in bus.away
        expected = [("warn", f"the message bus {self.url} is away: {bus.away}")]
        await deferLater(reactor, 4 * FAST["bus_tick_seconds"])
        assert self.said() == expected

    async def test_a_start_that_takes_a_moment_is_no_outage(self) -> None:
        self.server.start()
        await self.ready(self.url, bus_tick_seconds=1)
        assert self.said() == []

    async def test_another_run_of_the_broker_is_a_new_epoch(self) -> None:
        self.server.start()
        bus, ears = await self.ready(self.url, "ops")
        first = [await bus.publish("ops", messages(text)) for text in ("one", "two")]
        await ears.until(lambda: len(ears.texts()) == 2)
        self.server.kill()
        await self.away(bus, ears)
        waiting = bus.publish("ops", messages("three"))
        self.server.start()
        third = await waiting
        await ears.until(lambda: len(ears.texts()) == 3)
        assert [place.first for place in (*first, third)] == [1, 2, 3]  # the two were published again, and known
        assert first[0].epoch == first[1].epoch != third.epoch
        assert [batch.epoch for batch in ears.batches] == [first[0].epoch, first[0].epoch, third.epoch]

    async def test_a_link_that_is_lost_again_while_others_come_back_is_not_gone_live_on(self) -> None:
        self.server.start()
        bus, ears = await self.ready(self.url, bus_settle_seconds=0.3)
        self.server.kill()
        await self.away(bus, ears)
        self.server.start()
        while bus.away != "waiting for other workers to be back":
            await deferLater(reactor, 0.01)
        self.server.kill()
        changes = ears.changes
        await deferLater(reactor, 0.5)  # longer than it would have taken to go live
        assert (bus.open, ears.changes) == (False, changes)
        self.server.start()
        await ears.until(lambda: bus.open)

    async def test_a_refusal_is_forgotten_with_the_link(self) -> None:
        self.server.start("--maxmemory-policy", "noeviction")
        bus, ears = await self.ready(self.url)
        self.server.ask("CONFIG", "SET", "maxmemory", 1)
        published = bus.publish("ops", messages("hello"))
        await self.away(bus, ears)
        self.server.kill()
        while bus.away.startswith("OOM"):
            await deferLater(reactor, 0.01)
        self.server.start()
        await published

    async def test_a_frozen_broker_is_known_dead_and_heard_again_when_it_goes_on(self) -> None:
        self.server.start()
        bus, ears = await self.ready(self.url, "ops")
        self.server.freeze()
        await self.away(bus, ears)
        assert bus.away == "silent for 0.2 s"
        self.server.thaw()
        await ears.until(lambda: bus.open)
        await bus.publish("ops", messages("hello"))
        await ears.until(ears.texts)

    async def test_an_idle_link_to_a_live_broker_stays(self) -> None:
        self.server.start()
        bus, ears = await self.ready(self.url, bus_tick_seconds=0.01)
        for _ in range(20):
            await bus.probe()
        assert (bus.open, ears.changes, self.said()) == (True, 1, [])

    async def test_what_was_published_to_a_frozen_broker_arrives_once(self) -> None:
        self.server.start()
        bus, ears = await self.ready(self.url, "ops")
        self.server.freeze()
        published = [bus.publish("ops", messages(text)) for text in ("one", "two")]
        await self.away(bus, ears)
        published.append(bus.publish("ops", messages("three")))
        self.server.thaw()
        places = await gatherResults(published)
        await ears.until(lambda: len(ears.texts()) == 3)
        assert ears.texts() == ["one", "two", "three"]
        assert [place.first for place in places] == [1, 2, 3]

    async def test_a_room_subscribed_on_a_frozen_broker_is_heard_when_it_goes_on(self) -> None:
        self.server.start()
        bus, ears = await self.ready(self.url)
        self.server.freeze()
        subscribed = bus.subscribe("ops")
        await self.away(bus, ears)
        self.server.thaw()
        await subscribed
        await bus.publish("ops", messages("hello"))
        await ears.until(ears.texts)
        assert [level for level, _ in self.said()] == ["warn", "info"]

    async def test_a_room_the_broker_forbids_is_said(self) -> None:
        self.server.start()
        rights = ("~*", "+@all", "resetchannels", f"&{self.prefix}:probe:*", f"&{self.prefix}:room:ops")
        self.server.ask("ACL", "SETUSER", "ann", "on", ">secret", *rights)
        bus, ears = await self.ready(BrokerAddress(path=self.server.path, user="ann", password="secret"), "ops")
        bus.subscribe("dev")
        await bus.publish("ops", messages("hello"))
        await bus.probe()
        assert (bus.open, ears.texts()) == (True, ["hello"])
        ((level, text),) = self.said()
        assert (level, text.startswith("room dev cannot be subscribed: NOPERM")) == ("error", True)

    async def test_a_frozen_broker_fails_a_probe_and_the_link_is_named(self) -> None:
        self.server.start()
        bus, _ = await self.ready(self.url, probe_seconds=0.05, bus_tick_seconds=5)
        self.server.freeze()
        with pytest.raises(NotPublished, match=r"nothing came through the publishing link within 0\.05 s"):
            await bus.probe()

    async def test_what_a_stop_cuts_off_is_unknown(self) -> None:
        self.server.start()
        bus, _ = await self.ready(self.url)
        self.server.freeze()
        sent, waiting = bus.publish("ops", messages("1")), bus.publish("ops", messages("2"))
        self.stop(bus)
        for done, unknown in ((sent, True), (waiting, False)):
            with pytest.raises(NotPublished) as refusal:
                await done
            assert refusal.value.unknown is unknown

    async def test_a_broker_without_memory_is_away_until_it_has_some(self) -> None:
        self.server.start("--maxmemory-policy", "noeviction")
        bus, ears = await self.ready(self.url, "ops")
        self.server.ask("CONFIG", "SET", "maxmemory", 1)
        published = bus.publish("ops", messages("hello"))
        await self.away(bus, ears)
        assert bus.away.startswith("OOM")
        assert not bus.open
        self.server.ask("CONFIG", "SET", "maxmemory", 0)
        assert (await published).first == 1
        await ears.until(lambda: bus.open and ears.texts() == ["hello"])
        assert [level for level, _ in self.said()] == ["warn", "info"]

    async def test_a_refusal_for_good_ends_one_for_now(self) -> None:
        self.server.start("--maxmemory-policy", "noeviction")
        bus, ears = await self.ready(self.url, "ops")
        self.server.ask("LPUSH", "a list", "x")
        self.server.ask("CONFIG", "SET", "maxmemory", 1)
        published = bus.publish("ops", messages("hello"))
        await self.away(bus, ears)
        self.server.ask("RENAME", "a list", f"{self.prefix}:room:ops")  # where the room's hash should be
        await self.assertFailure(published, NotPublished)
        await ears.until(lambda: bus.open)

    async def test_while_one_link_is_refused_the_other_stays_and_the_reason_too(self) -> None:
        self.server.start()
        self.server.ask("ACL", "SETUSER", "ann", "on", ">secret", "~*", "&*", "+@all", "-subscribe")
        bus, ears = self.make(BrokerAddress(path=self.server.path, user="ann", password="secret"))
        await ears.until(lambda: self.away_or_look(bus, ears, "NOPERM"))
        await deferLater(reactor, 8 * FAST["bus_tick_seconds"])
        assert "NOPERM" in bus.away

    async def test_a_join_that_is_given_up_leaves_nothing_to_wait_for_it(self) -> None:
        self.server.start()
        bus, ears = await self.ready(self.url, "ops")
        self.server.kill()
        await self.away(bus, ears)
        asked = bus.subscribe("ops")
        asked.cancel()
        await self.assertFailure(asked, CancelledError)
        kept = bus.subscribe("ops")
        self.server.start()
        await kept

    async def test_a_broker_that_may_not_write_is_away(self) -> None:
        self.server.start()
        bus, ears = await self.ready(self.url)
        self.server.ask("CONFIG", "SET", "min-replicas-to-write", 1)
        published = bus.publish("ops", messages("hello"))
        await self.away(bus, ears)
        assert bus.away.startswith("NOREPLICAS")
        self.server.ask("CONFIG", "SET", "min-replicas-to-write", 0)
        await published

    async def test_a_password_that_is_missing_is_why_it_is_away_until_it_is_not_asked_for(self) -> None:
        self.server.start("--requirepass", "secret")
        bus, ears = self.make(self.url)
        await ears.until(lambda: self.away_or_look(bus, ears, "NOAUTH"))
        with Client(self.server.path) as client:
            client.ask("AUTH", "secret")
            client.ask("CONFIG", "SET", "requirepass", "")
        await ears.until(lambda: bus.open)

    async def test_user_and_password_let_it_in(self) -> None:
        self.server.start()
        self.server.ask("ACL", "SETUSER", "ann", "on", ">secret", "~*", "&*", "+@all")
        self.server.ask("ACL", "SETUSER", "default", "off")
        bus, _ = await self.ready(BrokerAddress(path=self.server.path, user="ann", password="secret"))
        await bus.publish("ops", messages("hello"))

    async def test_a_wrong_password_is_said_and_never_shown(self) -> None:
        self.server.start("--requirepass", "secret")
        bus, ears = self.make(BrokerAddress(path=self.server.path, password="guess"))
        await ears.until(lambda: self.said_or_look(ears))
        assert bus.away.startswith("could not auth: WRONGPASS")
        ((level, text),) = self.said()
        assert (level, "guess" in text) == ("warn", False)


def certificate(name: str) -> CertificateOptions:
    """Make a certificate for a host that nobody but itself vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signed = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2126, 1, 1, tzinfo=UTC))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, SHA256())
    )
    return CertificateOptions(key, signed)  # type: ignore[arg-type]


class TestTls(BusTestCase):
    async def test_a_certificate_nobody_vouches_for_is_refused(self) -> None:
        port = SSL4ServerEndpoint(reactor, 0, certificate("localhost"), interface="127.0.0.1")
        listening = await port.listen(Factory.forProtocol(Protocol))
        self.addCleanup(listening.stopListening)
        bus, ears = self.make(f"rediss://localhost:{listening.getHost().port}")
        await ears.until(lambda: self.away_or_look(bus, ears, "certificate verify failed"))
