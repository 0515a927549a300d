"""Every knob once: its default with the unit, its check, and the values as workers get them.

The first part of ``Config`` is what ``twistd chatd`` takes as options; the second part are bounds that
no operator has needed to move yet, here so that every queue, wait and retry has its limit in one place.
"""

import os
import re
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from typing import Any
from urllib.parse import unquote, urlsplit

LOOPBACK_LISTEN = ("tcp:3000:interface=127.0.0.1", r"tcp:3000:interface=\:\:1")
"""Where chatd listens unless ``--listen`` says otherwise; the second is left out where there is no IPv6."""

EPOCHS_KNOWN = 4
"""Epochs that have ended whose end a worker remembers, for each room and each client that is behind.

What is in doubt is published again within seconds; so many times a broker may die meanwhile.
"""

FORWARDED_MOST = 32
"""Of the addresses in ``X-Forwarded-For``, how many are read, from the right."""

LEEWAY_SECONDS = 5.0
"""How far the clock of who gives tokens may be ahead of ours: a token that is not good yet is, by so much."""

SUBJECT_LENGTH = 255
"""The most characters of a token's ``sub`` (OpenID Connect Core 1.0, section 2); a message carries it."""

TIMED_PARTS = 1024
"""Parts of batches on their way to the broker of which a worker remembers when they were taken, to time them."""

NOTIFY_SECONDS = 1.0
"""How long the parent tries to tell systemd what it says but once while the queue is full: that it is ready, say."""

NOTIFY_RETRY_SECONDS = 0.05
"""How long it serves before it tries again."""

NOTIFY_KEPT = 16
"""How much of that it keeps; the oldest is dropped beyond."""

NOTIFY_END_SECONDS = 0.05
"""How long it waits for systemd when it ends."""

TLS_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""What TLS 1.2 may be spoken with, on ssl: listeners: with forward secrecy, and authenticated. TLS 1.3 has no other."""

HISTORY_PAGE = 1000
"""The most messages of history that a JSON client gets in one answer."""


class BadValue(ValueError):
    """A value that can't be used; its text is one line for whoever typed it."""


