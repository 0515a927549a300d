"""The places of clients with a resume key, on a wire whose far end is the test."""

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from chatd.broker.connection import ReplyError
from chatd.broker.queries import Queries
from chatd.broker.resume_positions import KeyContested, ResumePosition, ResumePositions, TakenOver
from chatd.config.settings import Config
from chatd.protocol.message import StreamPosition
from tests.broker.wire import Wire, outcome
from tests.fakes import Events

CLAIMED = [b"e", b"7", b"s1", 0]
"""The answer to a claim of what nobody has."""

TAKEN = [b"e", b"5", b"s1", 1]
"""The answer to a claim of what another has."""


class Office:
    """Places with their wire and clock, and the connections of this worker."""

    def __init__(self, **knobs: Any) -> None:
        knobs = {
            "redis_prefix": "p",
            "history_ttl": 80,
            "takeover_timeout": 1,
            "resume_positions_per_write": 3,
            **knobs,
        }
        config = Config(**knobs)
        self.clock = Clock()
        self.wire = Wire()
        self.queries = Queries(self.clock, config)
        self.queries.connected(self.wire, b"r1")
        self.here: dict[tuple[str, str], ResumePosition] = {}
        self.places = ResumePositions(
            self.clock, self.queries, config, "w1", lambda room, id: self.here.pop((room, id), None)
        )
        self.places.connected(b"r1")

    def claim(self, session: str = "s2") -> "Deferred[ResumePosition]":
        return self.places.claim("ops", "k", session)

    def save(self, session: str = "s1", offset: int = 7, *, key: str = "k", left: bool = False) -> None:
        self.places.save("ops", key, session, place(offset), left=left)

    def end_turn(self) -> None:
        self.clock.advance(0)

    @property
    def saved(self) -> list[dict[str, tuple[Any, ...]]]:
        """For each save that was sent: each place, by its key, with session, worker, epoch, offset, author, outcome."""
        saves = []
        for call in self.wire.calls:
            if call[2 + call[2] + 1 :][1:2] == (b"p:worker:",):
                keys, values = call[3 : 3 + call[2]], call[5 + call[2] :]
                saves.append({key.decode(): values[6 * at : 6 * at + 6] for at, key in enumerate(keys)})
        return saves


def place(offset: int, sender_id: str = "s1") -> ResumePosition:
    return ResumePosition(StreamPosition("e", offset), sender_id)


@pytest.fixture
def office() -> Office:
    return Office()


def test_a_worker_has_a_channel_of_its_own(office: Office) -> None:
    assert office.places.channel == b"p:worker:w1"


# Claiming


def test_a_place_that_nobody_has_is_given_as_it_is_kept(office: Office) -> None:
    claimed = office.claim()
    (call,) = office.wire.calls
    assert call[2:] == (1, b"p:place:k:ops", "w1", "s2", 80, b"p:worker:", "k ops", 0, 5, 10)
    office.wire.answer(CLAIMED)
    assert outcome(claimed) == place(7)
    assert office.clock.getDelayedCalls() == []


def test_one_that_only_begins_has_no_position(office: Office) -> None:
    claimed = office.claim()
    office.wire.answer([b"", b"0", b"s2", 0])
    assert outcome(claimed) == ResumePosition(None, "s2")


def test_who_is_asked_to_give_a_place_up_is_waited_for_and_it_is_claimed_anew(office: Office) -> None:
    claimed = office.claim()
    office.wire.answer(TAKEN)
    assert (outcome(claimed), len(office.wire.calls)) == (None, 1)
    office.places.received(b"given s2")
    assert office.wire.calls[1] == (*office.wire.calls[0][:-3], 1, 5, 10)
    office.wire.answer(CLAIMED)
    assert outcome(claimed) == place(7)
    assert office.clock.getDelayedCalls() == []


def test_who_answers_before_the_broker_does_is_not_waited_for(office: Office) -> None:
    claimed = office.claim()
    office.places.received(b"given s2")
    office.wire.answer(TAKEN, CLAIMED)
    assert outcome(claimed) == place(7)


def test_who_does_not_answer_is_not_waited_for_any_longer_than_that(office: Office) -> None:
    claimed = office.claim()
    office.wire.answer(TAKEN)
    office.clock.advance(0.9)
    assert len(office.wire.calls) == 1
    office.clock.advance(0.2)
    office.wire.answer([b"e", b"5", b"s1", 0])
    assert outcome(claimed) == place(5)
    office.places.received(b"given s2")


def test_an_answer_to_another_claim_is_not_taken_for_ones_own(office: Office) -> None:
    claimed = office.claim()
    office.wire.answer(TAKEN)
    office.places.received(b"given s3")
    assert (outcome(claimed), len(office.wire.calls)) == (None, 1)


