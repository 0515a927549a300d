"""The arguments and answers of ``scripts/presence.lua`` and ``scripts/members.lua``: steps and entries."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any
from urllib.parse import quote, unquote

from twisted.internet.defer import Deferred

from chatd.broker.presence_list import Identity, MemberList, PresentMember
from chatd.protocol.nick import keys


class NickTaken(Exception):
    """A nick is taken, and so are all names like it that were tried."""


_NO_CHOICES: Iterator[str] = iter(())  # shared by all that want no nick


@dataclass(slots=True)
class Step:
    """A change to the presence of a member, or a search for a nick."""

    what: str
    sender_id: str
    since: int = 0
    identity: Identity | None = None
    """None if the member leaves."""
    choices: Iterator[str] = field(init=False)
    rounds: int = 0
    """How often names were tried."""
    done: "Deferred[str]" = field(default_factory=Deferred)
    """Fires with the nick of the member."""
    was: str = ""
    """The nick before the step."""
    anew: bool = False
    """Whether the broker had lost the member, which was stored again."""

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Start again with the first name."""
        identity = self.identity
        if identity is None or not (identity.nick or identity.first):
            self.choices = _NO_CHOICES
        else:
            self.choices = identity.choices()
        self.rounds = 0

    def alone(self) -> bool:
        """Return whether only the first name will do."""
        if self.identity is None or not self.identity.nick:
            return True
        return self.what == "again" or (self.what == "free" and not (self.identity.owner or self.identity.marked))

    def size(self, most: int) -> int:
        """Return how many names to try next: one at first, then each time twice as many, up to ``most``.

        Many clients that want the same nick then need few queries.
        """
        return 1 if self.alone() else min(1 << self.rounds, most)

    def arguments(self, most: int) -> list[Any]:
        """Return the arguments of the script, with the next names to choose from."""
        if self.identity is None:
            return [self.what, self.sender_id, 0]
        identity = self.identity
        owner = identity.owner and quote(identity.owner)
        values: list[Any] = [self.since, owner, identity.origin, _keys(identity.nick)]
        for name in islice(self.choices, self.size(most)):
            values += [name, _keys(name)]
        self.rounds += 1
        return [self.what, self.sender_id, len(values), *values]


@lru_cache(maxsize=4096)
def _keys(nick: str) -> str:
    """Return the keys of a nick as an argument of the script."""
    return ",".join(map(quote, keys(nick)))


_SUBJECT = quote("sub\0")


def read_entry(sender_id: str, entry: bytes) -> PresentMember:
    """Parse the entry of a member."""
    since, _, nick, owner = [*entry.decode().split(" "), "", "", ""][:4]
    subject = unquote(owner.removeprefix(_SUBJECT)) if owner.startswith(_SUBJECT) else ""
    return PresentMember(sender_id, nick, int(since), subject)


def read_members(answer: list[Any]) -> MemberList:
    """Parse an answer of ``scripts/members.lua``."""
    version, count, *flat = answer
    if not flat and count:
        return MemberList(int(version), count, None)
    present = [read_entry(sender_id.decode(), entry) for sender_id, entry in zip(flat[::2], flat[1::2], strict=True)]
    return MemberList(int(version), count, sorted(present, key=lambda member: (member.since, member.session)))
