"""Every message of ``chatd.v1``: as a value, and as it is on the wire."""

from chatd.protocol.json_v1 import (
    Ack,
    Auth,
    AuthAnswer,
    Bye,
    Error,
    Event,
    Gap,
    History,
    HistoryAnswer,
    Join,
    Joined,
    Leave,
    Left,
    Limits,
    Member,
    Members,
    MembersAnswer,
    MessageEvent,
    Nick,
    NickAnswer,
    Ping,
    Pong,
    Presence,
    Publish,
    Request,
    Since,
    Welcome,
)

REQUESTS: list[tuple[str, Request]] = [
    (
        '{"type":"publish","ref":1,"room":"ops","text":"hi","id":"c-81"}',
        Publish(ref=1, room="ops", text="hi", id="c-81"),
    ),
    ('{"type":"publish","room":"ops","text":"hi"}', Publish(room="ops", text="hi")),
    (
        '{"type":"join","ref":2,"room":"ops","since":{"epoch":"k3f9","offset":1041}}',
        Join(ref=2, room="ops", since=Since(epoch="k3f9", offset=1041)),
    ),
    ('{"type":"join","ref":2,"room":"ops","since":{"last":20}}', Join(ref=2, room="ops", since=Since(last=20))),
    ('{"type":"join","ref":2,"room":"ops"}', Join(ref=2, room="ops")),
    ('{"type":"leave","ref":3,"room":"ops"}', Leave(ref=3, room="ops")),
    ('{"type":"members","ref":4,"room":"ops"}', Members(ref=4, room="ops")),
    (
        '{"type":"history","ref":5,"room":"ops","before":1042,"limit":50}',
        History(ref=5, room="ops", before=1042, limit=50),
    ),
    ('{"type":"history","room":"ops"}', History(room="ops", limit=50)),
    ('{"type":"nick","ref":6,"nick":"anna"}', Nick(ref=6, nick="anna")),
    ('{"type":"auth","ref":7,"token":"…"}', Auth(ref=7, token="…")),
    ('{"type":"ping","ref":8}', Ping(ref=8)),
    ('{"type":"ping"}', Ping()),
]

TIME = "2026-01-01T12:00:00.123Z"

