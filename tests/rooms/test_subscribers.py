"""The live members of a room: who gets which part of what is said, in which dress, and who fails alone."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from chatd.monitoring.metrics import SENT_BYTES, SENT_MESSAGES
from chatd.protocol.close_codes import OUR_FAULT, CloseCode
from chatd.protocol.message import Batch, PresenceEvent
from chatd.protocol.text import Format, TextFormat
from tests.fakes import Events, FakeBus, FakeMember
from tests.rooms.house import TURNS, Failing, House, frames, make_house


@pytest.fixture
def house() -> House:
    return make_house(TURNS, FakeBus())


def test_all_get_the_same_blob_object(house: House) -> None:
    bob, eve = house.member("bob"), house.member("eve")
    house.hear("one", "two", number=1)
    assert bob.blobs[0] is eve.blobs[0]


def test_of_a_mixed_batch_an_author_hears_the_others_in_order(house: House) -> None:
    ann, bob, eve = house.member("ann"), house.member("bob"), house.member("eve", echo=True)
    for author, text in ((ann, "a1"), (bob, "b1"), (eve, "e1"), (ann, "a2")):
        house.hub.publisher.publish("ops", author, [text])
    house.go_round()
    assert ann.blobs == [frames("b1", "e1")]
    assert (ann.count, bob.count, eve.count) == (2, 3, 4)
    assert bob.blobs == [frames("a1", "e1", "a2")]
    assert eve.blobs == [frames("a1", "b1", "e1", "a2")]


def test_one_failing_member_does_not_stop_the_others(house: House, events: Events) -> None:
    bad = Failing("bad")
    house.hub.join("ops", bad)
    bob = house.member("bob")
    house.hear("one", number=1)
    assert bob.blobs == [frames("one")]
    assert bad.events == [OUR_FAULT]  # it is not left to miss the rest in silence
    assert events.said == [("critical", "something was not delivered to bad")]


def test_a_member_may_leave_while_a_batch_is_delivered(house: House) -> None:
    class Leaving(FakeMember):
        def deliver(self, blob: bytes, count: int) -> bool:
            house.hub.leave("ops", self)
            return False

    house.hub.join("ops", Leaving("shy"))
    bob = house.member("bob")
    house.hear("one", number=1)
    assert bob.blobs == [frames("one")]


def test_one_that_leaves_and_then_fails_does_not_stop_the_others(house: House, events: Events) -> None:
    class Leaving(FakeMember):
        def deliver(self, blob: bytes, count: int) -> bool:
            house.hub.leave("ops", self)
            raise RuntimeError("no")

    house.hub.join("ops", Leaving("shy"))
    bob = house.member("bob")
    house.hear("one", number=1)
    assert bob.blobs == [frames("one")]
    assert events.said == [("critical", "something was not delivered to shy")]


def test_own_lines_are_cut_out_where_several_authors_are_in_several_batches(house: House) -> None:
    ann, bob, eve, dan = house.member("ann"), house.member("bob"), house.member("eve", echo=True), house.member("dan")
    said = [("ann", ["a1", "a2"]), ("bob", ["b1"]), ("eve", ["e1"]), ("ann", ["a3"]), ("bob", ["b2", "b3"])]
    for number, (author, texts) in enumerate(said, 1):
        house.bring(*texts, number=number, sender_id=author)
    house.end_turn()
    assert ann.blobs == [frames("b1", "e1", "b2", "b3")]
    assert bob.blobs == [frames("a1", "a2", "e1", "a3")]
    assert eve.blobs == dan.blobs == [frames("a1", "a2", "b1", "e1", "a3", "b2", "b3")]
    assert [each.count for each in (ann, bob, eve, dan)] == [4, 4, 7, 7]


def test_one_that_said_all_of_it_gets_nothing(house: House) -> None:
    ann, bob = house.member("ann"), house.member("bob")
    house.bring("1", number=1, sender_id="ann")
    house.bring("2", "3", number=2, sender_id="ann")
    house.end_turn()
    assert (ann.blobs, ann.count) == ([], 0)
    assert bob.blobs == [frames("1", "2", "3")]


class Counting(TextFormat):
    """A dress that counts how often it is asked."""

    def __init__(self, sign: str) -> None:
        super().__init__(
            lambda message: f"{sign}{message.text}",
            lambda change: f"{sign}{change.what} {change.nick}",
            lambda payload: payload + b"\n",
        )
        self.framed: list[int] = []

    def frames(self, batches: Sequence[Batch]) -> list[bytes]:
        frames = super().frames(batches)
        self.framed.append(len(frames))
        return frames


def formatted(house: House, name: str, format: Format, **options: Any) -> FakeMember:
    member = FakeMember(name, format=format, **options)
    house.hub.join("ops", member)
    return member


def test_each_member_gets_messages_in_its_format(house: House) -> None:
    plus, minus = Counting("+"), Counting("-")
    members = [formatted(house, f"{number}", format) for number, format in enumerate((plus, minus, plus, minus))]
    bob = house.member("bob")
    house.bring("one", "two", number=1)
    house.end_turn()
    assert [each.blobs for each in members] == [[b"+one\n+two\n"], [b"-one\n-two\n"]] * 2
    assert bob.blobs == [frames("one", "two")]


def test_a_batch_is_framed_once_a_format_also_where_authors_are_in_it(house: House) -> None:
    plus, minus = Counting("+"), Counting("-")
    for number in range(10):
        formatted(house, f"p{number}", plus)
        formatted(house, f"m{number}", minus)
    author = formatted(house, "author", plus)
    house.bring("mine", number=1, sender_id="author")
    house.bring("one", "two", number=2)
    house.end_turn()
    assert (plus.framed, minus.framed) == ([3], [3])
    assert author.blobs == [b"+one\n+two\n"]


def test_a_format_that_nobody_wears_any_more_is_not_asked(house: House) -> None:
    plus = Counting("+")
    ann = formatted(house, "ann", plus)
    house.member("bob")
    house.hear("one", number=1)
    house.hub.leave("ops", ann)
    house.hear("two", number=2)
    assert plus.framed == [1]


def test_those_who_come_later_are_delivered_to_as_well(house: House) -> None:
    plus = Counting("+")
    ann = formatted(house, "ann", plus)
    house.hear("one", number=1)
    bob, eve = formatted(house, "bob", plus), house.member("eve")
    house.hear("two", number=2)
    assert ann.blobs == [b"+one\n", b"+two\n"]
    assert (bob.blobs, eve.blobs) == ([b"+two\n"], [frames("two")])


def changed(house: House, *changes: PresenceEvent) -> None:
    """Let it be told who came and went, and the turn end."""
    house.hub.presence_changed("ops", house.bus.top("ops"), changes)
    house.end_turn()


def test_who_comes_and_goes_is_told_in_each_format_and_to_nobody_in_one_that_is_silent(house: House) -> None:
    plus, minus = formatted(house, "p", Counting("+")), formatted(house, "m", Counting("-"))
    bob = house.member("bob")
    changed(house, PresenceEvent("join", "s", "ann", ""), PresenceEvent("leave", "t", "eve", ""))
    assert plus.blobs == [b"+join ann\n+leave eve\n"]
    assert minus.blobs == [b"-join ann\n-leave eve\n"]
    assert bob.blobs == []


def test_nobody_is_told_of_its_own_coming_and_going(house: House) -> None:
    plus = formatted(house, "p", Counting("+"), echo=True)
    changed(house, PresenceEvent("join", "p", "ann", ""), PresenceEvent("join", "s", "bob", ""))
    changed(house, PresenceEvent("nick", "p", "anna", "ann"))
    assert plus.blobs == [b"+join bob\n"]


def test_who_comes_and_goes_is_told_between_the_messages_where_it_was(house: House) -> None:
    plus = formatted(house, "p", Counting("+"))
    house.bring("one", number=1)
    house.hub.presence_changed("ops", house.bus.top("ops"), [PresenceEvent("join", "s", "ann", "")])
    house.bring("two", number=2)
    house.end_turn()
    assert b"".join(plus.blobs) == b"+one\n+join ann\n+two\n"


# What an error costs


class Broken(Counting):
    """A dress in which messages can't be framed for a while."""

    broken = True

    def frames(self, batches: Sequence[Batch]) -> list[bytes]:
        if self.broken:
            raise RuntimeError("no")
        return super().frames(batches)


