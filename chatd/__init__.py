"""chatd: a realtime chat daemon.

A message takes this route: worker/listener -> clients (or web) -> rooms/publisher -> chatlog -> broker -> rooms/hub
and rooms/ordering -> rooms/subscribers -> clients/send_buffer. These packages use config, protocol, runtime,
monitoring and access. The supervisor starts the workers. ``docs/architecture.md`` describes all of it.
"""

__version__ = "0.1.0"
