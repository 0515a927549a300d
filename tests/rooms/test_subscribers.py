"""The live members of a room: who gets which part of what is said, in which dress, and who fails alone."""

from collections.abc import Iterator, Sequence
from typing import Any

from chatd.monitoring.metrics import SENT_BYTES, SENT_MESSAGES
from chatd.protocol.close_codes import OUR_FAULT, CloseCode
from chatd.protocol.message import Batch, PresenceEvent
from chatd.protocol.text import Format
from tests.fakes import Events, FakeMember
from tests.rooms.server import ChatServer, Failing, frames


def test_all_get_the_same_blob_object(server: ChatServer) -> None:
    bob, eve = server.subscriber("bob"), server.subscriber("eve")
    server.deliver("one", "two", number=1)
    assert bob.blobs[0] is eve.blobs[0]


def test_of_a_mixed_batch_an_author_hears_the_others_in_order(server: ChatServer) -> None:
    ann, bob, eve = server.subscriber("ann"), server.subscriber("bob"), server.subscriber("eve", echo=True)
    for author, text in ((ann, "a1"), (bob, "b1"), (eve, "e1"), (ann, "a2")):
        server.publish(author, text)
    server.settle()
    assert ann.blobs == [frames("b1", "e1")]
    assert (ann.count, bob.count, eve.count) == (2, 3, 4)
    assert bob.blobs == [frames("a1", "e1", "a2")]
    assert eve.blobs == [frames("a1", "b1", "e1", "a2")]


def test_one_failing_member_does_not_stop_the_others(server: ChatServer, events: Events) -> None:
    bad = Failing("bad")
    server.hub.join("ops", bad)
    bob = server.subscriber("bob")
    server.deliver("one", number=1)
    assert bob.blobs == [frames("one")]
    assert bad.events == [OUR_FAULT]  # it is not left to miss the rest in silence
    assert events.said == [("critical", "delivering to client bad failed")]


def test_a_member_may_leave_while_a_batch_is_delivered(server: ChatServer) -> None:
    class Leaving(FakeMember):
        def deliver(self, blob: bytes, count: int) -> bool:
            server.hub.leave("ops", self)
            return False

    server.hub.join("ops", Leaving("shy"))
    bob = server.subscriber("bob")
    server.deliver("one", number=1)
    assert bob.blobs == [frames("one")]


def test_one_that_leaves_and_then_fails_does_not_stop_the_others(server: ChatServer, events: Events) -> None:
    class Leaving(FakeMember):
        def deliver(self, blob: bytes, count: int) -> bool:
            server.hub.leave("ops", self)
            raise RuntimeError("no")

    server.hub.join("ops", Leaving("shy"))
    bob = server.subscriber("bob")
    server.deliver("one", number=1)
    assert bob.blobs == [frames("one")]
    assert events.said == [("critical", "delivering to client shy failed")]


def test_own_lines_are_cut_out_where_several_authors_are_in_several_batches(server: ChatServer) -> None:
    ann, bob, eve, dan = (
        server.subscriber("ann"),
        server.subscriber("bob"),
        server.subscriber("eve", echo=True),
        server.subscriber("dan"),
    )
    said = [("ann", ["a1", "a2"]), ("bob", ["b1"]), ("eve", ["e1"]), ("ann", ["a3"]), ("bob", ["b2", "b3"])]
    for number, (author, texts) in enumerate(said, 1):
        server.receive(*texts, number=number, sender_id=author)
    server.end_turn()
    assert ann.blobs == [frames("b1", "e1", "b2", "b3")]
    assert bob.blobs == [frames("a1", "a2", "e1", "a3")]
    assert eve.blobs == dan.blobs == [frames("a1", "a2", "b1", "e1", "a3", "b2", "b3")]
    assert [each.count for each in (ann, bob, eve, dan)] == [4, 4, 7, 7]


def test_one_that_said_all_of_it_gets_nothing(server: ChatServer) -> None:
    ann, bob = server.subscriber("ann"), server.subscriber("bob")
    server.receive("1", number=1, sender_id="ann")
    server.receive("2", "3", number=2, sender_id="ann")
    server.end_turn()
    assert (ann.blobs, ann.count) == ([], 0)
    assert bob.blobs == [frames("1", "2", "3")]


