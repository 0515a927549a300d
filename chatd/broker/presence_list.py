"""Who is in one room, as far as a worker knows: it sees that a change did not come, and what it must have been."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from chatd.protocol.message import PresenceEvent, PresenceUpdate, StreamPosition
from chatd.protocol.nick import candidates

FIRST = 1000
"""Where nobody was, versions begin behind a multiple of this (``scripts/presence.lua``)."""


@dataclass(frozen=True, slots=True)
class PresentMember:
    """Somebody in a room."""

    session: str
    nick: str
    """Empty where it has none."""
    since: int
    """Milliseconds since 1970."""
    subject: str = ""
    """Who its token says it is; empty: it has none."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a member wants to be called, and with which right."""

    nick: str = ""
    """Empty where it wants none."""
    owner: str = ""
    """Whom its token names (``Grant.who``): all its members have one nick, which nobody else gets. Empty: nobody."""
    marked: bool = False
    """Whether its nick is never given without a number, for its token proves none."""
    origin: str = ""
    """The same for members that may be one client; empty: that does not matter. A member that comes while another of
    its origin has its nick gets the nick when that one has left."""
    first: str = ""
    """Another nick that it would rather have; empty: none."""

    def keeping(self, nick: str) -> "Identity":
        """Return the same, that would rather keep a nick where it has another one than it wants."""
        return replace(self, first=nick if nick != self.nick else "")

    def choices(self) -> Iterator[str]:
        """Yield the nicks that it may get, without end if it wants one."""
        if self.first:
            yield self.first
        if self.nick:
            yield from candidates(self.nick, marked=self.marked)


@dataclass(frozen=True, slots=True)
class MemberList:
    """Who was in a room when it was asked for."""

    version: int
    count: int
    present: Sequence[PresentMember] | None
    """None where they are too many."""


@dataclass(frozen=True, slots=True)
class OccupiedRoom:
    """A room that has members, or messages."""

    room: str
    count: int
    """How many members there are."""
    top: StreamPosition
    """Where its order stands."""


class PresenceList:
    """Follows the changes of one room."""

    def __init__(self, members: MemberList) -> None:
        """Begin with who is there."""
        self.version = members.version
        self.count = members.count
        """How many they are, about, where they are too many to be told one by one."""
        self._known = _known(members)

    def has(self, session: str) -> bool:
        """Whether somebody is there, as far as that is known."""
        return self._known is None or session in self._known

    def take(self, told: PresenceUpdate) -> Sequence[PresenceEvent] | None:
        """Take what the bus tells: give what is new; None where something is missing, and all is to be read anew."""
        if told.version <= self.version:
            return ()
        follows = told.version == self.version + 1 or (not self.version and told.version % FIRST == 1)
        if not follows or self._known is None:  # too many were there, and now are not
            return None
        self.version, self.count = told.version, told.count
        if told.changes is None:
            self._known = None
            return ()
        for each in told.changes:
            if each.what == "leave":
                self._known.pop(each.session, None)
            else:
                self._known[each.session] = (each.nick, each.subject)
        return told.changes

    def replace(self, members: MemberList) -> Sequence[PresenceEvent]:
        """Take who is there now; give what must have happened."""
        before, now = self._known, _known(members)
        self.version, self.count, self._known = members.version, members.count, now
        return () if before is None or now is None else list(_between(before, now))


_Known = dict[str, tuple[str, str]]
"""Nick and subject, by session."""


def _known(members: MemberList) -> _Known | None:
    if members.present is None:
        return None
    return {present.session: (present.nick, present.subject) for present in members.present}


def _between(before: _Known, now: _Known) -> Iterator[PresenceEvent]:
    for session, (was, subject) in before.items():
        if session not in now:
            yield PresenceEvent("leave", session, was, "", subject)
        elif now[session][0] != was:
            yield PresenceEvent("nick", session, now[session][0], was, subject)
    for session, (nick, subject) in now.items():
        if session not in before:
            yield PresenceEvent("join", session, nick, "", subject)
