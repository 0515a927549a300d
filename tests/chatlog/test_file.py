"""What the chat log may be. That a start and a reload are refused: tests/system/test_start.py."""

import errno
import os
import socket
from pathlib import Path

import pytest

from chatd.chatlog import file
from chatd.chatlog.file import ADVICE, check_log
from chatd.config.values import BadValue


def refusal(path: str | Path, *, make: bool = True) -> str:
    with pytest.raises(BadValue) as caught:
        check_log(str(path), make=make)
    return str(caught.value)


def test_a_file_that_is_not_there_is_made_with_its_folder_for_owner_and_group(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "chat.log"
    check_log(str(path))
    path.write_text("a line\n")
    check_log(str(path))
    assert path.read_text() == "a line\n"
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_link_to_a_file_and_the_null_device_are_fine(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("chat.log")
    check_log(str(tmp_path / "link"))
    check_log(os.devnull)
    assert sorted(each.name for each in tmp_path.iterdir()) == [".chat.log.lock", "chat.log", "link"]


def test_what_is_no_file_on_a_disk_is_refused_and_told_what_to_use(tmp_path: Path) -> None:
    pipe, link, listening = tmp_path / "pipe", tmp_path / "link", tmp_path / "socket"
    os.mkfifo(pipe)
    link.symlink_to("/dev/stdout")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(listening))
    refused: tuple[tuple[str | Path, str], ...] = (
        (pipe, "it is no file on a disk"),
        (listening, "No such device or address"),
        ("/dev/full", "it is no file on a disk"),
        (link, "it is no file on a disk"),
        *((each, "it is no file on a disk") for each in ("/dev/stdout", "/dev/stderr", "/dev/fd/1")),
    )
    for path, why in refused:
        for make in (True, False):
            assert refusal(path, make=make) == f"--chat-log {path} cannot be used: {why}; {ADVICE}"


def test_a_folder_that_is_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "chat.log"
    assert refusal(path) == f"--chat-log {path} cannot be used: File exists: {tmp_path}/file"


def test_it_can_be_checked_without_making_anything(tmp_path: Path) -> None:
    for name in ("chat.log", "new/logs/chat.log"):
        check_log(str(tmp_path / name), make=False)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "new" / "chat.log"
    assert refusal(path, make=False).startswith(f"--chat-log {path} cannot be used: Not a directory")
    (tmp_path / ".file.lock").mkdir()
    assert "Is a directory" in refusal(tmp_path / "file", make=False), "its lock is checked too"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_in_which_it_may_not_be_made_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    os.seteuid(65534)
    try:
        said = refusal(tmp_path / "logs" / "chat.log", make=False)
    finally:
        os.seteuid(0)
    assert "cannot be used: Permission denied" in said


def test_a_full_disk_is_no_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr(file, "open_log", full)
    check_log(str(tmp_path / "chat.log"))
