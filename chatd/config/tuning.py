"""Internal bounds: every queue, wait, retry and batch has its limit here, by name and with its unit."""

from dataclasses import dataclass
from typing import Annotated

from chatd.config.values import byte_rate, duration, rate, share, size, whole_number, whole_seconds

EPOCHS_KNOWN = 4
"""Epochs that have ended whose end a worker remembers, for each room and each client that is behind.

What is in doubt is published again within seconds; so many times a broker may die meanwhile.
"""

FORWARDED_MOST = 32
"""Of the addresses in ``X-Forwarded-For``, how many are read, from the right."""

LEEWAY_SECONDS = 5.0
"""How far the clock of who gives tokens may be ahead of ours: a token that is not good yet is, by so much."""

SUBJECT_LENGTH = 255
"""The most characters of a token's ``sub`` (OpenID Connect Core 1.0, section 2); a message carries it."""

NOTIFY_SECONDS = 1.0
"""How long the parent tries to tell systemd what it says but once while the queue is full: that it is ready, say."""

NOTIFY_RETRY_SECONDS = 0.05
"""How long it serves before it tries again."""

NOTIFY_KEPT = 16
"""How much of that it keeps; the oldest is dropped beyond."""

NOTIFY_END_SECONDS = 0.05
"""How long it waits for systemd when it ends."""

