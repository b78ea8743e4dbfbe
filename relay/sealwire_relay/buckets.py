"""How much devices and vaults may push, and sites connect: token buckets, of pushes and of bytes. Pure: the time is
passed in.

A bucket is kept as the moment at which it will be full again, so one that is full need not be kept at all.
"""

from collections.abc import Hashable
from typing import Final, Generic, NamedTuple, TypeVar

from sealwire_protocol.ids import DeviceKey, VaultId

BURST_SECONDS: Final = 4.0
"""What a full bucket holds, in seconds of its rate: who comes back with the work of a day is not stopped at once, nor
are all who share an address and come back at one moment."""

RETURN_SECONDS: Final = BURST_SECONDS / 2
"""Who is limited returns when its bucket is half full: to a run of pushes, not to the next refusal. So it is refused,
and subscribes again, once in two seconds at most."""

SPREAD: Final = 0.25
"""Those who share a vault return spread over so much of their wait, not all at one moment."""

SWEEP_SIZE_MIN: Final = 1_024
"""Buckets at which full ones are looked for and forgotten, and again whenever there are twice as many as were left."""

K = TypeVar("K", bound=Hashable)


class Rate(NamedTuple):
    """What may be pushed a second, in the long run; 0: as much as there is."""

    pushes: float
    bytes: float


class Limited(NamedTuple):
    """A push is not taken now. `by`: which limit it is, of a closed set; `seconds` until it should come again."""

    by: str
    seconds: float


class Buckets(Generic[K]):
    """One bucket of pushes and one of bytes for everybody who has pushed lately. `name` is theirs in `Limited.by`. What
    has no bytes, as the beginning of a connection, is a push of none."""

    def __init__(self, name: str, rate: Rate) -> None:
        self._name = name
        self._push_seconds = 1 / rate.pushes if rate.pushes else 0.0
        self._byte_seconds = 1 / rate.bytes if rate.bytes else 0.0
        self._full_at: dict[K, tuple[float, float]] = {}
        self._sweep_size = SWEEP_SIZE_MIN

    def __len__(self) -> int:
        """How many are kept: those that are not full, and some that were when it was looked last."""
        return len(self._full_at)

    def limited(self, key: K, size: int, now: float) -> Limited | None:
        """Why a push of so many bytes may not be taken from this bucket now; None: it may. One that is larger than a
        bucket may when that is full."""
        kept = self._full_at.get(key)
        if kept is None:
            return None
        costs = self._push_seconds, size * self._byte_seconds
        if kept[0] - now + costs[0] <= BURST_SECONDS and kept[1] - now + costs[1] <= BURST_SECONDS:
            return None
        found: Limited | None = None
        for what, full_at, cost in zip(Rate._fields, kept, costs, strict=True):
            lacking = full_at - now
            if cost and lacking + min(cost, BURST_SECONDS) > BURST_SECONDS:
                seconds = max(lacking - RETURN_SECONDS, lacking + min(cost, BURST_SECONDS) - BURST_SECONDS)
                if found is None or seconds > found.seconds:
                    found = Limited(f"{self._name}_{what}", seconds)
        return found

    def take(self, key: K, size: int, now: float) -> None:
        """Take a push of so many bytes out of the bucket."""
        push_seconds, byte_seconds = self._push_seconds, size * self._byte_seconds
        if not push_seconds and not byte_seconds:
            return
        pushes_at, bytes_at = self._full_at.get(key, (now, now))
        self._full_at[key] = (
            max(pushes_at, now) + push_seconds,
            max(bytes_at, now) + byte_seconds,
        )
        if len(self._full_at) >= self._sweep_size:
            self._full_at = {key: at for key, at in self._full_at.items() if max(at) > now}
            self._sweep_size = max(SWEEP_SIZE_MIN, 2 * len(self._full_at))


class PushLimits:
    """The buckets of all devices and of all vaults."""

    def __init__(self, device: Rate, vault: Rate) -> None:
        self._devices: Buckets[DeviceKey] = Buckets("device", device)
        self._vaults: Buckets[VaultId] = Buckets("vault", vault)

    def take(self, device: DeviceKey, vault: VaultId, batch: int, size: int, now: float) -> Limited | None:
        """Take a push out of the device's bucket and the vault's, or say why it is not taken; then nothing is."""
        found = self._devices.limited(device, size, now) or self._vaults.limited(vault, size, now)
        if found is not None:
            # Without chance, but different for each device, and not always the same for one.
            part = device[batch % len(device)] / 255
            return found._replace(seconds=found.seconds * (1 + SPREAD * part))
        self._devices.take(device, size, now)
        self._vaults.take(vault, size, now)
        return None
