"""Run a command with the system calls that a systemd unit leaves it: ``python -m tests.system.sandbox UNIT COMMAND …``.

As systemd.exec(5) has it: SystemCallFilter, with what systemd-analyze says of its groups, SystemCallErrorNumber=EPERM,
MemoryDenyWriteExecute and NoNewPrivileges, through libseccomp, which systemd itself stands on.
"""

import ctypes
import errno
import mmap
import os
import subprocess
import sys
from functools import cache

ALLOW = 0x7FFF0000
MASKED_EQUAL = 7
SHM_EXEC = 0o100000


class Comparison(ctypes.Structure):
    """``struct scmp_arg_cmp`` of seccomp.h."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("mask", ctypes.c_uint64), ("value", ctypes.c_uint64))


@cache
def group(name: str) -> frozenset[str]:
    """Give the system calls of a group, those of groups in it too."""
    listed = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True)
    names = [line.strip() for line in listed.stdout.splitlines()[1:]]
    calls = {each for each in names if each and not each.startswith(("#", "@"))}
    return frozenset(calls.union(*(group(each) for each in names if each.startswith("@"))))


def system_calls(unit: str) -> set[str]:
    """Give the system calls that a unit allows."""
    allowed = set(group("@default"))
    for line in unit.splitlines():
        if line.startswith("SystemCallFilter="):
            names = line.removeprefix("SystemCallFilter=")
            found = set().union(*(group(each) for each in names.removeprefix("~").split()))
            allowed = allowed - found if names.startswith("~") else allowed | found
    return allowed


CONDITIONS: dict[str, list[tuple[int, int, int]]] = {
    "mmap": [(2, mmap.PROT_WRITE | mmap.PROT_EXEC, value) for value in (0, mmap.PROT_WRITE, mmap.PROT_EXEC)],
    "mprotect": [(2, mmap.PROT_EXEC, 0)],
    "pkey_mprotect": [(2, mmap.PROT_EXEC, 0)],
    "shmat": [(2, SHM_EXEC, 0)],
}
"""Argument, mask and value with which these are allowed where memory may not be written and run."""


def conditions(name: str) -> list[tuple[int, int, int] | None]:
    """Give the conditions under which a system call is allowed where memory is either written or run."""
    return [*CONDITIONS.get(name, ())] or [None]


def enter(allowed: set[str], *, written_or_run: bool) -> None:
    """Leave this process, and those it starts, only these system calls; memory is either written or run, if asked."""
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(0x00050000 | errno.EPERM))
    for name in allowed:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:  # of another architecture
            continue
        for condition in conditions(name) if written_or_run else [None]:
            rules = [] if condition is None else [Comparison(condition[0], MASKED_EQUAL, *condition[1:])]
            array = (Comparison * len(rules))(*rules)
            assert library.seccomp_rule_add_array(context, ALLOW, number, len(rules), array) == 0, name
    assert library.seccomp_load(context) == 0  # it sets NoNewPrivileges


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        unit = file.read()
    enter(system_calls(unit), written_or_run="\nMemoryDenyWriteExecute=yes\n" in unit)
    os.execvp(sys.argv[2], sys.argv[2:])
