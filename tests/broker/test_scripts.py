"""The scripts, each on the real Valkey: what they promise whoever runs them."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from chatd.broker.queries import ALL, CLAIM, FOUGHT, PUBLISH, READ, SAVE, TOPS, Script
from tests.broker.server import Client, Error, Server


@pytest.fixture
def path(valkey_url: str) -> str:
    return valkey_url.removeprefix("unix://")


@pytest.fixture
def broker(path: str) -> Iterator[Client]:
    with Client(path) as client:
        yield client


class Rooms:
    """Runs the scripts as workers do, for rooms that no other test has."""

    def __init__(self, broker: Client) -> None:
        self.broker = broker
        self.prefix = f"t{uuid.uuid4().hex[:8]}"
        self.name = f"{self.prefix}:room:ops"
        self.run_id = "r1"
        self.epoch = "e1"
        self.history = 1000
        self.recent = (0, 0)
        """Seconds and bytes of what is kept however much it is."""
        self.end = ""
        """The position of the last batch that was read."""

    def run(self, script: Script, keys: list[str], *arguments: Any) -> Any:
        return self.broker.ask("EVAL", script.source, len(keys), *keys, *arguments)

    def publish(
        self,
        sequence: int,
        count: int = 1,
        publisher: str = "w1",
        payload: bytes = b"",
        ids: dict[int, str] | None = None,
    ) -> Any:
        """Publish a batch: give its epoch and first offset, or what of it was published before."""
        flat = [each for number, id in (ids or {}).items() for each in (number, f"{self.prefix}:id:{id}")]
        answer = self.run(
            PUBLISH,
            [self.name, f"{self.prefix}:sent:{publisher}"],
            *(f"{self.prefix}:history:", ":ops", publisher, sequence, count, payload),
            *(self.run_id, self.epoch, 100, 50, self.history, 70, *self.recent, *flat),
        )
        if answer[0] is None:
            return {int(number): place.decode() for number, place in answer[1:]}
        return answer[0].decode(), int(answer[1])

    def read(
        self, epoch: str = "", offset: int = 0, most: int = 1_000_000
    ) -> tuple[tuple[str, int], bool, list[bytes]]:
        """Give the top, whether there is more, and the batches."""
        keys, history = [self.name], (f"{self.prefix}:history:", ":ops")
        epoch_now, top, more, end, *batches = self.run(
            READ, keys, *history, self.run_id, self.epoch, 100, epoch, offset, most
        )
        self.end = end.decode()
        return (epoch_now.decode(), int(top)), bool(more), batches

    def offsets(self, epoch: str, offset: int, most: int = 1_000_000) -> tuple[list[tuple[str, int]], bool]:
        """Give epoch and first offset of each batch that follows a position, and whether there is more."""
        _, more, batches = self.read(epoch, offset, most)
        heads = [batch.split(b"\n")[0].decode().split(" ") for batch in batches]
        return [(head[0], int(head[1])) for head in heads], more

    def tops(self, *keys: str) -> list[tuple[str, int]]:
        flat = self.run(TOPS, list(keys), self.run_id, 100)
        return [(epoch.decode(), int(top)) for epoch, top in zip(flat[::2], flat[1::2], strict=True)]

    def key(self, name: str) -> str:
        return f"{self.prefix}:{name}"

    def ttl(self, name: str) -> int:
        seconds: int = self.broker.ask("TTL", self.key(name))
        return seconds


@pytest.fixture
def rooms(broker: Client) -> Rooms:
    return Rooms(broker)


@pytest.fixture
def channel(path: str, rooms: Rooms) -> Iterator[Client]:
    """Hear what is published in the room and to the workers."""
    with Client(path) as client:
        for name in ("room:ops", "worker:w1", "worker:w2"):
            client.ask("SUBSCRIBE", rooms.key(name))
        yield client


@pytest.mark.parametrize("script", ALL, ids=lambda script: script.name)
def test_a_script_is_known_by_its_digest_once_it_was_loaded(broker: Client, script: Script) -> None:
    class Protocol:
        def script_load(self, source: bytes) -> Any:
            return broker.ask("SCRIPT", "LOAD", source)

        def execute_command(self, *command: Any) -> Any:
            return command

    digest = script.load(Protocol())
    assert script.run(Protocol(), [b"a", b"b"], [1, "c"]) == ("EVALSHA", digest, 2, b"a", b"b", 1, "c")


# publish: the order


def test_offsets_are_1_2_3_in_an_epoch(rooms: Rooms) -> None:
    assert [rooms.publish(sequence) for sequence in (1, 2, 3)] == [("e1", 1), ("e1", 2), ("e1", 3)]


def test_a_batch_takes_as_many_offsets_as_it_has_messages(rooms: Rooms) -> None:
    assert [rooms.publish(1, 5), rooms.publish(2, 2), rooms.publish(3)] == [("e1", 1), ("e1", 6), ("e1", 8)]


def test_publishers_share_the_order(rooms: Rooms) -> None:
    places = [rooms.publish(1, publisher=publisher) for publisher in ("w1", "w2", "w3")]
    assert places == [("e1", 1), ("e1", 2), ("e1", 3)]


def test_an_epoch_once_made_stays(rooms: Rooms) -> None:
    rooms.publish(1)
    rooms.epoch = "e2"
    assert rooms.publish(2) == ("e1", 2)


def test_an_epoch_that_a_reader_made_is_the_one_that_is_published_in(rooms: Rooms) -> None:
    rooms.read()
    rooms.epoch = "e2"
    assert rooms.publish(1) == ("e1", 1)


def test_a_room_that_was_forgotten_begins_a_new_epoch(rooms: Rooms) -> None:
    rooms.publish(1)
    rooms.broker.ask("DEL", rooms.name)
    rooms.epoch = "e2"
    assert rooms.publish(2) == ("e2", 1)


def test_another_run_of_the_broker_starts_a_new_epoch_at_1(rooms: Rooms) -> None:
    rooms.publish(1, 40)
    rooms.run_id, rooms.epoch = "r2", "e2"
    assert [rooms.publish(2), rooms.publish(3)] == [("e2", 1), ("e2", 2)]


def test_a_large_offset_stays_a_whole_number(rooms: Rooms) -> None:
    rooms.publish(1)
    rooms.broker.ask("HSET", rooms.name, "top", 10**15)
    assert [rooms.publish(2), rooms.publish(3)] == [("e1", 10**15 + 1), ("e1", 10**15 + 2)]
    assert rooms.offsets("e1", 10**15) == ([("e1", 10**15 + 1), ("e1", 10**15 + 2)], False)


def test_what_publishing_stores_is_forgotten_in_time(rooms: Rooms) -> None:
    rooms.publish(1, ids={1: "x"})
    lives = [rooms.ttl(name) for name in ("room:ops", "sent:w1", "history:e1:ops", "id:x")]
    assert [most - 10 < life <= most for life, most in zip(lives, (100, 50, 70, 50), strict=True)] == [True] * 4


def test_every_publish_keeps_the_room_and_its_history_anew(rooms: Rooms) -> None:
    rooms.publish(1)
    for name in ("room:ops", "history:e1:ops"):
        rooms.broker.ask("EXPIRE", rooms.key(name), 5)
    rooms.publish(2)
    assert (rooms.ttl("room:ops") > 90, rooms.ttl("history:e1:ops") > 60) == (True, True)


# publish: what is heard and kept


def test_every_byte_comes_through_behind_the_head_and_is_kept_so(rooms: Rooms, channel: Client) -> None:
    payload = bytes(range(256)) * 2
    rooms.publish(7, payload=payload)
    assert channel.read() == [b"message", rooms.name.encode(), b"e1 1 w1 7\n" + payload]
    assert rooms.read("e1")[2] == [b"e1 1 w1 7\n" + payload]


def test_a_batch_is_kept_under_the_offset_of_its_last_message(rooms: Rooms) -> None:
    rooms.publish(1, 3)
    rooms.publish(2, 2)
    entries = rooms.broker.ask("XRANGE", rooms.key("history:e1:ops"), "-", "+")
    assert [entry[0] for entry in entries] == [b"3-0", b"5-0"]


def test_history_is_trimmed_to_about_its_bound_and_never_below(rooms: Rooms) -> None:
    rooms.history = 50
    node = int(rooms.broker.ask("CONFIG", "GET", "stream-node-max-entries")[1])
    for sequence in range(1, 4 * node + 1):
        rooms.publish(sequence, 2)
    entries = rooms.broker.ask("XRANGE", rooms.key("history:e1:ops"), "-", "+")
    assert 25 <= len(entries) <= 25 + 2 * node
    assert entries[-1][0] == b"%d-0" % (8 * node)


def test_what_was_said_just_now_is_kept_however_many_messages_it_is(rooms: Rooms) -> None:
    rooms.history, rooms.recent = 10, (1000, 1_000_000)
    node = int(rooms.broker.ask("CONFIG", "GET", "stream-node-max-entries")[1])
    for sequence in range(1, 4 * node + 1):
        rooms.publish(sequence)
    assert rooms.broker.ask("XLEN", rooms.key("history:e1:ops")) == 4 * node


def test_what_was_said_just_now_is_kept_up_to_its_bytes_and_not_much_beyond(rooms: Rooms) -> None:
    rooms.history, rooms.recent = 1, (1000, 100_000)
    for sequence in range(1, 61):
        rooms.publish(sequence, payload=b"x" * 10_000)
        kept = rooms.broker.ask("XLEN", rooms.key("history:e1:ops"))
        assert min(sequence, 10) <= kept <= 22


def test_without_history_nothing_is_kept_and_the_order_is_the_same(rooms: Rooms, channel: Client) -> None:
    rooms.history = 0
    assert [rooms.publish(1, 2), rooms.publish(2), rooms.publish(2)] == [("e1", 1), ("e1", 3), ("e1", 3)]
    assert rooms.broker.ask("EXISTS", rooms.key("history:e1:ops")) == 0
    assert [channel.read()[2] for _ in range(3)] == [b"e1 1 w1 1\n", b"e1 3 w1 2\n", b"e1 3 w1 2\n"]


def test_history_of_the_epoch_before_stays_for_those_who_still_want_it(rooms: Rooms) -> None:
    rooms.publish(1)
    rooms.run_id, rooms.epoch = "r2", "e2"
    rooms.publish(2)
    assert rooms.offsets("e1", 0) == ([("e1", 1)], True)
    assert 60 < rooms.ttl("history:e1:ops") <= 70


# publish: once more


def test_a_batch_that_comes_again_keeps_its_place(rooms: Rooms) -> None:
    rooms.publish(1)
    assert rooms.publish(2, 3) == rooms.publish(2, 3) == ("e1", 2)
    assert rooms.publish(3) == ("e1", 5)


def test_a_batch_that_comes_again_is_heard_again_and_kept_once(rooms: Rooms, channel: Client) -> None:
    for _ in range(2):
        rooms.publish(1, 2, payload=b"x")
    assert [channel.read()[2] for _ in range(2)] == [b"e1 1 w1 1\nx"] * 2
    assert rooms.read("e1") == (("e1", 2), False, [b"e1 1 w1 1\nx"])


def test_a_batch_that_comes_again_keeps_its_place_though_others_published_meanwhile(rooms: Rooms) -> None:
    rooms.publish(1)
    rooms.publish(1, 5, publisher="w2")
    assert rooms.publish(1) == ("e1", 1)
    assert rooms.read()[0] == ("e1", 6)


def test_another_publisher_with_the_same_sequence_is_another_batch(rooms: Rooms) -> None:
    assert rooms.publish(1, publisher="w1") != rooms.publish(1, publisher="w2")


def test_a_batch_that_comes_again_in_a_new_epoch_gets_a_new_place(rooms: Rooms) -> None:
    rooms.publish(1, 40)
    assert rooms.publish(2) == ("e1", 41)
    rooms.run_id, rooms.epoch = "r2", "e2"
    assert rooms.publish(2) == ("e2", 1)


# publish: ids that authors gave


def test_what_has_an_id_that_was_published_is_told_with_its_place_and_nothing_is_published(
    rooms: Rooms, channel: Client
) -> None:
    rooms.publish(1, 3, ids={2: "x"})
    assert rooms.publish(2, 2, ids={1: "y", 2: "x"}) == {2: "e1 2"}
    assert (channel.read()[2], rooms.read()[0]) == (b"e1 1 w1 1\n", ("e1", 3))
    rooms.publish(3)
    assert channel.read()[2] == b"e1 4 w1 3\n"


def test_what_was_refused_with_its_batch_may_be_published_without_the_duplicates(rooms: Rooms) -> None:
    rooms.publish(1, ids={1: "x"})
    assert rooms.publish(2, 2, ids={1: "y", 2: "x"}) == {2: "e1 1"}
    assert rooms.publish(2, 1, ids={1: "y"}) == ("e1", 2)
    assert rooms.publish(3, 1, ids={1: "y"}) == {1: "e1 2"}


def test_another_worker_knows_an_id_too(rooms: Rooms) -> None:
    rooms.publish(1, ids={1: "x"}, publisher="w1")
    assert rooms.publish(1, ids={1: "x"}, publisher="w2") == {1: "e1 1"}


def test_a_batch_with_ids_whose_answer_was_lost_is_no_duplicate_of_itself(rooms: Rooms) -> None:
    assert rooms.publish(1, 2, ids={1: "x", 2: "y"}) == rooms.publish(1, 2, ids={1: "x", 2: "y"}) == ("e1", 1)
    assert rooms.read()[0] == ("e1", 2)


def test_an_id_that_was_published_before_the_broker_started_anew_is_still_known(rooms: Rooms) -> None:
    rooms.publish(1, ids={1: "x"})
    rooms.run_id, rooms.epoch = "r2", "e2"
    assert rooms.publish(2, ids={1: "x"}) == {1: "e1 1"}


def test_an_id_is_not_kept_longer_by_being_said_again(rooms: Rooms) -> None:
    rooms.publish(1, ids={1: "x"})
    rooms.broker.ask("EXPIRE", rooms.key("id:x"), 5)
    rooms.publish(2, ids={1: "x"})
    assert rooms.ttl("id:x") <= 5


# publish: refused


class TestRefused:
    """A server of its own, that has no memory, or forbids something."""

    @pytest.fixture(autouse=True)
    def _server(self) -> Iterator[None]:
        self.server = Server()
        self.server.start("--maxmemory-policy", "noeviction")
        with Client(self.server.path) as client:
            self.rooms = Rooms(client)
            yield
        self.server.close()

    def state(self) -> list[tuple[bytes, bytes]]:
        """Give all that the server holds."""
        keys = sorted(self.server.ask("KEYS", "*"))
        return [(key, self.server.ask("DUMP", key)) for key in keys]

    @pytest.mark.parametrize("epoch", ["the first", "a later"])
    def test_without_memory_nothing_is_given_away(self, epoch: str) -> None:
        if epoch == "a later":
            self.rooms.publish(1)
        before = self.state()
        with Client(self.server.path) as channel:
            channel.ask("SUBSCRIBE", self.rooms.name)
            self.server.ask("CONFIG", "SET", "maxmemory", 1)
            with pytest.raises(Error, match="OOM"):
                self.rooms.publish(2, ids={1: "x"})
            assert self.state() == before
            self.server.ask("CONFIG", "SET", "maxmemory", 0)
            first = 2 if before else 1
            assert self.rooms.publish(2, ids={1: "x"}) == ("e1", first)
            assert channel.read()[2] == b"e1 %d w1 2\n" % first  # and nothing before that

    def test_where_publishing_is_forbidden_no_offset_is_given_away(self) -> None:
        rooms = self.rooms
        self.server.ask("ACL", "SETUSER", "ann", "on", ">secret", "~*", "+@all", "resetchannels")
        rooms.broker.ask("AUTH", "ann", "secret")
        with pytest.raises(Error, match="ACL failure"):
            rooms.publish(1)
        self.server.ask("ACL", "SETUSER", "ann", "allchannels")
        assert (rooms.publish(1), rooms.offsets("e1", 0)) == (("e1", 1), ([("e1", 1)], False))

    @pytest.mark.parametrize("command", ["get", "set", "hset", "hmget", "expire", "time", "xadd", "publish"])
    @pytest.mark.parametrize("others", [False, True], ids=["alone", "while others publish"])
    def test_where_a_command_is_forbidden_what_is_seen_is_what_is_kept(self, command: str, others: bool) -> None:
        rooms = self.rooms
        with Client(self.server.path) as allowed, Client(self.server.path) as channel:
            channel.ask("SUBSCRIBE", rooms.name)
            self.server.ask("ACL", "SETUSER", "ann", "on", ">secret", "~*", "&*", "+@all", f"-{command}")
            rooms.broker.ask("AUTH", "ann", "secret")
            with pytest.raises(Error, match=r"ACL failure|NOPERM"):
                rooms.publish(1, 2)
            if others:
                rooms.broker, forbidden = allowed, rooms.broker
                rooms.publish(1, publisher="w2")
                rooms.broker = forbidden
            self.server.ask("ACL", "SETUSER", "ann", f"+{command}")
            for sequence in (1, 2):
                rooms.publish(sequence, 2)
            _, _, kept = rooms.read("e1", 0)
            heard = [channel.read()[2] for _ in kept]
            assert sorted(heard) == sorted(kept)
            assert len(kept) == 2 + others

    def test_where_its_history_can_not_be_written_nothing_is_published(self) -> None:
        rooms = self.rooms
        history = rooms.key("history:e1:ops")
        with Client(self.server.path) as channel:
            channel.ask("SUBSCRIBE", rooms.name)
            rooms.broker.ask("SET", history, "no stream")
            with pytest.raises(Error, match="WRONGTYPE"):
                rooms.publish(1)
            rooms.broker.ask("DEL", history)
            assert [rooms.publish(sequence) for sequence in (1, 2)] == [("e1", 1), ("e1", 2)]
            assert [channel.read()[2].split(b"\n")[0] for _ in range(2)] == [b"e1 1 w1 1", b"e1 2 w1 2"]


# read


def test_reading_without_a_position_says_where_the_order_stands_and_nothing_else(rooms: Rooms) -> None:
    rooms.publish(1, 7)
    assert rooms.read() == (("e1", 7), False, [])


def test_a_reader_makes_the_epoch_where_there_is_none(rooms: Rooms) -> None:
    assert rooms.read() == (("e1", 0), False, [])
    rooms.epoch = "e2"
    assert rooms.read() == (("e1", 0), False, [])
    assert 90 < rooms.ttl("room:ops") <= 100


def test_a_reader_makes_a_new_epoch_in_another_run(rooms: Rooms) -> None:
    rooms.publish(1, 7)
    rooms.run_id, rooms.epoch = "r2", "e2"
    assert rooms.read() == (("e2", 0), False, [])
    assert rooms.publish(2) == ("e2", 1)


def test_what_was_marked_in_another_run_is_forgotten_with_its_epoch(rooms: Rooms) -> None:
    for sequence in (1, 2, 3):
        rooms.publish(sequence, 1000)
    rooms.run_id, rooms.epoch = "r2", "e2"
    rooms.read()
    rooms.publish(4)
    marks = rooms.broker.ask("HMGET", rooms.name, "mark", "before")
    assert marks == [b"0", b"0"]


def test_reading_keeps_a_room_from_being_forgotten(rooms: Rooms) -> None:
    rooms.publish(1)
    rooms.broker.ask("EXPIRE", rooms.name, 5)
    rooms.read("e1", 0)
    assert rooms.ttl("room:ops") > 90


def test_what_follows_a_position_is_read(rooms: Rooms) -> None:
    for sequence in (1, 2, 3):
        rooms.publish(sequence, 2)
    assert rooms.offsets("e1", 0) == ([("e1", 1), ("e1", 3), ("e1", 5)], False)
    assert rooms.offsets("e1", 2) == ([("e1", 3), ("e1", 5)], False)
    assert rooms.offsets("e1", 6) == ([], False)


def test_what_was_read_comes_with_the_position_of_the_last_of_it(rooms: Rooms) -> None:
    for sequence in (1, 2, 3):
        rooms.publish(sequence, 2, payload=b"x" * 90)
    ends = []
    for offset, most in ((0, 1), (0, 1_000_000), (6, 1_000_000)):
        rooms.read("e1", offset, most)
        ends.append(rooms.end)
    assert ends == ["e1 2", "e1 6", ""]


def test_a_batch_in_which_the_position_lies_is_read_whole(rooms: Rooms) -> None:
    rooms.publish(1, 3)
    rooms.publish(2, 3)
    assert rooms.offsets("e1", 4) == ([("e1", 4)], False)


def test_a_position_that_is_ahead_has_nothing_that_follows(rooms: Rooms) -> None:
    rooms.publish(1, 3)
    assert rooms.read("e1", 40) == (("e1", 3), False, [])


@pytest.mark.parametrize("count", [15, 16, 17, 32, 100])
def test_all_of_history_is_read_however_long_it_is(rooms: Rooms, count: int) -> None:
    for sequence in range(1, count + 1):
        rooms.publish(sequence)
    assert rooms.offsets("e1", 0) == ([("e1", offset) for offset in range(1, count + 1)], False)


def test_reading_stops_behind_the_batch_that_makes_the_bytes(rooms: Rooms) -> None:
    for sequence in range(1, 6):
        rooms.publish(sequence, payload=b"x" * 90)  # 100 with the head
    assert rooms.offsets("e1", 0, most=200) == ([("e1", 1), ("e1", 2)], True)
    assert rooms.offsets("e1", 0, most=201) == ([("e1", 1), ("e1", 2), ("e1", 3)], True)
    assert rooms.offsets("e1", 0, most=1) == ([("e1", 1)], True)


def test_reading_that_just_reaches_the_top_has_no_more(rooms: Rooms) -> None:
    for sequence in (1, 2):
        rooms.publish(sequence, payload=b"x" * 90)
    assert rooms.offsets("e1", 0, most=200) == ([("e1", 1), ("e1", 2)], False)


def test_reading_in_steps_gives_every_batch_once(rooms: Rooms) -> None:
    for sequence in range(1, 51):
        rooms.publish(sequence, payload=b"x" * (sequence * 37 % 400))
    read, more = [("e1", 0)], True
    while more:
        batches, more = rooms.offsets(*read[-1], most=700)
        assert batches
        read += batches
    assert read == [("e1", offset) for offset in range(51)]


def test_a_position_in_the_epoch_before_gets_the_rest_of_that_first_and_is_told_that_there_is_more(
    rooms: Rooms,
) -> None:
    for sequence in (1, 2):
        rooms.publish(sequence)
    rooms.run_id, rooms.epoch = "r2", "e2"
    rooms.publish(3)
    assert rooms.offsets("e1", 1) == ([("e1", 2)], True)
    assert rooms.offsets("e1", 2) == ([("e2", 1)], False)
    assert rooms.read("e1", 1)[0] == ("e2", 1)


def test_a_position_in_an_epoch_that_nobody_knows_gets_all_of_the_one_of_now(rooms: Rooms) -> None:
    for sequence in (1, 2):
        rooms.publish(sequence, payload=b"x" * 90)
    assert rooms.offsets("e0", 33) == ([("e1", 1), ("e1", 2)], False)
    assert rooms.offsets("e0", 33, most=1) == ([("e1", 1)], True)


def test_the_bytes_bound_the_rest_of_the_epoch_before_too(rooms: Rooms) -> None:
    for sequence in (1, 2):
        rooms.publish(sequence, payload=b"x" * 90)
    rooms.run_id, rooms.epoch = "r2", "e2"
    assert rooms.offsets("e1", 0, most=1) == ([("e1", 1)], True)


# tops


def test_tops_are_in_the_order_of_the_rooms_and_empty_for_those_of_another_run(rooms: Rooms) -> None:
    rooms.publish(1, 3)
    other, gone = rooms.key("room:dev"), rooms.key("room:gone")
    rooms.broker.ask("HSET", other, "epoch", "e9", "run", "r0", "top", 4)
    assert rooms.tops(gone, rooms.name, other) == [("", 0), ("e1", 3), ("", 0)]
    assert rooms.broker.ask("EXISTS", gone) == 0


def test_a_room_that_is_in_use_is_not_forgotten_however_silent(rooms: Rooms) -> None:
    rooms.publish(1)
    rooms.broker.ask("EXPIRE", rooms.name, 5)
    rooms.tops(rooms.name)
    assert rooms.ttl("room:ops") > 90


def test_a_room_that_is_no_hash_does_not_keep_others_from_being_known(rooms: Rooms) -> None:
    rooms.publish(1, 3)
    bad = rooms.key("room:bad")
    rooms.broker.ask("SET", bad, "no hash")
    assert rooms.tops(bad, rooms.name) == [("", 0), ("e1", 3)]


# claim and save

FIGHTS = (3, 100)
"""How often a place may be taken from a client that is still there, and after how many seconds once more."""


class Place:
    """One place, and what workers do with it."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self.key = rooms.key("place:k:ops")
        self._workers = rooms.key("worker:")

    def claim(self, session: str, worker: str = "w1", *, waited: bool = False) -> Any:
        """Give epoch, offset, author and whether to wait; nothing where another has it; or the seconds to wait."""
        whose = (worker, session, 80, self._workers, "k ops", int(waited))
        answer = self._rooms.run(CLAIM, [self.key], *whose, *FIGHTS)
        if isinstance(answer, int):
            return answer
        return answer and (answer[0].decode(), answer[1].decode(), answer[2].decode(), answer[3])

    def fought(self, *, seconds_ago: int = 0) -> None:
        self._rooms.run(FOUGHT, [self.key], *FIGHTS)
        if "fought" in self.kept:
            self._rooms.broker.ask("HINCRBY", self.key, "fought", -seconds_ago)

    def save(
        self, session: str, offset: int, *, epoch: str = "e1", author: str = "s1", worker: str = "w1", outcome: str = ""
    ) -> bool:
        """Give whether another has it."""
        flat = (session, worker, epoch, offset, author, outcome)
        return bool(self._rooms.run(SAVE, [self.key], 80, self._workers, *flat) == [1])

    @property
    def kept(self) -> dict[str, str]:
        flat = [each.decode() for each in self._rooms.broker.ask("HGETALL", self.key)]
        kept = dict(zip(flat[::2], flat[1::2], strict=True))
        kept.pop("last", None)
        if not kept.get("giving"):
            kept.pop("giving", None)
        return kept


