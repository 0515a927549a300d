"""Who is in a room, as far as a worker knows."""

from chatd.broker.presence_list import Identity, MemberList, PresenceList, PresentMember
from chatd.protocol.message import PresenceEvent, PresenceUpdate, StreamPosition
from tests.rows import rows

AFTER = StreamPosition("e", 7)
ANN = PresentMember("s1", "ann", 1)
BOB = PresentMember("s2", "bob", 2)
U17 = PresentMember("s3", "eve", 3, "u-17")


def members(version: int, *present: PresentMember) -> MemberList:
    return MemberList(version, len(present), present)


def told(version: int, *changes: PresenceEvent, count: int = 2) -> PresenceUpdate:
    return PresenceUpdate(version, AFTER, count, changes)


def joined(session: str, nick: str) -> PresenceEvent:
    return PresenceEvent("join", session, nick, "")


def test_an_identity_keeps_a_nick_that_is_not_the_one_it_wants() -> None:
    ann = Identity("ann")
    assert [next(ann.keeping(nick).choices()) for nick in ("ann*2", "bob", "ann", "")] == ["ann*2", "bob", "ann", "ann"]


def test_what_follows_is_passed_on() -> None:
    presence_list = PresenceList(members(5, ANN))
    assert presence_list.apply(told(6, joined("s2", "bob"))) == (joined("s2", "bob"),)
    assert (presence_list.version, presence_list.count) == (6, 2)


def test_what_was_read_already_is_not_told_again() -> None:
    presence_list = PresenceList(members(5, ANN))
    assert presence_list.apply(told(5, joined("s1", "ann"))) == ()
    assert presence_list.version == 5


def test_where_something_is_missing_all_is_to_be_read() -> None:
    presence_list = PresenceList(members(5, ANN))
    assert presence_list.apply(told(7, joined("s2", "bob"))) is None
    assert presence_list.version == 5


@rows(
    ("before", "now", "changes"),
    [
        ((ANN,), (ANN, BOB), [joined("s2", "bob")]),
        ((ANN, BOB), (BOB,), [PresenceEvent("leave", "s1", "ann", "")]),
        ((ANN,), (PresentMember("s1", "anna", 1),), [PresenceEvent("nick", "s1", "anna", "ann")]),
        ((ANN,), (PresentMember("s3", "ann", 3),), [PresenceEvent("leave", "s1", "ann", ""), joined("s3", "ann")]),
        ((ANN, BOB), (BOB, ANN), []),
        ((ANN,), (ANN, U17), [PresenceEvent("join", "s3", "eve", "", "u-17")]),
        ((U17,), (PresentMember("s3", "eva", 3, "u-17"),), [PresenceEvent("nick", "s3", "eva", "eve", "u-17")]),
        ((U17,), (), [PresenceEvent("leave", "s3", "eve", "", "u-17")]),
    ],
)
def test_what_must_have_happened_is_seen_when_all_is_read_anew(
    before: tuple[PresentMember, ...], now: tuple[PresentMember, ...], changes: list[PresenceEvent]
) -> None:
    presence_list = PresenceList(members(5, *before))
    assert presence_list.replace(members(9, *now)) == changes
    assert presence_list.version == 9


def test_it_goes_on_from_what_was_passed_on() -> None:
    presence_list = PresenceList(members(5, ANN))
    presence_list.apply(
        told(
            6, joined("s2", "bob"), PresenceEvent("nick", "s1", "anna", "ann"), PresenceEvent("leave", "s2", "bob", "")
        )
    )
    assert presence_list.replace(members(7, PresentMember("s1", "anna", 1))) == []


def test_too_many_to_be_told_one_by_one_are_counted() -> None:
    presence_list = PresenceList(members(5, ANN))
    assert presence_list.apply(PresenceUpdate(6, AFTER, 501, None)) == ()
    assert (presence_list.version, presence_list.count) == (6, 501)


def test_when_they_are_few_enough_again_all_is_read_and_nothing_told() -> None:
    presence_list = PresenceList(MemberList(5, 501, None))
    assert presence_list.apply(PresenceUpdate(6, AFTER, 500, None)) is None
    assert presence_list.replace(members(6, ANN, BOB)) == ()
    assert presence_list.apply(told(7, PresenceEvent("leave", "s2", "bob", ""))) == (
        PresenceEvent("leave", "s2", "bob", ""),
    )
