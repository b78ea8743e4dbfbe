"""The archive of the version before is what it should be."""

import zipfile

import pytest

from tests.compatibility.versions import PACKAGES, RELEASED, Version

RELEASED_BYTES_MAX = 400_000


def test_it_holds_small_sources_and_nothing_else() -> None:
    with zipfile.ZipFile(RELEASED) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    assert {name.partition("/")[0] for name in names} == set(PACKAGES)
    assert [name for name in names if not name.endswith((".py", ".sql", "py.typed"))] == []
    assert RELEASED.stat().st_size <= RELEASED_BYTES_MAX


@pytest.mark.trio
async def test_it_is_what_the_other_tests_run(old: Version, new: Version) -> None:
    program = "import sealwire_protocol, sealwire_relay.database, sealwire_client.device\nimport {}"
    assert (await old.python("-c", program.format("json"))).code == 0
    assert (
        "No module named 'sealwire_protocol.conditions'"
        in (await old.python("-c", program.format("sealwire_protocol.conditions"))).err
    )
    assert (await new.python("-c", program.format("sealwire_protocol.conditions"))).code == 0
