"""``twistd chatd``: read the options, check them, make the service. A bad option ends the start with one line."""

import getopt
import os
import re
import sys
import tempfile
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from twisted.application.service import IService
from twisted.logger import Logger
from twisted.python import usage

import chatd
from chatd.access.bans import BanList
from chatd.access.client_address import TrustedProxies
from chatd.access.origins import Hosts, Origins
from chatd.access.revoked_tokens import RevokedTokens
from chatd.access.tokens import TokenVerifier
from chatd.broker.credentials import check_credentials
from chatd.chatlog.file import check_log
from chatd.config.broker_url import broker_address
from chatd.config.listen import check_endpoint, is_address, is_local, suggestion
from chatd.config.loading import Source, combine, did_you_mean, read_environment, read_file, show
from chatd.config.renamed import RENAMED
from chatd.config.settings import LOOPBACK_LISTEN, SECTIONS, Config, Option, bounds, options
from chatd.config.values import BadValue, file_path, quoted
from chatd.supervisor.data_dir import DataDir
from chatd.supervisor.private_broker import find_server, memory_of
from chatd.supervisor.server_log import ServerLog
from chatd.supervisor.service import ChatService
from chatd.supervisor.shutdown import Shutdown
from chatd.supervisor.sockets import ListeningSockets, check_identity

log = Logger()

SUGGESTIONS = 3
"""The most options that are named for the beginning of a name."""

_MEANT = {
    **dict.fromkeys(("p", "port", "b", "bind", "a", "addr", "address", "interface", "ip"), "listen"),
    **dict.fromkeys(("tls", "ssl", "cert", "certificate"), "tls-cert FILE --tls-key FILE"),
    **dict.fromkeys(("key",), "tls-key FILE"),
    **dict.fromkeys(("socket", "unix-socket", "unix"), "listen unix:PATH"),
    **dict.fromkeys(("c", "config-file", "configuration"), "config FILE"),
    **dict.fromkeys(("j", "w", "threads", "processes", "procs", "cores"), "workers N"),
    **dict.fromkeys(("data", "datadir", "dir"), "data-dir DIR"),
    **dict.fromkeys(("cors", "allowed-origins"), "allowed-origin URL"),
    **dict.fromkeys(("proxy", "real-ip"), "trusted-proxy ADDRESS"),
    **dict.fromkeys(("password", "requirepass"), "redis-password-file FILE"),
    **dict.fromkeys(("secret", "jwt", "jwt-secret"), "auth-key FILE"),
    **dict.fromkeys(("v", "V"), "version"),
}
"""Names of options of other servers, and the words to type here instead, without the dashes in front."""

WIDTH = 100
"""Columns of the help."""


def _takes(add: Callable[["Options", str], None], name: str) -> Callable[["Options", str], None]:
    """Return the method by which usage.Options takes a value."""

    def take(self: "Options", value: str) -> None:
        try:
            add(self, value)
        except BadValue as error:
            raise usage.UsageError(f"--{name}: {error}") from error

    return take


def _method(option: Option) -> Callable[["Options", str], None]:
    return _takes(lambda self, value: self.given.add(option, value), option.flag)


def _renamed_method(old: str) -> Callable[["Options", str], None]:
    return _takes(lambda self, value: self.given.add_renamed(old, value), old)


def _switch(option: Option, text: str) -> Callable[["Options"], None]:
    return lambda self: self.given.add(option, text)


