"""The command line `sealwire-relay`. What only a running relay needs is imported when one is to run."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import click

from sealwire_protocol import __version__
from sealwire_relay.admincommands import admin
from sealwire_relay.commandline import ALL, finish, json_option, refuse, say, settings_of, settings_options
from sealwire_relay.settings import (
    CLEANING,
    KEEPING,
    LOGGING,
    Settings,
    SettingsError,
)
from sealwire_relay.tokencommands import token
from sealwire_relay.words import count

if TYPE_CHECKING:
    from sealwire_relay.backupfile import Contents
    from sealwire_relay.cleaner import Cleaned, Looked
    from sealwire_relay.compacting import Compacted
    from sealwire_relay.database import Database
    from sealwire_relay.holding import Held
    from sealwire_relay.purging import Forgotten
    from sealwire_relay.quota import ListedVault
    from sealwire_relay.saving import Backup
    from sealwire_relay.serve import Ready
    from sealwire_relay.store.backup import Restored


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="sealwire-relay")
def main() -> None:
    """The Sealwire relay: stores sealed records on Postgres and fans them out; it can read none of them.

    Every option is also an environment variable (SEALWIRE_PORT for --port), or a file that one names
    (SEALWIRE_PORT_FILE). docs/relay.md explains all of them, and the exit codes.
    """


main.add_command(admin)
main.add_command(token)


@main.command()
@settings_options(ALL - {"database_url"})
@json_option
def up(as_json: bool, **options: Any) -> None:
    """Run a relay with a Postgres of its own, kept in a folder: nothing else needs to be installed or set.

    It ends by Ctrl-C or SIGTERM, and Postgres with it. Once devices are served it says so on one line of stdout.
    """
    settings = settings_of(options)
    if settings.database_url is not None:
        refuse(
            SettingsError("A database is set, but `up` starts its own: unset SEALWIRE_DATABASE_URL, or use `serve`.")
        )
    from sealwire_relay.database import OwnDatabase

    _run(settings, lambda: OwnDatabase(settings), as_json)


@main.command()
@settings_options(ALL - {"folder"})
@json_option
def serve(as_json: bool, **options: Any) -> None:
    """Run a relay on a Postgres that is there already, and bring its schema up to date.

    A password in --database-url can be seen by other users of this machine: SEALWIRE_DATABASE_URL_FILE keeps it in
    a file.
    """
    settings = settings_of(options)
    from sealwire_relay.database import GivenDatabase

    _run(settings, lambda: GivenDatabase(settings), as_json)


@main.command()
@settings_options({"database_url", *LOGGING})
@click.option(
    "--phase",
    type=click.Choice(["pre", "post"]),
    default="pre",
    show_default=True,
    help="`pre`: what a new version needs, before it is started. `post`: what only older ones needed goes, once they "
    "have all ended.",
)
def migrate(phase: str, **options: Any) -> None:
    """Bring a database's schema up to date, and end. Doing it twice does no harm."""
    settings = settings_of(options)
    from sealwire_relay.database import address_of, log, prepare
    from sealwire_relay.ending import ExitCode, told
    from sealwire_relay.store.migrate import Phase

    async def bring_up_to_date() -> ExitCode:
        with told():
            await prepare(address_of(settings), Phase(phase))
        log.info("The schema is up to date.")
        return ExitCode.DONE

    finish(bring_up_to_date)


@main.command()
@settings_options({*CLEANING, *LOGGING})
@click.option(
    "--all", "everything", is_flag=True, help="Clean every stream that has anything to clean, however little it is."
)
@click.option("--watch", is_flag=True, help="Go on until stopped, with a look every --clean-seconds.")
@click.option("--beside", is_flag=True, hidden=True)
@json_option
def clean(everything: bool, watch: bool, beside: bool, as_json: bool, **options: Any) -> None:
    """Leave superseded records out of the stored logs, and end. Devices may push and catch up meanwhile.

    Each relay runs this with --watch beside itself, unless its --clean-seconds is 0. Cleaning is safe to be
    interrupted, and to be done by several at once.
    """
    settings = settings_of(options)
    if everything and watch:
        refuse(SettingsError("--all cleans once and ends, so it does not go with --watch: leave one of them out."))
    if watch and not settings.clean_seconds:
        refuse(SettingsError("--clean-seconds is 0, which keeps a relay from cleaning: give --watch a pause."))
    from sealwire_relay.cleaning import clean_on, clean_once

    def tell(looked: "Looked", forgotten: "Forgotten") -> None:
        if as_json or beside:
            say(json.dumps(looked._asdict() | forgotten._asdict()))
        elif not watch or looked.streams or looked.unfinished or forgotten.purged_tombstones:
            say(" ".join((_cleaned(looked, everything), *_forgotten(forgotten))))

    def step(cleaned: "Cleaned") -> None:
        say(json.dumps({"step": cleaned._asdict()}))

    finish(
        lambda: clean_on(settings, tell, step if beside else None) if watch else clean_once(settings, everything, tell)
    )