@pytest.fixture
def place(rooms: Rooms) -> Place:
    return Place(rooms)


def test_the_first_claim_begins_a_place_and_names_its_author(rooms: Rooms, place: Place) -> None:
    assert place.claim("s1") == ("", "0", "s1", 0)
    assert place.kept == {"author": "s1", "session": "s1", "worker": "w1"}
    assert 70 < rooms.ttl("place:k:ops") <= 80


def test_a_place_that_was_left_is_claimed_as_it_was_and_nobody_asked(place: Place, channel: Client) -> None:
    place.claim("s1")
    place.save("s1", 7, outcome="left")
    assert place.claim("s2", "w2") == ("e1", "7", "s1", 0)
    assert place.kept == {"epoch": "e1", "offset": "7", "author": "s1", "session": "s2", "worker": "w2"}


def test_a_claim_of_what_another_has_asks_its_worker_to_give_it_up(rooms: Rooms, place: Place, channel: Client) -> None:
    place.claim("s1", "w1")
    assert place.claim("s2", "w2") == ("", "0", "s1", 1)
    assert channel.read() == [b"message", rooms.key("worker:w1").encode(), b"take s1 k ops"]


def test_a_claim_of_what_a_dead_worker_had_says_that_nobody_was_asked(place: Place) -> None:
    place.claim("s1", "gone")
    assert place.claim("s2", "w2") == ("", "0", "s1", 0)


