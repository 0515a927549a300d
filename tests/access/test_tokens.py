"""Access tokens: which are accepted, and what their owners may do."""

import json
import re
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.access.keys import read_signing_key
from chatd.access.tokens import (
    EVERYTHING,
    BadToken,
    Permissions,
    TokenVerifier,
    check_readable,
    check_writable,
    find_token,
    mint,
    refused_by,
    scope_resume_key,
)
from chatd.config.values import BadValue
from chatd.protocol.close_codes import READ_ONLY, STOPPING, TAKEN_OVER, TOKEN_REVOKED, CloseCode
from chatd.protocol.http_head import Refused, RequestHead, RoomTarget, read_target
from tests.access.issuer import (
    KINDS,
    NOW,
    SECRET,
    encoded,
    jwk,
    part,
    private_pem,
    public_pem,
    signed,
    token,
)
from tests.rows import rows

LATER = NOW + 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


def verifier_of(folder: Path, *keys: bytes, **options: Any) -> TokenVerifier:
    """Return a verifier with these keys."""
    paths = []
    for number, key in enumerate(keys):
        path = folder / f"{number}.key"
        path.write_bytes(key)
        paths.append(str(path))
    token_verifier = TokenVerifier(paths, **options)
    token_verifier.read()
    return token_verifier


@pytest.fixture(scope="module")
def token_verifier(folder: Path) -> TokenVerifier:
    return verifier_of(folder, public_pem("Ed25519"))


def refusal(token_verifier: TokenVerifier, text: str, now: float = NOW) -> str:
    with pytest.raises(BadToken) as caught:
        token_verifier.check(text, now)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused(token_verifier: TokenVerifier, target: str) -> Refused:
    with pytest.raises(Refused) as caught:
        token_verifier.authenticate(RequestHead("GET", target.encode()), NOW)
    return caught.value


FOREIGN = "the token is signed by nobody whom this server knows"
NONE = "that is no token: it must be a JSON Web Token"


# Signatures


@rows("kind, key", [*((kind, public_pem(kind)) for kind in KINDS), ("HS256", SECRET), ("HS384", SECRET)])
def test_a_token_is_verified_with_the_public_key_or_secret(tmp_path: Path, kind: str, key: bytes) -> None:
    permissions = verifier_of(tmp_path, key).check(token(kind, sub="ann", exp=LATER), NOW)
    assert permissions == Permissions("ann", "ann", LATER)


def test_several_keys_are_good_at_once(tmp_path: Path) -> None:
    token_verifier = verifier_of(tmp_path, public_pem("RSA"), public_pem("P-256"), SECRET)
    for text in (token("RSA", "PS384", sub="a"), token("P-256", sub="a"), token("HS256", sub="a")):
        assert token_verifier.check(text, NOW).subject == "a"


def test_a_token_may_name_its_key_of_a_set(tmp_path: Path) -> None:
    keys = {"keys": [jwk("Ed25519", kid="old"), jwk("P-256", kid="new")]}
    token_verifier = verifier_of(tmp_path, json.dumps(keys).encode())
    assert token_verifier.check(token("P-256", headers={"kid": "new"}, sub="a"), NOW).subject == "a"
    assert token_verifier.check(token("P-256", sub="a"), NOW).subject == "a"
    assert refusal(token_verifier, token("P-256", headers={"kid": "old"}, sub="a")) == FOREIGN
    assert refusal(token_verifier, token("P-256", headers={"kid": "other"}, sub="a")) == FOREIGN


def test_keys_are_reloaded_unless_they_are_bad(tmp_path: Path) -> None:
    token_verifier = verifier_of(tmp_path, public_pem("P-256"))
    (tmp_path / "0.key").write_bytes(b"short")
    with pytest.raises(BadValue):
        token_verifier.read()
    assert token_verifier.check(token("P-256", sub="a"), NOW).subject == "a"
    (tmp_path / "0.key").write_bytes(public_pem("Ed25519"))
    token_verifier.read()
    assert token_verifier.check(token("Ed25519", sub="a"), NOW).subject == "a"
    assert refusal(token_verifier, token("P-256", sub="a")) == FOREIGN


# Forged tokens


