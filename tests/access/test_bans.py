"""Who may not come in at all."""

from pathlib import Path

import pytest

from chatd.access.bans import BanList
from chatd.config.values import BadValue
from chatd.protocol.http_head import Refused

LIST = """\
# who floods
192.0.2.7
198.51.100.0/24   # all of it
2001:db8:1::/48

203.0.113.64/26
2001:db8:2::1
::ffff:192.0.2.99
::ffff:192.0.2.128/121
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "bans"
    path.write_text(LIST)
    return path


@pytest.fixture
def bans(path: Path) -> BanList:
    bans = BanList(str(path))
    bans.read()
    return bans


@pytest.mark.parametrize(
    "address",
    [
        "192.0.2.7",
        "::ffff:192.0.2.7",
        "192.0.2.99",
        "192.0.2.255",
        "::ffff:192.0.2.128",
        "198.51.100.0",
        "198.51.100.255",
        "203.0.113.64",
        "203.0.113.127",
        "2001:db8:1::1",
        "2001:db8:1:ffff::1",
        "2001:db8:2::1",
    ],
)
def test_who_is_on_the_list_does_not_come_in(bans: BanList, address: str) -> None:
    assert bans.has(address)
    with pytest.raises(Refused) as caught:
        bans.check(address)
    assert (caught.value.status, caught.value.code) == (403, "banned")


@pytest.mark.parametrize(
    "address",
    ["192.0.2.8", "198.51.101.0", "203.0.113.63", "203.0.113.128", "2001:db8:2::2", "2001:db8:3::1", "unix", "", "x"],
)
def test_who_is_not_comes_in(bans: BanList, address: str) -> None:
    bans.check(address)


def test_without_a_list_everybody_comes_in() -> None:
    BanList("").check("192.0.2.7")


NONE = "is no address, and no network that begins where it says (198.51.100.0/24)"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("192.0.2.7\n300.1.1.1\n", f"line 2: '300.1.1.1' {NONE}"),
        ("192.0.2.7/24\n", f"line 1: '192.0.2.7/24' {NONE}"),
        ("a b", f"line 1: 'a b' {NONE}"),
    ],
)
def test_a_bad_line_is_told_and_changes_nothing(path: Path, bans: BanList, text: str, why: str) -> None:
    path.write_text(text)
    with pytest.raises(BadValue) as caught:
        bans.read()
    assert str(caught.value) == f"--ban-list {path}, {why}"
    assert bans.has("2001:db8:2::1")


def test_of_a_list_with_a_bad_line_the_others_count_where_there_was_none_before(path: Path) -> None:
    path.write_text("\ufeff192.0.2.8\nnonsense\nmore of it\n192.0.2.9\n")
    bans = BanList(str(path))
    with pytest.raises(BadValue, match="line 2: 'nonsense'"):
        bans.read()
    assert [bans.has(f"192.0.2.{last}") for last in (7, 8, 9)] == [False, True, True]


def test_a_list_that_is_gone_changes_nothing(path: Path, bans: BanList) -> None:
    path.unlink()
    with pytest.raises(BadValue, match="No such file"):
        bans.read()
    path.write_bytes(b"\xff")
    with pytest.raises(BadValue, match="not UTF-8"):
        bans.read()
    assert bans.has("192.0.2.7")


def test_a_new_list_takes_the_place_of_the_old_one(path: Path, bans: BanList) -> None:
    path.write_text("192.0.2.8\n")
    bans.read()
    assert not bans.has("192.0.2.7")
    assert bans.has("192.0.2.8")