def test_a_claim_of_what_one_has_oneself_asks_nobody(place: Place, channel: Client) -> None:
    place.claim("s1")
    assert place.claim("s1") == ("", "0", "s1", 0)


def test_a_claim_keeps_the_place_anew(rooms: Rooms, place: Place) -> None:
    place.claim("s1")
    rooms.broker.ask("EXPIRE", place.key, 5)
    place.claim("s2")
    assert rooms.ttl("place:k:ops") > 70


def test_a_place_that_was_fought_for_too_often_stays_where_it_is(place: Place, channel: Client) -> None:
    for turn in range(3):
        assert place.claim(f"s{turn}") in (("", "0", "s0", 0), ("", "0", "s0", 1))
        place.fought()
    before = place.kept
    assert place.claim("s3", "w2") == 100
    assert place.kept == before
    assert place.claim("s2") == ("", "0", "s0", 1)  # who has it, anew
    place.save("s2", 7, outcome="left")
    assert place.claim("s3", "w2") == ("e1", "7", "s1", 0)


def test_after_a_while_it_may_be_taken_once_more(place: Place) -> None:
    place.claim("s0")
    for _ in range(5):
        place.fought()
    place.fought(seconds_ago=60)
    assert place.claim("s1") in (40, 41)
    place.fought(seconds_ago=100)
    assert isinstance(place.claim("s2"), tuple)
    place.fought()
    assert place.claim("s3") in (99, 100)


