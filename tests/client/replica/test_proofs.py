"""Proofs are kept as long as the log says their records here, or a write with them waits, and no longer."""

from pathlib import Path

import pytest

from sealwire_client.replica import Delivery, Incoming, Replica, SealedGroup
from sealwire_client.replica.entries import Collection
from sealwire_protocol.ids import SIGNATURE_BYTES, StreamId
from sealwire_protocol.messages import StreamKind
from tests.client.replica.support import COLUMNS, T1, JsonValues, Todos, apply, edit, record


@pytest.fixture
def a(tmp_path: Path) -> Todos:
    return Todos(tmp_path)


@pytest.fixture
def pacts(a: Todos) -> Collection:
    """A signed collection beside the other."""
    return a.replica.entries.open(
        1, "pacts", StreamId(b"pacts..."), StreamKind.OPEN, "latest", COLUMNS, JsonValues(len(COLUMNS)), signed=True
    )


def proof(number: int) -> bytes:
    return b"\1" + bytes((number,)) * SIGNATURE_BYTES


def signed(seq: int, key: str, title: str | None, version: int) -> Incoming:
    """A signed record, whose proof is named by its version."""
    return record(seq, key, title, version)._replace(flags=2 if title else 3, proof=proof(version))


def kept(replica: Replica) -> list[tuple[str, bytes]]:
    found = replica.database.connection.execute("SELECT key, proof FROM _proof ORDER BY key, rank")
    return [(key, each) for key, each in found]


def test_the_proof_of_the_record_that_wins_is_kept(a: Todos, pacts: Collection) -> None:
    apply(a.replica, pacts, Delivery(T1, 0, 2), [signed(1, "x", "one", 1), signed(2, "y", "two", 2)])
    apply(a.replica, pacts, Delivery(T1, 2, 4), [signed(3, "x", None, 3), signed(4, "y", "old", 1)])
    assert kept(a.replica) == [("x", proof(3)), ("y", proof(2))]
    proofs = a.replica.entries.proofs
    assert proofs.of(pacts.number, "x", record(3, "x", None, 3).rank) == proof(3)
    assert proofs.of(pacts.number, "x", record(1, "x", "one", 1).rank) == b""
    assert proofs.holds(pacts.number, "y", proof(2)[1:])
    assert not proofs.holds(pacts.number, "x", proof(2)[1:])
    assert not proofs.holds(a.todos.number, "y", proof(2)[1:])


def test_a_forgotten_deletion_needs_nobody_to_stand_for_it(a: Todos, pacts: Collection) -> None:
    apply(a.replica, pacts, Delivery(T1, 0, 2), [signed(1, "x", None, 1), signed(2, "y", "two", 2)])
    apply(a.replica, pacts, Delivery(T1, 2, 3, floor=2), [signed(3, "z", "three", 3)])
    assert kept(a.replica) == [("y", proof(2)), ("z", proof(3))]


def test_the_proof_of_an_own_write_is_kept_with_it_and_then_with_its_entry(a: Todos, pacts: Collection) -> None:
    replica = a.replica
    replica.edit(pacts, [edit("x", "mine")])
    taken = replica.outbox.edits.take(1, {pacts.number: 0})
    assert taken is not None
    mine = record(1, "x", "mine", 2, author=7)
    group = SealedGroup((), b"sealed", [(mine.rank, b"key1", 2)], [proof(7)])
    assert replica.outbox.store(taken, [group])
    assert kept(replica) == [("x", proof(7))]
    apply(replica, pacts, Delivery(T1, 0, 1), [signed(1, "x", "another's", 1)])
    assert kept(replica) == [("x", proof(1)), ("x", proof(7))]
    apply(replica, pacts, Delivery(T1, 1, 2), [mine._replace(seq=2, flags=2, proof=proof(7))])
    replica.entries.proofs.sweep(pacts.number, pacts.table.name)
    assert kept(replica) == [("x", proof(7))]


def test_the_proofs_of_what_was_dropped_are_swept_away(a: Todos, pacts: Collection) -> None:
    apply(a.replica, pacts, Delivery(T1, 0, 2), [signed(1, "x", "one", 1), signed(2, "y", "two", 2)])
    a.replica.database.connection.execute(f"DELETE FROM {pacts.table.name} WHERE key = 'x'")
    a.replica.entries.proofs.sweep(pacts.number, pacts.table.name)
    assert kept(a.replica) == [("y", proof(2))]
