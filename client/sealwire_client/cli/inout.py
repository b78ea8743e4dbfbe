"""`export` and `import`: all entries of a collection, into a file and out of one."""

from __future__ import annotations

import os
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sealwire_client.cli import options, values
from sealwire_client.cli.entries import PAGE_ENTRIES
from sealwire_client.cli.failures import Failure, usage
from sealwire_client.cli.output import Bar, Output, compact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sealwire_client.cli.looking import Source
    from sealwire_client.cli.place import Place
    from sealwire_client.cli.session import Entries

    Parsed = Callable[[int, bytes], values.Line | None]

STREAM: Final = "-"
"""Says stdin or stdout where a file could be named."""

JSONL: Final = "jsonl"
CSV: Final = "csv"

format_option = click.option(
    "--format",
    "form",
    type=click.Choice([JSONL, CSV]),
    help="JSON lines or CSV; else CSV if FILE ends so, else JSON lines.",
)


def _form(form: str | None, file: str) -> str:
    """The format that is meant."""
    return form or (CSV if Path(file).suffix.lower() == ".csv" else JSONL)


@click.command(short_help="Write all entries of a collection into a file.")
@click.argument("collection")
@click.argument("file", default=STREAM)
@format_option
@click.option("--overwrite", is_flag=True, help="FILE may be replaced, if it is there.")
@options.fresh
@options.vault
@options.wait(5, "Longest wait while nothing moves, where the relay is needed.")
@options.folder_and_json
def export(
    collection: str,
    file: str,
    form: str | None,
    overwrite: bool,
    fresh: bool,
    vault: str | None,
    wait: float,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Write all entries of COLLECTION, as this device holds them, into FILE, or to stdout.

    Each line is {"key": …, "value": …}, or a row of CSV, as `sealwire import` reads it. FILE gets its name once it is
    whole.
    """
    from sealwire_client.cli import files, looking, place, running

    output, meant = Output(as_json), _form(form, file)
    if overwrite and file == STREAM:
        raise usage("--overwrite says that FILE may be replaced, and there is no FILE")
    if file != STREAM:
        files.check(Path(file), overwrite)
    found = place.existing(folder)

    async def show(source: Source) -> None:
        if file == STREAM:
            await _export(source, meant, output.data, output)
            output.flush()
            return
        with files.whole(Path(file), overwrite) as out:
            count = await _export(source, meant, out.write, output)
        fields = {"collection": collection, "file": file, "exported": count}
        output.answer(fields, f"{values.counted(count)} exported to {file}")

    running.run(lambda: looking.look(found, vault, collection, fresh, wait, output, show))


async def _export(source: Source, form: str, write: Callable[[bytes], object], output: Output) -> int:
    """Write every entry, and return how many there were. Never holds more of them than a page."""
    if newer := source.newer():
        raise Failure(
            f"{values.counted(len(newer))} can be read by a newer version only: nothing was exported, since they would"
            " be missing; update sealwire",
            "replica",
        )
    if form == JSONL:
        return await _each(source, lambda key, value: write(_line(key, value)), "Exporting", output)
    from sealwire_client.cli.rows import Table

    table = Table()
    await _each(source, lambda key, value: table.extend(value), "Reading", output)
    write(table.head())
    return await _each(source, lambda key, value: write(table.row(key, value)), "Exporting", output)


def _line(key: str, value: values.Value) -> bytes:
    return compact({"key": key, "value": value}).encode() + b"\n"


async def _each(source: Source, do: Callable[[str, values.Value], object], what: str, output: Output) -> int:
    """Do something with every entry, and return how many there were."""
    import trio

    count, total = 0, len(source)
    with Bar(what, output) as bar:
        for key, value in source.items():
            do(key, value)
            count += 1
            if count % PAGE_ENTRIES == 0:
                bar.update(count, total)
                await trio.lowlevel.checkpoint()
    return count


@click.command("import", short_help="Save the entries of a file in a collection.")
@click.argument("collection")
@click.argument("file")
@format_option
@options.policy
@options.vault
@options.wait(5, "Longest wait for the relay's confirmation while nothing moves; 0: do not wait.")
@options.folder_and_json
def import_(
    collection: str,
    file: str,
    form: str | None,
    policy: str | None,
    vault: str | None,
    wait: float,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Save the entries of FILE (- for stdin) in COLLECTION: each line is {"key": …, "value": …}, or a row of CSV.

    Lines are saved as they are read. Entries with other keys stay as they are. To import the same again does no harm.
    """
    from sealwire_client.cli import place, running

    output, meant, fd = Output(as_json), _form(form, file), _open(file)
    found = place.existing(folder)
    running.run(lambda: _import(found, vault, collection, policy, fd, meant, wait, output))


def _open(file: str) -> int:
    if file == STREAM:
        return 0
    try:
        return os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise usage(f"{file} cannot be read ({error.strerror}); nothing was saved") from None


async def _import(
    place: Place, name: str | None, collection: str, policy: str | None, fd: int, form: str, wait: float, output: Output
) -> None:
    from sealwire_client.cli import saving, session
    from sealwire_client.cli.lines import batches
    from sealwire_client.cli.rows import Rows

    async with session.opened(place) as device:
        vault = session.chosen(device, place, name)
        entries = await session.writable(device, vault, collection, policy, wait)
        stuck, count = (await vault.status()).stuck, 0
        rows = Rows()
        parsed = values.parsed if form == JSONL else rows.parsed
        with Bar("Saving", output) as bar:
            async with aclosing(batches(fd)) as read:
                async for batch in read:
                    count += await _put_batch(entries, batch, parsed)
                    bar.update(count, None)
        rows.end()
        status = await saving.until_sent(vault, wait, output)
        fields = {"collection": collection, "saved": count}
        saving.tell(fields, f"{values.counted(count)} saved", status, stuck, vault, wait, output)


async def _put_batch(entries: Entries, batch: list[tuple[int, bytes]], parsed: Parsed) -> int:
    """Put lines, in one transaction; of a batch with a wrong line those before it. Raises Failure, which names it."""
    lines: list[values.Line] = []
    wrong: Failure | None = None
    for number, raw in batch:
        try:
            line = parsed(number, raw)
        except Failure as failure:
            wrong = failure
            break
        if line is not None:
            lines.append(line)
    at = 0

    def pairs() -> Iterator[tuple[str, values.Value]]:
        nonlocal at
        for line in lines:
            yield line.key, line.value
            at += 1

    try:
        count = await entries.put_many(pairs())
    except ValueError as error:  # a value that cannot be kept
        await entries.put_many([(line.key, line.value) for line in lines[:at]])
        raise values.wrong_line(lines[at].number, str(error)) from error
    if wrong is not None:
        raise wrong
    return count