def test_what_is_counted_for_a_place_that_nobody_has_begun_makes_none(rooms: Rooms, place: Place) -> None:
    place.fought()
    assert place.kept == {}


def test_a_save_says_how_far_who_has_it_has_come(rooms: Rooms, place: Place) -> None:
    place.claim("s1")
    rooms.broker.ask("EXPIRE", place.key, 5)
    place.save("s1", 5)
    assert place.kept == {"epoch": "e1", "offset": "5", "author": "s1", "session": "s1", "worker": "w1"}
    assert rooms.ttl("place:k:ops") > 70


def test_a_save_of_who_has_it_no_more_changes_nothing_and_says_so_to_who_thinks_it_has(place: Place) -> None:
    place.claim("s1", "w1")
    place.save("s1", 5)
    place.claim("s2", "w2")
    before = place.kept
    assert [place.save("s1", 9, outcome=outcome) for outcome in ("", "left")] == [True, False]
    assert place.kept == before


def test_a_save_of_who_has_it_says_nothing(place: Place) -> None:
    place.claim("s1")
    assert [place.save("s1", 9, outcome=outcome) for outcome in ("", "left")] == [False, False]


def test_a_save_of_a_place_that_the_broker_lost_makes_it_anew(place: Place) -> None:
    place.save("s1", 5)
    assert place.kept == {"epoch": "e1", "offset": "5", "author": "s1", "session": "s1", "worker": "w1"}