TLS_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""What TLS 1.2 may be spoken with, on ssl: listeners: with forward secrecy, and authenticated. TLS 1.3 has no other."""

HISTORY_PAGE = 1000
"""The most messages of history that a JSON client gets in one answer."""


Seconds = Annotated[float, "seconds", "DURATION", duration(0.001, 31_536_000)]
WholeSeconds = Annotated[int, "whole seconds", "DURATION", whole_seconds(1, 31_536_000)]
Bytes = Annotated[int, "bytes", "SIZE", size(1, 2**40)]
Count = Annotated[int, "", "COUNT", whole_number(1, 1_000_000_000)]
Number = Annotated[float, "", "NUMBER", share(0.001, 1e9)]
Share = Annotated[float, "from 0 to 1", "NUMBER", share(0.001, 1)]
Rate = Annotated[str, "", "LIMIT", rate]


@dataclass(frozen=True)
class Tuning:
    """The internal bounds. No operator has needed to change one yet."""

    # The door
    waiting_share: Share = 0.25
    """Of the connections that a worker may have, how many may be such that have not said yet what they want; the one
    that has been so for the longest time gives way to the next."""
    waiting_least: Count = 64
    """At least so many may."""
    head_bytes: Bytes = 8192
    """The longest request line and headers, together."""
    head_seconds: Seconds = 5.0
    """From connecting to the end of the headers."""
    full_house_margin: Count = 64
    """Connections beyond the most that still get to read a 503; what comes after is dropped at once."""
    listen_seconds: Seconds = 3.0
    """How long connections wait in the queues of a worker that starts: until it is ready, but no longer than this."""
    accept_backlog: Count = 1024
    """Connections a listening socket queues for its worker (the kernel's net.core.somaxconn caps it)."""
    spare_descriptors: Count = 64
    """Open files a worker keeps for its log, links and libraries; the rest of RLIMIT_NOFILE is for connections."""
    http_idle_seconds: Seconds = 15.0
    """How long an HTTP connection may say nothing between requests."""
    http_unread_seconds: Seconds = 15.0
    """An HTTP connection is dropped if its client takes nothing for so long of an answer that waits for it."""
    http_unread_look_seconds: Seconds = 3.0
    """How often it is looked whether it does: so much later it may be dropped."""

    # The gate
    auto_message_rate: Number = 5.0
    """What ``auto`` stands for on listeners that others can reach: messages/s,"""
    auto_byte_rate: Number = 65_536.0
    """bytes/s,"""
    auto_connections_per_address: Number = 250.0
    """connections an address,"""
    auto_connection_rate: Number = 600.0
    """new ones a minute,"""
    auto_room_rate: Number = 120.0
    """rooms a minute,"""
    auto_handshake_rate: Number = 1000.0
    """handshakes a second a worker,"""
    auto_request_rate: Number = 20.0
    """requests a second an address,"""
    auto_address_message_rate: Number = 100.0
    """messages a second an address,"""
    auto_address_byte_rate: Number = 524_288.0
    """bytes a second an address."""
    limit_requests_seconds: Seconds = 10.0
    """How many seconds' worth of its requests an address may make at once."""
    limit_read_bytes: Bytes = 65_536
    """Bytes of text whose reading costs as much as a request."""
    limit_debt_seconds: Seconds = 30.0
    """How many seconds' worth of messages, bytes and requests a client or an address may owe."""
    limit_addresses: Count = 65_536
    """Addresses whose limits a worker keeps."""
    limit_rooms_known: Count = 16_384
    """Rooms that a worker remembers to have been made, so that they are not counted again."""
    limit_reported: Count = 1000
    """Addresses of which a worker tells the others at once; if there are more, they take turns."""
    limit_looked: Count = 2048
    """Addresses that a worker looks at in one go: whether others have to know of them, whether they are forgotten."""
    limit_seconds: Seconds = 1.0
    """How often it does."""
    limit_kept_seconds: WholeSeconds = 15
    """How long what it told is taken to be so: longer, and it is dead."""
    flood_warnings: Count = 20
    """How many messages in a row may be refused for coming too fast before the client is closed with 4029."""
    overdue_bytes: Bytes = 16_777_216
    """What clients that left may have left behind that is still to be said at their pace, on a worker."""
    left_bytes: Bytes = 16_777_216
    """Text of clients that left and that waits for a broker, on a worker; a message counts ``message_overhead_bytes``
    beside its text."""
    refused_origins_told: Count = 20
    """Origins of refused pages that a worker logs, each of them once."""
    token_warning_seconds: Seconds = 60.0
    """How long before a token runs out its bearer is told."""
    watch_seconds: Seconds = 1.0
    """How often files of keys, bans and revoked tokens are looked at; one is read when it is as the last time,"""
    watch_looks: Count = 5
    """or after so many looks at which it was not."""

    # One client
    timer_seconds: Seconds = 0.1
    """How late a client's timers may come: those that are due within it share one."""
    join_seconds: Seconds = 5.0
    """How long a handshake waits for the room's subscription before it is answered 503."""
    crowded_backlog: Bytes = 262_144
    """What may wait for a client while more than ``max_backlog_total`` waits for all: beyond it one that asks for more
    is closed,"""
    crowded_step: Bytes = 65_536
    """and about how much of history a client that is behind then gets at once."""
    questions: Count = 8
    """What a client may ask for without having an answer (``/who``, ``/last``, …)."""
    retry_seconds: Seconds = 5.0
    """When a client is told to try again what could not be done for now."""
    stalled_seconds: Seconds = 60.0
    """The same, if its kernel answers, while something waits for it, or it has yet to read what its kernel keeps:"""
    slowest_bytes: Bytes = 10_000
    """which it does with so many bytes a second."""
    close_seconds: Seconds = 2.0
    """From our Close frame, or our answer to the client's, to dropping the connection."""
    report_seconds: Seconds = 1.0
    """How long clients that something befalls are counted before the log says so, in one line."""
    marks: Count = 64
    """Positions, a second or so apart, of which it is not yet known whether a client with a resume key has got them."""
    reread_bytes: Bytes = 4096
    """How much of a frame that is not whole yet is looked at anew with each read; then it is read as it comes."""
    empty_fragments: Count = 65_536
    """Frames of one message that hold nothing; how many others there may be follows from ``max_message``."""
    slice_texts: Count = 512
    """Text messages of one client that are taken before others have their turns,"""
    slice_steps: Count = 32
    """and steps in anything else that it sends, two a frame."""
    slice_requests: Count = 8
    """HTTP requests of one connection that are answered before others have their turns;"""
    slice_bytes: Bytes = 256
    """so many bytes of their heads, or of a body in chunks, count as one more."""
    flood_seconds: Seconds = 5.0
    """How long a client may send more of that than is taken, before it is closed with 4029."""
    flood_rest_seconds: Seconds = 1.0
    """After so long without any of it waiting that begins anew."""
    slice_rest: Number = 4.0
    """For how many times as long as such steps took there is rest, before more of them are taken."""

    # The bus
    batch_bytes: Bytes = 262_144
    """What goes over the wire at once for one room, about; and what a worker hears before it fans out at once."""
    window_bytes: Bytes = 4_194_304
    """Text that one worker may have published without an answer; beyond it senders are not read."""
    message_overhead_bytes: Bytes = 200
    """What a message costs in the window, and as JSON, beside its text."""
    bus_connect_seconds: Seconds = 5.0
    """From dialling the broker to a link that can be used."""
    sentinel_seconds: Seconds = 1.0
    """How long a Sentinel may take to answer, and how often one is asked whether the master is still the same."""
    shard_wait_seconds: Seconds = 10.0
    """How long a worker that starts waits for a broker that is away, where there are others."""
    bus_retry_first_seconds: Seconds = 0.1
    """Before the first attempt to reach the broker again; grows by half each time."""
    bus_retry_most_seconds: Seconds = 1.0
    """The longest wait between attempts to reach the broker."""
    bus_tick_seconds: Seconds = 1.0
    """How often a link is looked at; one that was silent for a tick is asked for a sign of life."""
    bus_silent_ticks: Count = 4
    """Ticks without a byte from the broker after which a link is dead: known within 5 s."""
    bus_settle_seconds: Seconds = 1.2
    """After an outage, before anything is published again: as long as the slowest other worker takes to be back."""
    bus_queries: Count = 16
    """Questions to the broker that are on their way at once; the others wait."""
    query_seconds: Seconds = 60.0
    """How long one is asked again that the broker refuses."""
    probe_seconds: Seconds = 2.0
    """How long readiness waits for a probe to come back through the bus."""
    answered_seconds: Seconds = 7.0
    """How far back batches are published again to a broker that started anew, or took another's place: the last may not
    have passed them on. That is longer than it takes to know that one is dead."""
    republish_memory_seconds: WholeSeconds = 300
    """How long the broker knows a batch, so that one whose answer got lost is not published twice."""
    room_memory_seconds: WholeSeconds = 86_400
    """How long the broker remembers a silent room's newest offset."""
    publishers_known: Count = 1024
    """Publishers whose newest batch a worker remembers, for each room."""
    compare_seconds: Seconds = 10.0
    """How often a worker looks whether it has the newest message of its rooms."""
    compare_rooms: Count = 500
    """Rooms that are compared in one go."""
    history_bytes: Bytes = 262_144
    """What is read of a room's history at once, about."""
    unreadable_known: Count = 256
    """Entries of histories that can't be read which a worker remembers, so that it logs each of them once."""
    recent_seconds: WholeSeconds = 10
    """What was said in the last so many seconds is kept however many messages that is, as far as there is history:"""
    recent_bytes: Bytes = 8_388_608
    """but no more than the last so many bytes of a room; up to twice as much of either."""
    held_bytes: Bytes = 1_048_576
    """What a room holds back while it reads what is missing before it; the rest is read then too."""
    held_total_bytes: Bytes = 67_108_864
    """What all rooms of a worker hold back together; beyond it a room reads again what it could not hold."""
    place_seconds: Seconds = 1.0
    """How often the places of clients with a resume key are written to the broker, where they moved."""
    mark_seconds: Seconds = 0.1
    """How long after it was given something a client with a resume key learns its position,"""
    marked_members: Count = 20
    """if no more of them than that are on the worker; else when places are written."""
    place_again_seconds: Seconds = 60.0
    """How often they are written where they did not move: who has lost its place unheard learns it by that."""
    places: Count = 500
    """Places that are written in one go."""
    takeover_seconds: Seconds = 2.0
    """How long a client that comes back waits for the worker that still holds its last connection."""
    takeovers: Count = 5
    """How often clients that have one resume key may take the place from each other at once,"""
    takeover_rest_seconds: WholeSeconds = 10
    """and after how long they may once more. It counts only if the client it was taken from was still there."""

    linger_seconds: Seconds = 10.0
    """How long a client with a resume key may be away without being said to have left."""
    alive_seconds: WholeSeconds = 30
    """Without a sign of life for so long a worker is dead, and its members are gone from their rooms."""
    nick_choices: Count = 64
    """The most names that are tried at once for a nick: ann, then ann*2 and ann*3, then the next four, and so on."""
    nick_rounds: Count = 400
    """How often that is done, before the client is told that there is none: about 25,000 names."""
    presence_steps: Count = 500
    """Members that come and go in one room in one go,"""
    presence_names: Count = 1000
    """and names that are tried for them."""
    presence_list_seconds: Seconds = 1.0
    """How long a worker that missed who came and went waits to read it: it may have missed more."""
    presence_list_retry_most_seconds: Seconds = 60.0
    """The longest wait before the members of a room are read again, when that failed; it doubles from the one above."""
    presence_held: Count = 1000
    """Of who comes and goes, how much waits for messages that are missing before it."""

    # HTTP
    followers_share: Share = 0.5
    """Of the connections that a worker may have, how many may follow rooms over HTTP."""
    body_seconds: Seconds = 10.0
    """From the head of a request to the end of its body."""
    heartbeat_seconds: Seconds = 25.0
    """How often a stream of events, or of JSON lines, says that it is still there, unless its client asks otherwise."""
    keepalive_seconds: WholeSeconds = 25
    """How long the client of a stream may be silent before its kernel is asked for a sign of life,"""
    keepalive_again_seconds: WholeSeconds = 5
    """how long each answer is waited for,"""
    keepalive_probes: Count = 3
    """and how many of them may be missing before the connection is dropped."""
    rooms_listed: Count = 1000
    """The most rooms that are listed."""
    rooms_step_keys: Count = 500
    """Keys of the broker that are looked at in one step, for those of rooms,"""
    rooms_steps: Count = 100
    """and how many steps at most."""
    rooms_seconds: Seconds = 1.0
    """How long a list of rooms is good, at least;"""
    rooms_rest: Number = 20.0
    """and for how many times as long as it took: a broker with many rooms is asked more rarely."""
    ready_kept_seconds: Seconds = 0.2
    """How long the answer to a question for readiness is good."""

    # The chat log
    log_check_seconds: Seconds = 0.5
    """How often the chat log is looked for: one that was renamed or removed is opened anew."""
    log_lock_seconds: Seconds = 1.0
    """How long another process may hold the lock of the chat log; then messages are refused."""
    log_spin_seconds: Seconds = 0.001
    """How long a worker waits for that lock in its event loop,"""
    log_retry_seconds: Seconds = 0.01
    """and how long it serves its clients before it tries again."""
    log_calm_seconds: Seconds = 5.0
    """After a write that failed, before the log is said to be good again without a write of that size."""

    rotation_look_seconds: Seconds = 0.2
    """How often it is looked whether the chat log is to be rotated."""
    rotation_lock_seconds: Seconds = 5.0
    """How long a rotation waits for those who write; then it is tried again."""

    # chatd verify
    log_line_bytes: Bytes = 8_388_608
    """The longest line of a chat log that is read: more than the longest message with all of it escaped."""
    rotation_seconds: Seconds = 5.0
    """How long the renaming of chat logs may take while they are opened."""
    verify_keys: Count = 1000
    """Keys of the broker that are looked at in one step, for those of histories."""
    verify_entries: Count = 16
    """Batches of a history that are read in one step."""

    # The server's own log
    log_kinds: Count = 256
    """Kinds of trouble of which it is known when they were said last."""
    log_look_seconds: Seconds = 1.0
    """How often it is looked whether what was counted is to be said."""

    # What is counted
    metrics_seconds: Seconds = 1.0
    """How often a process writes what it has counted to where all are added up."""
    metrics_kept_seconds: Seconds = 0.5
    """How long a sum of all processes is good."""

    # The parent
    restart_first_seconds: Seconds = 0.1
    """Before a worker or broker that died is started again; doubles each time."""
    restart_most_seconds: Seconds = 30.0
    """The longest such wait."""
    restart_healthy_seconds: Seconds = 60.0
    """A child that lived this long starts again with the first wait."""
    start_tries: Count = 5
    """How often a worker, or the private broker, may end before all workers were ready once: then the start ends."""
    worker_heartbeat_seconds: Seconds = 1.0
    """How often a worker says how it is."""
    worker_heartbeats_missed: Count = 3
    """How often it may fail to, and still count as one that answers."""
    frozen_seconds: Seconds = 10.0
    """A worker that was not heard of for so long is killed, and replaced."""
    start_seconds: Seconds = 60.0
    """How long one may take to be heard of for the first time."""
    reload_seconds: Seconds = 30.0
    """At a reload, how long the new workers may take to be ready; after it nothing changes."""
    drained_look_seconds: Seconds = 0.25
    """How often a worker that drains looks whether everybody has gone."""
    unsaved_seconds: Seconds = 3600.0
    """How long one that has drained waits for a broker that is away, to keep the positions of clients there."""
    draining_most: Count = 3
    """Generations of old workers that drain at once; one that is older ends sooner."""
    hold_seconds: Seconds = 4.0
    """At a stop, how long workers may take to publish what they have taken."""
    stop_seconds: Seconds = 4.0
    """At a stop, how long workers may then take to close their clients and end; after it they are killed."""
    stop_probe_part: Share = 0.22
    """Until which part of that time a worker waits for what others published,"""
    stop_close_part: Share = 0.75
    """until which part for its clients to close,"""
    stop_save_part: Share = 0.82
    """and until which part for the broker to keep resume positions;"""
    stop_lock_part: Share = 0.05
    """for which part of it a worker then waits for the lock of the chat log."""
    kill_seconds: Seconds = 0.5
    """How long the end of a killed process may take to be known."""
    broker_stop_seconds: Seconds = 1.5
    """At a stop, how long the private broker may take; after it it is killed."""
    memory_seconds: Seconds = 0.25
    """How often a worker looks at the memory of the private broker,"""
    memory_turn_seconds: Seconds = 2.0
    """and for how long the one that makes room does so, unless it looks again."""
    memory_high: Share = 0.9
    """From which part of it on histories are dropped,"""
    memory_low: Share = 0.8
    """and until which part."""
    memory_keys: Count = 1000
    """Keys of the broker that are looked at in one step, for those of histories,"""
    memory_histories: Count = 500
    """how many of the oldest ones are dropped before all are looked at again,"""
    memory_drops: Count = 8
    """and after how many of them the memory is looked at again."""
    memory_rest_seconds: Seconds = 1.0
    """If no history is left to drop: after how long histories are looked at again. It doubles each time,"""
    memory_rest_most_seconds: Seconds = 30.0
    """up to so long."""
    memory_part: Count = 4
    """The part (one in so many) of this host's memory that a private broker may use where nobody says how much,"""
    memory_least: Bytes = 67_108_864
    """and at least so many bytes."""
    state_lock_seconds: Seconds = 2.0
    """How long the broker of a chatd that was killed may hold on to the state folder."""
    relayed_line_bytes: Bytes = 65_536
    """The longest line a worker may say to the parent."""

    # Options of earlier releases that no operator had to change
    room_rate: Rate = "auto"
    """Maximum new rooms per address and minute: rooms that its clients enter first."""
    handshake_rate: Rate = "auto"
    """Maximum new connections per worker and second, from all addresses together."""
    address_message_rate: Rate = "auto"
    """Maximum messages per second of all clients of one address together."""
    address_byte_rate: Annotated[str, "bytes per second", "LIMIT", byte_rate] = "auto"
    """Maximum message text of all clients of one address together."""
    rooms_per_client: Annotated[int, "", "COUNT", whole_number(1, 10_000)] = 100
    """Maximum rooms that one chatd.v1 client is in at once."""
    presence_limit: Annotated[int, "", "COUNT", whole_number(0, 100_000)] = 500
    """Maximum members of a room that are listed and whose joins and leaves are announced; larger rooms show a count."""
    worker_send_buffers: Annotated[int, "bytes", "SIZE", size(65_536, 2**40)] = 268_435_456
    """Maximum data in the send buffers of all clients of a worker. Beyond it, every client with more than 64 KiB gets
    the rest from history as it reads."""
    publish_timeout: Annotated[float, "seconds", "DURATION", duration(0, 86_400)] = 10.0
    """How long a client that sends waits for an unreachable broker before it is closed with 1013."""
    flush_interval: Annotated[float, "seconds", "DURATION", duration(0, 1)] = 0.002
    """Minimum time between two batches of a worker in each direction. 0 sends at each turn of the event loop."""
    log_repeat_interval: Annotated[float, "seconds", "DURATION", duration(0, 86_400)] = 60.0
    """Log a recurring problem at most once per interval, with a repeat count. 0 logs every occurrence."""
