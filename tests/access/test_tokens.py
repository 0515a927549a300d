"""Tokens: who is let in, who is not, and what whoever is may do."""

import json
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
    scope_resume_key,
)
from chatd.config.values import BadValue
from chatd.protocol.http_head import Refused, RequestHead, RoomTarget, read_target
from tests.access.issuer import (
    KINDS,
    NOW,
    SECRET,
    encoded,
    jwk,
    part,
    private_key,
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


def guard_of(folder: Path, *keys: bytes, **options: Any) -> TokenVerifier:
    """Make who knows tokens by these keys."""
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
    return guard_of(folder, public_pem("Ed25519"))


def refusal(token_verifier: TokenVerifier, text: str, now: float = NOW) -> str:
    with pytest.raises(BadToken) as caught:
        token_verifier.check(text, now)
    assert "\n" not in str(caught.value)
    return str(caught.value)


FOREIGN = "the token is signed by nobody whom this server knows"
NONE = "that is no token: it must be a JSON Web Token"


# Who signs


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_is_known_by_the_public_key(tmp_path: Path, kind: str) -> None:
    token_verifier = guard_of(tmp_path, public_pem(kind))
    assert token_verifier.check(token(kind, sub="ann", exp=LATER), NOW) == Permissions("ann", "ann", LATER)


@pytest.mark.parametrize("kind", ["HS256", "HS384"])
def test_a_token_is_known_by_the_secret(tmp_path: Path, kind: str) -> None:
    assert guard_of(tmp_path, SECRET).check(token(kind, sub="ann"), NOW).subject == "ann"


def test_several_keys_are_good_at_once(tmp_path: Path) -> None:
    token_verifier = guard_of(tmp_path, public_pem("RSA"), public_pem("P-256"), SECRET)
    for each in (token("RSA", "PS384", sub="a"), token("P-256", sub="a"), token("HS256", sub="a")):
        assert token_verifier.check(each, NOW).subject == "a"


def test_of_a_set_the_key_counts_that_the_token_names(tmp_path: Path) -> None:
    keys = {"keys": [jwk("Ed25519", kid="old"), jwk("P-256", kid="new")]}
    token_verifier = guard_of(tmp_path, json.dumps(keys).encode())
    assert token_verifier.check(token("P-256", headers={"kid": "new"}, sub="a"), NOW).subject == "a"
    assert token_verifier.check(token("P-256", sub="a"), NOW).subject == "a"
    assert refusal(token_verifier, token("P-256", headers={"kid": "old"}, sub="a")) == FOREIGN
    assert refusal(token_verifier, token("P-256", headers={"kid": "other"}, sub="a")) == FOREIGN


def test_keys_are_replaced_while_it_runs_and_bad_ones_change_nothing(tmp_path: Path) -> None:
    token_verifier = guard_of(tmp_path, public_pem("P-256"))
    (tmp_path / "0.key").write_bytes(b"short")
    with pytest.raises(BadValue):
        token_verifier.read()
    assert token_verifier.check(token("P-256", sub="a"), NOW).subject == "a"
    (tmp_path / "0.key").write_bytes(public_pem("Ed25519"))
    token_verifier.read()
    assert token_verifier.check(token("Ed25519", sub="a"), NOW).subject == "a"
    assert refusal(token_verifier, token("P-256", sub="a")) == FOREIGN


# Who tries to


def forged(header: dict[str, Any], signature: bytes = b"") -> str:
    return f"{part(header)}.{part({'sub': 'root'})}.{encoded(signature)}"


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", "", None, "EdDSA", 0, ["EdDSA"], {}])
def test_a_token_that_nobody_signed_is_refused(token_verifier: TokenVerifier, name: object) -> None:
    assert refusal(token_verifier, forged({"typ": "JWT", "alg": name})) == FOREIGN


def test_a_token_without_an_algorithm_is_refused(token_verifier: TokenVerifier) -> None:
    assert refusal(token_verifier, forged({"typ": "JWT"})) == FOREIGN


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["HS256", "HS384", "HS512"])
def test_a_public_key_is_never_taken_for_a_secret(tmp_path: Path, kind: str, name: str) -> None:
    pem = public_pem(kind)
    token_verifier = guard_of(tmp_path, pem)
    hmac = jwt.get_algorithm_by_name(name)
    said = f"{part({'typ': 'JWT', 'alg': name})}.{part({'sub': 'root'})}"
    for secret in (pem, pem.strip(), pem.strip() + b"\n"):
        signed = f"{said}.{encoded(hmac.sign(said.encode(), secret))}"
        assert refusal(token_verifier, signed) == FOREIGN


