"""Values as operators write them: one parser for each kind of value. Each raises BadValue with one line."""

import json
import os
import re
from collections.abc import Callable
from typing import TypeVar

Number = TypeVar("Number", int, float)


class BadValue(ValueError):
    """A value that cannot be used; its text is one line for the operator."""


def quoted(text: str) -> str:
    """Return a text in double quotes, on one line."""
    shown = json.dumps(text, ensure_ascii=False)
    return shown if shown.isprintable() else json.dumps(text)


# Numbers


def whole_number(least: int, most: int, advice: str = "") -> Callable[[str], int]:
    """Return a parser of whole numbers in a range. Digits may be grouped by ``_``."""
    advice = advice or f"use a whole number from {least} to {most}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise BadValue(f"{quoted(text)} is not a {'whole ' * is_number(text)}number; {advice}") from None
        return _in_range(text, value, least, most, str)

    return parse


def share(least: float, most: float) -> Callable[[str], float]:
    """Return a parser of numbers in a range."""

    def parse(text: str) -> float:
        if not is_number(text):
            raise BadValue(f"{quoted(text)} is not a number; use a number from {least:g} to {most:g}")
        return _in_range(text, float(text), least, most, "{:g}".format)

    return parse


def is_number(text: str) -> bool:
    """Return whether a text is a finite number."""
    try:
        return abs(float(text)) < float("inf")
    except ValueError:
        return False


def _in_range(text: str, value: Number, least: Number, most: Number, show: Callable[[Number], str]) -> Number:
    if value < least:
        raise BadValue(f"{text} is too small; the minimum is {show(least)}")
    if value > most:
        raise BadValue(f"{text} is too large; the maximum is {show(most)}")
    return value


# Durations and sizes

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def seconds_of(text: str) -> float:
    """Return a duration in seconds: a number with ms, s, m, h or d, or a number of seconds. Raise BadValue."""
    found = re.fullmatch(r"(-?[0-9][0-9_]*(?:\.[0-9]+)?(?:e-?[0-9]{1,2})?) ?(ms|[smhd]?)", text.strip(), re.ASCII)
    if found is None or not is_number(found[1]):
        raise BadValue(f"{quoted(text)} is not a duration; use a number with a unit such as 500ms, 10s, 5m or 24h")
    return float(found[1]) * _DURATION_UNITS[found[2]]


def bytes_of(text: str) -> int:
    """Return a size in bytes: a number with kB, KiB, MB, MiB, GB or GiB, or a number of bytes. Raise BadValue."""
    found = re.fullmatch(r"(-?[0-9]{1,15}(?:_[0-9]{1,3}){0,4}) ?([a-z]*)", text.strip().lower(), re.ASCII)
    if found is None or found[2] not in _SIZE_UNITS:
        raise BadValue(f"{quoted(text)} is not a size; use a number with a unit such as 64KiB, 100MB or 1GiB")
    return int(found[1]) * _SIZE_UNITS[found[2]]


def duration(least: float, most: float) -> Callable[[str], float]:
    """Return a parser of durations in a range, in seconds."""
    return lambda text: _in_range(text, seconds_of(text), least, most, shown_duration)


def whole_seconds(least: int, most: int) -> Callable[[str], int]:
    """Return a parser of durations in a range, which it rounds to seconds."""
    return lambda text: round(duration(least, most)(text))


def size(least: int, most: int) -> Callable[[str], int]:
    """Return a parser of sizes in a range, in bytes."""
    return lambda text: _in_range(text, bytes_of(text), least, most, shown_size)


def size_or(word: str, least: str, example: str) -> Callable[[str], str]:
    """Return a parser of one word, or of a size of at least so much."""

    def parse(text: str) -> str:
        try:
            if text == word or bytes_of(text) >= bytes_of(least):
                return text
        except BadValue:
            pass
        raise BadValue(f"{quoted(text)} is not {word} or a size of at least {least}; use for example {example}")

    return parse


