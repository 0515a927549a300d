"""The options of ``twistd chatd``, each with its section, parser, default and help, and the class ``Config``."""

from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, field, fields
from functools import cache
from typing import Any, get_type_hints

from chatd.config.broker_url import broker_address
from chatd.config.tuning import Tuning
from chatd.config.values import (
    BadValue,
    duration,
    file_path,
    folder_path,
    key_prefix,
    log_path,
    one_line,
    one_of,
    rate,
    shown_duration,
    shown_size,
    size,
    size_or,
    switch,
    whole_number,
)

LOOPBACK_LISTEN = ("tcp:3000:interface=127.0.0.1", r"tcp:3000:interface=\:\:1")
"""The listeners without ``--listen``; the second is left out on hosts without IPv6."""


@dataclass(frozen=True)
class Option:
    """One option: its name, its place in a configuration file, and the parser of its value."""

    name: str
    """Its field of Config."""
    default: Any
    section: str
    """Its section in a configuration file; empty for options before the first section."""
    key: str
    """Its key there."""
    parse: Callable[[str], Any]
    """Returns one value of it, or raises BadValue."""
    value: str = ""
    """The kind of its value, as the help shows it: DURATION, FILE. Empty for a switch."""
    help: str = ""
    default_help: str = ""
    """The default in words; empty to show the value."""

    @property
    def flag(self) -> str:
        """Return its name on the command line, without the dashes in front."""
        return self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Return its environment variable."""
        return f"CHATD_{self.name.upper()}"

    @property
    def place(self) -> str:
        """Return its place in a configuration file, for messages."""
        return f"[{self.section}] {self.key}" if self.section else self.key

    @property
    def is_list(self) -> bool:
        """Return whether it may be given several times."""
        return isinstance(self.default, tuple)

    @property
    def is_switch(self) -> bool:
        """Return whether it has no value on the command line."""
        return self.parse is switch

    @property
    def takes_number(self) -> bool:
        """Return whether its value may be a number in a configuration file."""
        return self.value in ("COUNT", "DURATION", "SIZE", "LIMIT", "NUMBER", "WHEN")

    @property
    def shown_default(self) -> str:
        """Return the default as the help shows it."""
        if self.default_help:
            return self.default_help
        if self.is_switch:
            return "on" if self.default else "off"
        if self.value in ("DURATION", "SIZE") and not isinstance(self.default, str):
            return (shown_duration if self.value == "DURATION" else shown_size)(self.default)
        return str(self.default) if self.default not in ("", ()) else "none"


def _option(default: Any, place: str, value: str, parse: Callable[[str], Any], text: str, *, shown: str = "") -> Any:
    """Describe an option. Place is its section and key; shown is its default in words."""
    section, _, key = place.rpartition(".")
    about = {"section": section, "key": key, "value": value, "parse": parse, "help": text, "default_help": shown}
    return field(default=default, metadata=about)


def _broker_url(text: str) -> str:
    broker_address(text)
    return text


_SEVERAL = "May be given several times."


@dataclass(frozen=True)
class Config(Tuning):
    """The configuration of a chatd: its options and the internal bounds. It is sent to every worker."""

    workers: int = _option(
        0,
        "workers",
        "COUNT",
        whole_number(0, 256, "use 0 for one per core"),
        "Number of worker processes. 0 starts one per CPU core, and at least two.",
    )
    data_dir: str = _option(
        "",
        "data_dir",
        "DIR",
        folder_path,
        "Keep history and resume positions of the private Valkey in this folder over restarts. "
        "It is not used with --redis.",
        shown="none; nothing is kept",
    )
    drain_timeout: float = _option(
        30.0,
        "drain_timeout",
        "DURATION",
        duration(0, 3600),
        "Time within which a reload closes the connections of the old workers, each at a random moment, with close "
        "code 1012.",
    )
    ping_interval: float = _option(
        25.0,
        "ping_interval",
        "DURATION",
        duration(0.1, 86400),
        "Send a WebSocket ping to a client that has sent nothing for this time.",
    )
    pong_timeout: float = _option(
        10.0,
        "pong_timeout",
        "DURATION",
        duration(0.1, 86400),
        "Close a client that has not answered a ping within this time.",
    )
    compress: bool = _option(
        False,
        "compress",
        "",
        switch,
        "Compress WebSocket messages of clients that offer permessage-deflate.",
    )
    history_size: int = _option(
        1000,
        "history_size",
        "COUNT",
        whole_number(0, 1_000_000),
        "Messages kept per room for clients that return, read slowly or missed some. 0 keeps none.",
    )
    history_ttl: float = _option(
        86400.0,
        "history_ttl",
        "DURATION",
        duration(0, 31_536_000),
        "Time for which messages stay in the history of their room. 0 keeps none.",
    )
    listen: tuple[str, ...] = _option(
        (),
        "listen.address",
        "ADDRESS",
        str,
        "Listen on this address: PORT, :PORT, HOST:PORT, [IPV6]:PORT, or a Twisted endpoint string such as unix:PATH, "
        f"systemd:name=chatd or haproxy:tcp:PORT. {_SEVERAL}",
        shown="127.0.0.1:3000 and [::1]:3000",
    )
    metrics_listen: tuple[str, ...] = _option(
        (),
        "listen.metrics",
        "ADDRESS",
        str,
        "Serve /-/metrics and health checks on this address, in the forms of --listen but without --tls-cert, and "
        f"/-/metrics nowhere else. {_SEVERAL}",
        shown="none; /-/metrics is served on every --listen address",
    )
    tls_cert: str = _option(
        "",
        "listen.tls_cert",
        "FILE",
        file_path,
        "Serve TLS on every --listen address that is not an endpoint string, with the certificates (PEM) in this file. "
        "The file is read again at a reload.",
        shown="none; no TLS",
    )
    tls_key: str = _option(
        "",
        "listen.tls_key",
        "FILE",
        file_path,
        "File with the private key (PEM) of --tls-cert.",
        shown="the file of --tls-cert",
    )
    allowed_host: tuple[str, ...] = _option(
        (),
        "listen.allowed_host",
        "NAME",
        str,
        "Accept only requests whose Host header is this name or address of the server, and answer others with 403. "
        f"{_SEVERAL}",
        shown="any name; on loopback addresses without --trusted-proxy only loopback names and this machine's name",
    )
    allowed_origin: tuple[str, ...] = _option(
        (),
        "listen.allowed_origin",
        "ORIGIN",
        str,
        "Accept requests of web pages of this origin, as those of the server's own pages: https://chat.example.org, "
        f"https://*.example.org (all hosts below it) or * (all). {_SEVERAL}",
    )
    trusted_proxy: tuple[str, ...] = _option(
        (),
        "listen.trusted_proxy",
        "ADDRESS",
        str,
        "Trust this proxy to report the addresses of clients (X-Forwarded-For, PROXY protocol). ADDRESS is the proxy's "
        f"address, its network such as 10.0.0.0/8, or unix for proxies on a unix socket. {_SEVERAL}",
    )
    redis: tuple[str, ...] = _option(
        (),
        "redis.url",
        "URL",
        _broker_url,
        "Share rooms with all chatds on this Redis or Valkey server: redis://[user:password@]host[:port][/db], "
        "rediss://… (TLS), unix:///path, or redis+sentinel://[user:password@]host[:port],host[:port],…/service[/db]. "
        "Given several times, it spreads the rooms over all servers.",
        shown="none; chatd runs a private Valkey",
    )
    redis_prefix: str = _option(
        "chatd",
        "redis.prefix",
        "TEXT",
        key_prefix,
        "Prefix of every key and channel on the Redis server. Only chatds with the same prefix share rooms.",
    )
    redis_password_file: str = _option(
        "",
        "redis.password_file",
        "FILE",
        file_path,
        "File with the password of the Redis server, in place of a password in the URL. It is read at each connection.",
    )
    redis_tls_ca: str = _option(
        "",
        "redis.tls_ca",
        "FILE",
        file_path,
        "File with the CA certificates (PEM) that verify the certificate of a rediss:// server.",
        shown="those that this system trusts",
    )
    redis_tls_cert: str = _option(
        "",
        "redis.tls_cert",
        "FILE",
        file_path,
        "File with the client certificate (PEM) that chatd presents to a rediss:// server.",
    )
    redis_tls_key: str = _option(
        "", "redis.tls_key", "FILE", file_path, "File with the private key (PEM) of --redis-tls-cert."
    )
    redis_sentinel_password_file: str = _option(
        "",
        "redis.sentinel_password_file",
        "FILE",
        file_path,
        "File with the password that the Sentinels themselves require, with redis+sentinel://.",
    )
    redis_maxmemory: str = _option(
        "auto",
        "redis.maxmemory",
        "SIZE",
        size_or("auto", "32MiB", "512MiB"),
        "Maximum memory of the private Valkey; before it is full, chatd drops the histories of the rooms that were "
        "silent for the longest. auto is a quarter of the memory of this host or container, and at least 64MiB.",
    )
    max_message_size: int = _option(
        16384,
        "limits.max_message_size",
        "SIZE",
        size(1, 1_048_576),
        "Maximum size of one message, as UTF-8.",
    )
    max_connections: int = _option(
        0,
        "limits.max_connections",
        "COUNT",
        whole_number(0, 100_000_000),
        "Maximum connections of all workers together, divided evenly among the workers; further connections are "
        "answered with 503. 0 sets no limit other than [tuning] worker_connections.",
    )
    max_send_buffer: int = _option(
        1_048_576,
        "limits.max_send_buffer",
        "SIZE",
        size(65_536, 1_073_741_824),
        "Maximum data in the send buffer of one client; a slower client gets the rest from history as it reads. "
        "Without history (--history-size 0) a pipe is closed with close code 1013, and others are told of the gap.",
    )
    message_rate: str = _option(
        "auto",
        "limits.message_rate",
        "LIMIT",
        rate,
        "Maximum messages per client and second. auto is 5 on listeners that other hosts can reach, off on loopback "
        "and unix sockets.",
    )
    auth_key: tuple[str, ...] = _option(
        (),
        "auth.key",
        "FILE",
        file_path,
        "Require a token (JWT) from every client and verify it with the key in this file: a public key (PEM), "
        f"a key set (JWKS) or a secret. {_SEVERAL}",
        shown="none; no tokens",
    )
    auth_issuer: str = _option(
        "", "auth.issuer", "TEXT", one_line, "Accept only tokens with this iss claim.", shown="any issuer"
    )
    auth_audience: str = _option(
        "",
        "auth.audience",
        "TEXT",
        one_line,
        "Accept only tokens with this aud claim.",
        shown="only tokens without an aud claim",
    )
    auth_revoked: str = _option(
        "",
        "auth.revoked",
        "FILE",
        file_path,
        "Refuse the tokens that this file names, one `sub NAME` or `jti ID` a line, and close their connections. "
        "The file is read again when it changes.",
    )
    ban_list: str = _option(
        "",
        "auth.ban_list",
        "FILE",
        file_path,
        "Refuse connections from the addresses and networks in this file, one a line. "
        "The file is read again when it changes.",
    )
    chat_log: str = _option(
        "logs/chat.log",
        "chat_log.file",
        "FILE",
        log_path,
        "File to which every message is appended before it is delivered.",
    )
    chat_log_format: str = _option(
        "text",
        "chat_log.format",
        "FORMAT",
        one_of("text", "json"),
        "Format of the chat log: text, or json with one object a line. One file may contain both.",
    )
    chat_log_sync: str = _option(
        "none",
        "chat_log.sync",
        "MODE",
        one_of("none", "batch"),
        "When the chat log is forced to disk: batch, before each batch of messages is delivered; none, when the kernel "
        "writes the file. With none, a power failure may lose the messages of the last half minute.",
    )
    chat_log_rotate: str = _option(
        "",
        "chat_log.rotate",
        "WHEN",
        size_or("day", "10kB", "100MB"),
        "Rotate and compress the chat log. WHEN is a SIZE of at least 10kB, or day for every day at 00:00 UTC.",
        shown="none; chatd does not rotate it",
    )
    chat_log_keep: int = _option(
        0,
        "chat_log.keep",
        "COUNT",
        whole_number(0, 1_000_000),
        "Number of rotated chat logs that are kept. 0 keeps all.",
    )
    log_level: str = _option(
        "info",
        "log.level",
        "LEVEL",
        one_of("debug", "info", "warn", "error"),
        "Lowest level of events in the server's own log: debug, info, warn or error.",
    )
    log_format: str = _option(
        "text",
        "log.format",
        "FORMAT",
        one_of("text", "json"),
        "Format of the server's own log: text, or json with one object a line.",
    )

    @property
    def connections_per_worker(self) -> int:
        """Return the maximum connections of one worker: its share of all, and at most ``worker_connections``."""
        share = self.max_connections // self.workers if self.max_connections else self.worker_connections
        return max(1, min(share, self.worker_connections))

    @property
    def vanished_seconds(self) -> int:
        """Return the seconds without an answer to keepalive probes after which the client of a stream is gone."""
        return self.tcp_keepalive_time + self.tcp_keepalive_interval * self.tcp_keepalive_probes

    @property
    def keeps_history(self) -> bool:
        """Return whether rooms have a history."""
        return self.history_size > 0 and self.history_ttl > 0

    @property
    def history_seconds(self) -> int:
        """Return for how long the broker keeps history and resume positions, in whole seconds."""
        return max(1, round(self.history_ttl))

    @property
    def room_seconds(self) -> int:
        """Return for how long the broker remembers a silent room: at least as long as its history."""
        return max(self.room_offset_ttl, self.history_seconds)


SECTIONS = {
    "": "General",
    "listen": "Listening",
    "redis": "Redis or Valkey",
    "limits": "Limits",
    "auth": "Access control",
    "chat_log": "Chat log",
    "log": "Server log",
    "tuning": "Internal bounds",
}
"""The sections of a configuration file in their order, with their titles in the help."""


def _as_option(declared: Field[Any]) -> Option:
    return Option(declared.name, declared.default, **declared.metadata)


@cache
def options() -> Sequence[Option]:
    """Return the options of ``twistd chatd`` in their order."""
    return tuple(_as_option(declared) for declared in fields(Config) if declared.metadata)


@cache
def bounds() -> Sequence[Option]:
    """Return the internal bounds, each as an option of the section ``[tuning]``."""
    kinds = get_type_hints(Tuning, include_extras=True)
    found = []
    for declared in fields(Tuning):
        kind, value, parse = kinds[declared.name].__metadata__
        found.append(Option(declared.name, declared.default, "tuning", declared.name, parse, value, kind))
    return tuple(found)


def split_bound(text: str) -> tuple[Option, str]:
    """Return the internal bound that is given as ``NAME=VALUE``, and its value as text. Raise BadValue."""
    name, has_value, value = text.partition("=")
    bound = next((bound for bound in bounds() if bound.name == name), None)
    if bound is None or not has_value:
        raise BadValue("use NAME=VALUE with a name of the section [tuning]")
    return bound, value
