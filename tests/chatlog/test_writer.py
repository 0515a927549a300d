"""The chat log: escapes, lines, and a file that several processes append to."""

import errno
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import Logger

from chatd.chatlog.line import LogEntry
from chatd.chatlog.lock import LogLock
from chatd.chatlog.writer import ChatLog, LogBusy, log_entries, log_outcome
from chatd.protocol.message import Message
from tests.chatlog.entries import TIME, entry, line
from tests.chatlog.log_writer import MESSAGES
from tests.depth import depth
from tests.fakes import Events
from tests.waiting import until


class File:
    """A chat log, what it holds and what the server's own log said of it."""

    def __init__(
        self, path: Path, lock_seconds: float = 5, calm_seconds: float = 0, spin_seconds: float = 0.01
    ) -> None:
        self.path = path
        self.events = Events()
        self.log = ChatLog(
            str(path),
            Logger(observer=self.events),
            lock_seconds=lock_seconds,
            spin_seconds=spin_seconds,
            calm_seconds=calm_seconds,
        )
        self.chat = Logger(observer=self.log)

    def write(self, *texts: str) -> None:
        log_entries(self.chat, [entry(text) for text in texts])

    @property
    def text(self) -> str:
        return self.path.read_text()

    @property
    def said(self) -> list[tuple[str, str]]:
        return self.events.said


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    file = File(tmp_path / "chat.log")
    yield file
    file.log.close()


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond size: what goes over it is written short or not at all."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def writer(path: Path, name: str, batches: int, size: int) -> Iterator["subprocess.Popen[str]"]:
    """Run ``log_writer``, from its first batch on; kill it at the end, if it still runs."""
    command = [sys.executable, "-m", "tests.chatlog.log_writer", str(path), name, str(batches), str(size)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield process
        finally:
            process.kill()


def started(process: "subprocess.Popen[str]") -> None:
    assert process.stdout
    assert process.stdout.readline() == "writing\n"


def finished(process: "subprocess.Popen[str]") -> int:
    """Tell it to end; give how many batches it wrote."""
    process.terminate()
    return int(process.communicate()[0])


def batch_lines(name: str, batches: int, size: int) -> list[str]:
    return [f"{name} {batch} {number} {'x' * size}" for batch in range(batches) for number in range(MESSAGES)]


def texts(data: str) -> list[str]:
    return [each.split(" ", 4)[4] for each in data.splitlines()]


def test_text_of_users_is_written_as_it_is_in_order(file: File) -> None:
    file.write("007", "1_000", "1.50")
    file.write("{entries} {0} {f()} %s")
    assert file.text == line("007") + line("1_000") + line("1.50") + line("{entries} {0} {f()} %s")


def test_outcomes_are_appended_for_each_entry(file: File) -> None:
    log_outcome(file.chat, [entry(id="s.1"), entry(id="s.2")], "unknown", TIME)
    time = "2026-11-22T20:33:45.123Z"
    assert file.text == f"{time} ops ! s.1 unknown\n{time} ops ! s.2 unknown\n"


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Give the size of each write from now on, in bytes."""
    sizes: list[int] = []
    write = os.write

    def counted(descriptor: int, data: bytes) -> int:
        sizes.append(len(data))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", counted)
    return sizes


def test_a_batch_is_one_write(file: File, sizes: list[int]) -> None:
    messages = [Message(f"s.{number}", TIME, "s", f"{number}") for number in range(100)]
    log_entries(file.chat, [LogEntry("ops", "192.0.2.1", messages[:60]), LogEntry("ops", "192.0.2.1", messages[60:])])
    assert file.text == "".join(line(f"{number}", f"s.{number}") for number in range(100))
    assert sizes == [len(file.text)]


def test_what_was_there_before_stays(file: File) -> None:
    file.path.write_text("before\n")
    file.write("after")
    assert file.text == "before\n" + line("after")


def test_a_missing_folder_is_made_and_a_path_without_one_is_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "a" / "b" / "chat.log", Path("chat.log")):
        file = File(path)
        file.write("hello")
        file.log.close()
        assert file.text == line()


def test_the_file_is_opened_by_the_first_check_and_others_may_not_read_it(file: File) -> None:
    file.log.check()
    assert file.text == ""
    assert file.said == []
    assert file.path.stat().st_mode & 0o007 == 0


def test_close_closes_the_file_and_a_later_write_opens_it_again(file: File) -> None:
    before = len(os.listdir("/proc/self/fd"))
    file.write("one")
    assert len(os.listdir("/proc/self/fd")) == before + 2  # the file and its lock
    file.log.close()
    file.log.close()
    assert len(os.listdir("/proc/self/fd")) == before
    file.write("two")
    assert file.text == line("one") + line("two")


def test_several_processes_never_mix_or_lose_lines(tmp_path: Path) -> None:
    path, names, batches = tmp_path / "chat.log", "abcd", depth(1000)
    with (
        writer(path, "a", batches, 50) as a,
        writer(path, "b", batches, 500) as b,
        writer(path, "c", batches, 5000) as c,
        writer(path, "d", batches, 5) as d,
    ):
        assert [each.wait() for each in (a, b, c, d)] == [0, 0, 0, 0]
    written = texts(path.read_text())
    for name, size in zip(names, (50, 500, 5000, 5), strict=True):
        assert [each for each in written if each.startswith(name)] == batch_lines(name, batches, size)
    runs = [written[start].split()[:2] for start in range(0, len(written), MESSAGES)]
    assert [each.split()[:2] for each in written] == [run for run in runs for _ in range(MESSAGES)]


# Renamed and removed


@pytest.mark.parametrize("checked", [True, False])
def test_after_a_rename_nothing_is_written_to_the_renamed_file(file: File, checked: bool) -> None:
    file.write("one")
    old = file.path.rename(file.path.with_name("chat.log.1"))
    if checked:
        file.log.check()
    file.write("two")
    assert (old.read_text(), file.text) == (line("one"), line("two"))


def test_who_waited_for_the_lock_of_a_file_that_was_renamed_meanwhile_writes_to_the_new_one(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write("one")
    old = file.path.with_name("chat.log.1")
    other = LogLock(str(file.path))
    assert other.take()

    def rotate(seconds: float) -> None:
        file.path.rename(old)
        other.release()

    monkeypatch.setattr("chatd.chatlog.writer.clock.sleep", rotate)
    file.write("two")
    assert (old.read_text(), file.text) == (line("one"), line("two"))
    assert other.take(), "nobody holds it"
    other.close()


@pytest.mark.parametrize("checked", [True, False])
def test_a_removed_file_is_made_again(file: File, checked: bool) -> None:
    file.write("one")
    file.path.unlink()
    if checked:
        file.log.check()
        assert file.text == ""
    file.write("two")
    assert file.text == line("two")


def test_another_file_in_its_place_is_noticed(file: File) -> None:
    file.write("one")
    other = file.path.with_name("other")
    other.write_text("other\n")
    other.rename(file.path)
    file.log.check()
    file.write("two")
    assert file.text == "other\n" + line("two")


def test_a_folder_that_became_a_file_refuses_until_it_is_a_folder_again(tmp_path: Path) -> None:
    file = File(tmp_path / "logs" / "chat.log")
    file.write("one")
    file.path.parent.rename(tmp_path / "old")
    file.path.parent.write_text("")
    file.log.check()
    with pytest.raises(FileExistsError):
        file.write("two")
    file.path.parent.unlink()
    file.log.check()
    file.write("three")
    file.log.close()
    assert file.text == line("three")


def test_a_check_leaves_a_file_that_stayed_alone(file: File) -> None:
    file.write("one")
    before = file.path.stat()
    file.log.check()
    assert file.path.stat() == before
    assert file.said == []


def test_renames_under_load_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "chat.log"
    with writer(path, "a", 0, 100) as a, writer(path, "b", 0, 100) as b:
        started(a)
        started(b)
        for number in range(1, 6):
            until(lambda: path.exists() and path.stat().st_size, "a new chat.log")
            path.rename(tmp_path / f"chat.log.{number}")
        until(lambda: path.exists() and path.stat().st_size, "the last chat.log")
        batches = [finished(a), finished(b)]
    written = texts("".join(each.read_text() for each in tmp_path.iterdir()))
    assert sorted(written) == sorted(batch_lines("a", batches[0], 100) + batch_lines("b", batches[1], 100))


# What can't be written


@pytest.mark.parametrize(("room", "fault"), [(100, "No space left"), (0, "File too large")])
def test_a_short_write_raises_and_leaves_the_file_as_it_was(file: File, room: int, fault: str) -> None:
    file.write("one")
    before = file.text
    with full_disk(len(before) + room), pytest.raises(OSError, match=fault):
        file.write("two", "x" * 200)
    assert file.text == before
    with locked(file.path):
        pass


def test_each_outage_of_a_full_disk_is_said_once_and_a_check_finds_its_end_and_leaves_no_trace(file: File) -> None:
    file.write("one")
    for _ in range(2):
        with full_disk(len(file.text)):
            for _ in range(3):
                with pytest.raises(OSError, match="File too large"):
                    file.write("two")
                file.log.check()
        file.log.check()
        file.log.check()
    assert file.said == 2 * [
        ("error", f"cannot write the chat log {file.path}; messages are refused: File too large"),
        ("info", f"writing the chat log {file.path} works again"),
    ]
    assert file.text == line("one")


def test_a_file_that_cannot_be_opened_refuses_until_it_can(file: File) -> None:
    file.path.mkdir()
    file.log.check()
    for _ in range(2):
        with pytest.raises(IsADirectoryError):
            file.write("one")
    file.log.check()
    assert [level for level, _ in file.said] == ["error"]
    file.path.rmdir()
    file.write("two")
    assert file.text == line("two")
    assert [level for level, _ in file.said] == ["error", "info"]


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Set the clock of the chat log to the last of these; a nap takes what it takes."""
    seconds = [1000.0]
    monkeypatch.setattr("chatd.chatlog.writer.clock.monotonic", lambda: seconds[-1])
    monkeypatch.setattr("chatd.chatlog.writer.clock.sleep", lambda nap: seconds.append(seconds[-1] + nap))
    return seconds


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a chat log, as another process does."""
    lock = LogLock(str(path))
    assert lock.take()
    try:
        yield
    finally:
        lock.close()


def test_a_lock_that_another_holds_makes_a_write_busy_and_in_the_end_refuses_it(
    tmp_path: Path, seconds: list[float]
) -> None:
    file = File(tmp_path / "chat.log", lock_seconds=1, spin_seconds=0.001)
    file.write("one")
    with locked(file.path):
        for passed in (0.0, 0.5, 0.4):
            began = seconds[-1] + passed
            seconds.append(began)
            with pytest.raises(LogBusy):
                file.write("two")
            assert seconds[-1] <= began + 0.002, "what one call waits is bounded"
        assert file.said == []
        seconds.append(seconds[-1] + 0.2)
        with pytest.raises(BlockingIOError, match=r"another process holds .*chat\.log\.lock") as refused:
            file.write("two")
        assert not isinstance(refused.value, LogBusy)
    file.write("three")
    file.log.close()
    assert file.text == line("one") + line("three")
    assert [level for level, _ in file.said] == ["error", "info"]


def test_a_lock_is_waited_for_less_long_at_a_stop(tmp_path: Path, seconds: list[float]) -> None:
    file = File(tmp_path / "chat.log", lock_seconds=1, spin_seconds=0.001)
    with locked(file.path):
        with pytest.raises(LogBusy):
            file.write("one")
        file.log.hurry(0.2)
        file.log.hurry(5)
        seconds.append(seconds[-1] + 0.19)
        with pytest.raises(LogBusy):
            file.write("one")
        seconds.append(seconds[-1] + 0.02)
        with pytest.raises(BlockingIOError, match="another process holds"):
            file.write("one")
    file.log.close()


def test_a_lock_that_was_busy_and_came_free_is_waited_for_as_long_as_before(
    tmp_path: Path, seconds: list[float]
) -> None:
    file = File(tmp_path / "chat.log", lock_seconds=1, spin_seconds=0.001)
    for _ in range(2):
        with locked(file.path), pytest.raises(LogBusy):
            file.write("one")
        file.write("one")
        seconds.append(seconds[-1] + 100)
    file.log.close()
    assert (file.text, file.said) == (line("one") * 2, [])


def test_a_batch_that_waits_for_the_lock_is_not_formatted_again(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    formatted: list[LogEntry] = []
    lines = file.log._message_lines

    def format_noted(entry: LogEntry) -> str:
        formatted.append(entry)
        return lines(entry)

    monkeypatch.setattr(file.log, "_message_lines", format_noted)
    with locked(file.path):
        for _ in range(10):
            with pytest.raises(LogBusy):
                file.write("one")
    assert len(formatted) == 1
    file.write("one")
    assert file.text == line("one")


def test_a_lock_that_stays_held_is_waited_for_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = File(tmp_path / "chat.log", lock_seconds=0)
    file.write("one")
    with locked(file.path):
        with pytest.raises(BlockingIOError):
            file.write("two")
        naps: list[float] = []
        monkeypatch.setattr("chatd.chatlog.writer.clock.sleep", naps.append)
        file.log.check()
        with pytest.raises(BlockingIOError):
            file.write("two")
        assert naps == []
    file.log.check()
    assert [level for level, _ in file.said] == ["error", "info"]
    file.log.close()


READER = """
import fcntl, os, struct, sys
log, lock = int(sys.argv[1]), sys.argv[2]
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
fcntl.flock(log, fcntl.LOCK_EX)
fcntl.fcntl(log, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0))
try:
    os.open(lock, os.O_RDONLY)
