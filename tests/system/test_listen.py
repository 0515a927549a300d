"""Where it can listen: every kind of endpoint that PROTOCOL and --help name, with two workers behind it."""

import os
import re
import shlex
import signal
import socket
import ssl
import subprocess
import tempfile
from pathlib import Path
from urllib.request import urlopen

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from websockets.sync.client import connect

from tests.authority import Authority, self_signed
from tests.frames import websocket_over_tls
from tests.system.daemon import Daemon, Websocat
from tests.system.test_bad_input import TEXT, frame, handshake, read_head
from tests.waiting import until


def test_tls_in_two_workers(tmp_path: Path) -> None:
    pem = self_signed(tmp_path / "localhost.pem")
    listen = f"ssl:0:privateKey={pem}:certKey={pem}:interface=127.0.0.1"
    trust = ssl.create_default_context(cafile=str(pem))
    trust.set_alpn_protocols(["http/1.1"])  # as curl and browsers do
    with Daemon(tmp_path, "--listen", listen) as daemon:
        daemon.wait_for(r"connect with: websocat wss://")
        address = ("127.0.0.1", daemon.port)
        with websocket_over_tls(address, trust) as one, websocket_over_tls(address, trust) as other:
            one.sendall(frame(TEXT, b"x" * 16384))
            heard = b""
            while len(heard) < 4 + 16384:
                heard += other.recv(65536)
            assert heard == b"\x81\x7e\x40\x00" + b"x" * 16384


def test_tls_sends_the_whole_chain_of_its_file_after_a_reload_too(tmp_path: Path) -> None:
    root = Authority(tmp_path / "root")
    trust = ssl.create_default_context(cafile=root.path)
    full, key = tmp_path / "fullchain.pem", tmp_path / "key.pem"

    def renew(folder: str) -> bytes:
        """Put a chain and its key in place, as certbot does; return the certificate of the server."""
        between = Authority(tmp_path / folder, root)
        leaf, leaf_key = between.issue("server", "localhost")
        full.write_bytes(b"".join(Path(each).read_bytes() for each in (leaf, between.path, root.path)))
        key.write_bytes(Path(leaf_key).read_bytes())
        return ssl.PEM_cert_to_DER_cert(Path(leaf).read_text("ascii"))

    def shown() -> bytes | None:
        """Return the certificate that a client is shown which trusts the root alone."""
        with websocket_over_tls(("127.0.0.1", daemon.port), trust) as client:
            return client.getpeercert(binary_form=True)

    first = renew("one")
    listen = f"ssl:0:privateKey={key}:certKey={full}:interface=127.0.0.1"
    with Daemon(tmp_path, "--listen", listen, "--drain-timeout", "0.2") as daemon:
        assert shown() == first
        command = ["openssl", "s_client", "-showcerts", "-connect", f"127.0.0.1:{daemon.port}"]
        sent = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=20).stdout
        blocks = re.findall(rb"-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----\n", sent)
        assert b"".join(blocks) == full.read_bytes()
        second = renew("two")
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: shown() == second, "the new certificate, with its chain")


def test_tls_has_forward_secrecy_and_tells_browsers_what_it_is_told_to(tmp_path: Path) -> None:
    pem = self_signed(tmp_path / "localhost.pem", rsa.generate_private_key(65537, 2048))
    listen = f"ssl:0:privateKey={pem}:certKey={pem}:interface=127.0.0.1"
    with Daemon(tmp_path, "--listen", listen, "--tuning", "hsts_max_age=300") as daemon:
        daemon.wait_for(r"connect with: websocat wss://")

        def versions(ciphers: str) -> str:
            trust = ssl.create_default_context(cafile=str(pem))
            trust.maximum_version = ssl.TLSVersion.TLSv1_2
            trust.set_ciphers(ciphers)
            with (
                socket.create_connection(("127.0.0.1", daemon.port), timeout=20) as raw,
                trust.wrap_socket(raw, server_hostname="localhost") as client,
            ):
                return str(client.version())

        for ciphers in ("ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-RSA-CHACHA20-POLY1305"):
            assert versions(ciphers) == "TLSv1.2"
        for ciphers in ("AES256-GCM-SHA384", "ECDHE-RSA-AES256-SHA384", "AES128-SHA"):
            with pytest.raises(ssl.SSLError):
                versions(ciphers)
        trust = ssl.create_default_context(cafile=str(pem))
        with urlopen(f"https://localhost:{daemon.port}/-/healthz", context=trust) as answer:
            assert answer.headers["Strict-Transport-Security"] == "max-age=300"


