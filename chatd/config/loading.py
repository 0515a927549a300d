"""Where options come from: the command line before the configuration file before the defaults.

A configuration file is TOML (``--config chatd.toml``): every option by the same name, without the dashes in front;
one that may be given several times has a list::

    listen = ["tcp:3000", "tcp6:3000"]
    workers = 4
    chat-log = "/var/log/chatd/chat.log"
"""

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import Field
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import msgspec

from chatd.config.settings import LOOPBACK_LISTEN, Config, options
from chatd.config.values import BadValue

Values = Mapping[str, Any]
"""Some options: their values, checked, by the names of Config's fields."""

FEWEST_WORKERS = 2


def name_of(knob: Field[Any]) -> str:
    """Give the name of an option, without dashes in front."""
    return knob.name.replace("_", "-")


def is_flag(knob: Field[Any]) -> bool:
    """Whether it is given without a value on the command line."""
    return knob.metadata["check"] is bool


def is_list(knob: Field[Any]) -> bool:
    """Whether it may be given several times."""
    return isinstance(knob.default, tuple)


def read_value(knob: Field[Any], text: str) -> Any:
    """Read the value of an option, or one of several. Raises BadValue, without repeating what the check does not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadValue("must be UTF-8") from None
    return knob.metadata["check"](text)


def read_file(path: str) -> Values:
    """Read a configuration file. Raises BadValue, in one line that names the file and what is wrong there."""
    known = {name_of(knob): knob for knob in options()}
    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except OSError as error:
        raise BadValue(f"{path}: {error.strerror}") from error
    except RecursionError:
        raise BadValue(f"{path}: no TOML that can be read: too many brackets in each other") from None
    except ValueError as error:  # of UTF-8 and of numbers too, not all of it TOMLDecodeError
        raise BadValue(f"{path}: no TOML: {error}") from error
    values = {}
    for name, value in found.items():
        if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(each, dict) for each in value)):
            raise BadValue(f"{path}: [{name}] is a section, but options stand without one: remove that line")
        if name not in known:
            raise BadValue(f"{path}: no such option: {name!r}{did_you_mean(name.replace('_', '-'), known)}")
        try:
            values[known[name].name] = _from_toml(known[name], value)
        except BadValue as error:
            raise BadValue(f"{path}: {name} {error}") from error
    return values


def _from_toml(knob: Field[Any], value: Any) -> Any:
    if is_flag(knob):
        if not isinstance(value, bool):
            raise BadValue("must be true or false")
        return value
    if is_list(knob):
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise BadValue(f'must be text, or a list of it: ["…", "…"], not {_shown(value)}')
        return tuple(read_value(knob, each) for each in value)
    if value == knob.default == "":  # as if it were not there
        return value
    kinds = knob.metadata["toml"]
    if isinstance(value, bool) or not isinstance(value, kinds):
        names = {int: "a number", str: "text"}
        raise BadValue(
            f"must be {' or '.join(name for kind, name in names.items() if kind in kinds)}, not {_shown(value)}"
        )
    return read_value(knob, str(value))


def _shown(value: Any) -> str:
    """Show a value as TOML writes it, as far as people care."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return repr(value) if isinstance(value, (str, int, float)) else str(value)


def did_you_mean(name: str, known: Iterable[str], dashes: str = "") -> str:
    """Ask whether another name was meant, in brackets; empty if none is like it."""
    like = difflib.get_close_matches(name, known, 1)
    return f" (did you mean {dashes}{like[0]}?)" if like else ""


def combine(given: Values, file: Values) -> Config:
    """Make the configuration of what the command line gives, and what a file says beside it."""
    values = {**file, **given}
    values["workers"] = values.get("workers") or max(FEWEST_WORKERS, os.cpu_count() or 1)
    return Config(**values)


def show(given: Values, file: Values, path: str, auto: Mapping[str, str] = MappingProxyType({})) -> str:
    """Say what is in force, and where it comes from, as a configuration file without its secrets.

    Auto is what ``auto`` stands for, by the names of Config's fields.
    """
    config = combine(given, file)
    lines = []
    for knob in options():
        value = getattr(config, knob.name)
        source = "command line" if knob.name in given else path if knob.name in file else "default"
        if knob.name in auto and value == "auto":
            source += f"; auto: {auto[knob.name]}"
        if knob.name == "listen":
            value = value or LOOPBACK_LISTEN
        shown = [without_password(each) for each in value] if is_list(knob) else without_password(value)
        lines.append((f"{name_of(knob)} = {msgspec.json.encode(shown).decode()}", source))
    width = min(40, max(len(line) for line, _ in lines))
    return "".join(f"{line:{width}}  # {source}\n" for line, source in lines)


def without_password(value: Any) -> Any:
    """Return a value as it may be shown: a URL without its password."""
    if not isinstance(value, str) or "://" not in value:
        return value
    try:
        parts = urlsplit(value)
    except ValueError:  # it is no URL, and no broker's
        return value
    if parts.password is None:
        return value
    return parts._replace(netloc=f"{parts.username}:***@{parts.netloc.rpartition('@')[2]}").geturl()
