"""Print the sessions that the documentation shows: ``python docs/transcripts.py`` puts them where they belong.

A block that starts with ``<!-- transcript: NAME -->`` gets what NAME prints today: a daemon is started as the
README says, on its own port, and websocat runs in terminals. ``--check`` changes nothing and fails where what is
printed differs from what stands there, times, ids, process ids and addresses apart; it runs on any free port, so
that a chatd may run beside it. The folder of the checkout is shown as /srv/chatd.
"""

import contextlib
import difflib
import os
import pty
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/install.md", "docs/chat-log.md", "docs/protocol.md", "docs/http.md", "docs/security.md")
BLOCK = re.compile(r"(<!-- transcript: (\w+) -->\n```\w*\n)(.*?)(```\n)", re.DOTALL)
PATIENCE = 60.0
DEFAULT_PORT = 3000
HOST = f"localhost:{DEFAULT_PORT}"
MASKS = (
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3}Z|\+0000)", "TIME"),
    (r"\b[0-9a-f]{10}\.\d+\.\d+\b", "ID"),
    (r"\b[0-9a-f]{10}\.\d+\b", "SESSION"),
    (r'"epoch":"[0-9a-f]+"', '"epoch":"EPOCH"'),
    (r"pid \d+", "pid PID"),
    (r"@(127\.0\.0\.1|::1)", "@ADDRESS"),
    (r"/\S*/logs/chat\.log", "PATH/logs/chat.log"),
    (r"twistd \d\S+ \(.*?\)", "twistd VERSION"),
    (r"connection limit: .*", "connection limit: N"),
    (r"\d+ workers", "N workers"),
    (r"worker \d", "worker N"),
)


class Terminal:
    """A program in a terminal of its own, and what is on the screen."""

    def __init__(self, *command: str, typed: str = "") -> None:
        self._screen, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        os.set_blocking(self._screen, False)
        self.shown = f"$ {typed or shlex.join(command)}\n"

    def type(self, line: str) -> None:
        """Type a line."""
        os.write(self._screen, line.encode() + b"\n")
        self.wait_for(line)

    def ask(self, line: str, answer: str) -> None:
        """Type a line, and wait for what is said to it."""
        self.type(line)
        self.wait_for(answer)

    def wait_for(self, text: str) -> None:
        """Wait until a text is on the screen."""
        wait_until(lambda: text in self._look())

    def _look(self) -> str:
        with contextlib.suppress(OSError):  # nothing new
            self.shown += os.read(self._screen, 65536).decode().replace("\r\n", "\n")
        return self.shown

    def end(self) -> None:
        """Close it."""
        os.killpg(self.process.pid, signal.SIGINT)  # as Ctrl-C does
        self.process.wait(20)
        os.close(self._screen)


def run(command: str) -> str:
    """Give what a shell command prints, with its prompt."""
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    return f"$ {command}\n{done.stdout}"


