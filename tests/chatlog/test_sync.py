import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, maybeDeferred

from chatd.chatlog.writer import Sync, flush_and_close
from tests.fakes import Events


class Disk:
    """A disk that takes as long as the test wants, and who waits for it."""

    def __init__(self) -> None:
        self.files = iter(range(100, 200))
        self.running: list[tuple[Callable[..., Any], Sequence[int], Deferred[None]]] = []
        self.told: list[Any] = []
        self.sync = Sync(self.take, self.in_thread, lambda descriptors: None)
        self.sync.listen(self)

    def take(self) -> Sequence[int]:
        return [next(self.files)]

    def in_thread(self, function: Callable[..., Any], descriptors: Sequence[int]) -> "Deferred[None]":
        done: Deferred[None] = Deferred()
        self.running.append((function, descriptors, done))
        return done

    def over(self) -> None:
        self.running.pop(0)[2].callback(None)

    def fails(self) -> None:
        self.running.pop(0)[2].errback(OSError(errno.EIO, "Input/output error"))

    def synced(self, ticket: int) -> None:
        self.told.append(ticket)

    def sync_failed(self, ticket: int, why: str) -> None:
        self.told.append((ticket, why))


@pytest.fixture
def disk() -> Disk:
    return Disk()


def test_what_is_written_is_synced_at_once(disk: Disk) -> None:
    assert disk.sync.request() == 1
    assert [descriptors for _, descriptors, _ in disk.running] == [[100]]
    assert disk.told == []
    disk.over()
    assert (disk.told, disk.running) == ([1], [])


def test_what_comes_while_a_sync_runs_goes_with_the_next_one(disk: Disk) -> None:
    tickets = [disk.sync.request() for _ in range(5)]
    assert tickets == [1, 2, 3, 4, 5]
    assert len(disk.running) == 1
    disk.over()
    assert disk.told == [1]
    assert len(disk.running) == 1
    disk.over()
    assert (disk.told, disk.running) == ([1, 5], [])


def test_one_that_fails_is_told_and_the_next_one_is_tried(disk: Disk, events: Events) -> None:
    disk.sync.request()
    disk.sync.request()
    disk.fails()
    assert disk.told == [(1, "[Errno 5] Input/output error")]
    disk.fails()
    disk.sync.request()
    disk.over()
    assert disk.told[2:] == [3]
    assert events.said == [
        ("error", "cannot sync the chat log; messages are refused: [Errno 5] Input/output error"),
        ("info", "syncing the chat log works again"),
    ]


def test_where_no_descriptor_can_be_had_it_fails(events: Events) -> None:
    disk = Disk()

    def refuse() -> Sequence[int]:
        raise OSError(errno.EMFILE, "Too many open files")

    sync = Sync(refuse, disk.in_thread)
    sync.listen(disk)
    assert sync.request() == 1
    assert disk.told == [], "whoever asks hands over what it has the ticket for after that"
    [(function, error, done)] = disk.running
    maybeDeferred(function, error).chainDeferred(done)
    assert disk.told == [(1, "[Errno 24] Too many open files")]


def test_files_are_closed_once_they_are_on_the_disk(tmp_path: Path) -> None:
    descriptors = [os.open(tmp_path / "chat.log", os.O_WRONLY | os.O_CREAT), os.open(tmp_path, os.O_RDONLY)]
    os.write(descriptors[0], b"hello")
    flush_and_close(descriptors)
    for each in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(each)


def test_where_one_fails_the_others_are_synced_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    descriptors = [os.open(tmp_path / name, os.O_WRONLY | os.O_CREAT) for name in "abc"]
    asked: list[int] = []

    def break_the_first(descriptor: int) -> None:
        asked.append(descriptor)
        if descriptor == descriptors[0]:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", break_the_first)
    with pytest.raises(OSError, match="Input/output error"):
        flush_and_close(descriptors)
    assert asked == descriptors
    for each in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(each)
