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
from tests.rooms.house import INTERVAL, PACED, TURNS, House, frames, make_house

SHORT = INTERVAL / 16
RETRY = Config.chat_log_lock_retry_delay


@pytest.fixture
def house() -> House:
    return make_house(TURNS, FakeBus())


@pytest.fixture
def paced() -> House:
    return make_house(PACED, FakeBus())


def test_several_messages_of_one_author_at_a_time_are_one_entry_and_numbered_in_their_order(house: House) -> None:
    ann, bob = house.member("ann"), house.member("bob")
    house.hub.publisher.publish("ops", ann, ["one", "two", "three"])
    house.hub.publisher.publish("ops", bob, ["four"])
    house.go_round()
    assert house.chat.batches == [["one", "two", "three", "four"]]
    assert [len(entry.messages) for entry in house.chat.events[0]["entries"]] == [3, 1]
    [(_, messages)] = house.bus.published
    assert [each.id for each in messages] == ["ann.1", "ann.2", "ann.3", "bob.4"]
    assert (ann.blobs, bob.blobs) == ([frames("four")], [frames("one", "two", "three")])


def test_a_message_is_logged_before_it_is_published(house: House) -> None:
    house.hub.publisher.publish("ops", house.member("ann"), ["hello"])
    house.end_turn()
    assert house.chat.batches == [["hello"]]
    assert house.chat.published_before == [0]
    assert len(house.bus.published) == 1


def test_a_message_has_room_address_author_time_and_an_id_of_its_own(house: House) -> None:
    ann = house.member("ann")
    house.hub.publisher.publish("ops", ann, ["one"])
    house.hub.publisher.publish("ops", ann, ["two"])
    house.end_turn()
    first, second = house.chat.events[0]["entries"]
    assert first == LogEntry("ops", "192.0.2.1", [Message("ann.1", 1_795_379_625_123, "ann", "one")])
    assert first.messages[0].id != second.messages[0].id
    assert house.bus.published == [("ops", [*first.messages, *second.messages])]


def test_a_turn_is_one_write_to_the_log_and_one_batch_a_room(house: House) -> None:
    ann, eve = house.member("ann", "ops"), house.member("eve", "dev")
    for member, room, text in ((ann, "ops", "1"), (eve, "dev", "2"), (ann, "ops", "3")):
        house.hub.publisher.publish(room, member, [text])
    assert len(house.clock.getDelayedCalls()) == 1
    house.end_turn()
    assert house.chat.batches == [["1", "2", "3"]]
    published = [(room, [message.text for message in messages]) for room, messages in house.bus.published]
    assert published == [("ops", ["1", "3"]), ("dev", ["2"])]


def test_a_turn_that_is_more_than_a_batch_goes_in_several_and_what_was_said_at_once_in_one() -> None:
    house = make_house(Config(flush_interval=0, batch_bytes=10), FakeBus())
    ann = house.member("ann")
    for texts in (["12345"], ["123456"], ["x" * 8, "y" * 8], ["1"], ["2", "3"]):
        house.hub.publisher.publish("ops", ann, texts)
    house.end_turn()
    assert house.chat.batches == [["12345", "123456", "x" * 8, "y" * 8, "1", "2", "3"]]
    assert house.published == [["12345"], ["123456"], ["x" * 8, "y" * 8], ["1", "2", "3"]]


def test_each_turn_is_flushed(house: House) -> None:
    ann = house.member("ann")
    for text in ("one", "two"):
        house.hub.publisher.publish("ops", ann, [text])
        house.end_turn()
    assert house.chat.batches == [["one"], ["two"]]


def test_an_idle_flush_neither_logs_nor_publishes(house: House) -> None:
    house.hub.publisher.flush()
    assert (house.chat.batches, house.bus.published) == ([], [])


def test_what_cannot_be_logged_is_refused_and_not_published(house: House) -> None:
    ann, bob = house.member("ann"), house.member("bob")
    house.chat.broken = True
    house.hub.publisher.publish("ops", ann, ["one"])
    house.hub.publisher.publish("ops", ann, ["two"])
    house.hub.publisher.publish("ops", bob, ["three"])
    house.go_round()
    assert house.bus.published == []
    assert (ann.events, bob.events) == ([LOG_AWAY], [LOG_AWAY])
    assert (ann.blobs, bob.blobs) == ([], [])


def test_the_next_turn_is_taken_when_the_log_is_back(house: House) -> None:
    ann, bob = house.member("ann"), house.member("bob")
    house.chat.broken = True
    house.hub.publisher.publish("ops", ann, ["lost"])
    house.end_turn()
    house.chat.broken = False
    house.hub.publisher.publish("ops", ann, ["kept"])
    house.go_round()
    assert bob.blobs == [frames("kept")]


