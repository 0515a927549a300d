"""What is measured: the rows, each with its bounds, and the growth curves. Data only."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks.generator import Load
from benchmarks.measure import Subject


@dataclass(frozen=True)
class Row:
    """One line of the promise: a figure of chatd, held against a peer or against a number."""

    name: str
    work: str
    figure: str
    """Which figure of a sample counts."""
    unit: str
    bound: float
    """What must be reached or not passed: by chatd's figure over the first peer's, or by the figure if ``absolute``."""
    aim: float
    ours: Subject
    peers: tuple[Subject, ...] = ()
    """The first one is what chatd is held against; the others are shown beside."""
    more: bool = False
    """Whether more is better."""
    absolute: bool = False
    remark: str = ""
    times: int = 1
    """How often a round measures chatd and the first peer: more where single ratios scatter over the bound."""

    def subjects(self) -> tuple[Subject, ...]:
        """Give all that is measured, in the order to do it."""
        return (self.ours, *self.peers)


@dataclass(frozen=True)
class Curve:
    """How a figure grows with something: at each ``x``, a subject for each candidate."""

    name: str
    title: str
    axis: str
    figure: str
    unit: str
    points: tuple[tuple[float, Subject], ...]
    remark: str = ""


FAN_OUT = Load(200, senders=20, window=64)
STEADY = Load(500, senders=50, rate=100)
DROWNING = Load(500, senders=50, rate=400)
PIPE = Load(2, senders=1, window=4096)
CROWD = Load(3000)
IDLE = Load(5000)
LISTENING = Load(201, senders=1, window=64)
"""A sender, and 200 who hear it."""
SUBSCRIBERS = Load(900, senders=50, size=256, rate=1000)
STOPPED = replace(SUBSCRIBERS, clients=1000, stopped=100)
BACKLOG = 65_536
"""What may wait for each client that stopped: so little that they have fallen behind when measuring begins."""
LIMITED = ("--max-send-buffer", str(BACKLOG))
ROOM_RATE = 500.0
"""Messages a second over all rooms: one or so in each of chatd's flushes, so that a batch never holds two of a room."""
FILES_A_PROCESS = 10_000
NO_HISTORY = ("--history-size", "0")
SYNCED = ("--chat-log-sync", "batch")
OBJECTS = ("--chat-log-format", "json")


def _all(load: Load, workers: int = 2, *, broker: bool = True, pinned: bool = False) -> tuple[Subject, ...]:
    """Give the peers, the seed first, under the same load; what is one process by its nature stays one."""
    seed = Subject("seed", load, workers, broker, pinned)
    others = [replace(seed, candidate=name, broker=False) for name in ("nchan", "uws", "naive")]
    return (seed, *others)


