"""Logs in folders, rotated, packed, half written, and renamed under the reader's hands."""

import bz2
import gzip
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from chatd.chatlog.verify import LogFiles, Unreadable
from chatd.config.settings import Config
from tests.chatlog.streams import lines, message
from tests.rows import rows


def log(*ids: str) -> bytes:
    return lines([message(id) for id in ids]).encode()


def read(*paths: Path, config: Config = Config()) -> tuple[LogFiles, list[str]]:  # noqa: B008 - it is frozen
    logs = LogFiles([str(path) for path in paths], config)
    return logs, [line.id for line in logs.read()]


def test_a_folder_gives_all_its_chat_logs_and_nothing_else(tmp_path: Path) -> None:
    for name in ("chat.log", "chat.log.1", "chat.log-20261122"):
        (tmp_path / name).write_bytes(log(name))
    (tmp_path / "server.log").write_bytes(log("other"))
    (tmp_path / "chat.log.d").mkdir()
    logs, ids = read(tmp_path)
    assert (logs.files, sorted(ids)) == (3, ["chat.log", "chat.log-20261122", "chat.log.1"])


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress)])
def test_a_packed_log_is_unpacked(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / f"chat.log.2{suffix}"
    path.write_bytes(pack(log("a", "b")))
    assert read(path)[1] == ["a", "b"]


@rows(
    ("name", "content", "fault"),
    [
        ("chat.log.2.gz", gzip.compress(log("a", "b"))[:-12], r"chat\.log\.2\.gz can't be read"),
        ("chat.log.xz", log("a"), r"chat\.log\.xz can't be read"),
        ("chat.log.zst", b"\x28\xb5\x2f\xfd", r"unpack it, or pass <\(zstdcat "),
        ("other", b"", r"there is no chat\.log in "),
        ("chat.log", b"hello\nworld\n", r"chat\.log is no chat log: none of its 2 lines is a message$"),
        ("chat.log", b"2026-11-30T09:26:30+0000 [-] Log\n" * 3, r"is no chat log: none of its 3 lines is a message$"),
        ("chat.log", b"\x7fELF\n\0\n", r"is no chat log: none of its 2 lines is a message$"),
    ],
)
def test_a_folder_whose_logs_cannot_be_read_is_unreadable(
    tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes, fault: str
) -> None:
    folder = tmp_path_factory.mktemp("logs")
    (folder / name).write_bytes(content)
    with pytest.raises(Unreadable, match=fault):
        read(folder)


def test_a_log_that_is_being_packed_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "chat.log.1").write_bytes(log("a"))
    (tmp_path / "chat.log.1.gz").write_bytes(gzip.compress(log("a"))[:10])
    assert read(tmp_path)[1] == ["a"]


def test_a_file_that_is_named_twice_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "chat.log"
    path.write_bytes(log("a"))
    logs, ids = read(tmp_path, path, path)
    assert (logs.files, ids) == (1, ["a"])


@rows(
    ("content", "lines", "strange", "ids"),
    [
        (log("a") + log("b")[:-1], 1, 0, ["a"]),
        (b"\nhello\n\xff\n" + log("a"), 4, 3, ["a"]),
        (b"x" * 1000 + b"\n" + log("a"), 2, 1, ["a"]),
        (log("a")[20:], 1, 1, []),
    ],
)
def test_lines_that_are_no_messages_are_counted_and_half_a_line_at_the_end_is_left_out(
    tmp_path: Path, content: bytes, lines: int, strange: int, ids: list[str]
) -> None:
    path = tmp_path / "chat.log"
    path.write_bytes(content)
    logs, found = read(path, config=Config(verify_line_bytes=100))
    assert (logs.lines, logs.strange, found) == (lines, strange, ids)


def test_a_file_that_is_not_there_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=r"there is no .*chat\.log"):
        read(tmp_path / "chat.log")


def test_a_pipe_can_be_read(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    os.write(theirs, log("a"))
    os.close(theirs)
    try:
        assert read(Path(f"/dev/fd/{ours}"))[1] == ["a"]
    finally:
        os.close(ours)


def test_a_rotation_after_the_files_were_opened_loses_and_doubles_nothing(tmp_path: Path) -> None:
    for name, id in (("chat.log", "b"), ("chat.log.1", "a")):
        (tmp_path / name).write_bytes(log(id))
    reading = LogFiles([str(tmp_path)], Config()).read()
    ids = [next(reading).id]
    (tmp_path / "chat.log.1").rename(tmp_path / "chat.log.2")
    (tmp_path / "chat.log").rename(tmp_path / "chat.log.1")
    (tmp_path / "chat.log").write_bytes(log("c"))
    ids += [line.id for line in reading]
    assert sorted(ids) == ["a", "b"]


def test_a_rotation_while_the_files_are_opened_makes_it_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, id in (("chat.log", "b"), ("chat.log.1", "a")):
        (tmp_path / name).write_bytes(log(id))
    usual = Path.open

    def rotate(path: Path, mode: str) -> object:
        """Be logrotate, between the first file and the second."""
        file = usual(path, mode)
        monkeypatch.setattr(Path, "open", usual)
        (tmp_path / "chat.log.1").rename(tmp_path / "chat.log.2")
        (tmp_path / "chat.log").rename(tmp_path / "chat.log.1")
        return file

    monkeypatch.setattr(Path, "open", rotate)
    assert sorted(read(tmp_path)[1]) == ["a", "b"]


def test_what_never_comes_to_rest_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chat.log").write_bytes(log("a"))
    usual = Path.open

    def rotate(path: Path, mode: str) -> object:
        """Be a logrotate that has gone mad."""
        file = usual(path, mode)
        path.rename(tmp_path / "old")
        path.touch()
        return file

    monkeypatch.setattr(Path, "open", rotate)
    with pytest.raises(Unreadable, match="the logs are renamed again and again"):
        read(tmp_path, config=Config(verify_rename_timeout=0))
