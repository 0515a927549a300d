"""The JSON Schema (draft 2020-12) of all requests and events of ``chatd.v1``, made from the types of ``json_v1``.

It is as strict as the reader: what it lets pass as a request is read, and the other way round. But JSON Schema takes
``1.0`` for an integer, as the reader does not, and knows nothing of nesting or of half surrogate pairs.
"""

from typing import Any, get_args

import msgspec

from chatd.protocol.json_v1 import Event, Request

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """Return the schema: any message, as ``#/$defs/Request`` or ``#/$defs/Event``; each has a definition of its own."""
    kinds = {"Request": get_args(Request), "Event": get_args(Event)}
    _, each = msgspec.json.schema_components([Request, Event], ref_template="#/$defs/{name}")
    either = {kind: {"anyOf": [_reference(one.__name__) for one in classes]} for kind, classes in kinds.items()}
    return {
        "$schema": DRAFT,
        "title": "chatd.v1",
        "description": "A frame is one of these objects. Clients send requests, the server sends events.",
        "anyOf": [_reference(kind) for kind in kinds],
        "$defs": either | each,
    }


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/{name}"}
