"""The decisions that need no server: which user, what an end means, how large the log may be."""

import os
import pwd
from pathlib import Path

import pytest

from sealwire_relay.embedded import (
    DataFolderError,
    DiskFullError,
    EmbeddedPostgresError,
    MissingBinariesError,
    serverlog,
)
from sealwire_relay.embedded import account as accounts
from sealwire_relay.embedded.binaries import major_of
from sealwire_relay.embedded.serverlog import ServerLog, decisive_line, explain

LOG = Path("/data/postgres.log")


def entry(name: str, uid: int) -> pwd.struct_passwd:
    return pwd.struct_passwd((name, "x", uid, uid + 1, "", "/", "/bin/false"))


def pwd_without_entries(name: str) -> pwd.struct_passwd:
    raise KeyError(name)


def owned_by(uid: int) -> os.stat_result:
    return os.stat_result((0o40700, 0, 0, 0, uid, uid + 1, 0, 0, 0, 0))


@pytest.mark.parametrize(
    "known, wanted",
    [
        ({"postgres": 70, "nobody": 65534}, 70),
        ({"nobody": 65534, "daemon": 1}, 65534),
        ({"postgres": 0, "daemon": 1}, 1),
    ],
)
def test_root_lends_the_first_preferred_account_that_exists(known: dict[str, int], wanted: int) -> None:
    account = accounts.unprivileged(lambda name: entry(name, known[name]))
    assert (account.uid, account.gid, account.dropped) == (wanted, wanted + 1, True)


def test_root_without_any_such_account_is_told_so() -> None:
    with pytest.raises(EmbeddedPostgresError, match="--database-url"):
        accounts.unprivileged(pwd_without_entries)


def test_the_owner_of_the_database_files_stays() -> None:
    kept = accounts.choose(owned_by(4321), euid=0)
    assert (kept.uid, kept.gid, kept.dropped) == (4321, 4322, True)
    mine = accounts.choose(owned_by(4321), euid=4321)
    assert (mine.uid, mine.dropped) == (4321, False)
    for owner, me in ((0, 0), (1, 2)):
        with pytest.raises(DataFolderError, match="belong"):
            accounts.choose(owned_by(owner), euid=me)


@pytest.mark.parametrize(
    "line, kind, words",
    [
        (
            'PANIC:  could not write to file "pg_wal/xlogtemp.41": No space left on device',
            DiskFullError,
            "make room",
        ),
        ('FATAL:  could not extend file "base/5/1": Disk quota exceeded', DiskFullError, "make room"),
        (
            (
                'FATAL:  could not extend file "base/1/2691": wrote only 4096 of 8192 bytes at block 9\n'
                "2026-01-01 00:00:00.000 UTC [7] HINT:  Check free disk space.\n"
                "2026-01-01 00:00:00.000 UTC [7] PANIC:  cannot abort transaction 1, it was already committed"
            ),
            DiskFullError,
            "The disk under the data folder is full; what was committed is intact",
        ),
        ("FATAL:  database files are incompatible with server", DataFolderError, "pg_control` in the data"),
        ("FATAL:  incorrect checksum in control file", DataFolderError, "are damaged"),
        ('PANIC:  could not read file "global/pg_control": read 0 of 296', DataFolderError, "restore a backup"),
        ("PANIC:  could not locate a valid checkpoint record at 0/1AF1E20", DataFolderError, "are damaged"),
        ('FATAL:  could not open file "global/pg_control": Permission denied', DataFolderError, "0700"),
        ("FATAL:  data directory has wrong ownership", DataFolderError, "0700"),
        (
            "FATAL:  could not map anonymous shared memory: Cannot allocate memory",
            EmbeddedPostgresError,
            "memory",
        ),
        (
            "FATAL:  something never seen",
            EmbeddedPostgresError,
            "something never seen; see /data/postgres.log",
        ),
        ("LOG:  nothing fatal", EmbeddedPostgresError, "ended with status 1 and gave no reason"),
    ],
)
def test_an_end_is_explained_by_the_decisive_line(line: str, kind: type[Exception], words: str) -> None:
    text = f"2026-01-01 00:00:00.000 UTC [7] {line}\n2026-01-01 00:00:01.000 UTC [7] LOG:  shutting down\n"
    error = explain(text, log=LOG, status=1)
    assert type(error) is kind
    assert words in str(error)


def test_initdbs_own_words_are_decisive_too() -> None:
    text = "initdb: error: could not look up effective user ID 9: user does not exist\ninitdb: hint: none\n"
    assert "needs a user that has a name" in str(explain(text, log=LOG, status=1))


def test_what_postgres_says_before_it_has_a_log_is_decisive_too() -> None:
    text = 'postgres: could not access the server configuration file "/x/postgresql.conf": No such file or directory\n'
    assert "Postgres ended: could not access the server conf" in str(explain(text, log=LOG, status=2))


def test_what_only_clients_were_told_decides_nothing() -> None:
    text = "FATAL:  lock file is empty\nFATAL:  the database system is shutting down\n"
    assert decisive_line(text) == "lock file is empty"


@pytest.mark.parametrize(
    "told",
    [
        'role "nobody" does not exist',
        'database "nosuch" does not exist',
        'password authentication failed for user "relay"',
        'no pg_hba.conf entry for host "[local]", user "relay", database "x", no encryption',
    ],
)
def test_a_login_that_was_refused_ended_no_postgres(told: str) -> None:
    assert decisive_line(f"FATAL:  {told}\n") is None


def test_a_postgres_that_was_killed_did_not_end_for_what_it_wrote_before() -> None:
    before = "FATAL:  could not open file: Permission denied\n"
    assert "was ended by signal 9 and gave no reason" in str(explain(before, log=LOG, status=-9))
    assert "could not open file" in str(explain(before, log=LOG, status=-6))


def test_binaries_that_do_not_run_are_told() -> None:
    assert major_of("postgres (PostgreSQL) 18.6\n") == 18
    with pytest.raises(MissingBinariesError, match="libc"):
        major_of("error while loading libc\n")


def test_the_log_is_bounded_and_keeps_what_came_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serverlog, "LOG_BYTES_MAX", 100)
    path = tmp_path / "postgres.log"
    log = ServerLog(path)
    descriptor = log.open()
    os.write(descriptor, b"a" * 90)
    log.mark()
    os.write(descriptor, b"FATAL:  told before the bound")
    assert log.tail().startswith("FATAL")
    log.bound()
    os.write(descriptor, b"and goes on")
    os.close(descriptor)
    assert path.read_text() == "and goes on" == log.tail()
    assert path.with_suffix(".log.1").read_text().startswith("aaa")
