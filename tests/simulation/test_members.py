"""What is held against the membership log while a run goes on: each promise, broken."""

from sealwire_client import keyring, linkmaking
from sealwire_client.cipher import Secret
from sealwire_client.identity import DeviceIdentity
from sealwire_client.keyring import EpochKey, VaultKeys
from sealwire_protocol.ids import KEY_ID_BYTES, Author, KeyId, StreamId, Tag, Term, VaultId
from sealwire_protocol.links import Role, encode_links
from sealwire_protocol.membership import Membership, verified_before
from sealwire_protocol.messages import Group, Push
from sealwire_protocol.segment import Record, encode_record
from sealwire_relay.store.interface import BatchWrite, KeptOutcome, MemberState, StreamWrite, VaultWrite
from sealwire_relay.store.segments import StoredSegment
from tests.simulation.history import History
from tests.simulation.members import Members

STREAM = StreamId(b"a stream")
TERM = Term(1, b"name of ")
ALICE = DeviceIdentity(Secret(bytes(range(32))))


def log_of(epochs: int) -> tuple[list[bytes], list[VaultKeys]]:
    """The links of a vault of one device that has so many epochs, and its keys after each."""
    raw, keys = linkmaking.new_vault(ALICE, keyring.Names("alice", "home"))
    membership, links, known = Membership(), [raw], [keys]
    membership.apply(raw, verified_before)
    for _ in range(epochs - 1):
        links.append(linkmaking.new_epoch_link(ALICE, membership, known[-1]))
        membership.apply(links[-1], verified_before)
        known.append(keyring.keys_from_log(ALICE, membership))
    return links, known


def segments(links: list[bytes]) -> list[StoredSegment]:
    """As a database keeps them."""
    return [StoredSegment(0, len(links), encode_links(links))]


def record(epoch: int, key_id: KeyId, author: int = 1) -> Record:
    """A sealed record."""
    return Record(Tag(bytes(16)), 1, Author(author), epoch, key_id, 0, b"saltsalt", bytes(32))


def written(one: Record) -> VaultWrite:
    """A write of one record by its author."""
    stream = StreamWrite(STREAM, 0, 1, 1, (StoredSegment(0, 1, encode_record(one)),))
    batch = BatchWrite(MemberState(one.author, ALICE.device_key, Role.ADMIN), 0, KeptOutcome(1, b"", b""))
    return VaultWrite(VaultId(bytes(16)), TERM, (one.epoch, one.key_id), (stream,), (batch,))


def told(history: History) -> str:
    """The first violation."""
    return history.broken or ""


def test_who_writes_under_the_key_of_now_may() -> None:
    links, keys = log_of(2)
    history = History()
    members = Members(history)
    members.follow(segments(links), restored=False)
    members.written(written(record(2, keys[1].current.key_id)))
    members.seals("a", keys[0].current)
    members.seals("a", keys[1].current)
    assert history.broken is None


def test_a_record_of_an_old_epoch_is_found_unless_it_is_given_back() -> None:
    links, keys = log_of(2)
    history = History()
    members = Members(history)
    members.follow(segments(links), restored=False)
    old = record(1, keys[0].current.key_id)
    history.returned[STREAM, old.rank.pack()] = {("a", 1)}
    members.written(written(old))
    assert history.broken is None
    history.returned.clear()
    members.written(written(old))
    assert "under the key of now" in told(history)


def test_what_a_stranger_writes_is_found() -> None:
    links, keys = log_of(1)
    history = History()
    members = Members(history)
    members.follow(segments(links), restored=False)
    members.written(written(record(1, keys[0].current.key_id, author=2)))
    assert "only members write" in told(history)


def test_epochs_that_go_backwards_are_found_and_so_is_another_end_unless_something_was_restored() -> None:
    links, keys = log_of(2)
    for restored in (False, True):
        history = History()
        members = Members(history)
        members.follow(segments(links), restored=restored)
        members.follow(segments(links[:1]), restored=restored)
        assert (history.broken is None) is restored
    history = History()
    members = Members(history)
    members.follow(segments(links), restored=False)
    members.seals("a", keys[1].current)
    members.seals("a", keys[0].current)
    assert "epochs never go backwards" in told(history)


def test_a_key_to_which_no_log_commits_is_found() -> None:
    links, _ = log_of(1)
    history = History()
    members = Members(history)
    members.follow(segments(links), restored=False)
    members.seals("a", EpochKey(1, KeyId(bytes(KEY_ID_BYTES)), Secret(bytes(32))))
    assert "what the log commits to" in told(history)


def test_a_refusal_for_an_old_epoch_of_what_is_of_the_present_one_is_found() -> None:
    links, keys = log_of(2)
    history = History()
    members = Members(history)
    members.follow(segments(links), restored=False)
    for of in keys:
        body = encode_record(record(of.current.number, of.current.key_id))
        push = Push(of.vault, TERM, 1, 0, (Group(STREAM, b"", body),))
        assert history.broken is None
        members.stale("a", push)
    assert "no honest write is refused" in told(history)
