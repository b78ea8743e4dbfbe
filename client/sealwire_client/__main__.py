"""The way in. It imports nothing at first, so that Ctrl-C ends quietly even while the rest is being imported."""

import os
import signal
import sys
from types import FrameType


def run() -> None:
    """The command `sealwire`."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _end_at_once)
    _open_standard_streams()
    from sealwire_client.cli import main

    main(prog_name="sealwire")


def _open_standard_streams() -> None:
    """A closed stdin, stdout or stderr would give its number to the replica's file, and what is printed to it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    # Python gives no stream to a number that was closed when it started.
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    os.write(2, b"sealwire: Interrupted before anything was begun.\n")
    os._exit(130)


if __name__ == "__main__":
    run()
