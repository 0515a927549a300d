"""The bus through outages: a broker that is frozen, killed, full, locked or not who it says it is."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.endpoints import SSL4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import deferLater

from chatd.broker.bus import Bus
from chatd.broker.publish_queue import NotPublished, WritesRefused
from chatd.broker.queries import PUBLISH
from chatd.broker.resume_positions import ResumePosition
from chatd.config.broker_url import BrokerAddress
from chatd.config.settings import Config
from chatd.monitoring.metrics import BUSES_LIVE
from chatd.protocol.message import UNBEGUN, OffsetGap, StreamPosition, encode
from chatd.rooms.recovery import Recovery, Tail
from tests.authority import self_signed
from tests.broker.listening import FAST, PATIENT, BusListener, BusTestCase, Follower, messages, saved
from tests.broker.server import Client, Server
from tests.fakes import FakeMember
from tests.rooms.server import frames


class TestOutages(BusTestCase):
    """With a server of their own, that can be frozen, killed and told to refuse."""

    def setUp(self) -> None:
        super().setUp()
        self.server = Server()
        self.addCleanup(self.server.close)
        self.url = f"unix://{self.server.path}"

    async def away(self, bus: Bus, listener: BusListener) -> None:
        await listener.until(lambda: bus.away)

    async def test_a_broker_that_is_not_there_at_start_is_waited_for(self) -> None:
        bus, listener = self.make(self.url)
        subscribed = bus.subscribe("ops")
        published = bus.queues.publish("ops", messages("early"))
        assert (bus.queues.open, bus.away) == (False, "not connected yet")
        self.server.start()
        await subscribed
        assert (await published).first.offset == 1
        await listener.until(lambda: listener.texts() == ["early"])
        assert bus.queues.open

    async def test_a_broker_that_stays_away_at_start_is_said_once(self) -> None:
        bus, listener = self.make(self.url)
        await listener.until(lambda: self.logged_or_look(listener))
        assert "No such file" in bus.away
        expected = [("warn", f"the broker {self.url} is unavailable: {bus.away}")]
        await deferLater(reactor, 4 * FAST["redis_ping_interval"])
        assert self.logged() == expected

    async def test_a_start_that_takes_a_moment_is_no_outage(self) -> None:
        self.server.start()
        await self.ready(self.url, redis_ping_interval=1)
        assert self.logged() == []

    async def test_another_run_of_the_broker_is_a_new_epoch(self) -> None:
        self.server.start()
        bus, listener = await self.ready(self.url, "ops")
        first = [(await bus.queues.publish("ops", messages(text))).first for text in ("one", "two")]
        await listener.until(lambda: len(listener.texts()) == 2)
        self.server.kill()
        await self.away(bus, listener)
        waiting = bus.queues.publish("ops", messages("three"))
        self.server.start()
        third = (await waiting).first
        await listener.until(lambda: len(listener.texts()) == 3)
        assert [place.offset for place in (*first, third)] == [1, 2, 3]  # the two were published again, and known
        assert first[0].epoch == first[1].epoch != third.epoch
        assert [batch.epoch for batch in listener.batches] == [first[0].epoch, first[0].epoch, third.epoch]

    async def test_a_broker_that_lost_nothing_goes_on_in_its_epoch(self) -> None:
        self.server.start("--appendonly", "yes", "--appendfsync", "always")
        bus, listener = await self.follow(self.url, "ops", run="lineage")
        first = (await bus.queues.publish("ops", messages("one"))).first
        self.server.kill()
        await self.away(bus, listener)
        waiting = bus.queues.publish("ops", messages("two"))
        self.server.start("--appendonly", "yes", "--appendfsync", "always")
        assert (await waiting).first == StreamPosition(first.epoch, 2)
        await listener.until(lambda: listener.texts() == ["one", "two"])
        assert listener.gaps == []

    async def test_a_link_that_is_lost_again_while_others_come_back_is_not_gone_live_on(self) -> None:
        self.server.start()
        bus, listener = await self.ready(self.url, history_size=0, redis_settle_delay=0.3)
        self.server.kill()
        await self.away(bus, listener)
        self.server.start()
        while bus.away != "waiting for other workers to be back":
            await deferLater(reactor, 0.01)
        self.server.kill()
        changes = listener.changes
        await deferLater(reactor, 0.5)  # longer than it would have taken to go live
        assert (bus.queues.open, listener.changes) == (False, changes)
        self.server.start()
        await listener.until(lambda: bus.queues.open)

    async def test_who_claims_a_place_after_an_outage_gets_what_could_not_be_written_in_it(self) -> None:
        self.server.start()
        old, listener = await self.ready(self.url, redis_reconnect_min_delay=0.3, redis_reconnect_max_delay=0.3)
        new, others = await self.ready(self.url, redis_settle_delay=0.6)
        await old.resume_positions.claim("ops", "a-key", "s1")
        place = ResumePosition(StreamPosition("e", 7), "s1")
        with self.server.unreachable():
            await self.away(old, listener)
            await self.away(new, others)
            old.resume_positions.save("ops", "a-key", "s1", place, left=True)
            given_up, claimed = (
                new.resume_positions.claim("ops", "a-key", "s2"),
                new.resume_positions.claim("ops", "a-key", "s3"),
            )
            given_up.addErrback(lambda failure: failure.trap(CancelledError))
            given_up.cancel()
        assert await claimed == place

    async def test_a_refusal_is_forgotten_with_the_link(self) -> None:
        self.server.start("--maxmemory-policy", "noeviction")
        bus, listener = await self.ready(self.url)
        self.server.ask("CONFIG", "SET", "maxmemory", 1)
        published = bus.queues.publish("ops", messages("hello"))
        await self.away(bus, listener)
        self.server.kill()
        while bus.away.startswith("OOM"):
            await deferLater(reactor, 0.01)
        self.server.start()
        await published

    async def test_a_frozen_broker_is_known_dead_and_heard_again_when_it_goes_on(self) -> None:
        self.server.start()
        bus, listener = await self.ready(self.url, "ops")
        self.server.freeze()
        await self.away(bus, listener)
        assert bus.away == "silent for 0.4 s"
        self.server.thaw()
        await listener.until(lambda: bus.queues.open)
        await bus.queues.publish("ops", messages("hello"))
        await listener.until(listener.texts)

    async def test_an_idle_link_to_a_live_broker_stays(self) -> None:
        self.server.start()
        bus, listener = await self.ready(self.url, redis_ping_interval=0.01)
        for _ in range(20):
            await bus.probe()
        assert (bus.queues.open, listener.changes) == (True, 1)

    async def test_what_was_published_to_a_frozen_broker_arrives_once(self) -> None:
        self.server.start()
        bus, listener = await self.ready(self.url, "ops")
        self.server.freeze()
        published = [bus.queues.publish("ops", messages(text)) for text in ("one", "two")]
        await self.away(bus, listener)
        published.append(bus.queues.publish("ops", messages("three")))
        self.server.thaw()
        places = await gatherResults(published)
        await listener.until(lambda: len(listener.texts()) == 3)
        assert listener.texts() == ["one", "two", "three"]
        assert [each.first.offset for each in places] == [1, 2, 3]

    async def test_a_room_subscribed_on_a_frozen_broker_is_heard_when_it_goes_on(self) -> None:
        self.server.start()
        bus, listener = await self.ready(self.url)
        self.server.freeze()
        subscribed = bus.subscribe("ops")
        await self.away(bus, listener)
        self.server.thaw()
        await subscribed
        await bus.queues.publish("ops", messages("hello"))
        await listener.until(listener.texts)
        assert [level for level, _ in self.logged()] == ["warn", "info"]

    async def test_a_room_the_broker_forbids_is_said(self) -> None:
        self.server.start()
        channels = (f"&{self.prefix}:{each}" for each in ("probe:*", "worker:*", "room:ops"))
        self.server.ask("ACL", "SETUSER", "ann", "on", ">secret", "~*", "+@all", "resetchannels", *channels)
        bus, listener = await self.ready(BrokerAddress(path=self.server.path, user="ann", password="secret"), "ops")
        bus.subscribe("dev")
        await bus.queues.publish("ops", messages("hello"))
        await bus.probe()
        assert (bus.queues.open, listener.texts()) == (True, ["hello"])
        ((level, text),) = self.logged()
        assert (level, text.startswith("cannot subscribe to room dev: NOPERM")) == ("error", True)

    async def test_a_frozen_broker_fails_a_probe_and_the_link_is_named(self) -> None:
        self.server.start()
        bus, _ = await self.ready(self.url, readiness_probe_timeout=0.05, redis_ping_interval=5)
        self.server.freeze()
        with pytest.raises(NotPublished, match=r"nothing came through the publishing link within 0\.05 s"):
            await bus.probe()

    async def test_what_a_stop_cuts_off_is_unknown(self) -> None:
        self.server.start()
        bus, _ = await self.ready(self.url)
        self.server.freeze()
        sent, waiting = (
            bus.queues.publish("ops", messages("1")),
            bus.queues.publish("ops", messages("2")),
        )
        self.stop(bus)
        for done, unknown in ((sent, True), (waiting, False)):
            with pytest.raises(NotPublished) as refusal:
                await done
            assert refusal.value.unknown is unknown

    async def test_a_broker_without_memory_is_away_until_it_has_some(self) -> None:
        self.server.start("--maxmemory-policy", "noeviction")
        bus, listener = await self.ready(self.url, "ops", **PATIENT)
        self.server.ask("CONFIG", "SET", "maxmemory", 1)
        published = bus.queues.publish("ops", messages("hello"))
        await self.away(bus, listener)
        assert bus.away.startswith("OOM")
        assert not bus.queues.open
        self.server.ask("CONFIG", "SET", "maxmemory", 0)
        assert (await published).first.offset == 1
        await listener.until(lambda: bus.queues.open and listener.texts() == ["hello"])
        assert [level for level, _ in self.logged()] == ["warn", "info"]

    async def test_a_refusal_for_good_ends_one_for_now(self) -> None:
        self.server.start("--maxmemory-policy", "noeviction")
        bus, listener = await self.ready(self.url, "ops")
        self.server.ask("LPUSH", "a list", "x")
        self.server.ask("CONFIG", "SET", "maxmemory", 1)
        published = bus.queues.publish("ops", messages("hello"))
        await self.away(bus, listener)
        self.server.ask("RENAME", "a list", f"{self.prefix}:room:ops")  # where the room's hash should be
        await self.assertFailure(published, NotPublished)
        self.server.ask("CONFIG", "SET", "maxmemory", 0)
        await listener.until(lambda: bus.queues.open)

    async def test_that_writes_are_refused_and_taken_again_is_noticed_while_nobody_writes(self) -> None:
        self.server.start()
        bus, listener = await self.ready(self.url)
        live = BUSES_LIVE.value
        self.server.ask("REPLICAOF", "127.0.0.1", 1)
        await self.away(bus, listener)
        assert (bus.away[:8], bus.refusing, bus.unreachable) == ("READONLY", bus.away, "")
        assert BUSES_LIVE.value == live - 1
        with pytest.raises(WritesRefused, match="READONLY"):
            await bus.probe()
        self.server.ask("REPLICAOF", "NO", "ONE")
        await listener.until(lambda: bus.queues.open)
        assert BUSES_LIVE.value == live
        await bus.probe()
        assert [level for level, _ in self.logged()] == ["warn", "info"]

    async def test_a_probe_leaves_nothing_to_write_to_a_file(self) -> None:
        self.server.start()
        bus, _ = await self.ready(self.url)
        await bus.probe()
        before = self.server.ask("INFO", "persistence")
        for _ in range(3):
            await bus.probe()
        dirty = [
            line
            for info in (before, self.server.ask("INFO", "persistence"))
            for line in info.split()
            if line.startswith(b"rdb_changes_since_last_save:")
        ]
        assert dirty[0] == dirty[1]

    async def test_while_writes_are_refused_all_that_reads_goes_on(self) -> None:
        self.server.start("--maxmemory-policy", "noeviction")
        bus, listener = await self.ready(self.url, "ops")
        position = (await bus.queues.publish("ops", messages("hello"))).first
        for refuse, end in (
            (("REPLICAOF", "127.0.0.1", 1), ("REPLICAOF", "NO", "ONE")),
            (("CONFIG", "SET", "maxmemory", 1), ("CONFIG", "SET", "maxmemory", 0)),
            (("CONFIG", "SET", "min-replicas-to-write", 1), ("CONFIG", "SET", "min-replicas-to-write", 0)),
        ):
            self.server.ask(*refuse)
            await self.away(bus, listener)
            assert await bus.history.tops(["ops", "new"]) == [position, StreamPosition("", 0)]
            assert (await bus.history.read("ops", StreamPosition(position.epoch, 0), 1000)).top == position
            batches, _ = await bus.history.read_back("ops", position.epoch, 1, 0, 1000)
            assert [batch.messages[0].text for batch in batches] == ["hello"]
            assert (await bus.history.read("new", None, 0)).top == StreamPosition(UNBEGUN, 0)
            await bus.presence.members("ops")
            rooms, _ = await bus.presence.list_rooms()
            assert [each.room for each in rooms] == ["ops"]
            self.server.ask(*end)
            await listener.until(lambda: bus.queues.open)

    async def test_while_one_link_is_refused_the_other_stays_and_the_reason_too(self) -> None:
        self.server.start()
        self.server.ask("ACL", "SETUSER", "ann", "on", ">secret", "~*", "&*", "+@all", "-subscribe")
        bus, listener = self.make(BrokerAddress(path=self.server.path, user="ann", password="secret"))
        await listener.until(lambda: self.away_or_look(bus, listener, "NOPERM"))
        await deferLater(reactor, 8 * FAST["redis_ping_interval"])
        assert "NOPERM" in bus.away

    async def test_a_join_that_is_given_up_leaves_nothing_to_wait_for_it(self) -> None:
        self.server.start()
        bus, _ = await self.ready(self.url, "ops")
        self.server.kill()
        while bus.subscribed("ops"):  # the bus does not call anybody for that
            await deferLater(reactor, 0.01)
        asked = bus.subscribe("ops")
        asked.cancel()
        await self.assertFailure(asked, CancelledError)
        kept = bus.subscribe("ops")
        self.server.start()
        await kept

    async def test_a_broker_that_may_not_write_is_away(self) -> None:
        self.server.start()
        bus, listener = await self.ready(self.url)
        self.server.ask("CONFIG", "SET", "min-replicas-to-write", 1)
        published = bus.queues.publish("ops", messages("hello"))
        await self.away(bus, listener)
        assert bus.away.startswith("NOREPLICAS")
        self.server.ask("CONFIG", "SET", "min-replicas-to-write", 0)
        await published

    async def test_a_password_that_is_missing_is_why_it_is_away_until_it_is_not_asked_for(self) -> None:
        self.server.start("--requirepass", "secret")
        bus, listener = self.make(self.url)
        await listener.until(lambda: self.away_or_look(bus, listener, "NOAUTH"))
        with Client(self.server.path) as client:
            client.ask("AUTH", "secret")
            client.ask("CONFIG", "SET", "requirepass", "")
        await listener.until(lambda: bus.queues.open)

    async def test_user_and_password_let_it_in(self) -> None:
        self.server.start()
        self.server.ask("ACL", "SETUSER", "ann", "on", ">secret", "~*", "&*", "+@all")
        self.server.ask("ACL", "SETUSER", "default", "off")
        bus, _ = await self.ready(BrokerAddress(path=self.server.path, user="ann", password="secret"))
        await bus.queues.publish("ops", messages("hello"))

    async def test_a_wrong_password_is_said_and_never_shown(self) -> None:
        self.server.start("--requirepass", "secret")
        bus, listener = self.make(BrokerAddress(path=self.server.path, password="guess"))
        await listener.until(lambda: self.logged_or_look(listener))
        assert bus.away.startswith("could not auth: WRONGPASS")
        ((level, text),) = self.logged()
        assert (level, "guess" in text) == ("warn", False)

    # Holes, on a server that makes them

    async def test_a_broker_that_stands_still_for_a_while_costs_nobody_a_message(self) -> None:
        self.server.start()
        pair = [await self.follow(self.url, "ops", redis_connect_timeout=0.2) for _ in range(2)]
        said: list[str] = []
        for round_ in range(3):
            for name, (bus, _) in enumerate(pair):
                for number in range(20):
                    said.append(f"{round_}.{name}.{number}")
                    bus.queues.publish("ops", messages(said[-1]))
            if round_ == 1:
                self.server.freeze()
                for bus, listener in pair:
                    await self.away(bus, listener)
                for bus, listener in pair:  # and dial in vain
                    await listener.until(lambda bus=bus, listener=listener: self.away_or_look(bus, listener, "within"))  # type: ignore[misc]
                self.server.thaw()
        for bus, listener in pair:
            await bus.queues.flushed()
            await listener.until(lambda listener=listener: len(listener.texts()) == len(said))  # type: ignore[misc]
            assert (sorted(listener.texts()), listener.gaps) == (sorted(said), [])
            assert listener.offsets() == list(range(1, len(said) + 1))
            for name in (0, 1):
                own = f".{name}."
                assert [each for each in listener.texts() if own in each] == [each for each in said if own in each]
        assert pair[0][1].texts() == pair[1][1].texts()

    async def test_what_the_broker_dropped_because_a_worker_did_not_read_is_filled(self) -> None:
        self.server.start("--client-output-buffer-limit", "pubsub 64kb 0 0")
        bus, listener = await self.follow(self.url, "ops")
        await bus.queues.publish("ops", messages("before"))
        await listener.until(listener.texts)
        texts = [f"{number} " + "x" * 16_000 for number in range(100)]
        run = self.server.ask("INFO", "server").partition(b"run_id:")[2].split()[0]
        with Client(self.server.path) as client:  # it blocks: our reactor reads nothing meanwhile
            for sequence, text in enumerate(texts, 1):
                keys = (f"{self.prefix}:room:ops", f"{self.prefix}:sent:w:ops")
                history = (f"{self.prefix}:history:", ":ops")
                values = ("w", sequence, 1, encode(messages(text)), run, "none", 100, 100, 1000, 100, 0, 0)
                client.ask("EVAL", PUBLISH.source, 2, *keys, *history, *values)
            assert b"pubsub" not in client.ask("CLIENT", "LIST", "TYPE", "pubsub")  # it is gone
        await listener.until(lambda: len(listener.texts()) == 101)
        assert (listener.texts(), listener.gaps) == (["before", *texts], [])
        assert listener.offsets() == list(range(1, 102))

    # A broker that is back with less than it had

    async def resume(self, bus: Bus, listener: Follower, position: StreamPosition) -> FakeMember:
        """Give a member that came back to where it was, once it has what it missed."""
        member, live = FakeMember("m"), Deferred[None]()
        catching_up = Recovery(
            member,
            position,
            Config(),
            read=lambda after, most: bus.history.read("ops", after, most),
            tail=Tail(1_000_000),
            ordering=listener.ordering("ops"),
            live=lambda: live.callback(None),
            losses=lambda gap, count: None,
        )
        catching_up.step()
        await live
        return member

    async def restart_from_snapshot(self, bus: Bus, listener: Follower) -> tuple[str, str]:
        """Say one, two, three, have them saved; say four and five, and lose them with the broker; give both epochs."""
        for text in ("one", "two", "three"):
            first = (await bus.queues.publish("ops", messages(text))).first
        self.server.ask("SAVE")
        for text in ("four", "five"):
            await bus.queues.publish("ops", messages(text))
        await listener.until(lambda: len(listener.texts()) == 5)
        self.server.kill()
        await self.away(bus, listener)
        waiting = bus.queues.publish("ops", messages("six"))
        self.server.start()
        after = (await waiting).first
        await listener.until(
            lambda: listener.texts()[-1] == "six" and listener.ordering("ops").position.epoch == after.epoch
        )
        return first.epoch, after.epoch

    async def test_an_older_snapshot_is_another_epoch_and_who_was_there_hears_nothing_twice(self) -> None:
        self.server.start()
        bus, listener = await self.follow(self.url, "ops")
        old, new = await self.restart_from_snapshot(bus, listener)
        assert old != new
        assert listener.texts() == ["one", "two", "three", "four", "five", "six"]
        assert listener.gaps == [OffsetGap(new, 0, None)]

    async def test_who_comes_back_to_an_older_snapshot_gets_what_it_has_and_is_told_a_gap(self) -> None:
        self.server.start()
        bus, listener = await self.follow(self.url, "ops", republish_window=0)
        old, new = await self.restart_from_snapshot(bus, listener)
        for offset, missed in ((1, ["two", "three"]), (3, []), (5, [])):
            member = await self.resume(bus, listener, StreamPosition(old, offset))
            assert (member.blobs, member.events) == (blobs(missed, ["six"]), [OffsetGap(new, 0, None)])

    async def test_what_was_said_to_the_broker_last_is_in_the_new_epoch_and_not_given_twice(self) -> None:
        self.server.start()
        bus, listener = await self.follow(self.url, "ops", republish_window=60)
        old, new = await self.restart_from_snapshot(bus, listener)
        for offset, missed in ((5, []), (4, ["five"]), (3, ["four", "five"])):
            member = await self.resume(bus, listener, StreamPosition(old, offset))
            assert (member.blobs, member.events) == (blobs([], [*missed, "six"]), [OffsetGap(new, 0, None)])

    # Places, where the worker that has one is not well

    async def test_a_place_of_a_worker_that_is_gone_is_had_at_once_as_it_was_saved(self) -> None:
        self.server.start()
        one, _ = await self.ready(self.url)
        two, _ = await self.ready(self.url, takeover_timeout=60)
        kept = ResumePosition(StreamPosition("e", 7), "s1")
        one.resume_positions.save("ops", "k", "s1", kept)
        await saved(one)
        self.stop(one)
        while self.server.ask("PUBSUB", "CHANNELS", f"{self.prefix}:worker:*") != [two.resume_positions.channel]:
            await deferLater(reactor, 0.01)
        assert await two.resume_positions.claim("ops", "k", "s2") == kept

    async def test_a_place_of_another_worker_is_had_as_it_stands_there(self) -> None:
        self.server.start()
        one, listener = await self.ready(self.url)
        two, _ = await self.ready(self.url, takeover_timeout=60)
        await one.resume_positions.claim("ops", "k", "s1")
        listener.resume_positions["ops", "s1"] = ResumePosition(StreamPosition("e", 9), "s1")
        assert await two.resume_positions.claim("ops", "k", "s2") == ResumePosition(StreamPosition("e", 9), "s1")
        assert listener.disconnected == ["s1"]

    async def test_a_place_of_a_worker_that_is_frozen_is_had_in_time_as_it_was_saved(self) -> None:
        self.server.start()
        one, _ = await self.ready(self.url)
        two, _ = await self.ready(self.url, takeover_timeout=0.2)
        kept = ResumePosition(StreamPosition("e", 7), "s1")
        one.resume_positions.save("ops", "k", "s1", kept)
        await saved(one)
        with Client(self.server.path) as frozen:
            frozen.ask("SUBSCRIBE", f"{self.prefix}:worker:frozen")
            self.server.ask("HSET", f"{self.prefix}:place:k:ops", "worker", "frozen")
            begun = reactor.seconds()
            assert await two.resume_positions.claim("ops", "k", "s2") == kept
            assert reactor.seconds() - begun > 0.1
            assert frozen.read()[2].startswith(b"take s1 ")

    async def test_a_place_that_is_claimed_and_saved_while_the_broker_is_away_is_so_when_it_is_back(self) -> None:
        self.server.start()
        bus, listener = await self.ready(self.url)
        self.server.freeze()
        await self.away(bus, listener)
        bus.resume_positions.save("ops", "k", "s1", ResumePosition(StreamPosition("e", 7), "s1"), left=True)
        done = saved(bus)
        claimed = bus.resume_positions.claim("dev", "k", "s1")
        self.server.thaw()
        await done
        assert await claimed == ResumePosition(None, "s1")
        assert await bus.resume_positions.claim("ops", "k", "s2") == ResumePosition(StreamPosition("e", 7), "s1")


def blobs(*parts: list[str]) -> list[bytes]:
    """Give what a bare member gets of texts that are sent part by part."""
    return [frames(*part) for part in parts if part]


class TestTls(BusTestCase):
    async def test_a_certificate_nobody_vouches_for_is_refused(self) -> None:
        pem = self_signed(Path(self.mktemp())).read_bytes()
        options = CertificateOptions(load_pem_private_key(pem, None), load_pem_x509_certificate(pem))  # type: ignore[arg-type]
        port = SSL4ServerEndpoint(reactor, 0, options, interface="127.0.0.1")
        listening = await port.listen(Factory.forProtocol(Protocol))
        self.addCleanup(listening.stopListening)
        bus, listener = self.make(f"rediss://localhost:{listening.getHost().port}")
        await listener.until(lambda: self.away_or_look(bus, listener, "certificate verify failed"))
