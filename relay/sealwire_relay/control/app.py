"""What the control port answers, as a Starlette application."""

import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Final, TypeAlias

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from sealwire_protocol.ids import VaultId
from sealwire_relay.control.guard import Desk, Guard, refusal
from sealwire_relay.metrics import CONTENT_TYPE, Metrics
from sealwire_relay.quota import listed
from sealwire_relay.settings import Settings

VAULTS_PAGE: Final = 500
"""Vaults in one answer, some 80 kB: a look at the heads of each."""

Reasons: TypeAlias = Callable[[], Sequence[str]]
"""Why the relay does not serve devices now, one sentence each; none of them: it does."""


class Readiness(msgspec.Struct, frozen=True):
    """The body of `/readyz`."""

    ready: bool
    reasons: list[str]


class Vaults(msgspec.Struct, frozen=True):
    """The body of `/api/vaults`, each as ListedVault has it. `next`: what to ask after for the rest, if any is left."""

    vaults: list[dict[str, object]]
    next: str | None


def control_app(
    metrics: Metrics,
    reasons: Reasons,
    desk: Callable[[], Desk | None] = lambda: None,
    settings: Settings | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Starlette:
    """`/livez`, `/readyz` and `/metrics`, for whoever can reach the port; nothing of it waits for anything. And `/api`,
    for who shows an admin token: see `Guard`, which `desk` is for.

    `/livez` is 200 as long as the process answers at all: what fails it should be restarted. `/readyz` is 200, or
    503 with the reasons: what fails it should get no devices sent.
    """
    quota = (settings or Settings()).quota_bytes

    async def livez(request: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def readyz(request: Request) -> Response:
        why = list(reasons())
        body = msgspec.json.encode(Readiness(not why, why))
        return Response(body, 503 if why else 200, {"cache-control": "no-store"}, "application/json")

    async def metrics_text(request: Request) -> Response:
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE, "cache-control": "no-store"})

    return Starlette(
        routes=[
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/metrics", metrics_text),
            Mount("/api", Guard(_admin_app(desk, quota), desk, clock)),
        ]
    )


def _admin_app(desk: Callable[[], Desk | None], quota: int) -> Starlette:
    """What those are answered who have shown a token. All of it is numbers: of contents there is no route."""

    async def vaults(request: Request) -> Response:
        found = desk()
        assert found is not None
        after = request.query_params.get("after")
        try:
            place = None if after is None else VaultId(bytes.fromhex(after))
        except ValueError:
            return refusal(HTTPStatus.BAD_REQUEST, "`after` is a vault's id in hex.")
        page = [listed(each, quota) for each in await found.store.vaults(place, VAULTS_PAGE)]
        last = page[-1].vault if len(page) == VAULTS_PAGE else None
        body = Vaults([each._asdict() for each in page], last)
        return Response(msgspec.json.encode(body), 200, {"cache-control": "no-store"}, "application/json")

    async def contents(request: Request) -> Response:
        return refusal(HTTPStatus.FORBIDDEN, "What is in a vault is shown to nobody here: the relay cannot read it.")

    async def not_so(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return refusal(error.status_code, f"{error.detail}: there is only `GET /api/vaults`.", error.headers)

    routes = [Route("/vaults", vaults), Route("/vaults/{rest:path}", contents)]
    return Starlette(routes=routes, exception_handlers={HTTPException: not_so})
