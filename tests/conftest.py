"""What all tests share: a real Valkey, and a rule that nothing is skipped."""

import datetime
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, settings
from twisted.logger import globalLogPublisher

from chatd.supervisor.private_broker import find_server
from tests.fakes import Events
from tests.waiting import until


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """Run the real server for the whole session; give its URL. Tests keep apart by their ``redis_prefix``."""
    with tempfile.TemporaryDirectory(prefix="chatd-test-") as folder:
        path = Path(folder, "broker.sock")
        command = [find_server(), "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", folder]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
            try:
                until(path.exists, "the Valkey server's socket")
                yield f"unix://{path}"
            finally:
                server.terminate()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a file with a key and a certificate for localhost."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def events() -> Iterator[Events]:
    """Hear what the server's own log is told."""
    events = Events()
    globalLogPublisher.addObserver(events)
    yield events
    globalLogPublisher.removeObserver(events)


@pytest.fixture(scope="class")
def broker(request: pytest.FixtureRequest, valkey_url: str) -> None:
    """Give a trial TestCase its ``valkey_url`` attribute."""
    request.cls.valkey_url = valkey_url


def pytest_configure(config: pytest.Config) -> None:
    """Run from anywhere with this checkout's code, in child processes too."""
    root = str(Path(__file__).parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # by a script's &; what we start would too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Seconds say nothing where others share the cores.
    settings.register_profile("chatd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("chatd")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Count a skipped test as failed: what it needs must be installed, or said how to get."""
    report = yield
    if report.skipped:  # type: ignore[attr-defined]
        report.outcome = "failed"  # type: ignore[attr-defined]
        report.longrepr = f"{item.nodeid} was skipped; nothing may be"  # type: ignore[attr-defined]
    return report
