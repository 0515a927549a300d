"""The hub against a model: whatever happens, each member hears what it must, once, in order, or is told.

Random steps (``STEPS``) run against the real hub, with timelines and those who catch up, on a broker in memory whose
messages and answers come late, or not at all. Then everything calms down, and what each client heard is held against
what was published: ``Walk`` says what it must have been.

``python -m tests.rooms.test_model SEED COUNT`` plays as many more as you like.
"""

import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.logger import globalLogPublisher

from chatd.broker.resume_positions import ResumePosition
from chatd.config.settings import Config
from chatd.protocol.close_codes import TAKEN_OVER, CloseCode
from chatd.protocol.message import Batch, Message, OffsetGap, StreamPosition
from chatd.protocol.text import text_format
from tests.depth import depth
from tests.fakes import Events, FakeBus, FakeMember
from tests.rooms.server import ChatServer, make_server
from tests.rows import rows

ROOM = "ops"
LINE = 40
"""Bytes of each line that a client gets, with its end."""
MARK = 2 * LINE
"""With more than that unread a client is choked."""
OTHERS = ("w1", "w2")
"""Other workers."""
LINES = text_format(lambda message: f"{message.id:{LINE - 1}}", frame=lambda payload: payload + b"\n")


# The broker


@dataclass(eq=False)
class Asked:
    """A question on its way to the broker, or the answer on its way back."""

    work: Callable[[], Any]
    done: "Deferred[Any]"
    worked: bool = False
    answer: Any = None


@dataclass
class Outbox:
    """What a worker publishes: it waits while the worker has no link, and comes again where the broker has died."""

    sequence: int = 0
    live: bool = True
    waiting: deque[tuple[int, Sequence[Message], StreamPosition | None]] = field(default_factory=deque)
    said: list[tuple[int, Sequence[Message], StreamPosition | None, StreamPosition]] = field(default_factory=list)


