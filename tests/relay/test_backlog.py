"""What waits is counted, and who has too much waiting is held back until most of it is answered."""

import random
from typing import cast

import pytest

from sealwire_relay.backlog import PUSH_BYTES, Backlog
from sealwire_relay.peer import Peer


class Pusher:
    """A peer that knows whether it is read from."""

    def __init__(self) -> None:
        self.read = True

    def hold_back(self) -> None:
        """See Peer."""
        assert self.read
        self.read = False

    def go_on(self) -> None:
        """See Peer."""
        assert not self.read
        self.read = True

    @property
    def peer(self) -> Peer:
        """Itself, as the backlog sees it."""
        return cast(Peer, self)


KB = 1024 - PUSH_BYTES
"""A push that counts for one kilobyte."""


def test_one_connection_is_held_back_beyond_its_share_and_goes_on_below_half_of_it() -> None:
    backlog, busy, quiet = Backlog(100 * 1024, 4 * 1024), Pusher(), Pusher()
    for place in range(5):
        assert busy.read
        assert backlog.add(busy.peer, KB), place
    assert backlog.add(quiet.peer, KB)
    assert (busy.read, quiet.read, backlog.held, backlog.pushes, backlog.bytes) == (False, True, 1, 6, 6 * 1024)
    for _ in range(2):
        backlog.done(busy.peer, KB)
        assert not busy.read
    backlog.done(busy.peer, KB)
    assert (busy.read, backlog.held) == (True, 0)


def test_when_all_is_full_each_that_pushes_is_held_back_and_none_that_does_not() -> None:
    backlog = Backlog(4 * 1024, 100 * 1024)
    pushers = [Pusher() for _ in range(8)]
    for pusher in pushers[:7]:
        assert backlog.add(pusher.peer, KB)
    assert [pusher.read for pusher in pushers] == [True] * 4 + [False] * 3 + [True]
    assert backlog.add(pushers[0].peer, KB)
    assert [pusher.read for pusher in pushers[:2]] == [False, True], (
        "one that was not held back comes to be when it pushes more"
    )
    for pusher in reversed(pushers[1:7]):
        assert [pushers[0].read, pushers[6].read] == [False] * 2, "though nothing of the last may wait any more"
        backlog.done(pusher.peer, KB)
    assert [pusher.read for pusher in pushers] == [True] * 8
    assert (backlog.held, backlog.pushes, backlog.bytes) == (0, 2, 2 * 1024)


def test_there_is_an_end_to_what_may_come_all_the_same() -> None:
    backlog, pusher = Backlog(2 * 1024, 1024), Pusher()
    assert all(backlog.add(pusher.peer, KB) for _ in range(4))
    assert not backlog.add(pusher.peer, KB)
    for _ in range(4):
        backlog.done(pusher.peer, KB)
    assert (pusher.read, backlog.bytes) == (True, 0)


@pytest.mark.parametrize("seed", range(20))
def test_whoever_is_held_back_goes_on_once_all_is_answered(seed: int) -> None:
    chance = random.Random(seed)
    backlog = Backlog(16 * 1024, 5 * 1024)
    pushers = [Pusher() for _ in range(6)]
    waiting: list[tuple[Pusher, int]] = []
    for _ in range(500):
        if chance.random() < 0.55:
            pusher, size = chance.choice(pushers), chance.randrange(2_000)
            if pusher.read and backlog.add(pusher.peer, size):
                waiting.append((pusher, size))
        elif waiting:
            pusher, size = waiting.pop(chance.randrange(len(waiting)))
            backlog.done(pusher.peer, size)
        assert backlog.held == sum(not pusher.read for pusher in pushers)
        assert backlog.bytes <= 16 * 1024 + len(pushers) * (2_000 + PUSH_BYTES)
    for pusher, size in waiting:
        backlog.done(pusher.peer, size)
    assert (backlog.bytes, backlog.pushes, backlog.held) == (0, 0, 0)
    assert all(pusher.read for pusher in pushers)
    assert not backlog._shares
