"""Files that are read again when they change."""

import os
from pathlib import Path

import pytest
from twisted.logger import LogLevel, capturedLogs

from chatd.config import BadValue
from chatd.watched import Watched


class Reader:
    """Reads two files, and remembers what it read."""

    def __init__(self, folder: Path) -> None:
        self.one, self.other = folder / "one", folder / "other"
        self.one.write_text("1")
        self.other.write_text("2")
        self.found: list[str] = []
        self.watched = Watched([str(self.one), str(self.other)], self.read)

    def read(self) -> None:
        try:
            texts = [each.read_text() for each in (self.one, self.other)]
        except OSError as error:
            raise BadValue("it is gone") from error
        if "bad" in texts:
            raise BadValue("it is bad")
        self.found.append(" ".join(texts))


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(tmp_path)


def test_what_has_not_changed_is_not_read(reader: Reader) -> None:
    reader.watched.check()
    assert reader.found == []


def test_what_has_changed_is_read_once(reader: Reader) -> None:
    reader.other.write_text("22")
    reader.watched.check()
    reader.watched.check()
    assert reader.found == ["1 22"]


def test_a_file_that_took_its_place_is_read(reader: Reader, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.write_text("3")
    found = os.stat(reader.one)
    os.utime(new, ns=(found.st_atime_ns, found.st_mtime_ns))
    new.replace(reader.one)
    reader.watched.check()
    assert reader.found == ["3 2"]


def test_what_is_bad_or_gone_is_told_once_and_read_when_it_is_good_again(reader: Reader) -> None:
    with capturedLogs() as events:
        reader.one.write_text("bad")
        reader.watched.check()
        reader.watched.check()
        reader.one.unlink()
        reader.watched.check()
        reader.one.write_text("4")
        reader.watched.check()
    assert [(each["log_level"], each.get("why")) for each in events] == [
        (LogLevel.warn, "it is bad"),
        (LogLevel.warn, "it is gone"),
        (LogLevel.info, None),
    ]
    assert {each["trouble"] for each in events} == {f"reading {reader.one}, {reader.other}"}
    assert reader.found == ["4 2"]
