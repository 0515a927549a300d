"""The values of ``--listen``, and the errors for others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.config import listen
from chatd.config.listen import check_endpoint, endpoints_of, is_local, suggestion
from chatd.config.settings import LOOPBACK_LISTEN
from chatd.config.values import BadValue, quoted
from tests.rows import rows


def refusal(endpoint: str) -> str:
    with pytest.raises(BadValue) as caught:
        check_endpoint(endpoint)
    error, start = str(caught.value), f"--listen: {quoted(endpoint)}"
    assert error.startswith(start), error
    return error.removeprefix(start)


GOOD = [
    *LOOPBACK_LISTEN,
    "tcp:3000",
    "tcp:port=3000",
    "tcp:3000:127.0.0.1:50",
    "tcp6:3000:interface=fe80\\:\\:1",
    "ssl:443:privateKey=/none/key.pem:certKey=/none/cert.pem:interface=192.0.2.7",
    "tls:/etc/keys:443",
    "unix:/run/chatd.sock:mode=666",
    "unix:chatd.sock:660",
    "systemd:domain=INET6:name=chatd",
    "systemd:domain=UNIX:index=0",
    "haproxy:tcp:3000",
    "haproxy:unix:/run/chatd.sock",
    "stdio:",
]


@rows("endpoint", GOOD)
def test_an_endpoint_string_is_accepted(endpoint: str) -> None:
    check_endpoint(endpoint)


MEANT = [
    *(("3000", "tcp:3000"), (":8080", "tcp:8080"), ("*:8080", "tcp:8080"), ("*", "tcp:3000"), ("0.0.0.0", "tcp:3000")),
    ("0.0.0.0:3000", "tcp:3000"),
    ("127.0.0.1", "tcp:3000:interface=127.0.0.1"),
    ("localhost:8080", "tcp:8080:interface=127.0.0.1"),
    ("192.0.2.7:80", "tcp:80:interface=192.0.2.7"),
    *(("chat.example.org:3000", "tcp:3000"), ("::", "tcp6:3000"), ("[::]:3000", "tcp6:3000")),
    ("[::1]:3000", r"'tcp:3000:interface=\:\:1'"),
    ("http://localhost:8080/", "tcp:8080:interface=127.0.0.1"),
    ("http://0.0.0.0", "tcp:80"),
    ("wss://chat.example.org", "ssl:443:privateKey=KEY.pem:certKey=CERTIFICATES.pem"),
    *(("tcp://0.0.0.0:3000", "tcp:3000"), ("3000/tcp", "tcp:3000"), ("TCP:3000", "tcp:3000")),
    ("tcp:0.0.0.0:3000", "tcp:3000"),
    ("tcp:localhost:3000", "tcp:3000:interface=127.0.0.1"),
    ("tcp:3000:interface=::1", r"'tcp:3000:interface=\:\:1'"),
    *(("tcp:3000:host=0.0.0.0", "tcp:3000"), ("haproxy:3000", "haproxy:tcp:3000")),
    ("/run/chatd.sock", "unix:/run/chatd.sock"),
]


def test_a_correction_is_suggested() -> None:
    assert [(typed, suggestion(typed), meant) for typed, meant in MEANT if suggestion(typed) != meant] == []
    assert refusal("https://chat.example.org") == (
        " is not an address; use ssl:443:privateKey=KEY.pem:certKey=CERTIFICATES.pem"
    )
    for _, meant in MEANT:
        check_endpoint(meant.strip("'").replace("KEY.pem:", "/none:"))


TLS = "privateKey=/k.pem:certKey=/c.pem"


def test_plain_addresses_become_endpoint_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[tuple[str, bool, tuple[str, ...]]] = [
        ("3000", False, ("tcp:3000", r"tcp:3000:interface=\:\:")),
        (":3000", False, ("tcp:3000", r"tcp:3000:interface=\:\:")),
        ("*:3000", False, ("tcp:3000", r"tcp:3000:interface=\:\:")),
        ("0.0.0.0:80", False, ("tcp:80",)),
        ("[::]:80", False, (r"tcp:80:interface=\:\:",)),
        ("127.0.0.1:3000", False, ("tcp:3000:interface=127.0.0.1",)),
        ("[::1]:3000", False, (r"tcp:3000:interface=\:\:1",)),
        ("localhost:80", False, ("tcp:80:interface=127.0.0.1", r"tcp:80:interface=\:\:1")),
        (":443", True, (f"ssl:443:{TLS}", rf"ssl:443:{TLS}:interface=\:\:")),
        ("192.0.2.7:443", True, (f"ssl:443:{TLS}:interface=192.0.2.7",)),
        ("unix:/run/chatd.sock", True, ("unix:/run/chatd.sock",)),
        ("tcp:3000", True, ("tcp:3000",)),
        ("chat.example.org:3000", False, ("chat.example.org:3000",)),
    ]
    for ipv6 in (True, False):
        monkeypatch.setattr(listen, "has_ipv6", lambda ipv6=ipv6: ipv6)
        found = [(text, tls, endpoints_of([text], "/c.pem" * tls, "/k.pem" * tls)) for text, tls, _ in rows]
        assert found == rows if ipv6 else all(len(endpoints) == 1 for _, _, endpoints in found)
        for _, _, endpoints in found[:-1]:
            for endpoint in endpoints:
                check_endpoint(endpoint)
    monkeypatch.undo()
    assert endpoints_of((), "", "") == ()
    assert endpoints_of((), "/a:b.pem", "")[0] == r"ssl:3000:privateKey=/a\:b.pem:certKey=/a\:b.pem:interface=127.0.0.1"
    with pytest.raises(BadValue, match=r"^--tls-key: --tls-cert is missing; use both$"):
        endpoints_of((), "", "/k.pem")


@rows(
    "typed",
    [
        *("", "nonsense", "listen", "a\nb", "127.0.0.1:99999", "\\", "tcp:3000\\", "=", "haproxy", "haproxy:haproxy"),
        "tcp:3000:å=1",
    ],
)
def test_any_other_text_is_refused_with_examples(typed: str) -> None:
    error = refusal(typed)
    assert error.startswith(" is not an address; use for example :3000, ")
    assert "\n" not in error


@rows(
    ("endpoint", "error"),
    [
        ("tcp", ": tcp needs port="),
        ("tcp:x", ': port must be a number from 0 to 65535, not "x"'),
        ("tcp:99999", ': port must be a number from 0 to 65535, not "99999"'),
        ("tcp:3000:backlog=many", ': backlog must be a number from 0 to 2147483647, not "many"'),
        ("tcp:3000:bogus=1", ": tcp has no bogus=; tcp takes port=, interface=, backlog="),
        ("tcp:3000:interfaces=eth0", ": tcp has no interfaces=; interface= may be meant"),
        ("ssl:443:cert=a.pem", ": ssl has no cert=; certKey= may be meant"),
        ("unix", ": unix needs address="),
        ("unix:/a:mode=888", ': mode must be an octal number from 0 to 777, not "888"'),
        ("systemd:fd=3", ": systemd has no fd=; systemd takes domain=, index=, name="),
        ("systemd:index=x", ': index must be a number from 0 to 2147483647, not "x"'),
        ("systemd:domain=INET", ": systemd needs either name= or index="),
        ("systemd:index=0:name=chat", ": systemd needs either name= or index="),
        ("systemd:domain=INET5:index=0", ': domain must be INET, INET6 or UNIX, not "INET5"; it may be left out'),
        ("haproxy:haproxy:tcp:abc", ': port must be a number from 0 to 65535, not "abc"'),
        (
            "tcp:3000:a:50:b",
            r": tcp takes port=, interface=, backlog=, and no more; a colon within one is \:; use tcp:3000",
        ),
    ],
)
def test_a_bad_part_is_named(endpoint: str, error: str) -> None:
    assert refusal(endpoint) == error


def test_ssl_without_its_files_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.chdir(str(tmp_path))
    assert refusal("ssl:443").startswith(": ssl needs privateKey= and certKey=, ")


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.text(r":=\[]*.tcpinerfs/0123456789", max_size=30))
def test_any_text_is_accepted_or_refused_in_one_line(text: str) -> None:
    try:
        check_endpoint(text)
    except BadValue as error:
        assert str(error).isprintable()
    else:
        assert is_local(text) in (True, False, None)
    suggestion(text)


@rows(
    ("endpoint", "local"),
    [
        *(("tcp:3000", False), ("tcp6:3000", False)),
        ("tcp:3000:interface=192.0.2.7", False),
        *(("tcp:3000:127.0.0.1", True), (r"tcp:3000:interface=\:\:1", True)),
        ("haproxy:tcp:3000:interface=127.0.0.1", True),
        ("tcp:3000:interface=localhost", True),
        ("tcp:3000:interface=chat.example.org", None),
        ("unix:/run/chatd.sock", True),
        ("systemd:domain=INET6:name=chatd", None),
    ],
)
def test_an_endpoint_may_be_local(endpoint: str, local: bool | None) -> None:
    assert is_local(endpoint) is local
