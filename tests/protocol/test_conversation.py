"""Both ends wired through a fake link: whatever is cut, lost or repeated, both stand where they should in the end."""

import pytest

from sealwire_protocol.codec import encode
from sealwire_protocol.errors import Action, CloseCode, FaultCode
from sealwire_protocol.events import Received
from sealwire_protocol.ids import START, Position
from sealwire_protocol.limits import ACK_DELAY_SECONDS, CREDIT_BYTES_MIN, Limits
from sealwire_protocol.messages import Ack, Fault, Pushed, Subscribed
from sealwire_protocol.segment import read_segment
from tests.protocol.examples import OTHER, STREAM, records
from tests.support.link import VAULT, ConnectionPair, Replica, Store, batch

STREAMS = (STREAM, OTHER)


def writer(batches: int = 3, each: int = 2) -> Replica:
    """A device that has batches to send, alternating between two streams."""
    pushes = [batch(n, STREAMS[n % 2], records(100 * n, each, units=1)) for n in range(1, batches + 1)]
    return Replica(1, STREAMS, pushes)


def log_of(store: Store) -> dict[bytes, list[tuple[int, bytes]]]:
    """What the relay holds: (seq, tag) by stream."""
    return {
        stream: [
            (placed.seq, placed.record.tag)
            for prev, _, body in store.logs[VAULT, stream].segments
            for placed in read_segment(body, prev)
        ]
        for stream in STREAMS
        if (VAULT, stream) in store.logs
    }


def settle(store: Store, replica: Replica) -> ConnectionPair:
    """One more connection that nothing cuts."""
    connection = ConnectionPair(store, replica)
    assert connection.run()
    return connection


def assert_equal(store: Store, *replicas: Replica) -> None:
    """Every replica holds what the relay holds, once and in order, and has nothing left to send."""
    for replica in replicas:
        assert {stream: tags for stream, tags in replica.tags.items() if tags} == log_of(store)
        assert replica.outbox == [] and replica.lost == []


def test_a_conversation_that_nothing_disturbs() -> None:
    store, device = Store(), writer()
    connection = settle(store, device)
    assert_equal(store, device)
    assert sorted(device.verdicts) == [1, 2, 3] and connection.closes == []


def test_cut_at_every_byte_a_device_loses_nothing_and_repeats_nothing() -> None:
    """Login, subscription, pushes, verdicts, deliveries and acknowledgements: the link breaks inside each of them."""
    groups = [group for push in writer(2, 1).outbox for group in push.groups]
    expected = {placed.record.tag for group in groups for placed in read_segment(group.records, 0)}
    for budget in range(settle(Store(), writer(2, 1)).passed):
        store, device = Store(), writer(2, 1)
        assert not ConnectionPair(store, device, budget).run(), budget
        settle(store, device)
        assert_equal(store, device)
        held = [tag for tags in log_of(store).values() for _, tag in tags]
        assert set(held) == expected and len(held) == len(expected), budget


def test_cut_again_and_again_it_still_gets_there() -> None:
    """Every connection lives a little longer than a login and a subscription take, and then breaks."""
    store, device = Store(), writer(batches=12)
    shortest = settle(Store(), writer(batches=1)).passed
    for cut in range(40):
        ConnectionPair(store, device, shortest + 37 * (cut % 5)).run()
    settle(store, device)
    assert_equal(store, device)


def test_a_reader_that_is_cut_at_every_byte_goes_on_from_its_durable_position() -> None:
    store = Store()
    settle(store, writer(batches=4, each=1))
    whole = settle(store, Replica(2, STREAMS)).passed
    for budget in range(0, whole, 3):
        reader = Replica(2, STREAMS)
        ConnectionPair(store, reader, budget).run()
        before = {stream: list(tags) for stream, tags in reader.tags.items()}
        settle(store, reader)
        assert_equal(store, reader)
        assert all(reader.tags[stream][: len(tags)] == tags for stream, tags in before.items())


def test_a_reader_sees_live_edits_of_another() -> None:
    store, device, reader = Store(), writer(batches=6), Replica(2, STREAMS)
    listening = settle(store, reader)
    pushing = ConnectionPair(store, device)
    assert pushing.run() and listening.run()
    assert_equal(store, device, reader)


def test_a_stream_that_is_absent_is_followed_once_it_is_created() -> None:
    store, reader = Store(), Replica(2, STREAMS)
    listening = settle(store, reader)
    assert reader.positions == dict.fromkeys(STREAMS, START)
    settle(store, writer(batches=1))
    listening.run()
    assert_equal(store, reader)
    assert listening.open


# --- duplicates, gaps


def test_what_is_delivered_twice_is_applied_once() -> None:
    store, device = Store(), writer()
    connection = ConnectionPair(store, device)

    def double() -> None:
        frames = [data for data in connection.to_device if data[0] == 0xC4]
        if frames and not seen:
            seen.append(frames[0])
            connection.to_device.append(frames[0])
            connection.relay.credit -= len(frames[0])

    seen: list[bytes] = []
    connection.run(double)
    assert seen and connection.open
    assert_equal(store, device)


def test_a_frame_that_was_lost_in_the_relay_is_found_missing_and_fetched() -> None:
    store, reader = Store(), Replica(2, STREAMS)
    listening = settle(store, reader)
    store.append((VAULT, STREAM), records(1, 2))
    listening.run()
    store.append((VAULT, STREAM), records(3, 2))
    lost = listening.to_device.pop()
    listening.relay.credit += len(lost)
    store.append((VAULT, STREAM), records(5, 2))
    listening.run()
    assert_equal(store, reader)


