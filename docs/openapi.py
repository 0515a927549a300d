"""Write docs/openapi.json: ``python docs/openapi.py``. A test holds it against this, another the server against it."""

import json
from pathlib import Path
from typing import Any

import msgspec

from chatd import __version__
from chatd.config.settings import Config
from chatd.protocol.http_api import (
    HEARTBEAT_LEAST,
    HEARTBEAT_MOST,
    LAST,
    PresenceAnswer,
    PublishAnswer,
    PublishBody,
    RoomList,
)
from chatd.protocol.json_v1 import MessageEvent

PAGE = Path(__file__).with_name("openapi.json")
MOST = Config().max_message_size

ERRORS = {
    400: "A bad value: of a parameter, a header, or the body",
    401: "A token is needed, or the one that came is not good",
    403: "A web page of another origin, a resume key that another connection has come with, or not allowed",
    404: "No such room or path",
    405: "Not with this method; `Allow` says with which",
    408: "The body did not come in time",
    409: "Somebody in the room has that nick, or one that looks like it",
    413: "The body, or the text in it, is too long",
    415: "The body is neither text in UTF-8 nor JSON, or it is compressed",
    429: "Too fast, or too many from this address",
    503: "The message broker is away, the chat log can't be written, or there are too many connections",
}
ROOM = {
    "name": "room",
    "in": "path",
    "required": True,
    "description": "The name of a room: 1 to 64 characters without white space, control characters or `/`, not "
    "beginning with `-`; normalised to NFC.",
    "schema": {
        "type": "string",
        "minLength": 1,
        "maxLength": 64,
        "pattern": r"^[^\s/\-.?#%\x00-\x1f\x7f-\x9f][!-.0-~]*$",
    },
    "example": "ops",
}
NICK = {"type": "string", "minLength": 1, "maxLength": 32, "pattern": "^[A-Za-z0-9_.-]+$"}


