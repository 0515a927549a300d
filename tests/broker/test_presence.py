"""Who is in which room, on workers of their own with the real Valkey."""

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock, deferLater

from chatd.broker.bus import Bus
from chatd.broker.presence import PresenceStore
from chatd.broker.presence_list import Identity, MemberList
from chatd.broker.presence_script import NickTaken
from chatd.broker.queries import PRESENCE, Queries
from chatd.config.broker_url import BrokerAddress
from chatd.config.settings import Config
from chatd.protocol.message import PresenceEvent
from tests.broker.listening import BusListener, BusTestCase, messages, saved
from tests.broker.server import Client, Server

QUICK: dict[str, Any] = {
    "presence_list_delay": 0.05,
    "offset_check_interval": 0.1,
    "worker_presence_ttl": 1,
    "presence_leave_delay": 0.3,
}
"""What makes presence forget, and see, in no time."""

HOME, AWAY = Identity("ann", origin="home"), Identity("ann", origin="away")


class Refusing(Queries):
    """Asks a broker that refuses everything."""

    asked = 0

    def ask(self, *_: Any) -> "Deferred[Any]":
        self.asked += 1
        return fail(RuntimeError("no"))


class Taken(Queries):
    """Asks a broker in which all nicks are taken; notes how many names each step of each script tries."""

    def __init__(self, config: Config) -> None:
        super().__init__(Clock(), config)
        self.scripts: list[list[int]] = []

    def ask(self, script: Any, keys: Any, arguments: Callable[[bytes], list[Any]]) -> "Deferred[Any]":
        values, names = arguments(b"")[8:], list[int]()
        while values:
            count = values[2]
            names.append((count - 4) // 2)
            values = values[3 + count :]
        self.scripts.append(names)
        return succeed([b"1"] + [b"taken"] * len(names)) if len(self.scripts) < 1000 else Deferred()


def presence_of(queries: Queries, config: Config) -> tuple[PresenceStore, Clock]:
    clock = Clock()
    made = PresenceStore(
        clock,
        queries,
        config,
        "w",
        channel=str.encode,
        now=clock.seconds,
        changed=lambda *_: None,
        renamed=lambda *_: None,
    )
    return made, clock


def test_one_name_is_tried_then_each_time_twice_as_many_up_to_a_bound_and_not_for_ever() -> None:
    config = Config(nicks_per_attempt=4, nick_attempts=5)
    queries = Taken(config)
    presence, clock = presence_of(queries, config)
    entered = presence.enter("ops", "s1", Identity("ann"))
    failed: list[Any] = []
    entered.addErrback(failed.append)
    clock.pump([0] * 20)
    assert queries.scripts == [[1], [2], [4], [4], [4]]
    assert [failure.type for failure in failed] == [NickTaken]


def test_of_many_that_want_one_nick_no_script_tries_more_names_than_the_bound() -> None:
    config = Config(nicks_per_attempt=8, nick_attempts=5, presence_nicks_per_write=20)
    queries = Taken(config)
    presence, clock = presence_of(queries, config)
    failed: list[Any] = []
    for number in range(50):
        presence.enter("ops", f"s{number}", Identity("ann")).addErrback(failed.append)
    clock.pump([0] * 200)
    assert len(failed) == 50
    assert max(sum(names) for names in queries.scripts) <= 20


def test_a_member_that_is_not_in_the_room_yet_is_not_said_anew() -> None:
    config = Config()
    presence, _ = presence_of(Taken(config), config)
    presence.enter("ops", "s1", Identity("ann"))
    presence._store_again("ops")
    assert [step.what for step in presence._rooms["ops"].waiting] == ["enter"]


def test_members_that_cannot_be_read_are_asked_for_ever_more_rarely_and_no_more_when_nobody_watches() -> None:
    clock, config, asked = Clock(), Config(presence_list_delay=1, presence_list_max_delay=4), []
    queries = Refusing(clock, config)
    presence, clock = presence_of(queries, config)
    presence.watch("ops")
    for _ in range(16):
        clock.advance(1)
        asked.append(queries.asked)
    assert asked == [2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 6, 6]
    presence.unwatch("ops")
    assert clock.getDelayedCalls() == []


class Watching(BusTestCase):
    """Workers that watch the room ops."""

    async def worker(self, address: str, **knobs: Any) -> tuple[Bus, BusListener]:
        bus, listener = await self.ready(address, "ops", **{**QUICK, **knobs})
        bus.presence.watch("ops")
        await self.until(lambda: bus.presence._rooms["ops"].presence_list is not None)
        return bus, listener

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait for something to hold; the test's own timeout is its bound."""
        while not condition():
            await deferLater(reactor, 0.005)

    def version(self, bus: Bus) -> int:
        """Say which version of ops a worker knows."""
        presence_list = bus.presence._rooms["ops"].presence_list
        return presence_list.version if presence_list is not None else -1

    async def nicks(self, bus: Bus) -> dict[str, str]:
        """Give the nick of each member of ops."""
        members = await bus.presence.members("ops")
        assert members.present is not None
        return {each.session: each.nick for each in members.present}


class TestPresence(Watching):
    """Two workers with one Valkey."""

    @pytest.fixture(autouse=True)
    def _real_valkey(self, valkey_url: str) -> None:
        self.valkey_url = valkey_url

    async def two(self, **knobs: Any) -> tuple[Bus, BusListener, Bus, BusListener]:
        return *await self.worker(self.valkey_url, **knobs), *await self.worker(self.valkey_url, **knobs)

    def ask(self, *command: str) -> Any:
        with Client(self.valkey_url.removeprefix("unix://")) as broker:
            return broker.ask(*command)

    async def test_members_of_all_workers_are_there_with_nick_and_time_the_oldest_first(self) -> None:
        one, _, two, _ = await self.two()
        await one.presence.enter("ops", "s1", Identity("ann"))
        await two.presence.enter("ops", "s2", Identity())
        members: MemberList = await one.presence.members("ops")
        assert members.count == 2
        assert [(each.session, each.nick) for each in members.present or ()] == [("s1", "ann"), ("s2", "")]
        assert all(each.since > 1_700_000_000_000 for each in members.present or ())

    async def test_who_comes_goes_and_changes_its_nick_is_told_on_all_workers(self) -> None:
        one, one_listener, two, two_listener = await self.two()
        await one.presence.enter("ops", "s1", Identity("ann"))
        await one.presence.rename("ops", "s1", Identity("anna"))
        one.presence.leave("ops", "s1", linger=False)
        told = [
            PresenceEvent("join", "s1", "ann", ""),
            PresenceEvent("nick", "s1", "anna", "ann"),
            PresenceEvent("leave", "s1", "anna", ""),
        ]
        for listener in (one_listener, two_listener):
            await listener.until(lambda listener=listener: len(listener.presence_events) == 3)  # type: ignore[misc]
            assert listener.presence_events == told
        assert await self.nicks(two) == {}

    async def test_who_leaves_is_said_to_have_left_once_what_it_said_is_logged(self) -> None:
        one, listener, _, _ = await self.two()
        await one.presence.enter("ops", "s1", Identity("ann"))
        kept: Deferred[None] = Deferred()
        listener.logged = lambda: kept  # type: ignore[method-assign]
        one.presence.leave("ops", "s1", linger=False)
        comes_back = one.presence.enter("ops", "s1", Identity("ann"))
        await self.nicks(one)  # an answer that was asked for later is there
        assert [change.what for change in listener.presence_events] == ["join"]
        said = one.queues.publish("ops", messages("last words"))
        listener.logged = lambda: None  # type: ignore[method-assign]
        kept.callback(None)
        await said
        await comes_back
        await listener.until(lambda: len(listener.presence_events) == 3)
        assert [change.what for change in listener.presence_events] == ["join", "leave", "join"]

    async def test_a_nick_that_is_taken_goes_to_the_first_and_who_comes_then_gets_another(self) -> None:
        one, _, two, _ = await self.two()
        assert await one.presence.enter("ops", "s1", Identity("ann")) == "ann"
        assert [
            await bus.presence.enter("ops", f"{bus}", Identity(nick)) for bus, nick in ((two, "ann"), (one, "Ann"))
        ] == [
            "ann*2",
            "Ann*3",
        ]

    async def test_a_nick_that_looks_like_one_in_use_is_taken_until_that_one_has_left(self) -> None:
        one, _, two, _ = await self.two()
        assert await one.presence.enter("ops", "s1", Identity("Bill")) == "Bill"
        for number, nick in enumerate(("BiII", "b\u0456ll", "Bi1l", "bill")):
            assert await two.presence.enter("ops", f"b{number}", Identity(nick)) == f"{nick}*2"
            two.presence.leave("ops", f"b{number}", linger=False)
        one.presence.leave("ops", "s1", linger=False)
        await saved(one)
        await saved(two)
        assert await two.presence.enter("ops", "s2", Identity("BiII")) == "BiII"

    async def test_there_is_always_another_one(self) -> None:
        one, _, two, _ = await self.two(nicks_per_attempt=2)
        given = [
            await bus.presence.enter("ops", f"{number}", Identity("ann")) for number, bus in enumerate((one, two) * 4)
        ]
        assert sorted(given) == ["ann", "ann*2", "ann*3", "ann*4", "ann*5", "ann*6", "ann*7", "ann*8"]

    async def test_a_nick_that_many_want_takes_few_questions(self) -> None:
        one, _, two, _ = await self.two()
        for number in range(40):
            await one.presence.enter("ops", f"{number}", Identity("ann"))
        asked = 0
        ask = two._queries.ask

        def count(*question: Any) -> Any:
            nonlocal asked
            asked += question[0] is PRESENCE
            return ask(*question)

        two.presence._queries.ask = count  # type: ignore[method-assign, assignment]
        assert await two.presence.enter("ops", "another", Identity("ann"))
        assert asked <= 6

    async def test_a_nick_is_free_again_when_its_member_has_left_or_taken_another(self) -> None:
        one, _, two, _ = await self.two()
        await one.presence.enter("ops", "s1", Identity("ann"))
        await one.presence.rename("ops", "s1", Identity("anna"))
        assert await two.presence.enter("ops", "s2", Identity("ann")) == "ann"
        two.presence.leave("ops", "s2", linger=False)
        await saved(two)
        assert await one.presence.rename("ops", "s1", Identity("ann")) == "ann"

    # Steps that cannot be done

    async def test_who_changes_its_nick_while_the_broker_has_lost_it_is_said_anew_and_gets_the_nick(self) -> None:
        one, _, two, listener = await self.two(offset_check_interval=60)
        await two.presence.enter("ops", "s2", Identity("eve"))
        await one.presence.enter("ops", "s1", Identity("ann"))
        self.ask("DEL", f"{self.prefix}:here:{one.presence._worker}:ops", f"{self.prefix}:nicks:ops")
        assert await one.presence.rename("ops", "s1", Identity("bob")) == "bob"
        assert await self.nicks(one) == {"s1": "bob", "s2": "eve"}
        await listener.until(lambda: len(listener.presence_events) == 3)
        assert listener.presence_events[1:] == [
            PresenceEvent("join", "s1", "ann", ""),
            PresenceEvent("nick", "s1", "bob", "ann"),
        ]

    async def test_who_changes_its_nick_after_its_author_came_back_elsewhere_changes_nothing(
        self,
    ) -> None:
        one, _, two, _ = await self.two()
        await one.presence.enter("ops", "s1", Identity("ann"))
        assert await two.presence.enter("ops", "s1", Identity("ann")) == "ann"
        assert await one.presence.rename("ops", "s1", Identity("bob")) == "ann"
        one.presence.leave("ops", "s1", linger=False)
        await saved(one)
        assert await self.nicks(two) == {"s1": "ann"}
        assert await two.presence.rename("ops", "s1", Identity("carl")) == "carl"

    async def test_who_changes_its_nick_and_is_nowhere_keeps_none(self) -> None:
        one, _, _, _ = await self.two()
        assert await one.presence.rename("ops", "s1", Identity("bob")) == ""
        assert await self.nicks(one) == {}

    async def test_where_all_names_are_taken_that_is_an_error_and_to_speak_under_one_is_refused(self) -> None:
        one, _, two, _ = await self.two(nicks_per_attempt=2, nick_attempts=3)
        for number in range(5):
            await one.presence.enter("ops", f"s{number}", Identity("ann"))
        for bus, author in ((one, "s6"), (two, "s7")):
            with pytest.raises(NickTaken):
                await bus.presence.enter("ops", author, Identity("ann"))
            bus.presence.leave("ops", author, linger=False)
        assert await two.presence.find_nick("ops", Identity("ann", "sub\0ann")) == ""
        await two.presence.enter("ops", "s8", Identity("bob"))
        with pytest.raises(NickTaken):
            await two.presence.rename("ops", "s8", Identity("ann"))
        assert (await self.nicks(one))["s8"] == "bob"

    # Whose a nick is

    async def test_a_subject_has_one_nick_however_many_were_taken_when_it_came(self) -> None:
        one, _, two, _ = await self.two()
        for number in range(20):
            await one.presence.enter("ops", f"s{number}", Identity("boss"))
        other = Identity("boss", "sub\0b2")
        assert await two.presence.enter("ops", "t1", other) == "boss*21"
        for number in range(20):
            one.presence.leave("ops", f"s{number}", linger=False)
        await saved(one)
        assert await one.presence.enter("ops", "t2", other) == "boss*21"
        assert await one.presence.find_nick("ops", other) == "boss*21"

    async def test_what_is_kept_of_a_member_is_as_long_however_many_its_subject_has(self) -> None:
        one, _, _, _ = await self.two()
        boss = Identity("boss", "sub\0boss")
        for number in range(100):
            await one.presence.enter("ops", f"s{number}", boss)
        nicks, owners = f"{self.prefix}:nicks:ops", f"{self.prefix}:owners:ops"
        assert max(len(value) for value in self.ask("HGETALL", nicks)) < 50
        assert (self.ask("TYPE", owners), self.ask("ZCARD", owners)) == (b"zset", 100)

    async def test_a_subject_whose_members_the_broker_has_lost_keeps_no_nick(self) -> None:
        one, _, two, _ = await self.two(offset_check_interval=60)
        await one.presence.enter("ops", "s1", Identity("boss", "sub\0boss"))
        await two.presence.enter("ops", "s2", Identity("bob"))
        self.ask("DEL", f"{self.prefix}:here:{one.presence._worker}:ops")
        assert await two.presence.enter("ops", "s3", Identity("boss", "sub\0b2")) == "boss"
        assert self.ask("ZRANGE", f"{self.prefix}:owners:ops", "0", "-1") == [b"sub%00b2 s3"]

    async def test_a_subject_that_is_said_anew_keeps_its_nick_though_it_was_forgotten(self) -> None:
        one, _, two, _ = await self.two(offset_check_interval=60)
        boss = Identity("boss", "sub\0boss")
        await one.presence.enter("ops", "s1", boss)
        await two.presence.enter("ops", "s2", Identity("bob"))
        self.ask("DEL", f"{self.prefix}:owners:ops")
        assert await two.presence.enter("ops", "s1", boss) == "boss"
        assert await two.presence.enter("ops", "s3", Identity("boss", "sub\0b2")) == "boss*2"

    async def test_whose_a_nick_is_is_known_as_long_as_members_are_there_and_forgotten_with_the_last(self) -> None:
        one, _, _, _ = await self.two()
        owners = f"{self.prefix}:owners:ops"
        await one.presence.enter("ops", "s1", Identity("boss", "sub\0boss"))
        self.ask("EXPIRE", owners, "5")
        await self.until(lambda: self.ask("TTL", owners) > 5)
        one.presence.leave("ops", "s1", linger=False)
        await saved(one)
        kinds = {each.decode().split(":")[1] for each in self.ask("KEYS", f"{self.prefix}:*")}
        assert kinds <= {"room", "alive", "probe"}

    async def test_all_connections_of_a_subject_have_one_nick_and_nobody_else_gets_it(self) -> None:
        one, _, two, listener = await self.two()
        boss, other = Identity("boss", "sub\0boss"), Identity("boss", "sub\0b2")
        assert await one.presence.enter("ops", "s1", boss) == "boss"
        assert await two.presence.enter("ops", "s2", boss) == "boss"
        assert await two.presence.enter("ops", "s3", other) == "boss*2"
        assert await one.presence.enter("ops", "s4", other) == "boss*2"
        assert await one.presence.enter("ops", "s5", Identity("Boss")) == "Boss*3"
        await listener.until(lambda: len(listener.presence_events) == 5)
        assert [(change.nick, change.subject) for change in listener.presence_events] == [
            ("boss", "boss"),
            ("boss", "boss"),
            ("boss*2", "b2"),
            ("boss*2", "b2"),
            ("Boss*3", ""),
        ]

    async def test_a_nick_stays_its_subjects_until_the_last_connection_has_left(self) -> None:
        one, _, two, _ = await self.two()
        boss, other = Identity("boss", "sub\0boss"), Identity("boss", "sub\0b2")
        for number, bus in enumerate((one, two, one)):
            await bus.presence.enter("ops", f"s{number}", boss)
        for author, bus in (("s0", one), ("s1", two)):
            bus.presence.leave("ops", author, linger=False)
            await saved(bus)
            assert await two.presence.enter("ops", f"{author}-other", other) == "boss*2"
        one.presence.leave("ops", "s2", linger=False)
        await saved(one)
        assert await one.presence.enter("ops", "s3", Identity("boss", "sub\0b3")) == "boss"

    async def test_a_subject_that_has_a_number_has_it_on_all_its_connections_though_the_nick_is_free(self) -> None:
        one, _, two, _ = await self.two()
        other = Identity("boss", "sub\0b2")
        await one.presence.enter("ops", "s1", Identity("boss", "sub\0boss"))
        assert await two.presence.enter("ops", "s2", other) == "boss*2"
        one.presence.leave("ops", "s1", linger=False)
        await saved(one)
        assert await one.presence.enter("ops", "s3", other) == "boss*2"

    async def test_a_nick_stays_its_subjects_when_the_worker_of_one_connection_dies(self) -> None:
        one, _, two, listener = await self.two()
        boss = Identity("boss", "sub\0boss")
        await one.presence.enter("ops", "s1", boss)
        await two.presence.enter("ops", "s2", boss)
        self.stop(one)
        await listener.until(lambda: PresenceEvent("leave", "s1", "boss", "", "boss") in listener.presence_events)
        assert await two.presence.enter("ops", "s3", Identity("boss", "sub\0b2")) == "boss*2"
        assert await two.presence.enter("ops", "s4", boss) == "boss"

    async def test_a_nick_stays_its_subjects_where_the_broker_lost_it_and_all_is_said_anew(self) -> None:
        one, heard, two, _ = await self.two()
        boss, other = Identity("boss", "sub\0boss"), Identity("boss", "sub\0b2")
        await one.presence.enter("ops", "s1", boss)
        await two.presence.enter("ops", "s2", other)
        await two.presence.enter("ops", "s3", boss)
        await self.until(lambda: len(heard.presence_events) == 3)
        version = self.version(one)
        self.ask("DEL", *[each.decode() for each in self.ask("KEYS", f"{self.prefix}:*")])
        await self.until(lambda: all(self.version(bus) != version for bus in (one, two)))
        assert await self.nicks(one) == {"s1": "boss", "s2": "boss*2", "s3": "boss"}
        one.presence.leave("ops", "s1", linger=False)
        await saved(one)
        assert await one.presence.enter("ops", "s4", Identity("boss")) == "boss*3"

    async def test_a_nick_stays_its_subjects_when_a_connection_moves_to_another_worker(self) -> None:
        one, _, two, _ = await self.two(presence_leave_delay=60)
        boss = Identity("boss", "sub\0boss")
        await one.presence.enter("ops", "s1", boss)
        await one.presence.enter("ops", "s2", boss)
        one.presence.leave("ops", "s1", linger=True)
        assert await two.presence.enter("ops", "s1", boss) == "boss"
        one.presence.leave("ops", "s2", linger=False)
        await saved(one)
        assert await one.presence.enter("ops", "s3", Identity("boss", "sub\0b2")) == "boss*2"

    async def test_a_nick_that_a_token_says_and_the_subject_of_that_name_are_two(self) -> None:
        one, _, two, _ = await self.two()
        assert await one.presence.enter("ops", "s1", Identity("carl", "nick\0carl")) == "carl"
        assert await two.presence.enter("ops", "s2", Identity("carl", "nick\0carl")) == "carl"
        assert await two.presence.enter("ops", "s3", Identity("carl", "sub\0carl")) == "carl*2"
        members = await one.presence.members("ops")
        assert [each.subject for each in members.present or ()] == ["", "", "carl"]

    async def test_a_subject_may_be_any_text(self) -> None:
        one, listener, two, _ = await self.two()
        subject = "auth0|a b%00,\n\x1f\u00e9"
        await one.presence.enter("ops", "s1", Identity("auth0", f"sub\0{subject}"))
        await two.presence.enter("ops", "s2", Identity("", f"sub\0{subject}"))  # it has no nick there
        await listener.until(lambda: len(listener.presence_events) == 2)
        assert [change.subject for change in listener.presence_events] == [subject, subject]
        members = await two.presence.members("ops")
        assert [(each.nick, each.subject) for each in members.present or ()] == [("auth0", subject), ("", subject)]

    async def test_who_is_named_by_no_token_among_those_who_are_never_gets_a_nick_without_a_number(self) -> None:
        one, _, two, _ = await self.two()
        assert await one.presence.enter("ops", "s1", Identity("bob", marked=True)) == "bob*1"
        assert await two.presence.enter("ops", "s2", Identity("bob", marked=True)) == "bob*2"
        assert await two.presence.rename("ops", "s2", Identity("ann", marked=True)) == "ann*1"
        assert await one.presence.enter("ops", "s3", Identity("bob", "sub\0bob")) == "bob"

    async def test_an_empty_room_leaves_nothing_behind_though_the_broker_had_lost_its_members(self) -> None:
        one, _ = await self.worker(self.valkey_url, offset_check_interval=60)
        await one.presence.enter("ops", "s1", Identity("boss", "sub\0boss"))
        self.ask("DEL", f"{self.prefix}:here:{one.presence._worker}:ops")
        one.presence.leave("ops", "s1", linger=False)
        await saved(one)
        kinds = {each.decode().split(":")[1] for each in self.ask("KEYS", f"{self.prefix}:*")}
        assert kinds <= {"room", "alive", "probe"}

    # Who speaks without being there

    async def test_who_is_not_there_speaks_under_a_nick_that_nobody_has_and_takes_it_from_nobody(self) -> None:
        one, listener, two, _ = await self.two()
        assert await two.presence.find_nick("ops", Identity("ann")) == "ann"
        await one.presence.enter("ops", "s1", Identity("ann"))
        for nick in ("ann", "ANN", "\u0430nn"):
            assert await two.presence.find_nick("ops", Identity(nick)) == ""
        assert await two.presence.find_nick("dev", Identity("ann")) == "ann"
        one.presence.leave("ops", "s1", linger=False)
        await saved(one)
        assert await two.presence.find_nick("ops", Identity("ann")) == "ann"
        assert await one.presence.enter("ops", "s2", Identity("ann")) == "ann"
        await listener.until(lambda: len(listener.presence_events) == 3)
        assert [change.what for change in listener.presence_events] == ["join", "leave", "join"]

    async def test_who_is_not_there_speaks_under_the_nick_of_its_subject_or_one_with_a_number(self) -> None:
        one, _, two, _ = await self.two()
        await one.presence.enter("ops", "s1", Identity("boss", "sub\0boss"))
        await one.presence.enter("ops", "s2", Identity("bob", marked=True))
        assert await two.presence.find_nick("ops", Identity("boss", "sub\0boss")) == "boss"
        assert await two.presence.find_nick("ops", Identity("Boss", "sub\0b2")) == "Boss*2"
        assert await two.presence.find_nick("ops", Identity("boss", marked=True)) == "boss*1"
        assert await two.presence.find_nick("ops", Identity("bob", marked=True)) == "bob*2"
        assert await two.presence.find_nick("ops", Identity("boss")) == ""

    async def test_to_look_for_a_nick_leaves_nothing_behind(self) -> None:
        one, _, _, _ = await self.two()
        await one.presence.find_nick("dev", Identity("ann"))
        await saved(one)
        assert "dev" not in one.presence._rooms
        kinds = {each.decode().split(":")[1] for each in self.ask("KEYS", f"{self.prefix}:*")}
        assert kinds <= {"room", "alive", "probe"}

    # A nick that a client has lost to its own last connection

    async def test_a_client_gets_its_nick_back_when_its_last_connection_has_left(self) -> None:
        one, one_listener, two, two_listener = await self.two()
        await one.presence.enter("ops", "s1", HOME)
        assert await two.presence.enter("ops", "s2", HOME) == "ann*2"
        one.presence.leave("ops", "s1", linger=False)
        await self.until(lambda: two_listener.nicks)
        assert (two_listener.nicks, one_listener.nicks) == ({"s2": "ann"}, {})
        assert await self.nicks(one) == {"s2": "ann"}
        await one_listener.until(lambda: len(one_listener.presence_events) == 4)
        assert one_listener.presence_events[2:] == [
            PresenceEvent("leave", "s1", "ann", ""),
            PresenceEvent("nick", "s2", "ann", "ann*2"),
        ]

    async def test_a_client_from_elsewhere_does_not_get_it(self) -> None:
        one, _, two, listener = await self.two()
        await one.presence.enter("ops", "s1", HOME)
        assert await two.presence.enter("ops", "s2", AWAY) == "ann*2"
        assert await two.presence.enter("ops", "s3", Identity("ann")) == "ann*3"
        assert await two.presence.enter("ops", "s4", HOME) == "ann*4"
        one.presence.leave("ops", "s1", linger=False)
        await self.until(lambda: listener.nicks)
        await saved(two)
        assert listener.nicks == {"s4": "ann"}
        two.presence.leave("ops", "s4", linger=False)
        await listener.until(lambda: PresenceEvent("leave", "s4", "ann", "") in listener.presence_events)
        await saved(two)
        assert await self.nicks(one) == {"s2": "ann*2", "s3": "ann*3"}

    async def test_of_several_one_gets_it_and_the_others_wait_for_that_one(self) -> None:
        one, _, two, _ = await self.two()
        await one.presence.enter("ops", "s1", HOME)
        for author, bus in (("s2", one), ("s3", two), ("s4", two)):
            await bus.presence.enter("ops", author, HOME)
        gone, left = "s1", {"s2", "s3", "s4"}
        while left:
            for bus in (one, two):
                bus.presence.leave("ops", gone, linger=False)
            gone = await self.who_is_ann(one, left)
            left.remove(gone)
            assert len(await self.nicks(one)) == len(left) + 1

    async def who_is_ann(self, bus: Bus, authors: set[str]) -> str:
        """Wait for one of these to be ann in ops, and return it."""
        while True:
            found = [author for author, nick in (await self.nicks(bus)).items() if nick == "ann" and author in authors]
            if found:
                (author,) = found
                return author
            await deferLater(reactor, 0.005)

    async def test_a_nick_that_somebody_else_has_taken_by_then_is_not_taken_away(self) -> None:
        one, _, two, listener = await self.two()
        await one.presence.enter("ops", "s1", HOME)
        assert await two.presence.enter("ops", "s2", HOME) == "ann*2"
        one.presence.leave("ops", "s1", linger=False)
        assert await one.presence.enter("ops", "s3", AWAY) == "ann"
        await listener.until(lambda: len(listener.presence_events) == 4)
        await saved(two)
        assert await self.nicks(one) == {"s2": "ann*2", "s3": "ann"}
        assert listener.nicks == {}

    async def test_a_client_gets_its_nick_back_when_the_worker_of_its_last_connection_is_dead(self) -> None:
        one, _, two, listener = await self.two()
        await one.presence.enter("ops", "s1", HOME)
        assert await two.presence.enter("ops", "s2", HOME) == "ann*2"
        self.stop(one)
        await self.until(lambda: listener.nicks == {"s2": "ann"})
        assert await self.nicks(two) == {"s2": "ann"}

    async def test_a_client_gets_its_nick_back_though_its_worker_did_not_hear_that_the_other_left(self) -> None:
        one, _, two, listener = await self.two()
        await one.presence.enter("ops", "s1", HOME)
        assert await two.presence.enter("ops", "s2", HOME) == "ann*2"
        two.presence.received = lambda room, data: None  # type: ignore[method-assign]
        one.presence.leave("ops", "s1", linger=False)
        await self.until(lambda: listener.nicks == {"s2": "ann"})

    async def test_a_client_gets_its_nick_back_though_its_worker_watched_the_room_only_afterwards(self) -> None:
        one, _, two, listener = await self.two()
        await one.presence.enter("ops", "s1", HOME)
        two.presence.unwatch("ops")
        assert await two.presence.enter("ops", "s2", HOME) == "ann*2"
        one.presence.leave("ops", "s1", linger=False)
        await saved(one)
        two.presence.watch("ops")
        await self.until(lambda: listener.nicks == {"s2": "ann"})

    async def test_a_client_gets_its_nick_back_though_the_other_had_left_before_it_knew_its_own(self) -> None:
        one, _, two, listener = await self.two(offset_check_interval=60)
        await one.presence.enter("ops", "s1", HOME)
        await listener.until(lambda: listener.presence_events)
        answered = two.presence._answered

        async def answer_late(*answer: Any) -> None:
            await listener.until(lambda: PresenceEvent("leave", "s1", "ann", "") in listener.presence_events)
            await deferLater(reactor, 0)  # it is heard whole
            answered(*answer)

        def answer(*answer: Any) -> Any:
            if b"taken" in answer[0]:  # it tries another
                return answered(*answer)
            two.presence._answered = answered  # type: ignore[method-assign]
            one.presence.leave("ops", "s1", linger=False)
            return Deferred.fromCoroutine(answer_late(*answer))

        two.presence._answered = answer  # type: ignore[method-assign, assignment]
        assert await two.presence.enter("ops", "s2", HOME) == "ann*2"
        await self.until(lambda: listener.nicks == {"s2": "ann"})

    async def test_a_client_that_took_another_nick_meanwhile_keeps_that(self) -> None:
        one, _, two, listener = await self.two()
        await one.presence.enter("ops", "s1", HOME)
        assert await two.presence.enter("ops", "s2", HOME) == "ann*2"
        assert await two.presence.rename("ops", "s2", Identity("bob", origin="home")) == "bob"
        one.presence.leave("ops", "s1", linger=False)
        await listener.until(lambda: PresenceEvent("leave", "s1", "ann", "") in listener.presence_events)
        await saved(two)
        assert await self.nicks(one) == {"s2": "bob"}

    async def test_a_client_that_comes_back_while_it_waits_keeps_nobody_from_getting_the_nick(self) -> None:
        one, listener = await self.worker(self.valkey_url, presence_leave_delay=60)
        await one.presence.enter("ops", "s1", HOME)
        await one.presence.enter("ops", "s2", HOME)
        one.presence.leave("ops", "s2", linger=True)
        await one.presence.enter("ops", "s2", Identity("bob", origin="home"))
        await one.presence.enter("ops", "s3", HOME)
        here = one.presence._rooms["ops"]
        assert here.ghosts == {"s1": ["s3"]}
        one.presence.leave("ops", "s2", linger=False)
        one.presence.leave("ops", "s1", linger=False)
        await self.until(lambda: listener.nicks == {"s3": "ann"})
        assert here.ghosts == {}

    async def test_nobody_who_left_is_waited_with(self) -> None:
        one, _, two, _ = await self.two()
        await one.presence.enter("ops", "s1", HOME)
        for author in ("s2", "s3"):
            await two.presence.enter("ops", author, HOME)
        here = two.presence._rooms["ops"]
        assert here.ghosts == {"s1": ["s2", "s3"]}
        two.presence.leave("ops", "s2", linger=False)
        assert here.ghosts == {"s1": ["s3"]}
        two.presence.leave("ops", "s3", linger=False)
        assert here.ghosts == {}

    async def test_rooms_do_not_share_nicks(self) -> None:
        one, _, _, _ = await self.two()
        assert [await one.presence.enter(room, "s1", Identity("ann")) for room in ("ops", "dev")] == ["ann", "ann"]

    async def test_who_comes_back_before_it_was_missed_has_never_left(self) -> None:
        one, listener, two, _ = await self.two(presence_leave_delay=60)
        await one.presence.enter("ops", "s1", Identity("ann"))
        one.presence.leave("ops", "s1", linger=True)
        assert await two.presence.enter("ops", "s1", Identity("ann")) == "ann"
        two.presence.leave("ops", "s1", linger=True)
        assert await two.presence.enter("ops", "s1", Identity("ann")) == "ann"
        await one.presence.enter("ops", "s2", Identity("bob"))
        await listener.until(lambda: len(listener.presence_events) == 2)
        assert listener.presence_events == [
            PresenceEvent("join", "s1", "ann", ""),
            PresenceEvent("join", "s2", "bob", ""),
        ]

    async def test_who_does_not_come_back_has_left(self) -> None:
        one, listener, _, _ = await self.two(presence_leave_delay=0.05)
        await one.presence.enter("ops", "s1", Identity("ann"))
        one.presence.leave("ops", "s1", linger=True)
        await listener.until(lambda: len(listener.presence_events) == 2)
        assert listener.presence_events[1] == PresenceEvent("leave", "s1", "ann", "")

    async def test_who_came_back_elsewhere_does_not_leave_when_its_time_is_up_here(self) -> None:
        one, listener, two, _ = await self.two(presence_leave_delay=0.05)
        await one.presence.enter("ops", "s1", Identity("ann"))
        one.presence.leave("ops", "s1", linger=True)
        await two.presence.enter("ops", "s1", Identity("ann"))
        await self.until(lambda: not one.presence._rooms["ops"].members)
        await saved(one)
        assert await self.nicks(one) == {"s1": "ann"}
        assert [change.what for change in listener.presence_events] == ["join"]

    async def test_who_came_back_elsewhere_stays_there_though_its_last_worker_says_its_members_anew(self) -> None:
        one, listener, two, _ = await self.two(offset_check_interval=60)
        await one.presence.enter("ops", "s1", Identity("ann"))
        one.presence.leave("ops", "s1", linger=True)
        await two.presence.enter("ops", "s1", Identity("ann"))
        one.presence._store_again("ops")
        await self.until(lambda: not one.presence._rooms["ops"].members)
        await saved(one)
        assert await self.nicks(one) == {"s1": "ann"}
        assert [change.what for change in listener.presence_events] == ["join"]

    async def test_who_lingers_is_said_anew_too(self) -> None:
        one, _ = await self.worker(self.valkey_url, presence_leave_delay=60, offset_check_interval=60)
        await one.presence.enter("ops", "s1", Identity("ann"))
        one.presence.leave("ops", "s1", linger=True)
        self.ask("DEL", *[each.decode() for each in self.ask("KEYS", f"{self.prefix}:*")])
        one.presence._store_again("ops")
        await saved(one)
        assert await self.nicks(one) == {"s1": "ann"}

    async def test_the_members_of_a_worker_that_is_dead_are_gone_and_their_nicks_free(self) -> None:
        one, _, two, listener = await self.two()
        await one.presence.enter("ops", "s1", Identity("ann"))
        await two.presence.enter("ops", "s2", Identity("bob"))
        self.stop(one)
        await listener.until(lambda: PresenceEvent("leave", "s1", "ann", "") in listener.presence_events)
        assert await self.nicks(two) == {"s2": "bob"}
        assert await two.presence.enter("ops", "s3", Identity("ann")) == "ann"

    async def test_a_worker_that_was_taken_for_dead_says_its_members_anew(self) -> None:
        one, heard, two, listener = await self.two(offset_check_interval=60)
        await one.presence.enter("ops", "s1", Identity("ann"))
        await two.presence.enter("ops", "s2", Identity("bob"))
        self.ask("DEL", f"{self.prefix}:alive:{one.presence._worker}")
        two._comparison.run()
        await listener.until(lambda: PresenceEvent("leave", "s1", "ann", "") in listener.presence_events)
        assert await two.presence.enter("ops", "s3", Identity("ann")) == "ann"
        one._comparison.run()
        await listener.until(lambda: PresenceEvent("join", "s1", "ann*2", "") in listener.presence_events)
        await heard.until(lambda: heard.nicks)
        assert heard.nicks == {"s1": "ann*2"}

    async def test_where_the_broker_lost_it_all_is_said_anew_and_nothing_told(self) -> None:
        one, one_listener, two, two_listener = await self.two()
        await one.presence.enter("ops", "s1", Identity("ann"))
        await two.presence.enter("ops", "s2", Identity("bob"))
        await self.until(lambda: len(one_listener.presence_events) == len(two_listener.presence_events) == 2)
        version = self.version(one)
        self.ask("DEL", *[each.decode() for each in self.ask("KEYS", f"{self.prefix}:*")])
        await self.until(lambda: all(self.version(bus) != version for bus in (one, two)))
        assert await self.nicks(one) == {"s1": "ann", "s2": "bob"}
        assert (len(one_listener.presence_events), len(two_listener.presence_events)) == (2, 2)

    async def test_what_was_not_heard_is_told_late(self) -> None:
        one, listener, two, _ = await self.two()
        one.presence.received = lambda room, data: None  # type: ignore[method-assign]
        await two.presence.enter("ops", "s2", Identity("bob"))
        await listener.until(lambda: listener.presence_events)
        assert listener.presence_events == [PresenceEvent("join", "s2", "bob", "")]

    async def test_rooms_with_more_than_the_limit_have_a_count_and_tell_nothing(self) -> None:
        one, listener, two, _ = await self.two(presence_limit=2, offset_check_interval=60)
        for number in range(4):
            await two.presence.enter("ops", f"s{number}", Identity(f"n{number}"))
        members = await one.presence.members("ops")
        assert (members.count, members.present) == (4, None)
        two.presence.leave("ops", "s3", linger=False)
        two.presence.leave("ops", "s2", linger=False)
        await saved(two)
        await self.until(lambda: len(one.presence._rooms["ops"].presence_list._known or ()) == 2)  # type: ignore[union-attr]
        two.presence.leave("ops", "s1", linger=False)
        await listener.until(lambda: len(listener.presence_events) == 3)
        assert [(each.what, each.nick) for each in listener.presence_events] == [
            ("join", "n0"),
            ("join", "n1"),
            ("leave", "n1"),
        ]

    async def test_a_nick_is_taken_in_a_room_beyond_the_limit_too(self) -> None:
        one, _, two, _ = await self.two(presence_limit=0)
        assert [await bus.presence.enter("ops", f"{bus}", Identity("ann")) for bus in (one, two)] == ["ann", "ann*2"]

    async def test_rooms_are_listed_by_name_with_the_members_of_all_workers_and_the_newest_message(self) -> None:
        one, _, two, _ = await self.two()
        await one.history.read("ops", None, 1)  # as every room begins
        await one.presence.enter("ops", "s1", Identity("ann"))
        await two.presence.enter("ops", "s2", Identity())
        await two.queues.publish("dev", messages("a", "b"))
        await two.history.read("empty", None, 1)  # somebody looked at it, and nobody is there
        listed, more = await one.presence.list_rooms()
        assert [(each.room, each.count, each.top.offset) for each in listed] == [("dev", 0, 2), ("ops", 2, 0)]
        assert not more

    async def test_rooms_are_listed_without_the_members_of_a_dead_worker(self) -> None:
        one, _ = await self.worker(self.valkey_url)
        await one.history.read("ops", None, 1)
        await one.presence.enter("ops", "s1", Identity("ann"))
        self.ask("HSET", f"{self.prefix}:presence:ops", "dead", "1")
        self.ask("HSET", f"{self.prefix}:here:dead:ops", "s0", "1 zoe zoe")
        listed, _ = await one.presence.list_rooms()
        assert [(each.room, each.count) for each in listed] == [("ops", 1)]

    async def test_rooms_are_listed_without_those_of_another_run_of_the_broker(self) -> None:
        one, _ = await self.worker(self.valkey_url)
        await one.queues.publish("old", messages("a"))
        self.ask("HSET", f"{self.prefix}:room:old", "run", "another")
        assert await one.presence.list_rooms() == ([], False)

    async def test_rooms_are_listed_in_steps(self) -> None:
        one, _ = await self.worker(self.valkey_url, room_list_keys_per_scan=3, room_list_scans=100_000)
        names = sorted(f"room{number}" for number in range(50))
        for name in names:
            await one.queues.publish(name, messages("a"))
        listed, more = await one.presence.list_rooms()
        assert ([each.room for each in listed], more) == (names, False)

    async def test_no_more_rooms_are_listed_than_may_be(self) -> None:
        one, _ = await self.worker(self.valkey_url, listed_rooms=5)
        for number in range(6):
            await one.queues.publish(f"room{number}", messages("a"))
        listed, more = await one.presence.list_rooms()
        assert (len(listed), more) == (5, True)

    async def test_no_more_keys_are_looked_at_than_may_be(self) -> None:
        one, _ = await self.worker(self.valkey_url, room_list_keys_per_scan=1, room_list_scans=2)
        for number in range(50):
            await one.queues.publish(f"room{number}", messages("a"))
        listed, more = await one.presence.list_rooms()
        assert len(listed) < 50
        assert more

    async def test_it_is_told_which_message_was_the_newest(self) -> None:
        one, listener, _, _ = await self.two()
        heard: list[Any] = []
        listener.presence_changed = lambda room, after, changes: heard.append((after.offset, *changes))  # type: ignore[method-assign]
        await one.queues.publish("ops", messages("a", "b"))
        await one.presence.enter("ops", "s1", Identity("ann"))
        await self.until(lambda: heard)
        assert heard == [(2, PresenceEvent("join", "s1", "ann", ""))]

    async def test_many_that_come_in_one_turn_are_told_in_one(self) -> None:
        one, listener, _, _ = await self.two()
        entered = [one.presence.enter("ops", f"s{number}", Identity("guest")) for number in range(100)]
        nicks = [await each for each in entered]
        assert len(set(nicks)) == 100
        await listener.until(lambda: len(listener.presence_events) == 100)

    async def test_the_last_one_to_leave_leaves_nothing_behind(self) -> None:
        one, _, _, _ = await self.two()
        await one.presence.enter("ops", "s1", Identity("ann"))
        one.presence.leave("ops", "s1", linger=False)
        await saved(one)
        kinds = {each.decode().split(":")[1] for each in self.ask("KEYS", f"{self.prefix}:*")}
        assert kinds <= {"room", "alive", "probe"}


class TestOutages(Watching):
    """A Valkey that goes away."""

    def setUp(self) -> None:
        super().setUp()
        self.server = Server()
        self.server.start()
        self.addCleanup(self.server.close)

    async def test_a_room_whose_members_could_not_be_read_at_first_is_watched_once_they_can_be(self) -> None:
        one, _ = await self.worker(self.server.url)
        await one.presence.enter("ops", "s0", Identity("eve"))
        user = ("ACL", "SETUSER", "ann", "on", ">secret", "~*", "&*", "+@all")
        self.server.ask(*user, "-hgetall")
        address = BrokerAddress(path=self.server.path, user="ann", password="secret")
        two, listener = await self.ready(
            address, "ops", **{**QUICK, "redis_query_timeout": 0.01, "offset_check_interval": 60}
        )
        two.presence.watch("ops")
        await self.until(lambda: two.presence._rooms["ops"].failures > 1)
        await one.presence.enter("ops", "s1", Identity("ann"))
        await self.until(lambda: two.presence._rooms["ops"].early)
        self.server.ask(*user)
        await listener.until(lambda: listener.presence_events)
        await one.presence.enter("ops", "s2", Identity("bob"))
        await listener.until(lambda: len(listener.presence_events) == 2)
        assert listener.presence_events == [
            PresenceEvent("join", "s1", "ann", ""),
            PresenceEvent("join", "s2", "bob", ""),
        ]

    async def test_who_comes_while_the_broker_is_away_is_there_when_it_is_back(self) -> None:
        one, _ = await self.worker(self.server.url)
        two, listener = await self.worker(self.server.url)
        await one.presence.enter("ops", "s1", Identity("ann"))
        await listener.until(lambda: listener.presence_events)
        self.server.kill()
        await self.until(lambda: not one.queues.open and not two.queues.open)
        entered = two.presence.enter("ops", "s2", Identity("bob"))
        one.presence.leave("ops", "s1", linger=False)
        self.server.start()
        assert await entered == "bob"
        await self.until(lambda: one.queues.open and two.queues.open)
        for bus in (one, two):
            while await self.nicks(bus) != {"s2": "bob"}:
                await deferLater(reactor, 0.02)
        await listener.until(lambda: len(listener.presence_events) == 3)
        assert {each.what for each in listener.presence_events[1:]} == {"join", "leave"}
