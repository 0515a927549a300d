"""Who may come in with a token, as whom, and what it may do there: JSON Web Tokens (RFC 7519), read strictly.

The claims: ``sub`` and ``nick`` say who it is, ``exp`` and ``nbf`` when the token is good, ``iss`` and ``aud`` whose it
is and for whom, ``jti`` what it is called, ``rooms`` where it may read (``r``) and write (``w``)::

    {"sub": "ann", "exp": 1767225600, "rooms": {"ops": "rw", "news": "r", "team-*": "rw"}}

A name that ends in ``*`` stands for all rooms that begin so; of several that fit the longest counts, and the exact one
before them all. A token without ``rooms`` may do everything everywhere. A claim that is null is refused.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Annotated

import jwt
import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import replace

from chatd.access.keys import Key, fingerprint, read_key_file
from chatd.access.revoked_tokens import RevokedTokens
from chatd.config.tuning import LEEWAY_SECONDS, SUBJECT_LENGTH
from chatd.config.values import BadValue
from chatd.protocol.close_codes import READ_ONLY, TAKEN_OVER, TOKEN_REVOKED, CloseCode
from chatd.protocol.http_head import (
    Refused,
    RequestHead,
    RoomTarget,
    bad_request,
    bearer_of_protocols,
    compose_room,
    forbidden,
    tokens_of_target,
    unavailable,
)
from chatd.protocol.nick import BadNick, as_nick, read_nick

_JWS = jwt.PyJWS()

_When = Annotated[float, Meta(ge=0, le=253_402_300_799)]  # to the end of the year 9999


class _Claims(Struct, frozen=True, gc=False):
    """What a token says, as far as it matters here."""

    sub: Annotated[str, Meta(max_length=SUBJECT_LENGTH)] | UnsetType = UNSET
    nick: str | UnsetType = UNSET
    jti: str | int | UnsetType = UNSET
    exp: _When | UnsetType = UNSET
    nbf: _When | UnsetType = UNSET
    iss: str | UnsetType = UNSET
    aud: str | list[str] | UnsetType = UNSET
    rooms: dict[str, str] | UnsetType = UNSET


_decoder = msgspec.json.Decoder(_Claims)
_RIGHTS = frozenset(("", "r", "w", "rw", "wr"))


@dataclass(frozen=True, slots=True)
class Permissions:
    """What somebody may do, as its token says; without arguments: everything."""

    subject: str = ""
    nick: str = ""
    """The name that others see; empty: whichever it chooses."""
    expires: float | None = None
    """When it ends, in seconds since 1970; None: never."""
    rooms: Mapping[str, str] | None = None
    """What may be done where; None: everything everywhere."""
    anonymous: bool = False
    """Whether it is of a token that names nobody. The nick that its bearer chooses is marked as not proved."""
    id: str = ""
    """What the token is called (``jti``); empty: nothing."""
    key: str = field(default="", compare=False)
    """The fingerprint of the key that has signed the token."""

    @property
    def who(self) -> str:
        """Return whom the token names, a subject or a nick, which are two name spaces; empty: nobody."""
        if self.subject:
            return f"sub\0{self.subject}"
        return f"nick\0{self.nick}" if self.nick else ""

    def may_read(self, room: str) -> bool:
        """Whether it may hear a room, and see who is there and what was said."""
        return self.rooms is None or "r" in self._rights(room)

    def may_write(self, room: str) -> bool:
        """Whether it may speak in a room."""
        return self.rooms is None or "w" in self._rights(room)

    def _rights(self, room: str) -> str:
        rooms = self.rooms or {}
        if room in rooms:
            return rooms[room]
        fitting = [name for name in rooms if name.endswith("*") and room.startswith(name[:-1])]
        return rooms[max(fitting, key=len)] if fitting else ""


EVERYTHING = Permissions()
"""Of those who come in where no tokens are asked for."""


class BadToken(Exception):
    """A token that is not good; its text is one line for whoever brought it, and repeats nothing of it."""


def unauthorized(message: str, *, error: str = "") -> Refused:
    """Refuse who brings no token, or one that is not good (RFC 6750, section 3)."""
    described = message.replace('"', "'")
    challenge = 'Bearer realm="chatd"' + (f', error="{error}", error_description="{described}"' if error else "")
    return Refused(401, "unauthorized", message, (("WWW-Authenticate", challenge),))


def refused_by(close_code: CloseCode) -> Refused:
    """Return the answer to a request that is closed before it was answered."""
    if close_code.code == TOKEN_REVOKED.code:
        return unauthorized(close_code.reason, error="invalid_token")
    return (forbidden if close_code.code == TAKEN_OVER.code else unavailable)(close_code.reason)


def check_readable(permissions: Permissions, room: str) -> None:
    """Let who may read a room go on. Raises Refused: 403."""
    if not permissions.may_read(room):
        raise _insufficient("the token does not let you into this room")


def check_writable(permissions: Permissions, room: str) -> None:
    """Let who may write there go on. Raises Refused: 403."""
    if not permissions.may_write(room):
        raise _insufficient(READ_ONLY.reason)


def scope_resume_key(permissions: Permissions, target: RoomTarget) -> RoomTarget:
    """Give a place whose resume key is of one subject: who comes with another's key has not come back as the other."""
    if not (permissions.who and target.resume):
        return target
    own = sha256(f"{permissions.who} {target.resume}".encode()).hexdigest()  # no key has a space,
    return replace(target, resume=f"={own}")  # nor an equals sign: who is nobody in particular can't bring this one


