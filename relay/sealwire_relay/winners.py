"""The records that stand where others were refused, for the devices that were: read after the commit, within bounds.

A device gets every winner by DELIVER as well. Telling it with the refusal only spares it the wait, so nobody else is
to wait for that: what cannot be read, or is too much, is left out.
"""

import logging
from typing import Final

from sealwire_protocol.conditions import with_winners
from sealwire_protocol.events import Answer
from sealwire_protocol.ids import StreamId, VaultId
from sealwire_protocol.messages import Pushed
from sealwire_protocol.segment import Record, read_segment
from sealwire_relay.store.interface import Store, StoreError
from sealwire_relay.view import Draft

SEGMENTS_MAX: Final = 8
"""Segments read for the winners of one group commit: some 20 ms where all of them are of the largest kind."""

_log = logging.getLogger("sealwire.winners")


class Winners:
    """Reads winners for the answers of one group commit."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._left = SEGMENTS_MAX

    async def tell(self, draft: Draft) -> None:
        """Put winners into the draft's answers, as many as may be. Never raises on what the store does."""
        for index in draft.conflicts:
            admitted, answer = draft.answers[index]
            if not isinstance(answer, Answer) or not isinstance(answer.message, Pushed):
                continue
            pushed = answer.message
            found: dict[tuple[int, int], Record] = {}
            try:
                for group, part in enumerate(admitted.push.groups):
                    seqs = {refused.seq for refused in pushed.refused if refused.group == group and refused.seq}
                    records = await self._records(draft.vault, part.stream, seqs)
                    found.update({(group, seq): record for seq, record in records.items()})
            except StoreError as error:
                _log.info("refused devices are told without the winning records: %s", error)
                self._left = 0
            draft.answers[index] = admitted, Answer(with_winners(pushed, found))

    async def _records(self, vault: VaultId, stream: StreamId, seqs: set[int]) -> dict[int, Record]:
        """Those of these records of a stream that are there, and are not too much to read."""
        found: dict[int, Record] = {}
        wanted = sorted(seqs, reverse=True)
        while wanted and self._left:
            self._left -= 1
            page = await self._store.read(vault, stream, wanted[-1] - 1, 0)
            if page is None or not page.segments:
                break
            segment = page.segments[0]
            for seq, record in read_segment(segment.body, segment.prev):
                if seq in seqs:
                    found[seq] = record
            while wanted and wanted[-1] <= segment.last:
                wanted.pop()
        return found
