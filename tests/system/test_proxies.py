"""Behind the real nginx and HAProxy, on the files in ``deploy/``: TLS, WebSockets, streams, and who the client is."""

import json
import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.frames import frame, handshake
from tests.system.daemon import Daemon, Terminal, Websocat, free_port
from tests.waiting import until

DEPLOY = Path(__file__).parents[2] / "deploy"

OUTSIDE, FARTHER = "127.0.0.9", "127.0.0.10"
"""Where clients come from; the proxies reach chatd from 127.0.0.1, which is trusted."""
FORGED = "X-Forwarded-For: 203.0.113.99, 127.0.0.1"

WAYS = ["nginx", "haproxy", "haproxy, PROXY protocol"]


def example(name: str, folder: Path, *changes: tuple[str, str]) -> Path:
    """Copy a file of deploy/ with these words in it replaced, and nothing else."""
    text = (DEPLOY / name).read_text()
    for old, new in changes:
        assert old in text, f"{old!r} is not in {name} any more"
        text = text.replace(old, new)
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(text)
    return file


class Proxies:
    """nginx and HAProxy before one chatd, with two workers."""

    def __init__(self, folder: Path, certificate: Path, daemon: Daemon, sealed_port: int) -> None:
        """Take the certificate, and the port on which chatd expects the PROXY protocol."""
        self.daemon = daemon
        self.ports = {way: free_port() for way in WAYS}
        self.plain_ports = {way: free_port() for way in ("nginx", "haproxy")}
        pem = str(certificate)
        self.nginx_conf = example(
            "nginx.conf",
            folder / "nginx",
            ("user www-data;", ""),
            ("/run/nginx.pid", "nginx.pid"),
            ("    listen [::]:80;\n", ""),
            ("    listen [::]:443 ssl so_keepalive=1m:10s:3;\n", ""),
            ("listen 80;", f"listen 127.0.0.1:{self.plain_ports['nginx']};"),
            ("listen 443 ", f"listen 127.0.0.1:{self.ports['nginx']} "),
            ("/etc/nginx/chatd.crt", pem),
            ("/etc/nginx/chatd.key", pem),
            ("/var/log/nginx", str(folder)),
            ("server 127.0.0.1:3000;", f"server 127.0.0.1:{daemon.port};"),
            ("http {", "http { " + "".join(f"{each}_temp_path {each}; " for each in _TEMPORARY)),
        )
        self.haproxy_cfg = example(
            "haproxy.cfg",
            folder / "haproxy",
            ("    user haproxy\n    group haproxy\n", ""),
            ("bind :80\n", f"bind 127.0.0.1:{self.plain_ports['haproxy']}\n"),
            ("bind :443 ", f"bind 127.0.0.1:{self.ports['haproxy']} "),
            ("bind :8443 ", f"bind 127.0.0.1:{self.ports[WAYS[2]]} "),
            ("/etc/haproxy/chatd.pem", pem),
            ("server one 127.0.0.1:3000\n", f"server one 127.0.0.1:{daemon.port}\n"),
            ("server one 127.0.0.1:3001\n", f"server one 127.0.0.1:{sealed_port}\n"),
        )
        self.nginx = ["nginx", "-p", str(self.nginx_conf.parent), "-e", "stderr", "-c", str(self.nginx_conf)]
        self.haproxy = ["haproxy", "-f", str(self.haproxy_cfg)]

    @contextmanager
    def running(self) -> Iterator["Proxies"]:
        with ExitStack() as ending:
            for command in ([*self.nginx, "-g", "daemon off;"], [*self.haproxy, "-db"]):
                process = ending.enter_context(subprocess.Popen(command, stdin=subprocess.DEVNULL))
                ending.callback(process.terminate)
            for port in [*self.ports.values(), *self.plain_ports.values()]:
                until(lambda port=port: _listens(port), f"port {port}")  # type: ignore[misc]
            yield self


_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


OPTIONS = (
    *("--listen", "tcp:0:interface=127.0.0.1", "--listen", "haproxy:tcp:0:interface=127.0.0.1"),
    *("--trusted-proxy", "127.0.0.1"),
)


@pytest.fixture(scope="module")
def proxies(daemon: Daemon, certificate: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxies]:
    sealed_port = int(daemon.wait_for(r"PROXY protocol: \S+:(\d+)\n")[1])
    made = Proxies(tmp_path_factory.mktemp("proxies"), certificate, daemon, sealed_port)
    with made.running():
        yield made


