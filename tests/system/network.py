"""Hosts and the cables between them: network namespaces, which need root or the right to make a user namespace."""

import os
import subprocess
from typing import Self

from tests.waiting import until

_AS_OTHERS = [] if os.geteuid() == 0 else ["--user"]


class _Hosts:
    """Hosts that have nothing but a network namespace of their own, from ``with`` to the end of it."""

    def __enter__(self) -> Self:
        self._hosts: list[subprocess.Popen[bytes]] = []
        try:
            self._connect()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _connect(self) -> None:
        raise NotImplementedError

    def __exit__(self, *error: object) -> None:
        for host in reversed(self._hosts):
            host.kill()
            host.communicate()

    def _first_host(self) -> list[str]:
        return self._host(["unshare", *_AS_OTHERS, *(["--map-root-user"] if _AS_OTHERS else []), "--net"])

    def _host(self, made_by: list[str]) -> list[str]:
        """Make a host that lives as long as a process in it; give what runs a command there."""
        host = subprocess.Popen([*made_by, "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._hosts.append(host)
        assert host.stdin
        assert host.stdout
        host.stdin.write(b"\n")
        host.stdin.flush()
        assert host.stdout.readline() == b"\n", "no network namespace can be made: that takes root or user namespaces"
        keep = ["--preserve-credentials"] if _AS_OTHERS else []
        return ["nsenter", f"--target={host.pid}", *_AS_OTHERS, *keep, "--net"]


class Loopback(_Hosts):
    """A host that is on no network: every port of its loopback addresses is free, the well-known ones too."""

    def _connect(self) -> None:
        self.host = self._first_host()
        """The words that run a command there."""
        self.mend()

    def cut(self) -> None:
        """Lose whatever is sent from now on; nobody is told."""
        _ip(self.host, "link set lo down")

    def mend(self) -> None:
        """Lose no more."""
        _ip(self.host, "link set lo up")


class Cable(_Hosts):
    """A cable between two hosts, ``here`` and ``there``, from ``with`` to the end of it.

    They share all but the network with each other and with us: a unix socket of one can be reached from everywhere.
    """

    address = "10.77.0.2"
    """Of there, as it is seen from here."""

    def _connect(self) -> None:
        self.here = self._first_host()
        self.there = self._host([*self.here, "unshare", "--net"])
        for command in (
            f"link add here type veth peer name there netns {self._hosts[1].pid}",
            "addr add 10.77.0.1/24 dev here",
            "link set lo up",
            "link set here up",
        ):
            _ip(self.here, command)
        for command in (f"addr add {self.address}/24 dev there", "link set lo up", "link set there up"):
            _ip(self.there, command)

    def cut(self) -> None:
        """Cut it: what is sent from now on gets lost, and nobody is told."""
        _ip(self.there, "link set there down")
        until(lambda: "NO-CARRIER" in _ip(self.here, "link show here"), "the cable to be cut")

    def mend(self) -> None:
        """Mend it."""
        _ip(self.there, "link set there up")
        until(lambda: "NO-CARRIER" not in _ip(self.here, "link show here"), "the cable to be mended")


class Lan(_Hosts):
    """Hosts on one switch, each with a cable to it. They share all but the network, as those on a ``Cable`` do."""

    def __init__(self, *names: str) -> None:
        """Take what they are called."""
        self._names = names
        self.hosts: dict[str, list[str]] = {}
        """The words that run a command there."""
        self.addresses = {name: f"10.78.0.{number}" for number, name in enumerate(names, 1)}

    def _connect(self) -> None:
        self._switch = self._first_host()
        _ip(self._switch, "link add switch type bridge")
        _ip(self._switch, "link set switch up")
        for name in self._names:
            host = self.hosts[name] = self._host([*self._switch, "unshare", "--net"])
            _ip(self._switch, f"link add {name} type veth peer name cable netns {self._hosts[-1].pid}")
            for command in (f"addr add {self.addresses[name]}/24 dev cable", "link set lo up", "link set cable up"):
                _ip(host, command)
            _ip(self._switch, f"link set {name} up")
            self.mend(name)

    def cut(self, name: str) -> None:
        """Pull a host's cable out of the switch: what is sent from now on gets lost, and nobody is told."""
        _ip(self._switch, f"link set {name} nomaster")

    def mend(self, name: str) -> None:
        """Plug it in again."""
        _ip(self._switch, f"link set {name} master switch")


def _ip(host: list[str], command: str) -> str:
    return subprocess.run([*host, "ip", *command.split()], check=True, capture_output=True, text=True).stdout
