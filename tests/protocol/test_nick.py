import time
import unicodedata
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.protocol.nick import BadNick, as_nick, candidates, folded, keys, read_nick
from tests.depth import code_points
from tests.rows import rows

BLANK = {
    0x034F,
    0x115F,
    0x1160,
    0x17B4,
    0x17B5,
    *range(0x180B, 0x180E),
    0x180F,
    0x2800,
    0x3164,
    *range(0xFE00, 0xFE10),
    0xFFA0,
    *range(0xE0100, 0xE01F0),
}

SHOWN = st.characters(categories=["L", "M", "N", "P", "S"], exclude_characters=[":", "*", *map(chr, BLANK)])
NICKS = st.text(SHOWN, min_size=1).map(lambda text: unicodedata.normalize("NFC", text)[:32])


def fault(text: str) -> str:
    with pytest.raises(BadNick) as caught:
        read_nick(text)
    return str(caught.value)


@rows("nick", ["a", "ann", "a" * 32, "😀" * 32, "Åsa", "王", "@#$/\\-", "/who", "42", "משה"])
def test_a_good_nick_is_taken_as_it_is(nick: str) -> None:
    assert read_nick(nick) == nick


@rows(("text", "nick"), [("a\u030asa", "åsa"), ("e\u0301" * 32, "é" * 32), ("\u03b1\u0313\u0300\u0345" * 32, "ᾂ" * 32)])
def test_a_nick_is_normalised_to_nfc_before_it_is_measured(text: str, nick: str) -> None:
    assert read_nick(text) == nick


@rows("text", ["", "a" * 33, "é" * 33, "e\u0301" * 33, "\u0958" * 17, "a" * 1000])
def test_a_nick_has_1_to_32_characters(text: str) -> None:
    assert fault(text) == "a nick must have 1 to 32 characters"


@rows("character", [":", "*"])
def test_what_marks_a_line_of_a_nick_is_refused(character: str) -> None:
    assert fault(f"a{character}") == f'a nick must not hold "{character}"'


@rows("space", [" ", "\t", "\n", "\x85", "\xa0", "\u2028", "\u2029", "\u3000"])
def test_white_space_is_refused(space: str) -> None:
    for text in (space, f"a{space}", f"{space}a", f"a{space}b"):
        assert fault(text) == "a nick must not hold white space"


@rows(
    "character",
    ["\0", "\x1b", "\x7f", "\x9b", "\xad", "\u061c", "\u200d", "\u202e", "\u2066", "\ud800", "\ue000", "\uffff"],
)
def test_what_a_terminal_obeys_or_does_not_show_is_refused_by_its_number(character: str) -> None:
    for text in (character, f"a{character}", f"{character}a"):
        assert fault(text) == f"a nick must not hold U+{ord(character):04X}"


RESEMBLE = {
    *(0x02D0, 0x02F8, 0x0589, 0x05C3, 0x066D, 0x0703, 0x0704, 0x0903, 0x0A83, 0x16EC, 0x1803, 0x1809, 0x204E, 0x205A),
    *(0x2217, 0x2236, 0x29F4, 0x2A74, 0xA4FD, 0xA789, 0xFE13, 0xFE55, 0xFE61, 0xFF0A, 0xFF1A, 0x1031F, 0x10781),
}
"""What looks like ``:`` or ``*``, or is that in another form: a nick with it could pass for one of the server's."""


def test_what_looks_like_a_number_of_the_server_is_refused() -> None:
    assert fault("ann\u22172") == 'a nick must not hold U+2217, which looks like ":" or "*"'


def test_of_all_characters_only_those_of_the_rules_are_refused() -> None:
    for each in code_points():
        character = chr(each)
        normal = unicodedata.normalize("NFC", character)
        bad = character in ":*" or unicodedata.category(character)[0] in "CZ" or each in BLANK | RESEMBLE
        try:
            assert read_nick(character) == normal and not bad
        except BadNick:
            assert bad


def test_a_text_full_of_marks_is_refused_at_once() -> None:
    text = "a" + "\u0301" * 50_000 + "\u0327" * 50_000
    start = time.process_time()
    fault(text)
    assert time.process_time() - start < 0.5


@given(st.text())
def test_any_text_is_a_nick_that_stays_as_it_is_or_refused_in_one_line_that_can_be_shown(text: str) -> None:
    try:
        nick = read_nick(text)
    except BadNick as bad:
        assert str(bad).startswith("a nick must ") and str(bad).isprintable()
    else:
        assert read_nick(nick) == nick and nick.isprintable()


