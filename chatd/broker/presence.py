"""Who is in which room, on all workers and hosts; kept in the broker, told through it in the order of the messages.

What it promises:

* Two members of a room never have the same nick, or two that look alike: whoever comes later gets another one. But all
  members whom their tokens name alike have one nick, for as long as any of them is there.
* Who comes back within ``linger_seconds``, as the same author, is taken not to have left.
* Who comes back as another author while its last connection still has its nick gets the nick when that one has left.
* The members of a worker that died are gone within a minute: each worker gives a sign of life every
  ``compare_seconds``, and looks for those of the others that have somebody in its rooms.
* A worker of which the broker lost the members says them anew.
* A change that did not reach this worker is read from the broker, and told late.

A member is known by its author: its connection, or the first one that came with its resume key.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.broker.presence_list import FIRST, Identity, MemberList, OccupiedRoom, PresenceList, PresentMember
from chatd.broker.presence_script import NickTaken, Step, read_entry, read_members
from chatd.broker.queries import Queries
from chatd.broker.script import ALIVE, MEMBERS, PRESENCE, ROOMS
from chatd.config.settings import Config
from chatd.protocol.message import PresenceEvent, PresenceUpdate, StreamPosition, decode_changes

log = Logger()

Told = Callable[[str, StreamPosition, Sequence[PresenceEvent]], None]


@dataclass(slots=True)
class _Member:
    """A member that this worker has in one room."""

    since: int
    nick: str
    identity: Identity
    ghost: str = ""
    """Who has the nick that it wants, and may be a connection of the same client that broke."""
    entering: bool = True
    """Whether the broker may not know it yet, because its ``enter`` was not answered."""

    def stays(self, author: str, what: str = "stay") -> Step:
        """Return what says it anew, under the nick that it has if that is still free."""
        return Step(what, author, self.since, self.identity.keeping(self.nick))


@dataclass(slots=True)
class _Here:
    """The members that this worker has in one room."""

    members: dict[str, _Member] = field(default_factory=dict)
    """By author; also those that linger."""
    ghosts: dict[str, list[str]] = field(default_factory=dict)
    """Those who wait for the nick of somebody that may be the same client, by that one's author."""
    lingering: dict[str, Any] = field(default_factory=dict)
    """What will say that they have left."""
    waiting: list[Step] = field(default_factory=list)
    sending: bool = False
    presence_list: PresenceList | None = None
    watched: bool = False
    reading: bool = False
    coming: Any = None
    """What will read who is there."""
    early: list[PresenceUpdate] = field(default_factory=list)
    """What was told while that was read for the first time."""
    failures: int = 0
    """How often reading it has failed, since it last succeeded."""

    def wait_for(self, author: str, ghost: str) -> None:
        """Note whose nick a member waits for; empty: nobody's."""
        member = self.members[author]
        if member.ghost != ghost:
            if member.ghost:
                self.ghosts[member.ghost].remove(author)
                if not self.ghosts[member.ghost]:
                    del self.ghosts[member.ghost]
            if ghost:
                self.ghosts.setdefault(ghost, []).append(author)
            member.ghost = ghost