NOT_SIGNED: list[object] = ["none", "None", "NONE", "nOnE", "", None, "EdDSA", 0, ["EdDSA"], {}]


@rows("header", [{}, *({"alg": name} for name in NOT_SIGNED)])
def test_a_token_without_a_signature_is_refused(token_verifier: TokenVerifier, header: dict[str, Any]) -> None:
    assert refusal(token_verifier, f"{part({'typ': 'JWT'} | header)}.{part({'sub': 'root'})}.") == FOREIGN


@rows("kind", KINDS)
@rows("name", ["HS256", "HS384", "HS512"])
def test_a_public_key_is_never_taken_for_a_secret(tmp_path: Path, kind: str, name: str) -> None:
    pem = public_pem(kind)
    token_verifier = verifier_of(tmp_path, pem)
    hmac = jwt.get_algorithm_by_name(name)
    text = f"{part({'typ': 'JWT', 'alg': name})}.{part({'sub': 'root'})}"
    for secret in (pem, pem.strip(), pem.strip() + b"\n"):
        assert refusal(token_verifier, f"{text}.{encoded(hmac.sign(text.encode(), secret))}") == FOREIGN


def test_another_kind_of_key_is_not_taken_for_this_one(tmp_path: Path) -> None:
    token_verifier = verifier_of(tmp_path, public_pem("P-256"))
    for kind in ("P-384", "RSA", "Ed25519"):
        text = token(kind, sub="root")
        assert refusal(token_verifier, text) == FOREIGN
        assert refusal(token_verifier, ".".join([part({"alg": "ES256"}), *text.split(".")[1:]])) == FOREIGN


def test_a_key_in_the_token_is_ignored(token_verifier: TokenVerifier) -> None:
    for header in ({"jwk": jwk("P-256")}, {"jku": "https://evil.example/keys"}, {"x5u": "https://evil.example/c"}):
        assert refusal(token_verifier, token("P-256", headers=header, sub="root")) == FOREIGN


@rows("headers", [{"crit": ["exp"]}, {"crit": []}, {"b64": False, "crit": ["b64"]}, {"b64": False}])
def test_a_token_with_critical_headers_is_refused(token_verifier: TokenVerifier, headers: dict[str, Any]) -> None:
    assert refusal(token_verifier, signed({"sub": "root"}, **headers)) in (NONE, FOREIGN)


def test_a_changed_token_is_refused(token_verifier: TokenVerifier) -> None:
    head, _, signature = token(sub="ann").split(".")
    assert refusal(token_verifier, f"{head}.{part({'sub': 'root'})}.{signature}") == FOREIGN
    assert refusal(token_verifier, f"{head}.{part({'sub': 'ann'})}.{signature[:-4]}AAAA") == FOREIGN


@rows("text", ["", ".", "..", "...", "a.b", "a.b.c", "é.é.é", "e30.e30.", "bnVsbA.e30.", "\x00"])
def test_text_that_is_no_token_is_refused(token_verifier: TokenVerifier, text: str) -> None:
    assert refusal(token_verifier, text) in (NONE, FOREIGN)


@given(text=st.text() | st.lists(st.binary().map(encoded), min_size=3, max_size=3).map(".".join))
def test_any_text_is_a_token_or_refused(token_verifier: TokenVerifier, text: str) -> None:
    refusal(token_verifier, text)


# Claims


def test_a_token_is_good_until_it_expires(token_verifier: TokenVerifier) -> None:
    made = token(sub="ann", exp=NOW)
    assert token_verifier.check(made, NOW - 0.1).expires == NOW
    assert refusal(token_verifier, made, NOW) == "the token has run out"


def test_a_token_that_is_not_good_yet_is_accepted_within_the_leeway(token_verifier: TokenVerifier) -> None:
    made = token(sub="ann", nbf=NOW)
    assert refusal(token_verifier, made, NOW - 5.1) == "the token is not good yet"
    assert token_verifier.check(made, NOW - 5)
    assert token_verifier.check(token(sub="ann", iat=LATER), NOW)


