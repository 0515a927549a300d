"""Accounts for every line: what was said, logged, heard, refused, or is in doubt, and in clear words what is wrong.

Each client's life is a list of stays, one a connection. All lines differ. What is asked for:

* What was said on one connection stands in the logs from its first line on, each once; the rest may be missing only
  where the connection was closed on its sender, which is how a bare one learns that not all was taken.
* A room has one order, the same for all; in it each connection's lines stand as they were said. A line that is logged
  is in it, once, unless a second line in the log says otherwise, or it is *in doubt*: among the last of a worker that
  was killed before it could publish them.
* Nobody hears what no log has. Each stay of a member is a stretch of the order without a hole. The first begins with
  the room, unless the member came late; the last reaches the end, unless it has left. One with a resume key goes on
  where it was; it may get the last lines once more, where the server could not know that it had them.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

_LONG = 40
"""Characters of a line that name it."""


@dataclass
class Stay:
    """One connection of a client."""

    lines: list[str] = field(default_factory=list)
    """What it said or heard, in order."""
    code: int | None = None
    """The close code; 1000 where the client closed in order itself; None while it is open."""


@dataclass
class Life:
    """All connections of one client."""

    name: str
    room: str = "lobby"
    key: str = ""
    late: bool = False
    """Whether it need not hear the room from its first line on."""
    stays: list[Stay] = field(default_factory=list)


@dataclass
class Account:
    """What became of all lines."""

    wrong: list[str] = field(default_factory=list)
    """What should not be, a sentence each."""
    said: int = 0
    logged: int = 0
    refused: int = 0
    """Said and not logged, on connections that were then closed; or logged and then refused."""
    heard: int = 0
    """By all members together."""
    again: int = 0
    """Of those, the ones that a member with a resume key got once more."""
    doubtful: dict[str, int] = field(default_factory=dict)
    """Lines that were logged and that nobody heard, by the worker that logged them; no second line says why."""

    def __str__(self) -> str:
        """Give one line of figures, and what is wrong."""
        figures = (
            f"{self.said} lines said, {self.logged} logged, {self.refused} refused, "
            f"{sum(self.doubtful.values())} in doubt; heard {self.heard} times, {self.again} of them again"
        )
        return "\n".join([figures, *self.wrong])


@dataclass
class _Logged:
    """The lines of one room in the logs."""

    worker: dict[str, str] = field(default_factory=dict)
    """Who logged it, by line, in the order of the logs."""
    text: dict[str, str] = field(default_factory=dict)
    """By message id."""
    outcome: dict[str, str] = field(default_factory=dict)
    """What a second line says, by line."""


def account(logs: Iterable[Sequence[str]], senders: Iterable[Life], members: Iterable[Life]) -> Account:
    """Compare the lines of the chat logs with what clients said and heard."""
    found = Account()
    rooms = _read(logs, found)
    by_room: dict[str, tuple[list[Life], list[Life]]] = {room: ([], []) for room in rooms}
    for kind, lives in enumerate((senders, members)):
        for life in lives:
            by_room.setdefault(life.room, ([], []))[kind].append(life)
    for room, (said, heard) in by_room.items():
        logged = rooms.get(room, _Logged())
        _account_senders(found, logged, said)
        if heard:
            order = _account_members(found, heard)
            _account_order(found, logged, order)
            for sender in said:
                _account_sequence(found, sender, order)
    return found


def _read(logs: Iterable[Sequence[str]], found: Account) -> dict[str, _Logged]:
    rooms: dict[str, _Logged] = {}
    for line in [line for log in logs for line in log]:
        _, room, who, id, text = line.split(" ", 4)
        logged = rooms.setdefault(room, _Logged())
        if who == "!":
            logged.outcome[logged.text[id]] = text
        elif text in logged.worker:
            found.wrong.append(f"{text!r} is in the logs twice")
        else:
            logged.worker[text] = id.partition(".")[0]
            logged.text[id] = text
            found.logged += 1
    return rooms


def _account_senders(found: Account, logged: _Logged, senders: Sequence[Life]) -> None:
    strange = set(logged.worker)
    for sender in senders:
        for stay in sender.stays:
            found.said += len(stay.lines)
            strange.difference_update(stay.lines)
            taken = [line for line in stay.lines if line in logged.worker]
            found.refused += len(stay.lines) - len(taken)
            found.refused += sum(logged.outcome.get(line) == "refused" for line in taken)
            missing = [line for line in stay.lines[: len(taken)] if line not in logged.worker]
            if missing:
                found.wrong.append(f"not logged, though later lines of that connection are: {_some(missing)}")
            elif len(taken) < len(stay.lines) and stay.code in (None, 1000):
                rest = stay.lines[len(taken) :]
                found.wrong.append(f"not logged, though the connection was not closed on {sender.name}: {_some(rest)}")
    if strange:
        found.wrong.append(f"logged, but never said: {_some(sorted(strange))}")


def _account_members(found: Account, members: Sequence[Life]) -> dict[str, int]:
    """Find the one order that all members of a room have heard; give each line's place in it."""
    for stay in [stay for member in members for stay in member.stays]:
        found.heard += len(stay.lines)
    whole = {
        member.name: _joined(found, member)
        for member in members
        if not member.late and (member.key or len(member.stays) == 1)
    }
    assert whole, "there has to be a member who should have heard all"
    longest = max(whole.values(), key=lambda lines: len(set(lines)))
    order = {line: place for place, line in enumerate(dict.fromkeys(longest))}
    for member in members:
        if member.name in whole:
            _compare(found, member.name, whole[member.name], order, range(len(order)))
            continue
        for number, stay in enumerate(member.stays, 1):
            lines = stay.lines
            if not lines:
                continue  # it was gone, or is not needed to hear anything
            start = order.get(lines[0], 0) if member.late or number > 1 else 0
            end = len(order) if stay.code is None else start + len(lines)
            _compare(found, f"{member.name} (connection {number})", lines, order, range(start, end))
    return order