@main.command()
@settings_options({"database_url", "folder", "clean_records_max", *LOGGING})
@json_option
def compact(as_json: bool, **options: Any) -> None:
    """Clean everything, then write all tables anew, so that files become as small as they can be. No relay may run.

    It needs room on the disk for a copy of the largest table, and says how much. Without --database-url it is for
    the Postgres that `up` keeps in --folder.
    """
    settings = settings_of(options)
    from sealwire_relay import compacting

    def tell(done: "Compacted") -> None:
        say(json.dumps(done._asdict()) if as_json else _compacted(done))

    finish(lambda: compacting.compact(settings, tell))


def _compacted(done: "Compacted") -> str:
    left_out = count(done.records, "superseded record")
    unfinished = f" Not cleaned: {count(done.unfinished, 'stream')}, as the log says." if done.unfinished else ""
    return f"Compacted: {done.bytes:,} bytes before, {done.bytes_left:,} now; {left_out} left out.{unfinished}"


@main.command()
@click.argument("file", type=click.Path())
@settings_options({"database_url", "folder", *LOGGING})
@json_option
def backup(file: str, as_json: bool, **options: Any) -> None:
    """Back everything up into FILE, as one moment has it, while devices push and catch up. `-` is stdout.

    FILE must not be there yet, and is there only once it is whole: written, and read back. What it holds is as
    unreadable as what the relay stores. Without --database-url it is of the Postgres that `up` keeps in --folder.
    """
    settings = settings_of(options)
    from sealwire_relay.saving import STDOUT, save

    def tell(made: "Backup") -> None:
        line = (
            json.dumps(_described(file, made))
            if as_json
            else f"Backed up {_contents(made.header.contents)}, to {file}."
        )
        click.echo(line, err=file == STDOUT)

    finish(lambda: save(settings, file, tell))


@main.command()
@click.argument("file", type=click.Path())
@settings_options({"database_url", "folder", *LOGGING})
@click.option("--replace", is_flag=True, help="Throw away what the database holds now.")
@click.option("--check", is_flag=True, help="Only read FILE to its end and say whether it is whole; needs no database.")
@json_option
def restore(file: str, replace: bool, check: bool, as_json: bool, **options: Any) -> None:
    """Make a database what it was when `backup` wrote FILE: all of it, or nothing. No relay may be running on it.

    A new term begins with it, so that devices notice, and give back by themselves what the relay lacks.
    """
    settings = settings_of(options)
    if replace and check:
        refuse(SettingsError("--check changes nothing, so it does not go with --replace: leave one of them out."))
    from sealwire_relay import saving

    def tell_restored(done: "Restored") -> None:
        before, now = done
        if as_json:
            say(json.dumps({"thrown_away": before and before._asdict(), "restored": now._asdict()}))
            return
        gone = f" Thrown away: {_contents(before)}." if before is not None and before.streams else ""
        say(f"Restored {_contents(now)}, from {file}.{gone} Start the relay: devices give back what it lacks.")

    def tell_checked(found: "Backup") -> None:
        made = found.header
        words = f"{file} is whole: {_contents(made.contents)}, as of {made.made} (Sealwire {made.sealwire})."
        say(json.dumps(_described(file, found)) if as_json else words)

    finish(
        lambda: saving.check(file, tell_checked) if check else saving.put_back(settings, file, replace, tell_restored)
    )


def _described(file: str, backup: "Backup") -> dict[str, Any]:
    header = backup.header
    return {
        "file": file,
        "bytes": backup.bytes,
        "digest": backup.digest,
        "made": header.made,
        "sealwire": header.sealwire,
        "schema": header.migrated_pre,
        **header.contents._asdict(),
        "rows": backup.rows,
    }


def _contents(contents: "Contents") -> str:
    """What a database holds, in words."""
    vaults, streams = count(contents.vaults, "vault"), count(contents.streams, "stream")
    return f"{vaults} in {streams} (heads: {contents.heads:,} in all) under term {contents.term}"


