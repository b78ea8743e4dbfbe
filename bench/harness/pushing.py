"""Devices that push, driven here: for what does not need all that a program in C could push."""

from bench.harness.devices import BenchVault, DeviceWire, Member, push_frame
from sealwire_protocol.errors import Outcome
from sealwire_protocol.ids import StreamId
from sealwire_protocol.messages import Pushed, Subscribed


class Pusher:
    """One device that pushes and waits for the verdicts; it listens to nothing. Its batches go on from where those of
    the same device ended."""

    def __init__(self, wire: DeviceWire, vault: BenchVault, member: Member, told: Subscribed) -> None:
        self._wire, self._vault, self._member = wire, vault, member
        self._term, self._batch = told.term, told.last_batch

    @classmethod
    async def open(cls, port: int, vault: BenchVault, member: Member) -> "Pusher":
        """Log in, and learn where to go on counting."""
        wire = await DeviceWire.login(port, member.identity)
        return cls(wire, vault, member, await wire.subscribe(vault.id))

    async def push(self, stream: StreamId, pushes: int, units: int, window: int, records: int = 1) -> None:
        """So many pushes of so many records, `window` of them unanswered. Raises RuntimeError if one is refused."""
        waiting = 0
        for _ in range(pushes):
            await self.send(stream, units, records)
            waiting += 1
            if waiting == window:
                await self.verdict()
                waiting -= 1
        for _ in range(waiting):
            await self.verdict()

    async def send(self, stream: StreamId, units: int, records: int = 1) -> None:
        """One push, for whose verdict nobody waits yet."""
        self._batch += 1
        vault, author = self._vault.id, self._member.author
        await self._wire.send(push_frame(vault, self._term, self._batch, author, units, records, stream))

    async def verdict(self) -> None:
        """The next verdict. Raises RuntimeError if the push was refused."""
        pushed = await self._wire.expect(Pushed)
        if pushed.outcome is not Outcome.DONE:
            raise RuntimeError(f"a push was refused: {pushed.outcome.name}")

    def close(self) -> None:
        """Hang up."""
        self._wire.close()
