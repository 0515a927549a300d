"""Batches on their way to the broker, on a wire whose far end is the test."""

from collections.abc import Mapping
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from chatd.broker.connection import LinkLost, ReplyError
from chatd.broker.publish_queue import NotPublished, NotSynced, PublishQueues, PublishResult
from chatd.broker.queries import PUBLISH
from chatd.config.settings import Config
from chatd.protocol.message import Batch, Message, StreamPosition, decode, encode
from tests.broker.wire import Wire, outcome
from tests.fakes import Events
from tests.rows import rows

AWAY = ["LOADING", "BUSY", "OOM", "MISCONF", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS", "NOAUTH", "NOPERM"]


NO_IDS: Mapping[int, str] = {}


class Publishing(Wire):
    """A wire that batches are sent on."""

    @property
    def sent(self) -> list[Batch]:
        """Each batch that was sent, as it would be published."""
        published = [(call[3].decode(), call[8], call[10]) for call in self.calls if call[0] == "EVALSHA"]
        return [decode(room, b"e 1 w1 %d\n%b" % (sequence, payload)) for room, sequence, payload in published]

    @property
    def batches(self) -> list[tuple[str, int, list[str]]]:
        """Channel, sequence and texts of each batch that was sent."""
        return [(each.room, each.sequence, [message.text for message in each.messages]) for each in self.sent]

    @property
    def ids(self) -> list[tuple[Any, ...]]:
        """For each batch that was sent: number, key, number, key … of those messages that have an id."""
        return [call[19:] for call in self.calls if call[0] == "EVALSHA"]


class Office:
    """Outboxes, their wire and what they told."""

    def __init__(self, config: Config) -> None:
        self.told: list[str] = []
        self.now = 0.0
        self.wire = Publishing()
        self.boxes = PublishQueues(
            config,
            "w1",
            str.encode,
            now=lambda: self.now,
            answered=lambda: self.told.append("answered"),
            refused=self.told.append,
            window_changed=lambda: self.told.append("full" if self.boxes.full else "not full"),
        )

    def connect(self, run: str = "r1") -> None:
        """Take a new wire to a run of the broker and go live."""
        self.wire = Publishing()
        self.boxes.connected(self.wire, run.encode())
        self.boxes.go_live()

    def lose(self) -> None:
        """Lose the wire."""
        self.boxes.lost()
        self.wire.lose()

    def publish(self, *texts: str, room: str = "ops", ids: Mapping[int, str] = NO_IDS) -> "Deferred[PublishResult]":
        return self.boxes.publish(room, [message(text) for text in texts], ids)


def message(text: str) -> Message:
    return Message("s.1", 0, "s", text)


def at(epoch: str, offset: int) -> PublishResult:
    """Say that all of a publish is new and where it stands."""
    return PublishResult(StreamPosition(epoch, offset))


@pytest.fixture
def office() -> Office:
    office = Office(Config())
    office.connect()
    return office


# What waits for a sync of the chat log


def test_what_was_logged_is_not_sent_before_it_was_synced(office: Office) -> None:
    office.boxes.publish("ops", [message("one")], NO_IDS, 1)
    office.boxes.publish("dev", [message("two")], NO_IDS, 2)
    assert office.wire.batches == []
    office.boxes.synced(1)
    assert office.wire.batches == [("ops", 1, ["one"])]
    office.boxes.synced(2)
    assert office.wire.batches == [("ops", 1, ["one"]), ("dev", 2, ["two"])]


def test_it_keeps_its_place_in_the_order_of_its_room(office: Office) -> None:
    for ticket, text in enumerate(["one", "two", "three"], 1):
        office.boxes.publish("ops", [message(text)], NO_IDS, ticket)
    office.boxes.synced(2)
    assert office.wire.batches == [("ops", 1, ["one", "two"])]
    office.wire.answer([b"e", 1])
    assert office.wire.batches == [("ops", 1, ["one", "two"])]
    office.boxes.synced(3)
    assert office.wire.batches[1:] == [("ops", 2, ["three"])]


def test_what_waits_for_a_sync_is_in_flight(office: Office) -> None:
    flushed = office.boxes.flushed()
    assert flushed.called
    office.boxes.publish("ops", [message("one")], NO_IDS, 1)
    assert not office.boxes.flushed().called
    assert office.boxes.published("ops") is not None
    assert office.boxes.space < Config.unconfirmed_publish_bytes


def test_what_could_not_be_synced_is_refused_and_the_rest_goes_on(office: Office) -> None:
    first = office.boxes.publish("ops", [message("one")], NO_IDS, 1)
    second = office.boxes.publish("ops", [message("two")], NO_IDS, 2)
    office.boxes.sync_failed(1, "broken")
    refused = outcome(first)
    assert isinstance(refused, NotSynced)
    assert str(refused) == "broken"
    office.boxes.synced(2)
    assert office.wire.batches == [("ops", 1, ["two"])]
    office.wire.answer([b"e", 1])
    assert outcome(second) == at("e", 1)
    assert office.boxes.space == Config.unconfirmed_publish_bytes


def test_what_was_synced_while_the_broker_was_away_is_sent_when_it_is_back(office: Office) -> None:
    office.lose()
    office.boxes.publish("ops", [message("one")], NO_IDS, 1)
    office.boxes.synced(1)
    office.connect()
    assert office.wire.batches == [("ops", 1, ["one"])]


# On the wire


def test_a_batch_is_sent_at_once_with_all_the_script_needs() -> None:
    knobs = {"room_offset_ttl": 44, "batch_id_ttl": 22, "history_size": 500, "history_ttl": 33.4}
    office = Office(Config(redis_prefix="p", **knobs))  # type: ignore[arg-type]
    office.connect()
    office.publish("one", "two")
    (call,) = office.wire.calls
    payload = encode([message("one"), message("two")])
    assert call[2:5] == (2, b"ops", b"p:sent:w1:ops")
    assert call[5:12] == (b"p:history:", b":ops", "w1", 1, 2, payload, b"r1")
    assert call[13:] == (44, 22, 500, 33, Config.recent_history_time, Config.recent_history_bytes)


@rows("off", [{"history_size": 0}, {"history_ttl": 0}])
def test_without_history_the_script_is_told_to_keep_none(off: dict[str, Any]) -> None:
    office = Office(Config(**off))
    office.connect()
    office.publish("one")
    (call,) = office.wire.calls
    assert call[15] == 0


def test_a_room_is_not_forgotten_before_its_history(office: Office) -> None:
    office = Office(Config(room_offset_ttl=10, history_ttl=20))
    office.connect()
    office.publish("one")
    (call,) = office.wire.calls
    assert call[13] == 20


def test_each_call_offers_an_epoch_of_its_own(office: Office) -> None:
    office.publish("one", room="a")
    office.publish("two", room="b")
    first, second = (call[12] for call in office.wire.calls)
    assert first != second


def test_the_answer_says_where_the_batch_stands(office: Office) -> None:
    published = office.publish("one")
    assert outcome(published) is None
    office.wire.answer([b"e", 7])
    assert outcome(published) == at("e", 7)


def test_what_comes_while_a_batch_is_on_the_wire_makes_the_next_one(office: Office) -> None:
    for text in ("one", "two", "three"):
        office.publish(text)
    assert office.wire.batches == [("ops", 1, ["one"])]
    office.wire.answer([b"e", 1])
    assert office.wire.batches[1:] == [("ops", 2, ["two", "three"])]


def test_each_part_of_a_batch_has_its_own_place(office: Office) -> None:
    office.publish("first")
    parts = [office.publish("one", "two"), office.publish("three"), office.publish("four")]
    office.wire.answer([b"e", 1], [b"e", 2])
    assert [outcome(each) for each in parts] == [at("e", 2), at("e", 4), at("e", 5)]


def test_the_rooms_of_one_turn_are_all_sent_before_any_answer(office: Office) -> None:
    published = [office.publish(f"{number}", f"{number}'", room=f"r{number}") for number in range(50)]
    assert office.wire.batches == [(f"r{number}", number + 1, [f"{number}", f"{number}'"]) for number in range(50)]
    assert [outcome(each) for each in published] == [None] * 50
    office.wire.answer(*[[b"e", number + 1] for number in range(50)])
    assert [outcome(each) for each in published] == [at("e", number + 1) for number in range(50)]


def test_an_answer_to_one_room_sends_that_room_only_on(office: Office) -> None:
    for room in "abc":
        office.publish("one", room=room)
        office.publish("two", room=room)
    office.wire.answer([b"e", 1])
    assert [(room, texts) for room, _, texts in office.wire.batches[3:]] == [("a", ["two"])]


def test_rooms_whose_answers_were_lost_are_all_sent_again_before_any_answer(office: Office) -> None:
    published = [office.publish(room, room=room) for room in "abc"]
    first = office.wire
    office.lose()
    office.connect()
    assert office.wire.batches == first.batches
    office.wire.answer([b"e", 1], [b"e", 1], [b"e", 1])
    assert [outcome(each) for each in published] == [at("e", 1)] * 3


def test_what_comes_while_not_live_waits_and_goes_out_as_one_batch_a_room() -> None:
    office = Office(Config())
    office.publish("one")
    office.publish("two")
    office.publish("three", room="dev")
    assert office.wire.calls == []
    office.connect()
    assert office.wire.batches == [("ops", 1, ["one", "two"]), ("dev", 2, ["three"])]


def test_what_is_on_the_wire_is_not_sent_twice(office: Office) -> None:
    office.publish("one")
    office.boxes.send_all()
    assert len(office.wire.calls) == 1


def test_nothing_is_sent_on_a_connection_that_is_gone(office: Office) -> None:
    office.wire.connected = 0
    office.publish("one")
    assert office.wire.calls == []


# Lost answers


def test_what_came_meanwhile_does_not_overtake_it(office: Office) -> None:
    office.publish("one")
    office.publish("two")
    office.lose()
    office.publish("three")
    office.connect()
    office.wire.answer([b"e", 1])
    assert office.wire.batches == [("ops", 1, ["one"]), ("ops", 2, ["two", "three"])]


# Another run of the broker


def test_what_a_broker_answered_just_before_it_died_is_sent_again_first(office: Office) -> None:
    office.publish("one")
    office.wire.answer([b"e", 1])
    office.publish("two")
    office.wire.answer([b"e", 2])
    unanswered = office.publish("three")
    office.lose()
    office.connect("r2")
    for offset, text in enumerate(("one", "two", "three"), start=1):
        assert office.wire.batches[-1] == ("ops", offset, [text])
        office.wire.answer([b"f", offset])
    assert outcome(unanswered) == at("f", 3)
    assert len(office.wire.calls) == 3


@pytest.mark.parametrize(
    ("run", "before", "during", "sent"),
    [
        ("r1", 0, 0, []),  # the same run of the broker
        ("r2", Config().republish_window + 0.1, 0, []),
        ("r2", 0, 60, [("ops", 1, ["one"])]),
    ],
)
def test_what_was_answered_long_before_the_broker_died_is_not_sent_again(
    office: Office, run: str, before: float, during: float, sent: list[tuple[str, int, list[str]]]
) -> None:
    office.publish("one")
    office.wire.answer([b"e", 1])
    office.now += before
    office.lose()
    office.now += during
    office.connect(run)
    assert office.wire.batches == sent


def test_no_more_is_remembered_than_the_window_holds() -> None:
    office = Office(Config(unconfirmed_publish_bytes=300, message_overhead_bytes=0))
    office.connect()
    for number in range(10):
        office.publish(f"{number}" + "x" * 99)
        office.wire.answer([b"e", number + 1])
    office.lose()
    office.connect("r2")
    assert office.wire.batches == [("ops", 9, ["8" + "x" * 99])]


def test_what_is_sent_again_says_where_it_stood_before(office: Office) -> None:
    office.publish("one", "two")
    office.wire.answer([b"e", 7])
    office.publish("three")
    office.lose()
    office.connect("r2")
    office.wire.answer([b"f", 1])
    assert [each.before for each in office.wire.sent] == [StreamPosition("e", 7), None]


def test_what_is_sent_again_to_one_more_run_says_where_it_stood_first(office: Office) -> None:
    office.publish("one")
    office.wire.answer([b"e", 7])
    office.lose()
    office.connect("r2")
    office.wire.answer([b"f", 1])
    office.lose()
    office.connect("r3")
    assert [(each.sequence, each.before) for each in office.wire.sent] == [(1, StreamPosition("e", 7))]


def test_what_is_sent_again_is_not_in_the_window(office: Office) -> None:
    office.publish("one")
    office.wire.answer([b"e", 1])
    office.lose()
    office.connect("r2")
    assert office.boxes.space == Config().unconfirmed_publish_bytes
    office.wire.answer([b"f", 1])
    assert office.boxes.space == Config().unconfirmed_publish_bytes


def test_a_wire_that_is_lost_while_it_is_sent_again_leaves_it_to_the_next(office: Office) -> None:
    office.publish("one")
    office.wire.answer([b"e", 1])
    for run in ("r2", "r2"):
        office.lose()
        office.connect(run)
        assert office.wire.batches == [("ops", 1, ["one"])]


# Refusals


def test_an_unknown_script_is_loaded_and_the_batch_sent_again(office: Office) -> None:
    published = office.publish("one")
    office.wire.answer(ReplyError("NOSCRIPT No matching script."))
    assert office.wire.calls[1] == ("SCRIPT LOAD", PUBLISH.source)
    office.wire.answer(b"sha", [b"e", 1])
    assert office.wire.batches == [("ops", 1, ["one"])] * 2
    assert (outcome(published), office.told) == (at("e", 1), ["answered"])


def test_a_script_that_cannot_be_loaded_is_a_refusal_that_can_end(office: Office) -> None:
    published = office.publish("one")
    office.wire.answer(ReplyError("NOSCRIPT No matching script."), ReplyError("OOM no"))
    assert (outcome(published), office.told) == (None, ["OOM no"])


def test_a_link_lost_while_the_script_is_loaded_leaves_the_batch_for_the_next(office: Office) -> None:
    office.publish("one")
    office.wire.answer(ReplyError("NOSCRIPT No matching script."))
    office.lose()
    assert office.told == []
    office.connect()
    assert office.wire.batches == [("ops", 1, ["one"])]


@pytest.mark.parametrize("code", AWAY)
def test_a_broker_that_cannot_write_now_is_asked_again(office: Office, code: str) -> None:
    published = office.publish("one")
    office.publish("two")
    office.wire.answer(ReplyError(f"{code} why"))
    assert (outcome(published), office.told) == (None, [f"{code} why"])
    office.boxes.send_all()
    office.wire.answer([b"e", 1])
    assert office.wire.batches == [("ops", 1, ["one"]), ("ops", 1, ["one"]), ("ops", 2, ["two"])]
    assert office.told == [f"{code} why", "answered"]


def test_any_other_answer_fails_the_batch_for_good_and_the_next_goes_on(office: Office, events: Events) -> None:
    failed, fine = office.publish("one"), office.publish("two")
    office.wire.answer(ReplyError("WRONGTYPE not a hash"), [b"e", 1])
    refusal = outcome(failed)
    assert isinstance(refusal, NotPublished)
    assert (str(refusal), refusal.unknown) == ("WRONGTYPE not a hash", False)
    assert outcome(fine) == at("e", 1)
    assert events.said == [("error", "the broker refused messages of room ops: WRONGTYPE not a hash")]


def test_a_fault_of_our_own_fails_the_batch_and_is_logged(office: Office, events: Events) -> None:
    failed = office.publish("one")
    office.wire.answer(ValueError("bad argument"))
    assert isinstance(outcome(failed), NotPublished)
    assert events.said[0] == ("critical", "publishing to the broker failed")


# Ids that authors gave


def test_the_key_of_an_id_is_of_its_room_and_author(office: Office) -> None:
    office.publish("first", room="a:b")
    office.publish("one", "two", "three", room="a:b", ids={1: "x y"})
    office.publish("four", room="a:b", ids={0: "é"})
    office.wire.answer([b"e", 1])
    assert office.wire.ids == [(), (2, b"chatd:id:a:b s x y", 4, "chatd:id:a:b s é".encode())]


def test_what_an_author_has_published_before_is_left_out_and_the_rest_published(office: Office) -> None:
    published = office.publish("one", "two", "three", ids={0: "x", 1: "y", 2: "z"})
    office.wire.answer([None, [1, b"e 5"], [3, b"d 9"]])
    assert office.wire.batches == [("ops", 1, ["one", "two", "three"]), ("ops", 1, ["two"])]
    assert office.wire.ids[1] == (1, b"chatd:id:ops s y")
    assert outcome(published) is None
    office.wire.answer([b"e", 8])
    assert outcome(published) == PublishResult(
        StreamPosition("e", 8), {0: StreamPosition("e", 5), 2: StreamPosition("d", 9)}
    )


def test_each_part_learns_of_its_own_duplicates_and_where_the_rest_stands(office: Office) -> None:
    office.publish("first")
    parts = [office.publish("a", "b", ids={1: "x"}), office.publish("c", "d", ids={0: "y"}), office.publish("e")]
    office.wire.answer([b"e", 1], [None, [2, b"e 1"], [3, b"e 2"]])
    assert office.wire.batches[-1] == ("ops", 2, ["a", "d", "e"])
    office.wire.answer([b"e", 10])
    assert [outcome(each) for each in parts] == [
        PublishResult(StreamPosition("e", 10), {1: StreamPosition("e", 1)}),
        PublishResult(StreamPosition("e", 11), {0: StreamPosition("e", 2)}),
        at("e", 12),
    ]


def test_the_rest_may_turn_out_to_have_duplicates_too(office: Office) -> None:
    published = office.publish("a", "b", "c", ids={0: "x", 1: "y"})
    office.wire.answer([None, [1, b"e 5"]], [None, [1, b"e 6"]], [b"e", 7])
    assert outcome(published) == PublishResult(
        StreamPosition("e", 7), {0: StreamPosition("e", 5), 1: StreamPosition("e", 6)}
    )


def test_an_id_twice_in_one_batch_is_sent_once_and_the_second_stands_where_the_first_does(office: Office) -> None:
    office.publish("first")
    one = office.publish("a", "b", ids={1: "x"})
    two = office.publish("b", "c", "b", "d", ids={0: "x", 2: "x", 3: "y"})
    office.wire.answer([b"e", 1])
    assert office.wire.batches[-1] == ("ops", 2, ["a", "b", "c", "d"])
    assert office.wire.ids[-1] == (2, b"chatd:id:ops s x", 4, b"chatd:id:ops s y")
    office.wire.answer([b"e", 10])
    assert outcome(one) == at("e", 10)
    assert outcome(two) == PublishResult(
        StreamPosition("e", 12), {0: StreamPosition("e", 11), 2: StreamPosition("e", 11)}
    )


def test_an_id_twice_in_one_batch_that_was_published_before_is_left_out_twice(office: Office) -> None:
    published = office.publish("a", "b", "a", ids={0: "x", 2: "x"})
    office.wire.answer([None, [1, b"d 5"]])
    assert office.wire.batches[-1] == ("ops", 1, ["b", "a"])
    office.wire.answer([None, [2, b"d 5"]])
    assert office.wire.batches[-1] == ("ops", 1, ["b"])
    office.wire.answer([b"e", 1])
    assert outcome(published) == PublishResult(
        StreamPosition("e", 1), {0: StreamPosition("d", 5), 2: StreamPosition("d", 5)}
    )


def test_where_all_are_duplicates_nothing_is_published_and_the_next_batch_goes_out(office: Office) -> None:
    published = office.publish("one", "two", ids={0: "x", 1: "y"})
    office.publish("three")
    office.wire.answer([None, [1, b"e 5"], [2, b"e 6"]])
    done = outcome(published)
    assert isinstance(done, PublishResult)
    assert done.duplicates == {0: StreamPosition("e", 5), 1: StreamPosition("e", 6)}
    assert office.wire.batches == [("ops", 1, ["one", "two"]), ("ops", 2, ["three"])]
    office.wire.answer([b"e", 7])
    assert (office.boxes.space, office.boxes.flushed().called) == (Config().unconfirmed_publish_bytes, True)


def test_duplicates_alone_are_not_sent_to_another_run(office: Office) -> None:
    office.publish("one", ids={0: "x"})
    office.wire.answer([None, [1, b"e 5"]])
    office.lose()
    office.connect("r2")
    assert office.wire.calls == []


def test_what_was_left_out_stays_so_where_the_answer_to_the_rest_was_lost(office: Office) -> None:
    published = office.publish("one", "two", ids={0: "x"})
    office.wire.answer([None, [1, b"e 5"]])
    office.lose()
    office.connect()
    assert office.wire.batches == [("ops", 1, ["two"])]
    office.wire.answer([b"e", 6])
    assert outcome(published) == PublishResult(StreamPosition("e", 6), {0: StreamPosition("e", 5)})


# The end


def test_giving_up_tells_what_was_sent_from_what_was_not(office: Office) -> None:
    sent, waiting = office.publish("one"), office.publish("two")
    office.boxes.abandon("the server stopped")
    outcomes = [outcome(sent), outcome(waiting)]
    assert [each.unknown for each in outcomes if isinstance(each, NotPublished)] == [True, False]
    assert [str(each) for each in outcomes] == ["the server stopped"] * 2


@pytest.mark.parametrize("answer", [[b"e", 1], LinkLost("Lost connection"), ReplyError("OOM no")])
def test_an_answer_after_giving_up_changes_nothing(office: Office, answer: Any) -> None:
    office.publish("one").addErrback(lambda _: None)
    office.boxes.abandon("the server stopped")
    office.wire.answer(answer)
    assert (office.told, len(office.wire.calls)) == ([], 1)


def test_flushed_fires_with_the_last_answer_of_all_rooms(office: Office) -> None:
    assert office.boxes.flushed().called
    order: list[str] = []
    for room in "aab":
        office.publish("one", room=room).addCallback(lambda _, room: order.append(room), room)
    office.boxes.flushed().addCallback(lambda _: order.append("flushed"))
    office.publish("two", room="b").addCallback(lambda _: order.append("two"))
    office.wire.answer([b"e", 1], [b"e", 1], [b"e", 2])
    assert order == ["a", "b", "a"]
    office.wire.answer([b"e", 2])
    assert order == ["a", "b", "a", "two", "flushed"]


# The window

SMALL = Config(unconfirmed_publish_bytes=100, message_overhead_bytes=10)


def test_messages_weigh_their_utf_8_and_an_overhead_each() -> None:
    boxes = Office(SMALL).boxes
    assert boxes.weight([]) == 0
    assert boxes.weight([message("aÅ👋"), message("a"), message("")]) == (10 + 1 + 2 + 4) + 11 + 10


def test_the_space_is_what_is_left_of_the_window(events: Events) -> None:
    office = Office(SMALL)
    office.connect()
    assert office.boxes.space == 100
    office.publish("x" * 20, "y" * 5)
    assert office.boxes.space == 55
    office.wire.answer([b"e", 1])
    assert office.boxes.space == 100
    office.publish("x" * 20).addErrback(lambda _: None)
    office.wire.answer(ReplyError("WRONGTYPE no"))
    assert office.boxes.space == 100


def test_the_window_is_full_beyond_its_size_and_until_half_of_it_is_free() -> None:
    office = Office(SMALL)
    office.connect()
    for room in "abc":
        office.publish("x" * 15, room=room)  # 25 each
    office.publish("x" * 14, room="d")
    assert (office.boxes.full, office.boxes.space, office.told) == (False, 1, [])
    office.publish("", room="e")
    assert (office.boxes.full, office.told) == (True, ["full"])
    office.wire.answer([b"e", 1], [b"e", 1])  # 60 are left
    assert office.boxes.full
    office.wire.answer([b"e", 1])
    assert not office.boxes.full
    assert [each for each in office.told if each != "answered"] == ["full", "not full"]


def test_a_window_that_is_exactly_filled_is_full() -> None:
    office = Office(SMALL)
    office.connect()
    for room in "abcd":
        office.publish("x" * 15, room=room)
    assert (office.boxes.space, office.boxes.full, office.told) == (0, True, ["full"])
    office.wire.answer([b"e", 1], [b"e", 1])
    assert (office.boxes.full, office.told[-1]) == (False, "not full")


def test_a_batch_has_a_size_and_the_rest_waits() -> None:
    office = Office(Config(batch_bytes=100, message_overhead_bytes=0))
    office.connect()
    office.publish("first")
    for number in range(5):
        office.publish(f"{number}" + "x" * 39)
    for _ in range(4):
        office.wire.answer([b"e", 1])
    assert [[text[0] for text in texts] for _, _, texts in office.wire.batches] == [[*"f"], [*"01"], [*"23"], [*"4"]]


def test_after_giving_up_nothing_is_taken_and_nothing_is_in_flight(office: Office) -> None:
    given_up = office.publish("one")
    flushed = office.boxes.flushed()
    office.boxes.abandon("the end")
    assert isinstance(outcome(given_up), NotPublished)
    assert flushed.called
    assert isinstance(outcome(office.publish("two")), NotPublished)


class Unlike(list[Message]):
    """Messages that count how often they are compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Unlike.compared += 1
        return self is other

    __hash__ = None


def test_what_was_not_synced_is_found_by_its_ticket_and_compared_with_nothing() -> None:
    office = Office(Config())
    published = [
        office.boxes.publish("ops", Unlike([message(f"{number}")]), {}, ticket=number % 2 + 1) for number in range(100)
    ]
    Unlike.compared = 0
    office.boxes.sync_failed(1, "broken")
    assert Unlike.compared == 0
    assert [isinstance(outcome(each), NotSynced) for each in published] == [True, False] * 50


# What an error costs


def test_a_batch_that_cannot_be_encoded_is_refused_and_the_next_one_goes_out(events: Events) -> None:
    office = Office(Config())
    office.connect()
    bad = office.boxes.publish("ops", [Message("s.1", 2**70, "s", "bad")], NO_IDS)
    good, other = office.publish("good"), office.publish("other", room="dev")
    assert isinstance(outcome(bad), NotPublished)
    assert office.wire.batches == [("ops", 2, ["good"]), ("dev", 3, ["other"])]
    office.wire.answer([b"e", 1], [b"e", 1])
    assert (outcome(good), outcome(other)) == (at("e", 1), at("e", 1))
    assert events.said == [("critical", "encoding messages of room ops failed")]


def test_a_wire_that_takes_no_command_refuses_one_batch_and_holds_up_no_other_room(events: Events) -> None:
    class Choosy(Publishing):
        def execute_command(self, *command: Any) -> "Deferred[Any]":
            if command[3] == b"ops":
                raise RuntimeError("no")
            return super().execute_command(*command)

    office = Office(Config())
    bad, good = office.publish("bad"), office.publish("good", room="dev")
    office.wire = Choosy()
    office.boxes.connected(office.wire, b"r1")
    office.boxes.go_live()
    office.wire.answer([b"e", 1])
    assert isinstance(outcome(bad), NotPublished)
    assert outcome(good) == at("e", 1)
