"""Pushes that wait: in their order within a vault, by turns between vaults, and none lost."""

from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from sealwire_protocol.ids import DeviceKey, Term, VaultId
from sealwire_protocol.messages import Push
from sealwire_relay.peer import Peer
from sealwire_relay.pushqueue import (
    OTHERS_SECONDS,
    PAUSE_SECONDS_MAX,
    PAUSE_SHARE,
    TURN_PUSHES,
    TURN_RECORDS,
    PushQueue,
    Waiting,
)
from sealwire_relay.view import Admitted

PLENTY = 1 << 30
NOBODY = cast(Peer, None)


def vault_id(number: int) -> VaultId:
    return VaultId(number.to_bytes(16, "big"))


def device_key(number: int) -> DeviceKey:
    return DeviceKey(number.to_bytes(32, "big"))


def waiting(vault: int, batch: int, *, device: int = 0, records: int = 1, size: int = 100) -> Waiting:
    push = Push(vault_id(vault), Term(1, b"term"), batch, 0, ())
    return Waiting(NOBODY, Admitted(device_key(device), push, (), b"", size, records, plain=True), 0.0)


def batches(taken: dict[VaultId, list[Waiting]]) -> dict[int, list[int]]:
    """By vault, the numbers of what was taken."""
    return {
        int.from_bytes(vault, "big"): [item.admitted.push.batch for item in items] for vault, items in taken.items()
    }


def test_what_waits_is_new_to_take_once_and_not_while_its_vault_is_taken() -> None:
    queue = PushQueue()
    assert [queue.add(waiting(vault, batch)) for vault, batch in ((1, 1), (1, 2), (2, 1))] == [True, False, True]
    taken = queue.take(PLENTY, PLENTY)
    assert not queue.add(waiting(1, 3))
    queue.give_back(taken)
    assert not queue.add(waiting(1, 4, records=2 * TURN_RECORDS))
    assert not queue.add(waiting(1, 5))
    assert batches(queue.take(PLENTY, PLENTY)) == {1: [3, 4]}


def test_what_little_others_push_is_in_the_next_commit_and_shares_it_with_no_busy_vault() -> None:
    queue = PushQueue()
    for batch in range(100):
        queue.add(waiting(1, batch, records=TURN_RECORDS))
    for vault in range(2, 6):
        queue.add(waiting(vault, 7))
    assert batches(queue.take(8 * TURN_RECORDS, PLENTY)) == {vault: [7] for vault in range(2, 6)}


def test_a_busy_vault_has_every_other_commit_however_many_others_push_little() -> None:
    queue = PushQueue()
    for batch in range(100):
        queue.add(waiting(1, batch, records=TURN_RECORDS))
    kinds = []
    for batch in range(6):
        for vault in (2, 3):
            queue.add(waiting(vault, batch))
        taken = queue.take(8 * TURN_RECORDS, PLENTY)
        kinds.append(vault_id(1) in taken)
        assert (vault_id(2) in taken) != kinds[-1]
        queue.give_back(taken)
    assert kinds == [False, True] * 3


def test_a_vault_is_busy_by_its_pushes_too_however_small_they_are() -> None:
    queue = PushQueue()
    for batch in range(TURN_PUSHES + 1):
        queue.add(waiting(1, batch))
    queue.add(waiting(2, 7))
    assert batches(queue.take(PLENTY, PLENTY)) == {2: [7]}
    assert batches(queue.take(PLENTY, PLENTY)) == {1: list(range(TURN_PUSHES))}


