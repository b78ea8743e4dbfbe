"""`python -m demo [--entries N] [--json] [--keep]`: tells the story; exit 0 only if all of it held.

1: something did not hold, or broke; 2: usage; 128 and the signal's number: interrupted (130 by Ctrl-C). No process
is left behind, whatever the end.
"""

import sys


def main() -> int:
    """The exit code. Imports what is needed here, so that Ctrl-C is answered well from the first moment."""
    try:
        from demo.conduct import conduct

        return conduct(sys.argv[1:])
    except KeyboardInterrupt:
        print("Interrupted before anything was started.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
