"""chatd: a realtime chat daemon.

``twistd chatd`` starts a parent process that holds the ports and the children. Worker processes,
one Twisted reactor each, hold the clients. A Redis or Valkey server, by default a private one,
carries every message to the members of its room on every worker::

    twistd chatd (parent: ports, children, no messages)
      +-- valkey-server     private; only without --redis
      +-- worker 1 -------- its own listening sockets, its clients
      +-- worker 2 -------- its own listening sockets, its clients

The path of a message, a batch at a time::

    socket -> door (first bytes only) -> client/connection -> wire/frames -> client/session -> room/intake.publish
      --(paced)--> room/chatlog -> room/bus.publish
    Redis: one script gives offsets, keeps history and publishes
    room/bus -> room/hub.deliver -> room/timeline --(paced)--> room/audience -> client/outflow.deliver -> sockets

Over HTTP the door hands the connection to ``web/site``. What is said comes from ``client/poster``; who follows a room
is a member (``client/follower``), and from then on ``web/following`` has its connection, on the same outflow.

What does not follow on what came before is held back in the room's timeline until history has filled the hole. Who is
behind (it comes back, wants what was said before, or reads slowly) gets history from ``room/catchup``, then is live.

*Paced* is at the end of the reactor's turn, and no more often than ``flush_interval`` (``room/pacer``): under load
batches get bigger, not queues longer.

The house. Code imports only from its own folder and from what stands above it in this list
(``tests/test_layers.py`` reads the imports):

=================  ====================================================================
``closing``        why we hang up: code and reason
``config``         every knob once: default with unit, check, hand-off to workers
``endpoints``      what ``--listen`` takes, its parts, and what was meant by what it does not take
``message``        Message and the batch that travels on the bus
``lifeline``       what parent and worker tell each other over a pipe
``openfiles``      how many files may be open, and so how many connections
``headcount``      how many connections all workers have together
``single_flight``  one answer for all who ask at the same time
``timers``         periodic work; one timer of the reactor for the many that clients need
``logfields``      what of an event may stand in the server's own log, and which events say the same
``metrics``        every number that is counted, under its name for Prometheus
``loglock``        the lock under which the chat log is written and renamed
``logfile``        what the chat log may be, and how it is opened
``exposition``     the numbers of all processes of a chatd, added up
``meter``          has them written each second, and gives their sum
``tally``          what befalls many clients, counted, to be logged in one line
``transports``     what transports do not do by themselves: a connection goes to another protocol
``watched``        files that are read again when they change
``tls``            certificates and their private keys, read from files, for listeners too
``credentials``    passwords and certificates for the broker, read from files
``wire/``          bytes in, values out; no sockets, no clock
``  nick``         what a client may be called, and which nicks look alike (``*.txt``)
``  json_line``    JSON that is one line to every reader
``  handshake``    the head of an HTTP request: checked, parsed, refused; the room in it; a WebSocket's accepted
``  frames``       RFC 6455 frames: the fast lane in, whole frames out
``  text``         plain text: both its dresses, notices, commands
``  events``       the JSON dress: requests and events of chatd.v1
``  http``         what HTTP clients ask of a room beside what their URL says, and the JSON they get
``  stream``       how a room goes over HTTP to those who follow it: lines, JSON lines, events
``  schema``       their JSON Schema
``gate/``          who may come in as what; no sockets, no clock
``  origin``       whose web pages may talk to this server
``  hosts``        what this server is called
``  addresses``    addresses and networks, read in one way
``  proxies``      where a client comes from, if proxies say so
``  keys``         keys by which tokens are known
``  listfile``     the text of a list in a file that an option names
``  bans``         who may not come in at all
``  revoked``      tokens that are refused although their keys are good
``  buckets``      token buckets: so much at once, then so much a second
``  usage``        what each address uses: connections and buckets, in a bounded table
``  limits``       how much one client, and one address, may do
``  auth``         what the bearer of a token may do: JSON Web Tokens
``room/``          what a room is, on this worker and across all of them
``  logline``      a line of the chat log: written and read
``  chatlog``      the twisted.logger observer that owns logs/chat.log
``  sync``         when what was logged is on the disk
``  endpoint``     where to dial for a broker, in the clear or with TLS
``  link``         the only txredisapi import: a connection to the broker, dialled again for ever
``  sentinel``     where to dial for the master that Sentinels name, for as long as they do
``  script``       what runs in the broker, atomically: ``scripts/*.lua``
``  queries``      what is asked of the broker, and asked again where the link broke
``  history``      a stretch of a room's history, and where the order of rooms stands
``  outbox``       batches on their way to the broker, and the window
``  probe``        whether what goes into the broker comes out again
``  roster``       who is in a room, as far as a worker knows
``  presence_script``  presence as the broker takes and gives it: steps and entries
``  presence``     who is in which room: kept in the broker, told in the order of the messages
``  places``       how far clients with a resume key have come, kept in the broker
``  shares``       what addresses do on all workers, added up in the broker
``  eviction``     the memory of the private broker: old histories are dropped before it is full
``  comparison``   whether this worker has heard everything
``  bus``          all of these as one: publish, subscribe, read, away or not
``  pacer``        when to do what piles up
``  intake``       what members say: taken, logged, handed to the bus
``  cursor``       a position in a room's order that moves on
``  repeats``      batches that their publishers sent again
``  timeline``     a room's order on this worker: holes found, filled, or told
``  catchup``      a member that is behind its room
``  audience``     the live members of a room; the one fan-out loop
``  room``         one room on this worker: who is live, who is behind
``  hub``          who is in which room, from joining to leaving; when it is delivered
``  shards``       a bus and a hub for each broker; which of them has a room
``client/``        one client; deflate, connection and factory stand on Autobahn
``  lease``        what it may do, for as long as its token is good
``  session``      what it says and what it hears; no sockets
``  person``       a session with a nick and commands
``  membership``   a member that speaks chatd.v1
``  program``      a session that speaks chatd.v1
``  follower``     a session that only listens: over HTTP
``  poster``       who says one thing over HTTP
``  outflow``      what goes out: straight to the socket, or to a bounded backlog
``  receipts``     what a client with a resume key has surely got
``  deflate``      permessage-deflate: taken up or not, what comes in compressed
``  turns``        whose frames are handled when, where many wait
``  lean``         what makes a connection on Autobahn light
``  connection``   a WebSocket on Autobahn's: bytes in, whether the client lives, closing
``  factory``      makes the connections of a worker, and knows them all
``web/``           the same port over HTTP
``  answer``       answers: text or JSON, at once or later; an error as JSON
``  asker``        who sends a request, and what it may do
``  cors``         pages of other origins that may talk to us
``  refusal``      the end of a connection whose request is too large or too slow
``  following``    the connection under an answer without end
``  page``         the page for browsers: ``page/*``
``  rooms``        rooms: what was said, what is being said, who is there; and a message with one request
``  status``       health and readiness
``  channel``      a connection that speaks HTTP: bounds of its requests, and of answers that are not read
``  site``         the tree of URLs
``door``           a connection's first bytes; then a WebSocket or twisted.web takes over
``worker``         puts one worker together: ``python -m chatd.worker``
``parent/``        the process twistd starts; no worker imports it
``  tether``       runs a program that dies with us
``  child``        how a child process is started, why it ended, and how long to wait before the next
``  ending``       how the process ends: by its first signal, or a start that cannot succeed
``  activation``   the sockets that systemd passed, by name
``  ports``        endpoint strings to bound sockets
``  repetition``   trouble that comes again and again, counted
``  serverlog``    the server's own log, as text or JSON
``  state``        the state folder: who uses it, and whether it is still the same
``  memory``       how much memory there is
``  valkey``       the private broker
``  running``      the chatds that run on this host with a private broker
``  worker``       one worker process: what it says, and how to tell it something
``  generation``   the workers of one configuration: spawned, watched, replaced, drained
``  fleet``        the generation that serves, and those before it that drain
``  notify``       what systemd is told of a service
``  report``       what it hears of the fleet
``  rotation``     the rotation of the chat log
``  daemon``       ports, broker and fleet, started, reloaded and stopped in order
``options``        what is in force: the command line before the configuration file before the defaults
``tap``            ``twistd chatd``: options to services
``verify/``        whether the chat logs have all that the histories have; for the command, not the server
``  unreadable``   why nothing can be said
``  ledger``       what histories hold against what logs say; no broker, no files
``  logs``         chat logs as they lie about: rotated, compressed
``  histories``    the histories of all rooms, read from the broker
``cli``            the command ``chatd``: ``chatd verify``, ``chatd token``
``__main__``       the same as ``python -m chatd``
=================  ====================================================================
"""

__version__ = "0.1.0"
