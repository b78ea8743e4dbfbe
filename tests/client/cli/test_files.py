"""What a command writes into a file is there as a whole, or not at all."""

from pathlib import Path

import pytest

from sealwire_client.cli import files
from sealwire_client.cli.failures import Failure


class StopError(Exception):
    """Ends a block."""


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_block_that_fails_leaves_nothing_behind(tmp_path: Path, overwrite: bool) -> None:
    file = tmp_path / "file"
    if overwrite:
        file.write_bytes(b"before")

    def fail() -> None:
        with files.whole(file, overwrite) as out:
            out.write(b"half")
            out.flush()
            raise StopError

    with pytest.raises(StopError):
        fail()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == ({"file": b"before"} if overwrite else {})


def test_a_file_that_came_meanwhile_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "file"

    def write() -> None:
        with files.whole(file, False) as out:
            out.write(b"mine")
            file.write_bytes(b"theirs")

    with pytest.raises(Failure, match="--overwrite"):
        write()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"theirs"]


def test_a_name_has_its_file_only_once_that_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with files.whole(file, False) as out:
        out.write(b"whole")
        out.flush()
        assert not file.exists()
    assert file.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [file]
