"""One seed, run in this process: the same seed gives the same history, step by step."""

import gc
import logging
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import trio

from tests.simulation.disk import inserted
from tests.simulation.history import Violation
from tests.simulation.watching import watched
from tests.simulation.world import World
from tests.support.chance import seeded


@dataclass(frozen=True)
class Result:
    """What became of a seed."""

    seed: int
    violation: str | None
    digest: str
    steps: int
    virtual_seconds: float
    faults: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)


def simulate(seed: int) -> Result:
    """Run one seed. Never raises on what the simulated parts do: that is a violation too."""
    log = logging.getLogger("sealwire")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()  # what was imported is not looked at again
    gc.disable()  # garbage is collected between runs
    try:
        return _simulate(seed)
    finally:
        log.setLevel(level)
        gc.enable()
        gc.collect()


def _simulate(seed: int) -> Result:
    memory = Path("/dev/shm")
    violation: str | None = None
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder, seeded(seed):
        world = World(seed, Path(folder))
        with watched(world), inserted({device.folder: device.disk for device in world.devices}):
            try:
                trio.run(world.main, clock=world.agenda)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                violation = world.history.broken or _told(error)
    return Result(
        seed,
        violation,
        world.history.digest,
        world.history.step,
        world.agenda.current_time(),
        world.faults.happened,
        world.operations,
    )


def _told(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = next((e for e in error.exceptions if not isinstance(e, trio.Cancelled)), error.exceptions[0])
    if isinstance(error, trio.TrioInternalError) and error.__cause__ is not None:
        error = error.__cause__  # what happens at a moment runs in no task
    if isinstance(error, Violation):
        return str(error)
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f" at {place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place is not None else ""
    return f"nothing crashes: {type(error).__name__}: {error}{where}"
