"""Values as operators write them: one parser for each kind, which raises BadValue with one line."""

import os
import re
from collections.abc import Callable


class BadValue(ValueError):
    """A value that can't be used; its text is one line for whoever typed it."""


def whole_number(least: int, most: int, unit: str = "") -> Callable[[str], int]:
    """Make a check for whole numbers from least to most; ``_`` between digits is fine."""
    number = f"whole number of {unit}" if unit else "whole number"

    def check(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise BadValue(f"must be a {number} from {least} to {most}, not {text!r}")
        return value

    return check


def seconds(least: float, most: float) -> Callable[[str], float]:
    """Make a check for a time in seconds from least to most."""
    return _number("seconds", least, most)


def milliseconds(least: float, most: float) -> Callable[[str], float]:
    """Make a check for a time in milliseconds from least to most."""
    return _number("milliseconds", least, most)


def _number(unit: str, least: float, most: float) -> Callable[[str], float]:
    def check(text: str) -> float:
        value = _float(text)
        if not least <= value <= most:
            raise BadValue(f"must be a number of {unit} from {least:.12g} to {most:.12g}, not {text!r}")
        return value

    return check


def key_prefix(text: str) -> str:
    """Check a prefix of keys. Raise BadValue."""
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,64}", text):
        raise BadValue(f"must be 1 to 64 letters, digits or any of _ . : -, not {text!r}")
    return text


def one_of(*words: str) -> Callable[[str], str]:
    """Make a check for one of these words."""

    def check(text: str) -> str:
        if text not in words:
            raise BadValue(f"must be {' or '.join(words)}, not {text!r}")
        return text

    return check


_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def size(text: str) -> int:
    """Read a size: a number of bytes, or a number with a unit (100MB, 1 GiB) in upper or lower case. Raise BadValue."""
    found = re.fullmatch(r"([0-9]{1,15}(?:_[0-9]{1,3}){0,4}) ?([a-z]*)", text.strip().lower(), re.ASCII)
    if found is None or found[2] not in _UNITS:
        raise BadValue(f"must be a size such as 100MB or 1GiB, not {text!r}")
    return int(found[1]) * _UNITS[found[2]]


def size_between(least: int, most: int) -> Callable[[str], int]:
    """Make a check for a size in bytes from least to most."""

    def check(text: str) -> int:
        value = _size_or_none(text)
        if value is None or not least <= value <= most:
            raise BadValue(
                f"must be from {least} to {most} bytes, as a number or with a unit (64kB, 64KiB, 1MB), not {text!r}"
            )
        return value

    return check


def _size_or_none(text: str) -> int | None:
    try:
        return size(text)
    except BadValue:
        return None


def _size_or_word(word: str, least: str, example: str) -> Callable[[str], str]:
    """Make a check for a word, or a size of at least so much."""

    def check(text: str) -> str:
        if text != word and (_size_or_none(text) or 0) < size(least):
            raise BadValue(f"must be {word}, or a size of at least {least} such as {example}, not {text!r}")
        return text

    return check


BROKER_MEMORY_LEAST = "32MiB"
"""The least memory that a private broker is of use with."""

CHAT_LOG_LEAST = "10kB"
"""The smallest size at which a chat log is rotated: with less, each few messages would become a file."""

memory_size = _size_or_word("auto", BROKER_MEMORY_LEAST, "512MiB")
rotation = _size_or_word("day", CHAT_LOG_LEAST, "100MB")


def limit(text: str, auto: float) -> float:
    """Give the number that a limit is; 0: there is none. Auto is what ``auto`` stands for."""
    return auto if text == "auto" else 0.0 if text == "off" else float(text)


def rate(text: str) -> str:
    """Check a rate: ``auto``, ``off`` or a number. Raise BadValue."""
    if text not in ("auto", "off") and not 0.001 <= _float(text) <= 1e9:
        raise BadValue(f"must be auto, off or a number over 0, up to 1000000000, not {text!r}")
    return text


def byte_rate(text: str) -> str:
    """Check a limit in bytes per second. Return a size with a unit as a number."""
    number = text if _size_or_none(text) is None else str(size(text))
    try:
        return rate(number)
    except BadValue:
        raise BadValue(
            f"must be auto, off or a number over 0 (bytes per second; also as 64kB or 64KiB), not {text!r}"
        ) from None


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0


def one_line(text: str) -> str:
    """Check that a text has one line. Raise BadValue."""
    if not text.isprintable():
        raise BadValue("must be text on one line")
    return text


def expanded(path: str) -> str:
    """Replace ``~`` and ``~user`` at the beginning of a path by the home folder. Raise BadValue."""
    found = os.path.expanduser(path)
    if found.startswith("~"):
        raise BadValue(f"begins with {found.partition('/')[0]}, which is no home folder here (a name with ~: ./~…)")
    return found


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def log_path(text: str) -> str:
    """Return the path of the chat log. Raise BadValue."""
    if not text.strip() or text.endswith("/") or _CONTROL.search(text):
        raise BadValue("must name a file")
    if text == "-":
        raise BadValue("must name a file on a disk, not '-'; follow it with: tail -F FILE")
    path = expanded(text)
    if os.path.isdir(path):
        raise BadValue(f"{text!r} is a folder; it must name a file")
    return path


def file_path(text: str) -> str:
    """Read the path of a file, from the root on. Raise BadValue."""
    if not text.strip() or _CONTROL.search(text):
        raise BadValue("must name a file")
    return os.path.abspath(expanded(text))


def folder_path(text: str) -> str:
    """Return the path of a folder. Raise BadValue."""
    if not text.strip() or not text.isprintable():
        raise BadValue("must name a folder")
    path = expanded(text)
    if os.path.exists(path) and not os.path.isdir(path):
        raise BadValue(f"{text!r} is a file; it must name a folder")
    return path
