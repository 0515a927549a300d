"""Whether the chat logs have every message that the histories in the broker have, once."""
