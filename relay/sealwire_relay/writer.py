"""Group commit: gathers pushes while a commit is under way, decides them in order, writes them at once, answers.

Decisions are made on a cached view of each vault and written on condition that the view still holds; a vault whose
condition fails is read afresh and decided again, alone. A push is answered only after its commit, and offered to the
fan-out only after it is answered.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Final

from sealwire_protocol.errors import Action, CloseCode, FaultCode, Outcome
from sealwire_protocol.events import Answer, Refuse
from sealwire_protocol.faults import no_such_vault
from sealwire_protocol.ids import DeviceKey, StreamId, VaultId
from sealwire_protocol.messages import Deliver, Pushed, StreamKind, StreamState
from sealwire_relay.fanout import Fanout
from sealwire_relay.lasting import Lasting
from sealwire_relay.losses import Losses
from sealwire_relay.metrics import Metrics
from sealwire_relay.pushqueue import Batch, PushQueue, Waiting
from sealwire_relay.quota import Allowance
from sealwire_relay.settings import Settings
from sealwire_relay.store.interface import (
    DiskFullError,
    OutcomeUnknownError,
    Store,
    StoreDownError,
    StoreError,
    VaultWrite,
)
from sealwire_relay.terms import Terms
from sealwire_relay.view import Admitted, Draft, Head, VaultView
from sealwire_relay.winners import Winners

VIEWS_MAX: Final = 10_000
"""Vaults whose view is kept, by all writers: some 2 KiB each. The least recently pushed to is forgotten first."""

ATTEMPTS_MAX: Final = 20
"""Times that a vault is decided afresh because another relay process wrote to it meanwhile: some 50 ms. Of two
that write without pause, one in a million loses so often in a row; its pushers are told to try again."""

AWAY_SECONDS_MAX: Final = 60.0
"""How long pushes wait for a database that cannot be reached: it starts again, or another one takes over, in less. Then
their devices are told to try again, which ends their connections while it is away, and they come ever less often."""

AWAY_LOOK_SECONDS: Final = 0.25
"""Between two attempts to reach it."""

RETRY_MS: Final = 1_000
"""When a device may try again after the database failed it."""

_log = logging.getLogger("sealwire.ingest")


class Writer:
    """Takes what waits in `queue` and commits it, one commit at a time. `done` is called with each push, just before it
    is answered, and `more` when it has left something for other writers to take. They share the `views` too."""

    def __init__(
        self,
        store: Store,
        fanout: Fanout,
        settings: Settings,
        metrics: Metrics,
        terms: Terms,
        losses: Losses,
        queue: PushQueue,
        views: OrderedDict[VaultId, VaultView],
        done: Callable[[Waiting], None],
        more: Callable[[], None],
    ) -> None:
        self._store, self._fanout, self._settings, self._metrics = store, fanout, settings, metrics
        self._terms, self._losses, self._done, self._more = terms, losses, done, more
        self._queue, self._views = queue, views
        self._wake = asyncio.Event()
        self.idle = asyncio.Event()
        """Set while it waits for something to take."""
        self.idle.set()
        self._hurried = False
        self._resting: dict[tuple[VaultId, ...], asyncio.TimerHandle] = {}
        """The vaults of commits that have ended, which rest before more of them may be taken."""
        self._trouble = Lasting(_log, time.monotonic)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the committer."""
        self._task = asyncio.create_task(self._run())

    def stop(self) -> asyncio.Task[None] | None:
        """Stop; a commit under way is cut. Returns what has yet to end, if it had been started."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        return task

    def wake(self) -> None:
        """There is something to take."""
        self.idle.clear()
        self._wake.set()

    # --- the committer

    async def _run(self) -> None:
        while True:
            while not self._queue.is_ready:
                self.idle.set()
                self._wake.clear()
                await self._wake.wait()
            taken = self._queue.take(self._settings.commit_records_max, self._settings.commit_bytes_max)
            vaults = tuple(taken)
            if self._queue.is_ready:
                self._more()
            began = time.perf_counter()
            try:
                await self._commit(taken)
            finally:
                self._give_back(vaults, began)

    def _give_back(self, vaults: tuple[VaultId, ...], began: float) -> None:
        """Let more of these vaults be taken, at once or when they have rested."""
        now = time.perf_counter()
        seconds = 0.0 if self._hurried else self._queue.rest(vaults, now - began, now)
        if seconds:
            self._resting[vaults] = asyncio.get_running_loop().call_later(seconds, self._rested, vaults)
        else:
            self._queue.give_back(vaults)

    def _rested(self, vaults: tuple[VaultId, ...]) -> None:
        self._resting.pop(vaults).cancel()
        self._queue.give_back(vaults)
        self._more()

    def hurry(self) -> None:
        """The relay stops: no vault rests any more."""
        self._hurried = True
        for vaults in list(self._resting):
            self._rested(vaults)

    async def _commit(self, waiting: Batch) -> None:
        """Answer every push in `waiting`, which is emptied as they are: committed, refused, or to be tried again."""
        try:
            for fresh in range(ATTEMPTS_MAX):
                await self._outlast(waiting, bool(fresh))
                if not waiting:
                    return
            self._refuse(waiting, "too many relays write to this vault at once; try again")
        except StoreError as error:
            self._give_up(waiting, error)
        except Exception:
            self._views.clear()
            if len(waiting) > 1:
                _log.exception("a group commit failed; its vaults are tried one by one")
                for vault, items in waiting.items():
                    await self._commit({vault: items})
                return
            _log.exception("a commit failed; its pushers are told to come back")
            for each in self._with_followers(waiting):
                self._done(each)
                each.peer.close(CloseCode.RELAY_FAULT, "the relay failed; come back")

    async def _outlast(self, waiting: Batch, fresh: bool) -> None:
        """Attempt it, again and again while the database cannot be reached: who pushed notices a late verdict only.
        Raises StoreError, StoreDownError after AWAY_SECONDS_MAX."""
        clock = asyncio.get_running_loop().time
        end: float | None = None
        while True:
            try:
                if fresh:
                    for vault in waiting:
                        self._views.pop(vault, None)
                    await self._terms.refresh()
                return await self._attempt(waiting, fresh)
            except StoreDownError as error:
                now = clock()
                end = now + AWAY_SECONDS_MAX if end is None else end
                if now >= end:
                    raise
                self._trouble.failed(error, "pushes to %d vaults wait until it can be reached", len(waiting))
                self._metrics.store_errors.inc()
                fresh = True  # what was known of it may not be so any more
                await asyncio.sleep(AWAY_LOOK_SECONDS)

    def _give_up(self, waiting: Batch, error: StoreError) -> None:
        self._trouble.failed(error, "pushes to %d vaults were not committed", len(waiting))
        self._metrics.store_errors.inc()
        self._views.clear()
        why = "the relay's database is not available now; nothing was lost, it will be tried again"
        if isinstance(error, DiskFullError):
            why = "the relay's disk is full; nothing was lost, what is unsent waits on this device"
        self._refuse(waiting, why)

    def _refuse(self, waiting: Batch, why: str) -> None:
        for each in self._with_followers(waiting):
            push = each.admitted.push
            self._answer(each, Refuse(FaultCode.OVERLOADED, Action.RETRY, why, 0, push.vault, push.batch, RETRY_MS))

    def _with_followers(self, waiting: Batch) -> list[Waiting]:
        """These pushes, and what their devices have pushed to these vaults since, which is taken out of the queue.

        It must not be carried out before them: where gaps are legal, under a new term, their numbers would be used up
        when they come again, and the device be taken for a copy of itself (R16).
        """
        items = list(chain.from_iterable(waiting.values()))
        pushers = {(admitted.push.vault, admitted.device) for _, admitted, _ in items}
        return items + self._queue.take_of(pushers)

    async def _attempt(self, waiting: Batch, fresh: bool) -> None:
        """Decide and write these; takes out of `waiting` what was answered. `fresh`: their views are read anew."""
        term = await self._terms.now()
        drafts: list[Draft] = []
        for vault, items in list(waiting.items()):
            view = await self._view(vault, [admitted for _, admitted, _ in items])
            if view is None:
                for each in waiting.pop(vault):
                    self._answer(each, no_such_vault(vault, each.admitted.push.batch))
                continue
            draft = Draft(vault, view, term)
            for _, admitted, _ in items:
                draft.take(admitted)
            drafts.append(draft)
        drafts = await self._decide(drafts)
        if self._terms.doubtful or self._terms.present != term:
            return
        writes = [(draft, draft.write()) for draft in drafts if fresh or not draft.gap]
        kept = await self._write([write for _, write in writes if write is not None])
        winners = Winners(self._store)
        for draft, write in sorted(writes, key=lambda decided: bool(decided[0].conflicts)):
            if write is None or draft.vault in kept:
                await winners.tell(draft)
                self._finish(draft, write, waiting.pop(draft.vault))

    async def _decide(self, drafts: list[Draft]) -> list[Draft]:
        """Judge what was taken. What guarded streams hold, and their histories, are read after the views, whose heads
        they must go with. Returns the drafts that could be judged: a vault that has gone meanwhile is read anew."""
        states = [await self._histories(draft) for draft in drafts]
        wanted = [name for draft in drafts for name in draft.wanted]
        held = await self._store.guards(wanted) if wanted else {}
        judged = []
        for draft, known in zip(drafts, states, strict=True):
            if known is not None:
                draft.decide(held, known)
                judged.append(draft)
        return judged

    async def _histories(self, draft: Draft) -> dict[StreamId, StreamState] | None:
        """The states that a draft's refills are judged by; None: there is no such vault any more."""
        if not draft.histories:
            return {}
        device = next(iter(draft.view.pushers))
        told = await self._store.subscription(draft.vault, device, list(draft.histories))
        return None if told is None else {state.stream: state for state in told.streams}

    async def _write(self, writes: list[VaultWrite]) -> set[VaultId]:
        if not writes:
            return set()
        began = time.perf_counter()
        try:
            done = await self._store.append(writes)
        except OutcomeUnknownError as error:
            _log.warning("a commit's outcome is unknown; it is resolved by batch number: %s", error)
            self._metrics.unknown_outcomes.inc()
            return set()
        self._trouble.went_well("pushes are committed again")
        self._metrics.commits.inc()
        self._metrics.commit_seconds.observe(time.perf_counter() - began)
        return {write.vault for write, held in zip(writes, done, strict=True) if held}

    def _finish(self, draft: Draft, write: VaultWrite | None, items: list[Waiting]) -> None:
        delivers: Iterable[Deliver] = draft.committed(write) if write is not None else ()
        now, answered = time.perf_counter(), 0
        for waiting, (_, answer) in zip(items, draft.answers, strict=True):
            self._answer(waiting, answer)
            if isinstance(answer, Answer):
                if isinstance(answer.message, Pushed) and answer.message.outcome is Outcome.QUOTA:
                    self._metrics.quota_refusals.inc()
                answered += 1
                self._metrics.push_seconds.observe(now - waiting.since)
        self._metrics.pushes.inc(answered)
        self._metrics.records.inc(draft.records)
        for index in draft.refills:
            admitted, answer = draft.answers[index]
            if isinstance(answer, Answer) and isinstance(answer.message, Pushed):
                self._losses.returned(admitted.device, answer.message)
        for deliver in delivers:
            self._fanout.offer(deliver.vault, deliver.stream, deliver)
        if draft.view.heavy:
            self._views.pop(draft.vault, None)

    def _answer(self, waiting: Waiting, verdict: Answer | Refuse) -> None:
        """Tell one pusher. That it cannot be told is no reason not to tell the others."""
        self._done(waiting)
        try:
            waiting.peer.handle(verdict)
        except Exception:
            _log.exception("a pusher could not be told the verdict; it is cut off, and asks again")
            waiting.peer.abort()

    # --- views

    async def _view(self, vault: VaultId, pushes: list[Admitted]) -> VaultView | None:
        view = self._views.get(vault)
        if view is not None:
            self._views.move_to_end(vault)
        wanted = {group.stream for admitted in pushes for group in admitted.push.groups}
        devices = {admitted.device for admitted in pushes}
        missing = [s for s in wanted if view is None or s not in view.heads]
        for device in devices:
            if view is not None and device in view.pushers and not missing:
                continue
            view = await self._read(vault, view, device, missing)
            missing = [s for s in wanted if view is None or s not in view.heads]
        if view is not None and view.allowance.doubtful(sum(admitted.size for admitted in pushes)):
            usage = await self._store.usage(vault)
            if usage is not None:
                view.allowance = Allowance.of(usage, self._settings.quota_bytes)
        return view

    async def _read(
        self, vault: VaultId, view: VaultView | None, device: DeviceKey, streams: list[StreamId]
    ) -> VaultView | None:
        told = await self._store.subscription(vault, device, streams)
        pusher = await self._store.pusher(vault, device)
        if told is None or pusher is None:
            return view
        if view is None:
            usage = await self._store.usage(vault)
            if usage is None:
                return None
            view = VaultView(told.vault, Allowance.of(usage, self._settings.quota_bytes))
            self._views[vault] = view
            while len(self._views) > VIEWS_MAX:
                self._views.popitem(last=False)
        for state in told.streams:
            if state.kind is not StreamKind.ABSENT:
                view.heads.setdefault(state.stream, Head.of(state))
                # It may have grown by a commit whose outcome was unknown, or by another process.
                self._fanout.told(vault, state, None)
        view.add_pusher(device, pusher)
        return view
