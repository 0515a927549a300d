"""Somebody who means harm: ``python -m tests.system.attacker ATTACK PORT``, until its standard input ends.

Each attack keeps at it as fast as it can; it says ``going`` once it is under way. What the server answers is read.
"""

import contextlib
import select
import socket
import ssl
import sys
import zlib
from collections.abc import Callable, Iterator

from tests.frames import CONTINUATION, PING, PONG, TEXT, close_frame, frame, handshake, header

ADDRESS = "127.0.0.1"
BARE = b"\0\0\0\0"
PATIENCE = 0.5
"""Seconds that it waits for an answer."""


class Attack:
    """What all attacks have: a port, and an end."""

    def __init__(self, port: int) -> None:
        self.port = port

    def over(self) -> bool:
        """Whether standard input has ended."""
        return bool(select.select([sys.stdin], [], [], 0)[0])

    def rests(self) -> bool:
        """Rest for a second; whether all is over meanwhile."""
        return bool(select.select([sys.stdin], [], [], 1)[0])

    def connect(self, *data: bytes) -> socket.socket:
        """Connect, and send that."""
        client = socket.create_connection((ADDRESS, self.port), timeout=PATIENCE)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for each in data:
            client.sendall(each)
        return client

    def open(self, target: str = "/flood", **headers: str) -> socket.socket:
        """Open a WebSocket."""
        client = self.connect(handshake(target, **headers))
        client.recv(65536)
        return client

    def flood(self, blobs: Callable[[], bytes], target: str = "/flood", **headers: str) -> None:
        """Send the same again and again on one connection, on another where that is closed."""
        client = self.open(target, **headers)
        print("going", flush=True)
        while not self.over():
            try:
                client.setblocking(False)
                blob = memoryview(blobs())
                while blob and not self.over():
                    readable, writable, _ = select.select([client], [client], [], 0.1)
                    if readable and not client.recv(65536):
                        raise ConnectionResetError
                    if writable:
                        blob = blob[client.send(blob) :]
            except OSError:
                client.close()
                with contextlib.suppress(OSError):
                    client = self.open(target, **headers)

    def again(self, visit: Callable[[], None]) -> None:
        """Do something again and again."""
        print("going", flush=True)
        while not self.over():
            with contextlib.suppress(OSError):
                visit()


def _same(data: bytes) -> Callable[[], bytes]:
    return lambda: data


def empty_frames(attack: Attack) -> None:
    """A million empty messages."""
    attack.flood(_same(frame(b"", mask=BARE) * 10_000))


def pings(attack: Attack) -> None:
    """A million pings, each to be answered."""
    attack.flood(_same(frame(b"p", PING, mask=BARE) * 10_000))


def pongs(attack: Attack) -> None:
    """A million pongs that nobody asked for."""
    attack.flood(_same(frame(b"", PONG, mask=BARE) * 10_000))


def fragments(attack: Attack) -> None:
    """Messages in fragments of one byte."""
    whole = frame(b"x", fin=False, mask=BARE) + frame(b"x", CONTINUATION, fin=False, mask=BARE) * 10_000
    attack.flood(_same(whole + frame(b"x", CONTINUATION, mask=BARE)))


def endless_fragments(attack: Attack) -> None:
    """A message in empty fragments that never ends."""
    client_first = [True]

    def blob() -> bytes:
        first, client_first[0] = client_first[0], False
        begin = frame(b"", fin=False, mask=BARE) if first else b""
        return begin + frame(b"", CONTINUATION, fin=False, mask=BARE) * 10_000

    attack.flood(blob)


def bombs(attack: Attack) -> None:
    """What inflates a thousandfold."""
    deflate = zlib.compressobj(9, wbits=-15)
    bomb = (deflate.compress(b"\0" * 10_000_000) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]
    blob = bytes([0xC1]) + frame(bomb[:16_000], mask=BARE)[1:]
    attack.flood(_same(blob), sec_websocket_extensions="permessage-deflate")


def oversized(attack: Attack) -> None:
    """Messages that are announced to be endless."""

    def visit() -> None:
        with attack.open() as client:
            client.sendall(header(TEXT, 2**62) + b"\0\0\0\0" + b"x" * 65536)
            client.recv(65536)

    attack.again(visit)


