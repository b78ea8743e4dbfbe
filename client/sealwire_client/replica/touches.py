"""Which collections a transaction may have changed, and who is to hear of it once it can be read."""

from collections.abc import Callable
from typing import Final

Wake = Callable[[], None]
"""Called in the writer's thread, after the commit: must return at once, and raise nothing."""

_NOBODY: Final[tuple[Wake, ...]] = ()


class Touches:
    """Collections by number, and who waits for a change of them.

    Whoever registers first and reads then misses nothing: of a later commit it is told, an earlier one it has read.
    What is touched belongs to the writer's thread; registering may be done in any one thread.
    """

    def __init__(self) -> None:
        self._touched: set[int] = set()
        self._waiting: dict[int, tuple[Wake, ...]] = {}
        """Tuples are replaced and never changed, so that the writer's thread may walk through one meanwhile."""

    def touch(self, number: int) -> None:
        """What a collection shows may be changed by this transaction. Too often does no harm (also if
        nothing comes of it); too seldom does."""
        self._touched.add(number)

    def committed(self) -> None:
        """The transaction can be read: wake who waits for what it touched."""
        touched, self._touched = self._touched, set()
        for number in touched:
            for wake in self._waiting.get(number, _NOBODY):
                wake()

    def register(self, number: int, wake: Wake) -> None:
        """Call `wake` after each commit that touched the collection."""
        self._waiting[number] = (*self._waiting.get(number, ()), wake)

    def unregister(self, number: int, wake: Wake) -> None:
        """Call it no more. It may be under way once."""
        left = tuple(each for each in self._waiting[number] if each != wake)
        if left:
            self._waiting[number] = left
        else:
            del self._waiting[number]

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))
