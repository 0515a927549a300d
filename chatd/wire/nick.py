"""Nicks: what a client may be called, and which two names are one.

A nick is 1 to 32 characters, normalised to NFC, without white space, ``:`` and ``*``. Nor may it hold what a terminal
does not show, or takes as an order: the categories of Unicode C (controls, overrides of direction, joiners, surrogates,
private, not assigned) and Z, and the letters and marks that are blank or ignored. So whoever sees a nick sees all of
it. A first ``/`` is fine: nobody's nick is ever read as a command.

The server alone gives nicks with a ``*``: ``ann*2`` if ``ann`` is in use, ``auth0_17*bd645e2b31`` for a subject that is
no nick. So no client can choose a nick that the server gives to another.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from hashlib import sha256
from itertools import count
from pathlib import Path

NICK_LENGTH = 32

CONFUSABLES = Path(__file__).with_name("confusables.txt")
"""The characters that look like others; ``docs/confusables.py`` writes it."""

_HASH_LENGTH = 10

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
    """Return a nick for a text. An empty text has an empty nick.

    A text that is a nick as it stands is its own. Any other loses what no nick may hold, and gets 40 bits of a hash at
    its end. Two texts can have one nick: of a million that begin alike two do, with a chance of about a third, and a
    search finds such a pair. In a room the second one then gets a number, as for any nick that is in use.
    """
    shown = unicodedata.normalize("NFC", text[:_DECOMPOSED])
    fitting = "".join(character if _may_hold(character) else "_" for character in shown[:NICK_LENGTH])
    if fitting == text and unicodedata.normalize("NFKC", text) == text:
        return text
    digest = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return _ending(fitting, f"*{digest[:_HASH_LENGTH]}")


def _ending(nick: str, end: str) -> str:
    return nick[: NICK_LENGTH - len(end)] + end


def _may_hold(character: str) -> bool:
    try:
        read_nick(character)
    except BadNick:
        return False
    return True


def candidates(nick: str, *, marked: bool = False) -> Iterator[str]:
    """Yield a nick, then without end what to take if it is in use: ann, ann*2, ann*3, … Long ones lose their ends.

    A marked nick never comes without a number: ann*1, ann*2, ann*3, …
    """
    if not marked:
        yield nick
    for number in count(1 if marked else 2):
        yield _ending(nick, f"*{number}")


def folded(nick: str) -> str:
    """Return what is the same for nicks that differ in case or in compatible characters alone.

    It is to compare, not to show: it may be longer than a nick, and hold what no nick may.
    """
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", nick).casefold())


@lru_cache(maxsize=4096)
def keys(nick: str) -> tuple[str, ...]:
    """Return the keys under which a nick is in use, one or two. Two nicks that share a key are one.

    The first is ``folded``, the second that of the nick's skeleton: nicks that look alike have the same (UTS 39).
    One key could not do both: ``I`` is an ``i`` in another case, and looks like an ``l``.
    """
    skeleton = unicodedata.normalize("NFKD", nick).translate(_prototypes())
    return tuple(dict.fromkeys((folded(nick), folded(skeleton))))


@cache
def _prototypes() -> Mapping[int, str]:
    """Read what each character that looks like others is compared as; when the first nick is compared."""
    found: dict[int, str] = {}
    for line in CONFUSABLES.read_text("ascii").splitlines():
        if not line.startswith("#"):
            prototype, _, sources = line.partition(";")
            text = "".join(chr(int(number, 16)) for number in prototype.split())
            found |= dict.fromkeys((int(number, 16) for number in sources.split()), text)
    return found
