import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.config.values import BadValue
from chatd.supervisor import sockets
from chatd.supervisor.sockets import BoundEndpoint, ListeningSockets, bind, check_identity, inheritance
from tests.authority import Authority, self_signed
from tests.rows import rows
from tests.waiting import PATIENCE

LOOPBACK = "tcp:0:interface=127.0.0.1"
LOOPBACK6 = r"tcp:0:interface=\:\:1"


@pytest.fixture
def bound() -> Iterator[Callable[..., BoundEndpoint]]:
    """Bind endpoint strings that are closed again when the test ends."""
    opened: list[BoundEndpoint] = []

    def bind_one(endpoint: str, copies: int = 2, backlog: int = 16) -> BoundEndpoint:
        opened.extend(bind(endpoint, copies, backlog))
        return opened[-1]

    yield bind_one
    for each in opened:
        for one in each.sockets:
            one.close()


def refusal(endpoint: str) -> str:
    with pytest.raises(BadValue) as caught:
        bind(endpoint, 2, 16)
    return str(caught.value)


def port_of(one: socket.socket) -> int:
    port: int = one.getsockname()[1]
    return port


def occupied(*, family: int = socket.AF_INET, host: str = "127.0.0.1", shared: bool = False) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    if shared:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    one.bind((host, 0))
    one.listen()
    return one


# TCP


def test_each_worker_has_a_socket_of_its_own_on_the_one_port(bound: Callable[..., BoundEndpoint]) -> None:
    made = bound(LOOPBACK, copies=3)
    assert len({one.fileno() for one in made.sockets}) == 3
    assert len({one.getsockname() for one in made.sockets}) == 1
    assert port_of(made.sockets[0]) > 0
    assert all(one.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) for one in made.sockets)
    assert [made.sockets_for(worker, 3) for worker in range(3)] == [[one] for one in made.sockets]


def test_clients_may_connect_before_a_worker_runs(bound: Callable[..., BoundEndpoint]) -> None:
    made = bound(LOOPBACK, copies=1)
    with socket.create_connection(made.sockets[0].getsockname(), timeout=PATIENCE):
        client, _ = made.sockets[0].accept()
        client.close()


def test_the_queue_is_as_long_as_the_backlog(bound: Callable[..., BoundEndpoint]) -> None:
    made = bound(f"{LOOPBACK}:backlog=1", copies=1, backlog=20)
    clients = [socket.create_connection(made.sockets[0].getsockname(), timeout=PATIENCE) for _ in range(20)]
    made.sockets[0].setblocking(False)
    for client in clients:
        made.sockets[0].accept()[0].close()
        client.close()


def test_an_occupied_port_is_refused_in_one_line_even_if_its_owner_shares_it() -> None:
    for family, host, shared in (
        (socket.AF_INET, "127.0.0.1", False),
        (socket.AF_INET, "127.0.0.1", True),
        (socket.AF_INET6, "::1", True),
    ):
        with occupied(family=family, host=host, shared=shared) as other:
            interface = host.replace(":", r"\:")
            endpoint = f"tcp:{port_of(other)}:interface={interface}"
            assert refusal(endpoint) == f"cannot listen on {endpoint}: Address already in use"


def test_a_second_chatd_on_the_port_is_refused(bound: Callable[..., BoundEndpoint]) -> None:
    endpoint = f"tcp:{port_of(bound(LOOPBACK).sockets[0])}:interface=127.0.0.1"
    assert refusal(endpoint).endswith("Address already in use")


def test_a_port_is_taken_again_while_old_connections_linger(bound: Callable[..., BoundEndpoint]) -> None:
    [made] = bind(LOOPBACK, 1, 16)
    address = made.sockets[0].getsockname()
    with socket.create_connection(address, timeout=PATIENCE):
        client, _ = made.sockets[0].accept()
        client.close()  # the side that closes first keeps the port in TIME_WAIT
    made.sockets[0].close()
    assert bound(f"tcp:{address[1]}:interface=127.0.0.1").sockets[0].getsockname() == address


def test_ipv6_is_bound_alone_so_that_ipv4_may_have_the_same_port(bound: Callable[..., BoundEndpoint]) -> None:
    six = bound(LOOPBACK6)
    assert six.family == socket.AF_INET6
    assert six.hint() == f"connect with: websocat ws://[::1]:{port_of(six.sockets[0])}"
    assert len({port_of(one) for one in six.sockets}) == 1
    every6 = bound(r"tcp:0:interface=\:\:")
    assert bound(f"tcp:{port_of(every6.sockets[0])}").family == socket.AF_INET