def test_an_error_while_framing_closes_those_of_that_format_and_costs_nobody_else_a_line(
    house: House, events: Events
) -> None:
    before, broken = house.member("before"), Broken("+")
    first, second = formatted(house, "one", broken), formatted(house, "two", broken)
    after = formatted(house, "after", Counting("-"))
    house.hear("one", number=1)
    broken.broken = False
    house.hear("two", number=2)
    assert (first.events, second.events) == ([OUR_FAULT], [OUR_FAULT])
    assert b"".join(before.blobs) == frames("one") + frames("two")
    assert b"".join(after.blobs) == b"-one\n-two\n"
    assert (before.events, after.events) == ([], [])
    assert events.said == [("critical", "messages for 2 clients could not be framed")]


def test_an_error_while_showing_who_came_costs_only_those_of_that_format(house: House) -> None:
    class Silent(Counting):
        def change(self, room: str, change: PresenceEvent) -> bytes:
            raise RuntimeError("no")

    bad, good = formatted(house, "bad", Silent("+")), formatted(house, "good", Counting("-"))
    changed(house, PresenceEvent("join", "s", "ann", ""))
    house.hear("one", number=1)
    assert bad.events == [OUR_FAULT]
    assert b"".join(good.blobs) == b"-join ann\n-one\n"


