"""``twistd chatd``: options to services, and one line for what can't be, before anything runs."""

import os
import sys
from collections.abc import Callable
from dataclasses import Field
from functools import partial
from typing import Any

from twisted.application.service import IService
from twisted.python import usage

import chatd
from chatd.config import BadValue, Config, options
from chatd.gate.origin import Origins
from chatd.gate.proxies import Proxies
from chatd.parent.daemon import Daemon
from chatd.parent.ports import Ports
from chatd.parent.state import State
from chatd.parent.valkey import find_server


def _checked(name: str, check: Callable[[str], Any], text: str) -> Any:
    """Read the value of one option. Raises UsageError, without repeating what the check does not repeat."""
    try:
        text.encode()
        return check(text)
    except UnicodeEncodeError:
        raise usage.UsageError(f"--{name} must be UTF-8") from None
    except BadValue as error:
        raise usage.UsageError(f"--{name} {error}") from error


def _name(knob: Field[Any]) -> str:
    return knob.name.replace("_", "-")


def _is_flag(knob: Field[Any]) -> bool:
    return knob.metadata["check"] is bool


def _is_list(knob: Field[Any]) -> bool:
    """Whether it may be given several times."""
    return isinstance(knob.default, tuple)


def _takes_another(knob: Field[Any]) -> Callable[["Options", str], None]:
    """Make the method by which usage.Options takes one more value of a list."""
    name = _name(knob)

    def take(self: "Options", value: str) -> None:
        self[name] += (_checked(name, knob.metadata["check"], value),)

    take.__doc__ = knob.metadata["help"]
    return take


def _parameter(knob: Field[Any]) -> list[Any]:
    """Describe one knob to usage.Options: name, short name, default, help, check."""
    name = _name(knob)
    check = partial(_checked, name, knob.metadata["check"])
    unit = f" ({knob.metadata['unit']})" if knob.metadata["unit"] else ""
    return [name, None, knob.default if knob.default != "" else None, knob.metadata["help"] + unit, check]


class Options(usage.Options):
    """The options of ``twistd chatd``."""

    synopsis = "[options]"
    longdesc = (
        "A realtime chat daemon. Connect with: websocat ws://localhost:3000 (the lobby), or ws://localhost:3000/ops "
        "(the room ops). Every line goes to everybody else in the room, and stands in logs/chat.log."
    )
    optFlags = [[_name(knob), None, knob.metadata["help"]] for knob in options() if _is_flag(knob)]  # noqa: RUF012
    optParameters = [_parameter(knob) for knob in options() if not _is_flag(knob) and not _is_list(knob)]  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        for knob in filter(_is_list, options()):
            self[_name(knob)] = ()

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"chatd {chatd.__version__}")  # noqa: T201 - to whoever asked
        sys.exit(0)

    def parseOptions(self, options: Any = None) -> None:
        """Read the command line; a bad value ends with one line, not with a page of help before it."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            sys.exit(f"twistd chatd: {error}")

    def parseArgs(self) -> None:
        """Take no arguments."""

    def config(self) -> Config:
        """Give the configuration these options make."""
        given = {knob: self[_name(knob)] for knob in options()}
        values: dict[str, Any] = {knob.name: value for knob, value in given.items() if value is not None}
        values["compress"] = bool(values["compress"])
        values["workers"] = values["workers"] or max(2, os.cpu_count() or 1)
        return Config(**values)


for _knob in filter(_is_list, options()):
    setattr(Options, f"opt_{_knob.name}", _takes_another(_knob))


def _check_utf8(what: str, path: str) -> None:
    """See that workers can be told a path, which a working folder may have made what it is. Raises BadValue."""
    try:
        os.path.abspath(path).encode()
    except UnicodeEncodeError:
        raise BadValue(f"{what} is not UTF-8: {os.path.abspath(path)!r}") from None


def makeService(options: Options) -> IService:
    """Make the service; what can't be used is said in one line before anything runs."""
    from twisted.internet import reactor  # noqa: PLC0415 - twistd has installed it by now

    config = options.config()
    try:
        _check_utf8("the chat log's path", config.chat_log)
        _check_utf8("the state folder's path", config.state)
        Origins(config.origin)
        Proxies(config.trusted_proxy)
        server_program = "" if config.redis else find_server()
        if config.state and server_program:
            State(config.state, config.state_lock_seconds).check()
        ports = Ports(config.listen, config.workers, config.accept_backlog)
        ports.bind()
        ports.close()
    except BadValue as error:
        sys.exit(f"twistd chatd: {error}")
    return Daemon(reactor, config, server_program)
