"""How the story is told to people, and its figures to programs."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

Advance = Callable[[float], None]


@dataclass(slots=True)
class Figures:
    """What the story has measured and found out; None or False: not yet."""

    entries: int = 0
    devices: int = 0
    converged: bool = False
    lost: int | None = None
    duplicated: int | None = None
    plaintext_found: int | None = None
    canary_found: bool = False
    bootstrap_records_per_s: float | None = None
    live_ms_median: float | None = None
    live_ms_p95: float | None = None
    live_edits: int = 0
    scan_ms: float | None = None
    relay_bytes_per_entity: float | None = None
    relay_bytes_per_entity_after_crash: float | None = None
    put_per_s: float | None = None
    upload_per_s: float | None = None
    recovery_s: float | None = None
    converge_s: float | None = None
    offline_edits: int = 0
    seconds: float = 0.0
    ok: bool = False
    problems: list[str] = field(default_factory=list)

    def judge(self) -> None:
        """Whether all held that had to; says what did not."""
        if not self.converged:
            self.problems.append("the two replicas did not become equal")
        for name in ("lost", "duplicated", "plaintext_found"):
            value = getattr(self, name)
            if value != 0:
                self.problems.append(f"{name} is {'not known' if value is None else value}, not 0")
        if not self.canary_found:
            self.problems.append("the canary was not found everywhere, so that the search proves nothing")
        self.ok = not self.problems

    def as_json(self) -> dict[str, Any]:
        """For one line of JSON."""
        return asdict(self)


class _Rate(ProgressColumn):
    """Entries per second, over the last moments or, in the end, over all."""

    def render(self, task: Task) -> Text:
        """The rate, as soon as there is one."""
        speed = task.finished_speed if task.finished else task.speed
        return Text(f"{speed:,.0f}/s" if speed else "", style="cyan")


class Teller:
    """Tells the story on a console: phases, facts, bars."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._began = time.monotonic()
        self._phase = 0

    def title(self, text: str) -> None:
        """What this is all about."""
        self.console.print(f"\n[bold]{escape(text)}[/]")

    def phase(self, text: str) -> None:
        """A new chapter."""
        self._phase += 1
        seconds = time.monotonic() - self._began
        self.console.print(f"\n[bold]{self._phase}  {escape(text)}[/]  [dim]{seconds:.0f} s[/]")

    def fact(self, text: str, *, good: bool | None = None) -> None:
        """Something that is so now."""
        mark = {None: "[dim]·[/]", True: "[green]✓[/]", False: "[red]✗[/]"}[good]
        self.console.print(f"   {mark} {escape(text)}", highlight=False)

    @contextmanager
    def bar(self, text: str, total: int) -> Iterator[Advance]:
        """A progress bar while the block lasts; call what it gives with how much is done."""
        columns = (
            TextColumn("   {task.description:<24}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            _Rate(),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(text, total=total)
            yield lambda done: progress.update(task, completed=min(done, total))

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A small table: words left, the rest right."""
        table = Table(box=SIMPLE, padding=(0, 2, 0, 1), show_header=any(headings))
        for place, heading in enumerate(headings):
            table.add_column(heading, justify="right" if place else "left")
        for row in rows:
            table.add_row(*map(escape, row))
        self.console.print(table, highlight=False)

    def summary(self, figures: Figures) -> None:
        """The end of the story, as a table and one sentence."""
        self.console.print()
        self.table(("", ""), list(_lines(figures)))
        if figures.ok:
            self.console.print(f"[green]All of it held.[/] {figures.seconds:.0f} s.")
        else:
            self.console.print(f"[red]It did not hold:[/] {escape('; '.join(figures.problems))}.")


def _lines(figures: Figures) -> Iterator[tuple[str, str]]:
    f = figures
    yield f"entries on each of {f.devices} devices", _number(f.entries)
    yield "edits durable on a device", _number(f.put_per_s, "/s")
    yield "records durable at the relay", _number(f.upload_per_s, "/s")
    yield "a new device catches up", _number(f.bootstrap_records_per_s, " records/s")
    yield "from A's edit to B, median (95%)", f"{_number(f.live_ms_median, '', 1)} ({_number(f.live_ms_p95, '', 1)}) ms"
    yield "a count over all entries", _number(f.scan_ms, " ms", 1)
    yield "relay and Postgres back after kill -9", _number(f.recovery_s, " s", 1)
    yield "edits lost, records twice", f"{_number(f.lost)}, {_number(f.duplicated)}"
    yield "replicas equal", "yes" if f.converged else "no"
    yield "plaintext in the relay's folder", _number(f.plaintext_found)
    size, later = _number(f.relay_bytes_per_entity, "", 1), _number(f.relay_bytes_per_entity_after_crash, "", 1)
    yield "the relay's tables, per entry (after the crash)", f"{size} ({later}) bytes"


def _number(value: float | None, unit: str = "", digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}{unit}"
