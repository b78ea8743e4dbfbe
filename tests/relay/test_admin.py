"""Admin tokens: what they are good for on the control port, and that they are good for nothing else (S21)."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from sealwire_protocol import codec
from sealwire_protocol.errors import CloseCode, FaultCode
from sealwire_protocol.ids import MEMBERSHIP, VaultId
from sealwire_protocol.messages import Fault, Hello
from sealwire_relay import auditing
from sealwire_relay.admintokens import PREFIX, make
from sealwire_relay.auditing import Audit
from sealwire_relay.control import guard
from sealwire_relay.control.app import control_app
from sealwire_relay.control.guard import TRIES_MAX, TRIES_SECONDS, Desk
from sealwire_relay.control.server import ControlServer
from sealwire_relay.metrics import Metrics
from sealwire_relay.settings import Settings
from sealwire_relay.store.interface import Store, StoreDownError
from tests.relay.asking import ANNA
from tests.relay.test_connection import HELLO
from tests.support.aio import asyncio_test
from tests.support.device import Device, Identity, group, record, stream_id
from tests.support.relay import Mishap, Relay, TroubledStore, memory_store, running
from tests.support.stranger import BINARY, REQUEST, Stranger, frame

TODOS = stream_id(1)


class Answered(NamedTuple):
    status: int
    headers: dict[str, str]
    body: Any


class Office:
    """A relay with both ports, an admin token, and a clock for the guard."""

    def __init__(self, relay: Relay, store: Store, port: int) -> None:
        self.relay, self.store, self.port = relay, store, port
        self.now = 0.0
        self.token = make()

    async def ask(self, path: str, token: str | None = "", method: str = "GET", scheme: str = "Bearer") -> Answered:
        """Ask the control port; with the token, another one, or none."""
        shown = self.token.text if token == "" else token
        line = "" if shown is None else f"Authorization: {scheme} {shown}\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{line}\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        first, *lines = head.decode().split("\r\n")
        return Answered(int(first.split()[1]), dict(each.lower().split(": ", 1) for each in lines), body)

    async def audit(self) -> list[tuple[str, str, str]]:
        """Whose token, what was asked and what came of it, oldest first."""
        await self.relay.plane.audit.flush()
        rows = await self.store.audit(1_000)
        assert {row.address for row in rows} <= {"127.0.0.1"}
        return [(row.token, row.asked, row.verdict) for row in reversed(rows)]


@asynccontextmanager
async def opened(store: Store | None = None) -> AsyncIterator[Office]:
    store = store or await memory_store()
    async with running(store) as relay:
        offices: list[Office] = []

        def desk() -> Desk | None:
            return Desk(store, relay.plane.audit)

        app = control_app(Metrics(), list, desk, Settings(quota_bytes=777), lambda: offices[0].now)
        server = ControlServer(app, "127.0.0.1", 0)
        office = Office(relay, store, await server.start())
        offices.append(office)
        try:
            assert await store.add_admin_token("ops", office.token.hash)
            yield office
        finally:
            await server.stop()


async def a_vault(office: Office) -> str:
    """A vault of Anna's with something in it; its id in hex."""
    async with await Device.open(office.relay.port, ANNA) as anna:
        vault, _ = await anna.create_vault()
        await anna.create_stream(vault, TODOS)
        await anna.subscribe(vault, TODOS)
        await anna.push(vault, 1, group(TODOS, record()))
        return vault.hex()


# --- the control port


@asyncio_test
async def test_whoever_shows_a_token_is_told_what_vaults_store_and_that_is_written_down() -> None:
    async with opened() as office:
        assert json.loads((await office.ask("/api/vaults")).body) == {"vaults": [], "next": None}
        vault = await a_vault(office)
        answer = await office.ask("/api/vaults")
        assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
        [told] = json.loads(answer.body)["vaults"]
        assert (told["vault"], told["quota"], told["streams"]) == (vault, 777, 1)
        assert told["bytes"] > 60 and set(told) == {"vault", "bytes", "quota", "streams", "last_write"}
        assert json.loads((await office.ask(f"/api/vaults?after={vault}")).body)["vaults"] == []
        assert (await office.ask("/api/vaults?after=rubbish")).status == 400
        assert await office.audit() == [
            *[("ops", "GET /api/vaults", "allowed")] * 3,
            ("ops", "GET /api/vaults", "denied: bad request"),
        ]


