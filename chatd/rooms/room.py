"""One room on this worker: who of it is live, who is behind, and what is to be delivered next."""

from collections.abc import Callable
from itertools import groupby
from typing import Any, Protocol, cast

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from chatd.broker.presence_list import Identity
from chatd.config.settings import Config
from chatd.protocol.message import Batch, HistoryRange, OffsetGap, PresenceEvent, StreamPosition
from chatd.rooms import subscribers
from chatd.rooms.ordering import Item, Ordering
from chatd.rooms.recovery import Recovery, Tail
from chatd.rooms.subscribers import Subscribers

log = Logger()


class Subscriber(subscribers.LiveSubscriber, Protocol):
    """What is asked of a client that joins a room."""

    @property
    def identity(self) -> Identity:
        """What it wants to be called, and with which right."""

    @property
    def key(self) -> str:
        """Its resume key; empty where it has none."""

    @property
    def lingers(self) -> bool:
        """Whether it may come back unnoticed."""

    @property
    def listens(self) -> bool:
        """Whether it wants to know who comes and goes."""

    def renamed(self, nick: str) -> None:
        """Learn that it has another nick."""

    def missed_changes(self) -> None:
        """Learn that it was not told of all who came and went, while it was behind."""

    @property
    def since(self) -> StreamPosition | None:
        """From where on it wants to hear, where it has no place under its key."""

    @property
    def last(self) -> int:
        """Else, how many messages that were said before."""

    def given(self, position: StreamPosition) -> StreamPosition | None:
        """Learn that it was given all up to a position. Gives up to where it has surely got it, if that is known."""

    @property
    def got_all(self) -> bool:
        """Whether it had got all that was written to it, its end included, when its connection ended."""

    def given_early(self, position: StreamPosition) -> None:
        """Learn that it was given all up to a position, soon after it was."""


class Room:
    """Whose members are here. What its timeline gives out is pending until ``deliver`` is called."""

    __slots__ = (
        "_behind",
        "_config",
        "_done",
        "_heard",
        "_losses",
        "_pending",
        "_read",
        "_subscribers",
        "_tail",
        "_told",
        "name",
        "ordering",
    )

    def __init__(
        self,
        name: str,
        config: Config,
        *,
        read: Callable[[str, StreamPosition | None, int], "Deferred[HistoryRange]"],
        pending: Callable[["Room", Item], None],
        losses: Callable[[OffsetGap, int], None],
    ) -> None:
        """Take what reads a room's history, what hears that something is pending, and what counts who lost what."""
        self.name = name
        self.ordering = Ordering(config, lambda after, most: read(name, after, most), self._in_order)
        """Its order."""
        self._config = config
        self._read = read
        self._heard = pending
        self._losses = losses
        self._subscribers = Subscribers()
        self._behind: dict[str, Recovery] = {}  # by author
        self._tail: Tail | None = None  # while anybody is behind
        self._pending: list[Item] = []
        self._told = 0  # changes of who is here, so far
        self._done = StreamPosition("", 0)  # up to where those who are live have been given everything

    # Who is here

    def __bool__(self) -> bool:
        """Whether anybody is."""
        return bool(self._subscribers or self._behind)

    def member(self, author: str) -> Subscriber | None:
        """Give the member that is this author, if it is here."""
        behind = self._behind.get(author)
        return cast("Subscriber | None", behind.member if behind is not None else self._subscribers.get(author))

    def position(self, member: Subscriber) -> StreamPosition:
        """Say up to where a member that is here was given everything."""
        if (behind := self._behind.get(member.author)) is not None:
            return behind.position
        return self._done if self._pending else self.ordering.position

    def admit(self, member: Subscriber, start: StreamPosition | None) -> Callable[[], None] | None:
        """Let a member in, to hear what follows on a position, or on as many messages as it asks for.

        What is given, if anything, is to be called once the member can be sent something.
        """
        top = self.ordering.position
        floor = StreamPosition(
            top.epoch, max(0, top.offset - self._config.history)
        )  # the broker may keep more, for holes
        lenient = 0
        if start is None:
            start = StreamPosition(top.epoch, max(floor.offset, top.offset - member.last))
            lenient = top.offset
        if start == top:
            self._make_live(member)
            if member.begins:
                member.began(top, (), ())
            return None
        return self._put_behind(member, start, lenient=lenient, floor=floor).step

    def remove(self, member: Subscriber) -> None:
        """Let a member go."""
        self._subscribers.remove(member)
        if (behind := self._behind.get(member.author)) is not None and behind.member is member:
            behind.stop()
            self._no_longer_behind(member)

    def fall_behind(self, member: Subscriber) -> None:
        """Take a live member that can't take what it is just given out of the way."""
        if self._subscribers.remove(member):
            before = tuple(end for end in self.ordering.before if end.epoch != self._done.epoch)
            self._put_behind(member, self._done, slow=True, before=before)

    def drained(self, member: Subscriber) -> None:
        """Go on with a member that has read all it was given, where it is behind."""
        if (behind := self._behind.get(member.author)) is not None:
            behind.step()

    def _make_live(self, member: Subscriber) -> None:
        self.deliver()  # not to this one: it begins behind that
        self._subscribers.add(member)

    def _put_behind(
        self,
        member: Subscriber,
        position: StreamPosition,
        *,
        slow: bool = False,
        lenient: int = 0,
        floor: StreamPosition | None = None,
        before: tuple[StreamPosition, ...] = (),
    ) -> Recovery:
        told = self._told

        def live() -> None:
            self._no_longer_behind(member)
            self._make_live(member)
            if told != self._told:
                member.missed_changes()

        self._tail = self._tail or Tail(self._config.batch_bytes)
        self._behind[member.author] = behind = Recovery(
            member,
            position,
            self._config,
            read=lambda after, most: self._read(self.name, after, most),
            tail=self._tail,
            ordering=self.ordering,
            live=live,
            losses=self._losses,
            slow=slow,
            lenient=lenient,
            floor=floor,
            before=before,
        )
        return behind

    def _no_longer_behind(self, member: Subscriber) -> None:
        del self._behind[member.author]
        if not self._behind:
            self._tail = None

    # What they hear

    def begin(self) -> None:
        """Note that the timeline has started."""
        self._done = self.ordering.position

    def deliver(self) -> None:
        """Give what is pending to those who are live; then those who are behind may have come near.

        An error that is not one member's closes all who are live: nobody knows what they have missed.
        """
        if not self._pending:
            return
        try:
            self._deliver()
        except Exception:  # noqa: BLE001 - they are told
            log.failure("messages of room {room} were not delivered", room=self.name)
            self._subscribers.refuse()
        self._pending = []
        for behind in list(self._behind.values()):
            behind.step()

    def _deliver(self) -> None:
        for kind, group in groupby(self._pending, type):
            items: Any = list(group)
            if kind is PresenceEvent:
                self._told += len(items)
                self._subscribers.tell(self.name, items)
                continue
            if kind is Batch:
                self._subscribers.send(items)
            else:
                for gap in items:
                    self._done = StreamPosition(gap.epoch, gap.last)  # who can't take this must not be told of it again
                    self._losses(gap, self._subscribers.lost(gap))
            self._done = StreamPosition(items[-1].epoch, items[-1].last)

    def _in_order(self, item: Item, whole: Batch | None) -> None:
        """Take what is next in the room's order; who is behind need not know what of it the room knows."""
        if whole is not None and self._tail is not None:
            self._tail.add(whole)
        self._pending.append(item)
        self._heard(self, item)