def test_a_claim_fails_where_another_has_come_with_that_key_meanwhile(office: Office) -> None:
    claimed = office.claim()
    office.wire.answer(TAKEN)
    office.clock.advance(1)
    office.wire.answer(None)
    assert isinstance(outcome(claimed), TakenOver)


def test_a_claim_of_what_clients_fight_for_says_when_to_try_again(office: Office) -> None:
    claimed = office.claim()
    office.wire.answer(10)
    contested = outcome(claimed)
    assert isinstance(contested, KeyContested)
    assert contested.seconds == 10


def test_a_claim_that_is_given_up_waits_for_nothing(office: Office) -> None:
    claimed = office.claim()
    office.wire.answer(TAKEN)
    claimed.addErrback(lambda _: None)
    claimed.cancel()
    office.places.received(b"given s2")
    assert (office.clock.getDelayedCalls(), len(office.wire.calls)) == ([], 1)


# Giving up


def test_what_is_asked_for_is_given_up_and_written_down_for_who_asks(office: Office) -> None:
    office.here["ops", "s1"] = place(9, "s0")
    office.places.received(b"take s1 k ops")
    assert office.here == {}
    office.end_turn()
    assert office.saved == [{"p:place:k:ops": ("s1", "w1", "e", 9, "s0", "given")}]


def test_a_room_may_have_colons_in_its_name(office: Office) -> None:
    office.here["a:b", "s1"] = place(9)
    office.places.received(b"take s1 k a:b")
    office.end_turn()
    assert list(office.saved[0]) == ["p:place:k:a:b"]


def test_what_is_asked_for_and_has_just_left_is_given_as_it_left(office: Office) -> None:
    office.save("s1", 8, left=True)
    office.places.received(b"take s1 k ops")
    office.end_turn()
    assert office.saved == [{"p:place:k:ops": ("s1", "w1", "e", 8, "s1", "given")}]


def test_it_is_given_so_though_that_was_on_its_way_to_the_broker(office: Office) -> None:
    office.save("s1", 8, left=True)
    office.end_turn()
    office.places.received(b"take s1 k ops")
    office.wire.answer([])
    office.end_turn()
    assert office.saved[1] == {"p:place:k:ops": ("s1", "w1", "e", 8, "s1", "given")}


def test_what_is_asked_for_and_not_known_here_is_left_as_it_is_and_said(office: Office) -> None:
    office.places.received(b"take s1 k ops")
    office.end_turn()
    assert office.saved == [{"p:place:k:ops": ("s1", "w1", "", 0, "", "given")}]


def test_those_who_left_are_remembered_up_to_a_bound(office: Office) -> None:
    for number in range(5):
        office.save(f"s{number}", number, left=True)
    for _ in range(2):
        office.end_turn()
        office.wire.answer([])
    for number in (1, 2):
        office.places.received(f"take s{number} k{number} ops".encode())
    office.end_turn()
    assert office.saved[2]["p:place:k1:ops"][2] == ""
    assert office.saved[2]["p:place:k2:ops"][2:4] == ("e", 2)


@pytest.mark.parametrize("writing", [0, 1])
def test_beyond_it_what_waits_to_be_written_or_is_being_written_is_known_all_the_same(
    office: Office, writing: int
) -> None:
    for number in range(5):
        office.save(f"s{number}", number, key=f"k{number}", left=True)
    for _ in range(writing):
        office.end_turn()
    office.places.received(b"take s1 k1 ops")
    for _ in range(writing):
        office.wire.answer([])
    office.end_turn()
    assert office.saved[writing]["p:place:k1:ops"] == ("s1", "w1", "e", 1, "s1", "given")


def test_one_is_given_up_and_another_of_that_key_is_written_in_one_turn(office: Office) -> None:
    office.save("s1", 8, left=True)
    office.save("s2", 9)
    office.end_turn()
    (call,) = office.wire.calls
    assert call[2:5] == (2, b"p:place:k:ops", b"p:place:k:ops")
    assert [call[at] for at in (7, 13)] == ["s1", "s2"]


def test_a_connection_whose_place_another_has_is_hung_up_on(office: Office) -> None:
    office.here["ops", "s1"] = place(9)
    office.save("s0", 3, key="other")
    office.save("s1", 8)
    office.end_turn()
    office.wire.answer([2])
    assert office.here == {}


