"""Files that are read again when they change; where what stands there then is no good, what was read before stays."""

import os
from collections.abc import Callable, Sequence

from twisted.logger import Logger

from chatd.config import BadValue

log = Logger()

_Seen = tuple[tuple[int, ...] | None, ...]


class Watched:
    """Some files that are read together."""

    def __init__(self, paths: Sequence[str], read: Callable[[], object]) -> None:
        """Take the paths, and what reads all of them and uses what it finds. BadValue: it can use none."""
        self._paths = paths
        self._read = read
        self._seen = self._look()

    def read(self) -> None:
        """Read them now; what is wrong is logged."""
        trouble = f"reading {', '.join(self._paths)}"
        try:
            self._read()
        except BadValue as error:
            log.warn("{why}; what was read before stays in force", why=str(error), trouble=trouble)
        else:
            log.info("{paths}: read", paths=", ".join(self._paths), trouble=trouble, over=True)

    def check(self) -> None:
        """Read them again if one of them has changed, was replaced, or is there again."""
        seen = self._look()
        if seen != self._seen:
            self._seen = seen
            self.read()

    def _look(self) -> _Seen:
        return tuple(map(_state, self._paths))


def _state(path: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size
