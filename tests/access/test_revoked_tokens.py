"""Tokens that are refused although their keys are good."""

from pathlib import Path

import pytest

from chatd.access.revoked_tokens import RevokedTokens
from chatd.config.values import BadValue
from tests.rows import rows

LIST = """\
# former users
sub ann
sub  auth0|a#1   # a hash in a name is no comment
\tsub\tben baker\t# two words\r
#sub commented

jti 7f3c-9
jti 42
sub "quoted # name " # and a comment
sub "\\u2028"
sub sub
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "revoked"
    path.write_text(LIST, newline="")
    return path


@pytest.fixture
def revoked(path: Path) -> RevokedTokens:
    revoked = RevokedTokens(str(path))
    revoked.read()
    return revoked


@rows(
    "subject, token_id",
    [
        *(
            (name, id)
            for name in ("ann", "auth0|a#1", "ben baker", "quoted # name ", "\u2028", "sub")
            for id in ("", "x")
        ),
        *((name, id) for name in ("", "zoe") for id in ("7f3c-9", "42")),
    ],
)
def test_a_listed_token_and_all_tokens_of_a_listed_subject_are_revoked(
    revoked: RevokedTokens, subject: str, token_id: str
) -> None:
    assert revoked.has(subject, token_id)


@rows(
    "subject, token_id",
    [
        *(("", ""), ("Ann", ""), ("anna", ""), ("auth0|a", ""), ("ben", ""), ("commented", ""), ("quoted", "")),
        *(("7f3c-9", ""), ("zoe", "ann"), ("zoe", "7f3c"), ("zoe", "")),
    ],
)
def test_no_other_token_is_revoked(revoked: RevokedTokens, subject: str, token_id: str) -> None:
    assert not revoked.has(subject, token_id)


def test_without_a_file_nothing_is_revoked_and_the_list_is_good() -> None:
    assert RevokedTokens("").good
    assert not RevokedTokens("").has("", "")


@rows(
    "line",
    ["ann", "sub", "sub ", "jti # nothing", "SUB ann", "sub: ann", 'sub "ann', 'sub "ann" baker', 'sub ""', "subann"],
)
def test_a_bad_line_is_named_and_what_was_read_before_stays(path: Path, revoked: RevokedTokens, line: str) -> None:
    path.write_text(f"sub carl\n{line}\n")
    with pytest.raises(BadValue) as caught:
        revoked.read()
    assert str(caught.value) == f"--auth-revoked {path}, line 2: must be: sub NAME, or jti ID, not {line.strip()!r}"
    assert revoked.has("ann", "")
    assert not revoked.has("carl", "")


def test_a_file_that_cannot_be_read_is_named_and_the_list_is_not_good(tmp_path: Path) -> None:
    revoked = RevokedTokens(str(tmp_path / "gone"))
    with pytest.raises(BadValue, match=r"^--auth-revoked .*/gone: No such file or directory$"):
        revoked.read()
    assert not revoked.good
    (tmp_path / "gone").write_bytes(b"sub \xff\n")
    with pytest.raises(BadValue, match=r"^--auth-revoked .*/gone: not UTF-8$"):
        revoked.read()
    assert not revoked.good


def test_a_token_that_is_removed_from_the_list_is_good_again(path: Path, revoked: RevokedTokens) -> None:
    path.write_text("sub ben\n")
    revoked.read()
    assert not revoked.has("ann", "")
    assert revoked.has("ben", "")