class Options(usage.Options):
    """The options of ``twistd chatd``."""

    synopsis = "[options]"
    optFlags = [["show-config", None, ""]]  # noqa: RUF012
    optParameters = [["config", None, None, ""]]  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.given = Source("command line")

    def getUsage(self, width: int | None = None) -> str:
        """Return the help, grouped by section."""
        return usage_text()

    def opt_tuning(self, text: str) -> None:
        """Set an internal bound."""
        try:
            self.given.add_bound(text)
        except BadValue as error:
            raise usage.UsageError(f"--tuning: {quoted(text.partition('=')[0])}: {error}") from error

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"chatd {chatd.__version__}")  # noqa: T201 - to whoever asked
        sys.exit(0)

    def opt_help(self) -> None:
        """Print this help and exit."""
        super().opt_help()

    opt_h = opt_help

    def parseOptions(self, options: Any = None) -> None:
        """Read the command line. End with one line for a bad value, without a page of help before it."""
        self._words = list(sys.argv[1:] if options is None else options)
        try:
            super().parseOptions(self._words)
        except usage.UsageError as error:
            unread = error.__context__
            sys.exit(f"twistd chatd: {self._unread(unread) if isinstance(unread, getopt.GetoptError) else error}")

    def parseArgs(self, *words: str) -> None:
        """Raise UsageError for any argument."""
        if words:
            raise usage.UsageError(self._unexpected(words))

    def postOptions(self) -> None:
        """Print the options in force and exit, with ``--show-config``."""
        name = "--config"
        if self["config"] is None and "CHATD_CONFIG" in os.environ:
            name, self["config"] = "CHATD_CONFIG", os.environ["CHATD_CONFIG"]
        if self["config"] is not None:
            try:
                self["config"] = file_path(self["config"])  # it is read again when we may be elsewhere
            except BadValue as error:
                raise usage.UsageError(f"{name}: {error}") from error
        if self["show-config"]:
            try:
                config = _config(self)
                if _stays_this_user(self.parent):
                    check_log(os.path.abspath(config.chat_log), make=False)
                shown = show(self.sources(), _auto(config))
            except BadValue as error:
                raise usage.UsageError(str(error)) from error
            for warning in (warning for source in self.sources() for warning in source.warnings):
                print(f"twistd chatd: {warning}", file=sys.stderr)  # noqa: T201 - to whoever asked
            print(shown, end="")  # noqa: T201 - to whoever asked
            sys.exit(0)
        if self.parent is not None:
            _check_twistd(self.parent)

    def _unread(self, error: getopt.GetoptError) -> str:
        """Return why the command line cannot be read, and what was probably meant."""
        name = error.opt
        shown = f"--{name}" if len(name) > 1 else f"-{name}"
        if "requires argument" in error.msg:
            return f"{shown} needs a value"
        if "must not have an argument" in error.msg:
            return f"{shown} takes no value"
        names = [option.rstrip("=") for option in self.longOpt]
        known = [option for option in names if option not in RENAMED]
        if "not a unique prefix" in error.msg:
            current, old = ([option for option in some if option.startswith(name)] for some in (known, RENAMED))
            return f"{shown} may be {self._any_of(current or old)}"
        if name in _MEANT:
            return f"there is no option {shown}; use --{self._meant(name, shown)}"
        if self.parent is not None and name in self.parent.synonyms:
            return f"{shown} is an option of twistd, which stands before chatd: twistd {shown} … chatd …"
        return f"there is no option {shown}{did_you_mean(name, known, '--')}; all of them: twistd chatd --help"

    def _any_of(self, names: Iterable[str]) -> str:
        """Return a list of some options, and whether there are more."""
        *most, last = [f"--{name}" for name in sorted(names)]
        most, last = (most, last) if len(most) < SUGGESTIONS else (most[:SUGGESTIONS], "another")
        return f"{', '.join(most)} or {last}"

    def _meant(self, name: str, shown: str) -> str:
        """Return what is typed for an option of other servers: for a place to listen, with the place."""
        if _MEANT[name] != "listen":
            return _MEANT[name]
        index, word = next(((index, word) for index, word in enumerate(self._words) if word.startswith(shown)), (0, ""))
        value = word.removeprefix(shown).removeprefix("=") or "".join(self._words[index + 1 : index + 2])
        plain = f":{value}" if value.isdigit() else value or ":3000"
        return f"listen {plain if is_address(plain) else suggestion(value) or ':3000'}"

    def _unexpected(self, words: Sequence[str]) -> str:
        """Return which argument is not expected. A URL is not repeated, because it may hold a password."""
        if unicodedata.category(words[0][:1] or "x") == "Pd" and words[0][0] != "-":  # as word processors make it of --
            return f"{words[0]!r} begins with a dash that is no hyphen; type --"
        word = "a URL" if "@" in words[0] or "://" in words[0] else repr(words[0])
        before = self._words[: -len(words)][-1:]
        if before and re.fullmatch(r"--[a-z-]+", before[0]):  # had it a value, that would not be left over
            return f"{before[0]} takes no value, but {word} stands behind it"
        return f"it takes options only, and {word} is none; all of them: twistd chatd --help"

    def sources(self) -> list[Source]:
        """Return where options come from, the first one first: command line, environment, file. Raise BadValue."""
        file = [read_file(self["config"])] if self["config"] is not None else []
        return [self.given, read_environment(os.environ), *file]

    def config(self) -> Config:
        """Return the configuration that all sources make now. Raise BadValue."""
        return combine(*self.sources())


