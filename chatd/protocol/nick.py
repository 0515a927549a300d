"""Nicks: which names are valid, and which two names count as the same.

A nick is 1 to 32 characters, normalised to NFC, without white space, ``:`` and ``*``. Nor may it hold what a terminal
does not show, or takes as an order: the categories of Unicode C (controls, overrides of direction, joiners, surrogates,
private, not assigned) and Z, and the letters and marks that are blank or ignored. So whoever sees a nick sees all of
it. A first ``/`` is fine: nobody's nick is ever read as a command.

The server alone gives nicks with a ``*``: ``ann*2`` if ``ann`` is in use, ``auth0_17*4dorgoidd7b7`` for a subject that
is no nick. So no client can choose a nick that the server gives to another, nor one that looks like it.
"""

import re
import unicodedata
from base64 import b32encode
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from hashlib import sha256
from itertools import count
from pathlib import Path

NICK_LENGTH = 32

CONFUSABLES = Path(__file__).with_name("confusables.txt")
"""The characters that look like others; ``docs/confusables.py`` writes it."""

_HASH_LENGTH = 12
"""Characters of base 32, which are 60 bits: too many to search for another subject's nick."""

_DECOMPOSED = 4 * NICK_LENGTH
"""The most characters that NFC makes a nick of: none decomposes into more than 4."""
_BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Default_Ignorable_Code_Point of Unicode outside the category C, and the Braille pattern without dots."""


_RESERVED = frozenset(":*")
"""Characters that only the server puts beside a nick, or into it."""

_EMPTY = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Characters that look like a space, and are none to Python."""


class BadNick(ValueError):
    """A name that is no nick; its text is one line for whoever typed it, and safe to show."""


def read_nick(text: str) -> str:
    """Read a nick. Raise BadNick."""
    nick = unicodedata.normalize("NFC", text) if len(text) <= _DECOMPOSED else text  # many marks take long
    if not 0 < len(nick) <= NICK_LENGTH:
        raise BadNick(f"a nick must have 1 to {NICK_LENGTH} characters")
    for character in nick:
        if character in _RESERVED:
            raise BadNick(f'a nick must not hold "{character}"')
        if character.isspace():
            raise BadNick("a nick must not hold white space")
        if not shows(character):
            raise BadNick(f"a nick must not hold U+{ord(character):04X}")
        if not character.isascii() and _reserved_like(character):
            raise BadNick(f'a nick must not hold U+{ord(character):04X}, which looks like ":" or "*"')
    return nick


def _reserved_like(character: str) -> str:
    """Return the reserved character that another looks like; empty where it looks like none."""
    return next((reserved for reserved in sorted(_RESERVED) if reserved in "".join(keys(character))), "")


def looks(text: str) -> Iterator[str]:
    """Yield how the characters of a text look: like a space, like one that no nick may hold, or as they are.

    Invisible characters are left out.
    """
    for character in text:
        if character.isspace() or character in _EMPTY:
            yield " "
        elif shows(character):
            yield character if character.isascii() else _reserved_like(character) or character


def shows(character: str) -> bool:
    """Return whether a character is assigned, and is neither a control, nor a format character, nor blank.

    Python decides which characters are assigned: version 3.11 knows Unicode 14.0, version 3.13 knows Unicode 15.1.
    """
    return not (unicodedata.category(character).startswith("C") or _BLANK.match(character))


def as_nick(text: str) -> str:
    """Return a nick for a text. An empty text has an empty nick.

    A valid nick is returned unchanged. Any other text loses the characters that no nick may have, and gets 60 bits of
    a hash at its end. Two texts can have one nick, though hardly by accident. In a room the second one then gets a
    number, as for any nick that is in use.
    """
    shown = unicodedata.normalize("NFC", text[:_DECOMPOSED])
    fitting = "".join(character if _may_hold(character) else "_" for character in shown[:NICK_LENGTH])
    if fitting == text and unicodedata.normalize("NFKC", text) == text:
        return text
    digest = b32encode(sha256(text.encode("utf-8", "surrogatepass")).digest()).decode().lower()
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
    """Yield a nick, then without end the nicks to use if it is in use: ann, ann*2, ann*3, … Long ones are shortened.

    A marked nick always has a number: ann*1, ann*2, ann*3, …
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
    """Return the keys under which a nick is in use, one to three. Two nicks that share a key are one.

    The first is ``folded``. The others are of skeletons: nicks that look alike have the same one (UTS 39). One key
    could not do both: ``I`` is an ``i`` in another case, and looks like an ``l``. The skeletons are those of the nick
    as it is written and of the nick in lower case: a name that looks like ``ADMIN`` is ``admin``, too.
    """
    lower = folded(nick)
    return tuple(dict.fromkeys((lower, folded(_skeleton(nick)), _skeleton(lower))))


def _skeleton(text: str) -> str:
    return unicodedata.normalize("NFKD", text).translate(_prototypes())


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