def test_it_gives_what_it_has_when_that_is_asked_for_only_then(office: Office) -> None:
    office.here["ops", "s1"] = place(9)
    office.save("s1", 8)
    office.end_turn()
    office.wire.answer([1])
    office.places.received(b"take s1 k ops")
    office.end_turn()
    assert office.saved[1] == {"p:place:k:ops": ("s1", "w1", "e", 9, "s1", "given")}


# Saving


def test_a_place_is_written_at_the_end_of_the_turn(office: Office) -> None:
    office.save("s1", 7)
    assert office.saved == []
    office.end_turn()
    (call,) = office.wire.calls
    assert call[2:6] == (1, b"p:place:k:ops", 80, b"p:worker:")
    assert office.saved == [{"p:place:k:ops": ("s1", "w1", "e", 7, "s1", "")}]


def test_what_is_saved_in_one_turn_is_written_at_once_and_only_as_it_was_last(office: Office) -> None:
    for key, offset in (("a", 1), ("b", 2), ("a", 3)):
        office.save("s1", offset, key=key)
    office.end_turn()
    assert [{key: values[3] for key, values in save.items()} for save in office.saved] == [
        {"p:place:a:ops": 3, "p:place:b:ops": 2}
    ]


def test_it_is_written_all_the_same_in_time_for_the_broker_not_to_forget_it(office: Office) -> None:
    for wait, saves in ((0, 1), (1, 1), (1, 1), (18, 1), (1, 2)):
        office.clock.advance(wait)
        office.save("s1", 7)
        office.end_turn()
        assert len(office.saved) == saves
        if wait == 0:
            office.wire.answer([])


def test_a_broker_that_may_have_lost_it_gets_it_anew(office: Office) -> None:
    office.save("s1", 7)
    office.end_turn()
    office.wire.answer([])
    for run in (b"r1", b"r2"):
        office.places.connected(run)
        office.save("s1", 7)
        office.end_turn()
        office.places.connected(run)
    assert len(office.saved) == 2


def test_one_that_has_left_is_written_though_it_did_not_move_and_so_is_its_return(office: Office) -> None:
    for left in (False, True, False):
        office.save("s1", 7, left=left)
        office.end_turn()
        office.wire.answer([])
    assert [save["p:place:k:ops"][5] for save in office.saved] == ["", "left", ""]


def test_more_than_go_at_once_are_written_one_lot_after_the_other(office: Office) -> None:
    for number in range(7):
        office.save("s1", number, key=f"k{number}")
    office.end_turn()
    assert [len(save) for save in office.saved] == [3]
    for _ in range(2):
        office.wire.answer([])
        office.end_turn()
    assert [len(save) for save in office.saved] == [3, 3, 1]


def test_what_is_saved_while_the_broker_writes_follows_behind(office: Office) -> None:
    office.save("s1", 7)
    office.end_turn()
    office.save("s1", 8)
    office.end_turn()
    assert len(office.saved) == 1
    office.wire.answer([])
    office.end_turn()
    assert office.saved[1]["p:place:k:ops"][3] == 8


def test_a_refusal_is_said_and_the_next_is_written(office: Office, events: Events) -> None:
    office.save("s1", 7)
    office.end_turn()
    office.wire.answer(ReplyError("WRONGTYPE no hash"))
    assert events.said == [("error", "cannot write resume positions: WRONGTYPE no hash")]
    office.save("s1", 8)
    office.end_turn()
    assert len(office.saved) == 2


def test_what_a_broker_refuses_for_now_is_written_later() -> None:
    office = Office(redis_query_timeout=0)
    office.save("s1", 7, key="moves")
    office.save("s2", 8, key="stays", left=True)
    office.end_turn()
    office.save("s1", 9, key="moves")
    office.wire.answer(ReplyError("OOM command not allowed"))
    assert not office.places.saved().called
    office.clock.advance(0.9)
    assert len(office.saved) == 1
    office.clock.advance(0.1)
    assert {name: values[3] for name, values in office.saved[1].items()} == {
        "p:place:moves:ops": 9,
        "p:place:stays:ops": 8,
    }


def test_a_write_whose_answer_was_lost_is_done_again(office: Office) -> None:
    office.save("s1", 7)
    office.end_turn()
    old = office.wire
    office.wire = Wire()
    old.lose()
    office.queries.connected(office.wire, b"r1")
    assert office.saved == [{"p:place:k:ops": ("s1", "w1", "e", 7, "s1", "")}]


def test_saved_fires_once_all_lots_are_written(office: Office) -> None:
    assert office.places.saved().called
    for number in range(4):
        office.save("s1", number, key=f"k{number}")
    saved = office.places.saved()
    for _ in range(2):
        office.end_turn()
        assert not saved.called
        office.wire.answer([])
    assert saved.called
