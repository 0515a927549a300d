"""The main job: what one types, everybody else in the room reads, on whichever worker, and it stands in the log."""

import re
from pathlib import Path

import pytest

from tests.system.daemon import Daemon, Terminal, Websocat
from tests.waiting import until

LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (?P<room>\S+) -@127\.0\.0\.1 (?P<id>[0-9a-f]+\.\d+\.\d+) (?P<text>.*)"
)


def test_twenty_websocats_hear_each_other_once_in_one_order(daemon: Daemon, terminals: list[Terminal]) -> None:
    with daemon.connect("twenty?echo=1") as watcher:
        for number in range(20):
            terminals.append(Websocat(daemon.url("twenty")))
            terminals[-1].type(f"hello {number}")
        hellos = {watcher.recv(20) for _ in range(20)}  # whoever was heard is in the room
        assert hellos == {f"hello {number}" for number in range(20)}
        heard_before = [len(terminal.lines()) for terminal in terminals]
        for turn in range(5):
            for number, terminal in enumerate(terminals):
                terminal.type(f"line {turn} of {number}")
        order = [watcher.recv(20) for _ in range(100)]
    for number, terminal in enumerate(terminals):
        expected = [line for line in order if not str(line).endswith(f" of {number}")]
        until(
            lambda: sum(line.startswith("line ") for line in terminal.lines()) >= 95,  # noqa: B023 - called at once
            f"95 lines in terminal {number}, which had {heard_before[number]}",
        )
        assert [line for line in terminal.lines() if line.startswith("line ")] == expected
    logged = [text for text in daemon.texts() if text.startswith("line ")]
    assert sorted(logged) == sorted(map(str, order))


def test_clients_are_spread_over_both_workers_and_hear_each_other(daemon: Daemon) -> None:
    first, second = daemon.worker_pids()
    with daemon.connect_to(first, "spread") as one, daemon.connect_to(second, "spread") as other:
        one.send("from one")
        assert other.recv(20) == "from one"
        other.send("from the other")
        assert one.recv(20) == "from the other"


def test_rooms_do_not_mix(daemon: Daemon) -> None:
    with (
        daemon.connect("ops") as ops,
        daemon.connect("ops") as ops2,
        daemon.connect("dev") as dev,
        daemon.connect() as lobby,
    ):
        dev.send("for dev")
        lobby.send("for the lobby")
        ops.send("for ops")
        assert ops2.recv(20) == "for ops"
        ops2.send("back")
        assert ops.recv(20) == "back"


def test_the_bare_root_is_the_lobby(daemon: Daemon) -> None:
    with daemon.connect("") as root, daemon.connect("lobby") as named:
        root.send("hello")
        assert named.recv(20) == "hello"


@pytest.mark.parametrize(
    "text",
    [
        "007",
        "1_000",
        "1.50",
        "-0",
        "héllo wörld",
        "👩‍👩‍👧 🦜",
        "tab\tand \x1b[31mESC",
        "two\nlines",
        " spaces ",
        "x" * 16384,
        "\\n",
        "{f()}",
        "%s",
    ],
)
def test_a_text_comes_out_as_it_went_in(daemon: Daemon, text: str) -> None:
    with daemon.connect("texts") as one, daemon.connect("texts") as other:
        one.send(text)
        assert other.recv(20) == text


def test_every_line_of_the_log_reads_as_time_room_who_id_text(daemon: Daemon) -> None:
    with daemon.connect("grammar") as one, daemon.connect("grammar") as other:
        one.send("a\nb \x1b[2J \u2028 \\ end")
        other.recv(20)
    matches = [LINE.fullmatch(line) for line in daemon.chat_lines()]
    assert all(matches)
    ids = [match["id"] for match in matches if match]
    assert len(ids) == len(set(ids))
    [text] = [match["text"] for match in matches if match and match["room"] == "grammar"]
    assert text == r"a\nb \x1b[2J \u2028 \\ end"


def test_echo_gives_the_sender_its_own_lines(daemon: Daemon) -> None:
    with daemon.connect("echo?echo=1") as one:
        one.send("me")
        assert one.recv(20) == "me"


def test_a_pipe_of_ten_thousand_lines_arrives_whole_and_in_order(daemon: Daemon, terminals: list[Terminal]) -> None:
    count = 10_000
    first, second = daemon.worker_pids()
    with daemon.connect_to(first, "pipe") as near, daemon.connect_to(second, "pipe") as far:
        pipe = Websocat(daemon.url("pipe"))
        terminals.append(pipe)
        for number in range(count):
            pipe.type(f"{number}")
        expected = [str(number) for number in range(count)]
        assert [near.recv(20) for _ in range(count)] == expected
        assert [far.recv(20) for _ in range(count)] == expected
    rows = [line.split(" ", 4) for line in daemon.chat_lines()]
    assert [row[4] for row in rows if row[1] == "pipe"] == expected


def test_the_server_log_never_holds_chat_text(daemon: Daemon) -> None:
    with daemon.connect("secret") as one, daemon.connect("secret") as other:
        one.send("xyzzy-plugh")
        assert other.recv(20) == "xyzzy-plugh"
    assert "xyzzy-plugh" not in daemon.log()


def test_the_log_folder_is_where_it_was_started(daemon: Daemon) -> None:
    assert Path(daemon.folder, "logs", "chat.log").is_file()
    daemon.wait_for(re.escape(f"chat_log_named: chat log: {daemon.folder}/logs/chat.log"))
