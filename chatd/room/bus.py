"""The bus: carries batches of messages between all workers, on this host and others, through Redis or Valkey.

What it promises:

* Messages that ``publish`` took are published once, in the order they were taken, or the Deferred says why
  not. Each room has one batch on the wire at a time; what comes meanwhile makes the next one. A batch whose
  answer was lost with the link is unknown: it is sent again with the same number, by which the script and
  every receiver know it.
* What it has in flight is bounded (``window_bytes``): take no more while ``open`` is False.
* While the broker can't be reached, or refuses to write, it is ``away``, and says why; everything waits.
* Nothing is delivered around the broker: the sender's own worker, too, gets messages only from there.
* Only rooms that were subscribed are heard; a subscription survives reconnects.

It does not know members, nor what a message says.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Protocol

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.config import BrokerAddress, Config
from chatd.message import Batch, Message, decode, encode
from chatd.room.link import Link, LinkLost, Publisher, ReplyError, Subscriber

log = Logger()

PUBLISH_SCRIPT = files("chatd.room").joinpath("scripts/publish.lua").read_bytes()

_AWAY_CODES = frozenset(
    ("LOADING", "BUSY", "OOM", "MISCONF", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS", "NOAUTH", "NOPERM")
)
"""Answers by which a broker says that it can't write now; what was asked for is tried again."""


class NotPublished(Exception):
    """A batch was refused for good, or its fate is unknown."""

    def __init__(self, why: str, *, unknown: bool = False) -> None:
        """Take the broker's words; unknown where it may have published the batch all the same."""
        super().__init__(why)
        self.unknown = unknown


@dataclass(frozen=True, slots=True)
class Place:
    """Where a published batch stands in its room's order."""

    epoch: str
    first: int


class BusListener(Protocol):
    """Who hears the bus."""

    def deliver(self, batch: Batch) -> None:
        """Take a batch of a room that was subscribed."""

    def bus_changed(self) -> None:
        """Look at ``open`` and ``away`` again."""


@dataclass(slots=True)
class _Waiting:
    """What one ``publish`` call handed over."""

    messages: Sequence[Message]
    size: int
    done: "Deferred[Place]"


@dataclass(slots=True)
class _Sending:
    """A batch that was sent, until its answer is there."""

    sequence: int
    count: int
    payload: bytes
    parts: list[_Waiting]
    on_wire: bool = False


@dataclass(slots=True)
class _Probe:
    """A probe on its way through the bus."""

    done: "Deferred[None]"
    late: Any
    answered: bool = False
    """Whether the publishing link has heard that it was published."""


@dataclass(slots=True)
class _Outbox:
    """What one room has to publish."""

    room: str
    waiting: list[_Waiting] = field(default_factory=list)
    sending: _Sending | None = None


@dataclass(slots=True)
class _Subscription:
    """A room that is heard, once it is confirmed."""

    confirmed: bool = False
    waiters: "list[Deferred[None]]" = field(default_factory=list)


def broker_endpoint(reactor: Any, address: BrokerAddress, timeout: float) -> IStreamClientEndpoint:
    """Give the endpoint to dial for an address; ``rediss://`` has its certificate and name checked."""
    if address.path:
        return UNIXClientEndpoint(reactor, address.path, timeout=timeout)
    endpoint = HostnameEndpoint(reactor, address.host, address.port, timeout=timeout)
    if address.tls:
        return wrapClientTLS(optionsForClientTLS(address.host), endpoint)
    return endpoint


