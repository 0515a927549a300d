"""The command ``chatd``: verify chat logs, make tokens, mark restored backups. ``twistd chatd`` starts the server."""

import argparse
import io
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

import chatd
from chatd.access.keys import read_signing_key
from chatd.access.tokens import mint
from chatd.broker.credentials import check_credentials
from chatd.chatlog.verify import Ledger, LogFiles, Unreadable, read_histories
from chatd.config.broker_url import BrokerAddress, broker_address
from chatd.config.loading import did_you_mean, field_option
from chatd.config.renamed import current_words
from chatd.config.settings import Config
from chatd.config.values import BadValue, expanded, file_path, quoted, seconds_of
from chatd.protocol.http_head import LOBBY, Refused, read_room
from chatd.supervisor.data_dir import BROKER, DataDir
from chatd.supervisor.private_broker import SOCKET, UNIX_PATH_BYTES
from chatd.supervisor.running import RunningInstance, find_running

VERIFY = """\
Compare the chat logs with the history of every room in the broker (the Redis or
Valkey server that chatd uses). Each message of a history must be in the logs once,
with the same text, and the logs must not say that it was refused. chatd may run
in the meantime.

Each fault is printed as one line, which begins with one of these words:

  missing     the message is in none of the logs
  double      the message is in the logs, or in one history, more than once
  differs     the logs have another text for the message
  denied      the logs say that the message was refused or was a duplicate
  unreadable  an entry of a history is not a message

The last line has the totals. A line of the logs that is in no history is not a
fault: the message is older than the history, or was not published. The options
--history-size and --history-ttl of twistd chatd limit how far a history goes back.
"""

MINTED = """\
Print a token (JWT) for a server that was started with --auth-key. To make a pair
of keys, start a server with the public key, and print a token for ann:

  openssl genpkey -algorithm ed25519 -out chatd.key
  openssl pkey -in chatd.key -pubout -out chatd.pub
  twistd chatd --auth-key chatd.pub
  chatd token --key chatd.key --sub ann --rooms ops=rw,news=r

The client sends the token in the URL (?token=TOKEN) or in a header (Authorization:
Bearer TOKEN). Everyone who has the token can use it, so keep it secret.
"""

CREDENTIALS = {
    "redis_password_file": "file with the password of the Redis server",
    "redis_tls_ca": "file with the CA certificates (PEM) that verify the certificate of a rediss:// server "
    "[default: those that this system trusts]",
    "redis_tls_cert": "file with the client certificate (PEM) for a rediss:// server that requires one",
    "redis_tls_key": "file with the private key (PEM) of --redis-tls-cert",
    "redis_sentinel_password_file": "file with the password that the Sentinels themselves require",
}
"""Options of ``twistd chatd`` that ``chatd verify`` has too."""

COMMANDS = ("verify", "token", "new-lineage")

STATUS = "Exit status: 0 without faults, 1 with faults, 2 if a log or the broker cannot be read."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command of the command line. Return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # the locale may lack a letter of a room's name
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
    """Return the error for a word that is not a command. Its value is not repeated, because it may hold a password."""
    is_option = word.startswith("-")
    what = f"{word.partition('=')[0]} is an option of the server" if is_option else f"there is no command {word!r}"
    what += "" if is_option else did_you_mean(word, COMMANDS)
    return f"{what}; start the server with: twistd -n --pidfile= chatd{' and the same options' * is_option}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="chatd",
        description="Commands for operators of the chat server. Start the server itself with: "
        "twistd -n --pidfile= chatd. List its options with: twistd chatd --help",
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
        help="check that every delivered message is in the chat logs",
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
        help="read the histories from this Redis or Valkey server: redis://[user:password@]host[:port][/db], "
        "rediss://… (TLS), redis+sentinel://… or unix:///path. Give it once for each --redis of chatd "
        "[default: the private Valkey of the only chatd that runs on this host as the same user]",
    )
    broker.add_argument(
        "--data-dir", metavar="DIR", help="read the histories from the private Valkey of the chatd with this --data-dir"
    )
    for name, text in CREDENTIALS.items():
        verify.add_argument(f"--{name.replace('_', '-')}", metavar="FILE", default="", help=text)
    verify.add_argument(
        "--redis-prefix",
        metavar="PREFIX",
        default=Config.redis_prefix,
        help="prefix of chatd's keys on the server, as in chatd's --redis-prefix [default: %(default)s]",
    )
    verify.add_argument(
        "logs",
        nargs="*",
        metavar="LOG",
        default=[os.path.dirname(Config.chat_log)],
        help="a chat log, also a rotated or compressed one (.gz, .xz, .bz2), or a folder, of which all chat.log* are "
        "read. Name the logs of all hosts that share the server [default: logs]",
    )


