from hypothesis import given
from hypothesis import strategies as st

from chatd.protocol.message import Batch, Message, PresenceEvent
from chatd.protocol.text import (
    BARE,
    HELP,
    NAMED,
    Answer,
    Ask,
    Command,
    Last,
    Rename,
    Say,
    bare,
    closing_notice,
    counted,
    joined,
    left,
    lost,
    missed,
    named,
    not_sent,
    notice,
    pong,
    read_command,
    read_line,
    renamed,
    safe,
    taken,
    text_format,
    utf8_size,
    who,
    you_are,
)
from chatd.protocol.websocket_frames import text_frame
from tests.rows import rows

TEXT = st.text(st.characters(exclude_categories=["Cs"]))

CONTROLS = {*range(0x20), *range(0x7F, 0xA0)} - {ord("\t")}
SEPARATORS = {0x2028, 0x2029}
OVERRIDES = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}
UNSAFE = {chr(each) for each in CONTROLS | SEPARATORS | OVERRIDES}
WILD = st.text(st.one_of(st.sampled_from(sorted(UNSAFE)), st.characters(exclude_categories=["Cs"])))
"""Texts of which most hold what a terminal would obey."""


def message(text: str, nick: str = "", action: bool = False) -> Message:
    return Message(id="s-1", time=0, session="s", text=text, nick=nick, action=action)


def is_safe(text: str) -> bool:
    return UNSAFE.isdisjoint(text)


def answer(line: str) -> str:
    match read_command(line):
        case Answer((only,)):
            return only
        case other:
            raise AssertionError(f"{other} is no answer of one line")


@rows(
    ("text", "line"),
    [
        *(("hello\n", "hello"), ("hello\r\n", "hello"), ("hello", "hello"), ("", ""), ("\n", ""), ("\r\n", "")),
        *(("a\n\n", "a\n"), ("a\r\n\r\n", "a\r\n"), ("a\n\r\n", "a\n"), ("a\r\r\n", "a\r"), ("a\r", "a\r")),
        *(("\r", "\r"), ("\na", "\na"), ("a\nb", "a\nb"), (" a \t\n", " a \t"), ("a\x0b\n", "a\x0b")),
        ("a\u2028\n", "a\u2028"),
        *((text, text) for text in ("007", "1_000", "1.50", "null", '{"type":"publish"}', "/help", "\x1b[31m", "\0")),
    ],
)
def test_one_line_end_is_dropped_and_nothing_else(text: str, line: str) -> None:
    assert read_line(text) == line


def batch(*messages: Message) -> Batch:
    return Batch("ops", "e", 1, "w", 1, messages)


@given(TEXT)
def test_any_line_comes_out_as_it_went_in(text: str) -> None:
    assert read_line(f"{text}\r\n") == text


@given(TEXT)
def test_a_size_is_that_of_the_utf_8(text: str) -> None:
    assert utf8_size(text) == len(text.encode())


@given(TEXT)
def test_a_bare_client_sees_a_message_as_it_is(text: str) -> None:
    assert bare(message(text)) == text
    assert BARE.frames([batch(message(text))]) == [text_frame(text.encode())]


@rows(
    ("said", "line"),
    [
        (message("hello"), "hello"),
        (message("hello", "ann"), "ann: hello"),
        (message("waves", "ann", action=True), "* ann waves"),
        (message("waves", action=True), "waves"),
    ],
)
def test_a_message_shows_its_author_where_that_has_a_nick(said: Message, line: str) -> None:
    assert bare(said) == named(said) == line


@rows(
    "text",
    [
        *("* ann left", "ann: I agree", ": hello", "*\tann left", "ann:\thello", "ann*2: hello", "Error: no space"),
        *("* ", "\uff0a ann left", "*\xa0ann left", "\u2217 ann left", "\u200b* ann left", "*\u3164ann left"),
        *("ann\uff1a hello", "a\u200bnn: hello", "ann\ua789 hello", "\u0430nn: hello", "\u2060" * 500 + "ann: hello"),
        *("n" * 32 + ": hello", "日本: hello", "*\u200b x"),
        *(
            *(" * one", "  ann: lead", "\xa0* ann left", "\u2800* ann left", "\u200b \u2800\u200bann: hello"),
            "\t日本: hello",
        ),
        *(" " * 40 + "ann: hello", "\u3164" * 40 + "ann: hello"),
    ],
)
def test_a_pipe_speaks_neither_as_the_server_nor_as_somebody_with_a_nick(text: str) -> None:
    assert named(message(text)) == f": {safe(text)}"
    assert bare(message(text)) == text


@rows(
    "text",
    [
        *("hello", "*hello*", "**", "http://x", "12:30", "a b: c", "  a b: c", " *one", "/me waves", "é* x"),
        "n" * 33 + ": x",
    ],
)
def test_what_else_it_says_is_shown_as_it_is(text: str) -> None:
    assert named(message(text)) == text


