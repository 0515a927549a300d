"""chatd under a real systemd, as docs/install.md sets it up: .ci/distro runs this in the system that it booted.

Members say lines and hear those of the others while the service is started, reloaded, restarted, killed, frozen,
activated by its socket and stopped. Each is docs/clients/chat.py, which comes back by itself. In the end every line is
accounted for: said, acknowledged, logged, and heard once by everybody, in one order. Each step is a line; one that
fails does not keep the others from being done.
"""

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

SOURCE = Path("/usr/local/src/chatd")
sys.path.insert(0, str(SOURCE / "docs" / "clients"))

import chat  # noqa: E402 - it is no module but where it stands
from websockets.asyncio.client import connect  # noqa: E402
from websockets.exceptions import WebSocketException  # noqa: E402

CONFIG = Path("/etc/chatd/chatd.toml")
LOGS = Path("/var/log/chatd")
STATE = Path("/var/lib/chatd")
URL = "ws://localhost:3000/ops"
MEMBERS = 6
MORE = 10
"""Lines that each has to get through, after each step."""
PAUSE = 0.02
"""Seconds between two lines of one member."""
PATIENCE = 150.0
"""Seconds: systemd gives a frozen service 30, and then 45 to end."""
KILLS = 2
"""How often the steps end workers in the middle of what they do."""

chat.LONGEST_PAUSE = 1.0  # before they come back; they are few


class Failed(Exception):
    """Something is not as it is promised."""


def check(condition: object, what: str) -> None:
    """Fail where something does not hold."""
    if not condition:
        raise Failed(what)


def run(*command: str, input: str | None = None) -> tuple[int, str]:
    """Run a command; give its exit status and all that it says."""
    done = subprocess.run(
        command, input=input, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE, check=False
    )
    return done.returncode, done.stdout.strip()


def ask(*command: str) -> str:
    """Run a command that has to work; give what it says."""
    status, said = run(*command)
    check(status == 0, f"{' '.join(command)} ends with {status}: {said}")
    return said


def shown(property: str) -> str:
    """Give what systemd knows of the service."""
    return ask("systemctl", "show", "--value", f"--property={property}", "chatd")


def main_pid() -> int:
    """Give the process id of the parent; 0 where there is none."""
    return int(shown("MainPID"))


def children(pid: int) -> set[int]:
    """Give the process ids of the workers and the broker."""
    try:
        return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return set()


def journal(*options: str) -> list[dict[str, str]]:
    """Give the entries of the service in the journal."""
    ask("journalctl", "--sync")
    said = ask("journalctl", "--unit=chatd.service", "--output=json", "--no-pager", *options)
    return [entry for line in said.splitlines() if isinstance((entry := json.loads(line)).get("MESSAGE"), str)]


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something."""
    end = time.monotonic() + PATIENCE
    while not await asyncio.to_thread(condition):
        check(time.monotonic() < end, f"waited {PATIENCE:g} s for {what}")
        await asyncio.sleep(0.1)


class Member:
    """One that says numbered lines, one after the other, and hears everybody's."""

    def __init__(self, number: int) -> None:
        """Take what it is called."""
        self.name = f"m{number}"
        self.heard: list[str] = []
        self.said: list[str] = []
        self.acknowledged: set[str] = set()
        self.lost: list[int | None] = []
        self.talks = True
        self._chat = chat.Chat(
            f"{URL}?nick={self.name}",
            heard=lambda message: self.heard.append(message["text"]),
            lost=lambda _room, count: self.lost.append(count),
        )
        self._staying: asyncio.Task[None] | None = None

    @property
    def here(self) -> bool:
        """Whether it is in the room, and will miss nothing from now on."""
        return bool(self._chat._here)

    def come(self) -> None:
        """Connect, and again whenever the connection ends."""
        self._staying = asyncio.create_task(self._chat.stay())

    async def go(self) -> None:
        """Disconnect, until ``come``."""
        if self._staying is not None:
            self._staying.cancel()
            await asyncio.gather(self._staying, return_exceptions=True)

    async def talk(self) -> None:
        """Say lines until ``talks`` is false."""
        while self.talks:
            line = f"{self.name} {len(self.said)}"
            self.said.append(line)
            await self._chat.publish("ops", line)
            self.acknowledged.add(line)
            await asyncio.sleep(PAUSE)