class Broker(FakeBus):
    """A broker that remembers all it was ever told, and whose channels and answers go at their own pace."""

    def __init__(self, history: int) -> None:
        super().__init__(history=history)
        self.answer_at_once = False
        self.truth: dict[str, list[Message]] = {}
        """What was published, by epoch."""
        self.doubted: set[str] = set()
        """What was published twice by workers that did not know of the first time."""
        self.again: set[str] = set()
        """What was published again as the broker had died."""
        self.twice: set[str] = set()
        """What was published again once more: who missed an epoch between does not know that."""
        self.dropped: set[str] = set()
        """What did not come to us."""
        self.claimed: dict[str, ResumePosition] = {}
        """What was told of places, by connection."""
        self.questions = 0
        self.lost_places = False
        self.outboxes = {name: Outbox() for name in (self.publisher, *OTHERS)}
        self.channel: deque[Batch | StreamPosition] = deque()
        self.asked: list[Asked] = []

    # What is published

    def publish(self, room: str, messages: Sequence[Message], *_: Any, **__: Any) -> Any:
        self.hand_over(self.publisher, messages)
        return Deferred()

    def hand_over(self, publisher: str, messages: Sequence[Message]) -> None:
        box = self.outboxes[publisher]
        box.sequence += 1
        box.waiting.append((box.sequence, messages, None))
        self.send(publisher)

    def send(self, publisher: str) -> None:
        box = self.outboxes[publisher]
        while box.live and box.waiting:
            sequence, messages, before = box.waiting.popleft()
            first = self.say(ROOM, messages, sequence, publisher, before)
            box.said.append((sequence, messages, before, first))

    def say(
        self,
        room: str,
        messages: Sequence[Message],
        sequence: int,
        publisher: str,
        before: StreamPosition | None = None,
    ) -> StreamPosition:
        first = super().say(room, messages, sequence, publisher, before)
        self.truth.setdefault(first.epoch, []).extend(messages)
        [batch] = self._queue
        self._queue = []
        self._pass_on(batch)
        return first

    def say_again(self, which: int) -> None:
        """Publish a batch once more, with its offsets: the answer of the first time got lost."""
        kept = self.kept.get((ROOM, self.top(ROOM).epoch), [])
        if kept:
            self._pass_on(kept[which % len(kept)])

    def _pass_on(self, batch: Batch) -> None:
        if batch.room in self.rooms and not self.away:
            self.channel.append(batch)
        else:
            self._drop([batch])

    def _drop(self, items: Sequence[Batch | StreamPosition]) -> None:
        for item in items:
            if isinstance(item, Batch):
                self.dropped |= {each.id for each in item.messages}

    def lose(self, count: int) -> None:
        self._drop([self.channel.popleft() for _ in range(min(count, len(self.channel)))])

    def bring(self, count: int) -> None:
        for _ in range(count):
            if not self.channel:
                return
            item = self.channel.popleft()
            if ROOM not in self.rooms or not self.subscribed(ROOM):
                self._drop([item])
            elif isinstance(item, Batch):
                self.listener.deliver(item)
            else:
                self.listener.recover(ROOM, item)

    def compare(self) -> None:
        if ROOM in self.rooms and not self.away:
            self.channel.append(self.top(ROOM))

    # Links

    def cut(self) -> None:
        """Break our links: what was on its way is lost; what was asked is asked again."""
        self.away = "cut"
        self.outboxes[self.publisher].live = False
        self._drop(self.channel)
        self.channel.clear()
        for each in self.asked:
            each.worked = False
        self.unhear()
        self.listener.bus_changed()

    def mend(self, late: bool) -> None:
        """Bring our links back; where it is late, subscriptions are confirmed later."""
        if self.away:
            self.away = ""
            self.confirm_at_once = not late
            if not late:
                self.confirm_all()
            self.revive(self.publisher)
            self.compare()
            self.listener.bus_changed()

    def confirm_all(self) -> None:
        self.confirm_at_once = not self.away
        if not self.away:
            for room in list(self.rooms):
                self.confirm(room)

    def revive(self, publisher: str) -> None:
        if publisher != self.publisher or not self.away:
            self.outboxes[publisher].live = True
            self.send(publisher)

    def die(self, keep: bool, sure: int, unsure: int) -> None:
        """Begin another run, with or without what was known; workers publish again what was answered just before."""
        self.cut()
        kept, places, owners = dict(self.kept), dict(self.places), dict(self.owners)
        self.restart()
        if keep:
            self.kept, self.places, self.owners = kept, places, owners
        else:
            self.lost_places = True
        for box in self.outboxes.values():
            box.live = False
            unanswered = box.said[len(box.said) - unsure :] if unsure else []
            rest = box.said[: len(box.said) - len(unanswered)]
            answered = rest[len(rest) - sure :] if sure else []
            for sequence, messages, before, _ in reversed(unanswered):
                self.doubted |= {each.id for each in messages}
                box.waiting.appendleft((sequence, messages, before))
            for sequence, messages, before, first in reversed(answered):
                box.waiting.appendleft((sequence, messages, before or first))
            again = {each.id for _, messages, *_ in [*unanswered, *answered] for each in messages}
            self.twice |= self.again & again
            self.again |= again
            box.said = []

    def flush(self) -> None:
        """Lose everything but the links: somebody cleared it."""
        self.restart()
        self.lost_places = True

    # Answers

    def claim(self, room: str, key: str, session: str) -> Any:
        def note(place: ResumePosition) -> ResumePosition:
            self.claimed[session] = place
            return place

        return super().claim(room, key, session).addCallback(note)

    def work(self, count: int) -> None:
        """Let the broker look at what it was asked; the answer is on its way."""
        for each in [each for each in self.asked if not each.worked][:count]:
            if not self.away:
                each.answer, each.worked = each.work(), True

    def answer(self, count: int = 1_000_000) -> None:
        for _ in range(count):
            if self.away or not self.asked:
                return
            if not self.asked[0].worked:
                self.work(1)
            each = self.asked.pop(0)
            each.done.callback(each.answer)

    def _answer(self, work: Callable[[], Any]) -> Any:
        self.questions += 1
        done: Deferred[Any] = Deferred(lambda _: self.asked.remove(asked))
        asked = Asked(work, done)
        self.asked.append(asked)
        return done

    @property
    def oldest(self) -> dict[str, int]:
        """The first offset that history has, by epoch."""
        return {epoch: batches[0].first for (_, epoch), batches in self.kept.items() if batches}


