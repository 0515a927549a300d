"""What a client may do, for as long as its token is good: it is warned before the end, and may bring another token."""

from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from typing import Any

from chatd.access.address_usage import group
from chatd.access.tokens import EVERYTHING, BadToken, Permissions, TokenVerifier
from chatd.broker.presence_list import Identity
from chatd.config.settings import Config

_ORIGIN_LENGTH = 16
_NOBODY = Identity()  # one for all

LOOK_SECONDS = 3600.0
"""How long a timer runs at most: the clock by which tokens are good may be set meanwhile."""


@lru_cache(maxsize=4096)
def origin(address: str) -> str:
    """Return what is the same for all clients of an address (of IPv6: of its /64), in a fixed length; empty: none.

    It hides the address from a glance only: whoever reads it can hash all IPv4 addresses and compare. The broker has
    it, and no client is told it.
    """
    target = group(address)
    return sha256(target.encode()).hexdigest()[:_ORIGIN_LENGTH] if target else ""


class TokenLifetime:
    """What one client may do."""

    __slots__ = ("_end", "_now", "_timer", "_timers", "_token_verifier", "_warn", "_warned", "_warning", "permissions")

    def __init__(
        self,
        permissions: Permissions,
        token_verifier: TokenVerifier,
        timers: Any,
        config: Config,
        now: Callable[[], float],
    ) -> None:
        """Take what its token says, who knows tokens, timers, and the time of day in seconds since 1970."""
        self.permissions = permissions
        self._token_verifier = token_verifier
        self._timers = timers
        self._now = now
        self._timer: Any = None
        self._warning = config.token_warning_seconds
        self._warned = False
        self._warn: Callable[[float], None]
        self._end: Callable[[], None]

    @property
    def left(self) -> float | None:
        """For how many more seconds it is good; None: without end."""
        return None if self.permissions.expires is None else max(0.0, self.permissions.expires - self._now())

    def identify(self, nick: str, address: str) -> Identity:
        """Return who a client at an address is in a room where it wants a nick."""
        return Identity(nick, self.permissions.who, self.permissions.anonymous)

    def begin(self, warn: Callable[[float], None], end: Callable[[], None]) -> None:
        """Call warn, with the seconds that are left, a while before the token runs out, and end when it has."""
        self._warn, self._end = warn, end
        self._look()

    def stop(self) -> None:
        """Call nobody any more: the client is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def renew(self, token: str) -> None:
        """Go on with a new token of the same subject. Raises BadToken, and then nothing has changed."""
        permissions = self._token_verifier.check(token, self._now())
        if permissions.who != self.permissions.who:
            raise BadToken("the token is somebody else's")
        if permissions.nick != self.permissions.nick:
            raise BadToken("the token has another nick than this connection; connect anew with it")
        self.permissions = permissions
        self.stop()
        left = self.left
        self._warned = left is not None and left <= self._warning  # the answer says it
        self._look()

    def _look(self) -> None:
        self._timer = None
        left = self.left
        if left is None:
            return
        warn = left <= self._warning and not self._warned
        self._warned = self._warned or warn
        wait = left if self._warned else left - self._warning
        # First: a client that could not be warned is closed all the same, and one that could not be closed is again.
        self._timer = self._timers.callLater(min(wait or self._warning, LOOK_SECONDS), self._look)
        if left == 0:
            self._end()
            self.stop()
        elif warn:
            self._warn(left)


class _Unlimited(TokenLifetime):
    """What everybody may do where no tokens are asked for: one for all, without timers."""

    __slots__ = ()

    def __init__(self) -> None:
        self.permissions = EVERYTHING

    def begin(self, warn: Callable[[float], None], end: Callable[[], None]) -> None:
        """Go on for ever."""

    def stop(self) -> None:
        """Nothing was begun."""

    def identify(self, nick: str, address: str) -> Identity:
        """Return the same; without tokens clients from one place may be one client."""
        return Identity(nick, origin=origin(address)) if nick else _NOBODY

    def renew(self, token: str) -> None:
        """Take no token. Raises BadToken."""
        raise BadToken("this server takes no tokens")


UNLIMITED: TokenLifetime = _Unlimited()
