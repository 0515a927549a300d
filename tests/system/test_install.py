"""What an installation is: the plugin found, whichever way it came; twistd from anywhere."""

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from functools import partial
from pathlib import Path

import pytest
from websockets.sync.client import unix_connect

from tests.blocks import block
from tests.system.daemon import TWISTD, is_running
from tests.waiting import until

ROOT = Path(__file__).parents[2]


def listed() -> list[str]:
    """List the files that git would give a newcomer."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    return [name for name in names if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a copy of what git would give a newcomer."""
    folder = tmp_path_factory.mktemp("clone") / "chatd"
    for name in listed():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


def environment(venv: Path) -> Path:
    """Make a new environment that sees what this one has installed; give its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    site = venv / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def install(checkout: Path, venv: Path, *options: str) -> Path:
    """Install chatd alone into a new environment; give its Python."""
    python = environment(venv)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", str(python)]
    subprocess.run([*pip, "install", "--no-deps", *options, str(checkout)], check=True, cwd=checkout.parent)
    return python


def twistd(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(python), TWISTD, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("options", [(), ("--editable",)], ids=["plain", "editable"])
def test_twistd_chatd_runs_daemonized_from_anywhere(checkout: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    python = install(checkout, tmp_path / "venv", *options)
    anywhere = tmp_path / "anywhere"
    anywhere.mkdir()
    assert "realtime chat daemon" in twistd(python, anywhere, "--help").stdout
    started = twistd(python, anywhere, "chatd", "--listen", "tcp:0:interface=127.0.0.1")
    assert (started.returncode, started.stderr) == (0, "")
    pid = int((anywhere / "twistd.pid").read_text())
    try:
        until(lambda: "is ready: 2 workers" in (anywhere / "twistd.log").read_text(), "ready in twistd.log")
        assert (anywhere / "logs" / "chat.log").exists()
        where = subprocess.run(
            [python, "-c", "import chatd; print(chatd.__file__)"],
            cwd=anywhere,
            capture_output=True,
            text=True,
            check=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )
        assert where.stdout.startswith(str(checkout if options else tmp_path / "venv"))
    finally:
        os.kill(pid, signal.SIGTERM)
    until(lambda: not is_running(pid), "its end")
    assert not (anywhere / "twistd.pid").exists()
    assert "chatd has stopped" in (anywhere / "twistd.log").read_text()


def test_a_source_distribution_has_all_that_git_has_and_runs_its_tests(checkout: Path, tmp_path: Path) -> None:
    build = "from setuptools.build_meta import build_sdist; import sys; build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=checkout, stdout=subprocess.DEVNULL, check=True)
    [packed] = tmp_path.glob("chatd-*.tar.gz")
    subprocess.run(["tar", "-C", tmp_path, "-xf", packed], check=True)
    folder = packed.with_name(packed.name.removesuffix(".tar.gz"))
    assert [name for name in listed() if not (folder / name).is_file()] == []
    plan = subprocess.run(["make", "-n", "test"], cwd=folder, capture_output=True, text=True, check=True)
    assert "-m pytest" in plan.stdout
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/protocol/test_json_line.py"]
    ran = subprocess.run(tests, cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout


def test_a_wheel_has_types_and_what_an_operator_copies(checkout: Path, tmp_path: Path) -> None:
    python = install(checkout, tmp_path / "venv")
    shared = tmp_path / "venv" / "share" / "chatd"
    files = {each.name: each.read_bytes() for each in (checkout / "deploy").iterdir() if each.is_file()}
    assert {each.name: each.read_bytes() for each in shared.iterdir()} == files
    client = tmp_path / "client.py"
    client.write_text("from chatd.config.settings import Config\n\nworkers: str = Config().workers\n")
    mypy = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--python-executable", str(python)]
    said = subprocess.run([*mypy, str(client)], cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    assert 'client.py:3: error: Incompatible types in assignment (expression has type "int"' in said
    assert "Found 1 error in 1 file" in said


def test_an_upgrade_leaves_nothing_of_what_the_new_version_has_no_more(checkout: Path, tmp_path: Path) -> None:
    upstream, source = tmp_path / "upstream", tmp_path / "src"
    shutil.copytree(checkout, upstream, ignore=shutil.ignore_patterns("build", "*.egg-info"))

    def git(folder: Path, *words: str) -> None:
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)

    git(tmp_path, "init", str(upstream))
    git(upstream, "add", ".")
    git(upstream, "commit", "-m", "a version")
    git(tmp_path, "clone", str(upstream), str(source))
    gone = source / "build" / "lib" / "chatd" / "gone.py"  # as setuptools left it when it built the version before
    gone.parent.mkdir(parents=True)
    gone.touch()
    python = environment(tmp_path / "venv")
    for name, command in (("pip", f"{sys.executable} -m pip --python {python}"), ("twistd", f"{python} {TWISTD}")):
        program = python.parent / name
        program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        program.chmod(0o755)

    lines = [line for line in block("upgrade").text.splitlines() if not re.search("--require-hashes|systemctl", line)]
    assert len(lines) == 4
    text = "\n".join(lines).replace("/opt/chatd", str(tmp_path / "venv")).replace("/usr/local/src/chatd", str(source))
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(["bash", "-euc", text], check=True, cwd=tmp_path, env=variables)
    [package] = (tmp_path / "venv" / "lib").glob("*/site-packages/chatd")
    assert (package / "cli.py").exists()
    assert not (package / "gone.py").exists()


def test_sockets_passed_by_systemd_are_used(tmp_path: Path) -> None:
    activate = shutil.which("systemd-socket-activate")
    assert activate, "systemd-socket-activate is missing; get it with: sudo apt install systemd"
    path = tmp_path / "chatd.sock"
    chatd = [TWISTD, "--nodaemon", "--pidfile=", "chatd", "--listen", "systemd:domain=UNIX:name=chatd"]
    command = [activate, f"--listen={path}", "--fdname=chatd", "-E", "PATH", "-E", "PYTHONPATH", *chatd]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as service:
        try:
            until(path.exists, "the socket that systemd makes")
            patient = partial(unix_connect, str(path), compression=None, open_timeout=60)  # the first one starts it
            with patient() as one, patient() as other:
                one.send("through systemd")
                assert other.recv(20) == "through systemd"
        finally:
            service.terminate()