@pytest.mark.parametrize(
    ("refusal", "outcome"),
    [(NotPublished("no"), "refused"), (NotPublished("the server stopped", unknown=True), "unknown")],
)
def test_what_was_not_published_gets_a_second_line_and_is_refused(
    house: House, refusal: NotPublished, outcome: str
) -> None:
    ann = house.member("ann")
    house.bus.refuse = refusal
    house.hub.publisher.publish("ops", ann, ["one"])
    house.hub.publisher.publish("ops", ann, ["two"])
    house.end_turn()
    taken, second = house.chat.events
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

    house = make_house(TURNS, Choosy())
    ann, eve = house.member("ann", "ops"), house.member("eve", "dev")
    house.hub.publisher.publish("ops", ann, ["one"])
    house.hub.publisher.publish("dev", eve, ["two"])
    house.end_turn()
    assert (ann.events, eve.events) == ([], [OUR_FAULT])
    assert house.chat.batches == [["one", "two"], ["two"]]


def test_a_second_line_that_cannot_be_logged_is_said_and_the_author_told(house: House, events: Events) -> None:
    ann = house.member("ann")
    house.bus.refuse = NotPublished("no")
    house.chat.takes_outcomes = False
    house.hub.publisher.publish("ops", ann, ["one"])
    house.end_turn()
    assert ann.events == [OUR_FAULT]
    assert events.said == [("error", "1 messages in the chat log were not published")]


def test_the_way_in_is_open_while_the_bus_is(house: House) -> None:
    assert (house.hub.publisher.open, house.hub.publisher.away) == (True, "")
    house.bus.full = True
    assert (house.hub.publisher.open, house.hub.publisher.away) == (False, "")
    house.bus.full, house.bus.away = False, "gone"
    assert (house.hub.publisher.open, house.hub.publisher.away) == (False, "gone")


def test_one_turn_takes_no_more_than_the_window_has_room_for(house: House) -> None:
    ann = house.member("ann")
    house.bus.space = 10
    house.hub.publisher.publish("ops", ann, ["12345"])
    assert house.hub.publisher.open
    house.hub.publisher.publish("ops", ann, ["67890"])
    assert not house.hub.publisher.open
    house.end_turn()
    assert house.hub.publisher.open


def test_a_member_that_waits_for_a_full_turn_carries_on_once_that_is_published(house: House) -> None:
    published: list[int] = []

    class Waiting(FakeMember):
        def resume_publishing(self) -> None:
            published.append(len(house.bus.published))

    ann = house.member("ann")
    house.bus.space = 1
    house.hub.publisher.publish("ops", ann, ["12345"])
    house.hub.publisher.wait(Waiting("bob"))
    assert published == []
    house.end_turn()
    assert published == [1]


def test_those_who_wait_carry_on_in_order_when_the_window_opens(house: House) -> None:
    order: list[str] = []

    class Waiting(FakeMember):
        def resume_publishing(self) -> None:
            order.append(self.id)

    house.bus.full = True
    for name in ("ann", "bob", "eve"):
        house.hub.publisher.wait(Waiting(name))
    house.hub.bus_changed()
    assert order == []
    house.bus.full = False
    house.hub.bus_changed()
    assert order == ["ann", "bob", "eve"]
    house.hub.bus_changed()
    assert order == ["ann", "bob", "eve"]


def test_one_that_fills_the_window_keeps_the_others_waiting_in_their_order(house: House) -> None:
    order: list[str] = []

    class Filling(FakeMember):
        def resume_publishing(self) -> None:
            order.append(self.id)
            house.bus.full = True

    house.bus.full = True
    for name in ("ann", "bob", "eve"):
        house.hub.publisher.wait(Filling(name))
    for _ in range(3):
        house.bus.full = False
        house.hub.bus_changed()
    assert order == ["ann", "bob", "eve"]


def test_one_that_must_wait_again_comes_after_those_who_waited_longer(house: House) -> None:
    order: list[str] = []

    class Greedy(FakeMember):
        def resume_publishing(self) -> None:
            order.append(self.id)
            house.bus.full = True
            house.hub.publisher.wait(self)

    house.bus.full = True
    for name in ("ann", "bob"):
        house.hub.publisher.wait(Greedy(name))
    for _ in range(4):
        house.bus.full = False
        house.hub.bus_changed()
    assert order == ["ann", "bob", "ann", "bob"]


def test_those_who_wait_are_told_that_the_bus_is_away_and_go_on_waiting(house: House) -> None:
    ann, bob = house.member("ann"), house.member("bob")
    house.bus.away = "gone"
    house.hub.publisher.wait(ann)
    house.hub.bus_changed()
    assert (ann.events, bob.events) == (["bus away"], [])
    house.bus.away = ""
    house.hub.bus_changed()
    assert (ann.events, bob.events) == (["bus away", "carry on"], [])


