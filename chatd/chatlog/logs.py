"""Chat logs as they lie about: in folders, rotated and compressed, while chatd writes and logrotate renames.

All files are opened before any is read, as one listing of the folders has them, so that none is missed or read
twice because it was renamed meanwhile.
"""

import bz2
import gzip
import io
import lzma
import os
import time as clock
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from chatd.chatlog.line import LogLine, read_line
from chatd.chatlog.unreadable import Unreadable
from chatd.config.settings import Config

_UNPACK: dict[str, Callable[[Any], Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_NOT_UNPACKED = {".zst": "zstdcat", ".lz4": "lz4cat", ".Z": "zcat"}


class LogFiles:
    """The logs to read: files, and folders in which every ``chat.log*`` is one."""

    def __init__(self, paths: Sequence[str], config: Config) -> None:
        self._paths = [Path(path) for path in paths]
        self._config = config
        self.files = 0
        self.lines = 0
        self.strange = 0
        """Lines that are no lines of a chat log."""

    def read(self) -> Iterator[LogLine]:
        """Give all lines and count them; half a line at the end, a writer at work, is none. Raises Unreadable."""
        with ExitStack() as stack:
            for path, file in self._open(stack):
                self.files += 1
                lines, strange = self.lines, self.strange
                try:
                    yield from self._read(_unpacked(path, file))
                except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                    raise Unreadable(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from error
                if 1 < self.lines - lines == self.strange - strange:  # one may be what a full disk has torn
                    raise Unreadable(f"{path} is no chat log: none of its {self.lines - lines} lines is a message")

    def _open(self, stack: ExitStack) -> list[tuple[Path, IO[bytes]]]:
        """Open all files, once no one renames them."""
        give_up = clock.monotonic() + self._config.rotation_seconds
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
                found = sorted(each for each in path.glob("chat.log*") if each.is_file())
                if not found:
                    raise Unreadable(f"there is no chat.log in {path}")
                # What is beside its packed form is being packed.
                yield from (each for each in found if each.suffix not in _UNPACK or each.with_suffix("") not in found)
            elif path.exists():
                yield path
            else:
                raise Unreadable(f"there is no {path}")

    def _read(self, file: IO[bytes]) -> Iterator[LogLine]:
        most = self._config.log_line_bytes
        whole = True
        while piece := file.readline(most):
            ends = piece.endswith(b"\n")
            if not ends and len(piece) < most:
                return
            line = read_line(piece[:-1]) if ends and whole else None
            whole = ends
            if not ends:  # what is longer than any line of ours is no line, and ends somewhere
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