def test_issuer_and_audience_must_match(tmp_path: Path) -> None:
    token_verifier = verifier_of(tmp_path, public_pem(), issuer="https://id.example.org", audience="chat")
    good: dict[str, Any] = {"iss": "https://id.example.org", "aud": "chat", "sub": "ann"}
    assert token_verifier.check(token(**good), NOW)
    assert token_verifier.check(token(**good | {"aud": ["mail", "chat"]}), NOW)
    for claims in (good | {"iss": "https://evil.example"}, {"sub": "ann"}):
        assert refusal(token_verifier, token(**claims)) == "the token is from another issuer"
    for aud in ("mail", ["mail"], [], "", [""]):
        assert refusal(token_verifier, token(**good | {"aud": aud})) == "the token is for another audience"
    unnamed = verifier_of(tmp_path, public_pem())
    for aud in ("mail", "", [""], []):
        assert refusal(unnamed, token(sub="ann", aud=aud)) == "the token is for another audience"
    assert unnamed.check(token(sub="ann", iss="anybody"), NOW)


@rows(
    ("claims", "why"),
    [
        ({"sub": 7}, "sub, in the token: expected str, got int"),
        ({"sub": "x" * 256}, "sub, in the token: expected str of length <= 255"),
        ({"exp": "tomorrow"}, "exp, in the token: expected float, got str"),
        ({"exp": -1}, "exp, in the token: expected float >= 0.0"),
        ({"exp": 1e300}, "exp, in the token: expected float <= 253402300799.0"),
        ({"exp": True}, "exp, in the token: expected float, got bool"),
        ({"nbf": [1]}, "nbf, in the token: expected float, got array"),
        ({"rooms": "all"}, "rooms, in the token: expected object, got str"),
        ({"rooms": ["ops"]}, "rooms, in the token: expected object, got array"),
        ({"rooms": {"ops": 1}}, "rooms, in the token: expected str, got int"),
        ({"rooms": {"ops": None}}, "rooms, in the token: expected str, got null"),
        ({"nick": 7}, "nick, in the token: expected str, got int"),
        ({"sub": "u-17", "nick": "ann smith"}, "nick, in the token: a nick must not hold white space"),
        ({"rooms": {"cafe\u0301": "", "caf\u00e9": "rw"}}, "rooms, in the token: two names are one"),
        *(
            ({"rooms": {"ops": rights}}, "rooms, in the token: each must have r, w, rw or nothing")
            for rights in ("x", "rwx", "RW", "read", "r w")
        ),
    ],
)
def test_a_claim_that_is_not_what_it_must_be_is_refused_by_its_name(
    token_verifier: TokenVerifier, claims: dict[str, Any], why: str
) -> None:
    assert refusal(token_verifier, signed(claims)) == why


@rows("claim", ["sub", "nick", "exp", "nbf", "iss", "aud", "rooms"])
def test_a_claim_that_is_null_is_not_a_missing_one(token_verifier: TokenVerifier, claim: str) -> None:
    message = refusal(token_verifier, signed({"sub": "ann", claim: None}))
    assert re.fullmatch(f"{claim}, in the token: expected .*, got null", message)


@rows("claim", ["exp", "rooms", "sub"])
def test_a_token_without_a_required_claim_is_refused(tmp_path: Path, claim: str) -> None:
    claims: dict[str, Any] = {"exp": LATER, "rooms": {"ops": "rw"}, "sub": "ann"}
    strict, lenient = (verifier_of(tmp_path, public_pem(), require=names) for names in ((claim,), ()))
    assert strict.check(token(**claims), NOW)
    del claims[claim]
    assert lenient.check(token(**claims), NOW)
    assert refusal(strict, token(**claims)) == f"the token has no {claim}, which this server requires"
    if claim == "sub":
        assert refusal(strict, token(**claims, sub="")) == "the token has no sub, which this server requires"


@rows("payload", [b"", b"[]", b"null", b"\xff", b'{"exp": NaN}', b"[" * 5000])
def test_claims_that_are_none_are_refused(token_verifier: TokenVerifier, payload: bytes) -> None:
    assert refusal(token_verifier, signed(payload)) == "the claims of the token are not what they must be"


