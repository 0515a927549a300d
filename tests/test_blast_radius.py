"""Where one thing raises, and the others notice nothing: a row for each seam.

Each row makes one callback raise, and returns what became of the others beside what should have.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from chatd.access.token_bucket import SlowedClients
from chatd.access.tokens import Permissions
from chatd.broker.presence import PresenceStore
from chatd.broker.presence_list import Identity
from chatd.broker.publish_queue import NotPublished
from chatd.broker.queries import PUBLISH, Queries
from chatd.broker.resume_positions import ResumePosition as Stored
from chatd.chatlog.writer import Sync
from chatd.clients.turns import Turns
from chatd.config.settings import Config
from chatd.monitoring.prometheus import Meter, MetricsDirectory
from chatd.protocol.close_codes import BANNED, OUR_FAULT, STOPPING, CloseCode
from chatd.protocol.message import Batch, Message, OffsetGap, PresenceEvent, StreamPosition
from chatd.rooms.sharding import Shard, Shards
from chatd.runtime.ipc import HOLD, STOP, encode
from chatd.runtime.timers import Periodic, TimerWheel
from chatd.supervisor.reload import WorkerPools
from chatd.supervisor.worker_pool import WorkerProcess
from chatd.worker.worker import SupervisorPipe, Worker
from tests.broker import test_comparison, test_history, test_publish_queue, test_resume_positions
from tests.broker.wire import Wire, outcome
from tests.clients import test_websocket
from tests.clients.server import ChatServer as Clients
from tests.clients.test_json_session import Client, join
from tests.clients.test_token_lifetime import token_lifetime_of
from tests.fakes import FakeBus, FakeMember
from tests.rooms.server import TURNS, ChatServer, frames, make_server
from tests.web.http_client import ChatServer as Web
from tests.web.http_client import HttpClient

Seen = tuple[object, object]
"""What became of the others, and what should have."""

ROWS: dict[str, Callable[[], Seen]] = {}


def row(seam: str) -> Callable[[Callable[[], Seen]], Callable[[], Seen]]:
    """Enter a row into the table."""

    def enter(scene: Callable[[], Seen]) -> Callable[[], Seen]:
        ROWS[seam] = scene
        return scene

    return enter


def fail(*_: object, **__: object) -> Any:
    raise RuntimeError("no")


class Shown:
    """A format that raises, except where it is told otherwise."""

    def __init__(
        self,
        frames: Callable[[Sequence[Batch]], list[bytes]] = fail,
        change: Callable[[str, PresenceEvent], bytes] = fail,
    ) -> None:
        self.frames = frames
        self.change = change
        self.deflated = self


def room() -> ChatServer:
    return make_server(TURNS, FakeBus())


def member(server: ChatServer, name: str, **options: Any) -> FakeMember:
    """Let a member come in whose methods, given by name, are replaced."""
    methods = {key: options.pop(key) for key in list(options) if callable(options[key])}
    made = FakeMember(name, **options)
    for key, method in methods.items():
        setattr(made, key, method)
    server.hub.join("ops", made)
    server.bus.answer()
    server.end_turn()
    return made


# Periodic work and timers


@row("periodic work")
def _() -> Seen:
    clock, done = Clock(), list[float]()

    def work() -> None:
        done.append(clock.seconds())
        fail()

    Periodic(clock, 1.0, work, "work").start()
    clock.pump([1.0, 1.0])
    return done, [0, 1, 2]


@row("a timer of the wheel")
def _() -> Seen:
    clock, came = Clock(), list[str]()
    wheel = TimerWheel(clock, 0.1)
    wheel.callLater(1, fail)
    wheel.callLater(1, came.append, "another")
    clock.advance(1.1)
    return came, ["another"]


@row("a slice of frames")
def _() -> Seen:
    clock, came = Clock(), list[str]()
    turns = Turns(clock, 0)

    def handle_another() -> bool:
        came.append("another")
        return True

    for handle in (fail, handle_another):
        waiter: Any = SimpleNamespace(handle_slice=handle)
        turns.wait(waiter.handle_slice)
    clock.pump([0, 0])
    return came, ["another"]


@row("the warning before a token ends")
def _() -> Seen:
    clock, told = Clock(), list[str]()
    token_lifetime = token_lifetime_of(clock, Permissions("ann", expires=300))
    token_lifetime._timers = TimerWheel(clock, 1)
    token_lifetime.begin(fail, lambda: told.append("end"))
    for _ in range(500):
        clock.advance(1)
    return told, ["end"]


@row("the end of a token")
def _() -> Seen:
    clock, tried = Clock(), list[float]()

    def end() -> None:
        tried.append(clock.seconds())
        if len(tried) == 1:
            fail()

    token_lifetime = token_lifetime_of(clock, Permissions("ann", expires=300))
    token_lifetime._timers = TimerWheel(clock, 1)
    token_lifetime.begin(lambda left: None, end)
    for _ in range(500):
        clock.advance(1)
    return len(tried), 2


@row("a gauge of the process")
def _() -> Seen:
    folder = MetricsDirectory()
    try:
        clock: Any = Clock()
        path = folder.allocate()
        meter = Meter(clock, path, Config(), fail)
        meter.start()
        share: Any = meter._file
        written: list[float] = []
        share.write = lambda: written.append(clock.seconds())
        clock.pump([1.0, 1.0])
        meter.stop()
        return written, [1, 2, 2]
    finally:
        folder.remove()


@row("a watched file")
def _() -> Seen:
    checked: list[str] = []
    files = [SimpleNamespace(check=fail), SimpleNamespace(check=lambda: checked.append("another"))]
    worker: Any = SimpleNamespace(_watched=files)
    Worker._look_at_files(worker)
    return checked, ["another"]


@row("the workers of a generation that drains")
def _() -> Seen:
    ticked: list[str] = []
    serving = SimpleNamespace(check_heartbeats=fail, config=Config(), workers={})
    draining = SimpleNamespace(check_heartbeats=lambda: ticked.append("another"))
    worker_pools: Any = SimpleNamespace(
        _serving=serving, _draining=[draining], heartbeats_checked=lambda: ticked.append("the reporter")
    )
    WorkerPools._check_heartbeats(worker_pools)
    return ticked, ["another", "the reporter"]


@row("an order of the parent")
def _() -> Seen:
    heard: list[str] = []

    def order(order: str) -> None:
        heard.append(order)
        if order == HOLD:
            fail()

    worker: Any = SimpleNamespace(order=order)
    supervisor_pipe = SupervisorPipe(worker, 800)
    for line in (encode(HOLD), b"no order\n", encode(STOP)):
        supervisor_pipe.lineReceived(line.strip())
    return heard, [HOLD, STOP]


@row("a report of a worker")
def _() -> Seen:
    heard: list[bool] = []

    def ready(child: WorkerProcess) -> None:
        heard.append(child.ready)
        fail()

    pool: Any = SimpleNamespace(config=Config(), worker_ready=ready)
    child = WorkerProcess(pool, 1, 0.0)
    child.childDataReceived(1, b'{"type":"ready"}\n{"type":"heartbeat","clients":7}\n')
    assert child.heartbeat is not None
    return (heard, child.heartbeat.clients), ([True], 7)


# Delivery


@row("framing in one format")
def _() -> Seen:
    server = room()
    bad = member(server, "bad", format=Shown())
    good = member(server, "good")
    server.deliver("one", number=1)
    return (bad.events, good.blobs, good.events), ([OUR_FAULT], [frames("one")], [])


@row("showing who came in one format")
def _() -> Seen:
    server, told = room(), list[str]()

    def change(room: str, change: PresenceEvent) -> bytes:
        told.append(change.nick)
        return b""

    member(server, "bad", format=Shown())
    member(server, "good", format=Shown(change=change))
    server.hub.presence_changed("ops", server.bus.top("ops"), [PresenceEvent("join", "s", "ann", "")])
    server.end_turn()
    return told, ["ann"]


@row("delivery to one member")
def _() -> Seen:
    server = room()
    bad, good = member(server, "bad", deliver=fail), member(server, "good")
    server.deliver("one", number=1)
    return (bad.events, good.blobs), ([OUR_FAULT], [frames("one")])


@row("delivery to one member that cannot be closed")
def _() -> Seen:
    server = room()
    member(server, "bad", deliver=fail, disconnect=fail)
    good = member(server, "good")
    server.deliver("one", number=1)
    return good.blobs, [frames("one")]


@row("telling one member of a gap")
def _() -> Seen:
    server = room()
    bad, good = member(server, "bad", report_gap=fail), member(server, "good")
    server.hub._rooms["ops"]._in_order(OffsetGap("e0", 3, 3), None)
    server.end_turn()
    return (bad.events, good.events), ([OUR_FAULT], [OffsetGap("e0", 3, 3)])


@row("the delivery of one room")
def _() -> Seen:
    server = room()
    member(server, "bad")
    good = FakeMember("good")
    server.hub.join("dev", good)
    behind: Any = SimpleNamespace(step=fail)
    server.hub._rooms["ops"]._recoveries = {"bad": behind}
    server.receive("one", number=1)
    server.deliver("two", number=1, room="dev")
    return good.blobs, [frames("two")]


@row("publishing before delivery")
def _() -> Seen:
    server = room()
    good = member(server, "good")
    server.hub.publisher.flush_due = fail  # type: ignore[method-assign]
    server.deliver("one", number=1)
    return good.blobs, [frames("one")]


class Stuck(FakeMember):
    """A member that can be asked nothing."""

    buffer_full = property(fail)
    disconnect = fail


@row("a member that is behind and cannot be closed")
def _() -> Seen:
    server = room()
    slow = [member(server, name) for name in ("bad", "good")]
    for client in slow:
        client.buffer_full, client.fall_behind = True, lambda client=client: server.hub.start_recovery("ops", client)
    server.deliver("one", number=1)
    bad, good = slow
    bad.__class__ = Stuck
    good.buffer_full = False
    server.deliver("two", number=2)
    return good.blobs, [frames("one", "two")]


# Resume positions


def keyed(server: ChatServer, *names: str) -> list[FakeMember]:
    return [member(server, name, key=f"key-{name}") for name in names]


@row("the position of one member")
def _() -> Seen:
    server = room()
    server.hub.start()
    bad, _ = keyed(server, "bad", "good")
    bad.record = fail  # type: ignore[method-assign]
    server.deliver("one", number=1)
    server.clock.advance(1.0)
    server.deliver("two", number=2)
    server.clock.advance(1.0)
    server.hub.stop()
    return server.bus.places["ops", "key-good"].position, StreamPosition("e0", 2)


@row("saving one position")
def _() -> Seen:
    server = room()
    server.hub.start()
    keyed(server, "bad", "good")
    save, saved = server.bus.save, list[str]()

    def note(room: str, key: str, *rest: Any, **options: Any) -> None:
        saved.append(key)
        if key == "key-bad":
            fail()
        save(room, key, *rest, **options)

    server.bus.save = note  # type: ignore[method-assign]
    server.clock.advance(1.0)
    server.clock.advance(1.0)
    server.hub.stop()
    return saved, ["key-bad", "key-good"] * 2


@row("the position of a member that leaves")
def _() -> Seen:
    server = room()
    bad, good = keyed(server, "bad", "good")
    bad.record = fail  # type: ignore[method-assign]
    server.hub.leave("ops", bad)
    server.hub.leave("ops", good)
    return list(server.hub.rooms), []


@row("closing the connection that a resume key is taken from")
def _() -> Seen:
    server = room()
    [old] = keyed(server, "old")
    old.disconnect = fail  # type: ignore[method-assign]
    server.bus.answer_at_once = False
    new = member(server, "new", key="key-old")
    server.deliver("one", number=1)
    return (old.blobs, new.blobs), ([], [frames("one")])


@row("closing a connection that has lost its resume key unheard")
def _() -> Seen:
    office = test_resume_positions.Office(resume_positions_per_write=3)
    given: list[str] = []

    def disconnect(room: str, session: str) -> Stored | None:
        given.append(session)
        return fail() if session == "s1" else None

    office.places._disconnect = disconnect
    for number in (1, 2):
        office.save(f"s{number}", key=f"k{number}")
    office.end_turn()
    office.wire.answer([1, 2])
    return given, ["s1", "s2"]


# What was said


class Receipt:
    """Notes what became of messages, or raises."""

    def __init__(self, fails: bool = False) -> None:
        self.told: list[str] = []
        self.fails = fails

    def published(self, message: Message, position: StreamPosition, *, duplicate: bool) -> None:
        self.told.append(f"{message.text} {position.offset}")
        if self.fails:
            fail()

    def refused(self, message: Message, close_code: CloseCode) -> None:
        self.told.append(f"{message.text} {close_code.reason}")
        if self.fails:
            fail()


def receipts(server: ChatServer) -> list[list[str]]:
    """Let two members publish in one batch, the first of which has a receipt that raises; give what both were told."""
    made = [Receipt(fails=True), Receipt()]
    authors = [member(server, name) for name in ("ann", "bob")]
    for author, receipt in zip(authors, made, strict=True):
        server.hub.publisher.publish("ops", author, [author.id], receipt=receipt)
    server.end_turn()
    return [receipt.told for receipt in made]


@row("a receipt of what was published")
def _() -> Seen:
    return receipts(room()), [["ann 1"], ["bob 2"]]


@row("a receipt of what was refused")
def _() -> Seen:
    server = room()
    server.bus.refuse = NotPublished("no")
    return receipts(server), [[f"ann {OUR_FAULT.reason}"], [f"bob {OUR_FAULT.reason}"]]


@row("telling one author that its message was refused")
def _() -> Seen:
    server = room()
    server.bus.refuse = NotPublished("no")
    bad, good = member(server, "bad", publish_refused=fail), member(server, "good")
    for author in (bad, good):
        server.hub.publisher.publish("ops", author, ["hi"])
    server.end_turn()
    return good.events, [OUR_FAULT]


@row("an author that carries on")
def _() -> Seen:
    server = room()
    server.bus.full = True
    bad, good = member(server, "bad", resume_publishing=fail), member(server, "good")
    for author in (bad, good):
        server.hub.publisher.wait(author)
    server.bus.full = False
    server.hub.bus_changed()
    return good.events, ["carry on"]


@row("telling one author that the bus is away")
def _() -> Seen:
    server = room()
    server.bus.away = "gone"
    bad, good = member(server, "bad", bus_away=fail), member(server, "good")
    for author in (bad, good):
        server.hub.publisher.wait(author)
    server.hub.bus_changed()
    return good.events, ["bus away"]


@row("writing a batch to the chat log")
def _() -> Seen:
    server = room()
    ann, bob = member(server, "ann"), member(server, "bob")
    log, server.hub.publisher._chat = server.hub.publisher._chat, SimpleNamespace(info=fail)  # type: ignore[assignment]
    server.hub.publisher.publish("ops", ann, ["bad"])
    server.end_turn()
    server.hub.publisher._chat = log
    server.hub.publisher.publish("ops", bob, ["good"])
    server.settle()
    return (ann.events, ann.blobs, server.chat.batches), ([OUR_FAULT], [frames("good")], [["good"]])


@row("writing to the chat log what became of a batch")
def _() -> Seen:
    server = room()
    ann, bob = member(server, "ann"), member(server, "bob")

    def write(event: dict[str, Any]) -> None:
        if "outcome" in event:
            fail()

    log, server.hub.publisher._chat = server.hub.publisher._chat, SimpleNamespace(info=lambda _, **event: write(event))  # type: ignore[assignment]
    server.bus.refuse = NotPublished("no")
    server.hub.publisher.publish("ops", ann, ["bad"])
    server.end_turn()
    server.hub.publisher._chat, server.bus.refuse = log, None
    server.hub.publisher.publish("ops", bob, ["good"])
    server.settle()
    return (ann.events, ann.blobs), ([OUR_FAULT], [frames("good")])


@row("publishing for one room")
def _() -> Seen:
    server = room()
    ann, good = member(server, "ann"), FakeMember("good")
    server.hub.join("dev", good)
    publish = server.bus.publish
    server.bus.publish = lambda room, *rest: fail() if room == "ops" else publish(room, *rest)  # type: ignore[method-assign]
    server.hub.publisher.publish("ops", ann, ["bad"])
    server.hub.publisher.publish("dev", good, ["good"])
    server.end_turn()
    return (ann.events, good.events, server.published), ([OUR_FAULT], [], [["good"]])


@row("a listener of the chat log's sync")
def _() -> Seen:
    told: list[object] = []
    syncing: Deferred[None] = Deferred()
    sync = Sync(list, lambda *_: syncing)
    for synced in (fail, told.append):
        listener: Any = SimpleNamespace(synced=synced)
        sync.listen(listener)
    sync.request()
    syncing.callback(None)
    return told, [1]


@row("a listener of a sync that failed")
def _() -> Seen:
    told: list[object] = []
    syncing: Deferred[None] = Deferred()
    sync = Sync(list, lambda *_: syncing)
    for refused in (fail, lambda ticket, why: told.append(ticket)):
        listener: Any = SimpleNamespace(sync_failed=refused)
        sync.listen(listener)
    sync.request()
    syncing.errback(OSError("no"))
    return told, [1]


@row("one client that is slowed")
def _() -> Seen:
    server = Clients()
    bad, _ = server.session("s1")
    good, _ = server.session("s2")
    slowed = SlowedClients(1000)
    for session in (bad, good):
        pace: Any = SimpleNamespace(slowed=slowed)
        slowed.add(session)
        session._held, session._rate = ["late"], pace
        session._slowed = server.clock.callLater(100, fail)
    hub: Any = SimpleNamespace(publisher=SimpleNamespace(open=True, publish=fail))
    bad._hub = hub
    slowed.publish_now()
    return server.turn(), [("lobby", "late")]


# The broker


@row("decoding one entry of history")
def _() -> Seen:
    good = test_history.entry("e", 5)
    span = test_history.Archive().read([b"e", b"6", 0, b"e 6", good, b"garbage"])
    return test_history.shape(span), [("e", [5])]


@row("putting one query into bytes")
def _() -> Seen:
    queries = Queries(Clock(), Config(redis_concurrent_queries=1))
    wire = Wire()
    queries.connected(wire, b"r1")
    bad, good = (queries.ask(PUBLISH, [b"k"], make) for make in (fail, lambda run: [run]))
    wire.answer(1)
    return (str(outcome(bad)), outcome(good)), ("no", 1)


@row("encoding one batch")
def _() -> Seen:
    office = test_publish_queue.Office(Config())
    office.connect()
    office.boxes.publish("ops", [Message("s.1", 2**70, "s", "bad")], {}).addErrback(lambda _: None)
    office.publish("good")
    return office.wire.batches, [("ops", 2, ["good"])]


@row("sending what waits for one room")
def _() -> Seen:
    office = test_publish_queue.Office(Config())
    office.publish("bad"), office.publish("good", room="dev")
    channel = office.boxes._channel
    office.boxes._channel = lambda room: fail() if room == "ops" else channel(room)
    office.connect()
    return [each[0] for each in office.wire.batches], ["dev"]


@row("comparing one room")
def _() -> Seen:
    table = test_comparison.Table("a", "b", "c")
    compared: list[str] = []

    def recover(room: str, top: StreamPosition) -> None:
        compared.append(room)
        if room == "a":
            fail()

    table.comparison._recover = recover
    table.comparison.run()
    table.round(1, 2)
    table.round(3)
    return (compared, table.presences_compared), (["a", "b", "c"], [("a", "b"), ("c",)])


def presence(**others: Any) -> PresenceStore:
    options: dict[str, Any] = {"channel": str.encode, "now": lambda: 0.0, "changed": fail, "renamed": fail, **others}
    queries: Any = SimpleNamespace(ask=lambda *_: Deferred())
    return PresenceStore(Clock(), queries, Config(), "w", **options)


@row("writing who is in one room")
def _() -> Seen:
    said: list[str] = []

    def look(room: str) -> None:
        said.append(room)
        if room == "ops":
            fail()

    made = presence(published=look)
    for name in ("ops", "dev"):
        made.enter(name, "s1", Identity()).addErrback(lambda _: None)
        made._rooms[name].waiting.clear()
        made.leave(name, "s1", linger=False)
    made._send_all()
    return said, ["ops", "dev"]


@row("saying anew who is in one room")
def _() -> Seen:
    made, cared = presence(), list[str]()

    def care(room: str) -> None:
        cared.append(room)
        if room == "ops":
            fail()

    made._store_again = care  # type: ignore[method-assign]
    for name in ("ops", "dev"):
        made.enter(name, "s1", Identity())
    queries: Any = SimpleNamespace(ask=lambda *_: succeed([0, 1, 0, 1]))
    made._queries = queries
    outcome(made.check(["ops", "dev"]))
    return cared, ["ops", "dev"]


def shards(part: Any) -> tuple[Shards, list[str]]:
    did: list[str] = []
    other: Any = SimpleNamespace(
        broadcast=lambda: did.append("another"), stop=lambda: did.append("another"), rooms=(), publisher=None
    )
    return Shards([Shard("bad", part, part), Shard("good", other, other)]), did


@row("delivery from one broker")
def _() -> Seen:
    made, did = shards(SimpleNamespace(broadcast=fail))
    made.broadcast()
    return did, ["another"]


@row("stopping the link to one broker")
def _() -> Seen:
    made, did = shards(SimpleNamespace(stop=fail))
    made.stop()
    return did, ["another", "another"]


# Connections


def followers(web: Web) -> tuple[Any, HttpClient]:
    """Let two clients follow a room; the first can't be closed."""
    bad, good = HttpClient(web), HttpClient(web)
    for asker in (bad, good):
        asker.send("GET /ops", "Accept: text/event-stream")
    first = next(iter(web.connections.connections))
    return first, good