def test_a_busy_vault_rests_for_as_long_as_others_push_and_no_longer() -> None:
    queue = PushQueue()

    def commit_of(vault: int) -> list[VaultId]:
        for batch in range(4):
            queue.add(waiting(vault, batch, records=TURN_RECORDS)._replace(since=5.0))
        return list(queue.take(PLENTY, PLENTY))

    taken = commit_of(1)
    assert queue.rest(taken, 0.01, 5.0) == 0, "alone it never rests"
    queue.add(waiting(2, 1)._replace(since=5.0))
    assert queue.rest(taken, 0.01, 5.0) == PAUSE_SHARE * 0.01
    assert queue.rest(taken, 60.0, 5.0) == PAUSE_SECONDS_MAX
    assert queue.rest(taken, 0.01, 5.0 + 2 * OTHERS_SECONDS) == 0
    calm = list(queue.take(PLENTY, PLENTY))
    assert calm == [vault_id(2)]
    assert queue.rest(calm, 0.01, 5.0) == 0, "who pushes little never rests"
    queue.give_back([*taken, *calm])
    assert queue.take(PLENTY, PLENTY).keys() == {vault_id(1)}


def test_two_busy_vaults_have_the_same_share() -> None:
    queue = PushQueue()
    for batch in range(64):
        queue.add(waiting(1, batch, records=1, size=60_000))
    for batch in range(640):
        queue.add(waiting(2, batch, records=1, size=6_000))
    taken = queue.take(PLENTY, 2_000_000)
    first, second = (sum(item.admitted.size for item in taken[vault_id(vault)]) for vault in (1, 2))
    assert 0.5 < first / second < 2


def test_a_commit_ends_with_the_push_that_fills_it() -> None:
    queue = PushQueue()
    for batch in range(10):
        queue.add(waiting(1, batch, records=3, size=100))
    assert batches(queue.take(7, PLENTY)) == {1: [0, 1, 2]}
    queue.give_back([vault_id(1)])
    assert batches(queue.take(PLENTY, 150)) == {1: [3, 4]}
    assert (len(queue), queue.size) == (5, 500)


def test_what_a_device_pushed_to_one_vault_is_taken_out_and_nothing_else() -> None:
    queue = PushQueue()
    for batch in range(3):
        for vault in (1, 2):
            for device in (1, 2):
                queue.add(waiting(vault, 10 * device + batch, device=device))
    found = queue.take_of({(vault_id(1), device_key(2))})
    assert [item.admitted.push.batch for item in found] == [20, 21, 22]
    assert (len(queue), queue.size) == (9, 900)
    assert batches(queue.take(PLENTY, PLENTY)) == {1: [10, 11, 12], 2: [10, 20, 11, 21, 12, 22]}


def test_nothing_is_taken_of_a_vault_before_what_was_taken_is_given_back() -> None:
    queue = PushQueue()
    for vault, batch in ((1, 1), (1, 2), (2, 1)):
        queue.add(waiting(vault, batch))
    assert batches(queue.take(1, PLENTY)) == {1: [1]}
    assert batches(queue.take(PLENTY, PLENTY)) == {2: [1]}
    queue.add(waiting(2, 2))
    assert not queue.is_ready
    assert len(queue) == 2
    assert [item.admitted.push.batch for item in queue.take_of({(vault_id(1), device_key(0))})] == [2]
    queue.give_back([vault_id(1)])
    assert not queue.is_ready
    queue.give_back([vault_id(2)])
    assert not queue.is_idle
    assert batches(queue.take(PLENTY, PLENTY)) == {2: [2]}
    queue.give_back([vault_id(2)])
    assert queue.is_idle


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 2_000), st.integers(1, 90_000)), max_size=60),
    st.integers(1, 4_000),
    st.integers(1, 200_000),
)
def test_everything_comes_out_once_and_in_the_order_of_its_vault(
    pushed: list[tuple[int, int, int]], records_max: int, bytes_max: int
) -> None:
    queue = PushQueue()
    expected: dict[int, list[int]] = {}
    for batch, (vault, records, size) in enumerate(pushed):
        queue.add(waiting(vault, batch, records=records, size=size))
        expected.setdefault(vault, []).append(batch)
    came: dict[int, list[int]] = {}
    while len(queue):
        taken = queue.take(records_max, bytes_max)
        queue.give_back(taken)
        assert taken
        for vault, numbers in batches(taken).items():
            came.setdefault(vault, []).extend(numbers)
    assert came == expected
    assert queue.size == 0
    assert queue.is_idle