@rows("nick", ["ann", "日本"])
def test_what_somebody_with_a_nick_says_stands_behind_the_nick(nick: str) -> None:
    assert named(message("* bob left", nick)) == f"{nick}: * bob left"


def test_a_bare_client_gets_the_text_of_a_named_one_as_it_is() -> None:
    assert bare(message("a\x1b[31m\n\u202e", "ann")) == "ann: a\x1b[31m\n\u202e"


def test_a_named_client_gets_each_message_safe_in_one_frame() -> None:
    shown = NAMED.frames([batch(message("\x1b[2J", "ann"), message("å\n"))])
    assert shown == [text_frame(rb"ann: \x1b[2J"), text_frame(r"å\x0a".encode())]


@rows(
    ("text", "shown"),
    [
        *(("\x1b[31mred", r"\x1b[31mred"), ("a\nb\r", r"a\x0ab\x0d"), ("\0\x7f", r"\x00\x7f"), ("\x9b2J", r"\x9b2J")),
        *(("å\x1b", r"å\x1b"), ("\u202eå", r"\u202eå"), ("\u2066", r"\u2066"), ("a\tb", "a\tb")),
        *((r"C:\new \x1b", r"C:\new \x1b"), ("שלום 👩\u200d🚀", "שלום 👩\u200d🚀")),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: str, shown: str) -> None:
    assert safe(text) == shown


def test_of_all_characters_only_those_of_the_contract_are_escaped() -> None:
    assert {each for each in map(chr, range(0x110000)) if safe(each) != each} == UNSAFE


@given(WILD, WILD, st.booleans())
def test_nothing_unsafe_comes_out_for_a_named_client(text: str, nick: str, action: bool) -> None:
    assert is_safe(named(message(text, nick, action)))


@given(TEXT)
def test_a_text_without_anything_unsafe_is_unchanged(text: str) -> None:
    kept = "".join(each for each in text if each not in UNSAFE)
    assert safe(kept) == kept


def test_a_format_gives_each_message_a_frame_in_their_order() -> None:
    loud = text_format(lambda each: each.text.upper(), frame=lambda payload: b"<" + payload + b">")
    shown = loud.frames([batch(message("one"), message("å")), batch(message("two"))])
    assert shown == [b"<ONE>", "<Å>".encode(), b"<TWO>"]
    assert loud.frames([]) == []


@rows(
    ("change", "line"),
    [
        (PresenceEvent("join", "s", "ann", ""), b"* ann joined"),
        (PresenceEvent("leave", "s", "ann", ""), b"* ann left"),
        (PresenceEvent("nick", "s", "anna", "ann"), b"* ann is now anna"),
        (PresenceEvent("nick", "s", "ann", ""), b"* ann joined"),
    ],
)
def test_a_named_client_is_told_who_comes_and_goes_and_a_bare_one_is_not(change: PresenceEvent, line: bytes) -> None:
    assert NAMED.change("ops", change) == text_frame(line)
    assert BARE.change("ops", change) == b""


def test_nobody_is_told_of_one_without_a_nick() -> None:
    assert NAMED.change("ops", PresenceEvent("join", "s", "", "")) == b""


def test_the_deflated_format_shows_the_same() -> None:
    assert NAMED.deflated.change("ops", PresenceEvent("join", "s", "ann", "")) == text_frame(b"* ann joined")
    assert NAMED.deflated.deflated is NAMED.deflated


# What the server says


@rows(
    ("line", "shown"),
    [
        *((joined("ann"), "* ann joined"), (left("ann"), "* ann left")),
        (renamed("ann", "anna"), "* ann is now anna"),
        (taken("ann", "ann*2"), "* ann is taken, you are ann*2"),
        *((you_are("ann"), "* you are ann"), (missed(12), "* 12 lines missed"), (missed(1), "* 1 line missed")),
        *((lost(3), "* 3 lines lost"), (lost(1), "* 1 line lost")),
        (lost(None), "* some lines may be lost"),
        (not_sent("too fast", 2), "* not sent: too fast, try again in 2 s"),
        (not_sent("too fast", 1.2), "* not sent: too fast, try again in 2 s"),
        (not_sent("too fast", 0), "* not sent: too fast, try again in 1 s"),
        (not_sent("too long"), "* not sent: too long"),
        (closing_notice("the server stops"), "* closing: the server stops"),
        (pong(0.00321), "* pong after 3.2 ms"),
        (counted(812), "* 812 members are here"),
        *((counted(1), "* 1 member is here"), (notice("hello"), "* hello")),
    ],
)
def test_a_notice_reads_as_the_contract_has_it(line: str, shown: str) -> None:
    assert line == shown


@rows(
    ("nicks", "bare_count", "line"),
    [
        (["ann"], 0, "* here: ann"),
        (["bob", "ann"], 0, "* here: ann, bob"),
        (["bob", "ann"], 2, "* here: ann, bob and 2 without a nick"),
        (["ann"], 1, "* here: ann and 1 without a nick"),
        ([], 3, "* here: 3 without a nick"),
        ([], 0, "* here: nobody"),
    ],
)
def test_who_names_all_in_order_and_counts_the_nameless(nicks: list[str], bare_count: int, line: str) -> None:
    assert who(nicks, bare_count) == line


def test_who_orders_names_whatever_their_case() -> None:
    assert who(["bob", "Carl", "Ann"], 0) == "* here: Ann, bob, Carl"


@given(WILD, WILD)
def test_no_notice_holds_anything_unsafe_that_was_typed(one: str, other: str) -> None:
    shown = [joined(one), left(one), renamed(one, other), taken(one, other), you_are(one)]
    shown += [notice(one), not_sent(one, 2), closing_notice(one), who([one, other], 1)]
    assert all(each.startswith("* ") and is_safe(each) for each in shown)


# What people type


@rows(
    ("line", "command"),
    [
        *(("/help", Answer(HELP)), ("/who", Ask.WHO), ("/ping", Ask.PING), ("/quit", Ask.QUIT), ("/who \t", Ask.WHO)),
        *(("/nick ann", Rename("ann")), ("/nick  ann ", Rename("ann")), ("/nick a\u030asa", Rename("åsa"))),
        *(("/last", Last(20)), ("/last 5", Last(5))),
        ("/last 999999999999999999", Last(10**18 - 1)),
        ("/me waves", Say("waves", action=True)),
        ("/me  waves  and\nsmiles ", Say("waves  and\nsmiles", action=True)),
        ("/me\twaves", Say("waves", action=True)),
        ("/me /quit", Say("/quit", action=True)),
    ],
)
def test_a_line_with_one_slash_is_a_command(line: str, command: Command) -> None:
    assert read_command(line) == command


@rows(
    ("line", "text"),
    [("hello", "hello"), (" /quit", " /quit"), ("a /quit", "a /quit"), ("//quit", "/quit"), ("///", "//"), ("//", "/")],
)
def test_any_other_line_is_said(line: str, text: str) -> None:
    assert read_command(line) == Say(text)


@rows(
    ("line", "word"),
    [
        *(("/foo", "/foo"), ("/foo bar", "/foo"), ("/", "/"), ("/ who", "/"), ("/WHO", "/WHO"), ("/whom", "/whom")),
        *(("/usr/bin", "/usr/bin"), ("/\x1b[2J", r"/\x1b[2J")),
        ("/" + "é" * 99, "/" + "é" * 31),
    ],
)
def test_a_command_that_does_not_exist_is_told_so(line: str, word: str) -> None:
    assert answer(line) == f"* no such command: {word} (try /help)"


@rows(
    ("line", "usage"),
    [
        *(("/help me", "/help"), ("/who ann", "/who"), ("/ping 1", "/ping"), ("/quit now", "/quit")),
        *(("/nick", "/nick NAME"), ("/nick ", "/nick NAME"), ("/me", "/me TEXT"), ("/me \n", "/me TEXT")),
        *(("/last 0", "/last [N]"), ("/last -1", "/last [N]"), ("/last x", "/last [N]"), ("/last 1 2", "/last [N]")),
        ("/last \u0663", "/last [N]"),
        ("/last " + "9" * 19, "/last [N]"),
    ],
)
def test_an_argument_that_does_not_fit_is_answered_with_the_usage(line: str, usage: str) -> None:
    assert answer(line) == f"* usage: {usage}"


@rows(
    ("line", "told"),
    [
        ("/nick a:b", '* a nick must not hold ":"'),
        ("/nick ann b", "* a nick must not hold white space"),
        ("/nick \x1b", "* a nick must not hold U+001B"),
        ("/nick " + "a" * 33, "* a nick must have 1 to 32 characters"),
    ],
)
def test_a_bad_nick_is_answered_with_what_is_wrong_with_it(line: str, told: str) -> None:
    assert answer(line) == told


def test_help_shows_every_command_in_a_line_of_its_own() -> None:
    shown = [line.removeprefix("* ").partition(":")[0] for line in HELP]
    assert shown == ["/help", "/who", "/nick NAME", "/last [N]", "/me TEXT", "/ping", "/quit", "//TEXT"]
    assert all(line.startswith("* ") and is_safe(line) for line in HELP)


@given(st.sampled_from(["", "/", "//", "/nick ", "/last ", "/me ", "/who "]), WILD)
def test_any_line_is_a_command_whose_answer_is_safe(start: str, text: str) -> None:
    match read_command(start + text):
        case Answer(lines):
            assert lines and all(line.startswith("* ") and is_safe(line) for line in lines)
