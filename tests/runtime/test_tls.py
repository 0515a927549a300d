"""What an ssl: endpoint shows to its clients. That real clients get it: tests/system/test_listen.py."""

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from chatd.runtime.tls import read_identity
from tests.authority import Authority


def chain(endpoint: str) -> list[bytes]:
    shown = read_identity(endpoint)
    every: list[x509.Certificate] = [shown["certificate"], *shown["extraCertChain"]]
    return [each.public_bytes(Encoding.PEM) for each in every]


def test_every_certificate_of_its_files_is_sent_once_and_in_order(tmp_path: Path) -> None:
    root = Authority(tmp_path / "root")
    between = Authority(tmp_path / "between", root)
    path, key = between.issue("server", "localhost")
    leaf, two, one = (Path(each).read_bytes() for each in (path, between.path, root.path))
    full, above, both = tmp_path / "full.pem", tmp_path / "above.pem", tmp_path / "both.pem"
    full.write_bytes((leaf + two + one).replace(b"\n", b"\r\n"))
    above.write_bytes(two + one)
    both.write_bytes(Path(key).read_bytes() + leaf + two)
    for files, expected in (
        (f"privateKey={key}:certKey={full}", [leaf, two, one]),
        (f"privateKey={key}:certKey={full}:extraCertChain={above}", [leaf, two, one]),
        (f"privateKey={key}:certKey={path}:extraCertChain={above}", [leaf, two, one]),
        (f"privateKey={key}:certKey={path}:extraCertChain={full}", [leaf, two, one]),
        (f"privateKey={key}:certKey={path}", [leaf]),
        (f"{key}:{full}", [leaf, two, one]),
        (f"{both}", [leaf, two]),
    ):
        assert chain(f"ssl:443:{files}") == expected, files
        assert chain(f"haproxy:ssl:443:{files}") == expected, files


def test_other_endpoints_show_nothing() -> None:
    assert read_identity("tcp:3000:interface=127.0.0.1") == {}