EVENTS: list[tuple[Event, str]] = [
    (
        Welcome(session="s.1", nick=None, server="chatd/0.1.0", limits=Limits(16384, 10.0, 100), ping_s=25.0),
        '{"type":"welcome","session":"s.1","nick":null,"server":"chatd/0.1.0",'
        '"limits":{"message_bytes":16384,"messages_per_s":10.0,"rooms":100},"ping_s":25.0}',
    ),
    (
        Welcome(session="s.1", nick="ann", server="chatd/0.1.0", limits=Limits(16384, None, 100), ping_s=25.0),
        '{"type":"welcome","session":"s.1","nick":"ann","server":"chatd/0.1.0",'
        '"limits":{"message_bytes":16384,"messages_per_s":null,"rooms":100},"ping_s":25.0}',
    ),
    (
        Joined(room="ops", epoch="k3f9", offset=0, recovered=True, lost=0, messages=()),
        '{"type":"joined","room":"ops","epoch":"k3f9","offset":0,"recovered":true,"lost":0,"messages":[]}',
    ),
    (
        Joined(
            ref=2,
            room="ops",
            epoch="k3f9",
            offset=7,
            recovered=False,
            lost=None,
            messages=[MessageEvent("ops", "k3f9", 7, "s.1.1", TIME, "s.1", "ann", "hi")],
        ),
        '{"type":"joined","room":"ops","epoch":"k3f9","offset":7,"recovered":false,"lost":null,"messages":['
        '{"type":"message","room":"ops","epoch":"k3f9","offset":7,"id":"s.1.1","time":"2026-01-01T12:00:00.123Z",'
        '"session":"s.1","nick":"ann","text":"hi"}],"ref":2}',
    ),
    (
        MessageEvent("ops", "k3f9", 7, "s.1.1", TIME, "s.1", None, "hi"),
        '{"type":"message","room":"ops","epoch":"k3f9","offset":7,"id":"s.1.1","time":"2026-01-01T12:00:00.123Z",'
        '"session":"s.1","nick":null,"text":"hi"}',
    ),
    (
        MessageEvent("ops", "k3f9", 7, "s.1.1", TIME, "s.1", "ann", "waves", action=True),
        '{"type":"message","room":"ops","epoch":"k3f9","offset":7,"id":"s.1.1","time":"2026-01-01T12:00:00.123Z",'
        '"session":"s.1","nick":"ann","text":"waves","action":true}',
    ),
    (
        Ack(ref="a", room="ops", epoch="k3f9", offset=7, id="c-81", time=TIME),
        '{"type":"ack","room":"ops","epoch":"k3f9","offset":7,"id":"c-81","time":"2026-01-01T12:00:00.123Z","ref":"a"}',
    ),
    (
        Ack(room="ops", epoch="k3f9", offset=7, id="c-81", time=TIME, duplicate=True),
        '{"type":"ack","room":"ops","epoch":"k3f9","offset":7,"id":"c-81","time":"2026-01-01T12:00:00.123Z",'
        '"duplicate":true}',
    ),
    (
        Presence(room="ops", event="join", session="s.1", nick="ann"),
        '{"type":"presence","room":"ops","event":"join","session":"s.1","nick":"ann"}',
    ),
    (
        Presence(room="ops", event="nick", session="s.1", nick="anna", was="ann"),
        '{"type":"presence","room":"ops","event":"nick","session":"s.1","nick":"anna","was":"ann"}',
    ),
    (
        Presence(room="ops", event="nick", session="s.1", nick="anna", was=None),
        '{"type":"presence","room":"ops","event":"nick","session":"s.1","nick":"anna","was":null}',
    ),
    (
        MembersAnswer(ref=4, room="ops", members=[Member("s.1", "ann", TIME), Member("s.2", None, TIME)], count=2),
        '{"type":"members","room":"ops","members":[{"session":"s.1","nick":"ann","since":"2026-01-01T12:00:00.123Z"},'
        '{"session":"s.2","nick":null,"since":"2026-01-01T12:00:00.123Z"}],"count":2,"ref":4}',
    ),
    (
        MembersAnswer(ref=4, room="ops", members=None, count=501),
        '{"type":"members","room":"ops","members":null,"count":501,"ref":4}',
    ),
    (
        HistoryAnswer(ref=5, room="ops", epoch="k3f9", messages=()),
        '{"type":"history","room":"ops","epoch":"k3f9","messages":[],"ref":5}',
    ),
    (Left(ref=3, room="ops"), '{"type":"left","room":"ops","ref":3}'),
    (NickAnswer(ref=6, nick="anna2", was="ann"), '{"type":"nick","nick":"anna2","was":"ann","ref":6}'),
    (NickAnswer(nick="anna", was=None), '{"type":"nick","nick":"anna","was":null}'),
    (AuthAnswer(ref=7, expires_in=3600.0), '{"type":"auth","expires_in":3600.0,"ref":7}'),
    (AuthAnswer(expires_in=None), '{"type":"auth","expires_in":null}'),
    (Pong(ref=-8), '{"type":"pong","ref":-8}'),
    (Pong(), '{"type":"pong"}'),
    (Gap(room="ops", epoch="k3f9", first=3, last=5), '{"type":"gap","room":"ops","epoch":"k3f9","from":3,"to":5}'),
    (
        Gap(room="ops", epoch="k3f9", first=None, last=None),
        '{"type":"gap","room":"ops","epoch":"k3f9","from":null,"to":null}',
    ),
    (
        Error(ref=1, code="rate_limited", message="too fast", retry_after=1.5),
        '{"type":"error","code":"rate_limited","message":"too fast","retry_after":1.5,"ref":1}',
    ),
    (Error(code="forbidden", message="no"), '{"type":"error","code":"forbidden","message":"no"}'),
    (
        Bye(code=1012, reason="restart", reconnect_after=2.5),
        '{"type":"bye","code":1012,"reason":"restart","reconnect_after":2.5}',
    ),
    (Bye(code=1008, reason="not here"), '{"type":"bye","code":1008,"reason":"not here"}'),
]

