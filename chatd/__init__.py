"""chatd: a realtime chat daemon.

``twistd chatd`` starts a parent process that holds the ports and the children. Worker processes,
one Twisted reactor each, hold the clients. A Redis or Valkey server, by default a private one,
carries every message to the members of its room on every worker::

    twistd chatd (parent: ports, children, no messages)
      +-- valkey-server     private; only without --redis
      +-- worker 1 -------- its own listening sockets, its clients
      +-- worker 2 -------- its own listening sockets, its clients

The path of a message, a batch at a time::

    socket -> door (first bytes only) -> client/connection -> wire/frames -> client/session -> room/hub.publish
      --(paced)--> room/chatlog -> room/bus.publish
    Redis: one script gives offsets and publishes
    room/bus -> room/hub.deliver --(paced)--> wire/text, wire/frames -> client/outflow.deliver -> sockets

*Paced* is at the end of the reactor's turn, and no more often than ``flush_interval`` (``room/pacer``): under load
batches get bigger, not queues longer.

The house. Code imports only from its own folder and from what stands above it in this list
(``tests/test_layers.py`` reads the imports):

=================  ====================================================================
``closing``        why we hang up: code and reason
``config``         every knob once: default with unit, check, hand-off to workers
``message``        Message and the batch that travels on the bus
``lifeline``       what parent and worker tell each other over a pipe
``timers``         one timer of the reactor for the many that clients need
``wire/``          bytes in, values out; no sockets, no clock
``  handshake``    the head of an HTTP request: checked, parsed, refused; the room in it; a WebSocket's accepted
``  frames``       RFC 6455 frames: the fast lane in, whole frames out
``  text``         the plain-text dress
``room/``          what a room is, on this worker and across all of them
``  chatlog``      the twisted.logger observer that owns logs/chat.log
``  link``         the only txredisapi import: a connection to the broker, dialled again for ever
``  outbox``       batches on their way to the broker, and the window; ``scripts/*.lua`` beside it
``  probe``        whether what goes into the broker comes out again
``  bus``          the three above as one: publish, subscribe, away or not
``  pacer``        when to do what piles up
``  hub``          members here; the one fan-out loop
``client/``        one client; deflate, connection and factory stand on Autobahn
``  session``      what it may do and what it hears; no sockets
``  outflow``      what goes out: straight to the socket, or to a bounded backlog
``  deflate``      permessage-deflate: taken up or not, what comes in compressed
``  lean``         what makes a connection on Autobahn light
``  connection``   a WebSocket on Autobahn's: bytes in, whether the client lives, closing
``  factory``      makes the connections of a worker, and knows them all
``web/``           the same port over HTTP
``  answer``       the two forms of every answer: text, and an error as JSON
``  status``       health and readiness
``  site``         the tree of URLs
``door``           a connection's first bytes; then a WebSocket or twisted.web takes over
``worker``         puts one worker together: ``python -m chatd.worker``
``parent/``        the process twistd starts; no worker imports it
``  tether``       runs a program that dies with us
``  child``        why a child process ended, and how long to wait before the next
``  ports``        endpoint strings to bound sockets
``  valkey``       the private broker
``  fleet``        spawn, watch, replace, drain the workers
``  daemon``       ports, broker and fleet, started and stopped in order
``tap``            ``twistd chatd``: options to services
=================  ====================================================================
"""

__version__ = "0.1.0"
