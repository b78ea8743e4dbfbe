"""Devices of a proof: as processes that are killed, and what they and the proof itself do with the library."""

import subprocess
from pathlib import Path
from typing import Final

import trio

from demo.processes import StoryError, ended, kill_tree, last_words, spawn
from sealwire_client import Device, Vault
from sealwire_client.link import LinkState
from sealwire_client.nursery import open_nursery

WAKE_SECONDS: Final = 0.3
JOIN_S_MAX: Final = 60.0


class DeviceProcess:
    """A device as a process of its own, started and killed any number of times on one folder.

    The module is run with the folder, the relay's address, the device's number and whatever else it is given.
    """

    def __init__(self, module: str, folder: Path, number: int, *arguments: str) -> None:
        self.folder, self.number = folder / f"device-{number}", number
        self.folder.mkdir()
        self._module, self._arguments = module, arguments
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """What it wrote to stderr."""
        return self.folder / "log"

    def start(self, origin: str) -> None:
        """Start it where it was killed."""
        arguments = (str(self.folder), origin, str(self.number), *self._arguments)
        self._process = spawn(self._module, *arguments, log=self.log)

    def kill(self) -> None:
        """Kill -9."""
        process, self._process = self._process, None
        if process is not None:
            kill_tree(process)

    def done(self) -> bool:
        """True if it has ended well. Raises StoryError if it has ended otherwise."""
        status = None if self._process is None else self._process.poll()
        if status:
            raise StoryError(f"Device {self.number} ended by itself (status {status}):{last_words(self.log)}")
        return status == 0

    async def finished(self) -> None:
        """Wait until it has ended well, however often it is killed before, and started again at once. Raises StoryError
        if it has ended otherwise."""
        while not self.done():
            assert self._process is not None, "it was started"
            await ended(self._process)


async def join(vault: Vault, other: Device) -> Vault:
    """The vault, as a device holds it that is invited now."""
    with trio.fail_after(JOIN_S_MAX):
        invite = await vault.invite()
        async with open_nursery() as nursery:
            nursery.start_soon(invite.joined)
            return await other.join(invite.link)


async def stay_online(device: Device, origin: str) -> None:
    """As an app that its person looks at: try again at once, not in seconds."""
    while True:
        await trio.sleep(WAKE_SECONDS)
        if device.link(origin).state is not LinkState.ONLINE:
            device.wake()
