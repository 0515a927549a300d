import errno
import fcntl
import gzip
import os
import shutil
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock

from chatd.chatlog.lock import LogLock
from chatd.chatlog.rotation import Rotation, Rotator
from chatd.config.settings import Config
from tests.supervisor.children import Said

NOON = 1_795_348_800.0  # 2026-11-22T12:00:00Z
DAY = 86_400.0
READ_LOCK = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
"""A ``struct flock`` (fcntl(2)) for a whole file."""


def line(day: str, text: str = "hello") -> str:
    return f"{day}T20:33:45.123Z ops -@192.0.2.1 s.1 {text}\n"


class Fixture:
    """A chat log that is rotated at a time of the test's choice."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "chat.log"
        self.now = NOON
        self.stopping = False
        self.config = Config(chat_log=str(self.log), chat_log_rotate="100B", rotation_lock_timeout=0.05)

    def rotator(self, **options: Any) -> Rotator:
        return Rotator(replace(self.config, **options), lambda: self.now, lambda: self.stopping)

    def names(self) -> list[str]:
        return sorted(each.name for each in self.folder.iterdir() if not each.name.endswith(".lock"))


@pytest.fixture
def of(tmp_path: Path) -> Fixture:
    return Fixture(tmp_path)


def unpacked(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode()


def test_a_log_of_a_size_is_renamed_and_packed(of: Fixture) -> None:
    of.log.write_text("x" * 100)
    of.log.chmod(0o640)
    of.rotator().run()
    assert of.names() == ["chat.log-20261122T120000000Z.gz"]
    packed = of.folder / of.names()[0]
    assert unpacked(packed) == "x" * 100
    assert stat.S_IMODE(packed.stat().st_mode) == 0o640


@pytest.mark.parametrize("text", ["x" * 99, ""])
def test_a_smaller_one_is_left_alone(of: Fixture, text: str) -> None:
    of.log.write_text(text)
    of.rotator().run()
    assert of.names() == ["chat.log"]


def test_one_that_is_not_there_yet_or_is_no_file_is_no_trouble(of: Fixture) -> None:
    of.rotator().run()
    of.rotator(chat_log="/dev/null").run()
    of.rotator(chat_log=str(of.folder)).run()
    assert of.names() == []


@pytest.mark.parametrize("first", [line("2026-11-21"), '{"time":"2026-11-21T20:33:45.123Z","room":"ops"}\n'])
def test_a_log_that_began_on_a_day_before_is_rotated(of: Fixture, first: str) -> None:
    of.log.write_text(first + line("2026-11-22"))
    of.rotator(chat_log_rotate="day").run()
    assert of.names() == ["chat.log-20261122T120000000Z.gz"]


@pytest.mark.parametrize("first", [line("2026-11-22"), line("2026-11-23"), line("2026-02-30"), "none of ours\n"])
def test_a_log_of_today_or_of_somebody_else_is_left_alone(of: Fixture, first: str) -> None:
    of.log.write_text(first)
    of.rotator(chat_log_rotate="day").run()
    assert of.names() == ["chat.log"]


def test_two_rotations_at_one_time_have_two_names_that_sort(of: Fixture) -> None:
    rotator = of.rotator()
    for text in "ab":
        of.log.write_text(text * 100)
        rotator.run()
    assert [unpacked(of.folder / name)[0] for name in of.names()] == ["a", "b"]


def test_only_the_newest_ones_are_kept_and_nothing_else_is_removed(of: Fixture) -> None:
    others = ["chat.log-notes.txt", "chat.log.1", "chat.log-20261122T1.gz", "other.log-20261122T110000000Z.gz"]
    for name in others:
        (of.folder / name).touch()
    rotator = of.rotator(chat_log_keep=2)
    for text in "abcd":
        of.log.write_text(text * 100)
        rotator.run()
        of.now += 60
    kept = sorted(set(of.names()) - set(others))
    assert [unpacked(of.folder / name)[0] for name in kept] == ["c", "d"]


def test_a_writer_at_work_is_waited_for_and_not_for_ever(of: Fixture) -> None:
    of.log.write_text("x" * 100)
    rotator = of.rotator()
    writer = LogLock(str(of.log))
    assert writer.take()
    rotator.run()
    assert of.names() == ["chat.log"]
    writer.close()
    rotator.run()
    assert of.names() == ["chat.log-20261122T120000000Z.gz"]


def test_a_log_that_another_chatd_has_rotated_meanwhile_is_not_rotated_twice(
    of: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    of.log.write_text("x" * 100)
    rotator, locked = of.rotator(), Rotator._locked

    def late(self: Rotator, lock: LogLock) -> bool:
        of.log.rename(of.folder / "theirs")
        of.log.write_text("new")
        return locked(self, lock)

    monkeypatch.setattr(Rotator, "_locked", late)
    rotator.run()
    assert (of.names(), of.log.read_text()) == (["chat.log", "theirs"], "new")


# What was left half done


def test_what_was_renamed_and_not_packed_is_packed_at_the_next_start(of: Fixture) -> None:
    (of.folder / "chat.log-20261122T110000000Z").write_text("whole")
    of.rotator().run()
    assert unpacked(of.folder / "chat.log-20261122T110000000Z.gz") == "whole"
    assert len(of.names()) == 1


def test_half_a_packed_one_is_packed_anew(of: Fixture) -> None:
    (of.folder / "chat.log-20261122T110000000Z").write_text("whole")
    (of.folder / ".chat.log-20261122T110000000Z.part").write_text("ha")
    (of.folder / "chat.log-20261122T110000000Z.gz").write_text("packed, and not yet removed")
    of.rotator().run()
    assert unpacked(of.folder / "chat.log-20261122T110000000Z.gz") == "whole"
    assert len(of.names()) == 1


def test_a_stop_leaves_what_is_being_packed_as_it_was(of: Fixture) -> None:
    rotated = of.folder / "chat.log-20261122T110000000Z"
    whole = "whole" * 300_000  # more than one piece
    rotated.write_text(whole)
    asked = iter([False, True])
    Rotator(of.config, lambda: of.now, lambda: next(asked, True)).run()
    assert (of.names(), rotated.read_text() == whole) == ([rotated.name], True)


@pytest.fixture
def full(of: Fixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A disk that has no room for what is packed."""

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        yield


