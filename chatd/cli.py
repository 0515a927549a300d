"""The command ``chatd``, for what is done beside the server: ``chatd verify``. The server is ``twistd chatd``."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import chatd
from chatd.config import BadValue, BrokerAddress, Config, broker_address, options
from chatd.credentials import check_credentials
from chatd.parent.state import BROKER
from chatd.parent.valkey import SOCKET, UNIX_PATH_BYTES, find_sockets
from chatd.verify.histories import read_histories
from chatd.verify.ledger import Ledger
from chatd.verify.logs import Logs
from chatd.verify.unreadable import Unreadable

VERIFY = """\
Compare the chat logs with the history of every room in the broker: each message
that a history has must be in the logs, once, with the same text, and the log must
not say that it was refused. It may be run while chatd runs.

What is wrong is printed, a line each:

  missing     it is in no log
  double      it has several lines in the logs, or is in one history twice
  differs     the log has another text
  denied      the log says that it was refused, or was a duplicate
  unreadable  a history has something that is no message

then one line with what was read. Lines that no history has are older than history,
or were not published: nothing is wrong with them. A room's history ends with
twistd chatd's --history and --history-ttl.
"""

CREDENTIALS = ("redis_password_file", "redis_ca", "redis_cert", "redis_key", "sentinel_password_file")
"""Options of the server that stand here too."""

STATUS = "Exit status: 0 if all is well; 1 if anything is wrong; 2 if something can't be read."


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; give the exit status."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if not given.command:
        parser.print_help()
        return 0
    try:
        return _verify(given)
    except (BadValue, Unreadable) as error:
        print(f"chatd verify: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="chatd",
        description="What is done beside the chat server. The server itself is: twistd chatd",
    )
    parser.add_argument("--version", action="version", version=f"chatd {chatd.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    verify = commands.add_parser(
        "verify",
        help="say whether the chat logs have all that was delivered",
        description=VERIFY,
        epilog=STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    broker = verify.add_mutually_exclusive_group()
    broker.add_argument(
        "--redis",
        metavar="URL",
        action="append",
        help="the server that chatd was given with --redis: redis://[user:password@]host[:port][/db], rediss://…, "
        "redis+sentinel://… or unix:///path; several times, where chatd has several "
        "[default: the private Valkey of the one chatd that runs here as the same user]",
    )
    broker.add_argument("--state", metavar="DIR", help="the folder that chatd was given with --state")
    for name in CREDENTIALS:
        verify.add_argument(
            f"--{name.replace('_', '-')}", metavar="FILE", default="", help="what chatd was given with it, if anything"
        )
    verify.add_argument(
        "--redis-prefix",
        metavar="PREFIX",
        default=Config.redis_prefix,
        help="what chatd was given with --redis-prefix [default: %(default)s]",
    )
    verify.add_argument(
        "logs",
        nargs="*",
        metavar="LOG",
        default=[os.path.dirname(Config.chat_log)],
        help="a chat log, rotated ones too, or packed ones (.gz, .xz, .bz2); or a folder: all chat.log* in it. "
        "Name those of all hosts that share the server [default: logs]",
    )
    return parser


def _verify(given: argparse.Namespace) -> int:
    files: dict[str, Any] = {name: _checked(name, getattr(given, name)) for name in CREDENTIALS if getattr(given, name)}
    config = replace(Config(), redis_prefix=_checked("redis_prefix", given.redis_prefix), **files)
    ledger, logs = Ledger(), Logs(given.logs, config)
    addresses = _addresses(given)
    check_credentials(addresses, config)
    for address in addresses:
        read_histories(address, config, ledger)
    for line in logs.read():
        ledger.add_line(line)
    kinds: Counter[str] = Counter()
    for fault in ledger.faults():
        kinds[fault.kind] += 1
        print(fault)
    wrong = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    print(
        f"logs: {logs.files}, lines: {logs.lines} (no log lines: {logs.strange}), rooms: {ledger.rooms}, "
        f"messages in histories: {ledger.messages}: {wrong or 'each is in the logs once'}"
    )
    return 1 if wrong else 0


def _checked(name: str, text: str) -> str:
    """Check a value as ``twistd chatd`` does. Raises BadValue."""
    [check] = [knob.metadata["check"] for knob in options() if knob.name == name]
    try:
        return str(check(text))
    except BadValue as error:
        raise BadValue(f"--{name.replace('_', '-')} {error}") from error


def _addresses(given: argparse.Namespace) -> list[BrokerAddress]:
    """Say where the brokers are. Raises BadValue or Unreadable."""
    if given.redis is not None:
        return [broker_address(_checked("redis", each)) for each in given.redis]
    if given.state is not None:
        path = str(Path(given.state, BROKER, SOCKET).absolute())
        if len(os.fsencode(path)) <= UNIX_PATH_BYTES:
            return [BrokerAddress(path=path)]
    found = find_sockets()
    if not found:
        raise Unreadable(
            "no chatd with a private Valkey of its own runs here as this user; "
            "pass --state DIR or --redis URL, as chatd was given it"
        )
    if len(found) > 1:
        urls = " or ".join(f"--redis unix://{quote(path)}" for path in found)
        raise Unreadable(f"several chatds run here; pass {urls}")
    return [BrokerAddress(path=found[0])]
