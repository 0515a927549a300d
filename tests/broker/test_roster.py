"""Who is in a room, as far as a worker knows."""

import pytest

from chatd.broker.roster import Identity, Members, Present, Roster
from chatd.protocol.message import Change, Changes, Position

AFTER = Position("e", 7)
ANN = Present("s1", "ann", 1)
BOB = Present("s2", "bob", 2)
U17 = Present("s3", "eve", 3, "u-17")


def members(version: int, *present: Present) -> Members:
    return Members(version, len(present), present)


def told(version: int, *changes: Change, count: int = 2) -> Changes:
    return Changes(version, AFTER, count, changes)


def joined(session: str, nick: str) -> Change:
    return Change("join", session, nick, "")


def test_an_identity_keeps_a_nick_that_is_not_the_one_it_wants() -> None:
    ann = Identity("ann")
    assert [next(ann.keeping(nick).choices()) for nick in ("ann*2", "bob", "ann", "")] == ["ann*2", "bob", "ann", "ann"]


def test_what_follows_is_passed_on() -> None:
    roster = Roster(members(5, ANN))
    assert roster.take(told(6, joined("s2", "bob"))) == (joined("s2", "bob"),)
    assert (roster.version, roster.count) == (6, 2)


def test_what_was_read_already_is_not_told_again() -> None:
    roster = Roster(members(5, ANN))
    assert roster.take(told(5, joined("s1", "ann"))) == ()
    assert roster.version == 5


def test_where_something_is_missing_all_is_to_be_read() -> None:
    roster = Roster(members(5, ANN))
    assert roster.take(told(7, joined("s2", "bob"))) is None
    assert roster.version == 5


@pytest.mark.parametrize(
    ("before", "now", "changes"),
    [
        ((ANN,), (ANN, BOB), [joined("s2", "bob")]),
        ((ANN, BOB), (BOB,), [Change("leave", "s1", "ann", "")]),
        ((ANN,), (Present("s1", "anna", 1),), [Change("nick", "s1", "anna", "ann")]),
        ((ANN,), (Present("s3", "ann", 3),), [Change("leave", "s1", "ann", ""), joined("s3", "ann")]),
        ((ANN, BOB), (BOB, ANN), []),
        ((ANN,), (ANN, U17), [Change("join", "s3", "eve", "", "u-17")]),
        ((U17,), (Present("s3", "eva", 3, "u-17"),), [Change("nick", "s3", "eva", "eve", "u-17")]),
        ((U17,), (), [Change("leave", "s3", "eve", "", "u-17")]),
    ],
)
def test_what_must_have_happened_is_seen_when_all_is_read_anew(
    before: tuple[Present, ...], now: tuple[Present, ...], changes: list[Change]
) -> None:
    roster = Roster(members(5, *before))
    assert roster.replace(members(9, *now)) == changes
    assert roster.version == 9


def test_it_goes_on_from_what_was_passed_on() -> None:
    roster = Roster(members(5, ANN))
    roster.take(told(6, joined("s2", "bob"), Change("nick", "s1", "anna", "ann"), Change("leave", "s2", "bob", "")))
    assert roster.replace(members(7, Present("s1", "anna", 1))) == []


def test_too_many_to_be_told_one_by_one_are_counted() -> None:
    roster = Roster(members(5, ANN))
    assert roster.take(Changes(6, AFTER, 501, None)) == ()
    assert (roster.version, roster.count) == (6, 501)


def test_when_they_are_few_enough_again_all_is_read_and_nothing_told() -> None:
    roster = Roster(Members(5, 501, None))
    assert roster.take(Changes(6, AFTER, 500, None)) is None
    assert roster.replace(members(6, ANN, BOB)) == ()
    assert roster.take(told(7, Change("leave", "s2", "bob", ""))) == (Change("leave", "s2", "bob", ""),)
