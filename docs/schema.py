"""Write docs/chatd.v1.schema.json: ``python docs/schema.py``. A test holds it against the types it comes from."""

import json
from pathlib import Path

from chatd.protocol.json_schema import schema

PAGE = Path(__file__).with_name("chatd.v1.schema.json")

if __name__ == "__main__":
    PAGE.write_text(json.dumps(schema(), indent=2) + "\n", "utf-8")
