"""A session: what one client may do and what it hears. It knows no sockets.

A bare client's contract is a pipe's: what it says goes to the others unchanged, and nothing but their messages
comes back. So the only way to tell it something is to stop reading it for a while, or to close with a reason.
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
    log.failure("{session} could not join", failure, session=id)
    return internal(OUR_FAULT.reason)


class ClientConnection(Protocol):
    """What a session asks of the connection that carries it."""

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
        """Hang up, and say why."""


class Session(Acknowledging):
    """One bare client in one room."""

    protocol = "pipe"
    """The label of the client in ``chatd_clients``."""
    accepts_binary = False
    """Whether binary messages may come; where not, the connection closes at the first frame of one."""
    listens = False
    """Whether it is told who comes and goes, and has a nick of its own."""
    begins = False
    """Whether it is told in one piece what it gets from history at first."""
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
        "author",
        "deliver",
        "format",
        "id",
        "nick",
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
        """Take what it stands on, who it is (id is unique for ever), where it goes and comes from, what it may do.

        Pace limits how fast it may publish and read; None: no limit.
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
        self._receipts = Receipts(connection.progress, config.marks) if target.resume else None
        self.id = id
        self.author = id
        self.address = address
        self.token_lifetime = token_lifetime
        self.nick = token_lifetime.permissions.nick or target.nick
        self.wanted = self.nick
        """The nick that it asked for, or that of its token."""
        self.format = self.usual_format
        self.deliver = connection.deliver  # the hub's loop calls it for each client and batch

    @property
    def echo(self) -> bool:
        """Whether it hears its own messages."""
        return self._target.echo

    @property
    def subject(self) -> str:
        """Who its token says it is; empty where it has none."""
        return self.token_lifetime.permissions.subject

    @property
    def identity(self) -> Identity:
        """What it wants to be called, and with which right."""
        return self.token_lifetime.identify(self.wanted, self.address)

    @property
    def key(self) -> str:
        """Its resume key; empty where it has none."""
        return self._target.resume

    @property
    def lingers(self) -> bool:
        """Whether it may come back unnoticed."""
        return bool(self.key)

    @property
    def last(self) -> int:
        """How many messages it wants to hear that were said before."""
        return self._target.last

    @property
    def since(self) -> StreamPosition | None:
        """Nothing: a bare client knows no positions."""
        return None

    @property
    def buffer_full(self) -> bool:
        """Whether it has enough to read for now."""
        return self._connection.buffer_full

    # The connection calls

    def join(self) -> "Deferred[None]":
        """Enter the room; fires once the session hears it, in time or never."""
        return self._hub.join(self._target.room, self)

    def why_not_joined(self) -> CloseCode:
        """Return the reason why it did not hear the room in time."""
        return self._hub.why_not_joined()

    def received(self, texts: Sequence[str]) -> None:
        """Take the text messages of one read, in their order."""
        lines = [line for text in texts if (line := read_line(text))]
        most = self._config.max_message
        for index, line in enumerate(lines):
            if len(line) * 4 > most and utf8_size(line) > most:
                self._take(lines[:index])
                REFUSED_MESSAGES["too_large"].value += 1
                self._connection.close(TOO_LARGE)
                return
        self._take(lines)

    def received_binary(self, payload: bytes) -> None:
        """Hang up. The connection has done so at the first frame: this is for sessions that take such messages."""
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
        """Publish what may be said by now; hold the rest, and read no more, until it may be."""
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
        """Let what is held be said though the client is gone, unless too much is left behind already."""
        if not rate.slowed.leave(self, sum(map(utf8_size, self._held))):
            self._give_up_held()

    def _give_up_held(self) -> None:
        held, self._held = self._held, ()
        REFUSED_MESSAGES["rate_limited"].value += len(held)
        log.warn("{count} messages of a client that left came too fast, and were not taken", count=len(held))

    def _go_on(self) -> None:
        """Say what was held, as far as it may be said now; read on once there is nothing left of it."""
        held, self._held = self._held, ()
        self._take(held)
        if not self._held and not self._closed:
            self._connection.resume()

    def hurry(self) -> None:
        """Say at once what was held back for coming too fast: there is no time any more."""
        if self._slowed is not None:
            self._slowed.cancel()
            if self._rate is not None:
                self._rate.slowed.discard(self)
                self._rate = None
            with log.failuresHandled("messages of {client} that came too fast were not published", client=self.id):
                self._not_slowed()  # the others that are slowed hurry too

    def _publish(self, lines: Sequence[str]) -> None:
        self._hub.publisher.publish(self._target.room, self, lines)

    def _not_allowed(self, lines: Sequence[str]) -> None:
        """Hang up: there is no other way to tell a bare client that it may only listen."""
        REFUSED_MESSAGES["forbidden"].value += len(lines)
        self._connection.close(READ_ONLY)

    def compress(self) -> None:
        """Let what is sent be compressed."""
        self.format = self.format.deflated

    def opened(self) -> None:
        """Learn that the handshake was answered."""
        self.token_lifetime.begin(self.token_ends, lambda: self._connection.close(TOKEN_OUT))

    def token_ends(self, seconds: float) -> None:
        """Say nothing: a bare client gets messages and nothing else."""

    def farewell(self, close_code: CloseCode) -> bytes:
        """Give the frames that go out before the connection closes for this reason."""
        return b""

    def became_slow(self) -> None:
        """Let history give it what it can't take now; it did not ask for that, so it is not charged."""
        self._pays = False
        self._hub.fall_behind(self._target.room, self)

    def drained(self) -> None:
        """Go on with that, where it is behind."""
        self._hub.drained(self._target.room, self)

    def record_positions(self) -> None:
        """Note, before the connection closes, up to where it was given everything."""
        if self._receipts is not None:
            self._hub.note(self._target.room, self)
            self.seal()

    def record_arrival(self) -> None:
        """See, while the socket is still there, what has arrived."""
        self.close()

    def closed(self) -> None:
        """Leave the room: the connection is lost. What is held back is published if the bus comes back in time."""
        self._closed = True
        self.token_lifetime.stop()
        self._hub.leave(self._target.room, self)
        if self._slowed is not None and self._rate is not None:
            self._leave_behind(self._rate)
        elif self._held:
            self._leave_waiting()

    # The hub calls

    def carry_on(self) -> None:
        """Publish what was held back, read on."""
        self._stop_patience()
        if self._closed:
            self._hub.publisher.left.discard(self)
        self._go_on()

    def bus_away(self) -> None:
        """Wait for the bus, but not for ever."""
        if self._patience is None:
            self._patience = self._timer.callLater(self._config.bus_patience, self._out_of_patience)

    def refused(self, close_code: CloseCode) -> None:
        """Hang up."""
        self._connection.close(close_code)

    def not_sent(self, close_code: CloseCode) -> None:
        """Hang up: there is no other way to tell a bare client that its message was not taken."""
        self._connection.close(close_code)

    def renamed(self, nick: str) -> None:
        """Learn that it has another nick; one without has none to lose."""

    def began(
        self, top: StreamPosition, gaps: Sequence[OffsetGap], batches: Sequence[Batch], *, more: bool = False
    ) -> None:
        """Never: what history has for it comes as any message does."""

    def missed_changes(self) -> None:
        """Learn that it was not told of all who came and went."""

    def replay(self, blob: bytes, count: int) -> bool:
        """Send these frames, which are count messages that others have had before."""
        if self._pays and self._rate is not None:
            self._rate.read(len(blob))
        return self._connection.replay(blob, count)

    def lost(self, gap: OffsetGap) -> None:
        """Say nothing: a bare client gets messages and nothing else."""

    def too_slow(self, gap: OffsetGap) -> None:
        """Hang up: without history there is no other way to tell a bare client that it missed something."""
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
        """Let what is held wait for the bus though the client is gone, unless too much of that waits already."""
        publisher, overhead = self._hub.publisher, self._config.message_overhead_bytes
        size = sum(utf8_size(line) + overhead for line in self._held)
        if not publisher.left.leave(self, size) or publisher.waiting > self._config.worker_connections:
            self._out_of_patience()

    def _out_of_patience(self) -> None:
        self._stop_patience()
        self._hub.publisher.stop_waiting(self)
        self._hub.publisher.left.discard(self)
        held, self._held = self._held, ()
        REFUSED_MESSAGES["bus_away"].value += len(held)
        if self._closed:
            log.warn("{count} messages of a client that left were not taken: the bus is away", count=len(held))
        self._connection.close(try_later(self._hub.why_not_published()))

    def _stop_patience(self) -> None:
        if self._patience is not None and self._patience.active():
            self._patience.cancel()
        self._patience = None
