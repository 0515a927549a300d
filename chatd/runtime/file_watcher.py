"""Files that are read again after a change. If their new version cannot be used, the previous one stays in force.

A file is read when it has stopped changing, because an incomplete list would be a different list.
"""

import os
from collections.abc import Callable, Sequence

from twisted.logger import Logger

from chatd.config.values import BadValue

log = Logger()

_State = tuple[tuple[int, ...] | None, ...]


class WatchedFiles:
    """Files that are read together."""

    def __init__(self, paths: Sequence[str], read: Callable[[], object], most_checks: int) -> None:
        """Set the paths, and the function that reads all of them; it raises BadValue if it cannot use them.

        After ``most_checks`` checks the files are read even if they still change.
        """
        self._paths = paths
        self._read = read
        self._most_checks = most_checks
        self._state = self._current_state()
        self._changing = 0  # checks since the change began
        self.loaded = False
        """Whether they have been read at least once."""

    def read(self) -> None:
        """Read the files now, and log a failure."""
        paths = ", ".join(self._paths)
        problem = f"reading {paths}"
        try:
            self._read()
        except BadValue as error:
            if self.loaded:
                log.warn(
                    "{why}; the previous version stays in force", why=str(error), problem=problem, event="file_rejected"
                )
            else:
                log.error(
                    "{why}; the worker is not ready until the file can be used",
                    why=str(error),
                    problem=problem,
                    event="file_unusable",
                )
        except Exception:  # noqa: BLE001 - an internal error; the next change is read
            log.failure(
                "reading {paths} failed; the previous version stays in force", paths=paths, event="file_read_failed"
            )
        else:
            self.loaded = True
            log.info("read {paths}", paths=paths, problem=problem, resolved=True, event="file_loaded")

    def check(self) -> None:
        """Read the files again if one of them was changed, replaced or created, and does not change any more."""
        state = self._current_state()
        if state != self._state or self._changing:
            self._changing += 1
        if self._changing and (state == self._state or self._changing >= self._most_checks):
            self._changing = 0 if state == self._state else 1
            self.read()
        self._state = state

    def _current_state(self) -> _State:
        return tuple(map(_state_of, self._paths))


def _state_of(path: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size
