"""A process killed with -9 at any moment: what was acknowledged is there, and data and cursor agree."""

import random
import signal
import subprocess
import sys
from pathlib import Path

from sealwire_protocol.ids import Author
from tests.client.replica.support import Todos, opened, record

ROUNDS = 6


def work(folder: Path, seed: int) -> None:
    """Edit, deliver, send and answer until killed. Prints each edit and cursor once it is acknowledged."""
    dice = random.Random(seed)
    a = Todos(folder)
    counter = int(next(iter(a.reader.select("SELECT max(title) FROM todos WHERE key LIKE 'mine%'").rows))[0] or 0)
    print("ready", flush=True)
    while True:
        counter += 1
        key = f"mine {dice.randrange(40)}"
        a.edit(key, f"{counter:08}")
        print("edit", key, f"{counter:08}", flush=True)
        cursor = a.cursor()
        batches = a.replica.outbox.sent.unanswered(a.todos.vault)
        if batches and dice.random() < 0.4:
            sent = a.replica.database.connection.execute(
                "SELECT count FROM _group WHERE batch = ?", (batches[0].number,)
            ).fetchone()[0]
            a.answer(batches[0].number, cursor + 1, sent)
            a.deliver(cursor, last=cursor + sent)
        elif dice.random() < 0.5 and (taken := a.take(records_max=10)):
            a.store(taken)
        else:
            steps = range(cursor + 1, cursor + 1 + dice.randrange(1, 30))
            a.deliver(cursor, *[record(seq, f"theirs {seq}", "x", seq, Author(9)) for seq in steps])
        print("cursor", a.cursor(), flush=True)


def run_and_kill(folder: Path, seed: int) -> list[list[str]]:
    """Let a process work until it has acknowledged so much, and kill it wherever it is by then.

    Returns what it acknowledged.
    """
    command = [
        sys.executable,
        "-c",
        f"from {__name__} import work; from pathlib import Path; work(Path({str(folder)!r}), {seed})",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).resolve().parents[3]
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        lines = [process.stdout.readline() for _ in range(random.Random(seed).randrange(1, 80))]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.read().splitlines(keepends=True)
    return [line.split(" ", 1) for line in lines if line.endswith("\n")]


def test_killed_at_any_moment_it_loses_no_edit_and_keeps_data_and_cursor_together(tmp_path: Path) -> None:
    acknowledged: dict[str, str] = {}
    cursor, edits = 0, 0
    for seed in range(ROUNDS):
        for what, rest in run_and_kill(tmp_path, seed):
            if what == "edit":
                key, _, title = rest.strip().rpartition(" ")
                acknowledged[key] = title
                edits += 1
            else:
                cursor = int(rest)
        with opened(tmp_path) as a:
            a.replica.database.check()
            shown = a.shown()
            lost = {key: title for key, title in acknowledged.items() if shown.get(key, "") < title}
            assert lost == {}
            at = a.cursor()
            assert at >= cursor
            last = a.reader.select(
                "SELECT max(CAST(substr(key, 8) AS INTEGER)) FROM todos WHERE key LIKE 'theirs%'"
            ).rows
            assert int(str(last[0][0] or 0)) <= at
            check_every_edit_has_one_place(a)
    assert edits > ROUNDS


def check_every_edit_has_one_place(a: Todos) -> None:
    """Each of the device's own rows is in the log, or claimed by the outbox; and never neither."""
    run = a.replica.database.connection.execute
    claims = "SELECT key FROM _edit UNION SELECT key FROM _sent UNION SELECT key FROM _stuck"
    table = a.todos.table.name
    assert run(f"SELECT count(*) FROM {table} WHERE _local <> (key IN ({claims}))").fetchone() == (0,)
    assert run(f"SELECT count(*) FROM {table} WHERE NOT _local AND _rank IS NULL").fetchone() == (0,)
    assert run(
        f"SELECT count(*) FROM {a.todos.table.shadow} WHERE key NOT IN (SELECT key FROM {table} WHERE _local)"
    ).fetchone() == (0,)
    missing = run(
        "SELECT count(*) FROM _sent AS s WHERE seq IS NULL AND NOT EXISTS"
        " (SELECT 1 FROM _group AS g WHERE (g.vault, g.batch, g.place) = (s.vault, s.batch, s.place))"
    )
    assert missing.fetchone() == (0,)
