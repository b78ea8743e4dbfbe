import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from sealwire_client.replica import (
    InlineWriter,
    Replica,
    ReplicaClosedError,
    ReplicaFullError,
    ReplicaInUseError,
    Runner,
    Writer,
)
from sealwire_client.replica import runner as runner_module
from tests.client.replica.support import edit, open_todos, opened

Opener = Callable[[Path], Awaitable[Runner[Replica]]]


async def threaded(folder: Path) -> Runner[Replica]:
    return await Writer.open(lambda: Replica(folder))


async def inline(folder: Path) -> Runner[Replica]:
    return InlineWriter(lambda: Replica(folder))


both = pytest.mark.parametrize("opener", [threaded, inline])


@both
@pytest.mark.trio
async def test_results_and_errors_come_back(tmp_path: Path, opener: Opener) -> None:
    writer = await opener(tmp_path)
    todos = await writer.run(open_todos)
    await writer.run(Replica.edit, todos, [edit("k", "milk")])
    await writer.run_grouped(Replica.edit, todos, [edit("l", "bread")])
    waiting = await writer.run(lambda replica: replica.outbox.waiting(todos.vault))
    assert waiting.edits == 2
    with pytest.raises(ZeroDivisionError):
        await writer.run(lambda _: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        await writer.run_grouped(lambda _: 1 // 0)
    await writer.aclose()
    await writer.aclose()
    with pytest.raises(ReplicaClosedError):
        await writer.run(open_todos)
    with pytest.raises(ReplicaClosedError):
        await writer.run_grouped(open_todos)
    Replica(tmp_path).close()


@both
@pytest.mark.trio
async def test_what_hinders_opening_is_raised(tmp_path: Path, opener: Opener) -> None:
    holder = Replica(tmp_path)
    with pytest.raises(ReplicaInUseError):
        await opener(tmp_path)
    holder.close()


@pytest.mark.trio
async def test_it_runs_in_a_thread_of_its_own_in_order(tmp_path: Path) -> None:
    writer = await threaded(tmp_path)
    order: list[int] = []
    names = set()

    def note(_: Replica, number: int) -> None:
        order.append(number)
        names.add(threading.current_thread().name)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            run = writer.run if number % 3 else writer.run_grouped
            nursery.start_soon(run, note, number)
            await trio.testing.wait_all_tasks_blocked()
    await writer.aclose()
    assert order == list(range(20))
    assert names == {"sealwire-writer"}


class Gate:
    """Holds up the writer's thread until the test lets it go on."""

    def __init__(self) -> None:
        self.reached, self.may_pass = threading.Event(), threading.Event()

    def __call__(self, _: Replica) -> None:
        self.reached.set()
        assert self.may_pass.wait(100)


@pytest.mark.trio
async def test_grouped_calls_share_a_commit_and_fail_alone(tmp_path: Path) -> None:
    writer = await threaded(tmp_path)
    todos = await writer.run(open_todos)
    commits: list[str] = []
    await writer.run(lambda replica: replica.database.connection.set_trace_callback(commits.append))
    gate = Gate()
    failed = []

    def fails(replica: Replica) -> None:
        replica.edit(todos, [edit("bad", "x")])
        raise ValueError("this one only")

    async def bad() -> None:
        with pytest.raises(ValueError, match="this one only"):
            await writer.run_grouped(fails)
        failed.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run, gate)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(50):
            nursery.start_soon(writer.run_grouped, Replica.edit, todos, [edit(f"k{number}", "x")])
        nursery.start_soon(bad)
        await trio.testing.wait_all_tasks_blocked()
        gate.may_pass.set()
    await writer.aclose()
    assert commits.count("COMMIT") == 1
    assert failed
    with opened(tmp_path) as a:
        assert len(a.shown()) == 50


@pytest.mark.trio
async def test_a_full_disk_fails_the_calls_it_hits_and_the_writer_goes_on(tmp_path: Path) -> None:
    writer = await threaded(tmp_path)
    todos = await writer.run(open_todos)

    def limit(replica: Replica, more: int) -> None:
        run = replica.database.connection.execute
        run(f"PRAGMA max_page_count = {run('PRAGMA page_count').fetchone()[0] + more}")

    await writer.run(limit, 2)
    gate = Gate()
    saved, full = set(), set()

    async def put(number: int) -> None:
        try:
            await writer.run_grouped(Replica.edit, todos, [edit(f"k{number}", "x" * 900)])
            saved.add(f"k{number}")
        except ReplicaFullError:
            full.add(f"k{number}")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run, gate)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(30):
            nursery.start_soon(put, number)
        await trio.testing.wait_all_tasks_blocked()
        gate.may_pass.set()
    assert full
    await writer.run(limit, 1000)
    await put(99)
    await writer.aclose()
    with opened(tmp_path) as a:
        assert set(a.shown()) == saved, "acknowledged is durable, and what was not acknowledged is not there"
        assert "k99" in saved


