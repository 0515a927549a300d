import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.config.broker_url import BrokerAddress, broker_address
from chatd.config.values import BadValue
from tests.rows import rows


def refusal(url: str) -> str:
    with pytest.raises(BadValue) as caught:
        broker_address(url)
    return str(caught.value)


@rows(
    ("url", "address"),
    [
        ("redis://broker", BrokerAddress(host="broker")),
        ("redis://broker/", BrokerAddress(host="broker")),
        ("redis://broker:6380/3", BrokerAddress(host="broker", port=6380, database=3)),
        ("redis://broker/0", BrokerAddress(host="broker", database=0)),
        ("redis://192.0.2.7", BrokerAddress(host="192.0.2.7")),
        ("redis://[2001:db8::7]:6380", BrokerAddress(host="2001:db8::7", port=6380)),
        ("redis://ann:secret@broker", BrokerAddress(host="broker", user="ann", password="secret")),
        ("redis://:secret@broker", BrokerAddress(host="broker", password="secret")),
        ("redis://:a%40b%2Fc%3A@broker", BrokerAddress(host="broker", password="a@b/c:")),
        ("redis://a%3Ab:x@broker", BrokerAddress(host="broker", user="a:b", password="x")),
        ("rediss://broker", BrokerAddress(host="broker", tls=True)),
        ("REDISS://broker:7000/1", BrokerAddress(host="broker", port=7000, database=1, tls=True)),
        (
            "redis+sentinel://one,two:7000,[2001:db8::7],[::1]:7001/chat",
            BrokerAddress(
                sentinels=(("one", 26379), ("two", 7000), ("2001:db8::7", 26379), ("::1", 7001)), service="chat"
            ),
        ),
        (
            "rediss+sentinel://ann:a%2Fb@one:7000/chat.2/3",
            BrokerAddress(
                sentinels=(("one", 7000),), service="chat.2", user="ann", password="a/b", database=3, tls=True
            ),
        ),
        ("unix:///run/valkey.sock", BrokerAddress(path="/run/valkey.sock")),
        ("unix:///run/a%20b.sock", BrokerAddress(path="/run/a b.sock")),
    ],
)
def test_a_broker_url_is_read(url: str, address: BrokerAddress) -> None:
    assert broker_address(url) == address


@rows(
    "url",
    [
        *("", "broker", "broker:6379", "redis:broker", "redis://", "redis:///3", "redis://:6379"),
        *("redis://ann:secret@", "http://broker", "redis://broker:port", "redis://broker:0", "redis://broker:65536"),
        *("redis://broker:-1", "redis://broker/db", "redis://broker/-1", "redis://broker/1/2"),
        *("redis://broker/123456", "redis://broker/٣", "redis://bro ker", "redis://bro\nker", "redis://broker\n"),
        *("redis://broker?db=3", "redis://broker#3", "redis://[2001:db8::7", "unix://run/valkey.sock"),
        *("unix:run/valkey.sock", "unix://", "unix:///run/valkey.sock?db=3", "redis+sentinel://one,two"),
        *("redis+sentinel://one,two/", "redis+sentinel://one,two/3/chat", "redis+sentinel://one,,two/chat"),
        *("redis+sentinel:///chat", "redis+sentinel://one:0/chat", "redis+sentinel://one:x/chat"),
        *("redis+sentinel://a@b@one/chat", "redis+sentinel://one/chat?x=1", "redis+sentinel://one/ch at"),
        "unix+sentinel://one/chat",
    ],
)
def test_a_bad_broker_url_is_refused_with_one_line_that_shows_the_form(url: str) -> None:
    form = r"use redis://.+, rediss://… or unix:///path, or redis\+sentinel://[^\n]*"
    assert re.fullmatch(f"not the URL of a Redis server; {form}", refusal(url))


@rows(
    "url",
    [
        *("redis://:hunter2@broker/db", "redis://:hunter2@broker?x", "redis://ann:hunter2"),
        *("redis://ann:hunter2/x@broker", "redis://ann:7/hunter2@broker", "redis://:hunter2#@broker"),
        *("redis://:hunter2@broker:0", "redis://:hunter2@[broker", "redis+sentinel://:hunter2@one,two"),
        *("redis+sentinel://ann:hunter2@@one/chat", "http://ann:hunter2@broker", "hunter2"),
    ],
)
def test_a_refusal_never_repeats_a_password(url: str) -> None:
    assert "hunter2" not in refusal(url)


@rows(
    ("url", "name"),
    [
        ("redis://ann:secret@broker", "redis://broker:6379/0"),
        ("rediss://:secret@broker:7000/3", "rediss://broker:7000/3"),
        ("redis://[2001:db8::7]", "redis://[2001:db8::7]:6379/0"),
        ("unix:///run/valkey.sock", "unix:///run/valkey.sock"),
        ("redis+sentinel://a:b@one,[::1]:7/chat", "redis+sentinel://one:26379,[::1]:7/chat/0"),
        ("rediss+sentinel://one/chat/3", "rediss+sentinel://one:26379/chat/3"),
    ],
)
def test_a_broker_is_named_without_its_password(url: str, name: str) -> None:
    assert str(broker_address(url)) == name


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.text(st.characters(exclude_categories=["Cs"])))
def test_any_user_and_password_can_be_given_in_a_url(user: str, password: str) -> None:
    address = broker_address(f"redis://{quote(user, safe='')}:{quote(password, safe='')}@broker")
    assert (address.user, address.password) == (user, password or None)


@given(st.text())
def test_any_text_is_a_broker_or_refused(text: str) -> None:
    for url in (text, f"redis://{text}", f"unix:///{text}", f"redis+sentinel://{text}", f"redis+sentinel://a,{text}/b"):
        try:
            assert str(broker_address(url)).startswith(("redis://", "rediss://", "unix:///", "redis+sentinel://"))
        except BadValue:
            continue