def test_a_save_without_a_position_leaves_it_as_it_is(place: Place) -> None:
    place.save("s1", 5)
    place.save("s1", 0, epoch="", author="", outcome="left")
    assert place.kept == {"epoch": "e1", "offset": "5", "author": "s1", "session": "", "worker": "w1"}


def test_what_is_given_up_is_saved_for_who_took_it_over_and_its_worker_hears(
    rooms: Rooms, place: Place, channel: Client
) -> None:
    place.claim("s1", "w1")
    place.claim("s2", "w2")
    channel.read()
    place.save("s1", 8, worker="w1", outcome="given")
    assert channel.read() == [b"message", rooms.key("worker:w2").encode(), b"given s2"]
    assert place.kept == {"epoch": "e1", "offset": "8", "author": "s1", "session": "s2", "worker": "w2"}
    assert place.claim("s2", "w2", waited=True) == ("e1", "8", "s1", 0)


def test_who_comes_while_another_waits_waits_for_the_same_and_the_other_is_told_to_go(
    rooms: Rooms, place: Place, channel: Client
) -> None:
    place.claim("s1", "w1")
    place.claim("s2", "w2")
    assert channel.read()[2] == b"take s1 k ops"
    assert place.claim("s3", "w1") == ("", "0", "s1", 1)
    assert channel.read() == [b"message", rooms.key("worker:w2").encode(), b"take s2 k ops"]
    place.save("s2", 0, epoch="", worker="w2", outcome="given")
    assert place.kept["giving"] == "s1"
    place.save("s1", 8, outcome="given")
    assert channel.read() == [b"message", rooms.key("worker:w1").encode(), b"given s3"]
    assert place.claim("s3", "w1", waited=True) == ("e1", "8", "s1", 0)


