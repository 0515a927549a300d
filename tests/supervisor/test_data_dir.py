import ctypes
import os
import shutil
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from chatd.config.settings import BadValue
from chatd.supervisor.data_dir import DataDir
from tests.supervisor.children import Said


def taken(folder: Path, *, lock_seconds: float = 0) -> DataDir:
    state = DataDir(str(folder), lock_seconds)
    state.take()
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


def restore(backup: Path, folder: Path) -> None:
    """Copy a backup into the files that are there."""
    shutil.copytree(backup, folder, dirs_exist_ok=True)


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
    for attempt in (DataDir(str(tmp_path), 0).take, DataDir(str(tmp_path), 0).check):
        with pytest.raises(BadValue, match=rf"^--state {tmp_path} is in use by another chatd$"):
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
        waiting = threading.Thread(target=following.take)
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
    with pytest.raises(BadValue, match=rf"^--state {tmp_path}/{place} cannot be used: {tmp_path}/file cannot be"):
        DataDir(str(tmp_path / place), 0).check()
    with pytest.raises(BadValue, match=rf"^--state {tmp_path}/{place} cannot be used: "):
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


def test_a_copy_has_another_and_the_original_its_own(tmp_path: Path) -> None:
    before = filled(tmp_path / "original")
    shutil.copytree(tmp_path / "original", tmp_path / "copy")
    assert lineage(tmp_path / "copy") != before
    assert lineage(tmp_path / "original") == before


def test_a_backup_of_an_earlier_run_that_is_put_into_the_same_files_has_another(tmp_path: Path) -> None:
    before = filled(tmp_path / "state")
    for _ in range(3):  # inodes are used again by then
        shutil.copytree(tmp_path / "state", tmp_path / "backup", dirs_exist_ok=True)
        assert lineage(tmp_path / "state") == before
    restore(tmp_path / "backup", tmp_path / "state")
    assert lineage(tmp_path / "state") != before


def test_a_backup_of_the_run_that_stopped_last_has_another(tmp_path: Path) -> None:
    before = filled(tmp_path / "state")
    running = taken(tmp_path / "state")
    shutil.copytree(tmp_path / "state", tmp_path / "backup")
    running.release()
    restore(tmp_path / "backup", tmp_path / "state")
    assert lineage(tmp_path / "state") != before


def test_a_folder_whose_data_was_removed_has_another(tmp_path: Path) -> None:
    before = filled(tmp_path)
    shutil.rmtree(tmp_path / "broker" / "appendonlydir")
    assert lineage(tmp_path) != before


@pytest.mark.parametrize("content", [b"", b"\xff", b"token", b"token 1 2.3\n"])
def test_one_that_can_not_be_read_is_made_anew(tmp_path: Path, content: bytes) -> None:
    before = filled(tmp_path)
    (tmp_path / "broker" / "lineage").write_bytes(content)
    after = lineage(tmp_path)
    assert after not in (before, "", "token")
    assert lineage(tmp_path) == after


def test_on_a_full_disk_it_goes_on_and_the_log_says_so(tmp_path: Path, said: Said) -> None:
    before = filled(tmp_path)
    (tmp_path / "broker" / "lineage.new").mkdir()  # so that no file can be written
    assert lineage(tmp_path) == before
    [line] = said.lines
    assert line.startswith(f"warn: the lineage in {tmp_path}/broker stays as it is: ")


def test_a_folder_in_which_none_can_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broker" / "lineage.new").mkdir(parents=True)
    with pytest.raises(BadValue, match=rf"^--state {tmp_path} cannot be used: "):
        taken(tmp_path)


def test_a_half_written_one_changes_nothing(tmp_path: Path) -> None:
    before = filled(tmp_path)
    (tmp_path / "broker" / "lineage.new").write_text("hal")
    assert lineage(tmp_path) == before


def test_where_a_files_birth_is_not_known_its_inode_has_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    before = filled(tmp_path / "original")
    shutil.copytree(tmp_path / "original", tmp_path / "copy")
    assert lineage(tmp_path / "original") == before
    assert lineage(tmp_path / "copy") != before
