"""The histories of all rooms, read from the broker a step at a time.

Over a plain socket, and waiting for each answer: whoever verifies does one thing after the other, and a key that
interrupts it works at any time. ``broker/connection`` is for those who must go on whatever the broker does.
"""

import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import hiredis

from chatd.broker.credentials import password_of, sentinel_password, tls_context
from chatd.chatlog.ledger import Ledger
from chatd.chatlog.unreadable import Unreadable
from chatd.config.broker_url import BrokerAddress
from chatd.config.settings import Config
from chatd.config.values import BadValue
from chatd.protocol.message import decode


def read_histories(address: BrokerAddress, config: Config, ledger: Ledger) -> None:
    """Give all histories under ``config.redis_prefix`` to the ledger. Raises Unreadable."""
    try:
        where = _master(address, config) if address.sentinels else address
        with closing(_dial(where, config)) as connection:
            broker = _Broker(connection)
            if (password := password_of(address, config)) is not None:
                broker.ask("AUTH", *([address.user] if address.user else []), password)
            if address.database:
                broker.ask("SELECT", address.database)
            for key in _keys(broker, config):
                _read_history(broker, key, config, ledger)
    except (OSError, EOFError, BadValue, hiredis.HiredisError) as error:
        raise Unreadable(f"the broker {address} can't be read: {getattr(error, 'strerror', None) or error}") from error


def _master(address: BrokerAddress, config: Config) -> BrokerAddress:
    """Give the address of the server that the first Sentinel to answer names. Raises what the last one's trouble is."""
    trouble: Exception = EOFError("no Sentinel answers")
    for host, port in address.sentinels:
        try:
            with closing(_dial(replace(address, host=host, port=port), config)) as connection:
                sentinel = _Broker(connection)
                if (password := sentinel_password(config)) is not None:
                    sentinel.ask("AUTH", password)
                flat = sentinel.ask("SENTINEL", "MASTER", address.service)
        except (OSError, EOFError, hiredis.HiredisError) as error:
            trouble = error
        else:
            said = dict(zip(flat[::2], flat[1::2], strict=True))
            return replace(address, host=said[b"ip"].decode(), port=int(said[b"port"]))
    raise trouble


def _dial(address: BrokerAddress, config: Config) -> socket.socket:
    """Connect; what is sent and received over it then has as long each time."""
    if address.path:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(config.bus_connect_seconds)
        connection.connect(address.path)
        return connection
    connection = socket.create_connection((address.host, address.port), config.bus_connect_seconds)
    if address.tls:
        return tls_context(config).wrap_socket(connection, server_hostname=address.host)
    return connection


class _Broker:
    """A connection on which one command waits for the other's answer."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reader = hiredis.Reader()

    def ask(self, *command: str | bytes | int) -> Any:
        """Send a command; give its answer. Raises OSError, EOFError or HiredisError."""
        self._connection.sendall(hiredis.pack_command(command))  # type: ignore[arg-type]
        while (answer := self._reader.gets()) is False:
            data = self._connection.recv(65536)
            if not data:
                raise EOFError("it hung up")
            self._reader.feed(data)
        if isinstance(answer, Exception):
            raise answer
        return answer


def _keys(broker: _Broker, config: Config) -> Iterator[bytes]:
    """Give the key of each history once; a scan may give one several times."""
    seen: set[bytes] = set()
    cursor = b"0"
    while True:
        pattern = f"{config.redis_prefix}:history:*"
        cursor, keys = broker.ask("SCAN", cursor, "MATCH", pattern, "COUNT", config.verify_keys, "TYPE", "stream")
        new = set(keys) - seen
        seen |= new
        yield from new
        if cursor == b"0":
            return


def _read_history(broker: _Broker, key: bytes, config: Config, ledger: Ledger) -> None:
    name = key.decode("utf-8", "backslashreplace").removeprefix(f"{config.redis_prefix}:history:")
    epoch, _, room = name.partition(":")
    after = b"-"
    while entries := broker.ask("XRANGE", key, after, "+", "COUNT", config.verify_entries):
        for id, fields in entries:
            try:
                batch = decode(room, fields[fields.index(b"b") + 1])
                if batch.epoch != epoch:
                    raise ValueError(f"it is of epoch {batch.epoch}")
            except ValueError as error:
                ledger.add_unreadable(room, epoch, id.decode(), str(error))
            else:
                ledger.add_batch(batch)
        after = b"(" + entries[-1][0]