def test_another_kind_of_key_is_not_taken_for_this_one(tmp_path: Path) -> None:
    token_verifier = guard_of(tmp_path, public_pem("P-256"))
    for kind, name in (("P-384", "ES384"), ("RSA", "RS256"), ("Ed25519", "EdDSA")):
        assert refusal(token_verifier, token(kind, sub="root")) == FOREIGN
        signed = token(kind, sub="root").split(".")
        assert refusal(token_verifier, ".".join([part({"alg": "ES256"}), *signed[1:]])) == FOREIGN, name


def test_a_key_that_the_token_brings_is_not_taken(token_verifier: TokenVerifier) -> None:
    for header in ({"jwk": jwk("P-256")}, {"jku": "https://evil.example/keys"}, {"x5u": "https://evil.example/c"}):
        assert refusal(token_verifier, token("P-256", headers=header, sub="root")) == FOREIGN


def test_what_a_token_must_be_understood_for_is_not_passed_over(token_verifier: TokenVerifier) -> None:
    headers: list[dict[str, Any]] = [{"crit": ["exp"]}, {"crit": []}, {"b64": False, "crit": ["b64"]}, {"b64": False}]
    for header in headers:
        said = f"{part({'alg': 'EdDSA', **header})}.{part({'sub': 'root'})}"
        signed = f"{said}.{encoded(private_key('Ed25519').sign(said.encode()))}"
        assert refusal(token_verifier, signed) in (NONE, FOREIGN)


def test_what_was_changed_is_refused(token_verifier: TokenVerifier) -> None:
    head, _, signature = token(sub="ann").split(".")
    assert refusal(token_verifier, f"{head}.{part({'sub': 'root'})}.{signature}") == FOREIGN
    assert refusal(token_verifier, f"{head}.{part({'sub': 'ann'})}.{signature[:-4]}AAAA") == FOREIGN


@pytest.mark.parametrize("text", ["", ".", "..", "...", "a.b", "a.b.c", "é.é.é", "e30.e30.", "bnVsbA.e30.", "\x00"])
def test_what_is_no_token_is_refused(token_verifier: TokenVerifier, text: str) -> None:
    assert refusal(token_verifier, text) in (NONE, FOREIGN)


@given(text=st.text() | st.lists(st.binary().map(encoded), min_size=3, max_size=3).map(".".join))
def test_whatever_is_brought_is_a_token_or_refused(token_verifier: TokenVerifier, text: str) -> None:
    refusal(token_verifier, text)


# What it says


def test_a_token_is_good_until_it_runs_out(token_verifier: TokenVerifier) -> None:
    made = token(sub="ann", exp=NOW)
    assert token_verifier.check(made, NOW - 0.1).expires == NOW
    assert refusal(token_verifier, made, NOW) == "the token has run out"


def test_a_token_is_not_good_yet_but_for_clocks_that_differ(token_verifier: TokenVerifier) -> None:
    made = token(sub="ann", nbf=NOW)
    assert refusal(token_verifier, made, NOW - 5.1) == "the token is not good yet"
    assert token_verifier.check(made, NOW - 5)
    assert token_verifier.check(token(sub="ann", iat=LATER), NOW)