# Clients

NOWHERE = StreamPosition("", 0)
"""Where one is who has not come in."""


@dataclass(eq=False)
class Client(FakeMember):
    """A client that reads as it is told, and remembers what it heard, in order."""

    world: "World" = field(default=None, repr=False)  # type: ignore[assignment]
    heard: list[tuple[str | OffsetGap, dict[str, int]]] = field(default_factory=list)
    """Ids of messages, and what was told as lost; with what history had by then."""
    start: StreamPosition = NOWHERE
    top: StreamPosition = NOWHERE
    """Where those who were live stood when it came in."""
    floor: int = 0
    """Up to here history has more than who comes may read: it may say that it is lost."""
    lenient: int = 0
    """Up to here nothing is told as lost before its first message."""
    here: bool = False
    gone: bool = False
    slow: bool = False
    backlog: int = 0
    was_slow: bool = False
    live: bool = False
    """Whether what it got last was said just then."""

    def deliver(self, blob: bytes, count: int) -> bool:
        if self.buffer_full and self.backlog + len(blob) > self.world.config.max_send_buffer:
            self.world.server.hub.start_recovery(ROOM, self)
            return False
        self.replay(blob, count)
        self.live = True
        return True

    def replay(self, blob: bytes, count: int) -> bool:
        lines = blob.decode().splitlines()
        assert count == len(lines)
        for line in lines:
            self._hear(line.strip())
        self.live = False
        if self.slow:
            self.backlog += len(blob)
            self.buffer_full = self.backlog > MARK
        return True

    def report_gap(self, gap: OffsetGap, *, slow: bool = False) -> None:
        self._hear(gap)

    def disconnect(self, close_code: CloseCode) -> None:
        assert close_code is TAKEN_OVER
        self.gone, self.here = True, False

    def _hear(self, item: str | OffsetGap) -> None:
        assert self.here
        self.heard.append((item, self.world.bus.oldest))

    def read(self) -> None:
        if self.here and self.buffer_full:
            self.backlog, self.buffer_full = 0, False
            self.world.server.hub.drained(ROOM, self)


def _number(epoch: str) -> int:
    return int(epoch[1:]) if epoch[1:].isdigit() else -1


