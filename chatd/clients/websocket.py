"""One client's WebSocket on Autobahn's, from the answer to its handshake to the end of its socket.

A thin adapter for bytes, back-pressure and closing; the session decides what the client may do. Autobahn parses the
frames that do not take the fast lane, and bounds that it lacks are added here. Names in camelCase are called by
Autobahn and Twisted.
"""

import contextlib
from typing import NamedTuple

from autobahn.twisted.websocket import WebSocketServerProtocol
from autobahn.util import encode_truncate
from autobahn.websocket.protocol import WebSocketProtocol
from twisted.internet.defer import maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.access.tokens import refused_by
from chatd.clients.deflate import Inflater, take_up
from chatd.clients.json_session import JsonSession
from chatd.clients.lean import LASTING, Quiet
from chatd.clients.pipe_session import Session, answer_to
from chatd.clients.send_buffer import SendBuffer
from chatd.monitoring.metrics import REFUSED, REFUSED_MESSAGES
from chatd.protocol.close_codes import (
    FLOODING,
    NOT_TEXT,
    OUR_FAULT,
    RESTARTING,
    TOO_LARGE,
    CloseCode,
    fault_in_close,
    frame_says,
    too_slow,
)
from chatd.protocol.http_head import Refused, Upgrade, accept
from chatd.protocol.websocket_frames import LONGEST, take_texts
from chatd.runtime.timers import Timer

log = Logger()

LINE_END = 2  # bytes that a message may be over the limit: they are dropped


class _ReadingState(NamedTuple):
    """How far a client has read, by what its kernel reports."""

    acknowledged: int
    waits: bool
    """Whether data is not acknowledged yet."""
    window: int | None

    def has_read_since(self, before: "_ReadingState") -> bool:
        """Return whether the client has read something since."""
        grown = self.acknowledged > before.acknowledged
        return ((before.waits or self.waits) and grown) or (self.window or 0) > (before.window or 0)


