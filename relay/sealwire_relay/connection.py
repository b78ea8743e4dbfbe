"""One socket: moves bytes between a transport and a `RelaySession`, and carries out the session's effects.

No task, no timer and no compressor of its own. What is written in one turn of the event loop leaves in one write.
"""

import asyncio
import os
from collections.abc import Iterator
from http import HTTPStatus
from typing import Final, cast

from websockets.frames import Opcode
from websockets.http11 import Request

from sealwire_protocol.errors import Action, CloseCode, FaultCode, RemoteFault
from sealwire_protocol.events import (
    Close,
    Do,
    LoggedIn,
    Lost,
    Noted,
    Opened,
    Pump,
    Received,
    Refuse,
    RelayEffect,
    RelayEvent,
    Resumed,
    Send,
    Stalled,
    Stop,
)
from sealwire_protocol.ids import NONCE_BYTES, DeviceKey
from sealwire_protocol.messages import NO_VAULT
from sealwire_protocol.relay_session import RelaySession, RelayState
from sealwire_relay.admintokens import found_in
from sealwire_relay.forwarded import proxy_header
from sealwire_relay.frames import PING_FRAME, FrameReader, binary_frame, binary_header, close_frame, pong_frame
from sealwire_relay.opening import Opening, end_of_request, refusal
from sealwire_relay.peer import Host
from sealwire_relay.tls import TlsTransport

CLOSE_SECONDS: Final = 2.0
"""After a close frame: how long the peer has to take it and to hang up, before the socket is aborted."""

LOGIN_BYTES_MAX: Final = 4_096
"""All that a peer may send from opening a WebSocket until it is known: HELLO and PROVE have some 1,200 bytes each. So
strangers make the relay hold no more, nor look at a flood of tiny frames, which cost it half a microsecond a byte."""

SLICE_BYTES: Final = 16_384
"""What is carried out of one socket before the others have their turn: a quarter of a millisecond of work. What came
in beyond it waits, and nothing more is read of that socket meanwhile. Of all sockets on which something waits, one has
its slice in each turn of the event loop, so that whoever says little waits for one slice at most."""

FRAME_BYTES: Final = 128
"""What any frame counts for in a slice beside its bytes: the work that it makes even if it says nothing."""

MESSAGE_BYTES: Final = 2_048
"""What a message counts for beside that."""

JOINED_BYTES_MAX: Final = 16_384
"""Messages up to here are copied to leave in one piece with others, which costs less than to send more pieces. Larger
ones are not: a page that thousands of devices are sent is in memory once, not once for each of them."""

STALLED_BYTES: Final = 16_384
"""Bytes that the kernel would not take at which a device counts as stalled: it is sent nothing more of its streams
until three quarters of them have gone. Thousands of small frames, each kept for itself, would cost megabytes."""

ADMIN_TOKENS: Final = "an admin token is for the control port, and worth nothing here: revoke it, since it was shown"
"""What is said to whoever shows one."""

STOPPING: Final = "the relay is stopping; come back"
"""What devices are told that are sent away then."""


