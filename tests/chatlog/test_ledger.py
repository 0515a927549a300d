"""What is wrong between histories and logs, and what is not."""

from chatd.chatlog.line import read_line
from chatd.chatlog.verify import Ledger
from chatd.protocol.message import Batch
from tests.chatlog.streams import batch, lines, message, outcome


def faults(batches: list[Batch], log: str) -> list[str]:
    """Give what a ledger says of histories and a log."""
    ledger = Ledger()
    for each in batches:
        ledger.add_batch(each)
    for data in log.encode().splitlines():
        line = read_line(data)
        assert line
        ledger.add_line(line)
    return [str(each) for each in ledger.faults()]


ONE = message("w.1.1")
TWO = message("w.1.2", "a\\b\n\x1b é")


def test_messages_that_are_logged_once_are_well_whatever_their_text() -> None:
    assert faults([batch(1, ONE, TWO)], lines([ONE, TWO])) == []


def test_a_message_that_no_log_has_is_missing() -> None:
    assert faults([batch(7, ONE, TWO)], lines([ONE])) == ["missing: room ops, epoch e1, offset 8, id w.1.2"]


def test_a_message_with_two_lines_is_double() -> None:
    told = ["double: room ops, epoch e1, offset 1, id w.1.1: 2 lines in the logs"]
    assert faults([batch(1, ONE)], lines([ONE, ONE])) == told


def test_a_message_that_is_in_one_history_twice_is_double() -> None:
    told = ["double: room ops, epoch e1, offset 2, id w.1.1: also at offset 1"]
    assert faults([batch(1, ONE), batch(2, ONE)], lines([ONE])) == told


def test_a_message_may_be_in_two_epochs_of_a_room() -> None:
    assert faults([batch(5, ONE), batch(1, ONE, epoch="e2")], lines([ONE])) == []


def test_a_message_that_two_epochs_have_with_another_text_differs() -> None:
    other = message(ONE.id, "other")
    told = ["differs: room ops, epoch e2, offset 1, id w.1.1: two histories differ"]
    assert faults([batch(5, ONE), batch(1, other, epoch="e2")], lines([ONE])) == told


def test_a_message_that_the_log_has_with_another_text_differs() -> None:
    told = ["differs: room ops, epoch e1, offset 1, id w.1.1: the log has another text"]
    assert faults([batch(1, ONE)], lines([message(ONE.id, "other")])) == told


def test_a_message_that_the_log_has_in_another_room_is_missing() -> None:
    assert faults([batch(1, ONE)], lines([ONE], "dev")) == ["missing: room ops, epoch e1, offset 1, id w.1.1"]


def test_a_message_that_the_log_calls_refused_is_denied() -> None:
    told = ["denied: room ops, epoch e1, offset 1, id w.1.1: the log says refused"]
    assert faults([batch(1, ONE)], lines([ONE]) + outcome(ONE.id, "refused")) == told


def test_a_message_that_the_log_calls_a_duplicate_is_denied() -> None:
    told = ["denied: room ops, epoch e1, offset 1, id w.1.1: the log says duplicate"]
    assert faults([batch(1, ONE)], lines([ONE]) + outcome(ONE.id, "duplicate")) == told


def test_a_message_of_which_the_log_knows_no_outcome_is_well() -> None:
    assert faults([batch(1, ONE)], lines([ONE]) + outcome(ONE.id, "unknown")) == []


def test_lines_that_no_history_has_are_well() -> None:
    assert faults([batch(1, ONE)], lines([ONE, TWO, TWO]) + outcome(TWO.id, "refused")) == []


def test_what_is_no_batch_is_unreadable() -> None:
    ledger = Ledger()
    ledger.add_unreadable("ops", "e1", "5-0", "why")
    assert [str(each) for each in ledger.faults()] == ["unreadable: room ops, epoch e1, offset 5-0: why"]


def test_what_is_said_is_safe_for_a_terminal() -> None:
    [told] = faults([batch(1, message("\x1b[2J"))], "")
    assert told.endswith("id \\x1b[2J")


def test_rooms_and_messages_are_counted() -> None:
    ledger = Ledger()
    for each in (batch(1, ONE, TWO), batch(1, ONE, room="dev"), batch(1, TWO, epoch="e2")):
        ledger.add_batch(each)
    assert (ledger.rooms, ledger.messages) == (2, 3)