@rows(
    ("claims", "nick"),
    [
        *(({"sub": "ann"}, "ann"), ({"sub": "u-17", "nick": "ann"}, "ann"), ({}, ""), ({"sub": ""}, "")),
        *(({"sub": "user:17"}, "user_17*4c6sidifomni"), ({"sub": "ann smith\n"}, "ann_smith_*df2mfkhzdwy3")),
        ({"sub": "0c8f4a3e-5a0b-4f6c-9a77-5c2d5b9f1e21"}, "0c8f4a3e-5a0b-4f6c-*4rhuedr76gwt"),
    ],
)
def test_the_nick_or_the_subject_is_the_nick(token_verifier: TokenVerifier, claims: dict[str, Any], nick: str) -> None:
    assert token_verifier.check(token(**claims), NOW).nick == nick


def test_a_token_that_names_nobody_is_anonymous(token_verifier: TokenVerifier) -> None:
    claims: list[dict[str, Any]] = [{}, {"sub": ""}, {"sub": "ann"}, {"nick": "ann"}]
    permissions = [token_verifier.check(token(**names), NOW) for names in claims]
    assert [permission.anonymous for permission in permissions] == [True, True, False, False]
    assert not EVERYTHING.anonymous


def test_a_nick_that_a_token_says_is_not_the_subject_of_that_name(token_verifier: TokenVerifier) -> None:
    subject, nick = token_verifier.check(token(sub="carl"), NOW), token_verifier.check(token(nick="carl"), NOW)
    assert (subject.nick, nick.nick) == ("carl", "carl")
    assert subject.name != nick.name
    place = read_target(b"/ops?resume=a-key-of-mine")
    assert scope_resume_key(subject, place) != scope_resume_key(nick, place)


ROOMS = {"ops": "rw", "news": "r", "drop": "w", "team-*": "rw", "team-a-*": "r", "team-a-1": "", "*": "r", "all*": "wr"}


@rows(
    ("room", "rights"),
    [
        *(("ops", "rw"), ("news", "r"), ("drop", "w"), ("team-b", "rw"), ("team-", "rw"), ("team-a-2", "r")),
        *(("team-a-1", ""), ("team", "r"), ("lobby", "r"), ("all", "rw"), ("OPS", "r")),
    ],
)
def test_the_exact_name_counts_then_the_longest_that_fits(
    token_verifier: TokenVerifier, room: str, rights: str
) -> None:
    permissions = token_verifier.check(token(sub="ann", rooms=ROOMS), NOW)
    assert (permissions.may_read(room), permissions.may_write(room)) == ("r" in rights, "w" in rights)


@rows(
    "claims, rights",
    [
        ({}, (True, True)),
        *(({"rooms": rooms}, (False, False)) for rooms in ({}, {"ops": "rw"}, {"op*s": "rw"}, {"lobb": "rw"})),
        ({"rooms": {"lobby\u200b": "rw", "lobby": "r"}}, (True, False)),  # a name that earlier versions allowed
    ],
)
def test_without_a_rooms_claim_all_rooms_are_allowed_and_with_one_only_those(
    token_verifier: TokenVerifier, claims: dict[str, Any], rights: tuple[bool, bool]
) -> None:
    permissions = token_verifier.check(token(sub="ann", **claims), NOW)
    assert (permissions.may_read("lobby"), permissions.may_write("lobby")) == rights


def test_room_names_of_a_token_are_normalised(token_verifier: TokenVerifier) -> None:
    rooms = {"*": "rw", "cafe\u0301": "", "the\u0301-*": "r", "x" * 300: "rw"}
    permissions = token_verifier.check(token(sub="ann", rooms=rooms), NOW)
    assert (permissions.may_read("caf\u00e9"), permissions.may_read("cafe")) == (False, True)
    assert (permissions.may_read("th\u00e9-vert"), permissions.may_write("th\u00e9-vert")) == (True, False)


def test_a_missing_right_is_403() -> None:
    permissions = Permissions(rooms={"ops": "w", "news": "r"})
    check_writable(permissions, "ops")
    check_readable(permissions, "news")
    for check, room, message in (
        (check_readable, "ops", "the token does not let you into this room"),
        (check_writable, "news", READ_ONLY.reason),
    ):
        with pytest.raises(Refused) as caught:
            check(permissions, room)
        assert (caught.value.status, caught.value.code, caught.value.message) == (403, "forbidden", message)
        challenge = f'Bearer realm="chatd", error="insufficient_scope", error_description="{message}"'
        assert caught.value.headers == (("WWW-Authenticate", challenge),)
    check_readable(EVERYTHING, "ops")
    check_writable(EVERYTHING, "ops")


