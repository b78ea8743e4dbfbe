from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.replica.support import Todos, opened


@pytest.fixture
def a(tmp_path: Path) -> Iterator[Todos]:
    with opened(tmp_path / "a") as todos:
        yield todos