def _add_token(commands: Any) -> None:
    token = commands.add_parser(
        "token",
        help="print a token (JWT) for a client",
        description=MINTED,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    token.set_defaults(run=_token)
    token.add_argument(
        "--key", metavar="FILE", required=True, help="sign with this private key (PEM or JWK) or this secret"
    )
    token.add_argument(
        "--sub", metavar="NAME", required=True, help="the subject: the user or program that the token identifies"
    )
    token.add_argument("--nick", metavar="NAME", help="the nick that others see [default: the subject]")
    token.add_argument(
        "--id", metavar="ID", help="the id of the token (jti), with which a file of --auth-revoked can name it"
    )
    token.add_argument(
        "--rooms",
        metavar="ROOM=RIGHTS,…",
        action="append",
        help="the rooms that the client may read (r), write (w) or both (rw), for example ops=rw,news=r,team-*=rw, or "
        "a JSON object. May be given several times [default: read and write in all rooms]",
    )
    token.add_argument(
        "--ttl",
        metavar="TIME",
        default="24h",
        help="time for which the token is valid, for example 90s, 15m, 24h or 30d [default: %(default)s]",
    )
    token.add_argument("--issuer", metavar="TEXT", help="the iss claim, as in the server's --auth-issuer")
    token.add_argument("--audience", metavar="TEXT", help="the aud claim, as in the server's --auth-audience")
    token.add_argument(
        "--algorithm",
        metavar="NAME",
        default="",
        help="the algorithm of the signature, if the key allows several [default: the first that the key allows]",
    )


def _add_new_lineage(commands: Any) -> None:
    command = commands.add_parser(
        "new-lineage",
        help="mark a state folder as restored from a backup",
        description="Mark a state folder (--data-dir of the server) as restored from a backup. Run this command after "
        "the folder was restored and before chatd starts. A restored folder lacks the messages after the backup: it "
        "begins a new line of data (a lineage). With the mark, clients that reconnect are told that messages may be "
        "missing. Without it, they would not be told.",
    )
    command.set_defaults(run=_new_lineage)
    command.add_argument("--data-dir", metavar="DIR", required=True, help="the state folder")


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
    _read_histories(addresses, config, ledger)
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


def _read_histories(addresses: Sequence[BrokerAddress], config: Config, ledger: Ledger) -> None:
    """Run the reactor until the histories of all brokers are in the ledger. Raise Unreadable."""
    from twisted.internet import reactor as real_reactor  # noqa: PLC0415 - other commands need none

    reactor: Any = real_reactor
    failures: list[Failure] = []

    async def read_all() -> None:
        for address in addresses:
            await read_histories(reactor, address, config, ledger)

    def start() -> None:
        Deferred.fromCoroutine(read_all()).addErrback(failures.append).addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(start)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Twisted would catch a KeyboardInterrupt
    reactor.run(installSignalHandlers=False)
    for failure in failures:
        failure.raiseException()


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
    """Return the rights for each room. Raise BadValue, also for a name that no room can have."""
    if given is None:
        return None
    rooms: dict[str, str] = {}
    for text in given:
        try:
            found = json.loads(text) if text.startswith("{") else dict(_room(part) for part in text.split(","))
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
    """Check a value as ``twistd chatd`` does. Raise BadValue."""
    option = field_option(name)
    try:
        return str(option.parse(text))
    except BadValue as error:
        raise BadValue(f"--{option.flag}: {error}") from error


def _addresses(given: argparse.Namespace) -> list[BrokerAddress]:
    """Return the addresses of the brokers. Raise BadValue or Unreadable."""
    if given.redis is not None:
        return [broker_address(_checked("redis", url)) for url in given.redis]
    if given.data_dir is not None:
        path = str(Path(_checked("data_dir", given.data_dir), BROKER, SOCKET).absolute())
        if len(os.fsencode(path)) <= UNIX_PATH_BYTES:
            return [BrokerAddress(path=path)]
    return [BrokerAddress(path=_running().socket)]


def _running() -> RunningInstance:
    """Return the chatd that runs on this host as this user. Raise Unreadable if there is not exactly one."""
    found = find_running()
    ours = [running for running in found if running.uid == os.getuid()]
    if len(ours) == 1:
        return ours[0]
    if ours:
        which = "; or ".join(f"{running.option} ({_place(running)})" for running in ours)
        raise Unreadable(f"{len(ours)} chatds run here as this user; pass {which}")
    if found:
        which = "; or ".join(f"runuser -u {other.user} -- chatd verify {other.option} …" for other in found)
        raise Unreadable(f"no chatd runs here as this user, but one as another does; use {which}")
    raise Unreadable(
        "no chatd with a private Valkey runs here; pass --redis URL as chatd was given it, or --data-dir DIR of one"
    )


def _place(running: RunningInstance) -> str:
    try:
        return running.place()
    except OSError as error:
        return f"nothing is known of it: {error.strerror}"
