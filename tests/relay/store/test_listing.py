"""What vaults store, told by `sealwire-relay vaults`."""

import json

from sealwire_relay.quota import listed
from tests.relay.store.places import PostgresPlace, make_vault, stream_write, write
from tests.support.aio import asyncio_test
from tests.support.program import Program


@asyncio_test
async def test_every_vault_is_told_with_what_it_stores_and_may(postgres: PostgresPlace) -> None:
    fresh = PostgresPlace(postgres.server, await postgres.server.database("migrated"), False)
    url = fresh.server.dsn(fresh.database)

    def said(*arguments: str) -> list[str]:
        code, output, errors = Program("vaults", *arguments, SEALWIRE_DATABASE_URL=url).finished()
        assert (code, errors) == (0, "")
        return output.splitlines()

    assert said() == []
    async with fresh.opened() as store:
        term = await store.open_term()
        made = sorted([await make_vault(store, term) for _ in range(2)])
        body = bytes(5_000)
        assert await store.append([write(made[0], term, [stream_write(made[0].stream, 0, body)])]) == [True]
        first, second = await store.vaults(None, 9)
    assert [json.loads(line) for line in said("--json", "--quota-bytes", "77")] == [
        listed(each, 77)._asdict() for each in (first, second)
    ]
    when = listed(first, 0).last_write
    assert (
        said("--quota-bytes", "10000")[0]
        == f"{made[0].id.hex()}: {first.bytes:,} of 10,000 bytes in 1 stream, last write {when}"
    )
    assert said("--quota-bytes", "0")[0].startswith(f"{made[0].id.hex()}: {first.bytes:,} bytes in 1 stream, last")
    old = listed(first._replace(written=None, quota=5), 9)
    assert (old.quota, old.last_write) == (5, None)