def test_one_that_stops_waiting_is_told_nothing(house: House) -> None:
    ann = house.member("ann")
    house.bus.full = True
    house.hub.publisher.wait(ann)
    house.hub.publisher.stop_waiting(ann)
    house.hub.publisher.stop_waiting(ann)
    house.bus.full = False
    house.hub.bus_changed()
    assert ann.events == []


def test_one_that_another_made_stop_waiting_does_not_carry_on(house: House) -> None:
    bob = house.member("bob")

    class Last(FakeMember):
        def resume_publishing(self) -> None:
            house.hub.publisher.stop_waiting(bob)

    house.bus.full = True
    house.hub.publisher.wait(Last("ann"))
    house.hub.publisher.wait(bob)
    house.bus.full = False
    house.hub.bus_changed()
    assert bob.events == []


def test_one_on_hold_takes_no_more_but_publishes_what_it_has(house: House) -> None:
    ann, bob = house.member("ann"), house.member("bob")
    house.hub.publisher.publish("ops", ann, ["last"])
    house.hub.publisher.hold()
    house.hub.publisher.wait(ann)
    house.hub.bus_changed()
    assert not house.hub.publisher.open
    house.go_round()
    assert bob.blobs == [frames("last")]
    assert ann.events == []


def test_where_it_was_quiet_it_publishes_at_the_end_of_the_turn(paced: House) -> None:
    ann = paced.member("ann")
    for _ in range(3):
        paced.hub.publisher.publish("ops", ann, ["hello"])
        assert len(paced.bus.published) == len(paced.chat.events)
        paced.end_turn()
        assert paced.published[-1] == ["hello"]
        paced.clock.advance(INTERVAL)
    assert len(paced.published) == 3


def test_under_load_there_is_one_batch_each_interval(paced: House) -> None:
    ann = paced.member("ann")
    for number in range(48):
        paced.hub.publisher.publish("ops", ann, [f"{number}"])
        paced.clock.advance(SHORT)
    sizes = [len(each) for each in paced.published]
    assert sizes == [1, 16, 16]
    assert [len(each) for each in paced.chat.batches] == sizes
    paced.clock.advance(INTERVAL)
    assert [text for texts in paced.published for text in texts] == [f"{number}" for number in range(48)]


def test_the_interval_begins_when_a_batch_is_published(paced: House) -> None:
    ann = paced.member("ann")
    paced.hub.publisher.publish("ops", ann, ["one"])
    paced.end_turn()
    paced.clock.advance(SHORT)
    paced.hub.publisher.publish("ops", ann, ["two"])
    paced.clock.advance(INTERVAL - 2 * SHORT)
    assert paced.published == [["one"]]
    paced.clock.advance(SHORT)
    assert paced.published == [["one"], ["two"]]


def test_without_an_interval_each_turn_is_a_batch(house: House) -> None:
    ann = house.member("ann")
    for number in range(3):
        house.hub.publisher.publish("ops", ann, [f"{number}"])
        house.hub.publisher.publish("ops", ann, [f"{number}'"])
        house.end_turn()
    assert house.published == [["0", "0'"], ["1", "1'"], ["2", "2'"]]


def test_a_flush_does_not_wait_and_counts_as_a_batch(paced: House) -> None:
    ann = paced.member("ann")
    paced.hub.publisher.publish("ops", ann, ["one"])
    paced.end_turn()
    paced.hub.publisher.publish("ops", ann, ["two"])
    paced.hub.publisher.flush()
    assert paced.published == [["one"], ["two"]]
    paced.hub.publisher.publish("ops", ann, ["three"])
    paced.clock.advance(INTERVAL - SHORT)
    assert len(paced.published) == 2
    paced.clock.advance(SHORT)
    assert paced.published[2:] == [["three"]]
    assert paced.clock.getDelayedCalls() == []


def test_all_rooms_of_a_batch_are_published_at_once(paced: House) -> None:
    members = {room: paced.member(f"in {room}", room) for room in ("a", "b", "c")}
    for text in ("1", "2"):
        for room, member in members.items():
            paced.hub.publisher.publish(room, member, [f"{room}{text}"])
    paced.end_turn()
    assert paced.published == [["a1", "a2"], ["b1", "b2"], ["c1", "c2"]]
    assert len(paced.chat.events) == 1