def sessions(port: int) -> dict[str, str]:
    """Run everything once; give what each block shows."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if port != DEFAULT_PORT:
        os.environ["OPTIONS"] = f"--listen tcp:{port}:interface=127.0.0.1"
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # of the make that may have called us
        os.environ.pop(name, None)
    host = f"localhost:{port}"
    shown = {}
    server = Terminal("make", "run")
    try:
        server.wait_for("chat log: ")
        one = Terminal("websocat", f"ws://{host}")
        one.type("is anyone here?")  # nobody; in the log it shows that this one is in the room
        wait_until(lambda: "is anyone here?" in run("tail -n 1 logs/chat.log"))
        other, ops = Terminal("websocat", f"ws://{host}"), Terminal("websocat", f"ws://{host}/ops")
        try:
            other.type("now there is")
            one.wait_for("now there is")
            one.type("welcome")
            other.wait_for("welcome")
            ops.type("this is another room")
            wait_until(lambda: "this is another room" in run("tail -n 1 logs/chat.log"))
            shown["log"] = run("tail -n 4 logs/chat.log")
            shown |= coming_back(host, ops)
            shown |= with_names(host)
        finally:
            for terminal in (one, other, ops):
                terminal.end()
        shown["one"], shown["other"], shown["ops"] = one.shown, other.shown, ops.shown
        shown["http"] = with_curl(host)
        shown["readyz"] = run(f"curl -s -w '%{{http_code}}\\n' http://{host}/-/readyz")
    finally:
        server.end()
    shown["run"] = "".join(
        line for line in server.shown.splitlines(keepends=True) if "twistd" not in line and "once" not in line
    )
    shown["token"] = with_tokens(host)
    for real, said in ((str(ROOT), "/srv/chatd"), (host, HOST), (f"127.0.0.1:{port}", HOST)):
        shown = {name: text.replace(real, said) for name, text in shown.items()}
    return shown


def coming_back(host: str, ops: Terminal) -> dict[str, str]:
    """Give the sessions of one that goes away and comes back, and of one that wants to know what was said."""
    made = Path("/proc/sys/kernel/random/uuid")
    os.environ["KEY"] = made.read_text().strip()
    typed = f'websocat "ws://{host}/ops?resume=$KEY"'
    command = ("sh", "-c", f"exec {typed}")
    shown = {}
    before = Terminal(*command, typed=typed)
    try:
        before.type("I go for lunch")
        ops.wait_for("I go for lunch")
    finally:
        before.end()
    ops.type("it is on fire")
    ops.type("no, it is not")
    wait_until(lambda: "no, it is not" in run("tail -n 1 logs/chat.log"))
    after, late = Terminal(*command, typed=typed), Terminal("websocat", f"ws://{host}/ops?last=2")
    try:
        after.wait_for("no, it is not")
        late.wait_for("no, it is not")
    finally:
        after.end()
        late.end()
    shown["before"] = f"$ KEY=$(cat {made})\n{before.shown}"
    shown["after"], shown["late"] = after.shown, late.shown
    return shown


def with_curl(host: str) -> str:
    """Give a session of somebody with curl, while a program follows the room."""
    follower = Terminal("curl", "-sN", f"http://{host}/dev?follow=1&nick=zoe")
    try:
        wait_until(lambda: "zoe" in run(f"curl -s http://{host}/dev/members"))
        shown = [
            run(f"curl -s --data 'build 8 is green' 'http://{host}/dev?nick=ci'"),
            run(f"curl -s 'http://{host}/dev?last=3'"),
            run(f"curl -s http://{host}/dev/members"),
        ]
        follower.wait_for("ci: build 8 is green")
        shown.append(run(f"curl -s http://{host}/dev/members"))
    finally:
        follower.end()
    return "".join(shown[:3])


def with_tokens(host: str) -> str:
    """Give a session with a server that asks for tokens, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        listen = f"--listen tcp:{host.rpartition(':')[2]}:interface=127.0.0.1"

        def shell(command: str) -> str:
            done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=True)
            return f"$ {command}\n{done.stdout}"

        shown = shell("openssl genpkey -algorithm ed25519 -out chatd.key")
        shown += shell("openssl pkey -in chatd.key -pubout -out chatd.pub")
        command = ["twistd", "-n", "--pidfile=", "chatd", "--auth-key", "chatd.pub", *listen.split()]
        server = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            assert server.stdout is not None
            while "chat log: " not in server.stdout.readline():
                pass
            shown += "$ twistd chatd --auth-key chatd.pub\n"
            shown += shell(f"curl -s http://{host}/ops")
            shown += shell("chatd token --key chatd.key --sub ann --rooms 'ops=rw,news=r,team-*=rw' --ttl 8h > ann.jwt")
            bearer = '-H "Authorization: Bearer $(cat ann.jwt)"'
            shown += shell(f"curl -s {bearer} --data hello http://{host}/ops")
            shown += shell(f"curl -s {bearer} http://{host}/ops")
            shown += shell(f"curl -s {bearer} --data hello http://{host}/news")
        finally:
            server.terminate()
            server.communicate(timeout=20)
    return shown


def with_names(host: str) -> dict[str, str]:
    """Give the sessions of two people with nicks and a program in one room, and what the log has of it."""
    ann = Terminal("websocat", f"ws://{host}/dev?nick=ann")
    here = [ann]
    try:
        ann.ask("/who", "* here: ann")
        bob = Terminal("websocat", f"ws://{host}/dev?nick=bob")
        here.append(bob)
        ann.wait_for("* bob joined")
        build = Terminal("websocat", "--protocol", "chatd.v1", f"ws://{host}/dev?nick=build")
        here.append(build)
        build.wait_for('"joined"')
        for each in (ann, bob):
            each.wait_for("* build joined")
        ann.type("is it green?")
        bob.wait_for("ann: is it green?")
        build.wait_for("is it green?")
        bob.type("/me crosses fingers")
        ann.wait_for("* bob crosses fingers")
        build.wait_for("crosses fingers")
        request = '{"type":"publish","ref":%d,"room":"dev","text":"build 7 is green","id":"build-7"}'
        build.ask(request % 1, '"ref":1}\n')
        for each in (ann, bob):
            each.wait_for("build: build 7 is green")
        build.ask(request % 2, '"duplicate":true,"ref":2}\n')
        bob.ask("/who", "* here: ann, bob, build")
        bob.ask("/nick robert", "* you are robert")
        bob.ask("/quit", "* closing: you left")
        ann.wait_for("* robert left")
        build.wait_for('"leave"')
        log = run("tail -n 5 logs/chat.log")
    finally:
        for terminal in here:
            terminal.end()
    return {"ann": ann.shown, "bob": bob.shown, "build": build.shown, "named": log}


def wait_until(condition: Callable[[], bool]) -> None:
    """Ask until it is so."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("what should have happened did not")
        time.sleep(0.01)


def free_port() -> int:
    """Give a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def masked(text: str) -> str:
    """Take out what differs from one run to the next; the order in which workers are ready is theirs."""
    for pattern, name in MASKS:
        text = re.sub(pattern, name, text)
    return text


def main(check: bool) -> int:
    """Put what was printed into the pages, or see whether it stands there."""
    shown = sessions(free_port() if check else DEFAULT_PORT)
    differences = 0
    for name in PAGES:
        page = ROOT / name
        text = page.read_text("utf-8")
        fresh = BLOCK.sub(lambda block: block[1] + shown[block[2]].rstrip() + "\n" + block[4], text)
        if check:
            old, new = masked(text).splitlines(), masked(fresh).splitlines()
            for line in difflib.unified_diff(old, new, name, "printed now", lineterm=""):
                differences += 1
                print(line)
        else:
            page.write_text(fresh, "utf-8")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
