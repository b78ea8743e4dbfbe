"""A relay and the durable streams of others under the same load, in turns."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from bench.harness.load import BUSY
from bench.harness.processes import Missing, places
from bench.harness.rounds import Spread, interleaved, neat
from bench.harness.traffic import Traffic
from bench.peers.nats import nats_jetstream
from bench.peers.redis import redis_streams
from bench.peers.streams import Streams

Run = Callable[[], Traffic]
Figure = Callable[[Traffic], float]


def contest(contenders: Mapping[str, Run], rounds: int) -> dict[str, list[Traffic]]:
    """Each contender's traffic, round by round."""
    found: dict[str, list[Traffic]] = {name: [] for name in contenders}

    def kept(name: str) -> Callable[[], float]:
        def run() -> float:
            found[name].append(contenders[name]())
            return 0.0

        return run

    interleaved({name: kept(name) for name in contenders}, rounds)
    return found


def spread(found: Sequence[Traffic], figure: Figure) -> Spread:
    """One figure of a contender over all rounds."""
    return Spread(tuple(figure(one) for one in found))


def load_share(found: Sequence[Traffic]) -> dict[str, Any]:
    """What the generator took of its core itself, beside a contender's figures."""
    return {"load_cpu_share": neat(max(one.cpu_share for one in found))}


def load_limits(found: Mapping[str, Sequence[Traffic]]) -> list[str]:
    """Contenders of which the generator may have been the limit."""
    return [
        f"{name}: the load took {share:.0%} of its core, and may have been the limit"
        for name, all_of_it in found.items()
        if (share := max(one.cpu_share for one in all_of_it)) > BUSY
    ]


def swept(run: Callable[[int], Traffic], values: Iterable[int], figure: Figure) -> int:
    """The value with which a contender fares best, by one run with each."""
    found = {value: figure(run(value)) for value in values}
    return max(found, key=found.__getitem__)


@contextlib.contextmanager
def streams(folder: Path, *, nats: bool = True, nats_sync: str = "always") -> Iterator[tuple[list[Streams], list[str]]]:
    """Running servers of others, and why those are missing that cannot run.

    Redis, which has one thread, has the server's core to itself; NATS, like a relay with its database, has that and the
    database's.
    """
    where = places()
    asked: list[AbstractContextManager[Streams]] = [redis_streams(folder / "redis", where.server)]
    if nats:
        asked.append(nats_jetstream(folder / "nats", where.server | where.database, nats_sync))
    found: list[Streams] = []
    missing: list[str] = []
    with ExitStack() as stack:
        for one in asked:
            try:
                found.append(stack.enter_context(one))
            except Missing as why:
                missing.append(str(why))
        yield found, missing
