"""How long to wait before a child that died is started again."""

from chatd.config import Config


class Backoff:
    """Doubles from the first wait to the longest; starts anew with a child that lived long enough to be healthy."""

    def __init__(self, config: Config) -> None:
        """Take the waits from the configuration."""
        self._config = config
        self._failures = 0

    def wait(self, lived: float) -> float:
        """Give the seconds to wait after a child that lived that many seconds."""
        config = self._config
        if lived >= config.restart_healthy_seconds:
            self._failures = 0
        wait: float = config.restart_first_seconds * 2 ** min(self._failures, 30)
        self._failures += 1
        return min(wait, config.restart_most_seconds)
