"""The session of a pipe client, and the base of the others: what the client sends and receives, without sockets.

The contract is that of a pipe: messages go to the other subscribers unchanged, and nothing but their messages comes
back. The only ways to tell such a client something are to stop reading, or to close with a reason.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred, TimeoutError
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.access.rate_limits import too_many
from chatd.access.token_bucket import ClientRate
from chatd.broker.presence_list import Identity
from chatd.broker.resume_positions import KeyContested
from chatd.clients.receipts import Acknowledging, Receipts
from chatd.clients.token_lifetime import UNLIMITED, TokenLifetime
from chatd.config.settings import Config
from chatd.monitoring.metrics import REFUSED_MESSAGES, SLOWED
from chatd.protocol.close_codes import (
    NOT_TEXT,
    OUR_FAULT,
    READ_ONLY,
    TOKEN_OUT,
    TOO_LARGE,
    CloseCode,
    too_slow,
    try_later,
)
from chatd.protocol.http_head import Refused, RoomTarget, internal, unavailable
from chatd.protocol.message import Batch, OffsetGap, StreamPosition
from chatd.protocol.text import BARE, Format, read_line, utf8_size
from chatd.rooms.hub import Hub

log = Logger()


def answer_to(failure: Failure, id: str, late: CloseCode) -> Refused:
    """Return the answer to a client that could not join: why it was too late, or what failed."""
    error = failure.value
    if isinstance(error, TimeoutError):
        return unavailable(late.reason)
    if isinstance(error, KeyContested):
        return too_many("another client uses this resume key too; each needs a key of its own", error.seconds)
    log.failure("client {client} could not join a room", failure, client=id, event="join_failed")
    return internal(OUR_FAULT.reason)


class ClientConnection(Protocol):
    """The connection that carries a session."""

    buffer_full: bool
    """Whether more data waits for the client than its transport buffers."""

    def progress(self) -> tuple[int, int]:
        """Return how many bytes were written, and how many of them have arrived; both counted from anywhere."""

    def deliver(self, blob: bytes, count: int) -> bool:
        """Send these frames, which are count messages, and return True; or call ``fell_behind``."""

    def replay(self, blob: bytes, count: int) -> bool:
        """Send these frames, which are count messages, however much waits; return whether they could be sent."""

    def pause(self) -> None:
        """Read no more for now; what was read already may still be received."""

    def send(self, blob: bytes) -> None:
        """Send frames that are for this client alone; hang up where it reads none of them."""

    def resume(self) -> None:
        """Read again."""

    def close(self, close_code: CloseCode) -> None:
        """Close the connection with this close code."""


class Session(Acknowledging):
    """One bare client in one room."""

    protocol = "pipe"
    """The label of the client in ``chatd_clients``."""
    accepts_binary = False
    """Whether binary messages are accepted; if not, the connection closes at the first frame of one."""
    receives_presence = False
    """Whether it receives presence events, and has a nick of its own."""
    recovers_at_once = False
    """Whether it receives the history of a join in one event."""
    usual_format: Format = BARE
    """How it sees messages, where they are not compressed."""

    __slots__ = (
        "_closed",
        "_config",
        "_connection",
        "_held",
        "_hub",
        "_patience",
        "_pays",
        "_rate",
        "_receipts",
        "_slowed",
        "_target",
        "_timer",
        "address",
        "deliver",
        "format",
        "id",
        "nick",
        "sender_id",
        "token_lifetime",
        "wanted",
    )

    def __init__(
        self,
        hub: Hub,
        config: Config,
        clock: Any,
        connection: ClientConnection,
        *,
        id: str,
        target: RoomTarget,
        address: str,
        token_lifetime: TokenLifetime = UNLIMITED,
        rate: ClientRate | None = None,
    ) -> None:
        """Store the connection, the id (unique for ever), the room and parameters, the address and the permissions.

        Rate limits how fast it may publish and read; None: no limit.
        """
        self._hub = hub
        self._config = config
        self._timer = clock
        self._connection = connection
        self._target = target
        self._held: list[str] | tuple[()] = ()  # nearly always, and one for all
        self._closed = False
        self._patience: Any = None
        self._rate = rate
        self._pays = True  # for what history has for it: it asked for that
        self._slowed: Any = None  # what will go on with what came too fast
        self._receipts = (
            Receipts(connection.progress, config.unconfirmed_positions_per_client) if target.resume else None
        )
        self.id = id
        self.sender_id = id
        self.address = address
        self.token_lifetime = token_lifetime
        self.nick = token_lifetime.permissions.nick or target.nick
        self.wanted = self.nick
        """The nick that the client asked for, or that of its token."""
        self.format = self.usual_format
        self.deliver = connection.deliver  # the hub's loop calls it for each client and batch

    @property
    def echo(self) -> bool:
        """Whether the client receives its own messages."""
        return self._target.echo

    @property
    def subject(self) -> str:
        """The subject of its token; empty if there is none."""
        return self.token_lifetime.permissions.subject

    @property
    def identity(self) -> Identity:
        """The nick that it wants, and its right to it."""
        return self.token_lifetime.identify(self.wanted, self.address)

    @property
    def key(self) -> str:
        """Its resume key; empty where it has none."""
        return self._target.resume

    @property
    def delays_leave(self) -> bool:
        """Whether it may come back without presence events."""
        return bool(self.key)

    @property
    def last(self) -> int:
        """How many earlier messages it wants."""
        return self._target.last

    @property
    def since(self) -> StreamPosition | None:
        """None: a pipe client has no positions."""
        return None

    @property
    def buffer_full(self) -> bool:
        """Whether it has enough to read for now."""
        return self._connection.buffer_full

    # The connection calls

    def join(self) -> "Deferred[None]":
        """Join the room; fires once messages of the room are delivered, or never."""
        return self._hub.join(self._target.room, self)

    def why_not_joined(self) -> CloseCode:
        """Return the reason why the room could not be joined in time."""
        return self._hub.why_not_joined()

    def received(self, texts: Sequence[str]) -> None:
        """Handle the text messages of one read, in order."""
        lines = [line for text in texts if (line := read_line(text))]
        most = self._config.max_message_size
        for index, line in enumerate(lines):
            if len(line) * 4 > most and utf8_size(line) > most:
                self._take(lines[:index])
                REFUSED_MESSAGES["too_large"].value += 1
                self._connection.close(TOO_LARGE)
                return
        self._take(lines)

    def received_binary(self, payload: bytes) -> None:
        """Close the connection. It has done so at the first frame: this is for sessions that accept binary messages."""
        self._connection.close(NOT_TEXT)

    def _take(self, lines: Sequence[str]) -> None:
        if not lines:
            return
        if not self.token_lifetime.permissions.may_write(self._target.room):
            self._not_allowed(lines)
        elif self._held or not self._hub.publisher.open:
            self._hold(lines)
        elif self._rate is None:
            self._publish(lines)
        else:
            self._publish_in_time(lines, self._rate)

    def _publish_in_time(self, lines: Sequence[str], rate: ClientRate) -> None:
        """Publish what the rate allows now; keep the rest, and stop reading until it may be published."""
        fit, wait = rate.take_some([utf8_size(line) for line in lines])
        if fit:
            self._publish(lines[:fit])
        if fit < len(lines):
            SLOWED.value += 1
            self._held = list(lines[fit:])
            self._connection.pause()
            rate.slowed.add(self)
            if self._closed:
                self._leave_behind(rate)
            self._slowed = self._timer.callLater(wait, self._not_slowed)

    def _not_slowed(self) -> None:
        self._slowed = None
        if self._rate is not None:
            self._rate.slowed.discard(self)
        self._go_on()

    def _leave_behind(self, rate: ClientRate) -> None:
        """Keep the messages of a client that disconnected, unless too many are kept already."""
        if not rate.slowed.reserve(self, sum(map(utf8_size, self._held))):
            self._give_up_held()

    def _give_up_held(self) -> None:
        held, self._held = self._held, ()
        REFUSED_MESSAGES["rate_limited"].value += len(held)
        log.warn(
            "dropped {count} messages of a client that left; they exceeded its rate limit",
            count=len(held),
            event="rate_limited_messages_dropped",
        )

    def _go_on(self) -> None:
        """Publish the kept messages as far as the rate allows; resume reading once none is left."""
        held, self._held = self._held, ()
        self._take(held)
        if not self._held and not self._closed:
            self._connection.resume()

    def publish_now(self) -> None:
        """Publish the kept messages at once, because the worker stops."""
        if self._slowed is not None:
            self._slowed.cancel()
            if self._rate is not None:
                self._rate.slowed.discard(self)
                self._rate = None
            with log.failuresHandled(
                "publishing the delayed messages of client {client} failed",
                client=self.id,
                event="delayed_publish_failed",
            ):
                self._not_slowed()  # the others that are slowed hurry too

    def _publish(self, lines: Sequence[str]) -> None:
        self._hub.publisher.publish(self._target.room, self, lines)

    def _not_allowed(self, lines: Sequence[str]) -> None:
        """Close the connection: a pipe client can not be told otherwise that it may only read."""
        REFUSED_MESSAGES["forbidden"].value += len(lines)
        self._connection.close(READ_ONLY)

    def compress(self) -> None:
        """Compress messages to the client from now on."""
        self.format = self.format.deflated

    def opened(self) -> None:
        """Start the token's timer: the handshake was answered."""
        self.token_lifetime.begin(self.token_ends, lambda: self._connection.close(TOKEN_OUT))

    def token_ends(self, seconds: float) -> None:
        """Do nothing: a pipe client receives messages and nothing else."""

    def farewell(self, close_code: CloseCode) -> bytes:
        """Return the frames that go out before the connection closes for this reason."""
        return b""

    def became_slow(self) -> None:
        """Serve the client from history until it has caught up; it did not ask for that, so it is not charged."""
        self._pays = False
        self._hub.start_recovery(self._target.room, self)

    def drained(self) -> None:
        """Continue from history, if it is not caught up."""
        self._hub.drained(self._target.room, self)

    def record_positions(self) -> None:
        """Record, before the connection closes, up to where everything was delivered."""
        if self._receipts is not None:
            self._hub.record_position(self._target.room, self)
            self.seal()

    def record_arrival(self) -> None:
        """Record, while the socket still exists, what has arrived."""
        self.close()

    def closed(self) -> None:
        """Leave the room: the connection is lost. Kept messages are published if the broker comes back in time."""
        self._closed = True
        self.token_lifetime.stop()
        self._hub.leave(self._target.room, self)
        if self._slowed is not None and self._rate is not None:
            self._leave_behind(self._rate)
        elif self._held:
            self._leave_waiting()

    # The hub calls

    def resume_publishing(self) -> None:
        """Publish what was held back, read on."""
        self._stop_patience()
        if self._closed:
            self._hub.publisher.departed.discard(self)
        self._go_on()

    def bus_away(self) -> None:
        """Wait for the bus, but not for ever."""
        if self._patience is None:
            self._patience = self._timer.callLater(self._config.publish_timeout, self._out_of_patience)

    def disconnect(self, close_code: CloseCode) -> None:
        """Close the connection."""
        self._connection.close(close_code)

    def publish_refused(self, close_code: CloseCode) -> None:
        """Close the connection: a pipe client can not be told otherwise that its message was refused."""
        self._connection.close(close_code)

    def renamed(self, nick: str) -> None:
        """Do nothing: a pipe client has no nick."""

    def recovered(
        self, top: StreamPosition, gaps: Sequence[OffsetGap], batches: Sequence[Batch], *, more: bool = False
    ) -> None:
        """Do nothing: history is delivered like any message."""

    def missed_presence(self) -> None:
        """Do nothing: a pipe client receives no presence events."""

    def replay(self, blob: bytes, count: int) -> bool:
        """Send these frames, which are count messages that others have had before."""
        if self._pays and self._rate is not None:
            self._rate.read(len(blob))
        return self._connection.replay(blob, count)

    def report_gap(self, gap: OffsetGap, *, slow: bool = False) -> None:
        """Close a connection that is too slow: a pipe client cannot be told about a gap otherwise."""
        if slow:
            self._connection.close(too_slow(gap.count))

    # What was read and can't be published yet: bounded by what one read brings, for reading stops

    def _hold(self, lines: Sequence[str]) -> None:
        if self._held:
            self._held += lines
            return
        self._held = list(lines)
        self._connection.pause()
        self._hub.publisher.wait(self)
        if self._hub.publisher.away:
            self.bus_away()
        if self._closed:
            self._leave_waiting()

    def _leave_waiting(self) -> None:
        """Keep the messages of a disconnected client until the broker is back, unless too many are kept already."""
        publisher, overhead = self._hub.publisher, self._config.message_overhead_bytes
        size = sum(utf8_size(line) + overhead for line in self._held)
        if not publisher.departed.reserve(self, size) or publisher.waiting > self._config.worker_connections:
            self._out_of_patience()

    def _out_of_patience(self) -> None:
        self._stop_patience()
        self._hub.publisher.stop_waiting(self)
        self._hub.publisher.departed.discard(self)
        held, self._held = self._held, ()
        REFUSED_MESSAGES["bus_away"].value += len(held)
        if self._closed:
            log.warn(
                "dropped {count} messages of a client that left; the broker is unavailable",
                count=len(held),
                event="unpublished_messages_dropped",
            )
        self._connection.close(try_later(self._hub.why_not_published()))

    def _stop_patience(self) -> None:
        if self._patience is not None and self._patience.active():
            self._patience.cancel()
        self._patience = None
