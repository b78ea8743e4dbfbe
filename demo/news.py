"""What happens again and again in this process, and is waited for."""

from collections.abc import Callable

import trio


class News:
    """Tells those who wait that something has happened; what that means for them, they find out themselves."""

    def __init__(self) -> None:
        self._next = trio.Event()

    def tell(self) -> None:
        """Something has happened."""
        self._next.set()
        self._next = trio.Event()

    async def until(self, holds: Callable[[], bool], limit_s: float) -> bool:
        """Wait until something holds; it is looked at now, and after all that is told. False: not within the limit."""
        with trio.move_on_after(limit_s):
            while not holds():
                await self._next.wait()
        return holds()
