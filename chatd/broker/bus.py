"""The bus: carries batches of messages between all workers, on this host and others, through Redis or Valkey.

What it promises:

* Messages that ``publish`` took are published once, in the order they were taken, or the Deferred says why not.
* What it has in flight is bounded (``window_bytes``): hand nothing over while ``open`` is False.
* While the broker can't be reached, or refuses to write, it is ``away`` and says why; everything waits.
* Nothing is delivered around the broker: the sender's own worker, too, gets messages only from there.
* Only rooms that were subscribed are heard; a subscription survives reconnects. What was not heard meanwhile, or is
  lost on the way, shows: ``compare`` says every now and then how far those who listen should have come.
* What is read, or asked for, waits while the broker can't be reached. What only reads goes on while it refuses writes.
* A frozen broker, which breaks no connection, is known to be dead within five ticks.

It does not know members, nor what a message says.
"""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from twisted.internet.defer import Deferred, fail, gatherResults, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.access.rate_limits import RateLimits
from chatd.broker.comparison import Comparison
from chatd.broker.connection import (
    BrokerConnection,
    ConnectionUnusable,
    LinkLost,
    PublishConnection,
    SubscribeConnection,
)
from chatd.broker.endpoint import broker_endpoint
from chatd.broker.eviction import Eviction
from chatd.broker.history import HistoryReader
from chatd.broker.liveness import LivenessProbes
from chatd.broker.presence import PresenceStore
from chatd.broker.presence_list import Identity, MemberList, OccupiedRoom
from chatd.broker.publish_queue import NotPublished, PublishQueues, PublishResult, WritesRefused
from chatd.broker.queries import Queries
from chatd.broker.resume_positions import ResumePosition, ResumePositions
from chatd.broker.script import ALL, RUN
from chatd.broker.sentinel import Sentinels
from chatd.broker.shared_limits import SharedLimits
from chatd.config.broker_url import BrokerAddress
from chatd.config.settings import Config
from chatd.monitoring.metrics import BUSES
from chatd.protocol.message import Batch, HistoryRange, Message, PresenceEvent, StreamPosition, decode, tells_changes
from chatd.runtime.timers import Periodic

log = Logger()

OLDEST_REDIS = "6.2"
"""The first that trims a stream by id. Every Valkey calls itself Redis 7 here."""

_NO_IDS: Mapping[int, str] = {}


class BusListener(Protocol):
    """Who hears the bus."""

    def deliver(self, batch: Batch) -> None:
        """Take a batch of a room that was subscribed."""

    def bus_changed(self) -> None:
        """Look at ``open`` and ``away`` again."""

    def compare(self, room: str, top: StreamPosition) -> None:
        """Learn how far a room has come: whatever was published up to there was heard by now, or never will be."""

    def present(self, room: str, after: StreamPosition, changes: Sequence[PresenceEvent]) -> None:
        """Learn who came to a watched room, went, or took another nick, and the newest message before that."""

    def renamed(self, room: str, author: str, nick: str) -> None:
        """Learn that a member has another nick: somebody took its own while the broker did not know it."""

    def give_up(self, room: str, session: str) -> ResumePosition | None:
        """Hang up on a connection, for its key has come with another one; give how far it has come."""

    def logged(self) -> "Deferred[None] | None":
        """Fire once all that was said up to now was handed over, or refused. Return None if it was."""


@dataclass(slots=True)
class _Subscription:
    """A room that is heard, once it is confirmed."""

    confirmed: bool = False
    waiters: "OrderedDict[Deferred[None], None]" = field(default_factory=OrderedDict)


