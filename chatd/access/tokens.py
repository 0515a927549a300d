"""Access tokens: who a client is and what it may do. JSON Web Tokens (RFC 7519), parsed strictly.

The claims: ``sub`` and ``nick`` identify the bearer, ``exp`` and ``nbf`` limit the time, ``iss`` and ``aud`` name
issuer and audience, ``jti`` is the id of the token, ``rooms`` has the rooms to read (``r``) and write (``w``)::

    {"sub": "ann", "exp": 1767225600, "rooms": {"ops": "rw", "news": "r", "team-*": "rw"}}

A name that ends in ``*`` matches all rooms with that prefix. The exact name counts first, then the longest match. A
token without ``rooms`` has all rights in all rooms. A claim that is null is refused.
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

LEEWAY_SECONDS = 5.0
"""Maximum time before ``nbf`` at which a token is accepted, because the clock of its issuer may be ahead."""
SUBJECT_LENGTH = 255
"""Maximum characters of ``sub`` (OpenID Connect Core 1.0, section 2), because every message carries it."""

_JWS = jwt.PyJWS()

_When = Annotated[float, Meta(ge=0, le=253_402_300_799)]  # to the end of the year 9999


class _Claims(Struct, frozen=True, gc=False):
    """The claims of a token that are used."""

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
    """The rights that a token gives; without arguments all rights."""

    subject: str = ""
    nick: str = ""
    """The name that others see; empty: whichever it chooses."""
    expires: float | None = None
    """When it ends, in seconds since 1970; None: never."""
    rooms: Mapping[str, str] | None = None
    """The rights by room; None: all rights in all rooms."""
    anonymous: bool = False
    """Whether its token names no one. The nick that the bearer chooses is then marked as not proved."""
    id: str = ""
    """The id of the token (``jti``); empty: none."""
    key: str = field(default="", compare=False)
    """The fingerprint of the key that has signed the token."""

    @property
    def name(self) -> str:
        """The name in the token, of a subject or a nick, which are two name spaces; empty: none."""
        if self.subject:
            return f"sub\0{self.subject}"
        return f"nick\0{self.nick}" if self.nick else ""

    def may_read(self, room: str) -> bool:
        """Return whether the bearer may receive a room's messages, history and members."""
        return self.rooms is None or "r" in self._rights(room)

    def may_write(self, room: str) -> bool:
        """Return whether the bearer may publish in a room."""
        return self.rooms is None or "w" in self._rights(room)

    def _rights(self, room: str) -> str:
        rooms = self.rooms or {}
        if room in rooms:
            return rooms[room]
        fitting = [name for name in rooms if name.endswith("*") and room.startswith(name[:-1])]
        return rooms[max(fitting, key=len)] if fitting else ""


EVERYTHING = Permissions()
"""The permissions of all clients if no tokens are required."""


class BadToken(Exception):
    """A token that is not good; its text is one line for whoever brought it, and repeats nothing of it."""


def unauthorized(message: str, *, error: str = "") -> Refused:
    """Return the error for a missing or invalid token (RFC 6750, section 3)."""
    described = message.replace('"', "'")
    challenge = 'Bearer realm="chatd"' + (f', error="{error}", error_description="{described}"' if error else "")
    return Refused(401, "unauthorized", message, (("WWW-Authenticate", challenge),))


def refused_by(close_code: CloseCode) -> Refused:
    """Return the answer to a request that is closed before it was answered."""
    if close_code.code == TOKEN_REVOKED.code:
        return unauthorized(close_code.reason, error="invalid_token")
    return (forbidden if close_code.code == TAKEN_OVER.code else unavailable)(close_code.reason)


def check_readable(permissions: Permissions, room: str) -> None:
    """Raise Refused (403) for a room that may not be read."""
    if not permissions.may_read(room):
        raise _insufficient("the token does not let you into this room")


