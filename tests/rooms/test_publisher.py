"""What members say: taken, logged, handed to the bus; who waits, and who is told what went wrong."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from chatd.broker.publish_queue import NotPublished, NotSynced
from chatd.chatlog.line import LogEntry
from chatd.chatlog.writer import Sync
from chatd.config.settings import Config
from chatd.protocol.close_codes import LOG_AWAY, OUR_FAULT
from chatd.protocol.message import Message
from tests.fakes import Events, FakeBus, FakeMember
from tests.rooms.server import INTERVAL, PACED, TURNS, ChatServer, frames, make_server

SHORT = INTERVAL / 16
RETRY = Config.chat_log_lock_retry_delay


@pytest.fixture
def server() -> ChatServer:
    return make_server(TURNS, FakeBus())


@pytest.fixture
def paced() -> ChatServer:
    return make_server(PACED, FakeBus())


def test_several_messages_of_one_author_at_a_time_are_one_entry_and_numbered_in_their_order(server: ChatServer) -> None:
    ann, bob = server.subscriber("ann"), server.subscriber("bob")
    server.publish(ann, "one", "two", "three")
    server.publish(bob, "four")
    server.settle()
    assert server.chat.batches == [["one", "two", "three", "four"]]
    assert [len(entry.messages) for entry in server.chat.events[0]["entries"]] == [3, 1]
    [(_, messages)] = server.bus.published
    assert [each.id for each in messages] == ["ann.1", "ann.2", "ann.3", "bob.4"]
    assert (ann.blobs, bob.blobs) == ([frames("four")], [frames("one", "two", "three")])


def test_a_message_is_logged_before_it_is_published(server: ChatServer) -> None:
    server.publish(server.subscriber("ann"), "hello")
    server.end_turn()
    assert server.chat.batches == [["hello"]]
    assert server.chat.published_before == [0]
    assert len(server.bus.published) == 1


def test_a_message_has_room_address_author_time_and_an_id_of_its_own(server: ChatServer) -> None:
    ann = server.subscriber("ann")
    server.publish(ann, "one")
    server.publish(ann, "two")
    server.end_turn()
    first, second = server.chat.events[0]["entries"]
    assert first == LogEntry("ops", "192.0.2.1", [Message("ann.1", 1_795_379_625_123, "ann", "one")])
    assert first.messages[0].id != second.messages[0].id
    assert server.bus.published == [("ops", [*first.messages, *second.messages])]


def test_a_turn_is_one_write_to_the_log_and_one_batch_a_room(server: ChatServer) -> None:
    ann, eve = server.subscriber("ann", "ops"), server.subscriber("eve", "dev")
    for member, room, text in ((ann, "ops", "1"), (eve, "dev", "2"), (ann, "ops", "3")):
        server.hub.publisher.publish(room, member, [text])
    assert len(server.clock.getDelayedCalls()) == 1
    server.end_turn()
    assert server.chat.batches == [["1", "2", "3"]]
    published = [(room, [message.text for message in messages]) for room, messages in server.bus.published]
    assert published == [("ops", ["1", "3"]), ("dev", ["2"])]


def test_a_turn_that_is_more_than_a_batch_goes_in_several_and_what_was_said_at_once_in_one() -> None:
    server = make_server(Config(flush_interval=0, batch_bytes=10), FakeBus())
    ann = server.subscriber("ann")
    for texts in (["12345"], ["123456"], ["x" * 8, "y" * 8], ["1"], ["2", "3"]):
        server.hub.publisher.publish("ops", ann, texts)
    server.end_turn()
    assert server.chat.batches == [["12345", "123456", "x" * 8, "y" * 8, "1", "2", "3"]]
    assert server.published == [["12345"], ["123456"], ["x" * 8, "y" * 8], ["1", "2", "3"]]


def test_each_turn_is_flushed(server: ChatServer) -> None:
    ann = server.subscriber("ann")
    for text in ("one", "two"):
        server.publish(ann, text)
        server.end_turn()
    assert server.chat.batches == [["one"], ["two"]]


def test_an_idle_flush_neither_logs_nor_publishes(server: ChatServer) -> None:
    server.hub.publisher.flush()
    assert (server.chat.batches, server.bus.published) == ([], [])


def test_what_cannot_be_logged_is_refused_and_not_published(server: ChatServer) -> None:
    ann, bob = server.subscriber("ann"), server.subscriber("bob")
    server.chat.broken = True
    server.publish(ann, "one")
    server.publish(ann, "two")
    server.publish(bob, "three")
    server.settle()
    assert server.bus.published == []
    assert (ann.events, bob.events) == ([LOG_AWAY], [LOG_AWAY])
    assert (ann.blobs, bob.blobs) == ([], [])


def test_the_next_turn_is_taken_when_the_log_is_back(server: ChatServer) -> None:
    ann, bob = server.subscriber("ann"), server.subscriber("bob")
    server.chat.broken = True
    server.publish(ann, "lost")
    server.end_turn()
    server.chat.broken = False
    server.publish(ann, "kept")
    server.settle()
    assert bob.blobs == [frames("kept")]


@pytest.mark.parametrize(
    ("refusal", "outcome"),
    [(NotPublished("no"), "refused"), (NotPublished("the server stopped", unknown=True), "unknown")],
)
def test_what_was_not_published_gets_a_second_line_and_is_refused(
    server: ChatServer, refusal: NotPublished, outcome: str
) -> None:
    ann = server.subscriber("ann")
    server.bus.refuse = refusal
    server.publish(ann, "one")
    server.publish(ann, "two")
    server.end_turn()
    taken, second = server.chat.events
    assert second["outcome"] == outcome
    assert second["entries"] == taken["entries"]
    assert second["now"] == 1_795_379_625_123
    assert ann.events == [OUR_FAULT]


def test_only_the_room_that_was_not_published_is_refused() -> None:
    class Choosy(FakeBus):
        def publish(
            self,
            room: str,
            messages: Sequence[Message],
            ids: Mapping[int, str] | None = None,
            ticket: int = 0,
            weight: int | None = None,
        ) -> Any:
            self.refuse = NotPublished("no") if room == "dev" else None
            return super().publish(room, messages, ids)

    server = make_server(TURNS, Choosy())
    ann, eve = server.subscriber("ann", "ops"), server.subscriber("eve", "dev")
    server.publish(ann, "one")
    server.hub.publisher.publish("dev", eve, ["two"])
    server.end_turn()
    assert (ann.events, eve.events) == ([], [OUR_FAULT])
    assert server.chat.batches == [["one", "two"], ["two"]]


def test_a_second_line_that_cannot_be_logged_is_said_and_the_author_told(server: ChatServer, events: Events) -> None:
    ann = server.subscriber("ann")
    server.bus.refuse = NotPublished("no")
    server.chat.takes_outcomes = False
    server.publish(ann, "one")
    server.end_turn()
    assert ann.events == [OUR_FAULT]
    assert events.said == [("error", "1 messages in the chat log were not published")]


def test_the_way_in_is_open_while_the_bus_is(server: ChatServer) -> None:
    assert (server.hub.publisher.open, server.hub.publisher.away) == (True, "")
    server.bus.full = True
    assert (server.hub.publisher.open, server.hub.publisher.away) == (False, "")
    server.bus.full, server.bus.away = False, "gone"
    assert (server.hub.publisher.open, server.hub.publisher.away) == (False, "gone")


def test_one_turn_takes_no_more_than_the_window_has_room_for(server: ChatServer) -> None:
    ann = server.subscriber("ann")
    server.bus.space = 10
    server.publish(ann, "12345")
    assert server.hub.publisher.open
    server.publish(ann, "67890")
    assert not server.hub.publisher.open
    server.end_turn()
    assert server.hub.publisher.open


def test_a_member_that_waits_for_a_full_turn_carries_on_once_that_is_published(server: ChatServer) -> None:
    published: list[int] = []

    class Waiting(FakeMember):
        def resume_publishing(self) -> None:
            published.append(len(server.bus.published))

    ann = server.subscriber("ann")
    server.bus.space = 1
    server.publish(ann, "12345")
    server.hub.publisher.wait(Waiting("bob"))
    assert published == []
    server.end_turn()
    assert published == [1]


def test_those_who_wait_carry_on_in_order_when_the_window_opens(server: ChatServer) -> None:
    order: list[str] = []

    class Waiting(FakeMember):
        def resume_publishing(self) -> None:
            order.append(self.id)

    server.bus.full = True
    for name in ("ann", "bob", "eve"):
        server.hub.publisher.wait(Waiting(name))
    server.hub.bus_changed()
    assert order == []
    server.bus.full = False
    server.hub.bus_changed()
    assert order == ["ann", "bob", "eve"]
    server.hub.bus_changed()
    assert order == ["ann", "bob", "eve"]


def test_one_that_fills_the_window_keeps_the_others_waiting_in_their_order(server: ChatServer) -> None:
    order: list[str] = []

    class Filling(FakeMember):
        def resume_publishing(self) -> None:
            order.append(self.id)
            server.bus.full = True

    server.bus.full = True
    for name in ("ann", "bob", "eve"):
        server.hub.publisher.wait(Filling(name))
    for _ in range(3):
        server.bus.full = False
        server.hub.bus_changed()
    assert order == ["ann", "bob", "eve"]


def test_one_that_must_wait_again_comes_after_those_who_waited_longer(server: ChatServer) -> None:
    order: list[str] = []

    class Greedy(FakeMember):
        def resume_publishing(self) -> None:
            order.append(self.id)
            server.bus.full = True
            server.hub.publisher.wait(self)

    server.bus.full = True
    for name in ("ann", "bob"):
        server.hub.publisher.wait(Greedy(name))
    for _ in range(4):
        server.bus.full = False
        server.hub.bus_changed()
    assert order == ["ann", "bob", "ann", "bob"]


def test_those_who_wait_are_told_that_the_bus_is_away_and_go_on_waiting(server: ChatServer) -> None:
    ann, bob = server.subscriber("ann"), server.subscriber("bob")
    server.bus.away = "gone"
    server.hub.publisher.wait(ann)
    server.hub.bus_changed()
    assert (ann.events, bob.events) == (["bus away"], [])
    server.bus.away = ""
    server.hub.bus_changed()
    assert (ann.events, bob.events) == (["bus away", "carry on"], [])


def test_one_that_stops_waiting_is_told_nothing(server: ChatServer) -> None:
    ann = server.subscriber("ann")
    server.bus.full = True
    server.hub.publisher.wait(ann)
    server.hub.publisher.stop_waiting(ann)
    server.hub.publisher.stop_waiting(ann)
    server.bus.full = False
    server.hub.bus_changed()
    assert ann.events == []


def test_one_that_another_made_stop_waiting_does_not_carry_on(server: ChatServer) -> None:
    bob = server.subscriber("bob")

    class Last(FakeMember):
        def resume_publishing(self) -> None:
            server.hub.publisher.stop_waiting(bob)

    server.bus.full = True
    server.hub.publisher.wait(Last("ann"))
    server.hub.publisher.wait(bob)
    server.bus.full = False
    server.hub.bus_changed()
    assert bob.events == []


def test_one_on_hold_takes_no_more_but_publishes_what_it_has(server: ChatServer) -> None:
    ann, bob = server.subscriber("ann"), server.subscriber("bob")
    server.publish(ann, "last")
    server.hub.publisher.hold()
    server.hub.publisher.wait(ann)
    server.hub.bus_changed()
    assert not server.hub.publisher.open
    server.settle()
    assert bob.blobs == [frames("last")]
    assert ann.events == []


def test_where_it_was_quiet_it_publishes_at_the_end_of_the_turn(paced: ChatServer) -> None:
    ann = paced.subscriber("ann")
    for _ in range(3):
        paced.publish(ann, "hello")
        assert len(paced.bus.published) == len(paced.chat.events)
        paced.end_turn()
        assert paced.published[-1] == ["hello"]
        paced.clock.advance(INTERVAL)
    assert len(paced.published) == 3


def test_under_load_there_is_one_batch_each_interval(paced: ChatServer) -> None:
    ann = paced.subscriber("ann")
    for number in range(48):
        paced.publish(ann, f"{number}")
        paced.clock.advance(SHORT)
    sizes = [len(each) for each in paced.published]
    assert sizes == [1, 16, 16]
    assert [len(each) for each in paced.chat.batches] == sizes
    paced.clock.advance(INTERVAL)
    assert [text for texts in paced.published for text in texts] == [f"{number}" for number in range(48)]


def test_the_interval_begins_when_a_batch_is_published(paced: ChatServer) -> None:
    ann = paced.subscriber("ann")
    paced.publish(ann, "one")
    paced.end_turn()
    paced.clock.advance(SHORT)
    paced.publish(ann, "two")
    paced.clock.advance(INTERVAL - 2 * SHORT)
    assert paced.published == [["one"]]
    paced.clock.advance(SHORT)
    assert paced.published == [["one"], ["two"]]


def test_without_an_interval_each_turn_is_a_batch(server: ChatServer) -> None:
    ann = server.subscriber("ann")
    for number in range(3):
        server.publish(ann, f"{number}")
        server.publish(ann, f"{number}'")
        server.end_turn()
    assert server.published == [["0", "0'"], ["1", "1'"], ["2", "2'"]]


def test_a_flush_does_not_wait_and_counts_as_a_batch(paced: ChatServer) -> None:
    ann = paced.subscriber("ann")
    paced.publish(ann, "one")
    paced.end_turn()
    paced.publish(ann, "two")
    paced.hub.publisher.flush()
    assert paced.published == [["one"], ["two"]]
    paced.publish(ann, "three")
    paced.clock.advance(INTERVAL - SHORT)
    assert len(paced.published) == 2
    paced.clock.advance(SHORT)
    assert paced.published[2:] == [["three"]]
    assert paced.clock.getDelayedCalls() == []


def test_all_rooms_of_a_batch_are_published_at_once(paced: ChatServer) -> None:
    members = {room: paced.subscriber(f"in {room}", room) for room in ("a", "b", "c")}
    for text in ("1", "2"):
        for room, member in members.items():
            paced.hub.publisher.publish(room, member, [f"{room}{text}"])
    paced.end_turn()
    assert paced.published == [["a1", "a2"], ["b1", "b2"], ["c1", "c2"]]
    assert len(paced.chat.events) == 1


def test_the_window_counts_what_waits_for_the_interval(paced: ChatServer) -> None:
    ann = paced.subscriber("ann")
    paced.publish(ann, "first")
    paced.end_turn()
    paced.bus.space = 10
    paced.publish(ann, "12345", "67890")
    paced.clock.advance(SHORT)
    assert not paced.hub.publisher.open
    paced.clock.advance(INTERVAL)
    assert paced.hub.publisher.open


def test_however_many_leave_in_a_turn_those_who_wait_are_called_once(server: ChatServer) -> None:
    calls: list[str] = []

    class Waiting(FakeMember):
        def bus_away(self) -> None:
            calls.append(self.id)

    members = [server.subscriber(f"m{number}") for number in range(50)]
    server.bus.away = "gone"
    for number in range(20):
        server.hub.publisher.wait(Waiting(f"w{number}"))
    for member in members:
        server.hub.leave("ops", member)
    server.end_turn()
    assert calls == [f"w{number}" for number in range(20)]


# A log that another process has locked


def test_while_the_log_is_locked_messages_are_kept_in_order_and_a_timer_tries_again(server: ChatServer) -> None:
    ann, bob = server.subscriber("ann"), server.subscriber("bob")
    server.chat.busy = True
    for text in ("one", "two", "three"):
        server.publish(ann, text)
        server.end_turn()
    assert (server.chat.tries, server.published, ann.events) == (1, [], [])
    server.clock.advance(RETRY)
    assert (server.chat.tries, server.published) == (2, [])
    server.chat.busy = False
    server.clock.advance(RETRY)
    server.settle()
    assert (server.chat.batches, server.published) == ([["one", "two", "three"]], [["one", "two", "three"]])
    assert (ann.events, bob.blobs) == ([], [frames("one", "two", "three")])
    assert server.clock.getDelayedCalls() == []


def test_what_is_kept_counts_in_the_window(server: ChatServer) -> None:
    ann = server.subscriber("ann")
    server.chat.busy = True
    server.bus.space = 10
    server.publish(ann, "12345")
    server.end_turn()
    server.publish(ann, "67890")
    server.end_turn()
    assert not server.hub.publisher.open
    server.chat.busy = False
    server.clock.advance(RETRY)
    assert server.hub.publisher.open


def test_what_the_log_refuses_in_the_end_is_refused(server: ChatServer) -> None:
    ann = server.subscriber("ann")
    server.chat.busy = True
    server.publish(ann, "one")
    server.end_turn()
    server.chat.busy, server.chat.broken = False, True
    server.clock.advance(RETRY)
    assert (server.published, ann.events) == ([], [LOG_AWAY])
    assert server.clock.getDelayedCalls() == []


def test_second_lines_wait_for_the_lock_in_their_order(server: ChatServer) -> None:
    ann = server.subscriber("ann")
    unpublished: list[Deferred[Any]] = []

    def publish(*arguments: object) -> "Deferred[Any]":
        unpublished.append(Deferred())
        return unpublished[-1]

    server.bus.publish = publish  # type: ignore[method-assign, assignment]
    for text in ("one", "two"):
        server.publish(ann, text)
        server.end_turn()
    server.chat.busy = True
    for done in unpublished:
        done.errback(NotPublished("no"))
    assert (len(server.chat.events), server.chat.tries) == (2, 3)
    server.chat.busy = False
    server.clock.advance(RETRY)
    assert server.chat.batches == [["one"], ["two"], ["one"], ["two"]]
    assert [event.get("outcome") for event in server.chat.events[2:]] == ["refused", "refused"]


def test_a_stop_waits_for_what_is_kept(server: ChatServer) -> None:
    ann, bob = server.subscriber("ann"), server.subscriber("bob")
    server.chat.busy = True
    server.publish(ann, "last")
    server.hub.publisher.hold()
    flushed: list[None] = []
    server.hub.publisher.flushed().addCallback(flushed.append)
    server.clock.advance(RETRY)
    assert flushed == []
    server.chat.busy = False
    server.clock.advance(RETRY)
    server.settle()
    assert (flushed, bob.blobs) == ([None], [frames("last")])


# A log that is synced


def test_nothing_is_published_before_it_was_synced_and_what_comes_meanwhile_goes_together() -> None:
    running: list[Deferred[None]] = []

    def slowly(function: object, descriptors: object) -> "Deferred[None]":
        running.append(Deferred())
        return running[-1]

    sync = Sync(list, slowly)
    tickets: list[int] = []

    class Asked(FakeBus):
        def publish(
            self,
            room: str,
            messages: Sequence[Message],
            ids: Mapping[int, str] | None = None,
            ticket: int = 0,
            weight: int | None = None,
        ) -> Any:
            tickets.append(ticket)
            return super().publish(room, messages, ids, ticket)

    server = make_server(TURNS, Asked(), sync)
    ann = server.subscriber("ann")
    for text in ("one", "two", "three"):
        server.publish(ann, text)
        server.end_turn()
    assert (tickets, len(running)) == ([1, 2, 3], 1)
    running[0].callback(None)
    assert len(running) == 2


def test_who_said_what_could_not_be_synced_is_told_that_it_was_not_sent(server: ChatServer) -> None:
    ann = server.subscriber("ann")
    server.bus.refuse = NotSynced("broken")
    server.publish(ann, "hello")
    server.end_turn()
    assert ann.events == [LOG_AWAY]
    assert server.chat.events[-1]["outcome"] == "refused"
