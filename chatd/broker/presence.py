"""Presence: who is in which room, on all workers and hosts, stored in the broker.

It promises:

* Two members of a room never have the same nick, or two that look alike: the later one gets another. Members with the
  same token identity share one nick while any of them is present.
* A member that returns within ``presence_leave_delay`` with its sender id has not left.
* A member that returns with another sender id gets its nick back when its last connection has left.
* The members of a dead worker are removed within a minute. Each worker sends a heartbeat every
  ``offset_check_interval``, and checks those of the workers that have members in its rooms.
* A worker whose members the broker has lost stores them again.
* A presence event that did not reach this worker is read from the broker and delivered late.

Presence events are published in order with the messages of the room. A member is known by its sender id.
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
from chatd.broker.queries import ALIVE, MEMBERS, PRESENCE, ROOMS, Queries
from chatd.config.settings import Config
from chatd.protocol.message import PresenceEvent, PresenceUpdate, StreamPosition, decode_changes
from chatd.runtime.waiters import Waiters

log = Logger()

Changed = Callable[[str, StreamPosition, Sequence[PresenceEvent]], None]


@dataclass(slots=True)
class _Member:
    """A member of a room on this worker."""

    since: int
    nick: str
    identity: Identity
    ghost: str = ""
    """The sender id that has the wanted nick, and may be a broken connection of the same client."""
    entering: bool = True
    """Whether the broker may not know it yet, because its ``enter`` was not answered."""

    def again(self, sender_id: str, what: str = "stay") -> Step:
        """Return the step that stores it again, under its present nick if that is still free."""
        return Step(what, sender_id, self.since, self.identity.keeping(self.nick))


@dataclass(slots=True)
class _LocalRoom:
    """The members of a room on this worker, and what this worker has to store and to read."""

    members: dict[str, _Member] = field(default_factory=dict)
    """By sender id; also those that linger."""
    ghosts: dict[str, list[str]] = field(default_factory=dict)
    """Members that wait for a nick, by the sender id that has it."""
    lingering: dict[str, Any] = field(default_factory=dict)
    """The timers that end lingering."""
    waiting: list[Step] = field(default_factory=list)
    sending: bool = False
    presence_list: PresenceList | None = None
    watched: bool = False
    reading: bool = False
    timer: Any = None
    """The timer that will read the presence list."""
    early: list[PresenceUpdate] = field(default_factory=list)
    """Updates that arrived while the list was read for the first time."""
    failures: int = 0
    """Failed reads since the last successful one."""

    def wait_for(self, sender_id: str, ghost: str) -> None:
        """Set the sender id whose nick a member waits for; empty: none."""
        member = self.members[sender_id]
        if member.ghost != ghost:
            if member.ghost:
                self.ghosts[member.ghost].remove(sender_id)
                if not self.ghosts[member.ghost]:
                    del self.ghosts[member.ghost]
            if ghost:
                self.ghosts.setdefault(ghost, []).append(sender_id)
            member.ghost = ghost


class PresenceStore:
    """The members on this worker, and the presence lists of watched rooms."""

    def __init__(
        self,
        clock: Any,
        queries: Queries,
        config: Config,
        worker: str,
        *,
        channel: Callable[[str], bytes],
        now: Callable[[], float],
        changed: Changed,
        renamed: Callable[[str, str, str], None],
        published: Callable[[str], "Deferred[None] | None"] = lambda _: None,
    ) -> None:
        """Prepare for a worker with this unique name.

        ``channel`` returns the key of a room, ``now`` seconds since 1970. ``changed`` gets the presence events of a
        watched room, with the stream position before them. ``renamed`` gets room, sender id and nick of a member that
        lost its nick while the broker did not know it. ``published`` returns a Deferred that fires when all messages
        of a room are published, or None if they are.
        """
        self._clock = clock
        self._queries = queries
        self._config = config
        self._worker = worker
        self._channel = channel
        self._now = now
        self._changed = changed
        self._renamed = renamed
        self._published = published
        self._rooms: dict[str, _LocalRoom] = {}
        self._to_send: list[str] = []
        self._timer: Any = None
        self._flushed = Waiters()

    def stop(self) -> None:
        """Cancel all timers and forget all rooms."""
        timers = [self._timer]
        for local in self._rooms.values():
            timers += [local.timer, *local.lingering.values()]
        for timer in timers:
            if timer is not None and timer.active():
                timer.cancel()
        self._rooms.clear()

    # Members

    def enter(self, room: str, sender_id: str, identity: Identity) -> "Deferred[str]":
        """Add a member. Return a Deferred that fires with its nick: the wanted one, or one like it."""
        local = self._rooms.setdefault(room, _LocalRoom())
        if (leaving := local.lingering.pop(sender_id, None)) is not None:
            leaving.cancel()
        if sender_id in local.members:
            local.wait_for(sender_id, "")
        since = int(self._now() * 1000)
        local.members[sender_id] = _Member(since, identity.nick, identity)
        return self._do(room, local, Step("enter", sender_id, since, identity))

    def leave(self, room: str, sender_id: str, *, linger: bool) -> None:
        """Remove a member, after ``presence_leave_delay`` if it may linger."""
        local = self._rooms.get(room)
        if local is None or sender_id not in local.members or sender_id in local.lingering:
            return
        if linger:
            wait = self._config.presence_leave_delay
            local.lingering[sender_id] = self._clock.callLater(wait, self._remove, room, sender_id)
        else:
            self._remove(room, sender_id)

    def _remove(self, room: str, sender_id: str) -> None:
        local = self._rooms[room]
        local.lingering.pop(sender_id, None)
        if sender_id in local.members:
            local.wait_for(sender_id, "")
            del local.members[sender_id]
        self._do(room, local, Step("leave", sender_id)).addErrback(lambda _: None)

    def rename(self, room: str, sender_id: str, identity: Identity) -> "Deferred[str]":
        """Change a member's nick. Return a Deferred that fires with its nick: the wanted one, or one like it."""
        local = self._rooms.setdefault(room, _LocalRoom())
        step = Step("nick", sender_id, identity=identity)
        if (member := local.members.get(sender_id)) is not None:
            step.was, member.identity = member.nick, identity
        return self._do(room, local, step)

    def find_nick(self, room: str, identity: Identity) -> "Deferred[str]":
        """Find a nick for a sender that is not a member. Return a Deferred that fires with it, or "" if it is in use.

        Only the wanted nick will do, unless the identity has an owner or is marked.
        """
        local = self._rooms.setdefault(room, _LocalRoom())
        return self._do(room, local, Step("free", "", identity=identity))

    def members(self, room: str) -> "Deferred[MemberList]":
        """Return a Deferred that fires with the members of a room, on all workers."""
        config = self._config
        answer: Deferred[Any] = self._queries.ask(
            MEMBERS,
            [self._key("presence", room)],
            lambda _: [self._key("here", ""), room, self._key("alive", ""), config.presence_limit],
        )
        return answer.addCallback(read_members)

    def list_rooms(self) -> "Deferred[tuple[Sequence[OccupiedRoom], bool]]":
        """Return a Deferred that fires with the rooms that have members or messages, by name, and if there are more."""
        return Deferred.fromCoroutine(self._list_rooms())

    async def _list_rooms(self) -> tuple[Sequence[OccupiedRoom], bool]:
        config = self._config
        found: dict[str, OccupiedRoom] = {}
        cursor = b"0"
        for _ in range(config.room_list_scans):
            cursor, *flat = await self._queries.ask(ROOMS, [], partial(self._rooms_arguments, cursor))
            for raw_name, count, epoch, offset in zip(*[iter(flat)] * 4, strict=True):
                name = raw_name.decode()
                found[name] = OccupiedRoom(name, count, StreamPosition(epoch.decode(), int(offset)))
            if cursor == b"0" or len(found) > config.listed_rooms:
                break
        listed = sorted(found.values(), key=lambda room: room.room)[: config.listed_rooms]
        return listed, cursor != b"0" or len(listed) < len(found)

    def _rooms_arguments(self, cursor: bytes, run: bytes) -> list[Any]:
        keys = [self._channel(""), *(self._key(kind, "") for kind in ("presence", "here", "alive"))]
        return [cursor, *keys, run, self._config.room_list_keys_per_scan]

    # Watched rooms

    def watch(self, room: str) -> None:
        """Pass on the presence events of a room from now on."""
        local = self._rooms.setdefault(room, _LocalRoom())
        if not local.watched:
            local.watched = True
            self._read(room, local)

    def unwatch(self, room: str) -> None:
        """Stop passing on the presence events of a room."""
        if (local := self._rooms.get(room)) is not None:
            local.watched, local.presence_list, local.early, local.failures = False, None, [], 0
            if local.timer is not None:
                local.timer.cancel()
                local.timer = None
            self._forget_if_empty(room, local)

    def received(self, room: str, data: bytes) -> None:
        """Handle a presence update of a room."""
        local = self._rooms.get(room)
        if local is None or not local.watched:
            return
        update = decode_changes(data)
        if local.presence_list is not None:
            self._apply(room, local, local.presence_list, update)
        elif len(local.early) < self._config.held_presence_events:
            local.early.append(update)

    def _apply(self, room: str, local: _LocalRoom, presence_list: PresenceList, update: PresenceUpdate) -> None:
        events = presence_list.apply(update)
        if events is None:
            self._read_soon(room, local, update.version)
        elif events:
            self._changed(room, update.after, events)
            for event in events:
                if event.what == "leave":
                    self._reclaim_nick(room, local, event.session)

    def _read_soon(self, room: str, local: _LocalRoom, version: int) -> None:
        """Read the presence list soon. If the broker has lost it, all workers store their members first."""
        if local.timer is None and local.presence_list is not None:
            lost = not 0 <= version - local.presence_list.version < FIRST
            wait = self._config.presence_list_delay + (self._config.offset_check_interval if lost else 0)
            local.timer = self._clock.callLater(wait, self._read, room, local)

    def _read(self, room: str, local: _LocalRoom) -> None:
        """Read the presence list."""
        if local.timer is not None and local.timer.active():
            local.timer.cancel()
        local.timer = None
        if local.reading or not local.watched:
            return
        local.reading = True

        def read(members: MemberList) -> None:
            local.reading = False
            if not local.watched or self._rooms.get(room) is not local:
                return
            late, local.failures = local.failures > 0, 0
            if local.presence_list is None:
                local.presence_list = PresenceList(members)
                early, local.early = local.early, []
                for update in early:
                    if late and update.version <= members.version:  # subscribers have waited for it
                        self._changed(room, update.after, update.changes or ())
                    else:
                        self._apply(room, local, local.presence_list, update)
            elif events := local.presence_list.replace(members):
                self._changed(room, StreamPosition("", 0), events)
            for ghost in list(local.ghosts):
                self._check_ghost(room, local, ghost)

        def failed(failure: Failure) -> None:
            local.reading = False
            log.error(
                "cannot read the presence of a room: {why}", why=failure.getErrorMessage(), event="presence_read_failed"
            )
            if local.watched and self._rooms.get(room) is local:
                wait = self._config.presence_list_delay * 2 ** min(local.failures, 50)
                local.failures += 1
                local.timer = self._clock.callLater(
                    min(wait, self._config.presence_list_max_delay), self._read, room, local
                )

        self.members(room).addCallbacks(read, failed).addErrback(
            lambda failure: log.failure("handling the presence of a room failed", failure, event="presence_list_failed")
        )

    def _check_ghost(self, room: str, local: _LocalRoom, ghost: str) -> None:
        if local.presence_list is not None and not local.presence_list.has(ghost):
            self._reclaim_nick(room, local, ghost)

    def _reclaim_nick(self, room: str, local: _LocalRoom, ghost: str) -> None:
        """Ask for the nick of a member that has left, for those that wait for it. One of them may get it."""
        for sender_id in local.ghosts.pop(ghost, ()):
            if (member := local.members.get(sender_id)) is None or member.ghost != ghost:
                continue
            member.ghost = ""
            self._keep_named(room, local, Step("again", sender_id, identity=replace(member.identity, first="")))

    # Heartbeats

    def check(self, rooms: Sequence[str]) -> "Deferred[Callable[[], None]]":
        """Send a heartbeat, and check which rooms need this worker's members stored again.

        Return a Deferred that fires with a function. Call it when all updates published until then have arrived: it
        reads the lists of rooms that missed one.
        """
        rooms = [room for room in rooms if room in self._rooms]
        config = self._config
        answer: Deferred[Any] = self._queries.ask(
            ALIVE,
            [self._key("presence", room) for room in rooms],
            lambda _: [
                self._worker,
                self._key("alive", ""),
                config.worker_presence_ttl,
                config.room_seconds,
                self._key("here", ""),
                self._key("nicks", ""),
                self._key("owners", ""),
                *rooms,
            ],
        )

        def care(flat: list[Any]) -> Callable[[], None]:
            for room, work in zip(rooms, flat[1::2], strict=True):
                if work:
                    with log.failuresHandled(
                        "restoring the presence of room {room} failed", room=room, event="presence_restore_failed"
                    ):
                        self._store_again(room)
            return lambda: self._compare(rooms, [int(each) for each in flat[::2]])

        return answer.addCallback(care)

    def _store_again(self, room: str) -> None:
        """Store this worker's members again. The script then removes those of dead workers."""
        if (local := self._rooms.get(room)) is None or not local.members:
            return
        for sender_id, member in list(local.members.items()):
            if not member.entering:  # else no join event would be published
                what = "linger" if sender_id in local.lingering else "stay"
                self._keep_named(room, local, member.again(sender_id, what))

    def _keep_named(self, room: str, local: _LocalRoom, step: Step) -> "Deferred[None]":
        """Send a step that no member asked for. Call ``renamed`` if the member's nick is another then."""

        def compare(nick: str) -> None:
            if nick != step.was:
                self._renamed(room, step.sender_id, nick)

        def failed(failure: Failure) -> None:
            if failure.check(NickTaken):
                log.error("a client has no nick: {why}", why=failure.getErrorMessage(), event="nick_unavailable")

        return self._do(room, local, step).addCallback(compare).addErrback(failed)

    def _compare(self, rooms: Sequence[str], versions: Sequence[int]) -> None:
        for room, version in zip(rooms, versions, strict=True):
            local = self._rooms.get(room)
            if local is not None and local.presence_list is not None and local.presence_list.version != version:
                self._read_soon(room, local, version)

    # Steps: for each room one script at a time

    def _do(self, room: str, local: _LocalRoom, step: Step) -> "Deferred[str]":
        local.waiting.append(step)
        self._send_soon(room)
        return step.done

    def _send_soon(self, room: str) -> None:
        self._to_send.append(room)
        if self._timer is None:
            self._timer = self._clock.callLater(0, self._send_all)

    def _send_all(self) -> None:
        self._timer = None
        rooms, self._to_send = self._to_send, []
        for room in rooms:
            if (local := self._rooms.get(room)) is not None and local.waiting and not local.sending:
                with log.failuresHandled(
                    "sending the presence of room {room} to the broker failed", room=room, event="presence_send_failed"
                ):
                    self._send(room, local)

    def _send(self, room: str, local: _LocalRoom) -> None:
        steps = self._take_steps(local)
        local.sending = True
        published = self._published(room) if any(step.what in ("leave", "nick") for step in steps) else None
        if published is None:
            self._ask(room, local, steps)
        else:  # earlier messages go first
            published.addCallback(lambda _: self._ask(room, local, steps))

    def _take_steps(self, local: _LocalRoom) -> Sequence[Step]:
        """Remove the next steps, as many as one script may do, from the queue, and return them."""
        config = self._config
        names = accumulate(
            step.size(config.nicks_per_attempt) for step in local.waiting[: config.presence_changes_per_write]
        )
        count = max(1, sum(total <= config.presence_nicks_per_write for total in names))
        steps, local.waiting = local.waiting[:count], local.waiting[count:]
        return steps

    def _ask(self, room: str, local: _LocalRoom, steps: Sequence[Step]) -> None:
        config = self._config
        asked = [argument for step in steps for argument in step.arguments(config.nicks_per_attempt)]
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
                config.worker_presence_ttl,
                self._key("dead", ""),
                *asked,
            ],
        ).addCallbacks(
            self._answered, self._failed, callbackArgs=(room, local, steps), errbackArgs=(local, steps)
        ).addErrback(
            lambda failure: log.failure(
                "handling the broker's answer about presence failed", failure, event="presence_answer_failed"
            )
        ).addCallback(self._sent, room, local)

    def _answered(self, answer: list[Any], room: str, local: _LocalRoom, steps: Sequence[Step]) -> None:
        for step, given in zip(steps, answer[1:], strict=True):
            match given:
                case [entry, ghost]:
                    self._set_nick(room, local, step, read_entry(step.sender_id, entry), ghost.decode())
                case b"taken":
                    self._try_next_names(local, step)
                case b"lost":
                    self._store_first(room, local, step)
                case _:  # it has left, or another worker has its sender id
                    self._end(local, step)

    def _set_nick(self, room: str, local: _LocalRoom, step: Step, present: PresentMember, ghost: str) -> None:
        """Set the nick of a member, and the sender id whose nick it waits for."""
        if (member := local.members.get(step.sender_id)) is not None:
            step.was, member.since, member.nick, member.entering = member.nick, present.since, present.nick, False
            if ghost or step.what not in ("stay", "linger"):  # a leave event reports the end of a ghost
                local.wait_for(step.sender_id, ghost)
            if step.what != "again" and ghost:
                self._check_ghost(room, local, ghost)
        step.done.callback(present.nick)

    def _try_next_names(self, local: _LocalRoom, step: Step) -> None:
        """Try the next names, unless the member has left or all rounds are over."""
        is_member = step.sender_id in local.members
        if (is_member or step.what == "free") and not step.alone() and step.rounds < self._config.nick_attempts:
            local.waiting.append(step)
        elif is_member:
            wanted = step.identity.nick if step.identity is not None else ""
            step.done.errback(NickTaken(f"{wanted} is taken, and so are all names like it that were tried"))
        else:
            self._end(local, step)

    def _store_first(self, room: str, local: _LocalRoom, step: Step) -> None:
        """Store a member again that the broker has lost, and then repeat its step, once."""
        member = local.members.get(step.sender_id)
        if member is None or step.anew:
            self._end(local, step)
            return
        step.begin()
        if member.entering:  # its ``enter`` will store it
            local.waiting.append(step)
            return
        step.anew = True
        stayed = self._keep_named(room, local, member.again(step.sender_id))
        stayed.addCallback(lambda _: self._do(room, local, step)).addErrback(lambda _: None)

    def _end(self, local: _LocalRoom, step: Step) -> None:
        """Complete a step that has changed nothing."""
        if (member := local.members.get(step.sender_id)) is not None:
            step.was = member.nick
        step.done.callback(step.was)

    def flushed(self) -> "Deferred[None]":
        """Return a Deferred that fires when all steps are stored."""
        flushed = self._flushed.wait()
        self._fire_if_flushed()
        return flushed

    def _fire_if_flushed(self) -> None:
        if not any(local.waiting or local.sending for local in self._rooms.values()):
            self._flushed.fire()

    def _failed(self, failure: Failure, local: _LocalRoom, steps: Sequence[Step]) -> None:
        log.error(
            "cannot write the presence of a room: {why}", why=failure.getErrorMessage(), event="presence_write_failed"
        )
        for step in steps:
            if (member := local.members.get(step.sender_id)) is not None:
                member.entering = False
            step.done.errback(failure)

    def _sent(self, _: object, room: str, local: _LocalRoom) -> None:
        local.sending = False
        if local.waiting:
            self._send_soon(room)
            return
        self._forget_if_empty(room, local)
        if self._flushed:
            self._fire_if_flushed()

    def _forget_if_empty(self, room: str, local: _LocalRoom) -> None:
        if not (local.members or local.waiting or local.sending or local.watched):
            self._rooms.pop(room, None)

    def _key(self, kind: str, rest: str) -> bytes:
        return f"{self._config.redis_prefix}:{kind}:{rest}".encode()