@asyncio_test
async def test_many_vaults_come_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    from sealwire_relay.control import app

    monkeypatch.setattr(app, "VAULTS_PAGE", 2)
    async with opened() as office, await Device.open(office.relay.port, ANNA) as anna:
        made = sorted([(await anna.create_vault(nonce))[0].hex() for nonce in range(3)])
        first = json.loads((await office.ask("/api/vaults")).body)
        assert ([each["vault"] for each in first["vaults"]], first["next"]) == (made[:2], made[1])
        rest = json.loads((await office.ask(f"/api/vaults?after={made[1]}")).body)
        assert ([each["vault"] for each in rest["vaults"]], rest["next"]) == (made[2:], None)


@asyncio_test
async def test_without_a_token_that_is_good_nothing_is_told_and_that_is_written_down() -> None:
    async with opened() as office:
        vault = await a_vault(office)
        revoked = make()
        assert await office.store.add_admin_token("gone", revoked.hash)
        assert await office.store.revoke_admin_token("gone")
        own = office.token.text
        shown = [None, make().text, revoked.text, own[:-1], own + "A", "rubbish"]
        for token in shown:
            answer = await office.ask("/api/vaults", token)
            assert answer.status == 401
            assert answer.headers["www-authenticate"].startswith("bearer")
            assert vault.encode() not in answer.body
        assert (await office.ask("/api/vaults", own, scheme="Basic")).status == 401
        assert (await office.ask("/api/other", None)).status == 401
        refused = [verdict for _, _, verdict in await office.audit()]
        assert refused == [f"refused: {why} token" for why in ("no", "unknown", "revoked", *["no"] * 5)]
        assert [who for who, _, _ in await office.audit()] == ["", "", "gone", *[""] * 5]


@asyncio_test
async def test_health_and_metrics_need_no_token_and_are_not_written_down() -> None:
    async with opened() as office:
        for path in ("/livez", "/readyz", "/metrics"):
            assert (await office.ask(path, None)).status == 200
        assert await office.audit() == []


@asyncio_test
async def test_whoever_tries_in_vain_again_and_again_is_not_heard_for_a_while() -> None:
    store = TroubledStore(await memory_store())
    async with opened(store.store) as office:
        for _ in range(TRIES_MAX):
            assert (await office.ask("/api/vaults", make().text)).status == 401
        looked = store.calls.count("admin_tokens")
        answer = await office.ask("/api/vaults")
        assert (answer.status, answer.headers["retry-after"]) == (429, "60")
        assert store.calls.count("admin_tokens") == looked
        assert (await office.ask("/livez", None)).status == 200
        assert (await office.audit())[-1] == ("", "GET /api/vaults", "refused: too many tries")
        office.now += TRIES_SECONDS
        assert (await office.ask("/api/vaults")).status == 200
        assert (await office.audit())[-1] == ("ops", "GET /api/vaults", "allowed")


@asyncio_test
async def test_what_cannot_be_written_down_is_not_told() -> None:
    store = TroubledStore(await memory_store())
    async with opened(store.store) as office:
        await a_vault(office)
        for call in ("add_audit", "admin_tokens"):
            store.expect(call, Mishap(StoreDownError("The database cannot be reached now.")))
            answer = await office.ask("/api/vaults")
            assert answer.status == 503
            assert b"vault" not in answer.body
        assert (await office.ask("/api/vaults")).status == 200


@asyncio_test
async def test_a_relay_without_a_database_yet_says_so() -> None:
    server = ControlServer(control_app(Metrics(), list), "127.0.0.1", 0)
    async with running() as relay:
        office = Office(relay, await memory_store(), await server.start())
        assert (await office.ask("/api/vaults")).status == 503
        await server.stop()


@asyncio_test
async def test_addresses_whose_tries_are_counted_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "ADDRESSES_MAX", 3)
    made = guard.Guard(control_app(Metrics(), list), lambda: None)
    for number in range(10):
        made._count(f"10.0.0.{number}")
    assert len(made._tries) == 3


@asyncio_test
async def test_whatever_is_not_answered_is_said_in_one_form() -> None:
    async with opened() as office:
        asked = [
            ("/api/vaults?after=rubbish", "GET", 400),
            ("/api/vaults/x", "GET", 403),
            ("/api/records", "GET", 404),
            ("/api/", "GET", 404),
            ("/api/vaults", "POST", 405),
            ("/api/vaults/x", "DELETE", 405),
        ]
        for path, method, status in asked:
            answer = await office.ask(path, method=method)
            assert (answer.status, answer.headers["content-type"]) == (status, "application/json"), path
            assert answer.headers["cache-control"] == "no-store"
            told = json.loads(answer.body)
            assert set(told) == {"error"} and told["error"].endswith("."), told
        assert set(answer.headers["allow"].split(", ")) == {"get", "head"}
        refused = await office.ask("/api/vaults", token=None)
        assert (refused.status, set(json.loads(refused.body))) == (401, {"error"})