class Connection(SendBuffer, WebSocketServerProtocol):
    """One client's connection. The factory sets its options on a subclass."""

    __slots__ = (
        *LASTING,
        "_drop",
        "_empty_fragments",
        "_flooding_since",
        "_heard_at",
        "_owed",
        "_paused",
        "_ping",
        "_queued",
        "_queued_at",
        "_taken",
        "_upgrade",
        "session",
    )

    data: bytes
    failedByMe: bool
    state: int
    message_data: list[bytes]

    longest: int
    """The longest message that is accepted, in bytes."""

    log = Quiet()
    is_open = is_closed = Quiet()  # Autobahn's Deferreds, which are not used
    websocket_version = 13

    def __init__(self, upgrade: Upgrade) -> None:
        """Store the handshake that is to be answered."""
        self.session: Session | JsonSession
        self._upgrade: Upgrade | None = upgrade
        self._paused = False  # not reading, for the session
        self._flooding_since = self._queued_at = 0.0
        self._queued = False  # not reading, for frames that were read are still to be handled
        self._empty_fragments = 0  # of the message that is coming in
        self._owed: bytes | None = None  # a ping that is still to be answered
        self._heard_at = 0.0  # when the last whole frame came
        self._taken = 0  # what its kernel had taken when this looked for life, and there was some
        self._ping: Timer | None = None  # to come, or to be answered
        self._drop: Timer | None = None

    # The handshake

    def connectionMade(self) -> None:
        """Enter the room, before the handshake is answered: a client that reads 101 misses nothing from then on."""
        self._transport_details, self.peer = None, ""  # the transport has them
        with contextlib.suppress(AttributeError, OSError):  # a unix socket has no such delay
            self.transport.setTcpNoDelay(True)
        WebSocketProtocol._connectionMade(self)  # the server's method adds 15 us for an unused log
        self.trafficStats = self.factory.traffic  # not used: one for all
        self.send_queue = ()  # not used: frames are written at once
        self.factory.add(self)
        self.attach()
        joined = maybeDeferred(self.session.join)
        if not joined.called:
            joined.addTimeout(self.factory.config.subscribe_timeout, self.factory.timers)
            self.pause()  # what comes meanwhile would pile up here
        joined.addCallbacks(self._open, self._not_joined).addErrback(self._failed)

    def _open(self, _: object) -> None:
        """Answer the handshake, unless it was refused meanwhile."""
        if self.state != self.STATE_CONNECTING or self._upgrade is None:
            return
        self.resume()
        offers = self._parseExtensionsHeader(self._upgrade.extensions) if self.factory.config.compress else ()
        if extension := take_up(offers):
            self._perMessageCompress = Inflater(self.longest)
            self.session.compress()
        self.write(accept(self._upgrade, extension))
        self._upgrade = None
        self.inside_message, self.current_frame = False, None
        self.websocket_protocol_in_use, self.websocket_extensions_in_use = None, ()
        self.state = self.STATE_OPEN
        if self.factory.close_code is not None:  # all connections are being closed
            self.close(self.factory.close_code)
        else:
            self.open_out()
            self._heard()
            self._ping = self.factory.timers.callLater(self.factory.config.ping_interval, self._look_for_life)
            self.session.opened()
        self.consumeData()

    def _not_joined(self, failure: Failure) -> None:
        if self.state == self.STATE_CONNECTING:  # else it was refused meanwhile
            self._refuse(answer_to(failure, self.session.id, self.session.why_not_joined()))

    def _failed(self, failure: Failure) -> None:
        log.failure(
            "opening the connection of client {client} failed",
            failure,
            client=self.session.id,
            event="connection_open_failed",
        )
        self.close(OUR_FAULT)

    def _refuse(self, refused: Refused) -> None:
        """Answer the handshake with an error."""
        REFUSED[refused.code].value += 1
        self.write(refused.response())
        self.dropConnection(abort=False)
        self.session.closed()  # or the room, confirmed meanwhile, would open what is closed

    # Twisted calls: what comes in

    def dataReceived(self, data: bytes) -> None:
        """Handle the data that was read."""
        self.data += data
        if not self._queued:
            self.consumeData()

    def consumeData(self) -> None:
        """Read frames: whole text messages down the fast lane, anything else as Autobahn does, in their order."""
        self._handle_frames()

    def _handle_frames(self) -> bool:
        """Handle the data that was read, or a slice of it; return whether it had messages, and nothing else that is
        slow.
        """
        config, messages = self.factory.config, False
        steps = config.frame_steps_per_turn
        while self.state in (self.STATE_OPEN, self.STATE_CLOSING):
            if self._between_messages:
                texts, wait = self._take_texts()
                messages = messages or any(texts)
                if wait:
                    return messages
                if len(texts) == config.messages_per_turn:
                    self._wait_for_turn()
                    return messages
            if steps == 0:
                self._wait_for_turn()
                return False
            if not self.processData():
                return False
            steps -= 1
        if self.state == self.STATE_CLOSED:
            self.data = b""  # further data is discarded
        return False

    @property
    def _between_messages(self) -> bool:
        return self.state == self.STATE_OPEN and self.current_frame is None and not self.inside_message

    def _take_texts(self) -> tuple[list[str], bool]:
        """Handle the messages at the start of the buffer; return them, and whether the rest, if any, has to wait."""
        config = self.factory.config
        texts, used, wait = take_texts(self.data, min(LONGEST, self.longest), config.messages_per_turn)
        if used:
            self.data = self.data[used:]
            self._heard()
            self._received(texts)
        return texts, not self.data or (wait and (used > 0 or len(self.data) < config.frame_reparse_bytes))

    def _wait_for_turn(self) -> None:
        """Read no more until the frames that were read are handled: others have their turns before."""
        if not self._queued:
            now = self.factory.reactor.seconds()
            if now - self._queued_at > self.factory.config.frame_flood_reset_time:
                self._flooding_since = now
            self._queued, self._queued_at = True, now
            if not self._paused:
                self.transport.pauseProducing()
            self.factory.turns.wait(self.handle_slice)

    def handle_slice(self) -> bool:
        """Handle some of those frames; whether they were messages."""
        self._queued = False
        messages = self._handle_frames()
        self._look_for_flood(messages=messages)
        if not (self._queued or self._paused or self.state == self.STATE_CLOSED):
            self.transport.resumeProducing()
        return messages

    def _look_for_flood(self, *, messages: bool) -> None:
        """Close the connection of a client that has sent too many frames other than messages for too long."""
        now, longest = self._queued_at, self.factory.config.frame_flood_timeout
        if messages:
            self._flooding_since = now
        elif self._queued and now - self._flooding_since > longest and self.state == self.STATE_OPEN:
            self._fail_connection(FLOODING.code, FLOODING.reason)

    def _received(self, texts: list[str]) -> None:
        try:
            self.session.received(texts)
        except Exception:  # noqa: BLE001 - whatever went wrong, it is ours; Autobahn would drop the socket
            log.failure("handling a message of client {client} failed", client=self.session.id, event="message_failed")
            self.close(OUR_FAULT)

    # Autobahn calls: messages

    def onMessageBegin(self, isBinary: bool) -> None:
        """Start to count a message's empty frames; refuse it where it is of the wrong kind."""
        self._empty_fragments = 0
        super().onMessageBegin(isBinary)
        if isBinary and not self.session.accepts_binary:
            self._fail_connection(NOT_TEXT.code, NOT_TEXT.reason)

    def onMessageFrameBegin(self, length: int) -> None:
        """Bound the empty frames of a message: only the others are bounded by its size."""
        self._empty_fragments += not length
        super().onMessageFrameBegin(length)
        if self._empty_fragments > self.factory.config.empty_fragments_per_message:
            self._fail_connection(TOO_LARGE.code, TOO_LARGE.reason)

    def onMessageEnd(self) -> None:
        """Join the fragments of a message."""
        payload, self.message_data = b"".join(self.message_data), []
        if not self.failedByMe:
            self.onMessage(payload, self.message_is_binary)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Handle a message that did not take the fast lane, unless the connection is closing."""
        if self.state != self.STATE_OPEN:
            return
        if isBinary:
            self.session.received_binary(payload)
        else:
            self._received([payload.decode()])

    def onFrameEnd(self) -> bool | None:
        """Record that the client is alive: a whole frame came."""
        self._heard()
        ended: bool | None = super().onFrameEnd()
        return ended

    def onPing(self, payload: bytes) -> None:
        """Answer; the newest alone, and when it can be written, where the client does not read (RFC 6455, 5.5.3)."""
        if self.buffer_full:
            self._owed = payload
        else:
            super().onPing(payload)

    def resumeProducing(self) -> None:
        """Resume after the client has read everything, and answer its newest ping."""
        owed, self._owed = self._owed, None
        super().resumeProducing()
        if owed is not None:
            super().onPing(owed)

    # Whether the client is alive

    def _heard(self) -> None:
        self._heard_at = self.factory.reactor.seconds()

    def _look_for_life(self) -> None:
        """Ping a client that has been silent."""
        config, now = self.factory.config, self.factory.reactor.seconds()
        silent = now - self._heard_at
        if silent < config.ping_interval:
            self._taken = self.acknowledged
            self._ping = self.factory.timers.callLater(config.ping_interval - silent, self._look_for_life)
        else:
            self._await_pong(now, now, self._reading_state())
            self._send_ping()

    def _send_ping(self) -> None:
        with log.failuresHandled("pinging client {client} failed", client=self.session.id, event="ping_failed"):
            self.sendPing()

    def _reading_state(self) -> _ReadingState:
        return _ReadingState(self.acknowledged, self.unacknowledged > 0, self.window)

    def _await_pong(self, pinged_at: float, since: float, before: _ReadingState) -> None:
        """Check later whether the client has answered a ping; since then it has read nothing."""
        wait = self.factory.config.pong_timeout
        self._ping = self.factory.timers.callLater(wait, self._check_pong, pinged_at, since, before)

    def _check_pong(self, pinged_at: float, since: float, before: _ReadingState) -> None:
        """Drop a client that did not answer, unless it is this side that does not read, or the client still may.

        It may if it reads on: then its kernel acknowledges more of the waiting data, or its window opens. The amount of
        waiting data proves nothing, because history is written after it. Acknowledgements while nothing waits prove
        nothing either, because the kernel sends them even if the client itself has stopped.
        """
        if self._heard_at >= pinged_at:  # not by how long ago: this may run late, by as much as it took to answer
            self._look_for_life()
            return
        now, state = self.factory.reactor.seconds(), self._reading_state()
        if self._paused or self._queued:
            since = now
        elif state.has_read_since(before):
            since = now
            if not state.waits:
                self._send_ping()  # the answer of its kernel has the size of the window
        elif state.window is None or now >= since + self._patience(state) or self._is_vanished():
            self.dropConnection(abort=True)
            return
        self._await_pong(pinged_at, since, state)

    def _patience(self, state: _ReadingState) -> float:
        """Return for how many seconds a client may read without a sign of it.

        A kernel with a full buffer reports late that there is room again: when much of it is read, or when it is
        probed, which happens ever more rarely (RFC 9293, sections 3.8.6.1 and 3.8.6.2.2). If nothing waits, all that
        the client has not read is in that buffer.
        """
        config = self.factory.config
        longest: float = config.stalled_client_timeout
        return (
            longest
            if state.waits
            else min(longest, (state.acknowledged - self._taken) / config.stalled_client_byte_rate)
        )

    def _is_vanished(self) -> bool:
        config = self.factory.config
        return self.is_unheard(config.pong_timeout, config.tcp_keepalive_probes)

    # Autobahn calls: what goes out

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        """Write a frame of Autobahn's."""
        self.write(data)

    # Autobahn calls: the end

    def sendCloseFrame(self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False) -> None:
        """Send a Close frame, ours or Autobahn's own, and read on: for the answer."""
        if self.failedByMe or not isReply:
            farewell = self.session.farewell(frame_says(code, reasonUtf8))
            if farewell and self.opened:
                self.write(farewell)  # however much waits: it is the last
        self._shut()
        self.resume()
        super().sendCloseFrame(code, reasonUtf8, isReply)

    def onCloseFrame(self, code: int | None, reasonRaw: bytes | None) -> None:
        """Answer a Close frame with its code, unless it is the answer to ours; then close the socket (5.5.1, 7.1.1)."""
        if fault := fault_in_close(code, reasonRaw):
            self._fail_connection(fault.code, fault.reason)
        else:
            self.sendCloseFrame(code, isReply=True)
            self.dropConnection(abort=False)

    def _fail_connection(self, code: int, reason: str) -> None:
        """Fail the connection (RFC 6455, section 7.1.7): send the reason, read nothing more, close the socket."""
        if self.state != self.STATE_CLOSED:
            if code == TOO_LARGE.code:
                REFUSED_MESSAGES["too_large"].value += 1
            self.failedByMe = True
            self.sendCloseFrame(code, encode_truncate(reason, 123), isReply=True)  # no answer will be read
            self.dropConnection(abort=False)

    def _closeConnection(self, abort: bool = False) -> None:
        """Close the socket: our half once all is written, and the other when the client has closed it, in time."""
        self._shut()
        if abort:
            self.transport.abortConnection()
            return
        self.resume()
        self._drop = self.hang_up(self.factory.timers, self.factory.config.close_timeout)

    def _shut(self) -> None:
        """Stop delivering, and record how far the client has come."""
        self.session.record_positions()
        self.shut_out()

    def unregisterProducer(self) -> None:
        """Record what has arrived: Autobahn disconnects, and the transport does not report the end."""
        self.stopProducing()
        super().unregisterProducer()

    def stopProducing(self) -> None:
        """Record what has arrived: the socket is about to be closed."""
        self._shut()
        self.session.record_arrival()

    def connectionLost(self, reason: Failure) -> None:
        """Leave the rooms: the socket is gone."""
        while self._queued and self._between_messages and self._take_texts()[0]:
            pass  # what was read is taken
        self.shut_out()
        for timer in (self._ping, self._drop, self.closeHandshakeTimeoutCall):
            if timer is not None:
                timer.cancel()
        self.factory.remove(self)
        with log.failuresHandled(
            "removing client {client} from its rooms failed", client=self.session.id, event="leave_failed"
        ):
            self.session.closed()
        WebSocketProtocol._connectionLost(self, reason)
        self.factory.connection_gone()

    # The session and the hub call

    def became_slow(self) -> None:
        """Serve the client from history until it has caught up."""
        self.factory.slow.add(clients=1)
        self.session.became_slow()

    def stopped_reading(self) -> None:
        """Close the connection of a client that does not read its answers."""
        self.close(too_slow(None))

    def drained(self) -> None:
        """Continue from history."""
        self.session.drained()

    def pause(self) -> None:
        """Read no more for now."""
        if not self._paused:
            self._paused = True
            if not self._queued:
                self.transport.pauseProducing()

    def resume(self) -> None:
        """Read again."""
        if self._paused:
            self._paused = False
            if not self._queued:
                self.transport.resumeProducing()

    def close(self, close_code: CloseCode) -> None:
        """Send a Close frame; the socket follows when the client answers it, or after ``close_timeout``."""
        if self.state == self.STATE_OPEN:
            self.sendCloseFrame(code=close_code.code, reasonUtf8=close_code.reason.encode(), isReply=False)
        elif self.state == self.STATE_CONNECTING and close_code != RESTARTING:  # else it is closed once it is open
            self._refuse(refused_by(close_code))