def _joined(found: Account, member: Life) -> list[str]:
    """Put the stays of a member with a key together: each goes on where the one before ended, or a bit earlier."""
    lines: list[str] = []
    place: dict[str, int] = {}
    for number, stay in enumerate(member.stays, 1):
        again = 0
        if lines and stay.lines and stay.lines[0] in place:
            start = place[stay.lines[0]]
            again = min(len(lines) - start, len(stay.lines))
            if stay.lines[:again] != lines[start : start + again]:
                found.wrong.append(f"{member.name} got the lines that it got again on connection {number} in disorder")
        found.again += again
        for line in stay.lines[again:]:
            place.setdefault(line, len(lines))
            lines.append(line)
    return lines


def _compare(found: Account, who: str, heard: Sequence[str], order: dict[str, int], stretch: range) -> None:
    """Check that what was heard is that stretch of the order."""
    places = [order.get(line, -1) for line in heard]
    if places == list(stretch):
        return
    lines = list(order)
    if -1 in places:
        found.wrong.append(f"{who} heard {heard[places.index(-1)]!r}, and others did not")
    twice = [line for line, count in Counter(heard).items() if count > 1]
    if twice:
        found.wrong.append(f"{who} heard more than once: {_some(twice)}")
    elif any(one > other for one, other in pairwise(places) if -1 not in (one, other)):
        at = next(at for at, (one, other) in enumerate(pairwise(places)) if one > other >= 0)
        found.wrong.append(f"{who} heard {heard[at]!r} before {heard[at + 1]!r}, and others the other way round")
    known = set(heard)
    missed = [line for line in lines[stretch.start : stretch.stop] if line not in known]
    if missed:
        found.wrong.append(f"{who} did not hear: {_some(missed)}")


def _account_order(found: Account, logged: _Logged, order: dict[str, int]) -> None:
    ghosts = [line for line in order if line not in logged.worker]
    if ghosts:
        found.wrong.append(f"heard, but not logged: {_some(ghosts)}")
    denied = [line for line, outcome in logged.outcome.items() if outcome in ("refused", "duplicate") and line in order]
    if denied:
        found.wrong.append(f"heard, though the log says that it was not published: {_some(denied)}")
    unheard: dict[str, list[str]] = {}
    for line, worker in logged.worker.items():
        if line in order:
            if worker in unheard:
                lost = unheard.pop(worker)
                found.wrong.append(f"logged and not heard, though {line!r} of the same worker was: {_some(lost)}")
        elif line not in logged.outcome:
            unheard.setdefault(worker, []).append(line)
    for worker, lines in unheard.items():
        found.doubtful[worker] = found.doubtful.get(worker, 0) + len(lines)


def _account_sequence(found: Account, sender: Life, order: dict[str, int]) -> None:
    """Check that what was said on one connection was heard as it was said."""
    for stay in sender.stays:
        for one, other in pairwise([line for line in stay.lines if line in order]):
            if order[one] > order[other]:
                found.wrong.append(f"{sender.name} said {one!r} before {other!r}, and it was heard behind it")


def _some(lines: Sequence[str]) -> str:
    first, last = (repr(line if len(line) < _LONG else f"{line[:_LONG]}…") for line in (lines[0], lines[-1]))
    return first if len(lines) == 1 else f"{len(lines)} lines, {first} to {last}"
