"""A vault goes from a replica whole, in one transaction, and takes nothing of another one with it."""

from contextlib import closing
from pathlib import Path

import pytest

from sealwire_client.replica import Delivery, Leaving, Replica, UnsentError, VaultGoneError
from sealwire_client.replica.parting import OF_NO_VAULT
from tests.client.replica.support import T1, Todos, apply, edit, open_todos, record


def tables(replica: Replica) -> dict[str, set[str]]:
    """Every table and its columns."""
    run = replica.database.connection.execute
    names = [row[0] for row in run("SELECT name FROM sqlite_schema WHERE type = 'table' AND name GLOB '_*'")]
    return {name: {row[1] for row in run(f"PRAGMA table_info({name})")} for name in names}


def test_every_table_says_whose_its_rows_are(a: Todos) -> None:
    for name, columns in tables(a.replica).items():
        known = name in OF_NO_VAULT or columns & {"vault", "collection"} or name[2:].isdigit()
        assert known, f"{name}: a vault that is forgotten would leave its rows"


def test_nothing_of_a_vault_is_left_and_another_stays_as_it_was(tmp_path: Path) -> None:
    with closing(Replica(tmp_path)) as replica:
        run = replica.database.connection.execute

        def rows() -> dict[str, int]:
            found = {name: run(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables(replica)}
            return {name: count for name, count in found.items() if count}

        other = open_todos(replica, vault=2)
        replica.vaults.add_links(other.vault, 1, [b"link"])
        replica.edit(other, [edit("its", "own")])
        before = rows()
        todos = open_todos(replica, vault=3)
        replica.vaults.add_links(todos.vault, 1, [b"a link"])
        apply(replica, todos, Delivery(T1, 0, 1), [record(1, "first", "1", 1)])
        replica.edit(todos, [edit("second", "2")])
        with pytest.raises(UnsentError) as caught:
            replica.parting.forget(todos.vault, discard=False)
        assert caught.value.count == 1
        assert replica.outbox.waiting(todos.vault).edits == 1
        replica.parting.forget(todos.vault, discard=True)
        assert {**rows(), "_term": 1} == {**before, "_term": 1}
        assert replica.vaults.links(other.vault) == [b"link"]
        assert run("PRAGMA foreign_key_check").fetchall() == []
        with pytest.raises(VaultGoneError):
            replica.edit(todos, [edit("third", "3")])
        fresh = open_todos(replica, vault=4)
        assert fresh.number != todos.number
        assert fresh.vault != todos.vault


def test_a_vault_that_is_to_be_left_stays_so(a: Todos) -> None:
    parting = a.replica.parting
    assert parting.intended(a.todos.vault) is None
    parting.intend(a.todos.vault, Leaving(b"link", True))
    assert parting.intended(a.todos.vault) == Leaving(b"link", True)
    parting.intend(a.todos.vault, None)
    assert parting.intended(a.todos.vault) is None