@rows(
    ("endpoint", "host"),
    [(LOOPBACK, "127.0.0.1"), ("tcp:0", "localhost"), (r"tcp:0:interface=\:\:", "[::1]")],
)
def test_the_hint_has_a_url_that_works_on_this_host(
    bound: Callable[..., BoundEndpoint], endpoint: str, host: str
) -> None:
    made = bound(endpoint)
    assert made.hint() == f"connect with: websocat ws://{host}:{port_of(made.sockets[0])}"


def test_sockets_are_not_inherited_by_accident(bound: Callable[..., BoundEndpoint]) -> None:
    assert not any(one.get_inheritable() for one in bound(LOOPBACK).sockets)


# TLS and wrappers


def test_ssl_is_bound_like_tcp_and_shown_as_wss(bound: Callable[..., BoundEndpoint], tmp_path: Path) -> None:
    pem = self_signed(tmp_path / "both.pem")
    made = bound(f"ssl:0:privateKey={pem}:certKey={pem}:interface=127.0.0.1")
    assert made.hint() == f"connect with: websocat wss://127.0.0.1:{port_of(made.sockets[1])}"
    assert len(made.sockets) == 2


@pytest.mark.filterwarnings("ignore:X509:DeprecationWarning")  # Twisted reads certificates the old way
def test_tls_is_shown_as_wss_too(bound: Callable[..., BoundEndpoint], tmp_path: Path) -> None:
    self_signed(tmp_path / "localhost.pem")
    made = bound(rf"tls:{tmp_path}:port=0:interface=\:\:1")
    assert made.hint() == f"connect with: websocat wss://[::1]:{port_of(made.sockets[0])}"


def test_files_that_tls_cannot_use_are_refused_and_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificates, key = authority.issue("server", "localhost")
    _, other = authority.issue("other", "localhost")
    _, locked = authority.issue("locked", "localhost", password=b"secret")
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("no certificate")
    missing = tmp_path / "missing.pem"
    good = f"{key}:{certificates}"
    for files, why in (
        (f"privateKey={missing}", f"'{missing}': No such file or directory"),
        (f"privateKey={nothing}", f"'{nothing}': no certificate in PEM form"),
        (f"privateKey={key}", f"'{key}': no certificate in PEM form"),
        (f"{certificates}", f"'{certificates}': not a private key in PEM format"),
        (f"privateKey={other}:certKey={certificates}", f"'{other}': the key does not belong to the certificate"),
        (f"privateKey={locked}:certKey={certificates}", f"'{locked}': the key must not be encrypted"),
        (f"{good}:extraCertChain={key}", f"'{key}': no certificate in PEM form"),
        (f"{good}:extraCertChain={missing}", f"'{missing}': No such file or directory"),
        (f"{tmp_path}:{certificates}", f"'{tmp_path}': Is a directory"),
        (f"{key}:{tmp_path}", f"'{tmp_path}': Is a directory"),
    ):
        for endpoint in (f"ssl:0:{files}", f"haproxy:ssl:0:{files}"):
            with pytest.raises(BadValue) as caught:
                check_identity(endpoint)
            assert str(caught.value) == f"cannot listen on {endpoint}: {why}"


def test_a_wrapped_endpoint_is_bound_like_what_it_wraps(bound: Callable[..., BoundEndpoint]) -> None:
    endpoint = f"haproxy:{LOOPBACK}"
    made = bound(endpoint)
    assert (made.endpoint, made.family, len(made.sockets)) == (endpoint, socket.AF_INET, 2)


# Unix sockets


def test_a_unix_socket_is_shared_by_all_workers(bound: Callable[..., BoundEndpoint], tmp_path: Path) -> None:
    path = tmp_path / "chat.sock"
    made = bound(f"unix:{path}", copies=3)
    assert [made.sockets_for(worker, 3) for worker in range(3)] == [made.sockets] * 3
    assert (made.family, made.hint()) == (
        socket.AF_UNIX,
        f"connect with: websocat --ws-c-uri=ws://localhost/ - ws-c:unix:{path}",
    )
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


