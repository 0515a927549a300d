"""The accounts themselves: each kind of loss is found, and named."""

import pytest

from tests.system.accounting import Account, Life, Stay, account


def log(*lines: str, worker: str = "w1") -> list[str]:
    """Give chat log lines; one with ``!`` and an outcome is the second line of the one before."""
    written: list[str] = []
    for line in lines:
        id = f"{worker}.1.{len([each for each in written if ' ! ' not in each])}"
        if line.startswith("! "):
            written.append(f"T lobby ! {id.removesuffix(id[-1])}{int(id[-1]) - 1} {line[2:]}")
        else:
            written.append(f"T lobby -@127.0.0.1 {id} {line}")
    return written


def life(name: str, *stays: Stay, key: str = "", late: bool = False) -> Life:
    return Life(name, key=key, late=late, stays=list(stays))


def stay(lines: str, code: int | None = None) -> Stay:
    """Give a connection with lines: ``abc`` are ``s a``, ``s b``, ``s c``."""
    return Stay([f"s {each}" for each in lines], code)


def said(lines: str, code: int = 1000) -> list[Life]:
    return [life("sender", stay(lines, code))]


ALL = log("s a", "s b", "s c", "s d")


def test_what_is_in_order_is_counted() -> None:
    members = [life("m1", stay("abcd")), life("m2", stay("ab", 1006), stay("bcd"), key="k" * 8)]
    assert account([ALL], said("abcd"), members) == Account(said=4, logged=4, heard=9, again=1)


@pytest.mark.parametrize(
    ("members", "wrong"),
    [
        ([life("m2", stay("abd"))], "m2 did not hear: 's c'"),
        ([life("m2", stay("ab"))], "m2 did not hear: 2 lines, 's c' to 's d'"),
        ([life("m2", stay("bcd"))], "m2 did not hear: 's a'"),
        ([life("m2", stay("abbcd"))], "m2 heard more than once: 's b'"),
        ([life("m2", stay("acbd"))], "m2 heard 's c' before 's b', and others the other way round"),
        ([life("m2", stay("ab", 1006), stay("d"), key="k" * 8)], "m2 did not hear: 's c'"),
        ([life("m2", stay("abc", 1006), stay("bd"), key="k" * 8)], "m2 got the lines that it got again"),
        ([life("m2", stay("ab", 1006), stay("c"))], "m2 (connection 2) did not hear: 's d'"),
        ([life("m2", stay("ac", 1006), stay("d"))], "m2 (connection 1) did not hear: 's b'"),
        ([life("m2", stay("bd"), late=True)], "m2 (connection 1) did not hear: 's c'"),
    ],
)
def test_a_member_that_heard_something_else_is_named(members: list[Life], wrong: str) -> None:
    found = account([ALL], said("abcd"), [life("m1", stay("abcd")), *members])
    assert found.wrong
    assert found.wrong[0].startswith(wrong)


def test_one_that_came_late_or_left_need_not_hear_the_rest() -> None:
    members = [
        life("m1", stay("abcd")),
        life("m2", stay("bc", 1000), late=True),
        life("m3", stay("a", 1006), stay("d")),
    ]
    assert account([ALL], said("abcd"), members).wrong == []


@pytest.mark.parametrize(
    ("lines", "code", "wrong"),
    [
        ("abcde", 1000, "not logged, though the connection was not closed on sender: 's e'"),
        ("abxcd", 1013, "not logged, though later lines of that connection are: 's x'"),
        ("abc", 1000, "logged, but never said: 's d'"),
        ("abdc", 1000, "sender said 's d' before 's c', and it was heard behind it"),
    ],
)
def test_a_line_that_was_said_and_is_not_as_it_should_be_is_named(lines: str, code: int, wrong: str) -> None:
    assert account([ALL], said(lines, code), [life("m1", stay("abcd"))]).wrong == [wrong]


def test_what_was_said_last_on_a_connection_that_was_closed_may_be_refused() -> None:
    found = account([ALL], [life("sender", stay("abxy", 1013), stay("cd", 1000))], [life("m1", stay("abcd"))])
    assert (found.wrong, found.refused) == ([], 2)


@pytest.mark.parametrize(
    ("logs", "wrong"),
    [
        ([ALL, log("s a", worker="w2")], "'s a' is in the logs twice"),
        ([log("s a", "s b", "s c")], "heard, but not logged: 's d'"),
        ([log("s a", "s b", "! refused", "s c", "s d")], "heard, though the log says that it was not published: 's b'"),
        (
            [log("s a", "s x", "s b", "s c", "s d")],
            "logged and not heard, though 's b' of the same worker was: 's x'",
        ),
    ],
)
def test_a_log_that_is_not_what_was_heard_is_named(logs: list[list[str]], wrong: str) -> None:
    found = account(logs, [life("sender", stay("axbcd", 1013))], [life("m1", stay("abcd"))])
    assert wrong in found.wrong


def test_what_nobody_heard_is_refused_unknown_or_in_doubt() -> None:
    logs = [log("s a", "s x", "! refused", "s y", "! unknown", "s b"), log("s z", worker="w2")]
    found = account(logs, [life("sender", stay("axyb", 1011), stay("z", 1006))], [life("m1", stay("ab"))])
    assert (found.wrong, found.refused, found.doubtful) == ([], 1, {"w2": 1})
