"""The command ``chatd``, for what is done beside the server: verify logs, mint tokens. The server: ``twistd chatd``."""

import argparse
import io
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import chatd
from chatd.access.keys import read_signing_key
from chatd.access.tokens import mint
from chatd.broker.credentials import check_credentials
from chatd.chatlog.verify import Ledger, LogFiles, Unreadable, read_histories
from chatd.config.broker_url import BrokerAddress, broker_address
from chatd.config.loading import did_you_mean
from chatd.config.renamed import current_words
from chatd.config.settings import Config, options
from chatd.config.values import BadValue, expanded, file_path, quoted, seconds_of
from chatd.protocol.http_head import LOBBY, Refused, read_room
from chatd.supervisor.data_dir import BROKER, DataDir
from chatd.supervisor.private_broker import SOCKET, UNIX_PATH_BYTES
from chatd.supervisor.running import RunningInstance, find_running

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
twistd chatd's --history-size and --history-ttl.
"""

MINTED = """\
Print a token (JWT) that a server which was given --auth-key takes. To begin:

  openssl genpkey -algorithm ed25519 -out chatd.key
  openssl pkey -in chatd.key -pubout -out chatd.pub
  twistd chatd --auth-key chatd.pub
  chatd token --key chatd.key --sub ann --rooms ops=rw,news=r

