"""Live queries: what they tell, when they are run, and what is left of them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from sealwire_client.differences import Deleted, Difference, Inserted, Moved, Result, Updated
from sealwire_client.live import RUNS_APART_SECONDS, Live, is_ordered
from sealwire_client.policies import latest
from sealwire_client.replica import QueryError, Reader, ReplicaClosedError, VaultGoneError
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_client.vault import Vault
from sealwire_protocol.links import Role
from tests.client.party import Guest, Note, all_synced, cut_off, founded, in_step, joined, notes_of, party
from tests.support.virtual import virtual

BY_COUNT = "SELECT key, text FROM notes WHERE count >= 0 ORDER BY count, key"
ALL = "SELECT key, text, count FROM notes"


@asynccontextmanager
async def with_notes(open_device: OpenDevice, *texts: str) -> AsyncIterator[Guest]:
    """A device with notes, each under its own text."""
    async with open_device("a") as device:
        guest = await founded(device)
        await guest.notes.put_many((text, Note(text, n)) for n, text in enumerate(texts))
        yield guest


async def told(live: Live[Difference]) -> Difference:
    """The next difference."""
    with trio.fail_after(60):
        return await anext(live)


async def nothing_told(live: Live[Difference]) -> bool:
    """True if nothing is told in a minute."""
    with trio.move_on_after(60):
        await anext(live)
        return False
    return True


def registered(vault: Vault) -> tuple[int, int, int]:
    """How many live queries a vault has, how often the replica is to wake one, and connections for them."""
    queries = vault._live
    return len(queries._open), len(queries._touches), len(queries._idle) + len(queries._lent)


# --- what is told


@virtual
async def test_first_comes_the_whole_result_then_what_became_of_it(open_device: OpenDevice) -> None:
    async with with_notes(open_device, "a", "b", "c") as guest, guest.vault.live(BY_COUNT) as live:
        found = await told(live)
        assert found.columns == ("key", "text")
        assert found.rows == (("a", "a"), ("b", "b"), ("c", "c"))
        assert found.inserted == tuple(Inserted(row[0], row, n) for n, row in enumerate(found.rows))
        await guest.notes.put("b", Note("B", 1))
        assert (await told(live)).updated == (Updated("b", ("b", "B"), 1, ("text",)),)
        await guest.notes.put("a", Note("a", 5))
        found = await told(live)
        assert found.moved == (Moved("a", 0, 2),) and not found.updated
        assert found.rows == (("b", "B"), ("c", "c"), ("a", "a"))
        await guest.notes.delete("c")
        assert (await told(live)).deleted == (Deleted("c", ("c", "c"), 1),)


@virtual
async def test_an_empty_result_is_told_too(open_device: OpenDevice) -> None:
    async with with_notes(open_device) as guest, guest.vault.live(ALL) as live:
        assert (await told(live)) == Difference(("key", "text", "count"), ())
        assert await nothing_told(live)


@virtual
async def test_without_an_order_rows_stay_where_they_were_shown(open_device: OpenDevice) -> None:
    async with with_notes(open_device, "a", "b") as guest, guest.vault.live(ALL) as live:
        await told(live)
        await guest.notes.delete("a")
        await guest.notes.put("a", Note("again"))
        found = await told(live)
        assert found.rows == (("a", "again", 0), ("b", "b", 1)) and not found.moved


@virtual
async def test_what_others_write_is_told_and_so_is_what_is_written_offline(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests, guests[0].vault.live(ALL) as live:
        await told(live)
        await guests[1].notes.put("x", Note("from b"))
        assert (await told(live)).rows == (("x", "from b", 0),)
        async with cut_off(memory_relay):
            await guests[0].notes.put("x", Note("offline"))
            assert (await told(live)).rows == (("x", "offline", 0),)
        await in_step(guests)
        assert await nothing_told(live)


@virtual
async def test_a_refused_write_that_is_given_up_shows_what_was_there(open_device: OpenDevice) -> None:
    async with party(open_device) as [host, _], open_device("reader") as device:
        await host.notes.put("a", Note("a"))
        reader = await joined(device, host.vault, Role.READER)
        await all_synced([host.vault, reader.vault])
        async with reader.vault.live(ALL) as live:
            assert (await told(live)).rows == (("a", "a", 0),)
            write = await reader.notes.put("a", Note("not allowed"))
            assert (await told(live)).rows == (("a", "not allowed", 0),)
            await write.durable()
            await reader.vault.discard("notes", "a")
            assert (await told(live)).rows == (("a", "a", 0),)


@virtual
async def test_values_are_bound_and_keys_named(open_device: OpenDevice) -> None:
    async with with_notes(open_device, "a", "b") as guest:
        asked = "SELECT key AS name, count / 2 AS half FROM notes WHERE key < ?"
        async with guest.vault.live(asked, ["b"], key="name") as live:
            assert [each.key for each in (await told(live)).inserted] == ["a"]
        async with guest.vault.live(asked, ["c"], key=("half", "name")) as live:
            assert [each.key for each in (await told(live)).inserted] == [(0, "a"), (0, "b")]
        async with guest.vault.live(asked, ["c"]) as live:
            assert [each.key for each in (await told(live)).inserted] == [("a", 0), ("b", 0)]


@pytest.mark.parametrize(
    ("sql", "ordered"),
    [
        ("SELECT 1 ORDER BY 1", True),
        ("SELECT 1\norder/* */by 1", True),
        ("SELECT (SELECT 1 ORDER BY 1)", False),
        ("SELECT sum(x) OVER (ORDER BY y) FROM z", False),
        ("SELECT 'order by', \"order\", [order], `order` -- order", False),
        ("SELECT ')' FROM (SELECT '(' ORDER BY 1)", False),
        ("SELECT '(' ORDER BY ')'", True),
    ],
)
def test_an_order_of_its_own_is_one_outside_of_parentheses(sql: str, ordered: bool) -> None:
    assert is_ordered(sql) == ordered


# --- what is refused


@virtual
@pytest.mark.parametrize(
    ("sql", "why"),
    [
        ("SELECT absent FROM notes", "no such column"),
        ("SELECT key FROM elsewhere", "no such table"),
        ("DELETE FROM notes", "cannot modify notes"),
        ("DELETE FROM main._edit", "it is no SELECT"),
        ("SELECT 1; SELECT 2", "one statement at a time"),
        ("PRAGMA user_version", "it is no SELECT"),
        ("ATTACH ':memory:' AS elsewhere", "it is no SELECT"),
        ("BEGIN", "it is no SELECT"),
        ("", "incomplete input"),
        ("SELECT 'x' AS key FROM notes", "the key 'x'"),
        ("SELECT value FROM _edit", "_edit, of which nobody tells"),
    ],
)
async def test_wrong_sql_is_refused_at_the_beginning(open_device: OpenDevice, sql: str, why: str) -> None:
    async with with_notes(open_device, "a", "b") as guest:
        with pytest.raises(QueryError, match=why):
            async with guest.vault.live(sql):
                raise AssertionError("the block was entered")
        assert registered(guest.vault) == (0, 0, 0)


@virtual
async def test_a_query_that_fails_later_says_so_and_goes_on_when_it_can(open_device: OpenDevice) -> None:
    async with with_notes(open_device, "{}") as guest:
        async with guest.vault.live("SELECT key, text -> 'x' FROM notes") as live:
            await told(live)
            await guest.notes.put("{}", Note("no JSON"))
            with pytest.raises(QueryError, match="malformed JSON"):
                await told(live)
            with pytest.raises(QueryError, match="malformed JSON"):
                await told(live)
            await guest.notes.put("{}", Note('{"x": 1}'))
            assert (await told(live)).rows == (("{}", "1"),)


# --- when it is run


@virtual
async def test_commits_before_it_is_asked_make_one_run(open_device: OpenDevice) -> None:
    async with with_notes(open_device) as guest, guest.vault.live(ALL) as live:
        await told(live)
        for n in range(50):
            await guest.notes.put(str(n), Note("x"))
        assert live.runs == 1
        assert len((await told(live)).inserted) == 50
        assert live.runs == 2


@virtual
async def test_a_flood_of_commits_makes_a_run_every_so_often(open_device: OpenDevice) -> None:
    async with with_notes(open_device) as guest, guest.vault.live(ALL) as live:
        began = trio.current_time()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def read() -> None:
                async for _ in live:
                    pass

            for n in range(1_000):
                await guest.notes.put("x", Note("x", n))
                await trio.sleep(RUNS_APART_SECONDS / 10)
            nursery.cancel_scope.cancel()
        assert live.runs <= 2 + (trio.current_time() - began) / RUNS_APART_SECONDS


@virtual
async def test_after_a_quiet_time_the_first_run_comes_at_once(open_device: OpenDevice) -> None:
    async with with_notes(open_device) as guest, guest.vault.live(ALL) as live:
        await told(live)
        for n in range(3):
            await trio.sleep(RUNS_APART_SECONDS)
            await guest.notes.put("x", Note("x", n))
            at = trio.current_time()
            await told(live)
            assert trio.current_time() == at


@virtual
async def test_a_commit_while_it_runs_makes_another_run(
    open_device: OpenDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with with_notes(open_device) as guest, guest.vault.live(ALL) as live:
        await told(live)
        run, late = live.question.run, [live.wake]

        def overtaken(reader: Reader) -> Result:
            found = run(reader)
            while late:
                late.pop()()
            return found

        monkeypatch.setattr(live.question, "run", overtaken)
        await guest.notes.put("x", Note("x"))
        await told(live)
        assert await nothing_told(live)
        assert live.runs == 3


@virtual
async def test_a_change_elsewhere_runs_nothing(open_device: OpenDevice) -> None:
    async with with_notes(open_device, "a") as guest:
        others = await notes_of(guest.vault, "others")
        async with guest.vault.live(ALL) as live, guest.vault.live("SELECT count(*) FROM others") as counted:
            await told(live)
            await told(counted)
            await others.put("x", Note("x"))
            assert (await told(counted)).rows == ((1,),)
            assert await nothing_told(live)
            assert (live.runs, counted.runs) == (1, 2)


@virtual
async def test_a_change_that_does_not_show_is_not_told(open_device: OpenDevice) -> None:
    async with with_notes(open_device, "a") as guest, guest.vault.live("SELECT count(*) FROM notes") as live:
        await told(live)
        await guest.notes.put("a", Note("other"))
        assert await nothing_told(live)
        assert live.runs == 2


@virtual
async def test_the_same_query_by_the_same_connection_is_woken_as_well(open_device: OpenDevice) -> None:
    async with with_notes(open_device, "a") as guest, guest.vault.live(ALL) as one, guest.vault.live(ALL) as other:
        for live in (one, other):
            await told(live)
        await guest.notes.put("b", Note("b"))
        assert (await told(one)).rows == (await told(other)).rows == (("a", "a", 0), ("b", "b", 0))


@virtual
async def test_a_collection_that_is_opened_later_can_be_named_then(open_device: OpenDevice) -> None:
    async with with_notes(open_device, "a") as guest, guest.vault.live(ALL) as live:
        await told(live)
        untyped = await guest.vault.collection("untyped", dict, policy=latest())
        async with guest.vault.live("SELECT untyped.key, j.value FROM untyped, json_each(untyped.value) AS j") as later:
            await told(later)
            await untyped.put("x", {"y": 5})
            assert (await told(later)).rows == (("x", 5),)


@virtual
async def test_whoever_is_cancelled_gets_it_the_next_time(open_device: OpenDevice) -> None:
    async with with_notes(open_device, "a") as guest, guest.vault.live(ALL) as live:
        with trio.CancelScope() as scope:
            scope.cancel()
            await anext(live)
        assert len((await told(live)).inserted) == 1
        await guest.notes.put("b", Note("b"))
        with trio.CancelScope() as scope:
            scope.cancel()
            await anext(live)
        assert len((await told(live)).inserted) == 1


# --- what is left


@virtual
async def test_leaving_the_block_leaves_nothing(open_device: OpenDevice) -> None:
    async with with_notes(open_device, "a") as guest:
        async with guest.vault.live(ALL) as one:
            async with guest.vault.live("SELECT * FROM notes JOIN notes AS n USING (key)") as other:
                await told(one)
                await told(other)
                assert registered(guest.vault) == (2, 2, 1)
            assert registered(guest.vault) == (1, 1, 1)
        assert registered(guest.vault) == (0, 0, 0)
        with pytest.raises(ZeroDivisionError):
            async with guest.vault.live(ALL):
                raise ZeroDivisionError
        assert registered(guest.vault) == (0, 0, 0)


@virtual
async def test_iteration_ends_with_the_block(open_device: OpenDevice) -> None:
    async with with_notes(open_device) as guest, trio.open_nursery() as nursery:
        ended = trio.Event()
        async with guest.vault.live(ALL) as live:

            @nursery.start_soon
            async def read() -> None:
                async for _ in live:
                    pass
                ended.set()

            await trio.testing.wait_all_tasks_blocked()
            assert not ended.is_set()
        await ended.wait()


@virtual
async def test_iteration_ends_when_the_device_is_closed(open_device: OpenDevice) -> None:
    async with trio.open_nursery() as nursery:
        async with with_notes(open_device) as guest:
            begun = trio.Event()

            @nursery.start_soon
            async def read() -> None:
                async with guest.vault.live(ALL) as live:
                    async for _ in live:
                        begun.set()

            await begun.wait()
    assert registered(guest.vault) == (0, 0, 0)
    with pytest.raises(ReplicaClosedError):
        async with guest.vault.live(ALL):
            raise AssertionError("the block was entered")


@virtual
async def test_iteration_ends_when_the_vault_goes(open_device: OpenDevice) -> None:
    async with party(open_device) as guests:
        leaver = guests[1]
        await all_synced([guest.vault for guest in guests])
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def read() -> None:
                async with leaver.vault.live(ALL) as live:
                    async for _ in live:
                        nursery.start_soon(leaver.vault.leave)

        assert registered(leaver.vault) == (0, 0, 0)
        with pytest.raises(VaultGoneError):
            async with leaver.vault.live(ALL):
                raise AssertionError("the block was entered")
