"""The check of ``chatd verify``: every message of the histories is in the chat logs, once, with the same text.

``Ledger`` compares, ``LogFiles`` reads the logs, ``read_histories`` reads the broker. A message is logged before it is
published, so the histories are read first. Log files may be rotated and compressed meanwhile: all are opened before any
is read, as one listing of the folders shows them.
"""

import bz2
import gzip
import io
import lzma
import os
import time as clock
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.endpoints import connectProtocol

from chatd.broker.connection import ConnectionUnusable, LinkLost, PublishConnection, broker_endpoint
from chatd.broker.credentials import password_of
from chatd.broker.sentinel import Sentinels
from chatd.chatlog.line import LogLine, escape, read_line
from chatd.config.broker_url import BrokerAddress
from chatd.config.settings import Config
from chatd.protocol.message import Batch, decode

_UNPACK: dict[str, Callable[[Any], Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_NOT_UNPACKED = {".zst": "zstdcat", ".lz4": "lz4cat", ".Z": "zcat"}


class Unreadable(Exception):
    """Histories or logs cannot be read; the text is one line for the user."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A difference between the histories and the logs, and its message."""

    kind: str
    """``missing`` in the logs, ``double``, ``differs`` (the text), ``denied`` (not published, by the log), or
    ``unreadable`` (no batch)."""
    room: str
    epoch: str
    place: str
    """The offset, or the id of the entry in the history."""
    id: str = ""
    why: str = ""

    def __str__(self) -> str:
        """Return one line that is safe for a terminal."""
        about = f"{self.kind}: room {self.room}, epoch {self.epoch}, offset {self.place}"
        return escape(about + (f", id {self.id}" if self.id else "") + (f": {self.why}" if self.why else ""))


@dataclass(slots=True)
class _Held:
    """A message of a history, and its lines in the logs."""

    epoch: str
    offset: int
    digest: bytes
    lines: int = 0
    differs: bool = False
    denied: str = ""


class Ledger:
    """The messages of all histories, compared with the lines of the logs.

    Add all histories first, then all lines. A message is known by its room and id. The ledger keeps a digest of each
    message of the histories, and nothing of other lines.
    """

    def __init__(self) -> None:
        self._rooms: dict[str, dict[str, _Held]] = {}
        self._at_once: list[Fault] = []

    @property
    def rooms(self) -> int:
        """Return the number of rooms that have a history."""
        return len(self._rooms)

    @property
    def messages(self) -> int:
        """Return the number of messages in the histories."""
        return sum(map(len, self._rooms.values()))

    def add_batch(self, batch: Batch) -> None:
        """Add a batch of a history; those of one epoch of a room together."""
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
            held.epoch, held.offset = batch.epoch, offset  # published again in a new epoch

    def add_unreadable(self, room: str, epoch: str, entry: str, why: str) -> None:
        """Add an entry of a history that is no batch."""
        self._at_once.append(Fault("unreadable", room, epoch, entry, why=why))

    def add_line(self, line: LogLine) -> None:
        """Add a line of a log."""
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
        """Yield the faults, once everything is added."""
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


# Logs


class LogFiles:
    """The logs to read: files, and all ``chat.log*`` in folders."""

    def __init__(self, paths: Sequence[str], config: Config) -> None:
        self._paths = [Path(path) for path in paths]
        self._config = config
        self.files = 0
        self.lines = 0
        self.strange = 0
        """The number of lines that are no lines of a chat log."""

    def read(self) -> Iterator[LogLine]:
        """Yield and count all lines, without an incomplete one at the end. Raise Unreadable."""
        with ExitStack() as stack:
            for path, file in self._open(stack):
                self.files += 1
                lines, strange = self.lines, self.strange
                try:
                    yield from self._read(_unpacked(path, file))
                except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                    raise Unreadable(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from error
                if 1 < self.lines - lines == self.strange - strange:  # one may be torn by a full disk
                    raise Unreadable(f"{path} is no chat log: none of its {self.lines - lines} lines is a message")

    def _open(self, stack: ExitStack) -> list[tuple[Path, IO[bytes]]]:
        """Open all files when none is being renamed."""
        give_up = clock.monotonic() + self._config.verify_rename_timeout
        while True:
            with ExitStack() as attempt:
                try:
                    files = [(path, attempt.enter_context(path.open("rb"))) for path in self._find()]
                    opened = {_identity(os.fstat(file.fileno())): (path, file) for path, file in files}
                    if opened.keys() == {_identity(path.stat()) for path in self._find()}:
                        stack.push(attempt.pop_all())
                        return list(opened.values())
                except OSError as error:
                    gone = isinstance(error, FileNotFoundError)
                    if not gone or clock.monotonic() > give_up:
                        raise Unreadable(f"{error.filename} can't be read: {error.strerror}") from error
            if clock.monotonic() > give_up:
                raise Unreadable("the logs are renamed again and again")
            clock.sleep(0.01)

    def _find(self) -> Iterator[Path]:
        for path in self._paths:
            if path.is_dir():
                found = sorted(file for file in path.glob("chat.log*") if file.is_file())
                if not found:
                    raise Unreadable(f"there is no chat.log in {path}")
                # A file next to its packed form is being packed.
                yield from (file for file in found if file.suffix not in _UNPACK or file.with_suffix("") not in found)
            elif path.exists():
                yield path
            else:
                raise Unreadable(f"there is no {path}")

    def _read(self, file: IO[bytes]) -> Iterator[LogLine]:
        most = self._config.verify_line_bytes
        whole = True
        while piece := file.readline(most):
            ends = piece.endswith(b"\n")
            if not ends and len(piece) < most:
                return
            line = read_line(piece[:-1]) if ends and whole else None
            whole = ends
            if not ends:  # longer than any line of a chat log
                continue
            self.lines += 1
            if line is None:
                self.strange += 1
            else:
                yield line


def _unpacked(path: Path, file: IO[bytes]) -> IO[bytes]:
    if tool := _NOT_UNPACKED.get(path.suffix):
        raise Unreadable(f"{path} can't be unpacked here; unpack it, or pass <({tool} {path})")
    unpack = _UNPACK.get(path.suffix)
    return io.BufferedReader(unpack(file)) if unpack else file


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


# Histories

_Ask = Callable[..., "Deferred[Any]"]


async def read_histories(reactor: Any, address: BrokerAddress, config: Config, ledger: Ledger) -> None:
    """Add all histories under ``config.redis_prefix`` to the ledger. Raise Unreadable."""
    try:
        endpoint = (Sentinels if address.sentinels else broker_endpoint)(reactor, address, config)
        protocol: Any = await connectProtocol(endpoint, PublishConnection(charset=None, convertNumbers=False))

        def ask(*command: str | bytes | int) -> "Deferred[Any]":
            answer: Deferred[Any] = protocol.execute_command(*command)
            return answer.addTimeout(config.redis_connect_timeout, reactor)

        try:
            if (password := password_of(address, config)) is not None:
                await ask("AUTH", *([address.user] if address.user else []), password)
            if address.database:
                await ask("SELECT", address.database)
            async for key in _keys(ask, config):
                await _read_history(ask, key, config, ledger)
        except LinkLost as error:
            raise ConnectionUnusable(protocol.lost or "it hung up") from error
        finally:
            protocol.transport.abortConnection()
    except Exception as error:
        why = f"no answer within {config.redis_connect_timeout:g} s" if isinstance(error, TimeoutError) else error
        raise Unreadable(f"the broker {address} can't be read: {why}") from error


async def _keys(ask: _Ask, config: Config) -> AsyncIterator[bytes]:
    """Yield the key of each history once; a scan may return one several times."""
    seen: set[bytes] = set()
    cursor = b"0"
    while True:
        pattern = f"{config.redis_prefix}:history:*"
        cursor, keys = await ask(
            "SCAN", cursor, "MATCH", pattern, "COUNT", config.verify_keys_per_scan, "TYPE", "stream"
        )
        new = set(keys) - seen
        seen |= new
        for key in new:
            yield key
        if cursor == b"0":
            return


async def _read_history(ask: _Ask, key: bytes, config: Config, ledger: Ledger) -> None:
    name = key.decode("utf-8", "backslashreplace").removeprefix(f"{config.redis_prefix}:history:")
    epoch, _, room = name.partition(":")
    after = b"-"
    while entries := await ask("XRANGE", key, after, "+", "COUNT", config.verify_batches_per_read):
        for id, fields in entries:
            try:
                batch = decode(room, fields[fields.index(b"b") + 1])
                if batch.epoch != epoch:
                    raise ValueError(f"it is of epoch {batch.epoch}")
            except ValueError as error:
                ledger.add_unreadable(room, epoch, id.decode(), str(error))
            else:
                ledger.add_batch(batch)
        after = b"(" + entries[-1][0]
