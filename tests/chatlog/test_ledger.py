"""What is wrong between histories and logs, and what is not."""

from chatd.chatlog.line import read_line
from chatd.chatlog.verify import Ledger
from chatd.protocol.message import Batch
from tests.chatlog.streams import batch, lines, message, outcome
from tests.rows import rows


def faults(batches: list[Batch], log: str) -> list[str]:
    """Return the faults that a ledger finds in histories and a log."""
    ledger = Ledger()
    for added in batches:
        ledger.add_batch(added)
    for data in log.encode().splitlines():
        line = read_line(data)
        assert line
        ledger.add_line(line)
    return [str(fault) for fault in ledger.faults()]


ONE = message("w.1.1")
TWO = message("w.1.2", "a\\b\n\x1b é")


OTHER = message(ONE.id, "other")
PLACE = "room ops, epoch e1, offset 1, id w.1.1"


@rows(
    ("batches", "log", "expected"),
    [
        ([batch(1, ONE, TWO)], lines([ONE, TWO]), []),
        ([batch(7, ONE, TWO)], lines([ONE]), ["missing: room ops, epoch e1, offset 8, id w.1.2"]),
        ([batch(1, ONE)], lines([ONE], "dev"), [f"missing: {PLACE}"]),
        ([batch(1, ONE)], lines([ONE, ONE]), [f"double: {PLACE}: 2 lines in the logs"]),
        (
            [batch(1, ONE), batch(2, ONE)],
            lines([ONE]),
            ["double: room ops, epoch e1, offset 2, id w.1.1: also at offset 1"],
        ),
        ([batch(5, ONE), batch(1, ONE, epoch="e2")], lines([ONE]), []),
        (
            [batch(5, ONE), batch(1, OTHER, epoch="e2")],
            lines([ONE]),
            ["differs: room ops, epoch e2, offset 1, id w.1.1: two histories differ"],
        ),
        ([batch(1, ONE)], lines([OTHER]), [f"differs: {PLACE}: the log has another text"]),
        ([batch(1, ONE)], lines([ONE]) + outcome(ONE.id, "refused"), [f"denied: {PLACE}: the log says refused"]),
        ([batch(1, ONE)], lines([ONE]) + outcome(ONE.id, "duplicate"), [f"denied: {PLACE}: the log says duplicate"]),
        ([batch(1, ONE)], lines([ONE]) + outcome(ONE.id, "unknown"), []),
        ([batch(1, ONE)], lines([ONE, TWO, TWO]) + outcome(TWO.id, "refused"), []),
        ([batch(1, message("\x1b[2J"))], "", ["missing: room ops, epoch e1, offset 1, id \\x1b[2J"]),
    ],
)
def test_each_difference_of_histories_and_logs_is_a_fault(batches: list[Batch], log: str, expected: list[str]) -> None:
    assert faults(batches, log) == expected


def test_what_is_no_batch_is_unreadable() -> None:
    ledger = Ledger()
    ledger.add_unreadable("ops", "e1", "5-0", "why")
    assert [str(fault) for fault in ledger.faults()] == ["unreadable: room ops, epoch e1, offset 5-0: why"]


def test_rooms_and_messages_are_counted() -> None:
    ledger = Ledger()
    for added in (batch(1, ONE, TWO), batch(1, ONE, room="dev"), batch(1, TWO, epoch="e2")):
        ledger.add_batch(added)
    assert (ledger.rooms, ledger.messages) == (2, 3)