@pytest.mark.parametrize(
    ("endpoint", "mode"),
    [
        ("unix:{}", 0o660),
        ("haproxy:unix:{}", 0o660),
        ("unix:{}:backlog=5", 0o660),
        ("unix:address={}", 0o660),
        ("unix:{}:mode=666", 0o666),
        ("unix:mode=666:address={}", 0o666),
        ("haproxy:unix:{}:mode=600", 0o600),
        ("unix:{}:620", 0o620),
        ("unix:{}:mode=620", 0o620),
    ],
)
def test_a_unix_socket_is_for_its_owner_and_group_unless_a_mode_is_given(
    bound: Callable[..., BoundEndpoint], tmp_path: Path, endpoint: str, mode: int
) -> None:
    bound(endpoint.format(tmp_path / "chat.sock"))
    assert (tmp_path / "chat.sock").stat().st_mode & 0o777 == mode


def test_a_live_unix_socket_whose_queue_is_full_is_not_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "chat.sock")
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other:
        one.bind(path)
        one.listen(0)
        other.connect(path)
        assert refusal(f"unix:{path}") == f"cannot listen on unix:{path}: Address already in use"


def test_a_stale_unix_socket_is_taken_over(bound: Callable[..., BoundEndpoint], tmp_path: Path) -> None:
    path = tmp_path / "chat.sock"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
        old.listen()
    bound(f"unix:{path}")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_live_unix_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "chat.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        assert refusal(f"unix:{path}") == f"cannot listen on unix:{path}: Address already in use"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_a_file_in_the_way_of_a_unix_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "chat.sock"
    path.write_text("precious")
    assert refusal(f"unix:{path}").endswith("Address already in use")
    assert path.read_text() == "precious"


def test_a_unix_socket_is_removed_at_close_wherever_we_are_by_then(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    these = ListeningSockets(["unix:chat.sock"], 2, 16)
    these.bind()
    monkeypatch.chdir("/")
    these.close()
    assert list(tmp_path.iterdir()) == []


def test_close_ignores_a_unix_socket_that_was_removed_or_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    these = ListeningSockets([f"unix:{tmp_path}/chat.sock"], 2, 16)
    these.bind()
    (tmp_path / "chat.sock").unlink()
    these.close()
    these.bind()

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "unlink", refuse)
    these.close()
    assert these.bound == []


# Sockets that systemd passed


SYSTEMD = """
import os, socket, sys
count, program, *endpoints = sys.argv[1:]
made = [socket.create_server(("127.0.0.1", 0)), socket.create_server(("::", 0), family=socket.AF_INET6,
    dualstack_ipv6=True), socket.socketpair()[0]][:int(count)]
high = [os.dup(os.dup(os.dup(os.dup(each.fileno())))) for each in made]
for number, each in enumerate(high, 3):
    os.dup2(each, number)
os.environ.update(LISTEN_FDS=count, LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-c", program, *endpoints])
"""
"""Pass up to three sockets to a program as systemd does: IPv4, IPv6 for both families, one that does not listen."""

BINDS = """
import json, os, socket, sys
from chatd.supervisor.sockets import ListeningSockets, inheritance

def same(one, place):
    return os.path.sameopenfile(one, int(place[1]))

ports = ListeningSockets(sys.argv[1:], 2, 16)
seen = []
for _ in range(2):
    ports.bind()
    for each in ports.bound:
        _, numbers = inheritance([each], 1, 2, 7)
        assert set(numbers) == {7} and all(same(one, each.place) for one in numbers.values()), numbers
        seen.append([each.endpoint, int(each.family), len(each.sockets), each.hint()])
    unused = ports.unused()
    ports.close()
assert socket.socket(fileno=3).getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
print(json.dumps([seen, unused]))
"""
"""Bind and close twice, as twistd does; say what."""


def activated(program: str, *endpoints: str, count: int = 1, names: str | None = "chat") -> str:
    """Run a program to which systemd passed sockets; give what it says."""
    command = [sys.executable, "-c", SYSTEMD, str(count), program, *endpoints]
    env = {**os.environ, **({"LISTEN_FDNAMES": names} if names is not None else {})}
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=PATIENCE, text=True, env=env).stdout


def passed(*endpoints: str, count: int = 1, names: str | None = "chat") -> list[list[object]]:
    """Bind endpoint strings in a process to which systemd passed sockets."""
    seen: list[list[object]] = json.loads(activated(BINDS, *endpoints, count=count, names=names))[0]
    return seen


