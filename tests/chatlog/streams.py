"""Histories as the script that publishes keeps them, written by a test."""

from collections.abc import Sequence

from chatd.chatlog.line import LogEntry, message_lines, outcome_lines
from chatd.protocol.message import Batch, Message, encode
from tests.broker.server import Client

TIME = 1_795_379_625_123  # 2026-11-22T20:33:45.123Z


def message(id: str, text: str = "hello") -> Message:
    return Message(id, TIME, "s", text)


def batch(first: int, *messages: Message, room: str = "ops", epoch: str = "e1") -> Batch:
    return Batch(room, epoch, first, "w", first, messages)


def keep(client: Client, prefix: str, batch: Batch) -> None:
    """Append a batch to its room's history, in the bytes that were published."""
    data = f"{batch.epoch} {batch.first} {batch.publisher} {batch.sequence}\n".encode() + encode(batch.messages)
    client.ask("XADD", f"{prefix}:history:{batch.epoch}:{batch.room}", f"{batch.last}-0", "b", data)


def lines(messages: Sequence[Message], room: str = "ops") -> str:
    """Give the lines that a log has of messages."""
    return message_lines(LogEntry(room, "192.0.2.1", messages))


def outcome(id: str, what: str, room: str = "ops") -> str:
    """Give the second line of a message."""
    return outcome_lines(LogEntry(room, "192.0.2.1", [message(id)]), what, TIME)
