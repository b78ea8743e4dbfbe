"""The pace of work in the background: it rests in between, for the sake of those who wait for the same machine."""

import asyncio


class Pace:
    """Works the given part of the time (1: always)."""

    def __init__(self, busy: float) -> None:
        self._busy = busy

    def time(self) -> float:
        """When a piece of work begins."""
        return asyncio.get_running_loop().time()

    async def rest(self, began: float) -> float:
        """Rest for the work that began then; when the next piece begins."""
        if self._busy < 1:
            await asyncio.sleep((self.time() - began) * (1 / self._busy - 1))
        return self.time()
