"""What devices know of a history that the relay has lost, and what of it they have given back, for whoever set it back.

Only devices can tell: each says at every SUBSCRIBE where it stands. What is noticed is told in the log, vault by vault
and not too often, and in the metrics. It is of this process and its time: another one notices again.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from sealwire_protocol.errors import Refusal
from sealwire_protocol.history import is_lost
from sealwire_protocol.ids import DeviceKey, StreamId, VaultId
from sealwire_protocol.links import Role, decode_link
from sealwire_protocol.membership import membership_of, verified_before
from sealwire_protocol.messages import Pushed, StreamState, Wanted
from sealwire_relay.fanout import Fanout
from sealwire_relay.metrics import Metrics
from sealwire_relay.store.interface import Store, StoreError
from sealwire_relay.words import count

SUMMARY_SECONDS: Final = 10.0
"""How long what is noticed is gathered before it is told: a device gives back in many pushes what it holds."""

VAULTS_MAX: Final = 10_000
"""Vaults of which it is remembered who was heard of, some KiB each: the one that nothing was heard of longest goes."""

_log = logging.getLogger("sealwire.losses")


@dataclass(slots=True)
class Loss:
    """What is known of one vault's loss. `upto`: of each stream the greatest lost seq that a device has told."""

    upto: dict[StreamId, int] = field(default_factory=dict)
    heard: set[DeviceKey] = field(default_factory=set)
    givers: set[DeviceKey] = field(default_factory=set)
    returned: int = 0
    conflicts: int = 0
    unheard: int = 0


class Losses:
    """Notices losses, and tells of them until it is stopped."""

    def __init__(self, store: Store, fanout: Fanout, metrics: Metrics) -> None:
        self._store, self._fanout, self._metrics = store, fanout, metrics
        self._losses: OrderedDict[VaultId, Loss] = OrderedDict()
        self._news: dict[VaultId, None] = {}
        self._awake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        metrics.lost_vaults.set_function(lambda: len(self._losses))
        metrics.lost_streams.set_function(lambda: sum(len(loss.upto) for loss in self._losses.values()))
        metrics.unheard_members.set_function(lambda: sum(loss.unheard for loss in self._losses.values()))

    def start(self) -> None:
        """Begin to tell."""
        self._task = asyncio.create_task(self._run(), name="losses")

    async def stop(self) -> None:
        """Tell no more. What was noticed just before is told now. Safe twice, and without a start."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.tell()

    def heard(self, device: DeviceKey, vault: VaultId, wanted: Sequence[Wanted], states: Iterable[StreamState]) -> None:
        """A device says where it stands in streams of a vault, which are in these states."""
        lost = [
            (place.stream, position.seq)
            for place, state in zip(wanted, states, strict=True)
            for position in (place.cursor, place.served)
            if is_lost(position, state)
        ]
        if not lost and vault not in self._losses:
            return
        loss = self._of(vault)
        if device not in loss.heard:
            loss.heard.add(device)
            self._tell_soon(vault)
        for stream, seq in lost:
            if seq > loss.upto.get(stream, 0):
                loss.upto[stream] = seq
                self._tell_soon(vault)

    def returned(self, device: DeviceKey, pushed: Pushed) -> None:
        """A refill was judged, for the first time."""
        loss = self._of(pushed.vault)
        loss.heard.add(device)
        records = sum(row.records for row in pushed.appended)
        conflicts = sum(refused.reason is Refusal.CONFLICT for refused in pushed.refused)
        self._metrics.returned_records.inc(records)
        for reason in Refusal:
            count = sum(refused.reason is reason for refused in pushed.refused)
            self._metrics.refused_returns.labels(reason.name.lower()).inc(count)
        if records:
            loss.givers.add(device)
        loss.returned += records
        loss.conflicts += conflicts
        self._tell_soon(pushed.vault)

    def replaced(self, vault: VaultId, gone: Sequence[bytes], came: Sequence[bytes]) -> None:
        """Links have given way to others that outrank them (R15). Told at once: it comes to that once, if at all."""
        if not gone:
            return  # they merely follow what stood there
        self._metrics.replaced_links.inc(len(gone))
        _log.warning(
            "The membership log of vault %s had lost %s, signed by %s; %s, signed by %s, gave way to them. Whoever was "
            "a member by those alone has to be added again by an admin.",
            vault.hex(),
            count(len(came), "link"),
            _signers(came),
            count(len(gone), "link"),
            _signers(gone),
        )

    def _of(self, vault: VaultId) -> Loss:
        loss = self._losses.setdefault(vault, Loss())
        self._losses.move_to_end(vault)
        while len(self._losses) > VAULTS_MAX:
            self._losses.popitem(last=False)
        return loss

    def _tell_soon(self, vault: VaultId) -> None:
        self._news[vault] = None
        self._awake.set()

    # --- telling

    async def _run(self) -> None:
        while True:
            await self._awake.wait()
            await asyncio.sleep(SUMMARY_SECONDS)
            self._awake.clear()
            await self.tell()

    async def tell(self) -> None:
        """Tell of every vault of which something was noticed since it was told of last."""
        news, self._news = self._news, {}
        here = self._fanout.devices(news)
        for vault in news:
            loss = self._losses.get(vault)
            if loss is None:
                continue
            try:
                members = _members((await self._store.links(vault)).links)
            except StoreError as error:
                _log.info("what vault %s has lost is not told now: %s", vault.hex(), error)
                continue
            loss.heard |= here.get(vault, set())
            loss.unheard = len(members - loss.heard)
            _log.warning("%s", _told(vault, loss))


def _members(links: tuple[bytes, ...]) -> set[DeviceKey]:
    """The devices that may hold something: members that no newer key of theirs has replaced."""
    membership = membership_of(links, verified_before)
    return {member.device for member in membership.members.values() if member.role > Role.REPLACED}


def _signers(links: Sequence[bytes]) -> str:
    authors = sorted({decode_link(raw).signer for raw in links})
    return f"{'member' if len(authors) == 1 else 'members'} {', '.join(map(str, authors))}"


def _told(vault: VaultId, loss: Loss) -> str:
    upto = ", ".join(f"{stream.hex()} up to {seq}" for stream, seq in sorted(loss.upto.items())) or "none told"
    have = "has" if loss.unheard == 1 else "have"
    waited = (
        f"{loss.unheard} of its members {have} not been heard of since, and may hold more of it"
        if loss.unheard
        else "all of its members have been heard of since"
    )
    returned = f"{count(loss.returned, 'record')} came back from {count(len(loss.givers), 'device')}"
    return (
        f"Vault {vault.hex()} has lost history that devices know (streams and lost seqs: {upto}): the database was set "
        f"back, or the vault was moved here. {returned}, {loss.conflicts:,} conflicted with what was written since; "
        f"{waited}."
    )
