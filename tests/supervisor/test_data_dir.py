import os
import shutil
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from chatd.config.values import BadValue
from chatd.supervisor.data_dir import DataDir


def taken(folder: Path, *, lock_seconds: float = 0) -> DataDir:
    state = DataDir(str(folder), lock_seconds)
    state.acquire()
    return state


def filled(folder: Path) -> str:
    """Use a folder as a broker does, and leave it; give the lineage."""
    state = taken(folder)
    (state.broker / "appendonlydir").mkdir(exist_ok=True)
    (state.broker / "appendonlydir" / "appendonly.aof.1.incr.aof").touch()
    state.release()
    return state.lineage


def lineage(folder: Path) -> str:
    state = taken(folder)
    state.release()
    return state.lineage


# Who may use it


def test_it_is_made_with_a_folder_for_the_broker_alone(tmp_path: Path) -> None:
    state = taken(tmp_path / "not" / "there")
    assert state.broker == tmp_path / "not" / "there" / "broker"
    assert stat.S_IMODE(state.broker.stat().st_mode) == 0o700
    state.release()


def test_a_folder_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    (tmp_path / "broker").mkdir(mode=0o755)
    state = taken(tmp_path)
    assert stat.S_IMODE(state.broker.stat().st_mode) == 0o700
    state.release()


def test_one_that_is_in_use_is_refused(tmp_path: Path) -> None:
    first = taken(tmp_path)
    for attempt in (DataDir(str(tmp_path), 0).acquire, DataDir(str(tmp_path), 0).check):
        with pytest.raises(BadValue, match=rf"^--data-dir {tmp_path} is in use by another chatd$"):
            attempt()
    first.release()


def test_one_that_was_released_may_be_taken(tmp_path: Path) -> None:
    taken(tmp_path).release()
    DataDir(str(tmp_path), 0).check()
    taken(tmp_path).release()


def test_it_is_in_use_while_a_child_lives_that_inherited_the_lock_and_who_comes_next_waits(tmp_path: Path) -> None:
    first = taken(tmp_path)
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, pass_fds=[first.lock]) as child:
        first.release()
        with pytest.raises(BadValue, match="is in use"):
            taken(tmp_path)
        following = DataDir(str(tmp_path), 20)
        waiting = threading.Thread(target=following.acquire)
        waiting.start()
        child.kill()
        waiting.join(20)
    assert following.lock >= 0
    following.release()


def test_a_look_makes_nothing(tmp_path: Path) -> None:
    DataDir(str(tmp_path / "not" / "there"), 0).check()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/state", "file/deep/state"])
def test_one_that_cannot_be_made_is_refused_with_the_reason(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadValue, match=rf"^--data-dir {tmp_path}/{place} cannot be used: {tmp_path}/file cannot be"):
        DataDir(str(tmp_path / place), 0).check()
    with pytest.raises(BadValue, match=rf"^--data-dir {tmp_path}/{place} cannot be used: "):
        taken(tmp_path / place)


def test_one_that_was_never_taken_can_be_released(tmp_path: Path) -> None:
    DataDir(str(tmp_path), 0).release()
    assert list(tmp_path.iterdir()) == []


# The lineage


def test_it_goes_on_from_stop_to_start(tmp_path: Path) -> None:
    assert [filled(tmp_path), lineage(tmp_path)] == [lineage(tmp_path)] * 2


def test_it_goes_on_where_everything_was_killed(tmp_path: Path) -> None:
    before = filled(tmp_path)
    killed = taken(tmp_path)
    os.close(killed.lock)
    assert lineage(tmp_path) == before


def test_it_goes_on_in_a_folder_that_was_moved(tmp_path: Path) -> None:
    before = filled(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert lineage(tmp_path / "there") == before


def test_two_folders_have_two(tmp_path: Path) -> None:
    assert filled(tmp_path / "one") != filled(tmp_path / "other")


def test_a_restored_copy_has_another_after_it_was_told_so(tmp_path: Path) -> None:
    before = filled(tmp_path / "state")
    shutil.copytree(tmp_path / "state", tmp_path / "restored")
    DataDir(str(tmp_path / "restored"), 0).begin_new_lineage()
    after = lineage(tmp_path / "restored")
    assert after not in ("", before)
    assert [lineage(tmp_path / "restored"), lineage(tmp_path / "state")] == [after, before]


def test_a_new_lineage_needs_a_state_folder_that_is_not_in_use(tmp_path: Path) -> None:
    with pytest.raises(BadValue, match=rf"^{tmp_path} is not a state folder of chatd$"):
        DataDir(str(tmp_path), 0).begin_new_lineage()
    running = taken(tmp_path)
    with pytest.raises(BadValue, match=rf"^--data-dir {tmp_path} is in use by another chatd$"):
        DataDir(str(tmp_path), 0).begin_new_lineage()
    running.release()


def test_a_folder_whose_data_was_removed_has_another(tmp_path: Path) -> None:
    before = filled(tmp_path)
    shutil.rmtree(tmp_path / "broker" / "appendonlydir")
    assert lineage(tmp_path) != before


def test_a_file_that_holds_no_token_is_replaced(tmp_path: Path) -> None:
    before = filled(tmp_path)
    for content in (b"", b"\xff", b"\n"):
        (tmp_path / "broker" / "lineage").write_bytes(content)
        after = lineage(tmp_path)
        assert after not in (before, ""), content
        assert lineage(tmp_path) == after, content


def test_a_file_of_the_first_version_is_read(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "broker" / "lineage").write_text("0123456789abcdef 131 1795379625.000000000\n")
    assert lineage(tmp_path) == "0123456789abcdef"


def test_a_folder_in_which_none_can_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broker" / "lineage.new").mkdir(parents=True)
    with pytest.raises(BadValue, match=rf"^--data-dir {tmp_path} cannot be used: "):
        taken(tmp_path)


def test_a_half_written_one_changes_nothing(tmp_path: Path) -> None:
    before = filled(tmp_path)
    (tmp_path / "broker" / "lineage.new").write_text("hal")
    assert lineage(tmp_path) == before