class Counting(Format):
    """A dress that counts how often it is asked."""

    def __init__(self, sign: str) -> None:
        super().__init__(
            lambda message, *_: f"{sign}{message.text}".encode(),
            lambda _, change: f"{sign}{change.what} {change.nick}".encode(),
            lambda payload: payload + b"\n",
        )
        self.framed: list[int] = []

    def frames(self, batches: Sequence[Batch]) -> list[bytes]:
        frames = super().frames(batches)
        self.framed.append(len(frames))
        return frames


def formatted(server: ChatServer, name: str, format: Format, **options: Any) -> FakeMember:
    member = FakeMember(name, format=format, **options)
    server.hub.join("ops", member)
    return member


def test_each_member_gets_messages_in_its_format(server: ChatServer) -> None:
    plus, minus = Counting("+"), Counting("-")
    members = [formatted(server, f"{number}", format) for number, format in enumerate((plus, minus, plus, minus))]
    bob = server.subscriber("bob")
    server.receive("one", "two", number=1)
    server.end_turn()
    assert [each.blobs for each in members] == [[b"+one\n+two\n"], [b"-one\n-two\n"]] * 2
    assert bob.blobs == [frames("one", "two")]


def test_a_batch_is_framed_once_a_format_also_where_authors_are_in_it(server: ChatServer) -> None:
    plus, minus = Counting("+"), Counting("-")
    for number in range(10):
        formatted(server, f"p{number}", plus)
        formatted(server, f"m{number}", minus)
    author = formatted(server, "author", plus)
    server.receive("mine", number=1, sender_id="author")
    server.receive("one", "two", number=2)
    server.end_turn()
    assert (plus.framed, minus.framed) == ([3], [3])
    assert author.blobs == [b"+one\n+two\n"]


def test_a_format_that_nobody_wears_any_more_is_not_asked(server: ChatServer) -> None:
    plus = Counting("+")
    ann = formatted(server, "ann", plus)
    server.subscriber("bob")
    server.deliver("one", number=1)
    server.hub.leave("ops", ann)
    server.deliver("two", number=2)
    assert plus.framed == [1]


def test_those_who_come_later_are_delivered_to_as_well(server: ChatServer) -> None:
    plus = Counting("+")
    ann = formatted(server, "ann", plus)
    server.deliver("one", number=1)
    bob, eve = formatted(server, "bob", plus), server.subscriber("eve")
    server.deliver("two", number=2)
    assert ann.blobs == [b"+one\n", b"+two\n"]
    assert (bob.blobs, eve.blobs) == ([b"+two\n"], [frames("two")])


def changed(server: ChatServer, *changes: PresenceEvent) -> None:
    """Deliver presence events, and end the turn."""
    server.hub.presence_changed("ops", server.bus.top("ops"), changes)
    server.end_turn()


def test_who_comes_and_goes_is_told_in_each_format_and_to_nobody_in_one_that_is_silent(server: ChatServer) -> None:
    plus, minus = formatted(server, "p", Counting("+")), formatted(server, "m", Counting("-"))
    bob = server.subscriber("bob")
    changed(server, PresenceEvent("join", "s", "ann", ""), PresenceEvent("leave", "t", "eve", ""))
    assert plus.blobs == [b"+join ann\n+leave eve\n"]
    assert minus.blobs == [b"-join ann\n-leave eve\n"]
    assert bob.blobs == []


def test_nobody_is_told_of_its_own_coming_and_going(server: ChatServer) -> None:
    plus = formatted(server, "p", Counting("+"), echo=True)
    changed(server, PresenceEvent("join", "p", "ann", ""), PresenceEvent("join", "s", "bob", ""))
    changed(server, PresenceEvent("nick", "p", "anna", "ann"))
    assert plus.blobs == [b"+join bob\n"]


def test_who_comes_and_goes_is_told_between_the_messages_where_it_was(server: ChatServer) -> None:
    plus = formatted(server, "p", Counting("+"))
    server.receive("one", number=1)
    server.hub.presence_changed("ops", server.bus.top("ops"), [PresenceEvent("join", "s", "ann", "")])
    server.receive("two", number=2)
    server.end_turn()
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
    server: ChatServer, events: Events
) -> None:
    before, broken = server.subscriber("before"), Broken("+")
    first, second = formatted(server, "one", broken), formatted(server, "two", broken)
    after = formatted(server, "after", Counting("-"))
    server.deliver("one", number=1)
    broken.broken = False
    server.deliver("two", number=2)
    assert (first.events, second.events) == ([OUR_FAULT], [OUR_FAULT])
    assert b"".join(before.blobs) == frames("one") + frames("two")
    assert b"".join(after.blobs) == b"-one\n-two\n"
    assert (before.events, after.events) == ([], [])
    assert events.said == [("critical", "encoding messages for 2 clients failed")]