class Connection(asyncio.Protocol):
    """One device's socket, from accept to close. Made by the gateway for every accepted connection."""

    __slots__ = (
        "_begun",
        "_closing",
        "_fd",
        "_heard",
        "_held",
        "_host",
        "_incoming",
        "_leaving",
        "_login_by",
        "_out",
        "_queued",
        "_reader",
        "_request",
        "_strange",
        "_tls",
        "_told",
        "_transport",
        "_unproxied",
        "_work",
        "session",
        "site",
    )

    def __init__(self, host: Host) -> None:
        self._host = host
        self._transport: asyncio.Transport | None = None
        self._request = b""
        self._reader: FrameReader | None = None
        self._out: bytes | list[bytes] | None = None
        self._fd = -1
        """The socket that may be written to past the transport while nothing waits there; -1: there is none."""
        self._queued = False
        """Something was left to the transport, and may still wait there."""
        self._heard = self._begun = 0.0
        self._login_by: float | None = None
        self._closing = self._held = self._leaving = False
        self._incoming: Iterator[tuple[Opcode, bytes]] | None = None
        """What has been read, and is carried out when the others have had their turn."""
        self._work: Iterator[None] | None = None
        """What is left of a large push that is being admitted, before the rest of `_incoming`."""
        self._strange = 0
        """Bytes that came before it was known who sends them."""
        self._tls: TlsTransport | None = None
        self._told = ""
        self._unproxied = host.proxies.header == "proxy-protocol"
        self.site = ""
        """As what the gateway counts it."""
        self.session = RelaySession(host.origins, os.urandom(NONCE_BYTES), host.verify, host.granted)

    @property
    def device(self) -> DeviceKey | None:
        """The device that has logged in here, if any has."""
        return self.session.device

    @property
    def address(self) -> str:
        """From where the device has connected: what a trusted proxy has told, else the other end of the socket."""
        if self._told or self._transport is None:
            return self._told
        return str((self._transport.get_extra_info("peername") or ("",))[0])

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open; the gateway decides whether it may stay."""
        # uvloop's transports have the methods of asyncio.Transport, but do not descend from it.
        self._transport = opened = cast(asyncio.Transport, transport)
        opened.set_write_buffer_limits(STALLED_BYTES)
        if (sock := opened.get_extra_info("socket")) is not None:
            self._fd = sock.fileno()
        self._heard = self._begun = asyncio.get_running_loop().time()
        self._login_by = self._heard + self._host.settings.login_seconds
        self._host.accepted(self)
        if not self._unproxied:
            self._encrypt()

    def data_received(self, data: bytes) -> None:
        """Bytes came in. At the end they are thrown away, so that the peer can still read why."""
        if self._closing or self._leaving:
            return
        self._heard = asyncio.get_running_loop().time()
        size = len(data)
        try:
            if self._unproxied:
                data = self._introduced(data)
            if self._tls is not None and data:
                data = self._tls.receive(data)
            if not data:
                pass
            elif self._reader is None:
                self._shake_hands(data)
            else:
                self._read(data)
        except RemoteFault as fault:
            self._fail(fault)
        if (size > SLICE_BYTES or self._incoming is not None) and self._transport is not None and not self._closing:
            # uvloop reads 250,000 bytes at once, and a socket that is never empty 32 times before it looks at another.
            self._transport.pause_reading()
            self._host.turn_soon(self)

    def pause_writing(self) -> None:
        """The peer does not read: its streams wait for it in storage."""
        self.handle(Stalled())

    def resume_writing(self) -> None:
        """The peer has read most of what waited for it."""
        self.handle(Resumed())

    def connection_lost(self, error: Exception | None) -> None:
        """The socket is gone."""
        # The event loop closes the socket after this: until here the descriptor is nobody else's.
        self._transport = None
        self._fd = -1
        self._closing = True
        self._out = None
        self._request = b""
        self._reader = self._incoming = self._work = None
        self.session.handle(Lost())
        self._host.lost(self)

    # --- coming in

    def _fail(self, fault: RemoteFault) -> None:
        if self._reader is None:
            self._host.metrics.closes.labels("malformed").inc()
        self.close(fault.code, str(fault))

    def _introduced(self, data: bytes) -> bytes:
        """What follows the PROXY header that a trusted proxy begins with; nothing while that is not whole."""
        self._request += data
        told = proxy_header(self._request)
        if told is None:
            return b""
        rest, self._request = self._request[told.size :], b""
        self._unproxied = False
        if told.address is not None and not self._came_from(told.address):
            self.abort()
            return b""
        self._encrypt()
        return rest

    def _came_from(self, address: str) -> bool:
        self._told = address
        return self._host.came_from(self, address)

    def _encrypt(self) -> None:
        """From here on it is TLS, if the relay has a certificate."""
        certificate, transport = self._host.certificate, self._transport
        if certificate is not None and transport is not None and not self._closing:
            self._transport = self._tls = TlsTransport(transport, certificate.context)
            self._fd = -1

    def _shake_hands(self, data: bytes) -> None:
        searched = len(self._request)
        self._request += data
        try:
            end = end_of_request(self._request, searched)
        except ValueError:
            self._end(refusal(HTTPStatus.BAD_REQUEST))
            return
        if end is not None:
            head, rest, self._request = self._request[:end], self._request[end:], b""
            self._answer_request(head, rest)

    def _answer_request(self, head: bytes, rest: bytes) -> None:
        opening = Opening(head)
        if opening.request is not None:
            if (why := self._forwarded(opening.request)) is not None:
                self._end(refusal(HTTPStatus.SERVICE_UNAVAILABLE, why))
                return
            if self._misused(head, "data port: a request"):
                self._end(refusal(HTTPStatus.FORBIDDEN, ADMIN_TOKENS))
                return
        answer, opens = opening.answer()
        if not opens:
            self._end(answer)
            return
        self._reader = FrameReader(LOGIN_BYTES_MAX)
        self.send_frame(answer)
        self.handle(Opened(self._heard))
        if rest:
            self._read(rest)

    def _forwarded(self, request: Request) -> str | None:
        """Find out for whom a trusted proxy has made a request. Returns why it is not answered; None: it is."""
        proxies, near = self._host.proxies, self.address
        if proxies.header == "proxy-protocol" or not proxies.trusts(near):
            return None
        try:
            client = proxies.client(near, request.headers.get_all(proxies.header))
        except RemoteFault as fault:
            self._host.metrics.closes.labels("malformed").inc()
            return str(fault)
        return None if client == near or self._came_from(client) else "too many connections come from your address"

    def _read(self, data: bytes) -> None:
        reader = self._reader
        if reader is None:
            return
        if self.device is None:
            self._strange += len(data)
            if self._strange > LOGIN_BYTES_MAX:
                raise RemoteFault(f"a login has no more than {LOGIN_BYTES_MAX} bytes", CloseCode.TOO_LARGE)
        if not reader.incomplete:
            self._begun = self._heard
        self._incoming = reader.feed(data)
        if len(data) <= SLICE_BYTES:
            self._take_slice()

    def _take_slice(self) -> None:
        """Carry out what has come in, up to a slice; what is left stays in `_incoming`. Raises RemoteFault."""
        ping: bytes | None = None
        session, heard, size = self.session, self._heard, 0
        for opcode, payload in self._incoming or ():
            if opcode is Opcode.BINARY:
                self._begun = heard  # a ping amid a message does not finish it
                if session.device is None and self._misused(payload, "data port: a login"):
                    self.handle(Stop(CloseCode.LOGIN_REFUSED, ADMIN_TOKENS))
                    return
                size += MESSAGE_BYTES
                self.handle(Received(payload, heard))
            elif opcode is Opcode.PING:
                ping = payload
            elif opcode is Opcode.CLOSE:
                self._end(close_frame(CloseCode.NORMAL, ""))
            if self._closing:
                return
            size += FRAME_BYTES + len(payload)
            if size >= SLICE_BYTES or self._held or self._work is not None:
                break
        else:
            self._incoming = None
        if ping is not None:
            # RFC 6455 5.5.3: of several pings the last one may be answered alone, so a flood costs one pong a slice.
            self.send_frame(pong_frame(ping))

    def _misused(self, data: bytes, asked: str) -> bool:
        """Whether an admin token is shown: it is worth nothing here, and that somebody tried is written down."""
        token = found_in(data)
        if token is None:
            return False
        self._host.misused(token, self.address, asked)
        return True

    def on_turn(self) -> None:
        """The others have had their turn: carry out more of what has come in, or read on."""
        transport = self._transport
        if transport is None or transport.is_closing() or self._held:
            return  # `go_on` asks for another turn
        if self._closing:
            self._work = None
        elif self._work is not None:
            if next(self._work, self) is self:
                self._work = None
        elif self._incoming is not None and not self._leaving:
            try:
                self._take_slice()
            except RemoteFault as fault:
                self._fail(fault)
        if self._closing or self._leaving:
            self._incoming = None
        if self._work is not None or self._incoming is not None:
            self._host.turn_soon(self)
        else:
            transport.resume_reading()

    def hold_back(self) -> None:
        """Read nothing more until `go_on`: what the peer sends waits in the kernel, then at the peer."""
        if self._transport is not None and not self._closing:
            self._held = True
            self._transport.pause_reading()

    def go_on(self) -> None:
        """Read again. The silence meanwhile was not the peer's."""
        if self._held:
            self._held = False
            self._heard = self._begun = asyncio.get_running_loop().time()
            self._host.turn_soon(self)

    # --- going out

    def handle(self, event: RelayEvent) -> None:
        """Give an event to the session and carry out its effects. Late events after the end do nothing."""
        if self.session.state is RelayState.CLOSED:
            return
        effects = self.session.handle(event)
        if isinstance(event, Refuse):
            self._host.metrics.faults.labels(event.code.name.lower()).inc()
            if event.code is FaultCode.NO_SUCH_VAULT and event.vault not in {of for of, _ in self.session.listeners}:
                self._host.left(self, event.vault)
        self.carry_out(effects)
        if self._leaving and self.session.has_answered:
            self.close(CloseCode.RESTARTING, STOPPING)

    def carry_out(self, effects: list[RelayEffect]) -> None:
        """Carry out a session's effects in order."""
        for effect in effects:
            if isinstance(effect, Send):
                self._send(effect.data)
            elif isinstance(effect, Do):
                self._work = self._host.do(self, effect.message) or self._work
            elif isinstance(effect, Pump):
                self._host.pump(self)
            elif isinstance(effect, Noted):
                self._host.noted(self, effect.positions)
            elif isinstance(effect, LoggedIn):
                self._login_by = None
                if self._reader is not None:
                    self._reader.bytes_max = self._host.granted.frame_bytes
                self._host.logged_in(self)
            elif isinstance(effect, Close):
                self._host.metrics.closes.labels(str(int(effect.code))).inc()
                if self.device is None:
                    self._host.metrics.login_failures.inc()
                self._end(close_frame(effect.code, effect.reason))

    def _send(self, payload: bytes) -> None:
        if len(payload) <= JOINED_BYTES_MAX:
            self.send_frame(binary_frame(payload))
        else:
            self.send_frame(binary_header(len(payload)))
            self.send_frame(payload)

    def send_frame(self, frame: bytes) -> None:
        """Send an encoded WebSocket frame. What is sent in one turn of the loop is joined into one write."""
        if self._closing:
            return
        out = self._out
        if out is None:
            # Nearly always it is one frame, which thousands of devices are sent in one turn: it takes no list.
            self._out = frame
            written = self._host.written
            if not written:
                self._host.flush_soon()
            written.append(self)
        elif isinstance(out, list):
            out.append(frame)
        else:
            self._out = [out, frame]

    def flush(self) -> None:
        """Hand what has gathered to the transport; abort a peer that lets too much pile up."""
        out, transport = self._out, self._transport
        if transport is None or out is None:
            return
        self._out = None
        if isinstance(out, list):
            if max(map(len, out)) > JOINED_BYTES_MAX:
                self._queued = True
                transport.writelines(out)
                self._give_up_if_unread(transport)
                return
            out = b"".join(out)
        if self._fd >= 0 and not (self._queued and transport.get_write_buffer_size()):
            # The transport would do the same, and touch much memory for it: a tenth of what a delivery costs.
            try:
                sent = os.write(self._fd, out)
            except OSError:
                sent = 0  # the socket is full; or broken, which the transport is to find out
            if sent == len(out):
                self._queued = False
                return
            out = out[sent:]
        self._queued = True
        transport.write(out)
        self._give_up_if_unread(transport)

    def _give_up_if_unread(self, transport: asyncio.Transport) -> None:
        if transport.get_write_buffer_size() > self._host.settings.unsent_bytes_max:
            self._host.metrics.closes.labels("unread").inc()
            self.abort()

    def _end(self, last_words: bytes) -> None:
        """Say the last words and half-close: were the socket closed while bytes of the peer's are unread, it would
        be reset and the last words be lost. Who does not hang up in time is cut off."""
        transport = self._transport
        if self._closing or transport is None:
            return
        self.send_frame(last_words)
        self._closing = True
        self.go_on()  # what comes is thrown away now, and the peer's hanging up is seen
        self.session.handle(Lost())
        self._reader = None
        self.flush()
        if transport.is_closing():
            return
        try:
            transport.write_eof()
        except OSError:
            transport.abort()  # the peer has reset the connection, which the loop has not seen yet
            return
        asyncio.get_running_loop().call_later(CLOSE_SECONDS, transport.abort)

    def close(self, code: CloseCode, reason: str) -> None:
        """End the connection from the relay's side."""
        if self._reader is None:
            self._end(b"")
        else:
            self.handle(Stop(code, reason))

    def leave(self, retry_ms: int) -> None:
        """The relay stops: ask the device to come back after so long, take nothing more of it, and close the connection
        as soon as what it has pushed is answered."""
        if self.session.state is not RelayState.READY:
            self.close(CloseCode.RESTARTING, STOPPING)
            return
        self._leaving = True
        self.handle(Refuse(FaultCode.OVERLOADED, Action.RETRY, STOPPING, 0, NO_VAULT, None, retry_ms))

    # --- time

    def on_time(self, now: float) -> float | None:
        """Called by the wheel: deadlines, pings, silence."""
        if self._closing:
            return None
        settings = self._host.settings
        if self._login_by is not None:
            if now >= self._login_by:
                self.close(CloseCode.TOO_SLOW, "the login was not finished in time")
                return None
            return self._login_by
        if self._held:
            self.send_frame(PING_FRAME)  # lest the peer takes the relay for gone
            return now + settings.ping_seconds
        silent = now - self._heard
        if self._reader is not None and self._reader.incomplete and now - self._begun >= settings.idle_seconds:
            self.close(CloseCode.TOO_SLOW, "a message was begun and not finished in time")
            return None
        if silent >= settings.idle_seconds:
            self.close(CloseCode.IDLE, "nothing was heard for too long")
            return None
        if silent >= settings.ping_seconds:
            self.send_frame(PING_FRAME)
        return now + settings.ping_seconds - (silent if silent < settings.ping_seconds else 0.0)

    def abort(self) -> None:
        """Cut the socket at once."""
        self._out = None
        if self._transport is not None:
            self._closing = True
            self._transport.abort()
