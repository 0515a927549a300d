"""The heads of HTTP requests: lines, headers, targets, WebSocket handshakes, and refusals."""

import json
import time
import unicodedata
from base64 import b64encode
from hashlib import sha1
from urllib.parse import quote, quote_from_bytes

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from chatd.protocol.http_head import (
    CONTROL,
    HEAD_END,
    Refused,
    RequestHead,
    RoomTarget,
    Upgrade,
    accept,
    bad_request,
    head_too_large,
    internal,
    match_line,
    quote_target,
    read_head,
    read_target,
    read_upgrade,
    read_upgrade_target,
    room_name,
    server_full,
    too_late,
    unavailable,
)
from chatd.protocol.nick import BadNick, read_nick, shows
from tests.depth import code_points
from tests.frames import ACCEPT, KEY, handshake
from tests.rows import rows

CONTROL_BYTES = [*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F]
FORBIDDEN = [*CONTROL_BYTES, 0x85]
"""Bytes that no header may hold."""


def head(*lines: bytes) -> bytes:
    return b"\r\n".join((b"GET / HTTP/1.1", *lines)) + HEAD_END


def refused_head(data: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        read_head(data)
    return caught.value


def refused_target(target: bytes | str) -> Refused:
    with pytest.raises(Refused) as caught:
        read_target(target.encode() if isinstance(target, str) else target)
    return caught.value


def refused_upgrade(data: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        read_upgrade(read_head(data))
    return caught.value


def room_at(target: str) -> str:
    return read_target(target.encode()).room


# Heads


def test_a_head_is_read_into_method_target_and_headers() -> None:
    data = b"POST /ops?echo=1 HTTP/1.0\r\nHost: example.org:3000\r\nX-Empty:\r\n\r\n"
    assert read_head(data) == RequestHead("POST", b"/ops?echo=1", {"host": "example.org:3000", "x-empty": ""}, "1.0")


def test_a_head_may_hold_no_headers() -> None:
    assert read_head(head()) == RequestHead("GET", b"/", {})


@rows("byte", FORBIDDEN)
@rows("before", [b"X: a", b"X", b"X: "])
def test_a_forbidden_byte_in_a_header_is_refused(byte: int, before: bytes) -> None:
    refused = refused_head(head(before + bytes([byte]) + b"b: c"))
    assert (refused.status, refused.code) == (400, "bad_request")


@rows("byte", [*CONTROL_BYTES, *b"\t\r\n"])
def test_a_forbidden_byte_in_the_target_is_refused(byte: int) -> None:
    assert refused_head(b"GET /a%cb HTTP/1.1\r\n\r\n" % byte).status == 400


@rows("room", ["\u00c5", "\u0145", "\u0445"])
def test_a_character_with_the_byte_0x85_is_allowed_in_the_target_only(room: str) -> None:
    assert read_upgrade_target(read_head(handshake(f"/{room}?nick={room}"))) == RoomTarget(room, nick=room)
    assert refused_head(head(f"X: {room}".encode())).status == 400


@given(st.binary(max_size=20).filter(lambda data: b" " not in data))
def test_a_quoted_target_has_no_line_end(target: bytes) -> None:
    line = b"GET /%b HTTP/1.1" % target
    try:
        match_line(line, first=True)
    except Refused:
        return
    quoted = quote_target(line)
    assert quoted.decode("latin-1").splitlines() == [quoted.decode("ascii")]


@rows("byte", [each for each in range(256) if each not in FORBIDDEN and each not in b"\r\n"])
def test_any_other_byte_is_allowed_in_a_value(byte: int) -> None:
    assert read_head(head(b"X: a%cb" % byte)).headers == {"x": f"a{chr(byte)}b"}


def test_forbidden_bytes_are_found_in_an_incomplete_head() -> None:
    assert [byte for byte in range(256) if CONTROL.search(bytes([byte]))] == CONTROL_BYTES


@rows(
    "data",
    [
        head(b"X: a\rY: b"),
        head(b"X: a\nY: b"),
        head(b"X: a\r\r\nY: b"),
        head(b"X: a\n\nY: b"),
        b"GET / HTTP/1.1\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\rHost: a\r\n\r\n",
        b"GET /\r HTTP/1.1\r\n\r\n",
        b"\nGET / HTTP/1.1\r\n\r\n",
    ],
)
def test_a_bare_line_end_is_refused(data: bytes) -> None:
    assert refused_head(data).status == 400


@rows(
    "line",
    [
        *(b"no colon", b"", b": no name", b"X : space before the colon", b"X\t: a", b" folded", b"\tfolded", b" X: a"),
        b"X(: a",
    ],
)
def test_a_line_that_is_no_header_is_refused(line: bytes) -> None:
    refused = refused_head(head(b"Host: a", line, b"Y: b"))
    assert (refused.status, refused.code) == (400, "bad_request")
    assert refused_head(head(b"Host: a", b" folded")).status == 400


@rows(
    "first",
    [
        *(b"", b"GET /", b"GET  / HTTP/1.1", b"GET / HTTP/1.1 ", b"GET /a b HTTP/1.1", b"GET /a\tb HTTP/1.1"),
        *(b"GET / HTTP/2.0", b"GET / HTTP/0.9", b"GET / HTTP/1.10", b"GET / http/1.1", b"G{T / HTTP/1.1"),
        *(b" GET / HTTP/1.1", b"\x16\x03\x01\x02"),
    ],
)
def test_a_first_line_that_is_no_request_is_refused(first: bytes) -> None:
    assert refused_head(first + b"\r\nHost: a" + HEAD_END).status == 400


@rows(
    "lines, headers",
    [
        ([b"sEC-wEBSOCKET-kEY: AbC"], {"sec-websocket-key": "AbC"}),
        ([b"X: \t a b\tc \t ", b"Y:d", b"Z: \t"], {"x": "a b\tc", "y": "d", "z": ""}),
        ([b"X: a", b"Y: b", b"x: c", b"X:"], {"x": "a,c,", "y": "b"}),  # values of one header are joined in order
        ([b"X: a:b: c"], {"x": "a:b: c"}),
        (["X: é".encode()], {"x": "Ã©"}),  # a byte is a character
    ],
)
def test_headers_are_read(lines: list[bytes], headers: dict[str, str]) -> None:
    assert read_head(head(*lines)).headers == headers


@rows("space", [b" ", b"\t"])
def test_a_head_full_of_space_is_read_at_once(space: bytes) -> None:
    data = head(b"X: a" + space * 20_000 + b"b")
    start = time.process_time()
    read_head(data)
    assert time.process_time() - start < 0.5


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        read_head(data + HEAD_END)
    except Refused as refused:
        assert refused.status == 400


@rows(
    "lines",
    [
        (b"Upgrade: websocket",),
        (b"upgrade: WebSocket",),
        (b"Upgrade: h2c , websocket",),
        (b"Upgrade: h2c", b"Upgrade: websocket"),
    ],
)
def test_an_upgrade_to_websocket_is_seen(lines: tuple[bytes, ...]) -> None:
    assert read_head(head(*lines)).upgrades


@rows("line", [b"Host: websocket", b"Upgrade:", b"Upgrade: h2c", b"Upgrade: websockets", b"Upgrade: a websocket"])
def test_other_upgrades_are_ignored(line: bytes) -> None:
    assert not read_head(head(line)).upgrades


# Handshakes


def test_a_handshake_is_answered_as_rfc_6455_shows_it() -> None:
    assert read_upgrade(read_head(handshake())) == Upgrade(KEY)
    assert accept(Upgrade(KEY)) == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + ACCEPT.encode() + b"\r\n\r\n"
    )


@given(st.binary(min_size=16, max_size=16))
def test_any_16_bytes_are_a_key_and_its_proof_is_that_of_the_rfc(nonce: bytes) -> None:
    key = b64encode(nonce).decode()
    proof = b64encode(sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest())
    assert accept(read_upgrade(read_head(handshake(Sec_WebSocket_Key=key)))).splitlines()[3].split(b" ")[1] == proof


def test_the_offered_extensions_are_kept() -> None:
    offer = "permessage-deflate; client_max_window_bits, x-other"
    assert read_upgrade(read_head(handshake(Sec_WebSocket_Extensions=offer))) == Upgrade(KEY, offer)


@rows("offer", ["chatd.v1", "mqtt, chatd.v1", "chatd.v1,chatd.v2", "mqtt,\tchatd.v1 , stomp"])
def test_the_subprotocol_is_chosen_among_others(offer: str) -> None:
    upgrade = read_upgrade(read_head(handshake(Sec_WebSocket_Protocol=offer)))
    assert upgrade == Upgrade(KEY, protocol="chatd.v1")
    assert b"\r\nSec-WebSocket-Protocol: chatd.v1\r\n" in accept(upgrade)


@rows("first", ["mqtt", "chatd.v1", "chatd.v1,mqtt"])
def test_a_subprotocol_may_be_offered_in_several_headers(first: str) -> None:
    data = handshake(Sec_WebSocket_Protocol=first).replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: chatd.v1\r\n\r\n")
    assert read_upgrade(read_head(data)).protocol == "chatd.v1"


@rows("offer", ["mqtt", "mqtt, stomp", "chatd.v2", "chatd", "CHATD.V1", "Chatd.v1", "chatd.v1;x", ","])
def test_only_unknown_subprotocols_are_400_and_the_answer_names_the_known_one(offer: str) -> None:
    refused = refused_upgrade(handshake(Sec_WebSocket_Protocol=offer))
    assert (refused.status, refused.code) == (400, "bad_request")
    assert "chatd.v1" in refused.message


def test_an_empty_offer_is_400_and_without_an_offer_no_subprotocol_is_used() -> None:
    data = handshake().replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol:\r\n\r\n")
    assert refused_upgrade(data).status == 400
    upgrade = read_upgrade(read_head(handshake()))
    assert upgrade.protocol == ""
    assert b"Sec-WebSocket-Protocol" not in accept(upgrade)


def key_of(target: str, offer: str) -> str:
    return read_upgrade_target(read_head(handshake(target, Sec_WebSocket_Protocol=offer))).resume


@rows(
    ("target", "offer"),
    [
        ("/ops", "chatd.v1, resume.a-key.of~mine"),
        ("/ops", "resume.a-key.of~mine,chatd.v1,bearer.a.b.c"),
        ("/ops", "chatd.v1, resume.a-key.of~mine, resume.a-key.of~mine"),
        ("/ops?resume=a-key.of~mine", "chatd.v1, resume.a-key.of~mine"),
        ("/ops?resume=a-key.of~mine", "chatd.v1"),
    ],
)
def test_a_resume_key_comes_in_the_url_or_among_the_subprotocols(target: str, offer: str) -> None:
    assert key_of(target, offer) == "a-key.of~mine"
    assert read_upgrade(read_head(handshake(target, Sec_WebSocket_Protocol=offer))).protocol == "chatd.v1"


@rows(
    ("target", "offer", "message"),
    [
        ("/ops?resume=0123456789", "chatd.v1, resume.a-key.of~mine", "there are several resume keys; one is enough"),
        ("/ops", "chatd.v1, resume.0123456789, resume.a-key.of~mine", "there are several resume keys; one is enough"),
        *(
            ("/ops", f"chatd.v1, resume.{key}", "resume must be 8 to 64 letters, digits or any of - . _ ~")
            for key in ("short", "", "0123456789!", "x" * 65)
        ),
    ],
)
def test_several_resume_keys_and_bad_ones_are_refused(target: str, offer: str, message: str) -> None:
    with pytest.raises(Refused) as caught:
        key_of(target, offer)
    assert (caught.value.status, caught.value.message) == (400, message)


@rows("connection", ["upgrade", "UPGRADE", "keep-alive, Upgrade", "Upgrade,TE", "\tUpgrade "])
def test_a_connection_header_may_list_other_things_too(connection: str) -> None:
    assert read_upgrade(read_head(handshake(Connection=connection))).key == KEY


@rows("connection", ["", "keep-alive", "upgraded", "Up grade"])
def test_a_connection_that_is_not_upgraded_is_400(connection: str) -> None:
    refused = refused_upgrade(handshake(Connection=connection))
    assert (refused.status, refused.code) == (400, "bad_request")


@rows(
    "key",
    [
        "",
        "x",
        KEY[:-1],
        KEY + "=",
        KEY[:-3] + "h==",
        KEY.replace("==", "AA"),
        f"{KEY},{KEY}",
        "dGhlIHNhbXBsZSBub25jZ_==",
    ],
)
def test_a_key_that_is_not_16_bytes_in_base64_is_400(key: str) -> None:
    refused = refused_upgrade(handshake(Sec_WebSocket_Key=key))
    assert (refused.status, refused.code) == (400, "bad_request")


def test_the_key_of_the_client_is_not_repeated() -> None:
    assert "secret" not in refused_upgrade(handshake(Sec_WebSocket_Key="secret")).message


@rows(
    "data",
    [
        handshake(Host=""),
        handshake(Host="a,b"),
        handshake().replace(b"\r\n\r\n", b"\r\nHost: other\r\n\r\n"),
        handshake(Content_Length="5"),
        handshake(Transfer_Encoding="chunked"),
        handshake(Sec_WebSocket_Protocol="resume.a-key.of~mine"),
    ],
)
def test_a_handshake_without_one_host_with_a_body_or_with_a_resume_key_as_subprotocol_is_400(data: bytes) -> None:
    assert refused_upgrade(data).status == 400


@rows("version", ["", "8", "14", "013", "13, 8", "x"])
def test_another_version_is_426_with_the_supported_one(version: str) -> None:
    refused = refused_upgrade(handshake(Sec_WebSocket_Version=version))
    assert refused.status == 426
    assert dict(refused.headers) == {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"}


@rows("method", [b"POST", b"HEAD", b"get"])
def test_another_method_is_405(method: bytes) -> None:
    refused = refused_upgrade(handshake().replace(b"GET", method, 1))
    assert (refused.status, dict(refused.headers)) == (405, {"Allow": "GET"})


def test_a_handshake_in_http_1_0_is_505() -> None:
    assert refused_upgrade(handshake().replace(b"HTTP/1.1", b"HTTP/1.0", 1)).status == 505


@given(
    st.dictionaries(
        st.sampled_from(["Host", "Connection", "Sec_WebSocket_Key"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=126)),
        max_size=3,
    )
)
def test_any_handshake_is_read_or_refused(headers: dict[str, str]) -> None:
    try:
        assert accept(read_upgrade(read_head(handshake(**headers)))).startswith(b"HTTP/1.1 101 ")
    except Refused as refused:
        assert refused.response().startswith(b"HTTP/1.1 400 ")


# Targets


@rows("target", ["/", "/?echo=0", "http://example.org/", "http://example.org", "http://example.org?a=b"])
def test_the_bare_root_is_the_lobby(target: str) -> None:
    assert room_at(target) == "lobby"


@rows(
    "target, room",
    [
        ("/%6Fps%C3%A9%3f%26%3D", "opsé?&="),
        *(("/c++", "c++"), ("/Ops", "Ops"), ("/a-b-", "a-b-")),
        ("/100%2525", "100%25"),  # decoded once
        ("/5%zz%", "5%zz%"),  # a percent sign before anything else stays
        *((target, "caf\u00e9") for target in ("/cafe%CC%81", "/caf%C3%A9", "/cafe\u0301", "/café")),  # NFC
    ],
)
def test_a_room_is_percent_decoded_and_normalised(target: str, room: str) -> None:
    assert room_at(target) == room


@rows("name", ["a", "a" * 64, "é" * 64, "😀" * 64, "e\u0301" * 64])
def test_a_name_has_1_to_64_characters(name: str) -> None:
    assert room_at("/" + quote(name)) == unicodedata.normalize("NFC", name)


@rows("name", ["a" * 65, "é" * 65, "e\u0301" * 65, "\u0958" * 33])
def test_a_name_longer_than_64_characters_once_normalised_is_refused(name: str) -> None:
    refused = refused_target("/" + quote(name))
    assert (refused.status, refused.code) == (404, "bad_room")


SPACES = [chr(each) for each in range(0x110000) if chr(each).isspace()]
CONTROLS = [chr(each) for each in range(0x110000) if unicodedata.category(chr(each)) == "Cc"]


@rows("character", sorted({*SPACES, *CONTROLS}))
def test_white_space_and_control_characters_are_refused(character: str) -> None:
    for name in (character, f"a{character}", f"{character}a", f"a{character}b"):
        refused = refused_target("/" + quote(name))
        assert (refused.status, refused.code) == (404, "bad_room")


HIDDEN = [
    *("\xad", "\u200b", "\u200d", "\u202e", "\u2066", "\ufeff", "\u2800", "\u3164", "\ufe0f", "\ue000", "\uffff"),
    "\u0378",
]
"""Characters that do not show: format characters, blank ones, private ones and such as are not assigned."""


@rows("character", HIDDEN)
def test_a_character_that_does_not_show_is_refused_and_named(character: str) -> None:
    for name in (character, f"ops{character}", f"{character}ops", f"o{character}ps"):
        refused = refused_target("/" + quote(name))
        assert (refused.status, refused.code) == (404, "bad_room")
        assert f"U+{ord(character):04X} " in refused.message
        assert "earlier versions allowed it" in refused.message


def test_a_room_may_hold_the_characters_that_a_nick_may_hold() -> None:
    for character in map(chr, code_points()):
        if character in "/-:*" or character.isspace() or unicodedata.category(character) == "Cs":
            continue
        try:
            read_nick(character)
        except BadNick as bad:
            if "looks like" not in str(bad):  # no room has a number of the server's
                assert refused_target("/" + quote(character)).code == "bad_room"
                continue
        assert room_at("/" + quote(character))


@rows(
    "target, code",
    [
        *((target, "bad_room") for target in (b"/%FF", b"/\xff", b"/%C3", b"/%ED%A0%80", b"/%C0%AF")),  # not UTF-8
        *((target, "bad_room") for target in ("/a/b", "/a%2Fb", "//a", "/%2F", "/a/", "//", "/../a")),
        *((target, "bad_room") for target in ("/-", "/-a", "/%2D", "/%2da", "/%2D/x")),
        *((target, "not_found") for target in ("/-/x", "/-/", "/-/healthz?echo=7", "http://example.org/-/x")),
    ],
)
def test_a_bad_room_and_an_unknown_path_of_the_server_are_404(target: bytes | str, code: str) -> None:
    refused = refused_target(target)
    assert (refused.status, refused.code) == (404, code)


def test_a_room_of_a_path_without_its_slash_is_read_alike() -> None:
    assert (room_name(b"caf%C3%A9"), room_name(b"")) == ("café", "lobby")


@rows(("target", "echo"), [(b"/ops?echo=1", True), (b"/ops?echo=0", False), (b"/ops?", False), (b"/ops", False)])
def test_echo_is_0_or_1(target: bytes, echo: bool) -> None:
    assert read_target(target) == RoomTarget("ops", echo)


@rows("query", ["echo=%31", "%65cho=1", "&&echo=1&", "a=b&echo=1&c", "echo=0&echo=1"])
def test_the_last_echo_counts_however_it_is_written(query: str) -> None:
    assert read_target(b"/ops?" + query.encode()).echo


@rows("query", ["echo", "echo=", "echo=2", "echo=true", "echo=11", "echo=1%20", "echo=+1", "echo=1?x", "echo=%FF"])
def test_a_bad_value_of_echo_is_refused_with_a_line_that_names_it(query: str) -> None:
    refused = refused_target(f"/ops?{query}")
    assert (refused.status, refused.code) == (400, "bad_request")
    assert "echo" in refused.message and "\n" not in refused.message


@rows(
    "query", ["nickname=:", "x=1", "Echo=2", "=2", "=", "x=%FF%00", "echo.=2", "since=x;echo=2", "Last=x", "resumed=1"]
)
def test_an_unknown_parameter_is_ignored(query: str) -> None:
    assert read_target(b"/ops?" + query.encode()) == RoomTarget("ops")


@rows(
    ("query", "last"),
    [
        *(("last=20", 20), ("last=0", 0), ("", 0), ("last=007", 7), ("last=%32", 2), ("last=1&last=2", 2)),
        ("last=" + "9" * 18, 10**18 - 1),
    ],
)
def test_last_is_a_number(query: str, last: int) -> None:
    assert read_target(b"/ops?" + query.encode()) == RoomTarget("ops", last=last)


@rows(
    "query",
    [
        *("last", "last=", "last=x", "last=-1", "last=+1", "last=1.5", "last=1_0", "last=%C2%B2", "last=1%0A"),
        *("last=1e3", "last=%D9%A1", "last=0x1", "last=" + "9" * 19),
    ],
)
def test_a_bad_number_of_last_messages_is_refused_with_a_line_that_names_it(query: str) -> None:
    refused = refused_target(f"/ops?{query}")
    assert (refused.status, refused.code) == (400, "bad_request")
    assert refused.message.startswith("last must be ") and "\n" not in refused.message


@rows(
    ("query", "key"),
    [
        *(("resume=abcdefgh", "abcdefgh"), ("resume=" + "Z9" * 32, "Z9" * 32), ("resume=a.b-c_d~", "a.b-c_d~")),
        *(("resume=%61bcdefgh", "abcdefgh"), ("resume=........", "........"), ("", "")),
    ],
)
def test_a_resume_key_is_read(query: str, key: str) -> None:
    assert read_target(b"/ops?" + query.encode()) == RoomTarget("ops", resume=key)


@rows(
    "key",
    [
        *("", "abcdefg", "x" * 65, "abcdefg:", "abcd efgh", "abcdefgh%0A", "abc+defgh", "abc/defgh", "abc*defgh"),
        *("abcdefg%00", "%C3%A5bcdefgh", "abcdefgh%20", "abcdefg%FF"),
    ],
)
def test_a_bad_resume_key_is_refused_with_a_line_that_names_it(key: str) -> None:
    assert refused_target("/ops?resume").status == 400
    refused = refused_target(f"/ops?resume={key}")
    assert (refused.status, refused.code) == (400, "bad_request")
    assert refused.message.startswith("resume must be ") and "\n" not in refused.message


@rows(
    ("query", "nick"),
    [
        *(("nick=ann", "ann"), ("nick=%C3%A5sa", "åsa"), ("nick=åsa", "åsa"), ("nick=a%CC%8Asa", "åsa")),
        *(("nick=%61%2B%26", "a+&"), ("nick=ann&nick=bob", "bob"), ("", "")),
    ],
)
def test_a_nick_is_percent_decoded_and_normalised(query: str, nick: str) -> None:
    assert read_target(f"/ops?{query}".encode()) == RoomTarget("ops", nick=nick)


@rows(
    "query",
    [
        *("nick", "nick=", "nick=a:b", "nick=*", "nick=a+b", "nick=a%20b", "nick=a%0Ab", "nick=%1B", "nick=%FF"),
        *("nick=%ED%A0%80", "nick=%E2%80%AE", "nick=" + "a" * 33),
    ],
)
def test_a_bad_nick_is_refused_with_a_line_that_names_it(query: str) -> None:
    refused = refused_target(f"/ops?{query}")
    assert (refused.status, refused.code) == (400, "bad_request")
    assert refused.message.startswith("a nick must ") and refused.message.isprintable()


def test_all_parameters_go_together() -> None:
    target = b"/ops?resume=abcdefgh&last=5&echo=1&nick=ann"
    assert read_target(target) == RoomTarget("ops", echo=True, last=5, resume="abcdefgh", nick="ann")


@rows("query", ["echo=2", "last=x", "resume=x", "nick=:"])
def test_a_bad_room_counts_before_a_bad_parameter(query: str) -> None:
    assert refused_target(f"/a/b?{query}").status == 404


@rows(
    "target", ["http://example.org/ops?echo=1", "HTTPS://example.org:3000/ops?echo=1", "http://[::1]:3000/ops?echo=1"]
)
def test_the_absolute_form_names_the_same_room(target: str) -> None:
    assert read_target(target.encode()) == RoomTarget("ops", echo=True)


@rows("target", ["*", "example.org:443", "ops", "ftp://example.org/ops", "?echo=1", "", "#/ops", "http:/ops"])
def test_a_target_that_is_no_path_is_a_bad_request(target: str) -> None:
    refused = refused_target(target)
    assert (refused.status, refused.code) == (400, "bad_request")


@given(st.text(min_size=1, max_size=70))
@example("\u2126")
def test_any_good_name_comes_back_normalised_and_any_other_is_refused(name: str) -> None:
    assume(not any("\ud800" <= each <= "\udfff" for each in name))
    normal = unicodedata.normalize("NFC", name)
    good = (
        len(normal) <= 64
        and normal[0] != "-"
        and not any(each in "/" or each in SPACES or not shows(each) for each in normal)
    )
    target = f"/{quote(name, safe='')}"
    if good:
        assert room_at(target) == normal
        assert room_at(f"/{quote(normal, safe='')}") == normal
    else:
        assert refused_target(target).status == 404


@given(st.binary(max_size=100))
def test_any_target_is_read_or_refused(path: bytes) -> None:
    for target in (path, b"/" + path, b"/" + quote_from_bytes(path).encode(), b"/?echo=" + path, b"/?nick=" + path):
        try:
            assert read_target(target).room
        except Refused as refused:
            assert refused.status in (400, 404)


# Answers


@rows(
    ("refused", "status_line"),
    [
        (bad_request("no"), b"HTTP/1.1 400 Bad Request"),
        (refused_target("/a/b"), b"HTTP/1.1 404 Not Found"),
        (too_late(), b"HTTP/1.1 408 Request Timeout"),
        (head_too_large(8192), b"HTTP/1.1 431 Request Header Fields Too Large"),
        (internal("our fault"), b"HTTP/1.1 500 Internal Server Error"),
        (unavailable("the bus"), b"HTTP/1.1 503 Service Unavailable"),
        (server_full(), b"HTTP/1.1 503 Service Unavailable"),
    ],
)
def test_a_refusal_is_json_and_closes_the_connection(refused: Refused, status_line: bytes) -> None:
    answer, _, body = refused.response().partition(HEAD_END)
    first, *headers = answer.split(b"\r\n")
    assert first == status_line
    assert b"Content-Type: application/json" in headers
    assert b"Content-Length: %d" % len(body) in headers
    assert b"Cache-Control: no-store" in headers
    assert b"Cross-Origin-Resource-Policy: same-origin" in headers
    assert b"Connection: close" in headers
    assert json.loads(body) == {"error": refused.code, "message": refused.message}
    assert body == refused.body() and body.endswith(b"\n")


def test_refusals_tell_when_to_retry_and_which_limit_was_exceeded() -> None:
    assert b"\r\nRetry-After: 5\r\n" in server_full().response()
    assert "8192 bytes" in head_too_large(8192).message
    assert str(bad_request("what is wrong")) == "what is wrong"


def test_a_content_length_of_0_is_no_body() -> None:
    assert read_upgrade(read_head(handshake(Content_Length="0"))).key == KEY