@row("closing one of all connections")
def _() -> Seen:
    web = Web()
    first, good = followers(web)
    first.close = fail
    web.connections.close_all(STOPPING)
    return b"event: bye" in good.received, True


@row("closing one of the banned connections")
def _() -> Seen:
    web = Web()
    first, good = followers(web)
    first.close = fail
    web.connections.bans.has = lambda address: True  # type: ignore[method-assign]
    web.connections.close_banned()
    return BANNED.reason.encode() in good.received, True


@row("a heartbeat of one stream")
def _() -> Seen:
    web = Web()
    first, good = followers(web)
    beats: list[bytes] = []

    def send(blob: bytes) -> None:
        beats.append(blob)
        fail()

    first.send = send
    good.transport.clear()
    for _ in range(2):
        web.clock.advance(25.1)
    return (len(beats), good.received), (2, b"3\r\n:\n\n\r\n" * 2)


@row("leaving a room at the end of a connection")
def _() -> Seen:
    web = Web()
    first, _ = followers(web)
    first.session._hub = SimpleNamespace(leave=fail)
    ended = web.connections.close_all(STOPPING)
    for following in list(web.connections.connections):
        following.transport.abortConnection()  # type: ignore[attr-defined]
    web.turn()
    return ended.called, True


@row("leaving a room at the end of a WebSocket")
def _() -> Seen:
    server = test_websocket.ChatServer()
    bad, _ = server.client(), server.client()
    hub: Any = SimpleNamespace(leave=fail)
    session: Any = bad.connection.session
    session._hub = hub
    ended = server.factory.close_all(STOPPING)
    server.clock.pump([1.0] * 3)
    return ended.called, True