def test_a_socket_that_systemd_passed_is_used_and_stays_usable() -> None:
    first, second = passed("systemd:domain=INET:index=0")
    assert first == second
    assert first[1:3] == [int(socket.AF_INET), 1]
    assert str(first[3]).startswith("connect with: websocat ws://127.0.0.1:")


def test_the_family_of_a_passed_socket_is_its_own_whatever_the_endpoint_says() -> None:
    domains = ("domain=INET:", "domain=INET6:", "")
    endpoints = [f"systemd:{domain}name={name}" for domain in domains for name in ("four", "six")]
    seen = passed(*endpoints, count=2, names="four:six")
    assert [each[1] for each in seen] == [int(socket.AF_INET), int(socket.AF_INET6)] * 6


def test_sockets_that_systemd_passed_under_one_name_are_all_used() -> None:
    seen = passed("haproxy:systemd:name=chat", count=2, names="chat:chat")
    assert [each[:2] for each in seen] == [["haproxy:tcp:0", family] for family in (2, 10)] * 2


def test_sockets_that_systemd_passed_without_names_are_used_too() -> None:
    for names in (None, "", ":"):
        assert (
            len(passed("systemd:index=1", "systemd:domain=INET:index=0", "systemd:name=unknown", count=2, names=names))
            == 8
        )


def test_a_passed_socket_may_be_listened_on_twice() -> None:
    assert len(passed("systemd:domain=INET:index=0", "haproxy:systemd:domain=INET:index=0")) == 4


def test_unused_passed_sockets_are_listed() -> None:
    said = activated(BINDS, "systemd:index=0", count=3, names="chat:web:web")
    assert json.loads(said)[1] == ["web (descriptor 4)", "web (descriptor 5)"]


REFUSES = """
import sys
from chatd.config.values import BadValue
from chatd.supervisor.sockets import ListeningSockets
for endpoint in sys.argv[1:]:
    try:
        ListeningSockets([endpoint], 2, 16).bind()
    except BadValue as error:
        print(error)
"""


def test_a_systemd_endpoint_that_means_no_socket_says_which_there_are() -> None:
    reasons = {
        "systemd:name=nope": 'systemd passed no socket named "nope"; it passed: chat, web, pair',
        "systemd:domain=INET:index=3": "systemd passed no socket with index 3; it passed: chat, web, pair",
        "systemd:name=pair": "descriptor 5, which systemd passed, takes no connections; its unit needs ListenStream=",
    }
    lines = activated(REFUSES, *reasons, count=3, names="chat:web:pair").splitlines()
    for (endpoint, reason), line in zip(reasons.items(), lines, strict=True):
        assert line.startswith(f"cannot listen on {endpoint}: {reason}")
    assert refusal("systemd:name=nope").endswith('systemd passed no socket named "nope"; it passed: none')


# What is no endpoint


@rows(
    "endpoint",
    [
        *("", "3000", "tcp", "tcp:", "tcp:http", "tcp:0:colour=red", "tcp:0:backlog=x", "foo:1", "stdio:"),
        *("haproxy:tcp", "systemd:domain=INET:index=x", "unix:/tmp/x:mode=99", "tcp:0\0"),
    ],
)
def test_an_invalid_endpoint_is_refused_in_one_line(endpoint: str) -> None:
    said = refusal(endpoint)
    assert said.startswith(f"{endpoint!r} is not a server endpoint: ")
    assert "\n" not in said


@rows(
    "endpoint",
    [
        *("ssl:0:privateKey=", "tcp:70000", "tcp:-1", "tcp:0:interface=192.0.2.1", "unix:"),
        *("unix:/no/such\nfolder/chat.sock", "unix:/tmp", f"unix:/{'x' * 200}", "unix:/tmp/a\0b"),
    ],
)
def test_an_endpoint_that_cannot_be_bound_is_refused_in_one_line(endpoint: str) -> None:
    said = refusal(endpoint)
    assert said.startswith("cannot listen on ")
    assert len(said.splitlines()) == 1


@given(st.text(st.characters(exclude_characters=":")))
def test_any_text_without_a_colon_is_refused_in_one_line(text: str) -> None:
    assert len(refusal(text).splitlines()) == 1


