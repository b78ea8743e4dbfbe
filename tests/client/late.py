"""A writer without a thread whose results come as late as a thread's: a caller that is cancelled meanwhile does not
learn them, although what it asked for was done. And one that checks what `touches` is told, see `marked`."""

from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import trio

from sealwire_client.replica import InlineWriter, Replica, Runner
from tests.client.marked import closely

T = TypeVar("T")
P = ParamSpec("P")


class LateWriter(InlineWriter[Replica]):
    """Keeps the promises of `Runner` as strictly as the writer of production does."""

    async def run(self, function: Callable[Concatenate[Replica, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.CancelScope(shield=True):
            result = await super().run(function, *args, **kwargs)
        await trio.lowlevel.checkpoint()
        return result

    async def run_grouped(
        self, function: Callable[Concatenate[Replica, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.CancelScope(shield=True):
            result = await super().run_grouped(function, *args, **kwargs)
        await trio.lowlevel.checkpoint()
        return result


async def late_writer(opens: Callable[[], Replica]) -> Runner[Replica]:
    """For `Device.open(writer=…)`."""
    return LateWriter(lambda: closely(opens()))