NO_REQUESTS: list[tuple[str, object, str]] = [
    ('{"ref":1}', 1, "object missing required field type"),
    ('{"type":3,"ref":1}', 1, "type: expected one of publish, join, leave, members, history, nick, auth, ping"),
    ('{"type":"x\\ny","ref":1}', 1, "type: expected one of publish, join, leave, members, history, nick, auth, ping"),
    ('{"type":"publish","ref":"a","room":"ops"}', "a", "object missing required field text"),
    ('{"type":"publish","ref":"a","text":"hi"}', "a", "object missing required field room"),
    ('{"type":"publish","ref":1,"room":3,"text":"hi"}', 1, "room: expected str, got int"),
    ('{"type":"publish","ref":1,"room":"ops","text":null}', 1, "text: expected str, got null"),
    ('{"type":"publish","ref":1,"room":"ops","text":""}', 1, "text: expected str of length >= 1"),
    ('{"type":"publish","ref":1,"room":"ops","text":"hi","id":""}', 1, "id: expected str of length >= 1"),
    ('{"type":"publish","ref":1,"room":"ops","text":"hi","id":null}', 1, "id: expected str, got null"),
    (
        f'{{"type":"publish","ref":1,"room":"ops","text":"hi","id":"{"x" * 65}"}}',
        1,
        "id: expected str of length <= 64",
    ),
    ('{"type":"join","ref":1,"room":"ops","since":null}', 1, "since: expected object, got null"),
    ('{"type":"join","ref":1,"room":"ops","since":{}}', 1, "since: expected epoch and offset, or last"),
    ('{"type":"join","ref":1,"room":"ops","since":{"epoch":"e"}}', 1, "since: expected epoch and offset, or last"),
    ('{"type":"join","ref":1,"room":"ops","since":{"offset":1}}', 1, "since: expected epoch and offset, or last"),
    (
        '{"type":"join","ref":1,"room":"ops","since":{"epoch":"e","offset":1,"last":1}}',
        1,
        "since: expected epoch and offset, or last",
    ),
    (
        '{"type":"join","ref":1,"room":"ops","since":{"epoch":"e","last":1}}',
        1,
        "since: expected epoch and offset, or last",
    ),
    ('{"type":"join","ref":1,"room":"ops","since":{"last":-1}}', 1, "since.last: expected int >= 0"),
    (
        '{"type":"join","ref":1,"room":"ops","since":{"epoch":"e","offset":"1"}}',
        1,
        "since.offset: expected int, got str",
    ),
    (
        '{"type":"join","ref":1,"room":"ops","since":{"epoch":"e 1","offset":1}}',
        1,
        r"since.epoch: expected str matching regex '^[0-9A-Za-z]+$(?!\\n)'",
    ),
    (
        '{"type":"join","ref":1,"room":"ops","since":{"epoch":"e\\n","offset":1}}',
        1,
        r"since.epoch: expected str matching regex '^[0-9A-Za-z]+$(?!\\n)'",
    ),
    ('{"type":"history","ref":1,"room":"ops","before":0}', 1, "before: expected int >= 1"),
    ('{"type":"history","ref":1,"room":"ops","before":1.5}', 1, "before: expected int, got float"),
    ('{"type":"history","ref":1,"room":"ops","limit":0}', 1, "limit: expected int >= 1"),
    ('{"type":"history","ref":1,"room":"ops","limit":1001}', 1, "limit: expected int <= 1000"),
    ('{"type":"nick","ref":1}', 1, "object missing required field nick"),
    ('{"type":"auth","ref":1,"token":["t"]}', 1, "token: expected str, got array"),
]
"""What is JSON, but no request: with its reference, and what is wrong with it."""

NO_REFERENCES: list[tuple[str, str]] = [
    ("null", "expected int | str, got null"),
    ("true", "expected int | str, got bool"),
    ("1.5", "expected int | str, got float"),
    ("[1]", "expected int | str, got array"),
    ('{"a":1}', "expected int | str, got object"),
    (f'"{"x" * 65}"', "expected str of length <= 64"),
    (str(2**53), "expected int <= 9007199254740991"),
    (str(-(2**53)), "expected int >= -9007199254740991"),
    (str(10**30), "expected int <= 9007199254740991"),
]
