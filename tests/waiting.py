"""Waiting for events in tests that watch other processes: no test sleeps and hopes."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 20.0
"""Seconds after which what should have happened did not: far more than it takes, for slow machines."""


def until(condition: Callable[[], T | None], what: str, seconds: float = PATIENCE) -> T:
    """Ask again and again until the answer is true; give it. Fails, saying what was waited for."""
    end = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:g} s for {what}")
        time.sleep(0.01)