class Walk:
    """Goes along with what a client heard, from message to message of what was published."""

    def __init__(self, client: Client, bus: Broker, config: Config) -> None:
        self.client = client
        self.bus = bus
        self.config = config
        self.position = client.start
        self.known: set[str] = set()
        """What it need not hear any more in another epoch: it stood behind it."""
        self.got: set[str] = set()
        self.old = self._said_before(client.start.epoch)
        """What was said before it came, or told as lost: where that is published again, it may hear it or not."""
        self.always_live = client.start == client.top and not client.was_slow
        self.lenient = client.lenient

    def go(self) -> None:
        for item, oldest in self.client.heard:
            if isinstance(item, OffsetGap):
                self._lose(item, oldest)
            else:
                self._get(item, oldest)

    def go_silently(self, position: StreamPosition) -> None:
        """Move on to a position up to which there must be nothing more to hear."""
        assert self.position.epoch == position.epoch, f"{self.position} is not {position}"
        for offset in range(self.position.offset + 1, position.offset + 1):
            assert not self._must_hear(offset), f"{self.client.id} missed {self._message(offset)}"
        self.position = position

    def _said_before(self, epoch: str) -> set[str]:
        epochs = [each for each in self.bus.truth if _number(each) < _number(epoch)]
        return {message.id for each in epochs for message in self.bus.truth[each]}

    def _message(self, offset: int) -> Message:
        return self.bus.truth[self.position.epoch][offset - 1]

    def _must_hear(self, offset: int) -> bool:
        message = self._message(offset)
        own = message.session == self.client.sender_id and not self.client.echo
        return not own and message.id not in self.known | self.got | self.old

    def _get(self, id: str, oldest: dict[str, int]) -> None:
        if self.client.start == self.client.top:
            assert id not in self.got or id in self.bus.twice, f"{id} came twice"
        if self.always_live:
            assert id not in self.known or id in self.bus.doubted | self.bus.twice, f"{id} came again"
        truth = self.bus.truth.get(self.position.epoch, [])
        ids = [each.id for each in truth]
        assert id in ids[self.position.offset :], f"{id} is not behind {self.position}: {ids}"
        offset = ids.index(id, self.position.offset) + 1
        self._be_lenient(oldest, offset - 1)
        self.go_silently(StreamPosition(self.position.epoch, offset - 1))
        message = self._message(offset)
        assert self.client.echo or message.session != self.client.sender_id, f"{id} is its own"
        self.got.add(id)
        self.position = StreamPosition(self.position.epoch, offset)

    def _be_lenient(self, oldest: dict[str, int], last: int) -> None:
        """Skip what history did not have for one who has heard nothing yet, and who asked for it in vain."""
        lost = min(last, self.lenient, self._oldest(oldest) - 1)
        if self.position == self.client.start and lost > self.position.offset:
            self.position = StreamPosition(self.position.epoch, lost)

    def _oldest(self, oldest: dict[str, int]) -> int:
        return oldest.get(self.position.epoch, 1_000_000)

    def _lose(self, gap: OffsetGap, oldest: dict[str, int]) -> None:
        if gap.count is not None:
            self._be_lenient(oldest, gap.last - gap.count)
            assert (gap.epoch, gap.count > 0) == (self.position.epoch, True), gap
            self.go_silently(StreamPosition(gap.epoch, max(self.position.offset, gap.last - gap.count)))
            assert gap.last == self.position.offset + gap.count, f"{gap} after {self.position}"
            begin = self.position.offset + 1
        elif gap.epoch == self.position.epoch:
            assert self.position == self.client.start, f"{gap} after {self.position}"  # there was no such position
            begin = gap.last + 1
        else:
            truth = self.bus.truth.get(self.position.epoch, [])
            rest = range(max(self.position.offset + 1, self._oldest(oldest)), len(truth) + 1)
            if self.config.keeps_history:
                assert not [each for each in rest if self._must_hear(each)], f"{gap} after {self.position}"
            self.known |= {each.id for each in truth[: self.position.offset]}
            if not self.always_live:
                self.old = self._said_before(gap.epoch)
            begin = 1
        lost = range(begin, gap.last + 1)
        self.position = StreamPosition(gap.epoch, gap.last)
        if self.config.keeps_history:
            had = [each for each in lost if each >= self._oldest(oldest) and each > self.client.floor]
            assert not had, f"{gap}, but history has {had}"
        elif self.always_live and gap.count is not None:
            assert all(self._message(each).id in self.bus.dropped for each in lost), f"{gap} was not dropped"
        self.known |= {self._message(each).id for each in lost}


# All of it