def test_an_endpoint_that_listens_on_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "serverFromString", lambda reactor, endpoint: Silent())
    assert refusal("silent:") == "'silent:' names no listening socket"


class Silent:
    """An endpoint from some plugin, that binds nothing."""

    def listen(self, factory: object) -> "Silent":
        return self

    def addErrback(self, errback: object) -> None:  # noqa: N802 - Twisted's
        pass


# All of them


def test_all_endpoints_are_bound_in_their_order(tmp_path: Path) -> None:
    endpoints = [LOOPBACK, f"unix:{tmp_path}/chat.sock", f"haproxy:{LOOPBACK}"]
    these = ListeningSockets(endpoints, 2, 16)
    these.bind()
    assert [each.endpoint for each in these.bound] == endpoints
    assert these.hints() == [each.hint() for each in these.bound]
    these.close()


def test_at_a_reload_metrics_do_not_get_the_port_of_a_listener_for_clients() -> None:
    before = ListeningSockets([LOOPBACK], 2, 16)
    before.bind()
    port = port_of(before.bound[0].sockets[0])
    for endpoint in (f"tcp:{port}", f"tcp:{port}:interface=127.0.0.1"):
        after = ListeningSockets([LOOPBACK], 2, 16, [endpoint])
        with pytest.raises(BadValue, match=f"--listen has port {port} already; use another one"):
            after.bind(before)
    before.close()


def test_an_endpoint_for_metrics_has_one_socket_that_a_reload_keeps() -> None:
    before = ListeningSockets([LOOPBACK], 2, 16, ["tcp:0"])
    before.bind()
    chat, metrics = before.bound
    assert (len(chat.sockets), len(metrics.sockets)) == (2, 1)
    listeners, _ = inheritance(before.bound, 1, 2, 3)
    assert [listener.metrics for listener in listeners] == [False, True]
    assert before.metrics_hints() == [f"metrics: http://0.0.0.0:{port_of(metrics.sockets[0])}/-/metrics"]
    assert before.hints() == [chat.hint()]
    assert before.exposed() == []
    after = ListeningSockets([LOOPBACK], 3, 16, ["tcp:0"])
    after.bind(before)
    assert after.bound[1].sockets == metrics.sockets
    before.close(after)
    after.close()


def test_equivalent_hints_are_logged_once() -> None:
    four = ListeningSockets(["tcp:0"], 2, 16)
    four.bind()
    port = port_of(four.bound[0].sockets[0])
    six = ListeningSockets([rf"tcp:{port}:interface=\:\:"], 2, 16)
    six.bind()
    both = ListeningSockets([], 2, 16)
    both._optional = ()
    both.bound = [*four.bound, *six.bound]
    assert six.hints() == [f"connect with: websocat ws://[::1]:{port}"]
    assert both.hints() == [f"connect with: websocat ws://localhost:{port}"]
    assert both.exposed() == [port]
    both.close()


def test_the_hint_of_a_server_with_host_names_has_one_of_them(tmp_path: Path) -> None:
    these = ListeningSockets([LOOPBACK, f"unix:{tmp_path}/chat.sock"], 2, 16)
    these.bind()
    port = port_of(these.bound[0].sockets[0])
    name = "chat.example.org"
    assert these.hints([name, "b.example"]) == [
        f"connect with: websocat ws://{name}:{port}",
        f"connect with: websocat --ws-c-uri=ws://{name}/ - ws-c:unix:{tmp_path}/chat.sock",
    ]
    assert these.hints([name, "localhost"])[0] == f"connect with: websocat ws://localhost:{port}"
    assert these.exposed() == []
    these.close()


def test_one_bad_endpoint_leaves_nothing_bound(tmp_path: Path) -> None:
    with occupied() as other:
        free = port_of(other)
    these = ListeningSockets([f"tcp:{free}:interface=127.0.0.1", f"unix:{tmp_path}/chat.sock", "nonsense"], 2, 16)
    with pytest.raises(BadValue, match=r"^'nonsense' is not a server endpoint"):
        these.bind()
    assert these.bound == []
    assert list(tmp_path.iterdir()) == []
    with socket.create_server(("127.0.0.1", free)):
        pass