class Members:
    """All of them."""

    def __init__(self) -> None:
        """Make them; ``come`` lets them in."""
        self.all = [Member(number) for number in range(1, MEMBERS + 1)]
        self._talking: list[asyncio.Task[None]] = []

    def come(self) -> None:
        """Let all come."""
        for member in self.all:
            member.come()

    async def go(self) -> None:
        """Let all go."""
        for member in self.all:
            await member.go()

    async def talk(self) -> None:
        """Let all talk, once all are there: nobody hears what was said before it came for the first time."""
        await until(lambda: all(member.here for member in self.all), "all to be in the room")
        self._talking = [asyncio.create_task(member.talk()) for member in self.all]

    async def end(self) -> None:
        """Let all say what they have begun to say, and hear what others did."""
        for member in self.all:
            member.talks = False
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*self._talking)
        said = sum(len(member.said) for member in self.all)
        await until(lambda: all(len(set(member.heard)) >= said for member in self.all), "all to hear what was said")

    async def more(self) -> None:
        """Wait until everybody had some more lines acknowledged, and everybody heard them."""
        goals = {member: len(member.acknowledged) + MORE for member in self.all}
        await until(
            lambda: all(len(member.acknowledged) >= goal for member, goal in goals.items()), "more lines to be taken"
        )
        lines = {line for member, goal in goals.items() for line in member.said[:goal]}
        try:
            await until(lambda: all(lines <= set(member.heard) for member in self.all), "all to hear these lines")
        except Failed as error:
            unheard = {member.name: sorted(lines - set(member.heard)) for member in self.all}
            raise Failed(f"{error}; not heard: {unheard}") from None


# The account


def account(members: Members) -> str:
    """Compare what was said, acknowledged, logged and heard; give the figures. Raises Failed."""
    said = [line for member in members.all for line in member.said]
    acknowledged = {line for member in members.all for line in member.acknowledged}
    check(acknowledged == set(said), f"never acknowledged: {sorted(set(said) - acknowledged)}")
    written, taken_back, text_of = Counter[str](), Counter[str](), dict[str, str]()
    for file in sorted(LOGS.glob("chat.log*")):
        for line in file.read_text().splitlines():
            _, _, who, id, text = line.split(" ", 4)
            if who == "!":
                taken_back[text_of[id]] += 1
            else:
                text_of[id] = text
                written[text] += 1
    check(set(said) == set(written), f"not logged: {set(said) - set(written)}; never said: {set(written) - set(said)}")
    # Said again by its author after a worker was killed between writing and publishing it: it is there once more.
    doubtful = {line: count - 1 for line in said if (count := written[line] - taken_back[line]) != 1}
    check(all(count > 0 for count in doubtful.values()), f"logged, and then taken back: {doubtful}")
    check(sum(doubtful.values()) <= KILLS * MEMBERS, f"logged several times, and the log does not say why: {doubtful}")
    order = members.all[0].heard
    for member in members.all:
        twice = [line for line, count in Counter(member.heard).items() if count > 1]
        check(not twice, f"{member.name} heard twice: {twice}")
        check(set(member.heard) == set(said), f"{member.name} did not hear: {set(said) - set(member.heard)}")
        check(member.heard == order, f"{member.name} heard them in another order")
        check(not member.lost, f"{member.name} was told that lines are lost: {member.lost}")
    return (
        f"said, acknowledged and logged: {len(said)}; heard by each of {MEMBERS}, once, in one order; "
        f"log lines taken back by a second one: {sum(taken_back.values())}, in doubt: {sum(doubtful.values())}"
    )


def account_journal() -> str:
    """Check the entries of the service; give how many there are. Raises Failed."""
    entries = journal()
    names = {entry["SYSLOG_IDENTIFIER"] for entry in entries}
    check(names <= {"chatd", "systemd"}, f"the journal has it as {names}")
    own = [entry["MESSAGE"] for entry in entries if entry["SYSLOG_IDENTIFIER"] == "chatd"]
    dated = [line for line in own if re.match(r"\d{4}-\d\d-\d\dT", line)]
    check(not dated, f"with a time of its own: {dated[:3]}")
    ready = Counter(line for line in own if re.search(r"worker \d+ \(pid \d+\) is ready", line))
    check(ready and max(ready.values()) == 1, f"several times: {ready.most_common(3)}")
    cries = [line for line in own if "Traceback" in line or "Permission denied" in line or "not permitted" in line]
    check(not cries, f"in the journal: {cries[:3]}")
    return f"entries of chatd's own: {len(own)}, each with one time"


# The steps