class Bus:
    """This worker's end of the bus. Set ``listener`` before ``start``."""

    listener: BusListener

    def __init__(
        self,
        reactor: Any,
        address: BrokerAddress,
        config: Config,
        publisher: str,
        *,
        run: str = "",
        now: Callable[[], float] = time.time,
    ) -> None:
        """Take the reactor, where the broker is, and a name for this worker that no other has or had.

        Run names the stretch of time in which the broker has lost nothing; where nobody knows, each of its processes
        is one. Now is the time of day, in seconds since 1970.
        """
        self._clock = reactor
        self._address = address
        self._config = config
        self._prefix = f"{config.redis_prefix}:room:"
        self._publish_queues = PublishQueues(
            config,
            publisher,
            self._channel,
            now=reactor.seconds,
            answered=self._answered,
            refused=self._refused,
            window_changed=self._window_changed,
        )
        self._probes = LivenessProbes(reactor, config, publisher)
        self._known_run = run.encode()
        self._queries = Queries(reactor, config)
        self._history = HistoryReader(self._queries, config, self._channel, lambda: secrets.token_hex(4), now)
        self._presence = PresenceStore(
            reactor,
            self._queries,
            config,
            publisher,
            channel=self._channel,
            now=now,
            told=self._present,
            renamed=self._renamed,
            said=self._said,
        )
        self._shares = SharedLimits(reactor, self._queries, config, publisher)
        self._eviction = Eviction(reactor, self._queries, config, publisher)
        self._places = ResumePositions(reactor, self._queries, config, publisher, self._give_up)
        self._sentinels = Sentinels(reactor, address, config) if address.sentinels else None
        endpoint = self._sentinels or broker_endpoint(reactor, address, config)

        def link(
            kind: type[Any], prepare: Any, heard: Callable[[bytes, bytes], None] | None = None
        ) -> BrokerConnection:
            return BrokerConnection(
                kind, reactor, endpoint, address, config, prepare=prepare, changed=self._links_changed, heard=heard
            )

        self._commands = link(PublishConnection, self._prepare_commands)
        self._channels = link(SubscribeConnection, self._prepare_channels, self._heard)
        self._subscriber: Any = None  # from the moment it is prepared
        self._rooms: dict[str, _Subscription] = {}
        self._ticker = Periodic(reactor, config.bus_tick_seconds, self._tick, "looking whether the broker is frozen")
        self._comparison = Comparison(
            reactor,
            config,
            self._history,
            self._presence,
            rooms=self._heard_rooms,
            probe=self.probe,
            compare=self._compare,
        )

        self._was_live = False
        self._settled = False  # whether other workers have had time to be back too
        self._unsettled: OrderedDict[Deferred[None], None] = OrderedDict()  # those that wait for that
        self._refusing = ""
        self._refusals = 0
        self._retrying: Any = None
        self._settling: Any = None
        self._away_since = 0.0
        self._said_away = False
        self._closed = False

    # What the worker asks for

    def start(self) -> None:
        """Dial the broker."""
        BUSES.value += 1
        self._away_since = self._clock.seconds()
        self._commands.start()
        self._channels.start()
        self._ticker.start(now=False)
        self._comparison.start()

    def share(self, limits: RateLimits) -> None:
        """Share with all workers what addresses do on this one."""
        self._shares.share(limits)

    def evict(self) -> None:
        """Keep the memory of the broker, which is a private one, from running out."""
        self._eviction.start()

    def stop(self) -> None:
        """Hang up. What was not published fails with NotPublished."""
        BUSES.value -= 1
        self._closed = True
        self._ticker.stop()
        self._comparison.stop()
        self._shares.stop()
        self._eviction.stop()
        self._queries.stop()
        self._presence.stop()
        for timer in (self._settling, self._retrying):
            if timer is not None and timer.active():
                timer.cancel()
        self._publish_queues.abandon("the server stopped")
        self._probes.fail("the server stopped")
        self._commands.stop()
        self._channels.stop()

    @property
    def away(self) -> str:
        """Why nothing can be published now; empty while it can."""
        if self._publish_queues.live:
            return ""
        if self._refusing:
            return self._refusing
        troubles = [link.trouble for link in (self._commands, self._channels) if link.protocol is None]
        return troubles[0] if troubles else "waiting for other workers to be back"

    @property
    def starting(self) -> bool:
        """Whether nothing could be published up to now: the worker has just started, and the links may come at once."""
        return not self._was_live

    @property
    def unreachable(self) -> str:
        """Why the broker can't be asked now; empty while it can, and at a start, when what is asked waits."""
        return "" if self.starting or self._commands.protocol is not None else self._commands.trouble

    @property
    def refusing(self) -> str:
        """In which words the broker refuses writes now; empty while it does not."""
        return self._refusing

    @property
    def open(self) -> bool:
        """Whether ``publish`` may be called."""
        return self._publish_queues.live and not self._publish_queues.full

    @property
    def space(self) -> int:
        """How much more may be in flight, in bytes; ``weight`` says what messages take."""
        return self._publish_queues.space

    def weight(self, messages: Sequence[Message]) -> int:
        """Give what messages take of the window, in bytes."""
        return self._publish_queues.weight(messages)

    def publish(
        self, room: str, messages: Sequence[Message], ids: Mapping[int, str] = _NO_IDS, ticket: int = 0
    ) -> "Deferred[PublishResult]":
        """Publish messages of a room, after all that were handed over before; fails with NotPublished.

        The Deferred fires once they have their offsets; they may be delivered before that. Ids are those that authors
        gave to some of them, by their number (0, 1, …): what its author has published with the same id before, within
        ``republish_memory_seconds``, is not published again. A ticket is that of the sync to wait for (``sync``).
        """
        return self._publish_queues.publish(room, messages, ids, ticket)

    def synced(self, ticket: int) -> None:
        """Publish what waited for a sync of the chat log up to that one."""
        self._publish_queues.synced(ticket)

    def not_synced(self, ticket: int, why: str) -> None:
        """Fail what waits for a sync up to that one, with NotPublished."""
        self._publish_queues.not_synced(ticket, why)

    def flushed(self) -> "Deferred[None]":
        """Fire once nothing is in flight."""
        return self._publish_queues.flushed()

    def probe(self) -> "Deferred[None]":
        """Publish to ourselves, as messages are published.

        Fires when it came back; fails with NotPublished, which names the broken link, or why the broker refuses writes.
        """
        if self._commands.protocol is None or self._channels.protocol is None:
            return fail(NotPublished(self.away))
        return self._probes.send(self._commands.protocol).addCallbacks(self._probe_back, self._probe_failed)

    def _probe_back(self, _: None) -> None:
        """Take writes as possible again, unless there are messages: then it depends on them. Raise WritesRefused."""
        if not self._publish_queues.unanswered:
            self._answered()
        if self._refusing:
            raise WritesRefused(self._refusing)

    def _probe_failed(self, failure: Failure) -> Failure:
        if failure.check(WritesRefused):
            self._refused(str(failure.value))
        return failure

    # Who is where: each answer waits for the broker

    def enter(self, room: str, author: str, identity: Identity) -> "Deferred[str]":
        """Let a member come, with the nick that it wants or one like it; fires with the one that it has."""
        return self._presence.enter(room, author, identity)

    def rename(self, room: str, author: str, identity: Identity) -> "Deferred[str]":
        """Let a member take another nick, or one like it; fires with the one that it has."""
        return self._presence.rename(room, author, identity)

    def find_nick(self, room: str, identity: Identity) -> "Deferred[str]":
        """Find a nick for somebody who speaks in a room and is not in it; fires with it, empty where it is in use."""
        return self._presence.find_nick(room, identity)

    def exit(self, room: str, author: str, *, linger: bool) -> None:
        """Let a member go; where it may linger, it has a while to come back unnoticed."""
        self._presence.leave(room, author, linger=linger)

    def members(self, room: str) -> "Deferred[MemberList]":
        """Ask who is in a room, on all workers."""
        return self._presence.members(room)

    def list_rooms(self) -> "Deferred[tuple[Sequence[OccupiedRoom], bool]]":
        """List the rooms that have members or messages, by name, and say whether there may be more."""
        return Deferred.fromCoroutine(self._presence.list_rooms())

    def watch(self, room: str) -> None:
        """Tell who comes to a room and goes, from now on."""
        self._presence.watch(room)

    def unwatch(self, room: str) -> None:
        """Tell it no more."""
        self._presence.unwatch(room)

    def _present(self, room: str, after: StreamPosition, changes: Sequence[PresenceEvent]) -> None:
        self.listener.present(room, after, changes)

    def _said(self, room: str) -> "Deferred[None] | None":
        """Fire once all that was said in a room up to now is published, or never will be. Return None if it is."""
        logged = self.listener.logged()
        return (
            self._publish_queues.said(room)
            if logged is None
            else logged.addCallback(lambda _: self._publish_queues.said(room))
        )

    def _renamed(self, room: str, author: str, nick: str) -> None:
        self.listener.renamed(room, author, nick)

    # History and places: each answer waits for the broker

    def read(self, room: str, after: StreamPosition | None, most: int) -> "Deferred[HistoryRange]":
        """Read what follows a position, up to about so many bytes; without one only where the room's order stands."""
        return self._history.read(room, after, most)

    def read_back(
        self, room: str, epoch: str, last: int, after: int, most: int
    ) -> "Deferred[tuple[list[Batch], bool]]":
        """Read the newest batches up to one offset and behind another, the newest first, up to about so many bytes.

        Return them and whether there are more. The first may end, and the last begin, with messages beyond the offsets.
        """
        return self._history.read_back(room, epoch, last, after, most)

    def tops(self, rooms: Sequence[str]) -> "Deferred[list[StreamPosition]]":
        """Say where the order of each room stands; a room of which the broker knows nothing has no epoch."""
        return self._history.tops(rooms)

    def claim(self, room: str, key: str, session: str) -> "Deferred[ResumePosition]":
        """Take over the place that was kept under a key, for a connection; or begin one.

        Fails with TakenOver or Contested.
        """
        return Deferred.fromCoroutine(self._claim(room, key, session))

    async def _claim(self, room: str, key: str, session: str) -> ResumePosition:
        if not self._settled:  # the worker that has yet to write the place is to be back before it is read
            settled: Deferred[None] = Deferred(self._unsettled.pop)
            self._unsettled[settled] = None
            await settled
        return await self._places.claim(room, key, session)

    def save(self, room: str, key: str, session: str, place: ResumePosition, *, left: bool = False) -> None:
        """Keep a place under a key, as long as the connection has it; it may have left."""
        self._places.save(room, key, session, place, left=left)

    def fought(self, room: str, key: str) -> None:
        """Count that a place was taken from a client that was still there."""
        self._places.fought(room, key)

    def saved(self) -> "Deferred[Any]":
        """Fire once all places are kept, and it is said who has left."""
        return gatherResults([self._places.saved(), self._presence.flushed()])

    def _give_up(self, room: str, session: str) -> ResumePosition | None:
        return self.listener.give_up(room, session)

    # Rooms

    def subscribe(self, room: str) -> "Deferred[None]":
        """Hear a room once the Deferred, which may be cancelled, fires: the broker has confirmed it."""
        subscription = self._rooms.get(room)
        if subscription is None:
            subscription = self._rooms[room] = _Subscription()
            if self._subscriber is not None:
                self._subscribe_on(self._subscriber, room).addErrback(self._not_subscribed, room)
        if subscription.confirmed:
            return succeed(None)
        done: Deferred[None] = Deferred(subscription.waiters.pop)
        subscription.waiters[done] = None
        return done

    def hears(self, room: str) -> bool:
        """Whether a room is heard now: its subscription is confirmed."""
        subscription = self._rooms.get(room)
        return subscription is not None and subscription.confirmed

    def unsubscribe(self, room: str) -> None:
        """Hear a room no more."""
        self._rooms.pop(room, None)
        if self._subscriber is not None:
            self._subscriber.unsubscribe([self._channel(room)]).addErrback(lambda _: None)

    def _subscribe_on(self, protocol: Any, room: str) -> "Deferred[None]":
        subscription = self._rooms[room]

        def confirmed(_: object) -> None:
            if self._rooms.get(room) is subscription and protocol is self._subscriber:
                subscription.confirmed = True
                waiters = subscription.waiters
                while waiters:  # one may cancel another
                    waiters.popitem(last=False)[0].callback(None)

        done: Deferred[None] = protocol.subscribe([self._channel(room)]).addCallback(confirmed)
        return done

    def _not_subscribed(self, failure: Failure, room: str) -> None:
        if not failure.check(LinkLost):  # else it is done again when the link is back
            log.error("room {room} cannot be subscribed: {why}", room=room, why=failure.getErrorMessage())

    def _heard_rooms(self) -> list[str]:
        return [room for room, subscription in self._rooms.items() if subscription.confirmed]

    def _compare(self, room: str, top: StreamPosition) -> None:
        if self.hears(room):
            self.listener.compare(room, top)

    def _channel(self, room: str) -> bytes:
        return (self._prefix + room).encode()

    def _heard(self, channel: bytes, data: bytes) -> None:
        if channel == self._probes.channel:
            self._probes.heard(data)
            return
        if channel == self._places.channel:
            self._places.heard(data)
            return
        room = channel.decode()[len(self._prefix) :]
        if room not in self._rooms:
            return
        if tells_changes(data):
            self._presence.heard(room, data)
            return
        try:
            batch = decode(room, data)
        except ValueError as error:
            log.error("a message for room {room} cannot be read, it is lost: {why}", room=room, why=str(error))
            self._comparison.run()  # else those in the room are only told when something follows it
        else:
            self.listener.deliver(batch)

    # The links

    async def _prepare_commands(self, protocol: Any) -> None:
        """Load the scripts, learn which run of the broker this is."""
        if self._sentinels is not None:
            await self._sentinels.check(protocol)
        info = await protocol.execute_command("INFO", "server")
        fields = dict(line.partition(b":")[::2] for line in info.split(b"\r\n"))
        version = fields[b"redis_version"].decode()
        if [int(each) for each in version.split(".")[:2]] < [int(each) for each in OLDEST_REDIS.split(".")]:
            raise ConnectionUnusable(f"it is Redis {version}; {OLDEST_REDIS} or newer is needed")
        for script in ALL:
            await script.load(protocol)
        run = self._known_run or fields[b"run_id"]
        if self._sentinels is not None:
            run = await RUN.run(protocol, [f"{self._config.redis_prefix}:run".encode()], [run, secrets.token_hex(4)])
        self._publish_queues.connected(protocol, run)
        self._queries.connected(protocol, run)
        self._places.connected(run)

    async def _prepare_channels(self, protocol: Any) -> None:
        if self._sentinels is not None:
            await self._sentinels.check(protocol)
        self._subscriber = protocol
        protocol.whenDisconnected().addCallback(self._forget_subscriber)
        for channel in (self._probes.channel, self._places.channel):
            await protocol.subscribe([channel])
        self._places.write_anew()
        # A room that is refused is said, and waits; the others must not wait with it.
        rooms = [self._subscribe_on(protocol, room).addErrback(self._not_subscribed, room) for room in self._rooms]
        await gatherResults(rooms)

    def _forget_subscriber(self, protocol: Any) -> None:
        if self._subscriber is protocol:
            self._subscriber = None
            for subscription in self._rooms.values():
                subscription.confirmed = False

    def _links_changed(self) -> None:
        """Work out anew whether anything can be published. After an outage others get time to come back first."""
        connected = self._commands.protocol is not None and self._channels.protocol is not None
        if not connected:
            self._refusing, self._settled = "", False
        live = connected and not self._refusing and not self._closed
        if not live and self._settling is not None:
            self._settling.cancel()
            self._settling = None
        if live and not self._publish_queues.live and self._settling is None:
            wait = self._config.bus_settle_seconds if self._was_live else 0
            self._settling = self._clock.callLater(wait, self._go_live)
            self._look_whether_it_writes()
        elif not live and self._publish_queues.live:
            self._publish_queues.lost()
            self._away_since = self._clock.seconds()
            self._say_away()
            self.listener.bus_changed()
        if connected:
            self._comparison.run()
        else:
            self._probes.fail(self.away)

    def _go_live(self) -> None:
        self._settling = None
        self._was_live = self._settled = True
        if self._said_away:
            self._said_away = False
            log.info(
                "the message bus {address} is back after {seconds:.1f} s",
                address=self._address,
                seconds=self._clock.seconds() - self._away_since,
                problem=f"bus {self._address}",
                resolved=True,
            )
        self._publish_queues.go_live()
        self.listener.bus_changed()
        while self._unsettled:  # one may cancel another
            self._unsettled.popitem(last=False)[0].callback(None)

    def _window_changed(self) -> None:
        self.listener.bus_changed()

    def _refused(self, why: str) -> None:
        """Be away, though connected, because the broker can't write; try again in a while."""
        self._refusing = why
        if self._retrying is None or not self._retrying.active():
            config = self._config
            wait = config.bus_retry_first_seconds * 1.5 ** min(self._refusals, 50)
            self._refusals += 1
            self._retrying = self._clock.callLater(min(wait, config.bus_retry_most_seconds), self._try_again)
        self._links_changed()

    def _try_again(self) -> None:
        """Send again what was refused; where there is nothing, see whether something could be published."""
        self._publish_queues.send_all()
        if not self._publish_queues.unanswered:
            self._look_whether_it_writes()

    def _look_whether_it_writes(self) -> None:
        self.probe().addErrback(lambda _: None)

    def _answered(self) -> None:
        """Be back, where the broker could not write for a while: it has done as asked, or refused for good."""
        if self._refusing:
            self._refusing, self._refusals = "", 0
            self._links_changed()

    def _say_away(self) -> None:
        self._said_away = True
        log.warn(
            "the message bus {address} is away: {why}",
            address=self._address,
            why=self.away,
            problem=f"bus {self._address}",
        )

    def _tick(self) -> None:
        """Ask the links for a sign of life: a frozen broker breaks no connection."""
        if not self._publish_queues.live and not self._said_away:
            away = self._clock.seconds() - self._away_since
            if away >= 2 * self._config.bus_tick_seconds:  # a start takes a moment, and is no outage
                self._say_away()
        links = (self._commands, self._channels)
        if any(link.protocol is None for link in links):
            for link in links:
                link.rest()  # it takes both to ask: the silence is ours
            return
        for link in links:
            link.tick()
        if all(link.protocol is not None for link in links):
            self._look_whether_it_writes()
