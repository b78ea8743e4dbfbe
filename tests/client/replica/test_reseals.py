"""What a replica has under older keys, and what of it is on its way to be sealed anew."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sealwire_client.replica import Incoming
from sealwire_protocol.errors import Outcome, Refusal, RemoteFault
from sealwire_protocol.ids import Author
from sealwire_protocol.messages import RESEAL, Appended, Refused, StreamKind
from sealwire_protocol.segment import Rank
from tests.client.replica.support import OTHER, T1, Todos, opened, record

REMOVED = 9


@pytest.fixture(params=[StreamKind.OPEN, StreamKind.GUARDED], ids=["open", "guarded"])
def a(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Todos]:
    with opened(tmp_path, request.param) as todos:
        yield todos


def sealed_in(epoch: int, one: Incoming) -> Incoming:
    return one._replace(rank=Rank.unpack(one.rank)._replace(epoch=epoch, salt=epoch.to_bytes(8, "big")).pack())


def old(
    a: Todos, epoch: int = 2, after: int = 0, count: int = 100, rows_max: int = 100
) -> tuple[list[str], int | None]:
    with a.replica.transaction():
        keys, last = a.replica.outbox.reseals.old(a.todos, epoch, after, count, rows_max)
    return [key for _, key in keys], last


def reseal(a: Todos, *keys: str) -> int:
    with a.replica.transaction():
        return a.replica.outbox.reseals.store(a.todos, keys, b"stated", b"records").number


def test_entries_under_older_keys_are_found_in_parts_and_deletions_are_not(a: Todos) -> None:
    records = [record(1, "x", "1", 1), record(2, "y", None, 2), record(3, "z", "3", 3), record(4, "new", "4", 4)]
    a.deliver(0, *[sealed_in(1 + (one.key == "new"), one) for one in records])
    assert old(a) == (["x", "z"], 4)
    assert old(a, count=1) == (["x"], 1)
    assert old(a, after=1, rows_max=1) == ([], 2)
    assert old(a, after=2, rows_max=1) == (["z"], 3)
    assert old(a, after=4) == ([], None)
    assert old(a, epoch=3)[0] == ["x", "z", "new"]


def test_what_is_on_its_way_is_sent_with_the_same_bytes_and_is_no_write(a: Todos) -> None:
    a.deliver(0, *[sealed_in(1, record(n, key, key, n)) for n, key in enumerate("xyz", 1)])
    number = reseal(a, "x", "y")
    [batch] = a.replica.outbox.sent.unanswered(a.todos.vault)
    assert (batch.number, batch.flags, batch.groups) == (number, RESEAL, ((a.todos.stream, b"stated", b"records"),))
    assert a.places() == (0, 0, 0, 0) and not a.replica.outbox.any_wait(a.todos.vault)
    assert a.shown() == {"x": "x", "y": "y", "z": "z"}


def test_r4_edits_of_its_keys_wait_for_the_verdict_and_others_do_not(a: Todos) -> None:
    a.deliver(0, *[sealed_in(1, record(n, key, key, n)) for n, key in enumerate("xyz", 1)])
    number = reseal(a, "x", "y")
    for key in "xyz":
        a.edit(key, "edited")
    taken = a.take()
    assert taken is not None and [edit.key for edit in taken.groups[0].edits] == ["z"]
    assert a.replica.outbox.edits.is_claimed(a.todos.number, "x")
    answered = a.answer(number, first=4, count=2, term=T1)
    assert answered is not None and answered.resealed and not answered.changes
    taken = a.take()
    assert taken is not None and [edit.key for edit in taken.groups[0].edits] == ["x", "y", "z"]
    assert a.replica.outbox.sent.unanswered(a.todos.vault) == []


@pytest.mark.parametrize("outcome", [one for one in Outcome if one is not Outcome.DONE])
def test_a_refusal_changes_nothing(a: Todos, outcome: Outcome) -> None:
    a.deliver(0, sealed_in(1, record(1, "x", "x", 1)))
    answered = a.answer(reseal(a, "x"), outcome=outcome)
    assert answered is not None and answered.resealed
    assert (answered.again, answered.stuck, answered.changes, answered.winners) == (0, 0, (), ())
    assert (a.shown(), a.places(), a.stuck(), old(a)[0]) == ({"x": "x"}, (0, 0, 0, 0), [], ["x"])


def test_who_came_first_is_told(a: Todos) -> None:
    a.deliver(0, *[sealed_in(1, record(n, key, key, n)) for n, key in enumerate("xy", 1)])
    refused = Refused(0, 1, Refusal.CONFLICT, 7, b"")
    answered = a.answer(reseal(a, "x", "y"), first=8, count=1, refused=[refused])
    assert answered is not None and answered.winners == ((a.todos.stream, 7),)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_verdict_that_does_not_fit_is_none(a: Todos, count: int) -> None:
    a.deliver(0, *[sealed_in(1, record(n, key, key, n)) for n, key in enumerate("xy", 1)])
    number = reseal(a, "x", "y")
    told = [Appended(a.todos.stream, T1, 3, count)] if count else []
    with pytest.raises(RemoteFault, match="does not fit"):
        a.replica.outbox.answer(a.todos.vault, number, Outcome.DONE, told, [])
    assert a.replica.outbox.sent.awaits(a.todos.vault, number)


def test_a_delivery_of_it_is_no_change_also_beneath_an_edit(a: Todos) -> None:
    a.deliver(0, *[sealed_in(1, record(n, key, key, n)) for n, key in enumerate("xy", 1)])
    a.edit("y", "edited")
    applied = a.deliver(2, *[sealed_in(2, record(n + 2, key, key, n)) for n, key in enumerate("xy", 1)])
    assert applied.changes == ()
    assert a.shown() == {"x": "x", "y": "edited"}
    assert old(a)[0] == []


def test_its_author_is_not_heard_by_that(a: Todos) -> None:
    vault, connection = a.todos.vault, a.replica.database.connection
    a.deliver(0, sealed_in(1, record(1, "x", "x", 1, REMOVED)), sealed_in(1, record(2, "y", "y", 2)))
    assert a.replica.vaults.last_heard(vault).keys() == {Author(REMOVED), Author(OTHER)}
    connection.execute("DELETE FROM _heard")
    a.replica.vaults._heard_at.clear()
    a.deliver(2, sealed_in(2, record(3, "x", "x", 1, REMOVED)), sealed_in(2, record(4, "y", "new", 3)))
    assert a.replica.vaults.last_heard(vault).keys() == {Author(OTHER)}
    a.deliver(4, sealed_in(2, record(5, "z", "late", 4, REMOVED)))
    assert a.replica.vaults.last_heard(vault).keys() == {Author(OTHER), Author(REMOVED)}
