"""What is locked: ``requirements/*.txt`` as pip reads them, and what ``setup.cfg`` asks for."""

import configparser
import re
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCKS = {
    "run": ["build"],
    "test": ["build", "test"],
    "full": ["build", "test", "full"],
    "bench": ["build", "bench"],
}
"""By the name of its file, the extras of setup.cfg that a lock has beside what chatd itself needs."""


@dataclass(frozen=True)
class Pin:
    """One version of a package, and the SHA-256 of each of its files."""

    requirement: Requirement
    hashes: tuple[str, ...]

    @property
    def name(self) -> str:
        """Give its name as the index spells it."""
        return canonicalize_name(self.requirement.name)

    @property
    def version(self) -> str:
        """Give its version."""
        [specifier] = self.requirement.specifier
        return specifier.version

    @property
    def is_for_here(self) -> bool:
        """Say whether this Python on this machine installs it."""
        return self.requirement.marker is None or self.requirement.marker.evaluate()


def read(path: Path) -> list[Pin]:
    """Give what a lock has. Raises ValueError where a line is anything but ``NAME==VERSION`` and hashes."""
    pins = []
    text = re.sub(r"(?m)^\s*#.*\n", "", path.read_text()).replace("\\\n", " ")
    for line in text.splitlines():
        wanted, *hashes = re.split(r"\s+--hash=sha256:", line.strip())
        requirement = Requirement(wanted)
        if [each.operator for each in requirement.specifier] != ["=="] or requirement.url:
            raise ValueError(f"{path.name} does not pin {wanted}")
        if not hashes or not all(re.fullmatch(r"[0-9a-f]{64}", each) for each in hashes):
            raise ValueError(f"{path.name} has no hashes of {wanted}")
        pins.append(Pin(requirement, tuple(hashes)))
    return pins


def wanted(*extras: str) -> list[Requirement]:
    """Give what ``setup.cfg`` asks for: what chatd needs, and that of some extras."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    texts = [config["options"]["install_requires"], *(config["options.extras_require"][each] for each in extras)]
    lines = [line for text in texts for line in text.splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("#")]