def test_who_has_waited_gets_nothing_where_yet_another_has_come(place: Place, channel: Client) -> None:
    place.claim("s1", "w1")
    place.claim("s2", "w2")
    place.claim("s3", "w2")
    before = place.kept
    assert place.claim("s2", "w2", waited=True) is None
    assert place.kept == before


def test_a_claim_that_is_made_again_waits_as_it_did(place: Place, channel: Client) -> None:
    place.claim("s1", "w1")
    assert [place.claim("s2", "w2") for _ in range(2)] == [("", "0", "s1", 1)] * 2
    place.save("s1", 8, outcome="given")
    assert place.claim("s2", "w2") == ("e1", "8", "s1", 0)


def test_a_place_that_the_broker_lost_while_one_waited_is_begun(place: Place, channel: Client) -> None:
    assert place.claim("s2", "w2", waited=True) == ("", "0", "s2", 0)
    assert place.kept["session"] == "s2"


def test_what_is_given_up_after_the_wait_was_over_does_not_set_back_who_went_on(place: Place, channel: Client) -> None:
    place.claim("s1", "w1")
    place.save("s1", 5)
    place.claim("s2", "w2")
    place.claim("s2", "w2", waited=True)
    place.save("s2", 12, worker="w2")
    place.save("s1", 8, outcome="given")
    assert place.kept["offset"] == "12"