class World:
    """A hub, its broker and its clients, and what may happen to them."""

    def __init__(self, config: Config, kept: int) -> None:
        self.config = config
        self.bus = Broker(kept)
        self.server: ChatServer = make_server(config, self.bus)
        self.hub = self.server.hub
        self.hub.start()
        self.clients: list[Client] = []
        self.number = 0

    @property
    def here(self) -> list[Client]:
        return [each for each in self.clients if each.here]

    # Steps

    def say(self, worker: int, count: int, who: int) -> None:
        sender_ids = ["elsewhere", *[each.sender_id for each in self.clients]]
        sender_id = sender_ids[who % len(sender_ids)]
        messages = []
        for _ in range(count):
            self.number += 1
            messages.append(Message(f"m{self.number}", 0, sender_id, f"m{self.number}".ljust(LINE)))
        self.bus.hand_over(OTHERS[worker], messages)

    def post(self, who: int, count: int) -> None:
        if self.here and self.hub.publisher.open:
            self.hub.publisher.publish(ROOM, self.here[who % len(self.here)], ["x" * LINE] * count)

    def join(self, kind: str, which: int, offset: int, echo: bool, slow: bool) -> None:
        client = Client(f"c{len(self.clients)}", echo=echo, slow=slow, was_slow=slow, world=self, format=LINES)
        if kind == "last":
            client.last = offset
        elif kind == "since":
            epochs = [*self.bus.truth, "x"]
            epoch = epochs[which % len(epochs)]
            if epoch in self.bus.truth and epoch != self.bus.top(ROOM).epoch:
                offset = min(offset, len(self.bus.truth[epoch]))
            client.since = StreamPosition(epoch, offset)
        elif kind == "key":
            client.key = f"key{which % 2}"
        self.clients.append(client)
        self.hub.join(ROOM, client).addCallback(lambda _: self._joined(client))

    def _joined(self, client: Client) -> None:
        client.here = True
        top = self.hub._rooms[ROOM].ordering.position
        place = self.bus.claimed.get(client.id)
        client.start = (place and place.position) or client.since or top
        client.top = top
        client.floor = top.offset - self.config.history_size
        if client.last:
            client.start = StreamPosition(top.epoch, max(0, top.offset - min(client.last, self.config.history_size)))
            client.lenient = top.offset

    def leave(self, who: int) -> None:
        there = [each for each in self.clients if not each.gone]
        if there:
            client = there[who % len(there)]
            client.gone, client.here = True, False
            self.hub.leave(ROOM, client)

    def pace(self, who: int, slow: bool) -> None:
        if self.here:
            client = self.here[who % len(self.here)]
            client.slow, client.was_slow = slow, client.was_slow or slow
            client.read()

    def turn(self, seconds: float) -> None:
        self.server.clock.advance(seconds)

    # In the end

    def calm_down(self) -> None:
        before: Any = None
        for _ in range(100):
            self.bus.mend(False)
            self.bus.confirm_all()
            for name in self.bus.outboxes:
                self.bus.revive(name)
            self.turn(0)
            self.bus.answer()
            self.bus.compare()
            self.bus.bring(1_000_000)
            self.turn(0)
            for client in self.clients:
                client.slow = False
                client.read()
            after = (self.bus.questions, [(each.here, len(each.heard)) for each in self.clients])
            if before == after and not self.bus.asked:
                return
            before = after
        raise AssertionError("it does not calm down")

    def check(self) -> None:
        assert all(each.here or each.gone for each in self.clients), "somebody is left outside"
        questions = self.bus.questions
        self.say(0, 1, 0)
        self.bus.bring(1)
        self.turn(0)
        assert self.bus.questions == questions, "something was missing in the end"
        behind = [each.id for each in self.here if not each.live]
        assert not behind or len(self.bus.truth) > 1, f"{behind} are not live"
        top = self.bus.top(ROOM)
        last: dict[str, Walk] = {}
        for client in self.clients:
            if not client.start.epoch:
                continue  # it never came in
            if client.key:
                self._check_resumed(client, last.get(client.key))
            walk = Walk(client, self.bus, self.config)
            walk.go()
            if client.here:
                walk.go_silently(top)
            if client.key:
                last[client.key] = walk

    def _check_resumed(self, client: Client, last: Walk | None) -> None:
        """See that it begins where the last one with its key has come to, unless the broker has ever lost that."""
        if last is not None and not self.bus.lost_places:
            assert client.sender_id == last.client.sender_id
            last.go_silently(client.start)