# --- credit


def test_out_of_credit_a_reader_lags_and_is_pumped_when_it_acknowledges() -> None:
    store, reader = Store(), Replica(2, (STREAM,))
    listening = ConnectionPair(store, reader, limits=Limits(credit_bytes=CREDIT_BYTES_MIN))
    listening.hold_applies = True
    listening.run()
    for first in range(1, 200, 10):
        store.append((VAULT, STREAM), records(first, 10, units=400))
    listening.run()
    listener = listening.relay.listeners[VAULT, STREAM]
    assert (listener.live, listening.relay.lagging()) == (False, None) and 0 < listener.cursor < 200
    assert len(listening.to_device) == 0
    listening.hold_applies = False
    for _ in range(20):
        listening.apply_held()
        listening.tick(1.0)
        listening.run()
    assert (listener.live, listener.cursor) == (True, 200)
    assert_equal(store, reader)


def test_all_credit_comes_back_whatever_became_of_the_frames() -> None:
    """Skipped, repeated, of another term, of a stream given up: each gives its bytes back."""
    store, reader = Store(), Replica(2, STREAMS)
    listening = settle(store, reader)
    for number, stream in enumerate(STREAMS * 3, 1):
        store.append((VAULT, stream), records(number, 1))
    store.new_term()
    store.append((VAULT, STREAM), records(50, 3))
    listening.run()
    listening.tick(ACK_DELAY_SECONDS)
    listening.run()
    listening.tick(ACK_DELAY_SECONDS)
    listening.run()
    assert listening.relay.credit == listening.relay.limits.credit_bytes
    assert_equal(store, reader)


def test_more_credit_than_was_used_ends_the_connection_for_good() -> None:
    connection = settle(Store(), Replica(2, STREAMS))
    connection.tell_relay(Received(encode(Ack(1, ())), connection.now))
    [close] = connection.closes
    assert close.code is CloseCode.PROTOCOL_ERROR and not close.come_back


# --- windows, terms


def test_an_outbox_longer_than_the_window_is_sent_within_it() -> None:
    store, device = Store(), writer(batches=30)
    connection = ConnectionPair(store, device)

    def more() -> None:
        assert len(connection.client.outstanding(VAULT)) <= connection.client.limits.push_window
        connection.send_outbox()

    connection.run(more)
    assert connection.open
    assert_equal(store, device)


@pytest.mark.parametrize("at", range(40))
def test_a_term_that_changes_while_pushes_are_on_their_way_loses_none(at: int) -> None:
    store, device, steps = Store(), writer(batches=10), [0]
    connection = ConnectionPair(store, device)

    def disturb() -> None:
        steps[0] += 1
        if steps[0] == at or steps[0] == at + 3:
            store.new_term()
        connection.send_outbox()

    connection.run(disturb)
    connection.tick(1.0)
    connection.run(connection.send_outbox)
    assert connection.open, connection.closes
    assert_equal(store, device)
    assert connection.relay.credit <= connection.relay.limits.credit_bytes


def test_a_relay_that_was_restored_is_noticed_and_nothing_is_applied_after_it() -> None:
    store, reader = Store(), Replica(2, (STREAM,))
    listening = settle(store, reader)
    for first in (1, 4, 7):
        store.append((VAULT, STREAM), records(first, 3))
    listening.run()
    assert reader.positions[STREAM].seq == 9
    store.restore((VAULT, STREAM), 6)
    store.append((VAULT, STREAM), records(70, 5))
    listening.run()
    [lost] = reader.lost
    assert lost.stream == STREAM and "ends at 6" in lost.reason
    assert reader.positions[STREAM] == Position(store.logs[VAULT, STREAM].terms[0].term, 9)
    assert len(reader.tags[STREAM]) == 9 and listening.open


def test_a_relay_that_was_restored_to_before_is_noticed_on_the_next_connection_too() -> None:
    store, reader = Store(), Replica(2, (STREAM,))
    connection = settle(store, reader)
    store.append((VAULT, STREAM), records(1, 3))
    connection.run()
    connection.cut()
    store.restore((VAULT, STREAM), 0)
    settle(store, reader)
    assert [lost.stream for lost in reader.lost] == [STREAM]


def test_a_new_term_in_which_nothing_was_lost_changes_nothing() -> None:
    store, reader = Store(), Replica(2, STREAMS)
    listening = settle(store, reader)
    for first in (1, 4):
        store.append((VAULT, STREAM), records(first, 3))
        store.new_term()
        listening.run()
    store.append((VAULT, STREAM), records(9, 1))
    listening.run()
    assert_equal(store, reader)


def test_a_relay_that_cannot_now_is_asked_again_when_its_time_has_come() -> None:
    store, device = Store(), writer(batches=0)
    connection = settle(store, device)
    device.outbox = [batch(1, STREAM, records(1, 1))]
    fault = Fault(0, VAULT, FaultCode.OVERLOADED, Action.RETRY, 2_000, "later")
    connection.relay._void(VAULT)
    connection.tell_client(Received(encode(fault), connection.now))
    connection.send_outbox()
    assert connection.client.deadline == connection.now + 2.0 and not connection.to_relay
    connection.tick(2.0)
    connection.run()
    assert connection.open
    assert isinstance(connection.arrived[-1], Pushed | Subscribed) and connection.client.term_of(VAULT) == store.term
    assert_equal(store, device)