def test_one_that_never_began_is_not_waited_for_where_nobody_waits_before_it(place: Place, channel: Client) -> None:
    place.claim("s1", "w1")
    place.claim("s2", "gone")
    place.claim("s2", "gone", waited=True)
    assert place.claim("s3", "w2") == ("", "0", "s1", 0)


def test_a_place_that_was_left_is_not_set_back_by_who_left_it_before(place: Place) -> None:
    place.save("s1", 5)
    place.claim("s2", "w2")
    place.save("s2", 60, worker="w2", outcome="left")
    for outcome in ("", "left"):
        place.save("s1", 7, outcome=outcome)
    assert place.kept["offset"] == "60"
    place.save("s2", 61, worker="w2")
    assert place.kept["offset"] == "61"


def test_many_places_are_saved_at_once_each_with_its_own(rooms: Rooms) -> None:
    names = [rooms.key(f"place:k{number}:ops") for number in range(500)]
    flat = [each for number in range(500) for each in (f"s{number}", "w1", "e1", number, f"a{number}", "")]
    rooms.run(SAVE, names, 80, rooms.key("worker:"), *flat)
    for number in (0, 1, 499):
        kept = rooms.broker.ask("HMGET", names[number], "session", "offset", "author")
        assert kept == [f"s{number}".encode(), b"%d" % number, f"a{number}".encode()]