@pytest.mark.usefixtures("full")
def test_what_cannot_be_packed_takes_no_room_from_those_who_write(of: Fixture) -> None:
    rotated = of.folder / "chat.log-20261122T110000000Z"
    rotated.write_text("whole")
    with pytest.raises(OSError, match="No space left"):
        of.rotator().run()
    assert (of.names(), rotated.read_text()) == ([rotated.name], "whole")


@pytest.mark.usefixtures("full")
def test_those_that_are_too_many_make_room_for_what_is_packed(of: Fixture) -> None:
    names = [f"chat.log-2026112{day}T110000000Z" for day in range(4)]
    for name in (f"{names[0]}.gz", names[1], f".{names[1]}.part", f"{names[2]}.gz", names[3]):
        (of.folder / name).touch()
    with pytest.raises(OSError, match="No space left"):
        of.rotator(chat_log_keep=2).run()
    assert of.names() == [f"{names[2]}.gz", names[3]]


def test_packing_is_begun_only_where_there_is_room_for_it(of: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    rotated = of.folder / "chat.log-20261122T110000000Z"
    rotated.write_text("whole")
    (of.folder / f".{rotated.name}.part").write_text("ha")
    rotator = of.rotator()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=5))
        patch.setattr(gzip, "GzipFile", None)
        with pytest.raises(OSError, match="not enough free space to compress it"):
            rotator.run()
    assert (of.names(), rotated.read_text()) == ([rotated.name], "whole")
    rotator.run()
    assert of.names() == [f"{rotated.name}.gz"]