def test_whose_it_is_and_for_whom_counts_where_that_is_said(tmp_path: Path) -> None:
    token_verifier = guard_of(tmp_path, public_pem(), issuer="https://id.example.org", audience="chat")
    good: dict[str, Any] = {"iss": "https://id.example.org", "aud": "chat", "sub": "ann"}
    assert token_verifier.check(token(**good), NOW)
    assert token_verifier.check(token(**good | {"aud": ["mail", "chat"]}), NOW)
    assert (
        refusal(token_verifier, token(**good | {"iss": "https://evil.example"})) == "the token is from another issuer"
    )
    for aud in ("mail", ["mail"], [], "", [""]):
        assert refusal(token_verifier, token(**good | {"aud": aud})) == "the token is for another audience"
    assert refusal(token_verifier, token(sub="ann")) == "the token is from another issuer"


def test_a_token_for_somebody_else_is_not_for_a_server_that_has_no_name(token_verifier: TokenVerifier) -> None:
    for aud in ("mail", "", [""], []):
        assert refusal(token_verifier, token(sub="ann", aud=aud)) == "the token is for another audience"
    assert token_verifier.check(token(sub="ann", iss="anybody"), NOW)


@pytest.mark.parametrize(
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
    ],
)
def test_a_claim_that_is_not_what_it_must_be_is_refused_by_its_name(
    token_verifier: TokenVerifier, claims: dict[str, Any], why: str
) -> None:
    assert refusal(token_verifier, signed(claims)) == why


@pytest.mark.parametrize("claim", ["sub", "nick", "exp", "nbf", "iss", "aud", "rooms"])
def test_a_claim_that_is_null_is_refused_and_not_taken_for_one_that_is_left_out(
    token_verifier: TokenVerifier, claim: str
) -> None:
    said = refusal(token_verifier, signed({"sub": "ann", claim: None}))
    assert said.startswith(f"{claim}, in the token: expected ") and said.endswith(", got null")


@pytest.mark.parametrize("claim", ["exp", "rooms", "sub"])
def test_a_token_without_a_claim_that_the_server_requires_is_refused(tmp_path: Path, claim: str) -> None:
    whole: dict[str, Any] = {"exp": LATER, "rooms": {"ops": "rw"}, "sub": "ann"}
    lacking = {name: value for name, value in whole.items() if name != claim}
    key = public_pem()
    assert guard_of(tmp_path, key, require=(claim,)).check(token(**whole), NOW)
    assert guard_of(tmp_path, key).check(token(**lacking), NOW)
    assert refusal(guard_of(tmp_path, key, require=(claim,)), token(**lacking)) == (
        f"the token has no {claim}, which this server requires"
    )


def test_an_empty_subject_is_none_to_a_server_that_requires_one(tmp_path: Path) -> None:
    token_verifier = guard_of(tmp_path, public_pem(), require=("exp", "sub"))
    assert refusal(token_verifier, token(sub="", exp=LATER)) == "the token has no sub, which this server requires"


@pytest.mark.parametrize("payload", [b"", b"[]", b"null", b"\xff", b'{"exp": NaN}', b"[" * 5000])
def test_claims_that_are_none_are_refused(token_verifier: TokenVerifier, payload: bytes) -> None:
    text = f"{part({'alg': 'EdDSA'})}.{encoded(payload)}"
    signed = f"{text}.{encoded(private_key('Ed25519').sign(text.encode()))}"
    assert refusal(token_verifier, signed) == "the claims of the token are not what they must be"


@pytest.mark.parametrize(
    ("claims", "nick"),
    [
        ({"sub": "ann"}, "ann"),
        ({"sub": "u-17", "nick": "ann"}, "ann"),
        ({}, ""),
        ({"sub": ""}, ""),
        ({"sub": "user:17"}, "user_17*4c6sidifomni"),
        ({"sub": "ann smith\n"}, "ann_smith_*df2mfkhzdwy3"),
        ({"sub": "0c8f4a3e-5a0b-4f6c-9a77-5c2d5b9f1e21"}, "0c8f4a3e-5a0b-4f6c-*4rhuedr76gwt"),
    ],
)
def test_who_it_is_is_the_nick(token_verifier: TokenVerifier, claims: dict[str, Any], nick: str) -> None:
    assert token_verifier.check(token(**claims), NOW).nick == nick


