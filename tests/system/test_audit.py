"""The audit tells what is vulnerable, and does not take silence for an answer."""

import json
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests import audit
from tests.audit import Answer, AuditFailed, PackedList, packed_list, read_answer
from tests.lock import Pin


def pin(text: str) -> Pin:
    return Pin(Requirement(text), ())


def answered(*dependencies: dict[str, Any]) -> str:
    return json.dumps({"dependencies": dependencies, "fixes": []})


def test_a_vulnerable_package_is_told_with_the_version_that_mends_it() -> None:
    known = {"name": "twisted", "version": "22.4.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["22.10.0"]}]}
    answer = read_answer(answered(known, {"name": "idna", "version": "3.20", "vulns": []}), "")
    assert answer == Answer({"twisted", "idna"}, ["twisted 22.4.0: PYSEC-1, mended in 22.10.0"])


def test_a_package_that_the_service_does_not_know_was_not_asked_about() -> None:
    assert read_answer(answered({"name": "twisted", "skip_reason": "not found"}), "") == Answer()


def test_a_network_that_is_away_is_no_answer() -> None:
    assert read_answer("", "requests.exceptions.ConnectionError: Max retries exceeded with url") == Answer()


@pytest.mark.parametrize("complaint", ["", "ERROR:pip_audit._cli:invalid requirement"])
def test_anything_else_is_a_failure(complaint: str) -> None:
    with pytest.raises(AuditFailed):
        read_answer("", complaint)


def test_the_packed_list_knows_old_versions_and_says_how_old_it_is() -> None:
    packed = packed_list()
    assert (packed.day.year, packed.day.month) == (2021, 7)
    assert any("CVE-" in each for each in packed.look_up([pin("twisted==16.0.0")]))
    assert packed.look_up([pin("twisted==26.10.0"), pin("of-which-nobody-heard==1.0")]) == []


def test_what_the_service_does_not_tell_is_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lock.txt"
    hashes = f"--hash=sha256:{'0' * 64}"
    path.write_text(f"known==1.0 {hashes}\nunknown==1.0 {hashes}\n")
    advisory = {"id": "pyup.io-1", "cve": None, "specs": ["<2"]}
    packed = PackedList({"$meta": {"timestamp": 0}, "unknown": [advisory], "known": [advisory]})
    monkeypatch.setattr(audit, "packed_list", lambda: packed)
    monkeypatch.setattr(audit, "ask_service", lambda _: Answer({"known"}, ["known 1.0: PYSEC-2, not mended yet"]))
    assert audit.audit([path]) == ["known 1.0: PYSEC-2, not mended yet", "unknown 1.0: pyup.io-1"]
    said = capsys.readouterr().out
    assert "answered for 1 of 2 packages" in said
    assert "NO current answer for 1 of them; they were held against a list of January 1970 only" in said
    assert "SKIPPED" not in said


def test_where_nobody_could_be_asked_the_last_word_is_not_that_nothing_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lock.txt"
    path.write_text(f"known==1.0 --hash=sha256:{'0' * 64}\n")
    monkeypatch.setattr(audit, "packed_list", lambda: PackedList({"$meta": {"timestamp": 0}}))
    for answer, last in (
        (Answer(), "audit: SKIPPED: nobody could be asked, and what became known after January 1970 is unknown"),
        (Answer({"known"}), "audit: nothing found"),
    ):
        monkeypatch.setattr(audit, "ask_service", lambda _, answer=answer: answer)
        assert audit.audit([path]) == []
        assert capsys.readouterr().out.splitlines()[-1] == last