class Way:
    """One way from a client to chatd."""

    def __init__(self, name: str, port: int, certificate: Path) -> None:
        self.name = name
        self.port = port
        self.room = re.sub(r"\W+", "-", name)
        self._trust = ssl.create_default_context(cafile=str(certificate))

    def url(self, room: str, scheme: str = "https") -> str:
        return f"{scheme}://localhost:{self.port}/{room}"

    @contextmanager
    def websocket(self, room: str, source: str = OUTSIDE, **headers: str) -> Iterator[tuple[str, ssl.SSLSocket]]:
        """Ask for a WebSocket; give the answer's first line, and the socket."""
        place, here = ("127.0.0.1", self.port), (source, 0)
        with (
            socket.create_connection(place, timeout=20, source_address=here) as plain,
            self._trust.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            secure.sendall(handshake(f"/{room}", Host=f"localhost:{self.port}", **headers))
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):
                answer += secure.recv(1) or b"\r\n\r\n"
            yield answer.split(b"\r\n")[0].decode(), secure

    def curl(self, room: str, *words: str, source: str = OUTSIDE) -> list[str]:
        """Give the words that run curl."""
        return ["curl", "--insecure", "--silent", "--no-buffer", "--interface", source, *words, self.url(room)]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, proxies: Proxies, certificate: Path) -> Way:
    return Way(request.param, proxies.ports[request.param], certificate)


def addresses(daemon: Daemon, room: str, count: int) -> list[str]:
    """Give where the messages of a room came from, once there are so many in the log."""

    def look() -> list[str]:
        lines = [line.split(" ") for line in daemon.chat_lines()]
        return [who.partition("@")[2] for _, where, who, *_ in lines if where == room]

    return until(lambda: found if len(found := look()) >= count else None, f"{count} messages of {room}")


# The files


def test_the_example_for_nginx_is_clean(proxies: Proxies) -> None:
    said = subprocess.run([*proxies.nginx, "-t"], capture_output=True, text=True, check=False, timeout=20)
    lines = [line.split(str(proxies.nginx_conf))[1] for line in said.stderr.splitlines()]
    assert (said.returncode, lines) == (0, [" syntax is ok", " test is successful"])


def test_the_example_for_haproxy_is_clean(proxies: Proxies) -> None:
    said = subprocess.run([*proxies.haproxy, "-c"], capture_output=True, text=True, check=False, timeout=20)
    assert (said.returncode, said.stderr) == (0, "")  # and 2.6 says on stdout that it is valid, where 3.0 says nothing


def test_haproxy_delays_no_line_on_a_bind_without_tls() -> None:
    """The kernel would hold back each small write for 0.2 s; that is not for a test to time."""
    [_, backend] = (DEPLOY / "haproxy.cfg").read_text().split("\nbackend chatd\n")
    assert "    option http-no-delay\n" in backend.partition("\nfrontend")[0]


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("nginx.conf", "proxy_read_timeout 1d;"),
        ("haproxy.cfg", "timeout client 1d"),
        ("haproxy.cfg", "timeout server 1d"),
        ("haproxy.cfg", "timeout tunnel 1d"),
    ],
)
def test_a_silent_room_is_not_cut_off_for_a_day(name: str, setting: str) -> None:
    lines = [line.partition("#")[0].strip() for line in (DEPLOY / name).read_text().splitlines()]
    assert [line for line in lines if line.startswith(setting.rpartition(" ")[0])] == [setting]


@pytest.mark.parametrize("name", ["nginx", "haproxy"])
def test_without_tls_one_is_sent_there(proxies: Proxies, name: str) -> None:
    command = ["curl", "--silent", "--head", "--header", "Host: localhost"]
    url = f"http://127.0.0.1:{proxies.plain_ports[name]}/ops?last=3"
    said = subprocess.run([*command, url], capture_output=True, text=True, check=True, timeout=20).stdout
    assert said.startswith("HTTP/1.1 308 ")
    assert "\nlocation: https://localhost/ops?last=3\n" in said.lower().replace("\r", "")


@pytest.mark.parametrize("name", ["nginx", "haproxy"])
def test_what_is_said_without_tls_is_said_there(proxies: Proxies, daemon: Daemon, name: str) -> None:
    there = f"localhost:443:127.0.0.1:{proxies.ports[name]}"
    follow = ["curl", "--silent", "--insecure", "--location", "--connect-to", there]
    url = f"http://127.0.0.1:{proxies.plain_ports[name]}/plain-{name}"
    command = [*follow, "--header", "Host: localhost", "--data", f"said to {name}", url]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    assert json.loads(said)["room"] == f"plain-{name}"
    assert f"said to {name}" in daemon.texts()


# WebSockets


