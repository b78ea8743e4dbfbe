"""`python -m tests.simulation`: see the runner."""

import os
import sys

from tests.simulation.runner import main

if os.environ.get("PYTHONHASHSEED") != "0":
    # The order of sets is chance too.
    os.environ["PYTHONHASHSEED"] = "0"
    os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])
sys.exit(main())
