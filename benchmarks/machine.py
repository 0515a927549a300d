"""Which machine this is, and the versions of all that takes part."""

import json
import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.candidates import SEED
from benchmarks.generator import ROOT
from chatd.supervisor.private_broker import find_server

NONE = "not here"


def machine() -> dict[str, str]:
    """Give its processor, cores, memory and kernel."""
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": model[1] if model else platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": f"{memory / 2**30:.1f} GiB",
        "load average before": f"{os.getloadavg()[0]:.2f}",
        "kernel": f"{platform.system()} {_number(platform.release())}",
    }


def versions() -> dict[str, str]:
    """Give the version of each program and library, as it says itself."""
    found = {
        "chatd": f"{_package('chatd')} ({_said('git', '-C', str(ROOT), 'describe', '--always', '--dirty')})",
        "Python": platform.python_version(),
        "Twisted": _package("twisted"),
        "Autobahn": _package("autobahn"),
        "txredisapi": _package("txredisapi"),
        "hiredis": _package("hiredis"),
        "Valkey": _number(_said(find_server(), "--version")),
        "Node": _number(_said("node", "--version")),
    }
    found |= {name: _npm(name) for name in ("ws", "ioredis", "express")}
    found["nginx"] = _number(_said("nginx", "-v"))
    found["Nchan"] = _number(_said("dpkg-query", "-W", "-f", "${Version}", "libnginx-mod-nchan").partition(":")[2])
    found["socketify (uWebSockets)"] = _package("socketify")
    found["compiler of the generator"] = _said("cc", "--version").partition("\n")[0] or NONE
    return found


def _package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return NONE


def _npm(name: str) -> str:
    file = SEED / "node_modules" / name / "package.json"
    return str(json.loads(file.read_text())["version"]) if file.exists() else NONE


def _said(*command: str) -> str:
    """Give what a program prints; nothing where it is not here or fails."""
    if not shutil.which(command[0]):
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip() if done.returncode == 0 else ""


def _number(said: str) -> str:
    found = re.search(r"\d+(\.\d+)+", said)
    return found[0] if found else NONE
