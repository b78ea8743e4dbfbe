"""From the command line to the exit code: a temporary folder, the story in it, and nothing left afterwards."""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio
from rich.console import Console
from rich.markup import escape

from demo.characters import available
from demo.plan import ENTRIES_MIN
from demo.processes import StoryError
from demo.report import Figures, Teller
from demo.story import Story
from sealwire_client.nursery import open_nursery

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks the demo to end: Ctrl-C, a supervisor, a terminal that is closed."""


def conduct(arguments: Sequence[str]) -> int:
    """Tell the story; returns the exit code."""
    options = _options(arguments)
    # Programs read the last line of stdout; people then read stderr.
    stream = sys.stderr if options.json else sys.stdout
    console = Console(file=stream, highlight=False, soft_wrap=not stream.isatty())
    folder = Path(tempfile.mkdtemp(prefix="sealwire-demo-"))
    try:
        return trio.run(_conduct, options, folder, Teller(console), restrict_keyboard_interrupt_to_checkpoints=True)
    finally:
        if options.keep:
            console.print(f"Everything is kept in {folder}.")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    most = available()
    parser = argparse.ArgumentParser(
        prog="python -m demo", description="Two devices and one relay that cannot read, told as a story on real input."
    )
    parser.add_argument(
        "--entries", type=int, default=most, metavar="N", help=f"entries, {ENTRIES_MIN:,} to {most:,} (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="figures as one object on the last line of stdout")
    parser.add_argument("--keep", action="store_true", help="keep the temporary folder")
    options = parser.parse_args(arguments)
    if not ENTRIES_MIN <= options.entries <= most:
        parser.error(f"--entries is {ENTRIES_MIN:,} to {most:,}: there are no more named characters")
    return options


async def _conduct(options: argparse.Namespace, folder: Path, teller: Teller) -> int:
    began = time.monotonic()
    interrupted: list[int] = []
    figures, broken = Figures(), ""
    with trio.open_signal_receiver(*SIGNALS) as signals:
        try:
            async with open_nursery() as nursery:

                async def watch() -> None:
                    async for number in signals:
                        interrupted.append(number)
                        nursery.cancel_scope.cancel()

                nursery.start_soon(watch)
                teller.title(f"Sealwire: two devices, one relay that cannot read, {options.entries:,} entries")
                story = Story(options.entries, folder, teller, nursery)
                figures = story.figures
                try:
                    await story.tell()
                finally:
                    story.abandon()
                nursery.cancel_scope.cancel()
        except StoryError as error:
            broken = str(error)
    if interrupted:
        teller.console.print("\nInterrupted: everything was ended and removed.")
        return 128 + interrupted[0]
    figures.seconds = round(time.monotonic() - began, 1)
    if broken:
        figures.problems.append(broken)
        teller.console.print(f"\n[red]The story broke off.[/] {escape(broken)}")
    else:
        figures.judge()
        teller.summary(figures)
    if options.json:
        print(json.dumps(figures.as_json()), flush=True)
    return 0 if figures.ok else 1