def test_a_failed_bind_leaves_no_descriptor_open(tmp_path: Path) -> None:
    refusal(f"unix:{tmp_path}/none/chat.sock")
    before = os.listdir("/proc/self/fd")
    with occupied() as other:
        endpoints = (f"unix:{tmp_path}/none/chat.sock", f"tcp:{port_of(other)}:interface=127.0.0.1")
        said = [refused(endpoint) for endpoint in endpoints]  # what was raised is kept, and all that it refers to
    assert len(said) == 2
    assert os.listdir("/proc/self/fd") == before


def refused(endpoint: str) -> BadValue:
    with pytest.raises(BadValue) as caught:
        bind(endpoint, 2, 16)
    return caught.value


def test_ports_can_be_bound_again_once_they_are_closed() -> None:
    these = ListeningSockets([LOOPBACK], 2, 16)
    these.bind()
    address = these.bound[0].sockets[0].getsockname()
    these.close()
    assert these.bound == []
    again = ListeningSockets([f"tcp:{address[1]}:interface=127.0.0.1"], 2, 16)
    again.bind()
    again.close()


def test_without_endpoints_it_is_both_loopback_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "LOOPBACK_LISTEN", (LOOPBACK, LOOPBACK6))
    these = ListeningSockets((), 2, 16)
    these.bind()
    assert [each.family for each in these.bound] == [socket.AF_INET, socket.AF_INET6]
    assert these.hints() == [f"connect with: websocat ws://localhost:{port_of(these.bound[0].sockets[0])}"]
    these.close()


class Ipv4Only(socket.socket):
    """A socket of a machine without IPv6."""

    def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        super().__init__(family, type, proto, fileno)


def test_without_ipv6_the_default_is_ipv4_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "LOOPBACK_LISTEN", (LOOPBACK, LOOPBACK6))
    monkeypatch.setattr(socket, "socket", Ipv4Only)
    these = ListeningSockets((), 2, 16)
    these.bind()
    assert [each.family for each in these.bound] == [socket.AF_INET]
    these.close()


def test_without_ipv6_asking_for_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", Ipv4Only)
    with pytest.raises(BadValue, match="Address family not supported by protocol"):
        ListeningSockets([LOOPBACK, LOOPBACK6], 2, 16).bind()


def test_an_occupied_default_port_is_refused_on_ipv6_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with occupied(family=socket.AF_INET6, host="::1") as other:
        six = rf"tcp:{port_of(other)}:interface=\:\:1"
        monkeypatch.setattr(sockets, "LOOPBACK_LISTEN", (LOOPBACK, six))
        with pytest.raises(BadValue, match="Address already in use"):
            ListeningSockets((), 2, 16).bind()


# What a worker inherits


def test_a_worker_inherits_its_own_sockets_in_their_order(bound: Callable[..., BoundEndpoint], tmp_path: Path) -> None:
    one, shared, other = bound(LOOPBACK), bound(f"unix:{tmp_path}/chat.sock"), bound(LOOPBACK)
    listeners, descriptors = inheritance([one, shared, other], 0, 2, 3)
    assert descriptors == {
        3: one.sockets[0].fileno(),
        4: shared.sockets[0].fileno(),
        5: other.sockets[0].fileno(),
    }
    assert [(each.endpoint, each.descriptor) for each in listeners] == [
        (LOOPBACK, 3),
        (shared.endpoint, 4),
        (LOOPBACK, 5),
    ]
    assert list(inheritance([one, shared, other], 1, 2, 3)[1].values()) == [
        one.sockets[1].fileno(),
        shared.sockets[0].fileno(),
        other.sockets[1].fileno(),
    ]


# Reload


def bound_again(before: ListeningSockets, endpoints: list[str], copies: int) -> ListeningSockets:
    after = ListeningSockets(endpoints, copies, 16)
    after.bind(before)
    return after


def test_an_endpoint_that_stays_keeps_its_sockets(tmp_path: Path) -> None:
    endpoints = [LOOPBACK, f"haproxy:{LOOPBACK}", f"unix:{tmp_path}/chat.sock"]
    before = ListeningSockets(endpoints, 2, 16)
    before.bind()
    after = bound_again(before, endpoints, 2)
    assert [each.sockets for each in after.bound] == [each.sockets for each in before.bound]
    assert [each.endpoint for each in after.bound] == endpoints
    before.close(after)
    for each in after.bound:
        with socket.socket(each.family) as client:
            client.connect(each.sockets[0].getsockname())
    after.close()
    assert list(tmp_path.iterdir()) == []