def test_one_that_cannot_even_be_closed_does_not_stop_the_others(house: House, events: Events) -> None:
    class Stuck(Failing):
        def disconnect(self, close_code: CloseCode) -> None:
            raise RuntimeError("no")

    house.hub.join("ops", Stuck("bad"))
    bob = house.member("bob")
    house.hear("one", number=1)
    assert bob.blobs == [frames("one")]
    assert events.said == [("critical", "something was not delivered to bad"), ("critical", "bad was not closed")]


def test_an_error_that_is_nobodys_in_particular_closes_all_who_may_have_missed_something(house: House) -> None:
    class Unsure(FakeMember):
        @property
        def echo(self) -> bool:
            raise RuntimeError("no")

        @echo.setter
        def echo(self, echo: bool) -> None:
            pass

    house.hub.join("ops", Unsure("ann"))
    bob, eve = house.member("bob"), house.member("eve", "other")
    house.bring("one", number=1, sender_id="ann")
    house.hear("two", number=1, room="other")
    assert (bob.blobs, bob.events) == ([], [OUR_FAULT])
    assert (eve.blobs, eve.events) == ([frames("two")], [])
    house.hear("three", number=2)
    assert bob.blobs == [frames("three")]


# What is counted


class Sent:
    """What was counted as sent since then."""

    def __init__(self) -> None:
        self._before = self._now

    @property
    def _now(self) -> tuple[float, float, float]:
        return SENT_MESSAGES["live"].value, SENT_MESSAGES["history"].value, SENT_BYTES["live"].value

    @property
    def counted(self) -> tuple[float, ...]:
        return tuple(now - before for now, before in zip(self._now, self._before, strict=True))


def test_what_was_sent_is_counted_an_authors_own_left_out(house: House) -> None:
    house.member("ann"), house.member("bob")
    sent = Sent()
    house.bring("mine", number=1, sender_id="ann")
    house.bring("one", "two", number=2)
    house.end_turn()
    assert sent.counted == (5, 0, len(frames("one", "two")) + len(frames("mine", "one", "two")))


def test_what_a_member_that_falls_behind_is_not_given_is_counted_once_when_history_gives_it(house: House) -> None:
    slow, _ = house.member("slow"), house.member("bob")
    slow.buffer_full = True
    slow.fall_behind = lambda: house.hub.start_recovery("ops", slow)
    sent = Sent()
    house.hear("one", "two", number=1)
    assert sent.counted == (2, 0, len(frames("one", "two")))
    slow.buffer_full, slow.fall_behind = False, None
    house.hub.drained("ops", slow)
    house.bus.answer()
    assert slow.blobs == [frames("one", "two")]
    assert sent.counted == (2, 2, len(frames("one", "two")))


def test_what_fails_on_the_way_is_not_counted(house: House) -> None:
    house.hub.join("ops", Failing("bad"))
    sent = Sent()
    house.hear("one", number=1)
    assert sent.counted == (0, 0, 0)


# What it costs


class Frames(list[bytes]):
    """The frames of a batch, and how often one of them was looked at or moved."""

    touched = 0

    def __iter__(self) -> Iterator[bytes]:
        for frame in super().__iter__():
            Frames.touched += 1
            yield frame

    def copy(self) -> "Frames":
        Frames.touched += len(self)
        return Frames(self)


class Counted(Counting):
    """A dress whose frames count what is done to them."""

    def frames(self, batches: Sequence[Batch]) -> list[bytes]:
        return Frames(super().frames(batches))


def test_leaving_out_own_lines_looks_at_the_frames_as_often_for_many_authors_as_for_one(house: House) -> None:
    counted, touched = Counted("+"), []
    members = [formatted(house, f"m{number}", counted) for number in range(50)]
    house.member("bob")
    for authors in (1, 50):
        for number in range(50):
            house.bring(f"{number}", number=100 * authors + number, sender_id=f"m{number % authors}")
        Frames.touched = 0
        house.end_turn()
        touched.append(Frames.touched)
    assert touched[0] == touched[1]
    assert [member.count for member in members] == [49, *[99] * 49]
