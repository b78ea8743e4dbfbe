"""Who may ask the control port for more than its health: whoever shows an admin token. Everything is written down.

Nothing that stands behind it can tell what is in a vault: the relay has no key. Asking for that is refused by name.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sealwire_relay.admintokens import hash_of, known
from sealwire_relay.auditing import Audit
from sealwire_relay.store.interface import Store, StoreError

TRIES_MAX: Final = 10
"""Requests of one address in vain within TRIES_SECONDS: a program with a wrong token is heard, one that tries them all
is not, and costs no look at the database."""

TRIES_SECONDS: Final = 60.0

ADDRESSES_MAX: Final = 1_024
"""Addresses whose tries are counted, some 200 bytes each; of more the oldest are forgotten."""


class Desk(NamedTuple):
    """What the guard needs of a relay that has started."""

    store: Store
    audit: Audit


class Told(msgspec.Struct, frozen=True):
    """The body of a refusal."""

    error: str


class Guard:
    """Lets those through to an application who show a token that is known, and writes down what they ask.

    `desk` is None while the relay has no database yet. `clock` tells seconds.
    """

    def __init__(
        self, app: ASGIApp, desk: Callable[[], Desk | None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._app, self._desk, self._clock = app, desk, clock
        self._tries: OrderedDict[str, tuple[float, int]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        desk = self._desk()
        if desk is None:
            await refusal(HTTPStatus.SERVICE_UNAVAILABLE, "The relay has no database yet: try again.")(
                scope, receive, send
            )
            return
        try:
            response = await self._refused(desk, request)
            if response is None:
                await self._let_through(desk, scope, receive, send)
                return
        except StoreError:
            response = refusal(HTTPStatus.SERVICE_UNAVAILABLE, "The relay's database does not answer: try again.")
        await response(scope, receive, send)

    async def _refused(self, desk: Desk, request: Request) -> Response | None:
        """Why a request is not let through; None: it is. Raises StoreError."""
        address, asked = _address(request), _asked(request)
        if self._too_many(address):
            desk.audit.note(None, address, asked, "refused: too many tries")
            why = f"Too many requests in vain: wait {TRIES_SECONDS:g} seconds."
            return refusal(HTTPStatus.TOO_MANY_REQUESTS, why, {"retry-after": f"{TRIES_SECONDS:g}"})
        kind, _, text = request.headers.get("authorization", "").partition(" ")
        shown = hash_of(text.strip()) if kind.lower() == "bearer" else None
        token = None if shown is None else known(shown, await desk.store.admin_tokens())
        if token is not None and token.revoked is None:
            request.scope["token"] = shown
            return None
        self._count(address)
        verdict = "refused: no token" if shown is None else "refused: unknown token"
        desk.audit.note(shown, address, asked, verdict if token is None else "refused: revoked token")
        why = "An admin token is needed: `Authorization: Bearer …`, as `sealwire-relay admin token create` prints it."
        return refusal(HTTPStatus.UNAUTHORIZED, why, {"www-authenticate": 'Bearer realm="sealwire"'})

    async def _let_through(self, desk: Desk, scope: Scope, receive: Receive, send: Send) -> None:
        """Write down what comes of it before a byte of that is sent. Raises StoreError, if that was not possible."""
        request = Request(scope)
        address, asked = _address(request), _asked(request)

        async def send_audited(message: Message) -> None:
            if message["type"] == "http.response.start":
                status = HTTPStatus(message["status"])
                verdict = "allowed" if status < HTTPStatus.BAD_REQUEST else f"denied: {status.phrase.lower()}"
                await desk.audit.write(scope["token"], address, asked, verdict)
            await send(message)

        await self._app(scope, receive, send_audited)

    # --- tries

    def _too_many(self, address: str) -> bool:
        since, tries = self._tries.get(address, (0.0, 0))
        if tries and self._clock() - since >= TRIES_SECONDS:
            del self._tries[address]
            return False
        return tries >= TRIES_MAX

    def _count(self, address: str) -> None:
        since, tries = self._tries.get(address, (self._clock(), 0))
        self._tries[address] = since, tries + 1
        while len(self._tries) > ADDRESSES_MAX:
            self._tries.popitem(last=False)


def refusal(status: int, why: str, headers: Mapping[str, str] | None = None) -> Response:
    """Why a request is not answered, in the form in which everything below `/api` says so."""
    body = msgspec.json.encode(Told(why))
    return Response(body, status, {"cache-control": "no-store", **(headers or {})}, "application/json")


def _address(request: Request) -> str:
    return request.client.host if request.client is not None else ""


def _asked(request: Request) -> str:
    return f"{request.method} {request.url.path}"
