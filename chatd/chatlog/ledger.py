"""What the histories hold, what the logs say of it, and where the two differ.

A message is known by its room and id. Give the ledger all histories first, then all lines: a message is logged
before it is published, so what is in a history by then is in a log that is read later. It keeps a digest of each
message of the histories, nothing of other lines, and knows neither broker nor files.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

from chatd.chatlog.line import LogLine, escape
from chatd.protocol.message import Batch


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that should not be, and the message that it is about."""

    kind: str
    """``missing`` in the logs, ``double``, a text that ``differs``, or one the log says was not published: ``denied``;
    ``unreadable``: what is in a history and is no batch."""
    room: str
    epoch: str
    place: str
    """Its offset, or what stands for it."""
    id: str = ""
    why: str = ""

    def __str__(self) -> str:
        """Write it in one line that no terminal trips over."""
        about = f"{self.kind}: room {self.room}, epoch {self.epoch}, offset {self.place}"
        return escape(about + (f", id {self.id}" if self.id else "") + (f": {self.why}" if self.why else ""))


@dataclass(slots=True)
class _Held:
    """A message of a history, and what was found of it in the logs."""

    epoch: str
    offset: int
    digest: bytes
    lines: int = 0
    differs: bool = False
    denied: str = ""


class Ledger:
    """All messages of all histories against all lines of the logs."""

    def __init__(self) -> None:
        self._rooms: dict[str, dict[str, _Held]] = {}
        self._at_once: list[Fault] = []

    @property
    def rooms(self) -> int:
        """How many rooms have a history."""
        return len(self._rooms)

    @property
    def messages(self) -> int:
        """How many messages the histories have."""
        return sum(map(len, self._rooms.values()))

    def add_batch(self, batch: Batch) -> None:
        """Take a batch of a history; all of a room's epoch, then those of another."""
        room = self._rooms.setdefault(batch.room, {})
        for offset, message in enumerate(batch.messages, batch.first):
            digest = _digest(message.text)
            held = room.setdefault(message.id, _Held(batch.epoch, offset, digest))
            if held.digest != digest:
                self._at_once.append(
                    Fault("differs", batch.room, batch.epoch, str(offset), message.id, "two histories differ")
                )
            if (held.epoch, held.offset) == (batch.epoch, offset):
                continue
            if held.epoch == batch.epoch:
                why = f"also at offset {held.offset}"
                self._at_once.append(Fault("double", batch.room, batch.epoch, str(offset), message.id, why))
            held.epoch, held.offset = batch.epoch, offset  # published once more, to a broker that had begun anew

    def add_unreadable(self, room: str, epoch: str, entry: str, why: str) -> None:
        """Take what is in a history and is no batch."""
        self._at_once.append(Fault("unreadable", room, epoch, entry, why=why))

    def add_line(self, line: LogLine) -> None:
        """Take a line of a log."""
        held = self._rooms.get(line.room, {}).get(line.id)
        if held is None:  # older than history, or not published
            return
        if line.is_outcome:
            if line.text != "unknown":
                held.denied = line.text
            return
        held.lines += 1
        held.differs = held.differs or _digest(line.text) != held.digest

    def faults(self) -> Iterator[Fault]:
        """Say what is wrong, once everything was taken."""
        yield from self._at_once
        for room, messages in self._rooms.items():
            for id, held in messages.items():
                for kind, why in _faults(held):
                    yield Fault(kind, room, held.epoch, str(held.offset), id, why)


def _faults(held: _Held) -> Iterator[tuple[str, str]]:
    if held.lines == 0:
        yield "missing", ""
    if held.lines > 1:
        yield "double", f"{held.lines} lines in the logs"
    if held.differs:
        yield "differs", "the log has another text"
    if held.denied:
        yield "denied", f"the log says {held.denied}"


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
