"""The four names by which ``twistd`` finds chatd."""

from twisted.application.service import ServiceMaker

chatd = ServiceMaker("chatd", "chatd.tap", "A realtime chat daemon over WebSockets.", "chatd")