def test_an_error_while_showing_who_came_costs_only_those_of_that_format(server: ChatServer) -> None:
    class Silent(Counting):
        def change(self, room: str, change: PresenceEvent) -> bytes:
            raise RuntimeError("no")

    bad, good = formatted(server, "bad", Silent("+")), formatted(server, "good", Counting("-"))
    changed(server, PresenceEvent("join", "s", "ann", ""))
    server.deliver("one", number=1)
    assert bad.events == [OUR_FAULT]
    assert b"".join(good.blobs) == b"-join ann\n-one\n"


def test_one_that_cannot_even_be_closed_does_not_stop_the_others(server: ChatServer, events: Events) -> None:
    class Stuck(Failing):
        def disconnect(self, close_code: CloseCode) -> None:
            raise RuntimeError("no")

    server.hub.join("ops", Stuck("bad"))
    bob = server.subscriber("bob")
    server.deliver("one", number=1)
    assert bob.blobs == [frames("one")]
    assert events.said == [("critical", "delivering to client bad failed"), ("critical", "closing client bad failed")]


def test_an_error_that_is_nobodys_in_particular_closes_all_who_may_have_missed_something(server: ChatServer) -> None:
    class Unsure(FakeMember):
        @property
        def echo(self) -> bool:
            raise RuntimeError("no")

        @echo.setter
        def echo(self, echo: bool) -> None:
            pass

    server.hub.join("ops", Unsure("ann"))
    bob, eve = server.subscriber("bob"), server.subscriber("eve", "other")
    server.receive("one", number=1, sender_id="ann")
    server.deliver("two", number=1, room="other")
    assert (bob.blobs, bob.events) == ([], [OUR_FAULT])
    assert (eve.blobs, eve.events) == ([frames("two")], [])
    server.deliver("three", number=2)
    assert bob.blobs == [frames("three")]


# What is counted


class Sent:
    """The messages and bytes that were counted as sent since then."""

    def __init__(self) -> None:
        self._before = self._now

    @property
    def _now(self) -> tuple[float, float, float]:
        return SENT_MESSAGES["live"].value, SENT_MESSAGES["history"].value, SENT_BYTES["live"].value

    @property
    def counted(self) -> tuple[float, ...]:
        return tuple(now - before for now, before in zip(self._now, self._before, strict=True))


def test_what_was_sent_is_counted_an_authors_own_left_out(server: ChatServer) -> None:
    server.subscriber("ann"), server.subscriber("bob")
    sent = Sent()
    server.receive("mine", number=1, sender_id="ann")
    server.receive("one", "two", number=2)
    server.end_turn()
    assert sent.counted == (5, 0, len(frames("one", "two")) + len(frames("mine", "one", "two")))


def test_what_a_member_that_falls_behind_is_not_given_is_counted_once_when_history_gives_it(server: ChatServer) -> None:
    slow, _ = server.subscriber("slow"), server.subscriber("bob")
    slow.buffer_full = True
    slow.fall_behind = lambda: server.hub.start_recovery("ops", slow)
    sent = Sent()
    server.deliver("one", "two", number=1)
    assert sent.counted == (2, 0, len(frames("one", "two")))
    slow.buffer_full, slow.fall_behind = False, None
    server.hub.drained("ops", slow)
    server.bus.answer()
    assert slow.blobs == [frames("one", "two")]
    assert sent.counted == (2, 2, len(frames("one", "two")))


def test_what_fails_on_the_way_is_not_counted(server: ChatServer) -> None:
    server.hub.join("ops", Failing("bad"))
    sent = Sent()
    server.deliver("one", number=1)
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


def test_leaving_out_own_lines_looks_at_the_frames_as_often_for_many_authors_as_for_one(server: ChatServer) -> None:
    counted, touched = Counted("+"), []
    members = [formatted(server, f"m{number}", counted) for number in range(50)]
    server.subscriber("bob")
    for authors in (1, 50):
        for number in range(50):
            server.receive(f"{number}", number=100 * authors + number, sender_id=f"m{number % authors}")
        Frames.touched = 0
        server.end_turn()
        touched.append(Frames.touched)
    assert touched[0] == touched[1]
    assert [member.count for member in members] == [49, *[99] * 49]
