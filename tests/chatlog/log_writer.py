"""A process that appends batches to a chat log, run by test_chatlog: PATH NAME BATCHES SIZE; 0 batches: until SIGTERM.

It says a line on stdout when it has written its first batch, and at its end how many there were. Each tenth batch
it looks whether the file moved.
"""

import signal
import sys

from twisted.logger import Logger

from chatd.chatlog.line import LogEntry
from chatd.chatlog.writer import ChatLog, LogBusy, log_entries
from chatd.protocol.message import Message
from tests.fakes import Events

MESSAGES = 3
"""Messages in a batch."""


def main(path: str, name: str, batches: int, size: int) -> None:
    chat_log = ChatLog(path, Logger(observer=Events()), lock_seconds=30, spin_seconds=0.01)
    chat = Logger(observer=chat_log)
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    batch = 0
    while batch < batches if batches else not told:
        texts = [f"{name} {batch} {number} {'x' * size}" for number in range(MESSAGES)]
        entries = [LogEntry("ops", "192.0.2.1", [Message(name, 0, name, text)]) for text in texts]
        while True:
            try:
                log_entries(chat, entries)
                break
            except LogBusy:  # a worker goes on with something else
                continue
        if batch == 0:
            print("writing", flush=True)
        if batch % 10 == 0:
            chat_log.check()
        batch += 1
    chat_log.close()
    print(batch)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