def test_the_window_counts_what_waits_for_the_interval(paced: House) -> None:
    ann = paced.member("ann")
    paced.hub.publisher.publish("ops", ann, ["first"])
    paced.end_turn()
    paced.bus.space = 10
    paced.hub.publisher.publish("ops", ann, ["12345", "67890"])
    paced.clock.advance(SHORT)
    assert not paced.hub.publisher.open
    paced.clock.advance(INTERVAL)
    assert paced.hub.publisher.open


def test_however_many_leave_in_a_turn_those_who_wait_are_called_once(house: House) -> None:
    calls: list[str] = []

    class Waiting(FakeMember):
        def bus_away(self) -> None:
            calls.append(self.id)

    members = [house.member(f"m{number}") for number in range(50)]
    house.bus.away = "gone"
    for number in range(20):
        house.hub.publisher.wait(Waiting(f"w{number}"))
    for member in members:
        house.hub.leave("ops", member)
    house.end_turn()
    assert calls == [f"w{number}" for number in range(20)]


# A log that another process has locked


def test_while_the_log_is_locked_messages_are_kept_in_order_and_a_timer_tries_again(house: House) -> None:
    ann, bob = house.member("ann"), house.member("bob")
    house.chat.busy = True
    for text in ("one", "two", "three"):
        house.hub.publisher.publish("ops", ann, [text])
        house.end_turn()
    assert (house.chat.tries, house.published, ann.events) == (1, [], [])
    house.clock.advance(RETRY)
    assert (house.chat.tries, house.published) == (2, [])
    house.chat.busy = False
    house.clock.advance(RETRY)
    house.go_round()
    assert (house.chat.batches, house.published) == ([["one", "two", "three"]], [["one", "two", "three"]])
    assert (ann.events, bob.blobs) == ([], [frames("one", "two", "three")])
    assert house.clock.getDelayedCalls() == []


def test_what_is_kept_counts_in_the_window(house: House) -> None:
    ann = house.member("ann")
    house.chat.busy = True
    house.bus.space = 10
    house.hub.publisher.publish("ops", ann, ["12345"])
    house.end_turn()
    house.hub.publisher.publish("ops", ann, ["67890"])
    house.end_turn()
    assert not house.hub.publisher.open
    house.chat.busy = False
    house.clock.advance(RETRY)
    assert house.hub.publisher.open


def test_what_the_log_refuses_in_the_end_is_refused(house: House) -> None:
    ann = house.member("ann")
    house.chat.busy = True
    house.hub.publisher.publish("ops", ann, ["one"])
    house.end_turn()
    house.chat.busy, house.chat.broken = False, True
    house.clock.advance(RETRY)
    assert (house.published, ann.events) == ([], [LOG_AWAY])
    assert house.clock.getDelayedCalls() == []


def test_second_lines_wait_for_the_lock_in_their_order(house: House) -> None:
    ann = house.member("ann")
    unpublished: list[Deferred[Any]] = []

    def publish(*arguments: object) -> "Deferred[Any]":
        unpublished.append(Deferred())
        return unpublished[-1]

    house.bus.publish = publish  # type: ignore[method-assign, assignment]
    for text in ("one", "two"):
        house.hub.publisher.publish("ops", ann, [text])
        house.end_turn()
    house.chat.busy = True
    for done in unpublished:
        done.errback(NotPublished("no"))
    assert (len(house.chat.events), house.chat.tries) == (2, 3)
    house.chat.busy = False
    house.clock.advance(RETRY)
    assert house.chat.batches == [["one"], ["two"], ["one"], ["two"]]
    assert [event.get("outcome") for event in house.chat.events[2:]] == ["refused", "refused"]


def test_a_stop_waits_for_what_is_kept(house: House) -> None:
    ann, bob = house.member("ann"), house.member("bob")
    house.chat.busy = True
    house.hub.publisher.publish("ops", ann, ["last"])
    house.hub.publisher.hold()
    flushed: list[None] = []
    house.hub.publisher.flushed().addCallback(flushed.append)
    house.clock.advance(RETRY)
    assert flushed == []
    house.chat.busy = False
    house.clock.advance(RETRY)
    house.go_round()
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

    house = make_house(TURNS, Asked(), sync)
    ann = house.member("ann")
    for text in ("one", "two", "three"):
        house.hub.publisher.publish("ops", ann, [text])
        house.end_turn()
    assert (tickets, len(running)) == ([1, 2, 3], 1)
    running[0].callback(None)
    assert len(running) == 2


def test_who_said_what_could_not_be_synced_is_told_that_it_was_not_sent(house: House) -> None:
    ann = house.member("ann")
    house.bus.refuse = NotSynced("broken")
    house.hub.publisher.publish("ops", ann, ["hello"])
    house.end_turn()
    assert ann.events == [LOG_AWAY]
    assert house.chat.events[-1]["outcome"] == "refused"