def _rooms(rooms: int) -> Subject:
    load = Load(2 * rooms, senders=rooms, rooms=rooms, rate=ROOM_RATE, processes=-(-2 * rooms // FILES_A_PROCESS))
    return Subject("chatd", load, label="chatd, 1 room" if rooms == 1 else f"chatd, {rooms:,} rooms")


def _programs(name: str, who: str, programs: int, label: str) -> Row:
    """Give the row for clients that speak chatd.v1, so many of those of fan-out."""
    return Row(
        name,
        f"as fan-out, {who} speak chatd.v1, against bare clients; 2 workers",
        "cpu_us",
        "µs CPU a delivery",
        bound=1.5,
        aim=1.25,
        ours=Subject("chatd", replace(FAN_OUT, json=programs), label=label),
        peers=(Subject("chatd", FAN_OUT, label="chatd, bare clients"),),
        times=3,
    )


ROWS = (
    Row(
        "fan-out",
        "200 clients, 20 of them send 64 bytes, closed loop of 64 messages; 2 workers",
        "deliveries_per_s",
        "deliveries/s",
        bound=8,
        aim=16,
        ours=Subject("chatd", FAN_OUT),
        peers=_all(FAN_OUT),
        more=True,
    ),
    Row(
        "steady",
        "500 clients, 100 messages/s offered by 50 of them; 2 workers",
        "cpu_us",
        "µs CPU a delivery",
        bound=0.85,
        aim=0.6,
        ours=Subject("chatd", STEADY),
        peers=_all(STEADY),
        times=3,
    ),
    Row(
        "drowning",
        "500 clients, 400 messages/s offered by 50 of them; 2 workers",
        "p99_ms",
        "ms, p99",
        bound=150,
        aim=50,
        ours=Subject("chatd", DROWNING),
        peers=_all(DROWNING),
        absolute=True,
    ),
    Row(
        "one-to-one",
        "1 sender to 1 receiver, closed loop of 4,096 messages; 1 worker",
        "messages_per_s",
        "messages/s",
        bound=1.2,
        aim=2.5,
        ours=Subject("chatd", PIPE, workers=1),
        peers=tuple(each for each in _all(PIPE, workers=1, broker=False) if each.candidate != "nchan"),
        more=True,
        remark="The Node peer has no broker here, chatd has its own. Nchan is left out: in five of six trials, with "
        "buffers of 100 to 100,000 messages, it stopped delivering for good after 32,768 messages or somewhat more.",
    ),
    Row(
        "accepting",
        "3,000 WebSockets, 128 handshakes at once; 1 worker on core 0, the generator on core 1",
        "connects_per_s",
        "connections/s",
        bound=1.0,
        aim=2.0,
        ours=Subject("chatd", CROWD, workers=1, pinned=True),
        peers=_all(CROWD, workers=1, broker=False, pinned=True),
        more=True,
    ),
    Row(
        "memory",
        "5,000 idle connections; 1 worker",
        "memory_bytes",
        "bytes a connection",
        bound=1.0,
        aim=0.6,
        ours=Subject("chatd", IDLE, workers=1),
        peers=_all(IDLE, workers=1, broker=False),
        remark="Growth of the proportional set size of all server processes, without the kernel's socket buffers.",
    ),
    Row(
        "rooms",
        "500 messages/s offered over all rooms, 2 clients a room, 10,000 rooms against 1; 2 workers",
        "cpu_us",
        "µs CPU a message",
        bound=1.5,
        aim=1.2,
        ours=_rooms(10_000),
        peers=(_rooms(1),),
        remark="Flat is said in numbers here: at most 1.5 times, better 1.2 times.",
        times=3,
    ),
    Row(
        "history",
        "as fan-out, with history (1,000 messages, as it comes) against none; 2 workers",
        "deliveries_per_s",
        "deliveries/s",
        bound=0.75,
        aim=0.95,
        ours=Subject("chatd", FAN_OUT),
        peers=(Subject("chatd", FAN_OUT, options=NO_HISTORY, label="chatd --history-size 0"),),
        more=True,
    ),
    Row(
        "history-one-to-one",
        "as one-to-one, with history against none; 1 worker",
        "messages_per_s",
        "messages/s",
        bound=0.75,
        aim=0.95,
        ours=Subject("chatd", PIPE, workers=1),
        peers=(Subject("chatd", PIPE, workers=1, options=NO_HISTORY, label="chatd --history-size 0"),),
        more=True,
    ),
    Row(
        "log-sync",
        "as fan-out, each batch on the disk before it is published, against when the kernel writes it; 2 workers",
        "deliveries_per_s",
        "deliveries/s",
        bound=0.25,
        aim=0.75,
        ours=Subject("chatd", FAN_OUT, options=SYNCED, label="chatd --chat-log-sync batch"),
        peers=(Subject("chatd", FAN_OUT, label="chatd"),),
        more=True,
    ),
    Row(
        "log-sync-one-to-one",
        "as one-to-one, synced in the same way; 1 worker",
        "messages_per_s",
        "messages/s",
        bound=0.25,
        aim=0.75,
        ours=Subject("chatd", PIPE, workers=1, options=SYNCED, label="chatd --chat-log-sync batch"),
        peers=(Subject("chatd", PIPE, workers=1, label="chatd"),),
        more=True,
    ),
    Row(
        "log-json",
        "as one-to-one, with a chat log of JSON against one of text; 1 worker",
        "messages_per_s",
        "messages/s",
        bound=0.75,
        aim=0.95,
        ours=Subject("chatd", PIPE, workers=1, options=OBJECTS, label="chatd --chat-log-format json"),
        peers=(Subject("chatd", PIPE, workers=1, label="chatd"),),
        more=True,
    ),
    _programs("json", "all", 200, "chatd, chatd.v1"),
    _programs("mixed", "half of them", 100, "chatd, half chatd.v1, half bare"),
    Row(
        "sse",
        "1 sends 64 bytes, closed loop of 64 messages, to 200 who follow by server-sent events, against bare clients; "
        "2 workers",
        "cpu_us",
        "µs CPU a delivery",
        bound=2.0,
        aim=1.5,
        ours=Subject("chatd", replace(LISTENING, sse=200), label="chatd, server-sent events"),
        peers=(Subject("chatd", LISTENING, label="chatd, bare clients"),),
        times=3,
    ),
    Row(
        "page",
        "the chat page, again and again over 8 connections that stay open, one request at a time; 1 worker",
        "page_us",
        "µs CPU of the worker a page",
        bound=1000,
        aim=500,
        ours=Subject("chatd", Load(8, page=True), workers=1),
        absolute=True,
        remark="Asked for as browsers do, and answered compressed. Each time it must be the same page.",
    ),
    Row(
        "join-last",
        "3,000 joins with last=20 to a room that has them; 1 worker",
        "worker_us",
        "µs CPU of the worker a join",
        bound=2000,
        aim=500,
        ours=Subject("chatd", replace(CROWD, last=20), workers=1, lines=20, label="chatd, last=20"),
        peers=(Subject("chatd", CROWD, workers=1, lines=20, label="chatd, nothing asked for"),),
        absolute=True,
        remark="The whole join: accepting, the handshake, reading the 20 messages from the broker, sending them. Every "
        "client is seen to get all of them.",
    ),
    Row(
        "slow",
        "1,000 messages/s offered to 900 clients that read, beside 100 that stopped reading against none; 2 workers",
        "p99_ms",
        "ms, p99",
        bound=1.25,
        aim=1.1,
        ours=Subject("chatd", STOPPED, options=LIMITED, label="chatd, 100 of 1,000 stopped"),
        peers=(Subject("chatd", SUBSCRIBERS, options=LIMITED, label="chatd, 900, none stopped"),),
        remark="256 bytes a message, 900 clients that read it in both cases. 64 KiB may wait for each that stopped; "
        "chatd's log must say that all of them fell behind.",
    ),
    Row(
        "slow-memory",
        "the same: what the workers' memory grows by while 100 clients do not read; 2 workers",
        "grown_bytes",
        "bytes",
        bound=100 * BACKLOG,
        aim=50 * BACKLOG,
        ours=Subject("chatd", STOPPED, options=LIMITED, label="chatd, 100 of 1,000 stopped"),
        absolute=True,
    ),
    Row(
        "start",
        "from the command to ready; 2 workers",
        "start_s",
        "s",
        bound=3.0,
        aim=1.5,
        ours=Subject("chatd", Load(1)),
        peers=(Subject("seed", Load(1)),),
        absolute=True,
    ),
)


def _both(subject: Callable[[float, str], Subject], points: tuple[int, ...]) -> tuple[tuple[float, Subject], ...]:
    return tuple((float(x), subject(x, name)) for x in points for name in ("chatd", "seed"))


def _crowd(clients: float, candidate: str) -> Subject:
    return Subject(candidate, replace(FAN_OUT, clients=int(clients), senders=min(20, int(clients))))


def _size(size: float, candidate: str) -> Subject:
    return Subject(candidate, replace(FAN_OUT, size=int(size), window=min(64, 262_144 // int(size))))


def _workers(workers: float, candidate: str) -> Subject:
    return Subject(candidate, FAN_OUT, workers=int(workers))


CURVES = (
    Curve(
        "clients",
        "Clients in one room",
        "clients",
        "deliveries_per_s",
        "deliveries/s",
        _both(_crowd, (10, 100, 1_000, 10_000)),
        remark="20 of them send (of 10, all), closed loop of 64 messages.",
    ),
    Curve(
        "many-rooms",
        "Rooms of 2 clients",
        "rooms",
        "cpu_us",
        "µs CPU a message",
        tuple((float(rooms), replace(_rooms(rooms), label="chatd")) for rooms in (1, 10, 100, 1_000, 10_000)),
        remark="500 messages/s over all rooms. The Node peer has one room only.",
    ),
    Curve(
        "workers",
        "Workers",
        "workers",
        "deliveries_per_s",
        "deliveries/s",
        _both(_workers, (1, 2, 3, 4)),
        remark="The clients of the row fan-out.",
    ),
    Curve(
        "size",
        "Size of a message",
        "bytes",
        "deliveries_per_s",
        "deliveries/s",
        _both(_size, (16, 64, 256, 1_024, 4_096, 16_384)),
        remark="The clients of the row fan-out; at most 256 KiB of messages on their way.",
    ),
)
