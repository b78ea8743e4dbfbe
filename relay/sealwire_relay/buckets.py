"""How much devices and vaults may push: token buckets, of pushes and of bytes. Pure: the time is passed in.

A bucket is kept as the moment at which it will be full again, so one that is full need not be kept at all.
"""

from collections.abc import Hashable
from typing import Final, Generic, NamedTuple, TypeVar

from sealwire_protocol.ids import DeviceKey, VaultId

BURST_SECONDS: Final = 4.0
"""What a full bucket holds, in seconds of its rate: who comes back with the work of a day is not stopped at once."""

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
    """One bucket of pushes and one of bytes for everybody who has pushed lately. `name` is theirs in `Limited.by`."""

    def __init__(self, name: str, rate: Rate) -> None:
        self._name, self._rate = name, rate
        self._full_at: dict[K, Rate] = {}
        self._sweep_size = SWEEP_SIZE_MIN

    def __len__(self) -> int:
        """How many are kept: those that are not full, and some that were when it was looked last."""
        return len(self._full_at)

    def limited(self, key: K, size: int, now: float) -> Limited | None:
        """Why a push of so many bytes may not be taken from this bucket now; None: it may. One that is larger than a
        bucket may when that is full."""
        found: Limited | None = None
        at = self._full_at.get(key, Rate(now, now))
        for what, full_at, cost in zip(Rate._fields, at, self._costs(size), strict=True):
            lacking = full_at - now
            if cost and lacking + min(cost, BURST_SECONDS) > BURST_SECONDS:
                seconds = max(lacking - RETURN_SECONDS, lacking + min(cost, BURST_SECONDS) - BURST_SECONDS)
                if found is None or seconds > found.seconds:
                    found = Limited(f"{self._name}_{what}", seconds)
        return found

    def take(self, key: K, size: int, now: float) -> None:
        """Take a push of so many bytes out of the bucket."""
        costs = self._costs(size)
        if not any(costs):
            return
        at = self._full_at.get(key, Rate(now, now))
        self._full_at[key] = Rate(*(max(full_at, now) + cost for full_at, cost in zip(at, costs, strict=True)))
        if len(self._full_at) >= self._sweep_size:
            self._full_at = {key: at for key, at in self._full_at.items() if max(at) > now}
            self._sweep_size = max(SWEEP_SIZE_MIN, 2 * len(self._full_at))

    def _costs(self, size: int) -> Rate:
        """A push in seconds of its rates."""
        rate = self._rate
        return Rate(1 / rate.pushes if rate.pushes else 0.0, size / rate.bytes if rate.bytes else 0.0)


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
