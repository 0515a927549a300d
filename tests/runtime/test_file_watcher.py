"""Files that are read again when they change."""

import os
from pathlib import Path

import pytest
from twisted.logger import LogLevel, capturedLogs

from chatd.config.values import BadValue
from chatd.runtime.file_watcher import WatchedFiles


class Reader:
    """Reads two files, and remembers what it read."""

    def __init__(self, folder: Path) -> None:
        self.one, self.other = folder / "one", folder / "other"
        self.one.write_text("1")
        self.other.write_text("2")
        self.found: list[str] = []
        self.watched = WatchedFiles([str(self.one), str(self.other)], self.read, 3)

    def read(self) -> None:
        try:
            texts = [each.read_text() for each in (self.one, self.other)]
        except OSError as error:
            raise BadValue("it is gone") from error
        if "bad" in texts:
            raise BadValue("it is bad")
        if "bug" in texts:
            raise TypeError("it is ours")
        self.found.append(" ".join(texts))

    def look(self) -> None:
        """Look twice, that is once more after a change."""
        self.watched.check()
        self.watched.check()


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(tmp_path)


def test_what_has_not_changed_is_not_read(reader: Reader) -> None:
    reader.watched.check()
    assert reader.found == []


def test_what_has_changed_is_read_once(reader: Reader) -> None:
    reader.other.write_text("22")
    reader.look()
    reader.look()
    assert reader.found == ["1 22"]


def test_what_still_changes_is_not_read_before_it_has_come_to_an_end(reader: Reader) -> None:
    reader.other.write_text("2, half of i")
    reader.watched.check()
    reader.other.write_text("2, all of it")
    reader.watched.check()
    assert reader.found == []
    reader.watched.check()
    assert reader.found == ["1 2, all of it"]


def test_what_never_ceases_to_change_is_read_now_and_then_and_in_the_end(reader: Reader) -> None:
    for length in range(7):
        reader.other.write_text("x" * length)
        reader.watched.check()
    assert reader.found == ["1 xx", "1 xxxx", "1 xxxxxx"]
    reader.other.write_text("y")
    reader.look()
    assert reader.found[3:] == ["1 y"]


def test_a_file_that_took_its_place_is_read(reader: Reader, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.write_text("3")
    found = os.stat(reader.one)
    os.utime(new, ns=(found.st_atime_ns, found.st_mtime_ns))
    new.replace(reader.one)
    reader.look()
    assert reader.found == ["3 2"]


def test_what_is_bad_or_gone_is_told_once_and_read_when_it_is_good_again(reader: Reader) -> None:
    reader.watched.read()
    with capturedLogs() as events:
        reader.one.write_text("bad")
        reader.look()
        reader.look()
        reader.one.unlink()
        reader.look()
        reader.one.write_text("4")
        reader.look()
    assert [(each["log_level"], each.get("why")) for each in events] == [
        (LogLevel.warn, "it is bad"),
        (LogLevel.warn, "it is gone"),
        (LogLevel.info, None),
    ]
    assert {each["problem"] for each in events} == {f"reading {reader.one}, {reader.other}"}
    assert reader.found == ["1 2", "4 2"]


def test_that_there_is_nothing_yet_to_stay_in_force_is_told_and_known(reader: Reader) -> None:
    reader.one.write_text("bad")
    with capturedLogs() as events:
        reader.watched.read()
    [told] = events
    assert (told["log_level"], "before stays in force" in told["log_format"]) == (LogLevel.error, False)
    assert not reader.watched.loaded
    reader.one.write_text("3")
    reader.look()
    assert reader.watched.loaded
    reader.one.unlink()
    reader.look()
    assert reader.watched.loaded


def test_an_error_of_ours_is_logged_and_the_next_change_is_read(reader: Reader) -> None:
    reader.one.write_text("bug")
    with capturedLogs() as events:
        reader.look()
    assert [each["log_level"] for each in events] == [LogLevel.critical]
    reader.one.write_text("3")
    reader.look()
    assert reader.found == ["3 2"]
