"""A disk so small that a test can fill it. Mounting one needs root."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BALLAST = "ballast"


@contextmanager
def small_disk(place: Path, mib: int = 1) -> Iterator[Path]:
    """A disk of so many MiB, mounted on a folder that is made for it. Skips the test where none can be mounted."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=700", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def free(disk: Path) -> int:
    """Bytes that can still be written."""
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def fill(disk: Path, left: int = 0) -> None:
    """Take all room but so many bytes. Room that was taken before is given back first."""
    make_room(disk)
    with (disk / BALLAST).open("wb") as file:
        if free(disk) > left:
            os.posix_fallocate(file.fileno(), 0, free(disk) - left)


def make_room(disk: Path) -> None:
    """Give back what was taken."""
    (disk / BALLAST).unlink(missing_ok=True)
