"""The JSON Schema (draft 2020-12) of all requests and events of ``chatd.v1``, made from the types of ``json_v1``.

``python docs/schema.py`` writes docs/chatd.v1.schema.json. The schema is as strict as the reader: it accepts the same
requests. But JSON Schema takes ``1.0`` for an integer, as the reader does not, and knows nothing of nesting or of half
surrogate pairs.
"""

import json
from pathlib import Path
from typing import Any, get_args

import msgspec

from chatd.protocol.json_v1 import Event, Request

PAGE = Path(__file__).with_name("chatd.v1.schema.json")
DRAFT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """Return the schema: any message, as ``#/$defs/Request`` or ``#/$defs/Event``; each has a definition of its own."""
    kinds = {"Request": get_args(Request), "Event": get_args(Event)}
    _, definitions = msgspec.json.schema_components([Request, Event], ref_template="#/$defs/{name}")
    either = {name: {"anyOf": [_reference(kind.__name__) for kind in classes]} for name, classes in kinds.items()}
    return {
        "$schema": DRAFT,
        "title": "chatd.v1",
        "description": "A frame is one of these objects. Clients send requests, the server sends events.",
        "anyOf": [_reference(kind) for kind in kinds],
        "$defs": either | definitions,
    }


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/{name}"}


if __name__ == "__main__":
    PAGE.write_text(json.dumps(schema(), indent=2) + "\n", "utf-8")
