"""Nicks: what a client may be called, and which two names are one.

A nick is 1 to 32 characters, normalised to NFC, without white space, ``:`` and ``*``. Nor may it hold what a terminal
does not show, or takes as an order: the categories of Unicode C (controls, overrides of direction, joiners, surrogates,
private, not assigned) and Z, and the letters and marks that are blank or ignored. So whoever sees a nick sees all of
it. A first ``/`` is fine: nobody's nick is ever read as a command.
"""

import re
import unicodedata
from collections.abc import Iterator
from itertools import count

NICK_LENGTH = 32

_DECOMPOSED = 4 * NICK_LENGTH
"""The most characters that NFC makes a nick of: none decomposes into more than 4."""
_BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""What Unicode calls Default_Ignorable_Code_Point outside the category C, and the Braille pattern without dots."""


class BadNick(ValueError):
    """A name that is no nick; its text is one line for whoever typed it, and safe to show."""


def read_nick(text: str) -> str:
    """Read a nick. Raises BadNick."""
    nick = unicodedata.normalize("NFC", text) if len(text) <= _DECOMPOSED else text  # many marks take long
    if not 0 < len(nick) <= NICK_LENGTH:
        raise BadNick(f"a nick must have 1 to {NICK_LENGTH} characters")
    for each in nick:
        if each in ":*":
            raise BadNick(f'a nick must not hold "{each}"')
        if each.isspace():
            raise BadNick("a nick must not hold white space")
        if not shows(each):
            raise BadNick(f"a nick must not hold U+{ord(each):04X}")
    return nick


def shows(character: str) -> bool:
    """Return whether a character is assigned, and is neither a control, nor a format character, nor blank.

    Python decides which characters are assigned: version 3.11 knows Unicode 14.0, version 3.13 knows Unicode 15.1.
    """
    return not (unicodedata.category(character).startswith("C") or _BLANK.match(character))


def as_nick(text: str) -> str:
    """Give a nick that is like a text: what none may hold becomes ``_``, what is too long is cut. Empty stays empty."""
    shown = unicodedata.normalize("NFC", text[:_DECOMPOSED])
    return "".join(each if _may_hold(each) else "_" for each in shown[:NICK_LENGTH])


def _may_hold(character: str) -> bool:
    try:
        read_nick(character)
    except BadNick:
        return False
    return True


def candidates(nick: str) -> Iterator[str]:
    """Give a nick, then without end what to take where it is in use: ann, ann2, ann3, … Long ones lose their ends."""
    yield nick
    for number in map(str, count(2)):
        yield nick[: NICK_LENGTH - len(number)] + number


def folded(nick: str) -> str:
    """Give the key under which a nick is in use: two that differ in case or in compatible characters alone are one.

    It is to compare, not to show: it may be longer than a nick, and hold what no nick may.
    """
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", nick).casefold())