def heads(attack: Attack) -> None:
    """Requests whose headers are too many, too long, or never end."""
    many = b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(100_000))
    long = b"GET / HTTP/1.1\r\nX: " + b"y" * 1_000_000

    def visit() -> None:
        for data in (many, long, b"GET /" + b"x" * 1_000_000):
            with attack.connect() as client:
                client.sendall(data)
                client.recv(65536)

    attack.again(visit)


def handshakes(attack: Attack) -> None:
    """One handshake after the other."""

    def visit() -> None:
        with attack.open() as client:
            client.sendall(close_frame())

    attack.again(visit)


def garbage(attack: Attack) -> None:
    """Bytes that are nothing."""
    junk = bytes(range(256)) * 256

    def visit() -> None:
        with attack.connect(junk) as client:
            client.recv(65536)

    attack.again(visit)


def tls_garbage(attack: Attack) -> None:
    """TLS that is begun in earnest, and goes on with bytes that are nothing."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    begun = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        begun.do_handshake()
    hello = outgoing.read()
    junk = bytes(range(256)) * 256

    def visit() -> None:
        for data in (junk, hello + junk, b"\x16\x03\x01\xff\xff" + junk, hello[:50]):
            with attack.connect(data) as client:
                client.recv(65536)

    attack.again(visit)


def _hold(attack: Attack, count: int, begin: Callable[[], socket.socket], drip: bytes) -> None:
    """Keep connections, each of which sends a byte now and then."""
    clients: list[socket.socket] = []
    for _ in range(count):
        with contextlib.suppress(OSError):
            clients.append(begin())
    print("going", flush=True)
    sent = 0
    while not attack.rests():
        for place, client in enumerate(clients):
            try:
                client.send(drip[sent % len(drip) : sent % len(drip) + 1])
            except OSError:
                client.close()
                with contextlib.suppress(OSError):
                    clients[place] = begin()
        sent += 1


def slow_heads(attack: Attack) -> None:
    """Hundreds of requests of which a byte comes each second."""
    _hold(attack, 500, lambda: attack.connect(b"GET /slow HTTP/1.1\r\n"), b"X-Slow: and slower\r\n")


def slow_frames(attack: Attack) -> None:
    """Hundreds of WebSockets with a frame of which a byte comes each second."""
    _hold(attack, 300, lambda: _begun(attack), b"x")


def _begun(attack: Attack) -> socket.socket:
    client = attack.open()
    client.sendall(header(TEXT, 10_000) + BARE)
    return client


def half_open(attack: Attack) -> None:
    """Ten thousand connections that say next to nothing; those that are closed come again."""
    _hold(attack, 10_000, lambda: attack.connect(b"G"), b"E")


SHAPES = (
    b"POST /ops HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"0\r\n\r\nGET /-/healthz",
    b"POST /ops HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: 30\r\n\r\nabc",
    b"POST /ops HTTP/1.1\r\nHost: localhost\r\nContent-Length: +3\r\n\r\nabc",
    b"POST /ops HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3, 3\r\n\r\nabc",
    b"POST /ops HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"POST /ops HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    b"POST /ops HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nabc\r\n0\r\n\r\n",
    b"POST /ops HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc",
    b"GET /ops HTTP/1.1\r\nHost: localhost\r\nX: a\r\n folded\r\n\r\n",
    b"GET /ops HTTP/1.1\nHost: localhost\n\n",
    b"GET /ops HTTP/1.1\r\nHost: localhost\rX: y\r\n\r\n",
    b"GET /ops\tHTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /ops HTTP/1.1\r\nHost: localhost\r\n\0: y\r\n\r\n",
    b"GET http://x:y@z/ops HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /ops HTTP/9.9\r\nHost: localhost\r\n\r\n",
    b"CONNECT x:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
)
"""Requests that one server reads so, and another one so (RFC 9112, section 11.2)."""


def smuggling(attack: Attack) -> None:
    """Requests that are two requests to somebody, also behind one that is not."""
    good = b"GET /-/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"

    def visit() -> None:
        for data in _both(SHAPES, good):
            with attack.connect(data) as client:
                client.recv(65536)

    attack.again(visit)


def _both(shapes: tuple[bytes, ...], good: bytes) -> Iterator[bytes]:
    for each in shapes:
        yield each
        yield good + each


def _ignore(attack: Attack, count: int, requests: bytes) -> None:
    """Send many requests at once on each of some connections, and read no answer."""
    clients = [attack.connect() for _ in range(count)]
    going = False
    while not attack.rests():
        for place, client in enumerate(clients):
            try:
                client.setblocking(False)
                client.send(requests)
            except BlockingIOError:
                pass  # the server does not read on
            except OSError:
                client.close()
                with contextlib.suppress(OSError):
                    clients[place] = attack.connect()
        if not going:
            attack.rests()  # by then there is something that nobody reads
            print("going", flush=True)
            going = True


def unread_answers(attack: Attack) -> None:
    """Thousands of requests for a room in which much was said, and no answer is read."""
    with attack.open("/big") as talker:
        talker.setblocking(True)
        talker.sendall(frame(b"x" * 16_000, mask=BARE) * 60)
        attack.rests()
    _ignore(attack, 1, b"GET /big?last=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000)


def unread_assets(attack: Attack) -> None:
    """Thousands of requests for the page's script, for which nobody needs a token."""
    with attack.connect(
        b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\nConnection: close\r\n\r\n"
    ) as client:
        page = b"".join(iter(lambda: client.recv(65536), b""))
    script = page.partition(b'src="')[2].partition(b'"')[0]
    _ignore(attack, 10, b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % script * 1400)