def _insufficient(message: str) -> Refused:
    challenge = f'Bearer realm="chatd", error="insufficient_scope", error_description="{message}"'
    return Refused(403, "forbidden", message, (("WWW-Authenticate", challenge),))


class TokenVerifier:
    """Knows good tokens, by keys that may be replaced at any time."""

    def __init__(
        self,
        paths: Sequence[str],
        issuer: str = "",
        audience: str = "",
        revoked: str = "",
        *,
        require: Sequence[str] = (),
    ) -> None:
        """Take the files with the keys, and whose and for whom tokens must be; empty: that does not matter.

        Revoked is the file that lists tokens which are refused; empty: there is none. Require names the claims
        (``exp``, ``rooms``, ``sub``) without which a token is refused.
        """
        self.revoked = RevokedTokens(revoked)
        """Tokens that are refused although their keys are good."""
        self._paths = paths
        self._keys: list[tuple[str, Key]] = []  # each with its fingerprint
        self._issuer = issuer
        self._audience = audience
        self._require = require

    def read(self) -> None:
        """Read the keys. Raises BadValue, one line that names the file; the keys are then those that were read last."""
        keys = [key for path in self._paths for key in read_key_file(path)]
        self._keys = [(fingerprint(key.material), key) for key in keys]

    def authenticate(self, head: RequestHead, now: float) -> Permissions:
        """Give what the bearer of a request's token may do, at that time.

        Raises Refused: 401, 400 for several, or 503 where the keys or the list of revoked tokens could not be read yet.
        """
        if not self._keys:
            raise unavailable("this server has no keys by which it could know a token; its log says why")
        if not self.revoked.good:
            raise unavailable("this server could not read its list of revoked tokens; its log says why")
        token = find_token(head)
        if not token:
            raise unauthorized("this server asks for a token")
        try:
            return self.check(token, now)
        except BadToken as bad:
            raise unauthorized(str(bad), error="invalid_token") from None

    def check(self, token: str, now: float) -> Permissions:
        """Give what the bearer of a token may do; now is in seconds since 1970. Raises BadToken."""
        payload, key = self._payload(token)
        claims = _read_claims(payload)
        for name in self._require:
            if getattr(claims, name) in (UNSET, ""):
                raise BadToken(f"the token has no {name}, which this server requires")
        if claims.exp is not UNSET and now >= claims.exp:
            raise BadToken("the token has run out")
        if claims.nbf is not UNSET and now < claims.nbf - LEEWAY_SECONDS:
            raise BadToken("the token is not good yet")
        if self._issuer and claims.iss != self._issuer:
            raise BadToken("the token is from another issuer")
        audience = [claims.aud] if isinstance(claims.aud, str) else claims.aud or []
        if not (self._audience in audience if self._audience else claims.aud is UNSET):
            raise BadToken("the token is for another audience")  # RFC 7519, section 4.1.3
        permissions = _permissions(claims, key)
        if self.revoked.has(permissions.subject, permissions.id):
            raise BadToken(TOKEN_REVOKED.reason)
        return permissions

    def still_takes(self, permissions: Permissions) -> bool:
        """Return whether the key of a token is still one of ours, and the token is not revoked."""
        known = any(permissions.key == key for key, _ in self._keys)
        return known and not self.revoked.has(permissions.subject, permissions.id)

    def _payload(self, token: str) -> tuple[bytes, str]:
        """Give what a token says, and the fingerprint of the key that has signed it. Raises BadToken."""
        try:
            header = _JWS.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise BadToken("that is no token: it must be a JSON Web Token") from error
        named, algorithm = header.get("kid"), header.get("alg")
        for name, key in self._keys:
            if algorithm not in key.algorithms or not _named_so(key, named):
                continue
            try:
                payload: bytes = _JWS.decode(token, key.material, algorithms=list(key.algorithms))
            except (jwt.PyJWTError, ValueError, TypeError):
                continue
            return payload, name
        raise BadToken("the token is signed by nobody whom this server knows")


