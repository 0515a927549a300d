"""The presence list of a room, as a worker knows it.

It notices that an update is missing, and derives the presence events from a list that was read anew.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from chatd.protocol.message import PresenceEvent, PresenceUpdate, StreamPosition
from chatd.protocol.nick import candidates

FIRST = 1000
"""The versions of a room that was empty begin after a multiple of this (``scripts/presence.lua``)."""


@dataclass(frozen=True, slots=True)
class PresentMember:
    """A member of a room."""

    session: str
    nick: str
    """Empty: none."""
    since: int
    """Milliseconds since 1970."""
    subject: str = ""
    """The subject of its token; empty: none."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The nick that a member wants, and its right to it."""

    nick: str = ""
    """Empty: none."""
    owner: str = ""
    """The identity in its token: all members with it share one nick, which no other member gets. Empty: none."""
    marked: bool = False
    """Whether its nick always gets a number, because its token proves no nick."""
    origin: str = ""
    """The same for members that may be one client; empty: none. A member that joins while another of its origin has its
    nick gets the nick when that one has left."""
    first: str = ""
    """A nick to try first; empty: none."""

    def keeping(self, nick: str) -> "Identity":
        """Return the same identity, which tries to keep a nick first."""
        return replace(self, first=nick if nick != self.nick else "")

    def choices(self) -> Iterator[str]:
        """Yield the nicks to try, without end if it wants one."""
        if self.first:
            yield self.first
        if self.nick:
            yield from candidates(self.nick, marked=self.marked)


@dataclass(frozen=True, slots=True)
class MemberList:
    """The members of a room when they were read."""

    version: int
    count: int
    present: Sequence[PresentMember] | None
    """None if they are too many."""


@dataclass(frozen=True, slots=True)
class OccupiedRoom:
    """A room that has members or messages."""

    room: str
    count: int
    """The number of members."""
    top: StreamPosition
    """The newest stream position."""


class PresenceList:
    """The presence list of one room, updated by presence events."""

    def __init__(self, members: MemberList) -> None:
        """Start with a list that was read."""
        self.version = members.version
        self.count = members.count
        """The number of members, approximate if they are too many to be listed."""
        self._known = _known(members)

    def has(self, session: str) -> bool:
        """Return whether a member is present, or may be."""
        return self._known is None or session in self._known

    def apply(self, update: PresenceUpdate) -> Sequence[PresenceEvent] | None:
        """Apply an update. Return its events, or None if one is missing and the list must be read again."""
        if update.version <= self.version:
            return ()
        follows = update.version == self.version + 1 or (not self.version and update.version % FIRST == 1)
        if not follows or self._known is None:  # there were too many members, and no longer are
            return None
        self.version, self.count = update.version, update.count
        if update.changes is None:
            self._known = None
            return ()
        for event in update.changes:
            if event.what == "leave":
                self._known.pop(event.session, None)
            else:
                self._known[event.session] = (event.nick, event.subject)
        return update.changes

    def replace(self, members: MemberList) -> Sequence[PresenceEvent]:
        """Replace the list. Return the events that lead from the old to the new one."""
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
