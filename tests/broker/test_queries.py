"""What is asked of the broker: on a wire whose far end is the test, and on the real Valkey."""

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from chatd.broker.connection import AWAY_CODES, LinkLost, ReplyError, for_now
from chatd.broker.queries import TOPS, Queries, _Query
from chatd.config.settings import Config
from tests.broker.wire import Wire, outcome
from tests.fakes import Comparing, Events
from tests.rows import rows

CONFIG = Config(redis_concurrent_queries=2, redis_reconnect_max_delay=3)


class Desk:
    """Queries with their wire and clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.wire = Wire()
        self.queries = Queries(self.clock, CONFIG)

    def connect(self, run: bytes = b"r1") -> None:
        self.wire = Wire()
        self.queries.connected(self.wire, run)

    def ask(self, what: str = "a") -> "Deferred[Any]":
        return self.queries.ask(TOPS, [what.encode()], lambda run: [run])

    @property
    def asked(self) -> list[str]:
        """What was asked on the wire, in order."""
        return [call[3].decode() for call in self.wire.calls if call[0] == "EVALSHA"]


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.connect()
    return desk


def test_a_question_is_asked_at_once_and_answered(desk: Desk) -> None:
    answer = desk.ask()
    (call,) = desk.wire.calls
    assert (call[0], call[2:]) == ("EVALSHA", (1, b"a", b"r1"))
    assert outcome(answer) is None
    desk.wire.answer([b"e", 1])
    assert outcome(answer) == [b"e", 1]


def test_what_is_asked_before_there_is_a_link_waits_for_it() -> None:
    desk = Desk()
    answer = desk.ask()
    desk.connect()
    desk.wire.answer(1)
    assert outcome(answer) == 1


def test_no_more_are_on_the_wire_than_may_be_and_the_others_follow_in_turn(desk: Desk) -> None:
    answers = [desk.ask(name) for name in "abcd"]
    assert desk.asked == ["a", "b"]
    desk.wire.answer(1)
    assert desk.asked == ["a", "b", "c"]
    desk.wire.answer(2, 3, 4)
    assert [outcome(each) for each in answers] == [1, 2, 3, 4]


def test_what_was_on_a_wire_that_broke_is_asked_on_the_next_with_that_run(desk: Desk) -> None:
    answers = [desk.ask(name) for name in "abc"]
    desk.wire.lose()
    assert [outcome(each) for each in answers] == [None] * 3
    desk.connect(b"r2")
    assert sorted(desk.asked) == ["a", "b"]
    assert {call[4] for call in desk.wire.calls} == {b"r2"}
    desk.wire.answer(1, 2, 3)
    assert None not in [outcome(each) for each in answers]


def test_nothing_is_asked_on_a_connection_that_is_gone(desk: Desk) -> None:
    desk.wire.lose()
    desk.ask()
    assert desk.asked == []


def test_what_is_asked_before_the_lost_answers_of_the_old_wire_arrive_is_asked_on_the_new_one(desk: Desk) -> None:
    first, old = desk.ask("a"), desk.wire
    desk.connect()
    old.lose()
    desk.wire.answer(1)
    assert (desk.asked, outcome(first)) == (["a"], 1)


def test_a_script_that_the_broker_forgot_is_loaded_and_asked_again(desk: Desk) -> None:
    answer = desk.ask()
    desk.wire.answer(ReplyError("NOSCRIPT No matching script."))
    assert desk.wire.calls[1] == ("SCRIPT LOAD", TOPS.source)
    desk.wire.answer(b"digest", 1)
    assert (desk.asked, outcome(answer)) == (["a", "a"], 1)


def test_two_that_are_told_so_at_once_are_both_asked_again(desk: Desk) -> None:
    answers = [desk.ask(name) for name in "ab"]
    no = ReplyError("NOSCRIPT No matching script.")
    desk.wire.answer(no, no, b"digest", b"digest", 1, 2)
    assert (sorted(desk.asked), [outcome(each) is None for each in answers]) == (["a", "a", "b", "b"], [False] * 2)


def test_a_broker_that_does_not_take_the_script_is_asked_again_in_a_while(desk: Desk) -> None:
    answer = desk.ask()
    desk.wire.answer(ReplyError("NOSCRIPT No matching script."), ReplyError("NOPERM no"))
    assert desk.asked == ["a"]
    desk.clock.advance(3)
    desk.wire.answer(1)
    assert (desk.asked, outcome(answer)) == (["a", "a"], 1)


def test_once_stopped_no_timer_is_made_for_a_script_that_was_on_its_way(desk: Desk) -> None:
    desk.ask()
    desk.wire.answer(ReplyError("NOSCRIPT No matching script."))
    desk.queries.stop()
    desk.wire.lose()
    assert desk.clock.getDelayedCalls() == []


def test_a_wire_that_breaks_while_the_script_is_loaded_leaves_the_question_to_the_next(desk: Desk) -> None:
    answer = desk.ask()
    desk.wire.answer(ReplyError("NOSCRIPT No matching script."))
    desk.wire.lose()
    desk.connect()
    desk.wire.answer(1)
    assert outcome(answer) == 1


@pytest.mark.parametrize("code", sorted(AWAY_CODES))
def test_a_broker_that_cannot_answer_now_is_asked_again_in_a_while(desk: Desk, code: str) -> None:
    answer = desk.ask()
    desk.wire.answer(ReplyError(f"{code} why"))
    desk.clock.advance(2.9)
    assert (desk.asked, outcome(answer)) == (["a"], None)
    desk.clock.advance(0.1)
    desk.wire.answer(1)
    assert (desk.asked, outcome(answer)) == (["a", "a"], 1)


def test_while_it_cannot_there_is_one_timer_however_many_wait(desk: Desk) -> None:
    for name in "ab":
        desk.ask(name)
    desk.wire.answer(ReplyError("LOADING why"), ReplyError("LOADING why"))
    assert len(desk.clock.getDelayedCalls()) == 1


def test_what_waits_in_vain_does_not_hold_up_the_others(desk: Desk) -> None:
    desk.ask("a")
    desk.wire.answer(ReplyError("OOM why"))
    other = desk.ask("b")
    assert desk.asked == ["a", "a", "b"]
    desk.wire.answer(ReplyError("OOM why"), 2)
    assert outcome(other) == 2


def test_any_other_refusal_fails_the_question_and_the_next_is_asked(desk: Desk) -> None:
    failed, *_, last = [desk.ask(name) for name in "abc"]
    desk.wire.answer(ReplyError("WRONGTYPE no hash"), 2, 3)
    assert str(outcome(failed)) == "WRONGTYPE no hash"
    assert outcome(last) == 3


def test_a_question_that_waits_and_is_given_up_is_not_asked(desk: Desk) -> None:
    answers = [desk.ask(name) for name in "abcd"]
    answers[2].cancel()
    assert isinstance(outcome(answers[2]), CancelledError)
    desk.wire.answer(1, 2)
    assert desk.asked == ["a", "b", "d"]


@pytest.mark.parametrize("answer", [1, LinkLost("gone"), ReplyError("NOSCRIPT no"), ReplyError("WRONGTYPE no")])
def test_whatever_comes_for_a_question_that_was_given_up_is_nobodys_and_makes_room(desk: Desk, answer: Any) -> None:
    answers = [desk.ask(name) for name in "abc"]
    answers[0].cancel()
    assert isinstance(outcome(answers[0]), CancelledError)
    desk.wire.answer(answer)
    assert desk.asked == ["a", "b", "c"]
    desk.wire.answer(2, 3)
    assert [outcome(each) for each in answers[1:]] == [2, 3]


def test_one_who_asks_again_when_answered_is_asked_in_turn(desk: Desk) -> None:
    later: list[Deferred[Any]] = []
    desk.ask("a").addCallback(lambda _: later.append(desk.ask("b")))
    desk.wire.answer(1, 2)
    assert outcome(later[0]) == 2


def test_an_answer_that_its_asker_fails_on_is_that_ones_trouble(desk: Desk) -> None:
    first = desk.ask("a").addCallback(lambda _: 1 / 0)
    second = desk.ask("b")
    desk.wire.answer(1, 2)
    assert isinstance(outcome(first), ZeroDivisionError)
    assert outcome(second) == 2


def test_once_stopped_nothing_is_asked_and_no_timer_is_left(desk: Desk, events: Events) -> None:
    answers = [desk.ask(name) for name in "abc"]
    desk.wire.answer(ReplyError("LOADING why"))
    desk.queries.stop()
    wire = desk.wire
    wire.lose()
    desk.ask("d")
    assert (desk.clock.getDelayedCalls(), desk.asked) == ([], ["a", "b"])
    assert [outcome(each) for each in answers] == [None] * 3
    assert events.said == [("warn", "the broker refuses queries: LOADING why")]


def test_what_is_refused_for_long_is_given_up_and_the_first_refusal_is_said(desk: Desk, events: Events) -> None:
    answer = desk.ask("a")
    while desk.clock.seconds() < CONFIG.redis_query_timeout:
        assert not answer.called
        desk.wire.answer(ReplyError("NOPERM why"))
        desk.clock.advance(CONFIG.redis_reconnect_max_delay)
    desk.wire.answer(ReplyError("NOPERM why"))
    assert isinstance(outcome(answer), ReplyError)
    assert events.said == [("warn", "the broker refuses queries: NOPERM why")]


@rows(
    "why",
    [
        "OOM command not allowed",
        "ERR Error running script (call to f_1): @user_script:1: -OOM command not allowed",
        "ERR ACL failure in script",
        "The user executing the script can't run this command or subcommand script: 1",
    ],
)
def test_a_refusal_for_now_is_known_by_the_words_of_each_broker(why: str) -> None:
    assert for_now(Failure(ReplyError(why)))


def test_a_refusal_for_good_is_none_for_now() -> None:
    assert not for_now(Failure(ReplyError("WRONGTYPE Operation against a key")))


def test_giving_up_one_question_looks_at_no_other(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    comparing = Comparing(_Query, monkeypatch)
    answers = [desk.ask(str(number)) for number in range(100)]
    for answer in reversed(answers):
        answer.addErrback(lambda failure: failure.trap(CancelledError))
        answer.cancel()
    assert comparing.count == 0
    kept = desk.ask("kept")
    desk.wire.answer(1, 2)
    assert (desk.asked, outcome(kept)) == (["0", "1", "kept"], None)
    desk.wire.answer(3)
    assert outcome(kept) == 3


def test_a_question_that_cannot_be_put_into_bytes_fails_alone_and_frees_its_place(desk: Desk) -> None:
    def fail(run: bytes) -> list[Any]:
        raise RuntimeError("no")

    answers = [desk.queries.ask(TOPS, [b"bad"], fail) for _ in range(CONFIG.redis_concurrent_queries)]
    assert [str(outcome(answer)) for answer in answers] == ["no"] * CONFIG.redis_concurrent_queries
    good = desk.ask("good")
    desk.wire.answer(1)
    assert outcome(good) == 1