def _add_methods() -> None:
    """Add the methods of all options to Options, as usage.Options expects them."""
    for option in options():
        if option.is_switch:
            setattr(Options, f"opt_{option.name}", _switch(option, "true"))
            setattr(Options, f"opt_no_{option.name}", _switch(option, "false"))
        else:
            setattr(Options, f"opt_{option.name}", _method(option))
    for old in RENAMED:
        setattr(Options, f"opt_{old.replace('-', '_')}", _renamed_method(old))


_add_methods()


def usage_text() -> str:
    """Return the help of ``twistd chatd``, grouped by section."""
    lines = [
        "",  # Twisted prints the synopsis before it
        *(line for paragraph in INTRODUCTION for line in (*_wrapped(paragraph), "")),
        *_entry("-h, --help", "Print this help and exit."),
        *_entry("--version", "Print the version and exit."),
        *_entry("--config FILE", CONFIG_HELP),
        *_entry("--show-config", SHOW_CONFIG_HELP),
        *_entry("--tuning NAME=VALUE", TUNING_HELP),
    ]
    for section, title in SECTIONS.items():
        shown = [option for option in options() if option.section == section]
        if shown:
            lines += ["", f"{title}{f' [{section}]' if section else ''}", ""]
        for option in shown:
            flag = f"--{option.flag} {option.value}" if option.value else f"--{option.flag}, --no-{option.flag}"
            lines += _entry(flag, f"{option.help} [default: {option.shown_default}]")
    return "\n".join(lines) + "\n"


INTRODUCTION = (
    "A realtime chat daemon. Connect to it with: websocat ws://localhost:3000 (the room lobby), or "
    "websocat ws://localhost:3000/ops (the room ops).",
    "Options are read from the command line, from environment variables and from a configuration file (TOML). The "
    "command line overrides the environment, which overrides the file. The variable of --redis-prefix is "
    "CHATD_REDIS_PREFIX. In the file, an option is in the section that is shown in brackets below. General options "
    "come before the first section. The names of some options are different in the file: --listen is address in "
    "[listen], --redis is url in [redis]. --show-config prints all names, and docs/options.md lists them.",
    "A DURATION is a number with ms, s, m, h or d, or a number of seconds. A SIZE is a number with kB, KiB, MB, MiB, "
    "GB or GiB, or a number of bytes. A LIMIT is a number, off or auto.",
)
CONFIG_HELP = "Read options from this file (TOML), and again at each reload (SIGHUP). [default: none]"
SHOW_CONFIG_HELP = (
    "Check the options, print them as a configuration file with the source of each, and exit. If an option is not "
    "valid, print the error instead."
)
TUNING_HELP = (
    "Set an internal bound of the section [tuning], for example byte_rate=64KiB. docs/options.md lists them. "
    "May be given several times."
)


def _entry(name: str, text: str) -> list[str]:
    """Return one entry of the help."""
    return [f"  {name}", *_wrapped(text, " " * 6)]


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _stays_this_user(twistd: Any) -> bool:
    """Return whether the server has the files and rights of this process; twistd's options may be None."""
    return twistd is None or not any(twistd.get(option) for option in ("uid", "gid", "chroot"))


def _check_twistd(options: Any) -> None:
    """Check the files that twistd itself needs, without which it ends with a traceback. Raise usage.UsageError."""
    if options["chroot"]:  # they are in it
        return
    folder, path = options["rundir"], options["pidfile"]
    try:
        os.stat(os.path.join(folder, "."))  # only for who may enter it
    except OSError as error:
        raise usage.UsageError(f"twistd's --rundir {folder} cannot be used: {error.strerror}") from error
    try:
        if os.path.lexists(path):
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
        elif path:
            tempfile.TemporaryFile(dir=os.path.dirname(os.path.abspath(path))).close()
    except OSError as error:
        why = f"{error.strerror}; for none: twistd --pidfile="
        raise usage.UsageError(f"the pid file {path} cannot be written: {why}") from error


