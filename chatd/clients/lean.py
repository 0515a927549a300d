"""Base classes that save memory for each Autobahn connection: slots, a silent log, and timers on the timer wheel.

They are written for Autobahn 26.10.2. Another version would cost more memory, and nothing else.
"""

from collections.abc import Callable

from chatd.runtime.timers import TimerWheel


class Quiet:
    """A log that drops everything. Autobahn logs faults of clients only, which the client is told."""

    def __getattr__(self, level: str) -> Callable[..., None]:
        return self._drop

    def _drop(self, *args: object, **fields: object) -> None:
        """Drop the event."""


class Timers:
    """Autobahn's timers, on the timer wheel instead of the global reactor."""

    def __init__(self, timers: TimerWheel) -> None:
        self.call_later = timers.callLater


LASTING = (
    "_isMessageCompressed",
    "_perMessageCompress",
    "_transport_details",
    "autoPingPending",
    "autoPingPendingCall",
    "autoPingPendingSent",
    "autoPingPendingSeq",
    "autoPingTimeoutCall",
    "closeHandshakeTimeoutCall",
    "closedByMe",
    "connected",
    "control_frame_data",
    "current_frame",
    "current_frame_masker",
    "data",
    "droppedByMe",
    "factory",
    "failedByMe",
    "frame_data",
    "frame_length",
    "inside_message",
    "localCloseCode",
    "localCloseReason",
    "message_data",
    "message_data_total_length",
    "message_is_binary",
    "openHandshakeTimeoutCall",
    "peer",
    "remoteCloseCode",
    "remoteCloseReason",
    "send_queue",
    "send_state",
    "state",
    "trackedTimings",
    "trafficStats",
    "transport",
    "triggered",
    "utf8validateIncomingCurrentMessage",
    "utf8validateLast",
    "utf8validator",
    "wasClean",
    "wasCloseHandshakeTimeout",
    "wasMaxFramePayloadSizeExceeded",
    "wasMaxMessagePayloadSizeExceeded",
    "wasNotCleanReason",
    "wasOpenHandshakeTimeout",
    "wasServerConnectionDropTimeout",
    "wasServingFlashSocketPolicyFile",
    "websocket_extensions_in_use",
    "websocket_protocol_in_use",
)
"""The attributes of Autobahn 26.10.2 in an open connection. Slots take a third of the memory. Further attributes of
another version go into a dict, at the cost of memory only."""