class PresenceStore:
    """Everybody on this worker, and who else is in their rooms."""

    def __init__(
        self,
        clock: Any,
        queries: Queries,
        config: Config,
        worker: str,
        *,
        channel: Callable[[str], bytes],
        now: Callable[[], float],
        told: Told,
        renamed: Callable[[str, str, str], None],
        said: Callable[[str], "Deferred[None] | None"] = lambda _: None,
    ) -> None:
        """Take this worker's unique name, a room's key, the time of day in seconds, and whom to tell of changes.

        Told are the changes in a watched room, with the newest message before them; renamed is a member (room, author,
        nick) that lost its name while the broker did not know it. Said fires once all that was said in a room up to
        now is published.
        """
        self._clock = clock
        self._queries = queries
        self._config = config
        self._worker = worker
        self._channel = channel
        self._now = now
        self._told = told
        self._renamed = renamed
        self._said = said
        self._rooms: dict[str, _Here] = {}
        self._changed: list[str] = []
        self._coming: Any = None
        self._waiters: list[Deferred[None]] = []

    def stop(self) -> None:
        """Tell nothing any more, and say nothing."""
        timers = [self._coming]
        for here in self._rooms.values():
            timers += [here.coming, *here.lingering.values()]
        for timer in timers:
            if timer is not None and timer.active():
                timer.cancel()
        self._rooms.clear()

    # What members do

    def enter(self, room: str, author: str, identity: Identity) -> "Deferred[str]":
        """Let a member come, with the nick that it wants or one like it; fires with the one that it has."""
        here = self._rooms.setdefault(room, _Here())
        if (leaving := here.lingering.pop(author, None)) is not None:
            leaving.cancel()
        if author in here.members:
            here.wait_for(author, "")
        since = int(self._now() * 1000)
        here.members[author] = _Member(since, identity.nick, identity)
        return self._do(room, here, Step("enter", author, since, identity))

    def leave(self, room: str, author: str, *, linger: bool) -> None:
        """Let it go; where it may linger, not at once."""
        here = self._rooms.get(room)
        if here is None or author not in here.members or author in here.lingering:
            return
        if linger:
            wait = self._config.linger_seconds
            here.lingering[author] = self._clock.callLater(wait, self._has_left, room, author)
        else:
            self._has_left(room, author)

    def _has_left(self, room: str, author: str) -> None:
        here = self._rooms[room]
        here.lingering.pop(author, None)
        if author in here.members:
            here.wait_for(author, "")
            del here.members[author]
        self._do(room, here, Step("leave", author)).addErrback(lambda _: None)

    def rename(self, room: str, author: str, identity: Identity) -> "Deferred[str]":
        """Let a member take another nick, or one like it; fires with the one that it has."""
        here = self._rooms.setdefault(room, _Here())
        step = Step("nick", author, identity=identity)
        if (member := here.members.get(author)) is not None:
            step.was, member.identity = member.nick, identity
        return self._do(room, here, step)

    def find_nick(self, room: str, identity: Identity) -> "Deferred[str]":
        """Find a nick for somebody who speaks in a room and is not in it; fires with it, empty where it is in use.

        Without an owner or a mark only the nick itself will do: its bearer can ask for another one.
        """
        here = self._rooms.setdefault(room, _Here())
        return self._do(room, here, Step("free", "", identity=identity))

    def members(self, room: str) -> "Deferred[MemberList]":
        """Ask who is in a room."""
        config = self._config
        answer: Deferred[Any] = self._queries.ask(
            MEMBERS,
            [self._key("presence", room)],
            lambda _: [self._key("here", ""), room, self._key("alive", ""), config.presence_limit],
        )
        return answer.addCallback(read_members)

    async def list_rooms(self) -> tuple[Sequence[OccupiedRoom], bool]:
        """List the rooms that have members or messages, by name, and say whether there may be more."""
        config = self._config
        found: dict[str, OccupiedRoom] = {}
        cursor = b"0"
        for _ in range(config.rooms_steps):
            cursor, *flat = await self._queries.ask(ROOMS, [], partial(self._about_rooms, cursor))
            for at in range(0, len(flat), 4):
                name, epoch = flat[at].decode(), flat[at + 2].decode()
                found[name] = OccupiedRoom(name, flat[at + 1], StreamPosition(epoch, int(flat[at + 3])))
            if cursor == b"0" or len(found) > config.rooms_listed:
                break
        listed = sorted(found.values(), key=lambda each: each.room)[: config.rooms_listed]
        return listed, cursor != b"0" or len(listed) < len(found)

    def _about_rooms(self, cursor: bytes, run: bytes) -> list[Any]:
        keys = [self._channel(""), *(self._key(kind, "") for kind in ("presence", "here", "alive"))]
        return [cursor, *keys, run, self._config.rooms_step_keys]

    # Who watches a room

    def watch(self, room: str) -> None:
        """Tell from now on who comes and goes in a room."""
        here = self._rooms.setdefault(room, _Here())
        if not here.watched:
            here.watched = True
            self._read(room, here)

    def unwatch(self, room: str) -> None:
        """Tell it no more."""
        if (here := self._rooms.get(room)) is not None:
            here.watched, here.presence_list, here.early, here.failures = False, None, [], 0
            if here.coming is not None:
                here.coming.cancel()
                here.coming = None
            self._forget_if_empty(room, here)

    def heard(self, room: str, data: bytes) -> None:
        """Take what the bus tells of a room."""
        here = self._rooms.get(room)
        if here is None or not here.watched:
            return
        told = decode_changes(data)
        if here.presence_list is not None:
            self._take(room, here, here.presence_list, told)
        elif len(here.early) < self._config.presence_held:
            here.early.append(told)

    def _take(self, room: str, here: _Here, presence_list: PresenceList, told: PresenceUpdate) -> None:
        changes = presence_list.take(told)
        if changes is None:
            self._read_soon(room, here, told.version)
        elif changes:
            self._told(room, told.after, changes)
            for change in changes:
                if change.what == "leave":
                    self._give_back(room, here, change.session)

    def _read_soon(self, room: str, here: _Here, version: int) -> None:
        """Learn who is there; where the broker has lost it, when all workers will have said it anew."""
        if here.coming is None and here.presence_list is not None:
            lost = not 0 <= version - here.presence_list.version < FIRST
            wait = self._config.presence_list_seconds + (self._config.compare_seconds if lost else 0)
            here.coming = self._clock.callLater(wait, self._read, room, here)

    def _read(self, room: str, here: _Here) -> None:
        """Learn who is there."""
        if here.coming is not None and here.coming.active():
            here.coming.cancel()
        here.coming = None
        if here.reading or not here.watched:
            return
        here.reading = True

        def read(members: MemberList) -> None:
            here.reading = False
            if not here.watched or self._rooms.get(room) is not here:
                return
            late, here.failures = here.failures > 0, 0
            if here.presence_list is None:
                here.presence_list = PresenceList(members)
                early, here.early = here.early, []
                for told in early:
                    if late and told.version <= members.version:  # those who watch have waited for it
                        self._told(room, told.after, told.changes or ())
                    else:
                        self._take(room, here, here.presence_list, told)
            elif changes := here.presence_list.replace(members):
                self._told(room, StreamPosition("", 0), changes)
            for ghost in list(here.ghosts):
                self._look_whether_gone(room, here, ghost)

        def failed(failure: Failure) -> None:
            here.reading = False
            log.error("the members of a room cannot be read: {why}", why=failure.getErrorMessage())
            if here.watched and self._rooms.get(room) is here:
                wait = self._config.presence_list_seconds * 2 ** min(here.failures, 50)
                here.failures += 1
                here.coming = self._clock.callLater(
                    min(wait, self._config.presence_list_retry_most_seconds), self._read, room, here
                )

        self.members(room).addCallbacks(read, failed).addErrback(
            lambda failure: log.failure("the members of a room were not told", failure)
        )

    def _look_whether_gone(self, room: str, here: _Here, ghost: str) -> None:
        if here.presence_list is not None and not here.presence_list.has(ghost):
            self._give_back(room, here, ghost)

    def _give_back(self, room: str, here: _Here, ghost: str) -> None:
        """Ask for the nick of somebody that has left, for those who wait for it: one of them may get it."""
        for author in here.ghosts.pop(ghost, ()):
            if (member := here.members.get(author)) is None or member.ghost != ghost:
                continue
            member.ghost = ""
            self._keep_named(room, here, Step("again", author, identity=replace(member.identity, first="")))

    # Signs of life

    def check(self, rooms: Sequence[str]) -> "Deferred[Callable[[], None]]":
        """Give a sign of life, and see whether some room needs this worker's care.

        Fires with what is to be called when all that was told up to then has come: it looks for what did not.
        """
        rooms = [room for room in rooms if room in self._rooms]
        config = self._config
        answer: Deferred[Any] = self._queries.ask(
            ALIVE,
            [self._key("presence", room) for room in rooms],
            lambda _: [
                self._worker,
                self._key("alive", ""),
                config.alive_seconds,
                config.room_seconds,
                self._key("here", ""),
                self._key("nicks", ""),
                self._key("owners", ""),
                *rooms,
            ],
        )

        def look(flat: list[Any]) -> Callable[[], None]:
            for room, work in zip(rooms, flat[1::2], strict=True):
                if work:
                    with log.failuresHandled("the members of room {room} were not said anew", room=room):
                        self._care(room)
            return lambda: self._compare(rooms, [int(each) for each in flat[::2]])

        return answer.addCallback(look)

    def _care(self, room: str) -> None:
        """Bury who is dead, and say anew who is here: the broker may have lost them."""
        if (here := self._rooms.get(room)) is None or not here.members:
            return
        for author, member in list(here.members.items()):
            if not member.entering:  # else its coming would be told to nobody
                what = "linger" if author in here.lingering else "stay"
                self._keep_named(room, here, member.stays(author, what))

    def _keep_named(self, room: str, here: _Here, step: Step) -> "Deferred[None]":
        """Do what nobody asked for, and tell the member if it has another nick then; fires when that is over."""

        def look(nick: str) -> None:
            if nick != step.was:
                self._renamed(room, step.author, nick)

        def failed(failure: Failure) -> None:
            if failure.check(NickTaken):
                log.error("a member has no nick: {why}", why=failure.getErrorMessage())

        return self._do(room, here, step).addCallback(look).addErrback(failed)

    def _compare(self, rooms: Sequence[str], versions: Sequence[int]) -> None:
        for room, version in zip(rooms, versions, strict=True):
            here = self._rooms.get(room)
            if here is not None and here.presence_list is not None and here.presence_list.version != version:
                self._read_soon(room, here, version)

    # What is asked of the broker: for each room one thing after the other

    def _do(self, room: str, here: _Here, step: Step) -> "Deferred[str]":
        here.waiting.append(step)
        self._send_soon(room)
        return step.done

    def _send_soon(self, room: str) -> None:
        self._changed.append(room)
        if self._coming is None:
            self._coming = self._clock.callLater(0, self._send_all)

    def _send_all(self) -> None:
        self._coming = None
        changed, self._changed = self._changed, []
        for room in changed:
            if (here := self._rooms.get(room)) is not None and here.waiting and not here.sending:
                with log.failuresHandled("joins and leaves in room {room} were not written", room=room):
                    self._send(room, here)

    def _send(self, room: str, here: _Here) -> None:
        steps = self._take_steps(here)
        here.sending = True
        said = self._said(room) if any(step.what in ("leave", "nick") for step in steps) else None
        if said is None:
            self._ask(room, here, steps)
        else:  # what they said before goes first
            said.addCallback(lambda _: self._ask(room, here, steps))

    def _take_steps(self, here: _Here) -> Sequence[Step]:
        """Take what is next, as much as one script may do."""
        config = self._config
        names = accumulate(step.size(config.nick_choices) for step in here.waiting[: config.presence_steps])
        count = max(1, sum(total <= config.presence_names for total in names))
        steps, here.waiting = here.waiting[:count], here.waiting[count:]
        return steps

    def _ask(self, room: str, here: _Here, steps: Sequence[Step]) -> None:
        config = self._config
        asked = [each for step in steps for each in step.arguments(config.nick_choices)]
        self._queries.ask(
            PRESENCE,
            [self._key("presence", room), self._key("nicks", room), self._channel(room), self._key("owners", room)],
            lambda _: [
                self._worker,
                self._key("alive", ""),
                self._key("here", ""),
                room,
                config.room_seconds,
                config.presence_limit,
                config.alive_seconds,
                self._key("dead", ""),
                *asked,
            ],
        ).addCallbacks(
            self._answered, self._failed, callbackArgs=(room, here, steps), errbackArgs=(here, steps)
        ).addErrback(lambda failure: log.failure("an answer on who is in a room was not handled", failure)).addCallback(
            self._sent, room, here
        )

    def _answered(self, answer: list[Any], room: str, here: _Here, steps: Sequence[Step]) -> None:
        for step, given in zip(steps, answer[1:], strict=True):
            match given:
                case [entry, ghost]:
                    self._note(room, here, step, read_entry(step.author, entry), ghost.decode())
                case b"taken":
                    self._try_others(here, step)
                case b"lost":
                    self._say_anew(room, here, step)
                case _:  # it has left, or its author is on another worker
                    self._end(here, step)

    def _note(self, room: str, here: _Here, step: Step, present: PresentMember, ghost: str) -> None:
        """Note which nick a member has, and whose it waits for."""
        if (member := here.members.get(step.author)) is not None:
            step.was, member.since, member.nick, member.entering = member.nick, present.since, present.nick, False
            if ghost or step.what not in ("stay", "linger"):  # that a ghost has left is told beside
                here.wait_for(step.author, ghost)
            if step.what != "again" and ghost:
                self._look_whether_gone(room, here, ghost)
        step.done.callback(present.nick)

    def _try_others(self, here: _Here, step: Step) -> None:
        """Try the next names, unless nobody wants them any more or all rounds are over."""
        here_still = step.author in here.members
        if (here_still or step.what == "free") and not step.alone() and step.rounds < self._config.nick_rounds:
            here.waiting.append(step)
        elif here_still:
            wanted = step.identity.nick if step.identity is not None else ""
            step.done.errback(NickTaken(f"{wanted} is taken, and so are all names like it that were tried"))
        else:
            self._end(here, step)

    def _say_anew(self, room: str, here: _Here, step: Step) -> None:
        """Say a member anew that the broker has lost, and then give it its new nick; once."""
        member = here.members.get(step.author)
        if member is None or step.anew:
            self._end(here, step)
            return
        step.begin()
        if member.entering:  # that is not done yet
            here.waiting.append(step)
            return
        step.anew = True
        stayed = self._keep_named(room, here, member.stays(step.author))
        stayed.addCallback(lambda _: self._do(room, here, step)).addErrback(lambda _: None)

    def _end(self, here: _Here, step: Step) -> None:
        """End a step that has changed nothing: its member has the nick that it had."""
        if (member := here.members.get(step.author)) is not None:
            step.was = member.nick
        step.done.callback(step.was)

    def flushed(self) -> "Deferred[None]":
        """Fire once everything is with the broker that this worker had to say."""
        done: Deferred[None] = Deferred()
        self._waiters.append(done)
        self._look_whether_flushed()
        return done

    def _look_whether_flushed(self) -> None:
        if not any(here.waiting or here.sending for here in self._rooms.values()):
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                waiter.callback(None)

    def _failed(self, failure: Failure, here: _Here, steps: Sequence[Step]) -> None:
        log.error("who is in a room cannot be written: {why}", why=failure.getErrorMessage())
        for step in steps:
            if (member := here.members.get(step.author)) is not None:
                member.entering = False
            step.done.errback(failure)

    def _sent(self, _: object, room: str, here: _Here) -> None:
        here.sending = False
        if here.waiting:
            self._send_soon(room)
            return
        self._forget_if_empty(room, here)
        if self._waiters:
            self._look_whether_flushed()

    def _forget_if_empty(self, room: str, here: _Here) -> None:
        if not (here.members or here.waiting or here.sending or here.watched):
            self._rooms.pop(room, None)

    def _key(self, kind: str, rest: str) -> bytes:
        return f"{self._config.redis_prefix}:{kind}:{rest}".encode()