def test_a_unix_socket_is_removed_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "chatd.sock"
    with Daemon(tmp_path, "--listen", "tcp:0:interface=127.0.0.1", "--listen", f"unix:{path}") as daemon:
        hint = daemon.wait_for(r"connect with: (websocat .*ws-c:unix:.*)\n")[1]
        with daemon.connect() as other:
            terminal = Websocat(*shlex.split(hint)[-1:], *shlex.split(hint)[1:-1])
            terminal.type("from a file")
            assert other.recv(20) == "from a file"
            terminal.end()
        assert " -@unix " in daemon.chat_lines()[0]
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_of_a_unix_socket_cannot_choose_its_address(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = f"{folder}/chatd.sock"
        listen = ("--listen", "tcp:0:interface=127.0.0.1", "--listen", f"unix:{path}:mode=666")
        with Daemon(tmp_path, *listen, "--trusted-proxy", "unix") as daemon:
            post = ["curl", "--silent", "--fail", "--unix-socket", path, "http://localhost/ops", "--data"]
            forged = ["--header", "X-Forwarded-For: 198.51.100.77"]
            nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
            subprocess.run([*nobody, *post, "of nobody", *forged], check=True, timeout=20, stdout=subprocess.DEVNULL)
            subprocess.run([*post, "of root", *forged], check=True, timeout=20, stdout=subprocess.DEVNULL)
            sources = [line.split(" ")[2] for line in daemon.chat_lines()]
    assert sources == ["-@unix", "-@198.51.100.77"]


def test_behind_haproxy_the_log_names_the_client(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--listen", "haproxy:tcp:0:interface=127.0.0.1") as daemon:
        daemon.wait_for("for a proxy that speaks the PROXY protocol")
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=20) as raw:
            raw.sendall(b"PROXY TCP4 203.0.113.7 127.0.0.1 40000 3000\r\n" + handshake("/") + frame(TEXT, b"hi"))
            assert read_head(raw).startswith("HTTP/1.1 101 ")
            until(daemon.chat_lines, "the line in the log")
        assert " -@203.0.113.7 " in daemon.chat_lines()[0]


def test_only_a_tcp_port_on_loopback_asks_for_a_name_of_this_host(tmp_path: Path) -> None:
    path = tmp_path / "chatd.sock"
    listen = ("tcp:0:interface=127.0.0.1", f"unix:{path}", "haproxy:tcp:0:interface=127.0.0.1", "tcp:0")
    with Daemon(tmp_path, *(word for each in listen for word in ("--listen", each)), workers=1) as daemon:
        told = int(daemon.wait_for(r"PROXY protocol: \S+:(\d+)\n")[1])
        exposed = int(daemon.wait_for(r"websocat ws://(?!127)[^ ]*:(\d+)\n")[1])

        def status(host: str, port: int, *options: str) -> str:
            command = ["curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}", *options]
            url = f"http://127.0.0.1:{port}/ops"
            command += ["--header", f"Host: {host}", url]
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout

        assert status("evil.example", daemon.port) == "403"
        assert status(f"localhost:{daemon.port}", daemon.port) == "200"
        assert status(socket.gethostname(), daemon.port) == "200"
        assert status("chat.example.org", 80, "--unix-socket", str(path)) == "200"
        assert status("chat.example.org", told, "--haproxy-protocol") == "200"
        assert status("chat.example.org", exposed) == "200"


def test_by_default_it_is_port_3000_on_loopback_in_both_families(tmp_path: Path) -> None:
    with Daemon(tmp_path, any_port=False) as daemon:
        assert daemon.port == 3000
        hosts = ["127.0.0.1", "[::1]"] if socket.has_ipv6 and _has_ipv6_loopback() else ["127.0.0.1"]
        for host in hosts:
            with connect(f"ws://{host}:3000/", compression=None) as one, daemon.connect() as other:
                one.send(host)
                assert other.recv(20) == host


def _has_ipv6_loopback() -> bool:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True
