import subprocess
import sys

import pytest

from chatd.runtime.connection_limit import SLOTS, Headcount


def test_what_one_process_writes_others_add_up() -> None:
    ours = Headcount.create()
    slots = [ours.take() for _ in range(3)]
    assert len(set(slots)) == 3
    code = f"from chatd.runtime.connection_limit import Headcount; Headcount({ours.descriptor}).write({slots[1]}, 7)"
    subprocess.run([sys.executable, "-c", code], pass_fds=[ours.descriptor], check=True)
    ours.write(slots[0], 5)
    assert ours.total() == 12


def test_who_has_ended_is_not_counted_and_leaves_its_slot() -> None:
    headcount = Headcount.create()
    slot = headcount.take()
    headcount.write(slot, 5)
    headcount.free(slot)
    assert headcount.total() == 0
    assert headcount.take() == slot


def test_there_are_slots_for_all_workers_that_there_may_be() -> None:
    headcount = Headcount.create()
    for _ in range(SLOTS - 1):
        headcount.write(headcount.take(), 1)
    assert headcount.total() == SLOTS - 1
    with pytest.raises(IndexError):
        headcount.take()