@pytest.mark.trio
async def test_a_transaction_that_sqlite_gave_up_fails_its_whole_group(tmp_path: Path) -> None:
    writer = await threaded(tmp_path)
    todos = await writer.run(open_todos)
    gate = Gate()
    raised = []

    def gives_up(replica: Replica) -> None:
        replica.database.connection.execute("ROLLBACK")
        raise ReplicaFullError("the disk is full")

    async def call(function: Callable[[Replica], None]) -> None:
        try:
            await writer.run_grouped(function)
        except ReplicaFullError:
            raised.append(function)

    def put(replica: Replica) -> None:
        replica.edit(todos, [edit("k", "milk")])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run, gate)
        await trio.testing.wait_all_tasks_blocked()
        for function in (put, gives_up, put):
            nursery.start_soon(call, function)
        await trio.testing.wait_all_tasks_blocked()
        gate.may_pass.set()
    assert len(raised) == 3
    await writer.aclose()
    with opened(tmp_path) as a:
        assert a.shown() == {}


@pytest.mark.trio
async def test_a_cancelled_waiter_leaves_its_call_to_happen(tmp_path: Path) -> None:
    writer = await threaded(tmp_path)
    todos = await writer.run(open_todos)
    gate = Gate()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run, gate)
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(writer.run, Replica.edit, todos, [edit("k", "milk")])
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        with trio.CancelScope() as scope:
            scope.cancel()
            await writer.run(Replica.edit, todos, [edit("l", "never queued")])
        gate.may_pass.set()
    await writer.aclose()
    with opened(tmp_path) as a:
        assert a.shown() == {"k": "milk"}


@pytest.mark.trio
async def test_waiting_calls_are_bounded_and_closing_runs_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "CALLS_WAITING_MAX", 3)
    writer = await threaded(tmp_path)
    todos = await writer.run(open_todos)
    gate = Gate()
    closed = []

    async def put(number: int) -> None:
        try:
            await writer.run(Replica.edit, todos, [edit(f"k{number}", "x")])
        except ReplicaClosedError:
            closed.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run, gate)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(5):
            nursery.start_soon(put, number)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(writer.aclose)
        await trio.testing.wait_all_tasks_blocked()
        gate.may_pass.set()
    with opened(tmp_path) as a:
        assert len(a.shown()) == 2, "the gate and two calls had room"
    assert len(closed) == 3


@both
@pytest.mark.trio
async def test_what_runs_beside_waits_for_no_call(tmp_path: Path, opener: Opener) -> None:
    writer = await opener(tmp_path)
    assert await writer.beside(lambda: 5, pytest.fail) == 5
    with pytest.raises(ZeroDivisionError):
        await writer.beside(lambda: 1 // 0, pytest.fail)
    await writer.aclose()


@pytest.mark.trio
async def test_what_runs_beside_is_interrupted_by_cancellation_and_waited_for(tmp_path: Path) -> None:
    writer, stop, began, ended = await threaded(tmp_path), threading.Event(), trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    def work() -> None:
        token.run_sync_soon(began.set)
        assert stop.wait(60)
        ended.set()
        raise ZeroDivisionError

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.beside, work, stop.set)
            await began.wait()
            scope.cancel()
    assert scope.cancelled_caught and ended.is_set()
    await writer.aclose()


@pytest.mark.trio
async def test_what_has_run_beside_is_returned_in_spite_of_cancellation(tmp_path: Path) -> None:
    writer, stop = await threaded(tmp_path), threading.Event()
    found = list[bool]()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def work() -> None:
                found.append(await writer.beside(lambda: stop.wait(60), stop.set))

            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert found == [True]
    await writer.aclose()