def test_what_another_chatd_packs_is_left_to_it_until_it_is_over(of: Fixture) -> None:
    rotated = of.folder / "chat.log-20261122T110000000Z"
    rotated.write_text("whole")
    rotator = of.rotator()
    half = of.folder / f".{rotated.name}.part"
    with half.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        rotator.run()
    assert of.names() == [half.name, rotated.name]
    rotator.run()
    assert of.names() == [f"{rotated.name}.gz"]


def test_a_reader_of_the_logs_holds_up_neither_rotation_nor_packing(of: Fixture) -> None:
    of.log.write_text("x" * 100)
    rotated = of.folder / "chat.log-20261122T110000000Z"
    rotated.write_text("whole")
    with of.log.open("rb") as one, rotated.open("rb") as other:
        for file in (one, other):
            fcntl.flock(file, fcntl.LOCK_EX)
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, READ_LOCK)
        of.rotator().run()
    assert of.names() == [f"{rotated.name}.gz", "chat.log-20261122T120000000Z.gz"]


def test_what_is_half_packed_can_be_opened_by_its_owner_alone(of: Fixture) -> None:
    rotated = of.folder / "chat.log-20261122T110000000Z"
    rotated.write_text("whole")
    rotated.chmod(0o644)
    half = of.folder / f".{rotated.name}.part"
    half.touch(0o644)  # of an older chatd
    modes: list[int] = []

    def look() -> bool:
        modes.append(stat.S_IMODE(half.stat().st_mode))
        return False

    Rotator(of.config, lambda: of.now, look).run()
    assert set(modes) == {0o600}
    assert stat.S_IMODE((of.folder / f"{rotated.name}.gz").stat().st_mode) == 0o644


def test_a_name_with_signs_of_a_pattern_is_only_a_name(of: Fixture) -> None:
    of.log = of.folder / "chat[1]*.log"
    of.log.write_text("x" * 100)
    (of.folder / "chat1.log-20261122T110000000Z").write_text("somebody else's")
    of.rotator(chat_log=str(of.log)).run()
    assert of.names() == ["chat1.log-20261122T110000000Z", "chat[1]*.log-20261122T120000000Z.gz"]


# Now and then


def at_once(function: Callable[..., Any], *arguments: Any) -> "Deferred[Any]":
    return maybeDeferred(function, *arguments)


def test_the_log_is_looked_at_now_and_then_as_the_configuration_of_the_time_says(of: Fixture) -> None:
    clock = Clock()
    rotation = Rotation(clock, replace(of.config, chat_log_rotate=""), at_once, lambda: of.now)
    rotation.start()
    of.log.write_text("x" * 100)
    clock.advance(1.0)
    assert of.names() == ["chat.log"]
    rotation.configure(of.config)
    clock.advance(0.2)
    assert of.names() == ["chat.log-20261122T120000000Z.gz"]
    rotation.stop()
    of.log.write_text("x" * 100)
    clock.advance(1.0)
    assert "chat.log" in of.names()
    assert clock.getDelayedCalls() == []


def test_a_log_that_cannot_be_rotated_is_said_once_and_tried_again(
    of: Fixture, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    rotation = Rotation(clock, of.config, at_once, lambda: of.now)
    of.log.write_text("x" * 100)
    with monkeypatch.context() as patch:

        def refuse(*names: object) -> None:
            raise PermissionError(13, "Permission denied")

        patch.setattr(os, "rename", refuse)
        rotation.start()
        clock.pump([0.2] * 5)
    clock.advance(0.2)
    rotation.stop()
    assert said.lines == [
        f"error: cannot rotate the chat log {of.log}: [Errno 13] Permission denied",
        f"info: rotating the chat log {of.log} works again",
    ]
    assert len(of.names()) == 1
