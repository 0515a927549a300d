"""What is installed for development is what the locks say, and they say what setup.cfg asks for. Mend it: make lock."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests import lock
from tests.lock import LOCKS, ROOT
from tests.rows import rows


def path_of(name: str) -> Path:
    return ROOT / "requirements" / f"{name}.txt"


def test_each_lock_is_known() -> None:
    assert {each.stem for each in (ROOT / "requirements").iterdir()} == set(LOCKS)


@rows("name", LOCKS)
def test_a_lock_has_what_setup_cfg_asks_for(name: str) -> None:
    pins = lock.read(path_of(name))
    missing = [
        str(wanted)
        for wanted in lock.wanted(*LOCKS[name])
        if not any(
            pin.name == canonicalize_name(wanted.name) and wanted.specifier.contains(pin.version) for pin in pins
        )
    ]
    assert not missing, "run: make lock"


@rows("name", LOCKS)
def test_a_lock_has_what_is_needed_here_once(name: str) -> None:
    here = [pin.name for pin in lock.read(path_of(name)) if pin.is_for_here]
    assert sorted(here) == sorted(set(here))
    needed = {
        canonicalize_name(each.name)
        for each in lock.wanted(*LOCKS[name])
        if each.marker is None or each.marker.evaluate({"extra": ""})
    }
    assert needed <= set(here)


def test_the_locks_agree_with_one_another() -> None:
    versions = {(pin.name, pin.version) for pin in lock.read(path_of("full"))}
    for name in LOCKS:
        others = {(pin.name, pin.version) for pin in lock.read(path_of(name))}
        shared = {each for each, _ in others} & {each for each, _ in versions}
        assert {each for each in others - versions if each[0] in shared} == set()


def test_a_lock_names_no_place_to_get_it_from() -> None:
    for name in LOCKS:
        assert not re.search(r"://|^--(index|extra|find|trusted)", path_of(name).read_text(), re.M)


def test_what_builds_chatd_is_locked_too() -> None:
    built_with = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    plain = [str(each) for each in lock.wanted()]
    assert [str(each) for each in lock.wanted("build") if str(each) not in plain] == built_with


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("twisted>=26.10.0 --hash=sha256:" + "0" * 64, "does not pin"),
        ("twisted==26.10.0", "has no hashes"),
        ("twisted==26.10.0 \\\n    --hash=sha256:0123", "has no hashes"),
        ("twisted @ file:///tmp/twisted.whl --hash=sha256:" + "0" * 64, "does not pin"),
    ],
)
def test_what_is_not_locked_is_told(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "loose.txt"
    path.write_text(f"# made by hand\n{text}\n")
    with pytest.raises(ValueError, match=why):
        lock.read(path)


def test_a_pin_is_read(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text(f"Zope.Interface==8.7 ; python_version < '3' \\\n    --hash=sha256:{'0' * 64}\n    # via twisted\n")
    [pin] = lock.read(path)
    assert (pin.name, pin.version, pin.hashes, pin.is_for_here) == ("zope-interface", "8.7", ("0" * 64,), False)
