"""The membership log as the database has it: who may write, and under which key. What breaks that is told at once."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from sealwire_client.keyring import EpochKey, epoch_commitment
from sealwire_protocol.ids import DeviceKey, KeyId
from sealwire_protocol.links import AddDevice, Leave, Role, decode_links
from sealwire_protocol.membership import Member, Membership, verified_before
from sealwire_protocol.messages import Push
from sealwire_protocol.segment import read_segment
from sealwire_relay.store.interface import VaultWrite
from sealwire_relay.store.segments import StoredSegment
from tests.simulation.history import History


class Members:
    """The one vault's members, and the keys of its epochs, in all histories that there ever were."""

    def __init__(self, history: History) -> None:
        self.log = Membership()
        self.keys: dict[tuple[int, KeyId], EpochKey] = {}
        """The keys under which anything was ever sealed."""
        self.left: set[DeviceKey] = set()
        """Devices that have ever left, as a log said."""
        self.again = 0
        """How often a device became a member that had been one before."""
        self._history = history
        self._links: list[bytes] = []
        self._commitments: dict[int, set[bytes]] = defaultdict(set)
        self._sealed_last: dict[str, tuple[int, int]] = {}

    def follow(self, segments: Iterable[StoredSegment], *, restored: bool) -> None:
        """The log consists of these segments now. As long as nothing was `restored` it only ever grows."""
        links = [raw for segment in segments for raw in decode_links(segment.body)]
        before = self.log.epoch
        if links[: len(self._links)] != self._links:
            if not restored:
                self._history.fail("links that no restore has taken stay: the membership log has another end")
            self.log, self._links = Membership(), []
        for raw in links[len(self._links) :]:
            former = self.log.parted()
            link = self.log.apply(raw, verified_before)
            self.again += isinstance(link.body, AddDevice) and link.body.device in former
            if isinstance(link.body, Leave):
                self.left.add(self.log.members[link.signer].device)
            self._commitments[self.log.epoch].add(self.log.commitment(self.log.epoch) or b"")
        self._links = links
        if self.log.epoch < before and not restored:
            self._history.fail(f"epochs never go backwards: {self.log.epoch} comes after {before}")

    def member(self, device: DeviceKey) -> Member | None:
        """The member that a device is, if it is one."""
        return self.log.by_device(device)

    def written(self, write: VaultWrite) -> None:
        """A write was carried out: by members, and what is not given back under the key of now."""
        for batch in write.batches:
            member = self.log.members.get(batch.author)
            if member is None or member.removed or member.role < Role.WRITER or member.device != batch.member.device:
                self._history.fail(f"only members write: what member {batch.author} sent was taken")
        state = self.log.epoch, self.log.key_id
        for stream in write.streams:
            for segment in stream.segments:
                for seq, record in read_segment(segment.body, segment.prev, segment.last):
                    given_back = (stream.stream, record.rank.pack()) in self._history.returned
                    if not given_back and (record.epoch, record.key_id) != state:
                        self._history.fail(
                            f"only what is sealed under the key of now is taken: {seq} is of epoch {record.epoch}, and"
                            f" the log's is {state[0]}"
                        )

    def seals(self, device: str, key: EpochKey) -> None:
        """A device seals under a key: one that a log of the vault has committed to, and of no epoch before its last."""
        if epoch_commitment(key.secret, key.number) not in self._commitments[key.number]:
            self._history.fail(f"a key is what the log commits to: {device} seals under another one of {key.number}")
        self.keys[key.number, key.key_id] = key
        last, restores = self._sealed_last.get(device, (0, 0))
        if key.number < last and restores == self._history.restores:
            self._history.fail(f"epochs never go backwards: {device} seals under {key.number} after {last}")
        self._sealed_last[device] = key.number, self._history.restores

    def stale(self, device: str, push: Push) -> None:
        """A device is told that a batch was sealed under an old key: so it was, at least before a restore."""
        sealed = {
            (record.epoch, record.key_id) for group in push.groups for _, record in read_segment(group.records, 0)
        }
        if sealed == {(self.log.epoch, self.log.key_id)} and not self._history.restores:
            self._history.fail(f"no honest write is refused: {device}'s batch {push.batch} is of the epoch of now")

    def never_handed(self, device: DeviceKey, keys: Sequence[EpochKey]) -> list[EpochKey]:
        """Of these keys of a device that is no member, those of epochs that began without it."""
        last = max((member.author for member in self.log.members.values() if member.device == device), default=None)
        if last is None:
            return []
        return [
            key
            for key in keys
            if key.number in self.log.epochs
            and self.log.epochs[key.number].seq > last
            and last not in self.log.epochs[key.number].receivers
            and epoch_commitment(key.secret, key.number) == self.log.commitment(key.number)
        ]
