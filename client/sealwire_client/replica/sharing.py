"""Reading from several threads: for devices whose event loop lives in a thread of its own, apart from their apps."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sealwire_client.forks import Birthplace
from sealwire_client.replica.database import FILE_NAME
from sealwire_client.replica.entries import Collection
from sealwire_client.replica.reading import Reader, Rows
from sealwire_client.replica.values import Row, SqlValue

READERS_RESTING_MAX: Final = 4
"""Connections that are kept for the next calls, of as many as there were calls at one time."""


@dataclass(slots=True, eq=False)
class _Desk:
    """A connection, and how many of the collections it knows."""

    reader: Reader
    shown: int = 0


class SharedReader(Reader):
    """A read-only view of one vault that all threads may use at any time: each call has a connection for itself while
    it lasts, so that none waits for another one. Close it before the writer: what is being read then is broken off."""

    def __init__(self, folder: Path) -> None:
        """Opens a connection at once, to fail where `Reader` does. Raises what that raises."""
        self._birthplace = Birthplace()
        self._folder, self.path = folder, folder / FILE_NAME
        self._collections: list[Collection] = []
        self._resting = [_Desk(Reader(folder, wanders=True))]
        self._lent: dict[_Desk, None] = {}
        self._moved = threading.Condition()
        self._is_closed = self._is_gone = False

    def show(self, collection: Collection) -> None:
        """Make a collection known under its plain name. Again, if columns were appended since."""
        self._collections.append(collection)

    def _run(self, statement: str, values: Sequence[SqlValue] = ()) -> list[Row]:
        with self._desk() as reader:
            return reader._run(statement, values)

    def select(self, sql: str, values: Sequence[SqlValue] = ()) -> Rows:
        """As `Reader.select`."""
        with self._desk() as reader:
            return reader.select(sql, values)

    @contextmanager
    def _desk(self) -> Iterator[Reader]:
        self._birthplace.check()
        with self._moved:
            if closed := self._closed():
                raise closed
            desk = self._resting.pop() if self._resting else _Desk(Reader(self._folder, wanders=True))
            self._lent[desk] = None
        try:
            while desk.shown < len(self._collections):
                desk.reader.show(self._collections[desk.shown])
                desk.shown += 1
            yield desk.reader
        except Exception:
            if closed := self._closed():  # it was broken off
                raise closed from None
            raise
        finally:
            with self._moved:
                del self._lent[desk]
                if self._is_closed or len(self._resting) >= READERS_RESTING_MAX:
                    desk.reader.close()
                else:
                    self._resting.append(desk)
                self._moved.notify_all()

    def close(self, *, gone: bool = False) -> None:
        """Let go of the file, once nobody reads any more. `gone`: because the vault is not on this device any more."""
        if not self._birthplace.is_here:
            return
        with self._moved:
            self._is_closed, self._is_gone = True, gone
            for desk in self._resting:
                desk.reader.close()
            self._resting.clear()
            for desk in self._lent:
                desk.reader.interrupt()
            self._moved.wait_for(lambda: not self._lent)