def _cleaned(looked: "Looked", everything: bool) -> str:
    """What came of a look, in words."""
    parts = ["Nothing was to be cleaned."]
    if looked.streams + looked.unfinished:
        parts = [
            f"Cleaned {count(looked.streams, 'stream')}: {count(looked.records, 'superseded record')} left out;",
            f"{looked.bytes:,} bytes in {count(looked.segments, 'segment')} before,",
            f"{looked.bytes_left:,} bytes in {count(looked.segments_left, 'segment')} now.",
        ]
    if looked.unfinished:
        parts.append(f"Not finished: {count(looked.unfinished, 'stream')}; the log says why.")
    small = looked.waiting_streams - looked.unfinished
    if small and not everything:
        parts.append(f"{count(small, 'stream')} with too little to be worth it yet; --all cleans these too.")
    return " ".join(parts)


def _forgotten(forgotten: "Forgotten") -> list[str]:
    """What came of the tombstones, in words."""
    gone, kept = forgotten.purged_tombstones, forgotten.kept_tombstones
    parts = []
    if gone:
        parts.append(f"{count(gone, 'deletion')} in {count(forgotten.purged_streams, 'stream')} forgotten.")
    if kept:
        where = count(forgotten.kept_streams, "stream")
        parts.append(f"{count(kept, 'deletion')} in {where} remembered still; `sealwire-relay holds` says why.")
    return parts


@main.command(name="holds")
@settings_options({*KEEPING, *LOGGING})
@click.option("--json", "as_json", is_flag=True, help="Tell of each stream as a JSON object on a line of its own.")
def holds_command(as_json: bool, **options: Any) -> None:
    """Say which deletions are remembered, stream by stream, and what device they are remembered for.

    A deletion is remembered until it is older than --retention-days and known to every device that was heard from
    within --cutoff-days. These should be what the relay has.
    """
    settings = settings_of(options)
    from sealwire_relay.holding import holds

    streams = 0

    def tell(held: "Held") -> None:
        nonlocal streams
        streams += 1
        say(json.dumps(held.as_dict()) if as_json else _held(held))

    async def tell_all() -> int:
        code = await holds(settings, tell)
        if not streams and not as_json:
            say("No deletion is remembered, as far as logs have been cleaned.")
        return code

    finish(tell_all)


def _held(held: "Held") -> str:
    """Why a stream's tombstones are there, in words: a line for each thing."""
    lines = [
        f"stream {held.stream} of vault {held.vault}",
        f"  {count(held.tombstones, 'deletion')}, from seq {held.oldest} on",
        f"  {held.why}",
    ]
    for holder in held.holders:
        lines += [f"  device {holder.device} (member {holder.author})", f"    heard from last {holder.seen}"]
        lines += [f"    {clause}" for clause in holder.why.split("; ")]
    return "\n".join(lines)


@main.command(name="vaults")
@settings_options({"database_url", "folder", "quota_bytes", *LOGGING})
@click.option("--json", "as_json", is_flag=True, help="Tell of each vault as a JSON object on a line of its own.")
def vaults_command(as_json: bool, **options: Any) -> None:
    """Say what each vault stores, of how much it may, and when something was stored in it last.

    --quota-bytes should be what the relay has. Without --database-url it is of the Postgres that `up` keeps in
    --folder, whether the relay runs or not.
    """
    settings = settings_of(options)
    from sealwire_relay.listing import list_vaults

    def tell(found: "ListedVault") -> None:
        say(json.dumps(found._asdict()) if as_json else _usage(found))

    finish(lambda: list_vaults(settings, tell))


def _usage(found: "ListedVault") -> str:
    """What a vault stores, in words."""
    limit = f" of {found.quota:,}" if found.quota else ""
    wrote = f"last write {found.last_write}" if found.last_write else "no write since writes are noted"
    return f"{found.vault}: {found.bytes:,}{limit} bytes in {count(found.streams, 'stream')}, {wrote}"


def _run(settings: Settings, database: "Callable[[], Database]", as_json: bool) -> NoReturn:
    from sealwire_relay.serve import run

    def announce(ready: "Ready") -> None:
        say(json.dumps({"ready": True, "version": __version__, **ready._asdict()}) if as_json else _sentence(ready))

    finish(lambda: run(settings, database(), announce))


def _sentence(ready: "Ready") -> str:
    return (
        f"The relay is ready: devices dial {' or '.join(ready.origins[:1])}, health and metrics are at "
        f"{ready.control} (process {ready.pid}). Ctrl-C ends it."
    )