def check_writable(permissions: Permissions, room: str) -> None:
    """Raise Refused (403) for a room that may not be written."""
    if not permissions.may_write(room):
        raise _insufficient(READ_ONLY.reason)


def scope_resume_key(permissions: Permissions, target: RoomTarget) -> RoomTarget:
    """Return a target whose resume key holds for the token's subject only: a key is useless to other subjects."""
    if not (permissions.name and target.resume):
        return target
    own = sha256(f"{permissions.name} {target.resume}".encode()).hexdigest()  # no key has a space,
    return replace(target, resume=f"={own}")  # nor an equals sign: a client without a name can't send this one


def _insufficient(message: str) -> Refused:
    challenge = f'Bearer realm="chatd", error="insufficient_scope", error_description="{message}"'
    return Refused(403, "forbidden", message, (("WWW-Authenticate", challenge),))


class TokenVerifier:
    """The verifier of tokens, with keys that may be replaced at any time."""

    def __init__(
        self,
        paths: Sequence[str],
        issuer: str = "",
        audience: str = "",
        revoked: str = "",
        *,
        require: Sequence[str] = (),
    ) -> None:
        """Store the files with the keys, and the required issuer and audience; empty: any.

        Revoked is the file that lists refused tokens; empty: there is none. Require names the claims (``exp``,
        ``rooms``, ``sub``) without which a token is refused.
        """
        self.revoked = RevokedTokens(revoked)
        """Tokens that are refused although their keys are good."""
        self._paths = paths
        self._keys: list[tuple[str, Key]] = []  # each with its fingerprint
        self._issuer = issuer
        self._audience = audience
        self._require = require

    def read(self) -> None:
        """Read the keys. Raise BadValue, one line that names the file; the keys are then those that were read last."""
        keys = [key for path in self._paths for key in read_key_file(path)]
        self._keys = [(fingerprint(key.material), key) for key in keys]

    def authenticate(self, head: RequestHead, now: float) -> Permissions:
        """Return what the bearer of a request's token may do, at that time.

        Raise Refused: 401, 400 for several, or 503 where the keys or the list of revoked tokens could not be read yet.
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
        """Return what the bearer of a token may do; now is in seconds since 1970. Raise BadToken."""
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
        """Return the payload of a token, and the fingerprint of the key that has signed it. Raise BadToken."""
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
    """Return whether a key may be the one that a token names; either may have no name."""
    return named is None or not key.id or key.id == named


def find_token(head: RequestHead) -> str:
    """Return the token that a request carries, empty where it has none. Raise Refused: 400, where it has several.

    From ``Authorization: Bearer``, the parameter ``token``, or the subprotocol ``bearer.…`` (RFC 6750, section 2).
    """
    found = [*tokens_of_target(head.target), bearer_of_protocols(head.headers.get("sec-websocket-protocol"))]
    scheme, _, credentials = head.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        found.append(credentials.strip())
    tokens = {token for token in found if token}
    if len(tokens) > 1:
        raise bad_request("there are several tokens; one is enough")
    return tokens.pop() if tokens else ""


def _read_claims(payload: bytes) -> _Claims:
    try:
        return _decoder.decode(payload)
    except (ValueError, RecursionError) as error:
        raise BadToken(_complaint(error)) from None


def _complaint(error: Exception) -> str:
    """Return which claim is wrong and what is accepted, without its value: ``exp, in the token: expected float``."""
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
    """Return the nick of a token: its ``nick``, else one made of its ``sub``; empty if it has neither."""
    if claims.nick is UNSET:
        return as_nick(claims.sub or "")
    try:
        return read_nick(claims.nick)
    except BadNick as bad:
        raise BadToken(f"nick, in the token: {bad}") from None


def _rooms(claims: _Claims) -> Mapping[str, str] | None:
    """Return what may be done where, the names as those of rooms are (NFC): else what is forbidden in one is not."""
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
    """Return a token with these claims, signed with a key. Raise BadValue for a foreign algorithm.

    Raise it for a token that no server would accept, too.
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
