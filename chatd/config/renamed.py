"""Earlier names and places of options. They are accepted in this release, each with a warning."""

from collections.abc import Mapping, Sequence

MOVED: Mapping[str, str] = {
    "[listen] hsts_max_age": "hsts_max_age",
    "[limits] worker_connections": "worker_connections",
    "[limits] message_burst": "message_burst",
    "[limits] byte_rate": "byte_rate",
    "[limits] connections_per_address": "connections_per_address",
    "[limits] connection_rate": "connection_rate",
    "[limits] request_rate": "request_rate",
    "[auth] require": "auth_require",
}
"""Old places in a configuration file, with the fields of Config that are in ``[tuning]`` now. The options and the
environment variables with the names of these fields are accepted too."""

RENAMED: Mapping[str, str] = {
    "origin": "allowed_origin",
    "host": "allowed_host",
    "hsts": "hsts_max_age",
    "revoked": "auth_revoked",
    "limit-messages": "message_rate",
    "limit-burst": "message_burst",
    "limit-bytes": "byte_rate",
    "limit-connections": "connections_per_address",
    "limit-arrivals": "connection_rate",
    "limit-rooms": "room_rate",
    "limit-handshakes": "handshake_rate",
    "limit-requests": "request_rate",
    "limit-address-messages": "address_message_rate",
    "limit-address-bytes": "address_byte_rate",
    "redis-ca": "redis_tls_ca",
    "redis-cert": "redis_tls_cert",
    "redis-key": "redis_tls_key",
    "sentinel-password-file": "redis_sentinel_password_file",
    "log-repeat": "log_repeat_interval",
    "state": "data_dir",
    "broker-memory": "redis_maxmemory",
    "max-message": "max_message_size",
    "bus-patience": "publish_timeout",
    "drain": "drain_timeout",
    "history": "history_size",
    "presence-limit": "presence_limit",
    "flush-interval": "flush_interval",
    "max-backlog": "max_send_buffer",
    "max-backlog-total": "worker_send_buffers",
    "max-rooms": "rooms_per_client",
    "max-connections-worker": "worker_connections",
    **{name.replace("_", "-"): name for name in MOVED.values()},
}
"""Old names, as on the command line, with the new fields of Config."""

MILLISECONDS = ("flush-interval",)
"""Old names whose values are numbers of milliseconds."""


def current_value(old: str, text: str) -> str:
    """Return the value of an old name as the new one takes it."""
    return f"{text}ms" if old in MILLISECONDS else text


def deprecation(old: str, new: str) -> str:
    """Return the warning about an old name."""
    return f"{old} is deprecated; use {new}"


def current_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return a command line with the new names of options, and a warning for each old one."""
    current, warnings = [], []
    for word in words:
        old, equals, value = word.partition("=")
        new = f"--{RENAMED[old[2:]].replace('_', '-')}" if old[2:] in RENAMED and old.startswith("--") else old
        current.append(f"{new}{equals}{value}")
        if new != old:
            warnings.append(deprecation(old, new))
    return current, warnings