SENTINEL_PORT = 26379
"""Where a Sentinel listens unless it is said."""


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a Redis or Valkey server is and how to log in: what a ``--redis`` URL says."""

    host: str = ""
    port: int = 6379
    path: str = ""
    """A unix socket; where it is given, host and port mean nothing."""
    user: str | None = None
    password: str | None = None
    database: int | None = None
    tls: bool = False
    sentinels: tuple[tuple[str, int], ...] = ()
    """Hosts and ports of Sentinels, which know where the server is; where there are any, host and port mean nothing."""
    service: str = ""
    """What the Sentinels call it."""

    @property
    def identity(self) -> str:
        """Name the server as all hosts do, whether they reach it with TLS, and whichever Sentinels they know.

        Without its database: channels are the same in all of them (Redis, "Pub/Sub"), so two are no two brokers.
        """
        return f"sentinel/{self.service}" if self.sentinels else self.path or _host_and_port(self.host, self.port)

    def __str__(self) -> str:
        """Name it without user and password, for logs."""
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
    "must be redis://[user:password@]host[:port][/db], rediss://… or unix:///path, "
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


def whole_number(least: int, most: int, unit: str = "") -> Callable[[str], int]:
    """Make a check for whole numbers from least to most; ``_`` between digits is fine."""
    number = f"whole number of {unit}" if unit else "whole number"

    def check(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise BadValue(f"must be a {number} from {least} to {most}, not {text!r}")
        return value

    return check


def seconds(least: float, most: float) -> Callable[[str], float]:
    """Make a check for a time in seconds from least to most."""
    return _number("seconds", least, most)


def milliseconds(least: float, most: float) -> Callable[[str], float]:
    """Make a check for a time in milliseconds from least to most."""
    return _number("milliseconds", least, most)


def _number(unit: str, least: float, most: float) -> Callable[[str], float]:
    def check(text: str) -> float:
        value = _float(text)
        if not least <= value <= most:
            raise BadValue(f"must be a number of {unit} from {least:.12g} to {most:.12g}, not {text!r}")
        return value

    return check


def _broker_url(text: str) -> str:
    broker_address(text)
    return text


def _prefix(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,64}", text):
        raise BadValue(f"must be 1 to 64 letters, digits or any of _ . : -, not {text!r}")
    return text


def one_of(*words: str) -> Callable[[str], str]:
    """Make a check for one of these words."""

    def check(text: str) -> str:
        if text not in words:
            raise BadValue(f"must be {' or '.join(words)}, not {text!r}")
        return text

    return check


_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def size(text: str) -> int:
    """Read a size: a number of bytes, or a number with a unit (100MB, 1 GiB) in upper or lower case. Raise BadValue."""
    found = re.fullmatch(r"([0-9]{1,15}(?:_[0-9]{1,3}){0,4}) ?([a-z]*)", text.strip().lower(), re.ASCII)
    if found is None or found[2] not in _UNITS:
        raise BadValue(f"must be a size such as 100MB or 1GiB, not {text!r}")
    return int(found[1]) * _UNITS[found[2]]


def _size(least: int, most: int) -> Callable[[str], int]:
    """Make a check for a size in bytes from least to most."""

    def check(text: str) -> int:
        value = _size_or_none(text)
        if value is None or not least <= value <= most:
            raise BadValue(
                f"must be from {least} to {most} bytes, as a number or with a unit (64kB, 64KiB, 1MB), not {text!r}"
            )
        return value

    return check


def _size_or_none(text: str) -> int | None:
    try:
        return size(text)
    except BadValue:
        return None


def _size_or_word(word: str, least: str, example: str) -> Callable[[str], str]:
    """Make a check for a word, or a size of at least so much."""

    def check(text: str) -> str:
        if text != word and (_size_or_none(text) or 0) < size(least):
            raise BadValue(f"must be {word}, or a size of at least {least} such as {example}, not {text!r}")
        return text

    return check


BROKER_MEMORY_LEAST = "32MiB"
"""The least memory that a private broker is of use with."""

CHAT_LOG_LEAST = "10kB"
"""The smallest size at which a chat log is rotated: with less, each few messages would become a file."""

_size_or_auto = _size_or_word("auto", BROKER_MEMORY_LEAST, "512MiB")
_size_or_day = _size_or_word("day", CHAT_LOG_LEAST, "100MB")


def limit(text: str, auto: float) -> float:
    """Give the number that a limit is; 0: there is none. Auto is what ``auto`` stands for."""
    return auto if text == "auto" else 0.0 if text == "off" else float(text)


def _limit(text: str) -> str:
    if text not in ("auto", "off") and not 0.001 <= _float(text) <= 1e9:
        raise BadValue(f"must be auto, off or a number over 0, up to 1000000000, not {text!r}")
    return text


def _byte_limit(text: str) -> str:
    """Check a limit in bytes per second. Return a size with a unit as a number."""
    number = text if _size_or_none(text) is None else str(size(text))
    try:
        return _limit(number)
    except BadValue:
        raise BadValue(
            f"must be auto, off or a number over 0 (bytes per second; also as 64kB or 64KiB), not {text!r}"
        ) from None


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0


def _text(text: str) -> str:
    if not text.isprintable():
        raise BadValue("must be text on one line")
    return text


def expanded(path: str) -> str:
    """Replace ``~`` and ``~user`` at the beginning of a path by the home folder. Raise BadValue."""
    found = os.path.expanduser(path)
    if found.startswith("~"):
        raise BadValue(f"begins with {found.partition('/')[0]}, which is no home folder here (a name with ~: ./~…)")
    return found


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _log_path(text: str) -> str:
    if not text.strip() or text.endswith("/") or _CONTROL.search(text):
        raise BadValue("must name a file")
    if text == "-":
        raise BadValue("must name a file on a disk, not '-'; follow it with: tail -F FILE")
    path = expanded(text)
    if os.path.isdir(path):
        raise BadValue(f"{text!r} is a folder; it must name a file")
    return path


def file_path(text: str) -> str:
    """Read the path of a file, from the root on. Raise BadValue."""
    if not text.strip() or _CONTROL.search(text):
        raise BadValue("must name a file")
    return os.path.abspath(expanded(text))


def _folder_path(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise BadValue("must name a folder")
    path = expanded(text)
    if os.path.exists(path) and not os.path.isdir(path):
        raise BadValue(f"{text!r} is a file; it must name a folder")
    return path


NUMBER_OR_TEXT = (int, float, str)
"""What a configuration file may give for an option that is a number, or a word, or a number with a unit."""


def _option(
    default: Any, check: Callable[[str], Any], text: str, unit: str = "", toml: tuple[type, ...] | None = None
) -> Any:
    """Describe an option. TOML is what a configuration file may give for it: by default, what the default value is."""
    toml = toml or ((str,) if isinstance(default, str) else (int, float))
    return field(default=default, metadata={"check": check, "help": text, "unit": unit, "toml": toml})


_HERE_OFF = "on listeners that other hosts can reach, off on loopback and unix sockets."


@dataclass(frozen=True)
class Config:
    """What a chatd runs with. Built by ``tap`` from the command line, sent to every worker."""

    # What the command line takes
    listen: tuple[str, ...] = _option(
        (),
        str,
        "Listen on this Twisted server endpoint: tcp:3000, tcp6:3000, tcp:3000:interface=ADDRESS, "
        "ssl:443:privateKey=FILE:certKey=FILE, unix:PATH, systemd:name=chatd or haproxy: before any of "
        f"these. May be given several times. [default: {' and '.join(LOOPBACK_LISTEN)}]",
    )
    origin: tuple[str, ...] = _option(
        (),
        str,
        "Accept web pages of this origin beside the server's own: https://chat.example.org, https://*.example.org "
        "(all hosts below it) or * (all). May be given several times. [default: none]",
    )
    host: tuple[str, ...] = _option(
        (),
        str,
        "Accept only requests whose Host is this name or address of the server, and answer others with 403; it does "
        "not say where to listen, which is --listen. May be given several times. "
        "[default: any; on loopback without --trusted-proxy only loopback names and the name of this machine]",
    )
    hsts: int = _option(
        0,
        whole_number(0, 63_072_000, "seconds"),
        "How long browsers of clients on ssl: listeners use only HTTPS for this host name, on every port "
        "(Strict-Transport-Security). 0 does not send the header.",
        "seconds",
    )
    trusted_proxy: tuple[str, ...] = _option(
        (),
        str,
        "Take the client's address from this proxy (X-Forwarded-For, PROXY protocol): its address, its network "
        "(10.0.0.0/8), or unix for proxies on a unix socket. May be given several times. [default: none]",
    )
    auth_key: tuple[str, ...] = _option(
        (),
        file_path,
        "Require a token (JWT) from every client and verify it with the key in this file, which is read again when it "
        "changes: a public key (PEM), a key set (JWKS) or a secret. May be given several times. "
        "[default: none; no tokens]",
    )
    auth_issuer: str = _option("", _text, "Accept only tokens with this iss claim. [default: none; any issuer]")
    auth_audience: str = _option(
        "", _text, "Accept only tokens with this aud claim. [default: none; only tokens without an aud claim]"
    )
    auth_require: tuple[str, ...] = _option(
        (),
        one_of("exp", "rooms", "sub"),
        "Refuse tokens without this claim: exp, rooms or sub. May be given several times. [default: none]",
    )
    revoked: str = _option(
        "",
        file_path,
        "With --auth-key, refuse the tokens that this file names, one `sub NAME` or `jti ID` a line, and close their "
        "open connections. The file is read again when it changes. [default: none]",
    )
    limit_messages: str = _option(
        "auto",
        _limit,
        f"Maximum messages per client and second. auto: 5 {_HERE_OFF}",
        "messages/s",
        NUMBER_OR_TEXT,
    )
    limit_burst: int = _option(
        10,
        whole_number(1, 1_000_000),
        "Maximum messages that a client may send at once before --limit-messages slows it down.",
        "messages",
    )
    limit_bytes: str = _option(
        "auto",
        _byte_limit,
        f"Maximum message text per client, in bytes per second. auto: 65536 {_HERE_OFF}",
        "bytes/s",
        NUMBER_OR_TEXT,
    )
    limit_connections: str = _option(
        "auto",
        _limit,
        f"Maximum open connections per address (IPv6: per /64 network). auto: 250 {_HERE_OFF}",
        "connections",
        NUMBER_OR_TEXT,
    )
    limit_arrivals: str = _option(
        "auto",
        _limit,
        f"Maximum new connections per address and minute. auto: 600 {_HERE_OFF}",
        "connections/min",
        NUMBER_OR_TEXT,
    )
    limit_rooms: str = _option(
        "auto",
        _limit,
        f"Maximum new rooms per address and minute: rooms that its clients enter first. auto: 120 {_HERE_OFF}",
        "rooms/min",
        NUMBER_OR_TEXT,
    )
    limit_handshakes: str = _option(
        "auto",
        _limit,
        f"Maximum new connections per worker and second, from all addresses together. auto: 1000 {_HERE_OFF}",
        "connections/s",
        NUMBER_OR_TEXT,
    )
    limit_requests: str = _option(
        "auto",
        _limit,
        "Maximum requests per address and second, averaged over 10 seconds: HTTP requests and reads by WebSocket "
        f"clients, and one more for each 64 KiB of text that is read. auto: 20 {_HERE_OFF}",
        "requests/s",
        NUMBER_OR_TEXT,
    )
    limit_address_messages: str = _option(
        "auto",
        _limit,
        f"Maximum messages per second of all clients of one address together. auto: 100 {_HERE_OFF}",
        "messages/s",
        NUMBER_OR_TEXT,
    )
    limit_address_bytes: str = _option(
        "auto",
        _byte_limit,
        f"Maximum message text of all clients of one address together, in bytes per second. auto: 524288 {_HERE_OFF}",
        "bytes/s",
        NUMBER_OR_TEXT,
    )
    ban_list: str = _option(
        "",
        file_path,
        "Refuse connections from the addresses and networks in this file, one a line. The file is read again when it "
        "changes. [default: none]",
    )
    workers: int = _option(
        0, whole_number(0, 256), "Number of worker processes. 0: one per CPU core, and at least two.", "processes"
    )
    redis: tuple[str, ...] = _option(
        (),
        _broker_url,
        "Share rooms with all chatds on this Redis or Valkey server: redis://[user:password@]host[:port][/db], "
        "rediss://… (TLS, certificate checked), unix:///path, or its Sentinels: "
        "redis+sentinel://[user:password@]host[:port],host[:port],…/service[/db], rediss+sentinel://…. "
        "May be given several times, which spreads the rooms over all servers. "
        "[default: none; chatd runs a private Valkey]",
    )
    redis_prefix: str = _option(
        "chatd",
        _prefix,
        "Prefix of every key and channel on the Redis or Valkey server. Only chatds with the same prefix share rooms.",
    )
    redis_password_file: str = _option(
        "",
        file_path,
        "File with the password for the Redis or Valkey server, in place of a password in the URL. It is read at each "
        "connection. [default: none]",
    )
    redis_ca: str = _option(
        "",
        file_path,
        "With rediss://, file of certificates (PEM) that may vouch for the server's certificate. "
        "[default: none; those that this system trusts]",
    )
    redis_cert: str = _option(
        "",
        file_path,
        "With rediss://, file with the client certificate (PEM) that chatd presents to the server. [default: none]",
    )
    redis_key: str = _option(
        "", file_path, "File with the private key (PEM) of the certificate in --redis-cert. [default: none]"
    )
    sentinel_password_file: str = _option(
        "",
        file_path,
        "With redis+sentinel://, file with the password that the Sentinels themselves require. [default: none]",
    )
    log_format: str = _option(
        "text", one_of("text", "json"), "Format of the server's own log: text, or json with one object a line."
    )
    log_repeat: float = _option(
        60.0,
        seconds(0, 86400),
        "Log a recurring problem at most once per interval, with a repeat count. 0 logs every occurrence.",
        "seconds",
    )
    chat_log: str = _option(
        "logs/chat.log", _log_path, "File to which every message is appended before it is delivered to anyone."
    )
    chat_log_format: str = _option(
        "text",
        one_of("text", "json"),
        "Format of the chat log: text, or json with one object a line. A file may contain both.",
    )
    chat_log_sync: str = _option(
        "none",
        one_of("none", "batch"),
        "When a message in the chat log is forced to disk: batch, before it is delivered; none, when the kernel does "
        "it, so that a power failure may lose the last half minute.",
    )
    chat_log_rotate: str = _option(
        "",
        _size_or_day,
        "When to rotate and compress the chat log: at a size (100MB, 1GiB; at least 10kB) or daily at 00:00 UTC (day). "
        "[default: none; logrotate may do it]",
        toml=NUMBER_OR_TEXT,
    )
    chat_log_keep: int = _option(
        0, whole_number(0, 1_000_000), "Number of rotated chat logs that are kept, the newest. 0 keeps all.", "files"
    )
    state: str = _option(
        "",
        _folder_path,
        "Folder in which the private Valkey keeps history and resume positions over restarts. "
        "It is ignored with --redis. [default: none; nothing is kept]",
    )
    broker_memory: str = _option(
        "auto",
        _size_or_auto,
        "Maximum memory of the private Valkey, such as 512MiB; before it is full, the histories of the longest silent "
        "rooms are dropped. auto: a quarter of the memory of this host or container, and at least 64MiB.",
        toml=NUMBER_OR_TEXT,
    )
    max_message: int = _option(
        16384,
        _size(1, 1_048_576),
        "Maximum size of one message, such as 16384 or 64kB.",
        "bytes of UTF-8",
        NUMBER_OR_TEXT,
    )
    bus_patience: float = _option(
        10.0,
        seconds(0, 86400),
        "How long a client that sends waits for an unreachable broker before it is closed with 1013.",
        "seconds",
    )
    drain: float = _option(
        30.0,
        seconds(0, 3600),
        "Time over which a reload closes the clients of the old workers with 1012, each at another moment.",
        "seconds",
    )
    compress: bool = _option(
        False,
        bool,
        "Compress messages to clients that offer permessage-deflate, and accept compressed messages from them. "
        "[default: off]",
    )
    history: int = _option(
        1000,
        whole_number(0, 1_000_000),
        "Messages kept per room for clients that return, read slowly or missed some. 0 keeps none.",
        "messages",
    )
    history_ttl: float = _option(
        86400.0,
        seconds(0, 31_536_000),
        "How long messages stay in the history of their room. 0 keeps none.",
        "seconds",
    )
    presence_limit: int = _option(
        500,
        whole_number(0, 100_000),
        "Maximum members of a room that are listed and whose joins and leaves are announced; larger rooms show a "
        "count.",
        "members",
    )
    flush_interval: float = _option(
        2.0,
        milliseconds(0, 1000),
        "Minimum time between two batches of a worker in each direction: a busy worker collects messages for that "
        "long, an idle one sends at once. 0 sends at each turn of the event loop.",
        "milliseconds",
    )
    max_backlog: int = _option(
        1_048_576,
        _size(65_536, 1_073_741_824),
        "Maximum data that waits for one client; a client that reads more slowly gets the rest from history as it "
        "reads. Without history it is closed with 1013 once it has read what waits.",
        "bytes",
        NUMBER_OR_TEXT,
    )
    max_backlog_total: int = _option(
        268_435_456,
        _size(65_536, 1_099_511_627_776),
        "Maximum data that waits for all clients of a worker together. Beyond it, every client for which more than "
        "64 KiB waits gets the rest from history as it reads.",
        "bytes",
        NUMBER_OR_TEXT,
    )
    max_rooms: int = _option(
        100, whole_number(1, 10_000), "Maximum rooms that one chatd.v1 client is in at once.", "rooms"
    )
    max_connections: int = _option(
        0,
        whole_number(0, 100_000_000),
        "Maximum connections of all workers together; further ones are answered with 503. "
        "0: the sum of what the workers may have.",
        "connections",
    )
    max_connections_worker: int = _option(
        10_000,
        whole_number(1, 1_000_000),
        "Maximum connections of one worker; fewer if the worker may not open that many files.",
        "connections",
    )

    # The door
    waiting_share: float = 0.25
    """Of the connections that a worker may have, how many may be such that have not said yet what they want; the one
    that has been so for the longest time gives way to the next."""
    waiting_least: int = 64
    """At least so many may."""
    head_bytes: int = 8192
    """The longest request line and headers, together."""
    head_seconds: float = 5.0
    """From connecting to the end of the headers."""
    full_house_margin: int = 64
    """Connections beyond the most that still get to read a 503; what comes after is dropped at once."""
    connection_count_seconds: float = 0.1
    """How often a worker says how many connections it has, where there is a limit for all together."""
    listen_seconds: float = 3.0
    """How long connections wait in the queues of a worker that starts: until it is ready, but no longer than this."""
    accept_backlog: int = 1024
    """Connections a listening socket queues for its worker (the kernel's net.core.somaxconn caps it)."""
    spare_descriptors: int = 64
    """Open files a worker keeps for its log, links and libraries; the rest of RLIMIT_NOFILE is for connections."""
    http_idle_seconds: float = 15.0
    """How long an HTTP connection may say nothing between requests."""
    http_unread_seconds: float = 15.0
    """An HTTP connection is dropped if its client takes nothing for so long of an answer that waits for it."""
    http_unread_look_seconds: float = 3.0
    """How often it is looked whether it does: so much later it may be dropped."""

    # The gate
    auto_messages: float = 5.0
    """What ``auto`` stands for on listeners that others can reach: messages/s,"""
    auto_bytes: float = 65_536.0
    """bytes/s,"""
    auto_connections: float = 250.0
    """connections an address,"""
    auto_arrivals: float = 600.0
    """new ones a minute,"""
    auto_rooms: float = 120.0
    """rooms a minute,"""
    auto_handshakes: float = 1000.0
    """handshakes a second a worker,"""
    auto_requests: float = 20.0
    """requests a second an address,"""
    auto_address_messages: float = 100.0
    """messages a second an address,"""
    auto_address_bytes: float = 524_288.0
    """bytes a second an address."""
    limit_requests_seconds: float = 10.0
    """How many seconds' worth of its requests an address may make at once."""
    limit_read_bytes: int = 65_536
    """Bytes of text whose reading costs as much as a request."""
    limit_debt_seconds: float = 30.0
    """How many seconds' worth of messages, bytes and requests a client or an address may owe."""
    limit_addresses: int = 65_536
    """Addresses whose limits a worker keeps."""
    limit_rooms_known: int = 16_384
    """Rooms that a worker remembers to have been made, so that they are not counted again."""
    limit_reported: int = 1000
    """Addresses of which a worker tells the others at once; if there are more, they take turns."""
    limit_looked: int = 2048
    """Addresses that a worker looks at in one go: whether others have to know of them, whether they are forgotten."""
    limit_seconds: float = 1.0
    """How often it does."""
    limit_kept_seconds: int = 15
    """How long what it told is taken to be so: longer, and it is dead."""
    flood_warnings: int = 20
    """How many messages in a row may be refused for coming too fast before the client is closed with 4029."""
    overdue_bytes: int = 16_777_216
    """What clients that left may have left behind that is still to be said at their pace, on a worker."""
    left_bytes: int = 16_777_216
    """Text of clients that left and that waits for a broker, on a worker; a message counts ``message_overhead_bytes``
    beside its text."""
    refused_origins_told: int = 20
    """Origins of refused pages that a worker logs, each of them once."""
    token_warning_seconds: float = 60.0
    """How long before a token runs out its bearer is told."""
    watch_seconds: float = 1.0
    """How often files of keys, bans and revoked tokens are looked at; one is read when it is as the last time,"""
    watch_looks: int = 5
    """or after so many looks at which it was not."""

    # One client
    timer_seconds: float = 0.1
    """How late a client's timers may come: those that are due within it share one."""
    join_seconds: float = 5.0
    """How long a handshake waits for the room's subscription before it is answered 503."""
    ping_seconds: float = 25.0
    """From a client's last sign of life to our ping."""
    crowded_backlog: int = 262_144
    """What may wait for a client while more than ``max_backlog_total`` waits for all: beyond it one that asks for more
    is closed,"""
    crowded_step: int = 65_536
    """and about how much of history a client that is behind then gets at once."""
    questions: int = 8
    """What a client may ask for without having an answer (``/who``, ``/last``, …)."""
    retry_seconds: float = 5.0
    """When a client is told to try again what could not be done for now."""
    pong_seconds: float = 10.0
    """From our ping to hanging up on a client that did not answer."""
    stalled_seconds: float = 60.0
    """The same, if its kernel answers, while something waits for it, or it has yet to read what its kernel keeps:"""
    slowest_bytes: int = 10_000
    """which it does with so many bytes a second."""
    close_seconds: float = 2.0
    """From our Close frame, or our answer to the client's, to dropping the connection."""
    report_seconds: float = 1.0
    """How long clients that something befalls are counted before the log says so, in one line."""
    marks: int = 64
    """Positions, a second or so apart, of which it is not yet known whether a client with a resume key has got them."""
    reread_bytes: int = 4096
    """How much of a frame that is not whole yet is looked at anew with each read; then it is read as it comes."""
    empty_fragments: int = 65_536
    """Frames of one message that hold nothing; how many others there may be follows from ``max_message``."""
    slice_texts: int = 512
    """Text messages of one client that are taken before others have their turns,"""
    slice_steps: int = 32
    """and steps in anything else that it sends, two a frame."""
    slice_requests: int = 8
    """HTTP requests of one connection that are answered before others have their turns;"""
    slice_bytes: int = 256
    """so many bytes of their heads, or of a body in chunks, count as one more."""
    flood_seconds: float = 5.0
    """How long a client may send more of that than is taken, before it is closed with 4029."""
    flood_rest_seconds: float = 1.0
    """After so long without any of it waiting that begins anew."""
    slice_rest: float = 4.0
    """For how many times as long as such steps took there is rest, before more of them are taken."""

    # The bus
    batch_bytes: int = 262_144
    """What goes over the wire at once for one room, about; and what a worker hears before it fans out at once."""
    window_bytes: int = 4_194_304
    """Text that one worker may have published without an answer; beyond it senders are not read."""
    message_overhead_bytes: int = 200
    """What a message costs in the window, and as JSON, beside its text."""
    bus_connect_seconds: float = 5.0
    """From dialling the broker to a link that can be used."""
    sentinel_seconds: float = 1.0
    """How long a Sentinel may take to answer, and how often one is asked whether the master is still the same."""
    shard_wait_seconds: float = 10.0
    """How long a worker that starts waits for a broker that is away, where there are others."""
    bus_retry_first_seconds: float = 0.1
    """Before the first attempt to reach the broker again; grows by half each time."""
    bus_retry_most_seconds: float = 1.0
    """The longest wait between attempts to reach the broker."""
    bus_tick_seconds: float = 1.0
    """How often a link is looked at; one that was silent for a tick is asked for a sign of life."""
    bus_silent_ticks: int = 4
    """Ticks without a byte from the broker after which a link is dead: known within 5 s."""
    bus_settle_seconds: float = 1.2
    """After an outage, before anything is published again: as long as the slowest other worker takes to be back."""
    bus_queries: int = 16
    """Questions to the broker that are on their way at once; the others wait."""
    query_seconds: float = 60.0
    """How long one is asked again that the broker refuses."""
    probe_seconds: float = 2.0
    """How long readiness waits for a probe to come back through the bus."""
    answered_seconds: float = 7.0
    """How far back batches are published again to a broker that started anew, or took another's place: the last may not
    have passed them on. That is longer than it takes to know that one is dead."""
    republish_memory_seconds: int = 300
    """How long the broker knows a batch, so that one whose answer got lost is not published twice."""
    room_memory_seconds: int = 86_400
    """How long the broker remembers a silent room's newest offset."""
    publishers_known: int = 1024
    """Publishers whose newest batch a worker remembers, for each room."""
    compare_seconds: float = 10.0
    """How often a worker looks whether it has the newest message of its rooms."""
    compare_rooms: int = 500
    """Rooms that are compared in one go."""
    history_bytes: int = 262_144
    """What is read of a room's history at once, about."""
    unreadable_known: int = 256
    """Entries of histories that can't be read which a worker remembers, so that it logs each of them once."""
    recent_seconds: int = 10
    """What was said in the last so many seconds is kept however many messages that is, as far as there is history:"""
    recent_bytes: int = 8_388_608
    """but no more than the last so many bytes of a room; up to twice as much of either."""
    held_bytes: int = 1_048_576
    """What a room holds back while it reads what is missing before it; the rest is read then too."""
    held_total_bytes: int = 67_108_864
    """What all rooms of a worker hold back together; beyond it a room reads again what it could not hold."""
    place_seconds: float = 1.0
    """How often the places of clients with a resume key are written to the broker, where they moved."""
    mark_seconds: float = 0.1
    """How long after it was given something a client with a resume key learns its position,"""
    marked_members: int = 20
    """if no more of them than that are on the worker; else when places are written."""
    place_again_seconds: float = 60.0
    """How often they are written where they did not move: who has lost its place unheard learns it by that."""
    places: int = 500
    """Places that are written in one go."""
    takeover_seconds: float = 2.0
    """How long a client that comes back waits for the worker that still holds its last connection."""
    takeovers: int = 5
    """How often clients that have one resume key may take the place from each other at once,"""
    takeover_rest_seconds: int = 10
    """and after how long they may once more. It counts only if the client it was taken from was still there."""

    linger_seconds: float = 10.0
    """How long a client with a resume key may be away without being said to have left."""
    alive_seconds: int = 30
    """Without a sign of life for so long a worker is dead, and its members are gone from their rooms."""
    nick_choices: int = 64
    """The most names that are tried at once for a nick: ann, then ann*2 and ann*3, then the next four, and so on."""
    nick_rounds: int = 400
    """How often that is done, before the client is told that there is none: about 25,000 names."""
    presence_steps: int = 500
    """Members that come and go in one room in one go,"""
    presence_names: int = 1000
    """and names that are tried for them."""
    presence_list_seconds: float = 1.0
    """How long a worker that missed who came and went waits to read it: it may have missed more."""
    presence_list_retry_most_seconds: float = 60.0
    """The longest wait before the members of a room are read again, when that failed; it doubles from the one above."""
    presence_held: int = 1000
    """Of who comes and goes, how much waits for messages that are missing before it."""

    # HTTP
    followers_share: float = 0.5
    """Of the connections that a worker may have, how many may follow rooms over HTTP."""
    body_seconds: float = 10.0
    """From the head of a request to the end of its body."""
    heartbeat_seconds: float = 25.0
    """How often a stream of events, or of JSON lines, says that it is still there, unless its client asks otherwise."""
    keepalive_seconds: int = 25
    """How long the client of a stream may be silent before its kernel is asked for a sign of life,"""
    keepalive_again_seconds: int = 5
    """how long each answer is waited for,"""
    keepalive_probes: int = 3
    """and how many of them may be missing before the connection is dropped."""
    rooms_listed: int = 1000
    """The most rooms that are listed."""
    rooms_step_keys: int = 500
    """Keys of the broker that are looked at in one step, for those of rooms,"""
    rooms_steps: int = 100
    """and how many steps at most."""
    rooms_seconds: float = 1.0
    """How long a list of rooms is good, at least;"""
    rooms_rest: float = 20.0
    """and for how many times as long as it took: a broker with many rooms is asked more rarely."""
    ready_kept_seconds: float = 0.2
    """How long the answer to a question for readiness is good."""

    # The chat log
    log_check_seconds: float = 0.5
    """How often the chat log is looked for: one that was renamed or removed is opened anew."""
    log_lock_seconds: float = 1.0
    """How long another process may hold the lock of the chat log; then messages are refused."""
    log_spin_seconds: float = 0.001
    """How long a worker waits for that lock in its event loop,"""
    log_retry_seconds: float = 0.01
    """and how long it serves its clients before it tries again."""
    log_calm_seconds: float = 5.0
    """After a write that failed, before the log is said to be good again without a write of that size."""

    rotation_look_seconds: float = 0.2
    """How often it is looked whether the chat log is to be rotated."""
    rotation_lock_seconds: float = 5.0
    """How long a rotation waits for those who write; then it is tried again."""

    # chatd verify
    log_line_bytes: int = 8_388_608
    """The longest line of a chat log that is read: more than the longest message with all of it escaped."""
    rotation_seconds: float = 5.0
    """How long the renaming of chat logs may take while they are opened."""
    verify_keys: int = 1000
    """Keys of the broker that are looked at in one step, for those of histories."""
    verify_entries: int = 16
    """Batches of a history that are read in one step."""

    # The server's own log
    log_kinds: int = 256
    """Kinds of trouble of which it is known when they were said last."""
    log_look_seconds: float = 1.0
    """How often it is looked whether what was counted is to be said."""

    # What is counted
    metrics_seconds: float = 1.0
    """How often a process writes what it has counted to where all are added up."""
    metrics_kept_seconds: float = 0.5
    """How long a sum of all processes is good."""

    # The parent
    restart_first_seconds: float = 0.1
    """Before a worker or broker that died is started again; doubles each time."""
    restart_most_seconds: float = 30.0
    """The longest such wait."""
    restart_healthy_seconds: float = 60.0
    """A child that lived this long starts again with the first wait."""
    start_tries: int = 5
    """How often a worker, or the private broker, may end before all workers were ready once: then the start ends."""
    worker_heartbeat_seconds: float = 1.0
    """How often a worker says how it is."""
    worker_heartbeats_missed: int = 3
    """How often it may fail to, and still count as one that answers."""
    frozen_seconds: float = 10.0
    """A worker that was not heard of for so long is killed, and replaced."""
    start_seconds: float = 60.0
    """How long one may take to be heard of for the first time."""
    reload_seconds: float = 30.0
    """At a reload, how long the new workers may take to be ready; after it nothing changes."""
    drained_look_seconds: float = 0.25
    """How often a worker that drains looks whether everybody has gone."""
    unsaved_seconds: float = 3600.0
    """How long one that has drained waits for a broker that is away, to keep the positions of clients there."""
    draining_most: int = 3
    """Generations of old workers that drain at once; one that is older ends sooner."""
    hold_seconds: float = 4.0
    """At a stop, how long workers may take to publish what they have taken."""
    stop_seconds: float = 4.0
    """At a stop, how long workers may then take to close their clients and end; after it they are killed."""
    stop_probe_part: float = 0.22
    """Until which part of that time a worker waits for what others published,"""
    stop_close_part: float = 0.75
    """until which part for its clients to close,"""
    stop_save_part: float = 0.82
    """and until which part for the broker to keep resume positions;"""
    stop_lock_part: float = 0.05
    """for which part of it a worker then waits for the lock of the chat log."""
    kill_seconds: float = 0.5
    """How long the end of a killed process may take to be known."""
    broker_stop_seconds: float = 1.5
    """At a stop, how long the private broker may take; after it it is killed."""
    memory_seconds: float = 0.25
    """How often a worker looks at the memory of the private broker,"""
    memory_turn_seconds: float = 2.0
    """and for how long the one that makes room does so, unless it looks again."""
    memory_high: float = 0.9
    """From which part of it on histories are dropped,"""
    memory_low: float = 0.8
    """and until which part."""
    memory_keys: int = 1000
    """Keys of the broker that are looked at in one step, for those of histories,"""
    memory_histories: int = 500
    """how many of the oldest ones are dropped before all are looked at again,"""
    memory_drops: int = 8
    """and after how many of them the memory is looked at again."""
    memory_rest_seconds: float = 1.0
    """If no history is left to drop: after how long histories are looked at again. It doubles each time,"""
    memory_rest_most_seconds: float = 30.0
    """up to so long."""
    memory_part: int = 4
    """The part (one in so many) of this host's memory that a private broker may use where nobody says how much,"""
    memory_least: int = 67_108_864
    """and at least so many bytes."""
    state_lock_seconds: float = 2.0
    """How long the broker of a chatd that was killed may hold on to the state folder."""
    relayed_line_bytes: int = 65_536
    """The longest line a worker may say to the parent."""

    @property
    def vanished_seconds(self) -> int:
        """After how many seconds of silence, in which it was asked, the client of a stream has vanished."""
        return self.keepalive_seconds + self.keepalive_again_seconds * self.keepalive_probes

    @property
    def keeps_history(self) -> bool:
        """Whether there is any history."""
        return self.history > 0 and self.history_ttl > 0

    @property
    def history_seconds(self) -> int:
        """How long the broker keeps history and places, in whole seconds."""
        return max(1, round(self.history_ttl))

    @property
    def room_seconds(self) -> int:
        """How long the broker remembers a silent room: no shorter than its history."""
        return max(self.room_memory_seconds, self.history_seconds)


def options() -> list[Field[Any]]:
    """List the fields of Config that ``twistd chatd`` takes as options, in their order."""
    return [each for each in fields(Config) if each.metadata]
