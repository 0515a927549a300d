"""The bus: carries batches of messages between all workers, on this host and others, through Redis or Valkey.

It owns both connections to the broker, and what uses them: ``queues``, ``history``, ``presence``,
``resume_positions``, ``shared_limits`` and ``eviction``. It promises:

* Messages come from the broker alone. The sender's own worker gets them that way, too.
* Only batches of subscribed rooms are delivered. A subscription survives reconnects.
* A batch that was lost on the way is noticed: every ``offset_check_interval`` the bus reports the stream position of
  each room to the listener.
* While the broker cannot be reached, or refuses to write, the bus is ``away`` and says why. Queries wait.
* A frozen broker, which breaks no connection, is found within five ticks.

It knows neither subscribers nor the text of a message.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from twisted.internet.defer import Deferred, fail, gatherResults, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.broker.connection import (
    BrokerConnection,
    ConnectionUnusable,
    LinkLost,
    PublishConnection,
    SubscribeConnection,
    broker_endpoint,
)
from chatd.broker.eviction import Eviction
from chatd.broker.history import HistoryReader
from chatd.broker.liveness import Comparison, LivenessProbes
from chatd.broker.presence import PresenceStore
from chatd.broker.publish_queue import NotPublished, PublishQueues, WritesRefused
from chatd.broker.queries import ALL, RUN, Queries
from chatd.broker.resume_positions import ResumePosition, ResumePositions
from chatd.broker.sentinel import Sentinels
from chatd.broker.shared_limits import SharedLimits
from chatd.config.broker_url import BrokerAddress
from chatd.config.settings import Config
from chatd.monitoring.metrics import BUSES
from chatd.protocol.message import Batch, PresenceEvent, StreamPosition, decode, tells_changes
from chatd.runtime.timers import Periodic
from chatd.runtime.waiters import Waiters

log = Logger()

OLDEST_REDIS = "6.2"
"""The first that trims a stream by id. Every Valkey calls itself Redis 7 here."""


class BusListener(Protocol):
    """The interface that the bus calls; the hub implements it."""

    def deliver(self, batch: Batch) -> None:
        """Deliver a batch to a subscribed room."""

    def bus_changed(self) -> None:
        """Look at ``away`` and at ``queues.open`` again."""

    def recover(self, room: str, top: StreamPosition) -> None:
        """Recover what is missing in a room up to a stream position."""

    def presence_changed(self, room: str, after: StreamPosition, events: Sequence[PresenceEvent]) -> None:
        """Pass on the presence events of a watched room, which follow a stream position."""

    def renamed(self, room: str, sender_id: str, nick: str) -> None:
        """Note the new nick of a member: another member took its nick while the broker did not know it."""

    def disconnect(self, room: str, session: str) -> ResumePosition | None:
        """Close a connection whose resume key another connection has claimed. Return its resume position."""

    def logged(self) -> "Deferred[None] | None":
        """Return a Deferred that fires when all received messages are published or refused, or None if they are."""


@dataclass(slots=True)
class _Subscription:
    """A subscribed room, and the callers that wait for the broker's confirmation."""

    confirmed: bool = False
    waiters: Waiters = field(default_factory=Waiters)


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
        """Prepare a bus for a broker. ``publisher`` is this worker's unique name.

        ``run`` names the period in which the broker has lost nothing. By default each process of the broker is one.
        ``now`` returns seconds since 1970.
        """
        self._clock = reactor
        self._address = address
        self._config = config
        self._room_channels = f"{config.redis_prefix}:room:".encode()
        self._known_run = run.encode()
        self.publisher = publisher
        self._queries = queries = Queries(reactor, config)
        self.queues = self._make_publish_queues()
        self.history = HistoryReader(queries, config, self._channel, now)
        self.presence = self._make_presence(now)
        self.resume_positions = self._make_resume_positions()
        self.shared_limits = SharedLimits(reactor, queries, config, publisher)
        self.eviction = Eviction(reactor, queries, config, publisher)
        self._probes = LivenessProbes(reactor, config, publisher)
        self._comparison = self._make_comparison()
        self._ticker = Periodic(reactor, config.redis_ping_interval, self._tick, "looking whether the broker is frozen")
        self._sentinels = Sentinels(reactor, address, config) if address.sentinels else None
        self._endpoint = self._sentinels or broker_endpoint(reactor, address, config)
        self._publishing = self._connection(PublishConnection, self._prepare_publishing)
        self._subscribing = self._connection(SubscribeConnection, self._prepare_subscribing)
        self._subscriber: Any = None  # the protocol of _subscribing, from the moment it is prepared
        self._rooms: dict[str, _Subscription] = {}
        self._was_live = False
        self._refusing = ""
        self._refusals = 0
        self._retrying: Any = None
        self._settling: Any = None
        self._away_since = 0.0
        self._reported_away = False
        self._closed = False

    def _make_publish_queues(self) -> PublishQueues:
        return PublishQueues(
            self._config,
            self.publisher,
            self._channel,
            now=self._clock.seconds,
            answered=self._answered,
            refused=self._refused,
            window_changed=lambda: self.listener.bus_changed(),  # noqa: PLW0108 - set later
        )

    def _make_presence(self, now: Callable[[], float]) -> PresenceStore:
        return PresenceStore(
            self._clock,
            self._queries,
            self._config,
            self.publisher,
            channel=self._channel,
            now=now,
            changed=lambda *args: self.listener.presence_changed(*args),  # noqa: PLW0108 - set later
            renamed=lambda *args: self.listener.renamed(*args),  # noqa: PLW0108 - set later
            published=self._published,
        )

    def _make_resume_positions(self) -> ResumePositions:
        def disconnect(room: str, session: str) -> ResumePosition | None:
            return self.listener.disconnect(room, session)

        return ResumePositions(self._clock, self._queries, self._config, self.publisher, disconnect)

    def _make_comparison(self) -> Comparison:
        return Comparison(
            self._clock,
            self._config,
            self.history,
            self.presence,
            rooms=self._confirmed_rooms,
            probe=self.probe,
            recover=self._recover,
        )

    def _connection(self, kind: type[Any], prepare: Any) -> BrokerConnection:
        return BrokerConnection(
            kind,
            self._clock,
            self._endpoint,
            self._address,
            self._config,
            prepare=prepare,
            changed=self._connections_changed,
            received=self._received,
        )

    def start(self) -> None:
        """Connect to the broker."""
        BUSES.value += 1
        self._away_since = self._clock.seconds()
        self.resume_positions.hold_claims()
        self._publishing.start()
        self._subscribing.start()
        self._ticker.start(now=False)
        self._comparison.start()

    def stop(self) -> None:
        """Close both connections. Batches that are not published fail with NotPublished."""
        BUSES.value -= 1
        self._closed = True
        self._ticker.stop()
        self._comparison.stop()
        self.shared_limits.stop()
        self.eviction.stop()
        self._queries.stop()
        self.presence.stop()
        for timer in (self._settling, self._retrying):
            if timer is not None and timer.active():
                timer.cancel()
        self.queues.abandon("the server stopped")
        self._probes.fail("the server stopped")
        self._publishing.stop()
        self._subscribing.stop()

    @property
    def away(self) -> str:
        """Return why nothing can be published now, or an empty string."""
        if self.queues.live:
            return ""
        if self._refusing:
            return self._refusing
        troubles = [
            connection.trouble for connection in (self._publishing, self._subscribing) if connection.protocol is None
        ]
        return troubles[0] if troubles else "waiting for other workers to be back"

    @property
    def starting(self) -> bool:
        """Return whether this bus was never live: the worker has just started."""
        return not self._was_live

    @property
    def unreachable(self) -> str:
        """Return why queries wait, or an empty string. At a start they may wait for the first connection."""
        return "" if self.starting or self._publishing.protocol is not None else self._publishing.trouble

    @property
    def refusing(self) -> str:
        """Return the broker's reason for refusing writes, or an empty string."""
        return self._refusing

    def probe(self) -> "Deferred[None]":
        """Publish a probe to this worker. Return a Deferred that fires when it has come back.

        It fails with NotPublished, which names the broken connection or says why the broker refuses writes.
        """
        if self._publishing.protocol is None or self._subscribing.protocol is None:
            return fail(NotPublished(self.away))
        return self._probes.send(self._publishing.protocol).addCallbacks(self._probe_returned, self._probe_failed)

    def _probe_returned(self, _: None) -> None:
        """End a refusal of writes, unless unanswered batches will tell. Raise WritesRefused while it lasts."""
        if not self.queues.unanswered:
            self._answered()
        if self._refusing:
            raise WritesRefused(self._refusing)

    def _probe_failed(self, failure: Failure) -> Failure:
        if failure.check(WritesRefused):
            self._refused(str(failure.value))
        return failure

    def _published(self, room: str) -> "Deferred[None] | None":
        """Return a Deferred that fires when all messages of a room are published or refused, or None if they are."""
        logged = self.listener.logged()
        if logged is None:
            return self.queues.published(room)
        return logged.addCallback(lambda _: self.queues.published(room))

    # Subscriptions

    def subscribe(self, room: str) -> "Deferred[None]":
        """Subscribe to a room. Return a Deferred that fires on confirmation, and may be cancelled."""
        subscription = self._rooms.get(room)
        if subscription is None:
            subscription = self._rooms[room] = _Subscription()
            if self._subscriber is not None:
                self._subscribe_on(self._subscriber, room).addErrback(self._not_subscribed, room)
        if subscription.confirmed:
            return succeed(None)
        return subscription.waiters.wait()

    def subscribed(self, room: str) -> bool:
        """Return whether the subscription of a room is confirmed."""
        subscription = self._rooms.get(room)
        return subscription is not None and subscription.confirmed

    def unsubscribe(self, room: str) -> None:
        """Cancel the subscription of a room."""
        self._rooms.pop(room, None)
        if self._subscriber is not None:
            self._subscriber.unsubscribe([self._channel(room)]).addErrback(lambda _: None)

    def _subscribe_on(self, protocol: Any, room: str) -> "Deferred[None]":
        subscription = self._rooms[room]

        def confirmed(_: object) -> None:
            if self._rooms.get(room) is subscription and protocol is self._subscriber:
                subscription.confirmed = True
                subscription.waiters.fire()

        done: Deferred[None] = protocol.subscribe([self._channel(room)]).addCallback(confirmed)
        return done

    def _not_subscribed(self, failure: Failure, room: str) -> None:
        if not failure.check(LinkLost):  # a new connection subscribes again
            log.error(
                "cannot subscribe to room {room}: {why}",
                room=room,
                why=failure.getErrorMessage(),
                event="subscribe_failed",
            )

    def _confirmed_rooms(self) -> list[str]:
        return [room for room, subscription in self._rooms.items() if subscription.confirmed]

    def _recover(self, room: str, top: StreamPosition) -> None:
        if self.subscribed(room):
            self.listener.recover(room, top)

    def _channel(self, room: str) -> bytes:
        return self._room_channels + room.encode()

    def _received(self, channel: bytes, data: bytes) -> None:
        if not channel.startswith(self._room_channels):
            self._received_own(channel, data)
            return
        room = channel[len(self._room_channels) :].decode()
        if room not in self._rooms:
            return
        if tells_changes(data):
            self.presence.received(room, data)
            return
        try:
            batch = decode(room, data)
        except ValueError as error:
            log.error(
                "a batch of room {room} is unreadable and lost: {why}",
                room=room,
                why=str(error),
                event="batch_unreadable",
            )
            self._comparison.run()  # finds the gap now, not with the next message of the room
        else:
            self.listener.deliver(batch)

    def _received_own(self, channel: bytes, data: bytes) -> None:
        """Pass on what was published to a channel of this worker."""
        if channel == self._probes.channel:
            self._probes.received(data)
        elif channel == self.resume_positions.channel:
            self.resume_positions.received(data)

    # Connections

    async def _prepare_publishing(self, protocol: Any) -> None:
        """Load the scripts and find out which run of the broker this is."""
        if self._sentinels is not None:
            await self._sentinels.check(protocol)
        info = await protocol.execute_command("INFO", "server")
        fields = dict(line.partition(b":")[::2] for line in info.split(b"\r\n"))
        version = fields[b"redis_version"].decode()
        if [int(part) for part in version.split(".")[:2]] < [int(part) for part in OLDEST_REDIS.split(".")]:
            raise ConnectionUnusable(f"it is Redis {version}; {OLDEST_REDIS} or newer is needed")
        for script in ALL:
            await script.load(protocol)
        run = self._known_run or fields[b"run_id"]
        if self._sentinels is not None:
            run = await RUN.run(protocol, [f"{self._config.redis_prefix}:run".encode()], [run, secrets.token_hex(4)])
        self.queues.connected(protocol, run)
        self._queries.connected(protocol, run)
        self.resume_positions.connected(run)

    async def _prepare_subscribing(self, protocol: Any) -> None:
        if self._sentinels is not None:
            await self._sentinels.check(protocol)
        self._subscriber = protocol
        protocol.whenDisconnected().addCallback(self._forget_subscriber)
        for channel in (self._probes.channel, self.resume_positions.channel):
            await protocol.subscribe([channel])
        self.resume_positions.write_anew()
        # A room that is refused is logged. The others must not wait for it.
        rooms = [self._subscribe_on(protocol, room).addErrback(self._not_subscribed, room) for room in self._rooms]
        await gatherResults(rooms)

    def _forget_subscriber(self, protocol: Any) -> None:
        if self._subscriber is protocol:
            self._subscriber = None
            for subscription in self._rooms.values():
                subscription.confirmed = False

    def _connections_changed(self) -> None:
        """Update whether anything can be published. After an outage other workers get time to come back first."""
        connected = self._publishing.protocol is not None and self._subscribing.protocol is not None
        if not connected:
            self._refusing = ""
            self.resume_positions.hold_claims()
        live = connected and not self._refusing and not self._closed
        if not live and self._settling is not None:
            self._settling.cancel()
            self._settling = None
        if live and not self.queues.live and self._settling is None:
            wait = self._config.redis_settle_delay if self._was_live else 0
            self._settling = self._clock.callLater(wait, self._go_live)
            self._probe_writes()
        elif not live and self.queues.live:
            self.queues.lost()
            self._away_since = self._clock.seconds()
            self._report_away()
            self.listener.bus_changed()
        if connected:
            self._comparison.run()
        else:
            self._probes.fail(self.away)

    def _go_live(self) -> None:
        self._settling = None
        self._was_live = True
        if self._reported_away:
            self._reported_away = False
            log.info(
                "the broker {address} is available again after {seconds:.1f} s",
                address=self._address,
                seconds=self._clock.seconds() - self._away_since,
                problem=f"broker {self._address}",
                resolved=True,
                event="broker_available",
            )
        self.queues.go_live()
        self.listener.bus_changed()
        self.resume_positions.release_claims()

    def _refused(self, why: str) -> None:
        """Be away because the broker refuses writes, and retry later."""
        self._refusing = why
        if self._retrying is None or not self._retrying.active():
            config = self._config
            wait = config.redis_reconnect_min_delay * 1.5 ** min(self._refusals, 50)
            self._refusals += 1
            self._retrying = self._clock.callLater(min(wait, config.redis_reconnect_max_delay), self._retry)
        self._connections_changed()

    def _retry(self) -> None:
        """Send refused batches again, or a probe if there are none."""
        self.queues.send_all()
        if not self.queues.unanswered:
            self._probe_writes()

    def _probe_writes(self) -> None:
        self.probe().addErrback(lambda _: None)

    def _answered(self) -> None:
        """End a refusal of writes: the broker has executed a command, or rejected it for another reason."""
        if self._refusing:
            self._refusing, self._refusals = "", 0
            self._connections_changed()

    def _report_away(self) -> None:
        self._reported_away = True
        log.warn(
            "the broker {address} is unavailable: {why}",
            address=self._address,
            why=self.away,
            problem=f"broker {self._address}",
            event="broker_unavailable",
        )

    def _tick(self) -> None:
        """Check both connections: a frozen broker breaks none."""
        if not self.queues.live and not self._reported_away:
            away = self._clock.seconds() - self._away_since
            if away >= 2 * self._config.redis_ping_interval:  # a start is no outage
                self._report_away()
        connections = (self._publishing, self._subscribing)
        if any(connection.protocol is None for connection in connections):
            for connection in connections:
                connection.reset_silence()  # a probe takes both connections
            return
        for connection in connections:
            connection.tick()
        if all(connection.protocol is not None for connection in connections):
            self._probe_writes()
