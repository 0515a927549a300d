"""Publishing: messages are accepted, logged and published; subscribers wait, and are told what was not sent."""

from collections.abc import Callable
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
from tests.rooms.server import INTERVAL, TURNS, ChatServer, frames, make_server

SHORT = INTERVAL / 16
RETRY = Config.chat_log_lock_retry_delay


def test_messages_of_one_sender_at_a_time_are_one_entry_with_ids_in_order(server: ChatServer) -> None:
    ann, bob = server.subscriber("ann"), server.subscriber("bob")
    server.publish(ann, "one", "two", "three")
    server.publish(bob, "four")
    server.settle()
    assert server.chat.batches == [["one", "two", "three", "four"]]
    assert [len(entry.messages) for entry in server.chat.events[0]["entries"]] == [3, 1]
    [(_, messages)] = server.bus.published
    assert [message.id for message in messages] == ["ann.1", "ann.2", "ann.3", "bob.4"]
    assert (ann.blobs, bob.blobs) == ([frames("four")], [frames("one", "two", "three")])


def test_a_message_is_logged_before_it_is_published(server: ChatServer) -> None:
    server.publish(server.subscriber("ann"), "hello")
    server.end_turn()
    assert server.chat.batches == [["hello"]]
    assert server.chat.published_before == [0]
    assert len(server.bus.published) == 1


def test_a_message_has_room_address_sender_time_and_an_id_of_its_own(server: ChatServer) -> None:
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


def test_a_large_turn_is_several_batches_but_one_call_is_not_split() -> None:
    server = make_server(Config(flush_interval=0, batch_bytes=10), FakeBus())
    ann = server.subscriber("ann")
    for texts in (["12345"], ["123456"], ["x" * 8, "y" * 8], ["1"], ["2", "3"]):
        server.hub.publisher.publish("ops", ann, texts)
    server.end_turn()
    assert server.chat.batches == [["12345", "123456", "x" * 8, "y" * 8, "1", "2", "3"]]
    assert server.published == [["12345"], ["123456"], ["x" * 8, "y" * 8], ["1", "2", "3"]]


def test_an_idle_flush_neither_logs_nor_publishes(server: ChatServer) -> None:
    server.hub.publisher.flush()
    assert (server.chat.batches, server.bus.published) == ([], [])


def test_a_message_that_cannot_be_logged_is_not_published(server: ChatServer) -> None:
    ann, bob = server.subscriber("ann"), server.subscriber("bob")
    server.chat.broken = True
    server.publish(ann, "one")
    server.publish(ann, "two")
    server.publish(bob, "three")
    server.settle()
    assert server.bus.published == []
    assert (ann.events, bob.events) == ([LOG_AWAY], [LOG_AWAY])
    assert (ann.blobs, bob.blobs) == ([], [])
    server.chat.broken = False
    server.publish(ann, "kept")
    server.settle()
    assert bob.blobs == [frames("kept")]


