"""The HTTP request that opens a WebSocket: found in what comes in, and answered. `websockets` understands it. Pure."""

from http import HTTPStatus
from typing import Final

from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

REQUEST_BYTES_MAX: Final = 16_384
"""The HTTP request that opens a WebSocket: more is not one of our clients."""

RETRY_SECONDS: Final = 5
"""When a device may come back whose address has too many connections, as HTTP tells it: some will be gone by then."""

_END: Final = b"\r\n\r\n"


def end_of_request(data: bytes, searched: int) -> int | None:
    """Where the request ends that `data` begins with; None: it is not whole. `searched`: how many bytes were looked at
    before. Raises ValueError: it is none, or too long."""
    end = data.find(_END, max(0, searched - len(_END)), REQUEST_BYTES_MAX)
    if end >= 0:
        return end + len(_END)
    if len(data) >= REQUEST_BYTES_MAX or not data[:1].isupper():
        raise ValueError("no HTTP request")
    return None


def refusal(status: HTTPStatus, why: str = "a WebSocket is opened here") -> bytes:
    """A whole response that opens nothing."""
    response: Response = ServerProtocol().reject(status, f"{status.phrase}: {why}.\n")
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers["Retry-After"] = str(RETRY_SECONDS)
    return response.serialize()


class Opening:
    """One whole request, `head`. `request`: what it says; None: it is not understood."""

    __slots__ = ("_handshake", "request")

    def __init__(self, head: bytes) -> None:
        self._handshake = ServerProtocol()
        self._handshake.receive_data(head)
        event = next(iter(self._handshake.events_received()), None)
        self.request = event if isinstance(event, Request) else None

    def answer(self) -> tuple[bytes, bool]:
        """What it is answered, and whether the WebSocket is open then."""
        handshake, request = self._handshake, self.request
        if request is None:
            return b"".join(handshake.data_to_send()) or refusal(HTTPStatus.BAD_REQUEST), False
        if request.path == "/livez":
            response = handshake.reject(HTTPStatus.OK, "alive\n")
        else:
            response = handshake.accept(request)
        handshake.send_response(response)
        return b"".join(handshake.data_to_send()), response.status_code == HTTPStatus.SWITCHING_PROTOCOLS