def shown_duration(seconds: float) -> str:
    """Return a duration as an operator writes it: ``24h``, ``30s``, ``2ms``."""
    for unit in ("d", "h", "m", "s"):
        count = seconds / _DURATION_UNITS[unit]
        if count >= 1 and (count == int(count) or unit == "s") and (unit != "d" or count > 1):
            return f"{count:.12g}{unit}"
    return f"{seconds * 1000:.12g}ms" if seconds else "0"


def shown_size(count: int) -> str:
    """Return a size as an operator writes it: ``16KiB``, ``1MiB``."""
    for unit in ("GiB", "MiB", "KiB"):
        if count and count % _SIZE_UNITS[unit.lower()] == 0:
            return f"{count // _SIZE_UNITS[unit.lower()]}{unit}"
    return str(count)


# Rates


def rate(text: str) -> str:
    """Check a rate: ``auto``, ``off`` or a number. Raise BadValue."""
    if text not in ("auto", "off"):
        if not is_number(text):
            raise BadValue(f"{quoted(text)} is not a number; use auto, off or a number over 0")
        _in_range(text, float(text), 0.001, 1e9, "{:.12g}".format)
    return text


def byte_rate(text: str) -> str:
    """Check a rate in bytes per second, which may have the unit of a size. Return that as a number. Raise BadValue."""
    if text in ("auto", "off") or is_number(text):
        return rate(text)
    try:
        return rate(str(bytes_of(text)))
    except BadValue:
        raise BadValue(f"{quoted(text)} is not a size; use auto, off or bytes per second such as 64KiB") from None


def limit(text: str, auto: float) -> float:
    """Return the number that a rate is, 0 for none; auto is what ``auto`` stands for."""
    return auto if text == "auto" else 0.0 if text == "off" else float(text)


# Texts


def one_of(*words: str) -> Callable[[str], str]:
    """Return a parser of one of these words."""

    def parse(text: str) -> str:
        if text not in words:
            raise BadValue(f"{quoted(text)} is unknown; use {' or '.join([', '.join(words[:-1]), words[-1]])}")
        return text

    return parse


def switch(text: str) -> bool:
    """Return a switch in an environment variable: true or false. Raise BadValue."""
    if text not in ("true", "false"):
        raise BadValue(f"{quoted(text)} is not a switch; use true or false")
    return text == "true"


def one_line(text: str) -> str:
    """Check that a text has one line. Raise BadValue."""
    if not text.isprintable():
        raise BadValue(f"{quoted(text)} is not one line of text")
    return text


def key_prefix(text: str) -> str:
    """Check a prefix of keys. Raise BadValue."""
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,64}", text):
        raise BadValue(f"{quoted(text)} is not a prefix; use 1 to 64 letters, digits or any of _ . : -")
    return text


# Paths

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def expanded(path: str) -> str:
    """Replace ``~`` and ``~user`` at the beginning of a path by the home folder. Raise BadValue."""
    found = os.path.expanduser(path)
    if found.startswith("~"):
        home = quoted(path.partition("/")[0])
        raise BadValue(f"{home} is no home folder on this host; write a file whose name begins with ~ as ./~…")
    return found


def log_path(text: str) -> str:
    """Return the path of the chat log. Raise BadValue."""
    if text == "-":
        raise BadValue('"-" is not a file; use a file on a disk, and follow it with: tail -F FILE')
    if not text.strip() or text.endswith("/") or _CONTROL.search(text):
        raise BadValue(f"{quoted(text)} does not name a file")
    path = expanded(text)
    if os.path.isdir(path):
        raise BadValue(f"{quoted(text)} is a folder; use the path of a file")
    return path


def file_path(text: str) -> str:
    """Return the absolute path of a file. Raise BadValue."""
    if not text.strip() or _CONTROL.search(text):
        raise BadValue(f"{quoted(text)} does not name a file")
    return os.path.abspath(expanded(text))


def folder_path(text: str) -> str:
    """Return the path of a folder. Raise BadValue."""
    if not text.strip() or not text.isprintable():
        raise BadValue(f"{quoted(text)} does not name a folder")
    path = expanded(text)
    if os.path.exists(path) and not os.path.isdir(path):
        raise BadValue(f"{quoted(text)} is a file; use the path of a folder")
    return path
