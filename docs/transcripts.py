"""Print the sessions that the documentation shows: ``python docs/transcripts.py`` puts them where they belong.

A block that starts with ``<!-- transcript: NAME -->`` gets what NAME prints today: a daemon is started as the
README says, on its own port, and websocat runs in terminals. ``--check`` changes nothing and fails where what is
printed differs from what stands there, times, ids, process ids and addresses apart. The folder of the checkout is
shown as /srv/chatd.
"""

import difflib
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/install.md", "docs/chat-log.md", "docs/protocol.md")
BLOCK = re.compile(r"(<!-- transcript: (\w+) -->\n```\w*\n)(.*?)(```\n)", re.DOTALL)
PATIENCE = 60.0
MASKS = (
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3}Z|\+0000)", "TIME"),
    (r"\b[0-9a-f]{10}\.\d+\.\d+\b", "ID"),
    (r"pid \d+", "pid PID"),
    (r"-@(127\.0\.0\.1|::1)", "-@ADDRESS"),
    (r"/\S*/logs/chat\.log", "PATH/logs/chat.log"),
    (r"twistd \d\S+ \(.*?\)", "twistd VERSION"),
    (r"\d+ workers", "N workers"),
    (r"worker \d", "worker N"),
)


class Terminal:
    """A program in a terminal of its own, and what is on the screen."""

    def __init__(self, *command: str) -> None:
        self._screen, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        os.set_blocking(self._screen, False)
        self.shown = f"$ {shlex.join(command)}\n"

    def type(self, line: str) -> None:
        """Type a line."""
        os.write(self._screen, line.encode() + b"\n")
        self.wait_for(line)

    def wait_for(self, text: str) -> None:
        """Wait until a text is on the screen."""
        end = time.monotonic() + PATIENCE
        while text not in self.shown:
            if time.monotonic() > end:
                raise SystemExit(f"no {text!r} on this screen:\n{self.shown}")
            time.sleep(0.01)
            try:
                self.shown += os.read(self._screen, 65536).decode().replace("\r\n", "\n")
            except (BlockingIOError, OSError):
                continue

    def end(self) -> None:
        """Close it."""
        os.killpg(self.process.pid, signal.SIGINT)  # as Ctrl-C does
        self.process.wait(20)
        os.close(self._screen)


def run(command: str) -> str:
    """Give what a shell command prints, with its prompt."""
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    return f"$ {command}\n{done.stdout}"


def sessions() -> dict[str, str]:
    """Run everything once; give what each block shows."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    shown = {}
    server = Terminal("make", "run")
    try:
        server.wait_for("the chat log:")
        one, other = Terminal("websocat", "ws://localhost:3000"), Terminal("websocat", "ws://localhost:3000")
        ops = Terminal("websocat", "ws://localhost:3000/ops")
        try:
            say_until_heard(one, other, "hello, anyone there?")
            other.type("yes, on the other worker perhaps")
            one.wait_for("yes, on")
            ops.type("this is another room")
        finally:
            for terminal in (one, other, ops):
                terminal.end()
        shown["one"], shown["other"], shown["ops"] = one.shown, other.shown, ops.shown
        shown["log"] = run("tail -n 3 logs/chat.log")
        shown["curl"] = run("curl -s http://localhost:3000/")
        shown["readyz"] = run("curl -s -w '%{http_code}\\n' http://localhost:3000/-/readyz")
    finally:
        server.end()
    shown["run"] = "".join(
        line for line in server.shown.splitlines(keepends=True) if "twistd" not in line and "once" not in line
    )
    shown["help"] = run("twistd chatd --help")
    return {name: text.replace(str(ROOT), "/srv/chatd") for name, text in shown.items()}


def say_until_heard(one: Terminal, other: Terminal, line: str) -> None:
    """Type a line once the other one is connected too: it shows by the connections that the kernel has."""
    end = time.monotonic() + PATIENCE
    while run("curl -s http://localhost:3000/-/healthz") and time.monotonic() < end:
        if sum(row.split()[2].endswith(":0BB8") and row.split()[3] == "01" for row in sockets()) >= 3:
            break
    one.type(line)
    other.wait_for(line)


def sockets() -> list[str]:
    """List the kernel's TCP connections, IPv4 and IPv6."""
    return [row for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]


def masked(text: str) -> str:
    """Take out what differs from one run to the next; the order in which workers are ready is theirs."""
    for pattern, name in MASKS:
        text = re.sub(pattern, name, text)
    return text


def main(check: bool) -> int:
    """Put what was printed into the pages, or see whether it stands there."""
    shown = sessions()
    differences = 0
    for name in PAGES:
        page = ROOT / name
        text = page.read_text()
        fresh = BLOCK.sub(lambda block: block[1] + shown[block[2]].rstrip() + "\n" + block[4], text)
        if check:
            old, new = masked(text).splitlines(), masked(fresh).splitlines()
            for line in difflib.unified_diff(old, new, name, "printed now", lineterm=""):
                differences += 1
                print(line)
        else:
            page.write_text(fresh)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