def http_status(path: str) -> int:
    """Give the status of the answer to a request."""
    connection = http.client.HTTPConnection("localhost", 3000, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().status


def started() -> str:
    """Do what docs/install.md says to start it."""
    ask("sh", "/srv/start")
    check(shown("ActiveState") == "active", "systemctl enable --now comes back before it is active")
    check(http_status("/-/readyz") == 200, "it is active and not ready")
    return shown("StatusText")


async def reloaded() -> str:
    """Reload; the parent stays, the workers are new."""
    parent, before = main_pid(), children(main_pid())
    CONFIG.write_text(f"drain_timeout = 2\n{CONFIG.read_text()}")
    ask("systemctl", "reload", "chatd")
    await until(lambda: len(children(parent) & before) == 1, "all old processes but the broker to end")
    check(main_pid() == parent, "the parent is another one")
    check(shown("ActiveState") == "active", "it is not active afterwards")
    return f"workers replaced: {len(before) - 1}"


async def reloaded_with_a_mistake() -> str:
    """Reload a file that cannot be used: it fails, says why, and nothing changes."""
    good, parent, before = CONFIG.read_text(), main_pid(), children(main_pid())
    CONFIG.write_text(f"wrokers = 3\n{good}")
    status, _ = run("systemctl", "reload", "chatd")
    CONFIG.write_text(good)
    check(status != 0, "systemctl reload ends with 0")
    told = [entry["MESSAGE"] for entry in journal() if "wrokers" in entry["MESSAGE"]]
    check(told, "the journal does not have the mistake")
    check((main_pid(), children(parent)) == (parent, before), "processes were replaced")
    check(shown("ActiveState") == "active", "it is not active afterwards")
    return told[-1]


async def restarted() -> str:
    """Restart."""
    before = main_pid()
    ask("systemctl", "restart", "chatd")
    check(main_pid() not in (0, before), "it is the same process")
    return ""


async def killed() -> str:
    """Kill the parent; systemd starts another one."""
    await ended_by(signal.SIGKILL)
    return f"restarts: {shown('NRestarts')}"


async def frozen() -> str:
    """Freeze the parent; the watchdog ends it."""
    await ended_by(signal.SIGSTOP)
    check("watchdog" in ask("journalctl", "--unit=chatd", "--no-pager").lower(), "it was not the watchdog")
    return f"restarts: {shown('NRestarts')}"


async def ended_by(number: signal.Signals) -> None:
    """Send the parent a signal; wait for the next one."""
    before = main_pid()
    os.kill(before, number)
    await until(
        lambda: main_pid() not in (0, before) and shown("ActiveState") == "active", "a new parent that is ready"
    )
    check(not Path(f"/proc/{before}").exists(), "the old parent is still there")


async def activated(members: Members) -> str:
    """Let systemd hold the port: the connection that starts the service is answered."""
    await members.go()
    ask("systemctl", "stop", "chatd")
    # The example of the file has both lines.
    text = re.sub(r"(?m)^address = ", "# address = ", CONFIG.read_text())
    CONFIG.write_text(re.sub(r'(?m)^# address = (\["systemd:\S+"\]).*$', r"address = \1", text))
    ask("cp", str(SOURCE / "deploy" / "chatd.socket"), "/etc/systemd/system/")
    ask("systemctl", "daemon-reload")
    ask("systemctl", "enable", "--now", "chatd.socket")
    check(shown("ActiveState") == "inactive", "it runs before anybody has come")
    try:
        first = asyncio.create_task(asyncio.to_thread(http_status, "/ops?last=1"))
        async with connect(f"{URL}?nick=first", open_timeout=PATIENCE):
            status = await first
        check(status == 200, f"the connection that starts the service is answered {status}")
        await until(lambda: shown("ActiveState") == "active", "it to be active")
    finally:
        members.come()
    return "answered: a handshake and a request, at once"


def verified() -> str:
    """Let the tool compare the chat log with the histories."""
    verify = ["/opt/chatd/bin/chatd", "verify", "--data-dir", str(STATE), str(LOGS)]
    return ask("runuser", "-u", "chatd", "--", *verify).splitlines()[-1]


async def stopped() -> str:
    """Stop it for good: nothing is left."""
    ask("systemctl", "disable", "--now", "chatd.socket", "chatd.service")
    check(shown("ActiveState") == "inactive", f"it is {shown('ActiveState')}")
    check(shown("Result") == "success", f"its result is {shown('Result')}")
    check(
        any("chatd has stopped" in entry["MESSAGE"] for entry in journal("--lines=20")), "it was not stopped in order"
    )
    left = [path for path in Path("/proc").glob("[0-9]*") if b"/opt/chatd/" in (path / "cmdline").read_bytes()]
    check(not left, f"left: {left}")
    return ""


FAILURES: list[str] = []


@contextlib.asynccontextmanager
async def step(what: str) -> AsyncIterator[list[str]]:
    """Print how a step went, with what is put into the list."""
    found: list[str] = []
    began, how = time.monotonic(), "ok"
    try:
        yield found
    except (Failed, OSError, WebSocketException, TimeoutError) as error:
        how, found[:] = "FAILED", [str(error) or repr(error)]
        FAILURES.append(what)
    print(f"    {what:<60} {how:<6} {time.monotonic() - began:5.0f} s", flush=True)
    for line in filter(None, found):
        print(f"        {line}", flush=True)


async def main() -> None:
    """Do all of it."""
    members = Members()
    async with step("systemctl enable --now") as found:
        found.append(started())
        members.come()
        await members.talk()
    if FAILURES:
        return
    for what, do in (
        ("reload", reloaded),
        ("reload with a mistake in the file: fails, says where", reloaded_with_a_mistake),
        ("restart", restarted),
        ("kill -9 of the parent", killed),
        ("a frozen parent, and the watchdog", frozen),
    ):
        async with step(what) as found:
            await members.more()
            found.append(await do())
            await members.more()
    async with step("socket activation") as found:
        found.append(await activated(members))
        await members.more()
    async with step("stop") as found:
        await members.end()
        found.append(verified())
        await members.go()
        found.append(await stopped())
    async with step("the account") as found:
        found += [account(members), account_journal()]


if __name__ == "__main__":
    asyncio.run(main())
    sys.exit(1 if FAILURES else 0)
