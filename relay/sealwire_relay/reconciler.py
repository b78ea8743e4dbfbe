"""Answers devices that compare their history with the relay's (R13): RECONCILE by ranges of tags, FETCH by records."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

from sealwire_protocol.errors import Action, DecodeError, FaultCode
from sealwire_protocol.events import Answer, Refuse
from sealwire_protocol.faults import no_such_vault, vault_deleted
from sealwire_protocol.history import newest_term
from sealwire_protocol.ids import START, DeviceKey, StreamId, VaultId
from sealwire_protocol.limits import SEGMENT_BYTES_MAX
from sealwire_protocol.messages import Branch, Fetch, Fetched, Ranges, Reconcile, Records, StreamState, Summary
from sealwire_protocol.segment import Placed, encode_record, read_segment
from sealwire_relay.metrics import Metrics
from sealwire_relay.store.interface import Page, Store
from sealwire_relay.store.segments import StoredSegment
from sealwire_relay.trees import BusyError, Kept, StalePinError, Trees, UnreadableError, off_loop, unreadable

READS_MAX: Final = 16
"""Pages read for one FETCH: its records may lie far apart. Some 30 ms of the database, and 4 MiB held."""

PAGE_BYTES: Final = 262_144
"""Read at a time for a FETCH: records that a loss took lie side by side."""

RETRY_MS: Final = 2_000
"""When a device may ask again after there was no room for another tree."""

NOTHING: Final = Summary(0, bytes(16))


class Reconciler:
    """Carries out RECONCILE and FETCH. Raises StoreError if the store fails."""

    def __init__(self, store: Store, metrics: Metrics, trees: Trees | None = None) -> None:
        self._store, self._metrics = store, metrics
        self._trees = trees or Trees(store, metrics)

    async def stop(self) -> None:
        """Give up all that was made. Requests that wait for more are refused."""
        await self._trees.stop()

    async def ranges(self, device: DeviceKey, message: Reconcile) -> Answer | Refuse:
        """RECONCILE: the ranges asked for, at the position asked for or at the present head."""
        state = await self._state(message, device)
        if isinstance(state, Refuse):
            return state
        if not state.head and message.pin == START:
            return Answer(_nothing_yet(message, state))
        try:
            state, kept = await self._kept(message, device)
        except (BusyError, UnreadableError, StalePinError) as why:
            return _refusal(message, why)
        with self._trees.using(kept) as tree:
            branches = await off_loop(lambda: tuple([tree.branch(prefix) for prefix in message.prefixes]))
        return Answer(
            Ranges(
                message.request,
                message.vault,
                message.stream,
                kept.pin,
                kept.tree.total,
                state.top,
                kept.floor,
                kept.floor_head,
                kept.purged,
                max(kept.cleaned_to, state.cleaned_to),
                state.terms,
                branches,
            )
        )

    async def records(self, device: DeviceKey, message: Fetch) -> Answer | Refuse:
        """FETCH: the records that RANGES named, in the order asked for, as many as fit."""
        state = await self._state(message, device)
        if isinstance(state, Refuse):
            return state
        try:
            if message.pin == START:
                raise StalePinError
            state, kept = await self._kept(message, device)
            with self._trees.using(kept):
                return Answer(await self._read(message, state))
        except (BusyError, UnreadableError, StalePinError) as why:
            return _refusal(message, why)

    async def _state(self, message: Reconcile | Fetch, device: DeviceKey) -> StreamState | Refuse:
        told = await self._store.subscription(message.vault, device, [message.stream])
        if told is None:
            return no_such_vault(message.vault, request=message.request)
        return vault_deleted(message.vault, request=message.request) if told.vault.ended else told.streams[0]

    async def _kept(self, message: Reconcile | Fetch, device: DeviceKey) -> tuple[StreamState, Kept]:
        async def present() -> StreamState:
            state = await self._state(message, device)
            if isinstance(state, Refuse):
                raise StalePinError
            return state

        return await self._trees.at((message.vault, message.stream), message.pin, present)

    async def _read(self, message: Fetch, state: StreamState) -> Records:
        """Raises StalePinError if the history that the device compares itself with is another one meanwhile."""
        shelf = _Shelf(frozenset(message.seqs))
        found: list[Fetched] = []
        size = considered = 0
        cleaned_to, reads = state.cleaned_to, READS_MAX
        for seq in message.seqs:
            if not shelf.covers(seq) and 0 < seq <= state.head:
                if not reads:
                    break
                reads -= 1
                page = await self._page(message.vault, message.stream, seq - 1, state)
                cleaned_to = max(cleaned_to, page.cleaned_to)
                await self._put(shelf, page.segments, message)
            record = shelf.records.get(seq)
            if record is not None:
                if size + len(record) > SEGMENT_BYTES_MAX:
                    break
                size += len(record)
                found.append(Fetched(seq, record))
            considered += 1
        self._metrics.fetched_records.inc(len(found))
        return Records(message.request, message.vault, message.stream, cleaned_to, considered, tuple(found))

    async def _put(self, shelf: "_Shelf", segments: Sequence[StoredSegment], message: Fetch) -> None:
        try:
            await off_loop(partial(shelf.put, segments))
        except DecodeError as error:
            raise unreadable((message.vault, message.stream), error) from error

    async def _page(self, vault: VaultId, stream: StreamId, after: int, state: StreamState) -> Page:
        page = await self._store.read(vault, stream, after, PAGE_BYTES)
        if page is None or (page.term, page.floor) != (newest_term(state), state.floor):
            raise StalePinError
        return page


def _read(segment: StoredSegment) -> Iterator[Placed]:
    """Its records. Raises DecodeError."""
    try:
        yield from read_segment(segment.body, segment.prev, segment.last)
    except DecodeError as error:
        raise segment.damaged(error) from error


class _Shelf:
    """The wanted records of the segments that were read."""

    def __init__(self, wanted: frozenset[int]) -> None:
        self.records: dict[int, bytes] = {}
        self._wanted = wanted
        self._spans: list[tuple[int, int]] = []

    def put(self, segments: Sequence[StoredSegment]) -> None:
        """Take in segments that follow each other. Raises DecodeError."""
        for segment in segments:
            for seq, record in _read(segment):
                if seq in self._wanted:
                    self.records[seq] = encode_record(record)
        if segments:
            self._spans.append((segments[-1].last, segments[0].prev))
            self._spans.sort()

    def covers(self, seq: int) -> bool:
        """Whether a segment that holds this seq, if any does, was put here."""
        place = bisect_left(self._spans, (seq, 0))
        return place < len(self._spans) and self._spans[place][1] < seq


def _nothing_yet(message: Reconcile, state: StreamState) -> Ranges:
    """What a stream without records, or none at all, is."""
    branches = (Branch((), ()),) * len(message.prefixes)
    floors = state.floor, state.floor_head, state.purged, state.cleaned_to
    name = message.vault, message.stream
    return Ranges(message.request, *name, START, NOTHING, state.top, *floors, state.terms, branches)


def _refusal(message: Reconcile | Fetch, why: BusyError | UnreadableError | StalePinError) -> Refuse:
    if isinstance(why, StalePinError):
        told = "the position that was compared is not at hand any more; begin again"
        return Refuse(FaultCode.STALE_PIN, Action.RESUBSCRIBE, told, message.request, message.vault)
    if isinstance(why, UnreadableError):
        told = "what the relay has stored of this collection cannot be read; the log of the relay tells its host more"
        return Refuse(FaultCode.INTERNAL, Action.STOP, told, message.request, message.vault)
    told = "too many devices compare their history just now; come back in a moment"
    return Refuse(FaultCode.OVERLOADED, Action.RETRY, told, message.request, message.vault, retry_ms=RETRY_MS)
