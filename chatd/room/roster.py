"""Who is in one room, as far as a worker knows: it sees that a change did not come, and what it must have been."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chatd.message import Change, Changes, Position

FIRST = 1000
"""Where nobody was, versions begin behind a multiple of this (``scripts/presence.lua``)."""


@dataclass(frozen=True, slots=True)
class Present:
    """Somebody in a room."""

    session: str
    nick: str
    """Empty where it has none."""
    since: int
    """Milliseconds since 1970."""


@dataclass(frozen=True, slots=True)
class Members:
    """Who was in a room when it was asked for."""

    version: int
    count: int
    present: Sequence[Present] | None
    """None where they are too many."""


@dataclass(frozen=True, slots=True)
class Occupied:
    """A room that has members, or messages."""

    room: str
    count: int
    """How many members there are."""
    top: Position
    """Where its order stands."""


class Roster:
    """Follows the changes of one room."""

    def __init__(self, members: Members) -> None:
        """Begin with who is there."""
        self.version = members.version
        self.count = members.count
        """How many they are, about, where they are too many to be told one by one."""
        self._nicks = _nicks(members)

    def take(self, told: Changes) -> Sequence[Change] | None:
        """Take what the bus tells: give what is new; None where something is missing, and all is to be read anew."""
        if told.version <= self.version:
            return ()
        follows = told.version == self.version + 1 or (not self.version and told.version % FIRST == 1)
        if not follows or self._nicks is None:  # too many were there, and now are not
            return None
        self.version, self.count = told.version, told.count
        if told.changes is None:
            self._nicks = None
            return ()
        for each in told.changes:
            if each.what == "leave":
                self._nicks.pop(each.session, None)
            else:
                self._nicks[each.session] = each.nick
        return told.changes

    def replace(self, members: Members) -> Sequence[Change]:
        """Take who is there now; give what must have happened."""
        before, now = self._nicks, _nicks(members)
        self.version, self.count, self._nicks = members.version, members.count, now
        return () if before is None or now is None else list(_between(before, now))


def _nicks(members: Members) -> dict[str, str] | None:
    return None if members.present is None else {each.session: each.nick for each in members.present}


def _between(before: dict[str, str], now: dict[str, str]) -> Iterator[Change]:
    for session, nick in before.items():
        if session not in now:
            yield Change("leave", session, nick, "")
        elif now[session] != nick:
            yield Change("nick", session, now[session], nick)
    for session, nick in now.items():
        if session not in before:
            yield Change("join", session, nick, "")
