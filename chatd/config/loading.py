"""The sources of options, in order of priority: command line, environment, configuration file, defaults.

A configuration file is TOML (``--config chatd.toml``): general options first, the others in sections::

    workers = 4

    [listen]
    address = ["[::1]:3000", ":8080"]

    [chat_log]
    file = "/var/log/chatd/chat.log"

An environment variable is ``CHATD_`` with the name of the option on the command line: ``CHATD_REDIS_PREFIX``.
"""

import difflib
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import msgspec

from chatd.config.listen import endpoints_of
from chatd.config.renamed import MOVED, RENAMED, current_value, deprecation
from chatd.config.settings import LOOPBACK_LISTEN, SECTIONS, Config, Option, bounds, options, split_bound
from chatd.config.values import BadValue, quoted

FEWEST_WORKERS = 2


@dataclass
class Source:
    """Options from one place."""

    name: str
    """The place: ``command line``, ``environment``, or the path of a file."""
    values: dict[str, Any] = field(default_factory=dict)
    """Parsed values, by the fields of Config."""
    warnings: list[str] = field(default_factory=list)
    """One line for each name of an earlier release."""

    def add(self, option: Option, text: str) -> None:
        """Parse the text of an option and store it; one of a list is added to those before. Raise BadValue."""
        value = parse_value(option, text)
        self.values[option.name] = (*self.values.get(option.name, ()), value) if option.is_list else value

    def add_bound(self, text: str) -> None:
        """Parse an internal bound, given as ``NAME=VALUE``, and store it. Raise BadValue."""
        self.add(*split_bound(text))

    def add_renamed(self, old: str, text: str) -> None:
        """Parse the value of an option that has an old name on the command line, and warn. Raise BadValue."""
        option = field_option(RENAMED[old])
        self.warn(f"--{old}", f"--tuning {option.name}=…" if option.section == "tuning" else f"--{option.flag}")
        self.add(option, current_value(old, text))

    def warn(self, old: str, new: str) -> None:
        """Store the warning about an old name, once."""
        warning = deprecation(old, new)
        if warning not in self.warnings:
            self.warnings.append(warning)


def field_option(name: str) -> Option:
    """Return the option or the internal bound of a field of Config."""
    return next(option for option in (*options(), *bounds()) if option.name == name)


def parse_value(option: Option, text: str) -> Any:
    """Return the value of an option, or one of several. Raise BadValue."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadValue("the value is not UTF-8") from None
    return option.parse(text)


# The environment


def read_environment(environment: Mapping[str, str]) -> Source:
    """Return the options that environment variables give. Several values of one are separated by spaces."""
    source = Source("environment")
    moved = [field_option(name) for name in MOVED.values()]
    for option in (*options(), *moved):
        if option.variable in environment:
            text = environment[option.variable]
            _add_all(source, option, option.variable, text.split() if option.is_list else [text])
            if option in moved:
                source.warn(option.variable, f"CHATD_TUNING={option.name}=…")
    for text in environment.get("CHATD_TUNING", "").split():
        try:
            source.add_bound(text)
        except BadValue as error:
            raise BadValue(f"CHATD_TUNING: {text.partition('=')[0]}: {error}") from error
    return source


def _add_all(source: Source, option: Option, name: str, texts: Iterable[str]) -> None:
    try:
        for text in texts:
            source.add(option, text)
    except BadValue as error:
        raise BadValue(f"{name}: {error}") from error


# A configuration file


def read_file(path: str) -> Source:
    """Return the options of a configuration file. Raise BadValue in one line with the file and the option."""
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise BadValue(f"{path}: {error.strerror}") from error
    except RecursionError:
        raise BadValue(f"{path} is not TOML: too many nested brackets") from None
    except ValueError as error:  # of UTF-8 and of numbers too, not all of it TOMLDecodeError
        raise BadValue(f"{path} is not TOML: {error}") from error
    source = Source(path)
    try:
        for section, key, value in _entries(content):
            _add_entry(source, section, key, value)
    except BadValue as error:
        raise BadValue(f"{path}: {error}") from error
    return source


def _entries(content: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Return section, key and value of everything in a file. Raise BadValue for unknown sections."""
    for name, value in content.items():
        if not isinstance(value, dict):
            yield "", name, value
        elif name in SECTIONS:
            yield from ((name, key, value[key]) for key in value)
        else:
            known = [section for section in SECTIONS if section]
            raise BadValue(f"[{name}] is not a section{did_you_mean(name, known)}; sections are {', '.join(known)}")


