"""Internal bounds of queues, waits, retries, batches and rates, and other rarely set values, each with its unit."""

from dataclasses import dataclass
from typing import Annotated

from chatd.config.values import byte_rate, duration, one_of, rate, share, size, whole_number, whole_seconds

Seconds = Annotated[float, "seconds", "DURATION", duration(0.001, 31_536_000)]
WholeSeconds = Annotated[int, "whole seconds", "DURATION", whole_seconds(1, 31_536_000)]
Bytes = Annotated[int, "bytes", "SIZE", size(1, 2**40)]
Count = Annotated[int, "count", "COUNT", whole_number(1, 1_000_000_000)]
Number = Annotated[float, "number", "NUMBER", share(0.001, 1e9)]
Share = Annotated[float, "share, up to 1", "NUMBER", share(0.001, 1)]
Rate = Annotated[str, "number, off or auto", "LIMIT", rate]
ByteRate = Annotated[str, "bytes per second, off or auto", "LIMIT", byte_rate]


@dataclass(frozen=True)
class Tuning:
    """The internal bounds, which operators rarely need to change. Sections are the packages that use them."""

    # worker: connections before their first request
    worker_connections: Annotated[int, "count", "COUNT", whole_number(1, 1_000_000)] = 10_000
    """Maximum connections of one worker. The limit is lower if the operating system lets a worker open fewer files."""
    unidentified_connections_share: Share = 0.25
    """Maximum share of a worker's connections that have not sent a whole request yet. Beyond it, the oldest of them is
    dropped."""
    unidentified_connections_min: Count = 64
    """Connections without a whole request that a worker accepts even if their share is larger than
    unidentified_connections_share."""
    client_header_size: Bytes = 8192
    """Maximum size of the request line and the headers together. Longer ones are refused with 431."""
    client_header_timeout: Seconds = 5.0
    """Maximum time from connecting, or from the first byte of a later request, to the end of the headers. Later ones
    are refused with 408."""
    rejected_connections_margin: Count = 64
    """Connections beyond the maximum of a worker that still get the answer 503. Further ones are dropped without an
    answer."""
    listen_delay: Seconds = 3.0
    """Maximum time for which a starting worker that is not ready leaves connections in the queues of its sockets. After
    it, the worker accepts them."""
    listen_backlog: Count = 1024
    """Maximum connections in the queue of a listening socket. The kernel lowers it to net.core.somaxconn and drops
    further connections."""
    reserved_open_files: Count = 64
    """Open files that a worker reserves for logs, brokers and libraries. The rest of RLIMIT_NOFILE bounds its
    connections."""

    # access: rate limits, tokens, watched files
    auto_message_rate: Number = 5.0
    """Value of message_rate if it is auto and other hosts can connect: messages per client and second."""
    auto_byte_rate: Number = 65_536.0
    """Value of byte_rate if it is auto and other hosts can connect: bytes of text per client and second."""
    auto_connections_per_address: Number = 250.0
    """Value of connections_per_address if it is auto and other hosts can connect: open connections per address."""
    auto_connection_rate: Number = 600.0
    """Value of connection_rate if it is auto and other hosts can connect: new connections per address and minute."""
    auto_room_rate: Number = 120.0
    """Value of room_rate if it is auto and other hosts can connect: new rooms per address and minute."""
    auto_handshake_rate: Number = 1000.0
    """Value of handshake_rate if it is auto and other hosts can connect: new connections per worker and second."""
    auto_request_rate: Number = 20.0
    """Value of request_rate if it is auto and other hosts can connect: requests per address and second."""
    auto_address_message_rate: Number = 100.0
    """Value of address_message_rate if it is auto and other hosts can connect: messages per address and second."""
    auto_address_byte_rate: Number = 524_288.0
    """Value of address_byte_rate if it is auto and other hosts can connect: bytes of text per address and second."""
    message_burst: Annotated[int, "count", "COUNT", whole_number(1, 1_000_000)] = 10
    """Maximum messages that a client may send at once before message_rate slows it down."""
    byte_rate: ByteRate = "auto"
    """Maximum message text per client, in bytes per second. Faster ones are slowed down or refused."""
    connections_per_address: Rate = "auto"
    """Maximum open connections per address (IPv6: per /64 network). Further ones are refused with 429."""
    connection_rate: Rate = "auto"
    """Maximum new connections per address and minute. Further ones are refused with 429."""
    request_rate: Rate = "auto"
    """Maximum HTTP requests, and requests of WebSocket clients for history or members, per address and second, averaged
    over request_burst_time. Further ones are refused."""
    room_rate: Rate = "auto"
    """Maximum new rooms per address and minute: rooms that its clients enter first. Further ones are refused."""
    handshake_rate: Rate = "auto"
    """Maximum new connections per worker and second, from all addresses together. Further ones are refused with 503."""
    address_message_rate: Rate = "auto"
    """Maximum messages per second of all clients of one address together. Faster ones are slowed down or refused."""
    address_byte_rate: ByteRate = "auto"
    """Maximum message text of all clients of one address together, in bytes per second. Faster ones are slowed down or
    refused."""
    rooms_per_client: Annotated[int, "count", "COUNT", whole_number(1, 10_000)] = 100
    """Maximum rooms that one chatd.v1 client is in at once. Further joins are refused."""
    request_burst_time: Seconds = 10.0
    """Time over which request_rate is averaged. An address may make the requests of this time at once."""
    read_bytes_per_request: Bytes = 65_536
    """Bytes of message text whose reading is charged to request_rate like one request."""
    rate_limit_debt_time: Seconds = 30.0
    """Maximum debt of a client or an address, as the time in which its rate pays the debt back. More is not charged."""
    rate_limit_addresses: Count = 65_536
    """Maximum addresses without connections whose rate limits a worker stores. Beyond it, the oldest is forgotten."""
    rate_limit_rooms: Count = 16_384
    """Maximum rooms whose creation a worker remembers, so that room_rate counts each once. Beyond it, the oldest is
    forgotten."""
    shared_limits_per_report: Count = 1000
    """Maximum addresses that a worker reports to the other workers at once. More addresses are reported in turns."""
    shared_limits_per_scan: Count = 2048
    """Maximum addresses that a worker checks at once for changes to report, and for entries to forget. The others
    follow at the next check."""
    shared_limits_interval: Seconds = 1.0
    """Interval at which workers exchange the usage of addresses."""
    shared_limits_ttl: WholeSeconds = 15
    """Time for which a worker's report about an address counts on other workers. After it, the report is ignored."""
    refused_messages_before_close: Count = 20
    """Maximum messages in a row that a client may have refused by its rate limit. After one more, it is closed with
    close code 4029."""
    disconnected_slowed_bytes: Bytes = 16_777_216
    """Maximum text of disconnected clients that waits for their rate limits, per worker. Beyond it, the messages of one
    more client are not published."""
    disconnected_unpublished_bytes: Bytes = 16_777_216
    """Maximum text of disconnected clients that waits for an unreachable broker, per worker. Beyond it, the messages of
    one more client are not published."""
    logged_origins: Count = 20
    """Maximum origins of refused web pages that a worker logs, each once. Further ones are not logged."""
    auth_require: Annotated[tuple[str, ...], "exp, rooms, sub", "CLAIM", one_of("exp", "rooms", "sub")] = ()
    """Claims without which a token is refused, each exp, rooms or sub. A list; --tuning adds one each time."""
    token_expiry_warning_time: Seconds = 60.0
    """Time before the end of a token's lifetime at which its client is warned."""
    file_check_interval: Seconds = 1.0
    """Interval at which files of keys, bans and revoked tokens are checked for changes. A changed file is read once it
    stops changing."""
    file_unstable_checks: Count = 5
    """Maximum checks for which a file that changes all the time is not read. After them, it is read as it is."""

    # clients: one connection
    client_timer_resolution: Seconds = 0.1
    """Maximum delay of a client's timers. Timers that are due within it share one timer of the reactor."""
    subscribe_timeout: Seconds = 5.0
    """Maximum time that a handshake or a join waits for the subscription of its room. After it, the client gets an
    error (503)."""
    reduced_send_buffer: Bytes = 262_144
    """Maximum send buffer of one client while worker_send_buffers is exceeded. A client beyond it that asks for more is
    closed."""
    reduced_recovery_bytes: Bytes = 65_536
    """About how much history a client that recovers gets at once while worker_send_buffers is exceeded."""
    pending_queries_per_client: Count = 8
    """Maximum unanswered requests of a client that need the broker (/who, /last, history). Further ones are refused."""
    retry_after: Seconds = 5.0
    """Maximum time after which a client is told to repeat a request that failed for the moment."""
    stalled_client_timeout: Seconds = 60.0
    """Maximum time for which a client that answers no ping may read nothing, if its kernel answers. After it, the
    client is dropped."""
    stalled_client_byte_rate: Bytes = 10_000
    """Minimum rate, in bytes per second, at which a client must read what is in the buffer of its kernel. A slower
    client is dropped."""
    close_timeout: Seconds = 2.0
    """Maximum time from a Close frame, or from an error response, to dropping the connection."""
    client_report_interval: Seconds = 1.0
    """Interval in which events of the same kind at several clients are counted and logged as one line."""
    unconfirmed_positions_per_client: Count = 64
    """Maximum stream positions of a client with a resume key that wait for proof of receipt. Beyond it, every second
    one is dropped."""
    frame_reparse_bytes: Bytes = 4096
    """Maximum part of an incomplete frame that is parsed again at each read. A longer one is parsed as it comes."""
    empty_fragments_per_message: Count = 65_536
    """Maximum empty frames in one WebSocket message. A client that sends more is closed with 1009."""
    messages_per_turn: Count = 512
    """Maximum text messages of one client that are handled before other clients have a turn."""
    frame_steps_per_turn: Count = 32
    """Maximum parser steps, two per frame, for other frames of one client before other clients have a turn."""
    http_requests_per_turn: Count = 8
    """Maximum HTTP requests of one connection that are answered before other connections have a turn."""
    http_bytes_per_step: Bytes = 256
    """Bytes of HTTP heads or chunked bodies that count as one more request in http_requests_per_turn."""
    frame_flood_timeout: Seconds = 5.0
    """Maximum time for which a client may send other frames faster than they are handled. After it, the client is
    closed with 4029."""
    frame_flood_reset_time: Seconds = 1.0
    """Time without waiting frames after which frame_flood_timeout starts again."""
    frame_rest_factor: Number = 4.0
    """Pause after handling control frames and fragments, as a multiple of the time that they took. Meanwhile only
    messages are handled."""
    worker_send_buffers: Annotated[int, "bytes", "SIZE", size(65_536, 2**40)] = 268_435_456
    """Maximum data in the send buffers of all clients of a worker. Beyond it, every client with more than 64 KiB gets
    the rest from history as it reads."""

    # rooms: publishing, ordering, recovery
    flush_interval: Annotated[float, "seconds", "DURATION", duration(0, 1)] = 0.002
    """Minimum time between two batches of a worker in each direction. 0 sends at each turn of the event loop."""
    batch_bytes: Bytes = 262_144
    """About how much text one batch of a room has at most. More is published as several batches, and a worker that
    received as much broadcasts at once."""
    publish_timeout: Annotated[float, "seconds", "DURATION", duration(0, 86_400)] = 10.0
    """Time that a client that sends waits for an unreachable broker before it is closed with 1013."""
    history_read_bytes: Bytes = 262_144
    """About how much of a room's history one read returns. More is read in several steps."""
    gap_buffer_bytes_per_room: Bytes = 1_048_576
    """Maximum text that a room holds back while it reads a gap. The rest is read from history as well."""
    gap_buffer_bytes: Bytes = 67_108_864
    """Maximum text that all rooms of a worker hold back together. The rest is read from history as well."""
    publishers_per_room: Count = 1024
    """Maximum publishers per room whose newest batch a worker remembers. Beyond it, the oldest is forgotten."""
    held_presence_events: Count = 1000
    """Maximum presence events of a room that wait for messages before them. Beyond it, they are delivered before those
    messages."""
    resume_position_write_interval: Seconds = 1.0
    """Interval at which resume positions that have changed are written to the broker."""
    resume_position_send_delay: Seconds = 0.1
    """Time after a broadcast at which a client with a resume key is sent its position, if
    resume_position_prompt_subscribers allows it."""
    resume_position_prompt_subscribers: Count = 20
    """Maximum clients with a resume key on a worker for resume_position_send_delay. More are sent positions when these
    are written."""
    resume_position_refresh_interval: Seconds = 60.0
    """Interval at which unchanged resume positions are written. A client whose connection was taken over unnoticed is
    found by it."""
    resume_positions_per_write: Count = 500
    """Maximum resume positions that are written at once. The others follow in later turns."""
    takeover_timeout: Seconds = 2.0
    """Maximum time that a returning client waits for the worker of its last connection. After it, the stored position
    is used."""
    takeover_burst: Count = 5
    """Maximum times at once that clients with one resume key may take over from a client that is still connected.
    Further ones are refused."""
    takeover_interval: WholeSeconds = 10
    """Interval after which one more takeover beyond takeover_burst is allowed."""
    room_list_ttl: Seconds = 1.0
    """Minimum time for which a list of rooms is reused."""
    room_list_ttl_factor: Number = 20.0
    """Minimum time for which a list of rooms is reused, as a multiple of the time that it took to make."""

    # broker: Redis or Valkey
    unconfirmed_publish_bytes: Bytes = 4_194_304
    """Maximum text that a worker has published without an answer from the broker. Beyond it, clients that send are not
    read."""
    message_overhead_bytes: Bytes = 200
    """Bytes that a message counts beside its text in unconfirmed_publish_bytes and in the size of histories."""
    redis_connect_timeout: Seconds = 5.0
    """Maximum time from connecting to a broker until the connection can be used. After it, the attempt has failed."""
    redis_reconnect_min_delay: Seconds = 0.1
    """Delay before the first attempt to reach a lost broker again. It grows by half with each attempt."""
    redis_reconnect_max_delay: Seconds = 1.0
    """Maximum delay between two attempts to reach a broker."""
    redis_ping_interval: Seconds = 1.0
    """Interval at which a broker connection is checked. A connection that was silent for it gets a PING."""
    redis_missed_pings: Count = 4
    """Intervals of redis_ping_interval without data after which a broker connection is considered dead."""
    redis_settle_delay: Seconds = 1.2
    """Delay after an outage before messages are published again, so that the other workers are subscribed."""
    redis_concurrent_queries: Count = 16
    """Maximum queries of a worker that a broker connection has in flight. Further ones wait in a queue."""
    redis_query_timeout: Seconds = 60.0
    """Maximum time for which a query that the broker refuses is repeated. After it, the query fails."""
    sentinel_timeout: Seconds = 1.0
    """Maximum time for an answer of a Sentinel, and interval at which one is asked whether the master is still the
    same."""
    shard_start_timeout: Seconds = 10.0
    """Maximum time that a starting worker waits for an unreachable broker if another broker can be reached."""
    readiness_probe_timeout: Seconds = 2.0
    """Maximum time that a readiness check waits for its probe to return through the broker. After it, the broker counts
    as unreachable."""
    republish_window: Seconds = 7.0
    """Time for which answered batches are kept, to be published again if the broker is replaced. It exceeds the time to
    detect a dead broker."""
    batch_id_ttl: WholeSeconds = 300
    """Time for which the broker remembers the id of a batch, so that a repeated batch is not published twice."""
    room_offset_ttl: WholeSeconds = 86_400
    """Minimum time for which the broker remembers the newest offset of a silent room."""
    offset_check_interval: Seconds = 10.0
    """Interval at which a worker compares its offsets with those of the broker, and reads batches that it missed."""
    rooms_per_offset_check: Count = 500
    """Maximum rooms in one comparison with the broker. Further rooms are compared in further steps."""
    logged_unreadable_entries: Count = 256
    """Maximum unreadable history entries that a worker remembers, so that each is logged once. Beyond it, the oldest is
    forgotten."""
    recent_history_time: WholeSeconds = 10
    """Time for which messages stay in history even if there are more than history_size. They may stay up to twice as
    long."""
    recent_history_bytes: Bytes = 8_388_608
    """Maximum text that recent_history_time keeps per room. Up to twice as much may stay."""
    presence_limit: Annotated[int, "count", "COUNT", whole_number(0, 100_000)] = 500
    """Maximum members of a room that are listed and whose joins and leaves are announced; larger rooms show a count."""
    presence_leave_delay: Seconds = 10.0
    """Time that a client with a resume key may be disconnected before its leave is announced."""
    worker_presence_ttl: WholeSeconds = 30
    """Time without a heartbeat after which a worker is considered dead, and its members are removed from their
    rooms."""
    nicks_per_attempt: Count = 64
    """Maximum names that are tried at once for a nick: ann, then ann*2 and ann*3, then the next four, and so on."""
    nick_attempts: Count = 400
    """Maximum attempts to find a free nick. After them, the client is refused; with the default, after about 25,000
    names."""
    presence_changes_per_write: Count = 500
    """Maximum joins and leaves of one room that are written at once. The others follow."""
    presence_nicks_per_write: Count = 1000
    """Maximum names that are tried in one write of joins and leaves. Further changes follow in the next write."""
    presence_list_delay: Seconds = 1.0
    """Delay before a worker that missed presence events reads the members of a room. After a failure it doubles."""
    presence_list_max_delay: Seconds = 60.0
    """Maximum delay before the members of a room are read again after a failure."""
    listed_rooms: Count = 1000
    """Maximum rooms in a list of rooms. Further ones are left out."""
    room_list_keys_per_scan: Count = 500
    """About how many keys the broker looks at in one SCAN for a list of rooms."""
    room_list_scans: Count = 100
    """Maximum SCAN commands for one list of rooms. Rooms that are not found by then are left out."""
    eviction_check_interval: Seconds = 0.25
    """Interval at which a worker checks the memory of the private broker."""
    eviction_lock_ttl: Seconds = 2.0
    """Time for which one worker alone drops histories. It is renewed while that worker continues."""
    eviction_start_share: Share = 0.9
    """Share of redis_maxmemory from which histories of silent rooms are dropped."""
    eviction_stop_share: Share = 0.8
    """Share of redis_maxmemory at which no more histories are dropped."""
    eviction_keys_per_scan: Count = 1000
    """About how many keys the broker looks at in one SCAN for histories."""
    eviction_histories_per_scan: Count = 500
    """Maximum histories, the oldest ones first, that are dropped before all histories are compared again."""
    eviction_drops_per_check: Count = 8
    """Histories that are dropped before the memory is measured again."""
    eviction_min_delay: Seconds = 1.0
    """Delay before histories are looked for again if none is left to drop. It doubles with each attempt."""
    eviction_max_delay: Seconds = 30.0
    """Maximum delay before histories are looked for again."""

    # web: HTTP
    hsts_max_age: Annotated[int, "whole seconds", "DURATION", whole_seconds(0, 63_072_000)] = 0
    """Time for which browsers use only HTTPS for this host name, on every port (Strict-Transport-Security). 0 does not
    send the header."""
    http_keepalive_timeout: Seconds = 15.0
    """Maximum time that an HTTP connection may be idle between requests. After it, the connection is closed."""
    http_send_timeout: Seconds = 15.0
    """Maximum time for which a client may read nothing of a waiting answer. After it, the connection is dropped."""
    http_send_check_interval: Seconds = 3.0
    """Interval at which it is checked whether a client reads. A connection is dropped later by up to this time."""
    client_body_timeout: Seconds = 10.0
    """Maximum time from the end of the headers to the end of the body. Later ones are refused with 408."""
    stream_connections_share: Share = 0.5
    """Maximum share of a worker's connections that are HTTP streams of rooms. Further ones are refused with 503."""
    stream_heartbeat_interval: Seconds = 25.0
    """Interval at which an HTTP stream sends a heartbeat, unless its client asks for another one."""
    tcp_keepalive_time: WholeSeconds = 25
    """Time without data after which the kernel of a stream's client gets a TCP keepalive probe."""
    tcp_keepalive_interval: WholeSeconds = 5
    """Interval between TCP keepalive probes of an HTTP stream."""
    tcp_keepalive_probes: Count = 3
    """Unanswered TCP keepalive probes after which a client is considered gone."""
    readiness_ttl: Seconds = 0.2
    """Time for which the result of a readiness check is reused."""

    # chatlog: writing, rotation, chatd verify
    chat_log_check_interval: Seconds = 0.5
    """Interval at which the chat log's path is checked. A file that was renamed or removed is opened anew."""
    chat_log_lock_timeout: Seconds = 1.0
    """Maximum time that another process may hold the lock of the chat log. After it, messages are refused."""
    chat_log_lock_wait: Seconds = 0.001
    """Maximum time that a worker waits for the lock of the chat log without serving its clients."""
    chat_log_lock_retry_delay: Seconds = 0.01
    """Delay before a worker that did not get the lock of the chat log tries again."""
    chat_log_settle_time: Seconds = 5.0
    """Time after a failed write at which the chat log counts as writable again without a write of that size."""
    rotation_check_interval: Seconds = 0.2
    """Interval at which it is checked whether the chat log has to be rotated."""
    rotation_lock_timeout: Seconds = 5.0
    """Maximum time that a rotation waits for the lock of the chat log. After it, the rotation is tried again later."""
    verify_line_bytes: Bytes = 8_388_608
    """Maximum length of a line that chatd verify reads in a chat log. A longer line counts as unreadable."""
    verify_rename_timeout: Seconds = 5.0
    """Maximum time for which chatd verify opens chat logs again because a rotation renames them."""
    verify_keys_per_scan: Count = 1000
    """About how many keys the broker looks at in one SCAN when chatd verify looks for histories."""
    verify_batches_per_read: Count = 16
    """Maximum batches of a history that chatd verify reads at once."""

    # monitoring: metrics and the server log
    metrics_write_interval: Seconds = 1.0
    """Interval at which each process writes its metrics to the shared directory."""
    metrics_ttl: Seconds = 0.5
    """Time for which the sum of the metrics of all processes is reused."""
    log_repeat_interval: Annotated[float, "seconds", "DURATION", duration(0, 86_400)] = 60.0
    """Log a recurring problem at most once per interval, with a repeat count. 0 logs every occurrence."""
    log_repeat_events: Count = 256
    """Maximum kinds of events whose last occurrence is remembered for log_repeat_interval. Beyond it, the oldest is
    forgotten."""
    log_repeat_check_interval: Seconds = 1.0
    """Interval at which it is checked whether the repeat count of an event has to be logged."""
    worker_log_line_bytes: Bytes = 65_536
    """Maximum length of a line that a worker writes to the supervisor. Longer lines are cut."""

    # supervisor: start, reload, stop
    restart_min_delay: Seconds = 0.1
    """Delay before a worker or private broker that ended is started again. It doubles with each end."""
    restart_max_delay: Seconds = 30.0
    """Maximum delay before a worker or private broker is started again."""
    restart_reset_time: Seconds = 60.0
    """Lifetime of a child after which its next restart waits for restart_min_delay only."""
    start_attempts: Count = 5
    """Ends of a worker or the private broker before all workers are ready, after which the start fails."""
    worker_heartbeat_interval: Seconds = 1.0
    """Interval at which a worker sends a heartbeat to the supervisor."""
    worker_missed_heartbeats: Count = 3
    """Missed heartbeats in a row after which a worker counts as unresponsive for systemd."""
    worker_heartbeat_timeout: Seconds = 10.0
    """Time without a heartbeat after which a worker is killed and replaced."""
    worker_start_timeout: Seconds = 60.0
    """Maximum time from the start of a worker to its first heartbeat. After it, the worker is killed."""
    reload_timeout: Seconds = 30.0
    """Maximum time until the new workers of a reload are ready. After it, the previous configuration stays in force."""
    drain_check_interval: Seconds = 0.25
    """Interval at which a draining worker checks whether all clients are gone."""
    drain_broker_timeout: Seconds = 3600.0
    """Maximum time that a drained worker waits for an unreachable broker to store resume positions. After it, the
    worker ends."""
    draining_pools: Count = 3
    """Maximum worker pools that drain at once. Older ones are stopped."""
    stop_publish_timeout: Seconds = 4.0
    """Maximum time at a stop for workers to publish the messages that they have accepted. The close of clients
    follows."""
    stop_timeout: Seconds = 4.0
    """Maximum time at a stop for workers to close their clients and end. After it, they are killed."""
    stop_probe_share: Share = 0.22
    """Part of stop_timeout until which a worker waits for messages that other workers have published."""
    stop_close_share: Share = 0.75
    """Part of stop_timeout until which a worker waits for its clients to close."""
    stop_save_share: Share = 0.82
    """Part of stop_timeout until which a worker waits for the broker to store resume positions."""
    stop_chat_log_share: Share = 0.05
    """Maximum time that a stopping worker waits for the lock of the chat log, as a part of stop_timeout."""
    kill_timeout: Seconds = 0.5
    """Maximum time until the end of a killed process is noticed."""
    private_broker_stop_timeout: Seconds = 1.5
    """Maximum time at a stop for the private broker to end. After it, the private broker is killed."""
    auto_maxmemory_share: Share = 0.25
    """Share of the memory of the host or container that redis_maxmemory is if it is auto."""
    auto_maxmemory_min: Bytes = 67_108_864
    """Minimum of redis_maxmemory if it is auto."""
    data_dir_lock_timeout: Seconds = 2.0
    """Maximum time that a start waits for a previous private broker to release the data directory. After it, the start
    fails."""