class Bus:
    """This worker's end of the bus. Set ``listener`` before ``start``."""

    listener: BusListener

    def __init__(
        self,
        reactor: Any,
        address: BrokerAddress,
        config: Config,
        publisher: str,
        endpoint: IStreamClientEndpoint | None = None,
    ) -> None:
        """Take the reactor, where the broker is, and a name for this worker that no other has or had."""
        self._clock = reactor
        self._address = address
        self._config = config
        self._publisher = publisher
        endpoint = endpoint or broker_endpoint(reactor, address, config.bus_connect_seconds)

        def link(kind: type[Any], prepare: Any, heard: Callable[[bytes, bytes], None] | None = None) -> Link:
            return Link(
                kind, reactor, endpoint, address, config, prepare=prepare, changed=self._links_changed, heard=heard
            )

        self._commands = link(Publisher, self._prepare_commands)
        self._channels = link(Subscriber, self._prepare_channels, self._heard)
        self._subscriber: Any = None  # while preparing, too
        self._ticker = LoopingCall(self._tick)
        self._ticker.clock = reactor

        self._prefix = f"{config.redis_prefix}:room:"
        self._probe_channel = f"{config.redis_prefix}:probe:{publisher}".encode()
        self._script = b""
        self._run = b""
        self._sequence = 0
        self._outboxes: dict[str, _Outbox] = {}
        self._in_flight = 0
        self._full = False
        self._flush_waiters: list[Deferred[None]] = []
        self._rooms: dict[str, _Subscription] = {}
        self._probes: dict[int, _Probe] = {}
        self._probe_number = 0

        self._live = False
        self._was_live = False
        self._refusing = ""
        self._retries = 0
        self._settling: Any = None
        self._retrying: Any = None
        self._away_since = 0.0
        self._said_away = False
        self._closed = False

    # What the worker asks for

    def start(self) -> None:
        """Dial the broker."""
        self._away_since = self._clock.seconds()
        self._commands.start()
        self._channels.start()
        self._ticker.start(self._config.bus_tick_seconds, now=False)

    def stop(self) -> None:
        """Hang up. What was not published fails with NotPublished."""
        self._closed = True
        self._ticker.stop()
        for timer in (self._settling, self._retrying):
            if timer is not None and timer.active():
                timer.cancel()
        outboxes, self._outboxes = self._outboxes, {}
        for outbox in outboxes.values():
            if outbox.sending:
                for part in outbox.sending.parts:
                    part.done.errback(NotPublished("the server stopped", unknown=True))
            for part in outbox.waiting:
                part.done.errback(NotPublished("the server stopped"))
        self._fail_probes()
        self._commands.stop()
        self._channels.stop()

    @property
    def away(self) -> str:
        """Why nothing can be published now; empty while it can."""
        if self._live:
            return ""
        if self._refusing:
            return self._refusing
        troubles = [link.trouble for link in (self._commands, self._channels) if link.protocol is None]
        return troubles[0] if troubles else "settling"

    @property
    def open(self) -> bool:
        """Whether ``publish`` may be called."""
        return self._live and not self._full

    @property
    def space(self) -> int:
        """How much more may be in flight, in bytes: ``weight`` says what a message takes."""
        return self._config.window_bytes - self._in_flight

    def weight(self, message: Message) -> int:
        """Give what a message takes of the window, in bytes."""
        return len(message.text.encode()) + self._config.message_overhead_bytes

    def publish(self, room: str, messages: Sequence[Message]) -> "Deferred[Place]":
        """Publish messages of a room, after all that were handed over before; fails with NotPublished.

        The Deferred fires once they have their offsets; they may be delivered before that.
        """
        part = _Waiting(messages, sum(map(self.weight, messages)), Deferred())
        outbox = self._outboxes.get(room)
        if outbox is None:
            outbox = self._outboxes[room] = _Outbox(room)
        outbox.waiting.append(part)
        self._in_flight += part.size
        if self._live:
            self._send(outbox)
        self._weigh()
        return part.done

    def flushed(self) -> "Deferred[None]":
        """Fire once nothing is in flight."""
        done: Deferred[None] = Deferred()
        if self._outboxes:
            self._flush_waiters.append(done)
        else:
            done.callback(None)
        return done

    def subscribe(self, room: str) -> "Deferred[None]":
        """Hear a room from the moment the Deferred fires: the broker has confirmed it. Waits while it is away."""
        done: Deferred[None] = Deferred()
        subscription = self._rooms.get(room)
        if subscription is None:
            subscription = self._rooms[room] = _Subscription()
            if self._subscriber is not None:
                self._subscribe_on(self._subscriber, room).addErrback(self._not_subscribed, room)
        if subscription.confirmed:
            done.callback(None)
        else:
            subscription.waiters.append(done)
        return done

    def unsubscribe(self, room: str) -> None:
        """Hear a room no more."""
        self._rooms.pop(room, None)
        if self._subscriber is not None:
            self._subscriber.unsubscribe([self._channel(room)]).addErrback(lambda _: None)

    def probe(self) -> "Deferred[None]":
        """Publish to ourselves. Fires when it came back; fails with NotPublished, which names the broken link."""
        done: Deferred[None] = Deferred()
        if self._commands.protocol is None or self._channels.protocol is None:
            done.errback(NotPublished(self.away))
            return done
        number = self._probe_number = self._probe_number + 1
        late = self._clock.callLater(self._config.probe_seconds, self._probe_late, number)
        self._probes[number] = probe = _Probe(done, late)

        def answered(_: object) -> None:
            probe.answered = True

        self._send_probe().addCallback(answered)
        return done

    # Publishing

    def _send(self, outbox: _Outbox) -> None:
        """Put the room's next batch on the wire, or again the one whose answer got lost."""
        sending = outbox.sending
        if sending is None:
            parts, outbox.waiting = outbox.waiting, []
            messages = [message for part in parts for message in part.messages]
            self._sequence += 1
            sending = outbox.sending = _Sending(self._sequence, len(messages), encode(messages), parts)
        if sending.on_wire:
            return
        sending.on_wire = True
        config, channel = self._config, self._channel(outbox.room)
        self._commands.protocol.execute_command(
            "EVALSHA",
            self._script,
            2,
            channel,
            f"{config.redis_prefix}:sent:{self._publisher}:{outbox.room}".encode(),
            channel,
            self._publisher,
            sending.sequence,
            sending.count,
            sending.payload,
            self._run,
            secrets.token_hex(4),
            config.room_memory_seconds,
            config.republish_memory_seconds,
        ).addCallbacks(self._published, self._failed, callbackArgs=(outbox, sending), errbackArgs=(outbox, sending))

    def _published(self, reply: list[Any], outbox: _Outbox, sending: _Sending) -> None:
        epoch, first = reply[0].decode(), int(reply[1])
        self._settle(outbox, sending)
        for part in sending.parts:
            part.done.callback(Place(epoch, first))
            first += len(part.messages)
        if self._refusing:
            self._refusing, self._retries = "", 0
            self._links_changed()
        self._weigh()

    def _failed(self, failure: Failure, outbox: _Outbox, sending: _Sending) -> None:
        sending.on_wire = False
        if self._closed or failure.check(LinkLost):
            return  # sent again when the link is back
        why = failure.getErrorMessage().strip()
        code = why.partition(" ")[0]
        if not failure.check(ReplyError):
            log.failure("a publish failed", failure)
        if code == "NOSCRIPT":
            self._load(self._commands.protocol).addCallbacks(
                lambda _: self._send_all(), lambda _: self._commands_broken()
            )
        elif code in _AWAY_CODES:
            self._refuse(why)
        else:
            log.error("the broker refused messages for room {room}: {why}", room=outbox.room, why=why)
            self._settle(outbox, sending)
            for part in sending.parts:
                part.done.errback(NotPublished(why))
            self._weigh()

    def _settle(self, outbox: _Outbox, sending: _Sending) -> None:
        """Strike a batch off, send the room's next."""
        outbox.sending = None
        self._in_flight -= sum(part.size for part in sending.parts)
        if outbox.waiting:
            if self._live:
                self._send(outbox)
        else:
            self._outboxes.pop(outbox.room, None)
            if not self._outboxes:
                waiters, self._flush_waiters = self._flush_waiters, []
                for waiter in waiters:
                    waiter.callback(None)

    def _send_all(self) -> None:
        if self._commands.protocol is not None:
            for outbox in list(self._outboxes.values()):
                self._send(outbox)

    def _refuse(self, why: str) -> None:
        """Be away, though connected, because the broker can't write; try again in a while."""
        self._refusing = why
        if self._retrying is None or not self._retrying.active():
            config = self._config
            delay = min(config.bus_retry_first_seconds * 1.5 ** min(self._retries, 50), config.bus_retry_most_seconds)
            self._retries += 1
            self._retrying = self._clock.callLater(delay, self._send_all)
        self._links_changed()

    def _commands_broken(self) -> None:
        if self._commands.protocol is not None:
            self._commands.protocol.transport.abortConnection()

    def _weigh(self) -> None:
        """See whether the window is full; once it was, it opens again at half."""
        window = self._config.window_bytes
        full = self._in_flight > (window // 2 if self._full else window)
        if full != self._full:
            self._full = full
            self.listener.bus_changed()

    # Hearing

    def _channel(self, room: str) -> bytes:
        return (self._prefix + room).encode()

    def _heard(self, channel: bytes, data: bytes) -> None:
        if channel == self._probe_channel:
            for number in [each for each in self._probes if each <= int(data)]:
                probe = self._probes.pop(number)
                probe.late.cancel()
                probe.done.callback(None)
            return
        room = channel.decode()[len(self._prefix) :]
        if room in self._rooms:
            self.listener.deliver(decode(room, data))

    def _subscribe_on(self, protocol: Any, room: str) -> "Deferred[None]":
        subscription = self._rooms[room]

        def confirmed(_: object) -> None:
            if self._rooms.get(room) is subscription and protocol is self._subscriber:
                subscription.confirmed = True
                waiters, subscription.waiters = subscription.waiters, []
                for waiter in waiters:
                    waiter.callback(None)

        done: Deferred[None] = protocol.subscribe([self._channel(room)]).addCallback(confirmed)
        return done

    def _not_subscribed(self, failure: Failure, room: str) -> None:
        if not failure.check(LinkLost):  # or it is done again when the link is back
            log.error("room {room} cannot be subscribed: {why}", room=room, why=failure.getErrorMessage())

    def _send_probe(self) -> "Deferred[Any]":
        sent: Deferred[Any] = self._commands.protocol.publish(self._probe_channel, str(self._probe_number))
        return sent.addErrback(lambda _: None)

    def _probe_late(self, number: int) -> None:
        probe = self._probes.pop(number)
        link = "subscribing" if probe.answered else "publishing"
        why = f"nothing came through the {link} link within {self._config.probe_seconds:g} s"
        probe.done.errback(NotPublished(why))

    # The links

    async def _prepare_commands(self, protocol: Any) -> None:
        info = await protocol.execute_command("INFO", "server")
        fields = dict(line.partition(b":")[::2] for line in info.split(b"\r\n"))
        self._run = fields[b"run_id"]
        await self._load(protocol)

    def _load(self, protocol: Any) -> "Deferred[None]":
        def loaded(name: bytes) -> None:
            self._script = name

        done: Deferred[None] = protocol.script_load(PUBLISH_SCRIPT).addCallback(loaded)
        return done

    async def _prepare_channels(self, protocol: Any) -> None:
        self._subscriber = protocol
        protocol.whenDisconnected().addCallback(self._forget_subscriber)
        await protocol.subscribe([self._probe_channel])
        await gatherResults([self._subscribe_on(protocol, room) for room in self._rooms], consumeErrors=True)

    def _forget_subscriber(self, protocol: Any) -> None:
        if self._subscriber is protocol:
            self._subscriber = None
            for subscription in self._rooms.values():
                subscription.confirmed = False

    def _links_changed(self) -> None:
        """Work out anew whether anything can be published. After an outage others get time to come back first."""
        connected = self._commands.protocol is not None and self._channels.protocol is not None
        if not connected:
            self._refusing = ""
            self._fail_probes()
        live = connected and not self._refusing and not self._closed
        if not live and self._settling is not None:
            self._settling.cancel()
            self._settling = None
        if live and not self._live and self._settling is None:
            wait = self._config.bus_settle_seconds if self._was_live else 0
            self._settling = self._clock.callLater(wait, self._go_live)
        elif not live and self._live:
            self._live = False
            self._away_since = self._clock.seconds()
            self._say_away()
            self.listener.bus_changed()

    def _go_live(self) -> None:
        self._settling = None
        self._live = self._was_live = True
        if self._said_away:
            self._said_away = False
            log.info(
                "the message bus {address} is back after {seconds:.1f} s",
                address=self._address,
                seconds=self._clock.seconds() - self._away_since,
            )
        self._send_all()
        self.listener.bus_changed()

    def _say_away(self) -> None:
        self._said_away = True
        log.warn("the message bus {address} is away: {why}", address=self._address, why=self.away)

    def _fail_probes(self) -> None:
        probes, self._probes = self._probes, {}
        for probe in probes.values():
            probe.late.cancel()
            probe.done.errback(NotPublished(self.away))

    def _tick(self) -> None:
        """Ask silent links for a sign of life: a frozen broker breaks no connection."""
        if not self._live and not self._said_away:
            started = self._clock.seconds() - self._away_since
            if started >= 2 * self._config.bus_tick_seconds:  # a start takes a moment, and is not an outage
                self._say_away()
        asked = [link.tick() for link in (self._commands, self._channels)]
        if all(asked):
            self._send_probe()