def forms(attack: Attack) -> None:
    """Bodies that are slow to take apart as forms, on connections that stay open where they may."""
    part = b"--x\r\nContent-Disposition: form-data; name=a" + b"; a=b" * 18_000 + b"\r\n\r\nb\r\n--x--\r\n"
    head = (
        b"POST /ops HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        b"Content-Length: %d\r\n\r\n"
    )
    data = head % len(part) + part
    clients = [attack.connect() for _ in range(8)]

    def visit() -> None:
        for place, client in enumerate(clients):
            try:
                client.sendall(data)
            except OSError:
                client.close()
                clients[place] = attack.connect(data)
        for client in clients:
            with contextlib.suppress(OSError):
                client.recv(65536)

    attack.again(visit)


def _speak(attack: Attack, count: int, data: bytes) -> None:
    """Send the same again and again on some connections, and read all answers."""
    clients = [attack.connect() for _ in range(count)]
    print("going", flush=True)
    while not attack.over():
        readable, writable, _ = select.select(clients, clients, [], 0.1)
        for place, client in enumerate(clients):
            try:
                client.setblocking(False)
                if client in readable and not client.recv(1 << 20):
                    raise ConnectionResetError
                if client in writable:
                    client.send(data)  # as much of it as there is room for: the rest is garbage
            except BlockingIOError:
                pass
            except OSError:
                client.close()
                with contextlib.suppress(OSError):
                    clients[place] = attack.connect()


def requests_at_once(attack: Attack) -> None:
    """Thousands of requests at once, whose answers are read."""
    _speak(attack, 4, b"GET /-/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1600)


def tiny_chunks(attack: Attack) -> None:
    """Bodies in chunks of a byte."""
    head = b"POST /-/none HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    _speak(attack, 4, head + b"1\r\na\r\n" * 100_000 + b"0\r\n\r\n")


def slow_later_heads(attack: Attack) -> None:
    """Hundreds of connections of which the second request comes a byte a second."""
    _hold(attack, 500, lambda: _asked(attack), b"GET /slow HTTP/1.1\r\nX-Slow: and slower\r\n")


def _asked(attack: Attack) -> socket.socket:
    client = attack.connect(b"GET /-/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    client.recv(65536)
    return client


ATTACKS: dict[str, Callable[[Attack], None]] = {
    each.__name__: each
    for each in (
        *(slow_heads, slow_frames, half_open, heads, handshakes, garbage, smuggling),
        *(unread_answers, unread_assets, requests_at_once, tiny_chunks, forms, slow_later_heads),
        *(empty_frames, pings, pongs, fragments, endless_fragments, bombs, oversized, tls_garbage),
    )
}

if __name__ == "__main__":
    ATTACKS[sys.argv[1]](Attack(int(sys.argv[2])))
