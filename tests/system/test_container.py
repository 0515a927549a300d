"""The container: its files pass their linters, and every command in them runs, for which no engine is needed.

Paths are those of the image under a folder of the test's own. What the image runs finds a read-only root and has no
capabilities; it keeps our user, for the image's could not read our Python where that is in somebody's home.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from websockets.sync.client import connect

from chatd.supervisor.private_broker import find_server
from tests.system.daemon import free_port
from tests.waiting import until

ROOT = Path(__file__).parents[2]
CONTAINER = ROOT / "deploy" / "container"
COMPOSE: dict[str, Any] = yaml.safe_load((CONTAINER / "compose.yaml").read_text())
HOSTS = ("chatd1", "chatd2", "chatd3")


@dataclass
class Stage:
    """One FROM of a Dockerfile, and what follows it."""

    name: str
    folder: str = "/"
    copied: list[list[str]] = field(default_factory=list)
    run: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    user: str = "0:0"
    healthcheck: list[str] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)


def stages() -> list[Stage]:
    """Read the Dockerfile."""
    lines = [line for line in (CONTAINER / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    found: list[Stage] = []
    for line in filter(None, "\n".join(lines).replace("\\\n", " ").splitlines()):
        word, rest = line.split(None, 1)
        match word:
            case "FROM":
                found.append(Stage(rest.partition(" AS ")[2]))
            case "WORKDIR":
                found[-1].folder = rest
            case "COPY":
                found[-1].copied.append([each for each in rest.split() if not each.startswith("--")])
            case "RUN":
                found[-1].run.append(rest)
            case "ENV":
                found[-1].env |= dict(each.split("=", 1) for each in shlex.split(rest))
            case "USER":
                found[-1].user = rest
            case "HEALTHCHECK":
                found[-1].healthcheck = json.loads(rest.partition("CMD ")[2])
            case "ENTRYPOINT":
                found[-1].entrypoint = json.loads(rest)
            case "CMD":
                found[-1].command = json.loads(rest)
            case _:
                assert word in ("EXPOSE", "STOPSIGNAL"), f"nobody has tried {line!r}"
    return found


class Image:
    """What the Dockerfile makes, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.build, self.final = stages()
        self.environment = {"HOME": "/nonexistent", **os.environ}
        self.environment |= {name: self.inside(value) for name, value in self.final.env.items()}
        python = Path(sys.executable).resolve().parent
        self.environment["PATH"] = self.environment["PATH"].replace("$PATH", f"{python}:{os.environ['PATH']}")
        self.environment.pop("PYTHONPATH", None)

    def inside(self, text: str) -> str:
        """Name what is in the image."""
        return re.sub(r"(?<![\w.:/])/(opt|src|var)(?=/|\b)", rf"{self.folder}/\1", text)

    def make(self) -> None:
        """Do what the builder does."""
        source = Path(self.inside(self.build.folder))
        source.mkdir(parents=True)
        for *names, target in self.build.copied:
            for name in names:
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, source / target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / name, source)
        for command in self.build.run:
            self.shell(command)
        (self.folder / "var").mkdir()
        for command in self.final.run:
            for name in ("/var/lib", "/var/log"):
                Path(self.inside(name)).mkdir()
            self.shell(re.sub(r"--(owner|group)=\d+", "", command))

    def shell(self, command: str) -> None:
        done = subprocess.run(
            ["sh", "-euc", self.inside(command)], env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def sealed(self, command: Sequence[str]) -> list[str]:
        """Give a command that may write where volumes and tmpfs are and nowhere else."""
        writable = [self.inside(name) for name in ("/var/lib/chatd", "/var/log/chatd")]
        script = [f"mount --bind {name} {name}" for name in writable]
        script += ["mount -o remount,bind,ro /", "mount -t tmpfs tmpfs /dev/shm"]
        script.append(f"exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs -- {shlex.join(command)}")
        unshare = ["unshare", "--mount", "--propagation=private"] + ([] if os.getuid() == 0 else ["--map-root-user"])
        return [*unshare, "sh", "-euc", "\n".join(script)]

    @contextmanager
    def running(self, options: Sequence[str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
        """Run it, with these options in place of its own."""
        command = [self.inside(word) for word in [*self.final.entrypoint, *options]]
        environment = {**self.environment, "TMPDIR": "/dev/shm"}  # the tmpfs of /tmp, under which the test's folder is
        with (
            log.open("wb") as out,
            subprocess.Popen(
                self.sealed(command),
                cwd=self.inside(self.final.folder),
                env=environment,
                stdout=out,
                stderr=out,
            ) as process,
        ):
            try:
                until(
                    lambda: re.search(rb"chatd \S+ is ready", log.read_bytes()) or process.poll() is not None,
                    "it to be ready",
                )
                assert process.poll() is None, log.read_text()
                yield process
            finally:
                process.terminate()
                process.wait(20)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    folder = tmp_path_factory.mktemp("image")
    made = Image(folder)
    made.make()
    return made


def healthy(image: Image, port: int) -> bool:
    """Whether the healthcheck says so."""
    command = [word.replace("127.0.0.1:3000", f"127.0.0.1:{port}") for word in image.final.healthcheck]
    return subprocess.run(command, env=image.environment, capture_output=True, check=False).returncode == 0


def broker(port: int, folder: Path, password: Path) -> list[str]:
    """Give the command that runs the broker of the compose file, on a port, with what it keeps in a folder."""
    *shell, script = COMPOSE["services"]["redis"]["command"]
    started = "docker-entrypoint.sh valkey-server - "
    assert started in script
    script = script.replace(started, shlex.join([find_server(), "-", "--port", str(port), "--dir", str(folder)]) + " ")
    return [*shell, inside(script, password)]


def inside(script: str, password: Path) -> str:
    """Give a script of the compose file as the shell gets it, with the password in this file."""
    return str(script.replace("$$", "$").replace("/run/secrets/broker-password", str(password)))


def moved(options: Sequence[str], changes: Mapping[str, str]) -> list[str]:
    """Give options with other addresses in them."""
    return [changes.get(word, word) for word in options]


def test_the_dockerfile_passes_its_linter() -> None:
    done = subprocess.run(["hadolint", CONTAINER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_compose_file_is_one() -> None:
    command = ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(CONTAINER / "compose.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_runs_is_not_root_and_may_do_little() -> None:
    final = stages()[-1]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", final.user)
    for name in HOSTS:
        host = COMPOSE["services"][name]
        assert host["read_only"] is True
        assert host["cap_drop"] == ["ALL"]
        assert host["security_opt"] == ["no-new-privileges:true"]
        assert "healthcheck" not in host, "that of the image"
    assert final.healthcheck


def test_images_are_named_exactly_and_packages_are_locked() -> None:
    files = (CONTAINER / "Dockerfile", CONTAINER / "compose.yaml")
    bases = re.findall(r"^(?:FROM|    image:) (\S+)", "\n".join(file.read_text() for file in files), re.MULTILINE)
    assert len(bases) == 3
    assert all(re.fullmatch(r"[a-z/]+:\d+\.\d+\.\d+(-[a-z-]+)?", base) for base in bases), bases
    installs = [word for command in stages()[0].run for word in command.split("&&") if " install " in word]
    assert ["--require-hashes" in word or "--no-deps" in word for word in installs] == [True, True]


def test_what_the_image_needs_is_sent_to_the_builder() -> None:
    listed = (CONTAINER / "Dockerfile.dockerignore").read_text().splitlines()
    copied = [name for *names, _ in stages()[0].copied for name in names]
    assert {line[1:] for line in listed if line.startswith("!")} == set(copied)


def test_the_image_runs_with_a_read_only_root_and_knows_whether_it_is_well(image: Image, tmp_path: Path) -> None:
    port = free_port()
    options = moved(image.final.command, {"tcp:3000": f"tcp:{port}"})
    assert not healthy(image, port)
    with image.running(options, tmp_path / "log"):
        assert healthy(image, port)
        with connect(f"ws://127.0.0.1:{port}/") as one, connect(f"ws://127.0.0.1:{port}/") as other:
            one.send("in a box")
            assert other.recv(20) == "in a box"
    assert "in a box" in Path(image.inside("/var/log/chatd/chat.log")).read_text()
    assert Path(image.inside("/var/lib/chatd/state/broker/lineage")).exists()
    assert "chatd has stopped" in (tmp_path / "log").read_text()


def test_three_hosts_of_the_compose_file_share_their_rooms(image: Image, tmp_path: Path) -> None:
    [kind, check] = COMPOSE["services"]["redis"]["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    broker_port = free_port()
    password = tmp_path / "password"
    password.write_text("a secret\n".replace(" ", "-"))
    check = inside(check, password).replace("valkey-cli", f"redis-cli -p {broker_port}")
    with ExitStack() as stack:
        server = broker(broker_port, tmp_path, password)
        process = stack.enter_context(subprocess.Popen(server, stdout=subprocess.DEVNULL))
        stack.callback(process.terminate)
        until(
            lambda: subprocess.run(["sh", "-c", check], check=False, capture_output=True).returncode == 0, "the broker"
        )
        asked = subprocess.run(
            ["redis-cli", "-p", str(broker_port), "ping"], capture_output=True, text=True, check=False
        )
        assert "NOAUTH" in asked.stdout + asked.stderr
        assert "a-secret" not in Path(f"/proc/{process.pid}/cmdline").read_text()
        ports = []
        for name in HOSTS:
            ports.append(free_port())
            changes = {
                "tcp:3000": f"tcp:{ports[-1]}",
                "redis://redis:6379/0": f"redis://127.0.0.1:{broker_port}/0",
                "/run/secrets/broker-password": str(password),
            }
            options = moved(COMPOSE["services"][name]["command"], changes)
            assert not set(options) & {*changes}
            assert COMPOSE["services"][name]["secrets"] == [*COMPOSE["secrets"]]
            stack.enter_context(image.running(options, tmp_path / name))
        assert all(healthy(image, port) for port in ports)
        first, *others = [stack.enter_context(connect(f"ws://127.0.0.1:{port}/ops")) for port in ports]
        first.send("to all hosts")
        assert [each.recv(20) for each in others] == ["to all hosts"] * 2
        published = [COMPOSE["services"][name]["ports"][0] for name in HOSTS]
        assert len(set(published)) == 3
        process.kill()  # and they know
        for port in ports:
            until(lambda port=port: not healthy(image, port), "it not to be well")  # type: ignore[misc]