def _named_so(key: Key, named: object) -> bool:
    """Whether a key may be the one that a token names; either may have no name."""
    return named is None or not key.id or key.id == named


def find_token(head: RequestHead) -> str:
    """Give the token that a request carries, empty where it has none. Raises Refused: 400, where it has several.

    From ``Authorization: Bearer``, the parameter ``token``, or the subprotocol ``bearer.…`` (RFC 6750, section 2).
    """
    found = [*tokens_of_target(head.target), bearer_of_protocols(head.headers.get("sec-websocket-protocol"))]
    scheme, _, credentials = head.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        found.append(credentials.strip())
    tokens = {each for each in found if each}
    if len(tokens) > 1:
        raise bad_request("there are several tokens; one is enough")
    return tokens.pop() if tokens else ""


def _read_claims(payload: bytes) -> _Claims:
    try:
        return _decoder.decode(payload)
    except (ValueError, RecursionError) as error:
        raise BadToken(_complaint(error)) from None


def _complaint(error: Exception) -> str:
    """Say which claim is wrong and what is accepted, without its value: ``exp, in the token: expected float``."""
    found = re.fullmatch(r"Expected (.*?)(, got `[a-z]+`)? - at `\$\.(\w+).*`", str(error))
    if found is None:
        return "the claims of the token are not what they must be"
    return f"{found[3]}, in the token: expected {found[1]}{found[2] or ''}".replace("`", "")


def _permissions(claims: _Claims, key: str = "") -> Permissions:
    nick = _nick(claims)
    expires = None if claims.exp is UNSET else claims.exp
    token_id = "" if claims.jti is UNSET else str(claims.jti)
    return Permissions(claims.sub or "", nick, expires, _rooms(claims), anonymous=not nick, id=token_id, key=key)


def _nick(claims: _Claims) -> str:
    """Return the nick that a token says: its ``nick``, else one for its ``sub``; empty if it names nobody."""
    if claims.nick is UNSET:
        return as_nick(claims.sub or "")
    try:
        return read_nick(claims.nick)
    except BadNick as bad:
        raise BadToken(f"nick, in the token: {bad}") from None


def _rooms(claims: _Claims) -> Mapping[str, str] | None:
    """Give what may be done where, the names as those of rooms are (NFC): else what is forbidden in one is not."""
    if claims.rooms is UNSET:
        return None
    if not _RIGHTS.issuperset(claims.rooms.values()):
        raise BadToken("rooms, in the token: each must have r, w, rw or nothing")
    rooms: dict[str, str] = {}
    for name, rights in claims.rooms.items():
        try:
            composed = compose_room(name)
        except Refused:  # no room is called that
            continue
        if composed in rooms:
            raise BadToken("rooms, in the token: two names are one")
        rooms[composed] = rights
    return rooms


def mint(key: Key, claims: Mapping[str, object], algorithm: str = "") -> str:
    """Make a token that says this, signed with a key. Raises BadValue, where the algorithm is not one of the key's.

    Or where no server would take the token.
    """
    if algorithm and algorithm not in key.algorithms:
        raise BadValue(f"must be {' or '.join(key.algorithms)} with this key, not {algorithm!r}")
    try:
        payload = msgspec.json.encode(claims)
        _permissions(_read_claims(payload))
    except UnicodeEncodeError:
        raise BadValue("what a token says must be UTF-8") from None
    except BadToken as bad:
        raise BadValue(str(bad)) from None
    headers = {"kid": key.id} if key.id else None
    return _JWS.encode(payload, key.material, algorithm or key.algorithms[0], headers)