@row("a ping")
def _() -> Seen:
    server = test_websocket.ChatServer()
    client = server.client()
    client.connection.sendPing = fail
    server.clock.advance(test_websocket.CONFIG.ping_interval + 0.1)
    server.clock.advance(test_websocket.CONFIG.pong_timeout + 0.1)
    return client.gone, "ConnectionAborted"


@row("the answer to one request")
def _() -> Seen:
    web = Web()
    bad, good = HttpClient(web), HttpClient(web)
    members, web.bus.members = web.bus.members, fail  # type: ignore[method-assign]
    status = bad.request("GET /ops/members").status
    web.bus.members = members  # type: ignore[method-assign]
    return (status, good.request("GET /ops/members").status), (500, 200)


@row("leaving one of several rooms")
def _() -> Seen:
    server = Clients()
    client = Client(server)
    client.request(join("ops"), join("dev"))
    leave = server.hub.leave

    def leave_all_but(name: str, subscriber: Any) -> None:
        if name == "lobby":
            fail()
        leave(name, subscriber)

    server.hub.leave = leave_all_but  # type: ignore[method-assign]
    client.session.closed()
    return list(server.hub.rooms), ["lobby"]


@row("what arrived in one of several rooms")
def _() -> Seen:
    server = Clients()
    client = Client(server, resume="a-key-of-mine")
    client.request(join("ops"))
    sealed: list[str] = []
    rooms: dict[str, Any] = {
        name: SimpleNamespace(key="k", hub=server.hub, seal=lambda name=name: sealed.append(name), close=fail)
        for name in ("a", "b")
    }
    rooms["b"].close = lambda: sealed.append("closed b")
    server.hub.record_position = fail  # type: ignore[method-assign]
    client.session._rooms = rooms
    client.session.record_positions()
    client.session.record_arrival()
    return sealed, ["a", "b", "closed b"]


@row("going on in one of several rooms")
def _() -> Seen:
    server = Clients()
    client = Client(server)
    client.request(join("ops"))
    drained: list[str] = []

    def note(name: str, subscriber: Any) -> None:
        drained.append(name)
        if name == "lobby":
            fail()

    server.hub.drained = note  # type: ignore[method-assign]
    client.session.drained()
    return drained, ["lobby", "ops"]


@pytest.mark.parametrize("scene", ROWS.values(), ids=ROWS)
def test_what_raises_is_noticed_by_nobody_else(scene: Callable[[], Seen]) -> None:
    seen, expected = scene()
    assert seen == expected