@rows(
    ("close_code", "status", "code", "headers"),
    [
        (
            TOKEN_REVOKED,
            401,
            "unauthorized",
            (
                (
                    "WWW-Authenticate",
                    'Bearer realm="chatd", error="invalid_token", error_description="the token was revoked"',
                ),
            ),
        ),
        (TAKEN_OVER, 403, "forbidden", ()),
        (STOPPING, 503, "unavailable", (("Retry-After", "5"),)),
    ],
)
def test_a_request_that_is_closed_before_its_answer_is_told_why(
    close_code: CloseCode, status: int, code: str, headers: tuple[tuple[str, str], ...]
) -> None:
    answer = refused_by(close_code)
    assert (answer.status, answer.code, answer.message) == (status, code, close_code.reason)
    assert answer.headers == headers


def test_a_resume_key_is_of_one_subject() -> None:
    place = RoomTarget("ops", resume="0123456789", last=3)
    owners = (Permissions("ann"), Permissions("ben"), Permissions(nick="ann ben"))
    ann, ben, nick = (scope_resume_key(permissions, place) for permissions in owners)
    assert len({target.resume for target in (ann, ben, nick, place)}) == 4
    assert scope_resume_key(Permissions("ann", expires=1), place) == ann
    assert (ann.room, ann.last) == ("ops", 3)
    assert scope_resume_key(EVERYTHING, place) == place
    with pytest.raises(Refused):
        read_target(b"/ops?resume=" + ann.resume.encode())  # who is nobody in particular can't be ann either
    assert scope_resume_key(Permissions("ann"), RoomTarget("ops")) == RoomTarget("ops"), "without a key nothing is kept"


# Where a request has its token


@rows(
    ("target", "headers"),
    [
        *((b"/ops?token=a.b.c", {}), (b"/ops?nick=ann&token=a%2Eb.c", {})),
        *((b"/ops", {"authorization": "Bearer a.b.c"}), (b"/ops", {"authorization": "bearer  a.b.c "})),
        (b"/ops", {"sec-websocket-protocol": "chatd.v1, bearer.a.b.c"}),
        (b"/ops", {"sec-websocket-protocol": "bearer.a.b.c,chatd.v1"}),
        (b"/ops?token=a.b.c", {"authorization": "Bearer a.b.c"}),
        (b"/ops?token=a.b.c", {"authorization": "Basic xyz"}),
    ],
)
def test_a_token_is_found(target: bytes, headers: dict[str, str]) -> None:
    assert find_token(RequestHead("GET", target, headers)) == "a.b.c"


@rows("headers", [{}, {"authorization": "Basic a.b.c"}, {"authorization": "Bearer"}])
def test_a_request_may_have_no_token(headers: dict[str, str]) -> None:
    assert find_token(RequestHead("GET", b"/ops?token=", headers)) == ""


@rows(
    ("target", "headers"),
    [
        (b"/ops?token=a.b.c", {"authorization": "Bearer d.e.f"}),
        (b"/ops?token=a.b.c&nick=ann&%74oken=d.e.f", {}),
        (b"/ops", {"sec-websocket-protocol": "bearer.a.b.c, bearer.d.e.f"}),
        (b"/ops?token=a.b.c", {"sec-websocket-protocol": "bearer.d.e.f"}),
    ],
)
def test_several_tokens_are_refused(target: bytes, headers: dict[str, str]) -> None:
    with pytest.raises(Refused) as caught:
        find_token(RequestHead("GET", target, headers))
    assert (caught.value.status, caught.value.message) == (400, "there are several tokens; one is enough")


