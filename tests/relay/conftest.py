"""What tests of relays have in common."""

import pytest

from sealwire_protocol.ids import DeviceKey, VaultId
from sealwire_relay.buckets import PushLimits
from sealwire_relay.sites import Sites


@pytest.fixture
def still_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time passes for what is limited a second: how soon a machine pushes or dials says nothing."""
    take, enter = PushLimits.take, Sites.enter

    def take_now(limits: PushLimits, device: DeviceKey, vault: VaultId, batch: int, size: int, now: float) -> object:
        return take(limits, device, vault, batch, size, 0.0)

    monkeypatch.setattr(PushLimits, "take", take_now)
    monkeypatch.setattr(Sites, "enter", lambda sites, site, now: enter(sites, site, 0.0))
