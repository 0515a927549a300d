import subprocess
import sys

import pytest

from chatd.runtime.connection_limit import SLOTS, ConnectionCount


def test_what_one_process_writes_others_add_up() -> None:
    ours = ConnectionCount.create()
    slots = [ours.take() for _ in range(3)]
    assert len(set(slots)) == 3
    code = "from chatd.runtime.connection_limit import ConnectionCount\n"
    code += f"ConnectionCount({ours.descriptor}).write({slots[1]}, 7)"
    subprocess.run([sys.executable, "-c", code], pass_fds=[ours.descriptor], check=True)
    ours.write(slots[0], 5)
    assert ours.total() == 12


def test_who_has_ended_is_not_counted_and_leaves_its_slot() -> None:
    connection_count = ConnectionCount.create()
    slot = connection_count.take()
    connection_count.write(slot, 5)
    connection_count.free(slot)
    assert connection_count.total() == 0
    assert connection_count.take() == slot


def test_there_are_slots_for_all_workers_that_there_may_be() -> None:
    connection_count = ConnectionCount.create()
    for _ in range(SLOTS - 1):
        connection_count.write(connection_count.take(), 1)
    assert connection_count.total() == SLOTS - 1
    with pytest.raises(IndexError):
        connection_count.take()
