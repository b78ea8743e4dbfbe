"""Ties a program to the life of the process that started it: `python -I -S tied.py PARENT PROGRAM ARGUMENT...`.

The kernel sends it SIGTERM when the parent ends, however it ends. A script of its own, because code between fork
and exec can deadlock; it ends by becoming the program. Standard library only.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main(arguments: list[str]) -> None:
    """Become the program; returns only if the parent has ended before."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() == int(arguments[0]):
        os.execv(arguments[1], arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