def test_a_token_that_names_nobody_is_anonymous(token_verifier: TokenVerifier) -> None:
    claims: list[dict[str, Any]] = [{}, {"sub": ""}, {"sub": "ann"}, {"nick": "ann"}]
    grants = [token_verifier.check(token(**each), NOW) for each in claims]
    assert [each.anonymous for each in grants] == [True, True, False, False]
    assert not EVERYTHING.anonymous


def test_a_nick_that_a_token_says_is_not_the_subject_of_that_name(token_verifier: TokenVerifier) -> None:
    subject, nick = token_verifier.check(token(sub="carl"), NOW), token_verifier.check(token(nick="carl"), NOW)
    assert (subject.nick, nick.nick) == ("carl", "carl")
    assert subject.name != nick.name
    place = read_target(b"/ops?resume=a-key-of-mine")
    assert scope_resume_key(subject, place) != scope_resume_key(nick, place)


def test_a_nick_that_is_none_is_refused(token_verifier: TokenVerifier) -> None:
    said = refusal(token_verifier, token(sub="u-17", nick="ann smith"))
    assert said == "nick, in the token: a nick must not hold white space"


ROOMS = {"ops": "rw", "news": "r", "drop": "w", "team-*": "rw", "team-a-*": "r", "team-a-1": "", "*": "r", "all*": "wr"}


@pytest.mark.parametrize(
    ("room", "rights"),
    [
        ("ops", "rw"),
        ("news", "r"),
        ("drop", "w"),
        ("team-b", "rw"),
        ("team-", "rw"),
        ("team-a-2", "r"),
        ("team-a-1", ""),
        ("team", "r"),
        ("lobby", "r"),
        ("all", "rw"),
        ("OPS", "r"),
    ],
)
def test_the_exact_name_counts_then_the_longest_that_fits(
    token_verifier: TokenVerifier, room: str, rights: str
) -> None:
    permissions = token_verifier.check(token(sub="ann", rooms=ROOMS), NOW)
    assert (permissions.may_read(room), permissions.may_write(room)) == ("r" in rights, "w" in rights)


def test_where_nothing_fits_nothing_may_be_done(token_verifier: TokenVerifier) -> None:
    for rooms in ({}, {"ops": "rw"}, {"op*s": "rw"}, {"lobb": "rw"}):
        permissions = token_verifier.check(token(sub="ann", rooms=rooms), NOW)
        assert not permissions.may_read("lobby")
        assert not permissions.may_write("lobby")


def test_a_room_is_one_however_its_name_is_composed(token_verifier: TokenVerifier) -> None:
    rooms = {"*": "rw", "cafe\u0301": "", "the\u0301-*": "r", "x" * 300: "rw"}
    permissions = token_verifier.check(token(sub="ann", rooms=rooms), NOW)
    assert (permissions.may_read("caf\u00e9"), permissions.may_read("cafe")) == (False, True)
    assert (permissions.may_read("th\u00e9-vert"), permissions.may_write("th\u00e9-vert")) == (True, False)
    said = refusal(token_verifier, token(sub="ann", rooms={"cafe\u0301": "", "caf\u00e9": "rw"}))
    assert said == "rooms, in the token: two names are one"


def test_a_token_that_names_a_room_of_an_earlier_version_stays_good_for_its_other_rooms(
    token_verifier: TokenVerifier,
) -> None:
    permissions = token_verifier.check(token(sub="ann", rooms={"ops\u200b": "rw", "ops": "r"}), NOW)
    assert (permissions.may_read("ops"), permissions.may_write("ops")) == (True, False)


