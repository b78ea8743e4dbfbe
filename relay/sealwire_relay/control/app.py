"""What the control port answers, as a Starlette application."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from sealwire_relay.metrics import CONTENT_TYPE, Metrics

Reasons: TypeAlias = Callable[[], Sequence[str]]
"""Why the relay does not serve devices now, one sentence each; none of them: it does."""


class Readiness(msgspec.Struct, frozen=True):
    """The body of `/readyz`."""

    ready: bool
    reasons: list[str]


def control_app(metrics: Metrics, reasons: Reasons) -> Starlette:
    """`/livez`, `/readyz` and `/metrics`; nothing of it waits for anything.

    `/livez` is 200 as long as the process answers at all: what fails it should be restarted. `/readyz` is 200, or
    503 with the reasons: what fails it should get no devices sent.
    """

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
        ]
    )
