"""The generator in C, before servers that are a pair of sockets and a script."""

import os
import socket
import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest

from bench.harness.devices import STREAM, Member
from bench.harness.load import NO_COMPILER, compiler
from bench.harness.ours import RECORD_BYTES, SHAPE, UNITS, lane
from bench.harness.traffic import Connection, Lane, Protocol, Reader, Shape, Span, Traffic, traffic
from bench.peers.streams import PAYLOAD, PAYLOAD_BYTES
from sealwire_protocol import codec
from sealwire_protocol.errors import Action, FaultCode, Outcome
from sealwire_protocol.ids import MEMBERSHIP, Author, Position, Term, VaultId
from sealwire_protocol.messages import Ack, Acked, Deliver, Fault, Message, Push, Pushed
from sealwire_relay.frames import binary_frame
from tests.support.device import Identity, group, record

VAULT = VaultId(bytes(range(16)))
TERM = Term(300, bytes(range(8)))
MEMBER = Member(Identity(1), Author(1))
PEERS = Shape(payload=PAYLOAD_BYTES)

pytestmark = pytest.mark.skipif(compiler() is None, reason=NO_COMPILER)


class Server:
    """The other ends of the sockets that the generator is given: each says what it was told to, byte by byte, and keeps
    what it hears."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._ends: list[socket.socket] = []

    def says(self, data: bytes) -> socket.socket:
        """A socket for the generator."""
        ours, theirs = socket.socketpair()
        self._ends.append(theirs)
        self._threads.append(threading.Thread(target=self._say, args=(theirs, data)))
        self._threads[-1].start()
        return ours

    @staticmethod
    def _say(end: socket.socket, data: bytes) -> None:
        for at in range(len(data)):
            end.sendall(data[at : at + 1])

    def heard(self) -> list[bytes]:
        """All that the generator has said, by socket; it has ended."""
        for thread in self._threads:
            thread.join()
        return [b"".join(iter(lambda end=end: end.recv(65_536), b"")) for end in self._ends]  # type: ignore[misc]

    def close(self) -> None:
        for thread in self._threads:
            thread.join()
        for end in self._ends:
            end.close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def run(protocol: Protocol, connections: list[Connection], span: Span, shape: Shape) -> Traffic:
    return traffic(protocol, connections, frozenset(os.sched_getaffinity(0)), span, shape)


def framed(*messages: Message) -> bytes:
    return b"".join(binary_frame(codec.encode(message)) for message in messages)


def unframed(data: bytes) -> list[Message | None]:
    """The messages in masked frames, whose mask is zero."""
    found, at = [], 0
    while at < len(data):
        size, body = data[at + 1] & 0x7F, at + 6
        if size == 126:
            size, body = int.from_bytes(data[at + 2 : at + 4], "big"), at + 8
        found.append(codec.decode(data[body : body + size]))
        at = body + size
    return found


def deliver(prev: int, last: int) -> Deliver:
    segment = group(STREAM, *[record(units=UNITS) for _ in range(last - prev)]).records
    return Deliver(VAULT, STREAM, TERM, 0, 0, 0, 0, prev, last, segment)


def test_a_device_pushes_with_ascending_numbers_and_counts_what_is_answered(server: Server) -> None:
    first, writes = 127, 5
    answers = framed(*(Pushed(VAULT, first + n, Outcome.DONE, (), ()) for n in range(writes)))
    given = lane(VAULT, TERM, first, MEMBER, 2, 3)
    told = run("sealwire", [Connection(server.says(answers), (given,))], Span(writes=writes), SHAPE)
    assert told.answered == writes * 3
    (heard,) = server.heard()
    pushes = [push for push in unframed(heard) if isinstance(push, Push)]
    assert [push.batch for push in pushes] == list(range(first, first + writes))
    assert {(push.vault, push.term, len(push.groups[0].records)) for push in pushes} == {
        (VAULT, TERM, 3 * RECORD_BYTES)
    }


def test_a_refused_push_is_an_error_and_so_is_a_fault(server: Server) -> None:
    given = lane(VAULT, TERM, 1, MEMBER, 1, 1)
    for answer, says in (
        (Pushed(VAULT, 1, Outcome.CLONED, (), ()), "outcome 4"),
        (Fault(0, VAULT, FaultCode.INTERNAL, Action.RETRY, 0, "come back later"), "come back later"),
    ):
        with pytest.raises(RuntimeError, match=says):
            run("sealwire", [Connection(server.says(framed(answer)), (given,))], Span(writes=1), SHAPE)


def test_a_device_counts_records_and_gives_credit_back_with_its_position(server: Server) -> None:
    links = Deliver(VAULT, MEMBERSHIP, TERM, 0, 0, 0, 0, 0, 2, b"links")
    delivers = [deliver(prev, last) for prev, last in pairwise((0, 1, 4, 300))]
    size = sum(len(codec.encode(one)) for one in delivers)
    connection = Connection(server.says(framed(links, *delivers)), (), Reader())
    told = run("sealwire", [connection], Span(until_records=300), SHAPE._replace(credit=size))
    assert told.delivered == told.reader_least == told.reader_most == 300
    (heard,) = server.heard()
    assert unframed(heard) == [Ack(size, (Acked(VAULT, STREAM, Position(TERM, 300)),))]


def test_a_device_that_is_sent_little_gives_credit_back_after_a_time() -> None:
    ours, relay = socket.socketpair()
    heard: list[bytes] = []

    def serve() -> None:
        with relay:
            relay.sendall(framed(deliver(0, 1)))
            heard.append(relay.recv(65_536))
            relay.sendall(framed(deliver(1, 2)))

    serving = threading.Thread(target=serve)
    serving.start()
    shape = SHAPE._replace(credit_s=0.0)
    assert run("sealwire", [Connection(ours, (), Reader())], Span(until_records=2), shape).delivered == 2
    serving.join()
    due = len(codec.encode(deliver(0, 1)))
    assert unframed(heard[0]) == [Ack(due, (Acked(VAULT, STREAM, Position(TERM, 1)),))]


def test_what_was_read_before_the_socket_was_handed_over_counts(server: Server) -> None:
    data = framed(deliver(0, 2), deliver(2, 3))
    connection = Connection(server.says(data[40:]), (), Reader(), b"", data[:40])
    assert run("sealwire", [connection], Span(until_records=3), SHAPE).delivered == 3


def entries(*places: bytes) -> bytes:
    """What Redis answers to an XREAD of one stream."""
    each = b"".join(
        b"*2\r\n$%d\r\n%s\r\n*2\r\n$1\r\nf\r\n$%d\r\n%s\r\n" % (len(place), place, len(PAYLOAD), PAYLOAD)
        for place in places
    )
    return b"*1\r\n*2\r\n$2\r\ns0\r\n*%d\r\n%s" % (len(places), each)


def test_a_reader_of_redis_asks_again_from_the_last_entry_on(server: Server) -> None:
    replies = entries(b"1-0", b"12-3") + b"*-1\r\n" + entries(b"13-0")
    connection = Connection(server.says(replies), (), Reader(b"again ", place=b"0-0"), b"first ")
    assert run("redis", [connection], Span(until_records=3), PEERS).delivered == 3
    (heard,) = server.heard()
    assert heard.startswith(b"first again $4\r\n12-3\r\nagain $4\r\n12-3\r\n")


def test_a_writer_of_redis_counts_answers_and_ends_at_an_error(server: Server) -> None:
    lanes = (Lane(b"", b"write ", 2),)
    assert run("redis", [Connection(server.says(b"$3\r\n1-0\r\n" * 4), lanes)], Span(writes=4), PEERS).answered == 4
    assert server.heard() == [b"write " * 4]
    with pytest.raises(RuntimeError, match="MISCONF no disk"):
        run("redis", [Connection(server.says(b"-MISCONF no disk\r\n"), lanes)], Span(writes=4), PEERS)


def test_a_reader_of_nats_asks_again_after_so_many_and_answers_pings(server: Server) -> None:
    message = b"MSG s 1 $JS.ACK.x %d\r\n%s\r\n" % (len(PAYLOAD), PAYLOAD)
    status = b"HMSG s 1 28 28\r\nNATS/1.0 408 Timeout\r\n\r\n\r\n\r\n\r\n"
    connection = Connection(server.says(message * 2 + b"PING\r\n" + status + message), (), Reader(b"again ", every=2))
    assert run("nats", [connection], Span(until_records=3), PEERS).delivered == 3
    assert server.heard() == [b"again PONG\r\n"]


def test_a_writer_of_nats_ends_when_a_write_is_not_taken(server: Server) -> None:
    lanes = (Lane(b"", b"write ", 1),)
    for answer in (b'{"stream":"S0","seq":1}', b'{"error":{"code":503}}'):
        said = b"MSG i 1 %d\r\n%s\r\n" % (len(answer), answer)
        connections = [Connection(server.says(said), lanes)]
        if b"error" in answer:
            with pytest.raises(RuntimeError, match="503"):
                run("nats", connections, Span(writes=1), PEERS)
        else:
            assert run("nats", connections, Span(writes=1), PEERS).answered == 1


def test_at_a_rate_no_more_writes_wait_than_may() -> None:
    ours, theirs = socket.socketpair()
    waiting: list[int] = []

    def answer() -> None:
        """Each second write, together with the one before, so that there always is one that may not be made yet."""
        while data := theirs.recv(65_536):
            waiting.append(len(data) + (waiting[-1] % 2 if waiting else 0))
            if waiting[-1] == 2:
                theirs.sendall(b"+OK\r\n" * 2)

    thread = threading.Thread(target=answer)
    thread.start()
    told = run("redis", [Connection(ours, (Lane(b"", b"w", 2),))], Span(writes=20, rate=100_000.0), PEERS)
    thread.join()
    theirs.close()
    assert told.answered == 20
    assert set(waiting) <= {1, 2}
