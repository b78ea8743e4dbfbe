"""Every store keeps tokens' hashes and the audit, also where several processes write it at once; and the commands."""

import asyncio
import json

import pytest

from sealwire_relay.admintokens import PREFIX, hash_of, known
from sealwire_relay.store import memory_administration, postgres_administration
from sealwire_relay.store.administration import ASKED_CHARACTERS_MAX, AdminToken, Asked
from tests.relay.store.backups import place_on, put_back, saved
from tests.relay.store.places import Place, PostgresPlace, name
from tests.support.aio import asyncio_test
from tests.support.postgres import Server
from tests.support.program import Program


def asked(number: int, token: bytes | None = None) -> Asked:
    return Asked(1_000.0 + number, token, "127.0.0.1", f"GET /{number}", "allowed")


@asyncio_test
async def test_a_token_is_kept_until_it_is_revoked_and_its_name_for_ever(fresh: Place) -> None:
    async with fresh.opened() as store:
        first, second = name(32), name(32)
        assert await store.admin_tokens() == []
        assert await store.add_admin_token("ops", first)
        assert not await store.add_admin_token("ops", second)
        assert await store.add_admin_token("ben", second)
        assert [(each.name, each.hash, each.revoked) for each in await store.admin_tokens()] == [
            ("ben", second, None),
            ("ops", first, None),
        ]
        assert await store.revoke_admin_token("ops")
        assert not await store.revoke_admin_token("ops")
        assert not await store.revoke_admin_token("eve")
        assert not await store.add_admin_token("ops", name(32))
        ben, ops = await store.admin_tokens()
        assert (ben.revoked, ops.revoked is not None) == (None, True)


@asyncio_test
async def test_tokens_are_limited(fresh: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (memory_administration, postgres_administration):
        monkeypatch.setattr(module, "ADMIN_TOKENS_MAX", 2)
    async with fresh.opened() as store:
        assert [await store.add_admin_token(each, name(32)) for each in "abc"] == [True, True, False]


@asyncio_test
async def test_what_was_asked_is_told_the_newest_first_with_the_name_of_the_token(fresh: Place) -> None:
    async with fresh.opened() as store:
        token = name(32)
        assert await store.add_admin_token("ops", token)
        await store.add_audit([asked(1, token), asked(2, name(32))])
        long = asked(3)._replace(address="a" * 500, asked="GET /\0\ud800" + "x" * 500)
        await store.add_audit([long])
        third, second, first = await store.audit(9)
        assert (first.at, first.token, first.asked) == (1_001.0, "ops", "GET /1")
        assert (second.token, second.verdict) == ("", "allowed")
        assert third.asked == ("GET /??" + "x" * 500)[:ASKED_CHARACTERS_MAX]
        assert third.address == "a" * 64
        assert await store.audit(1) == [third]


@asyncio_test
async def test_of_many_the_oldest_go(fresh: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (memory_administration, postgres_administration):
        monkeypatch.setattr(module, "AUDIT_ROWS_MAX", 3)
    async with fresh.opened() as store:
        for number in range(5):
            await store.add_audit([asked(number), asked(number + 10)])
        assert [each.asked for each in await store.audit(9)] == ["GET /14", "GET /4", "GET /13"]


@asyncio_test
async def test_several_processes_write_it_at_once_and_nothing_is_lost(fresh: Place) -> None:
    async with fresh.opened() as first, fresh.opened() as second:
        await asyncio.gather(*(store.add_audit([asked(n)]) for n in range(4) for store in (first, second)))
        assert sorted(each.asked for each in await first.audit(99)) == sorted([f"GET /{n}" for n in range(4)] * 2)


@asyncio_test
async def test_a_backup_has_both(server: Server) -> None:
    place, other = await place_on(server), await place_on(server)
    async with place.opened() as store:
        assert await store.add_admin_token("ops", name(32))
        await store.add_audit([asked(1)])
        both = await store.admin_tokens(), await store.audit(9)
        _, data = await saved(place)
    await put_back(other, data)
    async with other.opened() as store:
        assert (await store.admin_tokens(), await store.audit(9)) == both


@asyncio_test
async def test_tokens_are_made_listed_and_revoked_by_commands(postgres: PostgresPlace) -> None:
    fresh = PostgresPlace(postgres.server, await postgres.server.database("migrated"), False)
    url = fresh.server.dsn(fresh.database)

    def run(*arguments: str) -> tuple[int, str, str]:
        return Program("admin", *arguments, SEALWIRE_DATABASE_URL=url).finished()

    code, text, errors = run("token", "create", "ops")
    assert (code, errors) == (0, "") and text.startswith(PREFIX)
    code, _, errors = run("token", "create", "ops")
    assert code == 1 and "choose another name" in errors
    assert run("token", "create", "")[0] == run("token", "create", "x" * 65)[0] == 2
    made = json.loads(run("token", "create", "ben", "--json")[1])
    async with fresh.opened() as store:
        tokens = await store.admin_tokens()
        for shown, whose in ((text.strip(), "ops"), (made["token"], "ben")):
            hashed = hash_of(shown)
            assert hashed is not None
            found = known(hashed, tokens)
            assert found is not None and found.name == whose
        await store.add_audit([asked(1, tokens[1].hash), asked(2)])
    assert run("token", "revoke", "ben") == (0, "", "")
    assert run("token", "revoke", "ben")[0] == 1
    ben, ops = run("token", "list")[1].splitlines()
    assert ben.startswith("ben: made ") and "revoked" in ben
    assert ops.startswith("ops: made ") and "revoked" not in ops
    listed = [json.loads(line) for line in run("token", "list", "--json")[1].splitlines()]
    assert [(each["name"], each["revoked"] is None) for each in listed] == [("ben", False), ("ops", True)]
    assert run("audit")[1].splitlines() == [
        "1970-01-01T00:16:42+00:00 nobody known from 127.0.0.1: GET /2: allowed",
        "1970-01-01T00:16:41+00:00 ops from 127.0.0.1: GET /1: allowed",
    ]
    assert json.loads(run("audit", "--rows", "1", "--json")[1])["asked"] == "GET /2"


def test_what_is_no_token_has_no_hash() -> None:
    for text in ("", PREFIX, PREFIX + "AAAA", "AAAA", PREFIX + "!" * 43, "sealwire-token:" + "A" * 43):
        assert hash_of(text) is None
    assert known(b"\1" * 32, [AdminToken("ops", b"\2" * 32, 0.0, None)]) is None