def test_without_rooms_everything_may_be_done_everywhere(token_verifier: TokenVerifier) -> None:
    permissions = token_verifier.check(token(sub="ann"), NOW)
    assert permissions.may_read("ops")
    assert permissions.may_write("ops")


def test_other_rights_are_refused(token_verifier: TokenVerifier) -> None:
    for rights in ("x", "rwx", "RW", "read", "r w"):
        said = refusal(token_verifier, token(sub="ann", rooms={"ops": rights}))
        assert said == "rooms, in the token: each must have r, w, rw or nothing"


def test_who_may_not_is_told_403() -> None:
    permissions = Permissions(rooms={"ops": "w", "news": "r"})
    check_writable(permissions, "ops")
    check_readable(permissions, "news")
    for check, room in ((check_readable, "ops"), (check_writable, "news")):
        with pytest.raises(Refused) as caught:
            check(permissions, room)
        assert (caught.value.status, caught.value.code) == (403, "forbidden")
        assert caught.value.response().count(b'error="insufficient_scope"') == 1
    check_readable(EVERYTHING, "ops")
    check_writable(EVERYTHING, "ops")


def test_a_resume_key_is_of_one_subject() -> None:
    place = RoomTarget("ops", resume="0123456789", last=3)
    ann, ben, nick = (
        scope_resume_key(permissions, place)
        for permissions in (Permissions("ann"), Permissions("ben"), Permissions(nick="ann ben"))
    )
    assert len({each.resume for each in (ann, ben, nick, place)}) == 4
    assert scope_resume_key(Permissions("ann", expires=1), place) == ann
    assert (ann.room, ann.last) == ("ops", 3)
    assert scope_resume_key(EVERYTHING, place) == place
    with pytest.raises(Refused):
        read_target(b"/ops?resume=" + ann.resume.encode())  # who is nobody in particular can't be ann either
    assert scope_resume_key(Permissions("ann"), RoomTarget("ops")) == RoomTarget("ops"), "without a key nothing is kept"


# Where it stands


@rows(
    ("target", "headers"),
    [
        (b"/ops?token=a.b.c", {}),
        (b"/ops?nick=ann&token=a%2Eb.c", {}),
        (b"/ops", {"authorization": "Bearer a.b.c"}),
        (b"/ops", {"authorization": "bearer  a.b.c "}),
        (b"/ops", {"sec-websocket-protocol": "chatd.v1, bearer.a.b.c"}),
        (b"/ops", {"sec-websocket-protocol": "bearer.a.b.c,chatd.v1"}),
        (b"/ops?token=a.b.c", {"authorization": "Bearer a.b.c"}),
        (b"/ops?token=a.b.c", {"authorization": "Basic xyz"}),
    ],
)
def test_a_token_is_found(target: bytes, headers: dict[str, str]) -> None:
    assert find_token(RequestHead("GET", target, headers)) == "a.b.c"


@rows("headers", [{}, {"authorization": "Basic a.b.c"}, {"authorization": "Bearer"}])
def test_where_there_is_none_none_is_found(headers: dict[str, str]) -> None:
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
def test_several_are_refused(target: bytes, headers: dict[str, str]) -> None:
    with pytest.raises(Refused) as caught:
        find_token(RequestHead("GET", target, headers))
    assert caught.value.status == 400


def test_who_brings_none_or_a_bad_one_is_told_how(token_verifier: TokenVerifier) -> None:
    with pytest.raises(Refused) as caught:
        token_verifier.authenticate(RequestHead("GET", b"/ops"), NOW)
    assert (caught.value.status, caught.value.code) == (401, "unauthorized")
    assert caught.value.headers == (("WWW-Authenticate", 'Bearer realm="chatd"'),)
    with pytest.raises(Refused) as caught:
        token_verifier.authenticate(RequestHead("GET", f"/ops?token={token(nick='a:b')}".encode()), NOW)
    assert caught.value.headers == (
        (
            "WWW-Authenticate",
            'Bearer realm="chatd", error="invalid_token", '
            "error_description=\"nick, in the token: a nick must not hold ':'\"",
        ),
    )