def test_a_missing_or_bad_token_is_401_with_a_challenge(token_verifier: TokenVerifier) -> None:
    none, bad = refused(token_verifier, "/ops"), refused(token_verifier, f"/ops?token={token(nick='a:b')}")
    assert (none.status, none.code, none.message) == (401, "unauthorized", "this server asks for a token")
    assert none.headers == (("WWW-Authenticate", 'Bearer realm="chatd"'),)
    description = "error_description=\"nick, in the token: a nick must not hold ':'\""
    assert dict(bad.headers) == {"WWW-Authenticate": f'Bearer realm="chatd", error="invalid_token", {description}'}
    assert bad.message == 'nick, in the token: a nick must not hold ":"'
    assert refused(token_verifier, f"/ops?token={token(exp=NOW)}").message == "the token has run out"


def test_without_a_readable_key_a_token_is_503(tmp_path: Path) -> None:
    token_verifier = TokenVerifier([str(tmp_path / "gone")])
    with pytest.raises(BadValue):
        token_verifier.read()
    unavailable = refused(token_verifier, f"/ops?token={token(sub='ann')}")
    assert (unavailable.status, unavailable.headers) == (503, (("Retry-After", "5"),))
    assert unavailable.message == "this server has no keys by which it could know a token; its log says why"


# Revoked tokens


def test_a_token_stays_good_while_its_key_is_loaded(tmp_path: Path) -> None:
    token_verifier = verifier_of(tmp_path, public_pem("Ed25519"), public_pem("P-256"))
    ann, ben = (token_verifier.check(token(kind, sub="x"), NOW) for kind in ("Ed25519", "P-256"))
    assert token_verifier.still_takes(ann) and token_verifier.still_takes(ben)
    (tmp_path / "0.key").write_text(json.dumps({"keys": [jwk("P-256", kid="new name")]}))
    (tmp_path / "1.key").write_bytes(public_pem("RSA"))
    token_verifier.read()
    assert not token_verifier.still_takes(ann)
    assert token_verifier.still_takes(ben), "its key is the same in another file, form and name"


def test_a_revoked_subject_or_token_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "revoked"
    path.write_text("")
    token_verifier = verifier_of(tmp_path, public_pem(), revoked=str(path))
    token_verifier.revoked.read()
    texts = [token(sub="ann"), token(sub="ben", jti="t1"), token(jti=7)]
    granted = [token_verifier.check(text, NOW) for text in texts]
    assert [token_verifier.still_takes(permissions) for permissions in granted] == [True] * 3
    path.write_text("sub ann\njti t1\njti 7\n")
    token_verifier.revoked.read()
    assert [token_verifier.still_takes(permissions) for permissions in granted] == [False] * 3
    for text in [token(sub="ann", jti="new"), *texts]:
        assert refusal(token_verifier, text) == "the token was revoked"
    assert token_verifier.still_takes(token_verifier.check(token(sub="ben", jti="t2"), NOW))


def test_without_a_readable_list_of_revoked_tokens_a_token_is_503(tmp_path: Path) -> None:
    token_verifier = verifier_of(tmp_path, public_pem(), revoked=str(tmp_path / "gone"))
    unavailable = refused(token_verifier, f"/ops?token={token(sub='ann')}")
    assert (unavailable.status, unavailable.code) == (503, "unavailable")
    assert unavailable.message == "this server could not read its list of revoked tokens; its log says why"
    (tmp_path / "gone").write_text("")
    token_verifier.revoked.read()
    token_verifier.authenticate(RequestHead("GET", f"/ops?token={token(sub='ann')}".encode()), NOW)


# Minting


@rows("kind", KINDS)
def test_a_minted_token_is_accepted(tmp_path: Path, kind: str) -> None:
    made = mint(read_signing_key(private_pem(kind)), {"sub": "ann", "exp": LATER, "rooms": {"ops": "rw"}})
    assert verifier_of(tmp_path, public_pem(kind)).check(made, NOW) == Permissions("ann", "ann", LATER, {"ops": "rw"})


def test_a_token_is_minted_with_the_requested_algorithm(tmp_path: Path) -> None:
    key = read_signing_key(SECRET)
    made = mint(key, {"sub": "ann"}, "HS384")
    assert jwt.get_unverified_header(made)["alg"] == "HS384"
    assert verifier_of(tmp_path, SECRET).check(made, NOW)
    with pytest.raises(BadValue, match="must be HS256 or HS384 with this key"):
        mint(key, {"sub": "ann"}, "RS256")