def test_a_nick_in_use_gets_a_number() -> None:
    assert list(islice(candidates("ann"), 4)) == ["ann", "ann*2", "ann*3", "ann*4"]


def test_a_long_nick_in_use_loses_its_end_to_the_number() -> None:
    first, *others = islice(candidates("a" * 31 + "b"), 11)
    assert first == "a" * 31 + "b"
    assert (others[0], others[-1]) == ("a" * 30 + "*2", "a" * 29 + "*11")


@given(NICKS)
def test_every_candidate_is_another_one_and_no_client_can_ask_for_it(nick: str) -> None:
    first, *found = islice(candidates(nick), 12)
    assert first == nick
    assert len(set(found)) == len(found)
    for candidate in found:
        assert len(candidate) <= 32
        assert fault(candidate) == 'a nick must not hold "*"'


def test_a_marked_nick_never_comes_without_a_number() -> None:
    assert list(islice(candidates("ann", marked=True), 3)) == ["ann*1", "ann*2", "ann*3"]


WIDE_BOSS = "\uff22\uff2f\uff33\uff33"
SUBJECTS = ["a:b", "a*b", "a b", "a_b", f"auth0|{'a' * 40}1", f"auth0|{'a' * 40}2", "BOSS", WIDE_BOSS, "\u2460", "1"]


def test_texts_that_are_no_nicks_become_nicks_that_differ() -> None:
    found = [as_nick(subject) for subject in SUBJECTS]
    assert len(set(found)) == len(found)
    assert all(len(nick) <= 32 for nick in found)
    assert found[:4] == ["a_b*m6b2ghvl62gm", "a_b*cxvqu6jfawyz", "a_b*zbuhucfklvxn", "a_b"]
    assert found[6:8] == ["BOSS", f"{WIDE_BOSS}*cbzmxnlynbxa"]


def test_texts_whose_hashes_begin_alike_become_nicks_that_differ() -> None:
    one, other = (as_nick(f"auth0|{'a' * 26}{number}") for number in (1115, 1448))
    assert one[:-8] == other[:-8]
    assert one != other


@given(st.text())
def test_a_text_becomes_itself_where_it_is_a_nick_and_else_one_that_no_client_can_ask_for(text: str) -> None:
    nick = as_nick(text)
    if nick and nick != text:
        assert fault(nick) == 'a nick must not hold "*"' and len(nick) <= 32
    else:
        assert nick == text


@rows(
    ("one", "other"),
    [("Ann", "ann"), ("STRASSE", "straße"), ("ann", "\uff41\uff4e\uff4e"), ("ΣΑΣ", "σας"), ("ﬁn", "FIN")],
)
def test_nicks_that_differ_in_case_or_form_alone_are_one(one: str, other: str) -> None:
    assert folded(one) == folded(other)


@rows(("one", "other"), [("ann", "anna"), ("ann", "ånn"), ("ann", "ann*2")])
def test_other_nicks_are_two(one: str, other: str) -> None:
    assert folded(one) != folded(other)


def are_one(one: str, other: str) -> bool:
    return bool(set(keys(one)) & set(keys(other)))


@rows(
    ("one", "other"),
    [
        ("ann", "Ann"),
        ("ann", "\u0430nn"),  # Cyrillic
        ("ANN", "\u0391NN"),  # Greek
        ("admin", "\u0410DMIN"),  # Cyrillic A: it looks like the same in capitals
        ("bot", "\u0412\u041e\u0422"),  # Cyrillic capitals
        ("Tom", "Torn"),
        ("zoe", "z0e"),
        ("BOSS", "B0SS"),
        ("paypal", "paypaI"),
        ("paypal", "paypa1"),
        ("bill", "biII"),
        ("ann", "\uff41\uff4e\uff4e"),
        ("ian", "Ian"),
    ],
)
def test_nicks_that_look_alike_are_one(one: str, other: str) -> None:
    assert are_one(one, other)


@rows(
    ("one", "other"),
    [
        *(("ann", "anna"), ("ann", "\u00e5nn"), ("ann", "ann*2"), ("ali", "all"), ("ian", "lan"), ("nan", "van")),
        ("a", "b"),
    ],
)
def test_nicks_that_only_resemble_each_other_are_two(one: str, other: str) -> None:
    assert not are_one(one, other)


@given(NICKS)
def test_a_nick_has_one_to_three_keys_and_shares_one_with_itself_in_any_case(nick: str) -> None:
    assert 1 <= len(keys(nick)) <= 3
    assert are_one(nick, nick.casefold())


@given(NICKS)
def test_a_folded_nick_folds_to_itself(nick: str) -> None:
    assert folded(folded(nick)) == folded(nick)
