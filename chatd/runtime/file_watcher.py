"""Files that are read again when they change; where what stands there then is no good, what was read before stays.

A change is read once it is over: half of a list is another list.
"""

import os
from collections.abc import Callable, Sequence

from twisted.logger import Logger

from chatd.config.values import BadValue

log = Logger()

_Seen = tuple[tuple[int, ...] | None, ...]


class WatchedFiles:
    """Some files that are read together."""

    def __init__(self, paths: Sequence[str], read: Callable[[], object], most_looks: int) -> None:
        """Take the paths, and what reads all of them and uses what it finds. BadValue: it can use none.

        After so many looks they are read though they still change.
        """
        self._paths = paths
        self._read = read
        self._most_looks = most_looks
        self._seen = self._look()
        self._changing = 0  # looks since they began to change
        self.loaded = False
        """Whether they have ever been read."""

    def read(self) -> None:
        """Read them now; what is wrong is logged."""
        paths = ", ".join(self._paths)
        problem = f"reading {paths}"
        try:
            self._read()
        except BadValue as error:
            if self.loaded:
                log.warn("{why}; the previous version stays in force", why=str(error), problem=problem)
            else:
                log.error("{why}; the worker is not ready until it can be used", why=str(error), problem=problem)
        except Exception:  # noqa: BLE001 - it is ours; the next change is read all the same
            log.failure("{paths} could not be read; the previous version stays in force", paths=paths)
        else:
            self.loaded = True
            log.info("{paths}: read", paths=paths, problem=problem, resolved=True)

    def check(self) -> None:
        """Read them again if one of them has changed, was replaced, or is there again, and does not change any more."""
        seen = self._look()
        if seen != self._seen or self._changing:
            self._changing += 1
        if self._changing and (seen == self._seen or self._changing >= self._most_looks):
            self._changing = 0 if seen == self._seen else 1
            self.read()
        self._seen = seen

    def _look(self) -> _Seen:
        return tuple(map(_state, self._paths))


def _state(path: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size