except PermissionError:
    print("locked", flush=True)
sys.stdin.read()
"""
"""Hold every lock of the chat log that its reader can have."""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_that_may_read_the_log_cannot_stop_a_write() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        file = File(Path(folder) / "chat.log")
        file.write("one")
        log = os.open(file.path, os.O_RDONLY)
        command = [sys.executable, "-c", READER, str(log), file.log._lock.path]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[log]) as reader:
            os.close(log)
            assert reader.stdout
            assert reader.stdout.readline() == b"locked\n"
            file.write("two")
            reader.kill()
        file.log.close()
        assert (file.text, file.said) == (line("one") + line("two"), [])


@pytest.mark.parametrize(
    ("exists", "advice"),
    [
        (False, "its folder must be writable by the user that chatd runs as"),
        (True, "remove the lock file if another user made it"),
    ],
)
def test_a_lock_file_that_may_not_be_opened_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool, advice: str
) -> None:
    file = File(tmp_path / "chat.log")
    lock = tmp_path / ".chat.log.lock"
    if exists:
        lock.touch()

    def refuse(path: str, *args: Any, opening: Any = os.open) -> int:
        if path == str(lock):
            raise PermissionError(13, "Permission denied", path)
        descriptor: int = opening(path, *args)
        return descriptor

    monkeypatch.setattr("chatd.chatlog.lock.os.open", refuse)
    with pytest.raises(PermissionError):
        file.write("one")
    why = f"its lock file {lock} cannot be opened: Permission denied; {advice}"
    assert file.said == [("error", f"cannot write the chat log {file.path}; messages are refused: {why}")]
    file.log.close()


def test_a_lock_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    file = File(tmp_path / "chat.log")
    (tmp_path / ".chat.log.lock").mkdir()
    with pytest.raises(IsADirectoryError):
        file.write("one")
    [(level, text)] = file.said
    assert level == "error"
    assert text.endswith(f"its lock file {tmp_path}/.chat.log.lock cannot be opened: Is a directory")
    file.log.close()


def test_the_address_cannot_move_a_terminal(file: File) -> None:
    log_entries(file.chat, [LogEntry("ops", "1\x1b[2J", entry().messages)])
    assert " -@1\\x1b[2J s.1 hello\n" in file.text


def test_a_folder_that_may_not_be_looked_into_is_no_trouble(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write("one")

    def refuse(path: str, **options: bool) -> None:
        raise PermissionError(13, "Permission denied", path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", refuse)
        file.log.check()
        file.write("two")
    assert (file.text, file.said) == (line("one") + line("two"), [])


def test_on_a_full_disk_a_smaller_write_does_not_mean_that_it_is_good_again(tmp_path: Path) -> None:
    file = File(tmp_path / "chat.log", calm_seconds=60)
    with full_disk(200):
        for _ in range(5):
            with pytest.raises(OSError, match="No space left"):
                file.write("x" * 500)
            file.log.check()
        file.write("small")
    assert [level for level, _ in file.said] == ["error"]
    file.write("x" * 500)
    assert [level for level, _ in file.said] == ["error", "info"]
    file.log.close()


# Torn lines


@pytest.mark.parametrize("torn", [1, 4, 10, 24, 25, 80, 65_535, 65_536, 65_537, 200_000])
def test_a_torn_line_is_cut_off_by_the_next_writer(file: File, torn: int) -> None:
    file.path.write_text(line("one") + line("x" * torn)[:torn])
    file.write("two")
    assert file.text == line("one") + line("two")
    said = f"removed an incomplete line of {torn} bytes from the end of the chat log {file.path}"
    assert file.said == [("warn", said)]


@pytest.mark.parametrize("text", ["[]", '{"precious": 1}', "2026 was a good year", "a\nb\nc"])
def test_a_file_that_is_none_of_ours_loses_nothing(file: File, text: str) -> None:
    file.path.write_text(text)
    file.write("one")
    assert file.text == f"{text}\n{line('one')}"


def test_a_writer_that_has_the_file_open_cuts_off_what_another_tore(file: File) -> None:
    file.write("one", "two")
    os.truncate(file.path, len(file.text) - 1)
    file.write("three")
    assert file.text == line("one") + line("three")


def test_a_killed_writer_leaves_only_whole_lines_after_the_next_append(file: File) -> None:
    for name in "abc":
        with writer(file.path, name, 0, 200_000) as process:
            started(process)
            size = file.path.stat().st_size
            until(lambda size=size: file.path.stat().st_size > size, "some more batches")  # type: ignore[misc]
            process.kill()
            process.wait()
    file.write("after")
    assert file.text.endswith(line("after"))
    assert {len(each.split(" ", 4)[4].split(" ", 3)[3]) for each in file.text.splitlines()[:-1]} == {200_000}


@pytest.mark.parametrize("torn", [b"{", b'{"time":"2026-11-22T20', b'{"time":"2026-11-22T20:33:45.123Z","room":"o'])
def test_a_torn_object_or_first_line_is_cut_off_by_the_next_writer(file: File, torn: bytes) -> None:
    file.path.write_bytes(line("one").encode() + torn)
    file.write("two")
    assert file.text == line("one") + line("two")
    file.path.write_text(line("x" * 70_000)[:70_000])
    file.write("three")
    assert file.text == line("three")


# As JSON


def test_a_log_may_be_objects(tmp_path: Path) -> None:
    log = ChatLog(str(tmp_path / "chat.log"), Logger(observer=Events()), lock_seconds=5, json=True)
    log_entries(Logger(observer=log), [entry("hello")])
    log_outcome(Logger(observer=log), [entry("hello")], "refused", TIME)
    log.close()
    said, outcome = map(json.loads, (tmp_path / "chat.log").read_text().splitlines())
    assert (said["text"], said["nick"], outcome["outcome"]) == ("hello", None, "refused")


# What may not be on the disk yet


@pytest.fixture
def synced(tmp_path: Path) -> Iterator[ChatLog]:
    log = ChatLog(str(tmp_path / "chat.log"), Logger(observer=Events()), lock_seconds=5, synced=True)
    yield log
    log.close()


def names(descriptors: list[int]) -> list[str]:
    """Give what descriptors are open on, and close them."""
    found = [os.readlink(f"/proc/self/fd/{each}") for each in descriptors]
    for each in descriptors:
        os.close(each)
    return found


def test_who_syncs_gets_the_file_and_at_first_the_folder_that_has_its_name(tmp_path: Path, synced: ChatLog) -> None:
    path, chat = tmp_path / "chat.log", Logger(observer=synced)
    log_entries(chat, [entry()])
    assert names(synced.take_unsynced()) == [str(tmp_path), str(path)]
    log_entries(chat, [entry()])
    assert names(synced.take_unsynced()) == [str(path)]


def test_what_was_written_before_a_rename_is_synced_too(tmp_path: Path, synced: ChatLog) -> None:
    path, chat = tmp_path / "chat.log", Logger(observer=synced)
    log_entries(chat, [entry()])
    names(synced.take_unsynced())
    log_entries(chat, [entry("one")])
    path.rename(tmp_path / "old")
    log_entries(chat, [entry("two")])
    assert names(synced.take_unsynced()) == [str(tmp_path / "old"), str(tmp_path), str(path)]
    synced.close()
    names(synced.take_unsynced())


@pytest.mark.parametrize("scarce", ["open", "dup"])
def test_what_could_not_be_given_to_sync_is_given_the_next_time(
    tmp_path: Path, synced: ChatLog, monkeypatch: pytest.MonkeyPatch, scarce: str
) -> None:
    path, chat = tmp_path / "chat.log", Logger(observer=synced)
    log_entries(chat, [entry("one")])
    path.rename(tmp_path / "old")
    log_entries(chat, [entry("two")])
    before = len(os.listdir("/proc/self/fd"))

    def refuse(*arguments: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, scarce, refuse)
        with pytest.raises(OSError, match="Too many open files"):
            synced.take_unsynced()
    assert len(os.listdir("/proc/self/fd")) == before
    assert names(synced.take_unsynced()) == [str(tmp_path / "old"), str(tmp_path), str(path)]


def test_renames_of_a_log_that_nobody_writes_to_take_no_descriptors(tmp_path: Path, synced: ChatLog) -> None:
    path = tmp_path / "chat.log"
    synced.check()
    before = len(os.listdir("/proc/self/fd"))
    for number in range(10):
        path.rename(tmp_path / f"chat.log.{number}")
        synced.check()
    assert len(os.listdir("/proc/self/fd")) == before
    assert names(synced.take_unsynced()) == [str(tmp_path), str(path)]


def test_a_device_is_not_synced() -> None:
    log = ChatLog("/dev/null", Logger(observer=Events()), lock_seconds=5, synced=True)
    log_entries(Logger(observer=log), [entry()])
    assert log.take_unsynced() == []
    log.close()


# Files that are none


def test_a_device_that_takes_everything_can_be_the_log() -> None:
    file = File(Path(os.devnull))
    file.write("one")
    file.log.check()
    file.log.close()
    assert file.said == []


def test_what_is_no_file_on_a_disk_refuses_at_once_and_says_so_once(tmp_path: Path) -> None:
    path = tmp_path / "chat.log"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    for each in (path, Path("/dev/full"), Path("/dev/tty")):
        file = File(each)
        for _ in range(3):
            with pytest.raises(OSError, match=r"no file on a disk|No such device"):
                file.write("one")
            file.log.check()
        file.log.close()
        assert [level for level, _ in file.said] == ["error"]
    assert os.read(reader, 1) == b""
    os.close(reader)