def query(name: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    """Describe a parameter of the URL."""
    return {"name": name, "in": "query", "required": False, "description": text, "schema": schema}


def reference(name: str) -> dict[str, str]:
    """Name a schema."""
    return {"$ref": f"#/components/schemas/{name}"}


def content(**kinds: dict[str, Any]) -> dict[str, Any]:
    """Describe bodies by what they are: text, json, events, …"""
    names = {
        "text": "text/plain",
        "json": "application/json",
        "lines": "application/x-ndjson",
        "events": "text/event-stream",
        "html": "text/html",
        "form": "application/x-www-form-urlencoded",
    }
    return {names[kind]: {"schema": schema} for kind, schema in kinds.items()}


def errors(*statuses: int) -> dict[str, Any]:
    """Describe the errors that there may be."""
    found: dict[str, Any] = {}
    for status in statuses:
        found[str(status)] = {"description": ERRORS[status], "content": content(json=reference("Error"))}
        if status == 405:
            found["405"]["headers"] = {"Allow": {"schema": {"type": "string"}}}
        if status in (429, 503):
            found[str(status)]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds"}}
    return found


def answers(status: int, text: str, bodies: dict[str, Any], *statuses: int) -> dict[str, Any]:
    """Describe what may be answered."""
    return {str(status): {"description": text, "content": bodies}} | errors(*statuses)


TEXT = {"type": "string"}


def paths() -> dict[str, Any]:
    """Describe every call."""
    show = {
        "summary": "What was said, and with follow=1 what is being said",
        "description": "As a named client at a terminal sees it, as JSON, or as server-sent events, by `Accept`; "
        "a browser gets the chat page. An answer without end makes the client a member of the room. "
        "For `text/event-stream` 429 and 503 are 200 with a stream that says when to come back, and ends.",
        "parameters": [
            ROOM,
            query("last", {"type": "integer", "minimum": 0, "maximum": 100_000}, f"How many messages; {LAST}"),
            query(
                "before",
                {"type": "string", "pattern": "^[0-9A-Za-z]{1,64}-[1-9][0-9]{0,14}$"},
                "The last messages before this one, named by its epoch and offset, as `Link` does",
            ),
            query("follow", {"enum": ["0"]}, "1: go on with what is said from now on, without end"),
            query("nick", NICK, "Of who follows: it is seen in the room then, and sees who comes and goes"),
            query(
                "heartbeat",
                {
                    "anyOf": [
                        {"const": 0},
                        {"type": "integer", "minimum": HEARTBEAT_LEAST, "maximum": HEARTBEAT_MOST},
                    ]
                },
                "Seconds between signs of life of a stream: comments, or empty lines; 0: none. "
                "By default 25 for events and JSON lines, 0 for text",
            ),
        ],
        "responses": answers(
            200,
            "The messages, oldest first",
            content(text=TEXT, json={"type": "array", "items": reference("MessageEvent")}, lines=TEXT, html=TEXT),
            *(400, 401, 403, 404, 429, 503),
        ),
    }
    show["responses"]["200"]["headers"] = {
        "Link": {
            "schema": {"type": "string"},
            "description": 'rel="prev": where older messages are; there only while history has any',
        }
    }
    publish = {
        "summary": "Say something",
        "description": "Answered once it is in the chat log and in the room's order. With the same id, under the same "
        "nick and from the same address, or with a token of the same subject, it is said once within 5 minutes.",
        "parameters": [ROOM, query("nick", NICK, "Who says it; the nick in JSON goes before")],
        "requestBody": {
            "required": True,
            "content": content(text={"type": "string", "minLength": 1}, json=reference("Said")),
        },
        "responses": answers(
            201,
            "Where it stands",
            content(json=reference("Published")),
            *(400, 401, 403, 404, 408, 409, 413, 415, 429, 503),
        ),
    }
    members = {
        "summary": "Who is in a room",
        "parameters": [ROOM],
        "responses": answers(
            200, "All of them, on all workers", content(json=reference("Here")), 400, 401, 403, 404, 429, 503
        ),
    }
    rooms = {
        "summary": "The rooms that have members or messages",
        "responses": answers(200, "By name, 1,000 at most", content(json=reference("Rooms")), 401, 403, 429, 503),
    }
    health = {
        "summary": "Whether the process serves",
        "responses": answers(200, "It does", content(text=TEXT), 403, 429),
    }
    ready = {
        "summary": "Whether what is published comes back",
        "responses": answers(200, "A probe came back through the message broker", content(text=TEXT), 403, 429, 503),
    }
    counted = {
        "summary": "What all workers of the host have counted, in Prometheus' text format",
        "responses": answers(200, "The metrics", content(text=TEXT), 403, 429, 503),
    }
    about = {"summary": "What this is", "responses": answers(200, "A few lines", content(text=TEXT), 403, 429, 503)}
    return {
        "/{room}": {"get": show, "post": publish},
        "/{room}/members": {"get": members},
        "/-/rooms": {"get": rooms},
        "/-/healthz": {"get": health},
        "/-/readyz": {"get": ready},
        "/-/metrics": {"get": counted},
        "/-/": {"get": about},
    }


def description() -> dict[str, Any]:
    """Give the description."""
    _, schemas = msgspec.json.schema_components(
        [MessageEvent, PresenceAnswer, PublishAnswer, RoomList, PublishBody], ref_template="#/components/schemas/{name}"
    )
    schemas["PublishBody"]["properties"]["text"] |= {"minLength": 1}
    schemas["PublishBody"]["properties"]["nick"] = {"anyOf": [NICK, {"type": "null"}], "default": None}
    schemas["Error"] = {
        "title": "Error",
        "type": "object",
        "properties": {"error": {"type": "string"}, "message": {"type": "string"}},
        "required": ["error", "message"],
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "chatd",
            "version": __version__,
            "description": "The rooms of a chatd over HTTP. "
            f"A text has at most {MOST} bytes of UTF-8 (--max-message-size).",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "http://localhost:3000"}],
        "paths": paths(),
        "components": {"schemas": schemas},
    }


if __name__ == "__main__":
    PAGE.write_text(json.dumps(description(), indent=2) + "\n", "utf-8")
