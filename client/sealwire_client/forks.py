"""Whether this is still the process that opened a device. A process that was forked from it has its memory, and none of
its threads; SQLite's and the relay's state in it are the other process's, and may not be touched from two.

What the writer's thread had open is never closed in such a process: nobody unwinds the stack of a thread that is not
there. What other threads had open can only read, and closing it changes nothing.
"""

import os
from collections.abc import Callable
from typing import Final
from weakref import WeakSet

from sealwire_protocol.errors import LocalMisuse


class ForkedError(LocalMisuse):
    """A device is used in a process that was forked from the one that opened it."""

    def __init__(self) -> None:
        super().__init__(
            "this device was opened in the process that this one was forked from, and belongs to it alone: nothing was"
            " done; open a device in this process, with a folder of its own, or fork before the device is opened"
        )


class Birthplace:
    """The process in which something was made."""

    __slots__ = ("__weakref__", "_left_behind", "is_here")

    def __init__(self, left_behind: Callable[[], None] | None = None) -> None:
        """`left_behind` is called in each process that is forked from this one, at once. It may only let go."""
        self.is_here = True
        """False in a process that was forked from it."""
        self._left_behind = left_behind
        _birthplaces.add(self)

    def check(self) -> None:
        """Raises ForkedError in a process that was forked from it."""
        if not self.is_here:
            raise ForkedError

    def end(self) -> None:
        """There is nothing any more to be left behind."""
        _birthplaces.discard(self)

    def leave(self) -> None:
        """This process was forked from it."""
        self.is_here = False
        if self._left_behind is not None:
            self._left_behind()


_birthplaces: Final[WeakSet[Birthplace]] = WeakSet()


def _forked() -> None:
    for birthplace in list(_birthplaces):
        birthplace.leave()
    _birthplaces.clear()


os.register_at_fork(after_in_child=_forked)