COUNT = range(1, 5)
WHO = range(7)
EITHER = (False, True)
STEPS: dict[str, tuple[Sequence[Any], ...]] = {
    "say": (range(len(OTHERS)), COUNT, WHO),
    "post": (WHO, COUNT),
    "join": (("plain", "last", "since", "key"), range(3), range(13), EITHER, EITHER),
    "leave": (WHO,),
    "pace": (WHO, EITHER),
    "turn": ((0.0, 0.0, 1.0),),
    "bring": (COUNT,),
    "lose": (COUNT,),
    "work": (COUNT,),
    "answer": (COUNT,),
    "say_again": (WHO,),
    "compare": (),
    "cut": (),
    "flush": (),
    "mend": (EITHER,),
    "confirm_all": (),
    "revive": (OTHERS,),
    "die": (EITHER, range(3), range(2)),
}
"""What may happen: a method of World, or of its broker, and what it may be told."""
OFTEN = {"say": 6, "turn": 6, "bring": 6, "answer": 6, "join": 4, "post": 3, "pace": 3, "mend": 2}
NAMES = [name for name in STEPS for _ in range(OFTEN.get(name, 1))]
STEP = st.sampled_from(NAMES).flatmap(
    lambda name: st.tuples(st.just(name), st.tuples(*[st.sampled_from(each) for each in STEPS[name]]))
)
Steps = Sequence[tuple[str, tuple[Any, ...]]]

SMALL = Config(
    flush_interval=0,
    history_size=8,
    history_read_bytes=300,
    gap_buffer_bytes_per_room=500,
    batch_bytes=400,
    max_send_buffer=4 * LINE,
)
"""Everything runs out soon."""
BOUNDS = [
    (SMALL, 8),
    (SMALL, 16),
    (replace(SMALL, history_size=1000), 1000),
    (replace(SMALL, history_size=0, gap_buffer_bytes_per_room=100_000), 0),
]
"""With how many messages the broker keeps."""


def play(config: Config, kept: int, steps: Steps) -> None:
    events = Events()
    globalLogPublisher.addObserver(events)
    try:
        world = World(config, kept)
        for name, arguments in steps:
            getattr(world if hasattr(world, name) else world.bus, name)(*arguments)
        world.calm_down()
        world.check()
    finally:
        globalLogPublisher.removeObserver(events)
    assert [each for each in events.said if each[0] in ("error", "critical")] == []


@given(st.sampled_from(BOUNDS), st.lists(STEP, min_size=5, max_size=40))
@settings(max_examples=depth(300), derandomize=True, database=None)
def test_each_member_hears_what_it_must_once_in_order_or_is_told(bounds: tuple[Config, int], steps: Steps) -> None:
    play(*bounds, steps)


def play_some(seed: int, count: int) -> None:
    """Play what comes to mind; where that fails, say the steps, without those that it takes not."""
    random = Random(seed)
    for _ in range(count):
        bounds, steps = random.choice(BOUNDS), []
        for name in random.choices(NAMES, k=random.randint(5, 100)):
            steps.append((name, tuple(random.choice(each) for each in STEPS[name])))
        if fails(bounds, steps):
            for place in reversed(range(len(steps))):
                if fails(bounds, fewer := steps[:place] + steps[place + 1 :]):
                    steps = fewer
            print(bounds, *steps, sep="\n")
            play(*bounds, steps)


def fails(bounds: tuple[Config, int], steps: Steps) -> bool:
    try:
        play(*bounds, steps)
    except Exception:  # noqa: BLE001 - whatever it is
        return True
    return False


@rows("seed", range(4))
def test_nor_does_it_fail_by_the_thousand(seed: int) -> None:
    play_some(seed, depth(1000))


if __name__ == "__main__":
    play_some(int(sys.argv[1]), int(sys.argv[2]))
