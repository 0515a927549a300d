"""What makes a connection on Autobahn light: what Autobahn keeps, says and times for each one, done with less.

It is written for Autobahn 26.10.2; with another version it would cost more memory, and nothing else.
"""

from collections.abc import Callable

from chatd.runtime.timers import TimerWheel


class Quiet:
    """Autobahn's own log, said to nobody: all it tells is a client's fault, and told to the client."""

    def __getattr__(self, level: str) -> Callable[..., None]:
        return self._drop

    def _drop(self, *args: object, **fields: object) -> None:
        """Say nothing."""


class Timers:
    """Autobahn's timers, on the wheel: its own, on the global reactor, come early."""

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
"""What Autobahn 26.10.2 keeps in an open connection. In slots it takes a third of the memory; another version's
further attributes go into a dict, and only cost more."""
