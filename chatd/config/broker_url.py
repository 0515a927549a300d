"""The URLs of Redis and Valkey servers, parsed into address, TLS, user and password."""

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from chatd.config.values import BadValue

SENTINEL_PORT = 26379
"""The default port of a Sentinel."""


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """The address of a Redis or Valkey server and the login, as a ``--redis`` URL has them."""

    host: str = ""
    port: int = 6379
    path: str = ""
    """The path of a unix socket; host and port are not used with one."""
    user: str | None = None
    password: str | None = None
    database: int | None = None
    tls: bool = False
    sentinels: tuple[tuple[str, int], ...] = ()
    """Hosts and ports of the Sentinels, which name the current server; host and port are not used with them."""
    service: str = ""
    """The name of the server at its Sentinels."""

    @property
    def identity(self) -> str:
        """Return a name that is the same on all hosts, with or without TLS, and for any list of its Sentinels.

        It has no database, because all databases of a server share their channels (Redis, "Pub/Sub").
        """
        return f"sentinel/{self.service}" if self.sentinels else self.path or _host_and_port(self.host, self.port)

    def __str__(self) -> str:
        """Return the URL without user and password, for logs."""
        if self.path:
            return f"unix://{self.path}"
        scheme = "rediss" if self.tls else "redis"
        if self.sentinels:
            hosts = ",".join(_host_and_port(host, port) for host, port in self.sentinels)
            return f"{scheme}+sentinel://{hosts}/{self.service}/{self.database or 0}"
        return f"{scheme}://{_host_and_port(self.host, self.port)}/{self.database or 0}"


def _host_and_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_URL_FORM = (
    "not the URL of a Redis server; use redis://[user:password@]host[:port][/db], rediss://… or unix:///path, "
    "or redis+sentinel://[user:password@]host[:port],host[:port],…/service[/db]"
)


def broker_address(url: str) -> BrokerAddress:
    """Read ``redis://[user:password@]host[:port][/db]``, ``rediss://…``, ``unix:///path``, or with Sentinels.

    Those are ``redis+sentinel://[user:password@]host[:port],host[:port],…/service[/db]``, ``rediss+sentinel://…``.
    Raises BadValue, without repeating the URL: it may hold a password.
    """
    try:
        parts = urlsplit(
            url if not (split := _SENTINELS.fullmatch(url)) else f"{split[1]}://{split[2] or ''}x{split[4]}"
        )
        sentinels = tuple(map(_sentinel, split[3].split(","))) if split else ()
        port = parts.port
    except ValueError as error:
        raise BadValue(_URL_FORM) from error
    if parts.query or parts.fragment or port == 0 or not url.isprintable():
        raise BadValue(_URL_FORM)
    if parts.scheme == "unix" and parts.path.startswith("/") and not parts.netloc:
        return BrokerAddress(path=unquote(parts.path))
    if parts.scheme not in ("redis", "rediss") or not parts.hostname or " " in url:
        raise BadValue(_URL_FORM)
    service, _, database = parts.path.lstrip("/").partition("/") if sentinels else ("", "", parts.path.strip("/"))
    if not re.fullmatch(r"[0-9]{0,5}", database) or (sentinels and not re.fullmatch(r"[A-Za-z0-9_.-]+", service)):
        raise BadValue(f"{_URL_FORM}; the database is a number")
    return BrokerAddress(
        host="" if sentinels else parts.hostname,
        port=port or 6379,
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        database=int(database) if database else None,
        tls=parts.scheme == "rediss",
        sentinels=sentinels,
        service=service,
    )


_SENTINELS = re.compile(r"(rediss?)\+sentinel://([^/@]*@)?([^/@]*)(/.*)", re.IGNORECASE)
"""Scheme, user and password, hosts, and what comes behind: urlsplit knows no list of hosts."""


def _sentinel(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.netloc != text or "@" in text or parts.port == 0:
        raise ValueError("no host")
    return parts.hostname, parts.port or SENTINEL_PORT
