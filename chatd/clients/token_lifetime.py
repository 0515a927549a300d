"""The permissions of a client and their end: a warning, a replacement of the token, or the close of the connection."""

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
    """Return a short hash that all clients of an address (of IPv6: of its /64) share; empty for no address.

    It hides the address only from a glance: all IPv4 addresses can be hashed and compared. The broker stores it;
    clients never receive it.
    """
    target = group(address)
    return sha256(target.encode()).hexdigest()[:_ORIGIN_LENGTH] if target else ""


class TokenLifetime:
    """The permissions of one client, and how long they are valid."""

    __slots__ = ("_end", "_now", "_timer", "_timers", "_token_verifier", "_warn", "_warned", "_warning", "permissions")

    def __init__(
        self,
        permissions: Permissions,
        token_verifier: TokenVerifier,
        timers: Any,
        config: Config,
        now: Callable[[], float],
    ) -> None:
        """Store the permissions, the verifier of new tokens, timers, and what returns the time of day in seconds since
        1970.
        """
        self.permissions = permissions
        self._token_verifier = token_verifier
        self._timers = timers
        self._now = now
        self._timer: Any = None
        self._warning = config.token_expiry_warning_time
        self._warned = False
        self._warn: Callable[[float], None]
        self._end: Callable[[], None]

    @property
    def left(self) -> float | None:
        """For how many more seconds it is good; None: without end."""
        return None if self.permissions.expires is None else max(0.0, self.permissions.expires - self._now())

    def identify(self, nick: str, address: str) -> Identity:
        """Return the identity of a client at an address that wants a nick."""
        return Identity(nick, self.permissions.name, self.permissions.anonymous)

    def begin(self, warn: Callable[[float], None], end: Callable[[], None]) -> None:
        """Call warn, with the seconds that are left, a while before the token runs out, and end when it has."""
        self._warn, self._end = warn, end
        self._look()

    def stop(self) -> None:
        """Stop the timer: the client is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def renew(self, token: str) -> None:
        """Replace the token by another one of the same subject. Raise BadToken, and then nothing has changed."""
        permissions = self._token_verifier.check(token, self._now())
        if permissions.name != self.permissions.name:
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
    """The permissions of all clients if no tokens are required: one object for all, without timers."""

    __slots__ = ()

    def __init__(self) -> None:
        self.permissions = EVERYTHING

    def begin(self, warn: Callable[[float], None], end: Callable[[], None]) -> None:
        """Do nothing: the permissions never end."""

    def stop(self) -> None:
        """Do nothing: there is no timer."""

    def identify(self, nick: str, address: str) -> Identity:
        """Return the identity with a hash of the address: without tokens clients of one address may be one client."""
        return Identity(nick, origin=origin(address)) if nick else _NOBODY

    def renew(self, token: str) -> None:
        """Raise BadToken: tokens are not accepted."""
        raise BadToken("this server takes no tokens")


UNLIMITED: TokenLifetime = _Unlimited()
