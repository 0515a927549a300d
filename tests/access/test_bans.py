"""The list of banned addresses."""

from pathlib import Path

import pytest

from chatd.access.bans import BanList
from chatd.config.values import BadValue
from chatd.protocol.http_head import Refused
from tests.rows import rows

LIST = """\
# flooding
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


@rows(
    "address",
    [
        *("192.0.2.7", "::ffff:192.0.2.7", "192.0.2.99", "192.0.2.255", "::ffff:192.0.2.128", "198.51.100.0"),
        *("198.51.100.255", "203.0.113.64", "203.0.113.127", "2001:db8:1::1", "2001:db8:1:ffff::1", "2001:db8:2::1"),
    ],
)
def test_a_banned_address_is_refused(bans: BanList, address: str) -> None:
    assert bans.has(address)
    with pytest.raises(Refused) as caught:
        bans.check(address)
    assert (caught.value.status, caught.value.code) == (403, "banned")
    BanList("").check(address)


@rows(
    "address",
    ["192.0.2.8", "198.51.101.0", "203.0.113.63", "203.0.113.128", "2001:db8:2::2", "2001:db8:3::1", "unix", "", "x"],
)
def test_any_other_address_passes(bans: BanList, address: str) -> None:
    bans.check(address)


@rows(
    "text, line",
    [("192.0.2.7\n300.1.1.1\n", "2: '300.1.1.1'"), ("192.0.2.7/24\n", "1: '192.0.2.7/24'"), ("a b", "1: 'a b'")],
)
def test_a_bad_line_is_reported_and_changes_nothing(path: Path, bans: BanList, text: str, line: str) -> None:
    path.write_text(text)
    with pytest.raises(BadValue) as caught:
        bans.read()
    reason = "is not an address, or a network without host bits such as 198.51.100.0/24"
    assert str(caught.value) == f"--ban-list {path}, line {line} {reason}"
    assert bans.has("2001:db8:2::1")


def test_the_good_lines_of_a_first_list_with_a_bad_line_count(path: Path) -> None:
    path.write_text("\ufeff192.0.2.8\nnonsense\nmore of it\n192.0.2.9\n")
    bans = BanList(str(path))
    with pytest.raises(BadValue, match="line 2: 'nonsense'"):
        bans.read()
    assert [bans.has(f"192.0.2.{last}") for last in (7, 8, 9)] == [False, True, True]


def test_only_a_list_that_can_be_read_replaces_the_old_one(path: Path, bans: BanList) -> None:
    path.unlink()
    with pytest.raises(BadValue, match="No such file"):
        bans.read()
    path.write_bytes(b"\xff")
    with pytest.raises(BadValue, match="not UTF-8"):
        bans.read()
    assert bans.has("192.0.2.7")
    path.write_text("192.0.2.8\n")
    bans.read()
    assert [bans.has(f"192.0.2.{last}") for last in (7, 8)] == [False, True]