The token goes into the URL (?token=…) or a header (Authorization: Bearer …).
Whoever has it may use it: keep it as you would a password.
"""

CREDENTIALS = ("redis_password_file", "redis_tls_ca", "redis_tls_cert", "redis_tls_key", "redis_sentinel_password_file")
"""Options of the server that stand here too."""

COMMANDS = ("verify", "token", "new-lineage")

STATUS = "Exit status: 0 if all is well; 1 if anything is wrong; 2 if something can't be read."


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; give the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a locale may have no letter of a room's name
            stream.reconfigure(errors="backslashreplace")
    words, warnings = current_words(sys.argv[1:] if arguments is None else arguments)
    for warning in warnings:
        print(f"chatd: {warning}", file=sys.stderr)
    if words and words[0] not in (*COMMANDS, "-h", "--help", "--version"):
        print(f"chatd: {_no_command(words[0])}", file=sys.stderr)
        return 2
    parser = _parser()
    given = parser.parse_args(words)
    if not given.command:
        parser.print_help()
        return 0
    try:
        return int(given.run(given))
    except (BadValue, Unreadable) as error:
        print(f"chatd {given.command}: {error}", file=sys.stderr)
        return 2


def _no_command(word: str) -> str:
    """Say what a word is that should be a command. What follows it is not repeated: it may hold a password."""
    is_option = word.startswith("-")
    what = f"{word.partition('=')[0]} is an option of the server" if is_option else f"there is no command {word!r}"
    what += "" if is_option else did_you_mean(word, COMMANDS)
    return f"{what}; start the server with: twistd -n --pidfile= chatd{' and the same options' * is_option}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="chatd",
        description="Work beside the chat server. The server itself is started with: twistd -n --pidfile= chatd "
        "(its options: twistd chatd --help)",
    )
    parser.add_argument("--version", action="version", version=f"chatd {chatd.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_verify(commands)
    _add_token(commands)
    _add_new_lineage(commands)
    return parser


def _add_verify(commands: Any) -> None:
    verify = commands.add_parser(
        "verify",
        help="say whether the chat logs have all that was delivered",
        description=VERIFY,
        epilog=STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verify.set_defaults(run=_verify)
    broker = verify.add_mutually_exclusive_group()
    broker.add_argument(
        "--redis",
        metavar="URL",
        action="append",
        help="the server that chatd was given with --redis: redis://[user:password@]host[:port][/db], rediss://…, "
        "redis+sentinel://… or unix:///path; several times, where chatd has several "
        "[default: the private Valkey of the one chatd that runs here as the same user, with --data-dir or without]",
    )
    broker.add_argument("--data-dir", metavar="DIR", help="the folder that chatd was given with --data-dir")
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


def _add_token(commands: Any) -> None:
    token = commands.add_parser(
        "token",
        help="make a token for twistd chatd --auth-key",
        description=MINTED,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    token.set_defaults(run=_token)
    token.add_argument("--key", metavar="FILE", required=True, help="the private key (PEM or JWK) or the secret")
    token.add_argument("--sub", metavar="NAME", required=True, help="who it is for; others see it as the nick")
    token.add_argument("--id", metavar="ID", help="the token's id (jti), by which a list of revoked tokens can name it")
    token.add_argument("--nick", metavar="NAME", help="the nick that others see, where it is another")
    token.add_argument(
        "--rooms",
        metavar="ROOM=RIGHTS,…",
        action="append",
        help="where its bearer may read (r), write (w) or both (rw): ops=rw,news=r,team-*=rw; or a JSON object; may be "
        "given several times [default: everything everywhere]",
    )
    token.add_argument(
        "--ttl",
        metavar="TIME",
        default="24h",
        help="for how long it is good: 90s, 15m, 24h, 30d [default: %(default)s]",
    )
    token.add_argument("--issuer", metavar="TEXT", help="what the server was given with --auth-issuer")
    token.add_argument("--audience", metavar="TEXT", help="what the server was given with --auth-audience")
    token.add_argument("--algorithm", metavar="NAME", default="", help="the algorithm, where the key has several")


def _add_new_lineage(commands: Any) -> None:
    command = commands.add_parser(
        "new-lineage",
        help="mark a state folder as restored from a backup",
        description="Run this after restoring a state folder from a backup, before starting chatd. Clients that come "
        "back are then told of a gap, instead of missing the messages after the backup without a word.",
    )
    command.set_defaults(run=_new_lineage)
    command.add_argument("--data-dir", metavar="DIR", required=True, help="the folder of twistd chatd --data-dir")


def _new_lineage(given: argparse.Namespace) -> int:
    DataDir(_checked("data_dir", given.data_dir), 0).begin_new_lineage()
    print(f"{given.data_dir}: the next start begins a new lineage")
    return 0


def _verify(given: argparse.Namespace) -> int:
    files: dict[str, Any] = {name: _checked(name, getattr(given, name)) for name in CREDENTIALS if getattr(given, name)}
    config = replace(Config(), redis_prefix=_checked("redis_prefix", given.redis_prefix), **files)
    ledger, logs = Ledger(), LogFiles([expanded(path) for path in given.logs], config)
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


def _token(given: argparse.Namespace) -> int:
    if not given.sub:
        raise BadValue("--sub must not be empty: such a token is anybody's")
    now = int(time.time())
    claims: dict[str, Any] = {"sub": given.sub, "nick": given.nick, "iat": now, "exp": now + _seconds(given.ttl)}
    claims |= {"jti": given.id, "rooms": _rooms(given.rooms), "iss": given.issuer, "aud": given.audience}
    try:
        key = read_signing_key(Path(file_path(given.key)).read_bytes())
    except OSError as error:
        raise BadValue(f"--key {given.key}: {error.strerror}") from error
    except BadValue as error:
        raise BadValue(f"--key {given.key}: {error}") from error
    print(mint(key, {name: value for name, value in claims.items() if value not in (None, "")}, given.algorithm))
    return 0


def _seconds(text: str) -> int:
    try:
        seconds = 0 if text[-1:].isdigit() else int(seconds_of(text))
    except BadValue:
        seconds = 0
    if seconds <= 0:
        raise BadValue(f"--ttl: {quoted(text)} is not a duration; use a number with a unit such as 90s, 15m or 24h")
    return seconds


def _rooms(given: Sequence[str] | None) -> dict[str, str] | None:
    """Read what may be done where. Raises BadValue, also for names that no room has."""
    if given is None:
        return None
    rooms: dict[str, str] = {}
    for text in given:
        try:
            found = json.loads(text) if text.startswith("{") else dict(_room(each) for each in text.split(","))
        except ValueError as error:
            raise BadValue(f"--rooms must be like ops=rw,news=r,team-*=rw, or a JSON object, not {text!r}") from error
        rooms |= found
    for name in rooms:
        try:
            read_room(name.removesuffix("*") or LOBBY)
        except Refused as refused:
            raise BadValue(f"--rooms: {name!r}: {refused.message}") from None
    return rooms


def _room(text: str) -> tuple[str, str]:
    room, is_there, rights = text.rpartition("=")
    if not is_there:
        raise ValueError(text)
    return room, rights


def _checked(name: str, text: str) -> str:
    """Check a value as ``twistd chatd`` does. Raises BadValue."""
    option = next(option for option in options() if option.name == name)
    try:
        return str(option.parse(text))
    except BadValue as error:
        raise BadValue(f"--{option.flag}: {error}") from error


def _addresses(given: argparse.Namespace) -> list[BrokerAddress]:
    """Say where the brokers are. Raises BadValue or Unreadable."""
    if given.redis is not None:
        return [broker_address(_checked("redis", each)) for each in given.redis]
    if given.data_dir is not None:
        path = str(Path(_checked("data_dir", given.data_dir), BROKER, SOCKET).absolute())
        if len(os.fsencode(path)) <= UNIX_PATH_BYTES:
            return [BrokerAddress(path=path)]
    return [BrokerAddress(path=_running().socket)]


def _running() -> RunningInstance:
    """Find the chatd that runs here as this user. Raise Unreadable, which says what there is."""
    found = find_running()
    ours = [each for each in found if each.uid == os.getuid()]
    if len(ours) == 1:
        return ours[0]
    if ours:
        which = "; or ".join(f"{each.option} ({_place(each)})" for each in ours)
        raise Unreadable(f"{len(ours)} chatds run here as this user; pass {which}")
    if found:
        which = "; or ".join(f"runuser -u {each.user} -- chatd verify {each.option} …" for each in found)
        raise Unreadable(f"no chatd runs here as this user, but one as another does; use {which}")
    raise Unreadable(
        "no chatd with a private Valkey runs here; pass --redis URL as chatd was given it, or --data-dir DIR of one"
    )


def _place(running: RunningInstance) -> str:
    try:
        return running.place()
    except OSError as error:
        return f"nothing is known of it: {error.strerror}"
