"""Run a program that dies with us: ``python tether.py PARENT_PID PROGRAM ARGUMENT …``, on Linux.

A broker does not notice that the process that started it was killed. The kernel does: it sends SIGKILL to a
process that asked for it (prctl(2), PR_SET_PDEATHSIG) when its parent ends, through exec too. Run as a file of
its own, for a Python that imports next to nothing starts in 10 ms. It knows nothing of chatd.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Become the program, tied to the parent, in a session of its own that Ctrl-C does not reach."""
    parent, *command = arguments
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == int(parent):  # or it ended before we asked
        os.execv(command[0], command)  # noqa: S606 - the arguments are ours


if __name__ == "__main__":
    main(sys.argv[1:])