# --- S21


@asyncio_test
async def test_s21_what_is_in_a_vault_is_shown_to_no_admin_token_and_asking_is_written_down() -> None:
    async with opened() as office:
        vault = await a_vault(office)
        paths = [f"/api/vaults/{vault}", f"/api/vaults/{vault}/streams", f"/api/vaults/{vault}/streams/{TODOS.hex()}/1"]
        for path in paths:
            assert (await office.ask(path)).status == 403
        assert (await office.ask("/api/records")).status == 404
        assert (await office.ask("/api/vaults", method="POST")).status == 405
        assert (await office.ask(paths[0], method="DELETE")).status == 405
        assert await office.audit() == [
            *[("ops", f"GET {path}", "denied: forbidden") for path in paths],
            ("ops", "GET /api/records", "denied: not found"),
            ("ops", "POST /api/vaults", "denied: method not allowed"),
            ("ops", f"DELETE {paths[0]}", "denied: method not allowed"),
        ]


@asyncio_test
async def test_s21_an_admin_token_is_worth_nothing_on_the_data_port_and_showing_it_is_written_down() -> None:
    async with opened() as office:
        await a_vault(office)
        token = office.token.text.encode()
        upgrades = [
            REQUEST + b"Authorization: Bearer " + token + b"\r\n\r\n",
            REQUEST + b"Cookie: session=" + token + b"\r\n\r\n",
            REQUEST.replace(b"GET /", b"GET /?token=" + token, 1) + b"\r\n",
            b"GET /livez HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + token + b"\r\n\r\n",
            b"GET /api/vaults HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + token + b"\r\n\r\n",
        ]
        for upgrade in upgrades:
            async with await Stranger.dial(office.relay.port) as stranger:
                stranger.send(upgrade)
                answer = await stranger.rest()
                assert answer.startswith(b"HTTP/1.1 403")
                assert b"worth nothing here" in answer
        assert await office.audit() == [("ops", "data port: a request", "refused: it is the data port")] * len(upgrades)


@asyncio_test
async def test_s21_a_login_that_shows_an_admin_token_is_refused_and_written_down() -> None:
    async with opened() as office, await Stranger.dial(office.relay.port) as stranger:
        hello = codec.decode(HELLO)
        assert isinstance(hello, Hello)
        stranger.send(REQUEST + b"\r\n" + frame(BINARY, codec.encode(replace(hello, agent=office.token.text))))
        await stranger.response()
        assert await stranger.closed() == CloseCode.LOGIN_REFUSED
        assert await office.audit() == [("ops", "data port: a login", "refused: it is the data port")]


@asyncio_test
async def test_s21_a_device_whose_key_is_made_of_an_admin_token_is_a_stranger_like_any_other() -> None:
    async with opened() as office:
        vault = VaultId(bytes.fromhex(await a_vault(office)))
        secret = base64.urlsafe_b64decode(office.token.text.removeprefix(PREFIX) + "=")
        for seed in (secret, office.token.hash):
            admin = Identity(int.from_bytes(seed, "big"))
            async with await Device.open(office.relay.port, admin) as device:
                await device.subscribe_raw(vault, MEMBERSHIP, TODOS)
                assert (await device.until(Fault)).code is FaultCode.NO_SUCH_VAULT


# --- what strangers ask


@asyncio_test
async def test_a_flood_of_tokens_costs_some_rows_and_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditing, "WAITING_MAX", 3)
    store = TroubledStore(await memory_store())
    audit = Audit(store.store, lambda: 5.0)
    for number in range(10):
        audit.note(None, "127.0.0.1", f"GET /{number}", "refused: no token")
    store.expect("add_audit", Mishap(StoreDownError("The database cannot be reached now.")))
    with pytest.raises(StoreDownError):
        await audit.flush()
    await audit.flush()
    await audit.flush()
    assert [row.asked for row in await store.store.audit(99)] == ["7 more like these", "GET /2", "GET /1", "GET /0"]
    assert store.calls.count("add_audit") == 2
