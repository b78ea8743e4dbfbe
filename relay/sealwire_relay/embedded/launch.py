"""Becomes the unprivileged Postgres: ties itself to the relay's life, drops root, and executes the program.

Runs as a script of its own, `python -I -S launch.py PARENT UID GID PROGRAM ARGUMENT...`, because code between
fork and exec (`preexec_fn`) can deadlock in a process with threads. Standard library only.

A UID of -1 keeps the user. If PROGRAM is `--reach`, nothing is executed: the exit status tells whether that
user can use the path that follows (0) or not (1). A failure before the program runs gives one line that reads
like one of Postgres' own, and exit status 126.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
EXIT_NOT_LAUNCHED = 126  # what a shell gives for a program that it found and could not run


def drop_root(uid: int, gid: int) -> None:
    """Become that user for good, without any supplementary group."""
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def die_with(parent: int, libc: ctypes.CDLL) -> None:
    """Have the kernel send SIGINT (to Postgres: fast shutdown) when the parent ends, however it ends."""
    # After dropping root, since a change of user clears it; it survives exec. It watches the parent's thread.
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it ended before the kernel was asked
        raise OSError("the relay has ended")


def main(arguments: list[str]) -> int:
    """Execute the program; returns only if that was not possible, or for `--reach`."""
    parent, uid, gid = (int(number) for number in arguments[:3])
    program = arguments[3:]
    try:
        libc = ctypes.CDLL(None, use_errno=True)  # while the interpreter's own files can still be read
        os.umask(0o077)
        if uid >= 0:
            drop_root(uid, gid)
        if program[0] == "--reach":
            return 0 if os.access(program[1], os.X_OK) else 1
        die_with(parent, libc)
        os.execv(program[0], program)
    except OSError as error:
        print(f"FATAL:  could not launch {program[0]}: {error}", file=sys.stderr, flush=True)
    return EXIT_NOT_LAUNCHED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
