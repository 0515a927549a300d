"""The session of a client with a nick at a terminal: commands, and lines of the server, which start with ``* ``."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.access.token_bucket import ClientRate
from chatd.broker.presence_list import MemberList
from chatd.broker.publish_queue import NotPublished
from chatd.clients.pipe_session import Session
from chatd.monitoring.metrics import REFUSED, REFUSED_MESSAGES
from chatd.protocol import text
from chatd.protocol.close_codes import FLOODING, LEAVING, READ_ONLY, CloseCode
from chatd.protocol.message import HistoryPage, OffsetGap
from chatd.protocol.text import NAMED, Answer, Ask, Command, Last, Rename, Say, read_command, utf8_size
from chatd.protocol.websocket_frames import text_frame

log = Logger()

T = TypeVar("T")

FULL = "too many at once"
NICK_FIXED = "your nick is that of your token"


class TextSession(Session):
    """One named client in one room."""

    protocol = "text"
    receives_presence = True
    usual_format = NAMED

    __slots__ = ("_questions",)

    def __init__(self, *args: Any, **options: Any) -> None:
        """Store what a Session stores."""
        super().__init__(*args, **options)
        self._questions = 0  # that have no answer yet

    # The connection calls

    def opened(self) -> None:
        """Send the nick, if it is not the requested one."""
        if self.nick != self._target.nick:
            self._send_nick(self.token_lifetime.permissions.nick or self._target.nick, self.nick)
        super().opened()

    def token_ends(self, seconds: float) -> None:
        """Send when the token ends."""
        self._send_lines(text.token_ends(seconds))

    def farewell(self, close_code: CloseCode) -> bytes:
        """Return the last line: why the connection closes, which websocat does not show."""
        return text_frame(text.closing_notice(close_code.reason).encode())

    # What it types

    def _publish_in_time(self, lines: Sequence[str], rate: ClientRate) -> None:
        """Publish what the rate allows now; refuse the rest with a notice."""
        fit: list[str] = []
        for line in lines:
            if not isinstance(read_command(line), Say) or not (wait := rate.take(utf8_size(line))):
                fit.append(line)
                continue
            self._publish(fit)
            fit = []
            REFUSED_MESSAGES["rate_limited"].value += 1
            if not self._warn(rate, wait):
                return
        self._publish(fit)

    def _warn(self, rate: ClientRate, wait: float) -> bool:
        """Send the notice of exceeding the rate; close the connection and return False after too many."""
        if rate.refused > self._config.refused_messages_before_close:
            self._connection.close(FLOODING)
            return False
        self._send_lines(text.not_sent("too fast", wait))
        return True

    def _publish(self, lines: Sequence[str]) -> None:
        texts: list[str] = []
        for line in lines:
            command = read_command(line)
            if isinstance(command, Say) and not command.action:
                texts.append(command.text)
                continue
            self._publish_texts(texts)
            texts = []
            if isinstance(command, Say):
                self._publish_texts([command.text], action=True)
            elif not self._closed:
                self._obey(command)
            if command is Ask.QUIT:
                return
        self._publish_texts(texts)

    def _publish_texts(self, texts: Sequence[str], *, action: bool = False) -> None:
        if texts:
            self._hub.publisher.publish(self._target.room, self, texts, action=action)

    def _hold(self, lines: Sequence[str]) -> None:
        if not self._hub.publisher.away:
            super()._hold(lines)
            return
        self._turn_down(lines, "bus_away", text.not_sent(self._hub.why_not_published(), self._config.retry_after))

    def _not_allowed(self, lines: Sequence[str]) -> None:
        self._turn_down(lines, "forbidden", text.not_sent(READ_ONLY.reason))

    def _turn_down(self, lines: Sequence[str], reason: str, notice: str) -> None:
        """Refuse messages with a notice; execute commands."""
        for command in map(read_command, lines):
            if isinstance(command, Say):
                REFUSED_MESSAGES[reason].value += 1
                self._send_lines(notice)
            else:
                self._obey(command)
            if command is Ask.QUIT:
                return

    def _obey(self, command: Command) -> None:
        match command:
            case Answer(lines):
                self._send_lines(*lines)
            case Ask.QUIT:
                self._connection.close(LEAVING)
            case Ask.WHO:
                self._read(lambda: self._hub.bus.presence.members(self._target.room), self._send_members)
            case Ask.PING:
                self._read(self._hub.round_trip, lambda seconds: self._send_lines(text.pong(seconds)))
            case Last(count):
                self._read(
                    lambda: self._hub.read_last(self._target.room, count).addCallback(self._was_read),
                    partial(self._send_history, count),
                )
            case Rename() if self.token_lifetime.permissions.nick:
                self._send_lines(text.notice(NICK_FIXED))
            case Rename(nick):
                self._rename(nick)

    def _rename(self, nick: str) -> None:
        """Change the nick; this costs a message."""
        if self._rate is not None and (wait := self._rate.take(0)):
            REFUSED_MESSAGES["rate_limited"].value += 1
            self._warn(self._rate, wait)
            return
        identity = self.token_lifetime.identify(nick, self.address)
        self._ask(lambda: self._hub.rename(self._target.room, self, identity), lambda has: self._send_nick(nick, has))

    def _read(self, question: "Callable[[], Deferred[T]]", send_answer: Callable[[T], None]) -> None:
        """Ask the bus if the address of the client may make one more request."""
        if self._rate is not None and (wait := self._rate.ask()):
            REFUSED["rate_limited"].value += 1
            self._warn(self._rate, wait)
        else:
            self._ask(question, send_answer)

    def _ask(self, question: "Callable[[], Deferred[T]]", send_answer: Callable[[T], None]) -> None:
        """Ask the broker and send the answer when it comes; only a few questions may be open."""
        if self._questions >= self._config.pending_queries_per_client:
            self._send_lines(text.not_sent(FULL))
            return
        self._questions += 1

        def answered(answer: T) -> None:
            self._questions -= 1
            if not self._closed:
                send_answer(answer)

        def failed(failure: Failure) -> None:
            reason = self._hub.why_not_published()
            if not failure.check(NotPublished):
                reason = "an error of ours"
                log.failure(
                    "answering a request of client {client} failed", failure, client=self.id, event="request_failed"
                )
            self._send_lines(text.notice(f"no answer: {reason}"))

        def not_answered(failure: Failure) -> None:
            self._questions -= 1
            failed(failure)

        question().addCallbacks(answered, not_answered).addErrback(failed)

    def _send_members(self, members: MemberList) -> None:
        if members.present is None:
            self._send_lines(text.counted(members.count))
        else:
            nicks = [member.nick for member in members.present if member.nick]
            self._send_lines(text.who(nicks, len(members.present) - len(nicks)))

    def _was_read(self, stretch: HistoryPage) -> HistoryPage:
        """Charge the address for what was read, whether or not the client is still there."""
        if self._rate is not None:
            self._rate.read(stretch.size)
        return stretch

    def _send_history(self, count: int, stretch: HistoryPage) -> None:
        if stretch.more and stretch.count < count:
            self._send_lines(text.cut(stretch.count))
        self._connection.send(b"".join(self.format.frames(stretch.batches)))

    def _send_nick(self, wanted: str, has: str) -> None:
        self._send_lines(text.you_are(has) if has == wanted else text.taken(wanted, has))

    # The hub calls

    def bus_away(self) -> None:
        """Refuse what was kept; messages of a client that disconnected wait for the broker."""
        if self._closed:
            super().bus_away()
            return
        self._hub.publisher.stop_waiting(self)
        held, self._held = self._held, ()
        self._hold(held)
        self._connection.resume()

    def publish_refused(self, close_code: CloseCode) -> None:
        """Send a notice, and stay open."""
        self._send_lines(text.not_sent(close_code.reason.removeprefix("not sent: ")))

    def report_gap(self, gap: OffsetGap, *, slow: bool = False) -> None:
        """Send the size of the gap."""
        self._send_lines(text.missed(gap.count) if slow and gap.count is not None else text.lost(gap.count))

    def renamed(self, nick: str) -> None:
        """Send the new nick."""
        self._send_lines(text.you_are(nick))

    def _send_lines(self, *lines: str) -> None:
        self._connection.send(b"".join([text_frame(line.encode()) for line in lines]))