def _check_utf8(what: str, path: str) -> None:
    """Check that a path can be sent to workers; its folder may be the working folder. Raise BadValue."""
    try:
        os.path.abspath(path).encode()
    except UnicodeEncodeError:
        raise BadValue(f"{what} is not UTF-8: {os.path.abspath(path)!r}") from None


def _config(options: Options) -> Config:
    """Return the configuration, read and checked now, apart from ports and the state folder. Raise BadValue."""
    config = options.config()
    _check_utf8("the chat log's path", config.chat_log)
    _check_utf8("the state folder's path", config.data_dir)
    brokers = [broker_address(url) for url in config.redis]
    check_credentials(brokers, config)
    servers = [broker.identity for broker in brokers]
    if twice := next((server for server in servers if servers.count(server) > 1), ""):
        raise BadValue(f"--redis names one server twice: {twice}")
    if not config.auth_key and (config.auth_issuer or config.auth_audience or config.auth_require):
        raise BadValue("--auth-issuer, --auth-audience and [tuning] auth_require are for --auth-key only")
    if config.auth_revoked and not config.auth_key:
        raise BadValue("--auth-revoked is for --auth-key only: without it no tokens are asked for")
    TokenVerifier(config.auth_key).read()
    if config.auth_revoked:
        RevokedTokens(config.auth_revoked).read()
    if config.ban_list:
        BanList(config.ban_list).read()
    for option, endpoints in (("--listen", config.listen), ("--metrics-listen", config.metrics_listen)):
        for endpoint in endpoints:
            check_endpoint(endpoint, option)
            check_identity(endpoint)
    if both := next((endpoint for endpoint in config.metrics_listen if endpoint in config.listen), ""):
        raise BadValue(f"--metrics-listen: {quoted(both)} is an address of --listen too; use another one")
    Hosts(config.allowed_host)
    Origins(config.allowed_origin)
    TrustedProxies(config.trusted_proxy)
    return config


def _auto(config: Config) -> dict[str, str]:
    """Return the meaning of ``auto`` in this configuration, by the names of options and bounds."""
    local = {is_local(endpoint) for endpoint in config.listen or LOOPBACK_LISTEN}
    form = "{} on listeners that other hosts can reach, else off"
    if len(local) == 1 and None not in local:
        form = "off, because only this host can connect" if True in local else "{}"
    rates = [option.name for option in (*options(), *bounds()) if option.value == "LIMIT"]
    found = {name: form.format(f"{getattr(config, f'auto_{name}'):.12g}") for name in rates}
    return found | {"redis_maxmemory": f"{memory_of(config) >> 20} MiB"}


def _warn(options: Options) -> None:
    """Warn of old names, and of a password that every user of the host can read in the list of processes."""
    for source in options.sources():
        for warning in source.warnings:
            log.warn("{warning}", warning=warning, always=True, event="option_deprecated")
    if any(broker_address(url).password for url in options.given.values.get("redis", ())):
        log.warn(
            "--redis on the command line has a password, which every user of this host can see; use "
            "--redis-password-file, or put the URL into the file of --config",
            event="password_exposed",
        )


def makeService(options: Options) -> IService:
    """Return the service. A value that cannot be used ends the start with one line before anything runs."""
    from twisted.internet import reactor  # noqa: PLC0415 - twistd has installed it by now

    twistd: Any = options.parent  # nobody's, where it is not twistd that reads them
    shutdown = Shutdown(reactor)
    if twistd is not None:
        shutdown.hold_signals()
    try:
        config = _config(options)
        server_program = "" if config.redis else find_server()
        if config.data_dir and server_program:
            DataDir(config.data_dir, config.data_dir_lock_timeout).check()
        ports = ListeningSockets(config.listen, config.workers, config.listen_backlog, config.metrics_listen)
        ports.bind()
        ports.close()
        if twistd is not None and _stays_this_user(twistd):
            check_log(os.path.abspath(config.chat_log))
    except BadValue as error:
        sys.exit(f"twistd chatd: {error}")
    _warn(options)
    server_log = ServerLog(reactor, twistd, config) if twistd is not None and not twistd.get("logger") else None
    reread = partial(_config, options)
    return ChatService(reactor, config, server_program, reread, server_log=server_log, shutdown=shutdown)
