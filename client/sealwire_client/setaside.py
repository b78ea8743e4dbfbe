"""One vault's writes that the relay refused for good: they are kept until they are tried again, or given up."""

from collections.abc import Callable

from sealwire_client import tallies
from sealwire_client.receiving import Watcher
from sealwire_client.replica import Collection, EditStanding, Mark, Place, Replica, Runner
from sealwire_client.sending import explained


class SetAside:
    """What became of writes, and what their user decides. `tell` learns what is shown again, `edited` that there is
    something to be sent, `stir` that anything has happened."""

    def __init__(
        self,
        vault: int,
        writer: Runner[Replica],
        tell: Watcher,
        edited: Callable[[], None],
        stir: Callable[[], None],
    ) -> None:
        self._vault, self._writer, self._tell, self._edited, self._stir = vault, writer, tell, edited, stir
        self._discarded: dict[tuple[int, str], list[tuple[int, int]]] = {}

    async def standing(self, mark: Mark) -> EditStanding:
        """What became of an edit."""
        if any(since <= mark.n <= n for since, n in self._discarded.get((mark.collection, mark.key), ())):
            return EditStanding(Place.REFUSED, "it was refused, and then discarded on this device")
        return await self._writer.run(lambda replica: replica.outbox.standing(mark))

    async def discard(self, collection: Collection, key: str) -> bool:
        """Give up a stuck write for good, with all of its transaction. False if there is none of this key."""
        gone = await self._writer.run(tallies.discard, collection, key)
        for each in gone:
            self._discarded.setdefault((each.collection.number, each.key), []).append((each.since, each.n))
            self._tell(each.collection, each.changes)
        if gone:
            self._stir()
        return bool(gone)

    async def retry(self, collection: Collection, key: str) -> bool:
        """Send a stuck write again, with all of its transaction. False if there is none of this key."""
        found = await self._writer.run(lambda replica: replica.outbox.aside.retry(collection, key))
        self._edited()
        return found

    async def why(self) -> str | None:
        """Why writes are kept, in a sentence; None if there are none."""
        reason = await self._writer.run(lambda replica: replica.outbox.aside.why(self._vault))
        return None if reason is None else explained(reason)
