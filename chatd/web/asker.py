"""Who sends a request: where it comes from, and what it may do."""

from typing import Any

from twisted.web.server import Request

from chatd.access.client_address import TrustedProxies
from chatd.clients.token_lifetime import TokenLifetime
from chatd.protocol.http_head import RequestHead
from chatd.runtime.transports import address_of


def head_of(request: Request) -> RequestHead:
    """Give the head of a request as the door reads that of a connection's first one."""
    given = request.requestHeaders.getAllRawHeaders()
    headers = {name.decode("latin-1").lower(): b",".join(each).decode("latin-1") for name, each in given}
    version = request.clientproto.decode("latin-1").removeprefix("HTTP/")
    return RequestHead(request.method.decode("latin-1"), request.uri, headers, version)


def header(request: Request, name: str) -> str | None:
    """Give a header of a request, whatever bytes it is of; several are joined by commas. None where there is none."""
    values = request.requestHeaders.getRawHeaders(name.encode("ascii"))
    return b",".join(values).decode("latin-1") if values else None


def asker_address(request: Any) -> str:
    """Give the address of who asks: of each request, for a proxy may send those of many on one connection."""
    proxies: TrustedProxies = request.channel.site.connections.proxies
    return proxies.client(address_of(request.channel.transport), header(request, "x-forwarded-for"))


def asker_token_lifetime(request: Any) -> TokenLifetime:
    """Give what who asks may do. Raises Refused: 401 where it needs a token."""
    token_lifetime: TokenLifetime = request.channel.site.connections.token_lifetime(head_of(request))
    return token_lifetime


def is_exposed(request: Any) -> bool:
    """Whether others than this host can connect where who asks did."""
    exposed: bool = request.channel.exposed
    return exposed