def test_more_workers_get_sockets_of_their_own_beside_the_present_ones() -> None:
    before = ListeningSockets([LOOPBACK], 2, 16)
    before.bind()
    after = bound_again(before, [LOOPBACK], 3)
    first, second, third = after.bound[0].sockets
    assert [first, second] == before.bound[0].sockets
    assert third.getsockname() == first.getsockname()
    assert [after.bound[0].sockets_for(worker, 3) for worker in range(3)] == [[first], [second], [third]]
    after.close(before)  # it was not to be
    assert (first.fileno() > 0, third.fileno()) == (True, -1)
    before.close()


def listens(one: socket.socket) -> bool:
    return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def test_new_sockets_accept_no_connections_before_listen() -> None:
    before = ListeningSockets([LOOPBACK], 1, 16)
    before.bind()
    first = before.bound[0].sockets[0]
    after = bound_again(before, [LOOPBACK, LOOPBACK6], 4)
    assert [[listens(one) for one in each.sockets] for each in after.bound] == [[True, *[False] * 3], [False] * 4]
    first.settimeout(PATIENCE)
    for _ in range(16):  # of four sockets the kernel would hardly always choose the first
        with socket.create_connection(first.getsockname(), timeout=PATIENCE):
            first.accept()[0].close()
    after.listen()
    assert all(listens(one) for each in after.bound for one in each.sockets)
    after.close()


@rows(("old", "new"), [("127.0.0.1", ""), ("", "127.0.0.1")])
def test_a_port_of_ours_can_be_bound_on_another_address(old: str, new: str) -> None:
    with occupied() as free:
        port = port_of(free)
    before = ListeningSockets([f"tcp:{port}:interface={old}"], 2, 16)
    before.bind()
    after = bound_again(before, [f"tcp:{port}:interface={new}"], 2)
    after.listen()
    before.close(after)
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE):
        pass
    after.close()


def test_fewer_workers_share_the_sockets_that_are_left_over() -> None:
    before = ListeningSockets([LOOPBACK], 3, 16)
    before.bind()
    after = bound_again(before, [LOOPBACK], 2)
    first, second, third = after.bound[0].sockets
    assert [after.bound[0].sockets_for(worker, 2) for worker in range(2)] == [[first, third], [second, third]]
    listeners, descriptors = inheritance(after.bound, 1, 2, 3)
    assert [each.descriptor for each in listeners] == [3, 4]
    assert descriptors == {3: second.fileno(), 4: third.fileno()}
    after.close()


def test_a_removed_endpoint_is_closed_and_a_new_one_is_bound(tmp_path: Path) -> None:
    before = ListeningSockets([LOOPBACK, f"unix:{tmp_path}/old.sock"], 2, 16)
    before.bind()
    after = bound_again(before, [LOOPBACK, f"unix:{tmp_path}/new.sock"], 2)
    old = before.bound[1].sockets[0]
    before.close(after)
    assert old.fileno() == -1
    assert [each.name for each in tmp_path.iterdir()] == ["new.sock"]
    assert after.bound[0].sockets[0].fileno() > 0
    after.close()


def test_a_bind_that_fails_leaves_the_present_sockets_alone(tmp_path: Path) -> None:
    before = ListeningSockets([LOOPBACK], 2, 16)
    before.bind()
    with pytest.raises(BadValue):
        bound_again(before, [LOOPBACK, f"unix:{tmp_path}/new.sock", "nonsense"], 3)
    assert [one.fileno() > 0 for one in before.bound[0].sockets] == [True, True]
    assert list(tmp_path.iterdir()) == []
    before.close()


def test_another_certificate_for_the_same_port_keeps_its_sockets(tmp_path: Path) -> None:
    paths = [self_signed(tmp_path / name) for name in ("one.pem", "other.pem")]
    one, other = (f"ssl:0:interface=127.0.0.1:privateKey={path}:certKey={path}" for path in paths)
    before = ListeningSockets([one], 2, 16)
    before.bind()
    after = bound_again(before, [other], 2)
    assert after.bound[0].sockets == before.bound[0].sockets
    assert (after.bound[0].endpoint, after.bound[0].secure) == (other, True)
    plain = bound_again(before, [LOOPBACK], 2)
    assert (plain.bound[0].sockets, plain.bound[0].secure) == (before.bound[0].sockets, False)
    before.close()