def test_where_no_key_could_be_read_nobody_is_told_that_a_token_is_bad(tmp_path: Path) -> None:
    token_verifier = TokenVerifier([str(tmp_path / "gone")])
    with pytest.raises(BadValue):
        token_verifier.read()
    with pytest.raises(Refused) as caught:
        token_verifier.authenticate(RequestHead("GET", f"/ops?token={token(sub='ann')}".encode()), NOW)
    assert (caught.value.status, caught.value.headers) == (503, (("Retry-After", "5"),))


# Withdrawn


def test_a_token_is_taken_for_as_long_as_its_key_is_one_of_ours(tmp_path: Path) -> None:
    token_verifier = guard_of(tmp_path, public_pem("Ed25519"), public_pem("P-256"))
    ann, ben = (token_verifier.check(token(kind, sub="x"), NOW) for kind in ("Ed25519", "P-256"))
    assert token_verifier.still_takes(ann) and token_verifier.still_takes(ben)
    (tmp_path / "0.key").write_text(json.dumps({"keys": [jwk("P-256", kid="new name")]}))
    (tmp_path / "1.key").write_bytes(public_pem("RSA"))
    token_verifier.read()
    assert not token_verifier.still_takes(ann)
    assert token_verifier.still_takes(ben), "its key is the same in another file, form and name"


def test_a_revoked_subject_or_token_is_refused_and_taken_no_more(tmp_path: Path) -> None:
    path = tmp_path / "revoked"
    path.write_text("")
    token_verifier = guard_of(tmp_path, public_pem(), revoked=str(path))
    token_verifier.revoked.read()
    grants = [
        token_verifier.check(token(**claims), NOW)
        for claims in ({"sub": "ann"}, {"sub": "ben", "jti": "t1"}, {"jti": 7})
    ]
    assert [token_verifier.still_takes(permissions) for permissions in grants] == [True] * 3
    path.write_text("sub ann\njti t1\njti 7\n")
    token_verifier.revoked.read()
    assert [token_verifier.still_takes(permissions) for permissions in grants] == [False] * 3
    for claims in ({"sub": "ann", "jti": "new"}, {"sub": "ben", "jti": "t1"}, {"jti": 7}):
        assert refusal(token_verifier, token(**claims)) == "the token was revoked"
    assert token_verifier.still_takes(token_verifier.check(token(sub="ben", jti="t2"), NOW))


def test_where_the_list_could_not_be_read_no_token_is_taken_or_told_to_be_bad(tmp_path: Path) -> None:
    token_verifier = guard_of(tmp_path, public_pem(), revoked=str(tmp_path / "gone"))
    with pytest.raises(Refused) as caught:
        token_verifier.authenticate(RequestHead("GET", f"/ops?token={token(sub='ann')}".encode()), NOW)
    assert caught.value.status == 503
    (tmp_path / "gone").write_text("")
    token_verifier.revoked.read()
    token_verifier.authenticate(RequestHead("GET", f"/ops?token={token(sub='ann')}".encode()), NOW)


# To make one


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_minted_is_taken(tmp_path: Path, kind: str) -> None:
    made = mint(read_signing_key(private_pem(kind)), {"sub": "ann", "exp": LATER, "rooms": {"ops": "rw"}})
    assert guard_of(tmp_path, public_pem(kind)).check(made, NOW) == Permissions("ann", "ann", LATER, {"ops": "rw"})


def test_it_is_minted_with_the_algorithm_that_is_asked_for(tmp_path: Path) -> None:
    key = read_signing_key(SECRET)
    made = mint(key, {"sub": "ann"}, "HS384")
    assert jwt.get_unverified_header(made)["alg"] == "HS384"
    assert guard_of(tmp_path, SECRET).check(made, NOW)
    with pytest.raises(BadValue, match="must be HS256 or HS384 with this key"):
        mint(key, {"sub": "ann"}, "RS256")
