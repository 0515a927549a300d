"""Run a program that is killed when its parent dies: ``python pdeathsig.py PARENT_PID PROGRAM ARGUMENT …``, on Linux.

A broker does not notice the death of the supervisor. The kernel sends SIGKILL to a process that has asked for it
(prctl(2), PR_SET_PDEATHSIG) when its parent ends, also after an exec. This file is run directly, because a Python that
imports nearly nothing starts in 10 ms.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Execute the program in a session of its own, which Ctrl-C does not reach."""
    parent, *command = arguments
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == int(parent):  # else it has died before the prctl
        os.execv(command[0], command)  # noqa: S606 - the arguments are ours


if __name__ == "__main__":
    main(sys.argv[1:])