def test_two_pipes_talk_over_tls(way: Way, daemon: Daemon) -> None:
    room = f"pipes-{way.room}"
    one, other = (Websocat(way.url(room, "wss"), "--insecure") for _ in range(2))
    with daemon.connect(room) as here:
        try:
            for speaker, hearer, text in ((one, other, "there"), (other, one, "and back")):
                until(lambda: count(daemon, room) == 3, "all three to be there")
                speaker.type(text)
                assert here.recv(20) == text
                until(lambda hearer=hearer, text=text: text in hearer.lines(), text)  # type: ignore[misc]
        finally:
            one.end()
            other.end()


def count(daemon: Daemon, room: str) -> int:
    """Give how many are in a room."""
    asked = ["curl", "--silent", daemon.url(f"{room}/members", "http")]
    said = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout
    return int(json.loads(said)["count"])


def test_a_websocket_is_one_on_a_connection_that_plain_requests_have_used(way: Way) -> None:
    for _ in range(5):  # two workers, and the proxy has a connection to each
        subprocess.run(way.curl("used", "--fail", "--output", "/dev/null"), check=True, timeout=20)
        with way.websocket("used") as (answer, _):
            assert answer == "HTTP/1.1 101 Switching Protocols"


def test_our_own_page_comes_in_and_another_does_not(way: Way) -> None:
    with way.websocket("page", Origin=f"https://localhost:{way.port}") as (answer, _):
        assert answer == "HTTP/1.1 101 Switching Protocols"
    with way.websocket("page", Origin="https://localhost") as (answer, _):
        assert answer == "HTTP/1.1 403 Forbidden"
    for page, status in ((f"https://localhost:{way.port}", "201"), ("https://localhost", "403")):
        words = (
            "--data",
            "hello",
            "--header",
            f"Origin: {page}",
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code}",
        )
        said = subprocess.run(way.curl("page", *words), capture_output=True, text=True, check=True, timeout=20)
        assert said.stdout == status


# Who the client is


def test_the_log_names_the_client_of_a_websocket(way: Way, daemon: Daemon) -> None:
    room = f"named-{way.room}"
    with way.websocket(room) as (_, client):
        client.sendall(frame(b"hello"))
        assert addresses(daemon, room, 1) == [OUTSIDE]


def test_the_log_names_the_client_of_each_request(way: Way, daemon: Daemon) -> None:
    room = f"asking-{way.room}"
    for source in (OUTSIDE, FARTHER, OUTSIDE):
        subprocess.run(way.curl(room, "--fail", "--data", "hello", source=source), check=True, timeout=20)
    assert addresses(daemon, room, 3) == [OUTSIDE, FARTHER, OUTSIDE]


def test_what_a_client_writes_into_the_header_counts_for_nothing(way: Way, daemon: Daemon) -> None:
    room = f"forging-{way.room}"
    subprocess.run(way.curl(room, "--fail", "--data", "hello", "--header", FORGED), check=True, timeout=20)
    with way.websocket(room, X_Forwarded_For=FORGED.partition(": ")[2]) as (_, client):
        client.sendall(frame(b"hello"))
        assert addresses(daemon, room, 2) == [OUTSIDE, OUTSIDE]


def test_who_comes_past_the_proxies_is_not_believed(daemon: Daemon) -> None:
    command = ["curl", "--silent", "--fail", "--interface", OUTSIDE, "--header", FORGED, "--data", "hello"]
    subprocess.run([*command, daemon.url("past", "http")], check=True, timeout=20)
    assert addresses(daemon, "past", 1) == [OUTSIDE]


# Streams


@pytest.mark.parametrize(
    ("target", "header", "shown"),
    [("?follow=1", "Accept: */*", "now"), ("", "Accept: text/event-stream", '"text":"now"')],
    ids=["lines", "events"],
)
def test_what_is_said_arrives_while_the_stream_stays_open(
    way: Way, daemon: Daemon, target: str, header: str, shown: str
) -> None:
    room = f"stream-{way.room}-{len(target)}"
    daemon.say(room, "before")
    stream = Terminal(*way.curl(f"{room}{target}", "--header", header))
    try:
        until(stream.lines, "the first line")  # it is heard from then on
        with daemon.connect(room) as talker:
            talker.send("now")
            until(lambda: any(shown in line for line in stream.lines()), "what is said now")
        assert stream.process.poll() is None
    finally:
        stream.end()


def test_who_leaves_a_silent_stream_is_gone(way: Way, daemon: Daemon) -> None:
    room = f"leaving-{way.room}"
    stream = Terminal(*way.curl(f"{room}?follow=1"))
    until(lambda: count(daemon, room) == 1, "it to be there")
    stream.end()
    until(lambda: count(daemon, room) == 0, "it to be gone")
