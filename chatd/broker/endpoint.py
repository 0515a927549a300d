"""Where to dial for a broker: a socket, or a host, in the clear or with TLS."""

from typing import Any

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred, fail
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    UNIXClientEndpoint,
    wrapClientTLS,
)
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from zope.interface import implementer

from chatd.broker.credentials import tls_options
from chatd.config.broker_url import BrokerAddress
from chatd.config.settings import Config
from chatd.config.values import BadValue


def broker_endpoint(reactor: Any, address: BrokerAddress, config: Config) -> IStreamClientEndpoint:
    """Give the endpoint to dial for an address; with TLS the server's certificate and name are checked."""
    if address.path:
        return UNIXClientEndpoint(reactor, address.path, timeout=config.bus_connect_seconds)
    return host_endpoint(reactor, address.host, address.port, tls=address.tls, config=config)


def host_endpoint(reactor: Any, host: str, port: int, *, tls: bool, config: Config) -> IStreamClientEndpoint:
    """Give the endpoint to dial for a host and a port."""
    kind: Any = HostnameEndpoint  # tries several addresses, and takes 0.3 s to see that one is the last (26.10.0)
    if isIPAddress(host):
        kind = TCP4ClientEndpoint
    elif isIPv6Address(host):
        kind = TCP6ClientEndpoint
    endpoint = kind(reactor, host, port, timeout=config.bus_connect_seconds)
    return TlsEndpoint(endpoint, host, config) if tls else endpoint


@implementer(IStreamClientEndpoint)
class TlsEndpoint:
    """Dials with the certificates that stand in their files by then."""

    def __init__(self, endpoint: IStreamClientEndpoint, host: str, config: Config) -> None:
        """Take what dials in the clear, and the name that the server's certificate is to have."""
        self._endpoint = endpoint
        self._host = host
        self._config = config

    def connect(self, protocolFactory: IProtocolFactory) -> "Deferred[IProtocol]":  # noqa: N803 - Twisted's name
        """Dial; fails with BadValue where a file cannot be used."""
        try:
            options = tls_options(self._host, self._config)
        except BadValue:
            return fail()
        return wrapClientTLS(options, self._endpoint).connect(protocolFactory)
