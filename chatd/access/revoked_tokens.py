"""The revocation list: subjects and token ids in a file whose tokens are refused, although their keys are valid.

Each line has one entry: ``sub NAME`` refuses all tokens of a subject, ``jti ID`` one token. A ``#`` begins a comment at
the beginning of a line or after white space. A value with white space at its ends, or with `` #`` in it, is written as
a JSON string: ``sub "ann #2"``.
"""

import re
from json import JSONDecoder

from chatd.access.list_file import read_list
from chatd.config.values import BadValue

_ENTRY = re.compile(r"(sub|jti)[ \t]+(?=\S)(.*)")
_COMMENT = re.compile(r"(?:^|\s)#.*")
_json = JSONDecoder()


class RevokedTokens:
    """The list, which may be read again at any time."""

    def __init__(self, path: str) -> None:
        """Store the path of the file; empty: no token is on the list."""
        self._path = path
        self._entries: frozenset[tuple[str, str]] = frozenset()
        self.good = not path
        """Whether it has ever been read."""

    def read(self) -> None:
        """Read the file. Raise BadValue, one line that names it; the list is then the one that was read last."""
        lines = read_list("--auth-revoked", self._path).split("\n")
        found = set()
        for number, line in enumerate(lines, 1):
            if _COMMENT.sub("", line).strip():
                try:
                    found.add(_read(line.strip()))
                except ValueError as error:
                    why = "must be: sub NAME, or jti ID"
                    raise BadValue(
                        f"--auth-revoked {self._path}, line {number}: {why}, not {line.strip()!r}"
                    ) from error
        self._entries, self.good = frozenset(found), True

    def has(self, subject: str, token_id: str) -> bool:
        """Return whether the list names the subject of a token, or the token."""
        return ("sub", subject) in self._entries or ("jti", token_id) in self._entries


def _read(line: str) -> tuple[str, str]:
    """Read one entry. Raise ValueError."""
    entry = _ENTRY.fullmatch(line)
    if entry is None:
        raise ValueError(line)
    value: object = _COMMENT.sub("", entry[2]).strip()
    if entry[2].startswith('"'):
        value, end = _json.raw_decode(entry[2])
        if _COMMENT.sub("", entry[2][end:]).strip():
            raise ValueError(line)
    if not value:
        raise ValueError(line)
    return entry[1], str(value)
