"""What a command prints: answers on stdout, for people or as JSON; everything else on stderr.

Texts of other devices can hold anything, also what a terminal would obey, so people see control characters as
escapes; JSON escapes them by itself.
"""

import json
import os
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from sealwire_client.cli.failures import Failure, OutputClosed, sentence

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

BAR_AFTER_SECONDS: Final = 1.0
"""What is done sooner needs no progress bar."""

_CONTROLS: Final = {number: f"\\x{number:02x}" for number in (*range(32), *range(127, 160))} | {
    9: "\\t",
    10: "\\n",
    13: "\\r",
    # Overrides of the writing direction can make one text look like another.
    **{number: f"\\u{number:04x}" for number in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029)},
}
_CONTROLS_BUT_LINES: Final = {number: shown for number, shown in _CONTROLS.items() if number not in (9, 10)}


def visible(text: str, *, lines: bool = False) -> str:
    """A text without anything that a terminal would obey; `lines` lets tabs and line breaks through."""
    return text.translate(_CONTROLS_BUT_LINES if lines else _CONTROLS)


def compact(value: object) -> str:
    """A value as JSON on one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class Output:
    """Where a command's answers go."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json

    @property
    def is_terminal(self) -> bool:
        """True if a person looks at the answers."""
        return not self.as_json and sys.stdout.isatty()

    def answer(self, fields: Mapping[str, object], text: str) -> None:
        """One answer: the fields as a line of JSON, or the text. It has left this process when this returns."""
        self.write(compact(fields) if self.as_json else text)
        self.flush()

    def write(self, line: str) -> None:
        """A line of a longer answer."""
        try:
            sys.stdout.write(line + "\n")
        except OSError as error:
            raise _unprintable(error) from error
        except UnicodeEncodeError:
            self.write(line.encode("ascii", "backslashreplace").decode())

    def data(self, raw: bytes) -> None:
        """Bytes of a longer answer that another program is to read exactly."""
        try:
            sys.stdout.buffer.write(raw)
        except OSError as error:
            raise _unprintable(error) from error

    def flush(self) -> None:
        """Let go what was written."""
        try:
            sys.stdout.flush()
        except OSError as error:
            raise _unprintable(error) from error

    def say(self, remark: str) -> None:
        """Something beside the answer, for people, on stderr."""
        say(sentence(visible(remark)))


def say(line: str) -> None:
    """A line on stderr; if nobody reads that, nobody needs it."""
    try:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    except (OSError, UnicodeEncodeError):
        pass


def _unprintable(error: OSError) -> Exception:
    abandon_stdout()
    if isinstance(error, BrokenPipeError):
        return OutputClosed()
    return Failure(f"The answer could not be written ({error.strerror}): see to where the output goes", "system")


def abandon_stdout() -> None:
    """Let what is still buffered go nowhere, so that the interpreter's end does not complain of it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


class Bar:
    """A progress bar on stderr, shown once something has taken a second; never without a terminal or with --json."""

    def __init__(self, what: str, output: Output) -> None:
        self._what, self._shown = what, not output.as_json and sys.stderr.isatty()
        self._began = time.monotonic()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.refresh()
            self._progress.stop()

    def update(self, done: int, total: int | None) -> None:
        """So much is done, of so much if that is known."""
        if not self._shown or time.monotonic() - self._began < BAR_AFTER_SECONDS:
            return
        if self._progress is None:
            self._begin(total)
        assert self._progress is not None and self._task is not None
        seconds = max(0.001, time.monotonic() - self._began)
        self._progress.update(self._task, completed=done, total=total, rate=f"{done / seconds:,.0f}/s")
        self._progress.refresh()

    def _begin(self, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns: tuple[Any, ...] = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True)
        self._task = self._progress.add_task(self._what, total=total, rate="")
        self._progress.start()