def _add_entry(source: Source, section: str, key: str, value: Any) -> None:
    known = {option.key: option for option in (*options(), *bounds()) if option.section == section}
    name = f"[{section}] {key}" if section else key
    old = {**{option.flag: option.name for option in options()}, **RENAMED, **MOVED}
    if key in known:
        option = known[key]
    elif name in old:
        option = field_option(old[name])
        source.warn(f"{source.name}: {name}", option.place)
    else:
        raise BadValue(f"{name} is not an option{_advice(section, key)}")
    if value == option.default == "":  # as if it were not there
        source.values[option.name] = value
        return
    try:
        texts = [_as_text(option, one) for one in value] if option.is_list and isinstance(value, list) else None
        for text in texts if texts is not None else [_as_text(option, value)]:
            source.add(option, current_value(key, text) if key not in known else text)
        if texts == []:
            source.values[option.name] = ()
    except BadValue as error:
        raise BadValue(f"{name}: {error}") from error


def _advice(section: str, key: str) -> str:
    """Return what was probably meant by a key that is none."""
    asked = key.replace("-", "_")
    everywhere = {option.key: option for option in (*bounds(), *options())} | {o.name: o for o in options()}
    if option := everywhere.get(asked):
        return f"; use {option.place}"
    here = [option.key for option in (*options(), *bounds()) if option.section == section]
    return did_you_mean(asked, here) or did_you_mean(asked, everywhere)


def _as_text(option: Option, value: Any) -> str:
    """Return a value of TOML as it would be on the command line. Raise BadValue."""
    if option.is_switch:
        if not isinstance(value, bool):
            raise BadValue(f"{_shown(value)} is not a switch; use true or false")
        return _shown(value)
    if isinstance(value, str) or (
        isinstance(value, (int, float)) and not isinstance(value, bool) and option.takes_number
    ):
        return str(value)
    more = " or a list of it" if option.is_list else " or a number" if option.takes_number else ""
    raise BadValue(f"{_shown(value)} is not text in quotes{more}")


def _shown(value: Any) -> str:
    """Return a value as TOML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return quoted(value) if isinstance(value, str) else str(value)


def did_you_mean(name: str, known: Iterable[str], dashes: str = "") -> str:
    """Return a question whether another name was meant, in brackets; empty if none is like it."""
    like = difflib.get_close_matches(name, known, 1)
    return f" (did you mean {dashes}{like[0]}?)" if like else ""


# All of them


def combine(*sources: Source) -> Config:
    """Return the configuration of some sources; earlier ones override later ones. Raise BadValue."""
    values = _merged(sources)
    values["workers"] = values.get("workers") or max(FEWEST_WORKERS, os.cpu_count() or 1)
    config = Config(**values)
    values["listen"] = endpoints_of(config.listen, config.tls_cert, config.tls_key)
    values["metrics_listen"] = endpoints_of(config.metrics_listen, "", "")
    return Config(**values)


def _merged(sources: Iterable[Source]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for source in sources:
        values = {**source.values, **values}
    return values


def show(sources: Sequence[Source], auto: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return the options in force as a configuration file without its secrets, each with its source.

    Auto is what ``auto`` stands for, by the fields of Config. The internal bounds that were given, or that are in
    auto, are shown.
    """
    config, values = combine(*sources), _merged(sources)
    lines: list[tuple[str, str]] = []
    for section in SECTIONS:
        shown = [option for option in (*options(), *bounds()) if option.section == section]
        shown = [option for option in shown if section != "tuning" or option.name in {**values, **auto}]
        lines += [("", ""), (f"[{section}]", "")] if section and shown else []
        for option in shown:
            value = values.get(option.name, getattr(config, option.name))
            source = next((source.name for source in sources if option.name in source.values), "default")
            if option.name in auto and value == "auto":
                source += f"; auto: {auto[option.name]}"
            if option.name == "workers":
                value = config.workers
            elif option.name == "listen":
                value = value or LOOPBACK_LISTEN
            clean = [without_password(one) for one in value] if option.is_list else without_password(value)
            lines.append((f"{option.key} = {msgspec.json.encode(clean).decode()}", source))
    width = min(40, max(len(line) for line, _ in lines))
    return "".join(f"{line:{width}}  # {source}\n" if source else f"{line}\n" for line, source in lines)


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