@pytest.mark.parametrize(
    ("refusal", "outcome"),
    [(NotPublished("no"), "refused"), (NotPublished("the server stopped", unknown=True), "unknown")],
)
def test_the_outcome_of_an_unpublished_message_is_logged(
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
        def publish(self, *arguments: Any, **options: Any) -> Any:
            self.refuse = NotPublished("no") if arguments[0] == "dev" else None
            return super().publish(*arguments, **options)

    server = make_server(TURNS, Choosy())
    ann, eve = server.subscriber("ann", "ops"), server.subscriber("eve", "dev")
    server.publish(ann, "one")
    server.hub.publisher.publish("dev", eve, ["two"])
    server.end_turn()
    assert (ann.events, eve.events) == ([], [OUR_FAULT])
    assert server.chat.batches == [["one", "two"], ["two"]]


def test_an_outcome_that_cannot_be_logged_is_a_log_event(server: ChatServer, events: Events) -> None:
    ann = server.subscriber("ann")
    server.bus.refuse = NotPublished("no")
    server.chat.takes_outcomes = False
    server.publish(ann, "one")
    server.end_turn()
    assert ann.events == [OUR_FAULT]
    assert events.said == [("error", "1 messages in the chat log were not published")]


def test_the_publisher_is_open_while_the_bus_is(server: ChatServer) -> None:
    assert (server.hub.publisher.open, server.hub.publisher.away) == (True, "")
    server.bus.full = True
    assert (server.hub.publisher.open, server.hub.publisher.away) == (False, "")
    server.bus.full, server.bus.away = False, "gone"
    assert (server.hub.publisher.open, server.hub.publisher.away) == (False, "gone")


def test_one_turn_accepts_what_the_queue_has_room_for(server: ChatServer) -> None:
    ann = server.subscriber("ann")
    server.bus.space = 10
    server.publish(ann, "12345")
    assert server.hub.publisher.open
    server.publish(ann, "67890")
    assert not server.hub.publisher.open
    server.end_turn()
    assert server.hub.publisher.open


class Waiting(FakeMember):
    """A subscriber that waits to publish, and records in which order it may."""

    def __init__(self, name: str, order: list[str], then: Callable[["Waiting"], object] = lambda _: None) -> None:
        super().__init__(name)
        self.order, self.then = order, then

    def resume_publishing(self) -> None:
        self.order.append(self.id)
        self.then(self)

    def bus_away(self) -> None:
        self.order.append(self.id)


def test_a_subscriber_that_waits_for_a_full_turn_resumes_once_that_is_published(server: ChatServer) -> None:
    published: list[int] = []
    ann = server.subscriber("ann")
    server.bus.space = 1
    server.publish(ann, "12345")
    server.hub.publisher.wait(Waiting("bob", [], lambda _: published.append(len(server.bus.published))))
    assert published == []
    server.end_turn()
    assert published == [1]


def resumed(server: ChatServer, then: Callable[[Waiting], object], times: int) -> list[str]:
    """Open a full queue several times for three waiting subscribers; return the order in which they resume."""
    order: list[str] = []
    server.bus.full = True
    for name in ("ann", "bob", "eve"):
        server.hub.publisher.wait(Waiting(name, order, then))
    server.hub.bus_changed()
    assert order == []
    for _ in range(times):
        server.bus.full = False
        server.hub.bus_changed()
    return order


def test_waiting_subscribers_resume_in_order_while_the_queue_has_room(server: ChatServer) -> None:
    def fill(_: Waiting) -> None:
        server.bus.full = True

    def fill_and_wait(subscriber: Waiting) -> None:
        server.bus.full = True
        server.hub.publisher.wait(subscriber)

    assert resumed(server, lambda _: None, 2) == ["ann", "bob", "eve"]
    assert resumed(server, fill, 3) == ["ann", "bob", "eve"]
    assert resumed(server, fill_and_wait, 5) == ["ann", "bob", "eve", "ann", "bob"]


def test_waiting_subscribers_are_told_that_the_bus_is_away(server: ChatServer) -> None:
    ann, bob = server.subscriber("ann"), server.subscriber("bob")
    server.bus.away = "gone"
    server.hub.publisher.wait(ann)
    server.hub.bus_changed()
    assert (ann.events, bob.events) == (["bus away"], [])
    server.bus.away = ""
    server.hub.bus_changed()
    assert (ann.events, bob.events) == (["bus away", "carry on"], [])


def test_a_subscriber_that_stops_waiting_is_not_resumed(server: ChatServer) -> None:
    ann = server.subscriber("ann")
    server.bus.full = True
    server.hub.publisher.wait(ann)
    server.hub.publisher.stop_waiting(ann)
    server.hub.publisher.stop_waiting(ann)
    server.bus.full = False
    server.hub.bus_changed()
    assert ann.events == []


def test_a_subscriber_may_stop_the_waiting_of_another(server: ChatServer) -> None:
    bob = server.subscriber("bob")
    server.bus.full = True
    server.hub.publisher.wait(Waiting("ann", [], lambda _: server.hub.publisher.stop_waiting(bob)))
    server.hub.publisher.wait(bob)
    server.bus.full = False
    server.hub.bus_changed()
    assert bob.events == []


def test_a_held_publisher_accepts_nothing_but_publishes_the_rest(server: ChatServer) -> None:
    ann, bob = server.subscriber("ann"), server.subscriber("bob")
    server.publish(ann, "last")
    server.hub.publisher.hold()
    server.hub.publisher.wait(ann)
    server.hub.bus_changed()
    assert not server.hub.publisher.open
    server.settle()
    assert bob.blobs == [frames("last")]
    assert ann.events == []


def test_without_load_a_batch_is_published_at_the_end_of_the_turn(paced: ChatServer) -> None:
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
    sizes = [len(texts) for texts in paced.published]
    assert sizes == [1, 16, 16]
    assert [len(texts) for texts in paced.chat.batches] == sizes
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


def test_messages_that_wait_for_the_interval_count_in_the_queue(paced: ChatServer) -> None:
    ann = paced.subscriber("ann")
    paced.publish(ann, "first")
    paced.end_turn()
    paced.bus.space = 10
    paced.publish(ann, "12345", "67890")
    paced.clock.advance(SHORT)
    assert not paced.hub.publisher.open
    paced.clock.advance(INTERVAL)
    assert paced.hub.publisher.open


def test_waiting_subscribers_are_called_once_however_many_leave(server: ChatServer) -> None:
    calls: list[str] = []
    members = [server.subscriber(f"m{number}") for number in range(50)]
    server.bus.away = "gone"
    for number in range(20):
        server.hub.publisher.wait(Waiting(f"w{number}", calls))
    for member in members:
        server.hub.leave("ops", member)
    server.end_turn()
    assert calls == [f"w{number}" for number in range(20)]


# A chat log that another process has locked


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


def test_messages_that_wait_for_the_lock_count_in_the_queue(server: ChatServer) -> None:
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


def test_a_message_that_waited_for_the_lock_may_be_refused(server: ChatServer) -> None:
    ann = server.subscriber("ann")
    server.chat.busy = True
    server.publish(ann, "one")
    server.end_turn()
    server.chat.busy, server.chat.broken = False, True
    server.clock.advance(RETRY)
    assert (server.published, ann.events) == ([], [LOG_AWAY])
    assert server.clock.getDelayedCalls() == []


def test_outcomes_wait_for_the_lock_in_order(server: ChatServer) -> None:
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


def test_a_stop_waits_for_messages_that_wait_for_the_lock(server: ChatServer) -> None:
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


# A chat log that is synced


def test_batches_are_published_with_their_sync_tickets() -> None:
    running: list[Deferred[None]] = []

    def slowly(function: object, descriptors: object) -> "Deferred[None]":
        running.append(Deferred())
        return running[-1]

    sync = Sync(list, slowly)
    tickets: list[int] = []

    class Recording(FakeBus):
        def publish(self, *arguments: Any, **options: Any) -> Any:
            tickets.append(arguments[3])
            return super().publish(*arguments, **options)

    server = make_server(TURNS, Recording(), sync)
    ann = server.subscriber("ann")
    for text in ("one", "two", "three"):
        server.publish(ann, text)
        server.end_turn()
    assert (tickets, len(running)) == ([1, 2, 3], 1)
    running[0].callback(None)
    assert len(running) == 2


def test_a_message_that_could_not_be_synced_is_refused(server: ChatServer) -> None:
    ann = server.subscriber("ann")
    server.bus.refuse = NotSynced("broken")
    server.publish(ann, "hello")
    server.end_turn()
    assert ann.events == [LOG_AWAY]
    assert server.chat.events[-1]["outcome"] == "refused"
