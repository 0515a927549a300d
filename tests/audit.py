"""The audit: is any package that is locked known to be vulnerable?

``make audit`` asks the service that pip-audit asks, the Python package index. What that can't tell, because it is out
of reach or because an index in its place does not tell, is looked up in the list that the package ``safety-db``
carries. That list ends in July 2021: it keeps an old version from coming back, and knows nothing newer. How many
packages were held against what is printed each time, so that "nothing found" is not taken for more than it is; where
the service answered nothing at all, the last line says SKIPPED in its place.

The exit status is 1 where a package is vulnerable, or where pip-audit failed for another reason than the network.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet

from tests import lock
from tests.lock import Pin

AUDIT_SECONDS = 300
UNREACHABLE = re.compile(r"ConnectionError|Could not connect|Max retries exceeded|timed out|Temporary failure", re.I)
"""What pip-audit says where the network is at fault."""


class AuditFailed(Exception):
    """pip-audit found nothing out, and not for the network's sake."""


@dataclass
class Answer:
    """What the service said."""

    asked: set[str] = field(default_factory=set)
    """The packages it knows."""
    vulnerable: list[str] = field(default_factory=list)
    """A sentence for each vulnerability."""


def read_answer(output: str, complaint: str) -> Answer:
    """Read what pip-audit printed as JSON, or why it printed nothing. Raises AuditFailed."""
    try:
        dependencies = json.loads(output)["dependencies"]
    except (ValueError, KeyError):
        if UNREACHABLE.search(complaint):
            return Answer()
        raise AuditFailed(complaint.strip() or "pip-audit said nothing") from None
    answer = Answer()
    for each in dependencies:
        if "skip_reason" in each:
            continue
        answer.asked.add(each["name"])
        for found in each["vulns"]:
            mended = f"mended in {', '.join(found['fix_versions'])}" if found["fix_versions"] else "not mended yet"
            answer.vulnerable.append(f"{each['name']} {each['version']}: {found['id']}, {mended}")
    return answer


def ask_service(path: Path) -> Answer:
    """Have pip-audit ask the index about all that a lock installs here. Raises AuditFailed."""
    command = ["--requirement", str(path), "--require-hashes", "--disable-pip", "--format", "json"]
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "pip_audit", *command, "--progress-spinner", "off"],
            capture_output=True,
            text=True,
            timeout=AUDIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Answer()
    return read_answer(ran.stdout, ran.stderr)


class PackedList:
    """The list in ``safety-db``: by name, the versions that an advisory is about."""

    def __init__(self, advisories: Mapping[str, Any]) -> None:
        """Take it as it is packed."""
        self._advisories = advisories
        self.day = datetime.fromtimestamp(advisories["$meta"]["timestamp"], UTC).date()

    def look_up(self, pins: Iterable[Pin]) -> list[str]:
        """Give a sentence for each advisory about one of the packages."""
        return [
            f"{pin.name} {pin.version}: {advisory.get('cve') or advisory['id']}"
            for pin in pins
            for advisory in self._advisories.get(pin.name, [])
            if any(SpecifierSet(each).contains(pin.version, prereleases=True) for each in advisory["specs"])
        ]


def packed_list() -> PackedList:
    """Give the list that is installed; the package can't be imported (safety-db 2021.7.17)."""
    path = Path(str(distribution("safety-db").locate_file("safety_db/insecure_full.json")))
    return PackedList(json.loads(path.read_bytes()))


def audit(paths: Sequence[Path]) -> list[str]:
    """Audit locks; print what was asked, and what came of it; give what is wrong. Raises AuditFailed."""
    pins = {(pin.name, pin.version): pin for path in paths for pin in lock.read(path) if pin.is_for_here}
    answers = [ask_service(path) for path in paths]
    asked = set().union(*(each.asked for each in answers))
    rest = [pin for pin in pins.values() if pin.name not in asked]
    print(f"audit: the vulnerability service answered for {len(pins) - len(rest)} of {len(pins)} packages")
    wrong = {line for each in answers for line in each.vulnerable}
    result = "nothing found"
    if rest:
        packed = packed_list()
        age = f"{packed.day:%B %Y}"
        print(f"audit: NO current answer for {len(rest)} of them; they were held against a list of {age} only")
        wrong |= set(packed.look_up(rest))
        if len(rest) == len(pins):
            result = f"SKIPPED: nobody could be asked, and what became known after {age} is unknown"
    print(*(f"audit: {each}" for each in sorted(wrong) or [result]), sep="\n")
    return sorted(wrong)


def main() -> int:
    """Audit the locks that are named; give the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.audit", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("locks", nargs="+", type=Path, metavar="LOCK", help="a file such as requirements/test.txt")
    try:
        return 1 if audit(parser.parse_args().locks) else 0
    except AuditFailed as failed:
        print(f"audit: pip-audit failed: {failed}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
