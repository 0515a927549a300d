"""The four names by which ``twistd`` finds chatd."""

import signal
from typing import Any

from twisted.application.service import ServiceMaker


class _Chatd(ServiceMaker):
    """The plugin, whose options twistd asks for when it is to run chatd: then, and only then, chatd is imported."""

    @property
    def options(self) -> Any:
        """Import chatd, and return its options. Meanwhile a Ctrl-C ends the process at once, without a traceback."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        return super().options


chatd = _Chatd("chatd", "chatd.tap", "A realtime chat daemon over WebSockets.", "chatd")
