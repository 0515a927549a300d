"""The passwords and certificates for the broker, read from their files.

They are read at each connect, so that they can be replaced while chatd runs.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.serialization import Encoding
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates

from chatd.config.broker_url import BrokerAddress
from chatd.config.settings import Config
from chatd.config.values import BadValue
from chatd.runtime.tls import read_certificates, read_key

T = TypeVar("T")


def check_credentials(addresses: Sequence[BrokerAddress], config: Config) -> None:
    """Check the files for these brokers. Raise BadValue with one line that names the option."""
    for name in ("redis_tls_ca", "redis_tls_cert", "redis_tls_key"):
        if getattr(config, name) and not any(address.tls for address in addresses):
            raise BadValue(f"--{name.replace('_', '-')} is for rediss:// only")
    if config.redis_password_file and not addresses:
        raise BadValue("--redis-password-file is for --redis only")
    if config.redis_sentinel_password_file and not any(address.sentinels for address in addresses):
        raise BadValue("--redis-sentinel-password-file is for redis+sentinel:// only")
    if bool(config.redis_tls_cert) != bool(config.redis_tls_key):
        raise BadValue("--redis-tls-cert and --redis-tls-key go together")
    for address in addresses:
        if address.password is not None and config.redis_password_file:
            raise BadValue("--redis-password-file and a password in --redis are one too many")
        password_of(address, config)
    sentinel_password(config)
    tls_options("localhost", config)


def password_of(address: BrokerAddress, config: Config) -> str | None:
    """Return the password of a broker, or None. Raise BadValue."""
    return _read_password(config, "redis_password_file") if config.redis_password_file else address.password


def sentinel_password(config: Config) -> str | None:
    """Return the password of the Sentinels, or None. Raise BadValue."""
    return _read_password(config, "redis_sentinel_password_file") if config.redis_sentinel_password_file else None


def tls_options(host: str, config: Config) -> Any:
    """Return the TLS options of a Twisted client for a host, whose certificate and name are checked.

    Raise BadValue.
    """
    trust = None  # the authorities of the system
    if config.redis_tls_ca:
        authorities = [
            authority.public_bytes(Encoding.PEM) for authority in _read(config, "redis_tls_ca", read_certificates)
        ]
        trust = trustRootFromCertificates(map(Certificate.loadPEM, authorities))
    shown: dict[str, Any] = {}
    if config.redis_tls_cert:
        own, *chain = _read(config, "redis_tls_cert", read_certificates)
        key = _read(config, "redis_tls_key", partial(read_key, certificate=own))
        shown = {"certificate": own, "extraCertChain": chain, "privateKey": key}
    return optionsForClientTLS(host, trustRoot=trust, extraCertificateOptions=shown)


def _read(config: Config, option: str, read: Callable[[str], T]) -> T:
    """Return what is in the file of an option. Raise BadValue."""
    try:
        return read(getattr(config, option))
    except OSError as error:
        raise _bad(config, option, error.strerror or str(error)) from error
    except BadValue as error:
        raise _bad(config, option, str(error)) from error


def _bad(config: Config, option: str, why: str) -> BadValue:
    return BadValue(f"--{option.replace('_', '-')} {getattr(config, option)}: {why}")


def _read_password(config: Config, option: str) -> str:
    """Return the first line of a file, without its newline."""
    try:
        lines = _read(config, option, lambda path: Path(path).read_bytes()).decode().splitlines()
    except UnicodeDecodeError:
        lines = []
    if not lines or not lines[0]:
        raise _bad(config, option, "its first line is to be the password")
    return lines[0]
