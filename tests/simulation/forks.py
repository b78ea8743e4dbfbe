"""A relay that forks: planted, to see that devices which state what they hold find out.

From some moment on its second process serves a copy of the database under the same term. Devices keep to one process or
the other, so that each of two groups is shown a history of its own, in which nothing of the other's appears; now and
then one of them is sent across, and goes on as if it were one history. In the end all are shown the first one.
"""

from contextlib import ExitStack
from dataclasses import fields
from random import Random
from typing import Final

from sealwire_protocol.ids import Term
from tests.simulation.history import History
from tests.simulation.members import Members
from tests.simulation.network import Trace, Wire
from tests.simulation.past import Past
from tests.simulation.planting import Bug, put
from tests.simulation.rest import Rest
from tests.simulation.store import FaultyStore
from tests.simulation.world import World

FORK_EDITS: Final = 60
"""When the histories part: at the first connection after so many edits."""

CROSS_CHANCE: Final = 0.2
"""How often a connection leads to the other side."""


class _Fork(Past):
    """What the second process serves: a copy. Nobody looks at what becomes of it."""

    def __init__(self, world: World) -> None:
        super().__init__(world.agenda.current_time, lambda what: None, Members(History()))
        there = world.past.database.copy()
        for each in fields(there):
            setattr(self.database, each.name, getattr(there, each.name))
        self.members._commitments = world.members._commitments  # its devices have keys of their own
        world.history.restores += 1  # what is sent across loses part of its history
        self.links_changed()

    def links_changed(self) -> None:
        """Also this log is followed, as if it were restored all the time."""
        self.era += 1
        super().links_changed()
        self.era -= 1


def _plant(stack: ExitStack) -> None:
    forks: dict[World, _Fork] = {}
    open_term, heal = FaultyStore.open_term, Rest._heal

    async def same_term(self: FaultyStore) -> Term:
        parted = any(self._past in (fork, world.past) and not world.healed for world, fork in forks.items())
        return self._past.database.term if parted else await open_term(self)

    def wire(self: World, place: str) -> Wire:
        self._wires += 1
        if self not in forks and not self.healed and len(self.history.edits) > FORK_EDITS:
            forks[self] = _Fork(self)
            self.relays[1]._past = forks[self]
            self.relays[1].crash()
        random = Random(f"fork {self._seed} {self._wires}")
        parted = self in forks and not self.healed
        side = (int(place[-1]) + (random.random() < CROSS_CHANCE)) % 2 if parted else 0
        relay = self.relays[side]
        return Wire(place, relay, self.faults, Random(f"wire {self._seed} {self._wires}"), Trace(self.history.add))

    def meet(self: Rest) -> None:
        heal(self)
        forked = self._world.relays[1]
        forked._past = self._world.past
        forked.crash()

    put(stack, Rest, "_heal", meet)
    put(stack, World, "wire", wire)
    put(stack, FaultyStore, "open_term", same_term)


FORKS: Final[dict[str, Bug]] = {"forked": Bug("a relay shows two groups of devices two histories", _plant)}
