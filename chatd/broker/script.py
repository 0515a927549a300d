"""The scripts that run in the broker, each atomically: ``scripts/*.lua``."""

from hashlib import sha1
from importlib.resources import files
from typing import Any


class Script:
    """One script, known to the broker by its digest once it was loaded."""

    def __init__(self, name: str) -> None:
        """Read it."""
        self.name = name
        self.source = files("chatd.broker").joinpath(f"scripts/{name}.lua").read_bytes()
        self.digest = sha1(self.source, usedforsecurity=False).hexdigest().encode()

    def load(self, protocol: Any) -> Any:
        """Let the broker know it; gives a Deferred."""
        return protocol.script_load(self.source)

    def run(self, protocol: Any, keys: list[bytes], arguments: list[Any]) -> Any:
        """Run it; gives a Deferred of the answer. A broker that forgot it answers ``NOSCRIPT``."""
        return protocol.execute_command("EVALSHA", self.digest, len(keys), *keys, *arguments)


PUBLISH = Script("publish")
READ = Script("read")
READ_BACK = Script("read_back")
TOPS = Script("tops")
CLAIM = Script("claim")
SAVE = Script("save")
FOUGHT = Script("fought")
PRESENCE = Script("presence")
MEMBERS = Script("members")
ALIVE = Script("alive")
ROOMS = Script("rooms")
RUN = Script("run")
SHARES = Script("shares")
MEMORY = Script("memory")
HISTORIES = Script("histories")
SHORTEN = Script("shorten")
PROBE = Script("probe")
ALL = (PUBLISH, READ, READ_BACK, TOPS, CLAIM, SAVE, FOUGHT, PRESENCE, MEMBERS, ALIVE, ROOMS, RUN, SHARES, PROBE)
"""What is asked of every broker; the three others are for the private one, and loaded when they are needed."""
