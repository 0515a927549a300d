"""A connection to the broker whose answers the test gives, and a look at what becomes of what is asked on it."""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from chatd.broker.connection import LinkLost


def outcome(done: "Deferred[Any]") -> Any:
    """Give what became of something asked for, its failure too; None: nothing yet."""
    seen: list[Any] = []

    def look(result: Any) -> Any:
        seen.append(result.value if isinstance(result, Failure) else result)
        return None if isinstance(result, Failure) else result

    done.addBoth(look)
    return seen[0] if seen else None


class Wire:
    """What outboxes and queries send their commands on."""

    def __init__(self) -> None:
        self.connected = 1
        self.calls: list[tuple[Any, ...]] = []
        self._answers: list[Deferred[Any]] = []

    def execute_command(self, *command: Any) -> "Deferred[Any]":
        self.calls.append(command)
        self._answers.append(Deferred())
        return self._answers[-1]

    def script_load(self, script: bytes) -> "Deferred[Any]":
        return self.execute_command("SCRIPT LOAD", script)

    def answer(self, *answers: Any) -> None:
        """Answer the oldest calls."""
        for answer in answers:
            waiting = self._answers.pop(0)
            if isinstance(answer, Exception):
                waiting.errback(answer)
            else:
                waiting.callback(answer)

    def lose(self) -> None:
        """Let the connection break."""
        self.connected = 0
        while self._answers:
            self.answer(LinkLost("Lost connection"))
