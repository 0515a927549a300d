"""The options of ``twistd chatd``: the default, unit, check and help of each, and the values as workers get them."""

from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from typing import Any

from chatd.config.broker_url import broker_address
from chatd.config.tuning import Tuning
from chatd.config.values import (
    byte_rate,
    file_path,
    folder_path,
    key_prefix,
    log_path,
    memory_size,
    milliseconds,
    one_line,
    one_of,
    rate,
    rotation,
    seconds,
    size_between,
    whole_number,
)

LOOPBACK_LISTEN = ("tcp:3000:interface=127.0.0.1", r"tcp:3000:interface=\:\:1")
"""Where chatd listens unless ``--listen`` says otherwise; the second is left out where there is no IPv6."""


def _broker_url(text: str) -> str:
    broker_address(text)
    return text


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
class Config(Tuning):
    """What a chatd runs with. Built by ``tap`` from the command line, sent to every worker."""

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
    auth_issuer: str = _option("", one_line, "Accept only tokens with this iss claim. [default: none; any issuer]")
    auth_audience: str = _option(
        "", one_line, "Accept only tokens with this aud claim. [default: none; only tokens without an aud claim]"
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
        rate,
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
        byte_rate,
        f"Maximum message text per client, in bytes per second. auto: 65536 {_HERE_OFF}",
        "bytes/s",
        NUMBER_OR_TEXT,
    )
    limit_connections: str = _option(
        "auto",
        rate,
        f"Maximum open connections per address (IPv6: per /64 network). auto: 250 {_HERE_OFF}",
        "connections",
        NUMBER_OR_TEXT,
    )
    limit_arrivals: str = _option(
        "auto",
        rate,
        f"Maximum new connections per address and minute. auto: 600 {_HERE_OFF}",
        "connections/min",
        NUMBER_OR_TEXT,
    )
    limit_rooms: str = _option(
        "auto",
        rate,
        f"Maximum new rooms per address and minute: rooms that its clients enter first. auto: 120 {_HERE_OFF}",
        "rooms/min",
        NUMBER_OR_TEXT,
    )
    limit_handshakes: str = _option(
        "auto",
        rate,
        f"Maximum new connections per worker and second, from all addresses together. auto: 1000 {_HERE_OFF}",
        "connections/s",
        NUMBER_OR_TEXT,
    )
    limit_requests: str = _option(
        "auto",
        rate,
        "Maximum requests per address and second, averaged over 10 seconds: HTTP requests and reads by WebSocket "
        f"clients, and one more for each 64 KiB of text that is read. auto: 20 {_HERE_OFF}",
        "requests/s",
        NUMBER_OR_TEXT,
    )
    limit_address_messages: str = _option(
        "auto",
        rate,
        f"Maximum messages per second of all clients of one address together. auto: 100 {_HERE_OFF}",
        "messages/s",
        NUMBER_OR_TEXT,
    )
    limit_address_bytes: str = _option(
        "auto",
        byte_rate,
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
        key_prefix,
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
        "logs/chat.log", log_path, "File to which every message is appended before it is delivered to anyone."
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
        rotation,
        "When to rotate and compress the chat log: at a size (100MB, 1GiB; at least 10kB) or daily at 00:00 UTC (day). "
        "[default: none; logrotate may do it]",
        toml=NUMBER_OR_TEXT,
    )
    chat_log_keep: int = _option(
        0, whole_number(0, 1_000_000), "Number of rotated chat logs that are kept, the newest. 0 keeps all.", "files"
    )
    state: str = _option(
        "",
        folder_path,
        "Folder in which the private Valkey keeps history and resume positions over restarts. "
        "It is ignored with --redis. [default: none; nothing is kept]",
    )
    broker_memory: str = _option(
        "auto",
        memory_size,
        "Maximum memory of the private Valkey, such as 512MiB; before it is full, the histories of the longest silent "
        "rooms are dropped. auto: a quarter of the memory of this host or container, and at least 64MiB.",
        toml=NUMBER_OR_TEXT,
    )
    max_message: int = _option(
        16384,
        size_between(1, 1_048_576),
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
        size_between(65_536, 1_073_741_824),
        "Maximum data that waits for one client; a client that reads more slowly gets the rest from history as it "
        "reads. Without history it is closed with 1013 once it has read what waits.",
        "bytes",
        NUMBER_OR_TEXT,
    )
    max_backlog_total: int = _option(
        268_435_456,
        size_between(65_536, 1_099_511_627_776),
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

    @property
    def worker_connections(self) -> int:
        """How many connections a worker may have: its share of all, and no more than one worker may."""
        share = self.max_connections // self.workers if self.max_connections else self.max_connections_worker
        return max(1, min(share, self.max_connections_worker))

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
